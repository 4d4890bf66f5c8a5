/// @file   recops/diffusion/sampler_plan.hpp
/// @brief  The steps of a sampler, worked out beforehand: every method is x_s = a x_t + b m + c z with three scalars per step.
///
///     DDPM              a, b from the posterior q(x_s | x_t, x_0),  c = its deviation
///     DDIM              a = k / sigma_t,  b = sqrt(alpha_bar_s) - a sqrt(alpha_bar_t),  k^2 = sigma_s^2 - c^2,
///                       c = eta sigma_s / sigma_t sqrt(1 - alpha_bar_t / alpha_bar_s)
///     DPM-Solver++      a = sigma_s / sigma_t,  b = -sqrt(alpha_bar_s) (e^-h - 1),  h = lambda_s - lambda_t; of second order (2M)
///                       m is m_t + h / (2 h_before) (m_t - m_before), and the last step, to 0, is of first order
///
/// in terms of x_0; for a denoiser that predicts eps or v the conversion is folded into a and b. DDIM with eta 1 is DDPM, DDIM with
/// eta 0 is DPM-Solver++ of first order. What is left out between two steps of the list counts as one: c and the posterior come from
/// alpha_bar_t / alpha_bar_s, never from a table of betas.
///
/// Which one: DDPM with every step to reproduce published results; DDIM with 10 to 20 steps to serve; second-order DPM-Solver++ with
/// 10 or fewer where the denoiser is smooth.
///
/// Precision   worked out in double, rounded once.
/// Cost        set-up: O(steps), allocates.
/// Errors      Error for options out of range.
/// Reference   Ho et al. arXiv 2006.11239; Song et al. arXiv 2010.02502, eq. 12 and 16; Lu et al. arXiv 2211.01095, algorithm 2.
#pragma once
#include <limits>
#include <recops/diffusion/prediction.hpp>
#include <vector>

namespace recops {

enum class SamplerMethod : unsigned char {
  ddpm,        ///< ancestral: noise in every step but the last
  ddim,        ///< as much of that noise as eta says
  dpm_solver,  ///< DPM-Solver++, multistep, deterministic
};

/// Which of the schedule's steps a sampler visits.
enum class StepSpacing : unsigned char {
  linspace,  ///< evenly from T down to 0
  trailing,  ///< every T / n-th from T on
  leading,   ///< every T / n-th up from 1: starts below T, so not from pure noise; others' weights may want it
  log_snr,   ///< evenly in the log of the signal-to-noise ratio; equal ones once, so there may be fewer
};

/// What is done to the predicted x_0, after guidance.
enum class ClipX0 : unsigned char {
  none,
  box,   ///< every number to [-c, c]
  norm,  ///< rows longer than c to length c
  unit,  ///< every row to length 1; a row of zeros stays
};

/// Options of `SamplerPlan`.
struct SamplerOptions {
  SamplerMethod method = SamplerMethod::ddim;
  Index steps = 0;  ///< 0: every one for DDPM, else 10; more than there are: every one
  StepSpacing spacing = StepSpacing::linspace;
  Prediction prediction = Prediction::x0;  ///< what the denoiser predicts
  double eta = 0;                          ///< DDIM: 0 deterministic, 1 as noisy as DDPM
  bool large_variance = false;             ///< DDPM: c^2 = 1 - alpha_bar_t / alpha_bar_s instead of the posterior's variance
  bool mean_only = false;                  ///< DDPM: no noise at all, as DiffRec samples
  int order = 2;                           ///< DPM-Solver++: 1 or 2
  double guidance = 0;                     ///< w in (1 + w) m_c - w m_u; others' "guidance scale" is 1 + w
  ClipX0 clip = ClipX0::none;
  double clip_at = 1;  ///< c > 0 of `box` and `norm`; for `norm` a high quantile of the items' lengths
  Index start = 0;     ///< first step visited; 0: T
};

inline namespace RECOPS_ABI {

/// One step: x_to = x x_from + p p + previous p_before + noise z with p = clip(x0_x x_from + x0_m m).
struct SamplerStep {
  Index from = 0, to = 0;
  double x0_x = 0, x0_m = 1;  ///< from the denoiser's output to p
  double x = 0, p = 1, previous = 0, noise = 0;
};

/// Steps visited, from the first down to 0.
inline Vector<Index> sampler_timesteps(const NoiseSchedule& schedule, Index steps, StepSpacing spacing, Index start = 0) {
  const Index last = start == 0 ? schedule.steps() : start;
  check_option("sampler_timesteps", "schedule", schedule.steps() >= 1, "one step or more", static_cast<double>(schedule.steps()));
  check_option("sampler_timesteps", "start", 1 <= last && last <= schedule.steps(), "0, or 1 <= start <= T",
               static_cast<double>(start));
  check_option("sampler_timesteps", "steps", steps >= 1, "one step or more", static_cast<double>(steps));
  const Index n = std::min(steps, last);
  const double top = static_cast<double>(last), count = static_cast<double>(n);
  Vector<Index> t(n + 1);
  for (Index i = 0; i < n; ++i) {
    const double part = static_cast<double>(i);
    switch (spacing) {
      case StepSpacing::linspace:
      case StepSpacing::trailing:
        t[i] = static_cast<Index>(std::nearbyint(top - part * (top / count)));
        break;
      case StepSpacing::leading:
        t[i] = 1 + (n - 1 - i) * (last / n);
        break;
      case StepSpacing::log_snr: {
        const double low = schedule.lambda[last], high = schedule.lambda[1];
        const double aim = n == 1 ? low : low + (high - low) * part / (count - 1);
        t[i] = last;
        for (Index s = last; s >= 1; --s)
          if (std::abs(schedule.lambda[s] - aim) < std::abs(schedule.lambda[t[i]] - aim)) t[i] = s;
        break;
      }
    }
  }
  t[n] = 0;
  const auto end = std::unique(t.begin(), t.end());
  t.resize(end - t.begin());
  return t;
}

/// Everything a sampler needs but the denoiser. Immutable once made; threads may share it.
struct SamplerPlan {
  SamplerOptions options;
  std::vector<SamplerStep> steps;

  SamplerPlan() = default;
  SamplerPlan(const NoiseSchedule& schedule, const SamplerOptions& o) : options(o) {
    constexpr const char* name = "SamplerPlan";
    check_option(name, "steps", o.steps >= 0, "steps >= 0", static_cast<double>(o.steps));
    check_option(name, "eta", 0 <= o.eta && o.eta <= 1, "0 <= eta <= 1", o.eta);
    check_option(name, "order", o.order == 1 || o.order == 2, "order 1 or 2", o.order);
    check_option(name, "guidance", std::isfinite(o.guidance), "a finite number", o.guidance);
    check_option(name, "clip_at", o.clip_at > 0, "clip_at > 0", o.clip_at);
    const Index count = o.steps > 0 ? o.steps : o.method == SamplerMethod::ddpm ? std::max(schedule.steps(), Index{1}) : 10;
    const Vector<Index> t = sampler_timesteps(schedule, count, o.spacing, o.start);
    for (Index i = 0; i + 1 < t.size(); ++i) {
      SamplerStep s = in_x0(schedule, t[i], t[i + 1], i == 0 ? 0 : t[i - 1]);
      const ConversionTerms c = conversion(schedule, o.prediction, Prediction::x0, s.from);
      if (keeps_x0()) {
        s.x0_x = c.x, s.x0_m = c.m;
      } else {
        s.x += s.p * c.x, s.p *= c.m;
      }
      steps.push_back(s);
    }
  }

  /// Whether there is a second prediction, without the condition, to be guided away from.
  bool guided() const { return options.guidance != 0; }
  /// Whether a step needs the prediction of the step before.
  bool multistep() const { return options.method == SamplerMethod::dpm_solver && options.order == 2; }
  /// Whether p is the predicted x_0; otherwise it is the denoiser's output and the conversion is part of the scalars.
  bool keeps_x0() const { return options.clip != ClipX0::none || multistep() || options.prediction == Prediction::x0; }

  /// Step i as the kernel takes it.
  template <Real T>
  simd::DiffusionUpdate<T> update(Index i) const {
    const SamplerStep& s = steps[static_cast<std::size_t>(i)];
    const auto of = [](double v) { return static_cast<T>(v); };
    simd::DiffusionUpdate<T> u{.conditional = of(1 + options.guidance),
                               .unconditional = of(-options.guidance),
                               .x0_x = of(s.x0_x),
                               .x0_m = of(s.x0_m),
                               .x_scale = of(s.x),
                               .p_scale = of(s.p),
                               .previous_scale = of(s.previous),
                               .noise_scale = of(s.noise)};
    if (options.clip == ClipX0::box) u.bound = of(options.clip_at);
    if (options.clip == ClipX0::norm) u.longest = of(options.clip_at);
    if (options.clip == ClipX0::unit) u.longest = u.shortest = T(1);
    return u;
  }

 private:
  SamplerStep in_x0(const NoiseSchedule& schedule, Index from, Index to, Index before) const {
    const double root_t = schedule.sqrt_alpha_bar[from], root_s = schedule.sqrt_alpha_bar[to];
    const double sigma_t = schedule.sigma[from], sigma_s = schedule.sigma[to];
    // 1 - alpha_bar_t / alpha_bar_s without cancellation.
    const double ratio = std::pow(root_t / root_s, 2), added = (sigma_t * sigma_t - sigma_s * sigma_s) / (root_s * root_s);
    SamplerStep s{.from = from, .to = to};
    switch (options.method) {
      case SamplerMethod::ddpm: {
        const double variance = sigma_t * sigma_t;
        s.p = root_s * added / variance;
        s.x = sigma_s * sigma_s * std::sqrt(ratio) / variance;
        s.noise = std::sqrt(options.large_variance ? added : added * sigma_s * sigma_s / variance);
        if (to == 0) s.p = 1, s.x = 0;
        if (to == 0 || options.mean_only) s.noise = 0;
        break;
      }
      case SamplerMethod::ddim: {
        s.noise = options.eta * sigma_s / sigma_t * std::sqrt(added);
        const double k = std::sqrt(std::max(sigma_s * sigma_s - s.noise * s.noise, 0.0));
        s.x = k / sigma_t;
        s.p = root_s - s.x * root_t;
        break;
      }
      case SamplerMethod::dpm_solver: {
        const double h = schedule.lambda[to] - schedule.lambda[from];
        const double whole = to == 0 ? 1 : -root_s * std::expm1(-h);
        s.x = sigma_s / sigma_t;
        s.p = whole;
        if (options.order == 2 && before > 0 && to > 0) {
          const double rho = 0.5 * h / (schedule.lambda[from] - schedule.lambda[before]);
          s.p = whole * (1 + rho);
          s.previous = -whole * rho;
        }
        break;
      }
    }
    return s;
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
