/// @file   recops/simd/quantize.hpp
/// @brief  Rows as int8 codes with a scale per row, or per block of columns of a row (a head, say): a quarter of the bytes of
///         floats.
///
///     s = max |x| / 127          code = rint(x / s) in [-127, 127], ties to even          x ~ s * code
///
/// Shapes      x [L, D]   codes [L, D]   scales [L, ceil(D / block)]; the last block may be narrower.
/// Precision   |x - s * code| <= s / 2 * (1 + 2^-15) + 2^-142, computed in float; doubles are rounded to float first.
/// Edge cases  A block of zeros, or too small for a scale (max |x| below 127 * 2^-150), has s = 0 and codes 0. L = 0 and D = 0 do
///             nothing.
/// NaN         A block that holds a NaN or an infinity has s = NaN and codes 0: every product with it is NaN, in its row and no
///             other. So does one with max |x| of a double beyond the largest float.
/// Cost        One pass. Nothing is allocated.
/// Errors      Error if shapes disagree; outputs untouched.
#pragma once
#include <limits>
#include <recops/core/matrix.hpp>
#include <recops/simd/convert.hpp>

namespace recops {

/// Quantised rows that somebody else owns.
struct QuantizedView {
  MatrixView<const std::int8_t> codes = {};  ///< [L, D], each in [-127, 127]
  MatrixView<const float> scales = {};       ///< [L, blocks]
  Index block = 0;                           ///< columns that share a scale; 0: all of a row

  RECOPS_INLINE Index rows() const { return codes.rows(); }
  RECOPS_INLINE Index cols() const { return codes.cols(); }
  /// Columns of a whole block.
  RECOPS_INLINE Index width() const { return block > 0 && block < cols() ? block : cols(); }
  /// Scales of a row: at least 1.
  RECOPS_INLINE Index blocks() const { return cols() > width() ? (cols() + width() - 1) / width() : 1; }
  /// `count` rows from `first` on.
  RECOPS_INLINE QuantizedView middle_rows(Index first, Index count) const {
    return {codes.middle_rows(first, count), scales.middle_rows(first, count), block};
  }
};

inline namespace RECOPS_ABI {

/// Throws `Error` unless codes and scales fit each other, and have `rows` and `cols` (or any, with `any_size`).
inline void check_quantized(const char* operation, const char* argument, const QuantizedView& view, Index rows, Index cols) {
  check_shape(operation, argument, view.codes, rows, cols);
  check_option(operation, "block", view.block >= 0, "block >= 0", static_cast<double>(view.block));
  check_shape(operation, "scales", view.scales, view.rows(), view.blocks());
}

namespace simd {

namespace detail {

/// Codes of one block, and its scale.
template <class A, class S>
float quantize_block(const S* x, Index n, std::int8_t* codes) {
  using B = Batch<float, A>;
  using I = Batch<std::int32_t, A>;
  constexpr Index W = lanes<float, A>;
  // As integers magnitudes are in order too, and those of NaN are above infinity's.
  I most(0);
  for (Index i = 0; i < n; i += W) {
    const B v = n - i < W ? load_first_as<float, A>(x + i, n - i) : load_as<float, A>(x + i);
    most = xsimd::max(most, I(bits_as<std::int32_t>(v) & I(0x7FFFFFFF)));
  }
  alignas(64) std::int32_t lane[W];
  most.store_aligned(lane);
  std::int32_t largest = 0;
  for (Index i = 0; i < W; ++i) largest = lane[i] > largest ? lane[i] : largest;
  const bool finite = largest < 0x7F800000;
  // The largest scale is one with which 127 does not overflow.
  const float exact = std::bit_cast<float>(largest) / 127.0f, bounded = exact < 0x1.020406p+121f ? exact : 0x1.020406p+121f;
  const float scale = finite ? bounded : std::numeric_limits<float>::quiet_NaN();
  if (!(scale > 0)) {
    for (Index i = 0; i < n; ++i) codes[i] = 0;
    return scale;
  }
  const B divisor(scale), limit(127.0f), magic(0x1.8p23f);  // adding 1.5 * 2^23 rounds to an integer, ties to even
  for (Index i = 0; i < n; i += W) {
    const Index count = n - i < W ? n - i : W;
    const B v = count < W ? load_first_as<float, A>(x + i, count) : load_as<float, A>(x + i);
    // A denormal scale may be far off max / 127: hence the clamp.
    const B quotient = xsimd::max(xsimd::min(B(v / divisor), limit), -limit);
    const I code = bits_as<std::int32_t>(B(quotient + magic)) - I(0x4B400000);
#if defined(__AVX512F__)
    if constexpr (has_avx512<A>) {
      if (count == W) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(code));
        continue;
      }
    }
#endif
    code.store_aligned(lane);
    for (Index j = 0; j < count; ++j) codes[i + j] = static_cast<std::int8_t>(lane[j]);
  }
  return scale;
}

}  // namespace detail

/// Quantises rows of floats, doubles, BFloat16 or Float16, one scale for every `block` columns (0: one for a row).
template <class A = DefaultArch, class S>
void quantize_rows(MatrixView<S> x, Index block, MatrixView<std::int8_t> codes, MatrixView<float> scales) {
  check_shape("quantize_rows", "x", x, any_size, any_size);
  check_shape("quantize_rows", "codes", codes, x.rows(), x.cols());
  const QuantizedView out{codes, scales, block};
  check_quantized("quantize_rows", "codes", out, x.rows(), x.cols());
  for (Index l = 0; l < x.rows(); ++l) {
    for (Index b = 0; b < out.blocks(); ++b) {
      const Index first = b * out.width(), count = x.cols() - first < out.width() ? x.cols() - first : out.width();
      scales(l, b) = detail::quantize_block<A>(x.row(l) + first, count, codes.row(l) + first);
    }
  }
}

/// out [L, D] = s * code
template <class A = DefaultArch>
void dequantize_rows(const QuantizedView& x, MatrixView<float> out) {
  check_quantized("dequantize_rows", "x", x, any_size, any_size);
  check_shape("dequantize_rows", "out", out, x.rows(), x.cols());
  constexpr Index W = lanes<float, A>;
  for (Index l = 0; l < x.rows(); ++l) {
    for (Index b = 0; b < x.blocks(); ++b) {
      const Index first = b * x.width(), end = x.cols() - first < x.width() ? x.cols() : first + x.width();
      const Batch<float, A> scale(x.scales(l, b));
      const std::int8_t* codes = x.codes.row(l);
      float* to = out.row(l);
      Index i = first;
      for (; i + W <= end; i += W) (load_as_float<A>(codes + i) * scale).store_unaligned(to + i);
      if (i < end) store_first(to + i, Batch<float, A>(load_first_as<float, A>(codes + i, end - i) * scale), end - i);
    }
  }
}

/// A query for integer products with int8 rows: codes of up to sixteen bits, and their scale.
struct QuantizedQuery {
  const std::int16_t* codes = nullptr;  ///< [query_codes_size(D)], zeros behind the first D
  float scale = 0;
};

/// Elements behind `QuantizedQuery::codes`: `cols`, up to a whole vector of any instruction set.
constexpr Index query_codes_size(Index cols) { return (cols + 31) / 32 * 32; }

/// The largest code of a quantised query: sixteen bits, or less where `cols` products with codes of rows would not fit 32 bits.
constexpr Index query_code_limit(Index cols) {
  const Index fits = Index{0x7FFFFFFF} / (128 * (cols > 1 ? cols : 1));
  return fits < 32767 ? fits : 32767;
}

/// Quantises `query` [cols] into `codes` [query_codes_size(cols)]: scale = max |query| / largest, so that integer products never
/// overflow (unless `largest` is greater than query_code_limit). A query that holds NaN or infinity has the scale NaN and codes 0.
/// Fewer than 2^24 columns.
inline QuantizedQuery quantize_query(const float* query, Index cols, std::int16_t* codes, Index largest) {
  assert(cols < Index{1} << 24);
  float most = 0;
  bool finite = true;
  for (Index i = 0; i < cols; ++i) {
    const float m = query[i] < 0 ? -query[i] : query[i];
    finite = finite && m <= std::numeric_limits<float>::max();
    most = m > most ? m : most;
  }
  const auto limit = static_cast<double>(largest);
  const float scale = finite ? static_cast<float>(static_cast<double>(most) / limit) : std::numeric_limits<float>::quiet_NaN();
  for (Index i = 0; i < cols; ++i) {
    double x = scale > 0 ? static_cast<double>(query[i]) / static_cast<double>(scale) : 0;
    x = x < -limit ? -limit : x > limit ? limit : x;
    codes[i] = static_cast<std::int16_t>(static_cast<std::int32_t>(x + (x < 0 ? -0.5 : 0.5)));
  }
  for (Index i = cols; i < query_codes_size(cols); ++i) codes[i] = 0;
  return {codes, scale};
}
/// The same with codes as fine as can be.
inline QuantizedQuery quantize_query(const float* query, Index cols, std::int16_t* codes) {
  return quantize_query(query, cols, codes, query_code_limit(cols));
}

}  // namespace simd

/// Owns quantised rows. Keeps its memory when assigned again.
struct QuantizedRows {
  Matrix<std::int8_t> codes;  ///< [L, D]
  Matrix<float> scales;       ///< [L, blocks]
  Index block = 0;            ///< columns that share a scale; 0: all of a row

  /// Quantises `x` [L, D] of floats, doubles, BFloat16 or Float16.
  template <class S>
  void assign(MatrixView<S> x, Index columns_per_scale = 0) {
    check_shape("QuantizedRows::assign", "x", x, any_size, any_size);
    check_option("QuantizedRows::assign", "block", columns_per_scale >= 0, "block >= 0", static_cast<double>(columns_per_scale));
    codes.resize(x.rows(), x.cols());
    block = columns_per_scale;
    scales.resize(x.rows(), QuantizedView{codes, {}, block}.blocks());
    simd::quantize_rows(x, block, codes, scales);
  }
  QuantizedView view() const& { return {codes, scales, block}; }
  operator QuantizedView() const& { return view(); }
  operator QuantizedView() const&& = delete;  // the view would outlive the rows
};

}  // namespace RECOPS_ABI
}  // namespace recops
