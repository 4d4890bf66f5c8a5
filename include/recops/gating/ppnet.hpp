/// @file   recops/gating/ppnet.hpp
/// @brief  PPNet: one tower per task, the hidden units of each scaled for the user and item at hand.
///
///     gates_l = gate_nu_l([prior | sg(x)])                         one per layer, for all tasks: [B, T h_l]
///     x_t^l = gates_lt * relu(W_t^l x_t^l-1 + b_t^l)               x_t^0 = x
///     y_t = V_t x_t^L + c_t                                        ungated; left out where `outputs` is 0: then y_t = x_t^L
///
/// sg: gates read x but send it no gradient: x learns through the towers alone, `prior` (user, item, author) through the gates alone.
/// A further gate on x itself, shared by the tasks, is an `Epnet` in front.
///
/// Shapes      x [B, E]   prior [B, P]   y [B, T outputs], or [B, T h_L]: task t owns columns t outputs .. (t + 1) outputs
/// Range       gates in (0, gamma). Gates whose last layer is 0 are exactly gamma / 2: with gamma = 2 these are T plain MLPs, to the bit.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row.
/// Precision   sums in T.   Same bits for any number of threads; frozen also for any batch a row is in.
/// Cost        2 B (sum of all weights) flops; backward twice that.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Chang et al., "PEPNet", KDD 2023, arXiv 2302.01115, equations 7 to 9.
#pragma once
#include <recops/gating/gate_nu.hpp>
#include <vector>

namespace recops {

/// What a `Ppnet` is made of.
struct PpnetSpec {
  Index inputs = 0;                ///< E
  Index prior = 0;                 ///< P
  Index tasks = 1;                 ///< T
  std::vector<Index> widths = {};  ///< h_1 .. h_L, of one task's hidden layers; at least one
  Index outputs = 1;               ///< of one task; 0: the last hidden layer is what comes out
  Index gate_width = 0;            ///< of the gates' hidden layers; 0: as wide as what they scale, T h_l
  double gamma = 2.0;              ///< gates end below it; > 0
};

inline namespace RECOPS_ABI {

/// Towers and gates with their parameters: `gates.0.hidden.weight [Hg, P + E]`, `gates.0.output.weight [T h_1, Hg]`, ...,
/// `towers.0.weight [T h_1, E]`, `towers.1.weight [T h_2, h_1]`, ..., `head.weight [T outputs, h_L]`: the tasks' `Linear` layers
/// concatenated along the output. The first layer of all towers is one wide product.
template <Real T>
struct Ppnet {
  std::vector<GateNu<T>> gates;   ///< one per hidden layer
  std::vector<Linear<T>> towers;  ///< one per hidden layer, the tasks' side by side
  Linear<T> head;                 ///< empty where `outputs` is 0
  Index tasks = 1;

  Ppnet() = default;
  Ppnet(const PpnetSpec& spec, Random& random) : tasks(spec.tasks) {
    constexpr const char* name = "Ppnet";
    check_option(name, "inputs", spec.inputs >= 1, "inputs >= 1", static_cast<double>(spec.inputs));
    check_option(name, "prior", spec.prior >= 0, "prior >= 0", static_cast<double>(spec.prior));
    check_option(name, "gate_width", spec.gate_width >= 0, "gate_width >= 0", static_cast<double>(spec.gate_width));
    check_option(name, "tasks", spec.tasks >= 1 && spec.tasks <= 65536, "1 to 65536", static_cast<double>(spec.tasks));
    check_option(name, "widths", !spec.widths.empty(), "at least one hidden layer", 0);
    check_option(name, "outputs", spec.outputs >= 0, "outputs >= 0", static_cast<double>(spec.outputs));
    Index in = spec.inputs;
    for (const Index width : spec.widths) {
      check_option(name, "widths", width >= 1, "widths >= 1", static_cast<double>(width));
      gates.emplace_back(spec.prior + spec.inputs, spec.gate_width, spec.tasks * width, random, GateNuOptions{spec.gamma});
      towers.emplace_back(in, spec.tasks * width, random);
      in = width;
    }
    if (spec.outputs > 0) head = Linear<T>(in, spec.tasks * spec.outputs, random);
  }

  static constexpr auto fields() {
    return std::tuple{layers("gates", &Ppnet::gates), layers("towers", &Ppnet::towers), layer("head", &Ppnet::head)};
  }

  /// E
  Index input_cols() const { return towers.empty() ? 0 : towers[0].weight.cols(); }
  /// P
  Index prior_cols() const { return gates.empty() ? 0 : gates[0].input_cols() - input_cols(); }
  /// T outputs, or T h_L without a head.
  Index output_cols() const {
    if (head.weight.rows() > 0) return head.weight.rows();
    return towers.empty() ? 0 : towers.back().weight.rows();
  }

  struct Saved {
    std::vector<typename GateNu<T>::Saved> gates;  ///< `gates[l].gates [B, T h_l]` is there to be looked at
    std::vector<Matrix<T>> outputs;                ///< [B, T h_l], gated
  };

  void forward(MatrixView<const T> x, MatrixView<const T> prior, MatrixView<T> y, Workspace& ws) const {
    check("Ppnet::forward", x, prior, MatrixView<const T>(y));
    if (x.rows() == 0) return;
    const auto mark = ws.mark();
    run(
        x, prior, y, [&](std::size_t l) { return ws.matrix<T>(x.rows(), gates[l].hidden.weight.rows()); },
        [&](std::size_t l) { return ws.matrix<T>(x.rows(), towers[l].weight.rows()); },
        [&](std::size_t l) { return ws.matrix<T>(x.rows(), towers[l].weight.rows()); }, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<const T> prior, MatrixView<T> y, Saved& saved, const Step&,
               Workspace& ws) const {
    check("Ppnet::forward", x, prior, MatrixView<const T>(y));
    saved.gates.resize(gates.size());
    saved.outputs.resize(gates.size());
    for (std::size_t l = 0; l < gates.size(); ++l) {
      saved.gates[l].hidden.resize(x.rows(), gates[l].hidden.weight.rows());
      saved.gates[l].gates.resize(x.rows(), towers[l].weight.rows());
      saved.outputs[l].resize(x.rows(), towers[l].weight.rows());
    }
    if (x.rows() == 0) return;
    const auto mark = ws.mark();
    run(
        x, prior, y, [&](std::size_t l) { return saved.gates[l].hidden.view(); },
        [&](std::size_t l) { return saved.gates[l].gates.view(); }, [&](std::size_t l) { return saved.outputs[l].view(); }, ws);
  }

  /// Adds to `dx` and `dprior`, each unless empty, and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> prior, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx,
                MatrixView<T> dprior, Ppnet& gradient, Workspace& ws) const {
    constexpr const char* name = "Ppnet::backward";
    check(name, x, prior, dy);
    const bool kept = saved.gates.size() == gates.size() && saved.outputs.size() == gates.size();
    check_option(name, "saved", kept, "what forward of this layer saved", static_cast<double>(saved.outputs.size()));
    for (std::size_t l = 0; l < gates.size(); ++l) {
      check_shape(name, "saved.hidden", saved.gates[l].hidden.view(), x.rows(), gates[l].hidden.weight.rows());
      check_shape(name, "saved.gates", saved.gates[l].gates.view(), x.rows(), towers[l].weight.rows());
      check_shape(name, "saved.outputs", saved.outputs[l].view(), x.rows(), towers[l].weight.rows());
    }
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    if (!dprior.empty()) check_shape(name, "dprior", dprior, x.rows(), prior.cols());
    check_gradient_shapes(name, *this, gradient);
    if (x.rows() == 0) return;

    const auto mark = ws.mark();
    const MatrixView<const T> input = detail::side_by_side(prior, x, ws);
    const auto zeros = [&](Index cols) {
      const MatrixView<T> d = ws.matrix<T>(x.rows(), cols);
      std::fill_n(d.data(), x.rows() * cols, T(0));
      return d;
    };
    MatrixView<const T> up = dy;  // of the outputs of layer l
    if (head.weight.rows() > 0) {
      const MatrixView<T> d = zeros(towers.back().weight.rows());
      detail::block_linear_backward<T>(saved.outputs.back(), head.weight, tasks, detail::even_blocks(head.weight.rows(), tasks),
                                       dy, d, gradient.head.weight, gradient.head.bias, ws);
      up = d;
    }
    for (std::size_t l = gates.size(); l-- > 0;) {
      const Index n = towers[l].weight.rows();
      const MatrixView<T> dz = ws.matrix<T>(x.rows(), n), dlogits = ws.matrix<T>(x.rows(), n);
      const Matrix<T>&g = saved.gates[l].gates, &out = saved.outputs[l];
      const T inverse = static_cast<T>(1 / gates[l].options.gamma);
      // With a = relu(z) and out = g a: the logits of the gates get d a g (1 - g / gamma) = d out (1 - g / gamma), so a itself is
      // not kept, and relu lets through where out > 0 (elsewhere a or g is 0).
      detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
        const simd::Batch<T> zero(T(0));
        for (Index r = first; r < first + count; ++r) {
          const T *const pd = up.row(r), *const pg = g.row(r), *const po = out.row(r);
          T *const tz = dz.row(r), *const tl = dlogits.row(r);
          simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
            const auto d = load(pd + i), gate = load(pg + i), o = load(po + i);
            store(tz + i, xsimd::select(o > zero, d * gate, zero));
            store(tl + i, d * o * simd::neg_mul_add(gate, simd::Batch<T>(inverse), simd::Batch<T>(T(1))));
          });
        }
      });
      detail::gate_nu_rows_backward<T>(input, gates[l].view(), saved.gates[l].hidden, dlogits, dprior, gradient.gates[l].view(),
                                       ws);
      const Index blocks = l == 0 ? 1 : tasks;
      const MatrixView<T> down = l == 0 ? dx : zeros(towers[l - 1].weight.rows());
      detail::block_linear_backward<T>(l == 0 ? input.middle_cols(prior.cols(), x.cols()) : saved.outputs[l - 1].view(),
                                       towers[l].weight, blocks, detail::even_blocks(n, blocks), dz, down,
                                       gradient.towers[l].weight, gradient.towers[l].bias, ws);
      up = down;
    }
  }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    check_option(name, "layers", !towers.empty() && towers.size() == gates.size(), "as many gates as hidden layers, at least one",
                 static_cast<double>(gates.size()));
    check_option(name, "tasks", tasks >= 1, "tasks >= 1", static_cast<double>(tasks));
    Index in = input_cols();
    const auto check_tower = [&](const Linear<T>& l) {
      check_shape(name, "towers.weight", l.weight.view(), any_size, in);
      check_option(name, "rows of towers.weight", l.weight.rows() > 0 && l.weight.rows() % tasks == 0,
                   "tasks times the outputs of one", static_cast<double>(l.weight.rows()));
      if (!l.bias.empty()) check_size(name, "towers.bias", VectorView<const T>(l.bias), l.weight.rows());
      in = l.weight.rows() / tasks;
    };
    for (std::size_t l = 0; l < towers.size(); ++l) {
      check_tower(towers[l]);
      check_shape(name, "gates.hidden.weight", gates[l].hidden.weight.view(), any_size, gates[0].input_cols());
      check_shape(name, "gates.output.weight", gates[l].output.weight.view(), towers[l].weight.rows(),
                  gates[l].hidden.weight.rows());
      const Linear<T>&hidden = gates[l].hidden, &output = gates[l].output;
      if (!hidden.bias.empty()) check_size(name, "gates.hidden.bias", VectorView<const T>(hidden.bias), hidden.weight.rows());
      if (!output.bias.empty()) check_size(name, "gates.output.bias", VectorView<const T>(output.bias), output.weight.rows());
      const double gamma = gates[l].options.gamma;
      check_option(name, "gates.gamma", gamma > 0 && std::isfinite(gamma), "gamma > 0", gamma);
    }
    check_option(name, "gates", gates[0].input_cols() >= input_cols(), "gates that read the prior and x",
                 static_cast<double>(gates[0].input_cols()));
    if (head.weight.rows() > 0) check_tower(head);
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> prior, MatrixView<const T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "prior", prior, x.rows(), prior_cols());
    check_shape(name, "y", y, x.rows(), output_cols());
  }
  template <class Hidden, class Gates, class Outputs>
  void run(MatrixView<const T> x, MatrixView<const T> prior, MatrixView<T> y, Hidden&& hidden, Gates&& gate, Outputs&& output,
           Workspace& ws) const {
    const MatrixView<const T> input = detail::side_by_side(prior, x, ws);
    MatrixView<const T> at = input.middle_cols(prior.cols(), x.cols());  // x, in rows that do not evict each other
    for (std::size_t l = 0; l < gates.size(); ++l) {
      const bool last = l + 1 == gates.size() && head.weight.rows() == 0;
      const MatrixView<T> g = gate(l), out = output(l);
      detail::gate_nu_rows<T>(input, gates[l].view(), gates[l].options.gamma, hidden(l), g, ws);
      const Index blocks = l == 0 ? 1 : tasks;
      detail::block_linear<T>(at, towers[l].weight, towers[l].bias, blocks, detail::even_blocks(towers[l].weight.rows(), blocks),
                              Activation::relu, out, ws);
      detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
        for (Index r = first; r < first + count; ++r) {
          T* const o = out.row(r);
          const T* const pg = g.row(r);
          simd::for_each_vector<T, simd::DefaultArch>(
              out.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(o + i, load(o + i) * load(pg + i)); });
          if (last) std::copy_n(o, out.cols(), y.row(r));
        }
      });
      at = out;
    }
    if (head.weight.rows() > 0)
      detail::block_linear<T>(at, head.weight, head.bias, tasks, detail::even_blocks(head.weight.rows(), tasks), Activation::none,
                              y, ws);
  }
};

/// Serving form of Ppnet: the first layer of all gates is one packed product, and so is that of all towers; a block of rows runs from
/// the input to the outputs before the next one starts. Immutable; threads may share it. `S` as in `Weights`.
template <Real T, class S = T>
class FrozenPpnet {
 public:
  FrozenPpnet() = default;
  explicit FrozenPpnet(const Ppnet<T>& layer) : tasks_(layer.tasks), in_(layer.input_cols()), prior_(layer.prior_cols()) {
    constexpr const char* name = "freeze(Ppnet)";
    layer.check_parameters(name);
    Index wide = 0;
    for (const GateNu<T>& g : layer.gates) wide += g.hidden.weight.rows();
    Matrix<T> weight(wide, prior_ + in_);
    Vector<T> bias(wide, T(0));
    wide = 0;
    for (const GateNu<T>& g : layer.gates) {
      const Index n = g.hidden.weight.rows();
      std::copy_n(g.hidden.weight.data(), n * weight.cols(), weight.row(wide));
      std::copy(g.hidden.bias.begin(), g.hidden.bias.end(), bias.data() + wide);
      wide += n;
      gates_.emplace_back(g.output.weight, g.output.bias, Activation::sigmoid);
      gamma_.push_back(static_cast<T>(g.options.gamma));
    }
    hidden_ = FrozenDense<T, S>(weight, bias, Activation::relu);
    for (std::size_t l = 0; l < layer.towers.size(); ++l)
      towers_.push_back(cut(layer.towers[l], l == 0 ? 1 : tasks_, Activation::relu));
    outputs_ = layer.output_cols();
    if (layer.head.weight.rows() > 0) head_ = cut(layer.head, tasks_, Activation::none);
  }

  Index input_cols() const { return in_; }
  Index prior_cols() const { return prior_; }
  Index output_cols() const { return outputs_; }

  /// y as of `Ppnet`.
  void forward(MatrixView<const T> x, MatrixView<const T> prior, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenPpnet";
    check_shape(name, "x", x, any_size, in_);
    check_shape(name, "prior", prior, x.rows(), prior_);
    check_shape(name, "y", y, x.rows(), outputs_);
    if (x.rows() == 0) return;
    constexpr Index block = simd::detail::Chunks<T, simd::DefaultArch>::rows;
    ws.parallel_for((x.rows() + block - 1) / block, [&](Index task, Workspace& scratch) {
      const Index first = task * block, count = std::min(block, x.rows() - first);
      run(x.middle_rows(first, count), prior.middle_rows(first, count), y.middle_rows(first, count), scratch);
    });
  }

 private:
  static std::vector<FrozenDense<T, S>> cut(const Linear<T>& l, Index blocks, Activation f) {
    std::vector<FrozenDense<T, S>> parts;
    const Index n = l.weight.rows() / blocks;
    for (Index b = 0; b < blocks; ++b)
      parts.emplace_back(l.weight.view().middle_rows(b * n, n),
                         l.bias.empty() ? VectorView<const T>() : VectorView<const T>(l.bias).segment(b * n, n), f);
    return parts;
  }
  /// Part b reads block b of the columns of x, all of it where there is one part.
  static void apply(const std::vector<FrozenDense<T, S>>& parts, MatrixView<const T> x, MatrixView<T> y, Workspace& ws) {
    const auto count = static_cast<Index>(parts.size());
    const Index in = x.cols() / count, out = y.cols() / count;
    for (Index b = 0; b < count; ++b)
      parts[static_cast<std::size_t>(b)].forward(x.middle_cols(b * in, in), y.middle_cols(b * out, out), ws);
  }
  void run(MatrixView<const T> x, MatrixView<const T> prior, MatrixView<T> y, Workspace& ws) const {
    const auto mark = ws.mark();
    const MatrixView<const T> input = detail::side_by_side(prior, x, ws);
    const MatrixView<T> h = detail::staggered<T>(x.rows(), hidden_.output_cols(input.cols()), ws);
    hidden_.forward(input, h, ws);
    MatrixView<const T> at = input.middle_cols(prior_, in_);  // x, in rows that do not evict each other
    Index column = 0;
    for (std::size_t l = 0; l < gates_.size(); ++l) {
      const Index width = gates_[l].input_cols(), n = gates_[l].output_cols(width);
      const bool last = l + 1 == gates_.size() && head_.empty();
      const MatrixView<T> out = last ? y : detail::staggered<T>(x.rows(), n, ws), g = ws.matrix<T>(x.rows(), n);
      gates_[l].forward(h.middle_cols(column, width), g, ws);
      column += width;
      apply(towers_[l], at, out, ws);
      const simd::Batch<T> gamma(gamma_[l]);
      for (Index r = 0; r < x.rows(); ++r) {
        T* const o = out.row(r);
        const T* const pg = g.row(r);
        simd::for_each_vector<T, simd::DefaultArch>(
            n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(o + i, load(o + i) * (gamma * load(pg + i))); });
      }
      at = out;
    }
    if (!head_.empty()) apply(head_, at, y, ws);
  }

  FrozenDense<T, S> hidden_;
  std::vector<FrozenDense<T, S>> gates_, head_;
  std::vector<std::vector<FrozenDense<T, S>>> towers_;
  std::vector<T> gamma_;
  Index tasks_ = 1, in_ = 0, prior_ = 0, outputs_ = 0;
};
template <Real T, class S = T>
FrozenPpnet<T, S> freeze(const Ppnet<T>& layer, Weights<S> = {}) {
  return FrozenPpnet<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
