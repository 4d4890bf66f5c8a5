/// @file   recops/nn/loss.hpp
/// @brief  Binary cross-entropy of logits, for several tasks at once with weights and masks.
#pragma once
#include <cmath>
#include <recops/core/error.hpp>

namespace recops {

/// Options of `bce_with_logits`; empty views are left out.
template <class T>
struct BceOptions {
  MatrixView<const T> weights = {};       ///< [B, T] >= 0; weight 0 leaves a sample out (it is not read)
  VectorView<const T> task_weights = {};  ///< [T], what each task's loss counts in the sum
  double label_smoothing = 0;             ///< e in [0, 1): labels become y (1 - e) + e / 2
};

inline namespace RECOPS_ABI {

namespace detail {

template <class T>
double bce(MatrixView<const T> logits, MatrixView<const T> labels, const BceOptions<T>& o, VectorView<T> task_losses,
           MatrixView<T> dlogits, const char* name) {
  const auto& [weights, task_weights, smoothing] = o;
  check_shape(name, "logits", logits, any_size, any_size);
  const Index rows = logits.rows(), tasks = logits.cols();
  check_shape(name, "labels", labels, rows, tasks);
  if (!weights.empty()) check_shape(name, "weights", weights, rows, tasks);
  if (!task_weights.empty()) check_size(name, "task_weights", task_weights, tasks);
  if (!task_losses.empty()) check_size(name, "task_losses", task_losses, tasks);
  if (!dlogits.empty()) check_shape(name, "dlogits", dlogits, rows, tasks);
  check_option(name, "label_smoothing", 0 <= smoothing && smoothing < 1, "0 <= label_smoothing < 1", smoothing);
  const auto weight = [&, &w = weights](Index b, Index t) { return w.empty() ? 1.0 : static_cast<double>(w(b, t)); };
  const auto label = [&, e = smoothing](Index b, Index t) { return (1 - e) * static_cast<double>(labels(b, t)) + e / 2; };
  double total = 0;
  for (Index t = 0; t < tasks; ++t) {
    double sum = 0, mass = 0;
    for (Index b = 0; b < rows; ++b) {
      const double w = weight(b, t);
      if (w == 0) continue;  // outside the task's samples: not read, so it may hold anything
      const double z = static_cast<double>(logits(b, t)), y = label(b, t);
      sum += w * ((z > 0 ? z : 0) - z * y + std::log1p(std::exp(-std::abs(z))));
      mass += w;
    }
    const double task = task_weights.empty() ? 1.0 : static_cast<double>(task_weights[t]), loss = mass == 0 ? 0 : sum / mass;
    if (!task_losses.empty()) task_losses[t] = static_cast<T>(loss);
    total += task * loss;
    if (dlogits.empty() || mass == 0) continue;
    for (Index b = 0; b < rows; ++b) {
      const double w = weight(b, t);
      if (w == 0) continue;
      const double z = static_cast<double>(logits(b, t)), e = std::exp(-std::abs(z));
      const double p = z >= 0 ? 1 / (1 + e) : e / (1 + e);
      dlogits(b, t) += static_cast<T>(task * w * (p - label(b, t)) / mass);
    }
  }
  return total;
}

}  // namespace detail

/// sum_t task_weight_t L_t with L_t = sum_b w_bt (softplus(z_bt) - y_bt z_bt) / sum_b w_bt, over logits z and labels y `[B, T]`,
/// labels in [0, 1]. A task without samples loses 0. `task_losses [T]`, unless empty, receives L_t. Sums in double. A NaN logit makes
/// its task's loss NaN. Throws `Error` for shapes that disagree.
template <Real T>
double bce_with_logits(MatrixView<const T> logits, MatrixView<const T> labels, const BceOptions<T>& options = {},
                       VectorView<T> task_losses = {}) {
  return detail::bce<T>(logits, labels, options, task_losses, {}, "bce_with_logits");
}

/// The same, and adds its gradient to `dlogits [B, T]`.
template <Real T>
double bce_with_logits_value_and_grad(MatrixView<const T> logits, MatrixView<const T> labels, const BceOptions<T>& options,
                                      VectorView<T> task_losses, MatrixView<T> dlogits) {
  return detail::bce<T>(logits, labels, options, task_losses, dlogits, "bce_with_logits_value_and_grad");
}

}  // namespace RECOPS_ABI
}  // namespace recops
