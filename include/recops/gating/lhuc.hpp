/// @file   recops/gating/lhuc.hpp
/// @brief  Learning hidden unit contributions: each user or domain has a learned factor in (0, 2) for every hidden unit.
///
///     y_b = x_b * 2 sigmoid(r[id_b])            y_b = x_b where id_b = -1 (a user one does not know)
///
/// Shapes      x and y [B, H]   table r [U, H]   ids [B], each -1 or in [0, U)
/// Range       a row of 0 is the identity, to the bit.   A NaN stays in its row (a NaN in r: in the rows that use it).
/// Cost        B H numbers in and out, B H sigmoids. Backward computes them again.
/// Errors      Error if shapes or ids do not fit; outputs untouched.
/// Reference   Swietojanski, Renals, "Learning Hidden Unit Contributions for Unsupervised Speaker Adaptation", arXiv 1601.02828,
///             equations 3, 7 to 9.
#pragma once
#include <recops/gating/rows_by_id.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/simd/math.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {
template <class T>
RECOPS_INLINE simd::Batch<T> lhuc_gate(simd::Batch<T> r) {
  return simd::Batch<T>(T(2)) * simd::sigmoid(r);
}
template <class T>
void check_lhuc(const char* name, MatrixView<const T> x, MatrixView<const T> table, IndexView ids) {
  check_shape(name, "table", table, any_size, any_size);
  check_shape(name, "x", x, any_size, table.cols());
  check_ids_or_none(name, "ids", ids, x.rows(), table.rows());
}
}  // namespace detail

/// Writes y; y may be x.
template <Real T>
void lhuc(MatrixView<const T> x, MatrixView<const T> table, IndexView ids, MatrixView<T> y, Workspace& ws) {
  detail::check_lhuc("lhuc", x, table, ids);
  check_shape("lhuc", "y", y, x.rows(), x.cols());
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index b = first; b < first + count; ++b) {
      const T* const in = x.row(b);
      T* const to = y.row(b);
      if (ids[b] < 0) {
        if (to != in) std::copy_n(in, x.cols(), to);
        continue;
      }
      const T* const r = table.row(ids[b]);
      simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        store(to + i, load(in + i) * detail::lhuc_gate<T>(load(r + i)));
      });
    }
  });
}

/// Adds to `dx` unless empty and to the gradient of the table: dense, by rows, or without numbers (not wanted). With a = 2 sigmoid(r):
/// dx += dy a, dr += dy x a (1 - a / 2).
template <Real T>
void lhuc_backward(MatrixView<const T> x, MatrixView<const T> table, IndexView ids, MatrixView<const T> dy, MatrixView<T> dx,
                   Table<T>& dtable, Workspace& ws) {
  constexpr const char* name = "lhuc_backward";
  detail::check_lhuc(name, x, table, ids);
  check_shape(name, "dy", dy, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  const bool wanted = detail::check_table_gradient(name, "dtable", dtable, table.rows(), table.cols());
  if (!dx.empty()) {
    detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
      for (Index b = first; b < first + count; ++b) {
        if (ids[b] < 0) {
          simd::add<T>(dy.row(b), dx.row(b), x.cols());
          continue;
        }
        const T *const r = table.row(ids[b]), *const up = dy.row(b);
        T* const to = dx.row(b);
        simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(to + i, simd::mul_add(load(up + i), detail::lhuc_gate<T>(load(r + i)), load(to + i)));
        });
      }
    });
  }
  if (!wanted) return;
  detail::add_to_rows(ids, dtable, ws, [&](Index b, T* to) {
    const T *const r = table.row(ids[b]), *const up = dy.row(b), *const in = x.row(b);
    simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const auto a = detail::lhuc_gate<T>(load(r + i));
      const auto slope = a * simd::neg_mul_add(a, simd::Batch<T>(T(0.5)), simd::Batch<T>(T(1)));
      store(to + i, simd::mul_add(load(up + i) * load(in + i), slope, load(to + i)));
    });
  });
}

/// A row of factors for each of U users or domains, all 1 at first; `weight [U, H]` as in PyTorch's `Embedding`.
template <Real T>
struct Lhuc {
  Table<T> weight;

  Lhuc() = default;
  Lhuc(Index users, Index units) {
    weight.values = Matrix<T>(checked_size("Lhuc", "users", users), checked_size("Lhuc", "units", units), T(0));
  }
  static constexpr auto fields() { return std::tuple{parameter("weight", &Lhuc::weight)}; }

  /// y may be x.
  void forward(MatrixView<const T> x, IndexView ids, MatrixView<T> y, Workspace& ws) const {
    lhuc<T>(x, weight.values, ids, y, ws);
  }
  /// Adds to `dx` unless empty and to `gradient.weight` (made by `make_gradient`: by rows).
  void backward(MatrixView<const T> x, IndexView ids, MatrixView<const T> dy, MatrixView<T> dx, Lhuc& gradient,
                Workspace& ws) const {
    lhuc_backward<T>(x, weight.values, ids, dy, dx, gradient.weight, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
