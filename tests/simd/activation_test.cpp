// Oracles: the definitions in long double; derivatives against central differences.
#include <recops/simd/activation.hpp>

#include <vector>

#include "simd/elementwise_golden.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr Activation all[] = {Activation::none, Activation::relu, Activation::sigmoid,  Activation::silu,
                              Activation::tanh, Activation::gelu, Activation::softplus, Activation::leaky_relu};

long double reference(Activation f, long double x) {
  const long double s = 1 / (1 + std::exp(-x));
  switch (f) {
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::sigmoid:
      return s;
    case Activation::silu:
      return x * s;
    case Activation::tanh:
      return std::tanh(x);
    case Activation::gelu:
      return x * std::erfc(-x * 0.70710678118654752440084436210485L) / 2;
    case Activation::softplus:
      return (x > 0 ? x : 0) + std::log1p(std::exp(-std::abs(x)));
    case Activation::leaky_relu:
      return x > 0 ? x : 0.01L * x;
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("activations are within a few ulp", "[simd][activation]", float, double) {
  using T = TestType;
  std::vector<T> x;
  for (T v = T(-80); v < T(80); v += T(0.0137)) x.push_back(v);
  for (T v = T(1e-30); v < 1; v *= T(2.3)) x.insert(x.end(), {v, -v});
  x.push_back(0);
  std::vector<T> y(x.size());
  for (const Activation f : all) {
    CAPTURE(static_cast<int>(f));
    for_each_architecture([&](auto arch) {
      simd::activate<T, decltype(arch)>(f, x.data(), y.data(), static_cast<Index>(x.size()));
      double worst = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        if (f == Activation::gelu && std::is_same_v<T, float> && x[i] < T(-3)) continue;  // relative error 1.2e-5, below
        worst = std::max(worst, ulps(y[i], reference(f, x[i])));
      }
      CHECK(worst <= (f == Activation::none || f == Activation::relu ? 0.0 : f == Activation::gelu ? 12.0 : 8.0));
      std::vector<T> in_place = x;
      simd::activate<T, decltype(arch)>(f, in_place.data(), in_place.data(), static_cast<Index>(x.size()));
      CHECK(in_place == y);
    });
  }
}

TEST_CASE("activation derivatives agree with central differences", "[simd][activation]") {
  std::vector<double> x, dy;
  for (double v = -9.3; v < 9.3; v += 0.11) x.push_back(v), dy.push_back(1 + std::cos(7 * v));
  const auto n = static_cast<Index>(x.size());
  std::vector<double> y(x.size()), dx(x.size());
  std::vector<float> x1(x.begin(), x.end()), dy1(dy.begin(), dy.end()), y1(x.size()), dx1(x.size());
  for (const Activation f : all) {
    CAPTURE(static_cast<int>(f));
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      simd::activate<double, A>(f, x.data(), y.data(), n);
      simd::activate_backward<double, A>(f, x.data(), y.data(), dy.data(), dx.data(), n);
      simd::activate<float, A>(f, x1.data(), y1.data(), n);
      simd::activate_backward<float, A>(f, x1.data(), y1.data(), dy1.data(), dx1.data(), n);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const long double h = 1e-7L;
        const auto numeric = static_cast<double>((reference(f, x[i] + h) - reference(f, x[i] - h)) / (2 * h)) * dy[i];
        REQUIRE(dx[i] == Approx(numeric).margin(1e-9));
        REQUIRE(static_cast<double>(dx1[i]) == Approx(numeric).margin(3e-6));
      }
      std::vector<double> in_place = dy;
      simd::activate_backward<double, A>(f, x.data(), y.data(), in_place.data(), in_place.data(), n);
      CHECK(in_place == dx);
    });
  }
}

TEST_CASE("gelu of floats far below 0 has a small relative error", "[simd][activation]") {
  std::vector<float> x;
  for (float v = -15; v < -2; v += 0.00037f) x.push_back(v);
  std::vector<float> y(x.size());
  for_each_architecture([&](auto arch) {
    simd::gelu<float, decltype(arch)>(x.data(), y.data(), static_cast<Index>(x.size()));
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const long double exact = reference(Activation::gelu, x[i]);
      const long double allowed = std::max(1.2e-5L * std::abs(exact), 1.5e-45L);
      worst = std::max(worst, static_cast<double>(std::abs(y[i] - exact) / allowed));
    }
    CHECK(worst <= 1);
  });
}

TEMPLATE_TEST_CASE("activations at the ends", "[simd][activation]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
  const T most = std::numeric_limits<T>::max();
  const std::vector<T> x{nan, infinity, T(-1e4), T(1e4), -infinity, most, -most};
  std::vector<T> y(x.size());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Activation f : all) {
      simd::activate<T, A>(f, x.data(), y.data(), static_cast<Index>(x.size()));
      CAPTURE(static_cast<int>(f));
      const bool bounded = f == Activation::sigmoid || f == Activation::tanh;
      const bool linear = f == Activation::none || f == Activation::leaky_relu;
      CHECK(std::isnan(y[0]));
      CHECK(y[1] == (bounded ? T(1) : infinity));
      CHECK(y[3] == (bounded ? T(1) : x[3]));
      CHECK(y[5] == (bounded ? T(1) : most));
      if (linear) {
        CHECK(y[4] == -infinity);
      } else {
        for (const std::size_t i : {2u, 4u, 6u}) CHECK(y[i] == (f == Activation::tanh ? T(-1) : T(0)));
      }
      // Derivatives there: 0 or 1, or the slope; a NaN gives NaN or nothing.
      std::vector<T> dy(x.size(), T(1)), dx(x.size());
      simd::activate_backward<T, A>(f, x.data(), y.data(), dy.data(), dx.data(), static_cast<Index>(x.size()));
      CHECK((dx[1] == (bounded ? T(0) : T(1)) && dx[3] == dx[1] && dx[5] == dx[1]));
      const T below = f == Activation::none ? T(1) : f == Activation::leaky_relu ? T(leaky_slope) : T(0);
      CHECK((dx[2] == below && dx[4] == below && dx[6] == below));
    }
    const T zero = 0, one = 1;
    T d = 7;
    simd::activate_backward<T, A>(Activation::relu, &zero, &zero, &one, &d, 1);
    CHECK(d == 0);
  });
}

TEMPLATE_TEST_CASE("activations touch n numbers and no more", "[simd][activation]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (Index n = 0; n <= 35; ++n) {
      const std::vector<T> x(static_cast<std::size_t>(n), T(2));
      std::vector<T> y(40, T(-9)), d(40, T(-9));
      for (const Activation f : all) {
        simd::activate<T, A>(f, x.data(), y.data(), n);
        simd::activate_backward<T, A>(f, x.data(), y.data(), x.data(), d.data(), n);
        for (std::size_t i = 0; i < y.size(); ++i) {
          REQUIRE((y[i] == T(-9)) == (static_cast<Index>(i) >= n));
          REQUIRE((d[i] == T(-9)) == (static_cast<Index>(i) >= n));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("silu as SciPy has them", "[simd][activation][golden]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  check_golden<T>("silu", "x", single ? 4.5 : 7.0,
                  [](auto arch, const T* x, T* y, Index n) { simd::silu<T, decltype(arch)>(x, y, n); });
}
