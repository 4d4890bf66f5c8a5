/// @file   recops/train/adagrad.hpp
/// @brief  Adagrad (Duchi, Hazan and Singer, JMLR 2011), and its row-wise form for embedding tables.
#pragma once
#include <recops/simd/reduce.hpp>
#include <recops/train/optimizer.hpp>

namespace recops {

/// Options of `Adagrad`; the meaning is PyTorch's.
struct AdagradOptions {
  double learning_rate = 1e-2;
  double rate_decay = 0.0;           ///< step n (from 1) takes learning_rate / (1 + (n - 1) rate_decay)
  double initial_accumulator = 0.0;  ///< what the sum of squares starts from
  double epsilon = 1e-10;            ///< added to the root of the sum
  double l2_penalty = 0.0;  ///< times the parameter, added to its gradient (PyTorch's weight_decay); not for rows updated lazily
  bool row_wise = false;    ///< tables keep one sum a row, of the mean square of the row's gradient: 1/D of the memory
};

inline namespace RECOPS_ABI {

/// Optimiser state for a layer of type L: the sums of squared gradients s; p -= rate g / (sqrt(s) + epsilon). With `row_wise` the
/// state of a table `[V, D]` is `[V, 1]` (as in FBGEMM's exact row-wise Adagrad); dense parameters are as always.
template <class L>
class Adagrad {
 public:
  AdagradOptions options;  ///< may change between steps, but for row_wise

  /// Throws `Error` for rates out of range.
  explicit Adagrad(const L& layer, const AdagradOptions& o = {}) : options(o), sums_(layer), steps_(1, 0), row_wise_(o.row_wise) {
    check_option("Adagrad", "learning_rate", o.learning_rate >= 0, "learning_rate >= 0", o.learning_rate);
    check_option("Adagrad", "rate_decay", o.rate_decay >= 0, "rate_decay >= 0", o.rate_decay);
    check_option("Adagrad", "initial_accumulator", o.initial_accumulator >= 0, "initial_accumulator >= 0", o.initial_accumulator);
    check_option("Adagrad", "epsilon", o.epsilon > 0, "epsilon > 0", o.epsilon);
    check_option("Adagrad", "l2_penalty", o.l2_penalty >= 0, "l2_penalty >= 0", o.l2_penalty);
    visit(
        [&](const FieldPath& path, auto& sums) {
          using Leaf = std::remove_cvref_t<decltype(sums)>;
          if constexpr (detail::IsTable<Leaf>::value) {
            if (row_wise_) sums.values = decltype(sums.values)(sums.values.rows(), 1);
          }
          for (auto& s : leaf_values(sums)) {
            s = static_cast<std::remove_reference_t<decltype(s)>>(path.kind == FieldKind::parameter ? o.initial_accumulator : 0);
          }
        },
        sums_);
  }

  static constexpr auto fields() { return std::tuple{layer("sums", &Adagrad::sums_), buffer("steps", &Adagrad::steps_)}; }

  std::uint64_t steps() const { return static_cast<std::uint64_t>(steps_[0]); }

  /// One step down the gradient, which stays as it is. Throws `Error` if a gradient has another shape than its parameter, or the
  /// parameter another than when Adagrad was made.
  void step(L& layer, const L& gradient) {
    const double rate = options.learning_rate / (1 + static_cast<double>(steps_[0]) * options.rate_decay);
    detail::update_parameters(
        "Adagrad::step", layer, gradient, row_wise_,
        [&](detail::Run run, auto* p, const auto* g, Index size, auto* s) {
          const double penalty = run == detail::Run::sparse_row ? 0 : options.l2_penalty;
          if (row_wise_ && run != detail::Run::dense) {
            update_row(p, g, *s, size, rate, penalty);
          } else {
            update(p, g, s, size, rate, penalty);
          }
        },
        sums_);
    ++steps_[0];
  }

 private:
  template <class T>
  void update(T* p, const T* g, T* s, Index n, double rate, double penalty) const {
    using B = simd::Batch<T>;
    const B r(static_cast<T>(rate)), eps(static_cast<T>(options.epsilon)), l2(static_cast<T>(penalty));
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const B value = load(p + i), grad = simd::mul_add(l2, value, load(g + i)), sum = simd::mul_add(grad, grad, load(s + i));
      store(s + i, sum);
      store(p + i, value - r * grad / (xsimd::sqrt(sum) + eps));
    });
  }

  template <class T>
  void update_row(T* p, const T* g, T& sum, Index n, double rate, double penalty) const {
    double square = 0;
    for (Index i = 0; i < n; ++i) {
      const double grad = static_cast<double>(g[i]) + penalty * static_cast<double>(p[i]);
      square += grad * grad;
    }
    sum += static_cast<T>(square / static_cast<double>(n));
    const double scale = rate / (std::sqrt(static_cast<double>(sum)) + options.epsilon);
    simd::scale(static_cast<T>(1 - scale * penalty), p, p, n);
    simd::axpy(static_cast<T>(-scale), g, p, n);
  }

  L sums_;
  Vector<std::int64_t> steps_;
  bool row_wise_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
