// Oracles: the definitions of eps and v in double; round trips; central differences.
#include <recops/diffusion/prediction.hpp>
#include <recops/diffusion/q_sample.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
constexpr Prediction kinds[] = {Prediction::x0, Prediction::epsilon, Prediction::v};
}

TEMPLATE_TEST_CASE("predictions from data and noise, and back by every road", "[diffusion][prediction]", float, double) {
  using T = TestType;
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  Random random = random_stream(711);
  const Index rows = 4, cols = 19;
  const std::int32_t t[] = {1, 20, 400, 700};
  const Matrix<T> x0 = random_matrix<T>(rows, cols, random), noise = random_matrix<T>(rows, cols, random);
  Matrix<T> xt(rows, cols);
  q_sample<T>(s, x0, IndexView(t, rows), noise, xt);
  Matrix<double> v(rows, cols);
  for (Index b = 0; b < rows; ++b)
    for (Index j = 0; j < cols; ++j)
      v(b, j) = s.sqrt_alpha_bar[t[b]] * static_cast<double>(noise(b, j)) - s.sigma[t[b]] * static_cast<double>(x0(b, j));
  const auto truth = [&](Prediction kind, Index b, Index j) {
    return kind == Prediction::x0        ? static_cast<double>(x0(b, j))
           : kind == Prediction::epsilon ? static_cast<double>(noise(b, j))
                                         : v(b, j);
  };
  for (const Prediction from : kinds)
    for (const Prediction to : kinds) {
      Matrix<T> m(rows, cols);
      for (Index b = 0; b < rows; ++b)
        for (Index j = 0; j < cols; ++j) m(b, j) = static_cast<T>(truth(from, b, j));
      convert_prediction<T>(s, from, to, xt, IndexView(t, rows), m, m);
      double worst = 0;
      for (Index b = 0; b < rows; ++b)  // rounding of x_t grows as 1 / sigma or sigma / sqrt(alpha_bar)
        for (Index j = 0; j < cols; ++j)
          worst = std::max(
              worst, std::abs(static_cast<double>(m(b, j)) - truth(to, b, j)) * std::min(s.sigma[t[b]], s.sqrt_alpha_bar[t[b]]));
      CHECK(worst < (std::is_same_v<T, float> ? 1e-6 : 1e-14));
    }
}

TEST_CASE("gradients of the conversions and of q_sample", "[diffusion][prediction]") {
  const NoiseSchedule s = NoiseSchedule::cosine(50);
  Random random = random_stream(712);
  const std::int32_t t[] = {1, 30};
  Matrix<double> x = random_matrix<double>(2, 5, random), m = random_matrix<double>(2, 5, random), y(2, 5);
  const Matrix<double> g = random_matrix<double>(2, 5, random);
  const auto sum = [&] {
    double total = 0;
    for (Index i = 0; i < 10; ++i) total += y.data()[i] * g.data()[i];
    return total;
  };
  GradientReport report;
  const auto compare = [&](auto&& loss, auto&& backward) {
    Matrix<double> dx(2, 5, 0.0), dm(2, 5, 0.0);
    for (int twice = 0; twice < 2; ++twice) backward(dx.view(), dm.view());
    for (Index i = 0; i < 10; ++i) dx.data()[i] /= 2, dm.data()[i] /= 2;
    check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report);
    check_gradient("m", leaf_values(m), leaf_values(std::as_const(dm)), loss, report);
  };
  for (const Prediction from : kinds)
    for (const Prediction to : kinds)
      compare(
          [&] {
            convert_prediction<double>(s, from, to, x, IndexView(t, 2), m, y);
            return sum();
          },
          [&](MatrixView<double> dx, MatrixView<double> dm) {
            convert_prediction_backward<double>(s, from, to, IndexView(t, 2), g, dx, dm);
          });
  compare(
      [&] {
        q_sample<double>(s, x, IndexView(t, 2), m, y);
        return sum();
      },
      [&](MatrixView<double> dx, MatrixView<double> dm) { q_sample_backward<double>(s, IndexView(t, 2), g, dx, dm); });
  INFO(report.where);
  CHECK(report.worst < 1e-7);
}

TEST_CASE("conversions refuse step 0 and shapes that disagree", "[diffusion][prediction]") {
  const NoiseSchedule s = NoiseSchedule::cosine(50);
  const std::int32_t zero[] = {0}, three[] = {1, 2, 3};
  Matrix<float> x(2, 3, 1.0f), y(2, 3, 7.0f);
  CHECK(error_of([&] { convert_prediction<float>(s, Prediction::v, Prediction::x0, x, IndexView(zero, 1), x, y); }) ==
        "convert_prediction: t: expected steps from 1 to 50, got 0 at position 0");
  CHECK(error_of([&] {
          convert_prediction<float>(s, Prediction::v, Prediction::x0, x, IndexView(three, 3), x, y);
        }).find("t: expected 2 steps") != std::string::npos);
  CHECK(error_of([&] {
          convert_prediction<float>(s, Prediction::v, Prediction::x0, x, IndexView(three, 2), Matrix<float>(3, 3).view(), y);
        }).find("m: expected shape [2, 3]") != std::string::npos);
  CHECK(error_of([&] { conversion(s, Prediction::v, Prediction::x0, 51); }).find("1 <= t <= T") != std::string::npos);
  for (Index i = 0; i < 6; ++i) CHECK(y.data()[i] == 7.0f);
}

TEMPLATE_TEST_CASE("conversions of rows with gaps between them", "[diffusion][prediction]", float, double) {
  using T = TestType;
  const NoiseSchedule s = NoiseSchedule::cosine(50);
  Random random = random_stream(713);
  const std::int32_t t[] = {1, 30, 50};
  const Matrix<T> x = random_matrix<T>(3, 19, random), m = random_matrix<T>(3, 19, random), g = random_matrix<T>(3, 19, random);
  Matrix<T> y(3, 19), dx(3, 19, T(0)), dm(3, 19, T(0));
  Padded<T> wide_x(x.view()), wide_m(m.view()), wide_g(g.view()), wide_y(3, 19), wide_dx(3, 19), wide_dm(3, 19);
  for (const Prediction from : kinds)
    for (const Prediction to : kinds) {
      convert_prediction<T>(s, from, to, x, IndexView(t, 3), m, y);
      convert_prediction<T>(s, from, to, wide_x, IndexView(t, 3), wide_m, wide_y);
      CHECK(max_difference(y.view(), wide_y.view()) == 0);
      convert_prediction_backward<T>(s, from, to, IndexView(t, 3), g, dx, dm);
      convert_prediction_backward<T>(s, from, to, IndexView(t, 3), wide_g, wide_dx, wide_dm);
      CHECK(max_difference(dx.view(), wide_dx.view()) == 0);
      CHECK(max_difference(dm.view(), wide_dm.view()) == 0);
    }
  CHECK((wide_x.intact() && wide_m.intact() && wide_g.intact() && wide_y.intact() && wide_dx.intact() && wide_dm.intact()));
}
