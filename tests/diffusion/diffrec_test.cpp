// Oracles: golden_test.cpp has torch's; here the hidden-space recursion against the chain over all items, and central differences.
#include <recops/diffusion/diffrec.hpp>
#include <recops/diffusion/sampler.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("DiffRec in the hidden space is the chain over all items", "[diffusion][diffrec]", float, double) {
  using T = TestType;
  Random random = random_stream(791);
  const DiffRec<T> d({.items = 40, .hidden = 11}, random);
  const std::int32_t ids[] = {3, 39, 7, 7, 0}, offsets[] = {0, 2, 2, 5};
  const std::vector<T> weights{T(0.5), T(1), T(0.25), T(0.5), T(1)};
  for (const SamplerOptions& o : {SamplerOptions{.method = SamplerMethod::ddpm, .mean_only = true}, SamplerOptions{.steps = 3}}) {
    const SamplerPlan plan(NoiseSchedule::linear_variance(5, 0.1), o);
    const auto frozen = freeze(d, plan);
    for (const bool weighted : {false, true}) {
      const VectorView<const T> w = weighted ? VectorView<const T>(weights) : VectorView<const T>();
      Padded<T> scores(3, 40);
      Matrix<T> x(3, 40, T(0));
      Workspace ws;
      frozen.forward(IndexView(ids, 5), IndexView(offsets, 4), w, scores.view(), ws);
      for (Index b = 0; b < 3; ++b)
        for (Index i = offsets[b]; i < offsets[b + 1]; ++i)
          x(b, ids[i]) += weighted ? weights[static_cast<std::size_t>(i)] : T(1);
      sample<T>(
          plan,
          [&](const DenoiserInput<T>& in, MatrixView<T> m, Workspace& scratch) {
            const std::int64_t t = in.t;
            d.forward(in.x, IndexView(&t, 1), m, scratch);
          },
          {.from_x = true}, x, ws);
      CHECK(max_difference(scores.view(), x.view()) < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
      CHECK(scores.intact());
      CHECK(count_allocations([&] { frozen.forward(IndexView(ids, 5), IndexView(offsets, 4), w, scores.view(), ws); }) == 0);
    }
  }
}

TEST_CASE("gradients of DiffRec with dropout and normalised rows", "[diffusion][diffrec]") {
  Random random = random_stream(792);
  for (const bool normalize : {false, true}) {
    DiffRec<double> d({.items = 8, .hidden = 5, .embedding = 4, .dropout = 0.3, .normalize = normalize}, random);
    Matrix<double> x = random_matrix<double>(3, 8, random), m(3, 8);
    const Matrix<double> g = random_matrix<double>(3, 8, random);
    const std::int32_t t[] = {1, 2, 5};
    Workspace ws;
    DiffRec<double>::Saved saved;
    const auto loss = [&] {
      d.forward(x, IndexView(t, 3), m, saved, Step{1, 2, 3}, ws);
      double sum = 0;
      for (Index i = 0; i < 24; ++i) sum += m.data()[i] * g.data()[i];
      return sum;
    };
    loss();
    DiffRec<double> gradient = make_gradient(d);
    Matrix<double> dx(3, 8, 0.0);
    d.backward(g, saved, dx, gradient, ws);
    GradientReport report;
    check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report);
    visit([&](const FieldPath& path, auto& leaf,
              const auto& v) { check_gradient(path.str(), leaf_values(leaf), leaf_values(v), loss, report); },
          d, gradient);
    INFO(report.where);
    CHECK(report.worst < 1e-7);
  }
}

TEST_CASE("DiffRec: empty rows, wrong input", "[diffusion][diffrec]") {
  Random random = random_stream(793);
  const DiffRec<float> d({.items = 6, .hidden = 3, .normalize = true}, random), plain({.items = 6, .hidden = 3}, random);
  Matrix<float> zeros(1, 6, 0.0f), m(1, 6, 0.0f);
  const std::int32_t t = 1, offsets[] = {0, 1}, six = 6, five = 5;
  Workspace ws;
  d.forward(zeros, IndexView(&t, 1), m, ws);
  for (const float v : leaf_values(m)) CHECK(std::isfinite(v));
  const NoiseSchedule s = NoiseSchedule::linear_variance(5);
  CHECK(error_of([&] { freeze(d, SamplerPlan(s, {})); }).find("rows not normalised") != std::string::npos);
  CHECK(error_of([&] { freeze(plain, SamplerPlan(s, {.method = SamplerMethod::ddpm})); }).find("steps without noise") !=
        std::string::npos);
  CHECK(error_of([&] { freeze(plain, SamplerPlan(s, {.prediction = Prediction::epsilon})); }).find("predicts x_0") !=
        std::string::npos);
  CHECK(error_of([&] { DiffRec<float>({.items = 6, .hidden = -1}, random); }) == "DiffRec: hidden: expected hidden >= 1, got -1");
  CHECK(error_of([&] { DiffRec<float>({}, random); }) == "DiffRec: items: expected items >= 1, got 0");
  CHECK(error_of([&] { DiffRec<float>({.items = 6, .embedding = -2}, random); }).find("DiffRec: embedding") == 0);
  const auto frozen = freeze(plain, SamplerPlan(s, {}));
  m.fill(3);
  CHECK(error_of([&] { frozen.forward(IndexView(&six, 1), IndexView(offsets, 2), {}, m, ws); }) ==
        "FrozenDiffRec: ids: expected indices from 0 to below 6, got 6 at position 0");
  Matrix<float> wide(1, 7);
  CHECK(error_of([&] {
          frozen.forward(IndexView(&five, 1), IndexView(offsets, 2), {}, wide, ws);
        }).find("scores: expected shape [1, 6]") != std::string::npos);
  for (const float v : leaf_values(m)) CHECK(v == 3.0f);
}
