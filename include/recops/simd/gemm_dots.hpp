/// @file   recops/simd/gemm_dots.hpp
/// @brief  The product of few rows with a transposed B (a `[out, in]` weight as it lies in memory), or of many rows with few
///         columns: inner products along k, nothing packed.
///
/// Each element sums 64 k to a lane, the lanes and the blocks in a fixed order: an element's bits depend on its row and column
/// alone. They differ in the last places from those of packed panels.
#pragma once
#include <recops/simd/gemm_pack.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {
namespace detail {

/// out[r * out_stride + c] = <a row r, b row c>.
template <class T, class A, int Rows, int Cols>
[[gnu::noinline]] void dot_tile(const T* a, Index a_stride, const T* b, Index b_stride, Index k, T* out, Index out_stride) {
  constexpr Index W = lanes<T, A>, block = 64 * W;
  constexpr int N = Rows * Cols, groups = (N + static_cast<int>(W) - 1) / static_cast<int>(W);
  using B = Batch<T, A>;
  B total[groups];
  RECOPS_UNROLL
  for (int g = 0; g < groups; ++g) total[g] = B(T(0));
  for (Index start = 0; start < k; start += block) {
    const Index end = k - start < block ? k : start + block, whole = end - (end - start) % W;
    B acc[groups * static_cast<int>(W)];
    RECOPS_UNROLL
    for (int i = 0; i < groups * static_cast<int>(W); ++i) acc[i] = B(T(0));
    const auto step = [&](auto load) RECOPS_LAMBDA_INLINE {
      B bv[Cols];
      RECOPS_UNROLL
      for (int c = 0; c < Cols; ++c) bv[c] = load(b + c * b_stride);
      RECOPS_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const B av = load(a + r * a_stride);
        RECOPS_UNROLL
        for (int c = 0; c < Cols; ++c) acc[r * Cols + c] = mul_add(av, bv[c], acc[r * Cols + c]);
      }
    };
    for (Index p = start; p < whole; p += W) step([p](const T* x) RECOPS_LAMBDA_INLINE { return B::load_unaligned(x + p); });
    if (whole < end) {
      const Index rest = end - whole;
      step([whole, rest](const T* x) RECOPS_LAMBDA_INLINE { return load_first<T, A>(x + whole, rest); });
    }
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) total[g] = total[g] + sum_each(acc + g * W);
  }
  alignas(64) T sums[groups * W];
  RECOPS_UNROLL
  for (int g = 0; g < groups; ++g) total[g].store_aligned(sums + g * W);
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Cols; ++c) out[r * out_stride + c] = sums[r * Cols + c];
}

/// All of `rows` times `cols` in tiles of Rows x Cols; what is left over goes to smaller tiles.
template <class T, class A, int Rows, int Cols>
void dot_tiles(const T* a, Index a_stride, Index rows, const T* b, Index b_stride, Index cols, Index k, T* out,
               Index out_stride) {
  Index r = 0;
  for (; r + Rows <= rows; r += Rows) {
    Index c = 0;
    for (; c + Cols <= cols; c += Cols)
      dot_tile<T, A, Rows, Cols>(a + r * a_stride, a_stride, b + c * b_stride, b_stride, k, out + r * out_stride + c, out_stride);
    for (; c < cols; ++c)
      for (Index i = r; i < r + Rows; ++i)
        dot_tile<T, A, 1, 1>(a + i * a_stride, a_stride, b + c * b_stride, b_stride, k, out + i * out_stride + c, out_stride);
  }
  if constexpr (Rows > 1) {
    if (r < rows)
      dot_tiles<T, A, 1, 8>(a + r * a_stride, a_stride, rows - r, b, b_stride, cols, k, out + r * out_stride, out_stride);
  }
}

}  // namespace detail
}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
