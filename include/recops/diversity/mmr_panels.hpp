/// @file   recops/diversity/mmr_panels.hpp
/// @brief  Picks of mmr.hpp by features alone, without a window: scores only fall, so most panels need no second look.
#pragma once
#include <recops/diversity/greedy.hpp>
#include <recops/diversity/mmr_scores.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Scores never rise, so a panel's last known best bounds it from above: only panels whose bound reaches the best score known are
/// brought up to date, with all picks they missed at once, and packed when that first happens. Items too irrelevant ever to be
/// picked are so never even read where rows have length 1.
template <class T, class A>
struct MmrPanelRule {
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;
  static constexpr bool monotone = true;

  Candidates<T, A>& rows;
  MmrScores<T, A> scores;
  T *queries, *top_relevance, *top_base;  // what was shown; the largest of each panel
  std::int32_t* applied;                  // how many of the queries a panel has seen
  Index count;
  T similarity;  // no |similarity| exceeds it
  bool first = true;

  MmrPanelRule(const MmrProblem<T>& problem, Candidates<T, A>& candidates, const T* value, Index places, Workspace& scratch)
      : rows(candidates),
        scores(problem, candidates, value, scratch),
        queries(scratch.take<T>((problem.history + places) * problem.cols)),
        top_relevance(scratch.take<T>(candidates.panels())),
        top_base(scratch.take<T>(candidates.panels())),
        applied(scratch.take<std::int32_t>(candidates.panels())),
        count(mmr_history(problem, queries, nullptr)),
        similarity(problem.bound()) {
    for (Index p = 0; p < rows.panels(); ++p) {
      applied[p] = 0;
      top_relevance[p] = simd::max<T, A>(scores.relevance + p * P, P);
      top_base[p] = simd::max<T, A>(scores.base + p * P, P);
    }
  }
  bool begin(Index place) {
    const bool before = std::exchange(first, count == 0);
    return place == 0 || before != first;
  }
  void refresh(Index p) {
    scores.prepare(rows, p);
    T* const penalty = scores.penalty + p * P;
    rows.products(p, queries + applied[p] * rows.cols(), rows.cols(), count - applied[p],
                  [=](Index, Index lane, B c)
                      RECOPS_LAMBDA_INLINE { xsimd::max(B::load_aligned(penalty + lane), c).store_aligned(penalty + lane); });
    applied[p] = static_cast<std::int32_t>(count);
  }
  T ceiling(Index p) const {
    if (first || top_base[p] == never<T>) return top_relevance[p];
    return similarity <= std::numeric_limits<T>::max() ? scores.score_of(top_base[p], -similarity)
                                                       : std::numeric_limits<T>::infinity();
  }
  RECOPS_INLINE B score(Index i) const { return first ? scores.first_score(i) : scores.score(i); }
  T reported(Index i) const { return first ? scores.base[i] : scores.score_of(scores.base[i], scores.penalty[i]); }
  bool pickable(Index i) {
    refresh(i / P);
    return scores.relevance[i] > never<T>;
  }
  void take(Index i, bool last) {
    scores.exclude(i);
    if (last) return;
    rows.row(i, queries + count * rows.cols());
    ++count;
  }
  bool fall_back() const { return false; }
  SelectionStatus over() const { return SelectionStatus::exhausted; }
};

template <class T, class A>
Selection mmr_by_panels(const MmrProblem<T>& problem, ConstraintState* limits, VectorView<std::int32_t> picks,
                        VectorView<T> scores, Workspace& scratch) {
  const auto& in = problem.in;
  const bool lazy = problem.options.evaluation == SelectionEvaluation::lazy;
  const T* const value = mmr_values(problem, scratch);
  const bool sorted = lazy && in.panels.rows == 0 && picks.size() + problem.history > 1 && problem.items > simd::panel_width<T>;
  Candidates<T, A> rows(in.features, in.panels, problem.items, problem.unit, sorted, value, scratch);
  MmrPanelRule<T, A> rule(problem, rows, value, std::min(picks.size(), problem.items), scratch);
  return Greedy<T, A, MmrPanelRule<T, A>>(rows, rule, lazy, limits, scratch).run(picks, scores);
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
