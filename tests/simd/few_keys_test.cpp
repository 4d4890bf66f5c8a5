#include <recops/simd/few_keys.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Keys and values of every segment one below the other: row s * keys + j. The biases of a segment are a column.
template <class T>
struct Case {
  Index segments, keys, depth, width;
  Matrix<T> k, v, key_bias;
  Vector<T> bias;
  T scale = T(0.3);

  Case(Index s, Index j, Index d, Index w, Random& random)
      : segments(s),
        keys(j),
        depth(d),
        width(w),
        k(random_matrix<T>(segments * keys, depth, random)),
        v(random_matrix<T>(segments * keys, width, random)) {}

  void add_biases(Random& random) {
    key_bias = random_matrix<T>(keys, segments, random);
    bias = random_vector<T>(width, random);
  }
  simd::FewKeysOperands<T> operands() const {
    simd::FewKeysOperands<T> x{k.data(), v.data(), segments, keys, depth, width, depth, keys * depth, width, keys * width, scale};
    if (!key_bias.empty()) {
      x.key_bias = key_bias.data();
      x.bias_stride = segments;
      x.bias_segment = 1;
      x.bias = bias.data();
    }
    return x;
  }
};

struct Answer {
  Matrix<double> y, dx, dk, dv, dbias;
};

/// The definition in double: row by row, and the softmax's Jacobian row by row. Row i takes part where mask[i] != 0.
template <class T>
Answer reference(const Case<T>& c, MatrixView<const T> x, MatrixView<const T> dy, const std::vector<std::uint8_t>& mask) {
  const Index n = c.segments * c.keys;
  Answer a{Matrix<double>(x.rows(), c.width, 0), Matrix<double>(x.rows(), c.depth, 0), Matrix<double>(n, c.depth, 0),
           Matrix<double>(n, c.width, 0), Matrix<double>(1, n, 0)};
  for (Index i = 0; i < x.rows(); ++i) {
    if (!mask.empty() && mask[static_cast<std::size_t>(i)] == 0) continue;
    for (Index w = 0; w < c.width && !c.bias.empty(); ++w) a.y(i, w) = static_cast<double>(c.bias[w]);
    for (Index s = 0; s < c.segments; ++s) {
      std::vector<double> p(static_cast<std::size_t>(c.keys)), d(p.size());
      double most = -std::numeric_limits<double>::infinity(), total = 0, mean = 0;
      for (Index j = 0; j < c.keys; ++j) {
        double dot = 0;
        for (Index e = 0; e < c.depth; ++e) dot += static_cast<double>(x(i, e)) * static_cast<double>(c.k(s * c.keys + j, e));
        double& score = p[static_cast<std::size_t>(j)];
        score = static_cast<double>(c.scale) * dot + (c.key_bias.empty() ? 0.0 : static_cast<double>(c.key_bias(j, s)));
        most = std::max(most, score);
      }
      for (double& score : p) total += score = std::exp(score - most);
      for (Index j = 0; j < c.keys; ++j) {
        const auto at = static_cast<std::size_t>(j);
        p[at] /= total;
        for (Index w = 0; w < c.width; ++w) {
          const double value = static_cast<double>(c.v(s * c.keys + j, w)), up = static_cast<double>(dy(i, w));
          a.y(i, w) += p[at] * value;
          a.dv(s * c.keys + j, w) += p[at] * up;
          d[at] += up * value;
        }
        mean += p[at] * d[at];
      }
      for (Index j = 0; j < c.keys; ++j) {
        const Index row = s * c.keys + j;
        const double g = p[static_cast<std::size_t>(j)] * (d[static_cast<std::size_t>(j)] - mean);
        a.dbias(0, row) += g;
        for (Index e = 0; e < c.depth; ++e) {
          a.dk(row, e) += g * static_cast<double>(x(i, e));  // of x . k: without the scale
          a.dx(i, e) += g * static_cast<double>(c.scale) * static_cast<double>(c.k(row, e));
        }
      }
    }
  }
  return a;
}

/// The outputs of all rows, in blocks of `block`.
template <class T, class A>
Matrix<T> attend(const Case<T>& c, MatrixView<const T> x, const std::vector<std::uint8_t>& mask, Index block, Workspace& ws) {
  const auto mark = ws.mark();
  simd::FewKeys<T, A> keys(c.operands(), false, ws);
  Padded<T> y(x.rows(), c.width, T(7));
  for (Index i = 0; i < x.rows(); i += block) {
    const Index rows = std::min(block, x.rows() - i);
    keys.attend(x.middle_rows(i, rows), mask.empty() ? nullptr : mask.data() + i, y.view().middle_rows(i, rows));
  }
  CHECK(y.intact());
  Matrix<T> out(x.rows(), c.width);
  for (Index i = 0; i < x.rows(); ++i) std::copy_n(y.view().row(i), c.width, out.view().row(i));
  return out;
}

/// The largest error of all gradients, relative to those of `want`.
template <class T, class A>
double error_of_backward(const Case<T>& c, MatrixView<const T> x, MatrixView<const T> dy, const std::vector<std::uint8_t>& mask,
                         const Answer& want, Workspace& ws) {
  const auto mark = ws.mark();
  simd::FewKeys<T, A> keys(c.operands(), true, ws);
  const auto padded = [](Index n) { return simd::few_keys::padded<T, A>(n); };
  const Index run = padded(c.keys), n = c.segments * run;
  Matrix<T> dk(n, padded(c.depth), T(0)), dv(n, padded(c.width), T(0)), dbias(1, n, T(0));
  Padded<T> dx(x.rows(), c.depth, T(0));
  for (Index i = 0; i < x.rows(); i += simd::few_keys::block) {
    const Index rows = std::min(simd::few_keys::block, x.rows() - i);
    keys.backward(x.middle_rows(i, rows), mask.empty() ? nullptr : mask.data() + i, dy.middle_rows(i, rows),
                  dx.view().middle_rows(i, rows), {.k = dk.data(), .v = dv.data(), .key_bias = dbias.data()});
  }
  CHECK(dx.intact());
  double worst = 0;
  const auto compare = [&](auto got, MatrixView<const double> exact) {
    double size = 1;
    for (Index i = 0; i < exact.rows(); ++i)
      for (Index j = 0; j < exact.cols(); ++j) size = std::max(size, std::abs(exact(i, j)));
    worst = std::max(worst, max_difference(got, exact) / size);
  };
  compare(dx.view(), want.dx.view());
  for (Index s = 0; s < c.segments; ++s) {
    const auto part = [&](const Matrix<double>& m) { return m.view().middle_rows(s * c.keys, c.keys); };
    compare(dk.view().middle_rows(s * run, c.keys).middle_cols(0, c.depth), part(want.dk));
    compare(dv.view().middle_rows(s * run, c.keys).middle_cols(0, c.width), part(want.dv));
    compare(dbias.view().middle_cols(s * run, c.keys), want.dbias.view().middle_cols(s * c.keys, c.keys));
  }
  return worst;
}

template <class T>
bool same_bits(const Matrix<T>& a, const Matrix<T>& b, Index row) {
  return std::equal(a.view().row(row), a.view().row(row) + a.cols(), b.view().row(row));
}

}  // namespace

TEST_CASE("few keys: both directions on every architecture", "[simd][few_keys]") {
  Random random = random_stream(62);
  Workspace ws;
  const Index shapes[][5] = {{1, 1, 1, 1, 1},    {1, 2, 3, 5, 7},     {2, 7, 8, 8, 48},   {3, 8, 17, 9, 49},
                             {2, 9, 16, 33, 97}, {1, 16, 64, 64, 50}, {1, 33, 5, 16, 20}, {4, 4, 16, 31, 13}};
  for (const auto& s : shapes) {
    for (const bool biased : {false, true}) {
      for (const bool masked : {false, true}) {
        CAPTURE(s[0], s[1], s[2], s[3], s[4], biased, masked);
        const auto check = [&]<class T>(T, double tolerance) {
          Case<T> c(s[0], s[1], s[2], s[3], random);
          if (biased) c.add_biases(random);
          Padded<T> x(random_matrix<T>(s[4], c.depth, random).view()), dy(random_matrix<T>(s[4], c.width, random).view());
          std::vector<std::uint8_t> mask;
          for (Index i = 0; masked && i < s[4]; ++i) mask.push_back(random.uniform() < 0.7 ? 1 : 0);
          const Answer want = reference<T>(c, x, dy, mask);
          for_each_architecture([&](auto a) {
            using A = decltype(a);
            CHECK(max_difference(attend<T, A>(c, x, mask, simd::few_keys::block, ws).view(), want.y.view()) < tolerance);
            CHECK(error_of_backward<T, A>(c, x, dy, mask, want, ws) < tolerance);
          });
        };
        check(float(), 1e-5);
        check(double(), 1e-13);
      }
    }
  }
}

TEST_CASE("few keys: scores of any size, values of any size", "[simd][few_keys]") {
  Random random = random_stream(63);
  Workspace ws;
  for (const float score : {0.0f, 20.0f, 60.0f, -60.0f, 100.0f, 3e4f}) {
    for (const float value : {1.0f, 1e30f, 3e38f}) {
      Case<float> c(1, 6, 4, 10, random);
      for (Index j = 0; j < c.keys; ++j) {
        for (Index w = 0; w < c.width; ++w) c.v(j, w) = j < 4 || w == 0 ? value : -value;
      }
      Matrix<float> x = random_matrix<float>(60, 4, random);
      for (Index i = 0; i < 60; i += 3) x(i, 1) = score;  // beside rows that are near
      const Answer want = reference<float>(c, x.view(), Matrix<float>(60, c.width, 0.0f).view(), {});
      CAPTURE(score, value);
      for_each_architecture([&](auto a) {
        const Matrix<float> y = attend<float, decltype(a)>(c, x.view(), {}, simd::few_keys::block, ws);
        for (Index i = 0; i < 60; ++i)
          for (Index w = 0; w < c.width; ++w)
            CHECK(std::abs(static_cast<double>(y(i, w)) - want.y(i, w)) < 2e-6 * static_cast<double>(value));
      });
    }
  }
}

TEST_CASE("few keys: a row's bits do not depend on its block, nor on what a masked or a broken row holds", "[simd][few_keys]") {
  Random random = random_stream(64);
  Workspace ws;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Index segments : {Index{1}, Index{2}}) {
    Case<float> c(segments, 11, 16, 24, random);
    Matrix<float> x = random_matrix<float>(97, 16, random), broken = x;
    std::vector<std::uint8_t> mask(97, 1);
    mask[5] = 0;
    for (Index e = 0; e < 16; ++e) broken(5, e) = nan, broken(40, e) = e % 2 == 0 ? 1e30f : nan;
    for_each_architecture([&](auto a) {
      using A = decltype(a);
      const Matrix<float> whole = attend<float, A>(c, x.view(), mask, 48, ws), alone = attend<float, A>(c, x.view(), mask, 1, ws),
                          beside = attend<float, A>(c, broken.view(), mask, 48, ws);
      for (Index i = 0; i < 97; ++i) {
        CAPTURE(segments, i);
        CHECK(same_bits(whole, alone, i));
        if (i != 40) CHECK(same_bits(whole, beside, i));
      }
      CHECK(std::isnan(beside(40, 0)));
      CHECK(beside(5, 0) == 0);
    });
  }
}
