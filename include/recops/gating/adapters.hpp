/// @file   recops/gating/adapters.hpp
/// @brief  Low-rank adapters of many users or groups on one batch: each row goes through the adapter that its id names.
///
///     y_b += s_b B_u A_u x_b            u = id_b; nothing where id_b = -1
///
/// Shapes      x [N, D]   table [U, r (D + O)]: a row holds A [r, D] and, behind it, the transpose of B, [r, O]   ids [N]   y [N, O]
/// Cost        2 N r (D + O) flops; what binds is the memory of the adapters, r (D + O) numbers for each row.
/// Edge cases  A NaN stays in its row (a NaN of an adapter: in the rows that use it).
/// Precision   sums in T.   Same bits for any number of threads, and for any batch a row is in.
/// Errors      Error if shapes or ids do not fit; outputs untouched.
/// Reference   Hu et al., "LoRA", arXiv 2106.09685; a table of adapters: arXiv 2405.04840.
#pragma once
#include <recops/gating/rows_by_id.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/simd/gemm_dots.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Adapters of U users, `weight [U, r (D + O)]`; in a gradient only those rows that were used.
template <Real T>
struct AdapterTable {
  Table<T> weight;

  AdapterTable() = default;
  /// A as `torch.nn.Linear` would draw it, B = 0: at first adapters change nothing.
  AdapterTable(Index users, Index inputs, Index rank, Index outputs, Random& random) {
    weight.values = Matrix<T>(checked_size("AdapterTable", "users", users),
                              checked_size("AdapterTable", "rank", rank) * (checked_size("AdapterTable", "inputs", inputs) +
                                                                            checked_size("AdapterTable", "outputs", outputs)),
                              T(0));
    const double bound = 1 / std::sqrt(static_cast<double>(std::max(inputs, Index{1})));
    for (Index u = 0; u < users; ++u)
      for (Index i = 0; i < rank * inputs; ++i) weight.values(u, i) = static_cast<T>(random.uniform(-bound, bound));
  }
  static constexpr auto fields() { return std::tuple{parameter("weight", &AdapterTable::weight)}; }
};

namespace detail {

/// q [r] = A x
template <class T>
void adapter_down(const T* x, const T* adapter, Index rank, Index d, T* q) {
  simd::detail::dot_tiles<T, simd::DefaultArch, 1, 4>(x, d, 1, adapter, d, rank, d, q, rank);
}
/// y [n] += sum_j c_j rows_j, rows [r, n]
template <class T>
void add_combination(const T* c, const T* rows, Index rank, T* y, Index n) {
  for (Index j = 0; j < rank; j += 4) {
    const Index count = std::min(Index{4}, rank - j);
    const T* const p = rows + j * n;
    const simd::Batch<T> c0(c[j]), c1(count > 1 ? c[j + 1] : T(0)), c2(count > 2 ? c[j + 2] : T(0)),
        c3(count > 3 ? c[j + 3] : T(0));
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      auto v = simd::mul_add(c0, load(p + i), load(y + i));
      if (count > 1) v = simd::mul_add(c1, load(p + n + i), v);
      if (count > 2) v = simd::mul_add(c2, load(p + 2 * n + i), v);
      if (count > 3) v = simd::mul_add(c3, load(p + 3 * n + i), v);
      store(y + i, v);
    });
  }
}
template <class T>
void check_adapters(const char* name, MatrixView<const T> x, MatrixView<const T> table, IndexView ids, Index rank,
                    Index outputs) {
  check_option(name, "rank", rank >= 1 && rank <= 65536, "1 to 65536", static_cast<double>(rank));
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "table", table, any_size, rank * (x.cols() + outputs));
  check_ids_or_none(name, "ids", ids, x.rows(), table.rows());
}

}  // namespace detail

/// Adds the adapters' part to y; `scale [N]` is that of each row, empty: all 1.
template <Real T>
void add_adapters(MatrixView<const T> x, MatrixView<const T> table, IndexView ids, Index rank, VectorView<const T> scale,
                  MatrixView<T> y, Workspace& ws) {
  constexpr const char* name = "add_adapters";
  detail::check_adapters(name, x, table, ids, rank, y.cols());
  check_shape(name, "y", y, x.rows(), any_size);
  if (!scale.empty()) check_size(name, "scale", scale, x.rows());
  const Index d = x.cols(), o = y.cols();
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto mark = scratch.mark();
    T* const q = scratch.take<T>(rank);
    for (Index b = first; b < first + count; ++b) {
      if (ids[b] < 0) continue;
      const T* const adapter = table.row(ids[b]);
      detail::adapter_down(x.row(b), adapter, rank, d, q);
      if (!scale.empty())
        for (Index j = 0; j < rank; ++j) q[j] *= scale[b];
      detail::add_combination(q, adapter + rank * d, rank, y.row(b), o);
    }
  });
}

/// From the gradient of y: adds to `dx` and `dscale` (each unless empty) and to the gradient of the table: dense, by rows, or without
/// numbers (not wanted).
template <Real T>
void add_adapters_backward(MatrixView<const T> x, MatrixView<const T> table, IndexView ids, Index rank, VectorView<const T> scale,
                           MatrixView<const T> dy, MatrixView<T> dx, VectorView<T> dscale, Table<T>& dtable, Workspace& ws) {
  constexpr const char* name = "add_adapters_backward";
  detail::check_adapters(name, x, table, ids, rank, dy.cols());
  check_shape(name, "dy", dy, x.rows(), any_size);
  if (!scale.empty()) check_size(name, "scale", scale, x.rows());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dscale.empty()) check_size(name, "dscale", dscale, x.rows());
  const bool wanted = detail::check_table_gradient(name, "dtable", dtable, table.rows(), table.cols());
  const Index d = x.cols(), o = dy.cols();
  const auto mark = ws.mark();
  const MatrixView<T> q = ws.matrix<T>(x.rows(), rank), p = ws.matrix<T>(x.rows(), rank);  // s A x and s B^T dy
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index b = first; b < first + count; ++b) {
      if (ids[b] < 0) continue;
      const T* const adapter = table.row(ids[b]);
      T *const qb = q.row(b), *const pb = p.row(b);
      detail::adapter_down(x.row(b), adapter, rank, d, qb);
      detail::adapter_down(dy.row(b), adapter + rank * d, rank, o, pb);
      if (!dscale.empty()) {
        T sum = T(0);
        for (Index j = 0; j < rank; ++j) sum += qb[j] * pb[j];
        dscale[b] += sum;
      }
      if (!scale.empty()) {
        for (Index j = 0; j < rank; ++j) qb[j] *= scale[b];
        for (Index j = 0; j < rank; ++j) pb[j] *= scale[b];
      }
      if (!dx.empty()) detail::add_combination(pb, adapter, rank, dx.row(b), d);
    }
  });
  if (!wanted) return;
  detail::add_to_rows(ids, dtable, ws, [&](Index b, T* to) {
    for (Index j = 0; j < rank; ++j) {
      simd::axpy<T>(p(b, j), x.row(b), to + j * d, d);
      simd::axpy<T>(q(b, j), dy.row(b), to + rank * d + j * o, o);
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
