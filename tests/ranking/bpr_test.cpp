// Oracle: the definition in double.
#include <recops/ranking/bpr.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("bpr equals its definition and its differences, and adds", "[ranking][bpr]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-6 : 1e-13;
  Random random = random_stream(941);
  for (const Index rows : {0, 1, 7}) {
    for (const Index count : {0, 1, 4, 9, 70, 1100}) {
      Vector<T> p = random_vector<T>(rows, random), w(rows), dp(rows, T(1));
      Matrix<T> n = random_matrix<T>(rows, count, random);
      for (Index b = 0; b < rows; ++b) w[b] = static_cast<T>(b % 3 == 2 ? 0.0 : random.uniform(0.5, 2));
      Padded<T> negatives(n.view()), dn(rows, count, T(1));
      for (const bool weighted : {false, true}) {
        const VectorView<const T> weights = weighted ? VectorView<const T>(w) : VectorView<const T>();
        std::fill_n(dp.data(), rows, T(1));
        for (Index b = 0; b < rows; ++b) std::fill_n(dn.view().row(b), count, T(1));
        const double got = bpr_loss_value_and_grad<T>(p, negatives, weights, dp, dn);
        CHECK(bpr_loss<T>(p, negatives, weights) == got);
        double sum = 0, mass = 0;
        for (Index b = 0; b < rows; ++b) mass += weighted ? static_cast<double>(w[b]) : 1.0;
        for (Index b = 0; b < rows; ++b) {
          const double share = (weighted ? static_cast<double>(w[b]) : 1.0) / mass / static_cast<double>(count);
          double slope = 0;
          for (Index k = 0; k < count; ++k) {
            const double x = static_cast<double>(n(b, k)) - static_cast<double>(p[b]), f = share / (1 + std::exp(-x));
            sum += share * std::log1p(std::exp(x));
            slope += f;
            CHECK(static_cast<double>(dn(b, k)) == Approx(1 + f).margin(tolerance));
          }
          CHECK(static_cast<double>(dp[b]) == Approx(1 - slope).margin(tolerance));
        }
        CHECK(got == Approx(count == 0 ? 0 : sum).margin(tolerance));
        CHECK(dn.intact());
      }
    }
  }
}

TEST_CASE("bpr: a NaN stays in its row, far scores are exact, nothing is allocated, bad input", "[ranking][bpr]") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Vector<float> p{0, nan, 200}, w{1, 0, 1}, bad{1, -1, 1};
  const Matrix<float> n{{1, 2}, {3, 4}, {-200, 600}};
  Vector<float> dp(3, 0.0f);
  Matrix<float> dn(3, 2, 0.0f);
  CHECK(count_allocations([&] { CHECK(std::isnan(bpr_loss_value_and_grad<float>(p, n, {}, dp, dn))); }) == 0);
  CHECK((std::isfinite(dp[0]) && std::isnan(dp[1]) && std::isfinite(dp[2])));
  CHECK((std::isnan(dn(1, 0)) && dn(2, 0) == 0.0f && dn(2, 1) == Approx(1.0 / 6)));
  CHECK(std::isfinite(bpr_loss<float>(p, n, w)));
  CHECK_THAT(error_of([&] { bpr_loss<float>(p, n, bad); }), contains("weights"));
  Matrix<float> small(2, 2);
  CHECK_THAT(error_of([&] { bpr_loss_value_and_grad<float>(p, n, {}, dp, small); }), contains("dnegatives"));
}
