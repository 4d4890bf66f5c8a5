/// @file   recops/ranking/group_loss.hpp
/// @brief  What all losses over groups share: a group is what is ranked together (a request, a user, or a whole batch).
///
/// Group g owns the entries offsets[g] .. offsets[g + 1] of scores, labels and gradients; no offsets at all mean one group of
/// everything. A group for which a loss is undefined (a single class, a single item) contributes neither value nor gradient nor
/// weight and is counted. A group with a NaN or an infinity among its scores loses NaN, and all of its gradient is NaN; other
/// groups do not notice.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>

namespace recops {

/// How the losses of the groups become one number.
enum class GroupReduction {
  mean,  ///< over the groups that have a loss, by weight
  sum,   ///< weighted
};

/// Options that every loss over groups has; empty views are left out.
template <class T>
struct GroupLossOptions {
  GroupReduction reduction = GroupReduction::mean;
  VectorView<const T> weights = {};  ///< [G] >= 0, finite; a group of weight 0 is not read
  VectorView<T> losses = {};         ///< [G], receives each group's own loss before weights; 0 where it has none
};

/// The loss of a batch of groups.
struct GroupLoss {
  double value = 0;          ///< 0 where no group has a loss
  Index valid_groups = 0;    ///< groups that have a loss
  Index skipped_groups = 0;  ///< groups for which it is undefined, or of weight 0
  bool valid() const { return valid_groups > 0; }
};

inline namespace RECOPS_ABI {
namespace detail {

/// The groups of `n` entries: those of the offsets, or one.
struct Groups {
  IndexView offsets;
  Index n;
  RECOPS_INLINE Index count() const { return offsets.empty() ? 1 : offsets.size() - 1; }
  RECOPS_INLINE Index begin(Index g) const { return offsets.empty() ? 0 : offsets[g]; }
  RECOPS_INLINE Index size(Index g) const { return offsets.empty() ? n : offsets[g + 1] - offsets[g]; }
};

template <class T>
Groups check_groups(const char* name, VectorView<const T> scores, IndexView offsets, const GroupLossOptions<T>& o,
                    VectorView<T> dscores) {
  check_size(name, "scores", scores, any_size);
  const Index n = scores.size();
  check_option(name, "scores", n < Index{1} << 31, "fewer than 2^31 scores", static_cast<double>(n));
  if (!offsets.empty()) check_offsets(name, "offsets", offsets, n);
  const Groups groups{offsets, n};
  if (!o.weights.empty()) check_size(name, "weights", o.weights, groups.count());
  for (const T w : o.weights)
    check_option(name, "weights", w >= 0 && w <= std::numeric_limits<T>::max(), "finite weights >= 0", static_cast<double>(w));
  if (!o.losses.empty()) check_size(name, "losses", o.losses, groups.count());
  if (!dscores.empty()) check_size(name, "dscores", dscores, n);
  return groups;
}

template <class T>
bool all_finite(const T* x, Index n) {
  bool sound = true;
  for (Index i = 0; i < n; ++i) sound &= x[i] - x[i] == 0;
  return sound;
}

inline void check_labels(const char* name, VectorView<const std::uint8_t> labels, Index n) {
  check_size(name, "labels", labels, n);
  std::uint8_t seen = 0;
  for (const std::uint8_t y : labels) seen |= y;
  for (Index i = 0; seen > 1 && i < n; ++i)
    if (labels[i] > 1) fail_at(name, "labels", "labels that are 0 or 1", -1, i, labels[i]);
}

template <class T>
void check_finite(const char* name, const char* argument, VectorView<const T> x) {
  for (const T v : x) check_option(name, argument, v - v == 0, "finite numbers", static_cast<double>(v));
}

/// Sums `loss(begin, size, scale, gradient, scratch)` over the groups for which `has(begin, size)` is true; it gives the group's
/// loss and adds `scale` times its gradient to `gradient [size]`, null where none is wanted. Groups run on the workspace's threads;
/// sums run in their order.
template <class T, class Has, class F>
GroupLoss sum_groups(const Groups& groups, VectorView<const T> scores, const GroupLossOptions<T>& o, VectorView<T> dscores,
                     Workspace& ws, Has&& has, F&& loss) {
  constexpr Index task = 8;
  const auto mark = ws.mark();
  const Index count = groups.count(), tasks = (count + task - 1) / task;
  double* const values = ws.take<double>(count);
  std::uint8_t* const valid = ws.take<std::uint8_t>(count);
  const auto weight = [&](Index g) { return o.weights.empty() ? 1.0 : static_cast<double>(o.weights[g]); };
  ws.parallel_for(tasks, [&](Index t, Workspace&) {
    for (Index g = t * task; g < std::min(count, (t + 1) * task); ++g)
      valid[g] = groups.size(g) > 0 && weight(g) > 0 && has(groups.begin(g), groups.size(g)) ? 1 : 0;
  });
  GroupLoss result;
  double mass = 0;
  for (Index g = 0; g < count; ++g) {
    mass += valid[g] != 0 ? weight(g) : 0;
    ++(valid[g] != 0 ? result.valid_groups : result.skipped_groups);
  }
  const double unit = o.reduction == GroupReduction::sum || mass == 0 ? 1 : 1 / mass;
  ws.parallel_for(tasks, [&](Index t, Workspace& scratch) {
    for (Index g = t * task; g < std::min(count, (t + 1) * task); ++g) {
      values[g] = 0;
      if (valid[g] == 0) continue;
      const Index begin = groups.begin(g), n = groups.size(g);
      T* const gradient = dscores.empty() ? nullptr : dscores.data() + begin;
      if (all_finite(scores.data() + begin, n)) {
        const auto group_mark = scratch.mark();
        values[g] = loss(begin, n, unit * weight(g), gradient, scratch);
      } else {
        values[g] = std::numeric_limits<double>::quiet_NaN();
        if (gradient != nullptr) std::fill_n(gradient, n, std::numeric_limits<T>::quiet_NaN());
      }
    }
  });
  for (Index g = 0; g < count; ++g) {
    if (valid[g] != 0) result.value += unit * weight(g) * values[g];
    if (!o.losses.empty()) o.losses[g] = static_cast<T>(values[g]);
  }
  return result;
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
