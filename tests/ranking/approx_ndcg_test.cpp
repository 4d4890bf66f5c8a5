// Oracle: the definition with ranks by the double loop; NDCG itself where the ranks are sharp.
#include <recops/ranking/approx_ndcg.hpp>

#include "ranking/group_cases.hpp"

using namespace recops;
using namespace recops_test;

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
GroupReference by_the_book(const GroupCase<T>& c, double temperature, Gain gain) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    const std::size_t n = s.size();
    std::vector<double> worth, sorted, slope(n);
    for (std::size_t i = 0; i < n; ++i) {
      const double y = static_cast<double>(c.grades[begin + static_cast<Index>(i)]);
      worth.push_back(gain == Gain::exp2 ? std::exp2(y) - 1 : y);
    }
    sorted = worth;
    std::sort(sorted.rbegin(), sorted.rend());
    double ideal = 0, loss = 0;
    for (std::size_t p = 0; p < n; ++p) ideal += sorted[p] / std::log2(static_cast<double>(p + 2));
    if (ideal == 0) return std::nan("");
    for (std::size_t i = 0; i < n; ++i) {
      double rank = 0.5;
      for (std::size_t j = 0; j < n; ++j) rank += sigmoid((s[j] - s[i]) / temperature);
      loss -= worth[i] / std::log2(1 + rank) / ideal;
      slope[i] = worth[i] / ideal * std::log(2.0) / ((1 + rank) * std::log(1 + rank) * std::log(1 + rank));
    }
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j < n; ++j) {
        const double p = sigmoid((s[j] - s[i]) / temperature);
        d[i] -= p * (1 - p) / temperature * (slope[i] - slope[j]);
      }
    }
    return loss;
  };
}

template <class T>
LossOfScores<T> loss_of(const GroupCase<T>& c, SmoothNdcgOptions<T> o) {
  return [&c, o](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    SmoothNdcgOptions<T> options = o;
    options.groups = groups;
    return d.empty() ? approx_ndcg_loss<T>(s, c.grades, c.offsets, options, ws)
                     : approx_ndcg_loss_value_and_grad<T>(s, c.grades, c.offsets, options, d, ws);
  };
}

}  // namespace

TEMPLATE_TEST_CASE("ApproxNDCG equals its definition", "[ranking][approx_ndcg]", float, double) {
  using T = TestType;
  Random random = random_stream(985);
  GroupCase<T> c(group_sizes(), random);
  for (Index i = c.begin(6); i < c.end(6); ++i) c.grades[i] = 0;  // nothing relevant
  for (const double temperature : {0.3, 2.0})
    for (const Gain gain : {Gain::exp2, Gain::linear})
      check_against<T>(c, loss_of<T>(c, {.temperature = temperature, .gain = gain}), by_the_book(c, temperature, gain),
                       std::is_same_v<T, float> ? 1e-5 : 1e-11);
}

TEST_CASE("ApproxNDCG: differences, habits, the worked example", "[ranking][approx_ndcg]") {
  Random random = random_stream(986);
  const GroupCase<double> small({5, 0, 14, 2}, random);
  check_differences(small, loss_of<double>(small, {.temperature = 0.5}));
  const GroupCase<float> c(group_sizes(), random);
  check_habits<float>(c, loss_of<float>(c, {.temperature = 0.5}));
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4}, rel{2, 0, 1, 3, 0, 1};
  Workspace ws;
  Vector<double> d(6, 0.0);
  CHECK(approx_ndcg_loss_value_and_grad<double>(s, rel, {}, {.temperature = 0.5}, d, ws).value ==
        Approx(-0.878897214).margin(1e-9));
  const double expected[] = {-0.000856306, 0.005106707, 0.026832441, -0.106406131, 0.064243708, 0.011079581};
  for (Index i = 0; i < 6; ++i) CHECK(d[i] == Approx(expected[i]).margin(1e-9));
  // As it sharpens it becomes NDCG.
  const std::vector<std::int64_t> one{0, 6};
  const Vector<double> apart{0.3, -1.2, 0.25, 2.0, 0.7, -0.4};
  const double exact = ndcg<double>(apart, VectorView<const double>(rel), one, {.k = 6}, ws).value;
  CHECK(approx_ndcg_loss<double>(apart, rel, {}, {.temperature = 1e-3}, ws).value == Approx(-exact).margin(1e-9));
}

TEST_CASE("NDCG of ranks that something else made smooth", "[ranking][approx_ndcg]") {
  Random random = random_stream(987);
  const GroupCase<double> c({9, 0, 20}, random);
  Workspace ws;
  Vector<double> ranks(29), dranks(29, 0.0), d(29, 0.0);
  const SmoothRankOptions order{.order = Order::descending, .tau = 0.6};
  const auto loss = [&](VectorView<const double> s) {
    gaussian_rank<double>(s, c.offsets, order, ranks, ws);
    return smooth_ndcg_loss<double>(ranks, c.grades, c.offsets, {}, ws).value;
  };
  loss(c.scores);
  smooth_ndcg_loss_value_and_grad<double>(ranks, c.grades, c.offsets, {}, dranks, ws);
  gaussian_rank_backward<double>(c.scores, c.offsets, order, dranks, d, ws);
  Vector<double> s(29);
  for (Index i = 0; i < 29; ++i) s[i] = c.scores[i];
  for (Index i = 0; i < 29; ++i) {
    const double x = s[i], h = 1e-5;
    s[i] = x + h;
    const double up = loss(s);
    s[i] = x - h;
    const double down = loss(s);
    s[i] = x;
    CHECK(d[i] == Approx((up - down) / (2 * h)).margin(1e-7));
  }
  const Vector<float> zero{1, 0}, fine{1, 2}, rel{1, 0}, low{-1, 0};
  CHECK_THAT(error_of([&] { smooth_ndcg_loss<float>(zero, rel, {}, {}, ws); }), contains("ranks above 0"));
  CHECK_THAT(error_of([&] { smooth_ndcg_loss<float>(fine, low, {}, {}, ws); }), contains("relevance"));
  CHECK_THAT(error_of([&] { approx_ndcg_loss<float>(fine, rel, {}, {.temperature = 0}, ws); }), contains("temperature"));
}
