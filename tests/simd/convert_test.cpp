// Oracle: the conversions of core/float16.hpp, one number at a time (float16_test.cpp proves those).
#include <recops/simd/convert.hpp>

#include <cstring>
#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class S>
std::vector<S> all_patterns() {
  std::vector<S> v(0x10000);
  for (std::uint32_t i = 0; i < v.size(); ++i) v[i].bits = static_cast<std::uint16_t>(i);
  return v;
}

// Floats of every exponent, each with fractions around the places where formats round.
std::vector<float> interesting_floats() {
  std::vector<float> v;
  Random random = random_stream(41);
  for (std::uint32_t head = 0; head < 0x10000; ++head) {  // sign, exponent and the fraction of a bfloat16
    const std::uint32_t tails[] = {0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF, random.word() & 0xFFFF};
    for (std::uint32_t t = head % 7; t < 10; t += 2) v.push_back(std::bit_cast<float>(head << 16 | tails[t]));
  }
  return v;
}

template <class T>
bool same_bits(const T* a, const T* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(T)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("every sixteen-bit pattern expands to the bits of the scalar conversion", "[simd][convert]", BFloat16,
                   Float16) {
  using S = TestType;
  const std::vector<S> in = all_patterns<S>();
  std::vector<float> expected(in.size());
  std::vector<double> expected_double(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) {
    expected[i] = static_cast<float>(in[i]);
    expected_double[i] = static_cast<double>(expected[i]);
  }
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<float> out(in.size());
    simd::convert<float, A>(in.data(), out.data(), static_cast<Index>(in.size()));
    CHECK(same_bits(out.data(), expected.data(), out.size()));
    std::vector<double> wide(in.size());
    simd::convert<double, A>(in.data(), wide.data(), static_cast<Index>(in.size()));
    for (std::size_t i = 0; i < in.size(); ++i)
      if (!(wide[i] == expected_double[i] || (std::isnan(wide[i]) && std::isnan(expected[i])))) FAIL("pattern " << i);
  });
}

TEMPLATE_TEST_CASE("floats of every exponent round to the bits of the scalar conversion", "[simd][convert]", BFloat16, Float16) {
  using S = TestType;
  const std::vector<float> in = interesting_floats();
  std::vector<S> expected(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) expected[i] = S(in[i]);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<S> out(in.size());
    simd::convert<S, A>(in.data(), out.data(), static_cast<Index>(in.size()));
    for (std::size_t i = 0; i < in.size(); ++i)
      if (out[i].bits != expected[i].bits) FAIL("float with the bits " << std::bit_cast<std::uint32_t>(in[i]));
  });
}

TEMPLATE_TEST_CASE("doubles round once", "[simd][convert]", BFloat16, Float16) {
  using S = TestType;
  std::vector<double> in;
  Random random = random_stream(42);
  for (int i = 0; i < 5000; ++i) {
    const auto tie = static_cast<double>(std::bit_cast<float>((random.word() & 0xFFFF0000u) | 0x8000u));
    in.push_back(std::nextafter(tie, i % 2 == 0 ? 0.0 : 1e300));
    in.push_back(random.normal() * 1e-6);
  }
  for (const double x : {0.0, -0.0, 1e300, -1e300, 1e-300, 65519.9999999, 65520.0}) in.push_back(x);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<S> out(in.size());
    simd::convert<S, A>(in.data(), out.data(), static_cast<Index>(in.size()));
    for (std::size_t i = 0; i < in.size(); ++i) {
      if (std::isnan(in[i])) {
        if (!std::isnan(static_cast<float>(out[i]))) FAIL("NaN lost at " << i);
      } else if (out[i].bits != S(in[i]).bits) {
        FAIL("double " << in[i]);
      }
    }
  });
}

TEST_CASE("int8 and double expand to float", "[simd][convert]") {
  std::vector<std::int8_t> codes;
  for (int i = -128; i < 128; ++i) codes.push_back(static_cast<std::int8_t>(i));
  Random random = random_stream(43);
  std::vector<double> doubles = {1e300, -1e300, 1e-300, 0.1, 16777217.0, 1e-40};
  while (doubles.size() < 64) doubles.push_back(random.normal());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<float> out(codes.size());
    simd::convert<float, A>(codes.data(), out.data(), 256);
    for (int i = 0; i < 256; ++i) REQUIRE(out[static_cast<std::size_t>(i)] == static_cast<float>(i - 128));
    std::vector<double> wide(codes.size());
    simd::convert<double, A>(codes.data(), wide.data(), 256);
    for (int i = 0; i < 256; ++i) REQUIRE(wide[static_cast<std::size_t>(i)] == i - 128);
    for (Index i = 0; i + simd::lanes<float, A> <= 64; i += simd::lanes<float, A>) {
      alignas(64) float lane[simd::lanes<float, A>];
      simd::load_as_float<A>(doubles.data() + i).store_aligned(lane);
      for (Index j = 0; j < simd::lanes<float, A>; ++j)
        REQUIRE(lane[j] == static_cast<float>(doubles[static_cast<std::size_t>(i + j)]));
    }
    std::vector<float> narrow(doubles.size());
    simd::convert<float, A>(doubles.data(), narrow.data(), static_cast<Index>(doubles.size()));
    for (std::size_t i = 0; i < doubles.size(); ++i) REQUIRE(narrow[i] == static_cast<float>(doubles[i]));
  });
}

TEMPLATE_TEST_CASE("runs of every length touch n numbers and no more", "[simd][convert]", BFloat16, Float16) {
  using S = TestType;
  Random random = random_stream(44);
  for (Index n = 0; n <= 67; ++n) {
    // Exactly n numbers, off alignment: the address sanitizer sees a read past them.
    std::vector<float> in(static_cast<std::size_t>(n) + 1);
    for (float& x : in) x = static_cast<float>(random.normal());
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      CAPTURE(n);
      S guard;
      guard.bits = 0x1234;
      std::vector<S> stored(static_cast<std::size_t>(n) + 9, guard);
      simd::convert<S, A>(in.data() + 1, stored.data() + 1, n);
      REQUIRE(stored[0].bits == 0x1234);
      for (Index i = 0; i < n; ++i)
        REQUIRE(stored[static_cast<std::size_t>(i) + 1].bits == S(in[static_cast<std::size_t>(i) + 1]).bits);
      for (std::size_t i = static_cast<std::size_t>(n) + 1; i < stored.size(); ++i) REQUIRE(stored[i].bits == 0x1234);

      const std::vector<S> exact(stored.begin() + 1, stored.begin() + 1 + n);
      std::vector<float> out(static_cast<std::size_t>(n) + 9, 777.0f);
      simd::convert<float, A>(exact.data(), out.data() + 1, n);
      REQUIRE(out[0] == 777.0f);
      for (Index i = 0; i < n; ++i)
        REQUIRE(out[static_cast<std::size_t>(i) + 1] == static_cast<float>(exact[static_cast<std::size_t>(i)]));
      for (std::size_t i = static_cast<std::size_t>(n) + 1; i < out.size(); ++i) REQUIRE(out[i] == 777.0f);

      std::vector<double> doubles(in.begin() + 1, in.end());
      std::vector<S> from_double(static_cast<std::size_t>(n) + 3, guard);
      simd::convert<S, A>(doubles.data(), from_double.data(), n);
      for (Index i = 0; i < n; ++i)
        REQUIRE(from_double[static_cast<std::size_t>(i)].bits == exact[static_cast<std::size_t>(i)].bits);
      for (std::size_t i = static_cast<std::size_t>(n); i < from_double.size(); ++i) REQUIRE(from_double[i].bits == 0x1234);
    });
  }
}
