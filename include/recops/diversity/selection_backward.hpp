/// @file   recops/diversity/selection_backward.hpp
/// @brief  What backward passes of the selectors by features share: checks, and the rows that were shown with their gradients.
#pragma once
#include <recops/diversity/selection_input.hpp>

namespace recops {

/// Where the backward pass of a selector adds; empty: not wanted.
template <class T>
struct SelectionGradient {
  VectorView<T> relevance = {};  ///< [N] (dpp_map: of quality)
  MatrixView<T> features = {};   ///< [N, D]
  MatrixView<T> history = {};    ///< [m, D]
};

inline namespace RECOPS_ABI {
namespace detail {

/// Returns the number of picks.
template <class T>
Index check_selection_backward(const char* name, const SelectionInput<T>& in, Index cols, VectorView<const std::int32_t> picks,
                               VectorView<const T> dscores, const SelectionGradient<T>& gradient) {
  const Index items = in.relevance.size();
  check_option(name, "panels", in.panels.rows == 0, "features, not panels", static_cast<double>(in.panels.rows));
  check_size(name, "picks", picks, any_size);
  check_size(name, "dscores", dscores, picks.size());
  if (!gradient.relevance.empty()) check_size(name, "gradient.relevance", gradient.relevance, items);
  if (!gradient.features.empty()) check_shape(name, "gradient.features", gradient.features, items, cols);
  if (!gradient.history.empty()) check_shape(name, "gradient.history", gradient.history, in.history.rows(), cols);
  Index count = 0;
  while (count < picks.size() && picks[count] != -1) ++count;
  for (Index t = 0; t < picks.size(); ++t) {
    if (t < count ? picks[t] < 0 || picks[t] >= items : picks[t] != -1) [[unlikely]]
      fail_at(name, "picks", t < count ? "indices from 0 to below " : "-1 behind the last pick", t < count ? items : -1, t,
              picks[t]);
  }
  return count;
}

/// History (what of it is finite) and picks in the order they were shown: rows as the selector saw them, and their gradients.
template <class T>
struct ShownRows {
  Index cols, seen = 0, count;
  bool unit;
  T *rows, *drows;
  std::int32_t* source;  // history row of each that counted

  ShownRows(const SelectionInput<T>& in, Index columns, bool normalize, VectorView<const std::int32_t> picks, Workspace& scratch)
      : cols(columns), count(picks.size()), unit(normalize) {
    rows = scratch.take<T>((in.history.rows() + count) * cols);
    drows = scratch.take<T>((in.history.rows() + count) * cols);
    source = scratch.take<std::int32_t>(in.history.rows());
    for (Index h = 0; h < in.history.rows(); ++h) {
      if (selection_row(in.history.row(h), cols, unit, row(seen))) source[seen++] = static_cast<std::int32_t>(h);
    }
    for (Index t = 0; t < count; ++t) {
      if (!selection_row(in.features.row(picks[t]), cols, unit, row(seen + t)))
        std::fill(row(seen + t), row(seen + t) + cols, T(0));
    }
    std::fill(drows, drows + (seen + count) * cols, T(0));
  }
  T* row(Index l) const { return rows + l * cols; }
  T* drow(Index l) const { return drows + l * cols; }
  /// Hands the gradients on to features and history.
  void add_to(const SelectionInput<T>& in, VectorView<const std::int32_t> picks, const SelectionGradient<T>& gradient) const {
    for (Index l = 0; l < seen + count; ++l) {
      const bool old = l < seen;
      const MatrixView<T> out = old ? gradient.history : gradient.features;
      if (out.empty()) continue;
      const Index at = old ? source[l] : picks[l - seen];
      if (unit) {
        const T* const x = old ? in.history.row(at) : in.features.row(at);
        normalize_row_backward(row(l), drow(l), inverse_length(x, cols), out.row(at), cols);
      } else {
        simd::add(drow(l), out.row(at), cols);
      }
    }
  }
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
