// Oracles: SciPy's rankdata and tiecorrect (golden/selection.py); counting, pair by pair.
#include <recops/simd/midrank.hpp>

#include "simd/selection_cases.hpp"
#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
bool before(T a, T b, Order order) {
  return a == a && (b != b || (order == Order::ascending ? a < b : a > b));
}

}  // namespace

TEMPLATE_TEST_CASE("Mid-ranks, tie terms and orders are those of SciPy and NumPy", "[simd][midrank][golden]", float, double) {
  using T = TestType;
  const Golden golden("selection");
  Workspace ws;
  for (const std::string name : {"normal", "ties", "equal", "one", "extremes"}) {
    CAPTURE(name);
    const auto x = golden.values<T>(name + ".x");
    const auto n = static_cast<Index>(x.size());
    const double term = golden.values<double>(name + ".term")[0];
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      std::vector<double> ranks(x.size());
      const double got = simd::midrank<T, A>(x.data(), n, Order::ascending, ranks.data(), nullptr, ws);
      REQUIRE(ranks == golden.values<double>(name + ".midrank"));
      REQUIRE(std::abs(got - term) <= 1e-9 * static_cast<double>(n * n * n));  // SciPy's comes as 1 - term / (n^3 - n)
      simd::midrank<T, A>(x.data(), n, Order::descending, ranks.data(), nullptr, ws);
      REQUIRE(ranks == golden.values<double>(name + ".midrank_descending"));
      std::vector<std::int32_t> indices(x.size());
      simd::argsort<T, A>(x.data(), n, Order::ascending, indices.data(), ws);
      REQUIRE(indices == golden.values<std::int32_t>(name + ".argsort"));
    });
  }
}

TEMPLATE_TEST_CASE("Mid-ranks count what comes before and what is equal, in every segment", "[simd][midrank]", float, double) {
  using T = TestType;
  Random random = random_stream(351);
  Threads threads{3};
  Workspace ws, parallel(make_executor(threads, 3));
  const std::vector<std::int32_t> offsets = {0, 0, 1, 40, 40, 41, 300, 311, 311};
  const auto segments = static_cast<Index>(offsets.size()) - 1;
  for (const auto& pattern : selection_patterns<T>(311, random)) {
    CAPTURE(pattern.first);
    const std::vector<T>& x = pattern.second;
    for (const Order order : {Order::ascending, Order::descending}) {
      std::vector<double> expected(x.size()), terms(static_cast<std::size_t>(segments), 0.0);
      std::vector<std::int32_t> equal(x.size());
      for (std::size_t s = 0; s + 1 < offsets.size(); ++s) {
        for (auto i = static_cast<std::size_t>(offsets[s]); i < static_cast<std::size_t>(offsets[s + 1]); ++i) {
          double above = 0;
          for (auto j = static_cast<std::size_t>(offsets[s]); j < static_cast<std::size_t>(offsets[s + 1]); ++j) {
            above += before(x[j], x[i], order);
            equal[i] += x[i] == x[j] || (x[i] != x[i] && x[j] != x[j]);
          }
          expected[i] = 1 + above + 0.5 * (equal[i] - 1);
          terms[s] += static_cast<double>(equal[i]) * equal[i] - 1;  // a run of t gives t (t^2 - 1)
        }
      }
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        std::vector<double> ranks(x.size()), got_terms(terms.size(), 77.0);
        std::vector<float> narrow(x.size());
        std::vector<std::int32_t> ties(x.size());
        simd::midrank_segments<T, A>(x.data(), offsets, order, ranks.data(), ties.data(), got_terms.data(), ws);
        REQUIRE(ranks == expected);
        REQUIRE(ties == equal);
        REQUIRE(got_terms == terms);
        simd::midrank_segments<T, A>(x.data(), offsets, order, narrow.data(), nullptr, nullptr, parallel);
        REQUIRE(std::equal(narrow.begin(), narrow.end(), expected.begin(),
                           [](float a, double b) { return static_cast<double>(a) == b; }));
        const Index n = offsets[6] - offsets[5];
        std::vector<double> one(static_cast<std::size_t>(n));
        REQUIRE(simd::midrank<T, A>(x.data() + offsets[5], n, order, one.data(), ties.data(), ws) == terms[5]);
        REQUIRE(std::equal(one.begin(), one.end(), expected.begin() + offsets[5]));
      });
    }
  }
}

TEMPLATE_TEST_CASE("Mid-ranks of an array that is split into parts add up", "[simd][midrank]", float, double) {
  using T = TestType;
  Random random = random_stream(352);
  const Index n = 150000;
  Vector<T> x(n);
  for (T& v : x) v = static_cast<T>(random.below(40000)) - T(20000);
  Vector<double> ranks(n);
  Vector<std::int32_t> ties(n), indices(n);
  Workspace ws;
  const double term = simd::midrank<T>(x.data(), n, Order::ascending, ranks.data(), ties.data(), ws);
  double sum = 0, square_sum = 0;
  for (Index i = 0; i < n; ++i) sum += ranks[i], square_sum += static_cast<double>(ties[i]) * ties[i] - 1;
  REQUIRE(sum == 0.5 * static_cast<double>(n) * static_cast<double>(n + 1));
  REQUIRE(term == square_sum);
  simd::argsort<T>(x.data(), n, Order::ascending, indices.data(), ws);
  bool sound = true;
  for (Index i = 1; i < n; ++i) {
    const std::int32_t a = indices[i - 1], b = indices[i];
    sound &= x[a] == x[b] ? ranks[a] == ranks[b] && ties[a] == ties[b] : ranks[b] - ranks[a] == 0.5 * (ties[a] + ties[b]);
  }
  REQUIRE(sound);
  AllocationCounter allocations;
  simd::midrank<T>(x.data(), n, Order::ascending, ranks.data(), ties.data(), ws);
  REQUIRE(allocations.count() == 0);
}
