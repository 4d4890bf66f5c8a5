// Oracles: the definition applied to the mask that the zeros show; statistics; central differences at a fixed step.
#include <recops/nn/dropout.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

static_assert(RowLayer<Dropout<float>, float>);

TEMPLATE_TEST_CASE("what is kept is scaled, what is dropped is 0, in the same places backward", "[nn][dropout]", float, double) {
  using T = TestType;
  Random random = random_stream(411);
  Workspace ws;
  for (const double p : {0.0, 0.25, 0.9, 1.0})
    for (const Index cols : {0, 1, 7, 16, 65}) {
      const Dropout<T> layer(p);
      const Matrix<T> x = random_matrix<T>(50, cols, random), dy = random_matrix<T>(50, cols, random);
      Padded<T> y(50, cols), dx(50, cols, T(1));
      typename Dropout<T>::Saved saved;
      Dropout<T> none;
      layer.forward(x, y, saved, Step{.seed = 3, .number = 7}, ws);
      layer.backward(x, dy, saved, dx, none, ws);
      const T scale = static_cast<T>(1 / (1 - p));
      Index kept = 0;
      bool right = true;
      for (Index b = 0; b < 50; ++b)
        for (Index j = 0; j < cols; ++j) {
          const bool keep = y(b, j) != 0;
          kept += keep;
          right = right && y(b, j) == (keep ? x(b, j) * scale : T(0)) && dx(b, j) == T(1) + (keep ? dy(b, j) * scale : T(0));
        }
      CAPTURE(p, cols);
      CHECK(right);
      CHECK((y.intact() && dx.intact()));
      const double n = 50.0 * static_cast<double>(cols);
      CHECK(std::abs(static_cast<double>(kept) - n * (1 - p)) <= 5 * std::sqrt(n * p * (1 - p)));
      layer.forward(x, y, ws);
      CHECK(max_difference(y.view(), x.view()) == 0);
      CHECK(count_allocations([&] {
              layer.forward(x, y, saved, Step{}, ws);
              layer.backward(x, dy, saved, dx, none, ws);
            }) == 0);
    }
}

TEST_CASE("float and double, step after step, child beside child", "[nn][dropout]") {
  Workspace ws;
  const Matrix<float> x(40, 33, 1.0f);
  const Matrix<double> xd(40, 33, 1.0);
  Matrix<float> a(40, 33), b(40, 33);
  Matrix<double> d(40, 33);
  const Dropout<float> layer(0.5);
  Dropout<float>::Saved saved;
  Dropout<double>::Saved saved_double;
  const auto same = [&] { return max_difference(a.view(), b.view()) == 0; };
  const Step step{.seed = 5, .number = 9};
  layer.forward(x, a, saved, step, ws);
  layer.forward(x, b, saved, step, ws);
  CHECK(same());
  Dropout<double>(0.5).forward(xd, d, saved_double, step, ws);
  CHECK(max_difference(a.view(), d.view()) == 0);
  for (const Step& other : {Step{.seed = 6, .number = 9}, Step{.seed = 5, .number = 10}, step.child(0), step.child(1)}) {
    layer.forward(x, b, saved, other, ws);
    CHECK(!same());
  }
  // Two in a row must not share a mask: a quarter is left, not a half.
  const auto two = sequential<float>(Dropout<float>(0.5), Dropout<float>(0.5));
  decltype(two)::Saved both;
  two.forward(x, a, both, step, ws);
  Index kept = 0;
  for (Index i = 0; i < 40 * 33; ++i) kept += a.data()[i] != 0;
  CHECK(std::abs(static_cast<double>(kept) - 330) < 5 * std::sqrt(1320 * 0.25 * 0.75));
}

TEST_CASE("dropout's gradient at a fixed step, and its errors", "[nn][dropout]") {
  Random random = random_stream(412);
  Matrix<double> x = random_matrix<double>(5, 13, random);
  Dropout<double> layer(0.4);
  CHECK(gradient_check(layer, x.view()).worst < 1e-8);
  CHECK(error_of([] { Dropout<float>(1.5); }) == "Dropout: p: expected 0 <= p <= 1, got 1.5");
  Matrix<double> narrow(5, 12, 1.0);
  Workspace ws;
  CHECK(error_of([&] { layer.forward(x, narrow, ws); }) == "Dropout: y: expected shape [5, 13], got [5, 12]");
}
