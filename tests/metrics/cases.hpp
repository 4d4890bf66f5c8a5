/// @file   tests/metrics/cases.hpp
/// @brief  Random scored groups with many ties, and what tests of metrics share.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/random.hpp>
#include <recops/core/views.hpp>
#include <vector>

#include "support/catch.hpp"

namespace metric_cases {

using recops::Index;

template <class T>
struct Scored {
  std::vector<T> scores, relevance, weights;
  std::vector<std::uint8_t> labels;
  std::vector<std::int32_t> offsets{0};
  std::size_t size() const { return scores.size(); }
};

/// Groups of the given sizes; `levels` distinct scores (0: no ties), each entry positive with probability `rate`.
template <class T>
Scored<T> scored(const std::vector<Index>& sizes, Index levels, double rate, std::uint64_t stream) {
  recops::Random random(recops_test::seed(), stream);
  Scored<T> c;
  for (const Index n : sizes) {
    for (Index i = 0; i < n; ++i) {
      c.scores.push_back(levels > 0 ? static_cast<T>(static_cast<double>(random.below(levels) - levels / 2) / 8)
                                    : static_cast<T>(random.normal()));
      c.labels.push_back(random.chance(rate));
      c.relevance.push_back(static_cast<T>(random.below(4)));
      c.weights.push_back(static_cast<T>(random.below(5)) / T(4));
    }
    c.offsets.push_back(static_cast<std::int32_t>(c.scores.size()));
  }
  return c;
}

inline bool same(double a, double b, double tolerance = 1e-12) {
  return std::abs(a - b) <= tolerance * std::max(1.0, std::abs(b)) || (a != a && b != b);
}

/// A temporary as an lvalue, until the end of the expression: views are not made from owners that die.
template <class X>
const X& kept(const X& x) {
  return x;
}

/// Calls `f(order)` for every order of 0 .. n-1 that sorts `scores` descending: all permutations of the tied ones.
template <class T, class F>
void every_order(const std::vector<T>& scores, F&& f) {
  std::vector<std::size_t> order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  do {
    bool sorted = true;
    for (std::size_t i = 1; i < order.size(); ++i) sorted &= scores[order[i - 1]] >= scores[order[i]];
    if (sorted) f(order);
  } while (std::next_permutation(order.begin(), order.end()));
}

/// One executor for tests: workers in turn, in this thread.
struct InTurn {
  int workers;
  template <class Task>
  void operator()(Index tasks, Task&& task) const {
    for (Index i = tasks - 1; i >= 0; --i) task(i, static_cast<int>(i % workers));  // last first
  }
};

}  // namespace metric_cases
