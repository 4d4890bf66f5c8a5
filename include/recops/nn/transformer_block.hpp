/// @file   recops/nn/transformer_block.hpp
/// @brief  Self-attention and a feed-forward network with residuals and norms, on jagged sequences.
///
///     norm after (default)    h = norm1(x + attention(x)),        y = norm2(h + W2 f(W1 h))        Vaswani et al., arXiv 1706.03762
///     norm before             h = x + attention(norm1(x)),        y = h + W2 f(W1 norm2(h))        Xiong et al., arXiv 2002.04745
///
/// Names and layout are those of PyTorch's TransformerEncoderLayer (batch first; dropout of attention weights is not offered).
/// Cost per sequence of length L: 8 L E^2 + 4 L^2 E (half of it if causal) + 4 L E F flops; nothing [L, L] is formed.
#pragma once
#include <recops/nn/dropout.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/multihead_attention.hpp>

namespace recops {

/// Options of `TransformerBlock`.
struct TransformerBlockOptions {
  Index heads = 1;                           ///< divides the width
  Index hidden = 0;                          ///< width of the feed-forward network; 0: four times the block's
  Activation activation = Activation::relu;  ///< of the feed-forward network
  bool norm_first = false;                   ///< norm before attention and network, instead of after
  bool causal = false;                       ///< row i of a sequence sees rows j <= i
  double dropout = 0;  ///< in training, of the attention's output, the hidden activations and the network's output
};

inline namespace RECOPS_ABI {

/// A sequence layer `[total, E]` to `[total, E]`. `Norm` is LayerNorm<T>, RmsNorm<T> or one of yours, `Attention` any sequence layer that
/// keeps the width. A NaN stays in its sequence.
template <class T, class Norm = LayerNorm<T>, class Attention = MultiheadAttention<T>>
struct TransformerBlock {
  Attention self_attn;
  Linear<T> linear1, linear2;  ///< [F, E], [E, F]
  Norm norm1, norm2;
  TransformerBlockOptions options;

  TransformerBlock() = default;
  /// Throws `Error` for options out of range.
  TransformerBlock(Index width, const TransformerBlockOptions& o, Random& random)
      : TransformerBlock(Attention(checked_size("TransformerBlock", "width", width), o.heads, random), width, o, random) {
    self_attn.causal = o.causal;
  }
  /// Around an attention of one's own: `heads` and `causal` are its affair.
  TransformerBlock(Attention attention, Index width, const TransformerBlockOptions& o, Random& random)
      : self_attn(std::move(attention)),
        linear1(checked_size("TransformerBlock", "width", width), o.hidden > 0 ? o.hidden : 4 * width, random),
        linear2(o.hidden > 0 ? o.hidden : 4 * width, width, random),
        norm1(width),
        norm2(width),
        options(o) {
    check_option("TransformerBlock", "hidden", o.hidden >= 0, "hidden >= 0, where 0 is four times the width",
                 static_cast<double>(o.hidden));
    check_option("TransformerBlock", "dropout", 0 <= o.dropout && o.dropout < 1, "0 <= dropout < 1", o.dropout);
  }

  static constexpr auto fields() {
    return std::tuple{layer("self_attn", &TransformerBlock::self_attn), layer("linear1", &TransformerBlock::linear1),
                      layer("linear2", &TransformerBlock::linear2), layer("norm1", &TransformerBlock::norm1),
                      layer("norm2", &TransformerBlock::norm2)};
  }

  /// E; throws `Error` unless the parts fit each other and the input.
  Index output_cols(Index input_cols) const {
    self_attn.output_cols(input_cols);
    if constexpr (requires { norm1.output_cols(input_cols); }) {
      norm1.output_cols(input_cols);
      norm2.output_cols(input_cols);
    }
    return linear2.output_cols(linear1.output_cols(input_cols));
  }

  struct Saved {
    typename Attention::Saved attention;
    typename Norm::Saved norm1, norm2;
    Matrix<T> first, middle, second;  ///< [total, E]: norm1's output (input if it comes after), h, and norm2's likewise
    Matrix<T> z, hidden;              ///< [total, F]: before the activation, where backward needs it; after it and dropout
    typename Dropout<T>::Saved dropout[3];
  };

  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("TransformerBlock", x, MatrixView<const T>(y));
    const MatrixView<const T> rows = x.values();
    const auto mark = ws.mark();
    const MatrixView<T> h = ws.matrix<T>(rows.rows(), rows.cols());
    if (options.norm_first) {
      norm1.forward(rows, h, ws);  // not to y: attention may yet find that a sequence is too long for it
      self_attn.forward(x.with_values(MatrixView<const T>(h)), y, ws);
      sum(rows, y, h);
      norm2.forward(h, y, ws);
      feed(y, y, ws);
      add(h, y);
    } else {
      self_attn.forward(x, h, ws);
      add(rows, h);
      norm1.forward(h, h, ws);
      feed(h, y, ws);
      add(h, y);
      norm2.forward(y, y, ws);
    }
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("TransformerBlock", x, MatrixView<const T>(y));
    const MatrixView<const T> rows = x.values();
    for (Matrix<T>* m : {&saved.first, &saved.middle, &saved.second}) m->resize(rows.rows(), rows.cols());
    saved.z.resize(keeps_input() ? rows.rows() : 0, linear1.weight.rows());
    saved.hidden.resize(rows.rows(), linear1.weight.rows());
    const auto attend = [&](MatrixView<const T> in) {
      self_attn.forward(x.with_values(in), y, saved.attention, step.child(0), ws);
      drop(0, y, saved, step, ws);
    };
    const auto feed_saved = [&](MatrixView<const T> in) {
      if (keeps_input()) {
        linear1.forward(in, saved.z, ws);
        for (Index b = 0; b < in.rows(); ++b)
          simd::activate(options.activation, saved.z.row(b), saved.hidden.row(b), saved.z.cols());
      } else {
        feed1(in, saved.hidden, ws);
      }
      drop(1, saved.hidden, saved, step, ws);
      linear2.forward(saved.hidden, y, ws);
      drop(2, y, saved, step, ws);
    };
    if (options.norm_first) {
      norm1.forward(rows, saved.first, saved.norm1, step.child(4), ws);
      attend(saved.first);
      sum(rows, y, saved.middle);
      norm2.forward(saved.middle, saved.second, saved.norm2, step.child(5), ws);
      feed_saved(saved.second);
      add(saved.middle, y);
    } else {
      attend(rows);
      sum(rows, y, saved.first);
      norm1.forward(saved.first, saved.middle, saved.norm1, step.child(4), ws);
      feed_saved(saved.middle);
      sum(saved.middle, y, saved.second);
      norm2.forward(saved.second, y, saved.norm2, step.child(5), ws);
    }
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, TransformerBlock& gradient,
                Workspace& ws) const {
    constexpr const char* name = "TransformerBlock::backward";
    check(name, x, dy);
    const MatrixView<const T> rows = x.values();
    const Index n = rows.rows(), width = rows.cols(), hidden = linear1.weight.rows();
    if (!dx.empty()) check_shape(name, "dx", dx, n, width);
    for (const Matrix<T>* m : {&saved.first, &saved.middle, &saved.second}) check_shape(name, "saved", m->view(), n, width);
    check_shape(name, "saved", saved.z.view(), keeps_input() ? n : 0, hidden);
    check_shape(name, "saved", saved.hidden.view(), n, hidden);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto zeros = [&] {
      const MatrixView<T> m = ws.matrix<T>(n, width);
      std::fill_n(m.data(), n * width, T(0));
      return m;
    };
    // Through the network: d of its input is added to `din`.
    const auto feed_backward = [&](MatrixView<const T> in, MatrixView<const T> dout, MatrixView<T> din) {
      const auto inner = ws.mark();
      const MatrixView<T> dh = ws.matrix<T>(n, hidden);
      detail::linear_backward<T>(saved.hidden, linear2.weight, undrop(2, dout, saved, ws), dh, true, gradient.linear2.weight,
                                 gradient.linear2.bias, ws);
      const MatrixView<const T> kept = undrop(1, dh, saved, ws);
      T* const a = ws.take<T>(hidden);
      for (Index b = 0; b < n; ++b) {
        const T *activated = saved.hidden.row(b), *z = keeps_input() ? saved.z.row(b) : activated;
        if (options.dropout > 0) {  // what was kept of it is scaled
          simd::activate(options.activation, z, a, hidden);
          activated = a;
        }
        simd::activate_backward(options.activation, z, activated, kept.row(b), dh.row(b), hidden);
      }
      linear1.backward(in, dh, {}, din, gradient.linear1, ws);
    };
    const auto attend_backward = [&](MatrixView<const T> in, MatrixView<const T> dout, MatrixView<T> din) {
      self_attn.backward(x.with_values(in), undrop(0, dout, saved, ws), saved.attention, din, gradient.self_attn, ws);
    };
    const MatrixView<T> dh = zeros();
    if (options.norm_first) {
      const MatrixView<T> dsecond = zeros(), dfirst = zeros();
      add(dy, dh);
      feed_backward(saved.second, dy, dsecond);
      norm2.backward(saved.middle, dsecond, saved.norm2, dh, gradient.norm2, ws);
      attend_backward(saved.first, dh, dfirst);
      norm1.backward(rows, dfirst, saved.norm1, dx, gradient.norm1, ws);
      if (!dx.empty()) add(dh, dx);
    } else {
      const MatrixView<T> dfirst = zeros();
      norm2.backward(saved.second, dy, saved.norm2, dh, gradient.norm2, ws);
      feed_backward(saved.middle, dh, dh);  // read before it is added to
      norm1.backward(saved.first, dh, saved.norm1, dfirst, gradient.norm1, ws);
      attend_backward(rows, dfirst, dx);
      if (!dx.empty()) add(dfirst, dx);
    }
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    check_shape(name, "y", y, x.values().rows(), output_cols(x.cols()));
    if (!linear1.bias.empty()) check_size(name, "linear1.bias", VectorView<const T>(linear1.bias), linear1.weight.rows());
    if (!linear2.bias.empty()) check_size(name, "linear2.bias", VectorView<const T>(linear2.bias), linear2.weight.rows());
  }
  static void add(MatrixView<const T> x, MatrixView<T> y) {
    for (Index b = 0; b < y.rows(); ++b) simd::add(x.row(b), y.row(b), y.cols());
  }
  static void sum(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> y) {
    for (Index r = 0; r < y.rows(); ++r) {
      const T *const pa = a.row(r), *const pb = b.row(r);
      T* const out = y.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(
          y.cols(), [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(out + i, load(pa + i) + load(pb + i)); });
    }
  }
  void feed(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    const auto mark = ws.mark();
    const MatrixView<T> hidden = ws.matrix<T>(x.rows(), linear1.weight.rows());
    feed1(x, hidden, ws);
    linear2.forward(hidden, y, ws);
  }
  /// hidden = activation(x W1^T + b1)
  void feed1(MatrixView<const T> x, MatrixView<T> hidden, Workspace& ws) const {
    simd::gemm<T>(simd::plain(x), simd::transposed(linear1.weight.view()),
                  {.bias = linear1.bias.empty() ? nullptr : linear1.bias.data(), .activation = options.activation}, hidden, ws);
  }
  /// Whether the activation's derivative takes more than what came out of it.
  bool keeps_input() const {
    const Activation f = options.activation;
    return options.dropout > 0 || f == Activation::silu || f == Activation::gelu || f == Activation::softplus;
  }
  void drop(Index which, MatrixView<T> m, Saved& saved, const Step& step, Workspace& ws) const {
    if (options.dropout > 0) Dropout<T>(options.dropout).forward(m, m, saved.dropout[which], step.child(1 + which), ws);
  }
  /// The gradient before dropout `which`; lives in `ws`, or is `dout` itself.
  MatrixView<const T> undrop(Index which, MatrixView<const T> dout, const Saved& saved, Workspace& ws) const {
    if (options.dropout == 0) return dout;
    const MatrixView<T> d = ws.matrix<T>(dout.rows(), dout.cols());
    std::fill_n(d.data(), d.rows() * d.cols(), T(0));
    Dropout<T> none;
    Dropout<T>(options.dropout).backward(dout, dout, saved.dropout[which], d, none, ws);
    return d;
  }
};

/// Serving form of TransformerBlock: packed weights, activation in the product's pass. Immutable; threads may share it.
template <class T, class Norm, class Attention, class S = T>
class FrozenTransformerBlock {
 public:
  template <class Live>
  FrozenTransformerBlock(const TransformerBlock<T, Norm, Live>& block, Attention attention)
      : attention_(std::move(attention)),
        linear1_(block.linear1.weight, block.linear1.bias, block.options.activation),
        linear2_(block.linear2.weight, block.linear2.bias, Activation::none),
        norm1_(block.norm1),
        norm2_(block.norm2),
        norm_first_(block.options.norm_first) {
    block.output_cols(linear1_.input_cols());
  }
  Index output_cols(Index input_cols) const { return linear2_.output_cols(linear1_.output_cols(input_cols)); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_jagged("FrozenTransformerBlock", "x", x, any_size, any_size);
    check_shape("FrozenTransformerBlock", "y", y, x.values().rows(), output_cols(x.cols()));
    const MatrixView<const T> rows = x.values();
    const auto mark = ws.mark();
    const MatrixView<T> h = ws.matrix<T>(rows.rows(), rows.cols());
    const MatrixView<T> hidden = ws.matrix<T>(rows.rows(), linear2_.input_cols());
    if (norm_first_) {
      norm1_.forward(rows, h, ws);
      attention_.forward(x.with_values(MatrixView<const T>(h)), y, ws);
      for (Index b = 0; b < h.rows(); ++b) std::copy_n(rows.row(b), h.cols(), h.row(b));
      add(y, h);
      norm2_.forward(h, y, ws);
      linear1_.forward(y, hidden, ws);
      linear2_.forward(hidden, y, ws);
      add(h, y);
    } else {
      attention_.forward(x, h, ws);
      add(rows, h);
      norm1_.forward(h, h, ws);
      linear1_.forward(h, hidden, ws);
      linear2_.forward(hidden, y, ws);
      add(h, y);
      norm2_.forward(y, y, ws);
    }
  }

 private:
  static void add(MatrixView<const T> x, MatrixView<T> y) {
    for (Index b = 0; b < y.rows(); ++b) simd::add(x.row(b), y.row(b), y.cols());
  }
  Attention attention_;
  FrozenDense<T, S> linear1_, linear2_;
  Norm norm1_, norm2_;
  bool norm_first_;
};
template <class T, class Norm, class Live, class S = T>
auto freeze(const TransformerBlock<T, Norm, Live>& block, Weights<S> weights = {}) {
  auto attention = freeze(block.self_attn, weights);
  return FrozenTransformerBlock<T, Norm, decltype(attention), S>(block, std::move(attention));
}

}  // namespace RECOPS_ABI
}  // namespace recops
