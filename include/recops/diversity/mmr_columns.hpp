/// @file   recops/diversity/mmr_columns.hpp
/// @brief  Picks of mmr.hpp by any similarities and any window: a column of similarities to every item for every pick.
#pragma once
#include <recops/diversity/greedy.hpp>
#include <recops/diversity/mmr_scores.hpp>
#include <recops/diversity/sliding_maximum.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Scores rise where a window forgets, so every item's score is known after every pick.
template <class T, class A>
struct MmrColumnRule {
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>;
  static constexpr bool monotone = false;

  const MmrProblem<T>& problem;
  Candidates<T, A>& rows;
  MmrScores<T, A> scores;
  Index last;  // how many of what was shown count
  bool sliding, features;
  SlidingMaximum<T, A> window;
  T *plain, *query;
  Index active = 0;

  MmrColumnRule(const MmrProblem<T>& p, Candidates<T, A>& candidates, Index places, Workspace& scratch)
      : problem(p),
        rows(candidates),
        scores(p, candidates, mmr_values(p, scratch), scratch),
        last(p.options.window == 0 ? std::numeric_limits<Index>::max() : p.options.window - 1),
        sliding(last < p.history + places - 1),
        features(p.has_features()),
        window(scores.size, sliding ? last : 0, scratch),
        plain(scratch.take<T>(sliding ? 0 : scores.size)),
        query(scratch.take<T>(rows.cols())) {
    for (Index b = 0; b < rows.panels(); ++b) scores.prepare(rows, b);
    const auto mark = scratch.mark();
    T* const history = scratch.take<T>(p.history * rows.cols());
    auto* const source = scratch.take<std::int32_t>(p.history);
    const Index seen = mmr_history(p, history, source);
    for (Index h = sliding ? std::max(Index{0}, seen - last) : 0; h < seen; ++h) {
      advance(history + h * rows.cols(), p.in.similarity.empty() ? nullptr : p.in.history_similarity.row(source[h]),
              p.in.categories.empty() ? -1 : p.in.history_categories[source[h]]);
    }
  }
  bool first() const { return active == 0 || last == 0; }
  bool begin(Index) const { return true; }
  void refresh(Index) const {}
  T ceiling(Index) const { return std::numeric_limits<T>::infinity(); }
  RECOPS_INLINE B score(Index i) const { return first() ? scores.first_score(i) : scores.score(i); }
  T reported(Index i) const { return first() ? scores.base[i] : scores.score_of(scores.base[i], scores.penalty[i]); }
  bool pickable(Index i) const { return scores.relevance[i] > never<T>; }
  void take(Index i, bool is_last) {
    scores.exclude(i);
    if (is_last) return;
    const auto& in = problem.in;
    const Index item = rows.item(i);
    if (features) rows.row(i, query);
    advance(query, in.similarity.empty() ? nullptr : in.similarity.row(item), in.categories.empty() ? -1 : in.categories[item]);
  }
  bool fall_back() const { return false; }
  SelectionStatus over() const { return SelectionStatus::exhausted; }

 private:
  /// The similarities to what was shown, given its features, its row of the similarity matrix and its category.
  void advance(const T* row, const T* similarity, Index category) {
    ++active;
    if (last == 0) return;
    T* const c = sliding ? window.make_room() : plain;
    if (features) {
      const B weight(static_cast<T>(problem.options.feature_weight)), most(largest_square<T>);  // finite, whatever the weight
      for (Index b = 0; b < rows.panels(); ++b) {
        rows.products(b, row, 0, 1, [&](Index, Index lane, B v) RECOPS_LAMBDA_INLINE {
          xsimd::max(-most, xsimd::min(most, weight * v)).store_aligned(c + b * P + lane);
        });
      }
    } else {
      std::fill(c, c + scores.size, T(0));
    }
    if (similarity) {
      const T weight = static_cast<T>(problem.options.similarity_weight);
      for (Index i = 0; i < rows.rows(); ++i) {
        const T v = weight * similarity[rows.item(i)];
        if (std::abs(v) <= largest_square<T>) {
          c[i] += v;
        } else {
          scores.exclude(i);
        }
      }
    }
    if (category >= 0) {
      const T weight = static_cast<T>(problem.options.category_weight);
      for (Index i = 0; i < rows.rows(); ++i) c[i] += problem.in.categories[rows.item(i)] == category ? weight : T(0);
    }
    if (sliding) {
      window.push(scores.penalty);
    } else {
      for (Index i = 0; i < scores.size; i += simd::lanes<T, A>)
        xsimd::max(B::load_aligned(scores.penalty + i), B::load_aligned(c + i)).store_aligned(scores.penalty + i);
    }
  }
};

template <class T, class A>
Selection mmr_by_columns(const MmrProblem<T>& problem, ConstraintState* limits, VectorView<std::int32_t> picks,
                         VectorView<T> scores, Workspace& scratch) {
  const auto& in = problem.in;
  Candidates<T, A> rows(in.features, in.panels, problem.items, problem.unit, false, nullptr, scratch);
  MmrColumnRule<T, A> rule(problem, rows, std::min(picks.size(), problem.items), scratch);
  return Greedy<T, A, MmrColumnRule<T, A>>(rows, rule, false, limits, scratch).run(picks, scores);
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
