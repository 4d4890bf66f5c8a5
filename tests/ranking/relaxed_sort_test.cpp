// Soft permutations, sorting networks and Sinkhorn ranks. Oracles: the formulas over all pairs, std::sort in the hard limit, central
// differences, marginals.
#include <recops/core/random.hpp>
#include <recops/ranking/sinkhorn_rank.hpp>
#include <recops/ranking/soft_permutation.hpp>
#include <recops/ranking/sorting_network.hpp>
#include <recops/train/gradient_check.hpp>

#include <functional>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

const std::vector<std::int32_t> offsets{0, 0, 1, 8, 25};
constexpr Index total = 25;

/// Central differences of <cotangent, forward(x)> against what backward adds (twice).
double gradient_error(
    Vector<double> x, Index outputs, const std::function<void(VectorView<const double>, VectorView<double>)>& forward,
    const std::function<void(VectorView<const double>, VectorView<const double>, VectorView<double>)>& backward) {
  Random random = random_stream(951);
  const Vector<double> u = random_vector<double>(outputs, random);
  Vector<double> y(outputs), d(x.size(), 0.0);
  forward(x, y);
  for (int twice = 0; twice < 2; ++twice) backward(x, u, d);
  for (double& v : d) v /= 2;
  GradientReport report;
  check_gradient("scores", x, d,
                 [&] {
                   forward(x, y);
                   double sum = 0;
                   for (Index i = 0; i < outputs; ++i) sum += u[i] * y[i];
                   return sum;
                 },
                 report, {.step = 1e-5});
  return report.worst;
}

}  // namespace

TEMPLATE_TEST_CASE("Soft permutations equal their formulas", "[ranking][soft_permutation]", float, double) {
  using T = TestType;
  Random random = random_stream(952);
  Workspace ws;
  for (const auto relaxation : {PermutationRelaxation::neural_sort, PermutationRelaxation::distance}) {
    for (const Order order : {Order::descending, Order::ascending}) {
      for (const Index n : {1, 2, 9, 40}) {
        Vector<T> s = random_vector<T>(n, random), p(n * n);
        if (n > 4) s[1] = s[3];
        const double tau = 0.7, sign = order == Order::descending ? 1 : -1;
        soft_permutation<T>(s, {}, {.relaxation = relaxation, .order = order, .tau = tau}, p, ws);
        std::vector<double> x(s.begin(), s.end());
        for (double& v : x) v *= sign;
        std::vector<double> sorted = x;
        std::sort(sorted.rbegin(), sorted.rend());
        for (Index i = 0; i < n; ++i) {
          std::vector<double> z;
          double most = -1e300, sum = 0;
          for (const double own : x) {
            double b = 0;
            for (const double other : x) b += std::abs(own - other);
            z.push_back((relaxation == PermutationRelaxation::neural_sort
                             ? static_cast<double>(n - 1 - 2 * i) * own - b
                             : -std::abs(sorted[static_cast<std::size_t>(i)] - own)) /
                        tau);
            most = std::max(most, z.back());
          }
          for (double& v : z) sum += v = std::exp(v - most);
          for (Index j = 0; j < n; ++j)
            REQUIRE(static_cast<double>(p[i * n + j]) ==
                    Approx(z[static_cast<std::size_t>(j)] / sum).margin(std::is_same_v<T, float> ? 2e-5 : 1e-12));
        }
      }
    }
  }
}

TEST_CASE("Relaxed sorts: gradients equal central differences, on jagged groups",
          "[ranking][soft_permutation][sorting_network][sinkhorn]") {
  Random random = random_stream(953);
  Workspace ws;
  Vector<double> x = random_vector<double>(total, random);
  const Index squares = 1 + 49 + 17 * 17;
  for (const auto relaxation : {PermutationRelaxation::neural_sort, PermutationRelaxation::distance})
    for (const Order order : {Order::descending, Order::ascending}) {
      const SoftPermutationOptions o{.relaxation = relaxation, .order = order, .tau = 1.5};
      Vector<double> p(squares);
      CHECK(gradient_error(
                x, squares,
                [&](auto s, auto y) {
                  soft_permutation<double>(s, offsets, o, y, ws);
                  std::copy(y.begin(), y.end(), p.begin());
                },
                [&](auto s, auto u, auto d) { soft_permutation_backward<double>(s, offsets, o, p, u, d, ws); }) < 1e-7);
    }
  for (const auto network : {SortingNetwork::odd_even, SortingNetwork::bitonic})
    for (const auto function : {SwapFunction::logistic, SwapFunction::cauchy, SwapFunction::reciprocal, SwapFunction::optimal}) {
      SortingNetworkSaved<double> saved;
      CHECK(gradient_error(
                x, total,
                [&](auto s, auto y) {
                  sorting_network<double>(s, offsets, {.network = network, .function = function, .beta = 2}, y, saved);
                },
                [&](auto, auto u, auto d) { sorting_network_backward<double>(saved, u, d, ws); }) < 1e-5);
    }
  for (double& v : x) v = 0.5 + 0.2 * v;
  for (const double eps : {0.02, 0.3}) {
    const SinkhornRankOptions o{.eps = eps, .tolerance = 1e-12};
    CHECK(gradient_error(
              x, total, [&](auto s, auto y) { CHECK(sinkhorn_rank<double>(s, offsets, o, y, ws).converged); },
              [&](auto s, auto u, auto d) { sinkhorn_rank_backward<double>(s, offsets, o, u, d, ws); }) < 1e-5);
  }
}

TEMPLATE_TEST_CASE("Relaxed sorts: hard limits, kept sums, threads, warm calls, NaN, errors",
                   "[ranking][soft_permutation][sorting_network][sinkhorn]", float, double) {
  using T = TestType;
  Workspace ws;
  Threads threads{2};
  Workspace parallel(make_executor(threads, 2));
  Vector<T> x(total), y(total), y2(total), d(total, T(0));
  Random random = random_stream(954);
  for (Index i = 0; i < total; ++i)
    x[i] = static_cast<T>(0.9 * static_cast<double>(i * 11 % total) / total + 0.02 * random.uniform());
  const auto is_sorted_copy = [&](const Vector<T>& v, double margin) {
    for (std::size_t g = 0; g + 1 < offsets.size(); ++g) {
      std::vector<T> expected(x.data() + offsets[g], x.data() + offsets[g + 1]);
      std::sort(expected.begin(), expected.end());
      for (std::size_t i = 0; i < expected.size(); ++i)
        REQUIRE(static_cast<double>(v[offsets[g] + static_cast<Index>(i)]) ==
                Approx(static_cast<double>(expected[i])).margin(margin));
    }
  };
  for (const auto network : {SortingNetwork::odd_even, SortingNetwork::bitonic}) {
    SortingNetworkSaved<T> saved;
    sorting_network<T>(x, offsets, {.network = network, .function = SwapFunction::logistic, .beta = 1e7}, y, saved);
    is_sorted_copy(y, 1e-5);
    const auto step = [&] {
      sorting_network<T>(x, offsets, {.network = network, .beta = 3}, y, saved);
      sorting_network_backward<T>(saved, x, d, ws);
    };
    step();
    CHECK(count_allocations(step) == 0);
    double before = 0, after = 0;
    for (Index i = 8; i < total; ++i) before += static_cast<double>(x[i]), after += static_cast<double>(y[i]);
    CHECK(before == Approx(after));
  }
  // A hard permutation puts the largest first.
  const Index squares = 1 + 49 + 17 * 17;
  Vector<T> p(squares), p2(squares), dp(squares, T(1));
  for (const auto relaxation : {PermutationRelaxation::neural_sort, PermutationRelaxation::distance}) {
    soft_permutation<T>(x, offsets, {.relaxation = relaxation, .order = Order::ascending, .tau = 1e-6}, p, ws);
    soft_permutation<T>(x, offsets, {.relaxation = relaxation, .order = Order::ascending, .tau = 1e-6}, p2, parallel);
    CHECK(std::equal(p.begin(), p.end(), p2.begin()));
    y[0] = x[0];
    for (Index g = 1, at = 0; g < 4; ++g) {
      const Index begin = offsets[static_cast<std::size_t>(g)], n = offsets[static_cast<std::size_t>(g) + 1] - begin;
      for (Index i = 0; i < n; ++i, at += n) y[begin + i] = simd::dot<T>(p.data() + at, x.data() + begin, n);
    }
    is_sorted_copy(y, 1e-6);
    const auto warm = [&] {
      soft_permutation<T>(x, offsets, {.relaxation = relaxation}, p, ws);
      soft_permutation_backward<T>(x, offsets, {.relaxation = relaxation}, p, dp, d, ws);
    };
    warm();
    CHECK(count_allocations(warm) == 0);
  }
  const auto result = sinkhorn_rank<T>(x, offsets, {}, y, ws);
  sinkhorn_rank<T>(x, offsets, {}, y2, parallel);
  CHECK((result.converged && result.iterations > 1 && std::equal(y.begin(), y.end(), y2.begin())));
  CHECK(static_cast<double>(y[0]) == Approx(1));
  double sum = 0;
  for (Index i = 8; i < total; ++i) {
    sum += static_cast<double>(y[i]);
    for (Index j = 8; j < total; ++j) REQUIRE(!(x[i] < x[j] && y[i] >= y[j]));
  }
  CHECK(sum == Approx(0.5 * 17 * 18).epsilon(1e-6));
  CHECK(!sinkhorn_rank<T>(x, offsets, {.eps = 1e-3, .max_iterations = 2}, y, ws).converged);

  x[10] = std::numeric_limits<T>::quiet_NaN();  // the last group's
  SortingNetworkSaved<T> saved;
  d.fill(T(0));
  sorting_network<T>(x, offsets, {}, y, saved);
  sorting_network_backward<T>(saved, y2, d, ws);
  CHECK((std::isnan(y[20]) && std::isnan(d[20]) && !std::isnan(y[3]) && !std::isnan(d[3])));
  sinkhorn_rank<T>(x, offsets, {}, y, ws);
  d.fill(T(0));
  sinkhorn_rank_backward<T>(x, offsets, {}, y2, d, ws);
  CHECK((std::isnan(y[20]) && std::isnan(d[20]) && !std::isnan(y[3]) && !std::isnan(d[3])));
  soft_permutation<T>(x, offsets, {}, p, ws);
  CHECK((std::isnan(p[squares - 1]) && !std::isnan(p[49])));

  y[0] = T(4);
  CHECK_THAT(error_of([&] { sorting_network<T>(x, offsets, {.beta = 0}, y, saved); }), contains("beta"));
  CHECK_THAT(error_of([&] { sinkhorn_rank<T>(x, offsets, {.eps = 0}, y, ws); }), contains("eps"));
  const Vector<T> many(300, T(0));
  Vector<T> out(300);
  CHECK_THAT(error_of([&] { sinkhorn_rank<T>(many, {}, {}, out, ws); }), contains("groups of at most 256"));
  CHECK_THAT(error_of([&] { soft_permutation<T>(x, offsets, {}, out, ws); }), contains("soft_permutation: p"));
  CHECK(y[0] == T(4));
}
