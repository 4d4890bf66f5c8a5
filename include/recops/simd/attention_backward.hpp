/// @file   recops/simd/attention_backward.hpp
/// @brief  Gradients of streaming softmax attention of one sequence: weights are recomputed block by block, never stored.
///
/// Many and few queries, masks and precision as in attention_forward.hpp.
#pragma once
#include <recops/simd/attention_blocks.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Where backward adds; null is not wanted. `dq` belongs to the first query of the call, the rest to the whole sequence.
template <class T>
struct AttentionGradients {
  T *dq = nullptr, *dk = nullptr, *dv = nullptr;
  Index dq_stride = 0, dk_stride = 0, dv_stride = 0;
  T* key_bias = nullptr;
  Index key_bias_stride = 0, key_bias_head = 0;
  T* pair_bias = nullptr;
  Index pair_stride = 0, pair_head = 0;
};

/// What backward needs of forward, from the first query of the call on.
template <class T>
struct AttentionResult {
  const T *out, *dout, *log_sum_exp, *dlog_sum_exp;  ///< the last may be null
  Index out_stride, dout_stride, lse_stride, dlse_stride;
};

namespace attention_kernel {

/// The row of key j [d] += p[j] * x[d], and with y also += factor * s[j] * y[d], in this order.
template <class T, class A>
[[gnu::noinline]] void add_rows(const KeyBlock<T>& b, const T* p, const T* x, const T* s, T factor, const T* y, Index width,
                                T* rows, Index stride) {
  using B = Batch<T, A>;
  for_each_vector<T, A>(width, [&](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B u = x ? load(x + d) : B(T(0)), v = y ? load(y + d) * B(factor) : B(T(0));
    T* to = rows + b.first * stride + d;
    for (Index j = 0; j < b.count; ++j, to += stride) {
      if (b.at) to = rows + b.at[j] * stride + d;
      B sum = load(to);
      if (x) sum = mul_add(B(p[j]), u, sum);
      if (y) sum = mul_add(B(s[j]), v, sum);
      store(to, sum);
    }
  });
}

/// log_sum_exp in units of log 2; infinity, which makes every weight 0, for a row that saw nothing.
template <class T>
T weight_base(T lse) {
  return lse == -infinity<T> ? infinity<T> : lse * log2_e<T>;
}

/// dout . out - dlse of one row and head: what every score's gradient is measured from.
template <class T, class A>
T gradient_base(const AttentionResult<T>& r, Index i, Index h, Index dv) {
  const T d = simd::dot<T, A>(r.dout + i * r.dout_stride + h * dv, r.out + i * r.out_stride + h * dv, dv);
  return r.dlog_sum_exp ? d - r.dlog_sum_exp[i * r.dlse_stride + h] : d;
}

template <class T, class A>
void backward_few(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, const AttentionResult<T>& r,
                  const AttentionGradients<T>& g, Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  const Index dk = x.key_width, dv = x.value_width, dkp = padded_width<T, A>(dk);
  for (Index i = q0; i < q1; ++i) {
    for_equal_heads(x, [&](Index h0, Index h1) {
      const auto mark = ws.mark();
      const Index heads = h1 - h0;
      T* dq = ws.take<T>(heads * dkp);
      T* q = ws.take<T>(heads * dk);
      T* base = ws.take<T>(heads);
      T* weights_of = ws.take<T>(heads * row_block);
      T* gradients_of = ws.take<T>(heads * row_block);
      std::fill_n(dq, heads * dkp, T(0));
      for (Index h = 0; h < heads; ++h) base[h] = gradient_base<T, A>(r, i - q0, h0 + h, dv);
      simd::scale<T, A>(x.scale * log2_e<T>, x.q + i * x.q_stride + h0 * dk, q, heads * dk);
      const Index first = k0 > x.first_key(i) ? k0 : x.first_key(i), last = k1 < x.last_key(i) ? k1 : x.last_key(i);
      KeyBlocks<T> blocks(x, h0, h1, first, last, rows_at_once<T>(heads * dk, last - first), i, ws);
      for (KeyBlock<T> b; blocks.next(b);) {
        row_dots<T, A>(b.count, b.k, b.k_stride, heads, q, dk, dk, weights_of);
        row_dots<T, A>(b.count, b.v, b.v_stride, heads, r.dout + (i - q0) * r.dout_stride + h0 * dv, dv, dv, gradients_of);
        for (Index h = h0; h < h1; ++h) {
          const T *dout = r.dout + (i - q0) * r.dout_stride + h * dv, *k = b.k + (h - h0) * dk;
          T *p = weights_of + (h - h0) * row_block, *ds = gradients_of + (h - h0) * row_block;
          add_bias<T, A>(b.bias ? b.bias + (h - h0) * b.bias_head : nullptr, b.count, p);
          const B lse(weight_base(r.log_sum_exp[(i - q0) * r.lse_stride + h])), mean(base[h - h0]);
          for (Index j = 0; j < b.count; j += W) {
            const B weight = attention_kernel::exp2(B::load_aligned(p + j) - lse);
            weight.store_aligned(p + j);
            (weight * (B::load_aligned(ds + j) - mean)).store_aligned(ds + j);
          }
          if (g.dq) weighted_sum<T, A>(b.count, ds, k, b.k_stride, dk, dq + (h - h0) * dkp);
          const T *qh = x.q + i * x.q_stride + h * dk, *none = nullptr;
          const bool shared = g.dk == g.dv && g.dk_stride == g.dv_stride && dk == dv;  // keys are values: one pass
          if (g.dv) add_rows<T, A>(b, p, dout, ds, x.scale, shared ? qh : none, dv, g.dv + h * dv, g.dv_stride);
          if (g.dk && !shared) add_rows<T, A>(b, p, none, ds, x.scale, qh, dk, g.dk + h * dk, g.dk_stride);
          for (Index j = 0; j < b.count && g.key_bias; ++j)
            g.key_bias[b.position(j) * g.key_bias_stride + h * g.key_bias_head] += ds[j];
          for (Index j = 0; j < b.count && g.pair_bias; ++j)
            g.pair_bias[h * g.pair_head + i * g.pair_stride + b.position(j)] += ds[j];
        }
      }
      for (Index h = 0; h < heads && g.dq; ++h)
        simd::axpy<T, A>(x.scale, dq + h * dkp, g.dq + (i - q0) * g.dq_stride + (h0 + h) * dk, dk);
    });
  }
}

/// s <- P = 2^s, d <- dS = P * d; both 0 where `terms` (or null) hides.
template <class T, class A, int V>
[[gnu::noinline]] void weight_gradients(Index keys, T* s, T* d, const T* terms) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  const B hidden(-infinity<T>), zero(T(0));
  for (Index j = 0; j < keys; ++j) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const Index at = j * G + v * W;
      B p = attention_kernel::exp2(B::load_aligned(s + at)), ds = p * B::load_aligned(d + at);
      if (terms != nullptr) {
        const auto out_of_sight = B::load_aligned(terms + at) == hidden;
        p = xsimd::select(out_of_sight, zero, p);
        ds = xsimd::select(out_of_sight, zero, ds);
      }
      p.store_aligned(s + at);
      ds.store_aligned(d + at);
    }
  }
}

/// What backward keeps for one group of queries and one head.
template <class T>
struct GroupHead {
  const T *qt, *dot;            // transposed queries (times scale, in units of log 2) and output gradients, [width][lanes]
  const T *lse, *base;          // [lanes], negative: what products of keys and of values start from
  const T *q_rows, *dout_rows;  // [queries][whole vectors]
  Index q_stride, dout_stride, queries;
  T* dqt;  // [key width][lanes]
};

template <class T, class A, int V>
void backward_block(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index head, const T* terms, const GroupHead<T>& of,
                    const Tiles<T, A>& tiles, T* dk_block, Index dk_stride, T* dv_block, Index dv_stride) {
  constexpr Index W = lanes<T, A>, G = V * W;
  const Index dk = x.key_width, dv = x.value_width;
  const T *k = b.k + head * dk, *v = b.v + head * dv, *key_bias = b.bias ? b.bias + head * b.bias_head : nullptr;
  T *s = tiles.scores, *d = tiles.other;
  scores<T, A, V>(b.count, dk, k, b.k_stride, of.qt, of.lse, s);
  if (terms || key_bias) {
    alignas(64) T top[G];  // the maxima are of no interest here
    add_terms<T, A>(b.count, G, terms ? terms : key_bias, terms ? G : 1, s, top);
  }
  scores<T, A, V>(b.count, dv, v, b.v_stride, of.dot, of.base, d);
  weight_gradients<T, A, V>(b.count, s, d, terms);
  const bool clean =
      !terms || (all_finite<T, A>(k, b.k_stride, b.count, dk) && all_finite<T, A>(of.q_rows, of.q_stride, of.queries, dk) &&
                 all_finite<T, A>(of.dout_rows, of.dout_stride, of.queries, dv));
  if (clean) [[likely]] {
    if (of.dqt) sums<T, A, V, true>(dk, b.count, k, b.k_stride, d, G, of.dqt, G);
    if (dv_block)
      sums_wide<T, A, false>(b.count, (dv + W - 1) / W, of.queries, s, G, of.dout_rows, of.dout_stride, dv_block, dv_stride);
    if (dk_block)
      sums_wide<T, A, false>(b.count, (dk + W - 1) / W, of.queries, d, G, of.q_rows, of.q_stride, dk_block, dk_stride);
  } else {
    if (of.dqt) careful_sums(b.count, dk, G, k, b.k_stride, d, terms, of.dqt);
    if (dv_block) careful_rows(b.count, of.queries, dv, G, of.dout_rows, of.dout_stride, s, terms, dv_block, dv_stride);
    if (dk_block) careful_rows(b.count, of.queries, dk, G, of.q_rows, of.q_stride, d, terms, dk_block, dk_stride);
  }
}

/// Adds dS of a block to the gradients of the biases.
template <class T, class A>
void bias_gradients(const KeyBlock<T>& b, const AttentionGradients<T>& g, Index head, Index i0, Index queries, Index G,
                    const T* ds) {
  for (Index j = 0; j < b.count && g.key_bias; ++j)
    g.key_bias[b.position(j) * g.key_bias_stride + head * g.key_bias_head] += simd::sum<T, A>(ds + j * G, queries);
  for (Index i = 0; i < queries && g.pair_bias; ++i) {
    T* to = g.pair_bias + head * g.pair_head + (i0 + i) * g.pair_stride;
    for (Index j = 0; j < b.count; ++j) to[b.position(j)] += ds[j * G + i];
  }
}

template <class T, class A>
void backward_many(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, const AttentionResult<T>& r,
                   const AttentionGradients<T>& g, Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  const Index n = q1 - q0, padded = (n + W - 1) / W * W, groups = group_count<T, A>(n);
  const bool structure = x.causal || x.window > 0;
  for_head_runs(x, [&](Index h0, Index h1) {
    const auto mark = ws.mark();
    const Index heads = h1 - h0, dk = x.key_width, dv = x.value_width, dkp = padded_width<T, A>(dk), dvp = padded_width<T, A>(dv);
    T* qt = ws.take<T>(padded * heads * dk);
    T* dot = ws.take<T>(padded * heads * dv);
    T* dqt = g.dq ? ws.take<T>(padded * heads * dk) : nullptr;
    T* lse = ws.take<T>(padded * heads);
    T* base = ws.take<T>(padded * heads);
    T* q_rows = dkp == dk ? nullptr : ws.take<T>(n * heads * dkp);
    T* dout_rows = dvp == dv ? nullptr : ws.take<T>(n * heads * dvp);
    T* dk_block = g.dk ? ws.take<T>(key_block * heads * dkp) : nullptr;
    T* dv_block = g.dv ? ws.take<T>(key_block * heads * dvp) : nullptr;
    const Tiles<T, A> tiles(true, structure || x.pair_bias, ws);
    if (dqt) std::fill_n(dqt, padded * heads * dk, T(0));
    const auto pad_rows = [&](const T* in, Index stride, Index width, Index whole, T* out) {
      for (Index i = 0; i < n; ++i)
        for (Index h = 0; h < heads; ++h) {
          T* to = out + (i * heads + h) * whole;
          std::copy_n(in + i * stride + (h0 + h) * width, width, to);
          std::fill(to + width, to + whole, T(0));
        }
    };
    if (q_rows && g.dk) pad_rows(x.q + q0 * x.q_stride, x.q_stride, dk, dkp, q_rows);
    if (dout_rows && g.dv) pad_rows(r.dout, r.dout_stride, dv, dvp, dout_rows);
    const auto group_head = [&](QueryGroup of, Index h) {
      const Index G = of.vectors * W, row = of.first * heads + h * G, at = of.first;
      GroupHead<T> y{};
      y.qt = qt + of.first * heads * dk + h * dk * G;
      y.dot = dot + of.first * heads * dv + h * dv * G;
      y.dqt = dqt ? dqt + of.first * heads * dk + h * dk * G : nullptr;
      y.lse = lse + row;
      y.base = base + row;
      y.queries = n - of.first < G ? n - of.first : G;
      y.q_rows = q_rows && g.dk ? q_rows + (at * heads + h) * dkp : x.q + (q0 + at) * x.q_stride + (h0 + h) * dk;
      y.q_stride = q_rows && g.dk ? heads * dkp : x.q_stride;
      y.dout_rows = dout_rows && g.dv ? dout_rows + (at * heads + h) * dvp : r.dout + at * r.dout_stride + (h0 + h) * dv;
      y.dout_stride = dout_rows && g.dv ? heads * dvp : r.dout_stride;
      return y;
    };
    for (Index gr = 0; gr < groups; ++gr) {
      const QueryGroup of = group<T, A>(n, gr);
      const Index G = of.vectors * W;
      for (Index h = 0; h < heads; ++h) {
        const GroupHead<T> y = group_head(of, h);
        pack_transposed<T, A>(x.q + (q0 + of.first) * x.q_stride + (h0 + h) * dk, x.q_stride, y.queries, dk, x.scale * log2_e<T>,
                              qt + (y.qt - qt), G, G);
        pack_transposed<T, A>(r.dout + of.first * r.dout_stride + (h0 + h) * dv, r.dout_stride, y.queries, dv, T(1),
                              dot + (y.dot - dot), G, G);
        for (Index i = 0; i < G; ++i) {
          const Index row = of.first + i, to = y.lse - lse + i;
          lse[to] = i < y.queries ? -weight_base(r.log_sum_exp[row * r.lse_stride + h0 + h]) : -infinity<T>;
          base[to] = i < y.queries ? -gradient_base<T, A>(r, row, h0 + h, dv) : T(0);
        }
      }
    }
    KeyBlocks<T> blocks(x, h0, h1, k0 > x.first_key(q0) ? k0 : x.first_key(q0), k1 < x.last_key(q1 - 1) ? k1 : x.last_key(q1 - 1),
                        key_block, -1, ws);
    for (KeyBlock<T> b; blocks.next(b);) {
      if (dk_block) std::fill_n(dk_block, b.count * heads * dkp, T(0));
      if (dv_block) std::fill_n(dv_block, b.count * heads * dvp, T(0));
      for (Index gr = 0; gr < groups; ++gr) {
        const QueryGroup of = group<T, A>(n, gr);
        const Index i0 = q0 + of.first, i1 = i0 + of.vectors * W < q1 ? i0 + of.vectors * W : q1;
        const Sight seen = structure ? sight(x, b, i0, i1) : Sight::all;
        if (seen == Sight::none) continue;
        for (Index h = 0; h < heads; ++h) {
          const T* terms = terms_of<T, A>(x, b, tiles, seen, h0, h, i0, i1, of.vectors);
          (of.vectors == 1 ? backward_block<T, A, 1>
                           : backward_block<T, A, 2>)(x, b, h, terms, group_head(of, h), tiles,
                                                      dk_block ? dk_block + h * dkp : nullptr, heads * dkp,
                                                      dv_block ? dv_block + h * dvp : nullptr, heads * dvp);
          if (g.key_bias || g.pair_bias) bias_gradients<T, A>(b, g, h0 + h, i0, i1 - i0, of.vectors * W, tiles.other);
        }
      }
      for (Index j = 0; j < b.count; ++j) {
        for (Index h = 0; h < heads; ++h) {
          if (dv_block) simd::add<T, A>(dv_block + (j * heads + h) * dvp, g.dv + b.position(j) * g.dv_stride + (h0 + h) * dv, dv);
          if (dk_block)
            simd::axpy<T, A>(x.scale, dk_block + (j * heads + h) * dkp, g.dk + b.position(j) * g.dk_stride + (h0 + h) * dk, dk);
        }
      }
    }
    if (!dqt) return;
    T* factor = lse;  // no longer needed
    for (Index i = 0; i < lanes<T, A> * most_vectors && i < padded * heads; ++i) factor[i] = x.scale;
    for (Index gr = 0; gr < groups; ++gr) {
      const QueryGroup of = group<T, A>(n, gr);
      for (Index h = 0; h < heads; ++h) {
        const GroupHead<T> y = group_head(of, h);
        unpack_transposed<T, A>(y.dqt, of.vectors * W, factor, g.dq + of.first * g.dq_stride + (h0 + h) * dk, g.dq_stride,
                                y.queries, dk, true);
      }
    }
  });
}

}  // namespace attention_kernel

/// Adds to the gradients of what `attention_forward` read: queries [q0, q1), keys [k0, k1). Rows that saw no key add nothing.
template <class T, class A = DefaultArch>
void attention_backward(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, const AttentionResult<T>& r,
                        const AttentionGradients<T>& g, Workspace& ws) {
  if (q1 - q0 <= attention_kernel::few_queries<T, A> * 3 / 4) {
    attention_kernel::backward_few<T, A>(x, q0, q1, k0, k1, r, g, ws);
  } else {
    attention_kernel::backward_many<T, A>(x, q0, q1, k0, k1, r, g, ws);
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
