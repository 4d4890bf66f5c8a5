// Oracle: std::stable_sort of the indices by a comparison written from the documented order.
#include <recops/simd/argsort.hpp>

#include "simd/selection_cases.hpp"
#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T, class A>
void check_order(const std::vector<T>& x, Order order, Workspace& ws) {
  const Index n = static_cast<Index>(x.size());
  const std::vector<std::int32_t> expected = stable_order(x, order);
  std::vector<std::int32_t> indices(x.size() + 1, 77), places(x.size() + 1, 77), inverse(x.size());
  simd::argsort<T, A>(x.data(), n, order, indices.data(), ws);
  REQUIRE(std::equal(expected.begin(), expected.end(), indices.begin()));
  REQUIRE(indices.back() == 77);
  simd::ranks<T, A>(x.data(), n, order, places.data(), ws);
  simd::invert_permutation(expected.data(), n, inverse.data());
  REQUIRE(std::equal(inverse.begin(), inverse.end(), places.begin()));
  REQUIRE(places.back() == 77);
  std::vector<T> sorted(x.size() + 1, T(77));
  std::fill(indices.begin(), indices.end() - 1, -1);
  simd::argsort<T, A>(x.data(), n, order, indices.data(), sorted.data(), ws);
  REQUIRE(std::equal(expected.begin(), expected.end(), indices.begin()));
  bool same = true;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const T value = x[static_cast<std::size_t>(expected[i])];
    same &= value == value ? same_bits(sorted[i], value + T(0)) : sorted[i] != sorted[i];
  }
  REQUIRE(same);
  REQUIRE(sorted.back() == T(77));
}

}  // namespace

TEMPLATE_TEST_CASE("argsort and ranks are a stable sort, for every pattern and size", "[simd][argsort]", float, double) {
  using T = TestType;
  Random random = random_stream(311);
  Workspace ws;
  // Every size of the networks and of the comparison of each with each, then those that are partitioned or go by digits.
  std::vector<Index> sizes(200);
  std::iota(sizes.begin(), sizes.end(), Index{0});
  sizes.insert(sizes.end(), {255, 256, 257, 1000, 2047, 2048, 2049, 5000});
  for (const Index n : sizes) {
    const bool all = n % 16 == 0 || n > 200;
    for (const auto& pattern : selection_patterns<T>(n, random)) {
      const std::string& name = pattern.first;
      if (!all && name != "normal" && name != "any bits" && name != "few values") continue;
      for (const Order order : {Order::descending, Order::ascending}) {
        CAPTURE(n, name, static_cast<int>(order));
        for_each_architecture([&](auto arch) { check_order<T, decltype(arch)>(pattern.second, order, ws); });
      }
    }
  }
}

TEMPLATE_TEST_CASE("argsort of arrays that are split into parts", "[simd][argsort]", float, double) {
  using T = TestType;
  Random random = random_stream(312);
  Workspace ws;
  const Index n = (Index{1} << 17) + 123;
  for (const auto& pattern : selection_patterns<T>(n, random)) {
    const std::string& name = pattern.first;
    if (name != "normal" && name != "any bits" && name != "equal" && name != "almost one" && name != "few values") continue;
    if (sanitized && name != "any bits") continue;
    CAPTURE(name);
    for_each_architecture([&](auto arch) { check_order<T, decltype(arch)>(pattern.second, Order::descending, ws); });
  }
}

TEMPLATE_TEST_CASE("Segments are sorted alone, empty ones too, on any number of threads", "[simd][argsort]", float, double) {
  using T = TestType;
  Random random = random_stream(313);
  Threads threads{3};
  Workspace ws, parallel(make_executor(threads, 3));
  for (const Index segments : {0, 1, 2, 64, 65, 300}) {
    std::vector<std::int64_t> offsets = {0};
    for (Index s = 0; s < segments; ++s)
      offsets.push_back(offsets.back() +
                        (random.below(4) == 0 ? 0 : static_cast<std::int64_t>(random.below(s % 50 == 7 ? 3000 : 90))));
    const Index n = static_cast<Index>(offsets.back());
    const std::vector<std::int32_t> narrow(offsets.begin(), offsets.end());
    for (const auto& pattern : selection_patterns<T>(n, random)) {
      if (pattern.first != "any bits" && pattern.first != "few values") continue;
      const std::vector<T>& x = pattern.second;
      std::vector<std::int32_t> expected, inverse;
      for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
        const auto order = stable_order(std::vector<T>(x.begin() + offsets[s], x.begin() + offsets[s + 1]), Order::descending);
        expected.insert(expected.end(), order.begin(), order.end());
        std::vector<std::int32_t> places(order.size());
        simd::invert_permutation(order.data(), static_cast<Index>(order.size()), places.data());
        inverse.insert(inverse.end(), places.begin(), places.end());
      }
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        std::vector<std::int32_t> indices(x.size()), places(x.size());
        simd::argsort_segments<T, A>(x.data(), offsets, Order::descending, indices.data(), ws);
        REQUIRE(indices == expected);
        std::fill(indices.begin(), indices.end(), -1);
        simd::argsort_segments<T, A>(x.data(), narrow, Order::descending, indices.data(), parallel);
        REQUIRE(indices == expected);
        simd::ranks_segments<T, A>(x.data(), offsets, Order::descending, places.data(), parallel);
        REQUIRE(places == inverse);
      });
    }
  }
}

TEMPLATE_TEST_CASE("argsort allocates nothing the second time", "[simd][argsort]", float, double) {
  using T = TestType;
  Random random = random_stream(314);
  const Vector<T> x = random_vector<T>(20000, random);
  const std::vector<std::int32_t> offsets = {0, 100, 100, 20000};
  Vector<std::int32_t> indices(20000);
  Workspace ws;
  const auto run = [&] {
    simd::argsort<T>(x.data(), x.size(), Order::ascending, indices.data(), ws);
    simd::argsort_segments<T>(x.data(), offsets, Order::ascending, indices.data(), ws);
  };
  run();
  AllocationCounter allocations;
  run();
  REQUIRE(allocations.count() == 0);
}
