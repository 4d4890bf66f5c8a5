/// @file   recops/diversity/selection_input.hpp
/// @brief  One request, or a batch of them, as the selectors by features take it (msd, ssd, and dpp_map, where relevance is quality).
#pragma once
#include <optional>
#include <recops/diversity/greedy.hpp>

namespace recops {

/// One request. All but `relevance` and either features or panels may be left empty.
template <class T>
struct SelectionInput {
  VectorView<const T> relevance = {};  ///< [N]
  MatrixView<const T> features = {};   ///< [N, D]
  PanelsView<T> panels = {};           ///< instead of features: packed before; whether rows are normalised was decided then
  MatrixView<const T> history = {};    ///< [m, D] features of what was shown before, oldest first
  VectorView<const std::uint8_t> allowed = {};  ///< [N] 0 for items that must not be picked
  const Constraints* constraints = nullptr;     ///< rules the list must keep
};

/// R requests one behind the other; indices are counted within each request.
template <class T>
struct SelectionBatch {
  VectorView<const T> relevance = {};              ///< [total]
  JaggedView<const T> features = {};               ///< R sequences [N_r, D]; its offsets divide the other inputs
  JaggedView<const T> history = {};                ///< R sequences [m_r, D], or empty
  VectorView<const std::uint8_t> allowed = {};     ///< [total] or empty
  VectorView<const Constraints> constraints = {};  ///< [R] or empty
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
bool is_finite(T v) {
  return std::abs(v) <= std::numeric_limits<T>::max();
}

/// `name`: what the operator calls relevance. Returns D.
template <class T>
Index check_selection(const char* operation, const char* name, const SelectionInput<T>& in, Index places) {
  const Index items = in.relevance.size();
  check_size(operation, name, in.relevance, any_size);
  check_option(operation, name, items <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 items",
               static_cast<double>(items));
  const bool packed = in.panels.rows != 0 || in.panels.cols != 0;
  if (packed) {
    check_shape(operation, "features", in.features, 0, 0);
    check_panels(operation, "panels", in.panels, items);
  } else {
    check_shape(operation, "features", in.features, items, any_size);
  }
  const Index cols = packed ? in.panels.cols : in.features.cols();
  if (in.history.rows() > 0) check_shape(operation, "history", in.history, any_size, cols);
  if (!in.allowed.empty()) check_size(operation, "allowed", in.allowed, items);
  if (places != any_size) check_constraints(operation, in.constraints, items, places);
  return cols;
}

/// The first row of the history that a window of `back` rows sees: rows that are not finite do not count.
template <class T>
Index history_begin(MatrixView<const T> history, Index back) {
  Index first = history.rows();
  for (Index kept = 0; first > 0 && kept < back;) {
    --first;
    const T* const row = history.row(first);
    kept += simd::dot(row, row, history.cols()) <= largest_square<T>;
  }
  return first;
}

/// Request `b` of a batch whose shapes were checked.
template <class T>
SelectionInput<T> selection_request(const SelectionBatch<T>& batch, Index b) {
  const Index first = batch.features.begin(b), count = batch.features.length(b);
  SelectionInput<T> in;
  in.relevance = batch.relevance.segment(first, count);
  in.features = batch.features[b];
  if (!batch.allowed.empty()) in.allowed = batch.allowed.segment(first, count);
  if (batch.history.values().rows() > 0) in.history = batch.history[b];
  if (!batch.constraints.empty()) in.constraints = &batch.constraints[b];
  return in;
}

/// Checks a batch and runs select(request, picks [k], scores [k] or empty, scratch) for every request, on the caller's threads.
template <class T, class F>
void select_batch(const char* operation, const char* name, const SelectionBatch<T>& batch, MatrixView<std::int32_t> picks,
                  MatrixView<T> scores, VectorView<std::int32_t> counts, Workspace& scratch, F&& select) {
  check_jagged(operation, "features", batch.features, any_size, any_size);
  const Index requests = batch.features.size(), total = batch.features.values().rows(), k = picks.cols();
  check_size(operation, name, batch.relevance, total);
  if (!batch.allowed.empty()) check_size(operation, "allowed", batch.allowed, total);
  if (batch.history.values().rows() > 0) check_jagged(operation, "history", batch.history, requests, batch.features.cols());
  if (!batch.constraints.empty()) check_size(operation, "constraints", batch.constraints, requests);
  check_shape(operation, "picks", picks, requests, any_size);
  if (!scores.empty()) check_shape(operation, "scores", scores, requests, k);
  if (!counts.empty()) check_size(operation, "counts", counts, requests);
  for (Index b = 0; b < requests; ++b) check_selection(operation, name, selection_request(batch, b), k);
  scratch.parallel_for(requests, [&](Index b, Workspace& own) {
    const Selection done = select(selection_request(batch, b), VectorView<std::int32_t>(picks.row(b), k),
                                  scores.empty() ? VectorView<T>() : VectorView<T>(scores.row(b), k), own);
    if (!counts.empty()) counts[b] = static_cast<std::int32_t>(done.count);
  });
}

/// What selectors by features have in common: items that are out, the order in which they are packed, constraints.
template <class Rule, class T, class A, class Make>
Selection select_by_features(const SelectionInput<T>& in, [[maybe_unused]] Index cols, bool normalize, bool lazy,
                             VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch, Make&& make) {
  const auto mark = scratch.mark();
  const Index items = in.relevance.size();
  T* const value = scratch.take<T>(items);  // relevance, -infinity where the item is out
  for (Index i = 0; i < items; ++i) {
    const T r = in.relevance.data()[i];
    value[i] = (!in.allowed.empty() && in.allowed.data()[i] == 0) || !is_finite(r) || !Rule::takes(r) ? never<T> : r;
  }
  std::optional<ConstraintState> limits;
  if (in.constraints)
    limits.emplace(
        *in.constraints, items, picks.size(), [value](Index i) { return value[i] > never<T>; }, scratch);
  const bool packed = in.panels.rows != 0 || in.panels.cols != 0;
  const bool sorted = lazy && !packed && picks.size() + in.history.rows() > 1;
  Candidates<T, A> rows(in.features, in.panels, items, packed ? in.panels.unit : normalize, sorted, value, scratch);
  assert(rows.cols() == cols);
  Rule rule = make(rows, value, std::min(picks.size(), items));  // no more picks than items
  const Selection done = Greedy<T, A, Rule>(rows, rule, lazy, limits ? &*limits : nullptr, scratch).run(picks, scores);
  clear_places(done.count, picks, scores);
  return done;
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
