// Oracles: the definition in double, PyTorch's vectors, central differences, a golden number of the specification.
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/rms_norm.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
Matrix<double> reference(MatrixView<const T> x, VectorView<const T> w, VectorView<const T> b, Index groups, double epsilon) {
  const Index n = x.cols() / groups;
  Matrix<double> y(x.rows(), x.cols());
  for (Index r = 0; r < x.rows(); ++r) {
    for (Index g = 0; g < groups; ++g) {
      double mean = 0, variance = 0;
      for (Index j = g * n; j < (g + 1) * n; ++j) mean += static_cast<double>(x(r, j)) / static_cast<double>(n);
      for (Index j = g * n; j < (g + 1) * n; ++j) {
        const double d = static_cast<double>(x(r, j)) - mean;
        variance += d * d / static_cast<double>(n);
      }
      for (Index j = g * n; j < (g + 1) * n; ++j)
        y(r, j) =
            (static_cast<double>(x(r, j)) - mean) / std::sqrt(variance + epsilon) * (w.empty() ? 1 : static_cast<double>(w[j])) +
            (b.empty() ? 0 : static_cast<double>(b[j]));
    }
  }
  return y;
}

/// The specification's fill rule.
Matrix<double> fill(Index i, Index rows, Index cols) {
  Matrix<double> m(rows, cols);
  for (Index j = 0; j < rows * cols; ++j)
    m.data()[j] = static_cast<double>((31 * j * j + (17 + 2 * i) * j + 101 * i + 7) % 1009) / 1009 - 0.5;
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("layer_norm equals the definition, whole rows and segments", "[nn][layer_norm]", float, double) {
  using T = TestType;
  const double tolerance = 100 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(101);
  Workspace ws;
  for (const Index rows : {0, 1, 5, 64, 131}) {
    for (const auto& [n, groups] :
         {std::pair<Index, Index>{1, 1}, {2, 1}, {7, 7}, {16, 1}, {17, 1}, {31, 1}, {66, 3}, {100, 4}}) {
      Padded<T> x(random_matrix<T>(rows, n, random).view()), y(rows, n, T(5));
      const Vector<T> w = random_vector<T>(n, random), b = random_vector<T>(n, random);
      const LayerNormOptions options{.epsilon = 1e-3, .groups = groups};
      CAPTURE(rows, n, groups);
      layer_norm<T>(x, w, b, options, {}, y, ws);
      CHECK(max_difference(y.view(), reference<T>(x, w, b, groups, 1e-3).view()) < tolerance);
      layer_norm<T>(x, {}, {}, options, {}, y, ws);
      CHECK(max_difference(y.view(), reference<T>(x, {}, {}, groups, 1e-3).view()) < tolerance);
      CHECK(y.intact());
      layer_norm<T>(x, {}, {}, options, {}, x, ws);  // y may be x
      CHECK(max_difference(y.view(), x.view()) == 0);
    }
  }
}

TEST_CASE("layer_norm keeps its accuracy far from zero, and gives the bias for a constant row", "[nn][layer_norm]") {
  Workspace ws;
  Random random = random_stream(102);
  Matrix<float> x = random_matrix<float>(4, 300, random), y(4, 300);
  for (float& v : leaf_values(x)) v = v + 3000;
  std::fill_n(x.row(3), 300, 7.25f);
  layer_norm<float>(x, {}, {}, {}, {}, y, ws);
  CHECK(max_difference(y.view(), reference<float>(x, {}, {}, 1, 1e-5).view()) < 1e-3);  // a mean in float is known to 2e-4
  for (Index j = 0; j < 300; ++j) CHECK(y(3, j) == 0);
}

TEST_CASE("layer_norm keeps a NaN in its segment", "[nn][layer_norm]") {
  Workspace ws;
  Matrix<double> x{{1, 2, 3, 4}, {5, 7, 6, 9}}, y(2, 4);
  x(0, 2) = std::nan("");
  layer_norm<double>(x, {}, {}, {.groups = 2}, {}, y, ws);
  CHECK(
      (std::isfinite(y(0, 0)) && std::isfinite(y(0, 1)) && std::isnan(y(0, 2)) && std::isnan(y(0, 3)) && std::isfinite(y(1, 2))));
}

TEST_CASE("layer_norm equals PyTorch, forward and backward", "[nn][layer_norm]") {
  const Golden golden("mmoe");
  Workspace ws;
  LayerNorm<double> layer(21);
  const Matrix<double> x = golden.matrix<double>("layer_norm.x"), dy = golden.matrix<double>("layer_norm.dy");
  const auto weight = golden.values<double>("layer_norm.weight"), bias = golden.values<double>("layer_norm.bias");
  std::copy(weight.begin(), weight.end(), layer.weight.begin());
  std::copy(bias.begin(), bias.end(), layer.bias.begin());
  Matrix<double> y(19, 21), dx(19, 21, 0.0);
  LayerNorm<double>::Saved saved;
  LayerNorm<double> gradient = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, gradient, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("layer_norm.y").view()) < 1e-13);
  CHECK(max_difference(dx.view(), golden.matrix<double>("layer_norm.dx").view()) < 1e-13);
  const auto dweight = golden.values<double>("layer_norm.dweight"), dbias = golden.values<double>("layer_norm.dbias");
  for (Index j = 0; j < 21; ++j) {
    CHECK(gradient.weight[j] == Approx(dweight[static_cast<std::size_t>(j)]).epsilon(1e-12));
    CHECK(gradient.bias[j] == Approx(dbias[static_cast<std::size_t>(j)]).epsilon(1e-12));
  }
}

TEST_CASE("layer_norm gives the specification's golden numbers", "[nn][layer_norm]") {
  Workspace ws;
  const Matrix<double> x = fill(1, 4, 6), dy = fill(99, 4, 6), w = fill(46, 1, 6), b = fill(47, 1, 6);
  LayerNorm<double> layer(6);
  for (Index j = 0; j < 6; ++j) {
    layer.weight[j] = 1 + w(0, j);
    layer.bias[j] = b(0, j);
  }
  Matrix<double> y(4, 6), dx(4, 6, 0.0);
  LayerNorm<double>::Saved saved;
  LayerNorm<double> gradient = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, gradient, ws);
  double sum = 0, loss = 0, sum_dx = 0, size_dx = 0;
  for (Index i = 0; i < 24; ++i) {
    sum += y.data()[i];
    loss += y.data()[i] * dy.data()[i];
    sum_dx += dx.data()[i];
    size_dx += std::abs(dx.data()[i]);
  }
  CHECK(y(0, 0) == Approx(-0.9889155505).margin(1e-9));
  CHECK(sum == Approx(-0.7628749850).margin(1e-9));
  CHECK(loss == Approx(-0.2483030573).margin(1e-9));
  CHECK(dx(0, 0) == Approx(1.5456236).margin(1e-6));
  CHECK(sum_dx == Approx(0).margin(1e-12));
  CHECK(size_dx == Approx(25.9951527).margin(1e-6));
}

TEST_CASE("LayerNorm passes the gradient check", "[nn][layer_norm]") {
  Random random = random_stream(103);
  for (const Index groups : {1, 3}) {
    LayerNorm<double> layer(21, {.epsilon = 1e-2, .groups = groups});
    layer.weight = random_vector<double>(21, random);
    Matrix<double> x = random_matrix<double>(70, 21, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(groups, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
    CHECK(report.checked == 70 * 21 + 42);
  }
}

TEST_CASE("LayerNorm: what is not wanted is left out; threads change no bit; a warm call allocates nothing", "[nn][layer_norm]") {
  Random random = random_stream(104);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  LayerNorm<float> layer(33);
  const Matrix<float> x = random_matrix<float>(150, 33, random), dy = random_matrix<float>(150, 33, random);
  Matrix<float> y(150, 33), y2(150, 33), dx(150, 33, 0.0f), dx2(150, 33, 0.0f);
  LayerNorm<float>::Saved saved, saved2;
  LayerNorm<float> g = make_gradient(layer), g2 = make_gradient(layer), none = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  layer.forward(x, y2, saved2, Step{}, wide);
  layer.backward(x, dy, saved2, dx2, g2, wide);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  CHECK(std::equal(g.weight.begin(), g.weight.end(), g2.weight.begin()));
  none.weight.clear();
  layer.backward(x, dy, saved, {}, none, ws);
  CHECK(std::equal(g.bias.begin(), g.bias.end(), none.bias.begin()));
  const AllocationCounter counter;
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("layer_norm refuses what does not fit and writes nothing", "[nn][layer_norm]") {
  Workspace ws;
  const Matrix<float> x(3, 6, 1.0f);
  const Vector<float> w(6, 1.0f), odd(5, 1.0f);
  Matrix<float> y(3, 6, 7.0f), narrow(3, 5, 7.0f), moments(3, 2);
  const auto message = [&](auto&&... a) { return error_of([&] { layer_norm<float>(a..., ws); }); };
  CHECK(message(x, odd, w, LayerNormOptions{}, MatrixView<float>(), y) == "layer_norm: weight: expected size 6, got 5");
  CHECK(message(x, w, odd, LayerNormOptions{}, MatrixView<float>(), y) == "layer_norm: bias: expected size 6, got 5");
  CHECK(message(x, w, w, LayerNormOptions{}, MatrixView<float>(), narrow) == "layer_norm: y: expected shape [3, 6], got [3, 5]");
  CHECK(message(x, w, w, LayerNormOptions{.groups = 4}, MatrixView<float>(), y) ==
        "layer_norm: groups: expected groups >= 1 that divide the columns, got 4");
  CHECK(message(x, w, w, LayerNormOptions{.groups = 0}, MatrixView<float>(), y) ==
        "layer_norm: groups: expected groups >= 1 that divide the columns, got 0");
  CHECK(message(x, w, w, LayerNormOptions{.epsilon = 0}, MatrixView<float>(), y) ==
        "layer_norm: epsilon: expected epsilon > 0, got 0");
  CHECK(message(x, w, w, LayerNormOptions{.groups = 2}, moments.view(), y) ==
        "layer_norm: moments: expected shape [3, 4], got [3, 2]");
  CHECK(error_of([&] { layer_norm_backward<float>(x, w, {}, moments, narrow, y, {}, {}, ws); }) ==
        "layer_norm_backward: dy: expected shape [3, 6], got [3, 5]");
  for (const float v : leaf_values(y)) CHECK(v == 7);
}

static_assert(RowLayer<LayerNorm<float>, float> && RowLayer<RmsNorm<double>, double>);
