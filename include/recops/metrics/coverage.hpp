/// @file   recops/metrics/coverage.hpp
/// @brief  What a recommender shows over many lists: catalogue coverage, entropy and Gini index of exposure; and how many of the
///         categories one list shows.
///
///     coverage = items shown at least once / items      entropy = -Σ_i q_i log q_i,  q_i = share of the exposure of item i
///     Gini = Σ_i (2 i - n - 1) x_(i) / (n Σ x)          with the exposures x in ascending order, i from 1: 0 equal, near 1 few
///
/// Shapes      items [total]: indices of what was shown, all lists in a row; -1 stands for no item (padding)
/// Edge cases  nothing shown: entropy and Gini are not valid; an empty catalogue: nothing is.
/// Precision   exposures are 64-bit counts, so shards merge exactly; entropy and Gini sum in two doubles.
/// Cost        O(total) to add, O(N) for the results (Gini O(N log N), scratch 8 N bytes).
/// Errors      Error if an index lies outside the catalogue.
/// Reference   Herlocker et al. 2004 (coverage); Fleder and Hosanagar 2009 (Gini).
#pragma once
#include <cmath>
#include <recops/metrics/common.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// How often every item of a catalogue was shown: add lists, merge shards, ask.
class ExposureCounts {
 public:
  /// A catalogue of `items` items.
  explicit ExposureCounts(Index items) : counts_(checked_size("ExposureCounts", "items", items), 0) {}

  /// Counts what was shown, one entry per impression.
  void add(IndexView items) {
    detail::check_items("ExposureCounts::add", "items", items, counts_.size());
    for (Index i = 0; i < items.size(); ++i)
      if (items[i] >= 0) ++counts_[items[i]];
  }
  /// Throws Error if the other's catalogue has another size.
  void merge(const ExposureCounts& other) {
    check_option("ExposureCounts::merge", "items", other.counts_.size() == counts_.size(), "catalogues of the same size",
                 static_cast<double>(other.counts_.size()));
    for (Index i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  }
  /// Impressions of every item `[N]`.
  VectorView<const std::uint64_t> counts() const { return counts_; }
  /// Impressions in all.
  std::uint64_t total() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t c : counts_) sum += c;
    return sum;
  }

  /// Share of the catalogue that was shown at least once.
  MetricValue coverage() const {
    if (counts_.empty()) return {};
    Index shown = 0;
    for (const std::uint64_t c : counts_) shown += c > 0;
    return {static_cast<double>(shown) / static_cast<double>(counts_.size()), true};
  }
  /// Entropy of exposure in nats: log N where all items are shown alike, 0 where it is always the same one.
  MetricValue entropy() const {
    const std::uint64_t all = total();
    if (all == 0) return {};
    MergeableSum sum;
    for (const std::uint64_t c : counts_) {
      const double share = static_cast<double>(c) / static_cast<double>(all);
      if (c > 0) sum.add(-share * std::log(share));
    }
    return {std::max(0.0, sum.value()), true};
  }
  /// Gini index of exposure, in [0, 1 - 1/N].
  MetricValue gini(Workspace& ws) const {
    const std::uint64_t all = total();
    if (all == 0) return {};
    const auto mark = ws.mark();
    const Index n = counts_.size();
    std::uint64_t* const sorted = ws.take<std::uint64_t>(n);
    std::copy(counts_.begin(), counts_.end(), sorted);
    std::sort(sorted, sorted + n);
    MergeableSum sum;
    for (Index i = 0; i < n; ++i) sum.add(static_cast<double>(2 * i + 1 - n) * static_cast<double>(sorted[i]));
    return {sum.value() / (static_cast<double>(n) * static_cast<double>(all)), true};
  }

 private:
  Vector<std::uint64_t> counts_;
};

/// Adds to `into`, for every list, the distinct categories it shows by all there are: the form for shards.
/// `category_of [N]` gives the category, from 0 to below `categories`, of every item; `items [total]` with `offsets [R + 1]` are
/// the lists, -1 for no item. Lists without items are skipped and counted. O(total + categories / 64) per list.
/// Throws Error if categories, items or offsets do not fit.
inline void add_category_coverage(IndexView category_of, Index categories, IndexView items, IndexView offsets, GroupMean& into,
                                  Workspace& ws) {
  check_option("category_coverage", "categories", categories >= 1, "categories >= 1", static_cast<double>(categories));
  check_indices("category_coverage", "category_of", category_of, categories);
  detail::check_items("category_coverage", "items", items, category_of.size());
  check_offsets("category_coverage", "offsets", offsets, items.size());
  detail::add_groups(offsets.size() - 1, into, ws, [&](Index g, Workspace& scratch) {
    detail::GroupValue group;
    const Index words = (categories + 63) / 64;
    std::uint64_t* const seen = scratch.take<std::uint64_t>(words);
    std::fill_n(seen, words, std::uint64_t{0});
    Index distinct = 0;
    for (Index i = offsets[g]; i < offsets[g + 1]; ++i) {
      if (items[i] < 0) continue;
      const Index c = category_of[items[i]];
      const std::uint64_t bit = std::uint64_t{1} << (c % 64);
      distinct += (seen[c / 64] & bit) == 0;
      seen[c / 64] |= bit;
      group.kind = detail::GroupValue::Kind::valid;
    }
    group.value = static_cast<double>(distinct) / static_cast<double>(categories);
    return group;
  });
}

/// Mean over the lists of the share of categories a list shows.
inline GroupResult category_coverage(IndexView category_of, Index categories, IndexView items, IndexView offsets, Workspace& ws) {
  GroupMean mean;
  add_category_coverage(category_of, categories, items, offsets, mean, ws);
  return mean.result();
}

}  // namespace RECOPS_ABI
}  // namespace recops
