/// @file   recops/frequency/spectral_filter_last.hpp
/// @brief  The last row alone of a learnable filter: all that the final layer of a sequential recommender needs when it serves.
///
///     y_b = sum_j w_((L - 1 - j) mod L) x_j         w = irfft(W, L), the filter as a circular kernel
///
/// Shapes      x [total, D] with offsets [B + 1]   W two planes [K, D]   y [B, D]
/// Padding     as spectral_filter; with filled sequences y is the output of the last valid row.
/// Edge cases  an empty sequence gives 0, and no gradient.   A NaN stays in its sequence and channel.
/// Cost        2 L flops per channel instead of a transform and its inverse, and one kernel per distinct length (2.5 L log2 L).
/// Errors      Error if shapes, plans or options disagree; outputs untouched.
/// Gradient    of x and W; *adds*.
#pragma once
#include <recops/frequency/spectral_filter.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// Calls `f(n, source)` for the rows of a transform of `length` rows that hold row `source` of a sequence of `valid`.
template <class F>
void for_sources(const SequencePadding& padding, Index length, Index valid, F&& f) {
  for (Index n = 0; n < length; ++n) {
    const Index source = padding.fill == SequenceFill::none ? n : padding_source(padding, length, valid, n);
    if (source >= 0) f(n, source);
  }
}

/// Where the last valid row lies, and which kernel row it gives to row n.
inline Index last_position(const SequencePadding& padding, Index length, Index valid) {
  return padding.fill == SequenceFill::none || padding.align == SequenceAlign::right ? length - 1 : valid - 1;
}
inline Index kernel_row(Index position, Index n, Index length) { return n <= position ? position - n : position - n + length; }

/// Transform lengths: those of the sequences, or `length` for all of one group.
template <class T, class F>
void for_filter_lengths(JaggedView<const T> x, const SpectralFilterOptions& o, Workspace& ws, F&& f) {
  const auto mark = ws.mark();
  const LengthGroups groups(x, ws);
  if (groups.groups == 0) return;
  if (o.padding.fill != SequenceFill::none) return f(o.length, groups.order, groups.first[groups.groups]);
  for (Index g = 0; g < groups.groups; ++g)
    f(groups.length(g, x), groups.order + groups.first[g], groups.first[g + 1] - groups.first[g]);
}

}  // namespace detail

/// y <- the filtered last rows.
template <Real T>
void spectral_filter_last(JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                          const SpectralFilterOptions& options, MatrixView<T> y, Workspace& ws) {
  detail::check_spectral_filter("spectral_filter_last", x, gains, plans, options);
  check_shape("spectral_filter_last", "y", y, x.size(), x.cols());
  for (Index b = 0; b < y.rows(); ++b) std::fill_n(y.row(b), y.cols(), T(0));
  if (x.cols() == 0) return;
  detail::for_filter_lengths<T>(x, options, ws, [&](Index length, const Index* sequences, Index count) {
    const auto mark = ws.mark();
    const MatrixView<T> w = ws.matrix<T>(length, x.cols());
    simd::irfft<T>(plans[length], detail::fit_gains(gains, options, length, ws), w, FftNorm::backward, ws);
    for (Index i = 0; i < count; ++i) {
      const MatrixView<const T> rows = x[sequences[i]];
      T* const out = y.row(sequences[i]);
      const Index at = detail::last_position(options.padding, length, rows.rows());
      detail::for_sources(options.padding, length, rows.rows(), [&](Index n, Index source) {
        const T *const k = w.row(detail::kernel_row(at, n, length)), *const in = rows.row(source);
        simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [=](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(out + d, simd::mul_add(load(k + d), load(in + d), load(out + d)));
        });
      });
    }
  });
}

/// Adds to dx and to dgains, either unless empty (of dgains both planes or none).
template <Real T>
void spectral_filter_last_backward(JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                                   const SpectralFilterOptions& options, MatrixView<const T> dy, MatrixView<T> dx,
                                   SpectrumView<T> dgains, Workspace& ws) {
  constexpr const char* name = "spectral_filter_last_backward";
  detail::check_spectral_filter(name, x, gains, plans, options);
  check_shape(name, "dy", dy, x.size(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), x.cols());
  const bool learns = !dgains.re.empty() || !dgains.im.empty();
  if (learns) {
    check_shape(name, "dgains.re", dgains.re, gains.re.rows(), x.cols());
    check_shape(name, "dgains.im", dgains.im, gains.re.rows(), x.cols());
  }
  const Index cols = x.cols();
  if (cols == 0 || (dx.empty() && !learns)) return;
  detail::for_filter_lengths<T>(x, options, ws, [&](Index length, const Index* sequences, Index count) {
    const auto mark = ws.mark();
    const MatrixView<T> w = ws.matrix<T>(length, cols), dw = ws.matrix<T>(length, cols);
    simd::irfft<T>(plans[length], detail::fit_gains(gains, options, length, ws), w, FftNorm::backward, ws);
    std::fill_n(dw.data(), length * cols, T(0));
    for (Index i = 0; i < count; ++i) {
      const Index b = sequences[i];
      const MatrixView<const T> rows = x[b];
      const T* const g = dy.row(b);
      const Index at = detail::last_position(options.padding, length, rows.rows());
      detail::for_sources(options.padding, length, rows.rows(), [&](Index n, Index source) {
        const Index m = detail::kernel_row(at, n, length);
        const T *const k = w.row(m), *const in = rows.row(source);
        T *const dk = dw.row(m), *const out = dx.empty() ? nullptr : dx.row(x.begin(b) + source);
        simd::for_each_vector<T, simd::DefaultArch>(cols, [=](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(dk + d, simd::mul_add(load(in + d), load(g + d), load(dk + d)));
          if (out) store(out + d, simd::mul_add(load(k + d), load(g + d), load(out + d)));
        });
      });
    }
    if (!learns) return;
    const Index bins = detail::spectrum_bins(length);
    if (options.fit == GainFit::crop || length == options.length) {
      const SpectrumView<T> to = {dgains.re.middle_rows(0, bins), dgains.im.middle_rows(0, bins)};
      simd::irfft_backward<T>(plans[length], dw, to, FftNorm::backward, ws);
    } else {
      const SpectrumView<T> to = detail::zero_gains<T>(bins, cols, ws);
      simd::irfft_backward<T>(plans[length], dw, to, FftNorm::backward, ws);
      detail::fit_gains_backward<T>(detail::read_only(to), options, length, dgains);
    }
  });
}

/// Serving form of a final SpectralFilter layer: the kernel for sequences of `length` rows (or filled up to it) kept, y = its last rows.
template <class T>
class FrozenSpectralFilterLast {
 public:
  FrozenSpectralFilterLast() = default;
  explicit FrozenSpectralFilterLast(const SpectralFilter<T>& layer)
      : options_(layer.options), plans_(layer.plans), kernel_(layer.options.length, layer.width()) {
    layer.output_cols(layer.width());
    re_.resize(layer.bins(), layer.width());
    im_.resize(layer.bins(), layer.width());
    for (Index i = 0; i < re_.rows() * re_.cols(); ++i) {
      re_.data()[i] = layer.complex_weight(i, 0);
      im_.data()[i] = layer.complex_weight(i, 1);
    }
    Workspace ws;
    if (!kernel_.empty())
      simd::irfft<T>(plans_[options_.length], SpectrumView<const T>{re_.view(), im_.view()}, kernel_.view(), FftNorm::backward,
                     ws);
  }
  Index output_cols(Index input_cols) const {
    check_option("FrozenSpectralFilterLast", "input columns", input_cols == re_.cols(), "as many as the gains have",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  /// y `[B, D]`.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_jagged("FrozenSpectralFilterLast", "x", x, any_size, any_size);
    output_cols(x.cols());
    if (detail::common_length(x) != options_.length || options_.length == 0)
      return spectral_filter_last<T>(x, {re_.view(), im_.view()}, plans_, options_, y, ws);

    check_shape("FrozenSpectralFilterLast", "y", y, x.size(), x.cols());
    for (Index b = 0; b < x.size(); ++b) {
      T* const out = y.row(b);
      std::fill_n(out, y.cols(), T(0));
      const MatrixView<const T> rows = x[b];
      for (Index n = 0; n < rows.rows(); ++n) {
        const T *const k = kernel_.row(options_.length - 1 - n), *const in = rows.row(n);
        simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [=](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(out + d, simd::mul_add(load(k + d), load(in + d), load(out + d)));
        });
      }
    }
  }

 private:
  SpectralFilterOptions options_;
  SpectralPlans<T> plans_;
  Matrix<T> kernel_, re_, im_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
