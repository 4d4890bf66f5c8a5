/// @file   recops/diffusion/diffusion_step.hpp
/// @brief  One reverse step of a sampler on a batch, fused: guidance, clipping, update and noise in one pass, and its gradient.
///
///     p = clip(x0_x x + x0_m ((1 + w) m_c - w m_u))        x <- a x + b p + b' p_before + c z
///
/// Shapes      x, m, m_null, previous, noise [B, D]; m_null is wanted if the plan is guided, previous if it is multistep
/// Edge cases  NaN stays in its row. The last step of every plan adds no noise.
/// Precision   scalars rounded once from double. Drawn noise is keyed by the row's id and the number of the step: a row's bits do not
///             depend on its batch, nor on threads.
/// Cost        one pass over the arguments; noise stays in registers.
/// Errors      Error for shapes that disagree, a step that is none, and what the plan wants and is not there; outputs untouched.
/// Gradient    noise is a constant; the clips have theirs (box: inside only).
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/diffusion/sampler_plan.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

template <class T>
void check_step(const char* name, const SamplerPlan& plan, Index i, MatrixView<const T> x, MatrixView<const T> m,
                MatrixView<const T> m_null, MatrixView<const T> previous) {
  check_option(name, "step", 0 <= i && i < static_cast<Index>(plan.steps.size()), "one of the plan's steps",
               static_cast<double>(i));
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "m", m, x.rows(), x.cols());
  if (plan.guided()) check_shape(name, "m_null", m_null, x.rows(), x.cols());
  if (plan.multistep() || !previous.empty()) check_shape(name, "previous", previous, x.rows(), x.cols());
}

template <class T>
void step_rows(const SamplerPlan& plan, Index i, MatrixView<T> x, MatrixView<const T> m, MatrixView<const T> m_null,
               MatrixView<T> previous, MatrixView<const T> noise, const RandomRow* at, IndexView ids) {
  const simd::DiffusionUpdate<T> u = plan.update<T>(i);
  RandomRow row = at ? *at : RandomRow{};
  row.purpose = RandomPurpose::sampler_noise;
  row.step = static_cast<std::uint32_t>(i) + 1;
  simd::Philox<> philox(row);
  for (Index b = 0; b < x.rows(); ++b) {
    if (at) philox.set_row(simd::row_of(row, ids, b));
    simd::diffusion_update<T>(u, x.row(b), m.row(b), plan.guided() ? m_null.row(b) : nullptr,
                              previous.empty() ? nullptr : previous.row(b), noise.empty() ? nullptr : noise.row(b),
                              at ? &philox : nullptr, x.cols());
  }
}

}  // namespace detail

/// Step `i` of the plan, noise drawn: row b takes the normals of `ids[b]`, or of `at.row` + b without ids, at step i + 1 and for the
/// purpose sampler_noise whatever `at` says. `previous`, unless empty, holds the p of the step before and then the one of this.
template <Real T>
void diffusion_step(const SamplerPlan& plan, Index i, MatrixView<T> x, MatrixView<const T> m, MatrixView<const T> m_null,
                    MatrixView<T> previous, const RandomRow& at, IndexView ids) {
  detail::check_step<T>("diffusion_step", plan, i, x, m, m_null, previous);
  simd::check_ids("diffusion_step", ids, x.rows());
  detail::step_rows<T>(plan, i, x, m, m_null, previous, {}, &at, ids);
}

/// The same with the noise given; empty: none.
template <Real T>
void diffusion_step(const SamplerPlan& plan, Index i, MatrixView<T> x, MatrixView<const T> m, MatrixView<const T> m_null,
                    MatrixView<T> previous, MatrixView<const T> noise = {}) {
  detail::check_step<T>("diffusion_step", plan, i, x, m, m_null, previous);
  if (!noise.empty()) check_shape("diffusion_step", "noise", noise, x.rows(), x.cols());
  detail::step_rows<T>(plan, i, x, m, m_null, previous, noise, nullptr, {});
}

/// From the gradients of what step `i` gave, `dnext` and (unless empty) `dkept` of what it left in `previous`, adds those of what it
/// took: x, m, m_null and the previous p, each unless empty. `x` is what it was before the step.
template <Real T>
void diffusion_step_backward(const SamplerPlan& plan, Index i, MatrixView<const T> x, MatrixView<const T> m,
                             MatrixView<const T> m_null, MatrixView<const T> dnext, MatrixView<const T> dkept, MatrixView<T> dx,
                             MatrixView<T> dm, MatrixView<T> dm_null, MatrixView<T> dprevious, Workspace& ws) {
  constexpr const char* name = "diffusion_step_backward";
  const Index rows = x.rows(), cols = x.cols();
  check_option(name, "step", 0 <= i && i < static_cast<Index>(plan.steps.size()), "one of the plan's steps",
               static_cast<double>(i));
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "m", m, rows, cols);
  if (plan.guided()) check_shape(name, "m_null", m_null, rows, cols);
  check_shape(name, "dnext", dnext, rows, cols);
  if (!dkept.empty()) check_shape(name, "dkept", dkept, rows, cols);
  if (!dx.empty()) check_shape(name, "dx", dx, rows, cols);
  if (!dm.empty()) check_shape(name, "dm", dm, rows, cols);
  if (!dm_null.empty()) check_shape(name, "dm_null", dm_null, rows, cols);
  if (!dprevious.empty()) check_shape(name, "dprevious", dprevious, rows, cols);
  const simd::DiffusionUpdate<T> u = plan.update<T>(i);
  const auto mark = ws.mark();
  T *const p = ws.take<T>(cols), *const d = ws.take<T>(cols);
  for (Index b = 0; b < rows; ++b) {
    const T *const g = dnext.row(b), *const kept = dkept.empty() ? nullptr : dkept.row(b);
    simd::combine<T>(u.p_scale, g, kept ? T(1) : T(0), kept ? kept : g, d, cols);
    if (plan.options.clip != ClipX0::none) {
      // p before it is clipped.
      const T* const null = plan.guided() ? m_null.row(b) : m.row(b);
      simd::combine<T>(plan.guided() ? u.conditional : T(1), m.row(b), plan.guided() ? u.unconditional : T(0), null, p, cols);
      simd::combine<T>(u.x0_x, x.row(b), u.x0_m, p, p, cols);
      if (plan.options.clip == ClipX0::box) {
        for (Index j = 0; j < cols; ++j)
          if (p[j] > u.bound || p[j] < -u.bound) d[j] = T(0);
      } else {
        const T length = std::sqrt(simd::sum_squares<T>(p, cols));
        const T to = plan.options.clip == ClipX0::unit ? T(1) : length > u.longest ? u.longest : T(0);
        if (to > T(0) && length > T(0)) {
          const T along = simd::dot<T>(p, d, cols) / (length * length);
          simd::combine<T>(to / length, d, -along * to / length, p, d, cols);
        }
      }
    }
    if (!dx.empty()) {
      simd::axpy<T>(u.x_scale, g, dx.row(b), cols);
      if (u.x0_x != T(0)) simd::axpy<T>(u.x0_x, d, dx.row(b), cols);
    }
    if (!dm.empty()) simd::axpy<T>(plan.guided() ? u.x0_m * u.conditional : u.x0_m, d, dm.row(b), cols);
    if (!dm_null.empty() && plan.guided()) simd::axpy<T>(u.x0_m * u.unconditional, d, dm_null.row(b), cols);
    if (!dprevious.empty()) simd::axpy<T>(u.previous_scale, g, dprevious.row(b), cols);
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
