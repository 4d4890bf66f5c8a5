// Oracles: figures of the papers' schedules worked out in numpy (golden/diffusion.py); the definition in long double.
#include <recops/diffusion/noise_schedule.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

std::vector<std::pair<const char*, NoiseSchedule>> all(Index steps) {
  return {{"linear", NoiseSchedule::linear(steps)},
          {"scaled_linear", NoiseSchedule::scaled_linear(std::max(steps, Index{21}))},
          {"cosine", NoiseSchedule::cosine(steps)},
          {"sqrt", NoiseSchedule::sqrt(steps)},
          {"sigmoid", NoiseSchedule::sigmoid(steps)},
          {"exponential", NoiseSchedule::exponential(steps)},
          {"truncated_linear", NoiseSchedule::truncated_linear(std::max(steps, Index{21}))},
          {"truncated_cosine", NoiseSchedule::truncated_cosine(steps)},
          {"linear_variance", NoiseSchedule::linear_variance(steps)}};
}

}  // namespace

TEST_CASE("published schedules have their published values", "[diffusion][schedule]") {
  const NoiseSchedule linear = NoiseSchedule::linear(1000);
  CHECK(linear.alpha_bar[0] == 1);
  CHECK(linear.alpha_bar[1] == Approx(0.9999).epsilon(1e-14));
  CHECK(linear.alpha_bar[2] == Approx(0.9997800921).epsilon(1e-10));
  CHECK(linear.alpha_bar[500] == Approx(0.0785872429).epsilon(1e-9));
  CHECK(linear.alpha_bar[1000] == Approx(4.0358298e-5).epsilon(1e-7));
  CHECK(linear.posterior_x0[500] == Approx(0.00307007111).epsilon(1e-8));
  CHECK(linear.posterior_x[500] == Approx(0.99410667022).epsilon(1e-10));
  CHECK(std::sqrt(linear.posterior_variance[500]) == Approx(0.10015665437).epsilon(1e-9));
  const NoiseSchedule cosine = NoiseSchedule::cosine(1000);
  CHECK(cosine.beta[1] == Approx(4.12842e-5).epsilon(1e-5));
  CHECK(cosine.beta[2] == Approx(4.61418e-5).epsilon(1e-5));
  CHECK(cosine.beta[3] == Approx(5.09995e-5).epsilon(1e-5));
  CHECK(cosine.alpha_bar[500] == Approx(0.49384359).epsilon(1e-7));
  CHECK(cosine.alpha_bar[1000] == Approx(2.43e-9).epsilon(2e-3));
  const NoiseSchedule truncated = NoiseSchedule::truncated_linear(32);
  CHECK(truncated.beta[1] == Approx(0.013125).epsilon(1e-12));
  CHECK(truncated.beta[32] == Approx(0.635).epsilon(1e-12));
  CHECK(truncated.alpha_bar[32] == Approx(9.90e-7).epsilon(1e-3));
  CHECK(NoiseSchedule::exponential(200).alpha_bar[200] == Approx(0.00625265).epsilon(1e-6));
  const NoiseSchedule variance = NoiseSchedule::linear_variance(5);
  CHECK(variance.beta[1] == Approx(1e-5).epsilon(1e-12));
  CHECK(variance.beta[2] == Approx(1.125e-7).epsilon(1e-6));
  CHECK(NoiseSchedule::sqrt(50).beta[50] == Approx(0.999).epsilon(1e-12));
  CHECK(NoiseSchedule::sigmoid(50).alpha_bar[25] == Approx(0.5).epsilon(1e-9));
  CHECK(NoiseSchedule::truncated_cosine(40).alpha_bar[1] ==
        Approx(std::pow(std::cos(0.1 / 1.1 * std::numbers::pi / 2), 2)).epsilon(1e-12));
}

TEST_CASE("every schedule is one, and its tables follow from each other", "[diffusion][schedule]") {
  for (const Index steps : {1, 2, 5, 50, 200}) {
    for (const auto& [name, s] : all(steps)) {
      INFO(name << ", T = " << s.steps());
      CHECK(s.alpha_bar[0] == 1);
      CHECK((s.sigma[0] == 0 && !std::signbit(s.sigma[0])));
      CHECK((s.snr[0] == std::numeric_limits<double>::infinity() && s.lambda[0] == s.snr[0]));
      CHECK((s.posterior_x0[1] == 1 && s.posterior_x[1] == 0 && s.posterior_variance[1] == 0));
      long double product = 1;
      for (Index t = 1; t <= s.steps(); ++t) {
        product *= 1 - static_cast<long double>(s.beta[t]);
        const double a = s.alpha_bar[t];
        CHECK((a > 0 && a < s.alpha_bar[t - 1]));
        CHECK(a == Approx(static_cast<double>(product)).epsilon(1e-12));
        CHECK(s.sqrt_alpha_bar[t] * s.sqrt_alpha_bar[t] == Approx(a).epsilon(1e-14));
        CHECK(s.sigma[t] * s.sigma[t] + a == Approx(1).epsilon(1e-14));
        CHECK(s.snr[t] == Approx(std::exp(2 * s.lambda[t])).epsilon(1e-10));
        CHECK(s.posterior_x0[t] + s.posterior_x[t] * s.sqrt_alpha_bar[t] == Approx(s.sqrt_alpha_bar[t - 1]).epsilon(1e-9));
      }
    }
  }
}

TEST_CASE("1 - alpha_bar keeps its digits next to 1", "[diffusion][schedule]") {
  const std::vector<double> tiny{1e-15, 1e-15};
  const NoiseSchedule s = NoiseSchedule::from_betas(tiny);
  CHECK(s.sigma[1] * s.sigma[1] == Approx(1e-15).epsilon(1e-12));
  CHECK(s.sigma[2] * s.sigma[2] == Approx(2e-15).epsilon(1e-12));
}

TEST_CASE("schedules from users: betas and alpha_bars agree, what is none is refused", "[diffusion][schedule]") {
  const std::vector<double> betas{0.1, 0.2, 0.4};
  const NoiseSchedule b = NoiseSchedule::from_betas(betas);
  const std::vector<double> alphas{0.9, 0.72, 0.432};
  const NoiseSchedule a = NoiseSchedule::from_alpha_bar(alphas);
  for (Index t = 0; t <= 3; ++t) {
    CHECK(a.alpha_bar[t] == Approx(b.alpha_bar[t]).epsilon(1e-14));
    CHECK(a.beta[t] == Approx(b.beta[t]).epsilon(1e-14));
    CHECK(a.posterior_variance[t] == Approx(b.posterior_variance[t]).epsilon(1e-13));
  }
  CHECK(!b.reaches_noise());
  CHECK(NoiseSchedule::cosine(50).reaches_noise());
  CHECK(!NoiseSchedule::linear(200).reaches_noise());  // 0.13: unscaled betas need 1000 steps
  const auto betas_error = [](std::vector<double> v) { return error_of([&] { NoiseSchedule::from_betas(v); }); };
  CHECK(betas_error({0.1, 1.0}) == "NoiseSchedule: beta: expected 0 < beta < 1, got 1");
  CHECK(betas_error({0.1, 0.0}).find("0 < beta < 1") != std::string::npos);
  CHECK(betas_error({std::numeric_limits<double>::quiet_NaN()}).find("0 < beta < 1") != std::string::npos);
  CHECK(betas_error({}).find("one step or more") != std::string::npos);
  CHECK(betas_error({1e-17}).find("falls strictly") != std::string::npos);
  const std::vector<double> rising{0.5, 0.6};
  CHECK(error_of([&] { NoiseSchedule::from_alpha_bar(rising); }).find("alpha_bar_1 > alpha_bar_2") != std::string::npos);
  CHECK(error_of([&] { NoiseSchedule::cosine(0); }).find("one step or more") != std::string::npos);
  CHECK(error_of([&] { NoiseSchedule::scaled_linear(10); }).find("0 < beta < 1") != std::string::npos);
}
