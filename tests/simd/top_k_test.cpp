// Oracle: std::stable_sort of the indices by a comparison written from the documented order, its first k.
#include <recops/simd/top_k.hpp>

#include <numeric>
#include <vector>

#include "simd/selection_cases.hpp"
#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("top-k is the head of a stable sort, on every pattern", "[simd][top_k]", float, double) {
  using T = TestType;
  Random random = random_stream(301);
  Workspace ws;
  for (const Index n : {0, 1, 2, 15, 16, 17, 63, 64, 65, 130, 1000, 5000}) {
    for (const auto& pattern : selection_patterns<T>(n, random)) {
      const std::string& name = pattern.first;
      const std::vector<T>& x = pattern.second;
      for (const Order order : {Order::descending, Order::ascending}) {
        const std::vector<std::int32_t> expected = stable_order(x, order);
        for (const Index k : {Index{0}, Index{1}, Index{2}, Index{17}, Index{100}, n / 8 - 1, n / 2, n, n + 3}) {
          if (k < 0) continue;
          CAPTURE(n, k, name, static_cast<int>(order));
          for_each_architecture([&](auto arch) {
            using A = decltype(arch);
            const auto size = static_cast<std::size_t>(k);
            std::vector<T> top(size + 1, T(77));
            std::vector<std::int32_t> indices(size + 1, 77);
            const Index count = simd::top_k<T, A>(x.data(), n, k, order, top.data(), indices.data(), ws);
            REQUIRE(count == std::min(n, k));
            bool same = true;
            for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
              same &= indices[i] == expected[i] && same_bits(top[i], x[static_cast<std::size_t>(expected[i])]);
            REQUIRE(same);
            for (std::size_t i = static_cast<std::size_t>(count); i <= size; ++i) same &= top[i] == T(77) && indices[i] == 77;
            REQUIRE(same);
          });
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("TopK does not depend on the cut nor on the order of the blocks", "[simd][top_k]", float, double) {
  using T = TestType;
  Random random = random_stream(302);
  const Index n = 3000;
  Workspace ws;
  for (const auto& pattern : selection_patterns<T>(n, random)) {
    const std::string& name = pattern.first;
    const std::vector<T>& x = pattern.second;
    for (const Order order : {Order::descending, Order::ascending}) {
      const std::vector<std::int32_t> expected = stable_order(x, order);
      for (const Index k : {1, 10, 100, 333, 2999, 4000}) {
        // 0: blocks in order; 1: blocks in random order; 2: scattered indices; 3: all of these in turn.
        for (int way = 0; way < 4; ++way) {
          CAPTURE(name, static_cast<int>(order), k, way);
          std::vector<Index> cuts = {0};
          while (cuts.back() < n) cuts.push_back(std::min(n, cuts.back() + static_cast<Index>(random.below(400))));
          std::vector<std::size_t> blocks(cuts.size() - 1);
          std::iota(blocks.begin(), blocks.end(), std::size_t{0});
          if (way != 0)
            for (std::size_t i = blocks.size(); i > 1; --i)
              std::swap(blocks[i - 1], blocks[static_cast<std::size_t>(random.below(static_cast<Index>(i)))]);
          for_each_architecture([&](auto arch) {
            using A = decltype(arch);
            const auto mark = ws.mark();
            simd::TopK<T, A> best(k, order, ws);
            Index added = 0;
            for (const std::size_t b : blocks) {
              const Index first = cuts[b], count = cuts[b + 1] - first;
              if (way == 2 || (way == 3 && b % 2 == 0)) {
                std::vector<T> scores;
                std::vector<std::int32_t> indices;
                for (Index i = count; i-- > 0;) {  // backwards
                  scores.push_back(x[static_cast<std::size_t>(first + i)]);
                  indices.push_back(static_cast<std::int32_t>(first + i));
                }
                best.add(scores.data(), indices.data(), count);
              } else {
                best.add(x.data() + first, count, first);
              }
              added += count;
              if (b % 3 == 0) best.tighten();
            }
            REQUIRE(added == n);
            std::vector<T> top(static_cast<std::size_t>(std::min(n, k)));
            std::vector<std::int32_t> indices(top.size());
            REQUIRE(best.finish(top.data(), indices.data()) == static_cast<Index>(top.size()));
            bool same = true;
            for (std::size_t i = 0; i < top.size(); ++i)
              same &= indices[i] == expected[i] && same_bits(top[i], x[static_cast<std::size_t>(expected[i])]);
            REQUIRE(same);
            REQUIRE(best.finish(nullptr, indices.data()) == static_cast<Index>(top.size()));  // again
            REQUIRE(indices.front() == expected.front());
          });
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("The threshold of TopK is the k-th best number so far", "[simd][top_k]", float, double) {
  using T = TestType;
  Random random = random_stream(303);
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  Workspace ws;
  simd::TopK<T> best(3, Order::descending, ws), least(3, Order::ascending, ws);
  REQUIRE(best.threshold() == -infinity);
  REQUIRE(least.threshold() == infinity);
  const T some[] = {T(1), nan, T(5), T(-2)};
  best.add(some, 2);
  best.tighten();
  REQUIRE(best.threshold() == -infinity);
  best.add(some + 2, 2, 2);
  best.tighten();
  REQUIRE(best.threshold() == T(-2));
  least.add(some, 4);
  least.tighten();
  REQUIRE(least.threshold() == T(5));
  std::vector<T> all = {T(1), T(5), T(-2)};
  for (Index first = 4; first < 3000; first += 37) {
    T block[37];
    for (T& x : block) x = static_cast<T>(random.normal()), all.push_back(x);
    best.add(block, 37, first);
    std::sort(all.begin(), all.end(), std::greater<T>());
    REQUIRE(best.threshold() <= all[2]);
    best.tighten();
    REQUIRE(best.threshold() == all[2]);
  }
  best.clear();
  REQUIRE(best.threshold() == -infinity);
  T top[3];
  std::int32_t indices[3];
  REQUIRE(best.finish(top, indices) == 0);
  best.add(some, 4);
  REQUIRE(best.finish(top, indices) == 3);
  REQUIRE(indices[0] == 2);
  REQUIRE(indices[2] == 3);
}

TEMPLATE_TEST_CASE("top-k of rows, on any number of threads, of strided views", "[simd][top_k]", float, double) {
  using T = TestType;
  Random random = random_stream(304);
  for (const Index n : {0, 5, 400}) {
    const Index rows = 7, k = 9, count = std::min(n, k);
    const Matrix<T> values = random_matrix<T>(rows, n, random);
    Padded<T> scores(values.view());
    Padded<T> top(rows, k), again(rows, k);
    Matrix<std::int32_t> indices(rows, k);
    Threads threads{3};
    Workspace ws, parallel(make_executor(threads, 3));
    REQUIRE(simd::top_k_rows<T>(scores, k, Order::ascending, top, indices, ws) == count);
    REQUIRE(top.intact());
    for (Index b = 0; b < rows; ++b) {
      const std::vector<std::int32_t> expected =
          stable_order(std::vector<T>(scores.view().row(b), scores.view().row(b) + n), Order::ascending);
      for (Index i = 0; i < k; ++i) {
        REQUIRE(indices(b, i) == (i < count ? expected[static_cast<std::size_t>(i)] : -1));
        REQUIRE(top(b, i) == (i < count ? scores(b, indices(b, i)) : std::numeric_limits<T>::infinity()));
      }
    }
    simd::top_k_rows<T>(scores, k, Order::ascending, again, {}, parallel);
    REQUIRE(max_difference(top.view(), again.view()) == 0);
  }
}

TEMPLATE_TEST_CASE("top-k allocates nothing the second time", "[simd][top_k]", float, double) {
  using T = TestType;
  Random random = random_stream(305);
  const Vector<T> x = random_vector<T>(20000, random);
  Vector<T> top(3000);
  Vector<std::int32_t> indices(3000);
  Workspace ws;
  for (const Index k : {100, 3000}) simd::top_k<T>(x.data(), x.size(), k, Order::descending, top.data(), indices.data(), ws);
  AllocationCounter allocations;
  for (const Index k : {100, 3000}) simd::top_k<T>(x.data(), x.size(), k, Order::descending, top.data(), indices.data(), ws);
  REQUIRE(allocations.count() == 0);
}
