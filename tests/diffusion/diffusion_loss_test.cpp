// Oracles: the formula in long double; identities between predictions; central differences.
#include <recops/diffusion/diffusion_loss.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

long double naive(MatrixView<const double> p, MatrixView<const double> y, VectorView<const double> w, DiffusionLoss kind) {
  long double sum = 0;
  for (Index b = 0; b < p.rows(); ++b)
    for (Index j = 0; j < p.cols(); ++j) {
      const long double d = static_cast<long double>(p(b, j)) - y(b, j), s = std::abs(d);
      const long double f = kind == DiffusionLoss::squared    ? d * d
                            : kind == DiffusionLoss::absolute ? s
                            : s <= 1                          ? d * d / 2
                                                              : s - 0.5L;
      sum += (w.empty() ? 1.0L : static_cast<long double>(w[b])) * f;
    }
  return sum / static_cast<long double>(p.rows() * p.cols());
}

}  // namespace

TEST_CASE("diffusion losses are their formula, and so are their gradients", "[diffusion][loss]") {
  Random random = random_stream(751);
  for (const DiffusionLoss kind : {DiffusionLoss::squared, DiffusionLoss::absolute, DiffusionLoss::huber}) {
    for (const bool weighted : {false, true}) {
      Matrix<double> p = random_matrix<double>(5, 7, random), y = random_matrix<double>(5, 7, random);
      Vector<double> w = random_vector<double>(weighted ? 5 : 0, random), losses(5);
      if (weighted) w[2] = 0;
      CHECK(diffusion_loss<double>(p, y, w, kind, losses) == Approx(static_cast<double>(naive(p, y, w, kind))).epsilon(1e-13));
      double mean = 0;
      for (Index b = 0; b < 5; ++b) mean += (weighted ? w[b] : 1) * losses[b] / 5;
      CHECK(diffusion_loss<double>(p, y, w, kind) == Approx(mean).epsilon(1e-13));
      Matrix<double> dp(5, 7, 0.0), dy(5, 7, 0.0);
      for (int twice = 0; twice < 2; ++twice) diffusion_loss_value_and_grad<double>(p, y, w, kind, {}, dp, dy);
      for (Index i = 0; i < 35; ++i) dp.data()[i] /= 2, dy.data()[i] /= 2;
      GradientReport report;
      const auto loss = [&] { return diffusion_loss<double>(p, y, w, kind); };
      check_gradient("p", leaf_values(p), leaf_values(std::as_const(dp)), loss, report);
      check_gradient("y", leaf_values(y), leaf_values(std::as_const(dy)), loss, report);
      CHECK(report.worst < 1e-7);
      // A detached target changes nothing else.
      Matrix<double> alone(5, 7, 0.0);
      diffusion_loss_value_and_grad<double>(p, y, w, kind, {}, alone);
      CHECK(max_difference(alone.view(), dp.view()) < 1e-15);
    }
  }
}

TEST_CASE("weights of steps: the same loss in x_0, eps and v", "[diffusion][loss]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  Random random = random_stream(752);
  const std::int32_t t[] = {1, 2, 100, 500, 900};
  const Matrix<double> xt = random_matrix<double>(5, 4, random), truth = random_matrix<double>(5, 4, random),
                       guess = random_matrix<double>(5, 4, random);
  for (const LossWeight kind : {LossWeight::snr_difference, LossWeight::min_snr}) {
    double expected = 0;
    for (const Prediction p : {Prediction::x0, Prediction::epsilon, Prediction::v}) {
      Matrix<double> a(5, 4), b(5, 4);
      convert_prediction<double>(s, Prediction::x0, p, xt, IndexView(t, 5), guess, a);
      convert_prediction<double>(s, Prediction::x0, p, xt, IndexView(t, 5), truth, b);
      Vector<double> w(5);
      diffusion_loss_weights<double>(s, kind, p, IndexView(t, 5), w);
      const double loss = diffusion_loss<double>(a, b, w);
      if (p == Prediction::x0) expected = loss;
      CHECK(loss == Approx(expected).epsilon(1e-9));
    }
  }
  Vector<double> w(5);
  diffusion_loss_weights<double>(s, LossWeight::min_snr, Prediction::x0, IndexView(t, 5), w);
  CHECK(w[0] == 5);
  CHECK(w[4] == Approx(s.snr[900]));
  diffusion_loss_weights<double>(s, LossWeight::one, Prediction::v, IndexView(t, 5), w);
  CHECK(w[3] == 1);
  // DiffRec's released setting: huge, because its noise is tiny.
  const NoiseSchedule tiny = NoiseSchedule::linear_variance(5);
  const std::int32_t all[] = {1, 2, 3, 4, 5};
  diffusion_loss_weights<double>(tiny, LossWeight::snr_difference, Prediction::x0, IndexView(all, 5), w);
  const double published[] = {1, 1112, 1088, 1064, 1041};
  for (Index i = 0; i < 5; ++i) CHECK(w[i] == Approx(published[i]).epsilon(1e-3));
}

TEST_CASE("diffusion losses: no rows, NaN, left out rows, wrong input", "[diffusion][loss]") {
  Matrix<float> p(3, 2, 1.0f), y(3, 2, 0.0f), none(0, 2), dp(3, 2, 0.0f);
  const std::vector<float> w{1, 0, 2}, two{1, 2};
  CHECK(diffusion_loss<float>(none, none) == 0);
  Vector<float> each(3, 7.0f);
  const Matrix<float> narrow(3, 0);
  CHECK((diffusion_loss<float>(narrow, narrow, {}, DiffusionLoss::squared, each) == 0 && each[0] == 0 && each[2] == 0));
  p(1, 0) = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(diffusion_loss<float>(p, y)));
  CHECK(count_allocations([&] { diffusion_loss_value_and_grad<float>(p, y, w, DiffusionLoss::squared, {}, dp); }) == 0);
  CHECK(diffusion_loss<float>(p, y, w) == Approx(1));
  CHECK((dp(1, 0) == 0 && dp(1, 1) == 0 && dp(0, 0) != 0));
  CHECK(error_of([&] { diffusion_loss<float>(p, none); }) == "diffusion_loss: targets: expected shape [3, 2], got [0, 2]");
  CHECK(error_of([&] { diffusion_loss<float>(p, y, two); }).find("weights: expected size 3") != std::string::npos);
  const NoiseSchedule s = NoiseSchedule::cosine(10);
  const std::int32_t eleven[] = {11};
  Vector<float> out(1);
  CHECK(error_of([&] {
          diffusion_loss_weights<float>(s, LossWeight::one, Prediction::x0, IndexView(eleven, 1), out);
        }).find("steps from 1 to 10") != std::string::npos);
}

TEMPLATE_TEST_CASE("diffusion losses of rows with gaps between them", "[diffusion][loss]", float, double) {
  using T = TestType;
  Random random = random_stream(753);
  const Matrix<T> p = random_matrix<T>(5, 19, random), y = random_matrix<T>(5, 19, random);
  const Vector<T> w = random_vector<T>(5, random);
  Padded<T> wide_p(p.view()), wide_y(y.view()), wide_dp(5, 19), wide_dy(5, 19);
  for (const DiffusionLoss kind : {DiffusionLoss::squared, DiffusionLoss::absolute, DiffusionLoss::huber}) {
    Matrix<T> dp(5, 19, T(0)), dy(5, 19, T(0));
    wide_dp = Padded<T>(dp.view()), wide_dy = Padded<T>(dy.view());
    CHECK(diffusion_loss<T>(p, y, w, kind) == diffusion_loss<T>(wide_p, wide_y, w, kind));
    diffusion_loss_value_and_grad<T>(p, y, w, kind, {}, dp, dy);
    diffusion_loss_value_and_grad<T>(wide_p, wide_y, w, kind, {}, wide_dp, wide_dy);
    CHECK(max_difference(dp.view(), wide_dp.view()) == 0);
    CHECK(max_difference(dy.view(), wide_dy.view()) == 0);
    CHECK((wide_dp.intact() && wide_dy.intact()));
  }
  CHECK((wide_p.intact() && wide_y.intact()));
}
