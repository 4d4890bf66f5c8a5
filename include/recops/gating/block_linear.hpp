/// @file   recops/gating/block_linear.hpp
/// @brief  Linear layers side by side, one per expert or task, kept in one weight: wide where they share their input.
#pragma once
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// out = activation(x W^T + bias). Block b owns the rows begin(b) .. begin(b + 1) of the weight `[begin(blocks), in]` and reads
/// the columns b in .. (b + 1) in of x; with one block that is all of both. `bias` may be empty.
template <class T, class Begin>
void block_linear(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, Index blocks, Begin&& begin,
                  Activation activation, MatrixView<T> out, Workspace& ws) {
  const Index in = weight.cols();
  for (Index b = 0; b < blocks; ++b) {
    const Index at = begin(b), n = begin(b + 1) - at;
    if (n == 0) continue;
    simd::gemm<T>(simd::plain(x.middle_cols(b * in, in)), simd::transposed(weight.middle_rows(at, n)),
                  {.bias = bias.empty() ? nullptr : bias.data() + at, .activation = activation}, out.middle_cols(at, n), ws);
  }
}

/// Adds dz W to dx, dz^T x to dweight, column sums of dz to dbias, each unless empty.
template <class T, class Begin>
void block_linear_backward(MatrixView<const T> x, MatrixView<const T> weight, Index blocks, Begin&& begin, MatrixView<const T> dz,
                           MatrixView<T> dx, MatrixView<T> dweight, VectorView<T> dbias, Workspace& ws) {
  const Index in = weight.cols();
  for (Index b = 0; b < blocks; ++b) {
    const Index at = begin(b), n = begin(b + 1) - at;
    if (n == 0) continue;
    const MatrixView<const T> part = dz.middle_cols(at, n);
    if (!dx.empty())
      simd::gemm<T>(simd::plain(part), simd::plain(weight.middle_rows(at, n)), {.accumulate = true}, dx.middle_cols(b * in, in),
                    ws);
    if (!dweight.empty())
      simd::gemm<T>(simd::transposed(part), simd::plain(x.middle_cols(b * in, in)), {.accumulate = true},
                    dweight.middle_rows(at, n), ws);
  }
  sum_over_rows<T>(dz.rows(), dz.cols(), dbias, {}, ws, [&](Index first, Index count, T* sums, T*) {
    for (Index r = first; r < first + count; ++r) simd::add<T>(dz.row(r), sums, dz.cols());
  });
}

/// Scratch whose rows begin in different sets of the cache: at strides that are multiples of 1 KB the rows of one tile evict each
/// other.
template <class T>
MatrixView<T> staggered(Index rows, Index cols, Workspace& ws) {
  constexpr Index line = 64 / static_cast<Index>(sizeof(T));
  const Index stride = ((cols + line - 1) / line | 1) * line;
  return MatrixView<T>(ws.take<T>(rows * stride), rows, cols, stride);
}

/// Where blocks of equal size begin.
inline auto even_blocks(Index rows, Index blocks) {
  return [size = rows / blocks](Index b) { return b * size; };
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
