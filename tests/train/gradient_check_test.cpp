// Oracle: layers that are right, and layers broken on purpose in the ways people break them.
#include <recops/nn/dense.hpp>
#include <recops/train/gradient_check.hpp>

#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

enum class Broken { not_at_all, factor, sign, one_row, one_weight, overwrites_dx, overwrites_dw, forgets_dx, nan };

// y_bj = w_j x_bj^2, with a table for w, and a backward that can be wrong.
struct Square {
  Table<double> w;
  Broken broken = Broken::not_at_all;
  static constexpr auto fields() { return std::tuple{parameter("w", &Square::w)}; }
  Index output_cols(Index cols) const { return cols; }
  struct Saved {};
  void forward(MatrixView<const double> x, MatrixView<double> y, Workspace&) const {
    for (Index b = 0; b < x.rows(); ++b)
      for (Index j = 0; j < x.cols(); ++j) y(b, j) = w.values(0, j) * x(b, j) * x(b, j);
  }
  void forward(MatrixView<const double> x, MatrixView<double> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(MatrixView<const double> x, MatrixView<const double> dy, const Saved&, MatrixView<double> dx, Square& g,
                Workspace&) const {
    if (broken == Broken::overwrites_dw) g.w.values.fill(0);
    for (Index b = 0; b < x.rows(); ++b) {
      for (Index j = 0; j < x.cols(); ++j) {
        double d = 2 * w.values(0, j) * x(b, j) * dy(b, j), dw = x(b, j) * x(b, j) * dy(b, j);
        if (broken == Broken::factor) d *= 1.001;
        if (broken == Broken::sign && j == 1) dw = -dw;
        if (broken == Broken::one_row && b == 2) d = 0;
        if (broken == Broken::one_weight && j == 3) dw *= 0.99;
        if (broken == Broken::nan && b == 1 && j == 0) d = std::numeric_limits<double>::quiet_NaN();
        if (broken == Broken::overwrites_dx)
          dx(b, j) = d;
        else if (broken != Broken::forgets_dx)
          dx(b, j) += d;
        g.w.values(0, j) += dw;
      }
    }
  }
};

Square square(Broken broken, Random& random) {
  Square s;
  s.w.values = random_matrix<double>(1, 5, random);
  for (double& w : leaf_values(s.w)) w += w > 0 ? 1 : -1;
  s.broken = broken;
  return s;
}

}  // namespace

TEST_CASE("a right backward passes, every entry looked at", "[train][gradient_check]") {
  Random random = random_stream(91);
  Square layer = square(Broken::not_at_all, random);
  Padded<double> x(random_matrix<double>(4, 5, random).view());
  const Matrix<double> before = layer.w.values;
  const Padded<double> x_before = x;
  const GradientReport report = gradient_check(layer, x.view());
  CAPTURE(report.where);
  CHECK(report.worst < 1e-6);
  CHECK(report.checked == 25);
  CHECK(max_difference(before.view(), layer.w.values.view()) == 0);  // restored to the bit
  Padded<double> copy = x_before;
  CHECK(max_difference(x.view(), copy.view()) == 0);
  CHECK(x.intact());
}

TEST_CASE("every kind of wrong backward is found, and where", "[train][gradient_check]") {
  Random random(92);  // not the run's seed: by chance a wrong gradient can be small
  Matrix<double> x = random_matrix<double>(4, 5, random);
  for (double& v : leaf_values(x)) v += v > 0 ? 1 : -1;  // away from 0, where a gradient could be small by chance
  const auto check = [&](Broken broken, double least, const std::string& where) {
    Square layer = square(broken, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(static_cast<int>(broken), report.worst, report.where);
    CHECK(report.worst > least);
    CHECK(report.where.substr(0, where.size()) == where);
    CHECK(report.checked == 25);
  };
  check(Broken::factor, 5e-4, "x[");
  check(Broken::sign, 0.01, "w[1]");
  check(Broken::one_row, 0.9, "x[2]");
  check(Broken::one_weight, 1e-5, "w[3]");
  check(Broken::overwrites_dx, 0.4, "x[");
  check(Broken::overwrites_dw, 0.1, "w[");
  check(Broken::forgets_dx, 0.9, "x[");
  check(Broken::nan, 1e300, "x[1][0]");
}

TEST_CASE("the layers of the house pass with any seed; an empty batch is fine", "[train][gradient_check]") {
  Random random = random_stream(93);
  Dense<double> layer(3, 4, Activation::silu, random);
  Matrix<double> x = random_matrix<double>(5, 3, random), none(0, 3);
  for (const std::uint64_t seed : {1u, 2u, 3u}) CHECK(gradient_check(layer, x.view(), seed).worst < 1e-6);
  const GradientReport report = gradient_check(layer, none.view());
  CHECK((report.worst == 0 && report.checked == 16));
}

TEST_CASE("a function is checked entry by entry, or an even sample of it", "[train][gradient_check]") {
  Vector<double> x{1, 2, 3, 4, 5, 6, 7};
  const auto loss = [&] {
    double sum = 0;
    for (const double v : x) sum += v * v * v;
    return sum;
  };
  Vector<double> g(7);
  for (Index i = 0; i < 7; ++i) g[i] = 3 * x[i] * x[i];
  GradientReport report;
  check_gradient("cubes", x, g, loss, report);
  CHECK((report.worst < 1e-8 && report.checked == 7));
  g[5] += 1;
  check_gradient("wrong", x, g, loss, report);
  CHECK((report.where == "wrong[5]" && report.checked == 14));
  CHECK(report.analytic - report.numeric == Approx(1).epsilon(1e-5));
  CHECK(report.worst == Approx(1.0 / 147).epsilon(1e-4));
  GradientReport sample;
  check_gradient("sample", x, g, loss, sample, {.most = 3});  // entries 0, 2 and 4
  CHECK((sample.worst < 1e-8 && sample.checked == 3));
  const Vector<double> few(6);
  CHECK(error_of([&] { check_gradient("few", x, few, loss, report); }) == "check_gradient: few: expected size 7, got 6");
  for (Index i = 0; i < 7; ++i) CHECK(x[i] == static_cast<double>(i + 1));
}

TEST_CASE("a gradient of zero everywhere is compared against 1e-3", "[train][gradient_check]") {
  Vector<double> x{1, 2};
  const Vector<double> zero{0, 0}, off{0, 1e-4};
  GradientReport report;
  check_gradient(
      "flat", x, zero, [] { return 5.0; }, report);
  CHECK(report.worst == 0);
  check_gradient(
      "flat", x, off, [] { return 5.0; }, report);
  CHECK(report.worst == Approx(0.1));
}
