/// @file   recops/simd/softmax.hpp
/// @brief  Softmax of contiguous rows, and its backward.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/simd/math.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// x_i <- exp(x_i - max) / sum_j exp(x_j - max), in place; returns log sum_j exp(x_j). Max-shifted: any finite scores are
/// safe. Entries of -infinity get exactly 0; a row of nothing else (or n = 0) gets zeros and returns -infinity. A NaN or
/// +infinity makes the whole row NaN. Four passes over the row (maximum, exp, sum, scale).
template <class T, class A = DefaultArch>
T softmax(T* x, Index n) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const T m = simd::max<T, A>(x, n);
  if (m == -infinity) {  // all masked, or all NaN: let a NaN through
    T total = T(0);
    for (Index i = 0; i < n; ++i) total += x[i] == -infinity ? T(0) : x[i];
    std::fill_n(x, n, total);
    return total == T(0) ? -infinity : total;
  }
  const Batch<T, A> shift(m);
  for_each_vector<T, A>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    store(x + i, simd::exp(load(x + i) - shift));
  });
  const T total = simd::sum<T, A>(x, n);
  simd::scale<T, A>(T(1) / total, x, x, n);
  return m + std::log(total);
}

/// dx_i += p_i (dp_i - sum_j p_j dp_j): backward of `softmax`, of which p is the result.
template <class T, class A = DefaultArch>
void softmax_backward(const T* p, const T* dp, T* dx, Index n) {
  const Batch<T, A> mean(simd::dot<T, A>(p, dp, n));
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    store(dx + i, mul_add(load(p + i), load(dp + i) - mean, load(dx + i)));
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
