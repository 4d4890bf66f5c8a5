// Oracle: the nearest of all 65536 values, found by search among their exact values in double.
#include <recops/core/float16.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// The finite non-negative values of a format in order, by its definition; value i has the bits i.
template <class S>
std::vector<double> values_of() {
  constexpr int fraction_bits = std::is_same_v<S, BFloat16> ? 7 : 10, bias = std::is_same_v<S, BFloat16> ? 127 : 15;
  std::vector<double> v;
  for (int bits = 0; bits < 0x8000; ++bits) {
    const int exponent = bits >> fraction_bits, fraction = bits & ((1 << fraction_bits) - 1);
    if (exponent == 2 * bias + 1) break;
    v.push_back(exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                              : std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits));
  }
  return v;
}

// Bits of the value nearest to x >= 0, ties to even; beyond the last one as if there were one more, which is infinity.
std::uint16_t nearest(const std::vector<double>& v, double x) {
  const auto n = static_cast<std::ptrdiff_t>(v.size());
  const std::ptrdiff_t above = std::lower_bound(v.begin(), v.end(), x) - v.begin();
  if (above < n && v[static_cast<std::size_t>(above)] == x) return static_cast<std::uint16_t>(above);
  const double low = v[static_cast<std::size_t>(above - 1)];
  const double high = above < n ? v[static_cast<std::size_t>(above)] : 2 * low - v[static_cast<std::size_t>(above - 2)];
  const double down = x - low, up = high - x;
  const bool take_low = down < up || (down == up && (above - 1) % 2 == 0);
  return static_cast<std::uint16_t>(take_low ? above - 1 : above);
}

}  // namespace

TEMPLATE_TEST_CASE("every sixteen-bit value becomes the float it stands for, and back", "[core][float16]", BFloat16, Float16) {
  using S = TestType;
  const std::vector<double> values = values_of<S>();
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    S s;
    s.bits = static_cast<std::uint16_t>(bits);
    const float f = static_cast<float>(s);
    const std::uint32_t magnitude = bits & 0x7FFF;
    CAPTURE(bits);
    if (magnitude < values.size()) {
      REQUIRE(static_cast<double>(f) == (bits < 0x8000 ? 1 : -1) * values[magnitude]);
      REQUIRE(std::signbit(f) == (bits >= 0x8000));
    } else if (magnitude == values.size()) {
      REQUIRE((std::isinf(f) && std::signbit(f) == (bits >= 0x8000)));
    } else {
      REQUIRE((std::isnan(f) && std::signbit(f) == (bits >= 0x8000)));
      const std::uint16_t back = S(f).bits, quiet = std::is_same_v<S, BFloat16> ? 0x0040 : 0x0200;
      REQUIRE(back == (bits | quiet));
      REQUIRE(std::isnan(static_cast<float>(S(static_cast<double>(f)))));
      continue;
    }
    REQUIRE(S(f).bits == bits);
    REQUIRE(S(static_cast<double>(f)).bits == bits);
  }
}

TEMPLATE_TEST_CASE("floats and doubles round to the nearest value, ties to even", "[core][float16]", BFloat16, Float16) {
  using S = TestType;
  const std::vector<double> values = values_of<S>();
  const auto check = [&](double x) {
    const std::uint16_t expected = nearest(values, std::abs(x));
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    INFO("x = " << x);
    REQUIRE(S(x).bits == (sign | expected));
    const float f = static_cast<float>(x);
    if (static_cast<double>(f) == x) REQUIRE(S(f).bits == (sign | expected));
  };
  for (std::size_t i = 0; i + 1 < values.size(); i += i < 2100 ? 1 : 37) {
    const double middle = (values[i] + values[i + 1]) / 2;  // exact in double
    check(middle);
    check(-middle);
    check(std::nextafter(middle, 0.0));  // one double away from the tie: a detour through float would round it the wrong way
    check(std::nextafter(middle, 1e300));
    check(static_cast<double>(std::nextafter(static_cast<float>(middle), 0.0f)));
    check(static_cast<double>(std::nextafter(static_cast<float>(middle), std::numeric_limits<float>::infinity())));
  }
  const double last = values.back(), step = last - values[values.size() - 2];
  for (const double x : {last, last + step / 2, std::nextafter(last + step / 2, 0.0), last + step}) check(x);
  check(0.0);
  check(-0.0);
  Random random = random_stream(40);
  for (int i = 0; i < 20000; ++i) {
    const auto f = std::bit_cast<float>(random.word());
    if (std::isfinite(f) && std::abs(static_cast<double>(f)) < last + step) check(static_cast<double>(f));
    check(random.normal() * std::ldexp(1.0, static_cast<int>(random.word() % 28) - 20));
  }
  for (const double x : {1e39, 1e300, std::numeric_limits<double>::infinity()}) {
    CHECK(S(x).bits == values.size());
    CHECK(S(-x).bits == (values.size() | 0x8000));
    CHECK(S(static_cast<float>(std::min(x, 1e38) * 1e3)).bits == values.size());
  }
  CHECK(S(1e-300).bits == 0);
  CHECK(S(-1e-300).bits == 0x8000);
}

TEST_CASE("zero is the default, and the sizes are two bytes", "[core][float16]") {
  CHECK(static_cast<float>(BFloat16{}) == 0.0f);
  CHECK(static_cast<float>(Float16{}) == 0.0f);
  STATIC_REQUIRE(sizeof(BFloat16) == 2);
  STATIC_REQUIRE(sizeof(Float16) == 2);
  CHECK(static_cast<float>(BFloat16(3)) == 3.0f);
}
