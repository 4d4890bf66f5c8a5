/// @file   recops/diversity/mmr_columns.hpp
/// @brief  Picks of mmr.hpp by any similarities and any window: a column of similarities to every item for every pick.
#pragma once
#include <recops/diversity/mmr_scores.hpp>
#include <recops/diversity/selection.hpp>
#include <recops/diversity/sliding_maximum.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Any similarities, any window: a column of similarities for every pick.
template <class T, class A>
Selection mmr_by_columns(const MmrProblem<T>& problem, VectorView<std::int32_t> picks, T* scores, Workspace& scratch) {
  using B = simd::Batch<T, A>;
  constexpr Index P = simd::panel_width<T>;
  const auto& in = problem.in;
  const Index k = picks.size(), cols = problem.cols, n = problem.items;
  PanelsView<T> panels = in.panels;
  if (panels.rows == 0 && problem.has_features()) panels = pack_panels_in<T, A>(in.features, nullptr, n, problem.unit, scratch);
  MmrScores<T, A> s(problem, nullptr, n, scratch);
  s.exclude_marked(panels.squares, 0, panels.rows);

  T* const history = scratch.take<T>(problem.history * cols);
  auto* const source = scratch.take<std::int32_t>(problem.history);
  const Index seen = mmr_history(problem, history, source);
  const Index last = problem.options.window == 0 ? std::numeric_limits<Index>::max() : problem.options.window - 1;
  const bool sliding = last < seen + k - 1;
  SlidingMaximum<T, A> window(s.size, sliding ? last : 0, scratch);
  T* const plain = scratch.take<T>(sliding ? 0 : s.size);
  T* const query = scratch.take<T>(cols);
  Index active = 0;

  // The similarities to one row, given its features, its row of the similarity matrix and its category.
  const auto advance = [&](const T* features, const T* similarity, Index category) {
    ++active;
    if (last == 0) return;
    T* const c = sliding ? window.make_room() : plain;
    if (panels.rows > 0) {
      const B weight(static_cast<T>(problem.options.feature_weight)), most(largest_square<T>);  // finite, whatever the weight
      for (Index b = 0; b < s.size / P; ++b) {
        simd::panel_products<T, A, 1>(panels.data + b * cols * P, cols, features, 0,
                                      [&](int, Index lane, B v) RECOPS_LAMBDA_INLINE {
                                        xsimd::max(-most, xsimd::min(most, weight * v)).store_aligned(c + b * P + lane);
                                      });
      }
    } else {
      std::fill(c, c + s.size, T(0));
    }
    if (similarity) {
      const T weight = static_cast<T>(problem.options.similarity_weight);
      for (Index i = 0; i < n; ++i) {
        const T v = weight * similarity[i];
        if (std::abs(v) <= largest_square<T>) {
          c[i] += v;
        } else {
          s.exclude(i);
        }
      }
    }
    if (category >= 0) {
      const T weight = static_cast<T>(problem.options.category_weight);
      for (Index i = 0; i < n; ++i) c[i] += in.categories[i] == category ? weight : T(0);
    }
    if (sliding) {
      window.push(s.penalty);
    } else {
      for (Index i = 0; i < s.size; i += simd::lanes<T, A>)
        xsimd::max(B::load_aligned(s.penalty + i), B::load_aligned(c + i)).store_aligned(s.penalty + i);
    }
  };
  for (Index h = sliding ? std::max(Index{0}, seen - last) : 0; h < seen; ++h) {
    advance(history + h * cols, in.similarity.empty() ? nullptr : in.history_similarity.row(source[h]),
            in.categories.empty() ? -1 : in.history_categories[source[h]]);
  }
  for (Index t = 0; t < k; ++t) {
    Index i;
    T best;
    if (active == 0 || last == 0) {
      i = s.most_relevant();
      if (i == s.size) return {t, SelectionStatus::exhausted};
      best = s.base[i];
    } else {
      best = s.best(0, s.size);
      if (best == never<T>) return {t, SelectionStatus::exhausted};
      i = s.find_score(best);
    }
    picks.data()[t] = static_cast<std::int32_t>(i);
    if (scores) scores[t] = best;
    s.exclude(i);
    if (t + 1 == k) break;
    if (panels.rows > 0) panel_row(panels.data, cols, i, query);
    advance(query, in.similarity.empty() ? nullptr : in.similarity.row(i), in.categories.empty() ? -1 : in.categories[i]);
  }
  return {k, SelectionStatus::ok};
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
