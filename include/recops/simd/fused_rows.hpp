/// @file   recops/simd/fused_rows.hpp
/// @brief  Rows times packed weights, with what happens to the product done in registers: a network that runs many times over the same
///         few rows writes no number that the next product does not read.
///
/// Sums run along all of k in one register each, in order, so that a row's bits depend on neither its tile nor its batch. For k up to a
/// thousand or so: a panel should fit into L1.
#pragma once
#include <recops/simd/gemm_quantized.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// x sigmoid(x) as a network that serves takes it. In float, off by at most 4e-7 |y| + 2e-7 and half as long as `silu`; -infinity gives
/// a number near 0, NaN stays. In double it is `silu`.
template <class T, class A>
RECOPS_INLINE Batch<T, A> quick_silu(Batch<T, A> x) {
  if constexpr (std::is_same_v<T, float>) {
    using B = Batch<T, A>;
    const B y = xsimd::max(B(-87.0f), x);  // in this order a NaN passes
    const B t = y * B(-1.44269504f), magic(detail::whole<T>);
    const B z = xsimd::max(B(-126.0f), t), n = z + magic, r = z - (n - magic), w = r * r;
    constexpr float c[] = {1.0f, 0.693147004f, 0.240222439f, 0.0555070415f, 0.00967142824f, 0.0013272455f};  // as exp2
    const B series =
        mul_add(mul_add(mul_add(r, B(c[5]), B(c[4])), w, mul_add(r, B(c[3]), B(c[2]))), w, mul_add(r, B(c[1]), B(c[0])));
    const B e = bits_as<float>(bits_as<std::int32_t>(series) + (bits_as<std::int32_t>(n) << 23));
    return y / (e + B(1.0f));
  } else {
    return silu(x);
  }
}

namespace detail {

/// A lone row times `Panels` panels, as fast as they arrive. `Raw`: `a`, padded to whole vectors, receives its own quick_silu one vector
/// ahead of the sums, in the time that the panels need anyway.
template <class T, class A, class S, int Panels, bool Raw, class Finish>
[[gnu::noinline]] void lone_tile(std::conditional_t<Raw, T*, const T*> a, Index k, const S* panels, Index col,
                                 const Finish& finish) {
  constexpr Index P = panel_cols<T, A>, W = lanes<T, A>;
  using B = Batch<T, A>;
  B acc[2 * Panels];
  const S* b[Panels];
  RECOPS_UNROLL
  for (int q = 0; q < Panels; ++q) {
    acc[2 * q] = acc[2 * q + 1] = B(T(0));
    b[q] = panels + q * P * k;
  }
  const auto prepare = [=](Index p) RECOPS_LAMBDA_INLINE {
    if constexpr (Raw)
      if (p < k) quick_silu(B::load_aligned(a + p)).store_aligned(a + p);
  };
  const auto add = [&](const T* at, int ahead) RECOPS_LAMBDA_INLINE {
    const B x(at[ahead]);
    RECOPS_UNROLL
    for (int q = 0; q < Panels; ++q) {
      B w[2];
      Stored<S, T, A>::load(b[q] + ahead * P, w);
      acc[2 * q] = mul_add(x, w[0], acc[2 * q]);
      acc[2 * q + 1] = mul_add(x, w[1], acc[2 * q + 1]);
    }
  };
  const auto advance = [&](Index n) RECOPS_LAMBDA_INLINE {
    RECOPS_UNROLL
    for (int q = 0; q < Panels; ++q) b[q] += n * P;
  };
  prepare(0);
  Index p = 0;
  for (; p + W <= k; p += W) {
    prepare(p + W);
    RECOPS_UNROLL
    for (int u = 0; u < static_cast<int>(W); ++u) add(a + p, u);
    advance(W);
  }
  for (Index rest = k - p; rest > 0; --rest, ++p) {
    add(a + p, 0);
    advance(1);
  }
  // The next tile's first lines set out while this one finishes.
  RECOPS_UNROLL
  for (int line = 0; line < 2 && k > 0; ++line) {
    RECOPS_UNROLL
    for (int q = 0; q < Panels; ++q) __builtin_prefetch(b[q] + (Panels - 1) * P * k + line * 64 / static_cast<int>(sizeof(S)));
  }
  RECOPS_UNROLL
  for (int v = 0; v < 2 * Panels; ++v) finish(0, col + v * static_cast<int>(W), acc[v]);
}

/// A lone row times `count` panels; `Raw` as above.
template <class T, class A, bool Raw, class S, class Finish>
void lone_row(std::conditional_t<Raw, T*, const T*> a, Index k, const S* panels, Index count, const Finish& finish) {
  constexpr Index P = panel_cols<T, A>;
  constexpr int wide = tile_panels<A>(1);
  for (Index col = 0; count > 0;) {
    const bool whole = count >= wide;
    const Index taken = whole ? wide : 1;
    if (Raw && col == 0) {
      whole ? lone_tile<T, A, S, wide, Raw>(a, k, panels, col, finish) : lone_tile<T, A, S, 1, Raw>(a, k, panels, col, finish);
    } else {
      whole ? lone_tile<T, A, S, wide, false>(a, k, panels, col, finish) : lone_tile<T, A, S, 1, false>(a, k, panels, col, finish);
    }
    count -= taken;
    panels += taken * P * k;
    col += taken * P;
  }
}

/// `Rows` rows of A times `Panels` panels; `finish(row, col, sums)` takes each vector of the product.
template <class T, class A, class S, int Rows, int Panels, class Finish>
[[gnu::noinline]] void fused_tile(const T* a, Index a_stride, Index k, const S* panels, Index row, Index col,
                                  const Finish& finish) {
  constexpr int W = static_cast<int>(lanes<T, A>), V = 2 * Panels;
  constexpr Index P = panel_cols<T, A>, ahead = 1024 / (P * static_cast<Index>(sizeof(S)));
  using B = Batch<T, A>;
  B acc[Rows][V];
  RECOPS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = B(T(0));
  }
  const S* b[Panels];
  RECOPS_UNROLL
  for (int v = 0; v < Panels; ++v) b[v] = panels + v * P * k;
  constexpr int groups = (Rows + 2) / 3;  // as in `tile`: a pointer to every third row
  const T* rows[groups];
  RECOPS_UNROLL
  for (int g = 0; g < groups; ++g) rows[g] = a + 3 * g * a_stride;
  const Index row_bytes = a_stride * static_cast<Index>(sizeof(T));
  // The last panels that are read ahead are those of the next tile: its columns, or the same rows' next layer.
  const Index split = k > ahead ? k - ahead : 0;
  for (int part = 0; part < 2; ++part) {
    const Index offset = part == 0 ? ahead * P : ahead * P + (Panels - 1) * P * k;
    for (Index p = part == 0 ? split : k - split; p > 0; --p) {
      RECOPS_UNROLL
      for (int q = 0; q < Panels; ++q) {
        RECOPS_UNROLL  // no register is free to keep a number of A for the next panel
        for (int g = 0; g < groups; ++g) asm("" : "+r"(rows[g]));
        B w[2];
        Stored<S, T, A>::load(b[q], w);
        __builtin_prefetch(b[q] + offset);
        b[q] += P;
        w[0] = in_register(w[0]);
        w[1] = in_register(w[1]);
        RECOPS_UNROLL
        for (int r = 0; r < Rows; ++r) {
          const B x(*reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows[r / 3]) + r % 3 * row_bytes));
          acc[r][2 * q] = mul_add(x, w[0], acc[r][2 * q]);
          acc[r][2 * q + 1] = mul_add(x, w[1], acc[r][2 * q + 1]);
        }
      }
      RECOPS_UNROLL
      for (int g = 0; g < groups; ++g) ++rows[g];
    }
  }
  RECOPS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) finish(row + r, col + v * W, acc[r][v]);
  }
}

template <class T, class A, class S, class Finish, int Rows = tile_rows<A>>
void fused_panels(const T* a, Index a_stride, Index rows, Index k, const S* panels, Index count, Index row, Index col,
                  const Finish& finish) {
  if constexpr (Rows > 2) {
    if (rows < Rows) return fused_panels<T, A, S, Finish, Rows - 1>(a, a_stride, rows, k, panels, count, row, col, finish);
  }
  constexpr Index P = panel_cols<T, A>, wide = tile_panels<A>(Rows);
  for (; count >= wide; count -= wide, panels += wide * P * k, col += wide * P)
    fused_tile<T, A, S, Rows, static_cast<int>(wide)>(a, a_stride, k, panels, row, col, finish);
  if constexpr (wide > 1)
    for (; count > 0; --count, panels += P * k, col += P) fused_tile<T, A, S, Rows, 1>(a, a_stride, k, panels, row, col, finish);
}

}  // namespace detail

/// Calls `finish(row, col, v)` for every vector v of A `[rows, k]` times the packed `[k, n]`, `n` rounded up to whole panels. Panels are
/// those of `pack` with k in one block.
template <Real T, class A = DefaultArch, class S = T, class Finish>
void fused_rows(const T* a, Index a_stride, Index rows, Index k, const S* panels, Index n, const Finish& finish) {
  constexpr Index P = panel_cols<T, A>, most = detail::tile_rows<A>;
  const Index count = (n + P - 1) / P, tiles = (rows + most - 1) / most;
  if (rows == 1) return detail::lone_row<T, A, false>(a, k, panels, count, finish);
  // One tile: the panels are one stream. More: as few panels as the lowest tile wants stay in L1 while the rows pass.
  const Index group = tiles == 1 ? count : detail::tile_panels<A>(static_cast<int>(detail::lowest_tile<A>(rows, tiles)));
  for (Index j = 0; j < count; j += group) {
    const Index taken = count - j < group ? count - j : group;
    for (Index t = 0, row = 0, height; t < tiles; ++t, row += height) {
      height = detail::next_rows<A>(rows - row, tiles - t);
      detail::fused_panels<T, A, S>(a + row * a_stride, a_stride, height, k, panels + j * P * k, taken, row, j * P, finish);
    }
  }
}

/// `fused_rows` of one row that is yet to be activated: `a`, aligned and padded to whole vectors, becomes its own `quick_silu` in the
/// time that the panels need to arrive.
template <Real T, class A = DefaultArch, class S = T, class Finish>
void fused_silu_row(T* a, Index k, const S* panels, Index n, const Finish& finish) {
  detail::lone_row<T, A, true>(a, k, panels, (n + panel_cols<T, A> - 1) / panel_cols<T, A>, finish);
}

/// Packs a weight `[n, k]` for `fused_rows` into `packed_size(k, n)` elements: as `pack` does, but k is not cut into blocks.
template <Real T, class A = DefaultArch, class S>
void pack_fused(MatrixView<const T> weight, S* out) {
  constexpr Index P = panel_cols<T, A>;
  const Index k = weight.cols(), n = weight.rows();
  for (Index p0 = 0; p0 < k; p0 += k_block) {
    // Blocks of `pack` one by one, each panel to its place.
    const Index depth = k - p0 < k_block ? k - p0 : k_block;
    for (Index j = 0; j < n; j += P) {
      const MatrixView<const T> part = weight.middle_rows(j, n - j < P ? n - j : P).middle_cols(p0, depth);
      pack<T, A>(transposed(part), out + j * k + p0 * P);
    }
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
