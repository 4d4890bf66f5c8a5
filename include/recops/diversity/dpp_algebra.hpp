/// @file   recops/diversity/dpp_algebra.hpp
/// @brief  The small dense algebra behind determinantal losses and samplers, in double: Cholesky factor and inverse, spectrum of a Gram
///         matrix, elementary symmetric polynomials in logarithms. Matrices are square and row-major.
///
/// Cost  O(n^3) for matrices of n rows, k n for polynomials up to degree k. Nothing allocates.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/workspace.hpp>
#include <recops/simd/gemm.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor. False where a pivot is not above 1e-14 n times the
/// largest diagonal entry: singular as far as rounding lets one see.
inline bool cholesky(MatrixView<double> a) {
  const Index n = a.rows();
  double largest = 0;
  for (Index i = 0; i < n; ++i) largest = std::max(largest, a(i, i));
  const double least = 1e-14 * static_cast<double>(n) * largest;
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < i; ++j) a(i, j) = (a(i, j) - simd::dot(a.row(i), a.row(j), j)) / a(j, j);
    const double pivot = a(i, i) - simd::dot(a.row(i), a.row(i), i);
    if (!(pivot > least)) return false;
    a(i, i) = std::sqrt(pivot);
  }
  return true;
}

/// log det of the matrix a Cholesky factor belongs to.
inline double log_det(MatrixView<const double> factor) {
  double sum = 0;
  for (Index i = 0; i < factor.rows(); ++i) sum += std::log(factor(i, i));
  return 2 * sum;
}

/// The inverse [n, n] of the matrix that `factor` (lower triangle) belongs to.
inline void cholesky_inverse(MatrixView<const double> factor, MatrixView<double> inverse, Workspace& ws) {
  const Index n = factor.rows();
  const auto mark = ws.mark();
  const MatrixView<double> r = ws.matrix<double>(n, n);  // R^-1, lower triangular
  for (Index i = 0; i < n; ++i) {
    double* const row = r.row(i);
    std::fill_n(row, n, 0.0);
    for (Index j = 0; j < i; ++j) simd::axpy(-factor(i, j), r.row(j), row, j + 1);
    row[i] = 1;
    simd::scale(1 / factor(i, i), row, row, i + 1);
  }
  simd::gemm<double>(simd::transposed(MatrixView<const double>(r)), simd::plain(MatrixView<const double>(r)), {}, inverse, ws);
}

/// Eigenvalues [n] and unit eigenvectors (the rows of `a` on return) of a positive semidefinite matrix, by one-sided Jacobi rotations:
/// rows are turned in pairs until they are orthogonal; what they are then is eigenvalue times eigenvector. Small eigenvalues are as
/// accurate as large ones. A vanishing eigenvalue gets a row of zeros. False for a matrix that is not finite.
inline bool psd_spectrum(MatrixView<double> a, double* eigenvalues) {
  const Index n = a.rows();
  double total = 0;
  for (Index i = 0; i < n; ++i) total += eigenvalues[i] = simd::dot(a.row(i), a.row(i), n);  // squares, as long as it runs
  if (!(total <= std::numeric_limits<double>::max())) return false;
  const double least = 1e-32 * total;
  for (int sweep = 0; sweep < 60; ++sweep) {
    bool turned = false;
    for (Index p = 0; p + 1 < n; ++p) {
      for (Index q = p + 1; q < n; ++q) {
        const double x = eigenvalues[p], y = eigenvalues[q];
        if (x <= least || y <= least) continue;
        const double product = simd::dot(a.row(p), a.row(q), n);
        if (!(std::abs(product) > 1e-15 * std::sqrt(x * y))) continue;
        turned = true;
        const double zeta = (y - x) / (2 * product);
        const double t = (zeta >= 0 ? 1 : -1) / (std::abs(zeta) + std::hypot(1.0, zeta)), c = 1 / std::hypot(1.0, t), s = c * t;
        double *const u = a.row(p), *const v = a.row(q);
        for (Index i = 0; i < n; ++i) {
          const double old = u[i];
          u[i] = c * old - s * v[i];
          v[i] = s * old + c * v[i];
        }
        eigenvalues[p] = simd::dot(u, u, n);
        eigenvalues[q] = simd::dot(v, v, n);
      }
    }
    if (!turned) break;
  }
  for (Index i = 0; i < n; ++i) {
    const double length = eigenvalues[i] > least ? std::sqrt(eigenvalues[i]) : 0;
    eigenvalues[i] = length;
    simd::scale(length > 0 ? 1 / length : 0.0, a.row(i), a.row(i), n);
  }
  return true;
}

/// log(e^a + e^b)
inline double log_add(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return low == -std::numeric_limits<double>::infinity() ? high : high + std::log1p(std::exp(low - high));
}

/// Row n of `table` [count + 1, k + 1] receives log e_0 .. log e_k of the first n values (`step` 1), or of the last n (`step` -1: values
/// points to the last). -infinity where there are fewer values than the degree.
inline void log_elementary_symmetric(const double* log_values, Index count, Index step, MatrixView<double> table) {
  constexpr double none = -std::numeric_limits<double>::infinity();
  const Index k = table.cols() - 1;
  std::fill_n(table.row(0), k + 1, none);
  table(0, 0) = 0;
  for (Index n = 1; n <= count; ++n) {
    const double value = log_values[step * (n - 1)];
    table(n, 0) = 0;
    for (Index l = 1; l <= k; ++l) table(n, l) = log_add(table(n - 1, l), value + table(n - 1, l - 1));
  }
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
