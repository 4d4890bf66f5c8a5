/// @file   recops/diffusion/sphere.hpp
/// @brief  Diffusion of unit vectors: noise moves along great circles, and every state stays on the sphere.
///
///     tangent(x, e) = e - <e, x> x            exp_map(x, v) = cos|v| x + sin|v| / |v| v
///     x_t = sqrt(alpha_bar_t) x_0 + sigma_t u,   u = tangent(x_0, eps) / |tangent(x_0, eps)|
///
/// The second is the noise of any step at once: of unit length, its mean is sqrt(alpha_bar_t) x_0, and several steps one after another
/// have that mean too. With the state x_t for eps and a predicted x_0 it is also the reverse step without noise: from x_0, towards where
/// the state lies, by as much as the noise of the step it goes to. (DDIM, on the sphere.)
///
/// Shapes      x0, x, eps, out [B, D], D >= 2, rows of x0 and x of unit length (`unit_rows`)   t [B] or [1]
/// Edge cases  A direction that has (almost) no tangent part is replaced by that of the axis x_0 has least of, without a gradient.
/// NaN         stays in its row.
/// Precision   T; |x_t| = 1 within a few roundings, as the length is not remembered from step to step.
/// Cost        a few passes over a row in L1. Drawn noise is keyed by the row's id: the same bits in any batch.
/// Errors      Error if shapes disagree or a step is none; outputs untouched.
/// Reference   The geodesic random walk that DimeRec (arXiv 2408.12153) names; its one-shot form and the reverse step are our
///             reconstruction, from the standard formulas of the sphere (Absil et al., Optimization on Matrix Manifolds, 2008).
#pragma once
#include <limits>
#include <recops/core/workspace.hpp>
#include <recops/diffusion/q_sample.hpp>
#include <recops/simd/normal.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// Lengths up to this have no direction.
template <class T>
inline constexpr T no_direction = std::is_same_v<T, float> ? T(1e-10) : T(1e-12);

/// out = e - <e, x> x; out may be e.
template <class T>
void tangent_row(const T* x, const T* e, T* out, Index n) {
  simd::combine<T>(T(1), e, -simd::dot(e, x, n), x, out, n);
}

/// The length of e, finite wherever e is: where its square overflows, e becomes its own multiple in `room`, and `unit` (else 1) what it
/// was divided by.
template <class T>
T finite_length(const T*& e, T* room, T& unit, Index n) {
  const T length = std::sqrt(simd::dot(e, e, n));
  unit = T(1);
  if (!(length > std::numeric_limits<T>::max())) return length;
  for (Index j = 0; j < n; ++j) unit = std::max(unit, std::abs(e[j]));
  simd::scale(T(1) / unit, e, room, n);
  e = room;
  return std::sqrt(simd::dot(e, e, n));
}

/// u = the unit direction of e at x, taken twice so that <u, x> = 0 to rounding. Returns |tangent|, or 0 where another direction had to
/// be taken.
template <class T>
T tangent_direction(const T* x, const T* e, T* u, Index n) {
  constexpr T epsilon = std::numeric_limits<T>::epsilon();
  T unit;
  const T size = finite_length(e, u, unit, n);  // what is left of an e along x is rounding, and has no direction either
  tangent_row(x, e, u, n);
  T length = std::sqrt(simd::dot(u, u, n));
  const bool none = length <= no_direction<T> || length <= 8 * epsilon * size;
  if (none) {
    Index least = 0;
    for (Index j = 1; j < n; ++j)
      if (std::abs(x[j]) < std::abs(x[least])) least = j;
    std::fill_n(u, n, T(0));
    u[least] = T(1);
    tangent_row(x, u, u, n);
    length = std::sqrt(simd::dot(u, u, n));
  }
  simd::scale(T(1) / length, u, u, n);
  const T rest = simd::dot(u, x, n);
  simd::axpy(-rest, x, u, n);
  if (rest * rest > epsilon) simd::scale(T(1) / std::sqrt(simd::dot(u, u, n)), u, u, n);  // much was cancelled: u is shorter now
  return none ? T(0) : length * unit;
}

/// out = a x + s u with u = tangent(x, e) / |tangent(x, e)|.
template <class T>
void sphere_row(T a, const T* x, T s, const T* e, T* out, T* u, Index n) {
  tangent_direction(x, e, u, n);
  simd::combine<T>(a, x, s, u, out, n);
}

/// Adds the gradients of x and e, given u's scratch; either may be null.
template <class T>
void sphere_row_backward(T a, const T* x, T s, const T* e, const T* g, T* dx, T* de, T* u, T* h, Index n) {
  const T length = tangent_direction(x, e, u, n);
  if (dx) simd::axpy(a, g, dx, n);
  const T radial = simd::dot(e, x, n);
  constexpr T most = std::numeric_limits<T>::max();
  if (length == T(0) || length > most || std::abs(radial) > most) return;  // e so large that 1 / |e| is nothing
  const T factor = s / length;
  simd::combine<T>(factor, g, -factor * simd::dot(g, u, n), u, h, n);  // gradient of the tangent
  const T along = simd::dot(h, x, n);
  if (de) simd::axpy(T(1), h, de, n), simd::axpy(-along, x, de, n);
  if (dx) simd::axpy(-along, e, dx, n), simd::axpy(-radial, h, dx, n);
}

template <class T>
void check_sphere(const char* name, MatrixView<const T> x0) {
  check_shape(name, "x0", x0, any_size, any_size);
  check_option(name, "x0", x0.cols() >= 2, "two columns or more", static_cast<double>(x0.cols()));
}

}  // namespace detail

/// Rows on the sphere: y_b = x_b / |x_b|; y `[B, D]` may be x. A row of (almost) no length becomes the first axis. Returns how many did.
/// Rows that are longer than the root of the largest number are as good as any other.
template <Real T>
Index unit_rows(MatrixView<const T> x, MatrixView<T> y) {
  check_shape("unit_rows", "x", x, any_size, any_size);
  check_shape("unit_rows", "y", y, x.rows(), x.cols());
  Index zeros = 0;
  for (Index b = 0; b < x.rows(); ++b) {
    const T* from = x.row(b);
    T unit;
    const T length = detail::finite_length(from, y.row(b), unit, x.cols());
    if (length <= detail::no_direction<T>) {
      std::fill_n(y.row(b), y.cols(), T(0));
      if (y.cols() > 0) y(b, 0) = T(1);
      ++zeros;
    } else {
      simd::scale(T(1) / length, from, y.row(b), y.cols());
    }
  }
  return zeros;
}

/// Adds dx = (dy - <dy, y> y) / |x|, nothing for a row without length or of one whose square overflows: its gradient is as small.
template <Real T>
void unit_rows_backward(MatrixView<const T> x, MatrixView<const T> dy, MatrixView<T> dx) {
  constexpr const char* name = "unit_rows_backward";
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "dy", dy, x.rows(), x.cols());
  check_shape(name, "dx", dx, x.rows(), x.cols());
  const Index n = x.cols();
  for (Index b = 0; b < x.rows(); ++b) {
    const T square = simd::dot(x.row(b), x.row(b), n), length = std::sqrt(square);
    if (length <= detail::no_direction<T> || length > std::numeric_limits<T>::max()) continue;
    const T along = simd::dot(dy.row(b), x.row(b), n) / square;
    simd::axpy(T(1) / length, dy.row(b), dx.row(b), n);
    simd::axpy(-along / length, x.row(b), dx.row(b), n);
  }
}

/// out = e - <e, x> x, row by row: the part of e that does not leave the sphere at x. out may be e.
template <Real T>
void sphere_tangent(MatrixView<const T> x, MatrixView<const T> e, MatrixView<T> out) {
  check_shape("sphere_tangent", "x", x, any_size, any_size);
  check_shape("sphere_tangent", "e", e, x.rows(), x.cols());
  check_shape("sphere_tangent", "out", out, x.rows(), x.cols());
  for (Index b = 0; b < x.rows(); ++b) detail::tangent_row(x.row(b), e.row(b), out.row(b), x.cols());
}
/// Adds de = g - <g, x> x and dx = -<g, x> e - <e, x> g; either may be empty.
template <Real T>
void sphere_tangent_backward(MatrixView<const T> x, MatrixView<const T> e, MatrixView<const T> dout, MatrixView<T> dx,
                             MatrixView<T> de) {
  constexpr const char* name = "sphere_tangent_backward";
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "e", e, x.rows(), x.cols());
  check_shape(name, "dout", dout, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!de.empty()) check_shape(name, "de", de, x.rows(), x.cols());
  const Index n = x.cols();
  for (Index b = 0; b < x.rows(); ++b) {
    const T along = simd::dot(dout.row(b), x.row(b), n);
    if (!de.empty()) simd::axpy(T(1), dout.row(b), de.row(b), n), simd::axpy(-along, x.row(b), de.row(b), n);
    if (!dx.empty())
      simd::axpy(-along, e.row(b), dx.row(b), n), simd::axpy(-simd::dot(e.row(b), x.row(b), n), dout.row(b), dx.row(b), n);
  }
}

namespace detail {
/// sin r / r, and (r cos r - sin r) / r^3.
template <class T>
T sinc(T r) {
  const T q = r * r;
  return r < T(1e-3) ? T(1) - q / T(6) + q * q / T(120) : std::sin(r) / r;
}
template <class T>
T sinc_slope(T r) {
  const T q = r * r;  // the difference cancels: the series stays longer
  return r < T(0.1) ? T(-1) / T(3) + q / T(30) - q * q / T(840) : (r * std::cos(r) - std::sin(r)) / (r * q);
}
}  // namespace detail

/// out = cos|v| x + sin|v| / |v| v: where one gets from x along the great circle of the tangent vector v. out may be v.
template <Real T>
void sphere_exp(MatrixView<const T> x, MatrixView<const T> v, MatrixView<T> out) {
  check_shape("sphere_exp", "x", x, any_size, any_size);
  check_shape("sphere_exp", "v", v, x.rows(), x.cols());
  check_shape("sphere_exp", "out", out, x.rows(), x.cols());
  for (Index b = 0; b < x.rows(); ++b) {
    const T r = std::sqrt(simd::dot(v.row(b), v.row(b), v.cols()));
    simd::combine<T>(std::cos(r), x.row(b), detail::sinc(r), v.row(b), out.row(b), x.cols());
  }
}
/// Adds the gradients of x and v; either may be empty.
template <Real T>
void sphere_exp_backward(MatrixView<const T> x, MatrixView<const T> v, MatrixView<const T> dout, MatrixView<T> dx,
                         MatrixView<T> dv) {
  constexpr const char* name = "sphere_exp_backward";
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "v", v, x.rows(), x.cols());
  check_shape(name, "dout", dout, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dv.empty()) check_shape(name, "dv", dv, x.rows(), x.cols());
  const Index n = x.cols();
  for (Index b = 0; b < x.rows(); ++b) {
    const T *const g = dout.row(b), *const to = v.row(b);
    const T r = std::sqrt(simd::dot(to, to, n)), s = detail::sinc(r);
    if (!dx.empty()) simd::axpy(std::cos(r), g, dx.row(b), n);
    if (dv.empty()) continue;
    simd::axpy(s, g, dv.row(b), n);
    simd::axpy(detail::sinc_slope(r) * simd::dot(g, to, n) - s * simd::dot(g, x.row(b), n), to, dv.row(b), n);
  }
}

/// x_t from x_0 and noise (of any length; only its direction counts). Step 0 gives x_0.
template <Real T>
void sphere_q_sample(const NoiseSchedule& schedule, MatrixView<const T> x0, IndexView t, MatrixView<const T> noise,
                     MatrixView<T> xt, Workspace& ws) {
  constexpr const char* name = "sphere_q_sample";
  detail::check_sphere(name, x0);
  check_shape(name, "noise", noise, x0.rows(), x0.cols());
  check_shape(name, "xt", xt, x0.rows(), x0.cols());
  detail::check_timesteps(name, t, x0.rows(), 0, schedule.steps());
  const auto mark = ws.mark();
  T* const u = ws.take<T>(x0.cols());
  for (Index b = 0; b < x0.rows(); ++b) {
    const Index step = detail::timestep_of(t, b);
    detail::sphere_row(static_cast<T>(schedule.sqrt_alpha_bar[step]), x0.row(b), static_cast<T>(schedule.sigma[step]),
                       noise.row(b), xt.row(b), u, x0.cols());
  }
}
/// Drawn: row b takes the normals of `ids[b]`, or of `at.row` + b without ids. `noise`, unless empty, receives them, for backward.
template <Real T>
void sphere_q_sample(const NoiseSchedule& schedule, MatrixView<const T> x0, IndexView t, const RandomRow& at, IndexView ids,
                     MatrixView<T> xt, MatrixView<T> noise, Workspace& ws) {
  constexpr const char* name = "sphere_q_sample";
  detail::check_sphere(name, x0);
  if (!noise.empty()) check_shape(name, "noise", noise, x0.rows(), x0.cols());
  check_shape(name, "xt", xt, x0.rows(), x0.cols());
  simd::check_ids(name, ids, x0.rows());
  detail::check_timesteps(name, t, x0.rows(), 0, schedule.steps());
  const auto mark = ws.mark();
  const MatrixView<T> eps = noise.empty() ? ws.matrix<T>(x0.rows(), x0.cols()) : noise;
  simd::fill_normal<T>(at, ids, eps);
  sphere_q_sample<T>(schedule, x0, t, eps, xt, ws);
}
/// Adds the gradients of x_0 and of the noise; either may be empty.
template <Real T>
void sphere_q_sample_backward(const NoiseSchedule& schedule, MatrixView<const T> x0, IndexView t, MatrixView<const T> noise,
                              MatrixView<const T> dxt, MatrixView<T> dx0, MatrixView<T> dnoise, Workspace& ws) {
  constexpr const char* name = "sphere_q_sample_backward";
  detail::check_sphere(name, x0);
  const Index rows = x0.rows(), n = x0.cols();
  check_shape(name, "noise", noise, rows, n);
  check_shape(name, "dxt", dxt, rows, n);
  if (!dx0.empty()) check_shape(name, "dx0", dx0, rows, n);
  if (!dnoise.empty()) check_shape(name, "dnoise", dnoise, rows, n);
  detail::check_timesteps(name, t, rows, 0, schedule.steps());
  const auto mark = ws.mark();
  T *const u = ws.take<T>(n), *const h = ws.take<T>(n);
  for (Index b = 0; b < rows; ++b) {
    const Index step = detail::timestep_of(t, b);
    detail::sphere_row_backward(static_cast<T>(schedule.sqrt_alpha_bar[step]), x0.row(b), static_cast<T>(schedule.sigma[step]),
                                noise.row(b), dxt.row(b), dx0.empty() ? nullptr : dx0.row(b),
                                dnoise.empty() ? nullptr : dnoise.row(b), u, h, n);
  }
}

/// Options of `sphere_walk`.
struct SphereWalkOptions {
  RandomRow at = {};   ///< seed and sample; each of the walk's steps draws its own numbers
  IndexView ids = {};  ///< one per row; none: `at.row` + place in the batch
};

/// The walk itself: t times x <- exp_map(x, s_i tangent(x, z_i)) with s_i = sqrt(beta_i / (D - 1)), so that a step turns by about
/// sqrt(beta_i). What DimeRec describes; `sphere_q_sample` has nearly the same law in one go. O(t D) a row. xt may be x0.
template <Real T>
void sphere_walk(const NoiseSchedule& schedule, MatrixView<const T> x0, IndexView t, const SphereWalkOptions& options,
                 MatrixView<T> xt, Workspace& ws) {
  constexpr const char* name = "sphere_walk";
  detail::check_sphere(name, x0);
  check_shape(name, "xt", xt, x0.rows(), x0.cols());
  simd::check_ids(name, options.ids, x0.rows());
  detail::check_timesteps(name, t, x0.rows(), 0, schedule.steps());
  const auto mark = ws.mark();
  const Index n = x0.cols();
  T* const v = ws.take<T>(n);
  for (Index b = 0; b < x0.rows(); ++b) {
    T* const x = xt.row(b);
    if (x != x0.row(b)) std::copy_n(x0.row(b), n, x);
    RandomRow at = options.at;
    at.row = simd::row_of(options.at, options.ids, b);
    for (Index i = 1; i <= detail::timestep_of(t, b); ++i) {
      at.step = static_cast<std::uint32_t>(i);
      simd::fill_normal<T>(at, v, n);
      detail::tangent_row(x, v, v, n);
      simd::scale(static_cast<T>(std::sqrt(schedule.beta[i] / static_cast<double>(n - 1))), v, v, n);
      const T r = std::sqrt(simd::dot(v, v, n));
      simd::combine<T>(std::cos(r), x, detail::sinc(r), v, x, n);
      simd::scale(T(1) / std::sqrt(simd::dot(x, x, n)), x, x, n);
    }
  }
}

/// Uniform on the sphere, row b by `ids[b]`: where sampling starts. `at.purpose` is chosen here.
template <Real T>
void sphere_start(RandomRow at, IndexView ids, MatrixView<T> x) {
  check_shape("sphere_start", "x", x, any_size, any_size);
  simd::check_ids("sphere_start", ids, x.rows());
  at.purpose = RandomPurpose::initial_noise;
  at.step = 0;
  simd::fill_normal<T>(at, ids, x);
  unit_rows<T>(x, x);
}

/// One reverse step, in place, from wherever x lies to step `to` of the schedule, given the predicted x0: x <- sqrt(alpha_bar) x0 + sigma
/// u', u' = sqrt(1 - eta^2) u + eta n, with u the direction from x0 to x and n a random one across both. eta 0: no noise; eta 1: the state
/// is forgotten but for x0. `at.step` must be another one for every step of a sampler. With eta 0 its gradient is that of
/// `sphere_q_sample` with x as the noise.
template <Real T>
void sphere_step(const NoiseSchedule& schedule, Index to, double eta, MatrixView<const T> x0, RandomRow at, IndexView ids,
                 MatrixView<T> x, Workspace& ws) {
  constexpr const char* name = "sphere_step";
  detail::check_sphere(name, x0);
  check_shape(name, "x", x, x0.rows(), x0.cols());
  check_option(name, "to", 0 <= to && to <= schedule.steps(), "a step of the schedule", static_cast<double>(to));
  check_option(name, "eta", 0 <= eta && eta <= 1, "0 <= eta <= 1", eta);
  simd::check_ids(name, ids, x0.rows());
  const auto mark = ws.mark();
  const Index n = x0.cols();
  T *const u = ws.take<T>(n), *const z = ws.take<T>(n);
  const T a = static_cast<T>(schedule.sqrt_alpha_bar[to]), s = static_cast<T>(schedule.sigma[to]);
  at.purpose = RandomPurpose::sampler_noise;
  RandomRow row = at;
  for (Index b = 0; b < x0.rows(); ++b) {
    const T* const p = x0.row(b);
    detail::tangent_direction(p, x.row(b), u, n);
    if (eta > 0 && n > 2) {
      row.row = simd::row_of(at, ids, b);
      simd::fill_normal<T>(row, z, n);
      for (int twice = 0; twice < 2; ++twice) {
        detail::tangent_row(p, z, z, n);
        detail::tangent_row(u, z, z, n);
      }
      const T length = std::sqrt(simd::dot(z, z, n));
      if (length > detail::no_direction<T>)
        simd::combine<T>(static_cast<T>(std::sqrt(1 - eta * eta)), u, static_cast<T>(eta) / length, z, u, n);
    }
    simd::combine<T>(a, p, s, u, x.row(b), n);
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
