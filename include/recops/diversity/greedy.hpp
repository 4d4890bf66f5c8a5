/// @file   recops/diversity/greedy.hpp
/// @brief  What all selectors share: pick the best feasible item, tell the rule, repeat; panels that cannot win are left alone.
///
/// A rule says what scores are. It has
///
///     bool begin(Index place)          before a place is filled; true if scores may have risen since they were looked at
///     void refresh(Index panel)        brings the panel up to date with all picks it missed, in the order in which they came: the
///                                      same numbers whether it looked at every pick or slept
///     T ceiling(Index panel)           no score in the panel exceeds it now, up to date or not, rounding included
///     Batch<T, A> score(Index row)     of a vector of rows of an up-to-date panel; -infinity: out
///     T reported(Index row)            what to hand the caller
///     bool pickable(Index row)         readies the row's panel; false if the row must not be picked
///     void take(Index row, bool last)  the row is picked (and the last)
///     bool monotone                    scores never rise between two `begin` that return true: then what was seen bounds what is
///     bool fall_back()                 no item has a score: true if there are other scores for this place now
///     SelectionStatus over()           why none has a score
#pragma once
#include <bit>
#include <recops/diversity/candidates.hpp>
#include <recops/diversity/constraints.hpp>
#include <recops/simd/compress.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T, class A, class Rule>
class Greedy {
 public:
  Greedy(const Candidates<T, A>& rows, Rule& rule, bool lazy, ConstraintState* limits, Workspace& scratch)
      : rows_(rows), rule_(rule), lazy_(lazy), limits_(limits), panels_(rows.panels()) {
    stale_ = scratch.take<T>(panels_);
    fresh_ = scratch.take<T>(panels_);
    seen_ = scratch.take<std::int32_t>(panels_);
    std::fill(seen_, seen_ + panels_, -1);
  }

  Selection run(VectorView<std::int32_t> picks, VectorView<T> scores) {
    const Index k = picks.size();
    Selection done;
    if (limits_) limits_->follow(picks.data());
    for (Index t = 0; t < k; ++t) {
      ++now_;
      if (rule_.begin(t)) forget_ = now_;
      Index row = rows_.size();
      if (const Index pin = limits_ ? limits_->begin(t) : -1; pin >= 0) {
        row = rows_.row_of(pin);
        if (row < rows_.size() && !rule_.pickable(row)) row = rows_.size();
        if (row == rows_.size()) limits_->lose_pin(pin);
      }
      if (row == rows_.size()) row = choose(done.status);
      if (row == rows_.size()) break;
      picks.data()[t] = static_cast<std::int32_t>(rows_.item(row));
      if (!scores.empty()) scores.data()[t] = rule_.reported(row);
      if (limits_) limits_->take(rows_.item(row));
      rule_.take(row, t + 1 == k);
      ++done.count;
      if (rule_.monotone && seen_[row / P] >= forget_) stale_[row / P] = best_of(row / P);
    }
    if (limits_) done.relaxed = limits_->finish(done.count);
    return done;
  }

 private:
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;

  /// The row to pick, or `size()` and why there is none.
  Index choose(SelectionStatus& why) {
    for (;;) {
      const T best = look();
      if (best > never<T>) return lowest(best);
      if (any_ == never<T>) {
        if (rule_.fall_back()) {
          forget_ = ++now_;
          continue;
        }
        why = rule_.over();
        return rows_.size();
      }
      unsigned least = ConstraintState::barred;
      for (Index p = 0; p < panels_; ++p) {
        for_each_score(p, [&](Index row, T) { least = std::min(least, limits_->cost(rows_.item(row))); });
      }
      if (least == ConstraintState::barred) {
        why = SelectionStatus::infeasible;
        return rows_.size();
      }
      limits_->give_up(least);
    }
  }
  /// Best score of a feasible item; panels that hold it are in `fresh_`.
  T look() {
    T best = any_ = never<T>;
    std::fill(fresh_, fresh_ + panels_, never<T>);
    for (Index p = 0; p < panels_; ++p) {
      if (!lazy_) {
        see(p);
      } else if (!(rule_.monotone && seen_[p] >= forget_)) {
        if (seen_[p] != now_) stale_[p] = rule_.ceiling(p);
      }
    }
    Index top = -1;
    if (lazy_ && panels_ > 0) {  // the most promising panel first: its best score spares others
      top = std::max_element(stale_, stale_ + panels_) - stale_;
      best = judge(top, best);
    }
    for (Index p = 0; p < panels_; ++p) {
      if (p != top && stale_[p] >= best && stale_[p] > never<T>) best = judge(p, best);
    }
    return best;
  }
  void see(Index p) {
    if (seen_[p] == now_) return;
    rule_.refresh(p);
    stale_[p] = best_of(p);
    seen_[p] = now_;
  }
  T judge(Index p, T best) {
    see(p);
    any_ = std::max(any_, stale_[p]);
    if (!limits_) {  // no branch: which panel holds the best cannot be foreseen
      fresh_[p] = stale_[p];
    } else if (stale_[p] >= best) {
      for_each_score(p, [&](Index row, T score) {
        if (score > fresh_[p] && score >= best && limits_->allows(rows_.item(row))) fresh_[p] = score;
      });
    }
    return std::max(best, fresh_[p]);
  }
  T best_of(Index p) const {
    B most(never<T>);
    RECOPS_UNROLL
    for (Index v = 0; v < P; v += W) most = xsimd::max(most, rule_.score(p * P + v));
    return simd::max_lane(most);
  }
  template <class F>
  void for_each_score(Index p, F&& f) const {
    for (Index v = p * P; v < (p + 1) * P; v += W) {
      alignas(64) T lane[W];
      rule_.score(v).store_aligned(lane);
      for (Index l = 0; l < W; ++l) {
        if (lane[l] > never<T>) f(v + l, lane[l]);
      }
    }
  }
  /// Of the rows with that score the one of the lowest item.
  Index lowest(T best) const {
    Index found = rows_.size(), item = std::numeric_limits<Index>::max();
    for (Index p = 0; p < panels_; ++p) {
      if (fresh_[p] != best) continue;
      std::uint64_t winners = 0;  // of the whole panel: where it is cannot be foreseen, and costs a branch less
      RECOPS_UNROLL
      for (Index v = 0; v < P; v += W) winners |= std::uint64_t{simd::mask_bits(rule_.score(p * P + v) == B(best))} << v;
      for (; winners != 0; winners &= winners - 1) {
        const Index row = p * P + std::countr_zero(winners), i = rows_.item(row);
        if (i < item && (!limits_ || limits_->allows(i))) {
          item = i;
          found = row;
        }
      }
    }
    return found;
  }

  const Candidates<T, A>& rows_;
  Rule& rule_;
  bool lazy_;
  ConstraintState* limits_;
  Index panels_;
  T *stale_, *fresh_;   // [panels] best score when last looked at; best feasible one now
  std::int32_t* seen_;  // [panels] when that was
  std::int32_t now_ = 0, forget_ = 0;
  T any_ = never<T>;  // best score, feasible or not, of what was looked at
};

/// Fills what no item was found for.
template <class T>
void clear_places(Index count, VectorView<std::int32_t> picks, VectorView<T> scores) {
  std::fill(picks.begin() + count, picks.end(), -1);
  if (!scores.empty()) std::fill(scores.begin() + count, scores.end(), never<T>);
}

template <class T>
void check_selection_outputs(const char* operation, VectorView<std::int32_t> picks, VectorView<T> scores) {
  check_size(operation, "picks", picks, any_size);
  if (!scores.empty()) check_size(operation, "scores", scores, picks.size());
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
