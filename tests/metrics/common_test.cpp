// Oracles: std::stable_sort, and sums of integers that doubles hold exactly.
#include <recops/metrics/common.hpp>

#include "metrics/cases.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("ranked scores are a stable sort", "[metrics][order]", float, double) {
  using T = TestType;
  Workspace ws;
  for (const Index n : {0, 1, 2, 3, 31, 127, 128, 129, 1000, 5003}) {
    for (const Index levels : {0, 1, 2, 40}) {
      auto c = metric_cases::scored<T>({n}, levels, 0.5, static_cast<std::uint64_t>(n + levels));
      if (n > 30) {
        c.scores[3] = -std::numeric_limits<T>::infinity();
        c.scores[7] = std::numeric_limits<T>::infinity();
        c.scores[11] = T(-0.0);
        c.scores[12] = T(0.0);
        c.scores[13] = std::numeric_limits<T>::denorm_min();
        c.scores[14] = -std::numeric_limits<T>::max();
      }
      std::vector<std::uint32_t> expected(c.size());
      for (std::uint32_t i = 0; i < expected.size(); ++i) expected[i] = i;
      const auto mark = ws.mark();
      for (const bool down : {false, true}) {
        auto order = expected;
        std::stable_sort(order.begin(), order.end(),
                         [&](auto i, auto j) { return down ? c.scores[i] > c.scores[j] : c.scores[i] < c.scores[j]; });
        const auto* const got =
            detail::ranked<T>(c.scores, down ? detail::Direction::descending : detail::Direction::ascending, ws);
        std::vector<std::uint32_t> found;
        for (Index i = 0; i < n; ++i) found.push_back(got[i].index);
        CHECK(found == order);
        if (!down) continue;
        for (const Index k : {Index{1}, n / 10, n / 3}) {
          if (k < 1 || k > n) continue;
          const auto top = detail::top_ranked<T>(c.scores, k, ws);
          REQUIRE(top.sorted >= k);
          for (Index i = 0; i < k; ++i) CHECK(top.entries[i].index == order[static_cast<std::size_t>(i)]);
          std::vector<std::uint32_t> all;
          for (Index i = 0; i < n; ++i) all.push_back(top.entries[i].index);
          std::sort(all.begin(), all.end());
          CHECK(all == expected);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("order keys put NaN with minus infinity", "[metrics][order]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN(), inf = std::numeric_limits<T>::infinity();
  CHECK(detail::order_key(nan) == detail::order_key(-inf));
  CHECK(detail::order_key(-nan) == detail::order_key(-inf));
  CHECK(detail::order_key(T(-0.0)) == detail::order_key(T(0.0)));
  CHECK(detail::order_key(-inf) < detail::order_key(-std::numeric_limits<T>::max()));
  CHECK(detail::order_key(inf) > detail::order_key(std::numeric_limits<T>::max()));
  CHECK(detail::order_key(T(-1)) < detail::order_key(T(-0.5)));
}

TEST_CASE("a mergeable sum loses nothing that matters", "[metrics][sum]") {
  MergeableSum sum;
  for (int i = 0; i < 1000; ++i) {
    sum.add(1e16);
    sum.add(1.0);
    sum.add(-1e16);
  }
  CHECK(sum.value() == 1000.0);
  Random r(recops_test::seed(), 70);
  std::vector<MergeableSum> shards(7);
  MergeableSum all;
  for (int i = 0; i < 10000; ++i) {
    const double x = r.normal() * std::exp(10 * r.normal());
    all.add(x);
    shards[static_cast<std::size_t>(r.below(7))].add(x);
  }
  MergeableSum forward, backward;
  for (std::size_t i = 0; i < 7; ++i) {
    forward.merge(shards[i]);
    backward.merge(shards[6 - i]);
  }
  CHECK(metric_cases::same(forward.value(), all.value(), 1e-15));
  CHECK(metric_cases::same(forward.value(), backward.value(), 1e-15));
  MergeableSum infinite;
  infinite.add(1);
  infinite.add(std::numeric_limits<double>::infinity());
  infinite.add(2);
  CHECK(infinite.value() == std::numeric_limits<double>::infinity());
  infinite.add(std::numeric_limits<double>::quiet_NaN());
  CHECK(std::isnan(infinite.value()));
}

TEST_CASE("group means count what they leave out", "[metrics][group]") {
  GroupMean a, b;
  CHECK((!a.result().valid && a.result().value == 0 && a.result().coverage == 0));
  a.add(0.5, 2);
  a.skip(3);
  b.add(1.0, 4);
  b.skip_nan(1);
  a.merge(b);
  const GroupResult r = a.result();
  CHECK((r.valid && r.valid_groups == 2 && r.skipped_groups == 2 && r.nan_groups == 1));
  CHECK((r.value == 5.0 / 6 && r.coverage == 0.6));
  GroupMean weightless;
  weightless.add(1.0, 0);
  CHECK((!weightless.result().valid && weightless.result().valid_groups == 1));
}
