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
/// Cost        O(n); scratch at most 48 bytes per entry of the largest group.
/// Errors      Error if sizes or offsets disagree, k < 1, or a relevance is negative or not finite (above 1000 with Gain::exp2).
/// Reference   Järvelin and Kekäläinen 2002; Burges et al. 2005 (2^rel - 1); McSherry and Najork 2008 (ties).
#pragma once
#include <cmath>
#include <recops/metrics/ranked.hpp>

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
  if (gain == Gain::linear) return r;
  return r < 1 ? std::expm1(r * 0.69314718055994530942) : std::exp2(r) - 1.0;  // what is relevant, however little, has a gain
}

template <class T, class L>
double dcg(VectorView<const T> scores, VectorView<const L> relevance, Index k, const NdcgOptions& options, const double* discount,
           Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = scores.size();
  const VectorView<const T> numbers = without_nan(scores, ws);
  const Ranked<T> top = top_ranked(numbers, k, ws);
  const auto gain = [&](Index item) { return gain_of(relevance[item], options.gain); };
  double sum = 0;
  if (options.ties == Ties::stable) {
    for (Index p = 0; p < k; ++p) sum += gain(top.index[p]) * discount[p];
    return sum;
  }
  double* const run = ws.take<double>(options.ties == Ties::average ? 0 : n);
  for (Index a = 0; a < k;) {
    const T score = top.score[a];
    Index ties = 0, b = a;
    double total = 0;
    const auto take = [&](Index item) {
      const double g = gain(item);
      if (options.ties != Ties::average) run[ties] = g;
      total += g;
      ++ties;
    };
    for (; b < k && top.score[b] == score; ++b) take(top.index[b]);
    if (b == k) {  // what ties with the last and was not selected has a higher index
      for (Index i = top.index[k - 1] + 1; i < n; ++i)
        if (numbers[i] == score) take(i);
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
  L* const best = ws.take<L>(k);
  if constexpr (std::is_floating_point_v<L>) {
    simd::top_k<L>(relevance.data(), relevance.size(), k, Order::descending, best, nullptr, ws);
  } else {  // bytes are counted
    Index counts[256] = {};
    for (const L r : relevance) ++counts[r];
    Index p = 0;
    for (int r = 255; r >= 0 && p < k; --r)
      for (Index i = 0; i < counts[r] && p < k; ++i) best[p++] = static_cast<L>(r);
  }
  double sum = 0;
  for (Index p = 0; p < k && best[p] > 0; ++p) sum += gain_of(best[p], gain) * discount[p];
  return sum;
}

template <class T, class L>
void add_ndcg_of(VectorView<const T> scores, VectorView<const L> relevance, IndexView offsets, const NdcgOptions& options,
                 GroupMean& into, Workspace& ws) {
  check_size("ndcg", "scores", scores, any_size);
  check_size("ndcg", "relevance", relevance, scores.size());
  check_countable("ndcg", scores.size());
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
