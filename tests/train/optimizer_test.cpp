// Oracles: torch.optim in double (golden/train.py); for what torch has not (row-wise Adagrad, tables by rows) the formula in double.
#include <recops/nn/linear.hpp>
#include <recops/train/adagrad.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/optimizer.hpp>
#include <recops/train/sgd.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
struct Model {
  Table<T> table;
  Matrix<T> dense;
  Vector<T> running;
  static constexpr auto fields() {
    return std::tuple{parameter("table", &Model::table), parameter("dense", &Model::dense), buffer("running", &Model::running)};
  }
};
template <class T>
Model<T> model(Index rows, Index cols, Random& random) {
  Model<T> m;
  m.table.values = random_matrix<T>(rows, cols, random);
  m.dense = random_matrix<T>(3, cols, random);
  m.running = Vector<T>(2, T(5));
  return m;
}

template <class T, class Make>
double distance_to_torch(const Golden& golden, const char* name, Make make) {
  Model<T> m, g;
  m.dense = golden.matrix<T>("start");
  g = make_gradient(m);
  auto optimizer = make(m);
  const Matrix<T> gradients = golden.matrix<T>("gradients");
  const Matrix<double> after = golden.matrix<double>(name);
  double worst = 0;
  for (Index step = 0; step < 10; ++step) {
    for (Index i = 0; i < 5; ++i) std::copy_n(gradients.row(step * 5 + i), 7, g.dense.row(i));
    optimizer.step(m, g);
    worst = std::max(worst, max_difference(m.dense.view(), after.view().middle_rows(step * 5, 5)));
  }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("ten steps of every optimiser are torch's", "[train][golden]", float, double) {
  using T = TestType;
  using M = Model<T>;
  const Golden golden("train");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  CHECK(distance_to_torch<T>(golden, "sgd", [](M& m) { return Sgd(m, {.learning_rate = 0.03}); }) < bound);
  CHECK(distance_to_torch<T>(golden, "sgd_momentum",
                             [](M& m) { return Sgd(m, {.learning_rate = 0.03, .momentum = 0.9, .l2_penalty = 0.1}); }) < bound);
  CHECK(distance_to_torch<T>(golden, "sgd_nesterov",
                             [](M& m) { return Sgd(m, {.learning_rate = 0.03, .momentum = 0.8, .nesterov = true}); }) < bound);
  CHECK(distance_to_torch<T>(golden, "adagrad", [](M& m) { return Adagrad(m, {.learning_rate = 0.1}); }) < bound);
  CHECK(distance_to_torch<T>(golden, "adagrad_all", [](M& m) {
          return Adagrad(
              m, {.learning_rate = 0.1, .rate_decay = 0.2, .initial_accumulator = 0.3, .epsilon = 1e-4, .l2_penalty = 0.05});
        }) < bound);
  CHECK(distance_to_torch<T>(golden, "adam", [](M& m) {
          return Adam(m, {.learning_rate = 0.02, .beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6});
        }) < bound);
  CHECK(distance_to_torch<T>(golden, "adam_l2", [](M& m) { return Adam(m, {.learning_rate = 0.02, .l2_penalty = 0.3}); }) <
        bound);
  CHECK(distance_to_torch<T>(golden, "adamw", [](M& m) { return Adam(m, {.learning_rate = 0.02, .weight_decay = 0.3}); }) <
        bound);
}

TEMPLATE_TEST_CASE("row-wise Adagrad keeps one number a row", "[train][adagrad]", float, double) {
  using T = TestType;
  Random random = random_stream(311);
  for (const Index cols : {1, 5, 16, 33}) {
    Model<T> m = model<T>(6, cols, random);
    const AdagradOptions options{.learning_rate = 0.1, .initial_accumulator = 0.2, .epsilon = 1e-3, .row_wise = true};
    Adagrad<Model<T>> optimizer(m, options);
    Index state = 0;
    visit([&](const FieldPath&, const auto& leaf) { state += leaf_values(leaf).size(); }, optimizer);
    CHECK(state == 6 + 3 * cols + 2 + 1);

    std::vector<double> sums(6, 0.2);
    Matrix<double> expected(6, cols);
    for (Index i = 0; i < 6 * cols; ++i) expected.data()[i] = static_cast<double>(m.table.values.data()[i]);
    Model<T> g = make_gradient(m);
    for (int step = 0; step < 5; ++step) {
      const std::int64_t ids[] = {step % 2, 3, 5};
      g.table.clear_rows(cols);
      g.table.touch_rows(3, [&](Index i) { return ids[i]; });
      for (Index r = 0; r < 3; ++r) {
        double square = 0;
        for (Index c = 0; c < cols; ++c) {
          g.table.values(r, c) = static_cast<T>(random.normal());
          square += static_cast<double>(g.table.values(r, c)) * static_cast<double>(g.table.values(r, c));
        }
        double& sum = sums[static_cast<std::size_t>(ids[r])];
        sum += square / static_cast<double>(cols);
        for (Index c = 0; c < cols; ++c)
          expected(ids[r], c) -= 0.1 * static_cast<double>(g.table.values(r, c)) / (std::sqrt(sum) + 1e-3);
      }
      optimizer.step(m, g);
    }
    CAPTURE(cols);
    CHECK(max_difference(m.table.values.view(), expected.view()) < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
  }
}

TEMPLATE_TEST_CASE("by rows, rows that were not read stay as they are", "[train][optimizer]", float, double) {
  using T = TestType;
  Random random = random_stream(312);
  const auto check = [&](auto make) {
    Model<T> m = model<T>(9, 11, random);
    auto optimizer = make(m);
    Model<T> dense_model = m;
    auto dense_optimizer = make(dense_model);
    Model<T> g = make_gradient(m), dense = zeros_like(m);
    const std::int64_t ids[] = {2, 7};
    const Model<T> before = m;
    for (int step = 0; step < 3; ++step) {
      g.table.clear_rows(11);
      g.table.touch_rows(2, [&](Index i) { return ids[i]; });
      zero_gradient(dense);
      for (Index r = 0; r < 2; ++r)
        for (Index c = 0; c < 11; ++c) dense.table.values(ids[r], c) = g.table.values(r, c) = static_cast<T>(random.normal());
      optimizer.step(m, g);
      dense_optimizer.step(dense_model, dense);
    }
    for (Index r = 0; r < 9; ++r) {
      const bool touched = r == 2 || r == 7;
      CHECK(std::equal(m.table.values.row(r), m.table.values.row(r) + 11, before.table.values.row(r)) == !touched);
      if (touched) CHECK(std::equal(m.table.values.row(r), m.table.values.row(r) + 11, dense_model.table.values.row(r)));
    }
    CHECK(std::equal(m.running.begin(), m.running.end(), before.running.begin()));
    // Gradients that are not wanted change nothing; a second step allocates nothing.
    Model<T> unwanted = make_gradient(m);
    unwanted.dense = Matrix<T>();
    const Model<T> kept = m;
    optimizer.step(m, unwanted);
    CHECK(max_difference(m.dense.view(), kept.dense.view()) == 0);
    CHECK(count_allocations([&] { optimizer.step(m, g); }) == 0);
    Model<T> wrong = make_gradient(m);
    wrong.dense = Matrix<T>(3, 10, T(1));
    const Model<T> intact = m;
    CHECK_THROWS_AS(optimizer.step(m, wrong), Error);
    CHECK(max_difference(m.dense.view(), intact.dense.view()) == 0);
  };
  check([](const Model<T>& m) { return Sgd(m, {.learning_rate = 0.1, .momentum = 0.5}); });
  check([](const Model<T>& m) { return Adam(m, {.learning_rate = 0.1}); });
  check([](const Model<T>& m) { return Adagrad(m, {.learning_rate = 0.1}); });
  check([](const Model<T>& m) { return Adagrad(m, {.learning_rate = 0.1, .row_wise = true}); });
}

TEST_CASE("options out of range are refused by name", "[train][optimizer]") {
  const Model<float> m;
  CHECK(error_of([&] { Sgd(m, {.momentum = 1.0}); }) == "Sgd: momentum: expected 0 <= momentum < 1, got 1");
  CHECK(error_of([&] { Sgd(m, {.nesterov = true}); }) == "Sgd: nesterov: expected a momentum > 0 with nesterov, got 0");
  CHECK(error_of([&] { Adagrad(m, {.epsilon = 0}); }) == "Adagrad: epsilon: expected epsilon > 0, got 0");
  CHECK(error_of([&] { Adam(m, {.l2_penalty = -1}); }) == "Adam: l2_penalty: expected l2_penalty >= 0, got -1");
}
