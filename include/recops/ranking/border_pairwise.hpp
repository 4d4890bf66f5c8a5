/// @file   recops/ranking/border_pairwise.hpp
/// @brief  Border-aware pairwise loss for scores along time (frames of a live stream): pairs of near frames on opposite sides of a
///         change of label, and first differences that follow the labels'.
///
///     L_g = 1/|D| Σ_{(i, j) in D} w_ij softplus(-sigma (sgn(y_i - y_j) (s_i - s_j) - margin))
///           + mu mean_t ((s_{t+1} - s_t) - kappa (y_{t+1} - y_t))²                D = {0 < j - i <= window, |y_i - y_j| > delta}
///
/// Shapes      scores, labels [n], in order of time   offsets [G + 1], or none for one group   pair_weights [window, n]
/// Edge cases  groups of fewer than two items have no loss; without a border only the second term is left.
/// NaN         a NaN or infinite score makes the loss and the gradient of its group NaN.
/// Precision   each pair in T, sums over lags in double.  Gradients of a group sum to 0 up to rounding.
/// Cost        O(n window), vectors along time; scratch 2 n scalars of the largest group.
/// Errors      Error if sizes or offsets disagree, a label is not finite, window < 1, sigma <= 0 or an option is not finite.
/// Gradient    of the scores; adds.  The pair weights are constants.
/// Reference   ContentCTR, arXiv 2306.14392: pairs and first-order differences are the paper's, this exact form is our reconstruction.
#pragma once
#include <recops/ranking/group_loss.hpp>
#include <recops/simd/log.hpp>

namespace recops {

/// Options of `border_pairwise_loss`.
template <class T>
struct BorderPairwiseOptions {
  Index window = 5;                       ///< frames apart at most, >= 1
  double delta = 0;                       ///< >= 0; labels must differ by more
  double sigma = 1;                       ///< > 0
  double margin = 0;                      ///< by how much the better frame should lead
  double smoothness = 0.1;                ///< mu >= 0, weight of the first differences
  double slope = 1;                       ///< kappa, what a step of the labels is worth in scores
  MatrixView<const T> pair_weights = {};  ///< [window, n]: w of frame i and frame i + 1 + row, 1 where there are none
  GroupLossOptions<T> groups = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// One lag: adds the pairs' losses to the result and their derivatives by s_i, s_{i + lag} to `d`; counts the pairs.
template <class T>
double border_lag(const T* s, const T* y, const T* w, Index n, Index lag, T delta, T sigma, T margin, T* d, double& pairs) {
  using B = simd::Batch<T>;
  const B zero(T(0)), one(T(1)), minus(-sigma), distance(delta);
  double total = 0;
  B losses(zero), counts(zero);
  Index vectors = 0;
  const auto flush = [&] {
    total += static_cast<double>(simd::sum_lanes(losses));
    pairs += static_cast<double>(simd::sum_lanes(counts));
    losses = counts = zero;
  };
  simd::for_each_vector<T, simd::DefaultArch>(n - lag, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B step = load(y + i) - load(y + i + lag);  // 0 behind the end: no pair
    const auto border = xsimd::abs(step) > distance;
    const B sign = xsimd::select(step > zero, one, -one);
    const auto f = simd::logistic(B(minus * (sign * (load(s + i) - load(s + i + lag)) - B(margin))));
    const B weight = w != nullptr ? load(w + i) : one;
    losses = losses + xsimd::select(border, weight * f.softplus, zero);
    counts = counts + xsimd::select(border, one, zero);
    const B slope = xsimd::select(border, minus * sign * weight * f.sigmoid, zero);
    store(d + i, load(d + i) + slope);
    store(d + i + lag, load(d + i + lag) - slope);  // after the first: they may overlap
    if (++vectors % 64 == 0) flush();
  });
  flush();
  return total;
}

template <class T>
GroupLoss border_pairwise(const char* name, VectorView<const T> scores, VectorView<const T> labels, IndexView offsets,
                          const BorderPairwiseOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_size(name, "labels", labels, scores.size());
  check_finite(name, "labels", labels);
  check_option(name, "window", o.window >= 1, "window >= 1", static_cast<double>(o.window));
  check_option(name, "delta", o.delta >= 0 && o.delta <= 1e30, "0 <= delta <= 1e30", o.delta);
  check_option(name, "sigma", o.sigma > 0 && o.sigma <= 1e30, "0 < sigma <= 1e30", o.sigma);
  check_option(name, "margin", std::abs(o.margin) <= 1e30, "a finite margin", o.margin);
  check_option(name, "smoothness", o.smoothness >= 0 && o.smoothness <= 1e30, "0 <= smoothness <= 1e30", o.smoothness);
  check_option(name, "slope", std::abs(o.slope) <= 1e30, "a finite slope", o.slope);
  if (!o.pair_weights.empty()) check_shape(name, "pair_weights", o.pair_weights, o.window, scores.size());
  for (Index r = 0; r < o.pair_weights.rows(); ++r)
    check_finite(name, "pair_weights", VectorView<const T>(o.pair_weights.row(r), o.pair_weights.cols()));
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [](Index, Index n) { return n >= 2; },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        const T* const s = scores.data() + begin;
        const T* const y = labels.data() + begin;
        T* const d = scratch.take<T>(n);
        std::fill_n(d, n, T(0));
        double sum = 0, pairs = 0;
        for (Index lag = 1; lag <= std::min(o.window, n - 1); ++lag) {
          const T* const w = o.pair_weights.empty() ? nullptr : o.pair_weights.row(lag - 1) + begin;
          sum +=
              border_lag(s, y, w, n, lag, static_cast<T>(o.delta), static_cast<T>(o.sigma), static_cast<T>(o.margin), d, pairs);
        }
        const double each = pairs > 0 ? 1 / pairs : 0, unit = o.smoothness / static_cast<double>(n - 1);
        double rough = 0;
        const auto miss = [&](Index t) {
          return (static_cast<double>(s[t + 1]) - static_cast<double>(s[t])) -
                 o.slope * (static_cast<double>(y[t + 1]) - static_cast<double>(y[t]));
        };
        for (Index t = 0; t + 1 < n; ++t) rough += miss(t) * miss(t);
        if (gradient != nullptr) {
          double before = 0;
          for (Index t = 0; t < n; ++t) {
            const double after = t + 1 < n ? 2 * unit * miss(t) : 0;
            gradient[t] += static_cast<T>(scale * (each * static_cast<double>(d[t]) + before - after));
            before = after;
          }
        }
        return each * sum + unit * rough;
      });
}

}  // namespace detail

/// The loss of `scores [n]` with `labels [n]`, any finite numbers, in order of time within groups of `offsets [G + 1]` (empty:
/// one). Throws `Error`; see above.
template <Real T>
GroupLoss border_pairwise_loss(VectorView<const T> scores, VectorView<const T> labels, IndexView offsets,
                               const BorderPairwiseOptions<T>& options, Workspace& ws) {
  return detail::border_pairwise<T>("border_pairwise_loss", scores, labels, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss border_pairwise_loss_value_and_grad(VectorView<const T> scores, VectorView<const T> labels, IndexView offsets,
                                              const BorderPairwiseOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::border_pairwise<T>("border_pairwise_loss_value_and_grad", scores, labels, offsets, options, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
