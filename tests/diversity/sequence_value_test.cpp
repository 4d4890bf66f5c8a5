// Oracles: the sum of the definition, and all ordered subsets; PyTorch and Python (tests/golden/stcrank.py).
#include <recops/diversity/sequence_value.hpp>
#include <recops/simd/reduce.hpp>
#include <recops/train/gradient_check.hpp>
#include <vector>

#include "diversity/ordered_subsets.hpp"
#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("what a list is worth, and its gradient", "[diversity][sequence]", float, double) {
  using T = TestType;
  Random random = random_stream(7701);
  Workspace ws;
  for (const auto& [lists, k] : {std::pair<Index, Index>{1, 1}, {3, 0}, {0, 4}, {8, 5}, {13, 10}}) {
    Padded<T> r(random_matrix<T>(lists, k, random).view()), c(lists, k);
    Vector<T> tail = random_vector<T>(lists, random), v(lists), plain(lists);
    for (Index b = 0; b < lists; ++b)
      for (Index j = 0; j < k; ++j) c(b, j) = static_cast<T>(random.uniform());
    sequence_value<T>(r, c, tail, v);
    sequence_value<T>(r, c, {}, plain);
    for (Index b = 0; b < lists; ++b) {
      double sum = 0, reached = 1;
      for (Index j = 0; j < k; ++j) {
        sum += reached * static_cast<double>(r(b, j));
        reached *= static_cast<double>(c(b, j));
      }
      CHECK(std::abs(static_cast<double>(plain[b]) - sum) < 1e-5);
      CHECK(std::abs(static_cast<double>(v[b]) - sum - reached * static_cast<double>(tail[b])) < 1e-5);
    }
    if constexpr (std::is_same_v<T, double>) {
      const Vector<double> dv = random_vector<double>(lists, random);
      Matrix<double> rr(lists, k), cc(lists, k), dr(lists, k, 0), dc(lists, k, 0);
      for (Index b = 0; b < lists; ++b) {
        std::copy_n(r.view().row(b), k, rr.row(b));
        std::copy_n(c.view().row(b), k, cc.row(b));
      }
      Vector<double> dt(lists, 0);
      const auto loss = [&] {
        sequence_value<double>(rr, cc, tail, v);
        return simd::dot(v.data(), dv.data(), dv.size());
      };
      const auto backward = [&] { sequence_value_backward<double>(rr, cc, tail, dv, dr, dc, dt, ws); };
      backward();
      GradientReport report;
      check_gradient("rewards", leaf_values(rr), leaf_values(dr), loss, report);
      check_gradient("continuations", leaf_values(cc), leaf_values(dc), loss, report);
      check_gradient("tail", tail, dt, loss, report);
      CHECK(report.worst < 1e-6);
      CHECK(count_allocations(backward) == 0);
      if (k == 0)
        for (Index b = 0; b < lists; ++b) CHECK(dt[b] == 2 * dv[b]);  // called twice: it adds
    }
  }
}

TEMPLATE_TEST_CASE("values of lists are PyTorch's, plans the best of all orders", "[diversity][sequence][golden]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-6 : 1e-14;
  const Golden g("stcrank");
  Workspace ws;
  Padded<T> r(g.matrix<T>("lists.r").view()), c(g.matrix<T>("lists.c").view()), dr(r.view().rows(), r.view().cols()),
      dc(r.view().rows(), r.view().cols());
  const auto tail = g.values<T>("lists.tail"), dvalue = g.values<T>("lists.dvalue");
  Vector<T> value(r.view().rows()), dtail(r.view().rows(), T(0));
  sequence_value<T>(r, c, tail, value);
  sequence_value_backward<T>(r, c, tail, dvalue, dr, dc, dtail, ws);
  const auto near = [&](const Vector<T>& got, const char* name) {
    const Matrix<T> want = g.matrix<T>(name);
    return max_difference(MatrixView<const T>(got.data(), 1, got.size()), want.view()) <= tolerance;
  };
  CHECK((near(value, "lists.value") && near(dtail, "lists.dtail")));
  CHECK(max_difference(dr.view(), g.matrix<T>("lists.dr").view()) <= tolerance);
  CHECK(max_difference(dc.view(), g.matrix<T>("lists.dc").view()) <= tolerance);
  CHECK((dr.intact() && dc.intact()));

  const Matrix<T> rewards = g.matrix<T>("plan.r"), continuations = g.matrix<T>("plan.c"), best = g.matrix<T>("plan.best");
  const Matrix<std::int32_t> lists = g.matrix<std::int32_t>("plan.list");
  for (Index p = 0; p < rewards.rows(); ++p) {
    const VectorView<const T> earns(rewards.row(p), rewards.cols()), holds(continuations.row(p), rewards.cols());
    Vector<std::int32_t> all(rewards.cols()), order(lists.cols());
    Vector<T> worth(rewards.cols() + 1);
    const double end = g.values<double>("plan.tail")[static_cast<std::size_t>(p)];
    plan_sequence<T>(earns, holds, end, all, worth, ws);
    CHECK(max_difference(MatrixView<const T>(worth.data(), 1, worth.size()), best.view().middle_rows(p, 1)) <= tolerance);
    plan_sequence<T>(earns, holds, end, order, {}, ws);
    CHECK(std::equal(order.begin(), order.end(), lists.row(p)));
  }
}

TEST_CASE("the spec's figures", "[diversity][sequence]") {
  const Vector<double> r{.10, .30, .05, .20, .15}, c{.9, .2, .95, .6, .8};
  Workspace ws;
  Vector<std::int32_t> order(3), all(5);
  Vector<double> best(4), whole(6);
  CHECK(plan_sequence<double>(r, c, 0, order, best, ws) == 3);
  CHECK(std::abs(best[3] - 0.454) < 1e-12);
  CHECK((order[0] == 4 && order[1] == 3 && order[2] == 1));
  plan_sequence<double>(r, c, 0, all, whole, ws);
  CHECK(std::abs(whole[5] - 0.53317) < 1e-5);
  const std::int32_t expected[] = {0, 2, 4, 3, 1};
  for (Index t = 0; t < 5; ++t) CHECK(all[t] == expected[t]);
  const Matrix<double> rr{{.15, .20, .30}}, cc{{.8, .6, .2}};
  Matrix<double> dr(1, 3, 0), dc(1, 3, 0);
  Vector<double> one{1.0};
  sequence_value_backward<double>(rr, cc, {}, one, dr, dc, {}, ws);
  const double want_r[] = {1, 0.8, 0.48}, want_c[] = {0.38, 0.24, 0};
  for (Index k = 0; k < 3; ++k) CHECK((std::abs(dr(0, k) - want_r[k]) < 1e-12 && std::abs(dc(0, k) - want_c[k]) < 1e-12));
}

TEST_CASE("the plan is the best of all ordered subsets, and that much better than greedy", "[diversity][sequence]") {
  Random random = random_stream(7702);
  Workspace ws;
  double gain = 0;
  int plain = 0;
  constexpr int worlds = 120;
  for (int world = 0; world < worlds; ++world) {
    const Index n = 8, m = 4;
    Vector<double> r(n), c(n);
    for (Index i = 0; i < n; ++i) {
      r[i] = random.uniform(0, 0.2);
      c[i] = random.uniform(0.3, 0.95);
    }
    if (world % 5 == 0) c[3] = 1, c[4] = 0;
    if (world % 7 == 0) r[2] = -0.05;
    const double tail = world % 3 == 0 ? 0.1 : 0;
    Vector<std::int32_t> order(m);
    Vector<double> best(m + 1);
    REQUIRE(plan_sequence<double>(r, c, tail, order, best, ws) == m);
    const auto worth = [&](const std::vector<std::int32_t>& list) {
      double v = tail;
      for (std::size_t k = list.size(); k-- > 0;) v = r[list[k]] + c[list[k]] * v;
      return v;
    };
    double brute = -1e30;
    for_each_ordered_subset(n, m, [&](const std::vector<std::int32_t>& list) { brute = std::max(brute, worth(list)); });
    CHECK(std::abs(brute - best[m]) < 1e-12);
    CHECK(std::abs(worth({order.begin(), order.end()}) - brute) < 1e-12);
    if (world % 5 == 0 || world % 7 == 0 || tail > 0) continue;
    std::vector<std::int32_t> greedy{0, 1, 2, 3, 4, 5, 6, 7};
    std::stable_sort(greedy.begin(), greedy.end(), [&](std::int32_t a, std::int32_t b) { return r[a] > r[b]; });
    greedy.resize(4);
    gain += brute / worth(greedy) - 1;
    ++plain;
  }
  gain /= plain;
  CAPTURE(gain);
  CHECK(gain > 0.12);  // 17.4 % on average over many
  CHECK(gain < 0.24);
}

TEST_CASE("whoever never loses a user comes first if it earns, last if it costs", "[diversity][sequence]") {
  Random random = random_stream(7703);
  Workspace ws;
  for (int world = 0; world < 20; ++world) {
    Vector<double> r(5), c(5), best(6);
    for (Index i = 0; i < 5; ++i) {
      r[i] = random.uniform(0, 0.2);
      c[i] = random.uniform(0.3, 0.95);
    }
    c[1] = c[2] = c[3] = 1;
    r[1] = -0.1;
    r[2] = 0;
    Vector<std::int32_t> order(5);
    REQUIRE(plan_sequence<double>(r, c, 0.1, order, best, ws) == 5);
    CHECK((order[0] == 3 && order[4] == 1));
    double brute = -1;
    for_each_ordered_subset(5, 5, [&](const std::vector<std::int32_t>& list) {
      double v = 0.1;
      for (std::size_t k = list.size(); k-- > 0;) v = r[list[k]] + c[list[k]] * v;
      brute = std::max(brute, v);
    });
    CHECK(std::abs(best[5] - brute) < 1e-12);
  }
}

TEST_CASE("plans: special cases, unusable items, errors", "[diversity][sequence]") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Workspace ws;
  const Vector<float> r{1, 3, 2, 3}, none{0, 0, 0, 0}, half{0.5f, 0.5f, 0.5f, 0.5f};
  Vector<std::int32_t> one(1), two(2), six(6);
  Vector<float> best(7);
  plan_sequence<float>(r, half, 0, one, {}, ws);
  CHECK(one[0] == 1);  // the largest reward, the first of equals
  plan_sequence<float>(r, none, 0, two, {}, ws);
  CHECK(two[0] == 1);
  CHECK(plan_sequence<float>(r, half, 0, six, best, ws) == 4);
  CHECK((six[0] == 1 && six[1] == 3 && six[2] == 2 && six[3] == 0 && six[4] == -1 && best[6] == best[4]));
  const Vector<float> bad_r{1, nan, 2, inf, 1}, bad_c{0.5f, 0.5f, 1.5f, 0.5f, nan};
  CHECK(plan_sequence<float>(bad_r, bad_c, 0, two, {}, ws) == 1);
  CHECK((two[0] == 0 && two[1] == -1));
  CHECK(plan_sequence<float>({}, {}, 0.5, two, VectorView<float>(best.data(), 3), ws) == 0);
  CHECK(best[2] == 0.5f);
  const auto call = [&] { plan_sequence<float>(r, half, 0, six, best, ws); };
  CHECK(count_allocations(call) == 0);
  CHECK(error_of([&] { plan_sequence<float>(r, VectorView<const float>(half.data(), 3), 0, six, best, ws); }) ==
        "plan_sequence: continuations: expected size 4, got 3");
  CHECK(error_of([&] { plan_sequence<float>(r, half, 0, six, VectorView<float>(best.data(), 3), ws); }) ==
        "plan_sequence: best: expected size 7, got 3");
  const Matrix<float> m(2, 3, 0.5f), w(2, 2, 0.5f);
  Vector<float> v(2);
  CHECK(error_of([&] { sequence_value<float>(m, w, {}, v); }) ==
        "sequence_value: continuations: expected shape [2, 3], got [2, 2]");
}
