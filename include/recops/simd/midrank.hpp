/// @file   recops/simd/midrank.hpp
/// @brief  Mid-ranks: the rank of each number, equal numbers sharing the mean of theirs, as rank statistics want it.
///
///     rank_i = 1 + #{j : x_j before x_i} + (t_i - 1) / 2          t_i = how many equal x_i, itself included
///
/// Shapes      x, ranks, ties [n]   offsets [S + 1]
/// Ranks       from 1; their sum is n (n + 1) / 2. `Order::ascending` gives the smallest number rank 1 (SciPy's `rankdata`),
///             `Order::descending` the largest. -0 and +0 are equal.
/// NaN         ranks behind all numbers in either order, and all NaN are equal. Nothing is propagated: look for NaN first where
///             one should spoil the whole.
/// Precision   exact (multiples of one half) in double; in float up to n = 2^23, then rounded to the nearest.
/// Ties        the tie term, sum over runs of equal numbers of t^3 - t, corrects the variance of rank-sum statistics and
///             Spearman's correlation; 0 without ties.
/// Cost        that of an argsort and a pass over its result. Scratch 16 n bytes. No allocation once scratch has grown.
#pragma once
#include <recops/simd/argsort.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Ranks of the numbers at the places from `first` on, whose ordered words these are; returns the tie term.
template <class T, class R>
double midranks_of(const T* x, Index first, Index n, const std::uint64_t* words, R* ranks, std::int32_t* ties) {
  const auto tied = [=](Index i, Index j) {
    if constexpr (std::is_same_v<T, float>) {
      return words[i] >> 32 == words[j] >> 32;
    } else {
      const T a = x[index_of(words[i])], b = x[index_of(words[j])];
      return a == b || (a != a && b != b);
    }
  };
  double term = 0;
  for (Index begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    while (end < n && tied(end - 1, end)) ++end;
    const Index count = end - begin;
    const R rank = static_cast<R>(0.5 * static_cast<double>(2 * first + begin + 1 + end));
    for (Index i = begin; i < end; ++i) {
      const std::int32_t at = index_of(words[i]);
      ranks[at] = rank;
      if (ties != nullptr) ties[at] = static_cast<std::int32_t>(count);
    }
    const auto t = static_cast<double>(count);
    term += t * t * t - t;
  }
  return term;
}

}  // namespace detail

/// The mid-ranks of x. `ties`, which may be null, gets how many numbers share each rank. Returns the tie term.
template <Real T, class A = DefaultArch, Real R>
double midrank(const T* x, Index n, Order order, R* ranks, std::int32_t* ties, Workspace& ws) {
  const auto mark = ws.mark();
  double term = 0;
  detail::visit_ordered<T, A>(x, n, order, ws, [&](Index begin, Index count, const std::uint64_t* words) {
    term += detail::midranks_of(x, begin, count, words, ranks, ties);
  });
  return term;
}

/// Mid-ranks within each segment. `ties` [n] and `terms` [S], the tie term of each segment, may be null. Segments run on the
/// caller's threads; `offsets` begin with 0 and never fall.
template <Real T, class A = DefaultArch, Real R>
void midrank_segments(const T* x, IndexView offsets, Order order, R* ranks, std::int32_t* ties, double* terms, Workspace& ws) {
  if (terms != nullptr) std::fill_n(terms, offsets.size() - 1, 0.0);
  detail::for_each_segment<T, A>(
      x, offsets, order, ws, [=](Index segment, Index first, Index begin, Index count, const std::uint64_t* words) {
        const double term =
            detail::midranks_of(x + first, begin, count, words, ranks + first, ties == nullptr ? nullptr : ties + first);
        if (terms != nullptr) terms[segment] += term;
      });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
