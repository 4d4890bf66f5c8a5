/// @file   recops/train/clip.hpp
/// @brief  Gradient norms and clipping.
#pragma once
#include <cmath>
#include <recops/nn/gradient.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Euclidean norm of all parameters of a gradient together; rows of tables that were not touched count as 0. NaN and infinity
/// come through. Squares are summed in T within blocks and in double across them and across tensors.
template <class L>
double gradient_norm(const L& gradient) {
  double square = 0;
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (path.kind != FieldKind::parameter) return;
        const auto values = leaf_values(leaf);
        using T = std::remove_cvref_t<decltype(*values.data())>;
        square += static_cast<double>(simd::dot<T>(values.data(), values.data(), values.size()));
      },
      gradient);
  return std::sqrt(square);
}

/// Scales the gradient so that its norm is at most `most`; returns the norm before (PyTorch's clip_grad_norm_, whose 1e-6 in the
/// denominator is kept). If the norm is NaN or infinite the gradient stays as it is: leave the step out. Throws `Error` unless most > 0.
template <class L>
double clip_gradient_norm(L& gradient, double most) {
  check_option("clip_gradient_norm", "most", most > 0, "most > 0", most);
  const double norm = gradient_norm(gradient);
  if (!(norm > most) || std::isinf(norm)) return norm;
  const double factor = std::min(1.0, most / (norm + 1e-6));
  visit(
      [&](const FieldPath& path, auto& leaf) {
        if (path.kind != FieldKind::parameter) return;
        auto values = leaf_values(leaf);
        using T = std::remove_reference_t<decltype(*values.data())>;
        simd::scale<T>(static_cast<T>(factor), values.data(), values.data(), values.size());
      },
      gradient);
  return norm;
}

/// Clips every number of the gradient to [-most, most] (PyTorch's clip_grad_value_); NaN stays. Throws `Error` unless most > 0.
template <class L>
void clip_gradient_values(L& gradient, double most) {
  check_option("clip_gradient_values", "most", most > 0, "most > 0", most);
  visit(
      [&](const FieldPath& path, auto& leaf) {
        if (path.kind != FieldKind::parameter) return;
        for (auto& g : leaf_values(leaf)) {
          const auto limit = static_cast<std::remove_reference_t<decltype(g)>>(most);
          g = g > limit ? limit : g < -limit ? -limit : g;
        }
      },
      gradient);
}

}  // namespace RECOPS_ABI
}  // namespace recops
