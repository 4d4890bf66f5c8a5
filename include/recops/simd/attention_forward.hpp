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

/// The keys and values that follow a block, where a history is too long to be in L2 anyway; `calls` of `forward_block` ask for them.
template <class T>
RowsAhead<T> rows_after(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index calls) {
  if (x.keys * x.k_stride <= long_history<T> || x.stored) return {};
  const Index next = b.position(b.count - 1) + 1, rows = next + key_block < x.keys ? key_block : x.keys - next;
  return {.first = x.k + next * x.k_stride,
          .second = x.k == x.v ? nullptr : x.v + next * x.v_stride,
          .first_stride = x.k_stride,
          .second_stride = x.v_stride,
          .first_cols = x.heads * x.key_width,
          .second_cols = x.heads * x.value_width,
          .rows = rows,
          .each = 1 + rows / (16 * calls)};
}

/// Lanes whose weights would leave the range in which they are exact: their scores are measured from a maximum of long ago (or, while
/// nothing was summed, from 0). A block whose weights sum to 2^-8 has a score above -14.
template <class T, class A>
RECOPS_INLINE typename Batch<T, A>::batch_bool_type out_of_range(Batch<T, A> top, Batch<T, A> l) {
  using B = Batch<T, A>;
  return (top > B(T(30))) | ((l == B(T(0))) & (top < B(T(-14))) & (top > B(-infinity<T>)));
}
template <class T, class A>
RECOPS_INLINE bool out_of_range(const T* top, const T* l, Index G) {
  using B = Batch<T, A>;
  bool far = false;
  for (Index v = 0; v < G; v += lanes<T, A>)
    far |= xsimd::any(out_of_range<T, A>(B::load_aligned(top + v), B::load_aligned(l + v)));
  return far;
}

/// Measures the scores of lanes that are out of range from `top`: s, and what was summed before, follow.
template <class T, class A>
[[gnu::noinline, gnu::cold]] void raise(const T* top, Index keys, T* s, T* shift, T* l, T* o, Index G, Index width) {
  using B = Batch<T, A>;
  for (Index v = 0; v < G; v += lanes<T, A>) {
    const B zero(T(0)), t = B::load_aligned(top + v), sum = B::load_aligned(l + v);
    const auto far = out_of_range<T, A>(t, sum);
    const B up = xsimd::select(far, t, zero), f = xsimd::select(far, attention_kernel::exp2(xsimd::min(zero - t, zero)), B(T(1)));
    (B::load_aligned(shift + v) - up).store_aligned(shift + v);
    (sum * f).store_aligned(l + v);
    for (Index j = 0; j < keys; ++j) (B::load_aligned(s + j * G + v) - up).store_aligned(s + j * G + v);
    for (Index d = 0; d < width; ++d) (B::load_aligned(o + d * G + v) * f).store_aligned(o + d * G + v);
  }
}

/// One block of keys for one group of queries and one head. Scores are kept plus `shift`, the negative of a former maximum. Both ways give
/// the same bits; once `patience` is at an end only the one for scores that lie far apart is taken.
template <class T, class A, int V>
void forward_block(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index head, const T* terms, const T* qt, T* s, T* shift,
                   T* l, T* o, Index& patience, RowsAhead<T>& ahead) {
  constexpr Index G = V * lanes<T, A>;
  const T *k = b.k + head * x.key_width, *v = b.v + head * x.value_width;
  const T* key_bias = b.bias ? b.bias + head * b.bias_head : nullptr;
  const bool plain = !terms && !key_bias, hope = plain && patience > 0;
  scores<T, A, V>(b.count, x.key_width, k, b.k_stride, qt, shift, s, &ahead);
  if (!hope || !near_weights<T, A, V>(b.count, s, l)) {
    alignas(64) T top[G];
    if (plain) {
      if (hope) {
        --patience;
        scores<T, A, V>(b.count, x.key_width, k, b.k_stride, qt, shift, s);
      }
      largest<T, A>(b.count, G, s, top);
    } else {
      add_terms<T, A>(b.count, G, terms ? terms : key_bias, terms ? G : 1, s, top);
    }
    if (out_of_range<T, A>(top, l, G)) raise<T, A>(top, b.count, s, shift, l, o, G, x.value_width);
    weights<T, A>(b.count, G, s, l);
  }
  if (terms && !all_finite<T, A>(v, b.v_stride, b.count, x.value_width)) [[unlikely]] {
    careful_sums(b.count, x.value_width, G, v, b.v_stride, s, terms, o);
  } else {
    sums<T, A, V, true>(x.value_width, b.count, v, b.v_stride, s, G, o, G, &ahead);
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
    T* shift = ws.take<T>(padded * heads);
    T* l = ws.take<T>(padded * heads);
    const Tiles<T, A> tiles(false, structure || x.pair_bias, ws);
    std::fill_n(o, padded * heads * dv, T(0));
    std::fill_n(shift, padded * heads, T(0));
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
    Index patience = 2 * groups * heads;  // the first block of each may well measure from elsewhere
    for (KeyBlock<T> b; blocks.next(b);) {
      RowsAhead<T> ahead = rows_after(x, b, groups * heads);
      for (Index g = 0; g < groups; ++g) {
        const QueryGroup of = group<T, A>(n, g);
        const Index G = of.vectors * W, i0 = q0 + of.first, i1 = i0 + G < q1 ? i0 + G : q1;
        const Sight seen = structure ? sight(x, b, i0, i1) : Sight::all;
        if (seen == Sight::none) continue;
        for (Index h = 0; h < heads; ++h) {
          const T* terms = terms_of<T, A>(x, b, tiles, seen, h0, h, i0, i1, of.vectors);
          const Index row = of.first * heads + h * G;
          (of.vectors == 1 ? forward_block<T, A, 1>
                           : forward_block<T, A, 2>)(x, b, h, terms, qt + of.first * heads * dk + h * dk * G, tiles.scores,
                                                     shift + row, l + row, o + of.first * heads * dv + h * dv * G, patience,
                                                     ahead);
        }
      }
      ahead.ask(ahead.rows);  // with terms, or where heads are narrow, there are too few tiles to ask for all
    }
    for (Index g = 0; g < groups; ++g) {
      const QueryGroup of = group<T, A>(n, g);
      const Index G = of.vectors * W, rows = n - of.first < G ? n - of.first : G;
      for (Index h = 0; h < heads; ++h) {
        T *from = shift + of.first * heads + h * G, *lg = l + of.first * heads + h * G;
        if (!lse.empty()) {
          for (Index i = 0; i < rows; ++i)
            lse(of.first + i, h0 + h) = lg[i] == T(0) ? -infinity<T> : std::log(lg[i]) - ln_2<T> * from[i];
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

/// Whether keys fit L1: streams gain nothing there, and rows of four vectors and more are faster one after the other (0.55 against 0.65 us
/// for 100 keys of 8 vectors).
template <class T>
bool short_history(Index keys, Index width) {
  return keys * width <= 32768 / Index{sizeof(T)};
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
    const Index score_row = row_block > together * most_steps * W ? row_block : together * most_steps * W;
    T* const q = ws.take<T>(heads * (together * (dkp + dvp + W + 1) + score_row));
    T *const o = q + together * heads * dkp, *const l = o + together * heads * dvp, *const all_scores = l + together * heads * W,
             *const m = all_scores + heads * score_row;
    for (Index i0 = q0; i0 < q1; i0 += together) {
      const auto inner = ws.mark();
      std::fill(o, all_scores, T(0));  // and l
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
      const bool seen = !x.mask && !x.key_bias && !x.pair_bias;  // all of first ... last
      const RunningSums<T> all_sums{m, l, o};
      bool done = false;
      if (seen && last - first >= W && x.stored != nullptr) {
        done = x.stored->few(*x.stored, x.stored_row + first, last - first, h0, together, heads, dk, dv, q, all_sums, all_scores);
      } else if (seen && last - first >= W && !(dk >= 4 * W && short_history<T>(last - first, heads * dk))) {
        const HistoryRows<T> k{x.k + first * x.k_stride + h0 * dk, x.k_stride}, v{x.v + first * x.v_stride + h0 * dv, x.v_stride};
        done = stream_keys<T, A>(last - first, k, v, together, heads, dk, dv, q, all_sums, all_scores);
      }
      KeyBlocks<T> blocks(x, h0, h1, done ? last : first, last, rows_at_once<T>(heads * dk, last - first), i0, ws);
      for (KeyBlock<T> b; blocks.next(b);) {
        for (Index i = 0; i < together; ++i) {
          const RunningSums<T> sums{m + i * heads, l + i * heads * W, o + i * heads * dvp};
          const T* qi = q + i * heads * dkp;
          row_dots<T, A>(b.count, b.k, b.k_stride, heads, qi, dkp, dk, all_scores);
          for (Index h = 0; h < heads; ++h) {
            T *s = all_scores + h * row_block, *lh = sums.l + h * W;
            add_bias<T, A>(b.bias ? b.bias + h * b.bias_head : nullptr, b.count, s);
            B top(-infinity<T>);
            for (Index j = 0; j < b.count; j += W) top = xsimd::max(B::load_aligned(s + j), top);
            if (xsimd::any(top > B(sums.m[h]) + B(T(30)))) raise<T, A>(sums, h, max_lane(top), dvp);
            const B base(sums.m[h]);
            B sum = B::load_aligned(lh);
            for (Index j = 0; j < b.count; j += W) {
              const B p = attention_kernel::exp2(B::load_aligned(s + j) - base);
              p.store_aligned(s + j);
              sum = sum + p;
            }
            sum.store_aligned(lh);
            weighted_sum<T, A>(b.count, s, b.v + h * dv, b.v_stride, dv, sums.o + h * dvp);
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
