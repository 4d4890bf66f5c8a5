// Oracle: the definition of the transform in long double; what is put into tiles must come out again.
#include <recops/simd/fft_stages.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;
using namespace recops::simd::detail;
using simd::FftPlan;

TEMPLATE_TEST_CASE("forward levels leave bin k at its position, inverse levels undo them", "[simd][fft]", float, double) {
  using T = TestType;
  constexpr long double pi = 3.141592653589793238462643383279502884L;
  Random random = random_stream(131);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    // Every radix as a first and as a last level, several levels, generic primes.
    for (const Index length : {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 14, 21, 22, 49, 61, 66, 70, 80, 100, 121, 210, 256}) {
      const FftPlan<T> plan(length);
      REQUIRE_FALSE(plan.bluestein());
      const auto mark = ws.mark();
      T *const z = ws.take<T>(length * 2 * W), *const before = ws.take<T>(length * 2 * W);
      for (Index i = 0; i < length * 2 * W; ++i) before[i] = z[i] = static_cast<T>(random.normal());
      fft_forward_parts<T, A>(plan, 0, z, 1);
      double worst = 0;
      for (Index k = 0; k < length; k += 1 + length / 40) {
        for (const Index lane : {Index{0}, W - 1}) {
          long double re = 0, im = 0;
          for (Index n = 0; n < length; ++n) {
            const long double angle = -2 * pi * static_cast<long double>(k * n % length) / static_cast<long double>(length);
            const long double x = before[n * 2 * W + lane], y = before[n * 2 * W + W + lane];
            re += x * std::cos(angle) - y * std::sin(angle);
            im += x * std::sin(angle) + y * std::cos(angle);
          }
          const T* const bin = z + plan.positions()[k] * 2 * W + lane;
          worst = std::max({worst, std::abs(static_cast<double>(re - bin[0])), std::abs(static_cast<double>(im - bin[W]))});
        }
      }
      const double eps = std::numeric_limits<T>::epsilon();
      CAPTURE(length, worst);
      REQUIRE(worst <= 8 * eps * std::sqrt(static_cast<double>(length)) * (1 + std::log2(static_cast<double>(length))));
      fft_inverse_parts<T, A>(plan, 0, z, 1);
      worst = 0;
      for (Index i = 0; i < length * 2 * W; ++i)
        worst = std::max(worst, std::abs(static_cast<double>(z[i] / static_cast<T>(length) - before[i])));
      REQUIRE(worst <= 8 * eps * (1 + std::log2(static_cast<double>(length))));
    }
  });
}

TEMPLATE_TEST_CASE("which groups are read without a detour", "[simd][fft]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    const FftPlan<T> plan(12), chirped(67);
    const Matrix<T> x(12, 5 * W + 1), y(12, 5 * W + 1), wide(12, 6 * W);
    const MatrixView<const T> vx = x.view(), vy = y.view(), vw = wide.view();
    const auto direct = [](const FftPlan<T>& p, const FftRows<const T>& rows) {
      return fft_direct<const T, A>(p, rows, 0, fft_groups(rows));
    };
    CHECK(fft_groups(fft_two<A>(vx, vy)) == 6);
    CHECK(direct(plan, fft_two<A>(vx, vy)) == 5);
    CHECK(direct(chirped, fft_two<A>(vx, vy)) == 0);
    CHECK(direct(plan, fft_two<A>(vx, vw.middle_cols(0, 5 * W + 1))) == 0);  // another stride
    CHECK(fft_groups(fft_one<A>(vx)) == 3);                                  // 2 pairs of blocks, block 4 with the last channel
    CHECK(direct(plan, fft_one<A>(vx)) == 2);
    CHECK(direct(plan, fft_one<A>(vw)) == 3);
    CHECK(direct(plan, fft_alone<A>(vx)) == 0);
    CHECK(fft_groups(fft_one<A>(vx.middle_cols(0, 0))) == 0);
    CHECK(fft_groups(fft_one<A>(vx.middle_cols(0, 1))) == 1);
    CHECK(fft_direct<const T, A>(plan, fft_two<A>(vx, vy), 4, 2) == 1);
    CHECK(fft_direct<const T, A>(plan, fft_two<A>(vx, vy), 5, 1) == 0);
  });
}

TEMPLATE_TEST_CASE("what enters tiles leaves them, times the length; a NaN is seen", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(132);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : {1, 7, 12, 50}) {
      for (const Index cols : {1, 9, 40}) {
        const FftPlan<T> plan(length);
        Matrix<T> x = random_matrix<T>(length, cols, random);
        const Matrix<T> y = random_matrix<T>(length, cols, random);
        Matrix<T> a(length, cols, T(1)), b(length, cols, T(1));
        const auto rows = fft_two<A>(MatrixView<const T>(x), y.view());
        const auto mark = ws.mark();
        const FftBlock<T, A> block(plan, fft_groups(rows));
        T* const z = block.take(ws);
        for (const bool add : {false, true}) {
          for (Index first = 0; first < fft_groups(rows); first += block.groups) {
            const Index count = std::min(block.groups, fft_groups(rows) - first);
            fft_enter<T, A>(plan, rows, first, count, z, block.distance);
            REQUIRE_FALSE(fft_poisoned<T, A>(z, block.distance, count, plan.stage(0).span, 1));
            for (Index g = 0; g < count; ++g) {
              fft_forward_parts<T, A>(plan, 1, z + g * block.distance, plan.stage(0).radix);
              fft_inverse_parts<T, A>(plan, 1, z + g * block.distance, plan.stage(0).radix);
            }
            fft_leave<T, A>(plan, fft_two<A>(a.view(), b.view()), first, count, z, block.distance, add);
          }
        }
        for (Index i = 0; i < length * cols; ++i) {
          REQUIRE(a.data()[i] == Approx(2 * static_cast<T>(length) * x.data()[i]).margin(1e-3));
          REQUIRE(b.data()[i] == Approx(2 * static_cast<T>(length) * y.data()[i]).margin(1e-3));
        }
        for (const T poison : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
          for (Index n = 0; n < length; ++n) {
            const T kept = std::exchange(x(n, cols - 1), poison);
            bool seen = false;
            for (Index first = 0; first < fft_groups(rows); first += block.groups) {
              const Index count = std::min(block.groups, fft_groups(rows) - first);
              fft_enter<T, A>(plan, rows, first, count, z, block.distance);
              seen = seen || fft_poisoned<T, A>(z, block.distance, count, plan.stage(0).span, 1);
            }
            REQUIRE(seen);
            x(n, cols - 1) = kept;
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("turned rows are rows whose second sequence begins a row later", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(133);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    for (const Index length : {6, 32, 50, 64, 80, 122}) {  // 122 = 2 61: a radix without a butterfly of its own
      for (const Index cols : {W, 3 * W, 3 * W + 1}) {
        const FftPlan<T> plan(length);
        const Matrix<T> x = random_matrix<T>(length, cols, random), y = random_matrix<T>(length, cols, random);
        Matrix<T> later(length, cols);
        for (Index n = 0; n < length; ++n) std::copy_n(y.row((n + 1) % length), cols, later.row(n));
        auto turned = fft_two<A>(x.view(), y.view());
        turned.turned = true;
        const auto plain = fft_two<A>(x.view(), MatrixView<const T>(later));
        const Index groups = fft_whole<A>(plain), distance = (length + 1) * 2 * W;
        const auto mark = ws.mark();
        T *const z = ws.take<T>(groups * distance), *const expected = ws.take<T>(groups * distance);
        std::fill_n(z, groups * distance, T(0));
        std::fill_n(expected, groups * distance, T(0));
        fft_enter<T, A>(plan, turned, 0, groups, z, distance);
        fft_enter<T, A>(plan, plain, 0, groups, expected, distance);
        REQUIRE(std::equal(z, z + groups * distance, expected));
        for (const bool add : {false, true}) {
          Matrix<T> a(length, cols, T(1)), b(length, cols, T(1)), c(length, cols, T(1)), d(length, cols, T(1));
          auto out = fft_two<A>(a.view(), b.view());
          out.turned = true;
          std::copy_n(expected, groups * distance, z);
          fft_leave<T, A>(plan, out, 0, groups, z, distance, add);
          std::copy_n(expected, groups * distance, z);
          fft_leave<T, A>(plan, fft_two<A>(c.view(), d.view()), 0, groups, z, distance, add);
          for (Index n = 0; n < length; ++n) {
            REQUIRE(std::equal(a.row(n), a.row(n) + cols, c.row(n)));
            REQUIRE(std::equal(b.row((n + 1) % length), b.row((n + 1) % length) + cols, d.row(n)));
          }
        }
      }
    }
  });
}

TEST_CASE("scratch stays within its bounds", "[simd][fft]") {
  for (const Index length : {1, 50, 1024, 4096, 50000}) {
    const FftPlan<float> plan(length);
    const FftBlock<float, simd::DefaultArch> block(plan, 1000);
    const Index bytes = block.groups * block.distance * Index{sizeof(float)};
    CAPTURE(length);
    CHECK((block.groups >= 1 && (bytes <= 2048 * 1024 || block.groups == 1)));
    const FftBlock<float, simd::DefaultArch> one(plan, 1);
    CHECK(one.groups == 1);
  }
}

TEST_CASE("rows are fetched in as many steps as were announced", "[simd][fft]") {
  const Matrix<float> x(23, 40);
  for (const Index steps : {1, 4, 23, 60}) {
    FftAhead ahead(steps, x.view(), x.view());
    Index taken = 0;
    for (; ahead.rows > 0; ++taken) {
      const Index before = ahead.rows;
      ahead.step();
      REQUIRE(ahead.rows < before);
    }
    CAPTURE(steps);
    CHECK((taken <= steps && taken * (ahead.each) >= 23));
    for (int i = 0; i < 2; ++i)
      CHECK(ahead.sequences[static_cast<std::size_t>(i)].at == reinterpret_cast<const char*>(x.data() + 23 * x.view().stride()));
    ahead.step();  // nothing is left
    CHECK(ahead.rows == 0);
  }
  FftAhead nothing;
  nothing.step();
  CHECK(nothing.rows == 0);
}

TEMPLATE_TEST_CASE("rows written around the caches are the same rows", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(134);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>, line = 64 / sizeof(T);
    for (const Index length : {1, 3, 4, 12, 28, 50, 64, 80, 122, 200, 256}) {  // 122 = 2 61: a radix that has no such way
      for (const Index cols : {W, line, 3 * line, 4 * line}) {
        const FftPlan<T> plan(length);
        const Index groups = cols / W, distance = (length + 1) * 2 * W, stride = cols + line;
        const auto mark = ws.mark();
        T *const tiles = ws.take<T>(groups * distance), *const z = ws.take<T>(groups * distance);
        for (Index i = 0; i < groups * distance; ++i) tiles[i] = static_cast<T>(random.normal());
        for (const bool turned : {false, true}) {
          Matrix<T> a(length, stride, T(1)), b(length, stride, T(1)), c(length, stride, T(1)), d(length, stride, T(1));
          const auto leave = [&](Matrix<T>& x, Matrix<T>& y, bool far) {
            auto out = fft_two<A>(x.view().middle_cols(0, cols), y.view().middle_cols(0, cols));
            out.turned = turned;
            out.far = far;
            std::copy_n(tiles, groups * distance, z);
            fft_leave<T, A>(plan, out, 0, groups, z, distance, false);
          };
          leave(a, b, true);
          simd::far_done();
          leave(c, d, false);
          CAPTURE(length, cols, turned);
          REQUIRE(std::equal(a.data(), a.data() + length * stride, c.data()));
          REQUIRE(std::equal(b.data(), b.data() + length * stride, d.data()));
        }
      }
    }
  });
}
