/// @file   recops/metrics/retrieval.hpp
/// @brief  What the first k of a list hold: recall@k, hit rate@k, precision@k, MRR@k, MAP@k, and the rank of one target.
///
///     recall@k = hits / positives      hit rate@k = [hits > 0]      precision@k = hits / k      MRR@k = 1 / rank of the first
///     MAP@k = Σ_{p<=k, positive at p} precision@p / min(positives, k)                           positive, 0 beyond k
///
/// Shapes      scores, labels [n]   offsets [G + 1]; every result is a mean over the groups
/// Edge cases  groups without positives are skipped and counted (precision: only empty groups).  k above the length of a group
///             means all of it; precision still divides by k.
/// Ties        averaged exactly over all orders by default (with a items above, t tied and p positives among them, q of the tied
///             within k: hit 1 - C(t-p, q) / C(t, q); reciprocal rank Σ_j C(t-j, p-1) / C(t, p) / (a + j)).  MAP is stable only.
/// NaN         `NanPolicy`, group by group.
/// Cost        O(n); scratch at most 36 bytes per entry of the largest group.
/// Errors      Error if sizes or offsets disagree, a label is neither 0 nor 1, or k < 1.
/// Reference   Voorhees 1999 (MRR); Manning, Raghavan and Schütze, Introduction to Information Retrieval, chapter 8.
#pragma once
#include <recops/metrics/ranked.hpp>

namespace recops {

struct RetrievalOptions {
  Index k = 10;  ///< positions shown, >= 1
  Ties ties = Ties::average;
  bool at_most_k = false;  ///< recall divides by min(positives, k), so that 1 can be reached
  NanPolicy nan = NanPolicy::invalid;
};

inline namespace RECOPS_ABI {

namespace detail {

enum class RetrievalMetric { recall, hit_rate, precision, mrr, map };

/// How a list is cut at k: what lies above the run of ties that the cut goes through, and that run.
struct Cut {
  Index hits = 0;     // positives above the run
  Index tied = 0;     // items in the run
  Index ties_in = 0;  // of which this many are within k
  Index tied_positives = 0;
  Index stable_hits = 0;  // positives among the first `ties_in` of the run, by index
};

template <class T>
Cut cut_at(VectorView<const T> scores, VectorView<const std::uint8_t> labels, Index k, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = scores.size();
  const VectorView<const T> numbers = without_nan(scores, ws);
  const T threshold = top_ranked(numbers, k, ws).score[k - 1];
  Cut cut;
  Index above = 0;
  for (Index i = 0; i < n; ++i) above += numbers[i] > threshold;
  cut.ties_in = k - above;
  for (Index i = 0; i < n; ++i) {
    const Index positive = labels[i];
    if (numbers[i] > threshold) {
      cut.hits += positive;
    } else if (numbers[i] == threshold) {
      if (cut.tied < cut.ties_in) cut.stable_hits += positive;
      cut.tied_positives += positive;
      ++cut.tied;
    }
  }
  return cut;
}

/// Positives within k: a mean for Ties::average.
inline double expected_hits(const Cut& cut, Ties ties) {
  const Index p = cut.tied_positives, q = cut.ties_in;
  double more = 0;
  switch (ties) {
    case Ties::average:
      more = static_cast<double>(p) * static_cast<double>(q) / static_cast<double>(cut.tied);
      break;
    case Ties::stable:
      more = static_cast<double>(cut.stable_hits);
      break;
    case Ties::pessimistic:
      more = static_cast<double>(std::max(Index{0}, q - (cut.tied - p)));
      break;
    case Ties::optimistic:
      more = static_cast<double>(std::min(p, q));
      break;
  }
  return static_cast<double>(cut.hits) + more;
}

/// The chance of at least one positive within k.
inline double hit_chance(const Cut& cut, Ties ties) {
  if (cut.hits > 0) return 1.0;
  if (ties != Ties::average) return expected_hits(cut, ties) > 0 ? 1.0 : 0.0;
  const Index others = cut.tied - cut.tied_positives;
  double none = 1;
  for (Index j = 0; j < cut.ties_in && none > 0; ++j) none *= static_cast<double>(others - j) / static_cast<double>(cut.tied - j);
  return 1.0 - none;
}

/// There is a positive.
template <class T>
double reciprocal_rank(VectorView<const T> scores, VectorView<const std::uint8_t> labels, Index k, Ties ties) {
  T best = -std::numeric_limits<T>::infinity();
  for (Index i = 0; i < scores.size(); ++i)
    if (labels[i] != 0 && scores[i] > best) best = scores[i];
  Index above = 0, tied = 0, positives = 0, before = 0;
  for (Index i = 0; i < scores.size(); ++i) {
    const T score = lowest_if_nan(scores[i]);
    above += score > best;
    if (score != best) continue;
    if (positives == 0 && labels[i] == 0) ++before;
    positives += labels[i];
    ++tied;
  }
  const auto of_rank = [k](Index rank) { return rank <= k ? 1.0 / static_cast<double>(rank) : 0.0; };
  switch (ties) {
    case Ties::stable:
      return of_rank(above + before + 1);
    case Ties::pessimistic:
      return of_rank(above + tied - positives + 1);
    case Ties::optimistic:
      return of_rank(above + 1);
    case Ties::average:
      break;
  }
  double sum = 0, chance = static_cast<double>(positives) / static_cast<double>(tied);  // that the first positive is j-th
  for (Index j = 1; j <= tied - positives + 1 && above + j <= k && chance > 0; ++j) {
    sum += chance * of_rank(above + j);
    if (j < tied) chance *= static_cast<double>(tied - j - positives + 1) / static_cast<double>(tied - j);
  }
  return sum;
}

template <class T>
double average_precision(VectorView<const T> scores, VectorView<const std::uint8_t> labels, Index k, Index positives, Index limit,
                         Workspace& ws) {
  const auto mark = ws.mark();
  const Ranked<T> top = top_ranked(without_nan(scores, ws), k, ws);
  double sum = 0;
  Index hits = 0;
  for (Index p = 0; p < k; ++p) {
    if (labels[top.index[p]] == 0) continue;
    ++hits;
    sum += static_cast<double>(hits) / static_cast<double>(p + 1);
  }
  return sum / static_cast<double>(std::min(positives, limit));
}

template <class T>
void add_retrieval(const char* operation, RetrievalMetric metric, VectorView<const T> scores,
                   VectorView<const std::uint8_t> labels, IndexView offsets, const RetrievalOptions& options, GroupMean& into,
                   Workspace& ws) {
  check_scored(operation, scores, labels);
  check_offsets(operation, "offsets", offsets, scores.size());
  check_option(operation, "k", options.k >= 1, "k >= 1", static_cast<double>(options.k));
  add_groups(offsets.size() - 1, into, ws, [&](Index g, Workspace& scratch) {
    const Index begin = offsets[g], n = offsets[g + 1] - begin, k = std::min(options.k, n);
    const VectorView<const T> s = scores.segment(begin, n);
    const VectorView<const std::uint8_t> y = labels.segment(begin, n);
    GroupValue group;
    if (options.nan == NanPolicy::invalid && has_nan(s)) {
      group.kind = GroupValue::Kind::nan;
      return group;
    }
    Index positives = 0;
    for (const std::uint8_t label : y) positives += label;
    if (n == 0 || (positives == 0 && metric != RetrievalMetric::precision)) return group;
    group.kind = GroupValue::Kind::valid;
    switch (metric) {
      case RetrievalMetric::recall:
        group.value = expected_hits(cut_at(s, y, k, scratch), options.ties) /
                      static_cast<double>(options.at_most_k ? std::min(positives, options.k) : positives);
        break;
      case RetrievalMetric::hit_rate:
        group.value = hit_chance(cut_at(s, y, k, scratch), options.ties);
        break;
      case RetrievalMetric::precision:
        group.value = expected_hits(cut_at(s, y, k, scratch), options.ties) / static_cast<double>(options.k);
        break;
      case RetrievalMetric::mrr:
        group.value = reciprocal_rank(s, y, options.k, options.ties);
        break;
      case RetrievalMetric::map:
        group.value = average_precision(s, y, k, positives, options.k, scratch);
        break;
    }
    return group;
  });
}

}  // namespace detail

/// Adds recall@k of the groups to `into`: the form for shards, which merge by `GroupMean::merge`.
template <Real T>
void add_recall_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                     const RetrievalOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_retrieval("recall_at_k", detail::RetrievalMetric::recall, scores, labels, offsets, options, into, ws);
}
/// Adds hit rate@k of the groups to `into`.
template <Real T>
void add_hit_rate_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                       const RetrievalOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_retrieval("hit_rate_at_k", detail::RetrievalMetric::hit_rate, scores, labels, offsets, options, into, ws);
}
/// Adds precision@k of the groups to `into`.
template <Real T>
void add_precision_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                        const RetrievalOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_retrieval("precision_at_k", detail::RetrievalMetric::precision, scores, labels, offsets, options, into, ws);
}
/// Adds the reciprocal ranks of the groups to `into`.
template <Real T>
void add_mrr(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
             const RetrievalOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_retrieval("mrr", detail::RetrievalMetric::mrr, scores, labels, offsets, options, into, ws);
}
/// Adds the average precisions @k of the groups to `into`. Throws Error unless `ties` is Ties::stable.
template <Real T>
void add_map_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                  const RetrievalOptions& options, GroupMean& into, Workspace& ws) {
  check_option("map_at_k", "ties", options.ties == Ties::stable, "Ties::stable, the only one defined here",
               static_cast<double>(static_cast<int>(options.ties)));
  detail::add_retrieval("map_at_k", detail::RetrievalMetric::map, scores, labels, offsets, options, into, ws);
}

/// Mean share of a group's positives within the first k.
template <Real T>
GroupResult recall_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                        const RetrievalOptions& options, Workspace& ws) {
  GroupMean mean;
  add_recall_at_k(scores, labels, offsets, options, mean, ws);
  return mean.result();
}
/// Share of groups with a positive within the first k.
template <Real T>
GroupResult hit_rate_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                          const RetrievalOptions& options, Workspace& ws) {
  GroupMean mean;
  add_hit_rate_at_k(scores, labels, offsets, options, mean, ws);
  return mean.result();
}
/// Mean share of positives among the first k.
template <Real T>
GroupResult precision_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                           const RetrievalOptions& options, Workspace& ws) {
  GroupMean mean;
  add_precision_at_k(scores, labels, offsets, options, mean, ws);
  return mean.result();
}
/// Mean reciprocal rank of the first positive, 0 beyond k.
template <Real T>
GroupResult mrr(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                const RetrievalOptions& options, Workspace& ws) {
  GroupMean mean;
  add_mrr(scores, labels, offsets, options, mean, ws);
  return mean.result();
}
/// Mean average precision @k. Throws Error unless `ties` is Ties::stable.
template <Real T>
GroupResult map_at_k(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                     const RetrievalOptions& options, Workspace& ws) {
  GroupMean mean;
  add_map_at_k(scores, labels, offsets, options, mean, ws);
  return mean.result();
}

/// The rank, from 1, of item `target` among `scores [n]`: leave-one-out evaluation against the whole catalogue. With
/// Ties::average a mean of ranks, so a multiple of one half. NaN ranks with minus infinity. O(n), no scratch.
/// Throws Error if the target is not in [0, n).
template <Real T>
double rank_of_target(VectorView<const T> scores, Index target, Ties ties = Ties::average) {
  check_size("rank_of_target", "scores", scores, any_size);
  check_option("rank_of_target", "target", target >= 0 && target < scores.size(), "the index of a score",
               static_cast<double>(target));
  const T own = detail::lowest_if_nan(scores[target]);
  Index above = 0, tied = 0, before = 0;
  for (Index i = 0; i < scores.size(); ++i) {
    const T score = detail::lowest_if_nan(scores[i]);
    above += score > own;
    tied += score == own;
  }
  for (Index i = 0; i < target; ++i) before += detail::lowest_if_nan(scores[i]) == own;
  const auto rank = static_cast<double>(1 + above);
  switch (ties) {
    case Ties::stable:
      return rank + static_cast<double>(before);
    case Ties::pessimistic:
      return rank + static_cast<double>(tied - 1);
    case Ties::optimistic:
      return rank;
    case Ties::average:
      break;
  }
  return rank + 0.5 * static_cast<double>(tied - 1);
}

/// The same among all items but `excluded` (what the user had before): indices that rise strictly and do not hold the target.
/// O(n + excluded). Throws Error otherwise.
template <Real T>
double rank_of_target(VectorView<const T> scores, Index target, IndexView excluded, Ties ties = Ties::average) {
  double rank = rank_of_target<T>(scores, target, ties);  // checks what the two have in common
  check_indices("rank_of_target", "excluded", excluded, scores.size());
  for (Index e = 0; e < excluded.size(); ++e) {
    const bool rises = e == 0 || excluded[e] > excluded[e - 1];
    if (!rises || excluded[e] == target) [[unlikely]]
      detail::fail_at("rank_of_target", "excluded", rises ? "indices other than the target" : "indices that rise", -1, e,
                      excluded[e]);
  }
  const T own = detail::lowest_if_nan(scores[target]);
  for (Index e = 0; e < excluded.size(); ++e) {
    const T score = detail::lowest_if_nan(scores[excluded[e]]);
    if (score > own) rank -= 1;
    if (score != own || ties == Ties::optimistic) continue;
    rank -= ties == Ties::average ? 0.5 : ties == Ties::pessimistic || excluded[e] < target ? 1 : 0;
  }
  return rank;
}

}  // namespace RECOPS_ABI
}  // namespace recops
