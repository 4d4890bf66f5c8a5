/// @file   recops/ranking/hardest_pair.hpp
/// @brief  The loss of each group's hardest pair: its worst positive against its best negative (PDAOM).
///
///     beta = 0     L_g = exp(-(min_P s - max_N s))                      gradient to those two (the lowest index of equal ones)
///     beta > 0     L_g = softplus(-(p - q - margin))                    p = -1/beta log Σ_P exp(-beta s), a soft minimum,
///                                                                       q =  1/beta log Σ_N exp(beta s), a soft maximum
///
/// Shapes      scores, labels [n]   offsets [G + 1], or none for one group
/// Edge cases  a group of one class has no loss.
/// NaN         a NaN or infinite score makes the loss and the gradient of its group NaN.  With beta = 0 a pair more than 709 apart
///             the wrong way round loses infinity.
/// Cost        O(n); scratch some 20 bytes an entry of the largest group.  Threads: same bits.
/// Errors      Error if sizes or offsets disagree, a label is neither 0 nor 1, beta < 0 or an option is not finite.
/// Gradient    of the scores; adds.
/// Reference   PDAOM loss, arXiv 2304.09176 (beta = 0). The soft form is ours.
#pragma once
#include <recops/ranking/pairwise_auc.hpp>

namespace recops {

/// Options of `hardest_pair_loss`.
template <class T>
struct HardestPairOptions {
  double beta = 0;    ///< >= 0, sharpness of the soft extremes; 0: the extremes themselves
  double margin = 0;  ///< by how much the worst positive should lead (beta > 0)
  GroupLossOptions<T> groups = {};
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
double hardest_pair_of(const ClassScores<T>& p, const ClassScores<T>& n, double scale, T* gradient) {
  const Index i = std::min_element(p.score, p.score + p.size) - p.score,
              j = std::max_element(n.score, n.score + n.size) - n.score;
  const double loss = std::exp(static_cast<double>(n.score[j]) - static_cast<double>(p.score[i]));
  if (gradient != nullptr) {
    gradient[p.index[i]] -= static_cast<T>(scale * loss);
    gradient[n.index[j]] += static_cast<T>(scale * loss);
  }
  return loss;
}

/// weights = softmax(beta * scores) of the class; returns 1/beta log sum exp(beta * scores).
template <class T>
double soft_maximum(const ClassScores<T>& c, double beta, T* weights) {
  const ClassScores<T> scaled = [&] {
    ClassScores<T> s = c;
    s.score = weights;
    return s;
  }();
  simd::scale<T>(static_cast<T>(beta), c.score, weights, c.size);
  const double log_mean = log_mean_exp(scaled, T(1), weights);
  return (log_mean + std::log(static_cast<double>(c.size))) / beta;
}

template <class T>
GroupLoss hardest_pair(const char* name, VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                       const HardestPairOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_labels(name, labels, scores.size());
  check_option(name, "beta", o.beta >= 0 && o.beta <= 1e30, "0 <= beta <= 1e30", o.beta);
  check_option(name, "margin", std::abs(o.margin) <= 1e30, "a finite margin", o.margin);
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [&](Index begin, Index n) { return has_both_classes(labels.data() + begin, n); },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        ClassScores<T> p(n, scratch), q(n, scratch);
        split_by_label(scores.data() + begin, labels.data() + begin, n, p, q);
        if (o.beta == 0) return hardest_pair_of(p, q, scale, gradient);
        T* const high = scratch.take<T>(p.size);
        T* const low = scratch.take<T>(q.size);
        const double worst = soft_maximum(p, -o.beta, high), best = soft_maximum(q, o.beta, low), x = best + o.margin - worst;
        const double loss = std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
        if (gradient != nullptr) {
          const double slope = scale / (1 + std::exp(-x));
          for (Index i = 0; i < p.size; ++i) gradient[p.index[i]] -= static_cast<T>(slope * static_cast<double>(high[i]));
          for (Index j = 0; j < q.size; ++j) gradient[q.index[j]] += static_cast<T>(slope * static_cast<double>(low[j]));
        }
        return loss;
      });
}

}  // namespace detail

/// The loss of `scores [n]` with `labels [n]` of 0 or 1 in groups of `offsets [G + 1]` (empty: one group). Throws `Error`; see above.
template <Real T>
GroupLoss hardest_pair_loss(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                            const HardestPairOptions<T>& options, Workspace& ws) {
  return detail::hardest_pair<T>("hardest_pair_loss", scores, labels, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss hardest_pair_loss_value_and_grad(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                                           const HardestPairOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::hardest_pair<T>("hardest_pair_loss_value_and_grad", scores, labels, offsets, options, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
