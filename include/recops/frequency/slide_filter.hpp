/// @file   recops/frequency/slide_filter.hpp
/// @brief  A ramp of learnable band filters over the layers of a stack: SLIME4Rec.
///
///     Y_k = a [k in dynamic] G_k X_k + b [k in static] L_k X_k        y = irfft(Y, L)
///
/// Layer i of n filters two windows of bins only: a wide one (a share `ratio` of the K bins) that slides from one end of the spectrum
/// to the other over the layers, and a narrow one, K / n bins, that moves on by its own width: together they cover every bin (edges
/// are cut as in the authors' code, so that a bin at an edge may belong to two layers). Everything else is spectral_filter.hpp's,
/// with the effective gains a [dynamic] G + b [static] L.
///
/// Reference   Du et al., SLIME4Rec, ICDE 2023, and the authors' code (whose weights a, b are 1; the paper mixes with 1 - gamma, gamma).
#pragma once
#include <recops/frequency/spectral_filter.hpp>

namespace recops {

/// Which way the windows slide with growing layer number: `dynamic_static`, from high to low frequencies or the reverse.
enum class SlideMode : unsigned char {
  down_up = 1,  ///< SLIME4Rec's mode one: dynamic high to low, static low to high
  up_down,      ///< two
  up_up,        ///< three: both low to high
  down_down     ///< four: both high to low
};

struct SlideFilterOptions {
  Index length = 0;    ///< L
  Index layer = 0;     ///< i, of
  Index layers = 1;    ///< n layers in the stack
  double ratio = 0.4;  ///< share of the bins in the dynamic window, 0 < ratio <= 1
  SlideMode mode = SlideMode::down_down;
  double dynamic_weight = 1;  ///< a
  double static_weight = 1;   ///< b
  SequencePadding padding = {};
  GainFit fit = GainFit::crop;
};

/// Bins [first, last).
struct BinWindow {
  Index first = 0, last = 0;
  constexpr bool contains(Index k) const { return first <= k && k < last; }
};
struct SlideWindows {
  BinWindow dynamic_window, static_window;
};

inline namespace RECOPS_ABI {

/// The windows of a layer among `bins` bins, evaluated in double and truncated towards 0 as the reference does. Throws `Error` for
/// options out of range.
inline SlideWindows slide_windows(Index bins, const SlideFilterOptions& o) {
  constexpr const char* name = "slide_windows";
  check_option(name, "bins", bins >= 0, "bins >= 0", static_cast<double>(bins));
  check_option(name, "layers", o.layers >= 1, "layers >= 1", static_cast<double>(o.layers));
  check_option(name, "layer", 0 <= o.layer && o.layer < o.layers, "0 <= layer < layers", static_cast<double>(o.layer));
  check_option(name, "ratio", 0 < o.ratio && o.ratio <= 1, "0 < ratio <= 1", o.ratio);
  check_option(name, "mode", SlideMode::down_up <= o.mode && o.mode <= SlideMode::down_down, "a SlideMode",
               static_cast<double>(o.mode));
  const double k = static_cast<double>(bins), n = static_cast<double>(o.layers), i = static_cast<double>(o.layer);
  const double up = n - 1 - i;
  const double g = o.mode == SlideMode::down_up || o.mode == SlideMode::down_down ? i : up;
  const double p = o.mode == SlideMode::up_down || o.mode == SlideMode::down_down ? i : up;
  const auto window = [bins](double left, double right) {
    const auto clamp = [bins](double v) { return std::clamp(static_cast<Index>(v), Index{0}, bins); };
    return BinWindow{clamp(left), clamp(right)};
  };
  const double step = o.layers == 1 ? 0 : std::floor(k * (1 - o.ratio) / (n - 1)), part = k / n;
  return {window(k * (1 - o.ratio) - g * step, k - g * step), window(k * (1 - 1 / n) - p * part, k - p * part)};
}

/// SLIME4Rec's filter mixer as a sequence layer; `complex_weight_G` (dynamic) and `complex_weight_L` (static) load from the
/// reference's `[1, K, D, 2]`.
template <class T>
struct SlideFilter {
  Matrix<T> complex_weight_G, complex_weight_L;  ///< [K D, 2] each, as `SpectralFilter::complex_weight`
  SlideFilterOptions options;
  SpectralPlans<T> plans;

  SlideFilter() = default;
  /// Normal with the given deviation. Throws `Error` for options out of range.
  SlideFilter(Index width, const SlideFilterOptions& o, Random& random, double deviation = 0.02)
      : options(o), plans(detail::plans_for<T>("SlideFilter", o.length, o.padding)) {
    check_option("SlideFilter", "width", width >= 1, "width >= 1", static_cast<double>(width));
    slide_windows(bins(), o);
    for (Matrix<T>* m : {&complex_weight_G, &complex_weight_L}) {
      m->resize(bins() * width, 2);
      for (T& w : leaf_values(*m)) w = static_cast<T>(deviation * random.normal());
    }
  }

  static constexpr auto fields() {
    return std::tuple{parameter("complex_weight_G", &SlideFilter::complex_weight_G),
                      parameter("complex_weight_L", &SlideFilter::complex_weight_L)};
  }
  /// K and D.
  Index bins() const { return detail::spectrum_bins(options.length); }
  Index width() const { return bins() > 0 ? complex_weight_G.rows() / bins() : 0; }
  SlideWindows windows() const { return slide_windows(bins(), options); }
  /// D; throws `Error` unless the input has as many columns and the parameters fit each other.
  Index output_cols(Index input_cols) const {
    check_shape("SlideFilter", "complex_weight_G", complex_weight_G.view(), bins() * width(), 2);
    check_shape("SlideFilter", "complex_weight_L", complex_weight_L.view(), bins() * width(), 2);
    check_option("SlideFilter", "input columns", input_cols == width(), "as many as complex_weight_G was made for",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  struct Saved {};  ///< backward needs the input only
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    output_cols(x.cols());
    const auto mark = ws.mark();
    spectral_filter<T>(x, detail::read_only(effective_gains(ws)), plans, filter_options(), y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, SlideFilter& gradient,
                Workspace& ws) const {
    output_cols(x.cols());
    check_gradient_shapes("SlideFilter::backward", *this, gradient);
    const auto mark = ws.mark();
    const bool learns = !gradient.complex_weight_G.empty() || !gradient.complex_weight_L.empty();
    const SpectrumView<T> down = learns ? detail::zero_gains<T>(bins(), width(), ws) : SpectrumView<T>();
    spectral_filter_backward<T>(x, detail::read_only(effective_gains(ws)), plans, filter_options(), dy, dx, down, ws);
    if (!learns) return;
    const SlideWindows w = windows();
    add_window(down, w.dynamic_window, options.dynamic_weight, gradient.complex_weight_G);
    add_window(down, w.static_window, options.static_weight, gradient.complex_weight_L);
  }
  /// a [dynamic] G + b [static] L, two planes [K, D] in `ws`.
  SpectrumView<T> effective_gains(Workspace& ws) const {
    const SpectrumView<T> gains = detail::zero_gains<T>(bins(), width(), ws);
    const SlideWindows w = windows();
    const auto add = [&](const BinWindow& window, double weight, const Matrix<T>& pairs) {
      for (Index i = window.first * width(); i < window.last * width(); ++i) {
        gains.re.data()[i] += static_cast<T>(weight) * pairs(i, 0);
        gains.im.data()[i] += static_cast<T>(weight) * pairs(i, 1);
      }
    };
    add(w.dynamic_window, options.dynamic_weight, complex_weight_G);
    add(w.static_window, options.static_weight, complex_weight_L);
    return gains;
  }
  /// The options of the `spectral_filter` that does it.
  SpectralFilterOptions filter_options() const {
    return {.length = options.length, .padding = options.padding, .fit = options.fit};
  }

 private:
  void add_window(SpectrumView<T> down, const BinWindow& window, double weight, Matrix<T>& pairs) const {
    if (pairs.empty()) return;
    for (Index i = window.first * width(); i < window.last * width(); ++i) {
      pairs(i, 0) += static_cast<T>(weight) * down.re.data()[i];
      pairs(i, 1) += static_cast<T>(weight) * down.im.data()[i];
    }
  }
};

/// Serving form: a spectral filter with the effective gains.
template <class T>
FrozenSpectralFilter<T> freeze(const SlideFilter<T>& layer) {
  layer.output_cols(layer.width());
  Workspace ws;
  const auto mark = ws.mark();
  return FrozenSpectralFilter<T>(detail::read_only(layer.effective_gains(ws)), layer.plans, layer.filter_options());
}

}  // namespace RECOPS_ABI
}  // namespace recops
