/// @file   recops/simd/attention_blocks.hpp
/// @brief  One sequence of attention, its keys in blocks, its queries in groups, and who sees whom.
///
/// A key that a mask, a per-key bias of -infinity or the visible range hides is not read.
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/simd/attention_few.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// One sequence as the kernels see it: row i of head h of the queries begins at q + i * q_stride + h * key_width.
template <class T>
struct AttentionOperands {
  const T *q, *k, *v;
  Index q_stride, k_stride, v_stride;
  Index queries, keys, heads, key_width, value_width;
  T scale;
  const std::uint8_t* mask = nullptr;  ///< [keys], 0 hides
  const T* key_bias = nullptr;         ///< [keys, heads or 1]
  Index key_bias_stride = 0, key_bias_head = 0;
  const T* pair_bias = nullptr;  ///< row i of head h begins at pair_bias + h * pair_head + i * pair_stride
  Index pair_stride = 0, pair_head = 0;
  bool causal = false;
  Index window = 0;
  const StoredHistory<T>* stored = nullptr;  ///< instead of k and v: from its row `stored_row` on
  Index stored_row = 0;

  /// The keys that the structure lets query i see: [first, last).
  Index first_key(Index i) const { return window > 0 && i >= window ? (i - window + 1 < keys ? i - window + 1 : keys) : 0; }
  Index last_key(Index i) const { return causal && i < keys ? i + 1 : keys; }
};

namespace attention_kernel {

/// Keys that are looked at together: rows of k and v (compacted where some are hidden), and where they came from.
template <class T>
struct KeyBlock {
  const T *k, *v;
  Index k_stride, v_stride, count;
  const T* bias;    // [heads or 1][key_block] in units of log 2, or null
  Index bias_head;  // from head to head
  Index first;      // position of the first key in the sequence
  const Index* at;  // positions of all, ascending; null where one follows the other

  Index position(Index j) const { return at ? at[j] : first + j; }
};

/// Walks the visible keys of [first, last) in blocks of at most `most`. Heads [h0, h1) share what is hidden. With a `query` the
/// keys are those that it sees, and its pairwise bias is part of the block's.
template <class T>
class KeyBlocks {
 public:
  [[gnu::noinline]] KeyBlocks(const AttentionOperands<T>& x, Index h0, Index h1, Index first, Index last, Index most, Index query,
                              Workspace& ws)
      : x_(x),
        pair_(x.pair_bias && query >= 0 ? x.pair_bias + h0 * x.pair_head + query * x.pair_stride : nullptr),
        h0_(h0),
        h1_(h1),
        next_(first),
        last_(last),
        most_(most) {
    if (x.key_bias || pair_) bias_ = ws.take<T>((h1 - h0) * most);
    if (x.mask || bias_) at_ = ws.take<Index>(most);
    if (x.mask || bias_ || x.stored) {
      k_ = ws.take<T>(most * (h1 - h0) * x.key_width);
      v_ = x.stored && x.stored->shared && x.key_width == x.value_width ? k_ : ws.take<T>(most * (h1 - h0) * x.value_width);
    }
  }

  bool next(KeyBlock<T>& b) {
    Index n = 0;
    b.first = next_;
    b.at = nullptr;
    if (!at_) {
      n = last_ - next_ < most_ ? last_ - next_ : most_;
      next_ += n;
    } else {
      for (; n < most_ && next_ < last_; ++next_)
        if (visible(next_)) at_[n++] = next_;
    }
    if (n <= 0) return false;
    if (at_) {
      b.first = at_[0];
      if (at_[n - 1] - at_[0] != n - 1) b.at = at_;
    }
    b.count = n;
    b.bias = bias_;
    b.bias_head = x_.key_bias_head ? most_ : 0;
    if (bias_) {
      for (Index h = 0; h < (x_.key_bias_head ? h1_ - h0_ : 1); ++h)
        for (Index j = 0; j < n; ++j) bias_[h * most_ + j] = log2_e<T> * bias(h0_ + h, b.position(j));
    }
    if (x_.stored) {
      b.k_stride = (h1_ - h0_) * x_.key_width;
      b.v_stride = (h1_ - h0_) * x_.value_width;
      const Index row = x_.stored_row + (b.at ? 0 : b.first);
      x_.stored->expand(x_.stored->keys, row, b.at, n, h0_, h1_ - h0_, x_.key_width, k_);
      if (v_ != k_) x_.stored->expand(x_.stored->values, row, b.at, n, h0_, h1_ - h0_, x_.value_width, v_);
      b.k = k_;
      b.v = v_;
    } else if (!b.at) {
      b.k = x_.k + b.first * x_.k_stride + h0_ * x_.key_width;
      b.v = x_.v + b.first * x_.v_stride + h0_ * x_.value_width;
      b.k_stride = x_.k_stride;
      b.v_stride = x_.v_stride;
    } else {
      b.k_stride = (h1_ - h0_) * x_.key_width;
      b.v_stride = (h1_ - h0_) * x_.value_width;
      for (Index j = 0; j < n; ++j) {
        std::copy_n(x_.k + at_[j] * x_.k_stride + h0_ * x_.key_width, b.k_stride, k_ + j * b.k_stride);
        std::copy_n(x_.v + at_[j] * x_.v_stride + h0_ * x_.value_width, b.v_stride, v_ + j * b.v_stride);
      }
      b.k = k_;
      b.v = v_;
    }
    return true;
  }

 private:
  T bias(Index h, Index j) const {
    return (x_.key_bias ? x_.key_bias[j * x_.key_bias_stride + h * x_.key_bias_head] : T(0)) + (pair_ ? pair_[j] : T(0));
  }
  bool visible(Index j) const { return (!x_.mask || x_.mask[j]) && (!bias_ || bias(h0_, j) != -infinity<T>); }

  const AttentionOperands<T>& x_;
  const T* pair_;
  Index h0_, h1_, next_, last_, most_;
  Index* at_ = nullptr;
  T *bias_ = nullptr, *k_ = nullptr, *v_ = nullptr;
};

/// Calls f(h0, h1) for runs of heads that share what is hidden: all at once, unless each has a bias of its own.
template <class T, class F>
RECOPS_INLINE void for_head_runs(const AttentionOperands<T>& x, F&& f) {
  const Index step = x.key_bias_head ? 1 : x.heads;
  for (Index h = 0; h < x.heads; h += step) f(h, h + step);
}

/// Queries that share a tile: `vectors` vectors from query `first` (counted from the first of the call).
struct QueryGroup {
  Index first, vectors;
};
template <class T, class A>
Index group_count(Index queries) {
  constexpr Index G = lanes<T, A> * most_vectors;
  return (queries + G - 1) / G;
}
template <class T, class A>
QueryGroup group(Index queries, Index g) {
  const Index vectors = (queries + lanes<T, A> - 1) / lanes<T, A>, groups = group_count<T, A>(queries);
  const Index first = vectors * g / groups;
  return {first * lanes<T, A>, vectors * (g + 1) / groups - first};
}

/// How much of a block queries [i0, i1) may see by structure alone.
enum class Sight { none, some, all };
template <class T>
Sight sight(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index i0, Index i1) {
  const Index first = b.first, last = b.position(b.count - 1);
  if (x.first_key(i0) > last || x.last_key(i1 - 1) <= first) return Sight::none;
  return x.first_key(i1 - 1) <= first && x.last_key(i0) > last ? Sight::all : Sight::some;
}

/// Additive terms [count][lanes * vectors] of queries [i0, i1): the pairwise bias of head h and -infinity where out of sight.
template <class T, class A>
[[gnu::noinline]] void fill_terms(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index h, Index i0, Index i1, Index vectors,
                                  bool structure, T* gathered, T* terms) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  const Index G = W * vectors;
  if (x.pair_bias) {
    const T* rows = x.pair_bias + h * x.pair_head + i0 * x.pair_stride;
    const T* from = rows + b.first;
    Index stride = x.pair_stride;
    if (b.at) {
      for (Index i = 0; i < i1 - i0; ++i)
        for (Index j = 0; j < b.count; ++j) gathered[i * key_block + j] = rows[i * x.pair_stride + b.at[j]];
      from = gathered;
      stride = key_block;
    }
    pack_transposed<T, A>(from, stride, i1 - i0, b.count, log2_e<T>, terms, G, G);
  }
  if (!structure) return;
  alignas(64) T count[W];
  for (Index i = 0; i < W; ++i) count[i] = static_cast<T>(i);
  const B lane = B::load_aligned(count), hidden(-infinity<T>);
  for (Index j = 0; j < b.count; ++j) {
    for (Index v = 0; v < vectors; ++v) {
      const Index first = i0 + v * W, at = b.position(j);
      // Query first + lane sees key `at` if lane >= at - first (causal) and lane < at - first + window.
      const auto bound = [&](Index n) { return B(static_cast<T>(n < 0 ? 0 : n > W ? W : n)); };
      T* to = terms + j * G + v * W;
      B t = x.pair_bias ? B::load_aligned(to) : B(T(0));
      if (x.causal) t = xsimd::select(lane < bound(at - first), hidden, t);
      if (x.window > 0)
        t = xsimd::select(lane >= bound(x.window > W + first ? (at - first >= W - x.window ? W : 0) : at - first + x.window),
                          hidden, t);
      t.store_aligned(to);
    }
  }
}

/// Scratch of the kernels for many queries that does not depend on sizes.
template <class T, class A>
struct Tiles {
  static constexpr Index most = lanes<T, A> * most_vectors;
  T *scores, *other, *terms, *gathered;
  Tiles(bool two, bool masks, Workspace& ws)
      : scores(ws.take<T>(key_block * most)),
        other(two ? ws.take<T>(key_block * most) : nullptr),
        terms(masks ? ws.take<T>(key_block * most) : nullptr),
        gathered(masks ? ws.take<T>(key_block * most) : nullptr) {}
};

/// Adds the per-key bias to the terms, so that a tile needs one of the two only.
template <class T, class A>
RECOPS_INLINE void add_key_bias(const T* bias, Index keys, Index G, T* terms) {
  for (Index j = 0; j < keys; ++j)
    for (Index i = 0; i < G; i += lanes<T, A>)
      (Batch<T, A>::load_aligned(terms + j * G + i) + Batch<T, A>(bias[j])).store_aligned(terms + j * G + i);
}

/// Fills the terms of (block, group, head) where any are needed; null where none are. Terms that all heads share are kept.
template <class T, class A>
const T* terms_of(const AttentionOperands<T>& x, const KeyBlock<T>& b, const Tiles<T, A>& tiles, Sight seen, Index h0, Index head,
                  Index i0, Index i1, Index vectors) {
  if (seen == Sight::all && !x.pair_bias) return nullptr;
  if (head == 0 || x.pair_head || b.bias_head) {
    fill_terms<T, A>(x, b, h0 + head, i0, i1, vectors, seen == Sight::some, tiles.gathered, tiles.terms);
    if (b.bias) add_key_bias<T, A>(b.bias + head * b.bias_head, b.count, vectors * lanes<T, A>, tiles.terms);
  }
  return tiles.terms;
}

/// Calls f(h0, h1) for runs of heads that see the same keys of one query.
template <class T, class F>
RECOPS_INLINE void for_equal_heads(const AttentionOperands<T>& x, F&& f) {
  const Index step = x.key_bias_head || x.pair_head ? 1 : x.heads;
  for (Index h = 0; h < x.heads; h += step) f(h, h + step);
}

/// s[0..whole vectors of n) += bias[0..n)
template <class T, class A>
RECOPS_INLINE void add_bias(const T* bias, Index n, T* s) {
  if (bias != nullptr) simd::add<T, A>(bias, s, n);
}

}  // namespace attention_kernel

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
