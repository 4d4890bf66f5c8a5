/// @file   recops/metrics/pareto.hpp
/// @brief  The Pareto front of models judged by several metrics, all to be maximised, and the area it dominates.
///
/// A point is dominated by one that is at least as good in every column and better in one. Equal points do not dominate each other:
/// all copies of a point of the front are on it.
///
/// Shapes      points [n, M], a row per model   front [n], 1 or 0
/// Edge cases  no points: an empty front.  M = 0: all are equal, all on the front.  Infinities are ordinary numbers.
/// NaN         a point with a NaN is not on the front and dominates nothing.
/// Cost        M = 2 a sort; else O(n F M) for a front of F points after a sort.  Scratch 40 n bytes at most.
/// Errors      Error if sizes differ, or there are more than 2^31 points.
/// Reference   Kung, Luccio and Preparata 1975; Zitzler and Thiele 1999 (hypervolume).
#pragma once
#include <recops/metrics/common.hpp>
#include <recops/simd/argsort.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
bool row_has_nan(MatrixView<const T> points, Index i) {
  return has_nan(VectorView<const T>(points.row(i), points.cols()));
}

/// Two columns: going down the first, only what raises the best of the second is on the front.
template <class T>
void front_of_two(MatrixView<const T> points, std::uint8_t* front, Workspace& ws) {
  const Index n = points.rows();
  T* const x = ws.take<T>(n);
  std::int32_t* const order = ws.take<std::int32_t>(n);
  for (Index i = 0; i < n; ++i) x[i] = row_has_nan(points, i) ? std::numeric_limits<T>::quiet_NaN() : points(i, 0);
  simd::argsort<T>(x, n, Order::descending, order, ws);
  bool any = false;
  T best{};
  for (Index a = 0, b; a < n && x[order[a]] == x[order[a]]; a = b) {  // runs of equal x; NaN comes last
    T top = points(order[a], 1);
    for (b = a; b < n && x[order[b]] == x[order[a]]; ++b) top = std::max(top, points(order[b], 1));
    if (any && !(top > best)) continue;
    for (Index i = a; i < b; ++i) front[order[i]] = points(order[i], 1) == top;
    any = true;
    best = top;
  }
}

/// Any number of columns. What dominates a point has no smaller sum and comes first in lexicographic order, so that a point need
/// only be compared with those found before it.
template <class T>
void front_of_many(MatrixView<const T> points, std::uint8_t* front, Workspace& ws) {
  const Index n = points.rows(), cols = points.cols();
  double* const sum = ws.take<double>(n);
  Index* const order = ws.take<Index>(n);
  Index* const found = ws.take<Index>(n);
  Index count = 0, kept = 0;
  for (Index i = 0; i < n; ++i) {
    if (row_has_nan(points, i)) continue;
    sum[i] = 0;
    for (Index m = 0; m < cols; ++m) {  // within the finite numbers: an infinity of either sign would make NaN
      const double v = static_cast<double>(points(i, m)), most = 1e300 / static_cast<double>(cols);
      sum[i] += std::min(std::max(v, -most), most);
    }
    order[count++] = i;
  }
  std::sort(order, order + count, [&](Index a, Index b) {
    if (sum[a] != sum[b]) return sum[a] > sum[b];
    for (Index m = 0; m < cols; ++m)
      if (points(a, m) != points(b, m)) return points(a, m) > points(b, m);
    return a < b;
  });
  for (Index k = 0; k < count; ++k) {
    const T* const p = points.row(order[k]);
    bool dominated = false;
    for (Index f = 0; f < kept && !dominated; ++f) {
      const T* const q = points.row(found[f]);
      bool no_worse = true, better = false;
      for (Index m = 0; m < cols && no_worse; ++m) {
        no_worse = q[m] >= p[m];
        better |= q[m] > p[m];
      }
      dominated = no_worse && better;
    }
    front[order[k]] = !dominated;
    if (!dominated) found[kept++] = order[k];
  }
}

}  // namespace detail

/// Writes which of the points are on the front; returns how many. Throws `Error`; see above.
template <Real T>
Index pareto_front(MatrixView<const T> points, VectorView<std::uint8_t> front, Workspace& ws) {
  check_shape("pareto_front", "points", points, any_size, any_size);
  detail::check_countable("pareto_front", points.rows());
  check_size("pareto_front", "front", front, points.rows());
  const auto mark = ws.mark();
  std::fill(front.begin(), front.end(), std::uint8_t{0});
  if (points.cols() == 2)
    detail::front_of_two(points, front.data(), ws);
  else
    detail::front_of_many(points, front.data(), ws);
  Index count = 0;
  for (const std::uint8_t f : front) count += f;
  return count;
}

/// The area that `points [n, 2]` dominate above the reference (x, y), which should be worse than all of them; what is below it
/// adds nothing. O(n log n). Throws `Error` if the reference is not finite.
template <Real T>
double hypervolume_2d(MatrixView<const T> points, double x, double y, Workspace& ws) {
  check_shape("hypervolume_2d", "points", points, any_size, 2);
  detail::check_countable("hypervolume_2d", points.rows());
  check_option("hypervolume_2d", "x", x - x == 0, "a finite reference", x);
  check_option("hypervolume_2d", "y", y - y == 0, "a finite reference", y);
  const Index n = points.rows();
  const auto mark = ws.mark();
  T* const first = ws.take<T>(n);
  std::int32_t* const order = ws.take<std::int32_t>(n);
  for (Index i = 0; i < n; ++i) first[i] = detail::row_has_nan(points, i) ? std::numeric_limits<T>::quiet_NaN() : points(i, 0);
  simd::argsort<T>(first, n, Order::descending, order, ws);
  double area = 0, top = y;
  for (Index k = 0; k < n && first[order[k]] == first[order[k]];
       ++k) {  // strips from the right: each adds what rises above `top`
    const double px = static_cast<double>(points(order[k], 0)), py = static_cast<double>(points(order[k], 1));
    if (!(px > x && py > top)) continue;
    area += (px - x) * (py - top);
    top = py;
  }
  return area;
}

}  // namespace RECOPS_ABI
}  // namespace recops
