// Oracles: fixtures worked out with numpy from the papers' equations; closed forms for a Gaussian target; identities between methods.
#include <recops/diffusion/diffusion_step.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// A plan of one step between two steps of the schedule.
SamplerStep single(const NoiseSchedule& s, Index from, Index to, SamplerOptions o) {
  o.steps = 100000;
  o.start = from;
  if (o.method == SamplerMethod::ddpm) {
    const SamplerPlan plan(s, o);
    for (const SamplerStep& step : plan.steps)
      if (step.to == to) return step;
  }
  // A stride from..to..0 comes of the right number of steps; look for it.
  for (o.steps = 1; o.steps <= from; ++o.steps) {
    const SamplerPlan plan(s, o);
    for (const SamplerStep& step : plan.steps)
      if (step.from == from && step.to == to) return step;
  }
  FAIL("no such stride");
  return {};
}

constexpr Prediction kinds[] = {Prediction::x0, Prediction::epsilon, Prediction::v};

/// Runs a plan on one number with the ideal denoiser of N(mu, s^2), without noise.
double run(const NoiseSchedule& schedule, const SamplerPlan& plan, double x, double mu, double s) {
  Matrix<double> state(1, 1, x), m(1, 1), previous(1, 1);
  for (Index i = 0; i < static_cast<Index>(plan.steps.size()); ++i) {
    const Index t = plan.steps[static_cast<std::size_t>(i)].from;
    const double a = schedule.alpha_bar[t], v = s * s * a + 1 - a;
    const double x0 = mu + s * s * std::sqrt(a) / v * (state(0, 0) - std::sqrt(a) * mu);
    const ConversionTerms c = conversion(schedule, Prediction::x0, plan.options.prediction, t);
    m(0, 0) = c.x * state(0, 0) + c.m * x0;
    diffusion_step<double>(plan, i, state, m, {}, previous);
  }
  return state(0, 0);
}

/// lambda evenly from -5 to 5 over n steps, then 0: `log_snr` visits all of them.
NoiseSchedule even_lambda(Index n) {
  std::vector<double> a;
  for (Index i = 0; i <= n; ++i) a.push_back(1 / (1 + std::exp(-2 * (5 - 10 * static_cast<double>(i) / static_cast<double>(n)))));
  return NoiseSchedule::from_alpha_bar(a);
}

}  // namespace

TEST_CASE("scalars of single steps", "[diffusion][plan]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  const auto check = [&](SamplerOptions o, double x, double p, double noise) {
    const SamplerStep step = single(s, 500, 400, o);
    CHECK(step.x == Approx(x).epsilon(1e-8));
    CHECK(step.p == Approx(p).epsilon(1e-8));
    CHECK(step.noise == Approx(noise).epsilon(1e-8).margin(1e-15));
  };
  check({.prediction = Prediction::x0}, 0.934611936, 0.179750174, 0);
  check({.prediction = Prediction::epsilon}, 1.575811610, -0.615489153, 0);
  check({.prediction = Prediction::v}, 0.985002050, -0.172542636, 0);
  check({.prediction = Prediction::x0, .eta = 0.5}, 0.855535791, 0.201917919, 0.361155546);
  check({.prediction = Prediction::epsilon, .eta = 0.5}, 1.575811610, -0.691394539, 0.361155546);
  check({.prediction = Prediction::v, .eta = 0.5}, 0.912140282, -0.193821509, 0.361155546);
  const SamplerPlan solver(s, {.method = SamplerMethod::dpm_solver, .steps = 10});
  const SamplerStep& second = solver.steps[5];
  CHECK((second.from == 500 && second.to == 400));
  CHECK(second.x == Approx(0.934611936).epsilon(1e-8));
  CHECK(second.p == Approx(0.260255415).epsilon(1e-8));
  CHECK(second.previous == Approx(-0.080505241).epsilon(1e-8));
  const SamplerPlan all(s, {.method = SamplerMethod::ddpm});
  CHECK(all.steps.size() == 1000);
  const SamplerStep& ancestral = all.steps[500];
  CHECK((ancestral.from == 500 && ancestral.to == 499));
  CHECK(ancestral.p == Approx(0.00307007111).epsilon(1e-8));
  CHECK(ancestral.x == Approx(0.99410667022).epsilon(1e-10));
  CHECK(ancestral.noise == Approx(0.10015665437).epsilon(1e-9));
}

TEST_CASE("DDIM with eta 1 is DDPM and has the posterior's variance", "[diffusion][plan]") {
  for (const NoiseSchedule& s : {NoiseSchedule::linear(1000), NoiseSchedule::cosine(50), NoiseSchedule::linear_variance(5)}) {
    for (const Prediction kind : kinds) {
      const SamplerPlan ddpm(s, {.method = SamplerMethod::ddpm, .prediction = kind});
      const SamplerPlan ddim(s, {.steps = s.steps(), .prediction = kind, .eta = 1});
      double worst = 0, variance = 0;
      for (std::size_t i = 0; i < ddpm.steps.size(); ++i) {
        const SamplerStep &a = ddpm.steps[i], &b = ddim.steps[i];
        worst = std::max({worst, std::abs(a.x - b.x) / (1 + std::abs(a.x)), std::abs(a.p - b.p) / (1 + std::abs(a.p)),
                          std::abs(a.noise - b.noise)});
        variance = std::max(variance,
                            std::abs(b.noise * b.noise - s.posterior_variance[b.from]) / (s.posterior_variance[b.from] + 1e-15));
        CHECK((a.from == b.from && a.to == a.from - 1));
      }
      CHECK(worst < 1e-9);
      CHECK(variance < 1e-8);
    }
  }
}

TEST_CASE("first order DPM-Solver++ is DDIM without noise, and so are the first and last step of the second order",
          "[diffusion][plan]") {
  const NoiseSchedule s = NoiseSchedule::cosine(100);
  const SamplerPlan ddim(s, {.steps = 7}), first(s, {.method = SamplerMethod::dpm_solver, .steps = 7, .order = 1}),
      second(s, {.method = SamplerMethod::dpm_solver, .steps = 7});
  for (std::size_t i = 0; i < 7; ++i) {
    CHECK(first.steps[i].x == Approx(ddim.steps[i].x).epsilon(1e-12).margin(1e-15));
    CHECK(first.steps[i].p == Approx(ddim.steps[i].p).epsilon(1e-12));
    CHECK((second.steps[i].previous == 0) == (i == 0 || i == 6));
  }
  CHECK(second.steps[6].x == 0);
  CHECK(second.steps[6].p == 1);
}

TEST_CASE("a perfect denoiser recovers x_0, by every method, stride and prediction", "[diffusion][plan]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  for (const SamplerMethod method : {SamplerMethod::ddpm, SamplerMethod::ddim, SamplerMethod::dpm_solver})
    for (const StepSpacing spacing : {StepSpacing::linspace, StepSpacing::trailing, StepSpacing::leading, StepSpacing::log_snr})
      for (const Prediction kind : kinds)
        for (const Index steps : {1, 2, 3, 10, 37}) {
          INFO(int(method) << " " << int(spacing) << " " << int(kind) << " " << steps);
          const SamplerPlan plan(s, {.method = method, .steps = steps, .spacing = spacing, .prediction = kind, .eta = 0.3});
          CHECK(run(s, plan, 2.5, 1.3, 0) == Approx(1.3).epsilon(1e-9));
        }
}

TEST_CASE("a Gaussian target: errors of DDIM and DPM-Solver++ against the exact flow", "[diffusion][plan]") {
  const double mu = 1.3, sd = 0.6, start = 0.7;
  const double ddim[] = {9.18e-2, 4.87e-2, 2.51e-2, 1.28e-2, 6.43e-3}, solver[] = {1.49e-2, 5.86e-3, 1.59e-3, 4.03e-4, 1.01e-4};
  const Index counts[] = {10, 20, 40, 80, 160};
  for (int k = 0; k < 5; ++k) {
    const NoiseSchedule s = even_lambda(counts[k]);
    const auto spread = [&](Index t) { return sd * sd * s.alpha_bar[t] + 1 - s.alpha_bar[t]; };
    // From t = T to t = 1, both of which the schedule has, by the plan without its last step.
    const double exact =
        s.sqrt_alpha_bar[1] * mu + std::sqrt(spread(1) / spread(s.steps())) * (start - s.sqrt_alpha_bar[s.steps()] * mu);
    const auto error = [&](SamplerMethod method) {
      SamplerPlan plan(s, {.method = method, .steps = s.steps()});
      plan.steps.pop_back();
      return std::abs(run(s, plan, start, mu, sd) - exact);
    };
    CHECK(error(SamplerMethod::ddim) == Approx(ddim[k]).epsilon(0.01));
    CHECK(error(SamplerMethod::dpm_solver) == Approx(solver[k]).epsilon(0.01));
  }
  // One step multiplies the deviation from the mean by a known factor.
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  const SamplerPlan plan(s, {.steps = 10});
  double deviation = start - s.sqrt_alpha_bar[1000] * mu;
  for (const SamplerStep& step : plan.steps) {
    const double a = s.alpha_bar[step.from], p = s.alpha_bar[step.to];
    deviation *= (sd * sd * std::sqrt(a * p) + std::sqrt((1 - a) * (1 - p))) / (sd * sd * a + 1 - a);
  }
  CHECK(run(s, plan, start, mu, sd) == Approx(mu + deviation).epsilon(1e-12));
}

TEST_CASE("the spread of samples of a Gaussian target follows the closed recursion", "[diffusion][plan]") {
  // x_s = (a + b k) x + ... + c z with the ideal denoiser: the variance of the chain is exact.
  const auto variance = [](Index steps, double eta) {
    const NoiseSchedule s = NoiseSchedule::cosine(steps);
    const SamplerPlan plan(s, {.steps = steps, .eta = eta});
    double v = 1;
    for (const SamplerStep& step : plan.steps) {
      const double a = s.alpha_bar[step.from], slope = 0.36 * std::sqrt(a) / (0.36 * a + 1 - a);
      v = std::pow(step.x + step.p * slope, 2) * v + step.noise * step.noise;
    }
    return v;
  };
  CHECK(variance(20, 1) == Approx(0.2771).epsilon(1e-3));
  CHECK(variance(100, 1) == Approx(0.3382).epsilon(1e-3));
  CHECK(variance(1000, 1) == Approx(0.3575).epsilon(1e-3));
  CHECK(variance(20, 0) == Approx(0.3124).epsilon(1e-3));
  CHECK(variance(100, 0) == Approx(0.3499).epsilon(1e-3));
  CHECK(variance(1000, 0) == Approx(0.3590).epsilon(1e-3));
}

TEST_CASE("lists of steps", "[diffusion][plan]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  const auto list = [&](Index n, StepSpacing spacing, Index start = 0) {
    const Vector<Index> t = sampler_timesteps(s, n, spacing, start);
    return std::vector<Index>(t.begin(), t.end());
  };
  CHECK(list(4, StepSpacing::linspace) == std::vector<Index>{1000, 750, 500, 250, 0});
  CHECK(list(3, StepSpacing::trailing) == std::vector<Index>{1000, 667, 333, 0});
  CHECK(list(4, StepSpacing::leading) == std::vector<Index>{751, 501, 251, 1, 0});
  CHECK(list(1, StepSpacing::linspace) == std::vector<Index>{1000, 0});
  CHECK(list(2, StepSpacing::linspace, 40) == std::vector<Index>{40, 20, 0});
  CHECK(list(5000, StepSpacing::linspace).size() == 1001);
  for (const StepSpacing spacing : {StepSpacing::linspace, StepSpacing::trailing, StepSpacing::leading, StepSpacing::log_snr})
    for (const Index n : {1, 2, 3, 7, 13, 999, 1000}) {
      const std::vector<Index> t = list(n, spacing);
      CHECK(t.back() == 0);
      CHECK(t[t.size() - 2] >= 1);
      for (std::size_t i = 1; i < t.size(); ++i) CHECK(t[i] < t[i - 1]);
      if (spacing != StepSpacing::leading) CHECK(t.front() == 1000);
    }
}

TEST_CASE("plans refuse what makes none", "[diffusion][plan]") {
  const NoiseSchedule s = NoiseSchedule::cosine(10);
  CHECK(error_of([&] { SamplerPlan(s, {.eta = 1.5}); }) == "SamplerPlan: eta: expected 0 <= eta <= 1, got 1.5");
  CHECK(error_of([&] { SamplerPlan(s, {.order = 3}); }).find("order 1 or 2") != std::string::npos);
  CHECK(error_of([&] { SamplerPlan(s, {.start = 11}); }).find("1 <= start <= T") != std::string::npos);
  CHECK(error_of([&] { SamplerPlan(s, {.steps = -1}); }).find("steps >= 0") != std::string::npos);
  CHECK(error_of([&] { SamplerPlan(s, {.clip = ClipX0::box, .clip_at = 0}); }).find("clip_at > 0") != std::string::npos);
  CHECK(error_of([&] { SamplerPlan(NoiseSchedule(), {}); }).find("one step or more") != std::string::npos);
}
