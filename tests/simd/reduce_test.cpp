// Oracle: the same sums in long double, term by term.
#include <recops/simd/reduce.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

std::vector<Index> sizes() {
  std::vector<Index> n;
  for (Index i = 0; i <= 70; ++i) n.push_back(i);
  n.insert(n.end(), {127, 128, 129, 1000, 4095, 4096, 4097, 4099, 8192, 8193, 12345});
  return n;
}

// Exactly n numbers that begin off any alignment: whoever reads past them is caught by the address sanitizer, whoever writes
// past them by `intact`.
template <class T>
struct Run {
  static constexpr T guard = T(777);
  std::vector<T> values;
  Index n;
  Run(Index size, Random& random) : values(static_cast<std::size_t>(size) + 1, guard), n(size) {
    for (Index i = 0; i < n; ++i) data()[i] = static_cast<T>(random.normal());
  }
  T* data() { return values.data() + 1; }
  T operator[](Index i) const { return values[static_cast<std::size_t>(i) + 1]; }
  bool intact() const { return values.front() == guard; }
};

}  // namespace

TEMPLATE_TEST_CASE("dot and sum of every size", "[simd][reduce]", float, double) {
  using T = TestType;
  Random random = random_stream(2);
  const double eps = std::numeric_limits<T>::epsilon();
  for (const Index n : sizes()) {
    Run<T> a(n, random), b(n, random);
    long double dot = 0, sum = 0, dot_mass = 0, sum_mass = 0;
    for (Index i = 0; i < n; ++i) {
      const long double product = static_cast<long double>(a[i]) * b[i];
      dot += product, dot_mass += std::abs(product), sum += a[i], sum_mass += std::abs(static_cast<long double>(a[i]));
    }
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      CAPTURE(n);
      REQUIRE(std::abs(static_cast<double>(simd::dot<T, A>(a.data(), b.data(), n) - dot)) <=
              16 * eps * static_cast<double>(dot_mass));
      REQUIRE(std::abs(static_cast<double>(simd::sum<T, A>(a.data(), n) - sum)) <= 16 * eps * static_cast<double>(sum_mass));
    });
  }
}

TEMPLATE_TEST_CASE("axpy, add and scale of every size touch n numbers and no more", "[simd][reduce]", float, double) {
  using T = TestType;
  Random random = random_stream(3);
  for (const Index n : sizes()) {
    if (n > 200 && n != 4097) continue;
    Run<T> x(n, random);
    const Run<T> y(n + 5, random);
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      CAPTURE(n);
      Run<T> a = y, b = y, s = y;
      simd::axpy<T, A>(T(0.37), x.data(), a.data(), n);
      simd::add<T, A>(x.data(), b.data(), n);
      simd::scale<T, A>(T(-1.5), x.data(), s.data(), n);
      bool right = a.intact() && b.intact() && s.intact();
      for (Index i = 0; i < n; ++i) {
        right = right && ulps(a[i], static_cast<long double>(T(0.37)) * x[i] + y[i]) <= 0.5 + std::abs(x[i] / a[i]);
        right = right && b[i] == T(x[i] + y[i]) && s[i] == T(-1.5) * x[i];
      }
      for (Index i = n; i < n + 5; ++i) right = right && a[i] == y[i] && b[i] == y[i] && s[i] == y[i];
      Run<T> in_place = x;
      simd::scale<T, A>(T(-1.5), in_place.data(), in_place.data(), n);
      for (Index i = 0; i < n; ++i) right = right && in_place[i] == s[i];
      REQUIRE(right);
    });
  }
}

TEMPLATE_TEST_CASE("max of every size, wherever the largest stands", "[simd][reduce]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Random random = random_stream(4);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    CHECK(simd::max<T, A>(nullptr, 0) == -infinity);
    for (Index n = 1; n <= 70; ++n) {
      Run<T> a(n, random);
      for (Index i = 0; i < n; ++i) {
        const T before = a[i];
        a.data()[i] = T(100);
        REQUIRE(simd::max<T, A>(a.data(), n) == T(100));
        a.data()[i] = before;
      }
      for (Index i = 0; i < n; ++i) a.data()[i] = T(-5);
      REQUIRE(simd::max<T, A>(a.data(), n) == T(-5));
      for (Index i = 0; i < n; ++i) a.data()[i] = -infinity;
      REQUIRE(simd::max<T, A>(a.data(), n) == -infinity);
    }
  });
}

TEMPLATE_TEST_CASE("a NaN anywhere makes a sum NaN", "[simd][reduce]", float, double) {
  using T = TestType;
  Random random = random_stream(5);
  for (const Index n : {1, 5, 16, 33, 67, 4099}) {
    Run<T> a(n, random), b(n, random);
    for (Index i = 0; i<n; i += n> 100 ? 511 : 1) {
      const T before = a[i];
      a.data()[i] = std::numeric_limits<T>::quiet_NaN();
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        CHECK((std::isnan(simd::sum<T, A>(a.data(), n)) && std::isnan(simd::dot<T, A>(a.data(), b.data(), n))));
      });
      a.data()[i] = before;
    }
  }
}

TEST_CASE("ten million floats are summed to 1e-6, also where all roundings go one way", "[simd][reduce]") {
  const Index n = 10000000;
  Vector<float> a(n), one(n, 1.0f);
  Random random = random_stream(6);
  for (const int kind : {0, 1, 2, 3}) {
    double exact = 0, mass = 0;
    for (Index i = 0; i < n; ++i) {
      if (kind == 0) a[i] = 0.1f;  // every addition rounds the same way
      if (kind == 1) a[i] = static_cast<float>(i % 1000) * 1e-3f + 1.0f;
      if (kind == 2) a[i] = static_cast<float>(i % 2 == 0 ? 1 : -1) * uniform_float(random.word());
      if (kind == 3) a[i] = 1.0f / 3 + static_cast<float>(i) * 1e-9f;
      exact += static_cast<double>(a[i]);
      mass += std::abs(static_cast<double>(a[i]));
    }
    CAPTURE(kind);
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      CHECK(std::abs(static_cast<double>(simd::sum<float, A>(a.data(), n)) - exact) <= 1e-6 * mass);
      CHECK(std::abs(static_cast<double>(simd::dot<float, A>(a.data(), one.data(), n)) - exact) <= 1e-6 * mass);
    });
  }
}

TEST_CASE("the same length gives the same bits, whatever the address", "[simd][reduce]") {
  Random random = random_stream(7);
  const Index n = 1003;
  const Vector<float> a = random_vector<float>(n, random), b = random_vector<float>(n, random);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    const float dot = simd::dot<float, A>(a.data(), b.data(), n), sum = simd::sum<float, A>(a.data(), n);
    for (Index shift = 1; shift < 17; ++shift) {
      Vector<float> x(n + shift), y(n + shift);
      std::copy_n(a.data(), n, x.data() + shift);
      std::copy_n(b.data(), n, y.data() + shift);
      REQUIRE(simd::dot<float, A>(x.data() + shift, y.data() + shift, n) == dot);
      REQUIRE(simd::sum<float, A>(x.data() + shift, n) == sum);
    }
  });
}

TEMPLATE_TEST_CASE("sum of squares is the dot of a row with itself", "[simd][reduce]", float, double) {
  using T = TestType;
  Random random = random_stream(8);
  for (const Index n : sizes()) {
    Run<T> a(n, random);
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      REQUIRE(simd::sum_squares<T, A>(a.data(), n) == simd::dot<T, A>(a.data(), a.data(), n));
    });
  }
}

TEMPLATE_TEST_CASE("argmax is the lowest index of the largest, whatever NaN is among them", "[simd][reduce]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  Random random = random_stream(9);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    CHECK(simd::argmax<T, A>(nullptr, 0) == -1);
    for (const Index n : {1, 2, 5, 16, 17, 33, 100, 1000, 4099}) {
      for (const int kind : {0, 1, 2, 3, 4, 5}) {  // numbers, ties, NaN among them, all NaN, all -infinity, NaN before -infinity
        Run<T> a(n, random);
        for (Index i = 0; i < n; ++i) {
          T& v = a.data()[i];
          if (kind == 1) v = std::floor(v);
          if (kind == 2 && i % 3 == 0) v = nan;
          if (kind == 3) v = nan;
          if (kind == 4) v = -infinity;
          if (kind == 5) v = i < n / 2 ? nan : -infinity;
        }
        Index expected = 0;
        for (Index i = 0; i < n; ++i) {
          const T best = a[expected];
          if (a[i] > best || (std::isnan(best) && !std::isnan(a[i]))) expected = i;
        }
        CAPTURE(n, kind);
        REQUIRE(simd::argmax<T, A>(a.data(), n) == expected);
      }
    }
  });
}

TEMPLATE_TEST_CASE("finite rows may have a sum that is not", "[simd][reduce]", float, double) {
  using T = TestType;
  constexpr T most = std::numeric_limits<T>::max(), infinity = std::numeric_limits<T>::infinity();
  CHECK(simd::finite_row<T>(nullptr, 0));
  for (const Index n : {1, 7, 8, 65, 200}) {
    Vector<T> row(n, most);
    CHECK(simd::finite_row<T>(row.data(), n));
    for (const T odd : {infinity, -infinity, std::numeric_limits<T>::quiet_NaN()}) {
      const T kept = std::exchange(row[n / 2], odd);
      CHECK(!simd::finite_row<T>(row.data(), n));
      row[n / 2] = kept;
    }
  }
}
