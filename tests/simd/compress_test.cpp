// Oracle: a loop over the lanes.
#include <recops/simd/compress.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("Bits of a condition, and the lanes it chooses", "[simd][compress]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    using B = simd::Batch<T, A>;
    constexpr Index W = simd::lanes<T, A>;
    for (std::uint32_t chosen = 0; chosen < (1u << W); chosen = W == 16 && chosen > 300 ? chosen + 97 : chosen + 1) {
      T x[W], to[W];
      std::int32_t index[W];
      for (Index l = 0; l < W; ++l) x[l] = (chosen >> l & 1) != 0 ? static_cast<T>(l + 1) : -static_cast<T>(l + 1);
      const B v = B::load_unaligned(x);
      const std::uint32_t bits = simd::mask_bits(v > B(T(0)));
      REQUIRE(bits == chosen);
      const Index count = simd::compress_indexed<T, A>(bits, v, 1000, to, index);
      Index expected = 0;
      for (Index l = 0; l < W; ++l) {
        if ((chosen >> l & 1) == 0) continue;
        REQUIRE(to[expected] == static_cast<T>(l + 1));
        REQUIRE(index[expected++] == 1000 + l);
      }
      REQUIRE(count == expected);
      std::int32_t from[W];  // in place, as a buffer is thinned out
      for (Index l = 0; l < W; ++l) from[l] = static_cast<std::int32_t>(500 - l);
      REQUIRE(simd::compress_pairs<T, A>(bits, v, from, x, from) == count);
      for (Index j = 0; j < count; ++j) {
        REQUIRE(x[j] == to[j]);
        REQUIRE(from[j] == 500 - (index[j] - 1000));
      }
    }
  });
}
