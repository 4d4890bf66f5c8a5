/// @file   recops/metrics/gauc.hpp
/// @brief  Grouped AUC: the AUC of each user or request, averaged. It judges the order a user sees, which the pooled AUC does
///         not: there, telling active users from idle ones is enough to look good.
///
///     GAUC = Σ_g w_g AUC_g / Σ_g w_g       over the groups g that hold both classes
///
/// Shapes      scores, labels [n]   offsets [G + 1]
/// Edge cases  groups with one class only are skipped and counted; no valid group: `valid` is false.  Empty groups are legal.
/// NaN         `NanPolicy`, group by group: a NaN never leaves its group.
/// Precision   each AUC is exact; the mean is summed in two doubles.  Same bits for any number of threads.
/// Cost        a sort per group; scratch 16 bytes (float) or 32 (double) per entry of the largest group.
/// Errors      Error if sizes or offsets disagree or a label is neither 0 nor 1.
/// Reference   Zhu et al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017; Zhou et al., DIN, KDD 2018.
#pragma once
#include <recops/metrics/auc.hpp>

namespace recops {

/// How much a group counts in GAUC.
enum class GroupWeight {
  impressions,  ///< its entries
  clicks,       ///< its positives
  one,          ///< all groups the same ("UAUC")
};

struct GaucOptions {
  GroupWeight weight = GroupWeight::impressions;
  NanPolicy nan = NanPolicy::invalid;
};

inline namespace RECOPS_ABI {

/// Adds the groups to `into`: the form for shards, which merge by `GroupMean::merge`.
template <Real T>
void add_gauc(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets, const GaucOptions& options,
              GroupMean& into, Workspace& ws) {
  detail::check_scored("gauc", scores, labels);
  check_offsets("gauc", "offsets", offsets, scores.size());
  detail::add_groups(offsets.size() - 1, into, ws, [&](Index g, Workspace& scratch) {
    const Index begin = offsets[g], n = offsets[g + 1] - begin;
    const AucResult one = detail::auc_of(scores.segment(begin, n), labels.segment(begin, n), options.nan, scratch);
    detail::GroupValue group;
    group.value = one.value;
    group.weight = options.weight == GroupWeight::one           ? 1.0
                   : options.weight == GroupWeight::impressions ? static_cast<double>(n)
                                                                : static_cast<double>(one.positives);
    if (one.valid)
      group.kind = detail::GroupValue::Kind::valid;
    else if (one.value != one.value)
      group.kind = detail::GroupValue::Kind::nan;
    return group;
  });
}

/// GAUC; `coverage` in the result is the weight of the valid groups by that of all.
template <Real T>
GroupResult gauc(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets, const GaucOptions& options,
                 Workspace& ws) {
  GroupMean mean;
  add_gauc(scores, labels, offsets, options, mean, ws);
  return mean.result();
}

}  // namespace RECOPS_ABI
}  // namespace recops
