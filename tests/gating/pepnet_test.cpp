// gate_nu.hpp, epnet.hpp, ppnet.hpp. Oracles: PyTorch's vectors (detach() as stop-gradient), the formulas in double one number at a
// time, the specification's golden numbers, central differences with the stopped copies held, algebra (gates of 1).
#include <recops/gating/epnet.hpp>
#include <recops/gating/ppnet.hpp>

#include "gating/golden_parts.hpp"
#include "support/allocations.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// gamma sigmoid(W relu(V [a | b] + c) + d)
template <class T>
Matrix<double> gates_of(const GateNu<T>& gate, const Matrix<double>& a, const Matrix<double>& b) {
  Matrix<double> input(a.rows(), a.cols() + b.cols());
  for (Index r = 0; r < a.rows(); ++r)
    for (Index j = 0; j < input.cols(); ++j) input(r, j) = j < a.cols() ? a(r, j) : b(r, j - a.cols());
  Matrix<double> h = linear_reference(input, gate.hidden.weight, gate.hidden.bias, 1);
  for (double& v : leaf_values(h)) v = v > 0 ? v : 0;
  Matrix<double> g = linear_reference(h, gate.output.weight, gate.output.bias, 1);
  for (double& v : leaf_values(g)) v = gate.options.gamma / (1 + std::exp(-v));
  return g;
}

/// The towers on x with gates that read `context` in place of x.
template <class T>
Matrix<double> ppnet_reference(const Ppnet<T>& layer, const Matrix<double>& x, const Matrix<double>& prior,
                               const Matrix<double>& context) {
  Matrix<double> at = x;
  for (std::size_t l = 0; l < layer.towers.size(); ++l) {
    const Matrix<double> g = gates_of(layer.gates[l], prior, context);
    at = linear_reference(at, layer.towers[l].weight, layer.towers[l].bias, l == 0 ? 1 : layer.tasks);
    for (Index i = 0; i < at.rows() * at.cols(); ++i) at.data()[i] = g.data()[i] * (at.data()[i] > 0 ? at.data()[i] : 0);
  }
  return layer.head.weight.rows() == 0 ? at : linear_reference(at, layer.head.weight, layer.head.bias, layer.tasks);
}

template <class T>
Matrix<double> exact(MatrixView<const T> m) {
  Matrix<double> r(m.rows(), m.cols());
  for (Index i = 0; i < m.rows(); ++i)
    for (Index j = 0; j < m.cols(); ++j) r(i, j) = static_cast<double>(m(i, j));
  return r;
}

/// Gates that are far from 1 and have a bias.
template <class T>
void shake(GateNu<T>& gate, Random& random) {
  for (T& w : leaf_values(gate.output.weight)) w *= T(10);
  for (T& b : gate.output.bias) b = static_cast<T>(random.uniform(-1, 1));
}

std::vector<PpnetSpec> specs() {
  return {{.inputs = 7, .prior = 3, .tasks = 3, .widths = {5, 4}, .outputs = 2, .gate_width = 6},
          {.inputs = 1, .prior = 1, .tasks = 1, .widths = {1}, .outputs = 0},
          {.inputs = 17, .prior = 9, .tasks = 2, .widths = {33, 8, 3}, .outputs = 1, .gate_width = 11, .gamma = 3},
          {.inputs = 16, .prior = 8, .tasks = 4, .widths = {16}, .outputs = 0, .gate_width = 8}};
}
template <class T>
Ppnet<T> make(const PpnetSpec& spec, Random& random) {
  Ppnet<T> layer(spec, random);
  for (GateNu<T>& g : layer.gates) shake(g, random);
  return layer;
}

}  // namespace

TEST_CASE("GateNu, EPNet and PPNet equal PyTorch with detach() where the paper stops the gradient", "[gating][pepnet]") {
  const Golden golden("pepnet");
  Random random(1);
  Workspace ws;
  GateNu<double> gate(7, 11, 5, random, {.gamma = 3});
  CHECK(distance_to_golden<double>(golden, "gate_nu", gate) < 1e-12);
  for (const std::string name : {"pepnet", "plain"}) {
    const bool whole = name == "pepnet";
    Epnet<double> ep({.embeddings = 10, .domain = 3, .hidden_width = 6, .options = {.gate_sees_embedding = whole}}, random);
    Ppnet<double> pp({.inputs = 10, .prior = 4, .tasks = 3, .widths = {9, 5}, .outputs = whole ? 2 : 0, .gate_width = 7}, random);
    set_parameters<double>(golden, name + ".ep.", ep);
    set_parameters<double>(golden, name + ".pp.", pp);
    const auto e = golden.matrix<double>(name + ".e"), d = golden.matrix<double>(name + ".d"),
               p = golden.matrix<double>(name + ".p"), dy = golden.matrix<double>(name + ".dy");
    Padded<double> o(8, 10), y(8, pp.output_cols()), dp(8, 4), de(8, 10), dd(8, 3);
    Epnet<double>::Saved saved_e;
    Ppnet<double>::Saved saved_p;
    auto ge = make_gradient(ep);
    auto gp = make_gradient(pp);
    ep.forward(e, d, o, saved_e, Step{}, ws);
    pp.forward(o, p, y, saved_p, Step{}, ws);
    CHECK(distance<double>(golden, name + ".o", o) < 1e-13);
    CHECK(distance<double>(golden, name + ".y", y) < 1e-13);
    for (int twice = 0; twice < 2; ++twice) {
      Padded<double> d_o(8, 10);
      pp.backward(o, p, dy, saved_p, d_o, dp, gp, ws);
      CHECK(distance<double>(golden, name + ".do", d_o) < 1e-13);
      ep.backward(e, d, d_o, saved_e, de, dd, ge, ws);
      CHECK(d_o.intact());
    }
    CHECK(distance<double>(golden, name + ".dp", dp, 2) < 1e-13);
    CHECK(distance<double>(golden, name + ".de", de, 2) < 1e-13);
    CHECK(distance<double>(golden, name + ".dd", dd, 2) < 1e-13);
    CHECK(gradient_distance(golden, name + ".ep.", ge, 2) < 1e-12);
    CHECK(gradient_distance(golden, name + ".pp.", gp, 2) < 1e-12);
    CHECK((o.intact() && y.intact() && dp.intact() && de.intact() && dd.intact()));
    Padded<double> served(8, 10), out(8, pp.output_cols()), gates(8, 10);
    freeze(ep).forward(e, d, served, ws, gates);
    freeze(pp).forward(served, p, out, ws);
    CHECK(distance<double>(golden, name + ".y", out) < 1e-13);
    CHECK(max_difference(gates.view(), saved_e.gates.view()) < 1e-14);
  }
}

TEST_CASE("EPNet then PPNet give the specification's golden numbers (G4)", "[gating][pepnet]") {
  Random random(1);
  Workspace ws;
  Epnet<double> ep({.embeddings = 6, .domain = 2, .hidden_width = 5}, random);
  Ppnet<double> pp({.inputs = 6, .prior = 2, .tasks = 2, .widths = {3}, .outputs = 0, .gate_width = 5}, random);
  const auto vector = [](const Matrix<double>& m) {
    Vector<double> v(m.cols());
    std::copy_n(m.data(), m.cols(), v.data());
    return v;
  };
  const auto set = [&](GateNu<double>& g, Index i) {
    g.hidden.weight = transpose(fill(i, 8, 5));
    g.hidden.bias = vector(fill(i + 1, 1, 5));
    g.output.weight = transpose(fill(i + 2, 5, 6));
    g.output.bias = vector(fill(i + 3, 1, 6));
  };
  set(ep.gate, 14);
  set(pp.gates[0], 18);
  for (Index t = 0; t < 2; ++t) {
    const Matrix<double> w = transpose(fill(22 + t, 6, 3)), b = fill(24 + t, 1, 3);
    std::copy_n(w.data(), 18, pp.towers[0].weight.data() + 18 * t);
    std::copy_n(b.data(), 3, pp.towers[0].bias.data() + 3 * t);
  }
  const Matrix<double> e = fill(1, 4, 6), d = fill(12, 4, 2), p = fill(13, 4, 2), dy = fill(99, 4, 6);
  Matrix<double> o(4, 6), y(4, 6), d_o(4, 6, 0.0), de(4, 6, 0.0);
  Epnet<double>::Saved saved_e;
  Ppnet<double>::Saved saved_p;
  auto ge = make_gradient(ep);
  auto gp = make_gradient(pp);
  ep.forward(e, d, o, saved_e, Step{}, ws);
  pp.forward(o, p, y, saved_p, Step{}, ws);
  pp.backward(o, p, dy, saved_p, d_o, {}, gp, ws);
  ep.backward(e, d, d_o, saved_e, de, {}, ge, ws);
  double sum = 0, sum_de = 0, size_de = 0;
  for (const double v : leaf_values(y)) sum += v;
  for (const double v : leaf_values(de)) sum_de += v, size_de += std::abs(v);
  CHECK(y(0, 0) == Approx(0).margin(1e-12));
  CHECK(sum == Approx(3.0551884816).margin(1e-9));
  CHECK(inner(y.view(), dy.view()) == Approx(0.0964325601).margin(1e-9));
  CHECK(de(0, 0) == Approx(0.0436000).margin(1e-6));
  CHECK(sum_de == Approx(1.5258019).margin(1e-6));
  CHECK(size_de == Approx(2.7129576).margin(1e-6));
}

TEMPLATE_TEST_CASE("EPNet and PPNet equal their formulas, serving, training and frozen", "[gating][pepnet]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  Random random = random_stream(401);
  Workspace ws;
  for (const PpnetSpec& spec : specs()) {
    const Ppnet<T> pp = make<T>(spec, random);
    Epnet<T> ep({.embeddings = spec.inputs, .domain = spec.prior, .hidden_width = 3}, random);
    shake(ep.gate, random);
    const auto served = freeze(pp);
    const auto served_ep = freeze(ep);
    for (const Index rows : {0, 1, 5, 97}) {
      CAPTURE(spec.inputs, rows);
      Padded<T> x(random_matrix<T>(rows, spec.inputs, random).view()), p(random_matrix<T>(rows, spec.prior, random).view());
      Padded<T> o(rows, spec.inputs, T(5)), y(rows, pp.output_cols(), T(5));
      const Matrix<double> x1 = exact<T>(x), p1 = exact<T>(p), expected = ppnet_reference(pp, x1, p1, x1);
      Matrix<double> scaled = gates_of(ep.gate, p1, x1);
      for (Index i = 0; i < rows * spec.inputs; ++i) scaled.data()[i] *= x1.data()[i];
      const auto compare = [&] {
        CHECK(max_difference(o.view(), scaled.view()) < tolerance);
        CHECK(max_difference(y.view(), expected.view()) < tolerance);
        CHECK((o.intact() && y.intact()));
        o = Padded<T>(rows, spec.inputs, T(5));
        y = Padded<T>(rows, pp.output_cols(), T(5));
      };
      ep.forward(x, p, o, ws);
      pp.forward(x, p, y, ws);
      compare();
      typename Epnet<T>::Saved saved_e;
      typename Ppnet<T>::Saved saved_p;
      ep.forward(x, p, o, saved_e, Step{}, ws);
      pp.forward(x, p, y, saved_p, Step{}, ws);
      compare();
      for (const auto& g : saved_p.gates)
        for (const T v : leaf_values(g.gates)) CHECK((v >= T(0) && v <= static_cast<T>(spec.gamma)));
      served_ep.forward(x, p, o, ws);
      served.forward(x, p, y, ws);
      compare();
    }
  }
}

TEST_CASE("EPNet and PPNet pass the gradient check with what the gates read as context held", "[gating][pepnet]") {
  Random random = random_stream(402);
  Workspace ws;
  for (const PpnetSpec& spec : specs()) {
    Ppnet<double> pp = make<double>(spec, random);
    const Index rows = 6;
    Matrix<double> x = random_matrix<double>(rows, spec.inputs, random), p = random_matrix<double>(rows, spec.prior, random),
                   y(rows, pp.output_cols());
    const Matrix<double> context = x, dy = random_matrix<double>(rows, pp.output_cols(), random);
    Ppnet<double>::Saved saved;
    auto gradient = make_gradient(pp);
    Matrix<double> dx(rows, spec.inputs, 0.0), dp(rows, spec.prior, 0.0);
    pp.forward(x, p, y, saved, Step{}, ws);
    pp.backward(x, p, dy, saved, dx, dp, gradient, ws);
    const auto loss = [&] { return inner(ppnet_reference(pp, x, p, context).view(), dy.view()); };
    GradientReport report;
    check_gradient("x", leaf_values(x), VectorView<const double>(leaf_values(dx)), loss, report);
    check_gradient("prior", leaf_values(p), VectorView<const double>(leaf_values(dp)), loss, report);
    check_parameters(pp, gradient, loss, report);
    CAPTURE(spec.inputs, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);

    Epnet<double> ep({.embeddings = spec.inputs, .domain = spec.prior, .hidden_width = 4, .options = {.gamma = spec.gamma}},
                     random);
    shake(ep.gate, random);
    Epnet<double>::Saved saved_e;
    auto ge = make_gradient(ep);
    const Matrix<double> d_o = random_matrix<double>(rows, spec.inputs, random);
    Matrix<double> o(rows, spec.inputs);
    dx.fill(0);
    dp.fill(0);
    ep.forward(x, p, o, saved_e, Step{}, ws);
    ep.backward(x, p, d_o, saved_e, dx, dp, ge, ws);
    const auto loss_e = [&] {
      Matrix<double> out = gates_of(ep.gate, p, context);
      for (Index i = 0; i < out.rows() * out.cols(); ++i) out.data()[i] *= x.data()[i];
      return inner(out.view(), d_o.view());
    };
    GradientReport report_e;
    check_gradient("x", leaf_values(x), VectorView<const double>(leaf_values(dx)), loss_e, report_e);
    check_gradient("domain", leaf_values(p), VectorView<const double>(leaf_values(dp)), loss_e, report_e);
    check_parameters(ep, ge, loss_e, report_e);
    CAPTURE(report_e.where, report_e.numeric, report_e.analytic);
    CHECK(report_e.worst < 2e-6);
  }
}

TEMPLATE_TEST_CASE("PEPNet: gates whose last layer is 0 change no bit", "[gating][pepnet]", float, double) {
  using T = TestType;
  Random random = random_stream(403);
  Workspace ws;
  const Index rows = 13;
  Epnet<T> ep({.embeddings = 19, .domain = 4}, random);
  Ppnet<T> pp({.inputs = 19, .prior = 5, .tasks = 2, .widths = {11, 6}, .outputs = 1, .gate_width = 8}, random);
  ep.gate.output.weight.fill(T(0));
  for (GateNu<T>& g : pp.gates) g.output.weight.fill(T(0));
  const Matrix<T> x = random_matrix<T>(rows, 19, random), d = random_matrix<T>(rows, 4, random),
                  p = random_matrix<T>(rows, 5, random), other = random_matrix<T>(rows, 5, random);
  Matrix<T> o(rows, 19), y(rows, 2), z(rows, 2);
  ep.forward(x, d, o, ws);
  CHECK(max_difference(o.view(), x.view()) == 0);
  freeze(ep).forward(x, d, o, ws);
  CHECK(max_difference(o.view(), x.view()) == 0);
  pp.forward(x, p, y, ws);
  pp.forward(x, other, z, ws);
  CHECK(max_difference(y.view(), z.view()) == 0);
  // Two plain MLPs.
  const MatrixView<const T> in = x;
  Matrix<T> h(rows, 22), h2(rows, 12);
  simd::gemm<T>(simd::plain(in), simd::transposed(pp.towers[0].weight.view()),
                {.bias = pp.towers[0].bias.data(), .activation = Activation::relu}, h, ws);
  for (Index t = 0; t < 2; ++t) {
    const Index at = t * 6;
    simd::gemm<T>(simd::plain(h.view().middle_cols(t * 11, 11)), simd::transposed(pp.towers[1].weight.view().middle_rows(at, 6)),
                  {.bias = pp.towers[1].bias.data() + at, .activation = Activation::relu}, h2.view().middle_cols(at, 6), ws);
    simd::gemm<T>(simd::plain(h2.view().middle_cols(at, 6)), simd::transposed(pp.head.weight.view().middle_rows(t, 1)),
                  {.bias = pp.head.bias.data() + t}, z.view().middle_cols(t, 1), ws);
  }
  CHECK(max_difference(y.view(), z.view()) == 0);
}

TEST_CASE("PEPNet: same bits for any number of threads, no allocation once warm, frozen rows on their own", "[gating][pepnet]") {
  Random random = random_stream(404);
  Threads threads{3};
  const PpnetSpec spec{.inputs = 21, .prior = 6, .tasks = 3, .widths = {18, 7}, .outputs = 1, .gate_width = 9};
  const Ppnet<float> pp = make<float>(spec, random);
  const Epnet<float> ep({.embeddings = 21, .domain = 6}, random);
  const auto served = freeze(pp);
  const auto served_ep = freeze(ep);
  const Index rows = 230;
  Matrix<float> x = random_matrix<float>(rows, 21, random), p = random_matrix<float>(rows, 6, random);
  const Matrix<float> dy = random_matrix<float>(rows, 3, random);
  struct Run {
    Matrix<float> o, y, s, so, d_o, de, dp;
    Epnet<float>::Saved saved_e;
    Ppnet<float>::Saved saved_p;
    Epnet<float> ge;
    Ppnet<float> gp;
    Run(const Epnet<float>& e, const Ppnet<float>& q) : ge(make_gradient(e)), gp(make_gradient(q)) {}
  };
  const auto run = [&](Run& r, Index count, Workspace& ws) {
    const auto in = x.view().middle_rows(0, count), prior = p.view().middle_rows(0, count);
    for (Matrix<float>* m : {&r.o, &r.so, &r.d_o, &r.de}) m->resize(count, 21);
    for (Matrix<float>* m : {&r.y, &r.s}) m->resize(count, 3);
    r.dp.resize(count, 6);
    for (Matrix<float>* m : {&r.d_o, &r.de, &r.dp}) m->fill(0);
    zero_gradient(r.ge);
    zero_gradient(r.gp);
    ep.forward(in, prior, r.o, ws);
    pp.forward(r.o, prior, r.y, ws);
    ep.forward(in, prior, r.o, r.saved_e, Step{}, ws);
    pp.forward(r.o, prior, r.y, r.saved_p, Step{}, ws);
    pp.backward(r.o, prior, dy.view().middle_rows(0, count), r.saved_p, r.d_o, r.dp, r.gp, ws);
    ep.backward(in, prior, r.d_o, r.saved_e, r.de, r.dp, r.ge, ws);
    served_ep.forward(in, prior, r.so, ws);
    served.forward(r.so, prior, r.s, ws);
  };
  Workspace ws, wide(make_executor(threads, 3));
  Run a(ep, pp), b(ep, pp);
  run(a, rows, ws);
  run(b, rows, wide);
  CHECK(max_difference(a.y.view(), b.y.view()) == 0);
  CHECK(max_difference(a.s.view(), b.s.view()) == 0);
  CHECK(max_difference(a.de.view(), b.de.view()) == 0);
  CHECK(max_difference(a.dp.view(), b.dp.view()) == 0);
  CHECK((same_bits(a.ge, b.ge) && same_bits(a.gp, b.gp)));
  const Matrix<float> whole = a.s;
  const AllocationCounter counter;
  for (const Index count : {230, 1, 97}) run(a, count, ws);
  CHECK(counter.count() == 0);
  run(a, 1, ws);
  CHECK(max_difference(a.s.view(), whole.view().middle_rows(0, 1)) == 0);
  run(a, 5, ws);
  CHECK(max_difference(a.s.view(), whole.view().middle_rows(0, 5)) == 0);
  x(3, 4) = std::nanf("");
  run(b, rows, ws);
  for (Index r = 0; r < rows; ++r)
    CHECK(max_difference(b.s.view().middle_rows(r, 1), whole.view().middle_rows(r, 1)) == (r == 3 ? INFINITY : 0));
}

TEST_CASE("PEPNet says what is wrong and leaves outputs alone", "[gating][pepnet]") {
  Random random(1);
  Workspace ws;
  const Epnet<float> ep({.embeddings = 5, .domain = 2}, random);
  Ppnet<float> pp({.inputs = 5, .prior = 2, .tasks = 2, .widths = {4}}, random);
  const Matrix<float> x(3, 5, 1.0f), p(3, 2, 1.0f), wrong(3, 3, 1.0f);
  Matrix<float> o(3, 5, 7.0f), y(3, 2, 7.0f);
  CHECK(error_of([&] { ep.forward(x, wrong, o, ws); }).find("hidden_weight") != std::string::npos);
  CHECK(error_of([&] { ep.forward(wrong, p, o, ws); }).find("e: expected") != std::string::npos);
  CHECK(error_of([&] { freeze(ep).forward(x, wrong, o, ws); }).find("domain") != std::string::npos);
  CHECK(error_of([&] { pp.forward(x, wrong, y, ws); }).find("prior") != std::string::npos);
  CHECK(error_of([&] { freeze(pp).forward(wrong, p, y, ws); }).find("x: expected") != std::string::npos);
  CHECK(error_of([&] { pp.forward(x, p, o, ws); }).find("y: expected") != std::string::npos);
  Ppnet<float>::Saved saved;
  CHECK(error_of([&] {
          auto g = make_gradient(pp);
          pp.backward(x, p, y, saved, {}, {}, g, ws);
        }).find("saved") != std::string::npos);
  for (Linear<float> GateNu<float>::*part : {&GateNu<float>::hidden, &GateNu<float>::output})
    for (const Index size : {1, 99}) {
      Ppnet<float> bad = pp;
      (bad.gates[0].*part).bias = Vector<float>(size, 0.0f);
      CHECK(error_of([&] { bad.forward(x, p, y, ws); }).find("bias") != std::string::npos);
      CHECK(error_of([&] { (void)freeze(bad); }).find("bias") != std::string::npos);
    }
  pp.gates[0].options.gamma = 0;
  CHECK(error_of([&] { pp.forward(x, p, y, ws); }).find("gamma") != std::string::npos);
  CHECK(error_of([&] { freeze(pp); }).find("gamma") != std::string::npos);
  CHECK(error_of([&] { freeze(pp.gates[0]); }).find("gamma") != std::string::npos);
  CHECK(error_of([&] { Ppnet<float>({.inputs = 5, .widths = {}}, random); }).find("widths") != std::string::npos);
  for (const float v : leaf_values(o)) CHECK(v == 7.0f);
  for (const float v : leaf_values(y)) CHECK(v == 7.0f);
  static_assert(RowLayer<GateNu<float>, float>);
}

TEST_CASE("FrozenPpnet and FrozenEpnet in bfloat16 and int8 stay near float", "[gating][pepnet]") {
  Random random = random_stream(405);
  Workspace ws;
  const Ppnet<float> pp({.inputs = 64, .prior = 16, .tasks = 2, .widths = {32, 16}, .gate_width = 24}, random);
  const Epnet<float> ep({.embeddings = 64, .domain = 16}, random);
  const Matrix<float> x = random_matrix<float>(9, 64, random), p = random_matrix<float>(9, 16, random);
  Matrix<float> o(9, 64), o2(9, 64), y(9, 2), y2(9, 2);
  freeze(ep).forward(x, p, o, ws);
  freeze(pp).forward(x, p, y, ws);
  freeze(ep, Weights<BFloat16>()).forward(x, p, o2, ws);
  freeze(pp, Weights<BFloat16>()).forward(x, p, y2, ws);
  CHECK((max_difference(o.view(), o2.view()) < 0.02 && max_difference(y.view(), y2.view()) < 0.02));
  freeze(ep, Weights<std::int8_t>()).forward(x, p, o2, ws);
  freeze(pp, Weights<std::int8_t>()).forward(x, p, y2, ws);
  CHECK((max_difference(o.view(), o2.view()) < 0.05 && max_difference(y.view(), y2.view()) < 0.05));
}
