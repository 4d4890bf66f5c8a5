// Oracles: the definition in long double (soft_rank_reference.hpp), hard mid-ranks counted pair by pair, scikit-learn's isotonic
// regression and scipy's minimiser (golden), central differences, and what the definition implies: sums, shifts, scales, orders.
#include <recops/core/random.hpp>
#include <recops/ranking/rank_sum_auc_loss.hpp>
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
Vector<T> ranks_of(const Vector<T>& x, IndexView offsets, const SoftRankOptions& o, SoftRankSaved& saved) {
  Workspace ws;
  Vector<T> r(x.size(), T(-1));
  soft_rank<T>(x, offsets, o, r, saved, ws);
  return r;
}
template <class T>
Vector<T> ranks_of(const Vector<T>& x, const SoftRankOptions& o) {
  SoftRankSaved saved;
  return ranks_of(x, {}, o, saved);
}

template <class T>
Numbers numbers(const Vector<T>& x) {
  return Numbers(x.begin(), x.end());
}

/// Normal numbers; with `grid` rounded to its multiples, so that there are ties.
template <class T>
Vector<T> scores_of(Index n, double grid, Random& random) {
  Vector<T> x = random_vector<T>(n, random);
  if (grid > 0)
    for (T& v : x) v = static_cast<T>(std::round(static_cast<double>(v) / grid) * grid);
  return x;
}

}  // namespace

TEMPLATE_TEST_CASE("Soft ranks equal their definition", "[ranking][soft_rank]", float, double) {
  using T = TestType;
  Random random = random_stream(901);
  const double unit = std::is_same_v<T, float> ? 1e-6 : 1e-11;
  for (const Index n : {1, 2, 3, 5, 8, 31, 32, 33, 34, 35, 36, 67, 150, 600}) {
    for (const double grid : {0.0, 0.1}) {
      const Vector<T> x = scores_of<T>(n, grid, random);
      for (const double eps : {1e-4, 0.01, 0.2, 3.0, 1000.0}) {
        for (const bool descending : {false, true}) {
          for (const auto regularization : {quadratic, kl}) {
            if (n > 70 && (regularization == kl || descending)) continue;
            CAPTURE(n, grid, eps, descending, regularization == kl);
            const SoftRankOptions o{.order = descending ? Order::descending : Order::ascending,
                                    .regularization = regularization,
                                    .eps_mode = EpsMode::absolute,
                                    .eps = eps};
            SoftRankSaved saved;
            const Vector<T> r = ranks_of(x, {}, o, saved);
            const ReferenceRanks expected = reference_soft_rank(numbers(x), eps, descending, regularization == kl);
            double worst = 0;
            for (Index i = 0; i < n; ++i)
              worst = std::max(worst, static_cast<double>(std::abs(r[i] - expected.ranks[static_cast<std::size_t>(i)])));
            REQUIRE(worst <= unit * static_cast<double>(n));
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("Small eps gives hard mid-ranks exactly, ties included", "[ranking][soft_rank]", float, double) {
  using T = TestType;
  Random random = random_stream(902);
  for (const double scale : {1e-3, 1.0, 1e3}) {
    for (const Index n : {1, 7, 40, 200}) {
      Vector<T> x = scores_of<T>(n, 0.125, random);
      for (T& v : x) v *= static_cast<T>(scale);
      if (n > 2) x[0] = T(0), x[1] = T(-0.0);
      for (const double eps : {0.0, 1e-30, 1e-9 * scale}) {
        for (const auto regularization : {quadratic, kl}) {
          for (const bool descending : {false, true}) {
            CAPTURE(n, eps, scale, descending, regularization == kl);
            const auto r = ranks_of(x, {.order = descending ? Order::descending : Order::ascending,
                                        .regularization = regularization,
                                        .eps_mode = EpsMode::absolute,
                                        .eps = eps});
            const Numbers expected = reference_mid_ranks(numbers(x), descending);
            for (Index i = 0; i < n; ++i) REQUIRE(r[i] == static_cast<T>(expected[static_cast<std::size_t>(i)]));
          }
        }
      }
    }
  }
}

TEST_CASE("Soft ranks: values of the specification", "[ranking][soft_rank]") {
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4}, u{1, -2, 0.5, 0, 3, -1};
  struct Known {
    SoftRankRegularization regularization;
    bool descending;
    double eps;
    std::vector<double> ranks, gradient;
    Index blocks;
  };
  const std::vector<Known> all{
      {quadratic, false, 0.5, {3.65, 1, 3.65, 6, 4.45, 2.25}, {0.25, 0, -0.75, 0, 4.25, -3.75}, 3},
      {quadratic, true, 0.5, {3.35, 6, 3.35, 1, 2.55, 4.75}, {-0.25, 0, 0.75, 0, -4.25, 3.75}, 3},
      {quadratic,
       false,
       1.5,
       {3.511111111, 2.511111111, 3.511111111, 4.644444444, 3.777777778, 3.044444444},
       {0.5, -1.5, 0.166666667, -0.166666667, 1.833333333, -0.833333333},
       1},
      {kl, false, 0.5, {3.5, 1, 3.5, 6, 5, 2}, {1.75, 0, -1.75, 0, 0, 0}, 5},
      {kl,
       false,
       1.5,
       {3.487906743, 1.283129183, 3.487906743, 6, 4.553829083, 2.187228249},
       {0.133337133, -2.517206377, -1.029298448, 0, 6.245857761, -2.832690071},
       2},
  };
  for (const Known& k : all) {
    SoftRankSaved saved;
    Workspace ws;
    const auto r = ranks_of(s, {},
                            {.order = k.descending ? Order::descending : Order::ascending,
                             .regularization = k.regularization,
                             .eps_mode = EpsMode::absolute,
                             .eps = k.eps},
                            saved);
    Vector<double> d(6, 1.0);
    soft_rank_backward<double>(r, saved, u, d, ws);
    for (Index i = 0; i < 6; ++i) {
      CHECK(r[i] == Approx(k.ranks[static_cast<std::size_t>(i)]).margin(1e-8));
      CHECK(d[i] - 1 == Approx(k.gradient[static_cast<std::size_t>(i)]).margin(1e-8));
    }
    CHECK(saved.count_blocks().blocks == k.blocks);
  }
  const Vector<double> three{5, 1, 2};
  const auto r = ranks_of(three, {.eps_mode = EpsMode::absolute, .eps = 2});
  CHECK((r[0] == 3 && r[1] == 1.25 && r[2] == 1.75));
}

TEMPLATE_TEST_CASE("Soft ranks of groups agree with scikit-learn and scipy", "[ranking][soft_rank]", float, double) {
  using T = TestType;
  const Golden golden("soft_rank");
  const double tolerance = std::is_same_v<T, float> ? 2e-4 : 2e-8;
  const auto theta = golden_vector<T>(golden, "theta"), u = golden_vector<T>(golden, "u");
  const auto offsets = golden.values<std::int64_t>("offsets");
  Workspace ws;
  for (const std::string name : {"small", "middle", "large"}) {
    CAPTURE(name);
    SoftRankSaved saved;
    const auto r = ranks_of(theta, offsets, {.eps_mode = EpsMode::absolute, .eps = golden.scalar("eps." + name)}, saved);
    const auto expected = golden_vector<double>(golden, "rank." + name),
               gradient = golden_vector<double>(golden, "drank." + name);
    Vector<T> d(theta.size(), T(0));
    soft_rank_backward<T>(r, saved, u, d, ws);
    soft_rank_backward<T>(VectorView<const T>(), saved, u, d, ws);  // adds, and needs no ranks
    for (Index i = 0; i < theta.size(); ++i) {
      REQUIRE(static_cast<double>(r[i]) == Approx(expected[i]).margin(tolerance));
      REQUIRE(static_cast<double>(d[i]) / 2 == Approx(gradient[i]).margin(1e3 * tolerance).epsilon(1e-5));
    }
  }
  const auto kl_theta = golden_vector<T>(golden, "kl.theta");
  const auto kl_expected = golden_vector<double>(golden, "kl.rank");
  SoftRankSaved saved;
  const auto r =
      ranks_of(kl_theta, {}, {.regularization = kl, .eps_mode = EpsMode::absolute, .eps = golden.scalar("kl.eps")}, saved);
  CHECK(saved.count_blocks().blocks < 9);
  for (Index i = 0; i < r.size(); ++i) CHECK(static_cast<double>(r[i]) == Approx(kl_expected[i]).margin(1e-4));
}

TEST_CASE("Gradients of soft ranks equal central differences away from kinks", "[ranking][soft_rank]") {
  Random random = random_stream(903);
  Workspace ws;
  for (const auto regularization : {quadratic, kl}) {
    for (const bool descending : {false, true}) {
      for (const double eps : {0.05, 0.3, 5.0}) {
        const std::vector<std::int32_t> offsets{0, 0, 1, 18, 60};
        Vector<double> x = scores_of<double>(60, 0, random), u = random_vector<double>(60, random), r(60), d(60, 0.0);
        const SoftRankOptions o{.order = descending ? Order::descending : Order::ascending,
                                .regularization = regularization,
                                .eps_mode = EpsMode::absolute,
                                .eps = eps};
        SoftRankSaved saved;
        const auto loss = [&] {
          soft_rank<double>(x, offsets, o, r, saved, ws);
          double sum = 0;
          for (Index i = 0; i < 60; ++i) sum += u[i] * r[i];
          return sum;
        };
        loss();
        soft_rank_backward<double>(r, saved, u, d, ws);
        GradientReport report;
        check_gradient("scores", x, d, loss, report, {.step = 1e-7});
        CAPTURE(regularization == kl, descending, eps, report.where, report.numeric, report.analytic);
        CHECK(report.worst < 1e-6);
        double sum = 0;
        for (const double g : d) sum += g;
        CHECK(std::abs(sum) < 1e-9);
      }
    }
  }
}

TEMPLATE_TEST_CASE("Soft ranks: sums, shifts, scales, order, mirrored", "[ranking][soft_rank]", float, double) {
  using T = TestType;
  Random random = random_stream(904);
  for (const Index n : {2, 13, 100, 1009}) {
    const Vector<T> x = scores_of<T>(n, 0.0625, random);
    for (const auto regularization : {quadratic, kl}) {
      for (const double c : {0.5, 2.0, 30.0}) {
        CAPTURE(n, c, regularization == kl);
        const SoftRankOptions o{.regularization = regularization, .eps = c};
        SoftRankSaved saved;
        const auto r = ranks_of(x, {}, o, saved);
        const double tolerance = (std::is_same_v<T, float> ? 1e-6 : 1e-12) * static_cast<double>(n);
        double sum = 0;
        Vector<T> scaled = x, shifted = x, mirrored = x;
        for (Index i = 0; i < n; ++i) {
          sum += static_cast<double>(r[i]);
          scaled[i] *= T(1024);
          shifted[i] += T(256);
          mirrored[i] = -x[i];
          for (Index j = 0; j < std::min<Index>(i, 50); ++j)
            REQUIRE(!((x[i] < x[j] && r[i] > r[j]) || (x[i] == x[j] && r[i] != r[j])));
        }
        CHECK(sum == Approx(0.5 * static_cast<double>(n * (n + 1))).epsilon(1e-6));
        const auto by_scale = ranks_of(scaled, o), by_shift = ranks_of(shifted, o), by_mirror = ranks_of(mirrored, o);
        for (Index i = 0; i < n; ++i) {
          REQUIRE(std::abs(static_cast<double>(by_scale[i] - r[i])) <= tolerance);
          REQUIRE(std::abs(static_cast<double>(by_shift[i] - r[i])) <= 100 * tolerance);
          if (regularization == quadratic)
            REQUIRE(std::abs(static_cast<double>(by_mirror[i]) - (static_cast<double>(n + 1) - static_cast<double>(r[i]))) <=
                    tolerance);
        }
        // The relative eps is eps std / n, and a constant to backward.
        double mean = 0, square = 0;
        for (const T v : x) mean += static_cast<double>(v) / static_cast<double>(n);
        for (const T v : x) square += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean) / static_cast<double>(n);
        CHECK(saved.eps[0] == Approx(c * std::sqrt(square) / static_cast<double>(n)).epsilon(1e-9));
      }
    }
  }
}

TEMPLATE_TEST_CASE("Soft ranks of jagged groups: alone, threaded, warm, poisoned", "[ranking][soft_rank]", float, double) {
  using T = TestType;
  Random random = random_stream(905);
  std::vector<std::int32_t> offsets{0, 0};
  for (int g = 0; g < 150; ++g)
    offsets.push_back(offsets.back() + static_cast<std::int32_t>(random.below(g % 10 == 0 ? 300 : 40)));
  offsets.push_back(offsets.back());
  const Index n = offsets.back(), groups = static_cast<Index>(offsets.size()) - 1;
  Vector<T> x = scores_of<T>(n, 0.01, random);
  const Vector<T> u = random_vector<T>(n, random);
  Threads threads{3};
  Workspace ws, parallel(make_executor(threads, 3));
  for (const auto regularization : {quadratic, kl}) {
    const SoftRankOptions o{.regularization = regularization};
    SoftRankSaved saved, other;
    Vector<T> r(n), r2(n), d(n, T(0)), d2(n, T(0));
    const auto step = [&] {
      soft_rank<T>(x, offsets, o, r, saved, ws);
      soft_rank_backward<T>(r, saved, u, d, ws);
    };
    step();
    d.fill(T(0));
    CHECK(count_allocations(step) == 0);
    soft_rank<T>(x, offsets, o, r2, other, parallel);
    soft_rank_backward<T>(r2, other, u, d2, parallel);
    CHECK(std::equal(r.begin(), r.end(), r2.begin()));
    CHECK(std::equal(d.begin(), d.end(), d2.begin()));
    soft_rank<T>(x, offsets, o, r2, ws);  // without what backward needs
    CHECK(std::equal(r.begin(), r.end(), r2.begin()));
    for (Index g = 0; g < groups; g += 7) {
      const Index begin = offsets[static_cast<std::size_t>(g)], size = offsets[static_cast<std::size_t>(g) + 1] - begin;
      Vector<T> alone(size);
      soft_rank<T>(VectorView<const T>(x).segment(begin, size), {}, o, alone, ws);
      REQUIRE(std::equal(alone.begin(), alone.end(), r.data() + begin));
    }
    // One NaN, one infinity: their groups, no others.
    Vector<T> bad = x;
    std::vector<char> spoilt(static_cast<std::size_t>(n), 0);
    for (const Index g : {10, 20}) {
      const Index begin = offsets[static_cast<std::size_t>(g) + 1], end = offsets[static_cast<std::size_t>(g) + 2];
      if (begin == end) continue;
      bad[begin] = g == 10 ? std::numeric_limits<T>::quiet_NaN() : -std::numeric_limits<T>::infinity();
      std::fill(spoilt.begin() + begin, spoilt.begin() + end, 1);
    }
    d2.fill(T(0));
    soft_rank<T>(bad, offsets, o, r2, other, ws);
    soft_rank_backward<T>(r2, other, u, d2, ws);
    for (Index i = 0; i < n; ++i) {
      if (spoilt[static_cast<std::size_t>(i)] != 0)
        REQUIRE((std::isnan(r2[i]) && std::isnan(d2[i])));
      else
        REQUIRE((r2[i] == r[i] && d2[i] == d[i]));
    }
  }
}

TEST_CASE("Soft ranks: extremes and edges", "[ranking][soft_rank]") {
  Workspace ws;
  SoftRankSaved saved;
  CHECK(ranks_of(Vector<float>(), {}, {}, saved).empty());
  CHECK(saved.count_blocks().blocks == 0);
  CHECK(ranks_of(Vector<float>{-3}, {}, {}, saved)[0] == 1);
  Vector<float> d(1, 0.0f);
  const Vector<float> five{5};
  soft_rank_backward<float>(VectorView<const float>(), saved, five, d, ws);
  CHECK(d[0] == 0);
  for (const double scale : {1e-305, 1e290}) {
    Vector<double> x(50);
    for (Index i = 0; i < 50; ++i) x[i] = scale * static_cast<double>(i * 7 % 50);
    const auto r = ranks_of(x, {.eps = 0.01});
    for (Index i = 0; i < 50; ++i) CHECK(r[i] == static_cast<double>(i * 7 % 50 + 1));
  }
  const Vector<double> beyond{1e305, 0};
  CHECK(std::isnan(ranks_of(beyond, {})[1]));
  Vector<float> equal(100, 0.1f);
  const auto r = ranks_of(equal, {}, {}, saved);
  CHECK((r[0] == 50.5f && r[99] == 50.5f && saved.count_blocks().largest == 100));

  Vector<float> out(3, 7.0f);
  const Vector<float> x{1, 2, 3};
  const auto message = [&](IndexView offsets, const SoftRankOptions& o, VectorView<float> to) {
    return error_of([&] { soft_rank<float>(x, offsets, o, to, saved, ws); });
  };
  CHECK(message({}, {.eps = -1}, out) == "soft_rank: eps: expected 0 <= eps <= 1e100, got -1");
  CHECK_THAT(message({}, {.eps = std::nan("")}, out), contains("eps"));
  const std::vector<std::int32_t> wrong{0, 2};
  CHECK_THAT(message(wrong, {}, out), contains("offsets"));
  CHECK_THAT(message({}, {}, VectorView<float>(out).segment(0, 2)), contains("ranks"));
  CHECK((out[0] == 7 && out[2] == 7));
  soft_rank<float>(x, {}, {.regularization = kl}, out, saved, ws);
  Vector<float> g(3, 1.0f);
  CHECK_THAT(error_of([&] { soft_rank_backward<float>(VectorView<const float>(), saved, x, g, ws); }), contains("ranks"));
  CHECK_THAT(error_of([&] { soft_rank_backward<float>(out, saved, VectorView<const float>(x).segment(0, 2), g, ws); }),
             contains("dranks"));
  CHECK((g[0] == 1 && g[2] == 1));
}

// Minutes under a sanitizer: scripts/test --full.
TEST_CASE("Ten million float scores: ranks and loss within the documented bound", "[.full][ranking][soft_rank]") {
  const Index n = 10'000'000;
  Random random = random_stream(906);
  Vector<float> x = random_vector<float>(n, random);
  SoftRankSaved saved;
  const auto r = ranks_of(x, {}, {}, saved);
  const double eps = saved.eps[0];
  long double sum = 0;
  double worst = 0;
  const auto blocks = saved.count_blocks();
  for (Index k = 0; k < blocks.blocks; ++k) {  // block by block, in long double
    const Index a = saved.starts[k], b = k + 1 < blocks.blocks ? saved.starts[k + 1] : n;
    long double mean = 0;
    for (Index i = a; i < b; ++i) mean += x[saved.order[i]];
    mean /= static_cast<long double>(b - a);
    for (Index i = a; i < b; ++i) {
      const Index at = saved.order[i];
      const long double exact = static_cast<long double>(n) - 0.5L * static_cast<long double>(a + b - 1) + (x[at] - mean) / eps;
      const float last = std::nextafter(static_cast<float>(exact), 1e9f) - static_cast<float>(exact);
      worst = std::max(worst, (static_cast<double>(std::abs(r[at] - exact)) - 1e-10 * static_cast<double>(n)) / last);
      sum += r[at];
    }
  }
  INFO("units in the last place beyond n 1e-10: " << worst);
  CHECK(worst <= 0.51);
  CHECK(std::abs(sum / (0.5L * n * (n + 1)) - 1) < 1e-9L);

  Matrix<std::uint8_t> y(n, 1);
  long double positives = 0, above = 0;
  for (Index i = 0; i < n; ++i) positives += y(i, 0) = random.chance(0.01) ? 1 : 0;
  for (Index k = 0; k < blocks.blocks; ++k) {
    const Index a = saved.starts[k], b = k + 1 < blocks.blocks ? saved.starts[k + 1] : n;
    long double mean = 0, inside = 0, count = 0;
    for (Index i = a; i < b; ++i) mean += x[saved.order[i]];
    mean /= static_cast<long double>(b - a);
    for (Index i = a; i < b; ++i) {
      if (y(saved.order[i], 0) == 0) continue;
      ++count;
      inside += (x[saved.order[i]] - mean) / eps;
    }
    above += count * (0.5L * n - 0.5L * static_cast<long double>(a + b)) + inside;
  }
  Workspace ws;
  const double loss = rank_sum_auc_loss<float>(x, y, {}, {}, {}, ws).loss;
  CHECK(std::abs(loss - (0.5L - above / positives / (n - positives))) < 1e-9L);
}
