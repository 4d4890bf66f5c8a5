/// @file   recops/train/sgd.hpp
/// @brief  Stochastic gradient descent with momentum.
#pragma once
#include <recops/train/optimizer.hpp>

namespace recops {

/// Options of `Sgd`; the meaning is PyTorch's.
struct SgdOptions {
  double learning_rate = 1e-2;
  double momentum = 0.0;    ///< of the running sum of gradients; 0: none
  bool nesterov = false;    ///< looks ahead along the momentum (Sutskever et al., ICML 2013)
  double l2_penalty = 0.0;  ///< times the parameter, added to its gradient (PyTorch's weight_decay); not for rows updated lazily
};

inline namespace RECOPS_ABI {

/// Optimiser state for a layer of type L: the velocity v = momentum v + g; then p -= learning_rate v, or with nesterov
/// p -= learning_rate (g + momentum v). The velocity of a table's row stands still while the row is not read.
template <class L>
class Sgd {
 public:
  SgdOptions options;  ///< may change between steps, e.g. by a schedule

  /// Throws `Error` for rates out of range.
  explicit Sgd(const L& layer, const SgdOptions& o = {}) : options(o), velocity_(zeros_like(layer)) {
    check_option("Sgd", "learning_rate", o.learning_rate >= 0, "learning_rate >= 0", o.learning_rate);
    check_option("Sgd", "momentum", 0 <= o.momentum && o.momentum < 1, "0 <= momentum < 1", o.momentum);
    check_option("Sgd", "nesterov", !o.nesterov || o.momentum > 0, "a momentum > 0 with nesterov", o.momentum);
    check_option("Sgd", "l2_penalty", o.l2_penalty >= 0, "l2_penalty >= 0", o.l2_penalty);
  }

  static constexpr auto fields() { return std::tuple{layer("velocity", &Sgd::velocity_)}; }

  /// One step down the gradient, which stays as it is. Throws `Error` if a gradient has another shape than its parameter, or the
  /// parameter another than when Sgd was made.
  void step(L& layer, const L& gradient) {
    detail::update_parameters(
        "Sgd::step", layer, gradient, false,
        [&](detail::Run run, auto* p, const auto* g, Index size, auto* v) {
          update(p, g, v, size, run == detail::Run::sparse_row ? 0 : options.l2_penalty);
        },
        velocity_);
  }

 private:
  template <class T>
  void update(T* p, const T* g, T* v, Index n, double penalty) const {
    using B = simd::Batch<T>;
    const B rate(static_cast<T>(-options.learning_rate)), momentum(static_cast<T>(options.momentum)), l2(static_cast<T>(penalty));
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const B value = load(p + i), grad = simd::mul_add(l2, value, load(g + i));
      const B velocity = simd::mul_add(momentum, load(v + i), grad);
      store(v + i, velocity);
      store(p + i, simd::mul_add(rate, options.nesterov ? simd::mul_add(momentum, velocity, grad) : velocity, value));
    });
  }

  L velocity_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
