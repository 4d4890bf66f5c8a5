// Oracles: uniform_float and uniform_double on the scalar blocks (exact, every set), and words and uniforms made by Python.
#include <recops/simd/uniform.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

RandomRow golden_row(const std::vector<std::int64_t>& rows, std::size_t r) {
  return {.seed = static_cast<std::uint64_t>(rows[5 * r]),
          .row = static_cast<std::uint64_t>(rows[5 * r + 1]),
          .step = static_cast<std::uint32_t>(rows[5 * r + 2]),
          .purpose = static_cast<RandomPurpose>(rows[5 * r + 3]),
          .sample = static_cast<std::uint32_t>(rows[5 * r + 4])};
}

template <class T>
std::vector<T> scalar_uniforms(const RandomRow& at, Index n) {
  std::vector<T> u;
  for (std::uint32_t b = 0; static_cast<Index>(u.size()) < n; ++b) {
    const PhiloxBlock w = philox4x32(random_counter(at, b), at.seed);
    if constexpr (std::is_same_v<T, float>) {
      for (const std::uint32_t x : w.word) u.push_back(uniform_float(x));
    } else {
      u.insert(u.end(), {uniform_double(w.word[0], w.word[1]), uniform_double(w.word[2], w.word[3])});
    }
  }
  u.resize(static_cast<std::size_t>(n));
  return u;
}

}  // namespace

TEMPLATE_TEST_CASE("uniforms of a row are the scalar ones, bit for bit, at every length", "[simd][uniform]", float, double) {
  using T = TestType;
  const RandomRow at{.seed = recops_test::seed(), .row = (std::uint64_t{3} << 40) + 5, .step = 2, .sample = 9};
  const std::vector<T> expected = scalar_uniforms<T>(at, 200);
  for_each_architecture([&](auto arch) {
    for (Index n = 0; n < 140; ++n) {
      std::vector<T> got(static_cast<std::size_t>(n) + 1, T(-1));
      simd::fill_uniform<T, decltype(arch)>(at, got.data(), n);
      REQUIRE(std::equal(got.begin(), got.end() - 1, expected.begin()));
      REQUIRE(got.back() == T(-1));
    }
  });
}

TEST_CASE("words and uniforms of another program", "[simd][uniform][golden]") {
  const Golden golden("random_rows");
  const auto rows = golden.values<std::int64_t>("rows");
  const auto words = golden.values<std::int64_t>("words");
  const auto uniform32 = golden.values<float>("uniform32");
  const auto uniform64 = golden.values<double>("uniform64");
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (std::size_t r = 0; r < rows.size() / 5; ++r) {
      const RandomRow at = golden_row(rows, r);
      std::vector<std::uint32_t> w(140);
      std::vector<float> u32(140);
      std::vector<double> u64(70);
      simd::fill_words<A>(at, w.data(), 140);
      simd::fill_uniform<float, A>(at, u32.data(), 140);
      simd::fill_uniform<double, A>(at, u64.data(), 70);
      CHECK(std::equal(w.begin(), w.end(), words.begin() + static_cast<Index>(140 * r)));
      CHECK(std::equal(u32.begin(), u32.end(), uniform32.begin() + static_cast<Index>(140 * r)));
      CHECK(std::equal(u64.begin(), u64.end(), uniform64.begin() + static_cast<Index>(70 * r)));
    }
  });
}

TEMPLATE_TEST_CASE("the ends of the interval are never reached", "[simd][uniform]", float, double) {
  using T = TestType;
  constexpr bool single = std::is_same_v<T, float>;
  using U = std::conditional_t<single, std::uint32_t, std::uint64_t>;
  for_each_architecture([](auto arch) {
    using A = decltype(arch);
    using B = simd::Batch<U, A>;
    alignas(64) T low[16], high[16];
    simd::uniform_of_words<A>(B(U(0))).store_aligned(low);
    simd::uniform_of_words<A>(B(U(~U(0)))).store_aligned(high);
    CHECK((low[0] == (single ? uniform_float(0) : uniform_double(0, 0)) && low[0] > 0));
    CHECK((high[0] == (single ? uniform_float(~0u) : uniform_double(~0u, ~0u)) && high[0] < 1));
  });
}

TEMPLATE_TEST_CASE("a row draws the same in any batch", "[simd][uniform]", float, double) {
  using T = TestType;
  for_each_architecture([](auto arch) {
    using A = decltype(arch);
    const RandomRow at{.seed = recops_test::seed(), .row = 40, .step = 1, .purpose = RandomPurpose::timestep};
    for (const Index d : {1, 3, 4, 31, 64, 65}) {
      const std::vector<std::int64_t> ids{7, 0, (Index{1} << 48) - 1, 41, 7};
      Padded<T> out(5, d), reversed(5, d), numbered(3, d);
      simd::fill_uniform<T, A>(at, ids, out.view());
      const std::vector<std::int64_t> back(ids.rbegin(), ids.rend());
      simd::fill_uniform<T, A>(at, back, reversed.view());
      simd::fill_uniform<T, A>(at, IndexView(), numbered.view());
      for (Index b = 0; b < 5; ++b) {
        RandomRow own = at;
        own.row = static_cast<std::uint64_t>(ids[static_cast<std::size_t>(b)]);
        const std::vector<T> expected = scalar_uniforms<T>(own, d);
        REQUIRE(std::equal(expected.begin(), expected.end(), out.view().row(b)));
        REQUIRE(std::equal(expected.begin(), expected.end(), reversed.view().row(4 - b)));
        if (b == 3) REQUIRE(std::equal(expected.begin(), expected.end(), numbered.view().row(1)));
      }
      CHECK((out.intact() && reversed.intact() && numbered.intact()));
    }
  });
  const std::vector<std::int32_t> two{1, 2};
  Matrix<T> three(3, 4, T(9));
  CHECK_THAT(error_of([&] { simd::fill_uniform<T>(RandomRow{}, two, three.view()); }), contains("fill_uniform"));
  CHECK(three(0, 0) == T(9));
  Matrix<T> none(0, 4);
  simd::fill_uniform<T>(RandomRow{}, IndexView(), none.view());
}
