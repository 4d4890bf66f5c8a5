// Oracle: the same element by element.
#include <recops/simd/shuffle.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// Vectors whose element i of row r is 100 r + i.
template <class T, class A>
std::vector<simd::Batch<T, A>> numbered(Index rows) {
  std::vector<simd::Batch<T, A>> x;
  for (Index r = 0; r < rows; ++r) {
    alignas(64) T lane[simd::lanes<T, A>];
    for (Index i = 0; i < simd::lanes<T, A>; ++i) lane[i] = static_cast<T>(100 * r + i);
    x.push_back(simd::Batch<T, A>::load_aligned(lane));
  }
  return x;
}

template <class T, class A>
T lane_of(simd::Batch<T, A> v, Index i) {
  alignas(64) T lane[simd::lanes<T, A>];
  v.store_aligned(lane);
  return lane[i];
}

}  // namespace

TEMPLATE_TEST_CASE("zip, transpose and sum_each within registers", "[simd][shuffle]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    auto x = numbered<T, A>(W);
    for (Index i = 0; i < W; ++i) {
      const T from = static_cast<T>(i % 2 * 100 + i / 2);
      REQUIRE(lane_of<T, A>(simd::zip<false>(x[0], x[1]), i) == from);
      REQUIRE(lane_of<T, A>(simd::zip<true>(x[0], x[1]), i) == from + static_cast<T>(W / 2));
    }
    const simd::Batch<T, A> sums = simd::sum_each<T, A>(x.data());
    for (Index i = 0; i < W; ++i) REQUIRE(lane_of<T, A>(sums, i) == static_cast<T>(100 * i * W + W * (W - 1) / 2));
    simd::transpose<T, A>(x.data());
    for (Index r = 0; r < W; ++r)
      for (Index i = 0; i < W; ++i) REQUIRE(lane_of<T, A>(x[static_cast<std::size_t>(r)], i) == static_cast<T>(100 * i + r));
  });
}

TEMPLATE_TEST_CASE("transposed copies of every size stay inside", "[simd][shuffle]", float, double) {
  using T = TestType;
  Random random = random_stream(31);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    for (const Index rows : {Index{0}, Index{1}, W - 1, W, W + 1, 2 * W + 3}) {
      for (const Index cols : {Index{0}, Index{1}, W - 1, W, W + 1, 2 * W + 3}) {
        const Index padded = (rows / W + 2) * W, stride = padded + W;  // one vector of zeros more than needed
        // Exactly as many numbers as there are: reading past them is what the address sanitizer looks for.
        const Matrix<T> in = random_matrix<T>(rows, cols, random);
        Vector<T> out(cols * stride + 1, T(99)), factor((rows + W) / W * W + W, T(4));  // powers of 2: products are exact
        simd::pack_transposed<T, A>(in.data(), cols, rows, cols, T(2), out.data(), stride, padded);
        bool right = true;
        for (Index c = 0; c < cols; ++c)
          for (Index r = 0; r < stride; ++r)
            right = right && out[c * stride + r] == (r < rows ? 2 * in(r, c) : r < padded ? T(0) : T(99));
        CAPTURE(rows, cols);
        REQUIRE(right);
        Padded<T> back(rows, cols, T(7));
        const auto unpack = [&](bool add) {
          const MatrixView<T> to = back;
          simd::unpack_transposed<T, A>(out.data(), stride, factor.data(), to.data(), to.stride(), rows, cols, add);
        };
        unpack(true);
        for (Index r = 0; r < rows; ++r)
          for (Index c = 0; c < cols; ++c) right = right && back(r, c) == T(7) + 8 * in(r, c);
        unpack(false);
        for (Index r = 0; r < rows; ++r)
          for (Index c = 0; c < cols; ++c) right = right && back(r, c) == 8 * in(r, c);
        REQUIRE(right);
        REQUIRE(back.intact());
      }
    }
  });
}
