// Oracle: the definition of the transform in long double.
#include <recops/simd/fft_butterflies.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr long double pi = 3.141592653589793238462643383279502884L;

/// Largest deviation of butterfly<R> over random inputs, relative to the sum of their sizes; `inverse` exchanges the planes.
template <int R, class T, class A>
double worst_of(bool inverse, Random& random) {
  using B = simd::Batch<T, A>;
  constexpr auto W = static_cast<std::size_t>(simd::lanes<T, A>);
  alignas(64) T in[2][R][W], out[2][R][W];
  B re[R], im[R];
  for (int n = 0; n < R; ++n) {
    for (std::size_t l = 0; l < W; ++l) {
      in[0][n][l] = static_cast<T>(random.normal());
      in[1][n][l] = static_cast<T>(random.normal());
    }
    re[n] = B::load_aligned(in[0][n]);
    im[n] = B::load_aligned(in[1][n]);
  }
  if (inverse)
    simd::butterfly<R, T, A>(im, re);
  else
    simd::butterfly<R, T, A>(re, im);
  for (int k = 0; k < R; ++k) {
    re[k].store_aligned(out[0][k]);
    im[k].store_aligned(out[1][k]);
  }
  double worst = 0;
  for (std::size_t l = 0; l < W; ++l) {
    double size = 0, off = 0;
    for (int n = 0; n < R; ++n) size += std::abs(static_cast<double>(in[0][n][l])) + std::abs(static_cast<double>(in[1][n][l]));
    for (int k = 0; k < R; ++k) {
      long double sum_re = 0, sum_im = 0;
      for (int n = 0; n < R; ++n) {
        const long double angle = (inverse ? 2 : -2) * pi * (k * n % R) / R;
        sum_re += in[0][n][l] * std::cos(angle) - in[1][n][l] * std::sin(angle);
        sum_im += in[0][n][l] * std::sin(angle) + in[1][n][l] * std::cos(angle);
      }
      off = std::max(
          {off, static_cast<double>(std::abs(sum_re - out[0][k][l])), static_cast<double>(std::abs(sum_im - out[1][k][l]))});
    }
    worst = std::max(worst, off / size);
  }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("butterflies are discrete Fourier transforms", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(101);
  const double bound = 2 * std::numeric_limits<T>::epsilon();
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const bool inverse : {false, true}) {
      CAPTURE(inverse);
      for (int repeat = 0; repeat < 20; ++repeat) {
        REQUIRE(worst_of<1, T, A>(inverse, random) == 0);
        REQUIRE(worst_of<2, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<3, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<4, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<5, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<6, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<7, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<8, T, A>(inverse, random) <= bound);
        REQUIRE(worst_of<10, T, A>(inverse, random) <= bound);
      }
    }
  });
}

TEMPLATE_TEST_CASE("complex products of vectors", "[simd][fft]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    using B = simd::Batch<T, A>;
    alignas(64) T lane[64 / sizeof(T)];
    simd::minus_product<T, A>(B(T(3)), B(T(4)), B(T(5))).store_aligned(lane);
    CHECK(lane[0] == T(-7));
    B re(T(1)), im(T(2));
    simd::complex_scale<T, A>(re, im, B(T(3)), B(T(4)));  // (1 + 2 i)(3 + 4 i) = -5 + 10 i
    re.store_aligned(lane);
    CHECK(lane[0] == T(-5));
    im.store_aligned(lane);
    CHECK(lane[B::size - 1] == T(10));
  });
}
