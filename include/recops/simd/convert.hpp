/// @file   recops/simd/convert.hpp
/// @brief  Numbers as they are stored (bfloat16, half, int8, float, double) to vectors of T and back, one vector or a run at a
///         time.
///
/// Rounding is to nearest, ties to even, always from the exact input: a double becomes a half in one rounding. A NaN stays a NaN
/// (quiet), infinities stay, denormals are kept. Every instruction set gives the bits of core/float16.hpp, one number at a time;
/// only the payload of a NaN that was a double may differ. Nothing past the numbers named is read or written.
/// Cost: memory bound; halves on AVX2 without F16C and on baseline x86-64 take a dozen integer operations a vector.
#pragma once
#include <recops/core/float16.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

template <class A>
inline constexpr bool has_avx512 = std::is_base_of_v<xsimd::avx512f, A>;
template <class A>
inline constexpr bool has_avx2 = std::is_base_of_v<xsimd::avx2, A>;
template <class A>
inline constexpr bool has_sse2 = std::is_base_of_v<xsimd::sse2, A>;

template <class A>
using Words = Batch<std::int32_t, A>;

/// As many sixteen-bit words as a vector has floats, each in the low half of a lane, the high half zero.
template <class A>
RECOPS_INLINE Words<A> load_words(const void* p) {
#if defined(__AVX512F__)
  if constexpr (has_avx512<A>) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  } else
#endif
#if defined(__AVX2__)
      if constexpr (has_avx2<A>) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  } else
#endif
#if defined(__SSE2__)
      if constexpr (lanes<float, A> == 4 && has_sse2<A>) {
    return _mm_unpacklo_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(p)), _mm_setzero_si128());
  } else
#endif
  {
    alignas(64) std::int32_t lane[lanes<float, A>];
    std::uint16_t word[lanes<float, A>];
    __builtin_memcpy(word, p, sizeof word);
    for (Index i = 0; i < lanes<float, A>; ++i) lane[i] = word[i];
    return Words<A>::load_aligned(lane);
  }
}

/// The low halves of the lanes.
template <class A>
RECOPS_INLINE void store_words(void* p, Words<A> v) {
#if defined(__AVX512F__)
  if constexpr (has_avx512<A>) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
  } else
#endif
#if defined(__AVX2__)
      if constexpr (has_avx2<A>) {
    const __m256i words = _mm256_packus_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0xFFFF)), _mm256_setzero_si256());
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
  } else
#endif
#if defined(__SSE2__)
      if constexpr (lanes<float, A> == 4 && has_sse2<A>) {
    const __m128i extended = _mm_srai_epi32(_mm_slli_epi32(v, 16), 16);  // the only pack there is saturates as signed
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi32(extended, extended));
  } else
#endif
  {
    alignas(64) std::int32_t lane[lanes<float, A>];
    std::uint16_t word[lanes<float, A>];
    v.store_aligned(lane);
    for (Index i = 0; i < lanes<float, A>; ++i) word[i] = static_cast<std::uint16_t>(lane[i]);
    __builtin_memcpy(p, word, sizeof word);
  }
}

template <class A>
RECOPS_INLINE Words<A> choose(typename Words<A>::batch_bool_type condition, Words<A> yes, Words<A> no) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {  // xsimd 8.1 takes words for halves here, and does not compile
    return _mm512_mask_blend_epi32(condition, no, yes);
  } else
#endif
    return xsimd::select(condition, yes, no);
}

/// Halves in lanes to floats, by integer arithmetic.
template <class A>
RECOPS_INLINE Batch<float, A> float_of_half(Words<A> h) {
  using I = Words<A>;
  const I sign = (h & I(0x8000)) << 16, magnitude = h & I(0x7FFF), fraction = magnitude << 13;
  const I tiny = bits_as<std::int32_t>(xsimd::to_float(magnitude) * Batch<float, A>(0x1p-24f));
  const I quiet = choose<A>(magnitude > I(0x7C00), I(0x7FC00000), I(0x7F800000));
  I u = choose<A>(magnitude < I(0x0400), tiny, fraction + I(0x38000000));
  u = choose<A>(magnitude > I(0x7BFF), quiet | fraction, u);
  return bits_as<float>(I(sign | u));
}

/// Floats to halves in lanes, by integer arithmetic; the high half of a lane is zero.
template <class A>
RECOPS_INLINE Words<A> half_of_float(Batch<float, A> x) {
  using I = Words<A>;
  const I u = bits_as<std::int32_t>(x), magnitude = u & I(0x7FFFFFFF), odd = (magnitude >> 13) & I(1);
  const I sign = (u & I(std::int32_t(0x80000000))) >> 16 & I(0x8000);
  const I nan = I(0x7E00) | ((magnitude >> 13) & I(0x03FF));
  const I normal = (magnitude - I(0x38000000 - 0x0FFF) + odd) >> 13;
  const I tiny = bits_as<std::int32_t>(Batch<float, A>(bits_as<float>(magnitude) + Batch<float, A>(0.5f))) - I(0x3F000000);
  I half = choose<A>(magnitude < I(0x38800000), tiny, normal);
  half = choose<A>(magnitude > I(0x477FEFFF), I(0x7C00), half);
  half = choose<A>(magnitude > I(0x7F800000), nan, half);
  return sign | half;
}

/// Floats to bfloat16 in lanes. The processor's own conversion takes denormals for zero.
template <class A>
RECOPS_INLINE Words<A> bfloat_of_float(Batch<float, A> x) {
  using I = Words<A>;
  const I u = bits_as<std::int32_t>(x), high = (u >> 16) & I(0xFFFF);
  const I rounded = (u + I(0x7FFF) + (high & I(1))) >> 16 & I(0xFFFF);
  return choose<A>((u & I(0x7FFFFFFF)) > I(0x7F800000), high | I(0x0040), rounded);
}

}  // namespace detail

/// `lanes<float>` stored numbers as floats.
template <class A = DefaultArch>
RECOPS_INLINE Batch<float, A> load_as_float(const float* p) {
  return Batch<float, A>::load_unaligned(p);
}
template <class A = DefaultArch>
RECOPS_INLINE Batch<float, A> load_as_float(const BFloat16* p) {
#if defined(__AVX2__)
  if constexpr (detail::has_avx2<A> && !detail::has_avx512<A>) {
    // Both lanes hold all eight: one shuffle puts each into the high half of its 32 bits.
    const __m256i to = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1, -1, 10, 11, -1,
                                        -1, 12, 13, -1, -1, 14, 15);
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(eight), to));
  } else
#endif
    return bits_as<float>(detail::Words<A>(detail::load_words<A>(p) << 16));
}
template <class A = DefaultArch>
RECOPS_INLINE Batch<float, A> load_as_float(const Float16* p) {
#if defined(__AVX512F__)
  if constexpr (detail::has_avx512<A>) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  } else
#endif
#if defined(__F16C__)
      if constexpr (detail::has_avx2<A>) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  } else
#endif
    return detail::float_of_half<A>(detail::load_words<A>(p));
}
template <class A = DefaultArch>
RECOPS_INLINE Batch<float, A> load_as_float(const std::int8_t* p) {
#if defined(__AVX512F__)
  if constexpr (detail::has_avx512<A>) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  } else
#endif
#if defined(__AVX2__)
      if constexpr (detail::has_avx2<A>) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  } else
#endif
#if defined(__SSE2__)
      if constexpr (lanes<float, A> == 4 && detail::has_sse2<A>) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    const __m128i v = _mm_cvtsi32_si128(four), twice = _mm_unpacklo_epi8(v, v);
    return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24));
  } else
#endif
  {
    alignas(64) float lane[lanes<float, A>];
    for (Index i = 0; i < lanes<float, A>; ++i) lane[i] = static_cast<float>(p[i]);
    return Batch<float, A>::load_aligned(lane);
  }
}
template <class A = DefaultArch>
RECOPS_INLINE Batch<float, A> load_as_float(const double* p) {
#if defined(__AVX512F__)
  if constexpr (detail::has_avx512<A>) {
    const __m256d low = _mm256_castps_pd(_mm512_cvtpd_ps(_mm512_loadu_pd(p)));
    const __m256d high = _mm256_castps_pd(_mm512_cvtpd_ps(_mm512_loadu_pd(p + 8)));
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1));
  } else
#endif
  {
    alignas(64) float lane[lanes<float, A>];
    for (Index i = 0; i < lanes<float, A>; ++i) lane[i] = static_cast<float>(p[i]);
    return Batch<float, A>::load_aligned(lane);
  }
}

/// `lanes<T>` stored numbers as T, float or double.
template <class T, class A = DefaultArch, class S>
RECOPS_INLINE Batch<T, A> load_as(const S* p) {
  if constexpr (std::is_same_v<T, S>) {
    return Batch<T, A>::load_unaligned(p);
  } else if constexpr (std::is_same_v<T, float>) {
    return load_as_float<A>(p);
  } else {
    alignas(64) T lane[lanes<T, A>];
    for (Index i = 0; i < lanes<T, A>; ++i) lane[i] = static_cast<T>(static_cast<float>(p[i]));
    return Batch<T, A>::load_aligned(lane);
  }
}

/// The first `n` (0 <= n < lanes) stored numbers as T, zeros behind them; nothing past them is read.
template <class T, class A = DefaultArch, class S>
RECOPS_INLINE Batch<T, A> load_first_as(const S* p, Index n) {
  if constexpr (std::is_same_v<T, S>) {
    return load_first<T, A>(p, n);
  } else {
    S some[lanes<T, A>] = {};
    for (Index i = 0; i < n; ++i) some[i] = p[i];
    return load_as<T, A>(some);
  }
}

/// Writes `lanes<float>` numbers, rounded.
template <class A>
RECOPS_INLINE void store_as(float* p, Batch<float, A> v) {
  v.store_unaligned(p);
}
template <class A>
RECOPS_INLINE void store_as(BFloat16* p, Batch<float, A> v) {
  detail::store_words<A>(p, detail::bfloat_of_float<A>(v));
}
template <class A>
RECOPS_INLINE void store_as(Float16* p, Batch<float, A> v) {
#if defined(__AVX512F__)
  if constexpr (detail::has_avx512<A>) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else
#endif
#if defined(__F16C__)
      if constexpr (detail::has_avx2<A>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  } else
#endif
    detail::store_words<A>(p, detail::half_of_float<A>(v));
}
/// Writes the first `n` (0 <= n < lanes) numbers, rounded; nothing past them is touched.
template <class A, class S>
RECOPS_INLINE void store_first_as(S* p, Batch<float, A> v, Index n) {
  S some[lanes<float, A>];
  store_as<A>(some, v);
  for (Index i = 0; i < n; ++i) p[i] = some[i];
}

/// Stored numbers [n] to float or double. `in` and `out` do not overlap.
template <class T, class A = DefaultArch, class S>
requires(Real<T> && !std::is_same_v<S, double>) void convert(const S* in, T* out, Index n) {
  constexpr Index W = lanes<T, A>;
  Index i = 0;
  for (; i + W <= n; i += W) load_as<T, A>(in + i).store_unaligned(out + i);
  if (i < n) store_first(out + i, load_first_as<T, A>(in + i, n - i), n - i);
}
/// Floats [n] to BFloat16 or Float16.
template <class S, class A = DefaultArch>
requires(!Real<S>) void convert(const float* in, S* out, Index n) {
  constexpr Index W = lanes<float, A>;
  Index i = 0;
  for (; i + W <= n; i += W) store_as<A>(out + i, load_as_float<A>(in + i));
  if (i < n) store_first_as<A>(out + i, load_first<float, A>(in + i, n - i), n - i);
}
/// Doubles [n] to BFloat16, Float16 or float, in one rounding.
template <class S, class A = DefaultArch>
requires(!std::is_same_v<S, double>) void convert(const double* in, S* out, Index n) {
  if constexpr (std::is_same_v<S, float>) {
    for (Index i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
  } else {
    constexpr Index W = lanes<float, A>;
    alignas(64) float some[W];
    for (Index i = 0; i < n; i += W) {
      const Index count = n - i < W ? n - i : W;
      for (Index j = 0; j < count; ++j) some[j] = rounding::round_to_odd(in[i + j]);
      if (count == W) {
        store_as<A>(out + i, Batch<float, A>::load_aligned(some));
      } else {
        for (Index j = 0; j < count; ++j) out[i + j] = S(some[j]);
      }
    }
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
