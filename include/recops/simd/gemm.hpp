/// @file   recops/simd/gemm.hpp
/// @brief  C = act(A B + bias), or C += A B, for operands of any strides; B packed once (weights that serve) or on the way.
///
/// In `gemm_packed` a row's bits depend neither on the number of rows nor on its position: every tile sums k in the same order. k
/// is cut into blocks of 512 that are summed in T and added up in order. A NaN in a row of A stays in that row of C.
/// Cost 2 m n k flops; packing reads and writes B once.
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/simd/activation.hpp>
#include <recops/simd/reduce.hpp>
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// A matrix `[rows, cols]` with any strides, as gemm reads it.
template <class T>
struct Operand {
  const T* data;
  Index rows, cols, row_stride, col_stride;
};
/// The matrix as it is.
template <class T>
Operand<std::remove_const_t<T>> plain(MatrixView<T> m) {
  return {m.data(), m.rows(), m.cols(), m.stride(), 1};
}
/// Its transpose, without moving anything.
template <class T>
Operand<std::remove_const_t<T>> transposed(MatrixView<T> m) {
  return {m.data(), m.cols(), m.rows(), 1, m.stride()};
}

/// What happens to the product: C = act(A B + bias), or with `accumulate` C = act(C + A B + bias).
template <class T>
struct Epilogue {
  const T* bias = nullptr;  ///< [n] or none
  Activation activation = Activation::none;
  bool accumulate = false;
};

/// Columns of one packed panel: two vectors.
template <class T, class A = DefaultArch>
inline constexpr Index panel_cols = 2 * lanes<T, A>;
/// Elements that `[k, n]` takes when packed.
template <class T, class A = DefaultArch>
constexpr Index packed_size(Index k, Index n) {
  return (n + panel_cols<T, A> - 1) / panel_cols<T, A> * panel_cols<T, A> * k;
}

/// Lays B out for the kernels: panels of `panel_cols` columns, each k-major, the last one padded with zeros. `out` holds
/// `packed_size(k, n)` elements, 64-byte aligned.
template <class T, class A = DefaultArch>
void pack(Operand<T> b, T* out) {
  constexpr Index P = panel_cols<T, A>, block = 16;
  const Index k = b.rows, n = b.cols;
  for (Index j0 = 0; j0 < n; j0 += P, out += k * P) {
    const Index width = n - j0 < P ? n - j0 : P;
    const T* src = b.data + j0 * b.col_stride;
    if (b.col_stride == 1) {
      for (Index p = 0; p < k; ++p) {
        for (Index j = 0; j < width; ++j) out[p * P + j] = src[p * b.row_stride + j];
        for (Index j = width; j < P; ++j) out[p * P + j] = T(0);
      }
      continue;
    }
    if (b.row_stride == 1) {
      pack_transposed<T, A>(src, b.col_stride, width, k, T(1), out, P, P);
      continue;
    }
    for (Index p0 = 0; p0 < k; p0 += block) {  // blocked, so that the scattered writes stay in L1
      const Index p1 = p0 + block < k ? p0 + block : k;
      for (Index j = 0; j < width; ++j)
        for (Index p = p0; p < p1; ++p) out[p * P + j] = src[j * b.col_stride + p * b.row_stride];
      for (Index j = width; j < P; ++j)
        for (Index p = p0; p < p1; ++p) out[p * P + j] = T(0);
    }
  }
}

namespace detail {

/// Rows of the tallest tile, and how many panels a tile of `rows` covers: as many accumulators as the registers hold, and
/// never fewer than eight chains, which is what hides the latency of an fma.
template <class A>
inline constexpr int tile_rows = registers<A> == 32 ? 12 : 6;
template <class A>
constexpr int tile_panels(int rows) {
  if (registers<A> == 32) return rows <= 2 ? 4 : rows <= 6 ? 2 : 1;
  return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

/// C tile (+)= A tile times panels, all of k in order. `c` has room for whole panels. `ahead`: elements to the panel that comes
/// next, fetched into L2 on the way (0: nothing to fetch); a single panel is one stream, which the hardware alone runs too slowly.
template <class T, class A, int Rows, int Panels>
[[gnu::noinline]] void tile(Index k, const T* a, Index row_stride, Index col_stride, const T* b, Index panel_stride, T* c,
                            Index c_stride, bool add, Index ahead) {
  constexpr Index W = lanes<T, A>;
  constexpr int V = 2 * Panels;
  using B = Batch<T, A>;
  B acc[Rows][V];
  RECOPS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = B(T(0));
  }
  for (Index p = 0; p < k; ++p) {
    B bv[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) bv[v] = B::load_aligned(b + (v / 2) * panel_stride + (v % 2) * W);
    if constexpr (Panels == 1 && Rows > tile_rows<A> / 2) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) __builtin_prefetch(b + ahead + v * W, 0, 2);
    }
    RECOPS_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const B av(a[r * row_stride]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = mul_add(av, bv[v], acc[r][v]);
    }
    a += col_stride;
    b += 2 * W;
  }
  RECOPS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      T* out = c + r * c_stride + v * W;
      (add ? B::load_unaligned(out) + acc[r][v] : acc[r][v]).store_unaligned(out);
    }
  }
}

template <class T>
using Tile = void (*)(Index, const T*, Index, Index, const T*, Index, T*, Index, bool, Index);

/// The tile of `rows` rows that covers `tile_panels` panels at once, or one.
template <class T, class A, int Rows = tile_rows<A>>
Tile<T> tile_for(int rows, bool wide) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_for<T, A, Rows - 1>(rows, wide);
  }
  return wide ? tile<T, A, Rows, tile_panels<A>(Rows)> : tile<T, A, Rows, 1>;
}

template <class T, class A>
[[gnu::noinline]] void finish(T* c, Index stride, Index rows, Index cols, const T* bias, Activation activation) {
  for (Index r = 0; r < rows; ++r, c += stride) {
    for_each_vector<T, A>(cols, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const Batch<T, A> x = load(c + j);
      store(c + j, activate(activation, bias ? x + load(bias + j) : x));
    });
  }
}

/// Rows [0, m) times panels [first, last).
template <class T, class A>
void multiply(Index m, Operand<T> a, const T* panels, Index first, Index last, Index n, const Epilogue<T>& e, T* c, Index c_stride) {
  constexpr Index P = panel_cols<T, A>, k_block = 512;
  constexpr int most = tile_rows<A>;
  const Index k = a.cols, tiles = (m + most - 1) / most;
  alignas(64) T edge[most * 4 * P];  // where a tile that hangs over the last column is formed
  for (Index p0 = 0; p0 == 0 || p0 < k; p0 += k_block) {
    const Index depth = k - p0 < k_block ? k - p0 : k_block;
    const bool add = p0 > 0 || e.accumulate, last_block = p0 + k_block >= k;
    // Rows are shared out evenly among the tiles (32 = 11 + 11 + 10), so that none is much slower than the rest.
    const int wide = tile_panels<A>(static_cast<int>((m + tiles - 1) / tiles));
    for (Index j = first; j < last;) {
      const int count = j + wide <= last ? wide : 1;
      for (Index t = 0, row = 0; t < tiles; ++t) {
        const Index rows = (m - row + (tiles - t) - 1) / (tiles - t);
        const T* at = a.data + row * a.row_stride + p0 * a.col_stride;
        const Index col = j * P, cols = n - col < count * P ? n - col : count * P;
        T* out = c + row * c_stride + col;
        // Several panels at once only where all rows fit into one tile: two tiles are each more than half full.
        assert(count == 1 || (tiles == 1 && tile_panels<A>(static_cast<int>(rows)) == count));
        const bool whole = cols == count * P;
        T* to = whole ? out : edge;
        const Index stride = whole ? c_stride : count * P;
        if (!whole && add) {
          for (Index r = 0; r < rows; ++r)
            for (Index x = 0; x < cols; ++x) edge[r * stride + x] = out[r * c_stride + x];
        }
        tile_for<T, A>(static_cast<int>(rows), count > 1)(depth, at, a.row_stride, a.col_stride, panels + j * P * k + p0 * P, P * k,
                                                          to, stride, add, t == 0 && j + count < last ? P * k : 0);
        if (!whole) {
          for (Index r = 0; r < rows; ++r)
            for (Index x = 0; x < cols; ++x) out[r * c_stride + x] = edge[r * stride + x];
        }
        if (last_block && (e.bias || e.activation != Activation::none))
          finish<T, A>(out, c_stride, rows, cols, e.bias ? e.bias + col : nullptr, e.activation);
        row += rows;
      }
      j += count;
    }
  }
}

}  // namespace detail

/// C `[m, n]` = act(A `[m, k]` B + bias) with B packed by `pack`. Uses the workspace's threads; same bits for any number.
template <class T, class A = DefaultArch>
void gemm_packed(Operand<T> a, const T* panels, Index n, const Epilogue<T>& e, MatrixView<T> c, Workspace& ws) {
  constexpr Index P = panel_cols<T, A>;
  assert(c.rows() == a.rows && c.cols() == n);
  if (a.rows == 0 || n == 0) return;
  if (a.cols == 0) a.row_stride = a.col_stride = 0;  // nothing there to step over
  // A chunk of rows stays in L2 while the panels pass; a chunk of panels is what one thread takes when rows are few.
  constexpr Index row_chunk = 16 * detail::tile_rows<A>, panel_chunk = 16;
  const Index all = (n + P - 1) / P, row_chunks = (a.rows + row_chunk - 1) / row_chunk;
  const Index panel_chunks = ws.workers() > 1 ? (all + panel_chunk - 1) / panel_chunk : 1;
  ws.parallel_for(row_chunks * panel_chunks, [&](Index task, Workspace&) {
    const Index row = task / panel_chunks * row_chunk, first = task % panel_chunks * panel_chunk;
    const Index m = a.rows - row < row_chunk ? a.rows - row : row_chunk;
    const Index last = panel_chunks == 1 || all - first < panel_chunk ? all : first + panel_chunk;
    Operand<T> part = a;
    part.data += row * a.row_stride;
    part.rows = m;
    detail::multiply<T, A>(m, part, panels, first, last, n, e, c.data() + row * c.stride(), c.stride());
  });
}

/// C = act(A B + bias) for any operands; B is packed into the workspace, except for a few rows against a transposed B (a
/// `[out, in]` weight), which are dot products: up to 8 rows may differ in the last bits from the same rows among more.
template <class T, class A = DefaultArch>
void gemm(Operand<T> a, Operand<T> b, const Epilogue<T>& e, MatrixView<T> c, Workspace& ws) {
  assert(a.cols == b.rows && c.rows() == a.rows && c.cols() == b.cols);
  if (a.rows == 0 || b.cols == 0) return;
  if (a.cols == 0) a.row_stride = b.col_stride = 0;  // nothing there to step over
  if (a.rows <= 8 && a.col_stride == 1 && b.row_stride == 1) {
    for (Index r = 0; r < a.rows; ++r) {
      const T* x = a.data + r * a.row_stride;
      T* out = c.row(r);
      for (Index j = 0; j < b.cols; ++j) {
        const T product = dot<T, A>(x, b.data + j * b.col_stride, a.cols);
        out[j] = e.accumulate ? out[j] + product : product;
      }
      if (e.bias || e.activation != Activation::none) detail::finish<T, A>(out, 0, 1, b.cols, e.bias, e.activation);
    }
    return;
  }
  const auto mark = ws.mark();
  T* panels = ws.take<T>(packed_size<T, A>(b.rows, b.cols));
  pack<T, A>(b, panels);
  gemm_packed<T, A>(a, panels, b.cols, e, c, ws);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
