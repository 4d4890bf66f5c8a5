/// @file   tests/ranking/group_cases.hpp
/// @brief  Jagged groups of random scores, and what every loss over groups must do whatever it computes.
#pragma once
#include <functional>
#include <recops/ranking/group_loss.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

namespace recops_test {

/// Groups of the given sizes; labels are 0 or 1, grades run from 0 to 4.
template <class T>
struct GroupCase {
  std::vector<std::int64_t> offsets{0};
  recops::Vector<T> scores, grades;
  std::vector<std::uint8_t> labels;

  GroupCase(const std::vector<recops::Index>& sizes, recops::Random& random, double spread = 1) {
    for (const recops::Index n : sizes) offsets.push_back(offsets.back() + n);
    const recops::Index total = offsets.back();
    scores = random_vector<T>(total, random);
    for (T& s : scores) s = static_cast<T>(spread * static_cast<double>(s));
    grades = recops::Vector<T>(total);
    for (T& g : grades) g = static_cast<T>(random.below(5));
    labels.resize(static_cast<std::size_t>(total));
    for (auto& y : labels) y = random.chance(0.3) ? 1 : 0;
  }
  recops::Index groups() const { return static_cast<recops::Index>(offsets.size()) - 1; }
  recops::Index begin(recops::Index g) const { return offsets[static_cast<std::size_t>(g)]; }
  recops::Index end(recops::Index g) const { return offsets[static_cast<std::size_t>(g) + 1]; }
  bool label(recops::Index i) const { return labels[static_cast<std::size_t>(i)] != 0; }
  bool both_classes(recops::Index g) const {
    recops::Index positives = 0;
    for (recops::Index i = begin(g); i < end(g); ++i) positives += label(i);
    return positives > 0 && positives < end(g) - begin(g);
  }
};

/// The sizes that tests use: empty groups at either end and between, one, and what is no multiple of a vector.
inline std::vector<recops::Index> group_sizes() { return {0, 1, 2, 7, 0, 64, 33, 130, 2, 0}; }

/// A loss of scores: `loss(scores, options, dscores (or empty), ws)`.
template <class T>
using LossOfScores = std::function<recops::GroupLoss(recops::VectorView<const T>, const recops::GroupLossOptions<T>&,
                                                     recops::VectorView<T>, recops::Workspace&)>;

/// Value and gradient of one group in double, from the book: `reference(scores, begin, n, gradient)` returns NaN for "no loss".
using GroupReference = std::function<double(const std::vector<double>&, recops::Index, std::vector<double>&)>;

/// Checks `loss` against `reference` group by group: values, the mean, weights and sums; that gradients add; one group without
/// offsets is up to the caller.
template <class T>
void check_against(const GroupCase<T>& c, const LossOfScores<T>& loss, const GroupReference& reference, double tolerance,
                   bool balanced = true) {
  using namespace recops;
  const Index n = c.scores.size(), groups = c.groups();
  Vector<T> weights(groups);
  for (Index g = 0; g < groups; ++g) weights[g] = static_cast<T>(g % 5 == 3 ? 0 : 0.25 * static_cast<double>(1 + g % 3));
  for (const bool weighted : {false, true}) {
    for (const GroupReduction reduction : {GroupReduction::mean, GroupReduction::sum}) {
      Vector<T> losses(groups, T(9)), gradient(n, T(1));
      Workspace ws;
      const VectorView<const T> w = weighted ? VectorView<const T>(weights) : VectorView<const T>();
      const GroupLoss got = loss(c.scores, {.reduction = reduction, .weights = w, .losses = losses}, gradient, ws);
      const GroupLoss value = loss(c.scores, {.reduction = reduction, .weights = w}, {}, ws);
      std::vector<double> expected(static_cast<std::size_t>(n)), value_of(static_cast<std::size_t>(groups));
      double mass = 0, total = 0, largest = 0;
      Index valid = 0;
      for (Index g = 0; g < groups; ++g) {
        const double weight = weighted ? static_cast<double>(weights[g]) : 1.0;
        std::vector<double> s, d(static_cast<std::size_t>(c.end(g) - c.begin(g)), 0.0);
        for (Index i = c.begin(g); i < c.end(g); ++i) s.push_back(static_cast<double>(c.scores[i]));
        const double one = weight > 0 && !s.empty() ? reference(s, c.begin(g), d) : std::nan("");
        value_of[static_cast<std::size_t>(g)] = std::isnan(one) ? 0 : one;
        if (std::isnan(one)) continue;
        ++valid;
        mass += weight;
        total += weight * one;
        for (Index i = c.begin(g); i < c.end(g); ++i) {
          double& e = expected[static_cast<std::size_t>(i)];
          e = weight * d[static_cast<std::size_t>(i - c.begin(g))];
          largest = std::max(largest, std::abs(e));
        }
      }
      const double unit = reduction == GroupReduction::mean && mass > 0 ? 1 / mass : 1;
      CAPTURE(weighted, static_cast<int>(reduction));
      CHECK(got.valid_groups == valid);
      CHECK(got.skipped_groups == groups - valid);
      CHECK(got.value == Approx(total * unit).epsilon(tolerance).margin(tolerance));
      CHECK(value.value == Approx(got.value).epsilon(tolerance).margin(tolerance));
      for (Index g = 0; g < groups; ++g) {
        const double one = value_of[static_cast<std::size_t>(g)];
        CHECK(static_cast<double>(losses[g]) == Approx(one).epsilon(tolerance).margin(tolerance));
        double sum = 0;
        for (Index i = c.begin(g); i < c.end(g); ++i) sum += static_cast<double>(gradient[i]) - 1;
        if (balanced) CHECK(std::abs(sum) <= 100 * static_cast<double>(std::numeric_limits<T>::epsilon()) * (1 + largest * unit));
      }
      double worst = 0;
      for (Index i = 0; i < n; ++i)
        worst = std::max(worst, std::abs(static_cast<double>(gradient[i]) - 1 - unit * expected[static_cast<std::size_t>(i)]));
      CHECK(worst <= tolerance * (1 + largest * unit));
    }
  }
}

/// The gradient of the mean against central differences.
inline void check_differences(const GroupCase<double>& c, const LossOfScores<double>& loss, double tolerance = 1e-7) {
  using namespace recops;
  Workspace ws;
  Vector<double> s(c.scores.size()), gradient(c.scores.size(), 0.0);
  for (Index i = 0; i < s.size(); ++i) s[i] = c.scores[i];
  loss(s, {}, gradient, ws);
  for (Index i = 0; i < s.size(); ++i) {
    const double x = s[i], h = 1e-5;
    s[i] = x + h;
    const double up = loss(s, {}, {}, ws).value;
    s[i] = x - h;
    const double down = loss(s, {}, {}, ws).value;
    s[i] = x;
    CAPTURE(i);
    CHECK(gradient[i] == Approx((up - down) / (2 * h)).margin(tolerance));
  }
}

/// What holds for every loss over groups: a NaN or infinity stays in its group, threads change no bit, a warm call allocates
/// nothing, wrong sizes throw before anything is written.
template <class T>
void check_habits(const GroupCase<T>& c, const LossOfScores<T>& loss) {
  using namespace recops;
  const Index n = c.scores.size(), groups = c.groups();
  Workspace ws;
  Vector<T> gradient(n, T(0)), again(n, T(0)), losses(groups), sound(groups);
  const GroupLoss first = loss(c.scores, {.losses = sound}, gradient, ws);
  Threads threads{3};
  Workspace many(make_executor(threads, 3));
  CHECK(loss(c.scores, {}, again, many).value == first.value);
  for (Index i = 0; i < n; ++i) CHECK(again[i] == gradient[i]);
  CHECK(count_allocations([&] { loss(c.scores, {}, again, ws); }) == 0);

  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    Vector<T> spoiled(n), d(n, T(0));
    for (Index i = 0; i < n; ++i) spoiled[i] = c.scores[i];
    const Index hit = 5;  // a group of 64
    spoiled[c.begin(hit) + 3] = bad;
    const GroupLoss got = loss(spoiled, {.losses = losses}, d, ws);
    CHECK(std::isnan(got.value));
    for (Index g = 0; g < groups; ++g) {
      CHECK((g == hit ? std::isnan(losses[g]) : losses[g] == sound[g]));
      for (Index i = c.begin(g); i < c.end(g); ++i) CHECK((g == hit ? std::isnan(d[i]) : d[i] == gradient[i]));
    }
  }

  Vector<T> untouched(n, T(4)), short_one(n - 1, T(4)), weights(groups, T(1)), few(groups - 1);
  const VectorView<const T> fewer(c.scores.data(), n - 1);
  CHECK_THAT(error_of([&] { loss(fewer, {}, untouched, ws); }), contains("expected"));
  CHECK_THAT(error_of([&] { loss(c.scores, {}, short_one, ws); }), contains("dscores"));
  CHECK_THAT(error_of([&] { loss(c.scores, {.weights = few}, untouched, ws); }), contains("weights"));
  CHECK_THAT(error_of([&] { loss(c.scores, {.losses = few}, untouched, ws); }), contains("losses"));
  weights[2] = T(-1);
  CHECK_THAT(error_of([&] { loss(c.scores, {.weights = weights}, untouched, ws); }), contains("finite weights >= 0"));
  for (const T u : untouched) CHECK(u == 4);
  for (const T u : short_one) CHECK(u == 4);
}

}  // namespace recops_test
