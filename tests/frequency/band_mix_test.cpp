// Oracles: the spec's worked numbers, the other ways to the same band, algebra of projections, central differences.
#include <recops/frequency/band_mix.hpp>
#include <recops/frequency/band_split.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("the worked numbers of bands", "[frequency]") {
  Workspace ws;
  const SpectralPlans<double> plans(5);
  const Matrix<double> alpha{{0.75}}, beta{{0.5}};
  const auto check = [&](BandPath path, Matrix<double> x, Matrix<double> g, Matrix<double> low, Matrix<double> y) {
    Matrix<double> l(x.rows(), 1), h(x.rows(), 1), out(x.rows(), 1);
    band_split<double>(x.view(), {.keep = 2}, plans, l, h, ws, path);
    band_mix<double>(x.view(), {alpha.view()}, {beta.view()}, {.keep = 2}, plans, out, ws, path);
    CHECK(max_difference(l.view(), low.view()) < 1e-11);
    CHECK(max_difference(out.view(), y.view()) < 1e-11);
    for (Index n = 0; n < x.rows(); ++n) CHECK(l(n, 0) + h(n, 0) == Approx(x(n, 0)));
    if (x.rows() == 5) {
      Matrix<double> dx(5, 1, 0.0), da(1, 1, 0.0), db(1, 1, 0.0);
      band_mix_backward<double>(x.view(), {alpha.view()}, {beta.view()}, {.keep = 2}, plans, g.view(), dx, {da.view()},
                                {db.view()}, ws, path);
      CHECK(da(0, 0) == Approx(4.227821126387));
      CHECK(db(0, 0) == Approx(0.172178873613));
      CHECK(dx(3, 0) == Approx(1.337811529494));
    }
  };
  for (const BandPath path : {BandPath::fastest, BandPath::projection, BandPath::complement, BandPath::transform}) {
    check(path, {{1}, {-2}, {3}, {0.5}}, {}, {{-0.375}, {-0.625}, {1.625}, {1.875}},
          {{0.40625}, {-1.15625}, {1.90625}, {0.71875}});
    check(path, {{1}, {-2}, {3}, {0.5}, {2}}, {{0.3}, {-1}, {0.7}, {2}, {-0.5}},
          {{0.167376207875}, {-0.214589803375}, {0.943769410125}, {2.041640786500}, {1.561803398875}},
          {{0.541844051969}, {-1.053647450844}, {1.735942352531}, {0.760410196625}, {1.390450849719}});
  }
}

TEMPLATE_TEST_CASE("all ways to a band agree, for gains of any shape", "[frequency]", float, double) {
  using T = TestType;
  Workspace ws;
  Random random = random_stream(7201);
  const double bound = sizeof(T) == 4 ? 2e-5 : 1e-12;
  const SpectralPlans<T> plans(27);
  const std::int64_t offsets[] = {0, 27, 27, 40, 41, 68, 81};
  const IndexView at(offsets, 7);
  for (const Index cols : {1, 5, 35}) {
    const Matrix<T> values = random_matrix<T>(81, cols, random), gradient = random_matrix<T>(81, cols, random);
    Padded<T> x(values.view()), g(gradient.view());
    const JaggedView<const T> in(MatrixView<const T>(x), at);
    for (const Band band :
         {Band{.keep = 0}, Band{.keep = 1}, Band{.keep = 3}, Band{.keep = 12}, Band{.keep = 14}, Band{.ratio = 0.3}}) {
      for (int kind = 0; kind < 4; ++kind) {
        const GainRows rows = static_cast<GainRows>(kind);
        const Index count = kind == 0 ? 1 : kind == 1 ? 6 : kind == 2 ? 27 : 81;
        const Matrix<T> alpha = random_matrix<T>(count, cols, random), beta = random_matrix<T>(count, 1, random);
        Matrix<T> y[3], dx[3], da[3], db[3];
        for (int p = 0; p < 3; ++p) {
          const BandPath path = static_cast<BandPath>(p + 1);
          y[p].resize(81, cols);
          dx[p] = Matrix<T>(81, cols, T(1));
          da[p] = Matrix<T>(count, cols, T(1));
          db[p] = Matrix<T>(count, 1, T(1));
          band_mix<T>(in, {alpha.view(), rows}, {beta.view(), rows}, band, plans, y[p], ws, path);
          band_mix_backward<T>(in, {alpha.view(), rows}, {beta.view(), rows}, band, plans, MatrixView<const T>(g), dx[p],
                               {da[p].view(), rows}, {db[p].view(), rows}, ws, path);
          CAPTURE(cols, band.keep, band.ratio, kind, p);
          CHECK(max_difference(y[0].view(), y[p].view()) < bound);
          CHECK(max_difference(dx[0].view(), dx[p].view()) < bound);
          CHECK(max_difference(da[0].view(), da[p].view()) < 20 * bound);
          CHECK(max_difference(db[0].view(), db[p].view()) < 100 * bound);
        }
        Threads threads{3};
        Workspace many(make_executor(threads, 3));
        Matrix<T> again(81, cols);
        band_mix<T>(in, {alpha.view(), rows}, {beta.view(), rows}, band, plans, again, many, BandPath::projection);
        CHECK(max_difference(y[0].view(), again.view()) == 0);
      }
    }
  }
}

TEST_CASE("gradients of gains of any shape are the derivatives", "[frequency]") {
  Workspace ws;
  Random random = random_stream(7202);
  const SpectralPlans<double> plans(9);
  const std::int32_t offsets[] = {0, 9, 9, 12, 20};
  Matrix<double> x = random_matrix<double>(20, 3, random), g = random_matrix<double>(20, 3, random), y(20, 3);
  const JaggedView<const double> in(MatrixView<const double>(x), IndexView(offsets, 5));
  for (int kind = 0; kind < 4; ++kind) {
    const GainRows rows = static_cast<GainRows>(kind);
    const Index count = kind == 0 ? 1 : kind == 1 ? 4 : kind == 2 ? 10 : 20;
    Matrix<double> alpha = random_matrix<double>(count, 3, random), beta = random_matrix<double>(count, 1, random);
    for (const BandPath path : {BandPath::projection, BandPath::transform}) {
      Matrix<double> dx(20, 3, 0.0), da(count, 3, 0.0), db(count, 1, 0.0);
      band_mix_backward<double>(in, {alpha.view(), rows}, {beta.view(), rows}, {.keep = 2}, plans, g.view(), dx,
                                {da.view(), rows}, {db.view(), rows}, ws, path);
      GradientReport report;
      const auto loss = [&] {
        band_mix<double>(in, {alpha.view(), rows}, {beta.view(), rows}, {.keep = 2}, plans, y, ws, path);
        double sum = 0;
        for (Index i = 0; i < 60; ++i) sum += y.data()[i] * g.data()[i];
        return sum;
      };
      check_gradient("x", leaf_values(x), VectorView<const double>(dx.data(), 60), loss, report);
      check_gradient("alpha", leaf_values(alpha), VectorView<const double>(da.data(), da.rows() * 3), loss, report);
      check_gradient("beta", leaf_values(beta), VectorView<const double>(db.data(), db.rows()), loss, report);
      INFO(report.where);
      CHECK(report.worst < 1e-7);
    }
  }
}

TEST_CASE("a band is a projection", "[frequency]") {
  Workspace ws;
  Random random = random_stream(7203);
  for (const Index length : {1, 2, 9, 16, 50}) {
    const SpectralPlans<double> plans = SpectralPlans<double>::only(length);
    const Matrix<double> x = random_matrix<double>(length, 3, random), g = random_matrix<double>(length, 3, random);
    double before = -1e-12;
    for (Index keep = 0; keep <= length / 2 + 1; ++keep) {
      Matrix<double> low(length, 3), high(length, 3), again(length, 3), dx(length, 3, 0.0);
      const Band band = {.keep = keep};
      band_split<double>(x.view(), band, plans, low, high, ws);
      band_split<double>(low.view(), band, plans, again, {}, ws);
      CHECK(max_difference(low.view(), again.view()) < 1e-12);
      double across = 0, energy = 0, forward = 0, backward = 0;
      band_split_backward<double>(x.view(), band, plans, g.view(), {}, dx, ws);
      for (Index i = 0; i < 3 * length; ++i) {
        across += low.data()[i] * high.data()[i];
        energy += low.data()[i] * low.data()[i];
        forward += low.data()[i] * g.data()[i];
        backward += x.data()[i] * dx.data()[i];
      }
      CHECK(std::abs(across) < 1e-11);
      CHECK(energy >= before - 1e-11);
      CHECK(forward == Approx(backward).margin(1e-12));
      before = energy;
      if (keep == length / 2 + 1) CHECK(max_difference(low.view(), x.view()) < 1e-12);
    }
  }
  CHECK(keep_from_bsarec_c(3) == 2);
  CHECK(keep_from_bsarec_c(4) == 3);
  CHECK(keep_from_bsarec_c(5) == 3);
  CHECK(band_bins({.ratio = 0.25}, 50) == 7);
  CHECK(band_bins({.ratio = 0.01}, 3) == 1);
  CHECK(band_bins({.keep = 9}, 4) == 3);
}

TEST_CASE("a NaN stays in its sequence and channel, warm calls allocate nothing, errors write nothing", "[frequency]") {
  Workspace ws;
  Random random = random_stream(7204);
  const SpectralPlans<float> plans(40);
  const std::int64_t offsets[] = {0, 40, 80, 80, 103};
  Matrix<float> x = random_matrix<float>(103, 19, random), y(103, 19), clean(103, 19);
  const JaggedView<const float> in(MatrixView<const float>(x), IndexView(offsets, 5));
  const Matrix<float> one(1, 1, 1.0f), beta(1, 19, 0.3f);
  for (const BandPath path : {BandPath::projection, BandPath::complement, BandPath::transform}) {
    const float kept = x(45, 7);
    band_mix<float>(in, {one.view()}, {beta.view()}, {.keep = 3}, plans, clean, ws, path);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      x(45, 7) = bad;
      band_mix<float>(in, {one.view()}, {beta.view()}, {.keep = 3}, plans, y, ws, path);
      for (Index i = 0; i < 103; ++i)
        for (Index d = 0; d < 19; ++d)
          CHECK((d == 7 && 40 <= i && i < 80 ? !std::isfinite(y(i, d)) : std::abs(y(i, d) - clean(i, d)) < 1e-5f));
    }
    x(45, 7) = kept;
    CHECK(count_allocations([&] { band_mix<float>(in, {one.view()}, {beta.view()}, {.keep = 3}, plans, y, ws, path); }) == 0);
  }
  Matrix<float> wrong(102, 19, 5.0f);
  CHECK(error_of([&] { band_mix<float>(in, {one.view()}, {beta.view()}, {.keep = 3}, plans, wrong, ws); }) ==
        "band_mix: y: expected shape [103, 19], got [102, 19]");
  CHECK(error_of([&] { band_mix<float>(in, {one.view()}, {beta.view()}, {.keep = -1}, plans, y, ws); }).find("keep >= 0") !=
        std::string::npos);
  CHECK(error_of([&] {
          band_mix<float>(in, {beta.view(), GainRows::row}, {beta.view()}, {.keep = 1}, plans, y, ws);
        }) == "band_mix: alpha: expected shape [103, 19], got [1, 19]");
  const SpectralPlans<float> few(39);
  CHECK(error_of([&] { band_mix<float>(in, {one.view()}, {beta.view()}, {.keep = 1}, few, y, ws); }) ==
        "band_mix: plans: expected lengths of at most 39, got 40 at position 0");
  CHECK(wrong(0, 0) == 5);
}
