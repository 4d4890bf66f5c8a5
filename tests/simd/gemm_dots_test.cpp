// Oracle: inner products in double. Error bound: a lane sums at most 64 products, lanes and blocks are added in trees and in
// turn.
#include <recops/simd/gemm_dots.hpp>

#include <cstring>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("tiles of inner products: every size, bits that do not depend on the tile", "[simd][gemm]", float, double) {
  using T = TestType;
  Random random = random_stream(240);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    for (const Index k : {Index{1}, W - 1, W, 2 * W + 3, 64 * W - 1, 64 * W, 200 * W + 5}) {
      const Matrix<T> a = random_matrix<T>(9, k + 2, random), b = random_matrix<T>(21, k + 1, random);
      const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
      Matrix<T> alone(9, 21);
      bool close = true;
      for (Index i = 0; i < 9; ++i)
        for (Index j = 0; j < 21; ++j) {
          simd::detail::dot_tiles<T, A, 1, 8>(a.view().row(i), k + 2, 1, b.view().row(j), k + 1, 1, k, &alone(i, j), 21);
          double sum = 0, mass = 0;
          for (Index p = 0; p < k; ++p) {
            const double product = static_cast<double>(a(i, p)) * static_cast<double>(b(j, p));
            sum += product;
            mass += std::abs(product);
          }
          close = close && std::abs(static_cast<double>(alone(i, j)) - sum) <= (64 + 4 + 4) * unit * mass;
        }
      CAPTURE(k);
      REQUIRE(close);
      for (const Index m : {0, 1, 2, 4, 7, 9})
        for (const Index n : {0, 1, 3, 4, 8, 13, 21}) {
          Padded<T> four(m, n), two(m, n);
          simd::detail::dot_tiles<T, A, 4, 4>(a.data(), k + 2, m, b.data(), k + 1, n, k, four.view().data(),
                                              four.view().stride());
          simd::detail::dot_tiles<T, A, 2, 4>(a.data(), k + 2, m, b.data(), k + 1, n, k, two.view().data(), two.view().stride());
          bool same = four.intact() && two.intact();
          for (Index i = 0; i < m; ++i)
            for (Index j = 0; j < n; ++j) same = same && four(i, j) == alone(i, j) && two(i, j) == alone(i, j);
          CAPTURE(m, n);
          REQUIRE(same);
        }
    }
  });
}
