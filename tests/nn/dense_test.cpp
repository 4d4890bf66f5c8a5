// Oracle: activation of the naive product in double; backward against central differences.
#include <recops/nn/dense.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr Activation all[] = {Activation::none, Activation::relu, Activation::sigmoid, Activation::silu};

double activated(Activation f, double x) {
  if (f == Activation::relu) return x > 0 ? x : 0;
  if (f == Activation::sigmoid) return 1 / (1 + std::exp(-x));
  if (f == Activation::silu) return x / (1 + std::exp(-x));
  return x;
}

template <class T>
Matrix<double> reference(const Dense<T>& layer, MatrixView<const T> x) {
  const Matrix<T>& w = layer.linear.weight;
  Matrix<double> y(x.rows(), w.rows());
  for (Index b = 0; b < x.rows(); ++b)
    for (Index j = 0; j < w.rows(); ++j) {
      double z = layer.linear.bias.empty() ? 0 : static_cast<double>(layer.linear.bias[j]);
      for (Index i = 0; i < w.cols(); ++i) z += static_cast<double>(x(b, i)) * static_cast<double>(w(j, i));
      y(b, j) = activated(layer.activation, z);
    }
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("Dense: serving, training and frozen forward equal the definition", "[nn][dense]", float, double) {
  using T = TestType;
  const double tolerance = 200 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(41);
  Workspace ws;
  typename Dense<T>::Saved saved;  // reused over all shapes
  const Index shapes[][3] = {{0, 3, 2}, {1, 1, 1}, {1, 7, 33}, {2, 0, 3}, {3, 4, 0}, {8, 17, 5}, {9, 64, 31}, {33, 19, 70}};
  for (const auto& [rows, in, out] : shapes) {
    for (const Activation f : all) {
      Dense<T> layer(in, out, f, random);
      if (rows == 8) layer.linear.bias.resize(0);
      Padded<T> x(random_matrix<T>(rows, in, random).view()), y(rows, out, T(5)), z(rows, out, T(5)), s(rows, out, T(5));
      layer.forward(x, y, ws);
      layer.forward(x, z, saved, Step{}, ws);
      const FrozenDense<T> served = freeze(layer);
      served.forward(x, s, ws);
      const Matrix<double> expected = reference<T>(layer, x);
      CAPTURE(rows, in, out, static_cast<int>(f));
      CHECK(max_difference(y.view(), expected.view()) < tolerance);
      CHECK(max_difference(z.view(), expected.view()) < tolerance);
      CHECK(max_difference(s.view(), expected.view()) < tolerance);
      CHECK((y.intact() && z.intact() && s.intact()));
      CHECK(layer.output_cols(in) == out);
    }
  }
}

TEST_CASE("Dense passes the gradient check with every activation", "[nn][dense]") {
  Random random = random_stream(42);
  for (const Activation f : all) {
    Dense<double> layer(5, 7, f, random);
    Matrix<double> x = random_matrix<double>(9, 5, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(static_cast<int>(f), report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
    CHECK(report.checked == 45 + 35 + 7);
  }
}

TEST_CASE("Dense in float has the gradient of Dense in double", "[nn][dense]") {
  Random random = random_stream(43);
  Workspace ws;
  for (const Activation f : all) {
    Dense<double> layer(19, 23, f, random);
    Matrix<double> x = random_matrix<double>(17, 19, random), dy = random_matrix<double>(17, 23, random);
    Dense<float> layer1;
    layer1.activation = f;
    const auto narrow = [](const Matrix<double>& m) {
      Matrix<float> r(m.rows(), m.cols());
      for (Index i = 0; i < m.rows() * m.cols(); ++i) r.data()[i] = static_cast<float>(m.data()[i]);
      return r;
    };
    layer1.linear.weight = narrow(layer.linear.weight);
    layer1.linear.bias.resize(23);
    for (Index i = 0; i < 23; ++i) layer1.linear.bias[i] = static_cast<float>(layer.linear.bias[i]);
    const auto gradients = [&](auto& l, const auto& in, const auto& cotangent, auto& g, auto& dx) {
      typename std::remove_cvref_t<decltype(l)>::Saved saved;
      auto y = cotangent;
      l.forward(in, y, saved, Step{}, ws);
      l.backward(in, cotangent, saved, dx, g, ws);
    };
    Dense<double> g = make_gradient(layer);
    Dense<float> g1 = make_gradient(layer1);
    Matrix<double> dx(17, 19, 0.0);
    Matrix<float> dx1(17, 19, 0.0f);
    gradients(layer, x, dy, g, dx);
    gradients(layer1, narrow(x), narrow(dy), g1, dx1);
    CHECK(max_difference(dx.view(), dx1.view()) < 1e-5);
    CHECK(max_difference(g.linear.weight.view(), g1.linear.weight.view()) < 2e-5);
    for (Index i = 0; i < 23; ++i) CHECK(static_cast<double>(g1.linear.bias[i]) == Approx(g.linear.bias[i]).margin(1e-5));
  }
}

TEST_CASE("Dense: what is not wanted is left out", "[nn][dense]") {
  Random random = random_stream(44);
  Workspace ws;
  const Dense<float> layer(4, 3, Activation::relu, random);
  const Matrix<float> x = random_matrix<float>(5, 4, random), dy = random_matrix<float>(5, 3, random);
  Matrix<float> y(5, 3), dx(5, 4, 0.0f);
  Dense<float>::Saved saved;
  layer.forward(x, y, saved, Step{}, ws);
  Dense<float> whole = make_gradient(layer), part = make_gradient(layer);
  part.linear.bias.clear();
  layer.backward(x, dy, saved, dx, whole, ws);
  layer.backward(x, dy, saved, {}, part, ws);
  CHECK(max_difference(whole.linear.weight.view(), part.linear.weight.view()) == 0);
  CHECK(part.linear.bias.empty());
}

TEST_CASE("Dense refuses shapes that disagree and writes nothing", "[nn][dense]") {
  Random random(1);
  Workspace ws;
  Dense<float> layer(4, 3, Activation::relu, random);
  const Matrix<float> x(5, 4, 1.0f), odd(5, 6, 1.0f);
  Matrix<float> y(5, 3, 7.0f), dx(5, 4, 7.0f);
  Dense<float>::Saved saved, fresh;
  Dense<float> g = make_gradient(layer);
  CHECK(error_of([&] { layer.forward(odd, y, ws); }) == "Dense: x: expected shape [_, 4], got [5, 6]");
  CHECK(error_of([&] { layer.forward(x, dx, ws); }) == "Dense: y: expected shape [5, 3], got [5, 4]");
  CHECK(error_of([&] { layer.forward(x, dx, saved, Step{}, ws); }) == "Dense: y: expected shape [5, 3], got [5, 4]");
  Matrix<float> scratch(5, 3);
  layer.forward(x, scratch, saved, Step{}, ws);
  CHECK(error_of([&] { layer.backward(x, y, fresh, dx, g, ws); }) == "Dense::backward: saved: expected shape [5, 3], got [0, 0]");
  CHECK(error_of([&] { layer.backward(x, odd, saved, dx, g, ws); }) == "Dense::backward: dy: expected shape [5, 3], got [5, 6]");
  CHECK(error_of([&] { layer.backward(x, y, saved, y, g, ws); }) == "linear_backward: dx: expected shape [5, 4], got [5, 3]");
  layer.linear.bias.resize(2);
  CHECK(error_of([&] { layer.forward(x, y, ws); }) == "Dense: bias: expected size 3, got 2");
  CHECK(error_of([&] { layer.forward(x, y, saved, Step{}, ws); }) == "Dense: bias: expected size 3, got 2");
  CHECK(error_of([&] { (void)freeze(layer); }) == "FrozenDense: bias: expected size 3, got 2");
  Dense<float, LayerNorm<float>> normed(4, 3, Activation::relu, random);
  normed.norm.weight.resize(2);
  CHECK(error_of([&] { normed.forward(x, y, ws); }) == "LayerNorm: weight: expected size 3, got 2");
  CHECK(error_of([&] { (void)freeze(normed); }) == "LayerNorm: weight: expected size 3, got 2");
  Dense<float, BatchNorm<float>> batch_normed(4, 3, Activation::relu, random);
  batch_normed.norm.running_mean.resize(2);
  CHECK(error_of([&] { batch_normed.forward(x, y, ws); }) == "BatchNorm: running_mean: expected size 3, got 2");
  CHECK(error_of([&] { RmsNorm<float>(3).output_cols(4); }) == "RmsNorm: weight: expected size 4, got 3");
  CHECK(error_of([&] { BatchNorm<float>(3).output_cols(4); }) == "BatchNorm: weight: expected size 4, got 3");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(dx)) CHECK(v == 7);
  for (const float v : leaf_values(g.linear.weight)) CHECK(v == 0);
}

TEST_CASE("Dense allocates nothing once warm", "[nn][dense]") {
  Random random = random_stream(45);
  Workspace ws;
  const Dense<float> layer(20, 35, Activation::silu, random);
  const FrozenDense<float> served = freeze(layer);
  Dense<float> gradient = make_gradient(layer);
  const Matrix<float> x = random_matrix<float>(30, 20, random), dy = random_matrix<float>(30, 35, random);
  Matrix<float> y(30, 35), dx(30, 20, 0.0f);
  Dense<float>::Saved saved;
  const auto step = [&](Index rows) {
    const auto in = x.view().middle_rows(0, rows);
    layer.forward(in, y.view().middle_rows(0, rows), ws);
    served.forward(in, y.view().middle_rows(0, rows), ws);
    layer.forward(in, y.view().middle_rows(0, rows), saved, Step{}, ws);
    layer.backward(in, dy.view().middle_rows(0, rows), saved, dx.view().middle_rows(0, rows), gradient, ws);
    zero_gradient(gradient);
  };
  step(30);
  const AllocationCounter counter;
  for (const Index rows : {30, 1, 13, 30}) step(rows);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}
