// Oracles: x plus the inner layer's own output, bit for bit; central differences.
#include <recops/nn/dense.hpp>
#include <recops/nn/residual.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("x plus the inner layer, serving, training and frozen", "[nn][residual]", float, double) {
  using T = TestType;
  Random random = random_stream(421);
  Workspace ws;
  const auto layer = residual<T>(Dense<T>(9, 9, Activation::silu, random));
  static_assert(RowLayer<std::remove_const_t<decltype(layer)>, T>);
  for (const Index rows : {0, 1, 14}) {
    const Matrix<T> x = random_matrix<T>(rows, 9, random);
    Matrix<T> inner(rows, 9), y(rows, 9), z(rows, 9), s(rows, 9);
    typename std::remove_cvref_t<decltype(layer)>::Saved saved;
    layer.inner.forward(x, inner, ws);
    layer.forward(x, y, ws);
    layer.forward(x, z, saved, Step{}, ws);
    freeze(layer).forward(x, s, ws);
    for (Index i = 0; i < rows * 9; ++i) inner.data()[i] += x.data()[i];
    CHECK(max_difference(y.view(), inner.view()) == 0);
    CHECK(max_difference(z.view(), inner.view()) < 1e-5);
    CHECK(max_difference(s.view(), inner.view()) < 1e-5);
  }
}

TEST_CASE("gradients of residual layers, rows and sequences", "[nn][residual]") {
  Random random = random_stream(422);
  Matrix<double> x = random_matrix<double>(7, 6, random);
  auto rows = residual<double>(sequential<double>(Dense<double>(6, 11, Activation::tanh, random), Linear<double>(11, 6, random)));
  CHECK(gradient_check(rows, x.view()).worst < 1e-7);
  Linear<double> wide(6, 7, random);
  auto wrong = residual<double>(wide);
  Matrix<double> y(7, 6);
  Workspace ws;
  CHECK(error_of([&] { wrong.forward(x, y, ws); }) == "Residual: inner output columns: expected as many as its input has, got 7");
}
