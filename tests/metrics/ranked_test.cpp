// Oracle: std::stable_sort, with NaN taken for minus infinity.
#include <recops/metrics/ranked.hpp>

#include "metrics/cases.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("ranked scores are a stable sort in which NaN is minus infinity", "[metrics][order]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  Workspace ws;
  for (const Index n : {0, 1, 2, 3, 31, 127, 128, 129, 1000, 5003}) {
    for (const Index levels : {0, 1, 2, 40}) {
      auto c = metric_cases::scored<T>({n}, levels, 0.5, static_cast<std::uint64_t>(n + levels));
      if (n > 30) {
        c.scores[3] = -infinity;
        c.scores[7] = infinity;
        c.scores[11] = T(-0.0);
        c.scores[12] = T(0.0);
        c.scores[13] = std::numeric_limits<T>::denorm_min();
        c.scores[14] = -std::numeric_limits<T>::max();
        if (levels != 1) c.scores[1] = c.scores[20] = nan, c.scores[21] = -nan;
      }
      std::vector<T> numbers;
      for (const T x : c.scores) numbers.push_back(x == x ? x : -infinity);
      std::vector<std::int32_t> order(numbers.size());
      for (const bool down : {false, true}) {
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
        const auto value = [&](std::int32_t i) { return numbers[static_cast<std::size_t>(i)]; };
        std::stable_sort(order.begin(), order.end(),
                         [&](auto i, auto j) { return down ? value(i) > value(j) : value(i) < value(j); });
        const auto mark = ws.mark();
        const auto got = detail::ranked<T>(c.scores, down ? Order::descending : Order::ascending, ws);
        CHECK(std::vector<std::int32_t>(got.index, got.index + n) == order);
        for (Index i = 0; i < n; ++i) REQUIRE(got.score[i] == value(got.index[i]));
        if (!down) continue;
        for (const Index k : {Index{1}, n / 10, n / 3, n}) {
          if (k < 1 || k > n) continue;
          const auto top = detail::top_ranked<T>(detail::without_nan<T>(c.scores, ws), k, ws);
          CHECK(std::vector<std::int32_t>(top.index, top.index + k) ==
                std::vector<std::int32_t>(order.begin(), order.begin() + k));
          for (Index i = 0; i < k; ++i) REQUIRE(top.score[i] == value(top.index[i]));
        }
      }
    }
  }
}
