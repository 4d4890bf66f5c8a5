// Oracles: std::set, and the Gini index as the mean difference of all pairs.
#include <recops/metrics/coverage.hpp>

#include <set>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;

namespace {
std::vector<std::int32_t> shown(Index n, Index catalogue, std::uint64_t stream) {
  Random r(recops_test::seed(), stream);
  std::vector<std::int32_t> items;
  for (Index i = 0; i < n; ++i) items.push_back(static_cast<std::int32_t>(r.below(r.below(catalogue) + 1)));
  return items;
}
}  // namespace

TEST_CASE("exposure of a catalogue", "[metrics][coverage]") {
  Workspace ws;
  for (const Index catalogue : {1, 2, 17, 300}) {
    for (const Index n : {1, 5, 400}) {
      auto items = shown(n, catalogue, static_cast<std::uint64_t>(catalogue + n));
      items.push_back(-1);
      ExposureCounts exposure(catalogue);
      exposure.add(items);
      std::vector<double> x(static_cast<std::size_t>(catalogue));
      std::set<std::int32_t> distinct;
      for (const std::int32_t i : items) {
        if (i < 0) continue;
        x[static_cast<std::size_t>(i)] += 1;
        distinct.insert(i);
      }
      CHECK(exposure.total() == static_cast<std::uint64_t>(n));
      CHECK(exposure.coverage().value == double(distinct.size()) / double(catalogue));
      double entropy = 0, differences = 0;
      for (const double a : x) {
        if (a > 0) entropy -= a / double(n) * std::log(a / double(n));
        for (const double b : x) differences += std::abs(a - b);
      }
      CHECK((exposure.entropy().valid && same(exposure.entropy().value, entropy)));
      CHECK((exposure.gini(ws).valid && same(exposure.gini(ws).value, differences / (2 * double(catalogue) * double(n)))));
      for (Index i = 0; i < catalogue; ++i)
        CHECK(exposure.counts()[i] == static_cast<std::uint64_t>(x[static_cast<std::size_t>(i)]));
    }
  }
}

TEST_CASE("known exposures", "[metrics][coverage]") {
  Workspace ws;
  ExposureCounts even(4), single(4), nothing(4), no_catalogue(0);
  even.add(kept(std::vector<std::int64_t>{0, 1, 2, 3, 3, 2, 1, 0}));
  single.add(kept(std::vector<std::int64_t>{2, 2, 2}));
  CHECK((same(even.entropy().value, std::log(4.0)) && even.gini(ws).value == 0 && even.coverage().value == 1));
  CHECK((single.entropy().value == 0 && single.gini(ws).value == 0.75 && single.coverage().value == 0.25));
  CHECK((!nothing.entropy().valid && !nothing.gini(ws).valid && nothing.coverage().valid && nothing.coverage().value == 0));
  CHECK((!no_catalogue.coverage().valid && !no_catalogue.gini(ws).valid));
  CHECK_THROWS_WITH(even.add(kept(std::vector<std::int32_t>{0, 4})),
                    "ExposureCounts::add: items: expected -1 or indices below 4, got 4 at position 1");
  CHECK(even.total() == 8);  // untouched
  CHECK_THROWS_AS(even.add(kept(std::vector<std::int32_t>{-2})), Error);
  CHECK_THROWS_AS(even.merge(ExposureCounts(5)), Error);
  CHECK_THROWS_WITH(ExposureCounts(-5), "ExposureCounts: items: expected a size >= 0, got -5");
  recops_test::AllocationCounter counter;
  even.gini(ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("exposure of shards merges exactly", "[metrics][coverage]") {
  Workspace ws;
  const auto items = shown(1000, 50, 95);
  const IndexView all = items;
  ExposureCounts whole(50), left(50), right(50);
  whole.add(all);
  left.add(all.segment(0, 400));
  right.add(all.segment(400, 600));
  right.merge(left);
  CHECK((whole.entropy().value == right.entropy().value && whole.gini(ws).value == right.gini(ws).value));
}

TEST_CASE("categories shown by a list", "[metrics][coverage]") {
  Workspace ws;
  const Index categories = 130;
  std::vector<std::int32_t> category_of;
  for (std::int32_t i = 0; i < 400; ++i) category_of.push_back(i * 7 % 130);
  const auto items = shown(500, 400, 96);
  const std::vector<std::int64_t> offsets{0, 10, 10, 11, 200, 500};
  double sum = 0;
  for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
    std::set<std::int32_t> seen;
    for (auto i = static_cast<std::size_t>(offsets[g]); i < static_cast<std::size_t>(offsets[g + 1]); ++i)
      seen.insert(category_of[static_cast<std::size_t>(items[i])]);
    sum += double(seen.size()) / double(categories);
  }
  const GroupResult r = category_coverage(category_of, categories, items, offsets, ws);
  CHECK((r.valid && r.valid_groups == 4 && r.skipped_groups == 1 && same(r.value, sum / 4)));
  const GroupResult padded = category_coverage(category_of, categories, kept(std::vector<std::int32_t>{-1, -1, 3}),
                                               kept(std::vector<std::int32_t>{0, 2, 3}), ws);
  CHECK((padded.valid_groups == 1 && same(padded.value, 1.0 / 130)));
  CHECK_THROWS_AS(category_coverage(category_of, 129, items, offsets, ws), Error);
  CHECK_THROWS_AS(category_coverage(category_of, 0, items, offsets, ws), Error);
  CHECK_THROWS_AS(
      category_coverage(category_of, categories, kept(std::vector<std::int32_t>{400}), kept(std::vector<std::int32_t>{0, 1}), ws),
      Error);
}
