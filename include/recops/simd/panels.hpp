/// @file   recops/simd/panels.hpp
/// @brief  Kernels of the panel layout: rows of a matrix side by side, one row per SIMD lane, for products of many rows with few
///         vectors.
///
///     panel[d][l] = row_l[d]          l in [0, panel_width),  d in [0, D)
///
/// A product with a vector then needs no horizontal sum, and every row's dot product runs in one lane, the even d and the odd d
/// each in order: its bits do not depend on the vector width (given FMA), on how many rows or vectors are processed together, or on
/// the row's place.
#pragma once
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Rows in a panel: 256 bytes of each column, whatever the instruction set: 64 floats or 32 doubles. A panel is one stream of
/// whole cache lines; several streams at once come more slowly from the second-level cache.
template <class T>
inline constexpr Index panel_width = Index{256} / static_cast<Index>(sizeof(T));

namespace detail {

/// a0 b0 a1 b1 ... of the low halves, over the whole register (xsimd's zip works within 128 bits on some sets).
template <class T, class A>
RECOPS_INLINE Batch<T, A> interleave_low(Batch<T, A> a, Batch<T, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
  } else
#endif
    return xsimd::zip_lo(a, b);
}
/// The same of the high halves.
template <class T, class A>
RECOPS_INLINE Batch<T, A> interleave_high(Batch<T, A> a, Batch<T, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
  } else
#endif
    return xsimd::zip_hi(a, b);
}

/// Transposes the square of lanes x lanes numbers in `x`. Interleaving row i with row i + lanes / 2 rotates the bits of an
/// element's address by one; log2(lanes) rotations swap row and column.
template <class T, class A, std::size_t N>
RECOPS_INLINE void transpose_lanes(Batch<T, A> (&x)[N]) {
  constexpr Index W = lanes<T, A>;
  static_assert(N == static_cast<std::size_t>(W));
  RECOPS_UNROLL
  for (Index stage = 1; stage < W; stage *= 2) {
    Batch<T, A> y[W];
    RECOPS_UNROLL
    for (Index i = 0; i < W / 2; ++i) {
      y[2 * i] = interleave_low(x[i], x[i + W / 2]);
      y[2 * i + 1] = interleave_high(x[i], x[i + W / 2]);
    }
    RECOPS_UNROLL
    for (Index i = 0; i < W; ++i) x[i] = y[i];
  }
}

}  // namespace detail

/// Writes one panel [cols, panel_width] (64-byte aligned). `row(l)` points to the `cols` numbers of lane l; null from the
/// last row on: zeros. With `ahead` it is also asked for lanes past the panel, to fetch rows that are in no near cache and may lie
/// anywhere.
/// `squares` [panel_width] (64-byte aligned) receives each row's sum of squares, NaN and infinity included.
template <class T, class A = DefaultArch, class Row>
RECOPS_INLINE void pack_panel(Row&& row, Index cols, T* panel, T* squares, bool ahead = false) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>, line = Index{64} / static_cast<Index>(sizeof(T));
  static_assert(P % W == 0);
  for (Index v = 0; v < P; v += W) {
    const T* rows[W];
    for (Index l = 0; l < W; ++l) rows[l] = row(v + l);
    B sum(T(0)), x[W];
    if (!rows[0]) {  // rows come without gaps: nor is there any behind this one
      for (Index d = 0; d < cols; ++d) sum.store_aligned(panel + d * P + v);
      sum.store_aligned(squares + v);
      continue;
    }
    for (Index l = v + W; ahead && l < v + 2 * W; ++l) {
      const T* const next = row(l);
      for (Index d = 0; next && d < cols; d += line) __builtin_prefetch(next + d);
    }
    Index d = 0;
    for (; d + W <= cols; d += W) {
      RECOPS_UNROLL
      for (Index l = 0; l < W; ++l) x[l] = rows[l] ? B::load_unaligned(rows[l] + d) : B(T(0));
      detail::transpose_lanes<T, A>(x);
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) {
        x[i].store_aligned(panel + (d + i) * P + v);
        sum = mul_add(x[i], x[i], sum);
      }
    }
    if (d < cols) {
      RECOPS_UNROLL
      for (Index l = 0; l < W; ++l) x[l] = rows[l] ? load_first<T, A>(rows[l] + d, cols - d) : B(T(0));
      detail::transpose_lanes<T, A>(x);
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) {
        if (d + i < cols) {
          x[i].store_aligned(panel + (d + i) * P + v);
          sum = mul_add(x[i], x[i], sum);
        }
      }
    }
    sum.store_aligned(squares + v);
  }
}

/// Multiplies lane l of a panel by factors[l]; a factor of 0 gives exactly 0, whatever was there, and a NaN gives NaN.
template <class T, class A = DefaultArch>
void scale_panel(T* panel, Index cols, const T* factors) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  for (Index v = 0; v < P; v += W) {
    const B factor = B::load_aligned(factors + v), zero(T(0));
    const auto drop = factor == zero;  // xsimd 8.1 takes NaN != x for false
    for (Index d = 0; d < cols; ++d) {
      T* const p = panel + d * P + v;
      xsimd::select(drop, zero, factor * B::load_aligned(p)).store_aligned(p);
    }
  }
}

/// Products of a panel with `Queries` vectors (`queries + q * stride`, `cols` numbers each): calls use(query, first lane, products)
/// for every register of them. Even and odd columns have accumulators of their own: one alone would wait for itself.
template <class T, class A, int Queries, class F>
RECOPS_INLINE void panel_products(const T* panel, Index cols, const T* queries, Index stride, F&& use) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  constexpr int all = static_cast<int>(P / W), most = registers<A> / 4 / Queries;  // accumulators stay in registers
  constexpr int V = all < most ? all : most;
  static_assert(V > 0 && all % V == 0);
  for (Index v = 0; v < P; v += V * W) {
    B even[V * Queries], odd[V * Queries];
    RECOPS_UNROLL
    for (int i = 0; i < V * Queries; ++i) even[i] = odd[i] = B(T(0));
    const auto column = [&](Index d, B(&sum)[V * Queries]) RECOPS_LAMBDA_INLINE {
      RECOPS_UNROLL
      for (int i = 0; i < V; ++i) {
        const B x = B::load_aligned(panel + d * P + v + i * W);
        RECOPS_UNROLL
        for (int q = 0; q < Queries; ++q) sum[i * Queries + q] = mul_add(x, B(queries[q * stride + d]), sum[i * Queries + q]);
      }
    };
    Index d = 0;
    for (; d + 2 <= cols; d += 2) {
      column(d, even);
      column(d + 1, odd);
    }
    if (d < cols) column(d, even);
    RECOPS_UNROLL
    for (int i = 0; i < V; ++i) {
      RECOPS_UNROLL
      for (int q = 0; q < Queries; ++q) use(q, v + i * W, even[i * Queries + q] + odd[i * Queries + q]);
    }
  }
}

/// The same for any number of vectors.
template <class T, class A, class F>
RECOPS_INLINE void panel_products(const T* panel, Index cols, const T* queries, Index stride, Index count, F&& use) {
  Index first = 0;
  const auto part = [&](int q, Index lane, Batch<T, A> c) RECOPS_LAMBDA_INLINE { use(first + q, lane, c); };
  for (; first + 2 <= count; first += 2) panel_products<T, A, 2>(panel, cols, queries + first * stride, stride, part);
  if (first < count) panel_products<T, A, 1>(panel, cols, queries + first * stride, stride, part);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
