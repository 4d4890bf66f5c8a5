// Oracle: scan_top_k of each query alone, which certified_top_k_test.cpp holds against std::stable_sort; the same bits.
#include <recops/simd/batched_top_k.hpp>

#include <cmath>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
bool same_bits(MatrixView<const T> a, MatrixView<const T> b) {
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j)
      if (std::isnan(a(i, j)) ? !std::isnan(b(i, j)) : a(i, j) != b(i, j)) return false;
  return true;
}

}  // namespace

TEST_CASE("several queries get what each gets alone, on every instruction set", "[simd][batched_top_k]") {
  Random random = random_stream(51);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    Workspace ws;
    for (const Index rows : {0, 5, 700, 2500}) {
      const Index cols = rows == 700 ? 13 : 32, n = rows == 5 ? 1 : 3;
      const Matrix<float> x = random_matrix<float>(rows, cols, random), q = random_matrix<float>(n, cols, random);
      Padded<float> padded(x.view());
      QuantizedRows codes;
      codes.assign(x.view());
      Matrix<BFloat16> bfloats(rows, cols);
      simd::convert(x.data(), bfloats.data(), rows * cols);
      Vector<float> norms(rows);
      simd::row_norms<float>(x, norms);
      const Index wanted[] = {7, 0, 40};
      const VectorView<const Index> counts(wanted, n);
      Matrix<std::int32_t> indices(n, 50), want_indices(n, 50, -7);
      Matrix<float> scores(n, 50), want_scores(n, 50, -7.0f);
      for (Index i = 0; i < n; ++i)
        simd::scan_top_k<float, A>(VectorView<const float>(q.row(i), cols), x,
                                   VectorView<std::int32_t>(want_indices.row(i), counts[i]),
                                   VectorView<float>(want_scores.row(i), counts[i]), ws);
      const auto check = [&](auto&& select) {
        indices.fill(-7), scores.fill(-7.0f);
        select();
        CAPTURE(rows);
        CHECK(max_difference(indices.view(), want_indices.view()) == 0);
        CHECK(same_bits<float>(scores, want_scores));
        CHECK(count_allocations(select) == 0);
      };
      check([&] { simd::scan_top_k<float, A>(q.view(), x, counts, indices, scores, ws); });
      check([&] { simd::scan_top_k<float, A>(q.view(), MatrixView<const float>(padded), counts, indices, scores, ws); });
      check([&] { simd::certified_top_k<A>(q.view(), x, codes, counts, indices, scores, ws); });
      check([&] {
        simd::certified_top_k<A>(q.view(), x, MatrixView<const BFloat16>(bfloats), norms, counts, indices, scores, ws);
      });
    }
  });
}
