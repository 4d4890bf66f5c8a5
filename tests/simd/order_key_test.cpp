// Oracle: the comparison of the numbers themselves.
#include <recops/simd/order_key.hpp>

#include "simd/selection_cases.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("Keys order as numbers do, NaN last, and give the numbers back", "[simd][order_key]", float, double) {
  using T = TestType;
  Random random = random_stream(321);
  for (const auto& pattern : selection_patterns<T>(300, random)) {
    CAPTURE(pattern.first);
    const std::vector<T>& x = pattern.second;
    bool sound = true;
    for (const T a : x) {
      for (const Order order : {Order::ascending, Order::descending}) {
        const auto key = simd::order_key(a, order);
        const T back = simd::from_order_key<T>(key, order);
        sound &= a == a ? same_bits(back, a + T(0)) : back != back && key == static_cast<decltype(key)>(-1);
        for (const T b : x) {
          const auto other = simd::order_key(b, order);
          const bool before = a == a && (b != b || (order == Order::ascending ? a < b : a > b));
          sound &= (key < other) == before && (key == other) == (a == b || (a != a && b != b));
        }
      }
    }
    REQUIRE(sound);
  }
}

TEST_CASE("Keys of vectors are those of their lanes", "[simd][order_key]") {
  Random random = random_stream(322);
  for (const auto& pattern : selection_patterns<float>(64, random)) {
    CAPTURE(pattern.first);
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      for (const Order order : {Order::ascending, Order::descending}) {
        for (Index i = 0; i < 64; i += simd::lanes<float, A>) {
          const float* const from = pattern.second.data() + i;
          std::int32_t keys[simd::lanes<float, A>];
          simd::order_keys<A>(simd::Batch<float, A>::load_unaligned(from), order).store_unaligned(keys);
          for (Index l = 0; l < simd::lanes<float, A>; ++l)
            REQUIRE(static_cast<std::uint32_t>(keys[l]) == simd::order_key(from[l], order));
        }
      }
    });
  }
}
