/// @file   recops/gating/block_linear.hpp
/// @brief  Linear layers side by side, one per expert or task, kept in one weight: wide where they share their input.
#pragma once
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Rows `begin .. end` of a weight `[rows, in]` read the columns `source in .. (source + 1) in` of the input.
struct LinearBlock {
  Index begin, end, source;
  Index size() const { return end - begin; }
};

/// out = activation(x W^T + bias), block by block: `block(b)` gives the LinearBlock b. `bias` may be empty; with `accumulate` what
/// is in out is added before the activation.
template <class T, class Block>
void block_linear(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, Index blocks, Block&& block,
                  Activation activation, MatrixView<T> out, Workspace& ws, bool accumulate = false) {
  const Index in = weight.cols();
  for (Index b = 0; b < blocks; ++b) {
    const LinearBlock own = block(b);
    if (own.size() == 0) continue;
    simd::gemm<T>(simd::plain(x.middle_cols(own.source * in, in)), simd::transposed(weight.middle_rows(own.begin, own.size())),
                  {.bias = bias.empty() ? nullptr : bias.data() + own.begin, .activation = activation, .accumulate = accumulate},
                  out.middle_cols(own.begin, own.size()), ws);
  }
}

/// Adds dz W to dx, dz^T x to dweight, column sums of dz to dbias, each unless empty.
template <class T, class Block>
void block_linear_backward(MatrixView<const T> x, MatrixView<const T> weight, Index blocks, Block&& block, MatrixView<const T> dz,
                           MatrixView<T> dx, MatrixView<T> dweight, VectorView<T> dbias, Workspace& ws) {
  const Index in = weight.cols();
  for (Index b = 0; b < blocks; ++b) {
    const LinearBlock own = block(b);
    if (own.size() == 0) continue;
    const MatrixView<const T> part = dz.middle_cols(own.begin, own.size());
    if (!dx.empty())
      simd::gemm<T>(simd::plain(part), simd::plain(weight.middle_rows(own.begin, own.size())), {.accumulate = true},
                    dx.middle_cols(own.source * in, in), ws);
    if (!dweight.empty())
      simd::gemm<T>(simd::transposed(part), simd::plain(x.middle_cols(own.source * in, in)), {.accumulate = true},
                    dweight.middle_rows(own.begin, own.size()), ws);
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

/// Blocks of equal size, each with its own columns of the input.
inline auto even_blocks(Index rows, Index blocks) {
  return [size = rows / blocks](Index b) { return LinearBlock{b * size, (b + 1) * size, b}; };
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
