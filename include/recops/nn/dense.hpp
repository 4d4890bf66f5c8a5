/// @file   recops/nn/dense.hpp
/// @brief  Linear layer and activation as one unit: what `freeze` folds into a single pass.
#pragma once
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// y = activation(x W^T + b).
template <class T>
struct Dense {
  Linear<T> linear;
  Activation activation = Activation::relu;

  Dense() = default;
  Dense(Index in, Index out, Activation f, Random& random) : linear(in, out, random), activation(f) {}

  static constexpr auto fields() { return std::tuple{layer("linear", &Dense::linear)}; }

  Index output_cols(Index input_cols) const { return linear.output_cols(input_cols); }
  struct Saved {
    Matrix<T> z;  ///< [B, out], before the activation
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check(x, y);
    simd::gemm<T>(simd::plain(x), simd::transposed(linear.weight.view()),
                  {.bias = linear.bias.empty() ? nullptr : linear.bias.data(), .activation = activation}, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check(x, y);
    saved.z.resize(y.rows(), y.cols());
    recops::linear<T>(x, linear.weight, linear.bias, saved.z, ws);
    for (Index b = 0; b < y.rows(); ++b) simd::activate(activation, saved.z.row(b), y.row(b), y.cols());
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Dense& gradient,
                Workspace& ws) const {
    check_shape("Dense::backward", "saved", saved.z.view(), x.rows(), linear.weight.rows());
    check_shape("Dense::backward", "dy", dy, x.rows(), linear.weight.rows());
    const auto mark = ws.mark();
    const MatrixView<T> dz = ws.matrix<T>(dy.rows(), dy.cols());
    T* y = ws.take<T>(dy.cols());
    for (Index b = 0; b < dy.rows(); ++b) {
      simd::activate(activation, saved.z.row(b), y, dy.cols());
      simd::activate_backward(activation, saved.z.row(b), y, dy.row(b), dz.row(b), dy.cols());
    }
    linear.backward(x, dz, {}, dx, gradient.linear, ws);
  }

 private:
  void check(MatrixView<const T> x, MatrixView<T> y) const {
    check_shape("Dense", "x", x, any_size, linear.weight.cols());
    check_shape("Dense", "y", y, x.rows(), linear.weight.rows());
    if (!linear.bias.empty()) check_size("Dense", "bias", VectorView<const T>(linear.bias), linear.weight.rows());
  }
};

template <class T>
FrozenDense<T> freeze(const Dense<T>& layer) {
  return FrozenDense<T>(layer.linear.weight, layer.linear.bias, layer.activation);
}

}  // namespace RECOPS_ABI
}  // namespace recops
