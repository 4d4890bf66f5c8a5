// Oracles: every order of the tied items, written out; a stable sort; hand-computed values of a small tied example.
#include <recops/metrics/ndcg.hpp>

#include <numeric>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;
using metric_cases::scored;

namespace {

template <class T>
double gain(T relevance, Gain g) {
  return g == Gain::linear ? double(relevance) : std::pow(2.0, double(relevance)) - 1;
}

template <class T>
double dcg_of(const std::vector<T>& relevance, const std::vector<std::size_t>& order, Index k, Gain g) {
  double sum = 0;
  for (std::size_t p = 0; p < order.size() && static_cast<Index>(p) < k; ++p)
    sum += gain(relevance[order[p]], g) / std::log2(double(p) + 2);
  return sum;
}

template <class T>
double ideal(const std::vector<T>& relevance, Index k, Gain g) {
  std::vector<std::size_t> order(relevance.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](auto i, auto j) { return relevance[i] > relevance[j]; });
  return dcg_of(relevance, order, k, g);
}

}  // namespace

TEMPLATE_TEST_CASE("ndcg with ties is the mean, the least and the most over all orders", "[metrics][ndcg]", float, double) {
  using T = TestType;
  Workspace ws;
  for (std::uint64_t round = 0; round < 12; ++round) {
    const auto c = scored<T>({static_cast<Index>(2 + round % 6)}, 3, 0.5, 600 + round);
    for (const Index k : {1, 2, 4, 100}) {
      for (const Gain g : {Gain::exp2, Gain::linear}) {
        const double best = ideal(c.relevance, k, g);
        if (best == 0) continue;
        double sum = 0, least = 1e300, most = 0, count = 0;
        metric_cases::every_order(c.scores, [&](const auto& order) {
          const double d = dcg_of(c.relevance, order, k, g) / best;
          sum += d;
          least = std::min(least, d);
          most = std::max(most, d);
          ++count;
        });
        const auto value = [&](Ties ties) {
          return ndcg<T>(c.scores, c.relevance, c.offsets, {.k = k, .gain = g, .ties = ties}, ws).value;
        };
        CHECK(same(value(Ties::average), sum / count));
        CHECK(same(value(Ties::pessimistic), least));
        CHECK(same(value(Ties::optimistic), most));
      }
    }
  }
}

TEMPLATE_TEST_CASE("ndcg of long lists, sorted whole or in part", "[metrics][ndcg]", float, double) {
  using T = TestType;
  Workspace ws;
  for (const Index n : {8, 33, 129, 1000}) {
    for (const Index levels : {0, 5, 60}) {
      auto c = scored<T>({n}, levels, 0.5, static_cast<std::uint64_t>(700 + n + levels));
      c.relevance[0] = 1;
      std::vector<std::size_t> order(c.size());
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return c.scores[i] > c.scores[j]; });
      for (const Index k : {Index{1}, Index{3}, n / 5, n / 2, n, 2 * n}) {
        const double best = ideal(c.relevance, k, Gain::exp2);
        const NdcgOptions options{.k = k, .ties = Ties::stable};
        CHECK(
            same(ndcg<T>(c.scores, c.relevance, c.offsets, options, ws).value, dcg_of(c.relevance, order, k, Gain::exp2) / best));
        // Average by the definition: each tied position shows the mean gain of its run.
        double sum = 0;
        for (std::size_t p = 0; p < std::min(c.size(), static_cast<std::size_t>(k)); ++p) {
          double total = 0, ties = 0;
          for (std::size_t i = 0; i < c.size(); ++i) {
            if (c.scores[i] != c.scores[order[p]]) continue;
            total += gain(c.relevance[i], Gain::exp2);
            ++ties;
          }
          sum += total / ties / std::log2(double(p) + 2);
        }
        CHECK(same(ndcg<T>(c.scores, c.relevance, c.offsets, {.k = k}, ws).value, sum / best));
        const double low = ndcg<T>(c.scores, c.relevance, c.offsets, {.k = k, .ties = Ties::pessimistic}, ws).value;
        const double high = ndcg<T>(c.scores, c.relevance, c.offsets, {.k = k, .ties = Ties::optimistic}, ws).value;
        CHECK((low <= sum / best + 1e-12 && sum / best <= high + 1e-12));
      }
    }
  }
}

TEMPLATE_TEST_CASE("ndcg of a tied example", "[metrics][ndcg]", float, double) {
  using T = TestType;
  Workspace ws;
  const std::vector<T> s{T(0.3), T(-1.2), T(0.3), T(2.0), T(0.7), T(-0.4)}, rel{2, 0, 1, 3, 0, 1};
  const std::vector<std::int32_t> one{0, 6};
  CHECK(same(ndcg<T>(s, rel, one, {.k = 3}, ws).value, 0.851717182, 1e-8));
  CHECK(same(ndcg<T>(s, rel, one, {.k = 3, .ties = Ties::stable}, ws).value, 0.904949506, 1e-8));
}

TEMPLATE_TEST_CASE("ndcg over groups", "[metrics][ndcg]", float, double) {
  using T = TestType;
  Workspace ws;
  auto c = scored<T>({4, 0, 30, 6, 5}, 8, 0.5, 61);
  c.relevance[0] = c.relevance[4] = c.relevance[40] = 2;
  for (std::size_t i = 34; i < 40; ++i) c.relevance[i] = 0;  // nothing to find in the fourth
  const GroupResult skip = ndcg<T>(c.scores, c.relevance, c.offsets, {}, ws);
  const GroupResult zero = ndcg<T>(c.scores, c.relevance, c.offsets, {.no_ideal = NoIdeal::zero}, ws);
  const GroupResult one = ndcg<T>(c.scores, c.relevance, c.offsets, {.no_ideal = NoIdeal::one}, ws);
  CHECK((skip.valid_groups == 3 && skip.skipped_groups == 2 && zero.valid_groups == 4 && one.valid_groups == 4));
  CHECK((same(zero.value, skip.value * 3 / 4) && same(one.value, (skip.value * 3 + 1) / 4)));
  std::vector<T> perfect = c.relevance;
  CHECK(same(ndcg<T>(perfect, c.relevance, c.offsets, {}, ws).value, 1.0));
  c.scores[1] = std::numeric_limits<T>::quiet_NaN();
  const GroupResult poisoned = ndcg<T>(c.scores, c.relevance, c.offsets, {}, ws);
  CHECK((poisoned.valid_groups == 2 && poisoned.nan_groups == 1));
  CHECK(ndcg<T>(c.scores, c.relevance, c.offsets, {.nan = NanPolicy::lowest}, ws).valid_groups == 3);

  // Clicks in bytes are the same as clicks in T.
  const auto clicks = scored<T>({20, 15}, 6, 0.4, 62);
  const std::vector<T> as_reals(clicks.labels.begin(), clicks.labels.end());
  CHECK(ndcg<T>(clicks.scores, clicks.labels, clicks.offsets, {.k = 4}, ws).value ==
        ndcg<T>(clicks.scores, as_reals, clicks.offsets, {.k = 4}, ws).value);

  recops_test::AllocationCounter counter;
  ndcg<T>(c.scores, c.relevance, c.offsets, {}, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEMPLATE_TEST_CASE("ndcg refuses what does not fit", "[metrics][ndcg][error]", float, double) {
  using T = TestType;
  Workspace ws;
  const std::vector<T> s{1, 2};
  const std::vector<std::int32_t> one{0, 2};
  CHECK_THROWS_WITH(ndcg<T>(s, kept(std::vector<T>{1, -1}), one, {.gain = Gain::linear}, ws),
                    "ndcg: relevance: expected finite relevance >= 0, got -1");
  CHECK_THROWS_AS(ndcg<T>(s, kept(std::vector<T>{1, 1001}), one, {}, ws), Error);
  CHECK_NOTHROW(ndcg<T>(s, kept(std::vector<T>{1, 1001}), one, {.gain = Gain::linear}, ws));
  CHECK_THROWS_AS(ndcg<T>(s, kept(std::vector<T>{1, std::numeric_limits<T>::infinity()}), one, {.gain = Gain::linear}, ws),
                  Error);
  CHECK_THROWS_AS(ndcg<T>(s, kept(std::vector<T>{1, std::numeric_limits<T>::quiet_NaN()}), one, {}, ws), Error);
  CHECK_THROWS_WITH(ndcg<T>(s, s, one, {.k = 0}, ws), "ndcg: k: expected k >= 1, got 0");
  CHECK_THROWS_AS(ndcg<T>(s, kept(std::vector<T>{1}), one, {}, ws), Error);
  CHECK_THROWS_AS(ndcg<T>(s, s, kept(std::vector<std::int32_t>{0, 3}), {}, ws), Error);
}
