/// @file   recops/simd/math.hpp
/// @brief  exp, exp2, sigmoid and tanh on vectors and arrays: full range, denormal results included; NaN stays NaN.
///
/// Bounds, in units of the last place. Float: the largest error over all 2^32 inputs (tests/exhaustive), on AVX-512 / AVX2+FMA /
/// SSE2. Double: a bound on some 10^5 numbers of every magnitude, the same on each. Denormal results count in their own steps.
///
///               float                double
///     exp       1.8 / 1.0 / 1.4      2
///     sigmoid   4.0 / 2.5 / 3.5      4
///     tanh      7.2 / 7.2 / 7.8      4
#pragma once
#include <recops/simd/xsimd.hpp>

// Instructions of the set that core/config.hpp calls avx512; a unit with fewer parts of it takes the general road.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define RECOPS_AVX512 1
#else
#define RECOPS_AVX512 0
#endif

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Whether kernels of `A` use the AVX-512 forms below.
template <class A>
inline constexpr bool avx512 = RECOPS_AVX512 != 0 && std::is_base_of_v<xsimd::avx512f, A>;

template <class T, class A, std::size_t N>
RECOPS_INLINE Batch<T, A> polynomial(Batch<T, A> x, const T (&c)[N]) {
  Batch<T, A> p(c[N - 1]);
  RECOPS_UNROLL
  for (std::size_t i = N - 1; i > 0; --i) p = mul_add(p, x, Batch<T, A>(c[i - 1]));
  return p;
}

/// Added to a number of modest size, it leaves the nearest whole number in the low bits of the sum: rounding and conversion in
/// one, which AVX2 lacks for double.
template <class T>
inline constexpr T whole = std::is_same_v<T, float> ? T(0x1.8p23) : T(0x1.8p52);

/// v * 2^floor(n). Where n is whole (AVX-512 takes any) this is a product of two factors, so that denormal results and overflow
/// come out right.
template <class T, class A>
RECOPS_INLINE Batch<T, A> scale_by_power(Batch<T, A> v, Batch<T, A> n) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_scalef_ps(v, n);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_scalef_pd(v, n);
  } else
#endif
  {
    using B = Batch<T, A>;
    using I = xsimd::as_integer_t<T>;
    constexpr int shift = std::is_same_v<T, float> ? 23 : 52;
    const B biased(whole<T> + (std::is_same_v<T, float> ? T(127) : T(1023)));
    const B first = mul_add(n, B(T(0.5)), biased), rest = (n - (first - biased)) + biased;
    return v * bits_as<T>(bits_as<I>(first) << shift) * bits_as<T>(bits_as<I>(rest) << shift);
  }
}

/// (e^x - 1 - x) / x^2 in double for |x| <= log(2) / 2, relative error of e^x 4e-18.
inline constexpr double exp_series[] = {
    0.50000000000000111,    0.16666666666666444,    0.041666666666527089,   0.0083333333334757731,  0.0013888888944293893,
    0.00019841269545095203, 2.4801492510445809e-05, 2.7557553301844604e-06, 2.7630432572685853e-07, 2.5010192431564294e-08};

/// e^x as mantissa * 2^floor(exponent).
template <class T, class A>
struct ExpParts {
  Batch<T, A> mantissa, exponent;
  RECOPS_INLINE Batch<T, A> value() const { return scale_by_power(mantissa, exponent); }
};

#if RECOPS_AVX512
/// 2^(i/32), i the low five bits of each lane of t: a table in two registers.
template <class A>
RECOPS_INLINE Batch<float, A> root_of_two(Batch<float, A> t) {
  alignas(64) static constexpr float root[32] = {
      1.0f,         1.021897149f, 1.044273782f, 1.067140401f, 1.090507733f, 1.114386743f, 1.138788635f, 1.163724859f,
      1.189207115f, 1.215247360f, 1.241857812f, 1.269050957f, 1.296839555f, 1.325236643f, 1.354255547f, 1.383909882f,
      1.414213562f, 1.445180807f, 1.476826146f, 1.509164428f, 1.542210825f, 1.575980845f, 1.610490332f, 1.645755478f,
      1.681792831f, 1.718619298f, 1.756252160f, 1.794709075f, 1.834008086f, 1.874167634f, 1.915206561f, 1.957144124f};
  return _mm512_permutex2var_ps(_mm512_load_ps(root), _mm512_castps_si512(t), _mm512_load_ps(root + 16));
}
#endif

/// e^x, or e^(x + low) with |low| below an ulp of x, where |x| <= 130 (1000 in double) or NaN; with `Any` (AVX-512) any x.
template <bool Any = false, class T, class A, class... Low>
RECOPS_INLINE ExpParts<T, A> exp_parts(Batch<T, A> x, Low... low) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float>) {
#if RECOPS_AVX512
    if constexpr (avx512<A>) {
      // 2^(i/32) comes from a table: what is left of x is so small that a square tells its exponential.
      const B to_32nds(0x1.8p18f);
      const B t = mul_add(x, B(1.44269504f), to_32nds), n = t - to_32nds;
      B r = (mul_add(n, B(2.12194440e-4f), mul_add(n, B(-0.693359375f), x)) + ... + low);
      if constexpr (Any)
        r = _mm512_range_ps(r, _mm512_set1_ps(1.0f), 2);  // |r| <= 1 where x is huge or infinite; NaN is left in n
      const B s = root_of_two(t);
      return {mul_add(s * r, mul_add(r, B(0.500002265f), B(1.00001466f)), s), n};
    } else
#endif
    {
      constexpr float c[] = {1.0f, 1.0f, 0.49999994f, 0.166665211f, 0.0416682586f, 0.00836866908f, 0.00138213218f};
      const B n = mul_add(x, B(1.44269504f), B(whole<T>)) - B(whole<T>);
      const B r = (mul_add(n, B(2.12194440e-4f), mul_add(n, B(-0.693359375f), x)) + ... +
                   low);  // ln 2 in two: the first product is exact
      return {polynomial(r, c), n};
    }
  } else {
    const B n = mul_add(x, B(1.4426950408889634074), B(whole<T>)) - B(whole<T>);
    B r = (mul_add(n, B(-1.42860682030941723212e-6), mul_add(n, B(-0.693145751953125), x)) + ... + low);
#if RECOPS_AVX512
    if constexpr (Any && avx512<A>) r = _mm512_range_pd(r, _mm512_set1_pd(1.0), 2);
#endif
    return {mul_add(r * r, polynomial(r, exp_series), r) + B(1.0), n};
  }
}

#if RECOPS_AVX512
/// 2^x of any x: as exp_parts, but the remainder comes without a multiplication, and is 0 at the infinities and far out.
template <class A>
RECOPS_INLINE ExpParts<float, A> exp2_parts(Batch<float, A> x) {
  using B = Batch<float, A>;
  asm("" : "+v"(x.data));  // from memory the instruction below takes four times as long
  const B to_32nds(0x1.8p18f), t = x + to_32nds, s = root_of_two(t);
  const B r = _mm512_reduce_ps(x, 5 << 4 | _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return {mul_add(s * r, mul_add(r, B(0.240227595f), B(0.693157342f)), s), t - to_32nds};
}
#endif

/// y_i = f(x_i), U vectors at a time; y may be x.
template <class T, class A, int U = 1, class F>
RECOPS_INLINE void map(const T* x, T* y, Index n, F f) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  Index i = 0;
  for (; i + U * W <= n; i += U * W) {
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) f(B::load_unaligned(x + i + u * W)).store_unaligned(y + i + u * W);
  }
  for (; i < n; i += W) {
    if (n - i >= W) {
      f(B::load_unaligned(x + i)).store_unaligned(y + i);
    } else {
      store_first<T, A>(y + i, f(load_first<T, A>(x + i, n - i)), n - i);
    }
  }
}

}  // namespace detail

/// e^x. Overflows to infinity above 88.72 (709.78 in double), underflows through the denormals to 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> exp(Batch<T, A> x) {
  using B = Batch<T, A>;
  if constexpr (detail::avx512<A>) return detail::exp_parts<true>(x).value();
  constexpr bool single = std::is_same_v<T, float>;
  x = xsimd::min(B(single ? T(89) : T(710)), xsimd::max(B(single ? T(-104) : T(-746)), x));  // in this order a NaN passes
  return detail::exp_parts(x).value();
}

/// 2^x for x <= 127 (1000 in double), the cheapest there is; -infinity gives 0, NaN stays NaN. Relative error 2.1e-7 (float),
/// 3e-16 (double); what is below 2^-126 in float may become 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> exp2(Batch<T, A> x) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float>) {
#if RECOPS_AVX512
    if constexpr (detail::avx512<A>) {
      return detail::exp2_parts(x).value();
    } else
#endif
    {
      constexpr float c[] = {1.0f, 0.693147004f, 0.240222439f, 0.0555070415f, 0.00967142824f, 0.0013272455f};
      // 2^n as bits: n + 127 in the low bits of t, moved to the exponent. At -127 they are those of 0.
      const B magic(detail::whole<T> + 127.0f), y = xsimd::max(B(-127.0f), x), t = y + magic, r = y - (t - magic), w = r * r;
      const B series = mul_add(mul_add(mul_add(r, B(c[5]), B(c[4])), w, mul_add(r, B(c[3]), B(c[2]))), w,
                               mul_add(r, B(c[1]), B(c[0])));  // in pairs: a shorter chain than one by one
      return series * bits_as<float>(bits_as<std::int32_t>(t) << 23);
    }
  } else {
    const B y = xsimd::max(B(-1080.0), x), n = (y + B(detail::whole<T>)) - B(detail::whole<T>);
    const B r = (y - n) * B(0.69314718055994530942);
    return detail::scale_by_power(mul_add(r * r, detail::polynomial(r, detail::exp_series), r) + B(1.0), n);
  }
}

/// 1 / (1 + e^-x); far below 0 it is e^x, down through the denormals to 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> sigmoid(Batch<T, A> x) {
  using B = Batch<T, A>;
  constexpr bool single = std::is_same_v<T, float>;
  x = xsimd::min(B(single ? T(20) : T(40)), xsimd::max(B(single ? T(-110) : T(-750)), x));  // beyond 20 (40) it is 1
  const B e = detail::exp_parts(x).value();
  return e / (e + B(T(1)));
}

/// (e^x - e^-x) / (e^x + e^-x), never beyond 1 in size.
template <class T, class A>
RECOPS_INLINE Batch<T, A> tanh(Batch<T, A> x) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float p[] = {0.999999821f, 0.129290923f, 0.00295500504f, 1.14778095e-05f};
    constexpr float q[] = {1.0f, 0.462622881f, 0.0238310546f, 0.000239269808f, 2.47619539e-07f};
    const B w = x * x, y = x * detail::polynomial(w, p) / detail::polynomial(w, q);
    // From 7.9 on, 1 is as near as the quotient, which rounding may lift above 1.
    return xsimd::select(w > B(62.41f), B(1.0f) | (x & B(-0.0f)), y);
  } else {
    // With u = e^(-2|x|) - 1, which is exact near 0: -u / (2 + u).
    const B sign = x & B(-0.0), y = xsimd::min(B(20.0), x ^ sign) * B(-2.0);
    const B n = mul_add(y, B(1.4426950408889634074), B(detail::whole<T>)) - B(detail::whole<T>);
    const B r = mul_add(n, B(-1.42860682030941723212e-6), mul_add(n, B(-0.693145751953125), y));
    const B power = detail::scale_by_power(B(1.0), n);
    const B u = mul_add(power, mul_add(r * r, detail::polynomial(r, detail::exp_series), r), power - B(1.0));
    return ((B(0.0) - u) / (B(2.0) + u)) ^ sign;  // not -u, which may be -0
  }
}

/// y_i = e^x_i; y may be x. So for the others.
template <class T, class A = DefaultArch>
void exp(const T* x, T* y, Index n) {
  detail::map<T, A, detail::avx512<A> ? 2 : 1>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::exp(v); });
}
template <class T, class A = DefaultArch>
void sigmoid(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::sigmoid(v); });
}
template <class T, class A = DefaultArch>
void tanh(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::tanh(v); });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
