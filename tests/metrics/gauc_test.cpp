// Oracle: auc of each group by itself, averaged by hand.
#include <recops/metrics/gauc.hpp>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;
using metric_cases::scored;

TEMPLATE_TEST_CASE("gauc is the weighted mean of the groups' auc", "[metrics][gauc]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto c = scored<T>({0, 5, 1, 40, 0, 17, 3, 200, 2, 0}, 12, 0.3, 41);
  for (const GroupWeight weight : {GroupWeight::impressions, GroupWeight::clicks, GroupWeight::one}) {
    double sum = 0, total = 0, all = 0;
    Index valid = 0;
    for (std::size_t g = 0; g + 1 < c.offsets.size(); ++g) {
      const auto begin = c.offsets[g], end = c.offsets[g + 1];
      const std::vector<T> s(c.scores.begin() + begin, c.scores.begin() + end);
      const std::vector<std::uint8_t> y(c.labels.begin() + begin, c.labels.begin() + end);
      const AucResult one = auc<T>(s, y, ws);
      const double w = weight == GroupWeight::one      ? 1
                       : weight == GroupWeight::clicks ? double(one.positives)
                                                       : double(one.positives + one.negatives);
      all += w;
      if (!one.valid) continue;
      ++valid;
      sum += w * one.value;
      total += w;
    }
    const GroupResult r = gauc<T>(c.scores, c.labels, c.offsets, {.weight = weight}, ws);
    REQUIRE(valid > 2);
    CHECK((r.valid && r.valid_groups == valid && r.skipped_groups == 10 - valid && r.nan_groups == 0));
    CHECK(same(r.value, sum / total));
    CHECK(same(r.coverage, total / all));
  }
}

TEMPLATE_TEST_CASE("a NaN never leaves its group", "[metrics][gauc]", float, double) {
  using T = TestType;
  Workspace ws;
  auto c = scored<T>({20, 30, 20}, 10, 0.5, 42);
  c.scores[25] = std::numeric_limits<T>::quiet_NaN();
  const std::vector<std::int32_t> first{0, 20};
  const std::vector<T> s(c.scores.begin(), c.scores.begin() + 20), t(c.scores.begin() + 50, c.scores.end());
  const std::vector<std::uint8_t> y(c.labels.begin(), c.labels.begin() + 20), z(c.labels.begin() + 50, c.labels.end());
  const GroupResult r = gauc<T>(c.scores, c.labels, c.offsets, {}, ws);
  CHECK((r.valid && r.valid_groups == 2 && r.skipped_groups == 1 && r.nan_groups == 1));
  CHECK(same(r.value, 0.5 * (auc<T>(s, y, ws).value + auc<T>(t, z, ws).value)));
  CHECK(same(r.coverage, 40.0 / 70));
  const GroupResult low = gauc<T>(c.scores, c.labels, c.offsets, {.nan = NanPolicy::lowest}, ws);
  CHECK((low.valid_groups == 3 && low.nan_groups == 0));
}

TEMPLATE_TEST_CASE("gauc of no groups, no valid groups, and one", "[metrics][gauc]", float, double) {
  using T = TestType;
  Workspace ws;
  const std::vector<T> none;
  const std::vector<std::uint8_t> no_labels;
  CHECK(!gauc<T>(none, no_labels, kept(std::vector<std::int64_t>{0}), {}, ws).valid);
  const GroupResult empty = gauc<T>(none, no_labels, kept(std::vector<std::int64_t>{0, 0, 0}), {}, ws);
  CHECK((!empty.valid && empty.skipped_groups == 2 && empty.value == 0 && empty.coverage == 0));
  const auto c = scored<T>({50}, 0, 0.4, 43);
  CHECK(same(gauc<T>(c.scores, c.labels, c.offsets, {}, ws).value, auc<T>(c.scores, c.labels, ws).value, 1e-15));
  CHECK_THROWS_WITH(gauc<T>(c.scores, c.labels, kept(std::vector<std::int64_t>{0, 49}), {}, ws),
                    "gauc: offsets: expected offsets that end with the number of rows 50, got 49 at position 1");
  CHECK_THROWS_AS(gauc<T>(c.scores, c.labels, kept(std::vector<std::int64_t>{0, 30, 20, 50}), {}, ws), Error);
}

TEMPLATE_TEST_CASE("gauc: the same bits for any number of workers, shards merge, nothing is allocated", "[metrics][gauc]", float,
                   double) {
  using T = TestType;
  std::vector<Index> sizes;
  for (Index g = 0; g < 1000; ++g) sizes.push_back(g % 9);
  const auto c = scored<T>(sizes, 6, 0.4, 44);
  Workspace serial;
  const GroupResult expected = gauc<T>(c.scores, c.labels, c.offsets, {}, serial);
  REQUIRE(expected.valid_groups > 500);
  for (int workers = 2; workers <= 4; ++workers) {
    const metric_cases::InTurn executor{workers};
    Workspace ws(make_executor(executor, workers));
    const GroupResult r = gauc<T>(c.scores, c.labels, c.offsets, {}, ws);
    CHECK((r.value == expected.value && r.coverage == expected.coverage && r.valid_groups == expected.valid_groups));
  }
  GroupMean left, right;
  const IndexView offsets = c.offsets;
  const Index middle = offsets[400], rest = static_cast<Index>(c.size()) - middle;
  std::vector<std::int32_t> shifted;
  for (Index g = 400; g < offsets.size(); ++g) shifted.push_back(static_cast<std::int32_t>(offsets[g] - middle));
  const VectorView<const T> s = c.scores;
  const VectorView<const std::uint8_t> y = c.labels;
  add_gauc<T>(s.segment(0, middle), y.segment(0, middle), offsets.segment(0, 401), {}, left, serial);
  add_gauc<T>(s.segment(middle, rest), y.segment(middle, rest), shifted, {}, right, serial);
  right.merge(left);
  const GroupResult merged = right.result();
  CHECK((same(merged.value, expected.value, 1e-15) && merged.valid_groups == expected.valid_groups));
  CHECK(merged.skipped_groups == expected.skipped_groups);
  recops_test::AllocationCounter counter;
  gauc<T>(c.scores, c.labels, c.offsets, {}, serial);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("more groups than one block", "[metrics][gauc]") {
  const Index groups = 40000;
  std::vector<float> s;
  std::vector<std::uint8_t> y;
  std::vector<std::int64_t> offsets{0};
  for (Index g = 0; g < groups; ++g) {  // every fourth group is wrong
    s.insert(s.end(), {0.0f, 1.0f});
    y.push_back(g % 4 == 0);
    y.push_back(g % 4 != 0);
    offsets.push_back(2 * (g + 1));
  }
  Workspace ws;
  const GroupResult r = gauc<float>(s, y, offsets, {}, ws);
  CHECK((r.value == 0.75 && r.valid_groups == groups && r.coverage == 1));
}
