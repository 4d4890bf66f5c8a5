/// @file   recops/simd/gram_schmidt.hpp
/// @brief  Kernels that project one vector off a growing set of vectors: two small matrix-vector products without horizontal sums.
///
/// The set is kept twice: `rows` [count, stride] and, for the products, `columns` [stride, capacity], its transpose. `stride` is a
/// whole number of cache lines and `capacity` too, zeros behind what is in use; all is 64-byte aligned. Sums run over the columns in
/// a fixed order that depends on the sizes alone.
#pragma once
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// `n` rounded up to whole cache lines.
template <class T>
RECOPS_INLINE constexpr Index padded(Index n) {
  constexpr Index line = Index{64} / static_cast<Index>(sizeof(T));
  return (n + line - 1) / line * line;
}

namespace detail {

template <int V, class T, class A>
RECOPS_INLINE void set_products(const T* columns, Index capacity, const T* x, Index cols, T* out) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  constexpr int S = 8 / V;  // sums apart, so that none waits for itself
  B sum[S * V];
  RECOPS_UNROLL
  for (int i = 0; i < S * V; ++i) sum[i] = B(T(0));
  for (Index d = 0; d < cols; d += S) {  // whole cache lines: S divides them
    RECOPS_UNROLL
    for (int s = 0; s < S; ++s) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v)
        sum[s * V + v] = mul_add(B(x[d + s]), B::load_aligned(columns + (d + s) * capacity + v * W), sum[s * V + v]);
    }
  }
  RECOPS_UNROLL
  for (int half = S / 2; half > 0; half /= 2) {
    RECOPS_UNROLL
    for (int i = 0; i < half * V; ++i) sum[i] = sum[i] + sum[i + half * V];
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) sum[v].store_aligned(out + v * W);
}

}  // namespace detail

/// out_l = <row l, x> for l in [0, count) and zeros up to a whole number of vectors; `cols` and x are padded.
template <class T, class A = DefaultArch>
void set_products(const T* columns, Index capacity, Index count, const T* x, Index cols, T* out) {
  constexpr Index W = lanes<T, A>;
  Index l = 0;
  for (; l + 4 * W <= padded<T>(count) && l + 2 * W < count; l += 4 * W)
    detail::set_products<4, T, A>(columns + l, capacity, x, cols, out + l);
  for (; l < count; l += W) detail::set_products<1, T, A>(columns + l, capacity, x, cols, out + l);
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
