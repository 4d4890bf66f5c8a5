/// @file   recops/gating/balance_loss.hpp
/// @brief  Losses that keep a router from sending everything to a few experts, and its logits from growing. Values in double; gradients
///         are added, unless their view is empty.
///
///     switch        alpha E sum_i f_i P_i                f: share of choices, a constant; P: mean of softmax(l).  Uniform: alpha
///     importance    alpha CV^2(I),  I_i = sum of the weights expert i was given
///     load          alpha CV^2(L),  L_i = expected number of rows under fresh noise (noisy routing)
///     z             alpha mean_n lse(l_n)^2
///     sequence      alpha sum_i f_i P_i per sequence, f_i = E / (k L) count_i, P of s = sigmoid(l) / its sum; mean over sequences
///
/// CV^2(v) = variance / (mean^2 + 1e-10), population variance over experts.
/// Shapes      logits [N, E]   experts [N, k] int32 (of route_topk)   weights [N, k]
/// Edge cases  no rows: 0 and no gradient.   A NaN makes the value NaN.   Sums over rows in double, within a row in T.
/// Errors      Error if shapes, choices or alpha do not fit; gradients untouched.
/// Reference   importance, load: Shazeer et al., arXiv 1701.06538, equations 6, 7 and appendix A; switch: Fedus et al., arXiv 2101.03961,
///             equations 4 to 6; z: Zoph et al., arXiv 2202.08906, equation 5; sequence: arXiv 2412.19437, equations 17 to 20.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/gaussian.hpp>
#include <recops/simd/reduce.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

template <class T>
void check_balance(const char* name, MatrixView<const T> logits, MatrixView<const std::int32_t> experts, double alpha,
                   MatrixView<T> dlogits) {
  check_shape(name, "logits", logits, any_size, any_size);
  check_shape(name, "experts", experts, logits.rows(), any_size);
  for (Index r = 0; r < experts.rows(); ++r)
    check_indices(name, "experts", IndexView(experts.row(r), experts.cols()), logits.cols());
  check_option(name, "alpha", std::isfinite(alpha), "a finite alpha", alpha);
  if (!dlogits.empty()) check_shape(name, "dlogits", dlogits, logits.rows(), logits.cols());
}

/// alpha CV^2(v); v becomes its gradient.
inline double squared_variation(double* v, Index n, double alpha) {
  double mean = 0, variance = 0;
  for (Index i = 0; i < n; ++i) mean += v[i] / static_cast<double>(n);
  for (Index i = 0; i < n; ++i) variance += (v[i] - mean) * (v[i] - mean) / static_cast<double>(n);
  const double q = mean * mean + 1e-10;
  for (Index i = 0; i < n; ++i) v[i] = alpha * (2 * (v[i] - mean) - 2 * variance * mean / q) / (static_cast<double>(n) * q);
  return alpha * variance / q;
}

}  // namespace detail

/// Of the softmax of `logits`; `per_choice` divides f by k, so that equal shares give alpha for every k (else alpha k).
template <Real T>
double switch_balance_value_and_grad(MatrixView<const T> logits, MatrixView<const std::int32_t> experts, double alpha,
                                     bool per_choice, MatrixView<T> dlogits, Workspace& ws) {
  constexpr const char* name = "switch_balance_value_and_grad";
  detail::check_balance(name, logits, experts, alpha, dlogits);
  const Index n = logits.rows(), e = logits.cols(), k = experts.cols();
  if (n == 0 || k == 0) return 0;
  const auto mark = ws.mark();
  T *const p = ws.take<T>(e), *const share = ws.take<T>(e);
  double *const f = ws.take<double>(e), *const mean = ws.take<double>(e);
  std::fill_n(f, e, 0.0);
  std::fill_n(mean, e, 0.0);
  const double one = 1 / (static_cast<double>(n) * (per_choice ? static_cast<double>(k) : 1.0));
  for (Index r = 0; r < n; ++r)
    for (Index j = 0; j < k; ++j) f[experts(r, j)] += one;
  for (Index i = 0; i < e; ++i) share[i] = static_cast<T>(alpha * static_cast<double>(e) * f[i] / static_cast<double>(n));
  for (Index r = 0; r < n; ++r) {
    simd::softmax<T>(logits.row(r), p, e);
    for (Index i = 0; i < e; ++i) mean[i] += static_cast<double>(p[i]);
    if (dlogits.empty()) continue;
    const T level = simd::dot(p, share, e);
    for (Index i = 0; i < e; ++i) dlogits(r, i) += p[i] * (share[i] - level);
  }
  double sum = 0;
  for (Index i = 0; i < e; ++i) sum += f[i] * mean[i];
  return alpha * static_cast<double>(e) * sum / static_cast<double>(n);
}

/// Of the weights that `count` experts were given; adds to `dweights [N, k]`.
template <Real T>
double importance_value_and_grad(MatrixView<const T> weights, MatrixView<const std::int32_t> experts, Index count, double alpha,
                                 MatrixView<T> dweights, Workspace& ws) {
  constexpr const char* name = "importance_value_and_grad";
  check_shape(name, "weights", weights, any_size, any_size);
  check_shape(name, "experts", experts, weights.rows(), weights.cols());
  check_option(name, "count", count >= 1, "count >= 1", static_cast<double>(count));
  for (Index r = 0; r < experts.rows(); ++r) check_indices(name, "experts", IndexView(experts.row(r), experts.cols()), count);
  check_option(name, "alpha", std::isfinite(alpha), "a finite alpha", alpha);
  if (!dweights.empty()) check_shape(name, "dweights", dweights, weights.rows(), weights.cols());
  if (weights.rows() == 0) return 0;
  const auto mark = ws.mark();
  double* const importance = ws.take<double>(count);
  std::fill_n(importance, count, 0.0);
  for (Index r = 0; r < weights.rows(); ++r)
    for (Index j = 0; j < weights.cols(); ++j) importance[experts(r, j)] += static_cast<double>(weights(r, j));
  const double value = detail::squared_variation(importance, count, alpha);
  for (Index r = 0; r < dweights.rows(); ++r)
    for (Index j = 0; j < dweights.cols(); ++j) dweights(r, j) += static_cast<T>(importance[experts(r, j)]);
  return value;
}

/// Of noisy routing: the chance that row n would come to expert i if its noise alone were drawn again is Phi((clean - threshold) /
/// deviation), the threshold being the (k + 1)-th largest noisy logit if i was chosen, else the k-th. `experts` best first, chosen from
/// `noisy`. Adds to `dclean`, `dnoisy` (the threshold's expert) and `ddeviation`. With k = E every row comes to every expert: 0.
template <Real T>
double load_balance_value_and_grad(MatrixView<const T> clean, MatrixView<const T> noisy, MatrixView<const T> deviation,
                                   MatrixView<const std::int32_t> experts, double alpha, MatrixView<T> dclean,
                                   MatrixView<T> dnoisy, MatrixView<T> ddeviation, Workspace& ws) {
  constexpr const char* name = "load_balance_value_and_grad";
  detail::check_balance(name, clean, experts, alpha, dclean);
  const Index n = clean.rows(), e = clean.cols(), k = experts.cols();
  check_shape(name, "noisy", noisy, n, e);
  check_shape(name, "deviation", deviation, n, e);
  if (!dnoisy.empty()) check_shape(name, "dnoisy", dnoisy, n, e);
  if (!ddeviation.empty()) check_shape(name, "ddeviation", ddeviation, n, e);
  if (n == 0 || k == 0 || k >= e) return 0;
  const auto mark = ws.mark();
  double* const load = ws.take<double>(e);
  std::fill_n(load, e, 0.0);
  Index* const next = ws.take<Index>(n);  // the best of each row that was not chosen
  T *const threshold = ws.take<T>(e), *const row = ws.take<T>(e);
  const auto fill_thresholds = [&](Index r) {
    std::fill_n(threshold, e, noisy(r, experts(r, k - 1)));
    for (Index j = 0; j < k; ++j) threshold[experts(r, j)] = noisy(r, next[r]);
  };
  using B = simd::Batch<T>;
  const B zero(T(0)), half(T(0.5));
  const auto lead_of = [&](B lead, B s) RECOPS_LAMBDA_INLINE { return xsimd::select(lead == zero, zero, lead / s); };
  for (Index r = 0; r < n; ++r) {
    std::copy_n(noisy.row(r), e, row);
    for (Index j = 0; j < k; ++j) row[experts(r, j)] = std::numeric_limits<T>::quiet_NaN();  // never the best
    next[r] = simd::argmax<T>(row, e);
    fill_thresholds(r);
    const T *own = clean.row(r), *s = deviation.row(r), *drawn = noisy.row(r);
    simd::for_each_vector<T, simd::DefaultArch>(e, [&](Index i, auto at, auto store) RECOPS_LAMBDA_INLINE {
      const B z = lead_of(at(own + i) - at(threshold + i), at(s + i)), d = at(drawn + i);
      const B chance = simd::mul_add(half, simd::erf(z * B(T(0.70710678118654752440))), half);
      store(row + i, xsimd::select(d == d, chance, d));  // a NaN is nobody's threshold, and shows
    });
    for (Index i = 0; i < e; ++i) load[i] += static_cast<double>(row[i]);
  }
  const double value = detail::squared_variation(load, e, alpha);
  if (dclean.empty() && dnoisy.empty() && ddeviation.empty()) return value;
  T* const up = ws.take<T>(e);  // of each load, times the height of the bell
  for (Index i = 0; i < e; ++i) up[i] = static_cast<T>(load[i] * 0.39894228040143267794);
  for (Index r = 0; r < n; ++r) {
    fill_thresholds(r);
    const T *own = clean.row(r), *s = deviation.row(r);
    T *const to = dclean.empty() ? nullptr : dclean.row(r), *const to_s = ddeviation.empty() ? nullptr : ddeviation.row(r);
    simd::for_each_vector<T, simd::DefaultArch>(e, [&](Index i, auto at, auto store) RECOPS_LAMBDA_INLINE {
      const B width = at(s + i), z = lead_of(at(own + i) - at(threshold + i), width);
      // Without noise the load is a step: no gradient.
      const B d = xsimd::select(width == zero, zero, at(up + i) * simd::exp(z * z * B(T(-0.5))) / width);
      store(row + i, d);
      if (to) store(to + i, at(to + i) + d);
      if (to_s) store(to_s + i, at(to_s + i) - xsimd::select(d == zero, zero, d * z));
    });
    if (dnoisy.empty()) continue;
    T taken = T(0);
    for (Index j = 0; j < k; ++j) {
      taken += row[experts(r, j)];
      row[experts(r, j)] = T(0);
    }
    dnoisy(r, next[r]) -= taken;
    dnoisy(r, experts(r, k - 1)) -= simd::sum<T>(row, e);
  }
  return value;
}

/// Router z-loss; about 1e-3 for alpha. A row of -infinity alone (all experts masked) counts as 0 and has no gradient.
template <Real T>
double router_z_value_and_grad(MatrixView<const T> logits, double alpha, MatrixView<T> dlogits, Workspace& ws) {
  constexpr const char* name = "router_z_value_and_grad";
  detail::check_balance<T>(name, logits, MatrixView<const std::int32_t>(nullptr, logits.rows(), 0), alpha, dlogits);
  if (logits.empty()) return 0;
  const auto mark = ws.mark();
  T* const p = ws.take<T>(logits.cols());
  double sum = 0;
  for (Index r = 0; r < logits.rows(); ++r) {
    const T lse = simd::softmax<T>(logits.row(r), p, logits.cols());
    if (lse == -std::numeric_limits<T>::infinity()) continue;
    sum += static_cast<double>(lse) * static_cast<double>(lse);
    if (!dlogits.empty())
      simd::axpy<T>(static_cast<T>(2 * alpha * static_cast<double>(lse) / static_cast<double>(logits.rows())), p, dlogits.row(r),
                    logits.cols());
  }
  return alpha * sum / static_cast<double>(logits.rows());
}

/// Of the sigmoids of `logits`, sequence by sequence; the mean over those that have rows. About 1e-4 for alpha.
template <Real T>
double sequence_balance_value_and_grad(JaggedView<const T> logits, MatrixView<const std::int32_t> experts, double alpha,
                                       MatrixView<T> dlogits, Workspace& ws) {
  constexpr const char* name = "sequence_balance_value_and_grad";
  check_jagged(name, "logits", logits, any_size, any_size);
  detail::check_balance(name, logits.values(), experts, alpha, dlogits);
  const Index e = logits.cols(), k = experts.cols();
  Index sequences = 0;
  for (Index b = 0; b < logits.size(); ++b) sequences += logits.length(b) > 0;
  if (sequences == 0 || k == 0) return 0;
  const auto mark = ws.mark();
  T *const s = ws.take<T>(e), *const share = ws.take<T>(e);
  double *const f = ws.take<double>(e), *const mean = ws.take<double>(e);
  double total = 0;
  for (Index b = 0; b < logits.size(); ++b) {
    const Index first = logits.begin(b), length = logits.length(b);
    if (length == 0) continue;
    std::fill_n(f, e, 0.0);
    std::fill_n(mean, e, 0.0);
    for (Index r = first; r < first + length; ++r)
      for (Index j = 0; j < k; ++j)
        f[experts(r, j)] += static_cast<double>(e) / (static_cast<double>(k) * static_cast<double>(length));
    const double weight = alpha / (static_cast<double>(length) * static_cast<double>(sequences));
    for (Index i = 0; i < e; ++i) share[i] = static_cast<T>(f[i]);
    for (Index r = first; r < first + length; ++r) {
      simd::sigmoid<T>(logits.values().row(r), s, e);
      const T sum = simd::sum<T>(s, e);
      if (sum == T(0)) continue;
      for (Index i = 0; i < e; ++i) mean[i] += static_cast<double>(s[i] / sum);
      if (dlogits.empty()) continue;
      using B = simd::Batch<T>;
      const B level(simd::dot<T>(share, s, e) / sum), scale(static_cast<T>(weight)), one(T(1)), all(sum);
      T* const to = dlogits.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(e, [&](Index i, auto at, auto store) RECOPS_LAMBDA_INLINE {
        const B own = at(s + i);
        store(to + i, at(to + i) + scale * (at(share + i) - level) * (own / all * (one - own)));
      });
    }
    double sum = 0;
    for (Index i = 0; i < e; ++i) sum += f[i] * mean[i];
    total += sum / static_cast<double>(length);
  }
  return alpha * total / static_cast<double>(sequences);
}

}  // namespace RECOPS_ABI
}  // namespace recops
