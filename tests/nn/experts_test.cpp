// Oracles: torch (golden/layers.py); each expert called alone, bit for bit; central differences.
#include <recops/nn/experts.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"

using namespace recops;
using namespace recops_test;

static_assert(RowLayer<Experts<float, Mlp<float>>, float>);

TEMPLATE_TEST_CASE("experts are torch's networks side by side", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("layers");
  Random random(1);
  Experts<T, Mlp<T>> experts(3, [&](Index) { return Mlp<T>({5, 7, 3}, {.activation = Activation::tanh}, random); });
  CHECK(distance_to_golden<T>(golden, "experts", experts) < (std::is_same_v<T, float> ? 1e-5 : 1e-10));
}

TEST_CASE("each expert alone, frozen too, and the gradients", "[nn][experts]") {
  Random random = random_stream(451);
  Workspace ws;
  Experts<double, Mlp<double>> experts(4, [&](Index) {
    return Mlp<double>({6, 5, 3}, {.activation = Activation::gelu}, random);
  });
  Matrix<double> x = random_matrix<double>(10, 6, random), y(10, 12), z(10, 12), one(10, 3);
  experts.forward(x, y, ws);
  freeze(experts).forward(x, z, ws);
  CHECK(max_difference(y.view(), z.view()) < 1e-13);
  for (Index e = 0; e < 4; ++e) {
    experts.experts[static_cast<std::size_t>(e)].forward(x, one, ws);
    CHECK(max_difference(y.view().middle_cols(e * 3, 3), one.view()) == 0);
  }
  CHECK(gradient_check(experts, x.view()).worst < 1e-6);
  auto stacked = sequential<double>(experts, Linear<double>(12, 2, random));
  CHECK(gradient_check(stacked, x.view()).worst < 1e-6);
}

TEST_CASE("no experts, unequal experts, allocations", "[nn][experts]") {
  Random random = random_stream(452);
  Workspace ws;
  const Experts<float, Linear<float>> none;
  const Matrix<float> x = random_matrix<float>(3, 4, random);
  Matrix<float> nothing(3, 0), y(3, 4);
  none.forward(x, nothing, ws);
  const Experts<float, Linear<float>> unequal(2, [&](Index e) { return Linear<float>(4, 2 + e, random); });
  CHECK(error_of([&] { unequal.forward(x, y, ws); }) ==
        "Experts: expert output columns: expected the same number for every expert, got 3");
  const Experts<float, Linear<float>> experts(2, [&](Index) { return Linear<float>(4, 2, random); });
  Experts<float, Linear<float>> gradient = make_gradient(experts);
  Experts<float, Linear<float>>::Saved saved;
  const auto step = [&] {
    experts.forward(x, y, saved, Step{}, ws);
    experts.backward(x, y, saved, {}, gradient, ws);
  };
  step();
  CHECK(count_allocations(step) == 0);
  Experts<float, Linear<float>> fresh = experts;
  CHECK(error_of([&] { fresh.update({}); }) ==
        "Experts::update: saved: expected what a training forward of this layer saved, got 0");
}
