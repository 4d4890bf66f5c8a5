// Oracle: the C library's erf and erfc in long double.
#include <recops/simd/gaussian.hpp>

#include <vector>

#include "simd/elementwise_golden.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

long double normal(long double x) { return std::erfc(-x * 0.70710678118654752440084436210485L) / 2; }
long double slope(long double x) { return normal(x) + x * std::exp(-x * x / 2) * 0.39894228040143267793994605993438L; }

template <class T>
std::vector<T> sample() {
  std::vector<T> x;
  for (T v = T(-40); v < T(12); v += T(0.00131)) x.push_back(v);
  for (T v = std::numeric_limits<T>::min(); v < 1; v *= T(1.13)) x.insert(x.end(), {v, -v});
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("erf and gelu are within a few ulp, their slope within a few eps", "[simd][gaussian]", float, double) {
  using T = TestType;
  const bool single = std::is_same_v<T, float>;
  const std::vector<T> x = sample<T>();
  const auto n = static_cast<Index>(x.size());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<T> e(x.size()), g(x.size()), d(x.size());
    simd::erf<T, A>(x.data(), e.data(), n);
    simd::gelu<T, A>(x.data(), g.data(), n);
    simd::for_each_vector<T, A>(
        n, [&](Index i, auto load, auto store) { store(&d[0] + i, simd::gelu_derivative(load(&x[0] + i))); });
    double worst[4] = {0, 0, 0, 0};
    for (std::size_t i = 0; i < x.size(); ++i) {
      const long double v = x[i];
      worst[0] = std::max(worst[0], ulps(e[i], std::erf(v)));
      const long double exact = v * normal(v);
      if (!single || v >= -3) worst[1] = std::max(worst[1], ulps(g[i], exact));
      if (-exact >= std::numeric_limits<T>::min()) worst[3] = std::max(worst[3], static_cast<double>(std::abs(g[i] / exact - 1)));
      worst[2] = std::max(worst[2], static_cast<double>(std::abs(d[i] - slope(v))));
    }
    CHECK(worst[0] <= 4.2);
    CHECK(worst[1] <= (single ? 12 : 9));
    CHECK(worst[3] <= (single ? 1.2e-5 : 3e-15));
    CHECK(worst[2] <= (single ? 4e-7 : 8e-16));
  });
}

TEMPLATE_TEST_CASE("erf, gelu and its slope at the ends", "[simd][gaussian]", float, double) {
  using T = TestType;
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN(),
          most = std::numeric_limits<T>::max();
  const std::vector<T> x{infinity, -infinity, nan, most, -most, 0, T(-0.0), 30, -45};
  const auto n = static_cast<Index>(x.size());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<T> e(x.size()), g(x.size()), d(x.size());
    simd::erf<T, A>(x.data(), e.data(), n);
    simd::gelu<T, A>(x.data(), g.data(), n);
    simd::for_each_vector<T, A>(
        n, [&](Index i, auto load, auto store) { store(&d[0] + i, simd::gelu_derivative(load(&x[0] + i))); });
    CHECK((e[0] == 1 && e[1] == -1 && std::isnan(e[2]) && e[3] == 1 && e[4] == -1 && e[5] == 0 && e[6] == 0 && e[7] == 1 &&
           e[8] == -1));
    CHECK((g[0] == infinity && g[1] == 0 && std::isnan(g[2]) && g[3] == most && g[4] == 0 && g[5] == 0 && g[6] == 0 &&
           g[7] == 30 && g[8] == 0));
    CHECK((d[0] == 1 && d[1] == 0 && std::isnan(d[2]) && d[3] == 1 && d[4] == 0 && d[5] == Approx(0.5)));
  });
}

TEMPLATE_TEST_CASE("erf, gelu as SciPy has them", "[simd][gaussian][golden]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  check_golden<T>("erf", "x", single ? 4.2 : 5.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::erf<T, decltype(arch)>(x, y, n); });
  check_golden<T>("gelu", "x", single ? 160.0 : 9.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::gelu<T, decltype(arch)>(x, y, n); });
}
