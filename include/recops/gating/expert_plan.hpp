/// @file   recops/gating/expert_plan.hpp
/// @brief  Which rows go to which expert: the bookkeeping between a router's choices and products that run expert by expert.
///
/// A slot is one row at one expert. Slots of one expert lie together, in the order of their rows: what an expert computes is a
/// contiguous block. A row that names an expert twice (two tasks that chose the same one) has one slot there.
#pragma once
#include <algorithm>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Slots of a batch. Views of the workspace that it was planned in: valid as long as the caller's mark.
struct ExpertPlan {
  VectorView<Index> begin;         ///< [E + 1], the slots of expert e are begin[e] .. begin[e + 1]
  VectorView<std::int32_t> row;    ///< [S], of each slot
  VectorView<Index> row_begin;     ///< [N + 1], the entries of `slot` of row n are row_begin[n] .. row_begin[n + 1]
  VectorView<std::int32_t> slot;   ///< [S], row by row
  MatrixView<std::int32_t> entry;  ///< of each choice the slot it came to, or -1 where it was dropped or no choice
  Index dropped = 0;               ///< choices beyond an expert's capacity

  Index experts() const { return begin.size() - 1; }
  Index rows() const { return row_begin.size() - 1; }
  /// S
  Index slots() const { return row.size(); }
  /// Slots of expert e.
  Index count(Index e) const { return begin[e + 1] - begin[e]; }
};

/// Plans the choices `[N, K]` of a router, each an expert or -1 for none. With `capacity` > 0 an expert takes that many rows, first come
/// first served; later choices are dropped: they are no slot, and -1 in `entry`. O(E + N K). Throws `Error` for a choice that is out of
/// range.
inline ExpertPlan plan_choices(MatrixView<const std::int32_t> choices, Index experts, Index capacity, Workspace& ws) {
  constexpr const char* name = "plan_choices";
  check_option(name, "experts", experts >= 1 && experts <= 65536, "1 to 65536", static_cast<double>(experts));
  check_option(name, "capacity", capacity >= 0, "capacity >= 0 (0: no limit)", static_cast<double>(capacity));
  check_shape(name, "choices", choices, any_size, any_size);
  const Index n = choices.rows(), k = choices.cols();
  check_option(name, "choices", static_cast<double>(n) * static_cast<double>(k) < 2147483648.0, "fewer than 2^31",
               static_cast<double>(n) * static_cast<double>(k));
  for (Index r = 0; r < n; ++r)
    for (Index j = 0; j < k; ++j)
      if (choices(r, j) < -1 || choices(r, j) >= experts) [[unlikely]]
        detail::fail_at(name, "choices", "-1 or experts from 0 to below ", experts, r * k + j, choices(r, j));

  ExpertPlan plan{.begin = ws.vector<Index>(experts + 1),
                  .row = {},
                  .row_begin = ws.vector<Index>(n + 1),
                  .slot = {},
                  .entry = ws.matrix<std::int32_t>(n, k),
                  .dropped = 0};
  std::fill(plan.begin.begin(), plan.begin.end(), Index{0});
  std::int32_t *const last_row = ws.take<std::int32_t>(experts), *const last_slot =
                                                                     ws.take<std::int32_t>(experts);  // -1: dropped
  std::fill_n(last_row, experts, -1);
  // First the rank of each choice at its expert, in `entry`; then, with the experts' first slots known, the slot.
  for (Index r = 0; r < n; ++r)
    for (Index j = 0; j < k; ++j) {
      const std::int32_t e = choices(r, j);
      std::int32_t rank = -1;
      if (e >= 0) {
        if (last_row[e] != r) {
          Index& count = plan.begin[e + 1];
          const bool full = capacity > 0 && count >= capacity;
          plan.dropped += full;
          last_row[e] = static_cast<std::int32_t>(r);
          last_slot[e] = full ? -1 : static_cast<std::int32_t>(count++);
        }
        rank = last_slot[e];
      }
      plan.entry(r, j) = rank;
    }
  for (Index e = 0; e < experts; ++e) plan.begin[e + 1] += plan.begin[e];
  plan.row = ws.vector<std::int32_t>(plan.begin[experts]);
  plan.slot = ws.vector<std::int32_t>(plan.begin[experts]);
  std::fill_n(last_row, experts, -1);
  Index at = 0;
  for (Index r = 0; r < n; ++r) {
    plan.row_begin[r] = at;
    for (Index j = 0; j < k; ++j) {
      if (plan.entry(r, j) < 0) continue;
      const std::int32_t e = choices(r, j);
      const Index s = plan.begin[e] + plan.entry(r, j);
      plan.entry(r, j) = static_cast<std::int32_t>(s);
      if (last_row[e] == r) continue;
      last_row[e] = static_cast<std::int32_t>(r);
      plan.row[s] = static_cast<std::int32_t>(r);
      plan.slot[at++] = static_cast<std::int32_t>(s);
    }
  }
  plan.row_begin[n] = at;
  return plan;
}

/// Plans the rows `[E, cap]` that experts chose (gating/expert_choice.hpp): choice j of expert e is slot e cap + j, which is also what
/// `entry [E, cap]` says. A row may have no slot, or one at every expert. Throws `Error` for a row that is out of range.
inline ExpertPlan plan_expert_choice(MatrixView<const std::int32_t> chosen, Index rows, Workspace& ws) {
  constexpr const char* name = "plan_expert_choice";
  check_shape(name, "chosen", chosen, any_size, any_size);
  const Index experts = chosen.rows(), cap = chosen.cols();
  check_option(name, "experts", experts >= 1 && experts <= 65536, "1 to 65536", static_cast<double>(experts));
  check_option(name, "rows", rows >= 0 && rows < Index{1} << 31, "0 to below 2^31", static_cast<double>(rows));
  check_option(name, "chosen", static_cast<double>(experts) * static_cast<double>(cap) < 2147483648.0, "fewer than 2^31",
               static_cast<double>(experts) * static_cast<double>(cap));
  for (Index e = 0; e < experts; ++e) check_indices(name, "chosen", IndexView(chosen.row(e), cap), rows);
  const ExpertPlan plan{.begin = ws.vector<Index>(experts + 1),
                        .row = ws.vector<std::int32_t>(experts * cap),
                        .row_begin = ws.vector<Index>(rows + 1),
                        .slot = ws.vector<std::int32_t>(experts * cap),
                        .entry = ws.matrix<std::int32_t>(experts, cap),
                        .dropped = 0};
  std::fill(plan.row_begin.begin(), plan.row_begin.end(), Index{0});
  for (Index e = 0; e < experts; ++e)
    for (Index j = 0; j < cap; ++j) ++plan.row_begin[chosen(e, j) + 1];
  for (Index r = 0; r < rows; ++r) plan.row_begin[r + 1] += plan.row_begin[r];
  for (Index e = 0; e <= experts; ++e) plan.begin[e] = e * cap;
  const auto mark = ws.mark();
  Index* const next = ws.take<Index>(rows);
  std::copy_n(plan.row_begin.data(), rows, next);
  for (Index e = 0; e < experts; ++e)
    for (Index j = 0; j < cap; ++j) {
      const std::int32_t r = chosen(e, j), s = static_cast<std::int32_t>(e * cap + j);
      plan.entry(e, j) = s;
      plan.row[s] = r;
      plan.slot[next[r]++] = s;
    }
  return plan;
}

}  // namespace RECOPS_ABI
}  // namespace recops
