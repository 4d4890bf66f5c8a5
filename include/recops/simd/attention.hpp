/// @file   recops/simd/attention.hpp
/// @brief  Streaming softmax attention of one sequence, forward and backward: the scores live in L1 only.
///
/// Many queries: lanes are queries, so that maximum and sum need no shuffles; keys and values are read where they are, one
/// number broadcast at a time. Few queries: lanes run along the heads, and keys and values pass once. Both keep a running
/// maximum that is raised only when a score passes it by 2^30: rescaling is then rare (Milakov and Gimelshein,
/// arXiv 1805.02867; Dao et al., arXiv 2205.14135).
///
/// A key that a mask, a per-key bias of -infinity or the visible range hides is not read. Float sums run over at most 60 keys
/// (or 64 queries) in one chain; these partial sums are added up in order. Scores are kept in units of log 2.
#pragma once
#include <cmath>
#include <limits>
#include <recops/core/workspace.hpp>
#include <recops/simd/math.hpp>
#include <recops/simd/reduce.hpp>

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

  /// The keys that the structure lets query i see: [first, last).
  Index first_key(Index i) const { return window > 0 && i >= window ? (i - window + 1 < keys ? i - window + 1 : keys) : 0; }
  Index last_key(Index i) const { return causal && i < keys ? i + 1 : keys; }
};

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

inline constexpr Index key_block = 60;  // keys whose scores are held at once: a multiple of the tile heights 6 and 12
/// Vectors of queries that one tile covers at most.
template <class A>
inline constexpr int most_vectors = registers<A> == 32 ? 4 : 2;
/// Queries that one call takes at once, and up to how many queries the kernel for few is the faster one.
template <class T, class A>
inline constexpr Index query_block = 2 * most_vectors<A>* lanes<T, A>;
template <class T, class A>
inline constexpr Index few_queries = lanes<T, A> / 2;

template <class T>
inline constexpr T log2_e = static_cast<T>(1.44269504088896340736);
template <class T>
inline constexpr T ln_2 = static_cast<T>(0.693147180559945309417);
template <class T>
inline constexpr T infinity = std::numeric_limits<T>::infinity();

/// 2^x for x <= 31 or so; -infinity gives 0, NaN stays NaN. Relative error 1e-7 (float), 3e-16 (double).
template <class T, class A>
RECOPS_INLINE Batch<T, A> exp2(Batch<T, A> x) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float>) {
    constexpr float c[] = {1.00000007f, 0.693146967f, 0.240221197f, 0.0555071328f, 0.0096755415f, 0.0013276472f};
#if defined(__AVX512F__)
    if constexpr (std::is_base_of_v<xsimd::avx512f, A>) {
      x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // in this order a NaN passes
      const B n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      return _mm512_scalef_ps(detail::polynomial(x - n, c), n);
    } else
#endif
    {
      const B magic(12582912.0f);  // adding it leaves the nearest whole number in the low bits
      const B y = xsimd::max(B(-126.0f), x), t = y + magic, r = y - (t - magic);
      const auto power = xsimd::bitwise_cast<Batch<std::int32_t, A>>(t) << 23;
      const B p = xsimd::bitwise_cast<B>(xsimd::bitwise_cast<Batch<std::int32_t, A>>(detail::polynomial(r, c)) + power);
      return xsimd::select(x < B(-126.0f), B(0.0f), p) + (y - y);
    }
  } else {
    const B y = xsimd::max(B(-1080.0), x), n = xsimd::nearbyint(y), r = (y - n) * B(ln_2<double>);
    constexpr double c[] = {1.0,         1.0,          1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,       1.0 / 720,
                            1.0 / 5040., 1.0 / 40320., 1.0 / 362880., 1.0 / 3628800., 1.0 / 39916800., 1.0 / 479001600.};
    return detail::scale_by_power(detail::polynomial(r, c), n);
  }
}

/// a0 b0 a1 b1 ... of the lower (or upper) halves.
template <bool Upper, class T, class A>
RECOPS_INLINE Batch<T, A> zip(Batch<T, A> a, Batch<T, A> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    constexpr int o = Upper ? 8 : 0;
    return _mm512_permutex2var_ps(a,
                                  _mm512_setr_epi32(o, 16 + o, o + 1, 17 + o, o + 2, 18 + o, o + 3, 19 + o, o + 4, 20 + o, o + 5,
                                                    21 + o, o + 6, 22 + o, o + 7, 23 + o),
                                  b);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    constexpr int o = Upper ? 4 : 0;
    return _mm512_permutex2var_pd(a, _mm512_setr_epi64(o, 8 + o, o + 1, 9 + o, o + 2, 10 + o, o + 3, 11 + o), b);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {  // xsimd 8.1 zips within each half
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), Upper ? 0x31 : 0x20);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), Upper ? 0x31 : 0x20);
  } else
#endif
    return Upper ? xsimd::zip_hi(a, b) : xsimd::zip_lo(a, b);
}

/// Transposes `lanes` vectors of `lanes` elements: log2(lanes) perfect shuffles.
template <class T, class A>
RECOPS_INLINE void transpose(Batch<T, A>* x) {
  constexpr int W = static_cast<int>(lanes<T, A>);
  RECOPS_UNROLL
  for (int step = 1; step < W; step *= 2) {
    Batch<T, A> y[W];
    RECOPS_UNROLL
    for (int i = 0; i < W / 2; ++i) {
      y[2 * i] = zip<false>(x[i], x[i + W / 2]);
      y[2 * i + 1] = zip<true>(x[i], x[i + W / 2]);
    }
    RECOPS_UNROLL
    for (int i = 0; i < W; ++i) x[i] = y[i];
  }
}

/// Lane i of the result is the sum of the lanes of x[i].
template <class T, class A>
RECOPS_INLINE Batch<T, A> sum_each(Batch<T, A>* x) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    __m512 u[8], w[4], y[2];
    RECOPS_UNROLL
    for (int i = 0; i < 8; ++i) u[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i)
      w[i] = _mm512_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44) + _mm512_shuffle_ps(u[2 * i], u[2 * i + 1], 0xee);
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i)
      y[i] = _mm512_shuffle_f32x4(w[2 * i], w[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(w[2 * i], w[2 * i + 1], 0xdd);
    return _mm512_shuffle_f32x4(y[0], y[1], 0x88) + _mm512_shuffle_f32x4(y[0], y[1], 0xdd);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    __m512d u[4], w[2];
    RECOPS_UNROLL
    for (int i = 0; i < 4; ++i) u[i] = _mm512_unpacklo_pd(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_pd(x[2 * i], x[2 * i + 1]);
    RECOPS_UNROLL
    for (int i = 0; i < 2; ++i)
      w[i] = _mm512_shuffle_f64x2(u[2 * i], u[2 * i + 1], 0x88) + _mm512_shuffle_f64x2(u[2 * i], u[2 * i + 1], 0xdd);
    return _mm512_shuffle_f64x2(w[0], w[1], 0x88) + _mm512_shuffle_f64x2(w[0], w[1], 0xdd);
  } else
#endif
    return xsimd::haddp(x);
}

/// out[c * out_stride + r] = factor * rows[r][c] for r < rows, zeros for rows <= r < padded (a multiple of the lanes).
template <class T, class A>
[[gnu::noinline]] void pack_transposed(const T* in, Index in_stride, Index rows, Index cols, T factor, T* out, Index out_stride,
                                       Index padded) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  for (Index r = 0; r < padded; r += W) {
    for (Index c = 0; c < cols; c += W) {
      B x[W];
      const T* at = in + r * in_stride + c;
      const Index width = cols - c < W ? cols - c : W;
      if (width == W && r + W <= rows) {
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i) x[i] = B::load_unaligned(at + i * in_stride) * B(factor);
      } else {
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i)
          x[i] = r + i < rows ? detail::load_upto<T, A>(at + i * in_stride, width) * B(factor) : B(T(0));
      }
      transpose<T, A>(x);
      T* to = out + c * out_stride + r;
      if (width == W) {
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i) x[i].store_aligned(to + i * out_stride);
      } else {
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i)
          if (i < width) x[i].store_aligned(to + i * out_stride);
      }
    }
  }
}

/// The other way: rows[r][c] = in[c * in_stride + r] * factor[r], or += with `add`; `in` is padded to whole vectors of r.
template <class T, class A>
[[gnu::noinline]] void unpack_transposed(const T* in, Index in_stride, const T* factor, T* out, Index out_stride, Index rows,
                                         Index cols, bool add) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  for (Index r = 0; r < rows; r += W) {
    const B f = B::load_aligned(factor + r);
    for (Index c = 0; c < cols; c += W) {
      const Index width = cols - c < W ? cols - c : W;
      B x[W];
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) x[i] = i < width ? B::load_aligned(in + (c + i) * in_stride + r) * f : B(T(0));
      transpose<T, A>(x);
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) {
        if (r + i >= rows) continue;
        T* to = out + (r + i) * out_stride + c;
        if (width == W) {
          (add ? x[i] + B::load_unaligned(to) : x[i]).store_unaligned(to);
        } else {
          store_first(to, add ? x[i] + load_first<T, A>(to, width) : x[i], width);
        }
      }
    }
  }
}

/// Whether no element of `rows` rows is NaN or infinite.
template <class T, class A>
[[gnu::noinline]] bool all_finite(const T* x, Index stride, Index rows, Index cols) {
  T sum = T(0);
  for (Index r = 0; r < rows; ++r) {
    Batch<T, A> acc(T(0));
    for_each_vector<T, A>(cols, [&](Index c, auto load, auto)
                                    RECOPS_LAMBDA_INLINE { acc = mul_add(load(x + r * stride + c), Batch<T, A>(T(0)), acc); });
    sum += sum_lanes(acc);
  }
  return sum == T(0);
}

/// s[r][.] = sum_d k[r][d] qt[d][.] + what `bias` says; top = max(top, s).
/// `bias` is one number per key (bias_stride 1), one per score (bias_stride = lanes * V), or null.
template <class T, class A, int R, int V>
[[gnu::noinline]] void score_tile(Index depth, const T* k, Index k_stride, const T* qt, const T* bias, Index bias_stride, T* s,
                                  T* top) {
  constexpr Index W = lanes<T, A>, G = W * V;
  using B = Batch<T, A>;
  B acc[R][V];
  RECOPS_UNROLL
  for (int r = 0; r < R; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = B(T(0));
  }
  for (Index d = 0; d < depth; ++d) {
    B q[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) q[v] = B::load_aligned(qt + d * G + v * W);
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      const B x(k[r * k_stride + d]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = mul_add(x, q[v], acc[r][v]);
    }
  }
  if (bias != nullptr) {
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = acc[r][v] + (bias_stride == 1 ? B(bias[r]) : B::load_aligned(bias + r * G + v * W));
    }
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    B most = B::load_aligned(top + v * W);
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      acc[r][v].store_aligned(s + r * G + v * W);
      most = xsimd::max(acc[r][v], most);  // in this order a NaN is passed over
    }
    most.store_aligned(top + v * W);
  }
}

/// c[r][.] += sum_j a[r * a_row + j * a_step] b[j][.]
template <class T, class A, int R, int V>
[[gnu::noinline]] void sum_tile(Index n, const T* a, Index a_row, Index a_step, const T* b, Index b_stride, T* c,
                                Index c_stride) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  B acc[R][V];
  RECOPS_UNROLL
  for (int r = 0; r < R; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = B(T(0));
  }
  for (Index j = 0; j < n; ++j) {
    B x[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) x[v] = B::load_unaligned(b + v * W);
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      const B y(a[r * a_row]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = mul_add(y, x[v], acc[r][v]);
    }
    a += a_step;
    b += b_stride;
  }
  RECOPS_UNROLL
  for (int r = 0; r < R; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      T* to = c + r * c_stride + v * W;
      (acc[r][v] + B::load_aligned(to)).store_aligned(to);
    }
  }
}

/// The tallest tile over V vectors.
template <class A, int V>
inline constexpr int tall = registers<A> == 32 ? (V == 4   ? 6
                                                  : V == 3 ? 8
                                                           : 12)
                                               : (V == 2 ? 6 : 12);

/// Calls f(integral_constant rows, first row) over [0, n), tallest tiles first.
template <int Tall, class F>
RECOPS_INLINE void cut_rows(Index n, F&& f) {
  Index r = 0;
  for (; r + Tall <= n; r += Tall) f(std::integral_constant<int, Tall>(), r);
  if constexpr (Tall > 8)
    if (r + 8 <= n) f(std::integral_constant<int, 8>(), r), r += 8;
  if constexpr (Tall > 4)
    if (r + 4 <= n) f(std::integral_constant<int, 4>(), r), r += 4;
  if (r + 2 <= n) f(std::integral_constant<int, 2>(), r), r += 2;
  if (r < n) f(std::integral_constant<int, 1>(), r);
}

template <class T, class A, int V>
void scores(Index keys, Index depth, const T* k, Index k_stride, const T* qt, const T* bias, Index bias_stride, T* s, T* top) {
  constexpr Index G = lanes<T, A> * V;
  cut_rows<tall<A, V>>(keys, [&](auto rows, Index r) RECOPS_LAMBDA_INLINE {
    score_tile<T, A, rows(), V>(depth, k + r * k_stride, k_stride, qt, bias ? bias + r * bias_stride : nullptr, bias_stride,
                                s + r * G, top);
  });
}

/// c [rows, V vectors] += a^T b, where a number of a belongs to (row r, j) and b has V vectors per j.
template <class T, class A, int V>
void sums(Index rows, Index n, const T* a, Index a_row, Index a_step, const T* b, Index b_stride, T* c, Index c_stride) {
  cut_rows<tall<A, V>>(rows, [&](auto count, Index r) RECOPS_LAMBDA_INLINE {
    sum_tile<T, A, count(), V>(n, a + r * a_row, a_row, a_step, b, b_stride, c + r * c_stride, c_stride);
  });
}

/// The same for any number of vectors.
template <class T, class A>
void sums_wide(Index rows, Index vectors, Index n, const T* a, Index a_row, Index a_step, const T* b, Index b_stride, T* c,
               Index c_stride) {
  constexpr Index W = lanes<T, A>;
  constexpr int most = most_vectors<A>;
  Index v = 0;
  for (; v + most <= vectors; v += most) sums<T, A, most>(rows, n, a, a_row, a_step, b + v * W, b_stride, c + v * W, c_stride);
  if constexpr (most > 2)
    if (v + 2 <= vectors) {
      sums<T, A, 2>(rows, n, a, a_row, a_step, b + v * W, b_stride, c + v * W, c_stride);
      v += 2;
    }
  if (v < vectors) sums<T, A, 1>(rows, n, a, a_row, a_step, b + v * W, b_stride, c + v * W, c_stride);
}

/// Keys that are looked at together: rows of k and v (compacted where some are hidden), and where they came from.
template <class T>
struct KeyBlock {
  const T *k, *v;
  Index k_stride, v_stride, count;
  const T* bias;    // [heads or 1][key_block] in units of log 2, or null
  Index bias_head;  // from head to head
  const Index* at;  // positions of the keys in the sequence, ascending
  bool contiguous;
};

/// Walks the visible keys of [first, last) in blocks of at most `most`. Heads [h0, h1) share what is hidden. With a `query` the
/// keys are those that it sees, and its pairwise bias is part of the block's.
template <class T>
class KeyBlocks {
 public:
  KeyBlocks(const AttentionOperands<T>& x, Index h0, Index h1, Index first, Index last, Index most, Index query, Workspace& ws)
      : x_(x),
        pair_(x.pair_bias && query >= 0 ? x.pair_bias + h0 * x.pair_head + query * x.pair_stride : nullptr),
        h0_(h0),
        h1_(h1),
        next_(first),
        last_(last),
        most_(most),
        at_(ws.take<Index>(most)) {
    if (x.key_bias || pair_) bias_ = ws.take<T>((h1 - h0) * most);
    if (x.mask || bias_) {
      k_ = ws.take<T>(most * (h1 - h0) * x.key_width);
      v_ = ws.take<T>(most * (h1 - h0) * x.value_width);
    }
  }

  bool next(KeyBlock<T>& b) {
    Index n = 0;
    if (!x_.mask && !bias_) {
      n = last_ - next_ < most_ ? last_ - next_ : most_;
      for (Index j = 0; j < n; ++j) at_[j] = next_ + j;
      next_ += n;
    } else {
      for (; n < most_ && next_ < last_; ++next_)
        if (visible(next_)) at_[n++] = next_;
    }
    if (n <= 0) return false;
    b.count = n;
    b.at = at_;
    b.contiguous = at_[n - 1] - at_[0] == n - 1;
    b.bias = bias_;
    b.bias_head = x_.key_bias_head ? most_ : 0;
    if (bias_) {
      for (Index h = 0; h < (x_.key_bias_head ? h1_ - h0_ : 1); ++h)
        for (Index j = 0; j < n; ++j) bias_[h * most_ + j] = log2_e<T> * bias(h0_ + h, at_[j]);
    }
    if (b.contiguous) {
      b.k = x_.k + at_[0] * x_.k_stride + h0_ * x_.key_width;
      b.v = x_.v + at_[0] * x_.v_stride + h0_ * x_.value_width;
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
  Index* at_;
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
  constexpr Index G = lanes<T, A> * most_vectors<A>;
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
  const Index first = b.at[0], last = b.at[b.count - 1];
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
    const T* from = rows + b.at[0];
    Index stride = x.pair_stride;
    if (!b.contiguous) {
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
      const Index first = i0 + v * W, at = b.at[j];
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

/// Scratch of the kernels for many queries that does not depend on sizes.
template <class T, class A>
struct Tiles {
  static constexpr Index most = lanes<T, A> * most_vectors<A>;
  T *scores, *other, *terms, *gathered;
  Tiles(bool two, bool masks, Workspace& ws)
      : scores(ws.take<T>(key_block * most)),
        other(two ? ws.take<T>(key_block * most) : nullptr),
        terms(masks ? ws.take<T>(key_block * most) : nullptr),
        gathered(masks ? ws.take<T>(key_block * most) : nullptr) {}
};

/// m <- max(m, top), and what was summed relative to the old m follows.
template <class T, class A, int V>
[[gnu::noinline, gnu::cold]] void raise(const T* top, T* m, T* l, T* o, Index width) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  for (Index v = 0; v < V * W; v += W) {
    const B before = B::load_aligned(m + v), after = xsimd::max(B::load_aligned(top + v), before);
    const B f = attention_kernel::exp2(before - after);
    after.store_aligned(m + v);
    (B::load_aligned(l + v) * f).store_aligned(l + v);
    for (Index d = 0; d < width; ++d) (B::load_aligned(o + d * V * W + v) * f).store_aligned(o + d * V * W + v);
  }
}

/// s <- 2^(s - m), l += its sum over keys; -infinity in `terms` (or null) hides whatever the score is.
template <class T, class A, int V>
[[gnu::noinline]] void weights(Index keys, T* s, const T* terms, const T* m, T* l) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  B top[V], sum[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    top[v] = B::load_aligned(m + v * W);
    sum[v] = B(T(0));
  }
  if (terms == nullptr) {
    for (Index j = 0; j < keys; ++j) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) {
        const B p = attention_kernel::exp2(B::load_aligned(s + j * G + v * W) - top[v]);
        p.store_aligned(s + j * G + v * W);
        sum[v] = sum[v] + p;
      }
    }
  } else {
    const B hidden(-infinity<T>);
    for (Index j = 0; j < keys; ++j) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) {
        const B x = B::load_aligned(s + j * G + v * W) - top[v];
        const B p = attention_kernel::exp2(xsimd::select(B::load_aligned(terms + j * G + v * W) == hidden, hidden, x));
        p.store_aligned(s + j * G + v * W);
        sum[v] = sum[v] + p;
      }
    }
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) (sum[v] + B::load_aligned(l + v * W)).store_aligned(l + v * W);
}

/// c[d][i] += sum_j a[j][d] p[j][i] without touching pairs that `terms` hides: where a is NaN, 0 * NaN would leak.
template <class T>
[[gnu::noinline, gnu::cold]] void careful_sums(Index keys, Index width, Index lanes_, const T* a, Index a_stride, const T* p,
                                               const T* terms, T* c) {
  for (Index j = 0; j < keys; ++j)
    for (Index i = 0; i < lanes_; ++i)
      if (terms[j * lanes_ + i] != -infinity<T>)
        for (Index d = 0; d < width; ++d) c[d * lanes_ + i] += a[j * a_stride + d] * p[j * lanes_ + i];
}
/// c[j][d] += sum_i p[j][i] b[i][d], likewise.
template <class T>
[[gnu::noinline, gnu::cold]] void careful_rows(Index keys, Index queries, Index width, Index lanes_, const T* b, Index b_stride,
                                               const T* p, const T* terms, T* c, Index c_stride) {
  for (Index j = 0; j < keys; ++j)
    for (Index i = 0; i < queries; ++i)
      if (terms[j * lanes_ + i] != -infinity<T>)
        for (Index d = 0; d < width; ++d) c[j * c_stride + d] += p[j * lanes_ + i] * b[i * b_stride + d];
}

/// One block of keys for one group of queries and one head.
template <class T, class A, int V>
void forward_block(const AttentionOperands<T>& x, const KeyBlock<T>& b, Index head, const T* terms, const T* qt, T* s, T* m, T* l,
                   T* o) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  const T *k = b.k + head * x.key_width, *v = b.v + head * x.value_width;
  alignas(64) T top[G];
  for (Index i = 0; i < G; i += W) B(-infinity<T>).store_aligned(top + i);
  const T* key_bias = b.bias ? b.bias + head * b.bias_head : nullptr;
  scores<T, A, V>(b.count, x.key_width, k, b.k_stride, qt, terms ? terms : key_bias, terms ? G : 1, s, top);
  bool higher = false;
  for (Index i = 0; i < G; i += W) higher |= xsimd::any(B::load_aligned(top + i) > B::load_aligned(m + i) + B(T(30)));
  if (higher) raise<T, A, V>(top, m, l, o, x.value_width);
  weights<T, A, V>(b.count, s, terms, m, l);
  if (terms && !all_finite<T, A>(v, b.v_stride, b.count, x.value_width)) [[unlikely]] {
    careful_sums(b.count, x.value_width, G, v, b.v_stride, s, terms, o);
  } else {
    sums<T, A, V>(x.value_width, b.count, v, Index{1}, b.v_stride, s, G, o, G);
  }
}

template <class T, class A, class F>
RECOPS_INLINE void with_vectors(Index vectors, F&& f) {
  if constexpr (most_vectors<A> == 4) {
    if (vectors == 4) return f(std::integral_constant<int, 4>());
    if (vectors == 3) return f(std::integral_constant<int, 3>());
  }
  if (vectors == 2) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 1>());
}

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
          with_vectors<T, A>(of.vectors, [&](auto v) RECOPS_LAMBDA_INLINE {
            forward_block<T, A, v()>(x, b, h, terms, qt + of.first * heads * dk + h * dk * G, tiles.scores, m + row, l + row,
                                     o + of.first * heads * dv + h * dv * G);
          });
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

inline constexpr Index row_block = 128;  // keys at once where queries are few, at most

/// As many keys as leave room in L1, so that values which are the keys are found there.
template <class T>
Index rows_at_once(Index width) {
  const Index rows = 24576 / (width * Index{sizeof(T)}) / 16 * 16;
  return rows < 16 ? 16 : rows > row_block ? row_block : rows;
}

/// s[h][j] = sum_d x[h][d] rows[j][h * width + d] for j < n, -infinity from there to the next whole vector. Row h of x begins at
/// x + h * x_stride, of s at s + h * row_block. All heads of a few rows come before the next rows: memory is read in order.
template <class T, class A>
[[gnu::noinline]] void row_dots(Index n, const T* rows, Index stride, Index heads, const T* x, Index x_stride, Index width,
                                T* s) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  const Index whole = width / W * W, tail = width - whole;
  for (Index j = 0; n >= W && j < n; j += W) {
    const Index first = j + W <= n ? j : n - W;  // the last vector overlaps the one before
    for (Index h = 0; h < heads; ++h) {
      const T *row = rows + first * stride + h * width, *y = x + h * x_stride;
      B acc[W];
      if (whole == W && tail == 0) {
        const B z = B::load_unaligned(y);
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i, row += stride) acc[i] = B::load_unaligned(row) * z;
      } else {
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i) acc[i] = B(T(0));
        for (Index d = 0; d < whole; d += W) {
          const B z = B::load_unaligned(y + d);
          const T* at = row + d;
          RECOPS_UNROLL
          for (Index i = 0; i < W; ++i, at += stride) acc[i] = mul_add(B::load_unaligned(at), z, acc[i]);
        }
        if (tail > 0) {
          const B z = load_first<T, A>(y + whole, tail);
          const T* at = row + whole;
          RECOPS_UNROLL
          for (Index i = 0; i < W; ++i, at += stride) acc[i] = mul_add(load_first<T, A>(at, tail), z, acc[i]);
        }
      }
      sum_each<T, A>(acc).store_unaligned(s + h * row_block + first);
    }
  }
  for (Index h = 0; h < heads; ++h) {
    for (Index j = 0; n < W && j < n; ++j)
      s[h * row_block + j] = simd::dot<T, A>(rows + j * stride + h * width, x + h * x_stride, width);
    for (Index j = n; j % W != 0; ++j) s[h * row_block + j] = -infinity<T>;
  }
}

/// o[d] += sum_j p[j] rows[j][d], C vectors of d of which the last holds `last` elements; o is padded. `next` (or null) are the
/// rows that will be wanted after these, `next_stride` apart: they are asked for on the way.
template <class T, class A, int C>
[[gnu::noinline]] void weighted_rows(Index n, const T* p, const T* rows, Index stride, Index last, const T* next,
                                     Index next_stride, T* o) {
  constexpr Index W = lanes<T, A>;
  constexpr int U = C >= 4 ? 2 : 8 / C;  // several keys at once, so that there are eight chains
  using B = Batch<T, A>;
  B acc[U][C];
  RECOPS_UNROLL
  for (int u = 0; u < U; ++u) {
    RECOPS_UNROLL
    for (int c = 0; c < C; ++c) acc[u][c] = B(T(0));
  }
  const auto all = [&](auto whole, auto ahead) RECOPS_LAMBDA_INLINE {
    const auto one = [&](Index j, const T* row, B(&to)[C]) RECOPS_LAMBDA_INLINE {
      const B w(p[j]);
      if constexpr (ahead()) {
        RECOPS_UNROLL
        for (int c = 0; c < C; ++c) __builtin_prefetch(next + j * next_stride + c * W);
      }
      RECOPS_UNROLL
      for (int c = 0; c < C; ++c)
        to[c] = mul_add(w, whole() || c + 1 < C ? B::load_unaligned(row + c * W) : load_first<T, A>(row + c * W, last), to[c]);
    };
    const T* row = rows;
    Index j = 0;
    for (; j + U <= n; j += U) {
      RECOPS_UNROLL
      for (int u = 0; u < U; ++u, row += stride) one(j + u, row, acc[u]);
    }
    for (; j < n; ++j, row += stride) one(j, row, acc[0]);
  };
  if (last == W && next != nullptr) {
    all(std::true_type(), std::true_type());
  } else if (last == W) {
    all(std::true_type(), std::false_type());
  } else {
    all(std::false_type(), std::false_type());
  }
  RECOPS_UNROLL
  for (int c = 0; c < C; ++c) {
    B sum = acc[0][c];
    RECOPS_UNROLL
    for (int u = 1; u < U; ++u) sum = sum + acc[u][c];
    (sum + B::load_aligned(o + c * W)).store_aligned(o + c * W);
  }
}

/// The same for any width; o has room for whole vectors.
template <class T, class A>
void weighted_sum(Index n, const T* p, const T* rows, Index stride, Index width, const T* next, Index next_stride, T* o) {
  constexpr Index W = lanes<T, A>;
  const Index vectors = (width + W - 1) / W, tail = width - (vectors - 1) * W;
  for (Index c = 0; c < vectors; c += 4) {
    const Index count = vectors - c < 4 ? vectors - c : 4, last = c + count == vectors ? tail : W;
    const T *from = rows + c * W, *then = next ? next + c * W : nullptr;
    if (count == 4) weighted_rows<T, A, 4>(n, p, from, stride, last, then, next_stride, o + c * W);
    if (count == 3) weighted_rows<T, A, 3>(n, p, from, stride, last, then, next_stride, o + c * W);
    if (count == 2) weighted_rows<T, A, 2>(n, p, from, stride, last, then, next_stride, o + c * W);
    if (count == 1) weighted_rows<T, A, 1>(n, p, from, stride, last, then, next_stride, o + c * W);
  }
}

/// Calls f(h0, h1) for runs of heads that see the same keys of one query.
template <class T, class F>
RECOPS_INLINE void for_equal_heads(const AttentionOperands<T>& x, F&& f) {
  const Index step = x.key_bias_head || x.pair_head ? 1 : x.heads;
  for (Index h = 0; h < x.heads; h += step) f(h, h + step);
}

template <class T, class A>
Index padded_width(Index width) {
  return (width + lanes<T, A> - 1) / lanes<T, A> * lanes<T, A>;
}

/// s[0..whole vectors of n) += bias[0..n)
template <class T, class A>
RECOPS_INLINE void add_bias(const T* bias, Index n, T* s) {
  if (bias != nullptr) simd::add<T, A>(bias, s, n);
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
      KeyBlocks<T> blocks(x, h0, h1, k0 > x.first_key(i0) ? k0 : x.first_key(i0), k1 < x.last_key(i0) ? k1 : x.last_key(i0),
                          rows_at_once<T>(heads * dk), i0, ws);
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

/// rows[at[j]][d] += factor * p[j] * x[d]
template <class T, class A>
[[gnu::noinline]] void add_rows(Index n, const T* p, T factor, const T* x, Index width, T* rows, Index stride, const Index* at,
                                bool contiguous) {
  using B = Batch<T, A>;
  for_each_vector<T, A>(width, [&](Index d, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B y = load(x + d) * B(factor);
    T* to = rows + at[0] * stride + d;
    for (Index j = 0; j < n; ++j, to += stride) {
      if (!contiguous) to = rows + at[j] * stride + d;
      store(to, mul_add(B(p[j]), y, load(to)));
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
      KeyBlocks<T> blocks(x, h0, h1, k0 > x.first_key(i) ? k0 : x.first_key(i), k1 < x.last_key(i) ? k1 : x.last_key(i),
                          rows_at_once<T>(heads * dk), i, ws);
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
          if (g.dq)
            weighted_sum<T, A>(b.count, ds, k, b.k_stride, dk, static_cast<const T*>(nullptr), Index{0}, dq + (h - h0) * dkp);
          if (g.dv) add_rows<T, A>(b.count, p, T(1), dout, dv, g.dv + h * dv, g.dv_stride, b.at, b.contiguous);
          if (g.dk)
            add_rows<T, A>(b.count, ds, x.scale, x.q + i * x.q_stride + h * dk, dk, g.dk + h * dk, g.dk_stride, b.at,
                           b.contiguous);
          for (Index j = 0; j < b.count && g.key_bias; ++j)
            g.key_bias[b.at[j] * g.key_bias_stride + h * g.key_bias_head] += ds[j];
          for (Index j = 0; j < b.count && g.pair_bias; ++j) g.pair_bias[h * g.pair_head + i * g.pair_stride + b.at[j]] += ds[j];
        }
      }
      for (Index h = 0; h < heads && g.dq; ++h)
        simd::axpy<T, A>(x.scale, dq + h * dkp, g.dq + (i - q0) * g.dq_stride + (h0 + h) * dk, dk);
    });
  }
}

/// s <- P = 2^(s - lse), d <- dS = P * (d - base); both 0 where `terms` (or null) hides.
template <class T, class A, int V>
[[gnu::noinline]] void weight_gradients(Index keys, T* s, T* d, const T* terms, const T* lse, const T* base) {
  constexpr Index W = lanes<T, A>, G = V * W;
  using B = Batch<T, A>;
  B shift[V], mean[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    shift[v] = B::load_aligned(lse + v * W);
    mean[v] = B::load_aligned(base + v * W);
  }
  const B hidden(-infinity<T>), zero(T(0));
  for (Index j = 0; j < keys; ++j) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const Index at = j * G + v * W;
      B p = attention_kernel::exp2(B::load_aligned(s + at) - shift[v]), ds = p * (B::load_aligned(d + at) - mean[v]);
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
  const T *lse, *base;          // [lanes]
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
  alignas(64) T top[G] = {};  // the maxima are of no interest here
  scores<T, A, V>(b.count, dk, k, b.k_stride, of.qt, terms ? terms : key_bias, terms ? G : 1, s, top);
  scores<T, A, V>(b.count, dv, v, b.v_stride, of.dot, nullptr, 0, d, top);
  weight_gradients<T, A, V>(b.count, s, d, terms, of.lse, of.base);
  const bool clean =
      !terms || (all_finite<T, A>(k, b.k_stride, b.count, dk) && all_finite<T, A>(of.q_rows, of.q_stride, of.queries, dk) &&
                 all_finite<T, A>(of.dout_rows, of.dout_stride, of.queries, dv));
  if (clean) [[likely]] {
    if (of.dqt) sums<T, A, V>(dk, b.count, k, Index{1}, b.k_stride, d, G, of.dqt, G);
    if (dv_block)
      sums_wide<T, A>(b.count, (dv + W - 1) / W, of.queries, s, G, Index{1}, of.dout_rows, of.dout_stride, dv_block, dv_stride);
    if (dk_block)
      sums_wide<T, A>(b.count, (dk + W - 1) / W, of.queries, d, G, Index{1}, of.q_rows, of.q_stride, dk_block, dk_stride);
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
    g.key_bias[b.at[j] * g.key_bias_stride + head * g.key_bias_head] += simd::sum<T, A>(ds + j * G, queries);
  for (Index i = 0; i < queries && g.pair_bias; ++i) {
    T* to = g.pair_bias + head * g.pair_head + (i0 + i) * g.pair_stride;
    for (Index j = 0; j < b.count; ++j) to[b.at[j]] += ds[j * G + i];
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
          lse[to] = i < y.queries ? weight_base(r.log_sum_exp[row * r.lse_stride + h0 + h]) : infinity<T>;
          base[to] = i < y.queries ? gradient_base<T, A>(r, row, h0 + h, dv) : T(0);
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
          with_vectors<T, A>(of.vectors, [&](auto v) RECOPS_LAMBDA_INLINE {
            backward_block<T, A, v()>(x, b, h, terms, group_head(of, h), tiles, dk_block ? dk_block + h * dkp : nullptr,
                                      heads * dkp, dv_block ? dv_block + h * dvp : nullptr, heads * dvp);
          });
          if (g.key_bias || g.pair_bias) bias_gradients<T, A>(b, g, h0 + h, i0, i1 - i0, of.vectors * W, tiles.other);
        }
      }
      for (Index j = 0; j < b.count; ++j) {
        for (Index h = 0; h < heads; ++h) {
          if (dv_block) simd::add<T, A>(dv_block + (j * heads + h) * dvp, g.dv + b.at[j] * g.dv_stride + (h0 + h) * dv, dv);
          if (dk_block)
            simd::axpy<T, A>(x.scale, dk_block + (j * heads + h) * dkp, g.dk + b.at[j] * g.dk_stride + (h0 + h) * dk, dk);
        }
      }
    }
    if (!dqt) return;
    T* factor = lse;  // no longer needed
    for (Index i = 0; i < lanes<T, A> * most_vectors<A> && i < padded * heads; ++i) factor[i] = x.scale;
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

/// Adds to the gradients of what `attention_forward` read: queries [q0, q1), keys [k0, k1). Rows that saw no key add nothing.
template <class T, class A = DefaultArch>
void attention_backward(const AttentionOperands<T>& x, Index q0, Index q1, Index k0, Index k1, const AttentionResult<T>& r,
                        const AttentionGradients<T>& g, Workspace& ws) {
  if (q1 - q0 <= attention_kernel::few_queries<T, A>) {
    attention_kernel::backward_few<T, A>(x, q0, q1, k0, k1, r, g, ws);
  } else {
    attention_kernel::backward_many<T, A>(x, q0, q1, k0, k1, r, g, ws);
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
