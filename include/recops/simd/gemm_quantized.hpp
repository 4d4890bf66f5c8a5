/// @file   recops/simd/gemm_quantized.hpp
/// @brief  Weights of gemm stored in bfloat16 or int8: half or a quarter of the memory to read, sums in float.
///
/// Rows of A stay float; a weight is expanded to float in registers, so that products are exact products of what is stored.
/// Against the float weights |error| of (A B)_ij is at most, besides gemm's own roundings,
///
///     bfloat16    2^-8 · Σ_k |a_ik b_kj|                          each weight rounded to nearest, ties to even
///     int8        (max_k |b_kj| / 254 · (1 + 2^-16) + 2^-142) · Σ_k |a_ik|   one scale per column, scale_j = max_k |b_kj| / 127
///
/// A NaN or infinity in a weight makes its own column NaN in int8; in bfloat16 it is kept as it is.
#pragma once
#include <cmath>
#include <limits>
#include <recops/core/float16.hpp>
#include <recops/simd/convert.hpp>
#include <recops/simd/gemm.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {
namespace detail {

/// A lane of 32 bits holds a weight of the first vector in its low half and one of the second in its high half: a shift and a
/// mask give both.
template <class A>
struct Stored<BFloat16, float, A> {
  RECOPS_INLINE static void load(const BFloat16* p, Batch<float, A>* out) {
    using I = Batch<std::int32_t, A>;
    const I both = in_register(I::load_unaligned(reinterpret_cast<const std::int32_t*>(p)));
    out[0] = bits_as<float>(I(both << 16));
    out[1] = bits_as<float>(I(both & I(std::int32_t(0xFFFF0000))));
  }
};
template <class A>
struct Stored<std::int8_t, float, A> {
  RECOPS_INLINE static void load(const std::int8_t* p, Batch<float, A>* out) {
    out[0] = load_as_float<A>(p);
    out[1] = load_as_float<A>(p + lanes<float, A>);
  }
};

}  // namespace detail

/// Packs B `[k, n]` rounded to bfloat16. `out` holds `packed_size(k, n)` elements, 64-byte aligned.
template <class T, class A = DefaultArch>
requires std::is_same_v<T, float>
void pack(Operand<T> b, BFloat16* out) {
  constexpr Index P = panel_cols<T, A>, W = lanes<T, A>;
  detail::for_each_panel<T, A>(b.rows, b.cols, [&](Index p0, Index depth, Index j0, Index width, Index at) {
    BFloat16* to = out + at;
    for (Index p = p0; p < p0 + depth; ++p, to += P)
      for (Index j = 0; j < P; ++j)
        to[j < W ? 2 * j : 2 * (j - W) + 1] = BFloat16(j < width ? b.data[p * b.row_stride + (j0 + j) * b.col_stride] : 0.0f);
  });
}

/// Packs B `[k, n]` as int8, b_kj = scale_j q_kj with q in [-127, 127] rounded to nearest, ties to even; `scale` `[n]` is what
/// `Epilogue::column_scale` takes. `out` holds `packed_size(k, n)` elements, 64-byte aligned. A column of zeros has scale 0, one
/// with a NaN or infinity NaN.
template <class T, class A = DefaultArch>
requires std::is_same_v<T, float>
void pack(Operand<T> b, std::int8_t* out, T* scale) {
  constexpr Index P = panel_cols<T, A>;
  for (Index j = 0; j < b.cols; ++j) {
    T most = 0;
    for (Index p = 0; p < b.rows; ++p) {
      const T x = std::abs(b.data[p * b.row_stride + j * b.col_stride]);
      if (!(x <= most)) most = x;  // a NaN is taken, and then only left for an infinity
      if (!(most <= std::numeric_limits<T>::max())) break;
    }
    scale[j] = most <= std::numeric_limits<T>::max() ? most / 127 : std::numeric_limits<T>::quiet_NaN();
  }
  detail::for_each_panel<T, A>(b.rows, b.cols, [&](Index p0, Index depth, Index j0, Index width, Index at) {
    std::int8_t* to = out + at;
    for (Index p = p0; p < p0 + depth; ++p, to += P)
      for (Index j = 0; j < P; ++j) {
        const T s = j < width ? scale[j0 + j] : T(0);
        // The scale of tiny weights is itself rounded: the quotient is kept in range.
        const T q = s > 0 ? std::nearbyint(b.data[p * b.row_stride + (j0 + j) * b.col_stride] / s) : T(0);
        to[j] = static_cast<std::int8_t>(q < -127 ? -127 : q > 127 ? 127 : q);
      }
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
