/// @file   recops/diffusion/prediction.hpp
/// @brief  What a denoiser predicts, and how one prediction becomes another.
///
///     x_0 = (x_t - sigma eps) / sqrt(alpha_bar)      eps = (x_t - sqrt(alpha_bar) x_0) / sigma      v = sqrt(alpha_bar) eps - sigma x_0
///
/// All conversions are linear in x_t and the prediction. From eps to x_0 an error grows by sigma / sqrt(alpha_bar): 157 times at the
/// last step of DDPM's schedule, 20000 times at that of a cosine with 1000 steps. Recommenders predict x_0.
///
/// Shapes      x_t, prediction, out [B, D]   t [B] or [1], steps from 1 to T
/// Edge cases  NaN stays in its row.   alpha_bar below 1e-12 counts as 1e-12 where it divides.
/// Cost        one pass.
/// Errors      Error if shapes disagree or a step is none; outputs untouched.
/// Reference   Ho et al. arXiv 2006.11239 (eps); Salimans and Ho arXiv 2202.00512 (v).
#pragma once
#include <recops/diffusion/noise_schedule.hpp>
#include <recops/simd/diffusion_update.hpp>

namespace recops {

/// What the output of a denoiser stands for.
enum class Prediction : unsigned char {
  x0,       ///< the clean data
  epsilon,  ///< the noise
  v,        ///< sqrt(alpha_bar) noise - sigma data, well scaled at every step
};

inline namespace RECOPS_ABI {

/// y = x * x_t + m * prediction.
struct ConversionTerms {
  double x = 0, m = 1;
};

/// How a prediction at step `t` becomes another. Throws Error unless 1 <= t <= T.
inline ConversionTerms conversion(const NoiseSchedule& schedule, Prediction from, Prediction to, Index t) {
  check_option("conversion", "t", 1 <= t && t <= schedule.steps(), "1 <= t <= T", static_cast<double>(t));
  const double sigma = schedule.sigma[t], root = std::max(schedule.sqrt_alpha_bar[t], 1e-6);
  if (from == to) return {0, 1};
  if (to == Prediction::x0)
    return from == Prediction::epsilon ? ConversionTerms{1 / root, -sigma / root} : ConversionTerms{root, -sigma};
  if (to == Prediction::epsilon)
    return from == Prediction::x0 ? ConversionTerms{1 / sigma, -root / sigma} : ConversionTerms{sigma, root};
  // v with the other of its two terms put in.
  return from == Prediction::x0 ? ConversionTerms{root / sigma, -1 / sigma} : ConversionTerms{-sigma / root, 1 / root};
}

/// out = the prediction `m` of kind `from`, as one of kind `to`; out may be m.
template <Real T>
void convert_prediction(const NoiseSchedule& schedule, Prediction from, Prediction to, MatrixView<const T> xt, IndexView t,
                        MatrixView<const T> m, MatrixView<T> out) {
  constexpr const char* name = "convert_prediction";
  check_shape(name, "xt", xt, any_size, any_size);
  check_shape(name, "m", m, xt.rows(), xt.cols());
  check_shape(name, "out", out, xt.rows(), xt.cols());
  detail::check_timesteps(name, t, xt.rows(), 1, schedule.steps());
  for (Index b = 0; b < xt.rows(); ++b) {
    const ConversionTerms c = conversion(schedule, from, to, detail::timestep_of(t, b));
    simd::combine<T>(static_cast<T>(c.x), xt.row(b), static_cast<T>(c.m), m.row(b), out.row(b), xt.cols());
  }
}

/// Adds the gradients of x_t and of the prediction; either may be empty.
template <Real T>
void convert_prediction_backward(const NoiseSchedule& schedule, Prediction from, Prediction to, IndexView t,
                                 MatrixView<const T> dout, MatrixView<T> dxt, MatrixView<T> dm) {
  constexpr const char* name = "convert_prediction_backward";
  check_shape(name, "dout", dout, any_size, any_size);
  if (!dxt.empty()) check_shape(name, "dxt", dxt, dout.rows(), dout.cols());
  if (!dm.empty()) check_shape(name, "dm", dm, dout.rows(), dout.cols());
  detail::check_timesteps(name, t, dout.rows(), 1, schedule.steps());
  for (Index b = 0; b < dout.rows(); ++b) {
    const ConversionTerms c = conversion(schedule, from, to, detail::timestep_of(t, b));
    if (!dxt.empty()) simd::axpy<T>(static_cast<T>(c.x), dout.row(b), dxt.row(b), dout.cols());
    if (!dm.empty()) simd::axpy<T>(static_cast<T>(c.m), dout.row(b), dm.row(b), dout.cols());
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
