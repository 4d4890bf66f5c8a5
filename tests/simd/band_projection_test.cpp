// Oracle: the projection written out with cosines in double.
#include <recops/simd/band_projection.hpp>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// (P x)_n = sum_j h_(n - j) x_j, h_d = 1 / L sum_k m_k cos(2 pi k d / L).
Matrix<double> project(MatrixView<const double> x, Index first, Index last) {
  const Index length = x.rows();
  Matrix<double> y(length, x.cols(), 0.0);
  for (Index n = 0; n < length; ++n) {
    for (Index j = 0; j < length; ++j) {
      double h = 0;
      for (Index k = first; k < last; ++k)
        h += (k == 0 || 2 * k == length ? 1 : 2) *
             std::cos(2 * 3.14159265358979323846 * static_cast<double>(k * (n - j + length) % length) /
                      static_cast<double>(length));
      for (Index d = 0; d < x.cols(); ++d) y(n, d) += h / static_cast<double>(length) * x(j, d);
    }
  }
  return y;
}

template <class T>
Vector<T> roots(Index length) {
  Vector<T> r(2 * length);
  for (Index m = 0; m < length; ++m) {
    const double angle = 2 * 3.14159265358979323846 * static_cast<double>(m) / static_cast<double>(length);
    r[m] = static_cast<T>(std::cos(angle));
    r[length + m] = static_cast<T>(std::sin(angle));
  }
  return r;
}

}  // namespace

TEMPLATE_TEST_CASE("gains inside and outside of bins", "[simd][band]", float, double) {
  using T = TestType;
  using simd::BandStore;
  Random random = random_stream(7001);
  const double bound = sizeof(T) == 4 ? 3e-6 : 1e-13;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    Workspace ws;
    for (const Index length : {1, 2, 3, 4, 7, 16, 25}) {
      const Vector<T> r = roots<T>(length);
      for (const Index cols : {Index{1}, simd::lanes<T, A> + 1, 2 * simd::lanes<T, A>, 5 * simd::lanes<T, A>}) {
        const Matrix<T> x0 = random_matrix<T>(length, cols, random), g0 = random_matrix<T>(length, cols, random);
        Padded<T> x(x0.view()), g(g0.view());
        const Vector<T> inner = random_vector<T>(cols, random), outer = random_vector<T>(cols, random);
        Matrix<double> xd(length, cols);
        for (Index i = 0; i < length * cols; ++i) xd.data()[i] = static_cast<double>(x(i / cols, i % cols));
        const Index bins = length / 2 + 1;
        for (const auto& [first, last] : {std::pair(Index{0}, Index{0}), std::pair(Index{0}, std::min(Index{1}, bins)),
                                          std::pair(Index{0}, std::min(Index{3}, bins)), std::pair(Index{0}, bins),
                                          std::pair(std::min(Index{1}, bins), bins), std::pair(bins / 2, bins)}) {
          CAPTURE(length, cols, first, last);
          const Matrix<double> p = project(xd.view(), first, last);
          const auto waves = simd::BandWaves<T>::make(ws, r.data(), length, first, last);
          Padded<T> y(length, cols, T(1)), added(length, cols, T(1));
          simd::band_mix<T, A>(waves, x, inner.data(), outer.data(), BandStore::write, y, nullptr, ws);
          simd::band_mix<T, A>(waves, x, inner.data(), outer.data(), BandStore::add, added, x.view().data(), ws);
          Vector<T> in(cols, T(1)), out(cols, T(2));
          simd::band_products<T, A>(waves, x, g, in.data(), out.data(), ws);
          double worst = 0, inside = 0, outside = 0;
          for (Index d = 0; d < cols; ++d) {
            double with = 1, without = 2;
            for (Index n = 0; n < length; ++n) {
              const double expected = static_cast<double>(outer[d]) * xd(n, d) +
                                      (static_cast<double>(inner[d]) - static_cast<double>(outer[d])) * p(n, d);
              worst = std::max({worst, std::abs(static_cast<double>(y(n, d)) - expected),
                                std::abs(static_cast<double>(added(n, d)) - 1 - expected)});
              with += static_cast<double>(g(n, d)) * p(n, d);
              without += static_cast<double>(g(n, d)) * (xd(n, d) - p(n, d));
            }
            inside = std::max(inside, std::abs(static_cast<double>(in[d]) - with));
            outside = std::max(outside, std::abs(static_cast<double>(out[d]) - without));
          }
          REQUIRE(worst <= bound);
          REQUIRE(inside <= 5 * bound);
          REQUIRE(outside <= 5 * bound);
          REQUIRE((y.intact() && added.intact()));
        }
      }
    }
  });
}

TEST_CASE("around the caches is the same, a NaN stays in its channel, and nothing is allocated", "[simd][band]") {
  Workspace ws;
  Random random = random_stream(7002);
  const Index length = 12, cols = 32;
  const Vector<float> r = roots<float>(length), inner = random_vector<float>(cols, random),
                      outer = random_vector<float>(cols, random);
  Matrix<float> x = random_matrix<float>(length, cols, random), y(length, cols), far(length, cols), poisoned(length, cols);
  const auto run = [&](simd::BandStore store, Matrix<float>& to) {
    const auto mark = ws.mark();
    const auto waves = simd::BandWaves<float>::make(ws, r.data(), length, 0, 3);
    simd::band_mix<float>(waves, x, inner.data(), outer.data(), store, to, nullptr, ws);
    simd::far_done();
  };
  run(simd::BandStore::write, y);
  CHECK(count_allocations([&] { run(simd::BandStore::far, far); }) == 0);
  CHECK(max_difference(y.view(), far.view()) == 0);
  x(3, 5) = std::numeric_limits<float>::quiet_NaN();
  run(simd::BandStore::write, poisoned);
  for (Index n = 0; n < length; ++n)
    for (Index d = 0; d < cols; ++d) CHECK((d == 5 ? std::isnan(poisoned(n, d)) : poisoned(n, d) == y(n, d)));
}
