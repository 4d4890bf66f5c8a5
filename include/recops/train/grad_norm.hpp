/// @file   recops/train/grad_norm.hpp
/// @brief  GradNorm: weights of several losses, so that tasks train at like rates (Chen et al., arXiv 1711.02257).
#pragma once
#include <cmath>
#include <recops/core/fields.hpp>
#include <recops/core/matrix.hpp>

namespace recops {

/// Options of `GradNorm`.
struct GradNormOptions {
  double alpha = 1.5;            ///< how strongly slow tasks are favoured; 0: equal gradient norms
  double learning_rate = 0.025;  ///< of the weights
};

inline namespace RECOPS_ABI {

/// Weights w_t > 0 with sum T. With n_t the norm of loss t's gradient at the last shared layer, G_t = w_t n_t, and r_t the task's
/// loss over its first one, relative to the mean of these ratios, a step moves w_t down sign(G_t - mean(G) r_t^alpha) n_t; the target
/// counts as a constant. Lists its state in `fields()`, so that a checkpoint carries it.
class GradNorm {
 public:
  /// Throws `Error` for options out of range.
  explicit GradNorm(Index tasks, const GradNormOptions& o = {})
      : options_(o), weights_(checked_size("GradNorm", "tasks", tasks), 1.0), first_losses_(tasks, 0.0) {
    check_option("GradNorm", "alpha", o.alpha >= 0, "alpha >= 0", o.alpha);
    check_option("GradNorm", "learning_rate", o.learning_rate >= 0, "learning_rate >= 0", o.learning_rate);
  }

  static constexpr auto fields() {
    return std::tuple{buffer("weights", &GradNorm::weights_), buffer("first_losses", &GradNorm::first_losses_)};
  }

  /// Weight of every loss, `[T]`.
  VectorView<const double> weights() const { return weights_; }

  /// Takes the losses `[T]` and the norms `[T]` of their unweighted gradients in this step. The first losses seen are the ones that
  /// later ones are compared with. A step in which a loss is not positive and finite, or a norm not finite, changes nothing and
  /// gives false. Throws `Error` for sizes that disagree.
  bool update(VectorView<const double> losses, VectorView<const double> norms) {
    const Index tasks = weights_.size();
    check_size("GradNorm::update", "losses", losses, tasks);
    check_size("GradNorm::update", "norms", norms, tasks);
    for (Index t = 0; t < tasks; ++t)
      if (!(losses[t] > 0) || !std::isfinite(losses[t]) || !(norms[t] >= 0) || !std::isfinite(norms[t])) return false;
    if (tasks == 0) return true;
    if (first_losses_[0] == 0) std::copy(losses.begin(), losses.end(), first_losses_.begin());
    double mean_norm = 0, mean_ratio = 0;
    for (Index t = 0; t < tasks; ++t) {
      mean_norm += weights_[t] * norms[t] / static_cast<double>(tasks);
      mean_ratio += losses[t] / first_losses_[t] / static_cast<double>(tasks);
    }
    double sum = 0;
    for (Index t = 0; t < tasks; ++t) {
      const double target = mean_norm * std::pow(losses[t] / first_losses_[t] / mean_ratio, options_.alpha);
      const double norm = weights_[t] * norms[t], sign = norm > target ? 1.0 : norm < target ? -1.0 : 0.0;
      weights_[t] = std::max(weights_[t] - options_.learning_rate * sign * norms[t], 1e-6);  // a loss must not be turned round
      sum += weights_[t];
    }
    for (double& w : weights_) w *= static_cast<double>(tasks) / sum;
    return true;
  }

 private:
  GradNormOptions options_;
  Vector<double> weights_, first_losses_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
