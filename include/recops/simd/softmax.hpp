/// @file   recops/simd/softmax.hpp
/// @brief  Softmax and log-sum-exp of contiguous rows: plain, masked, block by block, and backward.
///
/// Max-shifted: any finite scores are safe. An entry of -infinity gets exactly 0; a row of nothing else (or of no entries) gets
/// zeros and the log-sum-exp -infinity. A NaN or +infinity makes its whole row NaN, and no other. A weight p is within
/// (20 + |log p|) units of the last place; float weights below 1e-38 may become 0.
///
/// Three passes over the row: maximum; exponentials and their sum; scale. A row of floats that is not overwritten needs the first
/// only where an entry exceeds eight others, spread evenly, by some 14 or more (20 at the most), or where those hold a NaN or only
/// infinities: then the second is done twice.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/simd/math.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// The scores of a row without a mask.
template <class T, class A>
struct AllScores {
  const T* x;
  RECOPS_INLINE Batch<T, A> operator()(Index i, Index count) const {
    using B = Batch<T, A>;
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    if (count == lanes<T, A>) return B::load_unaligned(x + i);
#if RECOPS_AVX512
    if constexpr (avx512<A> && std::is_same_v<T, float>) {
      return _mm512_mask_loadu_ps(_mm512_set1_ps(lowest), static_cast<__mmask16>((1u << count) - 1u), x + i);
    } else if constexpr (avx512<A>) {
      return _mm512_mask_loadu_pd(_mm512_set1_pd(lowest), static_cast<__mmask8>((1u << count) - 1u), x + i);
    }
#endif
    alignas(64) T lane[lanes<T, A>];
    for (Index k = 0; k < lanes<T, A>; ++k) lane[k] = k < count ? x[i + k] : lowest;
    return B::load_aligned(lane);
  }
};

/// Which of `count` entries from i on take part, as bits: entry i of a mask of bytes is byte i (not 0: yes) ...
template <class A>
RECOPS_INLINE unsigned kept_bits(const std::uint8_t* keep, Index i, Index count) {
#if RECOPS_AVX512
  if constexpr (avx512<A>) {
    const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1u), keep + i);
    return _mm_test_epi8_mask(bytes, bytes);
  } else
#endif
  {
    unsigned bits = 0;
    for (Index k = 0; k < count; ++k) bits |= static_cast<unsigned>(keep[i + k] != 0) << k;
    return bits;
  }
}
/// ... and of a mask of bits it is bit i % 64 of word i / 64. Vectors begin at multiples of their size, which divides 64.
template <class A>
RECOPS_INLINE unsigned kept_bits(const std::uint64_t* keep, Index i, Index count) {
  return static_cast<unsigned>(keep[i / 64] >> (i % 64)) & ((1u << count) - 1u);
}

/// The scores of a row under a mask; what it hides is -infinity and is not read.
template <class T, class A, class Mask>
struct KeptScores {
  const T* x;
  const Mask* keep;
  RECOPS_INLINE Batch<T, A> operator()(Index i, Index count) const {
    const unsigned bits = kept_bits<A>(keep, i, count);
    constexpr T lowest = -std::numeric_limits<T>::infinity();
#if RECOPS_AVX512
    if constexpr (avx512<A> && std::is_same_v<T, float>) {
      return _mm512_mask_loadu_ps(_mm512_set1_ps(lowest), static_cast<__mmask16>(bits), x + i);
    } else if constexpr (avx512<A>) {
      return _mm512_mask_loadu_pd(_mm512_set1_pd(lowest), static_cast<__mmask8>(bits), x + i);
    }
#endif
    alignas(64) T lane[lanes<T, A>];
    for (Index k = 0; k < lanes<T, A>; ++k) lane[k] = (bits >> k & 1u) != 0 ? x[i + k] : lowest;
    return Batch<T, A>::load_aligned(lane);
  }
};

template <class T, class A, class Scores>
RECOPS_INLINE T max_of(const Scores& score, Index n) {
  constexpr Index W = lanes<T, A>;
  Batch<T, A> m(-std::numeric_limits<T>::infinity());
  for (Index i = 0; i < n; i += W) m = larger(score(i, n - i < W ? n - i : W), m);  // NaN first: it is passed over
  return max_lane(m);
}

template <class T>
inline constexpr T log2_of_e = static_cast<T>(1.44269504088896340736L);

/// sum_i of 2^(to_log2(x_i)); with `Store` these go to p.
template <class T, class A, bool Store, class Scores, class F>
RECOPS_INLINE T powers_of_two(const Scores& score, [[maybe_unused]] T* p, Index n, F to_log2) {
  return sum_of<T, A, 4>(n, [=](Index i, Batch<T, A> acc, Index count) RECOPS_LAMBDA_INLINE {
    const Batch<T, A> e = simd::exp2(to_log2(score(i, count)));
    if constexpr (Store) {
      if (count == lanes<T, A>) {
        e.store_unaligned(p + i);
      } else {
        store_first<T, A>(p + i, e, count);
      }
    }
    return acc + e;
  });
}

/// sum_i of e^(x_i - shift); with `Store` these go to p.
template <class T, class A, bool Store, class Scores>
RECOPS_INLINE T exponentials(const Scores& score, T shift, T* p, Index n) {
  const Batch<T, A> top(shift), scale(log2_of_e<T>);
  return powers_of_two<T, A, Store>(score, p, n, [=](Batch<T, A> x) RECOPS_LAMBDA_INLINE { return (x - top) * scale; });
}

/// The same in one pass: any entry may be the shift if no other exceeds it by much, which the sum tells. Returns the sum and
/// writes log sum_j exp(x_j); returns 0, having written only to p, where the maximum has to be found first (in particular,
/// wherever a NaN or infinity is at work).
template <class A, bool Store>
RECOPS_INLINE float exponentials_at_once(const float* x, float* p, Index n, float& log_sum_exp) {
  using B = Batch<float, A>;
  if (n < 2 * lanes<float, A>) return 0;
  float some[8];
  RECOPS_UNROLL
  for (int k = 0; k < 8; ++k) some[k] = x[(n - 1) * k / 7];  // both ends, as either may be padding
  RECOPS_UNROLL
  for (int half = 4; half > 0; half /= 2) {
    RECOPS_UNROLL
    for (int k = 0; k < half; ++k) some[k] = std::max(some[k], some[k + half]);
  }
  const float base = some[0] * log2_of_e<float>;
  const B scale(log2_of_e<float>), negative(-base), top(some[0]);
  const float total = powers_of_two<float, A, Store>(AllScores<float, A>{x}, p, n, [=](B v) RECOPS_LAMBDA_INLINE {
    if constexpr (avx512<A>) return mul_add(v, scale, negative);
    return xsimd::min(B(100.0f), (v - top) * scale);  // what exp2 takes; in this order a NaN passes
  });
  if (!(total >= 0.5f && total < 0x1p30f)) return 0;
  const double shift =
      avx512<A> ? static_cast<double>(base) / static_cast<double>(log2_of_e<float>) : static_cast<double>(some[0]);
  log_sum_exp = static_cast<float>(shift + std::log(static_cast<double>(total)));
  return total;
}

/// The sum of a row whose maximum is -infinity: 0, or NaN if one is in it.
template <class T, class A, class Scores>
[[gnu::noinline, gnu::cold]] T sum_of_none(const Scores& score, Index n) {
  constexpr Index W = lanes<T, A>;
  const Batch<T, A> zero(T(0));
  Batch<T, A> sum = zero;
  for (Index i = 0; i < n; i += W) {
    const Batch<T, A> s = score(i, n - i < W ? n - i : W);
    sum = sum + xsimd::select(s == s, zero, s);
  }
  return sum_lanes(sum);
}

template <class T, class A, class Scores>
RECOPS_INLINE T softmax(const Scores& score, T m, T* p, Index n) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  if (m == -infinity) {
    const T none = sum_of_none<T, A>(score, n);
    std::fill_n(p, n, none);
    return none == T(0) ? -infinity : none;
  }
  const T total = exponentials<T, A, true>(score, m, p, n);
  const Batch<T, A> factor(T(1) / total);
  map<T, A, 4>(p, p, n, [=](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return v * factor; });
  return m + std::log(total);
}

}  // namespace detail

/// p_i = exp(x_i - max) / sum_j exp(x_j - max); p may be x. Returns log sum_j exp(x_j).
template <class T, class A = DefaultArch>
T softmax(const T* x, T* p, Index n) {
  if constexpr (std::is_same_v<T, float>) {
    float log_sum_exp = 0;
    if (x != p) {
      if (const float total = detail::exponentials_at_once<A, true>(x, p, n, log_sum_exp); total != 0) {
        simd::scale<T, A>(1 / total, p, p, n);
        return log_sum_exp;
      }
    }
  }
  return detail::softmax<T, A>(detail::AllScores<T, A>{x}, simd::max<T, A>(x, n), p, n);
}
/// The same in place.
template <class T, class A = DefaultArch>
T softmax(T* x, Index n) {
  return simd::softmax<T, A>(x, x, n);
}

/// The same over the entries that a mask keeps; the others are not read and get 0. `keep`: a byte per entry (not 0: kept), or a
/// bit per entry (bit i % 64 of word i / 64).
template <class T, class A = DefaultArch>
T softmax_masked(const T* x, const std::uint8_t* keep, T* p, Index n) {
  const detail::KeptScores<T, A, std::uint8_t> score{x, keep};
  return detail::softmax<T, A>(score, detail::max_of<T, A>(score, n), p, n);
}
template <class T, class A = DefaultArch>
T softmax_masked(const T* x, const std::uint64_t* keep, T* p, Index n) {
  const detail::KeptScores<T, A, std::uint64_t> score{x, keep};
  return detail::softmax<T, A>(score, detail::max_of<T, A>(score, n), p, n);
}

/// Each row of x `[R, N]` into p `[R, N]`, which may be x; log_sum_exp `[R]`, unless empty, receives theirs.
template <class T, class A = DefaultArch>
void softmax_rows(MatrixView<const T> x, MatrixView<T> p, VectorView<T> log_sum_exp = {}) {
  assert(x.rows() == p.rows() && x.cols() == p.cols() && (log_sum_exp.empty() || log_sum_exp.size() == x.rows()));
  for (Index r = 0; r < x.rows(); ++r) {
    const T lse = simd::softmax<T, A>(x.row(r), p.row(r), x.cols());
    if (!log_sum_exp.empty()) log_sum_exp[r] = lse;
  }
}

/// log sum_i exp(x_i)
template <class T, class A = DefaultArch>
T log_sum_exp(const T* x, Index n) {
  if constexpr (std::is_same_v<T, float>) {
    float result = 0;
    if (detail::exponentials_at_once<A, false>(x, nullptr, n, result) != 0) return result;
  }
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const detail::AllScores<T, A> score{x};
  const T m = simd::max<T, A>(x, n);
  if (m == -infinity) {
    const T none = detail::sum_of_none<T, A>(score, n);
    return none == T(0) ? -infinity : none;
  }
  return m + std::log(detail::exponentials<T, A, false>(score, m, static_cast<T*>(nullptr), n));
}

/// What is known of a row of which only blocks have been seen: the largest score, and the sum of exp(x_i - max).
template <class T>
struct SoftmaxState {
  T max = -std::numeric_limits<T>::infinity();
  T sum = T(0);

  /// log of the sum of exp(x_i) so far; -infinity before anything but -infinity was seen.
  T log_sum_exp() const { return sum == T(0) ? -std::numeric_limits<T>::infinity() : max + std::log(sum); }
};

/// Takes a block of scores into `state`. Returns what earlier weights (and sums of values weighted by them) have to be multiplied
/// with; p, unless null, receives the block's weights exp(x_i - max), relative to the new maximum; p may be x.
template <class T, class A = DefaultArch>
T softmax_update(SoftmaxState<T>& state, const T* x, T* p, Index n) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const detail::AllScores<T, A> score{x};
  const T block = simd::max<T, A>(x, n), top = block > state.max ? block : state.max;
  if (top == -infinity) {  // nothing yet
    const T none = detail::sum_of_none<T, A>(score, n);
    if (p != nullptr) std::fill_n(p, n, none);
    state.sum += none;
    return T(1);
  }
  const T factor = top == state.max ? T(1) : std::exp(state.max - top);
  const T sum =
      p != nullptr ? detail::exponentials<T, A, true>(score, top, p, n) : detail::exponentials<T, A, false>(score, top, p, n);
  state.sum = state.sum * factor + sum;
  state.max = top;
  return factor;
}

/// The state of both parts of a row together.
template <class T>
SoftmaxState<T> merge(const SoftmaxState<T>& a, const SoftmaxState<T>& b) {
  const bool first = a.max >= b.max;
  const SoftmaxState<T>&high = first ? a : b, &low = first ? b : a;
  if (low.sum == T(0)) return high;  // not seen, or only -infinity: its maximum says nothing
  return {high.max, high.sum + (low.max == high.max ? low.sum : low.sum * std::exp(low.max - high.max))};
}

/// dx_i += p_i (dp_i - sum_j p_j dp_j): backward of `softmax`, of which p is the result.
template <class T, class A = DefaultArch>
void softmax_backward(const T* p, const T* dp, T* dx, Index n) {
  const Batch<T, A> mean(simd::dot<T, A>(p, dp, n));
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store)
                               RECOPS_LAMBDA_INLINE { store(dx + i, mul_add(load(p + i), load(dp + i) - mean, load(dx + i))); });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
