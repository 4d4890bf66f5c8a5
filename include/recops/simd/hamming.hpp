/// @file   recops/simd/hamming.hpp
/// @brief  Hamming distances between binary signatures, and the k nearest signatures for each of several queries.
///
///     distance(a, b) = number of bits in which a and b differ, 255 where all 256 do
///
/// Shapes      queries [N, words]   rows [L, words] of 64-bit words, 1 to 4   distances [N, L] bytes   indices [N, k]
/// Order       Nearest first, equal distances by the lower index.
/// Edge cases  Places that L cannot fill hold index -1 and distance 255.   k = 0, N = 0 and L = 0 select nothing.
/// How         A nibble of a row looks up how far it is from the nibbles of two queries at once: 16 byte shuffles give 64 distances of
///             64 bits; rows are spread into nibbles once for all queries. One or two queries (and processors without AVX2) count
///             bits row by row. Selection compares 128 distances at a time with the k-th best so
///             far; what passes is counted by distance, so that the bound is exact at every moment.
/// Cost        On AVX2 about a third of a cycle a distance of 64 bits, twice that with selection; worst for rows that come ever nearer.
///             Scratch: 32 k bytes a query. No allocation once it has grown.
/// Errors      Error if shapes disagree; outputs untouched. L < 2^31.
#pragma once
#include <algorithm>
#include <bit>
#include <cstring>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {
namespace detail {

inline constexpr Index hamming_tile = 128;
/// Rows between two looks at the selection of a query: their nibbles stay in L1.
constexpr Index hamming_block(Index words) { return words <= 2 ? 512 / words : 128; }

inline int word_distance(const std::uint64_t* a, const std::uint64_t* b, Index words) {
  int sum = 0;
  for (Index w = 0; w < words; ++w) sum += std::popcount(a[w] ^ b[w]);
  return sum < 255 ? sum : 255;
}

#if defined(__AVX2__)

/// Whether an instruction set has shuffles of 32 bytes.
template <class A>
inline constexpr bool shuffles_bytes = std::is_base_of_v<xsimd::avx2, A> || std::is_base_of_v<xsimd::avx512bw, A>;

/// planes[p * hamming_tile + i] = nibble p of row i, for one word of 128 rows from `row` on. Nibble 2 b is the low one of byte b.
inline void spread_nibbles(const std::uint64_t* row, Index stride, std::uint8_t* planes) {
  const __m256i interleave = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  const __m256i low = _mm256_set1_epi8(15);
  const auto pair = [&](Index i) RECOPS_LAMBDA_INLINE {
    if (stride == 1) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
    return _mm_set_epi64x(static_cast<long long>(row[(i + 1) * stride]), static_cast<long long>(row[i * stride]));
  };
  for (Index half = 0; half < hamming_tile; half += 32) {
    __m256i a[8], b[8];  // rows 2 i, 2 i + 1 in the low half of a register, 16 further in the high one; their bytes side by side
    RECOPS_UNROLL
    for (int i = 0; i < 8; ++i) {
      const Index at = half + 2 * i;
      a[i] = _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(pair(at)), pair(at + 16), 1), interleave);
    }
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
      b[2 * i + 1] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i) {
      RECOPS_UNROLL
      for (int j = 0; j < 2; ++j) {
        a[4 * i + 2 * j] = _mm256_unpacklo_epi32(b[4 * i + j], b[4 * i + 2 + j]);
        a[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(b[4 * i + j], b[4 * i + 2 + j]);
      }
    }
    RECOPS_UNROLL
    for (int j = 0; j < 4; ++j) {
      b[2 * j] = _mm256_unpacklo_epi64(a[j], a[4 + j]);
      b[2 * j + 1] = _mm256_unpackhi_epi64(a[j], a[4 + j]);
    }
    RECOPS_UNROLL
    for (int byte = 0; byte < 8; ++byte) {
      auto* const to = reinterpret_cast<__m256i*>(planes + 2 * byte * hamming_tile + half);
      _mm256_store_si256(to, _mm256_and_si256(b[byte], low));
      _mm256_store_si256(to + hamming_tile / 32, _mm256_and_si256(_mm256_srli_epi16(b[byte], 4), low));
    }
  }
}

/// tables[p * 16 + x] = how many bits nibble p of the first query differs from x in, and 16 times as much for the second.
inline void nibble_tables(const std::uint64_t* first, const std::uint64_t* second, Index words, std::uint8_t* tables) {
  const auto differ = [](const std::uint64_t* query, Index p, unsigned x) {
    return std::popcount(((query[p / 16] >> (p % 16 * 4)) ^ x) & 15u);
  };
  for (Index p = 0; p < 16 * words; ++p)
    for (unsigned x = 0; x < 16; ++x) *tables++ = static_cast<std::uint8_t>(differ(first, p, x) + 16 * differ(second, p, x));
}

/// Distances of two queries to 128 rows. Three lookups of at most 4 fit into half a byte.
inline void hamming_product(const std::uint8_t* planes, const std::uint8_t* tables, Index words, std::uint8_t* first,
                            std::uint8_t* second) {
  constexpr int S = hamming_tile / 32;
  const __m256i low = _mm256_set1_epi8(15);
  __m256i a[S], b[S];
  RECOPS_UNROLL
  for (int s = 0; s < S; ++s) a[s] = b[s] = _mm256_setzero_si256();
  for (Index w = 0; w < words; ++w, planes += 16 * hamming_tile, tables += 256) {
    __m256i both[S];
    const auto look_up = [&](int p, bool begin) RECOPS_LAMBDA_INLINE {
      const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(tables + 16 * p)));
      RECOPS_UNROLL
      for (int s = 0; s < S; ++s) {
        const auto* const nibbles = reinterpret_cast<const __m256i*>(planes + p * hamming_tile + 32 * s);
        const __m256i found = _mm256_shuffle_epi8(table, _mm256_load_si256(nibbles));
        both[s] = begin ? found : _mm256_add_epi8(both[s], found);
      }
    };
    const auto part = [&]() RECOPS_LAMBDA_INLINE {
      RECOPS_UNROLL
      for (int s = 0; s < S; ++s) {
        a[s] = _mm256_adds_epu8(a[s], _mm256_and_si256(both[s], low));
        b[s] = _mm256_adds_epu8(b[s], _mm256_and_si256(_mm256_srli_epi16(both[s], 4), low));
      }
    };
    RECOPS_UNROLL
    for (int p = 0; p < 15; p += 3) {
      look_up(p, true);
      look_up(p + 1, false);
      look_up(p + 2, false);
      part();
    }
    look_up(15, true);
    part();
  }
  RECOPS_UNROLL
  for (int s = 0; s < S; ++s) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(first + 32 * s), a[s]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(second + 32 * s), b[s]);
  }
}

/// Distances of one query to 32 rows of one word.
inline void hamming_32(std::uint64_t query, const std::uint64_t* row, std::uint8_t* out) {
  const __m256i q = _mm256_set1_epi64x(static_cast<long long>(query)), low = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  __m256i sum[8], pairs[4];  // of four rows each, in 64 bits
  RECOPS_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m256i x = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 4 * i)), q);
    const __m256i bits = _mm256_add_epi8(_mm256_shuffle_epi8(ones, _mm256_and_si256(x, low)),
                                         _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
    sum[i] = _mm256_sad_epu8(bits, _mm256_setzero_si256());
  }
  RECOPS_UNROLL
  for (int i = 0; i < 4; ++i) pairs[i] = _mm256_or_si256(sum[2 * i], _mm256_slli_epi64(sum[2 * i + 1], 32));
  // Bytes a0 b0 a1 b1 c0 d0 ... of rows 0, 1 of every four in the low half, of rows 2, 3 in the high one.
  const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(pairs[0], pairs[1]), _mm256_packus_epi32(pairs[2], pairs[3]));
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  const __m256i ordered = _mm256_shuffle_epi8(bytes, order);
  const __m128i first = _mm256_castsi256_si128(ordered), second = _mm256_extracti128_si256(ordered, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi16(first, second));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_unpackhi_epi16(first, second));
}

#else
template <class A>
inline constexpr bool shuffles_bytes = false;
#endif

/// Bits word by word; `out` takes the distances of rows [first, first + count).
template <class A>
void hamming_words(const std::uint64_t* query, MatrixView<const std::uint64_t> rows, Index first, Index count,
                   std::uint8_t* out) {
  const std::uint64_t* row = rows.row(first);
  if (rows.cols() == 1 && rows.stride() == 1) {
    const std::uint64_t q = *query;
    Index i = 0;
#if defined(__AVX2__)
    if constexpr (shuffles_bytes<A>)
      for (; i + 32 <= count; i += 32) hamming_32(q, row + i, out + i);
#endif
    for (; i < count; ++i) out[i] = static_cast<std::uint8_t>(std::popcount(row[i] ^ q));
    return;
  }
  for (Index i = 0; i < count; ++i, row += rows.stride())
    out[i] = static_cast<std::uint8_t>(word_distance(row, query, rows.cols()));
}

/// For all queries, block of rows after block of rows in rising order: distances go to `place(query, first)`, then `visit(query, first,
/// count)` is called.
template <class A, class Place, class Visit>
void hamming_blocks(MatrixView<const std::uint64_t> queries, MatrixView<const std::uint64_t> rows, Workspace& ws, Place&& place,
                    Visit&& visit) {
  const Index n = queries.rows(), l = rows.rows(), words = rows.cols(), block = hamming_block(words);
#if defined(__AVX2__)
  if constexpr (shuffles_bytes<A>) {
    if (n > 2) {
      const auto mark = ws.mark();
      const Index pairs = (n + 1) / 2, table = 256 * words;
      auto *const tables = ws.take<std::uint8_t>(pairs * table), *const planes = ws.take<std::uint8_t>(16 * words * block);
      auto* const spare = ws.take<std::uint8_t>(block + 2 * hamming_tile);  // of a query that is not there, of rows past the end
      auto* const end = ws.take<std::uint64_t>(hamming_tile * words);       // the last rows, filled up to a tile
      for (Index g = 0; g < pairs; ++g)
        nibble_tables(queries.row(2 * g), queries.row(std::min(2 * g + 1, n - 1)), words, tables + g * table);
      for (Index first = 0; first < l; first += block) {
        const Index count = std::min(block, l - first);
        for (Index i = 0; i < count; i += hamming_tile) {
          const std::uint64_t* from = rows.row(first + i);
          Index stride = rows.stride();
          if (count - i < hamming_tile) {
            std::fill_n(end, hamming_tile * words, std::uint64_t{0});
            for (Index r = i; r < count; ++r) std::copy_n(rows.row(first + r), words, end + (r - i) * words);
            from = end;
            stride = words;
          }
          for (Index w = 0; w < words; ++w) spread_nibbles(from + w, stride, planes + (i * words + w * hamming_tile) * 16);
        }
        for (Index g = 0; g < pairs; ++g) {
          const bool two = 2 * g + 1 < n;
          std::uint8_t* const a = place(2 * g, first);
          std::uint8_t* const b = two ? place(2 * g + 1, first) : spare;
          for (Index i = 0; i < count; i += hamming_tile) {
            const bool whole = count - i >= hamming_tile;
            std::uint8_t *const edge = spare + block, *const other = edge + hamming_tile;
            hamming_product(planes + i * words * 16, tables + g * table, words, whole ? a + i : edge, whole ? b + i : other);
            if (whole) continue;
            std::copy_n(edge, count - i, a + i);
            std::copy_n(other, count - i, b + i);
          }
          visit(2 * g, first, count);
          if (two) visit(2 * g + 1, first, count);
        }
      }
      return;
    }
  }
#endif
  for (Index first = 0; first < l; first += block) {
    const Index count = std::min(block, l - first);
    for (Index q = 0; q < n; ++q) {
      hamming_words<A>(queries.row(q), rows, first, count, place(q, first));
      visit(q, first, count);
    }
  }
  static_cast<void>(ws);
}

/// The k nearest of the rows that come by in rising order of index. Counts what it keeps by distance: `limit` is exact.
class NearestRows {
 public:
  NearestRows(Index k, Workspace& ws) : k_(k), capacity_(std::max(4 * k, k + 512)) {
    index_ = ws.take<std::int32_t>(capacity_);
    distance_ = ws.take<std::uint8_t>(capacity_);
    of_distance_ = ws.take<std::int32_t>(256);
    std::fill_n(of_distance_, 256, 0);
  }

  template <class A>
  void add(Index first, Index count, const std::uint8_t* distances) {
    Index i = 0;
#if defined(__AVX2__)
    if constexpr (shuffles_bytes<A>) {
      const auto* const from = reinterpret_cast<const __m256i*>(distances);
      for (; i + 128 <= count && limit_ >= 0; i += 128) {
        const __m256i limit = _mm256_set1_epi8(static_cast<char>(limit_));
        __m256i near[4];
        RECOPS_UNROLL
        for (int u = 0; u < 4; ++u) {
          const __m256i d = _mm256_loadu_si256(from + i / 32 + u);
          near[u] = _mm256_cmpeq_epi8(_mm256_min_epu8(d, limit), d);
        }
        const __m256i any = _mm256_or_si256(_mm256_or_si256(near[0], near[1]), _mm256_or_si256(near[2], near[3]));
        if (_mm256_testz_si256(any, any)) [[likely]]
          continue;
        for (int u = 0; u < 4; ++u)
          for (auto bits = static_cast<std::uint32_t>(_mm256_movemask_epi8(near[u])); bits != 0; bits &= bits - 1) {
            const Index at = i + 32 * u + std::countr_zero(bits);
            offer(first + at, distances[at]);
          }
      }
    }
#endif
    for (; i < count && limit_ >= 0; ++i) offer(first + i, distances[i]);
  }

  /// Writes the selected, nearest first, and what fills the places left over; `distances` may be null.
  void finish(std::int32_t* indices, std::uint8_t* distances) {
    const Index count = std::min(k_, size_);
    std::fill_n(indices + count, k_ - count, -1);
    if (distances != nullptr) std::fill_n(distances + count, k_ - count, std::uint8_t{255});
    std::int32_t next[256], sum = 0;
    for (int d = 0; d < 256; ++d) {
      next[d] = sum;
      sum += of_distance_[d];
    }
    for (Index i = 0; i < size_; ++i) {  // in rising order of index
      const std::int32_t place = next[distance_[i]]++;
      if (place >= k_) continue;
      indices[place] = index_[i];
      if (distances != nullptr) distances[place] = distance_[i];
    }
  }

 private:
  void offer(Index index, std::uint8_t distance) {
    if (distance > limit_) return;
    index_[size_] = static_cast<std::int32_t>(index);
    distance_[size_++] = distance;
    ++of_distance_[distance];
    ++near_;
    while (near_ - of_distance_[kth_] >= k_) near_ -= of_distance_[kth_--];
    if (near_ >= k_) limit_ = kth_ - 1;
    if (size_ == capacity_) [[unlikely]]
      compact();
  }
  /// Leaves the k best.
  [[gnu::noinline]] void compact() {
    Index room = k_ - (near_ - of_distance_[kth_]), kept = 0;  // for rows at the distance of the k-th
    std::fill_n(of_distance_ + kth_, 256 - kth_, 0);
    for (Index i = 0; i < size_; ++i) {
      const int d = distance_[i];
      if (d > kth_ || (d == kth_ && room == 0)) continue;
      if (d == kth_) {
        --room;
        ++of_distance_[d];
      }
      index_[kept] = index_[i];
      distance_[kept++] = distance_[i];
    }
    size_ = near_ = kept;
  }

  Index k_, capacity_, size_ = 0;
  Index near_ = 0;   // kept rows at a distance of at most kth_
  int kth_ = 255;    // the least distance within which there are k rows, once there are
  int limit_ = 255;  // what is farther comes too late
  std::int32_t* index_;
  std::uint8_t* distance_;
  std::int32_t* of_distance_;  // [256], kept rows at each distance
};

inline void check_signatures(const char* operation, const char* argument, MatrixView<const std::uint64_t> x, Index words) {
  check_shape(operation, argument, x, any_size, words);
  check_option(operation, argument, x.cols() >= 1 && x.cols() <= 4, "1 to 4 words of 64 bits", static_cast<double>(x.cols()));
  check_option(operation, argument, x.rows() < Index{1} << 31, "fewer than 2^31 rows", static_cast<double>(x.rows()));
}

/// The nearest rows of some queries, on one thread; `indices` [N, k], `distances` alike or empty.
template <class A>
void hamming_top_k(MatrixView<const std::uint64_t> queries, MatrixView<const std::uint64_t> rows,
                   MatrixView<std::int32_t> indices, MatrixView<std::uint8_t> distances, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = queries.rows(), k = std::min(indices.cols(), rows.rows());
  auto* const best = ws.take<NearestRows>(n);
  for (Index q = 0; q < n; ++q) ::new (static_cast<void*>(best + q)) NearestRows(k, ws);
  if (k > 0) {
    const Index block = hamming_block(rows.cols());
    auto* const d = ws.take<std::uint8_t>(2 * block);
    hamming_blocks<A>(
        queries, rows, ws, [&](Index q, Index) { return d + q % 2 * block; },
        [&](Index q, Index first, Index count) { best[q].template add<A>(first, count, d + q % 2 * block); });
  }
  for (Index q = 0; q < n; ++q) {
    std::uint8_t* const d = distances.empty() ? nullptr : distances.row(q);
    best[q].finish(indices.row(q), d);
    std::fill(indices.row(q) + k, indices.row(q) + indices.cols(), -1);
    if (d != nullptr) std::fill(d + k, d + indices.cols(), std::uint8_t{255});
  }
}

/// Queries that share a pass over the rows.
inline Index hamming_queries(const Workspace& ws) { return ws.workers() > 1 ? 16 : 64; }

}  // namespace detail

/// All distances `[N, L]` of queries `[N, words]` to rows `[L, words]`.
template <class A = DefaultArch>
void hamming_distances(MatrixView<const std::uint64_t> queries, MatrixView<const std::uint64_t> rows,
                       MatrixView<std::uint8_t> distances, Workspace& ws) {
  constexpr const char* operation = "hamming_distances";
  detail::check_signatures(operation, "queries", queries, any_size);
  detail::check_signatures(operation, "rows", rows, queries.cols());
  check_shape(operation, "distances", distances, queries.rows(), rows.rows());
  const Index n = queries.rows(), chunk = detail::hamming_queries(ws);
  ws.parallel_for((n + chunk - 1) / chunk, [&](Index task, Workspace& scratch) {
    const Index q0 = task * chunk;
    detail::hamming_blocks<A>(
        queries.middle_rows(q0, std::min(chunk, n - q0)), rows, scratch,
        [&](Index q, Index first) { return distances.row(q0 + q) + first; }, [](Index, Index, Index) {});
  });
}

/// indices `[N, k]`: the k nearest rows of each query; `distances` `[N, k]` or empty.
template <class A = DefaultArch>
void hamming_top_k(MatrixView<const std::uint64_t> queries, MatrixView<const std::uint64_t> rows,
                   MatrixView<std::int32_t> indices, MatrixView<std::uint8_t> distances, Workspace& ws) {
  constexpr const char* operation = "hamming_top_k";
  detail::check_signatures(operation, "queries", queries, any_size);
  detail::check_signatures(operation, "rows", rows, queries.cols());
  check_shape(operation, "indices", indices, queries.rows(), any_size);
  if (!distances.empty()) check_shape(operation, "distances", distances, queries.rows(), indices.cols());
  const Index n = queries.rows(), chunk = detail::hamming_queries(ws);
  ws.parallel_for((n + chunk - 1) / chunk, [&](Index task, Workspace& scratch) {
    const Index q0 = task * chunk, count = std::min(chunk, n - q0);
    detail::hamming_top_k<A>(queries.middle_rows(q0, count), rows, indices.middle_rows(q0, count),
                             distances.empty() ? distances : distances.middle_rows(q0, count), scratch);
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
