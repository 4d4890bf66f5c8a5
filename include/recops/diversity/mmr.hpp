/// @file   recops/diversity/mmr.hpp
/// @brief  Maximal marginal relevance: pick items one by one, each relevant and unlike what was picked before.
///
///     score_i = lambda · r_i - (1 - lambda) · max_{j picked or in the history} sim(i, j)          pick the largest, repeat
///
///     sim(i, j) = <x_i, x_j>, or a matrix the caller has, or "same category", or a weighted sum of them
///
/// Shapes      relevance [N]   features [N, D]   history [m, D]   allowed [N]   picks, scores [k]: as many picks as places.
///             Batches: features jagged over R requests, picks and scores [R, k], counts [R].
/// First pick  Without a history nothing is similar yet: the most relevant item is picked, its score is lambda · r.
/// Ties        The lowest index. The same picks, bit for bit, for any evaluation, batch, number of threads, panels or features.
/// Edge cases  N = 0, k = 0, D = 0, m = 0, k > N, nothing allowed: fewer picks and a status, never an item twice. Unused places get
///             index -1 and score -infinity.
/// NaN         An item whose relevance or features are not finite (or whose features' sum of squares exceeds a quarter of the largest
///             number) is never picked and influences nothing; such a history row is ignored. An item whose given similarity to a
///             pick is not finite is not picked after it. So no NaN leaves its item.
/// Precision   T throughout; each dot product runs in one lane, in an order that depends on D alone.
/// Cost        Eager: 2 N D (k - 1) flops and a pass over N · D numbers a pick, after one packing pass. Lazy: the first pass, then a
///             few percent of it a pick. Scratch N · D + O(N + k D), with a window w also (w - 1) N. No allocation once warm.
/// Constraints Quotas, windows, pins: constraints.hpp.
/// Errors      Error for shapes, options and (backward) picks out of range; outputs untouched.
/// Gradient    `mmr_backward`: of relevance, features, history and given similarities, the picks held fixed; *adds*.
/// Reference   Carbonell & Goldstein, The use of MMR, diversity-based reranking for reordering documents, SIGIR 1998.
///             Blocked lazy evaluation after Hemmi et al., Lazy and fast greedy MAP inference for DPP, NeurIPS 2022.
#pragma once
#include <optional>
#include <recops/diversity/mmr_backward.hpp>
#include <recops/diversity/mmr_columns.hpp>
#include <recops/diversity/mmr_panels.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// A checked request.
template <class T, class A>
Selection mmr_select(const MmrProblem<T>& problem, VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  const auto mark = scratch.mark();
  const auto& in = problem.in;
  const bool columns = problem.options.window > 0 || !in.similarity.empty() || !in.categories.empty() ||
                       !problem.has_features() || problem.options.feature_weight != 1;
  std::optional<ConstraintState> limits;
  if (in.constraints)
    limits.emplace(
        *in.constraints, problem.items, picks.size(), [&](Index i) { return !problem.excluded(i); }, scratch);
  const Selection done =
      (columns ? mmr_by_columns<T, A> : mmr_by_panels<T, A>)(problem, limits ? &*limits : nullptr, picks, scores, scratch);
  clear_places(done.count, picks, scores);
  return done;
}

}  // namespace detail

/// Fills `picks` [k] with the indices of up to k items, best first, and `scores` [k] (or empty) with the scores they won with.
template <Real T, class A = simd::DefaultArch>
Selection mmr(const MmrInput<T>& input, const MmrOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores,
              Workspace& scratch) {
  detail::check_selection_outputs("mmr", picks, scores);
  const auto problem = detail::check_mmr("mmr", input, options, picks.size());
  return detail::mmr_select<T, A>(problem, picks, scores, scratch);
}

/// The same with nothing but relevance [N] and features [N, D].
template <Real T>
Selection mmr(VectorView<const T> relevance, MatrixView<const T> features, const MmrOptions& options,
              VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  return mmr<T>(MmrInput<T>{.relevance = relevance, .features = features}, options, picks, scores, scratch);
}

/// The same with features packed before; whether they are normalised was decided then.
template <Real T>
Selection mmr(VectorView<const T> relevance, PanelsView<T> panels, const MmrOptions& options, VectorView<std::int32_t> picks,
              VectorView<T> scores, Workspace& scratch) {
  return mmr<T>(MmrInput<T>{.relevance = relevance, .panels = panels}, options, picks, scores, scratch);
}

/// R requests at once, on the caller's threads where `scratch` has any: `picks` and `scores` (or empty) [R, k], `counts` (or empty)
/// [R]. Every request gets the picks it would get alone.
template <Real T>
void mmr(const MmrBatch<T>& batch, const MmrOptions& options, MatrixView<std::int32_t> picks, MatrixView<T> scores,
         VectorView<std::int32_t> counts, Workspace& scratch) {
  detail::check_mmr_batch("mmr", batch, options, picks.cols());
  const Index requests = batch.features.size(), k = picks.cols();
  check_shape("mmr", "picks", picks, requests, any_size);
  if (!scores.empty()) check_shape("mmr", "scores", scores, requests, k);
  if (!counts.empty()) check_size("mmr", "counts", counts, requests);
  scratch.parallel_for(requests, [&](Index b, Workspace& own) {
    const auto input = detail::mmr_request(batch, b);
    const auto problem = detail::check_mmr("mmr", input, options);
    const Selection done =
        detail::mmr_select<T, simd::DefaultArch>(problem, VectorView<std::int32_t>(picks.row(b), k),
                                                 scores.empty() ? VectorView<T>() : VectorView<T>(scores.row(b), k), own);
    if (!counts.empty()) counts[b] = static_cast<std::int32_t>(done.count);
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
