/// @file   recops/diffusion/diffusion_loss.hpp
/// @brief  Losses between what a denoiser predicted and what it should have, with a weight for each step.
///
///     L = 1 / (B D) sum_b w_b sum_j f(prediction_bj - target_bj)         f(d) = d^2, |d| or Huber's
///
/// The target is x_0, the noise or v, whatever the denoiser predicts.
///
/// Shapes      predictions, targets [B, D]   weights, losses [B]
/// Edge cases  no rows or no columns: 0.   weight 0 leaves a row out (it is not read).   NaN gives NaN.
/// Precision   sums in double, row by row: the same for any batch order up to rounding of double.
/// Cost        one pass, with the gradient in the same.
/// Errors      Error if shapes disagree or an option is out of range; outputs untouched.
/// Reference   Ho et al. arXiv 2006.11239, eq. 14; Hang et al. arXiv 2303.09556 (min-SNR); Wang et al. arXiv 2304.04971 (DiffRec).
#pragma once
#include <recops/diffusion/prediction.hpp>

namespace recops {

enum class DiffusionLoss : unsigned char {
  squared,   ///< d^2
  absolute,  ///< |d|
  huber,     ///< d^2 / 2 up to 1, |d| - 1/2 beyond
};

/// How steps are weighted against each other.
enum class LossWeight : unsigned char {
  one,             ///< the "simple" loss
  snr_difference,  ///< DiffRec's, the variational bound: SNR(t-1) - SNR(t) on x_0, 1 at step 1
  min_snr,         ///< min(SNR, gamma) on x_0; the same on eps and v, in their units
};

inline namespace RECOPS_ABI {

/// Weights `[B]` of steps t `[B]` or `[1]` for a loss on predictions of that kind. At most 10^4 for `min_snr`.
template <Real T>
void diffusion_loss_weights(const NoiseSchedule& schedule, LossWeight kind, Prediction prediction, IndexView t,
                            VectorView<T> weights, double gamma = 5) {
  check_size("diffusion_loss_weights", "weights", weights, any_size);
  detail::check_timesteps("diffusion_loss_weights", t, weights.size(), 1, schedule.steps());
  check_option("diffusion_loss_weights", "gamma", gamma > 0, "gamma > 0", gamma);
  for (Index b = 0; b < weights.size(); ++b) {
    const Index s = detail::timestep_of(t, b);
    const double snr = schedule.snr[s];
    // At one x_t an error of x_0 is one of eps over the root of SNR, and one of v over the root of SNR + 1.
    const double unit = prediction == Prediction::x0 ? 1 : prediction == Prediction::epsilon ? 1 / snr : 1 / (snr + 1);
    double w = 1;
    if (kind == LossWeight::snr_difference) {
      w = (s == 1 ? 1 : schedule.snr[s - 1] - snr) * unit;
    } else if (kind == LossWeight::min_snr) {
      w = std::min(std::min(snr, gamma) * unit, 1e4);
    }
    weights[b] = static_cast<T>(w);
  }
}

namespace detail {

template <Real T>
double diffusion_loss(const char* name, MatrixView<const T> predictions, MatrixView<const T> targets, VectorView<const T> weights,
                      DiffusionLoss kind, VectorView<T> losses, MatrixView<T> dpredictions, MatrixView<T> dtargets) {
  check_shape(name, "predictions", predictions, any_size, any_size);
  const Index rows = predictions.rows(), cols = predictions.cols();
  check_shape(name, "targets", targets, rows, cols);
  if (!weights.empty()) check_size(name, "weights", weights, rows);
  if (!losses.empty()) check_size(name, "losses", losses, rows);
  if (!dpredictions.empty()) check_shape(name, "dpredictions", dpredictions, rows, cols);
  if (!dtargets.empty()) check_shape(name, "dtargets", dtargets, rows, cols);
  if (predictions.empty()) {
    std::fill(losses.begin(), losses.end(), T(0));
    return 0;
  }
  double total = 0;
  for (Index b = 0; b < rows; ++b) {
    const double w = weights.empty() ? 1.0 : static_cast<double>(weights[b]);
    if (!losses.empty()) losses[b] = T(0);
    if (w == 0) continue;
    const T *const p = predictions.row(b), *const y = targets.row(b);
    T *const dp = dpredictions.empty() ? nullptr : dpredictions.row(b), *const dy = dtargets.empty() ? nullptr : dtargets.row(b);
    const double scale = w / static_cast<double>(rows * cols);
    double sum = 0;
    for (Index j = 0; j < cols; ++j) {
      const double d = static_cast<double>(p[j]) - static_cast<double>(y[j]), size = std::abs(d);
      double slope = 2 * d;
      if (kind == DiffusionLoss::squared) {
        sum += d * d;
      } else if (kind == DiffusionLoss::huber && size <= 1) {
        sum += 0.5 * d * d;
        slope = d;
      } else {
        sum += kind == DiffusionLoss::huber ? size - 0.5 : size;
        slope = d > 0 ? 1 : d < 0 ? -1 : d;  // NaN stays
      }
      if (dp) dp[j] += static_cast<T>(scale * slope);
      if (dy) dy[j] -= static_cast<T>(scale * slope);
    }
    const double loss = sum / static_cast<double>(cols);
    if (!losses.empty()) losses[b] = static_cast<T>(loss);
    total += w * loss;
  }
  return total / static_cast<double>(rows);
}

}  // namespace detail

/// The loss. `losses`, unless empty, receives each row's own, without its weight: what `TimestepSampler` learns from.
template <Real T>
double diffusion_loss(MatrixView<const T> predictions, MatrixView<const T> targets, VectorView<const T> weights = {},
                      DiffusionLoss kind = DiffusionLoss::squared, VectorView<T> losses = {}) {
  return detail::diffusion_loss<T>("diffusion_loss", predictions, targets, weights, kind, losses, {}, {});
}

/// The same, and adds its gradients; either may be empty (an empty `dtargets` detaches the target).
template <Real T>
double diffusion_loss_value_and_grad(MatrixView<const T> predictions, MatrixView<const T> targets, VectorView<const T> weights,
                                     DiffusionLoss kind, VectorView<T> losses, MatrixView<T> dpredictions,
                                     MatrixView<T> dtargets = {}) {
  return detail::diffusion_loss<T>("diffusion_loss_value_and_grad", predictions, targets, weights, kind, losses, dpredictions,
                                   dtargets);
}

}  // namespace RECOPS_ABI
}  // namespace recops
