// Oracle: the formulas in double; central differences for the gradient.
#include <recops/diversity/normalize.hpp>

#include <numeric>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("normalize_rows gives rows of length 1", "[diversity][normalize]", float, double) {
  using T = TestType;
  auto random = recops_test::random_stream(1);
  for (const Index cols : {0, 1, 2, 15, 16, 17, 100}) {
    const auto numbers = recops_test::random_matrix<T>(9, cols, random);
    recops_test::Padded<T> x(numbers.view()), y(9, cols);
    if (cols > 0) std::fill_n(x.view().row(4), cols, T(0));
    normalize_rows<T>(x.view(), y.view());
    for (Index i = 0; i < 9; ++i) {
      double square = 0;
      for (Index d = 0; d < cols; ++d) square += std::pow(static_cast<double>(x(i, d)), 2);
      for (Index d = 0; d < cols; ++d) {
        const double expected = i == 4 ? 0 : static_cast<double>(x(i, d)) / std::sqrt(square);
        CHECK(static_cast<double>(y(i, d)) == Approx(expected).epsilon(std::is_same_v<T, float> ? 1e-6 : 1e-14));
      }
    }
    CHECK((x.intact() && y.intact()));
    normalize_rows<T>(x.view(), x.view());  // in place
    CHECK(recops_test::max_difference(x.view(), y.view()) == 0);
  }
}

TEMPLATE_TEST_CASE("normalize_rows keeps NaN and overflow in their rows; tiny rows are zeros", "[diversity][normalize]", float,
                   double) {
  using T = TestType;
  Matrix<T> x(5, 3, T(2));
  x(0, 1) = std::numeric_limits<T>::quiet_NaN();
  x(1, 1) = std::numeric_limits<T>::infinity();
  x(2, 1) = std::numeric_limits<T>::max();
  for (Index d = 0; d < 3; ++d) x(3, d) = std::is_same_v<T, float> ? T(1e-12) : T(1e-14);
  normalize_rows<T>(x, x);
  for (Index d = 0; d < 3; ++d) {
    for (const Index i : {0, 1, 2}) CHECK(std::isnan(x(i, d)));
    CHECK(x(3, d) == T(0));
    CHECK(x(4, d) == Approx(1 / std::sqrt(3.0)));
  }
}

TEST_CASE("normalize_rows_backward agrees with central differences and adds", "[diversity][normalize]") {
  auto random = recops_test::random_stream(2);
  auto x = recops_test::random_matrix<double>(4, 7, random);
  const auto dy = recops_test::random_matrix<double>(4, 7, random);
  std::fill_n(x.row(2), 7, 0.0);
  Matrix<double> dx(4, 7, 5.0), y(4, 7);
  normalize_rows_backward<double>(x, dy, dx);
  const auto loss = [&] {
    normalize_rows<double>(x, y);
    return std::inner_product(y.data(), y.data() + 28, dy.data(), 0.0);
  };
  for (Index i = 0; i < 4; ++i) {
    for (Index d = 0; d < 7; ++d) {
      if (i == 2) {
        CHECK(dx(i, d) == 5.0);  // no gradient through a zero row
        continue;
      }
      const double old = x(i, d), step = 1e-6;
      x(i, d) = old + step;
      const double up = loss();
      x(i, d) = old - step;
      const double down = loss();
      x(i, d) = old;
      CHECK(dx(i, d) - 5 == Approx((up - down) / (2 * step)).margin(1e-8));
    }
  }
}

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
