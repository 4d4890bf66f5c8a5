// Oracles: frequencies of the distributions; the same id elsewhere in another batch.
#include <recops/diffusion/timestep_sampler.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("steps are uniform, and a row's own", "[diffusion][timesteps]") {
  const Index n = 20000, steps = 7;
  Vector<std::int32_t> t(n), one(1);
  uniform_timesteps(steps, {.seed = 5, .step = 3}, {}, t);
  std::vector<int> count(steps + 1);
  for (const std::int32_t v : t) {
    REQUIRE((v >= 1 && v <= steps));
    ++count[static_cast<std::size_t>(v)];
  }
  const double expected = double(n) / steps;
  double chi = 0;
  for (Index v = 1; v <= steps; ++v) chi += std::pow(count[static_cast<std::size_t>(v)] - expected, 2) / expected;
  CHECK(chi < 27.9);  // 6 degrees of freedom, 1 in 10^4
  for (const Index b : {0, 17, 19999}) {
    const std::int64_t id = b;
    uniform_timesteps(steps, {.seed = 5, .step = 3}, IndexView(&id, 1), one);
    CHECK(one[0] == t[b]);
  }
  Vector<std::int32_t> later(n);
  uniform_timesteps(steps, {.seed = 5, .step = 4}, {}, later);
  CHECK(!std::equal(t.begin(), t.end(), later.begin()));
}

TEST_CASE("stratified steps cover the schedule evenly, in no order", "[diffusion][timesteps]") {
  Vector<std::int32_t> t(50), few(3), none(0);
  stratified_timesteps(100, {.seed = 1}, t);
  std::vector<std::int32_t> sorted(t.begin(), t.end());
  CHECK(!std::is_sorted(sorted.begin(), sorted.end()));
  std::sort(sorted.begin(), sorted.end());
  for (Index i = 0; i < 50; ++i) CHECK((sorted[static_cast<std::size_t>(i)] - 1) / 2 == i);  // one in each pair
  stratified_timesteps(1, {}, few);
  CHECK((few[0] == 1 && few[1] == 1 && few[2] == 1));
  stratified_timesteps(5, {}, none);
}

TEST_CASE("the guidance mask drops as often as it says, whole conditions by id", "[diffusion][timesteps]") {
  Vector<std::uint8_t> keep(20000), one(1);
  guidance_mask(0.1, {.seed = 9}, {}, keep);
  double dropped = 0;
  for (const int k : keep) dropped += 1 - k;
  CHECK(std::abs(dropped - 2000) < 4 * std::sqrt(20000 * 0.09));
  const std::int64_t id = 123;
  guidance_mask(0.1, {.seed = 9}, IndexView(&id, 1), one);
  CHECK(one[0] == keep[123]);
  guidance_mask(0, {}, {}, keep);
  CHECK(std::count(keep.begin(), keep.end(), 1) == 20000);
  guidance_mask(1, {}, {}, keep);
  CHECK(std::count(keep.begin(), keep.end(), 0) == 20000);
  CHECK(error_of([&] { guidance_mask(1.5, {}, {}, keep); }).find("0 <= drop <= 1") != std::string::npos);
}

TEST_CASE("importance: uniform until warm, then by loss, and unbiased", "[diffusion][timesteps]") {
  const Index steps = 4, n = 40000;
  TimestepSampler sampler(steps, {.history = 2, .uniform = 0.01});
  for (Index t = 1; t <= steps; ++t) CHECK(sampler.probability(t) == Approx(0.25));
  const std::int32_t all[] = {1, 2, 3, 4};
  const std::vector<float> losses{1, 2, 3, 4}, more{1, 2, 3, std::numeric_limits<float>::infinity()};
  sampler.update<float>(IndexView(all, 4), losses);
  CHECK(sampler.probability(4) == Approx(0.25));  // one loss of each is not enough
  sampler.update<float>(IndexView(all, 4), more);
  CHECK(sampler.probability(4) == Approx(0.25));  // an infinity does not count
  sampler.update<float>(IndexView(all + 3, 1), VectorView<const float>(losses).segment(3, 1));
  double total = 0;
  for (Index t = 1; t <= steps; ++t) {
    CHECK(sampler.probability(t) == Approx(0.99 * static_cast<double>(t) / 10 + 0.01 / 4).epsilon(1e-6));
    total += sampler.probability(t);
  }
  CHECK(total == Approx(1));
  Vector<std::int32_t> t(n);
  Vector<double> w(n);
  sampler.draw<double>({.seed = 2}, {}, t, w);
  double mean = 0, fours = 0;
  for (Index b = 0; b < n; ++b) {
    mean += w[b] * static_cast<double>(t[b] * t[b]) / static_cast<double>(n);  // E of t^2 under uniform steps: 7.5
    fours += t[b] == 4 ? 1 : 0;
  }
  CHECK(mean == Approx(7.5).epsilon(0.02));
  CHECK(fours / static_cast<double>(n) == Approx(sampler.probability(4)).epsilon(0.03));
  // Nor does what is finite and its square is not.
  const std::vector<double> huge{1e200, 1e200, 1e200, 1e200};
  for (int twice = 0; twice < 2; ++twice) sampler.update<double>(IndexView(all, 4), huge);
  CHECK(sampler.probability(4) == Approx(0.99 * 0.4 + 0.01 / 4).epsilon(1e-6));
  CHECK(error_of([&] { uniform_timesteps(Index{1} << 31, {}, {}, t); }).find("fewer than 2^31") != std::string::npos);
  CHECK(error_of([&] { TimestepSampler(0); }).find("one step or more") != std::string::npos);
  CHECK(error_of([&] { TimestepSampler(-1); }).find("TimestepSampler: steps: expected one step or more") != std::string::npos);
  CHECK(error_of([&] { TimestepSampler(3, {.history = -1}); }) == "TimestepSampler: history: expected history >= 1, got -1");
  CHECK(error_of([&] { sampler.update<float>(IndexView(all, 3), losses); }).find("one step for each loss") != std::string::npos);
  const std::int32_t five[] = {5, 5, 5, 5};
  CHECK(error_of([&] { sampler.update<float>(IndexView(five, 4), losses); }).find("steps from 1 to 4") != std::string::npos);
}
