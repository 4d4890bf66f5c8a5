/// @file   recops/train/adam.hpp
/// @brief  Adam (Kingma and Ba, arXiv 1412.6980) and AdamW (arXiv 1711.05101), lazy for tables.
#pragma once
#include <recops/train/optimizer.hpp>

namespace recops {

/// Options of `Adam`; the defaults are PyTorch's.
struct AdamOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;         ///< decay of the mean of gradients
  double beta2 = 0.999;       ///< decay of the mean of squared gradients
  double epsilon = 1e-8;      ///< added to the root of the second moment
  double weight_decay = 0.0;  ///< decoupled, times learning_rate (torch.optim.AdamW's); not for rows updated lazily
  double l2_penalty = 0.0;    ///< times the parameter, added to its gradient (torch.optim.Adam's weight_decay)
};

inline namespace RECOPS_ABI {

/// Optimiser state for a layer of type L: two moments of the layer's own type, and the number of steps.
/// Tables by rows are updated as by PyTorch's SparseAdam. About 4 reads and 3 writes a parameter: bound by memory.
template <class L>
class Adam {
 public:
  AdamOptions options;  ///< may change between steps, e.g. by a schedule

  /// Throws `Error` for rates or decays out of range.
  explicit Adam(const L& layer, const AdamOptions& o = {})
      : options(o), mean_(zeros_like(layer)), square_(zeros_like(layer)), steps_(1, 0) {
    check_option("Adam", "learning_rate", o.learning_rate >= 0, "learning_rate >= 0", o.learning_rate);
    check_option("Adam", "beta1", 0 <= o.beta1 && o.beta1 < 1, "0 <= beta1 < 1", o.beta1);
    check_option("Adam", "beta2", 0 <= o.beta2 && o.beta2 < 1, "0 <= beta2 < 1", o.beta2);
    check_option("Adam", "epsilon", o.epsilon > 0, "epsilon > 0", o.epsilon);
    check_option("Adam", "weight_decay", o.weight_decay >= 0, "weight_decay >= 0", o.weight_decay);
    check_option("Adam", "l2_penalty", o.l2_penalty >= 0, "l2_penalty >= 0", o.l2_penalty);
  }

  static constexpr auto fields() {
    return std::tuple{layer("mean", &Adam::mean_), layer("square", &Adam::square_), buffer("steps", &Adam::steps_)};
  }

  std::uint64_t steps() const { return static_cast<std::uint64_t>(steps_[0]); }

  /// One step down the gradient, which stays as it is. Throws `Error` if a gradient has another shape than its parameter, or the
  /// parameter another than when Adam was made.
  void step(L& layer, const L& gradient) {
    const auto n = static_cast<double>(steps_[0] + 1);
    // sqrt(v / c2) + eps = (sqrt(v) + eps sqrt(c2)) / sqrt(c2): both corrections fold into two constants.
    const double root = std::sqrt(1 - std::pow(options.beta2, n));
    const double rate = options.learning_rate * root / (1 - std::pow(options.beta1, n)), epsilon = options.epsilon * root;
    detail::update_parameters(
        "Adam::step", layer, gradient, false,
        [&](detail::Run run, auto* p, const auto* g, Index size, auto* m, auto* v) {
          update(p, g, m, v, size, rate, epsilon,
                 run == detail::Run::sparse_row ? 0 : options.learning_rate * options.weight_decay,
                 run == detail::Run::sparse_row ? 0 : options.l2_penalty);
        },
        mean_, square_);
    ++steps_[0];
  }

 private:
  template <class T>
  void update(T* p, const T* g, T* m, T* v, Index n, double rate, double epsilon, double decay, double penalty) const {
    using B = simd::Batch<T>;
    const B b1(static_cast<T>(options.beta1)), a1(static_cast<T>(1 - options.beta1)), b2(static_cast<T>(options.beta2)),
        a2(static_cast<T>(1 - options.beta2)), r(static_cast<T>(rate)), eps(static_cast<T>(epsilon)),
        keep(static_cast<T>(1 - decay)), l2(static_cast<T>(penalty));
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const B value = load(p + i), grad = simd::mul_add(l2, value, load(g + i));
      const B mean = simd::mul_add(b1, load(m + i), a1 * grad), square = simd::mul_add(b2, load(v + i), a2 * grad * grad);
      store(m + i, mean);
      store(v + i, square);
      store(p + i, keep * value - r * mean / (xsimd::sqrt(square) + eps));
    });
  }

  L mean_, square_;
  Vector<std::int64_t> steps_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
