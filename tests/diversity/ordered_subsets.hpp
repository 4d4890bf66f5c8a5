/// @file   tests/diversity/ordered_subsets.hpp
/// @brief  All ordered selections of m of n items, in lexicographic order: what planners are compared with.
#pragma once
#include <algorithm>
#include <cstdint>
#include <recops/core/views.hpp>
#include <vector>

namespace recops_test {

template <class F>
void for_each_ordered_subset(recops::Index n, recops::Index m, F&& f, std::vector<std::int32_t> list = {}) {
  if (static_cast<recops::Index>(list.size()) == m) return f(list);
  for (std::int32_t i = 0; i < n; ++i) {
    if (std::find(list.begin(), list.end(), i) != list.end()) continue;
    list.push_back(i);
    for_each_ordered_subset(n, m, f, list);
    list.pop_back();
  }
}

}  // namespace recops_test
