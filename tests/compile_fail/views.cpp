// What must not compile: an owner that dies before its view, and numbers a view cannot describe.
// scripts/check_compile_fail compiles case 0 (only what is legal), then every other case, which must fail inside its block.
#include <array>
#include <recops/core/matrix.hpp>
#include <recops/core/views.hpp>
#include <vector>

using namespace recops;

Index rows(MatrixView<const float>);
Index rows_written(MatrixView<float>);
Index entries(VectorView<const float>);
Index entries_written(VectorView<float>);
Index indices(IndexView);
Index sequences(JaggedView<const float>);

Matrix<float> make_matrix();
Vector<float> make_vector();

Index legal() {
  Matrix<float> m(2, 3);
  const Matrix<float> constant(2, 3);
  Vector<float> v(3);
  std::vector<float> numbers(3);
  const std::vector<float> constants(3);
  std::array<float, 3> fixed{};
  std::vector<std::int32_t> narrow{0, 2};
  std::vector<std::int64_t> wide{0, 2};
  return rows(m) + rows(constant) + rows_written(m) + entries(v) + entries(numbers) + entries(constants) + entries(fixed) +
         entries_written(v) + entries_written(numbers) + indices(narrow) + indices(wide) + sequences(m) + sequences({m, narrow}) +
         rows(MatrixView<float>(numbers.data(), 1, 3)) + entries(VectorView<float>(numbers.data(), 3));
}

#if RECOPS_FAIL_CASE == 1  // a matrix that dies before its view
Index f() { return rows(make_matrix()); }
#endif
#if RECOPS_FAIL_CASE == 2  // a vector that dies before its view
Index f() { return entries(make_vector()); }
#endif
#if RECOPS_FAIL_CASE == 3  // a std::vector that dies before its view
Index f() { return entries(std::vector<float>(3)); }
#endif
#if RECOPS_FAIL_CASE == 4  // a std::array that dies before its view
Index f() { return entries(std::array<float, 3>{}); }
#endif
#if RECOPS_FAIL_CASE == 5  // offsets that die before their view
Index f() { return indices(std::vector<std::int32_t>{0, 2}); }
#endif
#if RECOPS_FAIL_CASE == 6  // a jagged batch whose values die before it
Index f() { return sequences(make_matrix()); }
#endif
#if RECOPS_FAIL_CASE == 7  // another scalar type: matrix
Index f(Matrix<double>& m) { return rows(m); }
#endif
#if RECOPS_FAIL_CASE == 8  // another scalar type: vector
Index f(std::vector<double>& v) { return entries(v); }
#endif
#if RECOPS_FAIL_CASE == 9  // another scalar type: view to view
MatrixView<const float> f(MatrixView<double> m) { return m; }
#endif
#if RECOPS_FAIL_CASE == 10  // writing to what is const: matrix
Index f(const Matrix<float>& m) { return rows_written(m); }
#endif
#if RECOPS_FAIL_CASE == 11  // writing to what is const: vector
Index f(const std::vector<float>& v) { return entries_written(v); }
#endif
#if RECOPS_FAIL_CASE == 12  // writing to what is const: view to view
MatrixView<float> f(MatrixView<const float> m) { return m; }
#endif
#if RECOPS_FAIL_CASE == 13  // indices of the wrong width
Index f(std::vector<std::int16_t>& v) { return indices(v); }
#endif
#if RECOPS_FAIL_CASE == 14  // unsigned indices
Index f(std::vector<std::uint32_t>& v) { return indices(v); }
#endif
