/// @file   recops/simd/fft_butterflies.hpp
/// @brief  Discrete Fourier transforms of 1 to 10 complex elements whose parts are vectors of channels, in registers.
///
/// Real and imaginary parts lie in two arrays; results come in natural order. With the two arrays exchanged a butterfly is the
/// inverse (unscaled) transform: so there is one for both directions.
#pragma once
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// c - a * b, in one instruction where there is one (`-a` is one of its own in xsimd 8.1).
template <class T, class A>
RECOPS_INLINE Batch<T, A> minus_product(Batch<T, A> a, Batch<T, A> b, Batch<T, A> c) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_fnmadd_ps(a, b, c);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_fnmadd_pd(a, b, c);
  } else
#endif
#if defined(__FMA__)
      if constexpr (std::is_base_of_v<xsimd::avx2, A> && !std::is_base_of_v<xsimd::avx512f, A>) {
    return xsimd::fnma(a, b, c);
  } else
#endif
    return c - a * b;
}

/// (re, im) *= wr + i wi
template <class T, class A>
RECOPS_INLINE void complex_scale(Batch<T, A>& re, Batch<T, A>& im, Batch<T, A> wr, Batch<T, A> wi) {
  const Batch<T, A> r = minus_product(im, wi, re * wr);
  im = mul_add(re, wi, im * wr);
  re = r;
}

template <int R, class T, class A>
RECOPS_INLINE void butterfly(Batch<T, A>* re, Batch<T, A>* im);
template <class T, class A, class Load, class Store>
RECOPS_INLINE void butterfly_eight(const Load& load, const Store& store);

namespace detail {

/// One plane of five elements: their sum, the even parts a_1, a_2 of the results 1 and 2, the odd ones without sin(2 pi / 5).
template <class B>
struct Five {
  B sum, a1, a2, b1, b2;
};
template <class T, class A>
RECOPS_INLINE Five<Batch<T, A>> five(Batch<T, A> x0, Batch<T, A> x1, Batch<T, A> x2, Batch<T, A> x3, Batch<T, A> x4) {
  using B = Batch<T, A>;
  const B c1(T(0.30901699437494742410)), c2(T(-0.80901699437494742410)), ratio(T(0.61803398874989484820));
  const B t1 = x1 + x4, t2 = x2 + x3, d1 = x1 - x4, d2 = x3 - x2;
  return {x0 + (t1 + t2), mul_add(c2, t2, mul_add(c1, t1, x0)), mul_add(c1, t2, mul_add(c2, t1, x0)),
          minus_product(ratio, d2, d1), mul_add(ratio, d1, d2)};
}

/// R = 2 Q with Q odd, without twiddles (Good, Thomas): n = Q n1 + 2 n2, k = Q k1 + (Q + 1) k2 mod R.
template <int Q, class T, class A>
RECOPS_INLINE void butterfly_twice_odd(Batch<T, A>* re, Batch<T, A>* im) {
  constexpr int R = 2 * Q;
  Batch<T, A> ur[Q], ui[Q], vr[Q], vi[Q];
  RECOPS_UNROLL
  for (int n = 0; n < Q; ++n) {
    const int a = 2 * n, b = (2 * n + Q) % R;
    ur[n] = re[a] + re[b];
    ui[n] = im[a] + im[b];
    vr[n] = re[a] - re[b];
    vi[n] = im[a] - im[b];
  }
  butterfly<Q, T, A>(ur, ui);
  butterfly<Q, T, A>(vr, vi);
  RECOPS_UNROLL
  for (int k = 0; k < Q; ++k) {
    const int a = (Q + 1) * k % R, b = (Q + (Q + 1) * k) % R;
    re[a] = ur[k];
    im[a] = ui[k];
    re[b] = vr[k];
    im[b] = vi[k];
  }
}

}  // namespace detail

/// In place: (re, im)[k] <- sum_n (re + i im)[n] e^(-2 pi i k n / R), R in {1, 2, 3, 4, 5, 6, 7, 8, 10}.
template <int R, class T, class A>
RECOPS_INLINE void butterfly(Batch<T, A>* re, Batch<T, A>* im) {
  using B = Batch<T, A>;
  if constexpr (R == 1) {
  } else if constexpr (R == 2) {
    const B r = re[0] - re[1], i = im[0] - im[1];
    re[0] = re[0] + re[1];
    im[0] = im[0] + im[1];
    re[1] = r;
    im[1] = i;
  } else if constexpr (R == 3) {
    const B half(T(-0.5)), sine(T(0.86602540378443864676));
    const B tr = re[1] + re[2], ti = im[1] + im[2], dr = re[1] - re[2], di = im[1] - im[2];
    const B ar = mul_add(half, tr, re[0]), ai = mul_add(half, ti, im[0]);
    re[0] = re[0] + tr;
    im[0] = im[0] + ti;
    re[1] = mul_add(sine, di, ar);
    im[1] = minus_product(sine, dr, ai);
    re[2] = minus_product(sine, di, ar);
    im[2] = mul_add(sine, dr, ai);
  } else if constexpr (R == 4) {
    const B ar = re[0] + re[2], ai = im[0] + im[2], br = re[0] - re[2], bi = im[0] - im[2];
    const B cr = re[1] + re[3], ci = im[1] + im[3], dr = re[1] - re[3], di = im[1] - im[3];
    re[0] = ar + cr;
    im[0] = ai + ci;
    re[1] = br + di;
    im[1] = bi - dr;
    re[2] = ar - cr;
    im[2] = ai - ci;
    re[3] = br - di;
    im[3] = bi + dr;
  } else if constexpr (R == 5) {
    const B sine(T(0.95105651629515357212));
    const auto r = detail::five<T, A>(re[0], re[1], re[2], re[3], re[4]),
               i = detail::five<T, A>(im[0], im[1], im[2], im[3], im[4]);
    re[0] = r.sum;
    im[0] = i.sum;
    re[1] = mul_add(sine, i.b1, r.a1);
    im[1] = minus_product(sine, r.b1, i.a1);
    re[4] = minus_product(sine, i.b1, r.a1);
    im[4] = mul_add(sine, r.b1, i.a1);
    re[2] = mul_add(sine, i.b2, r.a2);
    im[2] = minus_product(sine, r.b2, i.a2);
    re[3] = minus_product(sine, i.b2, r.a2);
    im[3] = mul_add(sine, r.b2, i.a2);
  } else if constexpr (R == 6 || R == 10) {
    detail::butterfly_twice_odd<R / 2, T, A>(re, im);
  } else if constexpr (R == 7) {
    constexpr double cosine[4] = {1, 0.62348980185873353053, -0.22252093395631440429, -0.90096886790241912624};
    constexpr double sine[4] = {0, 0.78183148246802980871, 0.97492791218182360702, 0.43388373911755812048};
    B tr[3], ti[3], dr[3], di[3];
    RECOPS_UNROLL
    for (int j = 0; j < 3; ++j) {
      tr[j] = re[j + 1] + re[6 - j];
      ti[j] = im[j + 1] + im[6 - j];
      dr[j] = re[j + 1] - re[6 - j];
      di[j] = im[j + 1] - im[6 - j];
    }
    const B zr = re[0], zi = im[0];
    re[0] = zr + (tr[0] + tr[1] + tr[2]);
    im[0] = zi + (ti[0] + ti[1] + ti[2]);
    RECOPS_UNROLL
    for (int k = 1; k < 4; ++k) {
      B ar = zr, ai = zi, br(T(0)), bi(T(0));
      RECOPS_UNROLL
      for (int j = 1; j < 4; ++j) {
        const int m = k * j % 7, fold = m < 4 ? m : 7 - m;
        const B c(static_cast<T>(cosine[fold])), s(static_cast<T>(m < 4 ? sine[fold] : -sine[fold]));
        ar = mul_add(c, tr[j - 1], ar);
        ai = mul_add(c, ti[j - 1], ai);
        br = j == 1 ? s * dr[0] : mul_add(s, dr[j - 1], br);
        bi = j == 1 ? s * di[0] : mul_add(s, di[j - 1], bi);
      }
      re[k] = ar + bi;
      im[k] = ai - br;
      re[7 - k] = ar - bi;
      im[7 - k] = ai + br;
    }
  } else {
    static_assert(R == 8);
    B xr[8], xi[8];
    RECOPS_UNROLL
    for (int q = 0; q < 8; ++q) {
      xr[q] = re[q];
      xi[q] = im[q];
    }
    butterfly_eight<T, A>(
        [&](int q, B& r, B& i) RECOPS_LAMBDA_INLINE {
          r = xr[q];
          i = xi[q];
        },
        [&](int q, B r, B i) RECOPS_LAMBDA_INLINE {
          re[q] = r;
          im[q] = i;
        });
  }
}

/// butterfly<8> from memory to memory: `load(q, re, im)` of every element, then `store(q, re, im)` of every result as soon as it is
/// there, both in the order 0 4 2 6 1 5 3 7. Stores at the end would wait for one another, and their results in registers that
/// there are not enough of.
template <class T, class A, class Load, class Store>
RECOPS_INLINE void butterfly_eight(const Load& load, const Store& store) {
  using B = Batch<T, A>;
  B er[4], ei[4], fr[4], fi[4];
  const auto four = [&](int first, B* re, B* im) RECOPS_LAMBDA_INLINE {
    load(first, re[0], im[0]);
    load(first + 4, re[2], im[2]);
    load(first + 2, re[1], im[1]);
    load(first + 6, re[3], im[3]);
    butterfly<4, T, A>(re, im);
  };
  four(0, er, ei);
  four(1, fr, fi);
  const B root(T(0.70710678118654752440));
  store(0, er[0] + fr[0], ei[0] + fi[0]);
  store(4, er[0] - fr[0], ei[0] - fi[0]);
  store(2, er[2] + fi[2], ei[2] - fr[2]);
  store(6, er[2] - fi[2], ei[2] + fr[2]);
  const B s1 = fr[1] + fi[1], d1 = fi[1] - fr[1];
  store(1, mul_add(root, s1, er[1]), mul_add(root, d1, ei[1]));
  store(5, minus_product(root, s1, er[1]), minus_product(root, d1, ei[1]));
  const B s3 = fr[3] + fi[3], d3 = fi[3] - fr[3];
  store(3, mul_add(root, d3, er[3]), minus_product(root, s3, ei[3]));
  store(7, minus_product(root, d3, er[3]), mul_add(root, s3, ei[3]));
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
