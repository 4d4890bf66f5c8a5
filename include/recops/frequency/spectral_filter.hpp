/// @file   recops/frequency/spectral_filter.hpp
/// @brief  A learnable complex gain per bin and channel: the filter layer of FMLP-Rec.
///
///     y = irfft(W . rfft(x), L)       a circular convolution along the rows, whatever the normalisation
///
/// Shapes      x, y [total, D] with offsets [B + 1]   W two planes [K, D], K = length / 2 + 1
/// Padding     see padding.hpp.  Ragged sequences (fill none) take W's first K_b rows or interpolate it, see `GainFit`.
/// Edge cases  Im W at DC and (even L) Nyquist has no effect, its gradient is exactly 0.   Empty sequences: nothing.
///             NaN and infinity stay in their sequence and channel; in dW they reach their channel. (What is finite and overflows within,
///             from 10^35 or so on, may reach the sequence it shares a transform with.)
/// Precision   5e-7 (1 + log2(L) / 10) max |W| |x| in float.  Two sequences of a length share one transform: the rounding errors of
///             both relate to the larger one, and which are paired depends on the batch.  Same bits for any number of threads.
/// Cost        5 L log2 L + 6 L flops per channel and sequence, 2 L^2 up to `direct_filter_rows`; backward twice that.
///             Scratch: the gains of every distinct length (2 L scalars per channel).
/// Errors      Error if shapes, plans or options disagree; outputs untouched.
/// Gradient    of x and W; *adds*.
/// Reference   Zhou et al., FMLP-Rec, arXiv 2202.13556, equations 3-6 and the authors' code.
#pragma once
#include <recops/frequency/padding.hpp>
#include <recops/frequency/plans.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>

namespace recops {

/// How a sequence of its own length l takes gains made for `length`.
enum class GainFit : unsigned char {
  crop,        ///< gains 0 .. l / 2: bin k keeps its number and means another frequency
  interpolate  ///< gains at k length / l, linear between two: bin k keeps its frequency (our reconstruction)
};

/// How a filter is computed. Both ways agree to rounding.
enum class FilterPath : unsigned char {
  fastest,   ///< directly up to `direct_filter_rows` rows, else by transform
  direct,    ///< as a circular convolution with the kernel irfft(W): L^2 products
  transform  ///< to the spectrum and back
};

/// Sequences of up to so many rows are convolved directly: there a transform has more calls than work.
inline constexpr Index direct_filter_rows = 2;

struct SpectralFilterOptions {
  Index length = 0;  ///< L that the gains are made for
  SequencePadding padding = {};
  GainFit fit = GainFit::crop;
  FilterPath path = FilterPath::fastest;  ///< of forward and of dx; the gradient of W is always by transform
};

inline namespace RECOPS_ABI {

namespace detail {

template <class T>
void check_spectral_filter(const char* name, JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                           const SpectralFilterOptions& o) {
  check_option(name, "length", o.length >= 0, "length >= 0", static_cast<double>(o.length));
  check_jagged(name, "x", x, any_size, any_size);
  check_shape(name, "gains.re", gains.re, spectrum_bins(o.length), x.cols());
  check_shape(name, "gains.im", gains.im, spectrum_bins(o.length), x.cols());
  const Index longest = x.longest();
  check_option(name, "x", longest <= o.length, "sequences of at most `length` rows", static_cast<double>(longest));
  if (o.padding.fill == SequenceFill::none) {
    check_plans(name, x, plans);
  } else {
    check_option(name, "plans", plans.has(o.length), "plans that hold `length`", static_cast<double>(plans.longest()));
  }
}

/// Where bin k of a sequence of l rows lies among gains of `bins` made for `length`: between i and j, at t.
struct GainPosition {
  Index i, j;
  double t;
};
inline GainPosition gain_position(GainFit fit, Index length, Index l, Index k, Index bins) {
  if (fit == GainFit::crop || l == length) return {k, k, 0};
  const double p = static_cast<double>(k) * static_cast<double>(length) / static_cast<double>(l);
  const Index i = std::min(static_cast<Index>(p), bins - 1);
  return {i, std::min(i + 1, bins - 1), p - static_cast<double>(i)};
}

/// The gains of a sequence of l rows; in `ws` where they are not rows of the table.
template <class T>
SpectrumView<const T> fit_gains(SpectrumView<const T> gains, const SpectralFilterOptions& o, Index l, Workspace& ws) {
  const Index bins = spectrum_bins(l), cols = gains.re.cols();
  if (o.fit == GainFit::crop || l == o.length) return {gains.re.middle_rows(0, bins), gains.im.middle_rows(0, bins)};
  const MatrixView<T> re = ws.matrix<T>(bins, cols), im = ws.matrix<T>(bins, cols);
  for (Index k = 0; k < bins; ++k) {
    const GainPosition p = gain_position(o.fit, o.length, l, k, gains.re.rows());
    const T t = static_cast<T>(p.t), s = static_cast<T>(1 - p.t);
    for (Index d = 0; d < cols; ++d) {
      re(k, d) = s * gains.re(p.i, d) + t * gains.re(p.j, d);
      im(k, d) = s * gains.im(p.i, d) + t * gains.im(p.j, d);
    }
  }
  return {re, im};
}

/// What `fit_gains` does to gradients.
template <class T>
void fit_gains_backward(SpectrumView<const T> dfitted, const SpectralFilterOptions& o, Index l, SpectrumView<T> dgains) {
  for (Index k = 0; k < dfitted.re.rows(); ++k) {
    const GainPosition p = gain_position(o.fit, o.length, l, k, dgains.re.rows());
    const T t = static_cast<T>(p.t), s = static_cast<T>(1 - p.t);
    for (const auto& [from, to] : {std::pair(dfitted.re, dgains.re), std::pair(dfitted.im, dgains.im)}) {
      simd::axpy(s, from.row(k), to.row(p.i), from.cols());
      if (t != 0) simd::axpy(t, from.row(k), to.row(p.j), from.cols());
    }
  }
}

/// Sequences of one task where all have one length: even, so that pairs do not depend on the tasks.
inline constexpr Index filter_task = 16;

/// Sequences of one length, one below the other.
template <class T>
void filter_batch(const simd::FftPlan<T>& plan, const simd::FftFilter<T>& filter, MatrixView<const T> x, bool add,
                  MatrixView<T> y, Workspace& ws) {
  const Index count = x.rows() / plan.length(), at_once = ws.workers() == 1 ? count : filter_task;
  ws.parallel_for((count + at_once - 1) / at_once, [&](Index task, Workspace& scratch) {
    const Index first = task * at_once * plan.length(), rows = std::min(at_once * plan.length(), x.rows() - first);
    simd::fft_filter<T>(plan, filter, x.middle_rows(first, rows), y.middle_rows(first, rows), add, scratch);
  });
}

inline bool filters_directly(FilterPath path, Index length) {
  return path == FilterPath::direct || (path == FilterPath::fastest && length <= direct_filter_rows);
}

/// y_n <- or += sum_j w_((n - j) mod L) x_j; with `reversed` w_((j - n) mod L), the adjoint.
template <class T>
void convolve_rows(MatrixView<const T> w, MatrixView<const T> x, bool reversed, bool add, MatrixView<T> y) {
  const Index length = x.rows();
  simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE {
    for (Index n = 0; n < length; ++n) {
      simd::Batch<T> sum = add ? load(y.row(n) + d) : simd::Batch<T>(T(0));
      for (Index j = 0; j < length; ++j) {
        const Index m = reversed ? j - n : n - j;
        sum = simd::mul_add(load(w.row(m < 0 ? m + length : m) + d), load(x.row(j) + d), sum);
      }
      store(y.row(n) + d, sum);
    }
  });
}

/// y <- or += sequences filtered at their own lengths; the shapes have been checked. `conjugate` for gradients.
template <class T>
void filter_sequences(JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                      const SpectralFilterOptions& o, bool conjugate, bool add, MatrixView<T> y, Workspace& ws) {
  if (x.values().empty()) return;
  const auto mark = ws.mark();
  if (const Index length = common_length(x); length > 0 && !filters_directly(o.path, length)) {
    const simd::FftPlan<T>& plan = plans[length];
    simd::FftFilter<T> filter;
    filter.prepare_in(ws, plan, fit_gains(gains, o, length, ws), conjugate);
    return filter_batch<T>(plan, filter, x.values(), add, y, ws);
  }
  const LengthGroups groups(x, ws);
  ws.parallel_for(groups.groups, [&](Index g, Workspace& scratch) {
    const auto inner = scratch.mark();
    const Index length = groups.length(g, x);
    const simd::FftPlan<T>& plan = plans[length];
    if (filters_directly(o.path, length)) {
      const MatrixView<T> w = scratch.matrix<T>(length, x.cols());
      simd::irfft<T>(plan, fit_gains(gains, o, length, scratch), w, FftNorm::backward, scratch);
      for (Index i = groups.first[g]; i < groups.first[g + 1]; ++i)
        convolve_rows<T>(w, x[groups.order[i]], conjugate, add, y.middle_rows(x.begin(groups.order[i]), length));
      return;
    }
    simd::FftFilter<T> filter;
    filter.prepare_in(scratch, plan, fit_gains(gains, o, length, scratch), conjugate);
    groups.for_pairs(g, [&](Index b, Index c) {
      const MatrixView<T> y0 = y.middle_rows(x.begin(b), length);
      if (c < 0) return simd::fft_filter<T>(plan, filter, x[b], y0, add, scratch);
      simd::fft_filter<T>(plan, filter, x[b], x[c], y0, y.middle_rows(x.begin(c), length), add, scratch);
    });
  });
}

/// dgains += the gradient of the gains, dx += that of x unless it is empty. Threads take channels: sums over the batch keep their
/// order.
template <class T>
void filter_sequences_backward(JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                               const SpectralFilterOptions& o, MatrixView<const T> dy, MatrixView<T> dx, SpectrumView<T> dgains,
                               Workspace& ws) {
  if (x.values().empty()) return;
  const auto mark = ws.mark();
  const LengthGroups groups(x, ws);
  const Index cols = x.cols(), slice = ws.workers() == 1 ? cols : 4 * simd::lanes<T>;
  ws.parallel_for((cols + slice - 1) / slice, [&](Index task, Workspace& scratch) {
    const Index at = task * slice, n = std::min(slice, cols - at);
    const SpectrumView<const T> own = {gains.re.middle_cols(at, n), gains.im.middle_cols(at, n)};
    const SpectrumView<T> down = {dgains.re.middle_cols(at, n), dgains.im.middle_cols(at, n)};
    const auto rows = [&](auto m, Index b) { return m.middle_rows(x.begin(b), x.length(b)).middle_cols(at, n); };
    for (Index g = 0; g < groups.groups; ++g) {
      const auto inner = scratch.mark();
      const Index length = groups.length(g, x), bins = spectrum_bins(length);
      const simd::FftPlan<T>& plan = plans[length];
      simd::FftFilter<T> filter;
      simd::FftFilterGradient<T> sums;
      filter.prepare_in(scratch, plan, fit_gains(own, o, length, scratch));
      sums.reset_in(scratch, plan, n);
      const bool fitted = o.fit == GainFit::interpolate && length != o.length;
      SpectrumView<T> to = {down.re.middle_rows(0, bins), down.im.middle_rows(0, bins)};
      if (fitted) {
        to = {scratch.matrix<T>(bins, n), scratch.matrix<T>(bins, n)};
        std::fill_n(to.re.data(), bins * n, T(0));
        std::fill_n(to.im.data(), bins * n, T(0));
      }
      constexpr Index exact = 4096;  // sums in T are exact enough for so many pairs
      if (groups.groups == 1) {      // then they lie one below the other
        const auto part = [&](auto m, Index first) {
          return m.empty() ? m : m.middle_rows(first, std::min(2 * exact * length, m.rows() - first)).middle_cols(at, n);
        };
        for (Index first = 0; first < x.values().rows(); first += 2 * exact * length) {
          simd::fft_filter_backward<T>(plan, filter, part(x.values(), first), part(dy, first), part(dx, first), sums, scratch);
          sums.add_to(plan, to, scratch);
          sums.clear();
        }
        if (fitted) fit_gains_backward<T>({to.re, to.im}, o, length, down);
        continue;
      }
      Index pairs = 0;
      groups.for_pairs(g, [&](Index b, Index c) {
        if (++pairs % exact == 0) {
          sums.add_to(plan, to, scratch);
          sums.clear();
        }
        const MatrixView<T> d0 = dx.empty() ? MatrixView<T>() : rows(dx, b);
        if (c < 0) {
          simd::fft_filter_backward<T>(plan, filter, rows(x.values(), b), rows(dy, b), d0, sums, scratch);
        } else {
          const MatrixView<T> d1 = dx.empty() ? MatrixView<T>() : rows(dx, c);
          simd::fft_filter_backward<T>(plan, filter, rows(x.values(), b), rows(x.values(), c), rows(dy, b), rows(dy, c), d0, d1,
                                       sums, scratch);
        }
      });
      sums.add_to(plan, to, scratch);
      if (fitted) fit_gains_backward<T>({to.re, to.im}, o, length, down);
    }
  });
}

}  // namespace detail

/// y <- x filtered.
template <Real T>
void spectral_filter(JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                     const SpectralFilterOptions& options, MatrixView<T> y, Workspace& ws) {
  detail::check_spectral_filter("spectral_filter", x, gains, plans, options);
  check_shape("spectral_filter", "y", y, x.values().rows(), x.cols());
  detail::forward_filled<T>(x, options.padding, options.length, y, ws, [&](JaggedView<const T> in, MatrixView<T> out) {
    detail::filter_sequences<T>(in, gains, plans, options, false, false, out, ws);
  });
}

/// Adds to dx and to dgains, either unless empty (of dgains both planes or none).
template <Real T>
void spectral_filter_backward(JaggedView<const T> x, SpectrumView<const T> gains, const SpectralPlans<T>& plans,
                              const SpectralFilterOptions& options, MatrixView<const T> dy, MatrixView<T> dx,
                              SpectrumView<T> dgains, Workspace& ws) {
  constexpr const char* name = "spectral_filter_backward";
  detail::check_spectral_filter(name, x, gains, plans, options);
  check_shape(name, "dy", dy, x.values().rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), x.cols());
  const bool learns = !dgains.re.empty() || !dgains.im.empty();
  if (learns) {
    check_shape(name, "dgains.re", dgains.re, gains.re.rows(), x.cols());
    check_shape(name, "dgains.im", dgains.im, gains.re.rows(), x.cols());
  }
  if (dx.empty() && !learns) return;
  detail::backward_filled<T>(x, options.padding, options.length, dy, dx, ws,
                             [&](JaggedView<const T> in, MatrixView<const T> dout, MatrixView<T> din) {
                               if (learns) {
                                 detail::filter_sequences_backward<T>(in, gains, plans, options, dout, din, dgains, ws);
                               } else {
                                 detail::filter_sequences<T>(in.with_values(dout), gains, plans, options, true, true, din, ws);
                               }
                             });
}

namespace detail {

/// Gains as PyTorch keeps them, `[K D, 2]`, to two planes `[K, D]`, and gradients back.
template <class T>
SpectrumView<T> split_gains(MatrixView<const T> pairs, Index cols, Workspace& ws) {
  const Index bins = cols > 0 ? pairs.rows() / cols : 0;
  const SpectrumView<T> planes = {ws.matrix<T>(bins, cols), ws.matrix<T>(bins, cols)};
  for (Index i = 0; i < bins * cols; ++i) {
    planes.re.data()[i] = pairs(i, 0);
    planes.im.data()[i] = pairs(i, 1);
  }
  return planes;
}
template <class T>
SpectrumView<T> zero_gains(Index bins, Index cols, Workspace& ws) {
  const SpectrumView<T> planes = {ws.matrix<T>(bins, cols), ws.matrix<T>(bins, cols)};
  std::fill_n(planes.re.data(), bins * cols, T(0));
  std::fill_n(planes.im.data(), bins * cols, T(0));
  return planes;
}
template <class T>
void add_gains(SpectrumView<const T> planes, MatrixView<T> pairs) {
  for (Index i = 0; i < pairs.rows(); ++i) {
    pairs(i, 0) += planes.re.data()[i];
    pairs(i, 1) += planes.im.data()[i];
  }
}
template <class T>
SpectrumView<const T> read_only(SpectrumView<T> planes) {
  return {planes.re, planes.im};
}

/// Plans that a filter layer needs: of one length where shorter sequences are filled up, else of all.
template <class T>
SpectralPlans<T> plans_for(const char* name, Index length, const SequencePadding& padding) {
  check_option(name, "length", length >= 1, "length >= 1", static_cast<double>(length));
  return padding.fill == SequenceFill::none ? SpectralPlans<T>(length) : SpectralPlans<T>::only(length);
}

}  // namespace detail

/// FMLP-Rec's learnable filter as a sequence layer `[total, D]` to `[total, D]`, at most `options.length` rows each. `complex_weight`
/// is the reference's parameter of the same name, `[1, K, D, 2]`, and loads from it.
template <class T>
struct SpectralFilter {
  Matrix<T> complex_weight;  ///< [K D, 2]: gain of bin k and channel d in row k D + d, real part, imaginary part
  SpectralFilterOptions options;
  SpectralPlans<T> plans;

  SpectralFilter() = default;
  /// Both parts normal with the given deviation, as the reference. Throws `Error` for a length or width below 1.
  SpectralFilter(Index width, const SpectralFilterOptions& o, Random& random, double deviation = 0.02)
      : options(o), plans(detail::plans_for<T>("SpectralFilter", o.length, o.padding)) {
    check_option("SpectralFilter", "width", width >= 1, "width >= 1", static_cast<double>(width));
    complex_weight.resize(detail::spectrum_bins(o.length) * width, 2);
    for (T& w : leaf_values(complex_weight)) w = static_cast<T>(deviation * random.normal());
  }

  static constexpr auto fields() { return std::tuple{parameter("complex_weight", &SpectralFilter::complex_weight)}; }

  /// K and D.
  Index bins() const { return detail::spectrum_bins(options.length); }
  Index width() const { return bins() > 0 ? complex_weight.rows() / bins() : 0; }
  /// D; throws `Error` unless the input has as many columns.
  Index output_cols(Index input_cols) const {
    check_shape("SpectralFilter", "complex_weight", complex_weight.view(), bins() * width(), 2);
    check_option("SpectralFilter", "input columns", input_cols == width(), "as many as complex_weight was made for",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  struct Saved {};  ///< backward needs the input only: transforming it again is cheaper than keeping its spectrum
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    output_cols(x.cols());
    const auto mark = ws.mark();
    spectral_filter<T>(x, detail::read_only(planes(ws)), plans, options, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, SpectralFilter& gradient,
                Workspace& ws) const {
    constexpr const char* name = "SpectralFilter::backward";
    output_cols(x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const bool learns = !gradient.complex_weight.empty();
    const SpectrumView<T> down = learns ? detail::zero_gains<T>(bins(), width(), ws) : SpectrumView<T>();
    spectral_filter_backward<T>(x, detail::read_only(planes(ws)), plans, options, dy, dx, down, ws);
    if (learns) detail::add_gains<T>(detail::read_only(down), gradient.complex_weight);
  }

 private:
  SpectrumView<T> planes(Workspace& ws) const { return detail::split_gains<T>(complex_weight, width(), ws); }
};

/// Serving form of SpectralFilter: gains for `length` rows prepared once. Shorter ragged sequences still prepare theirs. Immutable;
/// threads may share it.
template <class T>
class FrozenSpectralFilter {
 public:
  FrozenSpectralFilter() = default;
  /// From gains `[K, D]`. Throws `Error` for shapes that disagree.
  FrozenSpectralFilter(SpectrumView<const T> gains, const SpectralPlans<T>& plans, const SpectralFilterOptions& options)
      : re_(gains.re.rows(), gains.re.cols()), im_(gains.re.rows(), gains.re.cols()), options_(options), plans_(plans) {
    constexpr const char* name = "FrozenSpectralFilter";
    check_shape(name, "gains.re", gains.re, detail::spectrum_bins(options.length), any_size);
    check_shape(name, "gains.im", gains.im, gains.re.rows(), gains.re.cols());
    check_option(name, "plans", plans.has(options.length), "plans that hold `length`", static_cast<double>(plans.longest()));
    for (Index k = 0; k < re_.rows(); ++k) {
      std::copy_n(gains.re.row(k), re_.cols(), re_.row(k));
      std::copy_n(gains.im.row(k), im_.cols(), im_.row(k));
    }
    if (options.length > 0) {
      Workspace ws;
      filter_.prepare(plans[options.length], gains, ws);
    }
  }
  const SpectralFilterOptions& options() const { return options_; }
  /// D; throws `Error` unless the input has as many columns.
  Index output_cols(Index input_cols) const {
    check_option("FrozenSpectralFilter", "input columns", input_cols == re_.cols(), "as many as the gains have",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenSpectralFilter";
    output_cols(x.cols());
    const SpectrumView<const T> gains = {re_.view(), im_.view()};
    detail::check_spectral_filter<T>(name, x, gains, plans_, options_);
    check_shape(name, "y", y, x.values().rows(), x.cols());
    detail::forward_filled<T>(x, options_.padding, options_.length, y, ws, [&](JaggedView<const T> in, MatrixView<T> out) {
      if (in.values().empty()) return;
      if (detail::common_length(in) == options_.length) {
        detail::filter_batch<T>(plans_[options_.length], filter_, in.values(), false, out, ws);
      } else {
        detail::filter_sequences<T>(in, gains, plans_, options_, false, false, out, ws);
      }
    });
  }

 private:
  Matrix<T> re_, im_;
  SpectralFilterOptions options_;
  SpectralPlans<T> plans_;
  simd::FftFilter<T> filter_;
};
template <class T>
FrozenSpectralFilter<T> freeze(const SpectralFilter<T>& layer) {
  layer.output_cols(layer.width());
  Workspace ws;
  const auto mark = ws.mark();
  const auto gains = detail::split_gains<T>(layer.complex_weight, layer.width(), ws);
  return FrozenSpectralFilter<T>(detail::read_only(gains), layer.plans, layer.options);
}

}  // namespace RECOPS_ABI
}  // namespace recops
