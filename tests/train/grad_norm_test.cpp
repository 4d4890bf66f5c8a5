// Oracles: the rule worked out by hand; invariants.
#include <recops/train/grad_norm.hpp>

#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
bool update(GradNorm& g, const std::vector<double>& losses, const std::vector<double>& norms) { return g.update(losses, norms); }
}  // namespace

TEST_CASE("one step by hand", "[train][grad_norm]") {
  GradNorm g(2, {.alpha = 1, .learning_rate = 0.1});
  // Ratios are 1 in the first step: the target is the mean norm (1 + 3) / 2 = 2; 1 is below, 3 above.
  CHECK(update(g, {2, 4}, {1, 3}));
  const double a = 1 + 0.1 * 1, b = 1 - 0.1 * 3;
  CHECK(std::abs(g.weights()[0] - 2 * a / (a + b)) < 1e-15);
  CHECK(std::abs(g.weights()[1] - 2 * b / (a + b)) < 1e-15);
}

TEST_CASE("weights stay positive with sum T and favour the slow task", "[train][grad_norm]") {
  GradNorm g(3, {.learning_rate = 0.5});
  Random random = random_stream(331);
  double fast = 1;
  for (int step = 0; step < 300; ++step) {
    fast *= 0.99;
    CHECK(update(g, {fast, 1, 1}, {random.uniform(), random.uniform(), random.uniform()}));
    double sum = 0;
    bool positive = true;
    for (const double w : g.weights()) {
      sum += w;
      positive = positive && w > 0;
    }
    CHECK(std::abs(sum - 3) < 1e-12);
    CHECK(positive);
  }
  CHECK(g.weights()[0] < g.weights()[1]);
  CHECK(g.weights()[0] < g.weights()[2]);
}

TEST_CASE("a step that is not finite changes nothing", "[train][grad_norm]") {
  GradNorm g(2);
  update(g, {1, 1}, {1, 2});
  const std::vector<double> before(g.weights().begin(), g.weights().end());
  CHECK(!update(g, {std::nan(""), 1}, {1, 2}));
  CHECK(!update(g, {1, 0}, {1, 2}));
  CHECK(!update(g, {1, 1}, {1, std::numeric_limits<double>::infinity()}));
  CHECK(std::vector<double>(g.weights().begin(), g.weights().end()) == before);
  CHECK(error_of([&] { update(g, {1}, {1, 2}); }) == "GradNorm::update: losses: expected size 2, got 1");
  CHECK(error_of([] { GradNorm(-2); }) == "GradNorm: tasks: expected a size >= 0, got -2");
}
