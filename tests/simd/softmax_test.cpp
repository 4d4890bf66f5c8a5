// Oracle: the definition in long double; backward against central differences.
#include <recops/simd/softmax.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T not_a_number = std::numeric_limits<T>::quiet_NaN();

// The definition; returns log-sum-exp.
template <class T>
long double reference(const Vector<T>& x, std::vector<long double>& p) {
  long double most = -std::numeric_limits<long double>::infinity(), total = 0;
  for (const T v : x) most = std::max<long double>(most, v);
  for (const T v : x) total += std::exp(static_cast<long double>(v) - most);
  p.clear();
  for (const T v : x) p.push_back(std::exp(static_cast<long double>(v) - most) / total);
  return most + std::log(total);
}

}  // namespace

TEMPLATE_TEST_CASE("softmax of rows of every size", "[simd][softmax]", float, double) {
  using T = TestType;
  Random random = random_stream(11);
  const double eps = std::numeric_limits<T>::epsilon();
  std::vector<Index> sizes{100, 1000, 4097, 20011};
  for (Index n = 1; n <= 67; ++n) sizes.push_back(n);
  std::vector<long double> p;
  for (const Index n : sizes) {
    for (const double scale : {1.0, 30.0, 3e4}) {
      Vector<T> x = random_vector<T>(n, random);
      for (T& v : x) v *= static_cast<T>(scale);
      const auto lse = static_cast<double>(reference(x, p));
      for_each_architecture([&](auto arch) {
        Vector<T> y = x;
        const T got = simd::softmax<T, decltype(arch)>(y.data(), n);
        CAPTURE(n, scale);
        REQUIRE(std::abs(static_cast<double>(got) - lse) <= 4 * eps * (1 + std::abs(lse)));
        double worst = 0;
        for (Index i = 0; i < n; ++i) {
          const auto exact = static_cast<double>(p[static_cast<std::size_t>(i)]);
          // x - max rounds to eps / 2 of itself; where the result is denormal only its absolute error counts.
          const double relative = (20 + std::abs(static_cast<double>(x[i]) - lse)) * eps;
          worst = std::max(worst, std::abs(static_cast<double>(y[i]) - exact) /
                                      (relative * exact + 2 * static_cast<double>(std::numeric_limits<T>::min())));
        }
        REQUIRE(worst <= 1);
      });
    }
  }
}

TEMPLATE_TEST_CASE("masked entries get exactly 0, rows of nothing else zeros", "[simd][softmax]", float, double) {
  using T = TestType;
  Random random = random_stream(12);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    CHECK(simd::softmax<T, A>(nullptr, 0) == -infinity<T>);
    T one = T(-3e8);
    CHECK(simd::softmax<T, A>(&one, 1) == T(-3e8));
    CHECK(one == 1);
    for (Index n = 1; n <= 40; ++n) {
      Vector<T> all(n, -infinity<T>);
      REQUIRE(simd::softmax<T, A>(all.data(), n) == -infinity<T>);
      for (const T v : all) REQUIRE((v == 0 && !std::signbit(v)));
      // Masking equals leaving out.
      Vector<T> x = random_vector<T>(n, random), kept;
      for (Index i = 0; i < n; ++i) {
        if (i % 3 == 1)
          x[i] = -infinity<T>;
        else
          kept.push_back(x[i]);
      }
      const T lse = simd::softmax<T, A>(x.data(), n);
      REQUIRE(lse == Approx(simd::softmax<T, A>(kept.data(), kept.size())).epsilon(1e-5));
      for (Index i = 0, k = 0; i < n; ++i) {
        if (i % 3 == 1)
          REQUIRE(x[i] == 0);
        else
          REQUIRE(x[i] == Approx(kept[k++]).epsilon(1e-5));
      }
    }
  });
}

TEMPLATE_TEST_CASE("a NaN or +infinity anywhere makes the whole row NaN", "[simd][softmax]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    for (const Index n : {1, 2, 3, 4, 7, 8, 15, 16, 17, 33}) {
      for (Index bad = 0; bad < n; ++bad) {
        for (const T poison : {not_a_number<T>, -not_a_number<T>, infinity<T>}) {
          for (const T rest : {T(1), -infinity<T>, not_a_number<T>}) {  // among numbers, in a masked row, among its own kind
            Vector<T> x(n, rest);
            x[bad] = poison;
            const T lse = simd::softmax<T, decltype(arch)>(x.data(), n);
            CAPTURE(n, bad, poison, rest);
            REQUIRE(std::isnan(lse));
            for (const T v : x) REQUIRE(std::isnan(v));
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("huge scores do not overflow", "[simd][softmax]", float, double) {
  using T = TestType;
  const T largest = std::numeric_limits<T>::max();
  for_each_architecture([&](auto arch) {
    Vector<T> x{largest, -largest, largest, T(0)};
    const T lse = simd::softmax<T, decltype(arch)>(x.data(), 4);
    CHECK((x[0] == T(0.5) && x[1] == 0 && x[2] == T(0.5) && x[3] == 0));
    CHECK(lse == largest);
  });
}

TEST_CASE("softmax backward agrees with central differences and adds", "[simd][softmax]") {
  Random random = random_stream(13);
  for (const Index n : {1, 2, 5, 16, 23}) {
    Vector<double> x = random_vector<double>(n, random);
    if (n > 4) x[3] = -std::numeric_limits<double>::infinity();
    const Vector<double> dp = random_vector<double>(n, random);
    const auto loss = [&](const Vector<double>& at) {
      Vector<double> p = at;
      simd::softmax(p.data(), n);
      double sum = 0;
      for (Index i = 0; i < n; ++i) sum += p[i] * dp[i];
      return sum;
    };
    Vector<double> p = x;
    simd::softmax(p.data(), n);
    for_each_architecture([&](auto arch) {
      Vector<double> dx(n, 0.25);
      simd::softmax_backward<double, decltype(arch)>(p.data(), dp.data(), dx.data(), n);
      for (Index i = 0; i < n; ++i) {
        Vector<double> up = x, down = x;
        up[i] += 1e-6, down[i] -= 1e-6;
        const double numeric = std::isinf(x[i]) ? 0 : (loss(up) - loss(down)) / 2e-6;
        CHECK(dx[i] - 0.25 == Approx(numeric).margin(1e-8));
      }
    });
  }
  // In float against double.
  for (const Index n : {0, 1, 7, 40, 333}) {
    Vector<double> p = random_vector<double>(n, random);
    simd::softmax(p.data(), n);
    const Vector<double> dp = random_vector<double>(n, random);
    Vector<double> dx(n, 1.0);
    Vector<float> p1(n), dp1(n);
    for (Index i = 0; i < n; ++i) p1[i] = static_cast<float>(p[i]), dp1[i] = static_cast<float>(dp[i]);
    simd::softmax_backward(p.data(), dp.data(), dx.data(), n);
    for_each_architecture([&](auto arch) {
      Vector<float> dx1(n, 1.0f);
      simd::softmax_backward<float, decltype(arch)>(p1.data(), dp1.data(), dx1.data(), n);
      for (Index i = 0; i < n; ++i) REQUIRE(static_cast<double>(dx1[i]) == Approx(dx[i]).margin(1e-6));
    });
  }
}
