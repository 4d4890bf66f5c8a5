// Oracles: tests/gating/reference.hpp (the formulas in double), a dense softmax with -infinity on hidden entries, central
// differences.
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/allocations.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {
GateMap masked() { return GateMap(5, {{0, 3, 4}, {2}, {}, {4, 1}}); }
}  // namespace

TEST_CASE("GateMap compiles masks and lists", "[gating][task_gates]") {
  const GateMap all(2, 3);
  CHECK((all.is_dense() && all.tasks() == 2 && all.experts() == 3 && all.size() == 6 && all.begin(1) == 3 && all.expert(4) == 1));
  const GateMap some = masked();
  CHECK((!some.is_dense() && some.tasks() == 4 && some.size() == 6 && some.count(2) == 0 && some.expert(4) == 4 &&
         some.end(3) == 6));
  const bool mask[] = {true, false, true, false, true, true};
  const GateMap from = GateMap::from_mask(MatrixView<const bool>(mask, 2, 3));
  CHECK((from.count(0) == 2 && from.expert(1) == 2 && from.expert(2) == 1 && !from.is_dense()));
  CHECK(GateMap(2, {{0, 1}, {0, 1}}).is_dense());
  CHECK(!GateMap(2, {{0, 1}, {1, 0}}).is_dense());
  CHECK(error_of([] {
          GateMap(2, {{0, 2}});
        }) == "GateMap: visible expert: expected an expert from 0 to below the number of experts, got 2");
  CHECK(error_of([] { GateMap(2, {{1, 1}}); }) == "GateMap: visible expert: expected an expert named once per task, got 1");
  CHECK(error_of([] { GateMap(0, 3); }) == "GateMap: tasks: expected 1 to 65536 tasks, got 0");
  CHECK(error_of([] { GateMap(1, 0); }) == "GateMap: experts: expected 1 to 65536 experts, got 0");
  CHECK(error_of([] { GateMap(65536, 65536); }) == "GateMap: experts: expected 1 to 65536 experts, got 65536");
}

TEMPLATE_TEST_CASE("TaskGates equals the definition: all visible or masked, with and without hidden layers",
                   "[gating][task_gates]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 5e-6 : 1e-14;
  Random random = random_stream(211);
  Workspace ws;
  for (const GateMap& map : {GateMap(1, 1), GateMap(3, 4), GateMap(2, 33), GateMap(7, 9), masked()}) {
    for (const std::vector<Index>& hidden : {std::vector<Index>{}, {6}, {3, 5}}) {
      for (const Index rows : {0, 1, 7, 70}) {
        TaskGates<T> gates({.inputs = 11, .hidden = hidden, .bias = rows != 7, .options = {.temperature = rows == 1 ? 0.3 : 1.0}},
                           map, random);
        Padded<T> x(random_matrix<T>(rows, 11, random).view()), y(rows, map.size(), T(5)), z(rows, map.size(), T(5));
        typename TaskGates<T>::Saved saved;
        gates.forward(x, y, ws);
        gates.forward(x, z, saved, Step{}, ws);
        Matrix<double> exact(rows, 11);
        for (Index r = 0; r < rows; ++r)
          for (Index j = 0; j < 11; ++j) exact(r, j) = static_cast<double>(x(r, j));
        CAPTURE(map.tasks(), map.experts(), hidden.size(), rows);
        CHECK(max_difference(y.view(), gates_reference(gates, exact).view()) < tolerance);
        CHECK(max_difference(y.view(), z.view()) == 0);
        CHECK(max_difference(saved.gates.view(), z.view()) == 0);
        CHECK((y.intact() && z.intact()));
        // Gates of a task sum to 1; one alone is exactly 1.
        for (Index r = 0; r < rows; ++r) {
          for (Index t = 0; t < map.tasks(); ++t) {
            double sum = 0;
            for (Index g = map.begin(t); g < map.end(t); ++g) sum += static_cast<double>(y(r, g));
            const auto n = static_cast<double>(map.count(t));
            if (n > 0) CHECK(std::abs(sum - 1) <= 4 * n * static_cast<double>(std::numeric_limits<T>::epsilon()));
            if (n == 1) CHECK(y(r, map.begin(t)) == T(1));
          }
        }
      }
    }
  }
}

TEST_CASE("A masked gate equals a dense softmax with -infinity on hidden entries; scattered, those are exactly 0",
          "[gating][task_gates]") {
  Random random = random_stream(212);
  Workspace ws;
  const GateMap map = masked();
  const Matrix<double> x = random_matrix<double>(9, 5, random), w = random_matrix<double>(map.size(), 5, random);
  Matrix<double> gates(9, map.size()), dense(9, 20, 3.0);
  task_gates<double>(x, w, {}, map, {}, gates, ws);
  scatter_gates<double>(gates, map, dense);
  for (Index r = 0; r < 9; ++r) {
    for (Index t = 0; t < 4; ++t) {
      double row[5] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY};
      for (Index g = map.begin(t); g < map.end(t); ++g) row[map.expert(g)] = simd::dot(x.row(r), w.row(g), 5);
      simd::softmax(row, 5);
      for (Index e = 0; e < 5; ++e) {
        CHECK(dense(r, t * 5 + e) == Approx(row[e]).margin(1e-15));
        if (row[e] == 0) CHECK(dense(r, t * 5 + e) == 0);
      }
    }
  }
}

TEST_CASE("Gates do not change when all logits of a task move together", "[gating][task_gates]") {
  Random random = random_stream(213);
  Workspace ws;
  const GateMap map(2, 4);
  const Matrix<double> x = random_matrix<double>(9, 5, random), w = random_matrix<double>(8, 5, random);
  const Vector<double> none(8, 0.0), moved{700, 700, 700, 700, -9000, -9000, -9000, -9000};
  Matrix<double> a(9, 8), b(9, 8);
  task_gates<double>(x, w, none, map, {}, a, ws);
  task_gates<double>(x, w, moved, map, {}, b, ws);
  CHECK(max_difference(a.view(), b.view()) < 1e-11);
}

TEST_CASE("Far, equal and NaN logits", "[gating][task_gates]") {
  Workspace ws;
  const GateMap map(3, 2);
  const float infinity = std::numeric_limits<float>::infinity();
  const Matrix<float> x(1, 1, 1.0f), w{{1e4f}, {-1e4f}, {2}, {2}, {-infinity}, {-infinity}};
  Matrix<float> g(1, 6);
  task_gates<float>(x, w, {}, map, {}, g, ws);
  CHECK((g(0, 0) == 1 && g(0, 1) == 0 && g(0, 2) == 0.5f && g(0, 3) == 0.5f && g(0, 4) == 0 && g(0, 5) == 0));
  const Matrix<float> broken{{std::nanf("")}, {1}, {2}, {3}, {-infinity}, {5}};
  task_gates<float>(x, broken, {}, map, {}, g, ws);
  CHECK((std::isnan(g(0, 0)) && std::isnan(g(0, 1)) && std::isfinite(g(0, 2)) && g(0, 4) == 0 && g(0, 5) == 1));
}

TEST_CASE("TaskGates passes the gradient check: masked, hidden layers, temperature, dropout", "[gating][task_gates]") {
  Random random = random_stream(214);
  for (const GateMap& map : {GateMap(3, 4), masked()}) {
    for (const std::vector<Index>& hidden : {std::vector<Index>{}, {6}, {4, 5}}) {
      for (const double dropout : {0.0, 0.4}) {
        TaskGates<double> gates(
            {.inputs = 5, .hidden = hidden, .bias = true, .options = {.temperature = 0.7, .dropout = dropout}}, map, random);
        Matrix<double> x = random_matrix<double>(8, 5, random);
        const GradientReport report = gradient_check(gates, x.view());
        CAPTURE(map.tasks(), hidden.size(), dropout, report.where, report.numeric, report.analytic);
        CHECK(report.worst < 2e-6);
        CHECK(report.checked == 40 + parameter_count(gates));
      }
    }
  }
}

TEST_CASE("One visible expert has no gradient, exactly", "[gating][task_gates]") {
  Random random = random_stream(215);
  Workspace ws;
  const GateMap map(3, 1);
  const Matrix<float> x = random_matrix<float>(6, 4, random), w = random_matrix<float>(3, 4, random),
                      d = random_matrix<float>(6, 3, random);
  Matrix<float> g(6, 3), dx(6, 4, 0.0f), dw(3, 4, 0.0f);
  Vector<float> db(3, 0.0f);
  task_gates<float>(x, w, {}, map, {}, g, ws);
  task_gates_backward<float>(x, w, map, {}, g, d, dx, dw, db, ws);
  for (const float v : leaf_values(g)) CHECK(v == 1);
  for (const float v : leaf_values(dx)) CHECK(v == 0);
  for (const float v : leaf_values(dw)) CHECK(v == 0);
  for (const float v : db) CHECK(v == 0);
}

TEST_CASE(
    "Gate dropout drops its share, renormalises, keeps the largest where nothing is left, and is a function of step and row",
    "[gating][task_gates]") {
  Random random = random_stream(216);
  Workspace ws;
  const GateMap map(2, 4);
  const Index rows = 4000;
  const Matrix<double> x = random_matrix<double>(rows, 3, random), w = random_matrix<double>(8, 3, random);
  Matrix<double> plain(rows, 8), a(rows, 8), b(rows, 8), c(rows, 8);
  task_gates<double>(x, w, {}, map, {}, plain, ws);
  const TaskGatesOptions options{.dropout = 0.3};
  task_gates_train<double>(x, w, {}, map, options, a, Step{1, 2, 3}, ws);
  task_gates_train<double>(x, w, {}, map, options, b, Step{1, 2, 3}, ws);
  task_gates_train<double>(x, w, {}, map, options, c, Step{1, 3, 3}, ws);
  CHECK(max_difference(a.view(), b.view()) == 0);
  CHECK(max_difference(a.view(), c.view()) > 0);
  task_gates_train<double>(x.view().middle_rows(100, 5), w, {}, map, options, c.view().middle_rows(0, 5), Step{1, 2, 3}, ws);
  CHECK(max_difference(c.view().middle_rows(0, 5), a.view().middle_rows(0, 5)) > 0);  // the inputs differ
  Index dropped = 0, alone = 0;
  for (Index r = 0; r < rows; ++r) {
    for (Index t = 0; t < 2; ++t) {
      double kept = 0, sum = 0;
      Index survivors = 0, best = 0;
      for (Index e = 0; e < 4; ++e) {
        const double g = a(r, t * 4 + e);
        if (plain(r, t * 4 + e) > plain(r, t * 4 + best)) best = e;
        sum += g;
        if (g > 0) {
          kept += plain(r, t * 4 + e);
          ++survivors;
        }
      }
      CHECK(sum == Approx(1).epsilon(1e-14));
      for (Index e = 0; e < 4; ++e) {
        const double g = a(r, t * 4 + e);
        dropped += g == 0;
        if (g > 0) CHECK(g == Approx(plain(r, t * 4 + e) / kept).epsilon(1e-12));
      }
      alone += survivors == 1 && a(r, t * 4 + best) == 1;
    }
  }
  // Binomial: 32000 draws at 0.3, less the 0.3^4 of rows that keep their largest; five standard deviations.
  const double expected = 32000 * 0.3 - 8000 * 0.0081;
  CHECK(std::abs(static_cast<double>(dropped) - expected) < 5 * std::sqrt(32000 * 0.21));
  CHECK(alone > 0);
}

TEST_CASE("A dropped gate has no gradient, whatever else is NaN in its task", "[gating][task_gates]") {
  Workspace ws;
  const double nan = std::nan("");
  const GateMap map(1, 3);
  const Matrix<double> x{{2, 3}}, w(3, 2, 0.1), g{{0.25, 0, 0.75}}, d{{1, nan, 2}}, far{{nan, 1, 2}};
  for (const Matrix<double>& up : {d, far}) {
    Matrix<double> dx(1, 2, 0.0), dw(3, 2, 0.0);
    Vector<double> db(3, 0.0);
    task_gates_backward<double>(x, w, map, {}, g, up, dx, dw, db, ws);
    CHECK(db[1] == 0);
    CHECK(dw(1, 0) == 0);
    CHECK(dw(1, 1) == 0);
    CHECK(std::isnan(db[0]));  // of the gates that are there the NaN is seen
    CHECK(std::isnan(db[2]));
  }
}

TEST_CASE("gate_entropy_value_and_grad: value and gradient through the softmax", "[gating][task_gates]") {
  Random random = random_stream(217);
  Workspace ws;
  const GateMap map = masked();
  Matrix<double> x = random_matrix<double>(5, 3, random), w = random_matrix<double>(map.size(), 3, random), g(5, map.size());
  const auto loss = [&] {
    task_gates<double>(x, w, {}, map, {}, g, ws);
    return gate_entropy_value_and_grad<double>(g, map, -0.5, {});
  };
  const double value = loss();
  double entropy = 0;
  for (const double v : leaf_values(g)) entropy -= v * std::log(v);
  CHECK(value == Approx(-0.5 * entropy / 20));
  Matrix<double> dg(5, map.size(), 0.0), dw(map.size(), 3, 0.0);
  CHECK(gate_entropy_value_and_grad<double>(g, map, -0.5, dg) == value);
  task_gates_backward<double>(x, w, map, {}, g, dg, {}, dw, {}, ws);
  GradientReport report;
  check_gradient("w", leaf_values(w), VectorView<const double>(leaf_values(dw)), loss, report);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 1e-6);
  loss();
  for (Index i = 0; i < 5 * map.size(); ++i)  // of the gates themselves, whatever they sum to: -scale (ln g + 1)
    CHECK(dg.data()[i] == Approx(0.5 / 20 * (std::log(g.data()[i]) + 1)).margin(1e-12));
  // The specification's form in logits: -scale g (ln g + H) per task.
  Matrix<double> logits(1, 3, 0.0), gates{{0.2, 0.3, 0.5}}, dgates(1, 3, 0.0), dx(1, 3, 0.0),
      unit{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
  const GateMap one(1, 3);
  const double h = gate_entropy_value_and_grad<double>(gates, one, 1, dgates);
  task_gates_backward<double>(logits, unit, one, {}, gates, dgates, dx, {}, {}, ws);
  for (Index e = 0; e < 3; ++e) CHECK(dx(0, e) == Approx(-gates(0, e) * (std::log(gates(0, e)) + h)));
  // A dropped gate counts for nothing.
  const Matrix<double> dropped{{0, 1, 0}};
  Matrix<double> none(1, 3, 0.0);
  CHECK(gate_entropy_value_and_grad<double>(dropped, one, 1, none) == 0);
  CHECK((none(0, 0) == 0 && std::isfinite(none(0, 1))));
  CHECK(gate_entropy_value_and_grad<double>(MatrixView<const double>(nullptr, 0, 3), one, 1, {}) == 0);
}

TEST_CASE("TaskGates: threads change no bit, a warm call allocates nothing", "[gating][task_gates]") {
  Random random = random_stream(218);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  TaskGates<float> gates({.inputs = 20, .hidden = {9}, .bias = true, .options = {.dropout = 0.2}}, masked(), random);
  const Matrix<float> x = random_matrix<float>(300, 20, random), dy = random_matrix<float>(300, 6, random);
  Matrix<float> y(300, 6), y2(300, 6), dx(300, 20, 0.0f), dx2(300, 20, 0.0f);
  TaskGates<float>::Saved saved, saved2;
  TaskGates<float> g = make_gradient(gates), g2 = make_gradient(gates);
  gates.forward(x, y, saved, Step{}, ws);
  gates.backward(x, dy, saved, dx, g, ws);
  gates.forward(x, y2, saved2, Step{}, wide);
  gates.backward(x, dy, saved2, dx2, g2, wide);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  visit([](const FieldPath&, const auto& a,
           const auto& b) { CHECK(std::equal(a.data(), a.data() + leaf_values(a).size(), b.data())); },
        g, g2);
  const Matrix<float> before = saved.gates;
  gates.backward(x, dy, saved, dx, g, ws);  // Saved is not consumed
  CHECK(max_difference(before.view(), saved.gates.view()) == 0);
  const AllocationCounter counter;
  gates.forward(x, y, ws);
  gates.forward(x, y, saved, Step{}, ws);
  gates.backward(x, dy, saved, dx, g, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("task_gates refuses what does not fit and writes nothing", "[gating][task_gates]") {
  Workspace ws;
  const GateMap map(2, 3);
  const Matrix<float> x(3, 4, 1.0f), w(6, 4, 1.0f), odd(5, 4, 1.0f);
  const Vector<float> b(6, 1.0f), b5(5, 1.0f);
  Matrix<float> g(3, 6, 7.0f), narrow(3, 5, 7.0f);
  CHECK(error_of([&] { task_gates<float>(x, odd, b, map, {}, g, ws); }) ==
        "task_gates: weight: expected shape [6, _], got [5, 4]");
  CHECK(error_of([&] { task_gates<float>(g, w, b, map, {}, g, ws); }) == "task_gates: x: expected shape [_, 4], got [3, 6]");
  CHECK(error_of([&] { task_gates<float>(x, w, b5, map, {}, g, ws); }) == "task_gates: bias: expected size 6, got 5");
  CHECK(error_of([&] { task_gates<float>(x, w, b, map, {}, narrow, ws); }) ==
        "task_gates: gates: expected shape [3, 6], got [3, 5]");
  CHECK(error_of([&] { task_gates<float>(x, w, b, map, {.temperature = 0}, g, ws); }) ==
        "task_gates: temperature: expected a temperature from 1e-6 to 1e6, got 0");
  for (const double extreme : {1e-300, 1e-39, 1e39, 1e300})  // 1 / temperature would be 0 or infinite in float: NaN gates
    CHECK(!error_of([&] { task_gates<float>(x, w, b, map, {.temperature = extreme}, g, ws); }).empty());
  CHECK(error_of([&] { task_gates<float>(x, w, b, map, {.dropout = 1}, g, ws); }) ==
        "task_gates: dropout: expected 0 <= dropout < 1, got 1");
  CHECK(error_of([&] { task_gates<float>(x, w, b, map, {.own_inputs = true}, g, ws); }) ==
        "task_gates: x: expected shape [_, 8], got [3, 4]");
  CHECK(error_of([&] { task_gates<float>(x, w, b, GateMap(), {}, g, ws); }) ==
        "task_gates: tasks: expected a GateMap with tasks, got 0");
  CHECK(error_of([&] { task_gates_backward<float>(x, w, map, {}, g, narrow, {}, {}, {}, ws); }) ==
        "task_gates_backward: dgates: expected shape [3, 6], got [3, 5]");
  CHECK(error_of([&] { scatter_gates<float>(g, map, narrow); }) == "scatter_gates: dense: expected shape [3, 6], got [3, 5]");
  CHECK(error_of([&] { gate_entropy_value_and_grad<float>(g, map, 1, narrow); }) ==
        "gate_entropy_value_and_grad: dgates: expected shape [3, 6], got [3, 5]");
  for (const float v : leaf_values(g)) CHECK(v == 7);
  for (const float v : leaf_values(narrow)) CHECK(v == 7);
  Random random(1);
  CHECK(error_of([&] { TaskGates<float>({.inputs = 0}, map, random); }) == "TaskGates: inputs: expected inputs >= 1, got 0");
  CHECK(error_of([&] { TaskGates<float>({.inputs = 1, .hidden = {0}}, map, random); }) ==
        "TaskGates: hidden: expected widths >= 1, got 0");
  TaskGates<float> layer({.inputs = 4}, map, random);
  TaskGates<float>::Saved saved;
  CHECK(error_of([&] { layer.backward(x, g, saved, {}, layer, ws); }) ==
        "TaskGates::backward: saved.gates: expected shape [3, 6], got [0, 0]");
  CHECK(error_of([&] { (void)layer.output_cols(3); }) == "TaskGates: input columns: expected as many as the weight has, got 3");
}
