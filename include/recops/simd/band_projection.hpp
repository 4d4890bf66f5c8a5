/// @file   recops/simd/band_projection.hpp
/// @brief  A few neighbouring bins of sequences by themselves: projection onto their cosines and sines, and a gain inside and outside.
///
///     y = outer . x + (inner - outer) . P x      P x = irfft([first <= k < last] rfft(x), L)
///
/// P = Q Q^T with the cosines and sines of the bins in Q: 2 r L multiply-adds a channel for r columns, where a transform and its
/// inverse take about 5 L log2 L operations. cos is even and sin odd about row 0, so that the rows n and L - n are done together and
/// the multiplications halve. A vector or two of channels at a time: their sums stay in registers, x is read twice and the second time
/// from a cache.
///
/// Shapes      x, y [L, D], any row strides; inner, outer [D]. y is not x.
/// Edge cases  L = 0 or D = 0: nothing happens. A NaN or infinity stays in its channel.
/// Precision   as a sum of L terms in T: in float within about 3e-7 sqrt(L) / 8 of |x|, never worse than L 6e-8.
/// Gradient    P is symmetric: dx is the same call on dy. `band_products` gives those of the gains.
/// Kernels assert; shapes are checked by the operators above.
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// What happens to y: written, added to, or written around the caches (a hint, for y that nobody reads soon).
enum class BandStore : unsigned char { write, add, far };

/// Bins [first, last) of sequences of `length` rows. Points into a workspace; whoever made it keeps that alive.
template <Real T>
struct BandWaves {
  Index length = 0;
  Index first = 0, last = 0;
  bool mean = false;         ///< bin 0 is among them
  Index waves = 0;           ///< other bins
  const T* table = nullptr;  ///< [L / 2 + 1][waves][2]: cos, sin of 2 pi k n / L

  /// Real columns.
  Index rank() const { return (mean ? 1 : 0) + 2 * waves - (waves > 0 && 2 * (last - 1) == length ? 1 : 0); }
  /// What the sums over wave `w` are multiplied with on the way back: m_k / L.
  T scale(Index w) const {
    const Index k = first + (mean ? 1 : 0) + w;
    return static_cast<T>((2 * k == length ? 1.0 : 2.0) / static_cast<double>(length));
  }

  /// `roots`: cos(2 pi m / L), then sin, m < L.
  static BandWaves make(Workspace& ws, const T* roots, Index length, Index first, Index last) {
    assert(0 <= first && first <= last && (length == 0 || last <= length / 2 + 1));
    BandWaves b;
    b.length = length;
    b.first = first;
    b.last = last;
    b.mean = first == 0 && last > 0;
    b.waves = last - first - (b.mean ? 1 : 0);
    T* t = ws.take<T>((length / 2 + 1) * b.waves * 2);
    b.table = t;
    const Index least = last - b.waves;
    for (Index n = 0; n <= length / 2 && length > 0; ++n) {
      Index m = least * n % length;
      for (Index w = 0; w < b.waves; ++w, t += 2) {
        t[0] = roots[m];
        t[1] = roots[length + m];
        m += n;
        if (m >= length) m -= length;
      }
    }
    return b;
  }
};

namespace detail {

/// What a tile fetches of the next sequence, a place a row. Where rows lie one behind the other each tile takes its share of them
/// in order of memory, which is much faster than a column of every row.
template <class T>
struct BandFetch {
  const T* at;
  Index step = 0;
  RECOPS_INLINE void next() {
    __builtin_prefetch(at);
    at += step;
  }
};

/// Rows n and L - n of a tile of V vectors: their sum and difference.
template <int V, class T, class A>
RECOPS_INLINE void band_fold(const T* p, const T* q, Batch<T, A>* even, Batch<T, A>* odd) {
  using B = Batch<T, A>;
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    const B a = B::load_unaligned(p + v * lanes<T, A>), b = B::load_unaligned(q + v * lanes<T, A>);
    even[v] = a + b;
    odd[v] = a - b;
  }
}

/// Sums over all rows of a tile: of x itself (with `mean`) to sums[0], times cos and sin of Q waves to `to`, [Q][2][V lanes]. `t` is
/// the table's first of these waves; its rows are `t_stride` apart. The first half of the rows is fetched here, `band_rows` fetches
/// the others, so that memory has work all the time.
template <int V, int Q, bool mean, class T, class A>
[[gnu::noinline]] void band_sums(const T* x, Index stride, Index length, const T* t, Index t_stride, BandFetch<T> fetch,
                                 T* mean_to, T* to) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  B m[V], c[Q > 0 ? Q : 1][V], s[Q > 0 ? Q : 1][V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {  // row 0: cos 1, sin 0
    m[v] = B::load_unaligned(x + v * W);
    RECOPS_UNROLL
    for (int w = 0; w < Q; ++w) {
      c[w][v] = m[v];
      s[w][v] = B(T(0));
    }
  }
  fetch.next();
  const T *p = x + stride, *q = x + (length - 1) * stride;
  t += t_stride;
  Index n = 1;
  for (; 2 * n < length; ++n, p += stride, q -= stride, t += t_stride) {
    B even[V], odd[V];
    band_fold<V, T, A>(p, q, even, odd);
    fetch.next();
    if (mean) {
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) m[v] = m[v] + even[v];
    }
    RECOPS_UNROLL
    for (int w = 0; w < Q; ++w) {
      const B cosine(t[2 * w]), sine(t[2 * w + 1]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) {
        c[w][v] = mul_add(cosine, even[v], c[w][v]);
        s[w][v] = mul_add(sine, odd[v], s[w][v]);
      }
    }
  }
  if (2 * n == length) {  // the row opposite row 0: sin 0
    fetch.next();
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const B a = B::load_unaligned(p + v * W);
      m[v] = m[v] + a;
      RECOPS_UNROLL
      for (int w = 0; w < Q; ++w) c[w][v] = mul_add(B(t[2 * w]), a, c[w][v]);
    }
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    if (mean) m[v].store_unaligned(mean_to + v * W);
    RECOPS_UNROLL
    for (int w = 0; w < Q; ++w) {
      c[w][v].store_unaligned(to + (2 * w) * V * W + v * W);
      s[w][v].store_unaligned(to + (2 * w + 1) * V * W + v * W);
    }
  }
}

/// Sums of a tile over all waves: [1 + 2 waves][V lanes], the mean's first (0 where it is not wanted).
template <int V, class T, class A>
void band_analyse(const BandWaves<T>& band, const T* x, Index stride, const BandFetch<T>& fetch, T* sums) {
  constexpr Index W = lanes<T, A>;
  constexpr int Q = registers<A> >= 32 ? 4 : 2;  // what registers hold: (1 + 2 Q) V sums, 2 V rows, 1 factor
  const Index t_stride = 2 * band.waves, n = band.waves;
  T* const to = sums + V * W;
  if (!band.mean)
    for (Index i = 0; i < V * W; ++i) sums[i] = T(0);
  Index w = 0;
  if (band.mean) {
    const int first = static_cast<int>(n < 2 ? n : 2);
    if (first == 0) band_sums<V, 0, true, T, A>(x, stride, band.length, band.table, t_stride, fetch, sums, to);
    if (first == 1) band_sums<V, 1, true, T, A>(x, stride, band.length, band.table, t_stride, fetch, sums, to);
    if (first == 2) band_sums<V, 2, true, T, A>(x, stride, band.length, band.table, t_stride, fetch, sums, to);
    w = first;
  }
  for (; w + Q <= n; w += Q)
    band_sums<V, Q, false, T, A>(x, stride, band.length, band.table + 2 * w, t_stride, {x}, nullptr, to + 2 * w * V * W);
  for (; w < n; ++w)
    band_sums<V, 1, false, T, A>(x, stride, band.length, band.table + 2 * w, t_stride, {x}, nullptr, to + 2 * w * V * W);
}

/// y = (or +=) outer x + the waves with the given sums, which hold all factors. Q waves, or any number with Q = -1.
template <int V, int Q, class T, class A>
[[gnu::noinline]] void band_rows(const BandWaves<T>& band, const T* x, Index x_stride, const T* sums, const T* outer,
                                 BandFetch<T> fetch, BandStore store, T* y, Index y_stride) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const Index length = band.length, waves = Q < 0 ? band.waves : Q;
  const T* const wave = sums + V * W;
  B gain[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) gain[v] = B::load_unaligned(outer + v * W);
  const auto put = [&](const T* in, T* out, const B* low) RECOPS_LAMBDA_INLINE {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      B r = mul_add(gain[v], B::load_unaligned(in + v * W), low[v]);
      if (store == BandStore::add) r = r + B::load_unaligned(out + v * W);
      if (store == BandStore::far) {
        store_far<T, A>(out + v * W, r);
      } else {
        r.store_unaligned(out + v * W);
      }
    }
  };
  B mean[V], cosines[Q > 0 ? Q : 1][V], sines[Q > 0 ? Q : 1][V];  // few enough to stay in registers
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    mean[v] = B::load_unaligned(sums + v * W);
    RECOPS_UNROLL
    for (int w = 0; w < Q; ++w) {
      cosines[w][v] = B::load_unaligned(wave + 2 * w * V * W + v * W);
      sines[w][v] = B::load_unaligned(wave + (2 * w + 1) * V * W + v * W);
    }
  }
  const auto sum = [&](const T* t, B* even, B* odd) RECOPS_LAMBDA_INLINE {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      even[v] = mean[v];
      odd[v] = B(T(0));
    }
    if constexpr (Q < 0) {
      for (Index w = 0; w < waves; ++w) {
        const B c(t[2 * w]), s(t[2 * w + 1]);
        RECOPS_UNROLL
        for (int v = 0; v < V; ++v) {
          even[v] = mul_add(c, B::load_unaligned(wave + 2 * w * V * W + v * W), even[v]);
          odd[v] = mul_add(s, B::load_unaligned(wave + (2 * w + 1) * V * W + v * W), odd[v]);
        }
      }
    } else {
      RECOPS_UNROLL
      for (int w = 0; w < Q; ++w) {
        const B c(t[2 * w]), s(t[2 * w + 1]);
        RECOPS_UNROLL
        for (int v = 0; v < V; ++v) {
          even[v] = mul_add(c, cosines[w][v], even[v]);
          odd[v] = w == 0 ? s * sines[w][v] : mul_add(s, sines[w][v], odd[v]);
        }
      }
    }
  };
  fetch.at += (length / 2 + 1) * fetch.step;  // those have been fetched
  B even[V], odd[V];
  const T* t = band.table;
  sum(t, even, odd);
  put(x, y, even);
  const T *p = x + x_stride, *q = x + (length - 1) * x_stride;
  T *py = y + y_stride, *qy = y + (length - 1) * y_stride;
  t += 2 * waves;
  Index n = 1;
  for (; 2 * n < length; ++n, p += x_stride, q -= x_stride, py += y_stride, qy -= y_stride, t += 2 * waves) {
    sum(t, even, odd);
    B up[V], down[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      up[v] = even[v] + odd[v];
      down[v] = even[v] - odd[v];
    }
    fetch.next();
    put(p, py, up);
    put(q, qy, down);
  }
  if (2 * n == length) {
    sum(t, even, odd);
    put(p, py, even);
  }
}

/// Multiplies the sums of a tile with m_k / L and the gain of the band.
template <int V, class T, class A>
void band_weigh(const BandWaves<T>& band, const T* inner, const T* outer, T* sums) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  B gain[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) gain[v] = B::load_unaligned(inner + v * W) - B::load_unaligned(outer + v * W);
  for (Index j = 0; j < 1 + 2 * band.waves; ++j) {
    const B scale(j == 0 ? T(1) / static_cast<T>(band.length) : band.scale((j - 1) / 2));
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      T* const at = sums + (j * V + v) * W;
      (scale * gain[v] * B::load_unaligned(at)).store_unaligned(at);
    }
  }
}

template <int V, class T, class A>
void band_tile(const BandWaves<T>& band, const T* x, Index x_stride, const BandFetch<T>& fetch, const T* inner, const T* outer,
               BandStore store, T* y, Index y_stride, T* sums) {
  band_analyse<V, T, A>(band, x, x_stride, fetch, sums);
  band_weigh<V, T, A>(band, inner, outer, sums);
  switch (band.waves) {
    case 1:
      return band_rows<V, 1, T, A>(band, x, x_stride, sums, outer, fetch, store, y, y_stride);
    case 2:
      return band_rows<V, 2, T, A>(band, x, x_stride, sums, outer, fetch, store, y, y_stride);
    default:
      return band_rows<V, -1, T, A>(band, x, x_stride, sums, outer, fetch, store, y, y_stride);
  }
}

/// The last channels, fewer than a vector, as whole vectors in the workspace.
template <class T, class A>
MatrixView<T> band_tail(MatrixView<const T> x, Index at, Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  const MatrixView<T> tail = ws.matrix<T>(x.rows(), W);
  for (Index n = 0; n < x.rows(); ++n) load_first<T, A>(x.row(n) + at, x.cols() - at).store_aligned(tail.row(n));
  return tail;
}

}  // namespace detail

/// y <- or += outer . x + (inner - outer) . P x. `next`: row 0 of the sequence that comes after this one, fetched
/// meanwhile; null for none. y does not overlap x.
template <Real T, class A = DefaultArch>
void band_mix(const BandWaves<T>& band, MatrixView<const T> x, const T* inner, const T* outer, BandStore store, MatrixView<T> y,
              const T* next, Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  assert(x.rows() == band.length && y.rows() == x.rows() && y.cols() == x.cols());
  if (x.empty()) return;
  const auto mark = ws.mark();
  const Index cols = x.cols();
  const bool in_order = x.stride() == cols;
  const auto fetch = [&](Index d, Index width) {
    if (!next) return detail::BandFetch<T>{x.data()};
    return in_order ? detail::BandFetch<T>{next + d * x.rows(), width} : detail::BandFetch<T>{next + d, x.stride()};
  };
  T* const sums = ws.take<T>((1 + 2 * band.waves) * 2 * W);
  if (store == BandStore::far) {  // whole cache lines only
    const std::uintptr_t places =
        reinterpret_cast<std::uintptr_t>(y.data()) | static_cast<std::uintptr_t>(y.stride()) * sizeof(T);
    if (places % 64 != 0 || cols % (2 * W) != 0 || 2 * W * sizeof(T) % 64 != 0) store = BandStore::write;
  }
  Index d = 0;
  for (; d + 2 * W <= cols; d += 2 * W)
    detail::band_tile<2, T, A>(band, x.data() + d, x.stride(), fetch(d, 2 * W), inner + d, outer + d, store, y.data() + d,
                               y.stride(), sums);
  for (; d + W <= cols; d += W)
    detail::band_tile<1, T, A>(band, x.data() + d, x.stride(), fetch(d, W), inner + d, outer + d, store, y.data() + d, y.stride(),
                               sums);
  if (d == cols) return;
  const MatrixView<T> in = detail::band_tail<T, A>(x, d, ws), out = ws.matrix<T>(x.rows(), W);
  alignas(64) T gains[2 * W];
  load_first<T, A>(inner + d, cols - d).store_aligned(gains);
  load_first<T, A>(outer + d, cols - d).store_aligned(gains + W);
  detail::band_tile<1, T, A>(band, in.data(), W, {in.data()}, gains, gains + W, BandStore::write, out.data(), W, sums);
  for (Index n = 0; n < x.rows(); ++n) {
    Batch<T, A> r = Batch<T, A>::load_aligned(out.row(n));
    if (store == BandStore::add) r = r + load_first<T, A>(y.row(n) + d, cols - d);
    store_first<T, A>(y.row(n) + d, r, cols - d);
  }
}

namespace detail {

/// inside += sum over the columns of Q of products of sums, whole += sum_n x g.
template <int V, class T, class A>
void band_products_tile(const BandWaves<T>& band, const T* x, Index x_stride, const T* g, Index g_stride, T* xs, T* gs, T* inside,
                        T* whole) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  band_analyse<V, T, A>(band, x, x_stride, {x}, xs);
  band_analyse<V, T, A>(band, g, g_stride, {g}, gs);
  B in[V], all[V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) in[v] = all[v] = B(T(0));
  for (Index j = 0; j < 1 + 2 * band.waves; ++j) {
    const B scale(j == 0 ? T(1) / static_cast<T>(band.length) : band.scale((j - 1) / 2));
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const Index at = (j * V + v) * W;
      in[v] = mul_add(scale * B::load_unaligned(xs + at), B::load_unaligned(gs + at), in[v]);
    }
  }
  for (Index n = 0; n < band.length; ++n, x += x_stride, g += g_stride) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) all[v] = mul_add(B::load_unaligned(x + v * W), B::load_unaligned(g + v * W), all[v]);
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    (in[v] + B::load_unaligned(inside + v * W)).store_unaligned(inside + v * W);
    (all[v] - in[v] + B::load_unaligned(whole + v * W)).store_unaligned(whole + v * W);
  }
}

}  // namespace detail

/// inside_d += <g, P x>, outside_d += <g, x - P x> of every channel, `[D]` each: the gradients of gains that are the same for all rows.
template <Real T, class A = DefaultArch>
void band_products(const BandWaves<T>& band, MatrixView<const T> x, MatrixView<const T> g, T* inside, T* outside, Workspace& ws) {
  constexpr Index W = lanes<T, A>;
  assert(x.rows() == band.length && g.rows() == x.rows() && g.cols() == x.cols());
  if (x.empty()) return;
  const auto mark = ws.mark();
  const Index cols = x.cols(), size = (1 + 2 * band.waves) * 2 * W;
  T *const xs = ws.take<T>(size), *const gs = ws.take<T>(size);
  Index d = 0;
  for (; d + 2 * W <= cols; d += 2 * W)
    detail::band_products_tile<2, T, A>(band, x.data() + d, x.stride(), g.data() + d, g.stride(), xs, gs, inside + d,
                                        outside + d);
  for (; d + W <= cols; d += W)
    detail::band_products_tile<1, T, A>(band, x.data() + d, x.stride(), g.data() + d, g.stride(), xs, gs, inside + d,
                                        outside + d);
  if (d == cols) return;
  const MatrixView<T> a = detail::band_tail<T, A>(x, d, ws), b = detail::band_tail<T, A>(g, d, ws);
  alignas(64) T sums[2 * W];
  load_first<T, A>(inside + d, cols - d).store_aligned(sums);
  load_first<T, A>(outside + d, cols - d).store_aligned(sums + W);
  detail::band_products_tile<1, T, A>(band, a.data(), W, b.data(), W, xs, gs, sums, sums + W);
  store_first<T, A>(inside + d, Batch<T, A>::load_aligned(sums), cols - d);
  store_first<T, A>(outside + d, Batch<T, A>::load_aligned(sums + W), cols - d);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
