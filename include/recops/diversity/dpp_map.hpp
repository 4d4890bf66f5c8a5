/// @file   recops/diversity/dpp_map.hpp
/// @brief  Greedy MAP of a determinantal point process: pick items whose features span the largest volume, weighted by quality.
///
///     L_ij = q_i q_j alpha^[i != j] <x_i, x_j> + [i = j] delta_i         or a kernel L [N, N] that the caller has
///     pick i with the largest  d2_i = det(L_{Y + i}) / det(L_Y),  repeat; with a window Y holds the last w - 1 picks
///
/// Shapes      quality [N]   features [N, D]   history [m, D]   allowed, diagonal [N]   kernel [N, N], symmetric; row j: to item j
///             picks, scores [k]: as many picks as places. Batches: features jagged over R requests, picks and scores [R, k].
/// Scores      log d2 of each pick when it was picked: without a window they fall, and sum to log det L_Y (with a history: given it).
///             Below 0 a pick makes the determinant smaller.
/// Ties        The lowest index. The same picks, bit for bit, for any evaluation, batch, number of threads, panels or features.
/// Rank        An item of whose own volume no more than eps is left (a duplicate of a pick; any item once k exceeds the rank) is
///             not picked: status `rank_exhausted`, or `fill`. With alpha < 1 or a diagonal rank does not run out.
/// History     What was shown before counts as picked before, whatever its quality. In the kernel form: constraints only.
/// Edge cases  N = 0, k = 0, D = 0, m = 0, k > N, nothing allowed: fewer picks and a status, never an item twice. Unused places get
///             index -1 and score -infinity. Rows of zeros are never picked (unless they have a diagonal).
/// NaN         An item with quality not above 0 or not finite, or features (diagonal entry of L) not finite, is never picked and
///             influences nothing; such a history row is ignored. So no NaN leaves its item.
/// Precision   T; qualities within a factor of 1e18 (float) of the largest are told apart. Small systems of a kernel's window: double.
/// Cost        Features: 2 N D k + 4 D k^2 flops and a pass over N · D numbers a pick, after one packing pass; no N x k matrix. Lazy:
///             of that only panels whose bound reaches the best. A window doubles the products and adds 4 D w^2 a pick.
///             Kernel: N k^2 and as many numbers of scratch as N k; window 4 N w k. No allocation once warm.
/// Errors      Error for shapes and options; outputs untouched.
/// Gradient    `dpp_map_backward`: of quality and features, the picks held fixed; *adds*.
/// Reference   Chen, Zhang, Zhou, Fast greedy MAP inference for determinantal point process, NeurIPS 2018 (arXiv 1709.05135); the
///             form by features, and its window, are our reconstruction. Blocked lazy evaluation after Hemmi et al., NeurIPS 2022.
#pragma once
#include <recops/diversity/dpp_backward.hpp>
#include <recops/diversity/dpp_features.hpp>
#include <recops/diversity/dpp_kernel.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
Index check_dpp(const char* operation, const DppInput<T>& in, const DppOptions& options, Index places) {
  check_dpp_options(operation, options);
  const Index cols = check_selection(operation, "quality", as_selection(in), places);
  if (!in.diagonal.empty()) check_size(operation, "diagonal", in.diagonal, in.quality.size());
  return cols;
}

template <class T, class A>
Selection dpp_select(const DppInput<T>& in, Index cols, const DppOptions& options, VectorView<std::int32_t> picks,
                     VectorView<T> scores, Workspace& scratch) {
  const bool lazy = options.evaluation == SelectionEvaluation::lazy;
  const auto select = [&]<bool windowed>(std::bool_constant<windowed>) {
    using Rule = DppFeatureRule<T, A, windowed>;
    return select_by_features<Rule, T, A>(
        as_selection(in), cols, options.normalize, lazy, picks, scores, scratch,
        [&](Candidates<T, A>& rows, const T* value, Index most) { return Rule(in, options, rows, value, most, scratch); });
  };
  return options.window > 0 ? select(std::true_type{}) : select(std::false_type{});
}

/// `row(j)`: the kernel row of item j, good until the end.
template <class T, class A, class Fetch>
Selection dpp_select_kernel(Index items, const T* diagonal, Fetch&& row, const DppOptions& options,
                            const Constraints* constraints, VectorView<std::int32_t> picks, VectorView<T> scores,
                            Workspace& scratch) {
  std::optional<ConstraintState> limits;
  if (constraints)
    limits.emplace(
        *constraints, items, picks.size(), [diagonal](Index i) { return diagonal[i] > never<T>; }, scratch);
  Candidates<T, A> rows({}, {}, items, false, false, nullptr, scratch);
  const auto select = [&]<class Rule>(std::type_identity<Rule>) {
    Rule rule(options, rows, row, diagonal, std::min(picks.size(), items), scratch);  // no more picks than items
    const bool lazy = options.evaluation == SelectionEvaluation::lazy;
    return Greedy<T, A, Rule>(rows, rule, lazy, limits ? &*limits : nullptr, scratch).run(picks, scores);
  };
  using F = std::remove_reference_t<Fetch>;
  const Selection done = options.window > 0 ? select(std::type_identity<DppKernelWindowRule<T, A, F>>{})
                                            : select(std::type_identity<DppKernelRule<T, A, F>>{});
  clear_places(done.count, picks, scores);
  return done;
}

/// The diagonal, -infinity where the item is out.
template <class T, class F>
const T* dpp_diagonal(Index items, VectorView<const std::uint8_t> allowed, F&& entry, Workspace& scratch) {
  T* const d = scratch.take<T>(items);
  for (Index i = 0; i < items; ++i) {
    const T v = entry(i);
    d[i] = (!allowed.empty() && allowed.data()[i] == 0) || !(v >= 0 && v <= largest_square<T>) ? never<T> : v;
  }
  return d;
}

}  // namespace detail

/// Fills `picks` [k] with the indices of up to k items, in the order they were picked, and `scores` [k] (or empty) with log d2.
template <Real T, class A = simd::DefaultArch>
Selection dpp_map(const DppInput<T>& input, const DppOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores,
                  Workspace& scratch) {
  detail::check_selection_outputs("dpp_map", picks, scores);
  const Index cols = detail::check_dpp("dpp_map", input, options, picks.size());
  return detail::dpp_select<T, A>(input, cols, options, picks, scores, scratch);
}

/// The same with nothing but quality [N] and features [N, D].
template <Real T>
Selection dpp_map(VectorView<const T> quality, MatrixView<const T> features, const DppOptions& options,
                  VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  return dpp_map<T>(DppInput<T>{.quality = quality, .features = features}, options, picks, scores, scratch);
}

/// The same with features packed before; whether they are normalised was decided then.
template <Real T>
Selection dpp_map(VectorView<const T> quality, PanelsView<T> panels, const DppOptions& options, VectorView<std::int32_t> picks,
                  VectorView<T> scores, Workspace& scratch) {
  return dpp_map<T>(DppInput<T>{.quality = quality, .panels = panels}, options, picks, scores, scratch);
}

/// R requests at once (`relevance` is quality), on the caller's threads where `scratch` has any: `picks` and `scores` (or empty)
/// [R, k], `counts` (or empty) [R]. Every request gets the picks it would get alone.
template <Real T>
void dpp_map(const SelectionBatch<T>& batch, const DppOptions& options, MatrixView<std::int32_t> picks, MatrixView<T> scores,
             VectorView<std::int32_t> counts, Workspace& scratch) {
  detail::check_dpp_options("dpp_map", options);
  detail::select_batch("dpp_map", "quality", batch, picks, scores, counts, scratch,
                       [&](const SelectionInput<T>& in, VectorView<std::int32_t> p, VectorView<T> s, Workspace& own) {
                         const DppInput<T> request{in.relevance, in.features, {}, in.history, in.allowed, {}, in.constraints};
                         return detail::dpp_select<T, simd::DefaultArch>(request, batch.features.cols(), options, p, s, own);
                       });
}

/// The same from a kernel [N, N], symmetric; a positive definite one is usual, what is not is picked while d2 is positive. `options.alpha`
/// and `normalize` do not apply.
template <Real T, class A = simd::DefaultArch>
Selection dpp_map_kernel(MatrixView<const T> kernel, VectorView<const std::uint8_t> allowed, const Constraints* constraints,
                         const DppOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  const Index items = kernel.rows();
  check_shape("dpp_map_kernel", "kernel", kernel, items, items);
  if (!allowed.empty()) check_size("dpp_map_kernel", "allowed", allowed, items);
  detail::check_selection_outputs("dpp_map_kernel", picks, scores);
  detail::check_dpp_options("dpp_map_kernel", options);
  check_option("dpp_map_kernel", "kernel", items <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 items",
               static_cast<double>(items));
  detail::check_constraints("dpp_map_kernel", constraints, items, picks.size());
  const auto mark = scratch.mark();
  const T* const diagonal = detail::dpp_diagonal<T>(
      items, allowed, [&](Index i) { return kernel(i, i); }, scratch);
  return detail::dpp_select_kernel<T, A>(
      items, diagonal, [&](Index j) { return kernel.row(j); }, options, constraints, picks, scores, scratch);
}

/// The same from a kernel whose rows are computed when an item is picked: `row(j, out)` writes row j to `out` [N]. `diagonal` [N] is
/// that of the kernel. Nothing of size N x N exists; scratch k · N for the rows.
template <Real T, class Row>
requires std::is_invocable_v<Row&, Index, VectorView<T>> Selection
dpp_map_kernel(VectorView<const T> diagonal, Row&& row, VectorView<const std::uint8_t> allowed, const Constraints* constraints,
               const DppOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  const Index items = diagonal.size();
  check_size("dpp_map_kernel", "diagonal", diagonal, any_size);
  if (!allowed.empty()) check_size("dpp_map_kernel", "allowed", allowed, items);
  detail::check_selection_outputs("dpp_map_kernel", picks, scores);
  detail::check_dpp_options("dpp_map_kernel", options);
  check_option("dpp_map_kernel", "diagonal", items <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 items",
               static_cast<double>(items));
  detail::check_constraints("dpp_map_kernel", constraints, items, picks.size());
  const auto mark = scratch.mark();
  const T* const usable = detail::dpp_diagonal<T>(
      items, allowed, [&](Index i) { return diagonal.data()[i]; }, scratch);
  T* next = scratch.take<T>(std::min(picks.size(), items) * items);
  const auto fetch = [&](Index j) {
    T* const out = std::exchange(next, next + items);
    row(j, VectorView<T>(out, items));
    return static_cast<const T*>(out);
  };
  return detail::dpp_select_kernel<T, simd::DefaultArch>(items, usable, fetch, options, constraints, picks, scores, scratch);
}

}  // namespace RECOPS_ABI
}  // namespace recops
