/// @file   recops/simd/log.hpp
/// @brief  log, log1p and softplus on vectors and arrays: full range, denormals included; NaN stays NaN.
///
/// Bounds, in units of the last place, measured as those of math.hpp:
///
///               float                double
///     log       1.1 / 1.1 / 1.3      1.5
///     log1p     1.4 / 1.4 / 1.6      2
///     softplus  3.6 / 2.3 / 2.8      4
#pragma once
#include <limits>
#include <recops/simd/math.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// x = 2^exponent * mantissa with mantissa in [0.75, 1.5), for x > 0.
template <class T, class A>
struct LogParts {
  Batch<T, A> mantissa, exponent;
};
template <class T, class A>
RECOPS_INLINE LogParts<T, A> log_parts(Batch<T, A> x) {
  using B = Batch<T, A>;
#if RECOPS_AVX512
  if constexpr (avx512<A> && std::is_same_v<T, float>) {
    const B m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    return {m, B(_mm512_getexp_ps(x)) - B(_mm512_getexp_ps(m))};
  } else if constexpr (avx512<A>) {
    const B m = _mm512_getmant_pd(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    return {m, B(_mm512_getexp_pd(x)) - B(_mm512_getexp_pd(m))};
  } else
#endif
  {
    constexpr bool single = std::is_same_v<T, float>;
    using U = std::conditional_t<single, std::uint32_t, std::uint64_t>;
    constexpr int shift = single ? 23 : 52;
    constexpr U one = single ? U(0x3f800000u) : U(0x3ff0000000000000u), low = single ? U(0x3f400000u) : U(0x3fe8000000000000u);
    constexpr T power = single ? T(0x1p23) : T(0x1p52), bias = single ? T(127) : T(1023);
    const auto tiny = x < B(std::numeric_limits<T>::min());
    x = xsimd::select(tiny, x * B(power), x);
    const Batch<U, A> u = bits_as<U>(x) + Batch<U, A>(one - low);  // its exponent field counts up at 0.75 * 2^k
    const B m = bits_as<T>((u & Batch<U, A>((U(1) << shift) - 1)) + Batch<U, A>(low));
    // Set into the low bits of 2^shift, a field becomes a number without a conversion, which AVX2 lacks for 64 bits.
    const B e = bits_as<T>((u >> shift) | bits_as<U>(B(power))) - B(power);
    return {m, e - xsimd::select(tiny, B(bias + T(shift)), B(bias))};
  }
}

/// k log(2) + log(1 + f) for f in [-0.25, 0.5].
template <class T, class A>
RECOPS_INLINE Batch<T, A> log_of(Batch<T, A> k, Batch<T, A> f) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {-0.5f,        0.333334506f,  -0.250001013f, 0.199908137f,  -0.16647099f,
                           0.144786075f, -0.131631956f, 0.104658023f,  -0.0450845584f};
    // In pairs: a shorter chain than one by one.
    const B w = f * f, p = mul_add(mul_add(f, B(c[3]), B(c[2])), w, mul_add(f, B(c[1]), B(c[0])));
    const B q = mul_add(mul_add(w, B(c[8]), mul_add(f, B(c[7]), B(c[6]))), w, mul_add(f, B(c[5]), B(c[4])));
    return mul_add(k, B(0.693147181f), mul_add(mul_add(q, w * w, p), w, f));
  } else {
    // With s = f / (2 + f): log(1 + f) = log(1 + s) - log(1 - s) = f - f^2/2 + s (f^2/2 + series in s^2).
    constexpr double c[] = {0.66666666666666596, 0.40000000000056668, 0.28571428555827172, 0.22222224297009538,
                            0.18181665821184739, 0.15391114347207041, 0.1317355008066218,  0.13843424166204479};
    const B s = f / (B(2.0) + f), z = s * s, half = B(0.5) * f * f;
    const B tail = mul_add(s, mul_add(z, polynomial(z, c), half), k * B(1.90821492927058770002e-10));
    return mul_add(k, B(0.693147180369123816490), f - (half - tail));  // the first part of log(2) has zeros behind it
  }
}

/// What a logarithm is where its argument u is 0, negative, infinite or NaN; y elsewhere.
template <class T, class A>
RECOPS_INLINE Batch<T, A> log_ends(Batch<T, A> u, Batch<T, A> y) {
  using B = Batch<T, A>;
  if constexpr (avx512<A>) return y;  // its instructions give all of them
  constexpr T infinity = std::numeric_limits<T>::infinity();
  y = xsimd::select(u == B(infinity), u, y);
  y = xsimd::select(u == B(T(0)), B(-infinity), y);
  return xsimd::select(u >= B(T(0)), y, B(std::numeric_limits<T>::quiet_NaN()));
}

}  // namespace detail

/// Natural logarithm. -infinity at 0 and -0, NaN below 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> log(Batch<T, A> x) {
  const auto [m, k] = detail::log_parts(x);
  return detail::log_ends(x, detail::log_of(k, m - Batch<T, A>(T(1))));
}

/// log(1 + x), exact near 0 (-0 stays -0). -infinity at -1, NaN below.
template <class T, class A>
RECOPS_INLINE Batch<T, A> log1p(Batch<T, A> x) {
  using B = Batch<T, A>;
  const B one(T(1)), u = one + x;
  const auto [m, k] = detail::log_parts(u);
  // What rounding took from u, in units of 2^k; far from 0 it does not count.
#if RECOPS_AVX512
  if constexpr (detail::avx512<A> && std::is_same_v<T, float>) {
    const B high = xsimd::max(one, x), low = xsimd::min(one, x);
    const B lost = _mm512_maskz_sub_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(0x1p30f), _CMP_LT_OQ), low, u - high);
    const B f = (m - one) + B(_mm512_scalef_ps(lost, xsimd::min(B(60.0f), -k)));
    return detail::log_of(k, f) | (x & B(-0.0f));  // the sign is that of x, at -0 too
  }
#endif
  const B lost = xsimd::select(u < B(T(2)), x - (u - one), one - (u - x)), near = xsimd::min(B(T(60)), xsimd::max(B(T(-60)), k));
  const B y = detail::log_of(k, (m - one) + detail::scale_by_power(lost, -near));
  const B ends = detail::log_ends(u, xsimd::select(u == B(std::numeric_limits<T>::infinity()), u, y));
  return xsimd::select(x == B(T(0)), x, ends);
}

namespace detail {

/// log(1 + e) for e in [0, 1].
template <class T, class A>
RECOPS_INLINE Batch<T, A> log1p_unit(Batch<T, A> e) {
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {1.0f,         -0.499999315f, 0.333304703f,   -0.24958156f,  0.196931839f,
                           -0.15349032f, 0.106698267f,  -0.0575589538f, 0.0201485958f, -0.00330607942f};
    return e * polynomial(e, c);
  } else {
    return simd::log1p(e);
  }
}

/// e^-|x|, down through the denormals to 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> exp_minus_abs(Batch<T, A> x) {
  return exp_parts(xsimd::max(Batch<T, A>(std::is_same_v<T, float> ? T(-110) : T(-750)), -xsimd::abs(x))).value();
}

}  // namespace detail

/// log(1 + e^x) without overflow: x far above 0, e^x far below, down through the denormals. Its derivative is the sigmoid.
template <class T, class A>
RECOPS_INLINE Batch<T, A> softplus(Batch<T, A> x) {
  return xsimd::max(Batch<T, A>(T(0)), x) + detail::log1p_unit(detail::exp_minus_abs(x));
}

/// The softplus and its derivative, for one exponential.
template <class T, class A>
struct Logistic {
  Batch<T, A> softplus, sigmoid;
  Batch<T, A> far, rest;  ///< e^-|x|, and log(1 + e^-|x|) = softplus - max(0, x)
};
template <class T, class A>
RECOPS_INLINE Logistic<T, A> logistic(Batch<T, A> x) {
  using B = Batch<T, A>;
  const B zero(T(0)), one(T(1)), e = detail::exp_minus_abs(x), rest = detail::log1p_unit(e), inverse = one / (one + e);
  return {xsimd::max(zero, x) + rest, xsimd::select(x >= zero, inverse, e * inverse), e, rest};
}

/// y_i = log x_i; y may be x. So for the others.
template <class T, class A = DefaultArch>
void log(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::log(v); });
}
template <class T, class A = DefaultArch>
void log1p(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::log1p(v); });
}
template <class T, class A = DefaultArch>
void softplus(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::softplus(v); });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
