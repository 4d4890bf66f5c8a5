/// @file   recops/gating/gate_mix.hpp
/// @brief  Gate-weighted sums of expert outputs, one per task.
///
///     y[b, t] = sum_e  g[b, t, e] a[b, e]          over the experts visible to task t
///
/// Shapes      experts [B, E H]   gates [B, G], the layout of task_gates   out [B, T H], which is [B, T, H]
/// Edge cases  A task that sees nothing gets zeros.   An expert that a task does not see is not read for it; one that it sees is
///             multiplied even by a gate of 0, so a NaN there shows.   A NaN stays in its row.
/// Precision   sums in T over e in order.   Same bits for any number of threads.
/// Cost        2 B H G flops; each expert output is read from memory once, tasks are tiled in registers.   Backward twice that.
/// Errors      Error if shapes disagree; outputs untouched.
/// Reference   Ma et al., KDD 2018, equation 6.
#pragma once
#include <recops/gating/task_gates.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// out[o] (+)= sum_i g[o * out_stride + i * in_stride] in[i], `Out` outputs and `V` vectors (or a tail of `rest` elements).
template <class T, class A, int Out, int V, bool Tail>
RECOPS_INLINE void mix_tile(const T* in, Index in_cols, Index inputs, const T* next, const T* g, Index out_stride,
                            Index in_stride, T* out, Index out_cols, bool add, Index rest) {
  using B = simd::Batch<T, A>;
  constexpr Index W = simd::lanes<T, A>;
  const auto load = [=](const T* p) RECOPS_LAMBDA_INLINE {
    if constexpr (Tail) {
      return simd::load_first<T, A>(p, rest);
    } else {
      return B::load_unaligned(p);
    }
  };
  B acc[Out][V];
  RECOPS_UNROLL
  for (int o = 0; o < Out; ++o) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[o][v] = add ? load(out + o * out_cols + v * W) : B(T(0));
  }
  for (Index i = 0; i < inputs; ++i) {
    B a[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) a[v] = load(in + i * in_cols + v * W);
    if constexpr (V > 1) {
      RECOPS_UNROLL
      for (Index x = 0; x < V * W; x += 64 / static_cast<Index>(sizeof(T))) __builtin_prefetch(next + i * in_cols + x);
    }
    RECOPS_UNROLL
    for (int o = 0; o < Out; ++o) {
      const B w(g[o * out_stride + i * in_stride]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[o][v] = simd::mul_add(w, a[v], acc[o][v]);
    }
  }
  RECOPS_UNROLL
  for (int o = 0; o < Out; ++o) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      if constexpr (Tail) {
        simd::store_first(out + o * out_cols + v * W, acc[o][v], rest);
      } else {
        acc[o][v].store_unaligned(out + o * out_cols + v * W);
      }
    }
  }
}

/// All columns of `Out` outputs: as many vectors at once as the registers hold sums. `next`: what will be mixed after this.
template <class T, class A, int Out>
[[gnu::noinline]] void mix_columns(const T* in, Index cols, Index inputs, const T* next, const T* g, Index out_stride,
                                   Index in_stride, T* out, bool add) {
  constexpr int V = simd::registers<A> == 32 || Out <= 2 ? 4 : 2;
  constexpr Index W = simd::lanes<T, A>;
  Index j = 0;
  for (; j + V * W <= cols; j += V * W)
    mix_tile<T, A, Out, V, false>(in + j, cols, inputs, next + j, g, out_stride, in_stride, out + j, cols, add, 0);
  for (; j + W <= cols; j += W)
    mix_tile<T, A, Out, 1, false>(in + j, cols, inputs, next + j, g, out_stride, in_stride, out + j, cols, add, 0);
  if (j < cols)
    mix_tile<T, A, Out, 1, true>(in + j, cols, inputs, next + j, g, out_stride, in_stride, out + j, cols, add, cols - j);
}

/// out `[outputs, cols]` (+)= g in `[inputs, cols]`, both contiguous, g with any strides: outputs are tiled by what registers
/// hold. `next`: the in of the call after this, which is fetched meanwhile.
template <class T, class A = simd::DefaultArch>
void mix(const T* in, Index cols, Index inputs, const T* next, const T* g, Index out_stride, Index in_stride, T* out,
         Index outputs, bool add) {
  while (outputs > 0) {
    const Index tile = outputs < 6 ? outputs : 6;
    const auto run = [&]<int Out>(std::integral_constant<int, Out>) {
      mix_columns<T, A, Out>(in, cols, inputs, next, g, out_stride, in_stride, out, add);
    };
    switch (tile) {
      case 1:
        run(std::integral_constant<int, 1>());
        break;
      case 2:
        run(std::integral_constant<int, 2>());
        break;
      case 3:
        run(std::integral_constant<int, 3>());
        break;
      case 4:
        run(std::integral_constant<int, 4>());
        break;
      case 5:
        run(std::integral_constant<int, 5>());
        break;
      default:
        run(std::integral_constant<int, 6>());
        break;
    }
    outputs -= tile;
    g += tile * out_stride;
    out += tile * cols;
  }
}

/// d[o * ld + i] += <u[o], v[i]> for `O` x `I` rows of `cols` contiguous columns.
template <class T, class A, int O, int I>
[[gnu::noinline]] void dots_tile(const T* u, const T* v, Index cols, T* d, Index ld) {
  using B = simd::Batch<T, A>;
  B acc[O][I];
  RECOPS_UNROLL
  for (int o = 0; o < O; ++o) {
    RECOPS_UNROLL
    for (int i = 0; i < I; ++i) acc[o][i] = B(T(0));
  }
  simd::for_each_vector<T, A>(cols, [&](Index j, auto load, auto) RECOPS_LAMBDA_INLINE {
    B b[I];
    RECOPS_UNROLL
    for (int i = 0; i < I; ++i) b[i] = load(v + i * cols + j);
    RECOPS_UNROLL
    for (int o = 0; o < O; ++o) {
      const B a = load(u + o * cols + j);
      RECOPS_UNROLL
      for (int i = 0; i < I; ++i) acc[o][i] = simd::mul_add(a, b[i], acc[o][i]);
    }
  });
  RECOPS_UNROLL
  for (int o = 0; o < O; ++o) {
    RECOPS_UNROLL
    for (int i = 0; i < I; ++i) d[o * ld + i] += simd::sum_lanes(acc[o][i]);
  }
}

/// d `[outputs, inputs]` += u `[outputs, cols]` v `[inputs, cols]`^T
template <class T, class A = simd::DefaultArch>
void dots(const T* u, Index outputs, const T* v, Index inputs, Index cols, T* d) {
  constexpr int I = simd::registers<A> == 32 ? 4 : 2;
  for (Index o = 0; o < outputs; o += 2) {
    const bool pair = o + 2 <= outputs;
    Index i = 0;
    for (; i + I <= inputs; i += I) {
      if (pair) {
        dots_tile<T, A, 2, I>(u + o * cols, v + i * cols, cols, d + o * inputs + i, inputs);
      } else {
        dots_tile<T, A, 1, I>(u + o * cols, v + i * cols, cols, d + o * inputs + i, inputs);
      }
    }
    for (; i < inputs; ++i) {
      if (pair) {
        dots_tile<T, A, 2, 1>(u + o * cols, v + i * cols, cols, d + o * inputs + i, inputs);
      } else {
        dots_tile<T, A, 1, 1>(u + o * cols, v + i * cols, cols, d + o * inputs + i, inputs);
      }
    }
  }
}

/// Calls `f(first gate, gates, first expert)` for every run of gates of task `t` whose experts follow each other.
template <class F>
void for_each_run(const GateMap& map, Index t, F&& f) {
  for (Index g = map.begin(t), end = map.end(t); g < end;) {
    Index n = 1;
    while (g + n < end && map.expert(g + n) == map.expert(g) + n) ++n;
    f(g, n, map.expert(g));
    g += n;
  }
}

/// One row of gate_mix; the outputs `next`, of the next row, are fetched meanwhile.
template <class T, class A = simd::DefaultArch>
void gate_mix_row(const T* experts, const T* next, const T* gates, const GateMap& map, Index h, T* out) {
  if (map.is_dense()) {
    mix<T, A>(experts, h, map.experts(), next, gates, map.experts(), 1, out, map.tasks(), false);
    return;
  }
  for (Index t = 0; t < map.tasks(); ++t) {
    T* const y = out + t * h;
    if (map.count(t) == 0) std::fill_n(y, h, T(0));
    for_each_run(map, t, [&](Index g, Index n, Index e) {
      mix<T, A>(experts + e * h, h, n, next + e * h, gates + g, 0, 1, y, 1, g != map.begin(t));
    });
  }
}

/// Adds to one row of dexperts and dgates (null: not wanted).
template <class T, class A = simd::DefaultArch>
void gate_mix_row_backward(const T* experts, const T* gates, const GateMap& map, Index h, const T* dy, T* dexperts, T* dgates) {
  if (map.is_dense()) {
    if (dexperts) mix<T, A>(dy, h, map.tasks(), dy, gates, 1, map.experts(), dexperts, map.experts(), true);
    if (dgates) dots<T, A>(dy, map.tasks(), experts, map.experts(), h, dgates);
    return;
  }
  for (Index t = 0; t < map.tasks(); ++t) {
    const T* const up = dy + t * h;
    for (Index g = map.begin(t); g < map.end(t); ++g) {
      const Index at = map.expert(g) * h;
      if (dexperts) simd::axpy<T, A>(gates[g], up, dexperts + at, h);
      if (dgates) dgates[g] += simd::dot<T, A>(up, experts + at, h);
    }
  }
}

template <class T>
Index check_gate_mix(const char* name, MatrixView<const T> experts, MatrixView<const T> gates, const GateMap& map) {
  check_option(name, "tasks", map.tasks() >= 1, "a GateMap with tasks", static_cast<double>(map.tasks()));
  check_shape(name, "experts", experts, any_size, any_size);
  check_option(name, "columns of experts", experts.cols() % map.experts() == 0, "experts times the outputs of one",
               static_cast<double>(experts.cols()));
  check_shape(name, "gates", gates, experts.rows(), map.size());
  return experts.cols() / map.experts();
}

}  // namespace detail

/// `out [B, T H]`.
template <Real T>
void gate_mix(MatrixView<const T> experts, MatrixView<const T> gates, const GateMap& map, MatrixView<T> out, Workspace& ws) {
  const Index h = detail::check_gate_mix("gate_mix", experts, gates, map);
  check_shape("gate_mix", "out", out, experts.rows(), map.tasks() * h);
  if (h == 0) return;
  detail::for_row_blocks(experts.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first, last = first + count - 1; r <= last; ++r)
      detail::gate_mix_row<T>(experts.row(r), experts.row(std::min(r + 1, last)), gates.row(r), map, h, out.row(r));
  });
}

/// Adds to each of `dexperts [B, E H]` and `dgates [B, G]` that is not empty.
template <Real T>
void gate_mix_backward(MatrixView<const T> experts, MatrixView<const T> gates, const GateMap& map, MatrixView<const T> dout,
                       MatrixView<T> dexperts, MatrixView<T> dgates, Workspace& ws) {
  const char* const name = "gate_mix_backward";
  const Index h = detail::check_gate_mix(name, experts, gates, map);
  check_shape(name, "dout", dout, experts.rows(), map.tasks() * h);
  if (!dexperts.empty()) check_shape(name, "dexperts", dexperts, experts.rows(), experts.cols());
  if (!dgates.empty()) check_shape(name, "dgates", dgates, experts.rows(), map.size());
  if (h == 0) return;
  detail::for_row_blocks(experts.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r)
      detail::gate_mix_row_backward<T>(experts.row(r), gates.row(r), map, h, dout.row(r),
                                       dexperts.empty() ? nullptr : dexperts.row(r), dgates.empty() ? nullptr : dgates.row(r));
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
