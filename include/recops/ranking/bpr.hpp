/// @file   recops/ranking/bpr.hpp
/// @brief  Bayesian personalised ranking: each row's positive against its sampled negatives.
///
///     L = Σ_b w_b 1/K Σ_k softplus(-(p_b - n_bk)) / Σ_b w_b
///
/// Shapes      positives [B]   negatives [B, K]
/// Edge cases  no rows, no negatives or no weight: 0.  Rows of weight 0 are not read.
/// NaN         makes the loss NaN, and of the gradient its own row's.
/// Precision   each pair in T, sums over rows in double.
/// Cost        O(B K), one exponential a pair; no scratch.
/// Errors      Error if sizes disagree or a weight is negative or not finite.
/// Gradient    of positives and negatives; adds.
/// Reference   Rendle et al., UAI 2009, arXiv 1205.2618.
#pragma once
#include <algorithm>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/simd/log.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
double bpr(const char* name, VectorView<const T> positives, MatrixView<const T> negatives, VectorView<const T> weights,
           VectorView<T> dpositives, MatrixView<T> dnegatives) {
  using B = simd::Batch<T>;
  check_size(name, "positives", positives, any_size);
  const Index rows = positives.size(), count = negatives.cols();
  check_shape(name, "negatives", negatives, rows, any_size);
  if (!weights.empty()) check_size(name, "weights", weights, rows);
  for (const T w : weights)
    check_option(name, "weights", w >= 0 && w <= std::numeric_limits<T>::max(), "finite weights >= 0", static_cast<double>(w));
  if (!dpositives.empty()) check_size(name, "dpositives", dpositives, rows);
  if (!dnegatives.empty()) check_shape(name, "dnegatives", dnegatives, rows, count);
  double mass = weights.empty() ? static_cast<double>(rows) : 0;
  for (const T w : weights) mass += static_cast<double>(w);
  if (mass == 0 || count == 0) return 0;
  double total = 0;
  for (Index b = 0; b < rows; ++b) {
    const double w = weights.empty() ? 1.0 : static_cast<double>(weights[b]), scale = w / mass / static_cast<double>(count);
    if (w == 0) continue;
    const T* const n = negatives.row(b);
    T* const d = dnegatives.empty() ? nullptr : dnegatives.row(b);
    const B p(positives[b]), step(static_cast<T>(scale));
    double loss = 0, slope = 0;
    constexpr Index block = 64 * simd::lanes<T>;
    for (Index start = 0; start < count; start += block) {
      B losses(T(0)), slopes(T(0));
      const Index end = std::min(count, start + block);
      for (Index k = start; k < end; k += simd::lanes<T>) {
        const Index some = std::min(simd::lanes<T>, end - k);
        const bool whole = some == simd::lanes<T>;
        B x = (whole ? B::load_unaligned(n + k) : simd::load_first<T>(n + k, some)) - p;
        if (!whole) {  // what lies behind the row is beaten by far
          alignas(64) T lane[simd::lanes<T>];
          x.store_aligned(lane);
          for (Index l = some; l < simd::lanes<T>; ++l) lane[l] = -std::numeric_limits<T>::max();
          x = B::load_aligned(lane);
        }
        const auto f = simd::logistic(x);
        losses = losses + f.softplus;
        slopes = slopes + f.sigmoid;
        if (d == nullptr) continue;
        if (whole)
          simd::mul_add(step, f.sigmoid, B::load_unaligned(d + k)).store_unaligned(d + k);
        else
          simd::store_first(d + k, simd::mul_add(step, f.sigmoid, simd::load_first<T>(d + k, some)), some);
      }
      loss += static_cast<double>(simd::sum_lanes(losses));
      slope += static_cast<double>(simd::sum_lanes(slopes));
    }
    total += scale * loss;
    if (!dpositives.empty()) dpositives[b] -= static_cast<T>(scale * slope);
  }
  return total;
}

}  // namespace detail

/// The loss of `positives [B]` against `negatives [B, K]`; `weights [B]` >= 0 or empty. Throws `Error`; see above.
template <Real T>
double bpr_loss(VectorView<const T> positives, MatrixView<const T> negatives, VectorView<const T> weights = {}) {
  return detail::bpr<T>("bpr_loss", positives, negatives, weights, {}, {});
}

/// The same, and adds its gradient to `dpositives [B]` and `dnegatives [B, K]`, each unless empty.
template <Real T>
double bpr_loss_value_and_grad(VectorView<const T> positives, MatrixView<const T> negatives, VectorView<const T> weights,
                               VectorView<T> dpositives, MatrixView<T> dnegatives) {
  return detail::bpr<T>("bpr_loss_value_and_grad", positives, negatives, weights, dpositives, dnegatives);
}

}  // namespace RECOPS_ABI
}  // namespace recops
