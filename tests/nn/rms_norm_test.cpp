// Oracles: the definition in double, vectors made with PyTorch, central differences.
#include <recops/nn/rms_norm.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("rms_norm equals the definition, whole rows and segments", "[nn][rms_norm]", float, double) {
  using T = TestType;
  const double tolerance = 100 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(111);
  Workspace ws;
  for (const Index rows : {0, 1, 5, 65}) {
    for (const auto& [n, groups] : {std::pair<Index, Index>{1, 1}, {3, 1}, {16, 2}, {17, 1}, {33, 1}, {66, 3}}) {
      Padded<T> x(random_matrix<T>(rows, n, random).view()), y(rows, n, T(5));
      const Vector<T> w = random_vector<T>(n, random);
      Matrix<double> expected(rows, n);
      const Index width = n / groups;
      for (Index r = 0; r < rows; ++r) {
        for (Index j = 0; j < n; ++j) {
          double square = 0;
          for (Index i = j / width * width; i < j / width * width + width; ++i)
            square += static_cast<double>(x(r, i)) * static_cast<double>(x(r, i));
          expected(r, j) =
              static_cast<double>(x(r, j)) * static_cast<double>(w[j]) / std::sqrt(square / static_cast<double>(width) + 1e-4);
        }
      }
      CAPTURE(rows, n, groups);
      rms_norm<T>(x, w, {.epsilon = 1e-4, .groups = groups}, {}, y, ws);
      CHECK(max_difference(y.view(), expected.view()) < tolerance);
      CHECK(y.intact());
      rms_norm<T>(x, w, {.epsilon = 1e-4, .groups = groups}, {}, x, ws);  // y may be x
      CHECK(max_difference(y.view(), x.view()) == 0);
    }
  }
}

TEST_CASE("rms_norm equals PyTorch, forward and backward", "[nn][rms_norm]") {
  const Golden golden("mmoe");
  Workspace ws;
  RmsNorm<double> layer(21);
  const Matrix<double> x = golden.matrix<double>("layer_norm.x"), dy = golden.matrix<double>("layer_norm.dy");
  const auto weight = golden.values<double>("rms_norm.weight"), dweight = golden.values<double>("rms_norm.dweight");
  std::copy(weight.begin(), weight.end(), layer.weight.begin());
  Matrix<double> y(19, 21), dx(19, 21, 0.0);
  RmsNorm<double>::Saved saved;
  RmsNorm<double> gradient = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, gradient, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("rms_norm.y").view()) < 1e-13);
  CHECK(max_difference(dx.view(), golden.matrix<double>("rms_norm.dx").view()) < 1e-13);
  for (Index j = 0; j < 21; ++j) CHECK(gradient.weight[j] == Approx(dweight[static_cast<std::size_t>(j)]).epsilon(1e-12));
}

TEST_CASE("RmsNorm passes the gradient check", "[nn][rms_norm]") {
  Random random = random_stream(112);
  for (const Index groups : {1, 3}) {
    RmsNorm<double> layer(21, {.epsilon = 1e-2, .groups = groups});
    layer.weight = random_vector<double>(21, random);
    Matrix<double> x = random_matrix<double>(67, 21, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(groups, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
    CHECK(report.checked == 67 * 21 + 21);
  }
}

TEST_CASE("RmsNorm: a zero row gives zeros, threads change no bit, a warm call allocates nothing", "[nn][rms_norm]") {
  Random random = random_stream(113);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  RmsNorm<float> layer(33);
  Matrix<float> x = random_matrix<float>(150, 33, random);
  const Matrix<float> dy = random_matrix<float>(150, 33, random);
  std::fill_n(x.row(2), 33, 0.0f);
  Matrix<float> y(150, 33), y2(150, 33), dx(150, 33, 0.0f), dx2(150, 33, 0.0f);
  RmsNorm<float>::Saved saved, saved2;
  RmsNorm<float> g = make_gradient(layer), g2 = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  layer.forward(x, y2, saved2, Step{}, wide);
  layer.backward(x, dy, saved2, dx2, g2, wide);
  for (Index j = 0; j < 33; ++j) CHECK(y(2, j) == 0);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  CHECK(std::equal(g.weight.begin(), g.weight.end(), g2.weight.begin()));
  const AllocationCounter counter;
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("rms_norm refuses what does not fit and writes nothing", "[nn][rms_norm]") {
  Workspace ws;
  const Matrix<float> x(3, 6, 1.0f);
  const Vector<float> w(6, 1.0f), odd(5, 1.0f);
  Matrix<float> y(3, 6, 7.0f), narrow(3, 5, 7.0f), moments(3, 1);
  CHECK(error_of([&] { rms_norm<float>(x, odd, {}, {}, y, ws); }) == "rms_norm: weight: expected size 6, got 5");
  CHECK(error_of([&] { rms_norm<float>(x, w, {}, {}, narrow, ws); }) == "rms_norm: y: expected shape [3, 6], got [3, 5]");
  CHECK(error_of([&] { rms_norm<float>(x, w, {.epsilon = -1}, {}, y, ws); }) ==
        "rms_norm: epsilon: expected epsilon > 0, got -1");
  CHECK(error_of([&] { rms_norm<float>(x, w, {.groups = 2}, moments, y, ws); }) ==
        "rms_norm: moments: expected shape [3, 2], got [3, 1]");
  CHECK(error_of([&] { rms_norm_backward<float>(x, w, {}, moments, x, narrow, {}, ws); }) ==
        "rms_norm_backward: dx: expected shape [3, 6], got [3, 5]");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(narrow)) CHECK(v == 7);
}
