/// @file   recops/simd/panels.hpp
/// @brief  Kernels of the panel layout: rows of a matrix side by side, one row per SIMD lane, for products of many rows with few
///         vectors.
///
///     panel[d][l] = row_l[d]          l in [0, panel_width),  d in [0, D)
///
/// A product with a vector then needs no horizontal sum, and every row's dot product runs in one lane, 64 columns in order (AVX-512:
/// the even d and the odd d of them), these partial sums in order too: its bits do not depend on how many rows or vectors are
/// processed together, or on the row's place.
///
/// Panels of floats may be stored as BFloat16 or int8 codes, several to a word, so that one load feeds several vectors by shifts:
///
///     BFloat16   word[d][i] = row_i | row_(i + 32) << 16                                  i in [0, 32)
///     int8       word[d][i] = row_i | row_(i + 16) << 8 | row_(i + 32) << 16 | row_(i + 48) << 24      i in [0, 16)
#pragma once
#include <algorithm>
#include <recops/simd/convert.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Rows in a panel: 256 bytes of each column, whatever the instruction set: 64 floats or 32 doubles. A panel is one stream of
/// whole cache lines; several streams at once come more slowly from the second-level cache.
template <class T>
inline constexpr Index panel_width = Index{256} / static_cast<Index>(sizeof(T));

/// What a panel of T stored as S consists of: T itself, or words that hold several S.
template <class T, class S>
using PanelWord = std::conditional_t<std::is_same_v<T, S>, T, std::uint32_t>;
/// Numbers in a word.
template <class T, class S>
inline constexpr Index panel_parts = std::is_same_v<T, S> ? 1 : static_cast<Index>(sizeof(std::uint32_t) / sizeof(S));
/// Words in a column of a panel.
template <class T, class S>
inline constexpr Index panel_words = panel_width<T> / panel_parts<T, S>;

namespace detail {

/// The numbers of the words at `p`: x[i] holds rows `panel_words` · i further on.
template <class S, class A>
RECOPS_INLINE void load_panel_words(const std::uint32_t* p, Batch<float, A> (&x)[4 / sizeof(S)]) {
  using I = Words<A>;
  const I w = I::load_aligned(reinterpret_cast<const std::int32_t*>(p));
  if constexpr (std::is_same_v<S, BFloat16>) {
    x[0] = bits_as<float>(I(w << 16));
    x[1] = bits_as<float>(I(w & I(std::int32_t(0xFFFF0000))));
  } else {
    static_assert(std::is_same_v<S, std::int8_t>);
    x[0] = xsimd::to_float(I(I(w << 24) >> 24));
    x[1] = xsimd::to_float(I(I(w << 16) >> 24));
    x[2] = xsimd::to_float(I(I(w << 8) >> 24));
    x[3] = xsimd::to_float(I(w >> 24));
  }
}
template <class S, class T, class A>
RECOPS_INLINE void load_panel_words(const T* p, Batch<T, A> (&x)[1]) {
  x[0] = Batch<T, A>::load_aligned(p);
}

/// a0 b0 a1 b1 ... of the low halves, over the whole register (xsimd's zip works within 128 bits on some sets).
template <class T, class A>
RECOPS_INLINE Batch<T, A> interleave_low(Batch<T, A> a, Batch<T, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
  } else
#endif
    return xsimd::zip_lo(a, b);
}
/// The same of the high halves.
template <class T, class A>
RECOPS_INLINE Batch<T, A> interleave_high(Batch<T, A> a, Batch<T, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
  } else
#endif
    return xsimd::zip_hi(a, b);
}

/// Transposes the square of lanes x lanes numbers in `x`. Interleaving row i with row i + lanes / 2 rotates the bits of an
/// element's address by one; log2(lanes) rotations swap row and column.
template <class T, class A, std::size_t N>
RECOPS_INLINE void transpose_lanes(Batch<T, A> (&x)[N]) {
  constexpr Index W = lanes<T, A>;
  static_assert(N == static_cast<std::size_t>(W));
#if defined(__AVX__)
  if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {  // half as many shuffles
    __m256 pairs[8], fours[8];
    RECOPS_UNROLL
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    RECOPS_UNROLL
    for (int i = 0; i < 8; i += 4) {
      fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
      fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
    }
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      x[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
    return;
  }
#endif
  RECOPS_UNROLL
  for (Index stage = 1; stage < W; stage *= 2) {
    Batch<T, A> y[W];
    RECOPS_UNROLL
    for (Index i = 0; i < W / 2; ++i) {
      y[2 * i] = interleave_low(x[i], x[i + W / 2]);
      y[2 * i + 1] = interleave_high(x[i], x[i + W / 2]);
    }
    RECOPS_UNROLL
    for (Index i = 0; i < W; ++i) x[i] = y[i];
  }
}

}  // namespace detail

/// Writes one panel [cols, panel_width] (64-byte aligned). `row(l)` points to the `cols` numbers of lane l; null from the
/// last row on: zeros. With `ahead` it is also asked for lanes past the panel, to fetch rows that are in no near cache and may lie
/// anywhere.
/// `squares` [panel_width] (64-byte aligned) receives each row's sum of squares, NaN and infinity included.
/// Rows may be stored in any format that `load_as` reads.
template <class T, class A = DefaultArch, class Row>
RECOPS_INLINE void pack_panel(Row&& row, Index cols, T* panel, T* squares, bool ahead = false) {
  using B = Batch<T, A>;
  using Stored = std::remove_cvref_t<decltype(*row(0))>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>, line = Index{64} / static_cast<Index>(sizeof(Stored));
  static_assert(P % W == 0);
  for (Index v = 0; v < P; v += W) {
    const Stored* rows[W];
    Index count = 0;
    for (Index l = 0; l < W; ++l) {
      rows[l] = row(v + l);
      if (rows[l]) {
        ++count;
      } else {
        rows[l] = rows[0];  // cleared below
      }
    }
    B sum[4] = {B(T(0)), B(T(0)), B(T(0)), B(T(0))}, x[W];  // of every fourth column: a single one would wait for itself
    if (count == 0) {                                       // rows come without gaps: nor is there any behind this one
      for (Index d = 0; d < cols; ++d) std::fill(panel + d * P + v, panel + (d + 1) * P, T(0));
      std::fill(squares + v, squares + P, T(0));
      return;
    }
    const auto fetch = [&](Index d) RECOPS_LAMBDA_INLINE {  // the next rows, line by line: more at once would wait for the memory
      for (Index l = v + W; d % line == 0 && l < v + 2 * W; ++l) {
        if (const Stored* const next = row(l)) __builtin_prefetch(next + d);
      }
    };
    const auto put = [&](Index d, auto some) RECOPS_LAMBDA_INLINE {
      detail::transpose_lanes<T, A>(x);
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) {
        if (i < some) {
          x[i].store_aligned(panel + (d + i) * P + v);
          sum[i % 4] = mul_add(x[i], x[i], sum[i % 4]);
        }
      }
    };
    Index d = 0;
    for (; d + W <= cols; d += W) {
      if (ahead) fetch(d);
      RECOPS_UNROLL
      for (Index l = 0; l < W; ++l) x[l] = load_as<T, A>(rows[l] + d);
      put(d, std::integral_constant<Index, W>{});
    }
    if (d < cols) {
      if (ahead) fetch(d);
      RECOPS_UNROLL
      for (Index l = 0; l < W; ++l) x[l] = load_first_as<T, A>(rows[l] + d, cols - d);
      put(d, cols - d);
    }
    ((sum[0] + sum[1]) + (sum[2] + sum[3])).store_aligned(squares + v);
    for (Index l = count; l < W; ++l) {
      for (Index c = 0; c < cols; ++c) panel[c * P + v + l] = T(0);
      squares[v + l] = T(0);
    }
  }
}

/// Multiplies lane l of a panel by factors[l]; a factor of 0 gives exactly 0, whatever was there, and a NaN gives NaN.
template <class T, class A = DefaultArch>
void scale_panel(T* panel, Index cols, const T* factors) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  for (Index v = 0; v < P; v += W) {
    const B factor = B::load_aligned(factors + v), zero(T(0));
    const auto drop = factor == zero;  // xsimd 8.1 takes NaN != x for false
    for (Index d = 0; d < cols; ++d) {
      T* const p = panel + d * P + v;
      xsimd::select(drop, zero, factor * B::load_aligned(p)).store_aligned(p);
    }
  }
}

/// Zeros for row l of a panel of BFloat16, and for its square.
inline void clear_row(std::uint32_t* words, Index cols, Index l, float* squares) {
  constexpr Index H = panel_width<float> / 2;
  for (Index d = 0; d < cols; ++d) words[d * H + l % H] &= l < H ? 0xFFFF0000u : 0xFFFFu;
  squares[l] = 0;
}

/// Writes one panel of `count` rows that are BFloat16 already: what `encode_panel` makes of the packed floats, without making them.
/// `rows` [panel_width + lanes] says where they lie; behind the last come any that can be read. `squares` [panel_width] receives the
/// sums of squares, NaN and infinity included. With `ahead` rows are fetched before their use.
template <class A = DefaultArch>
RECOPS_INLINE void pack_words(const BFloat16* const* rows, Index count, Index cols, std::uint32_t* words, float* squares,
                              bool ahead = false) {
  using B = Batch<float, A>;
  using I = detail::Words<A>;
  constexpr Index W = lanes<float, A>, P = panel_width<float>, H = P / 2, line = 32;
  for (Index v = 0; v < H; v += W) {
    const BFloat16 *const *const at = rows + v, *const *const other = at + H;
    B low[2] = {B(0.0f), B(0.0f)}, high[2] = {B(0.0f), B(0.0f)}, x[W];  // of even and odd columns
    const auto fetch = [&](Index d) RECOPS_LAMBDA_INLINE {
      for (Index l = W; d % line == 0 && l < 2 * W; ++l) {
        __builtin_prefetch(at[l] + d);
        __builtin_prefetch(other[l] + d);
      }
    };
    const auto pair = [](const BFloat16* a, const BFloat16* b) RECOPS_LAMBDA_INLINE {
      return bits_as<float>(I(detail::load_words<A>(a) | bits_as<std::int32_t>(load_as<float, A>(b))));
    };
    const auto put = [&](Index d, auto some) RECOPS_LAMBDA_INLINE {
      detail::transpose_lanes<float, A>(x);
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) {
        if (i < some) {
          const I word = bits_as<std::int32_t>(x[i]);
          word.store_aligned(reinterpret_cast<std::int32_t*>(words + (d + i) * H + v));
          const B y = bits_as<float>(I(word << 16)), z = bits_as<float>(I(word & I(std::int32_t(0xFFFF0000))));
          low[i % 2] = mul_add(y, y, low[i % 2]);
          high[i % 2] = mul_add(z, z, high[i % 2]);
        }
      }
    };
    Index d = 0;
    for (; d + W <= cols; d += W) {
      if (ahead) fetch(d);
      RECOPS_UNROLL
      for (Index l = 0; l < W; ++l) x[l] = pair(at[l] + d, other[l] + d);
      put(d, std::integral_constant<Index, W>{});
    }
    if (d < cols) {
      if (ahead) fetch(d);
      for (Index l = 0; l < W; ++l) {
        BFloat16 a[W] = {}, b[W] = {};
        std::copy_n(at[l] + d, cols - d, a);
        std::copy_n(other[l] + d, cols - d, b);
        x[l] = pair(a, b);
      }
      put(d, cols - d);
    }
    (low[0] + low[1]).store_aligned(squares + v);
    (high[0] + high[1]).store_aligned(squares + v + H);
  }
  for (Index l = count; l < P; ++l) clear_row(words, cols, l, squares);
}

/// A panel of floats as BFloat16: rounded to nearest, ties to even. `squares` [panel_width] receives the sums of squares of what is
/// stored.
template <class A = DefaultArch>
void encode_panel(const float* panel, Index cols, BFloat16*, std::uint32_t* words, float* squares) {
  using B = Batch<float, A>;
  using I = detail::Words<A>;
  constexpr Index W = lanes<float, A>, P = panel_width<float>, H = P / 2;
  for (Index v = 0; v < H; v += W) {
    B low[2] = {B(0.0f), B(0.0f)}, high[2] = {B(0.0f), B(0.0f)};  // of even and odd columns: a single one would wait for itself
    for (Index d = 0; d < cols; ++d) {
      const I a = detail::bfloat_of_float<A>(B::load_aligned(panel + d * P + v));
      const I b = detail::bfloat_of_float<A>(B::load_aligned(panel + d * P + v + H));
      const I word = (a & I(0xFFFF)) | I(b << 16);
      word.store_aligned(reinterpret_cast<std::int32_t*>(words + d * H + v));
      B x[2];
      detail::load_panel_words<BFloat16, A>(words + d * H + v, x);
      low[d % 2] = mul_add(x[0], x[0], low[d % 2]);
      high[d % 2] = mul_add(x[1], x[1], high[d % 2]);
    }
    (low[0] + low[1]).store_aligned(squares + v);
    (high[0] + high[1]).store_aligned(squares + v + H);
  }
}

/// A panel of floats as int8 codes: row = step · code with step = max |x| / 127 (0 where that is below 2^-100). `steps` and
/// `squares` [panel_width] receive the steps and the sums of squares of the codes. The panel must be finite.
template <class A = DefaultArch>
void encode_panel(const float* panel, Index cols, std::int8_t*, std::uint32_t* words, float* steps, float* squares) {
  using B = Batch<float, A>;
  using I = detail::Words<A>;
  constexpr Index W = lanes<float, A>, P = panel_width<float>, Q = P / 4;
  for (Index v = 0; v < Q; v += W) {
    B most[4], square[4], step[4], factor[4];
    RECOPS_UNROLL
    for (Index i = 0; i < 4; ++i) most[i] = square[i] = B(0.0f);
    for (Index d = 0; d < cols; ++d) {
      RECOPS_UNROLL
      for (Index i = 0; i < 4; ++i) most[i] = xsimd::max(most[i], xsimd::abs(B::load_aligned(panel + d * P + v + i * Q)));
    }
    RECOPS_UNROLL
    for (Index i = 0; i < 4; ++i) {
      const auto tiny = most[i] < B(0x1p-100f);
      step[i] = xsimd::select(tiny, B(0.0f), most[i] / B(127.0f));
      factor[i] = xsimd::select(tiny, B(0.0f), B(127.0f) / xsimd::max(most[i], B(0x1p-100f)));
      step[i].store_aligned(steps + v + i * Q);
    }
    for (Index d = 0; d < cols; ++d) {
      I word(0);
      RECOPS_UNROLL
      for (int i = 0; i < 4; ++i) {  // adding 1.5 * 2^23 rounds to an integer, ties to even
        const B x = factor[i] * B::load_aligned(panel + d * P + v + i * Q);
        const I code = bits_as<std::int32_t>(B(xsimd::max(xsimd::min(x, B(127.0f)), B(-127.0f)) + B(0x1.8p23f))) - I(0x4B400000);
        word = word | I((code & I(0xFF)) << (8 * i));
      }
      word.store_aligned(reinterpret_cast<std::int32_t*>(words + d * Q + v));
      B x[4];
      detail::load_panel_words<std::int8_t, A>(words + d * Q + v, x);
      RECOPS_UNROLL
      for (Index i = 0; i < 4; ++i) square[i] = mul_add(x[i], x[i], square[i]);
    }
    RECOPS_UNROLL
    for (Index i = 0; i < 4; ++i) square[i].store_aligned(squares + v + i * Q);
  }
}

namespace detail {

/// Sums that a product of a row with a vector is made of: two, of even and odd columns, where the rows of a panel alone are too few
/// to hide the latency of an fma.
template <class T, class A>
inline constexpr int panel_sums = panel_width<T> / lanes<T, A> < 8 ? 2 : 1;
/// Columns that are summed in one chain: what is small beside the sum of a longer one would be lost, and the product of a row with
/// its own direction be further from its length than the share that selectors take for nothing.
inline constexpr Index panel_run = 64;
/// Vectors that one pass over a panel multiplies at most: eight chains, and at least one word vector of each part.
template <class T, class A, class S>
inline constexpr int panel_queries = registers<A> / 2 / panel_sums<T, A> / static_cast<int>(panel_parts<T, S>) < 4
                                         ? registers<A> / 2 / panel_sums<T, A> / static_cast<int>(panel_parts<T, S>)
                                         : 4;

}  // namespace detail

/// Products of a panel (of T stored as S) with `Queries` vectors (`queries + q * stride`, `cols` numbers each): calls
/// use(query, first lane, products) for every register of them. Each product sums the columns in the same order, whatever goes with
/// it. Where the panel is not full, `rows` says how many rows it has: registers without any may be left out.
template <class T, class A, int Queries, class S = T, class F>
RECOPS_INLINE void panel_products(const PanelWord<T, S>* panel, Index cols, const T* queries, Index stride, F&& use,
                                  Index rows = panel_width<T>) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, words = panel_words<T, S>;
  constexpr int parts = static_cast<int>(panel_parts<T, S>), sums = detail::panel_sums<T, A>;
  constexpr int all = static_cast<int>(words / W), most = registers<A> / 2 / (sums * parts * Queries);
  constexpr int V = all < most ? all : most, vectors = V * parts * Queries;  // V: word vectors at once
  static_assert(V > 0 && all % V == 0);
  for (Index v = 0; v < words && v < rows; v += V * W) {
    B total[vectors];
    RECOPS_UNROLL
    for (int i = 0; i < vectors; ++i) total[i] = B(T(0));
    const auto column = [&](Index d, B(&into)[vectors]) RECOPS_LAMBDA_INLINE {
      B factor[Queries];
      RECOPS_UNROLL
      for (int q = 0; q < Queries; ++q) factor[q] = B(queries[q * stride + d]);
      RECOPS_UNROLL
      for (int i = 0; i < V; ++i) {
        B x[parts];
        detail::load_panel_words<S>(panel + d * words + v + i * W, x);
        RECOPS_UNROLL
        for (int part = 0; part < parts; ++part) {
          if (Queries > 1) x[part] = detail::in_register(x[part]);  // else loaded again for every vector
          RECOPS_UNROLL
          for (int q = 0; q < Queries; ++q) {
            B& s = into[(i * parts + part) * Queries + q];
            s = mul_add(x[part], factor[q], s);
          }
        }
      }
    };
    for (Index d = 0; d < cols;) {
      const Index last = cols - d < detail::panel_run ? cols : d + detail::panel_run;
      B sum[sums][vectors];
      RECOPS_UNROLL
      for (int s = 0; s < sums; ++s) {
        RECOPS_UNROLL
        for (int i = 0; i < vectors; ++i) sum[s][i] = B(T(0));
      }
      for (; d + sums <= last; d += sums) {
        RECOPS_UNROLL
        for (int s = 0; s < sums; ++s) column(d + s, sum[s]);
      }
      if (d < last) column(d++, sum[0]);
      RECOPS_UNROLL
      for (int i = 0; i < vectors; ++i) total[i] = total[i] + (sums == 1 ? sum[0][i] : sum[0][i] + sum[sums - 1][i]);
    }
    RECOPS_UNROLL
    for (int i = 0; i < V; ++i) {
      RECOPS_UNROLL
      for (int part = 0; part < parts; ++part) {
        RECOPS_UNROLL
        for (int q = 0; q < Queries; ++q) {
          use(q, v + i * W + part * words, total[(i * parts + part) * Queries + q]);
        }
      }
    }
  }
}

/// The same for any number of vectors.
template <class T, class A, class S = T, class F>
RECOPS_INLINE void panel_products(const PanelWord<T, S>* panel, Index cols, const T* queries, Index stride, Index count, F&& use,
                                  Index rows = panel_width<T>) {
  constexpr int most = detail::panel_queries<T, A, S>;
  Index first = 0;
  const auto part = [&](int q, Index lane, Batch<T, A> c) RECOPS_LAMBDA_INLINE { use(first + q, lane, c); };
  if constexpr (most >= 4) {
    for (; first + 4 <= count; first += 4) panel_products<T, A, 4, S>(panel, cols, queries + first * stride, stride, part, rows);
  }
  if constexpr (most >= 2) {
    for (; first + 2 <= count; first += 2) panel_products<T, A, 2, S>(panel, cols, queries + first * stride, stride, part, rows);
  }
  for (; first < count; ++first) panel_products<T, A, 1, S>(panel, cols, queries + first * stride, stride, part, rows);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
