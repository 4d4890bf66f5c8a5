/// @file   recops/simd/activation.hpp
/// @brief  Elementwise activations and their derivatives, by name, so that a gemm can apply one while its tile is in cache.
#pragma once
#include <recops/simd/math.hpp>

namespace recops {

/// y = f(x). `silu` is x sigmoid(x), also called swish.
enum class Activation : unsigned char { none, relu, sigmoid, silu };

inline namespace RECOPS_ABI {
namespace simd {

template <class T, class A>
RECOPS_INLINE Batch<T, A> activate(Activation f, Batch<T, A> x) {
  switch (f) {
    case Activation::relu: return xsimd::max(Batch<T, A>(T(0)), x);  // in this order NaN stays NaN
    case Activation::sigmoid: return sigmoid(x);
    case Activation::silu: return x * sigmoid(x);
    case Activation::none: break;
  }
  return x;
}

/// f'(x) times dy, from x and y = f(x). The derivative of relu at 0 is 0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> activate_backward(Activation f, Batch<T, A> x, Batch<T, A> y, Batch<T, A> dy) {
  const Batch<T, A> zero(T(0)), one(T(1));
  switch (f) {
    case Activation::relu: return xsimd::select(x > zero, dy, zero);
    case Activation::sigmoid: return dy * y * (one - y);
    case Activation::silu: {
      const Batch<T, A> s = sigmoid(x);
      return dy * mul_add(y, one - s, s);
    }
    case Activation::none: break;
  }
  return dy;
}

/// y_i = f(x_i); y may be x.
template <class T, class A = DefaultArch>
void activate(Activation f, const T* x, T* y, Index n) {
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + i, activate(f, load(x + i))); });
}

/// dx_i = dy_i f'(x_i), where y = f(x); dx may be dy.
template <class T, class A = DefaultArch>
void activate_backward(Activation f, const T* x, const T* y, const T* dy, T* dx, Index n) {
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    store(dx + i, activate_backward(f, load(x + i), load(y + i), load(dy + i)));
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
