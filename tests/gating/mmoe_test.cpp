// Oracles: PyTorch's vectors (separate experts and gates), tests/gating/reference.hpp (the formulas in double), golden numbers
// of the specification, central differences, algebra (one expert, equal gates, no gates).
#include <recops/gating/mmoe.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Specs that between them use every option, for `inputs` columns.
std::vector<MmoeSpec> specs(Index inputs) {
  return {
      {.inputs = inputs, .experts = 4, .outputs = 5, .tasks = 3},
      {.inputs = inputs, .experts = 1, .outputs = 1, .tasks = 1},
      MmoeSpec{.inputs = inputs, .experts = 3, .outputs = 17, .tasks = 2}.home(),
      {.inputs = inputs,
       .experts = 3,
       .outputs = 6,
       .tasks = 2,
       .hidden = {8, 4},
       .norm = ExpertNorm::layer,
       .activation = Activation::silu,
       .gate_hidden = {5},
       .gate_bias = true,
       .gates = {.temperature = 0.5}},
      {.inputs = inputs,
       .experts = 5,
       .outputs = 19,
       .tasks = 3,
       .norm = ExpertNorm::rms,
       .gate_bias = true,
       .gates = {.temperature = 2},
       .visible = {{0, 3, 4}, {2}, {4, 1}}},
      {.inputs = inputs, .experts = 8, .outputs = 40, .tasks = 7, .bias = false},
  };
}

template <class T>
Mmoe<T> make(const MmoeSpec& spec, Random& random) {
  Mmoe<T> layer(spec, random);
  shake(layer.experts, random);
  return layer;
}

void load(const Golden& golden, const std::string& prefix, Mmoe<double>& layer) {
  visit(
      [&](const FieldPath& path, auto& leaf) {
        if (leaf_values(leaf).empty() || path.kind == FieldKind::buffer) return;
        const auto all = golden.values<double>(prefix + "." + path.str());
        REQUIRE(static_cast<Index>(all.size()) == leaf_values(leaf).size());
        std::copy(all.begin(), all.end(), leaf.data());
      },
      layer);
}

}  // namespace

TEST_CASE("Mmoe equals PyTorch: outputs, gates, every gradient, serving", "[gating][mmoe]") {
  const Golden golden("mmoe");
  struct Case {
    const char* name;
    MmoeSpec spec;
  };
  const Case cases[] = {
      {"plain", {.inputs = 9, .experts = 4, .outputs = 5, .tasks = 3}},
      {"home", MmoeSpec{.inputs = 10, .experts = 3, .outputs = 17, .tasks = 2}.home()},
      {"layer",
       {.inputs = 7,
        .experts = 3,
        .outputs = 6,
        .tasks = 2,
        .hidden = {8},
        .norm = ExpertNorm::layer,
        .activation = Activation::silu,
        .gate_hidden = {5},
        .gate_bias = true,
        .gates = {.temperature = 0.5}}},
      {"masked", {.inputs = 8, .experts = 5, .outputs = 19, .tasks = 3, .gate_bias = true, .visible = {{0, 3, 4}, {2}, {4, 1}}}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const std::string name = c.name;
    Random random(1);
    Workspace ws;
    Mmoe<double> layer(c.spec, random);
    load(golden, name, layer);
    const Matrix<double> x = golden.matrix<double>(name + ".x"), dy = golden.matrix<double>(name + ".dy"),
                         expected = golden.matrix<double>(name + ".y");
    Matrix<double> y(x.rows(), layer.output_cols(x.cols())), dx(x.rows(), x.cols(), 0.0);
    Mmoe<double>::Saved saved;
    Mmoe<double> gradient = make_gradient(layer);
    layer.forward(x, y, saved, Step{}, ws);
    layer.backward(x, dy, saved, dx, gradient, ws);
    layer.update(saved);
    CHECK(max_difference(y.view(), expected.view()) < 1e-12);
    CHECK(max_difference(saved.gates().view(), golden.matrix<double>(name + ".gates").view()) < 1e-13);
    CHECK(max_difference(dx.view(), golden.matrix<double>(name + ".dx").view()) < 1e-12);
    visit(
        [&](const FieldPath& path, const auto& leaf) {
          if (leaf_values(leaf).empty()) return;
          CAPTURE(path.str());
          const bool buffer = path.kind == FieldKind::buffer;
          if (buffer) return;
          const auto all = golden.values<double>(name + ".gradient." + path.str());
          for (Index i = 0; i < leaf_values(leaf).size(); ++i)
            CHECK(leaf.data()[i] == Approx(all[static_cast<std::size_t>(i)]).epsilon(1e-10).margin(1e-12));
        },
        gradient);
    const bool batch = c.spec.norm == ExpertNorm::batch;
    if (batch) {
      const auto mean = golden.values<double>("home.experts.norm.running_mean"),
                 var = golden.values<double>("home.experts.norm.running_var");
      for (std::size_t j = 0; j < mean.size(); ++j) {
        CHECK(layer.experts.running_mean[static_cast<Index>(j)] == Approx(mean[j]).epsilon(1e-12).margin(1e-14));
        CHECK(layer.experts.running_variance[static_cast<Index>(j)] == Approx(var[j]).epsilon(1e-12));
      }
    }
    const Matrix<double> served = batch ? golden.matrix<double>("home.served") : expected;
    layer.forward(x, y, ws);
    CHECK(max_difference(y.view(), served.view()) < 1e-12);
    freeze(layer).forward(x, y, ws);
    CHECK(max_difference(y.view(), served.view()) < 1e-12);
  }
}

TEST_CASE("Mmoe gives the specification's golden numbers (G2)", "[gating][mmoe]") {
  Random random(1);
  Workspace ws;
  Mmoe<double> layer({.inputs = 6, .experts = 3, .outputs = 4, .tasks = 2, .bias = false}, random);
  layer.experts.weight = transpose(fill(2, 6, 12));
  layer.gates.weight = transpose(fill(5, 6, 6));
  const Matrix<double> x = fill(1, 4, 6), dy = fill(99, 4, 8);
  Matrix<double> y(4, 8), dx(4, 6, 0.0);
  Mmoe<double>::Saved saved;
  Mmoe<double> gradient = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, gradient, ws);
  double sum = 0, loss = 0, sum_dx = 0, size_dx = 0;
  for (Index i = 0; i < 32; ++i) {
    sum += y.data()[i];
    loss += y.data()[i] * dy.data()[i];
  }
  for (Index i = 0; i < 24; ++i) {
    sum_dx += dx.data()[i];
    size_dx += std::abs(dx.data()[i]);
  }
  CHECK(y(0, 0) == Approx(0.0221248575).margin(1e-9));
  CHECK(sum == Approx(2.2155008911).margin(1e-9));
  CHECK(loss == Approx(0.0591237344).margin(1e-9));
  CHECK(dx(0, 0) == Approx(-0.0455381).margin(1e-6));
  CHECK(sum_dx == Approx(0.2154940).margin(1e-6));
  CHECK(size_dx == Approx(1.8605884).margin(1e-6));
}

TEMPLATE_TEST_CASE("Mmoe: serving, training and frozen forward equal the definition", "[gating][mmoe]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  Random random = random_stream(231);
  Workspace ws;
  for (const Index inputs : {1, 7, 33}) {
    for (const MmoeSpec& spec : specs(inputs)) {
      const Mmoe<T> layer = make<T>(spec, random);
      const FrozenMmoe<T> served = freeze(layer);
      CHECK((served.input_cols() == inputs && served.tasks() == spec.tasks && served.outputs() == spec.outputs));
      for (const Index rows : {0, 1, 8, 9, 65}) {
        const Index cols = spec.tasks * spec.outputs;
        CHECK((layer.output_cols(inputs) == cols && served.output_cols(inputs) == cols));
        Padded<T> x(random_matrix<T>(rows, inputs, random).view()), y(rows, cols, T(5)), z(rows, cols, T(5)), s(rows, cols, T(5)),
            g(rows, layer.gates.map.size(), T(5));
        Matrix<double> exact(rows, inputs);
        for (Index r = 0; r < rows; ++r)
          for (Index j = 0; j < inputs; ++j) exact(r, j) = static_cast<double>(x(r, j));
        CAPTURE(inputs, spec.experts, spec.outputs, spec.tasks, static_cast<int>(spec.norm), rows);
        const Matrix<double> expected = mmoe_reference(layer, exact, false);
        layer.forward(x, y, ws);
        CHECK(max_difference(y.view(), expected.view()) < tolerance);
        served.forward(x, s, g, ws);
        CHECK(max_difference(s.view(), expected.view()) < tolerance);
        CHECK(max_difference(g.view(), gates_reference(layer.gates, exact).view()) < tolerance);
        if (spec.norm != ExpertNorm::batch || rows == 0 || rows > 8) {
          typename Mmoe<T>::Saved saved;
          layer.forward(x, z, saved, Step{}, ws);
          CHECK(max_difference(z.view(), mmoe_reference(layer, exact, true).view()) < 10 * tolerance);
        }
        CHECK((y.intact() && z.intact() && s.intact() && g.intact()));
      }
    }
  }
}

TEST_CASE("Mmoe passes the gradient check with every option", "[gating][mmoe]") {
  Random random = random_stream(232);
  for (const MmoeSpec& spec : specs(6)) {
    if (spec.experts == 8) continue;  // the first one with other sizes
    Mmoe<double> layer = make<double>(spec, random);
    layer.gates.options.dropout = spec.tasks == 3 ? 0.3 : 0;
    Matrix<double> x = random_matrix<double>(7, 6, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(spec.experts, static_cast<int>(spec.norm), report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
    CHECK(report.checked > 42);
  }
}

TEST_CASE("Mmoe: a gradient on the gates joins that of the outputs", "[gating][mmoe]") {
  Random random = random_stream(233);
  Workspace ws;
  Mmoe<double> layer({.inputs = 4, .experts = 3, .outputs = 2, .tasks = 2}, random);
  Matrix<double> x = random_matrix<double>(6, 4, random), y(6, 4), dy = random_matrix<double>(6, 4, random), dg(6, 6, 0.0),
                 dx(6, 4, 0.0);
  const auto loss = [&] {
    Mmoe<double>::Saved saved;
    layer.forward(x, y, saved, Step{}, ws);
    double sum = gate_entropy_value_and_grad<double>(saved.gates(), layer.gates.map, -3, {});
    for (Index i = 0; i < 24; ++i) sum += y.data()[i] * dy.data()[i];
    return sum;
  };
  Mmoe<double>::Saved saved;
  Mmoe<double> gradient = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  gate_entropy_value_and_grad<double>(saved.gates(), layer.gates.map, -3, dg);
  layer.backward(x, dy, dg, saved, dx, gradient, ws);
  GradientReport report;
  check_gradient("x", leaf_values(x), VectorView<const double>(leaf_values(dx)), loss, report);
  check_gradient("gates", leaf_values(layer.gates.weight), VectorView<const double>(leaf_values(gradient.gates.weight)), loss,
                 report);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 1e-6);
}

TEST_CASE("Mmoe: one expert is an MLP; equal gates give equal outputs; no gates give the mean", "[gating][mmoe]") {
  Random random = random_stream(234);
  Workspace ws;
  const Matrix<double> x = random_matrix<double>(9, 5, random);
  {
    const Mmoe<double> layer({.inputs = 5, .experts = 1, .outputs = 4, .tasks = 3, .hidden = {6}}, random);
    Matrix<double> y(9, 12), a(9, 4);
    layer.forward(x, y, ws);
    layer.experts.forward(x, a, ws);
    for (Index t = 0; t < 3; ++t) CHECK(max_difference(y.view().middle_cols(t * 4, 4), a.view()) == 0);
  }
  Mmoe<double> layer({.inputs = 5, .experts = 4, .outputs = 3, .tasks = 2}, random);
  Matrix<double> y(9, 6), a(9, 12);
  for (Index i = 0; i < 20; ++i) layer.gates.weight.data()[20 + i] = layer.gates.weight.data()[i];
  layer.forward(x, y, ws);
  CHECK(max_difference(y.view().middle_cols(0, 3), y.view().middle_cols(3, 3)) == 0);
  layer.gates.weight.fill(0);
  layer.forward(x, y, ws);
  layer.experts.forward(x, a, ws);
  for (Index r = 0; r < 9; ++r)
    for (Index j = 0; j < 3; ++j) CHECK(y(r, j) == Approx((a(r, j) + a(r, 3 + j) + a(r, 6 + j) + a(r, 9 + j)) / 4).margin(1e-15));
}

TEST_CASE("Mmoe: the input's gradient is the sum of the expert path and the gate path", "[gating][mmoe]") {
  Random random = random_stream(235);
  Workspace ws;
  const Mmoe<double> layer({.inputs = 5, .experts = 4, .outputs = 3, .tasks = 2}, random);
  const Matrix<double> x = random_matrix<double>(9, 5, random), dy = random_matrix<double>(9, 6, random);
  Matrix<double> y(9, 6), dx(9, 5, 0.0), sum(9, 5, 0.0), da(9, 12, 0.0), dg(9, 8, 0.0);
  Mmoe<double>::Saved saved;
  Mmoe<double> g = make_gradient(layer), unused = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  gate_mix_backward<double>(saved.expert_outputs, saved.gates(), layer.gates.map, dy, da, dg, ws);
  layer.experts.backward(x, da, saved.bank, sum, unused.experts, ws);
  CHECK(max_difference(dx.view(), sum.view()) > 1e-3);
  layer.gates.backward(x, dg, saved.gating, sum, unused.gates, ws);
  CHECK(max_difference(dx.view(), sum.view()) == 0);
}

TEST_CASE("Mmoe in float against double: D = 512, 8 experts of 64, 6 gates", "[gating][mmoe]") {
  Random random = random_stream(236);
  Workspace ws;
  for (const bool home : {false, true}) {
    MmoeSpec spec{.inputs = 512, .experts = 8, .outputs = 64, .tasks = 6};
    if (home) spec = spec.home();
    const Mmoe<double> exact = make<double>(spec, random);
    Mmoe<float> layer(spec, random);
    cast_layer(exact, layer);
    const Matrix<double> x = random_matrix<double>(40, 512, random), dy = random_matrix<double>(40, 384, random);
    const Matrix<float> x1 = cast<float>(x), dy1 = cast<float>(dy);
    Matrix<double> y(40, 384), dx(40, 512, 0.0);
    Matrix<float> y1(40, 384), dx1(40, 512, 0.0f);
    Mmoe<double>::Saved saved;
    Mmoe<float>::Saved saved1;
    Mmoe<double> g = make_gradient(exact);
    Mmoe<float> g1 = make_gradient(layer);
    exact.forward(x, y, saved, Step{}, ws);
    exact.backward(x, dy, saved, dx, g, ws);
    layer.forward(x1, y1, saved1, Step{}, ws);
    layer.backward(x1, dy1, saved1, dx1, g1, ws);
    const auto close = [](const auto& got, const auto& want, double limit) {
      double worst = 0;
      for (Index i = 0; i < want.size(); ++i)
        worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]) / (1 + std::abs(want[i])));
      CHECK(worst < limit);
    };
    CAPTURE(home);
    close(leaf_values(y1), leaf_values(y), 2e-5);
    if (!home) {  // relu: an entry that rounds to the other side of 0 changes its gradient whole, silu does not
      Index far = 0;
      for (Index i = 0; i < 40 * 512; ++i)
        far += std::abs(static_cast<double>(dx1.data()[i]) - dx.data()[i]) > 1e-4 * (1 + std::abs(dx.data()[i]));
      CHECK(far <= 2 * 512);
      continue;
    }
    close(leaf_values(dx1), leaf_values(dx), 1e-4);
    close(leaf_values(g1.experts.weight), leaf_values(g.experts.weight), 1e-4);
    close(leaf_values(g1.gates.weight), leaf_values(g.gates.weight), 1e-4);
  }
}

TEST_CASE("A frozen Mmoe: a row's bits depend neither on its batch nor on threads; a NaN stays in its row", "[gating][mmoe]") {
  Random random = random_stream(237);
  Threads threads{3};
  for (const MmoeSpec& spec : specs(21)) {
    Workspace ws, wide(make_executor(threads, 3));
    const Mmoe<float> layer = make<float>(spec, random);
    const FrozenMmoe<float> served = freeze(layer);
    const Index rows = 700, cols = spec.tasks * spec.outputs;
    Matrix<float> x = random_matrix<float>(rows, 21, random), y(rows, cols), z(rows, cols), one(1, cols), few(5, cols);
    served.forward(x, y, ws);
    served.forward(x, z, wide);
    CHECK(max_difference(y.view(), z.view()) == 0);
    for (const Index r : {0, 1, 255, 699}) {
      served.forward(x.view().middle_rows(r, 1), one, wide);
      CHECK(max_difference(y.view().middle_rows(r, 1), one.view()) == 0);
    }
    served.forward(x.view().middle_rows(130, 5), few, ws);
    CHECK(max_difference(y.view().middle_rows(130, 5), few.view()) == 0);
    x(300, 4) = std::nanf("");
    served.forward(x, z, ws);
    for (Index r = 0; r < rows; ++r)
      CHECK(max_difference(y.view().middle_rows(r, 1), z.view().middle_rows(r, 1)) == (r == 300 ? INFINITY : 0));
    CHECK(std::isnan(z(300, 0)));
  }
}

TEST_CASE("A frozen Mmoe may be shared by threads", "[gating][mmoe]") {
  Random random = random_stream(238);
  const Mmoe<float> layer({.inputs = 12, .experts = 4, .outputs = 20, .tasks = 3}, random);
  const FrozenMmoe<float> served = freeze(layer);
  const Matrix<float> x = random_matrix<float>(30, 12, random);
  Matrix<float> y(30, 60), results[4];
  Workspace ws;
  served.forward(x, y, ws);
  std::vector<std::thread> all;
  for (Matrix<float>& own : results)
    all.emplace_back([&] {
      Workspace mine;
      own.resize(30, 60);
      for (int i = 0; i < 20; ++i) served.forward(x, own, mine);
    });
  for (std::thread& t : all) t.join();
  for (const Matrix<float>& own : results) CHECK(max_difference(own.view(), y.view()) == 0);
}

TEST_CASE("Mmoe: training steps have the same bits for any number of threads and allocate nothing once warm", "[gating][mmoe]") {
  Random random = random_stream(239);
  Threads threads{3};
  for (const MmoeSpec& spec : specs(13)) {
    Workspace ws, wide(make_executor(threads, 3));
    Mmoe<float> layer = make<float>(spec, random);
    const FrozenMmoe<float> served = freeze(layer);
    const Index rows = 150, cols = spec.tasks * spec.outputs;
    const Matrix<float> x = random_matrix<float>(rows, 13, random), dy = random_matrix<float>(rows, cols, random);
    Matrix<float> y(rows, cols), y2(rows, cols), dx(rows, 13, 0.0f), dx2(rows, 13, 0.0f);
    Mmoe<float>::Saved saved, saved2;
    Mmoe<float> g = make_gradient(layer), g2 = make_gradient(layer);
    layer.forward(x, y, saved, Step{}, ws);
    layer.backward(x, dy, saved, dx, g, ws);
    layer.forward(x, y2, saved2, Step{}, wide);
    layer.backward(x, dy, saved2, dx2, g2, wide);
    CHECK(max_difference(y.view(), y2.view()) == 0);
    CHECK(max_difference(dx.view(), dx2.view()) == 0);
    visit([](const FieldPath&, const auto& a,
             const auto& b) { CHECK(std::equal(a.data(), a.data() + leaf_values(a).size(), b.data())); },
          g, g2);
    const auto step = [&](Index count) {
      const auto in = x.view().middle_rows(0, count);
      layer.forward(in, y.view().middle_rows(0, count), ws);
      served.forward(in, y.view().middle_rows(0, count), ws);
      layer.forward(in, y.view().middle_rows(0, count), saved, Step{}, ws);
      layer.backward(in, dy.view().middle_rows(0, count), saved, dx.view().middle_rows(0, count), g, ws);
      layer.update(saved);
    };
    step(rows);
    const AllocationCounter counter;
    for (const Index count : {150, 13, 2, 150}) step(count);
    const std::size_t allocations = counter.count();
    CHECK(allocations == 0);
  }
}

TEST_CASE("Mmoe names its parameters as a PyTorch module would", "[gating][mmoe]") {
  Random random(1);
  MmoeSpec spec{.inputs = 3, .experts = 2, .outputs = 4, .tasks = 2, .hidden = {5}, .gate_hidden = {6}, .gate_bias = true};
  spec.norm = ExpertNorm::batch;
  const Mmoe<float> layer(spec, random);
  std::vector<std::string> names;
  visit([&](const FieldPath& path, const auto&) { names.push_back(path.str()); }, layer);
  CHECK(names == std::vector<std::string>{"experts.hidden.0.weight", "experts.hidden.0.bias", "experts.weight", "experts.bias",
                                          "experts.norm.weight", "experts.norm.bias", "experts.norm.running_mean",
                                          "experts.norm.running_var", "gates.hidden.0.weight", "gates.hidden.0.bias",
                                          "gates.weight", "gates.bias"});
  CHECK(parameter_count(layer) == 10 * 3 + 10 + 8 * 5 + 8 + 16 + 12 * 3 + 12 + 4 * 6 + 4);
}

TEST_CASE("Mmoe is a layer like any other", "[gating][mmoe]") {
  static_assert(RowLayer<Mmoe<float>, float> && RowLayer<ExpertBank<float>, float> && RowLayer<TaskGates<float>, float>);
  static_assert(std::is_copy_constructible_v<Mmoe<float>> && std::is_nothrow_move_constructible_v<FrozenMmoe<float>>);
  Random a(3), b(3);
  const Mmoe<float> one({.inputs = 3, .experts = 2, .outputs = 4, .tasks = 2}, a),
      two({.inputs = 3, .experts = 2, .outputs = 4, .tasks = 2}, b);
  CHECK(std::equal(one.experts.weight.data(), one.experts.weight.data() + 24, two.experts.weight.data()));
  for (Index i = 0; i < 24; ++i) CHECK(std::abs(one.experts.weight.data()[i]) <= 1 / std::sqrt(3.0f));
}

TEST_CASE("Mmoe refuses what does not fit and writes nothing", "[gating][mmoe]") {
  Random random(1);
  Workspace ws;
  Mmoe<float> layer({.inputs = 4, .experts = 3, .outputs = 5, .tasks = 2}, random);
  const FrozenMmoe<float> served = freeze(layer);
  const Matrix<float> x(6, 4, 1.0f), odd(6, 3, 1.0f);
  Matrix<float> y(6, 10, 7.0f), narrow(6, 9, 7.0f), dx(6, 4, 7.0f);
  Mmoe<float>::Saved saved, fresh;
  Mmoe<float> g = make_gradient(layer);
  CHECK(error_of([&] { layer.forward(odd, y, ws); }) == "Mmoe::forward: x: expected shape [_, 4], got [6, 3]");
  CHECK(error_of([&] { layer.forward(x, narrow, ws); }) == "Mmoe::forward: y: expected shape [6, 10], got [6, 9]");
  CHECK(error_of([&] { layer.forward(x, narrow, saved, Step{}, ws); }) == "Mmoe::forward: y: expected shape [6, 10], got [6, 9]");
  CHECK(error_of([&] { served.forward(odd, y, ws); }) == "FrozenMmoe: x: expected shape [_, 4], got [6, 3]");
  CHECK(error_of([&] { served.forward(x, narrow, ws); }) == "FrozenMmoe: y: expected shape [6, 10], got [6, 9]");
  CHECK(error_of([&] { served.forward(x, y, narrow, ws); }) == "FrozenMmoe: gates: expected shape [6, 6], got [6, 9]");
  CHECK(error_of([&] { layer.backward(x, y, fresh, dx, g, ws); }) == "Mmoe::backward: saved: expected shape [6, 15], got [0, 0]");
  Matrix<float> scratch(6, 10);
  layer.forward(x, scratch, saved, Step{}, ws);
  CHECK(error_of([&] { layer.backward(x, narrow, saved, dx, g, ws); }) ==
        "Mmoe::backward: dy: expected shape [6, 10], got [6, 9]");
  CHECK(error_of([&] { layer.backward(x, y, saved, narrow, g, ws); }) == "Mmoe::backward: dx: expected shape [6, 4], got [6, 9]");
  CHECK(error_of([&] { layer.backward(x, y, odd, saved, dx, g, ws); }) ==
        "Mmoe::backward: dgates: expected shape [6, 6], got [6, 3]");
  CHECK(error_of([&] { (void)layer.output_cols(5); }) == "ExpertBank: input columns: expected as many as the weight has, got 5");
  CHECK(error_of([&] { Mmoe<float>({.inputs = 4, .outputs = 1, .tasks = 0}, random); }) ==
        "Mmoe: tasks: expected 1 to 65536 tasks, got 0");
  CHECK(error_of([&] { Mmoe<float>({.inputs = 4, .outputs = 1, .tasks = 2, .visible = {{0}}}, random); }) ==
        "Mmoe: visible: expected one list per task, got 1");
  CHECK(error_of([&] { Mmoe<float>({.inputs = 4, .outputs = 1, .gates = {.temperature = -1}}, random); }) ==
        "Mmoe: temperature: expected a temperature from 1e-6 to 1e6, got -1");
  layer.experts.bias.resize(3);
  CHECK(error_of([&] { layer.forward(x, y, ws); }) == "ExpertBank::forward: bias: expected size 15, got 3");
  CHECK(error_of([&] { (void)freeze(layer); }) == "freeze: bias: expected size 15, got 3");
  layer.experts.bias.resize(15);
  layer.gates.weight = Matrix<float>(5, 4, 0.0f);
  CHECK(error_of([&] { layer.forward(x, y, ws); }) == "TaskGates::forward: weight: expected shape [6, 4], got [5, 4]");
  CHECK(error_of([&] { (void)freeze(layer); }) == "freeze: weight: expected shape [6, 4], got [5, 4]");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(narrow)) CHECK(v == 7);
  for (const float v : leaf_values(dx)) CHECK(v == 7);
  for (const float v : leaf_values(g.experts.weight)) CHECK(v == 0);
}

TEST_CASE("Mmoe refuses parameters and gradients that do not fit each other, before it writes", "[gating][mmoe]") {
  Workspace ws;
  const MmoeSpec spec{
      .inputs = 4, .experts = 3, .outputs = 5, .tasks = 2, .hidden = {6}, .norm = ExpertNorm::layer, .gate_hidden = {3}};
  const Matrix<float> x(6, 4, 1.0f), dy(6, 10, 1.0f);
  Matrix<float> y(6, 10, 7.0f);
  const auto broken = [&](auto change) {
    Random random(1);
    Mmoe<float> layer(spec, random);
    change(layer);
    const std::string message = error_of([&] { layer.forward(x, y, ws); }), frozen = error_of([&] { (void)freeze(layer); });
    CHECK(frozen.rfind("freeze: ", 0) == 0);
    CHECK(message.substr(message.find(": ")) == frozen.substr(frozen.find(": ")));
    return message;
  };
  CHECK(broken([](auto& l) { l.experts.norm_weight.resize(3); }) == "ExpertBank::forward: norm.weight: expected size 15, got 3");
  CHECK(broken([](auto& l) { l.experts.norm_bias.resize(16); }) == "ExpertBank::forward: norm.bias: expected size 15, got 16");
  CHECK(broken([](auto& l) { l.experts.hidden[0].bias.resize(3); }) == "ExpertBank::forward: bias: expected size 18, got 3");
  CHECK(broken([](auto& l) { l.experts.weight = Matrix<float>(15, 5, 0.0f); }) ==
        "ExpertBank::forward: x: expected shape [_, 15], got [0, 18]");
  CHECK(broken([](auto& l) { l.gates.hidden[0].bias.resize(3); }) == "TaskGates::forward: hidden.bias: expected size 6, got 3");
  CHECK(broken([](auto& l) { l.gates.hidden[0].weight = Matrix<float>(7, 4, 0.0f); }) ==
        "TaskGates::forward: rows of hidden.weight: expected tasks times the outputs of one, got 7");
  for (const float v : leaf_values(y)) CHECK(v == 7);

  Random random(1);
  const Mmoe<float> layer(spec, random);
  Mmoe<float>::Saved saved;
  layer.forward(x, y, saved, Step{}, ws);
  Matrix<float> dx(6, 4, 7.0f);
  const auto refused = [&](auto change) {
    Mmoe<float> g = make_gradient(layer);
    change(g);
    const std::string message = error_of([&] { layer.backward(x, dy, saved, dx, g, ws); });
    for (const float v : leaf_values(dx)) CHECK(v == 7);
    for (const float v : g.experts.norm_bias) CHECK(v == 0);
    return message;
  };
  CHECK(refused([](auto& g) { g.experts.hidden[0].weight = Matrix<float>(1, 4, 0.0f); }) ==
        "Mmoe::backward: gradient of experts.hidden.0.weight: expected shape [18, 4], got [1, 4]");
  CHECK(refused([](auto& g) { g.gates.weight = Matrix<float>(1, 1, 0.0f); }) ==
        "Mmoe::backward: gradient of gates.weight: expected shape [6, 3], got [1, 1]");
  CHECK(refused([](auto& g) { g.gates.hidden.clear(); }) ==
        "visit: gates.hidden: expected as many children in every value, got different numbers");
}

TEST_CASE("frozen in fewer bits it is close to the layer", "[gating][mmoe]") {
  Random random = random_stream(611);
  Workspace ws;
  for (const ExpertNorm norm : {ExpertNorm::none, ExpertNorm::layer, ExpertNorm::batch}) {
    const Mmoe<float> layer({.inputs = 40, .experts = 3, .outputs = 24, .tasks = 2, .norm = norm}, random);
    const Matrix<float> x = random_matrix<float>(37, 40, random);
    Matrix<float> y(37, 48), half(37, 48), eighth(37, 48);
    layer.forward(x, y, ws);
    freeze(layer, Weights<BFloat16>()).forward(x, half, ws);
    freeze(layer, Weights<std::int8_t>()).forward(x, eighth, ws);
    CHECK(max_difference(y.view(), half.view()) < 0.05);
    CHECK(max_difference(y.view(), eighth.view()) < 0.1);
    CHECK(max_difference(y.view(), half.view()) > 0);
    CHECK(max_difference(half.view(), eighth.view()) > 0);
  }
}
