// Oracle: the product in double of A with the float weights, within the bounds of the header; and with the stored weights,
// decoded one by one, within gemm's own roundings.
#include <recops/simd/gemm_quantized.hpp>

#include <cstring>
#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class S>
struct Stored {
  Vector<float> memory, scale;
  S* panels() { return reinterpret_cast<S*>(memory.data()); }
  simd::Epilogue<float> epilogue() const { return {.column_scale = scale.empty() ? nullptr : scale.data()}; }
};

template <class S, class A = simd::DefaultArch>
Stored<S> stored(simd::Operand<float> b) {
  Stored<S> out;
  out.memory.resize(simd::packed_size<float, A>(b.rows, b.cols));  // floats: more than enough, and aligned
  if constexpr (std::is_same_v<S, std::int8_t>) {
    out.scale.resize(b.cols);
    simd::pack<float, A>(b, out.panels(), out.scale.data());
  } else {
    simd::pack<float, A>(b, out.panels());
  }
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("gemm with stored weights stays within its bound", "[simd][gemm][quantized]", BFloat16, std::int8_t) {
  using S = TestType;
  constexpr bool coded = std::is_same_v<S, std::int8_t>;
  Random random = random_stream(220);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<float, A>;
    for (const Index k : {0, 1, 37, 512, 520}) {
      for (const Index n : {Index{1}, P - 1, P, 2 * P + 3, 5 * P}) {
        Matrix<float> a = random_matrix<float>(26, k, random), weight = random_matrix<float>(n, k, random);
        for (Index j = 0; j < n; ++j)
          for (Index p = 0; p < k; ++p) weight(j, p) *= std::exp2(static_cast<float>(j % 40) - 20.0f);
        auto b = stored<S, A>(simd::transposed(weight.view()));
        Matrix<double> exact(26, n, 0.0), bound(26, n, 0.0), kept(26, n, 0.0), mass(26, n, 0.0);
        for (Index j = 0; j < n; ++j) {
          double most = 0;
          for (Index p = 0; p < k; ++p) most = std::max(most, std::abs(static_cast<double>(weight(j, p))));
          for (Index i = 0; i < 26; ++i)
            for (Index p = 0; p < k; ++p) {
              const double x = static_cast<double>(a(i, p)), w = static_cast<double>(weight(j, p));
              double held;
              if constexpr (coded) {
                const double s = static_cast<double>(b.scale[j]);
                held = s * std::nearbyint(static_cast<double>(weight(j, p) / b.scale[j]));
                bound(i, j) += (most / 254 * (1 + 0x1p-16) + 0x1p-142) * std::abs(x);
              } else {
                held = static_cast<double>(static_cast<float>(BFloat16(weight(j, p))));
                bound(i, j) += 0x1p-8 * std::abs(x * w);
              }
              exact(i, j) += x * w;
              kept(i, j) += x * held;
              mass(i, j) += std::abs(x * held);
            }
        }
        bool close = true, faithful = true, intact = true;
        for (const Index m : {1, 2, 3, 4, 5, 8, 12, 26}) {
          Padded<float> c(m, n, 7.0f);
          simd::gemm_packed<float, A>(simd::plain(a.view().middle_rows(0, m)), b.panels(), n, b.epilogue(), c, ws);
          intact = intact && c.intact();
          for (Index i = 0; i < m; ++i)
            for (Index j = 0; j < n; ++j) {
              const double rounding = static_cast<double>(k + 4) * 0x1p-24 * mass(i, j);
              faithful = faithful && std::abs(static_cast<double>(c(i, j)) - kept(i, j)) <= rounding;
              close = close && std::abs(static_cast<double>(c(i, j)) - exact(i, j)) <= bound(i, j) + rounding;
            }
        }
        CAPTURE(k, n);
        REQUIRE(faithful);
        REQUIRE(close);
        REQUIRE(intact);
      }
    }
  });
}

TEMPLATE_TEST_CASE("stored weights: a row's bits depend on neither m, nor its place, nor the threads", "[simd][gemm][quantized]",
                   BFloat16, std::int8_t) {
  Random random = random_stream(221);
  const Index k = 700, n = 600;
  const Matrix<float> a = random_matrix<float>(31, k, random), weight = random_matrix<float>(n, k, random);
  auto b = stored<TestType>(simd::transposed(weight.view()));
  Matrix<float> all(31, n), some(31, n);
  Workspace ws;
  simd::gemm_packed<float>(simd::plain(a.view()), b.panels(), n, b.epilogue(), all, ws);
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  for (const Index m : {1, 2, 5, 8, 13, 31}) {
    const Index first = (31 - m) / 2;
    for (Workspace* w : {&ws, &parallel}) {
      simd::gemm_packed<float>(simd::plain(a.view().middle_rows(first, m)), b.panels(), n, b.epilogue(),
                               some.view().middle_rows(0, m), *w);
      for (Index i = 0; i < m; ++i)
        REQUIRE(std::memcmp(some.view().row(i), all.view().row(first + i), static_cast<std::size_t>(n) * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("int8 weights: scales, codes and what is not a number", "[simd][gemm][quantized]") {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float tiny = std::numeric_limits<float>::denorm_min(), huge = std::numeric_limits<float>::max();
  const Matrix<float> b{{1.0f, 0.0f, nan, 1.0f, tiny, huge, -2.5f, 130 * tiny},
                        {-127.0f, 0.0f, 1.0f, infinity, -tiny, -huge, 127.0f, 200 * tiny},
                        {0.5f, -0.0f, nan, 2.0f, 0.0f, 0.0f, -0.5f, -200 * tiny},
                        {1.5f, 0.0f, infinity, nan, tiny, huge / 4, 2.5f, tiny}};
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index P = simd::panel_cols<float, A>;
    std::vector<std::int8_t> codes(static_cast<std::size_t>(simd::packed_size<float, A>(4, 8)), std::int8_t{99});
    float scale[8];
    simd::pack<float, A>(simd::plain(b.view()), codes.data(), scale);
    const auto code = [&](Index k, Index j) { return int{codes[static_cast<std::size_t>(j / P * P * 4 + k * P + j % P)]}; };
    const auto column = [&](Index j) { return std::vector<int>{code(0, j), code(1, j), code(2, j), code(3, j)}; };
    CHECK(scale[0] == 1.0f);
    CHECK(column(0) == std::vector<int>{1, -127, 0, 2});  // halves to even
    CHECK(scale[1] == 0.0f);
    CHECK(column(1) == std::vector<int>{0, 0, 0, 0});
    CHECK(std::isnan(scale[2]));
    CHECK(std::isnan(scale[3]));
    CHECK(scale[4] == 0.0f);  // max / 127 is nothing
    CHECK(column(5) == std::vector<int>{127, -127, 0, 32});
    CHECK(column(6) == std::vector<int>{-2, 127, 0, 2});
    CHECK(column(7) == std::vector<int>{65, 100, -100, 0});  // scale is two denormals: 200 / 127 rounded
    Matrix<float> c(3, 8);
    Workspace ws;
    const Matrix<float> a(3, 4, 1.0f);
    simd::gemm_packed<float, A>(simd::plain(a.view()), codes.data(), 8, {.column_scale = scale}, c, ws);
    for (Index i = 0; i < 3; ++i)
      for (Index j = 0; j < 8; ++j) CHECK(std::isnan(c(i, j)) == (j == 2 || j == 3));
  });
}

TEST_CASE("int8 weights halfway between two codes stay within the bound", "[simd][gemm][quantized]") {
  // Found by search: the quotient, rounded to float, falls to the far side, and costs 2^-17 of the bound.
  const Matrix<float> b{{0x1.41c21p+0f, 0x1.7c357ap+0f, 0x1.dc7d14p+0f}, {0x1.ca919p-1f, 0x1.08f2ep+0f, 0x1.fa80ecp-1f}};
  const Matrix<float> a{{0.0f, 1.0f}};
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<std::int8_t> codes(static_cast<std::size_t>(simd::packed_size<float, A>(2, 3)));
    float scale[3];
    simd::pack<float, A>(simd::plain(b.view()), codes.data(), scale);
    Matrix<float> c(1, 3);
    Workspace ws;
    simd::gemm_packed<float, A>(simd::plain(a.view()), codes.data(), 3, {.column_scale = scale}, c, ws);
    for (Index j = 0; j < 3; ++j) {
      const double error = std::abs(static_cast<double>(c(0, j)) - static_cast<double>(b(1, j)));
      const double most = static_cast<double>(b(0, j));
      CHECK(error <= most / 254 * (1 + 0x1p-16) + 0x1p-24 * most);
      CHECK(error >= most / 254 * (1 - 0x1p-14));
    }
  });
}

TEST_CASE("bfloat16 weights keep NaN and infinity in their column", "[simd][gemm][quantized]") {
  Random random = random_stream(223);
  Matrix<float> weight = random_matrix<float>(40, 9, random);
  weight(3, 4) = std::numeric_limits<float>::quiet_NaN();
  weight(17, 0) = std::numeric_limits<float>::infinity();
  const Matrix<float> a = random_matrix<float>(5, 9, random);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    auto b = stored<BFloat16, A>(simd::transposed(weight.view()));
    Matrix<float> c(5, 40);
    Workspace ws;
    simd::gemm_packed<float, A>(simd::plain(a.view()), b.panels(), 40, {}, c, ws);
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 40; ++j) CHECK(std::isfinite(c(i, j)) == (j != 3 && j != 17));
  });
}
