/// @file   recops/train/gradient_check.hpp
/// @brief  Compares a hand-written backward with central differences, for a function or for any layer.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <string>

namespace recops {
inline namespace RECOPS_ABI {

/// What a gradient check found.
struct GradientReport {
  double worst = 0;  ///< largest |numeric - analytic| of all, relative to the largest numeric gradient of its tensor (or 1e-3)
  std::string where = "-";           ///< the entry it belongs to, e.g. "weight[12]"
  double numeric = 0, analytic = 0;  ///< its two values
  Index checked = 0;                 ///< entries compared
};

/// Options of `check_gradient`.
struct GradientCheckOptions {
  double step = 1e-6;  ///< central differences at +- step
  Index most = 200;    ///< entries checked per tensor, evenly spread; all if it has no more
};

/// Compares `analytic [n]` with the differences of `loss()` when `values [n]` change in place, one at a time; values are restored.
/// Adds to `report`. Double precision only: in float the differences are mostly rounding.
template <class Loss>
void check_gradient(const std::string& name, VectorView<double> values, VectorView<const double> analytic, Loss&& loss,
                    GradientReport& report, const GradientCheckOptions& options = {}) {
  check_size("check_gradient", name.c_str(), analytic, values.size());
  const Index n = values.size(), count = n < options.most ? n : options.most;
  Vector<double> numeric(count);
  double largest = 1e-3;
  const auto entry = [&](Index i) { return count == n ? i : i * n / count; };
  for (Index i = 0; i < count; ++i) {
    double& x = values[entry(i)];
    const double before = x;
    x = before + options.step;
    const double up = loss();
    x = before - options.step;
    const double down = loss();
    x = before;
    numeric[i] = (up - down) / (2 * options.step);
    largest = std::max(largest, std::abs(numeric[i]));
  }
  for (Index i = 0; i < count; ++i) {
    const double error = std::abs(numeric[i] - analytic[entry(i)]) / largest;
    ++report.checked;
    if (error <= report.worst) continue;  // a NaN goes on: it is the worst there is
    report = {std::isnan(error) ? std::numeric_limits<double>::infinity() : error, name + "[" + std::to_string(entry(i)) + "]",
              numeric[i], analytic[entry(i)], report.checked};
  }
}

/// Checks the gradient of every parameter of `layer` and of its input `x`, through the loss <y, cotangent> with a cotangent drawn
/// from `seed`. Backward runs twice, because it must add to what is there. The layer is restored.
template <class L>
requires Layer<L, double> GradientReport gradient_check(L& layer, JaggedView<double> x, std::uint64_t seed = 1,
                                                        const GradientCheckOptions& options = {}) {
  Workspace ws;
  const Index cols = layer.output_cols(x.cols());
  const LayerInput<double, L> input = detail::input_of<L, double>(x, x.values());
  Matrix<double> y(x.values().rows(), cols), cotangent(x.values().rows(), cols), dx(x.values().rows(), x.cols(), 0.0);
  Random random(seed);
  for (double& c : leaf_values(cotangent)) c = random.normal();
  const Step step{seed, 1, 0};
  const auto loss = [&] {
    typename L::Saved saved;
    layer.forward(input, y, saved, step, ws);
    double sum = 0;
    for (Index i = 0; i < y.rows() * y.cols(); ++i) sum += y.data()[i] * cotangent.data()[i];
    return sum;
  };
  typename L::Saved saved;
  L gradient = zeros_like(layer);  // tables dense: every number is compared
  layer.forward(input, y, saved, step, ws);
  for (int twice = 0; twice < 2; ++twice) layer.backward(input, cotangent.view(), saved, dx, gradient, ws);
  const auto halve = [](const FieldPath&, auto& leaf) {
    for (auto& g : leaf_values(leaf)) g /= 2;
  };
  halve({}, dx);
  visit(halve, gradient);

  GradientReport report;
  // A strided input is checked row by row.
  for (Index b = 0; b < x.values().rows(); ++b)
    check_gradient("x[" + std::to_string(b) + "]", VectorView(x.values().row(b), x.cols()),
                   VectorView<const double>(dx.row(b), x.cols()), loss, report, options);
  visit(
      [&](const FieldPath& path, auto& leaf, const auto& g) {
        if constexpr (std::is_convertible_v<decltype(leaf_values(leaf)), VectorView<double>>) {
          if (path.kind == FieldKind::parameter)
            check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, options);
        }
      },
      layer, gradient);
  return report;
}

}  // namespace RECOPS_ABI
}  // namespace recops
