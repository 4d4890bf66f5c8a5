/// @file   recops/simd/pool_rows.hpp
/// @brief  Weighted sums of rows picked from a table by number, stored as float, double, BFloat16, Float16 or int8: what
///         embedding bags are made of.
///
/// A row is read once, in the order of the ids, and summed in registers, in T. Tables beyond the cache are bound by the latency
/// of memory: rows are fetched ahead, across the bounds of bags.
#pragma once
#include <cstdint>
#include <recops/simd/convert.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Rows of a table and which of them are wanted.
template <class T, class S = T>
struct PickedRows {
  MatrixView<const S> table = {};    ///< [V, D]
  const float* scales = nullptr;     ///< [V], of each row, or none
  IndexView ids = {};                ///< [n], each in [0, V) or equal to `skip`
  VectorView<const T> weights = {};  ///< [n], or empty: all 1
  Index skip = -1;                   ///< an id that adds nothing and is not read
};

namespace detail {

/// A table below so many bytes is all in L2. Beyond, rows are fetched ahead: some 16 KB on their way keep the memory busy.
inline constexpr Index cached_table_bytes = Index{1} << 20, bytes_ahead = 16384;

/// Ids between the row that is read and the one that is fetched; 0: none is.
template <class S>
Index rows_ahead(MatrixView<const S> table) {
  constexpr Index size = static_cast<Index>(sizeof(S));
  if (table.rows() * table.stride() * size <= cached_table_bytes) return 0;
  Index ahead = 128;
  while (ahead > 16 && ahead * table.cols() * size > bytes_ahead) ahead /= 2;
  return ahead;
}

/// `V` vectors of columns from `col` on; with `rest` the first `rest` elements of one. The same columns of the row `ahead` ids
/// later are fetched, unless that is 0.
template <class T, class A, int V, bool Weighted, class S>
[[gnu::noinline]] void pool_columns(const PickedRows<T, S>& rows, Index first, Index last, Index col, Index rest, Index ahead,
                                    T factor, T* out) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  B sum[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) sum[v] = B(T(0));
  const IndexView ids = rows.ids;
  const S* const table = rows.table.data() + col;
  const Index stride = rows.table.stride(), skip = rows.skip, fetched = ahead > 0 ? ids.size() - ahead : 0;
  for (Index i = first; i < last; ++i) {
    if (i < fetched) {  // also what is skipped, wherever that would lie: asking costs more
      const auto id = static_cast<std::uintptr_t>(ids[i + ahead]);
      const auto row = reinterpret_cast<std::uintptr_t>(table) + id * static_cast<std::uintptr_t>(stride) * sizeof(S);
      RECOPS_UNROLL
      for (int x = 0; x < V * static_cast<int>(W * sizeof(S)); x += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(row + static_cast<std::uintptr_t>(x)));
      if (Weighted && rows.scales)
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(rows.scales) + id * sizeof(float)));
    }
    const Index id = ids[i];
    if (id == skip) continue;
    const S* const row = table + id * stride;
    if (V == 1 && rest > 0) {
      T weight = Weighted && !rows.weights.empty() ? rows.weights[i] : T(1);
      if (Weighted && rows.scales) weight *= static_cast<T>(rows.scales[id]);
      sum[0] = mul_add(B(weight), load_first_as<T, A>(row, rest), sum[0]);
    } else if constexpr (Weighted) {
      T weight = rows.weights.empty() ? T(1) : rows.weights[i];
      if (rows.scales) weight *= static_cast<T>(rows.scales[id]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) sum[v] = mul_add(B(weight), load_as<T, A>(row + v * W), sum[v]);
    } else {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) sum[v] = sum[v] + load_as<T, A>(row + v * W);
    }
  }
  if (V == 1 && rest > 0) return store_first<T, A>(out + col, sum[0] * B(factor), rest);
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) (sum[v] * B(factor)).store_unaligned(out + col + v * W);
}

template <class T, class A, bool Weighted, class S>
void pool_rows(const PickedRows<T, S>& rows, Index first, Index last, T factor, T* out) {
  constexpr Index W = lanes<T, A>;
  const Index cols = rows.table.cols();
  const Index ahead = rows_ahead(rows.table);
  for (Index col = 0; col < cols;) {
    if (cols - col >= 8 * W) {
      pool_columns<T, A, 8, Weighted>(rows, first, last, col, 0, ahead, factor, out);
      col += 8 * W;
    } else if (cols - col >= 4 * W) {
      pool_columns<T, A, 4, Weighted>(rows, first, last, col, 0, ahead, factor, out);
      col += 4 * W;
    } else if (cols - col >= 2 * W) {
      pool_columns<T, A, 2, Weighted>(rows, first, last, col, 0, ahead, factor, out);
      col += 2 * W;
    } else {
      pool_columns<T, A, 1, Weighted>(rows, first, last, col, cols - col < W ? cols - col : 0, ahead, factor, out);
      col += W;
    }
  }
}

}  // namespace detail

/// out `[D]` = factor sum_i weight_i scale_id(i) row_id(i) over i in [first, last). No ids: zeros. A weight of 0 does not hide a
/// NaN.
template <class T, class A = DefaultArch, class S>
void pool_rows(const PickedRows<T, S>& rows, Index first, Index last, T factor, T* out) {
  if (rows.weights.empty() && !rows.scales) {
    detail::pool_rows<T, A, false>(rows, first, last, factor, out);
  } else {
    detail::pool_rows<T, A, true>(rows, first, last, factor, out);
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
