// Which Eigen objects become views: row-major ones with unit inner stride that live long enough.
// scripts/check_compile_fail compiles case 0 (only what is legal), then every other case, which must fail inside its block.
#include <Eigen/Core>
#include <recops/core/views.hpp>

using namespace recops;

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColMajor = Eigen::MatrixXf;
using Strided = Eigen::Map<RowMajor, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>;

Index rows(MatrixView<const float>);
Index rows_written(MatrixView<float>);
Index entries(VectorView<const float>);
Index sequences(JaggedView<const float>);

RowMajor make_matrix();
Eigen::VectorXf make_vector();

Index legal(RowMajor& m, const RowMajor& constant, Eigen::VectorXf& v, Eigen::Ref<RowMajor> ref, float* p) {
  Eigen::Map<RowMajor> map(p, 2, 3);
  return rows(m) + rows(constant) + rows_written(m) + rows(ref) + rows(map) + rows_written(Eigen::Map<RowMajor>(p, 2, 3)) +
         rows(m.middleRows(0, 1)) + rows_written(m.block(0, 0, 1, 1)) + entries(v) + entries(v.head(2)) + entries(m.row(0)) +
         sequences(m);
}

#if RECOPS_FAIL_CASE == 1  // column-major into a matrix
Index f(ColMajor& m) { return rows(m); }
#endif
#if RECOPS_FAIL_CASE == 2  // column-major block
Index f(ColMajor& m) { return rows(m.block(0, 0, 1, 1)); }
#endif
#if RECOPS_FAIL_CASE == 3  // column-major into a jagged batch
Index f(ColMajor& m) { return sequences(m); }
#endif
#if RECOPS_FAIL_CASE == 4  // an inner stride known only at run time
Index f(Strided m) { return rows(m); }
#endif
#if RECOPS_FAIL_CASE == 5  // an inner stride of two
Index f(Eigen::Map<RowMajor, 0, Eigen::InnerStride<2>> m) { return rows(m); }
#endif
#if RECOPS_FAIL_CASE == 6  // an owner that dies before its view
Index f() { return rows(make_matrix()); }
#endif
#if RECOPS_FAIL_CASE == 7  // a vector that dies before its view
Index f() { return entries(make_vector()); }
#endif
#if RECOPS_FAIL_CASE == 8  // a fixed-size owner that dies before its view
Index f() { return rows(Eigen::Matrix<float, 2, 2, Eigen::RowMajor>()); }
#endif
#if RECOPS_FAIL_CASE == 9  // an expression without storage
Index f(RowMajor& a, RowMajor& b) { return rows(a + b); }
#endif
#if RECOPS_FAIL_CASE == 10  // a transposed view
Index f(RowMajor& a) { return rows(a.transpose()); }
#endif
#if RECOPS_FAIL_CASE == 11  // another scalar type
Index f(Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>& m) { return rows(m); }
#endif
#if RECOPS_FAIL_CASE == 12  // writing to what is const
Index f(const RowMajor& m) { return rows_written(m); }
#endif
#if RECOPS_FAIL_CASE == 13  // a column of a row-major matrix as a vector: strided
Index f(RowMajor& m) { return entries(m.col(0)); }
#endif
#if RECOPS_FAIL_CASE == 14  // a whole matrix as a vector
Index f(RowMajor& m) { return entries(m); }
#endif
