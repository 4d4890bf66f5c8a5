// Oracle: the double loop in long double.
#include <recops/simd/lambda_sums.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("lambda sums equal the double loop", "[simd][lambda_sums]", float, double) {
  using T = TestType;
  Random random = random_stream(912);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const auto& [rows, cols] : std::vector<std::pair<Index, Index>>{{1, 1}, {3, 5}, {70, 9}, {5, 300}}) {
      for (const double spread : {1.0, 25.0, 400.0}) {  // products of exponentials hold the first, in double the second too
        Vector<T> scores = random_vector<T>(rows + cols, random), gains(rows + cols), discounts(rows + cols);
        for (T& s : scores) s = static_cast<T>(spread * static_cast<double>(s));
        for (Index i = 0; i < rows + cols; ++i) {
          gains[i] = static_cast<T>(random.uniform(i < rows ? 2 : 0, i < rows ? 3 : 2));
          discounts[i] = static_cast<T>(random.uniform());
        }
        const auto [least, most] = std::minmax_element(scores.begin(), scores.end());
        const simd::RankedItems<T> all{scores.data(), gains.data(), discounts.data(), rows + cols};
        std::vector<double> row(static_cast<std::size_t>(rows), 0.5), col(static_cast<std::size_t>(cols), 0.5);
        const double sum =
            simd::lambda_sums<T, A>(all.segment(0, rows), all.segment(rows, cols), T(0.7), *least, *most, row.data(), col.data());
        long double expected = 0;
        std::vector<long double> row_sum(row.size(), 0.5L), col_sum(col.size(), 0.5L);
        for (Index i = 0; i < rows; ++i) {
          for (Index j = rows; j < rows + cols; ++j) {
            const long double x = static_cast<long double>(T(0.7)) * (static_cast<long double>(scores[j]) - scores[i]);
            const long double w =
                (static_cast<long double>(gains[i]) - gains[j]) * std::abs(static_cast<long double>(discounts[i]) - discounts[j]);
            expected += w * (std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x))));
            row_sum[static_cast<std::size_t>(i)] += w / (1 + std::exp(-x));
            col_sum[static_cast<std::size_t>(j - rows)] += w / (1 + std::exp(-x));
          }
        }
        CAPTURE(rows, cols, spread);
        const double tolerance = 40 * static_cast<double>(std::numeric_limits<T>::epsilon());
        CHECK(sum == Approx(static_cast<double>(expected)).epsilon(tolerance).margin(1e-30));
        for (std::size_t i = 0; i < row.size(); ++i) CHECK(row[i] == Approx(static_cast<double>(row_sum[i])).epsilon(tolerance));
        for (std::size_t j = 0; j < col.size(); ++j) CHECK(col[j] == Approx(static_cast<double>(col_sum[j])).epsilon(tolerance));
      }
    }
  });
}
