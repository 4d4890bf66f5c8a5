/// @file   recops/metrics/ranked.hpp
/// @brief  The order of scores as metrics see it: stable, NaN ranking with minus infinity.
#pragma once
#include <recops/metrics/common.hpp>
#include <recops/simd/top_k.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// NaN as minus infinity, with which it ranks.
template <class T>
T lowest_if_nan(T x) {
  return x == x ? x : -std::numeric_limits<T>::infinity();
}

/// The scores, or a copy in scratch of `ws` where NaN among them has become minus infinity.
template <class T>
VectorView<const T> without_nan(VectorView<const T> scores, Workspace& ws) {
  if (!has_nan(scores)) return scores;
  const VectorView<T> copy = ws.vector<T>(scores.size());
  for (Index i = 0; i < scores.size(); ++i) copy[i] = lowest_if_nan(scores[i]);
  return VectorView<const T>(copy.data(), copy.size());
}

/// Scores in order (ties by index) and where they came from, in scratch that lives until the caller's mark ends.
template <class T>
struct Ranked {
  const T* score;
  const std::int32_t* index;
};

template <class T>
Ranked<T> ranked(VectorView<const T> scores, Order order, Workspace& ws) {
  const Index n = scores.size();
  T* const sorted = ws.take<T>(n);
  std::int32_t* const index = ws.take<std::int32_t>(n);
  const VectorView<const T> numbers = without_nan(scores, ws);
  simd::argsort<T>(numbers.data(), n, order, index, sorted, ws);
  return {sorted, index};
}

/// The best `k` <= n of scores without NaN.
template <class T>
Ranked<T> top_ranked(VectorView<const T> scores, Index k, Workspace& ws) {
  T* const best = ws.take<T>(k);
  std::int32_t* const index = ws.take<std::int32_t>(k);
  simd::top_k<T>(scores.data(), scores.size(), k, Order::descending, best, index, ws);
  return {best, index};
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
