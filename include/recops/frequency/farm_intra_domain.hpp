/// @file   recops/frequency/farm_intra_domain.hpp
/// @brief  FARM's frequency-aware module of one domain: low and high band of a behaviour sequence, weighed by a learned gate.
///
///     p = [mean_n x_n ; context]    (alpha, beta) = scale sigmoid(W2 relu(W1 p + b1) + b2)    y = alpha . low + beta . high
///
/// Shapes      x, y [total, D] with offsets [B + 1]   context [B, C]   alpha, beta one number per sequence or D
/// Edge cases  an empty sequence has mean 0 and no rows.   A NaN stays in its sequence (the mean carries it to all its channels).
/// Cost        band_mix plus the gate's 2 (D + C) H flops per sequence.
/// Errors      Error if shapes disagree; outputs untouched.
/// Gradient    of x (through the gate too), context and parameters; *adds*.
/// Reference   FARM, arXiv 2502.09375 (y); what the gate reads is our reconstruction: the mean is the DC bin, so the module commutes
///             with circular shifts.
#pragma once
#include <recops/frequency/band_mix.hpp>
#include <recops/nn/mlp.hpp>

namespace recops {

struct FarmIntraDomainOptions {
  Index length = 0;             ///< longest sequence
  Band band = {.ratio = 0.25};  ///< the low band
  Index context = 0;            ///< C, columns of what the gate reads besides the mean (user, target)
  Index hidden = 0;             ///< of the gate; 0: as wide as the sequence
  bool per_channel = false;     ///< gains per channel instead of one per sequence
  double gate_scale = 1;        ///< multiplies the sigmoid; with 2 gains start near 1: near the identity
  SequencePadding padding = {};
};

inline namespace RECOPS_ABI {

namespace detail {

template <class T, class Y>
void check_farm(const char* name, const FarmIntraDomainOptions& o, JaggedView<const T> x, MatrixView<const T> context,
                MatrixView<Y> y) {
  check_jagged(name, "x", x, any_size, any_size);
  const Index longest = x.longest();
  check_option(name, "x", longest <= o.length, "sequences of at most `length` rows", static_cast<double>(longest));
  if (o.context > 0) check_shape(name, "context", context, x.size(), o.context);
  check_option(name, "context", o.context > 0 || context.empty(), "none, as the layer was made without",
               static_cast<double>(context.cols()));
  check_shape(name, "y", y, x.values().rows(), x.cols());
}

template <class U>
BandGains<U> farm_gains(MatrixView<U> gains, Index first, Index count) {
  return {gains.middle_cols(first, count), GainRows::sequence};
}

/// What the gate reads: the mean of the valid rows, even where others are made for the transform, and the context.
template <class T>
void farm_summary(JaggedView<const T> x, MatrixView<const T> context, MatrixView<T> p) {
  const Index cols = x.cols();
  for (Index b = 0; b < x.size(); ++b) {
    std::fill_n(p.row(b), cols, T(0));
    for (Index n = 0; n < x.length(b); ++n) simd::add(x.values().row(x.begin(b) + n), p.row(b), cols);
    simd::scale(T(1) / static_cast<T>(std::max(x.length(b), Index{1})), p.row(b), p.row(b), cols);
    if (!context.empty()) std::copy_n(context.row(b), context.cols(), p.row(b) + cols);
  }
}

template <class T>
void farm_scale(const FarmIntraDomainOptions& o, MatrixView<T> z) {
  if (o.gate_scale == 1) return;
  for (Index b = 0; b < z.rows(); ++b) simd::scale(static_cast<T>(o.gate_scale), z.row(b), z.row(b), z.cols());
}

template <class T>
void farm_mix(const FarmIntraDomainOptions& o, const SpectralPlans<T>& plans, JaggedView<const T> x, MatrixView<const T> z,
              MatrixView<T> y, Workspace& ws) {
  const Index half = o.per_channel ? x.cols() : 1;
  forward_filled<T>(x, o.padding, o.length, y, ws, [&](JaggedView<const T> in, MatrixView<T> out) {
    band_mix<T>(in, farm_gains(z, 0, half), farm_gains(z, half, half), o.band, plans, out, ws);
  });
}

/// Inference with either form of the gate.
template <class T, class Gate>
void farm_forward(const char* name, const Gate& gate, const FarmIntraDomainOptions& o, const SpectralPlans<T>& plans,
                  JaggedView<const T> x, MatrixView<const T> context, MatrixView<T> y, Workspace& ws) {
  check_farm(name, o, x, context, y);
  const auto mark = ws.mark();
  const MatrixView<T> p = ws.matrix<T>(x.size(), x.cols() + o.context);
  const MatrixView<T> z = ws.matrix<T>(x.size(), o.per_channel ? 2 * x.cols() : 2);
  farm_summary<T>(x, context, p);
  gate.forward(p, z, ws);
  farm_scale<T>(o, z);
  farm_mix<T>(o, plans, x, z, y, ws);
}

}  // namespace detail

/// A sequence layer (without context) `[total, D]` to `[total, D]`. Each domain has one of its own.
template <class T>
struct FarmIntraDomain {
  Mlp<T> gate;  ///< D + C -> hidden -> 2 (alpha, beta) or 2 D
  FarmIntraDomainOptions options;
  SpectralPlans<T> plans;

  FarmIntraDomain() = default;
  /// Throws `Error` for options out of range.
  FarmIntraDomain(Index width, const FarmIntraDomainOptions& o, Random& random) : options(o) {
    constexpr const char* name = "FarmIntraDomain";
    check_option(name, "width", width >= 1, "width >= 1", static_cast<double>(width));
    check_option(name, "length", o.length >= 1, "length >= 1", static_cast<double>(o.length));
    check_option(name, "context", o.context >= 0, "context >= 0", static_cast<double>(o.context));
    check_option(name, "hidden", o.hidden >= 0, "hidden >= 0, where 0 is the width", static_cast<double>(o.hidden));
    check_option(name, "gate_scale", std::isfinite(o.gate_scale), "a finite number", o.gate_scale);
    detail::check_band(name, o.band);
    plans = o.padding.fill == SequenceFill::none ? SpectralPlans<T>(o.length) : SpectralPlans<T>::only(o.length);
    gate = Mlp<T>({width + o.context, o.hidden > 0 ? o.hidden : width, o.per_channel ? 2 * width : 2},
                  {.activation = Activation::relu, .output = Activation::sigmoid}, random);
    gate.last.linear.bias.fill(T(0));
  }

  static constexpr auto fields() { return std::tuple{layer("gate", &FarmIntraDomain::gate)}; }

  /// D
  Index width() const { return gate.hidden.empty() ? 0 : gate.hidden[0].linear.weight.cols() - options.context; }
  /// D; throws `Error` unless the input has as many columns and the gate fits it.
  Index output_cols(Index input_cols) const {
    check_option("FarmIntraDomain", "input columns", input_cols == width(), "as many as the gate was made for",
                 static_cast<double>(input_cols));
    const Index out = gate.output_cols(input_cols + options.context);
    check_option("FarmIntraDomain", "gate outputs", out == (options.per_channel ? 2 * input_cols : 2),
                 "two gains, per channel or in all", static_cast<double>(out));
    return input_cols;
  }

  struct Saved {
    Matrix<T> summary;  ///< [B, D + C], what the gate reads
    Matrix<T> gains;    ///< [B, 2 or 2 D], scaled
    typename Mlp<T>::Saved gate;
  };

  /// `context [B, C]`, empty where C is 0.
  void forward(JaggedView<const T> x, MatrixView<const T> context, MatrixView<T> y, Workspace& ws) const {
    output_cols(x.cols());
    detail::farm_forward<T>("FarmIntraDomain", gate, options, plans, x, context, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<const T> context, MatrixView<T> y, Saved& saved, const Step& step,
               Workspace& ws) const {
    check("FarmIntraDomain", x, context, y);
    saved.summary.resize(x.size(), x.cols() + options.context);
    saved.gains.resize(x.size(), options.per_channel ? 2 * x.cols() : 2);
    detail::farm_summary<T>(x, context, saved.summary);
    gate.forward(saved.summary, saved.gains, saved.gate, step, ws);
    detail::farm_scale<T>(options, saved.gains);
    detail::farm_mix<T>(options, plans, x, saved.gains.view(), y, ws);
  }
  /// Adds to dx and dcontext, either unless empty, and to `gradient`.
  void backward(JaggedView<const T> x, MatrixView<const T> context, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx,
                MatrixView<T> dcontext, FarmIntraDomain& gradient, Workspace& ws) const {
    constexpr const char* name = "FarmIntraDomain::backward";
    check(name, x, context, dy);
    const Index batch = x.size(), cols = x.cols(), half = options.per_channel ? cols : 1;
    if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), cols);
    if (!dcontext.empty()) check_shape(name, "dcontext", dcontext, batch, options.context);
    check_shape(name, "saved", saved.summary.view(), batch, cols + options.context);
    check_shape(name, "saved", saved.gains.view(), batch, 2 * half);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dz = ws.matrix<T>(batch, 2 * half), dp = ws.matrix<T>(batch, cols + options.context);
    std::fill_n(dz.data(), dz.rows() * dz.cols(), T(0));
    std::fill_n(dp.data(), dp.rows() * dp.cols(), T(0));
    const MatrixView<const T> z = saved.gains;
    detail::backward_filled<T>(
        x, options.padding, options.length, dy, dx, ws, [&](JaggedView<const T> in, MatrixView<const T> dout, MatrixView<T> din) {
          band_mix_backward<T>(in, detail::farm_gains(z, 0, half), detail::farm_gains(z, half, half), options.band, plans, dout,
                               din, detail::farm_gains(dz, 0, half), detail::farm_gains(dz, half, half), ws);
        });
    detail::farm_scale<T>(options, dz);
    gate.backward(saved.summary, dz, saved.gate, dp, gradient.gate, ws);
    for (Index b = 0; b < batch; ++b) {
      if (!dcontext.empty()) simd::add(dp.row(b) + cols, dcontext.row(b), options.context);
      const T share = T(1) / static_cast<T>(std::max(x.length(b), Index{1}));
      for (Index n = 0; n < x.length(b) && !dx.empty(); ++n) simd::axpy(share, dp.row(b), dx.row(x.begin(b) + n), cols);
    }
  }

  /// Without context.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, MatrixView<const T>(), y, ws); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    forward(x, MatrixView<const T>(), y, saved, step, ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, FarmIntraDomain& gradient,
                Workspace& ws) const {
    backward(x, MatrixView<const T>(), dy, saved, dx, MatrixView<T>(), gradient, ws);
  }

 private:
  template <class Y>
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> context, MatrixView<Y> y) const {
    output_cols(x.cols());
    detail::check_farm(name, options, x, context, y);
  }
};

/// Serving form: the gate's weights packed. Immutable; threads may share it.
template <class T, class Gate>
class FrozenFarmIntraDomain {
 public:
  FrozenFarmIntraDomain(const FarmIntraDomain<T>& layer, Gate gate)
      : gate_(std::move(gate)), options_(layer.options), plans_(layer.plans), width_(layer.width()) {}
  /// D; throws `Error` unless the input has as many columns.
  Index output_cols(Index input_cols) const {
    check_option("FrozenFarmIntraDomain", "input columns", input_cols == width_, "as many as the gate was made for",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  /// As `FarmIntraDomain::forward`.
  void forward(JaggedView<const T> x, MatrixView<const T> context, MatrixView<T> y, Workspace& ws) const {
    output_cols(x.cols());
    detail::farm_forward<T>("FrozenFarmIntraDomain", gate_, options_, plans_, x, context, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, MatrixView<const T>(), y, ws); }

 private:
  Gate gate_;
  FarmIntraDomainOptions options_;
  SpectralPlans<T> plans_;
  Index width_;
};
template <class T, class S = T>
auto freeze(const FarmIntraDomain<T>& layer, Weights<S> weights = {}) {
  layer.output_cols(layer.width());
  auto gate = freeze(layer.gate, weights);
  return FrozenFarmIntraDomain<T, decltype(gate)>(layer, std::move(gate));
}

}  // namespace RECOPS_ABI
}  // namespace recops
