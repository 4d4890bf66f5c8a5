// Oracles: torch (golden/activations.py); central differences.
#include <recops/nn/activation.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

static_assert(RowLayer<Activate<float>, float> && RowLayer<PRelu<double>, double> && RowLayer<Dice<float>, float>);

namespace {

// Distance relative to the size of what is expected, where that is large.
template <class A>
double distance(MatrixView<A> got, const Matrix<double>& expected) {
  double most = 0;
  for (Index i = 0; i < expected.rows(); ++i)
    for (Index j = 0; j < expected.cols(); ++j)
      most = std::max(most, std::abs(static_cast<double>(got(i, j)) - expected(i, j)) / std::max(1.0, std::abs(expected(i, j))));
  return most;
}
template <class T>
Vector<T> vector_of(const Golden& golden, const std::string& key) {
  Vector<T> v;
  for (const T x : golden.values<T>(key)) v.push_back(x);
  return v;
}

}  // namespace

TEMPLATE_TEST_CASE("activations and their gradients are torch's", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("activations");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-10;
  const Matrix<T> x = golden.matrix<T>("x"), dy = golden.matrix<T>("dy");
  Workspace ws;
  const auto check = [&](const std::string& name, const auto& layer) {
    CAPTURE(name);
    auto gradient = make_gradient(layer);
    typename std::remove_cvref_t<decltype(layer)>::Saved saved;
    Padded<T> y(9, 21), dx(9, 21);
    layer.forward(x, y, saved, Step{}, ws);
    CHECK(distance(y.view(), golden.matrix<double>(name + ".y")) < bound);
    layer.backward(x, dy, saved, dx, gradient, ws);
    CHECK(distance(dx.view(), golden.matrix<double>(name + ".dx")) < bound);
    CHECK((y.intact() && dx.intact()));
    CHECK(count_allocations([&] {
            layer.forward(x, y, saved, Step{}, ws);
            layer.backward(x, dy, saved, dx, gradient, ws);
          }) == 0);
    return gradient;
  };
  const std::pair<const char*, Activation> all[] = {{"relu", Activation::relu},
                                                    {"sigmoid", Activation::sigmoid},
                                                    {"silu", Activation::silu},
                                                    {"tanh", Activation::tanh},
                                                    {"gelu", Activation::gelu},
                                                    {"softplus", Activation::softplus},
                                                    {"leaky_relu", Activation::leaky_relu}};
  for (const auto& [name, f] : all) check(name, Activate<T>{f});
  for (const char* name : {"prelu_one", "prelu_each"}) {
    PRelu<T> layer;
    layer.weight = vector_of<T>(golden, std::string(name) + ".weight");
    PRelu<T> gradient = check(name, layer);
    const auto expected = golden.values<double>(std::string(name) + ".dweight");  // added twice
    for (Index i = 0; i < gradient.weight.size(); ++i)
      CHECK(std::abs(static_cast<double>(gradient.weight[i]) / 2 - expected[static_cast<std::size_t>(i)]) < 100 * bound);
  }
  Dice<T> dice(21);
  dice.alpha = vector_of<T>(golden, "dice.alpha");
  const Dice<T> gradient = check("dice", dice);
  const auto dalpha = golden.values<double>("dice.dalpha");
  for (Index i = 0; i < 21; ++i)
    CHECK(std::abs(static_cast<double>(gradient.alpha[i]) / 2 - dalpha[static_cast<std::size_t>(i)]) < 100 * bound);

  typename Dice<T>::Saved saved;
  Matrix<T> y(9, 21);
  dice.forward(x, y, saved, Step{}, ws);
  dice.update(saved);
  const auto mean = golden.values<double>("dice.running_mean"), variance = golden.values<double>("dice.running_var");
  for (Index i = 0; i < 21; ++i) {
    CHECK(std::abs(static_cast<double>(dice.bn.running_mean[i]) - mean[static_cast<std::size_t>(i)]) < bound);
    CHECK(std::abs(static_cast<double>(dice.bn.running_variance[i]) - variance[static_cast<std::size_t>(i)]) < 10 * bound);
  }
  freeze(dice).forward(x, y, ws);
  CHECK(distance(y.view(), golden.matrix<double>("dice.served")) < bound);
}

TEST_CASE("gradients of activations are those of central differences", "[nn][activation]") {
  Random random = random_stream(401);
  for (const Index n : {1, 3, 8, 19}) {
    Matrix<double> x = random_matrix<double>(6, n, random);
    for (const Activation f : {Activation::none, Activation::silu, Activation::gelu, Activation::softplus, Activation::tanh}) {
      Activate<double> layer{f};
      CHECK(gradient_check(layer, x.view()).worst < 1e-7);
    }
    PRelu<double> one(1), each(n);
    CHECK(gradient_check(one, x.view()).worst < 1e-7);
    CHECK(gradient_check(each, x.view()).worst < 1e-7);
    Dice<double> dice(n, {.epsilon = 1e-3});
    for (double& a : dice.alpha) a = random.normal();
    const GradientReport report = gradient_check(dice, x.view());
    CAPTURE(n, report.where);
    CHECK(report.worst < 1e-6);
  }
}

TEST_CASE("gradients of activations keep their digits over many rows", "[nn][activation]") {
  constexpr Index n = 1 << 17;
  Matrix<float> x(n, 1, -1.0f);
  const Matrix<float> dy(n, 1, 0.1f);
  Workspace ws;
  PRelu<float> prelu(1), dslope(1);
  dslope.weight[0] = 0;
  prelu.backward(x, dy, {}, {}, dslope, ws);
  CHECK(std::abs(dslope.weight[0] / (0.1f * static_cast<float>(n)) + 1) < 3e-5f);
  for (Index i = 0; i < n; i += 2) x(i, 0) = 3.0f;  // sigmoid(1) and sigmoid(-1): the mean of (1 - p) x is (3 (1 - p) - p) / 2
  Dice<float> dice(1), dalpha = make_gradient(dice);
  Dice<float>::Saved saved;
  Matrix<float> y(n, 1);
  dice.forward(x, y, saved, Step{}, ws);
  dice.backward(x, dy, saved, {}, dalpha, ws);
  const float p = 0.7310585786f;
  CHECK(std::abs(dalpha.alpha[0] / (0.1f * static_cast<float>(n)) - (3 * (1 - p) - p) / 2) < 3e-5f);
}

TEMPLATE_TEST_CASE("edges of activations", "[nn][activation]", float, double) {
  using T = TestType;
  Workspace ws;
  Matrix<T> none(0, 5), x{{T(-2), T(3)}}, y(1, 2), wide(1, 3);
  PRelu<T> prelu(5);
  prelu.forward(none, none, ws);
  typename Dice<T>::Saved saved;
  Dice<T> dice(5);
  dice.forward(none, none, saved, Step{}, ws);
  Activate<T>{}.forward(x, x, ws);  // in place
  CHECK(x(0, 0) == 0);
  CHECK(error_of([&] { prelu.forward(x, y, ws); }) == "PRelu: input columns: expected one slope, or one per column, got 2");
  CHECK(error_of([&] { dice.forward(x, y, ws); }) == "Dice: x: expected shape [_, 5], got [1, 2]");
  CHECK(error_of([&] { Activate<T>{}.forward(x, wide, ws); }) == "Activate: y: expected shape [1, 2], got [1, 3]");
  Matrix<T> one(1, 5, T(1));
  CHECK(error_of([&] { dice.forward(one, one, saved, Step{}, ws); }).find("at least two rows") != std::string::npos);
}
