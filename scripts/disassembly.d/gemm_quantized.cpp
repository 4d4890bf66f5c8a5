// kernel: gemm tile, stored weights = detail::tile<
#include <recops/simd/gemm_quantized.hpp>

template <class S>
void product(recops::MatrixView<const float> a, const S* panels, recops::MatrixView<float> c, recops::Workspace& ws) {
  recops::simd::gemm_packed<float>(recops::simd::plain(a), panels, c.cols(), {}, c, ws);
}
template void product<recops::BFloat16>(recops::MatrixView<const float>, const recops::BFloat16*, recops::MatrixView<float>,
                                        recops::Workspace&);
template void product<std::int8_t>(recops::MatrixView<const float>, const std::int8_t*, recops::MatrixView<float>,
                                   recops::Workspace&);
