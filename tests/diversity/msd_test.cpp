// Oracle: the definition, candidate by candidate in double. Inputs are multiples of a power of two and scales too, so that every
// number of the library is exact even in float and every tie is a tie; the running mean is judged up to rounding.
#include <recops/core/random.hpp>
#include <recops/diversity/msd.hpp>

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

double factor(const MsdOptions& o, Index n, Index k) {
  switch (o.scale) {
    case MsdScale::sum:
      return 1;
    case MsdScale::pair_mean:
      return k > 1 ? 2.0 / static_cast<double>(k - 1) : 0;
    case MsdScale::running_mean:
      return 1.0 / static_cast<double>(n);
  }
  return 0;
}

/// Score of item i after `picks`; `first`: nothing counts yet.
template <class T>
double score(const recops_test::Request<T>& q, const MsdOptions& o, Index k, const std::vector<std::int32_t>& picks, Index i,
             bool* first) {
  const Index m = q.history.rows(), shown = m + static_cast<Index>(picks.size());
  const Index begin = o.window > 0 ? std::max(Index{0}, shown - (o.window - 1)) : 0;
  double sum = 0;
  for (Index s = begin; s < shown; ++s) sum += 1 - recops_test::similarity(q, o.normalize, picks, s, i);
  *first = begin == shown;
  const double r = static_cast<double>(q.relevance[i]);
  return o.lambda * r + (*first ? 0 : (1 - o.lambda) * factor(o, shown - begin, k) * sum);
}

template <class T>
Picks reference(const recops_test::Request<T>& q, const MsdOptions& o, Index k) {
  return recops_test::greedy(q, k, [&](const std::vector<std::int32_t>& picks, Index i, double& reported) {
    bool first = false;
    reported = score(q, o, k, picks, i, &first);
    return first ? static_cast<double>(q.relevance[i]) : reported;
  });
}

template <class T, class A = simd::DefaultArch>
Picks run(const SelectionInput<T>& in, const MsdOptions& o, Index k) {
  return recops_test::collect<T>(k, [&](auto picks, auto scores, Workspace& ws) { return msd<T, A>(in, o, picks, scores, ws); });
}

}  // namespace

TEMPLATE_TEST_CASE("msd picks what the definition picks, whatever the evaluation", "[diversity][msd]", float, double) {
  Random random(recops_test::seed(), 1);
  for (const Index n : {1, 2, 33, 65, 150}) {
    for (const Index d : {0, 1, 16, 17}) {
      for (const auto scale : {MsdScale::sum, MsdScale::pair_mean, MsdScale::running_mean}) {
        auto q = recops_test::exact_request<TestType>(random, n, d, random.below(3) == 0 ? random.below(6) : 0);
        if (random.chance(0.4)) {
          q.allowed.resize(n);
          for (auto& a : q.allowed) a = random.chance(0.7);
        }
        const Index k =
            scale == MsdScale::pair_mean ? 1 + (Index{1} << random.below(6)) : 1 + random.below(std::min(n + 3, Index{60}));
        MsdOptions o{.lambda = static_cast<double>(random.below(9)) / 8,
                     .scale = scale,
                     .window = random.chance(0.3) ? 1 + random.below(6) : 0};
        CAPTURE(n, d, o.lambda, k, o.window, static_cast<int>(scale));
        o.evaluation = SelectionEvaluation::eager;
        const Picks eager = run<TestType>(q.input(), o, k);
        if (scale == MsdScale::running_mean) {
          recops_test::check_best(q, eager, 1e-5, [&](const std::vector<std::int32_t>& picks, Index i, double& reported) {
            bool first = false;
            reported = score(q, o, k, picks, i, &first);
            return first ? static_cast<double>(q.relevance[i]) : reported;
          });
        } else {
          CHECK(eager == reference(q, o, k));
        }
        o.evaluation = SelectionEvaluation::lazy;
        CHECK(run<TestType>(q.input(), o, k) == eager);
        Panels<TestType> panels;
        panels.pack(q.features, {}, q.relevance);
        SelectionInput<TestType> packed = q.input();
        packed.features = {};
        packed.panels = panels;
        CHECK(run<TestType>(packed, o, k) == eager);
      }
    }
  }
}

TEMPLATE_TEST_CASE("msd: lazy and eager agree to the bit on any numbers", "[diversity][msd]", float, double) {
  Random random(recops_test::seed(), 2);
  for (const double spread : {0.0, 0.3, 5.0}) {
    auto q = recops_test::normal_request<TestType>(random, 900, 24, 2);
    for (auto& r : q.relevance) r *= static_cast<TestType>(spread);
    for (const bool normalize : {false, true}) {
      for (const Index window : {0, 5}) {
        MsdOptions o{.lambda = 0.625, .window = window, .normalize = normalize, .evaluation = SelectionEvaluation::eager};
        const Picks expected = run<TestType>(q.input(), o, 30);
        o.evaluation = SelectionEvaluation::lazy;
        CHECK(run<TestType>(q.input(), o, 30) == expected);
      }
    }
  }
}

TEMPLATE_TEST_CASE("msd at its limits", "[diversity][msd]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 3);
  const auto q = recops_test::exact_request<T>(random, 90, 7, 0);
  std::vector<std::int32_t> order(90);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return q.relevance[a] > q.relevance[b]; });
  CHECK(run<T>(q.input(), {.lambda = 1}, 90).items == order);
  CHECK(run<T>(q.input(), {.lambda = 0.5, .window = 1}, 90).items == order);
  CHECK(run<T>(q.input(), {.lambda = 0}, 3).items.front() == order.front());
  // k = 2 with the plain sum is the best single addition
  const auto two = run<T>(q.input(), {.lambda = 0.5, .scale = MsdScale::sum}, 2);
  double best = -1e9;
  for (Index i = 0; i < 90; ++i) {
    if (i == order.front()) continue;
    bool first = false;
    best = std::max(best, score(q, {.lambda = 0.5, .scale = MsdScale::sum}, 2, {order.front()}, i, &first));
  }
  CHECK(two.scores[1] == best);
  recops_test::check_unsound_items<T>(
      [](const SelectionInput<T>& in, Index k) { return run<T>(in, {.lambda = 0.5, .normalize = true}, k).items; });
  recops_test::for_each_architecture([&](auto arch) {
    const MsdOptions o{.lambda = 0.5, .scale = MsdScale::sum};
    CHECK(run<T, decltype(arch)>(q.input(), o, 30) == reference(q, o, 30));
  });
  recops_test::check_batch<T>([](const SelectionBatch<T>& batch, auto picks, auto scores, auto counts,
                                 Workspace& ws) { msd<T>(batch, {.normalize = true}, picks, scores, counts, ws); },
                              [](const SelectionInput<T>& in, auto picks, auto scores, Workspace& ws) {
                                return msd<T>(in, {.normalize = true}, picks, scores, ws);
                              });
}

TEST_CASE("msd_backward agrees with central differences and adds", "[diversity][msd]") {
  Random random(recops_test::seed(), 4);
  for (int trial = 0; trial < 12; ++trial) {
    auto q = recops_test::normal_request<double>(random, 12, 4, trial % 3);
    const MsdOptions o{.lambda = 0.625,
                       .scale = static_cast<MsdScale>(trial % 3),
                       .window = trial % 2 == 0 ? 0 : 3,
                       .normalize = trial % 4 != 0};
    recops_test::check_backward(
        q, 7, [&](auto picks, auto scores, Workspace& ws) { msd<double>(q.input(), o, picks, scores, ws); },
        [&](auto picks, auto g, const SelectionGradient<double>& to, Workspace& ws) {
          msd_backward<double>(q.input(), o, picks, g, to, ws);
        },
        [&](const std::vector<std::int32_t>& before, Index i) {
          bool first = false;
          return score(q, o, 7, before, i, &first);
        });
  }
}

TEST_CASE("msd agrees with numpy", "[diversity][msd]") {
  const recops_test::Golden golden("list_selectors");
  for (Index number = 0; number < static_cast<Index>(golden.scalar("msd.cases")); ++number) {
    const std::string name = "msd." + std::to_string(number) + ".";
    recops_test::Request<double> q;
    recops_test::read(golden, name, q);
    const auto option = golden.values<double>(name + "options");
    const auto picks = golden.values<std::int32_t>(name + "picks");
    const MsdOptions o{.lambda = option[0],
                       .scale = static_cast<MsdScale>(option[1]),
                       .window = static_cast<Index>(option[2]),
                       .normalize = option[3] != 0};
    const Picks got = run<double>(q.input(), o, static_cast<Index>(picks.size()));
    CHECK(got.items == picks);
    const auto scores = golden.values<double>(name + "scores");
    for (std::size_t t = 0; t < picks.size(); ++t) CHECK(got.scores[t] == Approx(scores[t]).margin(1e-12));
  }
}

TEST_CASE("msd says what is wrong, touches nothing, and allocates nothing once warm", "[diversity][msd]") {
  using recops_test::contains;
  Random random(recops_test::seed(), 5);
  const auto q = recops_test::normal_request<float>(random, 200, 12, 3);
  Workspace ws;
  Vector<std::int32_t> picks(9, 7);
  Vector<float> scores(9, 7.0f), few(3, 1.0f);
  CHECK_THROWS_WITH(msd<float>(q.input(), {.lambda = 1.5}, picks, scores, ws), contains("msd: lambda"));
  CHECK_THROWS_WITH(msd<float>(q.input(), {.window = -1}, picks, scores, ws), contains("msd: window"));
  CHECK_THROWS_WITH(msd<float>(q.input(), {}, picks, few, ws), contains("msd: scores"));
  CHECK_THROWS_WITH(msd<float>(few, q.features, {}, picks, scores, ws), contains("msd: features: expected shape [3, _]"));
  CHECK_THROWS_WITH(msd_backward<float>(q.input(), {}, picks, scores, {.relevance = few}, ws), contains("gradient.relevance"));
  CHECK((std::count(picks.begin(), picks.end(), 7) == 9 && std::count(scores.begin(), scores.end(), 7.0f) == 9));
  Matrix<float> dx(200, 12, 0.0f);
  const auto everything = [&] {
    for (const Index window : {0, 4}) {
      msd<float>(q.input(), {.window = window, .normalize = true}, picks, scores, ws);
      msd_backward<float>(q.input(), {.window = window, .normalize = true}, picks, scores, {.features = dx}, ws);
    }
  };
  everything();
  const recops_test::AllocationCounter counter;
  everything();
  CHECK(counter.count() == 0);
}

TEST_CASE("msd: a history row that is not finite takes no place in the window", "[diversity][msd]") {
  Random random(recops_test::seed(), 71);
  const auto [with, without] = recops_test::broken_history(random);
  for (const Index window : {0, 1, 2, 3, 4, 20}) {
    const MsdOptions o{.window = window, .evaluation = SelectionEvaluation::eager};
    const Picks picks = run<double>(without.input(), o, 8);
    CHECK(run<double>(with.input(), o, 8) == picks);
    Workspace ws;  // and the backward pass takes the same rows for shown
    Matrix<double> a(30, 6, 0.0), b(30, 6, 0.0);
    const Vector<double> up(8, 1.0);
    Vector<std::int32_t> items(8);
    std::copy(picks.items.begin(), picks.items.end(), items.begin());
    msd_backward<double>(with.input(), o, items, up, {.features = a}, ws);
    msd_backward<double>(without.input(), o, items, up, {.features = b}, ws);
    CHECK(std::equal(a.data(), a.data() + 180, b.data()));
  }
}

TEMPLATE_TEST_CASE("msd: strided rows, scores that are not wanted, more places than items", "[diversity][msd]", float, double) {
  using T = TestType;
  for (const Index window : {0, 4}) {
    const MsdOptions o{.window = window};
    recops_test::check_strided<T>(
        [&](const SelectionInput<T>& in, auto picks, auto scores, Workspace& ws) { msd<T>(in, o, picks, scores, ws); },
        [&](const SelectionBatch<T>& batch, auto picks, auto scores, Workspace& ws) { msd<T>(batch, o, picks, scores, {}, ws); },
        [&](const SelectionInput<T>& in, auto picks, auto g, const SelectionGradient<T>& to, Workspace& ws) {
          msd_backward<T>(in, o, picks, g, to, ws);
        });
  }
  for (const Index window : {0, 4, 50000}) {
    recops_test::check_many_places([&](const SelectionInput<float>& in, auto picks, Workspace& ws) {
      return msd<float>(in, {.window = window}, picks, {}, ws);
    });
  }
}
