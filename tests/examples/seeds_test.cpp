// Oracle: quantiles of Student's t from printed tables; interval and table computed by hand.
#include "examples/common/seeds.hpp"

#include "support/catch.hpp"

using namespace examples;

TEST_CASE("quantiles of Student's t", "[examples][seeds]") {
  CHECK(student_t_quantile(0.975, 1) == Approx(12.7062047).epsilon(1e-8));
  CHECK(student_t_quantile(0.975, 2) == Approx(4.30265273).epsilon(1e-8));
  CHECK(student_t_quantile(0.975, 4) == Approx(2.77644511).epsilon(1e-8));
  CHECK(student_t_quantile(0.975, 9) == Approx(2.26215716).epsilon(1e-8));
  CHECK(student_t_quantile(0.975, 30) == Approx(2.04227246).epsilon(1e-8));
  CHECK(student_t_quantile(0.95, 5) == Approx(2.01504837).epsilon(1e-8));
  CHECK(student_t_quantile(0.995, 4) == Approx(4.60409487).epsilon(1e-8));
  CHECK(student_t_quantile(0.975, 1e6) == Approx(1.95996).epsilon(1e-5));  // the normal distribution's
  CHECK(student_t_quantile(0.5, 3) == Approx(0).margin(1e-12));
  CHECK(student_t_quantile(0.025, 4) == Approx(-2.77644511).epsilon(1e-8));
  for (const double df : {1.0, 3.0, 17.0})
    for (const double p : {0.6, 0.9, 0.999}) CHECK(student_t_cdf(student_t_quantile(p, df), df) == Approx(p));
  // One degree of freedom is Cauchy's distribution.
  CHECK(student_t_cdf(1, 1) == Approx(0.75));
  CHECK(student_t_cdf(-1, 1) == Approx(0.25));
  CHECK_THROWS_AS(student_t_quantile(1, 3), recops::Error);
}

TEST_CASE("the t-interval of a mean", "[examples][seeds]") {
  const std::vector<double> values{1, 2, 3, 4, 5};  // deviation sqrt(2.5)
  const Interval i = t_interval(values);
  CHECK(i.mean == Approx(3));
  CHECK(i.half_width == Approx(2.77644511 * std::sqrt(2.5 / 5)));
  CHECK(i.low() == Approx(3 - i.half_width));
  CHECK(i.high() == Approx(3 + i.half_width));
  const std::vector<double> one{7}, none;
  CHECK(std::isnan(t_interval(one).half_width));
  CHECK(t_interval(one).mean == 7);
  CHECK(std::isnan(t_interval(none).mean));
}

TEST_CASE("a comparison is paired by seed", "[examples][seeds]") {
  // The systems differ by exactly 0.5 whatever the seed does: no doubt about the difference.
  const SeedTable table = compare("AUC", {"pool", "attention"}, [](Index system, std::uint64_t seed) {
    return static_cast<double>(seed * seed) + 0.5 * static_cast<double>(system);
  });
  CHECK(table.seeds() == std::vector<std::uint64_t>{1, 2, 3, 4, 5});
  CHECK(table.summary(0).mean == Approx(11));
  CHECK(table.summary(0).half_width > 1);
  CHECK(table.difference(1, 0).mean == Approx(0.5));
  CHECK(table.difference(1, 0).half_width == Approx(0).margin(1e-12));
  CHECK(table.difference(0, 1).mean == Approx(-0.5));
}

TEST_CASE("the table is aligned and says what is missing", "[examples][seeds]") {
  SeedTable table("AUC", {"pool", "attention"}, {1, 22});
  table.set(0, 0, 0.5);
  table.set(0, 1, 0.25);
  table.set(1, 0, 0.75);
  CHECK(table.text(0, 2) ==
        "AUC        seed 1  seed 22  mean  minus pool (95 %)\n"
        "pool         0.50     0.25  0.38\n"
        "attention    0.75        -  0.75          +0.25 ± -\n");
  SeedTable once("AUC", {"pool", "attention"}, {3});
  once.set(0, 0, 0.5);
  once.set(1, 0, 0.75);
  CHECK(once.text(0, 2) ==
        "AUC        seed 3  mean  minus pool, one seed\n"
        "pool         0.50  0.50\n"
        "attention    0.75  0.75                 +0.25\n");
  CHECK_THROWS_AS(table.set(2, 0, 0), recops::Error);
  CHECK_THROWS_AS(table.set(0, 2, 0), recops::Error);
}
