// Oracles: the same model in PyTorch (golden), central differences, the folded serving form against the direct one, permuted
// objectives, and a model of one objective, whose attentions are 1.
#include <recops/models/harmonrank.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
Vector<T> scores_of(const HarmonRank<T>& model, MatrixView<const T> x, MatrixView<const T> u) {
  typename HarmonRank<T>::Saved saved;
  Workspace ws;
  Vector<T> s(x.rows());
  model.forward(x, u, s, saved, ws);
  return s;
}

/// Every parameter random, the gate's too.
template <class T>
HarmonRank<T> random_model(const HarmonRankSpec& spec, Random& random) {
  HarmonRank<T> model(spec, random);
  visit(
      [&](const FieldPath&, auto& leaf) {
        for (auto& v : leaf_values(leaf)) v = static_cast<T>(0.7 * random.normal());
      },
      model);
  return model;
}

std::vector<HarmonRankSpec> variants() {
  const HarmonRankSpec whole{.objectives = 3, .profile = 4, .width = 6, .heads = 2};
  std::vector<HarmonRankSpec> all(7, whole);
  all[1].self_attention = false;
  all[2].cross_attention = false;
  all[3].relation_agnostic = false;
  all[4].relation_aware = false;
  all[4].gate = HarmonRankGate::softplus;
  all[5].logit = all[5].sigmoid = true;
  all[5].gate = HarmonRankGate::sigmoid;
  all[6].objectives = 1;
  all[6].heads = 3;
  return all;
}

template <class T>
Matrix<T> inputs(const HarmonRankSpec& spec, Index rows, Random& random) {
  Matrix<T> x(rows, spec.objectives);
  for (T& v : leaf_values(x)) v = static_cast<T>(spec.logit ? random.uniform(0.05, 0.95) : random.normal());
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("HarmonRank equals PyTorch, forward and backward", "[models][harmonrank]", float, double) {
  using T = TestType;
  const Golden golden("harmonrank");
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const std::pair<std::string, HarmonRankSpec> cases[]{
      {"plain", {.objectives = 4, .profile = 6, .width = 8, .heads = 2}},
      {"probabilities",
       {.objectives = 3, .profile = 2, .width = 6, .gate = HarmonRankGate::sigmoid, .logit = true, .sigmoid = true}},
      {"softplus", {.objectives = 5, .profile = 3, .width = 4, .heads = 4, .gate = HarmonRankGate::softplus}}};
  for (const auto& [name, spec] : cases) {
    Random random = random_stream(931);
    HarmonRank<T> model(spec, random);
    set_parameters<T>(golden, name + ".", model);
    const auto x = golden.matrix<T>(name + ".x"), u = golden.matrix<T>(name + ".u");
    const auto ds = golden.values<T>(name + ".ds");
    typename HarmonRank<T>::Saved saved;
    Workspace ws;
    Vector<T> s(x.rows());
    model.forward(x, u, s, saved, ws);
    Padded<T> dx(x.rows(), x.cols()), du(u.rows(), u.cols());
    HarmonRank<T> gradient = make_gradient(model);
    for (int twice = 0; twice < 2; ++twice) model.backward(x, u, ds, saved, dx, du, gradient, ws);
    CHECK((dx.intact() && du.intact()));
    const auto compare = [&, name = name](const std::string& what, const T* got, double times) {
      CAPTURE(name, what);
      const auto expected = golden.values<double>(name + "." + what);
      double most = 0.1, worst = 0;
      for (std::size_t i = 0; i < expected.size(); ++i) {
        most = std::max(most, std::abs(expected[i]));
        worst = std::max(worst, std::abs(static_cast<double>(got[i]) / times - expected[i]));
      }
      CHECK(worst <= tolerance * most);
    };
    const auto compare_padded = [&](const std::string& what, Padded<T>& p) {
      std::vector<T> flat;
      for (Index i = 0; i < p.view().rows(); ++i) flat.insert(flat.end(), p.view().row(i), p.view().row(i) + p.view().cols());
      compare(what, flat.data(), 2);
    };
    compare("s", s.data(), 1);
    compare_padded("dx", dx);
    compare_padded("du", du);
    visit([&](const FieldPath& path, const auto& leaf) { compare("gradient." + path.str(), leaf_values(leaf).data(), 2); },
          gradient);
    // The folded form.
    Vector<T> served(x.rows());
    freeze(model).forward(x, u, served, ws);
    compare("s", served.data(), 1);
  }
}

TEST_CASE("Gradients of every part of HarmonRank equal central differences", "[models][harmonrank]") {
  Random random = random_stream(932);
  for (const HarmonRankSpec& spec : variants()) {
    HarmonRank<double> model = random_model<double>(spec, random), gradient = make_gradient(model);
    Matrix<double> x = inputs<double>(spec, 3, random), u = random_matrix<double>(3, spec.profile, random);
    const Vector<double> ds = random_vector<double>(3, random);
    Matrix<double> dx(3, spec.objectives, 0.0), du(3, spec.profile, 0.0);
    HarmonRank<double>::Saved saved;
    Workspace ws;
    Vector<double> s(3);
    const auto loss = [&] {
      model.forward(x, u, s, saved, ws);
      return s[0] * ds[0] + s[1] * ds[1] + s[2] * ds[2];
    };
    loss();
    model.backward(x, u, ds, saved, dx, du, gradient, ws);
    GradientReport report;
    check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report);
    check_gradient("u", leaf_values(u), leaf_values(std::as_const(du)), loss, report);
    visit(
        [&](const FieldPath& path, auto& leaf, const auto& g) {
          check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.step = 1e-6, .most = 20});
        },
        model, std::as_const(gradient));
    CAPTURE(&spec - variants().data(), report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
  }
}

TEMPLATE_TEST_CASE("HarmonRank: folded equals direct, objectives permute, NaN stays, warm calls allocate nothing",
                   "[models][harmonrank]", float, double) {
  using T = TestType;
  Random random = random_stream(933);
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-12;
  for (const HarmonRankSpec& spec : variants()) {
    const HarmonRank<T> model = random_model<T>(spec, random);
    Matrix<T> x = inputs<T>(spec, 37, random);
    const Matrix<T> u = random_matrix<T>(37, spec.profile, random);
    const auto direct = scores_of<T>(model, x, u);
    const FrozenHarmonRank<T> frozen = freeze(model);
    Workspace ws;
    Vector<T> folded(37);
    frozen.forward(x, u, folded, ws);
    for (Index b = 0; b < 37; ++b)
      REQUIRE(static_cast<double>(folded[b]) == Approx(static_cast<double>(direct[b])).margin(tolerance));
    CHECK(count_allocations([&] { frozen.forward(x, u, folded, ws); }) == 0);
    typename HarmonRank<T>::Saved saved;
    HarmonRank<T> gradient = make_gradient(model);
    Matrix<T> dx(37, spec.objectives, T(0));
    Vector<T> s(37);
    const auto step = [&] {
      model.forward(x, u, s, saved, ws);
      model.backward(x, u, direct, saved, dx, {}, gradient, ws);
    };
    step();
    CHECK(count_allocations(step) == 0);

    const Index m = spec.objectives;  // objectives rotated, with all that belongs to them
    HarmonRank<T> rotated = model;
    Matrix<T> other = x;
    for (Index i = 0; i < m; ++i) {
      const Index to = (i + 1) % m;
      const auto move = [&](const Matrix<T>& a, Matrix<T>& b) {
        if (!a.empty()) std::copy_n(a.row(i), a.cols(), b.row(to));
      };
      move(model.token_weight, rotated.token_weight);
      move(model.token_bias, rotated.token_bias);
      move(model.gate_weight, rotated.gate_weight);
      if (!model.gate_bias.empty()) rotated.gate_bias[to] = model.gate_bias[i];
      for (Index b = 0; b < 37; ++b) other(b, to) = x(b, i);
    }
    const auto same = scores_of<T>(rotated, other, u);
    for (Index b = 0; b < 37; ++b)
      REQUIRE(static_cast<double>(same[b]) == Approx(static_cast<double>(direct[b])).margin(tolerance));
    x(5, 0) = std::numeric_limits<T>::quiet_NaN();
    const auto poisoned = scores_of<T>(model, x, u);
    frozen.forward(x, u, folded, ws);
    for (Index b = 0; b < 37; ++b) REQUIRE(std::isnan(poisoned[b]) == (b == 5));
    for (Index b = 0; b < 37; ++b) REQUIRE(std::isnan(folded[b]) == (b == 5));
  }
}

TEST_CASE("HarmonRank: shapes are checked", "[models][harmonrank]") {
  Random random = random_stream(934);
  CHECK_THAT(error_of([&] { HarmonRank<float>({.objectives = 2, .width = 6, .heads = 4}, random); }), contains("heads"));
  CHECK_THAT(error_of([&] { HarmonRank<float>({.objectives = 2, .relation_aware = false, .relation_agnostic = false}, random); }),
             contains("branch"));
  HarmonRank<float> model({.objectives = 2, .profile = 3, .width = 4}, random);
  HarmonRank<float>::Saved saved;
  Workspace ws;
  Matrix<float> x(2, 2, 0.5f), u(2, 4, 0.5f);
  Vector<float> s(2, 7.0f);
  CHECK_THAT(error_of([&] { model.forward(x, u, s, saved, ws); }), contains("HarmonRank::forward: u"));
  CHECK_THAT(error_of([&] { freeze(model).forward(x, u, s, ws); }), contains("FrozenHarmonRank::forward: u"));
  CHECK((s[0] == 7 && parameter_count(model) == 2 * 2 * 4 + 4 * 16 + 12 + 2 * 16 + 4 + 1 + 6 + 2));
  CHECK(scores_of<float>(model, MatrixView<const float>(nullptr, 0, 2), MatrixView<const float>(nullptr, 0, 3)).empty());
}
