// Oracles: draws and orders made by Python's integers; uniformity by chi-square; the words of the row, one by one.
#include <recops/simd/random_index.hpp>
#include <recops/simd/uniform.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
constexpr RandomRow golden_row{.seed = 1, .row = 7, .step = 3};
}

TEST_CASE("draws of another program", "[simd][random_index][golden]") {
  const Golden golden("random_rows");
  const auto bounds = golden.values<std::int64_t>("bounds"), expected = golden.values<std::int64_t>("below");
  for_each_architecture([&](auto arch) {
    for (std::size_t k = 0; k < bounds.size(); ++k) {
      for (const std::size_t n : {0u, 1u, 2u, 15u, 16u, 17u, 70u}) {
        std::vector<std::int32_t> got(n + 1, -7);
        simd::fill_below<decltype(arch)>(golden_row, static_cast<std::int32_t>(bounds[k]), got.data(), static_cast<Index>(n));
        REQUIRE(std::equal(got.begin(), got.end() - 1, expected.begin() + static_cast<Index>(70 * k)));
        REQUIRE(got.back() == -7);
      }
    }
  });
}

TEMPLATE_TEST_CASE("orders of another program", "[simd][random_index][golden]", std::int32_t, std::int64_t) {
  const Golden golden("random_rows");
  for_each_architecture([&](auto arch) {
    for (const Index n : {1, 2, 33, 1500}) {
      std::vector<TestType> got(static_cast<std::size_t>(n) + 1, -7);
      simd::fill_permutation<TestType, decltype(arch)>(golden_row, got.data(), n);
      const auto expected = golden.values<std::int64_t>("order." + std::to_string(n));
      REQUIRE(std::equal(got.begin(), got.end() - 1, expected.begin()));
      REQUIRE(got.back() == -7);
    }
    simd::fill_permutation<TestType, decltype(arch)>(golden_row, static_cast<TestType*>(nullptr), 0);
  });
}

TEST_CASE("draws are uniform", "[simd][random_index]") {
  for (const std::int32_t bound : {2, 7, 100}) {
    std::vector<std::int32_t> x(static_cast<std::size_t>(bound) * 2000);
    simd::fill_below({.seed = recops_test::seed(), .purpose = RandomPurpose::negatives}, bound, x.data(),
                     static_cast<Index>(x.size()));
    std::vector<double> count(static_cast<std::size_t>(bound));
    for (const std::int32_t i : x) {
      REQUIRE((0 <= i && i < bound));
      count[static_cast<std::size_t>(i)] += 1;
    }
    double chi = 0;
    for (const double c : count) chi += (c - 2000) * (c - 2000) / 2000;
    CHECK(std::abs(chi - (bound - 1)) < 6 * std::sqrt(2.0 * (bound - 1)) + 20);
  }
}

TEST_CASE("every order of four is as likely, and another row gives another order", "[simd][random_index]") {
  std::vector<double> count(256);
  constexpr int trials = 24 * 500;
  for (int t = 0; t < trials; ++t) {
    std::int32_t x[4];
    simd::fill_permutation({.seed = recops_test::seed(), .row = static_cast<std::uint64_t>(t), .purpose = RandomPurpose::shuffle},
                           x, 4);
    count[static_cast<std::size_t>(x[0] * 64 + x[1] * 16 + x[2] * 4 + x[3])] += 1;
  }
  int seen = 0;
  double chi = 0;
  for (const double c : count) {
    if (c > 0) ++seen, chi += (c - 500) * (c - 500) / 500;
  }
  CHECK(seen == 24);
  CHECK(chi < 23 + 6 * std::sqrt(46.0));
}

TEST_CASE("a shuffle moves whatever it is given", "[simd][random_index]") {
  std::vector<std::string> words{"a", "b", "c", "d", "e", "f", "g"};
  std::vector<std::int32_t> order(7);
  simd::shuffle(golden_row, words.data(), 7);
  simd::fill_permutation(golden_row, order.data(), 7);
  for (std::size_t i = 0; i < 7; ++i) CHECK(words[i] == std::string(1, static_cast<char>('a' + order[i])));
}
