// Oracles: the layers called one by one; the embedding's published figures; central differences.
#include <recops/diffusion/mlp_denoiser.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
MlpDenoiser<T> small(Random& random) {
  return MlpDenoiser<T>(5, 3, {7, 6}, Activation::silu, TimeEmbedding<T>(6, 8, 4, Activation::silu, {}, random), random);
}

}  // namespace

TEST_CASE("both layouts of the step embedding", "[diffusion][time]") {
  const std::int32_t t = 3;
  Matrix<double> e(1, 8), odd(2, 9);
  timestep_embedding<double>(IndexView(&t, 1), {}, e);
  const double cosine_first[] = {-.989992, .955336, .99955, .999996, .14112, .29552, .029996, .003};
  for (Index j = 0; j < 8; ++j) CHECK(e(0, j) == Approx(cosine_first[j]).margin(1e-6));
  timestep_embedding<double>(IndexView(&t, 1), {.sine_first = true, .to_the_end = true}, e);
  const double sine_first[] = {.14112, .138798, .006463, .0003, -.989992, .990321, .999979, 1};
  for (Index j = 0; j < 8; ++j) CHECK(e(0, j) == Approx(sine_first[j]).margin(1e-6));
  const std::int32_t two[] = {4, 1};
  timestep_embedding<double>(IndexView(two, 2), {.scale = 2, .offset = -1}, odd);
  CHECK(odd(0, 0) == Approx(std::cos(6.0)));
  CHECK(odd(1, 4) == 0);
  CHECK(odd(1, 8) == 0);
  Matrix<double> tiny(1, 2), none(1, 0), three(3, 4);  // one angle: nothing to divide by
  timestep_embedding<double>(IndexView(&t, 1), {.to_the_end = true}, tiny);
  CHECK(tiny(0, 1) == Approx(std::sin(3.0)));
  timestep_embedding<double>(IndexView(&t, 1), {}, none);
  CHECK(error_of([&] { timestep_embedding<double>(IndexView(two, 2), {}, three); }).find("t: expected 3 steps") !=
        std::string::npos);
}

TEMPLATE_TEST_CASE("an MLP denoiser is its layers on [x; c; e]", "[diffusion][denoiser]", float, double) {
  using T = TestType;
  Random random = random_stream(741);
  const MlpDenoiser<T> d = small<T>(random);
  const Matrix<T> x = random_matrix<T>(4, 5, random), c = random_matrix<T>(4, 3, random);
  const std::int32_t t[] = {1, 9, 9, 30};
  Matrix<T> e(4, 4), input(4, 12), expected(4, 5);
  Workspace ws;
  d.time.forward(IndexView(t, 4), e, ws);
  const auto join = [&](Index b, const T* condition) {
    std::copy_n(x.row(b), 5, input.row(b));
    std::copy_n(condition, 3, input.row(b) + 5);
    std::copy_n(e.row(b), 4, input.row(b) + 8);
  };
  for (Index b = 0; b < 4; ++b) join(b, b < 2 ? c.row(b) : d.null_condition.data());
  d.net.forward(input, expected, ws);
  Padded<T> m(4, 5);
  d.forward(x, c.view().middle_rows(0, 2), IndexView(t, 4), m.view(), ws);  // rows without a condition take the null condition
  CHECK(max_difference(m.view(), expected.view()) < 1e-6);
  CHECK(m.intact());
  typename MlpDenoiser<T>::Saved saved;
  const std::uint8_t keep[] = {1, 1, 0, 0};
  Matrix<T> trained(4, 5);
  d.forward(x, c, VectorView<const std::uint8_t>(keep, 4), IndexView(t, 4), trained, saved, Step{}, ws);
  CHECK(max_difference(trained.view(), expected.view()) < 1e-6);
  // One step for all, which is embedded once.
  Matrix<T> shared(4, 5), each(4, 5);
  const std::int32_t nines[] = {9, 9, 9, 9};
  d.forward(x, c, IndexView(nines, 1), shared, ws);
  d.forward(x, c, IndexView(nines, 4), each, ws);
  CHECK(max_difference(shared.view(), each.view()) < 1e-6);
}

TEST_CASE("gradients of denoisers: DreamRec's two, all kinds of step embedding, null conditions", "[diffusion][denoiser]") {
  Random random = random_stream(742);
  MlpDenoiser<double> denoisers[] = {
      small<double>(random), dreamrec_denoiser<double>(4, false, random), dreamrec_denoiser<double>(4, true, random),
      MlpDenoiser<double>(3, 0, {4}, Activation::tanh, TimeEmbedding<double>(6, 5, {}, random), random),
      MlpDenoiser<double>(3, 2, {4}, Activation::tanh, TimeEmbedding<double>(5, {}), random)};
  for (auto& d : denoisers) {
    const Index rows = 5;
    Matrix<double> x = random_matrix<double>(rows, d.width(), random),
                   c = random_matrix<double>(rows, d.condition_width(), random);
    const Matrix<double> g = random_matrix<double>(rows, d.width(), random);
    const std::int32_t t[] = {1, 2, 17, 17, 40};
    const std::uint8_t keep[] = {1, 0, 1, 0, 1};
    Workspace ws;
    Matrix<double> m(rows, d.width());
    const auto loss = [&] {
      MlpDenoiser<double>::Saved saved;
      d.forward(x, c, VectorView<const std::uint8_t>(keep, rows), IndexView(t, rows), m, saved, Step{}, ws);
      double sum = 0;
      for (Index i = 0; i < m.rows() * m.cols(); ++i) sum += m.data()[i] * g.data()[i];
      return sum;
    };
    MlpDenoiser<double>::Saved saved;
    d.forward(x, c, VectorView<const std::uint8_t>(keep, rows), IndexView(t, rows), m, saved, Step{}, ws);
    MlpDenoiser<double> gradient = make_gradient(d);
    Matrix<double> dx(rows, d.width(), 0.0), dc(rows, d.condition_width(), 0.0);
    for (int twice = 0; twice < 2; ++twice) d.backward(g, saved, dx, dc, gradient, ws);
    const auto halve = [](const FieldPath&, auto& leaf) {
      for (auto& v : leaf_values(leaf)) v /= 2;
    };
    halve({}, dx), halve({}, dc), visit(halve, gradient);
    GradientReport report;
    check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report);
    check_gradient("c", leaf_values(c), leaf_values(std::as_const(dc)), loss, report);
    visit([&](const FieldPath& path, auto& leaf,
              const auto& v) { check_gradient(path.str(), leaf_values(leaf), leaf_values(v), loss, report); },
          d, gradient);
    INFO(report.where);
    CHECK(report.worst < 1e-7);
  }
}

TEST_CASE("denoisers: names, no allocation, wrong input", "[diffusion][denoiser]") {
  Random random = random_stream(743);
  MlpDenoiser<float> d = small<float>(random), gradient = make_gradient(d);
  std::string names;
  visit([&](const FieldPath& path, const auto&) { names += path.str() + " "; }, d);
  CHECK(names ==
        "time.linear_1.weight time.linear_1.bias time.linear_2.weight time.linear_2.bias null_condition "
        "net.hidden.0.linear.weight net.hidden.0.linear.bias net.hidden.1.linear.weight net.hidden.1.linear.bias "
        "net.last.linear.weight net.last.linear.bias ");
  const Matrix<float> x = random_matrix<float>(4, 5, random), c = random_matrix<float>(4, 3, random);
  Matrix<float> m(4, 5, 3.0f), dc(4, 3, 0.0f);
  const std::int32_t t[] = {1, 2, 3, 4};
  Workspace ws;
  MlpDenoiser<float>::Saved saved;
  const auto step = [&] {
    d.forward(x, c, IndexView(t, 4), m, ws);
    d.forward(x, c, {}, IndexView(t, 4), m, saved, Step{}, ws);
    d.backward(m, saved, {}, dc, gradient, ws);
  };
  step();
  CHECK(count_allocations(step) == 0);
  // A null condition's gradient that is not wanted, though the vector kept its memory.
  float* const behind = gradient.null_condition.data();
  gradient.null_condition.clear();
  std::fill_n(behind, 3, 7.0f);
  const std::uint8_t keep[] = {1, 0, 0, 1};
  d.forward(x, c, VectorView<const std::uint8_t>(keep, 4), IndexView(t, 4), m, saved, Step{}, ws);
  d.backward(m, saved, {}, dc, gradient, ws);
  gradient.null_condition.resize(3);
  for (const float v : gradient.null_condition) CHECK(v == 7.0f);
  m.fill(3);
  CHECK(error_of([&] { d.forward(c, c, IndexView(t, 4), m, ws); }) == "MlpDenoiser: x: expected shape [_, 5], got [4, 3]");
  CHECK(error_of([&] { d.forward(x, x, IndexView(t, 4), m, ws); }) == "MlpDenoiser: c: expected shape [_, 3], got [4, 5]");
  CHECK(error_of([&] { d.forward(x, c, IndexView(t, 3), m, ws); }).find("t: expected 4 steps") != std::string::npos);
  CHECK(error_of([&] { d.forward(x, Matrix<float>(5, 3).view(), IndexView(t, 4), m, ws); }).find("at most as many rows") !=
        std::string::npos);
  Matrix<float> four(4, 4);
  CHECK(error_of([&] { d.backward(x, saved, four, {}, gradient, ws); }).find("dx: expected shape [4, 5]") != std::string::npos);
  CHECK(error_of([&] { d.backward(x, saved, {}, dc.view().middle_rows(0, 3), gradient, ws); }) ==
        "MlpDenoiser::backward: dc: expected shape [4, 3], got [3, 3]");
  CHECK(error_of([&] { d.backward(x.view().middle_rows(0, 0), {}, {}, {}, gradient, ws); }) ==
        "MlpDenoiser::backward: saved: expected shape [0, 12], got [0, 0]");
  for (const float v : leaf_values(m)) CHECK(v == 3.0f);
}
