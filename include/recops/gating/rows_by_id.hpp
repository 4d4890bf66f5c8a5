/// @file   recops/gating/rows_by_id.hpp
/// @brief  Parameters of which each row of a batch has its own: the row of a table that its user, domain or group names.
#pragma once
#include <algorithm>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/nn/table.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Every id must name a row, or be -1 for none. O(n).
inline void check_ids_or_none(const char* name, const char* argument, IndexView ids, Index count, Index rows) {
  check_not_null(name, argument, ids);
  if (ids.size() != count) [[unlikely]]
    fail_size(name, argument, count, ids.size(), false);
  for (Index i = 0; i < count; ++i) {
    if (ids[i] < -1 || ids[i] >= rows) [[unlikely]]
      fail_at(name, argument, "-1 or ids from 0 to below ", rows, i, ids[i]);
  }
}

/// What `gradient` must be for a table `[rows, cols]`: dense, by rows, or without numbers (not wanted; returns false).
template <class T>
bool check_table_gradient(const char* name, const char* argument, const Table<T>& gradient, Index rows, Index cols) {
  if (gradient.by_rows) {
    check_shape(name, argument, gradient.values.view(), gradient.rows.size(), cols);
    return true;
  }
  if (gradient.values.empty()) return false;
  check_shape(name, argument, gradient.values.view(), rows, cols);
  return true;
}

/// Calls `add(position, row)` for every id >= 0 with the row of the gradient that is its own, by rows or dense. Those of one id come in
/// the order of their positions: the same bits every time.
template <class T, class F>
void add_to_rows(IndexView ids, Table<T>& gradient, Workspace& ws, F&& add) {
  if (!gradient.by_rows) {
    for (Index i = 0; i < ids.size(); ++i)
      if (ids[i] >= 0) add(i, gradient.values.row(ids[i]));
    return;
  }
  const auto mark = ws.mark();
  struct Use {
    Index id, position;
  };
  Use* const uses = ws.take<Use>(ids.size());
  Index count = 0;
  for (Index i = 0; i < ids.size(); ++i)
    if (ids[i] >= 0) uses[count++] = {ids[i], i};
  std::sort(uses, uses + count, [](const Use& a, const Use& b) { return a.id != b.id ? a.id < b.id : a.position < b.position; });
  gradient.touch_rows(count, [&](Index i) { return uses[i].id; });
  for (Index i = 0, r = 0; i < count; ++i) {
    while (gradient.rows[r] != uses[i].id) ++r;
    add(uses[i].position, gradient.values.row(r));
  }
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
