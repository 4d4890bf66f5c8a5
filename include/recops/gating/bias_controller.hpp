/// @file   recops/gating/bias_controller.hpp
/// @brief  Keeps experts equally busy without a loss: a bias that enters the choice of experts, never their weights, and moves by a fixed
///         step towards those with too little to do.
///
///     b_i += step sign(mean load - load_i)           after each training step
///
/// Reference   Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", arXiv 2408.15664, algorithm 1;
///             DeepSeek-V3, arXiv 2412.19437, section 2.1.2 (step 1e-3, 0 late in training).
#pragma once
#include <algorithm>
#include <recops/core/error.hpp>
#include <recops/core/fields.hpp>
#include <recops/core/matrix.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// How often each expert was chosen: adds to `load [E]`; -1 is no choice. Throws `Error` for a choice that is out of range.
inline void count_experts(MatrixView<const std::int32_t> experts, VectorView<Index> load) {
  check_shape("count_experts", "experts", experts, any_size, any_size);
  check_size("count_experts", "load", load, any_size);
  for (int pass = 0; pass < 2; ++pass)
    for (Index r = 0; r < experts.rows(); ++r)
      for (Index j = 0; j < experts.cols(); ++j) {
        const std::int32_t e = experts(r, j);
        if (pass == 1 && e >= 0) ++load[e];
        if (e < -1 || e >= load.size()) [[unlikely]]
          detail::fail_at("count_experts", "experts", "-1 or experts from 0 to below ", load.size(), r * experts.cols() + j, e);
      }
}

/// max_i load_i / mean load - 1: 0 where all have the same to do; 0 for no load at all.
inline double max_violation(VectorView<const Index> load) {
  Index most = 0, sum = 0;
  for (const Index v : load) most = std::max(most, v), sum += v;
  return sum == 0 ? 0 : static_cast<double>(most) * static_cast<double>(load.size()) / static_cast<double>(sum) - 1;
}

/// The bias with its rule; a buffer: saved with the model, passed over by optimisers and weight decay.
template <Real T>
struct BiasController {
  Vector<T> bias;      ///< [E], at first 0
  double step = 1e-3;  ///< 0 holds the bias

  BiasController() = default;
  explicit BiasController(Index experts, double speed = 1e-3)
      : bias(checked_size("BiasController", "experts", experts), T(0)), step(speed) {}
  static constexpr auto fields() { return std::tuple{buffer("bias", &BiasController::bias)}; }

  /// `load [E]`: choices of the whole batch, of all machines. Throws `Error` for a load of another size or a step below 0.
  void update(VectorView<const Index> load) {
    check_size("BiasController::update", "load", load, bias.size());
    check_option("BiasController::update", "step", step >= 0 && step <= 1e6, "0 to 1e6", step);
    double sum = 0;
    for (const Index v : load) sum += static_cast<double>(v);
    const double mean = sum / static_cast<double>(std::max(load.size(), Index{1}));
    for (Index i = 0; i < load.size(); ++i) {
      const auto own = static_cast<double>(load[i]);
      bias[i] += static_cast<T>(own < mean ? step : own > mean ? -step : 0.0);
    }
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
