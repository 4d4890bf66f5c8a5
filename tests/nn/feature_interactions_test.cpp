// fm.hpp, senet.hpp, cross_mixture.hpp. Oracles: PyTorch's vectors (explicit pairs, separate experts), the specification's golden
// numbers, central differences, algebra (constants, identities).
#include <recops/nn/cross_mixture.hpp>
#include <recops/nn/fm.hpp>
#include <recops/nn/senet.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// The frozen layer against the layer, and both against golden outputs; whether rows depend on their batch or on threads, whether
/// anything is allocated once warm, whether a NaN leaves its row.
template <class T, class L>
void check_serving(const Golden& golden, const std::string& name, L& layer, double tolerance) {
  Random random = random_stream(431);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  set_parameters<T>(golden, name + ".", layer);
  const auto served = freeze(layer);
  const Matrix<T> x = golden.matrix<T>(name + ".x");
  const Matrix<double> expected = golden.matrix<double>(name + ".y");
  Padded<T> y(x.rows(), expected.cols()), z(x.rows(), expected.cols());
  layer.forward(x, y, ws);
  served.forward(x, z, ws);
  CHECK(max_difference(y.view(), expected.view()) < tolerance);
  CHECK(max_difference(z.view(), expected.view()) < tolerance);
  CHECK((y.intact() && z.intact()));
  const Index rows = 210, cols = expected.cols();
  Matrix<T> many = random_matrix<T>(rows, x.cols(), random), a(rows, cols), b(rows, cols), one(1, cols), dx(rows, x.cols(), T(0)),
            dx2(rows, x.cols(), T(0));
  served.forward(many, a, ws);
  served.forward(many, b, wide);
  CHECK(max_difference(a.view(), b.view()) == 0);
  for (const Index r : {0, 100, 209}) {
    served.forward(many.view().middle_rows(r, 1), one, ws);
    CHECK(max_difference(one.view(), a.view().middle_rows(r, 1)) == 0);
  }
  typename L::Saved saved, saved2;
  auto g = make_gradient(layer), g2 = make_gradient(layer);
  layer.forward(many, b, saved, Step{}, ws);
  layer.backward(many, a, saved, dx, g, ws);
  Matrix<T> c(rows, cols);
  layer.forward(many, c, saved2, Step{}, wide);
  layer.backward(many, a, saved2, dx2, g2, wide);
  CHECK((max_difference(b.view(), c.view()) == 0 && max_difference(dx.view(), dx2.view()) == 0));
  visit([](const FieldPath&, const auto& p,
           const auto& q) { CHECK(std::equal(leaf_values(p).begin(), leaf_values(p).end(), q.data())); },
        g, g2);
  layer.forward(many, b, ws);
  const AllocationCounter counter;
  for (const Index count : {210, 1, 77}) {
    const auto in = many.view().middle_rows(0, count);
    const auto out = b.view().middle_rows(0, count);
    layer.forward(in, out, ws);
    served.forward(in, out, ws);
    layer.forward(in, out, saved, Step{}, ws);
    layer.backward(in, a.view().middle_rows(0, count), saved, dx.view().middle_rows(0, count), g, ws);
  }
  CHECK(counter.count() == 0);
  many(5, 2) = std::numeric_limits<T>::quiet_NaN();
  served.forward(many, b, ws);
  for (Index r = 0; r < rows; ++r)
    CHECK(max_difference(a.view().middle_rows(r, 1), b.view().middle_rows(r, 1)) == (r == 5 ? INFINITY : 0));
  layer.forward(many.view().middle_rows(0, 0), b.view().middle_rows(0, 0), ws);
  served.forward(many.view().middle_rows(0, 0), b.view().middle_rows(0, 0), ws);
}

Matrix<double> fill(Index i, Index rows, Index cols) {
  Matrix<double> m(rows, cols);
  for (Index j = 0; j < rows * cols; ++j)
    m.data()[j] = static_cast<double>((31 * j * j + (17 + 2 * i) * j + 101 * i + 7) % 1009) / 1009 - 0.5;
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("FM, SENet and the DCN-v2 mixture equal PyTorch, forward, backward and frozen", "[nn][interactions]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-12;
  const Golden golden("feature_interactions");
  Random random(1);
  Fm<T> fm_layer{{.fields = 5}}, pooled{{.fields = 5, .pooled = true}};
  CHECK(distance_to_golden<T>(golden, "fm", fm_layer) < tolerance);
  CHECK(distance_to_golden<T>(golden, "fm_pooled", pooled) < tolerance);
  check_serving<T>(golden, "fm", fm_layer, tolerance);
  for (const bool relu : {false, true}) {
    Senet<T> layer(6, 3, relu ? Activation::relu : Activation::sigmoid, random);
    const std::string name = relu ? "senet_relu" : "senet";
    CHECK(distance_to_golden<T>(golden, name, layer) < tolerance);
    check_serving<T>(golden, name, layer, tolerance);
  }
  for (const bool softmax : {false, true}) {
    CrossMixture<T> layer(10, 3, 4, 3, random,
                          {.activation = softmax ? Activation::tanh : Activation::relu, .softmax_gate = softmax});
    const std::string name = softmax ? "mixture" : "mixture_sigmoid";
    CHECK(distance_to_golden<T>(golden, name, layer) < tolerance);
    check_serving<T>(golden, name, layer, tolerance * 10);
  }
}

TEMPLATE_TEST_CASE("A served SENet equals its layer for any number of fields", "[nn][interactions]", float, double) {
  using T = TestType;
  Random random = random_stream(433);
  Workspace ws;
  for (const Index fields : {1, 8, 17, 40, 101}) {
    const Senet<T> layer(fields, 2, Activation::sigmoid, random);
    const Matrix<T> x = random_matrix<T>(5, fields * 3, random);
    Matrix<T> y(5, x.cols()), z(5, x.cols()), one(1, x.cols());
    layer.forward(x, y, ws);
    const auto served = freeze(layer);
    served.forward(x, z, ws);
    CHECK(max_difference(y.view(), z.view()) < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
    served.forward(x.view().middle_rows(1, 1), one, ws);
    CHECK(max_difference(one.view(), z.view().middle_rows(1, 1)) == 0);
  }
}

TEST_CASE("FM, SENet and the DCN-v2 mixture pass the gradient check", "[nn][interactions]") {
  Random random = random_stream(432);
  const auto check = [&](auto layer, Index cols) {
    Matrix<double> x = random_matrix<double>(4, cols, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
  };
  check(Fm<double>{{.fields = 3}}, 3 * 17);
  check(Fm<double>{{.fields = 4, .pooled = true}}, 4);
  check(Senet<double>(7, 3, Activation::sigmoid, random), 7 * 3);
  check(Senet<double>(1, 3, Activation::sigmoid, random), 5);
  check(CrossMixture<double>(11, 2, 3, 2, random), 11);
  check(CrossMixture<double>(3, 1, 1, 1, random, {.softmax_gate = false}), 3);
}

TEST_CASE("The DCN-v2 mixture gives the specification's golden numbers (G8)", "[nn][interactions]") {
  Random random(1);
  Workspace ws;
  CrossMixtureLayer<double> layer(6, 2, 2, random);
  for (Index i = 0; i < 2; ++i) {
    const Matrix<double> v = fill(38 + i, 6, 2), c = fill(40 + i, 2, 2), u = fill(42 + i, 2, 6);
    for (Index a = 0; a < 2; ++a) {
      for (Index j = 0; j < 6; ++j) {
        layer.down(i * 2 + a, j) = v(j, a);
        layer.up(i * 6 + j, a) = u(a, j);
      }
      for (Index b = 0; b < 2; ++b) layer.middle(i * 2 + a, b) = c(b, a);
    }
  }
  const Matrix<double> b = fill(44, 1, 6), g = fill(45, 6, 2), x = fill(1, 4, 6), dy = fill(99, 4, 6);
  for (Index j = 0; j < 6; ++j) {
    layer.bias[j] = b(0, j);
    for (Index i = 0; i < 2; ++i) layer.gate(i, j) = g(j, i);
  }
  CrossMixtureLayer<double>::Saved saved;
  auto gradient = make_gradient(layer);
  Matrix<double> y(4, 6), dx(4, 6, 0.0);
  layer.forward(x, x, y, saved, Step{}, ws);
  layer.backward(x, x, dy, saved, dx, dx, gradient, ws);
  double sum = 0, loss = 0, sum_dx = 0, size_dx = 0;
  for (Index i = 0; i < 24; ++i) {
    sum += y.data()[i];
    loss += y.data()[i] * dy.data()[i];
    sum_dx += dx.data()[i];
    size_dx += std::abs(dx.data()[i]);
  }
  CHECK(y(0, 0) == Approx(-0.3552136299).margin(1e-9));
  CHECK(sum == Approx(-1.0844751407).margin(1e-9));
  CHECK(loss == Approx(-0.1872972483).margin(1e-9));
  CHECK(dx(0, 0) == Approx(0.3709958).margin(1e-6));
  CHECK(sum_dx == Approx(0.8174115).margin(1e-6));
  CHECK(size_dx == Approx(6.4012280).margin(1e-6));
}

TEMPLATE_TEST_CASE("Feature interactions: identities, few fields, cancellation, errors", "[nn][interactions]", float, double) {
  using T = TestType;
  Random random = random_stream(433);
  Workspace ws;
  static_assert(RowLayer<Fm<T>, T> && RowLayer<Senet<T>, T> && RowLayer<CrossMixture<T>, T>);
  const Matrix<T> x = random_matrix<T>(3, 12, random);
  Matrix<T> y(3, 12, T(5)), one(3, 1, T(5));
  fm<T>(x, {.fields = 1}, one, ws);
  for (const T v : leaf_values(one)) CHECK(v == T(0));
  fm<T>(x, {.fields = 1, .pooled = true}, y, ws);
  for (const T v : leaf_values(y)) CHECK(v == T(0));
  // 1000 and -1000 and 0.5: the pairs sum to -1e6, beside squares of 2e6.
  const Matrix<T> far{{1000, -1000, T(0.5)}};
  Matrix<T> scalar(1, 1);
  fm<T>(far, {.fields = 3}, scalar, ws);
  CHECK(scalar(0, 0) == T(-1e6));
  Matrix<T> many(1, 5001, T(0.001));
  many(0, 0) = 1;
  fm<T>(many, {.fields = 5001}, scalar, ws);
  CHECK(static_cast<double>(scalar(0, 0)) == Approx(5 + 0.5 * (25 - 0.005)).epsilon(1e-3));
  CrossMixture<T> cross(12, 2, 3, 2, random);
  for (auto& l : cross.layers) l.up.fill(T(0));
  cross.forward(x, y, ws);
  CHECK(max_difference(x.view(), y.view()) == 0);
  Senet<T> senet(4, 2, Activation::sigmoid, random);
  senet.excite.fill(T(0));
  senet.forward(x, y, ws);
  for (Index i = 0; i < 36; ++i) CHECK(y.data()[i] == x.data()[i] / 2);
  y.fill(T(9));
  CHECK(error_of([&] { fm<T>(x, {.fields = 5}, one, ws); }).find("divisor") != std::string::npos);
  CHECK(error_of([&] { fm<T>(x, {.fields = 3}, y, ws); }).find("y: expected") != std::string::npos);
  CHECK(error_of([&] { senet.forward(x.view().middle_cols(0, 10), y.view().middle_cols(0, 10), ws); }).find("multiple") !=
        std::string::npos);
  CHECK(error_of([&] { CrossMixture<T>(12, -2, 3, 2, random); }) == "CrossMixture: count: expected count >= 0, got -2");
  CHECK(error_of([&] { cross.forward(x.view().middle_cols(0, 10), y, ws); }).find("as wide as every layer") != std::string::npos);
  CHECK(error_of([&] { freeze(cross).forward(x.view().middle_cols(0, 10), y, ws); }).find("x: expected") != std::string::npos);
  cross.layers[1].bias = Vector<T>(3);
  CHECK(error_of([&] { cross.forward(x, y, ws); }).find("bias") != std::string::npos);
  CHECK(error_of([&] { freeze(cross); }).find("bias") != std::string::npos);
  CHECK(y(0, 0) == T(9));
}
