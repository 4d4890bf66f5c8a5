/// @file   recops/simd/uniform.hpp
/// @brief  Words and uniform numbers of a row, in vectors: the bits of `uniform_float` and `uniform_double` on every instruction
///         set.
#pragma once
#include <recops/core/error.hpp>
#include <recops/simd/philox.hpp>
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// The words of `Philox<A>::width` blocks in order.
template <class A>
RECOPS_INLINE VectorPair<std::uint32_t, A> words_in_order(const Batch<std::uint64_t, A> (&w)[4]) {
  const Batch<float, A> even = bits_as<float>(detail::merge_low(w[0], w[2])), odd = bits_as<float>(detail::merge_low(w[1], w[3]));
  return {bits_as<std::uint32_t>(zip<false>(even, odd)), bits_as<std::uint32_t>(zip<true>(even, odd))};
}

/// Words as floats in (0, 1): (top 23 bits + 1/2) / 2^23. Made as 1 + bits / 2^23 less 1 - 2^-24, both steps exact.
template <class A>
RECOPS_INLINE Batch<float, A> uniform_of_words(Batch<std::uint32_t, A> word) {
  return bits_as<float>((word >> 9) | Batch<std::uint32_t, A>(0x3f800000u)) - Batch<float, A>(1 - 0x1p-24f);
}
/// Pairs of words (the first one on top) as doubles in (0, 1): (top 52 bits + 1/2) / 2^52.
template <class A>
RECOPS_INLINE Batch<double, A> uniform_of_words(Batch<std::uint64_t, A> pair) {
  return bits_as<double>((pair >> 12) | Batch<std::uint64_t, A>(std::uint64_t{0x3ff} << 52)) - Batch<double, A>(1 - 0x1p-53);
}

/// The uniforms of `Philox<A>::width` blocks in order.
template <class T, class A>
RECOPS_INLINE VectorPair<T, A> uniform_pair(const Batch<std::uint64_t, A> (&w)[4]) {
  if constexpr (std::is_same_v<T, float>) {
    const VectorPair<std::uint32_t, A> v = words_in_order<A>(w);
    return {uniform_of_words<A>(v.first), uniform_of_words<A>(v.second)};
  } else {
    const Batch<double, A> u0 = uniform_of_words<A>(bits_as<std::uint64_t>(detail::merge_low(w[1], w[0]))),
                           u1 = uniform_of_words<A>(bits_as<std::uint64_t>(detail::merge_low(w[3], w[2])));
    return {zip<false>(u0, u1), zip<true>(u0, u1)};
  }
}

/// The first `n` words of a row.
template <class A = DefaultArch>
void fill_words(const RandomRow& at, std::uint32_t* out, Index n) {
  for_each_random<std::uint32_t, A>(
      Philox<A>(at), n, [](const auto& w) RECOPS_LAMBDA_INLINE { return words_in_order<A>(w); },
      [&](Index i, Batch<std::uint32_t, A> v, auto, auto store) RECOPS_LAMBDA_INLINE { store(out + i, v); });
}

/// The first `n` uniforms of a row, in (0, 1), never 0 nor 1: 23 bits in float, 52 in double.
template <Real T, class A = DefaultArch>
void fill_uniform(const RandomRow& at, T* out, Index n) {
  for_each_random<T, A>(
      Philox<A>(at), n, [](const auto& w) RECOPS_LAMBDA_INLINE { return uniform_pair<T, A>(w); },
      [&](Index i, Batch<T, A> v, auto, auto store) RECOPS_LAMBDA_INLINE { store(out + i, v); });
}

/// Row b of `out [B, D]` is the row of uniforms whose id is `ids[b]`, or `at.row` + b without ids: what an id draws does not
/// depend on its place in the batch. Throws Error where the sizes differ.
template <Real T, class A = DefaultArch>
void fill_uniform(const RandomRow& at, IndexView ids, MatrixView<T> out) {
  check_shape("fill_uniform", "out", out, ids.is_null() ? any_size : ids.size(), any_size);
  Philox<A> philox(at);
  for (Index b = 0; b < out.rows(); ++b) {
    philox.set_row(row_of(at, ids, b));
    T* const row = out.row(b);
    for_each_random<T, A>(
        philox, out.cols(), [](const auto& w) RECOPS_LAMBDA_INLINE { return uniform_pair<T, A>(w); },
        [&](Index i, Batch<T, A> v, auto, auto store) RECOPS_LAMBDA_INLINE { store(row + i, v); });
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
