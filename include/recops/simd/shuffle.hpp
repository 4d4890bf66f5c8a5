/// @file   recops/simd/shuffle.hpp
/// @brief  Operations across lanes: interleaving, transposing registers and matrices, summing each of several vectors.
#pragma once
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// a0 b0 a1 b1 ... of the lower (or upper) halves.
template <bool Upper, class T, class A>
RECOPS_INLINE Batch<T, A> zip(Batch<T, A> a, Batch<T, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    constexpr int o = Upper ? 8 : 0;
    return _mm512_permutex2var_ps(a,
                                  _mm512_setr_epi32(o, 16 + o, o + 1, 17 + o, o + 2, 18 + o, o + 3, 19 + o, o + 4, 20 + o, o + 5,
                                                    21 + o, o + 6, 22 + o, o + 7, 23 + o),
                                  b);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    constexpr int o = Upper ? 4 : 0;
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(o, 8 + o, o + 1, 9 + o, o + 2, 10 + o, o + 3, 11 + o), b);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {  // xsimd 8.1 zips within each half
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), Upper ? 0x31 : 0x20);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), Upper ? 0x31 : 0x20);
  } else
#endif
    return Upper ? xsimd::zip_hi(a, b) : xsimd::zip_lo(a, b);
}

/// Transposes `lanes` vectors of `lanes` elements: log2(lanes) perfect shuffles. Not inlined: it is a kilobyte of code.
template <class T, class A>
[[gnu::noinline]] void transpose(Batch<T, A>* x) {
  constexpr int W = static_cast<int>(lanes<T, A>);
  Batch<T, A> y[W], z[W];
  RECOPS_UNROLL
  for (int i = 0; i < W; ++i) y[i] = x[i];
  RECOPS_UNROLL
  for (int step = 1; step < W; step *= 2) {
    RECOPS_UNROLL
    for (int i = 0; i < W / 2; ++i) {
      z[2 * i] = zip<false>(y[i], y[i + W / 2]);
      z[2 * i + 1] = zip<true>(y[i], y[i + W / 2]);
    }
    RECOPS_UNROLL
    for (int i = 0; i < W; ++i) y[i] = z[i];
  }
  RECOPS_UNROLL
  for (int i = 0; i < W; ++i) x[i] = y[i];
}

/// Lane i of the result is the sum of the lanes of x[i].
template <class T, class A>
RECOPS_INLINE Batch<T, A> sum_each(Batch<T, A>* x) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    __m512 u[8], w[4], y[2];
    RECOPS_UNROLL
    for (int i = 0; i < 8; ++i) u[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i)
      w[i] = _mm512_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44) + _mm512_shuffle_ps(u[2 * i], u[2 * i + 1], 0xee);
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i)
      y[i] = _mm512_shuffle_f32x4(w[2 * i], w[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(w[2 * i], w[2 * i + 1], 0xdd);
    return _mm512_shuffle_f32x4(y[0], y[1], 0x88) + _mm512_shuffle_f32x4(y[0], y[1], 0xdd);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    __m512d u[4], w[2];
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i) u[i] = _mm512_unpacklo_pd(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_pd(x[2 * i], x[2 * i + 1]);
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i)
      w[i] = _mm512_shuffle_f64x2(u[2 * i], u[2 * i + 1], 0x88) + _mm512_shuffle_f64x2(u[2 * i], u[2 * i + 1], 0xdd);
    return _mm512_shuffle_f64x2(w[0], w[1], 0x88) + _mm512_shuffle_f64x2(w[0], w[1], 0xdd);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    // Two shuffles and a sum are twice as fast as a horizontal addition.
    __m256 u[4], w[2];
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i) u[i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i)
      w[i] = _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44) + _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0xee);
    return _mm256_permute2f128_ps(w[0], w[1], 0x20) + _mm256_permute2f128_ps(w[0], w[1], 0x31);
  } else
#endif
    return xsimd::haddp(x);
}

/// Lane i of x[c] is row(i)[c], for four columns and as many rows as lanes.
template <class T, class A, class Row>
RECOPS_INLINE void load_four_columns(const Row& row, Batch<T, A> (&x)[4]) {
  constexpr Index W = lanes<T, A>;
#if defined(__AVX__)
  if constexpr (W == 8 && std::is_same_v<T, float>) {  // stored number by number they would not be there when vectors of them are
    __m256 t[4], z[4];                                 // asked for
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i)
      t[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(i))), _mm_loadu_ps(row(i + 4)), 1);
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i) {
      z[2 * i] = _mm256_unpacklo_ps(t[2 * i], t[2 * i + 1]);
      z[2 * i + 1] = _mm256_unpackhi_ps(t[2 * i], t[2 * i + 1]);
    }
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i) {
      x[2 * i] = _mm256_shuffle_ps(z[i], z[i + 2], 0x44);
      x[2 * i + 1] = _mm256_shuffle_ps(z[i], z[i + 2], 0xee);
    }
    return;
  }
#endif
  alignas(64) T lane[4][W];
  RECOPS_UNROLL
  for (Index i = 0; i < W; ++i) {
    RECOPS_UNROLL
    for (int c = 0; c < 4; ++c) lane[c][i] = row(i)[c];
  }
  RECOPS_UNROLL
  for (int c = 0; c < 4; ++c) x[c] = Batch<T, A>::load_aligned(lane[c]);
}

/// out[c * out_stride + r] = factor * rows[r][c] for r < rows, zeros for rows <= r < padded (a multiple of the lanes). `out` is
/// aligned to whole vectors.
template <class T, class A>
[[gnu::noinline]] void pack_transposed(const T* in, Index in_stride, Index rows, Index cols, T factor, T* out, Index out_stride,
                                       Index padded) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  for (Index r = 0; r < padded; r += W) {
    for (Index c = 0; c < cols; c += W) {
      B x[W];
      const T* at = r < rows ? in + r * in_stride + c : in;  // padding has no memory behind it
      const Index width = cols - c < W ? cols - c : W, height = rows - r < W ? rows - r : W;
      if (width == W) {
        for (Index i = 0; i < height; ++i) x[i] = B::load_unaligned(at + i * in_stride) * B(factor);
      } else {
        for (Index i = 0; i < height; ++i) x[i] = load_first<T, A>(at + i * in_stride, width) * B(factor);
      }
      for (Index i = height < 0 ? 0 : height; i < W; ++i) x[i] = B(T(0));
      transpose<T, A>(x);
      T* to = out + c * out_stride + r;
      for (Index i = 0; i < width; ++i) x[i].store_aligned(to + i * out_stride);
    }
  }
}

/// The other way: rows[r][c] = in[c * in_stride + r] * factor[r], or += with `add`; `in` and `factor` are aligned and padded to
/// whole vectors of r.
template <class T, class A>
[[gnu::noinline]] void unpack_transposed(const T* in, Index in_stride, const T* factor, T* out, Index out_stride, Index rows,
                                         Index cols, bool add) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  for (Index r = 0; r < rows; r += W) {
    const B f = B::load_aligned(factor + r);
    const Index height = rows - r < W ? rows - r : W;
    for (Index c = 0; c < cols; c += W) {
      const Index width = cols - c < W ? cols - c : W;
      B x[W];
      for (Index i = 0; i < width; ++i) x[i] = B::load_aligned(in + (c + i) * in_stride + r) * f;
      for (Index i = width; i < W; ++i) x[i] = B(T(0));
      transpose<T, A>(x);
      T* to = out + r * out_stride + c;
      for (Index i = 0; i < height; ++i, to += out_stride) {
        if (width == W) {
          (add ? x[i] + B::load_unaligned(to) : x[i]).store_unaligned(to);
        } else {
          store_first(to, add ? x[i] + load_first<T, A>(to, width) : x[i], width);
        }
      }
    }
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
