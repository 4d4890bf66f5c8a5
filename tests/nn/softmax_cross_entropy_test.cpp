// Oracles: torch's cross_entropy (golden/losses.py); central differences; the formula in double.
#include <recops/nn/softmax_cross_entropy.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("softmax cross-entropy is torch's", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("losses");
  Workspace ws;
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Matrix<T> z = golden.matrix<T>("softmax.z");
  const auto targets = golden.values<std::int64_t>("softmax.t"), ids = golden.values<std::int64_t>("softmax.ids");
  const auto weights = golden.values<T>("softmax.w"), log_q = golden.values<T>("softmax.log_q");
  const struct {
    std::string name;
    SoftmaxCrossEntropyOptions<T> options;
  } cases[] = {{"softmax", {}},
               {"softmax_smooth", {.label_smoothing = 0.15}},
               {"softmax_weighted", {.weights = weights}},
               {"softmax_log_q", {.weights = weights, .log_q = log_q, .ids = ids}}};
  for (const auto& each : cases) {
    const auto& name = each.name;
    const auto& options = each.options;  // a structured binding cannot be captured below in clang 14
    CAPTURE(name);
    Padded<T> dz(z.rows(), z.cols());
    const double loss = softmax_cross_entropy_value_and_grad<T>(z, targets, options, dz, ws);
    CHECK(std::abs(loss - golden.scalar(name + ".loss")) < bound);
    CHECK(max_difference(dz.view(), golden.matrix<double>(name + ".d0").view()) < bound);
    CHECK(dz.intact());
    CHECK(softmax_cross_entropy<T>(z, targets, options, ws) == loss);
    CHECK(count_allocations([&] { softmax_cross_entropy_value_and_grad<T>(z, targets, options, dz, ws); }) == 0);
    CHECK(std::abs(static_cast<double>(dz(0, 3)) - 2 * golden.matrix<double>(name + ".d0")(0, 3)) < bound);  // adds
  }
}

TEMPLATE_TEST_CASE("sampled softmax is torch's", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("losses");
  Workspace ws;
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const auto p = golden.values<T>("sampled.p"), w = golden.values<T>("sampled.w"), log_qp = golden.values<T>("sampled.log_qp"),
             log_qn = golden.values<T>("sampled.log_qn");
  const Matrix<T> n = golden.matrix<T>("sampled.n");
  const auto pid = golden.values<std::int64_t>("sampled.pid"), nid = golden.values<std::int64_t>("sampled.nid");
  const struct {
    std::string name;
    SampledSoftmaxOptions<T> options;
  } cases[] = {{"sampled", {}},
               {"sampled_log_q",
                {.weights = w, .log_q_positive = log_qp, .log_q_negative = log_qn, .positive_ids = pid, .negative_ids = nid}}};
  for (const auto& [name, options] : cases) {
    CAPTURE(name);
    Vector<T> dp(6, T(0));
    Padded<T> dn(6, 21);
    const double loss = sampled_softmax_cross_entropy_value_and_grad<T>(p, n, options, dp, dn, ws);
    CHECK(std::abs(loss - golden.scalar(name + ".loss")) < bound);
    CHECK(max_difference(dn.view(), golden.matrix<double>(name + ".d1").view()) < bound);
    const auto expected = golden.values<double>(name + ".d0");
    for (Index b = 0; b < 6; ++b) CHECK(std::abs(static_cast<double>(dp[b]) - expected[static_cast<std::size_t>(b)]) < bound);
    CHECK(sampled_softmax_cross_entropy<T>(p, n, options, ws) == loss);
  }
}

TEST_CASE("with every option the gradient is that of the loss", "[nn][softmax_cross_entropy]") {
  Workspace ws;
  Random random = random_stream(371);
  Matrix<double> z = random_matrix<double>(5, 12, random), dz(5, 12, 0.0);
  const std::vector<std::int32_t> targets{0, 3, 11, 3, 7}, ids{1, 2, 3, 4, 1, 4, 4, 5, 6, 7, 8, 3};
  const std::vector<double> weights{1, 0.5, 0, 2, 0.25};
  const Vector<double> log_q = random_vector<double>(12, random);
  const SoftmaxCrossEntropyOptions<double> options{.weights = weights, .label_smoothing = 0.2, .log_q = log_q, .ids = ids};
  softmax_cross_entropy_value_and_grad<double>(z, targets, options, dz, ws);
  GradientReport report;
  check_gradient(
      "logits", VectorView<double>(z.data(), 60), VectorView<const double>(dz.data(), 60),
      [&] { return softmax_cross_entropy<double>(z, targets, options, ws); }, report);
  CAPTURE(report.where);
  CHECK(report.worst < 1e-7);
}

TEMPLATE_TEST_CASE("edges of softmax cross-entropy", "[nn][softmax_cross_entropy]", float, double) {
  using T = TestType;
  Workspace ws;
  const Matrix<T> none(0, 4), one{{T(3)}}, z{{0, 0}, {std::numeric_limits<T>::quiet_NaN(), 0}};
  const std::vector<std::int32_t> empty, zero{0}, two{0, 1}, beyond{0, 2};
  CHECK(softmax_cross_entropy<T>(none, empty, {}, ws) == 0);
  CHECK(softmax_cross_entropy<T>(one, zero, {}, ws) == 0);  // the only class there is
  Matrix<T> dz(2, 2, T(0));
  CHECK(std::isnan(softmax_cross_entropy_value_and_grad<T>(z, two, {}, dz, ws)));
  CHECK(std::abs(dz(0, 0) + T(0.25)) < T(1e-6));
  CHECK(std::isnan(dz(1, 0)));
  const std::vector<T> first{T(1), T(0)};  // what has no weight is not read
  CHECK(std::abs(softmax_cross_entropy<T>(z, two, {.weights = first}, ws) - std::log(2.0)) < 1e-6);
  const Matrix<T> kept = dz;
  CHECK(error_of([&] { softmax_cross_entropy_value_and_grad<T>(z, beyond, {}, dz, ws); }) ==
        "softmax_cross_entropy_value_and_grad: targets: expected indices from 0 to below 2, got 2 at position 1");
  CHECK(error_of([&] { softmax_cross_entropy<T>(z, zero, {}, ws); }) == "softmax_cross_entropy: targets: expected size 2, got 1");
  CHECK(error_of([&] { softmax_cross_entropy<T>(z, two, {.label_smoothing = 1}, ws); }) ==
        "softmax_cross_entropy: label_smoothing: expected 0 <= label_smoothing < 1, got 1");
  CHECK(max_difference(dz.view(), kept.view()) == 0);
  // No negatives: nothing to lose. Huge logits: no overflow.
  const Matrix<T> no_negatives(1, 0), huge{{T(1e30), T(-1e30)}};
  const std::vector<T> positive{T(5)};
  CHECK(sampled_softmax_cross_entropy<T>(positive, no_negatives, {}, ws) == 0);
  CHECK(softmax_cross_entropy<T>(huge, zero, {}, ws) == 0);
  // A column of -infinity is as if it were not there, for the smoothing too.
  const Matrix<T> some{{1, 2, -std::numeric_limits<T>::infinity()}}, those{{1, 2}};
  Matrix<T> dsome(1, 3, T(0)), dthose(1, 2, T(0));
  const double with = softmax_cross_entropy_value_and_grad<T>(some, zero, {.label_smoothing = 0.3}, dsome, ws),
               without = softmax_cross_entropy_value_and_grad<T>(those, zero, {.label_smoothing = 0.3}, dthose, ws);
  CHECK(std::abs(with - without) < 1e-6);
  CHECK(dsome(0, 2) == 0);
  for (Index j = 0; j < 2; ++j) CHECK(std::abs(dsome(0, j) - dthose(0, j)) < T(1e-6));
  CHECK(error_of([&] { sampled_softmax_cross_entropy<T>(positive, no_negatives, {.positive_ids = two}, ws); }) ==
        "sampled_softmax_cross_entropy: positive_ids: expected size 1, got 2");
}
