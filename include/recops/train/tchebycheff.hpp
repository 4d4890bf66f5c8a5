/// @file   recops/train/tchebycheff.hpp
/// @brief  Tchebycheff scalarisation: several losses judged by the one that is furthest from its ideal, which reaches every point of
///         a Pareto front, also where it is not convex and no weighted sum goes.
///
///     smoothing 0     L = max_m w_m (l_m - z_m)
///     smoothing mu    L = mu log Σ_m exp(w_m (l_m - z_m) / mu)
///
/// Shapes      losses l, weights w, ideal z [M]
/// Edge cases  of equal terms the lowest index gets the gradient; no losses are an error.
/// NaN         makes the value and all gradients NaN.
/// Errors      Error if sizes differ, M = 0, a weight is negative or smoothing is negative or not finite.
/// Reference   Bowman 1976; Lin et al., Smooth Tchebycheff Scalarization, ICML 2024, arXiv 2402.19078.
#pragma once
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>

namespace recops {

/// Options of `tchebycheff`; an empty view is left out.
struct TchebycheffOptions {
  VectorView<const double> ideal = {};  ///< [M], what each loss could reach; none: 0
  double smoothing = 0;                 ///< mu >= 0, in units of weighted losses; 0: the maximum itself
};

inline namespace RECOPS_ABI {

/// The scalar of `losses [M]` under `weights [M]` >= 0; adds its derivatives to `dlosses [M]` unless that is empty: they are the
/// `task_weights` of a step. Throws `Error`; see above.
inline double tchebycheff(VectorView<const double> losses, VectorView<const double> weights, const TchebycheffOptions& options,
                          VectorView<double> dlosses) {
  constexpr const char* name = "tchebycheff";
  const Index count = losses.size();
  check_size(name, "losses", losses, any_size);
  check_option(name, "losses", count > 0, "one loss or more", static_cast<double>(count));
  check_size(name, "weights", weights, count);
  for (const double w : weights) check_option(name, "weights", w >= 0 && w <= 1e300, "finite weights >= 0", w);
  if (!options.ideal.empty()) check_size(name, "ideal", options.ideal, count);
  check_option(name, "smoothing", options.smoothing >= 0 && options.smoothing <= 1e300, "a finite smoothing >= 0",
               options.smoothing);
  if (!dlosses.empty()) check_size(name, "dlosses", dlosses, count);
  const auto term = [&](Index m) { return weights[m] * (losses[m] - (options.ideal.empty() ? 0.0 : options.ideal[m])); };
  Index worst = 0;
  for (Index m = 0; m < count; ++m) {
    const double t = term(m);
    if (t != t) {
      for (double& d : dlosses) d = t;
      return t;
    }
    if (t > term(worst)) worst = m;
  }
  const double most = term(worst);
  if (options.smoothing == 0) {
    if (!dlosses.empty()) dlosses[worst] += weights[worst];
    return most;
  }
  double sum = 0;
  for (Index m = 0; m < count; ++m) sum += std::exp((term(m) - most) / options.smoothing);
  for (Index m = 0; m < dlosses.size(); ++m) dlosses[m] += weights[m] * std::exp((term(m) - most) / options.smoothing) / sum;
  return most + options.smoothing * std::log(sum);
}

}  // namespace RECOPS_ABI
}  // namespace recops
