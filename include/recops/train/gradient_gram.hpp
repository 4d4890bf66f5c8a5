/// @file   recops/train/gradient_gram.hpp
/// @brief  Inner products of the gradients of several losses, and their weighted sum: what PCGrad and MGDA are made of.
#pragma once
#include <recops/nn/gradient.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

template <class Leaf>
double inner_product(const Leaf& a, const Leaf& b) {
  if constexpr (IsTable<Leaf>::value) {
    if (a.by_rows != b.by_rows) fail("gradient_gram", "gradients", "tables all dense or all by rows", "both kinds");
    if (a.by_rows) {
      double sum = 0;
      for (Index i = 0, j = 0; i < a.rows.size() && j < b.rows.size();) {
        if (a.rows[i] == b.rows[j]) sum += static_cast<double>(simd::dot(a.values.row(i), b.values.row(j), a.values.cols()));
        const bool left = a.rows[i] <= b.rows[j], right = b.rows[j] <= a.rows[i];
        i += left;
        j += right;
      }
      return sum;
    }
  }
  const auto x = leaf_values(a), y = leaf_values(b);
  return static_cast<double>(simd::dot(x.data(), y.data(), x.size()));
}

template <class Leaf, class T>
void add_scaled(T scale, const Leaf& from, Leaf& to) {
  if constexpr (IsTable<Leaf>::value) {
    if (from.by_rows != to.by_rows) fail("combine_gradients", "out", "tables by rows where the gradients' are", "another kind");
    if (from.by_rows) {
      to.touch_rows(from.rows.size(), [&](Index i) { return from.rows[i]; });
      for (Index i = 0, r = 0; i < from.rows.size(); ++i) {
        while (to.rows[r] != from.rows[i]) ++r;
        simd::axpy(scale, from.values.row(i), to.values.row(r), from.values.cols());
      }
      return;
    }
  }
  simd::axpy(scale, leaf_values(from).data(), leaf_values(to).data(), leaf_values(to).size());
}

template <class L>
void check_alike(const char* operation, const L& a, const L& b) {
  visit(
      [operation](const FieldPath& path, const auto& x, const auto& y) {
        if (path.kind != FieldKind::parameter) return;
        bool same;
        if constexpr (IsTable<std::remove_cvref_t<decltype(x)>>::value) {
          same =
              x.values.cols() == y.values.cols() && x.by_rows == y.by_rows && (x.by_rows || x.values.rows() == y.values.rows());
        } else {
          same = same_shape(x, y);
        }
        if (!same) fail(operation, path.str().c_str(), "the same shape in every gradient", "different ones");
      },
      a, b);
}

}  // namespace detail

/// K `[M, M]`, K_ij = <g_i, g_j> over all parameters of M gradients of one layer, e.g. `std::vector<L>` of one per loss; buffers do
/// not count. M (M + 1) / 2 passes. Sums in double across tensors. Throws `Error` for shapes that disagree.
template <class L>
void gradient_gram(VectorView<const L> gradients, MatrixView<double> gram) {
  const Index count = gradients.size();
  check_shape("gradient_gram", "gram", gram, count, count);
  for (Index i = 1; i < count; ++i) detail::check_alike("gradient_gram", gradients[0], gradients[i]);
  for (Index i = 0; i < count; ++i) {
    for (Index j = 0; j <= i; ++j) {
      double sum = 0;
      visit(
          [&](const FieldPath& path, const auto& a, const auto& b) {
            if (path.kind == FieldKind::parameter) sum += detail::inner_product(a, b);
          },
          gradients[i], gradients[j]);
      gram(i, j) = gram(j, i) = sum;
    }
  }
}

/// Adds sum_m coefficients_m g_m to `out`, a gradient of the same layer. Throws `Error` for shapes that disagree.
template <class L>
void combine_gradients(VectorView<const L> gradients, VectorView<const double> coefficients, L& out) {
  check_size("combine_gradients", "coefficients", coefficients, gradients.size());
  for (const L& g : gradients) detail::check_alike("combine_gradients", g, out);
  for (Index m = 0; m < gradients.size(); ++m) {
    visit(
        [&](const FieldPath& path, const auto& g, auto& to) {
          if (path.kind != FieldKind::parameter) return;
          using T = std::remove_cvref_t<decltype(*leaf_values(to).data())>;
          detail::add_scaled(static_cast<T>(coefficients[m]), g, to);
        },
        gradients[m], out);
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
