/// @file   recops/frequency/bsarec_layer.hpp
/// @brief  BSARec: self-attention and a frequency rescaler side by side.
///
///     dsp = LayerNorm(x + dropout(low + b^2 . high))     gsp = LayerNorm(x + dropout(attention(x)))     y = a dsp + (1 - a) gsp
///
/// Shapes      x, y [total, D] with offsets [B + 1]   b [D]   a a fixed number
/// Edge cases  a = 1: the attention is not evaluated, a = 0: the rescaler is not.   A NaN stays in its sequence.
/// Cost        band_mix's and the attention's 8 L D^2 + 4 L^2 D flops per sequence (half of the last if causal).
/// Gradient    of x and all parameters but a; *adds*.
/// Reference   Shin et al., BSARec, AAAI 2024, arXiv 2312.10325, equations 7-12 and the authors' code. The feed-forward network behind
///             it is FilterBlock's.
#pragma once
#include <recops/frequency/band_mix.hpp>
#include <recops/frequency/filter_block.hpp>
#include <recops/nn/multihead_attention.hpp>

namespace recops {

struct BsarecOptions {
  Index length = 0;         ///< longest sequence
  Band band = {.keep = 3};  ///< the low band; see `keep_from_bsarec_c`
  double alpha = 0.7;       ///< a, the share of the rescaler; 0.7 to 0.9 in the paper
  Index heads = 1;          ///< divides D
  bool causal = true;       ///< of the attention; the rescaler always sees the whole sequence
  double dropout = 0;       ///< of both branches' outputs, in training
  double epsilon = 1e-12;   ///< of the norms
  SequencePadding padding = {};
};

inline namespace RECOPS_ABI {

/// y = low + b^2 . high: the frequency rescaler by itself, as a sequence layer. Squaring keeps the gain of the high band positive.
template <class T>
struct BsarecFilter {
  Vector<T> sqrt_beta;  ///< [D], b
  Band band;
  Index length = 0;
  SequencePadding padding;
  SpectralPlans<T> plans;

  BsarecFilter() = default;
  /// b is standard normal, as the reference. Throws `Error` for options out of range.
  BsarecFilter(Index width, Index longest, const Band& low, const SequencePadding& p, Random& random)
      : sqrt_beta(checked_size("BsarecFilter", "width", width)), band(low), length(longest), padding(p) {
    detail::check_band("BsarecFilter", low);
    check_option("BsarecFilter", "length", longest >= 1, "length >= 1", static_cast<double>(longest));
    plans = p.fill == SequenceFill::none ? SpectralPlans<T>(longest) : SpectralPlans<T>::only(longest);
    for (T& b : sqrt_beta) b = static_cast<T>(random.normal());
  }
  static constexpr auto fields() { return std::tuple{parameter("sqrt_beta", &BsarecFilter::sqrt_beta)}; }
  /// D; throws `Error` unless the input has as many columns.
  Index output_cols(Index input_cols) const {
    check_option("BsarecFilter", "input columns", input_cols == sqrt_beta.size(), "as many as sqrt_beta has",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  struct Saved {};  ///< backward needs the input only
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("BsarecFilter", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const MatrixView<const T> one = unit(ws), beta = squares(ws);
    detail::forward_filled<T>(x, padding, length, y, ws, [&](JaggedView<const T> in, MatrixView<T> out) {
      band_mix<T>(in, {one}, {beta}, band, plans, out, ws);
    });
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, BsarecFilter& gradient,
                Workspace& ws) const {
    constexpr const char* name = "BsarecFilter::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<const T> one = unit(ws), beta = squares(ws);
    MatrixView<T> dbeta;
    if (!gradient.sqrt_beta.empty()) {
      dbeta = ws.matrix<T>(1, x.cols());
      std::fill_n(dbeta.data(), x.cols(), T(0));
    }
    detail::backward_filled<T>(x, padding, length, dy, dx, ws,
                               [&](JaggedView<const T> in, MatrixView<const T> dout, MatrixView<T> din) {
                                 band_mix_backward<T>(in, {one}, {beta}, band, plans, dout, din, {}, {dbeta}, ws);
                               });
    for (Index d = 0; d < dbeta.cols(); ++d) gradient.sqrt_beta[d] += 2 * sqrt_beta[d] * dbeta(0, d);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    const Index longest = x.longest();
    check_option(name, "x", longest <= length, "sequences of at most `length` rows", static_cast<double>(longest));
    check_shape(name, "y", y, x.values().rows(), x.cols());
  }
  static MatrixView<const T> unit(Workspace& ws) {
    const MatrixView<T> one = ws.matrix<T>(1, 1);
    one(0, 0) = T(1);
    return one;
  }
  MatrixView<const T> squares(Workspace& ws) const {
    const MatrixView<T> beta = ws.matrix<T>(1, sqrt_beta.size());
    for (Index d = 0; d < beta.cols(); ++d) beta(0, d) = sqrt_beta[d] * sqrt_beta[d];
    return beta;
  }
};

namespace detail {
/// y = a filter + (1 - a) attention, where `branch(attention, out)` evaluates one of them; one with no share is not.
template <class T, class F>
void bsarec_mix(double alpha, MatrixView<T> y, Workspace& ws, F&& branch) {
  if (alpha == 0) return branch(true, y);
  branch(false, y);
  if (alpha == 1) return;
  const auto mark = ws.mark();
  const MatrixView<T> other = ws.matrix<T>(y.rows(), y.cols());
  branch(true, other);
  const T a = static_cast<T>(alpha);
  for (Index r = 0; r < y.rows(); ++r) {
    simd::scale(a, y.row(r), y.row(r), y.cols());
    simd::axpy(1 - a, other.row(r), y.row(r), y.cols());
  }
}
}  // namespace detail

/// BSARec's layer, a sequence layer `[total, D]` to `[total, D]`.
template <class T>
struct BsarecLayer {
  FilterSublayer<T, BsarecFilter<T>> filter_layer;
  FilterSublayer<T, MultiheadAttention<T>> attention_layer;
  BsarecOptions options;

  BsarecLayer() = default;
  /// Throws `Error` for options out of range.
  BsarecLayer(Index width, const BsarecOptions& o, Random& random)
      : filter_layer(BsarecFilter<T>(checked_size("BsarecLayer", "width", width), o.length, o.band, o.padding, random), width,
                     {.dropout = o.dropout, .epsilon = o.epsilon}),
        attention_layer(MultiheadAttention<T>(width, o.heads, random), width, {.dropout = o.dropout, .epsilon = o.epsilon}),
        options(o) {
    check_option("BsarecLayer", "alpha", 0 <= o.alpha && o.alpha <= 1, "0 <= alpha <= 1", o.alpha);
    attention_layer.filter.causal = o.causal;
  }
  static constexpr auto fields() {
    return std::tuple{layer("filter_layer", &BsarecLayer::filter_layer), layer("attention_layer", &BsarecLayer::attention_layer)};
  }
  Index output_cols(Index input_cols) const { return attention_layer.output_cols(filter_layer.output_cols(input_cols)); }
  struct Saved {
    typename FilterSublayer<T, BsarecFilter<T>>::Saved filter;
    typename FilterSublayer<T, MultiheadAttention<T>>::Saved attention;
  };
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("BsarecLayer", x, MatrixView<const T>(y));
    detail::bsarec_mix<T>(options.alpha, y, ws, [&](bool attention, MatrixView<T> out) {
      attention ? attention_layer.forward(x, out, ws) : filter_layer.forward(x, out, ws);
    });
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("BsarecLayer", x, MatrixView<const T>(y));
    detail::bsarec_mix<T>(options.alpha, y, ws, [&](bool attention, MatrixView<T> out) {
      attention ? attention_layer.forward(x, out, saved.attention, step.child(1), ws)
                : filter_layer.forward(x, out, saved.filter, step.child(0), ws);
    });
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, BsarecLayer& gradient,
                Workspace& ws) const {
    constexpr const char* name = "BsarecLayer::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    for (const auto& [sum, share] :
         {std::pair(&saved.filter.end.sum, options.alpha), std::pair(&saved.attention.end.sum, 1 - options.alpha)})
      if (share > 0) check_shape(name, "saved", sum->view(), dy.rows(), dy.cols());
    const auto mark = ws.mark();
    const MatrixView<T> d = ws.matrix<T>(dy.rows(), dy.cols());
    const auto share = [&](double of) -> MatrixView<const T> {
      for (Index r = 0; r < d.rows(); ++r) simd::scale(static_cast<T>(of), dy.row(r), d.row(r), d.cols());
      return d;
    };
    if (options.alpha > 0) filter_layer.backward(x, share(options.alpha), saved.filter, dx, gradient.filter_layer, ws);
    if (options.alpha < 1)
      attention_layer.backward(x, share(1 - options.alpha), saved.attention, dx, gradient.attention_layer, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_option(name, "alpha", 0 <= options.alpha && options.alpha <= 1, "0 <= alpha <= 1", options.alpha);
    check_jagged(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    attention_layer.filter.check_parameters(name);
    check_shape(name, "y", y, x.values().rows(), x.cols());
  }
};

/// Serving forms. The rescaler has nothing to pack.
template <class T>
BsarecFilter<T> freeze(const BsarecFilter<T>& layer) {
  return layer;
}
/// Immutable; threads may share it.
template <class T, class Filter, class Attention>
struct FrozenBsarecLayer {
  Filter filter_layer;
  Attention attention_layer;
  double alpha = 0;
  Index output_cols(Index input_cols) const { return attention_layer.output_cols(filter_layer.output_cols(input_cols)); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_jagged("FrozenBsarecLayer", "x", x, any_size, any_size);
    check_shape("FrozenBsarecLayer", "y", y, x.values().rows(), output_cols(x.cols()));
    detail::bsarec_mix<T>(alpha, y, ws, [&](bool attention, MatrixView<T> out) {
      attention ? attention_layer.forward(x, out, ws) : filter_layer.forward(x, out, ws);
    });
  }
};
template <class T>
auto freeze(const BsarecLayer<T>& layer) {
  auto filter = freeze(layer.filter_layer);
  auto attention = freeze(layer.attention_layer);
  return FrozenBsarecLayer<T, decltype(filter), decltype(attention)>{std::move(filter), std::move(attention),
                                                                     layer.options.alpha};
}

}  // namespace RECOPS_ABI
}  // namespace recops
