/// @file   recops/simd/gemm_tiles.hpp
/// @brief  The register tiles of gemm: a few rows of A times one or more panels of B, summed over k in order.
///
/// Every tile sums one element of C in one register lane from the first k to the last, so that the result of a row depends on
/// neither the tile nor its place in it.
#pragma once
#include <array>
#include <recops/simd/activation.hpp>
#include <recops/simd/gemm_pack.hpp>
#include <utility>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {
namespace detail {

/// Rows of the tallest tile, and how many panels a tile of `rows` covers: as many accumulators as the registers hold, and
/// at least eight chains, which is what hides the latency of an fma.
template <class A>
inline constexpr int tile_rows = registers<A> == 32 ? 12 : 6;
template <class A>
constexpr int tile_panels(int rows) {
  if (registers<A> == 32) return rows <= 2 ? 4 : rows <= 6 ? 2 : 1;
  return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}
/// How many it covers where fewer are left, or where B comes from afar as one stream: a lone row would wait for its own sums, so
/// that a panel too many costs it nothing.
constexpr int narrow_panels(int rows) { return rows <= 2 ? 2 : 1; }

/// Rows of the next of `tiles` tiles that share out `rows`: evenly (32 = 11 + 11 + 10), so that none is much slower than the
/// rest. Four rows are the one height that leaves sixteen registers with no chain to spare: 8 = 5 + 3.
template <class A>
constexpr Index next_rows(Index rows, Index tiles) {
  if (tiles == 1) return rows;
  if (registers<A> == 16 && tiles == 2 && (rows == 8 || rows == 9)) return rows - 3;
  return (rows + tiles - 1) / tiles;
}

/// The lowest of the tiles that `next_rows` makes.
template <class A>
constexpr Index lowest_tile(Index rows, Index tiles) {
  Index lowest = rows;
  for (; tiles > 0; --tiles) {
    const Index next = next_rows<A>(rows, tiles);
    lowest = next < lowest ? next : lowest;
    rows -= next;
  }
  return lowest;
}

/// How a panel's row is stored, and how it becomes two vectors. Other formats specialise it.
template <class S, class T, class A>
struct Stored {
  RECOPS_INLINE static void load(const S* p, Batch<T, A>* out) {
    out[0] = Batch<T, A>::load_unaligned(p);
    out[1] = Batch<T, A>::load_unaligned(p + lanes<T, A>);
  }
};

/// Whether a tile fetches each of its panels ahead, besides the two streams of `TileInput::next`. With sixteen registers that is a fetch
/// too many for the load ports; there only a lone row does, and nothing else: it reads four panels. Four rows lost a tenth from L2 without.
template <class A>
constexpr bool fetches_ahead(Index rows) {
  return registers<A> == 32 || rows == 1 || rows == 4;
}

template <class T, class S>
struct TileInput {
  Index k = 0;
  const T* a = nullptr;
  Index row_stride = 0, col_stride = 0;
  const S* b = nullptr;
  Index k_step = 0, panel_stride = 0;  // from one k to the next, from one panel to the next
  Index panels = 1;                    // that are there; a wider tile repeats the last one
  Index ahead = 0;                     // elements of B to fetch ahead, where a tile does that by itself
  const S* next = nullptr;  // what will be wanted, to be fetched along with k, as two streams, which come faster than one
  Index next_step = 0, next_apart = 0;
  bool add = false;
  const T* bias = nullptr;  // of these columns, or none
  bool relu = false;
};

/// sums[r * sums_stride + j] = sum over k of a(r, k) b(k, j), plus what is there with `add`, plus a bias, through relu, for whole
/// panels: what most products want, done while the sums are in registers.
template <class T, class A, class S, int Rows, int Panels>
[[gnu::noinline]] void tile(const TileInput<T, S>& in, T* sums, Index sums_stride) {
  constexpr int W = static_cast<int>(lanes<T, A>), V = 2 * Panels;
  constexpr int line = 64 / static_cast<int>(sizeof(S));
  using B = Batch<T, A>;
  B acc[Rows][V];
  RECOPS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = B(T(0));
  }
  const S* b[Panels];
  RECOPS_UNROLL
  for (int v = 0; v < Panels; ++v) b[v] = in.b + (v < in.panels ? v : in.panels - 1) * in.panel_stride;
  // One pointer to every third row, and hidden from the compiler: an offset or a pointer for each row would take all the integer
  // registers, and more.
  constexpr int groups = (Rows + 2) / 3;
  const T* a[groups];
  RECOPS_UNROLL
  for (int g = 0; g < groups; ++g) a[g] = in.a + 3 * g * in.row_stride;
  const Index row_bytes = in.row_stride * static_cast<Index>(sizeof(T)), k_step = in.k_step, ahead = in.ahead;
  const S* next = in.next;
  const Index next_step = in.next_step, next_apart = in.next_apart;
  Index col_stride = in.col_stride;
  asm("" : "+r"(col_stride));  // else gcc makes the loop twice, once for a stride of 1
  const auto opaque = [&]() RECOPS_LAMBDA_INLINE {
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) asm("" : "+r"(a[g]));
  };
  const auto fetch = [&](int panel, B* out) RECOPS_LAMBDA_INLINE {
    Stored<S, T, A>::load(b[panel], out);
    if constexpr (fetches_ahead<A>(Rows)) {
      RECOPS_UNROLL
      for (int x = 0; x < 2 * W; x += line) __builtin_prefetch(b[panel] + ahead + x);
    }
    b[panel] += k_step;
    if constexpr (Rows > 1) {
      out[0] = in_register(out[0]);
      out[1] = in_register(out[1]);
    }
  };
  const auto a_of = [&](int r) RECOPS_LAMBDA_INLINE {
    return B(*reinterpret_cast<const T*>(reinterpret_cast<const char*>(a[r / 3]) + r % 3 * row_bytes));
  };
  if constexpr (Rows > tile_rows<A> / 2) {  // many rows, seldom still in L1
    RECOPS_UNROLL
    for (int r = 0; r < Rows; ++r) {
      RECOPS_UNROLL
      for (int x = 0; x < V * W; x += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(sums + r * sums_stride + x, 1);
    }
  }
  for (Index p = in.k; p > 0; --p) {
    opaque();
    if constexpr (Rows > 1 || registers<A> == 32) {
      __builtin_prefetch(next, 0, 2);
      __builtin_prefetch(next + next_apart, 0, 2);
      next += next_step;
    }
    if constexpr (registers<A> == 32) {
      B bv[V];
      RECOPS_UNROLL
      for (int v = 0; v < Panels; ++v) fetch(v, bv + 2 * v);
      RECOPS_UNROLL
      for (int r = 0; r < Rows; ++r) {
        const B av = a_of(r);
        RECOPS_UNROLL
        for (int v = 0; v < V; ++v) acc[r][v] = mul_add(av, bv[v], acc[r][v]);
      }
    } else {  // there is room for one panel, and for no a that is kept from one to the next
      RECOPS_UNROLL
      for (int v = 0; v < Panels; ++v) {
        B bv[2];
        fetch(v, bv);
        RECOPS_UNROLL
        for (int r = 0; r < Rows; ++r) {
          const B av = a_of(r);
          acc[r][2 * v] = mul_add(av, bv[0], acc[r][2 * v]);
          acc[r][2 * v + 1] = mul_add(av, bv[1], acc[r][2 * v + 1]);
        }
        if constexpr (Panels > 1 && Rows > 1) opaque();
      }
    }
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) a[g] += col_stride;
  }
  if (in.add) {
    RECOPS_UNROLL
    for (int r = 0; r < Rows; ++r) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = acc[r][v] + B::load_unaligned(sums + r * sums_stride + v * W);
    }
  }
  if (in.bias) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const B bias = B::load_unaligned(in.bias + v * W);
      RECOPS_UNROLL
      for (int r = 0; r < Rows; ++r) acc[r][v] = acc[r][v] + bias;
    }
  }
  if (in.relu) {
    RECOPS_UNROLL
    for (int r = 0; r < Rows; ++r) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = activate(Activation::relu, acc[r][v]);
    }
  }
  RECOPS_UNROLL
  for (int r = 0; r < Rows; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v].store_unaligned(sums + r * sums_stride + v * W);
  }
}

template <class T, class S>
using Tile = void (*)(const TileInput<T, S>&, T*, Index);

template <class T, class A, class S, std::size_t... R>
constexpr std::array<Tile<T, S>, 2 * sizeof...(R)> all_tiles(std::index_sequence<R...>) {
  return {tile<T, A, S, R + 1, narrow_panels(R + 1)>..., tile<T, A, S, R + 1, tile_panels<A>(R + 1)>...};
}
/// The tile of `rows` rows that covers `tile_panels` or `narrow_panels` panels at once.
template <class T, class A, class S>
Tile<T, S> tile_for(Index rows, bool wide) {
  static constexpr auto all = all_tiles<T, A, S>(std::make_index_sequence<tile_rows<A>>());
  return all[static_cast<std::size_t>(rows - 1 + (wide ? tile_rows<A> : 0))];
}

}  // namespace detail
}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
