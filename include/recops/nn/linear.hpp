/// @file   recops/nn/linear.hpp
/// @brief  y = x W^T + b, as function, layer and packed serving form.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/simd/chained_sum.hpp>
#include <recops/simd/gemm_quantized.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// y `[B, out]` = x `[B, in]` weight^T + bias, weight `[out, in]`, bias `[out]` or empty. Rows are independent: a NaN stays in its
/// row. 2 B in out flops. Throws `Error` for shapes that disagree.
template <Real T>
void linear(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, MatrixView<T> y, Workspace& ws) {
  check_shape("linear", "weight", weight, any_size, any_size);
  check_shape("linear", "x", x, any_size, weight.cols());
  if (!bias.empty()) check_size("linear", "bias", bias, weight.rows());
  check_shape("linear", "y", y, x.rows(), weight.rows());
  simd::gemm<T>(simd::plain(x), simd::transposed(weight), {.bias = bias.empty() ? nullptr : bias.data()}, y, ws);
}

namespace detail {

/// `linear_backward`; with `fresh` dx holds nothing yet and is written.
template <Real T>
void linear_backward(MatrixView<const T> x, MatrixView<const T> weight, MatrixView<const T> dy, MatrixView<T> dx, bool fresh,
                     MatrixView<T> dweight, VectorView<T> dbias, Workspace& ws) {
  check_shape("linear_backward", "weight", weight, any_size, any_size);
  check_shape("linear_backward", "x", x, any_size, weight.cols());
  check_shape("linear_backward", "dy", dy, x.rows(), weight.rows());
  if (!dx.empty()) check_shape("linear_backward", "dx", dx, x.rows(), weight.cols());
  if (!dweight.empty()) check_shape("linear_backward", "dweight", dweight, weight.rows(), weight.cols());
  if (!dbias.empty()) check_size("linear_backward", "dbias", dbias, weight.rows());
  if (!dx.empty()) simd::gemm<T>(simd::plain(dy), simd::plain(weight), {.accumulate = !fresh}, dx, ws);
  if (!dweight.empty()) simd::gemm<T>(simd::transposed(dy), simd::plain(x), {.accumulate = true}, dweight, ws);
  if (dbias.empty()) return;
  const auto mark = ws.mark();
  simd::ChainedSum<T> sum(dbias.data(), dbias.size(), ws);
  for (Index b = 0; b < dy.rows(); ++b) simd::add(dy.row(b), sum.next(), dbias.size());
  sum.finish();
}

}  // namespace detail

/// Adds dy W to dx, dy^T x to dweight and the column sums of dy to dbias, each unless empty.
template <Real T>
void linear_backward(MatrixView<const T> x, MatrixView<const T> weight, MatrixView<const T> dy, MatrixView<T> dx,
                     MatrixView<T> dweight, VectorView<T> dbias, Workspace& ws) {
  detail::linear_backward<T>(x, weight, dy, dx, false, dweight, dbias, ws);
}

/// Fully connected layer with PyTorch's layout, names and initialisation.
template <class T>
struct Linear {
  Matrix<T> weight;  ///< [out, in]
  Vector<T> bias;    ///< [out], empty for none

  Linear() = default;
  /// Uniform in +-1 / sqrt(in), as `torch.nn.Linear`.
  Linear(Index in, Index out, Random& random, bool with_bias = true)
      : weight(checked_size("Linear", "out", out), checked_size("Linear", "in", in)), bias(with_bias ? out : 0) {
    const double bound = in > 0 ? 1 / std::sqrt(static_cast<double>(in)) : 0;
    for (T& w : leaf_values(weight)) w = static_cast<T>(random.uniform(-bound, bound));
    for (T& b : bias) b = static_cast<T>(random.uniform(-bound, bound));
  }

  static constexpr auto fields() { return std::tuple{parameter("weight", &Linear::weight), parameter("bias", &Linear::bias)}; }

  /// `out`; throws `Error` unless the input has `in` columns.
  Index output_cols(Index input_cols) const {
    check_option("Linear", "input columns", input_cols == weight.cols(), "as many as weight has",
                 static_cast<double>(input_cols));
    return weight.rows();
  }
  struct Saved {};  ///< backward needs the input only
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { linear<T>(x, weight, bias, y, ws); }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, Linear& gradient,
                Workspace& ws) const {
    linear_backward<T>(x, weight, dy, dx, gradient.weight, gradient.bias, ws);
  }
};

/// Serving form of Linear and Dense: weights packed for the kernels, activation in the same pass. Immutable; threads may share it.
/// `S` is T, or for float BFloat16 or std::int8_t.
template <class T, class S = T>
class FrozenDense {
  static_assert(std::is_same_v<S, T> ||
                    (std::is_same_v<T, float> && (std::is_same_v<S, BFloat16> || std::is_same_v<S, std::int8_t>)),
                "weights are kept as they are, or of float layers in BFloat16 or std::int8_t");

 public:
  FrozenDense() = default;
  /// From weight `[out, in]` and bias `[out]` or empty. Throws `Error` for shapes that disagree.
  FrozenDense(MatrixView<const T> weight, VectorView<const T> bias, Activation activation)
      : in_(weight.cols()), out_(weight.rows()), activation_(activation) {
    check_shape("FrozenDense", "weight", weight, any_size, any_size);
    if (!bias.empty()) check_size("FrozenDense", "bias", bias, out_);
    panels_.resize(simd::packed_size<T>(in_, out_));
    bias_.resize(bias.size());
    if constexpr (std::is_same_v<S, std::int8_t>) {
      scale_.resize(out_);
      simd::pack<T>(simd::transposed(weight), panels_.data(), scale_.data());
    } else {
      simd::pack<T>(simd::transposed(weight), panels_.data());
    }
    std::copy(bias.begin(), bias.end(), bias_.begin());
  }
  Index input_cols() const { return in_; }
  /// `out`; throws `Error` unless the input has `in` columns.
  Index output_cols(Index input_cols) const {
    check_option("FrozenDense", "input columns", input_cols == in_, "as many as weight has", static_cast<double>(input_cols));
    return out_;
  }
  /// y `[B, out]` = activation(x `[B, in]` weight^T + bias). A row's bits do not depend on the batch it is in.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenDense", "x", x, any_size, in_);
    check_shape("FrozenDense", "y", y, x.rows(), out_);
    simd::gemm_packed<T>(simd::plain(x), panels_.data(), out_,
                         {.bias = bias_.empty() ? nullptr : bias_.data(),
                          .activation = activation_,
                          .column_scale = scale_.empty() ? nullptr : scale_.data()},
                         y, ws);
  }

 private:
  Vector<S> panels_;
  Vector<T> bias_, scale_;
  Index in_ = 0, out_ = 0;
  Activation activation_ = Activation::none;
};

/// The serving form of a layer.
template <class T, class S = T>
FrozenDense<T, S> freeze(const Linear<T>& layer, Weights<S> = {}) {
  return FrozenDense<T, S>(layer.weight, layer.bias, Activation::none);
}

}  // namespace RECOPS_ABI
}  // namespace recops
