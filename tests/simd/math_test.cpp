// Oracles: the C library in long double (double for float), and limits written by hand.
#include <recops/simd/math.hpp>

#include <bit>
#include <vector>

#include "simd/elementwise_golden.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// Applies a vector function to all of x.
template <class T, class A, class F>
std::vector<T> apply(const std::vector<T>& x, F&& f) {
  std::vector<T> y(x.size());
  simd::for_each_vector<T, A>(static_cast<Index>(x.size()),
                              [&](Index i, auto load, auto store) { store(y.data() + i, f(load(x.data() + i))); });
  return y;
}

constexpr auto exp_of = [](auto v) { return simd::exp(v); };
constexpr auto sigmoid_of = [](auto v) { return simd::sigmoid(v); };
constexpr auto tanh_of = [](auto v) { return simd::tanh(v); };
constexpr auto exp2_of = [](auto v) { return simd::exp2(v); };

// Every kind of float, and doubles dense where exp is neither 0 nor infinity; tiny numbers and both ends besides.
template <class T>
std::vector<T> sample() {
  std::vector<T> x;
  if constexpr (std::is_same_v<T, float>) {
    for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 4093) {
      const float v = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
      if (!std::isnan(v)) x.push_back(v);
    }
    for (float v = -104.5f; v < 89.0f; v += 0.0011f) x.push_back(v);
  } else {
    for (double v = -747.0; v < 711.0; v += 0.0139) x.push_back(v);
    for (double v = 1e-320; v < 1; v *= 1.7) x.insert(x.end(), {v, -v});
    Random random = random_stream(1);
    for (int i = 0; i < 20000; ++i) x.push_back(random.uniform(-1, 1));
    for (double v = -745.2; v < -708.0; v += 0.0031) x.push_back(v);  // denormal results
  }
  return x;
}

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();

}  // namespace

TEMPLATE_TEST_CASE("exp is within 2 ulp over its whole range", "[simd][math]", float, double) {
  using T = TestType;
  const std::vector<T> x = sample<T>();
  std::vector<long double> exact(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    exact[i] = std::is_same_v<T, float> ? static_cast<long double>(std::exp(static_cast<double>(x[i])))
                                        : std::exp(static_cast<long double>(x[i]));
  for_each_architecture([&](auto arch) {
    const std::vector<T> y = apply<T, decltype(arch)>(x, exp_of);
    double worst = 0;
    T at = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double error = ulps(y[i], exact[i]);
      if (!(error <= worst)) worst = error, at = x[i];
    }
    CAPTURE(at);
    CHECK(worst <= 2.0);
  });
}

TEMPLATE_TEST_CASE("exp and sigmoid at the ends", "[simd][math]", float, double) {
  using T = TestType;
  const bool single = std::is_same_v<T, float>;
  const T nan = std::numeric_limits<T>::quiet_NaN(), largest = std::numeric_limits<T>::max(),
          tiny = std::numeric_limits<T>::denorm_min();
  const T over = single ? T(88.73) : T(709.79), under = single ? T(-104) : T(-745.2);
  const std::vector<T> x{0, T(-0.0), infinity<T>, -infinity<T>, nan, largest, -largest, tiny, -tiny, over, under, -nan};
  for_each_architecture([&](auto arch) {
    const std::vector<T> e = apply<T, decltype(arch)>(x, exp_of), s = apply<T, decltype(arch)>(x, sigmoid_of);
    CHECK((e[0] == 1 && e[1] == 1 && e[7] == 1 && e[8] == 1));
    CHECK((e[2] == infinity<T> && e[5] == infinity<T> && e[9] == infinity<T>));
    CHECK((e[3] == 0 && e[6] == 0 && e[10] == 0 && !std::signbit(e[3])));
    CHECK((std::isnan(e[4]) && std::isnan(e[11])));
    CHECK((s[0] == T(0.5) && s[1] == T(0.5) && s[7] == T(0.5)));
    CHECK((s[2] == 1 && s[5] == 1 && s[9] == 1));
    CHECK((s[3] == 0 && s[6] == 0 && s[10] == 0));
    CHECK((std::isnan(s[4]) && std::isnan(s[11])));
  });
}

TEMPLATE_TEST_CASE("a NaN among numbers spoils only its own lane", "[simd][math]", float, double) {
  using T = TestType;
  for (std::size_t bad = 0; bad < 37; ++bad) {
    std::vector<T> x(37, T(1));
    x[bad] = std::numeric_limits<T>::quiet_NaN();
    for_each_architecture([&](auto arch) {
      const std::vector<T> y = apply<T, decltype(arch)>(x, exp_of);
      for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(std::isnan(y[i]) == (i == bad));
    });
  }
}

TEMPLATE_TEST_CASE("exp never falls by more than its error", "[simd][math]", float, double) {
  using T = TestType;
  std::vector<T> x;
  for (T v = T(-3); v < T(3); v += T(0.00037)) x.push_back(v);
  for_each_architecture([&](auto arch) {
    const std::vector<T> y = apply<T, decltype(arch)>(x, exp_of);
    bool rises = true;
    for (std::size_t i = 1; i < y.size(); ++i) rises = rises && y[i] > y[i - 1];
    CHECK(rises);
  });
}

TEMPLATE_TEST_CASE("sigmoid is within 6 ulp, tanh 8, through the denormals, and never beyond 1", "[simd][math]", float, double) {
  using T = TestType;
  const T low = std::is_same_v<T, float> ? T(-104.5) : T(-746);
  std::vector<T> x;
  for (T v = low; v < -low; v += -low / T(100003)) x.push_back(v);
  for (T v = std::numeric_limits<T>::min(); v < 30; v *= T(1.07)) x.insert(x.end(), {v, -v});
  for_each_architecture([&](auto arch) {
    const std::vector<T> y = apply<T, decltype(arch)>(x, sigmoid_of), t = apply<T, decltype(arch)>(x, tanh_of);
    double worst[2] = {0, 0};
    bool inside = true;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const long double v = x[i], e = std::exp(-std::abs(v));
      worst[0] = std::max(worst[0], ulps(y[i], (v < 0 ? e : 1.0L) / (1 + e)));
      worst[1] = std::max(worst[1], ulps(t[i], std::tanh(v)));
      inside = inside && y[i] >= 0 && y[i] <= 1 && std::abs(t[i]) <= 1;
    }
    CHECK(worst[0] <= 6);
    CHECK(worst[1] <= 8);
    CHECK(inside);
  });
}

TEMPLATE_TEST_CASE("exp2 has a small relative error, and takes minus infinity", "[simd][math]", float, double) {
  using T = TestType;
  std::vector<T> x;
  for (T v = T(-126); v < T(31); v += T(0.0013)) x.push_back(v);
  const T infinity_ = infinity<T>, nan = std::numeric_limits<T>::quiet_NaN();
  for_each_architecture([&](auto arch) {
    const std::vector<T> y = apply<T, decltype(arch)>(x, exp2_of);
    long double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      worst = std::max(worst, std::abs(y[i] / std::exp2(static_cast<long double>(x[i])) - 1));
    CHECK(worst <= (std::is_same_v<T, float> ? 2.2e-7L : 5e-16L));
    const std::vector<T> ends = apply<T, decltype(arch)>(std::vector<T>{-infinity_, nan, 0, T(-5000), T(-1e30)}, exp2_of);
    CHECK((ends[0] == 0 && std::isnan(ends[1]) && ends[2] == 1 && ends[3] == 0 && ends[4] == 0));
  });
}

TEMPLATE_TEST_CASE("exp, sigmoid, tanh as SciPy has them", "[simd][math][golden]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  check_golden<T>("exp", "x", single ? 2.0 : 3.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::exp<T, decltype(arch)>(x, y, n); });
  check_golden<T>("sigmoid", "x", single ? 4.0 : 5.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::sigmoid<T, decltype(arch)>(x, y, n); });
  check_golden<T>("tanh", "x", single ? 7.8 : 5.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::tanh<T, decltype(arch)>(x, y, n); });
}
