// Oracles: the sums over all pairs in long double, central differences, the values of the specification, hard ranks.
#include <recops/core/random.hpp>
#include <recops/ranking/smooth_rank.hpp>
#include <recops/train/gradient_check.hpp>

#include "ranking/soft_rank_reference.hpp"
#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
using Forward = void (*)(VectorView<const T>, IndexView, const SmoothRankOptions&, VectorView<T>, Workspace&);
template <class T>
using Backward = void (*)(VectorView<const T>, IndexView, const SmoothRankOptions&, VectorView<const T>, VectorView<T>,
                          Workspace&);

struct Kernel {
  bool gaussian;
  template <class T>
  Forward<T> forward() const {
    return gaussian ? static_cast<Forward<T>>(gaussian_rank<T>) : static_cast<Forward<T>>(sigmoid_rank<T>);
  }
  template <class T>
  Backward<T> backward() const {
    return gaussian ? static_cast<Backward<T>>(gaussian_rank_backward<T>) : static_cast<Backward<T>>(sigmoid_rank_backward<T>);
  }
  long double chance(long double d) const { return gaussian ? 0.5L * std::erfc(-0.5L * d) : 1 / (1 + std::exp(-d)); }
  long double density(long double d) const {
    return gaussian ? std::exp(-0.25L * d * d) * 0.282094791773878143474L : chance(d) * chance(-d);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("Smooth ranks and their gradients equal the sums over pairs", "[ranking][smooth_rank]", float, double) {
  using T = TestType;
  Random random = random_stream(941);
  Workspace ws;
  const double unit = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  for (const bool gaussian : {false, true}) {
    const Kernel kernel{gaussian};
    for (const Index n : {1, 2, 7, 33, 130}) {
      for (const double tau : {1e-3, 0.02, 1.0, 50.0}) {  // windows of few, some, all
        for (const Order order : {Order::ascending, Order::descending}) {
          if (n > 30 && order == Order::descending) continue;
          CAPTURE(gaussian, n, tau, order == Order::descending);
          Vector<T> x = random_vector<T>(n, random), r(n), d(n, T(1));
          if (n > 3) x[1] = x[3];
          const Vector<T> u = random_vector<T>(n, random);
          kernel.forward<T>()(x, {}, {.order = order, .tau = tau}, r, ws);
          kernel.backward<T>()(x, {}, {.order = order, .tau = tau}, u, d, ws);
          const long double sign = order == Order::ascending ? 1 : -1;
          double worst = 0, worst_gradient = 0, total = 0;
          for (Index i = 0; i < n; ++i) {
            long double rank = 0.5L, gradient = 0, size = 0;
            for (Index j = 0; j < n; ++j) {
              const long double distance = sign * (static_cast<long double>(x[i]) - x[j]) / tau;
              rank += kernel.chance(distance);
              gradient += sign / tau * kernel.density(distance) * (static_cast<long double>(u[i]) - u[j]);
              size += kernel.density(distance) / tau * std::abs(static_cast<long double>(u[i]) - u[j]);
            }
            worst = std::max(worst, static_cast<double>(std::abs(rank - r[i])));
            worst_gradient = std::max(worst_gradient, static_cast<double>(std::abs(gradient + 1 - d[i]) / (1 + size)));
            total += static_cast<double>(r[i]);
          }
          REQUIRE(worst <= unit * static_cast<double>(n));
          REQUIRE(worst_gradient <= 40 * unit);
          REQUIRE(total == Approx(0.5 * static_cast<double>(n * (n + 1))).epsilon(1e-6));
        }
      }
    }
  }
}

TEST_CASE("Smooth ranks: the specification's values, differences, hard limit", "[ranking][smooth_rank]") {
  Workspace ws;
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4}, u{1, -2, 0.5, 0, 3, -1};
  Vector<double> r(6), d(6, 0.0);
  sigmoid_rank<double>(s, {}, {.tau = 0.5}, r, ws);
  sigmoid_rank_backward<double>(s, {}, {.tau = 0.5}, u, d, ws);
  const double ranks[]{3.597078999, 1.286373433, 3.597078999, 5.856449278, 4.327455623, 2.335563668};
  const double gradient[]{0.362665698, -0.997119848, -0.586358024, -0.457091113, 3.243764505, -1.565861218};
  for (Index i = 0; i < 6; ++i) {
    CHECK(r[i] == Approx(ranks[i]).margin(1e-8));
    CHECK(d[i] == Approx(gradient[i]).margin(1e-8));
  }
  Random random = random_stream(942);
  for (const bool gaussian : {false, true}) {
    const Kernel kernel{gaussian};
    const std::vector<std::int32_t> offsets{0, 0, 1, 8, 20};
    Vector<double> x = random_vector<double>(20, random), v = random_vector<double>(20, random), rank(20), g(20, 0.0);
    const SmoothRankOptions o{.order = Order::descending, .tau = 0.3};
    kernel.backward<double>()(x, offsets, o, v, g, ws);
    GradientReport report;
    check_gradient(
        "scores", x, g,
        [&] {
          kernel.forward<double>()(x, offsets, o, rank, ws);
          double sum = 0;
          for (Index i = 0; i < 20; ++i) sum += v[i] * rank[i];
          return sum;
        },
        report);
    CHECK(report.worst < 1e-7);
    x[0] = x[1];
    kernel.forward<double>()(x, {}, {.tau = 1e-12}, rank, ws);
    const Numbers hard = reference_mid_ranks(Numbers(x.begin(), x.end()), false);
    for (Index i = 0; i < 20; ++i) CHECK(rank[i] == Approx(static_cast<double>(hard[static_cast<std::size_t>(i)])));
  }
}

TEMPLATE_TEST_CASE("Smooth ranks: threads, warm calls, NaN, errors", "[ranking][smooth_rank]", float, double) {
  using T = TestType;
  Random random = random_stream(943);
  std::vector<std::int32_t> offsets{0, 0};
  for (int g = 0; g < 70; ++g) offsets.push_back(offsets.back() + static_cast<std::int32_t>(random.below(6)));
  const Index n = offsets.back();
  Vector<T> x = random_vector<T>(n, random), r(n), r2(n), d(n, T(0)), d2(n, T(0));
  const Vector<T> u = random_vector<T>(n, random);
  Threads threads{3};
  Workspace ws, parallel(make_executor(threads, 3));
  for (const bool gaussian : {false, true}) {
    const Kernel kernel{gaussian};
    const auto step = [&] {
      d.fill(T(0));
      kernel.forward<T>()(x, offsets, {}, r, ws);
      kernel.backward<T>()(x, offsets, {}, u, d, ws);
    };
    step();
    CHECK(count_allocations(step) == 0);
    d2.fill(T(0));
    kernel.forward<T>()(x, offsets, {}, r2, parallel);
    kernel.backward<T>()(x, offsets, {}, u, d2, parallel);
    CHECK((std::equal(r.begin(), r.end(), r2.begin()) && std::equal(d.begin(), d.end(), d2.begin())));
    Vector<T> bad = x;
    std::size_t g = 8;
    while (offsets[g] == offsets[g + 1]) ++g;
    bad[offsets[g]] = std::numeric_limits<T>::quiet_NaN();
    d2.fill(T(0));
    kernel.forward<T>()(bad, offsets, {}, r2, ws);
    kernel.backward<T>()(bad, offsets, {}, u, d2, ws);
    for (Index i = 0; i < n; ++i) {
      if (offsets[g] <= i && i < offsets[g + 1])
        REQUIRE((std::isnan(r2[i]) && std::isnan(d2[i])));
      else
        REQUIRE((r2[i] == r[i] && d2[i] == d[i]));
    }
  }
  r[0] = T(9);
  CHECK_THAT(error_of([&] { sigmoid_rank<T>(x, offsets, {.tau = 0}, r, ws); }), contains("sigmoid_rank: tau"));
  CHECK_THAT(error_of([&] { gaussian_rank<T>(x, offsets, {}, VectorView<T>(r).segment(0, n - 1), ws); }), contains("ranks"));
  CHECK(r[0] == T(9));
}

TEST_CASE("Sums over pairs are the same on every instruction set", "[simd][rank_sums]") {
  Random random = random_stream(944);
  const Index n = 300;
  Vector<float> e(n + 64, 1.0f), u(n + 64, 0.0f), z(n + 64, 0.0f);
  for (Index i = 0; i < n; ++i) {
    z[i] = static_cast<float>(random.normal());
    e[i] = std::exp(3 * z[i]);
    u[i] = static_cast<float>(random.normal());
  }
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<double> sums(static_cast<std::size_t>(n + 64)), gradient(sums), normal(sums);
    simd::rank_sums<simd::RankKernel::logistic, float, A>(e.data(), 37, e.data(), n, sums.data());
    simd::rank_sums_backward<simd::RankKernel::logistic, float, A>(e.data(), u.data(), 37, e.data(), u.data(), n,
                                                                   gradient.data());
    simd::rank_sums<simd::RankKernel::gaussian, float, A>(z.data(), 37, z.data(), n, normal.data());
    for (Index i = 0; i < 37; ++i) {
      double sum = 0, slope = 0, chance = 0;
      for (Index j = 0; j < n; ++j) {
        const double a = static_cast<double>(e[i]), b = static_cast<double>(e[j]);
        sum += a / (a + b);
        slope += a * b / (a + b) / (a + b) * (static_cast<double>(u[i]) - static_cast<double>(u[j]));
        chance += 0.5 * std::erfc(std::sqrt(0.5) * static_cast<double>(z[j] - z[i]));
      }
      const auto at = static_cast<std::size_t>(i);
      CHECK(sums[at] == Approx(sum).epsilon(2e-6));
      CHECK(gradient[at] == Approx(slope).margin(1e-4));
      CHECK(normal[at] == Approx(chance).epsilon(2e-6));
    }
  });
}
