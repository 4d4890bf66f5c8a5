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
#include <recops/gating/expert_bank.hpp>
#include <recops/gating/gate_mix.hpp>

namespace recops {

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
                 .bias = spec.bias},
                random),
        gates({.inputs = spec.inputs, .hidden = spec.gate_hidden, .bias = spec.gate_bias, .options = spec.gates}, make_map(spec),
              random) {}

  static constexpr auto fields() { return std::tuple{layer("experts", &Mmoe::experts), layer("gates", &Mmoe::gates)}; }

  /// D
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
    check("Mmoe::forward", x, y);
    const auto mark = ws.mark();
    const MatrixView<T> a = ws.matrix<T>(x.rows(), experts.weight.rows());
    const MatrixView<T> g = ws.matrix<T>(x.rows(), gates.map.size());
    experts.forward(x, a, ws);
    gates.forward(x, g, ws);
    gate_mix<T>(a, g, gates.map, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("Mmoe::forward", x, y);
    const auto mark = ws.mark();
    const MatrixView<T> g = ws.matrix<T>(x.rows(), gates.map.size());
    saved.expert_outputs.resize(x.rows(), experts.weight.rows());
    experts.forward(x, saved.expert_outputs, saved.bank, step.child(0), ws);
    gates.forward(x, g, saved.gating, step.child(1), ws);
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
    const char* const name = "Mmoe::backward";
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
    gates.backward(x, dg, saved.gating, dx, gradient.gates, ws);
  }
  /// Folds the batch statistics of a training step into the running ones; does nothing without batch norm.
  void update(const Saved& saved) { experts.update(saved.bank); }

 private:
  static GateMap make_map(const MmoeSpec& spec) {
    if (spec.visible.empty()) return GateMap(spec.tasks, spec.experts);
    check_option("Mmoe", "visible", static_cast<Index>(spec.visible.size()) == spec.tasks, "one list per task",
                 static_cast<double>(spec.visible.size()));
    return GateMap(spec.experts, spec.visible);
  }
  void check(const char* name, MatrixView<const T> x, MatrixView<T> y) const {
    check_option(name, "experts", gates.map.experts() == experts.options.experts, "as many experts as the gates know",
                 static_cast<double>(experts.options.experts));
    check_option(name, "gates", gates.input_cols() == input_cols(), "gates that read what the experts read",
                 static_cast<double>(gates.input_cols()));
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), tasks() * outputs());
  }
};

/// Serving form of `Mmoe`: weights of all experts and gates in one packed block, batch norm folded in, temperature too. A block
/// of rows runs from the input to the mixed outputs before the next one starts, so that expert outputs never leave the cache.
/// Immutable; threads may share it. `S`, the format of the weights, is T, or for float BFloat16 or std::int8_t.
template <Real T, class S = T>
class FrozenMmoe {
 public:
  FrozenMmoe() = default;
  explicit FrozenMmoe(const Mmoe<T>& layer)
      : map_(layer.gates.map), options_(layer.experts.options), in_(layer.input_cols()), outputs_(layer.outputs()) {
    const ExpertBank<T>& bank = layer.experts;
    const TaskGates<T>& gates = layer.gates;
    check_option("freeze", "experts", map_.experts() == options_.experts, "as many experts as the gates know",
                 static_cast<double>(options_.experts));
    bank.check_parameters("freeze");
    gates.check_parameters("freeze");
    check_option("freeze", "gates", gates.input_cols() == in_, "gates that read what the experts read",
                 static_cast<double>(gates.input_cols()));
    // Batch norm becomes part of weight and bias, in double: c = weight / sqrt(variance + epsilon), b' = (b - mean) c + bias.
    Matrix<T> weight = bank.weight;
    Vector<T> bias = bank.bias;
    if (options_.norm == ExpertNorm::batch) {
      const Index n = weight.rows();
      bias = Vector<T>(n);
      for (Index j = 0; j < n; ++j) {
        const double scale = (bank.norm_weight.empty() ? 1.0 : static_cast<double>(bank.norm_weight[j])) /
                             std::sqrt(static_cast<double>(bank.running_variance[j]) + options_.epsilon);
        const double own = bank.bias.empty() ? 0.0 : static_cast<double>(bank.bias[j]);
        for (Index i = 0; i < weight.cols(); ++i) weight(j, i) = static_cast<T>(static_cast<double>(weight(j, i)) * scale);
        bias[j] = static_cast<T>((own - static_cast<double>(bank.running_mean[j])) * scale +
                                 (bank.norm_bias.empty() ? 0.0 : static_cast<double>(bank.norm_bias[j])));
      }
      options_.norm = ExpertNorm::none;
    } else if (options_.norm != ExpertNorm::none) {
      norm_weight_ = bank.norm_weight;
      norm_bias_ = bank.norm_bias;
    }
    Matrix<T> gate_weight = gates.weight;
    Vector<T> gate_bias = gates.bias;
    if (gates.options.temperature != 1.0) {
      const auto cool = [&](T& v) { v = static_cast<T>(static_cast<double>(v) / gates.options.temperature); };
      for (T& v : leaf_values(gate_weight)) cool(v);
      for (T& v : gate_bias) cool(v);
    }

    const auto rows_of = [](Index blocks, Index rows) {
      return std::vector<Index>(static_cast<std::size_t>(blocks), rows / blocks);
    };
    const bool plain = options_.norm == ExpertNorm::none;
    for (std::size_t l = 0; l < bank.hidden.size(); ++l)
      add_layer(expert_layers_, options_.activation, bank.hidden[l].weight, bank.hidden[l].bias,
                rows_of(l == 0 ? 1 : options_.experts, bank.hidden[l].weight.rows()));
    add_layer(expert_layers_, plain ? options_.activation : Activation::none, weight, bias,
              rows_of(bank.hidden.empty() ? 1 : options_.experts, weight.rows()));
    for (std::size_t l = 0; l < gates.hidden.size(); ++l)
      add_layer(gate_layers_, Activation::relu, gates.hidden[l].weight, gates.hidden[l].bias,
                rows_of(l == 0 ? 1 : map_.tasks(), gates.hidden[l].weight.rows()));
    std::vector<Index> counts{map_.size()};
    if (!gates.hidden.empty()) {
      counts.clear();
      for (Index t = 0; t < map_.tasks(); ++t) counts.push_back(map_.count(t));
    }
    add_layer(gate_layers_, Activation::none, gate_weight, gate_bias, std::move(counts));
    pack_all(bank, gates, weight, gate_weight);

    Index most = 0;  // scratch of one row
    for (const Layer& l : expert_layers_) most += l.out;
    for (const Layer& l : gate_layers_) most += l.out;
    constexpr Index bytes = 512 * 1024, tile = simd::detail::tile_rows<simd::DefaultArch>;
    const Index fit = bytes / (static_cast<Index>(sizeof(T)) * std::max(most, Index{1}));
    block_rows_ = std::clamp(fit / tile * tile, 4 * tile, 16 * tile);
  }

  Index input_cols() const { return in_; }
  Index outputs() const { return outputs_; }
  Index tasks() const { return map_.tasks(); }
  Index output_cols(Index) const { return map_.tasks() * outputs_; }

  /// y `[B, T H]` from x `[B, D]`.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, y, {}, ws); }
  /// The same; `gates [B, G]` (empty: not wanted) shows which expert each task listened to.
  void forward(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> gates, Workspace& ws) const {
    check_shape("FrozenMmoe", "x", x, any_size, in_);
    check_shape("FrozenMmoe", "y", y, x.rows(), map_.tasks() * outputs_);
    if (!gates.empty()) check_shape("FrozenMmoe", "gates", gates, x.rows(), map_.size());
    if (x.rows() == 0) return;
    const Index blocks = (x.rows() + block_rows_ - 1) / block_rows_;
    if (blocks == 1) {  // few rows: the threads share the columns of the products
      run(x, y, gates, ws);
      return;
    }
    const Index tile = simd::detail::tile_rows<simd::DefaultArch>;
    const Index even = ((x.rows() + blocks - 1) / blocks + tile - 1) / tile * tile;
    ws.parallel_for((x.rows() + even - 1) / even, [&](Index task, Workspace& scratch) {
      const Index first = task * even, count = std::min(even, x.rows() - first);
      run(x.middle_rows(first, count), y.middle_rows(first, count), gates.empty() ? gates : gates.middle_rows(first, count),
          scratch);
    });
  }

 private:
  /// One linear layer: blocks side by side, each with its own columns of the input unless there is one block.
  struct Layer {
    Activation activation = Activation::none;
    Index in = 0, out = 0;
    std::vector<Index> rows = {}, at = {};  // outputs of each block; where its panels begin
    Vector<T> bias = {}, scale = {};        // scale: of each output's weights in int8
  };

  static void add_layer(std::vector<Layer>& list, Activation f, const Matrix<T>& weight, const Vector<T>& bias,
                        std::vector<Index> rows) {
    list.push_back({.activation = f, .in = weight.cols(), .out = weight.rows(), .rows = std::move(rows), .bias = bias});
  }
  void pack_all(const ExpertBank<T>& bank, const TaskGates<T>& gates, const Matrix<T>& weight, const Matrix<T>& gate_weight) {
    Index size = 0;
    // What reads x lies together: the experts' first layer and, right behind it, the gates'.
    const std::size_t depth = std::max(expert_layers_.size(), gate_layers_.size());
    const auto place = [&](std::vector<Layer>& list, std::size_t l) {
      if (l >= list.size()) return;
      for (const Index rows : list[l].rows) {
        list[l].at.push_back(size);
        size += simd::packed_size<T>(list[l].in, rows);
      }
    };
    for (std::size_t l = 0; l < depth; ++l) {
      place(expert_layers_, l);
      place(gate_layers_, l);
    }
    panels_ = Vector<S>(size);
    const auto fill = [&](Layer& l, MatrixView<const T> w) {
      Index row = 0;
      if constexpr (std::is_same_v<S, std::int8_t>) l.scale = Vector<T>(l.out);
      for (std::size_t b = 0; b < l.rows.size(); ++b) {
        const simd::Operand<T> block = simd::transposed(w.middle_rows(row, l.rows[b]));
        if constexpr (std::is_same_v<S, std::int8_t>) {
          simd::pack<T>(block, panels_.data() + l.at[b], l.scale.data() + row);
        } else {
          simd::pack<T>(block, panels_.data() + l.at[b]);
        }
        row += l.rows[b];
      }
    };
    for (std::size_t l = 0; l < bank.hidden.size(); ++l) fill(expert_layers_[l], bank.hidden[l].weight);
    fill(expert_layers_.back(), weight);
    for (std::size_t l = 0; l < gates.hidden.size(); ++l) fill(gate_layers_[l], gates.hidden[l].weight);
    fill(gate_layers_.back(), gate_weight);
  }

  /// Scratch whose rows begin in different sets of the cache: at strides that are multiples of 1 KB the rows of one tile evict
  /// each other.
  static MatrixView<T> staggered(Index rows, Index cols, Workspace& ws) {
    constexpr Index line = 64 / static_cast<Index>(sizeof(T));
    const Index stride = ((cols + line - 1) / line | 1) * line;
    return MatrixView<T>(ws.take<T>(rows * stride), rows, cols, stride);
  }

  MatrixView<T> apply(const std::vector<Layer>& list, MatrixView<const T> x, MatrixView<T> last, Workspace& ws) const {
    MatrixView<const T> at = x;
    MatrixView<T> next = last;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const Layer& l = list[i];
      next = i + 1 == list.size() ? last : staggered(x.rows(), l.out, ws);
      const bool wide = i == 0;
      for (std::size_t b = 0, col = 0; b < l.rows.size(); col += static_cast<std::size_t>(l.rows[b]), ++b) {
        const auto first = static_cast<Index>(col);
        simd::gemm_packed<T>(simd::plain(wide ? at : at.middle_cols(static_cast<Index>(b) * l.in, l.in)),
                             panels_.data() + l.at[b], l.rows[b],
                             {.bias = l.bias.empty() ? nullptr : l.bias.data() + first,
                              .activation = l.activation,
                              .column_scale = l.scale.empty() ? nullptr : l.scale.data() + first},
                             next.middle_cols(first, l.rows[b]), ws);
      }
      at = next;
    }
    return next;
  }

  void run(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> gates_out, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index n = options_.experts * outputs_;
    const MatrixView<T> a = staggered(x.rows(), n, ws), g = ws.matrix<T>(x.rows(), map_.size());
    MatrixView<const T> in = x;
    if (x.rows() > 1 && x.stride() * static_cast<Index>(sizeof(T)) % 1024 == 0) {
      const MatrixView<T> copy = staggered(x.rows(), in_, ws);
      for (Index r = 0; r < x.rows(); ++r) std::copy_n(x.row(r), in_, copy.row(r));
      in = copy;
    }
    apply(expert_layers_, in, a, ws);
    apply(gate_layers_, in, g, ws);
    const ExpertNormView<const T> norm{norm_weight_, norm_bias_, {}, {}};
    for (Index r = 0; r < x.rows(); ++r) {
      if (options_.norm != ExpertNorm::none) {
        detail::expert_norm_row<T>(a.row(r), norm, options_, n, nullptr, nullptr, nullptr, a.row(r));
        if (options_.activation != Activation::none) simd::activate<T>(options_.activation, a.row(r), a.row(r), n);
      }
      detail::gate_softmax_row<T>(g.row(r), map_, T(1));
      if (!gates_out.empty()) std::copy_n(g.row(r), map_.size(), gates_out.row(r));
      detail::gate_mix_row<T>(a.row(r), g.row(r), map_, outputs_, y.row(r));
    }
  }

  Vector<S> panels_;
  Vector<T> norm_weight_, norm_bias_;
  std::vector<Layer> expert_layers_, gate_layers_;
  GateMap map_;
  ExpertBankOptions options_;
  Index in_ = 0, outputs_ = 0, block_rows_ = 1;
};

/// The serving form.
template <Real T, class S = T>
FrozenMmoe<T, S> freeze(const Mmoe<T>& layer, Weights<S> = {}) {
  return FrozenMmoe<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
