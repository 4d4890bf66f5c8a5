/// @file   tests/gating/golden_parts.hpp
/// @brief  Compares parts of a model that have several inputs with golden vectors.
#pragma once
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/golden_layer.hpp"

namespace recops_test {

/// Largest difference of the gradient's parameters from the golden ones called `prefix + "d." + name`, relative to the largest number
/// of each tensor (or 0.1). The gradient was added `times` times.
template <class L>
double gradient_distance(const Golden& golden, const std::string& prefix, const L& gradient, double times) {
  double worst = 0;
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        const auto got = leaf_values(leaf);
        if (path.kind != FieldKind::parameter || got.empty()) return;
        const auto expected = golden.values<double>(prefix + "d." + path.str());
        REQUIRE(static_cast<Index>(expected.size()) == got.size());
        double most = 0.1, difference = 0;
        for (const double e : expected) most = std::max(most, std::abs(e));
        for (Index i = 0; i < got.size(); ++i) {
          const double d = std::abs(static_cast<double>(got[i]) / times - expected[static_cast<std::size_t>(i)]);
          difference = d <= difference ? difference : d;  // NaN goes on
        }
        if (!(difference / most <= 1e-10)) UNSCOPED_INFO(path.str() << " is off by " << difference / most);
        worst = difference / most <= worst ? worst : difference / most;
      },
      gradient);
  return worst;
}

/// <a, b>
template <class A, class B>
double inner(MatrixView<A> a, MatrixView<B> b) {
  double sum = 0;
  for (Index r = 0; r < a.rows(); ++r)
    for (Index j = 0; j < a.cols(); ++j) sum += static_cast<double>(a(r, j)) * static_cast<double>(b(r, j));
  return sum;
}

/// y / times against golden numbers.
template <class T>
double distance(const Golden& golden, const std::string& key, MatrixView<const T> y, double times = 1) {
  Matrix<double> expected = golden.matrix<double>(key);
  for (double& v : leaf_values(expected)) v *= times;
  return max_difference(y, expected.view()) / times;
}

/// Checks the gradient of every parameter of `layer` against central differences of `loss()`.
template <class L, class Loss>
void check_parameters(L& layer, const L& gradient, Loss&& loss, GradientReport& report, Index most = 60) {
  visit(
      [&](const FieldPath& path, auto& leaf, const auto& g) {
        if constexpr (std::is_convertible_v<decltype(leaf_values(leaf)), VectorView<double>>)
          if (path.kind == FieldKind::parameter)
            check_gradient(path.str(), leaf_values(leaf), VectorView<const double>(leaf_values(g)), loss, report, {.most = most});
      },
      layer, gradient);
}

/// Every parameter of two layers has the same bits.
template <class L>
bool same_bits(const L& a, const L& b) {
  bool same = true;
  visit(
      [&](const FieldPath&, const auto& p, const auto& q) {
        const auto x = leaf_values(p), y = leaf_values(q);
        same = same && x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
      },
      a, b);
  return same;
}

}  // namespace recops_test
