// Oracles: PyTorch code written from the paper (golden), the formulas in double task by task, central differences, algebra (no
// shared experts, no own experts, one level, untouched experts).
#include <recops/gating/ple.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

std::vector<PleSpec> specs(Index inputs) {
  return {
      {.inputs = inputs,
       .tasks = 3,
       .levels = {{.outputs = 6, .hidden = {5}, .own_experts = {1, 2, 1}, .shared_experts = 2},
                  {.outputs = 4, .own_experts = {2}}}},
      {.inputs = inputs, .tasks = 1, .levels = {{.outputs = 3}}},
      {.inputs = inputs,
       .tasks = 2,
       .levels = {{.outputs = 9, .own_experts = {0, 2}, .shared_experts = 1},
                  {.outputs = 17, .own_experts = {1}, .shared_experts = 0},
                  {.outputs = 5, .own_experts = {2, 1}, .shared_experts = 3}},
       .norm = ExpertNorm::layer,
       .activation = Activation::silu,
       .gate_bias = true,
       .gates = {.temperature = 2}},
      {.inputs = inputs,
       .tasks = 4,
       .levels = {{.outputs = 8}, {.outputs = 7, .hidden = {6, 3}}},
       .norm = ExpertNorm::batch,
       .activation = Activation::silu,
       .bias = false},
  };
}

template <class T>
Ple<T> make(const PleSpec& spec, Random& random) {
  Ple<T> layer(spec, random);
  for (Cgc<T>& level : layer.levels) shake(level.experts, random);
  return layer;
}

Matrix<double> columns(const Matrix<double>& x, Index first, Index count) {
  Matrix<double> part(x.rows(), count);
  for (Index r = 0; r < x.rows(); ++r) std::copy_n(x.row(r) + first, count, part.row(r));
  return part;
}

/// Experts first .. first + count as a bank of their own.
template <class T>
ExpertBank<T> part_of(const ExpertBank<T>& bank, Index first, Index count) {
  ExpertBank<T> part;
  part.options = bank.options;
  part.options.experts = count;
  const Index all = bank.options.experts;
  const auto rows = [&](const auto& from) {
    Matrix<T> to(from.rows() / all * count, from.cols());
    std::copy_n(from.row(from.rows() / all * first), to.rows() * to.cols(), to.data());
    return to;
  };
  const auto entries = [&](const Vector<T>& from) {
    Vector<T> to(from.size() / all * count);
    std::copy_n(from.data() + from.size() / all * first, to.size(), to.data());
    return to;
  };
  for (const Linear<T>& l : bank.hidden) {
    Linear<T> own;
    own.weight = rows(l.weight);
    own.bias = entries(l.bias);
    part.hidden.push_back(std::move(own));
  }
  part.weight = rows(bank.weight);
  for (auto [to, from] : {std::pair{&part.bias, &bank.bias}, std::pair{&part.norm_weight, &bank.norm_weight},
                          std::pair{&part.norm_bias, &bank.norm_bias}, std::pair{&part.running_mean, &bank.running_mean},
                          std::pair{&part.running_variance, &bank.running_variance}})
    *to = entries(*from);
  return part;
}

/// Level by level, task by task, expert by expert.
template <class T>
Matrix<double> ple_reference(const Ple<T>& layer, const PleSpec& spec, const Matrix<double>& x, bool training) {
  Matrix<double> at = x;
  for (std::size_t l = 0; l < spec.levels.size(); ++l) {
    const Mmoe<T>& level = layer.levels[l];
    const Index in = l == 0 ? x.cols() : spec.levels[l - 1].outputs, h = spec.levels[l].outputs;
    const auto input = [&](Index who) { return l == 0 ? x : columns(at, who * in, in); };
    std::vector<Matrix<double>> outputs;  // of every expert
    std::vector<std::vector<Index>> own(static_cast<std::size_t>(spec.tasks) + 1);
    for (Index who = 0; who <= spec.tasks; ++who) {
      const auto& counts = spec.levels[l].own_experts;
      const Index count =
          who == spec.tasks ? spec.levels[l].shared_experts : counts[counts.size() == 1 ? 0 : static_cast<std::size_t>(who)];
      for (Index e = 0; e < count; ++e) {
        own[static_cast<std::size_t>(who)].push_back(static_cast<Index>(outputs.size()));
        outputs.push_back(experts_reference(part_of(level.experts, static_cast<Index>(outputs.size()), 1), input(who), training));
      }
    }
    const Index mixtures = spec.tasks + (l + 1 < spec.levels.size() ? 1 : 0);
    Matrix<double> next(x.rows(), mixtures * h, 0.0);
    Index gate = 0;
    for (Index m = 0; m < mixtures; ++m) {
      std::vector<Index> sees = own[static_cast<std::size_t>(m)];
      if (m == spec.tasks) {
        sees.clear();
        for (std::size_t e = 0; e < outputs.size(); ++e) sees.push_back(static_cast<Index>(e));
      } else {
        sees.insert(sees.end(), own.back().begin(), own.back().end());
      }
      const Matrix<double> z = input(m);
      for (Index r = 0; r < x.rows(); ++r) {
        std::vector<double> g;
        double total = 0;
        for (std::size_t i = 0; i < sees.size(); ++i) {
          double logit = level.gates.bias.empty() ? 0 : static_cast<double>(level.gates.bias[gate + static_cast<Index>(i)]);
          for (Index j = 0; j < in; ++j)
            logit += z(r, j) * static_cast<double>(level.gates.weight(gate + static_cast<Index>(i), j));
          g.push_back(std::exp(logit / spec.gates.temperature));
          total += g.back();
        }
        for (std::size_t i = 0; i < sees.size(); ++i)
          for (Index j = 0; j < h; ++j) next(r, m * h + j) += g[i] / total * outputs[static_cast<std::size_t>(sees[i])](r, j);
      }
      gate += static_cast<Index>(sees.size());
    }
    at = std::move(next);
  }
  return at;
}

}  // namespace

TEST_CASE("Ple of two levels equals PyTorch code written from the paper", "[gating][ple]") {
  const Golden golden("home");
  Random random(1);
  Workspace ws;
  const PleSpec spec = specs(7)[0];
  Ple<double> layer(spec, random);
  CHECK(distance_to_golden<double>(golden, "ple", layer) < 1e-12);
  Ple<float> narrow(spec, random);
  CHECK(distance_to_golden<float>(golden, "ple", narrow) < 2e-5);
  const Matrix<double> x = golden.matrix<double>("ple.x");
  Matrix<double> y(x.rows(), 12);
  freeze(layer).forward(x, y, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("ple.served").view()) < 1e-13);
}

TEMPLATE_TEST_CASE("Ple: serving, training and frozen forward equal the definition", "[gating][ple]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  Random random = random_stream(811);
  Workspace ws;
  for (const Index inputs : {1, 7, 33}) {
    for (const PleSpec& spec : specs(inputs)) {
      const Ple<T> layer = make<T>(spec, random);
      const FrozenPle<T> served = freeze(layer);
      const Index cols = spec.tasks * spec.levels.back().outputs;
      CHECK((served.input_cols() == inputs && served.tasks() == spec.tasks && served.output_cols(inputs) == cols));
      CHECK((layer.input_cols() == inputs && layer.output_cols(inputs) == cols));
      for (const Index rows : {0, 1, 9, 65}) {
        Padded<T> x(random_matrix<T>(rows, inputs, random).view()), y(rows, cols, T(5)), z(rows, cols, T(5)), s(rows, cols, T(5));
        Matrix<double> exact(rows, inputs);
        for (Index r = 0; r < rows; ++r)
          for (Index j = 0; j < inputs; ++j) exact(r, j) = static_cast<double>(x(r, j));
        CAPTURE(inputs, spec.tasks, spec.levels.size(), rows);
        const Matrix<double> expected = ple_reference(layer, spec, exact, false);
        layer.forward(x, y, ws);
        served.forward(x, s, ws);
        CHECK(max_difference(y.view(), expected.view()) < tolerance);
        CHECK(max_difference(s.view(), expected.view()) < tolerance);
        if (spec.norm != ExpertNorm::batch || rows == 0 || rows > 9) {
          typename Ple<T>::Saved saved;
          layer.forward(x, z, saved, Step{}, ws);
          CHECK(max_difference(z.view(), ple_reference(layer, spec, exact, true).view()) < 20 * tolerance);
        }
        CHECK((y.intact() && z.intact() && s.intact()));
      }
    }
  }
}

TEST_CASE("Ple passes the gradient check", "[gating][ple]") {
  Random random = random_stream(812);
  for (const PleSpec& spec : specs(6)) {
    Ple<double> layer = make<double>(spec, random);
    Matrix<double> x = random_matrix<double>(7, 6, random);
    const GradientReport report = gradient_check(layer, x.view());
    CAPTURE(spec.tasks, spec.levels.size(), report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
    CHECK(report.checked > 42);
  }
}

TEST_CASE("Cgc: no shared experts are independent layers, no own experts an MMoE, one level of Ple a Cgc", "[gating][ple]") {
  Random random = random_stream(813);
  Workspace ws;
  const Matrix<double> x = random_matrix<double>(9, 5, random);
  {
    const Cgc<double> layer(CgcSpec{.inputs = 5, .outputs = 4, .tasks = 3, .shared_experts = 0, .hidden = {6}}, random);
    Matrix<double> y(9, 12), a(9, 12);
    layer.forward(x, y, ws);
    layer.experts.forward(x, a, ws);
    CHECK(max_difference(y.view(), a.view()) == 0);
    freeze(layer).forward(x, y, ws);
    CHECK(max_difference(y.view(), a.view()) < 1e-13);
  }
  {
    Random one(3), two(3);
    const Cgc<double> cgc(CgcSpec{.inputs = 5, .outputs = 4, .tasks = 3, .own_experts = {0}, .shared_experts = 4}, one);
    const Mmoe<double> mmoe({.inputs = 5, .experts = 4, .outputs = 4, .tasks = 3}, two);
    Matrix<double> y(9, 12), z(9, 12);
    cgc.forward(x, y, ws);
    mmoe.forward(x, z, ws);
    CHECK(max_difference(y.view(), z.view()) == 0);
  }
  Random one(4), two(4);
  const Cgc<double> cgc(CgcSpec{.inputs = 5, .outputs = 4, .tasks = 3, .own_experts = {2, 1, 3}, .shared_experts = 2}, one);
  const Ple<double> ple({.inputs = 5, .tasks = 3, .levels = {{.outputs = 4, .own_experts = {2, 1, 3}, .shared_experts = 2}}},
                        two);
  Matrix<double> y(9, 12), z(9, 12);
  cgc.forward(x, y, ws);
  ple.forward(x, z, ws);
  CHECK(max_difference(y.view(), z.view()) == 0);
}

TEST_CASE("Ple: at the last level a task's loss leaves other tasks' experts alone", "[gating][ple]") {
  Random random = random_stream(814);
  Workspace ws;
  const PleSpec spec{
      .inputs = 5, .tasks = 3, .levels = {{.outputs = 4}, {.outputs = 3, .own_experts = {2}}}, .activation = Activation::silu};
  const Ple<double> layer(spec, random);
  const Matrix<double> x = random_matrix<double>(9, 5, random);
  Matrix<double> y(9, 9), dy(9, 9, 0.0);
  for (Index r = 0; r < 9; ++r)
    for (Index j = 3; j < 6; ++j) dy(r, j) = random.normal();
  Ple<double> g = make_gradient(layer);
  Ple<double>::Saved saved;
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, {}, g, ws);
  const Matrix<double>& last = g.levels[1].experts.weight;  // [7 x 3, 4]: tasks 0, 1, 2 with two experts each, shared
  double size[7] = {};
  for (Index i = 0; i < last.rows(); ++i)
    for (Index j = 0; j < last.cols(); ++j) size[i / 3] += std::abs(last(i, j));
  CHECK((size[0] == 0 && size[1] == 0 && size[4] == 0 && size[5] == 0));
  CHECK((size[2] + size[3] > 0 && size[6] > 0));
}

TEST_CASE("Ple: same bits for any threads, frozen for any batch; nothing allocated once warm", "[gating][ple]") {
  Random random = random_stream(815);
  Threads threads{3};
  for (const PleSpec& spec : specs(13)) {
    Workspace ws, wide(make_executor(threads, 3));
    Ple<float> layer = make<float>(spec, random);
    const FrozenPle<float> served = freeze(layer);
    const Index rows = sanitized ? 110 : 450, cols = layer.output_cols(13);
    const Matrix<float> dy = random_matrix<float>(rows, cols, random);
    Matrix<float> x = random_matrix<float>(rows, 13, random), y(rows, cols), y2(rows, cols), dx(rows, 13, 0.0f),
                  dx2(rows, 13, 0.0f), one(1, cols);
    Ple<float>::Saved saved, saved2;
    Ple<float> g = make_gradient(layer), g2 = make_gradient(layer);
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

TEST_CASE("Ple in bfloat16 and int8 is close to the layer", "[gating][ple]") {
  Random random = random_stream(816);
  Workspace ws;
  const PleSpec spec{.inputs = 40, .tasks = 2, .levels = {{.outputs = 24}, {.outputs = 16}}};
  const Ple<float> layer(spec, random);
  const Matrix<float> x = random_matrix<float>(37, 40, random);
  Matrix<float> y(37, 32), z(37, 32);
  layer.forward(x, y, ws);
  freeze(layer, Weights<BFloat16>()).forward(x, z, ws);
  const double half = max_difference(y.view(), z.view());
  CHECK((half > 0 && half < 2e-2));
  freeze(layer, Weights<std::int8_t>()).forward(x, z, ws);
  const double quarter = max_difference(y.view(), z.view());
  CHECK((quarter > 0 && quarter < 4e-2));
}

TEST_CASE("Ple names its parameters and is a layer like any other", "[gating][ple]") {
  static_assert(RowLayer<Ple<float>, float> && RowLayer<Cgc<float>, float>);
  Random random(1);
  const Ple<float> layer({.inputs = 3, .tasks = 2, .levels = {{.outputs = 4}, {.outputs = 2}}}, random);
  std::vector<std::string> names;
  visit([&](const FieldPath& path, const auto&) { names.push_back(path.str()); }, layer);
  const std::vector<std::string> one{
      "experts.weight",           "experts.bias", "experts.norm.weight", "experts.norm.bias", "experts.norm.running_mean",
      "experts.norm.running_var", "gates.weight", "gates.bias"};
  std::vector<std::string> all;
  for (const char* level : {"levels.0.", "levels.1."})
    for (const std::string& name : one) all.push_back(level + name);
  CHECK(names == all);
  // level 0: 3 experts, gates of 2 + 2 + 3; level 1: 3 experts, gates of 2 + 2
  CHECK(parameter_count(layer) == 12 * 3 + 12 + 7 * 3 + 6 * 4 + 6 + 4 * 4);
}

TEST_CASE("Ple and Cgc refuse what does not fit and write nothing", "[gating][ple]") {
  Random random(1);
  Workspace ws;
  const auto cgc = [&](const CgcSpec& spec) { return error_of([&] { Cgc<float>(spec, random); }); };
  CHECK(cgc({.inputs = 2, .outputs = 2, .tasks = 0}) == "Cgc: tasks: expected 1 to 65535, got 0");
  CHECK(cgc({.inputs = 2, .outputs = 2, .tasks = 3, .own_experts = {1, 2}}) ==
        "Cgc: own_experts: expected one number, or one per task, got 2");
  CHECK(cgc({.inputs = 2, .outputs = 2, .tasks = 2, .own_experts = {-1}}) == "Cgc: own_experts: expected 0 to 65536, got -1");
  CHECK(cgc({.inputs = 2, .outputs = 2, .shared_experts = -1}) == "Cgc: shared_experts: expected 0 to 65536, got -1");
  CHECK(error_of([&] { Ple<float>({.inputs = 2, .tasks = 2}, random); }) == "Ple: levels: expected one level or more, got 0");
  CHECK(error_of([&] {
          Mmoe<float>({.inputs = 2, .experts = 2, .outputs = 2, .groups = {{1, 1, 0}}}, random);
        }) == "Mmoe: groups: expected groups in the order of their experts, with sources from 0, got 1");
  CHECK(error_of([&] {
          Mmoe<float>({.inputs = 2, .experts = 2, .outputs = 2, .groups = {{0, 1, 0}}}, random);
        }) == "Mmoe: experts of all groups: expected the number of experts, got 1");
  CHECK(cgc({.inputs = 4, .outputs = 2, .hidden = {0}}) == "Cgc: hidden: expected widths >= 1, got 0");
  CHECK(cgc({.inputs = 4, .outputs = 2, .gates = {.temperature = -1}}) ==
        "Cgc: temperature: expected a temperature from 1e-6 to 1e6, got -1");
  {
    Cgc<float> layer(CgcSpec{.inputs = 4, .outputs = 2, .tasks = 2}, random);
    const FrozenMmoe<float> served = freeze(layer);
    const Matrix<float> x(2, 4, 1.0f), odd(2, 3, 1.0f);
    Matrix<float> y(2, 4);
    Cgc<float> g = make_gradient(layer);
    CHECK(error_of([&] { layer.forward(odd, y, ws); }) == "Cgc::forward: x: expected shape [_, 4], got [2, 3]");
    CHECK(error_of([&] { served.forward(odd, y, ws); }) == "frozen Cgc: x: expected shape [_, 4], got [2, 3]");
    CHECK(error_of([&] { layer.backward(x, y, Cgc<float>::Saved(), {}, g, ws); }) ==
          "Cgc::backward: saved: expected shape [2, 6], got [0, 0]");
    const std::string none = "freeze: tasks: expected 1 or more (was the layer made from a spec?), got 0";
    CHECK(error_of([&] { (void)freeze(Cgc<float>()); }) == none);
  }

  Ple<float> layer({.inputs = 4, .tasks = 2, .levels = {{.outputs = 3}, {.outputs = 5}}}, random);
  const FrozenPle<float> served = freeze(layer);
  const Matrix<float> x(6, 4, 1.0f), odd(6, 3, 1.0f);
  Matrix<float> y(6, 10, 7.0f), narrow(6, 9, 7.0f), dx(6, 4, 7.0f), scratch(6, 10);
  Ple<float>::Saved saved, fresh;
  Ple<float> g = make_gradient(layer);
  CHECK(error_of([&] { layer.forward(odd, y, ws); }) == "Ple::forward: x: expected shape [_, 4], got [6, 3]");
  CHECK(error_of([&] { layer.forward(x, narrow, ws); }) == "Ple::forward: y: expected shape [6, 10], got [6, 9]");
  CHECK(error_of([&] { served.forward(odd, y, ws); }) == "FrozenPle: x: expected shape [_, 4], got [6, 3]");
  CHECK(error_of([&] { served.forward(x, narrow, ws); }) == "FrozenPle: y: expected shape [6, 10], got [6, 9]");
  CHECK(error_of([&] { layer.backward(x, y, fresh, dx, g, ws); }) ==
        "Ple::backward: saved: expected what forward of this layer saved, got 0");
  CHECK(error_of([&] { layer.update(fresh); }) ==
        "Ple::update: saved: expected what a training forward of this layer saved, got 0");
  layer.forward(x, scratch, saved, Step{}, ws);
  CHECK(error_of([&] { layer.backward(x, y, saved, narrow, g, ws); }) == "Ple::backward: dx: expected shape [6, 4], got [6, 9]");
  layer.levels[1].experts.groups[2].source =
      1;  // the shared experts read a task's columns: fewer columns than the level below has
  CHECK(error_of([&] { layer.forward(x, y, ws); }) ==
        "Ple::forward: level: expected a level that reads what the one below writes, got 1");
  CHECK(error_of([&] { (void)freeze(layer); }) == "freeze: level: expected a level that reads what the one below writes, got 1");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(narrow)) CHECK(v == 7);
  for (const float v : leaf_values(dx)) CHECK(v == 7);
}
