// Oracle: three loops in double. Error bound: k is summed in blocks of 512, so (min(k, 512) + k / 512 + 3) roundings of the sum
// of absolute products.
#include <recops/simd/gemm.hpp>

#include <cstring>
#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
double roundings(Index k) {
  return static_cast<double>(std::min<Index>(k, 512) + k / 512 + 3) * static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
}

// The numbers of a matrix in one of four layouts: as they are, transposed, with gaps between rows, and with gaps everywhere.
template <class T>
struct Laid {
  std::vector<T> memory;
  simd::Operand<T> operand;
  Laid(MatrixView<const T> m, int layout) {
    const Index rows = m.rows(), cols = m.cols();
    const Index rs[] = {cols, 1, cols + 3, 2 * cols * 3 + 7}, cs[] = {1, rows, 1, 3};
    const Index row_stride = rs[layout], col_stride = cs[layout];
    memory.assign(static_cast<std::size_t>(rows * std::max<Index>(row_stride, 1) + cols * col_stride + 1),
                  std::numeric_limits<T>::quiet_NaN());  // who reads a gap gets a NaN
    operand = {memory.data(), rows, cols, row_stride, col_stride};
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) memory[static_cast<std::size_t>(i * row_stride + j * col_stride)] = m(i, j);
  }
};

double activated(Activation f, double x) {
  if (f == Activation::relu) return x > 0 ? x : 0;
  if (f == Activation::sigmoid) return 1 / (1 + std::exp(-x));
  if (f == Activation::silu) return x / (1 + std::exp(-x));
  return x;
}

template <class T, class A>
Vector<T> packed(simd::Operand<T> b) {
  Vector<T> panels(simd::packed_size<T, A>(b.rows, b.cols));
  simd::pack<T, A>(b, panels.data());
  return panels;
}

template <class T>
bool same_bits(MatrixView<T> a, MatrixView<T> b) {
  for (Index i = 0; i < a.rows(); ++i)
    if (std::memcmp(a.row(i), b.row(i), static_cast<std::size_t>(a.cols()) * sizeof(T)) != 0) return false;
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("gemm of every size around the edges of its tiles", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(21);
  Workspace ws;
  constexpr Index most_m = 26, widest = simd::panel_cols<T>;
  const Index most_n = 5 * widest + 3;
  for (const Index k : {0, 1, 511, 512, 513, 1100}) {
    if (sanitized && k > 513) continue;
    const Matrix<T> a = random_matrix<T>(most_m, k, random), b = random_matrix<T>(k, most_n, random);
    Matrix<double> exact(most_m, most_n, 0.0), mass(most_m, most_n, 0.0);
    for (Index i = 0; i < most_m; ++i)
      for (Index p = 0; p < k; ++p)
        for (Index j = 0; j < most_n; ++j) {
          const double product = static_cast<double>(a(i, p)) * static_cast<double>(b(p, j));
          exact(i, j) += product;
          mass(i, j) += std::abs(product);
        }
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      constexpr Index P = simd::panel_cols<T, A>;
      int layout = 0;
      double worst = 0;
      bool intact = true;
      for (const Index n : {Index{0}, Index{1}, P - 1, P, P + 1, 2 * P, 2 * P + 1, 4 * P - 1, 4 * P, 5 * P + 3}) {
        const Laid<T> right(b.view().middle_cols(0, n), static_cast<int>(n + k) % 4);
        const Vector<T> panels = packed<T, A>(right.operand);
        for (Index m = 0; m <= most_m; m += sanitized ? 3 : 1, ++layout) {
          const Laid<T> left(a.view().middle_rows(0, m), layout % 4);
          const auto check = [&](Padded<T>& c) {
            intact = intact && c.intact();
            for (Index i = 0; i < m; ++i)
              for (Index j = 0; j < n; ++j) {
                const double error = std::abs(static_cast<double>(c(i, j)) - exact(i, j));
                if (!(error <= roundings<T>(k) * mass(i, j))) worst = std::max(worst, std::isnan(error) ? 1e300 : error);
              }
          };
          Padded<T> c(m, n, T(99));
          simd::gemm_packed<T, A>(left.operand, panels.data(), n, {}, c, ws);
          check(c);
          if (m < 10 || m == 25) {  // packs B itself, or takes dot products: all layouts of both operands
            const Laid<T> other(b.view().middle_cols(0, n), layout / 4 % 4);
            Padded<T> d(m, n, T(99));
            simd::gemm<T, A>(left.operand, other.operand, {}, d, ws);
            check(d);
          }
        }
      }
      CAPTURE(k);
      CHECK(worst == 0);
      CHECK(intact);
    });
  }
}

TEMPLATE_TEST_CASE("gemm accumulates, adds a bias, activates", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(22);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<T, A>;
    for (const Index k : {0, 3, 1025}) {
      for (const Index m : {1, 5, 9, 25, 195}) {
        for (const Index n : {Index{1}, P + 1, 4 * P + 5}) {
          if ((m == 195 && k > 3) || (sanitized && m == 25)) continue;
          const Matrix<T> a = random_matrix<T>(m, k, random), weight = random_matrix<T>(n, k, random),
                          start = random_matrix<T>(m, n, random);
          const Vector<T> bias = random_vector<T>(n, random);
          const simd::Operand<T> b = simd::transposed(weight.view());
          const Vector<T> panels = packed<T, A>(b);
          double worst = 0;
          for (int mode = 0; mode < 16; ++mode) {
            const auto f = static_cast<Activation>(mode % 4);
            const bool with_bias = mode / 4 % 2 != 0, accumulate = mode / 8 != 0;
            const simd::Epilogue<T> e{with_bias ? bias.data() : nullptr, f, accumulate};
            Padded<T> c(start.view()), d(start.view());
            simd::gemm<T, A>(simd::plain(a.view()), b, e, c, ws);
            simd::gemm_packed<T, A>(simd::plain(a.view()), panels.data(), n, e, d, ws);
            for (Index i = 0; i < m; ++i)
              for (Index j = 0; j < n; ++j) {
                double z = (accumulate ? static_cast<double>(start(i, j)) : 0) + (with_bias ? static_cast<double>(bias[j]) : 0);
                for (Index p = 0; p < k; ++p) z += static_cast<double>(a(i, p)) * static_cast<double>(weight(j, p));
                const double y = activated(f, z);
                worst = std::max({worst, std::abs(static_cast<double>(c(i, j)) - y), std::abs(static_cast<double>(d(i, j)) - y)});
              }
            REQUIRE((c.intact() && d.intact()));
          }
          CAPTURE(m, n, k);
          REQUIRE(worst <= 200 * std::sqrt(static_cast<double>(k + 1)) * static_cast<double>(std::numeric_limits<T>::epsilon()));
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("gemm_packed: a row's bits depend neither on the number of rows nor on its place", "[simd][gemm]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(23);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<T, A>;
    const Index rows = 200;
    for (const Index k : {7, 520}) {
      for (const Index n : {P + 5, 6 * P + 1, 8 * P}) {
        const Matrix<T> a = random_matrix<T>(rows, k, random), b = random_matrix<T>(k, n, random);
        const Vector<T> bias = random_vector<T>(n, random), panels = packed<T, A>(simd::plain(b.view()));
        const simd::Epilogue<T> e{bias.data(), Activation::silu, false};
        Matrix<T> all(rows, n), some(rows, n);
        simd::gemm_packed<T, A>(simd::plain(a.view()), panels.data(), n, e, all, ws);
        for (Index m = 1; m <= 40; m += m < 14 ? 1 : 5) {
          for (const Index first : {m % 13, Index{197} - m}) {
            const MatrixView<T> c = some.view().middle_rows(0, m);
            simd::gemm_packed<T, A>(simd::plain(a.view().middle_rows(first, m)), panels.data(), n, e, c, ws);
            CAPTURE(k, n, m, first);
            REQUIRE(same_bits(c, all.view().middle_rows(first, m)));
            // Neither on whether its elements are apart in memory, nor, for up to 12 rows, on whether B was packed.
            const Laid<T> apart(a.view().middle_rows(first, m), 3);
            simd::gemm_packed<T, A>(apart.operand, panels.data(), n, e, c, ws);
            REQUIRE(same_bits(c, all.view().middle_rows(first, m)));
            if (m > 12) continue;
            simd::gemm<T, A>(simd::plain(a.view().middle_rows(first, m)), simd::plain(b.view()), e, c, ws);
            REQUIRE(same_bits(c, all.view().middle_rows(first, m)));
          }
        }
      }
    }
  });
}

TEST_CASE("a row's bits are the same where the weights are too large for a cache", "[simd][gemm]") {
  using T = float;
  Random random = random_stream(27);
  Workspace ws;
  const Index k = 1030, n = 1100;
  REQUIRE(k * n * Index{sizeof(T)} > Index{1} << 22);  // one stream, where there is AVX-512
  const Matrix<T> a = random_matrix<T>(14, k, random), b = random_matrix<T>(k, n, random);
  const Vector<T> panels = packed<T, simd::DefaultArch>(simd::plain(b.view()));
  Matrix<T> all(14, n), some(14, n), small(14, 40);
  simd::gemm_packed<T>(simd::plain(a.view()), panels.data(), n, {}, all, ws);
  for (const Index m : {1, 2, 3, 5, 8}) {
    const MatrixView<T> c = some.view().middle_rows(0, m);
    simd::gemm_packed<T>(simd::plain(a.view().middle_rows(4, m)), panels.data(), n, {}, c, ws);
    CAPTURE(m);
    REQUIRE(same_bits(c, all.view().middle_rows(4, m)));
  }
  // A few of its columns alone, which are small enough: the same again.
  const Vector<T> few = packed<T, simd::DefaultArch>(simd::plain(b.view().middle_cols(0, 40)));
  simd::gemm_packed<T>(simd::plain(a.view()), few.data(), 40, {}, small, ws);
  CHECK(same_bits(small.view(), all.view().middle_cols(0, 40)));
}

TEMPLATE_TEST_CASE("gemm has the same bits on one to four threads", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(24);
  const Index shapes[][3] = {{1, 70, 1000}, {12, 9, 700}, {30, 600, 333}, {500, 20, 40}, {400, 33, 700}, {200, 40, 3}};
  for (const auto& [m, k, n] : shapes) {
    const Matrix<T> a = random_matrix<T>(m, k, random), b = random_matrix<T>(k, n, random),
                    start = random_matrix<T>(m, n, random);
    const simd::Epilogue<T> e{nullptr, Activation::sigmoid, true};
    Matrix<T> serial = start;
    Workspace ws;
    const Matrix<T> weight = random_matrix<T>(n, k, random);
    Matrix<T> dots = start;
    simd::gemm<T>(simd::plain(a.view()), simd::plain(b.view()), e, serial, ws);
    simd::gemm<T>(simd::plain(a.view()), simd::transposed(weight.view()), e, dots, ws);
    for (int workers = 1; workers <= 4; ++workers) {
      Threads threads{workers};
      Workspace parallel(make_executor(threads, workers));
      Matrix<T> c = start, d = start;
      simd::gemm<T>(simd::plain(a.view()), simd::plain(b.view()), e, c, parallel);
      simd::gemm<T>(simd::plain(a.view()), simd::transposed(weight.view()), e, d, parallel);
      CAPTURE(m, n, k, workers);
      CHECK(same_bits(c.view(), serial.view()));
      CHECK(same_bits(d.view(), dots.view()));
    }
  }
}

TEST_CASE("a NaN or infinity stays in its row", "[simd][gemm]") {
  using T = float;
  Random random = random_stream(25);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<T, A>;
    for (const Index m : {1, 3, 8, 12, 19, 26}) {
      const Index k = 514, n = 2 * P + 3;
      Matrix<T> a = random_matrix<T>(m, k, random);
      const Matrix<T> weight = random_matrix<T>(n, k, random);
      const Vector<T> panels = packed<T, A>(simd::transposed(weight.view()));
      Matrix<T> clean(m, n), clean_packed(m, n), c(m, n);
      simd::gemm<T, A>(simd::plain(a.view()), simd::transposed(weight.view()), {}, clean, ws);
      simd::gemm_packed<T, A>(simd::plain(a.view()), panels.data(), n, {}, clean_packed, ws);
      for (const T poison : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
        for (Index bad = 0; bad < m; bad += 1 + m / 9) {
          const T before = a(bad, 513);
          a(bad, 513) = poison;
          for (const bool pack : {false, true}) {
            if (pack)
              simd::gemm_packed<T, A>(simd::plain(a.view()), panels.data(), n, {}, c, ws);
            else
              simd::gemm<T, A>(simd::plain(a.view()), simd::transposed(weight.view()), {}, c, ws);
            const Matrix<T>& expected = pack ? clean_packed : clean;
            bool contained = true;
            for (Index i = 0; i < m; ++i)
              for (Index j = 0; j < n; ++j)
                contained = contained && (i == bad ? !std::isfinite(c(i, j)) : c(i, j) == expected(i, j));
            CAPTURE(m, bad, pack, poison);
            REQUIRE(contained);
          }
          a(bad, 513) = before;
        }
      }
    }
  });
}

TEST_CASE("gemm allocates nothing after the first call", "[simd][gemm]") {
  Random random = random_stream(26);
  const Matrix<float> a = random_matrix<float>(33, 70, random), b = random_matrix<float>(70, 45, random);
  Matrix<float> c(33, 45);
  Workspace ws;
  simd::gemm<float>(simd::plain(a.view()), simd::plain(b.view()), {}, c, ws);
  const AllocationCounter counter;
  for (const Index m : {33, 1, 7})
    simd::gemm<float>(simd::plain(a.view().middle_rows(0, m)), simd::plain(b.view()), {}, c.view().middle_rows(0, m), ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}
