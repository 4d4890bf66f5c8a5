// Oracle: the definitions in double; gradients against central differences; a worked example.
#include <recops/ranking/score_fusion.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("the formula equals its definition, and its gradients its differences", "[ranking][score_fusion]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-10;
  Random random = random_stream(971);
  for (const Index n : {0, 1, 7, 40}) {
    for (const Index count : {1, 3, 12}) {
      Padded<T> x(n, count), dx(n, count, T(1));
      Vector<T> alpha(count), beta(count), gamma = random_vector<T>(count, random), out(n);
      for (T& v : alpha) v = static_cast<T>(random.uniform(0.01, 0.2));
      for (T& v : beta) v = static_cast<T>(random.uniform(0.5, 2));
      for (Index i = 0; i < n; ++i)
        for (Index m = 0; m < count; ++m) x(i, m) = static_cast<T>(random.uniform());
      const Vector<T> dout = random_vector<T>(n, random);
      const FormulaParameters<T> p{alpha, beta, gamma};
      Workspace ws;
      for (const bool logarithm : {true, false}) {
        CAPTURE(n, count, logarithm);
        const FormulaOptions o{.log_output = logarithm};
        const auto value = [&](Index i, double move_x, Index at, double move_a, double move_b, double move_g) {
          double sum = 0;
          for (Index m = 0; m < count; ++m) {
            const double on = m == at ? 1 : 0;
            const double a = static_cast<double>(alpha[m]) + on * move_a, b = static_cast<double>(beta[m]) + on * move_b;
            sum += (static_cast<double>(gamma[m]) + on * move_g) * std::log(a + b * (static_cast<double>(x(i, m)) + on * move_x));
          }
          return logarithm ? sum : std::exp(sum);
        };
        formula_ensemble<T>(x, p, o, out, ws);
        for (Index i = 0; i < n; ++i) CHECK(static_cast<double>(out[i]) == Approx(value(i, 0, 0, 0, 0, 0)).epsilon(tolerance));
        Vector<T> da(count, T(1)), db(count, T(1)), dg(count, T(1));
        for (Index i = 0; i < n; ++i) std::fill_n(dx.view().row(i), count, T(1));
        formula_ensemble_backward<T>(x, p, o, out, dout, dx, {da, db, dg}, ws);
        for (Index m = 0; m < count; ++m) {
          const double h = 1e-6;
          double in_a = 0, in_b = 0, in_g = 0;
          for (Index i = 0; i < n; ++i) {
            const double u = static_cast<double>(dout[i]) / (2 * h);
            CHECK(static_cast<double>(dx(i, m)) - 1 ==
                  Approx(u * (value(i, h, m, 0, 0, 0) - value(i, -h, m, 0, 0, 0))).epsilon(1e-4).margin(1e-5));
            in_a += u * (value(i, 0, m, h, 0, 0) - value(i, 0, m, -h, 0, 0));
            in_b += u * (value(i, 0, m, 0, h, 0) - value(i, 0, m, 0, -h, 0));
            in_g += u * (value(i, 0, m, 0, 0, h) - value(i, 0, m, 0, 0, -h));
          }
          CHECK(static_cast<double>(da[m]) - 1 == Approx(in_a).epsilon(1e-4).margin(1e-4));
          CHECK(static_cast<double>(db[m]) - 1 == Approx(in_b).epsilon(1e-4).margin(1e-4));
          CHECK(static_cast<double>(dg[m]) - 1 == Approx(in_g).epsilon(1e-4).margin(1e-4));
        }
        CHECK(dx.intact());
        CHECK(count_allocations([&] {
                formula_ensemble<T>(x, p, o, out, ws);
                formula_ensemble_backward<T>(x, p, o, out, dout, dx, {}, ws);
              }) == 0);
      }
    }
  }
}

TEST_CASE("the formula of the worked example; NaN; bad input", "[ranking][score_fusion]") {
  const Matrix<double> x{{.2, .05, .9}};
  const Vector<double> alpha{.01, .02, .1}, beta{1, 2, .5}, gamma{1, .5, -.3}, dout{1};
  Vector<double> out(1), dg(3, 0.0);
  Matrix<double> dx(1, 3, 0.0);
  Workspace ws;
  const FormulaParameters<double> p{alpha, beta, gamma};
  formula_ensemble<double>(x, p, {.log_output = false}, out, ws);
  CHECK(out[0] == Approx(0.087036438).margin(1e-9));
  formula_ensemble_backward<double>(x, p, {.log_output = false}, out, dout, dx, {.gamma = dg}, ws);
  const double in_x[] = {0.41445923, 0.725303653, -0.02373721}, in_g[] = {-0.135833222, -0.184540187, -0.052033603};
  for (Index m = 0; m < 3; ++m) {
    CHECK(dx(0, m) == Approx(in_x[m]).margin(1e-8));
    CHECK(dg[m] == Approx(in_g[m]).margin(1e-8));
  }
  const Matrix<double> rows{{std::nan(""), 1, 1}, {.2, .05, .9}}, below{{-5, 1, 1}};
  Vector<double> two(2), one(1, 4.0);
  formula_ensemble<double>(rows, p, {}, two, ws);
  CHECK((std::isnan(two[0]) && two[1] == Approx(std::log(0.087036438))));
  CHECK_THAT(error_of([&] { formula_ensemble<double>(below, p, {}, one, ws); }), contains("alpha + beta x > 0"));
  CHECK_THAT(error_of([&] { formula_ensemble<double>(rows, p, {}, one, ws); }), contains("out"));
  CHECK(one[0] == 4);
}

TEST_CASE("rank fusion sums weighted reciprocal ranks within groups", "[ranking][score_fusion]") {
  Random random = random_stream(972);
  const std::vector<std::int64_t> offsets{0, 0, 5, 6, 40};
  Matrix<float> x = random_matrix<float>(40, 3, random);
  for (Index i = 0; i < 40; ++i) x(i, 1) = std::round(x(i, 1));  // ties: the lowest index first
  x(3, 2) = std::numeric_limits<float>::quiet_NaN();             // last of its group
  const Vector<float> weights{1, 0.5f, 2};
  Vector<float> out(40), again(40), plain(40);
  Threads threads{3};
  Workspace ws, many(make_executor(threads, 3));
  rank_fusion<float>(x, offsets, weights, {.k = 10, .power = 2}, out, ws);
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
    for (Index i = offsets[g]; i < offsets[g + 1]; ++i) {
      double sum = 0;
      for (Index m = 0; m < 3; ++m) {
        double rank = 1;
        const auto worth = [&](Index k) { return std::isnan(x(k, m)) ? -1e9f : x(k, m); };
        for (Index j = offsets[g]; j < offsets[g + 1]; ++j) rank += worth(j) > worth(i) || (worth(j) == worth(i) && j < i);
        sum += static_cast<double>(weights[m]) / ((rank + 10) * (rank + 10));
      }
      CHECK(static_cast<double>(out[i]) == Approx(sum).epsilon(1e-6));
    }
  }
  rank_fusion<float>(x, offsets, weights, {.k = 10, .power = 2}, plain, many);
  for (Index i = 0; i < 40; ++i) CHECK(plain[i] == out[i]);
  CHECK(count_allocations([&] { rank_fusion<float>(x, offsets, weights, {.k = 10, .power = 2}, again, ws); }) == 0);
  const Matrix<float> both{{3, 1}, {2, 2}, {1, 3}};
  Vector<float> three(3);
  rank_fusion<float>(both, {}, {}, {}, three, ws);  // reciprocal rank fusion
  CHECK(three[0] == Approx(1.0 / 61 + 1.0 / 63));
  CHECK(three[1] == Approx(2.0 / 62));
  CHECK_THAT(error_of([&] { rank_fusion<float>(both, {}, {}, {.k = -1}, three, ws); }), contains("k"));
  CHECK_THAT(error_of([&] { rank_fusion<float>(both, {}, weights, {}, three, ws); }), contains("weights"));
}
