// Oracles: Box-Muller in long double on the same uniforms, and in double by numpy; a sample's moments by numpy and its
// Kolmogorov-Smirnov statistic by scipy.
#include <recops/simd/normal.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr long double pi = 3.14159265358979323846264338327950288L;

// The turn is reduced before pi comes in: the cosine keeps its digits where it vanishes.
void box_muller(long double u0, long double u1, std::vector<long double>& z) {
  const long double r = std::sqrt(-2 * std::log(u0)), half = std::floor(2 * u1 + 0.5L), x = 2 * u1 - half;
  const long double sign = std::fmod(half, 2.0L) == 0 ? 1 : -1;
  z.push_back(r * sign * std::sin(pi * (0.5L - std::abs(x))));
  z.push_back(r * sign * std::sin(pi * x));
}

template <class T>
std::vector<long double> reference(const RandomRow& at, Index n) {
  std::vector<long double> z;
  for (std::uint32_t b = 0; static_cast<Index>(z.size()) < n; ++b) {
    const PhiloxBlock w = philox4x32(random_counter(at, b), at.seed);
    if constexpr (std::is_same_v<T, float>) {
      box_muller(uniform_float(w.word[0]), uniform_float(w.word[1]), z);
      box_muller(uniform_float(w.word[2]), uniform_float(w.word[3]), z);
    } else {
      box_muller(uniform_double(w.word[0], w.word[1]), uniform_double(w.word[2], w.word[3]), z);
    }
  }
  z.resize(static_cast<std::size_t>(n));
  return z;
}

template <class T>
double worst_ulps(const std::vector<T>& got, const std::vector<long double>& expected) {
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = ulps(got[i], expected[i]);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("normals are within 4 ulp of Box-Muller on the same uniforms", "[simd][normal]", float, double) {
  using T = TestType;
  constexpr Index n = 40000;
  const RandomRow at{.seed = recops_test::seed(), .row = 123456789012, .step = 4, .purpose = RandomPurpose::sampler_noise};
  const std::vector<long double> expected = reference<T>(at, n);
  for_each_architecture([&](auto arch) {
    std::vector<T> z(static_cast<std::size_t>(n));
    simd::fill_normal<T, decltype(arch)>(at, z.data(), n);
    CHECK(worst_ulps(z, expected) <= 4);
  });
}

TEMPLATE_TEST_CASE("radius and turn at the ends of their uniforms and at the quarters", "[simd][normal]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  using U = std::conditional_t<single, std::uint32_t, std::uint64_t>;
  constexpr int bits = 8 * static_cast<int>(sizeof(U));
  std::vector<U> words;
  for (int eighth = 0; eighth < 16; ++eighth) {
    const auto start = static_cast<U>(U(eighth) << (bits - 4));
    for (int step = -3; step <= 3; ++step) words.push_back(static_cast<U>(start + static_cast<U>(U(step) << (single ? 9 : 12))));
  }
  for (int shift = 1; shift < bits; ++shift)
    words.insert(words.end(), {static_cast<U>(~U(0) >> shift), static_cast<U>(~(~U(0) >> shift))});
  const auto uniform = [](U w) -> long double {
    if constexpr (single)
      return uniform_float(w);
    else
      return uniform_double(static_cast<std::uint32_t>(w >> 32), static_cast<std::uint32_t>(w));
  };
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    using B = simd::Batch<T, A>;
    for (const U w : words) {
      const simd::Batch<U, A> v(w);
      B cosine, sine;
      const B r = simd::detail::radius<T, A>(simd::uniform_of_words<A>(v));
      simd::detail::turn<T, U, A>(B(T(1)), v, cosine, sine);
      alignas(64) T got[3][16];
      r.store_aligned(got[0]), cosine.store_aligned(got[1]), sine.store_aligned(got[2]);
      std::vector<long double> z;
      const long double u = uniform(w);
      box_muller(std::exp(-0.5L), u, z);  // radius 1
      CAPTURE(w);
      CHECK(ulps(got[0][0], std::sqrt(-2 * std::log(u))) <= 2);
      CHECK(ulps(got[1][0], z[0]) <= 2.5);
      CHECK(ulps(got[2][0], z[1]) <= 2.5);
    }
  });
}

TEST_CASE("the normals of numpy", "[simd][normal][golden]") {
  const Golden golden("random_rows");
  const auto rows = golden.values<std::int64_t>("rows");
  const auto normal32 = golden.values<double>("normal32"), normal64 = golden.values<double>("normal64");
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (std::size_t r = 0; r < rows.size() / 5; ++r) {
      const RandomRow at{.seed = static_cast<std::uint64_t>(rows[5 * r]),
                         .row = static_cast<std::uint64_t>(rows[5 * r + 1]),
                         .step = static_cast<std::uint32_t>(rows[5 * r + 2]),
                         .purpose = static_cast<RandomPurpose>(rows[5 * r + 3]),
                         .sample = static_cast<std::uint32_t>(rows[5 * r + 4])};
      std::vector<float> z32(140);
      std::vector<double> z64(70);
      simd::fill_normal<float, A>(at, z32.data(), 140);
      simd::fill_normal<double, A>(at, z64.data(), 70);
      for (std::size_t i = 0; i < 140; ++i) REQUIRE(ulps(z32[i], normal32[140 * r + i]) <= 4);
      for (std::size_t i = 0; i < 70; ++i) REQUIRE(ulps(z64[i], normal64[70 * r + i]) <= 8);  // numpy's own error in double
    }
  });
}

TEMPLATE_TEST_CASE("a long row has the moments and the distance from the normal law that numpy and scipy find",
                   "[simd][normal][golden]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  const Golden golden("random_rows");
  const auto expected = golden.values<double>(single ? "sample32" : "sample64");
  const RandomRow at{.seed = 20240608, .row = 5, .step = 1, .purpose = RandomPurpose::sampler_noise};
  constexpr Index n = single ? 100000 : 50000;
  for_each_architecture([&](auto arch) {
    std::vector<T> z(static_cast<std::size_t>(n));
    simd::fill_normal<T, decltype(arch)>(at, z.data(), n);
    double moment[4] = {};
    for (const double x : z)
      moment[0] += x / n, moment[1] += x * x / n, moment[2] += x * x * x / n, moment[3] += x * x * x * x / n;
    for (std::size_t k = 0; k < 4; ++k) CHECK(std::abs(moment[k] - expected[k]) < (single ? 1e-6 : 1e-12));
    std::sort(z.begin(), z.end());
    double distance = 0;
    for (Index i = 0; i < n; ++i) {
      const double f = 0.5 * std::erfc(-static_cast<double>(z[static_cast<std::size_t>(i)]) / std::sqrt(2.0));
      distance = std::max({distance, f - double(i) / n, double(i + 1) / n - f});
    }
    CHECK(std::abs(distance - expected[4]) < (single ? 1e-6 : 1e-12));
  });
}

TEMPLATE_TEST_CASE("a row of normals is the same in any batch, of any length, fused or stored", "[simd][normal]", float, double) {
  using T = TestType;
  for_each_architecture([](auto arch) {
    using A = decltype(arch);
    const RandomRow at{.seed = recops_test::seed(), .row = 40, .step = 1, .purpose = RandomPurpose::initial_noise, .sample = 3};
    const std::vector<std::int32_t> ids{12, 41, 12};
    std::vector<T> longest(200);
    RandomRow own = at;
    own.row = 41;
    simd::fill_normal<T, A>(own, longest.data(), 200);
    for (const Index d : {0, 1, 2, 15, 16, 33, 64, 129}) {
      Padded<T> out(3, d), numbered(2, d), fused(1, d, T(2));
      simd::fill_normal<T, A>(at, ids, out.view());
      simd::fill_normal<T, A>(at, IndexView(), numbered.view());
      simd::for_each_normal<T, A>(simd::Philox<A>(own), d, [&](Index i, simd::Batch<T, A> z, auto load, auto store) {
        T* const p = fused.view().row(0) + i;
        store(p, load(p) * z);
      });
      for (Index j = 0; j < d; ++j) {
        REQUIRE((out(1, j) == longest[static_cast<std::size_t>(j)] && numbered(1, j) == out(1, j)));
        REQUIRE((out(0, j) == out(2, j) && out(0, j) != out(1, j) && fused(0, j) == 2 * out(1, j)));
      }
      CHECK((out.intact() && numbered.intact() && fused.intact()));
    }
  });
  const std::vector<std::int32_t> two{1, 2};
  Matrix<T> three(3, 4, T(9));
  CHECK_THAT(error_of([&] { simd::fill_normal<T>(RandomRow{}, two, three.view()); }), contains("fill_normal"));
  CHECK(three(0, 0) == T(9));
}

TEST_CASE("seed, row, step, purpose and sample each give other normals", "[simd][normal]") {
  const RandomRow base{.seed = 1, .row = 2, .step = 3, .purpose = RandomPurpose::dropout, .sample = 4};
  std::vector<RandomRow> rows(8, base);
  rows[1].seed ^= 1, rows[2].seed ^= std::uint64_t{1} << 63, rows[3].row ^= 1, rows[4].row ^= std::uint64_t{1} << 47,
      rows[5].step ^= 1;
  rows[6].purpose = RandomPurpose::negatives, rows[7].sample ^= 1;
  std::vector<std::vector<float>> z;
  for (const RandomRow& at : rows) simd::fill_normal<float>(at, z.emplace_back(64).data(), 64);
  for (std::size_t i = 0; i < z.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      int same = 0;
      for (std::size_t k = 0; k < 64; ++k) same += z[i][k] == z[j][k];
      CHECK(same == 0);
    }
  }
}
