/// @file   recops/simd/philox.hpp
/// @brief  Philox4x32-10 in vector lanes: as many blocks of one row of random numbers as there are 64-bit lanes.
///
/// A counter's four words sit in the lower halves of the 64-bit lanes of four registers, where the 32 x 32 -> 64 bit multiply of
/// every instruction set wants them; what the upper halves hold never matters. A full round is two multiplies, two shifts and two
/// three-way exclusive ors. Only the block number differs between the lanes of a row, so half of the first two rounds is done
/// once per row in scalar registers.
///
/// The words are those of `philox4x32(random_counter(row, block), row.seed)`, the same bits on every instruction set.
#pragma once
#include <recops/core/random.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Product of the lower halves of the 64-bit lanes.
template <class A>
RECOPS_INLINE Batch<std::uint64_t, A> multiply_low(Batch<std::uint64_t, A> a, Batch<std::uint64_t, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    return _mm512_mul_epu32(a, b);
  } else
#endif
#if defined(__AVX2__)
      if constexpr (std::is_base_of_v<xsimd::avx2, A>) {
    return _mm256_mul_epu32(a, b);
  } else
#endif
#if defined(__SSE2__)
      if constexpr (std::is_base_of_v<xsimd::sse2, A>) {
    return _mm_mul_epu32(a, b);
  } else
#endif
#if defined(__aarch64__)
      if constexpr (std::is_base_of_v<xsimd::neon64, A>) {
    return vmull_u32(vmovn_u64(a), vmovn_u64(b));
  } else
#endif
  {
    const Batch<std::uint64_t, A> low(std::uint64_t{0xffffffffu});
    return (a & low) * (b & low);
  }
}

template <class A>
RECOPS_INLINE Batch<std::uint64_t, A> xor3(Batch<std::uint64_t, A> a, Batch<std::uint64_t, A> b, Batch<std::uint64_t, A> c) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  } else
#endif
    return (a ^ b) ^ c;
}

/// The lower halves of `a` in the even 32-bit lanes, those of `b` in the odd ones.
template <class A>
RECOPS_INLINE Batch<std::uint32_t, A> merge_low(Batch<std::uint64_t, A> a, Batch<std::uint64_t, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
    return _mm512_mask_shuffle_epi32(a, __mmask16(0xaaaa), b, _MM_PERM_CCAA);
  } else
#endif
#if defined(__AVX2__)
      if constexpr (std::is_base_of_v<xsimd::avx2, A>) {
    return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xaa);
  } else
#endif
    return bits_as<std::uint32_t>((a & Batch<std::uint64_t, A>(std::uint64_t{0xffffffffu})) | (b << 32));
}

}  // namespace detail

/// The id that row `b` of a batch draws by: `ids[b]`, or `at.row` + b where there are none.
RECOPS_INLINE std::uint64_t row_of(const RandomRow& at, IndexView ids, Index b) {
  return ids.is_null() ? at.row + static_cast<std::uint64_t>(b) : static_cast<std::uint64_t>(ids[b]);
}

/// Two vectors of consecutive elements.
template <class T, class A = DefaultArch>
struct VectorPair {
  Batch<T, A> first, second;
};

/// The random blocks of rows that differ only in `RandomRow::row`.
template <class A = DefaultArch>
class Philox {
 public:
  using Words = Batch<std::uint64_t, A>;  // 32 random bits in the lower half of each lane
  /// Blocks that one call makes.
  static constexpr Index width = lanes<std::uint64_t, A>;

  RECOPS_INLINE explicit Philox(const RandomRow& at) {
    const PhiloxBlock c = random_counter(at, 0);
    auto k0 = static_cast<std::uint32_t>(at.seed), k1 = static_cast<std::uint32_t>(at.seed >> 32);
    RECOPS_UNROLL
    for (int i = 0; i < 10; ++i) {
      key0_[i] = k0, key1_[i] = k1;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    const std::uint64_t b = m1 * c.word[2];
    high_ = static_cast<std::uint32_t>(b >> 32) ^ static_cast<std::uint32_t>(key0_[0]);
    second_low_ = static_cast<std::uint32_t>(b) ^ static_cast<std::uint32_t>(key0_[1]);
    rest_ = c.word[3] & 0xffff0000u;
    set_row(at.row);
  }

  /// Goes to another row.
  RECOPS_INLINE void set_row(std::uint64_t row) {
    first_ = rest_ ^ (static_cast<std::uint32_t>(row >> 32) & 0xffffu) ^ static_cast<std::uint32_t>(key1_[0]);
    const std::uint64_t a = m0 * (high_ ^ static_cast<std::uint32_t>(row));
    second_high_ = static_cast<std::uint32_t>(a >> 32) ^ static_cast<std::uint32_t>(key1_[1]);
    third_ = static_cast<std::uint32_t>(a) ^ static_cast<std::uint32_t>(key1_[2]);
  }

  /// Word i of blocks `block` + g * width .. `block` + (g + 1) * width - 1 in the lower halves of `out[g][i]`: N groups side by
  /// side, because the rounds of one alone leave the multipliers waiting.
  template <int N>
  RECOPS_INLINE void blocks(std::uint32_t block, Words (&out)[N][4]) const {
    using detail::multiply_low;
    using detail::xor3;
    const Words f0(m0), f1(m1);
    RECOPS_UNROLL
    for (int g = 0; g < N; ++g) {  // the first two rounds, of which the row has done its half
      const auto first = static_cast<std::uint64_t>(block) + static_cast<std::uint64_t>(g * width);
      const Words a = multiply_low(Words(first) + lane_numbers(), f0), b = multiply_low((a >> 32) ^ Words(first_), f1);
      out[g][0] = (b >> 32) ^ Words(second_low_), out[g][1] = b, out[g][2] = a ^ Words(second_high_);
    }
    RECOPS_UNROLL
    for (int g = 0; g < N; ++g) {
      const Words a = multiply_low(out[g][0], f0), b = multiply_low(out[g][2], f1);
      out[g][0] = xor3(b >> 32, out[g][1], Words(key0_[2])), out[g][1] = b;
      out[g][2] = (a >> 32) ^ Words(third_), out[g][3] = a;
    }
    RECOPS_UNROLL
    for (int i = 3; i < 10; ++i) {
      RECOPS_UNROLL
      for (int g = 0; g < N; ++g) {
        const Words a = multiply_low(out[g][0], f0), b = multiply_low(out[g][2], f1);
        out[g][0] = xor3(b >> 32, out[g][1], Words(key0_[i])), out[g][1] = b;
        out[g][2] = xor3(a >> 32, out[g][3], Words(key1_[i])), out[g][3] = a;
      }
    }
  }

 private:
  static constexpr std::uint64_t m0 = 0xD2511F53u, m1 = 0xCD9E8D57u;

  RECOPS_INLINE static Words lane_numbers() {
    static_assert(width <= 8);
    alignas(64) static constexpr std::uint64_t numbers[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    return Words::load_aligned(numbers);
  }

  std::uint64_t key0_[10], key1_[10];  // of each round, as wide as the lanes they are copied to
  std::uint64_t first_, second_low_, second_high_, third_;
  std::uint32_t high_, rest_;
};

/// Runs over the first `n` numbers of a row, two vectors at a time: `make(words)` turns the words of `Philox<A>::width` blocks
/// into a `VectorPair<T, A>` (4 numbers a block where T has 32 bits, 2 where it has 64), and `f(offset, v, load, store)` takes
/// each vector as in `for_each_vector`: load(p) reads what lies inside, store(p, v) writes it. Lanes past the end are thrown
/// away.
template <class T, class A, class Make, class F>
RECOPS_INLINE void for_each_random(const Philox<A>& philox, Index n, Make&& make, F&& f) {
  constexpr Index W = lanes<T, A>, per_block = 16 / static_cast<Index>(sizeof(T));
  assert(n / per_block <= Index{0xffffffff});
  typename Philox<A>::Words words[2][4], last[1][4];  // two groups side by side: 20 to 40 % faster, with 16 registers too
  const auto whole = [&](Index at, const typename Philox<A>::Words(&w)[4]) RECOPS_LAMBDA_INLINE {
    const VectorPair<T, A> v = make(w);
    const auto load = [](const auto* p)
                          RECOPS_LAMBDA_INLINE { return Batch<std::remove_cvref_t<decltype(*p)>, A>::load_unaligned(p); };
    const auto store = [](auto* p, auto x) RECOPS_LAMBDA_INLINE { x.store_unaligned(p); };
    f(at, v.first, load, store);
    f(at + W, v.second, load, store);
  };
  Index i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    philox.blocks(static_cast<std::uint32_t>(i / per_block), words);
    whole(i, words[0]);
    whole(i + 2 * W, words[1]);
  }
  const auto part = [&](Index at, Batch<T, A> x) RECOPS_LAMBDA_INLINE {
    const Index rest = n - at < W ? n - at : W;
    f(
        at, x, [rest](const auto* p) RECOPS_LAMBDA_INLINE { return load_first<std::remove_cvref_t<decltype(*p)>, A>(p, rest); },
        [rest](auto* p, auto y) RECOPS_LAMBDA_INLINE { store_first(p, y, rest); });
  };
  for (; i < n; i += 2 * W) {
    philox.blocks(static_cast<std::uint32_t>(i / per_block), last);
    const VectorPair<T, A> v = make(last[0]);
    part(i, v.first);
    if (n - i > W) part(i + W, v.second);
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
