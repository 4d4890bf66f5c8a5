/// @file   recops/metrics/common.hpp
/// @brief  What all metrics share: results that say whether they mean anything, and means over groups that shards can merge.
///
/// A group is whatever is ranked together (a request, a user): group g owns the entries offsets[g] .. offsets[g + 1] of scores
/// and labels; empty groups are legal. A metric that is undefined for a group (no positive, one class only) skips that group:
/// it contributes neither value nor weight and is counted. Nothing is ever silently 0, 0.5 or 1: look at `valid`.
#pragma once
#include <algorithm>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>

namespace recops {

/// What a NaN score does to its group.
enum class NanPolicy {
  invalid,  ///< the group has no value: it is skipped and counted in `nan_groups`
  lowest,   ///< NaN ranks with minus infinity, as a service would show it last
};

/// How items with equal scores are put in order.
enum class Ties {
  average,      ///< the exact mean over all orders of the tied items: what a metric should use
  stable,       ///< lowest index first: what a stable sort shows
  pessimistic,  ///< least relevant first
  optimistic,   ///< most relevant first
};

/// One number, and whether it is defined. `value` is 0 where it is not, NaN where an input was NaN.
struct MetricValue {
  double value = 0;
  bool valid = false;
};

/// A weighted mean over groups.
struct GroupResult {
  double value = 0;          ///< the mean over valid groups; 0 where there is none
  bool valid = false;        ///< whether any group was valid
  Index valid_groups = 0;    ///< groups in the mean
  Index skipped_groups = 0;  ///< groups for which the metric is undefined, with `nan_groups`
  Index nan_groups = 0;      ///< those of the skipped groups that held a NaN
  double coverage = 0;       ///< weight of the valid groups by the weight of all; 0 where nothing weighs anything
};

inline namespace RECOPS_ABI {

/// A sum carried as two doubles: after n additions it is off by about n * 2^-106 of the sum of magnitudes, so that shards added
/// up in any order agree in all but the rarest last bit. Infinities and NaN behave as in a plain sum.
class MergeableSum {
 public:
  void add(double x) {
    const double s = high_ + x, part = s - high_;
    low_ += (high_ - (s - part)) + (x - part);
    high_ = s;
  }
  void merge(const MergeableSum& other) {
    add(other.high_);
    low_ += other.low_;
  }
  double value() const {
    const double s = high_ + low_;
    return s == s ? s : high_;  // infinity - infinity in the low part says nothing
  }

 private:
  double high_ = 0, low_ = 0;
};

/// The mean of a metric over groups, kept as sums: one per shard, merged in any order.
class GroupMean {
 public:
  /// A group with a value; a weight of 0 counts the group and changes nothing else.
  void add(double value, double weight = 1) {
    sum_.add(value * weight);
    weight_.add(weight);
    all_.add(weight);
    ++valid_;
  }
  /// A group for which the metric is undefined.
  void skip(double weight = 1) {
    all_.add(weight);
    ++skipped_;
  }
  /// A group with a NaN.
  void skip_nan(double weight = 1) {
    skip(weight);
    ++nan_;
  }
  void merge(const GroupMean& other) {
    sum_.merge(other.sum_);
    weight_.merge(other.weight_);
    all_.merge(other.all_);
    valid_ += other.valid_;
    skipped_ += other.skipped_;
    nan_ += other.nan_;
  }
  GroupResult result() const {
    const double weight = weight_.value(), all = all_.value();
    const bool valid = valid_ > 0 && weight > 0;
    return {valid ? sum_.value() / weight : 0.0, valid, valid_, skipped_, nan_, all > 0 ? weight / all : 0.0};
  }

 private:
  MergeableSum sum_, weight_, all_;
  Index valid_ = 0, skipped_ = 0, nan_ = 0;
};

namespace detail {

template <class T>
bool has_nan(VectorView<const T> values) {
  bool found = false;
  for (const T& x : values) found |= x != x;
  return found;
}

inline void check_binary(const char* operation, const char* argument, VectorView<const std::uint8_t> labels) {
  std::uint8_t seen = 0;
  for (const std::uint8_t y : labels) seen |= y;
  if (seen <= 1) [[likely]]
    return;
  for (Index i = 0; i < labels.size(); ++i)
    if (labels[i] > 1) fail_at(operation, argument, "labels that are 0 or 1", -1, i, labels[i]);
}

/// No more scores than an int32 index can name.
inline void check_countable(const char* operation, Index n) {
  check_option(operation, "scores", n < Index{1} << 31, "fewer than 2^31 scores", static_cast<double>(n));
}

/// Scores, labels of the same length, and no more of them than an index can name.
template <class T, class L>
void check_scored(const char* operation, VectorView<const T> scores, VectorView<const L> labels) {
  check_size(operation, "scores", scores, any_size);
  check_size(operation, "labels", labels, scores.size());
  check_countable(operation, scores.size());
  if constexpr (std::is_same_v<L, std::uint8_t>) check_binary(operation, "labels", labels);
}

/// Weights are absent, or one per entry, finite and not negative.
template <class T>
void check_weights(const char* operation, VectorView<const T> weights, Index n) {
  if (weights.empty()) return;
  check_size(operation, "weights", weights, n);
  for (Index i = 0; i < n; ++i) {
    if (!(weights[i] >= 0 && weights[i] <= std::numeric_limits<T>::max())) [[unlikely]]
      fail_number(operation, "weights", "finite weights >= 0", static_cast<double>(weights[i]));
  }
}

/// Indices of items, -1 standing for "no item" (padding of pick lists).
inline void check_items(const char* operation, const char* argument, IndexView items, Index bound) {
  check_not_null(operation, argument, items);
  for (Index i = 0; i < items.size(); ++i)
    if (items[i] < -1 || items[i] >= bound) [[unlikely]]
      fail_at(operation, argument, "-1 or indices below ", bound, i, items[i]);
}

/// What one group contributes to a mean.
struct GroupValue {
  enum class Kind { valid, skipped, nan } kind = Kind::skipped;
  double value = 0, weight = 1;
};

/// Adds `f(group, scratch)`, a GroupValue, of every group to `into`, on the workspace's threads. The order of the additions is
/// that of the groups whatever the number of threads.
template <class F>
void add_groups(Index groups, GroupMean& into, Workspace& ws, F&& f) {
  constexpr Index block = 16384, task = 64;
  const auto mark = ws.mark();
  GroupValue* const values = ws.take<GroupValue>(std::min(groups, block));
  for (Index first = 0; first < groups; first += block) {
    const Index count = std::min(block, groups - first);
    ws.parallel_for((count + task - 1) / task, [&](Index t, Workspace& scratch) {
      for (Index g = t * task; g < std::min(count, (t + 1) * task); ++g) {
        const auto group_mark = scratch.mark();
        values[g] = f(first + g, scratch);
      }
    });
    for (Index g = 0; g < count; ++g) {
      const GroupValue& v = values[g];
      if (v.kind == GroupValue::Kind::valid)
        into.add(v.value, v.weight);
      else if (v.kind == GroupValue::Kind::nan)
        into.skip_nan(v.weight);
      else
        into.skip(v.weight);
    }
  }
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
