// Oracle: the formula under torch's autograd (golden/train.py).
#include <recops/train/uncertainty_weighting.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("uncertainty weighting is the formula", "[train][golden]", float, double) {
  using T = TestType;
  const Golden golden("train");
  const double bound = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  UncertaintyWeighting<T> layer(4), gradient(4);
  const auto s = golden.values<T>("uncertainty.s"), c = golden.values<T>("uncertainty.c"),
             losses = golden.values<T>("uncertainty.losses");
  const auto ds = golden.values<double>("uncertainty.ds");
  std::copy(s.begin(), s.end(), layer.log_variance.begin());
  std::copy(c.begin(), c.end(), layer.scale.begin());
  gradient.log_variance.fill(T(0));
  CHECK(std::abs(layer.value_and_grad(losses, gradient) - golden.scalar("uncertainty.total")) < 4 * bound);
  layer.value_and_grad(losses, gradient);  // adds
  Vector<T> weights(4);
  layer.weights(weights);
  for (Index t = 0; t < 4; ++t) {
    const auto i = static_cast<std::size_t>(t);
    CHECK(std::abs(static_cast<double>(gradient.log_variance[t]) / 2 - ds[i]) < 4 * bound);
    CHECK(std::abs(weights[t] - c[i] * std::exp(-s[i])) < 4 * bound);
  }
  gradient.log_variance = Vector<T>();
  layer.value_and_grad(losses, gradient);  // not wanted
  CHECK(gradient.log_variance.empty());
}

TEST_CASE("its minimum is where a weighted loss is one half", "[train][uncertainty_weighting]") {
  UncertaintyWeighting<double> layer(2), gradient(2);
  const std::vector<double> losses{0.2, 3.0};
  for (int step = 0; step < 2000; ++step) {
    gradient.log_variance.fill(0);
    layer.value_and_grad(losses, gradient);
    for (Index t = 0; t < 2; ++t) layer.log_variance[t] -= 0.05 * gradient.log_variance[t];
  }
  Vector<double> weights(2);
  layer.weights(weights);
  CHECK(std::abs(weights[0] * 0.2 - 0.5) < 1e-9);
  CHECK(std::abs(weights[1] * 3.0 - 0.5) < 1e-9);
  layer.log_variance = Vector<double>{-100, 100};
  layer.weights(weights);
  CHECK(weights[0] == std::exp(10.0));
  CHECK(weights[1] == std::exp(-10.0));
  CHECK(error_of([&] { layer.weights(VectorView<double>(weights.data(), 1)); }) ==
        "UncertaintyWeighting::weights: losses: expected size 2, got 1");
  CHECK(error_of([] { UncertaintyWeighting<double>(-2); }) == "UncertaintyWeighting: tasks: expected a size >= 0, got -2");
}
