// Oracles: central differences; its parts, called one by one; the serving form.
#include <recops/nn/attention_sublayer.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("attention with residual and norm: value, gradient, serving form, errors", "[nn][attention_sublayer]") {
  Random random = random_stream(931);
  Workspace ws;
  AttentionSublayer<double> layer(6, 2, 0.3, random, 4);
  for (double& w : leaf_values(layer.norm.weight)) w = random.normal();
  Matrix<double> x = random_matrix<double>(5, 6, random), z = random_matrix<double>(7, 4, random);
  const std::vector<int> xo{0, 2, 3, 5}, zo{0, 4, 4, 7};  // the second has nothing to look at
  const JaggedView<const double> a(x.view(), xo), b(z.view(), zo);
  Padded<double> y(5, 6), frozen(5, 6), parts(5, 6);
  layer.forward(a, b, y, ws);
  freeze(layer).forward(a, b, frozen, ws);
  layer.attention.forward(a, b, parts, ws);
  for (Index i = 0; i < 5; ++i) simd::add(x.row(i), parts.view().row(i), 6);
  layer.norm.forward(parts.view(), parts, ws);
  CHECK(max_difference(y.view(), parts.view()) == 0);
  CHECK(max_difference(y.view(), frozen.view()) < 1e-12);
  CHECK((y.intact() && frozen.intact()));
  CHECK(count_allocations([&] { layer.forward(a, b, y, ws); }) == 0);

  const Matrix<double> dy = random_matrix<double>(5, 6, random);
  AttentionSublayer<double> gradient = zeros_like(layer);
  AttentionSublayer<double>::Saved saved;
  const Step step{.seed = 2, .number = 9};
  Matrix<double> dx(5, 6, 0.0), dz(7, 4, 0.0);
  const auto loss = [&] {
    layer.forward(a, b, y, saved, step, ws);
    double sum = 0;
    for (Index i = 0; i < 5; ++i) sum += simd::dot(y.view().row(i), dy.row(i), 6);
    return sum;
  };
  loss();
  layer.backward(a, b, dy, saved, dx, dz, gradient, ws);
  GradientReport report;
  check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report);
  check_gradient("z", leaf_values(z), leaf_values(std::as_const(dz)), loss, report);
  visit([&](const FieldPath& path, auto& leaf,
            const auto& g) { check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.most = 20}); },
        layer, gradient);
  CAPTURE(report.where);
  CHECK(report.worst < 1e-6);
  CHECK(error_of([&] { layer.backward(a, b, dy.view().middle_rows(0, 4), saved, dx, dz, gradient, ws); }) ==
        "AttentionSublayer::backward: dy: expected shape [5, 6], got [4, 6]");
  gradient = zeros_like(layer);
  Matrix<double> short_dz(6, 4, 0.0);
  CHECK(error_of([&] { layer.backward(a, b, dy, saved, dx, short_dz, gradient, ws); }) ==
        "AttentionSublayer::backward: dkeys: expected shape [7, 4], got [6, 4]");
  for (const double v : leaf_values(gradient.norm.bias)) CHECK(v == 0);
  CHECK(error_of([&] { AttentionSublayer<double>(6, 2, 1.0, random); }).find("dropout") != std::string::npos);
  AttentionSublayer<double> unfit = layer;
  unfit.norm.weight.resize(5);
  Matrix<double> kept(5, 6, 7.0);
  CHECK(error_of([&] { unfit.forward(a, b, kept, ws); }) == "LayerNorm: weight: expected size 6, got 5");
  CHECK(error_of([&] { unfit.forward(a, b, kept, saved, step, ws); }) == "LayerNorm: weight: expected size 6, got 5");
  CHECK(error_of([&] { (void)freeze(unfit); }) == "LayerNorm: weight: expected size 6, got 5");
  for (const double v : leaf_values(kept)) CHECK(v == 7);
}
