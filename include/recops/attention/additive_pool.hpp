/// @file   recops/attention/additive_pool.hpp
/// @brief  One vector of each user by additive attention: pooled_b = sum_l a_l x_l, a = softmax over the user's rows of w . tanh(U x_l).
///
/// Shapes      x [total, D]   u [W, D]   w [W]   pooled [B, D]
/// It is `self_attentive_interests` (multi_interest.hpp) with one interest: masks, edge cases, NaN, precision, cost and errors are there.
/// Reference   Bahdanau et al., arXiv 1409.0473; as pooling, Yang et al., Hierarchical Attention Networks, NAACL 2016, section 2.2.
#pragma once
#include <recops/attention/multi_interest.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
MatrixView<const T> as_row(VectorView<const T> w) {
  return MatrixView<const T>(w.data(), 1, w.size());
}

/// By the names that this operator gives its arguments: what is behind it knows them by others.
template <class T>
void check_additive_pool(const char* name, JaggedView<const T> x, MatrixView<const T> u, VectorView<const T> w,
                         VectorView<const std::uint8_t> mask) {
  check_shape(name, "u", u, any_size, any_size);
  check_size(name, "w", w, u.rows());
  check_jagged(name, "x", x, any_size, u.cols());
  check_mask(name, mask, x.values().rows());
}

}  // namespace detail

/// `hidden` [total, W] and `attention` [1, total], either both empty or both kept for backward, receive tanh(U x) and the weights; `mask`
/// [total] hides rows where 0, or is empty.
template <Real T>
void additive_pool(JaggedView<const T> x, MatrixView<const T> u, VectorView<const T> w, VectorView<const std::uint8_t> mask,
                   MatrixView<T> pooled, MatrixView<T> hidden, MatrixView<T> attention, Workspace& ws) {
  constexpr const char* name = "additive_pool";
  detail::check_additive_pool<T>(name, x, u, w, mask);
  check_shape(name, "pooled", pooled, x.size(), x.cols());
  if (!hidden.empty()) check_shape(name, "hidden", hidden, x.values().rows(), u.rows());
  if (!attention.empty()) check_shape(name, "attention", attention, 1, x.values().rows());
  self_attentive_interests<T>(x, x, u, detail::as_row<T>(w), mask, pooled, hidden, attention, ws);
}

/// Adds to the gradients of x, u and w, each unless empty.
template <Real T>
void additive_pool_backward(JaggedView<const T> x, MatrixView<const T> u, VectorView<const T> w,
                            VectorView<const std::uint8_t> mask, MatrixView<const T> hidden, MatrixView<const T> attention,
                            MatrixView<const T> dpooled, MatrixView<T> dx, MatrixView<T> du, VectorView<T> dw, Workspace& ws) {
  constexpr const char* name = "additive_pool_backward";
  detail::check_additive_pool<T>(name, x, u, w, mask);
  check_shape(name, "hidden", hidden, x.values().rows(), u.rows());
  check_shape(name, "attention", attention, 1, x.values().rows());
  check_shape(name, "dpooled", dpooled, x.size(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), x.cols());
  if (!du.empty()) check_shape(name, "du", du, u.rows(), u.cols());
  if (!dw.empty()) check_size(name, "dw", dw, w.size());
  self_attentive_interests_backward<T>(x, x, u, detail::as_row<T>(w), mask, hidden, attention, dpooled, dx, dx, du,
                                       MatrixView<T>(dw.data(), dw.empty() ? 0 : 1, dw.size()), ws);
}

/// The same as a layer; `SelfAttentiveInterests` is the one that has positions and a packed serving form.
template <class T>
struct AdditivePool {
  Matrix<T> u;  ///< [W, D]
  Vector<T> w;  ///< [W]

  AdditivePool() = default;
  /// Uniform in +- 1 / sqrt(inputs). Throws `Error` for sizes below 1.
  AdditivePool(Index width, Index hidden, Random& random) {
    check_option("AdditivePool", "width", width >= 1, "width >= 1", static_cast<double>(width));
    check_option("AdditivePool", "hidden", hidden >= 1, "hidden >= 1", static_cast<double>(hidden));
    u.resize(hidden, width);
    w.resize(hidden);
    const double bound = 1 / std::sqrt(static_cast<double>(width)), last = 1 / std::sqrt(static_cast<double>(hidden));
    for (T& x : leaf_values(u)) x = static_cast<T>(random.uniform(-bound, bound));
    for (T& x : w) x = static_cast<T>(random.uniform(-last, last));
  }
  static constexpr auto fields() { return std::tuple{parameter("u", &AdditivePool::u), parameter("w", &AdditivePool::w)}; }

  struct Saved {
    Matrix<T> hidden, attention;
  };
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> pooled, Workspace& ws) const {
    additive_pool<T>(x, u, w, mask, pooled, {}, {}, ws);
  }
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> pooled, Saved& saved, const Step&,
               Workspace& ws) const {
    saved.hidden.resize(x.values().rows(), u.rows());
    saved.attention.resize(1, x.values().rows());
    additive_pool<T>(x, u, w, mask, pooled, saved.hidden, saved.attention, ws);
  }
  void backward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<const T> dpooled, const Saved& saved,
                MatrixView<T> dx, AdditivePool& gradient, Workspace& ws) const {
    check_gradient_shapes("AdditivePool::backward", *this, gradient);
    additive_pool_backward<T>(x, u, w, mask, saved.hidden, saved.attention, dpooled, dx, gradient.u, gradient.w, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
