/// Elementwise functions over arrays, from array to array, all in L1: x in [-5, 5] (logarithms in [0.01, 10]).
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_math
///
/// Peers: `eigen`, its fastest vectorised form where it has several (its sigmoid and tanh are rational functions of bounded range, its
/// GELU has no accuracy below -4); `xsimd`, the same loop over its own functions; `torch`.
#include <recops/core/random.hpp>
#include <recops/simd/activation.hpp>
#include <recops/simd/trigonometry.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Core>
#include <unsupported/Eigen/SpecialFunctions>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
using Vec = simd::Batch<T>;

template <class T, class F>
[[gnu::noinline]] void xsimd_loop(const T* x, T* y, Index n, F f) {
  for (Index i = 0; i + simd::lanes<T> <= n; i += simd::lanes<T>) f(Vec<T>::load_unaligned(x + i)).store_unaligned(y + i);
}

template <class T, class Ours, class EigenForm, class XsimdForm>
void add(const std::string& name, double low, double high, Ours ours, [[maybe_unused]] EigenForm eigen, XsimdForm other) {
  for (const Index n : {4096}) {
    register_case<T>("simd/" + name + "/" + type_name<T>() + "/n:" + std::to_string(n), [=] {
      auto x = std::make_shared<Rotation<T>>(n, 1), y = std::make_shared<Rotation<T>>(n, 1);
      Random random(1);
      for (Index i = 0; i < n; ++i) (*x)[0][i] = static_cast<T>(random.uniform(low, high));
      Case<T> c;
      c.elements = static_cast<double>(n);
      c.bytes = 2.0 * static_cast<double>(n) * sizeof(T);
      c.kernel = [=] { ours((*x)[0], (*y)[0], n); };
#ifdef WITH_EIGEN
      using Array = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
      c.peers.push_back({"eigen", [=] {
                           Array in((*x)[0], n), out((*y)[0], n);
                           eigen(in, out);
                         }});
#endif
      c.peers.push_back({"xsimd", [=] { xsimd_loop<T>((*x)[0], (*y)[0], n, other); }});
      if (std::is_same_v<T, float> && name != "sincos") {
        c.peers.push_back(python_peer("torch", "unary", R"({"f": ")" + name + R"(", "n": )" + std::to_string(n) + "}"));
      }
      return c;
    });
  }
}

// Both sine and cosine; the second array of results is one more.
template <class T>
void add_sincos() {
  const Index n = 4096;
  register_case<T>(std::string("simd/sincos/") + type_name<T>() + "/n:" + std::to_string(n), [=] {
    auto x = std::make_shared<Rotation<T>>(n, 1), s = std::make_shared<Rotation<T>>(n, 1),
         k = std::make_shared<Rotation<T>>(n, 1);
    Random random(1);
    for (Index i = 0; i < n; ++i) (*x)[0][i] = static_cast<T>(random.uniform(-5, 5));
    Case<T> c;
    c.elements = static_cast<double>(n);
    c.bytes = 3.0 * static_cast<double>(n) * sizeof(T);
    c.kernel = [=] { simd::sincos<T>((*x)[0], (*s)[0], (*k)[0], n); };
#ifdef WITH_EIGEN
    using Array = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
    c.peers.push_back({"eigen", [=] {
                         const Array in((*x)[0], n);
                         Array((*s)[0], n) = in.sin();
                         Array((*k)[0], n) = in.cos();
                       }});
#endif
    c.peers.push_back({"xsimd", [=] {
                         for (Index i = 0; i < n; i += simd::lanes<T>) {
                           const auto both = xsimd::sincos(Vec<T>::load_unaligned((*x)[0] + i));
                           both.first.store_unaligned((*s)[0] + i);
                           both.second.store_unaligned((*k)[0] + i);
                         }
                       }});
    return c;
  });
}

template <class T>
void add_all() {
  const auto one = [] { return Vec<T>(T(1)); };
  add<T>(
      "exp", -5, 5, [](const T* x, T* y, Index n) { simd::exp<T>(x, y, n); }, [](const auto& x, auto& y) { y = x.exp(); },
      [](Vec<T> v) { return xsimd::exp(v); });
  add<T>(
      "log", 0.01, 10, [](const T* x, T* y, Index n) { simd::log<T>(x, y, n); }, [](const auto& x, auto& y) { y = x.log(); },
      [](Vec<T> v) { return xsimd::log(v); });
  add<T>(
      "log1p", 0.01, 10, [](const T* x, T* y, Index n) { simd::log1p<T>(x, y, n); },
      [](const auto& x, auto& y) { y = x.log1p(); }, [](Vec<T> v) { return xsimd::log1p(v); });
  add<T>(
      "sigmoid", -5, 5, [](const T* x, T* y, Index n) { simd::sigmoid<T>(x, y, n); },
      [](const auto& x, auto& y) { y = x.logistic(); }, [=](Vec<T> v) { return one() / (one() + xsimd::exp(-v)); });
  add<T>(
      "tanh", -5, 5, [](const T* x, T* y, Index n) { simd::tanh<T>(x, y, n); }, [](const auto& x, auto& y) { y = x.tanh(); },
      [](Vec<T> v) { return xsimd::tanh(v); });
  add<T>(
      "silu", -5, 5, [](const T* x, T* y, Index n) { simd::silu<T>(x, y, n); },
      [](const auto& x, auto& y) { y = x * x.logistic(); }, [=](Vec<T> v) { return v / (one() + xsimd::exp(-v)); });
  add<T>(
      "gelu", -5, 5, [](const T* x, T* y, Index n) { simd::gelu<T>(x, y, n); },
      [](const auto& x, auto& y) { y = (T(0.5) * x) * (T(1) + (x * T(0.70710678118654752440)).erf()); },
      [=](Vec<T> v) { return v * T(0.5) * (one() + xsimd::erf(v * T(0.70710678118654752440))); });
  add<T>(
      "erf", -5, 5, [](const T* x, T* y, Index n) { simd::erf<T>(x, y, n); }, [](const auto& x, auto& y) { y = x.erf(); },
      [](Vec<T> v) { return xsimd::erf(v); });
  add<T>(
      "softplus", -5, 5, [](const T* x, T* y, Index n) { simd::softplus<T>(x, y, n); },
      [](const auto& x, auto& y) { y = x.max(T(0)) + (T(1) + (-x.abs()).exp()).log(); },
      [](Vec<T> v) { return xsimd::max(v, Vec<T>(T(0))) + xsimd::log1p(xsimd::exp(-xsimd::abs(v))); });
  add_sincos<T>();
}

}  // namespace

int main(int argc, char** argv) {
  add_all<float>();
  add_all<double>();
  return run_registered(argc, argv);
}
