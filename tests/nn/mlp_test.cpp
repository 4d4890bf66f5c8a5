// Oracles: torch (golden/layers.py); central differences; the layers called one by one.
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/nn/rms_norm.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"

using namespace recops;
using namespace recops_test;

static_assert(RowLayer<Mlp<float>, float> && RowLayer<Mlp<double, BatchNorm<double>>, double>);

TEMPLATE_TEST_CASE("an MLP with batch norms is torch's, in training, served and frozen", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("layers");
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-10;  // a bias before a batch norm has no gradient but rounding
  Random random(1);
  Mlp<T, BatchNorm<T>> mlp({7, 12, 9, 2}, {.activation = Activation::silu}, random);
  CHECK(distance_to_golden<T>(golden, "mlp", mlp) < bound);
  typename Mlp<T, BatchNorm<T>>::Saved saved;
  Workspace ws;
  const Matrix<T> x = golden.matrix<T>("mlp.x");
  const Matrix<double> served = golden.matrix<double>("mlp.served");
  Matrix<T> y(11, 2);
  mlp.forward(x, y, saved, Step{}, ws);
  mlp.update(saved);
  mlp.forward(x, y, ws);
  CHECK(max_difference(y.view(), served.view()) < 5 * bound);
  const auto frozen = freeze(mlp);
  Padded<T> z(11, 2);
  frozen.forward(x, z, ws);
  CHECK(max_difference(z.view(), served.view()) < 5 * bound);
  CHECK(z.intact());
}

TEMPLATE_TEST_CASE("Dense with a layer norm is torch's", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("layers");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-10;
  Random random(1);
  Dense<T, LayerNorm<T>> dense(6, 10, Activation::gelu, random);
  CHECK(distance_to_golden<T>(golden, "dense_layer_norm", dense) < bound);
  Workspace ws;
  const Matrix<T> x = golden.matrix<T>("dense_layer_norm.x");
  Matrix<T> y(5, 10), z(5, 10);
  dense.forward(x, y, ws);
  freeze(dense).forward(x, z, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("dense_layer_norm.y").view()) < 5 * bound);
  CHECK(max_difference(z.view(), golden.matrix<double>("dense_layer_norm.y").view()) < 5 * bound);
}

TEST_CASE("gradients of MLPs of every kind of norm", "[nn][mlp]") {
  Random random = random_stream(431);
  Matrix<double> x = random_matrix<double>(9, 5, random);
  Mlp<double> plain({5, 8, 3, 1}, {.activation = Activation::tanh, .output = Activation::sigmoid}, random),
      one({5, 2}, {}, random);
  Mlp<double, BatchNorm<double>> batch({5, 8, 3}, {.activation = Activation::gelu}, random);
  Mlp<double, LayerNorm<double>> layer({5, 8, 3}, {.activation = Activation::softplus}, random);
  Mlp<double, RmsNorm<double>> rms({5, 8, 3}, {.activation = Activation::silu}, random);
  CHECK(gradient_check(plain, x.view()).worst < 1e-7);
  CHECK(gradient_check(one, x.view()).worst < 1e-7);
  CHECK(gradient_check(batch, x.view()).worst < 1e-6);
  CHECK(gradient_check(layer, x.view()).worst < 1e-6);
  CHECK(gradient_check(rms, x.view()).worst < 1e-6);
}

TEST_CASE("frozen in sixteen and eight bits, within the stated bound of the layer", "[nn][mlp]") {
  Random random = random_stream(432);
  Workspace ws;
  for (const Index rows : {0, 1, 3, 40}) {
    const Linear<float> layer(70, 45, random);
    const Matrix<float> x = random_matrix<float>(rows, 70, random);
    Matrix<float> y(rows, 45), half(rows, 45), eighth(rows, 45);
    layer.forward(x, y, ws);
    freeze(layer, Weights<BFloat16>()).forward(x, half, ws);
    freeze(layer, Weights<std::int8_t>()).forward(x, eighth, ws);
    double worst_half = 0, worst_eighth = 0;
    for (Index b = 0; b < rows; ++b)
      for (Index j = 0; j < 45; ++j) {
        double products = 0, inputs = 0, most = 0;
        for (Index k = 0; k < 70; ++k) {
          products += std::abs(layer.weight(j, k) * x(b, k));
          inputs += std::abs(x(b, k));
          most = std::max(most, static_cast<double>(std::abs(layer.weight(j, k))));
        }
        worst_half = std::max(worst_half, std::abs(half(b, j) - y(b, j)) / (products / 256 + 1e-4));
        worst_eighth = std::max(worst_eighth, std::abs(eighth(b, j) - y(b, j)) / (most / 254 * inputs + 1e-4));
      }
    CHECK(worst_half <= 1);
    CHECK(worst_eighth <= 1);
    if (rows > 0) CHECK((worst_half > 0.01 && worst_eighth > 0.01));
  }
  const Mlp<float, BatchNorm<float>> mlp({20, 30, 4}, {}, random);
  const Matrix<float> x = random_matrix<float>(6, 20, random);
  Matrix<float> y(6, 4), half(6, 4), eighth(6, 4);
  mlp.forward(x, y, ws);
  freeze(mlp, Weights<BFloat16>()).forward(x, half, ws);
  freeze(mlp, Weights<std::int8_t>()).forward(x, eighth, ws);
  CHECK(max_difference(y.view(), half.view()) < 0.02);
  CHECK(max_difference(y.view(), eighth.view()) < 0.05);
}

TEST_CASE("an MLP's second step allocates nothing; its errors name it", "[nn][mlp]") {
  Random random = random_stream(433);
  Workspace ws;
  Mlp<float, BatchNorm<float>> mlp({4, 6, 2}, {}, random), gradient = make_gradient(mlp);
  Mlp<float, BatchNorm<float>>::Saved saved;
  const Matrix<float> x = random_matrix<float>(8, 4, random), dy = random_matrix<float>(8, 2, random);
  Matrix<float> y(8, 2), dx(8, 4, 0.0f), wrong(8, 3), narrow(8, 3, 0.0f);
  const auto step = [&] {
    mlp.forward(x, y, saved, Step{}, ws);
    mlp.backward(x, dy, saved, dx, gradient, ws);
    mlp.update(saved);
    mlp.forward(x, y, ws);
  };
  step();
  CHECK(count_allocations(step) == 0);
  CHECK(error_of([&] { mlp.forward(x, wrong, ws); }) == "Mlp: y: expected shape [8, 2], got [8, 3]");
  CHECK(error_of([&] { mlp.backward(x, dy, saved, narrow, gradient, ws); }) ==
        "Mlp::backward: dx: expected shape [8, 4], got [8, 3]");
  CHECK(error_of([&] { mlp.backward(x, dy, {}, dx, gradient, ws); }).find("what forward of this layer saved") !=
        std::string::npos);
  CHECK(error_of([&] { mlp.update({}); }) == "Mlp::update: saved: expected what a training forward of this layer saved, got 0");
  CHECK(error_of([&] { Mlp<float>({4}, {}, random); }) == "Mlp: widths: expected an input and an output width, got 1");
}
