/// @file   recops/ranking/smooth_rank.hpp
/// @brief  Ranks that are smooth everywhere: how many scores each one probably exceeds, if all of them are noisy.
///
///     r_i = ½ + Σ_j P(s_i > s_j)             logistic: sigmoid((s_i - s_j) / tau)            Gaussian: Phi((s_i - s_j) / (sqrt 2 tau))
///
/// (ascending, the sum includes j = i; descending with the sign turned). The logistic one is the rank inside ApproxNDCG, the Gaussian
/// one the mean rank of SoftRank. Use soft_rank, O(n log n), unless smoothness is needed: these compare pairs.
///
/// Shapes      scores, ranks [n]   offsets [G + 1], or empty for one group
/// Windows     after a sort only pairs nearer than 18 tau (double 38; Gaussian 8.5 and 12 tau) are evaluated, the others count as 0 or 1:
///             each rank is off by less than 2e-8 n (double 1e-16 n). So a small tau costs little, a large one n² pairs.
/// Edge cases  one score: rank 1, gradient 0.  Ties share a rank.  The sum of ranks is n (n + 1) / 2.
/// NaN         a NaN or infinity makes its group's ranks and gradients NaN; other groups are untouched.
/// Precision   a pair is within 4e-7 (float), sums in double: ranks within 4e-7 n.
/// Cost        an argsort; per pair 5 operations forward and 8 backward (logistic: no exponential), an erf or exp (Gaussian). Scratch some
///             40 bytes per entry of the largest group.
/// Threads     groups run on the caller's; same bits for any number.
/// Errors      Error if sizes or offsets disagree, or tau is not in [1e-30, 1e30].
/// Gradient    Σ_j D_ij (u_i - u_j), D = P (1 - P) / tau or the normal density; *added*. Recomputed from the scores, nothing saved.
/// Reference   Qin, Liu, Li, A general approximation framework for direct optimization of IR measures, 2010 (logistic); Taylor et al.,
///             SoftRank, WSDM 2008 (Gaussian). Windows are ours.
#pragma once
#include <recops/ranking/soft_rank.hpp>
#include <recops/simd/rank_sums.hpp>

namespace recops {

struct SmoothRankOptions {
  Order order = Order::ascending;  ///< ascending: the smallest score has rank 1
  double tau = 1;                  ///< > 0, in units of the scores: how noisy they are
};

inline namespace RECOPS_ABI {
namespace detail {

/// One group: `write(i, rank or gradient)` for every entry i. `u` is null forward.
template <simd::RankKernel kernel, class T, class F>
void smooth_rank_group(const T* scores, Index n, const SmoothRankOptions& o, const T* u, Workspace& ws, F&& write) {
  constexpr bool logistic = kernel == simd::RankKernel::logistic, single = std::is_same_v<T, float>;
  constexpr double sqrt2 = 1.41421356237309504880;
  constexpr double far = logistic ? (single ? 18 : 38) : (single ? 6 : 8.5);  // beyond it a pair is decided, in units of noise
  constexpr double spread = logistic ? 20 : 4;  // of the rows of a block: more would overflow, or waste pairs
  constexpr Index most = 256, tile = simd::rank_tile<T>;
  const double unit = logistic ? o.tau : sqrt2 * o.tau, sign = o.order == Order::ascending ? 1 : -1;
  const auto mark = ws.mark();
  std::int32_t* const order = ws.take<std::int32_t>(n);
  T* const sorted = ws.take<T>(n);
  T* const columns = ws.take<T>(n);
  T* const theirs = ws.take<T>(n);
  T* const rows = ws.take<T>(most + tile);
  T* const own = ws.take<T>(most + tile);
  double* const sums = ws.take<double>(most + tile);
  simd::argsort<T>(scores, n, o.order, order, sorted, ws);
  const auto at = [&](Index i) { return sign * static_cast<double>(sorted[i]); };  // rising
  if (!(std::isfinite(at(0)) && std::isfinite(at(n - 1)))) {
    for (Index i = 0; i < n; ++i) write(i, std::numeric_limits<double>::quiet_NaN());
    return;
  }
  if (u != nullptr)
    for (Index i = 0; i < n; ++i) theirs[i] = u[order[i]];
  for (Index a = 0, b = 0, low = 0, high = 0; a < n; a = b) {
    for (b = a + 1; b < n && b - a < most && at(b) - at(a) <= spread * unit;) ++b;
    while (at(a) - at(low) > far * unit) ++low;
    for (high = std::max(high, b); high < n && at(high) - at(b - 1) <= far * unit;) ++high;
    const double middle = 0.5 * (at(a) + at(b - 1));
    for (Index j = low; j < high; ++j) columns[j] = static_cast<T>((at(j) - middle) / unit);
    if (logistic) simd::exp<T>(columns + low, columns + low, high - low);
    std::copy(columns + a, columns + b, rows);
    std::fill_n(rows + (b - a), tile, T(1));
    if (u == nullptr) {
      simd::rank_sums<kernel, T>(rows, b - a, columns + low, high - low, sums);
      for (Index i = a; i < b; ++i) write(order[i], 0.5 + static_cast<double>(low) + sums[i - a]);
    } else {
      std::copy(theirs + a, theirs + b, own);
      std::fill_n(own + (b - a), tile, T(0));
      simd::rank_sums_backward<kernel, T>(rows, own, b - a, columns + low, theirs + low, high - low, sums);
      for (Index i = a; i < b; ++i) write(order[i], sign / unit * sums[i - a]);
    }
  }
}

template <simd::RankKernel kernel, class T>
void smooth_rank(const char* name, VectorView<const T> scores, IndexView offsets, const SmoothRankOptions& o,
                 VectorView<const T> u, VectorView<T> to, bool backward, Workspace& ws) {
  check_size(name, "scores", scores, any_size);
  const Groups groups = check_rank_groups(name, offsets, scores.size());
  check_option(name, "tau", o.tau >= 1e-30 && o.tau <= 1e30, "1e-30 <= tau <= 1e30", o.tau);
  if (backward) check_size(name, "dranks", u, scores.size());
  if (backward && to.empty()) return;
  check_size(name, backward ? "dscores" : "ranks", to, scores.size());
  run_groups(groups, ws, [&](Index first, Index last, Index, Workspace& own) {
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g), n = groups.size(g);
      if (n == 0) continue;
      T* const out = to.data() + begin;
      smooth_rank_group<kernel>(
          scores.data() + begin, n, o, backward ? u.data() + begin : nullptr, own,
          [&](Index i, double value) { out[i] = backward ? out[i] + static_cast<T>(value) : static_cast<T>(value); });
    }
  });
}

}  // namespace detail

/// Logistic ranks.
template <Real T>
void sigmoid_rank(VectorView<const T> scores, IndexView offsets, const SmoothRankOptions& options, VectorView<T> ranks,
                  Workspace& ws) {
  detail::smooth_rank<simd::RankKernel::logistic, T>("sigmoid_rank", scores, offsets, options, {}, ranks, false, ws);
}
/// Adds to `dscores` [n], given the gradient of the ranks.
template <Real T>
void sigmoid_rank_backward(VectorView<const T> scores, IndexView offsets, const SmoothRankOptions& options,
                           VectorView<const T> dranks, VectorView<T> dscores, Workspace& ws) {
  detail::smooth_rank<simd::RankKernel::logistic, T>("sigmoid_rank_backward", scores, offsets, options, dranks, dscores, true,
                                                     ws);
}

/// Ranks of scores with normal noise of deviation tau each.
template <Real T>
void gaussian_rank(VectorView<const T> scores, IndexView offsets, const SmoothRankOptions& options, VectorView<T> ranks,
                   Workspace& ws) {
  detail::smooth_rank<simd::RankKernel::gaussian, T>("gaussian_rank", scores, offsets, options, {}, ranks, false, ws);
}
/// Adds to `dscores` [n], given the gradient of the ranks.
template <Real T>
void gaussian_rank_backward(VectorView<const T> scores, IndexView offsets, const SmoothRankOptions& options,
                            VectorView<const T> dranks, VectorView<T> dscores, Workspace& ws) {
  detail::smooth_rank<simd::RankKernel::gaussian, T>("gaussian_rank_backward", scores, offsets, options, dranks, dscores, true,
                                                     ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
