// Oracles: PyTorch code written from the paper (golden), golden numbers of the formulas (G3, G9), central differences, HoME's
// equivalences (MMoE, CGC, identity), exact zeros of what a task must not touch.
#include <recops/gating/cgc.hpp>
#include <recops/gating/home.hpp>
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

HomeSpec full_spec(Index inputs) {
  return {.inputs = inputs,
          .meta_outputs = 6,
          .outputs = 5,
          .categories = {0, 1, 0},
          .meta_shared_experts = 2,
          .meta_category_experts = 1,
          .shared_experts = 1,
          .category_experts = 2,
          .own_experts = 1};
}
HomeSpec open_spec(Index inputs) {
  HomeSpec spec = full_spec(inputs);
  spec.meta_outputs = 4;
  spec.outputs = 3;
  spec.categories = {0, 0, 1};
  spec.meta_shared_experts = 1;
  spec.meta_category_experts = 2;
  spec.category_experts = 1;
  spec.own_experts = 2;
  spec.meta_hidden = spec.hidden = {5};
  spec.hierarchy = false;
  spec.gate_bias = true;
  return spec;
}
HomeSpec bare_spec(Index inputs) {
  return {.inputs = inputs,
          .meta_outputs = 4,
          .outputs = 3,
          .categories = {0, 1},
          .meta_shared_experts = 1,
          .meta_category_experts = 1,
          .shared_experts = 1,
          .category_experts = 1,
          .own_experts = 1,
          .feature_gates = false,
          .self_gates = false};
}
std::vector<HomeSpec> specs(Index inputs) {
  std::vector<HomeSpec> all{full_spec(inputs), open_spec(inputs), bare_spec(inputs), full_spec(inputs), full_spec(inputs)};
  all[3].normalise = false;  // relu, no norm
  all[3].outputs = 17;
  all[3].task_feature_gates = false;
  all[3].own_experts = 3;
  all[4].categories = {0};  // one task; no own experts, odd rank
  all[4].own_experts = 0;
  all[4].rank = 5;
  all[4].loras = 3;
  all[4].task_self_gates = false;
  return all;
}

template <class T>
void shake_level(HomeLevel<T>& level, Random& random) {
  shake(level.experts, random);
  for (FeatureGate<T>& g : level.feature_gates)
    for (T& v : leaf_values(g.up)) v = static_cast<T>(random.uniform(-0.5, 0.5));
}
template <class T>
Home<T> make(const HomeSpec& spec, Random& random) {
  Home<T> layer(spec, random);
  shake_level(layer.meta, random);
  shake_level(layer.task, random);
  return layer;
}

}  // namespace

TEST_CASE("Home equals PyTorch code written from the paper: every output and gradient, training, serving, frozen",
          "[gating][home]") {
  const Golden golden("home");
  Workspace ws;
  const auto check = [&](const std::string& name, const HomeSpec& spec) {
    CAPTURE(name);
    Random random(1);
    Home<double> layer(spec, random);
    CHECK(distance_to_golden<double>(golden, name, layer) < 1e-11);
    Home<float> narrow(spec, random);
    CHECK(distance_to_golden<float>(golden, name, narrow) < 1e-4);
    const Matrix<double> x = golden.matrix<double>(name + ".x"), expected = golden.matrix<double>(name + ".served");
    Matrix<double> y(x.rows(), expected.cols());
    Home<double>::Saved saved;
    layer.forward(x, y, saved, Step{}, ws);
    layer.update(saved);
    layer.forward(x, y, ws);
    CHECK(max_difference(y.view(), expected.view()) < 1e-12);
    y.fill(0);
    freeze(layer).forward(x, y, ws);
    CHECK(max_difference(y.view(), expected.view()) < 1e-12);
  };
  check("full", full_spec(8));
  check("open", open_spec(6));
  check("bare", bare_spec(5));
}

TEST_CASE("FeatureGate and Home give the specification's golden numbers (G3, G9)", "[gating][home]") {
  Random random(1);
  Workspace ws;
  const auto stack = [](const std::vector<Matrix<double>>& parts) {
    Matrix<double> all(parts[0].rows() * static_cast<Index>(parts.size()), parts[0].cols());
    for (std::size_t i = 0; i < parts.size(); ++i)
      std::copy_n(parts[i].data(), parts[0].rows() * parts[0].cols(),
                  all.data() + static_cast<Index>(i) * parts[0].rows() * parts[0].cols());
    return all;
  };
  const auto vector = [](const Matrix<double>& m) {
    Vector<double> v(m.rows() * m.cols());
    std::copy_n(m.data(), v.size(), v.data());
    return v;
  };
  const auto sums = [](const auto& y, const Matrix<double>& dy, double& sum, double& loss) {
    sum = loss = 0;
    for (Index i = 0; i < dy.rows() * dy.cols(); ++i) {
      sum += y.data()[i];
      loss += y.data()[i] * dy.data()[i];
    }
  };
  const Matrix<double> x = fill(1, 4, 6);
  double sum, loss;
  {
    FeatureGate<double> gate(6, 2, 0, random);
    gate.down = stack({transpose(fill(6, 6, 3)), transpose(fill(7, 6, 3))});
    gate.up = stack({transpose(fill(8, 3, 6)), transpose(fill(9, 3, 6))});
    gate.gate = transpose(fill(10, 6, 2));
    gate.gate_bias = vector(fill(11, 1, 2));
    const Matrix<double> dy = fill(99, 4, 6);
    Matrix<double> y(4, 6), dx(4, 6, 0.0);
    FeatureGate<double> g = make_gradient(gate);
    FeatureGate<double>::Saved saved;
    gate.forward(x, y, saved, Step{}, ws);
    gate.backward(x, dy, saved, dx, g, ws);
    sums(y, dy, sum, loss);
    CHECK(y(0, 0) == Approx(-0.3657498501).margin(1e-9));
    CHECK(sum == Approx(-1.2628217903).margin(1e-9));
    CHECK(loss == Approx(-0.1956702761).margin(1e-9));
    sums(dx, dy, sum, loss);
    CHECK(dx(0, 0) == Approx(0.3891576).margin(1e-6));
    CHECK(sum == Approx(0.5977067).margin(1e-6));
  }
  Home<double> home({.inputs = 6,
                     .meta_outputs = 4,
                     .outputs = 4,
                     .categories = {0},
                     .meta_shared_experts = 1,
                     .meta_category_experts = 1,
                     .shared_experts = 1,
                     .category_experts = 1,
                     .own_experts = 1},
                    random);
  const auto set_gate = [&](FeatureGate<double>& gate, Index i, Index in) {
    gate.down = stack({transpose(fill(i, in, in / 2)), transpose(fill(i + 1, in, in / 2))});
    gate.up = stack({transpose(fill(i + 2, in / 2, in)), transpose(fill(i + 3, in / 2, in))});
    gate.gate = transpose(fill(i + 4, in, 2));
    gate.gate_bias = vector(fill(i + 5, 1, 2));
  };
  const auto set_level = [&](HomeLevel<double>& level, std::vector<Index> banks, std::vector<Index> gates, Index in) {
    std::vector<Matrix<double>> w, scale, shift;
    for (const Index i : banks) {
      w.push_back(transpose(fill(i, in, 4)));
      scale.push_back(transpose(fill(i + 1, 1, 4)));
      shift.push_back(transpose(fill(i + 2, 1, 4)));
    }
    level.experts.weight = stack(w);
    level.experts.norm_weight = vector(stack(scale));
    for (double& v : level.experts.norm_weight) v += 1;
    level.experts.norm_bias = vector(stack(shift));
    for (std::size_t g = 0; g < gates.size(); ++g) set_gate(level.feature_gates[g], gates[g], in);
  };
  set_level(home.meta, {200, 210}, {100, 110}, 6);
  set_level(home.task, {220, 230, 240}, {120, 130, 140}, 4);
  home.meta.gate_weight = stack({transpose(fill(300, 6, 2)), transpose(fill(302, 6, 2))});
  home.meta.self_weight = stack({transpose(fill(301, 6, 1)), transpose(fill(303, 6, 1))});
  home.task.gate_weight = transpose(fill(304, 8, 3));
  home.task.self_weight = transpose(fill(305, 8, 1));
  const Matrix<double> dy = fill(99, 4, 4);
  Matrix<double> y(4, 4), dx(4, 6, 0.0);
  Home<double> g = make_gradient(home);
  Home<double>::Saved saved;
  home.forward(x, y, saved, Step{}, ws);
  home.backward(x, dy, saved, dx, g, ws);
  sums(y, dy, sum, loss);
  CHECK(y(0, 0) == Approx(-0.3360142675).margin(1e-9));
  CHECK(sum == Approx(5.5558139771).margin(1e-9));
  CHECK(loss == Approx(1.0479381716).margin(1e-9));
  double total = 0, size = 0;
  for (const double v : leaf_values(dx)) {
    total += v;
    size += std::abs(v);
  }
  CHECK(dx(0, 0) == Approx(0.6334034).margin(1e-6));
  CHECK(total == Approx(0.2054089).margin(1e-6));
  CHECK(size == Approx(11.4715648).margin(1e-6));
}

TEST_CASE("Home and FeatureGate pass the gradient check with every ingredient", "[gating][home]") {
  Random random = random_stream(821);
  for (const HomeSpec& spec : specs(6)) {
    Home<double> layer = make<double>(spec, random);
    Matrix<double> x = random_matrix<double>(7, 6, random);
    const GradientReport report = gradient_check(layer, x.view(), 1, {.most = sanitized ? 3 : 60});
    CAPTURE(spec.categories.size(), spec.hierarchy, spec.feature_gates, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
    CHECK(report.checked > (sanitized ? 30 : 60));
  }
  FeatureGate<double> gate(12, 3, 0, random);
  for (double& v : leaf_values(gate.up)) v = random.normal();
  Matrix<double> x = random_matrix<double>(5, 12, random);
  CHECK(gradient_check(gate, x.view()).worst < 1e-6);
}

TEMPLATE_TEST_CASE("Home frozen equals serving, batch norm folded or not; float against double", "[gating][home]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 2e-14;
  Random random = random_stream(822);
  Workspace ws;
  for (const Index inputs : {6, 18}) {
    for (const HomeSpec& spec : specs(inputs)) {
      const Home<double> exact = make<double>(spec, random);
      Random again(1);
      Home<T> layer(spec, again);
      cast_layer(exact, layer);
      const FrozenHome<T> served = freeze(layer);
      const Index cols = layer.output_cols(inputs);
      CHECK((served.output_cols(inputs) == cols && served.input_cols() == inputs && served.outputs() == spec.outputs));
      for (const Index rows : {0, 1, 9, 65}) {
        const Matrix<double> x1 = random_matrix<double>(rows, inputs, random);
        Padded<T> x(cast<T>(x1).view()), y(rows, cols, T(5)), s(rows, cols, T(5));
        Matrix<double> expected(rows, cols);
        exact.forward(x1, expected, ws);
        layer.forward(x, y, ws);
        served.forward(x, s, ws);
        CAPTURE(inputs, spec.categories.size(), rows);
        const double size = 1 + (rows == 0 ? 0 : max_difference(expected.view(), Matrix<double>(rows, cols, 0.0).view()));
        CHECK(max_difference(y.view(), expected.view()) < tolerance * size);
        CHECK(max_difference(s.view(), expected.view()) < tolerance * size);
        CHECK((y.intact() && s.intact()));
      }
    }
  }
}

TEST_CASE("Home without gates and masks is an Mmoe at its meta level, a Cgc at its task level", "[gating][home]") {
  Random random = random_stream(823);
  Workspace ws;
  const Matrix<double> x = random_matrix<double>(21, 7, random);
  for (const bool normalise : {true, false}) {
    HomeSpec spec = full_spec(7);
    spec.feature_gates = spec.self_gates = spec.hierarchy = false;
    spec.normalise = normalise;
    Home<double> home = make<double>(spec, random);
    {  // the meta level: an Mmoe with a gate for each of its three mixtures
      MmoeSpec plain{.inputs = 7, .experts = 4, .outputs = 6, .tasks = 3};
      Mmoe<double> mmoe(normalise ? plain.home() : plain, random);
      mmoe.experts = home.meta.experts;
      mmoe.gates.weight = home.meta.gate_weight;
      Matrix<double> y(21, 18), z(21, 18), dx(21, 7, 0.0), dz(21, 7, 0.0);
      home.meta.forward(x, y, ws);
      mmoe.forward(x, z, ws);
      CHECK(max_difference(y.view(), z.view()) == 0);
      freeze(home.meta).forward(x, y, ws);
      freeze(mmoe).forward(x, z, ws);
      CHECK(max_difference(y.view(), z.view()) == 0);
      HomeLevel<double>::Saved one;
      Mmoe<double>::Saved two;
      HomeLevel<double> g = make_gradient(home.meta);
      Mmoe<double> h = make_gradient(mmoe);
      const Matrix<double> dy = random_matrix<double>(21, 18, random);
      home.meta.forward(x, y, one, Step{}, ws);
      mmoe.forward(x, z, two, Step{}, ws);
      home.meta.backward(x, dy, one, dx, g, ws);
      mmoe.backward(x, dy, two, dz, h, ws);
      CHECK(max_difference(y.view(), z.view()) == 0);
      CHECK(max_difference(dx.view(), dz.view()) < 1e-13);
      CHECK(max_difference(g.gate_weight.view(), h.gates.weight.view()) < 1e-13);
    }
    // The task level fed with x in every place, without category experts: a Cgc whose gate is the sum of the two halves.
    spec.hierarchy = true;
    spec.category_experts = 0;
    spec.meta_outputs = 7;
    const Home<double> masked = make<double>(spec, random);
    CgcSpec cgc_spec{.inputs = 7, .outputs = 5, .tasks = 3, .own_experts = {1}, .shared_experts = 1};
    cgc_spec.norm = normalise ? ExpertNorm::batch : ExpertNorm::none;
    cgc_spec.activation = normalise ? Activation::silu : Activation::relu;
    cgc_spec.bias = !normalise;
    Cgc<double> cgc(cgc_spec, random);
    // Here experts are [shared, own of task 0, 1, 2]; there [own of task 0, 1, 2, shared], and a task lists its own first.
    const auto from = [](Index e) { return e < 3 ? e + 1 : Index{0}; };
    const auto copy = [&](const auto& source, auto& target, Index cols) {
      for (Index e = 0; e < 4; ++e) std::copy_n(source.data() + from(e) * 5 * cols, 5 * cols, target.data() + e * 5 * cols);
    };
    const ExpertBank<double>& experts = masked.task.experts;
    copy(experts.weight, cgc.experts.weight, 7);
    if (normalise) {
      copy(experts.norm_weight, cgc.experts.norm_weight, 1);
      copy(experts.norm_bias, cgc.experts.norm_bias, 1);
      copy(experts.running_mean, cgc.experts.running_mean, 1);
      copy(experts.running_variance, cgc.experts.running_variance, 1);
    } else {
      copy(experts.bias, cgc.experts.bias, 1);
    }
    for (Index t = 0; t < 3; ++t)
      for (Index j = 0; j < 7; ++j) {
        const Matrix<double>& w = masked.task.gate_weight;  // rows [shared, own] of each task
        cgc.gates.weight(2 * t, j) = w(2 * t + 1, j) + w(2 * t + 1, 7 + j);
        cgc.gates.weight(2 * t + 1, j) = w(2 * t, j) + w(2 * t, 7 + j);
      }
    Matrix<double> thrice(21, 21), y(21, 15), z(21, 15);
    for (Index r = 0; r < 21; ++r)
      for (Index j = 0; j < 21; ++j) thrice(r, j) = x(r, j % 7);
    masked.task.forward(thrice, y, ws);
    cgc.forward(x, z, ws);
    CHECK(max_difference(y.view(), z.view()) < 1e-13);
  }
}

TEST_CASE("Home: one category and tied gates, identity at first, factors in (0, 2)", "[gating][home]") {
  Random random = random_stream(824);
  Workspace ws;
  {  // C = 1 and tied gates: the shared mixture is the category's
    HomeSpec spec = bare_spec(5);
    spec.categories = {0, 0};
    Home<double> home = make<double>(spec, random);
    for (Index j = 0; j < 10; ++j) home.meta.gate_weight.data()[10 + j] = home.meta.gate_weight.data()[j];
    const Matrix<double> x = random_matrix<double>(9, 5, random);
    Matrix<double> m(9, 8);
    home.meta.forward(x, m, ws);
    CHECK(max_difference(m.view().middle_cols(0, 4), m.view().middle_cols(4, 4)) == 0);
  }
  FeatureGate<float> gate(12, 2, 0, random);
  Matrix<float> x = random_matrix<float>(9, 12, random), u(9, 12);
  gate.forward(x, u, ws);
  for (Index i = 0; i < 108; ++i) CHECK(std::abs(u.data()[i] - x.data()[i]) <= 4 * 1.2e-7f * std::abs(x.data()[i]));
  for (float& v : leaf_values(gate.up)) v = static_cast<float>(3 * random.normal());
  gate.forward(x, u, ws);
  for (Index i = 0; i < 108; ++i) CHECK((u.data()[i] / x.data()[i] > 0 && u.data()[i] / x.data()[i] < 2));
  Matrix<float> v(9, 12);
  freeze(gate).forward(x, v, ws);
  CHECK(max_difference(u.view(), v.view()) < 2e-6);
}

TEST_CASE("Home: a task's loss leaves other tasks' and categories' experts alone", "[gating][home]") {
  Random random = random_stream(825);
  Workspace ws;
  const HomeSpec spec = full_spec(6);  // task level: shared | 2 of category 0 | 2 of category 1 | tasks 0, 1, 2; 5 rows each
  const Home<double> home = make<double>(spec, random);
  const Matrix<double> x = random_matrix<double>(9, 6, random);
  Matrix<double> y(9, 15), dy(9, 15, 0.0);
  for (Index r = 0; r < 9; ++r)
    for (Index j = 5; j < 10; ++j) dy(r, j) = random.normal();  // task 1, of category 1
  Home<double> g = make_gradient(home);
  Home<double>::Saved saved;
  home.forward(x, y, saved, Step{}, ws);
  home.backward(x, dy, saved, {}, g, ws);
  double size[8] = {};
  for (Index i = 0; i < 40; ++i)
    for (Index j = 0; j < 6; ++j) size[i / 5] += std::abs(g.task.experts.weight(i, j));
  CHECK((size[1] == 0 && size[2] == 0 && size[5] == 0 && size[7] == 0));
  CHECK((size[0] > 0 && size[3] > 0 && size[4] > 0 && size[6] > 0));
}

TEST_CASE("Home: same bits for any threads, frozen for any batch; nothing allocated once warm", "[gating][home]") {
  Random random = random_stream(826);
  Threads threads{3};
  for (const HomeSpec& spec : specs(24)) {
    if (sanitized && spec.normalise && spec.own_experts != 0) continue;
    Workspace ws, wide(make_executor(threads, 3));
    Home<float> layer = make<float>(spec, random);
    const FrozenHome<float> served = freeze(layer);
    const Index rows = sanitized ? 110 : 450, cols = layer.output_cols(24);
    const Matrix<float> dy = random_matrix<float>(rows, cols, random);
    Matrix<float> x = random_matrix<float>(rows, 24, random), y(rows, cols), y2(rows, cols), dx(rows, 24, 0.0f),
                  dx2(rows, 24, 0.0f), one(1, cols);
    Home<float>::Saved saved, saved2;
    Home<float> g = make_gradient(layer), g2 = make_gradient(layer);
    layer.forward(x, y, saved, Step{}, ws);
    layer.backward(x, dy, saved, dx, g, ws);
    layer.forward(x, y2, saved2, Step{}, wide);
    layer.backward(x, dy, saved2, dx2, g2, wide);
    CHECK((max_difference(y.view(), y2.view()) == 0 && max_difference(dx.view(), dx2.view()) == 0));
    visit([](const FieldPath&, const auto& a,
             const auto& b) { CHECK(std::equal(a.data(), a.data() + leaf_values(a).size(), b.data())); },
          g, g2);
    served.forward(x, y, ws);
    served.forward(x, y2, wide);
    CHECK(max_difference(y.view(), y2.view()) == 0);
    for (const Index r : {Index{0}, Index{100}, rows - 1}) {
      served.forward(x.view().middle_rows(r, 1), one, ws);
      CHECK(max_difference(y.view().middle_rows(r, 1), one.view()) == 0);
    }
    x(50, 4) = std::nanf("");
    served.forward(x, y2, ws);
    CHECK(std::isnan(y2(50, 0)));
    CHECK(max_difference(y.view().middle_rows(0, 50), y2.view().middle_rows(0, 50)) == 0);
    CHECK(max_difference(y.view().middle_rows(51, rows - 51), y2.view().middle_rows(51, rows - 51)) == 0);
    x(50, 4) = 0;
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
    for (const Index count : {rows, Index{13}, Index{2}, rows}) step(count);
    const std::size_t allocations = counter.count();
    CHECK(allocations == 0);
  }
}

TEST_CASE("Home frozen keeps a bias that only gates or only self gates have", "[gating][home]") {
  Random random = random_stream(447);
  Workspace ws;
  const Home<double> both(open_spec(6), random);
  const Matrix<double> x = random_matrix<double>(5, 6, random);
  for (const bool self : {false, true}) {
    Home<double> layer = both;
    for (HomeLevel<double>* level : {&layer.meta, &layer.task}) (self ? level->gate_bias : level->self_bias) = Vector<double>();
    Matrix<double> y(5, layer.output_cols(6)), y2(5, layer.output_cols(6));
    layer.forward(x, y, ws);
    freeze(layer).forward(x, y2, ws);
    CHECK(max_difference(y.view(), y2.view()) < 1e-12);
  }
}

TEST_CASE("Home in bfloat16 and int8 is close to the layer; its gates can be looked at", "[gating][home]") {
  Random random = random_stream(827);
  Workspace ws;
  const Home<float> layer = make<float>(full_spec(40), random);
  const Matrix<float> x = random_matrix<float>(37, 40, random);
  Matrix<float> y(37, 15), z(37, 15);
  layer.forward(x, y, ws);
  freeze(layer, Weights<BFloat16>()).forward(x, z, ws);
  const double half = max_difference(y.view(), z.view());
  CHECK((half > 0 && half < 1e-1));
  freeze(layer, Weights<std::int8_t>()).forward(x, z, ws);
  const double quarter = max_difference(y.view(), z.view());
  CHECK((quarter > 0 && quarter < 3e-1));

  const FrozenHomeLevel<float> meta = freeze(layer.meta);
  Matrix<float> m(37, 18), gates(37, layer.meta.map.size()), self(37, layer.meta.self_map.size());
  meta.forward(x, m, gates, self, ws);
  HomeLevel<float>::Saved saved;
  Matrix<float> trained(37, 18);
  layer.meta.forward(x, trained, saved, Step{}, ws);
  CHECK(max_difference(gates.view(), saved.gates.view()) < 1e-5);
  CHECK(max_difference(self.view(), saved.self_gates.view()) < 1e-5);
  CHECK((gates.cols() == 4 + 3 + 3 && self.cols() == 4));  // shared sees all four, categories three; who owns two has a softmax
  for (Index r = 0; r < 37; ++r) CHECK(self(r, 0) + self(r, 1) == Approx(1).margin(1e-6));
}

TEST_CASE("HomeLevel: gates may read blocks that no expert reads", "[gating][home]") {
  Random random = random_stream(446);
  Workspace ws;
  const HomeLevel<double> level(
      {.inputs = 4, .outputs = 3, .groups = {{2, 0}}, .mixtures = {{{0}, 0, {1}}}, .norm = ExpertNorm::none, .loras = 0}, random);
  const Matrix<double> x = random_matrix<double>(5, 8, random), dy = random_matrix<double>(5, 3, random);
  Matrix<double> y(5, 3), y2(5, 3), dx(5, 8, 0.0);
  HomeLevel<double>::Saved saved;
  HomeLevel<double> g = make_gradient(level);
  level.forward(x, y, ws);
  freeze(level).forward(x, y2, ws);
  CHECK(max_difference(y.view(), y2.view()) < 1e-13);
  level.forward(x, y2, saved, Step{}, ws);
  CHECK(max_difference(y.view(), y2.view()) < 1e-13);
  level.backward(x, dy, saved, dx, g, ws);
  CHECK((std::abs(dx(0, 0)) > 0 && std::abs(dx(0, 4)) > 0));
}

TEST_CASE("A copy of a frozen layer owns all its weights, those of the gates behind its experts' too", "[gating][home]") {
  Random random = random_stream(829);
  Workspace ws;
  const Matrix<float> x = random_matrix<float>(9, 12, random);
  const auto check = [&](const auto& layer, const auto& another) {
    const Index cols = layer.output_cols(12);
    Matrix<float> y(9, cols), z(9, cols);
    auto first = freeze(layer);
    first.forward(x, y, ws);
    const auto copy = first, other = freeze(another);
    const auto moved = std::move(first);
    first = other;
    first.forward(x, z, ws);
    CHECK(max_difference(y.view(), z.view()) > 0);
    for (const auto* frozen : {&copy, &moved}) {
      for (float& v : leaf_values(z)) v = std::nanf("");
      frozen->forward(x, z, ws);
      CHECK(max_difference(y.view(), z.view()) == 0);
    }
  };
  const MmoeSpec spec{.inputs = 12, .experts = 3, .outputs = 5, .tasks = 2};
  const Home<float> home = make<float>(full_spec(12), random), home2 = make<float>(full_spec(12), random);
  const Mmoe<float> mmoe(spec, random), mmoe2(spec, random);
  check(home, home2);
  check(mmoe, mmoe2);
}

TEST_CASE("Home refuses what does not fit and writes nothing", "[gating][home]") {
  static_assert(RowLayer<Home<float>, float> && RowLayer<HomeLevel<float>, float> && RowLayer<FeatureGate<float>, float>);
  Random random(1);
  Workspace ws;
  const auto refused = [&](auto change) {
    HomeSpec spec = full_spec(6);
    change(spec);
    return error_of([&] { Home<float>(spec, random); });
  };
  CHECK(refused([](HomeSpec& s) { s.categories.clear(); }) == "Home: categories: expected the category of each task, got 0");
  CHECK(refused([](HomeSpec& s) { s.categories[1] = -1; }) == "Home: categories: expected 0 to 32767, got -1");
  CHECK(refused([](HomeSpec& s) { s.loras = 4; }) == "Home::meta: rank: expected a rank, or 0 if loras divide the inputs, got 0");
  CHECK(refused([](HomeSpec& s) { s.own_experts = -1; }) == "Home::task: experts of a group: expected 0 to 65536, got -1");
  const auto level = [&](HomeLevelSpec spec) {
    spec.inputs = spec.outputs = 2;
    return error_of([&] { HomeLevel<float>(spec, random); });
  };
  CHECK(level({}) == "HomeLevel: groups: expected one or more, got 0");
  CHECK(level({.groups = {{1, 0}}}) == "HomeLevel: mixtures: expected one or more, got 0");
  CHECK(level({.groups = {{1, 0}}, .mixtures = {{{1}, -1, {0}}}}) == "HomeLevel: group of a mixture: expected a group, got 1");
  CHECK(level({.groups = {{1, 0}, {1, 0}}, .mixtures = {{{0}, 1, {0}}}}) ==
        "HomeLevel: own group of a mixture: expected a group that it sees, or -1, got 1");
  CHECK(level({.groups = {{1, 0}}, .mixtures = {{{0}, -1, {0}}, {{0}, -1, {0, 0}}}}) ==
        "HomeLevel: selectors: expected one or more, as many for every mixture, got 2");

  Home<float> layer(full_spec(6), random);
  const FrozenHome<float> served = freeze(layer);
  const Matrix<float> x(6, 6, 1.0f), odd(6, 3, 1.0f), row(1, 6, 1.0f);
  Matrix<float> y(6, 15, 7.0f), narrow(6, 9, 7.0f), dx(6, 6, 7.0f), scratch(6, 15), short_y(1, 15, 7.0f);
  Home<float>::Saved saved, fresh;
  Home<float> g = make_gradient(layer);
  CHECK(error_of([&] { layer.forward(odd, y, ws); }) == "Home::forward: x: expected shape [_, 6], got [6, 3]");
  CHECK(error_of([&] { layer.forward(x, narrow, ws); }) == "Home::forward: y: expected shape [6, 15], got [6, 9]");
  CHECK(error_of([&] { served.forward(odd, y, ws); }) == "FrozenHome: x: expected shape [_, 6], got [6, 3]");
  CHECK(error_of([&] { served.forward(x, narrow, ws); }) == "FrozenHome: y: expected shape [6, 15], got [6, 9]");
  CHECK(error_of([&] { layer.forward(row, short_y, saved, Step{}, ws); }) ==
        "ExpertBank::forward: rows of x: expected at least two rows to take statistics of, got 1");
  CHECK(error_of([&] { layer.backward(x, y, fresh, dx, g, ws); }) ==
        "Home::backward: saved.meta_outputs: expected shape [6, 18], got [0, 0]");
  layer.forward(x, scratch, saved, Step{}, ws);
  CHECK(error_of([&] { layer.backward(x, y, saved, narrow, g, ws); }) == "Home::backward: dx: expected shape [6, 6], got [6, 9]");
  const auto broken = [&](auto change) {
    Home<float> bad = layer;
    change(bad);
    const std::string frozen = error_of([&] { (void)freeze(bad); });
    CHECK(!error_of([&] { bad.forward(x, y, ws); }).empty());
    return frozen;
  };
  CHECK(broken([](auto& l) { l.meta.gate_weight = Matrix<float>(9, 6, 0.0f); }) ==
        "freeze: gates.weight: expected shape [10, 6], got [9, 6]");
  CHECK(error_of([&] { (void)freeze(Home<double>()); }) ==
        "freeze: mixtures: expected 1 or more (was the layer made from a spec?), got 0");
  CHECK(broken([](auto& l) { l.task.self_weight = Matrix<float>(3, 6, 0.0f); }) ==
        "freeze: self_gates.weight: expected shape [3, 12], got [3, 6]");
  CHECK(broken([](auto& l) { l.task.feature_gates.pop_back(); }) ==
        "freeze: feature_gates: expected one per group, or none, got 5");
  CHECK(broken([](auto& l) { l.meta.feature_gates[0].up = Matrix<float>(2, 2, 0.0f); }) ==
        "freeze: up: expected shape [12, 3], got [2, 2]");
  for (const Matrix<float>* m : {&y, &narrow, &dx, &short_y})
    for (const float v : leaf_values(*m)) CHECK(v == 7);
}
