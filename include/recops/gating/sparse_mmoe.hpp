/// @file   recops/gating/sparse_mmoe.hpp
/// @brief  Sparse mixture of experts: of E experts each task listens to k, and only what some task chose is computed.
///
///     experts_t, w_t = route_topk(V_t x)            y_t = sum over j < k of w_tj expert_(t, j)(x)
///
/// One task is the sparse layer of Switch, GShard or DeepSeek; several are MMoE with sparse gates: a row computes the union of what its
/// tasks chose, each expert once. With k = E and `topk_then_softmax` it is `Mmoe`.
///
/// Shapes      x [N, D]   y [N, T H]   gates.weight [T E, D]   experts.l.weight [E h_l, h_l-1], expert e owns rows e h_l .. (e + 1) h_l
/// Balance     losses in `balance` are part of a training step: `saved.balance_loss` is their sum, backward adds their gradients.
///             `bias_step` > 0 balances without a loss: `update(saved)` after each step moves the biases of the choice.
/// Training    `noise`: routes on noisy logits; drawn from the `Step`. `capacity_factor` > 0: an expert takes at most
///             ceil(factor N T k / E) rows, later ones get nothing from it. Both are for training alone; serving drops nothing.
/// Edge cases  N = 0 does nothing.   A NaN stays in its row.   Same bits for any number of threads; frozen also for any batch a row is in.
/// Cost        2 N T k D H flops at most (E / k less than dense) and 2 N D T E for the gates; weights of experts that are hit.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Shazeer et al., arXiv 1701.06538; Fedus et al., arXiv 2101.03961; DeepSeek-V3, arXiv 2412.19437; gates per task: Ma et al.,
///             KDD 2018. Sparse gates per task with one dispatch for their union are our composition.
#pragma once
#include <recops/gating/balance_loss.hpp>
#include <recops/gating/bias_controller.hpp>
#include <recops/gating/moe_dispatch.hpp>
#include <recops/gating/packed_layers.hpp>
#include <recops/gating/route_topk.hpp>
#include <recops/simd/normal.hpp>
#include <vector>

namespace recops {

/// Weights of the balance losses; 0: without.
struct SparseBalance {
  double switch_loss = 0;  ///< about 1e-2
  double importance = 0;   ///< about 1e-2
  double load = 0;         ///< about 1e-2; needs `noise`, and no bias and no groups that are left out
  double z_loss = 0;       ///< about 1e-3
};

/// What a `SparseMmoe` is made of.
struct SparseMmoeSpec {
  Index inputs = 0;                                 ///< D
  Index experts = 8;                                ///< E
  Index outputs = 0;                                ///< H, of one expert and so of each task
  Index tasks = 1;                                  ///< T
  std::vector<Index> hidden = {};                   ///< widths of an expert's layers before its last
  Activation activation = Activation::relu;         ///< of those
  Activation output_activation = Activation::relu;  ///< of the last
  bool bias = true;                                 ///< of the experts
  RouteOptions route = {};
  bool noise = false;          ///< noisy routing
  double noise_floor = 1e-2;   ///< least deviation of the noise
  double capacity_factor = 0;  ///< 0: nothing is dropped
  double bias_step = 0;        ///< of the bias controller
  SparseBalance balance = {};
};

inline namespace RECOPS_ABI {

template <Real T>
struct SparseMmoe {
  Linear<T> gates;                         ///< weight [T E, D], no bias
  Linear<T> noise;                         ///< the same, of the noise's deviation; empty without noise
  std::vector<Linear<T>> experts;          ///< one per layer, all experts' rows
  std::vector<BiasController<T>> control;  ///< one per task; none where `bias_step` is 0
  SparseMmoeSpec options;

  SparseMmoe() = default;
  /// Initialised as `torch.nn.Linear` would be; with noise the gates begin at 0, as in the paper.
  SparseMmoe(const SparseMmoeSpec& spec, Random& random) : options(spec) {
    check_options("SparseMmoe");
    gates = Linear<T>(checked_size("SparseMmoe", "inputs", spec.inputs), spec.tasks * spec.experts, random, false);
    if (spec.noise) {
      gates.weight.fill(T(0));
      noise = gates;
    }
    Index in = spec.inputs;
    std::vector<Index> widths = spec.hidden;
    widths.push_back(spec.outputs);
    for (const Index width : widths) {
      check_option("SparseMmoe", "widths", width >= 1, "widths >= 1", static_cast<double>(width));
      experts.emplace_back(in, spec.experts * width, random, spec.bias);
      in = width;
    }
    if (spec.bias_step > 0) control.assign(static_cast<std::size_t>(spec.tasks), BiasController<T>(spec.experts, spec.bias_step));
  }
  static constexpr auto fields() {
    return std::tuple{layer("gates", &SparseMmoe::gates), layer("noise", &SparseMmoe::noise),
                      layers("experts", &SparseMmoe::experts), layers("control", &SparseMmoe::control)};
  }

  /// D
  Index input_cols() const { return gates.weight.cols(); }
  /// H; 0 without experts
  Index outputs() const { return experts.empty() || options.experts < 1 ? 0 : experts.back().weight.rows() / options.experts; }
  /// T H; throws `Error` unless the input has D columns.
  Index output_cols(Index cols) const {
    gates.output_cols(cols);
    return options.tasks * outputs();
  }

  struct Saved {
    Matrix<T> logits;                          ///< [N, T E]
    Matrix<T> raw, epsilon, deviation, noisy;  ///< with noise
    Matrix<std::int32_t> choices;              ///< [N, T k], there to be looked at
    Matrix<T> weights;                         ///< [N, T k], there to be looked at
    std::vector<Matrix<T>> pre, out;           ///< per layer [S, h_l], before and after the activation
    Matrix<Index> load;                        ///< [T, E], how often each expert was chosen
    double balance_loss = 0;                   ///< weighted sum of the balance losses
    Index dropped = 0;                         ///< choices beyond an expert's capacity
  };

  /// Serving with weights as they are: for a service `freeze` the layer first.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("SparseMmoe::forward", x, MatrixView<const T>(y));
    if (x.rows() == 0) return;
    const auto mark = ws.mark();
    const Index n = x.rows(), choices_cols = options.tasks * options.route.k;
    const MatrixView<T> logits = ws.matrix<T>(n, gates.weight.rows()), weights = ws.matrix<T>(n, choices_cols);
    const MatrixView<std::int32_t> choices = ws.matrix<std::int32_t>(n, choices_cols);
    linear<T>(x, gates.weight, {}, logits, ws);
    route(logits, choices, weights, ws);
    const ExpertPlan plan = plan_choices(choices, options.experts, 0, ws);
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < experts.size(); ++l) {
      const MatrixView<T> next = ws.matrix<T>(plan.slots(), experts[l].weight.rows() / options.experts);
      grouped_linear<T>(at, l > 0, plan, experts[l].weight, experts[l].bias, activation_of(l), next, ws);
      at = next;
    }
    combine_slots<T>(at, plan.entry, weights, options.tasks, y, ws);
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("SparseMmoe::forward", x, MatrixView<const T>(y));
    const Index n = x.rows(), g = gates.weight.rows(), choices_cols = options.tasks * options.route.k;
    saved.logits.resize(n, g);
    saved.choices.resize(n, choices_cols);
    saved.weights.resize(n, choices_cols);
    saved.pre.resize(experts.size());
    saved.out.resize(experts.size());
    saved.load.resize(options.tasks, options.experts);
    saved.load.fill(0);
    saved.balance_loss = 0;
    saved.dropped = 0;
    const auto mark = ws.mark();
    linear<T>(x, gates.weight, {}, saved.logits, ws);
    if (options.noise) {
      for (Matrix<T>* m : {&saved.raw, &saved.epsilon, &saved.deviation, &saved.noisy}) m->resize(n, g);
      linear<T>(x, noise.weight, {}, saved.raw, ws);
      RandomRow at = step.random_row(RandomPurpose::gumbel);
      for (Index r = 0; r < n; ++r, ++at.row) simd::fill_normal<T>(at, saved.epsilon.row(r), g);
      noisy_logits<T>(saved.logits, saved.raw, saved.epsilon, options.noise_floor, saved.noisy, saved.deviation);
    }
    route(options.noise ? saved.noisy.view() : saved.logits.view(), saved.choices, saved.weights, ws);
    for (Index t = 0; t < options.tasks; ++t)
      count_experts(task_choices(saved.choices.view(), t), VectorView<Index>(saved.load.row(t), options.experts));
    saved.balance_loss = balance(saved, {}, {}, {}, {}, ws);
    const ExpertPlan plan = plan_choices(saved.choices.view(), options.experts, capacity(n), ws);
    saved.dropped = plan.dropped;
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < experts.size(); ++l) {
      const Index h = experts[l].weight.rows() / options.experts;
      saved.pre[l].resize(plan.slots(), h);
      saved.out[l].resize(plan.slots(), h);
      grouped_linear<T>(at, l > 0, plan, experts[l].weight, experts[l].bias, Activation::none, saved.pre[l], ws);
      const Matrix<T>& pre = saved.pre[l];
      Matrix<T>& out = saved.out[l];
      detail::for_row_blocks(plan.slots(), ws, [&](Index first, Index count, Index, Workspace&) {
        for (Index s = first; s < first + count; ++s) simd::activate<T>(activation_of(l), pre.row(s), out.row(s), h);
      });
      at = out;
    }
    combine_slots<T>(at, plan.entry, saved.weights, options.tasks, y, ws);
  }

  /// Adds to `dx` unless empty and to `gradient`, that of the balance losses too.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, SparseMmoe& gradient,
                Workspace& ws) const {
    constexpr const char* name = "SparseMmoe::backward";
    check(name, x, dy);
    const Index n = x.rows(), g = gates.weight.rows(), choices_cols = options.tasks * options.route.k;
    check_shape(name, "saved.logits", saved.logits.view(), n, g);
    check_shape(name, "saved.choices", saved.choices.view(), n, choices_cols);
    check_shape(name, "saved.weights", saved.weights.view(), n, choices_cols);
    check_option(name, "saved", saved.out.size() == experts.size() && saved.pre.size() == experts.size(),
                 "what forward of this layer saved", static_cast<double>(saved.out.size()));
    if (options.noise)
      for (const Matrix<T>* m : {&saved.raw, &saved.epsilon, &saved.deviation, &saved.noisy})
        check_shape(name, "saved", m->view(), n, g);
    if (!dx.empty()) check_shape(name, "dx", dx, n, x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const ExpertPlan plan = plan_choices(saved.choices.view(), options.experts, capacity(n), ws);
    for (std::size_t l = 0; l < experts.size(); ++l) {
      check_shape(name, "saved.pre", saved.pre[l].view(), plan.slots(), experts[l].weight.rows() / options.experts);
      check_shape(name, "saved.out", saved.out[l].view(), plan.slots(), experts[l].weight.rows() / options.experts);
    }
    if (n == 0) return;
    const auto zeros = [&](Index rows, Index cols) {
      const MatrixView<T> m = ws.matrix<T>(rows, cols);
      std::fill_n(m.data(), rows * cols, T(0));
      return m;
    };
    const MatrixView<T> dweights = zeros(n, choices_cols);
    MatrixView<T> up = zeros(plan.slots(), outputs());
    combine_slots_backward<T>(saved.out.back(), plan.entry, saved.weights, options.tasks, dy, up, dweights, ws);
    for (std::size_t l = experts.size(); l-- > 0;) {
      const Matrix<T>&pre = saved.pre[l], &out = saved.out[l];
      detail::for_row_blocks(plan.slots(), ws, [&](Index first, Index count, Index, Workspace&) {
        for (Index s = first; s < first + count; ++s)
          simd::activate_backward<T>(activation_of(l), pre.row(s), out.row(s), up.row(s), up.row(s), up.cols());
      });
      const MatrixView<T> down = l == 0 ? dx : zeros(plan.slots(), experts[l].weight.cols());
      grouped_linear_backward<T>(l == 0 ? x : saved.out[l - 1].view(), l > 0, plan, experts[l].weight, up, down,
                                 gradient.experts[l].weight, gradient.experts[l].bias, ws);
      up = down;
    }
    const MatrixView<T> dlogits = zeros(n, g), dnoisy = zeros(options.noise ? n : 0, g), ddeviation = zeros(dnoisy.rows(), g);
    balance(saved, dlogits, dnoisy, ddeviation, dweights, ws);
    const MatrixView<const T> routed = options.noise ? saved.noisy.view() : saved.logits.view();
    for (Index t = 0; t < options.tasks; ++t)
      route_topk_backward<T>(task_logits(routed, t), task_choices(saved.choices.view(), t), task_choices(saved.weights.view(), t),
                             options.route, task_choices(MatrixView<const T>(dweights), t),
                             task_logits(options.noise ? dnoisy : dlogits, t), ws);
    if (options.noise) {
      const MatrixView<T> draw = zeros(n, g);
      noisy_logits_backward<T>(saved.raw, saved.epsilon, dnoisy, ddeviation, dlogits, draw);
      linear_backward<T>(x, noise.weight, draw, dx, gradient.noise.weight, {}, ws);
    }
    linear_backward<T>(x, gates.weight, dlogits, dx, gradient.gates.weight, {}, ws);
  }

  /// Moves the biases of the choice by what this step's experts had to do; nothing where `bias_step` is 0.
  void update(const Saved& saved) {
    if (control.empty()) return;
    check_shape("SparseMmoe::update", "saved.load", saved.load.view(), static_cast<Index>(control.size()), options.experts);
    for (std::size_t t = 0; t < control.size(); ++t)
      control[t].update(VectorView<const Index>(saved.load.row(static_cast<Index>(t)), options.experts));
  }

  /// Rows an expert takes in training for n rows; 0: all.
  Index capacity(Index n) const {
    if (options.capacity_factor <= 0 || options.experts < 1) return 0;
    return std::max<Index>(
        1, static_cast<Index>(std::ceil(options.capacity_factor * static_cast<double>(n * options.tasks * options.route.k) /
                                        static_cast<double>(options.experts))));
  }
  Activation activation_of(std::size_t layer) const {
    return layer + 1 == experts.size() ? options.output_activation : options.activation;
  }
  /// Throws `Error` unless parameters and options fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    check_options(name);
    check_option(name, "experts", !experts.empty(), "one layer or more (was it made from a spec?)", 0);
    const Index e = options.experts;
    check_shape(name, "gates.weight", gates.weight.view(), options.tasks * e, any_size);
    if (options.noise) check_shape(name, "noise.weight", noise.weight.view(), options.tasks * e, gates.weight.cols());
    Index in = gates.weight.cols();
    for (const Linear<T>& l : experts) {
      check_shape(name, "experts.weight", l.weight.view(), any_size, in);
      check_option(name, "rows of experts.weight", l.weight.rows() > 0 && l.weight.rows() % e == 0,
                   "experts times the outputs of one", static_cast<double>(l.weight.rows()));
      if (!l.bias.empty()) check_size(name, "experts.bias", VectorView<const T>(l.bias), l.weight.rows());
      in = l.weight.rows() / e;
    }
    check_option(name, "control", control.empty() || static_cast<Index>(control.size()) == options.tasks, "one per task, or none",
                 static_cast<double>(control.size()));
    for (const auto& c : control) check_size(name, "control.bias", VectorView<const T>(c.bias), e);
  }

 private:
  void check_options(const char* name) const {
    check_option(name, "tasks", options.tasks >= 1 && options.tasks <= 65536, "1 to 65536", static_cast<double>(options.tasks));
    check_option(name, "experts", options.experts >= 1 && options.experts <= 65536, "1 to 65536",
                 static_cast<double>(options.experts));
    detail::check_route(name, options.experts, options.route);
    check_option(name, "noise_floor", options.noise_floor >= 0 && std::isfinite(options.noise_floor), "noise_floor >= 0",
                 options.noise_floor);
    check_option(name, "capacity_factor", options.capacity_factor >= 0 && options.capacity_factor <= 1e6, "0 to 1e6",
                 options.capacity_factor);
    check_option(name, "balance.load", options.balance.load == 0 || options.noise, "0 without noise", options.balance.load);
    // Its threshold is that of a choice by the noisy logits alone.
    check_option(name, "balance.load",
                 options.balance.load == 0 || (options.bias_step == 0 && options.route.groups_kept == options.route.groups),
                 "0 with a bias or groups that are left out", options.balance.load);
    check_option(name, "bias_step", options.bias_step >= 0 && options.bias_step <= 1e6, "0 to 1e6", options.bias_step);
  }
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), options.tasks * outputs());
  }
  template <class V>
  MatrixView<V> task_logits(MatrixView<V> m, Index t) const {
    return m.middle_cols(t * options.experts, options.experts);
  }
  template <class V>
  MatrixView<V> task_choices(MatrixView<V> m, Index t) const {
    return m.middle_cols(t * options.route.k, options.route.k);
  }
  void route(MatrixView<const T> logits, MatrixView<std::int32_t> choices, MatrixView<T> weights, Workspace& ws) const {
    for (Index t = 0; t < options.tasks; ++t)
      route_topk<T>(task_logits(logits, t),
                    control.empty() ? VectorView<const T>() : VectorView<const T>(control[static_cast<std::size_t>(t)].bias),
                    options.route, task_choices(choices, t), task_choices(weights, t), ws);
  }
  double balance(const Saved& saved, MatrixView<T> dlogits, MatrixView<T> dnoisy, MatrixView<T> ddeviation,
                 MatrixView<T> dweights, Workspace& ws) const {
    const SparseBalance& b = options.balance;
    double sum = 0;
    const auto part = [&](MatrixView<T> m, Index t) { return m.empty() ? m : task_logits(m, t); };
    for (Index t = 0; t < options.tasks; ++t) {
      const MatrixView<const T> logits = task_logits(saved.logits.view(), t);
      const MatrixView<const std::int32_t> chosen = task_choices(saved.choices.view(), t);
      if (b.switch_loss != 0) sum += switch_balance_value_and_grad<T>(logits, chosen, b.switch_loss, true, part(dlogits, t), ws);
      if (b.z_loss != 0) sum += router_z_value_and_grad<T>(logits, b.z_loss, part(dlogits, t), ws);
      if (b.importance != 0)
        sum += importance_value_and_grad<T>(task_choices(saved.weights.view(), t), chosen, options.experts, b.importance,
                                            dweights.empty() ? dweights : task_choices(dweights, t), ws);
      if (b.load != 0)
        sum += load_balance_value_and_grad<T>(logits, task_logits(saved.noisy.view(), t), task_logits(saved.deviation.view(), t),
                                              chosen, b.load, part(dlogits, t), part(dnoisy, t), part(ddeviation, t), ws);
    }
    return sum;
  }
};

/// Serving form of SparseMmoe: gates and every expert packed; a block of an expert's rows runs through all its layers while it is in
/// cache. Immutable; threads may share it. `S`, the format of the experts' weights, is T, or for float BFloat16 or std::int8_t; gates
/// stay in T, so that the format does not change who is chosen.
template <Real T, class S = T>
class FrozenSparseMmoe {
 public:
  FrozenSparseMmoe() = default;
  explicit FrozenSparseMmoe(const SparseMmoe<T>& layer)
      : gates_(checked(layer).gates.weight, {}, Activation::none),
        route_(layer.options.route),
        experts_(layer.options.experts),
        tasks_(layer.options.tasks),
        outputs_(layer.outputs()) {
    for (const auto& c : layer.control) bias_.push_back(c.bias);
    for (std::size_t l = 0; l < layer.experts.size(); ++l) {
      const Linear<T>& from = layer.experts[l];
      layers_.add(from.weight, from.bias, experts_, detail::even_blocks(from.weight.rows(), experts_), layer.activation_of(l));
    }
  }
  Index input_cols() const { return gates_.input_cols(); }
  Index outputs() const { return outputs_; }
  Index output_cols(Index) const { return tasks_ * outputs_; }

  /// y `[N, T H]`; `choices [N, T k]` shows who was chosen (empty: not wanted).
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws, MatrixView<std::int32_t> choices = {}) const {
    constexpr const char* name = "FrozenSparseMmoe";
    const Index n = x.rows(), k = route_.k;
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, n, tasks_ * outputs_);
    if (!choices.empty()) check_shape(name, "choices", choices, n, tasks_ * k);
    if (n == 0) return;
    const auto mark = ws.mark();
    const MatrixView<T> logits = ws.matrix<T>(n, tasks_ * experts_), weights = ws.matrix<T>(n, tasks_ * k);
    if (choices.empty()) choices = ws.matrix<std::int32_t>(n, tasks_ * k);
    gates_.forward(x, logits, ws);
    for (Index t = 0; t < tasks_; ++t)
      route_topk<T>(logits.middle_cols(t * experts_, experts_),
                    bias_.empty() ? VectorView<const T>() : VectorView<const T>(bias_[static_cast<std::size_t>(t)]), route_,
                    choices.middle_cols(t * k, k), weights.middle_cols(t * k, k), ws);
    const ExpertPlan plan = plan_choices(choices, experts_, 0, ws);
    const MatrixView<T> z = ws.matrix<T>(plan.slots(), outputs_);
    constexpr Index block = simd::detail::Chunks<T, simd::DefaultArch>::rows;
    Index* const ends = ws.take<Index>(experts_);  // blocks of the experts up to each
    Index total = 0;
    for (Index e = 0; e < experts_; ++e) ends[e] = total += (plan.count(e) + block - 1) / block;
    ws.parallel_for(total, [&](Index task, Workspace& scratch) {
      const Index e = std::upper_bound(ends, ends + experts_, task) - ends, within = task - (e > 0 ? ends[e - 1] : 0);
      const Index first = plan.begin[e] + within * block, count = std::min(block, plan.begin[e + 1] - first);
      const auto own = scratch.mark();
      MatrixView<const T> at = detail::gather_slots(x, plan, first, count, scratch);
      for (std::size_t l = 0; l < layers_.layers(); ++l) {
        const MatrixView<T> next =
            l + 1 == layers_.layers() ? z.middle_rows(first, count) : scratch.matrix<T>(count, layers_.block_cols(l));
        layers_.forward_block(l, e, at, next, scratch);
        at = next;
      }
    });
    combine_slots<T>(z, plan.entry, weights, tasks_, y, ws);
  }

 private:
  static const SparseMmoe<T>& checked(const SparseMmoe<T>& layer) {
    layer.check_parameters("freeze(SparseMmoe)");
    return layer;
  }

  FrozenDense<T> gates_;
  detail::PackedLayers<T, S> layers_;  // a block for each expert
  std::vector<Vector<T>> bias_;        // of the choice, by task
  RouteOptions route_;
  Index experts_ = 1, tasks_ = 1, outputs_ = 0;
};
template <Real T, class S = T>
FrozenSparseMmoe<T, S> freeze(const SparseMmoe<T>& layer, Weights<S> = {}) {
  return FrozenSparseMmoe<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
