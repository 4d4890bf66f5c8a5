/// @file   recops/diversity/mmr_lazy.hpp
/// @brief  Picks of mmr.hpp by features alone, without a window: scores only fall, so most panels need no second look.
#pragma once
#include <recops/diversity/mmr_scores.hpp>
#include <recops/diversity/selection.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// penalty = max(penalty, products with `count` vectors) for one panel.
template <class T, class A>
void mmr_penalize(const T* panel, Index cols, const T* queries, Index count, T* penalty) {
  using B = simd::Batch<T, A>;
  simd::panel_products<T, A>(panel, cols, queries, cols, count, [penalty](Index, Index lane, B c) RECOPS_LAMBDA_INLINE {
    xsimd::max(B::load_aligned(penalty + lane), c).store_aligned(penalty + lane);
  });
}

/// Indices of the items that may be picked, roughly from the most relevant down (up to 1024 classes between the extremes), each
/// class in ascending order. Returns their number, or -1 if they already come like that. O(N).
template <class T, class A>
Index mmr_order(const MmrProblem<T>& problem, std::int32_t* order, Workspace& scratch) {
  using B = simd::Batch<T, A>;
  constexpr Index W = simd::lanes<T, A>;
  const Index n = problem.items, classes = n < 4096 ? n / 4 + 1 : Index{1024};
  assert(n >= W);
  const auto mark = scratch.mark();
  T* const value = scratch.take<T>(n);
  for (Index i = 0; i < n; ++i) value[i] = problem.excluded(i) ? never<T> : problem.in.relevance.data()[i];
  Index falling = 1;
  while (falling < n && value[falling] <= value[falling - 1]) ++falling;
  if (falling == n && value[n - 1] != never<T>) return -1;

  const T high = simd::max<T, A>(value, n);
  B least(high);
  for (Index i = 0; i < n; i += W) {
    const B v = B::load_unaligned(value + std::min(i, n - W));
    least = xsimd::select(v == B(never<T>), least, xsimd::min(v, least));
  }
  const T low = -simd::max_lane(-least);

  auto* const begin = scratch.take<std::int32_t>(classes + 2);
  auto* const of = scratch.take<std::int32_t>(n);
  std::fill(begin, begin + classes + 2, 0);
  const T range = high / 2 - low / 2, last = static_cast<T>(classes - 1);  // halves: their difference is finite
  const T scale = range > std::numeric_limits<T>::min() * 4096 ? last / range : T(0);
  for (Index i = 0; i < n; ++i) {
    const T c = value[i] == never<T> ? last + 1 : std::min((high / 2 - value[i] / 2) * scale, last);
    of[i] = static_cast<std::int32_t>(c);
  }
  for (Index i = 0; i < n; ++i) ++begin[of[i] + 1];
  for (Index c = 0; c < classes; ++c) begin[c + 1] += begin[c];
  const Index kept = begin[classes];
  for (Index i = 0; i < n; ++i) order[begin[of[i]]++] = static_cast<std::int32_t>(i);
  return kept;
}

/// Features only, no window. Scores never rise, so a panel's last known best bounds it from above: only panels whose bound reaches
/// the best score known are brought up to date, with all picks they missed at once, and packed when that first happens. Items too
/// irrelevant ever to be picked are so never even read where rows have length 1.
template <class T, class A>
Selection mmr_by_panels(const MmrProblem<T>& problem, VectorView<std::int32_t> picks, T* scores, Workspace& scratch) {
  constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;
  const Index k = picks.size(), cols = problem.cols;
  const bool lazy = problem.options.evaluation == MmrEvaluation::lazy;
  const PanelsView<T> given = problem.in.panels;
  Index rows = problem.items;
  const std::int32_t* order = nullptr;
  if (lazy && given.rows == 0 && rows > P && k + problem.history > 1) {
    auto* const sorted = scratch.take<std::int32_t>(rows);
    if (const Index kept = mmr_order<T, A>(problem, sorted, scratch); kept >= 0) {
      order = sorted;
      rows = kept;
    }
  }
  MmrScores<T, A> s(problem, order, rows, scratch);
  const Index panels = s.size / P;
  T* const own = given.rows > 0 ? nullptr : scratch.take<T>(panels * cols * P);
  T* const own_squares = given.rows > 0 ? nullptr : scratch.take<T>(panels * P);
  const T* const data = given.rows > 0 ? given.data : own;
  const T* const squares = given.rows > 0 ? given.squares : own_squares;
  T* const queries = scratch.take<T>((problem.history + k) * cols);
  Index count = mmr_history(problem, queries, nullptr);

  auto* const applied = scratch.take<std::int32_t>(panels);  // how many of the queries a panel has seen; -1: not packed yet
  T* const bound = scratch.take<T>(panels);                  // no score in the panel exceeds it
  const auto prepare = [&](Index p) {
    if (applied[p] >= 0) return;
    if (own) pack_one_panel<T, A>(problem.in.features, order, rows, p, problem.unit, own + p * cols * P, own_squares + p * P);
    s.exclude_marked(squares, p * P, std::min(P, rows - p * P));
    applied[p] = 0;
  };
  const auto refresh = [&](Index p) {
    prepare(p);
    mmr_penalize<T, A>(data + p * cols * P, cols, queries + applied[p] * cols, count - applied[p], s.penalty + p * P);
    applied[p] = static_cast<std::int32_t>(count);
    bound[p] = s.best(p * P, P);
  };
  const T similarity = problem.bound();
  const bool bounded = similarity <= std::numeric_limits<T>::max();
  for (Index p = 0; p < panels; ++p) {
    applied[p] = -1;
    const T most = simd::max<T, A>(s.base + p * P, P);
    bound[p] = most == never<T> ? never<T> : bounded ? s.score_of(most, -similarity) : std::numeric_limits<T>::infinity();
  }

  if (panels == 0) return {0, SelectionStatus::exhausted};
  for (Index t = 0; t < k; ++t) {
    Index i = s.size;
    T best = never<T>;
    if (count == 0) {  // the first pick, and no history
      for (;;) {
        i = s.most_relevant();
        if (i == s.size) return {t, SelectionStatus::exhausted};
        prepare(i / P);
        if (s.relevance[i] != never<T>) break;
      }
      best = s.base[i];
    } else {
      if (lazy) {  // the most promising panel first: its best score spares others
        const Index top = std::max_element(bound, bound + panels) - bound;
        if (applied[top] != count) refresh(top);
        best = bound[top];
      }
      for (Index p = 0; p < panels; ++p) {
        if (applied[p] != count) {
          if (lazy && bound[p] < best) continue;
          refresh(p);
        }
        best = bound[p] > best ? bound[p] : best;
      }
      if (best == never<T>) return {t, SelectionStatus::exhausted};
      std::int32_t lowest = std::numeric_limits<std::int32_t>::max();
      for (Index p = 0; p < panels; ++p) {  // whoever has that score is up to date; the lowest original index wins
        if (bound[p] != best) continue;
        for (Index v = p * P; v < (p + 1) * P; v += W) {
          const auto score = s.score(v);
          if (!xsimd::any(score == simd::Batch<T, A>(best))) continue;
          alignas(64) T lane[W];
          score.store_aligned(lane);
          for (Index l = 0; l < W; ++l) {
            const std::int32_t item = lane[l] != best ? lowest : order ? order[v + l] : static_cast<std::int32_t>(v + l);
            if (item < lowest) {
              lowest = item;
              i = v + l;
            }
          }
        }
      }
    }
    picks.data()[t] = order ? order[i] : static_cast<std::int32_t>(i);
    if (scores) scores[t] = best;
    s.exclude(i);
    if (t + 1 == k) break;
    if (count > 0) bound[i / P] = s.best(i / P * P, P);
    panel_row(data, cols, i, queries + count * cols);
    ++count;
  }
  return {k, SelectionStatus::ok};
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
