// Oracle: the formulas in double; central differences for the gradient.
#include <recops/nn/normalize_rows.hpp>

#include <numeric>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("normalize_rows gives rows of length 1", "[nn][normalize_rows]", float, double) {
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

TEMPLATE_TEST_CASE("normalize_rows keeps NaN and overflow in their rows; tiny rows are zeros", "[nn][normalize_rows]", float,
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

TEMPLATE_TEST_CASE("the gradient of normalize_rows goes as 1 / |x|, for long rows too", "[nn][normalize_rows]", float, double) {
  using T = TestType;
  const T size = std::is_same_v<T, float> ? T(1e16) : T(1e120);
  const Matrix<T> x{{size, size}}, dy{{1, 0}};
  Matrix<T> dx(1, 2, T(0));
  normalize_rows_backward<T>(x, dy, dx);
  CHECK(dx(0, 0) * size * T(std::sqrt(8.0)) == Approx(1).epsilon(1e-5));
  CHECK(dx(0, 1) * size * T(std::sqrt(8.0)) == Approx(-1).epsilon(1e-5));
}

TEST_CASE("normalize_rows_backward agrees with central differences and adds", "[nn][normalize_rows]") {
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
