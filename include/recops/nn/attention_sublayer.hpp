/// @file   recops/nn/attention_sublayer.hpp
/// @brief  Attention with its residual and norm: y = norm(x + dropout(attention(x over z))), z another sequence or x itself.
///
/// Shapes      x, y [total_N, E] and z [total_L, Dk]: sequences of the same users
/// Edge cases  A row that has nothing to attend to keeps norm(x + the output's bias).  A NaN stays with the rows that see it.
/// Cost        that of MultiheadAttention; one pass for the norm.   Errors: as there; outputs untouched.
#pragma once
#include <recops/nn/dropout.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/multihead_attention.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Names are those of `fields()`: `attention` and `norm`.
template <class T>
struct AttentionSublayer {
  MultiheadAttention<T> attention;
  LayerNorm<T> norm;
  double dropout = 0;  ///< of the attention's output, in training

  AttentionSublayer() = default;
  /// Rows of `width`; z is `key_width` wide (0: as x). Throws `Error` unless `heads` divides `width` and 0 <= dropout < 1.
  AttentionSublayer(Index width, Index heads, double p, Random& random, Index key_width = 0)
      : attention(checked_size("AttentionSublayer", "width", width), heads, random, true,
                  checked_size("AttentionSublayer", "key_width", key_width), key_width),
        norm(width),
        dropout(p) {
    check_option("AttentionSublayer", "dropout", 0 <= p && p < 1, "0 <= dropout < 1", p);
  }
  static constexpr auto fields() {
    return std::tuple{layer("attention", &AttentionSublayer::attention), layer("norm", &AttentionSublayer::norm)};
  }

  struct Saved {
    typename MultiheadAttention<T>::Saved attention;
    typename Dropout<T>::Saved dropout;
    typename LayerNorm<T>::Saved norm;
    Matrix<T> sum;  ///< [total_N, E], what the norm reads
  };
  void forward(JaggedView<const T> x, JaggedView<const T> z, MatrixView<T> y, Workspace& ws) const {
    norm.output_cols(attention.embed());
    attention.forward(x, z, y, ws);
    add(x.values(), y);
    norm.forward(y, y, ws);
  }
  void forward(JaggedView<const T> x, JaggedView<const T> z, MatrixView<T> y, Saved& saved, const Step& step,
               Workspace& ws) const {
    norm.output_cols(attention.embed());
    saved.sum.resize(x.values().rows(), attention.embed());
    attention.forward(x, z, saved.sum, saved.attention, step.child(0), ws);
    if (dropout > 0) Dropout<T>(dropout).forward(saved.sum, saved.sum, saved.dropout, step.child(1), ws);
    add(x.values(), saved.sum);
    norm.forward(saved.sum, y, saved.norm, step, ws);
  }
  /// What `backward` checks, for layers that write before they call it.
  void check_backward(const char* name, JaggedView<const T> x, JaggedView<const T> z, MatrixView<const T> dy, const Saved& saved,
                      MatrixView<T> dx, MatrixView<T> dz, const AttentionSublayer& gradient) const {
    check_shape(name, "dy", dy, x.values().rows(), attention.embed());
    check_shape(name, "saved", saved.sum.view(), dy.rows(), dy.cols());
    check_shape(name, "saved", saved.norm.moments.view(), dy.rows(), 2 * norm.options.groups);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    attention.check_backward(name, x, z, z, {}, dy, saved.attention, dx, dz, dz, gradient.attention);
  }
  /// Adds to dx and dz (either unless empty; the same view where z is x) and to `gradient`.
  void backward(JaggedView<const T> x, JaggedView<const T> z, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx,
                MatrixView<T> dz, AttentionSublayer& gradient, Workspace& ws) const {
    check_backward("AttentionSublayer::backward", x, z, dy, saved, dx, dz, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dsum = ws.matrix<T>(dy.rows(), dy.cols());
    std::fill_n(dsum.data(), dsum.rows() * dsum.cols(), T(0));
    norm.backward(saved.sum, dy, saved.norm, dsum, gradient.norm, ws);
    MatrixView<T> d = dsum;
    if (dropout > 0) {
      d = ws.matrix<T>(dy.rows(), dy.cols());
      std::fill_n(d.data(), d.rows() * d.cols(), T(0));
      Dropout<T> none;
      Dropout<T>(dropout).backward(dsum, dsum, saved.dropout, d, none, ws);
    }
    attention.backward(x, z, d, saved.attention, dx, dz, gradient.attention, ws);
    if (!dx.empty()) add(dsum, dx);
  }

 private:
  static void add(MatrixView<const T> from, MatrixView<T> to) {
    for (Index r = 0; r < to.rows(); ++r) simd::add(from.row(r), to.row(r), to.cols());
  }
};

/// Serving form. Immutable; threads may share it.
template <class T, class S = T>
class FrozenAttentionSublayer {
 public:
  FrozenAttentionSublayer() = default;
  explicit FrozenAttentionSublayer(const AttentionSublayer<T>& layer)
      : attention_(freeze(layer.attention, Weights<S>())), norm_(layer.norm) {
    norm_.output_cols(layer.attention.embed());
  }
  /// As `AttentionSublayer::forward`.
  void forward(JaggedView<const T> x, JaggedView<const T> z, MatrixView<T> y, Workspace& ws) const {
    attention_.forward(x, z, y, ws);
    for (Index r = 0; r < y.rows(); ++r) simd::add(x.values().row(r), y.row(r), y.cols());
    norm_.forward(y, y, ws);
  }

 private:
  FrozenMultiheadAttention<T, S> attention_;
  LayerNorm<T> norm_;
};
template <class T, class S = T>
FrozenAttentionSublayer<T, S> freeze(const AttentionSublayer<T>& layer, Weights<S> = {}) {
  return FrozenAttentionSublayer<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
