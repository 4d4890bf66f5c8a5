/// @file   recops/diffusion/noise_schedule.hpp
/// @brief  How much noise a diffusion process has added after each step, and every table that follows from it.
///
///     q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, sigma_t^2),   alpha_bar_t = prod_{s <= t} (1 - beta_s),   sigma_t^2 = 1 - alpha_bar_t
///
/// Steps are counted from 1 to T; t = 0 is clean data, where alpha_bar is 1. (Most public code counts from 0: its step i is our
/// i + 1, and networks trained there want `TimestepEmbeddingOptions::offset` -1.)
///
/// Precision   tables in double; sigma from logarithms, so that 1 - alpha_bar keeps its digits where alpha_bar is nearly 1.
/// Cost        O(T), once; this is set-up, and allocates.
/// Errors      Error unless every beta lies in (0, 1) and alpha_bar falls strictly and stays above 0.
/// Reference   Ho et al. arXiv 2006.11239 (DDPM); Nichol and Dhariwal arXiv 2102.09672 (cosine); Jabri et al. arXiv 2212.11972
///             (sigmoid); Li et al. arXiv 2205.14217 (sqrt); the released code of DreamRec, DiffuRec and DiffRec for theirs.
#pragma once
#include <algorithm>
#include <cmath>
#include <numbers>
#include <recops/core/error.hpp>
#include <recops/core/matrix.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Tables of T + 1 entries, entry t for step t. Immutable once made; threads may share it.
struct NoiseSchedule {
  Vector<double> beta;            ///< variance that step t adds; beta_0 is 0
  Vector<double> alpha_bar;       ///< share of the signal's variance that is left; alpha_bar_0 is 1
  Vector<double> sqrt_alpha_bar;  ///< scale of the signal
  Vector<double> sigma;           ///< scale of the noise; sigma_0 is 0
  Vector<double> lambda;          ///< log(sqrt_alpha_bar / sigma), half the log of the signal-to-noise ratio; infinite at 0
  Vector<double> snr;             ///< alpha_bar / sigma^2; infinite at 0
  /// q(x_{t-1} | x_t, x_0) = N(posterior_x0_t x_0 + posterior_x_t x_t, posterior_variance_t); at t = 1 exactly 1, 0 and 0.
  Vector<double> posterior_x0, posterior_x, posterior_variance;
  Vector<double> posterior_log_variance;  ///< that of t = 1, which would be minus infinity, is that of t = 2

  /// T.
  Index steps() const { return alpha_bar.empty() ? 0 : alpha_bar.size() - 1; }
  /// Whether x_T is close enough to pure noise (alpha_bar_T <= 0.01) to start sampling from it. DDPM's betas with T = 200 are not
  /// (0.13): scale them, or take another schedule. DiffRec, which starts from data, wants it so.
  bool reaches_noise() const { return steps() > 0 && alpha_bar[steps()] <= 0.01; }

  /// From beta_1 .. beta_T.
  static NoiseSchedule from_betas(VectorView<const double> betas) {
    check_count(betas.size());
    for (Index i = 0; i < betas.size(); ++i)
      check_option("NoiseSchedule", "beta", 0 < betas[i] && betas[i] < 1, "0 < beta < 1", betas[i]);
    Vector<double> log_alpha_bar(betas.size() + 1, 0.0);
    for (Index t = 1; t < log_alpha_bar.size(); ++t) log_alpha_bar[t] = log_alpha_bar[t - 1] + std::log1p(-betas[t - 1]);
    return NoiseSchedule(betas, log_alpha_bar);
  }
  /// From alpha_bar_1 .. alpha_bar_T.
  static NoiseSchedule from_alpha_bar(VectorView<const double> alpha_bars) {
    check_count(alpha_bars.size());
    Vector<double> betas(alpha_bars.size()), log_alpha_bar(alpha_bars.size() + 1, 0.0);
    for (Index i = 0; i < betas.size(); ++i) {
      const double before = i == 0 ? 1 : alpha_bars[i - 1], a = alpha_bars[i];
      check_option("NoiseSchedule", "alpha_bar", 0 < a && a < before, "1 > alpha_bar_1 > alpha_bar_2 > ... > 0", a);
      log_alpha_bar[i + 1] = std::log(a);
      betas[i] = (before - a) / before;
    }
    return NoiseSchedule(betas, log_alpha_bar);
  }

  /// beta evenly spaced. DDPM's ends are meant for T = 1000.
  static NoiseSchedule linear(Index steps, double first = 1e-4, double last = 0.02) {
    const Vector<double> b = spaced(steps, first, last);
    return from_betas(b);
  }
  /// DDPM's betas times 1000 / T, so that any T > 20 ends in noise.
  static NoiseSchedule scaled_linear(Index steps) {
    check_count(steps);
    const double scale = 1000 / static_cast<double>(steps);
    return linear(steps, 1e-4 * scale, 0.02 * scale);
  }
  /// alpha_bar_t ~ cos^2((t / T + offset) / (1 + offset) pi / 2), beta at most `most`.
  static NoiseSchedule cosine(Index steps, double offset = 0.008, double most = 0.999) {
    return from_signal(steps, most, [=](double u) { return squared_cosine(u, offset); });
  }
  /// alpha_bar_t ~ 1 - sqrt(t / T + offset): much noise early on. The last beta is `most`.
  static NoiseSchedule sqrt(Index steps, double offset = 1e-4, double most = 0.999) {
    return from_signal(steps, most, [=](double u) { return 1 - std::sqrt(u + offset); });
  }
  /// alpha_bar_t ~ sigmoid falling while its argument goes from `start` to `end`, over `temperature`; shifted and scaled to go from 1
  /// to 0, the last beta is `most`.
  static NoiseSchedule sigmoid(Index steps, double start = -3, double end = 3, double temperature = 1, double most = 0.999) {
    check_option("NoiseSchedule::sigmoid", "end", start < end, "start < end", end);
    check_option("NoiseSchedule::sigmoid", "temperature", temperature > 0, "temperature > 0", temperature);
    const auto s = [](double x) { return 1 / (1 + std::exp(-x)); };
    const double top = s(end / temperature), bottom = s(start / temperature);
    return from_signal(steps, most,
                       [=](double u) { return (top - s((start + (end - start) * u) / temperature)) / (top - bottom); });
  }
  /// DreamRec's: a variance-preserving process whose rate grows from `slowest` to `fastest`.
  static NoiseSchedule exponential(Index steps, double slowest = 0.1, double fastest = 10) {
    const double n = static_cast<double>(steps);
    Vector<double> b = spaced(steps, 1, 2 * n + 1);
    for (double& x : b) x = -std::expm1(-slowest / n - 0.5 * (fastest - slowest) * x / (n * n));
    return from_betas(b);
  }
  /// DiffuRec's: DDPM's betas times 1000 / T, plus 0.01.
  static NoiseSchedule truncated_linear(Index steps) {
    check_count(steps);
    const double scale = 1000 / static_cast<double>(steps), last = 0.02 * scale + 0.01;
    return linear(steps, 1e-4 * scale + 0.01, last > 1 ? 0.001 * scale + 0.01 : last);
  }
  /// DiffuRec's other one: the cosine with offset 0.1, one step late, so that alpha_bar_1 is its value at 0.
  static NoiseSchedule truncated_cosine(Index steps, double offset = 0.1, double most = 0.999) {
    check_count(steps);
    Vector<double> b(steps);
    for (Index i = 0; i < steps; ++i) {
      const double n = static_cast<double>(steps), u = static_cast<double>(i) / n;
      const double before = i == 0 ? 1 : squared_cosine(u - 1 / n, offset);
      b[i] = std::min(1 - squared_cosine(u, offset) / before, most);
    }
    return from_betas(b);
  }
  /// DiffRec's: sigma_t^2 evenly spaced from scale * least to scale * most; with `fix_first`, as released, beta_1 is then set to 1e-5.
  static NoiseSchedule linear_variance(Index steps, double scale = 1e-4, double least = 5e-4, double most = 5e-3,
                                       bool fix_first = true) {
    Vector<double> b = spaced(steps, scale * least, scale * most);
    for (Index i = steps; i-- > 1;) b[i] = (b[i] - b[i - 1]) / (1 - b[i - 1]);
    if (fix_first) b[0] = 1e-5;
    return from_betas(b);
  }

  NoiseSchedule() = default;

 private:
  static void check_count(Index steps) {
    check_option("NoiseSchedule", "steps", steps >= 1, "one step or more", static_cast<double>(steps));
  }
  static Vector<double> spaced(Index steps, double first, double last) {
    check_count(steps);
    Vector<double> b(steps);
    for (Index i = 0; i < steps; ++i)
      b[i] = steps == 1 ? first : first + (last - first) * static_cast<double>(i) / static_cast<double>(steps - 1);
    return b;
  }
  static double squared_cosine(double u, double offset) {
    const double c = std::cos((u + offset) / (1 + offset) * (std::numbers::pi / 2));
    return c * c;
  }
  template <class Signal>
  static NoiseSchedule from_signal(Index steps, double most, Signal&& signal) {
    check_count(steps);
    check_option("NoiseSchedule", "most", 0 < most && most < 1, "0 < most < 1", most);
    Vector<double> b(steps);
    for (Index i = 0; i < steps; ++i) {
      const double n = static_cast<double>(steps), u = static_cast<double>(i) / n;
      b[i] = std::min(1 - signal(u + 1 / n) / signal(u), most);
    }
    return from_betas(b);
  }

  NoiseSchedule(VectorView<const double> betas, const Vector<double>& log_alpha_bar)
      : beta(betas.size() + 1, 0.0),
        alpha_bar(beta.size()),
        sqrt_alpha_bar(beta.size()),
        sigma(beta.size()),
        lambda(beta.size()),
        snr(beta.size()),
        posterior_x0(beta.size(), 1.0),
        posterior_x(beta.size(), 0.0),
        posterior_variance(beta.size(), 0.0),
        posterior_log_variance(beta.size(), 0.0) {
    for (Index t = 0; t < beta.size(); ++t) {
      const double l = log_alpha_bar[t], noise = std::abs(std::expm1(l));  // at 0 a zero without sign: the ratio is +infinity
      alpha_bar[t] = std::exp(l);
      check_option("NoiseSchedule", "alpha_bar", alpha_bar[t] > 0 && (t == 0 || alpha_bar[t] < alpha_bar[t - 1]),
                   "alpha_bar that falls strictly and stays above 0", alpha_bar[t]);
      sqrt_alpha_bar[t] = std::exp(0.5 * l);
      sigma[t] = std::sqrt(noise);
      lambda[t] = 0.5 * (l - std::log(noise));
      snr[t] = alpha_bar[t] / noise;
      if (t > 0) beta[t] = betas[t - 1];
      if (t < 2) continue;
      const double before = sigma[t - 1] * sigma[t - 1];
      posterior_x0[t] = beta[t] * sqrt_alpha_bar[t - 1] / noise;
      posterior_x[t] = before * std::sqrt(1 - beta[t]) / noise;
      posterior_variance[t] = beta[t] * before / noise;
      posterior_log_variance[t] = std::log(posterior_variance[t]);
    }
    posterior_log_variance[1] = beta.size() > 2 ? posterior_log_variance[2] : std::log(beta[1]);
    posterior_log_variance[0] = posterior_log_variance[1];
  }
};

namespace detail {

/// Steps of a batch: one for every row, or a single one for all.
inline void check_timesteps(const char* operation, IndexView t, Index rows, Index first, Index last) {
  if (t.size() != 1 && t.size() != rows) fail_count(operation, "t", rows, t.size(), "steps, one for each row, or a single one");
  check_not_null(operation, "t", t);
  for (Index i = 0; i < t.size(); ++i) {
    if (t[i] < first || t[i] > last) [[unlikely]]
      fail(operation, "t", Words().add("steps from %td to %td", first, last).text,
           Words().add("%td at position %td", t[i], i).text);
  }
}
inline Index timestep_of(IndexView t, Index row) { return t[t.size() == 1 ? 0 : row]; }

}  // namespace detail

}  // namespace RECOPS_ABI
}  // namespace recops
