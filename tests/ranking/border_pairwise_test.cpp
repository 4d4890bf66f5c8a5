// Oracle: the definition in plain loops.
#include <recops/ranking/border_pairwise.hpp>

#include "ranking/group_cases.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
GroupReference by_the_book(const GroupCase<T>& c, const BorderPairwiseOptions<T>& o) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    const auto n = static_cast<Index>(s.size());
    if (n < 2) return std::nan("");
    const auto y = [&](Index i) { return static_cast<double>(c.grades[begin + i]); };
    const auto score = [&](Index i) { return s[static_cast<std::size_t>(i)]; };
    double sum = 0, pairs = 0, rough = 0;
    for (Index i = 0; i < n; ++i)
      for (Index j = i + 1; j < n && j - i <= o.window; ++j) pairs += std::abs(y(i) - y(j)) > o.delta;
    for (Index i = 0; i < n; ++i) {
      for (Index j = i + 1; j < n && j - i <= o.window; ++j) {
        if (!(std::abs(y(i) - y(j)) > o.delta)) continue;
        const double w = o.pair_weights.empty() ? 1.0 : static_cast<double>(o.pair_weights(j - i - 1, begin + i));
        const double sign = y(i) > y(j) ? 1 : -1, x = -o.sigma * (sign * (score(i) - score(j)) - o.margin);
        sum += w * (std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)))) / pairs;
        const double slope = w * o.sigma * sign / (1 + std::exp(-x)) / pairs;
        d[static_cast<std::size_t>(i)] -= slope;
        d[static_cast<std::size_t>(j)] += slope;
      }
    }
    for (Index t = 0; t + 1 < n; ++t) {
      const double e = score(t + 1) - score(t) - o.slope * (y(t + 1) - y(t));
      rough += e * e / static_cast<double>(n - 1);
      d[static_cast<std::size_t>(t + 1)] += o.smoothness * 2 * e / static_cast<double>(n - 1);
      d[static_cast<std::size_t>(t)] -= o.smoothness * 2 * e / static_cast<double>(n - 1);
    }
    return sum + o.smoothness * rough;
  };
}

template <class T>
LossOfScores<T> loss_of(const GroupCase<T>& c, BorderPairwiseOptions<T> o) {
  return [&c, o](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    BorderPairwiseOptions<T> options = o;
    options.groups = groups;
    return d.empty() ? border_pairwise_loss<T>(s, c.grades, c.offsets, options, ws)
                     : border_pairwise_loss_value_and_grad<T>(s, c.grades, c.offsets, options, d, ws);
  };
}

}  // namespace

TEMPLATE_TEST_CASE("the border-aware loss equals its definition", "[ranking][border_pairwise]", float, double) {
  using T = TestType;
  Random random = random_stream(951);
  const GroupCase<T> c(group_sizes(), random);
  Matrix<T> weights = random_matrix<T>(7, c.scores.size(), random);
  Padded<T> strided(weights.view());
  const BorderPairwiseOptions<T> all[] = {{},
                                          {.window = 1, .smoothness = 0},
                                          {.window = 200, .delta = 1.5, .sigma = 2, .margin = 0.3, .slope = 0.4},
                                          {.window = 7, .smoothness = 1, .pair_weights = strided}};
  for (const auto& o : all) {
    CAPTURE(o.window, o.delta);
    check_against<T>(c, loss_of<T>(c, o), by_the_book(c, o), std::is_same_v<T, float> ? 3e-6 : 1e-12);
    if constexpr (std::is_same_v<T, double>) {
      const GroupCase<T> small({6, 1, 13}, random);
      BorderPairwiseOptions<T> plain = o;
      plain.pair_weights = {};
      check_differences(small, loss_of<T>(small, plain));
    }
  }
}

TEST_CASE("the border-aware loss has the habits of group losses; bad input", "[ranking][border_pairwise]") {
  Random random = random_stream(952);
  const GroupCase<float> c(group_sizes(), random);
  check_habits<float>(c, loss_of<float>(c, {}));
  const Vector<float> s{1, 2}, y{0, std::numeric_limits<float>::quiet_NaN()}, sound{0, 1};
  Workspace ws;
  CHECK_THAT(error_of([&] { border_pairwise_loss<float>(s, y, {}, {}, ws); }), contains("labels"));
  CHECK_THAT(error_of([&] { border_pairwise_loss<float>(s, sound, {}, {.window = 0}, ws); }), contains("window"));
  CHECK_THAT(error_of([&] { border_pairwise_loss<float>(s, sound, {}, {.smoothness = -1}, ws); }), contains("smoothness"));
  const Matrix<float> w(5, 3);
  CHECK_THAT(error_of([&] { border_pairwise_loss<float>(s, sound, {}, {.pair_weights = w}, ws); }), contains("pair_weights"));
}
