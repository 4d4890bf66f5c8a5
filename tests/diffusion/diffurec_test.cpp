// Oracles: golden_test.cpp has torch's; here the frozen form against the layer, central differences, and batches against single requests.
#include <recops/diffusion/diffurec.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
constexpr std::int32_t offsets[] = {0, 3, 3, 4, 9};
constexpr std::int32_t steps[] = {1, 5, 30, 32};
}  // namespace

TEMPLATE_TEST_CASE("DiffuRec: frozen, trained and one by one", "[diffusion][diffurec]", float, double) {
  using T = TestType;
  Random random = random_stream(781);
  const DiffuRecDenoiser<T> d({.width = 12, .blocks = 2, .heads = 3, .lambda = 0.2, .dropout = 0}, random);
  const Matrix<T> h = random_matrix<T>(9, 12, random), x = random_matrix<T>(4, 12, random);
  const JaggedView<const T> history(h, IndexView(offsets, 5));
  const std::int64_t ids[] = {5, 900, 17, 3};
  const RandomRow at{.seed = 4, .step = 2};
  Workspace ws;
  Padded<T> m(4, 12);
  Matrix<T> frozen(4, 12), trained(4, 12), one(1, 12);
  d.forward(history, x, IndexView(steps, 4), at, IndexView(ids, 4), m.view(), ws);
  const auto served = freeze(d);
  served.forward(history, x, IndexView(steps, 4), at, IndexView(ids, 4), frozen, ws);
  typename DiffuRecDenoiser<T>::Saved saved;
  d.forward(history, x, IndexView(steps, 4), at, IndexView(ids, 4), trained, saved, Step{}, ws);
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  CHECK(max_difference(m.view(), frozen.view()) < bound);
  CHECK(max_difference(m.view(), trained.view()) < bound);
  CHECK(m.intact());
  for (Index j = 0; j < 12; ++j) CHECK(m(1, j) == 0);  // no history
  for (const Index b : {0, 2, 3}) {
    const Matrix<T> own = [&] {
      Matrix<T> rows(history.length(b), 12);
      for (Index i = 0; i < rows.rows(); ++i) std::copy_n(history[b].row(i), 12, rows.row(i));
      return rows;
    }();
    d.forward(own, x.view().middle_rows(b, 1), IndexView(steps, 4).segment(b, 1), at, IndexView(ids, 4).segment(b, 1), one, ws);
    CHECK(max_difference(one.view(), m.view().middle_rows(b, 1)) < bound);
  }
  // Another step draws another lambda.
  d.forward(history, x, IndexView(steps, 4), {.seed = 4, .step = 3}, IndexView(ids, 4), trained, ws);
  CHECK(max_difference(m.view(), trained.view()) > 1e-3);
}

TEST_CASE("gradients of DiffuRec with dropout", "[diffusion][diffurec]") {
  Random random = random_stream(782);
  DiffuRecDenoiser<double> d({.width = 6, .blocks = 1, .heads = 2, .lambda = 0.3, .dropout = 0.2}, random);
  Matrix<double> h = random_matrix<double>(9, 6, random), x = random_matrix<double>(4, 6, random), m(4, 6);
  const Matrix<double> g = random_matrix<double>(4, 6, random);
  const JaggedView<const double> history(h, IndexView(offsets, 5));
  const Step step{1, 2, 3};
  Workspace ws;
  DiffuRecDenoiser<double>::Saved saved;
  const auto loss = [&] {
    d.forward(history, x, IndexView(steps, 4), {.seed = 4}, {}, m, saved, step, ws);
    double sum = 0;
    for (Index i = 0; i < 24; ++i) sum += m.data()[i] * g.data()[i];
    return sum;
  };
  loss();
  DiffuRecDenoiser<double> gradient = make_gradient(d);
  Matrix<double> dh(9, 6, 0.0), dx(4, 6, 0.0);
  d.backward(history, g, saved, dh, dx, gradient, ws);
  GradientReport report;
  const GradientCheckOptions few{.most = 20};
  check_gradient("h", leaf_values(h), leaf_values(std::as_const(dh)), loss, report, few);
  check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report, few);
  visit([&](const FieldPath& path, auto& leaf,
            const auto& v) { check_gradient(path.str(), leaf_values(leaf), leaf_values(v), loss, report, few); },
        d, gradient);
  INFO(report.where);
  CHECK(report.worst < 1e-6);
}

TEST_CASE("DiffuRec: no allocation, no requests, wrong input", "[diffusion][diffurec]") {
  Random random = random_stream(783);
  const DiffuRecDenoiser<float> d({.width = 8, .blocks = 1, .heads = 2}, random);
  DiffuRecDenoiser<float> gradient = make_gradient(d);
  const Matrix<float> h = random_matrix<float>(9, 8, random), x = random_matrix<float>(4, 8, random), none(0, 8);
  const JaggedView<const float> history(h, IndexView(offsets, 5));
  Matrix<float> m(4, 8), nothing(0, 8);
  Workspace ws;
  DiffuRecDenoiser<float>::Saved saved;
  const auto step = [&] {
    d.forward(history, x, IndexView(steps, 4), {}, {}, m, ws);
    d.forward(history, x, IndexView(steps, 4), {}, {}, m, saved, Step{}, ws);
    d.backward(history, m, saved, {}, {}, gradient, ws);
  };
  step();
  CHECK(count_allocations(step) == 0);
  const std::int32_t zero[] = {0};
  d.forward({none, IndexView(zero, 1)}, none, IndexView(steps, 1), {}, {}, nothing, ws);
  m.fill(3);
  CHECK(error_of([&] { d.forward(history, none, IndexView(steps, 4), {}, {}, m, ws); }) ==
        "DiffuRecDenoiser: x: expected shape [4, 8], got [0, 8]");
  CHECK(error_of([&] { d.forward(history, x, IndexView(steps, 3), {}, {}, m, ws); }).find("t: expected 4 steps") !=
        std::string::npos);
  CHECK(error_of([&] { DiffuRecDenoiser<float>({.lambda = -1}, random); }).find("lambda >= 0") != std::string::npos);
  check_refused({
      {"DiffuRecDenoiser: width", [](Random& r) { DiffuRecDenoiser<float>({.width = -4}, r); }},
      {"TimeEmbedding: sine_width", [](Random&) { TimeEmbedding<float>(-4, {}); }},
      {"TimeEmbedding: sine_width", [](Random& r) { TimeEmbedding<float>(-4, 3, {}, r); }},
      {"TimeEmbedding: out", [](Random& r) { TimeEmbedding<float>(4, -3, {}, r); }},
      {"TimeEmbedding: sine_width", [](Random& r) { TimeEmbedding<float>(-4, 3, 2, Activation::silu, {}, r); }},
      {"TimeEmbedding: hidden", [](Random& r) { TimeEmbedding<float>(4, -3, 2, Activation::silu, {}, r); }},
      {"TimeEmbedding: out", [](Random& r) { TimeEmbedding<float>(4, 3, -2, Activation::silu, {}, r); }},
  });
  for (const float v : leaf_values(m)) CHECK(v == 3.0f);
}
