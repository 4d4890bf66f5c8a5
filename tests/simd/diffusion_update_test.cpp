// Oracle: the formula in double on the same normals.
#include <recops/simd/diffusion_update.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("a diffusion step of one row on every instruction set", "[simd][diffusion]", float, double) {
  using T = TestType;
  Random random = random_stream(171);
  const T infinity = std::numeric_limits<T>::infinity();
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    double worst = 0;
    for (Index n = 0; n < 70; n += n < 20 ? 1 : 7) {
      for (int variant = 0; variant < 16; ++variant) {
        simd::DiffusionUpdate<T> u{
            .conditional = T(3), .unconditional = T(-2), .x_scale = T(0.9), .p_scale = T(0.2), .previous_scale = T(-0.1)};
        if (variant & 1) u.x0_x = T(0.5), u.x0_m = T(-0.25);
        if (variant & 2) u.longest = T(1.5);
        if (variant & 4) u.bound = T(0.75);
        if (variant & 8) u.noise_scale = T(0.3);
        const bool guided = variant % 3 != 0, kept = variant % 5 != 0;
        const Vector<T> x = random_vector<T>(n, random), m = random_vector<T>(n, random), null = random_vector<T>(n, random),
                        before = random_vector<T>(n, random);
        Vector<T> got = x, previous = before, z(n);
        const RandomRow at{.seed = 3, .row = 11, .step = 2};
        simd::fill_normal<T, A>(at, z.data(), n);
        const simd::Philox<A> philox(at);
        simd::diffusion_update<T, A>(u, got.data(), m.data(), guided ? null.data() : nullptr, kept ? previous.data() : nullptr,
                                     nullptr, &philox, n);
        std::vector<double> p;
        double length = 0;
        for (Index j = 0; j < n; ++j) {
          double v = guided ? 3.0 * static_cast<double>(m[j]) - 2.0 * static_cast<double>(null[j]) : static_cast<double>(m[j]);
          v = static_cast<double>(u.x0_x) * static_cast<double>(x[j]) + static_cast<double>(u.x0_m) * v;
          v = std::clamp(v, -static_cast<double>(u.bound), static_cast<double>(u.bound));
          p.push_back(v);
          length += v * v;
        }
        length = std::sqrt(length);
        const double scale = u.longest < infinity && length > 1.5 ? 1.5 / length : 1;
        for (Index j = 0; j < n; ++j) {
          const double v = p[static_cast<std::size_t>(j)] * scale;
          const double expected = static_cast<double>(u.x_scale) * static_cast<double>(x[j]) +
                                  static_cast<double>(u.p_scale) * v +
                                  (kept ? static_cast<double>(u.previous_scale) * static_cast<double>(before[j]) : 0) +
                                  static_cast<double>(u.noise_scale) * static_cast<double>(z[j]);
          worst = std::max(worst, std::abs(static_cast<double>(got[j]) - expected));
          if (kept) worst = std::max(worst, std::abs(static_cast<double>(previous[j]) - v));
        }
      }
    }
    CHECK(worst < (std::is_same_v<T, float> ? 1e-5 : 1e-14));
    // A prediction whose square overflows has a length all the same: clipped to 2; shorter than 1e30 (1e300), it stays.
    const T large = std::is_same_v<T, float> ? T(1e20) : T(1e200), far = std::is_same_v<T, float> ? T(1e30) : T(1e300);
    for (const T longest : {T(2), far}) {
      Vector<T> m(11, T(0)), x(11, T(0));
      m[0] = 3 * large, m[10] = -4 * large;
      simd::diffusion_update<T, A>({.longest = longest}, x.data(), m.data(), nullptr, nullptr, nullptr, nullptr, 11);
      const double unit = longest == T(2) ? 0.4 : static_cast<double>(large);
      CHECK(static_cast<double>(x[0]) == Approx(3 * unit).epsilon(1e-6));
      CHECK(static_cast<double>(x[10]) == Approx(-4 * unit).epsilon(1e-6));
      CHECK(x[5] == T(0));
    }
  });
}
