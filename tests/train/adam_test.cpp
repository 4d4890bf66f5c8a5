// Oracle: the update written out in long double, number by number. (PyTorch's numbers: golden_test.cpp.)
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/linear.hpp>
#include <recops/train/adam.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
struct Model {
  Table<T> items;
  Linear<T> head;
  Vector<T> running;
  static constexpr auto fields() {
    return std::tuple{parameter("items", &Model::items), layer("head", &Model::head), buffer("running", &Model::running)};
  }
};
template <class T>
Model<T> model(Index in, Index out, Random& random) {
  Model<T> m;
  m.items.values = random_matrix<T>(9, in, random);
  m.head = Linear<T>(in, out, random);
  m.running = Vector<T>(3, T(5));
  return m;
}

// Adam of one number, as the paper has it.
struct Scalar {
  long double p, m = 0, v = 0;
  void step(long double g, const AdamOptions& o, int n) {
    p -= o.learning_rate * static_cast<long double>(o.weight_decay) * p;
    m = o.beta1 * m + (1 - static_cast<long double>(o.beta1)) * g;
    v = o.beta2 * v + (1 - static_cast<long double>(o.beta2)) * g * g;
    const long double mean = m / (1 - std::pow(static_cast<long double>(o.beta1), n)),
                      square = v / (1 - std::pow(static_cast<long double>(o.beta2), n));
    p -= o.learning_rate * mean / (std::sqrt(square) + o.epsilon);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("twenty steps equal the paper's formula, number by number", "[train][adam]", float, double) {
  using T = TestType;
  Random random = random_stream(81);
  for (const Index out : {1, 3, 5, 8, 33}) {
    const AdamOptions options{
        .learning_rate = 0.01, .beta1 = 0.85, .beta2 = 0.97, .epsilon = 1e-5, .weight_decay = out % 2 == 0 ? 0.0 : 0.2};
    Linear<T> layer(7, out, random);
    Linear<T> gradient = make_gradient(layer);
    Adam<Linear<T>> adam(layer, options);
    std::vector<Scalar> expected;
    const auto each = [&](auto&& f) {
      std::size_t i = 0;
      visit(
          [&](const FieldPath&, auto& p, auto& g) {
            for (Index k = 0; k < leaf_values(p).size(); ++k) f(i++, leaf_values(p)[k], leaf_values(g)[k]);
          },
          layer, gradient);
    };
    each([&](std::size_t, T& p, T&) { expected.push_back({p}); });
    for (int n = 1; n <= 20; ++n) {
      each([&](std::size_t i, T&, T& g) {
        g = static_cast<T>(random.normal() * (i % 4 == 0 ? 1e-4 : 1.0));
        if (i % 5 == 3) g = 0;
        expected[i].step(g, options, n);
      });
      adam.step(layer, gradient);
    }
    CHECK(adam.steps() == 20);
    double worst = 0;
    each([&](std::size_t i, T& p, T&) { worst = std::max(worst, static_cast<double>(std::abs(p - expected[i].p))); });
    CAPTURE(out);
    CHECK(worst < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
  }
}

TEMPLATE_TEST_CASE("a table by rows: only touched rows and their moments move", "[train][adam]", float, double) {
  using T = TestType;
  Random random = random_stream(82);
  const AdamOptions options{.learning_rate = 0.05, .weight_decay = 0.5};  // decay is for dense parameters
  Model<T> m = model<T>(6, 2, random);
  const Matrix<T> before = m.items.values;
  Adam<Model<T>> adam(m, options);
  Model<T> gradient = make_gradient(m);
  std::vector<Scalar> row4(6);
  for (Index j = 0; j < 6; ++j) row4[static_cast<std::size_t>(j)].p = before(4, j);
  AdamOptions no_decay = options;
  no_decay.weight_decay = 0;
  for (int n = 1; n <= 5; ++n) {
    zero_gradient(gradient);
    const bool both = n % 2 == 1;  // row 4 rests in steps 2 and 4, and neither it nor its moments move
    gradient.items.rows = both ? Vector<std::int64_t>{1, 4} : Vector<std::int64_t>{1};
    gradient.items.values = random_matrix<T>(both ? 2 : 1, 6, random);
    const Matrix<T> last = m.items.values;
    adam.step(m, gradient);
    for (Index j = 0; j < 6; ++j) {
      if (both)
        row4[static_cast<std::size_t>(j)].step(gradient.items.values(1, j), no_decay, n);
      else
        CHECK(m.items.values(4, j) == last(4, j));
    }
  }
  for (Index i = 0; i < 9; ++i)
    for (Index j = 0; j < 6; ++j) {
      if (i == 4)
        CHECK(static_cast<double>(m.items.values(i, j)) ==
              Approx(static_cast<double>(row4[static_cast<std::size_t>(j)].p)).margin(2e-6));
      else
        CHECK((m.items.values(i, j) == before(i, j)) == (i != 1));
    }
}

TEST_CASE("by rows and dense agree while every row is touched", "[train][adam]") {
  Random random = random_stream(83);
  Model<double> a = model<double>(5, 2, random), b = a;
  Adam<Model<double>> adam_a(a), adam_b(b);
  Model<double> rows = make_gradient(a), dense = zeros_like(a);
  rows.items.values = Matrix<double>(9, 5);
  for (std::int64_t r = 0; r < 9; ++r) rows.items.rows.push_back(r);
  for (int n = 0; n < 4; ++n) {
    rows.items.values = random_matrix<double>(9, 5, random);
    dense.items.values = rows.items.values;
    adam_a.step(a, rows);
    adam_b.step(b, dense);
  }
  CHECK(max_difference(a.items.values.view(), b.items.values.view()) == 0);
}

TEST_CASE("buffers and parameters whose gradient is empty stay as they are", "[train][adam]") {
  Random random = random_stream(84);
  Model<float> m = model<float>(4, 3, random);
  const Model<float> before = m;
  Adam<Model<float>> adam(m, {.weight_decay = 0.1});
  Model<float> gradient = make_gradient(m);
  gradient.running.fill(1);
  gradient.head.weight = Matrix<float>();
  gradient.head.bias.fill(1);
  adam.step(m, gradient);
  CHECK(m.running[0] == 5);
  CHECK(max_difference(m.head.weight.view(), before.head.weight.view()) == 0);
  CHECK(max_difference(m.items.values.view(), before.items.values.view()) == 0);
  CHECK(m.head.bias[0] != before.head.bias[0]);
  CHECK(gradient.head.bias[0] == 1);  // the gradient stays as it is
}

TEST_CASE("the rate may change between steps", "[train][adam]") {
  Random random(1);
  Linear<double> layer(2, 1, random), gradient = make_gradient(layer);
  gradient.weight.fill(1);
  Adam<Linear<double>> adam(layer, {.learning_rate = 0.1});
  const double start = layer.weight(0, 0);
  adam.step(layer, gradient);
  CHECK(layer.weight(0, 0) == Approx(start - 0.1).margin(1e-7));  // a constant gradient moves by the rate
  adam.options.learning_rate = 0.5;
  adam.step(layer, gradient);
  CHECK(layer.weight(0, 0) == Approx(start - 0.6).margin(1e-7));
  adam.options.learning_rate = 0;
  adam.step(layer, gradient);
  CHECK(layer.weight(0, 0) == Approx(start - 0.6).margin(1e-7));
}

TEST_CASE("Adam finds the minimum of a quadratic", "[train][adam]") {
  Random random = random_stream(85);
  Linear<double> layer(10, 10, random), gradient = make_gradient(layer);
  const Matrix<double> target = random_matrix<double>(10, 10, random);
  Adam<Linear<double>> adam(layer, {.learning_rate = 0.05});
  for (int n = 0; n < 2000; ++n) {
    adam.options.learning_rate = 0.05 * (1 - n / 2000.0);
    for (Index i = 0; i < 100; ++i) gradient.weight.data()[i] = layer.weight.data()[i] - target.data()[i];
    adam.step(layer, gradient);
  }
  CHECK(max_difference(layer.weight.view(), target.view()) < 1e-6);
}

TEST_CASE("Adam refuses what does not fit and changes nothing", "[train][adam]") {
  Random random(1);
  Model<float> m = model<float>(4, 3, random);
  CHECK(error_of([&] { Adam<Model<float>>(m, {.learning_rate = -1}); }) ==
        "Adam: learning_rate: expected learning_rate >= 0, got -1");
  CHECK(error_of([&] { Adam<Model<float>>(m, {.beta1 = 1}); }) == "Adam: beta1: expected 0 <= beta1 < 1, got 1");
  CHECK(error_of([&] { Adam<Model<float>>(m, {.beta2 = -0.5}); }) == "Adam: beta2: expected 0 <= beta2 < 1, got -0.5");
  CHECK(error_of([&] { Adam<Model<float>>(m, {.epsilon = 0}); }) == "Adam: epsilon: expected epsilon > 0, got 0");
  CHECK(error_of([&] { Adam<Model<float>>(m, {.weight_decay = std::numeric_limits<double>::quiet_NaN()}); }) ==
        "Adam: weight_decay: expected weight_decay >= 0, got nan");
  const Model<float> before = m;
  Adam<Model<float>> adam(m);
  Model<float> good = make_gradient(m);
  good.head.weight.fill(1);
  good.items.rows = Vector<std::int64_t>{2};
  good.items.values = Matrix<float>(1, 4, 1.0f);
  const auto refused = [&](auto&& spoil) {
    Model<float> g = good;
    spoil(g);
    return error_of([&] { adam.step(m, g); });
  };
  CHECK(refused([](auto& g) { g.head.bias.resize(2); }) == "Adam::step: gradient of head.bias: expected size 3, got 2");
  CHECK(refused([](auto& g) { g.head.weight.resize(4, 3); }) ==
        "Adam::step: gradient of head.weight: expected shape [3, 4], got [4, 3]");  // as many numbers, transposed
  CHECK(refused([](auto& g) { g.items.values.resize(1, 3); }) ==
        "Adam::step: gradient of items: expected shape [9, 4], got [1, 3]");
  CHECK(refused([](auto& g) { g.items.rows[0] = 9; }) ==
        "Adam::step: gradient rows: expected indices from 0 to below 9, got 9 at position 0");
  CHECK(refused([](auto& g) {
          g.items.rows = Vector<std::int64_t>{0, -1, 2};
          g.items.values.resize(3, 4);
        }) == "Adam::step: gradient rows: expected indices from 0 to below 9, got -1 at position 1");
  CHECK(refused([](auto& g) { g.items.rows.push_back(5); }) == "Adam::step: gradient values: expected shape [2, _], got [1, 4]");
  Model<float> grown = model<float>(4, 5, random);
  CHECK(error_of([&] { adam.step(grown, make_gradient(grown)); }) ==
        "Adam::step: head.weight: expected the shape it had when the optimiser was made, got another shape");
  Model<float> wider = m;  // a table of as many rows, with more columns than its moments have
  wider.items.values = Matrix<float>(9, 64, 0.0f);
  CHECK(error_of([&] { adam.step(wider, make_gradient(wider)); }) ==
        "Adam::step: items: expected the shape it had when the optimiser was made, got another shape");
  CHECK(adam.steps() == 0);
  visit(
      [](const FieldPath&, const auto& a, const auto& b) {
        for (Index i = 0; i < leaf_values(a).size(); ++i) CHECK(leaf_values(a)[i] == leaf_values(b)[i]);
      },
      m, before);
  adam.step(m, good);
  CHECK((adam.steps() == 1 && m.items.values(2, 0) != before.items.values(2, 0)));
}

TEST_CASE("a step allocates nothing", "[train][adam]") {
  Random random(1);
  Model<float> m = model<float>(4, 3, random);
  Adam<Model<float>> adam(m);
  Model<float> g = make_gradient(m);
  g.items.rows = Vector<std::int64_t>{2, 3};
  g.items.values = Matrix<float>(2, 4, 1.0f);
  const AllocationCounter counter;
  for (int n = 0; n < 3; ++n) adam.step(m, g);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}
