// Oracles: all pairs, compared one by one; the symmetries of AUC; hand-computed values of a small tied example.
#include <recops/metrics/auc.hpp>
#include <recops/simd/midrank.hpp>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;
using metric_cases::scored;

namespace {

template <class T>
double all_pairs(const metric_cases::Scored<T>& c, const std::vector<T>& weights) {
  double won = 0, positive = 0, negative = 0;
  for (std::size_t i = 0; i < c.size(); ++i) {
    const double wi = weights.empty() ? 1 : double(weights[i]);
    (c.labels[i] ? positive : negative) += wi;
    if (!c.labels[i]) continue;
    for (std::size_t j = 0; j < c.size(); ++j) {
      const double wj = weights.empty() ? 1 : double(weights[j]);
      if (!c.labels[j]) won += wi * wj * (c.scores[i] > c.scores[j] ? 1 : c.scores[i] == c.scores[j] ? 0.5 : 0);
    }
  }
  return won / (positive * negative);
}

}  // namespace

TEMPLATE_TEST_CASE("auc counts pairs", "[metrics][auc]", float, double) {
  using T = TestType;
  Workspace ws;
  int valid = 0;
  for (const Index n : {2, 3, 5, 16, 17, 127, 128, 130, 400}) {
    for (const Index levels : {0, 1, 2, 9, 100}) {
      for (const double rate : {0.05, 0.5, 0.9}) {
        const auto c = scored<T>({n}, levels, rate, static_cast<std::uint64_t>(10 * n + levels));
        const AucResult r = auc<T>(c.scores, c.labels, ws);
        CHECK(r.positives + r.negatives == n);
        CHECK(r.valid == (r.positives > 0 && r.negatives > 0));
        if (!r.valid) {
          CHECK(r.value == 0);
          continue;
        }
        ++valid;
        CHECK(r.value == all_pairs<T>(c, {}));  // exact: both are integers divided once
        const AucResult w = auc<T>(c.scores, c.labels, c.weights, {}, ws);
        if (w.valid) CHECK(same(w.value, all_pairs(c, c.weights)));
        const std::vector<T> ones(c.size(), T(3));
        CHECK(same(auc<T>(c.scores, c.labels, ones, {}, ws).value, r.value));
      }
    }
  }
  CHECK(valid > 80);
}

TEMPLATE_TEST_CASE("symmetries of auc", "[metrics][auc]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto c = scored<T>({301}, 30, 0.3, 21);
  const double value = auc<T>(c.scores, c.labels, ws).value;
  auto negated = c.scores, stretched = c.scores;
  auto swapped = c.labels;
  for (std::size_t i = 0; i < c.size(); ++i) {
    negated[i] = -c.scores[i];
    stretched[i] = std::exp(c.scores[i]) * 3 + 1;
    swapped[i] = !c.labels[i];
  }
  CHECK(same(auc<T>(negated, c.labels, ws).value, 1 - value, 1e-15));
  CHECK(same(auc<T>(c.scores, swapped, ws).value, 1 - value, 1e-15));
  CHECK(auc<T>(stretched, c.labels, ws).value == value);
  const std::vector<T> equal(c.size(), T(0.25));
  CHECK(auc<T>(equal, c.labels, ws).value == 0.5);
}

TEMPLATE_TEST_CASE("auc of a tied example", "[metrics][auc]", float, double) {
  using T = TestType;
  Workspace ws;
  const std::vector<T> s{T(0.3), T(-1.2), T(0.3), T(2.0), T(0.7), T(-0.4)}, w{1, 2, T(0.5), 1, T(1.5), 3};
  const std::vector<std::uint8_t> y{1, 0, 0, 1, 0, 1};
  CHECK(same(auc<T>(s, y, ws).value, 0.611111111, 1e-8));
  CHECK(same(auc<T>(s, y, w, {}, ws).value, 0.6125, 1e-8));
}

TEMPLATE_TEST_CASE("auc where it is not defined, and at the edges of numbers", "[metrics][auc]", float, double) {
  using T = TestType;
  using Labels = std::vector<std::uint8_t>;
  using Scores = std::vector<T>;
  Workspace ws;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto invalid = [&](const AucResult& r) { return !r.valid && r.value == 0; };
  CHECK(invalid(auc<T>(kept(Scores{}), kept(Labels{}), ws)));
  CHECK(invalid(auc<T>(kept(Scores{1}), kept(Labels{1}), ws)));
  CHECK(invalid(auc<T>(kept(Scores{1, 2, 3}), kept(Labels{1, 1, 1}), ws)));
  CHECK(invalid(auc<T>(kept(Scores{1, 2, 3}), kept(Labels{0, 0, 0}), ws)));
  CHECK(invalid(auc<T>(kept(Scores{1, 2}), kept(Labels{0, 1}), kept(Scores{1, 0}), {}, ws)));
  CHECK(auc<T>(kept(Scores{T(-0.0), T(0.0)}), kept(Labels{1, 0}), ws).value == 0.5);
  CHECK(auc<T>(kept(Scores{-inf, inf, 3}), kept(Labels{0, 1, 1}), ws).value == 1.0);
  CHECK(auc<T>(kept(Scores{inf, inf}), kept(Labels{0, 1}), ws).value == 0.5);

  const AucResult poisoned = auc<T>(kept(Scores{1, nan, 2}), kept(Labels{0, 1, 1}), ws);
  CHECK((!poisoned.valid && std::isnan(poisoned.value)));
  const AucResult lowest = auc<T>(kept(Scores{1, nan, 2}), kept(Labels{0, 1, 1}), {}, {.nan = NanPolicy::lowest}, ws);
  CHECK((lowest.valid && lowest.value == 0.5));
  CHECK(std::isnan(auc<T>(kept(Scores{1, nan}), kept(Labels{0, 1}), kept(Scores{1, 1}), {}, ws).value));

  const T tiny = std::numeric_limits<T>::denorm_min(), huge = std::numeric_limits<T>::max();
  CHECK(auc<T>(kept(Scores{1, 2, 3}), kept(Labels{0, 1, 0}), kept(Scores{tiny, tiny, tiny}), {}, ws).value == 0.5);
  CHECK(auc<T>(kept(Scores{1, 2, 3}), kept(Labels{0, 1, 0}), kept(Scores{huge, huge, huge}), {}, ws).value == 0.5);
}

TEMPLATE_TEST_CASE("auc refuses what does not fit", "[metrics][auc][error]", float, double) {
  using T = TestType;
  Workspace ws;
  const std::vector<T> s{1, 2, 3};
  const std::vector<std::uint8_t> y{0, 1, 1}, bad{0, 2, 1}, shorter{0, 1};
  CHECK_THROWS_WITH(auc<T>(s, shorter, ws), "auc: labels: expected size 3, got 2");
  CHECK_THROWS_WITH(auc<T>(s, bad, ws), "auc: labels: expected labels that are 0 or 1, got 2 at position 1");
  CHECK_THROWS_WITH(auc<T>(s, y, kept(std::vector<T>{1, -1, 1}), {}, ws), "auc: weights: expected finite weights >= 0, got -1");
  CHECK_THROWS_AS(auc<T>(s, y, kept(std::vector<T>{1, 1}), {}, ws), Error);
  CHECK_THROWS_AS(auc<T>(s, y, kept(std::vector<T>{1, std::numeric_limits<T>::infinity(), 1}), {}, ws), Error);
  CHECK_THROWS_AS(auc<T>(s, y, kept(std::vector<T>{1, std::numeric_limits<T>::quiet_NaN(), 1}), {}, ws), Error);
}

TEMPLATE_TEST_CASE("the second auc allocates nothing", "[metrics][auc]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto c = scored<T>({2000}, 0, 0.2, 5);
  auc<T>(c.scores, c.labels, c.weights, {}, ws);
  recops_test::AllocationCounter counter;
  auc<T>(c.scores, c.labels, c.weights, {}, ws);
  auc<T>(c.scores, c.labels, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEMPLATE_TEST_CASE("an auc histogram brackets the auc, and shards merge exactly", "[metrics][auc]", float, double) {
  using T = TestType;
  Workspace ws;
  for (const int bits : {4, 8, 12, 20}) {
    const auto a = scored<T>({700}, 0, 0.3, 31), b = scored<T>({900}, 0, 0.6, 32);
    AucHistogram whole(bits), left(bits), right(bits);
    auto s = a.scores;
    auto y = a.labels;
    s.insert(s.end(), b.scores.begin(), b.scores.end());
    y.insert(y.end(), b.labels.begin(), b.labels.end());
    whole.add<T>(s, y);
    left.add<T>(a.scores, a.labels);
    right.add<T>(b.scores, b.labels);
    right.merge(left);
    const AucEstimate e = whole.result(), m = right.result();
    CHECK((e.value == m.value && e.error_bound == m.error_bound && e.valid && m.valid));
    const double exact = auc<T>(s, y, ws).value;
    CHECK(std::abs(e.value - exact) <= e.error_bound + 1e-12);
    if (bits == 20) CHECK(e.error_bound < 1e-3);
    CHECK_THROWS_AS(right.merge(AucHistogram(bits + 1)), Error);
  }
  CHECK(!AucHistogram(8).result().valid);
  CHECK_THROWS_AS(AucHistogram(3), Error);
  AucHistogram poisoned(8);
  poisoned.add<T>(kept(std::vector<T>{std::numeric_limits<T>::quiet_NaN(), 1}), kept(std::vector<std::uint8_t>{1, 0}));
  CHECK((std::isnan(poisoned.result().value) && !poisoned.result().valid));
}

TEMPLATE_TEST_CASE("AUC of many scores, which are ordered in parts, equals the rank sum", "[metrics][auc]", float, double) {
  using T = TestType;
  const Index n = (Index{1} << 17) + 123;
  Random random(7);
  Vector<T> scores(n);
  Vector<std::uint8_t> labels(n);
  Vector<double> ranks(n);
  for (Index i = 0; i < n; ++i) {
    labels[i] = random.chance(0.2) ? 1 : 0;
    scores[i] = static_cast<T>(std::round(500 * random.normal()) / 500 + 0.25 * labels[i]);
  }
  Workspace ws;
  simd::midrank<T>(scores.data(), n, Order::ascending, ranks.data(), nullptr, ws);
  double sum = 0, positives = 0;
  for (Index i = 0; i < n; ++i)
    if (labels[i] != 0) sum += ranks[i], positives += 1;
  const double expected = (sum - 0.5 * positives * (positives + 1)) / positives / (static_cast<double>(n) - positives);
  CHECK(auc<T>(scores, labels, ws).value == Approx(expected).epsilon(1e-14));
}
