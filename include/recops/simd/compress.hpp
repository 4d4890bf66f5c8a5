/// @file   recops/simd/compress.hpp
/// @brief  Which lanes of a vector satisfy a condition, as bits, and storing just those lanes side by side.
#pragma once
#include <bit>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// A condition as an integer: bit i is lane i.
template <class T, class A>
RECOPS_INLINE std::uint32_t mask_bits(xsimd::batch_bool<T, A> condition) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    return static_cast<typename xsimd::batch_bool<T, A>::register_type>(condition);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(condition));
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return static_cast<std::uint32_t>(_mm256_movemask_pd(condition));
  } else
#endif
#if defined(__SSE2__)
      if constexpr (std::is_base_of_v<xsimd::sse2, A> && std::is_same_v<T, float>) {
    return static_cast<std::uint32_t>(_mm_movemask_ps(condition));
  } else if constexpr (std::is_base_of_v<xsimd::sse2, A> && std::is_same_v<T, double>) {
    return static_cast<std::uint32_t>(_mm_movemask_pd(condition));
  } else
#endif
  {
    bool lane[xsimd::batch_bool<T, A>::size];
    condition.store_unaligned(lane);
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < xsimd::batch_bool<T, A>::size; ++i) bits |= static_cast<std::uint32_t>(lane[i]) << i;
    return bits;
  }
}

/// Stores the lanes of `v` whose bits are set to to[0], to[1], ... and `first` + lane to index[0], index[1], ...; a whole
/// vector's room is needed at both, what follows the stored lanes is unspecified. Returns how many lanes were stored.
template <class T, class A>
RECOPS_INLINE Index compress_indexed(std::uint32_t bits, Batch<T, A> v, std::int32_t first, T* to, std::int32_t* index) {
#if defined(__AVX512F__)
  // Through registers: on some processors a compressing store to memory takes a hundred cycles.
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    const __m512i lane =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(first));
    const __m512i chosen = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), lane);
    if constexpr (std::is_same_v<T, float>) {
      _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
      _mm512_storeu_si512(index, chosen);
    } else {
      _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), v));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(index), _mm512_castsi512_si256(chosen));
    }
    return std::popcount(bits);
  } else
#endif
  {
    alignas(64) T lane[Batch<T, A>::size];
    v.store_aligned(lane);
    Index count = 0;
    for (; bits != 0; bits &= bits - 1, ++count) {
      const int i = std::countr_zero(bits);
      to[count] = lane[i];
      index[count] = first + i;
    }
    return count;
  }
}

/// The same with the indices that belong to the lanes: those of the chosen lanes go to index[0], index[1], ... A whole vector
/// is read at `from`; source and target of the indices may overlap where the target does not come later.
template <class T, class A>
RECOPS_INLINE Index compress_pairs(std::uint32_t bits, Batch<T, A> v, const std::int32_t* from, T* to, std::int32_t* index) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    if constexpr (std::is_same_v<T, float>) {
      const __m512i chosen = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(from));
      _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
      _mm512_storeu_si512(index, chosen);
    } else {
      const __m512i all = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      const __m512i chosen = _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all);
      _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(bits), v));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(index), _mm512_castsi512_si256(chosen));
    }
    return std::popcount(bits);
  } else
#endif
  {
    alignas(64) T lane[Batch<T, A>::size];
    v.store_aligned(lane);
    Index count = 0;
    for (; bits != 0; bits &= bits - 1, ++count) {
      const int i = std::countr_zero(bits);
      to[count] = lane[i];
      index[count] = from[i];
    }
    return count;
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
