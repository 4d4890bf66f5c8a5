// Oracles: the definition of the transform in long double, numpy, scipy and PyTorch (golden), and algebra: Parseval, shift, adjoints.
// `[.full]` does every prime up to 10007.
#include <recops/simd/fft.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;
using simd::FftPlan;
using simd::FftPlanes;

namespace {

constexpr long double pi = 3.141592653589793238462643383279502884L;

/// What a relative Euclidean error may be.
template <class T>
double bound(Index length) {
  return (sizeof(T) == 4 ? 5e-7 : 1e-15) * (1 + std::log2(static_cast<double>(length)) / 10);
}

template <class T>
struct Spectrum {
  Matrix<T> re, im;
  Spectrum(Index bins, Index cols, T value = T(0)) : re(bins, cols, value), im(bins, cols, value) {}
  operator FftPlanes<T>() { return {re, im}; }
  operator FftPlanes<const T>() const { return {re.view(), im.view()}; }
  FftPlanes<const T> view() const { return *this; }
};

/// Roots e^(2 pi i m / L).
struct Roots {
  std::vector<long double> c, s;
  explicit Roots(Index length) {
    for (Index m = 0; m < length; ++m) {
      c.push_back(std::cos(2 * pi * static_cast<long double>(m) / static_cast<long double>(length)));
      s.push_back(std::sin(2 * pi * static_cast<long double>(m) / static_cast<long double>(length)));
    }
  }
};

/// Bin `k` of the unscaled transform of column `d`.
template <class T>
void bin_of(const Roots& root, MatrixView<const T> x, Index k, Index d, long double& re, long double& im) {
  re = im = 0;
  for (Index n = 0, m = 0; n < x.rows(); ++n) {
    re += static_cast<long double>(x(n, d)) * root.c[static_cast<std::size_t>(m)];
    im -= static_cast<long double>(x(n, d)) * root.s[static_cast<std::size_t>(m)];
    m += k;
    if (m >= x.rows()) m -= x.rows();
  }
}

/// |a - b| / |b|, Euclidean.
template <class T>
double distance(MatrixView<const T> a, MatrixView<const T> b) {
  double sum = 0, norm = 0;
  for (Index i = 0; i < a.rows(); ++i) {
    for (Index j = 0; j < a.cols(); ++j) {
      const double d = static_cast<double>(a(i, j)) - static_cast<double>(b(i, j));
      sum += d * d;
      norm += static_cast<double>(b(i, j)) * static_cast<double>(b(i, j));
    }
  }
  return norm > 0 ? std::sqrt(sum / norm) : std::sqrt(sum);
}

template <class T>
double inner(MatrixView<const T> a, MatrixView<const T> b) {
  double sum = 0;
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) sum += static_cast<double>(a(i, j)) * static_cast<double>(b(i, j));
  return sum;
}

/// Relative error of some bins of a spectrum against the definition: every `step`-th bin.
template <class T>
double spectrum_error(const Roots& root, MatrixView<const T> x, FftPlanes<const T> got, Index step) {
  long double sum = 0, norm = 0;
  for (Index d = 0; d < x.cols(); ++d) {
    for (Index k = 0; k < got.re.rows(); k += step) {
      long double re, im;
      bin_of(root, x, k, d, re, im);
      const long double er = re - got.re(k, d), ei = im - got.im(k, d);
      sum += er * er + ei * ei;
      norm += re * re + im * im;
    }
  }
  return static_cast<double>(std::sqrt(sum / norm));
}

/// Transform and back, of one sequence and of two, against the definition (every `step`-th bin).
template <class T, class A>
void check_length(Index length, Index cols, Index step, Random& random, Workspace& ws) {
  const FftPlan<T> plan(length);
  const Index bins = plan.bins();
  const Matrix<T> x0 = random_matrix<T>(length, cols, random), x1 = random_matrix<T>(length, cols, random);
  const Roots root(length);
  Spectrum<T> s0(bins, cols), s1(bins, cols), alone(bins, cols);
  simd::rfft<T, A>(plan, x0.view(), x1.view(), s0, s1, FftNorm::backward, ws);
  simd::rfft<T, A>(plan, x0.view(), alone, FftNorm::backward, ws);
  CAPTURE(length, cols, plan.size());
  REQUIRE(spectrum_error<T>(root, x0.view(), s0.view(), step) <= bound<T>(length));
  REQUIRE(spectrum_error<T>(root, x1.view(), s1.view(), step) <= bound<T>(length));
  REQUIRE(spectrum_error<T>(root, x0.view(), alone.view(), step) <= bound<T>(length));
  for (Index d = 0; d < cols; ++d) {
    REQUIRE((s0.im(0, d) == 0 && s1.im(0, d) == 0 && alone.im(0, d) == 0));
    if (length % 2 == 0) REQUIRE((s0.im(bins - 1, d) == 0 && s1.im(bins - 1, d) == 0 && alone.im(bins - 1, d) == 0));
  }
  Matrix<T> y0(length, cols, T(7)), y1(length, cols, T(7));
  simd::irfft<T, A>(plan, s0.view(), s1.view(), y0, y1, FftNorm::backward, ws);
  REQUIRE(distance<T>(y0.view(), x0.view()) <= bound<T>(length));
  REQUIRE(distance<T>(y1.view(), x1.view()) <= bound<T>(length));
  simd::irfft<T, A>(plan, alone.view(), y0, FftNorm::backward, ws);
  REQUIRE(distance<T>(y0.view(), x0.view()) <= bound<T>(length));
}

std::vector<Index> primes(Index from, Index to) {
  std::vector<Index> all;
  for (Index n = from; n <= to; ++n) {
    bool prime = n > 1;
    for (Index d = 2; d * d <= n && prime; ++d) prime = n % d != 0;
    if (prime) all.push_back(n);
  }
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("every length up to 256 is exact to the bound", "[simd][fft]", float, double) {
  Random random = random_stream(111);
  Workspace ws;
  for (Index length = 1; length <= 256; ++length) check_length<TestType, simd::DefaultArch>(length, 2, 1, random, ws);
}

TEMPLATE_TEST_CASE("every instruction set and any number of channels", "[simd][fft]", float, double) {
  Random random = random_stream(112);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    for (const Index length : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 16, 25, 34, 36, 49, 50, 51, 64, 67, 97, 100, 101, 120})
      for (const Index cols : {1, 7, 65}) check_length<TestType, decltype(arch)>(length, cols, 1 + length / 12, random, ws);
    for (const Index cols : {2, 3, 8, 15, 16, 17, 31, 32, 33, 64})
      for (const Index length : {12, 50, 71}) check_length<TestType, decltype(arch)>(length, cols, 5, random, ws);
    for (const Index length : {512, 1000, 1001, 1021, 2048, 4099, 10007})
      check_length<TestType, decltype(arch)>(length, 5, 1 + length / 5, random, ws);
  });
}

TEMPLATE_TEST_CASE("every prime up to 10007 is exact to the bound", "[.full][fft]", float, double) {
  Random random = random_stream(113);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    for (const Index length : primes(2, 10007)) check_length<TestType, decltype(arch)>(length, 1, 1 + length / 16, random, ws);
  });
}

TEMPLATE_TEST_CASE("golden transforms and their gradients", "[simd][fft]", float, double) {
  using T = TestType;
  const Golden golden("fft");
  Workspace ws;
  for (const Index length : golden.values<Index>("lengths")) {
    const FftPlan<T> plan(length);
    const auto get = [&](const char* name) { return golden.matrix<T>(std::to_string(length) + "_" + name); };
    const Matrix<T> x = get("x"), dy = get("dy"), wr = get("w_re"), wi = get("w_im");
    const Index bins = plan.bins(), cols = x.cols();
    const FftPlanes<const T> w{wr.view(), wi.view()};
    const double tolerance = 4 * bound<T>(length);
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      CAPTURE(length);
      Spectrum<T> s(bins, cols);
      simd::rfft<T, A>(plan, x.view(), s, FftNorm::backward, ws);
      REQUIRE(distance<T>(s.re.view(), get("X_re").view()) <= tolerance);
      REQUIRE(distance<T>(s.im.view(), get("X_im").view()) <= tolerance);
      simd::rfft<T, A>(plan, x.view(), s, FftNorm::ortho, ws);
      REQUIRE(distance<T>(s.re.view(), get("ortho_re").view()) <= tolerance);
      REQUIRE(distance<T>(s.im.view(), get("ortho_im").view()) <= tolerance);
      Matrix<T> y(length, cols);
      simd::irfft<T, A>(plan, w, y, FftNorm::forward, ws);
      REQUIRE(distance<T>(y.view(), get("inverse").view()) <= tolerance);
      y.fill(T(0));
      simd::rfft_backward<T, A>(plan, w, y, FftNorm::ortho, ws);
      REQUIRE(distance<T>(y.view(), get("rfft_dx").view()) <= tolerance);
      Spectrum<T> d(bins, cols);
      simd::irfft_backward<T, A>(plan, dy.view(), d, FftNorm::backward, ws);
      REQUIRE(distance<T>(d.re.view(), get("irfft_re").view()) <= tolerance);
      REQUIRE(distance<T>(d.im.view(), get("irfft_im").view()) <= tolerance);
    });
  }
}

TEST_CASE("the values of the specification", "[simd][fft]") {
  Workspace ws;
  const FftPlan<double> four(4), five(5);
  const Matrix<double> x4{{1}, {-2}, {3}, {0.5}}, g4{{0.3}, {-1}, {0.7}, {1.5}}, x5{{1}, {-2}, {3}, {0.5}, {2}};
  const Matrix<double> gr{{1}, {2}, {0.5}}, gi{{1}, {-1}, {3}};
  Spectrum<double> s(3, 1);
  simd::rfft<double>(four, x4.view(), s, FftNorm::backward, ws);
  CHECK((s.re(0, 0) == 2.5 && s.re(1, 0) == -2 && s.re(2, 0) == 5.5 && s.im(0, 0) == 0 && s.im(1, 0) == 2.5 && s.im(2, 0) == 0));
  simd::rfft<double>(five, x5.view(), s, FftNorm::backward, ws);
  CHECK(s.re(1, 0) == Approx(-1.831559480312).epsilon(1e-11));
  CHECK(s.im(2, 0) == Approx(4.728782299908).epsilon(1e-11));
  Spectrum<double> d(3, 1);
  simd::irfft_backward<double>(four, g4.view(), d, FftNorm::backward, ws);
  CHECK((d.re(0, 0) == Approx(0.375) && d.re(1, 0) == Approx(-0.2) && d.re(2, 0) == Approx(0.125)));
  CHECK((d.im(0, 0) == 0 && d.im(1, 0) == Approx(1.25) && d.im(2, 0) == 0));
  Matrix<double> dx(5, 1, 0.0);
  simd::rfft_backward<double>(five, {gr.view(), gi.view()}, dx, FftNorm::backward, ws);
  const double expected[] = {3.5, 0.401226250980, 2.977429309616, -3.904480292740, 2.025824732145};
  for (Index n = 0; n < 5; ++n) CHECK(dx(n, 0) == Approx(expected[n]).epsilon(1e-11));
}

TEMPLATE_TEST_CASE("algebra: norms, Parseval, shift, ignored parts", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(114);
  Workspace ws;
  const double tolerance = sizeof(T) == 4 ? 3e-6 : 1e-14;
  for (const Index length : {1, 2, 5, 8, 50, 51, 101}) {
    CAPTURE(length);
    const FftPlan<T> plan(length);
    const Index bins = plan.bins(), cols = 20;
    const Matrix<T> x = random_matrix<T>(length, cols, random);
    for (const FftNorm norm : {FftNorm::backward, FftNorm::ortho, FftNorm::forward}) {
      Spectrum<T> s(bins, cols);
      simd::rfft<T>(plan, x.view(), s, norm, ws);
      double energy = 0;
      for (Index k = 0; k < bins; ++k)
        for (Index d = 0; d < cols; ++d)
          energy += plan.multiplicity(k) *
                    (std::pow(static_cast<double>(s.re(k, d)), 2) + std::pow(static_cast<double>(s.im(k, d)), 2));
      const double n = static_cast<double>(length);
      energy *= norm == FftNorm::backward ? 1 / n : norm == FftNorm::ortho ? 1 : n;
      REQUIRE(energy == Approx(inner<T>(x.view(), x.view())).epsilon(tolerance));
      for (Index d = 0; d < cols; ++d) {  // must have no effect
        s.im(0, d) = T(1000);
        if (length % 2 == 0) s.im(bins - 1, d) = T(1000);
      }
      Matrix<T> y(length, cols);
      simd::irfft<T>(plan, s.view(), y, norm, ws);
      REQUIRE(distance<T>(y.view(), x.view()) <= bound<T>(length));
    }
    const Index shift = length / 3;
    Matrix<T> rolled(length, cols);
    for (Index i = 0; i < length; ++i) std::copy_n(x.row(i), cols, rolled.row((i + shift) % length));
    Spectrum<T> a(bins, cols), b(bins, cols), turned(bins, cols);
    simd::rfft<T>(plan, x.view(), rolled.view(), a, b, FftNorm::backward, ws);
    for (Index k = 0; k < bins; ++k) {
      const double angle = -2 * static_cast<double>(pi) * static_cast<double>(k * shift % length) / static_cast<double>(length);
      for (Index d = 0; d < cols; ++d) {
        turned.re(k, d) =
            static_cast<T>(std::cos(angle) * static_cast<double>(a.re(k, d)) - std::sin(angle) * static_cast<double>(a.im(k, d)));
        turned.im(k, d) =
            static_cast<T>(std::sin(angle) * static_cast<double>(a.re(k, d)) + std::cos(angle) * static_cast<double>(a.im(k, d)));
      }
    }
    REQUIRE(distance<T>(b.re.view(), turned.re.view()) <= tolerance);
    if (length > 2) REQUIRE(distance<T>(b.im.view(), turned.im.view()) <= tolerance);
  }
}

TEMPLATE_TEST_CASE("backward functions are adjoints, of one and of two, and add", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(115);
  Workspace ws;
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : {1, 2, 3, 4, 7, 12, 50, 51, 67}) {
      for (const Index cols : {1, 19, 48}) {
        CAPTURE(length, cols);
        const FftPlan<T> plan(length);
        const Index bins = plan.bins();
        const Matrix<T> x0 = random_matrix<T>(length, cols, random), x1 = random_matrix<T>(length, cols, random);
        Spectrum<T> g0(bins, cols), g1(bins, cols);
        for (Matrix<T>* m : {&g0.re, &g0.im, &g1.re, &g1.im}) *m = random_matrix<T>(bins, cols, random);
        const auto dot = [](const Spectrum<T>& a, const Spectrum<T>& b) {
          return inner<T>(a.re.view(), b.re.view()) + inner<T>(a.im.view(), b.im.view());
        };
        const double scale = std::sqrt(inner<T>(x0.view(), x0.view()) * dot(g0, g0));
        for (const FftNorm norm : {FftNorm::backward, FftNorm::ortho, FftNorm::forward}) {
          // <rfft x, g> = <x, dx>
          Spectrum<T> s0(bins, cols), s1(bins, cols);
          simd::rfft<T, A>(plan, x0.view(), x1.view(), s0, s1, norm, ws);
          Matrix<T> one(length, cols, T(1)), two(length, cols, T(1)), single(length, cols, T(1)), ones(length, cols, T(1));
          simd::rfft_backward<T, A>(plan, g0.view(), g1.view(), one, two, norm, ws);
          simd::rfft_backward<T, A>(plan, g0.view(), single, norm, ws);
          const double size = scale * std::sqrt(static_cast<double>(length));
          REQUIRE(std::abs(dot(s0, g0) - (inner<T>(x0.view(), one.view()) - inner<T>(x0.view(), ones.view()))) <=
                  tolerance * size);
          REQUIRE(std::abs(dot(s1, g1) - (inner<T>(x1.view(), two.view()) - inner<T>(x1.view(), ones.view()))) <=
                  tolerance * size);
          REQUIRE(distance<T>(single.view(), one.view()) <= tolerance);
          // <irfft g, x> = <g, dg>
          Matrix<T> y0(length, cols), y1(length, cols);
          simd::irfft<T, A>(plan, g0.view(), g1.view(), y0, y1, norm, ws);
          Spectrum<T> d0(bins, cols, T(1)), d1(bins, cols, T(1)), alone(bins, cols, T(1)), unit(bins, cols, T(1));
          simd::irfft_backward<T, A>(plan, x0.view(), x1.view(), d0, d1, norm, ws);
          simd::irfft_backward<T, A>(plan, x0.view(), alone, norm, ws);
          REQUIRE(std::abs(inner<T>(y0.view(), x0.view()) - (dot(d0, g0) - dot(unit, g0))) <= tolerance * size);
          REQUIRE(std::abs(inner<T>(y1.view(), x1.view()) - (dot(d1, g1) - dot(unit, g1))) <= tolerance * size);
          REQUIRE(distance<T>(alone.re.view(), d0.re.view()) <= tolerance);
          REQUIRE(distance<T>(alone.im.view(), d0.im.view()) <= tolerance);
          for (Index d = 0; d < cols; ++d) {
            REQUIRE((d0.im(0, d) == 1 && d1.im(0, d) == 1));
            if (length % 2 == 0) REQUIRE((d0.im(bins - 1, d) == 1 && d1.im(bins - 1, d) == 1));
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("strided, unaligned rows; nothing outside them is touched", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(116);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : {6, 50, 67}) {
      for (const Index cols : {3, 16, 37, 64}) {
        CAPTURE(length, cols);
        const FftPlan<T> plan(length);
        const Index bins = plan.bins();
        const Matrix<T> x0 = random_matrix<T>(length, cols, random), x1 = random_matrix<T>(length, cols, random);
        Spectrum<T> s0(bins, cols), s1(bins, cols);
        simd::rfft<T, A>(plan, x0.view(), x1.view(), s0, s1, FftNorm::ortho, ws);
        // The second sequence has rows of another stride than the first.
        Padded<T> p0(x0.view()), r0(bins, cols), i0(bins, cols), r1(bins, cols), y0(length, cols);
        Matrix<T> i1(bins, cols), y1(length, cols);
        simd::rfft<T, A>(plan, p0.view(), x1.view(), FftPlanes<T>{r0.view(), i0.view()}, FftPlanes<T>{r1.view(), i1},
                         FftNorm::ortho, ws);
        REQUIRE(distance<T>(r0.view(), s0.re.view()) <= bound<T>(length));
        REQUIRE(distance<T>(i0.view(), s0.im.view()) <= bound<T>(length));
        REQUIRE(distance<T>(r1.view(), s1.re.view()) <= bound<T>(length));
        REQUIRE(distance<T>(i1.view(), s1.im.view()) <= bound<T>(length));
        simd::irfft<T, A>(plan, FftPlanes<const T>{r0.view(), i0.view()}, FftPlanes<const T>{r1.view(), i1.view()}, y0.view(), y1,
                          FftNorm::ortho, ws);
        REQUIRE(distance<T>(y0.view(), x0.view()) <= 2 * bound<T>(length));
        REQUIRE(distance<T>(y1.view(), x1.view()) <= 2 * bound<T>(length));
        simd::irfft<T, A>(plan, FftPlanes<const T>{r0.view(), i0.view()}, y0.view(), FftNorm::ortho, ws);
        REQUIRE((r0.intact() && i0.intact() && r1.intact() && y0.intact() && p0.intact()));
      }
    }
  });
}

TEMPLATE_TEST_CASE("a NaN or infinity stays in its sequence and channel", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(117);
  Workspace ws;
  const auto finite = [](MatrixView<const T> m, Index except) {
    for (Index i = 0; i < m.rows(); ++i)
      for (Index j = 0; j < m.cols(); ++j)
        if (j != except && !std::isfinite(m(i, j))) return false;
    return true;
  };
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const T poison : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
      for (const Index length : {1, 5, 50, 67}) {
        for (const Index cols : {2, 40}) {
          const FftPlan<T> plan(length);
          const Index bins = plan.bins();
          for (const Index at : {Index{0}, cols - 1}) {
            CAPTURE(length, cols, at);
            Matrix<T> x0 = random_matrix<T>(length, cols, random), x1 = random_matrix<T>(length, cols, random);
            Spectrum<T> good(bins, cols), s0(bins, cols), s1(bins, cols);
            simd::rfft<T, A>(plan, x0.view(), x1.view(), s1, good, FftNorm::backward, ws);
            x0(length / 2, at) = poison;
            simd::rfft<T, A>(plan, x0.view(), x1.view(), s0, s1, FftNorm::backward, ws);
            REQUIRE(distance<T>(s1.re.view(), good.re.view()) <= bound<T>(length));
            REQUIRE(finite(s0.re.view(), at));
            REQUIRE(finite(s0.im.view(), at));
            REQUIRE_FALSE(std::isfinite(s0.re(0, at)));
            simd::rfft<T, A>(plan, x0.view(), s0, FftNorm::backward, ws);
            REQUIRE(finite(s0.re.view(), at));
            // Into the inverse, second of a pair.
            Matrix<T> y0(length, cols), y1(length, cols);
            simd::irfft<T, A>(plan, s1.view(), s0.view(), y0, y1, FftNorm::backward, ws);
            REQUIRE(distance<T>(y0.view(), x1.view()) <= 2 * bound<T>(length));
            REQUIRE(finite(y1.view(), at));
            REQUIRE_FALSE(std::isfinite(y1(0, at)));
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("nothing is done for no rows or no channels, and nothing allocated when warm", "[simd][fft]", float, double) {
  using T = TestType;
  Workspace ws;
  const FftPlan<T> none, plan(50), chirped(67);
  Matrix<T> empty(0, 8), thin(50, 0), thin_spectrum(26, 0);
  simd::rfft<T>(none, empty.view(), FftPlanes<T>{empty, empty}, FftNorm::ortho, ws);
  simd::irfft<T>(none, FftPlanes<const T>{empty.view(), empty.view()}, empty, FftNorm::forward, ws);
  simd::rfft<T>(plan, thin.view(), FftPlanes<T>{thin_spectrum, thin_spectrum}, FftNorm::ortho, ws);
  Random random = random_stream(118);
  const Matrix<T> x = random_matrix<T>(67, 70, random);
  Matrix<T> y(67, 70);
  Spectrum<T> s(34, 70);
  const auto call = [&] {
    simd::rfft<T>(chirped, x.view(), s, FftNorm::ortho, ws);
    simd::irfft<T>(chirped, s.view(), y, FftNorm::ortho, ws);
    simd::rfft<T>(plan, x.view().middle_rows(0, 50), FftPlanes<T>{s.re.view().middle_rows(0, 26), s.im.view().middle_rows(0, 26)},
                  FftNorm::ortho, ws);
  };
  call();
  AllocationCounter counter;
  for (int i = 0; i < 3; ++i) call();
  const FftPlan<T> copy = plan;
  CHECK(copy.length() == 50);
  CHECK(counter.count() == 0);
}
