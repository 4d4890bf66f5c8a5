/// @file   recops/core/eigen.hpp
/// @brief  Opt-in bridge to Eigen: `as_eigen(x)` maps views and owners without copying. The other way needs nothing: views are
///         made implicitly from row-major Eigen objects.
///
/// Eigen objects that own memory must not cross between files compiled for different instruction sets: their alignment follows
/// the compiler's flags. Maps of recops memory may.
#pragma once
#include <Eigen/Core>
#include <recops/core/matrix.hpp>

namespace recops {

/// A dynamic row-major Eigen matrix: what converts to `MatrixView`.
template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace traits {
template <class T>
using MapOf = std::conditional_t<std::is_const_v<T>, const RowMajor<std::remove_const_t<T>>, RowMajor<T>>;
template <class T>
using ColumnOf = std::conditional_t<std::is_const_v<T>, const Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>,
                                    Eigen::Matrix<T, Eigen::Dynamic, 1>>;
}  // namespace traits

inline namespace RECOPS_ABI {

/// A view as an Eigen map `[rows, cols]`, no copy.
template <class T>
auto as_eigen(MatrixView<T> m) {
  return Eigen::Map<traits::MapOf<T>, Eigen::Unaligned, Eigen::OuterStride<>>(m.data(), m.rows(), m.cols(),
                                                                              Eigen::OuterStride<>(m.stride()));
}
/// A view as an Eigen column vector `[size]`, no copy.
template <class T>
auto as_eigen(VectorView<T> v) {
  return Eigen::Map<traits::ColumnOf<T>>(v.data(), v.size());
}

template <class T>
auto as_eigen(Matrix<T>& m) {
  return as_eigen(m.view());
}
template <class T>
auto as_eigen(const Matrix<T>& m) {
  return as_eigen(m.view());
}
template <class T>
auto as_eigen(Vector<T>& v) {
  return as_eigen(VectorView<T>(v));
}
template <class T>
auto as_eigen(const Vector<T>& v) {
  return as_eigen(VectorView<const T>(v));
}
template <class T>
void as_eigen(const Matrix<T>&&) = delete;  // the map would outlive the matrix
template <class T>
void as_eigen(const Vector<T>&&) = delete;  // the map would outlive the vector

}  // namespace RECOPS_ABI
}  // namespace recops
