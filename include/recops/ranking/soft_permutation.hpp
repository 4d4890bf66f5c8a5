/// @file   recops/ranking/soft_permutation.hpp
/// @brief  Permutations relaxed to row-stochastic matrices: row i of P says which score takes place i. For short lists.
///
///     neural_sort   P_i = softmax_j(((n + 1 - 2 i) s_j - Σ_k |s_j - s_k|) / tau)
///     distance      P_ij = softmax_j(-|s_[i] - s_j| / tau)            s_[i] the i-th in order
///
/// P x is a soft sort of any x, P^T (1 ... n) soft ranks; tau -> 0 gives the permutation (ties share their places).
///
/// Shapes      scores [n]   offsets [G + 1], or empty for one group   p [Σ_g n_g²], group after group, each [n_g, n_g] row by row
/// Order       descending: row 0 takes the largest score; ascending: the smallest.
/// NaN         a NaN or infinity makes its group's P and gradients NaN; other groups are untouched.
/// Precision   sums over a group in double, softmax in T.
/// Cost        O(n_g²) a group, memory too: use soft_rank above some 100 scores. Scratch some 50 bytes per entry.
/// Threads     groups run on the caller's; same bits for any number.
/// Errors      Error if sizes or offsets disagree, or tau is not in [1e-30, 1e30].
/// Gradient    of the scores, *added*; at ties sign(0) = 0.
/// Reference   Grover, Wang, Zweig, Ermon, NeuralSort, ICLR 2019 (arXiv 1903.08850); Prillo and Eisenschlos, SoftSort, ICML 2020
///             (arXiv 2006.16038). The O(n log n) row sums are our derivation.
#pragma once
#include <recops/ranking/soft_rank.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// Which relaxation.
enum class PermutationRelaxation { neural_sort, distance };

struct SoftPermutationOptions {
  PermutationRelaxation relaxation = PermutationRelaxation::neural_sort;
  Order order = Order::descending;
  double tau = 1;  ///< > 0, in units of the scores
};

inline namespace RECOPS_ABI {
namespace detail {

/// Scores with the sign that makes large ones come first, and their order.
template <class T>
struct PermutedGroup {
  Index n;
  double sign;
  bool finite;
  std::int32_t* order;
  double* x;  ///< in places, largest first

  PermutedGroup(const T* scores, Index count, Order direction, Workspace& ws)
      : n(count), sign(direction == Order::descending ? 1 : -1), order(ws.take<std::int32_t>(count)), x(ws.take<double>(count)) {
    T* const sorted = ws.take<T>(n);
    simd::argsort<T>(scores, n, direction, order, sorted, ws);
    for (Index i = 0; i < n; ++i) x[i] = sign * static_cast<double>(sorted[i]);
    finite = n == 0 || (std::isfinite(x[0]) && std::isfinite(x[n - 1]));
  }
  /// to[k] = Σ_j |x_k - x_j|, in places.
  void distances(double* to) const {
    double total = 0, above = 0;
    for (Index k = 0; k < n; ++k) total += x[k] - x[n / 2];
    for (Index k = 0; k < n; ++k) {  // k are larger, n - 1 - k smaller
      const double own = x[k] - x[n / 2], below = total - above - own;
      to[k] = (above - static_cast<double>(k) * own) + (static_cast<double>(n - 1 - k) * own - below);
      above += own;
    }
  }
};

/// Where each group's matrix begins; the last entry is the size of all.
inline Index* matrix_offsets(const Groups& groups, Workspace& ws) {
  Index* const at = ws.take<Index>(groups.count() + 1);
  at[0] = 0;
  for (Index g = 0; g < groups.count(); ++g) at[g + 1] = at[g] + groups.size(g) * groups.size(g);
  return at;
}

}  // namespace detail

/// The matrices of all groups.
template <Real T>
void soft_permutation(VectorView<const T> scores, IndexView offsets, const SoftPermutationOptions& options, VectorView<T> p,
                      Workspace& ws) {
  using namespace detail;
  check_size("soft_permutation", "scores", scores, any_size);
  const Groups groups = check_rank_groups("soft_permutation", offsets, scores.size());
  check_option("soft_permutation", "tau", options.tau >= 1e-30 && options.tau <= 1e30, "1e-30 <= tau <= 1e30", options.tau);
  const auto mark = ws.mark();
  const Index* const at = matrix_offsets(groups, ws);
  check_size("soft_permutation", "p", p, at[groups.count()]);
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    double* const base = own.take<double>(longest);
    for (Index g = first; g < last; ++g) {
      const auto group_mark = own.mark();
      const PermutedGroup<T> group(scores.data() + groups.begin(g), groups.size(g), options.order, own);
      const Index n = group.n;
      T* const to = p.data() + at[g];
      if (!group.finite) {
        std::fill_n(to, n * n, std::numeric_limits<T>::quiet_NaN());
        continue;
      }
      const bool neural = options.relaxation == PermutationRelaxation::neural_sort;
      if (neural) group.distances(base);
      for (Index i = 0; i < n; ++i) {
        T* const row = to + i * n;
        const auto logit = [&](Index k) {
          return (neural ? static_cast<double>(n - 1 - 2 * i) * (group.x[k] - group.x[n / 2]) - base[k]
                         : -std::abs(group.x[i] - group.x[k])) /
                 options.tau;
        };
        double most = logit(0);  // subtracted in double: logits grow with n
        for (Index k = 1; k < n; ++k) most = std::max(most, logit(k));
        for (Index k = 0; k < n; ++k) row[group.order[k]] = static_cast<T>(logit(k) - most);
        simd::softmax<T>(row, n);
      }
    }
  });
}

/// Adds to `dscores` [n], given forward's `p` and its gradient `dp`.
template <Real T>
void soft_permutation_backward(VectorView<const T> scores, IndexView offsets, const SoftPermutationOptions& options,
                               VectorView<const T> p, VectorView<const T> dp, VectorView<T> dscores, Workspace& ws) {
  using namespace detail;
  const char* const name = "soft_permutation_backward";
  check_size(name, "scores", scores, any_size);
  const Groups groups = check_rank_groups(name, offsets, scores.size());
  check_option(name, "tau", options.tau >= 1e-30 && options.tau <= 1e30, "1e-30 <= tau <= 1e30", options.tau);
  const auto mark = ws.mark();
  const Index* const at = matrix_offsets(groups, ws);
  check_size(name, "p", p, at[groups.count()]);
  check_size(name, "dp", dp, at[groups.count()]);
  if (dscores.empty()) return;
  check_size(name, "dscores", dscores, scores.size());
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    double* const column = own.take<double>(longest);
    double* const gradient = own.take<double>(longest);
    for (Index g = first; g < last; ++g) {
      const auto group_mark = own.mark();
      const PermutedGroup<T> group(scores.data() + groups.begin(g), groups.size(g), options.order, own);
      const Index n = group.n;
      T* const to = dscores.data() + groups.begin(g);
      if (!group.finite) {
        std::fill_n(to, n, std::numeric_limits<T>::quiet_NaN());
        continue;
      }
      std::fill_n(column, n, 0.0);
      std::fill_n(gradient, n, 0.0);
      const bool neural = options.relaxation == PermutationRelaxation::neural_sort;
      for (Index i = 0; i < n; ++i) {
        const T* const row = p.data() + at[g] + i * n;
        const T* const drow = dp.data() + at[g] + i * n;
        double mean = 0;
        for (Index j = 0; j < n; ++j) mean += static_cast<double>(row[j]) * static_cast<double>(drow[j]);
        for (Index k = 0; k < n; ++k) {  // in places
          const Index j = group.order[k];
          const double dz = static_cast<double>(row[j]) * (static_cast<double>(drow[j]) - mean);
          if (neural) {
            column[k] += dz;
            gradient[k] += static_cast<double>(n - 1 - 2 * i) * dz;
          } else if (group.x[i] != group.x[k]) {
            const double q = group.x[i] > group.x[k] ? dz : -dz;
            gradient[k] += q;
            gradient[i] -= q;
          }
        }
      }
      if (neural) {  // Σ_k (c_m + c_k) sign(x_m - x_k), run by run of equal scores
        double total = 0, above = 0;
        for (Index k = 0; k < n; ++k) total += column[k];
        for (Index a = 0, b = 0; a < n; a = b) {
          double run = 0;
          for (; b < n && group.x[b] == group.x[a]; ++b) run += column[b];
          const double below = total - above - run;
          for (Index k = a; k < b; ++k) gradient[k] -= column[k] * static_cast<double>((n - b) - a) + below - above;
          above += run;
        }
      }
      for (Index k = 0; k < n; ++k) to[group.order[k]] += static_cast<T>(group.sign * gradient[k] / options.tau);
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
