// Oracle: the definition in double; backward against its naive form and, in double, against central differences.
#include <recops/nn/linear.hpp>
#include <recops/train/gradient_check.hpp>

#include <cstring>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
Matrix<double> product(MatrixView<const T> a, bool transpose_a, MatrixView<const T> b, bool transpose_b) {
  const Index m = transpose_a ? a.cols() : a.rows(), k = transpose_a ? a.rows() : a.cols(), n = transpose_b ? b.rows() : b.cols();
  Matrix<double> c(m, n, 0.0);
  for (Index i = 0; i < m; ++i)
    for (Index p = 0; p < k; ++p)
      for (Index j = 0; j < n; ++j)
        c(i, j) += static_cast<double>(transpose_a ? a(p, i) : a(i, p)) * static_cast<double>(transpose_b ? b(j, p) : b(p, j));
  return c;
}

template <class T>
constexpr double tolerance = 200 * static_cast<double>(std::numeric_limits<T>::epsilon());

const Index shapes[][3] = {{0, 3, 2},  {1, 1, 1},   {1, 7, 33},   {2, 0, 3},  {3, 4, 0},
                           {8, 17, 5}, {9, 64, 31}, {33, 19, 70}, {130, 5, 3}};

}  // namespace

TEMPLATE_TEST_CASE("linear equals its definition, on strided views", "[nn][linear]", float, double) {
  using T = TestType;
  Random random = random_stream(31);
  Workspace ws;
  for (const auto& [rows, in, out] : shapes) {
    Padded<T> x(random_matrix<T>(rows, in, random).view()), weight(random_matrix<T>(out, in, random).view());
    const Vector<T> bias = random_vector<T>(out, random);
    for (const bool with_bias : {false, true}) {
      Padded<T> y(rows, out, T(3));
      linear<T>(x, weight, with_bias ? VectorView<const T>(bias) : VectorView<const T>(), y, ws);
      Matrix<double> expected = product<T>(x, false, weight, true);
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < out; ++j) expected(i, j) += with_bias ? static_cast<double>(bias[j]) : 0;
      CAPTURE(rows, in, out, with_bias);
      CHECK(max_difference(y.view(), expected.view()) < tolerance<T>);
      CHECK(y.intact());
    }
  }
}

TEMPLATE_TEST_CASE("linear_backward adds to what is wanted and only to that", "[nn][linear]", float, double) {
  using T = TestType;
  Random random = random_stream(32);
  Workspace ws;
  for (const auto& [rows, in, out] : shapes) {
    Padded<T> x(random_matrix<T>(rows, in, random).view()), weight(random_matrix<T>(out, in, random).view()),
        dy(random_matrix<T>(rows, out, random).view());
    const Matrix<double> dx0 = product<T>(dy, false, weight, false), dw0 = product<T>(dy, true, x, false);
    for (int wanted = 0; wanted < 8; ++wanted) {
      Padded<T> dx(rows, in, T(2)), dweight(out, in, T(2));
      Vector<T> dbias(out, T(2));
      const bool has_dx = wanted % 2 != 0, has_dw = wanted / 2 % 2 != 0, has_db = wanted / 4 != 0;
      linear_backward<T>(x, weight, dy, has_dx ? dx.view() : MatrixView<T>(), has_dw ? dweight.view() : MatrixView<T>(),
                         has_db ? VectorView<T>(dbias) : VectorView<T>(), ws);
      double worst = 0;
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < in; ++j)
          worst = std::max(worst, std::abs(static_cast<double>(dx(i, j)) - 2 - (has_dx ? dx0(i, j) : 0)));
      for (Index i = 0; i < out; ++i) {
        double db = 2;
        for (Index b = 0; b < rows; ++b) db += has_db ? static_cast<double>(dy(b, i)) : 0;
        worst = std::max(worst, std::abs(static_cast<double>(dbias[i]) - db));
        for (Index j = 0; j < in; ++j)
          worst = std::max(worst, std::abs(static_cast<double>(dweight(i, j)) - 2 - (has_dw ? dw0(i, j) : 0)));
      }
      CAPTURE(rows, in, out, wanted);
      CHECK(worst < 2 * tolerance<T>);
      CHECK((dx.intact() && dweight.intact()));
    }
  }
}

TEST_CASE("Linear passes the gradient check", "[nn][linear]") {
  Random random = random_stream(33);
  for (const bool with_bias : {true, false}) {
    Linear<double> layer(5, 4, random, with_bias);
    Matrix<double> x = random_matrix<double>(7, 5, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
    CHECK(report.checked == 35 + 20 + (with_bias ? 4 : 0));
  }
}

TEST_CASE("an empty bias is none, whatever memory it once had", "[nn][linear]") {
  Random random = random_stream(34);
  Workspace ws;
  Linear<float> layer(6, 5, random);
  const Matrix<float> x = random_matrix<float>(12, 6, random);
  layer.bias.fill(1e6f);
  layer.bias.resize(0);
  Matrix<float> y(12, 5), served(12, 5);
  layer.forward(x, y, ws);
  freeze(layer).forward(x, served, ws);
  const Matrix<double> expected = product<float>(x.view(), false, layer.weight.view(), true);
  CHECK(max_difference(y.view(), expected.view()) < 1e-5);
  CHECK(max_difference(served.view(), expected.view()) < 1e-5);
}

TEST_CASE("a million rows: the gradients stay accurate", "[nn][linear]") {
  const Index rows = 1000000;
  const Matrix<float> x(rows, 1, 0.1f), weight(2, 1, 1.0f), dy(rows, 2, 0.1f);
  Matrix<float> dweight(2, 1, 0.0f);
  Vector<float> dbias(2, 0.0f);
  Workspace ws;
  linear_backward<float>(x, weight, dy, {}, dweight, dbias, ws);
  CHECK(static_cast<double>(dbias[0]) == Approx(1e5).epsilon(1e-4));
  CHECK(static_cast<double>(dbias[1]) == Approx(1e5).epsilon(1e-4));
  CHECK(static_cast<double>(dweight(1, 0)) == Approx(1e4).epsilon(1e-4));
}

TEST_CASE("linear refuses shapes that disagree and writes nothing", "[nn][linear]") {
  Workspace ws;
  const Matrix<float> x(3, 5, 1.0f), weight(4, 5, 1.0f), dy(3, 4, 1.0f), odd(3, 6, 1.0f);
  const Vector<float> bias(4, 1.0f), short_bias(3, 1.0f);
  Matrix<float> y(3, 4, 7.0f), dx(3, 5, 7.0f), dweight(4, 5, 7.0f);
  Vector<float> dbias(4, 7.0f), wrong(5, 7.0f);
  CHECK(error_of([&] { linear<float>(odd, weight, bias, y, ws); }) == "linear: x: expected shape [_, 5], got [3, 6]");
  CHECK(error_of([&] { linear<float>(x, weight, short_bias, y, ws); }) == "linear: bias: expected size 4, got 3");
  CHECK(error_of([&] { linear<float>(x, weight, bias, y.view().middle_rows(0, 2), ws); }) ==
        "linear: y: expected shape [3, 4], got [2, 4]");
  CHECK(error_of([&] { linear<float>(MatrixView<const float>(nullptr, 3, 5), weight, bias, y, ws); }) ==
        "linear: x: expected shape [_, 5], got [3, 5] at a null pointer");
  CHECK(error_of([&] { linear<float>(MatrixView<const float>(x.data(), 3, 5, 4), weight, bias, y, ws); }) ==
        "linear: x: expected shape [_, 5], got [3, 5] with row stride 4");
  CHECK(error_of([&] { linear_backward<float>(x, weight, odd, dx, dweight, dbias, ws); }) ==
        "linear_backward: dy: expected shape [3, 4], got [3, 6]");
  CHECK(error_of([&] { linear_backward<float>(x, weight, dy, y, dweight, dbias, ws); }) ==
        "linear_backward: dx: expected shape [3, 5], got [3, 4]");
  CHECK(error_of([&] { linear_backward<float>(x, weight, dy, dx, dx, dbias, ws); }) ==
        "linear_backward: dweight: expected shape [4, 5], got [3, 5]");
  CHECK(error_of([&] { linear_backward<float>(x, weight, dy, dx, dweight, wrong, ws); }) ==
        "linear_backward: dbias: expected size 4, got 5");
  CHECK(error_of([&] { FrozenDense<float>(weight, short_bias, Activation::none); }) ==
        "FrozenDense: bias: expected size 4, got 3");
  const FrozenDense<float> served(weight, bias, Activation::none);
  CHECK(error_of([&] { served.forward(odd, y, ws); }) == "FrozenDense: x: expected shape [_, 5], got [3, 6]");
  CHECK(error_of([&] { served.forward(x, dx, ws); }) == "FrozenDense: y: expected shape [3, 4], got [3, 5]");
  CHECK(error_of([&] { (void)served.output_cols(6); }) == "FrozenDense: input columns: expected as many as weight has, got 6");
  Random random(1);
  CHECK(error_of([&] { (void)Linear<float>(5, 4, random).output_cols(6); }) ==
        "Linear: input columns: expected as many as weight has, got 6");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(dx)) CHECK(v == 7);
  for (const float v : leaf_values(dweight)) CHECK(v == 7);
  for (const float v : dbias) CHECK(v == 7);
}

TEMPLATE_TEST_CASE("Linear starts uniform in +-1 / sqrt(in), the same for the same seed", "[nn][linear]", float, double) {
  using T = TestType;
  Random a(5), b(5);
  const Linear<T> one(64, 50, a), two(64, 50, b);
  double sum = 0, square = 0, most = 0;
  for (const T w : leaf_values(one.weight)) {
    sum += static_cast<double>(w), square += static_cast<double>(w) * static_cast<double>(w);
    most = std::max(most, std::abs(static_cast<double>(w)));
  }
  CHECK((most <= 0.125 && most > 0.1249));
  CHECK(std::abs(sum / 3200) < 0.01);
  CHECK(square / 3200 == Approx(0.125 * 0.125 / 3).epsilon(0.05));
  CHECK(max_difference(one.weight.view(), two.weight.view()) == 0);
  CHECK((one.bias.size() == 50 && one.bias[0] != one.bias[1]));
  Random c(5);
  CHECK(Linear<T>(3, 2, c, false).bias.empty());
  CHECK(Linear<T>(0, 2, c).weight.rows() == 2);
}

TEMPLATE_TEST_CASE("freeze: the same numbers, and bits that do not depend on the batch", "[nn][linear]", float, double) {
  using T = TestType;
  Random random = random_stream(35);
  Workspace ws;
  for (const auto& [rows, in, out] : shapes) {
    const Linear<T> layer(in, out, random);
    FrozenDense<T> served = freeze(layer);
    const Matrix<T> x = random_matrix<T>(rows, in, random);
    Matrix<T> y(rows, out), z(rows, out), row(1, out);
    layer.forward(x, y, ws);
    served.forward(x, z, ws);
    CAPTURE(rows, in, out);
    CHECK((served.input_cols() == in && served.output_cols(in) == out));
    CHECK(max_difference(y.view(), z.view()) < tolerance<T>);
    FrozenDense<T> copy = served, moved = std::move(served);
    for (Index b = 0; b < rows; ++b) {
      (b % 2 != 0 ? copy : moved).forward(x.view().middle_rows(b, 1), row, ws);
      CHECK(max_difference(row.view(), z.view().middle_rows(b, 1)) == 0);
    }
  }
  FrozenDense<T> none;
  Matrix<T> empty(3, 0);
  none.forward(empty, empty, ws);
}

TEST_CASE("Linear: a NaN stays in its row", "[nn][linear]") {
  Random random = random_stream(36);
  Workspace ws;
  const Linear<float> layer(20, 35, random);
  Matrix<float> x = random_matrix<float>(30, 20, random), y(30, 35), z(30, 35);
  layer.forward(x, y, ws);
  x(17, 3) = std::numeric_limits<float>::quiet_NaN();
  layer.forward(x, z, ws);
  for (Index b = 0; b < 30; ++b)
    for (Index j = 0; j < 35; ++j) CHECK((b == 17 ? std::isnan(z(b, j)) : z(b, j) == y(b, j)));
}

TEST_CASE("Linear allocates nothing once warm; copies and moves own their numbers", "[nn][linear]") {
  Random random = random_stream(37);
  Workspace ws;
  Linear<float> layer(20, 35, random);
  Linear<float> gradient = make_gradient(layer);
  const Matrix<float> x = random_matrix<float>(30, 20, random), dy = random_matrix<float>(30, 35, random);
  Matrix<float> y(30, 35), dx(30, 20, 0.0f);
  const auto step = [&](Index rows) {
    Linear<float>::Saved saved;
    layer.forward(x.view().middle_rows(0, rows), y.view().middle_rows(0, rows), ws);
    layer.forward(x.view().middle_rows(0, rows), y.view().middle_rows(0, rows), saved, Step{}, ws);
    layer.backward(x.view().middle_rows(0, rows), dy.view().middle_rows(0, rows), saved, dx.view().middle_rows(0, rows), gradient,
                   ws);
  };
  step(30);
  const AllocationCounter counter;
  for (const Index rows : {30, 1, 13, 30}) step(rows);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);

  Linear<float> copy = layer;
  copy.weight(0, 0) += 1;
  CHECK(copy.weight(0, 0) != layer.weight(0, 0));
  const Linear<float> moved = std::move(copy);
  CHECK((moved.weight.rows() == 35 && moved.bias.size() == 35));
  CHECK((copy.weight.empty() && copy.bias.empty() && copy.weight.rows() == 0));  // NOLINT(bugprone-use-after-move)
}
