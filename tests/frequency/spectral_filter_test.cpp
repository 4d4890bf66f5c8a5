// Oracles: the transform and the circular convolution written out in double, the spec's worked numbers, central differences.
#include <recops/frequency/slide_filter.hpp>
#include <recops/frequency/spectral_filter_last.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr double pi = 3.14159265358979323846;

/// y = irfft(W . rfft(x), L), bin by bin, of one sequence. Im of DC and Nyquist has no effect.
Matrix<double> naive(MatrixView<const double> x, MatrixView<const double> re, MatrixView<const double> im) {
  const Index length = x.rows();
  Matrix<double> y(length, x.cols(), 0.0);
  for (Index d = 0; d < x.cols(); ++d) {
    for (Index k = 0; k <= length / 2 && length > 0; ++k) {
      double a = 0, b = 0;
      for (Index n = 0; n < length; ++n) {
        const double angle = 2 * pi * static_cast<double>(k * n % length) / static_cast<double>(length);
        a += x(n, d) * std::cos(angle);
        b -= x(n, d) * std::sin(angle);
      }
      const bool single = k == 0 || 2 * k == length;
      const double u = single ? re(k, d) * a : re(k, d) * a - im(k, d) * b, v = single ? 0 : re(k, d) * b + im(k, d) * a;
      for (Index n = 0; n < length; ++n) {
        const double angle = 2 * pi * static_cast<double>(k * n % length) / static_cast<double>(length);
        y(n, d) += (single ? 1 : 2) * (u * std::cos(angle) - v * std::sin(angle)) / static_cast<double>(length);
      }
    }
  }
  return y;
}

struct Batch {
  Vector<std::int32_t> offsets{0};
  explicit Batch(std::initializer_list<Index> lengths) {
    for (const Index l : lengths) offsets.push_back(offsets[offsets.size() - 1] + static_cast<std::int32_t>(l));
  }
  Index rows() const { return offsets[offsets.size() - 1]; }
  template <class T>
  JaggedView<const T> of(MatrixView<const T> m) const {
    return JaggedView<const T>(m, IndexView(offsets));
  }
};

template <class T>
Matrix<double> doubled(MatrixView<const T> m) {
  Matrix<double> d(m.rows(), m.cols());
  for (Index i = 0; i < m.rows(); ++i)
    for (Index j = 0; j < m.cols(); ++j) d(i, j) = static_cast<double>(m(i, j));
  return d;
}

}  // namespace

TEST_CASE("the worked numbers of the filter", "[frequency]") {
  Workspace ws;
  const SpectralPlans<double> plans(5);
  const Matrix<double> re{{0.5}, {1}, {1.5}}, im{{0.1}, {0.35}, {0.6}};
  const auto check = [&](Matrix<double> x, Matrix<double> g, Matrix<double> y, Matrix<double> dx, Matrix<double> dre,
                         Matrix<double> dim) {
    const SpectralFilterOptions o = {.length = x.rows()};
    Matrix<double> out(x.rows(), 1), din(x.rows(), 1, 0.0), a(3, 1, 0.0), b(3, 1, 0.0), last(1, 1);
    spectral_filter<double>(x.view(), {re.view(), im.view()}, plans, o, out, ws);
    spectral_filter_backward<double>(x.view(), {re.view(), im.view()}, plans, o, g.view(), din, {a, b}, ws);
    spectral_filter_last<double>(x.view(), {re.view(), im.view()}, plans, o, last, ws);
    CHECK(max_difference(out.view(), y.view()) < 1e-11);
    CHECK(max_difference(din.view(), dx.view()) < 1e-11);
    CHECK(max_difference(a.view(), dre.view()) < 1e-11);
    CHECK(max_difference(b.view(), dim.view()) < 1e-11);
    CHECK((b(0, 0) == 0 && (x.rows() % 2 == 1 || b(2, 0) == 0)));
    CHECK(last(0, 0) == Approx(y(x.rows() - 1, 0)));
  };
  check({{1}, {-2}, {3}, {0.5}}, {{0.3}, {-1}, {0.7}, {1.5}}, {{0.9375}, {-2.65}, {3.8125}, {-0.85}},
        {{0.6125}, {-1.32}, {0.1375}, {1.32}}, {{0.9375}, {3.525}, {0.6875}}, {{0}, {-2}, {0}});
  check({{1}, {-2}, {3}, {0.5}, {2}}, {{0.3}, {-1}, {0.7}, {2}, {-0.5}},
        {{-0.495462666738}, {-2.575326909765}, {4.117692598426}, {-1.432927651851}, {2.636024629928}},
        {{0.566929744524}, {-1.163875778220}, {-0.423584100016}, {2.693189305577}, {-0.922659171864}},
        {{1.35}, {2.877821126387}, {0.172178873613}}, {{0}, {1.284492811383}, {-5.225761018025}});
}

TEMPLATE_TEST_CASE("filters of jagged batches are convolutions of each sequence", "[frequency]", float, double) {
  using T = TestType;
  Workspace ws;
  Random random = random_stream(7101);
  const Index length = 31;
  const SpectralPlans<T> plans(length);
  const Batch batch{13, 0, 1, 31, 13, 2, 31, 13, 30};
  const SpectralFilterOptions o = {.length = length};
  for (const Index cols : {1, 3, 17}) {
    const Matrix<T> values = random_matrix<T>(batch.rows(), cols, random);
    Padded<T> x(values.view()), y(batch.rows(), cols);
    const Matrix<T> re = random_matrix<T>(16, cols, random), im = random_matrix<T>(16, cols, random);
    Matrix<T> last(9, cols);
    const auto in = batch.of<T>(x);
    spectral_filter<T>(in, {re.view(), im.view()}, plans, o, y, ws);
    spectral_filter_last<T>(in, {re.view(), im.view()}, plans, o, last, ws);
    const Matrix<double> rd = doubled<T>(re.view()), id = doubled<T>(im.view());
    const double bound = sizeof(T) == 4 ? 2e-5 : 1e-13;
    for (Index b = 0; b < 9; ++b) {
      const Matrix<double> expected = naive(doubled<T>(in[b]).view(), rd.view(), id.view());
      CHECK(max_difference(MatrixView<const T>(y.view().middle_rows(in.begin(b), in.length(b))), expected.view()) < bound);
      for (Index d = 0; d < cols; ++d)
        CHECK(std::abs(static_cast<double>(last(b, d)) - (in.length(b) ? expected(in.length(b) - 1, d) : 0)) < bound);
    }
    CHECK(y.intact());
    // Directly, forward and backward.
    Matrix<T> straight(batch.rows(), cols), into[2] = {Matrix<T>(batch.rows(), cols, T(1)), Matrix<T>(batch.rows(), cols, T(1))};
    SpectralFilterOptions own = o;
    own.path = FilterPath::direct;
    spectral_filter<T>(in, {re.view(), im.view()}, plans, own, straight, ws);
    CHECK(max_difference(MatrixView<const T>(y.view()), straight.view()) < bound);
    for (const FilterPath path : {FilterPath::direct, FilterPath::transform}) {
      own.path = path;
      spectral_filter_backward<T>(in, {re.view(), im.view()}, plans, own, values.view(), into[path == FilterPath::direct], {},
                                  ws);
    }
    CHECK(max_difference(into[0].view(), into[1].view()) < bound);
    CHECK(count_allocations([&] { spectral_filter<T>(in, {re.view(), im.view()}, plans, o, y, ws); }) == 0);

    // Any number of threads, the same bits.
    Threads threads{3};
    Workspace many(make_executor(threads, 3));
    Matrix<T> again(batch.rows(), cols), dx(batch.rows(), cols, T(0)), dx3 = dx, a(16, cols, T(0)), b(16, cols, T(0)), a3 = a,
                                                                       b3 = b;
    spectral_filter<T>(in, {re.view(), im.view()}, plans, o, again, many);
    CHECK(max_difference(MatrixView<const T>(y.view()), again.view()) == 0);
    spectral_filter_backward<T>(in, {re.view(), im.view()}, plans, o, again.view(), dx, {a, b}, ws);
    spectral_filter_backward<T>(in, {re.view(), im.view()}, plans, o, again.view(), dx3, {a3, b3}, many);
    CHECK(max_difference(dx.view(), dx3.view()) == 0);
    CHECK(max_difference(a.view(), a3.view()) == 0);
    CHECK(max_difference(b.view(), b3.view()) == 0);
  }
}

TEST_CASE("a NaN never leaves its sequence, and Im of DC and Nyquist never matters", "[frequency]") {
  Workspace ws;
  Random random = random_stream(7102);
  const Index length = 10, cols = 9;
  const SpectralPlans<float> plans = SpectralPlans<float>::only(length);
  const Batch batch{10, 10, 10, 10, 10};
  const SpectralFilterOptions o = {.length = length};
  const Matrix<float> re = random_matrix<float>(6, cols, random), im = random_matrix<float>(6, cols, random);
  const Matrix<float> x = random_matrix<float>(50, cols, random), g = random_matrix<float>(50, cols, random);
  const auto run = [&](const Matrix<float>& in, const Matrix<float>& up, const Matrix<float>& imaginary) {
    Matrix<float> both(100, cols, 0.0f);
    Matrix<float> none;
    spectral_filter<float>(batch.of<float>(in.view()), {re.view(), imaginary.view()}, plans, o, both.view().middle_rows(0, 50),
                           ws);
    spectral_filter_backward<float>(batch.of<float>(in.view()), {re.view(), imaginary.view()}, plans, o, up.view(),
                                    both.view().middle_rows(50, 50), {}, ws);
    return both;
  };
  const Matrix<float> clean = run(x, g, im);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const Index where : {Index{3}, Index{17}, Index{49}}) {
      Matrix<float> xb = x, gb = g;
      xb(where, 4) = gb(where, 4) = bad;
      const Matrix<float> y = run(xb, gb, im);
      for (Index i = 0; i < 100; ++i) {
        for (Index d = 0; d < cols; ++d) {
          if (i % 50 / 10 == where / 10 && d == 4) {
            CHECK_FALSE(std::isfinite(y(i, d)));
          } else {
            CHECK(y(i, d) == Approx(clean(i, d)).margin(1e-5));
          }
        }
      }
    }
  }
  Matrix<float> wild = im;
  for (Index d = 0; d < cols; ++d) wild(0, d) = wild(5, d) = 1e3f;
  CHECK(max_difference(run(x, g, wild).view(), clean.view()) == 0);
}

TEST_CASE("interpolated gains keep their frequency", "[frequency]") {
  // A table made for 8 rows that grows with the frequency: half as long a sequence takes every second gain.
  Workspace ws;
  const SpectralPlans<double> plans(8);
  Matrix<double> re(5, 1), im(5, 1, 0.0), x{{1}, {2}, {-1}, {0.5}}, y(4, 1), expected(4, 1);
  for (Index k = 0; k < 5; ++k) re(k, 0) = static_cast<double>(k);
  const Matrix<double> half{{0}, {2}, {4}}, zero(3, 1, 0.0);
  spectral_filter<double>(x.view(), {re.view(), im.view()}, plans, {.length = 8, .fit = GainFit::interpolate}, y, ws);
  spectral_filter<double>(x.view(), {half.view(), zero.view()}, plans, {.length = 4}, expected, ws);
  CHECK(max_difference(y.view(), expected.view()) < 1e-15);
}

TEST_CASE("short sequences are filled as each policy says", "[frequency]") {
  const auto filled = [](SequenceFill fill, SequenceAlign align) {
    const Matrix<double> x{{1}, {2}, {3}};
    Matrix<double> y(8, 1);
    pad_sequences<double>(x.view(), {fill, align}, 8, y);
    return std::vector<double>(y.data(), y.data() + 8);
  };
  using V = std::vector<double>;
  CHECK(filled(SequenceFill::zero, SequenceAlign::right) == V{0, 0, 0, 0, 0, 1, 2, 3});
  CHECK(filled(SequenceFill::edge, SequenceAlign::right) == V{1, 1, 1, 1, 1, 1, 2, 3});
  CHECK(filled(SequenceFill::cyclic, SequenceAlign::right) == V{2, 3, 1, 2, 3, 1, 2, 3});
  CHECK(filled(SequenceFill::reflect, SequenceAlign::right) == V{2, 1, 2, 3, 2, 1, 2, 3});
  CHECK(filled(SequenceFill::zero, SequenceAlign::left) == V{1, 2, 3, 0, 0, 0, 0, 0});
  CHECK(filled(SequenceFill::edge, SequenceAlign::left) == V{1, 2, 3, 3, 3, 3, 3, 3});
  CHECK(filled(SequenceFill::cyclic, SequenceAlign::left) == V{1, 2, 3, 1, 2, 3, 1, 2});
  CHECK(filled(SequenceFill::reflect, SequenceAlign::left) == V{1, 2, 3, 2, 1, 2, 3, 2});

  // The last row alone is the last row, whatever fills.
  Workspace ws;
  Random random = random_stream(7103);
  const Batch batch{3, 0, 7, 1, 5};
  const Matrix<double> x = random_matrix<double>(16, 4, random), re = random_matrix<double>(4, 4, random),
                       im = random_matrix<double>(4, 4, random), g = random_matrix<double>(5, 4, random);
  const SpectralPlans<double> plans(7);
  const auto in = batch.of<double>(x.view());
  for (const auto fill :
       {SequenceFill::none, SequenceFill::zero, SequenceFill::edge, SequenceFill::cyclic, SequenceFill::reflect}) {
    for (const auto align : {SequenceAlign::right, SequenceAlign::left}) {
      for (const auto fit : {GainFit::crop, GainFit::interpolate}) {
        const SpectralFilterOptions o = {.length = 7, .padding = {fill, align}, .fit = fit};
        Matrix<double> y(16, 4), last(5, 4), dy(16, 4, 0.0), dx(16, 4, 0.0), dx1 = dx, a(4, 4, 0.0), b = a, a1 = a, b1 = a;
        spectral_filter<double>(in, {re.view(), im.view()}, plans, o, y, ws);
        spectral_filter_last<double>(in, {re.view(), im.view()}, plans, o, last, ws);
        for (Index s = 0; s < 5; ++s) {
          for (Index d = 0; d < 4; ++d) {
            const Index end = in.begin(s) + in.length(s) - 1;
            CHECK(last(s, d) == Approx(in.length(s) ? y(end, d) : 0).margin(1e-13));
            if (in.length(s)) dy(end, d) = g(s, d);
          }
        }
        spectral_filter_backward<double>(in, {re.view(), im.view()}, plans, o, dy.view(), dx, {a, b}, ws);
        spectral_filter_last_backward<double>(in, {re.view(), im.view()}, plans, o, g.view(), dx1, {a1, b1}, ws);
        CHECK(max_difference(dx.view(), dx1.view()) < 1e-13);
        CHECK(max_difference(a.view(), a1.view()) < 1e-13);
        CHECK(max_difference(b.view(), b1.view()) < 1e-13);
      }
    }
  }
}

TEST_CASE("SLIME4Rec's windows", "[frequency]") {
  const auto windows = [](Index bins, Index layers, Index layer, SlideMode mode = SlideMode::down_down) {
    return slide_windows(bins, {.layer = layer, .layers = layers, .ratio = 0.4, .mode = mode});
  };
  const auto is = [](BinWindow w, Index first, Index last) { return w.first == first && w.last == last; };
  CHECK(is(windows(9, 2, 0).static_window, 4, 9));
  CHECK(is(windows(26, 4, 1).static_window, 13, 19));
  CHECK(is(windows(26, 4, 3).static_window, 0, 6));
  CHECK(is(windows(26, 2, 0).dynamic_window, 15, 26));
  CHECK(is(windows(26, 2, 1).dynamic_window, 0, 11));
  CHECK(is(windows(26, 4, 2).dynamic_window, 5, 16));
  CHECK(is(windows(26, 4, 0, SlideMode::down_up).dynamic_window, 15, 26));
  CHECK(is(windows(26, 4, 0, SlideMode::down_up).static_window, 0, 6));
  CHECK(is(windows(26, 4, 0, SlideMode::up_up).dynamic_window, 0, 11));
  for (Index layers = 1; layers <= 8; ++layers) {
    for (Index bins = 1; bins <= 129; ++bins) {
      std::vector<int> covered(static_cast<std::size_t>(bins));
      for (Index i = 0; i < layers; ++i)
        for (Index k = 0; k < bins; ++k)
          covered[static_cast<std::size_t>(k)] += windows(bins, layers, i).static_window.contains(k) ? 1 : 0;
      REQUIRE(std::all_of(covered.begin(), covered.end(), [](int n) { return n == 1; }));
    }
  }
  CHECK_THROWS_WITH(windows(9, 2, 2), contains("layer"));
}

TEST_CASE("errors of filters name what is wrong and write nothing", "[frequency]") {
  Workspace ws;
  const SpectralPlans<float> plans(8);
  const Matrix<float> x(6, 2, 1.0f), re(5, 2, 1.0f), few(4, 2, 1.0f);
  Matrix<float> y(6, 2, 7.0f), wrong(5, 2, 7.0f);
  const auto run = [&](const Matrix<float>& gains, SpectralFilterOptions o, Matrix<float>& out) {
    return error_of([&] { spectral_filter<float>(x.view(), {gains.view(), gains.view()}, plans, o, out, ws); });
  };
  CHECK(run(few, {.length = 8}, y) == "spectral_filter: gains.re: expected shape [5, 2], got [4, 2]");
  CHECK(run(re, {.length = 8}, wrong) == "spectral_filter: y: expected shape [6, 2], got [5, 2]");
  CHECK(run(few, {.length = -1}, y).find("length") != std::string::npos);
  CHECK(run(Matrix<float>(3, 2, 1.0f), {.length = 5}, y).find("sequences of at most") != std::string::npos);
  const SpectralPlans<float> one = SpectralPlans<float>::only(8);
  CHECK(error_of([&] {
          spectral_filter<float>(x.view(), {re.view(), re.view()}, one, {.length = 8}, y, ws);
        }).find("plans") != std::string::npos);
  CHECK(y(0, 0) == 7);
  CHECK(wrong(0, 0) == 7);
  CHECK(error_of([&] {
          Random random(1);
          SpectralFilter<float>(4, {}, random);
        }).find("length >= 1") != std::string::npos);
}
