/// @file   recops/simd/sort_registers.hpp
/// @brief  Sorting 64-bit words with AVX-512: up to 128 of them in registers, some thousands by partitioning into such.
///
/// Bitonic networks: each step is a shuffle, a minimum and a maximum, with no branch. Words must differ (an index in the lower
/// half sees to that), or equal ones end up in any order.
#pragma once
#include <bit>
#include <limits>
#include <recops/simd/xsimd.hpp>

#if defined(__AVX512F__)

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {
namespace detail {

/// Orders each lane with its partner in `p`: where `upper` is set the larger of the two stays.
RECOPS_INLINE __m512i exchange(__m512i v, __m512i p, __mmask8 upper) {
  return _mm512_mask_max_epu64(_mm512_min_epu64(v, p), upper, v, p);
}
RECOPS_INLINE __m512i reversed(__m512i v) { return _mm512_permutexvar_epi64(_mm512_setr_epi64(7, 6, 5, 4, 3, 2, 1, 0), v); }

/// Sorts eight lanes that rise, then fall.
RECOPS_INLINE __m512i merge_lanes(__m512i v) {
  v = exchange(v, _mm512_shuffle_i64x2(v, v, 0x4e), 0xf0);
  v = exchange(v, _mm512_permutex_epi64(v, 0x4e), 0xcc);
  return exchange(v, _mm512_permutex_epi64(v, 0xb1), 0xaa);
}
/// Sorts eight lanes.
RECOPS_INLINE __m512i sort_lanes(__m512i v) {
  v = exchange(v, _mm512_permutex_epi64(v, 0xb1), 0xaa);
  v = exchange(v, _mm512_permutex_epi64(v, 0x1b), 0xcc);
  v = exchange(v, _mm512_permutex_epi64(v, 0xb1), 0xaa);
  v = exchange(v, reversed(v), 0xf0);
  v = exchange(v, _mm512_permutex_epi64(v, 0x4e), 0xcc);
  return exchange(v, _mm512_permutex_epi64(v, 0xb1), 0xaa);
}

/// Sorts R registers whose halves are sorted, as one sequence of 8 R words.
template <int R>
RECOPS_INLINE void merge_registers(__m512i* v) {
  __m512i high[R / 2];
  RECOPS_UNROLL
  for (int i = 0; i < R / 2; ++i) {
    const __m512i p = reversed(v[R - 1 - i]);
    high[i] = _mm512_max_epu64(v[i], p);
    v[i] = _mm512_min_epu64(v[i], p);
  }
  RECOPS_UNROLL
  for (int i = 0; i < R / 2; ++i) v[R / 2 + i] = high[i];
  RECOPS_UNROLL
  for (int distance = R / 4; distance > 0; distance /= 2) {
    RECOPS_UNROLL
    for (int i = 0; i < R; ++i) {
      if ((i & distance) != 0) continue;
      const __m512i low = _mm512_min_epu64(v[i], v[i + distance]);
      v[i + distance] = _mm512_max_epu64(v[i], v[i + distance]);
      v[i] = low;
    }
  }
  RECOPS_UNROLL
  for (int i = 0; i < R; ++i) v[i] = merge_lanes(v[i]);
}

template <int R>
RECOPS_INLINE void sort_registers(__m512i* v) {
  if constexpr (R == 1) {
    v[0] = sort_lanes(v[0]);
  } else {
    sort_registers<R / 2>(v);
    sort_registers<R / 2>(v + R / 2);
    merge_registers<R>(v);
  }
}

/// to[0..n) = the sorted words of from[0..n), n <= 8 R.
template <int R>
[[gnu::noinline]] inline void sort_network(const std::uint64_t* from, std::uint64_t* to, Index n) {
  const auto lanes_of = [n](int i) RECOPS_LAMBDA_INLINE {
    const Index left = n - 8 * i;
    return static_cast<__mmask8>(left >= 8 ? 0xff : left <= 0 ? 0 : (1u << left) - 1u);
  };
  __m512i v[R];
  RECOPS_UNROLL
  for (int i = 0; i < R; ++i) v[i] = _mm512_mask_loadu_epi64(_mm512_set1_epi64(-1), lanes_of(i), from + 8 * i);
  sort_registers<R>(v);
  RECOPS_UNROLL
  for (int i = 0; i < R; ++i) _mm512_mask_storeu_epi64(to + 8 * i, lanes_of(i), v[i]);
}

inline constexpr Index network_words = 128;  ///< the most that a network sorts

/// to[0..n) = the sorted words of from[0..n), n <= network_words; `to` may be `from`.
inline void sort_network(const std::uint64_t* from, std::uint64_t* to, Index n) {
  if (n <= 8) return sort_network<1>(from, to, n);
  if (n <= 16) return sort_network<2>(from, to, n);
  if (n <= 32) return sort_network<4>(from, to, n);
  if (n <= 64) return sort_network<8>(from, to, n);
  sort_network<16>(from, to, n);
}

/// Copies `from` to `to`, words below the pivot first, and returns how many they are; the others come in any order.
[[gnu::noinline]] inline Index partition_words(const std::uint64_t* from, std::uint64_t* to, Index n, std::uint64_t pivot) {
  const __m512i p = _mm512_set1_epi64(static_cast<long long>(pivot));
  Index low = 0, high = n, i = 0;
  for (; i < n % 8; ++i) {
    const bool below = from[i] < pivot;
    to[below ? low : high - 1] = from[i];
    low += below;
    high -= !below;
  }
  for (; i < n; i += 8) {
    const __m512i v = _mm512_loadu_si512(from + i);
    const __mmask8 below = _mm512_cmplt_epu64_mask(v, p);
    const int count = std::popcount(static_cast<std::uint32_t>(below));
    // The gap between the two fronts is as wide as what is still to come, whole vectors: both stores fit, and where they overlap
    // they are the same.
    const __m512i above = _mm512_maskz_compress_epi64(static_cast<__mmask8>(~below), v);
    const __m512i split =
        _mm512_mask_expand_epi64(_mm512_maskz_compress_epi64(below, v), static_cast<__mmask8>(0xffu << count), above);
    _mm512_storeu_si512(to + low, split);
    _mm512_storeu_si512(to + high - 8, split);
    low += count;
    high -= 8 - count;
  }
  return low;
}

/// A word near the middle of n >= 24 words, with at least four below it: the median of eight medians of three.
inline std::uint64_t pivot_of(const std::uint64_t* words, Index n) {
  const __m512i a = _mm512_loadu_si512(words), b = _mm512_loadu_si512(words + n / 2 - 4), c = _mm512_loadu_si512(words + n - 8);
  const __m512i low = _mm512_min_epu64(a, b), high = _mm512_max_epu64(a, b);
  alignas(64) std::uint64_t medians[8];
  _mm512_store_si512(medians, sort_lanes(_mm512_max_epu64(low, _mm512_min_epu64(high, c))));
  return medians[4];
}

}  // namespace detail
}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops

#endif
