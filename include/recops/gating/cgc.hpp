/// @file   recops/gating/cgc.hpp
/// @brief  Customised gate control (CGC): every task mixes experts of its own with experts that all tasks share.
///
///     y_t = sum_e g_te a_e,   g_t = softmax(V_t x_t)          over task t's own experts, then the shared ones
///
/// A `Cgc` is an `Mmoe` whose tasks see these experts: forward, backward, `freeze`, names and edge cases are those of its page.
/// Experts lie in the order [task 0's, task 1's, ..., shared].
///
/// Shapes      x [B, D]   y [B, T H].   As a further level of PLE (`level`): x [B, (T + 1) D], one block of columns per task and
///             last the shared one; with `shared_output` y is [B, (T + 1) H], and the shared mixture sees all experts.
/// Edge cases  No shared experts and one each: T independent layers (gates are exactly 1).   No own experts: an MMoE.
/// Cost        2 B D E H flops for E = sum_t m_t + m_s experts, with one wide product where all read the same x.
/// Errors      Error if sizes are out of range or own experts disagree with tasks.
/// Reference   Tang et al., "Progressive Layered Extraction (PLE)", RecSys 2020, equations 2 to 5 (gates without bias).
#pragma once
#include <recops/gating/mmoe.hpp>

namespace recops {

/// What a `Cgc` is made of; converts to the `MmoeSpec` it stands for.
struct CgcSpec {
  Index inputs = 0;                      ///< D
  Index outputs = 0;                     ///< H
  Index tasks = 1;                       ///< T
  std::vector<Index> own_experts = {1};  ///< m_t for each task, or one number for all of them; may be 0
  Index shared_experts = 1;              ///< m_s, may be 0
  std::vector<Index> hidden = {};        ///< widths of an expert's layers before its last
  ExpertNorm norm = ExpertNorm::none;
  Activation activation = Activation::relu;
  bool bias = true;                     ///< of the experts
  std::vector<Index> gate_hidden = {};  ///< widths of a gate's layers before its logits
  bool gate_bias = false;               ///< the paper has none
  TaskGatesOptions gates = {};          ///< temperature, dropout
  bool level = false;                   ///< x is [B, (T + 1) D]: a level of PLE that is not the first
  bool shared_output = false;           ///< one more mixture, of all experts: a level of PLE that is not the last

  /// Experts of task t.
  Index own(Index t) const { return own_experts[own_experts.size() == 1 ? 0 : static_cast<std::size_t>(t)]; }

  operator MmoeSpec() const { return mmoe({"Cgc", "Cgc::forward", "Cgc::backward", "frozen Cgc"}); }
  /// The same; errors call it `names`.
  MmoeSpec mmoe(const MmoeNames& names) const {
    const char* const name = names.layer;
    check_option(name, "inputs", inputs >= 1, "inputs >= 1", static_cast<double>(inputs));
    check_option(name, "outputs", outputs >= 1, "outputs >= 1", static_cast<double>(outputs));
    check_option(name, "tasks", tasks >= 1 && tasks <= 65535, "1 to 65535", static_cast<double>(tasks));
    check_option(name, "own_experts", own_experts.size() == 1 || static_cast<Index>(own_experts.size()) == tasks,
                 "one number, or one per task", static_cast<double>(own_experts.size()));
    check_option(name, "shared_experts", shared_experts >= 0 && shared_experts <= max_experts, "0 to 65536",
                 static_cast<double>(shared_experts));
    MmoeSpec spec{.inputs = inputs,
                  .experts = shared_experts,
                  .outputs = outputs,
                  .tasks = tasks + (shared_output ? 1 : 0),
                  .hidden = hidden,
                  .norm = norm,
                  .activation = activation,
                  .bias = bias,
                  .gate_hidden = gate_hidden,
                  .gate_bias = gate_bias,
                  .gates = gates,
                  .own_gates = level,
                  .names = names};
    for (Index t = 0; t < tasks; ++t) {
      check_option(name, "own_experts", own(t) >= 0 && own(t) <= max_experts, "0 to 65536", static_cast<double>(own(t)));
      spec.experts += own(t);
    }
    std::vector<Index> all;
    Index at = 0;
    for (Index t = 0; t < tasks; ++t) {
      std::vector<Index> visible;
      for (Index e = 0; e < own(t); ++e) visible.push_back(at + e);
      for (Index e = spec.experts - shared_experts; e < spec.experts; ++e) visible.push_back(e);
      spec.visible.push_back(std::move(visible));
      if (level) spec.groups.push_back({at, own(t), t});
      at += own(t);
    }
    if (level) spec.groups.push_back({at, shared_experts, tasks});
    if (shared_output) {
      for (Index e = 0; e < spec.experts; ++e) all.push_back(e);
      spec.visible.push_back(std::move(all));
    }
    return spec;
  }
};

inline namespace RECOPS_ABI {

/// `Cgc<float> layer(CgcSpec{.inputs = 512, .outputs = 128, .tasks = 6}, random);`
template <Real T>
using Cgc = Mmoe<T>;

}  // namespace RECOPS_ABI
}  // namespace recops
