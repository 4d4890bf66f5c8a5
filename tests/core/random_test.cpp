// Oracles: the known-answer vectors published with Philox4x32-10 (Salmon et al., SC 2011); chi-square and normal moments.
#include <recops/core/random.hpp>

#include <cmath>
#include <vector>

#include "support/catch.hpp"

using namespace recops;

namespace {

bool equal(PhiloxBlock a, PhiloxBlock b) {
  return a.word[0] == b.word[0] && a.word[1] == b.word[1] && a.word[2] == b.word[2] && a.word[3] == b.word[3];
}

// A chi-square statistic with d degrees of freedom, as a standard normal (Wilson and Hilferty).
double chi_square_deviation(double statistic, double d) {
  return (std::cbrt(statistic / d) - (1 - 2 / (9 * d))) / std::sqrt(2 / (9 * d));
}

}  // namespace

TEST_CASE("Philox4x32-10 known answers", "[core][random]") {
  CHECK(equal(philox4x32({{0, 0, 0, 0}}, 0), {{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}}));
  CHECK(equal(philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~std::uint64_t{0}), {{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}}));
  CHECK(
      equal(philox4x32({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, (std::uint64_t{0x299f31d0u} << 32) | 0xa4093822u),
            {{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}}));
  static_assert(philox4x32({{0, 0, 0, 0}}, 0).word[0] == 0x6627e8d5u);  // and at compile time
}

TEST_CASE("a sequence is the blocks of its counters", "[core][random]") {
  const std::uint64_t seed = 0x0123456789abcdefu, stream = 0xfedcba9876543210u;
  Random r(seed, stream);
  for (std::uint32_t block = 0; block < 3; ++block) {
    const PhiloxBlock b =
        philox4x32({{block, 0, static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}}, seed);
    for (int i = 0; i < 4; ++i) CHECK(r.word() == b.word[i]);
  }
  Random copy = r;
  CHECK(copy.word() == r.word());
  CHECK(Random(1, 0).word() != Random(1, 1).word());
  CHECK(Random(1, 0).word() != Random(2, 0).word());
}

TEST_CASE("uniforms never reach 0 or 1", "[core][random]") {
  CHECK((uniform_float(0) > 0.0f && uniform_float(~0u) < 1.0f));
  CHECK((uniform_double(0, 0) > 0.0 && uniform_double(~0u, ~0u) < 1.0));
  CHECK((uniform_float(0) == 0x1p-24f && uniform_float(~0u) == 1 - 0x1p-24f));
  CHECK((uniform_double(0, 0) == 0x1p-53 && uniform_double(~0u, ~0u) == 1 - 0x1p-53));
  CHECK((uniform_float(1u << 31) > 0.5f && uniform_double(1u << 31, 0) > 0.5));
  Random r(recops_test::seed(), 3);
  constexpr int n = 200000, bins = 64;
  std::vector<double> count(bins);
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    const double u = r.uniform();
    REQUIRE((u > 0 && u < 1));
    sum += u;
    count[static_cast<std::size_t>(u * bins)] += 1;
  }
  double chi = 0;
  for (const double c : count) chi += (c - n / bins) * (c - n / bins) / (n / bins);
  CHECK(std::abs(chi_square_deviation(chi, bins - 1)) < 5);
  CHECK(std::abs(sum / n - 0.5) < 5 * std::sqrt(1.0 / 12 / n));
  for (int i = 0; i < 1000; ++i) {
    const double u = r.uniform(-3, 2);
    CHECK((u >= -3 && u <= 2));
  }
}

TEST_CASE("below is uniform", "[core][random]") {
  Random r(recops_test::seed(), 4);
  for (const Index bound : {2, 3, 7, 100}) {
    const double expected = 2000;
    const Index n = bound * 2000;
    std::vector<double> count(static_cast<std::size_t>(bound));
    for (Index i = 0; i < n; ++i) {
      const Index x = r.below(bound);
      REQUIRE((x >= 0 && x < bound));
      count[static_cast<std::size_t>(x)] += 1;
    }
    double chi = 0;
    for (const double c : count) chi += (c - expected) * (c - expected) / expected;
    CHECK(std::abs(chi_square_deviation(chi, static_cast<double>(bound - 1))) < 5);
  }
  for (int i = 0; i < 100; ++i) CHECK(r.below(1) == 0);
  const Index huge = (Index{1} << 62) + 12345;  // rejection matters here: 2^64 mod huge is large
  double mean = 0;
  for (int i = 0; i < 20000; ++i) {
    const Index x = r.below(huge);
    REQUIRE((x >= 0 && x < huge));
    mean += static_cast<double>(x) / static_cast<double>(huge) / 20000;
  }
  CHECK(std::abs(mean - 0.5) < 5 * std::sqrt(1.0 / 12 / 20000));
}

TEST_CASE("normals have the moments of a normal", "[core][random]") {
  Random r(recops_test::seed(), 5);
  constexpr int n = 200000;
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, inside = 0;
  for (int i = 0; i < n; ++i) {
    const double x = r.normal();
    REQUIRE(std::isfinite(x));
    m1 += x / n;
    m2 += x * x / n;
    m3 += x * x * x / n;
    m4 += x * x * x * x / n;
    inside += std::abs(x) < 1;
  }
  const double s = 5 / std::sqrt(double(n));  // five standard errors; variances of x^k are 1, 2, 15, 96
  CHECK(std::abs(m1) < s);
  CHECK(std::abs(m2 - 1) < s * std::sqrt(2.0));
  CHECK(std::abs(m3) < s * std::sqrt(15.0));
  CHECK(std::abs(m4 - 3) < s * std::sqrt(96.0));
  CHECK(std::abs(inside / n - 0.6826894921370859) < s * std::sqrt(0.6827 * 0.3173));
}

TEST_CASE("chance", "[core][random]") {
  Random r(recops_test::seed(), 6);
  Index hits = 0;
  for (int i = 0; i < 40000; ++i) hits += r.chance(0.3);
  CHECK(std::abs(static_cast<double>(hits) / 40000 - 0.3) < 5 * std::sqrt(0.3 * 0.7 / 40000));
  CHECK((!r.chance(0) && r.chance(1)));
}

TEST_CASE("every field of a row has its own place in the counter", "[core][random]") {
  const RandomRow at{
      .seed = 1, .row = 0xaaaa'bbbb'cccc'ddddu, .step = 0x12345678u, .purpose = RandomPurpose::dropout, .sample = 0xabcu};
  CHECK(equal(random_counter(at, 77), {{77, 0xccccddddu, 0x12345678u, 0xabc3bbbbu}}));
  CHECK(equal(random_counter({}, 0), {{0, 0, 0, 0}}));
}
