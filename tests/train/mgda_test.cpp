// Oracles: scipy's SLSQP (golden/train.py); the optimality condition (K a)_i >= a^T K a.
#include <recops/train/mgda.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
Matrix<double> gram_of(const Matrix<double>& g) {
  Matrix<double> gram(g.rows(), g.rows(), 0);
  for (Index i = 0; i < g.rows(); ++i)
    for (Index j = 0; j < g.rows(); ++j)
      for (Index k = 0; k < g.cols(); ++k) gram(i, j) += g(i, k) * g(j, k);
  return gram;
}
// How far the weights are from optimal and from the simplex.
double violation(const Matrix<double>& gram, const Vector<double>& a, double square) {
  double sum = 0, value = 0, worst = 0;
  for (Index i = 0; i < a.size(); ++i) {
    sum += a[i];
    worst = std::max(worst, -a[i]);
    for (Index j = 0; j < a.size(); ++j) value += a[i] * a[j] * gram(i, j);
  }
  for (Index i = 0; i < a.size(); ++i) {
    double product = 0;
    for (Index j = 0; j < a.size(); ++j) product += gram(i, j) * a[j];
    worst = std::max(worst, value - product);
  }
  return std::max({worst, std::abs(sum - 1), std::abs(value - square)});
}
}  // namespace

TEST_CASE("the shortest combination is scipy's", "[train][golden]") {
  const Golden golden("train");
  Workspace ws;
  for (const Index count : {2, 3, 5, 12}) {
    const std::string name = "min_norm." + std::to_string(count) + ".";
    const Matrix<double> gram = gram_of(golden.matrix<double>(name + "gradients"));
    const auto expected = golden.values<double>(name + "weights");
    Vector<double> a(count);
    const double square = mgda(gram, a, ws);
    CAPTURE(count);
    CHECK(std::abs(square - golden.scalar(name + "square")) < 1e-7);
    for (Index m = 0; m < count; ++m) CHECK(std::abs(a[m] - expected[static_cast<std::size_t>(m)]) < 1e-4);
    CHECK(violation(gram, a, square) < 1e-9);
  }
}

TEST_CASE("random, dependent and opposed gradients meet the optimality condition", "[train][mgda]") {
  Workspace ws;
  Random random = random_stream(361);
  for (const Index count : {1, 2, 3, 4, 8, 9, 20})
    for (const Index dims : {1, 2, 5, 30})
      for (int repeat = 0; repeat < 5; ++repeat) {
        Matrix<double> g = random_matrix<double>(count, dims, random);
        if (repeat == 1 && count > 1) std::copy_n(g.row(0), dims, g.row(count - 1));
        if (repeat == 2 && count > 1)
          for (Index k = 0; k < dims; ++k) g(count - 1, k) = -3 * g(0, k);
        if (repeat == 3) std::fill_n(g.row(0), dims, 0.0);
        if (repeat == 4)
          for (Index k = 0; k < count * dims; ++k) g.data()[k] *= 1e-9;
        const Matrix<double> gram = gram_of(g);
        double largest = 0;
        for (Index i = 0; i < count; ++i) largest = std::max(largest, gram(i, i));
        Vector<double> a(count);
        const double square = mgda(gram, a, ws);
        CAPTURE(count, dims, repeat);
        CHECK(violation(gram, a, square) <= 1e-9 * std::max(largest, 1e-300) + (largest < 1e-6 ? 1e-12 : 0));
      }
}

TEST_CASE("edges of the shortest combination", "[train][mgda]") {
  Workspace ws;
  Vector<double> a(3);
  const Matrix<double> equal(3, 3, 2.0), zero(3, 3, 0.0), ones(2, 2, 1.0), empty(0, 0);
  CHECK(std::abs(mgda(equal, a, ws) - 2) < 1e-12);
  for (const double x : a) CHECK(std::abs(x - 1.0 / 3) < 1e-12);
  CHECK(mgda(zero, a, ws) == 0);
  Matrix<double> bad(3, 3, 1.0);
  bad(1, 2) = std::nan("");
  CHECK(std::isnan(mgda(bad, a, ws)));
  CHECK(a[0] == 1.0 / 3);
  Vector<double> two(2);
  CHECK(mgda(ones, two, ws) == 1);
  CHECK(two[0] == 0.5);
  Vector<double> none(0);
  CHECK(error_of([&] { mgda(empty, none, ws); }) == "mgda: weights: expected one loss or more, got 0");
  CHECK(count_allocations([&] { mgda(equal, a, ws); }) == 0);
}
