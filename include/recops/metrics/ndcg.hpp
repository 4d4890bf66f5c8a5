/// @file   recops/metrics/ndcg.hpp
/// @brief  NDCG@k: how much of the best possible relevance is shown near the top, averaged over requests.
///
///     DCG@k = Σ_{p=1..k} gain(rel at position p) / log2(1 + p)        NDCG@k = DCG@k / (DCG@k of the ideal order)
///
/// Shapes      scores, relevance [n] (float, double, or uint8 clicks)   offsets [G + 1]
/// Edge cases  k above the length of a group means all of it.  A group without relevance has no ideal: `NdcgOptions::no_ideal`.
/// Ties        averaged exactly over all orders by default: a run at positions [a, b) gives its mean gain to each of them.
/// NaN         `NanPolicy`, group by group.
/// Precision   doubles.  Same bits for any number of threads.
/// Cost        O(n + k log k) where k is small, else a radix sort; scratch at most 48 bytes per entry of the largest group.
/// Errors      Error if sizes or offsets disagree, k < 1, or a relevance is negative or not finite (above 1000 with Gain::exp2).
/// Reference   Järvelin and Kekäläinen 2002; Burges et al. 2005 (2^rel - 1); McSherry and Najork 2008 (ties).
#pragma once
#include <cmath>
#include <recops/metrics/common.hpp>

namespace recops {

/// What a relevance is worth.
enum class Gain {
  exp2,    ///< 2^rel - 1: grades
  linear,  ///< rel: counts, amounts, clicks
};

/// What a group counts as in which nothing is relevant.
enum class NoIdeal {
  skip,  ///< left out of the mean and counted
  zero,  ///< 0
  one,   ///< 1: nothing could be better
};

struct NdcgOptions {
  Index k = 10;  ///< positions shown, >= 1
  Gain gain = Gain::exp2;
  Ties ties = Ties::average;
  NoIdeal no_ideal = NoIdeal::skip;
  NanPolicy nan = NanPolicy::invalid;
};

inline namespace RECOPS_ABI {

namespace detail {

template <class L>
double gain_of(L relevance, Gain gain) {
  const auto r = static_cast<double>(relevance);
  return gain == Gain::linear ? r : std::exp2(r) - 1.0;
}

template <class T, class L>
double dcg(VectorView<const T> scores, VectorView<const L> relevance, Index k, const NdcgOptions& options, const double* discount,
           Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = scores.size();
  const TopRanked<T> top = top_ranked(scores, k, ws);
  const auto gain = [&](Index position) {
    return gain_of(relevance[static_cast<Index>(top.entries[position].index)], options.gain);
  };
  double sum = 0;
  if (options.ties == Ties::stable) {
    for (Index p = 0; p < k; ++p) sum += gain(p) * discount[p];
    return sum;
  }
  double* const run = ws.take<double>(options.ties == Ties::average ? 0 : n);
  for (Index a = 0; a < k;) {
    const auto key = top.entries[a].key;
    Index ties = 0, b = a;
    double total = 0;
    const auto take = [&](Index position) {
      const double g = gain(position);
      if (options.ties != Ties::average) run[ties] = g;
      total += g;
      ++ties;
    };
    for (; b < top.sorted && top.entries[b].key == key; ++b) take(b);
    if (b == top.sorted) {  // what ties with the last of the sorted may lie among the others
      for (Index i = b; i < n; ++i)
        if (top.entries[i].key == key) take(i);
    }
    const Index shown = std::min(ties, k - a);
    if (options.ties == Ties::average) {
      double discounts = 0;
      for (Index p = a; p < a + shown; ++p) discounts += discount[p];
      sum += total / static_cast<double>(ties) * discounts;
    } else {
      if (options.ties == Ties::optimistic)
        std::sort(run, run + ties, [](auto x, auto y) { return x > y; });
      else
        std::sort(run, run + ties);
      for (Index p = 0; p < shown; ++p) sum += run[p] * discount[a + p];
    }
    a += ties;
  }
  return sum;
}

template <class L>
double ideal_dcg(VectorView<const L> relevance, Index k, Gain gain, const double* discount, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = relevance.size();
  L* const best = ws.take<L>(n);
  std::copy(relevance.begin(), relevance.end(), best);
  if (k < n) std::nth_element(best, best + (k - 1), best + n, [](auto x, auto y) { return x > y; });
  std::sort(best, best + k, [](auto x, auto y) { return x > y; });
  double sum = 0;
  for (Index p = 0; p < k && best[p] > 0; ++p) sum += gain_of(best[p], gain) * discount[p];
  return sum;
}

template <class T, class L>
void add_ndcg_of(VectorView<const T> scores, VectorView<const L> relevance, IndexView offsets, const NdcgOptions& options,
                 GroupMean& into, Workspace& ws) {
  check_size("ndcg", "scores", scores, any_size);
  check_size("ndcg", "relevance", relevance, scores.size());
  check_option("ndcg", "scores", scores.size() < Index{0xFFFFFFFF}, "fewer than 2^32 - 1 scores",
               static_cast<double>(scores.size()));
  check_offsets("ndcg", "offsets", offsets, scores.size());
  check_option("ndcg", "k", options.k >= 1, "k >= 1", static_cast<double>(options.k));
  if constexpr (std::is_floating_point_v<L>) {
    const L most = options.gain == Gain::exp2 ? L{1000} : std::numeric_limits<L>::max();
    for (const L r : relevance) {
      if (!(r >= 0 && r <= most)) [[unlikely]]
        fail_number("ndcg", "relevance", options.gain == Gain::exp2 ? "0 <= relevance <= 1000" : "finite relevance >= 0",
                    static_cast<double>(r));
    }
  }
  Index longest = 0;
  for (Index g = 0; g + 1 < offsets.size(); ++g) longest = std::max(longest, offsets[g + 1] - offsets[g]);
  const auto mark = ws.mark();
  const Index table = std::min(options.k, longest);
  double* const discount = ws.take<double>(table);
  for (Index p = 0; p < table; ++p) discount[p] = 1.0 / std::log2(static_cast<double>(p + 2));

  add_groups(offsets.size() - 1, into, ws, [&](Index g, Workspace& scratch) {
    const Index begin = offsets[g], n = offsets[g + 1] - begin, k = std::min(options.k, n);
    const VectorView<const T> s = scores.segment(begin, n);
    const VectorView<const L> r = relevance.segment(begin, n);
    GroupValue group;
    if (options.nan == NanPolicy::invalid && has_nan(s)) {
      group.kind = GroupValue::Kind::nan;
      return group;
    }
    const double ideal = n == 0 ? 0.0 : ideal_dcg(r, k, options.gain, discount, scratch);
    if (ideal > 0) {
      group.kind = GroupValue::Kind::valid;
      group.value = dcg(s, r, k, options, discount, scratch) / ideal;
    } else if (n > 0 && options.no_ideal != NoIdeal::skip) {
      group.kind = GroupValue::Kind::valid;
      group.value = options.no_ideal == NoIdeal::one ? 1.0 : 0.0;
    }
    return group;
  });
}

}  // namespace detail

/// Adds the groups to `into`: the form for shards, which merge by `GroupMean::merge`.
template <Real T>
void add_ndcg(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets, const NdcgOptions& options,
              GroupMean& into, Workspace& ws) {
  detail::add_ndcg_of(scores, relevance, offsets, options, into, ws);
}
/// The same for clicks or small grades in bytes.
template <Real T>
void add_ndcg(VectorView<const T> scores, VectorView<const std::uint8_t> relevance, IndexView offsets, const NdcgOptions& options,
              GroupMean& into, Workspace& ws) {
  detail::add_ndcg_of(scores, relevance, offsets, options, into, ws);
}

/// Mean NDCG@k over groups.
template <Real T>
GroupResult ndcg(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets, const NdcgOptions& options,
                 Workspace& ws) {
  GroupMean mean;
  detail::add_ndcg_of(scores, relevance, offsets, options, mean, ws);
  return mean.result();
}
/// The same for clicks or small grades in bytes.
template <Real T>
GroupResult ndcg(VectorView<const T> scores, VectorView<const std::uint8_t> relevance, IndexView offsets,
                 const NdcgOptions& options, Workspace& ws) {
  GroupMean mean;
  detail::add_ndcg_of(scores, relevance, offsets, options, mean, ws);
  return mean.result();
}

}  // namespace RECOPS_ABI
}  // namespace recops
