// Oracle: std::sort.
#include <recops/simd/sort_registers.hpp>

#include <algorithm>
#include <vector>

#include "support/numbers.hpp"

using namespace recops_test;

#if defined(__AVX512F__)
using namespace recops;

namespace {

std::vector<std::uint64_t> random_words(Index n, Random& random) {
  std::vector<std::uint64_t> words(static_cast<std::size_t>(n));
  for (auto& w : words) w = std::uint64_t{random.word()} << 32 | random.word();
  return words;
}

}  // namespace

TEST_CASE("Networks sort any number of words, in place too, and write no more", "[simd][sort_registers]") {
  Random random = random_stream(341);
  for (Index n = 0; n <= simd::detail::network_words; ++n) {
    for (int repeat = 0; repeat < 10; ++repeat) {
      std::vector<std::uint64_t> words = random_words(n, random), to(words.size() + 1, 77), expected = words;
      if (repeat == 8) std::fill(expected.begin(), expected.end(), ~std::uint64_t{0}), words = expected;
      std::sort(expected.begin(), expected.end());
      simd::detail::sort_network(words.data(), to.data(), n);
      REQUIRE(std::equal(expected.begin(), expected.end(), to.begin()));
      REQUIRE(to.back() == 77);
      simd::detail::sort_network(words.data(), words.data(), n);
      REQUIRE(words == expected);
    }
  }
}

TEST_CASE("Partitions keep all words, on their side of the pivot", "[simd][sort_registers]") {
  Random random = random_stream(342);
  for (Index n : {24, 25, 31, 32, 100, 1001}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::vector<std::uint64_t> words = random_words(n, random), to(words.size() + 1, 77);
      if (repeat % 2 == 0) std::sort(words.begin(), words.end());
      std::vector<std::uint64_t> expected = words;
      std::uint64_t pivot = simd::detail::pivot_of(words.data(), n);
      if (repeat == 4) pivot = 0;
      if (repeat == 5) pivot = ~std::uint64_t{0};
      const Index below = simd::detail::partition_words(words.data(), to.data(), n, pivot);
      REQUIRE(below == std::count_if(words.begin(), words.end(), [=](std::uint64_t w) { return w < pivot; }));
      if (repeat != 4 && repeat != 5) REQUIRE(below >= 4);
      REQUIRE(std::all_of(to.begin(), to.begin() + below, [=](std::uint64_t w) { return w < pivot; }));
      REQUIRE(to.back() == 77);
      to.pop_back();
      std::sort(expected.begin(), expected.end());
      std::sort(to.begin(), to.end());
      REQUIRE(to == expected);
    }
  }
}
#else
TEST_CASE("Without AVX-512 there is nothing to sort in registers", "[simd][sort_registers]") {
  SUCCEED("the header is empty on this instruction set");
}
#endif
