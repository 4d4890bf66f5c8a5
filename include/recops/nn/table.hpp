/// @file   recops/nn/table.hpp
/// @brief  A parameter that is read and updated by rows: an embedding table.
#pragma once
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
};

}  // namespace RECOPS_ABI
}  // namespace recops
