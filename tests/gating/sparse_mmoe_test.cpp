// route_topk.hpp, expert_plan.hpp, moe_dispatch.hpp, expert_choice.hpp, balance_loss.hpp, bias_controller.hpp, sparse_mmoe.hpp.
// Oracles: PyTorch's vectors (dense masks, autograd), the specification's golden numbers, Mmoe where k = E, central differences with
// choices that stay, brute force for plans.
#include <recops/gating/expert_choice.hpp>
#include <recops/gating/mmoe.hpp>
#include <recops/gating/sparse_mmoe.hpp>
#include <set>

#include "gating/golden_parts.hpp"
#include "support/allocations.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

using Choices = Matrix<std::int32_t>;

const std::pair<const char*, Routing> modes[] = {{"softmax_then_topk", Routing::softmax_then_topk},
                                                 {"topk_then_softmax", Routing::topk_then_softmax},
                                                 {"sigmoid", Routing::sigmoid}};

template <class T>
VectorView<const T> row_of(const Matrix<T>& m) {
  return VectorView<const T>(m.data(), m.cols());
}
bool same(const Choices& a, const Choices& b) { return max_difference(a.view(), b.view()) == 0; }

struct Totals {
  double first, sum, loss;
};
template <class A, class B>
Totals totals(MatrixView<A> y, MatrixView<B> dy) {
  double sum = 0;
  for (Index r = 0; r < y.rows(); ++r)
    for (Index j = 0; j < y.cols(); ++j) sum += static_cast<double>(y(r, j));
  return {static_cast<double>(y(0, 0)), sum, inner(y, dy)};
}

}  // namespace

TEMPLATE_TEST_CASE("Routers choose, weigh and differentiate as PyTorch does", "[gating][sparse]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  const Golden golden("sparse_moe");
  Workspace ws;
  const Matrix<T> bias = golden.matrix<T>("route.bias");
  for (const auto& mode : modes) {
    for (const bool biased : {false, true}) {
      const std::string name = std::string("route.") + mode.first + (biased ? ".1" : ".0");
      CAPTURE(name);
      const RouteOptions options{.k = 3, .routing = mode.second, .scale = mode.second == Routing::sigmoid ? 2.5 : 1.0};
      Padded<T> logits(golden.matrix<T>(name + ".logits").view()), weights(9, 3), dlogits(9, 7);
      Choices experts(9, 3);
      const Matrix<T> dw = golden.matrix<T>(name + ".dweights");
      route_topk<T>(logits, biased ? row_of(bias) : VectorView<const T>(), options, experts, weights, ws);
      CHECK(same(experts, golden.matrix<std::int32_t>(name + ".experts")));
      CHECK(distance<T>(golden, name + ".weights", weights) < tolerance);
      for (int twice = 0; twice < 2; ++twice) route_topk_backward<T>(logits, experts, weights, options, dw, dlogits, ws);
      CHECK(distance<T>(golden, name + ".dlogits", dlogits, 2) < tolerance);
      CHECK((weights.intact() && dlogits.intact()));
    }
  }
  Choices experts(8, 3);
  Matrix<T> weights(8, 3);
  route_topk<T>(golden.matrix<T>("groups.logits").view(), row_of(golden.matrix<T>("groups.bias")),
                {.k = 3, .routing = Routing::sigmoid, .groups = 4, .groups_kept = 2}, experts, weights, ws);
  CHECK(same(experts, golden.matrix<std::int32_t>("groups.experts")));
  CHECK(distance<T>(golden, "groups.weights", weights.view()) < tolerance);
}

TEST_CASE("Routers and losses give the specification's golden numbers (G5, G6)", "[gating][sparse]") {
  Workspace ws;
  Matrix<double> l = fill(26, 4, 5);
  for (double& v : leaf_values(l)) v *= 3;
  const Matrix<double> dy = fill(99, 4, 5), bias = fill(27, 1, 5);
  struct Case {
    Routing routing;
    double scale;
    Totals y, dl;  // of y: [0], sum, loss; of dl: [0], sum, sum of sizes
  };
  const Case cases[] = {{Routing::softmax_then_topk, 1, {0, 2.6132132819, 0.2435805474}, {0.0194236, 0, 0.5540844}},
                        {Routing::topk_then_softmax, 1, {0, 4, 0.3716365269}, {0, 0, 0.5042408}},
                        {Routing::sigmoid, 2.5, {0, 10, 0.2154944484}, {0, -0.1700790, 0.6890514}}};
  for (const Case& c : cases) {
    CAPTURE(static_cast<int>(c.routing));
    const RouteOptions options{.k = 2, .routing = c.routing, .scale = c.scale};
    Choices experts(4, 2);
    Matrix<double> w(4, 2), dw(4, 2), dl(4, 5, 0.0), y(4, 5, 0.0);
    route_topk<double>(l, c.routing == Routing::sigmoid ? row_of(bias) : VectorView<const double>(), options, experts, w, ws);
    for (Index r = 0; r < 4; ++r)
      for (Index j = 0; j < 2; ++j) y(r, experts(r, j)) = w(r, j), dw(r, j) = dy(r, experts(r, j));
    route_topk_backward<double>(l, experts, w, options, dw, dl, ws);
    const Totals t = totals(y.view(), dy.view()), d = totals(dl.view(), dl.view());
    double size = 0;
    for (const double v : leaf_values(dl)) size += std::abs(v);
    CHECK(t.first == Approx(c.y.first).margin(1e-12));
    CHECK(t.sum == Approx(c.y.sum).margin(1e-9));
    CHECK(t.loss == Approx(c.y.loss).margin(1e-9));
    CHECK(d.first == Approx(c.dl.first).margin(1e-6));
    CHECK(d.sum == Approx(c.dl.sum).margin(1e-6));
    CHECK(size == Approx(c.dl.loss).margin(1e-6));
    const std::set<int> expected[2][4] = {{{1, 2}, {0, 4}, {2, 3}, {2, 3}}, {{1, 2}, {0, 2}, {0, 2}, {1, 2}}};
    for (Index r = 0; r < 4; ++r)
      CHECK(std::set<int>{experts(r, 0), experts(r, 1)} == expected[c.routing == Routing::sigmoid][r]);
    if (c.routing != Routing::softmax_then_topk) continue;
    CHECK(switch_balance_value_and_grad<double>(l, experts, 0.01, true, {}, ws) == Approx(0.011439551934).margin(1e-11));
    CHECK(router_z_value_and_grad<double>(l, 1e-3, {}, ws) == Approx(0.003582826128).margin(1e-11));
  }
}

TEMPLATE_TEST_CASE("Routers: ties, NaN, extremes, all experts, no rows", "[gating][sparse]", float, double) {
  using T = TestType;
  Workspace ws;
  constexpr T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
  const Matrix<T> l{{1, 1, 1, 1, 1},
                    {nan, 2, nan, 2, 0},
                    {nan, nan, nan, nan, nan},
                    {T(1e4), T(-1e4), 0, T(1e4), T(-1e4)},
                    {-infinity, -infinity, -infinity, 3, -infinity}};
  const std::int32_t expected[5][3] = {{0, 1, 2}, {1, 3, 4}, {0, 1, 2}, {0, 3, 2}, {3, 0, 1}};
  for (const auto& mode : modes) {
    CAPTURE(mode.first);
    Choices experts(5, 3);
    Matrix<T> w(5, 3, T(7));
    route_topk<T>(l, {}, {.k = 3, .routing = mode.second}, experts, w, ws);
    for (Index r = 0; r < 5; ++r)
      for (Index j = 0; j < 3; ++j) CHECK(experts(r, j) == expected[r][j]);
    for (Index j = 0; j < 3; ++j) CHECK((std::isfinite(w(0, j)) && std::isfinite(w(3, j)) && std::isnan(w(2, j))));
    CHECK((w(0, 0) == w(0, 1) && w(0, 1) == w(0, 2) && w(4, 0) == Approx(1)));
    if (mode.second == Routing::sigmoid) {  // far below 0 the sigmoids themselves would be 0 / 0
      const Matrix<T> low{{T(-1000), T(-1001), T(-1000), T(-2000)}};
      Matrix<T> v(1, 2);
      Choices who(1, 2);
      route_topk<T>(low, {}, {.k = 2, .routing = mode.second}, who, v, ws);
      CHECK((who(0, 0) == 0 && who(0, 1) == 2 && v(0, 0) == T(0.5) && v(0, 1) == T(0.5)));
    }
    {  // a NaN of a kept group before any expert of a group that was dropped; nothing to choose from gives no weight
      const Matrix<T> last{{T(-5), T(-6), 1, nan}}, closed(1, 4, -infinity);
      Matrix<T> v(1, 2);
      Choices who(1, 2);
      route_topk<T>(last, {}, {.k = 2, .routing = mode.second, .groups = 2}, who, v, ws);
      CHECK((who(0, 0) == 2 && who(0, 1) == 3));
      route_topk<T>(closed, {}, {.k = 2, .routing = mode.second}, who, v, ws);
      CHECK((who(0, 0) == 0 && who(0, 1) == 1));
      if (mode.second != Routing::softmax_then_topk) CHECK((v(0, 0) == 0 && v(0, 1) == 0));
    }
    if (mode.second == Routing::topk_then_softmax) {  // a group with one number is better than one without
      const Matrix<T> one{{-infinity, -infinity, 5, -infinity}};
      const Vector<T> no_bias(4, T(0));
      Matrix<T> v(1, 1);
      Choices who(1, 1);
      route_topk<T>(one, no_bias, {.k = 1, .routing = mode.second, .groups = 2}, who, v, ws);
      CHECK((who(0, 0) == 2 && v(0, 0) == 1));
    }
    // A constant in the bias changes nothing, and weights do not depend on it.
    Random random = random_stream(421);
    const Matrix<T> some = random_matrix<T>(40, 5, random);
    const Vector<T> zero(5, T(0)), shifted(5, T(0.25)), tilted{T(0.1), T(-0.3), T(0.2), 0, T(0.05)};
    Choices a(40, 3), b(40, 3);
    Matrix<T> wa(40, 3), wb(40, 3);
    route_topk<T>(some, zero, {.k = 3, .routing = mode.second}, a, wa, ws);
    route_topk<T>(some, shifted, {.k = 3, .routing = mode.second}, b, wb, ws);
    CHECK((same(a, b) && max_difference(wa.view(), wb.view()) == 0));
    // All of them: the dense gate, whatever the bias.
    Choices all(40, 5);
    Matrix<T> w_all(40, 5);
    route_topk<T>(some, tilted, {.k = 5, .routing = mode.second}, all, w_all, ws);
    for (Index r = 0; r < 40; ++r) {
      double sum = 0;
      for (Index i = 0; i < 5; ++i)
        sum += mode.second == Routing::sigmoid ? 1 / (1 + std::exp(-static_cast<double>(some(r, i))))
                                               : std::exp(static_cast<double>(some(r, i)));
      for (Index j = 0; j < 5; ++j) {
        const auto x = static_cast<double>(some(r, all(r, j)));
        const double own = mode.second == Routing::sigmoid ? 1 / (1 + std::exp(-x)) : std::exp(x);
        CHECK(static_cast<double>(w_all(r, j)) == Approx(own / sum).epsilon(1e-5));
      }
    }
    Choices none(0, 3);
    Matrix<T> w_none(0, 3);
    route_topk<T>(MatrixView<const T>(nullptr, 0, 5), {}, {.k = 3, .routing = mode.second}, none, w_none, ws);
  }
}

TEST_CASE("Routers pass the gradient check where choices stay, and say what is wrong", "[gating][sparse]") {
  Random random = random_stream(422);
  Workspace ws;
  for (const auto& mode : modes) {
    for (const Index k : {1, 2, 6}) {
      const RouteOptions options{.k = k, .routing = mode.second, .scale = 1.7};
      Matrix<double> l = random_matrix<double>(5, 6, random), w(5, k);
      const Matrix<double> dw = random_matrix<double>(5, k, random);
      Matrix<double> dl(5, 6, 0.0);
      Choices experts(5, k);
      route_topk<double>(l, {}, options, experts, w, ws);
      route_topk_backward<double>(l, experts, w, options, dw, dl, ws);
      const auto loss = [&] {
        route_topk<double>(l, {}, options, experts, w, ws);
        return inner(w.view(), dw.view());
      };
      GradientReport report;
      check_gradient("l", leaf_values(l), VectorView<const double>(leaf_values(dl)), loss, report);
      CAPTURE(mode.first, k, report.where, report.numeric, report.analytic);
      CHECK(report.worst < 1e-6);
    }
  }
  const Matrix<float> l(3, 6, 0.0f);
  Choices experts(3, 2);
  Matrix<float> w(3, 2, 9.0f);
  const auto wrong = [&](const RouteOptions& o) { return error_of([&] { route_topk<float>(l, {}, o, experts, w, ws); }); };
  CHECK(wrong({.k = 0}).find("k: expected") != std::string::npos);
  CHECK(wrong({.k = 7}).find("k: expected") != std::string::npos);
  CHECK(wrong({.k = 2, .groups = 4}).find("divisor") != std::string::npos);
  CHECK(wrong({.k = 2, .groups = 6, .groups_kept = 1}).find("groups_kept") != std::string::npos);
  CHECK(wrong({.k = 2, .scale = 0}).find("scale") != std::string::npos);
  CHECK(wrong({.k = 2, .scale = 1e-300}).find("scale") != std::string::npos);  // 0 as a float
  CHECK(wrong({.k = 3}).find("experts: expected") != std::string::npos);
  CHECK(w(0, 0) == 9.0f);
}

TEMPLATE_TEST_CASE("Balance losses equal PyTorch's: values and gradients", "[gating][sparse]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  const Golden golden("sparse_moe");
  Workspace ws;
  const Matrix<T> l = golden.matrix<T>("switch.logits");
  const Choices experts = golden.matrix<std::int32_t>("switch.experts");
  Padded<T> d(11, 5);
  CHECK(switch_balance_value_and_grad<T>(l, experts, 0.01, true, d, ws) == Approx(golden.scalar("switch.value")).epsilon(1e-6));
  CHECK(distance<T>(golden, "switch.dlogits", d) < tolerance);
  CHECK(switch_balance_value_and_grad<T>(l, experts, 0.01, false, {}, ws) ==
        Approx(2 * golden.scalar("switch.value")).epsilon(1e-6));
  d = Padded<T>(11, 5);
  CHECK(router_z_value_and_grad<T>(l, 1e-3, d, ws) == Approx(golden.scalar("z.value")).epsilon(1e-6));
  CHECK(distance<T>(golden, "z.dlogits", d) < tolerance);
  const Matrix<T> masked(2, 3, -std::numeric_limits<T>::infinity());
  Matrix<T> dmasked(2, 3, T(0));
  CHECK(router_z_value_and_grad<T>(masked, 1e-3, dmasked, ws) == 0);
  for (const T v : leaf_values(dmasked)) CHECK(v == 0);
  d = Padded<T>(11, 5);
  const auto offsets = golden.values<std::int64_t>("sequence.offsets");
  CHECK(sequence_balance_value_and_grad<T>(JaggedView<const T>(l.view(), offsets), experts, 0.1, d, ws) ==
        Approx(golden.scalar("sequence.value")).epsilon(1e-6));
  CHECK(distance<T>(golden, "sequence.dlogits", d) < tolerance);
  CHECK(d.intact());
  const Matrix<T> closed{{T(-1e5), T(-1e5), T(-1e5)}, {1, 2, 3}};  // sigmoids that are all 0 have no shares
  const Choices ones(2, 1, 0);
  Matrix<T> dclosed(2, 3, T(0));
  CHECK(std::isfinite(sequence_balance_value_and_grad<T>(JaggedView<const T>(closed.view()), ones, 0.1, dclosed, ws)));
  for (Index i = 0; i < 3; ++i) CHECK((dclosed(0, i) == 0 && std::isfinite(dclosed(1, i)) && dclosed(1, i) != 0));
  Padded<T> dw(11, 2);
  CHECK(importance_value_and_grad<T>(golden.matrix<T>("importance.weights").view(), experts, 5, 0.1, dw, ws) ==
        Approx(golden.scalar("importance.value")).epsilon(1e-5));
  CHECK(distance<T>(golden, "importance.dweights", dw) < tolerance);
  const Matrix<T> clean = golden.matrix<T>("load.clean"), raw = golden.matrix<T>("load.raw"),
                  eps = golden.matrix<T>("load.epsilon");
  Matrix<T> noisy(11, 5), deviation(11, 5), dclean(11, 5, T(0)), dnoisy = golden.matrix<T>("load.dnoisy"), dd(11, 5, T(0)),
                                                                 draw(11, 5, T(0));
  noisy_logits<T>(clean, raw, eps, 1e-2, noisy, deviation);
  CHECK(distance<T>(golden, "load.noisy", noisy.view()) < 10 * tolerance);
  CHECK(distance<T>(golden, "load.deviation", deviation.view()) < 10 * tolerance);
  CHECK(load_balance_value_and_grad<T>(clean, noisy, deviation, golden.matrix<std::int32_t>("load.experts").view(), 0.2, dclean,
                                       dnoisy, dd, ws) == Approx(golden.scalar("load.value")).epsilon(1e-5));
  noisy_logits_backward<T>(raw, eps, dnoisy, dd, dclean, draw);
  CHECK(distance<T>(golden, "load.dclean", dclean.view()) < 10 * tolerance);
  CHECK(distance<T>(golden, "load.draw", draw.view()) < 10 * tolerance);
  // A deviation of 0 (no floor, softplus underflown): a step, whose gradient is 0, not NaN.
  const Matrix<T> sharp{{3, 1, 1, 0}}, still(1, 4, T(0));
  Choices top(1, 2);
  top(0, 0) = 0;
  top(0, 1) = 1;
  Matrix<T> ds(1, 4, T(0)), dn(1, 4, T(0)), dv(1, 4, T(0));
  CHECK(std::isfinite(load_balance_value_and_grad<T>(sharp, sharp, still, top, 0.2, ds, dn, dv, ws)));
  for (const Matrix<T>* m : {&ds, &dn, &dv})
    for (const T v : leaf_values(*m)) CHECK(v == 0);
  // A deviation so small that the distance in it overflows: as good as a step.
  const Matrix<T> apart{{3, 2, 1, 0}}, faint(1, 4, std::numeric_limits<T>::denorm_min());
  CHECK(std::isfinite(load_balance_value_and_grad<T>(apart, apart, faint, top, 0.2, ds, dn, dv, ws)));
  for (const Matrix<T>* m : {&ds, &dn, &dv})
    for (const T v : leaf_values(*m)) CHECK(v == 0);
  // A NaN logit shows.
  Matrix<T> ill{{3, 2, 1, 0}, {3, 2, 1, 0}}, wide(2, 4, T(1)), di(2, 4, T(0)), dj(2, 4, T(0)), dk(2, 4, T(0));
  ill(0, 3) = std::numeric_limits<T>::quiet_NaN();
  Choices tops(2, 2);
  for (Index r = 0; r < 2; ++r)
    for (Index j = 0; j < 2; ++j) tops(r, j) = static_cast<std::int32_t>(j);
  CHECK(std::isnan(load_balance_value_and_grad<T>(ill, ill, wide, tops, 0.2, di, dj, dk, ws)));
  CHECK(std::isnan(di(0, 3)));
  for (const Index i : {0, 1, 2}) {  // of the noise alone too: of who was chosen, who comes next, and the others
    const Matrix<T> plain{{3, 2, 1}}, even{{1, 1, 1}};
    Matrix<T> drawn = plain;
    for (Index j = i; j < 3; ++j) drawn(0, j) = std::numeric_limits<T>::quiet_NaN();
    const Matrix<std::int32_t> first{{0}};
    CHECK(std::isnan(load_balance_value_and_grad<T>(plain, drawn, even, first, 0.2, {}, {}, {}, ws)));
  }
  // Sigmoids that are hardly numbers still have shares.
  const Matrix<T> low(2, 4, std::is_same_v<T, float> ? T(-95) : T(-715));
  Matrix<T> dlow(2, 4, T(0));
  const std::vector<std::int32_t> one_sequence = {0, 2};
  CHECK(std::isfinite(sequence_balance_value_and_grad<T>(JaggedView<const T>(low, one_sequence), tops, 0.1, dlow, ws)));
  for (const T v : leaf_values(dlow)) CHECK(std::isfinite(v));
  // Equal shares: alpha, exactly as the paper says; no rows: 0.
  const Matrix<T> flat(10, 5, T(0));
  Choices even(10, 2);
  for (Index r = 0; r < 10; ++r)
    for (Index j = 0; j < 2; ++j) even(r, j) = static_cast<std::int32_t>((2 * r + j) % 5);
  CHECK(switch_balance_value_and_grad<T>(flat, even, 0.01, true, {}, ws) == Approx(0.01));
  CHECK(switch_balance_value_and_grad<T>(flat.view().middle_rows(0, 0), even.view().middle_rows(0, 0), 0.01, true, {}, ws) == 0);
  even(9, 1) = 5;
  CHECK(error_of([&] { switch_balance_value_and_grad<T>(flat, even, 0.01, true, {}, ws); }).find("below 5") != std::string::npos);
}

TEST_CASE("A plan holds every choice once, experts in blocks, rows in order, and drops what does not fit", "[gating][sparse]") {
  Random random = random_stream(423);
  Workspace ws;
  for (const Index experts : {1, 3, 64}) {
    for (const Index capacity : {0, 2}) {
      for (const Index n : {0, 1, 40}) {
        const Index k = 4;
        Choices choices(n, k);
        for (Index i = 0; i < n * k; ++i) choices.data()[i] = static_cast<std::int32_t>(random.below(experts + 1)) - 1;
        const auto mark = ws.mark();
        const ExpertPlan plan = plan_choices(choices, experts, capacity, ws);
        std::vector<std::vector<Index>> expected(static_cast<std::size_t>(experts));
        Index dropped = 0;
        for (Index r = 0; r < n; ++r) {
          std::set<std::int32_t> own(choices.row(r), choices.row(r) + k);
          own.erase(-1);
          for (const std::int32_t e : own) {
            auto& list = expected[static_cast<std::size_t>(e)];
            if (capacity > 0 && static_cast<Index>(list.size()) >= capacity) {
              ++dropped;
            } else {
              list.push_back(r);
            }
          }
        }
        CHECK((plan.experts() == experts && plan.rows() == n && plan.dropped == dropped));
        Index slots = 0;
        for (Index e = 0; e < experts; ++e) {
          const auto& list = expected[static_cast<std::size_t>(e)];
          REQUIRE(plan.count(e) == static_cast<Index>(list.size()));
          for (Index i = 0; i < plan.count(e); ++i) CHECK(plan.row[plan.begin[e] + i] == list[static_cast<std::size_t>(i)]);
          slots += plan.count(e);
        }
        CHECK(plan.slots() == slots);
        for (Index r = 0; r < n; ++r) {
          std::set<std::int32_t> own, by_entry;
          for (Index i = plan.row_begin[r]; i < plan.row_begin[r + 1]; ++i) {
            CHECK(plan.row[plan.slot[i]] == r);
            CHECK(own.insert(plan.slot[i]).second);
          }
          for (Index j = 0; j < k; ++j)
            if (plan.entry(r, j) >= 0) {
              by_entry.insert(plan.entry(r, j));
              const Index s = plan.entry(r, j), e = choices(r, j);
              CHECK((plan.begin[e] <= s && s < plan.begin[e + 1] && plan.row[s] == r));
            }
          CHECK(own == by_entry);
        }
      }
    }
  }
  Choices bad(2, 2, 0);
  bad(1, 0) = 3;
  CHECK(error_of([&] { plan_choices(bad, 3, 0, ws); }).find("below 3") != std::string::npos);
  CHECK(error_of([&] { plan_choices(bad, 4, -1, ws); }).find("capacity") != std::string::npos);
}

TEST_CASE("Expert choice equals PyTorch through its experts, forward and backward", "[gating][sparse]") {
  const Golden golden("sparse_moe");
  Workspace ws;
  const auto x = golden.matrix<double>("choice.x"), dy = golden.matrix<double>("choice.dy"),
             gate = golden.matrix<double>("choice.gate"), weight = golden.matrix<double>("choice.weight"),
             bias = golden.matrix<double>("choice.bias");
  const Index cap = expert_capacity(10, 4, 2);
  CHECK((cap == 5 && expert_capacity(10, 4, 100) == 10 && expert_capacity(0, 4, 2) == 0));
  Matrix<double> logits(10, 4), s(4, cap), z(20, 3), y(10, 3), dz(20, 3, 0.0), ds(4, cap, 0.0), dl(10, 4, 0.0), dx(10, 6, 0.0),
      dgate(4, 6, 0.0), dweight(12, 6, 0.0);
  Vector<double> dbias(12, 0.0);
  Choices chosen(4, cap);
  linear<double>(x, gate, {}, logits, ws);
  route_expert_choice<double>(logits, chosen, s, ws);
  CHECK(same(chosen, golden.matrix<std::int32_t>("choice.chosen")));
  const auto mark = ws.mark();
  const ExpertPlan plan = plan_expert_choice(chosen, 10, ws);
  grouped_linear<double>(x, false, plan, weight, VectorView<const double>(bias.data(), 12), Activation::relu, z, ws);
  combine_chosen<double>(z, plan, s, y, ws);
  CHECK(distance<double>(golden, "choice.y", y.view()) < 1e-14);
  combine_chosen_backward<double>(z, plan, s, dy, dz, ds, ws);
  for (Index i = 0; i < 60; ++i) dz.data()[i] = z.data()[i] > 0 ? dz.data()[i] : 0;
  grouped_linear_backward<double>(x, false, plan, weight, dz, dx, dweight, dbias, ws);
  route_expert_choice_backward<double>(logits, chosen, ds, dl, ws);
  linear_backward<double>(x, gate, dl, dx, dgate, {}, ws);
  CHECK(distance<double>(golden, "choice.dx", dx.view()) < 1e-13);
  CHECK(distance<double>(golden, "choice.dgate", dgate.view()) < 1e-13);
  CHECK(distance<double>(golden, "choice.dweight", dweight.view()) < 1e-13);
  const auto expected = golden.values<double>("choice.dbias");
  for (Index i = 0; i < 12; ++i) CHECK(dbias[i] == Approx(expected[static_cast<std::size_t>(i)]).margin(1e-13));
  // One expert that takes all is an MLP.
  Choices everyone(1, 10);
  Matrix<double> ones(1, 10);
  route_expert_choice<double>(logits.view().middle_cols(0, 1), everyone, ones, ws);
  for (const double w : leaf_values(ones)) CHECK(w == 1);
  CHECK(error_of([&] { route_expert_choice<double>(logits.view().middle_rows(0, 3), chosen, s, ws); }).find("capacity") !=
        std::string::npos);
  // A plan of rows that chose their experts fits in shape, not in meaning.
  const Choices crossed{{1, 2}, {0, 2}, {0, 1}};
  const ExpertPlan other = plan_choices(crossed, 3, 0, ws);
  const Matrix<double> six(6, 3, 1.0), each(3, 2, 1.0);
  Matrix<double> sums(3, 3, 7.0);
  CHECK(error_of([&] { combine_chosen<double>(six, other, each, sums, ws); }).find("plan_expert_choice") != std::string::npos);
  CHECK(sums(0, 0) == 7);
}

TEMPLATE_TEST_CASE("SparseMmoe equals PyTorch: outputs, choices, losses, every gradient; frozen", "[gating][sparse]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-12;
  const Golden golden("sparse_moe");
  Random random(1);
  Workspace ws;
  const SparseBalance all{.switch_loss = 0.5, .importance = 0.3, .z_loss = 0.1};
  const std::pair<const char*, SparseMmoeSpec> cases[] = {
      {"moe",
       {.inputs = 6,
        .experts = 5,
        .outputs = 4,
        .hidden = {8},
        .route = {.k = 1, .routing = Routing::softmax_then_topk},
        .balance = all}},
      {"mmoe", {.inputs = 6, .experts = 5, .outputs = 4, .tasks = 3, .route = {.k = 2}}},
      {"deepseek",
       {.inputs = 6,
        .experts = 5,
        .outputs = 4,
        .tasks = 2,
        .hidden = {7},
        .route = {.k = 3, .routing = Routing::sigmoid, .scale = 2},
        .balance = all}}};
  for (const auto& c : cases) {
    const std::string name = c.first;
    CAPTURE(name);
    SparseMmoe<T> layer(c.second, random);
    set_parameters<T>(golden, name + ".", layer);
    const Matrix<T> x = golden.matrix<T>(name + ".x"), dy = golden.matrix<T>(name + ".dy");
    const Index cols = layer.output_cols(6);
    Padded<T> y(12, cols), dx(12, 6), s(12, cols);
    typename SparseMmoe<T>::Saved saved;
    auto gradient = make_gradient(layer);
    layer.forward(x, y, saved, Step{}, ws);
    CHECK(same(saved.choices, golden.matrix<std::int32_t>(name + ".choices")));
    CHECK(distance<T>(golden, name + ".weights", saved.weights.view()) < tolerance);
    CHECK(distance<T>(golden, name + ".y", y) < tolerance);
    CHECK(saved.balance_loss == Approx(golden.scalar(name + ".balance")).epsilon(1e-5).margin(1e-12));
    for (int twice = 0; twice < 2; ++twice) layer.backward(x, dy, saved, dx, gradient, ws);
    CHECK(distance<T>(golden, name + ".dx", dx, 2) < tolerance);
    CHECK(gradient_distance(golden, name + ".", gradient, 2) < tolerance);
    layer.forward(x, s, ws);
    CHECK(distance<T>(golden, name + ".y", s) < tolerance);
    Choices who(12, layer.options.tasks * layer.options.route.k);
    freeze(layer).forward(x, s, ws, who);
    CHECK(distance<T>(golden, name + ".y", s) < tolerance);
    CHECK(same(who, saved.choices));
    CHECK((y.intact() && dx.intact() && s.intact()));
  }
}

TEST_CASE("SparseMmoe with all experts is Mmoe; a task's gates tied to another's compute nothing more", "[gating][sparse]") {
  Random random = random_stream(424);
  Workspace ws;
  const Mmoe<double> dense({.inputs = 7, .experts = 6, .outputs = 5, .tasks = 3}, random);
  SparseMmoe<double> sparse({.inputs = 7, .experts = 6, .outputs = 5, .tasks = 3, .route = {.k = 6}}, random);
  sparse.gates.weight = dense.gates.weight;
  sparse.experts[0].weight = dense.experts.weight;
  sparse.experts[0].bias = dense.experts.bias;
  const Matrix<double> x = random_matrix<double>(20, 7, random), dy = random_matrix<double>(20, 15, random);
  Matrix<double> y(20, 15), z(20, 15), dx(20, 7, 0.0), dx2(20, 7, 0.0);
  Mmoe<double>::Saved saved;
  SparseMmoe<double>::Saved saved2;
  auto g = make_gradient(dense);
  auto g2 = make_gradient(sparse);
  dense.forward(x, y, saved, Step{}, ws);
  sparse.forward(x, z, saved2, Step{}, ws);
  dense.backward(x, dy, saved, dx, g, ws);
  sparse.backward(x, dy, saved2, dx2, g2, ws);
  CHECK(max_difference(y.view(), z.view()) < 1e-14);
  CHECK(max_difference(dx.view(), dx2.view()) < 1e-13);
  CHECK(max_difference(g.gates.weight.view(), g2.gates.weight.view()) < 1e-13);
  CHECK(max_difference(g.experts.weight.view(), g2.experts[0].weight.view()) < 1e-13);
  for (Index i = 0; i < 42; ++i)
    for (Index t = 1; t < 3; ++t) sparse.gates.weight.data()[t * 42 + i] = sparse.gates.weight.data()[i];
  sparse.options.route.k = 2;
  sparse.forward(x, z, saved2, Step{}, ws);
  CHECK(saved2.pre[0].rows() == 40);
  CHECK(max_difference(z.view().middle_cols(0, 5), z.view().middle_cols(10, 5)) == 0);
}

TEST_CASE("SparseMmoe passes the gradient check: modes, noise, every balance loss, dropped rows", "[gating][sparse]") {
  Random random = random_stream(425);
  Workspace ws;
  const SparseMmoeSpec specs[] = {
      {.inputs = 5,
       .experts = 4,
       .outputs = 3,
       .tasks = 2,
       .hidden = {6},
       .activation = Activation::silu,
       .output_activation = Activation::none},
      {.inputs = 5, .experts = 4, .outputs = 3, .route = {.k = 1, .routing = Routing::softmax_then_topk}, .capacity_factor = 0.6},
      {.inputs = 5,
       .experts = 4,
       .outputs = 3,
       .tasks = 2,
       .output_activation = Activation::tanh,
       .noise = true,
       .balance = {.switch_loss = 0.7, .importance = 0.4, .load = 0.9, .z_loss = 0.3}}};
  for (const SparseMmoeSpec& spec : specs) {
    SparseMmoe<double> layer(spec, random);
    layer.gates.weight = random_matrix<double>(layer.gates.weight.rows(), 5, random);
    if (spec.noise) layer.noise.weight = random_matrix<double>(layer.noise.weight.rows(), 5, random);
    Matrix<double> x = random_matrix<double>(9, 5, random), y(9, layer.output_cols(5)), dx(9, 5, 0.0);
    const Matrix<double> dy = random_matrix<double>(9, y.cols(), random);
    const Step step{3, 4, 5};
    SparseMmoe<double>::Saved saved;
    auto gradient = make_gradient(layer);
    layer.forward(x, y, saved, step, ws);
    CHECK((saved.dropped > 0) == (spec.capacity_factor > 0));
    layer.backward(x, dy, saved, dx, gradient, ws);
    const auto loss = [&] {
      layer.forward(x, y, saved, step, ws);
      return inner(y.view(), dy.view()) + saved.balance_loss;
    };
    GradientReport report;
    check_gradient("x", leaf_values(x), VectorView<const double>(leaf_values(dx)), loss, report);
    check_parameters(layer, gradient, loss, report);
    CAPTURE(spec.noise, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
  }
}

TEST_CASE("SparseMmoe without experts has no outputs, and everything that computes refuses it", "[gating][sparse][errors]") {
  Random random = random_stream(428);
  Workspace ws;
  SparseMmoe<float> layer({.inputs = 3, .experts = 2, .outputs = 4, .capacity_factor = 1}, random);
  const Matrix<float> x(5, 3, 1.0f);
  Matrix<float> y(5, 4, 9.0f);
  for (const Index experts : {0, -2}) {
    CAPTURE(experts);
    layer.options.experts = experts;
    CHECK((layer.outputs() == 0 && layer.output_cols(3) == 0 && layer.capacity(5) == 0));
    SparseMmoe<float>::Saved saved;
    auto gradient = zeros_like(layer);
    CHECK_THAT(error_of([&] { layer.forward(x, y, ws); }), contains("SparseMmoe::forward: experts: expected 1 to 65536"));
    CHECK_THAT(error_of([&] { layer.forward(x, y, saved, Step{}, ws); }), contains("SparseMmoe::forward: experts: expected"));
    CHECK_THAT(error_of([&] { layer.backward(x, y, saved, {}, gradient, ws); }), contains("experts: expected 1 to 65536"));
    CHECK_THAT(error_of([&] { (void)freeze(layer); }), contains("freeze(SparseMmoe): experts: expected 1 to 65536"));
    CHECK_THAT(error_of([&] { SparseMmoe<float>({.inputs = 3, .experts = experts, .outputs = 4}, random); }),
               contains("SparseMmoe: experts: expected 1 to 65536"));
  }
  CHECK(y(4, 3) == 9.0f);
}

TEST_CASE("SparseMmoe: same bits for any number of threads, no allocation once warm, rows on their own, NaN stays",
          "[gating][sparse]") {
  Random random = random_stream(426);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  const SparseMmoe<float> layer({.inputs = 19,
                                 .experts = 8,
                                 .outputs = 11,
                                 .tasks = 2,
                                 .hidden = {13},
                                 .route = {.k = 2, .routing = Routing::sigmoid, .scale = 2, .groups = 4, .groups_kept = 2},
                                 .noise = true,
                                 .bias_step = 0.01,
                                 .balance = {.switch_loss = 0.01, .importance = 0.01}},
                                random);
  static_assert(RowLayer<SparseMmoe<float>, float>);
  const auto served = freeze(layer);
  const Index rows = 230;
  Matrix<float> x = random_matrix<float>(rows, 19, random);
  const Matrix<float> dy = random_matrix<float>(rows, 22, random);
  Matrix<float> y(rows, 22), y2(rows, 22), dx(rows, 19, 0.0f), dx2(rows, 19, 0.0f), s(rows, 22), s2(rows, 22);
  SparseMmoe<float>::Saved saved, saved2;
  auto g = make_gradient(layer), g2 = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  layer.forward(x, y2, saved2, Step{}, wide);
  layer.backward(x, dy, saved2, dx2, g2, wide);
  served.forward(x, s, ws);
  served.forward(x, s2, wide);
  CHECK((max_difference(y.view(), y2.view()) == 0 && max_difference(dx.view(), dx2.view()) == 0));
  CHECK((same_bits(g, g2) && max_difference(s.view(), s2.view()) == 0));
  layer.forward(x, y, ws);
  const AllocationCounter counter;
  for (const Index count : {230, 1, 100}) {
    const auto in = x.view().middle_rows(0, count);
    layer.forward(in, y.view().middle_rows(0, count), ws);
    served.forward(in, y.view().middle_rows(0, count), ws);
    layer.forward(in, y.view().middle_rows(0, count), saved, Step{}, ws);
    layer.backward(in, dy.view().middle_rows(0, count), saved, dx.view().middle_rows(0, count), g, ws);
  }
  CHECK(counter.count() == 0);
  Matrix<float> one(1, 22);
  for (const Index r : {0, 100, 229}) {
    served.forward(x.view().middle_rows(r, 1), one, ws);
    CHECK(max_difference(one.view(), s.view().middle_rows(r, 1)) == 0);
  }
  x(7, 3) = std::nanf("");
  served.forward(x, s2, ws);
  for (Index r = 0; r < rows; ++r)
    CHECK(max_difference(s.view().middle_rows(r, 1), s2.view().middle_rows(r, 1)) == (r == 7 ? INFINITY : 0));
  freeze(layer, Weights<BFloat16>()).forward(x.view().middle_rows(100, 50), s2.view().middle_rows(0, 50), ws);
  CHECK(max_difference(s.view().middle_rows(100, 50), s2.view().middle_rows(0, 50)) < 0.05);
}

TEST_CASE("The bias controller evens out a lopsided router without touching weights", "[gating][sparse]") {
  Random random = random_stream(427);
  Workspace ws;
  const Index n = 512, experts = 16, k = 2;
  Matrix<float> logits = random_matrix<float>(n, experts, random), w(n, k);
  for (Index r = 0; r < n; ++r)
    for (Index e = 0; e < experts; ++e) logits(r, e) += 2 - 4 * static_cast<float>(e) / 15;
  BiasController<float> control(experts, 1e-3);
  Choices chosen(n, k);
  double first = 0, last = 0;
  for (int step = 0; step <= 1000; ++step) {
    Vector<Index> load(experts, Index{0});
    route_topk<float>(logits, control.bias, {.k = k, .routing = Routing::sigmoid}, chosen, w, ws);
    count_experts(chosen, load);
    last = max_violation(load);
    if (step == 0) first = last;
    control.update(load);
  }
  CAPTURE(first, last);
  CHECK((first > 2 && last < 0.1));
  const Vector<Index> even{4, 4, 4}, idle{0, 0}, one{6, 0, 0};
  CHECK((max_violation(even) == 0 && max_violation(idle) == 0 && max_violation(one) == 2));
  Vector<Index> short_load(3, Index{1});
  CHECK(error_of([&] { control.update(short_load); }).find("load") != std::string::npos);
  CHECK(error_of([&] { count_experts(chosen, short_load); }).find("below 3") != std::string::npos);
  CHECK(short_load[0] == 1);
  CHECK(error_of([&] {
          SparseMmoe<float>({.inputs = 3, .experts = 4, .outputs = 2, .balance = {.load = 1}}, random);
        }).find("noise") != std::string::npos);
  CHECK(error_of([&] {
          SparseMmoe<float>({.inputs = 3, .experts = 4, .outputs = 2, .noise = true, .bias_step = 0.1, .balance = {.load = 1}},
                            random);
        }).find("bias") != std::string::npos);
  CHECK(error_of([&] {
          SparseMmoe<float>({.inputs = 3, .experts = 4, .outputs = 2, .bias_step = -0.1}, random);
        }).find("bias_step") != std::string::npos);
  SparseMmoe<float> two({.inputs = 3, .experts = 4, .outputs = 2, .tasks = 2, .bias_step = 0.1}, random);
  SparseMmoe<float>::Saved other;
  other.load.resize(1, 4);
  CHECK(error_of([&] { two.update(other); }).find("saved.load") != std::string::npos);
  // Checked before anything is computed from the options.
  two.options.experts = 0;
  CHECK(error_of([&] { (void)freeze(two); }) == "freeze(SparseMmoe): experts: expected 1 to 65536, got 0");
  CHECK(error_of([&] { (void)freeze(SparseMmoe<float>()); }) ==
        "freeze(SparseMmoe): experts: expected one layer or more (was it made from a spec?), got 0");
}
