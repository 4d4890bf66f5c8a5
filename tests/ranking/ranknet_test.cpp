// Oracle: the double loop over pairs, ranks and discounts by counting.
#include <recops/ranking/ranknet.hpp>

#include "ranking/group_cases.hpp"

using namespace recops;
using namespace recops_test;

namespace {

double at(const std::vector<double>& v, Index i) { return v[static_cast<std::size_t>(i)]; }
double soft_plus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double logistic(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
GroupReference by_pairs(const GroupCase<T>& c, double sigma, bool mean) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    double sum = 0, pairs = 0;
    for (Index i = 0; i < static_cast<Index>(s.size()); ++i) {
      for (Index j = 0; j < static_cast<Index>(s.size()); ++j) {
        if (!(c.grades[begin + i] > c.grades[begin + j])) continue;
        const double x = -sigma * (at(s, i) - at(s, j));
        ++pairs;
        sum += soft_plus(x);
        d[static_cast<std::size_t>(i)] -= sigma * logistic(x);
        d[static_cast<std::size_t>(j)] += sigma * logistic(x);
      }
    }
    if (pairs == 0) return std::nan("");
    if (!mean) return sum;
    for (double& x : d) x /= pairs;
    return sum / pairs;
  };
}

// |change of NDCG@k| by really swapping the two items.
template <class T>
GroupReference by_swaps(const GroupCase<T>& c, double sigma, Index k, Gain gain, const std::vector<double>* frozen = nullptr) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    const auto n = static_cast<Index>(s.size());
    const std::vector<double>& ranked = frozen != nullptr ? *frozen : s;
    const auto worth = [&](Index i) {
      const double r = static_cast<double>(c.grades[begin + i]);
      return gain == Gain::exp2 ? std::exp2(r) - 1 : r;
    };
    std::vector<Index> rank(s.size()), ideal(s.size());
    for (Index i = 0; i < n; ++i) {
      Index before = 0, better = 0;
      for (Index j = 0; j < n; ++j) {
        before += at(ranked, j) > at(ranked, i) || (at(ranked, j) == at(ranked, i) && j < i);
        better += worth(j) > worth(i) || (worth(j) == worth(i) && j < i);
      }
      rank[static_cast<std::size_t>(i)] = before + 1;
      ideal[static_cast<std::size_t>(i)] = better + 1;
    }
    const auto discount = [&](Index r) { return r <= k ? 1 / std::log2(1.0 + static_cast<double>(r)) : 0.0; };
    double best = 0;
    for (Index i = 0; i < n; ++i) best += worth(i) * discount(ideal[static_cast<std::size_t>(i)]);
    double sum = 0;
    bool any = false;
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < n; ++j) {
        if (!(worth(i) > worth(j))) continue;
        any = true;
        const double a = discount(rank[static_cast<std::size_t>(i)]), b = discount(rank[static_cast<std::size_t>(j)]);
        const double change = std::abs((worth(i) * b + worth(j) * a) - (worth(i) * a + worth(j) * b)) / best;
        const double x = -sigma * (at(s, i) - at(s, j));
        sum += change * soft_plus(x);
        d[static_cast<std::size_t>(i)] -= change * sigma * logistic(x);
        d[static_cast<std::size_t>(j)] += change * sigma * logistic(x);
      }
    }
    return any ? sum : std::nan("");
  };
}

template <class T>
LossOfScores<T> ranknet(const GroupCase<T>& c, RankNetOptions<T> o) {
  return [&c, o](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    RankNetOptions<T> options = o;
    options.groups = groups;
    return d.empty() ? ranknet_loss<T>(s, c.grades, c.offsets, options, ws)
                     : ranknet_loss_value_and_grad<T>(s, c.grades, c.offsets, options, d, ws);
  };
}
template <class T>
LossOfScores<T> lambdarank(const GroupCase<T>& c, LambdaRankOptions<T> o) {
  return [&c, o](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    LambdaRankOptions<T> options = o;
    options.groups = groups;
    return d.empty() ? lambdarank_loss<T>(s, c.grades, c.offsets, options, ws)
                     : lambdarank_loss_value_and_grad<T>(s, c.grades, c.offsets, options, d, ws);
  };
}

}  // namespace

TEMPLATE_TEST_CASE("RankNet and LambdaRank equal the double loop", "[ranking][ranknet]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  Random random = random_stream(921);
  for (const bool distinct : {false, true}) {
    GroupCase<T> c(group_sizes(), random, distinct ? 15 : 1);
    if (distinct)
      for (T& g : c.grades) g = static_cast<T>(random.uniform(0, 3));
    CAPTURE(distinct);
    check_against<T>(c, ranknet<T>(c, {.sigma = 1.3}), by_pairs(c, 1.3, false), tolerance, false);
    check_against<T>(c, ranknet<T>(c, {.sigma = 0.5, .mean_over_pairs = true}), by_pairs(c, 0.5, true), tolerance);
    check_against<T>(c, lambdarank<T>(c, {.sigma = 1.3}), by_swaps(c, 1.3, 1000, Gain::exp2), tolerance);
    for (const Index k : {1, 5, 64})
      check_against<T>(c, lambdarank<T>(c, {.k = k, .gain = Gain::linear}), by_swaps(c, 1, k, Gain::linear), tolerance);
  }
}

TEST_CASE("the gradient of RankNet agrees with central differences", "[ranking][ranknet]") {
  Random random = random_stream(922);
  const GroupCase<double> c({9, 1, 20}, random);
  check_differences(c, ranknet<double>(c, {.sigma = 2}), 1e-6);
}

TEST_CASE("the gradient of LambdaRank is that of its value with frozen weights", "[ranking][ranknet]") {
  Random random = random_stream(923);
  GroupCase<double> c({24}, random);
  std::vector<double> before(c.scores.begin(), c.scores.end()), unused(24);
  const GroupReference frozen = by_swaps(c, 1, 7, Gain::exp2, &before);
  Workspace ws;
  Vector<double> d(24, 0.0);
  lambdarank_loss_value_and_grad<double>(c.scores, c.grades, {}, {.k = 7}, d, ws);
  for (std::size_t i = 0; i < 24; ++i) {
    std::vector<double> up = before, down = before;
    up[i] += 1e-5;
    down[i] -= 1e-5;
    CHECK(d[static_cast<Index>(i)] == Approx((frozen(up, 0, unused) - frozen(down, 0, unused)) / 2e-5).margin(1e-7));
  }
}

TEST_CASE("RankNet and LambdaRank have the habits of group losses", "[ranking][ranknet]") {
  Random random = random_stream(924);
  const GroupCase<float> c(group_sizes(), random);
  check_habits<float>(c, ranknet<float>(c, {}));
  check_habits<float>(c, lambdarank<float>(c, {.k = 5}));
}

TEST_CASE("LambdaRank of the worked example; ties, one level, bad input", "[ranking][ranknet]") {
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4}, rel{2, 0, 1, 3, 0, 1};
  Workspace ws;
  Vector<double> d(6, 0.0);
  CHECK(lambdarank_loss_value_and_grad<double>(s, rel, {}, {}, d, ws).value == Approx(0.326925976).margin(1e-9));
  const double expected[] = {-0.015201628, 0.028328368, 0.047182267, -0.190600059, 0.111107624, 0.019183429};
  for (Index i = 0; i < 6; ++i) CHECK(d[i] == Approx(expected[i]).margin(1e-9));
  const Vector<double> tiny{2e-20, 0, 1e-20, 3e-20, 0, 1e-20};  // 2^y - 1 rounds to 0, but is worth what y ln 2 is
  CHECK(lambdarank_loss<double>(s, tiny, {}, {}, ws).value ==
        Approx(lambdarank_loss<double>(s, rel, {}, {.gain = Gain::linear}, ws).value));
  const Vector<double> level(6, 2.0), low{1, -1, 0, 0, 0, 0};
  CHECK(!lambdarank_loss<double>(s, level, {}, {}, ws).valid());
  CHECK(!ranknet_loss<double>(s, level, {}, {}, ws).valid());
  CHECK_THAT(error_of([&] { lambdarank_loss<double>(s, low, {}, {}, ws); }), contains("0 <= relevance <= 100"));
  CHECK_THAT(error_of([&] { lambdarank_loss<double>(s, rel, {}, {.k = 0}, ws); }), contains("k >= 1"));
  CHECK_THAT(error_of([&] { ranknet_loss<double>(s, rel, {}, {.sigma = -1}, ws); }), contains("sigma"));
  const Vector<double> undefined{1, std::nan(""), 0, 0, 0, 0};
  CHECK_THAT(error_of([&] { ranknet_loss<double>(s, undefined, {}, {}, ws); }), contains("finite"));
}
