// Oracle: the sum in double of the rows as they are stored.
#include <recops/simd/pool_rows.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class S>
double number(const S& x) {
  if constexpr (std::is_arithmetic_v<S>) {
    return static_cast<double>(x);
  } else {
    return static_cast<double>(static_cast<float>(x));
  }
}

template <class T, class S>
void check_pooling(Random& random, Index table_rows, Index cols, Index stride) {
  std::vector<S> storage(static_cast<std::size_t>(table_rows * stride));
  for (S& x : storage) {
    if constexpr (std::is_same_v<S, std::int8_t>) {
      x = static_cast<std::int8_t>(random.below(255) - 127);
    } else {
      x = S(static_cast<float>(random.normal()));
    }
  }
  const MatrixView<const S> table(storage.data(), table_rows, cols, stride);
  std::vector<float> scales;
  for (Index i = 0; i < table_rows; ++i) scales.push_back(static_cast<float>(random.uniform()));
  std::vector<std::int32_t> ids;
  std::vector<T> weights;
  for (Index i = 0; i < 60; ++i) {
    ids.push_back(static_cast<std::int32_t>(random.below(table_rows)));
    weights.push_back(static_cast<T>(random.normal()));
  }
  const Index skip = ids[7];
  for (const bool scaled : {false, true})
    for (const bool weighted : {false, true})
      for (const Index first : {0, 3, 59})
        for (const Index last : {first, first + 1, Index{60}}) {
          const simd::PickedRows<T, S> rows{.table = table,
                                            .scales = scaled ? scales.data() : nullptr,
                                            .ids = ids,
                                            .weights = weighted ? VectorView<const T>(weights) : VectorView<const T>(),
                                            .skip = skip};
          std::vector<double> expected(static_cast<std::size_t>(cols), 0), size = expected;
          for (Index i = first; i < last; ++i) {
            const auto id = static_cast<Index>(ids[static_cast<std::size_t>(i)]);
            if (id == skip) continue;
            const double w = (weighted ? static_cast<double>(weights[static_cast<std::size_t>(i)]) : 1) *
                             (scaled ? static_cast<double>(scales[static_cast<std::size_t>(id)]) : 1);
            for (Index j = 0; j < cols; ++j) {
              expected[static_cast<std::size_t>(j)] += 0.5 * w * number(table(id, j));
              size[static_cast<std::size_t>(j)] += std::abs(w * number(table(id, j)));
            }
          }
          for_each_architecture([&](auto architecture) {
            using A = decltype(architecture);
            Padded<T> out(1, cols, T(9));
            simd::pool_rows<T, A>(rows, first, last, T(0.5), out.view().row(0));
            double worst = 0;
            for (Index j = 0; j < cols; ++j)
              worst = std::max(worst, std::abs(static_cast<double>(out(0, j)) - expected[static_cast<std::size_t>(j)]) /
                                          (size[static_cast<std::size_t>(j)] + 1e-30));
            CAPTURE(cols, first, last, scaled, weighted);
            CHECK(worst < 10 * static_cast<double>(std::numeric_limits<T>::epsilon()));
            CHECK(out.intact());
          });
        }
}

}  // namespace

TEST_CASE("pooled rows of every format, width and instruction set", "[simd][pool_rows]") {
  Random random = random_stream(481);
  for (const Index cols : {0, 1, 3, 8, 16, 17, 31, 64, 100}) {
    check_pooling<float, float>(random, 40, cols, cols);
    check_pooling<float, BFloat16>(random, 40, cols, cols + 3);
    check_pooling<float, std::int8_t>(random, 40, cols, cols + 1);
    check_pooling<double, double>(random, 40, cols, cols);
  }
  check_pooling<float, Float16>(random, 40, 37, 40);
}

TEST_CASE("a table beyond the cache, whose rows are fetched ahead", "[simd][pool_rows]") {
  Random random = random_stream(482);
  check_pooling<float, float>(random, 5000, 80, 80);
  check_pooling<float, BFloat16>(random, 9000, 70, 71);
}
