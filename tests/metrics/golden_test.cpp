// Oracle: scikit-learn, scipy and numpy (tests/golden/metrics.py).
#include <recops/metrics/calibration.hpp>
#include <recops/metrics/coverage.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/metrics/intra_list.hpp>
#include <recops/metrics/log_loss.hpp>
#include <recops/metrics/ndcg.hpp>
#include <recops/metrics/retrieval.hpp>

#include "metrics/cases.hpp"
#include "support/golden.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;

namespace {
// Rounding scores to float keeps their order and ties; probabilities and features lose digits.
template <class T>
constexpr double rounded = sizeof(T) == 4 ? 1e-6 : 1e-13;

const recops_test::Golden& golden() {
  static const recops_test::Golden file("metrics");
  return file;
}
}  // namespace

TEMPLATE_TEST_CASE("auc and gauc agree with scikit-learn", "[metrics][golden]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto s = golden().values<T>("scores"), w = golden().values<T>("weights");
  const auto y = golden().values<std::uint8_t>("labels");
  const auto offsets = golden().values<std::int64_t>("offsets");
  CHECK(same(auc<T>(s, y, ws).value, golden().scalar("auc"), 1e-13));
  CHECK(same(auc<T>(s, y, w, {}, ws).value, golden().scalar("auc_weighted"), 1e-13));
  const auto expected = golden().values<double>("gauc");
  const GroupWeight weights[] = {GroupWeight::impressions, GroupWeight::clicks, GroupWeight::one};
  for (std::size_t i = 0; i < 3; ++i) {
    const GroupResult r = gauc<T>(s, y, offsets, {.weight = weights[i]}, ws);
    CHECK(same(r.value, expected[i], 1e-13));
    CHECK(static_cast<double>(r.valid_groups) == expected[3]);
  }
}

TEMPLATE_TEST_CASE("ndcg agrees with scikit-learn", "[metrics][golden]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto s = golden().values<T>("scores"), rel = golden().values<T>("relevance");
  const auto ks = golden().values<Index>("ndcg_k");
  const auto linear = golden().values<double>("ndcg_linear"), exp2 = golden().values<double>("ndcg_exp2");
  const std::vector<std::int32_t> one{0, 40};
  const VectorView<const T> first = VectorView<const T>(s).segment(0, 40), grades = VectorView<const T>(rel).segment(0, 40);
  for (std::size_t i = 0; i < ks.size(); ++i) {
    CHECK(same(ndcg<T>(first, grades, one, {.k = ks[i], .gain = Gain::linear}, ws).value, linear[i], 1e-13));
    CHECK(same(ndcg<T>(first, grades, one, {.k = ks[i]}, ws).value, exp2[i], 1e-13));
  }
}

TEMPLATE_TEST_CASE("retrieval agrees with scikit-learn", "[metrics][golden]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto s = golden().values<T>("distinct");
  const auto y = golden().values<std::uint8_t>("labels");
  const auto n = static_cast<std::int64_t>(s.size());
  CHECK(same(map_at_k<T>(s, y, kept(std::vector<std::int64_t>{0, n}), {.k = n, .ties = Ties::stable}, ws).value,
             golden().scalar("map"), 1e-13));
  const auto grid = golden().values<T>("grid_scores");
  const auto labels = golden().values<std::uint8_t>("grid_labels");
  std::vector<std::int64_t> offsets;
  for (std::int64_t row = 0; row <= 30; ++row) offsets.push_back(20 * row);
  CHECK(same(mrr<T>(grid, labels, offsets, {.k = 20}, ws).value, golden().scalar("grid_mrr"), 1e-13));
  const auto hits = golden().values<double>("grid_hits");
  const Index ks[] = {1, 5, 10};
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(same(hit_rate_at_k<T>(grid, labels, offsets, {.k = ks[i]}, ws).value, hits[i], 1e-13));
    CHECK(same(recall_at_k<T>(grid, labels, offsets, {.k = ks[i]}, ws).value, hits[i], 1e-13));  // one positive each
  }
}

TEMPLATE_TEST_CASE("log loss and calibration agree with scikit-learn", "[metrics][golden]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto p = golden().values<T>("probabilities"), w = golden().values<T>("weights");
  const auto y = golden().values<std::uint8_t>("labels");
  const LogLossResult r = log_loss_from_probabilities<T>(p, y);
  CHECK(same(r.value, golden().scalar("log_loss"), rounded<T>));
  CHECK(same(r.normalised_entropy, golden().scalar("normalised_entropy"), rounded<T>));
  CHECK(same(log_loss_from_probabilities<T>(p, y, w).value, golden().scalar("log_loss_weighted"), rounded<T>));
  std::vector<T> logits;
  for (const double x : golden().values<double>("probabilities")) logits.push_back(static_cast<T>(std::log(x / (1 - x))));
  CHECK(same(log_loss_from_logits<T>(logits, y).value, golden().scalar("log_loss"), rounded<T>));
  CHECK(same(pcoc<T>(p, y).value, golden().scalar("pcoc"), rounded<T>));
  const auto ece = golden().values<double>("ece");
  const CalibrationResult c = calibration_error<T>(p, y, {.bins = 10}, ws);
  CHECK(same(c.value, ece[0], rounded<T>));
  CHECK(same(c.largest, ece[1], rounded<T>));
}

TEMPLATE_TEST_CASE("intra-list distance and exposure agree with scipy", "[metrics][golden]", float, double) {
  using T = TestType;
  Workspace ws;
  const Matrix<T> features = golden().matrix<T>("features");
  const auto ild = golden().values<double>("ild");
  CHECK(same(intra_list_distance<T>(features, {}, ws).value, ild[0], rounded<T>));
  CHECK(same(intra_list_min_distance<T>(features, {}, ws).value, ild[1], rounded<T>));
  ExposureCounts exposure(25);
  exposure.add(kept(golden().values<std::int64_t>("shown")));
  const auto expected = golden().values<double>("exposure");
  CHECK(exposure.coverage().value == expected[0]);
  CHECK(same(exposure.entropy().value, expected[1], 1e-13));
  CHECK(same(exposure.gini(ws).value, expected[2], 1e-13));
}

TEST_CASE("the reader of golden files is strict", "[metrics][golden]") {
  CHECK_THROWS_AS(recops_test::Golden("no such file"), std::runtime_error);
  CHECK_THROWS_AS(golden().values<double>("no such tensor"), std::runtime_error);
  CHECK_THROWS_AS(golden().scalar("scores"), std::runtime_error);
  CHECK((golden().shape("features") == std::vector<Index>{12, 5} && golden().matrix<float>("grid_scores").rows() == 30));
}
