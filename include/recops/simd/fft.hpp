/// @file   recops/simd/fft.hpp
/// @brief  Real Fourier transforms along the rows of sequences, lanes across channels, and their gradients.
///
///     rfft    X_k = s_f sum_n x_n e^(-2 pi i k n / L),  k < K = L / 2 + 1
///     irfft   y_n = s_i [Re Y_0 + sum 2 Re(Y_k e^(2 pi i k n / L)) + (even L) Re Y_(L/2) (-1)^n]
///
/// Shapes      x, y [L, D]; spectra as two planes re, im [K, D]; any row strides, nothing need be aligned. L is the plan's.
/// Pairs       Two sequences of one length are the real and the imaginary part of one complex transform: give them together and
///             each costs half. Of one sequence blocks of channels are paired instead. Rounding errors are relative to the
///             larger of a pair.
/// Edge cases  Im of DC and (even L) Nyquist is exactly 0 in rfft, ignored in irfft. L = 0 or D = 0: nothing happens. A NaN or
///             infinity stays in its sequence, and in its channel; finite numbers beyond the largest over 4 L may overflow on the
///             way, and then spoil the other of their pair too.
/// Precision   In float a round trip is within 5e-7 (1 + log2(L) / 10) of |x|, in double within 1e-15 (1 + log2(L) / 10).
/// Cost        About 2.5 L log2 L operations per real channel and direction. Scratch: at most 2 MB, or one vector of channels
///             where L is longer. No allocation once the workspace has grown.
/// Gradient    Backward functions *add*. rfft and irfft are not each other's adjoints, in no normalisation: interior bins count
///             twice.
/// Kernels assert; shapes are checked by the operators above.
#pragma once
#include <recops/simd/fft_stages.hpp>

namespace recops {

/// Where the factor 1 / L goes (numpy's names): `backward` to the inverse, `forward` to the forward transform, `ortho` 1 /
/// sqrt(L) to both.
enum class FftNorm { backward, ortho, forward };

inline namespace RECOPS_ABI {
namespace simd {

/// The half spectrum of a sequence, `[K, D]` each.
template <class T>
struct FftPlanes {
  MatrixView<T> re = {};
  MatrixView<T> im = {};
};

/// s_f: what a forward transform of length L multiplies with.
inline double fft_forward_scale(FftNorm norm, Index length) {
  const double n = static_cast<double>(length);
  return length == 0 || norm == FftNorm::backward ? 1 : norm == FftNorm::forward ? 1 / n : 1 / std::sqrt(n);
}
/// s_i: what an inverse transform of length L multiplies with.
inline double fft_inverse_scale(FftNorm norm, Index length) {
  const double n = static_cast<double>(length);
  return length == 0 || norm == FftNorm::forward ? 1 : norm == FftNorm::backward ? 1 / n : 1 / std::sqrt(n);
}

namespace detail {

/// The spectra of both halves of tiles, times `edge` (DC, Nyquist) or `interior`, to the planes of groups [first, first +
/// count), all groups of a bin before the next: X_a = (Z_k + conj Z_(L-k)) / 2, X_b = -i (Z_k - conj Z_(L-k)) / 2.
template <class T, class A>
[[gnu::noinline]] void fft_separate(const FftPlan<T>& plan, const T* z, Index distance, const FftRows<T>& re,
                                    const FftRows<T>& im, Index first, Index count, T edge, T interior, bool add) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const std::int32_t* const at = plan.bluestein() ? nullptr : plan.positions();
  const Index length = plan.length(), bins = plan.bins(), whole = add ? 0 : fft_whole<A>(re);
  for (Index k = 0; k < bins; ++k) {
    const Index m = k == 0 ? 0 : length - k;
    const T *p = z + (at ? at[k] : k) * 2 * W, *q = z + (at ? at[m] : m) * 2 * W;
    const B half(T(0.5) * (k == m || m == 0 ? edge : interior));
    const Index row = k * re.a_stride, row_b = k * re.b_stride, im_row = k * im.a_stride, im_row_b = k * im.b_stride;
    for (Index g = first; g < first + count; ++g, p += distance, q += distance) {
      const B zr = B::load_aligned(p), zi = B::load_aligned(p + W), cr = B::load_aligned(q), ci = B::load_aligned(q + W);
      const B ar = (zr + cr) * half, ai = (zi - ci) * half, br = (zi + ci) * half, bi = (cr - zr) * half;
      const Index d = g * re.step;
      if (g < whole) {
        ar.store_unaligned(re.a + row + d);
        ai.store_unaligned(im.a + im_row + d);
        br.store_unaligned(re.b + row_b + d);
        bi.store_unaligned(im.b + im_row_b + d);
        continue;
      }
      alignas(64) T part[4 * W];
      ar.store_aligned(part);
      ai.store_aligned(part + W);
      br.store_aligned(part + 2 * W);
      bi.store_aligned(part + 3 * W);
      const Index na = fft_channels(re.a_channels, re.step, g, W), nb = fft_channels(re.b_channels, re.step, g, W);
      if (na > 0) {
        fft_put_from<T, A>(re.a + row + d, part, na, add);
        fft_put_from<T, A>(im.a + im_row + d, part + W, na, add);
      }
      if (nb > 0) {
        fft_put_from<T, A>(re.b + row_b + d, part + 2 * W, nb, add);
        fft_put_from<T, A>(im.b + im_row_b + d, part + 3 * W, nb, add);
      }
    }
  }
}

/// The reverse: Z_k = Y_a + i Y_b, Z_(L-k) = conj Y_a + i conj Y_b. `exchanged`: to planes in exchanged places.
template <class T, class A>
[[gnu::noinline]] void fft_join(const FftPlan<T>& plan, T* z, Index distance, bool exchanged, const FftRows<const T>& re,
                                const FftRows<const T>& im, Index first, Index count, T edge, T interior) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const std::int32_t* const at = plan.bluestein() ? nullptr : plan.positions();
  const Index length = plan.length(), bins = plan.bins(), whole = fft_whole<A>(re);
  const Index r = exchanged ? W : 0, i = W - r;
  for (Index k = 0; k < bins; ++k) {
    const Index m = k == 0 ? 0 : length - k;
    const bool single = k == m || m == 0;
    const B scale(single ? edge : interior);
    T *p = z + (at ? at[k] : k) * 2 * W, *q = z + (at ? at[m] : m) * 2 * W;
    const Index row = k * re.a_stride, row_b = k * re.b_stride, im_row = k * im.a_stride, im_row_b = k * im.b_stride;
    for (Index g = first; g < first + count; ++g, p += distance, q += distance) {
      const Index d = g * re.step;
      alignas(64) T part[4 * W];
      const T *pa = part, *qa = part + W, *pb = part + 2 * W, *qb = part + 3 * W;
      if (g < whole) {
        pa = re.a + row + d;
        qa = im.a + im_row + d;
        pb = re.b + row_b + d;
        qb = im.b + im_row_b + d;
      } else {
        const Index na = fft_channels(re.a_channels, re.step, g, W), nb = fft_channels(re.b_channels, re.step, g, W);
        fft_load_to<T, A>(part, na > 0 ? re.a + row + d : nullptr, na);
        fft_load_to<T, A>(part + W, na > 0 ? im.a + im_row + d : nullptr, na);
        fft_load_to<T, A>(part + 2 * W, nb > 0 ? re.b + row_b + d : nullptr, nb);
        fft_load_to<T, A>(part + 3 * W, nb > 0 ? im.b + im_row_b + d : nullptr, nb);
      }
      const B ar = scale * B::load_unaligned(pa), br = scale * B::load_unaligned(pb);
      B ai(T(0)), bi(T(0));
      if (!single) {
        ai = scale * B::load_unaligned(qa);
        bi = scale * B::load_unaligned(qb);
      }
      (ar - bi).store_aligned(p + r);
      (ai + br).store_aligned(p + i);
      if (!single) {
        (ar + bi).store_aligned(q + r);
        (br - ai).store_aligned(q + i);
      }
    }
  }
}

/// Spectra of groups [first, first + count) of rows. Apart where one of a pair holds a NaN.
template <class T, class A>
[[gnu::noinline]] void fft_spectrum_block(const FftPlan<T>& plan, const FftRows<const T>& rows, const FftRows<T>& re,
                                          const FftRows<T>& im, Index first, Index count, T edge, T interior, bool add, T* z,
                                          Index distance) {
  if (plan.bluestein()) {
    for (Index g = 0; g < count; ++g) {
      fft_pack<T, A>(rows, first + g, plan.length(), plan.size(), plan.chirp(), z + g * distance);
      fft_bluestein<T, A>(plan, z + g * distance);
    }
  } else {
    fft_enter<T, A>(plan, rows, first, count, z, distance);
    for (Index g = 0; g < count; ++g) fft_forward_parts<T, A>(plan, 1, z + g * distance, plan.stage(0).radix);
  }
  if (rows.a_channels > 0 && rows.b_channels > 0 && fft_poisoned<T, A>(z, distance, count, 1, 1)) {  // DC is the sum of all
    for (int side = 0; side < 2; ++side)
      fft_spectrum_block<T, A>(plan, fft_side(rows, side), fft_side(re, side), fft_side(im, side), first, count, edge, interior,
                               add, z, distance);
    return;
  }
  fft_separate<T, A>(plan, z, distance, re, im, first, count, edge, interior, add);
}

/// Rows of groups [first, first + count) from spectra.
template <class T, class A>
[[gnu::noinline]] void fft_synthesis_block(const FftPlan<T>& plan, const FftRows<const T>& re, const FftRows<const T>& im,
                                           const FftRows<T>& rows, Index first, Index count, T edge, T interior, bool add, T* z,
                                           Index distance) {
  constexpr Index W = lanes<T, A>;
  const bool chirped = plan.bluestein();
  fft_join<T, A>(plan, z, distance, chirped, re, im, first, count, edge, interior);
  for (Index g = 0; g < count; ++g) {
    T* const tile = z + g * distance;
    if (chirped) {  // the inverse is the transform of exchanged planes
      fft_multiply<T, A>(tile, plan.chirp(), plan.length());
      for (Index n = plan.length() * 2 * W; n < plan.size() * 2 * W; ++n) tile[n] = T(0);
      fft_bluestein<T, A>(plan, tile);
    } else {
      fft_inverse_parts<T, A>(plan, 1, tile, plan.stage(0).radix);
    }
  }
  if (rows.a_channels > 0 && rows.b_channels > 0 &&
      fft_poisoned<T, A>(z, distance, count, chirped ? 1 : plan.stage(0).radix, plan.stage(0).span)) {
    for (int side = 0; side < 2; ++side)
      fft_synthesis_block<T, A>(plan, fft_side(re, side), fft_side(im, side), fft_side(rows, side), first, count, edge, interior,
                                add, z, distance);
    return;
  }
  if (!chirped) return fft_leave<T, A>(plan, rows, first, count, z, distance, add);
  for (Index g = 0; g < count; ++g) {
    FftRows<T> back = rows;  // the tile holds b + i a
    std::swap(back.a, back.b);
    std::swap(back.a_stride, back.b_stride);
    std::swap(back.a_channels, back.b_channels);
    fft_unpack<T, A>(z + g * distance, back, first + g, plan.length(), T(1), add);
  }
}

template <class T, class A>
[[gnu::noinline]] void fft_spectrum(const FftPlan<T>& plan, const FftRows<const T>& rows, const FftRows<T>& re,
                                    const FftRows<T>& im, double edge, double interior, bool add, Workspace& ws) {
  const Index groups = fft_groups(rows);
  if (plan.length() == 0 || groups == 0) return;
  const auto mark = ws.mark();
  const FftBlock<T, A> block(plan, groups);
  T* const z = block.take(ws);
  for (Index first = 0; first < groups; first += block.groups) {
    const Index count = groups - first < block.groups ? groups - first : block.groups;
    fft_spectrum_block<T, A>(plan, rows, re, im, first, count, static_cast<T>(edge), static_cast<T>(interior), add, z,
                             block.distance);
  }
}

template <class T, class A>
[[gnu::noinline]] void fft_synthesis(const FftPlan<T>& plan, const FftRows<const T>& re, const FftRows<const T>& im,
                                     const FftRows<T>& rows, double edge, double interior, bool add, Workspace& ws) {
  const Index groups = fft_groups(rows);
  if (plan.length() == 0 || groups == 0) return;
  const auto mark = ws.mark();
  const FftBlock<T, A> block(plan, groups);
  T* const z = block.take(ws);
  for (Index first = 0; first < groups; first += block.groups) {
    const Index count = groups - first < block.groups ? groups - first : block.groups;
    fft_synthesis_block<T, A>(plan, re, im, rows, first, count, static_cast<T>(edge), static_cast<T>(interior), add, z,
                              block.distance);
  }
}

template <class T, class U>
void fft_assert(const FftPlan<T>& plan, MatrixView<U> x, MatrixView<U> re, MatrixView<U> im) {
  assert(x.rows() == plan.length() && re.rows() == plan.bins() && im.rows() == plan.bins());
  assert(re.cols() == x.cols() && im.cols() == x.cols());
  (void)plan, (void)x, (void)re, (void)im;
}

}  // namespace detail

/// out <- the half spectrum of x [L, D]. `x` and `out` do not overlap.
template <Real T, class A = DefaultArch>
void rfft(const FftPlan<T>& plan, MatrixView<const T> x, FftPlanes<T> out, FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, x, out.re, out.im);
  const double s = fft_forward_scale(norm, plan.length());
  detail::fft_spectrum<T, A>(plan, detail::fft_one<A>(x), detail::fft_one<A>(out.re), detail::fft_one<A>(out.im), s, s, false,
                             ws);
}
/// The same of two sequences at once.
template <Real T, class A = DefaultArch>
void rfft(const FftPlan<T>& plan, MatrixView<const T> x0, MatrixView<const T> x1, FftPlanes<T> out0, FftPlanes<T> out1,
          FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, x0, out0.re, out0.im);
  detail::fft_assert<T, const T>(plan, x1, out1.re, out1.im);
  const double s = fft_forward_scale(norm, plan.length());
  detail::fft_spectrum<T, A>(plan, detail::fft_two<A>(x0, x1), detail::fft_two<A>(out0.re, out1.re),
                             detail::fft_two<A>(out0.im, out1.im), s, s, false, ws);
}

/// y [L, D] <- the real sequence with the half spectrum `in`.
template <Real T, class A = DefaultArch>
void irfft(const FftPlan<T>& plan, FftPlanes<const T> in, MatrixView<T> y, FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, y, in.re, in.im);
  const double s = fft_inverse_scale(norm, plan.length());
  detail::fft_synthesis<T, A>(plan, detail::fft_one<A>(in.re), detail::fft_one<A>(in.im), detail::fft_one<A>(y), s, s, false, ws);
}
/// The same of two sequences at once.
template <Real T, class A = DefaultArch>
void irfft(const FftPlan<T>& plan, FftPlanes<const T> in0, FftPlanes<const T> in1, MatrixView<T> y0, MatrixView<T> y1,
           FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, y0, in0.re, in0.im);
  detail::fft_assert<T, const T>(plan, y1, in1.re, in1.im);
  const double s = fft_inverse_scale(norm, plan.length());
  detail::fft_synthesis<T, A>(plan, detail::fft_two<A>(in0.re, in1.re), detail::fft_two<A>(in0.im, in1.im),
                              detail::fft_two<A>(y0, y1), s, s, false, ws);
}

/// dx += the gradient of `rfft`: dx_n = s_f Re sum_(k < K) G_k e^(2 pi i k n / L), a half sum without doubling. `dout` is G;
/// its Im at DC and Nyquist has no effect.
template <Real T, class A = DefaultArch>
void rfft_backward(const FftPlan<T>& plan, FftPlanes<const T> dout, MatrixView<T> dx, FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, dx, dout.re, dout.im);
  const double s = fft_forward_scale(norm, plan.length());
  detail::fft_synthesis<T, A>(plan, detail::fft_one<A>(dout.re), detail::fft_one<A>(dout.im), detail::fft_one<A>(dx), s, s / 2,
                              true, ws);
}
/// The same of two sequences at once.
template <Real T, class A = DefaultArch>
void rfft_backward(const FftPlan<T>& plan, FftPlanes<const T> dout0, FftPlanes<const T> dout1, MatrixView<T> dx0,
                   MatrixView<T> dx1, FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, dx0, dout0.re, dout0.im);
  detail::fft_assert<T, const T>(plan, dx1, dout1.re, dout1.im);
  const double s = fft_forward_scale(norm, plan.length());
  detail::fft_synthesis<T, A>(plan, detail::fft_two<A>(dout0.re, dout1.re), detail::fft_two<A>(dout0.im, dout1.im),
                              detail::fft_two<A>(dx0, dx1), s, s / 2, true, ws);
}

/// din += the gradient of `irfft`: s_i m_k times the transform of dy, m_k = 2 at interior bins; Im at DC and Nyquist gains
/// exactly 0.
template <Real T, class A = DefaultArch>
void irfft_backward(const FftPlan<T>& plan, MatrixView<const T> dy, FftPlanes<T> din, FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, dy, din.re, din.im);
  const double s = fft_inverse_scale(norm, plan.length());
  detail::fft_spectrum<T, A>(plan, detail::fft_one<A>(dy), detail::fft_one<A>(din.re), detail::fft_one<A>(din.im), s, 2 * s, true,
                             ws);
}
/// The same of two sequences at once.
template <Real T, class A = DefaultArch>
void irfft_backward(const FftPlan<T>& plan, MatrixView<const T> dy0, MatrixView<const T> dy1, FftPlanes<T> din0,
                    FftPlanes<T> din1, FftNorm norm, Workspace& ws) {
  detail::fft_assert<T, const T>(plan, dy0, din0.re, din0.im);
  detail::fft_assert<T, const T>(plan, dy1, din1.re, din1.im);
  const double s = fft_inverse_scale(norm, plan.length());
  detail::fft_spectrum<T, A>(plan, detail::fft_two<A>(dy0, dy1), detail::fft_two<A>(din0.re, din1.re),
                             detail::fft_two<A>(din0.im, din1.im), s, 2 * s, true, ws);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
