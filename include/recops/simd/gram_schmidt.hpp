/// @file   recops/simd/gram_schmidt.hpp
/// @brief  Kernels that project one vector off a growing set of vectors: two small matrix-vector products.
///
/// The set is `rows` [count, stride]; `stride` is a whole number of cache lines and all is 64-byte aligned. Sums run over the columns
/// in a fixed order that depends on the sizes alone.
#pragma once
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// `n` rounded up to whole cache lines.
template <class T>
RECOPS_INLINE constexpr Index padded(Index n) {
  constexpr Index line = Index{64} / static_cast<Index>(sizeof(T));
  return (n + line - 1) / line * line;
}

/// out_l = <row l, x> for l in [0, count); `out` has room for whole cache lines. `cols` and x are padded.
template <class T, class A = DefaultArch>
void set_products(const T* rows, Index stride, Index count, const T* x, Index cols, T* out) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, R = W > 8 ? W : 8;  // rows at once, so that no sum waits for itself
  for (Index l = 0; l < count; l += R) {
    const T* row[R];
    RECOPS_UNROLL
    for (Index r = 0; r < R; ++r) row[r] = rows + (l + r < count ? l + r : l) * stride;
    B sum[R];
    RECOPS_UNROLL
    for (Index r = 0; r < R; ++r) sum[r] = B(T(0));
    for (Index d = 0; d < cols; d += W) {
      const B v = B::load_aligned(x + d);
      RECOPS_UNROLL
      for (Index r = 0; r < R; ++r) sum[r] = mul_add(v, B::load_aligned(row[r] + d), sum[r]);
    }
    RECOPS_UNROLL
    for (Index r = 0; r < R; r += W) sum_each<T, A>(sum + r).store_aligned(out + l + r);
  }
}

/// out = scale · x - sum_l c_l row_l over `cols` (padded) numbers; returns its sum of squares. x may lie anywhere.
template <class T, class A = DefaultArch>
T subtract_rows(const T* rows, Index stride, Index count, const T* c, T scale, const T* x, Index cols, T* out) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  constexpr int V = W > 8 ? 2 : 4;
  B square(T(0));
  Index d = 0;
  const auto part = [&]<int N>(std::integral_constant<int, N>) RECOPS_LAMBDA_INLINE {
    B sum[N];
    RECOPS_UNROLL
    for (int v = 0; v < N; ++v) sum[v] = B(scale) * B::load_unaligned(x + d + v * W);
    for (Index l = 0; l < count; ++l) {
      const B factor(-c[l]);
      RECOPS_UNROLL
      for (int v = 0; v < N; ++v) sum[v] = mul_add(factor, B::load_aligned(rows + l * stride + d + v * W), sum[v]);
    }
    RECOPS_UNROLL
    for (int v = 0; v < N; ++v) {
      sum[v].store_aligned(out + d + v * W);
      square = mul_add(sum[v], sum[v], square);
    }
    d += N * W;
  };
  while (d + 2 * V * W <= cols) part(std::integral_constant<int, 2 * V>{});
  while (d < cols) part(std::integral_constant<int, 1>{});
  return sum_lanes(square);
}

/// out = sum_r c_r rows[r] over `cols` (padded) numbers; rows may lie anywhere.
template <class T, class A = DefaultArch>
void combine_rows(const T* const* rows, Index offset, const T* c, Index count, Index cols, T* out) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  constexpr int V = 8;
  for (Index d = 0; d < cols;) {
    if (d + V * W <= cols) {
      B sum[V];
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) sum[v] = B(T(0));
      for (Index r = 0; r < count; ++r) {
        const B factor(c[r]);
        const T* const row = rows[r] + offset + d;
        RECOPS_UNROLL
        for (int v = 0; v < V; ++v) sum[v] = mul_add(factor, B::load_unaligned(row + v * W), sum[v]);
      }
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) sum[v].store_aligned(out + d + v * W);
      d += V * W;
    } else {
      B sum(T(0));
      for (Index r = 0; r < count; ++r) sum = mul_add(B(c[r]), B::load_unaligned(rows[r] + offset + d), sum);
      sum.store_aligned(out + d);
      d += W;
    }
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
