/// @file   recops/frequency/filter_block.hpp
/// @brief  What the papers put around a filter: residual and norm, and a feed-forward network with its own.
///
///     FilterSublayer   y = LayerNorm(x + dropout(filter(x)))
///     FeedForward      y = LayerNorm(x + dropout(W2 f(W1 x + b1) + b2))
///     FilterBlock      y = FeedForward(mixer(x)),  mixer a FilterSublayer (FMLP-Rec, SLIME4Rec) or a BsarecLayer
///
/// Names are those of the authors' code (`LayerNorm`, `dense_1`, `dense_2`), epsilon is their 1e-12, f their GELU with erf.
/// Sequence layers; row-wise parts work on all rows at once. A NaN stays in its sequence.
#pragma once
#include <recops/nn/dropout.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {

/// Options of the sublayers around a filter.
struct FilterBlockOptions {
  double dropout = 0;                        ///< of the filter's and the network's output, in training
  double epsilon = 1e-12;                    ///< of the norms
  Index hidden = 0;                          ///< of the network; 0: four times the width
  Activation activation = Activation::gelu;  ///< of the network
};

inline namespace RECOPS_ABI {

namespace detail {

/// The end of a sublayer: y = norm(x + dropout(z)).
template <class T>
struct ResidualNorm {
  struct Saved {
    Matrix<T> sum;  ///< what the norm reads
    typename Dropout<T>::Saved dropout;
    typename LayerNorm<T>::Saved norm;
  };
  static void add_rows(MatrixView<const T> x, MatrixView<T> y) {
    for (Index r = 0; r < y.rows(); ++r) simd::add(x.row(r), y.row(r), y.cols());
  }
  /// z becomes y.
  static void forward(const LayerNorm<T>& norm, MatrixView<const T> x, MatrixView<T> z, Workspace& ws) {
    add_rows(x, z);
    norm.forward(z, z, ws);
  }
  static void forward(const LayerNorm<T>& norm, double p, MatrixView<const T> x, MatrixView<T> z, Saved& saved, const Step& step,
                      Workspace& ws) {
    saved.sum.resize(z.rows(), z.cols());
    const MatrixView<T> sum = saved.sum;
    if (p > 0) {
      Dropout<T>(p).forward(z, sum, saved.dropout, step.child(0), ws);
    } else {
      for (Index r = 0; r < z.rows(); ++r) std::copy_n(z.row(r), z.cols(), sum.row(r));
    }
    add_rows(x, sum);
    norm.forward(sum, z, saved.norm, step.child(1), ws);
  }
  /// dsum <- d of x + dropout(z), dz <- d of z, which is dsum itself without dropout; both live in `ws`.
  struct Back {
    MatrixView<T> dsum, dz;
  };
  static Back backward(const LayerNorm<T>& norm, double p, MatrixView<const T> dy, const Saved& saved, LayerNorm<T>& gradient,
                       Workspace& ws) {
    const MatrixView<T> dsum = ws.matrix<T>(dy.rows(), dy.cols());
    std::fill_n(dsum.data(), dsum.rows() * dsum.cols(), T(0));
    norm.backward(saved.sum, dy, saved.norm, dsum, gradient, ws);
    if (p == 0) return {dsum, dsum};
    const MatrixView<T> dz = ws.matrix<T>(dy.rows(), dy.cols());
    std::fill_n(dz.data(), dz.rows() * dz.cols(), T(0));
    Dropout<T> none;
    Dropout<T>(p).backward(dsum, dsum, saved.dropout, dz, none, ws);
    return {dsum, dz};
  }
};

inline void check_dropout(const char* name, double p) { check_option(name, "dropout", 0 <= p && p < 1, "0 <= dropout < 1", p); }

}  // namespace detail

/// A filter with residual and norm; the filter's parameters keep their own names.
template <class T, class Filter>
struct FilterSublayer {
  static_assert(SequenceLayer<Filter, T>, "FilterSublayer needs a sequence layer");
  Filter filter;
  LayerNorm<T> norm;
  double dropout = 0;

  FilterSublayer() = default;
  /// Throws `Error` for options out of range.
  FilterSublayer(Filter f, Index width, const FilterBlockOptions& o = {})
      : filter(std::move(f)), norm(checked_size("FilterSublayer", "width", width), {.epsilon = o.epsilon}), dropout(o.dropout) {
    detail::check_dropout("FilterSublayer", o.dropout);
  }
  static constexpr auto fields() {
    return std::tuple{layer("", &FilterSublayer::filter), layer("LayerNorm", &FilterSublayer::norm)};
  }
  Index output_cols(Index input_cols) const { return filter.output_cols(input_cols); }
  struct Saved {
    typename Filter::Saved filter;
    typename detail::ResidualNorm<T>::Saved end;
  };
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("FilterSublayer", x, MatrixView<const T>(y));
    filter.forward(x, y, ws);
    detail::ResidualNorm<T>::forward(norm, x.values(), y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("FilterSublayer", x, MatrixView<const T>(y));
    filter.forward(x, y, saved.filter, step.child(0), ws);
    detail::ResidualNorm<T>::forward(norm, dropout, x.values(), y, saved.end, step.child(1), ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, FilterSublayer& gradient,
                Workspace& ws) const {
    constexpr const char* name = "FilterSublayer::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    check_shape(name, "saved", saved.end.sum.view(), dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto [dsum, dz] = detail::ResidualNorm<T>::backward(norm, dropout, dy, saved.end, gradient.norm, ws);
    filter.backward(x, dz, saved.filter, dx, gradient.filter, ws);
    if (!dx.empty()) detail::ResidualNorm<T>::add_rows(dsum, dx);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    check_shape(name, "y", y, x.values().rows(), x.cols());
    detail::check_norm<T>(name, x.values(), norm.weight, norm.bias, norm.options.groups, norm.options.epsilon);
  }
};

/// The position-wise network of the papers with residual and norm: a row layer.
template <class T>
struct FeedForward {
  Linear<T> dense_1, dense_2;  ///< [hidden, D], [D, hidden]
  LayerNorm<T> norm;
  Activation activation = Activation::gelu;
  double dropout = 0;

  FeedForward() = default;
  /// Throws `Error` for options out of range.
  FeedForward(Index width, const FilterBlockOptions& o, Random& random)
      : dense_1(checked_size("FeedForward", "width", width), o.hidden > 0 ? o.hidden : 4 * width, random),
        dense_2(o.hidden > 0 ? o.hidden : 4 * width, width, random),
        norm(width, {.epsilon = o.epsilon}),
        activation(o.activation),
        dropout(o.dropout) {
    check_option("FeedForward", "hidden", o.hidden >= 0, "hidden >= 0, where 0 is four times the width",
                 static_cast<double>(o.hidden));
    detail::check_dropout("FeedForward", o.dropout);
  }
  static constexpr auto fields() {
    return std::tuple{layer("dense_1", &FeedForward::dense_1), layer("dense_2", &FeedForward::dense_2),
                      layer("LayerNorm", &FeedForward::norm)};
  }
  /// D; throws `Error` unless the parts fit each other and the input.
  Index output_cols(Index input_cols) const {
    const Index out = dense_2.output_cols(dense_1.output_cols(input_cols));
    check_option("FeedForward", "output columns", out == input_cols, "as many as its input has", static_cast<double>(out));
    return out;
  }
  struct Saved {
    Matrix<T> z, hidden;  ///< [rows, hidden], before and after the activation
    typename detail::ResidualNorm<T>::Saved end;
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("FeedForward", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const MatrixView<T> hidden = ws.matrix<T>(x.rows(), dense_1.weight.rows());
    simd::gemm<T>(simd::plain(x), simd::transposed(dense_1.weight.view()),
                  {.bias = dense_1.bias.empty() ? nullptr : dense_1.bias.data(), .activation = activation}, hidden, ws);
    dense_2.forward(hidden, y, ws);
    detail::ResidualNorm<T>::forward(norm, x, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("FeedForward", x, MatrixView<const T>(y));
    saved.z.resize(x.rows(), dense_1.weight.rows());
    saved.hidden.resize(x.rows(), dense_1.weight.rows());
    dense_1.forward(x, saved.z, ws);
    for (Index r = 0; r < x.rows(); ++r) simd::activate(activation, saved.z.row(r), saved.hidden.row(r), saved.z.cols());
    dense_2.forward(saved.hidden, y, ws);
    detail::ResidualNorm<T>::forward(norm, dropout, x, y, saved.end, step, ws);
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, FeedForward& gradient,
                Workspace& ws) const {
    constexpr const char* name = "FeedForward::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    for (const Matrix<T>* m : {&saved.z, &saved.hidden}) check_shape(name, "saved", m->view(), x.rows(), dense_1.weight.rows());
    check_shape(name, "saved", saved.end.sum.view(), dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto [dsum, dout] = detail::ResidualNorm<T>::backward(norm, dropout, dy, saved.end, gradient.norm, ws);
    const MatrixView<T> dh = ws.matrix<T>(x.rows(), dense_1.weight.rows());
    detail::linear_backward<T>(saved.hidden, dense_2.weight, dout, dh, true, gradient.dense_2.weight, gradient.dense_2.bias, ws);
    for (Index r = 0; r < x.rows(); ++r)
      simd::activate_backward(activation, saved.z.row(r), saved.hidden.row(r), dh.row(r), dh.row(r), dh.cols());
    dense_1.backward(x, dh, {}, dx, gradient.dense_1, ws);
    if (!dx.empty()) detail::ResidualNorm<T>::add_rows(dsum, dx);
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> y) const {
    check_shape(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    check_shape(name, "y", y, x.rows(), x.cols());
    if (!dense_1.bias.empty()) check_size(name, "dense_1.bias", VectorView<const T>(dense_1.bias), dense_1.weight.rows());
    if (!dense_2.bias.empty()) check_size(name, "dense_2.bias", VectorView<const T>(dense_2.bias), x.cols());
    detail::check_norm<T>(name, x, norm.weight, norm.bias, norm.options.groups, norm.options.epsilon);
  }
};

/// One block of a filter recommender: `layer` mixes the rows of a sequence, `feed_forward` the channels of a row.
template <class T, class Mixer>
struct FilterBlock {
  static_assert(SequenceLayer<Mixer, T>, "FilterBlock needs a sequence layer");
  Mixer mixer;
  FeedForward<T> feed_forward;

  FilterBlock() = default;
  /// Throws `Error` for options out of range.
  FilterBlock(Mixer m, Index width, const FilterBlockOptions& o, Random& random)
      : mixer(std::move(m)), feed_forward(checked_size("FilterBlock", "width", width), o, random) {}

  static constexpr auto fields() {
    return std::tuple{layer("layer", &FilterBlock::mixer), layer("feed_forward", &FilterBlock::feed_forward)};
  }
  Index output_cols(Index input_cols) const { return feed_forward.output_cols(mixer.output_cols(input_cols)); }
  struct Saved {
    typename Mixer::Saved mixer;
    Matrix<T> mixed;
    typename FeedForward<T>::Saved feed_forward;
  };
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("FilterBlock", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const MatrixView<T> mixed = ws.matrix<T>(y.rows(), y.cols());
    mixer.forward(x, mixed, ws);
    feed_forward.forward(mixed, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("FilterBlock", x, MatrixView<const T>(y));
    saved.mixed.resize(y.rows(), y.cols());
    mixer.forward(x, saved.mixed, saved.mixer, step.child(0), ws);
    feed_forward.forward(saved.mixed, y, saved.feed_forward, step.child(1), ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, FilterBlock& gradient,
                Workspace& ws) const {
    constexpr const char* name = "FilterBlock::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    check_shape(name, "saved", saved.mixed.view(), dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dmixed = ws.matrix<T>(dy.rows(), dy.cols());
    std::fill_n(dmixed.data(), dmixed.rows() * dmixed.cols(), T(0));
    feed_forward.backward(saved.mixed, dy, saved.feed_forward, dmixed, gradient.feed_forward, ws);
    mixer.backward(x, dmixed, saved.mixer, dx, gradient.mixer, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    check_shape(name, "y", y, x.values().rows(), x.cols());
  }
};

/// Serving forms. Immutable; threads may share them.
template <class T, class Frozen>
struct FrozenFilterSublayer {
  Frozen filter;
  LayerNorm<T> norm;
  Index output_cols(Index input_cols) const { return filter.output_cols(input_cols); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    filter.forward(x, y, ws);
    detail::ResidualNorm<T>::forward(norm, x.values(), y, ws);
  }
};
template <class T, class S = T>
struct FrozenFeedForward {
  FrozenDense<T, S> dense_1, dense_2;
  LayerNorm<T> norm;
  Index output_cols(Index input_cols) const { return dense_2.output_cols(dense_1.output_cols(input_cols)); }
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenFeedForward", "x", x, any_size, any_size);
    check_shape("FrozenFeedForward", "y", y, x.rows(), output_cols(x.cols()));
    const auto mark = ws.mark();
    const MatrixView<T> hidden = ws.matrix<T>(x.rows(), dense_2.input_cols());
    dense_1.forward(x, hidden, ws);
    dense_2.forward(hidden, y, ws);
    detail::ResidualNorm<T>::forward(norm, x, y, ws);
  }
};
template <class T, class Mixer, class Network>
struct FrozenFilterBlock {
  Mixer mixer;
  Network feed_forward;
  Index output_cols(Index input_cols) const { return feed_forward.output_cols(mixer.output_cols(input_cols)); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_jagged("FrozenFilterBlock", "x", x, any_size, any_size);
    check_shape("FrozenFilterBlock", "y", y, x.values().rows(), output_cols(x.cols()));
    const auto mark = ws.mark();
    const MatrixView<T> mixed = ws.matrix<T>(y.rows(), y.cols());
    mixer.forward(x, mixed, ws);
    feed_forward.forward(mixed, y, ws);
  }
};
template <class T, class Filter>
auto freeze(const FilterSublayer<T, Filter>& layer) {
  return FrozenFilterSublayer<T, decltype(freeze(layer.filter))>{freeze(layer.filter), layer.norm};
}
template <class T, class S = T>
FrozenFeedForward<T, S> freeze(const FeedForward<T>& layer, Weights<S> = {}) {
  return {FrozenDense<T, S>(layer.dense_1.weight, layer.dense_1.bias, layer.activation),
          FrozenDense<T, S>(layer.dense_2.weight, layer.dense_2.bias, Activation::none), layer.norm};
}
/// The mixer stays in T; the network's weights are kept in S.
template <class T, class Mixer, class S = T>
auto freeze(const FilterBlock<T, Mixer>& layer, Weights<S> weights = {}) {
  using Network = FrozenFeedForward<T, S>;
  return FrozenFilterBlock<T, decltype(freeze(layer.mixer)), Network>{freeze(layer.mixer), freeze(layer.feed_forward, weights)};
}

}  // namespace RECOPS_ABI
}  // namespace recops
