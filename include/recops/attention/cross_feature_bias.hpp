/// @file   recops/attention/cross_feature_bias.hpp
/// @brief  What the cross features of a behaviour (when it was, how long it was watched, where it stood) add to its attention scores:
///         every feature squeezed to one number, and these weighted, head by head.
///
///     bias_a[l] = sum_j beta_aj (x_lj . w_aj)                     x_l: J features of width e side by side
///
/// Dense form: beta and w collapse to one vector a head, so this is one product [L, J e] x [J e, H]. Table form: where the
/// features are bucketised ids, T_aj[id] = beta_aj (E_j[id] . w_aj) is computed once for every row of the tables, and a behaviour
/// costs J look-ups of H numbers; no embedding is read.
///
/// Shapes      cross [L, J e]   w [H, J e]   beta [H, J]   bias [L, H]   tables [V, e] (all J one below the other, J e = J * e)
///             first_row [J + 1], where each table begins   ids [L, J], each within its own table   collapsed [V, H]
/// NaN         Stays in its row.   Cost   2 L J e H flops; by tables 2 V e H once, then L J H additions.
/// Errors      Error if shapes, ids or offsets disagree; outputs untouched.
/// Reference   Chang et al., TWIN, arXiv 2302.02352, section 3.3. (w -> t w, beta -> beta / t is free: only the products matter.)
#pragma once
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Features J of width e.
template <class T>
[[gnu::noinline]] void check_cross(const char* op, Index cols, MatrixView<const T> w, MatrixView<const T> beta) {
  check_shape(op, "w", w, any_size, cols);
  check_shape(op, "beta", beta, w.rows(), any_size);
  check_option(op, "beta", beta.cols() == 0 ? cols == 0 : cols % beta.cols() == 0,
               "a number of features that divides the columns of cross", static_cast<double>(beta.cols()));
}

/// folded [H, J e] = beta_aj w_aj
template <class T>
void fold_cross(MatrixView<const T> w, MatrixView<const T> beta, MatrixView<T> folded) {
  const Index e = beta.cols() == 0 ? 0 : w.cols() / beta.cols();
  for (Index a = 0; a < w.rows(); ++a)
    for (Index j = 0; j < beta.cols(); ++j)
      for (Index i = j * e; i < (j + 1) * e; ++i) folded(a, i) = beta(a, j) * w(a, i);
}

/// Adds to dw and dbeta what the gradient of the folded vectors gives.
template <class T>
void fold_cross_backward(MatrixView<const T> w, MatrixView<const T> beta, MatrixView<const T> dfolded, MatrixView<T> dw,
                         MatrixView<T> dbeta) {
  const Index e = beta.cols() == 0 ? 0 : w.cols() / beta.cols();
  for (Index a = 0; a < w.rows(); ++a) {
    for (Index j = 0; j < beta.cols(); ++j) {
      const T* const d = dfolded.row(a) + j * e;
      if (!dw.empty()) simd::axpy<T>(beta(a, j), d, dw.row(a) + j * e, e);
      if (!dbeta.empty()) dbeta(a, j) += simd::dot<T>(d, w.row(a) + j * e, e);
    }
  }
}

}  // namespace detail

/// bias [L, H] of dense cross features [L, J e].
template <class T>
void cross_feature_bias(MatrixView<const T> cross, MatrixView<const T> w, MatrixView<const T> beta, MatrixView<T> bias,
                        Workspace& ws) {
  const char* op = "cross_feature_bias";
  check_shape(op, "cross", cross, any_size, any_size);
  detail::check_cross<T>(op, cross.cols(), w, beta);
  check_shape(op, "bias", bias, cross.rows(), w.rows());
  const auto mark = ws.mark();
  const MatrixView<T> folded = ws.matrix<T>(w.rows(), w.cols());
  detail::fold_cross<T>(w, beta, folded);
  linear<T>(cross, folded, {}, bias, ws);
}

/// Adds to the gradients of cross, w and beta (empty: not wanted).
template <class T>
void cross_feature_bias_backward(MatrixView<const T> cross, MatrixView<const T> w, MatrixView<const T> beta,
                                 MatrixView<const T> dbias, MatrixView<T> dcross, MatrixView<T> dw, MatrixView<T> dbeta,
                                 Workspace& ws) {
  const char* op = "cross_feature_bias_backward";
  check_shape(op, "cross", cross, any_size, any_size);
  detail::check_cross<T>(op, cross.cols(), w, beta);
  check_shape(op, "dbias", dbias, cross.rows(), w.rows());
  if (!dcross.empty()) check_shape(op, "dcross", dcross, cross.rows(), cross.cols());
  if (!dw.empty()) check_shape(op, "dw", dw, w.rows(), w.cols());
  if (!dbeta.empty()) check_shape(op, "dbeta", dbeta, beta.rows(), beta.cols());
  const auto mark = ws.mark();
  const MatrixView<T> folded = ws.matrix<T>(w.rows(), w.cols()), dfolded = ws.matrix<T>(w.rows(), w.cols());
  detail::fold_cross<T>(w, beta, folded);
  std::fill_n(dfolded.data(), dfolded.rows() * dfolded.cols(), T(0));
  linear_backward<T>(cross, folded, dbias, dcross, dfolded, {}, ws);
  detail::fold_cross_backward<T>(w, beta, dfolded, dw, dbeta);
}

namespace detail {

inline void check_tables(const char* op, Index rows, Index cols, IndexView first_row, Index w_cols, Index features) {
  check_offsets(op, "first_row", first_row, rows);
  check_option(op, "first_row", first_row.size() == features + 1, "one table for every feature",
               static_cast<double>(first_row.size() - 1));
  check_option(op, "w", w_cols == features * cols, "the width of the tables for every feature", static_cast<double>(w_cols));
}

}  // namespace detail

/// collapsed [V, H]: what each row of the tables adds to the bias.
template <class T>
void collapse_cross_tables(MatrixView<const T> tables, IndexView first_row, MatrixView<const T> w, MatrixView<const T> beta,
                           MatrixView<T> collapsed, Workspace& ws) {
  const char* op = "collapse_cross_tables";
  check_shape(op, "tables", tables, any_size, any_size);
  check_shape(op, "w", w, any_size, any_size);
  check_shape(op, "beta", beta, w.rows(), any_size);
  detail::check_tables(op, tables.rows(), tables.cols(), first_row, w.cols(), beta.cols());
  check_shape(op, "collapsed", collapsed, tables.rows(), w.rows());
  const auto mark = ws.mark();
  const MatrixView<T> folded = ws.matrix<T>(w.rows(), w.cols());
  detail::fold_cross<T>(w, beta, folded);
  const Index e = tables.cols();
  for (Index j = 0; j < beta.cols(); ++j) {
    const Index first = first_row[j], count = first_row[j + 1] - first;
    linear<T>(tables.middle_rows(first, count), MatrixView<const T>(folded).middle_cols(j * e, e), {},
              collapsed.middle_rows(first, count), ws);
  }
}

/// bias [L, H] = sum_j collapsed[first_row_j + ids_lj].
template <class T>
void cross_table_bias(MatrixView<const T> collapsed, IndexView first_row, MatrixView<const std::int32_t> ids,
                      MatrixView<T> bias) {
  const char* op = "cross_table_bias";
  check_shape(op, "collapsed", collapsed, any_size, any_size);
  check_offsets(op, "first_row", first_row, collapsed.rows());
  check_shape(op, "ids", ids, any_size, first_row.size() - 1);
  check_shape(op, "bias", bias, ids.rows(), collapsed.cols());
  for (Index j = 0; j < ids.cols(); ++j) {
    const Index rows = first_row[j + 1] - first_row[j];
    for (Index l = 0; l < ids.rows(); ++l)
      if (ids(l, j) < 0 || ids(l, j) >= rows) [[unlikely]]
        detail::fail_at(op, "ids", "ids from 0 to below the rows of their table, ", rows, l * ids.cols() + j, ids(l, j));
  }
  const Index heads = collapsed.cols();
  for (Index l = 0; l < ids.rows(); ++l) {
    T* const out = bias.row(l);
    std::fill_n(out, heads, T(0));
    for (Index j = 0; j < ids.cols(); ++j) {
      const T* const from = collapsed.row(first_row[j] + ids(l, j));
      for (Index a = 0; a < heads; ++a) out[a] += from[a];
    }
  }
}

/// Adds to the gradients of tables, w and beta (empty: not wanted), for the bias of `cross_table_bias`.
template <class T>
void cross_table_bias_backward(MatrixView<const T> tables, IndexView first_row, MatrixView<const T> w, MatrixView<const T> beta,
                               MatrixView<const std::int32_t> ids, MatrixView<const T> dbias, MatrixView<T> dtables,
                               MatrixView<T> dw, MatrixView<T> dbeta, Workspace& ws) {
  const char* op = "cross_table_bias_backward";
  check_shape(op, "tables", tables, any_size, any_size);
  check_shape(op, "w", w, any_size, any_size);
  check_shape(op, "beta", beta, w.rows(), any_size);
  detail::check_tables(op, tables.rows(), tables.cols(), first_row, w.cols(), beta.cols());
  check_shape(op, "ids", ids, any_size, beta.cols());
  check_shape(op, "dbias", dbias, ids.rows(), w.rows());
  for (Index j = 0; j < ids.cols(); ++j)
    for (Index l = 0; l < ids.rows(); ++l)
      if (ids(l, j) < 0 || ids(l, j) >= first_row[j + 1] - first_row[j]) [[unlikely]]
        detail::fail_at(op, "ids", "ids from 0 to below the rows of their table, ", first_row[j + 1] - first_row[j],
                        l * ids.cols() + j, ids(l, j));
  if (!dtables.empty()) check_shape(op, "dtables", dtables, tables.rows(), tables.cols());
  if (!dw.empty()) check_shape(op, "dw", dw, w.rows(), w.cols());
  if (!dbeta.empty()) check_shape(op, "dbeta", dbeta, beta.rows(), beta.cols());
  const auto mark = ws.mark();
  const Index heads = w.rows(), e = tables.cols();
  const MatrixView<T> dcollapsed = ws.matrix<T>(tables.rows(), heads), folded = ws.matrix<T>(heads, w.cols()),
                      dfolded = ws.matrix<T>(heads, w.cols());
  std::fill_n(dfolded.data(), heads * w.cols(), T(0));
  double* const sums = ws.take<double>(tables.rows() * heads);  // a million behaviours may share an id
  std::fill_n(sums, tables.rows() * heads, 0.0);
  for (Index l = 0; l < ids.rows(); ++l)
    for (Index j = 0; j < ids.cols(); ++j) {
      double* const to = sums + (first_row[j] + ids(l, j)) * heads;
      for (Index a = 0; a < heads; ++a) to[a] += static_cast<double>(dbias(l, a));
    }
  for (Index i = 0; i < tables.rows() * heads; ++i) dcollapsed.data()[i] = static_cast<T>(sums[i]);
  detail::fold_cross<T>(w, beta, folded);
  for (Index j = 0; j < beta.cols(); ++j) {
    const Index first = first_row[j], count = first_row[j + 1] - first;
    linear_backward<T>(tables.middle_rows(first, count), MatrixView<const T>(folded).middle_cols(j * e, e),
                       MatrixView<const T>(dcollapsed).middle_rows(first, count),
                       dtables.empty() ? dtables : dtables.middle_rows(first, count), dfolded.middle_cols(j * e, e), {}, ws);
  }
  detail::fold_cross_backward<T>(w, beta, dfolded, dw, dbeta);
}

}  // namespace RECOPS_ABI
}  // namespace recops
