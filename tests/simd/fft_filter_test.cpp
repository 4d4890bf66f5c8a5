// Oracles: circular convolution by its definition in double, PyTorch (golden), the values of the specification, and algebra.
#include <recops/simd/fft_filter.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;
using simd::FftFilter;
using simd::FftFilterGradient;
using simd::FftGains;
using simd::FftPlan;
using simd::FftPlanes;

namespace {

constexpr double pi = 3.141592653589793238462643383279502884;

template <class T>
double bound(Index length) {
  return (sizeof(T) == 4 ? 5e-7 : 1e-15) * (1 + std::log2(static_cast<double>(length)) / 10);
}

template <class T>
struct Gains {
  Matrix<T> re, im;
  Gains(Index bins, Index cols, T value = T(0)) : re(bins, cols, value), im(bins, cols, value) {}
  Gains(Index bins, Index cols, Random& random)
      : re(random_matrix<T>(bins, cols, random)), im(random_matrix<T>(bins, cols, random)) {}
  FftPlanes<const T> view() const { return {re.view(), im.view()}; }
  FftPlanes<T> planes() { return {re, im}; }
};

template <class T>
double norm(MatrixView<const T> a) {
  double sum = 0;
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) sum += static_cast<double>(a(i, j)) * static_cast<double>(a(i, j));
  return std::sqrt(sum);
}
template <class T>
double distance(MatrixView<const T> a, MatrixView<const T> b) {
  Matrix<T> d(a.rows(), a.cols());
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j) d(i, j) = a(i, j) - b(i, j);
  return norm<T>(d.view()) / std::max(norm<T>(b), 1e-30);
}

/// Kernel of column d: w_n = (1 / L) [Re W_0 + sum 2 Re(W_k e^(2 pi i k n / L)) + Nyquist].
template <class T>
std::vector<double> kernel_of(const Gains<T>& w, Index length, Index d) {
  std::vector<double> kernel;
  for (Index n = 0; n < length; ++n) {
    double sum = static_cast<double>(w.re(0, d));
    for (Index k = 1; k < w.re.rows(); ++k) {
      const double angle = 2 * pi * static_cast<double>(k * n % length) / static_cast<double>(length);
      if (2 * k == length)
        sum += static_cast<double>(w.re(k, d)) * (n % 2 == 0 ? 1 : -1);
      else
        sum += 2 * (static_cast<double>(w.re(k, d)) * std::cos(angle) - static_cast<double>(w.im(k, d)) * std::sin(angle));
    }
    kernel.push_back(sum / static_cast<double>(length));
  }
  return kernel;
}

/// y_n = sum_j w_((n - j) mod L) x_j, or its transpose.
template <class T>
Matrix<T> convolved(const Gains<T>& w, MatrixView<const T> x, bool transposed = false) {
  Matrix<T> y(x.rows(), x.cols());
  for (Index d = 0; d < x.cols(); ++d) {
    const std::vector<double> kernel = kernel_of(w, x.rows(), d);
    for (Index n = 0; n < x.rows(); ++n) {
      double sum = 0;
      for (Index j = 0; j < x.rows(); ++j) {
        const Index lag = (transposed ? j - n : n - j) + x.rows();
        sum += kernel[static_cast<std::size_t>(lag % x.rows())] * static_cast<double>(x(j, d));
      }
      y(n, d) = static_cast<T>(sum);
    }
  }
  return y;
}

const std::vector<Index> lengths{1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14,  16, 20,
                                 21, 25, 30, 33, 36, 40, 49, 50, 51, 64, 67, 74, 97, 100, 128};

}  // namespace

TEMPLATE_TEST_CASE("a filter is a circular convolution, of one sequence and of two", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(121);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    FftFilter<T, A> filter, transposed;
    const auto check = [&](Index length, Index cols) {
      CAPTURE(length, cols);
      const FftPlan<T> plan(length);
      Gains<T> w(plan.bins(), cols, random);
      const Matrix<T> x0 = random_matrix<T>(length, cols, random), x1 = random_matrix<T>(length, cols, random);
      const double tolerance = 4 * bound<T>(length);
      for (Index d = 0; d < cols; ++d) {  // must have no effect
        w.im(0, d) = T(1000);
        if (length % 2 == 0) w.im(plan.bins() - 1, d) = T(1000);
      }
      filter.prepare(plan, w.view(), ws);
      transposed.prepare(plan, w.view(), ws, true);
      REQUIRE((filter.length() == length && filter.cols() == cols));
      const Matrix<T> e0 = convolved<T>(w, x0.view()), e1 = convolved<T>(w, x1.view());
      Matrix<T> y0(length, cols, T(9)), y1(length, cols, T(9));
      simd::fft_filter<T, A>(plan, filter, x0.view(), x1.view(), y0, y1, false, ws);
      REQUIRE(distance<T>(y0.view(), e0.view()) <= tolerance);
      REQUIRE(distance<T>(y1.view(), e1.view()) <= tolerance);
      simd::fft_filter<T, A>(plan, filter, x0.view(), y1, false, ws);
      REQUIRE(distance<T>(y1.view(), e0.view()) <= tolerance);
      // Adding, and in place.
      simd::fft_filter<T, A>(plan, filter, x0.view(), y1, true, ws);
      Matrix<T> twice = e0;
      for (Index i = 0; i < length * cols; ++i) twice.data()[i] += e0.data()[i];
      REQUIRE(distance<T>(y1.view(), twice.view()) <= tolerance);
      Matrix<T> z0 = x0, z1 = x1;
      simd::fft_filter<T, A>(plan, filter, z0.view(), z1.view(), z0, z1, false, ws);
      REQUIRE(distance<T>(z0.view(), e0.view()) <= tolerance);
      REQUIRE(distance<T>(z1.view(), e1.view()) <= tolerance);
      z0 = x0;
      simd::fft_filter<T, A>(plan, filter, z0.view(), z0, false, ws);
      REQUIRE(distance<T>(z0.view(), e0.view()) <= tolerance);
      // The gradient of x is the transposed filter.
      simd::fft_filter<T, A>(plan, transposed, x0.view(), y1, false, ws);
      REQUIRE(distance<T>(y1.view(), convolved<T>(w, x0.view(), true).view()) <= tolerance);
    };
    for (const Index length : lengths)
      for (const Index cols : {1, 35}) check(length, cols);
    for (const Index cols : {2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 80})
      for (const Index length : {10, 49, 67}) check(length, cols);
  });
}

TEMPLATE_TEST_CASE("sequences one below the other are pairs, small or from memory", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(127);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    FftFilter<T, A> filter;
    FftGains<T, A> gains;
    // The oracle: the calls of two sequences and of one, which are tested above; the very same bits.
    const auto check = [&](Index length, Index cols, Index count, Index stride) {
      CAPTURE(length, cols, count, stride);
      const FftPlan<T> plan(length);
      const Gains<T> w(plan.bins(), cols, random);
      filter.prepare(plan, w.view(), ws);
      const Vector<T> band(plan.bins(), T(0.75));
      gains.prepare(plan, VectorView<const T>(band), ws);
      const Matrix<T> x = random_matrix<T>(count * length, cols, random);
      Matrix<T> expected(count * length, cols), storage(count * length, stride, T(3)), same = x;
      const auto at = [length](auto m, Index b) { return m.middle_rows(b * length, length); };
      const MatrixView<T> y = storage.view().middle_cols(0, cols);
      for (const bool complex : {true, false}) {
        const auto run = [&](auto&&... views) {
          if (complex)
            simd::fft_filter<T, A>(plan, filter, views..., ws);
          else
            simd::fft_filter<T, A>(plan, gains, views..., ws);
        };
        for (Index b = 0; b < count; b += 2) {
          if (b + 1 < count)
            run(at(x.view(), b), at(x.view(), b + 1), at(expected.view(), b), at(expected.view(), b + 1), false);
          else
            run(at(x.view(), b), at(expected.view(), b), false);
        }
        const auto differing = [&](MatrixView<const T> got) {
          Index n = 0;
          for (Index i = 0; i < got.rows(); ++i)
            for (Index d = 0; d < cols; ++d) n += got(i, d) != expected(i, d);
          return n;
        };
        run(x.view(), y, false);
        REQUIRE(differing(y) == 0);
        same = x;
        run(same.view(), same.view(), false);
        REQUIRE(differing(same.view()) == 0);
        storage.fill(T(0));
        run(x.view(), y, true);
        REQUIRE(differing(y) == 0);
        for (Index i = 0; i < y.rows(); ++i)
          for (Index d = cols; d < stride; ++d) REQUIRE(storage(i, d) == T(0));
      }
    };
    for (const Index count : {0, 1, 2, 3, 6}) {
      check(50, 19, count, 19);
      check(7, 64, count, 80);
      check(67, 3, count, 3);
    }
    // More than 4 MB: rows of whole cache lines, others, and lengths of one, two, three and more levels. The last more than 16 MB.
    const bool widest = std::is_same_v<A, simd::DefaultArch>;
    if (!sanitized || widest) check(200, 64, sizeof(T) == 4 ? 43 : 21, 64);
    if (!sanitized) check(200, 64, sizeof(T) == 4 ? 42 : 22, 67);
    if (!sanitized && widest) {
      check(8, 64, 1100, 64);
      check(50, 37, 300, 37);
      check(67, 64, 128, 64);
      check(1024, 48, sizeof(T) == 4 ? 43 : 22, 48);
    }
  });
}

TEMPLATE_TEST_CASE("gains that all channels share", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(122);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : lengths) {
      for (const Index cols : {1, 35}) {
        CAPTURE(length, cols);
        const FftPlan<T> plan(length);
        const Vector<T> g = random_vector<T>(plan.bins(), random);
        Gains<T> w(plan.bins(), cols);
        for (Index k = 0; k < plan.bins(); ++k) std::fill_n(w.re.row(k), cols, g[k]);
        FftGains<T, A> gains;
        gains.prepare(plan, VectorView<const T>(g), ws);
        const Matrix<T> x0 = random_matrix<T>(length, cols, random), x1 = random_matrix<T>(length, cols, random);
        const Matrix<T> e0 = convolved<T>(w, x0.view()), e1 = convolved<T>(w, x1.view());
        Matrix<T> y0(length, cols), y1(length, cols);
        const double tolerance = 8 * bound<T>(length) * (1 + norm<T>(x0.view()) / norm<T>(e0.view()));
        simd::fft_filter<T, A>(plan, gains, x0.view(), x1.view(), y0, y1, false, ws);
        REQUIRE(distance<T>(y0.view(), e0.view()) <= tolerance);
        REQUIRE(distance<T>(y1.view(), e1.view()) <= tolerance);
        simd::fft_filter<T, A>(plan, gains, x1.view(), y0, false, ws);
        REQUIRE(distance<T>(y0.view(), e1.view()) <= tolerance);
      }
    }
  });
}

TEMPLATE_TEST_CASE("golden filters and their gradients", "[simd][fft]", float, double) {
  using T = TestType;
  const Golden golden("fft");
  Workspace ws;
  for (const Index length : golden.values<Index>("lengths")) {
    const FftPlan<T> plan(length);
    const auto get = [&](const char* name) { return golden.matrix<T>(std::to_string(length) + "_" + name); };
    const Matrix<T> x = get("x"), dy = get("dy");
    const Index cols = x.cols(), bins = plan.bins();
    Gains<T> w(bins, cols);
    w.re = get("w_re");
    w.im = get("w_im");
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      CAPTURE(length);
      const double tolerance = 6 * bound<T>(length);
      FftFilter<T, A> filter;
      filter.prepare(plan, w.view(), ws);
      Matrix<T> y(length, cols);
      simd::fft_filter<T, A>(plan, filter, x.view(), y, false, ws);
      REQUIRE(distance<T>(y.view(), get("y").view()) <= tolerance);
      FftFilterGradient<T, A> sums;
      sums.reset(plan, cols);
      Matrix<T> dx(length, cols, T(0));
      simd::fft_filter_backward<T, A>(plan, filter, x.view(), dy.view(), dx, sums, ws);
      REQUIRE(distance<T>(dx.view(), get("dx").view()) <= tolerance);
      Gains<T> dw(bins, cols);
      sums.add_to(plan, dw.planes(), ws);
      REQUIRE(distance<T>(dw.re.view(), get("dw_re").view()) <= tolerance);
      if (length > 2) REQUIRE(distance<T>(dw.im.view(), get("dw_im").view()) <= tolerance);
    });
  }
}

TEST_CASE("the filter of the specification", "[simd][fft]") {
  Workspace ws;
  const Gains<double> w = [] {
    Gains<double> g(3, 1);
    g.re = Matrix<double>{{0.5}, {1}, {1.5}};
    g.im = Matrix<double>{{0.1}, {0.35}, {0.6}};
    return g;
  }();
  const auto check = [&](Index length, const Matrix<double>& x, const Matrix<double>& dy, const Matrix<double>& y,
                         const Matrix<double>& dx, const Matrix<double>& re, const Matrix<double>& im) {
    const FftPlan<double> plan(length);
    FftFilter<double> filter;
    filter.prepare(plan, w.view(), ws);
    Matrix<double> got(length, 1), dgot(length, 1, 0.0);
    simd::fft_filter<double>(plan, filter, x.view(), got, false, ws);
    CHECK(max_difference(got.view(), y.view()) < 1e-11);
    FftFilterGradient<double> sums;
    sums.reset(plan, 1);
    simd::fft_filter_backward<double>(plan, filter, x.view(), dy.view(), dgot, sums, ws);
    CHECK(max_difference(dgot.view(), dx.view()) < 1e-11);
    Gains<double> dw(3, 1);
    sums.add_to(plan, dw.planes(), ws);
    CHECK(max_difference(dw.re.view(), re.view()) < 1e-11);
    CHECK(max_difference(dw.im.view(), im.view()) < 1e-11);
    CHECK(dw.im(0, 0) == 0);
    if (length == 4) CHECK(dw.im(2, 0) == 0);
  };
  check(4, {{1}, {-2}, {3}, {0.5}}, {{0.3}, {-1}, {0.7}, {1.5}}, {{0.9375}, {-2.65}, {3.8125}, {-0.85}},
        {{0.6125}, {-1.32}, {0.1375}, {1.32}}, {{0.9375}, {3.525}, {0.6875}}, {{0}, {-2}, {0}});
  check(5, {{1}, {-2}, {3}, {0.5}, {2}}, {{0.3}, {-1}, {0.7}, {2}, {-0.5}},
        {{-0.495462666738}, {-2.575326909765}, {4.117692598426}, {-1.432927651851}, {2.636024629928}},
        {{0.566929744524}, {-1.163875778220}, {-0.423584100016}, {2.693189305577}, {-0.922659171864}},
        {{1.35}, {2.877821126387}, {0.172178873613}}, {{0}, {1.284492811383}, {-5.225761018025}});
}

TEMPLATE_TEST_CASE("identity, and rolls by gains e^(-2 pi i k s / L)", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(123);
  Workspace ws;
  for (const Index length : {1, 2, 7, 24, 50, 67}) {
    const FftPlan<T> plan(length);
    const Index cols = 18;
    const Matrix<T> x = random_matrix<T>(length, cols, random);
    Matrix<T> y(length, cols);
    for (const Index shift : {Index{0}, Index{1} % length, length / 2, length - 1}) {
      Gains<T> w(plan.bins(), cols);
      for (Index k = 0; k < plan.bins(); ++k) {
        const double angle = -2 * pi * static_cast<double>(k * shift % length) / static_cast<double>(length);
        std::fill_n(w.re.row(k), cols, static_cast<T>(std::cos(angle)));
        std::fill_n(w.im.row(k), cols, static_cast<T>(std::sin(angle)));
      }
      FftFilter<T> filter;
      filter.prepare(plan, w.view(), ws);
      simd::fft_filter<T>(plan, filter, x.view(), y, false, ws);
      Matrix<T> rolled(length, cols);
      for (Index n = 0; n < length; ++n) std::copy_n(x.row(n), cols, rolled.row((n + shift) % length));
      CAPTURE(length, shift);
      REQUIRE(distance<T>(y.view(), rolled.view()) <= 2 * bound<T>(length));
    }
  }
}

TEMPLATE_TEST_CASE("gradients of pairs, of odd batches, gathered and merged", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(124);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : {1, 2, 5, 8, 49, 50, 67}) {
      for (const Index cols : {3, 33}) {
        CAPTURE(length, cols);
        const FftPlan<T> plan(length);
        const Index bins = plan.bins();
        const Gains<T> w(bins, cols, random);
        FftFilter<T, A> filter;
        filter.prepare(plan, w.view(), ws);
        std::vector<Matrix<T>> x, dy, dx;
        for (int b = 0; b < 3; ++b) {
          x.push_back(random_matrix<T>(length, cols, random));
          dy.push_back(random_matrix<T>(length, cols, random));
          dx.push_back(Matrix<T>(length, cols, T(0)));
        }
        FftFilterGradient<T, A> sums, other;
        sums.reset(plan, cols);
        other.reset(plan, cols);
        simd::fft_filter_backward<T, A>(plan, filter, x[0].view(), x[1].view(), dy[0].view(), dy[1].view(), dx[0], dx[1], sums,
                                        ws);
        simd::fft_filter_backward<T, A>(plan, filter, x[2].view(), dy[2].view(), dx[2], other, ws);
        sums.merge(other);
        Gains<T> dw(bins, cols, T(2));
        sums.add_to(plan, dw.planes(), ws);
        for (int b = 0; b < 3; ++b) {
          const auto i = static_cast<std::size_t>(b);
          REQUIRE(distance<T>(dx[i].view(), convolved<T>(w, dy[i].view(), true).view()) <= 6 * bound<T>(length));
        }
        // dW_k = m_k / L sum conj(X_k) F_k, by the transforms of this library (tested by themselves).
        Gains<T> expected(bins, cols, T(2));
        for (std::size_t b = 0; b < 3; ++b) {
          Gains<T> sx(bins, cols), sf(bins, cols);
          simd::rfft<T>(plan, x[b].view(), sx.planes(), FftNorm::backward, ws);
          simd::rfft<T>(plan, dy[b].view(), sf.planes(), FftNorm::backward, ws);
          for (Index k = 0; k < bins; ++k) {
            const T scale = static_cast<T>(plan.multiplicity(k)) / static_cast<T>(length);
            for (Index d = 0; d < cols; ++d) {
              expected.re(k, d) += scale * (sx.re(k, d) * sf.re(k, d) + sx.im(k, d) * sf.im(k, d));
              expected.im(k, d) += scale * (sx.re(k, d) * sf.im(k, d) - sx.im(k, d) * sf.re(k, d));
            }
          }
        }
        REQUIRE(distance<T>(dw.re.view(), expected.re.view()) <= 8 * bound<T>(length));
        REQUIRE(distance<T>(dw.im.view(), expected.im.view()) <= 8 * bound<T>(length));
        for (Index d = 0; d < cols; ++d) {
          REQUIRE(dw.im(0, d) == 2);
          if (length % 2 == 0) REQUIRE(dw.im(bins - 1, d) == 2);
        }
        // Only dW is wanted; sums start over.
        sums.clear();
        simd::fft_filter_backward<T, A>(plan, filter, x[0].view(), x[1].view(), dy[0].view(), dy[1].view(), MatrixView<T>(),
                                        MatrixView<T>(), sums, ws);
        simd::fft_filter_backward<T, A>(plan, filter, x[2].view(), dy[2].view(), MatrixView<T>(), sums, ws);
        Gains<T> again(bins, cols, T(2));
        sums.add_to(plan, again.planes(), ws);
        REQUIRE(distance<T>(again.re.view(), expected.re.view()) <= 8 * bound<T>(length));
      }
    }
  });
}

TEMPLATE_TEST_CASE("gradients of a batch are those of its pairs, from memory too", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(127);
  Workspace ws;
  for (const Index count : {1, 2, 5, 177}) {  // the last is more than 4 MB
    const Index length = 50, cols = 40;
    const FftPlan<T> plan(length);
    const Gains<T> w(plan.bins(), cols, random);
    FftFilter<T> filter;
    filter.prepare(plan, w.view(), ws);
    const Matrix<T> x = random_matrix<T>(count * length, cols, random), dy = random_matrix<T>(count * length, cols, random);
    Matrix<T> dx(count * length, cols, T(1)), expected = dx;
    FftFilterGradient<T> sums, pairs, learned;
    for (auto* s : {&sums, &pairs, &learned}) s->reset(plan, cols);
    simd::fft_filter_backward<T>(plan, filter, x.view(), dy.view(), dx, sums, ws);
    simd::fft_filter_backward<T>(plan, filter, x.view(), dy.view(), MatrixView<T>(), learned, ws);
    const auto at = [&](auto m, Index b) { return m.middle_rows(b * length, length); };
    for (Index b = 0; b < count; b += 2) {
      if (b + 1 == count) {
        simd::fft_filter_backward<T>(plan, filter, at(x.view(), b), at(dy.view(), b), at(expected.view(), b), pairs, ws);
      } else {
        simd::fft_filter_backward<T>(plan, filter, at(x.view(), b), at(x.view(), b + 1), at(dy.view(), b), at(dy.view(), b + 1),
                                     at(expected.view(), b), at(expected.view(), b + 1), pairs, ws);
      }
    }
    CAPTURE(count);
    REQUIRE(max_difference(dx.view(), expected.view()) == 0);
    Gains<T> a(plan.bins(), cols), b(plan.bins(), cols), c(plan.bins(), cols);
    sums.add_to(plan, a.planes(), ws);
    pairs.add_to(plan, b.planes(), ws);
    learned.add_to(plan, c.planes(), ws);
    REQUIRE(max_difference(a.re.view(), b.re.view()) == 0);
    REQUIRE(max_difference(a.im.view(), b.im.view()) == 0);
    REQUIRE(distance<T>(c.re.view(), b.re.view()) <= 8 * bound<T>(length));
    REQUIRE(distance<T>(c.im.view(), b.im.view()) <= 8 * bound<T>(length));
  }
}

TEMPLATE_TEST_CASE("a NaN or infinity stays in its sequence", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(125);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const T poison : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::infinity()}) {
      for (const Index length : {1, 8, 50, 64, 67}) {
        for (const Index cols : {3, 48}) {
          CAPTURE(length, cols);
          const FftPlan<T> plan(length);
          const Gains<T> w(plan.bins(), cols, random);
          FftFilter<T, A> filter;
          filter.prepare(plan, w.view(), ws);
          Matrix<T> bad = random_matrix<T>(length, cols, random);
          const Matrix<T> good = random_matrix<T>(length, cols, random), expected = convolved<T>(w, good.view());
          bad(length - 1, 1) = poison;
          for (const bool first : {true, false}) {
            Matrix<T> z0 = first ? bad : good, z1 = first ? good : bad;  // in place
            simd::fft_filter<T, A>(plan, filter, z0.view(), z1.view(), z0, z1, false, ws);
            const Matrix<T>&clean = first ? z1 : z0, &spoilt = first ? z0 : z1;
            REQUIRE(distance<T>(clean.view(), expected.view()) <= 4 * bound<T>(length));
            for (Index n = 0; n < length; ++n)
              for (Index d = 0; d < cols; ++d) REQUIRE(std::isfinite(spoilt(n, d)) == (d != 1));
            Matrix<T> dx0(length, cols, T(0)), dx1(length, cols, T(0));
            FftFilterGradient<T, A> sums;
            sums.reset(plan, cols);
            simd::fft_filter_backward<T, A>(plan, filter, good.view(), good.view(), first ? bad.view() : good.view(),
                                            first ? good.view() : bad.view(), dx0, dx1, sums, ws);
            REQUIRE(distance<T>(first ? dx1.view() : dx0.view(), convolved<T>(w, good.view(), true).view()) <=
                    6 * bound<T>(length));
            REQUIRE_FALSE(std::isfinite(first ? dx0(0, 1) : dx1(0, 1)));
          }
          Matrix<T> alone = bad;
          simd::fft_filter<T, A>(plan, filter, alone.view(), alone, false, ws);
          for (Index n = 0; n < length; ++n)
            for (Index d = 0; d < cols; ++d) REQUIRE(std::isfinite(alone(n, d)) == (d != 1));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("a bin that overflows stays in its sequence", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(127);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : {8, 50, 64, 67, 200}) {
      const FftPlan<T> plan(length);
      const Index cols = 24;
      const Gains<T> w(plan.bins(), cols, random);
      FftFilter<T, A> filter;
      filter.prepare(plan, w.view(), ws);
      Matrix<T> huge(length, cols, T(0)), y0(length, cols), y1(length, cols);
      const Matrix<T> good = random_matrix<T>(length, cols, random), expected = convolved<T>(w, good.view());
      for (const Index bin : {Index{1}, plan.bins() - 2}) {  // rows sum to 0: DC shows nothing
        CAPTURE(length, bin);
        for (Index n = 0; n < length; ++n)
          huge(n, 2) = std::numeric_limits<T>::max() / 2 *
                       static_cast<T>(std::cos(2 * pi * static_cast<double>(bin * n % length) / static_cast<double>(length)));
        simd::fft_filter<T, A>(plan, filter, huge.view(), good.view(), y0, y1, false, ws);
        REQUIRE(distance<T>(y1.view(), expected.view()) <= 4 * bound<T>(length));
        simd::fft_filter<T, A>(plan, filter, good.view(), huge.view(), y0, y1, false, ws);
        REQUIRE(distance<T>(y0.view(), expected.view()) <= 4 * bound<T>(length));
      }
    }
  });
}

TEMPLATE_TEST_CASE("two sequences may lie in different ways", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(128);
  Workspace ws;
  const Index cols = 35;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index length : {16, 50, 64}) {  // of 16 and 64 the second would be turned by a row if all lay alike
      const FftPlan<T> plan(length);
      const Gains<T> w(plan.bins(), cols, random);
      FftFilter<T, A> filter;
      filter.prepare(plan, w.view(), ws);
      const Matrix<T> a = random_matrix<T>(length, cols, random), b = random_matrix<T>(length, cols, random);
      const Matrix<T> ya = convolved<T>(w, a.view()), yb = convolved<T>(w, b.view());
      const Matrix<T> da = convolved<T>(w, a.view(), true), db = convolved<T>(w, b.view(), true);
      Gains<T> expected(plan.bins(), cols);
      FftFilterGradient<T, A> sums;
      for (int which = 0; which < 16; ++which) {  // bit i: the i-th of x0, x1, y0, y1 has rows that are further apart
        CAPTURE(length, which);
        std::vector<Matrix<T>> storage;
        for (int i = 0; i < 4; ++i) storage.emplace_back(length, cols + (which >> i & 1) * 5, T(0));
        const auto view = [&](int i) { return storage[static_cast<std::size_t>(i)].view().middle_cols(0, cols); };
        for (Index n = 0; n < length; ++n) {
          std::copy_n(a.row(n), cols, view(0).row(n));
          std::copy_n(b.row(n), cols, view(1).row(n));
        }
        simd::fft_filter<T, A>(plan, filter, view(0), view(1), view(2), view(3), false, ws);
        REQUIRE(distance<T>(view(2), ya.view()) <= 4 * bound<T>(length));
        REQUIRE(distance<T>(view(3), yb.view()) <= 4 * bound<T>(length));
        storage[2].fill(T(0));
        storage[3].fill(T(0));
        sums.reset(plan, cols);
        simd::fft_filter_backward<T, A>(plan, filter, a.view(), b.view(), view(0), view(1), view(2), view(3), sums, ws);
        REQUIRE(distance<T>(view(2), da.view()) <= 4 * bound<T>(length));
        REQUIRE(distance<T>(view(3), db.view()) <= 4 * bound<T>(length));
        Gains<T> dw(plan.bins(), cols);
        sums.add_to(plan, dw.planes(), ws);
        sums.reset(plan, cols);  // of x that lies as bits 0 and 1 say, and no dx
        simd::fft_filter_backward<T, A>(plan, filter, view(0), view(1), a.view(), b.view(), {}, {}, sums, ws);
        Gains<T> learned(plan.bins(), cols);
        sums.add_to(plan, learned.planes(), ws);
        if (which == 0) expected = dw;
        for (const Gains<T>* g : {&dw, &learned}) {
          REQUIRE(distance<T>(g->re.view(), expected.re.view()) <= 8 * bound<T>(length));
          // conj(X) X: imaginary parts are rounding alone
          for (Index k = 0; k < plan.bins(); ++k)
            for (Index d = 0; d < cols; ++d) REQUIRE(std::abs(g->im(k, d)) <= 8 * bound<T>(length) * norm<T>(expected.re.view()));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("strided rows, empty sizes, no allocation when warm", "[simd][fft]", float, double) {
  using T = TestType;
  Random random = random_stream(126);
  Workspace ws;
  const FftPlan<T> none, plan(50), chirped(67);
  FftFilter<T> filter, filter2;
  FftGains<T> gains;
  Matrix<T> empty(0, 8), thin(50, 0);
  filter.prepare(none, {empty.view(), empty.view()}, ws);
  simd::fft_filter<T>(none, filter, empty.view(), empty, false, ws);
  const Matrix<T> no_gains(26, 0);
  filter.prepare(plan, {no_gains.view(), no_gains.view()}, ws);
  simd::fft_filter<T>(plan, filter, thin.view(), thin, false, ws);

  const Index cols = 21;
  const Gains<T> w(26, cols, random), w2(34, cols, random);
  const Vector<T> band(26, T(1));
  Matrix<T> x = random_matrix<T>(67, cols, random), y(67, cols);
  FftFilterGradient<T> sums;
  Gains<T> dw(34, cols);
  const auto call = [&] {
    filter.prepare(plan, w.view(), ws);
    filter2.prepare(chirped, w2.view(), ws);
    gains.prepare(plan, VectorView<const T>(band), ws);
    const MatrixView<T> x50 = x.view().middle_rows(0, 50), y50 = y.view().middle_rows(0, 50);
    simd::fft_filter<T>(plan, filter, x50, y50, false, ws);
    simd::fft_filter<T>(plan, gains, x50, y50, true, ws);
    simd::fft_filter<T>(chirped, filter2, x.view(), y, false, ws);
    sums.reset(chirped, cols);
    simd::fft_filter_backward<T>(chirped, filter2, x.view(), y.view(), MatrixView<T>(), sums, ws);
    sums.add_to(chirped, dw.planes(), ws);
  };
  call();
  call();
  AllocationCounter counter;
  for (int i = 0; i < 3; ++i) call();
  CHECK(counter.count() == 0);

  filter.prepare(plan, w.view(), ws);
  Padded<T> px(x.view().middle_rows(0, 50)), py(50, cols), pz(50, cols);
  Matrix<T> expected(50, cols);
  simd::fft_filter<T>(plan, filter, x.view().middle_rows(0, 50), expected, false, ws);
  simd::fft_filter<T>(plan, filter, px.view(), px.view(), py.view(), pz.view(), false, ws);
  CHECK((py.intact() && pz.intact()));
  CHECK(distance<T>(py.view(), expected.view()) <= 2 * bound<T>(50));
  CHECK(distance<T>(pz.view(), expected.view()) <= 2 * bound<T>(50));
}
