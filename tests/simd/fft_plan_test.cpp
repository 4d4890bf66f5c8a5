// Oracle: cos and sin in long double; the definition of a mixed-radix order; sums of the chirp.
#include <recops/simd/fft_plan.hpp>

#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;
using simd::FftPlan;
using simd::FftPlans;

namespace {

constexpr long double pi = 3.141592653589793238462643383279502884L;

bool same_tables(const FftPlan<float>& a, const FftPlan<float>& b) {
  if (a.length() != b.length() || a.size() != b.size() || a.stages() != b.stages()) return false;
  for (int i = 0; i < a.stages(); ++i) {
    const simd::FftStage &s = a.stage(i), &t = b.stage(i);
    if (s.radix != t.radix || s.span != t.span) return false;
    for (Index j = 0; j < 2 * s.span * (s.radix - 1); ++j)
      if (a.twiddles(s)[j] != b.twiddles(t)[j]) return false;
    for (Index j = 0; j < 2 * s.radix; ++j)
      if (a.roots(s)[j] != b.roots(t)[j]) return false;
  }
  for (Index k = 0; k < a.size(); ++k)
    if (a.positions()[k] != b.positions()[k]) return false;
  if (!a.bluestein()) return true;
  for (Index k = 0; k < 2 * a.size(); ++k)
    if (a.chirp_gains()[k] != b.chirp_gains()[k]) return false;
  for (Index k = 0; k < 2 * a.length(); ++k)
    if (a.chirp()[k] != b.chirp()[k]) return false;
  return true;
}

}  // namespace

TEST_CASE("roots of unity are right to a rounding", "[simd][fft]") {
  double worst = 0;
  for (const Index n : {1, 2, 3, 4, 5, 7, 8, 12, 360, 1021, 4096, 1 << 20}) {
    for (Index m = 0; m < n; m += 1 + n / 997) {
      double c, s;
      simd::detail::unit_root(m, n, c, s);
      const long double angle = 2 * pi * static_cast<long double>(m) / static_cast<long double>(n);
      worst = std::max(
          {worst, std::abs(static_cast<double>(c - std::cos(angle))), std::abs(static_cast<double>(s - std::sin(angle)))});
    }
  }
  CHECK(worst <= 2.3e-16);
  double c, s;
  simd::detail::unit_root(3, 12, c, s);  // a right angle
  CHECK((c == Approx(0).margin(1e-16) && s == 1));
  simd::detail::unit_root(1, 2, c, s);
  CHECK((c == -1 && std::abs(s) < 1e-16));
}

TEST_CASE("a plan multiplies up to its size, and its positions are a permutation", "[simd][fft]") {
  for (Index length = 0; length <= 400; ++length) {
    const FftPlan<float> plan(length);
    CAPTURE(length, plan.size());
    REQUIRE(plan.length() == length);
    REQUIRE(plan.bins() == (length == 0 ? 0 : length / 2 + 1));
    if (length == 0) continue;
    REQUIRE(plan.bluestein() == (plan.size() != length));
    REQUIRE((!plan.bluestein() || plan.size() >= 2 * length - 1));
    Index n = plan.size();
    for (int i = 0; i < plan.stages(); ++i) {
      REQUIRE(n == plan.stage(i).radix * plan.stage(i).span);
      n = plan.stage(i).span;
    }
    REQUIRE(n == 1);
    std::vector<bool> seen(static_cast<std::size_t>(plan.size()));
    for (Index k = 0; k < plan.size(); ++k) {
      const Index at = plan.positions()[k];
      REQUIRE((at >= 0 && at < plan.size() && !seen[static_cast<std::size_t>(at)]));
      seen[static_cast<std::size_t>(at)] = true;
    }
    Index all = 0;
    for (Index k = 0; k < plan.bins(); ++k) all += plan.multiplicity(k);
    REQUIRE(all == length);
  }
}

TEST_CASE("lengths of small primes are transformed directly, others by Bluestein", "[simd][fft]") {
  for (const Index length : {1, 2, 6, 11, 13, 37, 49, 50, 64, 74, 200, 210, 1000, 1024, 2310, 4096, 65536}) {
    CAPTURE(length);
    CHECK_FALSE(FftPlan<double>(length).bluestein());
  }
  for (const Index length : {67, 97, 134, 1021, 7919, 10007}) {
    const FftPlan<double> plan(length);
    CAPTURE(length, plan.size());
    CHECK(plan.bluestein());
    CHECK(plan.size() < 3 * length);
    Index n = plan.size();
    for (const Index p : {2, 3, 5})
      while (n % p == 0) n /= p;
    CHECK(n == 1);
  }
}

TEST_CASE("twiddles and chirp are the numbers of their definition", "[simd][fft]") {
  for (const Index length : {30, 200, 96, 1001, 1021}) {
    const FftPlan<double> plan(length);
    double worst = 0;
    for (int i = 0; i < plan.stages(); ++i) {
      const simd::FftStage& s = plan.stage(i);
      const double* w = plan.twiddles(s);
      for (Index j = 0; j < s.span; ++j) {
        for (Index p = 1; p < s.radix; ++p, w += 2) {
          const long double angle = -2 * pi * static_cast<long double>(p * j) / static_cast<long double>(s.radix * s.span);
          worst = std::max({worst, std::abs(w[0] - static_cast<double>(std::cos(angle))),
                            std::abs(w[1] - static_cast<double>(std::sin(angle)))});
        }
      }
    }
    for (Index n = 0; plan.bluestein() && n < length; ++n) {
      const long double angle = -pi * static_cast<long double>(n * n % (2 * length)) / static_cast<long double>(length);
      worst = std::max({worst, std::abs(plan.chirp()[2 * n] - static_cast<double>(std::cos(angle))),
                        std::abs(plan.chirp()[2 * n + 1] - static_cast<double>(std::sin(angle)))});
    }
    CAPTURE(length);
    CHECK(worst <= 3e-16);
    if (!plan.bluestein()) continue;
    // Bin 0 of the chirp's transform is its sum, by the definition.
    long double re = 0, im = 0;
    for (Index n = 1 - length; n < length; ++n) {
      const long double angle = pi * static_cast<long double>(n * n % (2 * length)) / static_cast<long double>(length);
      re += std::cos(angle);
      im += std::sin(angle);
    }
    const double* g = plan.chirp_gains() + 2 * plan.positions()[0];
    CHECK(g[0] * static_cast<double>(plan.size()) == Approx(static_cast<double>(re)).epsilon(1e-12).margin(1e-11));
    CHECK(g[1] * static_cast<double>(plan.size()) == Approx(static_cast<double>(im)).epsilon(1e-12).margin(1e-11));
  }
}

TEST_CASE("a plan set holds the plan of every length", "[simd][fft]") {
  const FftPlans<float> plans(140);
  REQUIRE(plans.longest() == 140);
  Index apart = 0;
  for (Index length = 0; length <= 140; ++length) {
    const FftPlan<float> one(length);
    CAPTURE(length);
    REQUIRE(same_tables(plans[length], one));
    apart += one.bytes() + static_cast<Index>(sizeof(one));
  }
  CHECK(plans.bytes() < apart);
  CHECK(FftPlans<float>().longest() == 0);
  // What the page says.
  CHECK(FftPlans<float>(200).bytes() < 700 * 1024);
  CHECK(FftPlan<float>(1024).bytes() <= Index{4} * (3 * 1024 + 1024) + 1024);
}

TEST_CASE("plans are values", "[simd][fft]") {
  FftPlan<float> a(97), b = a;
  CHECK(b.twiddles(b.stage(0)) == a.twiddles(a.stage(0)));  // shared
  a = FftPlan<float>(8);
  CHECK(same_tables(b, FftPlan<float>(97)));
  b = a;
  CHECK(same_tables(b, FftPlan<float>(8)));
  CHECK(FftPlan<double>().length() == 0);
  CHECK(FftPlan<double>().bytes() == 0);
}

TEST_CASE("lengths out of range are refused", "[simd][fft]") {
  CHECK_THAT(error_of([] { FftPlan<float> plan(-1); }), contains("FftPlan") && contains("length") && contains("-1"));
  CHECK_THAT(error_of([] { FftPlan<float> plan((Index{1} << 26) + 1); }), contains("2^26"));
  CHECK_THAT(error_of([] { FftPlans<double> plans(-3); }), contains("FftPlans") && contains("longest"));
  CHECK_THAT(error_of([] { FftPlans<double> plans(65537); }), contains("65536"));
}

TEST_CASE("the longest lengths have no more levels than a plan has room for", "[simd][fft]") {
  using namespace simd::detail;
  struct {
    std::array<int, fft_most_stages> radices{};
    int behind = -1;
  } two;
  int count = 0;
  const Index size = Index{1} << 22;  // in steps of 2 alone there is no such plan
  fft_factor(size, fft_radix_count - 1, size, two.radices, count);
  CHECK(two.behind == -1);
  CHECK(count <= fft_most_stages);
  for (const Index n : {Index{1} << 23, Index{3} << 22, Index{1} << 26, Index{1} << 27}) {
    std::array<int, fft_most_stages> radices{};
    CHECK(fft_radices(n, radices, count) < 1000);
    REQUIRE(count <= fft_most_stages);
    Index product = 1;
    for (int i = 0; i < count; ++i) product *= radices[static_cast<std::size_t>(i)];
    CHECK(product == n);
  }
}
