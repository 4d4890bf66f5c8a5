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

/// Replaces the lower triangle of a symmetric matrix by its Cholesky factor. False where a pivot is not above 1e-14 n times its own
/// diagonal entry: singular as far as rounding lets one see, whatever the scales of the rows; nor one whose reciprocal overflows.
inline bool cholesky(MatrixView<double> a) {
  const Index n = a.rows();
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < i; ++j) a(i, j) = (a(i, j) - simd::dot(a.row(i), a.row(j), j)) / a(j, j);
    const double pivot = a(i, i) - simd::dot(a.row(i), a.row(i), i);
    if (!(pivot > 1e-14 * static_cast<double>(n) * a(i, i) && pivot > 2 / std::numeric_limits<double>::max())) return false;
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

/// Turns a symmetric matrix into a tridiagonal one by reflections (Householder), from the last row up: `diagonal` and `beside` [n]
/// (beside[i]: entry i, i - 1). Row j of `a` becomes column j of the product of the reflections. Only a(j, k >= j) is read.
inline void tridiagonalise(MatrixView<double> a, double* diagonal, double* beside) {
  const Index n = a.rows();
  double* const v = diagonal;  // the vector of the reflection at work
  for (Index j = 0; j < n; ++j) v[j] = a(j, n - 1);
  for (Index i = n - 1; i > 0; --i) {
    double scale = 0, h = 0;
    for (Index k = 0; k < i; ++k) scale += std::abs(v[k]);
    if (scale == 0) {
      beside[i] = v[i - 1];
      for (Index j = 0; j < i; ++j) {
        v[j] = a(j, i - 1);
        a(j, i) = a(i, j) = 0;
      }
    } else {
      simd::scale(1 / scale, v, v, i);
      h = simd::dot(v, v, i);
      const double last = v[i - 1], length = last > 0 ? -std::sqrt(h) : std::sqrt(h);
      beside[i] = scale * length;
      h -= last * length;
      v[i - 1] = last - length;
      double* const p = beside;  // A v / h, then less its part along v
      std::fill_n(p, i, 0.0);
      for (Index j = 0; j < i; ++j) {
        const double f = a(i, j) = v[j];
        p[j] += a(j, j) * f + simd::dot(a.row(j) + j + 1, v + j + 1, i - 1 - j);
        simd::axpy(f, a.row(j) + j + 1, p + j + 1, i - 1 - j);
      }
      simd::scale(1 / h, p, p, i);
      simd::axpy(-simd::dot(p, v, i) / (2 * h), v, p, i);
      for (Index j = 0; j < i; ++j) {
        const double f = v[j], g = p[j];
        simd::axpy(-f, p + j, a.row(j) + j, i - j);
        simd::axpy(-g, v + j, a.row(j) + j, i - j);
      }
      for (Index j = 0; j < i; ++j) {
        v[j] = a(j, i - 1);
        a(j, i) = 0;
      }
    }
    diagonal[i] = h;
  }
  // What is left of `a` are the reflections (row i: that of step i); their product, one by one.
  for (Index i = 0; i + 1 < n; ++i) {
    a(i, n - 1) = a(i, i);
    a(i, i) = 1;
    const double h = diagonal[i + 1];
    double* const reflection = a.row(i + 1);
    if (h != 0)
      for (Index j = 0; j <= i; ++j) simd::axpy(-simd::dot(reflection, a.row(j), i + 1) / h, reflection, a.row(j), i + 1);
    std::fill_n(reflection, i + 1, 0.0);
  }
  for (Index j = 0; j < n; ++j) {
    diagonal[j] = a(j, n - 1);
    a(j, n - 1) = 0;
  }
  a(n - 1, n - 1) = 1;
  beside[0] = 0;
}

/// Eigenvalues [n] and unit eigenvectors (the rows of `a` on return) of a positive semidefinite matrix, by tridiagonalisation and the
/// implicit QL iteration (tred2 and tql2 of Wilkinson & Reinsch, Handbook for automatic computation, 1971; rows here are columns there).
/// Exact to rounding of the largest: what is below that is set to 0. False for a matrix that is not finite.
inline bool psd_spectrum(MatrixView<double> a, double* eigenvalues, Workspace& ws) {
  const Index n = a.rows();
  if (n == 0) return true;
  double largest = 0;
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < n; ++j) {
      const double size = std::abs(a(i, j));
      if (!(size <= std::numeric_limits<double>::max())) return false;
      largest = std::max(largest, size);
    }
  }
  const auto mark = ws.mark();
  double *const d = eigenvalues, *const e = ws.take<double>(n);
  const double unit = largest > 0 ? 1 / largest : 1;
  for (Index i = 0; i < n; ++i) simd::scale(unit, a.row(i), a.row(i), n);
  tridiagonalise(a, d, e);
  for (Index i = 1; i < n; ++i) e[i - 1] = e[i];
  e[n - 1] = 0;
  constexpr double epsilon = std::numeric_limits<double>::epsilon();
  double shifted = 0, size = 0;
  for (Index l = 0; l < n; ++l) {
    size = std::max(size, std::abs(d[l]) + std::abs(e[l]));
    Index m = l;
    while (m + 1 < n && std::abs(e[m]) > epsilon * size) ++m;
    for (int round = 0; m > l && round < 60 && std::abs(e[l]) > epsilon * size; ++round) {
      const double before = d[l], ratio = (d[l + 1] - before) / (2 * e[l]);
      const double root = (ratio < 0 ? -1 : 1) * std::sqrt(ratio * ratio + 1);
      d[l] = e[l] / (ratio + root);
      d[l + 1] = e[l] * (ratio + root);
      const double second = d[l + 1], shift = before - d[l], beside_second = e[l + 1];
      for (Index i = l + 2; i < n; ++i) d[i] -= shift;
      shifted += shift;
      double p = d[m], c = 1, s = 0, c_before = 1, c_twice = 1, s_before = 0;
      for (Index i = m; i-- > l;) {
        c_twice = c_before;
        c_before = c;
        s_before = s;
        const double g = c * e[i], h = c * p, r = std::sqrt(p * p + e[i] * e[i]);
        e[i + 1] = s * r;
        s = e[i] / r;
        c = p / r;
        p = c * d[i] - s * g;
        d[i + 1] = h + s * (c * g + s * d[i]);
        double *const low = a.row(i), *const high = a.row(i + 1);
        for (Index k = 0; k < n; ++k) {
          const double x = high[k], y = low[k];
          high[k] = s * y + c * x;
          low[k] = c * y - s * x;
        }
      }
      p = -s * s_before * c_twice * beside_second * e[l] / second;
      e[l] = s * p;
      d[l] = c * p;
    }
    d[l] += shifted;
    e[l] = 0;
  }
  double most = 0;
  for (Index i = 0; i < n; ++i) most = std::max(most, d[i]);
  for (Index i = 0; i < n; ++i) d[i] = d[i] > 4 * epsilon * static_cast<double>(n) * most ? d[i] * largest : 0;
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
