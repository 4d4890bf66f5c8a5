/// @file   recops/gating/mmoe.hpp
/// @brief  Multi-gate mixture of experts (MMoE): E experts read the input, each task mixes them with a gate of its own.
///
///     a_e = activation(norm(W_e x + c_e))     g_t = softmax(V_t x)     y_t = sum_e g_te a_e
///
/// Shapes      x [B, D]   y [B, T H], which is [B, T, H]: task t's tower reads the columns t H .. (t + 1) H
/// Edge cases  B = 0 does nothing.   A NaN in a row of x stays in that row.   One visible expert: its gate is exactly 1.
/// Precision   sums in T.   Frozen against unfrozen: equal within rounding of the products (8 D eps of the terms' sizes).
///             Same bits for any number of threads; frozen also for any batch a row is in.
/// Cost        2 B (D (E H + T E) + T E H) flops.   Frozen: weights stream once per block of rows, expert outputs stay in L2.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018.
#pragma once
#include <recops/gating/gate_mix.hpp>
#include <recops/gating/packed_experts.hpp>

namespace recops {

/// What errors call a layer that is an `Mmoe`; strings that outlive it.
struct MmoeNames {
  const char *layer = "Mmoe", *forward = "Mmoe::forward", *backward = "Mmoe::backward", *frozen = "FrozenMmoe";
};

/// What an `Mmoe` is made of.
struct MmoeSpec {
  Index inputs = 0;                ///< D
  Index experts = 8;               ///< E
  Index outputs = 0;               ///< H, of one expert and so of each task
  Index tasks = 1;                 ///< T
  std::vector<Index> hidden = {};  ///< widths of an expert's layers before its last
  ExpertNorm norm = ExpertNorm::none;
  Activation activation = Activation::relu;
  bool bias = true;                              ///< of the experts
  std::vector<Index> gate_hidden = {};           ///< widths of a gate's layers before its logits
  bool gate_bias = false;                        ///< the paper has none
  TaskGatesOptions gates = {};                   ///< temperature, dropout
  std::vector<std::vector<Index>> visible = {};  ///< experts each task sees; empty: all of them
  std::vector<ExpertGroup> groups = {};          ///< experts that read blocks of x [B, Q D] of their own; empty: all read all
  bool own_gates = false;                        ///< the gate of task t reads columns t D .. (t + 1) D, its own block
  MmoeNames names = {};                          ///< what errors call the layer

  /// HoME's expert: linear, batch norm, silu; no bias, as batch norm would cancel it.
  MmoeSpec home() const {
    MmoeSpec s = *this;
    s.norm = ExpertNorm::batch;
    s.activation = Activation::silu;
    s.bias = false;
    return s;
  }
};

inline namespace RECOPS_ABI {

/// Experts, gates and mix with their parameters: `experts.weight [E H, D]`, `experts.bias`, `gates.weight [T E, D]`, ... (see
/// ExpertBank and TaskGates for the rest). A PyTorch model's `Linear` layers per expert and per gate, concatenated along the
/// output.
template <Real T>
struct Mmoe {
  ExpertBank<T> experts;
  TaskGates<T> gates;
  MmoeNames names;  ///< what errors call it

  /// What a training forward leaves for backward and `update`; `gates [B, G]` is there to be looked at.
  struct Saved {
    typename ExpertBank<T>::Saved bank;
    typename TaskGates<T>::Saved gating;
    Matrix<T> expert_outputs;  ///< [B, E H]
    const Matrix<T>& gates() const { return gating.gates; }
  };

  Mmoe() = default;
  /// Initialised as `torch.nn.Linear` would be, experts first.
  Mmoe(const MmoeSpec& spec, Random& random)
      : experts({.inputs = spec.inputs,
                 .experts = spec.experts,
                 .outputs = spec.outputs,
                 .hidden = spec.hidden,
                 .norm = spec.norm,
                 .activation = spec.activation,
                 .bias = spec.bias,
                 .groups = spec.groups},
                random, spec.names.layer),
        gates(gates_spec(spec), make_map(spec), random, spec.names.layer),
        names(spec.names) {}

  static constexpr auto fields() { return std::tuple{layer("experts", &Mmoe::experts), layer("gates", &Mmoe::gates)}; }

  /// D, or Q D with `groups`
  Index input_cols() const { return experts.input_cols(); }
  /// H
  Index outputs() const { return experts.outputs(); }
  Index tasks() const { return gates.map.tasks(); }
  /// T H; throws `Error` unless the input has D columns.
  Index output_cols(Index cols) const {
    experts.output_cols(cols);
    return tasks() * outputs();
  }

  /// Serving with weights as they are: for a service `freeze` the layer first. Scratch B (E H + G).
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check(names.forward, x, y);
    const auto mark = ws.mark();
    const MatrixView<T> a = ws.matrix<T>(x.rows(), experts.weight.rows());
    const MatrixView<T> g = ws.matrix<T>(x.rows(), gates.map.size());
    experts.forward(x, a, ws);
    gates.forward(gate_input(x), g, ws);
    gate_mix<T>(a, g, gates.map, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check(names.forward, x, y);
    const auto mark = ws.mark();
    const MatrixView<T> g = ws.matrix<T>(x.rows(), gates.map.size());
    saved.expert_outputs.resize(x.rows(), experts.weight.rows());
    experts.forward(x, saved.expert_outputs, saved.bank, step.child(0), ws);
    gates.forward(gate_input(x), g, saved.gating, step.child(1), ws);
    gate_mix<T>(saved.expert_outputs, g, gates.map, y, ws);
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Mmoe& gradient,
                Workspace& ws) const {
    backward(x, dy, {}, saved, dx, gradient, ws);
  }
  /// The same with a further gradient on the gates `[B, G]`, e.g. of their entropy.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, MatrixView<const T> dgates, const Saved& saved, MatrixView<T> dx,
                Mmoe& gradient, Workspace& ws) const {
    const char* const name = names.backward;
    const Index n = experts.weight.rows(), g = gates.map.size();
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "dy", dy, x.rows(), tasks() * outputs());
    if (!dgates.empty()) check_shape(name, "dgates", dgates, x.rows(), g);
    check_shape(name, "saved", saved.expert_outputs.view(), x.rows(), n);
    check_shape(name, "saved", saved.gating.gates.view(), x.rows(), g);
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    if (x.rows() == 0) return;
    const auto mark = ws.mark();
    const MatrixView<T> da = ws.matrix<T>(x.rows(), n), dg = ws.matrix<T>(x.rows(), g);
    std::fill_n(da.data(), x.rows() * n, T(0));
    std::fill_n(dg.data(), x.rows() * g, T(0));
    for (Index r = 0; r < dgates.rows(); ++r) std::copy_n(dgates.row(r), g, dg.row(r));
    gate_mix_backward<T>(saved.expert_outputs, saved.gating.gates, gates.map, dy, da, dg, ws);
    experts.backward(x, da, saved.bank, dx, gradient.experts, ws);
    gates.backward(gate_input(x), dg, saved.gating, dx.empty() ? dx : gate_input(dx), gradient.gates, ws);
  }
  /// Folds the batch statistics of a training step into the running ones; does nothing without batch norm.
  void update(const Saved& saved) { experts.update(saved.bank); }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    check_option(name, "tasks", gates.map.tasks() >= 1, "1 or more (was the layer made from a spec?)", 0);
    check_option(name, "experts", gates.map.experts() == experts.options.experts, "as many experts as the gates know",
                 static_cast<double>(experts.options.experts));
    const Index in = gates.input_cols();
    check_option(name, "gates", gates.options.own_inputs ? in <= input_cols() : in == input_cols(),
                 "gates that read what the experts read", static_cast<double>(in));
  }

 private:
  static TaskGatesSpec gates_spec(const MmoeSpec& spec) {
    for (const Index width : spec.gate_hidden)
      check_option(spec.names.layer, "gate_hidden", width >= 1, "widths >= 1", static_cast<double>(width));
    TaskGatesSpec s{.inputs = spec.inputs, .hidden = spec.gate_hidden, .bias = spec.gate_bias, .options = spec.gates};
    s.options.own_inputs = spec.own_gates;
    return s;
  }
  template <class U>
  MatrixView<U> gate_input(MatrixView<U> x) const {
    return x.middle_cols(0, gates.input_cols());
  }
  static GateMap make_map(const MmoeSpec& spec) {
    const char* const name = spec.names.layer;
    if (spec.visible.empty()) return GateMap(spec.tasks, spec.experts, name);
    check_option(name, "visible", static_cast<Index>(spec.visible.size()) == spec.tasks, "one list per task",
                 static_cast<double>(spec.visible.size()));
    return GateMap(spec.experts, spec.visible, name);
  }
  void check(const char* name, MatrixView<const T> x, MatrixView<T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), tasks() * outputs());
  }
};

/// Serving form of `Mmoe`: weights of all experts and gates packed, batch norm folded in, temperature too; experts that read the
/// same columns are one product. A block of rows runs from the input to the mixed outputs before the next one starts, so that
/// expert outputs never leave the cache. Immutable; threads may share it. `S`, the format of the weights, is T, or for float
/// BFloat16 or std::int8_t.
template <Real T, class S = T>
class FrozenMmoe {
 public:
  FrozenMmoe() = default;
  explicit FrozenMmoe(const Mmoe<T>& layer)
      : experts_(checked(layer).experts),
        gates_(detail::packed_gates<T, S>(layer.gates)),
        map_(layer.gates.map),
        name_(layer.names.frozen),
        in_(layer.input_cols()),
        gate_in_(layer.gates.input_cols()),
        outputs_(layer.outputs()) {
    experts_.take_panels(gates_);
    block_rows_ = detail::serving_rows<T>(experts_.row_values() + gates_.row_values());
  }

  Index input_cols() const { return in_; }
  Index outputs() const { return outputs_; }
  Index tasks() const { return map_.tasks(); }
  Index output_cols(Index) const { return map_.tasks() * outputs_; }
  /// Rows that pass through it together.
  Index block_rows() const { return block_rows_; }

  /// y `[B, T H]` from x `[B, D]`.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, y, {}, ws); }
  /// The same; `gates [B, G]` (empty: not wanted) shows which expert each task listened to.
  void forward(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> gates, Workspace& ws) const {
    check_shape(name_, "x", x, any_size, in_);
    check_shape(name_, "y", y, x.rows(), map_.tasks() * outputs_);
    if (!gates.empty()) check_shape(name_, "gates", gates, x.rows(), map_.size());
    detail::for_serving_blocks(x.rows(), block_rows_, ws, [&](Index first, Index count, Workspace& scratch) {
      run(x.middle_rows(first, count), y.middle_rows(first, count), gates.empty() ? gates : gates.middle_rows(first, count),
          scratch);
    });
  }

 private:
  static const Mmoe<T>& checked(const Mmoe<T>& layer) {
    layer.check_parameters("freeze");
    return layer;
  }
  void run(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> gates_out, Workspace& ws) const {
    const auto mark = ws.mark();
    const MatrixView<T> a = detail::staggered<T>(x.rows(), experts_.outputs(), ws), g = ws.matrix<T>(x.rows(), map_.size());
    const MatrixView<const T> in = detail::unaliased<T>(x, ws);
    experts_.forward(in, a, ws);
    gates_.forward(in.middle_cols(0, gate_in_), g, ws, false, experts_.panels());
    for (Index r = 0; r < x.rows(); ++r) {
      detail::gate_softmax_row<T>(g.row(r), map_, T(1));
      if (!gates_out.empty()) std::copy_n(g.row(r), map_.size(), gates_out.row(r));
      detail::gate_mix_row<T>(a.row(r), a.row(std::min(r + 1, x.rows() - 1)), g.row(r), map_, outputs_, y.row(r));
    }
  }

  detail::PackedExperts<T, S> experts_;
  detail::PackedLayers<T, S> gates_;
  GateMap map_;
  const char* name_ = MmoeNames().frozen;
  Index in_ = 0, gate_in_ = 0, outputs_ = 0, block_rows_ = 1;
};

/// The serving form.
template <Real T, class S = T>
FrozenMmoe<T, S> freeze(const Mmoe<T>& layer, Weights<S> = {}) {
  return FrozenMmoe<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
