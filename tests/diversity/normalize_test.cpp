// Oracle: the formulas in double; central differences for the gradient.
#include <recops/diversity/normalize.hpp>

#include <numeric>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("normalize_scores by every scale", "[diversity][normalize]", float, double) {
  using T = TestType;
  Workspace scratch;
  const auto scaled = [&](Vector<T> r, ScoreScale scale) {
    normalize_scores<T>(VectorView<const T>(r), scale, r, scratch);  // in place
    return std::vector<double>(r.begin(), r.end());
  };
  const auto close = [](const std::vector<double>& got, const std::vector<double>& expected) {
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == Approx(expected[i]).epsilon(1e-6));
  };
  const Vector<T> r{T(3), T(1), T(3), T(-1), T(4)};
  const double sd = std::sqrt(((3 - 2) * (3 - 2) * 2 + 1 + 9 + 4) / 5.0);
  close(scaled(r, ScoreScale::none), {3, 1, 3, -1, 4});
  close(scaled(r, ScoreScale::minmax), {0.8, 0.4, 0.8, 0, 1});
  close(scaled(r, ScoreScale::zscore), {1 / sd, -1 / sd, 1 / sd, -3 / sd, 2 / sd});
  close(scaled(r, ScoreScale::sigmoid), {0.9525741268, 0.7310585786, 0.9525741268, 0.2689414214, 0.9820137900});
  close(scaled(r, ScoreScale::rank), {0.8, 0.4, 0.6, 0.2, 1});

  const Vector<T> equal(3, T(7));
  close(scaled(equal, ScoreScale::minmax), {0, 0, 0});
  close(scaled(equal, ScoreScale::zscore), {0, 0, 0});
  close(scaled(equal, ScoreScale::rank), {1, 2.0 / 3, 1.0 / 3});
  for (const auto scale : {ScoreScale::none, ScoreScale::minmax, ScoreScale::zscore, ScoreScale::sigmoid, ScoreScale::rank}) {
    CHECK(scaled({}, scale).empty());
    CHECK(scaled({T(5)}, scale).size() == 1);
  }
}

TEMPLATE_TEST_CASE("normalize_scores passes over what is not finite, and over the ends of the range", "[diversity][normalize]",
                   float, double) {
  using T = TestType;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN(),
          huge = std::numeric_limits<T>::max();
  Workspace scratch;
  for (const auto scale : {ScoreScale::none, ScoreScale::minmax, ScoreScale::zscore, ScoreScale::sigmoid, ScoreScale::rank}) {
    const Vector<T> with{T(1), nan, T(3), -inf, T(2), inf}, without{T(1), T(3), T(2)};
    Vector<T> a(6), b(3);
    normalize_scores<T>(with, scale, a, scratch);
    normalize_scores<T>(without, scale, b, scratch);
    CHECK((std::isnan(a[1]) && a[3] == -inf && a[5] == inf));
    CHECK((a[0] == b[0] && a[2] == b[1] && a[4] == b[2]));
  }
  const Vector<T> wide{-huge, huge, T(0)};
  Vector<T> out(3);
  normalize_scores<T>(wide, ScoreScale::minmax, out, scratch);
  CHECK((out[0] == T(0) && out[1] == T(1) && out[2] == T(0.5)));
  for (const T size : {huge, T(1), std::numeric_limits<T>::min(), 2 * std::numeric_limits<T>::denorm_min()}) {
    // Squares neither overflow nor vanish.
    const Vector<T> three{-size, size, T(0)};
    normalize_scores<T>(three, ScoreScale::zscore, out, scratch);
    CHECK((std::abs(out[0] + T(std::sqrt(1.5))) < T(1e-6) && std::abs(out[1] - T(std::sqrt(1.5))) < T(1e-6) && out[2] == T(0)));
  }
  {  // nor does a deviation, be it below the least number there is
    Vector<T> ten(10, T(0));
    ten[3] = 2 * std::numeric_limits<T>::denorm_min();
    normalize_scores<T>(ten, ScoreScale::zscore, ten, scratch);
    CHECK(std::all_of(ten.begin(), ten.end(), [](T y) { return std::abs(y) < T(4); }));
    CHECK(ten[3] > T(1));
  }
  // Equal scores have no deviation, whatever the rounding of their mean.
  for (const double score : {0.1, 0.3, -3.3, 1e30}) {
    for (Index n = 1; n < 40; ++n) {
      Vector<T> equal(n, static_cast<T>(score));
      normalize_scores<T>(equal, ScoreScale::zscore, equal, scratch);
      CHECK(std::all_of(equal.begin(), equal.end(), [](T y) { return y == T(0); }));
    }
  }
}

TEST_CASE("normalize says what is wrong, and allocates nothing once warm", "[diversity][normalize]") {
  using recops_test::contains;
  Workspace scratch;
  Matrix<float> x(3, 4, 1.0f), y(3, 5, 7.0f);
  Vector<float> r(4, 2.0f), out(3, 7.0f), good(4);
  CHECK_THROWS_WITH(normalize_rows<float>(x, y), contains("normalize_rows: y: expected shape [3, 4], got [3, 5]"));
  CHECK_THROWS_WITH(normalize_rows_backward<float>(x, y, x), contains("normalize_rows_backward: dy"));
  CHECK_THROWS_WITH(normalize_rows_backward<float>(x, x, y), contains("normalize_rows_backward: dx"));
  CHECK_THROWS_WITH(normalize_scores<float>(VectorView<const float>(r), ScoreScale::rank, out, scratch),
                    contains("normalize_scores: out"));
  CHECK((y(0, 0) == 7.0f && out[0] == 7.0f));
  normalize_scores<float>(VectorView<const float>(r), ScoreScale::rank, good, scratch);
  const recops_test::AllocationCounter counter;
  normalize_scores<float>(VectorView<const float>(r), ScoreScale::rank, good, scratch);
  CHECK(counter.count() == 0);
}
