/// @file   recops/gating/home.hpp
/// @brief  HoME, hierarchy of multi-gate experts: a mixture for many tasks of very different density.
///
///     meta level     m_S = mixture of all groups        m_c = mixture of {shared, category c}          one per category of tasks
///     task level     h_t = mixture of {shared(m_S), category(m_c), task t's own(m_c)}, gates read [m_c, m_S]
///
/// and in both levels four ingredients that can be switched off one by one: experts end in batch norm and silu (`normalise`); masks
/// as above (`hierarchy`, without which everything sees everything); every group reads its input through a low-rank
/// gate (`feature_gates`); every mixture adds its own group once more, past the softmax (`self_gates`).
///
/// Shapes      x [B, D]   h [B, T H], which is [B, T, H]: task t's tower reads the columns t H .. (t + 1) H
/// Edge cases  as Mmoe.   With feature and self gates off and no masks the meta level is an Mmoe of 1 + C gates, bit for bit.
/// Precision   sums in T; frozen against unfrozen equal within rounding.   Same bits for any number of threads.
/// Cost        2 B D H1 E1 + 2 B H1 H E2 flops for E1 and E2 experts, and with feature gates 4 B D^2 per group of the meta level,
///             which dominates where D is thousands, and 4 B H1^2 per group of the task level; backward twice that.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou", arXiv 2408.05430.   One
///             feature gate per group, the self gates of the task level, and sizes are our reconstruction.
#pragma once
#include <recops/gating/home_level.hpp>

namespace recops {

/// What a `Home` is made of.
struct HomeSpec {
  Index inputs = 0;                    ///< D
  Index meta_outputs = 0;              ///< H1, of the meta level
  Index outputs = 0;                   ///< H, of the task level
  std::vector<Index> categories = {};  ///< category of each task, from 0; tasks of one category are best next to each other
  Index meta_shared_experts = 2, meta_category_experts = 2;
  Index shared_experts = 2, category_experts = 2, own_experts = 1;  ///< of the task level
  std::vector<Index> meta_hidden = {}, hidden = {};                 ///< widths of an expert's layers before its last
  bool normalise = true;                                            ///< batch norm and silu; false: relu, as in MMoE
  bool hierarchy = true;                                            ///< masks; false: every mixture sees every group
  bool feature_gates = true;
  bool self_gates = true;
  bool task_feature_gates = true;  ///< with `feature_gates`: at the task level too
  bool task_self_gates = true;     ///< with `self_gates`: at the task level too
  Index loras = 2;                 ///< L of the feature gates
  Index rank = 0;                  ///< of the feature gates; 0: their inputs / L
  bool gate_bias = false;

  /// C
  Index category_count() const {
    Index count = 0;
    for (const Index c : categories) count = std::max(count, c + 1);
    return count;
  }
  /// Groups and mixtures: shared, then one per category. They all read x.
  HomeLevelSpec meta() const {
    check();
    HomeLevelSpec level = common(meta_outputs, meta_hidden);
    level.inputs = inputs;
    level.loras = feature_gates ? loras : 0;
    level.self_gates = self_gates;
    const Index count = category_count();
    std::vector<Index> all;
    for (Index g = 0; g <= count; ++g) {
      level.groups.push_back({g == 0 ? meta_shared_experts : meta_category_experts, 0});
      all.push_back(g);
    }
    for (Index g = 0; g <= count; ++g) level.mixtures.push_back({g == 0 || !hierarchy ? all : std::vector<Index>{0, g}, g, {0}});
    return level;
  }
  /// Groups: shared, categories, tasks. Mixtures: one per task. Blocks of columns: what the mixtures of the meta level write.
  HomeLevelSpec task() const {
    check();
    HomeLevelSpec level = common(outputs, hidden);
    level.inputs = meta_outputs;
    level.loras = feature_gates && task_feature_gates ? loras : 0;
    level.self_gates = self_gates && task_self_gates;
    const Index count = category_count(), tasks = static_cast<Index>(categories.size());
    std::vector<Index> all;
    for (Index g = 0; g <= count; ++g) level.groups.push_back({g == 0 ? shared_experts : category_experts, g});
    for (const Index c : categories) level.groups.push_back({own_experts, 1 + c});
    for (Index g = 0; g < static_cast<Index>(level.groups.size()); ++g) all.push_back(g);
    for (Index t = 0; t < tasks; ++t) {
      const Index category = 1 + categories[static_cast<std::size_t>(t)], own = 1 + count + t;
      level.mixtures.push_back({hierarchy ? std::vector<Index>{0, category, own} : all, own, {category, 0}});
    }
    return level;
  }

 private:
  void check() const {
    check_option("Home", "categories", !categories.empty(), "the category of each task", 0.0);
    for (const Index c : categories)
      check_option("Home", "categories", c >= 0 && c < 32768, "0 to 32767", static_cast<double>(c));
  }
  HomeLevelSpec common(Index width, const std::vector<Index>& layers) const {
    HomeLevelSpec level;
    level.outputs = width;
    level.hidden = layers;
    level.norm = normalise ? ExpertNorm::batch : ExpertNorm::none;
    level.activation = normalise ? Activation::silu : Activation::relu;
    level.rank = rank;
    level.gate_bias = gate_bias;
    return level;
  }
};

inline namespace RECOPS_ABI {

/// Both levels with their parameters, `meta.experts.weight`, `task.gates.weight`, ...: see HomeLevel.
template <Real T>
struct Home {
  HomeLevel<T> meta, task;

  /// What a training forward leaves for backward and `update`; `meta_outputs` is [B, (1 + C) H1].
  struct Saved {
    typename HomeLevel<T>::Saved meta, task;
    Matrix<T> meta_outputs;
  };

  Home() = default;
  Home(const HomeSpec& spec, Random& random) : meta(spec.meta(), random, "Home::meta"), task(spec.task(), random, "Home::task") {}

  static constexpr auto fields() { return std::tuple{layer("meta", &Home::meta), layer("task", &Home::task)}; }

  /// D
  Index input_cols() const { return meta.input_cols(); }
  /// H
  Index outputs() const { return task.outputs(); }
  Index tasks() const { return task.mixtures(); }
  /// T H; throws `Error` unless the input has D columns.
  Index output_cols(Index cols) const {
    meta.output_cols(cols);
    return tasks() * outputs();
  }

  /// Serving with weights as they are: for a service `freeze` the layer first.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("Home::forward", x, y);
    const auto mark = ws.mark();
    const MatrixView<T> m = ws.matrix<T>(x.rows(), task.input_cols());
    meta.forward(x, m, ws);
    task.forward(m, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("Home::forward", x, y);
    saved.meta_outputs.resize(x.rows(), task.input_cols());
    meta.forward(x, saved.meta_outputs, saved.meta, step.child(0), ws);
    task.forward(saved.meta_outputs, y, saved.task, step.child(1), ws);
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Home& gradient,
                Workspace& ws) const {
    const char* const name = "Home::backward";
    check(name, x, dy);
    check_shape(name, "saved.meta_outputs", saved.meta_outputs.view(), x.rows(), task.input_cols());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dm = ws.matrix<T>(x.rows(), task.input_cols());
    std::fill_n(dm.data(), dm.rows() * dm.cols(), T(0));
    task.backward(saved.meta_outputs, dy, saved.task, dm, gradient.task, ws);
    meta.backward(x, dm, saved.meta, dx, gradient.meta, ws);
  }
  /// Folds the batch statistics of a training step into the running ones; does nothing without batch norm.
  void update(const Saved& saved) {
    meta.update(saved.meta);
    task.update(saved.task);
  }

  /// Throws `Error` unless the task level reads what the meta level writes.
  void check_parameters(const char* name) const {
    meta.check_parameters(name);
    task.check_parameters(name);
    check_option(name, "task level", task.input_cols() == meta.mixtures() * meta.outputs(),
                 "one that reads what the meta level writes", static_cast<double>(task.input_cols()));
  }

 private:
  template <class U>
  void check(const char* name, MatrixView<const T> x, MatrixView<U> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), tasks() * outputs());
  }
};

/// Serving form of `Home`: see FrozenHomeLevel; a block of rows passes through both levels before the next one starts. Immutable;
/// threads may share it. `S`, the format of the weights, is T, or for float BFloat16 or std::int8_t.
template <Real T, class S = T>
class FrozenHome {
 public:
  FrozenHome() = default;
  explicit FrozenHome(const Home<T>& layer) : meta_(layer.meta), task_(layer.task) { layer.check_parameters("freeze"); }

  Index input_cols() const { return meta_.input_cols(); }
  Index outputs() const { return task_.outputs(); }
  Index tasks() const { return task_.mixtures(); }
  Index output_cols(Index) const { return tasks() * outputs(); }
  const FrozenHomeLevel<T, S>& meta() const { return meta_; }
  const FrozenHomeLevel<T, S>& task() const { return task_; }

  /// y `[B, T H]` from x `[B, D]`.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenHome", "x", x, any_size, input_cols());
    check_shape("FrozenHome", "y", y, x.rows(), tasks() * outputs());
    detail::for_serving_blocks(x.rows(), std::min(meta_.block_rows(), task_.block_rows()), ws,
                               [&](Index first, Index count, Workspace& scratch) {
                                 const auto mark = scratch.mark();
                                 const MatrixView<T> m = detail::staggered<T>(count, task_.input_cols(), scratch);
                                 meta_.forward(x.middle_rows(first, count), m, scratch);
                                 task_.forward(m, y.middle_rows(first, count), scratch);
                               });
  }

 private:
  FrozenHomeLevel<T, S> meta_, task_;
};

/// The serving form.
template <Real T, class S = T>
FrozenHome<T, S> freeze(const Home<T>& layer, Weights<S> = {}) {
  return FrozenHome<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
