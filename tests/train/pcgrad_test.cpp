// Oracles: the algorithm on whole vectors (golden/train.py for two gradients, here for more); its invariants.
#include <recops/train/pcgrad.hpp>

#include <vector>

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
}  // namespace

TEST_CASE("two gradients in conflict", "[train][golden]") {
  const Golden golden("train");
  const Matrix<double> g = golden.matrix<double>("pcgrad.gradients");
  const auto expected = golden.values<double>("pcgrad.sum");
  Vector<double> c(2);
  Workspace ws;
  Random random(1);
  const Matrix<double> gram = gram_of(g);
  pcgrad(gram, random, c, ws);
  for (Index k = 0; k < g.cols(); ++k)
    CHECK(std::abs(c[0] * g(0, k) + c[1] * g(1, k) - expected[static_cast<std::size_t>(k)]) < 1e-12);
}

TEST_CASE("many gradients equal surgery on whole vectors in the same order", "[train][pcgrad]") {
  Workspace ws;
  Random data = random_stream(351);
  for (const Index count : {1, 2, 3, 7}) {
    Matrix<double> g = random_matrix<double>(count, 9, data);
    if (count > 2) std::fill_n(g.row(1), 9, 0.0);
    Vector<double> c(count), expected(9, 0.0);
    Random order(5, static_cast<std::uint64_t>(count)), same = order;
    const Matrix<double> gram = gram_of(g);
    pcgrad(gram, order, c, ws);
    for (Index i = 0; i < count; ++i) {
      std::vector<double> x(g.row(i), g.row(i) + 9);
      std::vector<Index> others(static_cast<std::size_t>(count));
      for (Index j = 0; j < count; ++j) others[static_cast<std::size_t>(j)] = j;
      for (Index j = count - 1; j > 0; --j)
        std::swap(others[static_cast<std::size_t>(j)], others[static_cast<std::size_t>(same.below(j + 1))]);
      for (const Index j : others) {
        double product = 0, square = 0;
        for (Index k = 0; k < 9; ++k) {
          product += x[static_cast<std::size_t>(k)] * g(j, k);
          square += g(j, k) * g(j, k);
        }
        if (j == i || square == 0 || product >= 0) continue;
        for (Index k = 0; k < 9; ++k) x[static_cast<std::size_t>(k)] -= product / square * g(j, k);
      }
      for (Index k = 0; k < 9; ++k) expected[k] += x[static_cast<std::size_t>(k)];
    }
    for (Index k = 0; k < 9; ++k) {
      double got = 0;
      for (Index m = 0; m < count; ++m) got += c[m] * g(m, k);
      CHECK(std::abs(got - expected[k]) < 1e-10);
    }
  }
}

TEST_CASE("without conflict nothing changes", "[train][pcgrad]") {
  Workspace ws;
  Random random(3);
  Matrix<double> gram{{1, 0.5, 0}, {0.5, 2, 0.1}, {0, 0.1, 3}};
  Vector<double> c(3);
  pcgrad(gram, random, c, ws);
  for (const double x : c) CHECK(x == 1);
  CHECK(count_allocations([&] { pcgrad(gram, random, c, ws); }) == 0);
  Vector<double> none(0);
  Matrix<double> empty(0, 0);
  pcgrad(empty, random, none, ws);
  CHECK(error_of([&] { pcgrad(gram, random, none, ws); }) == "pcgrad: gram: expected shape [0, 0], got [3, 3]");
}
