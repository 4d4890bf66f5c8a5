// Oracle: the definitions, bin by bin, over sorted copies.
#include <recops/metrics/calibration.hpp>

#include <numeric>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;

namespace {

template <class T>
struct Predictions {
  std::vector<T> p;
  std::vector<std::uint8_t> y;
};

template <class T>
Predictions<T> predictions(Index n, Index levels, std::uint64_t stream) {
  Random r(recops_test::seed(), stream);
  Predictions<T> c;
  for (Index i = 0; i < n; ++i) {
    const double u = levels > 0 ? double(r.below(levels)) / double(levels) : r.uniform();
    c.p.push_back(static_cast<T>(u * u));
    c.y.push_back(r.chance(0.8 * u));
  }
  return c;
}

// Shares a run of equal probabilities out by giving each entry the run's mean label; then cuts by position.
template <class T>
double equal_mass(const Predictions<T>& c, Index bins) {
  const auto n = static_cast<Index>(c.p.size());
  std::vector<std::pair<double, double>> sorted;
  for (std::size_t i = 0; i < c.p.size(); ++i) {
    double hits = 0, ties = 0;
    for (std::size_t j = 0; j < c.p.size(); ++j) {
      if (c.p[j] != c.p[i]) continue;
      hits += c.y[j];
      ++ties;
    }
    sorted.emplace_back(double(c.p[i]), hits / ties);
  }
  std::sort(sorted.begin(), sorted.end());
  double sum = 0;
  for (Index b = 0; b < bins; ++b) {
    double difference = 0;
    for (Index i = n * b / bins; i < n * (b + 1) / bins; ++i)
      difference += sorted[static_cast<std::size_t>(i)].first - sorted[static_cast<std::size_t>(i)].second;
    sum += std::abs(difference);
  }
  return sum / double(n);
}

}  // namespace

TEMPLATE_TEST_CASE("pcoc", "[metrics][calibration]", float, double) {
  using T = TestType;
  using V = std::vector<T>;
  using Y = std::vector<std::uint8_t>;
  const PcocResult r = pcoc<T>(kept(V{T(0.5), T(0.25), T(0.75)}), kept(Y{1, 0, 0}));
  CHECK((r.valid && r.value == 1.5 && r.predicted == 1.5 && r.observed == 1));
  const PcocResult w = pcoc<T>(kept(V{T(0.5), T(0.25)}), kept(Y{1, 1}), kept(V{2, 4}));
  CHECK((w.valid && same(w.value, 2.0 / 6) && w.observed == 6));
  const PcocResult none = pcoc<T>(kept(V{T(0.5)}), kept(Y{0}));
  CHECK((!none.valid && none.value == 0 && none.predicted == 0.5));
  CHECK(!pcoc<T>(kept(V{}), kept(Y{})).valid);
  const PcocResult poisoned = pcoc<T>(kept(V{std::numeric_limits<T>::quiet_NaN(), 1}), kept(Y{0, 1}));
  CHECK((!poisoned.valid && std::isnan(poisoned.value)));
  CHECK_THROWS_AS(pcoc<T>(kept(V{T(1.01)}), kept(Y{0})), Error);
  CHECK_THROWS_AS(pcoc<T>(kept(V{T(0.1)}), kept(Y{2})), Error);
  const auto c = predictions<T>(1000, 0, 91);
  Pcoc whole, left, right;
  whole.add<T>(c.p, c.y);
  left.add<T>(VectorView<const T>(c.p).segment(0, 333), VectorView<const std::uint8_t>(c.y).segment(0, 333));
  right.add<T>(VectorView<const T>(c.p).segment(333, 667), VectorView<const std::uint8_t>(c.y).segment(333, 667));
  right.merge(left);
  CHECK(same(right.result().value, whole.result().value, 1e-15));
}

TEMPLATE_TEST_CASE("calibration error by bins", "[metrics][calibration]", float, double) {
  using T = TestType;
  Workspace ws;
  for (const Index n : {1, 2, 15, 16, 129, 1000}) {
    for (const Index levels : {0, 1, 3, 20}) {
      const auto c = predictions<T>(n, levels, static_cast<std::uint64_t>(100 + n + levels));
      for (const Index bins : {1, 2, 7, 15, 2000}) {
        std::vector<double> difference(static_cast<std::size_t>(bins)), count(difference);
        for (std::size_t i = 0; i < c.p.size(); ++i) {
          const auto b = std::min(static_cast<std::size_t>(double(c.p[i]) * double(bins)), difference.size() - 1);
          difference[b] += double(c.p[i]) - c.y[i];
          count[b] += 1;
        }
        double sum = 0, largest = 0;
        Index used = 0;
        for (std::size_t b = 0; b < count.size(); ++b) {
          sum += std::abs(difference[b]);
          if (count[b] > 0) largest = std::max(largest, std::abs(difference[b]) / count[b]);
          used += count[b] > 0;
        }
        const CalibrationResult wide = calibration_error<T>(c.p, c.y, {.bins = bins}, ws);
        CHECK((wide.valid && same(wide.value, sum / double(n)) && same(wide.largest, largest) && wide.used_bins == used));
        CalibrationBins kept_bins(bins);
        kept_bins.add<T>(c.p, c.y);
        CHECK((same(kept_bins.result().value, wide.value) && same(kept_bins.result().largest, wide.largest)));
        const CalibrationResult mass = calibration_error<T>(c.p, c.y, {.bins = bins, .binning = Binning::equal_mass}, ws);
        CHECK((mass.valid && same(mass.value, equal_mass(c, bins)) && mass.used_bins == std::min(n, bins)));
      }
    }
  }
}

TEMPLATE_TEST_CASE("one bin is the distance of the means, and equal mass ignores the order of entries", "[metrics][calibration]",
                   float, double) {
  using T = TestType;
  Workspace ws;
  auto c = predictions<T>(500, 12, 92);
  double p = 0, y = 0;
  for (std::size_t i = 0; i < 500; ++i) {
    p += double(c.p[i]) / 500;
    y += double(c.y[i]) / 500;
  }
  for (const Binning b : {Binning::equal_mass, Binning::equal_width})
    CHECK(same(calibration_error<T>(c.p, c.y, {.bins = 1, .binning = b}, ws).value, std::abs(p - y)));
  const double before = calibration_error<T>(c.p, c.y, {.binning = Binning::equal_mass}, ws).value;
  std::reverse(c.p.begin(), c.p.end());
  std::reverse(c.y.begin(), c.y.end());
  CHECK(same(calibration_error<T>(c.p, c.y, {.binning = Binning::equal_mass}, ws).value, before, 1e-14));
  recops_test::AllocationCounter counter;
  calibration_error<T>(c.p, c.y, {.binning = Binning::equal_mass}, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEMPLATE_TEST_CASE("calibration at the edges", "[metrics][calibration]", float, double) {
  using T = TestType;
  using V = std::vector<T>;
  using Y = std::vector<std::uint8_t>;
  Workspace ws;
  CHECK(!calibration_error<T>(kept(V{}), kept(Y{}), {}, ws).valid);
  for (const Binning b : {Binning::equal_mass, Binning::equal_width}) {
    CHECK(calibration_error<T>(kept(V{0, 1}), kept(Y{0, 1}), {.binning = b}, ws).value == 0);
    const auto poisoned =
        calibration_error<T>(kept(V{0, std::numeric_limits<T>::quiet_NaN()}), kept(Y{0, 1}), {.binning = b}, ws);
    CHECK((!poisoned.valid && std::isnan(poisoned.value)));
  }
  CHECK_THROWS_AS(calibration_error<T>(kept(V{2}), kept(Y{0}), {}, ws), Error);
  CHECK_THROWS_AS(calibration_error<T>(kept(V{0}), kept(Y{0}), {.bins = 0}, ws), Error);
  CHECK_THROWS_AS(CalibrationBins(0), Error);
  const auto c = predictions<T>(400, 0, 93), d = predictions<T>(300, 0, 94);
  CalibrationBins whole(10), other(10);
  whole.add<T>(c.p, c.y);
  other.add<T>(d.p, d.y);
  other.merge(whole);
  whole.add<T>(d.p, d.y);
  CHECK(same(other.result().value, whole.result().value, 1e-15));
  Index count = 0;
  for (Index b = 0; b < 10; ++b) {
    count += whole[b].count;
    CHECK((whole[b].mean_prediction >= double(b) / 10 && whole[b].mean_prediction <= double(b + 1) / 10));
  }
  CHECK(count == 700);
  CHECK_THROWS_AS(whole.merge(CalibrationBins(9)), Error);
  CalibrationBins poisoned(4);
  poisoned.add<T>(kept(V{std::numeric_limits<T>::quiet_NaN(), T(0.5)}), kept(Y{0, 1}));
  CHECK((!poisoned.result().valid && std::isnan(poisoned.result().value)));
}
