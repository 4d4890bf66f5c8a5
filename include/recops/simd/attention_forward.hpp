/// @file   recops/simd/attention_forward.hpp
/// @brief  Streaming softmax attention of one sequence: the scores live in L1 only.
///
/// Many queries: lanes are queries, so that maximum and sum need no shuffles; keys and values are read where they are, one
/// number broadcast at a time. Few queries: lanes run along the heads, and keys and values pass once. Both keep a running
/// maximum that is raised only when a score passes it by 2^30: rescaling is then rare (Milakov and Gimelshein,
/// arXiv 1805.02867; Dao et al., arXiv 2205.14135).
#pragma once
#include <cmath>
#include <recops/simd/attention_blocks.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace attention_kernel {

/// Elements of keys that no longer fit L2.
template <class T>
inline constexpr Index long_history = 1024 * 1024 / Index{sizeof(T)};

/// Asks for part `part` of `parts` of the keys and values that follow a block, where a history is too long to be in L2 anyway.
template <class T>
RECOPS_INLINE void prefetch_next(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index part, Index parts) {
  constexpr Index line = 64 / Index{sizeof(T)};
  if (x.keys * x.k_stride <= long_history<T>) return;
  const Index next = b.at[b.count - 1] + 1, last = next + key_block < x.keys ? next + key_block : x.keys;
  for (Index j = next + part; j < last; j += parts) {
    for (Index d = 0; d < x.heads * x.key_width; d += line) __builtin_prefetch(x.k + j * x.k_stride + d, 0, 2);
    for (Index d = 0; d < x.heads * x.value_width && x.k != x.v; d += line) __builtin_prefetch(x.v + j * x.v_stride + d, 0, 2);
  }
}

/// m <- max(m, top), and what was summed relative to the old m follows.
template <class T, class A>
[[gnu::noinline, gnu::cold]] void raise(const T* top, T* m, T* l, T* o, Index G, Index width) {
  using B = Batch<T, A>;
  for (Index v = 0; v < G; v += lanes<T, A>) {
    const B before = B::load_aligned(m + v), after = xsimd::max(B::load_aligned(top + v), before);
    const B f = attention_kernel::exp2(before - after);
    after.store_aligned(m + v);
    (B::load_aligned(l + v) * f).store_aligned(l + v);
    for (Index d = 0; d < width; ++d) (B::load_aligned(o + d * G + v) * f).store_aligned(o + d * G + v);
  }
}

/// s <- 2^(s - m), l += its sum over keys.
template <class T, class A, int V>
RECOPS_INLINE void weights(Index keys, T* s, const T* m, T* l) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  B top[V], sum[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    top[v] = B::load_aligned(m + v * W);
    sum[v] = B::load_aligned(l + v * W);
  }
  for (Index j = 0; j < keys; ++j) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const B p = attention_kernel::exp2(B::load_aligned(s + j * G + v * W) - top[v]);
      p.store_aligned(s + j * G + v * W);
      sum[v] = sum[v] + p;
    }
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) sum[v].store_aligned(l + v * W);
}

/// One block of keys for one group of queries and one head.
template <class T, class A, int V>
void forward_block(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index head, const T* terms, const T* qt, T* s, T* m, T* l,
                   T* o) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  const T *k = b.k + head * x.key_width, *v = b.v + head * x.value_width;
  alignas(64) T top[G];
  const T* key_bias = b.bias ? b.bias + head * b.bias_head : nullptr;
  scores<T, A, V>(b.count, x.key_width, k, b.k_stride, qt, s, top);
  if (terms || key_bias) add_terms<T, A>(b.count, G, terms ? terms : key_bias, terms ? G : 1, s, top);
  bool higher = false;
  for (Index i = 0; i < G; i += W) higher |= xsimd::any(B::load_aligned(top + i) > B::load_aligned(m + i) + B(T(30)));
  if (higher) raise<T, A>(top, m, l, o, G, x.value_width);
  weights<T, A, V>(b.count, s, m, l);
  if (terms && !all_finite<T, A>(v, b.v_stride, b.count, x.value_width)) [[unlikely]] {
    careful_sums(b.count, x.value_width, G, v, b.v_stride, s, terms, o);
  } else {
    sums<T, A, V>(x.value_width, b.count, v, Index{1}, b.v_stride, s, G, o, G);
  }
}

template <class T, class A>
void forward_many(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, MatrixView<T> out, MatrixView<T> lse,
                  Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  const Index n = q1 - q0, padded = (n + W - 1) / W * W, groups = group_count<T, A>(n);
  const bool structure = x.causal || x.window > 0;
  for_head_runs(x, [&](Index h0, Index h1) {
    const auto mark = ws.mark();
    const Index heads = h1 - h0, dk = x.key_width, dv = x.value_width;
    T* qt = ws.take<T>(padded * heads * dk);
    T* o = ws.take<T>(padded * heads * dv);
    T* m = ws.take<T>(padded * heads);
    T* l = ws.take<T>(padded * heads);
    const Tiles<T, A> tiles(false, structure || x.pair_bias, ws);
    std::fill_n(o, padded * heads * dv, T(0));
    std::fill_n(m, padded * heads, std::numeric_limits<T>::lowest());
    std::fill_n(l, padded * heads, T(0));
    for (Index g = 0; g < groups; ++g) {
      const QueryGroup of = group<T, A>(n, g);
      const Index G = of.vectors * W, rows = n - of.first < G ? n - of.first : G;
      for (Index h = 0; h < heads; ++h)
        pack_transposed<T, A>(x.q + (q0 + of.first) * x.q_stride + (h0 + h) * dk, x.q_stride, rows, dk, x.scale * log2_e<T>,
                              qt + of.first * heads * dk + h * dk * G, G, G);
    }
    KeyBlocks<T> blocks(x, h0, h1, k0 > x.first_key(q0) ? k0 : x.first_key(q0), k1 < x.last_key(q1 - 1) ? k1 : x.last_key(q1 - 1),
                        key_block, -1, ws);
    for (KeyBlock<T> b; blocks.next(b);) {
      for (Index g = 0; g < groups; ++g) {
        const QueryGroup of = group<T, A>(n, g);
        const Index G = of.vectors * W, i0 = q0 + of.first, i1 = i0 + G < q1 ? i0 + G : q1;
        const Sight seen = structure ? sight(x, b, i0, i1) : Sight::all;
        if (seen == Sight::none) continue;
        for (Index h = 0; h < heads; ++h) {
          prefetch_next(x, b, g * heads + h, groups * heads);
          const T* terms = terms_of<T, A>(x, b, tiles, seen, h0, h, i0, i1, of.vectors);
          const Index row = of.first * heads + h * G;
          (of.vectors == 1 ? forward_block<T, A, 1> : forward_block<T, A, 2>)(
              x, b, h, terms, qt + of.first * heads * dk + h * dk * G, tiles.scores, m + row, l + row,
              o + of.first * heads * dv + h * dv * G);
        }
      }
    }
    for (Index g = 0; g < groups; ++g) {
      const QueryGroup of = group<T, A>(n, g);
      const Index G = of.vectors * W, rows = n - of.first < G ? n - of.first : G;
      for (Index h = 0; h < heads; ++h) {
        T *mg = m + of.first * heads + h * G, *lg = l + of.first * heads + h * G;
        if (!lse.empty()) {
          for (Index i = 0; i < rows; ++i)
            lse(of.first + i, h0 + h) = lg[i] == T(0) ? -infinity<T> : ln_2<T> * mg[i] + std::log(lg[i]);
        }
        for (Index i = 0; i < G; i += W) {
          const B sum = B::load_aligned(lg + i), zero(T(0));
          xsimd::select(sum == zero, zero, B(T(1)) / sum).store_aligned(lg + i);
        }
        unpack_transposed<T, A>(o + of.first * heads * dv + h * dv * G, G, lg,
                                out.data() + of.first * out.stride() + (h0 + h) * dv, out.stride(), rows, dv, false);
      }
    }
  });
}

template <class T, class A>
void forward_few(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, MatrixView<T> out, MatrixView<T> lse,
                 Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  const Index n = q1 - q0, dk = x.key_width, dv = x.value_width, dvp = padded_width<T, A>(dv), dkp = padded_width<T, A>(dk);
  const bool alike = !x.causal && x.window == 0 && !x.pair_bias;  // all queries see the same keys
  const Index together = alike ? n : 1;
  for_equal_heads(x, [&](Index h0, Index h1) {
    const Index heads = h1 - h0;
    const auto mark = ws.mark();
    T* q = ws.take<T>(together * heads * dkp);
    T* o = ws.take<T>(together * heads * dvp);
    T* l = ws.take<T>(together * heads * W);
    T* m = ws.take<T>(together * heads);
    T* all_scores = ws.take<T>(heads * row_block);
    for (Index i0 = q0; i0 < q1; i0 += together) {
      const auto inner = ws.mark();
      std::fill_n(o, together * heads * dvp, T(0));
      std::fill_n(l, together * heads * W, T(0));
      std::fill_n(m, together * heads, std::numeric_limits<T>::lowest());
      for (Index i = 0; i < together; ++i)
        for (Index h = 0; h < heads; ++h) {
          const T* from = x.q + (i0 + i) * x.q_stride + (h0 + h) * dk;
          T* to = q + (i * heads + h) * dkp;
          for_each_vector<T, A>(dk, [&](Index d, auto load, auto) RECOPS_LAMBDA_INLINE {
            (load(from + d) * B(x.scale * log2_e<T>)).store_aligned(to + d);
          });
        }
      const Index first = k0 > x.first_key(i0) ? k0 : x.first_key(i0), last = k1 < x.last_key(i0) ? k1 : x.last_key(i0);
      KeyBlocks<T> blocks(x, h0, h1, first, last, rows_at_once<T>(heads * dk, last - first), i0, ws);
      for (KeyBlock<T> b; blocks.next(b);) {
        // While values pass, memory would be idle: what comes next is fetched, where it is not in L2 already.
        const Index after = b.at[b.count - 1] + 1;
        const T* next =
            x.keys * x.k_stride > long_history<T> && after + b.count <= x.keys ? x.k + after * x.k_stride + h0 * dk : nullptr;
        for (Index i = 0; i < together; ++i) {
          row_dots<T, A>(b.count, b.k, b.k_stride, heads, q + i * heads * dkp, dkp, dk, all_scores);
          for (Index h = 0; h < heads; ++h) {
            const Index row = i * heads + h;
            T* s = all_scores + h * row_block;
            add_bias<T, A>(b.bias ? b.bias + h * b.bias_head : nullptr, b.count, s);
            B top(-infinity<T>);
            for (Index j = 0; j < b.count; j += W) top = xsimd::max(B::load_aligned(s + j), top);
            B sum = B::load_aligned(l + row * W);
            if (xsimd::any(top > B(m[row]) + B(T(30)))) {
              const T now = max_lane(top);
              alignas(64) T shift[W] = {m[row] - now};
              attention_kernel::exp2(B::load_aligned(shift)).store_aligned(shift);
              const B f(shift[0]);
              sum = sum * f;
              for (Index d = 0; d < dvp; d += W) (B::load_aligned(o + row * dvp + d) * f).store_aligned(o + row * dvp + d);
              m[row] = now;
            }
            const B base(m[row]);
            B other(T(0));
            Index j = 0;
            for (; j + W < b.count; j += 2 * W) {
              const B p = attention_kernel::exp2(B::load_aligned(s + j) - base),
                      r = attention_kernel::exp2(B::load_aligned(s + j + W) - base);
              p.store_aligned(s + j);
              r.store_aligned(s + j + W);
              sum = sum + p;
              other = other + r;
            }
            if (j < b.count) {
              const B p = attention_kernel::exp2(B::load_aligned(s + j) - base);
              p.store_aligned(s + j);
              sum = sum + p;
            }
            (sum + other).store_aligned(l + row * W);
            weighted_sum<T, A>(b.count, s, b.v + h * dv, b.v_stride, dv, next && i == 0 ? next + h * dk : nullptr, x.k_stride,
                               o + row * dvp);
          }
        }
      }
      for (Index i = 0; i < together; ++i) {
        for (Index h = 0; h < heads; ++h) {
          const Index row = i * heads + h, to = i0 + i - q0;
          const T sum = sum_lanes(B::load_aligned(l + row * W));
          if (!lse.empty()) lse(to, h0 + h) = sum == T(0) ? -infinity<T> : ln_2<T> * m[row] + std::log(sum);
          const B f(sum == T(0) ? T(0) : T(1) / sum);
          T* y = out.row(to) + (h0 + h) * dv;
          for_each_vector<T, A>(
              dv, [&](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + d, load(o + row * dvp + d) * f); });
        }
      }
    }
  });
}

}  // namespace attention_kernel

/// Queries [q0, q1) of `x` over its keys [k0, k1): out `[q1 - q0, heads * value_width]` and, unless empty, the log of the sum of
/// exponentials `[q1 - q0, heads]`. A row that sees no key gets 0 and -infinity.
template <class T, class A = DefaultArch>
void attention_forward(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, MatrixView<T> out,
                       MatrixView<T> lse, Workspace& ws) {
  if (q1 - q0 <= attention_kernel::few_queries<T, A>) {
    attention_kernel::forward_few<T, A>(x, q0, q1, k0, k1, out, lse, ws);
  } else {
    attention_kernel::forward_many<T, A>(x, q0, q1, k0, k1, out, lse, ws);
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
