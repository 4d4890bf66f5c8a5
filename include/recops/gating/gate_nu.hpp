/// @file   recops/gating/gate_nu.hpp
/// @brief  Gate neural unit of PEPNet: from prior knowledge about a row, a factor in (0, gamma) for each number that it scales.
///
///     h = relu(V [prior | context] + c)          gates = gamma sigmoid(W h + b)
///
/// `context` is read as a constant, the stop-gradient of the paper: backward has no gradient for it. What shall learn goes to `prior`.
///
/// Shapes      prior [B, P]   context [B, C], or empty   V [Hg, P + C]   W [O, Hg]   gates [B, O]
/// Range       gates lie in (0, gamma), rounding may reach either end. W = 0 and b = 0 give exactly gamma / 2: with gamma = 2 what is
///             gated keeps its bits.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row.
/// Precision   sums in T.   Same bits for any number of threads.
/// Cost        2 B Hg (P + C + O) flops; backward twice that, without the products for the context.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Chang et al., "PEPNet: Parameter and Embedding Personalized Network", KDD 2023, arXiv 2302.01115, equations 2 and 3.
#pragma once
#include <recops/gating/block_linear.hpp>

namespace recops {

struct GateNuOptions {
  double gamma = 2.0;  ///< gates end below it; > 0
};

inline namespace RECOPS_ABI {

/// Parameters of a gate neural unit, or their gradients (there an empty one is not wanted).
template <class T>
struct GateNuView {
  MatrixView<T> hidden_weight = {};  ///< V [Hg, P + C]
  VectorView<T> hidden_bias = {};    ///< [Hg], or empty
  MatrixView<T> weight = {};         ///< W [O, Hg]
  VectorView<T> bias = {};           ///< [O], or empty
};

namespace detail {

/// [a | b] in scratch, or a itself where b has no columns. A copy costs less than a product in two parts.
template <class T>
MatrixView<const T> side_by_side(MatrixView<const T> a, MatrixView<const T> b, Workspace& ws) {
  if (b.cols() == 0) return a;
  const MatrixView<T> both = staggered<T>(a.rows(), a.cols() + b.cols(), ws);
  for (Index r = 0; r < a.rows(); ++r) {
    std::copy_n(a.row(r), a.cols(), both.row(r));
    std::copy_n(b.row(r), b.cols(), both.row(r) + a.cols());
  }
  return both;
}

template <class T>
void check_gate_nu(const char* name, MatrixView<const T> prior, MatrixView<const T> context, GateNuView<const T> p,
                   const GateNuOptions& o) {
  check_option(name, "gamma", o.gamma > 0 && std::isfinite(o.gamma), "gamma > 0", o.gamma);
  check_shape(name, "prior", prior, any_size, any_size);
  if (context.cols() != 0) check_shape(name, "context", context, prior.rows(), any_size);
  check_shape(name, "hidden_weight", p.hidden_weight, any_size, prior.cols() + context.cols());
  check_shape(name, "weight", p.weight, any_size, p.hidden_weight.rows());
  if (!p.hidden_bias.empty()) check_size(name, "hidden_bias", p.hidden_bias, p.hidden_weight.rows());
  if (!p.bias.empty()) check_size(name, "bias", p.bias, p.weight.rows());
}
template <class T>
void check_gate_nu_gradient(const char* name, GateNuView<const T> p, GateNuView<T> g) {
  if (!g.hidden_weight.empty())
    check_shape(name, "gradient of hidden_weight", g.hidden_weight, p.hidden_weight.rows(), p.hidden_weight.cols());
  if (!g.hidden_bias.empty()) check_size(name, "gradient of hidden_bias", g.hidden_bias, p.hidden_weight.rows());
  if (!g.weight.empty()) check_shape(name, "gradient of weight", g.weight, p.weight.rows(), p.weight.cols());
  if (!g.bias.empty()) check_size(name, "gradient of bias", g.bias, p.weight.rows());
}

/// gates = gamma sigmoid(W relu(V input + c) + b); `hidden [B, Hg]` is written.
template <class T>
void gate_nu_rows(MatrixView<const T> input, GateNuView<const T> p, double gamma, MatrixView<T> hidden, MatrixView<T> gates,
                  Workspace& ws) {
  const auto pointer = [](VectorView<const T> v) { return v.empty() ? nullptr : v.data(); };
  simd::gemm<T>(simd::plain(input), simd::transposed(p.hidden_weight),
                {.bias = pointer(p.hidden_bias), .activation = Activation::relu}, hidden, ws);
  simd::gemm<T>(simd::plain(MatrixView<const T>(hidden)), simd::transposed(p.weight),
                {.bias = pointer(p.bias), .activation = Activation::sigmoid}, gates, ws);
  for_row_blocks(gates.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) simd::scale<T>(static_cast<T>(gamma), gates.row(r), gates.row(r), gates.cols());
  });
}

/// From the gradient of the logits `dlogits [B, O]`. dinput has the first columns of the input, or none.
template <class T>
void gate_nu_rows_backward(MatrixView<const T> input, GateNuView<const T> p, MatrixView<const T> hidden,
                           MatrixView<const T> dlogits, MatrixView<T> dinput, GateNuView<T> g, Workspace& ws) {
  const auto mark = ws.mark();
  const MatrixView<T> dhidden = ws.matrix<T>(hidden.rows(), hidden.cols());
  linear_backward<T>(hidden, p.weight, dlogits, dhidden, true, g.weight, g.bias, ws);
  for_row_blocks(hidden.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r)  // relu: h > 0 where its argument is
      simd::activate_backward<T>(Activation::relu, hidden.row(r), hidden.row(r), dhidden.row(r), dhidden.row(r), hidden.cols());
  });
  linear_backward<T>(input, p.hidden_weight, dhidden, {}, false, g.hidden_weight, g.hidden_bias, ws);
  if (!dinput.empty())  // only the columns that are wanted
    simd::gemm<T>(simd::plain(MatrixView<const T>(dhidden)), simd::plain(p.hidden_weight.middle_cols(0, dinput.cols())),
                  {.accumulate = true}, dinput, ws);
}

/// The gradient of the logits from that of the gates: d g (1 - g / gamma).
template <class T>
RECOPS_INLINE auto gate_logit_gradient(simd::Batch<T> d, simd::Batch<T> g, T inverse_gamma) {
  return d * g * simd::neg_mul_add(g, simd::Batch<T>(inverse_gamma), simd::Batch<T>(T(1)));
}

}  // namespace detail

/// Writes `gates [B, O]` and, unless it is empty, `hidden [B, Hg]`, which backward needs.
template <Real T>
void gate_nu(MatrixView<const T> prior, MatrixView<const T> context, GateNuView<const T> parameters, const GateNuOptions& options,
             MatrixView<T> hidden, MatrixView<T> gates, Workspace& ws) {
  detail::check_gate_nu("gate_nu", prior, context, parameters, options);
  if (!hidden.empty()) check_shape("gate_nu", "hidden", hidden, prior.rows(), parameters.hidden_weight.rows());
  check_shape("gate_nu", "gates", gates, prior.rows(), parameters.weight.rows());
  if (prior.rows() == 0) return;
  const auto mark = ws.mark();
  if (hidden.empty()) hidden = ws.matrix<T>(prior.rows(), parameters.hidden_weight.rows());
  detail::gate_nu_rows<T>(detail::side_by_side(prior, context, ws), parameters, options.gamma, hidden, gates, ws);
}

/// Takes what forward took and wrote; adds to `dprior` and to the parameters' gradients, each unless empty.
template <Real T>
void gate_nu_backward(MatrixView<const T> prior, MatrixView<const T> context, GateNuView<const T> parameters,
                      const GateNuOptions& options, MatrixView<const T> hidden, MatrixView<const T> gates,
                      MatrixView<const T> dgates, MatrixView<T> dprior, GateNuView<T> gradient, Workspace& ws) {
  constexpr const char* name = "gate_nu_backward";
  detail::check_gate_nu(name, prior, context, parameters, options);
  const Index rows = prior.rows(), outputs = parameters.weight.rows();
  check_shape(name, "hidden", hidden, rows, parameters.hidden_weight.rows());
  check_shape(name, "gates", gates, rows, outputs);
  check_shape(name, "dgates", dgates, rows, outputs);
  if (!dprior.empty()) check_shape(name, "dprior", dprior, rows, prior.cols());
  detail::check_gate_nu_gradient(name, parameters, gradient);
  if (rows == 0) return;
  const auto mark = ws.mark();
  const MatrixView<T> dlogits = ws.matrix<T>(rows, outputs);
  const T inverse = static_cast<T>(1 / options.gamma);
  detail::for_row_blocks(rows, ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      const T *const d = dgates.row(r), *const g = gates.row(r);
      T* const to = dlogits.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(outputs, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        store(to + i, detail::gate_logit_gradient<T>(load(d + i), load(g + i), inverse));
      });
    }
  });
  detail::gate_nu_rows_backward<T>(detail::side_by_side(prior, context, ws), parameters, hidden, dlogits, dprior, gradient, ws);
}

/// A gate neural unit with its parameters; `hidden` is V and c, `output` W and b. A row layer where there is no context.
template <Real T>
struct GateNu {
  Linear<T> hidden;  ///< weight [Hg, P + C]
  Linear<T> output;  ///< weight [O, Hg]
  GateNuOptions options;

  GateNu() = default;
  /// `inputs` = P + C; `hidden_width` 0: as wide as the output. Gates begin near gamma / 2: the last weights are a tenth of what
  /// `torch.nn.Linear` draws, their bias is 0.
  GateNu(Index inputs, Index hidden_width, Index outputs, Random& random, const GateNuOptions& o = {})
      : hidden(
            checked_size("GateNu", "inputs", inputs),
            checked_size("GateNu", "hidden_width", hidden_width) > 0 ? hidden_width : checked_size("GateNu", "outputs", outputs),
            random),
        output(hidden_width > 0 ? hidden_width : outputs, checked_size("GateNu", "outputs", outputs), random),
        options(o) {
    for (T& w : leaf_values(output.weight)) w *= T(0.1);
    for (T& b : output.bias) b = T(0);
  }

  static constexpr auto fields() { return std::tuple{layer("hidden", &GateNu::hidden), layer("output", &GateNu::output)}; }

  GateNuView<const T> view() const { return {hidden.weight, hidden.bias, output.weight, output.bias}; }
  GateNuView<T> view() { return {hidden.weight, hidden.bias, output.weight, output.bias}; }

  /// P + C
  Index input_cols() const { return hidden.weight.cols(); }
  /// O; throws `Error` unless the input has P + C columns.
  Index output_cols(Index cols) const {
    hidden.output_cols(cols);
    return output.weight.rows();
  }
  struct Saved {
    Matrix<T> hidden;  ///< [B, Hg]
    Matrix<T> gates;   ///< [B, O]
  };
  void forward(MatrixView<const T> prior, MatrixView<T> gates, Workspace& ws) const { forward(prior, {}, gates, ws); }
  void forward(MatrixView<const T> prior, MatrixView<const T> context, MatrixView<T> gates, Workspace& ws) const {
    gate_nu<T>(prior, context, view(), options, {}, gates, ws);
  }
  void forward(MatrixView<const T> prior, MatrixView<T> gates, Saved& saved, const Step&, Workspace& ws) const {
    check_shape("GateNu::forward", "gates", gates, prior.rows(), output.weight.rows());
    saved.hidden.resize(prior.rows(), hidden.weight.rows());
    saved.gates.resize(prior.rows(), output.weight.rows());
    gate_nu<T>(prior, {}, view(), options, saved.hidden, saved.gates, ws);
    for (Index r = 0; r < gates.rows(); ++r) std::copy_n(saved.gates.row(r), gates.cols(), gates.row(r));
  }
  void backward(MatrixView<const T> prior, MatrixView<const T> dgates, const Saved& saved, MatrixView<T> dprior, GateNu& gradient,
                Workspace& ws) const {
    gate_nu_backward<T>(prior, {}, view(), options, saved.hidden, saved.gates, dgates, dprior, gradient.view(), ws);
  }
};

/// Serving form of GateNu. Immutable; threads may share it. `S` is T, or for float BFloat16 or std::int8_t.
template <Real T, class S = T>
class FrozenGateNu {
 public:
  FrozenGateNu() = default;
  explicit FrozenGateNu(const GateNu<T>& gate)
      : hidden_(gate.hidden.weight, gate.hidden.bias, Activation::relu),
        output_(gate.output.weight, gate.output.bias, Activation::sigmoid),
        gamma_(static_cast<T>(gate.options.gamma)) {
    check_option("freeze(GateNu)", "gamma", gate.options.gamma > 0 && std::isfinite(gate.options.gamma), "gamma > 0",
                 gate.options.gamma);
    check_shape("freeze(GateNu)", "output.weight", gate.output.weight.view(), any_size, gate.hidden.weight.rows());
  }
  Index input_cols() const { return hidden_.input_cols(); }
  Index output_cols(Index cols) const { return output_.output_cols(hidden_.output_cols(cols)); }
  /// gates `[B, O]` from the input `[B, P + C]`.
  void forward(MatrixView<const T> input, MatrixView<T> gates, Workspace& ws) const {
    sigmoids(input, gates, ws);
    for (Index r = 0; r < gates.rows(); ++r) simd::scale<T>(gamma_, gates.row(r), gates.row(r), gates.cols());
  }
  /// The gates before they are multiplied with gamma.
  void sigmoids(MatrixView<const T> input, MatrixView<T> gates, Workspace& ws) const {
    check_shape("FrozenGateNu", "input", input, any_size, input_cols());
    check_shape("FrozenGateNu", "gates", gates, input.rows(), output_cols(input.cols()));
    const auto mark = ws.mark();
    const MatrixView<T> h = detail::staggered<T>(input.rows(), hidden_.output_cols(input.cols()), ws);
    hidden_.forward(input, h, ws);
    output_.forward(h, gates, ws);
  }
  T gamma() const { return gamma_; }

 private:
  FrozenDense<T, S> hidden_, output_;
  T gamma_ = T(2);
};
template <Real T, class S = T>
FrozenGateNu<T, S> freeze(const GateNu<T>& gate, Weights<S> = {}) {
  return FrozenGateNu<T, S>(gate);
}

}  // namespace RECOPS_ABI
}  // namespace recops
