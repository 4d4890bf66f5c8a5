/// @file   recops/simd/normal.hpp
/// @brief  Standard normal numbers of a row, in vectors: Philox, then Box-Muller with a logarithm and a sine of its own.
///
///     u0, u1 uniform      r = sqrt(-2 log u0)      z0 = r cos(2 pi u1)      z1 = r sin(2 pi u1)
///
/// In float the words (0, 1) of a block give its numbers 0 and 1, words (2, 3) the numbers 2 and 3; in double the four words give
/// two. |z| <= 5.77 in float (23 bits), 8.58 in double (52).
///
/// Precision   within 4 ulp of Box-Muller in higher precision on the same uniforms, on every instruction set. Uniforms are the
///             same bits everywhere; normals may differ in the last places between sets and compilers, which fuse differently.
/// Cost        about 3 instructions a number in float, 9 in double.
#pragma once
#include <recops/core/error.hpp>
#include <recops/simd/math.hpp>
#include <recops/simd/uniform.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// u = 2^exponent * mantissa with the mantissa in [3/4, 3/2), for normal positive u. Around 1 the exponent is 0, so that its
/// logarithm keeps every digit.
template <class T, class A>
RECOPS_INLINE void split(Batch<T, A> u, Batch<T, A>& exponent, Batch<T, A>& mantissa) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    const Batch<T, A> lifted = u * Batch<T, A>(0x1.555556p0f);  // this 4/3 takes 3/2 to 2, what is below it not
    exponent = _mm512_getexp_ps(lifted);  // without optimisation a macro, which would take the comma above for its own
    mantissa = _mm512_getmant_ps(u, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    const Batch<T, A> lifted = u * Batch<T, A>(0x1.5555555555555p0);
    exponent = _mm512_getexp_pd(lifted);
    mantissa = _mm512_getmant_pd(u, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  } else
#endif
  {
    if constexpr (std::is_same_v<T, float>) {
      using I = Batch<std::int32_t, A>;
      const I bits = bits_as<std::int32_t>(u), over = bits - I(0x3f400000), steps = over & I(-0x800000);
      mantissa = bits_as<T>(bits - steps);
      exponent = xsimd::to_float(over >> 23);
    } else {
      using U = Batch<std::uint64_t, A>;
      // Biased, and set into the low bits of 2^52: AVX2 converts no 64-bit integers.
      const U bits = bits_as<std::uint64_t>(u), over = bits + U((std::uint64_t{0x3ff} << 52) - (std::uint64_t{0x3fe8} << 48));
      const U biased = over >> 52;
      mantissa = bits_as<T>(bits - (biased << 52) + U(std::uint64_t{0x3ff} << 52));
      exponent = bits_as<T>(biased | U(std::uint64_t{0x433} << 52)) - Batch<T, A>(0x1p52 + 1023);
    }
  }
}

/// sqrt(-2 log u) for u in (0, 1), within 1 ulp in float.
template <class T, class A>
RECOPS_INLINE Batch<T, A> radius(Batch<T, A> u) {
  using B = Batch<T, A>;
  B e, m;
  split(u, e, m);
  const B f = m - B(T(1));
  if constexpr (std::is_same_v<T, float>) {
    // (2 f - 2 log(1 + f)) / f^2, minimax for the error relative to the logarithm; the leading -2 f loses nothing.
    constexpr float c[] = {1.00000002f,   -0.666669089f, 0.500001091f,  -0.399812133f, 0.33295535f,
                           -0.289641268f, 0.263244628f,  -0.208966431f, 0.089819021f};
    const B line = mul_add(e, B(-1.38629436f), B(-2.0f) * f);
    return xsimd::sqrt(mul_add(f * f, polynomial<T, A>(f, c), line));
  } else {
    // log(1 + f) = 2 artanh s = f - s (f - s^2 (2/3 + 2/5 s^2 + ...)) with s = f / (2 + f); the series is minimax.
    constexpr double c[] = {0.66666666666672714, 0.39999999996161678, 0.28571429395289305, 0.22222138501615035,
                            0.1818635606695464,  0.15250188623898658, 0.15368190733743078};
    const B s = f / (f + B(2.0)), y = s * s, line = mul_add(e, B(-1.38629436111989061883), B(-2.0) * f);
    return xsimd::sqrt(mul_add(s + s, neg_mul_add(y, polynomial<T, A>(y, c), f), line));
  }
}

/// sin(pi x) for x in [0, 1/2], within 1.7 ulp in float: 2 x, which is exact, and the rest.
template <class T, class A>
RECOPS_INLINE Batch<T, A> sine_of_half_turns(Batch<T, A> x) {
  const Batch<T, A> y = x * x;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {1.14159265f, -5.16770983f, 2.55006981f, -0.598242104f, 0.0775603876f};  // minimax of sin(pi x) / x - 2
    return mul_add(x, Batch<T, A>(2.0f), x * polynomial<T, A>(y, c));
  } else {
    constexpr double c[] = {1.1415926535897931,     -5.1677127800499694,     2.550164039877294,
                            -0.5992645293187383,    0.082145886569892898,    -0.0073704304787634116,
                            0.00046629968877319011, -2.1903185414324068e-05, 7.6947272274311412e-07};
    return mul_add(x, Batch<T, A>(2.0), x * polynomial<T, A>(y, c));
  }
}

/// Cosine and sine of 2 pi u times `r`, where `bits` holds a uniform as its top bits: the first bit turns both by pi, the others
/// are the place 1/2 + x in that half turn, |x| < 1/2. There the cosine is -sin(pi x) and the sine cos(pi x) = sin(pi (1/2 -
/// |x|)).
template <class T, class U, class A>
RECOPS_INLINE void turn(Batch<T, A> r, Batch<U, A> bits, Batch<T, A>& cosine, Batch<T, A>& sine) {
  using B = Batch<T, A>;
  using V = Batch<U, A>;
  constexpr bool single = std::is_same_v<T, float>;
  // The bits behind the first in the mantissa of a number in [1, 2), with the half step at their end.
  constexpr U place = single ? U(0x7ffffeu) : U((std::uint64_t{1} << 52) - 2),
              one = single ? U(0x3f800001u) : U((std::uint64_t{0x3ff} << 52) | 1), sign = U(U(1) << (8 * sizeof(U) - 1));
  const B x = B(T(1.5)) - bits_as<T>(((bits >> (single ? 8 : 11)) & V(place)) | V(one));
  const B size = bits_as<T>(bits_as<U>(x) & V(U(~sign)));
  const B turned = bits_as<T>(bits_as<U>(r) ^ (bits & V(sign)));
  cosine = turned * sine_of_half_turns<T, A>(x);
  sine = turned * sine_of_half_turns<T, A>(B(T(0.5)) - size);
}

}  // namespace detail

/// The normals of `Philox<A>::width` blocks in order, from their words.
template <class T, class A>
RECOPS_INLINE VectorPair<T, A> normal_pair(const Batch<std::uint64_t, A> (&w)[4]) {
  Batch<T, A> cosine, sine;
  if constexpr (std::is_same_v<T, float>) {
    const Batch<float, A> r = detail::radius<T, A>(uniform_of_words<A>(detail::merge_low(w[0], w[2])));
    detail::turn<T, std::uint32_t, A>(r, detail::merge_low(w[1], w[3]), cosine, sine);
  } else {
    const Batch<double, A> r = detail::radius<T, A>(uniform_of_words<A>(bits_as<std::uint64_t>(detail::merge_low(w[1], w[0]))));
    detail::turn<T, std::uint64_t, A>(r, bits_as<std::uint64_t>(detail::merge_low(w[3], w[2])), cosine, sine);
  }
  return {zip<false>(cosine, sine), zip<true>(cosine, sine)};
}

/// Calls `f(offset, z, load, store)` for each vector `z` of the first `n` normals of a row, in registers, for kernels that use
/// them at once: x = a x + b m + c z reads and writes x in one pass and stores no noise. load(p) and store(p, v) keep inside the
/// row.
template <Real T, class A, class F>
RECOPS_INLINE void for_each_normal(const Philox<A>& philox, Index n, F&& f) {
  for_each_random<T, A>(
      philox, n, [](const auto& w) RECOPS_LAMBDA_INLINE { return normal_pair<T, A>(w); }, static_cast<F&&>(f));
}

/// The first `n` standard normals of a row.
template <Real T, class A = DefaultArch>
void fill_normal(const RandomRow& at, T* out, Index n) {
  for_each_normal<T, A>(Philox<A>(at), n,
                        [&](Index i, Batch<T, A> z, auto, auto store) RECOPS_LAMBDA_INLINE { store(out + i, z); });
}

/// Row b of `out [B, D]` is the row of normals whose id is `ids[b]`, or `at.row` + b without ids: what an id draws does not
/// depend on its place in the batch. Throws Error where the sizes differ.
template <Real T, class A = DefaultArch>
void fill_normal(const RandomRow& at, IndexView ids, MatrixView<T> out) {
  check_shape("fill_normal", "out", out, ids.is_null() ? any_size : ids.size(), any_size);
  Philox<A> philox(at);
  for (Index b = 0; b < out.rows(); ++b) {
    philox.set_row(row_of(at, ids, b));
    T* const row = out.row(b);
    for_each_normal<T, A>(philox, out.cols(),
                          [&](Index i, Batch<T, A> z, auto, auto store) RECOPS_LAMBDA_INLINE { store(row + i, z); });
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
