/// @file   recops/simd/gemm.hpp
/// @brief  C = act(A B + bias) and its relatives, for operands of any strides; B packed once (weights that serve) or on the way.
///
///     C_ij = act(row_scale_i · column_scale_j · Σ_k a_ik b_kj + bias_j [+ C_ij]) + residual_ij
///
/// In `gemm_packed` a row's bits depend neither on the number of rows nor on its position: every tile sums k in the same order. k
/// is cut into blocks of 512 that are summed in T and added up in order: |error| <= (min(k, 512) + k / 512 + 3) roundings of
/// Σ |a_ik b_kj|. A NaN in a row of A stays in that row of C. k = 0 gives the epilogue of zeros.
/// Cost 2 m n k flops; packing reads and writes B once. Weights in bfloat16 and int8: gemm_quantized.hpp; many products in one
/// call: gemm_grouped.hpp.
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/simd/gemm_dots.hpp>
#include <recops/simd/gemm_epilogue.hpp>
#include <recops/simd/gemm_tiles.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {
namespace detail {

/// B as tiles read it: packed panels, or a plain matrix (`row_stride` not 0) whose columns are taken `panel_cols` at a time.
template <class S>
struct PanelSource {
  const S* data;
  Index padded_cols = 0, row_stride = 0;
};

/// Whether B of so many bytes, read once, is taken as one stream, fetched far ahead. With AVX-512 (Zen 5) that beats panels side by side
/// where it comes from memory or a distant cache; with AVX2 (Zen 3) it never does: these are 1.4 times as fast, and want less ahead.
template <class A>
constexpr bool one_stream(Index bytes) {
  return registers<A> == 32 && bytes > Index{1} << 22;
}
/// Bytes to fetch ahead of each panel.
template <class A>
constexpr Index panel_ahead(Index rows, bool streamed) {
  return streamed ? 16384 : registers<A> == 16 && rows <= 3 ? 512 : 1024;
}

/// Rows of A copied k-major, `[depth, tile_stride]` per tile, where they are read several times with a stride along k: every
/// element is a cache line of its own otherwise. A few k of all rows at a time: neighbours share lines.
template <class T, class A>
inline constexpr Index tile_stride = (tile_rows<A> + lanes<T, A> - 1) / lanes<T, A>* lanes<T, A>;

template <class T, class A>
void copy_rows(const T* a, Index row_stride, Index col_stride, Index m, Index tiles, Index depth, T* out) {
  constexpr Index stride = tile_stride<T, A>, W = lanes<T, A>, together = 8;
  for (Index first = 0; first < depth; first += together) {
    const Index last = depth - first < together ? depth : first + together;
    for (Index t = 0, row = 0, rows; t < tiles; ++t, row += rows) {
      rows = next_rows<A>(m - row, tiles - t);
      for (Index p = first; p < last; ++p) {
        const T* const from = a + row * row_stride + p * col_stride;
        T* const to = out + (t * depth + p) * stride;
        if (row_stride == 1 && row + stride <= m) {
          for (Index r = 0; r < stride; r += W) Batch<T, A>::load_unaligned(from + r).store_unaligned(to + r);
        } else {
          for (Index r = 0; r < rows; ++r) to[r] = from[r * row_stride];
        }
      }
    }
  }
}

/// Tiles of one height that follow each other, and the panels that they cover at once.
struct TileRun {
  Index rows, tiles, wide, narrow;
};

/// C = epilogue(A times panels [first, last)); A, C and the epilogue begin at the same row, C and the epilogue at column 0.
template <class T, class A, class S>
void multiply(Operand<T> a, const PanelSource<S>& b, Index first, Index last, Index n, const Epilogue<T>& e, T* c, Index c_stride,
              Workspace& ws) {
  constexpr Index P = panel_cols<T, A>, most = tile_rows<A>, stride = tile_stride<T, A>, size = static_cast<Index>(sizeof(S));
  const Index m = a.rows, k = a.cols, tiles = (m + most - 1) / most;
  TileRun runs[3];  // there are at most three heights: 14 = 5 + 6 + 3
  Index kinds = 0, calls = 0;
  for (Index t = 0, row = 0; t < tiles; ++t, row += runs[kinds - 1].rows) {
    const Index rows = next_rows<A>(m - row, tiles - t);
    if (kinds == 0 || runs[kinds - 1].rows != rows) {
      assert(kinds < 3);
      runs[kinds++] = {rows, 0, tile_panels<A>(static_cast<int>(rows)), narrow_panels(static_cast<int>(rows))};
    }
    ++runs[kinds - 1].tiles;
  }
  const bool streamed = tiles == 1 && one_stream<A>(n * k * size);
  const Index group = streamed || kinds == 0 ? 1 : runs[kinds - 1].wide;  // panels before the next tile; the last is the lowest
  TileInput<T, S> in;
  in.ahead = k > 0 ? panel_ahead<A>(m, streamed) / size : 0;  // without k B may be null
  // Meanwhile the next group is fetched, evenly, where several tiles read a group (from a near cache all but the first) or one tile a
  // single panel. Several panels of one tile are streams side by side, fetched a little ahead.
  const bool own = fetches_ahead<A>(m), next_group = !b.row_stride && (tiles > 1 || (tiles == 1 && group == 1 && !own));
  const bool along = !next_group && !own;
  if (next_group) {
    for (const TileRun* run = runs; run < runs + kinds; ++run) calls += run->tiles * ((group + run->wide - 1) / run->wide);
    in.next_step = (P * group / 2 + calls - 1) / calls;
  }
  const bool copy = a.col_stride != 1 && last - first >= 4 && m > 1 && k > 1;
  const auto mark = ws.mark();
  T* const copied = copy ? ws.take<T>(tiles * stride * (k < k_block ? k : k_block)) : nullptr;
  in.row_stride = copy ? 1 : a.row_stride;
  in.col_stride = copy ? stride : a.col_stride;
  in.k_step = b.row_stride ? b.row_stride : P;
  alignas(64) T sums[most * P];  // where a tile is formed that is not yet C: all have at most so many elements
  for (Index p0 = 0; p0 == 0 || p0 < k; p0 += k_block) {
    const Index depth = k - p0 < k_block ? k - p0 : k_block;
    const bool add = p0 > 0 || e.accumulate, final = p0 + k_block >= k, fits = fits_tile(e, final);
    const T* const at = a.data + p0 * a.col_stride;
    if (copy) copy_rows<T, A>(at, a.row_stride, a.col_stride, m, tiles, depth, copied);
    in.k = depth;
    in.panel_stride = b.row_stride ? P : P * depth;
    in.next_apart = next_group ? P * group / 2 * depth : in.panel_stride;
    if (along) in.next_step = in.k_step;
    const S* const panels = b.data + (b.row_stride ? p0 * b.row_stride : p0 * b.padded_cols);
    for (Index j = first, count; j < last; j += count) {
      count = last - j < group ? last - j : group;
      in.next = next_group ? panels + (j + count) * P * depth : b.data;
      in.a = copy ? copied : at;
      Index row = 0;
      for (Index kind = 0; kind < kinds; ++kind) {
        const TileRun& run = runs[kind];
        for (Index t = 0; t < run.tiles; ++t) {
          for (Index i = 0, taken; i < count; i += taken) {
            taken = count - i < run.wide ? count - i : run.wide;
            const Index col = (j + i) * P, cols = n - col < taken * P ? n - col : taken * P;
            const Index width = (taken > run.narrow ? run.wide : run.narrow) * P;
            in.b = panels + (j + i) * in.panel_stride;
            in.panels = taken;
            if (along) in.next = in.b + in.ahead;
            T* const out = c + row * c_stride + col;
            const bool direct = fits && cols == width;
            in.add = direct && add;
            in.bias = direct && final && e.bias ? e.bias + col : nullptr;
            in.relu = direct && final && e.activation == Activation::relu;
            if (!direct) {
              for (Index r = 0; r < run.rows; ++r) __builtin_prefetch(out + r * c_stride, 1);
            }
            tile_for<T, A, S>(run.rows, taken > run.narrow)(in, direct ? out : sums, direct ? c_stride : width);
            if (!direct) finish<T, A>(sums, width, out, c_stride, run.rows, cols, add, final, part_of(e, row, col));
            in.next += depth * in.next_step;
          }
          row += run.rows;
          in.a += copy ? stride * depth : run.rows * a.row_stride;
        }
      }
    }
  }
}

/// How a product is cut into tasks. A chunk of rows stays in L2 while the panels pass; a chunk of panels is what one thread takes
/// where there are several.
template <class T, class A>
struct Chunks {
  static constexpr Index rows = 64 / static_cast<Index>(sizeof(T)) * tile_rows<A>, cols = 16 * panel_cols<T, A>;
  Index down, across;
  Chunks(Index m, Index n, bool threads)
      : down((m + rows - 1) / rows), across(threads ? (n + cols - 1) / cols : (n > 0 ? 1 : 0)) {}
  Index count() const { return down * across; }
};

template <class T, class A, class S>
void multiply_chunk(Index task, const Chunks<T, A>& chunks, Operand<T> a, const PanelSource<S>& b, Index n, const Epilogue<T>& e,
                    MatrixView<T> c, Workspace& ws) {
  constexpr Index P = panel_cols<T, A>;
  const Index row = task / chunks.across * chunks.rows, col = task % chunks.across * chunks.cols;
  const Index end = chunks.across == 1 || n - col < chunks.cols ? n : col + chunks.cols;
  a.data += row * a.row_stride;
  a.rows = a.rows - row < chunks.rows ? a.rows - row : chunks.rows;
  if (a.cols == 0) a.row_stride = a.col_stride = 0;  // nothing there to step over
  multiply<T, A>(a, b, col / P, (end + P - 1) / P, n, part_of(e, row, 0), c.data() + row * c.stride(), c.stride(), ws);
}

template <class T, class A, class S>
void multiply_chunks(const Operand<T>& a, const PanelSource<S>& b, Index n, const Epilogue<T>& e, MatrixView<T> c,
                     Workspace& ws) {
  const Chunks<T, A> chunks(a.rows, n, ws.workers() > 1);
  ws.parallel_for(chunks.count(),
                  [&](Index task, Workspace& scratch) { multiply_chunk<T, A>(task, chunks, a, b, n, e, c, scratch); });
}

/// C = epilogue(A B) by inner products; rows of A and columns of B are contiguous.
template <class T, class A>
void multiply_dots(const Operand<T>& a, const Operand<T>& b, const Epilogue<T>& e, MatrixView<T> c, Workspace& ws) {
  constexpr Index chunk = 64;
  constexpr int rows = registers<A> == 32 ? 4 : 2;
  const Index m = a.rows, n = b.cols, across = (n + chunk - 1) / chunk;
  ws.parallel_for((m + chunk - 1) / chunk * across, [&](Index task, Workspace&) {
    const Index row = task / across * chunk, col = task % across * chunk;
    const Index height = m - row < chunk ? m - row : chunk, width = n - col < chunk ? n - col : chunk;
    T* const out = c.data() + row * c.stride() + col;
    const bool direct = !e.accumulate && is_plain(e);
    alignas(64) T sums[chunk * chunk];
    T* const to = direct ? out : sums;
    const Index stride = direct ? c.stride() : chunk;
    dot_tiles<T, A, rows, 4>(a.data + row * a.row_stride, a.row_stride, height, b.data + col * b.col_stride, b.col_stride, width,
                             a.cols, to, stride);
    if (!direct) finish<T, A>(sums, stride, out, c.stride(), height, width, e.accumulate, true, part_of(e, row, col));
  });
}

}  // namespace detail

/// C `[m, n]` = epilogue(A `[m, k]` B) with B packed by `pack`, in T or in one of the formats of gemm_quantized.hpp. Uses the
/// workspace's threads; same bits for any number. C overlaps neither A nor B.
template <class T, class A = DefaultArch, class S = T>
void gemm_packed(Operand<T> a, const S* panels, Index n, const Epilogue<T>& e, MatrixView<T> c, Workspace& ws) {
  assert(c.rows() == a.rows && c.cols() == n);
  detail::multiply_chunks<T, A>(a, detail::PanelSource<S>{panels, packed_size<T, A>(1, n)}, n, e, c, ws);
}

/// C = epilogue(A B) for any operands. B is packed into the workspace, unless there are few rows to read it for: up to 24 (12 on
/// AVX2) rows take a B with contiguous rows as it is (same bits); up to 8 rows, or up to 4 columns, take a B with contiguous
/// columns (a `[out, in]` weight) as inner products, which may differ in the last bits from the same rows among more.
template <class T, class A = DefaultArch>
void gemm(Operand<T> a, Operand<T> b, const Epilogue<T>& e, MatrixView<T> c, Workspace& ws) {
  constexpr Index P = panel_cols<T, A>;
  assert(a.cols == b.rows && c.rows() == a.rows && c.cols() == b.cols);
  const Index m = a.rows, n = b.cols, k = a.cols;
  if (m == 0 || n == 0) return;
  if (k > 0 && (m <= 8 || n <= 4) && a.col_stride == 1 && b.row_stride == 1) return detail::multiply_dots<T, A>(a, b, e, c, ws);
  const auto mark = ws.mark();
  const Index whole = k > 0 && m <= 2 * detail::tile_rows<A> && b.col_stride == 1 && b.row_stride > 0 ? n / P * P : 0;
  if (whole > 0)
    detail::multiply_chunks<T, A>(a, detail::PanelSource<T>{b.data, 0, b.row_stride}, whole, e, c.middle_cols(0, whole), ws);
  if (whole == n) return;
  if (k > 0) b.data += whole * b.col_stride;
  b.cols = n - whole;
  T* panels = ws.take<T>(packed_size<T, A>(k, b.cols));
  pack<T, A>(b, panels);
  gemm_packed<T, A>(a, panels, b.cols, detail::part_of(e, 0, whole), c.middle_cols(whole, b.cols), ws);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
