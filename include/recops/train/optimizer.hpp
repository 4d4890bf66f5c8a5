/// @file   recops/train/optimizer.hpp
/// @brief  What the optimisers share: the walk over parameters, gradients and state.
///
/// An optimiser of a layer `L` keeps its state in values of the type `L` and lists them in `fields()`, so that it is saved, loaded
/// and counted like a layer: a checkpoint is the layer and its optimiser in one file, and training resumed from it continues bit for
/// bit. Tables whose gradient is by rows are updated lazily: rows that were not read keep their numbers and their state. Buffers
/// are skipped, and so are parameters whose gradient is empty (not wanted). A NaN or infinity in a gradient makes its parameter NaN
/// and stays in the state: look at the loss before the step. A step allocates nothing; its bits depend on nothing but its arguments.
#pragma once
#include <cmath>
#include <recops/nn/gradient.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// What a run of parameters is part of.
enum class Run : unsigned char {
  dense,       ///< all of a matrix or vector
  table_row,   ///< a row of a table with a dense gradient
  sparse_row,  ///< a row of a table whose gradient is by rows: updated lazily
};

/// Fetches a row of a table that is about to be updated.
template <class T>
void fetch_row(const Matrix<T>& table, Index row) {
  const T* const p = table.row(row);
  for (Index at = 0; at < table.cols(); at += 64 / static_cast<Index>(sizeof(T))) __builtin_prefetch(p + at, 1);
}

/// Calls `f(run, p, g, n, s...)` for every run of `n` parameters with their gradients and states. Checks every shape before the
/// first call; with `row_wise` the state of a table is one number a row.
template <class L, class F, class... States>
void update_parameters(const char* operation, L& layer, const L& gradient, bool row_wise, F&& f, States&... states) {
  const auto check_state = [operation, row_wise](L& parameters, const L& state) {
    visit(
        [operation, row_wise](const FieldPath& path, const auto& p, const auto& s) {
          bool same;
          if constexpr (IsTable<std::remove_cvref_t<decltype(p)>>::value) {
            same = p.values.rows() == s.values.rows() && s.values.cols() == (row_wise ? 1 : p.values.cols());
          } else {
            static_cast<void>(row_wise);
            same = same_shape(p, s);
          }
          if (path.kind == FieldKind::parameter && !same)
            fail(operation, path.str().c_str(), "the shape it had when the optimiser was made", "another shape");
        },
        parameters, state);
  };
  (check_state(layer, states), ...);
  check_gradient_shapes(operation, layer, gradient);
  visit(
      [&](const FieldPath& path, auto& p, const auto& g, auto&... s) {
        if (path.kind != FieldKind::parameter) return;
        using T = std::remove_cvref_t<decltype(*leaf_values(p).data())>;
        if constexpr (!std::is_floating_point_v<T>) {
          return;  // a counter among the buffers
        } else if constexpr (IsTable<std::remove_cvref_t<decltype(p)>>::value) {
          const Index touched = g.values.empty() ? 0 : g.values.rows();
          constexpr Index ahead = 8;  // the rows are scattered over tables that no cache holds
          for (Index r = 0; r < touched; ++r) {
            const Index row = g.by_rows ? static_cast<Index>(g.rows[r]) : r;
            if (g.by_rows && r + ahead < touched) {
              const Index next = static_cast<Index>(g.rows[r + ahead]);
              fetch_row(p.values, next);
              (fetch_row(s.values, next), ...);
            }
            f(g.by_rows ? Run::sparse_row : Run::table_row, p.values.row(row), g.values.row(r), g.values.cols(),
              s.values.row(row)...);
          }
        } else {
          if (leaf_values(g).empty()) return;
          f(Run::dense, p.data(), g.data(), leaf_values(p).size(), s.data()...);
        }
      },
      layer, gradient, states...);
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
