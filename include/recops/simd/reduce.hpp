/// @file   recops/simd/reduce.hpp
/// @brief  dot, sum, sum of squares, maximum and its place, axpy, add and scale of contiguous numbers.
///
/// Sums run in eight interleaved vectors and are combined in a fixed order: the same bits for the same length on one instruction
/// set. Each lane sums 64 terms in T, such blocks are added up in double: a float sum of any length is within 4.3e-6 (72 roundings)
/// of sum |x_i|, and usually below 1e-6. NaN gives NaN in a sum; a maximum passes NaN over.
#pragma once
#include <algorithm>
#include <limits>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Sum over [0, n), n of any size: term(i, acc, count) adds what `count` numbers (a vector, or less at the end) from i on give.
template <class T, class A, int U = 8, class F>
RECOPS_INLINE T sum_of(Index n, F&& term) {
  constexpr Index W = lanes<T, A>, block = U * 64 * W;
  double total = 0;
  for (Index start = 0; start < n; start += block) {
    const Index end = n - start < block ? n : start + block;
    Batch<T, A> acc[U];
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) acc[u] = Batch<T, A>(T(0));
    Index i = start;
    for (; i + U * W <= end; i += U * W) {
      RECOPS_UNROLL
      for (int u = 0; u < U; ++u) acc[u] = term(i + u * W, acc[u], W);
    }
    if constexpr (U > 4) {
      if (i + 4 * W <= end) {
        RECOPS_UNROLL
        for (int u = 0; u < 4; ++u) acc[u] = term(i + u * W, acc[u], W);
        i += 4 * W;
      }
    }
    for (; i + W <= end; i += W) acc[0] = term(i, acc[0], W);
    if (i < end) acc[1] = term(i, acc[1], end - i);
    RECOPS_UNROLL
    for (int half = U / 2; half > 0; half /= 2) {
      RECOPS_UNROLL
      for (int u = 0; u < half; ++u) acc[u] = acc[u] + acc[u + half];
    }
    const T sum = sum_lanes(acc[0]);
    if (n <= block) return sum;
    total += static_cast<double>(sum);
  }
  return static_cast<T>(total);
}

template <class T, class A>
RECOPS_INLINE Batch<T, A> load_upto(const T* p, Index n) {
  return n == lanes<T, A> ? Batch<T, A>::load_unaligned(p) : load_first<T, A>(p, n);
}

}  // namespace detail

/// sum_i a_i b_i
template <class T, class A = DefaultArch>
T dot(const T* a, const T* b, Index n) {
  return detail::sum_of<T, A>(n, [=](Index i, Batch<T, A> acc, Index count) RECOPS_LAMBDA_INLINE {
    return mul_add(detail::load_upto<T, A>(a + i, count), detail::load_upto<T, A>(b + i, count), acc);
  });
}

/// sum_i a_i
template <class T, class A = DefaultArch>
T sum(const T* a, Index n) {
  return detail::sum_of<T, A>(
      n, [=](Index i, Batch<T, A> acc, Index count) RECOPS_LAMBDA_INLINE { return acc + detail::load_upto<T, A>(a + i, count); });
}

/// sum_i a_i^2
template <class T, class A = DefaultArch>
T sum_squares(const T* a, Index n) {
  return detail::sum_of<T, A>(n, [=](Index i, Batch<T, A> acc, Index count) RECOPS_LAMBDA_INLINE {
    const Batch<T, A> x = detail::load_upto<T, A>(a + i, count);
    return mul_add(x, x, acc);
  });
}

/// y_i += alpha x_i
template <class T, class A = DefaultArch>
void axpy(T alpha, const T* x, T* y, Index n) {
  const Batch<T, A> a(alpha);
  for_each_vector<T, A>(
      n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + i, mul_add(a, load(x + i), load(y + i))); });
}

/// y_i += x_i
template <class T, class A = DefaultArch>
void add(const T* x, T* y, Index n) {
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + i, load(x + i) + load(y + i)); });
}

/// y_i = alpha x_i (x may be y)
template <class T, class A = DefaultArch>
void scale(T alpha, const T* x, T* y, Index n) {
  const Batch<T, A> a(alpha);
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + i, a * load(x + i)); });
}

/// max_i a_i over the numbers that are not NaN; -infinity where there are none.
template <class T, class A = DefaultArch>
T max(const T* a, Index n) {
  constexpr Index W = lanes<T, A>;
  constexpr int U = 8;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  using B = Batch<T, A>;
  if (n < W) {
    T m = lowest;
    for (Index i = 0; i < n; ++i) m = a[i] > m ? a[i] : m;
    return m;
  }
  B m = larger(B::load_unaligned(a + n - W),
                   B(lowest));  // the tail overlaps the last whole vector; NaN first: it is passed over
  Index i = 0;
  if (n >= U * W) {
    B most[U];
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) most[u] = B(lowest);
    for (; i + U * W <= n; i += U * W) {
      RECOPS_UNROLL
      for (int u = 0; u < U; ++u) most[u] = larger(B::load_unaligned(a + i + u * W), most[u]);
    }
    RECOPS_UNROLL
    for (int half = U / 2; half > 0; half /= 2) {
      RECOPS_UNROLL
      for (int u = 0; u < half; ++u) most[u] = larger(most[u], most[u + half]);
    }
    m = larger(most[0], m);
  }
  for (; i + W <= n; i += W) m = larger(B::load_unaligned(a + i), m);
  return max_lane(m);
}

/// The lowest i with a_i = max; NaN never wins. 0 where all are NaN, -1 for n = 0. Reads `a` once, and one block again.
template <class T, class A = DefaultArch>
Index argmax(const T* a, Index n) {
  constexpr Index block = 32 * lanes<T, A>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  if (n == 0) return -1;
  T best = lowest;
  Index where = 0;
  for (Index i = 0; i < n; i += block) {
    const T m = simd::max<T, A>(a + i, n - i < block ? n - i : block);
    if (m > best) best = m, where = i;
  }
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  for (; where + W <= n; where += W) {
    if (xsimd::any(B::load_unaligned(a + where) == B(best))) break;
  }
  for (; where < n; ++where) {
    if (a[where] == best) return where;
  }
  return 0;
}

/// Whether none of n numbers is NaN or infinite. Cost: that of their sum, unless that overflows.
template <Real T>
bool finite_row(const T* x, Index n) {
  const T total = sum<T>(x, n);
  return total - total == T(0) || std::all_of(x, x + n, [](T v) { return v - v == T(0); });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
