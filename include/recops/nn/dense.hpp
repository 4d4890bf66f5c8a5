/// @file   recops/nn/dense.hpp
/// @brief  Linear layer, norm and activation as one unit: what `freeze` folds into a single pass.
#pragma once
#include <recops/nn/batch_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// No normalisation.
struct NoNorm {
  explicit NoNorm(Index = 0) {}
  static constexpr auto fields() { return std::tuple{}; }
  struct Saved {};
};

/// y = activation(norm(x W^T + b)). `Norm` is NoNorm, BatchNorm<T>, LayerNorm<T>, RmsNorm<T> or one of yours.
template <class T, class Norm = NoNorm>
struct Dense {
  Linear<T> linear;
  Norm norm;
  Activation activation = Activation::relu;

  Dense() = default;
  Dense(Index in, Index out, Activation f, Random& random)
      : linear(checked_size("Dense", "in", in), checked_size("Dense", "out", out), random), norm(out), activation(f) {}

  static constexpr auto fields() { return std::tuple{layer("linear", &Dense::linear), layer("norm", &Dense::norm)}; }

  /// `out`; throws `Error` unless the norm, whose parameters may have been loaded, fits.
  Index output_cols(Index input_cols) const {
    const Index out = linear.output_cols(input_cols);
    if constexpr (requires { norm.output_cols(out); }) norm.output_cols(out);
    return out;
  }
  struct Saved {
    Matrix<T> z;  ///< [B, out], before the norm
    Matrix<T> n;  ///< [B, out], before the activation; empty without norm
    typename Norm::Saved norm;
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check(x, y);
    const T* const bias = linear.bias.empty() ? nullptr : linear.bias.data();
    simd::gemm<T>(simd::plain(x), simd::transposed(linear.weight.view()),
                  {.bias = bias, .activation = normed ? Activation::none : activation}, y, ws);
    if constexpr (normed) {
      norm.forward(y, y, ws);
      activate(y, y);
    }
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check(x, y);
    saved.z.resize(y.rows(), y.cols());
    if constexpr (normed) {
      saved.n.resize(y.rows(), y.cols());
      // Whether the norm takes these rows must be known before y is written: only it writes here.
      recops::linear<T>(x, linear.weight, linear.bias, saved.z, ws);
      norm.forward(saved.z, saved.n, saved.norm, step, ws);
      activate(saved.n, y);
    } else {
      recops::linear<T>(x, linear.weight, linear.bias, saved.z, ws);
      activate(saved.z, y);
    }
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Dense& gradient,
                Workspace& ws) const {
    backward(x, dy, saved, dx, false, gradient, ws);
  }
  /// With `fresh` dx holds nothing yet and is written.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, bool fresh, Dense& gradient,
                Workspace& ws) const {
    constexpr const char* name = "Dense::backward";
    const Matrix<T>& before = normed ? saved.n : saved.z;
    check_shape(name, "saved", saved.z.view(), x.rows(), linear.weight.rows());
    check_shape(name, "saved", before.view(), x.rows(), linear.weight.rows());
    check_shape(name, "dy", dy, x.rows(), linear.weight.rows());
    if constexpr (normed) {  // the norm is the first to write, linear the last to look
      if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), linear.weight.cols());
      check_gradient_shapes(name, *this, gradient);
    }
    const auto mark = ws.mark();
    const MatrixView<T> d = ws.matrix<T>(dy.rows(), dy.cols());
    T* y = ws.take<T>(dy.cols());
    for (Index b = 0; b < dy.rows(); ++b) {
      simd::activate(activation, before.row(b), y, dy.cols());
      simd::activate_backward(activation, before.row(b), y, dy.row(b), d.row(b), dy.cols());
    }
    if constexpr (normed) {
      const MatrixView<T> dz = ws.matrix<T>(dy.rows(), dy.cols());
      for (Index b = 0; b < dz.rows(); ++b) std::fill_n(dz.row(b), dz.cols(), T(0));
      norm.backward(saved.z, d, saved.norm, dz, gradient.norm, ws);
      through(x, dz, dx, fresh, gradient.linear, ws);
    } else {
      through(x, d, dx, fresh, gradient.linear, ws);
    }
  }
  /// Folds the statistics of a training step into the norm's running ones, where it has any.
  void update(const Saved& saved) { detail::update_layer(norm, saved.norm); }

 private:
  static constexpr bool normed = !std::is_same_v<Norm, NoNorm>;
  void check(MatrixView<const T> x, MatrixView<T> y) const {
    check_shape("Dense", "x", x, any_size, linear.weight.cols());
    check_shape("Dense", "y", y, x.rows(), output_cols(x.cols()));
    if (!linear.bias.empty()) check_size("Dense", "bias", VectorView<const T>(linear.bias), linear.weight.rows());
  }
  void through(MatrixView<const T> x, MatrixView<const T> dz, MatrixView<T> dx, bool fresh, Linear<T>& gradient,
               Workspace& ws) const {
    detail::linear_backward<T>(x, linear.weight, dz, dx, fresh, gradient.weight, gradient.bias, ws);
  }
  void activate(MatrixView<const T> z, MatrixView<T> y) const {
    for (Index b = 0; b < y.rows(); ++b) simd::activate(activation, z.row(b), y.row(b), y.cols());
  }
};

/// Serving form of a Dense whose norm depends on the row: packed product, norm, activation. Immutable; threads may share it.
template <class T, class Norm, class S = T>
struct FrozenNormedDense {
  FrozenDense<T, S> linear;
  Norm norm;
  Activation activation = Activation::none;
  Index output_cols(Index input_cols) const { return linear.output_cols(input_cols); }
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    linear.forward(x, y, ws);
    norm.forward(y, y, ws);
    for (Index b = 0; b < y.rows(); ++b) simd::activate(activation, y.row(b), y.row(b), y.cols());
  }
};

/// Serving form: without norm, or with a batch norm, which is folded into weights and bias in double, a single pass.
template <class T, class Norm, class S = T>
auto freeze(const Dense<T, Norm>& layer, Weights<S> = {}) {
  const Linear<T>& l = layer.linear;
  if constexpr (std::is_same_v<Norm, NoNorm>) {
    return FrozenDense<T, S>(l.weight, l.bias, layer.activation);
  } else if constexpr (std::is_same_v<Norm, BatchNorm<T>>) {
    const BatchNorm<T>& n = layer.norm;
    const Index out = l.weight.rows();
    constexpr const char* name = "freeze(Dense)";
    if (!l.bias.empty()) check_size(name, "bias", VectorView<const T>(l.bias), out);
    detail::check_norm<T>(name, MatrixView<const T>(nullptr, 0, out, out), n.weight, n.bias, 1, n.options.epsilon);
    check_size(name, "running_mean", VectorView<const T>(n.running_mean), out);
    check_size(name, "running_variance", VectorView<const T>(n.running_variance), out);
    Matrix<T> weight = l.weight;
    Vector<T> bias(out);
    for (Index j = 0; j < out; ++j) {
      const double gain = n.weight.empty() ? 1.0 : static_cast<double>(n.weight[j]);
      const double scale = gain / std::sqrt(static_cast<double>(n.running_variance[j]) + n.options.epsilon);
      const double b = l.bias.empty() ? 0.0 : static_cast<double>(l.bias[j]);
      for (Index i = 0; i < weight.cols(); ++i) weight(j, i) = static_cast<T>(scale * static_cast<double>(weight(j, i)));
      bias[j] = static_cast<T>((b - static_cast<double>(n.running_mean[j])) * scale +
                               (n.bias.empty() ? 0.0 : static_cast<double>(n.bias[j])));
    }
    return FrozenDense<T, S>(weight, bias, layer.activation);
  } else {
    layer.output_cols(l.weight.cols());
    return FrozenNormedDense<T, Norm, S>{FrozenDense<T, S>(l.weight, l.bias, Activation::none), layer.norm, layer.activation};
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
