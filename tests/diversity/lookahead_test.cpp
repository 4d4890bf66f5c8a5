// Oracle: all ordered subsets, with a predictor that knows the context; the same in Python (tests/golden/stcrank.py).
#include <recops/diversity/lookahead.hpp>
#include <set>
#include <vector>

#include "diversity/ordered_subsets.hpp"
#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Items of a few kinds: each of the same kind before it makes an item earn and hold less.
struct World {
  Vector<double> r, c;
  std::vector<int> kind;
  World(Index n, Random& random) : r(n), c(n) {
    for (Index i = 0; i < n; ++i) {
      r[i] = random.uniform(0, 0.2);
      c[i] = random.uniform(0.3, 0.95);
      kind.push_back(static_cast<int>(random.below(3)));
    }
  }
  double fatigue(const std::int32_t* prefix, Index k, std::int32_t item) const {
    double f = 1;
    for (Index t = 0; t < k; ++t)
      if (kind[static_cast<std::size_t>(prefix[t])] == kind[static_cast<std::size_t>(item)]) f *= 0.6;
    return f;
  }
  template <class T>
  void operator()(const LookaheadQuery& query, VectorView<T> rewards, VectorView<T> continuations) const {
    for (Index q = 0; q < query.items.size(); ++q) {
      const std::int32_t item = query.items[q];
      const Index k = query.prefixes.cols();
      const double f = fatigue(k > 0 ? query.prefixes.row(query.parents[q]) : nullptr, k, item);
      rewards[q] = static_cast<T>(f * r[item]);
      continuations[q] = static_cast<T>(f * c[item]);
    }
  }
  double worth(const std::vector<std::int32_t>& list, double tail) const {
    double sum = 0, left = 1;
    for (std::size_t k = 0; k < list.size(); ++k) {
      const double f = fatigue(list.data(), static_cast<Index>(k), list[k]);
      sum += left * f * r[list[k]];
      left *= f * c[list[k]];
    }
    return sum + left * tail;
  }
};

}  // namespace

TEST_CASE("a wide beam finds the best list, a narrow one nearly", "[diversity][lookahead]") {
  Random random = random_stream(7801);
  Workspace ws;
  double gap[3] = {}, greedy_gap = 0;
  constexpr int worlds = 30;
  for (int number = 0; number < worlds; ++number) {
    const Index n = 7, m = 4;
    const World world(n, random);
    const double tail = number % 2 == 0 ? 0 : 0.05;
    double best = -1;
    std::vector<std::int32_t> first;
    for_each_ordered_subset(n, m, [&](const std::vector<std::int32_t>& list) {
      const double v = world.worth(list, tail);
      if (v > best + 1e-13) best = v, first = list;
    });
    Vector<std::int32_t> picks(m);
    const Index beams[] = {1, 4, 100000};
    for (int b = 0; b < 3; ++b) {
      const LookaheadPlan plan =
          lookahead<double>(world.r, world.c, {.candidates = n, .beam = beams[b], .tail = tail}, world, picks, ws);
      REQUIRE(plan.count == m);
      const std::vector<std::int32_t> list(picks.begin(), picks.end());
      CHECK(std::abs(plan.value - world.worth(list, tail)) < 1e-12);
      gap[b] += (1 - plan.value / best) / worlds;
      if (b == 2) CHECK(list == first);
      Vector<std::int32_t> exact(m);
      plan_sequence<double>(world.r, world.c, tail, exact, {}, ws);
      CHECK(plan.value > world.worth({exact.begin(), exact.end()}, tail) - 1e-12);  // at the least that
      if (b == 2) CHECK(plan.predictions == 7 + 7 * 6 + 42 * 5 + 210 * 4);
      if (b == 0) CHECK(plan.predictions <= 7 + 2 * (6 + 5 + 4));  // the context-free plan comes along
    }
    std::vector<std::int32_t> greedy;
    for (Index t = 0; t < m; ++t) {
      std::int32_t top = -1;
      double most = -1;
      for (std::int32_t i = 0; i < n; ++i) {
        const double v =
            std::find(greedy.begin(), greedy.end(), i) != greedy.end() ? -2 : world.fatigue(greedy.data(), t, i) * world.r[i];
        if (v > most) most = v, top = i;
      }
      greedy.push_back(top);
    }
    greedy_gap += (1 - world.worth(greedy, tail) / best) / worlds;
  }
  CAPTURE(gap[0], gap[1], gap[2], greedy_gap);
  CHECK(gap[2] < 1e-12);
  CHECK(gap[1] < 0.01);
  CHECK(gap[0] < 0.08);
  CHECK(greedy_gap > gap[0] + 0.03);
}

TEST_CASE("a beam without limit plans what trying every order finds", "[diversity][lookahead][golden]") {
  const Golden g("stcrank");
  Workspace ws;
  const Matrix<double> r = g.matrix<double>("plan.r"), c = g.matrix<double>("plan.c");
  const Matrix<std::int32_t> kind = g.matrix<std::int32_t>("plan.kind"), lists = g.matrix<std::int32_t>("plan.tired_list");
  for (Index p = 0; p < r.rows(); ++p) {
    const auto tired = [&](const LookaheadQuery& query, VectorView<double> rewards, VectorView<double> continuations) {
      for (Index q = 0; q < query.items.size(); ++q) {
        const std::int32_t item = query.items[q];
        int seen = 0;
        for (Index t = 0; t < query.prefixes.cols(); ++t)
          seen += kind(p, query.prefixes(query.parents[q], t)) == kind(p, item) ? 1 : 0;
        rewards[q] = r(p, item) * std::pow(0.7, seen);
        continuations[q] = c(p, item) * std::pow(0.9, seen);
      }
    };
    const VectorView<const double> earns(r.row(p), r.cols()), holds(c.row(p), r.cols());
    Vector<std::int32_t> picks(lists.cols());
    const auto index = static_cast<std::size_t>(p);
    const LookaheadPlan plan = lookahead<double>(
        earns, holds, {.candidates = r.cols(), .beam = 100000, .tail = g.values<double>("plan.tail")[index]}, tired, picks, ws);
    CHECK(std::abs(plan.value - g.values<double>("plan.tired")[index]) < 1e-12);
    CHECK(std::equal(picks.begin(), picks.end(), lists.row(p)));
  }
}

TEMPLATE_TEST_CASE("without context the plan is the exact one; ties, few items, tolerance", "[diversity][lookahead]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(7802);
  Workspace ws;
  const auto none = [](const auto& r, const auto& c) {
    return [&r, &c](const LookaheadQuery& q, VectorView<T> rewards, VectorView<T> continuations) {
      for (Index j = 0; j < q.items.size(); ++j) {
        rewards[j] = r[q.items[j]];
        continuations[j] = c[q.items[j]];
      }
    };
  };
  for (const auto& [n, m] : {std::pair<Index, Index>{40, 6}, {3, 5}, {1, 1}, {0, 2}, {9, 0}}) {
    Vector<T> r(n), c(n);
    for (Index i = 0; i < n; ++i) {
      r[i] = static_cast<T>(random.uniform(0, 0.2));
      c[i] = static_cast<T>(random.uniform(0.3, 0.95));
    }
    Vector<std::int32_t> picks(m), exact(m);
    Vector<T> best(m + 1);
    plan_sequence<T>(r, c, 0, exact, best, ws);
    const LookaheadPlan plan = lookahead<T>(r, c, {.beam = 3}, none(r, c), picks, ws);
    CHECK(plan.count == std::min(n, m));
    CHECK(std::abs(plan.value - static_cast<double>(best[m])) < 1e-6);
    if constexpr (std::is_same_v<T, double>) CHECK(std::equal(picks.begin(), picks.end(), exact.begin()));
    const auto call = [&] { lookahead<T>(r, c, {.beam = 3}, none(r, c), picks, ws); };
    CHECK(count_allocations(call) == 0);
    // What is left is little: the rest of the list is filled in without asking.
    const LookaheadPlan lazy = lookahead<T>(r, c, {.beam = 3, .tolerance = 0.05}, none(r, c), picks, ws);
    CHECK(lazy.count == plan.count);
    CHECK(lazy.predictions <= plan.predictions);
    CHECK(lazy.value > plan.value - 0.06);
    std::sort(picks.begin(), picks.begin() + lazy.count);
    for (Index t = 1; t < lazy.count; ++t) CHECK(picks[t] != picks[t - 1]);
  }
  // Few users are left after any first item: the predictor is asked about that one alone.
  const Vector<T> rich(6, T(1)), fleeting(6, T(0.01));
  Vector<std::int32_t> three(3);
  CHECK(lookahead<T>(rich, fleeting, {.candidates = 6, .beam = 2, .tolerance = 0.05}, none(rich, fleeting), three, ws)
            .predictions == 6);
  CHECK(lookahead<T>(rich, fleeting, {.candidates = 6, .beam = 2, .tolerance = 0.005}, none(rich, fleeting), three, ws)
            .predictions > 6);
  const Vector<T> same(5, T(0.25)), half(5, T(0.5));  // numbers that are exact
  Vector<std::int32_t> picks(3);
  lookahead<T>(same, half, {.candidates = 5, .beam = 2}, none(same, half), picks, ws);
  CHECK((picks[0] == 0 && picks[1] == 1 && picks[2] == 2));
}

TEST_CASE("both stages are those of the page", "[diversity][lookahead]") {
  Random random = random_stream(7803);
  Workspace ws;
  for (int number = 0; number < 40; ++number) {
    const Index n = 5 + random.below(20), m = 2 + random.below(3), most = m + random.below(5), beam = 1 + random.below(4);
    const World world(n, random);
    const double tail = number % 3 == 0 ? 0.1 : 0;
    Vector<std::int32_t> plan(m), picks(m);
    Vector<double> worth(m + 1);
    plan_sequence<double>(world.r, world.c, tail, plan, worth, ws);

    // Stage 1: the plan, then by turns the best of h and the first by r / (1 - c).
    std::vector<std::int32_t> by_score, by_index;
    for (std::int32_t i = 0; i < n; ++i) by_score.push_back(i);
    by_index = by_score;
    const auto h = [&](std::int32_t i) { return world.r[i] + world.c[i] * worth[m - 1]; };
    const auto index = [&](std::int32_t i) { return world.r[i] / (1 - world.c[i]); };
    std::stable_sort(by_score.begin(), by_score.end(), [&](std::int32_t a, std::int32_t b) { return h(a) > h(b); });
    std::stable_sort(by_index.begin(), by_index.end(), [&](std::int32_t a, std::int32_t b) { return index(a) > index(b); });
    std::set<std::int32_t> candidates(plan.begin(), plan.end());
    for (std::size_t s = 0; s < by_score.size(); ++s)
      for (const std::int32_t i : {by_score[s], by_index[s]})
        if (static_cast<Index>(candidates.size()) < std::min(n, most)) candidates.insert(i);

    // Stage 2: the `beam` best children of all prefixes, and the prefix of the plan.
    using Prefix = std::vector<std::int32_t>;
    std::vector<Prefix> states{{}};
    for (Index slot = 0; slot < m; ++slot) {
      std::vector<std::pair<double, Prefix>> children;
      for (const Prefix& p : states) {
        for (const std::int32_t i : candidates) {
          if (std::find(p.begin(), p.end(), i) != p.end()) continue;
          Prefix longer = p;
          longer.push_back(i);
          children.emplace_back(-world.worth(longer, worth[m - slot - 1]), longer);  // G + S H
        }
      }
      std::sort(children.begin(), children.end());
      states.clear();
      const Prefix follows(plan.begin(), plan.begin() + slot + 1);
      for (std::size_t e = 0; e < children.size(); ++e)
        if (static_cast<Index>(e) < beam || children[e].second == follows) states.push_back(children[e].second);
      std::sort(states.begin(), states.end());
    }
    const auto best = std::max_element(states.begin(), states.end(), [&](const Prefix& a, const Prefix& b) {
      return world.worth(a, tail) < world.worth(b, tail);
    });

    std::set<std::int32_t> asked;
    const auto predict = [&](const LookaheadQuery& q, VectorView<double> rewards, VectorView<double> continuations) {
      if (q.prefixes.cols() == 0) asked.insert(q.items.begin(), q.items.end());
      world(q, rewards, continuations);
    };
    const LookaheadPlan done =
        lookahead<double>(world.r, world.c, {.candidates = most, .beam = beam, .tail = tail}, predict, picks, ws);
    CAPTURE(number, n, m, most, beam);
    CHECK(asked == candidates);
    CHECK(std::equal(picks.begin(), picks.end(), best->begin()));
    CHECK(std::abs(done.value - world.worth(*best, tail)) < 1e-12);
  }
}

TEST_CASE("predictions that are none, and errors", "[diversity][lookahead]") {
  Workspace ws;
  const Vector<float> r{3, 2, 1, std::numeric_limits<float>::quiet_NaN()}, c{0.5f, 0.5f, 0.5f, 0.5f};
  Vector<std::int32_t> picks(4);
  const auto predict = [&](const LookaheadQuery& q, VectorView<float> rewards, VectorView<float> continuations) {
    for (Index j = 0; j < q.items.size(); ++j) {
      CHECK(q.items[j] != 3);
      rewards[j] = q.items[j] == 0 ? std::numeric_limits<float>::quiet_NaN() : r[q.items[j]];
      continuations[j] = 0.5f;
    }
  };
  const LookaheadPlan plan = lookahead<float>(r, c, {}, predict, picks, ws);
  CHECK((plan.count == 2 && picks[0] == 1 && picks[1] == 2 && picks[2] == -1 && picks[3] == -1));
  CHECK(plan.value == 2.5);
  const auto error = [&](LookaheadOptions o) { return error_of([&] { lookahead<float>(r, c, o, predict, picks, ws); }); };
  CHECK(error({.beam = 0}) == "lookahead: beam: expected 1 to 2^31 - 1 prefixes, got 0");
  CHECK(error({.tail = std::numeric_limits<double>::infinity()}) == "lookahead: tail: expected a finite number, got inf");
  CHECK(error({.tolerance = -1}) == "lookahead: tolerance: expected tolerance >= 0, got -1");
  CHECK(error({.candidates = -1}) == "lookahead: candidates: expected candidates >= 0, got -1");
  CHECK(picks[0] == 1);
  const Vector<float> many(60000, 0.5f);
  Vector<std::int32_t> two(2, 7);
  CHECK(error_of([&] {
          lookahead<float>(many, many, {.candidates = 60000, .beam = 60000}, predict, two, ws);
        }).find("beam * candidates below 2^31") != std::string::npos);
  CHECK((two[0] == 7 && two[1] == 7));
  Vector<float> h(4);
  lookahead_scores<float>(r, c, 2, h);
  CHECK((h[0] == 4 && h[2] == 2 && std::isnan(h[3])));
}
