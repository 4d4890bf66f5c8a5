/// @file   recops/gating/ple.hpp
/// @brief  Progressive layered extraction (PLE): levels of CGC, each task's mixture and the shared one feeding the next level.
///
///     level 1      all experts and gates read x
///     level j      task t's experts and its gate read y_t of the level below, shared experts and the shared gate the shared output
///     last level   has no shared mixture: y_t goes to task t's tower
///
/// Shapes      x [B, D]   y [B, T H], H the outputs of the last level
/// Edge cases  as Mmoe.   One level is CGC.   The last level gives other tasks' own experts exactly no gradient.
/// Precision   as Mmoe; the same bits for any number of threads, frozen for any batch a row is in.
/// Cost        per level 2 B D (E H + G) flops; backward twice that.   Frozen, a block of rows passes through all levels.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
///             Recommendations", RecSys 2020, equations 6 to 9.   Selectors are the outputs of the level below (equation 8).
#pragma once
#include <recops/gating/cgc.hpp>

namespace recops {

/// One level of PLE.
struct PleLevel {
  Index outputs = 0;                     ///< H of this level
  std::vector<Index> hidden = {};        ///< widths of an expert's layers before its last
  std::vector<Index> own_experts = {1};  ///< for each task, or one number for all
  Index shared_experts = 1;
};

/// What a `Ple` is made of.
struct PleSpec {
  Index inputs = 0;                   ///< D
  Index tasks = 1;                    ///< T
  std::vector<PleLevel> levels = {};  ///< from the input up; each needs an expert of any kind
  ExpertNorm norm = ExpertNorm::none;
  Activation activation = Activation::relu;
  bool bias = true;        ///< of the experts
  bool gate_bias = false;  ///< the paper has none
  TaskGatesOptions gates = {};
};

inline namespace RECOPS_ABI {

/// Levels with their parameters: `levels.0.experts.weight`, `levels.0.gates.weight`, ... (see Mmoe and CgcSpec for their order).
template <Real T>
struct Ple {
  std::vector<Cgc<T>> levels;

  /// What a training forward leaves for backward, `update` and whoever wants to look at the gates.
  struct Saved {
    std::vector<typename Cgc<T>::Saved> levels;
    std::vector<Matrix<T>> between;  ///< outputs of all levels but the last
  };

  Ple() = default;
  Ple(const PleSpec& spec, Random& random) {
    check_option("Ple", "levels", !spec.levels.empty(), "one level or more", 0.0);
    Index in = spec.inputs;
    for (std::size_t l = 0; l < spec.levels.size(); ++l) {
      const PleLevel& own = spec.levels[l];
      levels.emplace_back(CgcSpec{.inputs = in,
                                  .outputs = own.outputs,
                                  .tasks = spec.tasks,
                                  .own_experts = own.own_experts,
                                  .shared_experts = own.shared_experts,
                                  .hidden = own.hidden,
                                  .norm = spec.norm,
                                  .activation = spec.activation,
                                  .bias = spec.bias,
                                  .gate_bias = spec.gate_bias,
                                  .gates = spec.gates,
                                  .level = l > 0,
                                  .shared_output = l + 1 < spec.levels.size()}
                              .mmoe({"Ple", "Ple::forward", "Ple::backward", "FrozenPle"}),
                          random);
      in = own.outputs;
    }
  }

  static constexpr auto fields() { return std::tuple{recops::layers("levels", &Ple::levels)}; }

  Index input_cols() const { return levels.empty() ? 0 : levels.front().input_cols(); }
  /// H of the last level
  Index outputs() const { return levels.empty() ? 0 : levels.back().outputs(); }
  Index tasks() const { return levels.empty() ? 0 : levels.back().tasks(); }
  /// T H; throws `Error` unless the input has D columns.
  Index output_cols(Index cols) const {
    if (!levels.empty()) levels.front().output_cols(cols);
    return tasks() * outputs();
  }

  /// Serving with weights as they are: for a service `freeze` the layer first.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("Ple::forward", x, y);
    const auto mark = ws.mark();
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < levels.size(); ++l) {
      const MatrixView<T> next = l + 1 == levels.size() ? y : ws.matrix<T>(x.rows(), levels[l].tasks() * levels[l].outputs());
      levels[l].forward(at, next, ws);
      at = next;
    }
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("Ple::forward", x, y);
    saved.levels.resize(levels.size());
    saved.between.resize(levels.size() - 1);
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < levels.size(); ++l) {
      MatrixView<T> next = y;
      if (l + 1 < levels.size()) {
        saved.between[l].resize(x.rows(), levels[l].tasks() * levels[l].outputs());
        next = saved.between[l];
      }
      levels[l].forward(at, next, saved.levels[l], step.child(static_cast<Index>(l)), ws);
      at = next;
    }
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Ple& gradient,
                Workspace& ws) const {
    const char* const name = "Ple::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    check_option(name, "saved", saved.levels.size() == levels.size() && saved.between.size() + 1 == levels.size(),
                 "what forward of this layer saved", static_cast<double>(saved.levels.size()));
    for (std::size_t l = 0; l + 1 < levels.size(); ++l)
      check_shape(name, "saved.between", saved.between[l].view(), x.rows(), levels[l].tasks() * levels[l].outputs());
    const auto mark = ws.mark();
    MatrixView<const T> up = dy;
    for (std::size_t l = levels.size(); l-- > 0;) {
      const MatrixView<const T> in = l == 0 ? x : MatrixView<const T>(saved.between[l - 1]);
      MatrixView<T> down = dx;
      if (l > 0) {
        down = ws.matrix<T>(x.rows(), in.cols());
        std::fill_n(down.data(), down.rows() * down.cols(), T(0));
      }
      levels[l].backward(in, up, saved.levels[l], down, gradient.levels[l], ws);
      up = down;
    }
  }
  /// Folds the batch statistics of a training step into the running ones; does nothing without batch norm. Throws `Error`
  /// unless a training forward has filled `saved`.
  void update(const Saved& saved) {
    detail::check_saved_layers("Ple::update", saved.levels.size(), levels.size());
    for (std::size_t l = 0; l < levels.size(); ++l) levels[l].update(saved.levels[l]);
  }

  /// Throws `Error` unless every level fits the one below.
  void check_parameters(const char* name) const {
    check_option(name, "levels", !levels.empty(), "one level or more", 0.0);
    for (std::size_t l = 0; l < levels.size(); ++l) {
      levels[l].check_parameters(name);
      if (l > 0)
        check_option(name, "level", levels[l].input_cols() == levels[l - 1].tasks() * levels[l - 1].outputs(),
                     "a level that reads what the one below writes", static_cast<double>(l));
    }
  }

 private:
  template <class U>
  void check(const char* name, MatrixView<const T> x, MatrixView<U> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), tasks() * outputs());
  }
};

/// Serving form of `Ple`: every level packed, experts and gates that read the same columns one product each, batch norm folded in.
/// Immutable; threads may share it.
template <Real T, class S = T>
class FrozenPle {
 public:
  FrozenPle() = default;
  explicit FrozenPle(const Ple<T>& layer) {
    layer.check_parameters("freeze");
    for (const Cgc<T>& level : layer.levels) levels_.emplace_back(level);
    rows_ = levels_[0].block_rows();
    for (const FrozenMmoe<T, S>& level : levels_) rows_ = std::min(rows_, level.block_rows());
  }

  Index input_cols() const { return levels_.empty() ? 0 : levels_.front().input_cols(); }
  Index outputs() const { return levels_.empty() ? 0 : levels_.back().outputs(); }
  Index tasks() const { return levels_.empty() ? 0 : levels_.back().tasks(); }
  Index output_cols(Index) const { return tasks() * outputs(); }
  const std::vector<FrozenMmoe<T, S>>& levels() const { return levels_; }

  /// y `[B, T H]` from x `[B, D]`.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenPle", "x", x, any_size, input_cols());
    check_shape("FrozenPle", "y", y, x.rows(), tasks() * outputs());
    detail::for_serving_blocks(x.rows(), rows_, ws, [&](Index first, Index count, Workspace& scratch) {
      const auto mark = scratch.mark();
      MatrixView<const T> at = x.middle_rows(first, count);
      for (std::size_t l = 0; l < levels_.size(); ++l) {
        const MatrixView<T> next = l + 1 == levels_.size()
                                       ? y.middle_rows(first, count)
                                       : detail::staggered<T>(count, levels_[l].tasks() * levels_[l].outputs(), scratch);
        levels_[l].forward(at, next, scratch);
        at = next;
      }
    });
  }

 private:
  std::vector<FrozenMmoe<T, S>> levels_;
  Index rows_ = 1;
};

/// The serving form.
template <Real T, class S = T>
FrozenPle<T, S> freeze(const Ple<T>& layer, Weights<S> = {}) {
  return FrozenPle<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
