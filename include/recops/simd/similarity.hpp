/// @file   recops/simd/similarity.hpp
/// @brief  Inner products and cosines of queries with many stored rows: float, double, BFloat16, Float16 or int8.
///
///     dot_n,l = <q_n, row_l>          cosine_n,l = <q_n, row_l> / (|q_n| |row_l|)
///
/// Shapes      query [D] or queries [N, D]   rows [L, D], any row stride   scores [L] or [N, L]   norms [L]
/// Precision   T = float (or double) products and sums, whatever rows are stored in: D / lanes + log2(lanes) + 1 roundings, in
///             one order: a score has the same bits wherever its row stands, alone or among others, scanned or gathered.
/// Edge cases  A cosine with a row or query no longer than 1e-10 (double: 1e-12) is 0. L = 0, N = 0 do nothing; D = 0 gives 0.
/// NaN         A NaN or infinity stays in the scores of its own row and query. A cosine is NaN where a squared length overflows.
/// Cost        2 N L D flops; the rows are read once, also for several queries. From about 32 queries on a gemm is faster.
///             Nothing is allocated.
/// Errors      Error if shapes disagree; outputs untouched. Gathering only asserts that indices lie in [0, L): check them before.
#pragma once
#include <cmath>
#include <recops/simd/quantize.hpp>
#include <recops/simd/reduce.hpp>
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Bytes from which rows come from memory, where asking ahead helps; in caches it costs.
inline constexpr Index distant_bytes = Index{4} << 20;

/// What a tile asks for ahead of its own rows; nothing where `at` is 0. Addresses as integers: some lie behind the end.
struct Ahead {
  std::uintptr_t at = 0;                         // for the first row of the tile
  std::uintptr_t group = 0, row = 0, chunk = 0;  // bytes from group to group of rows, row to row, vector to vector
};

RECOPS_INLINE void prefetch(std::uintptr_t at) { __builtin_prefetch(reinterpret_cast<const void*>(at)); }

/// Rows of floats, doubles, BFloat16 or Float16.
template <class S>
struct PlainRows {
  using Stored = S;
  const S* data;
  Index count, cols, stride;

  explicit PlainRows(MatrixView<const S> x) : data(x.data()), count(x.rows()), cols(x.cols()), stride(x.stride()) {}
  bool far() const { return count * cols * Index{sizeof(S)} >= distant_bytes; }
};

/// Rows of int8 codes.
struct CodeRows : PlainRows<std::int8_t> {
  const float* scales;
  Index scale_stride, width, blocks;

  explicit CodeRows(const QuantizedView& x)
      : PlainRows(x.codes), scales(x.scales.data()), scale_stride(x.scales.stride()), width(x.width()), blocks(x.blocks()) {}
};

/// What a tile computes of its rows.
enum TileSums { tile_dots = 1, tile_squares = 2 };

/// Rows of a tile that follow each other.
template <class S>
struct Following {
  const S* first;
  Index stride;
  RECOPS_INLINE const S* row(int r) const { return first + r * stride; }
  /// The rows from r on. The compiler must not see where they come from: it would keep the addresses of all rows of a tile at
  /// once, for which there are not registers enough.
  RECOPS_INLINE Following from(int r) const {
    const S* p = first + r * stride;
    __asm__("" : "+r"(p));
    return {p, stride};
  }
};
/// Rows of a tile that stand anywhere.
template <class S>
struct Scattered {
  const S* const* rows;
  RECOPS_INLINE const S* row(int r) const { return rows[r]; }
  RECOPS_INLINE Scattered from(int r) const { return {rows + r}; }
};

template <class T, class A>
inline constexpr int rows_at_once = lanes<T, A> < 4 ? static_cast<int>(lanes<T, A>) : 4;

/// Products of a query with `lanes<T>` rows and (or) the rows' squared lengths, row r in lane r. Columns come in blocks of
/// `width`, those of a row multiplied by the scales at scale[r], where `Scaled`. Every row is summed in the same order: vector by
/// vector.
template <class T, class A, int Sums, bool Scaled, class Rows>
RECOPS_INLINE void score_tile(const T* q, const Rows& rows, const float* const* scale, Index width, Index cols,
                              const Ahead& ahead, Batch<T, A>& dots, Batch<T, A>& squares) {
  using B = Batch<T, A>;
  constexpr int W = static_cast<int>(lanes<T, A>), R = rows_at_once<T, A>;
  B dot[W], square[W];
  RECOPS_UNROLL
  for (int g = 0; g < W; g += R) {
    B d[R], s[R], factor[R];
    const auto part = rows.from(g);
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) d[r] = s[r] = factor[r] = B(T(0));
    const auto add = [&](int r, B x, B v) RECOPS_LAMBDA_INLINE {
      if constexpr (Scaled) v = v * factor[r];
      if constexpr ((Sums & tile_dots) != 0) d[r] = mul_add(x, v, d[r]);
      if constexpr ((Sums & tile_squares) != 0) s[r] = mul_add(v, v, s[r]);
    };
    std::uintptr_t next = ahead.at + static_cast<std::uintptr_t>(g / R) * ahead.group;
    Index c = 0, block = 0;
    do {
      const Index end = Scaled && cols - c > width ? c + width : cols;
      if constexpr (Scaled) {
        RECOPS_UNROLL
        for (int r = 0; r < R; ++r) factor[r] = B(static_cast<T>(scale[g + r][block]));
      }
      for (; c + W <= end; c += W) {
        if (ahead.at != 0) {
          RECOPS_UNROLL
          for (int r = 0; r < R; ++r) prefetch(next + static_cast<std::uintptr_t>(r) * ahead.row);
          next += ahead.chunk;
        }
        const B x = (Sums & tile_dots) != 0 ? B::load_unaligned(q + c) : B(T(0));
        RECOPS_UNROLL
        for (int r = 0; r < R; ++r) add(r, x, load_as<T, A>(part.row(r) + c));
      }
      if (c < end) {
        const B x = (Sums & tile_dots) != 0 ? load_first<T, A>(q + c, end - c) : B(T(0));
        RECOPS_UNROLL
        for (int r = 0; r < R; ++r) add(r, x, load_first_as<T, A>(part.row(r) + c, end - c));
        c = end;
      }
      ++block;
    } while (c < cols);
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) dot[g + r] = d[r], square[g + r] = s[r];
  }
  if constexpr ((Sums & tile_dots) != 0) dots = sum_each(dot);
  if constexpr ((Sums & tile_squares) != 0) squares = sum_each(square);
}

/// The same sums for rows of exactly `Vectors` vectors, the query in registers. With `Far` the lines at `next` and what follows
/// are asked for one by one, between the additions.
template <int Vectors, bool Far, class T, class A, class S>
RECOPS_INLINE Batch<T, A> short_tile(const Batch<T, A> (&q)[Vectors], const Following<S>& rows, std::uintptr_t next) {
  using B = Batch<T, A>;
  constexpr int W = static_cast<int>(lanes<T, A>);
  B dot[W];
  RECOPS_UNROLL
  for (int r = 0; r < W; ++r) {
    B d(T(0));
    RECOPS_UNROLL
    for (int v = 0; v < Vectors; ++v) {
      if constexpr (Far) prefetch(next + static_cast<std::uintptr_t>(r * Vectors + v) * W * sizeof(S));
      d = mul_add(q[v], load_as<T, A>(rows.row(r) + v * W), d);
    }
    dot[r] = d;
  }
  return sum_each(dot);
}

/// What to ask for ahead of `lanes` rows in order from `first` on, read `together` at a time in vectors of `chunk` bytes.
template <class S>
RECOPS_INLINE Ahead look_ahead(const S* first, Index row_length, Index row_stride, std::uintptr_t chunk, int together) {
  // Small rows take longer per byte: their tiles look further ahead. Memory likes to be asked line by line, so contiguous rows
  // are asked for in order of address, whatever the order in which a tile reads its own. What lies behind the end is never read.
  constexpr std::uintptr_t size = sizeof(S), distance = size == 1 ? 8192 : 4096;
  const auto length = static_cast<std::uintptr_t>(row_length) * size, stride = static_cast<std::uintptr_t>(row_stride) * size;
  const auto rows = static_cast<std::uintptr_t>(together);
  const auto at = reinterpret_cast<std::uintptr_t>(first);
  if (stride - length < 64) return {at + distance, rows * stride, chunk, rows * chunk};
  return {at + (distance / length + 1) * stride, rows * stride, stride, chunk};
}

/// Asks for the rows that follow in a list, so that scattered rows come together.
template <class Source, class At>
RECOPS_INLINE void prefetch_scattered(const Source& x, Index begin, Index end, const At& at) {
  using S = typename Source::Stored;
  for (Index i = begin; i < end; ++i) {
    const auto p = reinterpret_cast<std::uintptr_t>(x.data + at(i) * x.stride);
    for (std::uintptr_t b = 0; b < static_cast<std::uintptr_t>(x.cols) * sizeof(S); b += 64) prefetch(p + b);
  }
}

/// The places of a scan: row i is at place i.
struct InOrder {
  RECOPS_INLINE Index operator()(Index i) const { return i; }
};

/// The places of a scan that reads `count` rows as `lanes` streams, which come faster from memory than one: lane r of tile g holds
/// row r * apart + g. The rows left over come last.
template <class T, class A>
struct InStreams {
  static constexpr Index W = lanes<T, A>;
  Index apart;

  explicit InStreams(Index count) : apart(count / W) {
    if (apart > 64) apart -= (apart + 1) % 16;  // rows of a tile should not all want the same places of L1
  }
  RECOPS_INLINE Index operator()(Index i) const { return i < apart * W ? i % W * apart + i / W : i; }
};

template <class At>
inline constexpr bool in_streams = false;
template <class T, class A>
inline constexpr bool in_streams<InStreams<T, A>> = true;

/// Tiles whose rows are a stride apart: how many of the places that `at` has begin with such, and the rows of the tile at place i.
template <class At>
RECOPS_INLINE Index regular_places(const At& at, Index count) {
  if constexpr (in_streams<At>) return at.apart * At::W;
  return count;
}
template <class Source, class At>
RECOPS_INLINE auto regular_tile(const Source& x, const At& at, Index i) {
  using Rows = Following<typename Source::Stored>;
  if constexpr (in_streams<At>) {
    return Rows{x.data + i / At::W * x.stride, at.apart * x.stride};
  } else {
    return Rows{x.data + i * x.stride, x.stride};
  }
}

/// What stands beside the rows at(i) .. at(i + height - 1), e.g. their only scales, in lanes.
template <class T, class A, class S, class At>
RECOPS_INLINE Batch<T, A> beside_rows(const S* x, Index stride, Index i, Index height, const At& at) {
  constexpr Index W = lanes<T, A>;
  if constexpr (std::is_same_v<At, InOrder> && std::is_same_v<T, S>) {
    if (stride == 1 && height == W) return Batch<T, A>::load_unaligned(x + i);
  }
  alignas(64) T lane[W] = {};
  for (Index r = 0; r < height; ++r) lane[r] = static_cast<T>(x[at(i + r) * stride]);
  return Batch<T, A>::load_aligned(lane);
}
template <class T, class A, class At>
RECOPS_INLINE Batch<T, A> row_scales(const CodeRows& x, Index i, Index height, const At& at) {
  return beside_rows<T, A>(x.scales, x.scale_stride, i, height, at);
}

/// Scores of rows at(i) .. at(i + height - 1), whatever their place.
template <int Sums, class T, class A, class Source, class At>
[[gnu::noinline]] void scattered_tile(const T* q, const Source& x, Index i, Index height, const At& at, Batch<T, A>& dots,
                                      Batch<T, A>& squares) {
  constexpr int W = static_cast<int>(lanes<T, A>);
  const typename Source::Stored* row[W];
  const Scattered<typename Source::Stored> rows{row};
  for (int r = 0; r < W; ++r) row[r] = x.data + at(r < height ? i + r : i + height - 1) * x.stride;
  if constexpr (std::is_same_v<Source, CodeRows>) {
    if (x.blocks > 1) {
      const float* scale[W];
      for (int r = 0; r < W; ++r) scale[r] = x.scales + at(r < height ? i + r : i + height - 1) * x.scale_stride;
      score_tile<T, A, Sums, true>(q, rows, scale, x.width, x.cols, Ahead{}, dots, squares);
      return;
    }
  }
  score_tile<T, A, Sums, false>(q, rows, nullptr, x.cols, x.cols, Ahead{}, dots, squares);
}

/// Calls `emit(n, i, height, dots, squares)` for every query n and every tile of rows at(i), at(i + 1), ... of `count`.
template <int Sums, class T, class A, class Source, class At, class Emit>
RECOPS_INLINE void score_tiles(const T* queries, Index n_queries, Index query_stride, const Source& x, Index count, const At& at,
                               const Emit& emit) {
  using S = typename Source::Stored;
  using B = Batch<T, A>;
  constexpr int W = static_cast<int>(lanes<T, A>), R = rows_at_once<T, A>;
  constexpr bool coded = std::is_same_v<Source, CodeRows>, streams = in_streams<At>,
                 regular = streams || std::is_same_v<At, InOrder>;
  const bool far = !streams && x.far();  // what asks for streams is the processor
  bool blocks = false;
  if constexpr (coded) blocks = x.blocks > 1;
  const auto scaled = [&](Index i, Index height, B& dots, B& squares) RECOPS_LAMBDA_INLINE {
    if constexpr (coded) {
      if (blocks) return;
      const B scale = row_scales<T, A>(x, i, height, at);
      if constexpr ((Sums & tile_dots) != 0) dots = dots * scale;
      if constexpr ((Sums & tile_squares) != 0) squares = squares * (scale * scale);
    }
  };
  Index i = 0;
  B dots(T(0)), squares(T(0));
  if constexpr (regular) {
    const Index whole = regular_places(at, count);
    if constexpr (Sums == tile_dots) {
      const auto few_vectors = [&]<int Vectors, bool Far>() RECOPS_LAMBDA_INLINE {
        B q[Vectors];
        RECOPS_UNROLL
        for (int v = 0; v < Vectors; ++v) q[v] = B::load_unaligned(queries + v * W);
        for (; i + W <= whole; i += W) {
          const Following<S> rows = regular_tile(x, at, i);
          dots = short_tile<Vectors, Far, T, A>(q, rows, reinterpret_cast<std::uintptr_t>(rows.first) + 4096);
          scaled(i, W, dots, squares);
          emit(0, i, W, dots, squares);
        }
      };
      if (n_queries == 1 && !blocks) {
        if (!far) {
          if (x.cols == 4 * W) few_vectors.template operator()<4, false>();
          if (x.cols == 8 * W) few_vectors.template operator()<8, false>();
        } else if constexpr (sizeof(S) >= 4) {  // smaller numbers come faster from the general tile
          if (x.cols == 4 * W && x.stride == x.cols) few_vectors.template operator()<4, true>();
          if (x.cols == 8 * W && x.stride == x.cols) few_vectors.template operator()<8, true>();
        }
      }
    }
    for (; i + W <= whole && !blocks; i += W) {
      const Following<S> rows = regular_tile(x, at, i);
      Ahead ahead = far ? look_ahead(rows.first, x.cols, x.stride, W * sizeof(S), R) : Ahead{};
      for (Index n = 0; n < n_queries; ++n) {
        score_tile<T, A, Sums, false>(queries + n * query_stride, rows, nullptr, x.cols, x.cols, ahead, dots, squares);
        scaled(i, W, dots, squares);
        emit(n, i, W, dots, squares);
        ahead.at = 0;  // once is enough
      }
    }
  }
  for (; i < count; i += W) {
    const Index height = count - i < W ? count - i : W, next = i + height + W < count ? i + height + W : count;
    if (far) prefetch_scattered(x, i + height, next, at);
    for (Index n = 0; n < n_queries; ++n) {
      scattered_tile<Sums, T, A>(queries + n * query_stride, x, i, height, at, dots, squares);
      scaled(i, height, dots, squares);
      emit(n, i, height, dots, squares);
    }
  }
}

/// As many int32 as a vector holds.
template <class A>
inline constexpr int int_lanes = static_cast<int>(lanes<std::int32_t, A>);

#if defined(__SSE2__)
RECOPS_INLINE __m128i sum_each_int(const __m128i* x) {
  const __m128i a = _mm_add_epi32(_mm_unpacklo_epi32(x[0], x[1]), _mm_unpackhi_epi32(x[0], x[1]));
  const __m128i b = _mm_add_epi32(_mm_unpacklo_epi32(x[2], x[3]), _mm_unpackhi_epi32(x[2], x[3]));
  return _mm_add_epi32(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
}
#endif
#if defined(__AVX2__)
/// In either half: the sums of that half of x[0] .. x[3], and of x[4] .. x[7]. Not by horizontal additions, as `sum_each`; and
/// blends are free where shuffles are not.
RECOPS_INLINE void sum_each_half(const __m256i* x, __m256i* w) {
  __m256i u[4];
  RECOPS_UNROLL
  for (int i = 0; i < 4; ++i)
    u[i] = _mm256_add_epi32(_mm256_blend_epi32(x[2 * i], x[2 * i + 1], 0xcc), _mm256_alignr_epi8(x[2 * i + 1], x[2 * i], 8));
  RECOPS_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m256 a = _mm256_castsi256_ps(u[2 * i]), b = _mm256_castsi256_ps(u[2 * i + 1]);
    w[i] =
        _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)));
  }
}
RECOPS_INLINE __m256i sum_each_int(const __m256i* x) {
  __m256i w[2];
  sum_each_half(x, w);
  return _mm256_add_epi32(_mm256_permute2x128_si256(w[0], w[1], 0x20), _mm256_permute2x128_si256(w[0], w[1], 0x31));
}
#endif
#if defined(__AVX512BW__)
RECOPS_INLINE __m512i sum_each_int(const __m512i* x) {
  __m512i u[8], w[4], y[2];
  RECOPS_UNROLL
  for (int i = 0; i < 8; ++i)
    u[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
  RECOPS_UNROLL
  for (int i = 0; i < 4; ++i)
    w[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(u[2 * i], u[2 * i + 1]), _mm512_unpackhi_epi64(u[2 * i], u[2 * i + 1]));
  RECOPS_UNROLL
  for (int i = 0; i < 2; ++i)
    y[i] =
        _mm512_add_epi32(_mm512_shuffle_i32x4(w[2 * i], w[2 * i + 1], 0x88), _mm512_shuffle_i32x4(w[2 * i], w[2 * i + 1], 0xdd));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(y[0], y[1], 0x88), _mm512_shuffle_i32x4(y[0], y[1], 0xdd));
}
#endif

/// What the integer tile needs of an instruction set: a vector of codes widened to sixteen bits, and products added in pairs.
template <class A>
struct IntProducts {
  static constexpr bool vector = false;
};
#if defined(__SSE2__)
template <class A>
requires(has_sse2<A>&& int_lanes<A> == 4) struct IntProducts<A> {
  static constexpr bool vector = true;
  using V = __m128i;
  RECOPS_INLINE static V zero() { return _mm_setzero_si128(); }
  RECOPS_INLINE static V query(const std::int16_t* q) { return _mm_loadu_si128(reinterpret_cast<const V*>(q)); }
  RECOPS_INLINE static V codes(const std::int8_t* p) {
    const V v = _mm_loadl_epi64(reinterpret_cast<const V*>(p));
    return _mm_srai_epi16(_mm_unpacklo_epi8(v, v), 8);
  }
  RECOPS_INLINE static V add(V sum, V a, V b) { return _mm_add_epi32(sum, _mm_madd_epi16(a, b)); }
  RECOPS_INLINE static void store(std::int32_t* p, V v) { _mm_storeu_si128(reinterpret_cast<V*>(p), v); }
};
#endif
#if defined(__AVX2__)
template <class A>
requires(has_avx2<A>&& int_lanes<A> == 8) struct IntProducts<A> {
  static constexpr bool vector = true;
  using V = __m256i;
  RECOPS_INLINE static V zero() { return _mm256_setzero_si256(); }
  RECOPS_INLINE static V query(const std::int16_t* q) { return _mm256_loadu_si256(reinterpret_cast<const V*>(q)); }
  RECOPS_INLINE static V codes(const std::int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  RECOPS_INLINE static V add(V sum, V a, V b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  RECOPS_INLINE static void store(std::int32_t* p, V v) { _mm256_storeu_si256(reinterpret_cast<V*>(p), v); }
};
#endif
#if defined(__AVX512BW__)
template <class A>
requires(std::is_base_of_v<xsimd::avx512bw, A>) struct IntProducts<A> {
  static constexpr bool vector = true;
  using V = __m512i;
  RECOPS_INLINE static V zero() { return _mm512_setzero_si512(); }
  RECOPS_INLINE static V query(const std::int16_t* q) { return _mm512_loadu_si512(q); }
  RECOPS_INLINE static V codes(const std::int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  RECOPS_INLINE static V add(V sum, V a, V b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
  }
  RECOPS_INLINE static void store(std::int32_t* p, V v) { _mm512_storeu_si512(p, v); }
};
#endif

/// Integer products of a quantised query with as many rows of codes as a vector has int32: exact, so the same on every set.
/// `P` > 1: row r is for the query at q + r % P * apart.
template <class A, int P = 1, class Rows>
RECOPS_INLINE Words<A> int_tile(const std::int16_t* q, const Rows& rows, Index cols, Index apart = 0) {
  using I = IntProducts<A>;
  constexpr int W = int_lanes<A>;
  if constexpr (I::vector) {
    constexpr int R = W < 4 ? W : 4;
    typename I::V dot[W];
    RECOPS_UNROLL
    for (int g = 0; g < W; g += R) {
      typename I::V d[R];
      const auto part = rows.from(g);
      RECOPS_UNROLL
      for (int r = 0; r < R; ++r) d[r] = I::zero();
      Index c = 0;
      for (; c + 2 * W <= cols; c += 2 * W) {
        RECOPS_UNROLL
        for (int r = 0; r < R; ++r) d[r] = I::add(d[r], I::query(q + r % P * apart + c), I::codes(part.row(r) + c));
      }
      if (c < cols) {
        RECOPS_UNROLL
        for (int r = 0; r < R; ++r) {
          std::int8_t some[2 * W] = {};
          for (Index j = 0; j < 2 * W && c + j < cols; ++j) some[j] = part.row(r)[c + j];  // fewer: compilers want to see it
          d[r] = I::add(d[r], I::query(q + r % P * apart + c), I::codes(some));
        }
      }
      RECOPS_UNROLL
      for (int r = 0; r < R; ++r) dot[g + r] = d[r];
    }
    return sum_each_int(dot);
  } else {
    alignas(64) std::int32_t dots[W];
    for (int r = 0; r < W; ++r) {
      std::int32_t sum = 0;
      for (Index c = 0; c < cols; ++c) sum += std::int32_t{q[r % P * apart + c]} * rows.row(r)[c];
      dots[r] = sum;
    }
    return Words<A>::load_aligned(dots);
  }
}

/// Writes the first `count` lanes, of which there may be as many as lanes.
template <class T, class A>
RECOPS_INLINE void store_upto(T* p, Batch<T, A> v, Index count) {
  if (count == lanes<T, A>) {
    v.store_unaligned(p);
  } else {
    store_first(p, v, count);
  }
}

template <class T, class A, class Source, class At>
void dot_scores(const T* queries, Index n_queries, Index query_stride, const Source& x, Index count, const At& at, T* scores,
                Index score_stride) {
  score_tiles<tile_dots, T, A>(queries, n_queries, query_stride, x, count, at,
                               [=](Index n, Index i, Index height, Batch<T, A> dots, Batch<T, A>)
                                   RECOPS_LAMBDA_INLINE { store_upto(scores + n * score_stride + i, dots, height); });
}

/// A length below which a vector has no direction, squared.
template <class T>
inline constexpr T no_length_squared = std::is_same_v<T, float> ? T(1e-20) : T(1e-24);

/// 1 / |x| from the squared length; 0 for almost none, NaN for one that is not finite.
template <class T>
T inverse_norm(T square) {
  if (!(square <= std::numeric_limits<T>::max())) return std::numeric_limits<T>::quiet_NaN();
  return square <= no_length_squared<T> ? T(0) : T(1) / std::sqrt(square);
}

template <class T, class A, class Source>
void norms_of(const Source& x, T* norms) {
  score_tiles<tile_squares, T, A>(static_cast<const T*>(nullptr), 1, 0, x, x.count, InOrder{},
                                  [=](Index, Index i, Index height, Batch<T, A>, Batch<T, A> squares)
                                      RECOPS_LAMBDA_INLINE { store_upto(norms + i, Batch<T, A>(xsimd::sqrt(squares)), height); });
}

/// <q, row> / (|q| |row|) in each lane, from the product, 1 / |q| and |row|.
template <class T, class A>
RECOPS_INLINE Batch<T, A> cosine_of(Batch<T, A> dot, Batch<T, A> inverse, Batch<T, A> norm) {
  using B = Batch<T, A>;
  const B cosine = xsimd::select(norm <= B(std::sqrt(no_length_squared<T>)), B(T(0)), B(dot * inverse / norm));
  return xsimd::select(norm > B(std::numeric_limits<T>::max()), B(std::numeric_limits<T>::quiet_NaN()), cosine);
}

template <class T, class A, class Source, class At>
void cosine_scores(const T* queries, Index n_queries, Index query_stride, const Source& x, Index count, const At& at,
                   const T* norms, T* scores, Index score_stride) {
  using B = Batch<T, A>;
  const auto put = [=](Index n, Index i, Index height, B dots, B lengths) RECOPS_LAMBDA_INLINE {
    const T* q = queries + n * query_stride;
    store_upto(scores + n * score_stride + i, cosine_of(dots, B(inverse_norm(dot<T, A>(q, q, x.cols))), lengths), height);
  };
  if (norms != nullptr) {
    score_tiles<tile_dots, T, A>(queries, n_queries, query_stride, x, count, at,
                                 [=](Index n, Index i, Index height, B dots, B) RECOPS_LAMBDA_INLINE {
                                   put(n, i, height, dots, beside_rows<T, A>(norms, 1, i, height, at));
                                 });
  } else {
    score_tiles<tile_dots | tile_squares, T, A>(queries, n_queries, query_stride, x, count, at,
                                                [=](Index n, Index i, Index height, B dots, B squares)
                                                    RECOPS_LAMBDA_INLINE { put(n, i, height, dots, B(xsimd::sqrt(squares))); });
  }
}

/// The integer products of rows first .. first + height - 1, fewer than a tile.
template <class A>
[[gnu::noinline]] Words<A> last_int_tile(const std::int16_t* q, const CodeRows& x, Index first, Index height) {
  constexpr int W = int_lanes<A>;
  const std::int8_t* row[W];
  for (int r = 0; r < W; ++r) row[r] = x.data + (r < height ? first + r : first + height - 1) * x.stride;
  return int_tile<A>(q, Scattered<std::int8_t>{row}, x.cols);
}

/// Scaled integer products: `emit(i, height, products)` for every tile, products in lanes, before the scales of the rows. Short rows
/// from memory are read as four streams, which come faster than one, so tiles do not come in order.
template <class A, class Emit>
RECOPS_INLINE void int_products(const QuantizedQuery& q, const CodeRows& x, const Emit& emit) {
  constexpr Index W = int_lanes<A>;
  const bool far = x.far();
  const Index streams = far && x.cols < 128 ? 4 : 1;
  // Whole rows where rows lie apart, and never what the tile itself reads.
  const Index least = streams > 1 ? 1024 : std::max<Index>(2048, W * x.stride);
  const Index distance = x.stride - x.cols < 64 ? least : (least + x.stride - 1) / x.stride * x.stride;
  const Batch<float, A> scale(q.scale);
  const auto scan = [&](const auto cols) RECOPS_LAMBDA_INLINE {
    const auto tile = [&](Index i) RECOPS_LAMBDA_INLINE {
      const Following<std::int8_t> rows{x.data + i * x.stride, x.stride};
      if (far) {  // what lies behind the end is never read
        const auto next = reinterpret_cast<std::uintptr_t>(rows.first) + static_cast<std::uintptr_t>(distance);
        for (Index r = 0; r < W; ++r)
          for (Index b = 0; b < cols; b += 64) prefetch(next + static_cast<std::uintptr_t>(r * x.stride + b));
      }
      emit(i, W, scale * xsimd::to_float(int_tile<A>(q.codes, rows, cols)));
    };
    Index apart = x.count / W / streams;
    if (apart > 64) apart -= (apart + 1) % 8;  // streams should not all want the same places of L1
    for (Index t = 0; t < apart; ++t)
      for (Index s = 0; s < streams; ++s) tile((s * apart + t) * W);
    Index i = streams * apart * W;
    for (; i + W <= x.count; i += W) tile(i);
    if (const Index height = x.count - i; height > 0)
      emit(i, height, scale * xsimd::to_float(last_int_tile<A>(q.codes, x, i, height)));
  };
  if (x.cols == 64) {  // lengths that compilers know are up to 1.5 times as fast
    scan(std::integral_constant<Index, 64>());
  } else if (x.cols == 32) {
    scan(std::integral_constant<Index, 32>());
  } else {
    scan(x.cols);
  }
}

/// What functions over rows take, as what tiles read.
template <class S>
PlainRows<std::remove_const_t<S>> stored_rows(MatrixView<S> x) {
  return PlainRows<std::remove_const_t<S>>(x);
}
template <class S>
PlainRows<S> stored_rows(const Matrix<S>& x) {
  return PlainRows<S>(x.view());
}
inline CodeRows stored_rows(const QuantizedView& x) { return CodeRows(x); }

template <class S>
void check_rows(const char* operation, MatrixView<S> x, Index cols) {
  check_shape(operation, "rows", x, any_size, cols);
}
template <class S>
void check_rows(const char* operation, const Matrix<S>& x, Index cols) {
  check_shape(operation, "rows", x.view(), any_size, cols);
}
inline void check_rows(const char* operation, const QuantizedView& x, Index cols) {
  check_quantized(operation, "rows", x, any_size, cols);
}

}  // namespace detail

/// Rows that can be scored: a `MatrixView` or `Matrix` of float, double, BFloat16 or Float16, a `QuantizedView` or
/// `QuantizedRows`.
template <class X>
concept StoredRows = requires(const X& x) {
  detail::stored_rows(x);
};

/// scores [L] = <query, row_l>
template <Real T, class A = DefaultArch, StoredRows X>
void dot_rows(VectorView<const T> query, const X& rows, VectorView<T> scores) {
  check_size("dot_rows", "query", query, any_size);
  detail::check_rows("dot_rows", rows, query.size());
  const auto x = detail::stored_rows(rows);
  check_size("dot_rows", "scores", scores, x.count);
  detail::dot_scores<T, A>(query.data(), 1, 0, x, x.count, detail::InOrder{}, scores.data(), 0);
}

/// scores [N, L] = <query_n, row_l>, reading the rows once.
template <Real T, class A = DefaultArch, StoredRows X>
void dot_rows(MatrixView<const T> queries, const X& rows, MatrixView<T> scores) {
  check_shape("dot_rows", "queries", queries, any_size, any_size);
  detail::check_rows("dot_rows", rows, queries.cols());
  const auto x = detail::stored_rows(rows);
  check_shape("dot_rows", "scores", scores, queries.rows(), x.count);
  detail::dot_scores<T, A>(queries.data(), queries.rows(), queries.stride(), x, x.count, detail::InOrder{}, scores.data(),
                           scores.stride());
}

/// scores [n] = <query, row of index_i>. Indices must lie in [0, L); the same row may come more than once.
template <Real T, class A = DefaultArch, StoredRows X>
void dot_rows(VectorView<const T> query, const X& rows, IndexView indices, VectorView<T> scores) {
  check_size("dot_rows", "query", query, any_size);
  detail::check_rows("dot_rows", rows, query.size());
  check_size("dot_rows", "scores", scores, indices.size());
  detail::dot_scores<T, A>(
      query.data(), 1, 0, detail::stored_rows(rows), indices.size(), [=](Index i) RECOPS_LAMBDA_INLINE { return indices[i]; },
      scores.data(), 0);
}

/// scores [L] = <query, row_l> of a quantised query with int8 rows that have one scale each: exact integer products, then
/// scaled; up to 1.4 times as fast as a float query. Error if rows have more than one scale each.
template <class A = DefaultArch>
void dot_rows(const QuantizedQuery& query, const QuantizedView& rows, VectorView<float> scores) {
  check_quantized("dot_rows", "rows", rows, any_size, any_size);
  check_option("dot_rows", "rows", rows.blocks() == 1, "one scale a row", static_cast<double>(rows.blocks()));
  check_size("dot_rows", "scores", scores, rows.rows());
  const detail::CodeRows x(rows);
  detail::int_products<A>(query, x, [=](Index i, Index height, Batch<float, A> products) RECOPS_LAMBDA_INLINE {
    detail::store_upto(scores.data() + i, detail::row_scales<float, A>(x, i, height, detail::InOrder{}) * products, height);
  });
}

/// norms [L] = |row_l|, to be stored beside the rows.
template <Real T, class A = DefaultArch, StoredRows X>
void row_norms(const X& rows, VectorView<T> norms) {
  detail::check_rows("row_norms", rows, any_size);
  const auto x = detail::stored_rows(rows);
  check_size("row_norms", "norms", norms, x.count);
  detail::norms_of<T, A>(x, norms.data());
}

/// scores [L] = cosine of query and row_l. `norms` [L] are those of `row_norms`, or empty: then they are computed on the way (the
/// same bits, about twice the work).
template <Real T, class A = DefaultArch, StoredRows X>
void cosine_rows(VectorView<const T> query, const X& rows, VectorView<const T> norms, VectorView<T> scores) {
  check_size("cosine_rows", "query", query, any_size);
  detail::check_rows("cosine_rows", rows, query.size());
  const auto x = detail::stored_rows(rows);
  if (!norms.empty()) check_size("cosine_rows", "norms", norms, x.count);
  check_size("cosine_rows", "scores", scores, x.count);
  detail::cosine_scores<T, A>(query.data(), 1, 0, x, x.count, detail::InOrder{}, norms.empty() ? nullptr : norms.data(),
                              scores.data(), 0);
}

/// scores [N, L] = cosine of query_n and row_l, reading the rows once.
template <Real T, class A = DefaultArch, StoredRows X>
void cosine_rows(MatrixView<const T> queries, const X& rows, VectorView<const T> norms, MatrixView<T> scores) {
  check_shape("cosine_rows", "queries", queries, any_size, any_size);
  detail::check_rows("cosine_rows", rows, queries.cols());
  const auto x = detail::stored_rows(rows);
  if (!norms.empty()) check_size("cosine_rows", "norms", norms, x.count);
  check_shape("cosine_rows", "scores", scores, queries.rows(), x.count);
  detail::cosine_scores<T, A>(queries.data(), queries.rows(), queries.stride(), x, x.count, detail::InOrder{},
                              norms.empty() ? nullptr : norms.data(), scores.data(), scores.stride());
}

/// scores [n] = cosine of query and row of index_i; `norms` [L] belong to all rows. Indices must lie in [0, L).
template <Real T, class A = DefaultArch, StoredRows X>
void cosine_rows(VectorView<const T> query, const X& rows, VectorView<const T> norms, IndexView indices, VectorView<T> scores) {
  check_size("cosine_rows", "query", query, any_size);
  detail::check_rows("cosine_rows", rows, query.size());
  const auto x = detail::stored_rows(rows);
  if (!norms.empty()) check_size("cosine_rows", "norms", norms, x.count);
  check_size("cosine_rows", "scores", scores, indices.size());
  detail::cosine_scores<T, A>(
      query.data(), 1, 0, x, indices.size(), [=](Index i) RECOPS_LAMBDA_INLINE { return indices[i]; },
      norms.empty() ? nullptr : norms.data(), scores.data(), 0);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
