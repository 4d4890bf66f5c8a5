// Oracles: torch's mse_loss and huber_loss (golden/losses.py); central differences.
#include <recops/nn/regression_loss.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("regression losses are torch's", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("losses");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Matrix<T> x = golden.matrix<T>("regression.x"), y = golden.matrix<T>("regression.y"),
                  w = golden.matrix<T>("regression.w");
  for (const bool weighted : {false, true}) {
    const MatrixView<const T> weights = weighted ? w.view() : MatrixView<const T>();
    const std::string suffix = weighted ? "_weighted" : "";
    Padded<T> dx(7, 5);
    CHECK(std::abs(mse_value_and_grad<T>(x, y, weights, dx) - golden.scalar("mse" + suffix + ".loss")) < bound);
    CHECK(max_difference(dx.view(), golden.matrix<double>("mse" + suffix + ".d0").view()) < bound);
    CHECK(dx.intact());
    CHECK(mse<T>(x, y, weights) == mse_value_and_grad<T>(x, y, weights, {}));
    Padded<T> dh(7, 5);
    CHECK(std::abs(huber_value_and_grad<T>(x, y, 0.7, weights, dh) - golden.scalar("huber" + suffix + ".loss")) < bound);
    CHECK(max_difference(dh.view(), golden.matrix<double>("huber" + suffix + ".d0").view()) < bound);
    CHECK(huber<T>(x, y, 0.7, weights) == huber_value_and_grad<T>(x, y, 0.7, weights, {}));
    huber_value_and_grad<T>(x, y, 0.7, weights, dh);  // adds
    CHECK(std::abs(static_cast<double>(dh(1, 1)) - 2 * golden.matrix<double>("huber" + suffix + ".d0")(1, 1)) < bound);
  }
}

TEMPLATE_TEST_CASE("edges of regression losses", "[nn][regression_loss]", float, double) {
  using T = TestType;
  const Matrix<T> none(0, 3), x{{1, std::numeric_limits<T>::quiet_NaN()}}, y{{3, 0}}, w{{2, 0}}, zero{{0, 0}};
  CHECK(mse<T>(none, none) == 0);
  CHECK(mse<T>(x, y, w) == 4);  // what has no weight is not read
  CHECK(mse<T>(x, y, zero) == 0);
  CHECK(std::isnan(mse<T>(x, y)));
  CHECK(std::isnan(huber<T>(x, y)));
  Matrix<T> dx(1, 2, T(0));
  huber_value_and_grad<T>(x, y, 0.5, {}, dx);
  CHECK(dx(0, 0) == T(-0.25));
  CHECK(std::isnan(dx(0, 1)));
  const Matrix<T> kept = dx;
  CHECK(error_of([&] { mse_value_and_grad<T>(x, none, {}, dx); }) ==
        "mse_value_and_grad: targets: expected shape [1, 2], got [0, 3]");
  CHECK(error_of([&] { huber<T>(x, y, 0); }) == "huber: delta: expected delta > 0, got 0");
  CHECK(max_difference(dx.view(), kept.view()) == 0);
}
