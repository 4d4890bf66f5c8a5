/// @file   recops/simd/batched_top_k.hpp
/// @brief  The best stored rows for each of several queries by inner product, reading the rows (or a small copy of them) once.
///
/// What every query gets is what `scan_top_k` and `certified_top_k` (simd/certified_top_k.hpp) give it alone, to the bit: order, NaN,
/// exactness and formats as there. Each query asks for a number of rows of its own.
///
/// Shapes      queries [N, D]   rows [L, D]   counts [N] >= 0   indices [N, >= max counts]   scores like indices, or empty
/// Edge cases  Places behind a query's count are not touched; places that L cannot fill hold index -1 and score -infinity.
/// Cost        Each block of rows is scored for all queries while it is in cache: N D multiply-adds a row at about two thirds of the
///             machine's speed. Scratch: per query 64 counts bytes and, by way of a copy, 8 L bytes (touched only where rows are kept).
/// Errors      Error if shapes disagree; outputs untouched. L < 2^31.
#pragma once
#include <recops/simd/certified_top_k.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Rows of codes that several queries score before the next ones: they stay in L2.
inline constexpr Index code_block = 2048;

template <class T>
void check_batch(const char* operation, MatrixView<const T> queries, Index rows, VectorView<const Index> counts,
                 MatrixView<std::int32_t> indices, MatrixView<T> scores) {
  check_shape(operation, "queries", queries, any_size, any_size);
  check_option(operation, "rows", rows < Index{1} << 31, "fewer than 2^31 rows", static_cast<double>(rows));
  check_size(operation, "counts", counts, queries.rows());
  check_shape(operation, "indices", indices, queries.rows(), any_size);
  for (const Index k : counts)
    check_option(operation, "counts", 0 <= k && k <= indices.cols(), "counts from 0 to the columns of indices",
                 static_cast<double>(k));
  if (!scores.empty()) check_shape(operation, "scores", scores, queries.rows(), indices.cols());
}

template <class V>
VectorView<V> first_of_row(MatrixView<V> m, Index row, Index count) {
  return m.empty() ? VectorView<V>() : VectorView<V>(m.row(row), count);
}

/// `scan_top_k` for several queries. Blocks of scores pass through scratch.
template <class T, class A, class Source>
void scan_batch(MatrixView<const T> queries, const Source& x, VectorView<const Index> counts, MatrixView<std::int32_t> indices,
                MatrixView<T> scores, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = queries.rows();
  if (n == 1) {
    select_rows<T, A>(queries.row(0), x, {}, /*all=*/true, first_of_row(indices, 0, counts[0]),
                      first_of_row(scores, 0, counts[0]), ws);
    return;
  }
  auto* const best = ws.take<TopK<T, A>*>(n);
  auto* const room = ws.take<std::byte>(n * Index{sizeof(TopK<T, A>)});
  for (Index q = 0; q < n; ++q) {
    const Index k = counts[q] < x.count ? counts[q] : x.count;
    best[q] = ::new (static_cast<void*>(room + q * Index{sizeof(TopK<T, A>)})) TopK<T, A>(k, Order::descending, ws);
  }
  T* const blocks = ws.take<T>(n * scan_block);
  score_tiles<tile_dots, T, A>(queries.data(), n, queries.stride(), x, x.count, InOrder{},
                               [&](Index q, Index i, Index height, Batch<T, A> dots, Batch<T, A>) RECOPS_LAMBDA_INLINE {
                                 T* const block = blocks + q * scan_block;
                                 const Index at = i % scan_block, end = i + height;
                                 dots.store_aligned(block + at);
                                 if (end % scan_block == 0 || end == x.count) best[q]->add(block, at + height, i - at);
                               });
  for (Index q = 0; q < n; ++q)
    finish_selection(*best[q], first_of_row(indices, q, counts[q]), first_of_row(scores, q, counts[q]));
}

/// Scans a copy with `scan(survivors of every query)`, then scores for every query what is left to it. Returns the rows scored again.
template <class A, class Scan>
Index certify_batch(MatrixView<const float> queries, MatrixView<const float> rows, VectorView<const Index> counts,
                    MatrixView<std::int32_t> indices, MatrixView<float> scores, Workspace& ws, const Scan& scan) {
  using S = Survivors<A>;
  static_assert(std::is_trivially_destructible_v<S>);
  const Index n = queries.rows();
  auto* const survivors = ws.take<S*>(n);
  auto* const room = ws.take<std::byte>(n * Index{sizeof(S)});
  for (Index q = 0; q < n; ++q)
    survivors[q] = ::new (static_cast<void*>(room + q * Index{sizeof(S)})) S(counts[q], rows.rows(), ws);
  scan(survivors);
  Index rescored = 0;
  for (Index q = 0; q < n; ++q) {
    survivors[q]->finish();
    const auto left = survivors[q]->rows();
    rescored += left.size();
    select_rows<float, A>(queries.row(q), PlainRows<float>(rows), left, /*all=*/false, first_of_row(indices, q, counts[q]),
                          first_of_row(scores, q, counts[q]), ws);
  }
  return rescored;
}

/// Whether every query of a batch can gain from a copy.
inline bool worth_a_copy(VectorView<const Index> counts, Index rows) {
  for (const Index k : counts)
    if (!worth_a_copy(k, rows)) return false;
  return true;
}

}  // namespace detail

/// Rows in any format, as `scan_top_k` for one query. One query takes that very path.
template <Real T, class A = DefaultArch, StoredRows X>
void scan_top_k(MatrixView<const T> queries, const X& rows, VectorView<const Index> counts, MatrixView<std::int32_t> indices,
                MatrixView<T> scores, Workspace& ws) {
  detail::check_rows("scan_top_k", rows, queries.cols());
  const auto x = detail::stored_rows(rows);
  detail::check_batch("scan_top_k", queries, x.count, counts, indices, scores);
  if (queries.rows() > 0) detail::scan_batch<T, A>(queries, x, counts, indices, scores, ws);
}

/// By way of an int8 copy made by `quantize_rows` with one scale for each row. Returns how many rows were scored again, L for every
/// query if the copy was not used.
template <class A = DefaultArch>
Index certified_top_k(MatrixView<const float> queries, MatrixView<const float> rows, const QuantizedView& copy,
                      VectorView<const Index> counts, MatrixView<std::int32_t> indices, MatrixView<float> scores, Workspace& ws) {
  constexpr const char* operation = "certified_top_k";
  check_shape(operation, "rows", rows, any_size, queries.cols());
  detail::check_batch(operation, queries, rows.rows(), counts, indices, scores);
  check_quantized(operation, "copy", copy, rows.rows(), rows.cols());
  check_option(operation, "copy", copy.blocks() == 1, "one scale a row", static_cast<double>(copy.blocks()));
  const Index n = queries.rows(), cols = rows.cols(), count = rows.rows();
  if (n == 1)
    return certified_top_k<A>(VectorView<const float>(queries.row(0), cols), rows, copy,
                              detail::first_of_row(indices, 0, counts[0]), detail::first_of_row(scores, 0, counts[0]), ws)
        .rescored;
  if (!detail::worth_a_copy(counts, count)) {
    scan_top_k<float, A>(queries, rows, counts, indices, scores, ws);
    return n * count;
  }
  const auto mark = ws.mark();
  using B = Batch<float, A>;
  struct Query {
    QuantizedQuery words;
    float per_scale, rest;
  };
  auto* const query = ws.take<Query>(n);
  for (Index q = 0; q < n; ++q) {
    const float* const x = queries.row(q);
    auto* const codes = ws.take<std::int16_t>(query_codes_size(cols));
    query[q].words = quantize_query(x, cols, codes);
    double lost = 0;
    for (Index d = 0; d < cols; ++d)
      lost += std::abs(static_cast<double>(x[d]) - static_cast<double>(query[q].words.scale) * static_cast<double>(codes[d]));
    query[q].per_scale = detail::at_least(detail::code_error(x, cols, cols, lost));
    query[q].rest = detail::at_least(detail::underflow(cols, detail::sums_of(x, cols).absolute));
  }
  return detail::certify_batch<A>(queries, rows, counts, indices, scores, ws, [&](detail::Survivors<A>** survivors) {
    for (Index begin = 0; begin < count; begin += detail::code_block) {
      const Index height = count - begin < detail::code_block ? count - begin : detail::code_block;
      const detail::CodeRows part(copy.middle_rows(begin, height));
      for (Index q = 0; q < n; ++q) {
        const B per_scale(query[q].per_scale), rest(query[q].rest);
        detail::Survivors<A>& kept = *survivors[q];
        detail::int_products<A>(query[q].words, part, [&](Index i, Index rows_of_tile, B products) RECOPS_LAMBDA_INLINE {
          const B scale = detail::row_scales<float, A>(part, i, rows_of_tile, detail::InOrder{});
          kept.add(begin + i, rows_of_tile, scale * products, mul_add(scale, per_scale, rest));
        });
      }
    }
  });
}

/// By way of a BFloat16 copy and the `norms` [L] of the float rows by `row_norms`.
template <class A = DefaultArch>
Index certified_top_k(MatrixView<const float> queries, MatrixView<const float> rows, MatrixView<const BFloat16> copy,
                      VectorView<const float> norms, VectorView<const Index> counts, MatrixView<std::int32_t> indices,
                      MatrixView<float> scores, Workspace& ws) {
  constexpr const char* operation = "certified_top_k";
  check_shape(operation, "rows", rows, any_size, queries.cols());
  detail::check_batch(operation, queries, rows.rows(), counts, indices, scores);
  check_shape(operation, "copy", copy, rows.rows(), rows.cols());
  check_size(operation, "norms", norms, rows.rows());
  const Index n = queries.rows(), cols = rows.cols(), count = rows.rows();
  if (n == 1)
    return certified_top_k<A>(VectorView<const float>(queries.row(0), cols), rows, copy, norms,
                              detail::first_of_row(indices, 0, counts[0]), detail::first_of_row(scores, 0, counts[0]), ws)
        .rescored;
  if (!detail::worth_a_copy(counts, count)) {
    scan_top_k<float, A>(queries, rows, counts, indices, scores, ws);
    return n * count;
  }
  const auto mark = ws.mark();
  using B = Batch<float, A>;
  float *const per_norm = ws.take<float>(n), *const rest = ws.take<float>(n);
  for (Index q = 0; q < n; ++q) {
    const detail::RoundedError error = detail::rounded_error(detail::sums_of(queries.row(q), cols), cols, /*half=*/false);
    per_norm[q] = error.per_norm;
    rest[q] = error.rest;
  }
  return detail::certify_batch<A>(queries, rows, counts, indices, scores, ws, [&](detail::Survivors<A>** survivors) {
    detail::score_tiles<detail::tile_dots, float, A>(
        queries.data(), n, queries.stride(), detail::stored_rows(copy), count, detail::InOrder{},
        [&](Index q, Index i, Index height, B dots, B) RECOPS_LAMBDA_INLINE {
          const B norm = detail::beside_rows<float, A>(norms.data(), 1, i, height, detail::InOrder{});
          survivors[q]->add(i, height, dots, mul_add(norm, B(per_norm[q]), B(rest[q])));
        });
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
