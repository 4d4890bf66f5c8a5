/// @file   recops/diversity/mmr_scores.hpp
/// @brief  What both ways of finding the picks of mmr.hpp keep: every item's score, and rows as the similarity sees them.
#pragma once
#include <recops/diversity/mmr_input.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
inline constexpr T never = -std::numeric_limits<T>::infinity();

/// The scores of a request while picks are made: `relevance` and `base` = lambda · relevance are -infinity where an item is out.
/// Arrays are padded to whole panels.
template <class T, class A>
struct MmrScores {
  using B = simd::Batch<T, A>;
  static constexpr Index W = simd::lanes<T, A>, P = simd::panel_width<T>;

  T *relevance, *base, *penalty;
  Index size;  // padded
  T weight;

  MmrScores(const MmrProblem<T>& problem, const std::int32_t* order, Index rows, Workspace& scratch)
      : size(panel_count<T>(rows) * P), weight(problem.weight) {
    relevance = scratch.take<T>(size);
    base = scratch.take<T>(size);
    penalty = scratch.take<T>(size);
    for (Index i = 0; i < rows; ++i) {
      const Index item = order ? Index{order[i]} : i;
      const T r = problem.in.relevance.data()[item];
      const bool out = problem.excluded(item);
      relevance[i] = out ? never<T> : r;
      base[i] = out ? never<T> : problem.lambda * r;
    }
    std::fill(relevance + rows, relevance + size, never<T>);
    std::fill(base + rows, base + size, never<T>);
    std::fill(penalty, penalty + size, never<T>);
  }
  void exclude(Index i) { relevance[i] = base[i] = never<T>; }
  /// Takes out what was marked while packing.
  void exclude_marked(const T* squares, Index first, Index count) {
    for (Index i = first; i < first + count; ++i) {
      if (!(squares[i] <= std::numeric_limits<T>::max())) exclude(i);
    }
  }
  RECOPS_INLINE B score(Index i) const {
    return simd::mul_add(B(weight), B::load_aligned(penalty + i), B::load_aligned(base + i));
  }
  /// The score an item of this base would have under this penalty.
  T score_of(T b, T m) const { return simd::mul_add(B(weight), B(m), B(b)).get(0); }
  /// Largest score in [first, first + count), whole vectors.
  RECOPS_INLINE T best(Index first, Index count) const {
    B most(never<T>);
    for (Index i = first; i < first + count; i += W) most = xsimd::max(most, score(i));
    return simd::max_lane(most);
  }
  /// Lowest i in [first, size) with value(i) == wanted; `size` if there is none.
  template <class F>
  RECOPS_INLINE Index find(Index first, Index end, T wanted, F&& value) const {
    for (Index i = first; i < end; i += W) {
      const B v = value(i);
      if (xsimd::any(v == B(wanted))) {
        alignas(64) T lane[W];
        v.store_aligned(lane);
        Index l = 0;
        while (!(lane[l] == wanted)) ++l;
        return i + l;
      }
    }
    return end;
  }
  Index find_score(T wanted) const {
    return find(0, size, wanted, [this](Index i) RECOPS_LAMBDA_INLINE { return score(i); });
  }
  /// The most relevant item; `size` if all are out.
  Index most_relevant() const {
    const T r = simd::max<T, A>(relevance, size);
    if (r == never<T>) return size;
    return find(0, size, r, [this](Index i) RECOPS_LAMBDA_INLINE { return B::load_aligned(relevance + i); });
  }
};

/// Row `i` out of its panel.
template <class T>
void panel_row(const T* panels, Index cols, Index i, T* out) {
  constexpr Index P = simd::panel_width<T>;
  for (Index d = 0; d < cols; ++d) out[d] = panels[(i / P * cols + d) * P + i % P];
}

/// A feature row as the similarity sees it: divided by its length where `unit`. False if it is not finite.
template <class T>
bool mmr_row(const T* row, Index cols, bool unit, T* out) {
  const T square = simd::dot(row, row, cols);
  if (!(square <= largest_square<T>)) return false;
  const T factor = !unit ? T(1) : square <= tiny_square<T> ? T(0) : T(1) / std::sqrt(square);
  for (Index d = 0; d < cols; ++d) out[d] = factor * row[d];
  return true;
}

/// Copies the usable history rows; `source` (or null) receives which they were. Returns their number.
template <class T>
Index mmr_history(const MmrProblem<T>& problem, T* rows, std::int32_t* source) {
  Index kept = 0;
  for (Index h = 0; h < problem.history; ++h) {
    if (problem.has_features() && problem.in.history.rows() > 0 &&
        !mmr_row(problem.in.history.row(h), problem.cols, problem.unit, rows + kept * problem.cols)) {
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
