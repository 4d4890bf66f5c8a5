/// @file   recops/simd/panels.hpp
/// @brief  Kernels of the panel layout: rows of a matrix side by side, one row per SIMD lane, for products of many rows with few
///         vectors.
///
///     panel[d][l] = row_l[d]          l in [0, panel_width),  d in [0, D)
///
/// A product with a vector then needs no horizontal sum, and every row's dot product runs over d = 0..D-1 in one lane: its bits do
/// not depend on the vector width (given FMA), on how many rows or vectors are processed together, or on the row's place.
#pragma once
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Rows in a panel: 128 bytes (two cache lines) of each column, whatever the instruction set: 32 floats or 16 doubles.
template <class T>
inline constexpr Index panel_width = Index{128} / static_cast<Index>(sizeof(T));

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

/// Writes one panel [cols, panel_width] (64-byte aligned). `row(l)` points to the `cols` numbers of lane l, or is null: zeros.
/// `squares` [panel_width] (64-byte aligned) receives each row's sum of squares, NaN and infinity included.
template <class T, class A = DefaultArch, class Row>
RECOPS_INLINE void pack_panel(Row&& row, Index cols, T* panel, T* squares) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  static_assert(P % W == 0);
  for (Index v = 0; v < P; v += W) {
    const T* rows[W];
    for (Index l = 0; l < W; ++l) rows[l] = row(v + l);
    B sum(T(0)), x[W];
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

/// Multiplies lane l of a panel by factors[l]; a factor of 0 gives exactly 0, whatever was there.
template <class T, class A = DefaultArch>
void scale_panel(T* panel, Index cols, const T* factors) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  for (Index v = 0; v < P; v += W) {
    const B factor = B::load_aligned(factors + v), zero(T(0));
    const auto keep = factor != zero;
    for (Index d = 0; d < cols; ++d) {
      T* const p = panel + d * P + v;
      xsimd::select(keep, factor * B::load_aligned(p), zero).store_aligned(p);
    }
  }
}

/// Products of `Panels` consecutive panels with `Queries` vectors (`queries + q * stride`, `cols` numbers each):
/// calls use(panel, query, first lane, products) for every register of them. All accumulators live in registers: choose
/// Panels * Queries * panel_width / lanes well below their number.
template <class T, class A, int Panels, int Queries, class F>
RECOPS_INLINE void panel_products(const T* panels, Index cols, const T* queries, Index stride, F&& use) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  constexpr int V = static_cast<int>(P / W);
  B acc[Panels * V * Queries];
  RECOPS_UNROLL
  for (int i = 0; i < Panels * V * Queries; ++i) acc[i] = B(T(0));
  for (Index d = 0; d < cols; ++d) {
    RECOPS_UNROLL
    for (int i = 0; i < Panels * V; ++i) {
      const B x = B::load_aligned(panels + (i / V * cols + d) * P + i % V * W);
      RECOPS_UNROLL
      for (int q = 0; q < Queries; ++q) acc[i * Queries + q] = mul_add(x, B(queries[q * stride + d]), acc[i * Queries + q]);
    }
  }
  RECOPS_UNROLL
  for (int i = 0; i < Panels * V; ++i) {
    RECOPS_UNROLL
    for (int q = 0; q < Queries; ++q) use(i / V, q, i % V * W, acc[i * Queries + q]);
  }
}

/// Panels to give `panel_products` at once so that one vector's products fill the multipliers (8 accumulators).
template <class T, class A = DefaultArch>
inline constexpr int panels_at_once = static_cast<int>(8 * lanes<T, A> / panel_width<T> > 1 ? 8 * lanes<T, A> / panel_width<T> : 1);
/// Vectors to give it with a single panel.
template <class T, class A = DefaultArch>
inline constexpr int queries_at_once = panels_at_once<T, A>;

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
