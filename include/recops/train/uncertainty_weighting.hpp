/// @file   recops/train/uncertainty_weighting.hpp
/// @brief  Weights of several losses learned with the model (Kendall, Gal and Cipolla, arXiv 1705.07115).
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/core/fields.hpp>
#include <recops/core/matrix.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// L = sum_t c_t exp(-s_t) L_t + s_t / 2 with learned s_t = log variance of task t, started at 0; c is 1 for classification, 1/2
/// for regression. s counts as if it were within [-10, 10]; beyond, its gradient is that at the bound, so that it comes back. A
/// layer in `fields()`: put it beside the model's.
template <class T>
struct UncertaintyWeighting {
  Vector<T> log_variance;  ///< [T]
  Vector<T> scale;         ///< [T], c

  UncertaintyWeighting() = default;
  /// `tasks` losses, all of classification unless `scale` is changed.
  explicit UncertaintyWeighting(Index tasks)
      : log_variance(checked_size("UncertaintyWeighting", "tasks", tasks), T(0)), scale(tasks, T(1)) {}

  static constexpr auto fields() {
    return std::tuple{parameter("log_variance", &UncertaintyWeighting::log_variance),
                      buffer("scale", &UncertaintyWeighting::scale)};
  }

  /// What each loss counts, c_t exp(-s_t): the `task_weights` of a loss function. Throws `Error` for sizes that disagree.
  void weights(VectorView<T> out) const {
    check("UncertaintyWeighting::weights", out);
    for (Index t = 0; t < out.size(); ++t) out[t] = scale[t] * std::exp(-clamped(t));
  }
  /// The sum L of `losses [T]`; adds its gradient to `gradient.log_variance` unless that is empty. The gradient to the losses is
  /// `weights`. A NaN loss makes its own gradient NaN and no other.
  double value_and_grad(VectorView<const T> losses, UncertaintyWeighting& gradient) const {
    constexpr const char* name = "UncertaintyWeighting::value_and_grad";
    check(name, losses);
    if (!gradient.log_variance.empty()) check_size(name, "gradient", VectorView<const T>(gradient.log_variance), losses.size());
    double total = 0;
    for (Index t = 0; t < losses.size(); ++t) {
      const T s = clamped(t), weighted = scale[t] * std::exp(-s) * losses[t];
      total += static_cast<double>(weighted + s / 2);
      if (!gradient.log_variance.empty()) gradient.log_variance[t] += T(0.5) - weighted;
    }
    return total;
  }

 private:
  template <class U>
  void check(const char* name, VectorView<U> losses) const {
    check_size(name, "scale", VectorView<const T>(scale), log_variance.size());
    check_size(name, "losses", losses, log_variance.size());
  }
  T clamped(Index t) const { return std::clamp(log_variance[t], T(-10), T(10)); }
};

}  // namespace RECOPS_ABI
}  // namespace recops
