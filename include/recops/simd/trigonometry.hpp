/// @file   recops/simd/trigonometry.hpp
/// @brief  Sine and cosine together on vectors and arrays, of any argument; NaN stays NaN, infinities give NaN.
///
/// Bounds, in units of the last place, measured as those of math.hpp:
///
///               float                double
///     sin, cos  2.6 / 2.6 / 2.6      3
#pragma once
#include <cmath>
#include <recops/simd/math.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

template <class T, class A = DefaultArch>
struct SinCos {
  Batch<T, A> sin, cos;
};

namespace detail {

/// sin and cos of quadrant * pi/2 + r for |r| <= pi/4; the quadrant's low bits are those of `t`.
template <class T, class A>
RECOPS_INLINE SinCos<T, A> sincos_of(Batch<T, A> t, Batch<T, A> r) {
  using B = Batch<T, A>;
  const B z = r * r;
  B s, c;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float p[] = {-0.166666552f, 0.00833219197f, -0.00019518788f},
                    q[] = {0.0416666456f, -0.0013887306f, 2.44317634e-05f};
    s = mul_add(r * z, polynomial(z, p), r);
    c = mul_add(z * z, polynomial(z, q), mul_add(z, B(-0.5f), B(1.0f)));
  } else {
    constexpr double p[] = {-0.16666666666666666,    0.00833333333333304,    -0.00019841269840958895, 2.7557319071449252e-06,
                            -2.5052070119976365e-08, 1.6054194512958014e-10, -7.3830604318697743e-13};
    constexpr double q[] = {0.041666666666666664,   -0.0013888888888888378,  2.4801587301164795e-05, -2.755731905185802e-07,
                            2.0876719710924202e-09, -1.1466575771956399e-11, 4.5789631634513431e-14};
    s = mul_add(r * z, polynomial(z, p), r);
    const B half = z * B(0.5), one = B(1.0) - half;  // what rounding took from 1 - z/2 is put back
    c = one + mul_add(z * z, polynomial(z, q), (B(1.0) - one) - half);
  }
  using U = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
  constexpr int to_sign = std::is_same_v<T, float> ? 30 : 62;
  const Batch<U, A> quadrant = bits_as<U>(t), one(U(1)), two(U(2));
  const B swap = bits_as<T>(Batch<U, A>(U(0)) - (quadrant & one)), change = (s ^ c) & swap, first = s ^ change,
          second = c ^ change;
  return {first ^ bits_as<T>((quadrant & two) << to_sign), second ^ bits_as<T>(((quadrant + one) & two) << to_sign)};
}

/// Both for arguments whose multiple of pi/2 is too large for the reduction in steps, one by one.
template <class T, class A>
[[gnu::noinline, gnu::cold]] SinCos<T, A> sincos_far(Batch<T, A> x, Batch<T, A> sin, Batch<T, A> cos, T limit) {
  alignas(64) T v[3][Batch<T, A>::size];
  x.store_aligned(v[0]), sin.store_aligned(v[1]), cos.store_aligned(v[2]);
  for (std::size_t i = 0; i < Batch<T, A>::size; ++i) {
    if (!(std::abs(v[0][i]) > limit)) continue;
    v[1][i] = static_cast<T>(std::sin(static_cast<double>(v[0][i])));
    v[2][i] = static_cast<T>(std::cos(static_cast<double>(v[0][i])));
  }
  return {Batch<T, A>::load_aligned(v[1]), Batch<T, A>::load_aligned(v[2])};
}

}  // namespace detail

/// sin x and cos x. Fast up to 12 000 (2^20 in double); a vector with an element beyond asks the C library for that.
template <class T, class A>
RECOPS_INLINE SinCos<T, A> sincos(Batch<T, A> x) {
  using B = Batch<T, A>;
  constexpr bool single = std::is_same_v<T, float>;
  constexpr T limit = single ? T(12000) : T(1 << 20);
  // pi/2 in four parts: all but the last are so short that their products with the quadrant are exact.
  constexpr T part[] = {single ? T(1.5703125) : T(1.57079632673412561417e+00),
                        single ? T(4.837512969970703125e-4) : T(6.07710050630396597660e-11),
                        single ? T(7.54953362047672271729e-8) : T(2.02226624871116645580e-21),
                        single ? T(2.56334406825708960298e-12) : T(8.47842766036889956997e-32)};
  const B t = mul_add(x, B(T(0.63661977236758134308L)), B(detail::whole<T>)), n = B(detail::whole<T>) - t;
  const B r = mul_add(n, B(part[3]), mul_add(n, B(part[2]), mul_add(n, B(part[1]), mul_add(n, B(part[0]), x))));
  const SinCos<T, A> near = detail::sincos_of(t, r);
  if (const auto far = xsimd::abs(x) > B(limit); xsimd::any(far)) [[unlikely]]
    return detail::sincos_far(x, near.sin, near.cos, limit);
  return near;
}

/// sin and cos of 2 pi u, for |u| <= 2^20 (2^49 in double): no reduction is lost, quarter turns are exact.
template <class T, class A>
RECOPS_INLINE SinCos<T, A> sincos_turns(Batch<T, A> u) {
  using B = Batch<T, A>;
  const B t = mul_add(u, B(T(4)), B(detail::whole<T>)), n = t - B(detail::whole<T>);
  return detail::sincos_of(t, mul_add(n, B(T(-0.25)), u) * B(T(6.28318530717958647693L)));
}

/// sin_i = sin x_i and cos_i = cos x_i; either may be x.
template <class T, class A = DefaultArch>
void sincos(const T* x, T* sin, T* cos, Index n) {
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const SinCos<T, A> both = simd::sincos(load(x + i));
    store(sin + i, both.sin);
    store(cos + i, both.cos);
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
