/// @file   recops/frequency/fourier.hpp
/// @brief  Real Fourier transforms of the sequences of a batch along their rows, and their exact adjoints.
///
///     rfft_seq    X_k = s_f sum_n x_n e^(-2 pi i k n / L),  k < K = L / 2 + 1
///     irfft_seq   y_n = s_i [Re Y_0 + sum 2 Re(Y_k e^(2 pi i k n / L)) + (even L) Re Y_(L/2) (-1)^n]
///
/// Shapes      x, y [total, D] with offsets [B + 1]   spectra: two planes [sum_b K_b, D], sequence after sequence
/// Edge cases  Im of DC and (even L) Nyquist is exactly 0 from rfft, ignored by irfft.   Empty sequences have no bins.   A NaN or
///             infinity stays in its sequence and channel.
/// Precision   float round trip within 5e-7 (1 + log2(L) / 10) of |x|, double 1e-15 likewise; pairs as in simd/fft.hpp.
/// Cost        2.5 L log2 L flops per channel and direction. Same bits for any number of threads.
/// Errors      Error if shapes or plans disagree; outputs untouched.
/// Gradient    *adds*. The two are not each other's adjoints in any normalisation: interior bins count twice.
#pragma once
#include <recops/frequency/plans.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Rows of the spectra of all sequences: sum_b K_b. O(B).
template <class T>
Index spectrum_rows(JaggedView<T> x) {
  Index rows = 0;
  for (Index b = 0; b < x.size(); ++b) rows += detail::spectrum_bins(x.length(b));
  return rows;
}

namespace detail {

/// Checked sequences and spectra, and where each sequence's bins begin.
template <class T>
struct SequenceSpectra {
  JaggedView<const T> x;
  const SpectralPlans<T>& plans;
  LengthGroups groups;
  Index* first;

  template <class S>
  static void check(const char* name, const char* sequences, const char* spectra, JaggedView<const T> x,
                    const SpectralPlans<T>& plans, SpectrumView<S> s) {
    check_jagged(name, sequences, x, any_size, any_size);
    check_plans(name, x, plans);
    const Index rows = spectrum_rows(x);
    check_shape(name, spectra, s.re, rows, x.cols());
    check_shape(name, spectra, s.im, rows, x.cols());
  }
  SequenceSpectra(JaggedView<const T> sequences, const SpectralPlans<T>& p, Workspace& ws)
      : x(sequences), plans(p), groups(sequences, ws), first(ws.take<Index>(sequences.size())) {
    Index at = 0;
    for (Index b = 0; b < x.size(); ++b) {
      first[b] = at;
      at += spectrum_bins(x.length(b));
    }
  }
  template <class S>
  SpectrumView<S> bins(SpectrumView<S> s, Index b) const {
    const Index count = spectrum_bins(x.length(b));
    return {s.re.middle_rows(first[b], count), s.im.middle_rows(first[b], count)};
  }
  template <class U>
  MatrixView<U> rows(MatrixView<U> m, Index b) const {
    return m.middle_rows(x.begin(b), x.length(b));
  }
  /// `two(plan, b, c, scratch)` for pairs, `one(plan, b, scratch)` for what is left; threads take lengths.
  template <class Two, class One>
  void run(Workspace& ws, Two&& two, One&& one) const {
    if (x.cols() == 0) return;
    ws.parallel_for(groups.groups, [&](Index g, Workspace& scratch) {
      const simd::FftPlan<T>& plan = plans[groups.length(g, x)];
      groups.for_pairs(g, [&](Index b, Index c) { c < 0 ? one(plan, b, scratch) : two(plan, b, c, scratch); });
    });
  }
};

}  // namespace detail

/// out <- the spectra of x.
template <Real T>
void rfft_seq(JaggedView<const T> x, const SpectralPlans<T>& plans, FftNorm norm, SpectrumView<T> out, Workspace& ws) {
  detail::SequenceSpectra<T>::check("rfft_seq", "x", "out", x, plans, out);
  const auto mark = ws.mark();
  const detail::SequenceSpectra<T> s(x, plans, ws);
  s.run(
      ws,
      [&](const auto& plan, Index b, Index c, Workspace& scratch) {
        simd::rfft<T>(plan, x[b], x[c], s.bins(out, b), s.bins(out, c), norm, scratch);
      },
      [&](const auto& plan, Index b, Workspace& scratch) { simd::rfft<T>(plan, x[b], s.bins(out, b), norm, scratch); });
}

/// y <- the sequences with the spectra `in`; lengths are those of y, which K does not tell.
template <Real T>
void irfft_seq(SpectrumView<const T> in, const SpectralPlans<T>& plans, FftNorm norm, JaggedView<T> y, Workspace& ws) {
  const JaggedView<const T> shape = y;
  detail::SequenceSpectra<T>::check("irfft_seq", "y", "in", shape, plans, in);
  const auto mark = ws.mark();
  const detail::SequenceSpectra<T> s(shape, plans, ws);
  s.run(
      ws,
      [&](const auto& plan, Index b, Index c, Workspace& scratch) {
        simd::irfft<T>(plan, s.bins(in, b), s.bins(in, c), y[b], y[c], norm, scratch);
      },
      [&](const auto& plan, Index b, Workspace& scratch) { simd::irfft<T>(plan, s.bins(in, b), y[b], norm, scratch); });
}

/// dx += the gradient of `rfft_seq`: s_f Re sum_(k < K) G_k e^(2 pi i k n / L). Of dx only offsets are read besides.
template <Real T>
void rfft_seq_backward(SpectrumView<const T> dout, const SpectralPlans<T>& plans, FftNorm norm, JaggedView<T> dx, Workspace& ws) {
  const JaggedView<const T> shape = dx;
  detail::SequenceSpectra<T>::check("rfft_seq_backward", "dx", "dout", shape, plans, dout);
  const auto mark = ws.mark();
  const detail::SequenceSpectra<T> s(shape, plans, ws);
  s.run(
      ws,
      [&](const auto& plan, Index b, Index c, Workspace& scratch) {
        simd::rfft_backward<T>(plan, s.bins(dout, b), s.bins(dout, c), dx[b], dx[c], norm, scratch);
      },
      [&](const auto& plan, Index b, Workspace& scratch) {
        simd::rfft_backward<T>(plan, s.bins(dout, b), dx[b], norm, scratch);
      });
}

/// din += the gradient of `irfft_seq`; Im at DC and Nyquist gains exactly 0.
template <Real T>
void irfft_seq_backward(JaggedView<const T> dy, const SpectralPlans<T>& plans, FftNorm norm, SpectrumView<T> din, Workspace& ws) {
  detail::SequenceSpectra<T>::check("irfft_seq_backward", "dy", "din", dy, plans, din);
  const auto mark = ws.mark();
  const detail::SequenceSpectra<T> s(dy, plans, ws);
  s.run(
      ws,
      [&](const auto& plan, Index b, Index c, Workspace& scratch) {
        simd::irfft_backward<T>(plan, dy[b], dy[c], s.bins(din, b), s.bins(din, c), norm, scratch);
      },
      [&](const auto& plan, Index b, Workspace& scratch) {
        simd::irfft_backward<T>(plan, dy[b], s.bins(din, b), norm, scratch);
      });
}

}  // namespace RECOPS_ABI
}  // namespace recops
