/// @file   recops/simd/sort.hpp
/// @brief  Sorts 64-bit words stably by their upper halves: the engine under argsort, top-k and midrank.
///
/// A word is a 32-bit key above a 32-bit index, which is carried along. Few words are ranked by comparing each with each, in
/// vectors (AVX-512: sorted in registers, up to two thousand); more go through radix passes, of 8 bits at a time and of 11
/// where there are enough words to pay for the larger histograms. Next to no branch depends on the data, so neither does the
/// time.
#pragma once
#include <algorithm>
#include <bit>
#include <limits>
#include <recops/simd/sort_registers.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// The most words that are ranked by comparing each with each.
template <class A>
inline constexpr Index few_words = lanes<float, A> >= 8 ? 128 : 96;

/// other[place of words[i]] = words[i], n <= few_words. The place is the number of smaller keys, and of equal ones before.
template <class A>
[[gnu::noinline]] void sort_few(const std::uint64_t* words, std::uint64_t* other, Index n) {
  using I = Batch<std::int32_t, A>;
  constexpr Index W = lanes<float, A>, room = few_words<A> + 2 * W;
  alignas(64) std::int32_t keys[room], places[room], lane[W];
  for (Index i = 0; i < n; ++i)  // the sign turned, for vectors compare signed
    keys[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(words[i] >> 32) ^ 0x80000000u);
  for (Index i = n; i < n + 2 * W; ++i) keys[i] = std::numeric_limits<std::int32_t>::max();
  for (Index l = 0; l < W; ++l) lane[l] = static_cast<std::int32_t>(l);
  const I lane0 = I::load_aligned(lane), lane1 = lane0 + I(static_cast<std::int32_t>(W)), one(1), zero(0);
  for (Index b = 0; b < n; b += 2 * W) {
    const I key0 = I::load_aligned(keys + b), key1 = I::load_aligned(keys + b + W);
    I above0 = zero, above1 = zero, below0 = zero, below1 = zero;
    for (Index j = 0; j < b; ++j) {
      const I other_key(keys[j]);
      above0 = above0 + xsimd::select(other_key > key0, one, zero);
      above1 = above1 + xsimd::select(other_key > key1, one, zero);
    }
    const Index end = b + 2 * W < n ? b + 2 * W : n;
    for (Index j = b; j < end; ++j) {
      const I other_key(keys[j]), at(static_cast<std::int32_t>(j - b));
      below0 = below0 + xsimd::select((other_key < key0) | ((other_key == key0) & (at < lane0)), one, zero);
      below1 = below1 + xsimd::select((other_key < key1) | ((other_key == key1) & (at < lane1)), one, zero);
    }
    for (Index j = end; j < n; ++j) {
      const I other_key(keys[j]);
      below0 = below0 + xsimd::select(other_key < key0, one, zero);
      below1 = below1 + xsimd::select(other_key < key1, one, zero);
    }
    const I before(static_cast<std::int32_t>(b));
    (before - above0 + below0).store_aligned(places + b);
    (before - above1 + below1).store_aligned(places + b + W);
  }
  for (Index i = 0; i < n; ++i) other[places[i]] = words[i];
}

/// Turns counts into the places at which their runs start.
inline void places_of(std::uint32_t* counts, int values) {
  std::uint32_t start = 0;
  for (int v = 0; v < values; ++v) start += std::exchange(counts[v], start);
}

/// Radix sort, least significant digit first, by `Bits` bits from `First` on (words must agree above them); stable. The sorted
/// words are in the buffer that is returned.
template <int Width, int Bits, int First = 32>
[[gnu::noinline]] std::uint64_t* sort_digits(std::uint64_t* words, std::uint64_t* other, Index n) {
  constexpr int digits = (Bits + Width - 1) / Width, values = 1 << Width;
  std::uint32_t counts[digits][values] = {};
  for (Index i = 0; i < n; ++i) {
    const std::uint64_t key = words[i] >> First;
    RECOPS_UNROLL
    for (int d = 0; d < digits; ++d) ++counts[d][(key >> (Width * d)) & (values - 1)];
  }
  for (int d = 0; d < digits; ++d) {
    std::uint32_t* const place = counts[d];
    const int shift = First + Width * d;
    if (place[(words[0] >> shift) & (values - 1)] == static_cast<std::uint32_t>(n)) continue;  // all have the same
    places_of(place, values);
    for (Index i = 0; i < n; ++i) other[place[(words[i] >> shift) & (values - 1)]++] = words[i];
    std::swap(words, other);
  }
  return words;
}

/// Sorts by the leading 2 Width bits of where keys lie between the smallest and the largest, then puts the few right that this
/// leaves undecided: half the passes of a whole sort. Keys that crowd together, so that too many are undecided, get a whole one.
template <int Width>
[[gnu::noinline]] std::uint64_t* sort_leading(std::uint64_t* words, std::uint64_t* other, Index n) {
  constexpr int values = 1 << Width;
  std::uint64_t low = words[0], high = words[0];
  for (Index i = 1; i < n; ++i) {
    low = std::min(low, words[i]);
    high = std::max(high, words[i]);
  }
  low = low >> 32 << 32;
  const int shift = std::max(0, static_cast<int>(std::bit_width(high - low)) - 2 * Width), next = shift + Width;
  std::uint32_t first[values] = {}, second[values] = {};
  for (Index i = 0; i < n; ++i) {
    const std::uint64_t key = words[i] - low;
    ++first[(key >> shift) & (values - 1)];
    ++second[key >> next];
  }
  places_of(first, values);
  places_of(second, values);
  for (Index i = 0; i < n; ++i) other[first[((words[i] - low) >> shift) & (values - 1)]++] = words[i];
  for (Index i = 0; i < n; ++i) words[second[(other[i] - low) >> next]++] = other[i];
  Index moves = 4 * n;
  for (Index i = 1; i < n; ++i) {  // whole words are compared: equal keys are, and stay, in the order of their indices
    const std::uint64_t word = words[i];
    if (words[i - 1] < word) continue;
    Index j = i;
    for (; j > 0 && word < words[j - 1]; --j) words[j] = words[j - 1];
    words[j] = word;
    moves -= i - j;
    if (moves < 0) return sort_digits<Width, 32>(words, other, n);
  }
  return words;
}

inline constexpr Index many_words = 2048;      ///< worth histograms of 11 bits
inline constexpr Index crowded_words = 32768;  ///< so many that their leading 22 bits decide too little

#if defined(__AVX512F__)
/// Sorts words that differ into `words`, or into `other` with `there`: partitions until networks can take over.
inline void sort_partitions(std::uint64_t* words, std::uint64_t* other, Index n, bool there) {
  std::uint64_t* const to = there ? other : words;
  if (n <= network_words) return sort_network(words, to, n);
  const Index below = partition_words(words, other, n, pivot_of(words, n));
  if (std::min(below, n - below) < n / 16) {  // unlucky pivots must not add up to n^2
    const std::uint64_t* const sorted = sort_digits<8, 64, 0>(words, other, n);
    if (sorted != to) std::copy_n(sorted, n, to);
    return;
  }
  sort_partitions(other, words, below, !there);
  sort_partitions(other + below, words + below, n - below, !there);
}
#endif

/// What fits into the first-level cache.
template <class A>
std::uint64_t* sort_some(std::uint64_t* words, std::uint64_t* other, Index n) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    sort_partitions(words, other, n, false);
    return words;
  } else
#endif
  {
    if (n > few_words<A>) return sort_leading<9>(words, other, n);
    sort_few<A>(words, other, n);
    return other;
  }
}

}  // namespace detail

/// Sorts `n` words by their upper halves; those that agree must come, and stay, in the order of their lower halves. `other` is
/// scratch of n words; the sorted words are in the buffer that is returned.
template <class A = DefaultArch>
std::uint64_t* sort_words(std::uint64_t* words, std::uint64_t* other, Index n) {
  using namespace detail;
  if (n < many_words) return n <= 1 ? words : sort_some<A>(words, other, n);
  return n < crowded_words ? sort_leading<11>(words, other, n) : sort_digits<11, 32>(words, other, n);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
