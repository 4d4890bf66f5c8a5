/// @file   recops/simd/gemm_epilogue.hpp
/// @brief  What happens to a product on its way to C, one tile at a time while it is in L1.
#pragma once
#include <recops/simd/activation.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// C = act(row_scale_i column_scale_j (A B)_ij + bias_j) + residual_ij; with `accumulate` C itself is added inside act( ).
/// Whatever is left out costs nothing. The residual is added last, as the blocks of transformers and cross layers do
/// (h + W f, or x + s (W x) with s a row scale); to add before an activation, or to C in place, let C hold it and `accumulate`.
template <class T>
struct Epilogue {
  const T* bias = nullptr;  ///< [n] or none
  Activation activation = Activation::none;
  bool accumulate = false;
  const T* column_scale = nullptr;  ///< [n] or none: the scales of int8 weights
  const T* row_scale = nullptr;     ///< [m] or none
  const T* residual = nullptr;      ///< [m, n] or none; does not overlap C
  Index residual_stride = 0;        ///< elements from one row of it to the next
};

namespace detail {

/// The epilogue of the part of C that begins at (row, col).
template <class T>
Epilogue<T> part_of(Epilogue<T> e, Index row, Index col) {
  if (e.bias) e.bias += col;
  if (e.column_scale) e.column_scale += col;
  if (e.row_scale) e.row_scale += row;
  if (e.residual) e.residual += row * e.residual_stride + col;
  return e;
}

/// Whether sums over all k are C as they are, but for `accumulate`.
template <class T>
bool is_plain(const Epilogue<T>& e) {
  return !e.column_scale && !e.row_scale && !e.bias && !e.residual && e.activation == Activation::none;
}
/// Whether a tile can make C of its sums in registers: they are C, but for a bias and a relu. `final`: they are the last along k.
template <class T>
bool fits_tile(const Epilogue<T>& e, bool final) {
  return !e.column_scale && !e.row_scale &&
         !(final && (e.residual || (e.activation != Activation::none && e.activation != Activation::relu)));
}

/// C `[rows, cols]` from the sums of a tile; `add`: C holds what they are added to. All but the scales waits for the final sums.
template <class T, class A>
[[gnu::noinline]] void finish(const T* sums, Index sums_stride, T* c, Index c_stride, Index rows, Index cols, bool add,
                              bool final, const Epilogue<T>& e) {
  using B = Batch<T, A>;
  const T* residual = e.residual;
  for (Index r = 0; r < rows; ++r, sums += sums_stride, c += c_stride, residual += residual ? e.residual_stride : 0) {
    const B row_scale(e.row_scale ? e.row_scale[r] : T(1));
    for_each_vector<T, A>(cols, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
      B x = load(sums + j);
      if (e.row_scale) x = x * row_scale;
      if (e.column_scale) x = x * load(e.column_scale + j);
      if (add) x = x + load(c + j);
      if (final) {
        if (e.bias) x = x + load(e.bias + j);
        if (e.activation != Activation::none) x = activate(e.activation, x);
        if (residual) x = x + load(residual + j);
      }
      store(c + j, x);
    });
  }
}

}  // namespace detail

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
