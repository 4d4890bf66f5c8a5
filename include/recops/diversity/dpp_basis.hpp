/// @file   recops/diversity/dpp_basis.hpp
/// @brief  A growing set of vectors g with  sum_l <x, g_l>^2 = volume of x that the items so far explain.
///
///     alpha = 1, no diagonal      g = residual of x against the set, divided by its length: an orthonormal basis
///     otherwise                   g = (alpha x - sum_l <g_l, x> g_l) / sqrt(rho),   rho = s - sum_l <g_l, x>^2
///
/// s is the item's diagonal entry over its squared quality. The second form is a row of the Cholesky factor of
/// S = alpha X X^T + diagonal, times X: nothing of size N.
#pragma once
#include <cmath>
#include <recops/core/workspace.hpp>
#include <recops/simd/gram_schmidt.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T, class A>
class DppBasis {
 public:
  DppBasis() = default;
  DppBasis(Index cols, Index capacity, bool orthonormal, T alpha, T eps, Workspace& scratch)
      : cols_(simd::padded<T>(cols)), orthonormal_(orthonormal), alpha_(alpha), eps_(eps) {
    rows_ = scratch.take<T>(capacity * cols_);
    c_ = scratch.take<T>(simd::padded<T>(capacity));
  }
  Index stride() const { return cols_; }
  Index count() const { return count_; }
  const T* row(Index l) const { return rows_ + l * cols_; }
  void clear() { count_ = 0; }

  /// out = the g that x (padded) with diagonal entry s would add; false, and zeros, if x is redundant: no more than eps of s is left.
  bool residual(const T* x, T s, T* out) {
    simd::set_products<T, A>(rows_, cols_, count_, x, cols_, c_);
    T square = simd::subtract_rows<T, A>(rows_, cols_, count_, c_, orthonormal_ ? T(1) : alpha_, x, cols_, out);
    T rho = square;
    if (!orthonormal_) {
      rho = s;
      for (Index l = 0; l < count_; ++l) rho -= c_[l] * c_[l];
    } else if (square <= s / 16 && square > 0 && count_ > 0) {  // most was cancelled: what is left is not orthogonal enough
      simd::set_products<T, A>(rows_, cols_, count_, out, cols_, c_);
      rho = simd::subtract_rows<T, A>(rows_, cols_, count_, c_, T(1), out, cols_, out);
    }
    if (!(rho > eps_ * s)) {
      std::fill(out, out + cols_, T(0));
      return false;
    }
    const T factor = T(1) / std::sqrt(rho);
    for (Index d = 0; d < cols_; ++d) out[d] *= factor;
    return true;
  }
  /// Adds what x adds. Returns it; null if x is redundant.
  const T* add(const T* x, T s) {
    T* const fresh = rows_ + count_ * cols_;
    if (!residual(x, s, fresh)) return nullptr;
    put(count_, fresh);
    return fresh;
  }
  /// Makes g (padded) row l, in the place of another or behind the last.
  void put(Index l, const T* g) {
    if (g != rows_ + l * cols_) std::copy_n(g, cols_, rows_ + l * cols_);
    count_ = std::max(count_, l + 1);
  }

 private:
  Index cols_ = 0, count_ = 0;
  bool orthonormal_ = true;
  T alpha_ = 1, eps_ = 0;
  T *rows_ = nullptr, *c_ = nullptr;
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
