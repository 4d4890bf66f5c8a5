/// @file   recops/simd/gaussian.hpp
/// @brief  erf and GELU, exact form, with its derivative, on vectors and arrays: relative accuracy also far out in the tails.
///
/// All stand on the tail of the normal distribution, Phi(-z) = e^(-z^2 / 2) m(z) for z >= 0, where m (Mills' ratio over sqrt(2
/// pi)) is smooth and falls slowly. z^2 is carried in two parts, but for the float gelu of AVX-512; its erf comes from a table.
///
/// Bounds, in units of the last place, measured as those of math.hpp:
///
///               float                double
///     erf       4.2 / 2.4 / 3.0      4
///     gelu      12.5 / 9 / 9         9          float: for x >= -3; below, relative error 1.2e-5 / 5e-6 / 5e-6
#pragma once
#include <recops/simd/math.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// e^(-z^2 scale) for 0 <= z <= 15 (40 in double), where scale is a power of two.
template <class T, class A>
RECOPS_INLINE ExpParts<T, A> bell(Batch<T, A> z, T scale) {
  using B = Batch<T, A>;
#if RECOPS_AVX512
  if constexpr (avx512<A> && std::is_same_v<T, float>) {
    // As exp_parts, with -scale in the constants: r stands for z^2 + n log(2) / scale.
    const B square = z * z, low = mul_add(z, z, -square), to_32nds(0x1.8p18f);
    const B t = mul_add(square, B(-1.44269504f * scale), to_32nds), n = t - to_32nds;
    const B r = mul_add(n, B(0.693147181f / scale), square) + low;
    const B s = root_of_two(t);
    return {mul_add(s * r, mul_add(r, B(0.500002265f * scale * scale), B(-1.00001466f * scale)), s), n};
  } else
#endif
  {
    // The high half of z has an exact square on any instruction set.
    using U = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
    constexpr U upper = std::is_same_v<T, float> ? U(0xfffff000u) : U(0xfffffffff8000000u);
    const B factor(-scale), high = bits_as<T>(bits_as<U>(z) & Batch<U, A>(upper));
    return exp_parts(high * high * factor, (z - high) * (z + high) * factor);
  }
}

/// numerator / denominator = e^(z^2 / 2) Phi(-z).
template <class T, class A>
struct Mills {
  Batch<T, A> numerator, denominator;
};
/// `Quick` (float): two terms less, within 2e-7 up to z = 6 and 2e-6 beyond.
template <bool Quick = false, class T, class A>
RECOPS_INLINE Mills<T, A> mills(Batch<T, A> z) {
  using B = Batch<T, A>;
  if constexpr (Quick && std::is_same_v<T, float>) {
    constexpr float p[] = {0.499999911f, 0.352198213f, 0.113930449f, 0.015726326f};
    constexpr float q[] = {1.0f, 1.5022707f, 0.926587522f, 0.285292625f, 0.0394279473f};
    const B w = z * z;  // in pairs: a shorter chain than one by one
    return {mul_add(mul_add(z, B(p[3]), B(p[2])), w, mul_add(z, B(p[1]), B(p[0]))),
            mul_add(mul_add(w, B(q[4]), mul_add(z, B(q[3]), B(q[2]))), w, mul_add(z, B(q[1]), B(q[0])))};
  } else if constexpr (std::is_same_v<T, float>) {
    constexpr float p[] = {0.5f, 0.438498408f, 0.183386073f, 0.0406841412f, 0.00412387634f};
    constexpr float q[] = {1.0f, 1.67488182f, 1.20312953f, 0.469869167f, 0.101986386f, 0.0103369076f};
    const B w = z * z;
    return {mul_add(mul_add(w, B(p[4]), mul_add(z, B(p[3]), B(p[2]))), w, mul_add(z, B(p[1]), B(p[0]))),
            mul_add(mul_add(mul_add(z, B(q[5]), B(q[4])), w, mul_add(z, B(q[3]), B(q[2]))), w, mul_add(z, B(q[1]), B(q[0])))};
  } else {
    // erfcx(a) (1 + 2 a) as a polynomial in (a - 4) / (a + 4), where a = z / sqrt(2).
    constexpr double c[] = {1.2329951186255526,     -0.13962111684056289,    0.015379652102619813,    0.068097054254736722,
                            -0.10103906603630292,   0.093732834996819572,    -0.066330365812528255,   0.03716751556191901,
                            -0.016197734048793187,  0.0050319697629696578,   -0.00075777340269251735, -0.00019925555788522994,
                            0.00015062246393753167, -2.4402953748187761e-05, -1.1225267046282353e-05, 5.7173236712602707e-06,
                            3.0193818694193865e-07, -8.3428117474311196e-07, 6.2396204207281056e-08,  1.1459413891754919e-07,
                            -7.773766621206038e-09, -1.3397596992283862e-08, -1.7220841085509951e-09};
    const B a = z * B(0.70710678118654752440);
    return {B(0.5) * polynomial((a - B(4.0)) / (a + B(4.0)), c), mul_add(a, B(2.0), B(1.0))};
  }
}

/// |x|, at most `most`; NaN becomes `most`.
template <class T, class A>
RECOPS_INLINE Batch<T, A> size_upto(Batch<T, A> x, T most) {
  return xsimd::min(xsimd::abs(x), Batch<T, A>(most));
}
template <class T>
inline constexpr T far_out = std::is_same_v<T, float> ? T(14.5) : T(38.7);  // beyond, Phi(-z) z is 0

#if RECOPS_AVX512
/// erf(x), by sixteen polynomials for erf(z) / z, z = |x| < 3.94, between the quarters of each power of two of w = 1 + 3.8 z: its
/// upper bits choose. Coefficients are listed from w = 2 on, as bits count them.
template <class A>
RECOPS_INLINE Batch<float, A> erf_by_table(Batch<float, A> x) {
  using B = Batch<float, A>;
  alignas(64) static constexpr float table[6][16] = {
      {1.10286403f, 1.07241321f, 1.03230584f, 0.984713554f, 0.931994498f, 0.820248365f, 0.712293744f, 0.617151022f, 0.537871599f,
       0.421880364f, 0.345439881f, 0.292307317f, 1.12837923f, 1.12675333f, 1.12190092f, 1.11389709f},
      {-0.0499848016f, -0.0712290034f, -0.0884696618f, -0.101104826f, -0.108989321f, -0.111911751f, -0.102501996f, -0.0873138979f,
       -0.0714245364f, -0.0464167632f, -0.0313800201f, -0.0224845111f, -4.68939743e-06f, -0.0129917795f, -0.025774572f,
       -0.0381712876f},
      {-0.0229114462f, -0.019367747f, -0.0150049198f, -0.0102542099f, -0.00557442196f, 0.00217128219f, 0.00666463515f,
       0.0080927154f, 0.0075862091f, 0.00487341406f, 0.00283450889f, 0.00172894611f, -0.0259425193f, -0.0258052163f,
       -0.0253347624f, -0.0242493227f},
      {0.0019023848f, 0.00262459344f, 0.00311610033f, 0.00322468462f, 0.00302078505f, 0.00208276371f, 0.000940389931f,
       8.23918745e-05f, -0.00037717665f, -0.000437716692f, -0.000248609023f, -0.000132406465f, -0.000959940138f, 0.000173605207f,
       0.00188827876f, 0.00142568897f},
      {0.000597775914f, 0.000416690804f, 8.56900442e-05f, -9.6991811e-05f, -0.000179326729f, -0.000303432724f, -0.000266176998f,
       -0.000161392833f, -4.55911904e-05f, 2.58750661e-05f, 1.9370942e-05f, 9.69657503e-06f, 0.00438065361f, 0.00199204404f,
       -0.00280121597f, 0.000964997744f},
      {-0.000184168821f, -0.000161345903f, -3.43223437e-05f, -2.72386274e-06f, -2.38313878e-05f, 6.51457503e-06f, 2.04347289e-05f,
       2.07414341e-05f, 8.12153121e-06f, -4.02257342e-07f, -9.88478519e-07f, -5.20225797e-07f, -0.00558705069f, -0.00213867403f,
       0.00478164339f, -0.00076214096f}};
  const B z = xsimd::min(B(3.92f), xsimd::abs(x));  // in this order a NaN passes
  const B w = mul_add(z, B(3.8f), B(1.0f));
  const __m512i bits = _mm512_castps_si512(w), place = _mm512_srli_epi32(bits, 21);
  const B d = w - B(_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-(1 << 21)))));
  B p = _mm512_permutexvar_ps(place, _mm512_load_ps(table[5]));
  RECOPS_UNROLL
  for (int k = 4; k >= 0; --k) p = mul_add(p, d, B(_mm512_permutexvar_ps(place, _mm512_load_ps(table[k]))));
  return xsimd::min(B(1.0f), z * p) | (x & B(-0.0f));
}
#endif

}  // namespace detail

/// The error function, 2 / sqrt(pi) times the integral of e^(-t^2) from 0 to x.
template <class T, class A>
RECOPS_INLINE Batch<T, A> erf(Batch<T, A> x) {
  using B = Batch<T, A>;
#if RECOPS_AVX512
  if constexpr (detail::avx512<A> && std::is_same_v<T, float>) return detail::erf_by_table(x);
#endif
  const B z = detail::size_upto(x, std::is_same_v<T, float> ? T(4) : T(6)), w = z * z;
  const auto m = detail::mills(z * B(T(1.41421356237309504880L)));
  const B bell = detail::bell(z, T(1)).value();
  const B far = B(T(1)) - B(T(2)) * (bell * (m.numerator / m.denominator));
  B near;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {1.12837911f,    -0.376122266f,    0.112790793f,    -0.0266650598f,
                           0.00482893456f, -0.000484730583f, -2.60292636e-05f};
    near = x * detail::polynomial(w, c);
  } else {
    constexpr double c[] = {1.1283791670955126,     -0.37612638903183548,    0.11283791670945233,    -0.026866170643273006,
                            0.005223977607398015,   -0.00085483259885190885, 0.00012055295286491823, -1.4924744032351969e-05,
                            1.6447510151078707e-06, -1.6209120129327974e-07, 1.372274252612066e-08,  -7.8007657549109145e-10};
    near = x * detail::polynomial(w, c);
  }
  const B y = xsimd::select(z < B(T(1)), near, far | (x & B(T(-0.0))));
  return xsimd::select(x == x, y, x);
}

/// x Phi(x), where Phi(x) = (1 + erf(x / sqrt(2))) / 2. Far below 0 it goes through the denormals to 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> gelu(Batch<T, A> x) {
  using B = Batch<T, A>;
  const B z = detail::avx512<A> ? xsimd::abs(x) : detail::size_upto(x, detail::far_out<T>);
  const auto m = detail::mills<true>(z);
  detail::ExpParts<T, A> e;
#if RECOPS_AVX512
  if constexpr (detail::avx512<A> && std::is_same_v<T, float>) {
    e = detail::exp2_parts(z * z * B(-0.721347520f));
  } else
#endif
    e = detail::bell(z, T(0.5));
  B tail = e.mantissa * (z * m.numerator / m.denominator);
#if RECOPS_AVX512
  // Not cut off before, which would make the chain longer: what comes of numbers far out, of infinities and NaN is passed over.
  if constexpr (detail::avx512<A> && std::is_same_v<T, float>) {
    tail = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(z, _mm512_set1_ps(detail::far_out<T>), _CMP_LT_OQ), tail, e.exponent);
  } else if constexpr (detail::avx512<A>) {
    tail = _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(z, _mm512_set1_pd(detail::far_out<T>), _CMP_LT_OQ), tail, e.exponent);
  } else
#endif
    tail = detail::scale_by_power(tail, e.exponent);
  return xsimd::max(B(T(0)), x) - tail;  // a NaN is in the first
}

/// Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi), the derivative of `gelu`, within 3e-7 (6e-16 in double). 0 and 1 at the infinities.
template <class T, class A>
RECOPS_INLINE Batch<T, A> gelu_derivative(Batch<T, A> x) {
  using B = Batch<T, A>;
  const B z = detail::size_upto(x, detail::far_out<T>);
  const auto m = detail::mills(z);
  const B bell = detail::bell(z, T(0.5)).value();
  const B below = bell * (m.numerator / m.denominator - z * B(T(0.39894228040143267794L)));
  const B y = xsimd::select(x < B(T(0)), below, B(T(1)) - below);
  return xsimd::select(x == x, y, x);
}

/// y_i = erf x_i; y may be x. So for the other.
template <class T, class A = DefaultArch>
void erf(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::erf(v); });
}
template <class T, class A = DefaultArch>
void gelu(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::gelu(v); });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
