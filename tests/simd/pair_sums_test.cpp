// Oracle: the double loop in long double.
#include <recops/simd/pair_sums.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T, class A, simd::PairLoss kind>
void compare(Index rows, Index cols, double sigma, double spread, double shift, bool separable, Random& random) {
  Vector<T> high = random_vector<T>(rows, random), low = random_vector<T>(cols, random);
  for (T& x : high) x = static_cast<T>(spread * static_cast<double>(x) + shift);
  for (T& x : low) x = static_cast<T>(spread * static_cast<double>(x) + shift);
  const auto [a, b] = std::minmax_element(high.begin(), high.end());
  const auto [c, d] = std::minmax_element(low.begin(), low.end());
  const auto how = simd::pair_scores<T>(static_cast<T>(sigma), *a, *b, *c, *d);
  CAPTURE(rows, cols, sigma, spread, shift, how.separable);
  if (rows * cols > 100) CHECK(how.separable == separable);
  Vector<T> up(rows), down(cols);
  simd::prepare_pair_scores<T, A>(high.data(), rows, how, -1, up.data());
  simd::prepare_pair_scores<T, A>(low.data(), cols, how, 1, down.data());
  std::vector<double> row(static_cast<std::size_t>(rows), 0.5), col(static_cast<std::size_t>(cols), 0.5);
  const double sum = simd::pair_sums<kind, T, A>(up.data(), rows, down.data(), cols, how, row.data(), col.data());
  const double value = simd::pair_sums<kind, T, A>(up.data(), rows, down.data(), cols, how, nullptr, nullptr);
  long double expected = 0;
  std::vector<long double> row_sum(row.size(), 0.5L), col_sum(col.size(), 0.5L);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      const long double x = static_cast<long double>(static_cast<T>(sigma)) * (static_cast<long double>(low[j]) - high[i]);
      const long double p = 1 / (1 + std::exp(-x));
      expected += kind == simd::PairLoss::sigmoid ? p : std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x)));
      const long double slope = kind == simd::PairLoss::sigmoid ? p * (1 - p) : p;
      row_sum[static_cast<std::size_t>(i)] += slope;
      col_sum[static_cast<std::size_t>(j)] += slope;
    }
  }
  const double tolerance = (separable ? 1.0 : 1 + std::abs(shift)) * 20 * static_cast<double>(std::numeric_limits<T>::epsilon());
  CHECK(sum == Approx(static_cast<double>(expected)).epsilon(tolerance));
  CHECK(value == Approx(static_cast<double>(expected)).epsilon(tolerance));
  for (std::size_t i = 0; i < row.size(); ++i) CHECK(row[i] == Approx(static_cast<double>(row_sum[i])).epsilon(tolerance));
  for (std::size_t j = 0; j < col.size(); ++j) CHECK(col[j] == Approx(static_cast<double>(col_sum[j])).epsilon(tolerance));
}

}  // namespace

TEMPLATE_TEST_CASE("pair sums equal the double loop", "[simd][pair_sums]", float, double) {
  using T = TestType;
  Random random = random_stream(911);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const auto& [rows, cols] : std::vector<std::pair<Index, Index>>{{1, 1}, {3, 5}, {4, 16}, {70, 9}, {5, 300}}) {
      compare<T, A, simd::PairLoss::logistic>(rows, cols, 1, 1, 0, true, random);
      compare<T, A, simd::PairLoss::sigmoid>(rows, cols, 1.5, 1, 0, true, random);
      compare<T, A, simd::PairLoss::logistic>(rows, cols, 0.7, 2, 100, true, random);  // far from 0, near each other
      const double far = std::is_same_v<T, float> ? 30 : 300;
      compare<T, A, simd::PairLoss::logistic>(rows, cols, 1, far, 0, false, random);
      compare<T, A, simd::PairLoss::sigmoid>(rows, cols, 0.5, 4 * far, 0, false, random);
    }
  });
}

TEMPLATE_TEST_CASE("what a pair costs at the ends of the range", "[simd][pair_sums]", float, double) {
  using T = TestType;
  const T large = static_cast<T>(std::is_same_v<T, float> ? 1e30 : 1e300);
  const T high[] = {-large, 0, large}, low[] = {large};
  const auto how = simd::pair_scores<T>(T(1), -large, large, large, large);
  CHECK(!how.separable);
  double row[3] = {}, col[2] = {};
  const double sum = simd::pair_sums<simd::PairLoss::logistic, T>(high, 3, low, 1, how, row, col);
  CHECK(sum == Approx(3 * static_cast<double>(large)).epsilon(1e-6));
  CHECK((row[0] == 1 && row[1] == 1 && row[2] == 0.5 && col[0] == 2.5));
  const T won[] = {large}, lost[] = {-large, -large};
  CHECK(simd::pair_sums<simd::PairLoss::logistic, T>(won, 1, lost, 2, simd::pair_scores<T>(T(1), large, large, -large, -large),
                                                     row, col) < 1e-40);
}
