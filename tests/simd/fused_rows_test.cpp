// Oracles: products in double; silu in double.
#include <recops/simd/fused_rows.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T, class A>
struct Keep {
  T* out;
  Index stride;
  void operator()(Index row, Index col, simd::Batch<T, A> v) const { v.store_unaligned(out + row * stride + col); }
};

template <class T, class A, class S>
double worst_product(Index rows, Index k, Index n, Random& random) {
  constexpr Index P = simd::panel_cols<T, A>;
  const Index padded = (n + P - 1) / P * P;
  const Matrix<T> a = random_matrix<T>(rows, k + 3, random), w = random_matrix<T>(n, k, random);
  Vector<S> panels(simd::packed_size<T, A>(k, n));
  simd::pack_fused<T, A>(w.view(), panels.data());
  Matrix<T> c(rows, padded, T(-99));
  simd::fused_rows<T, A>(a.data(), a.cols(), rows, k, panels.data(), n, Keep<T, A>{c.data(), padded});
  double worst = 0;
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < padded; ++j) {
      double sum = 0, size = 1e-30;
      for (Index p = 0; p < k && j < n; ++p) {
        const double product = static_cast<double>(a(i, p)) *
                               static_cast<double>(std::is_same_v<S, T> ? w(j, p) : T(float(BFloat16(float(w(j, p))))));
        sum += product;
        size += std::abs(product);
      }
      worst = std::max(worst, std::abs(static_cast<double>(c(i, j)) - sum) / size);
    }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("fused rows are products, for every height, width and depth", "[simd][fused]", float, double) {
  using T = TestType;
  Random random = random_stream(172);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    double worst = 0, worst_half = 0;
    for (const Index rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 25, 31})
      for (const Index n : {1, 16, 33, 70, 129})
        for (const Index k : {0, 1, 7, 40}) {
          worst = std::max(worst, worst_product<T, A, T>(rows, k, n, random));
          if constexpr (std::is_same_v<T, float>)
            worst_half = std::max(worst_half, worst_product<T, A, BFloat16>(rows, k, n, random));
        }
    worst = std::max(worst, worst_product<T, A, T>(3, 1030, 20, random));  // beyond two blocks of pack
    CHECK(worst < (std::is_same_v<T, float> ? 3e-5 : 1e-13));
    CHECK(worst_half < 5e-6);
  });
}

TEMPLATE_TEST_CASE("a lone row activated on the way has the bits of one activated before", "[simd][fused]", float, double) {
  using T = TestType;
  Random random = random_stream(173);
  const auto check = [&]<class S, class A>(S, A) {
    constexpr Index W = simd::lanes<T, A>, P = simd::panel_cols<T, A>;
    double worst = 0;
    for (const Index n : {0, 1, 16, 33, 70, 129})
      for (const Index k : {0, 1, 7, 8, 9, 16, 40, 61}) {
        const Index padded = (n + P - 1) / P * P, vectors = (k + W - 1) / W * W;
        const Matrix<T> w = random_matrix<T>(n, k, random);
        Matrix<T> a = random_matrix<T>(1, vectors + W, random), b = a, c(1, padded, T(-99)), d(1, padded, T(-99));
        Vector<S> panels(simd::packed_size<T, A>(k, n));
        simd::pack_fused<T, A>(w.view(), panels.data());
        if (n > 0)
          for (Index p = 0; p < vectors; p += W)
            simd::quick_silu(simd::Batch<T, A>::load_aligned(b.data() + p)).store_aligned(b.data() + p);
        simd::fused_rows<T, A>(b.data(), b.cols(), 1, k, panels.data(), n, Keep<T, A>{c.data(), padded});
        simd::fused_silu_row<T, A>(a.data(), k, panels.data(), n, Keep<T, A>{d.data(), padded});
        worst = std::max({worst, max_difference(a.view(), b.view()), max_difference(c.view(), d.view())});
      }
    CHECK(worst == 0);
  };
  for_each_architecture([&](auto arch) {
    check(T(), arch);
    if constexpr (std::is_same_v<T, float>) check(BFloat16(), arch);
  });
}

TEST_CASE("quick_silu keeps to its bound, and to its ends", "[simd][fused]") {
  const float infinity = std::numeric_limits<float>::infinity();
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    using B = simd::Batch<float, A>;
    const auto of = [](float x) {
      alignas(64) float y[B::size];
      simd::quick_silu(B(x)).store_aligned(y);
      return y[0];
    };
    double worst = 0;
    for (int i = -120000; i <= 120000; ++i) {
      const float x = static_cast<float>(i) * 1e-3f;
      const double exact = static_cast<double>(x) / (1 + std::exp(-static_cast<double>(x)));
      worst = std::max(worst, std::abs(static_cast<double>(of(x)) - exact) / (4e-7 * std::abs(exact) + 2e-7));
    }
    CHECK(worst <= 1);
    CHECK(of(0) == 0);
    CHECK(of(infinity) == infinity);
    CHECK(std::abs(of(-infinity)) < 1e-30f);
    CHECK(std::isnan(of(std::numeric_limits<float>::quiet_NaN())));
  });
}
