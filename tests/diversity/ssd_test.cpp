// Oracle: the published form in double: residuals of all candidates, projected step by step and given back when a direction leaves.
#include <recops/core/random.hpp>
#include <recops/diversity/dpp_map.hpp>
#include <recops/diversity/ssd.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/selectors.hpp"

using namespace recops;
using recops_test::Picks;

namespace {

using Row = std::vector<double>;

/// Scores of all items after `picks`: [N]; `first`: by relevance alone.
template <class T>
std::vector<double> scores_after(const recops_test::Request<T>& q, const SsdOptions& o, const std::vector<std::int32_t>& picks) {
  const Index n = q.relevance.size(), d = q.features.cols(), m = q.history.rows();
  const auto row = [&](MatrixView<const T> x, Index i) {
    Row out(static_cast<std::size_t>(d));
    double square = 0;
    for (Index c = 0; c < d; ++c) square += static_cast<double>(x(i, c)) * static_cast<double>(x(i, c));
    for (Index c = 0; c < d; ++c)
      out[static_cast<std::size_t>(c)] = static_cast<double>(x(i, c)) / (!o.normalize ? 1
                                                                         : square > 0 ? std::sqrt(square)
                                                                                      : INFINITY);
    return out;
  };
  const auto dot = [](const Row& a, const Row& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); };
  std::vector<Row> residual, kept, projections;
  for (Index i = 0; i < n; ++i) residual.push_back(row(q.features, i));
  double volume = o.gamma;
  for (Index s = o.window > 0 ? std::max(Index{0}, m - o.window) : 0; s < m + static_cast<Index>(picks.size()); ++s) {
    const Index pick = s < m ? -1 : picks[static_cast<std::size_t>(s - m)];
    Row u = pick < 0 ? row(q.history, s) : row(q.features, pick);
    const double before = std::sqrt(dot(u, u));
    if (pick >= 0 && o.mode == SsdMode::volume)
      volume *= std::sqrt(dot(residual[static_cast<std::size_t>(pick)], residual[static_cast<std::size_t>(pick)]));
    for (int sweep = 0; sweep < 2; ++sweep) {
      for (const Row& v : kept) {
        const double c = dot(u, v);
        for (std::size_t e = 0; e < u.size(); ++e) u[e] -= c * v[e];
      }
    }
    const double length = std::sqrt(dot(u, u));
    for (double& v : u) v = length > 1e-6 * before ? v / length : 0;
    if (o.window > 0 && static_cast<Index>(kept.size()) == o.window) {
      for (Index i = 0; i < n; ++i) {
        for (std::size_t e = 0; e < u.size(); ++e)
          residual[static_cast<std::size_t>(i)][e] += projections[0][static_cast<std::size_t>(i)] * kept[0][e];
      }
      kept.erase(kept.begin());
      projections.erase(projections.begin());
    }
    Row c;
    for (Row& x : residual) {
      c.push_back(dot(x, u));
      for (std::size_t e = 0; e < u.size(); ++e) x[e] -= c.back() * u[e];
    }
    kept.push_back(u);
    projections.push_back(c);
  }
  std::vector<double> out;
  for (Index i = 0; i < n; ++i) {
    const Row &x = residual[static_cast<std::size_t>(i)], whole = row(q.features, i);
    const bool something = dot(x, x) > detail::ssd_eps<T> * dot(whole, whole);
    out.push_back(static_cast<double>(q.relevance[i]) + (kept.empty() || !something ? 0 : volume * std::sqrt(dot(x, x))));
  }
  return out;
}

template <class T, class A = simd::DefaultArch>
Picks run(const SelectionInput<T>& in, const SsdOptions& o, Index k) {
  return recops_test::collect<T>(k, [&](auto picks, auto scores, Workspace& ws) { return ssd<T, A>(in, o, picks, scores, ws); });
}

}  // namespace

TEMPLATE_TEST_CASE("ssd picks what the published algorithm picks, whatever the evaluation", "[diversity][ssd]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 1);
  for (int trial = 0; trial < 60; ++trial) {
    const Index n = 1 + random.below(80), d = 1 + random.below(12), m = random.chance(0.3) ? random.below(6) : 0,
                k = 1 + random.below(std::min(n + 2, Index{24}));
    auto q = recops_test::normal_request<T>(random, n, d, m);
    for (Index i = 1; i < n; ++i) {
      if (random.chance(0.1)) std::copy_n(q.features.row(i - 1), d, q.features.row(i));
    }
    if (random.chance(0.3)) {
      q.allowed.resize(n);
      for (auto& a : q.allowed) a = random.chance(0.7);
    }
    SsdOptions o{.gamma = random.uniform(0, 2),
                 .window = random.chance(0.6) ? 1 + random.below(6) : 0,
                 .mode = random.chance(0.5) ? SsdMode::volume : SsdMode::norm,
                 .normalize = random.chance(0.5)};
    CAPTURE(trial, n, d, m, k, o.gamma, o.window, static_cast<int>(o.mode), o.normalize);
    o.evaluation = SelectionEvaluation::eager;
    const Picks eager = run<T>(q.input(), o, k);
    std::vector<std::int32_t> known{-1};
    std::vector<double> values;
    recops_test::check_best(q, eager, std::is_same_v<T, float> ? 2e-3 : 1e-6,
                            [&](const std::vector<std::int32_t>& picks, Index i, double& reported) {
                              if (picks != known) {
                                values = scores_after(q, o, picks);
                                known = picks;
                              }
                              return reported = values[static_cast<std::size_t>(i)];
                            });
    o.evaluation = SelectionEvaluation::lazy;
    CHECK(run<T>(q.input(), o, k) == eager);
  }
}

TEMPLATE_TEST_CASE("ssd: lazy and eager, packed and not: the same bits", "[diversity][ssd]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 2);
  for (const double spread : {0.0, 0.3, 3.0}) {
    auto q = recops_test::normal_request<T>(random, 700, 20, 2);
    for (auto& r : q.relevance) r *= static_cast<T>(spread);
    for (Index i = 100; i < 300; ++i) {  // many equals
      std::copy_n(q.features.row(i - 100), 20, q.features.row(i));
      q.relevance[i] = q.relevance[i - 100];
    }
    for (const Index window : {0, 4}) {
      for (const auto mode : {SsdMode::norm, SsdMode::volume}) {
        SsdOptions o{.gamma = 0.5, .window = window, .mode = mode, .normalize = true, .evaluation = SelectionEvaluation::eager};
        const Picks expected = run<T>(q.input(), o, 30);
        Panels<T> panels;
        panels.pack(q.features, {.normalize = true}, q.relevance);
        SelectionInput<T> packed = q.input();
        packed.features = {};
        packed.panels = panels;
        for (const auto evaluation : {SelectionEvaluation::eager, SelectionEvaluation::lazy}) {
          o.evaluation = evaluation;
          CHECK(run<T>(q.input(), o, 30) == expected);
          CHECK(run<T>(packed, o, 30) == expected);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("ssd at its limits", "[diversity][ssd]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 3);
  auto q = recops_test::normal_request<T>(random, 90, 12, 0);
  std::vector<std::int32_t> order(90);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return q.relevance[a] > q.relevance[b]; });
  CHECK(run<T>(q.input(), {.gamma = 0}, 90).items == order);
  CHECK(run<T>(q.input(), {.gamma = 1e-9}, 30).items == std::vector<std::int32_t>(order.begin(), order.begin() + 30));
  // A window is not that of a DPP; without one, and without relevance, the lists are equal.
  const Vector<T> ones(90, T(1));
  Workspace ws;
  Vector<std::int32_t> dpp(10), windowed(60);
  auto flat = q;
  flat.relevance.fill(T(0));
  flat.relevance[0] = T(1e-6);  // the first pick goes by relevance: row 0 for both
  dpp_map<T>(ones, q.features, {.normalize = true}, dpp, {}, ws);
  const auto no_window = run<T>(flat.input(), {.normalize = true}, 10).items;
  CHECK(no_window == std::vector<std::int32_t>(dpp.begin(), dpp.end()));
  dpp_map<T>(ones, q.features, {.window = 4, .normalize = true}, windowed, {}, ws);
  CHECK(run<T>(flat.input(), {.window = 3, .normalize = true}, 60).items !=
        std::vector<std::int32_t>(windowed.begin(), windowed.end()));
  recops_test::check_unsound_items<T>([](const SelectionInput<T>& in, Index k) { return run<T>(in, {.window = 4}, k).items; });
  for (const Index window : {0, 3}) {
    const SsdOptions o{.gamma = 0.5, .window = window, .normalize = true};
    const Picks expected = run<T>(q.input(), o, 20);
    recops_test::for_each_architecture(
        [&](auto arch) { CHECK(run<T, decltype(arch)>(q.input(), o, 20).items == expected.items); });
    recops_test::check_batch<T>(
        [&](const SelectionBatch<T>& batch, auto picks, auto scores, auto counts, Workspace& own) {
          ssd<T>(batch, o, picks, scores, counts, own);
        },
        [&](const SelectionInput<T>& in, auto picks, auto scores, Workspace& own) { return ssd<T>(in, o, picks, scores, own); });
  }
  // Long rows: the volume saturates, nothing becomes NaN.
  for (Index i = 0; i < 90 * 12; ++i) q.features.data()[i] *= T(1e4);
  for (const double s : run<T>(q.input(), {.mode = SsdMode::volume}, 90).scores) CHECK(std::isfinite(s));
}

TEST_CASE("ssd_backward agrees with central differences and adds", "[diversity][ssd]") {
  Random random(recops_test::seed(), 4);
  for (int trial = 0; trial < 12; ++trial) {
    auto q = recops_test::normal_request<double>(random, 12, 6, trial % 3);
    const SsdOptions o{.gamma = 0.5,
                       .window = trial % 2 == 0 ? 0 : 3,
                       .mode = trial % 4 < 2 ? SsdMode::norm : SsdMode::volume,
                       .normalize = trial % 5 != 0};
    CAPTURE(trial);
    recops_test::check_backward(
        q, 5, [&](auto picks, auto scores, Workspace& ws) { ssd<double>(q.input(), o, picks, scores, ws); },
        [&](auto picks, auto g, const SelectionGradient<double>& to, Workspace& ws) {
          ssd_backward<double>(q.input(), o, picks, g, to, ws);
        },
        [&](const std::vector<std::int32_t>& before, Index i) {
          return scores_after(q, o, before)[static_cast<std::size_t>(i)];
        });
  }
}

TEST_CASE("ssd_backward: a volume that was cut has no gradient there", "[diversity][ssd]") {
  Random random(recops_test::seed(), 31);
  constexpr Index n = 6, d = 8, k = 5;
  Matrix<double> x(n, d);
  for (Index i = 0; i < n * d; ++i) x.data()[i] = 1e60 * random.normal();  // the third volume exceeds 1e150
  const Vector<double> relevance(n, 0.0);
  Vector<std::int32_t> picks(k);
  Vector<double> up(k);
  for (double& g : up) g = random.normal();
  Workspace ws;
  const auto value = [&] {
    Vector<double> scores(k);
    ssd<double>(relevance, x, {}, picks, scores, ws);
    double sum = 0;
    for (Index t = 1; t < k; ++t) sum += up[t] * scores[t];
    return sum;
  };
  value();
  const Vector<std::int32_t> chosen = picks;
  Matrix<double> dx(n, d, 0.0);
  up[0] = 0;
  ssd_backward<double>(SelectionInput<double>{.relevance = relevance, .features = x}, {}, chosen, up, {.features = dx}, ws);
  for (Index i = 0; i < n * d; ++i) {
    const double was = x.data()[i], h = 1e54;
    x.data()[i] = was + h;
    const double above = value();
    REQUIRE(std::equal(picks.begin(), picks.end(), chosen.begin()));
    x.data()[i] = was - h;
    const double below = value();
    x.data()[i] = was;
    CHECK(dx.data()[i] == Approx((above - below) / (2 * h)).epsilon(1e-4).margin(1e146));
  }
}

TEMPLATE_TEST_CASE("ssd_backward: a row with nothing new is no direction, whatever rounding leaves of it", "[diversity][ssd]",
                   float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 77);
  Workspace ws;
  for (int trial = 0; trial < 20; ++trial) {
    Matrix<T> x = recops_test::random_matrix<T>(4, 6, random);
    for (Index d = 0; d < 6; ++d) x(1, d) = T(3.1) * x(0, d);
    const Vector<T> r(4, T(1)), g4{0, 0, 0, 1}, g3{0, 0, 1};
    const Vector<std::int32_t> with{0, 1, 2, 3}, without{0, 2, 3};
    Matrix<T> dx(4, 6, T(0)), expected(4, 6, T(0));
    const SelectionInput<T> in{.relevance = r, .features = x};
    ssd_backward<T>(in, {}, with, g4, {.features = dx}, ws);
    ssd_backward<T>(in, {}, without, g3, {.features = expected}, ws);
    CHECK(recops_test::max_difference(dx.view(), expected.view()) < (std::is_same_v<T, float> ? 1e-3 : 1e-10));
  }
}

TEST_CASE("ssd agrees with numpy", "[diversity][ssd]") {
  const recops_test::Golden golden("list_selectors");
  for (Index number = 0; number < static_cast<Index>(golden.scalar("ssd.cases")); ++number) {
    const std::string name = "ssd." + std::to_string(number) + ".";
    recops_test::Request<double> q;
    recops_test::read(golden, name, q);
    const auto option = golden.values<double>(name + "options");
    const auto picks = golden.values<std::int32_t>(name + "picks");
    const SsdOptions o{.gamma = option[0],
                       .window = static_cast<Index>(option[1]),
                       .mode = option[2] != 0 ? SsdMode::volume : SsdMode::norm,
                       .normalize = option[3] != 0};
    const Picks got = run<double>(q.input(), o, static_cast<Index>(picks.size()));
    CAPTURE(number);
    CHECK(got.items == picks);
    const auto scores = golden.values<double>(name + "scores");
    for (std::size_t t = 0; t < picks.size(); ++t) CHECK(got.scores[t] == Approx(scores[t]).margin(1e-10));
  }
}

TEST_CASE("ssd says what is wrong, touches nothing, and allocates nothing once warm", "[diversity][ssd]") {
  using recops_test::contains;
  Random random(recops_test::seed(), 5);
  const auto q = recops_test::normal_request<float>(random, 200, 12, 3);
  Workspace ws;
  Vector<std::int32_t> picks(9, 7);
  Vector<float> scores(9, 7.0f), few(3, 1.0f);
  CHECK_THROWS_WITH(ssd<float>(q.input(), {.gamma = -1}, picks, scores, ws), contains("ssd: gamma"));
  CHECK_THROWS_WITH(ssd<float>(q.input(), {.window = -1}, picks, scores, ws), contains("ssd: window"));
  CHECK_THROWS_WITH(ssd<float>(q.input(), {}, picks, few, ws), contains("ssd: scores"));
  CHECK((std::count(picks.begin(), picks.end(), 7) == 9 && std::count(scores.begin(), scores.end(), 7.0f) == 9));
  Matrix<float> dx(200, 12, 0.0f);
  const auto everything = [&] {
    for (const Index window : {0, 4}) {
      ssd<float>(q.input(), {.window = window, .normalize = true}, picks, scores, ws);
      ssd_backward<float>(q.input(), {.window = window, .normalize = true}, picks, scores, {.features = dx}, ws);
    }
  };
  everything();
  const recops_test::AllocationCounter counter;
  everything();
  CHECK(counter.count() == 0);
}

TEST_CASE("ssd: a history row that is not finite takes no place in the window", "[diversity][ssd]") {
  Random random(recops_test::seed(), 72);
  const auto [with, without] = recops_test::broken_history(random);
  for (const Index window : {0, 1, 2, 3, 4, 20}) {
    const SsdOptions o{.window = window, .evaluation = SelectionEvaluation::eager};
    const Picks picks = run<double>(without.input(), o, 8);
    CHECK(run<double>(with.input(), o, 8) == picks);
    Workspace ws;  // and the backward pass takes the same rows for shown
    Matrix<double> a(30, 6, 0.0), b(30, 6, 0.0);
    const Vector<double> up(8, 1.0);
    Vector<std::int32_t> items(8);
    std::copy(picks.items.begin(), picks.items.end(), items.begin());
    ssd_backward<double>(with.input(), o, items, up, {.features = a}, ws);
    ssd_backward<double>(without.input(), o, items, up, {.features = b}, ws);
    CHECK(std::equal(a.data(), a.data() + 180, b.data()));
  }
}

TEMPLATE_TEST_CASE("ssd: strided rows, scores that are not wanted, more places than items", "[diversity][ssd]", float, double) {
  using T = TestType;
  for (const Index window : {0, 4}) {
    const SsdOptions o{.window = window};
    recops_test::check_strided<T>(
        [&](const SelectionInput<T>& in, auto picks, auto scores, Workspace& ws) { ssd<T>(in, o, picks, scores, ws); },
        [&](const SelectionBatch<T>& batch, auto picks, auto scores, Workspace& ws) { ssd<T>(batch, o, picks, scores, {}, ws); },
        [&](const SelectionInput<T>& in, auto picks, auto g, const SelectionGradient<T>& to, Workspace& ws) {
          ssd_backward<T>(in, o, picks, g, to, ws);
        });
  }
  for (const Index window : {0, 4, 50000}) {
    recops_test::check_many_places([&](const SelectionInput<float>& in, auto picks, Workspace& ws) {
      return ssd<float>(in, {.window = window}, picks, {}, ws);
    });
  }
}
