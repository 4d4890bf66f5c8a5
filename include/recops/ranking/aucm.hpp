/// @file   recops/ranking/aucm.hpp
/// @brief  AUC maximisation as a min-max problem (AUCM): class centres a, b to minimise and a dual alpha to maximise stand for what
///         pairs of different batches would say.
///
///     F = mean_P (s - a)² + mean_N (s - b)² + 2 alpha (margin + mean_N s - mean_P s) - alpha²              alpha >= 0
///
/// Step by descent in the scores' model and in a, b, and by ascent in alpha, then `alpha = max(0, alpha)`. At the optimum of the
/// three, F is the surrogate `AucSurrogate::aucm` (pairwise_auc.hpp), which has no state: use that unless batches hold few positives.
///
/// Shapes      scores, labels [n], one batch
/// Edge cases  a batch of one class has no loss: 0, gradients untouched.
/// NaN         makes the loss NaN, and the gradients of alpha, of its class's centre and of its own score.
/// Precision   sums in double.
/// Cost        O(n), two passes.
/// Errors      Error if sizes disagree, a label is neither 0 nor 1 or the margin is not finite.
/// Gradient    of the scores and of a, b, alpha; adds.
/// Reference   Yuan et al., Large-scale Robust Deep AUC Maximization, ICCV 2021, arXiv 2012.03173. Its first version is p (1 - p) F
///             with p the share of positives: `weighted`. Means are over the whole class, also where a score is 0.
#pragma once
#include <recops/ranking/pairwise_auc.hpp>

namespace recops {

/// What AUCM learns beside the model; also its gradient.
template <class T>
struct AucmState {
  T a = 0;      ///< centre of the positives
  T b = 0;      ///< centre of the negatives
  T alpha = 0;  ///< >= 0, how far the margin is missed
};

/// Options of `aucm_loss`.
struct AucmOptions {
  double margin = 1;      ///< between the classes, in units of the scores
  bool weighted = false;  ///< times p (1 - p), p the share of positives in the batch
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
GroupLoss aucm(const char* name, VectorView<const T> scores, VectorView<const std::uint8_t> labels, const AucmState<T>& state,
               const AucmOptions& o, VectorView<T> dscores, AucmState<T>* dstate) {
  check_size(name, "scores", scores, any_size);
  const Index n = scores.size();
  check_labels(name, labels, n);
  if (!dscores.empty()) check_size(name, "dscores", dscores, n);
  check_option(name, "margin", std::abs(o.margin) <= 1e30, "a finite margin", o.margin);
  const double a = static_cast<double>(state.a), b = static_cast<double>(state.b), alpha = static_cast<double>(state.alpha);
  double positives = 0, high = 0, low = 0, high_square = 0, low_square = 0;  // distances from the centres
  for (Index i = 0; i < n; ++i) {
    const double s = static_cast<double>(scores[i]), up = s - a, down = s - b;
    if (labels[i] != 0) {
      ++positives;
      high += up;
      high_square += up * up;
    } else {
      low += down;
      low_square += down * down;
    }
  }
  const double negatives = static_cast<double>(n) - positives;
  if (positives == 0 || negatives == 0) return {0, 0, 1};
  const double share = positives / static_cast<double>(n), scale = o.weighted ? share * (1 - share) : 1;
  high /= positives;
  low /= negatives;
  const double miss = o.margin + (low + b) - (high + a);
  if (!dscores.empty()) {
    const double up = 2 * scale / positives, down = 2 * scale / negatives;
    for (Index i = 0; i < n; ++i) {
      const double s = static_cast<double>(scores[i]);
      dscores[i] += static_cast<T>(labels[i] != 0 ? up * (s - a - alpha) : down * (s - b + alpha));
    }
  }
  if (dstate != nullptr) {
    dstate->a -= static_cast<T>(2 * scale * high);
    dstate->b -= static_cast<T>(2 * scale * low);
    dstate->alpha += static_cast<T>(2 * scale * (miss - alpha));
  }
  return {scale * (high_square / positives + low_square / negatives + 2 * alpha * miss - alpha * alpha), 1, 0};
}

}  // namespace detail

/// F of one batch. Throws `Error`; see above.
template <Real T>
GroupLoss aucm_loss(VectorView<const T> scores, VectorView<const std::uint8_t> labels, const AucmState<T>& state,
                    const AucmOptions& options = {}) {
  return detail::aucm<T>("aucm_loss", scores, labels, state, options, {}, nullptr);
}

/// The same, and adds its gradients to `dscores [n]` (unless empty) and `dstate`; that of alpha is to be ascended.
template <Real T>
GroupLoss aucm_loss_value_and_grad(VectorView<const T> scores, VectorView<const std::uint8_t> labels, const AucmState<T>& state,
                                   const AucmOptions& options, VectorView<T> dscores, AucmState<T>& dstate) {
  return detail::aucm<T>("aucm_loss_value_and_grad", scores, labels, state, options, dscores, &dstate);
}

}  // namespace RECOPS_ABI
}  // namespace recops
