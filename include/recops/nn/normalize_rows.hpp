/// @file   recops/nn/normalize_rows.hpp
/// @brief  Rows scaled to length 1: y_i = x_i / |x_i|.
///
/// Shapes      x, y, dx, dy [N, D].  y may be x.
/// Edge cases  A row no longer than 1e-10 (double: 1e-12) gives zeros and no gradient. N = 0 and D = 0 do nothing.
/// NaN         A row that is not finite, or whose sum of squares overflows, gives a row of NaN; other rows are unaffected.
/// Cost        One pass.
/// Errors      Error if shapes disagree; outputs untouched.
/// Gradient    dx += (dy - <dy, y> y) / |x|
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// Squared lengths up to this count as zero.
template <class T>
inline constexpr T tiny_square = std::is_same_v<T, float> ? T(1e-20) : T(1e-24);

/// 1 / |x|, 0 for a tiny row, NaN for one that is not finite.
template <class T>
T inverse_length(const T* x, Index n) {
  const T square = simd::dot(x, x, n);
  if (!(square <= std::numeric_limits<T>::max())) return std::numeric_limits<T>::quiet_NaN();
  return square <= tiny_square<T> ? T(0) : T(1) / std::sqrt(square);
}

/// dx += (dy - <dy, y> y) / |x| for one row, with y = x / |x|.
template <class T>
void normalize_row_backward(const T* y, const T* dy, T inverse, T* dx, Index n) {
  simd::axpy(inverse, dy, dx, n);
  simd::axpy(-inverse * simd::dot(dy, y, n), y, dx, n);
}

}  // namespace detail

/// y_i = x_i / |x_i|; `y` [N, D] may be `x`.
template <Real T>
void normalize_rows(MatrixView<const T> x, MatrixView<T> y) {
  check_shape("normalize_rows", "x", x, any_size, any_size);
  check_shape("normalize_rows", "y", y, x.rows(), x.cols());
  for (Index i = 0; i < x.rows(); ++i) {
    const T inverse = detail::inverse_length(x.row(i), x.cols());
    if (inverse == T(0)) {
      std::fill(y.row(i), y.row(i) + y.cols(), T(0));
    } else {
      simd::scale(inverse, x.row(i), y.row(i), x.cols());
    }
  }
}

/// Adds the gradient of `normalize_rows` with respect to `x` to `dx`, given that of its result.
template <Real T>
void normalize_rows_backward(MatrixView<const T> x, MatrixView<const T> dy, MatrixView<T> dx) {
  check_shape("normalize_rows_backward", "x", x, any_size, any_size);
  check_shape("normalize_rows_backward", "dy", dy, x.rows(), x.cols());
  check_shape("normalize_rows_backward", "dx", dx, x.rows(), x.cols());
  for (Index i = 0; i < x.rows(); ++i) {
    const T inverse = detail::inverse_length(x.row(i), x.cols());
    if (inverse == T(0)) continue;
    simd::axpy(inverse, dy.row(i), dx.row(i), x.cols());
    // In this order nothing is lost of a row whose length, cubed, overflows.
    const T along = inverse * simd::dot(dy.row(i), x.row(i), x.cols());
    simd::axpy(-inverse * (inverse * along), x.row(i), dx.row(i), x.cols());
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
