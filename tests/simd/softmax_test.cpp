// Oracle: the definition in long double; backward against central differences.
#include <recops/simd/softmax.hpp>

#include <vector>

#include "simd/elementwise_golden.hpp"
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

TEMPLATE_TEST_CASE("masked softmax equals softmax of what is kept and reads nothing else", "[simd][softmax]", float, double) {
  using T = TestType;
  Random random = random_stream(14);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index n : {0, 1, 3, 15, 16, 17, 40, 64, 65, 130, 1000}) {
      for (const int kind : {0, 1, 2}) {  // some, none, all
        const auto size = static_cast<std::size_t>(n);
        std::vector<T> x(size), p(size, T(7)), q(size, T(7)), kept;
        std::vector<std::uint8_t> bytes(size);
        std::vector<std::uint64_t> bits(size / 64 + 1);
        for (std::size_t i = 0; i < size; ++i) {
          const bool keep = kind == 2 || (kind == 0 && random.uniform() < 0.6);
          bytes[i] = keep ? static_cast<std::uint8_t>(1 + i % 200) : std::uint8_t{0};
          if (keep) bits[i / 64] |= std::uint64_t{1} << (i % 64);
          x[i] = keep ? static_cast<T>(3 * random.normal()) : not_a_number<T>;
          if (keep) kept.push_back(x[i]);
        }
        const T a = simd::softmax_masked<T, A>(x.data(), bytes.data(), p.data(), n);
        const T b = simd::softmax_masked<T, A>(x.data(), bits.data(), q.data(), n);
        const T c = simd::softmax<T, A>(kept.data(), static_cast<Index>(kept.size()));
        CAPTURE(n, kind);
        REQUIRE((a == b && p == q));
        REQUIRE((kept.empty() ? a == -infinity<T> : a == Approx(c)));
        bool right = true;
        for (std::size_t i = 0, k = 0; i < size; ++i)
          right = right && (bytes[i] != 0 ? p[i] == Approx(kept[k++]).epsilon(1e-5) : p[i] == 0);
        REQUIRE(right);
      }
    }
  });
}

TEMPLATE_TEST_CASE("log-sum-exp and states of blocks agree with the whole row", "[simd][softmax]", float, double) {
  using T = TestType;
  Random random = random_stream(15);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index n : {1, 7, 16, 100, 1000}) {
      Vector<T> x = random_vector<T>(n, random);
      for (T& v : x) v *= T(5);
      if (n > 10) x[3] = -infinity<T>;
      Vector<T> p = x, w = x;
      const T whole = simd::softmax<T, A>(p.data(), n);
      REQUIRE(simd::log_sum_exp<T, A>(x.data(), n) == Approx(whole));
      simd::SoftmaxState<T> all, first, second;
      const Index cut = n / 3, at[4] = {0, cut, 2 * cut, n};
      for (int b = 0; b < 3; ++b) {
        const T factor = simd::softmax_update<T, A>(all, x.data() + at[b], w.data() + at[b], at[b + 1] - at[b]);
        for (Index i = 0; i < at[b]; ++i) w[i] *= factor;
      }
      REQUIRE(all.log_sum_exp() == Approx(whole));
      for (Index i = 0; i < n; ++i) REQUIRE(w[i] / all.sum == Approx(p[i]).epsilon(1e-5).margin(1e-30));
      simd::softmax_update<T, A>(first, x.data(), nullptr, cut);
      simd::softmax_update<T, A>(second, x.data() + cut, nullptr, n - cut);
      REQUIRE(simd::merge(first, second).log_sum_exp() == Approx(whole));
      REQUIRE(simd::merge(second, first).log_sum_exp() == Approx(whole));
      REQUIRE(simd::merge(simd::SoftmaxState<T>(), all).log_sum_exp() == all.log_sum_exp());
      for (const T poison : {not_a_number<T>, infinity<T>}) {
        simd::SoftmaxState<T> state = all;
        simd::softmax_update<T, A>(state, &poison, nullptr, 1);
        REQUIRE((std::isnan(state.log_sum_exp()) && std::isnan(simd::merge(state, first).log_sum_exp())));
      }
    }
    const T none[3] = {-infinity<T>, -infinity<T>, -infinity<T>};
    simd::SoftmaxState<T> state;
    CHECK((simd::softmax_update<T, A>(state, none, nullptr, 3) == 1 && state.log_sum_exp() == -infinity<T>));
    CHECK(simd::log_sum_exp<T, A>(none, 3) == -infinity<T>);
    CHECK(simd::log_sum_exp<T, A>(none, 0) == -infinity<T>);
  });
}

TEST_CASE("softmax of the rows of a strided matrix", "[simd][softmax]") {
  Random random = random_stream(16);
  const Matrix<float> x = random_matrix<float>(5, 19, random);
  Padded<float> p(5, 19);
  Vector<float> lse(5);
  simd::softmax_rows<float>(x.view(), p.view(), lse);
  CHECK(p.intact());
  for (Index r = 0; r < 5; ++r) {
    Vector<float> row(19);
    CHECK(simd::softmax(x.view().row(r), row.data(), 19) == lse[r]);
    for (Index i = 0; i < 19; ++i) CHECK(row[i] == p(r, i));
  }
}

TEMPLATE_TEST_CASE("softmax and log-sum-exp as SciPy has them, in place and not", "[simd][softmax][golden]", float, double) {
  using T = TestType;
  const Golden golden("elementwise");
  const std::vector<T> x = golden.values<T>("rows");
  const std::vector<double> p = golden.values<double>("softmax"), lse = golden.values<double>("log_sum_exp");
  const Index rows = golden.shape("rows")[0], n = golden.shape("rows")[1];
  const double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (Index r = 0; r < rows; ++r) {
      const T* row = x.data() + r * n;
      Vector<T> apart(n), same(n);
      std::copy_n(row, n, same.data());
      const double exact = lse[static_cast<std::size_t>(r)];
      for (const T got :
           {simd::softmax<T, A>(row, apart.data(), n), simd::softmax<T, A>(same.data(), n), simd::log_sum_exp<T, A>(row, n)})
        REQUIRE(static_cast<double>(got) == Approx(exact).epsilon(4 * eps).margin(4 * eps));
      for (Index i = 0; i < n; ++i) {
        const double right = p[static_cast<std::size_t>(r * n + i)];
        const double most = (20 - std::log(std::max(right, 1e-300))) * eps * right + (right < 1e-37 ? 1e-37 : 0);
        CAPTURE(r, i, apart[i], same[i], right);
        REQUIRE(std::abs(static_cast<double>(apart[i]) - right) <= most);
        REQUIRE(std::abs(static_cast<double>(same[i]) - right) <= most);
      }
    }
  });
}

// Rows that are written elsewhere have a shorter way, which must give way where it does not reach.
TEMPLATE_TEST_CASE("softmax into another row: any scores, anywhere", "[simd][softmax]", float, double) {
  using T = TestType;
  constexpr T none = -std::numeric_limits<T>::infinity(), largest = std::numeric_limits<T>::max();
  Random random = random_stream(17);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index n : {31, 32, 33, 63, 64, 65, 100, 257, 5000}) {
      const Vector<T> noise = random_vector<T>(n, random);
      for (const T high : {T(0), T(10), T(19), T(21), T(60), T(100), T(500), T(1e30), largest, -largest, none}) {
        for (const T rest : {T(0), T(-1e30), T(3000), none}) {
          for (const Index at : {Index{0}, Index{3}, n / 2, n - 2, n - 1}) {
            Vector<T> x(n), p(n, T(7)), same(n);
            for (Index i = 0; i < n; ++i) x[i] = same[i] = i == at ? high : rest + noise[i];
            const T lse = simd::softmax<T, A>(x.data(), p.data(), n), again = simd::softmax<T, A>(same.data(), n);
            CAPTURE(n, high, rest, at, lse, again);
            REQUIRE((lse == again || lse == Approx(again).epsilon(1e-6).margin(1e-6)));
            REQUIRE((simd::log_sum_exp<T, A>(x.data(), n) == again ||
                     simd::log_sum_exp<T, A>(x.data(), n) == Approx(again).epsilon(1e-6).margin(1e-6)));
            double worst = 0;
            for (Index i = 0; i < n; ++i) worst = std::max(worst, static_cast<double>(std::abs(p[i] - same[i])));
            REQUIRE(worst <= 1e-5);
          }
        }
      }
    }
    for (const T poison : {not_a_number<T>, infinity<T>}) {
      for (const Index n : {32, 100}) {
        for (Index bad = 0; bad < n; ++bad) {
          for (const T rest : {T(1), none}) {
            Vector<T> x(n, rest), p(n);
            x[bad] = poison;
            REQUIRE((std::isnan(simd::softmax<T, A>(x.data(), p.data(), n)) && std::isnan(simd::log_sum_exp<T, A>(x.data(), n))));
            for (const T v : p) REQUIRE(std::isnan(v));
          }
        }
      }
    }
  });
}
