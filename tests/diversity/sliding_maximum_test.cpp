// Oracle: the maximum over the last columns, kept whole.
#include <recops/diversity/sliding_maximum.hpp>

#include <algorithm>
#include <vector>

#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("SlidingMaximum is the maximum of the last columns", "[diversity][sliding_maximum]", float, double) {
  using T = TestType;
  auto random = recops_test::random_stream(171);
  const Index n = 128;  // whole vectors on every instruction set
  for (const Index capacity : {1, 2, 3, 4, 7, 50}) {
    Workspace scratch;
    detail::SlidingMaximum<T, simd::DefaultArch> window(n, capacity, scratch);
    T* const out = scratch.take<T>(n);
    std::vector<std::vector<T>> all;
    for (Index t = 0; t < 30; ++t) {
      T* const column = window.make_room();
      all.emplace_back();
      for (Index i = 0; i < n; ++i) {
        column[i] = static_cast<T>(random.normal());
        all.back().push_back(column[i]);
      }
      window.push(out);
      for (Index i = 0; i < n; ++i) {
        T most = all.back()[static_cast<std::size_t>(i)];
        for (Index l = std::max(Index{0}, t + 1 - capacity); l < t; ++l)
          most = std::max(most, all[static_cast<std::size_t>(l)][static_cast<std::size_t>(i)]);
        if (out[i] != most) FAIL("capacity " << capacity << ", column " << t << ", row " << i);
      }
    }
    SUCCEED();
  }
}
