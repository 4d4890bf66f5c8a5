/// @file   recops/nn/regression_loss.hpp
/// @brief  Mean squared error and Huber loss, with weights.
#pragma once
#include <cmath>
#include <recops/core/error.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// sum w f(x - y) / sum w; adds its gradient. `f(d, slope)` gives the loss of a difference and sets its derivative.
template <class T, class F>
double regression_loss(const char* name, MatrixView<const T> predictions, MatrixView<const T> targets,
                       MatrixView<const T> weights, MatrixView<T> dpredictions, F&& f) {
  check_shape(name, "predictions", predictions, any_size, any_size);
  const Index rows = predictions.rows(), cols = predictions.cols();
  check_shape(name, "targets", targets, rows, cols);
  if (!weights.empty()) check_shape(name, "weights", weights, rows, cols);
  if (!dpredictions.empty()) check_shape(name, "dpredictions", dpredictions, rows, cols);
  double sum = 0, mass = weights.empty() ? static_cast<double>(rows * cols) : 0;
  for (Index i = 0; i < rows && !weights.empty(); ++i)
    for (Index j = 0; j < cols; ++j) mass += static_cast<double>(weights(i, j));
  if (mass == 0) return 0;
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) {
      const double w = weights.empty() ? 1.0 : static_cast<double>(weights(i, j));
      if (w == 0) continue;  // outside the samples: not read, so it may hold anything
      double slope = 0;
      sum += w * f(static_cast<double>(predictions(i, j)) - static_cast<double>(targets(i, j)), slope);
      if (!dpredictions.empty()) dpredictions(i, j) += static_cast<T>(w * slope / mass);
    }
  }
  return sum / mass;
}

inline double huber_of(double d, double delta, double& slope) {
  const double size = std::abs(d);
  slope = size <= delta ? d : d > 0 ? delta : d < 0 ? -delta : d;  // NaN stays
  return size <= delta ? 0.5 * d * d : delta * (size - 0.5 * delta);
}

}  // namespace detail

/// sum w (x - y)^2 / sum w over predictions x and targets y, both `[B, C]`. `weights [B, C]` >= 0, empty: all 1; weight 0 leaves a
/// number out (it is not read); no weight at all gives 0. Sums in double. NaN gives NaN. Throws `Error` for shapes that disagree.
template <Real T>
double mse(MatrixView<const T> predictions, MatrixView<const T> targets, MatrixView<const T> weights = {}) {
  return detail::regression_loss<T>("mse", predictions, targets, weights, {}, [](double d, double&) { return d * d; });
}

/// The same, and adds its gradient to `dpredictions [B, C]`.
template <Real T>
double mse_value_and_grad(MatrixView<const T> predictions, MatrixView<const T> targets, MatrixView<const T> weights,
                          MatrixView<T> dpredictions) {
  return detail::regression_loss<T>("mse_value_and_grad", predictions, targets, weights, dpredictions,
                                    [](double d, double& slope) {
                                      slope = 2 * d;
                                      return d * d;
                                    });
}

/// sum w h(x - y) / sum w with h(d) = d^2 / 2 for |d| <= delta and delta (|d| - delta / 2) beyond (Huber 1964; PyTorch's HuberLoss),
/// delta > 0. Weights, NaN and errors as for `mse`.
template <Real T>
double huber(MatrixView<const T> predictions, MatrixView<const T> targets, double delta = 1, MatrixView<const T> weights = {}) {
  check_option("huber", "delta", delta > 0, "delta > 0", delta);
  return detail::regression_loss<T>("huber", predictions, targets, weights, {},
                                    [delta](double d, double& slope) { return detail::huber_of(d, delta, slope); });
}

/// The same, and adds its gradient to `dpredictions [B, C]`.
template <Real T>
double huber_value_and_grad(MatrixView<const T> predictions, MatrixView<const T> targets, double delta,
                            MatrixView<const T> weights, MatrixView<T> dpredictions) {
  check_option("huber_value_and_grad", "delta", delta > 0, "delta > 0", delta);
  return detail::regression_loss<T>("huber_value_and_grad", predictions, targets, weights, dpredictions,
                                    [delta](double d, double& slope) { return detail::huber_of(d, delta, slope); });
}

}  // namespace RECOPS_ABI
}  // namespace recops
