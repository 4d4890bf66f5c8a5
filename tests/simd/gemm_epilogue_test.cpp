// Oracle: the formula of the header, element by element in double. Tolerance: eight roundings of the absolute terms, twice that
// behind an activation.
#include <recops/simd/gemm.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

double activated(Activation f, double x) {
  if (f == Activation::relu) return x > 0 ? x : 0;
  if (f == Activation::sigmoid) return 1 / (1 + std::exp(-x));
  if (f == Activation::silu) return x / (1 + std::exp(-x));
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("every combination of scales, bias, accumulation, activation and residual", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(210);
  Workspace ws;
  const double unit = static_cast<double>(std::numeric_limits<T>::epsilon());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<T, A>;
    const Index shapes[][3] = {{1, 5, P}, {2, 3, 3 * P + 1}, {13, 515, P + 2}, {7, 0, 3}, {195, 2, 5}};
    for (const auto& [m, k, n] : shapes) {
      const Matrix<T> a = random_matrix<T>(m, k, random), b = random_matrix<T>(k, n, random),
                      start = random_matrix<T>(m, n, random), residual = random_matrix<T>(m, n + 3, random);
      const Vector<T> bias = random_vector<T>(n, random), column = random_vector<T>(n, random), row = random_vector<T>(m, random);
      Vector<T> panels(simd::packed_size<T, A>(k, n));
      simd::pack<T, A>(simd::plain(b.view()), panels.data());
      double worst = 0;
      for (int mode = 0; mode < 128; ++mode) {
        simd::Epilogue<T> e;
        if (mode & 1) e.bias = bias.data();
        if (mode & 2) e.column_scale = column.data();
        if (mode & 4) e.row_scale = row.data();
        e.accumulate = (mode & 8) != 0;
        if (mode & 16) {
          e.residual = residual.data();
          e.residual_stride = residual.view().stride();
        }
        e.activation = static_cast<Activation>(mode / 32);
        Padded<T> packed(start.view()), any(start.view());
        simd::gemm_packed<T, A>(simd::plain(a.view()), panels.data(), n, e, packed, ws);
        simd::gemm<T, A>(simd::plain(a.view()), simd::plain(b.view()), e, any, ws);
        REQUIRE((packed.intact() && any.intact()));
        for (Index i = 0; i < m; ++i)
          for (Index j = 0; j < n; ++j) {
            double sum = 0, mass = 0;
            for (Index p = 0; p < k; ++p) {
              const double product = static_cast<double>(a(i, p)) * static_cast<double>(b(p, j));
              sum += product;
              mass += std::abs(product);
            }
            const double scale =
                (e.row_scale ? static_cast<double>(row[i]) : 1) * (e.column_scale ? static_cast<double>(column[j]) : 1);
            const double before = e.accumulate ? static_cast<double>(start(i, j)) : 0,
                         added = e.bias ? static_cast<double>(bias[j]) : 0;
            const double last = e.residual ? static_cast<double>(residual(i, j)) : 0;
            const double y = activated(e.activation, scale * sum + before + added) + last;
            const double room = unit * ((static_cast<double>(k) + 8) * std::abs(scale) * mass +
                                        16 * (std::abs(before) + std::abs(added) + std::abs(last) + std::abs(y) + 1));
            for (const T got : {packed(i, j), any(i, j)}) worst = std::max(worst, std::abs(static_cast<double>(got) - y) / room);
          }
      }
      CAPTURE(m, k, n);
      CHECK(worst <= 1);
    }
  });
}

TEMPLATE_TEST_CASE("without an activation, accumulating into C is adding it as a residual", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(211);
  Workspace ws;
  for (const Index k : {3, 512, 700}) {
    const Matrix<T> x = random_matrix<T>(9, k, random), w = random_matrix<T>(k, 37, random),
                    before = random_matrix<T>(9, 37, random);
    Matrix<T> apart(9, 37), h = before;
    simd::gemm<T>(simd::plain(x.view()), simd::plain(w.view()), {.residual = before.data(), .residual_stride = 37}, apart, ws);
    simd::gemm<T>(simd::plain(x.view()), simd::plain(w.view()), {.accumulate = true}, h, ws);
    CHECK(max_difference(h.view(), apart.view()) <= 200 * static_cast<double>(std::numeric_limits<T>::epsilon()));
  }
}
