/// @file   recops/simd/random_index.hpp
/// @brief  Random whole numbers below a bound, and random orders.
///
/// A draw takes two words, the first on top, as a 64-bit fraction and multiplies it by the bound (Lemire, "Fast random integer
/// generation in an interval", 2019, without its rejection): the probability of each outcome differs from 1 / n by less than
/// 2^-64, and every draw costs the same two words, so that draw i of a row is always draw i. Integers only: the same on every
/// instruction set. `Random::below` is exactly uniform.
#pragma once
#include <recops/simd/philox.hpp>
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// (high, low) as a fraction of 2^64, times the bound, rounded down; all in the lower halves of the lanes.
template <class A>
RECOPS_INLINE Batch<std::uint64_t, A> scale_fraction(Batch<std::uint64_t, A> high, Batch<std::uint64_t, A> low,
                                                     Batch<std::uint64_t, A> bound) {
  return (multiply_low(high, bound) + (multiply_low(low, bound) >> 32)) >> 32;
}

/// Draws 2 * block, 2 * block + 1, ... of a row below the bounds of their lanes (`even` and `odd` draws): one vector, in order.
template <class A>
RECOPS_INLINE Batch<std::uint32_t, A> draws(const Philox<A>& philox, std::uint32_t block, Batch<std::uint64_t, A> even,
                                            Batch<std::uint64_t, A> odd) {
  typename Philox<A>::Words w[1][4];
  philox.blocks(block, w);
  return merge_low(scale_fraction<A>(w[0][0], w[0][1], even), scale_fraction<A>(w[0][2], w[0][3], odd));
}

}  // namespace detail

/// `count` draws from 0 .. bound - 1, for bound >= 1: the draws of a row.
template <class A = DefaultArch>
void fill_below(const RandomRow& at, std::int32_t bound, std::int32_t* out, Index count) {
  assert(bound >= 1);
  constexpr Index W = lanes<std::uint32_t, A>;
  const Philox<A> philox(at);
  const Batch<std::uint64_t, A> n(static_cast<std::uint64_t>(bound));
  for (Index i = 0; i < count; i += W) {
    const auto v = bits_as<std::int32_t>(detail::draws<A>(philox, static_cast<std::uint32_t>(i / 2), n, n));
    if (count - i >= W) {
      v.store_unaligned(out + i);
    } else {
      store_first(out + i, v, count - i);
    }
  }
}

/// Puts `n` elements (n < 2^32) into a random order, a function of the row alone: element i changes places with element
/// draw_i of 0 .. i, for i = 0, 1, ... (Fisher and Yates). O(n) random accesses.
template <class I, class A = DefaultArch>
void shuffle(const RandomRow& at, I* x, Index n) {
  assert(n < Index{1} << 32);
  constexpr Index W = lanes<std::uint32_t, A>, chunk = 16 * W;
  const Philox<A> philox(at);
  alignas(64) std::uint32_t place[chunk];
  alignas(64) std::uint64_t lane[8] = {0, 2, 4, 6, 8, 10, 12, 14};
  const auto steps = Batch<std::uint64_t, A>::load_aligned(lane);
  for (Index begin = 0; begin < n; begin += chunk) {
    const Index end = n - begin < chunk ? n : begin + chunk;
    for (Index i = begin; i < end; i += W) {
      const Batch<std::uint64_t, A> even = Batch<std::uint64_t, A>(static_cast<std::uint64_t>(i + 1)) + steps;
      const Batch<std::uint64_t, A> odd = even + Batch<std::uint64_t, A>(std::uint64_t{1});
      detail::draws<A>(philox, static_cast<std::uint32_t>(i / 2), even, odd).store_aligned(place + (i - begin));
    }
    for (Index i = begin; i < end; ++i) __builtin_prefetch(x + place[i - begin], 1);
    for (Index i = begin; i < end; ++i) {
      I kept = static_cast<I&&>(x[i]);
      if (place[i - begin] == static_cast<std::uint32_t>(i)) {
        x[i] = static_cast<I&&>(kept);
      } else {
        x[i] = static_cast<I&&>(x[place[i - begin]]);
        x[place[i - begin]] = static_cast<I&&>(kept);
      }
    }
  }
}

/// The numbers 0 .. n - 1 in a random order, a function of the row alone, e.g. of the epoch: the order in which data are visited.
template <class I, class A = DefaultArch>
void fill_permutation(const RandomRow& at, I* out, Index n) {
  for (Index i = 0; i < n; ++i) out[i] = static_cast<I>(i);
  shuffle<I, A>(at, out, n);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
