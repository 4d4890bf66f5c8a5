/// Soft ranks from their definition, in long double: sorted, projected by pooling adjacent violators from right to left (the library
/// goes left to right), subtracted. Quadratic: x / eps - projection; KL: exp of it.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <recops/core/matrix.hpp>
#include <string>
#include <vector>

#include "support/golden.hpp"

namespace recops_test {

using Numbers = std::vector<long double>;

/// Where blocks begin in order, and the ranks, in the places of the scores.
struct ReferenceRanks {
  std::vector<std::size_t> order, starts;
  Numbers ranks;
};

inline ReferenceRanks reference_soft_rank(const Numbers& theta, long double eps, bool descending, bool kl) {
  const std::size_t n = theta.size();
  ReferenceRanks out;
  Numbers x = theta;
  if (descending)
    for (auto& v : x) v = -v;
  out.order.resize(n);
  std::iota(out.order.begin(), out.order.end(), std::size_t{0});
  std::stable_sort(out.order.begin(), out.order.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
  struct Block {
    std::size_t begin, end;
  };
  const auto value = [&](const Block& b) {
    long double rho = 0, sum = 0;
    const long double most = x[out.order[b.begin]];
    for (std::size_t i = b.begin; i < b.end; ++i) {
      rho += static_cast<long double>(n - i);
      sum += kl ? std::exp((x[out.order[i]] - most) / eps) : x[out.order[i]];
    }
    const auto count = static_cast<long double>(b.end - b.begin);
    return kl ? most + eps * (std::log(sum) - std::log(rho)) : (sum - eps * rho) / count;
  };
  std::vector<Block> stack;
  for (std::size_t i = n; i-- > 0;) {
    Block b{i, i + 1};
    while (!stack.empty() && value(b) <= value(stack.back())) {
      b.end = stack.back().end;
      stack.pop_back();
    }
    stack.push_back(b);
  }
  out.ranks.resize(n);
  for (auto b = stack.rbegin(); b != stack.rend(); ++b) {
    out.starts.push_back(b->begin);
    const long double v = value(*b);
    for (std::size_t i = b->begin; i < b->end; ++i) {
      const std::size_t at = out.order[i];
      out.ranks[at] = b->end - b->begin == 1 ? static_cast<long double>(n - i)
                      : kl                   ? std::exp((x[at] - v) / eps)
                                             : (x[at] - v) / eps;
    }
  }
  return out;
}

inline Numbers reference_mid_ranks(const Numbers& theta, bool descending) {
  Numbers ranks(theta.size(), 0.5L);
  for (std::size_t i = 0; i < theta.size(); ++i)
    for (const long double other : theta) {
      const bool before = descending ? other > theta[i] : other < theta[i];
      ranks[i] += before ? 1.0L : other == theta[i] ? 0.5L : 0.0L;
    }
  return ranks;
}

template <class T>
recops::Vector<T> golden_vector(const Golden& golden, const std::string& key) {
  const std::vector<T> values = golden.values<T>(key);
  recops::Vector<T> v(static_cast<recops::Index>(values.size()));
  std::copy(values.begin(), values.end(), v.begin());
  return v;
}

}  // namespace recops_test
