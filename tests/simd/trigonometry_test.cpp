// Oracle: the C library in long double (double for huge arguments of float, where it is exact to 1e-16).
#include <recops/simd/trigonometry.hpp>

#include <vector>

#include "simd/elementwise_golden.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("sine and cosine are within 3 ulp, of arguments of any size", "[simd][trigonometry]", float, double) {
  using T = TestType;
  std::vector<T> x;
  for (T v = T(-30); v < T(30); v += T(0.00171)) x.push_back(v);
  for (T v = std::numeric_limits<T>::min(); v < T(1e30); v *= T(1.0217)) x.insert(x.end(), {v, -v});
  // The numbers nearest to multiples of pi/2: most of their digits cancel.
  for (long double k = 1; k < 4e6L; k = k < 2000 ? k + 1 : k * 1.01L) {
    const T near = static_cast<T>(std::floor(k) * 1.57079632679489661923132169163975144L);
    x.insert(x.end(), {near, std::nextafter(near, T(0)), -near});
  }
  for (const T v : {T(1e30), std::numeric_limits<T>::max()}) x.push_back(v);
  const auto n = static_cast<Index>(x.size());
  for_each_architecture([&](auto arch) {
    std::vector<T> s(x.size()), c(x.size());
    simd::sincos<T, decltype(arch)>(x.data(), s.data(), c.data(), n);
    double worst = 0;
    T at = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const long double v = x[i];
      const double error = std::max(ulps(s[i], std::sin(v)), ulps(c[i], std::cos(v)));
      if (error > worst) worst = error, at = x[i];
    }
    CAPTURE(at);
    CHECK(worst <= 3);
  });
}

TEMPLATE_TEST_CASE("sine and cosine at the ends and in place", "[simd][trigonometry]", float, double) {
  using T = TestType;
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for_each_architecture([&](auto arch) {
    std::vector<T> x{infinity, -infinity, nan, 0, 1, T(1e25)}, s(6);
    simd::sincos<T, decltype(arch)>(x.data(), s.data(), x.data(), 6);
    for (const std::size_t i : {0u, 1u, 2u}) CHECK((std::isnan(s[i]) && std::isnan(x[i])));
    CHECK((s[3] == 0 && x[3] == 1 && s[4] == Approx(std::sin(1.0)) && x[4] == Approx(std::cos(1.0))));
    CHECK(s[5] == Approx(static_cast<double>(std::sin(static_cast<long double>(T(1e25))))));
  });
}

TEMPLATE_TEST_CASE("turns: quarters are exact, whole turns change nothing", "[simd][trigonometry]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using B = simd::Batch<T, decltype(arch)>;
    for (int k = -9; k < 9; ++k) {
      const auto both = simd::sincos_turns(B(T(k) / 4));
      T s[B::size], c[B::size];
      both.sin.store_unaligned(s), both.cos.store_unaligned(c);
      const int q = ((k % 4) + 4) % 4;
      CHECK((s[0] == (q == 1 ? 1 : q == 3 ? -1 : 0) && c[0] == (q == 0 ? 1 : q == 2 ? -1 : 0)));
    }
    double worst = 0;
    for (T u = T(-1); u < T(1); u += T(0.00137)) {
      const auto both = simd::sincos_turns(B(u));
      T s[B::size], c[B::size];
      both.sin.store_unaligned(s), both.cos.store_unaligned(c);
      const long double angle = 6.28318530717958647692528676655900577L * u;
      worst = std::max(
          {worst, static_cast<double>(std::abs(s[0] - std::sin(angle))), static_cast<double>(std::abs(c[0] - std::cos(angle)))});
    }
    CHECK(worst <= 1.5 * static_cast<double>(std::numeric_limits<T>::epsilon()));
  });
}

TEMPLATE_TEST_CASE("sine and cosine as NumPy has them", "[simd][trigonometry][golden]", float, double) {
  using T = TestType;
  check_golden<T>("sin", "angles", 4, [](auto arch, const T* x, T* y, Index n) {
    std::vector<T> other(static_cast<std::size_t>(n));
    simd::sincos<T, decltype(arch)>(x, y, other.data(), n);
  });
  check_golden<T>("cos", "angles", 4, [](auto arch, const T* x, T* y, Index n) {
    std::vector<T> other(static_cast<std::size_t>(n));
    simd::sincos<T, decltype(arch)>(x, other.data(), y, n);
  });
}
