/// @file   recops/simd/reduce.hpp
/// @brief  dot, axpy, scale, sum of squares and maximum of contiguous numbers.
///
/// Sums run in four interleaved vectors and are combined in a fixed order: the same bits for the same length on one instruction
/// set. Each lane sums 64 terms in T, such blocks are added up in double: a float sum of any length is within 4.3e-6 (72 roundings)
/// of sum |x_i|, and usually below 1e-6. NaN gives NaN.
#pragma once
#include <limits>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Sum of f(vector of i..) over [0, n), n of any size.
template <class T, class A, class F>
RECOPS_INLINE T sum_of(Index n, F&& term) {
  constexpr Index W = lanes<T, A>, block = 4 * 64 * W;
  double total = 0;
  for (Index start = 0; start < n; start += block) {
    const Index end = n - start < block ? n : start + block;
    Batch<T, A> acc[4] = {Batch<T, A>(T(0)), Batch<T, A>(T(0)), Batch<T, A>(T(0)), Batch<T, A>(T(0))};
    Index i = start;
    for (; i + 4 * W <= end; i += 4 * W) {
      RECOPS_UNROLL
      for (int u = 0; u < 4; ++u) acc[u] = term(i + u * W, acc[u], W);
    }
    for (; i + W <= end; i += W) acc[0] = term(i, acc[0], W);
    if (i < end) acc[1] = term(i, acc[1], end - i);
    const T sum = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
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

/// y_i += alpha x_i
template <class T, class A = DefaultArch>
void axpy(T alpha, const T* x, T* y, Index n) {
  const Batch<T, A> a(alpha);
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + i, mul_add(a, load(x + i), load(y + i))); });
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

/// max_i a_i; -infinity for n = 0. A NaN may or may not be the result: softmax and others look for it themselves.
template <class T, class A = DefaultArch>
T max(const T* a, Index n) {
  constexpr Index W = lanes<T, A>;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  if (n < W) {
    T m = lowest;
    for (Index i = 0; i < n; ++i) m = a[i] > m ? a[i] : m;
    return m;
  }
  Batch<T, A> m = Batch<T, A>::load_unaligned(a + n - W);  // the tail overlaps the last whole vector
  for (Index i = 0; i + W <= n; i += W) m = xsimd::max(m, Batch<T, A>::load_unaligned(a + i));
  return max_lane(m);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
