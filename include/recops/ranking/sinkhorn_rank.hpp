/// @file   recops/ranking/sinkhorn_rank.hpp
/// @brief  Soft ranks as entropic optimal transport: each score is carried to evenly spaced anchors, each anchor takes as much.
///
///     P = argmin <P, C> - eps H(P),  C_ij = (s_i - a_j)²,  a_j = (j - 1) / (n - 1),  rows and columns sum to 1 / n      r_i = n Σ_j j P_ij
///
/// Scores should lie in [0, 1], where the anchors are (squash or scale them before). Smooth everywhere, and dear: soft_rank is what to use
/// unless transport is wanted.
///
/// Shapes      scores, ranks [n], ascending: the smallest score has the smallest rank   offsets [G + 1], or empty; groups of up to 256
/// Converged   when rows sum to 1 / n within `tolerance` / n, or after `max_iterations`: the result says. Gradients suppose convergence.
/// Edge cases  one score: rank 1, gradient 0.  The sum of ranks is n (n + 1) / 2 up to the tolerance.
/// NaN         a NaN or infinity makes its group's ranks and gradients NaN; other groups are untouched.
/// Precision   double throughout, in logarithms: no underflow for any eps.
/// Cost        an iteration 2 n² exponentials; some 10 to 1000 of them, more for small eps. Backward repeats them and solves a system
///             of n equations. Scratch 16 n² bytes.
/// Threads     groups run on the caller's; same bits for any number.
/// Errors      Error if sizes or offsets disagree, a group is larger than 256, or an option is out of range.
/// Gradient    of the scores, by implicit differentiation of the marginals; *added*.
/// Reference   Cuturi, Teboul, Vert, Differentiable ranks and sorting using optimal transport, NeurIPS 2019 (arXiv 1905.11885).
#pragma once
#include <recops/ranking/soft_rank.hpp>

namespace recops {

struct SinkhornRankOptions {
  double eps = 0.01;        ///< in [1e-4, 1e4], in units of squared scores
  double tolerance = 1e-9;  ///< of the marginals, relative
  Index max_iterations = 10000;
};

/// How the iterations ended, over all groups.
struct SinkhornRankResult {
  bool converged = true;
  Index iterations = 0;  ///< of the slowest group
};

inline namespace RECOPS_ABI {
namespace detail {

inline constexpr Index sinkhorn_most = 256;

/// P `[n, n]`; returns the iterations, negated if they did not suffice.
template <class T>
Index sinkhorn_plan(const T* s, Index n, const SinkhornRankOptions& o, double* p, Workspace& ws) {
  const auto mark = ws.mark();
  double* const f = ws.take<double>(n);
  double* const g = ws.take<double>(n);
  const double step = n > 1 ? 1 / static_cast<double>(n - 1) : 0, share = -std::log(static_cast<double>(n));
  std::fill_n(f, n, 0.0);
  std::fill_n(g, n, 0.0);
  const auto cost = [&](Index i, Index j) {
    const double d = static_cast<double>(s[i]) - static_cast<double>(j) * step;
    return d * d / o.eps;
  };
  // -log Σ exp(own(k)), plus the share of a row or column
  const auto balance = [&](auto&& own) {
    double most = own(Index{0}), sum = 0;
    for (Index k = 1; k < n; ++k) most = std::max(most, own(k));
    for (Index k = 0; k < n; ++k) sum += std::exp(own(k) - most);
    return share - most - std::log(sum);
  };
  Index iterations = 0;
  double error = 1;
  while (iterations < o.max_iterations && error > o.tolerance) {
    ++iterations;
    error = 0;
    for (Index i = 0; i < n; ++i) {
      const double next = balance([&](Index j) { return g[j] - cost(i, j); });
      if (iterations > 1) error = std::max(error, std::abs(std::expm1(f[i] - next)));  // the row summed to e^(f - next) / n
      f[i] = next;
    }
    if (iterations == 1) error = 1;
    for (Index j = 0; j < n; ++j) g[j] = balance([&](Index i) { return f[i] - cost(i, j); });
  }
  for (Index i = 0; i < n; ++i)
    for (Index j = 0; j < n; ++j) p[i * n + j] = std::exp(f[i] + g[j] - cost(i, j));
  return error > o.tolerance ? -iterations : iterations;
}

/// Solves a z = b for symmetric positive definite a `[n, n]` by Cholesky's method, both overwritten.
inline void solve_definite(double* a, double* b, Index n) {
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j <= i; ++j) {
      double sum = a[i * n + j];
      for (Index k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = i == j ? std::sqrt(std::max(sum, 1e-300)) : sum / a[j * n + j];
    }
    for (Index k = 0; k < i; ++k) b[i] -= a[i * n + k] * b[k];
    b[i] /= a[i * n + i];
  }
  for (Index i = n; i-- > 0;) {
    for (Index k = i + 1; k < n; ++k) b[i] -= a[k * n + i] * b[k];
    b[i] /= a[i * n + i];
  }
}

template <class T>
Groups check_sinkhorn(const char* name, VectorView<const T> scores, IndexView offsets, const SinkhornRankOptions& o) {
  check_size(name, "scores", scores, any_size);
  const Groups groups = check_rank_groups(name, offsets, scores.size());
  check_option(name, "eps", o.eps >= 1e-4 && o.eps <= 1e4, "1e-4 <= eps <= 1e4", o.eps);
  check_option(name, "tolerance", o.tolerance > 0 && o.tolerance < 1, "0 < tolerance < 1", o.tolerance);
  check_option(name, "max_iterations", o.max_iterations >= 1, "at least 1", static_cast<double>(o.max_iterations));
  for (Index g = 0; g < groups.count(); ++g)
    check_option(name, "offsets", groups.size(g) <= sinkhorn_most, "groups of at most 256", static_cast<double>(groups.size(g)));
  return groups;
}

}  // namespace detail

/// The ranks of every group.
template <Real T>
SinkhornRankResult sinkhorn_rank(VectorView<const T> scores, IndexView offsets, const SinkhornRankOptions& options,
                                 VectorView<T> ranks, Workspace& ws) {
  using namespace detail;
  const Groups groups = check_sinkhorn<T>("sinkhorn_rank", scores, offsets, options);
  check_size("sinkhorn_rank", "ranks", ranks, scores.size());
  const auto mark = ws.mark();
  Index* const iterations = ws.take<Index>(groups.count());
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    double* const p = own.take<double>(longest * longest);
    for (Index g = first; g < last; ++g) {
      const Index n = groups.size(g), begin = groups.begin(g);
      iterations[g] = 0;
      if (!all_finite(scores.data() + begin, n)) {
        std::fill_n(ranks.data() + begin, n, std::numeric_limits<T>::quiet_NaN());
        continue;
      }
      if (n > 0) iterations[g] = sinkhorn_plan(scores.data() + begin, n, options, p, own);
      for (Index i = 0; i < n; ++i) {
        double sum = 0;
        for (Index j = 0; j < n; ++j) sum += static_cast<double>(j + 1) * p[i * n + j];
        ranks[begin + i] = static_cast<T>(static_cast<double>(n) * sum);
      }
    }
  });
  SinkhornRankResult result;
  for (Index g = 0; g < groups.count(); ++g) {
    result.converged &= iterations[g] >= 0;
    result.iterations = std::max(result.iterations, std::abs(iterations[g]));
  }
  return result;
}

/// Adds to `dscores` [n], given the gradient of the ranks; repeats the iterations.
template <Real T>
void sinkhorn_rank_backward(VectorView<const T> scores, IndexView offsets, const SinkhornRankOptions& options,
                            VectorView<const T> dranks, VectorView<T> dscores, Workspace& ws) {
  using namespace detail;
  const Groups groups = check_sinkhorn<T>("sinkhorn_rank_backward", scores, offsets, options);
  check_size("sinkhorn_rank_backward", "dranks", dranks, scores.size());
  if (dscores.empty()) return;
  check_size("sinkhorn_rank_backward", "dscores", dscores, scores.size());
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    double* const p = own.take<double>(longest * longest);
    double* const system = own.take<double>(longest * longest);
    double* const row = own.take<double>(longest);
    double* const column = own.take<double>(longest);
    for (Index g = first; g < last; ++g) {
      const Index n = groups.size(g), begin = groups.begin(g);
      const T* const s = scores.data() + begin;
      if (!all_finite(s, n)) {
        std::fill_n(dscores.data() + begin, n, std::numeric_limits<T>::quiet_NaN());
        continue;
      }
      if (n < 2) continue;
      sinkhorn_plan(s, n, options, p, own);
      const auto count = static_cast<double>(n);
      const auto weight = [&](Index i, Index j) {
        return count * static_cast<double>(dranks[begin + i]) * static_cast<double>(j + 1);
      };
      // With marginals 1 / n: z_row = n (h_row - P z_col), (1 / n - n P^T P) z_col = h_col - n P^T h_row; the last z_col is 0.
      std::fill_n(column, n, 0.0);
      for (Index i = 0; i < n; ++i) {
        row[i] = 0;
        for (Index j = 0; j < n; ++j) {
          const double h = weight(i, j) * p[i * n + j];
          row[i] += h;
          column[j] += h;
        }
      }
      const Index m = n - 1;
      std::fill_n(system, m * m, 0.0);
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < n; ++j) {
          const double pij = count * p[i * n + j];
          column[j] -= pij * row[i];
          for (Index k = 0; j < m && k <= j; ++k) system[j * m + k] -= pij * p[i * n + k];
        }
      for (Index j = 0; j < m; ++j) system[j * m + j] += 1 / count;
      solve_definite(system, column, m);
      column[m] = 0;
      const double step = 1 / static_cast<double>(n - 1);
      for (Index i = 0; i < n; ++i) {
        double z = row[i], sum = 0;
        for (Index j = 0; j < n; ++j) z -= p[i * n + j] * column[j];
        z *= count;
        for (Index j = 0; j < n; ++j)
          sum -= 2 * (static_cast<double>(s[i]) - static_cast<double>(j) * step) * p[i * n + j] * (weight(i, j) - z - column[j]) /
                 options.eps;
        dscores[begin + i] += static_cast<T>(sum);
      }
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
