// Oracle: the definition; gradients against central differences.
#include <recops/train/tchebycheff.hpp>

#include <recops/core/matrix.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("tchebycheff is the furthest weighted loss, or a smooth maximum of them", "[train][tchebycheff]") {
  Vector<double> losses{0.5, 2, 1.2};
  const Vector<double> weights{3, 0.5, 1}, ideal{0.2, 0.1, 0.3};
  Vector<double> d(3, 1.0);
  CHECK(tchebycheff(losses, weights, {}, d) == 1.5);
  CHECK((d[0] == 4 && d[1] == 1 && d[2] == 1));
  for (const double smoothing : {0.0, 1e-3, 0.3, 10.0}) {
    const TchebycheffOptions o{.ideal = ideal, .smoothing = smoothing};
    Vector<double> slope(3, 0.0);
    const double value = tchebycheff(losses, weights, o, slope);
    double sum = 0, most = -1e9;
    for (Index m = 0; m < 3; ++m) {
      const double t = weights[m] * (losses[m] - ideal[m]);
      most = std::max(most, t);
      sum += smoothing > 0 ? std::exp(t / smoothing) : 0;
    }
    CHECK(value == Approx(smoothing > 0.01 ? smoothing * std::log(sum) : most).epsilon(1e-12).margin(1e-3 * (smoothing == 1e-3)));
    for (Index m = 0; m < 3; ++m) {
      const double h = 1e-6, before = losses[m];
      losses[m] = before + h;
      const double up = tchebycheff(losses, weights, o, {});
      losses[m] = before - h;
      const double down = tchebycheff(losses, weights, o, {});
      losses[m] = before;
      CHECK(slope[m] == Approx((up - down) / (2 * h)).margin(1e-7));
    }
  }
  losses[1] = std::nan("");
  CHECK(std::isnan(tchebycheff(losses, weights, {}, d)));
  CHECK((std::isnan(d[0]) && std::isnan(d[2])));
  CHECK_THAT(error_of([&] { tchebycheff({}, {}, {}, {}); }), contains("one loss or more"));
  const Vector<double> negative{1, -1, 1};
  CHECK_THAT(error_of([&] { tchebycheff(losses, negative, {}, {}); }), contains("weights"));
  CHECK_THAT(error_of([&] { tchebycheff(losses, weights, {.smoothing = -1}, {}); }), contains("smoothing"));
}
