// Oracle: the C library in long double.
#include <recops/simd/log.hpp>

#include <bit>
#include <vector>

#include "simd/elementwise_golden.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();

// Positive numbers of every magnitude, denormals included, and many near 1.
template <class T>
std::vector<T> positives() {
  std::vector<T> x;
  for (T v = std::numeric_limits<T>::denorm_min(); v < std::numeric_limits<T>::max() / 2; v *= T(1.0317)) {
    x.push_back(v);
    v = std::nextafter(v, infinity<T>);
  }
  for (T v = T(0.3); v < T(3); v += T(0.000071)) x.push_back(v);
  for (T v = T(1e-7); v < T(0.5); v *= T(1.01)) x.insert(x.end(), {1 + v, 1 - v});
  x.push_back(std::numeric_limits<T>::max());
  return x;
}

template <class T, class F>
double worst_ulps(const std::vector<T>& x, const std::vector<T>& y, F exact) {
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, ulps(y[i], exact(static_cast<long double>(x[i]))));
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("log, log1p and softplus are within a few ulp", "[simd][log]", float, double) {
  using T = TestType;
  const std::vector<T> x = positives<T>();
  std::vector<T> all = x, small;
  for (const T v : x) {
    all.push_back(-v);
    if (v < 1) small.push_back(-v);
  }
  small.insert(small.end(), x.begin(), x.end());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<T> y(x.size()), z(small.size()), s(all.size());
    simd::log<T, A>(x.data(), y.data(), static_cast<Index>(x.size()));
    CHECK(worst_ulps(x, y, [](long double v) { return std::log(v); }) <= 1.5);
    simd::log1p<T, A>(small.data(), z.data(), static_cast<Index>(small.size()));
    CHECK(worst_ulps(small, z, [](long double v) { return std::log1p(v); }) <= 2);
    simd::softplus<T, A>(all.data(), s.data(), static_cast<Index>(all.size()));
    CHECK(worst_ulps(all, s, [](long double v) { return (v > 0 ? v : 0) + std::log1p(std::exp(-std::abs(v))); }) <= 4);
  });
}

TEMPLATE_TEST_CASE("logarithms at the ends", "[simd][log]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN(), tiny = std::numeric_limits<T>::denorm_min();
  const std::vector<T> x{0, T(-0.0), infinity<T>, -infinity<T>, nan, T(-1), 1, tiny, T(-2), -tiny};
  const auto n = static_cast<Index>(x.size());
  std::vector<T> y(x.size());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    simd::log<T, A>(x.data(), y.data(), n);
    CHECK((y[0] == -infinity<T> && y[1] == -infinity<T> && y[2] == infinity<T> && y[6] == 0));
    CHECK((std::isnan(y[3]) && std::isnan(y[4]) && std::isnan(y[5]) && std::isnan(y[9])));
    simd::log1p<T, A>(x.data(), y.data(), n);
    CHECK((y[0] == 0 && !std::signbit(y[0]) && y[1] == 0 && std::signbit(y[1])));
    CHECK((y[2] == infinity<T> && y[5] == -infinity<T> && y[7] == tiny && y[9] == -tiny));
    CHECK((std::isnan(y[3]) && std::isnan(y[4]) && std::isnan(y[8])));
    simd::softplus<T, A>(x.data(), y.data(), n);
    CHECK((y[2] == infinity<T> && y[3] == 0 && std::isnan(y[4]) && y[0] == Approx(std::log(T(2)))));
  });
}

TEMPLATE_TEST_CASE("logarithms touch n numbers and no more, in place too", "[simd][log]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (Index n = 0; n <= 35; ++n) {
      std::vector<T> x(40, T(3)), y(40, T(-9));
      simd::log<T, A>(x.data(), y.data(), n);
      simd::log<T, A>(x.data(), x.data(), n);
      for (std::size_t i = 0; i < 40; ++i) {
        REQUIRE((y[i] == T(-9)) == (static_cast<Index>(i) >= n));
        REQUIRE(x[i] == (static_cast<Index>(i) < n ? y[i] : T(3)));
      }
    }
  });
}

TEMPLATE_TEST_CASE("log, log1p, softplus as SciPy has them", "[simd][log][golden]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  check_golden<T>("log", "positive", single ? 1.3 : 2.5,
                  [](auto arch, const T* x, T* y, Index n) { simd::log<T, decltype(arch)>(x, y, n); });
  check_golden<T>("log1p", "above", single ? 1.6 : 3.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::log1p<T, decltype(arch)>(x, y, n); });
  check_golden<T>("softplus", "x", single ? 3.6 : 5.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::softplus<T, decltype(arch)>(x, y, n); });
}
