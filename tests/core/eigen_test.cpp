// Oracle: Eigen's own arithmetic on copies made element by element.
#include <recops/core/eigen.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace recops;

namespace {
template <class X>
concept Bridges = requires(X&& x) {
  as_eigen(static_cast<X&&>(x));
};
static_assert(Bridges<Matrix<float>&> && Bridges<const Matrix<float>&> && Bridges<MatrixView<const float>>);
static_assert(Bridges<Vector<float>&> && Bridges<VectorView<float>>);
static_assert(!Bridges<Matrix<float>> && !Bridges<const Matrix<float>> && !Bridges<Vector<float>> &&
              !Bridges<const Vector<float>>);  // the map would outlive its memory
}  // namespace

TEMPLATE_TEST_CASE("as_eigen maps without copying", "[core][eigen]", float, double) {
  using T = TestType;
  Matrix<T> a(3, 5), b(5, 2);
  for (Index i = 0; i < 15; ++i) a.data()[i] = static_cast<T>(i % 7);
  for (Index i = 0; i < 10; ++i) b.data()[i] = static_cast<T>(i % 4);
  CHECK(as_eigen(a).data() == a.data());
  const RowMajor<T> product = as_eigen(a).lazyProduct(as_eigen(b));
  for (Index i = 0; i < 3; ++i)
    for (Index j = 0; j < 2; ++j) {
      T sum = 0;
      for (Index k = 0; k < 5; ++k) sum += a(i, k) * b(k, j);
      CHECK(product(i, j) == sum);
    }
  as_eigen(a.view().middle_cols(1, 2)).setConstant(T(9));
  CHECK((a(0, 0) == 0 && a(0, 1) == 9 && a(2, 2) == 9 && a(2, 3) == static_cast<T>(13 % 7)));
  const Matrix<T>& constant = a;
  CHECK((as_eigen(constant)(2, 2) == 9 && as_eigen(MatrixView<const T>(a))(0, 2) == 9));
  Vector<T> v{1, 2, 3};
  as_eigen(v) *= T(2);
  const Vector<T>& w = v;
  CHECK((v[2] == 6 && as_eigen(w)(1) == 4 && as_eigen(VectorView<const T>(v))(0) == 2));
}

TEMPLATE_TEST_CASE("there and back is the same memory", "[core][eigen]", float, double) {
  using T = TestType;
  Matrix<T> a(4, 6, T(1));
  const MatrixView<T> part = a.view().middle_cols(2, 3).middle_rows(1, 2);
  const MatrixView<T> back = as_eigen(part);
  CHECK((back.data() == part.data() && back.rows() == 2 && back.cols() == 3 && back.stride() == 6));
  const VectorView<T> v(a.data(), 5);
  const VectorView<T> same = as_eigen(v);
  CHECK((same.data() == v.data() && same.size() == 5));
}

TEST_CASE("empty views", "[core][eigen]") {
  Matrix<float> none(0, 4);
  CHECK((as_eigen(none).rows() == 0 && as_eigen(none).cols() == 4 && as_eigen(VectorView<float>()).size() == 0));
  recops_test::AllocationCounter counter;
  const float sum = as_eigen(none).sum();
  const std::size_t allocations = counter.count();
  CHECK((allocations == 0 && sum == 0));
}
