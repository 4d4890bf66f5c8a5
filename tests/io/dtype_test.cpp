// Oracle: the types' limits, exact values, rounding worked out by search over all sixteen-bit numbers in double.
#include <recops/io/dtype.hpp>

#include <cmath>
#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr Dtype every_dtype[] = {Dtype::boolean, Dtype::u8,  Dtype::i8,  Dtype::f8_e5m2, Dtype::f8_e4m3, Dtype::f8_e8m0,
                                 Dtype::i16,     Dtype::u16, Dtype::f16, Dtype::bf16,    Dtype::i32,     Dtype::u32,
                                 Dtype::f32,     Dtype::c64, Dtype::f64, Dtype::i64,     Dtype::u64};

template <class To, class From>
To converted(From x) {
  // At odd addresses: files do not align.
  unsigned char in[17], out[17];
  std::memcpy(in + 1, &x, sizeof x);
  convert_numbers(dtype_of<From>(), in + 1, dtype_of<To>(), out + 1, 1);
  To y;
  std::memcpy(&y, out + 1, sizeof y);
  return y;
}
template <class To, class From>
bool fits(From x) {
  std::vector<From> values(4, From(0));
  values[2] = x;
  const Index at = first_misfit(dtype_of<From>(), values.data(), dtype_of<To>(), 4);
  REQUIRE((at == -1 || at == 2));
  return at == -1;
}

/// The nearest of a format's finite numbers and its infinity, ties to even: by looking at all of them.
template <class Half>
std::uint16_t nearest_bits(double x, std::uint16_t infinity) {
  std::uint16_t best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (std::uint16_t bits = 0; bits <= infinity; ++bits) {
    Half h;
    h.bits = bits;
    Half before;
    before.bits = static_cast<std::uint16_t>(infinity - 1);
    Half before_that;
    before_that.bits = static_cast<std::uint16_t>(infinity - 2);
    // Infinity stands where the next number would be.
    const double last = static_cast<double>(static_cast<float>(before));
    const double value = bits < infinity ? static_cast<double>(static_cast<float>(h))
                                         : last + (last - static_cast<double>(static_cast<float>(before_that)));
    const double d = std::abs(x - value);
    if (d < distance || (d == distance && bits % 2 == 0)) {
      distance = d;
      best = bits;
    }
  }
  return best;
}

}  // namespace

TEST_CASE("every type has a name and finds back from it", "[io][dtype]") {
  for (const Dtype dtype : every_dtype) {
    CHECK(dtype_from_name(dtype_name(dtype)) == dtype);
    CHECK(dtype_bytes(dtype) >= 1);
    CHECK(is_convertible(dtype, dtype));
    CHECK_FALSE(is_convertible(dtype, Dtype::none));
    CHECK_FALSE(is_convertible(Dtype::none, dtype));
  }
  for (const char* name : {"", "none", "f32", "F32 ", "F4", "F6_E2M3", "INT8"}) CHECK(dtype_from_name(name) == Dtype::none);
  CHECK_FALSE(is_convertible(Dtype::none, Dtype::none));
  CHECK(is_convertible(Dtype::bf16, Dtype::f64));
  CHECK(is_convertible(Dtype::i64, Dtype::u8));
  CHECK(is_convertible(Dtype::boolean, Dtype::i32));
  CHECK_FALSE(is_convertible(Dtype::i32, Dtype::boolean));
  CHECK_FALSE(is_convertible(Dtype::f32, Dtype::i32));
  CHECK_FALSE(is_convertible(Dtype::i32, Dtype::f32));
  CHECK_FALSE(is_convertible(Dtype::c64, Dtype::f64));
  CHECK_FALSE(is_convertible(Dtype::f8_e4m3, Dtype::f32));
  static_assert(dtype_of<float>() == Dtype::f32 && dtype_of<double>() == Dtype::f64 && dtype_of<BFloat16>() == Dtype::bf16);
  static_assert(dtype_of<Float16>() == Dtype::f16 && dtype_of<bool>() == Dtype::boolean && dtype_of<long long>() == Dtype::i64);
  static_assert(dtype_of<long>() == Dtype::i64 && dtype_of<unsigned char>() == Dtype::u8 &&
                dtype_of<std::int16_t>() == Dtype::i16);
  static_assert(dtype_of<long double>() == Dtype::none && dtype_of<void*>() == Dtype::none);
}

TEST_CASE("floating numbers are rounded once, to nearest", "[io][dtype]") {
  CHECK(converted<double>(0.1f) == static_cast<double>(0.1f));
  CHECK(converted<float>(0.1) == 0.1f);
  CHECK(std::isnan(converted<float>(std::nan(""))));
  CHECK(std::isnan(static_cast<float>(converted<Float16>(std::nan("")))));
  CHECK(static_cast<float>(converted<BFloat16>(-std::numeric_limits<double>::infinity())) ==
        -std::numeric_limits<float>::infinity());
  CHECK(std::signbit(static_cast<float>(converted<BFloat16>(-0.0))));
  CHECK(converted<double>(BFloat16(1.5f)) == 1.5);
  CHECK(static_cast<float>(converted<Float16>(BFloat16(1.5f))) == 1.5f);
  // Rounding to float first would make these ties, and then even.
  CHECK(static_cast<float>(converted<BFloat16>(1.0 + 0x1p-8 + 0x1p-40)) == 1.0f + 0x1p-7f);
  CHECK(static_cast<float>(converted<Float16>(1.0 + 0x1p-11 + 0x1p-40)) == 1.0f + 0x1p-10f);
  CHECK(static_cast<float>(converted<Float16>(1.0 + 0x3p-11 - 0x1p-40)) == 1.0f + 0x1p-10f);

  Random random = random_stream(1);
  const auto near_a_tie = [&](double x) { return x * (1 + (random.uniform() - 0.5) * (random.chance(0.5) ? 1e-12 : 1e-3)); };
  for (int i = 0; i < 60; ++i) {
    Float16 h;
    h.bits = static_cast<std::uint16_t>(random.below(0x7BFF));
    Float16 next;
    next.bits = static_cast<std::uint16_t>(h.bits + 1);
    const double x = near_a_tie((static_cast<double>(static_cast<float>(h)) + static_cast<double>(static_cast<float>(next))) / 2);
    CAPTURE(x);
    CHECK(converted<Float16>(x).bits == nearest_bits<Float16>(x, 0x7C00));
    CHECK(converted<Float16>(-x).bits == (nearest_bits<Float16>(x, 0x7C00) | 0x8000));
    BFloat16 b;
    b.bits = static_cast<std::uint16_t>(random.below(0x7F7F));
    BFloat16 after;
    after.bits = static_cast<std::uint16_t>(b.bits + 1);
    const double y =
        near_a_tie((static_cast<double>(static_cast<float>(b)) + static_cast<double>(static_cast<float>(after))) / 2);
    CAPTURE(y);
    CHECK(converted<BFloat16>(y).bits == nearest_bits<BFloat16>(y, 0x7F80));
  }
}

TEST_CASE("a misfit is a finite number that would become infinite", "[io][dtype]") {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double sign : {1.0, -1.0}) {
    CHECK(fits<float>(sign * static_cast<double>(std::numeric_limits<float>::max())));
    CHECK(fits<float>(sign * std::nextafter(0x1.FFFFFFp127, 0.0)));
    CHECK_FALSE(fits<float>(sign * 0x1.FFFFFFp127));
    CHECK_FALSE(fits<float>(sign * std::numeric_limits<double>::max()));
    CHECK(fits<BFloat16>(sign * std::nextafter(0x1.FFp127, 0.0)));
    CHECK_FALSE(fits<BFloat16>(sign * 0x1.FFp127));
    CHECK(fits<BFloat16>(static_cast<float>(sign) * 0x1.FEp127f));
    CHECK_FALSE(fits<BFloat16>(static_cast<float>(sign) * std::numeric_limits<float>::max()));
    CHECK(fits<Float16>(sign * std::nextafter(65520.0, 0.0)));
    CHECK_FALSE(fits<Float16>(sign * 65520.0));
    CHECK_FALSE(fits<Float16>(BFloat16(static_cast<float>(sign) * 65536.0f)));
    CHECK(fits<float>(sign * infinity));
    CHECK(fits<Float16>(sign * infinity));
    CHECK(fits<double>(static_cast<float>(sign) * std::numeric_limits<float>::max()));
  }
  CHECK(fits<Float16>(std::nan("")));
  CHECK(fits<float>(5e-324));
  // What fits becomes finite, what does not would not.
  Random random = random_stream(2);
  for (int i = 0; i < 2000; ++i) {
    const double x = std::ldexp(random.uniform(0.5, 1.0), static_cast<int>(random.below(20)));
    CHECK(fits<Float16>(x) == std::isfinite(static_cast<float>(converted<Float16>(x))));
    const double y = std::ldexp(random.uniform(0.5, 1.0), 120 + static_cast<int>(random.below(10)));
    CHECK(fits<BFloat16>(y) == std::isfinite(static_cast<float>(converted<BFloat16>(y))));
    CHECK(fits<float>(y) == std::isfinite(converted<float>(y)));
  }
}

TEST_CASE("integers keep their value or do not fit", "[io][dtype]") {
  const auto one = [](auto from, auto to) {
    using From = decltype(from);
    using To = decltype(to);
    using Wide = std::numeric_limits<From>;
    std::vector<From> values = {From(0), From(1), Wide::max(), Wide::min(), From(100), From(-1), From(-100)};
    if constexpr (sizeof(From) > sizeof(To) || std::is_signed_v<From> != std::is_signed_v<To>) {
      values.push_back(static_cast<From>(std::numeric_limits<To>::max()));
      values.push_back(static_cast<From>(std::numeric_limits<To>::min()));
      values.push_back(static_cast<From>(static_cast<std::uint64_t>(std::numeric_limits<To>::max()) + 1));
    }
    for (const From x : values) {
      CAPTURE(dtype_name(dtype_of<From>()), dtype_name(dtype_of<To>()), x);
      const bool expected = std::in_range<To>(x);
      CHECK(fits<To>(x) == expected);
      if (expected) CHECK(std::cmp_equal(converted<To>(x), x));
    }
  };
  const auto all = [](auto&& f) {
    f(std::int8_t()), f(std::uint8_t()), f(std::int16_t()), f(std::uint16_t());
    f(std::int32_t()), f(std::uint32_t()), f(std::int64_t()), f(std::uint64_t());
  };
  all([&](auto from) { all([&](auto to) { one(from, to); }); });
}

TEST_CASE("booleans are 0 or 1", "[io][dtype]") {
  const unsigned char bytes[] = {0, 1, 1, 2};
  for (const Dtype to : {Dtype::boolean, Dtype::u8, Dtype::i64}) {
    CHECK(first_misfit(Dtype::boolean, bytes, to, 3) == -1);
    CHECK(first_misfit(Dtype::boolean, bytes, to, 4) == 3);
  }
  std::int64_t wide[3] = {-1, -1, -1};
  convert_numbers(Dtype::boolean, bytes, Dtype::i64, wide, 3);
  CHECK(wide[0] == 0);
  CHECK(wide[2] == 1);
}

TEST_CASE("no numbers need no memory", "[io][dtype]") {
  for (const Dtype from : every_dtype) {
    convert_numbers(from, nullptr, from, nullptr, 0);
    CHECK(first_misfit(from, nullptr, from, 0) == -1);
  }
  convert_numbers(Dtype::f64, nullptr, Dtype::f16, nullptr, 0);
  CHECK(first_misfit(Dtype::f64, nullptr, Dtype::f16, 0) == -1);
}
