/// @file   recops/ranking/ranknet.hpp
/// @brief  RankNet and LambdaRank: all pairs of a group in which one item is more relevant than the other.
///
///     RankNet      L_g = Σ_{y_i > y_j} softplus(-sigma (s_i - s_j))                          or the mean over those pairs
///     LambdaRank   L_g = Σ_{y_i > y_j} w_ij softplus(-sigma (s_i - s_j))
///                  w_ij = |gain_i - gain_j| |discount_i - discount_j| / ideal DCG@k          what swapping them changes NDCG@k by
///
/// with gain 2^y - 1 or y, discount 1 / log2(1 + rank) up to rank k and 0 beyond, ranks by the current scores (ties: the lowest
/// index first). The weights w are constants to the gradient.
///
/// Shapes      scores, relevance [n]   offsets [G + 1], or none for one group
/// Edge cases  a group whose items are all equally relevant has no loss.
/// NaN         a NaN or infinite score makes the loss and the gradient of its group NaN.
/// Precision   sums in double beyond 64 terms; gradients of a group sum to 0 up to rounding.
/// Cost        a sort by relevance, then blocks of pairs: RankNet by simd/pair_sums.hpp (no exponential a pair), LambdaRank by
///             simd/lambda_sums.hpp, only pairs with an item among the first k: O(k n).  Scratch some 80 n bytes of the largest group.
/// Errors      Error if sizes or offsets disagree, a relevance is not finite (LambdaRank: < 0, or > 100 with Gain::exp2), sigma <= 0
///             or k < 1.
/// Gradient    of the scores; adds.
/// Reference   Burges et al., ICML 2005 (RankNet); Burges, MSR-TR-2010-82 (LambdaRank).
#pragma once
#include <recops/metrics/ndcg.hpp>
#include <recops/ranking/group_loss.hpp>
#include <recops/simd/lambda_sums.hpp>

namespace recops {

/// Options of `ranknet_loss`.
template <class T>
struct RankNetOptions {
  double sigma = 1;              ///< > 0
  bool mean_over_pairs = false;  ///< divide a group's loss by its number of pairs, so that long lists do not count for more
  GroupLossOptions<T> groups = {};
};

/// Options of `lambdarank_loss`.
template <class T>
struct LambdaRankOptions {
  double sigma = 1;                             ///< > 0
  Index k = std::numeric_limits<Index>::max();  ///< of the NDCG@k that weighs the pairs, >= 1
  Gain gain = Gain::exp2;
  GroupLossOptions<T> groups = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// Calls `rectangle(first, middle, last)` so that every pair of items of different blocks is met once, as (i in [first, middle),
/// j in [middle, last)). Blocks [begin[b], begin[b + 1]) are cut in halves of about as many items, and each half again.
template <class F>
void pairs_of_blocks(const Index* begin, Index low, Index high, F&& rectangle) {
  if (high - low < 2) return;
  const Index half = (begin[low] + begin[high]) / 2;
  Index middle = std::lower_bound(begin + low + 1, begin + high - 1, half) - begin;
  if (middle > low + 1 && half - begin[middle - 1] < begin[middle] - half) --middle;
  rectangle(begin[low], begin[middle], begin[high]);
  pairs_of_blocks(begin, low, middle, rectangle);
  pairs_of_blocks(begin, middle, high, rectangle);
}

/// Where runs of equal numbers begin, and their end; returns how many there are.
template <class T>
Index equal_runs(const T* x, Index n, Index* begin) {
  Index runs = 0;
  for (Index i = 0; i < n; ++i)
    if (i == 0 || x[i] != x[i - 1]) begin[runs++] = i;
  begin[runs] = n;
  return runs;
}

template <class T>
bool all_equal(const T* x, Index n) {
  return std::all_of(x, x + n, [first = x[0]](T v) { return v == first; });
}

template <class T>
GroupLoss ranknet(const char* name, VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                  const RankNetOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_size(name, "relevance", relevance, scores.size());
  check_finite(name, "relevance", relevance);
  check_option(name, "sigma", o.sigma > 0 && o.sigma <= 1e30, "0 < sigma <= 1e30", o.sigma);
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [&](Index begin, Index n) { return !all_equal(relevance.data() + begin, n); },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        std::int32_t* const order = scratch.take<std::int32_t>(n);
        T* const graded = scratch.take<T>(n);
        simd::argsort<T>(relevance.data() + begin, n, Order::descending, order, graded, scratch);
        Index* const blocks = scratch.take<Index>(n + 1);
        const Index runs = equal_runs(graded, n, blocks);
        T* const sorted = graded;  // from here on the scores, most relevant first
        for (Index i = 0; i < n; ++i) sorted[i] = scores[begin + order[i]];
        const auto [least, most] = simd::min_max<T>(sorted, n);
        const auto how = simd::pair_scores<T>(static_cast<T>(o.sigma), least, most, least, most);
        T* const high = scratch.take<T>(n);
        T* const low = scratch.take<T>(n);
        simd::prepare_pair_scores<T>(sorted, n, how, -1, high);
        simd::prepare_pair_scores<T>(sorted, n, how, 1, low);
        double* const won = gradient != nullptr ? scratch.take<double>(2 * n) : nullptr;
        double* const lost = gradient != nullptr ? won + n : nullptr;
        if (gradient != nullptr) std::fill_n(won, 2 * n, 0.0);
        double sum = 0, pairs = 0;
        pairs_of_blocks(blocks, 0, runs, [&](Index first, Index middle, Index last) {
          pairs += static_cast<double>(middle - first) * static_cast<double>(last - middle);
          sum += simd::pair_sums<simd::PairLoss::logistic, T>(high + first, middle - first, low + middle, last - middle, how,
                                                              gradient != nullptr ? won + first : nullptr,
                                                              gradient != nullptr ? lost + middle : nullptr);
        });
        const double unit = o.mean_over_pairs ? 1 / pairs : 1, step = scale * o.sigma * unit;
        for (Index i = 0; i < n && gradient != nullptr; ++i) gradient[order[i]] += static_cast<T>(step * (lost[i] - won[i]));
        return unit * sum;
      });
}

/// A selection of a group's items, most relevant first, as the pair sums read them.
template <class T>
struct LambdaItems {
  T *score, *gain, *discount;
  double *won, *lost;
  std::int32_t* index;
  Index size = 0;
  LambdaItems(Index n, Workspace& ws)
      : score(ws.take<T>(n)),
        gain(ws.take<T>(n)),
        discount(ws.take<T>(n)),
        won(ws.take<double>(n)),
        lost(ws.take<double>(n)),
        index(ws.take<std::int32_t>(n)) {}
  void add(T s, T g, T d, std::int32_t i) {
    score[size] = s;
    gain[size] = g;
    discount[size] = d;
    won[size] = lost[size] = 0;
    index[size++] = i;
  }
  simd::RankedItems<T> items(Index first, Index count) const { return {score + first, gain + first, discount + first, count}; }
};

template <class T>
double lambdarank_of(const T* scores, const T* relevance, Index n, const LambdaRankOptions<T>& o, double scale, T* gradient,
                     Workspace& ws) {
  const Index k = std::min(o.k, n);
  std::int32_t* const rank = ws.take<std::int32_t>(n);
  simd::ranks<T>(scores, n, Order::descending, rank, ws);
  std::int32_t* const order = ws.take<std::int32_t>(n);
  T* const graded = ws.take<T>(n);
  simd::argsort<T>(relevance, n, Order::descending, order, graded, ws);
  double* const discount = ws.take<double>(k);
  double ideal = 0;
  for (Index p = 0; p < k; ++p) {
    discount[p] = 1 / std::log2(static_cast<double>(p + 2));
    ideal += gain_of(graded[p], o.gain) * discount[p];
  }
  LambdaItems<T> top(k, ws), rest(n - k, ws);  // shown within k, and not
  for (Index i = 0; i < n; ++i) {
    const std::int32_t at = order[i];
    const T gain = static_cast<T>(gain_of(graded[i], o.gain) / ideal);
    if (rank[at] < k)
      top.add(scores[at], gain, static_cast<T>(discount[rank[at]]), at);
    else
      rest.add(scores[at], gain, T(0), at);
  }
  Index* const blocks = ws.take<Index>(k + 1);
  const Index runs = equal_runs(top.gain, k, blocks);
  const T sigma = static_cast<T>(o.sigma);
  const auto [lowest, highest] = simd::min_max<T>(scores, n);
  const T least = lowest, most = highest;  // names that a lambda may capture
  double sum = 0;
  pairs_of_blocks(blocks, 0, runs, [&](Index first, Index middle, Index last) {
    sum += simd::lambda_sums<T>(top.items(first, middle - first), top.items(middle, last - middle), sigma, least, most,
                                top.won + first, top.lost + middle);
  });
  Index above = 0, from = 0;  // of the rest: more relevant than the block, and not more relevant
  for (Index b = 0; b < runs; ++b) {
    const Index first = blocks[b], count = blocks[b + 1] - first;
    while (above < rest.size && rest.gain[above] > top.gain[first]) ++above;
    from = std::max(from, above);
    while (from < rest.size && rest.gain[from] >= top.gain[first]) ++from;
    sum += simd::lambda_sums<T>(top.items(first, count), rest.items(from, rest.size - from), sigma, least, most, top.won + first,
                                rest.lost + from);
    sum += simd::lambda_sums<T>(rest.items(0, above), top.items(first, count), sigma, least, most, rest.won, top.lost + first);
  }
  if (gradient != nullptr) {
    for (const LambdaItems<T>* const part : {&top, &rest})
      for (Index i = 0; i < part->size; ++i)
        gradient[part->index[i]] += static_cast<T>(scale * o.sigma * (part->lost[i] - part->won[i]));
  }
  return sum;
}

template <class T>
GroupLoss lambdarank(const char* name, VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                     const LambdaRankOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_size(name, "relevance", relevance, scores.size());
  check_option(name, "sigma", o.sigma > 0 && o.sigma <= 1e30, "0 < sigma <= 1e30", o.sigma);
  check_option(name, "k", o.k >= 1, "k >= 1", static_cast<double>(o.k));
  const T most = o.gain == Gain::exp2 ? T(100) : std::numeric_limits<T>::max();
  for (const T r : relevance)
    check_option(name, "relevance", r >= 0 && r <= most, o.gain == Gain::exp2 ? "0 <= relevance <= 100" : "finite relevance >= 0",
                 static_cast<double>(r));
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [&](Index begin, Index n) { return !all_equal(relevance.data() + begin, n); },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        return lambdarank_of(scores.data() + begin, relevance.data() + begin, n, o, scale, gradient, scratch);
      });
}

}  // namespace detail

/// RankNet over `scores [n]` and `relevance [n]`, any finite numbers, in groups of `offsets [G + 1]` (empty: one). Throws `Error`.
template <Real T>
GroupLoss ranknet_loss(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                       const RankNetOptions<T>& options, Workspace& ws) {
  return detail::ranknet<T>("ranknet_loss", scores, relevance, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss ranknet_loss_value_and_grad(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                                      const RankNetOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::ranknet<T>("ranknet_loss_value_and_grad", scores, relevance, offsets, options, dscores, ws);
}

/// LambdaRank over `scores [n]` and `relevance [n]` >= 0 in groups of `offsets [G + 1]` (empty: one). Throws `Error`; see above.
template <Real T>
GroupLoss lambdarank_loss(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                          const LambdaRankOptions<T>& options, Workspace& ws) {
  return detail::lambdarank<T>("lambdarank_loss", scores, relevance, offsets, options, {}, ws);
}

/// The same, and adds its gradient, with the weights of the pairs held fixed, to `dscores [n]`.
template <Real T>
GroupLoss lambdarank_loss_value_and_grad(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                                         const LambdaRankOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::lambdarank<T>("lambdarank_loss_value_and_grad", scores, relevance, offsets, options, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
