/// @file   recops/diffusion/q_sample.hpp
/// @brief  Noisy data of any step in one go: what a denoiser is trained on.
///
///     x_t = sqrt(alpha_bar_t) x_0 + sigma_t eps
///
/// Shapes      x0, xt, noise [B, D]   t [B] or [1], steps from 0 to T; step 0 gives x_0 itself
/// Edge cases  NaN stays in its row.
/// Precision   coefficients rounded once from double. Noise that is drawn here is keyed by the row's id: the same bits in any batch.
/// Cost        one pass; drawn noise is never stored unless asked for (1 to 2 ns a number).
/// Errors      Error if shapes disagree or a step is none; outputs untouched.
/// Gradient    linear: `q_sample_backward`. The noise of a row is drawn again from its id where a loss wants it.
/// Reference   Ho et al. arXiv 2006.11239, eq. 4.
#pragma once
#include <recops/diffusion/noise_schedule.hpp>
#include <recops/simd/diffusion_update.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// With the noise given.
template <Real T>
void q_sample(const NoiseSchedule& schedule, MatrixView<const T> x0, IndexView t, MatrixView<const T> noise, MatrixView<T> xt) {
  check_shape("q_sample", "x0", x0, any_size, any_size);
  check_shape("q_sample", "noise", noise, x0.rows(), x0.cols());
  check_shape("q_sample", "xt", xt, x0.rows(), x0.cols());
  detail::check_timesteps("q_sample", t, x0.rows(), 0, schedule.steps());
  for (Index b = 0; b < x0.rows(); ++b) {
    const Index step = detail::timestep_of(t, b);
    simd::combine<T>(static_cast<T>(schedule.sqrt_alpha_bar[step]), x0.row(b), static_cast<T>(schedule.sigma[step]), noise.row(b),
                     xt.row(b), x0.cols());
  }
}

/// Drawn: row b takes the normals of `ids[b]`, or of `at.row` + b without ids. `noise [B, D]`, unless empty, receives them.
template <Real T>
void q_sample(const NoiseSchedule& schedule, MatrixView<const T> x0, IndexView t, const RandomRow& at, IndexView ids,
              MatrixView<T> xt, MatrixView<T> noise = {}) {
  check_shape("q_sample", "x0", x0, any_size, any_size);
  check_shape("q_sample", "xt", xt, x0.rows(), x0.cols());
  if (!noise.empty()) check_shape("q_sample", "noise", noise, x0.rows(), x0.cols());
  simd::check_ids("q_sample", ids, x0.rows());
  detail::check_timesteps("q_sample", t, x0.rows(), 0, schedule.steps());
  simd::Philox<> philox(at);
  for (Index b = 0; b < x0.rows(); ++b) {
    const Index step = detail::timestep_of(t, b);
    const simd::Batch<T> a(static_cast<T>(schedule.sqrt_alpha_bar[step])), s(static_cast<T>(schedule.sigma[step]));
    const T* const from = x0.row(b);
    T *const to = xt.row(b), *const kept = noise.empty() ? nullptr : noise.row(b);
    philox.set_row(simd::row_of(at, ids, b));
    simd::for_each_normal<T>(philox, x0.cols(), [&](Index i, auto z, auto load, auto store) RECOPS_LAMBDA_INLINE {
      store(to + i, simd::mul_add(a, load(from + i), s * z));
      if (kept) store(kept + i, z);
    });
  }
}

/// Adds the gradients of x_0 and of the noise; either may be empty.
template <Real T>
void q_sample_backward(const NoiseSchedule& schedule, IndexView t, MatrixView<const T> dxt, MatrixView<T> dx0,
                       MatrixView<T> dnoise = {}) {
  constexpr const char* name = "q_sample_backward";
  check_shape(name, "dxt", dxt, any_size, any_size);
  if (!dx0.empty()) check_shape(name, "dx0", dx0, dxt.rows(), dxt.cols());
  if (!dnoise.empty()) check_shape(name, "dnoise", dnoise, dxt.rows(), dxt.cols());
  detail::check_timesteps(name, t, dxt.rows(), 0, schedule.steps());
  for (Index b = 0; b < dxt.rows(); ++b) {
    const Index step = detail::timestep_of(t, b);
    if (!dx0.empty()) simd::axpy<T>(static_cast<T>(schedule.sqrt_alpha_bar[step]), dxt.row(b), dx0.row(b), dxt.cols());
    if (!dnoise.empty()) simd::axpy<T>(static_cast<T>(schedule.sigma[step]), dxt.row(b), dnoise.row(b), dxt.cols());
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
