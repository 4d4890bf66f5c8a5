// Oracle: the layout as the header words it, element by element.
#include <recops/simd/gemm_pack.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("pack: blocks of k, panels of two vectors, zeros behind the last column", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(250);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<T, A>;
    for (const Index k : {0, 1, 3, 511, 512, 513, 1030}) {
      for (const Index n : {Index{0}, Index{1}, P - 1, P, P + 1, 3 * P}) {
        const Matrix<T> wide = random_matrix<T>(k, n + 2, random), tall = random_matrix<T>(n, k + 3, random);
        const Matrix<T> sparse = random_matrix<T>(2 * k, 3 * n, random);
        const simd::Operand<T> layouts[] = {simd::plain(wide.view().middle_cols(0, n)),
                                            simd::transposed(tall.view().middle_cols(0, k)),
                                            {sparse.data(), k, n, 6 * n, 3}};
        for (const simd::Operand<T>& b : layouts) {
          Vector<T> panels(simd::packed_size<T, A>(k, n), T(77));
          REQUIRE(panels.size() == (n + P - 1) / P * P * k);
          simd::pack<T, A>(b, panels.data());
          bool right = true;
          Index at = 0;
          for (Index p0 = 0; p0 < k; p0 += 512)
            for (Index j0 = 0; j0 < n; j0 += P)
              for (Index p = p0; p < std::min<Index>(k, p0 + 512); ++p)
                for (Index j = j0; j < j0 + P; ++j, ++at)
                  right = right && panels[at] == (j < n ? b.data[p * b.row_stride + j * b.col_stride] : T(0));
          CAPTURE(k, n);
          REQUIRE(at == panels.size());
          REQUIRE(right);
        }
      }
    }
  });
}
