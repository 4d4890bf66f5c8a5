/// @file   recops/simd/activation.hpp
/// @brief  Elementwise activations and their derivatives, by name, so that a gemm can apply one while its tile is in cache.
#pragma once
#include <recops/simd/gaussian.hpp>
#include <recops/simd/log.hpp>
#include <recops/simd/math.hpp>

namespace recops {

/// y = f(x). NaN stays NaN. Where a function is from its exact value is said in simd/math.hpp, log.hpp and gaussian.hpp.
enum class Activation : unsigned char {
  none,
  relu,
  sigmoid,
  silu,  ///< x sigmoid(x), also called swish; within 4.5 ulp (double: 6)
  tanh,
  gelu,        ///< x Phi(x), the exact form with erf
  softplus,    ///< log(1 + e^x)
  leaky_relu,  ///< x, or 0.01 x below 0
};

inline constexpr double leaky_slope = 0.01;  ///< slope of `Activation::leaky_relu` below 0

inline namespace RECOPS_ABI {
namespace simd {

/// x sigmoid(x), far below 0 x e^x down through the denormals to -0.
template <class T, class A>
RECOPS_INLINE Batch<T, A> silu(Batch<T, A> x) {
  using B = Batch<T, A>;
  constexpr bool single = std::is_same_v<T, float>;
  const B y = xsimd::max(B(single ? T(-120) : T(-760)), x), one(T(1));
  // Unscaled, e^x is still exact where it would be denormal; beyond 20 (40) whatever comes of it is passed over.
  const auto e = detail::exp_parts(y);
  const B below = detail::scale_by_power(y * e.mantissa, e.exponent) / (e.value() + one);
  return xsimd::select(x < B(single ? T(20) : T(40)), below, x);
}

namespace detail {

// The longer ones by call, so that a program that picks its activation at run time holds each once, wherever it picks.
template <class T, class A>
[[gnu::noinline]] Batch<T, A> tanh_call(Batch<T, A> x) {
  return simd::tanh(x);
}
template <class T, class A>
[[gnu::noinline]] Batch<T, A> gelu_call(Batch<T, A> x) {
  return simd::gelu(x);
}
template <class T, class A>
[[gnu::noinline]] Batch<T, A> gelu_derivative_call(Batch<T, A> x) {
  return simd::gelu_derivative(x);
}
template <class T, class A>
[[gnu::noinline]] Batch<T, A> softplus_call(Batch<T, A> x) {
  return simd::softplus(x);
}

}  // namespace detail

/// f of one vector. Arrays are faster by the form below.
template <class T, class A>
RECOPS_INLINE Batch<T, A> activate(Activation f, Batch<T, A> x) {
  using B = Batch<T, A>;
  switch (f) {
    case Activation::relu:
      return xsimd::max(B(T(0)), x);  // in this order NaN stays NaN
    case Activation::sigmoid:
      return simd::sigmoid(x);
    case Activation::silu:
      return simd::silu(x);
    case Activation::tanh:
      return detail::tanh_call(x);
    case Activation::gelu:
      return detail::gelu_call(x);
    case Activation::softplus:
      return detail::softplus_call(x);
    case Activation::leaky_relu:
      return xsimd::max(x * B(static_cast<T>(leaky_slope)), x);
    case Activation::none:
      break;
  }
  return x;
}

/// f'(x) times dy, from x and y = f(x). The derivative of relu at 0 is 0, of leaky_relu 0.01.
template <class T, class A>
RECOPS_INLINE Batch<T, A> activate_backward(Activation f, Batch<T, A> x, Batch<T, A> y, Batch<T, A> dy) {
  using B = Batch<T, A>;
  const B zero(T(0)), one(T(1));
  switch (f) {
    case Activation::relu:
      return xsimd::select(x > zero, dy, zero);
    case Activation::sigmoid:
      return dy * y * (one - y);
    case Activation::silu: {
      const B s = simd::sigmoid(x), finite = xsimd::min(B(std::numeric_limits<T>::max()), y);  // infinity * 0 would be NaN
      return dy * mul_add(finite, one - s, s);
    }
    case Activation::tanh:
      return dy * neg_mul_add(y, y, one);
    case Activation::gelu:
      return dy * detail::gelu_derivative_call(x);
    case Activation::softplus:
      return dy * simd::sigmoid(x);
    case Activation::leaky_relu:
      return xsimd::select(x > zero, dy, dy * B(static_cast<T>(leaky_slope)));
    case Activation::none:
      break;
  }
  return dy;
}

/// y_i = x_i sigmoid(x_i); y may be x.
template <class T, class A = DefaultArch>
void silu(const T* x, T* y, Index n) {
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return simd::silu(v); });
}

/// y_i = f(x_i); y may be x.
template <class T, class A = DefaultArch>
void activate(Activation f, const T* x, T* y, Index n) {
  switch (f) {
    case Activation::sigmoid:
      return simd::sigmoid<T, A>(x, y, n);
    case Activation::silu:
      return simd::silu<T, A>(x, y, n);
    case Activation::tanh:
      return simd::tanh<T, A>(x, y, n);
    case Activation::gelu:
      return simd::gelu<T, A>(x, y, n);
    case Activation::softplus:
      return simd::softplus<T, A>(x, y, n);
    case Activation::relu:
      return detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return activate(Activation::relu, v); });
    case Activation::leaky_relu:
      return detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return activate(Activation::leaky_relu, v); });
    case Activation::none:
      break;
  }
  detail::map<T, A>(x, y, n, [](Batch<T, A> v) RECOPS_LAMBDA_INLINE { return v; });
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
