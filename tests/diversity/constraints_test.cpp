// Oracle: every rule read off the finished list by brute force, window by window; what a list breaks must be what was reported.
#include <recops/core/random.hpp>
#include <recops/diversity/constraints.hpp>
#include <recops/diversity/dpp_map.hpp>
#include <recops/diversity/mmr.hpp>
#include <recops/diversity/msd.hpp>
#include <recops/diversity/ssd.hpp>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/selectors.hpp"

using namespace recops;
using List = std::vector<std::int32_t>;

namespace {

struct Rules {
  std::vector<Vector<std::int32_t>> groups, shown, most_of, least_of;
  std::vector<GroupRules> columns;
  Vector<std::int32_t> include, pins, duplicates;
  Vector<std::uint8_t> relaxed;
  Constraints view() {
    for (std::size_t c = 0; c < columns.size(); ++c) {
      columns[c].groups = groups[c];
      columns[c].shown = shown[c];
      columns[c].most_of = most_of[c];
      columns[c].least_of = least_of[c];
    }
    return {columns, include, pins, duplicates, relaxed};
  }
};

/// The rules that the list up to and with place t breaks there, of those that a pick can break at once (not minimums and includes).
unsigned broken_at(const Rules& rules, const List& list, std::size_t t) {
  unsigned bits = 0;
  for (std::size_t c = 0; c < rules.columns.size(); ++c) {
    const GroupRules& r = rules.columns[c];
    const std::int32_t g = rules.groups[c][list[t]];
    if (g < 0) continue;
    std::vector<std::int32_t> all(rules.shown[c].begin(), rules.shown[c].end());
    for (const auto i : list) all.push_back(rules.groups[c][i]);
    const auto at = static_cast<Index>(rules.shown[c].size()) + static_cast<Index>(t), n = static_cast<Index>(all.size());
    for (Index first = std::max(Index{0}, at - r.window + 1); r.window > 0 && first <= at; ++first) {
      if (std::count(all.begin() + first, all.begin() + std::min(n, first + r.window), g) > r.most_in_window) bits |= rule_window;
    }
    for (Index p = std::max(Index{0}, at - r.gap); p <= std::min(n - 1, at + r.gap); ++p) {
      if (p != at && all[static_cast<std::size_t>(p)] == g) bits |= rule_gap;
    }
    const Index limit = g < rules.most_of[c].size() ? rules.most_of[c][g] : r.most;
    Index have = 0;
    for (const auto i : list) have += rules.groups[c][i] == g;
    if (limit >= 0 && have > limit) bits |= rule_most;
  }
  return bits;
}

void check_list(const Rules& rules, const List& list, const Selection& s, Index k) {
  CHECK(std::set<std::int32_t>(list.begin(), list.end()).size() == list.size());
  std::map<std::int32_t, int> keys;
  unsigned all = 0;
  for (std::size_t t = 0; t < list.size(); ++t) {
    const unsigned said = rules.relaxed[static_cast<Index>(t)];
    all |= said;
    // What is broken at a place was said there, or, where the other item came later, there.
    unsigned later = said;
    for (std::size_t u = t; u < list.size(); ++u) later |= rules.relaxed[static_cast<Index>(u)];
    CAPTURE(t, list[t], said);
    const unsigned broken = broken_at(rules, list, t);
    CHECK((broken & ~later) == 0);
    // And nothing is said that is not so (totals are counted with what is pinned or included ahead).
    CHECK((said & (rule_window | rule_gap) & ~broken) == 0);
    if (!rules.pins.empty() && rules.pins[static_cast<Index>(t)] >= 0 && (said & rule_pin) == 0)
      CHECK(list[t] == rules.pins[static_cast<Index>(t)]);
    if (!rules.duplicates.empty() && rules.duplicates[list[t]] >= 0) ++keys[rules.duplicates[list[t]]];
  }
  for (const auto& [key, count] : keys) {
    int pinned = 0;
    for (const auto p : rules.pins) pinned += p >= 0 && rules.duplicates[p] == key;
    CHECK(count <= std::max(1, pinned));
  }
  CHECK((all & ~unsigned{s.relaxed}) == 0);
  for (const auto i : rules.include) {
    if (std::count(list.begin(), list.end(), i) == 0) CHECK((s.relaxed & rule_include) != 0);
  }
  for (std::size_t c = 0; c < rules.columns.size(); ++c) {
    for (Index g = 0; g < rules.least_of[c].size(); ++g) {
      Index have = 0;
      for (const auto i : list) have += rules.groups[c][i] == g;
      if (have < rules.least_of[c][g]) CHECK((s.relaxed & rule_least) != 0);
    }
  }
  for (Index t = static_cast<Index>(list.size()); t < k; ++t) CHECK(rules.relaxed[t] == 0);
}

/// All selectors on one request, by name.
template <class T>
std::vector<std::pair<std::string, std::function<Selection(const Constraints*, VectorView<std::int32_t>, Workspace&)>>> selectors(
    const recops_test::Request<T>& q, VectorView<const T> quality, MatrixView<const T> kernel, SelectionEvaluation e) {
  const auto with = [&q](const Constraints* c) {
    auto in = q.input();
    in.constraints = c;
    return in;
  };
  const auto mmr_of = [&q, e](Index window) {
    return [&q, e, window](const Constraints* c, VectorView<std::int32_t> p, Workspace& ws) {
      return mmr<T>({.relevance = q.relevance, .features = q.features, .constraints = c}, {.window = window, .evaluation = e}, p,
                    {}, ws);
    };
  };
  const auto dpp_of = [&q, quality, e](Index window) {
    return [&q, quality, e, window](const Constraints* c, VectorView<std::int32_t> p, Workspace& ws) {
      return dpp_map<T>({.quality = quality, .features = q.features, .constraints = c},
                        {.window = window, .fill = DppFill::by_quality, .evaluation = e}, p, {}, ws);
    };
  };
  return {{"mmr", mmr_of(0)},
          {"mmr window", mmr_of(4)},
          {"msd", [=](const Constraints* c, VectorView<std::int32_t> p,
                      Workspace& ws) { return msd<T>(with(c), {.evaluation = e}, p, {}, ws); }},
          {"ssd", [=](const Constraints* c, VectorView<std::int32_t> p,
                      Workspace& ws) { return ssd<T>(with(c), {.window = 3, .evaluation = e}, p, {}, ws); }},
          {"dpp_map", dpp_of(0)},
          {"dpp_map window", dpp_of(4)},
          {"dpp_map_kernel", [=](const Constraints* c, VectorView<std::int32_t> p, Workspace& ws) {
             return dpp_map_kernel<T>(kernel, {}, c, {.fill = DppFill::by_quality, .evaluation = e}, p, {}, ws);
           }}};
}

}  // namespace

TEST_CASE("constraints hold with every selector, or what is broken is reported", "[diversity][constraints]") {
  Random random(recops_test::seed(), 1);
  Workspace ws;
  for (int trial = 0; trial < 60; ++trial) {
    const Index n = 20 + random.below(140), k = 5 + random.below(12), kinds = 2 + random.below(6);
    const auto q = recops_test::normal_request<float>(random, n, 24, 0);
    Vector<float> quality(n);
    Matrix<float> kernel(n, n);
    for (Index i = 0; i < n; ++i) quality[i] = std::exp(0.3f * q.relevance[i]);
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) kernel(i, j) = quality[i] * quality[j] * simd::dot(q.features.row(i), q.features.row(j), 24);
    }
    Rules rules;
    for (Index c = 0; c < 1 + trial % 2; ++c) {
      Vector<std::int32_t> groups(n), shown(random.below(4));
      const std::int32_t stretch = trial % 5 == 0 ? 250000003 : 1;  // sparse names: what is kept of groups goes by their number
      for (auto& g : groups) g = static_cast<std::int32_t>(random.below(kinds + 1) - 1) * stretch;
      for (auto& g : groups) g = g < 0 ? -1 : g;
      for (auto& g : shown) g = static_cast<std::int32_t>(random.below(kinds)) * stretch;
      GroupRules r;
      if (random.chance(0.6)) r.window = 1 + random.below(6), r.most_in_window = 1 + random.below(2);
      if (random.chance(0.4)) r.gap = 1 + random.below(3);
      if (random.chance(0.5)) r.most = random.below(5);
      rules.groups.push_back(groups);
      rules.shown.push_back(shown);
      rules.most_of.emplace_back(random.chance(0.3) ? 2 : 0, 3);
      rules.least_of.emplace_back(random.chance(0.4) ? 2 : 0, static_cast<std::int32_t>(random.below(4)));
      rules.columns.push_back(r);
    }
    List order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size() - 1; i > 0; --i)
      std::swap(order[i], order[static_cast<std::size_t>(random.below(static_cast<Index>(i) + 1))]);
    if (random.chance(0.4)) {
      rules.pins = Vector<std::int32_t>(k, -1);
      for (Index t = 0; t < k; ++t) rules.pins[t] = random.chance(0.2) ? order[static_cast<std::size_t>(t)] : -1;
    }
    if (random.chance(0.4)) rules.include = {order[static_cast<std::size_t>(k)], order[static_cast<std::size_t>(k + 1)]};
    if (random.chance(0.3)) {
      rules.duplicates.resize(n);
      for (auto& d : rules.duplicates) d = static_cast<std::int32_t>(random.below(n) - 5);
    }
    rules.relaxed = Vector<std::uint8_t>(k, 77);
    const Constraints view = rules.view();
    std::map<std::string, List> eager;
    for (const auto evaluation : {SelectionEvaluation::eager, SelectionEvaluation::lazy}) {
      for (const auto& [name, select] : selectors<float>(q, quality, kernel, evaluation)) {
        Vector<std::int32_t> picks(k, 7);
        const Selection s = select(&view, picks, ws);
        CAPTURE(trial, name, n, k);
        const List list(picks.begin(), picks.begin() + s.count);
        check_list(rules, list, s, k);
        if (rules.duplicates.empty()) CHECK(s.count == k);
        if (evaluation == SelectionEvaluation::eager) {
          eager[name] = list;
        } else {
          CHECK(list == eager[name]);
        }
      }
    }
  }
}

TEST_CASE("constraints: which rules are given up, and what is reported", "[diversity][constraints]") {
  // Eight items, best first; orthogonal features, so MMR takes them in order.
  Vector<double> relevance{8, 7, 6, 5, 4, 3, 2, 1};
  Matrix<double> features(8, 8, 0.0);
  for (Index i = 0; i < 8; ++i) features(i, i) = 1;
  const Vector<std::int32_t> groups{0, 0, 0, 1, 1, 2, 2, 2};
  Workspace ws;
  Vector<std::uint8_t> relaxed(4);
  Selection done;
  const auto pick = [&](Constraints c) {
    c.relaxed = relaxed;
    Vector<std::int32_t> picks(4);
    done = mmr<double>({.relevance = relevance, .features = features, .constraints = &c}, {.lambda = 1}, picks, {}, ws);
    return List(picks.begin(), picks.end());
  };
  const auto rules = [&](GroupRules r) {
    r.groups = groups;
    return std::vector<GroupRules>{r};
  };
  auto g = rules({});
  CHECK(pick({.groups = g}) == List{0, 1, 2, 3});
  CHECK(done.relaxed == 0);
  g = rules({.most = 1});
  CHECK(pick({.groups = g}) == List{0, 3, 5, 1});  // three groups: the fourth pick must break the quota
  CHECK(std::vector<std::uint8_t>(relaxed.begin(), relaxed.end()) == std::vector<std::uint8_t>{0, 0, 0, rule_most});
  CHECK(done.relaxed == rule_most);
  CHECK(done.status == SelectionStatus::ok);
  g = rules({.window = 2});
  CHECK(pick({.groups = g}) == List{0, 3, 1, 4});
  g = rules({.gap = 1});
  CHECK(pick({.groups = g}) == List{0, 3, 1, 4});
  g = rules({.window = 3});
  CHECK(pick({.groups = g}) == List{0, 3, 5, 1});
  g = rules({.window = std::numeric_limits<Index>::max()});
  CHECK(pick({.groups = g}) == List{0, 3, 5, 1});
  g = rules({.gap = std::numeric_limits<Index>::max()});
  CHECK(pick({.groups = g}) == List{0, 3, 5, 1});
  // Windows go before quotas: both cannot be kept, so the window is given up where that is enough.
  const Vector<std::int32_t> none_of_two{4, 4, 0};
  g = rules({.window = 3, .most_of = none_of_two});
  CHECK(pick({.groups = g}) == List{0, 3, 1, 2});
  CHECK(std::vector<std::uint8_t>(relaxed.begin(), relaxed.end()) == std::vector<std::uint8_t>{0, 0, rule_window, rule_window});
  // Minimums come last, but come.
  const Vector<std::int32_t> two_of_two{0, 0, 2}, many_of_one{0, 3}, all_of_one{0, std::numeric_limits<std::int32_t>::max()},
      any_of_one{0, -1};
  g = rules({.least_of = two_of_two});
  CHECK(pick({.groups = g}) == List{0, 1, 5, 6});
  CHECK(done.relaxed == 0);
  g = rules({.least_of = many_of_one});  // there are only two
  CHECK(pick({.groups = g}) == List{0, 1, 3, 4});
  CHECK(done.relaxed == rule_least);
  g = rules({.least_of = all_of_one});  // as many as there are
  CHECK(pick({.groups = g}) == List{0, 1, 3, 4});
  CHECK(done.relaxed == rule_least);
  g = rules({.least_of = any_of_one});
  CHECK(pick({.groups = g}) == List{0, 1, 2, 3});
  CHECK(done.relaxed == 0);
  // Includes, pins, quotas that keep room for them.
  const Vector<std::int32_t> seven{7}, pins{-1, 6, -1, -1}, broken_pin{-1, 2, -1, -1};
  CHECK(pick({.include = seven}) == List{0, 1, 2, 7});
  CHECK(pick({.pins = pins}) == List{0, 6, 1, 2});
  g = rules({.most = 1});
  CHECK(pick({.groups = g, .include = seven, .pins = pins}) == List{0, 6, 3, 7});
  CHECK(std::vector<std::uint8_t>(relaxed.begin(), relaxed.end()) == std::vector<std::uint8_t>{0, rule_most, 0, rule_most});
  g = rules({.window = 2});
  CHECK(pick({.groups = g, .pins = broken_pin}) == List{3, 2, 4, 0});  // keeps clear of the pin to come
  g = rules({.gap = 1});
  CHECK(pick({.groups = g, .pins = broken_pin}) == List{3, 2, 4, 0});  // and of others of its group around it
  CHECK(done.relaxed == 0);
  g = rules({.most = 1});
  CHECK(pick({.groups = g, .include = seven}) == List{0, 3, 7, 1});  // what is certain to come does not stand in its own way
  CHECK(std::vector<std::uint8_t>(relaxed.begin(), relaxed.end()) == std::vector<std::uint8_t>{0, 0, 0, rule_most});
  const Vector<std::int32_t> two_of_one{0, 2};
  g = rules({.least_of = two_of_one});
  CHECK(pick({.groups = g, .include = seven}) == List{0, 3, 4, 7});  // a minimum leaves room for the include
  CHECK(done.relaxed == 0);
  relevance[2] = std::nan("");
  CHECK(pick({.pins = broken_pin}) == List{0, 1, 3, 4});
  CHECK(done.relaxed == rule_pin);
  CHECK(relaxed[1] == rule_pin);
  relevance[2] = 6;
  // Duplicates are never let in.
  const Vector<std::int32_t> keys{5, 5, 5, 5, 9, 9, -1, 9};
  CHECK(pick({.duplicates = keys}) == List{0, 4, 6, -1});
  CHECK(done.status == SelectionStatus::infeasible);
  const Vector<std::int32_t> one{1};
  CHECK(pick({.include = one, .duplicates = keys}) == List{0, 4, 6, -1});
  CHECK((done.relaxed & rule_include) != 0);
  // History counts for windows.
  const Vector<std::int32_t> shown{1, 0};
  g = rules({.shown = shown, .window = 2});
  CHECK(pick({.groups = g}) == List{3, 0, 4, 1});
  // A window over what was shown, in a batch.
  std::vector<Constraints> each(2);
  each[1].groups = g;
  const Vector<double> twice{8, 7, 6, 5, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1};
  Matrix<double> both(16, 8, 0.0);
  for (Index i = 0; i < 16; ++i) both(i, i % 8) = 1;
  const std::vector<std::int32_t> offsets{0, 8, 16};
  Matrix<std::int32_t> picks(2, 4);
  mmr<double>({.relevance = twice, .features = JaggedView<const double>(both, offsets), .constraints = each}, {.lambda = 1},
              picks, {}, {}, ws);
  CHECK(List(picks.row(0), picks.row(0) + 4) == List{0, 1, 2, 3});
  CHECK(List(picks.row(1), picks.row(1) + 4) == List{3, 0, 4, 1});
}

TEST_CASE("constraints are checked, and allocate nothing once warm", "[diversity][constraints]") {
  using recops_test::contains;
  Random random(recops_test::seed(), 2);
  const auto q = recops_test::normal_request<float>(random, 30, 4, 0);
  Workspace ws;
  Vector<std::int32_t> picks(5, 7);
  const auto attempt = [&](const Constraints& c) {
    auto in = q.input();
    in.constraints = &c;
    return msd<float>(in, {}, picks, {}, ws);
  };
  const Vector<std::int32_t> few(3, 0), groups(30, 1), far{30}, twice{4, 4}, pins{1, -1, 1, -1, -1}, six{0, 1, 2, 3, 4, 5};
  Vector<std::uint8_t> relaxed(4);
  const auto with = [&](GroupRules r) { return std::vector<GroupRules>{r}; };
  auto g = with({.groups = few});
  CHECK_THROWS_WITH(attempt({.groups = g}), contains("msd: constraints.groups: expected size 30, got 3"));
  g = with({.groups = groups, .window = -1});
  CHECK_THROWS_WITH(attempt({.groups = g}), contains("constraints.window"));
  g = with({.groups = groups, .window = 2, .most_in_window = 0});
  CHECK_THROWS_WITH(attempt({.groups = g}), contains("most_in_window"));
  g = with({.groups = groups, .gap = -1});
  CHECK_THROWS_WITH(attempt({.groups = g}), contains("constraints.gap"));
  CHECK_THROWS_WITH(attempt({.include = far}), contains("constraints.include"));
  CHECK_THROWS_WITH(attempt({.include = twice}), contains("every item once"));
  CHECK_THROWS_WITH(attempt({.include = six}), contains("no more items than places"));
  CHECK_THROWS_WITH(attempt({.pins = pins}), contains("constraints.pins"));
  CHECK_THROWS_WITH(attempt({.pins = few}), contains("constraints.pins: expected size 5"));
  CHECK_THROWS_WITH(attempt({.duplicates = few}), contains("constraints.duplicates"));
  CHECK_THROWS_WITH(attempt({.relaxed = relaxed}), contains("constraints.relaxed"));
  CHECK(std::count(picks.begin(), picks.end(), 7) == 5);
  g = with({.groups = groups, .window = 3, .gap = 1, .most = 2});
  const auto everything = [&] { attempt({.groups = g, .duplicates = groups}); };
  everything();
  const recops_test::AllocationCounter counter;
  everything();
  CHECK(counter.count() == 0);
}

TEST_CASE("constraints: what a pin that is lost leaves behind", "[diversity][constraints]") {
  const Vector<double> relevance{4, std::nan(""), 2, 1};
  Matrix<double> features(4, 4, 0.0);
  for (Index i = 0; i < 4; ++i) features(i, i) = 1;
  Workspace ws;
  Selection done;
  const auto pick = [&](const Constraints& c, Index k) {
    Vector<std::int32_t> picks(k);
    done = mmr<double>({.relevance = relevance, .features = features, .constraints = &c}, {}, picks, {}, ws);
    return List(picks.begin(), picks.end());
  };
  // Another pin has its key: nothing else may come of it.
  const Vector<std::int32_t> keys{5, 5, 5, -1}, two_pins{0, 1, -1, -1}, kin{2, 0, -1};
  CHECK(pick({.pins = two_pins, .duplicates = keys}, 4) == List{0, 3, -1, -1});
  CHECK((done.relaxed == rule_pin && done.status == SelectionStatus::infeasible));
  CHECK(pick({.pins = kin, .duplicates = keys}, 3) == List{2, 0, 3});  // pins stand, duplicates of each other or not
  CHECK(done.relaxed == 0);
  // Its key is free again.
  const Vector<std::int32_t> lost{1, -1, -1};
  CHECK(pick({.pins = lost, .duplicates = keys}, 3) == List{0, 3, -1});
  CHECK(done.relaxed == rule_pin);
  // A minimum counted on it: another item of its group has to come.
  const Vector<std::int32_t> groups{1, 0, 1, 0}, at_least{1}, pin{-1, 1};
  const std::vector<GroupRules> rules{{.groups = groups, .least_of = at_least}};
  CHECK(pick({.groups = rules, .pins = pin}, 2) == List{0, 3});
  CHECK(done.relaxed == rule_pin);
}

TEST_CASE("constraints: without items, what cannot be kept is reported", "[diversity][constraints]") {
  Random random(recops_test::seed(), 3);
  const auto q = recops_test::normal_request<float>(random, 0, 24, 2);
  const Vector<std::int32_t> none, at_least{1};
  const std::vector<GroupRules> rules{{.groups = none, .least_of = at_least}};
  Vector<std::uint8_t> relaxed(3);
  const Constraints constraints{.groups = rules, .relaxed = relaxed};
  Workspace ws;
  for (const auto& [name, select] : selectors<float>(q, {}, {}, SelectionEvaluation::lazy)) {
    CAPTURE(name);
    Vector<std::int32_t> picks(3, 7);
    relaxed.fill(77);
    const Selection done = select(&constraints, picks, ws);
    CHECK((done.count == 0 && done.status == SelectionStatus::exhausted && done.relaxed == rule_least));
    CHECK(std::count(picks.begin(), picks.end(), -1) == 3);
    CHECK(std::count(relaxed.begin(), relaxed.end(), 0) == 3);
    CHECK(select(nullptr, VectorView<std::int32_t>(), ws).status == SelectionStatus::ok);
  }
}
