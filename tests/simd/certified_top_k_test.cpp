// Oracle: all rows scored by simd::dot_rows and ordered by std::stable_sort; the certified selection must be that, to the bit.
#include <recops/simd/certified_top_k.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), not_a_number = std::numeric_limits<float>::quiet_NaN();

struct Picked {
  std::vector<std::int32_t> indices;
  std::vector<float> scores;
};

template <class A>
Picked expected(const Vector<float>& query, MatrixView<const float> rows, Index k) {
  Vector<float> scores(rows.rows());
  simd::dot_rows<float, A>(query, rows, scores);
  std::vector<std::int32_t> order(static_cast<std::size_t>(rows.rows()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return std::isnan(scores[b]) ? !std::isnan(scores[a]) : scores[a] > scores[b];
  });
  Picked p;
  for (Index i = 0; i < k; ++i) {
    const bool there = i < rows.rows();
    p.indices.push_back(there ? order[static_cast<std::size_t>(i)] : -1);
    p.scores.push_back(there ? scores[p.indices.back()] : -infinity);
  }
  return p;
}

bool same(const Picked& p, const Vector<std::int32_t>& indices, const Vector<float>& scores) {
  for (Index i = 0; i < indices.size(); ++i) {
    if (p.indices[static_cast<std::size_t>(i)] != indices[i]) return false;
    const float a = p.scores[static_cast<std::size_t>(i)], b = scores[i];
    if (std::isnan(a) ? !std::isnan(b) : std::memcmp(&a, &b, sizeof a) != 0) return false;
  }
  return true;
}

// Everything a selection may go through, on every instruction set. Returns the rows scored again by way of int8, at most.
Index check_all(const Vector<float>& query, MatrixView<const float> rows, Index k, Index block) {
  QuantizedRows codes, blocks;
  codes.assign(rows);
  blocks.assign(rows, block);
  Matrix<BFloat16> bfloats(rows.rows(), rows.cols());
  Matrix<Float16> halves(rows.rows(), rows.cols());
  for (Index l = 0; l < rows.rows(); ++l) {
    simd::convert(rows.row(l), bfloats.row(l), rows.cols());
    simd::convert(rows.row(l), halves.row(l), rows.cols());
  }
  Vector<float> norms(rows.rows());
  simd::row_norms<float>(rows, norms);
  Index most = 0;
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    const Picked p = expected<A>(query, rows, k);
    Vector<std::int32_t> indices(k, 7);
    Vector<float> scores(k, 7.0f);
    const Index wanted = std::min(k, rows.rows());
    CAPTURE(rows.rows(), rows.cols(), k, block);
    REQUIRE(simd::scan_top_k<float, A>(query, rows, indices, scores, ws) == wanted);
    REQUIRE(same(p, indices, scores));
    const auto check = [&](const char* copy, auto&& select) {
      indices.fill(7), scores.fill(7.0f);
      const CertifiedSelection s = select();
      INFO(copy << ", scored again " << s.rescored);
      REQUIRE(s.count == wanted);
      REQUIRE(same(p, indices, scores));
      return s.rescored;
    };
    most = std::max(most, check("int8", [&] { return simd::certified_top_k<A>(query, rows, codes, indices, scores, ws); }));
    check("int8 in blocks", [&] { return simd::certified_top_k<A>(query, rows, blocks, indices, scores, ws); });
    check("bfloat16", [&] { return simd::certified_top_k<A>(query, rows, bfloats.view(), norms, indices, scores, ws); });
    check("float16", [&] { return simd::certified_top_k<A>(query, rows, halves.view(), norms, indices, scores, ws); });
  });
  return most;
}

}  // namespace

TEST_CASE("random rows of random shapes: the same rows, scores and order as a scan", "[simd][certified]") {
  Random random = random_stream(60);
  for (int i = 0; i < 40; ++i) {
    const Index count = 1000 + static_cast<Index>(random.word() % 900), cols = 1 + static_cast<Index>(random.word() % 70);
    const Index k = 1 + static_cast<Index>(random.word() % (i % 4 == 0 ? 400 : 60));
    const Matrix<float> rows = random_matrix<float>(count, cols, random);
    check_all(random_vector<float>(cols, random), rows, k, 1 + static_cast<Index>(random.word() % 30));
  }
}

TEST_CASE("few rows and any k", "[simd][certified]") {
  Random random = random_stream(61);
  for (const Index count : {0, 1, 5, 100, 1500}) {
    const Matrix<float> rows = random_matrix<float>(count, 8, random);
    for (const Index k : {0, 1, 5, 99, 100, 101, 1500, 1700}) check_all(random_vector<float>(8, random), rows, k, 3);
  }
  const Matrix<float> narrow(1200, 0);
  check_all(Vector<float>(), narrow, 3, 0);  // no columns: all scores are 0
}

TEST_CASE("ties, duplicates and zero rows rank by the lowest index", "[simd][certified]") {
  Random random = random_stream(62);
  const Index count = 3000, cols = 20;
  const Vector<float> query = random_vector<float>(cols, random);
  Matrix<float> rows = random_matrix<float>(count, cols, random);
  SECTION("few different rows") {
    for (Index l = 30; l < count; ++l) std::copy_n(rows.row(l % 30), cols, rows.row(l));
  }
  SECTION("all rows alike") {
    for (Index l = 1; l < count; ++l) std::copy_n(rows.row(0), cols, rows.row(l));
  }
  SECTION("all rows zero") { rows.fill(0.0f); }
  SECTION("most rows zero, the others below") {
    for (Index l = 0; l < count; ++l)
      for (Index d = 0; d < cols; ++d) rows(l, d) = l % 50 != 0 ? 0.0f : query[d] > 0 ? -1.0f : 1.0f;
  }
  SECTION("small integers") {
    for (Index i = 0; i < count * cols; ++i) rows.data()[i] = static_cast<float>(static_cast<int>(random.word() % 3) - 1);
  }
  SECTION("rows that differ in the last bit") {
    for (Index l = 1; l < count; ++l) {
      std::copy_n(rows.row(0), cols, rows.row(l));
      rows(l, l % cols) = std::nextafter(rows(l, l % cols), l % 3 == 0 ? 100.0f : -100.0f);
    }
  }
  for (const Index k : {1, 20, 100, 700}) check_all(query, rows, k, 7);
  check_all(Vector<float>(cols, 0.0f), rows, 50, 7);
}

TEST_CASE("rising and falling scores, and a scan that changes its mind late", "[simd][certified]") {
  Random random = random_stream(63);
  const Index count = 4000, cols = 16;
  const Vector<float> query = random_vector<float>(cols, random);
  Matrix<float> rows = random_matrix<float>(count, cols, random);
  for (const int kind : {0, 1, 2}) {
    Matrix<float> m = rows;
    for (Index l = 0; l < count; ++l) {
      const float factor = kind == 0   ? static_cast<float>(l + 1)
                           : kind == 1 ? static_cast<float>(count - l)
                                       : (l < count - 30 ? 1.0f : 100.0f);
      for (Index d = 0; d < cols; ++d) m(l, d) = kind < 2 ? factor * query[d] : factor * m(l, d);
    }
    for (const Index k : {1, 25, 200}) check_all(query, m, k, 5);
  }
}

TEST_CASE("NaN, infinite, huge and denormal rows and queries", "[simd][certified]") {
  Random random = random_stream(64);
  const Index count = 2000, cols = 24;
  const Vector<float> query = random_vector<float>(cols, random);
  const Matrix<float> base = random_matrix<float>(count, cols, random);
  const float denormal = std::numeric_limits<float>::denorm_min(), huge = std::numeric_limits<float>::max();
  const auto scaled = [&](float factor) {
    Matrix<float> m = base;
    for (Index i = 0; i < count * cols; ++i) m.data()[i] *= factor;
    return m;
  };
  for (const float factor : {1e-45f, 1e-43f, 1e-40f, 1e-38f, 1e-30f, 1e-20f, 1e-10f, 1e5f, 1e18f, 1e30f, 1e37f}) {
    const Matrix<float> rows = scaled(factor);
    for (const float of_query : {1e-45f, 1e-40f, 1e-20f, 1.0f, 1e20f, 1e37f}) {
      Vector<float> q = query;
      for (float& x : q) x *= of_query;
      check_all(q, rows, 30, 10);
    }
  }
  Matrix<float> rows = base;
  for (Index l = 0; l < count; ++l) {
    const float values[] = {not_a_number, infinity, -infinity, huge,     -huge,   denormal,
                            -denormal,    0.0f,     1e-39f,    65519.0f, 70000.0f};
    if (l % 7 == 0) rows(l, static_cast<Index>(random.word() % 24)) = values[random.word() % 11];
    if (l % 91 == 0) std::fill_n(rows.row(l), cols, values[random.word() % 11]);
  }
  for (const Index k : {1, 30, 400}) check_all(query, rows, k, 10);
  Matrix<float> bad = base;
  for (Index l = 0; l < count; ++l)
    if (l % 100 != 3) bad(l, l % cols) = not_a_number;
  for (const Index k : {5, 20, 30}) check_all(query, bad, k, 10);  // 20 rows are numbers
  for (const float x : {not_a_number, infinity, -infinity, huge, denormal}) {
    Vector<float> q = query;
    q[3] = x;
    check_all(q, base, 10, 6);
    check_all(q, rows, 10, 6);
  }
}

TEST_CASE("rows that a copy cannot hold are scored by their floats", "[simd][certified]") {
  Random random = random_stream(68);
  Matrix<float> rows = random_matrix<float>(1500, 4, random);
  const float most = std::numeric_limits<float>::max();
  std::copy_n(std::initializer_list<float>{-most, 3.3e38f, 0.0f, 0.0f}.begin(), 4, rows.row(700));  // -infinity as BFloat16
  check_all(Vector<float>{0.01f, 0.02f, 1.0f, 1.0f}, rows, 5, 2);
  std::copy_n(std::initializer_list<float>{-70000.0f, 65000.0f, 0.0f, 0.0f}.begin(), 4, rows.row(700));  // -infinity as Float16
  check_all(Vector<float>{1.0f, 2.0f, 1.0f, 1.0f}, rows, 5, 2);
}

TEST_CASE("few rows are scored again where scores differ", "[simd][certified]") {
  Random random = random_stream(65);
  const Matrix<float> rows = random_matrix<float>(4000, 64, random);
  const Index again = check_all(random_vector<float>(64, random), rows, 50, 16);
  CHECK((again >= 50 && again < 200));
}

TEST_CASE("rows that come from memory are read in streams, with the same result", "[simd][certified]") {
  Random random = random_stream(23);
  const Index most = simd::detail::distant_bytes / Index{sizeof(float)};
  for (const auto& [count, cols] : {std::pair<Index, Index>{most / 32 + 3, 32},
                                    {most / 64 + 77, 64},
                                    {2 * most / 61, 61},
                                    {5, most / 4},
                                    {1100, 2 * most / 1100}}) {
    auto rows = random_matrix<float>(count, cols, random);
    for (Index l = 3; l < count; l += 7) std::copy_n(rows.row(l / 2), cols, rows.row(l));  // ties, far apart
    check_all(random_vector<float>(cols, random), rows, 40, 16);
  }
}

TEST_CASE("codes that come from memory are read in streams, with the same result", "[simd][certified]") {
  Random random = random_stream(24);
  const Index most = simd::detail::distant_bytes;
  for (const Index cols : {64, 32, 50, 130}) {
    const Index count = most / cols + 77;
    auto rows = random_matrix<float>(count, cols, random);
    for (Index l = 3; l < count; l += 7) std::copy_n(rows.row(l / 2), cols, rows.row(l));  // ties, far apart
    QuantizedRows codes;
    codes.assign(rows.view());
    const auto query = random_vector<float>(cols, random);
    Vector<std::int32_t> a(40), b(40);
    Vector<float> x(40), y(40);
    Workspace ws;
    for_each_architecture([&](auto arch) {
      using A = decltype(arch);
      simd::scan_top_k<float, A>(query, rows.view(), a, x, ws);
      const CertifiedSelection s = simd::certified_top_k<A>(query, rows.view(), codes, b, y, ws);
      CAPTURE(count, cols, A::name());
      CHECK(s.rescored < 1000);
      CHECK(std::equal(a.begin(), a.end(), b.begin()));
      CHECK(std::equal(x.begin(), x.end(), y.begin()));
    });
  }
}

TEST_CASE("strided views of rows and copy", "[simd][certified]") {
  Random random = random_stream(66);
  const Matrix<float> wide = random_matrix<float>(1500, 40, random);
  QuantizedRows codes;
  codes.assign(wide.view(), 20);
  const Vector<float> query = random_vector<float>(20, random);
  const QuantizedView head{codes.view().codes.middle_cols(20, 20), codes.view().scales.middle_cols(1, 1), 0};
  Vector<std::int32_t> a(12), b(12);
  Workspace ws;
  simd::scan_top_k<float>(query, wide.view().middle_cols(20, 20), a, {}, ws);
  const CertifiedSelection s = simd::certified_top_k(query, wide.view().middle_cols(20, 20), head, b, {}, ws);
  CHECK((s.count == 12 && s.rescored < 1500));
  CHECK(std::equal(a.begin(), a.end(), b.begin()));
}

TEST_CASE("a warm call allocates nothing", "[simd][certified]") {
  Random random = random_stream(67);
  const Matrix<float> rows = random_matrix<float>(5000, 32, random);
  QuantizedRows codes;
  codes.assign(rows.view());
  const Vector<float> query = random_vector<float>(32, random), other = random_vector<float>(32, random);
  Vector<std::int32_t> indices(100);
  Vector<float> scores(100);
  Workspace ws;
  const auto call = [&](const Vector<float>& q) {
    simd::certified_top_k(q, rows, codes, indices, scores, ws);
    simd::scan_top_k<float>(q, rows, indices, scores, ws);
  };
  call(query);
  AllocationCounter counter;
  call(query);
  call(other);
  CHECK(counter.count() == 0);
}

TEST_CASE("wrong shapes are named and nothing is written", "[simd][certified]") {
  const Matrix<float> rows(6, 4, 1.0f);
  QuantizedRows codes;
  codes.assign(rows.view().middle_rows(0, 5));
  const Vector<float> query(4, 1.0f), shorter(3, 1.0f);
  Vector<std::int32_t> indices(2, 9);
  Vector<float> scores(2, 9.0f), one(1);
  Workspace ws;
  CHECK_THAT(error_of([&] { simd::certified_top_k(query, rows, codes, indices, scores, ws); }),
             contains("certified_top_k: copy"));
  codes.assign(rows.view());
  CHECK_THAT(error_of([&] { simd::certified_top_k(shorter, rows, codes, indices, scores, ws); }),
             contains("certified_top_k: rows"));
  CHECK_THAT(error_of([&] { simd::certified_top_k(query, rows, codes, indices, one, ws); }), contains("certified_top_k: scores"));
  CHECK_THAT(error_of([&] { simd::scan_top_k<float>(shorter, rows, indices, scores, ws); }), contains("scan_top_k: rows"));
  CHECK((indices[0] == 9 && scores[1] == 9.0f));
}
