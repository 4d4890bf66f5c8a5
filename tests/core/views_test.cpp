// Oracles: the containers the views are made from; for what must not convert, the type system.
#include <recops/core/views.hpp>

#include <Eigen/Core>
#include <array>
#include <recops/core/matrix.hpp>
#include <span>
#include <vector>

#include "support/catch.hpp"

using namespace recops;

namespace {

template <class T>
using RowMajorMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using ColMajorMatrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::ColMajor>;
template <class T>
using StridedMap = Eigen::Map<RowMajorMatrix<T>, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

template <class From, class To>
constexpr bool converts = std::is_convertible_v<From, To>;

using M = MatrixView<float>;
using CM = MatrixView<const float>;
using V = VectorView<float>;
using CV = VectorView<const float>;

// What owns numbers and stays alive converts, const may be added.
static_assert(converts<Matrix<float>&, M> && converts<Matrix<float>&, CM> && converts<const Matrix<float>&, CM>);
static_assert(converts<M, CM> && converts<RowMajorMatrix<float>&, M> && converts<const RowMajorMatrix<float>&, CM>);
static_assert(converts<Eigen::Ref<RowMajorMatrix<float>>&, M> && converts<Eigen::Map<const RowMajorMatrix<float>>&, CM>);
static_assert(converts<Eigen::Map<RowMajorMatrix<float>>, M> && converts<Eigen::Ref<RowMajorMatrix<float>>, M>);
static_assert(converts<Eigen::Block<RowMajorMatrix<float>>, M> && converts<Eigen::Block<const RowMajorMatrix<float>>, CM>);
static_assert(converts<Eigen::Matrix<float, 3, 4, Eigen::RowMajor>&, M>);
static_assert(converts<Eigen::Transpose<ColMajorMatrix<float>>, M>);  // row-major in memory
static_assert(converts<std::vector<float>&, V> && converts<const std::vector<float>&, CV> && converts<V, CV>);
static_assert(converts<std::span<float>, V> && converts<std::span<const float>, CV> && converts<std::span<float>&, CV>);
static_assert(converts<std::array<float, 3>&, V> && converts<Vector<float>&, V> && converts<const Vector<float>&, CV>);
static_assert(converts<Eigen::VectorXf&, V> && converts<Eigen::RowVectorXf&, V> && converts<Eigen::Map<Eigen::VectorXf>, V>);
static_assert(converts<Eigen::VectorBlock<Eigen::VectorXf>, V>);

// const is never lost, the element type never changes.
static_assert(!converts<CM, M> && !converts<const Matrix<float>&, M> && !converts<const RowMajorMatrix<float>&, M>);
static_assert(!converts<CV, V> && !converts<const std::vector<float>&, V> && !converts<std::span<const float>, V>);
static_assert(!converts<MatrixView<double>, M> && !converts<MatrixView<double>, CM> && !converts<Matrix<double>&, M>);
static_assert(!converts<std::vector<double>&, V> && !converts<std::vector<int>&, CV> && !converts<RowMajorMatrix<double>&, CM>);

// An owner that dies before the view does not compile.
static_assert(!converts<Matrix<float>, M> && !converts<Matrix<float>, CM> && !converts<const Matrix<float>, CM>);
static_assert(!converts<RowMajorMatrix<float>, M> && !converts<const RowMajorMatrix<float>, CM>);
static_assert(!converts<Eigen::Matrix<float, 3, 4, Eigen::RowMajor>, CM> && !converts<Eigen::Vector3f, CV>);
static_assert(!converts<std::vector<float>, V> && !converts<const std::vector<float>, CV> && !converts<Vector<float>, CV>);
static_assert(!converts<std::array<float, 3>, V> && !converts<const std::array<float, 3>, CV>);
static_assert(!converts<Matrix<float>, JaggedView<float>> && !converts<RowMajorMatrix<float>, JaggedView<const float>>);
static_assert(!converts<std::vector<std::int64_t>, IndexView> && !converts<std::array<std::int32_t, 2>, IndexView>);

// Nor does a layout that a view cannot express, nor an expression without memory.
static_assert(!converts<ColMajorMatrix<float>&, M> && !converts<const ColMajorMatrix<float>&, CM>);
static_assert(!converts<Eigen::Map<ColMajorMatrix<float>>, M> && !converts<Eigen::Ref<ColMajorMatrix<float>>, M>);
static_assert(!converts<StridedMap<float>&, M> && !converts<Eigen::Transpose<RowMajorMatrix<float>>, M>);
static_assert(!converts<decltype(std::declval<RowMajorMatrix<float>&>().col(0)), V>);
static_assert(converts<decltype(std::declval<RowMajorMatrix<float>&>().row(0)), V>);
static_assert(!converts<decltype(std::declval<ColMajorMatrix<float>&>().row(0)), V>);
static_assert(!converts<decltype(std::declval<RowMajorMatrix<float>&>() + std::declval<RowMajorMatrix<float>&>()), CM>);
static_assert(!converts<RowMajorMatrix<float>&, V> && !converts<std::vector<float>&, M> && !converts<M, V>);
static_assert(!converts<float*, V> && !converts<std::nullptr_t, V> && !converts<int, M>);

// Indices are int32 or int64.
static_assert(converts<std::vector<std::int32_t>&, IndexView> && converts<const std::vector<std::int64_t>&, IndexView>);
static_assert(converts<std::span<const std::int32_t>, IndexView> && converts<Vector<std::int64_t>&, IndexView>);
static_assert(!converts<std::vector<std::uint32_t>&, IndexView> && !converts<std::vector<float>&, IndexView>);
static_assert(!converts<std::vector<std::int16_t>&, IndexView>);

// Views are passed in registers or by plain copies.
static_assert(std::is_trivially_copyable_v<M> && std::is_trivially_copyable_v<V> && std::is_trivially_copyable_v<IndexView>);
static_assert(std::is_trivially_copyable_v<JaggedView<float>> && sizeof(V) == 16 && sizeof(M) == 32);

template <class T>
RowMajorMatrix<T> numbered(Index rows, Index cols) {
  RowMajorMatrix<T> m(rows, cols);
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < cols; ++j) m(i, j) = static_cast<T>(100 * i + j);
  return m;
}

template <class T>
bool same(MatrixView<const T> view, const RowMajorMatrix<T>& expected) {
  if (view.rows() != expected.rows() || view.cols() != expected.cols()) return false;
  for (Index i = 0; i < view.rows(); ++i)
    for (Index j = 0; j < view.cols(); ++j)
      if (view(i, j) != expected(i, j) || view.row(i)[j] != expected(i, j)) return false;
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("a matrix view shows what an Eigen object holds", "[core][views]", float, double) {
  using T = TestType;
  RowMajorMatrix<T> m = numbered<T>(5, 7);
  const auto& constant = m;
  CHECK(same<T>(m, m));
  CHECK(same<T>(constant, m));
  Eigen::Map<RowMajorMatrix<T>> map(m.data(), 5, 7);
  CHECK(same<T>(map, m));
  Eigen::Map<RowMajorMatrix<T>, 0, Eigen::OuterStride<>> strided(m.data(), 3, 2, Eigen::OuterStride<>(14));
  CHECK(same<T>(strided, strided));
  CHECK(MatrixView<const T>(strided).stride() == 14);
  CHECK(same<T>(m.block(1, 2, 3, 4), m.block(1, 2, 3, 4)));
  CHECK(MatrixView<T>(m.block(1, 2, 3, 4)).stride() == 7);
  CHECK(same<T>(m.middleRows(2, 0), m.middleRows(2, 0)));
  Eigen::Ref<RowMajorMatrix<T>> ref = m.middleCols(3, 2);
  CHECK(same<T>(ref, m.middleCols(3, 2)));
  ColMajorMatrix<T> column_major = m;
  CHECK(same<T>(column_major.transpose(), m.transpose()));
  CHECK(same<T>(m.row(3), m.row(3)));

  MatrixView<T> view = m;
  view(2, 3) = T(-1);
  CHECK(m(2, 3) == T(-1));
}

TEMPLATE_TEST_CASE("parts of a matrix view are the same memory", "[core][views]", float, double) {
  using T = TestType;
  RowMajorMatrix<T> m = numbered<T>(6, 9);
  const MatrixView<T> view = m;
  CHECK(same<T>(view.middle_rows(2, 3), m.middleRows(2, 3)));
  CHECK(same<T>(view.middle_cols(4, 5), m.middleCols(4, 5)));
  CHECK(same<T>(view.middle_cols(1, 4).middle_rows(3, 2), m.block(3, 1, 2, 4)));
  CHECK(view.middle_rows(6, 0).empty());
  CHECK(view.middle_cols(9, 0).empty());
  CHECK(MatrixView<T>().empty());
  CHECK(MatrixView<T>().data() == nullptr);
  // Heads of an empty batch: no memory at all, and no arithmetic on a null pointer (UBSan watches).
  const MatrixView<T> none(nullptr, 0, 9);
  CHECK(none.middle_cols(3, 3).cols() == 3);
  CHECK(none.middle_cols(3, 3).data() == nullptr);
  CHECK(none.middle_rows(0, 0).rows() == 0);
}

TEST_CASE("a vector view shows what a container holds", "[core][views]") {
  std::vector<float> v{1, 2, 3, 4};
  const V view = v;
  CHECK(view.data() == v.data());
  CHECK(view.size() == 4);
  CHECK(CV(view).data() == v.data());
  CHECK(std::vector<float>(view.begin(), view.end()) == v);
  const V part = view.segment(1, 2);
  CHECK((part.size() == 2 && part[0] == 2 && part[1] == 3));
  CHECK(view.segment(4, 0).empty());
  part[0] = 9;
  CHECK(v[1] == 9);
  std::array<float, 2> a{5, 6};
  CHECK(V(a)[1] == 6);
  Eigen::VectorXf e = Eigen::VectorXf::LinSpaced(5, 0, 4);
  CHECK(CV(e.segment(2, 3))[0] == 2);
  CHECK((V().empty() && V().data() == nullptr));
}

TEST_CASE("an index view reads both widths", "[core][views]") {
  const std::vector<std::int32_t> narrow{0, 3, -1, 7};
  const std::vector<std::int64_t> wide{0, 3, std::int64_t{1} << 40, 7};
  const IndexView a = narrow, b = wide;
  CHECK((a.size() == 4 && a[1] == 3 && a[2] == -1));
  CHECK((b.size() == 4 && b[2] == (Index{1} << 40)));
  CHECK((a.segment(1, 2).size() == 2 && a.segment(1, 2)[1] == -1));
  CHECK((b.segment(2, 2).size() == 2 && b.segment(2, 2)[1] == 7));
  CHECK((IndexView().empty() && IndexView().is_null() && !a.is_null() && !b.is_null()));
  CHECK(IndexView().segment(0, 0).is_null());
}
