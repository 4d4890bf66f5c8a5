/// @file   recops/nn/residual.hpp
/// @brief  y = x + inner(x).
#pragma once
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// y = x + inner(x) around any layer that keeps the width (arXiv 1512.03385); a row or a sequence layer as `inner` is.
template <class T, class Inner>
struct Residual {
  static_assert(Layer<Inner, T>, "Residual needs a recops::Layer");
  using Input = LayerInput<T, Inner>;
  Inner inner;

  Residual() = default;
  explicit Residual(Inner l) : inner(std::move(l)) {}

  static constexpr auto fields() { return std::tuple{layer("inner", &Residual::inner)}; }
  using Saved = typename Inner::Saved;

  /// Throws `Error` unless the inner layer keeps the width.
  Index output_cols(Index input_cols) const {
    const Index out = inner.output_cols(input_cols);
    check_option("Residual", "inner output columns", out == input_cols, "as many as its input has", static_cast<double>(out));
    return out;
  }
  void forward(Input x, MatrixView<T> y, Workspace& ws) const {
    check(x, y);
    inner.forward(x, y, ws);
    add_rows(x, y);
  }
  void forward(Input x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check(x, y);
    inner.forward(x, y, saved, step.child(0), ws);
    add_rows(x, y);
  }
  void backward(Input x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Residual& gradient, Workspace& ws) const {
    const MatrixView<const T> values = JaggedView<const T>(x).values();
    check_shape("Residual::backward", "dy", dy, values.rows(), values.cols());
    if (!dx.empty()) check_shape("Residual::backward", "dx", dx, values.rows(), values.cols());
    inner.backward(x, dy, saved, dx, gradient.inner, ws);
    if (!dx.empty()) add_rows(dy, dx);
  }

  /// Lets the inner layer fold in what a training step gathered.
  void update(const Saved& saved) { detail::update_layer(inner, saved); }

 private:
  void check(Input x, MatrixView<T> y) const {
    const MatrixView<const T> values = JaggedView<const T>(x).values();
    output_cols(values.cols());
    check_shape("Residual", "y", y, values.rows(), values.cols());
  }
  static void add_rows(JaggedView<const T> x, MatrixView<T> y) {
    for (Index b = 0; b < y.rows(); ++b) simd::add(x.values().row(b), y.row(b), y.cols());
  }
};

/// `residual<float>(Dense<float>(...))`.
template <class T, class Inner>
Residual<T, Inner> residual(Inner inner) {
  return Residual<T, Inner>(std::move(inner));
}

/// Serving form of Residual.
template <class T, class Frozen>
struct FrozenResidual {
  Frozen inner;
  Index output_cols(Index input_cols) const { return inner.output_cols(input_cols); }
  template <class Input>
  requires requires(const Frozen& f, Input x, MatrixView<T> y, Workspace& ws) { f.forward(x, y, ws); }
  void forward(Input x, MatrixView<T> y, Workspace& ws) const {
    inner.forward(x, y, ws);
    const MatrixView<const T> values = JaggedView<const T>(x).values();
    for (Index b = 0; b < y.rows(); ++b) simd::add(values.row(b), y.row(b), y.cols());
  }
};
template <class T, class Inner>
auto freeze(const Residual<T, Inner>& r) {
  return FrozenResidual<T, decltype(freeze(r.inner))>{freeze(r.inner)};
}
template <class T, class Inner, class Weights>
auto freeze(const Residual<T, Inner>& r, Weights weights) {
  return FrozenResidual<T, decltype(freeze(r.inner, weights))>{freeze(r.inner, weights)};
}

}  // namespace RECOPS_ABI
}  // namespace recops
