// kernel: gemm tile = detail::tile<
// kernel: gemm dot tile = detail::dot_tile<
#include <recops/simd/gemm.hpp>

template <class T>
void products(recops::MatrixView<const T> a, recops::MatrixView<const T> b, const T* panels, recops::MatrixView<T> c,
              recops::Workspace& ws) {
  recops::simd::gemm_packed<T>(recops::simd::plain(a), panels, c.cols(), {}, c, ws);
  recops::simd::gemm<T>(recops::simd::plain(a), recops::simd::transposed(b), {}, c, ws);
}
template void products<float>(recops::MatrixView<const float>, recops::MatrixView<const float>, const float*,
                              recops::MatrixView<float>, recops::Workspace&);
template void products<double>(recops::MatrixView<const double>, recops::MatrixView<const double>, const double*,
                               recops::MatrixView<double>, recops::Workspace&);
