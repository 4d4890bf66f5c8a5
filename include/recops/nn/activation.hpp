/// @file   recops/nn/activation.hpp
/// @brief  Activations as layers: any of `Activation`, and the learned ones, PReLU and Dice.
#pragma once
#include <recops/nn/batch_norm.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/simd/activation.hpp>
#include <recops/simd/chained_sum.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// y = f(x), number by number: `Activate<float>{Activation::gelu}`. A linear layer with an activation is faster as `Dense`.
template <class T>
struct Activate {
  Activation activation = Activation::relu;

  static constexpr auto fields() { return std::tuple{}; }
  Index output_cols(Index input_cols) const { return input_cols; }
  struct Saved {};  ///< backward needs the input only
  /// y may be x. Throws `Error` for shapes that disagree.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace&) const {
    check_shape("Activate", "x", x, any_size, any_size);
    check_shape("Activate", "y", y, x.rows(), x.cols());
    for (Index b = 0; b < x.rows(); ++b) simd::activate(activation, x.row(b), y.row(b), x.cols());
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  /// Adds to dx unless it is empty.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, Activate&, Workspace& ws) const {
    check_shape("Activate::backward", "x", x, any_size, any_size);
    check_shape("Activate::backward", "dy", dy, x.rows(), x.cols());
    if (dx.empty()) return;
    check_shape("Activate::backward", "dx", dx, x.rows(), x.cols());
    const auto mark = ws.mark();
    T *const y = ws.take<T>(x.cols()), *const d = ws.take<T>(x.cols());
    for (Index b = 0; b < x.rows(); ++b) {
      simd::activate(activation, x.row(b), y, x.cols());
      simd::activate_backward(activation, x.row(b), y, dy.row(b), d, x.cols());
      simd::add(d, dx.row(b), x.cols());
    }
  }
};

/// y = x where x > 0, else slope x with a learned slope for all columns (one) or for each (arXiv 1502.01852). PyTorch's PReLU. The
/// derivative at 0 is the slope. NaN stays NaN.
template <class T>
struct PRelu {
  Vector<T> weight;  ///< [1] or [n], the slopes

  PRelu() = default;
  explicit PRelu(Index slopes, T start = T(0.25)) : weight(checked_size("PRelu", "slopes", slopes), start) {}

  static constexpr auto fields() { return std::tuple{parameter("weight", &PRelu::weight)}; }
  /// Throws `Error` unless there is one slope or one per column.
  Index output_cols(Index input_cols) const {
    check_option("PRelu", "input columns", weight.size() == 1 || weight.size() == input_cols, "one slope, or one per column",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  struct Saved {};
  /// y may be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("PRelu", "x", x, any_size, any_size);
    output_cols(x.cols());
    check_shape("PRelu", "y", y, x.rows(), x.cols());
    const auto mark = ws.mark();
    const T* const slope = slopes(x.cols(), ws);
    for (Index b = 0; b < x.rows(); ++b) {
      const T* const px = x.row(b);
      T* const py = y.row(b);
      simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto v = load(px + i);
        store(py + i, xsimd::select(v > decltype(v)(T(0)), v, v * load(slope + i)));
      });
    }
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, PRelu& gradient,
                Workspace& ws) const {
    constexpr const char* name = "PRelu::backward";
    check_shape(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    check_shape(name, "dy", dy, x.rows(), x.cols());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const Index n = x.cols();
    const T* const slope = slopes(n, ws);
    T* const dslope = ws.take<T>(n);
    std::fill_n(dslope, n, T(0));
    simd::ChainedSum<T> sum(dslope, n, ws);
    for (Index b = 0; b < x.rows(); ++b) {
      const T *const px = x.row(b), *const py = dy.row(b);
      T *const out = dx.empty() ? nullptr : dx.row(b), *const ds = sum.next();
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        using B = simd::Batch<T>;
        const B v = load(px + i), d = load(py + i), zero(T(0));
        const auto above = v > zero;
        store(ds + i, load(ds + i) + xsimd::select(above, zero, d * v));
        if (out) store(out + i, load(out + i) + xsimd::select(above, d, d * load(slope + i)));
      });
    }
    sum.finish();
    if (gradient.weight.empty()) return;
    if (weight.size() == 1) {
      gradient.weight[0] += simd::sum(dslope, n);
    } else {
      simd::add(dslope, gradient.weight.data(), n);
    }
  }

 private:
  const T* slopes(Index n, Workspace& ws) const {
    if (weight.size() == n) return weight.data();
    T* const all = ws.take<T>(n);
    std::fill_n(all, n, weight[0]);
    return all;
  }
};

/// Dice of DIN (arXiv 1706.06978, section 5.3): y = p x + (1 - p) alpha x with p = sigmoid((x - mean) / sqrt(variance + epsilon)),
/// column by column; statistics of the batch when training (two rows or more), running ones when serving.
template <class T>
struct Dice {
  Vector<T> alpha;  ///< [n], started at 0
  BatchNorm<T> bn;  ///< without weight and bias; holds the running statistics

  Dice() = default;
  explicit Dice(Index n, BatchNormOptions options = {.epsilon = 1e-8})
      : alpha(checked_size("Dice", "n", n), T(0)), bn(n, options) {
    bn.weight = Vector<T>();
    bn.bias = Vector<T>();
  }

  static constexpr auto fields() { return std::tuple{parameter("alpha", &Dice::alpha), layer("bn", &Dice::bn)}; }
  /// Throws `Error` unless there is one alpha per column.
  Index output_cols(Index input_cols) const {
    check_option("Dice", "input columns", alpha.size() == input_cols, "as many as alpha has", static_cast<double>(input_cols));
    return input_cols;
  }
  struct Saved {
    typename BatchNorm<T>::Saved bn;
    Matrix<T> p;  ///< [B, n], the gate
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check(x, y);
    const auto mark = ws.mark();
    const MatrixView<T> p = ws.matrix<T>(x.rows(), x.cols());
    bn.forward(x, p, ws);
    mix(x, p, y);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check(x, y);
    saved.p.resize(x.rows(), x.cols());
    bn.forward(x, saved.p, saved.bn, step, ws);
    mix(x, saved.p, y);
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Dice& gradient,
                Workspace& ws) const {
    constexpr const char* name = "Dice::backward";
    check_shape(name, "x", x, any_size, alpha.size());
    check_shape(name, "saved", saved.p.view(), x.rows(), x.cols());
    check_shape(name, "dy", dy, x.rows(), x.cols());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dnormal = ws.matrix<T>(x.rows(), x.cols());
    simd::ChainedSum<T> sum(gradient.alpha.data(), gradient.alpha.size(), ws);
    for (Index b = 0; b < x.rows(); ++b) {
      const T *const px = x.row(b), *const d = dy.row(b), *const gate = saved.p.row(b);
      T *const out = dx.empty() ? nullptr : dx.row(b), *const dn = dnormal.row(b);
      T* const dalpha = gradient.alpha.empty() ? nullptr : sum.next();
      simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        using B = simd::Batch<T>;
        const B v = load(px + i), g = load(d + i), p = load(gate + i), a = load(alpha.data() + i), one(T(1));
        if (dalpha) store(dalpha + i, simd::mul_add(g * (one - p), v, load(dalpha + i)));
        store(dn + i, g * v * (one - a) * p * (one - p));
        if (out) store(out + i, simd::mul_add(g, simd::mul_add(one - p, a, p), load(out + i)));
      });
    }
    sum.finish();
    if (!dx.empty()) bn.backward(x, dnormal, saved.bn, dx, gradient.bn, ws);
  }
  /// Folds the statistics of a training step into the running ones.
  void update(const Saved& saved) { bn.update(saved.bn); }

 private:
  void check(MatrixView<const T> x, MatrixView<T> y) const {
    check_shape("Dice", "x", x, any_size, alpha.size());
    check_shape("Dice", "y", y, x.rows(), x.cols());
  }
  /// p becomes sigmoid(p), y the mixture.
  void mix(MatrixView<const T> x, MatrixView<T> p, MatrixView<T> y) const {
    for (Index b = 0; b < x.rows(); ++b) {
      simd::activate(Activation::sigmoid, p.row(b), p.row(b), x.cols());
      const T *const px = x.row(b), *const gate = p.row(b);
      T* const out = y.row(b);
      simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        using B = simd::Batch<T>;
        const B v = load(px + i), g = load(gate + i);
        store(out + i, v * simd::mul_add(B(T(1)) - g, load(alpha.data() + i), g));
      });
    }
  }
};

/// Serving form of `Dice`: the running statistics as one multiply-add, everything in one pass. Immutable; threads may share it.
template <class T>
struct FrozenDice {
  Vector<T> alpha, scale, shift;  ///< [n]; p = sigmoid(scale x + shift)

  Index output_cols(Index input_cols) const {
    check_option("FrozenDice", "input columns", alpha.size() == input_cols, "as many as alpha has",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  /// y may be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace&) const {
    check_shape("FrozenDice", "x", x, any_size, alpha.size());
    check_shape("FrozenDice", "y", y, x.rows(), x.cols());
    for (Index b = 0; b < x.rows(); ++b) {
      const T* const px = x.row(b);
      T* const out = y.row(b);
      simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        using B = simd::Batch<T>;
        const B v = load(px + i);
        const B p = simd::activate(Activation::sigmoid, simd::mul_add(v, load(scale.data() + i), load(shift.data() + i)));
        store(out + i, v * simd::mul_add(B(T(1)) - p, load(alpha.data() + i), p));
      });
    }
  }
};

/// Serving forms: the first two have nothing to pack.
template <class T>
Activate<T> freeze(const Activate<T>& layer) {
  return layer;
}
template <class T>
PRelu<T> freeze(const PRelu<T>& layer) {
  return layer;
}
template <class T>
FrozenDice<T> freeze(const Dice<T>& layer) {
  constexpr const char* name = "freeze(Dice)";
  const Index n = layer.alpha.size();
  check_size(name, "running_mean", VectorView<const T>(layer.bn.running_mean), n);
  check_size(name, "running_variance", VectorView<const T>(layer.bn.running_variance), n);
  FrozenDice<T> frozen{layer.alpha, Vector<T>(n), Vector<T>(n)};
  for (Index j = 0; j < n; ++j) {
    const double scale = 1 / std::sqrt(static_cast<double>(layer.bn.running_variance[j]) + layer.bn.options.epsilon);
    frozen.scale[j] = static_cast<T>(scale);
    frozen.shift[j] = static_cast<T>(-scale * static_cast<double>(layer.bn.running_mean[j]));
  }
  return frozen;
}

}  // namespace RECOPS_ABI
}  // namespace recops
