/// @file   recops/ranking/approx_ndcg.hpp
/// @brief  NDCG as a loss: a discounted gain over ranks that have a gradient.
///
///     L_g = -1/IDCG Σ_i gain_i / log2(1 + r_i)              gain 2^y - 1 or y;
///     IDCG of the group's own relevances, all places
///
/// `smooth_ndcg_loss` takes the ranks r (1 = best) from wherever they come:
/// soft_rank or gaussian_rank, whose backward takes the gradient on.
/// `approx_ndcg_loss` takes scores and uses sigmoid_rank: ApproxNDCG.
///
/// Shapes      scores or ranks, relevance [n]   offsets [G + 1], or none for
/// one group Edge cases  a group in which nothing is relevant has no loss. NaN
/// a NaN or infinite score makes the loss and the gradient of its group NaN.
/// Precision   sums in double; gradients of ApproxNDCG sum to 0 in each group
/// up to rounding. Cost        that of sigmoid_rank forward and backward: pairs
/// nearer than 18 temperatures.  Scratch some 60 n bytes of the largest group.
/// Errors      Error if sizes or offsets disagree, a relevance is negative or
/// not finite (above 100 with Gain::exp2), a rank is not positive
///             or the temperature is not in [1e-30, 1e30].
/// Gradient    of scores or ranks; adds.
/// Reference   Qin, Liu and Li, A general approximation framework for direct
/// optimization of IR measures, 2010.
#pragma once
#include <recops/metrics/ndcg.hpp>
#include <recops/ranking/group_loss.hpp>
#include <recops/ranking/smooth_rank.hpp>

namespace recops {

/// Options of `smooth_ndcg_loss` and `approx_ndcg_loss`.
template <class T>
struct SmoothNdcgOptions {
  double temperature = 1;  ///< > 0, of the sigmoids, in units of the scores
                           ///< (approx_ndcg_loss only)
  Gain gain = Gain::exp2;
  GroupLossOptions<T> groups = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// Loss of one group, whose best place is 1; adds its gradient by the ranks.
template <class T>
double ndcg_of_ranks(const T* ranks, const T* relevance, Index n, Gain gain, double scale, T* dranks, Workspace& ws) {
  const auto mark = ws.mark();
  T* const graded = ws.take<T>(n);
  std::int32_t* const order = ws.take<std::int32_t>(n);
  simd::argsort<T>(relevance, n, Order::descending, order, graded, ws);
  double ideal = 0, sum = 0;
  for (Index p = 0; p < n && graded[p] > 0; ++p) ideal += gain_of(graded[p], gain) / std::log2(static_cast<double>(p + 2));
  constexpr double log_2 = 0.69314718055994530942;
  for (Index i = 0; i < n; ++i) {
    if (relevance[i] == 0) continue;
    const double r = 1 + static_cast<double>(ranks[i]), log_r = std::log(r), worth = gain_of(relevance[i], gain) / ideal * log_2;
    sum -= worth / log_r;
    if (dranks != nullptr) dranks[i] += static_cast<T>(scale * worth / (r * log_r * log_r));
  }
  return sum;
}

template <class T>
void check_relevance(const char* name, VectorView<const T> relevance, Index n, Gain gain) {
  check_size(name, "relevance", relevance, n);
  const T most = gain == Gain::exp2 ? T(100) : std::numeric_limits<T>::max();
  for (const T r : relevance)
    check_option(name, "relevance", r >= 0 && r <= most, gain == Gain::exp2 ? "0 <= relevance <= 100" : "finite relevance >= 0",
                 static_cast<double>(r));
}

template <class T>
bool any_relevant(VectorView<const T> relevance, Index begin, Index n) {
  return std::any_of(relevance.begin() + begin, relevance.begin() + begin + n, [](T r) { return r > 0; });
}

template <class T>
GroupLoss smooth_ndcg(const char* name, VectorView<const T> ranks, VectorView<const T> relevance, IndexView offsets,
                      const SmoothNdcgOptions<T>& o, VectorView<T> dranks, Workspace& ws) {
  const Groups groups = check_groups(name, ranks, offsets, o.groups, dranks);
  check_relevance(name, relevance, ranks.size(), o.gain);
  for (const T r : ranks) check_option(name, "ranks", !(r <= 0), "ranks above 0", static_cast<double>(r));
  return sum_groups(
      groups, ranks, o.groups, dranks, ws, [&](Index begin, Index n) { return any_relevant(relevance, begin, n); },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        return ndcg_of_ranks(ranks.data() + begin, relevance.data() + begin, n, o.gain, scale, gradient, scratch);
      });
}

template <class T>
GroupLoss approx_ndcg(const char* name, VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                      const SmoothNdcgOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_relevance(name, relevance, scores.size(), o.gain);
  check_option(name, "temperature", o.temperature >= 1e-30 && o.temperature <= 1e30, "1e-30 <= temperature <= 1e30",
               o.temperature);
  const SmoothRankOptions descending{.order = Order::descending, .tau = o.temperature};
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [&](Index begin, Index n) { return any_relevant(relevance, begin, n); },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        const VectorView<const T> s(scores.data() + begin, n);
        const VectorView<T> ranks = scratch.vector<T>(n), dranks = scratch.vector<T>(gradient != nullptr ? n : 0);
        sigmoid_rank<T>(s, {}, descending, ranks, scratch);
        std::fill(dranks.begin(), dranks.end(), T(0));
        const double loss = ndcg_of_ranks<T>(ranks.data(), relevance.data() + begin, n, o.gain, scale,
                                             gradient != nullptr ? dranks.data() : nullptr, scratch);
        if (gradient != nullptr) sigmoid_rank_backward<T>(s, {}, descending, dranks, VectorView<T>(gradient, n), scratch);
        return loss;
      });
}

}  // namespace detail

/// The loss of smooth `ranks [n]` > 0, 1 the best, under `relevance [n]` >= 0
/// in groups of `offsets [G + 1]` (empty: one). Throws `Error`; see above.
template <Real T>
GroupLoss smooth_ndcg_loss(VectorView<const T> ranks, VectorView<const T> relevance, IndexView offsets,
                           const SmoothNdcgOptions<T>& options, Workspace& ws) {
  return detail::smooth_ndcg<T>("smooth_ndcg_loss", ranks, relevance, offsets, options, {}, ws);
}

/// The same, and adds its gradient by the ranks to `dranks [n]`.
template <Real T>
GroupLoss smooth_ndcg_loss_value_and_grad(VectorView<const T> ranks, VectorView<const T> relevance, IndexView offsets,
                                          const SmoothNdcgOptions<T>& options, VectorView<T> dranks, Workspace& ws) {
  return detail::smooth_ndcg<T>("smooth_ndcg_loss_value_and_grad", ranks, relevance, offsets, options, dranks, ws);
}

/// ApproxNDCG of `scores [n]` under `relevance [n]` >= 0 in groups of `offsets
/// [G + 1]` (empty: one). Throws `Error`; see above.
template <Real T>
GroupLoss approx_ndcg_loss(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                           const SmoothNdcgOptions<T>& options, Workspace& ws) {
  return detail::approx_ndcg<T>("approx_ndcg_loss", scores, relevance, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss approx_ndcg_loss_value_and_grad(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                                          const SmoothNdcgOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::approx_ndcg<T>("approx_ndcg_loss_value_and_grad", scores, relevance, offsets, options, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
