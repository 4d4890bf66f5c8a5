// Oracles: the words of the row against the threshold, one by one, and masks made by Python; the binomial law.
#include <recops/simd/keep_mask.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("thresholds", "[simd][keep_mask]") {
  CHECK((simd::keep_threshold(0) == 0 && simd::keep_threshold(1) == std::uint64_t{1} << 32));
  CHECK((simd::keep_threshold(0.5) == 0x80000000u && simd::keep_threshold(0x1p-32) == 1));
}

TEST_CASE("masks are the words below the threshold, on every set, at every length", "[simd][keep_mask]") {
  const RandomRow at{.seed = recops_test::seed(), .row = 11, .step = 6, .purpose = RandomPurpose::dropout};
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<std::uint32_t> words(140);
    simd::fill_words<A>(at, words.data(), 140);
    for (const double keep : {0.0, 1e-12, 0.1, 0.5, 0.75, 1.0}) {
      for (Index n = 0; n < 140; n += n < 40 ? 1 : 9) {
        const auto size = static_cast<std::size_t>(n);
        std::vector<std::uint8_t> mask(size + 1, 77);
        std::vector<float> x(size + 1, 3.0f), y(size + 1, -5.0f);
        std::vector<double> xd(size + 1, 3.0), yd(size + 1, -5.0);
        if (n) x[0] = std::numeric_limits<float>::quiet_NaN(), xd[0] = std::numeric_limits<double>::infinity();
        simd::fill_keep<A>(at, keep, mask.data(), n);
        simd::dropout<float, A>(at, keep, x.data(), y.data(), n);
        simd::dropout<double, A>(at, keep, xd.data(), yd.data(), n);
        for (std::size_t i = 0; i < size; ++i) {
          const bool kept = words[i] < simd::keep_threshold(keep);
          REQUIRE(mask[i] == kept);
          if (!kept) REQUIRE((y[i] == 0 && yd[i] == 0));
          if (kept && i > 0) REQUIRE((y[i] == 3.0f * static_cast<float>(1 / keep) && yd[i] == 3.0 * (1 / keep)));
          if (kept && i == 0) REQUIRE((std::isnan(y[i]) && std::isinf(yd[i])));
        }
        REQUIRE((mask[size] == 77 && y[size] == -5.0f && yd[size] == -5.0));
        simd::dropout<float, A>(at, keep, x.data(), x.data(), n);  // in place
        for (std::size_t i = 1; i < size; ++i) REQUIRE(x[i] == y[i]);
      }
    }
  });
}

TEST_CASE("masks of another program", "[simd][keep_mask][golden]") {
  const Golden golden("random_rows");
  const auto keep = golden.values<double>("keep_probability");
  const auto expected = golden.values<std::uint8_t>("keep");
  const RandomRow at{.seed = 1, .row = 7, .step = 3};
  for_each_architecture([&](auto arch) {
    for (std::size_t k = 0; k < keep.size(); ++k) {
      std::vector<std::uint8_t> mask(140);
      simd::fill_keep<decltype(arch)>(at, keep[k], mask.data(), 140);
      CHECK(std::equal(mask.begin(), mask.end(), expected.begin() + static_cast<Index>(140 * k)));
    }
  });
}

TEST_CASE("as many are kept as the probability says", "[simd][keep_mask]") {
  constexpr Index n = 200000;
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(n));
  for (const double keep : {0.01, 0.3, 0.9}) {
    simd::fill_keep({.seed = recops_test::seed(), .row = 1, .purpose = RandomPurpose::dropout}, keep, mask.data(), n);
    double kept = 0;
    for (const std::uint8_t m : mask) kept += m;
    CHECK(std::abs(kept / n - keep) < 5 * std::sqrt(keep * (1 - keep) / n));
  }
}

TEMPLATE_TEST_CASE("dropout of a batch goes by the ids of its rows", "[simd][keep_mask]", float, double) {
  using T = TestType;
  for_each_architecture([](auto arch) {
    using A = decltype(arch);
    const RandomRow at{.seed = 5, .row = 20, .step = 1, .purpose = RandomPurpose::dropout};
    Random random = random_stream(3);
    const Matrix<T> x = random_matrix<T>(3, 45, random);
    const std::vector<std::int32_t> ids{22, 4, 20};
    Padded<T> y(3, 45), numbered(3, 45);
    simd::dropout<T, A>(at, ids, 0.6, x.view(), y.view());
    simd::dropout<T, A>(at, IndexView(), 0.6, x.view(), numbered.view());
    std::vector<std::uint8_t> mask(45);
    for (Index b = 0; b < 3; ++b) {
      RandomRow own = at;
      own.row = static_cast<std::uint64_t>(ids[static_cast<std::size_t>(b)]);
      simd::fill_keep<A>(own, 0.6, mask.data(), 45);
      for (Index j = 0; j < 45; ++j)
        REQUIRE(y(b, j) == (mask[static_cast<std::size_t>(j)] ? x(b, j) * static_cast<T>(1 / 0.6) : T(0)));
    }
    for (Index j = 0; j < 45; ++j) REQUIRE((numbered(0, j) == 0) == (y(2, j) == 0));
    CHECK((y.intact() && numbered.intact()));
  });
  Matrix<T> x(2, 3, T(1)), y(2, 3, T(9)), narrow(2, 2);
  const auto message = [&](double keep, MatrixView<T> out) {
    return error_of([&] { simd::dropout<T>(RandomRow{}, IndexView(), keep, x.view(), out); });
  };
  CHECK_THAT(message(1.5, y.view()), contains("keep"));
  CHECK_THAT(message(std::numeric_limits<double>::quiet_NaN(), y.view()), contains("keep"));
  CHECK_THAT(message(0.5, narrow.view()), contains("y"));
  CHECK(y(0, 0) == T(9));
}
