// Oracle: std::stable_sort by the upper halves.
#include <recops/simd/sort.hpp>

#include <algorithm>
#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("Words are sorted by their upper halves, whatever these are", "[simd][sort]") {
  Random random = random_stream(331);
  std::vector<Index> sizes(170);
  for (std::size_t i = 0; i < sizes.size(); ++i) sizes[i] = static_cast<Index>(i);
  sizes.insert(sizes.end(), {300, 1000, 2047, 2048, 3000, 20000});
  for (const Index n : sizes) {
    for (const int bits : {0, 1, 5, 16, 32}) {  // bits in which keys differ
      for (const int shift : {0, 11, 24}) {
        if (bits + shift > 32 && shift > 0) continue;
        std::vector<std::uint64_t> words(static_cast<std::size_t>(n));
        for (std::size_t i = 0; i < words.size(); ++i) {
          const std::uint64_t key = (bits == 0 ? 0 : std::uint64_t{random.word()} >> (32 - bits)) << shift;
          words[i] = key << 32 | (2 * i);
        }
        std::vector<std::uint64_t> expected = words;
        std::stable_sort(expected.begin(), expected.end(), [](std::uint64_t a, std::uint64_t b) { return a >> 32 < b >> 32; });
        CAPTURE(n, bits, shift);
        for_each_architecture([&](auto arch) {
          std::vector<std::uint64_t> a = words, b(words.size());
          const std::uint64_t* const sorted = simd::sort_words<decltype(arch)>(a.data(), b.data(), n);
          REQUIRE(std::equal(expected.begin(), expected.end(), sorted));
        });
      }
    }
  }
}
