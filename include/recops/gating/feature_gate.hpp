/// @file   recops/gating/feature_gate.hpp
/// @brief  HoME's feature gate: every group of experts sees the input through low-rank gates of its own.
///
///     u = x . sum_l a_l 2 sigmoid(U_l V_l x)          a = softmax(W x + c) over the L gates
///
/// Shapes      x, u [B, D]   down [L d, D]: V_l owns rows l d .. (l + 1) d   up [L D, d]: U_l owns rows l D .. (l + 1) D
///             gate [L, D], gate_bias [L] or empty
/// Ranges      every factor lies in (0, 2), so u keeps the signs of x.   up = 0 makes u = x (within 4 ulp): a good beginning.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row.   No part of the gate stops gradients.
/// Precision   sums in T.   Same bits for any number of threads.
/// Cost        4 B L d D flops (4 B D^2 at the usual d = D / L); backward twice that.   Training keeps B L (D + d + 1) numbers.
/// Errors      Error if shapes disagree; outputs untouched.
/// Reference   Wang et al., "HoME", arXiv 2408.05430, equations 8 to 10.
#pragma once
#include <recops/gating/packed_experts.hpp>

namespace recops {

/// Parameters of a feature gate, or their gradients.
template <class T>
struct FeatureGateView {
  MatrixView<T> down = {}, up = {}, gate = {};
  VectorView<T> gate_bias = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// L
template <class T>
Index check_feature_gate(const char* name, MatrixView<const T> x, FeatureGateView<const T> p) {
  const Index loras = p.gate.rows(), cols = p.gate.cols();
  check_option(name, "rows of gate", loras >= 1, "one or more", static_cast<double>(loras));
  check_shape(name, "down", p.down, any_size, cols);
  check_option(name, "rows of down", p.down.rows() > 0 && p.down.rows() % loras == 0, "a multiple of the rows of gate",
               static_cast<double>(p.down.rows()));
  check_shape(name, "up", p.up, loras * cols, p.down.rows() / loras);
  if (!p.gate_bias.empty()) check_size(name, "gate_bias", p.gate_bias, loras);
  check_shape(name, "x", x, any_size, cols);
  return loras;
}

/// u = x . sum_l 2 a_l s_l for one row; `s` are the sigmoids, one gate after the other.
template <class T>
void apply_feature_gate(const T* x, const T* s, const T* a, Index loras, Index cols, T* u) {
  simd::for_each_vector<T, simd::DefaultArch>(cols, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
    auto f = load(s + j) * simd::Batch<T>(2 * a[0]);
    for (Index l = 1; l < loras; ++l) f = simd::mul_add(load(s + l * cols + j), simd::Batch<T>(2 * a[l]), f);
    store(u + j, load(x + j) * f);
  });
}

}  // namespace detail

/// Shapes of what a training forward keeps for backward.
struct FeatureGateSaved {
  Index low, sigmoids, shares;  ///< columns of the three, each with B rows
};
inline FeatureGateSaved feature_gate_saved(Index inputs, Index loras, Index rank) {
  return {loras * rank, loras * inputs, loras};
}

/// Training: besides `out [B, D]`, writes `low [B, L d]` (V_l x), `sigmoids [B, L D]` and `shares [B, L]` (a).
template <Real T>
void feature_gate_train(MatrixView<const T> x, FeatureGateView<const T> p, MatrixView<T> low, MatrixView<T> sigmoids,
                        MatrixView<T> shares, MatrixView<T> out, Workspace& ws) {
  const char* const name = "feature_gate";
  const Index loras = detail::check_feature_gate(name, x, p), cols = p.gate.cols();
  check_shape(name, "low", low, x.rows(), p.down.rows());
  check_shape(name, "sigmoids", sigmoids, x.rows(), loras * cols);
  check_shape(name, "shares", shares, x.rows(), loras);
  check_shape(name, "out", out, x.rows(), cols);
  if (x.rows() == 0) return;
  detail::block_linear<T>(x, p.down, {}, 1, detail::even_blocks(p.down.rows(), 1), Activation::none, low, ws);
  detail::block_linear<T>(low, p.up, {}, loras, detail::even_blocks(p.up.rows(), loras), Activation::sigmoid, sigmoids, ws);
  detail::block_linear<T>(x, p.gate, p.gate_bias, 1, detail::even_blocks(loras, 1), Activation::none, shares, ws);
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      simd::softmax<T>(shares.row(r), loras);
      detail::apply_feature_gate<T>(x.row(r), sigmoids.row(r), shares.row(r), loras, cols, out.row(r));
    }
  });
}

/// `out [B, D]`. Scratch B L (D + d + 1).
template <Real T>
void feature_gate(MatrixView<const T> x, FeatureGateView<const T> p, MatrixView<T> out, Workspace& ws) {
  const Index loras = detail::check_feature_gate("feature_gate", x, p);
  const auto mark = ws.mark();
  feature_gate_train<T>(x, p, ws.matrix<T>(x.rows(), p.down.rows()), ws.matrix<T>(x.rows(), p.up.rows()),
                        ws.matrix<T>(x.rows(), loras), out, ws);
}

/// Adds to `dx [B, D]` and to each gradient of a parameter that is not empty.
template <Real T>
void feature_gate_backward(MatrixView<const T> x, FeatureGateView<const T> p, MatrixView<const T> low,
                           MatrixView<const T> sigmoids, MatrixView<const T> shares, MatrixView<const T> dout, MatrixView<T> dx,
                           FeatureGateView<T> dp, Workspace& ws) {
  const char* const name = "feature_gate_backward";
  const Index loras = detail::check_feature_gate(name, x, p), cols = p.gate.cols(), rows = x.rows();
  check_shape(name, "low", low, rows, p.down.rows());
  check_shape(name, "sigmoids", sigmoids, rows, loras * cols);
  check_shape(name, "shares", shares, rows, loras);
  check_shape(name, "dout", dout, rows, cols);
  if (!dx.empty()) check_shape(name, "dx", dx, rows, cols);
  if (!dp.down.empty()) check_shape(name, "ddown", dp.down, p.down.rows(), p.down.cols());
  if (!dp.up.empty()) check_shape(name, "dup", dp.up, p.up.rows(), p.up.cols());
  if (!dp.gate.empty()) check_shape(name, "dgate", dp.gate, loras, cols);
  if (!dp.gate_bias.empty()) check_size(name, "dgate_bias", dp.gate_bias, loras);
  if (rows == 0) return;
  const auto mark = ws.mark();
  const MatrixView<T> dlogits = ws.matrix<T>(rows, loras * cols), dlow = ws.matrix<T>(rows, low.cols()),
                      dgates = ws.matrix<T>(rows, loras);
  std::fill_n(dlow.data(), rows * low.cols(), T(0));
  detail::for_row_blocks(rows, ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      const T *up = dout.row(r), *in = x.row(r), *a = shares.row(r);
      T* const da = dgates.row(r);
      T mean = T(0);
      for (Index l = 0; l < loras; ++l) {
        const T* const s = sigmoids.row(r) + l * cols;
        T* const d = dlogits.row(r) + l * cols;
        const simd::Batch<T> scale(2 * a[l]), one(T(1));
        simd::for_each_vector<T, simd::DefaultArch>(cols, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
          const auto sigmoid = load(s + j), through = load(up + j) * load(in + j) * sigmoid;  // of F_l, times half of F_l
          store(d + j, through);
          if (!dx.empty()) store(dx.row(r) + j, simd::mul_add(load(up + j) * scale, sigmoid, load(dx.row(r) + j)));
        });
        da[l] = 2 * simd::sum<T>(d, cols);
        mean += a[l] * da[l];
        simd::for_each_vector<T, simd::DefaultArch>(cols, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(d + j, scale * load(d + j) * (one - load(s + j)));
        });
      }
      for (Index l = 0; l < loras; ++l) da[l] = a[l] * (da[l] - mean);
    }
  });
  detail::block_linear_backward<T>(low, p.up, loras, detail::even_blocks(p.up.rows(), loras), dlogits, dlow, dp.up, {}, ws);
  detail::block_linear_backward<T>(x, p.down, 1, detail::even_blocks(p.down.rows(), 1), dlow, dx, dp.down, {}, ws);
  detail::block_linear_backward<T>(x, p.gate, 1, detail::even_blocks(loras, 1), dgates, dx, dp.gate, dp.gate_bias, ws);
}

/// A feature gate with its parameters: `down.weight`, `up.weight`, `gate.weight`, `gate.bias`; the L pairs of `nn.Linear` without
/// bias, concatenated along the output.
template <Real T>
struct FeatureGate {
  Matrix<T> down, up, gate;
  Vector<T> gate_bias;

  struct Saved {
    Matrix<T> low, sigmoids, shares;
  };

  FeatureGate() = default;
  /// `rank` 0: inputs / loras, which must be whole. `down` and `gate` as `torch.nn.Linear`, `up` 0: the gate starts as the identity.
  /// Errors are reported as `name`'s.
  FeatureGate(Index inputs, Index loras, Index rank, Random& random, const char* name = "FeatureGate") {
    check_option(name, "inputs", inputs >= 1, "inputs >= 1", static_cast<double>(inputs));
    check_option(name, "loras", loras >= 1 && loras <= max_experts, "1 to 65536", static_cast<double>(loras));
    check_option(name, "rank", rank >= 1 || (rank == 0 && inputs % loras == 0), "a rank, or 0 if loras divide the inputs",
                 static_cast<double>(rank));
    if (rank == 0) rank = inputs / loras;
    down = std::move(Linear<T>(inputs, loras * rank, random, false).weight);
    up = Matrix<T>(loras * inputs, rank, T(0));
    Linear<T> last(inputs, loras, random);
    gate = std::move(last.weight);
    gate_bias = std::move(last.bias);
  }

  static constexpr auto fields() {
    return std::tuple{parameter("down.weight", &FeatureGate::down), parameter("up.weight", &FeatureGate::up),
                      parameter("gate.weight", &FeatureGate::gate), parameter("gate.bias", &FeatureGate::gate_bias)};
  }
  FeatureGateView<const T> view() const { return {down, up, gate, gate_bias}; }
  FeatureGateView<T> view() { return {down, up, gate, gate_bias}; }

  Index input_cols() const { return gate.cols(); }
  Index output_cols(Index cols) const {
    check_option("FeatureGate", "input columns", cols == input_cols(), "as many as the weight has", static_cast<double>(cols));
    return cols;
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { feature_gate<T>(x, view(), y, ws); }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    detail::check_feature_gate<T>("feature_gate", x, view());
    saved.low.resize(x.rows(), down.rows());
    saved.sigmoids.resize(x.rows(), up.rows());
    saved.shares.resize(x.rows(), gate.rows());
    feature_gate_train<T>(x, view(), saved.low, saved.sigmoids, saved.shares, y, ws);
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, FeatureGate& gradient,
                Workspace& ws) const {
    feature_gate_backward<T>(x, view(), saved.low, saved.sigmoids, saved.shares, dy, dx, gradient.view(), ws);
  }
};

/// Serving form of `FeatureGate`: `down` and the logits are one product, sigmoids happen on the way out of `up`. Immutable; threads
/// may share it.
template <Real T, class S = T>
class FrozenFeatureGate {
 public:
  FrozenFeatureGate() = default;
  explicit FrozenFeatureGate(const FeatureGate<T>& layer)
      : loras_(layer.gate.rows()), cols_(layer.gate.cols()), low_(layer.down.rows()) {
    detail::check_feature_gate<T>("freeze", MatrixView<const T>(nullptr, 0, cols_), layer.view());
    Matrix<T> first(low_ + loras_, cols_);
    std::copy_n(layer.down.data(), low_ * cols_, first.data());
    std::copy_n(layer.gate.data(), loras_ * cols_, first.data() + low_ * cols_);
    Vector<T> bias(low_ + loras_, T(0));
    std::copy_n(layer.gate_bias.data(), layer.gate_bias.size(), bias.data() + low_);
    first_.add(first, bias, 1, detail::even_blocks(first.rows(), 1), Activation::none);
    up_.add(layer.up, {}, loras_, detail::even_blocks(layer.up.rows(), loras_), Activation::sigmoid);
  }
  Index input_cols() const { return cols_; }
  Index output_cols(Index) const { return cols_; }
  /// Numbers of scratch per row.
  Index row_values() const { return first_.row_values() + up_.row_values(); }

  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenFeatureGate", "x", x, any_size, cols_);
    check_shape("FrozenFeatureGate", "y", y, x.rows(), cols_);
    detail::for_serving_blocks(x.rows(), detail::serving_rows<T>(row_values()), ws,
                               [&](Index at, Index count, Workspace& scratch) {
                                 const auto mark = scratch.mark();
                                 const MatrixView<T> first = detail::staggered<T>(count, low_ + loras_, scratch),
                                                     s = detail::staggered<T>(count, loras_ * cols_, scratch);
                                 const MatrixView<const T> in = detail::unaliased<T>(x.middle_rows(at, count), scratch);
                                 first_.forward(in, first, scratch);
                                 up_.forward(first.middle_cols(0, low_), s, scratch);
                                 for (Index r = 0; r < count; ++r) {
                                   T* const a = first.row(r) + low_;
                                   simd::softmax<T>(a, loras_);
                                   detail::apply_feature_gate<T>(in.row(r), s.row(r), a, loras_, cols_, y.row(at + r));
                                 }
                               });
  }

 private:
  detail::PackedLayers<T, S> first_, up_;
  Index loras_ = 0, cols_ = 0, low_ = 0;
};

/// The serving form.
template <Real T, class S = T>
FrozenFeatureGate<T, S> freeze(const FeatureGate<T>& layer, Weights<S> = {}) {
  return FrozenFeatureGate<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
