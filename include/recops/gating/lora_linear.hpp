/// @file   recops/gating/lora_linear.hpp
/// @brief  A linear layer with a low-rank adapter: what a user, a domain or a fine-tuning adds to weights that stay as they are.
///
///     y = x W^T + b + (alpha / r) B A x
///
/// Shapes      x [N, D]   W [O, D]   b [O], or empty   A [r, D]   B [O, r]   y [N, O]
/// Training    a gradient with an empty `base_layer` trains the adapter alone. A and B must not both be 0: neither would ever get a
///             gradient; a new layer draws A and has B = 0, the base's own outputs to the bit.
/// Serving     `freeze` merges: W + (alpha / r) B A, computed in double, equal to rounding; no cost remains.
/// Cost        2 N D O + 2 N r (D + O) flops.   A NaN stays in its row.   Same bits for any number of threads.
/// Errors      Error if shapes disagree; outputs untouched.
/// Reference   Hu et al., "LoRA", arXiv 2106.09685, equation 3.   Names as in PEFT's state_dict.
#pragma once
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {

template <Real T>
struct LoraLinear {
  Linear<T> base_layer;
  Matrix<T> down;      ///< A [r, D]
  Matrix<T> up;        ///< B [O, r]
  double alpha = 1.0;  ///< the adapter is scaled with alpha / r

  LoraLinear() = default;
  /// On weights that are there; A as `torch.nn.Linear` would draw it, B = 0. Throws `Error` unless rank >= 1.
  LoraLinear(Linear<T> base, Index rank, double scale, Random& random) : base_layer(std::move(base)), alpha(scale) {
    check_option("LoraLinear", "rank", rank >= 1, "rank >= 1", static_cast<double>(rank));
    up = Matrix<T>(base_layer.weight.rows(), rank, T(0));
    down = std::move(Linear<T>(base_layer.weight.cols(), rank, random, false).weight);
  }
  static constexpr auto fields() {
    return std::tuple{layer("base_layer", &LoraLinear::base_layer), parameter("lora_A.weight", &LoraLinear::down),
                      parameter("lora_B.weight", &LoraLinear::up)};
  }

  Index rank() const { return down.rows(); }
  Index output_cols(Index cols) const { return base_layer.output_cols(cols); }
  struct Saved {
    Matrix<T> q;  ///< [N, r], (alpha / r) A x
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("LoraLinear::forward", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    run(x, y, ws.matrix<T>(x.rows(), rank()), ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("LoraLinear::forward", x, MatrixView<const T>(y));
    saved.q.resize(x.rows(), rank());
    run(x, y, saved.q, ws);
  }
  /// Adds to `dx` unless empty and to `gradient`, where an empty `base_layer` is frozen.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, LoraLinear& gradient,
                Workspace& ws) const {
    constexpr const char* name = "LoraLinear::backward";
    check(name, x, dy);
    check_shape(name, "saved", saved.q.view(), x.rows(), rank());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    if (x.rows() == 0) return;
    const auto mark = ws.mark();
    linear_backward<T>(x, base_layer.weight, dy, dx, gradient.base_layer.weight, gradient.base_layer.bias, ws);
    linear_backward<T>(saved.q, up, dy, {}, gradient.up, {}, ws);
    if (dx.empty() && gradient.down.empty()) return;
    const MatrixView<T> dq = ws.matrix<T>(x.rows(), rank());
    simd::gemm<T>(simd::plain(dy), simd::plain(up.view()), {}, dq, ws);
    scale(dq);
    linear_backward<T>(x, down, dq, dx, gradient.down, {}, ws);
  }

  /// The same outputs without an adapter.
  Linear<T> merged() const {
    check("LoraLinear::merged", MatrixView<const T>(nullptr, 0, down.cols()), MatrixView<const T>(nullptr, 0, up.rows()));
    Linear<T> all = base_layer;
    const double s = alpha / static_cast<double>(rank());
    for (Index o = 0; o < up.rows(); ++o)
      for (Index i = 0; i < down.cols(); ++i) {
        double sum = 0;
        for (Index j = 0; j < rank(); ++j) sum += static_cast<double>(up(o, j)) * static_cast<double>(down(j, i));
        all.weight(o, i) = static_cast<T>(static_cast<double>(all.weight(o, i)) + s * sum);
      }
    return all;
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> y) const {
    const Matrix<T>& w = base_layer.weight;
    check_shape(name, "lora_A", down.view(), any_size, w.cols());
    check_shape(name, "lora_B", up.view(), w.rows(), down.rows());
    check_option(name, "rank", rank() >= 1, "rank >= 1", static_cast<double>(rank()));
    check_option(name, "alpha", std::isfinite(alpha), "a finite alpha", alpha);
    check_shape(name, "x", x, any_size, w.cols());
    check_shape(name, "y", y, x.rows(), w.rows());
    if (!base_layer.bias.empty()) check_size(name, "bias", VectorView<const T>(base_layer.bias), w.rows());
  }
  void scale(MatrixView<T> q) const {
    const T s = static_cast<T>(alpha / static_cast<double>(rank()));
    for (Index r = 0; r < q.rows(); ++r) simd::scale<T>(s, q.row(r), q.row(r), q.cols());
  }
  void run(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> q, Workspace& ws) const {
    simd::gemm<T>(simd::plain(x), simd::transposed(down.view()), {}, q, ws);
    scale(q);
    linear<T>(x, base_layer.weight, base_layer.bias, y, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(q)), simd::transposed(up.view()), {.accumulate = true}, y, ws);
  }
};

/// The serving form: merged.
template <Real T, class S = T>
FrozenDense<T, S> freeze(const LoraLinear<T>& layer, Weights<S> weights = {}) {
  return freeze(layer.merged(), weights);
}

}  // namespace RECOPS_ABI
}  // namespace recops
