/// @file   recops/simd/gemm_pack.hpp
/// @brief  How gemm reads its operands: matrices of any strides, and panels, the layout into which the right operand is packed.
///
/// Packed, B is cut into blocks of `k_block` rows, a block into panels of two vectors of columns: what kernels read is one run
/// of memory from the first byte to the last. The last panel is padded with zeros. Packing reads and writes B once.
#pragma once
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// A matrix `[rows, cols]` with any strides, as gemm reads it.
template <class T>
struct Operand {
  const T* data;
  Index rows, cols, row_stride, col_stride;
};
/// The matrix as it is.
template <class T>
Operand<std::remove_const_t<T>> plain(MatrixView<T> m) {
  return {m.data(), m.rows(), m.cols(), m.stride(), 1};
}
/// Its transpose, without moving anything.
template <class T>
Operand<std::remove_const_t<T>> transposed(MatrixView<T> m) {
  return {m.data(), m.cols(), m.rows(), 1, m.stride()};
}

/// Rows of B (columns of A) that are summed in registers before the sum goes to C: a tile's part of A fits into L1 beside a
/// panel's stream.
inline constexpr Index k_block = 512;

/// Columns of one packed panel: two vectors.
template <class T, class A = DefaultArch>
inline constexpr Index panel_cols = 2 * lanes<T, A>;
/// Elements that `[k, n]` takes when packed.
template <class T, class A = DefaultArch>
constexpr Index packed_size(Index k, Index n) {
  return (n + panel_cols<T, A> - 1) / panel_cols<T, A> * panel_cols<T, A> * k;
}

namespace detail {

/// out[p * P + j] = b(p, j) for `depth` rows and `width` <= P columns, zeros for the columns behind them.
template <class T, class A>
void pack_panel(const T* b, Index row_stride, Index col_stride, Index depth, Index width, T* out) {
  constexpr Index P = panel_cols<T, A>;
  if (row_stride == 1 && col_stride != 1) {
    pack_transposed<T, A>(b, col_stride, width, depth, T(1), out, P, P);
  } else if (col_stride == 1 && width == P) {
    for (Index p = 0; p < depth; ++p)
      for (Index j = 0; j < P; ++j) out[p * P + j] = b[p * row_stride + j];
  } else {
    for (Index p = 0; p < depth; ++p)
      for (Index j = 0; j < P; ++j) out[p * P + j] = j < width ? b[p * row_stride + j * col_stride] : T(0);
  }
}

/// Calls `f(p0, depth, j0, width, offset)` for every panel, in the order of memory: rows [p0, p0 + depth), columns
/// [j0, j0 + width), and where the panel begins.
template <class T, class A, class F>
void for_each_panel(Index k, Index n, F&& f) {
  constexpr Index P = panel_cols<T, A>;
  Index at = 0;
  for (Index p0 = 0; p0 < k; p0 += k_block) {
    const Index depth = k - p0 < k_block ? k - p0 : k_block;
    for (Index j0 = 0; j0 < n; j0 += P, at += P * depth) f(p0, depth, j0, n - j0 < P ? n - j0 : P, at);
  }
}

}  // namespace detail

/// Packs B. `out` holds `packed_size(k, n)` elements, 64-byte aligned.
template <class T, class A = DefaultArch>
void pack(Operand<T> b, T* out) {
  detail::for_each_panel<T, A>(b.rows, b.cols, [&](Index p0, Index depth, Index j0, Index width, Index at) {
    detail::pack_panel<T, A>(b.data + p0 * b.row_stride + j0 * b.col_stride, b.row_stride, b.col_stride, depth, width, out + at);
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
