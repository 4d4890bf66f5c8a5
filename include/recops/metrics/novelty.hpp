/// @file   recops/metrics/novelty.hpp
/// @brief  How surprising the items of a list are: the mean of -log2 of their popularity.
///
///     novelty of a list = mean_i -log2(popularity_i)                bits; 0 where all know the items
///
/// Shapes      items [total] with offsets [R + 1], -1 for no item (padding)   popularity [N]: of every item, the share of users (or of
///             impressions) that had it, in (0, 1]
/// Edge cases  lists without items are skipped and counted.
/// Precision   doubles.  Same bits for any number of threads.
/// Cost        O(total), one logarithm an item; no scratch that grows with a list.
/// Errors      Error if offsets or items do not fit, or a shown item's popularity is not in (0, 1]: smooth counts first.
/// Reference   Zhou et al., Solving the apparent diversity-accuracy dilemma of recommender systems, PNAS 2010.
#pragma once
#include <cmath>
#include <recops/metrics/common.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Adds the novelty of the lists to `into`: the form for shards, which merge by `GroupMean::merge`. Throws `Error`; see above.
template <Real T>
void add_novelty(IndexView items, IndexView offsets, VectorView<const T> popularity, GroupMean& into, Workspace& ws) {
  check_size("novelty", "popularity", popularity, any_size);
  detail::check_items("novelty", "items", items, popularity.size());
  check_offsets("novelty", "offsets", offsets, items.size());
  for (Index i = 0; i < items.size(); ++i) {
    if (items[i] < 0) continue;
    const T p = popularity[items[i]];
    check_option("novelty", "popularity", p > 0 && p <= 1, "0 < popularity <= 1 of what is shown", static_cast<double>(p));
  }
  detail::add_groups(offsets.size() - 1, into, ws, [&](Index r, Workspace&) {
    detail::GroupValue list;
    double sum = 0;
    Index shown = 0;
    for (Index i = offsets[r]; i < offsets[r + 1]; ++i) {
      if (items[i] < 0) continue;
      sum -= std::log2(static_cast<double>(popularity[items[i]]));
      ++shown;
    }
    if (shown == 0) return list;
    list.kind = detail::GroupValue::Kind::valid;
    list.value = sum / static_cast<double>(shown);
    return list;
  });
}

/// Mean novelty of the lists.
template <Real T>
GroupResult novelty(IndexView items, IndexView offsets, VectorView<const T> popularity, Workspace& ws) {
  GroupMean mean;
  add_novelty<T>(items, offsets, popularity, mean, ws);
  return mean.result();
}

}  // namespace RECOPS_ABI
}  // namespace recops
