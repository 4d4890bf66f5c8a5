// Oracles: the definitions on every order of the tied items, and on a stable sort.
#include <recops/metrics/retrieval.hpp>

#include <numeric>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;
using metric_cases::scored;

namespace {

struct Values {
  double recall, hit, precision, mrr, map;
};

Values of_order(const std::vector<std::uint8_t>& y, const std::vector<std::size_t>& order, Index k) {
  double hits = 0, positives = 0, first = 0, precisions = 0;
  for (const auto label : y) positives += label;
  for (std::size_t p = 0; p < order.size() && static_cast<Index>(p) < k; ++p) {
    if (!y[order[p]]) continue;
    if (hits == 0) first = 1.0 / double(p + 1);
    hits += 1;
    precisions += hits / double(p + 1);
  }
  return {hits / positives, hits > 0 ? 1.0 : 0.0, hits / double(k), first, precisions / std::min(positives, double(k))};
}

template <class T>
Values measured(const metric_cases::Scored<T>& c, Index k, Ties ties, Workspace& ws) {
  const RetrievalOptions o{.k = k, .ties = ties};
  return {recall_at_k<T>(c.scores, c.labels, c.offsets, o, ws).value,
          hit_rate_at_k<T>(c.scores, c.labels, c.offsets, o, ws).value,
          precision_at_k<T>(c.scores, c.labels, c.offsets, o, ws).value, mrr<T>(c.scores, c.labels, c.offsets, o, ws).value,
          ties == Ties::stable ? map_at_k<T>(c.scores, c.labels, c.offsets, o, ws).value : 0};
}

bool same_values(const Values& a, const Values& b, bool with_map) {
  return same(a.recall, b.recall) && same(a.hit, b.hit) && same(a.precision, b.precision) && same(a.mrr, b.mrr) &&
         (!with_map || same(a.map, b.map));
}

}  // namespace

TEMPLATE_TEST_CASE("retrieval with ties is the mean, the least and the most over all orders", "[metrics][retrieval]", float,
                   double) {
  using T = TestType;
  Workspace ws;
  int tried = 0;
  for (std::uint64_t round = 0; round < 24; ++round) {
    const auto c = scored<T>({static_cast<Index>(2 + round % 6)}, 1 + static_cast<Index>(round % 3), 0.4, 800 + round);
    if (std::count(c.labels.begin(), c.labels.end(), 1) == 0) continue;
    ++tried;
    for (const Index k : {1, 2, 3, 5, 100}) {
      Values sum{}, least{9, 9, 9, 9, 0}, most{};
      double count = 0;
      metric_cases::every_order(c.scores, [&](const auto& order) {
        const Values v = of_order(c.labels, order, k);
        sum = {sum.recall + v.recall, sum.hit + v.hit, sum.precision + v.precision, sum.mrr + v.mrr, 0};
        least = {std::min(least.recall, v.recall), std::min(least.hit, v.hit), std::min(least.precision, v.precision),
                 std::min(least.mrr, v.mrr), 0};
        most = {std::max(most.recall, v.recall), std::max(most.hit, v.hit), std::max(most.precision, v.precision),
                std::max(most.mrr, v.mrr), 0};
        ++count;
      });
      const Values mean{sum.recall / count, sum.hit / count, sum.precision / count, sum.mrr / count, 0};
      CHECK(same_values(measured(c, k, Ties::average, ws), mean, false));
      CHECK(same_values(measured(c, k, Ties::pessimistic, ws), least, false));
      CHECK(same_values(measured(c, k, Ties::optimistic, ws), most, false));
    }
  }
  CHECK(tried > 12);
}

TEMPLATE_TEST_CASE("retrieval of long lists", "[metrics][retrieval]", float, double) {
  using T = TestType;
  Workspace ws;
  for (const Index n : {1, 16, 33, 400}) {
    for (const Index levels : {0, 2, 30}) {
      auto c = scored<T>({n}, levels, 0.4, static_cast<std::uint64_t>(900 + n + levels));
      c.labels[static_cast<std::size_t>(n / 2)] = 1;
      std::vector<std::size_t> order(c.size());
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return c.scores[i] > c.scores[j]; });
      for (const Index k : {Index{1}, Index{7}, n, 3 * n}) {
        const Values expected = of_order(c.labels, order, k);
        CHECK(same_values(measured(c, k, Ties::stable, ws), expected, true));
        if (levels != 0) continue;
        CHECK(same_values(measured(c, k, Ties::average, ws), expected, false));
        CHECK(same_values(measured(c, k, Ties::pessimistic, ws), expected, false));
      }
    }
  }
}

TEMPLATE_TEST_CASE("retrieval skips groups without positives and counts them", "[metrics][retrieval]", float, double) {
  using T = TestType;
  Workspace ws;
  const std::vector<T> s{3, 2, 1, 3, 2, 1, 2, std::numeric_limits<T>::quiet_NaN()};
  const std::vector<std::uint8_t> y{0, 1, 1, 0, 0, 0, 1, 1};
  const std::vector<std::int64_t> offsets{0, 3, 3, 6, 8};
  const RetrievalOptions o{.k = 2};
  const GroupResult recall = recall_at_k<T>(s, y, offsets, o, ws), precision = precision_at_k<T>(s, y, offsets, o, ws);
  CHECK((recall.value == 0.5 && recall.valid_groups == 1 && recall.skipped_groups == 3 && recall.nan_groups == 1));
  CHECK((precision.value == 0.25 && precision.valid_groups == 2 && precision.skipped_groups == 2));
  CHECK((mrr<T>(s, y, offsets, o, ws).value == 0.5 && mrr<T>(s, y, offsets, {.k = 1}, ws).value == 0));
  CHECK(hit_rate_at_k<T>(s, y, offsets, o, ws).value == 1.0);
  CHECK(recall_at_k<T>(s, y, offsets, {.k = 1, .at_most_k = true}, ws).value == 0.0);
  const GroupResult low = recall_at_k<T>(s, y, offsets, {.k = 1, .at_most_k = true, .nan = NanPolicy::lowest}, ws);
  CHECK((low.value == 0.5 && low.valid_groups == 2));

  CHECK_THROWS_WITH(mrr<T>(s, y, offsets, {.k = 0}, ws), "mrr: k: expected k >= 1, got 0");
  CHECK_THROWS_AS(map_at_k<T>(s, y, offsets, {}, ws), Error);
  CHECK_THROWS_AS(recall_at_k<T>(s, y, kept(std::vector<std::int64_t>{0, 3}), o, ws), Error);
  CHECK_THROWS_AS(hit_rate_at_k<T>(s, kept(std::vector<std::uint8_t>(8, 2)), offsets, o, ws), Error);
  recops_test::AllocationCounter counter;
  recall_at_k<T>(s, y, offsets, o, ws);
  map_at_k<T>(s, y, offsets, {.ties = Ties::stable}, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("retrieval shards merge and threads change nothing", "[metrics][retrieval]") {
  std::vector<Index> sizes;
  for (Index g = 0; g < 300; ++g) sizes.push_back(g % 7);
  const auto c = scored<float>(sizes, 4, 0.4, 81);
  Workspace serial;
  const metric_cases::InTurn executor{3};
  Workspace parallel(make_executor(executor, 3));
  GroupMean a, b;
  add_mrr<float>(c.scores, c.labels, c.offsets, {}, a, serial);
  add_mrr<float>(c.scores, c.labels, c.offsets, {}, b, parallel);
  CHECK((a.result().value == b.result().value && a.result().valid_groups == b.result().valid_groups));
  a.merge(b);
  CHECK((same(a.result().value, b.result().value, 1e-15) && a.result().valid_groups == 2 * b.result().valid_groups));
}

TEMPLATE_TEST_CASE("rank of one target", "[metrics][retrieval]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const std::vector<T> s{1, 3, 2, 3, nan, 3, 0};
  CHECK(rank_of_target<T>(s, 3) == 2.0);
  CHECK(rank_of_target<T>(s, 3, Ties::stable) == 2.0);
  CHECK(rank_of_target<T>(s, 5, Ties::stable) == 3.0);
  CHECK(rank_of_target<T>(s, 5, Ties::optimistic) == 1.0);
  CHECK(rank_of_target<T>(s, 5, Ties::pessimistic) == 3.0);
  CHECK(rank_of_target<T>(s, 2) == 4.0);
  CHECK(rank_of_target<T>(s, 4) == 7.0);
  CHECK_THROWS_AS(rank_of_target<T>(s, 7), Error);
  CHECK_THROWS_AS(rank_of_target<T>(s, -1), Error);
  // Without some items: as if they were not in the list.
  const std::vector<std::int32_t> seen{0, 1, 4, 5}, itself{3}, falls{1, 0}, beyond{7};
  const std::vector<T> others{2, 3, 0};  // items 2, 3, 6
  for (const Ties ties : {Ties::average, Ties::stable, Ties::pessimistic, Ties::optimistic})
    for (const auto& [in_all, in_others] : {std::pair<Index, Index>{2, 0}, {3, 1}, {6, 2}})
      CHECK(rank_of_target<T>(s, in_all, seen, ties) == rank_of_target<T>(others, in_others, ties));
  CHECK(rank_of_target<T>(s, 5, IndexView(), Ties::stable) == 3.0);
  CHECK(rank_of_target<T>(s, 5, itself) == 1.5);
  CHECK_THROWS_AS(rank_of_target<T>(s, 3, itself), Error);
  CHECK_THROWS_AS(rank_of_target<T>(s, 3, falls), Error);
  CHECK_THROWS_AS(rank_of_target<T>(s, 3, beyond), Error);
  // The reciprocal rank of a list with one positive is that of its rank.
  const auto c = scored<T>({50}, 0, 0, 82);
  std::vector<std::uint8_t> y(50, 0);
  y[17] = 1;
  Workspace ws;
  CHECK(same(mrr<T>(c.scores, y, c.offsets, {.k = 50}, ws).value, 1 / rank_of_target<T>(c.scores, 17)));
}
