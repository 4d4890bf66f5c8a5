// Oracle: sums in double over the stored numbers, read one by one through core/float16.hpp or as scale times code.
#include <recops/simd/similarity.hpp>

#include <cmath>
#include <cstring>
#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class S>
double number(S x) {
  if constexpr (std::is_same_v<S, double>) {
    return x;
  } else {
    return static_cast<double>(static_cast<float>(x));
  }
}

// Rows off alignment, further apart than they are long; what lies between and behind is NaN: reading it would show.
template <class S>
struct Rows {
  std::vector<S> storage;
  MatrixView<const S> view;
  Rows(Index count, Index cols, Random& random, Index gap = 3) {
    storage.assign(static_cast<std::size_t>(count * (cols + gap)) + 1, S(std::numeric_limits<float>::quiet_NaN()));
    for (Index l = 0; l < count; ++l)
      for (Index d = 0; d < cols; ++d)
        storage[static_cast<std::size_t>(l * (cols + gap) + d) + 1] = S(static_cast<float>(random.normal()));
    view = MatrixView<const S>(storage.data() + 1, count, cols, cols + gap);
  }
};

template <class T>
bool equal_bits(const Vector<T>& a, const Vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

const std::vector<Index> counts = {0, 1, 2, 3, 7, 15, 16, 17, 33, 50};
const std::vector<Index> widths = {0, 1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 67, 130};

template <class T, class S>
void check_plain() {
  Random random = random_stream(50);
  const double eps = std::numeric_limits<T>::epsilon();
  for (const Index cols : widths) {
    for (const Index count : counts) {
      const Rows<S> rows(count, cols, random);
      const Matrix<T> queries = random_matrix<T>(3, cols, random);
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        CAPTURE(cols, count);
        Padded<T> dots(3, count), cosines(3, count);
        simd::dot_rows<T, A>(queries, rows.view, dots.view());
        simd::cosine_rows<T, A>(queries, rows.view, {}, cosines.view());
        bool right = dots.intact() && cosines.intact();
        for (Index n = 0; n < 3; ++n) {
          for (Index l = 0; l < count; ++l) {
            double dot = 0, mass = 0, qq = 0, rr = 0;
            for (Index d = 0; d < cols; ++d) {
              const double q = static_cast<double>(queries(n, d)), r = number(rows.view(l, d));
              dot += q * r, mass += std::abs(q * r), qq += q * q, rr += r * r;
            }
            right = right && std::abs(static_cast<double>(dots(n, l)) - dot) <= eps * (static_cast<double>(cols) + 8) * mass;
            const double cosine = qq * rr > 0 ? dot / std::sqrt(qq * rr) : 0;
            right = right && std::abs(static_cast<double>(cosines(n, l)) - cosine) <= eps * (2 * static_cast<double>(cols) + 16);
          }
        }
        REQUIRE(right);
      });
    }
  }
}

// One row at a time, all rows, several queries, gathered with repeats: a score must be the same bits.
template <class T, class X>
void check_same_bits(const X& rows, Index count, Index cols, Random& random) {
  const Matrix<T> queries = random_matrix<T>(2, cols, random);
  const VectorView<const T> query(queries.row(1), cols);
  Vector<std::int32_t> indices(2 * count + 1);
  for (std::int32_t& i : indices) i = static_cast<std::int32_t>(random.word() % static_cast<std::uint32_t>(count));
  Vector<std::int64_t> wide;
  for (const std::int32_t i : indices) wide.push_back(i);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const bool cosine : {false, true}) {
      CAPTURE(count, cols, cosine);
      Vector<T> all(count), norms(count), gathered(indices.size()), gathered_wide(indices.size());
      Matrix<T> both(2, count);
      simd::row_norms<T, A>(rows, norms);
      if (cosine) {
        simd::cosine_rows<T, A>(query, rows, {}, all);
        simd::cosine_rows<T, A>(queries, rows, norms, both);
        simd::cosine_rows<T, A>(query, rows, norms, indices, gathered);
        simd::cosine_rows<T, A>(query, rows, {}, wide, gathered_wide);
      } else {
        simd::dot_rows<T, A>(query, rows, all);
        simd::dot_rows<T, A>(queries, rows, both);
        simd::dot_rows<T, A>(query, rows, indices, gathered);
        simd::dot_rows<T, A>(query, rows, wide, gathered_wide);
      }
      for (Index l = 0; l < count; ++l) REQUIRE(all[l] == both(1, l));
      for (Index i = 0; i < indices.size(); ++i) REQUIRE(all[indices[i]] == gathered[i]);
      REQUIRE(equal_bits(gathered, gathered_wide));
      for (Index l = 0; l < count; l += 5) {
        Vector<T> one(1);
        const Vector<std::int32_t> index{static_cast<std::int32_t>(l)};
        if (cosine) {
          simd::cosine_rows<T, A>(query, rows, norms, index, one);
        } else {
          simd::dot_rows<T, A>(query, rows, index, one);
        }
        REQUIRE(one[0] == all[l]);
      }
    }
  });
}

}  // namespace

TEMPLATE_TEST_CASE("products and cosines of every format and size", "[simd][similarity]", float, BFloat16, Float16) {
  check_plain<float, TestType>();
}
TEST_CASE("products and cosines in double", "[simd][similarity]") {
  check_plain<double, double>();
  check_plain<double, float>();
}

TEMPLATE_TEST_CASE("a score is the same bits alone, among others, gathered", "[simd][similarity]", float, BFloat16, Float16,
                   double) {
  using T = std::conditional_t<std::is_same_v<TestType, double>, double, float>;
  Random random = random_stream(51);
  for (const Index cols : {1, 16, 37, 64}) {
    const Rows<TestType> rows(41, cols, random);
    check_same_bits<T>(rows.view, 41, cols, random);
  }
}

TEST_CASE("int8 rows: one scale or a scale per block, same bits everywhere", "[simd][similarity]") {
  Random random = random_stream(52);
  for (const Index cols : {1, 5, 16, 33, 64, 130}) {
    for (const Index block : {0, 1, 7, 16, 64}) {
      QuantizedRows rows;
      rows.assign(random_matrix<float>(37, cols, random).view(), block);
      const Vector<float> query = random_vector<float>(cols, random);
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        CAPTURE(cols, block);
        Vector<float> dots(37), cosines(37);
        simd::dot_rows<float, A>(query, rows.view(), dots);
        simd::cosine_rows<float, A>(query, rows, {}, cosines);
        for (Index l = 0; l < 37; ++l) {
          double dot = 0, mass = 0, qq = 0, rr = 0;
          for (Index d = 0; d < cols; ++d) {
            const double q = static_cast<double>(query[d]);
            const double r = static_cast<double>(rows.scales(l, d / rows.view().width())) * rows.codes(l, d);
            dot += q * r, mass += std::abs(q * r), qq += q * q, rr += r * r;
          }
          REQUIRE(std::abs(static_cast<double>(dots[l]) - dot) <= 1.2e-7 * (static_cast<double>(cols) + 10) * mass);
          REQUIRE(std::abs(static_cast<double>(cosines[l]) - dot / std::sqrt(qq * rr)) <=
                  2.4e-7 * (static_cast<double>(cols) + 10));
        }
      });
      check_same_bits<float>(rows, 37, cols, random);
    }
  }
}

TEST_CASE("a quantised query gives exact integer products on every set", "[simd][similarity]") {
  Random random = random_stream(53);
  for (const Index cols : {1, 7, 8, 15, 16, 31, 32, 33, 64, 100, 1031}) {
    for (const Index count : {0, 1, 5, 16, 37}) {
      Matrix<std::int8_t> codes(count, cols);
      Matrix<float> scales(count, 1);
      for (Index i = 0; i < count * cols; ++i)
        codes.data()[i] = static_cast<std::int8_t>(static_cast<int>(random.word() % 255) - 127);
      for (Index l = 0; l < count; ++l) scales(l, 0) = static_cast<float>(random.uniform());
      Vector<float> query = random_vector<float>(cols, random);
      if (count == 5) {  // the largest sums there are
        for (Index i = 0; i < count * cols; ++i) codes.data()[i] = 127;
        for (float& x : query) x = 3.0f;
      }
      Vector<std::int16_t> words(simd::query_codes_size(cols));
      const auto q = simd::quantize_query(query.data(), cols, words.data());
      for (Index d = 0; d < cols; ++d) {
        REQUIRE(std::abs(words[d]) <= simd::query_code_limit(cols));
        REQUIRE(std::abs(static_cast<double>(query[d]) - static_cast<double>(q.scale) * words[d]) <=
                0.501 * static_cast<double>(q.scale));
      }
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        CAPTURE(cols, count);
        Vector<float> scores(count);
        simd::dot_rows<A>(q, QuantizedView{codes, scales}, scores);
        for (Index l = 0; l < count; ++l) {
          std::int64_t sum = 0;
          for (Index d = 0; d < cols; ++d) sum += std::int64_t{words[d]} * codes(l, d);
          REQUIRE(scores[l] == scales(l, 0) * (q.scale * static_cast<float>(sum)));
        }
      });
    }
  }
}

TEST_CASE("scans that look ahead in memory give the same scores", "[simd][similarity]") {
  Random random = random_stream(54);
  const Index count = 40000, cols = 32;  // more than 4 MB of floats
  const Matrix<float> rows = random_matrix<float>(count, cols, random);
  const Vector<float> query = random_vector<float>(cols, random);
  Vector<float> scores(count), strided(count), one(1), gathered(count);
  Vector<std::int32_t> indices(count);
  for (Index l = 0; l < count; ++l) indices[l] = static_cast<std::int32_t>((l * 7919) % count);
  simd::dot_rows<float>(query, rows, scores);
  simd::dot_rows<float>(query, rows, indices, gathered);
  for (Index l = 0; l < count; ++l) REQUIRE(gathered[l] == scores[indices[l]]);
  const VectorView<const float> half(query.data(), 8);
  simd::dot_rows<float>(half, rows.view().middle_cols(8, 8), strided);
  for (Index l = 0; l < count; l += 997) {
    simd::dot_rows<float>(query, rows.view().middle_rows(l, 1), one);
    REQUIRE(one[0] == scores[l]);
    simd::dot_rows<float>(half, rows.view().middle_rows(l, 1).middle_cols(8, 8), one);
    REQUIRE(one[0] == strided[l]);
  }
}

TEMPLATE_TEST_CASE("zero rows, NaN and overflow stay in their row", "[simd][similarity]", float, double) {
  using T = TestType;
  constexpr T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
  Random random = random_stream(55);
  Matrix<T> rows = random_matrix<T>(21, 19, random);
  const Vector<T> query = random_vector<T>(19, random);
  std::fill_n(rows.row(3), 19, T(0));
  std::fill_n(rows.row(4), 19, T(1e-30));
  rows(7, 18) = nan;
  rows(8, 0) = infinity;
  std::fill_n(rows.row(9), 19, std::numeric_limits<T>::max());
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    Vector<T> dots(21), cosines(21), norms(21), with_norms(21);
    simd::dot_rows<T, A>(query, rows, dots);
    simd::cosine_rows<T, A>(query, rows, {}, cosines);
    simd::row_norms<T, A>(rows, norms);
    simd::cosine_rows<T, A>(query, rows, norms, with_norms);
    for (Index l = 0; l < 21; ++l) {
      CAPTURE(l);
      CHECK((with_norms[l] == cosines[l] || (std::isnan(with_norms[l]) && std::isnan(cosines[l]))));
      if (l == 3 || l == 4) {
        CHECK(cosines[l] == 0);
      } else if (l == 7 || l == 8 || l == 9) {
        CHECK(std::isnan(cosines[l]));
        if (l < 9) CHECK(!std::isfinite(dots[l]));
      } else {
        CHECK((std::isfinite(dots[l]) && std::abs(cosines[l]) <= T(1.0001)));
      }
    }
    CHECK(norms[3] == 0);
    const Vector<T> zero(19, T(0));
    simd::cosine_rows<T, A>(zero, rows, norms, with_norms);
    CHECK((with_norms[0] == 0 && with_norms[3] == 0 && std::isnan(with_norms[7])));
  });
}

TEST_CASE("wrong shapes of scans are named", "[simd][similarity]") {
  const Matrix<float> rows(4, 3, 1.0f);
  const Vector<float> query(3, 1.0f), short_query(2, 1.0f);
  Vector<float> scores(4), few(3);
  CHECK_THAT(error_of([&] { simd::dot_rows<float>(short_query, rows, scores); }), contains("dot_rows: rows: expected"));
  CHECK_THAT(error_of([&] { simd::dot_rows<float>(query, rows, few); }), contains("dot_rows: scores: expected size 4, got 3"));
  CHECK_THAT(error_of([&] { simd::cosine_rows<float>(query, rows, few, scores); }),
             contains("cosine_rows: norms: expected size 4"));
  CHECK_THAT(error_of([&] { simd::row_norms<float>(rows, few); }), contains("row_norms: norms: expected size 4"));
  QuantizedRows codes;
  codes.assign(rows.view(), 2);
  CHECK_THAT(error_of([&] { simd::dot_rows(simd::QuantizedQuery{}, codes, scores); }), contains("one scale a row"));
}
