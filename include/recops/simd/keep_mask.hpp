/// @file   recops/simd/keep_mask.hpp
/// @brief  Random masks that keep each element with a given probability, as bytes or applied at once (dropout).
///
/// Element j of a row is kept where its word, a whole number below 2^32, is below keep_threshold(p): one comparison of integers,
/// so the mask is the same on every instruction set and for float and double, and the probability is p to 2^-33.
#pragma once
#include <recops/core/error.hpp>
#include <recops/simd/uniform.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// The words below it, of 2^32, keep an element with probability `p` in [0, 1]; 0 keeps nothing, 1 everything.
inline std::uint64_t keep_threshold(double p) {
  assert(p >= 0 && p <= 1);
  return static_cast<std::uint64_t>(p * 0x1p32 + 0.5);
}

namespace detail {

/// v where the word is at most `last`, else 0.
template <class A>
RECOPS_INLINE Batch<float, A> keep_up_to(Batch<std::uint32_t, A> word, std::uint32_t last, Batch<float, A> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    return _mm512_maskz_mov_ps(_mm512_cmple_epu32_mask(word, _mm512_set1_epi32(static_cast<int>(last))), v);
  } else
#endif
  {
    using U = Batch<std::uint32_t, A>;
    using I = Batch<std::int32_t, A>;
    constexpr std::uint32_t sign = 0x80000000u;  // turns unsigned order into signed order, which every set compares in
    const auto drop = bits_as<std::int32_t>(word ^ U(sign)) > I(static_cast<std::int32_t>(last ^ sign));
    return bits_as<float>(xsimd::select(drop, I(0), bits_as<std::int32_t>(v)));
  }
}

/// 1 where the word is at most `last`, else 0: `count` bytes, at most one per lane.
template <class A>
RECOPS_INLINE void store_kept(Batch<std::uint32_t, A> word, std::uint32_t last, std::uint8_t* out, Index count) {
  constexpr Index W = lanes<std::uint32_t, A>;
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    const __mmask16 kept = _mm512_cmple_epu32_mask(word, _mm512_set1_epi32(static_cast<int>(last)));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_maskz_set1_epi32(kept, 1));
    if (count == W) {  // a masked store of bytes is slow on some processors
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
    } else {
      alignas(16) std::uint8_t all[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
      for (Index i = 0; i < count; ++i) out[i] = all[i];
    }
    return;
  }
#endif
  alignas(64) std::uint32_t words[W];
  word.store_aligned(words);
  for (Index i = 0; i < count; ++i) out[i] = words[i] <= last;
}

template <class A>
RECOPS_INLINE void fill_keep(const Philox<A>& philox, std::uint64_t threshold, std::uint8_t* out, Index n) {
  constexpr Index W = lanes<std::uint32_t, A>;
  if (threshold == 0) {
    for (Index i = 0; i < n; ++i) out[i] = 0;
    return;
  }
  const auto last = static_cast<std::uint32_t>(threshold - 1);
  for_each_random<std::uint32_t, A>(
      philox, n, [](const auto& w) RECOPS_LAMBDA_INLINE { return words_in_order<A>(w); },
      [&](Index i, Batch<std::uint32_t, A> word, auto, auto)
          RECOPS_LAMBDA_INLINE { store_kept<A>(word, last, out + i, n - i < W ? n - i : W); });
}

template <class T, class A>
RECOPS_INLINE void dropout(const Philox<A>& philox, std::uint64_t threshold, T scale, const T* x, T* y, Index n) {
  if (threshold == 0) {
    for (Index i = 0; i < n; ++i) y[i] = T(0);
    return;
  }
  const auto last = static_cast<std::uint32_t>(threshold - 1);
  if constexpr (std::is_same_v<T, float>) {
    for_each_random<std::uint32_t, A>(
        philox, n, [](const auto& w) RECOPS_LAMBDA_INLINE { return words_in_order<A>(w); },
        [&](Index i, Batch<std::uint32_t, A> word, auto load, auto store)
            RECOPS_LAMBDA_INLINE { store(y + i, keep_up_to<A>(word, last, load(x + i) * Batch<float, A>(scale))); });
  } else {  // one word an element as in float, so that both have the same mask
    for_each_random<std::uint32_t, A>(
        philox, n, [](const auto& w) RECOPS_LAMBDA_INLINE { return words_in_order<A>(w); },
        [&](Index i, Batch<std::uint32_t, A> word, auto, auto) RECOPS_LAMBDA_INLINE {
          alignas(64) std::uint32_t words[lanes<std::uint32_t, A>];
          word.store_aligned(words);
          const Index end = n - i < lanes<std::uint32_t, A> ? n : i + lanes<std::uint32_t, A>;
          for (Index j = i; j < end; ++j) y[j] = words[j - i] <= last ? x[j] * scale : T(0);
        });
  }
}

}  // namespace detail

/// Byte j is 1 with probability `keep`, else 0: the mask of a row, `n` bytes.
template <class A = DefaultArch>
void fill_keep(const RandomRow& at, double keep, std::uint8_t* out, Index n) {
  detail::fill_keep<A>(Philox<A>(at), keep_threshold(keep), out, n);
}

/// y_j = x_j / keep with probability `keep`, else 0, with the mask of `fill_keep`; y may be x. Its derivative is the same call on
/// the gradient. What is dropped is 0 whatever it was, a NaN included; `keep` = 1 copies.
template <Real T, class A = DefaultArch>
void dropout(const RandomRow& at, double keep, const T* x, T* y, Index n) {
  detail::dropout<T, A>(Philox<A>(at), keep_threshold(keep), static_cast<T>(1 / keep), x, y, n);
}

/// The same on a matrix: row b has the mask of row `ids[b]`, or of row `at.row` + b without ids. Throws Error where shapes differ
/// or `keep` is not in [0, 1].
template <Real T, class A = DefaultArch>
void dropout(const RandomRow& at, IndexView ids, double keep, MatrixView<const T> x, MatrixView<T> y) {
  check_option("dropout", "keep", keep >= 0 && keep <= 1, "a probability", keep);
  check_shape("dropout", "x", x, ids.is_null() ? any_size : ids.size(), any_size);
  check_shape("dropout", "y", y, x.rows(), x.cols());
  Philox<A> philox(at);
  for (Index b = 0; b < x.rows(); ++b) {
    philox.set_row(row_of(at, ids, b));
    detail::dropout<T, A>(philox, keep_threshold(keep), static_cast<T>(1 / keep), x.row(b), y.row(b), x.cols());
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
