/// @file   tests/support/kernels.hpp
/// @brief  The kernels nearly every test uses, compiled once (kernels.cpp) instead of once a test file: two thirds of the code of
///         an unoptimised test program were copies of these. Part of the compiled header; a test includes what it uses as ever.
#pragma once

#include "recops/nn/batch_norm.hpp"
#include "recops/nn/layer_norm.hpp"
#include "recops/nn/rms_norm.hpp"
#include "recops/simd/attention_backward.hpp"
#include "recops/simd/attention_forward.hpp"
#include "recops/simd/fft_filter.hpp"
#include "recops/simd/gaussian.hpp"
#include "recops/simd/gemm.hpp"
#include "recops/simd/gemm_grouped.hpp"
#include "recops/simd/gemm_quantized.hpp"
#include "recops/simd/keep_mask.hpp"
#include "recops/simd/normal.hpp"
#include "recops/simd/softmax.hpp"
#include "recops/simd/uniform.hpp"

#ifndef RECOPS_TEST_KERNEL
#define RECOPS_TEST_KERNEL extern template
#endif

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

#define RECOPS_TEST_KERNELS_OF(T)                                                                                             \
  RECOPS_TEST_KERNEL void exp<T>(const T*, T*, Index);                                                                        \
  RECOPS_TEST_KERNEL void sigmoid<T>(const T*, T*, Index);                                                                    \
  RECOPS_TEST_KERNEL void tanh<T>(const T*, T*, Index);                                                                       \
  RECOPS_TEST_KERNEL void log<T>(const T*, T*, Index);                                                                        \
  RECOPS_TEST_KERNEL void softplus<T>(const T*, T*, Index);                                                                   \
  RECOPS_TEST_KERNEL void silu<T>(const T*, T*, Index);                                                                       \
  RECOPS_TEST_KERNEL void gelu<T>(const T*, T*, Index);                                                                       \
  RECOPS_TEST_KERNEL void activate<T>(Activation, const T*, T*, Index);                                                       \
  RECOPS_TEST_KERNEL void activate_backward<T>(Activation, const T*, const T*, const T*, T*, Index);                          \
  RECOPS_TEST_KERNEL T dot<T>(const T*, const T*, Index);                                                                     \
  RECOPS_TEST_KERNEL T sum<T>(const T*, Index);                                                                               \
  RECOPS_TEST_KERNEL T sum_squares<T>(const T*, Index);                                                                       \
  RECOPS_TEST_KERNEL void axpy<T>(T, const T*, T*, Index);                                                                    \
  RECOPS_TEST_KERNEL void add<T>(const T*, T*, Index);                                                                        \
  RECOPS_TEST_KERNEL void scale<T>(T, const T*, T*, Index);                                                                   \
  RECOPS_TEST_KERNEL T max<T>(const T*, Index);                                                                               \
  RECOPS_TEST_KERNEL T softmax<T>(const T*, T*, Index);                                                                       \
  RECOPS_TEST_KERNEL T softmax_masked<T>(const T*, const std::uint8_t*, T*, Index);                                           \
  RECOPS_TEST_KERNEL T softmax_masked<T>(const T*, const std::uint64_t*, T*, Index);                                          \
  RECOPS_TEST_KERNEL T log_sum_exp<T>(const T*, Index);                                                                       \
  RECOPS_TEST_KERNEL T softmax_update<T>(SoftmaxState<T>&, const T*, T*, Index);                                              \
  RECOPS_TEST_KERNEL void softmax_backward<T>(const T*, const T*, T*, Index);                                                 \
  RECOPS_TEST_KERNEL void pack<T>(Operand<T>, T*);                                                                            \
  RECOPS_TEST_KERNEL void gemm<T>(Operand<T>, Operand<T>, const Epilogue<T>&, MatrixView<T>, Workspace&);                     \
  RECOPS_TEST_KERNEL void gemm_packed<T>(Operand<T>, const T*, Index, const Epilogue<T>&, MatrixView<T>, Workspace&);         \
  RECOPS_TEST_KERNEL void gemm_grouped<T>(const GemmProblem<T, T>*, Index, Workspace&);                                       \
  RECOPS_TEST_KERNEL void detail::finish<T, DefaultArch>(const T*, Index, T*, Index, Index, Index, bool, bool,                \
                                                         const Epilogue<T>&);                                                 \
  RECOPS_TEST_KERNEL void dropout<T>(const RandomRow&, double, const T*, T*, Index);                                          \
  RECOPS_TEST_KERNEL void dropout<T>(const RandomRow&, IndexView, double, MatrixView<const T>, MatrixView<T>);                \
  RECOPS_TEST_KERNEL void fill_uniform<T>(const RandomRow&, T*, Index);                                                       \
  RECOPS_TEST_KERNEL void fill_normal<T>(const RandomRow&, T*, Index);                                                        \
  RECOPS_TEST_KERNEL void fill_normal<T>(const RandomRow&, IndexView, MatrixView<T>);                                         \
  RECOPS_TEST_KERNEL void attention_forward<T>(const AttentionOperands<T>&, Index, Index, Index, Index, MatrixView<T>,        \
                                               MatrixView<T>, Workspace&);                                                    \
  RECOPS_TEST_KERNEL void attention_backward<T>(const AttentionOperands<T>&, Index, Index, Index, Index,                      \
                                                const AttentionResult<T>&, const AttentionGradients<T>&, Workspace&);         \
  RECOPS_TEST_KERNEL void detail::fft_enter<T, DefaultArch>(const FftPlan<T>&, const detail::FftRows<const T>&, Index, Index, \
                                                            T*, Index);                                                       \
  RECOPS_TEST_KERNEL void detail::fft_leave<T, DefaultArch>(const FftPlan<T>&, const detail::FftRows<T>&, Index, Index, T*,   \
                                                            Index, bool);                                                     \
  RECOPS_TEST_KERNEL void detail::fft_forward_level<T, DefaultArch>(const FftPlan<T>&, const FftStage&, T*, Index, Index);    \
  RECOPS_TEST_KERNEL void detail::fft_inverse_level<T, DefaultArch>(const FftPlan<T>&, const FftStage&, T*, Index, Index);    \
  RECOPS_TEST_KERNEL void detail::fft_forward_parts<T, DefaultArch>(const FftPlan<T>&, int, T*, Index);                       \
  RECOPS_TEST_KERNEL void detail::fft_inverse_parts<T, DefaultArch>(const FftPlan<T>&, int, T*, Index);                       \
  RECOPS_TEST_KERNEL void detail::fft_filter_parts<T, DefaultArch>(const FftPlan<T>&, int, T*, Index,                         \
                                                                   detail::FftRealGain<T, DefaultArch>, detail::FftAhead&);   \
  RECOPS_TEST_KERNEL void detail::fft_filter_parts<T, DefaultArch>(const FftPlan<T>&, int, T*, Index,                         \
                                                                   detail::FftComplexGain<T, DefaultArch>, detail::FftAhead&);

RECOPS_TEST_KERNELS_OF(float)
RECOPS_TEST_KERNELS_OF(double)
#undef RECOPS_TEST_KERNELS_OF

RECOPS_TEST_KERNEL void gemm_packed<float, DefaultArch, BFloat16>(Operand<float>, const BFloat16*, Index, const Epilogue<float>&,
                                                                  MatrixView<float>, Workspace&);
RECOPS_TEST_KERNEL void gemm_packed<float, DefaultArch, std::int8_t>(Operand<float>, const std::int8_t*, Index,
                                                                     const Epilogue<float>&, MatrixView<float>, Workspace&);

}  // namespace simd

#define RECOPS_TEST_NORMS_OF(T)                                                                                                  \
  RECOPS_TEST_KERNEL void detail::layer_norm_segment<T>(const T*, const T*, const T*, Index, T, T*, T&, T&);                     \
  RECOPS_TEST_KERNEL void detail::layer_norm_segment_backward<T>(const T*, const T*, const T*, Index, T, T, T*, bool);           \
  RECOPS_TEST_KERNEL void layer_norm<T>(MatrixView<const T>, VectorView<const T>, VectorView<const T>, const LayerNormOptions&,  \
                                        MatrixView<T>, MatrixView<T>, Workspace&);                                               \
  RECOPS_TEST_KERNEL void layer_norm_backward<T>(MatrixView<const T>, VectorView<const T>, const LayerNormOptions&,              \
                                                 MatrixView<const T>, MatrixView<const T>, MatrixView<T>, VectorView<T>,         \
                                                 VectorView<T>, Workspace&);                                                     \
  RECOPS_TEST_KERNEL void rms_norm<T>(MatrixView<const T>, VectorView<const T>, const RmsNormOptions&, MatrixView<T>,            \
                                      MatrixView<T>, Workspace&);                                                                \
  RECOPS_TEST_KERNEL void rms_norm_backward<T>(MatrixView<const T>, VectorView<const T>, const RmsNormOptions&,                  \
                                               MatrixView<const T>, MatrixView<const T>, MatrixView<T>, VectorView<T>,           \
                                               Workspace&);                                                                      \
  RECOPS_TEST_KERNEL void batch_norm<T>(MatrixView<const T>, VectorView<const T>, VectorView<const T>, VectorView<const T>,      \
                                        VectorView<const T>, const BatchNormOptions&, MatrixView<T>, Workspace&);                \
  RECOPS_TEST_KERNEL void batch_norm_train<T>(MatrixView<const T>, VectorView<const T>, VectorView<const T>,                     \
                                              const BatchNormOptions&, VectorView<T>, VectorView<T>, MatrixView<T>, Workspace&); \
  RECOPS_TEST_KERNEL void batch_norm_backward<T>(MatrixView<const T>, VectorView<const T>, const BatchNormOptions&,              \
                                                 VectorView<const T>, VectorView<const T>, MatrixView<const T>, MatrixView<T>,   \
                                                 VectorView<T>, VectorView<T>, Workspace&);
RECOPS_TEST_NORMS_OF(float)
RECOPS_TEST_NORMS_OF(double)
#undef RECOPS_TEST_NORMS_OF

}  // namespace RECOPS_ABI
}  // namespace recops
