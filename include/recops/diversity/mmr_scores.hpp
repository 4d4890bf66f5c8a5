/// @file   recops/diversity/mmr_scores.hpp
/// @brief  What both ways of finding the picks of mmr.hpp keep: every item's score, and rows as the similarity sees them.
#pragma once
#include <recops/diversity/candidates.hpp>
#include <recops/diversity/mmr_input.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// The scores of a request while picks are made: `relevance` and `base` = lambda · relevance are -infinity where an item is out.
/// Arrays are padded to whole panels.
template <class T, class A>
struct MmrScores {
  using B = simd::Batch<T, A>;
  static constexpr Index W = simd::lanes<T, A>, P = simd::panel_width<T>;

  T *relevance, *base, *penalty;
  Index size;  // padded
  T weight;

  /// `value` [N]: the relevance, -infinity where an item is out.
  MmrScores(const MmrProblem<T>& problem, const Candidates<T, A>& rows, const T* value, Workspace& scratch)
      : size(rows.size()), weight(problem.weight) {
    relevance = scratch.take<T>(size);
    base = scratch.take<T>(size);
    penalty = scratch.take<T>(size);
    for (Index i = 0; i < rows.rows(); ++i) relevance[i] = value[rows.item(i)];
    std::fill(relevance + rows.rows(), relevance + size, never<T>);
    for (Index i = 0; i < size; i += W) {
      const B r = B::load_aligned(relevance + i);
      xsimd::select(r == B(never<T>), r, B(problem.lambda) * r).store_aligned(base + i);
    }
    std::fill(penalty, penalty + size, never<T>);
  }
  void exclude(Index i) { relevance[i] = base[i] = never<T>; }
  /// Readies a panel, and takes out what was marked while packing.
  void prepare(Candidates<T, A>& rows, Index p) {
    if (!rows.prepare(p) || !rows.any_marked(p)) return;
    for (Index i = p * P; i < p * P + rows.rows_in(p); ++i) {
      if (rows.marked(i)) exclude(i);
    }
  }
  /// What is compared while nothing was shown yet.
  RECOPS_INLINE B first_score(Index i) const { return B::load_aligned(relevance + i); }
  RECOPS_INLINE B score(Index i) const {
    return simd::mul_add(B(weight), B::load_aligned(penalty + i), B::load_aligned(base + i));
  }
  /// The score an item of this base would have under this penalty.
  T score_of(T b, T m) const { return simd::mul_add(B(weight), B(m), B(b)).get(0); }
};

/// The relevance of every item, -infinity where it is out.
template <class T>
const T* mmr_values(const MmrProblem<T>& problem, Workspace& scratch) {
  T* const value = scratch.take<T>(problem.items);
  const T* const r = problem.in.relevance.data();
  const T most = std::numeric_limits<T>::max();
  for (Index i = 0; i < problem.items; ++i) value[i] = std::abs(r[i]) <= most ? r[i] : never<T>;
  for (Index i = 0; i < problem.in.allowed.size(); ++i) value[i] = problem.in.allowed.data()[i] != 0 ? value[i] : never<T>;
  return value;
}

/// Copies the usable history rows; `source` (or null) receives which they were. Returns their number.
template <class T>
Index mmr_history(const MmrProblem<T>& problem, T* rows, std::int32_t* source) {
  Index kept = 0;
  for (Index h = 0; h < problem.history; ++h) {
    if (problem.has_features() && problem.in.history.rows() > 0 &&
        !selection_row(problem.in.history.row(h), problem.cols, problem.unit, rows + kept * problem.cols)) {
      continue;
    }
    if (source) source[kept] = static_cast<std::int32_t>(h);
    ++kept;
  }
  return kept;
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
