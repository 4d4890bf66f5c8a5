/// @file   recops/simd/attention_few.hpp
/// @brief  A few queries over many keys: keys and values are read once, as they are stored (T, bfloat16, or int8 with scales).
///
/// Lane i of a step is row i * apart + g: memory is read as as many streams as a vector has lanes, and streams are prefetched further
/// ahead than one is (measured on Zen 3: 1.2 times as fast as a plain read of the same bytes).
#pragma once
#include <recops/simd/attention_tiles.hpp>
#include <recops/simd/convert.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Keys or values of one sequence as they are stored: row j of head h begins at rows + j * stride + h * width, and its numbers count
/// times scales[j * scale_stride + h * scale_head] if there are scales.
template <class S>
struct HistoryRows {
  const S* rows = nullptr;
  Index stride = 0;
  const float* scales = nullptr;
  Index scale_stride = 0, scale_head = 0;

  /// From row `first` and head `h0` on.
  HistoryRows from(Index first, Index h0, Index width) const {
    return {rows + first * stride + h0 * width, stride, scales ? scales + first * scale_stride + h0 * scale_head : nullptr,
            scale_stride, scale_head};
  }
};

namespace attention_kernel {

/// What queries have summed over the keys so far, row by row (of a query and a head).
template <class T>
struct RunningSums {
  T *m, *l, *o;  // [rows], [rows][lanes], to be added up at the end, [rows][whole vectors of values]
};

/// Raises the maximum of a row to `now`.
template <class T, class A>
[[gnu::noinline, gnu::cold]] void raise(const RunningSums<T>& r, Index row, T now, Index padded) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const T before = r.m[row];
  r.m[row] = now;
  if (before == std::numeric_limits<T>::lowest()) return;  // nothing was summed
  alignas(64) T shift[W] = {before - now};
  attention_kernel::exp2(B::load_aligned(shift)).store_aligned(shift);
  const B f(shift[0]);
  T *l = r.l + row * W, *o = r.o + row * padded;
  (B::load_aligned(l) * f).store_aligned(l);
  for (Index d = 0; d < padded; d += W) (B::load_aligned(o + d) * f).store_aligned(o + d);
}

/// Whether `load_stored` splits sixteen numbers into those at even and those at odd places.
template <class S, class A, int C>
inline constexpr bool split = std::is_same_v<S, BFloat16>&& C % 2 == 0 && detail::has_avx2<A> && !detail::has_avx512<A>;

/// Whole vectors of stored numbers, times 1 / unit<S, A>.
template <class T, class A, int C, class S>
RECOPS_INLINE void load_stored(const S* p, Batch<T, A>* x) {
#if defined(__AVX2__)
  if constexpr (split<S, A, C>) {  // without shuffles, which the sums of products wait for
    RECOPS_UNROLL
    for (int c = 0; c < C; c += 2) {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + c * 8));
      x[c] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
      x[c + 1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)));
    }
  } else if constexpr (std::is_same_v<S, std::int8_t> && detail::has_avx2<A> && !detail::has_avx512<A>) {
    // Codes as the high bytes of 32 bits: one shuffle, where widening takes two operations.
    const __m256i to = _mm256_setr_epi8(-1, -1, -1, 0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1, 4, -1, -1, -1, 5,
                                        -1, -1, -1, 6, -1, -1, -1, 7);
    if constexpr (C == 1) {
      long long eight;
      __builtin_memcpy(&eight, p, 8);
      x[0] = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), to));
    } else {
      const __m256i next = _mm256_or_si256(to, _mm256_set1_epi8(8));  // of two vectors that are loaded at once
      RECOPS_UNROLL
      for (int c = 0; c < C; c += 2) {
        const __m256i codes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + c * 8)));
        x[c] = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, to));
        x[c + 1] = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(codes, next));
      }
    }
  } else
#endif
  {
    RECOPS_UNROLL
    for (int c = 0; c < C; ++c) x[c] = load_as<T, A>(p + c * lanes<T, A>);
  }
}
template <class S, class A>
inline constexpr float unit = std::is_same_v<S, std::int8_t>&& detail::has_avx2<A> && !detail::has_avx512<A> ? 0x1p-24f : 1.0f;

/// Whether numbers take longer to convert than to keep, as T, from the products with queries to the sums.
template <class S>
inline constexpr bool kept = std::is_same_v<S, std::int8_t>;

/// acc[i] = (or += unless `first`) the products of C vectors of row i with z. What is `kept` is left in `room`.
template <class T, class A, int C, bool first, class S>
RECOPS_INLINE void stored_products(const S* rows, Index stride, const T* z, T* room, Index room_stride, Batch<T, A>* acc) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  B y[C];
  RECOPS_UNROLL
  for (int c = 0; c < C; ++c) y[c] = B::load_aligned(z + c * W);
  RECOPS_UNROLL
  for (Index i = 0; i < W; ++i) {
    B x[C];
    load_stored<T, A, C>(rows, x);
    if constexpr (kept<S>) {
      RECOPS_UNROLL
      for (int c = 0; c < C; ++c) x[c].store_aligned(room + c * W);
      room += room_stride;
    }
    B sum = first ? B(x[0] * y[0]) : mul_add(x[0], y[0], acc[i]);
    RECOPS_UNROLL
    for (int c = 1; c < C; ++c) sum = mul_add(x[c], y[c], sum);
    acc[i] = sum;
    rows += stride;
  }
}

/// o += the rows of `count` steps, times their weights p.
template <class T, class A, int C, class S>
RECOPS_INLINE void add_weighted(const T* p, const S* rows, Index apart, Index stride, Index count, T* o) {
  constexpr Index W = lanes<T, A>;
  constexpr int sets = C < 8 ? 8 / C : 1;  // eight chains
  using B = Batch<T, A>;
  B acc[sets][C];
  RECOPS_UNROLL
  for (int k = 0; k < sets; ++k) {
    RECOPS_UNROLL
    for (int c = 0; c < C; ++c) acc[k][c] = B(T(0));
  }
  for (Index u = 0; u < count; ++u) {
    const S* row = rows + u * stride;
    RECOPS_UNROLL
    for (Index j = 0; j < W; ++j, row += apart) {
      const B w(p[u * W + j]);
      B x[C];
      load_stored<T, A, C>(row, x);
      RECOPS_UNROLL
      for (int c = 0; c < C; ++c) acc[j % sets][c] = mul_add(w, x[c], acc[j % sets][c]);
    }
  }
  RECOPS_UNROLL
  for (int c = 0; c < C; ++c) {
    RECOPS_UNROLL
    for (int k = 1; k < sets; ++k) acc[0][c] = acc[0][c] + acc[k][c];
  }
  if constexpr (split<S, A, C>) {
    RECOPS_UNROLL
    for (int c = 0; c < C; c += 2) {
      const B even = acc[0][c], odd = acc[0][c + 1];
      acc[0][c] = zip<false>(even, odd);
      acc[0][c + 1] = zip<true>(even, odd);
    }
  }
  RECOPS_UNROLL
  for (int c = 0; c < C; ++c) (acc[0][c] + B::load_aligned(o + c * W)).store_aligned(o + c * W);
}

/// The scales of W rows, `apart` from each other, for each of the heads that has its own.
template <class T, class A, class S>
RECOPS_INLINE void gather_scales(const HistoryRows<S>& x, Index row, Index apart, Index heads, T* to) {
  constexpr Index W = lanes<T, A>;
  const float* from = x.scales + row * x.scale_stride;
  const Index stride = apart * x.scale_stride;
  if (x.scale_head && heads == 4) {
    Batch<T, A> four[4];
    load_four_columns<T, A>([=](Index i) RECOPS_LAMBDA_INLINE { return from + i * stride; }, four);
    RECOPS_UNROLL
    for (int h = 0; h < 4; ++h) (four[h] * Batch<T, A>(unit<S, A>)).store_aligned(to + h * W);
    return;
  }
  for (Index h = 0; h < (x.scale_head ? heads : 1); ++h, ++from, to += W) {
    RECOPS_UNROLL
    for (Index i = 0; i < W; ++i) to[i] = from[i * stride] * unit<S, A>;
  }
}

inline constexpr Index most_scaled_heads = 16;  // whose scales a block of steps holds
inline constexpr Index most_steps = 4;          // at once
inline constexpr Index most_shared = 64;        // numbers of a row that is kept as T from the products with queries to the sums

/// Queries whose heads have C whole vectors of keys and of values, over `apart` steps of one row per lane: lane i of step g is row
/// i * apart + g. The first `skip` lanes were seen before. q [queries][heads][C vectors], s [queries][heads][most_steps][lanes].
template <class T, class A, int C, class S>
[[gnu::noinline]] void stream_rows(Index apart, Index skip, const HistoryRows<S>& keys, const HistoryRows<S>& values,
                                   Index queries, Index heads, const T* q, const RunningSums<T>& r, T* s) {
  constexpr Index W = lanes<T, A>, width = C * W, step = most_steps * W;
  constexpr bool scaled = std::is_same_v<S, std::int8_t>;
  using B = Batch<T, A>;
  const Index all = queries * heads, k_apart = apart * keys.stride, v_apart = apart * values.stride;
  // Rows that are keys and values are converted once.
  const bool shared = kept<S> && keys.rows == values.rows && keys.stride == values.stride && heads * width <= most_shared;
  alignas(64) T room[kept<S> ? step * most_shared : W];
  const Index room_stride = shared ? width : 0;
  alignas(64) T scales[scaled ? most_steps * most_scaled_heads * W : W];
  for (Index g = 0, count; g < apart; g += count) {
    count = apart - g < most_steps ? apart - g : most_steps;
    for (Index u = 0; u < count && scaled; ++u)
      gather_scales<T, A>(keys, g + u, apart, heads, scales + u * most_scaled_heads * W);
    for (Index u = 0; u < count; ++u) {
      const S* rows = keys.rows + (g + u) * keys.stride;
      const T* x = q;
      T *to = s + u * W, *scale = scaled ? scales + u * most_scaled_heads * W : scales;
      for (Index i = 0; i < queries; ++i) {
        for (Index h = 0; h < heads; ++h, x += width, to += step) {
          B acc[W];
          T* const left = room + (shared ? (h * step + u * W) * width : 0);
          stored_products < T, A, C<4 ? C : 4, true>(rows + h * width, k_apart, x, left, room_stride, acc);
          if constexpr (C > 4)
            stored_products<T, A, 4, false>(rows + h * width + 4 * W, k_apart, x + 4 * W, left + 4 * W, room_stride, acc);
          B dots = sum_each<T, A>(acc);
          if constexpr (scaled) dots = dots * B::load_aligned(scale + (keys.scale_head ? h * W : 0));
          dots.store_aligned(to);
        }
      }
    }
    for (Index t = 0; t < all && skip > 0; ++t) std::fill_n(s + t * step, skip, -infinity<T>);
    if constexpr (scaled) {
      for (Index u = 0; u < count && keys.scales != values.scales; ++u)
        gather_scales<T, A>(values, g + u, apart, heads, scales + u * most_scaled_heads * W);
    }
    for (Index t = 0, h = 0; t < all; ++t) {
      T* x = s + t * step;
      B top = B::load_aligned(x), sum(T(0));
      for (Index u = 1; u < count; ++u) top = xsimd::max(B::load_aligned(x + u * W), top);  // in this order a NaN is passed over
      if (xsimd::any(top > B(r.m[t]) + B(T(30)))) raise<T, A>(r, t, max_lane(xsimd::max(top, B(r.m[t]))), width);
      const B base(r.m[t]);
      const auto power = [&](Index u, B& p) RECOPS_LAMBDA_INLINE {
        sum = sum + p;
        if constexpr (scaled) p = p * B::load_aligned(scales + u * most_scaled_heads * W + (values.scale_head ? h * W : 0));
        p.store_aligned(x + u * W);
      };
      if (count == most_steps) {
        B p[most_steps];
        RECOPS_UNROLL
        for (Index u = 0; u < most_steps; ++u) p[u] = B::load_aligned(x + u * W) - base;
        exp2_each<static_cast<int>(most_steps), T, A>(p);
        RECOPS_UNROLL
        for (Index u = 0; u < most_steps; ++u) power(u, p[u]);
      } else {
        for (Index u = 0; u < count; ++u) {
          B p = attention_kernel::exp2(B::load_aligned(x + u * W) - base);
          power(u, p);
        }
      }
      (B::load_aligned(r.l + t * W) + sum).store_aligned(r.l + t * W);
      h = h + 1 == heads ? 0 : h + 1;
    }
    const T* p = s;
    T* o = r.o;
    for (Index i = 0; i < queries; ++i) {
      for (Index h = 0; h < heads; ++h, p += step, o += width) {
        if (shared) {
          add_weighted<T, A, C>(p, room + h * step * width, width, W * width, count, o);
        } else {
          add_weighted<T, A, C>(p, values.rows + g * values.stride + h * width, v_apart, values.stride, count, o);
        }
      }
    }
  }
}

/// n >= lanes keys, all of them visible, of heads that are a vector, or two, four or eight, wide; others give false. Queries may be
/// left in another order.
template <class T, class A, class S>
[[gnu::noinline]] bool stream_keys(Index n, const HistoryRows<S>& k, const HistoryRows<S>& v, Index queries, Index heads,
                                   Index key_width, Index value_width, T* q, const RunningSums<T>& r, T* s) {
  constexpr Index W = lanes<T, A>;
  if (key_width != value_width || (k.scales && heads > most_scaled_heads)) return false;
  const auto stream = key_width == W       ? stream_rows<T, A, 1, S>
                      : key_width == 2 * W ? stream_rows<T, A, 2, S>
                      : key_width == 4 * W ? stream_rows<T, A, 4, S>
                      : key_width == 8 * W ? stream_rows<T, A, 8, S>
                                           : nullptr;
  if (stream == nullptr) return false;
  if (split<S, A, 2> && key_width > W) {  // as the rows are
    for (T *x = q, *end = q + queries * heads * key_width; x < end; x += 2 * W) {
      T odd[W];
      for (Index i = 0; i < W; ++i) odd[i] = x[2 * i + 1];
      for (Index i = 0; i < W; ++i) x[i] = x[2 * i];
      std::copy_n(odd, W, x + W);
    }
  }
  for (Index first = 0, apart, skip; first < n; first += W * apart) {
    const Index left = n - first;
    skip = left < W ? W - left : 0;
    apart = left < W ? 1 : left / W;
    if (apart > 64) apart -= (apart + 1) % 16;  // rows of a step should not all want the same places of L1
    stream(apart, skip, k.from(first - skip, 0, 0), v.from(first - skip, 0, 0), queries, heads, q, r, s);
  }
  return true;
}

}  // namespace attention_kernel

/// Keys and values that are not stored as T: how the kernels read them. `stored_history` makes one.
template <class T>
struct StoredHistory {
  const void *keys, *values;  ///< HistoryRows
  bool shared;                ///< values are the keys, up to the width of a head
  /// Rows first + at[0] ... first + at[n - 1] (first ... first + n - 1 if `at` is null) of heads [h0, h0 + heads), one after the other.
  void (*expand)(const void* rows, Index first, const Index* at, Index n, Index h0, Index heads, Index width, T* to);
  bool (*few)(const StoredHistory&, Index first, Index n, Index h0, Index queries, Index heads, Index key_width,
              Index value_width, T* q, const attention_kernel::RunningSums<T>&, T* s);
};

/// `keys` and `values` (or the same twice) are referred to.
template <class A = DefaultArch, class S>
StoredHistory<float> stored_history(const HistoryRows<S>& keys, const HistoryRows<S>& values) {
  const bool shared = keys.rows == values.rows && keys.stride == values.stride && keys.scales == values.scales &&
                      keys.scale_stride == values.scale_stride && keys.scale_head == values.scale_head;
  StoredHistory<float> out{&keys, &values, shared, nullptr, nullptr};
  out.expand = [](const void* rows, Index first, const Index* at, Index n, Index h0, Index heads, Index width, float* to) {
    const HistoryRows<S>& x = *static_cast<const HistoryRows<S>*>(rows);
    for (Index j = 0; j < n; ++j) {
      const HistoryRows<S> row = x.from(first + (at ? at[j] : j), h0, width);
      convert<float, A>(row.rows, to + j * heads * width, heads * width);
      for (Index h = 0; h < heads && x.scales; ++h) {
        float* part = to + (j * heads + h) * width;
        simd::scale<float, A>(row.scales[h * x.scale_head], part, part, width);
      }
    }
  };
  out.few = [](const StoredHistory<float>& x, Index first, Index n, Index h0, Index queries, Index heads, Index key_width,
               Index value_width, float* q, const attention_kernel::RunningSums<float>& r, float* s) {
    return attention_kernel::stream_keys<float, A>(n, static_cast<const HistoryRows<S>*>(x.keys)->from(first, h0, key_width),
                                                   static_cast<const HistoryRows<S>*>(x.values)->from(first, h0, value_width),
                                                   queries, heads, key_width, value_width, q, r, s);
  };
  return out;
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
