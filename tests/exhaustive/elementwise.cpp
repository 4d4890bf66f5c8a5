/// Every float through every elementwise function of simd/, on every instruction set of this build: the largest error of each in
/// units of the last place (denormal results in their own steps), where it is, and the bound that the documentation gives. Exits
/// with 1 if one is exceeded.
///
///     elementwise [FUNCTION [ARCHITECTURE]] [--every N]
///
/// Oracle: the same functions in double, which their tests hold to a few units of the last place of double; besides, the C
/// library in double at every 65 537th float. Sine and cosine beyond 12 000, where both sides are the C library, see every 257th
/// float only.
#include <sys/wait.h>
#include <unistd.h>
#include <recops/simd/activation.hpp>
#include <recops/simd/trigonometry.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

using namespace recops;

namespace {

constexpr Index chunk = 4096;

double normal_cdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }

// One function: its array form, the C library's word for it, the bounds on AVX-512, AVX2 and the plainest set, and its domain.
struct Exp {
  static constexpr const char* name = "exp";
  static constexpr double bound[3] = {1.8, 1.0, 1.4};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::exp<T, A>(x, y, chunk);
  }
  static double library(double x) { return std::exp(x); }
};
struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr double bound[3] = {4.0, 2.5, 3.5};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::sigmoid<T, A>(x, y, chunk);
  }
  static double library(double x) { return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }
};
struct Silu {
  static constexpr const char* name = "silu";
  static constexpr double bound[3] = {4.5, 4.5, 4.5};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::silu<T, A>(x, y, chunk);
  }
  static double library(double x) { return std::isinf(x) ? (x > 0 ? x : 0) : x * Sigmoid::library(x); }
};
struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr double bound[3] = {7.2, 7.2, 7.8};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::tanh<T, A>(x, y, chunk);
  }
  static double library(double x) { return std::tanh(x); }
};
struct Log {
  static constexpr const char* name = "log";
  static constexpr double bound[3] = {1.1, 1.1, 1.3};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::log<T, A>(x, y, chunk);
  }
  static double library(double x) { return std::log(x); }
};
struct Log1p {
  static constexpr const char* name = "log1p";
  static constexpr double bound[3] = {1.4, 1.4, 1.6};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::log1p<T, A>(x, y, chunk);
  }
  static double library(double x) { return std::log1p(x); }
};
struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr double bound[3] = {3.6, 2.3, 2.8};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::softplus<T, A>(x, y, chunk);
  }
  static double library(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::abs(x))) + (x != x ? x : 0); }
};
struct Erf {
  static constexpr const char* name = "erf";
  static constexpr double bound[3] = {4.2, 2.4, 3.0};
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::erf<T, A>(x, y, chunk);
  }
  static double library(double x) { return std::erf(x); }
};
struct Gelu {
  static constexpr const char* name = "gelu";
  static constexpr double bound[3] = {12.5, 9, 9};
  static bool counts(float x) { return !(x < -3); }
  template <class T, class A>
  static void run(const T* x, T* y) {
    simd::gelu<T, A>(x, y, chunk);
  }
  static double library(double x) { return x < -40 ? 0 : x * normal_cdf(x); }
};
struct GeluTail : Gelu {
  static constexpr const char* name = "gelu_tail";
  static constexpr double bound[3] = {160, 60, 60};
  static bool counts(float x) { return x < -3; }
};
struct Sin {
  static constexpr const char* name = "sin";
  static constexpr double bound[3] = {2.6, 2.6, 2.6};
  static constexpr float rare_beyond = 12000;
  template <class T, class A>
  static void run(const T* x, T* y) {
    T other[chunk];
    simd::sincos<T, A>(x, y, other, chunk);
  }
  static double library(double x) { return std::sin(x); }
};
struct Cos {
  static constexpr const char* name = "cos";
  static constexpr double bound[3] = {2.6, 2.6, 2.6};
  static constexpr float rare_beyond = 12000;
  template <class T, class A>
  static void run(const T* x, T* y) {
    T other[chunk];
    simd::sincos<T, A>(x, other, y, chunk);
  }
  static double library(double x) { return std::cos(x); }
};

// |y - exact| in units of the last place of the float nearest to exact. Infinity stands where the next power of two would.
double error_of(float y, double exact) {
  constexpr double top = 0x1p128;
  if (std::isnan(y) || std::isnan(exact)) return std::isnan(y) && std::isnan(exact) ? 0 : top;
  const double got = std::clamp(static_cast<double>(y), -top, top), right = std::clamp(exact, -top, top);
  const std::uint64_t exponent =
      std::min<std::uint64_t>(std::max<std::uint64_t>(std::bit_cast<std::uint64_t>(right) >> 52 & 2047, 1023 - 126), 1023 + 127);
  return std::abs(got - right) * std::bit_cast<double>((2046 - exponent + 23) << 52);  // both factors are exact
}

struct Worst {
  double error = 0;
  float at = 0;
};

template <class F, class A>
bool check(double bound, std::uint64_t step) {
  Worst worst;
  double library_error = 0;
  std::vector<float> x(chunk), y(chunk);
  std::vector<double> wide(chunk), exact(chunk);
  std::uint64_t count = 0;
  const auto flush = [&](std::size_t n) {
    for (std::size_t i = n; i < chunk; ++i) x[i] = 0;
    for (std::size_t i = 0; i < chunk; ++i) wide[i] = static_cast<double>(x[i]);
    F::template run<double, simd::DefaultArch>(wide.data(), exact.data());
    F::template run<float, A>(x.data(), y.data());
    double most = 0;
    for (std::size_t i = 0; i < chunk; ++i) most = std::max(most, error_of(y[i], exact[i]));
    if (most > worst.error) {
      for (std::size_t i = 0; i < chunk; ++i)
        if (error_of(y[i], exact[i]) == most) worst = {most, x[i]};
    }
    count += n;
  };
  std::size_t n = 0;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += step) {
    const float v = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
    if constexpr (requires { F::rare_beyond; }) {
      if (std::abs(v) > F::rare_beyond && bits % 257 != 0) continue;
    }
    if constexpr (requires { F::counts(v); }) {
      if (!F::counts(v)) continue;
    }
    x[n++] = v;
    if (n == chunk) flush(n), n = 0;
  }
  flush(n);
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32);) {
    for (double& v : wide) v = static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits))), bits += 65537;
    F::template run<double, simd::DefaultArch>(wide.data(), exact.data());
    for (std::size_t i = 0; i < chunk; ++i) {
      const double right = F::library(wide[i]);
      if (exact[i] == right || (std::isnan(right) && std::isnan(exact[i]))) continue;
      const double apart = std::abs(exact[i] - right) / std::max(std::abs(right), 0x1p-149);
      library_error = std::max(library_error, std::isnan(apart) ? 1.0 : apart);
    }
  }
  const bool ok = worst.error <= bound && library_error < 1e-12;
  std::printf("%-9s %-14s %11llu floats  %6.3f ulp at %-15.9g bound %.1f %s\n", F::name, A::name(),
              static_cast<unsigned long long>(count), worst.error, static_cast<double>(worst.at), bound, ok ? "" : "EXCEEDED");
  if (library_error >= 1e-12) std::printf("%-9s in double is %g from the C library\n", F::name, library_error);
  std::fflush(stdout);
  return ok;
}

// Two at a time.
template <class... F>
bool check_all(const std::string& function, const std::string& architecture, std::uint64_t step) {
  bool good = true;
  int running = 0;
  const auto wait_one = [&] {
    int status = 0;
    wait(&status);
    good = good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    --running;
  };
  const auto one = [&]<class G, class A>(G*, A*, int place) {
    if ((!function.empty() && function != G::name) || (!architecture.empty() && architecture != A::name())) return;
    if (running == 2) wait_one();
    if (const pid_t child = fork(); child == 0) std::_Exit(check<G, A>(G::bound[place], step) ? 0 : 1);
    ++running;
  };
  const auto each = [&]<class G>(G* f) {
    [&]<class... A>(const std::tuple<A...>*) {
      // The last set is the plainest; of two or three the first has FMA, of three it is AVX-512.
      const int sets = sizeof...(A);
      int i = 0;
      (one(f, static_cast<A*>(nullptr), sets == 3 ? i++ : i++ + (sets == 2 ? 1 : 2)), ...);
    }(static_cast<const simd::Architectures*>(nullptr));
  };
  (each(static_cast<F*>(nullptr)), ...);
  while (running > 0) wait_one();
  return good;
}

}  // namespace

int main(int argc, char** argv) {
  std::string name[2];
  std::uint64_t step = 1;
  int named = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--every") == 0 && i + 1 < argc) {
      step = std::max<std::uint64_t>(1, std::strtoull(argv[++i], nullptr, 10));
    } else if (named < 2) {
      name[named++] = argv[i];
    }
  }
  const bool good =
      check_all<Exp, Sigmoid, Silu, Tanh, Log, Log1p, Softplus, Erf, Gelu, GeluTail, Sin, Cos>(name[0], name[1], step);
  std::puts(good ? "elementwise: all bounds hold" : "elementwise: a bound is exceeded");
  return good ? 0 : 1;
}
