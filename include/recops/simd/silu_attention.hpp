/// @file   recops/simd/silu_attention.hpp
/// @brief  Attention without a softmax, of one sequence: out_i = weight sum_j silu(scale q_i . k_j + bias_ij) v_j over the visible keys.
///
/// The tiles are those of attention_tiles.hpp: many queries in lanes, few along the heads. Without a maximum and a sum per query there
/// is one pass and nothing to rescale or to keep for backward. Blocks out of sight are skipped. A term that depends on the distance of
/// query and key is read where it lies: in a reversed table the queries of a vector find theirs side by side.
#pragma once
#include <recops/core/log_buckets.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/attention_tiles.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// One sequence. The queries are its last ones: query i stands at position keys - queries + i. Row i of head h of the queries begins
/// at q + i * q_stride + h * key_width.
template <class T>
struct SiluAttentionOperands {
  const T *q = nullptr, *k = nullptr, *v = nullptr;
  Index q_stride = 0, k_stride = 0, v_stride = 0;
  Index queries = 0, keys = 0, heads = 1, key_width = 0, value_width = 0;
  T scale = T(1), weight = T(1);
  bool causal = true;
  Index window = 0;   ///< w > 0: a key is seen from fewer than w positions behind
  Index targets = 0;  ///< the last positions see what comes before them all and themselves, and stand at the same place
  const T *position = nullptr,
          *reversed = nullptr;  ///< position[j - i] = reversed[i - j] is added to the score of (i, j); or null
  const T* time = nullptr;      ///< [buckets] likewise by the gap of their times; or null
  Index buckets = 0;
  IndexView key_times, query_times;  ///< [keys], [queries]

  Index first_position() const { return keys - queries; }
  Index history() const { return keys - targets; }
  /// Where a position counts as standing.
  Index place(Index p) const { return p < history() ? p : history(); }
  bool sees(Index p, Index j) const {
    if (causal && (j > p || (j >= history() && j != p))) return false;
    return window == 0 || place(p) - place(j) < window;
  }
  Index bucket(Index query, Index key) const { return log_bucket(query_times[query], key_times[key], buckets - 1); }
};

/// Where backward adds; null is not wanted.
template <class T>
struct SiluAttentionGradients {
  T *dq = nullptr, *dk = nullptr, *dv = nullptr;  ///< of the first query, of the first key
  Index dq_stride = 0, dk_stride = 0, dv_stride = 0;
  T* reversed = nullptr;   ///< as `reversed` of the operands
  double* time = nullptr;  ///< [buckets]
};

namespace silu_attention_kernel {

using attention_kernel::infinity;
using attention_kernel::key_block;

/// Scores from where on silu is 0 in all but name: below, e^-x would overflow. A NaN stays NaN.
template <class T, class A>
RECOPS_INLINE Batch<T, A> bounded(Batch<T, A> x) {
  return xsimd::max(Batch<T, A>(std::is_same_v<T, float> ? T(-87) : T(-690)), x);
}
/// 1 / (1 + e^-x) of a bounded x, absolute error below 1e-7 (float).
template <class T, class A>
RECOPS_INLINE Batch<T, A> gate(Batch<T, A> x) {
  using B = Batch<T, A>;
  return B(T(1)) / (B(T(1)) + simd::exp2(x * B(-attention_kernel::log2_e<T>)));
}

/// The additive terms of a tile: key j begins at data + j * step. Null: none. `hides`: -infinity where a pair is out of sight.
template <class T>
struct Terms {
  const T* data = nullptr;
  Index step = 0;
  bool hides = false;
};

/// Calls f(at, score with its terms, hidden or not) for each vector of a tile.
template <class T, class A, int V, class F>
RECOPS_INLINE void for_each_score(Index keys, const T* s, const Terms<T>& terms, F&& f) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  const auto all = [&](auto with_terms, auto hides) RECOPS_LAMBDA_INLINE {
    for (Index j = 0; j < keys; ++j) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) {
        const Index at = j * G + v * W;
        const B x = B::load_aligned(s + at);
        if constexpr (with_terms()) {
          const B t = B::load_unaligned(terms.data + j * terms.step + v * W);
          if constexpr (hides()) {
            f(at, x + t, t == B(-infinity<T>));
          } else {
            f(at, x + t, nullptr);
          }
        } else {
          f(at, x, nullptr);
        }
      }
    }
  };
  if (terms.data == nullptr) {
    all(std::false_type(), std::false_type());
  } else if (!terms.hides) {
    all(std::true_type(), std::false_type());
  } else {
    all(std::true_type(), std::true_type());
  }
}

template <class B, class Hidden>
RECOPS_INLINE B unless(Hidden hidden, B x) {
  if constexpr (std::is_null_pointer_v<Hidden>) {
    return x;
  } else {
    return xsimd::select(hidden, B(typename B::value_type(0)), x);
  }
}

/// s <- silu(s + terms), 0 where hidden.
template <class T, class A, int V>
[[gnu::noinline]] void weights(Index keys, T* s, const Terms<T>& terms) {
  for_each_score<T, A, V>(keys, s, terms, [&](Index at, Batch<T, A> score, auto hidden) RECOPS_LAMBDA_INLINE {
    const auto x = bounded(score);
    unless(hidden, x * gate(x)).store_aligned(s + at);
  });
}

/// s <- silu(s + terms), d <- d silu'(s + terms), both 0 where hidden.
template <class T, class A, int V>
[[gnu::noinline]] void weight_gradients(Index keys, T* s, T* d, const Terms<T>& terms) {
  using B = Batch<T, A>;
  for_each_score<T, A, V>(keys, s, terms, [&](Index at, B score, auto hidden) RECOPS_LAMBDA_INLINE {
    const B x = bounded(score), g = gate(x), p = x * g, slope = mul_add(p, B(T(1)) - g, g);
    unless(hidden, p).store_aligned(s + at);
    unless(hidden, B::load_aligned(d + at) * slope).store_aligned(d + at);
  });
}

/// Scratch of one task.
template <class T, class A>
struct Tiles {
  static constexpr Index most = lanes<T, A> * attention_kernel::most_vectors;
  T *scores, *other, *terms, *summed;
  unsigned char* buckets;  // [key_block][most]
  Tiles(bool backward, Workspace& ws)
      : scores(ws.take<T>(key_block * most)),
        other(backward ? ws.take<T>(key_block * most) : nullptr),
        terms(ws.take<T>(key_block * most)),
        summed(backward ? ws.take<T>(key_block * most) : nullptr),
        buckets(ws.take<unsigned char>(key_block * most)) {}
};

enum class Sight { none, some, all };
/// How much of keys [j0, j1) the positions [p0, p1) see.
template <class T>
Sight sight(const SiluAttentionOperands<T>& x, Index j0, Index j1, Index p0, Index p1) {
  if (x.causal && j0 >= p1) return Sight::none;
  if (x.window > 0 && x.place(p0) - x.place(j1 - 1) >= x.window) return Sight::none;
  const bool near = x.window == 0 || x.place(p1 - 1) - x.place(j0) < x.window;
  const bool past = !x.causal || (j1 - 1 <= p0 && j1 <= x.history());
  return near && past ? Sight::all : Sight::some;
}

/// The terms of keys [j0, j0 + count) and queries [i0, i0 + rows), in `vectors` vectors. With a time term, the tile's buckets are kept.
template <class T, class A>
[[gnu::noinline]] Terms<T> fill_terms(const SiluAttentionOperands<T>& x, Index j0, Index count, Index i0, Index rows,
                                      Index vectors, bool hides, const Tiles<T, A>& tiles) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  const Index G = vectors * W, p0 = x.first_position() + i0;
  const bool places = p0 + rows > x.history();  // some stand elsewhere than where they are
  if (!x.time && !hides && !places) return x.reversed ? Terms<T>{x.reversed + (p0 - j0), -1, false} : Terms<T>{};
  std::int64_t earliest = 0, latest = 0, asked[Tiles<T, A>::most];
  for (Index i = 0; x.time && i < rows; ++i) {
    const std::int64_t t = asked[i] = x.query_times[i0 + i];
    earliest = i > 0 && earliest < t ? earliest : t;
    latest = i > 0 && latest > t ? latest : t;
  }
  alignas(64) T count_up[W];
  for (Index i = 0; i < W; ++i) count_up[i] = static_cast<T>(i);
  const B lane = B::load_aligned(count_up), hidden(-infinity<T>);
  for (Index j = 0; j < count; ++j) {
    T* const to = tiles.terms + j * G;
    const Index key = j0 + j;
    T constant = T(0);  // a term that the queries share
    bool shared = true;
    if (x.time) {
      // Where the key is on one side of all queries and the extremes share a bucket, everything between them does.
      unsigned char* const buckets = tiles.buckets + j * G;
      const std::int64_t t = x.key_times[key];
      const Index a = log_bucket(earliest, t, x.buckets - 1), b = log_bucket(latest, t, x.buckets - 1);
      shared = a == b && (earliest >= t || latest <= t);
      std::fill_n(buckets, G, static_cast<unsigned char>(a));
      if (shared) {
        constant = x.time[a];
      } else {
        for (Index i = 0; i < rows; ++i) {
          buckets[i] = static_cast<unsigned char>(log_bucket(asked[i], t, x.buckets - 1));
          to[i] = x.time[buckets[i]];
        }
        for (Index i = rows; i < G; ++i) to[i] = T(0);
      }
    }
    for (Index v = 0; v < vectors; ++v) {
      const Index first = p0 + v * W;
      B t = shared ? B(constant) : B::load_aligned(to + v * W);
      if (x.reversed && !places) t = t + B::load_unaligned(x.reversed + (first - key));
      if (hides && !places) {
        // Position first + lane sees the key if lane >= key - first (causal) and lane < key - first + window.
        const auto bound = [&](Index n) { return B(static_cast<T>(n < 0 ? 0 : n > W ? W : n)); };
        if (x.causal) t = xsimd::select(lane < bound(key - first), hidden, t);
        if (x.window > 0 && first + W - key > x.window) t = xsimd::select(lane >= bound(key - first + x.window), hidden, t);
      }
      t.store_aligned(to + v * W);
    }
    for (Index i = 0; places && i < rows; ++i) {
      if (x.reversed) to[i] += x.reversed[x.place(p0 + i) - x.place(key)];
      if (hides && !x.sees(p0 + i, key)) to[i] = -infinity<T>;
    }
  }
  return {tiles.terms, G, hides};
}

/// Calls f(first query, queries, vectors) for the groups of queries that share tiles.
template <class T, class A, class F>
RECOPS_INLINE void for_each_group(Index q0, Index q1, F&& f) {
  constexpr Index W = lanes<T, A>, most = W * attention_kernel::most_vectors;
  const Index all = (q1 - q0 + W - 1) / W, groups = (q1 - q0 + most - 1) / most;
  for (Index g = 0; g < groups; ++g) {
    const Index v0 = all * g / groups, vectors = all * (g + 1) / groups - v0, i0 = q0 + v0 * W;
    f(i0, q1 - i0 < vectors * W ? q1 - i0 : vectors * W, vectors);
  }
}

/// Calls f(first key, number of keys, first query, queries, vectors, terms) for every tile of keys and queries [q0, q1) that is not out
/// of sight, all queries of a block of keys in a row; `begin(count)` and `end(first key, count)` around each block.
template <class T, class A, class Begin, class F, class End>
void for_each_tile(const SiluAttentionOperands<T>& x, Index q0, Index q1, const Tiles<T, A>& tiles, Begin&& begin, F&& f,
                   End&& end) {
  const Index shift = x.first_position(), p0 = shift + q0, p1 = shift + q1;
  const Index last = x.causal ? p1 : x.keys, behind = x.window > 0 ? x.place(p0) - x.window + 1 : 0;
  for (Index j0 = behind > 0 ? behind : 0; j0 < last; j0 += key_block) {
    const Index count = last - j0 < key_block ? last - j0 : key_block;
    begin(count);
    for_each_group<T, A>(q0, q1, [&](Index i0, Index rows, Index vectors) {
      const Sight seen = sight(x, j0, j0 + count, shift + i0, shift + i0 + rows);
      if (seen == Sight::none) return;
      f(j0, count, i0, rows, vectors, fill_terms<T, A>(x, j0, count, i0, rows, vectors, seen == Sight::some, tiles));
    });
    end(j0, count);
  }
}

template <class T, class A, int V>
void forward_tile(const SiluAttentionOperands<T>& x, Index j0, Index count, Index head, const Terms<T>& terms, const T* qt,
                  const Tiles<T, A>& tiles, T* o) {
  constexpr Index G = V * lanes<T, A>;
  const T *k = x.k + j0 * x.k_stride + head * x.key_width, *v = x.v + j0 * x.v_stride + head * x.value_width;
  T* const s = tiles.scores;
  attention_kernel::scores<T, A, V>(count, x.key_width, k, x.k_stride, qt, s);
  weights<T, A, V>(count, s, terms);
  if (terms.hides && !attention_kernel::all_finite<T, A>(v, x.v_stride, count, x.value_width)) [[unlikely]] {
    attention_kernel::careful_sums(count, x.value_width, G, v, x.v_stride, s, terms.data, o);
  } else {
    attention_kernel::sums<T, A, V, true>(x.value_width, count, v, x.v_stride, s, G, o, G);
  }
}

template <class T, class A>
void forward_many(const SiluAttentionOperands<T>& x, Index q0, Index q1, T* out, Index out_stride, Workspace& ws) {
  constexpr Index W = lanes<T, A>, most = Tiles<T, A>::most;
  const auto mark = ws.mark();
  const Index n = q1 - q0, padded = (n + most - 1) / most * most, heads = x.heads, dk = x.key_width, dv = x.value_width;
  T* const qt = ws.take<T>(padded * heads * dk);
  T* const o = ws.take<T>(padded * heads * dv);
  T* const factor = ws.take<T>(most);
  const Tiles<T, A> tiles(false, ws);
  std::fill_n(o, padded * heads * dv, T(0));
  std::fill_n(factor, most, x.weight);
  // Group and head of the queries that begin at i0: [width][lanes] each.
  const auto at = [&](T* data, Index i0, Index vectors, Index head, Index width) {
    return data + (i0 - q0) * heads * width + head * width * vectors * W;
  };
  for_each_group<T, A>(q0, q1, [&](Index i0, Index rows, Index vectors) {
    for (Index h = 0; h < heads; ++h)
      pack_transposed<T, A>(x.q + i0 * x.q_stride + h * dk, x.q_stride, rows, dk, x.scale, at(qt, i0, vectors, h, dk),
                            vectors * W, vectors * W);
  });
  for_each_tile<T, A>(
      x, q0, q1, tiles, [](Index) {},
      [&](Index j0, Index count, Index i0, Index, Index vectors, const Terms<T>& terms) {
        for (Index h = 0; h < heads; ++h)
          (vectors == 1 ? forward_tile<T, A, 1> : forward_tile<T, A, 2>)(x, j0, count, h, terms, at(qt, i0, vectors, h, dk),
                                                                         tiles, at(o, i0, vectors, h, dv));
      },
      [](Index, Index) {});
  for_each_group<T, A>(q0, q1, [&](Index i0, Index rows, Index vectors) {
    for (Index h = 0; h < heads; ++h)
      unpack_transposed<T, A>(at(o, i0, vectors, h, dv), vectors * W, factor, out + (i0 - q0) * out_stride + h * dv, out_stride,
                              rows, dv, false);
  });
}

/// Few queries: lanes run along the heads, and keys and values pass once for all queries.
template <class T, class A>
void forward_few(const SiluAttentionOperands<T>& x, Index q0, Index q1, T* out, Index out_stride, Workspace& ws) {
  constexpr Index block = attention_kernel::row_block;
  using B = Batch<T, A>;
  const auto mark = ws.mark();
  const Index n = q1 - q0, heads = x.heads, dk = x.key_width, dv = x.value_width, dkp = attention_kernel::padded_width<T, A>(dk),
              dvp = attention_kernel::padded_width<T, A>(dv);
  T* const q = ws.take<T>(n * heads * dkp);
  T* const o = ws.take<T>(n * heads * dvp);
  T* const s = ws.take<T>(heads * block);
  T* const terms = ws.take<T>(block);
  std::fill_n(o, n * heads * dvp, T(0));
  for (Index i = 0; i < n; ++i)
    for (Index h = 0; h < heads; ++h)
      simd::scale<T, A>(x.scale, x.q + (q0 + i) * x.q_stride + h * dk, q + (i * heads + h) * dkp, dk);
  const Index shift = x.first_position(), last = x.causal ? shift + q1 : x.keys,
              behind = x.window > 0 ? x.place(shift + q0) - x.window + 1 : 0, first = behind > 0 ? behind : 0;
  const Index step = attention_kernel::rows_at_once<T>(heads * dk, last - first);
  const auto some = [&](Index i, Index j0, Index j1) {  // keys [j0, j1), all seen by query i
    const Index count = j1 - j0, p = x.place(shift + i);
    if (count <= 0) return;
    const T* bias = x.position ? x.position + (x.place(j0) - p) : nullptr;  // one key of the targets at a time
    if (x.time) {
      for (Index j = 0; j < count; ++j) terms[j] = x.time[x.bucket(i, j0 + j)] + (bias ? bias[j] : T(0));
      bias = terms;
    }
    attention_kernel::row_dots<T, A>(count, x.k + j0 * x.k_stride, x.k_stride, heads, q + (i - q0) * heads * dkp, dkp, dk, s);
    for (Index h = 0; h < heads; ++h) {
      T* const w = s + h * block;
      for_each_vector<T, A>(count, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const B z = bounded(bias ? load(w + j) + load(bias + j) : load(w + j));
        store(w + j, z * gate(z));
      });
      attention_kernel::weighted_sum<T, A>(count, w, x.v + j0 * x.v_stride + h * dv, x.v_stride, dv,
                                           o + ((i - q0) * heads + h) * dvp);
    }
  };
  for (Index j0 = first; j0 < last; j0 += step) {
    const Index j1 = last - j0 < step ? last : j0 + step;
    for (Index i = q0; i < q1; ++i) {
      const Index p = shift + i, end = x.causal ? (p < x.history() ? p + 1 : x.history()) : x.keys,
                  start = x.window > 0 && x.place(p) - x.window + 1 > 0 ? x.place(p) - x.window + 1 : 0;
      some(i, j0 > start ? j0 : start, j1 < end ? j1 : end);
      if (x.causal && p >= x.history() && j0 <= p && p < j1) some(i, p, p + 1);
    }
  }
  for (Index i = 0; i < n; ++i)
    for (Index h = 0; h < heads; ++h) simd::scale<T, A>(x.weight, o + (i * heads + h) * dvp, out + i * out_stride + h * dv, dv);
}

/// What backward keeps for one group of queries and one head.
template <class T>
struct GroupHead {
  const T *qt, *dot;            // transposed, [width][lanes]: queries times scale, output gradients times weight
  const T *q_rows, *dout_rows;  // [queries][whole vectors]
  Index q_stride, dout_stride;
  T* dqt;  // [key width][lanes]
};

template <class T, class A, int V>
void backward_tile(const SiluAttentionOperands<T>& x, Index j0, Index count, Index rows, Index head, const Terms<T>& terms,
                   const GroupHead<T>& of, const Tiles<T, A>& tiles, T* dk_block, Index dk_stride, T* dv_block, Index dv_stride) {
  constexpr Index W = lanes<T, A>, G = V * W;
  const Index dk = x.key_width, dv = x.value_width;
  const T *k = x.k + j0 * x.k_stride + head * dk, *v = x.v + j0 * x.v_stride + head * dv;
  T *const s = tiles.scores, *const d = tiles.other;
  attention_kernel::scores<T, A, V>(count, dk, k, x.k_stride, of.qt, s);
  attention_kernel::scores<T, A, V>(count, dv, v, x.v_stride, of.dot, d);
  weight_gradients<T, A, V>(count, s, d, terms);
  const bool clean = !terms.hides || (attention_kernel::all_finite<T, A>(k, x.k_stride, count, dk) &&
                                      attention_kernel::all_finite<T, A>(of.q_rows, of.q_stride, rows, dk) &&
                                      attention_kernel::all_finite<T, A>(of.dout_rows, of.dout_stride, rows, dv));
  if (clean) [[likely]] {
    if (of.dqt) attention_kernel::sums<T, A, V, true>(dk, count, k, x.k_stride, d, G, of.dqt, G);
    if (dv_block)
      attention_kernel::sums_wide<T, A, false>(count, (dv + W - 1) / W, rows, s, G, of.dout_rows, of.dout_stride, dv_block,
                                               dv_stride);
    if (dk_block)
      attention_kernel::sums_wide<T, A, false>(count, (dk + W - 1) / W, rows, d, G, of.q_rows, of.q_stride, dk_block, dk_stride);
  } else {
    if (of.dqt) attention_kernel::careful_sums(count, dk, G, k, x.k_stride, d, terms.data, of.dqt);
    if (dv_block)
      attention_kernel::careful_rows(count, rows, dv, G, of.dout_rows, of.dout_stride, s, terms.data, dv_block, dv_stride);
    if (dk_block) attention_kernel::careful_rows(count, rows, dk, G, of.q_rows, of.q_stride, d, terms.data, dk_block, dk_stride);
  }
}

/// Adds a tile's dS, summed over heads, to the gradients of the terms.
template <class T, class A>
[[gnu::noinline]] void term_gradients(const SiluAttentionOperands<T>& x, Index j0, Index count, Index i0, Index rows,
                                      Index vectors, const Tiles<T, A>& tiles, const SiluAttentionGradients<T>& g) {
  constexpr Index W = lanes<T, A>;
  const Index G = vectors * W, p0 = x.first_position() + i0;
  const bool places = p0 + rows > x.history();
  for (Index j = 0; j < count; ++j) {
    const T* const ds = tiles.summed + j * G;
    if (g.reversed && !places) {
      T* const to = g.reversed + (p0 - j0 - j);
      simd::add<T, A>(ds, to, rows);
    } else if (g.reversed) {
      for (Index i = 0; i < rows; ++i) g.reversed[x.place(p0 + i) - x.place(j0 + j)] += ds[i];
    }
    if (g.time) {
      const unsigned char* const buckets = tiles.buckets + j * G;
      if (buckets[0] == buckets[rows - 1] && std::equal(buckets + 1, buckets + rows, buckets)) {
        g.time[buckets[0]] += static_cast<double>(simd::sum<T, A>(ds, rows));
      } else {
        for (Index i = 0; i < rows; ++i) g.time[buckets[i]] += static_cast<double>(ds[i]);
      }
    }
  }
}

}  // namespace silu_attention_kernel

/// Queries [q0, q1) of `x`, all heads: out `[q1 - q0, heads * value_width]`. A row that sees no key gets 0.
template <class T, class A = DefaultArch>
void silu_attention_forward(const SiluAttentionOperands<T>& x, Index q0, Index q1, T* out, Index out_stride, Workspace& ws) {
  if (q1 - q0 <= attention_kernel::few_queries<T, A>) {
    silu_attention_kernel::forward_few<T, A>(x, q0, q1, out, out_stride, ws);
  } else {
    silu_attention_kernel::forward_many<T, A>(x, q0, q1, out, out_stride, ws);
  }
}

/// Adds to the gradients of what `silu_attention_forward` read for queries [q0, q1), heads [h0, h1); `dout` begins at the first query
/// of the sequence.
template <class T, class A = DefaultArch>
void silu_attention_backward(const SiluAttentionOperands<T>& x, Index q0, Index q1, Index h0, Index h1, const T* dout,
                             Index dout_stride, const SiluAttentionGradients<T>& g, Workspace& ws) {
  namespace kernel = silu_attention_kernel;
  constexpr Index W = lanes<T, A>, most = kernel::Tiles<T, A>::most;
  const auto mark = ws.mark();
  const Index n = q1 - q0, padded = (n + most - 1) / most * most, heads = h1 - h0, dk = x.key_width, dv = x.value_width,
              dkp = attention_kernel::padded_width<T, A>(dk), dvp = attention_kernel::padded_width<T, A>(dv);
  T* const qt = ws.take<T>(padded * heads * dk);
  T* const dot = ws.take<T>(padded * heads * dv);
  T* const dqt = g.dq ? ws.take<T>(padded * heads * dk) : nullptr;
  T* const q_rows = g.dk && dkp != dk ? ws.take<T>(n * heads * dkp) : nullptr;
  T* const dout_rows = g.dv && dvp != dv ? ws.take<T>(n * heads * dvp) : nullptr;
  T* const dk_block = g.dk ? ws.take<T>(attention_kernel::key_block * heads * dkp) : nullptr;
  T* const dv_block = g.dv ? ws.take<T>(attention_kernel::key_block * heads * dvp) : nullptr;
  const kernel::Tiles<T, A> tiles(true, ws);
  if (dqt) std::fill_n(dqt, padded * heads * dk, T(0));
  const auto pad_rows = [&](const T* in, Index stride, Index width, Index whole, T* out) {
    for (Index i = 0; i < n; ++i)
      for (Index h = 0; h < heads; ++h) {
        T* const to = out + (i * heads + h) * whole;
        std::copy_n(in + (q0 + i) * stride + (h0 + h) * width, width, to);
        std::fill(to + width, to + whole, T(0));
      }
  };
  if (q_rows) pad_rows(x.q, x.q_stride, dk, dkp, q_rows);
  if (dout_rows) pad_rows(dout, dout_stride, dv, dvp, dout_rows);
  const auto group_head = [&](Index i0, Index vectors, Index h) {
    const Index from = (i0 - q0) * heads, G = vectors * W;
    kernel::GroupHead<T> y{};
    y.qt = qt + from * dk + h * dk * G;
    y.dot = dot + from * dv + h * dv * G;
    y.dqt = dqt ? dqt + from * dk + h * dk * G : nullptr;
    y.q_rows = q_rows ? q_rows + (from + h) * dkp : x.q + i0 * x.q_stride + (h0 + h) * dk;
    y.q_stride = q_rows ? heads * dkp : x.q_stride;
    y.dout_rows = dout_rows ? dout_rows + (from + h) * dvp : dout + i0 * dout_stride + (h0 + h) * dv;
    y.dout_stride = dout_rows ? heads * dvp : dout_stride;
    return y;
  };
  kernel::for_each_group<T, A>(q0, q1, [&](Index i0, Index rows, Index vectors) {
    for (Index h = 0; h < heads; ++h) {
      const auto y = group_head(i0, vectors, h);
      const Index G = vectors * W;
      pack_transposed<T, A>(x.q + i0 * x.q_stride + (h0 + h) * dk, x.q_stride, rows, dk, x.scale, qt + (y.qt - qt), G, G);
      pack_transposed<T, A>(dout + i0 * dout_stride + (h0 + h) * dv, dout_stride, rows, dv, x.weight, dot + (y.dot - dot), G, G);
    }
  });
  const bool terms_wanted = g.reversed || g.time;
  kernel::for_each_tile<T, A>(
      x, q0, q1, tiles,
      [&](Index count) {
        if (dk_block) std::fill_n(dk_block, count * heads * dkp, T(0));
        if (dv_block) std::fill_n(dv_block, count * heads * dvp, T(0));
      },
      [&](Index j0, Index count, Index i0, Index rows, Index vectors, const kernel::Terms<T>& terms) {
        const Index size = count * vectors * W;
        for (Index h = 0; h < heads; ++h) {
          (vectors == 1 ? kernel::backward_tile<T, A, 1>
                        : kernel::backward_tile<T, A, 2>)(x, j0, count, rows, h0 + h, terms, group_head(i0, vectors, h), tiles,
                                                          dk_block ? dk_block + h * dkp : nullptr, heads * dkp,
                                                          dv_block ? dv_block + h * dvp : nullptr, heads * dvp);
          if (!terms_wanted) continue;
          if (h == 0) {
            std::copy_n(tiles.other, size, tiles.summed);
          } else {
            simd::add<T, A>(tiles.other, tiles.summed, size);
          }
        }
        if (terms_wanted) kernel::term_gradients<T, A>(x, j0, count, i0, rows, vectors, tiles, g);
      },
      [&](Index j0, Index count) {
        for (Index j = 0; j < count; ++j)
          for (Index h = 0; h < heads; ++h) {
            if (dv_block)
              simd::axpy<T, A>(x.weight, dv_block + (j * heads + h) * dvp, g.dv + (j0 + j) * g.dv_stride + (h0 + h) * dv, dv);
            if (dk_block)
              simd::axpy<T, A>(x.scale, dk_block + (j * heads + h) * dkp, g.dk + (j0 + j) * g.dk_stride + (h0 + h) * dk, dk);
          }
      });
  if (!dqt) return;
  alignas(64) T factor[most];
  std::fill_n(factor, most, x.scale);
  kernel::for_each_group<T, A>(q0, q1, [&](Index i0, Index rows, Index vectors) {
    for (Index h = 0; h < heads; ++h)
      unpack_transposed<T, A>(group_head(i0, vectors, h).dqt, vectors * W, factor, g.dq + i0 * g.dq_stride + (h0 + h) * dk,
                              g.dq_stride, rows, dk, true);
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
