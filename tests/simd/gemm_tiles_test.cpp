// Oracle: fma in a loop over k, one element at a time: a tile promises exactly that order (where there is an fma).
#include <recops/simd/gemm_tiles.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("every tile sums k in order", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(260);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<T, A>, most = simd::detail::tile_rows<A>;
    constexpr bool fused = std::is_base_of_v<xsimd::avx512f, A> || std::is_same_v<A, xsimd::fma3<xsimd::avx2>>;
    const Index k = 37;
    const Matrix<T> a = random_matrix<T>(most, k, random), b = random_matrix<T>(k, 4 * P, random);
    Vector<T> panels(simd::packed_size<T, A>(k, 4 * P));
    simd::pack<T, A>(simd::plain(b.view()), panels.data());
    for (Index rows = 1; rows <= most; ++rows) {
      for (const bool wide : {false, true}) {
        const Index covers =
            wide ? simd::detail::tile_panels<A>(static_cast<int>(rows)) : simd::detail::narrow_panels(static_cast<int>(rows));
        for (Index there = 1; there <= covers; ++there) {
          Matrix<T> sums(rows, covers * P + 1, T(5));
          const simd::detail::TileInput<T, T> in{.k = k,
                                                 .a = a.data(),
                                                 .row_stride = k,
                                                 .col_stride = 1,
                                                 .b = panels.data(),
                                                 .k_step = P,
                                                 .panel_stride = P * k,
                                                 .panels = there};
          simd::detail::tile_for<T, A, T>(rows, wide)(in, sums.data(), covers * P + 1);
          bool right = true;
          for (Index i = 0; i < rows; ++i) {
            for (Index j = 0; j < covers * P; ++j) {
              const Index from = j / P < there ? j : (there - 1) * P + j % P;  // the last panel, again
              T sum = 0;
              for (Index p = 0; p < k; ++p) sum = fused ? std::fma(a(i, p), b(p, from), sum) : sum + a(i, p) * b(p, from);
              const double off = std::abs(static_cast<double>(sums(i, j)) - static_cast<double>(sum));
              right = right && (fused ? off == 0 : off <= 100 * static_cast<double>(std::numeric_limits<T>::epsilon()));
            }
            right = right && sums(i, covers * P) == T(5);
          }
          // What is done in registers has the bits of the same done afterwards.
          const Vector<T> bias = random_vector<T>(covers * P, random);
          simd::detail::TileInput<T, T> all = in;
          all.add = true;
          all.bias = bias.data();
          all.relu = true;
          Matrix<T> done(rows, covers * P + 1, T(-0.5));
          simd::detail::tile_for<T, A, T>(rows, wide)(all, done.data(), covers * P + 1);
          for (Index i = 0; i < rows; ++i)
            for (Index j = 0; j <= covers * P; ++j)
              right = right && done(i, j) == (j == covers * P ? T(-0.5) : std::max(sums(i, j) + T(-0.5) + bias[j], T(0)));
          CAPTURE(rows, wide, there);
          REQUIRE(right);
        }
      }
    }
  });
}

TEST_CASE("rows are shared out among tiles: all of them, none too tall", "[simd][gemm]") {
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index most = simd::detail::tile_rows<A>;
    for (Index m = 1; m < 200; ++m) {
      const Index tiles = (m + most - 1) / most;
      Index row = 0, lowest = most;
      for (Index t = 0; t < tiles; ++t) {
        const Index rows = simd::detail::next_rows<A>(m - row, tiles - t);
        CAPTURE(m, t, rows);
        REQUIRE((rows >= 1 && rows <= most));
        lowest = std::min(lowest, rows);
        row += rows;
      }
      REQUIRE(row == m);
      CHECK(simd::detail::lowest_tile<A>(m, tiles) == lowest);
    }
  });
}
