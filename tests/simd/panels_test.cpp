// Oracle: plain loops in double over the same rows. Numbers are small multiples of 1/4, so products and sums are exact.
#include <recops/simd/panels.hpp>

#include <cmath>

#include "support/architectures.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

namespace {

template <class T>
Matrix<T> quarters(Index rows, Index cols, Random& random) {
  Matrix<T> m(rows, cols);
  for (Index i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<T>(random.below(17) - 8) / T(4);
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("pack_panel puts rows side by side and sums their squares", "[simd][panels]", float, double) {
  using T = TestType;
  constexpr Index P = simd::panel_width<T>;
  auto random = recops_test::random_stream(1);
  recops_test::for_each_architecture([&](auto architecture) {
    using A = decltype(architecture);
    for (const Index cols : {1, 2, 3, 7, 8, 15, 16, 17, 33}) {
      for (const Index rows : {Index{1}, Index{3}, P / 2, P / 2 + 1, P - 1, P}) {
        const auto numbers = quarters<T>(rows, cols, random);
        recops_test::Padded<T> x(numbers.view());  // unaligned rows with gaps
        Vector<T> panel(cols * P + 1, T(99)), squares(P, T(99)), factors(P);
        simd::pack_panel<T, A>([&](Index l) { return l < rows ? static_cast<const T*>(x.view().row(l)) : nullptr; }, cols,
                               panel.data(), squares.data());
        for (Index l = 0; l < P; ++l) {
          T sum = 0;
          for (Index d = 0; d < cols; ++d) {
            const T expected = l < rows ? x(l, d) : T(0);
            sum += expected * expected;
            CHECK(panel[d * P + l] == expected);
          }
          CHECK(squares[l] == sum);
          factors[l] = static_cast<T>(l % 3) / T(2);
        }
        CHECK(panel[cols * P] == T(99));
        panel[0] = std::numeric_limits<T>::quiet_NaN();  // lane 0, factor 0
        simd::scale_panel<T, A>(panel.data(), cols, factors.data());
        for (Index l = 0; l < P; ++l) {
          for (Index d = 0; d < cols; ++d) CHECK(panel[d * P + l] == (l < rows ? x(l, d) * factors[l] : T(0)));
        }
        factors[P - 1] = std::numeric_limits<T>::quiet_NaN();
        simd::scale_panel<T, A>(panel.data(), cols, factors.data());
        for (Index d = 0; d < cols; ++d) CHECK(std::isnan(panel[d * P + P - 1]));
      }
    }
  });
}

TEMPLATE_TEST_CASE("panel_products are dot products, whatever is computed together", "[simd][panels]", float, double) {
  using T = TestType;
  constexpr Index P = simd::panel_width<T>;
  auto random = recops_test::random_stream(2);
  recops_test::for_each_architecture([&](auto architecture) {
    using A = decltype(architecture);
    for (const Index cols : {1, 2, 5, 16, 31, 64, 131}) {
      const auto x = quarters<T>(P, cols, random), exact = quarters<T>(7, cols + 3, random);
      const auto rough = recops_test::random_matrix<T>(7, cols + 3, random);
      Vector<T> panel(cols * P + 1), squares(P);
      simd::pack_panel<T, A>([&](Index l) { return x.row(l); }, cols, panel.data(), squares.data());
      const auto products = [&](const Matrix<T>& queries, Index first, Index count) {
        Matrix<T> out(count, P, T(99));
        simd::panel_products<T, A>(panel.data(), cols, queries.row(first), queries.cols(), count,
                                   [&](Index q, Index lane, auto c) { c.store_unaligned(out.row(q) + lane); });
        return out;
      };
      for (const Index count : {0, 1, 2, 3, 4, 7}) {
        const Matrix<T> got = products(exact, 0, count);
        for (Index q = 0; q < count; ++q) {
          for (Index l = 0; l < P; ++l) {
            double expected = 0;
            for (Index d = 0; d < cols; ++d) expected += static_cast<double>(x(l, d)) * static_cast<double>(exact(q, d));
            CHECK(static_cast<double>(got(q, l)) == expected);
          }
        }
      }
      // Any numbers: the same bits one by one.
      const Matrix<T> together = products(rough, 0, 7);
      for (Index q = 0; q < 7; ++q) {
        const Matrix<T> alone = products(rough, q, 1);
        CHECK(std::equal(alone.data(), alone.data() + P, together.row(q)));
      }
    }
  });
}

TEST_CASE("panels of bfloat16 and int8: what is stored, and products with it", "[simd][panels]") {
  constexpr Index P = simd::panel_width<float>;
  auto random = recops_test::random_stream(5);
  recops_test::for_each_architecture([&](auto architecture) {
    using A = decltype(architecture);
    for (const Index cols : {1, 2, 7, 64}) {
      Matrix<float> panel(cols, P), queries(3, cols);
      for (Index i = 0; i < cols * P; ++i) panel.data()[i] = static_cast<float>(random.normal());
      for (Index d = 0; d < cols; ++d) panel(d, 5) = 0;  // a row of zeros
      for (Index i = 0; i < 3 * cols; ++i) queries.data()[i] = static_cast<float>(random.below(9) - 4) / 4;
      Vector<std::uint32_t> words(cols * P);
      Vector<float> squares(P), steps(P), products(3 * P);
      const auto check = [&](auto row, double exact) {  // row(l, d): what is stored
        bool same = true;
        for (Index l = 0; l < P; ++l) {
          double square = 0;
          for (Index d = 0; d < cols; ++d) square += row(l, d) * row(l, d);
          CHECK(static_cast<double>(squares[l]) == Approx(square).epsilon(exact));
          for (Index q = 0; q < 3; ++q) {
            double sum = 0;
            for (Index d = 0; d < cols; ++d) sum += row(l, d) * static_cast<double>(queries(q, d));
            same &= std::abs(static_cast<double>(products[q * P + l]) - sum) <= exact * (1 + std::abs(sum));
          }
        }
        CHECK(same);
      };
      const auto keep = [&](Index q, Index lane, simd::Batch<float, A> c) { c.store_aligned(products.data() + q * P + lane); };
      simd::encode_panel<A>(panel.data(), cols, static_cast<BFloat16*>(nullptr), words.data(), squares.data());
      simd::panel_products<float, A, BFloat16>(words.data(), cols, queries.data(), cols, 3, keep);
      check([&](Index l, Index d) { return static_cast<double>(static_cast<float>(BFloat16(panel(d, l)))); }, 1e-5);
      {  // the same from rows that are stored so
        Matrix<BFloat16> halves(P, cols);
        const BFloat16* rows[P + 16];
        for (Index l = 0; l < P + 16; ++l) rows[l] = halves.data() + std::min(l, P - 1) * cols;
        for (Index l = 0; l < P; ++l) {
          for (Index d = 0; d < cols; ++d) halves(l, d) = BFloat16(panel(d, l));
        }
        Vector<std::uint32_t> others(words.size());
        Vector<float> other_squares(P);
        simd::pack_words<A>(rows, P, cols, others.data(), other_squares.data(), true);
        CHECK(std::equal(others.begin(), others.begin() + cols * P / 2, words.begin()));
        CHECK(std::equal(squares.begin(), squares.begin() + P, other_squares.begin()));
        simd::pack_words<A>(rows, 40, cols, others.data(), other_squares.data());
        CHECK((other_squares[39] == squares[39] && other_squares[40] == 0.0f));
        for (Index d = 0; d < cols; ++d) CHECK(others[d * 32 + 8] == (words[d * 32 + 8] & 0xFFFFu));
      }
      simd::encode_panel<A>(panel.data(), cols, static_cast<std::int8_t*>(nullptr), words.data(), steps.data(), squares.data());
      simd::panel_products<float, A, std::int8_t>(words.data(), cols, queries.data(), cols, 3, keep);
      bool rounded = true;
      const auto code = [&](Index l, Index d) {
        return static_cast<double>(static_cast<std::int8_t>(words[d * (P / 4) + l % (P / 4)] >> (8 * (l / (P / 4)))));
      };
      check(code, 1e-6);
      for (Index l = 0; l < P; ++l) {
        for (Index d = 0; d < cols; ++d)
          rounded &= std::abs(code(l, d) * static_cast<double>(steps[l]) - static_cast<double>(panel(d, l))) <=
                     0.501 * static_cast<double>(steps[l]);
      }
      CHECK(rounded);
      CHECK(steps[5] == 0);
    }
  });
}
