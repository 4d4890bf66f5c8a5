/// @file   recops/train/adam.hpp
/// @brief  Adam (Kingma and Ba, arXiv 1412.6980) with decoupled weight decay, lazy for tables.
#pragma once
#include <cmath>
#include <recops/nn/gradient.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {

/// Options of `Adam`; the defaults are PyTorch's.
struct AdamOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;         ///< decay of the mean of gradients
  double beta2 = 0.999;       ///< decay of the mean of squared gradients
  double epsilon = 1e-8;      ///< added to the root of the second moment
  double weight_decay = 0.0;  ///< decoupled (AdamW): times learning_rate; dense parameters only
};

inline namespace RECOPS_ABI {

/// Optimiser state for a layer of type L: two moments of the layer's own type, and the number of steps.
/// Tables whose gradient is by rows are updated lazily: only touched rows and their moments change (as PyTorch's SparseAdam).
/// Buffers are skipped, and so are parameters whose gradient is empty (not wanted). A NaN or infinity in a gradient makes its
/// parameter NaN and stays in the moments: look at the loss before the step. `step` allocates nothing.
template <class L>
class Adam {
 public:
  /// Throws `Error` for rates or decays out of range.
  explicit Adam(const L& layer, const AdamOptions& o = {}) : options(o), mean_(zeros_like(layer)), square_(zeros_like(layer)) {
    check_option("Adam", "learning_rate", o.learning_rate >= 0, "learning_rate >= 0", o.learning_rate);
    check_option("Adam", "beta1", 0 <= o.beta1 && o.beta1 < 1, "0 <= beta1 < 1", o.beta1);
    check_option("Adam", "beta2", 0 <= o.beta2 && o.beta2 < 1, "0 <= beta2 < 1", o.beta2);
    check_option("Adam", "epsilon", o.epsilon > 0, "epsilon > 0", o.epsilon);
    check_option("Adam", "weight_decay", o.weight_decay >= 0, "weight_decay >= 0", o.weight_decay);
  }

  AdamOptions options;  ///< may change between steps, e.g. by a schedule

  std::uint64_t steps() const { return steps_; }

  /// One step down the gradient, which stays as it is. Throws `Error` if a gradient has another shape than its parameter, or the
  /// parameter another than when Adam was made.
  void step(L& layer, const L& gradient) {
    visit(
        [](const FieldPath& path, const auto& parameter, const auto& m) {
          if (path.kind == FieldKind::parameter && !detail::same_shape(parameter, m))
            fail("Adam::step", path.str().c_str(), "the shape it had when Adam was made", "another shape");
        },
        layer, mean_);
    check_gradient_shapes("Adam::step", layer, gradient);
    ++steps_;
    const auto n = static_cast<double>(steps_);
    // sqrt(v / c2) + eps = (sqrt(v) + eps sqrt(c2)) / sqrt(c2): both corrections fold into two constants.
    const double root = std::sqrt(1 - std::pow(options.beta2, n));
    const Constants c{options.learning_rate * root / (1 - std::pow(options.beta1, n)), options.epsilon * root};
    visit(
        [&](const FieldPath& path, auto& parameter, const auto& g, auto& m, auto& v) {
          if (path.kind != FieldKind::parameter) return;
          if constexpr (detail::IsTable<std::remove_cvref_t<decltype(parameter)>>::value) {
            if (g.by_rows) {
              for (Index r = 0; r < g.rows.size(); ++r) {
                const Index row = g.rows[r];
                update(parameter.values.row(row), g.values.row(r), m.values.row(row), v.values.row(row), g.values.cols(), c, 0);
              }
              return;
            }
          }
          if (leaf_values(g).empty()) return;
          update(leaf_values(parameter).data(), leaf_values(g).data(), leaf_values(m).data(), leaf_values(v).data(),
                 leaf_values(parameter).size(), c, options.learning_rate * options.weight_decay);
        },
        layer, gradient, mean_, square_);
  }

 private:
  struct Constants {
    double rate, epsilon;
  };
  template <class T>
  void update(T* p, const T* g, T* m, T* v, Index n, const Constants& c, double decay) const {
    using B = simd::Batch<T>;
    const B b1(static_cast<T>(options.beta1)), a1(static_cast<T>(1 - options.beta1)), b2(static_cast<T>(options.beta2)),
        a2(static_cast<T>(1 - options.beta2)), rate(static_cast<T>(c.rate)), eps(static_cast<T>(c.epsilon)),
        keep(static_cast<T>(1 - decay));
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const B grad = load(g + i), mean = simd::mul_add(b1, load(m + i), a1 * grad),
              square = simd::mul_add(b2, load(v + i), a2 * grad * grad);
      store(m + i, mean);
      store(v + i, square);
      store(p + i, keep * load(p + i) - rate * mean / (xsimd::sqrt(square) + eps));
    });
  }

  L mean_, square_;
  std::uint64_t steps_ = 0;
};

}  // namespace RECOPS_ABI
}  // namespace recops
