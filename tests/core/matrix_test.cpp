// Oracles: addresses, and values written by hand.
#include <recops/core/matrix.hpp>

#include <cstdint>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace recops;

namespace {
template <class P>
bool aligned(P* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 64 == 0;
}
}  // namespace

TEMPLATE_TEST_CASE("memory is 64-byte aligned", "[core][matrix]", float, double, std::uint8_t) {
  for (const Index n : {1, 2, 3, 15, 16, 17, 31, 64, 65, 1000}) {
    CHECK(aligned(Vector<TestType>(n).data()));
    CHECK(aligned(Matrix<TestType>(n, 3).data()));
    Vector<TestType> grown;
    for (Index i = 0; i < n; ++i) grown.push_back(TestType(i % 7));
    CHECK(aligned(grown.data()));
    CHECK(grown[n - 1] == TestType((n - 1) % 7));
  }
}

TEST_CASE("what fills a huge page begins on one, and moves there as it grows", "[core][matrix]") {
  const Index page = Index{1} << 21;
  Vector<std::uint8_t> v(page - 1, 3);
  v.push_back(4);
  v.push_back(5);
  CHECK(reinterpret_cast<std::uintptr_t>(v.data()) % static_cast<std::uintptr_t>(page) == 0);
  CHECK((v[0] == 3 && v[page - 2] == 3 && v[page - 1] == 4 && v[page] == 5));
}

TEST_CASE("capacity is kept: shrink and grow allocate nothing", "[core][matrix]") {
  Matrix<float> m(40, 25);
  Vector<double> v(1000);
  const float* const matrix_data = m.data();
  const double* const vector_data = v.data();
  recops_test::AllocationCounter counter;
  for (const Index rows : {3, 0, 40, 1, 17}) {
    m.resize(rows, 25);
    v.resize(rows * 25);
    CHECK((m.rows() == rows && v.size() == rows * 25));
    CHECK((m.data() == matrix_data && v.data() == vector_data));
  }
  m.resize(1000, 1);
  m.resize(20, 50);
  v.clear();
  v.resize(1000);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  CHECK((m.data() == matrix_data && v.data() == vector_data));
}

TEST_CASE("what was moved from is empty and usable", "[core][matrix]") {
  Matrix<float> a(3, 4, 2.0f);
  const float* const data = a.data();
  Matrix<float> b = std::move(a);
  CHECK((b.rows() == 3 && b.cols() == 4 && b.data() == data && b(2, 3) == 2.0f));
  CHECK((a.rows() == 0 && a.cols() == 0 && a.empty() && a.view().empty()));  // NOLINT(bugprone-use-after-move)
  Matrix<float> c(1, 1, 5.0f);
  c = std::move(b);
  CHECK((c.rows() == 3 && c.data() == data && b.rows() == 0 && b.cols() == 0 && b.empty()));
  a.resize(2, 2);
  a.fill(1.0f);
  CHECK((a.rows() == 2 && a(1, 1) == 1.0f));
  Matrix<float>& alias = c;
  c = std::move(alias);
  CHECK(c.rows() * c.cols() == (c.empty() ? 0 : 12));  // sizes and memory agree whatever was left
  Vector<double> v{1, 2, 3};
  const Vector<double> w = std::move(v);
  CHECK((w.size() == 3 && v.empty()));
}

TEST_CASE("copies are deep", "[core][matrix]") {
  const Matrix<float> a(2, 3, 1.0f);
  Matrix<float> b = a;
  b(0, 0) = 7.0f;
  CHECK((a(0, 0) == 1.0f && b(1, 2) == 1.0f && a.data() != b.data()));
  Vector<float> v(3, 4.0f), w;
  w = v;
  w[0] = 0.0f;
  CHECK((v[0] == 4.0f && w[2] == 4.0f));
}

TEST_CASE("lists, rows and views", "[core][matrix]") {
  Matrix<float> m{{1, 2, 3}, {4, 5, 6}};
  CHECK((m.rows() == 2 && m.cols() == 3 && m(1, 0) == 4 && m.row(1)[2] == 6));
  const MatrixView<const float> view = m;
  CHECK((view.data() == m.data() && view.stride() == 3 && view(0, 2) == 3));
  const Vector<int> v{3, 1, 2};
  CHECK((v.size() == 3 && v[0] == 3 && *(v.end() - 1) == 2));
  CHECK(Matrix<float>{}.empty());
  CHECK((Vector<int>(2, 9)[1] == 9 && Vector<int>(2, 9).size() == 2));
  m.resize(3, 3);  // the same columns: the first rows stay
  CHECK((m(0, 0) == 1 && m(1, 2) == 6));
}

TEST_CASE("sizes that cannot be are errors", "[core][matrix]") {
  CHECK_THROWS_AS(Vector<float>(-1), Error);
  CHECK_THROWS_AS(Vector<float>(-1, 2.0f), Error);
  CHECK_THROWS_AS(Matrix<float>(-1, 2), Error);
  CHECK_THROWS_AS(Matrix<float>(2, -1), Error);
  CHECK_THROWS_AS(Matrix<float>(Index{1} << 33, Index{1} << 33), Error);  // the product would wrap to something small
  CHECK_THROWS_AS(Matrix<double>(Index{1} << 61, 16), Error);
  CHECK_THROWS_AS((Matrix<float>{{1, 2}, {3}}), Error);
  CHECK_NOTHROW(Matrix<float>(Index{1} << 60, 0));
}
