/// @file   recops/diversity/sequence_value.hpp
/// @brief  What a list is worth that is seen item by item and may be left after each of them; and the best list, exactly, where an
///         item's value does not depend on what is around it.
///
///     V_k = r_k + c_k V_(k+1),   V_(K+1) = tail            V_1 = sum_k r_k · prod_(j<k) c_j
///
/// r_k is what showing item k earns, c_k the probability that the user goes on after it.
///
/// `plan_sequence`: any set of items is best shown in falling order of r / (1 - c) (exchange two neighbours); in that order
///
///     T_i[q] = max(T_(i+1)[q],  r_i + c_i T_(i+1)[q - 1])        T_i[0] = tail
///
/// finds the best q of all, for every q up to m at once.
///
/// Shapes      rewards, continuations [B, K]   tail [B] or empty (0)   values [B]; a plan: [n], order [m], best [m + 1].
/// Edge cases  K = 0 gives the tail. Shorter lists: fill with r = 0, c = 1. A plan always takes min(m, usable items): an item of
///             negative reward only where it must.
/// NaN         Stays in its list; in a plan an item whose numbers are not finite, or c outside [0, 1], is not used.
/// Precision   T in lists; plans in double.
/// Cost        2 B K flops; a plan O(n log n + n m) and n m bytes. No allocation once the workspace has grown.
/// Errors      Error for shapes that disagree; outputs untouched.
/// Gradient    `sequence_value_backward`: of rewards, continuations and tail; *adds*.
/// Reference   Look-ahead of STCRank (arXiv 2601.10027), our reconstruction. A visit as a stochastic shortest path whose end is the
///             exit: Wang et al., MDP-SSP, KDD 2020. Position-dependent exits (CAVE, arXiv 2508.02242): pass c_k (1 - delta_k).
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/argsort.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void check_sequences(const char* name, MatrixView<const T> rewards, MatrixView<const T> continuations, VectorView<const T> tail) {
  check_shape(name, "rewards", rewards, any_size, any_size);
  check_shape(name, "continuations", continuations, rewards.rows(), rewards.cols());
  if (!tail.empty()) check_size(name, "tail", tail, rewards.rows());
}

}  // namespace detail

/// Writes values [B].
template <Real T>
void sequence_value(MatrixView<const T> rewards, MatrixView<const T> continuations, VectorView<const T> tail,
                    VectorView<T> values) {
  constexpr const char* name = "sequence_value";
  detail::check_sequences(name, rewards, continuations, tail);
  check_size(name, "values", values, rewards.rows());
  constexpr Index side = 8;  // lists at a time: each is a chain in which every step waits for the one before
  const Index lists = rewards.rows(), k = rewards.cols();
  for (Index b = 0; b < lists; b += side) {
    const Index count = std::min(side, lists - b);
    T v[side] = {};
    for (Index i = 0; i < count && !tail.empty(); ++i) v[i] = tail[b + i];
    const T* r[side];
    const T* c[side];
    for (Index i = 0; i < side; ++i) {
      const Index at = b + std::min(i, count - 1);
      r[i] = rewards.data() + at * rewards.stride();
      c[i] = continuations.data() + at * continuations.stride();
    }
    for (Index j = k; j-- > 0;)
      for (Index i = 0; i < side; ++i) v[i] = r[i][j] + c[i][j] * v[i];
    std::copy_n(v, count, values.data() + b);
  }
}

/// Adds to the gradients (each unless empty) of what went in, given dvalues [B].
template <Real T>
void sequence_value_backward(MatrixView<const T> rewards, MatrixView<const T> continuations, VectorView<const T> tail,
                             VectorView<const T> dvalues, MatrixView<T> drewards, MatrixView<T> dcontinuations,
                             VectorView<T> dtail, Workspace& ws) {
  constexpr const char* name = "sequence_value_backward";
  detail::check_sequences(name, rewards, continuations, tail);
  const Index lists = rewards.rows(), k = rewards.cols();
  check_size(name, "dvalues", dvalues, lists);
  if (!drewards.empty()) check_shape(name, "drewards", drewards, lists, k);
  if (!dcontinuations.empty()) check_shape(name, "dcontinuations", dcontinuations, lists, k);
  if (!dtail.empty()) check_size(name, "dtail", dtail, lists);
  const auto mark = ws.mark();
  T* const next = ws.take<T>(k);  // V_(k+1)
  for (Index b = 0; b < lists; ++b) {
    T v = tail.empty() ? T(0) : tail[b];
    for (Index j = k; j-- > 0;) {
      next[j] = v;
      v = rewards(b, j) + continuations(b, j) * v;
    }
    T reached = dvalues[b];
    for (Index j = 0; j < k; ++j) {
      if (!drewards.empty()) drewards(b, j) += reached;
      if (!dcontinuations.empty()) dcontinuations(b, j) += reached * next[j];
      reached *= continuations(b, j);
    }
    if (!dtail.empty()) dtail[b] += reached;
  }
}

namespace detail {

/// r / (1 - c): what an item earns per unit of the chance of losing the user; infinite where it never does. NaN: not to be used.
inline double sequence_index(double r, double c) {
  const bool usable = std::abs(r) <= std::numeric_limits<double>::max() && c >= 0 && c <= 1;
  if (!usable) return std::numeric_limits<double>::quiet_NaN();
  if (c == 1) return r > 0 ? std::numeric_limits<double>::infinity() : r < 0 ? -std::numeric_limits<double>::infinity() : 0;
  return r / (1 - c);
}

/// Items by falling index, ties by number; unusable ones are left out. Returns how many there are.
template <class T>
Index sequence_order(VectorView<const T> rewards, VectorView<const T> continuations, std::int32_t* order, Workspace& ws) {
  const Index n = rewards.size();
  const auto mark = ws.mark();
  double* const key = ws.take<double>(n);
  Index usable = 0;
  for (Index i = 0; i < n; ++i) {
    key[i] = sequence_index(static_cast<double>(rewards[i]), static_cast<double>(continuations[i]));
    usable += !std::isnan(key[i]);
  }
  simd::argsort<double>(key, n, Order::descending, order, ws);  // NaN comes last
  return usable;
}

template <class T>
void check_plan(const char* name, VectorView<const T> rewards, VectorView<const T> continuations) {
  check_size(name, "rewards", rewards, any_size);
  check_size(name, "continuations", continuations, rewards.size());
  check_option(name, "rewards", rewards.size() <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 items",
               static_cast<double>(rewards.size()));
}

}  // namespace detail

/// The best list of up to m = order.size() of n items, in the order in which to show it; unused places become -1. best [m + 1] (or empty)
/// receives T_0[q], what the best list of q items is worth; where there are fewer than q items, that of all of them. Returns how many
/// places are filled.
template <Real T>
Index plan_sequence(VectorView<const T> rewards, VectorView<const T> continuations, double tail, VectorView<std::int32_t> order,
                    VectorView<T> best, Workspace& ws) {
  constexpr const char* name = "plan_sequence";
  detail::check_plan(name, rewards, continuations);
  check_size(name, "order", order, any_size);
  if (!best.empty()) check_size(name, "best", best, order.size() + 1);
  check_option(name, "tail", std::isfinite(tail), "a finite number", tail);
  constexpr double never = -std::numeric_limits<double>::infinity();
  const auto mark = ws.mark();
  auto* const sorted = ws.take<std::int32_t>(rewards.size());
  const Index n = detail::sequence_order(rewards, continuations, sorted, ws), m = std::min(order.size(), n);
  double *now = ws.take<double>(m + 1), *later = ws.take<double>(m + 1);
  auto* const taken = ws.take<std::uint8_t>(n * (m + 1));
  std::fill_n(later, m + 1, never);
  later[0] = tail;
  for (Index i = n; i-- > 0;) {
    const auto r = static_cast<double>(rewards[sorted[i]]), c = static_cast<double>(continuations[sorted[i]]);
    std::uint8_t* const take = taken + i * (m + 1);
    now[0] = tail;
    for (Index q = 1; q <= m; ++q) {
      const double with = later[q - 1] == never ? never : r + c * later[q - 1];  // c may be 0
      take[q] = with >= later[q];
      now[q] = with >= later[q] ? with : later[q];
    }
    std::swap(now, later);
  }
  Index place = 0;
  for (Index i = 0, q = m; i < n && q > 0; ++i) {
    if (!taken[i * (m + 1) + q]) continue;
    order[place++] = sorted[i];
    --q;
  }
  std::fill(order.begin() + place, order.end(), -1);
  for (Index q = 0; q < best.size(); ++q) best[q] = static_cast<T>(later[std::min(q, m)]);
  return place;
}

}  // namespace RECOPS_ABI
}  // namespace recops
