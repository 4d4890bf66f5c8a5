/// @file   recops/attention/orthogonal_projection.hpp
/// @brief  What one vector has that another has not: out_i = x_i - (x_i . y_i) / (y_i . y_i + epsilon) y_i, row by row.
///
/// Before modalities are fused, each keeps what the others do not say already.
///
/// Shapes      x, y, out [B, D]
/// Edge cases  y = 0: out is x.   With epsilon > 0 a trace of y is left: x . y epsilon / (y . y + epsilon).
/// NaN         stays in its row.   out may be x.
/// Precision   T.   Cost 8 B D flops, one pass; backward three.
/// Errors      Error if shapes disagree or epsilon, in T, is not above 0; outputs untouched.
/// Reference   MMBee, arXiv 2407.00056, names the idea; the form with epsilon is our reconstruction.
#pragma once
#include <cmath>
#include <recops/core/error.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

template <Real T>
void orthogonal_projection(MatrixView<const T> x, MatrixView<const T> y, double epsilon, MatrixView<T> out) {
  constexpr const char* name = "orthogonal_projection";
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "y", y, x.rows(), x.cols());
  check_option(name, "epsilon", std::isfinite(epsilon) && static_cast<T>(epsilon) > 0, "epsilon > 0", epsilon);
  check_shape(name, "out", out, x.rows(), x.cols());
  const Index n = x.cols();
  for (Index r = 0; r < x.rows(); ++r) {
    const T *const px = x.row(r), *const py = y.row(r);
    T* const to = out.row(r);
    const T a = simd::dot<T>(px, py, n) / (simd::dot<T>(py, py, n) + static_cast<T>(epsilon));
    const simd::Batch<T> factor(a);
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      store(to + i, simd::neg_mul_add(factor, load(py + i), load(px + i)));
    });
  }
}

/// Adds to dx and dy, each unless empty.
template <Real T>
void orthogonal_projection_backward(MatrixView<const T> x, MatrixView<const T> y, double epsilon, MatrixView<const T> dout,
                                    MatrixView<T> dx, MatrixView<T> dy) {
  constexpr const char* name = "orthogonal_projection_backward";
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "y", y, x.rows(), x.cols());
  check_option(name, "epsilon", std::isfinite(epsilon) && static_cast<T>(epsilon) > 0, "epsilon > 0", epsilon);
  check_shape(name, "dout", dout, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dy.empty()) check_shape(name, "dy", dy, x.rows(), x.cols());
  const Index n = x.cols();
  for (Index r = 0; r < x.rows(); ++r) {
    const T *const px = x.row(r), *const py = y.row(r), *const g = dout.row(r);
    const T size = simd::dot<T>(py, py, n) + static_cast<T>(epsilon), a = simd::dot<T>(px, py, n) / size,
            b = simd::dot<T>(g, py, n) / size;
    if (!dx.empty()) {
      simd::add<T>(g, dx.row(r), n);
      simd::axpy<T>(-b, py, dx.row(r), n);
    }
    if (!dy.empty()) {
      simd::axpy<T>(-a, g, dy.row(r), n);
      simd::axpy<T>(-b, px, dy.row(r), n);
      simd::axpy<T>(2 * a * b, py, dy.row(r), n);
    }
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
