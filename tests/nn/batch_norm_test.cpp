// Oracles: the definition in double, PyTorch's vectors (two steps, then serving), central differences.
#include <recops/nn/batch_norm.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("batch_norm_train equals the definition", "[nn][batch_norm]", float, double) {
  using T = TestType;
  const double tolerance = 100 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(121);
  Workspace ws;
  for (const Index rows : {2, 3, 63, 64, 65, 200}) {
    for (const Index n : {1, 15, 16, 17, 40}) {
      Padded<T> x(random_matrix<T>(rows, n, random).view()), y(rows, n, T(5));
      const Vector<T> w = random_vector<T>(n, random), b = random_vector<T>(n, random);
      Vector<T> mean(n), variance(n);
      batch_norm_train<T>(x, w, b, {.epsilon = 1e-3}, mean, variance, y, ws);
      Matrix<double> expected(rows, n);
      CAPTURE(rows, n);
      for (Index j = 0; j < n; ++j) {
        double m = 0, v = 0;
        for (Index r = 0; r < rows; ++r) m += static_cast<double>(x(r, j)) / static_cast<double>(rows);
        for (Index r = 0; r < rows; ++r) v += std::pow(static_cast<double>(x(r, j)) - m, 2) / static_cast<double>(rows);
        CHECK(std::abs(static_cast<double>(mean[j]) - m) < tolerance);
        CHECK(std::abs(static_cast<double>(variance[j]) - v) < tolerance);
        for (Index r = 0; r < rows; ++r)
          expected(r, j) =
              (static_cast<double>(x(r, j)) - m) / std::sqrt(v + 1e-3) * static_cast<double>(w[j]) + static_cast<double>(b[j]);
      }
      CHECK(max_difference(y.view(), expected.view()) < tolerance);
      CHECK(y.intact());
      // Columns are independent: the last one alone, bit for bit.
      Matrix<T> alone(rows, 1);
      batch_norm_train<T>(x.view().middle_cols(n - 1, 1), VectorView<const T>(w).segment(n - 1, 1),
                          VectorView<const T>(b).segment(n - 1, 1), {.epsilon = 1e-3}, VectorView<T>(mean).segment(n - 1, 1),
                          VectorView<T>(variance).segment(n - 1, 1), alone, ws);
      CHECK(max_difference(alone.view(), y.view().middle_cols(n - 1, 1)) == 0);
      batch_norm_train<T>(x, w, b, {.epsilon = 1e-3}, mean, variance, x, ws);  // y may be x
      CHECK(max_difference(y.view(), x.view()) == 0);
    }
  }
}

TEST_CASE("batch_norm_train keeps its accuracy far from zero; a constant column gives the bias", "[nn][batch_norm]") {
  Random random = random_stream(122);
  Workspace ws;
  Matrix<float> x = random_matrix<float>(1000, 3, random), y(1000, 3);
  for (Index r = 0; r < 1000; ++r) {
    x(r, 0) += 4096;
    x(r, 2) = 0.1f;
  }
  Vector<float> mean(3), variance(3);
  const Vector<float> bias{1, 2, 3};
  batch_norm_train<float>(x, {}, bias, {}, mean, variance, y, ws);
  double m = 0, v = 0;
  for (Index r = 0; r < 1000; ++r) m += static_cast<double>(x(r, 0)) / 1000;
  for (Index r = 0; r < 1000; ++r) v += std::pow(static_cast<double>(x(r, 0)) - m, 2) / 1000;
  CHECK(static_cast<double>(mean[0]) == Approx(m).epsilon(1e-7));
  CHECK(static_cast<double>(variance[0]) == Approx(v).epsilon(1e-5));
  for (Index r = 0; r < 1000; ++r) CHECK(y(r, 2) == Approx(3).margin(1e-4));
}

TEST_CASE("A constant column or row gives exactly the bias, however far from zero", "[nn][batch_norm][layer_norm]") {
  Workspace ws;
  for (const float c : {12345.678f, 1000003.0f, 16777213.0f, -0.1f, 1e10f}) {
    for (const Index n : {2, 3, 5, 36, 63, 64, 65, 100, 1000}) {
      const Matrix<float> column(n, 3, c), row(1, n, c);
      Matrix<float> y(n, 3), z(1, n), moments(1, 2);
      Vector<float> mean(3), variance(3);
      batch_norm_train<float>(column, {}, {}, {}, mean, variance, y, ws);
      layer_norm<float>(row, {}, {}, {}, moments, z, ws);
      CHECK(mean[2] == c);
      CHECK(variance[2] >= 0);
      CHECK(moments(0, 0) == c);
      for (const float v : leaf_values(y)) CHECK(v == 0);
      for (const float v : leaf_values(z)) CHECK(v == 0);
    }
  }
}

TEST_CASE("A refused training forward leaves what BatchNorm saved before", "[nn][batch_norm]") {
  Workspace ws;
  const BatchNorm<float> layer(2);
  BatchNorm<float>::Saved saved;
  const Matrix<float> x{{1, 2}, {3, 6}}, wide(2, 3, 1.0f), one(1, 2, 1.0f);
  Matrix<float> y(2, 2), y_wide(2, 3), y_one(1, 2);
  layer.forward(x, y, saved, Step{}, ws);
  CHECK_THROWS_AS(layer.forward(wide, y_wide, saved, Step{}, ws), Error);
  CHECK_THROWS_AS(layer.forward(one, y_one, saved, Step{}, ws), Error);
  CHECK_THROWS_AS(layer.forward(x, y_one, saved, Step{}, ws), Error);
  CHECK(saved.mean.size() == 2);
  CHECK(saved.mean[1] == 4);
  CHECK(saved.rows == 2);
}

TEST_CASE("BatchNorm equals PyTorch: training, backward, running statistics, serving", "[nn][batch_norm]") {
  const Golden golden("mmoe");
  Workspace ws;
  BatchNorm<double> layer(21);
  const Matrix<double> x = golden.matrix<double>("layer_norm.x"), dy = golden.matrix<double>("layer_norm.dy"),
                       first = golden.matrix<double>("batch_norm.first");
  const auto read = [&](const char* name, auto& to) {
    const auto all = golden.values<double>(name);
    REQUIRE(static_cast<Index>(all.size()) == to.size());
    std::copy(all.begin(), all.end(), to.begin());
  };
  const auto same = [&](const char* name, const Vector<double>& got) {
    const auto all = golden.values<double>(name);
    for (Index j = 0; j < 21; ++j) CHECK(got[j] == Approx(all[static_cast<std::size_t>(j)]).epsilon(1e-12).margin(1e-13));
  };
  read("batch_norm.weight", layer.weight);
  read("batch_norm.bias", layer.bias);
  BatchNorm<double>::Saved saved;
  BatchNorm<double> gradient = make_gradient(layer);
  Matrix<double> y(19, 21), dx(19, 21, 0.0);
  layer.forward(first, y.view().middle_rows(0, 7), saved, Step{}, ws);
  layer.update(saved);
  layer.forward(x, y, saved, Step{}, ws);
  layer.update(saved);
  layer.backward(x, dy, saved, dx, gradient, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("batch_norm.y").view()) < 1e-12);
  CHECK(max_difference(dx.view(), golden.matrix<double>("batch_norm.dx").view()) < 1e-12);
  same("batch_norm.dweight", gradient.weight);
  same("batch_norm.dbias", gradient.bias);
  same("batch_norm.running_mean", layer.running_mean);
  same("batch_norm.running_var", layer.running_variance);
  layer.forward(x, y, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("batch_norm.served").view()) < 1e-12);
}

TEST_CASE("BatchNorm passes the gradient check", "[nn][batch_norm]") {
  Random random = random_stream(123);
  for (const Index rows : {2, 9, 130}) {
    BatchNorm<double> layer(7, {.epsilon = 1e-2});
    layer.weight = random_vector<double>(7, random);
    Matrix<double> x = random_matrix<double>(rows, 7, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(rows, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
    CHECK(report.checked == rows * 7 + 14);
  }
}

TEST_CASE("BatchNorm: the input's gradient uses this batch's sums, not what the gradient held before", "[nn][batch_norm]") {
  Random random = random_stream(124);
  Workspace ws;
  BatchNorm<double> layer(5);
  const Matrix<double> x = random_matrix<double>(9, 5, random), dy = random_matrix<double>(9, 5, random);
  Matrix<double> y(9, 5), dx(9, 5, 0.0), dx2(9, 5, 0.0);
  BatchNorm<double>::Saved saved;
  BatchNorm<double> fresh = make_gradient(layer), used = make_gradient(layer);
  used.weight.fill(100);
  used.bias.fill(-7);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, fresh, ws);
  layer.backward(x, dy, saved, dx2, used, ws);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  CHECK(used.weight[3] == Approx(fresh.weight[3] + 100));
  // A shift of a column does not change the output, so its gradient sums to nothing.
  for (Index j = 0; j < 5; ++j) {
    double sum = 0;
    for (Index r = 0; r < 9; ++r) sum += dx(r, j);
    CHECK(std::abs(sum) < 1e-13);
  }
}

TEST_CASE("BatchNorm: threads change no bit, an empty batch is fine, a warm call allocates nothing", "[nn][batch_norm]") {
  Random random = random_stream(125);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  BatchNorm<float> layer(33);
  const Matrix<float> x = random_matrix<float>(500, 33, random), dy = random_matrix<float>(500, 33, random);
  Matrix<float> y(500, 33), y2(500, 33), dx(500, 33, 0.0f), dx2(500, 33, 0.0f);
  BatchNorm<float>::Saved saved, saved2;
  BatchNorm<float> g = make_gradient(layer), g2 = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  layer.forward(x, y2, saved2, Step{}, wide);
  layer.backward(x, dy, saved2, dx2, g2, wide);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  CHECK(std::equal(g.weight.begin(), g.weight.end(), g2.weight.begin()));
  const AllocationCounter counter;
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  layer.update(saved);
  layer.forward(x, y, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  const Vector<float> before = layer.running_mean;
  layer.forward(x.view().middle_rows(0, 0), y.view().middle_rows(0, 0), saved, Step{}, ws);
  layer.backward(x.view().middle_rows(0, 0), dy.view().middle_rows(0, 0), saved, {}, g, ws);
  layer.update(saved);
  CHECK(std::equal(before.begin(), before.end(), layer.running_mean.begin()));
}

TEST_CASE("batch_norm refuses what does not fit and writes nothing", "[nn][batch_norm]") {
  Workspace ws;
  const Matrix<float> x(3, 6, 1.0f), one(1, 6, 1.0f);
  const Vector<float> w(6, 1.0f), odd(5, 1.0f);
  Vector<float> m(6, 7.0f), v(6, 7.0f);
  Matrix<float> y(3, 6, 7.0f), y1(1, 6, 7.0f);
  CHECK(error_of([&] { batch_norm_train<float>(one, w, w, {}, m, v, y1, ws); }) ==
        "batch_norm_train: rows of x: expected at least two rows to take statistics of, got 1");
  CHECK(error_of([&] { batch_norm_train<float>(x, odd, w, {}, m, v, y, ws); }) ==
        "batch_norm_train: weight: expected size 6, got 5");
  CHECK(error_of([&] { batch_norm_train<float>(x, w, w, {}, m, v, y1, ws); }) ==
        "batch_norm_train: y: expected shape [3, 6], got [1, 6]");
  CHECK(error_of([&] { batch_norm<float>(x, w, w, odd, w, {}, y, ws); }) == "batch_norm: running_mean: expected size 6, got 5");
  CHECK(error_of([&] { batch_norm<float>(x, w, w, w, w, {.epsilon = 0}, y, ws); }) ==
        "batch_norm: epsilon: expected epsilon > 0, got 0");
  CHECK(error_of([&] { update_running_statistics<float>(w, w, 3, {.momentum = 2}, m, v); }) ==
        "update_running_statistics: momentum: expected 0 <= momentum <= 1, got 2");
  for (const float value : leaf_values(y)) CHECK(value == 7);
  for (const float value : leaf_values(y1)) CHECK(value == 7);
  for (Index j = 0; j < 6; ++j) CHECK((m[j] == 7 && v[j] == 7));
}

static_assert(RowLayer<BatchNorm<float>, float>);

TEST_CASE("batch_norm: an empty view is none, whatever it points to", "[nn][batch_norm]") {
  Random random = random_stream(126);
  Workspace ws;
  const Matrix<float> x = random_matrix<float>(9, 5, random), dy = random_matrix<float>(9, 5, random);
  Vector<float> memory(5, 7.0f), mean(5), variance(5), dbias(5, 0.0f), dbias2(5, 0.0f);
  const VectorView<float> empty(memory.data(), 0);
  Matrix<float> y(9, 5), y2(9, 5), dx(9, 5, 0.0f), dx2(9, 5, 0.0f);
  batch_norm_train<float>(x, {}, {}, {}, mean, variance, y, ws);
  batch_norm_train<float>(x, empty, empty, {}, mean, variance, y2, ws);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  batch_norm<float>(x, {}, {}, mean, variance, {}, y, ws);
  batch_norm<float>(x, empty, empty, mean, variance, {}, y2, ws);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  batch_norm_backward<float>(x, {}, {}, mean, variance, dy, dx, {}, dbias, ws);
  batch_norm_backward<float>(x, empty, {}, mean, variance, dy, dx2, empty, dbias2, ws);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  CHECK(std::equal(dbias.begin(), dbias.end(), dbias2.begin()));
  batch_norm_backward<float>(x, {}, {}, mean, variance, dy, dx, {}, empty, ws);
  CHECK(std::count(memory.begin(), memory.end(), 7.0f) == 5);
}
