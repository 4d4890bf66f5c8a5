/// @file   recops/nn/table.hpp
/// @brief  A parameter that is read and updated by rows: an embedding table.
#pragma once
#include <algorithm>
#include <recops/core/matrix.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// As a parameter: dense `values [V, D]`. As a gradient (`by_rows`): only the touched rows, `values [R, D]`, and their sorted
/// distinct ids `rows [R]`. Optimisers ask which it is.
template <class T>
struct Table {
  Matrix<T> values;
  Vector<std::int64_t> rows;
  bool by_rows = false;

  /// Makes it a gradient in which no row has been touched; keeps its memory.
  void clear_rows(Index cols) {
    by_rows = true;
    rows.clear();
    values.resize(0, cols);
  }

  /// Takes the rows `id(0) .. id(count - 1)`, ascending, repeats allowed, into a gradient by rows: those that are new start at 0.
  /// Works from behind, so that a row moves at most once and no other memory is needed.
  template <class Id>
  void touch_rows(Index count, Id&& id) {
    const Index old = rows.size(), cols = values.cols();
    Index fresh = 0;
    for (Index i = 0, r = 0; i < count; ++i) {
      if (i > 0 && id(i) == id(i - 1)) continue;
      while (r < old && rows[r] < id(i)) ++r;
      fresh += r == old || rows[r] != id(i);
    }
    rows.resize(old + fresh);
    values.resize(old + fresh, cols);
    for (Index i = count - 1, r = old - 1, to = old + fresh - 1; to > r; --to) {
      while (i > 0 && id(i) == id(i - 1)) --i;
      if (r >= 0 && rows[r] >= id(i)) {
        i -= rows[r] == id(i);
        rows[to] = rows[r];
        std::copy_n(values.row(r), cols, values.row(to));
        --r;
      } else {
        rows[to] = id(i--);
        std::fill_n(values.row(to), cols, T(0));
      }
    }
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
