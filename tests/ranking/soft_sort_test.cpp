// Oracles: scikit-learn's isotonic regression (golden), the values of the specification, std::sort, central differences (which catch
// the reference code's wrong KL gradient), sums.
#include <recops/core/random.hpp>
#include <recops/ranking/soft_sort.hpp>
#include <recops/train/gradient_check.hpp>

#include "ranking/soft_rank_reference.hpp"
#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {
constexpr auto quadratic = SoftRankRegularization::quadratic, kl = SoftRankRegularization::kl;

template <class T>
Vector<T> sorted_of(const Vector<T>& x, IndexView offsets, const SoftSortOptions& o, SoftSortSaved<T>& saved) {
  Workspace ws;
  Vector<T> v(x.size(), T(-1));
  soft_sort<T>(x, offsets, o, v, saved, ws);
  return v;
}
}  // namespace

TEST_CASE("Soft sort: values of the specification", "[ranking][soft_sort]") {
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4}, u{1, -2, 0.5, 0, 3, -1};
  SoftSortSaved<double> saved;
  Workspace ws;
  const std::vector<double> sorted[]{{-0.933333333, -0.433333333, 0.066666667, 0.5, 1, 1.5},
                                     {-1.034025402, -0.534025402, -0.034025402, 0.363461797, 0.863461797, 1.363461797}};
  const std::vector<double> gradient[]{{-0.166666667, -0.166666667, 0.666666667, 0.666666667, 0.666666667, -0.166666667},
                                       {-0.066707209, -0.298960969, 1.079328735, 0.197175577, 0.723495688, -0.134331822}};
  for (const auto regularization : {quadratic, kl}) {
    const auto v = sorted_of(s, {}, {.order = Order::ascending, .regularization = regularization, .eps = 2}, saved);
    Vector<double> d(6, 0.0);
    soft_sort_backward<double>(saved, u, d, ws);
    for (std::size_t i = 0; i < 6; ++i) {
      CHECK(v[static_cast<Index>(i)] == Approx(sorted[regularization == kl][i]).margin(1e-8));
      CHECK(d[static_cast<Index>(i)] == Approx(gradient[regularization == kl][i]).margin(1e-8));
    }
  }
  const auto ramp = sorted_of(Vector<double>{5, 1, 2}, {}, {.order = Order::ascending, .eps = 1}, saved);
  CHECK((ramp[0] == Approx(5.0 / 3) && ramp[1] == Approx(8.0 / 3) && ramp[2] == Approx(11.0 / 3)));
  const auto exact = sorted_of(Vector<double>{5, 1, 2}, {}, {.order = Order::ascending, .eps = 0.1}, saved);
  CHECK((exact[0] == 1 && exact[1] == 2 && exact[2] == 5));
}

TEMPLATE_TEST_CASE("Soft sort of groups agrees with scikit-learn", "[ranking][soft_sort]", float, double) {
  using T = TestType;
  const Golden golden("soft_rank");
  const auto theta = golden_vector<T>(golden, "theta"), u = golden_vector<T>(golden, "u");
  const auto offsets = golden.values<std::int64_t>("offsets");
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-8;
  Workspace ws;
  for (const std::string name : {"small", "middle", "large"}) {
    CAPTURE(name);
    SoftSortSaved<T> saved;
    const auto v = sorted_of<T>(theta, offsets, {.eps = golden.scalar("sort_eps." + name)}, saved);
    const auto expected = golden_vector<double>(golden, "sort." + name),
               gradient = golden_vector<double>(golden, "dsort." + name);
    Vector<T> d(theta.size(), T(0));
    for (int twice = 0; twice < 2; ++twice) soft_sort_backward<T>(saved, u, d, ws);
    for (Index i = 0; i < theta.size(); ++i) {
      REQUIRE(static_cast<double>(v[i]) == Approx(expected[i]).margin(tolerance));
      REQUIRE(static_cast<double>(d[i]) / 2 == Approx(gradient[i]).margin(10 * tolerance));
    }
  }
}

TEST_CASE("Soft sort of values whose product with eps overflows", "[ranking][soft_sort]") {
  SoftSortSaved<double> saved;
  const std::vector<std::int64_t> offsets{0, 1, 2, 4};  // -1e300 comes first in its groups, second in memory
  const Vector<double> x{1, -1e300, -1e300, -1e300};
  const Vector<double> v = sorted_of<double>(x, offsets, {.eps = 1e100}, saved);
  for (Index i = 0; i < 4; ++i) CHECK(v[i] == x[i]);
  CHECK(saved.pooled.blocks[1] == 1);
  CHECK(saved.pooled.starts[0] == 0);
  CHECK(saved.pooled.starts[1] == 0);
}

TEST_CASE("Gradients of soft sort equal central differences", "[ranking][soft_sort]") {
  Random random = random_stream(911);
  Workspace ws;
  const std::vector<std::int32_t> offsets{0, 1, 1, 20, 61};
  for (const auto regularization : {quadratic, kl}) {
    for (const auto order : {Order::ascending, Order::descending}) {
      for (const double eps : {2.0, 15.0, 200.0}) {
        Vector<double> x = random_vector<double>(61, random), u = random_vector<double>(61, random), v(61), d(61, 0.0);
        SoftSortSaved<double> saved;
        const auto loss = [&] {
          soft_sort<double>(x, offsets, {.order = order, .regularization = regularization, .eps = eps}, v, saved, ws);
          double sum = 0;
          for (Index i = 0; i < 61; ++i) sum += u[i] * v[i];
          return sum;
        };
        loss();
        soft_sort_backward<double>(saved, u, d, ws);
        GradientReport report;
        check_gradient("scores", x, d, loss, report, {.step = 1e-7});
        CAPTURE(regularization == kl, eps, report.where, report.numeric, report.analytic);
        CHECK(report.worst < 1e-6);
        double sum = 0, sum_u = 0;
        for (Index i = 0; i < 61; ++i) sum += d[i], sum_u += u[i];
        CHECK(sum == Approx(sum_u).margin(1e-9));
      }
    }
  }
}

TEMPLATE_TEST_CASE("Soft sort: hard limit, kept sums, threads, allocations, NaN", "[ranking][soft_sort]", float, double) {
  using T = TestType;
  Random random = random_stream(912);
  std::vector<std::int32_t> offsets{0, 0};
  for (int g = 0; g < 140; ++g) offsets.push_back(offsets.back() + static_cast<std::int32_t>(random.below(60)));
  const Index n = offsets.back();
  Vector<T> x = random_vector<T>(n, random);
  const Vector<T> u = random_vector<T>(n, random);
  Threads threads{3};
  Workspace ws, parallel(make_executor(threads, 3));
  for (const auto regularization : {quadratic, kl}) {
    SoftSortSaved<T> saved, other;
    Vector<T> v(n), v2(n), d(n, T(0)), d2(n, T(0));
    SoftSortOptions o{.regularization = regularization, .eps = 0};
    soft_sort<T>(x, offsets, o, v, saved, ws);
    soft_sort_backward<T>(saved, u, d, ws);
    for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
      std::vector<T> hard(x.data() + offsets[g], x.data() + offsets[g + 1]);
      std::sort(hard.rbegin(), hard.rend());
      REQUIRE(std::equal(hard.begin(), hard.end(), v.data() + offsets[g]));
    }
    o.eps = 40;
    const auto step = [&] {
      soft_sort<T>(x, offsets, o, v, saved, ws);
      soft_sort_backward<T>(saved, u, d, ws);
    };
    step();
    d.fill(T(0));
    CHECK(count_allocations(step) == 0);
    soft_sort<T>(x, offsets, o, v2, other, parallel);
    soft_sort_backward<T>(other, u, d2, parallel);
    CHECK((std::equal(v.begin(), v.end(), v2.begin()) && std::equal(d.begin(), d.end(), d2.begin())));
    double sum = 0, kept = 0;
    for (Index i = offsets[3]; i < offsets[4]; ++i) {
      const auto a = static_cast<double>(x[i]), b = static_cast<double>(v[i]);
      sum += regularization == kl ? std::exp(a) : a;
      kept += regularization == kl ? std::exp(b) : b;
    }
    CHECK(sum == Approx(kept).epsilon(1e-4).margin(1e-4));
    Vector<T> bad = x;
    std::size_t g = 5;
    while (offsets[g] == offsets[g + 1]) ++g;
    bad[offsets[g]] = std::numeric_limits<T>::infinity();
    d2.fill(T(0));
    soft_sort<T>(bad, offsets, o, v2, other, ws);
    soft_sort_backward<T>(other, u, d2, ws);
    for (Index i = 0; i < n; ++i) {
      if (offsets[g] <= i && i < offsets[g + 1])
        REQUIRE((std::isnan(v2[i]) && std::isnan(d2[i])));
      else
        REQUIRE((v2[i] == v[i] && d2[i] == d[i]));
    }
  }
  SoftSortSaved<T> saved;
  Vector<T> out(2, T(3));
  const VectorView<const T> some(u);
  CHECK_THAT(error_of([&] { soft_sort<T>(some.segment(0, 2), {}, {.eps = -2}, out, saved, ws); }), contains("soft_sort: eps"));
  CHECK_THAT(error_of([&] { soft_sort<T>(some.segment(0, 3), {}, {}, out, saved, ws); }), contains("sorted"));
  CHECK(out[0] == T(3));
}
