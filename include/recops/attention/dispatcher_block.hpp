/// @file   recops/attention/dispatcher_block.hpp
/// @brief  The block around dispatcher attention: attention, norm, feed-forward network; and its serving form.
///
///     norm after (default)   h = norm1(x + y),          z = norm2(h + W2 f(W1 h))      y, next: attention/dispatcher_layer.hpp
///     norm before            h = x + y of norm1(x),     z = h + W2 f(W1 norm2(h))
///
/// Blocks hand their experts on as layers do.
///
/// Shapes      x, z [total, D] jagged; experts, next [B k, D]; mask [total] or empty.
/// Edge cases  as in attention/dispatcher_attention.hpp; a hidden token is not read and its row of z is 0.
/// Errors      `Error` if shapes or options disagree; outputs untouched.
#pragma once
#include <recops/attention/frozen_dispatcher.hpp>
#include <recops/nn/dropout.hpp>
#include <recops/nn/layer_norm.hpp>

namespace recops {

/// Options of `DispatcherBlock`.
struct DispatcherBlockOptions {
  Index heads = 1;                           ///< divides the width
  Index hidden = 0;                          ///< width of the feed-forward network; 0: four times the block's
  Activation activation = Activation::relu;  ///< of the feed-forward network
  bool norm_first = false;                   ///< norm before attention and network, instead of after
  bool causal = false;                       ///< token t sees what experts read up to t
  double dropout = 0;                        ///< in training, of the attention's output and the network's
};

inline namespace RECOPS_ABI {

/// Dispatcher attention, norms and feed-forward network with residuals.
template <class T>
struct DispatcherBlock {
  DispatcherAttention<T> attention;
  Linear<T> linear1, linear2;  ///< [F, D], [D, F]
  LayerNorm<T> norm1, norm2;
  DispatcherBlockOptions options;

  DispatcherBlock() = default;
  /// Throws `Error` for options out of range.
  DispatcherBlock(Index width, const DispatcherBlockOptions& o, Random& random)
      : attention(checked_size("DispatcherBlock", "width", width), o.heads, random),
        linear1(width, o.hidden > 0 ? o.hidden : 4 * width, random),
        linear2(o.hidden > 0 ? o.hidden : 4 * width, width, random),
        norm1(width),
        norm2(width),
        options(o) {
    check_option("DispatcherBlock", "hidden", o.hidden >= 0, "hidden >= 0, where 0 is four times the width",
                 static_cast<double>(o.hidden));
    check_option("DispatcherBlock", "dropout", 0 <= o.dropout && o.dropout < 1, "0 <= dropout < 1", o.dropout);
    attention.causal = o.causal;
  }

  static constexpr auto fields() {
    return std::tuple{layer("attention", &DispatcherBlock::attention), layer("linear1", &DispatcherBlock::linear1),
                      layer("linear2", &DispatcherBlock::linear2), layer("norm1", &DispatcherBlock::norm1),
                      layer("norm2", &DispatcherBlock::norm2)};
  }
  /// D
  Index width() const { return attention.width(); }

  struct Saved {
    typename DispatcherAttention<T>::Saved attention;
    typename LayerNorm<T>::Saved norm1, norm2;
    typename Dropout<T>::Saved dropout[2];
    Matrix<T> rows;                   ///< x, hidden rows 0
    Matrix<T> first, middle, second;  ///< norm1's output (input if it comes after), h, and norm2's likewise
    Matrix<T> z, hidden;              ///< [total, F], before and after the activation
  };

  /// z `[total, D]` and, unless empty, the next experts.
  void forward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<T> z,
               MatrixView<T> next, Workspace& ws) const {
    check("DispatcherBlock", x, experts, mask, "z", z);
    const auto mark = ws.mark();
    const MatrixView<const T> rows = detail::shown_rows(x.values(), mask, ws);
    const Index total = rows.rows(), e = width();
    const MatrixView<T> h = ws.matrix<T>(total, e), hidden = ws.matrix<T>(total, linear1.weight.rows());
    const MatrixView<T> normed = options.norm_first ? ws.matrix<T>(total, e) : h;
    if (options.norm_first) norm1.forward(rows, normed, ws);
    attention.forward(x.with_values(options.norm_first ? MatrixView<const T>(normed) : rows), experts, mask,
                      options.norm_first ? z : h, next, ws);
    if (options.norm_first) {
      sum(rows, z, h);
      norm2.forward(h, normed, ws);
    } else {
      add(rows, h);
      norm1.forward(h, h, ws);
    }
    simd::gemm<T>(simd::plain(MatrixView<const T>(normed)), simd::transposed(linear1.weight.view()),
                  {.bias = linear1.bias.empty() ? nullptr : linear1.bias.data(), .activation = options.activation}, hidden, ws);
    linear2.forward(hidden, z, ws);
    add(h, z);
    if (!options.norm_first) norm2.forward(z, z, ws);
    hide(mask, z);
  }
  void forward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<T> z,
               MatrixView<T> next, Saved& saved, const Step& step, Workspace& ws) const {
    check("DispatcherBlock", x, experts, mask, "z", z);
    const Index total = x.values().rows(), e = width();
    for (Matrix<T>* m : {&saved.first, &saved.middle, &saved.second}) m->resize(total, e);
    saved.z.resize(total, linear1.weight.rows());
    saved.hidden.resize(total, linear1.weight.rows());
    MatrixView<const T> rows = x.values();
    if (!mask.empty()) {
      const auto mark = ws.mark();
      const MatrixView<const T> shown = detail::shown_rows(rows, mask, ws);
      saved.rows.resize(total, e);
      for (Index i = 0; i < total; ++i) std::copy_n(shown.row(i), e, saved.rows.row(i));
      rows = saved.rows;
    }
    const auto feed = [&](MatrixView<const T> in) {
      linear1.forward(in, saved.z, ws);
      for (Index i = 0; i < total; ++i) simd::activate(options.activation, saved.z.row(i), saved.hidden.row(i), saved.z.cols());
      linear2.forward(saved.hidden, z, ws);
      drop(1, z, saved, step, ws);
    };
    if (options.norm_first) {
      norm1.forward(rows, saved.first, saved.norm1, step.child(3), ws);
      attention.forward(x.with_values(saved.first.view()), experts, mask, z, next, saved.attention, step.child(0), ws);
      drop(0, z, saved, step, ws);
      sum(rows, z, saved.middle);
      norm2.forward(saved.middle, saved.second, saved.norm2, step.child(4), ws);
      feed(saved.second);
      add(saved.middle, z);
    } else {
      attention.forward(x.with_values(rows), experts, mask, z, next, saved.attention, step.child(0), ws);
      drop(0, z, saved, step, ws);
      sum(rows, z, saved.first);
      norm1.forward(saved.first, saved.middle, saved.norm1, step.child(3), ws);
      feed(saved.middle);
      sum(saved.middle, z, saved.second);
      norm2.forward(saved.second, z, saved.norm2, step.child(4), ws);
    }
    hide(mask, z);
  }
  /// Adds to dx and dexperts (each unless empty) and to `gradient`; `dnext` is empty where nothing depends on the next experts.
  void backward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<const T> dz,
                MatrixView<const T> dnext, const Saved& saved, MatrixView<T> dx, MatrixView<T> dexperts,
                DispatcherBlock& gradient, Workspace& ws) const {
    constexpr const char* name = "DispatcherBlock::backward";
    check(name, x, experts, mask, "dz", dz);
    const Index total = x.values().rows(), e = width();
    if (!dx.empty()) check_shape(name, "dx", dx, total, e);
    if (!dexperts.empty()) check_shape(name, "dexperts", dexperts, experts.rows(), e);
    if (!dnext.empty()) {
      check_option(name, "dnext", !attention.causal, "none where causal", static_cast<double>(dnext.rows()));
      check_shape(name, "dnext", dnext, experts.rows(), e);
    }
    for (const Matrix<T>* m : {&saved.first, &saved.middle, &saved.second}) check_shape(name, "saved", m->view(), total, e);
    check_shape(name, "saved", saved.hidden.view(), total, linear1.weight.rows());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<const T> rows = mask.empty() ? x.values() : saved.rows.view(), dout = detail::shown_rows(dz, mask, ws);
    check_shape(name, "saved", rows, total, e);
    const auto zeros = [&] {
      const MatrixView<T> m = ws.matrix<T>(total, e);
      std::fill_n(m.data(), total * e, T(0));
      return m;
    };
    const auto feed_backward = [&](MatrixView<const T> in, MatrixView<const T> d, MatrixView<T> din) {
      const auto inner = ws.mark();
      const MatrixView<T> dh = ws.matrix<T>(total, linear1.weight.rows());
      detail::linear_backward<T>(saved.hidden, linear2.weight, undrop(1, d, saved, ws), dh, true, gradient.linear2.weight,
                                 gradient.linear2.bias, ws);
      for (Index i = 0; i < total; ++i)
        simd::activate_backward(options.activation, saved.z.row(i), saved.hidden.row(i), dh.row(i), dh.row(i), dh.cols());
      linear1.backward(in, dh, {}, din, gradient.linear1, ws);
    };
    const auto attend_backward = [&](MatrixView<const T> in, MatrixView<const T> d, MatrixView<T> din) {
      attention.backward(x.with_values(in), experts, mask, undrop(0, d, saved, ws), dnext, saved.attention, din, dexperts,
                         gradient.attention, ws);
    };
    const MatrixView<T> dh = zeros(), dfirst = zeros();
    if (options.norm_first) {
      const MatrixView<T> dsecond = zeros();
      add(dout, dh);
      feed_backward(saved.second, dout, dsecond);
      norm2.backward(saved.middle, dsecond, saved.norm2, dh, gradient.norm2, ws);
      attend_backward(saved.first, dh, dfirst);
      norm1.backward(rows, dfirst, saved.norm1, dx, gradient.norm1, ws);
      if (!dx.empty()) add(dh, dx);
    } else {
      norm2.backward(saved.second, dout, saved.norm2, dh, gradient.norm2, ws);
      feed_backward(saved.middle, dh, dh);  // read before it is added to
      norm1.backward(saved.first, dh, saved.norm1, dfirst, gradient.norm1, ws);
      attend_backward(rows, dfirst, dx);
      if (!dx.empty()) add(dfirst, dx);
    }
  }

  /// Throws `Error` unless the parameters, which may have been loaded, fit each other.
  void check_parameters(const char* name) const {
    attention.check_parameters(name);
    linear2.output_cols(linear1.output_cols(width()));
    check_shape(name, "linear2.weight", linear2.weight.view(), width(), any_size);
    if (!linear1.bias.empty()) check_size(name, "linear1.bias", VectorView<const T>(linear1.bias), linear1.weight.rows());
    if (!linear2.bias.empty()) check_size(name, "linear2.bias", VectorView<const T>(linear2.bias), width());
    for (const LayerNorm<T>* norm : {&norm1, &norm2})
      detail::check_norm<T>(name, MatrixView<const T>(nullptr, 0, width()), norm->weight, norm->bias, norm->options.groups,
                            norm->options.epsilon);
  }

 private:
  template <class Y>
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask,
             const char* output, MatrixView<Y> y) const {
    check_parameters(name);
    detail::check_dispatcher(name, width(), attention.heads(), x, experts, mask, output, y);
  }
  static void add(MatrixView<const T> x, MatrixView<T> y) {
    for (Index i = 0; i < y.rows(); ++i) simd::add<T>(x.row(i), y.row(i), y.cols());
  }
  static void sum(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> y) {
    for (Index i = 0; i < y.rows(); ++i) {
      std::copy_n(a.row(i), y.cols(), y.row(i));
      simd::add<T>(b.row(i), y.row(i), y.cols());
    }
  }
  static void hide(VectorView<const std::uint8_t> mask, MatrixView<T> y) {
    for (Index i = 0; !mask.empty() && i < y.rows(); ++i)
      if (mask[i] == 0) std::fill_n(y.row(i), y.cols(), T(0));
  }
  void drop(Index which, MatrixView<T> m, Saved& saved, const Step& step, Workspace& ws) const {
    if (options.dropout > 0) Dropout<T>(options.dropout).forward(m, m, saved.dropout[which], step.child(1 + which), ws);
  }
  MatrixView<const T> undrop(Index which, MatrixView<const T> dout, const Saved& saved, Workspace& ws) const {
    if (options.dropout == 0) return dout;
    const MatrixView<T> d = ws.matrix<T>(dout.rows(), dout.cols());
    std::fill_n(d.data(), d.rows() * d.cols(), T(0));
    Dropout<T> none;
    Dropout<T>(options.dropout).backward(dout, dout, saved.dropout[which], d, none, ws);
    return d;
  }
};

/// Serving form: packed weights, activation in the product's pass. Immutable; threads may share it.
template <class T, class S = T>
class FrozenDispatcherBlock {
 public:
  FrozenDispatcherBlock() = default;
  explicit FrozenDispatcherBlock(const DispatcherBlock<T>& block)
      : attention_(freeze(block.attention, Weights<S>())),
        linear1_(block.linear1.weight, block.linear1.bias, block.options.activation),
        linear2_(block.linear2.weight, block.linear2.bias, Activation::none),
        norm1_(block.norm1),
        norm2_(block.norm2),
        heads_(block.attention.heads()),
        norm_first_(block.options.norm_first) {
    block.check_parameters("freeze(DispatcherBlock)");
  }
  /// As `DispatcherBlock::forward`.
  void forward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<T> z,
               MatrixView<T> next, Workspace& ws) const {
    constexpr const char* name = "FrozenDispatcherBlock";
    const Index total = x.values().rows(), e = attention_.width();
    detail::check_dispatcher(name, e, heads_, x, experts, mask, "z", z);
    if (!next.empty()) check_shape(name, "next experts", next, experts.rows(), e);
    const auto mark = ws.mark();
    const MatrixView<const T> rows = detail::shown_rows(x.values(), mask, ws);
    const MatrixView<T> h = ws.matrix<T>(total, e), hidden = ws.matrix<T>(total, linear2_.input_cols());
    // Nothing is written to z before attention has checked what it is given.
    if (norm_first_) norm1_.forward(rows, h, ws);
    attention_.forward(x.with_values(norm_first_ ? MatrixView<const T>(h) : rows), experts, mask, norm_first_ ? z : h, next, ws);
    finish(rows, h, hidden, z, ws);
    for (Index i = 0; !mask.empty() && i < total; ++i)
      if (mask[i] == 0) std::fill_n(z.row(i), e, T(0));
  }

  /// As `FrozenDispatcherAttention::extend`, of a causal block.
  void extend(MatrixView<const T> x, MatrixView<const T> experts, DispatcherState<T>& state, MatrixView<T> z,
              Workspace& ws) const {
    constexpr const char* name = "FrozenDispatcherBlock::extend";
    const Index n = x.rows(), e = attention_.width();
    check_shape(name, "x", x, any_size, e);
    check_shape(name, "z", z, n, e);
    const auto mark = ws.mark();
    const MatrixView<T> h = ws.matrix<T>(n, e), hidden = ws.matrix<T>(n, linear2_.input_cols());
    if (norm_first_) norm1_.forward(x, h, ws);
    attention_.extend(norm_first_ ? MatrixView<const T>(h) : x, experts, state, norm_first_ ? z : h, ws);
    finish(x, h, hidden, z, ws);
  }

 private:
  /// What follows attention, whose output is in z with the norm before, else in h.
  void finish(MatrixView<const T> x, MatrixView<T> h, MatrixView<T> hidden, MatrixView<T> z, Workspace& ws) const {
    if (norm_first_) {
      for (Index i = 0; i < h.rows(); ++i) std::copy_n(x.row(i), h.cols(), h.row(i));
      add(z, h);
      norm2_.forward(h, z, ws);
    } else {
      add(x, h);
      norm1_.forward(h, h, ws);
    }
    linear1_.forward(norm_first_ ? MatrixView<const T>(z) : MatrixView<const T>(h), hidden, ws);
    linear2_.forward(hidden, z, ws);
    add(h, z);
    if (!norm_first_) norm2_.forward(z, z, ws);
  }
  static void add(MatrixView<const T> x, MatrixView<T> y) {
    for (Index i = 0; i < y.rows(); ++i) simd::add<T>(x.row(i), y.row(i), y.cols());
  }
  FrozenDispatcherAttention<T, S> attention_;
  FrozenDense<T, S> linear1_, linear2_;
  LayerNorm<T> norm1_, norm2_;
  Index heads_ = 1;
  bool norm_first_ = false;
};
template <class T, class S = T>
FrozenDispatcherBlock<T, S> freeze(const DispatcherBlock<T>& block, Weights<S> = {}) {
  return FrozenDispatcherBlock<T, S>(block);
}

}  // namespace RECOPS_ABI
}  // namespace recops
