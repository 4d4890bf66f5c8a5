/// @file   recops/simd/attention_tiles.hpp
/// @brief  What attention spends its time in: small products of keys, queries and values, held in registers.
///
/// Tiles serve many queries (lanes are queries), rows serve few (lanes run along a head). Float sums run over at most 60 keys
/// (or 32 queries) in one chain; these partial sums are added up in order. Scores are kept in units of log 2.
#pragma once
#include <cmath>
#include <limits>
#include <recops/simd/math.hpp>
#include <recops/simd/reduce.hpp>
#include <recops/simd/shuffle.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace attention_kernel {

inline constexpr Index key_block = 60;  // keys whose scores are held at once: a multiple of the tile heights 4 and 12
inline constexpr int most_vectors = 2;  // vectors of queries that one tile covers at most
/// Rows of a tile of V vectors. Eight sums are as many as two multiply-adds a cycle keep waiting. With sixteen registers no more,
/// though they would hold twelve: a tile ends in a burst of stores that wait for their sums, and more than eight of them hold up what
/// comes after (Zen 3: 6 x 2 sums over 32 steps 0.88 of the peak rate, 4 x 2 0.97, both 0.99 without the stores).
template <class A, int V>
inline constexpr int tile_rows = registers<A> == 32 ? 12 : 8 / V;
/// Queries that one call takes at once, and up to how many queries the kernel for few is the faster one.
template <class T, class A>
inline constexpr Index query_block = 8 * lanes<T, A>;
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
      const B magic(12583039.0f);  // 1.5 2^23 + 127: adding it leaves the nearest whole number, plus 127, in the low bits
      const B y = xsimd::max(B(-127.0f), x), t = y + magic, r = y - (t - magic);
      const B power = bits_as<float>(bits_as<std::int32_t>(t) << 23);  // 0 below -126.5
      return detail::polynomial(r, c) * power;
    }
  } else {
    const B y = xsimd::max(B(-1080.0), x), n = xsimd::nearbyint(y), r = (y - n) * B(ln_2<double>);
    constexpr double c[] = {1.0,         1.0,          1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,       1.0 / 720,
                            1.0 / 5040., 1.0 / 40320., 1.0 / 362880., 1.0 / 3628800., 1.0 / 39916800., 1.0 / 479001600.};
    return detail::scale_by_power(detail::polynomial(r, c), n);
  }
}

/// x <- unit 2^(x - n) for N vectors, n the whole number nearest to x; whole = 1.5 2^23 + offset + n. Step by step side by side: their
/// chains would not all fit the scheduler one after the other.
template <int N, class A>
RECOPS_INLINE void fraction_powers(Batch<float, A>* x, float unit, float offset, Batch<float, A>* whole) {
  using B = Batch<float, A>;
  const float c[] = {1.00000007f * unit,   0.693146967f * unit,  0.240221197f * unit,
                     0.0555071328f * unit, 0.0096755415f * unit, 0.0013276472f * unit};
  const B magic(0x1.8p23f + offset);
  B p[N];
  RECOPS_UNROLL
  for (int i = 0; i < N; ++i) whole[i] = x[i] + magic;
  RECOPS_UNROLL
  for (int i = 0; i < N; ++i) p[i] = whole[i] - magic;
  RECOPS_UNROLL
  for (int i = 0; i < N; ++i) x[i] = x[i] - p[i];
  RECOPS_UNROLL
  for (int i = 0; i < N; ++i) p[i] = mul_add(x[i], B(c[5]), B(c[4]));
  RECOPS_UNROLL
  for (int k = 3; k >= 0; --k) {
    RECOPS_UNROLL
    for (int i = 0; i < N; ++i) p[i] = mul_add(p[i], x[i], B(c[k]));
  }
  RECOPS_UNROLL
  for (int i = 0; i < N; ++i) x[i] = p[i];
}

/// 2^x for N vectors.
template <int N, class T, class A>
RECOPS_INLINE void exp2_each(Batch<T, A>* x) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float> && registers<A> == 16) {
    B t[N];
    RECOPS_UNROLL
    for (int i = 0; i < N; ++i) x[i] = xsimd::max(B(-127.0f), x[i]);
    fraction_powers<N>(x, 1.0f, 127.0f, t);
    RECOPS_UNROLL
    for (int i = 0; i < N; ++i) x[i] = x[i] * bits_as<float>(bits_as<std::int32_t>(t[i]) << 23);
  } else {
    RECOPS_UNROLL
    for (int i = 0; i < N; ++i) x[i] = attention_kernel::exp2(x[i]);
  }
}

/// Powers of two of exponents from -95 to 31: there the whole part of the exponent is added to that of the fraction's power, and
/// nothing is clamped, which spares operations where they compete with the products. `all()` says whether those seen so far were in
/// this range; where not, some powers are worth nothing. In range they are those of exp2, bit by bit.
template <class T, class A>
class NearPowers {
 public:
  template <int N>
  RECOPS_INLINE void operator()(Batch<T, A>* x) {
    if constexpr (std::is_same_v<T, float>) {
      B t[N];
      fraction_powers<N>(x, even ? 0x1p-96f : 0x1p-95f, even ? 96.0f : 95.0f, t);
      RECOPS_UNROLL
      for (int i = 0; i < N; ++i) {
        const auto whole = bits_as<std::int32_t>(t[i]);
        seen_ = seen_ | (whole ^ Batch<std::int32_t, A>(0x4b400000));  // the bits of 1.5 2^23
        x[i] = bits_as<float>(bits_as<std::int32_t>(x[i]) + (whole << 23));
      }
    } else {
      RECOPS_UNROLL
      for (int i = 0; i < N; ++i) {
        near_ = near_ & (x[i] >= B(T(-95))) & (x[i] <= B(T(31)));
        x[i] = attention_kernel::exp2(x[i]);
      }
    }
  }
  bool all() const {
    if constexpr (std::is_same_v<T, float>) {
      return xsimd::all((seen_ & Batch<std::int32_t, A>(~127)) == Batch<std::int32_t, A>(0));
    } else {
      return xsimd::all(near_);
    }
  }

 private:
  using B = Batch<T, A>;
  static constexpr bool even = std::is_base_of_v<xsimd::avx512f, A>;  // halves go where those of exp2 go
  Batch<std::int32_t, A> seen_ = Batch<std::int32_t, A>(0);
  typename B::batch_bool_type near_ = B(T(0)) == B(T(0));
};

/// Rows of two matrices that will be needed next, to be asked for into L2 little by little while tiles are computed: memory takes only so
/// many questions at once, and a burst of them holds up what comes after.
template <class T>
struct RowsAhead {
  const T *first, *second;  ///< the second may be null
  Index first_stride, second_stride, first_cols, second_cols;
  Index rows, each = 1;  ///< how many there are, how many of them to ask for at a time
  void ask() {
    if (rows > 0) ask(each);
  }
  /// Not inlined: a dozen kernels ask between their tiles.
  [[gnu::noinline]] void ask(Index n) {
    constexpr Index line = 64 / Index{sizeof(T)};
    for (; n > 0 && rows > 0; --n, --rows) {
      for (Index d = 0; d < first_cols; d += line) __builtin_prefetch(first + d, 0, 2);
      for (Index d = 0; second && d < second_cols; d += line) __builtin_prefetch(second + d, 0, 2);
      first += first_stride;
      if (second) second += second_stride;
    }
  }
};

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

/// The numbers a[r * stride + j] of R rows, one pointer to every third row. Pointers and stride are hidden from the compiler at each
/// step: it would keep an offset for each row and step, and run out of integer registers.
template <class T, int R>
struct AlongRows {
  static constexpr int groups = (R + 2) / 3;
  const T* at[groups];
  Index bytes;
  AlongRows(const T* a, Index stride) : bytes(stride * Index{sizeof(T)}) {
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) at[g] = a + 3 * g * stride;
  }
  RECOPS_INLINE void hide() {
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) asm("" : "+r"(at[g]));
    asm("" : "+r"(bytes));
  }
  RECOPS_INLINE T get(int r, int step) const {
    return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(at[r / 3] + step) + r % 3 * bytes);
  }
  RECOPS_INLINE void skip(int steps) {
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) at[g] += steps;
  }
};
/// The numbers a[j * stride + r], likewise.
template <class T>
struct AlongColumns {
  const T* at;
  Index bytes, thrice;
  AlongColumns(const T* a, Index stride) : at(a), bytes(stride * Index{sizeof(T)}), thrice(3 * bytes) {}
  RECOPS_INLINE void hide() { asm("" : "+r"(at), "+r"(bytes), "+r"(thrice)); }
  RECOPS_INLINE const T* row(Index r, int step) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(at + r) + (step == 3 ? thrice : step * bytes));
  }
  RECOPS_INLINE T get(int r, int step) const { return *row(r, step); }
  RECOPS_INLINE void skip(int steps) { at = reinterpret_cast<const T*>(reinterpret_cast<const char*>(at) + steps * bytes); }
};

/// acc[r][.] += sum_j a(r, j) b[j][.], j < n. Four steps at a time: when a neighbour has the core's other thread, instructions are what is
/// short, and a loop's own are then a fifth of all.
template <class T, class A, int R, int V, class Numbers>
RECOPS_INLINE void add_products(Index n, Numbers a, const T* b, Index b_stride, Batch<T, A> (&acc)[R][V]) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  AlongColumns<T> rows(b, b_stride);
  const auto steps = [&](auto count) RECOPS_LAMBDA_INLINE {
    constexpr int U = count();
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) {
      a.hide();
      rows.hide();
      B x[V];
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) x[v] = simd::detail::in_register(B::load_unaligned(rows.row(v * W, u)));
      RECOPS_UNROLL
      for (int r = 0; r < R; ++r) {
        const B y(a.get(r, u));
        RECOPS_UNROLL
        for (int v = 0; v < V; ++v) add_product(y, x[v], acc[r][v]);
      }
    }
    a.skip(U);
    rows.skip(U);
  };
  for (; R * V >= 8 && n >= 4; n -= 4) steps(std::integral_constant<int, 4>());  // smaller tiles are what is left over
  for (; n > 0; --n) steps(std::integral_constant<int, 1>());
}

/// s[r][.] = start[.] + sum_d k[r][d] qt[d][.]
template <class T, class A, int R, int V>
[[gnu::noinline]] void score_tiles(Index tiles, Index depth, const T* k, Index k_stride, const T* qt, const T* start, T* s,
                                   RowsAhead<T>* ahead) {
  constexpr Index W = lanes<T, A>, G = W * V;
  using B = Batch<T, A>;
  for (; tiles > 0; --tiles, k += R * k_stride, s += R * G) {
    if (ahead) ahead->ask();
    B acc[R][V];
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = B::load_aligned(start + v * W);
    }
    add_products<T, A, R, V>(depth, AlongRows<T, R>(k, k_stride), qt, G, acc);
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v].store_aligned(s + r * G + v * W);
    }
  }
}

/// c[r][.] += sum_j a(r, j) b[j][.]
template <class T, class A, int R, int V, bool columns>
[[gnu::noinline]] void sum_tile(Index n, const T* a, Index a_stride, const T* b, Index b_stride, T* c, Index c_stride) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  B acc[R][V];
  RECOPS_UNROLL
  for (int r = 0; r < R; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = B(T(0));
  }
  using Numbers = std::conditional_t<columns, AlongColumns<T>, AlongRows<T, R>>;
  add_products<T, A, R, V>(n, Numbers(a, a_stride), b, b_stride, acc);
  RECOPS_UNROLL
  for (int r = 0; r < R; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      T* to = c + r * c_stride + v * W;
      (acc[r][v] + B::load_aligned(to)).store_aligned(to);
    }
  }
}

/// s [keys, V vectors] = start + k q^T. The last tile overlaps the one before.
template <class T, class A, int V>
void scores(Index keys, Index depth, const T* k, Index k_stride, const T* qt, const T* start, T* s,
            RowsAhead<T>* ahead = nullptr) {
  constexpr Index G = lanes<T, A> * V, most = tile_rows<A, V>;
  Index r = 0;
  const auto tiles = [&](Index rows, auto* some) {
    some((keys - r) / rows, depth, k + r * k_stride, k_stride, qt, start, s + r * G, ahead);
    r += (keys - r) / rows * rows;
  };
  tiles(most, score_tiles<T, A, most, V>);
  if (most > 4) tiles(4, score_tiles<T, A, 4, V>);
  if (r == keys) return;
  if (keys < 4) return tiles(1, score_tiles<T, A, 1, V>);
  r = keys - 4;
  tiles(4, score_tiles<T, A, 4, V>);
}

/// The same from 0.
template <class T, class A, int V>
void scores(Index keys, Index depth, const T* k, Index k_stride, const T* qt, T* s) {
  alignas(64) const T zeros[lanes<T, A> * V] = {};
  scores<T, A, V>(keys, depth, k, k_stride, qt, zeros, s);
}

/// s <- 2^s, l += its sum over keys, if all powers are near and no sum is far from 1; else s is worth nothing, and l as it was.
template <class T, class A, int V>
[[gnu::noinline]] bool near_weights(Index keys, T* s, T* l) {
  constexpr Index W = lanes<T, A>, G = V * W;
  constexpr int N = 4;  // vectors at once
  using B = Batch<T, A>;
  NearPowers<T, A> near;
  B sum[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) sum[v] = B(T(0));
  const auto some = [&](auto count, Index at) RECOPS_LAMBDA_INLINE {
    constexpr int n = count();
    B x[n];
    RECOPS_UNROLL
    for (int i = 0; i < n; ++i) x[i] = B::load_aligned(s + at + i * W);
    near.template operator()<n>(x);
    RECOPS_UNROLL
    for (int i = 0; i < n; ++i) {
      x[i].store_aligned(s + at + i * W);
      sum[i % V] = sum[i % V] + x[i];
    }
  };
  Index at = 0;
  for (; at + N * W <= keys * G; at += N * W) some(std::integral_constant<int, N>(), at);
  for (; at < keys * G; at += G) some(std::integral_constant<int, V>(), at);
  // Where nothing was summed before, a maximum far below 0 is what scores should be measured from.
  const B most(std::ldexp(T(1), 30)), least(std::ldexp(T(1), -8));
  bool fine = near.all();
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v)
    fine &= xsimd::all((sum[v] <= most) & ((sum[v] >= least) | (B::load_aligned(l + v * W) != B(T(0)))));
  if (!fine) return false;
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) (B::load_aligned(l + v * W) + sum[v]).store_aligned(l + v * W);
  return true;
}

/// The same for scores that lie far apart, G queries wide.
template <class T, class A>
[[gnu::noinline]] void weights(Index keys, Index G, T* s, T* l) {
  using B = Batch<T, A>;
  for (Index v = 0; v < G; v += lanes<T, A>) {
    B sum = B(T(0));
    const auto some = [&](auto count, T* x) RECOPS_LAMBDA_INLINE {
      constexpr int n = count();
      B p[n];
      RECOPS_UNROLL
      for (int i = 0; i < n; ++i) p[i] = B::load_aligned(x + i * G);
      exp2_each<n>(p);
      RECOPS_UNROLL
      for (int i = 0; i < n; ++i) {
        p[i].store_aligned(x + i * G);
        sum = sum + p[i];
      }
    };
    Index j = 0;
    for (; j + 4 <= keys; j += 4) some(std::integral_constant<int, 4>(), s + j * G + v);
    for (; j < keys; ++j) some(std::integral_constant<int, 1>(), s + j * G + v);
    (B::load_aligned(l + v) + sum).store_aligned(l + v);
  }
}

/// top = the largest of each lane.
template <class T, class A>
[[gnu::noinline, gnu::cold]] void largest(Index keys, Index G, const T* s, T* top) {
  using B = Batch<T, A>;
  for (Index i = 0; i < G; i += lanes<T, A>) {
    B most(-infinity<T>);
    for (Index j = 0; j < keys; ++j)
      most = xsimd::max(B::load_aligned(s + j * G + i), most);  // in this order a NaN is passed over
    most.store_aligned(top + i);
  }
}

/// s += `bias`: one number per key (bias_stride 1) or one per score (bias_stride = G); -infinity hides whatever the score is.
/// top = the largest of each lane.
template <class T, class A>
[[gnu::noinline]] void add_terms(Index keys, Index G, const T* bias, Index bias_stride, T* s, T* top) {
  using B = Batch<T, A>;
  const B hidden(-infinity<T>);
  for (Index i = 0; i < G; i += lanes<T, A>) {
    B most = hidden;
    for (Index j = 0; j < keys; ++j) {
      const B term = bias_stride == 1 ? B(bias[j]) : B::load_aligned(bias + j * G + i);
      const B x = xsimd::select(term == hidden, hidden, B::load_aligned(s + j * G + i) + term);
      x.store_aligned(s + j * G + i);
      most = xsimd::max(x, most);
    }
    most.store_aligned(top + i);
  }
}

/// c [rows, V vectors] += a^T b for a [n, rows] (`columns`), or += a b for a [rows, n]; b has V vectors per j < n.
template <class T, class A, int V, bool columns>
[[gnu::noinline]] void sums(Index rows, Index n, const T* a, Index a_stride, const T* b, Index b_stride, T* c, Index c_stride,
                            RowsAhead<T>* ahead = nullptr) {
  constexpr int most = registers<A> == 32 ? 8 : tile_rows<A, V>;  // widths are multiples of 8 more often than of 12
  const auto tiles = [&](auto height) {
    constexpr int R = height();
    for (; rows >= R; rows -= R) {
      if (ahead) ahead->ask();
      sum_tile<T, A, R, V, columns>(n, a, a_stride, b, b_stride, c, c_stride);
      a += columns ? R : R * a_stride;
      c += R * c_stride;
    }
  };
  tiles(std::integral_constant<int, most>());
  if constexpr (most > 4) tiles(std::integral_constant<int, 4>());
  tiles(std::integral_constant<int, 1>());
}

/// The same for any number of vectors.
template <class T, class A, bool columns>
void sums_wide(Index rows, Index vectors, Index n, const T* a, Index a_stride, const T* b, Index b_stride, T* c, Index c_stride) {
  constexpr Index W = lanes<T, A>;
  Index v = 0;
  for (; v + 2 <= vectors; v += 2) sums<T, A, 2, columns>(rows, n, a, a_stride, b + v * W, b_stride, c + v * W, c_stride);
  if (v < vectors) sums<T, A, 1, columns>(rows, n, a, a_stride, b + v * W, b_stride, c + v * W, c_stride);
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

inline constexpr Index row_block = 128;  // keys at once where queries are few, at most

/// As many of `keys` as leave room in L1, so that values which are the keys are found there; blocks are about equally long.
template <class T>
Index rows_at_once(Index width, Index keys) {
  const Index bytes = width * Index{sizeof(T)};
  if (keys <= row_block && keys * bytes <= 32768) return row_block;
  const Index room = keys * bytes <= 32768 ? row_block : 24576 / bytes / 16 * 16;
  const Index most = room < 16 ? 16 : room > row_block ? row_block : room, blocks = (keys + most - 1) / most;
  return blocks <= 1 ? most : ((keys + blocks - 1) / blocks + 15) / 16 * 16;
}

/// s[h][j] = sum_d x[h][d] rows[j][h * width + d] for j < n, -infinity from there to the next whole vector. Row h of x begins at
/// x + h * x_stride, of s at s + h * row_block. All heads of a few rows come before the next rows: memory is read in order.
template <class T, class A>
[[gnu::noinline]] void row_dots(Index n, const T* rows, Index stride, Index heads, const T* x, Index x_stride, Index width,
                                T* s) {
  constexpr Index W = lanes<T, A>;
  constexpr int groups = static_cast<int>((W + 3) / 4);
  using B = Batch<T, A>;
  const Index whole = width / W * W, tail = width - whole;
  for (Index j = 0; n >= W && j < n; j += W) {
    const Index first = j + W <= n ? j : n - W;  // the last vector overlaps the one before
    for (Index h = 0; h < heads; ++h) {
      const T *row = rows + first * stride + h * width, *y = x + h * x_stride;
      // A pointer to every fourth row, and hidden from the compiler: addresses of all rows would not fit the integer registers.
      const T* at[groups];
      RECOPS_UNROLL
      for (int g = 0; g < groups; ++g) at[g] = row + 4 * g * stride;
      B acc[W];
      RECOPS_UNROLL
      for (Index i = 0; i < W; ++i) acc[i] = B(T(0));
      for (Index d = 0; d < whole; d += W) {
        const B z = B::load_unaligned(y + d);
        RECOPS_UNROLL
        for (int g = 0; g < groups; ++g) asm("" : "+r"(at[g]));
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i) acc[i] = mul_add(B::load_unaligned(at[i / 4] + i % 4 * stride), z, acc[i]);
        RECOPS_UNROLL
        for (int g = 0; g < groups; ++g) at[g] += W;
      }
      if (tail > 0) {
        alignas(64) T ends[W][W] = {};
        for (Index i = 0; i < W; ++i) std::copy_n(row + i * stride + whole, tail, ends[i]);
        const B z = load_first<T, A>(y + whole, tail);
        RECOPS_UNROLL
        for (Index i = 0; i < W; ++i) acc[i] = mul_add(B::load_aligned(ends[i]), z, acc[i]);
      }
      sum_each<T, A>(acc).store_unaligned(s + h * row_block + first);
    }
  }
  for (Index h = 0; h < heads; ++h) {
    for (Index j = 0; n < W && j < n; ++j) {
      const T *row = rows + j * stride + h * width, *y = x + h * x_stride;
      B sum(T(0));
      for (Index d = 0; d < whole; d += W) sum = mul_add(B::load_unaligned(row + d), B::load_unaligned(y + d), sum);
      T end = T(0);
      for (Index d = whole; d < width; ++d) end += row[d] * y[d];
      s[h * row_block + j] = sum_lanes(sum) + end;
    }
    for (Index j = n; j % W != 0; ++j) s[h * row_block + j] = -infinity<T>;
  }
}

/// o[d] += sum_j p[j] rows[j][d], C whole vectors of d, or the first `part` of one.
template <class T, class A, int C, bool whole = true>
[[gnu::noinline]] void weighted_rows(Index n, const T* p, const T* rows, Index stride, T* o, Index part = 0) {
  constexpr Index W = lanes<T, A>;
  constexpr int U = whole ? 8 / C : 1;  // eight chains; reading part of a row takes longer than a chain
  using B = Batch<T, A>;
  B acc[U][C];
  RECOPS_UNROLL
  for (int u = 0; u < U; ++u) {
    RECOPS_UNROLL
    for (int c = 0; c < C; ++c) acc[u][c] = B(T(0));
  }
  Index j = 0;
  for (; j + U <= n; j += U) {
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) {
      const T* row = rows + u * stride;
      const B w(p[j + u]);
      RECOPS_UNROLL
      for (int c = 0; c < C; ++c)
        acc[u][c] = mul_add(w, whole ? B::load_unaligned(row + c * W) : load_first<T, A>(row, part), acc[u][c]);
    }
    rows += U * stride;
  }
  for (; j < n; ++j, rows += stride) {
    const B w(p[j]);
    RECOPS_UNROLL
    for (int c = 0; c < C; ++c)
      acc[0][c] = mul_add(w, whole ? B::load_unaligned(rows + c * W) : load_first<T, A>(rows, part), acc[0][c]);
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
[[gnu::noinline]] void weighted_sum(Index n, const T* p, const T* rows, Index stride, Index width, T* o) {
  constexpr Index W = lanes<T, A>;
  constexpr Index vectors[] = {8, 4, 2, 1};
  constexpr decltype(&weighted_rows<T, A, 1>) some[] = {weighted_rows<T, A, 8>, weighted_rows<T, A, 4>, weighted_rows<T, A, 2>,
                                                        weighted_rows<T, A, 1>};
  Index d = 0;
  for (int i = 0; i < 4; ++i)
    for (; d + vectors[i] * W <= width; d += vectors[i] * W) some[i](n, p, rows + d, stride, o + d, 0);
  if (d < width) weighted_rows<T, A, 1, false>(n, p, rows + d, stride, o + d, width - d);
}

template <class T, class A>
Index padded_width(Index width) {
  return (width + lanes<T, A> - 1) / lanes<T, A> * lanes<T, A>;
}

}  // namespace attention_kernel

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
