/// @file   recops/ranking/soft_sort.hpp
/// @brief  Differentiable sorted values in O(n log n): the projection of an even ramp onto the hull of all orders of the values.
///
///     quadratic   v = argmin { ½ ‖t - rho / eps‖² : t in the hull of all permutations of the values }       rho = (n, ..., 1)
///     kl          the same in the relative entropy, of exponentials: it keeps Σ exp(v) instead of Σ v
///
/// Neighbours closer than 1 / eps keep their values; others form blocks, which become a ramp of slope 1 / eps through
/// their mean (KL: their log-sum-exp). So eps acts the other way round than in soft_rank: small is exact, large pools.
///
/// Shapes      scores, sorted [n]   offsets [G + 1], or empty for one group
/// Order       descending: sorted[0] is the largest of its group; ascending: the smallest.
/// eps         absolute, in units of 1 / score. Exact where eps <= 1 / (largest gap); 0: a hard sort, whose gradient is the permutation's.
/// NaN         a NaN or infinity (or a double beyond 2^1000) makes its group's values and gradients NaN; others are untouched.
/// Precision   block sums in double; single values are exact. Quadratic keeps the sum of the values and of the gradient.
/// Cost        one argsort, one pass of pooling. Scratch 28 (KL 44) bytes per entry of the largest group.
/// Threads     groups run on the caller's; same bits for any number.
/// Errors      Error if sizes or offsets disagree, or eps is negative or not finite.
/// Gradient    with u the gradient of sorted, *added*: quadratic mean_B u, kl softmax_B(x)_i Σ_B u to each value of block B.
/// Reference   Blondel, Teboul, Berthet, Djolonga, Fast differentiable sorting and ranking, ICML 2020 (arXiv 2002.08871). Their numpy
///             code weights the KL gradient by softmax(rho), which is wrong; this is checked against central differences.
#pragma once
#include <recops/ranking/soft_rank.hpp>

namespace recops {

struct SoftSortOptions {
  Order order = Order::descending;
  SoftRankRegularization regularization = SoftRankRegularization::quadratic;
  double eps = 1;  ///< in [0, 1e100], in units of 1 / score
};

inline namespace RECOPS_ABI {

/// What backward needs; kept and reused.
template <class T>
struct SoftSortSaved {
  SoftRankSaved pooled;
  Vector<T> weights;  ///< [n], KL: softmax within the block, in order
};

namespace detail {

/// log Σ exp(-j / eps), j = 0 ... count - 1
inline double log_ramp(double inverse_eps, Index count) {
  return std::log(std::expm1(-static_cast<double>(count) * inverse_eps) / std::expm1(-inverse_eps));
}

/// Sorts and pools a group of values; g.x in order, largest first.
template <class T>
PooledGroup<T> pool_sorted(const T* scores, Index n, const SoftSortOptions& o, std::int32_t* order, std::int32_t* starts,
                           const PoolScratch<T>& scratch, Workspace& ws) {
  const SoftRankOptions hard{
      .order = o.order == Order::descending ? Order::ascending : Order::descending, .eps_mode = EpsMode::absolute, .eps = 0};
  PooledGroup<T> g = pool_group(scores, n, hard, order, starts, scratch, ws);
  if (n == 0 || g.eps != g.eps) return g;
  g.eps = o.eps;
  const T* const x = g.x;
  const double inverse = g.inverse_eps();
  if (o.eps == 0) {
    for (Index i = 0; i < n; ++i) starts[i] = static_cast<std::int32_t>(i);
    g.blocks = n;
  } else if (o.regularization == SoftRankRegularization::quadratic) {
    g.blocks = pool_means(
        n, [=](Index i) { return static_cast<double>(n - i) - o.eps * static_cast<double>(x[i]); }, starts, scratch.means);
  } else {
    g.blocks = pool_blocks(
        n,
        [=](Index i) {
          return LogSum{static_cast<double>(x[i]), 1};
        },
        [](const LogSum& a, const LogSum& b) { return LogSum::merged(a, b, 1); },
        [=](const LogSum& s, Index a, Index b) {
          return static_cast<double>(n - a) * inverse + log_ramp(inverse, b - a) - (s.largest + std::log(s.sum));
        },
        starts, scratch.entropic);
  }
  return g;
}

/// g.x becomes the soft values, in order; `weights` (KL) receives the softmax of each block.
template <class T>
void soft_values(PooledGroup<T>& g, SoftRankRegularization regularization, T* weights) {
  if (g.eps != g.eps) {
    std::fill_n(g.x, g.n, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  const double inverse = g.inverse_eps();
  for (Index k = 0; k < g.blocks; ++k) {
    const Index a = g.starts[k], b = g.end(k);
    const bool quadratic = regularization == SoftRankRegularization::quadratic;
    if (!quadratic) weights[a] = T(1);
    if (b - a == 1) continue;
    const double first = static_cast<double>(g.x[a]), half = 0.5 * static_cast<double>(b - a - 1);
    double sum = 0, start = 0;  // the ramp begins there
    for (Index i = a; i < b; ++i) {
      const double d = static_cast<double>(g.x[i]) - first;
      sum += quadratic ? d : std::exp(d);
    }
    if (quadratic) {
      start = first + sum / static_cast<double>(b - a) + half * inverse;
    } else {
      for (Index i = a; i < b; ++i) weights[i] = static_cast<T>(std::exp(static_cast<double>(g.x[i]) - first) / sum);
      start = first + std::log(sum) - log_ramp(inverse, b - a);
    }
    for (Index i = a; i < b; ++i) g.x[i] = static_cast<T>(start - static_cast<double>(i - a) * inverse);
  }
}

}  // namespace detail

/// The soft values of every group, in order; `saved` is for backward.
template <Real T>
void soft_sort(VectorView<const T> scores, IndexView offsets, const SoftSortOptions& options, VectorView<T> sorted,
               SoftSortSaved<T>& saved, Workspace& ws) {
  using namespace detail;
  check_size("soft_sort", "scores", scores, any_size);
  const Groups groups = check_rank_groups("soft_sort", offsets, scores.size());
  check_option("soft_sort", "eps", options.eps >= 0 && options.eps <= 1e100, "0 <= eps <= 1e100", options.eps);
  check_size("soft_sort", "sorted", sorted, scores.size());
  const bool kl = options.regularization == SoftRankRegularization::kl;
  SoftRankSaved& kept = saved.pooled;
  keep_groups(groups, options.order, options.regularization, kept);
  saved.weights.resize(kl ? scores.size() : 0);
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    const PoolScratch<T> scratch(longest, options.regularization, own);
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g);
      auto group = pool_sorted(scores.data() + begin, groups.size(g), options, kept.order.data() + begin,
                               kept.starts.data() + begin, scratch, own);
      kept.blocks[g] = static_cast<std::int32_t>(group.blocks);
      kept.eps[g] = group.eps;
      soft_values(group, options.regularization, kl ? saved.weights.data() + begin : nullptr);
      T* const to = sorted.data() + begin;
      for (Index i = 0; i < group.n; ++i) to[i] = kept.descending ? group.x[i] : -group.x[i];
    }
  });
}

/// Adds to `dscores` [n] the gradient, given that of the sorted values. O(n).
template <Real T>
void soft_sort_backward(const SoftSortSaved<T>& saved, VectorView<const T> dsorted, VectorView<T> dscores, Workspace& ws) {
  using namespace detail;
  const SoftRankSaved& kept = saved.pooled;
  check_size("soft_sort_backward", "dsorted", dsorted, kept.order.size());
  if (dscores.empty()) return;
  check_size("soft_sort_backward", "dscores", dscores, dsorted.size());
  const Groups groups{kept.offsets, dsorted.size()};
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    T* const d = own.take<T>(longest);
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g), n = groups.size(g);
      const std::int32_t* const starts = kept.starts.data() + begin;
      const T* const u = dsorted.data() + begin;
      if (kept.eps[g] != kept.eps[g]) std::fill_n(d, n, std::numeric_limits<T>::quiet_NaN());
      for (Index k = 0; k < kept.blocks[g]; ++k) {
        const Index a = starts[k], b = k + 1 < kept.blocks[g] ? starts[k + 1] : n;
        double sum = 0;
        for (Index i = a; i < b; ++i) sum += static_cast<double>(u[i]);
        for (Index i = a; i < b; ++i)
          d[i] = static_cast<T>(kept.regularization == SoftRankRegularization::kl
                                    ? static_cast<double>(saved.weights[begin + i]) * sum
                                    : sum / static_cast<double>(b - a));
      }
      scatter<true>(d, kept.order.data() + begin, n, dscores.data() + begin);
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
