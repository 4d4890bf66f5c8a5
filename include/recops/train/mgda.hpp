/// @file   recops/train/mgda.hpp
/// @brief  MGDA: the shortest convex combination of several gradients, a direction that hurts no loss (Sener and Koltun,
///         arXiv 1810.04650).
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/core/matrix.hpp>
#include <recops/core/workspace.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// max_i over the support (K a)_i minus the least (K a)_i: 0 at the optimum.
inline double min_norm_gap(MatrixView<const double> gram, const double* a, double* product, Index& away, Index& toward) {
  const Index count = gram.rows();
  away = -1, toward = 0;
  for (Index i = 0; i < count; ++i) {
    product[i] = 0;
    for (Index j = 0; j < count; ++j) product[i] += gram(i, j) * a[j];
    if (product[i] < product[toward]) toward = i;
    if (a[i] > 0 && (away < 0 || product[i] > product[away])) away = i;
  }
  return product[away] - product[toward];
}

/// Solves the symmetric `[n, n]` system in place, its right side in column n, by elimination with pivots; false if it is singular. A
/// dozen lines: Eigen would cost every program that trains a second of compilation for nine unknowns.
inline bool solve_small(double (*a)[10], Index n) {
  for (Index k = 0; k < n; ++k) {
    Index pivot = k;
    for (Index i = k + 1; i < n; ++i)
      if (std::abs(a[i][k]) > std::abs(a[pivot][k])) pivot = i;
    if (std::abs(a[pivot][k]) < 1e-12) return false;
    for (Index j = k; j <= n; ++j) std::swap(a[k][j], a[pivot][j]);
    for (Index i = 0; i < n; ++i) {
      if (i == k) continue;
      const double factor = a[i][k] / a[k][k];
      for (Index j = k; j <= n; ++j) a[i][j] -= factor * a[k][j];
    }
  }
  for (Index i = 0; i < n; ++i) a[i][n] /= a[i][i];
  return true;
}

}  // namespace detail

/// The weights a `[M]`, a >= 0, sum 1, that minimise |sum_m a_m g_m|^2 = a^T K a for the inner products K = `gram [M, M]`
/// (`gradient_gram`); use them in `combine_gradients`. Returns that square: 0 means Pareto-stationary. M = 2 in closed form, M <= 8 by
/// trying every support (exact), more by pairwise Frank-Wolfe until (K a)_i >= a^T K a - 1e-12 max K for all i or 10^5 steps.
/// Where all gradients are equal they share alike; of some that are equal any may get the weight. K must be finite: else every
/// weight is 1 / M and NaN is returned. Throws `Error` for shapes that disagree and for M = 0.
inline double mgda(MatrixView<const double> gram, VectorView<double> weights, Workspace& ws) {
  const Index count = weights.size();
  check_option("mgda", "weights", count > 0, "one loss or more", static_cast<double>(count));
  check_shape("mgda", "gram", gram, count, count);
  double largest = 0;
  bool finite = true;
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < count; ++j) {
      finite &= std::isfinite(gram(i, j));
      largest = std::max(largest, std::abs(gram(i, j)));
    }
  std::fill(weights.begin(), weights.end(), 1.0 / static_cast<double>(count));
  if (!finite) return std::nan("");
  const auto norm = [&](const double* a) {
    double sum = 0;
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < count; ++j) sum += a[i] * a[j] * gram(i, j);
    return std::max(sum, 0.0);
  };
  const auto mark = ws.mark();
  double* a = ws.take<double>(count);
  if (count <= 2) {
    if (count == 2) {
      const double square = gram(0, 0) - 2 * gram(0, 1) + gram(1, 1);  // |g_1 - g_2|^2
      const double first = square > 0 ? std::clamp((gram(1, 1) - gram(0, 1)) / square, 0.0, 1.0) : 0.5;
      weights[0] = first;
      weights[1] = 1 - first;
    }
    return norm(weights.data());
  }
  if (count <= 8) {
    // On its support S the solution has K_S a + l 1 = 0, 1^T a = 1; the right support is the feasible one of least norm.
    double best = norm(weights.data());
    const double unit = largest > 0 ? largest : 1;
    for (unsigned support = 1; support < 1u << count; ++support) {
      Index member[8], n = 0;
      for (Index i = 0; i < count; ++i)
        if (support >> i & 1u) member[n++] = i;
      double system[9][10] = {};
      for (Index i = 0; i < n; ++i) {
        for (Index j = 0; j < n; ++j) system[i][j] = gram(member[i], member[j]) / unit;
        system[i][n] = system[n][i] = 1;
      }
      system[n][n + 1] = 1;
      // Dependent gradients are passed over: fewer of them make the same point.
      if (!detail::solve_small(system, n + 1)) continue;
      std::fill_n(a, count, 0.0);
      double sum = 0;
      bool feasible = true;
      for (Index i = 0; i < n; ++i) {
        feasible &= system[i][n + 1] >= -1e-12;
        a[member[i]] = std::max(system[i][n + 1], 0.0);
        sum += a[member[i]];
      }
      if (!feasible || !(std::abs(sum - 1) < 1e-9)) continue;
      for (Index i = 0; i < count; ++i) a[i] /= sum;
      const double value = norm(a);
      if (value < best - 1e-15 * unit) {
        best = value;
        std::copy_n(a, count, weights.data());
      }
    }
    return best;
  }
  double* product = ws.take<double>(count);
  Index away = 0, toward = 0;
  for (int step = 0; step < 100'000 && detail::min_norm_gap(gram, weights.data(), product, away, toward) > 1e-12 * largest;
       ++step) {
    const double square = gram(away, away) - 2 * gram(away, toward) + gram(toward, toward);
    const double move = square > 0 ? std::min((product[away] - product[toward]) / square, weights[away]) : weights[away];
    weights[toward] += move;
    weights[away] = move == weights[away] ? 0 : weights[away] - move;
  }
  return norm(weights.data());
}

}  // namespace RECOPS_ABI
}  // namespace recops
