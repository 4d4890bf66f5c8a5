/// @file   recops/simd/fft_stages.hpp
/// @brief  The levels of a transform along rows, a vector of channels at a time: the machinery behind fft.hpp and fft_filter.hpp.
///
/// Two real sequences (or two blocks of channels of one) are the real and the imaginary part of one complex sequence. Forward
/// levels decimate in frequency and leave the bins at `plan.positions()`, inverse levels decimate in time and start from there:
/// nothing is ever reordered. Below the first level the work goes depth first, so that parts stay in the first-level cache. The
/// planes of an element lie side by side, `[size][2][lanes]`; exchanging them turns a forward level into the inverse one.
#pragma once
#include <limits>
#include <recops/core/workspace.hpp>
#include <recops/simd/fft_butterflies.hpp>
#include <recops/simd/fft_plan.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd::detail {

/// Elements [first, first + count) of the span of a level.
struct FftSpan {
  Index whole, first, count;
  FftSpan(Index span) : whole(span), first(0), count(span) {}
  FftSpan(Index span, Index begin, Index some) : whole(span), first(begin), count(some) {}
};
/// Elements of two planes: their distance, and that of groups of channels. Rows of sequences, or tiles. `add`: what is written is
/// added to what is there. `meet`: where a side holds a part of a span alone, how far apart elements are that meet.
template <class T>
struct FftSide {
  T* re;
  T* im;
  Index element, group;
  bool add = false;
  Index meet = 0;
  Index offset(const FftSpan& span) const { return meet > 0 ? 0 : span.first * element; }
  Index step(const FftSpan& span) const { return meet > 0 ? meet : span.whole * element; }
};

// Compilers would keep all multiples of a stride in registers, of which there are not enough, and spill them; the same with the
// twiddles of an element over its groups. This makes a value opaque to them.
template <class P>
RECOPS_INLINE P fft_opaque(P p) {
#if defined(__x86_64__) || defined(__aarch64__)
  asm("" : "+r"(p));
#endif
  return p;
}

/// From real to imaginary parts, in bytes: one pointer and this in a register address both planes.
template <class T>
RECOPS_INLINE std::uintptr_t fft_plane(const T* re, const T* im) {
  return reinterpret_cast<std::uintptr_t>(im) - reinterpret_cast<std::uintptr_t>(re);
}
template <class T>
RECOPS_INLINE T* fft_imaginary(T* re, std::uintptr_t plane) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(re) + plane);
}

/// Where the twiddles of a level go: after the butterfly (forward, decimation in frequency), before it (inverse, decimation in
/// time), or nowhere (they are all 1).
enum class FftTwist { none, after, before };

/// Eight elements `step` apart, in any order: four bases and twice the step.
template <class T>
struct FftEight {
  T* base[4];  // 0, 1, 4, 5
  Index two;
  FftEight(T* p, Index step) : base{p, fft_opaque(p + step), fft_opaque(p + 4 * step), nullptr}, two(2 * step) {
    base[3] = fft_opaque(base[1] + 4 * step);
  }
  RECOPS_INLINE T* operator()(int q) const { return base[q / 4 * 2 + q % 2] + (q % 4 >= 2 ? two : 0); }
};

// Butterflies and twiddles from rows or tiles to rows or tiles, which may be the same. Of rows one call does element j of every
// group before element j + 1, so that rows of memory are read and written whole; of tiles the longer loop is the inner one.
template <int R, class T, class A>
RECOPS_INLINE void fft_level_body(const FftSide<const T>& in, const FftSide<T>& out, const FftSpan& span, Index groups,
                                  const T* w, FftTwist twist, bool add) {
  using B = Batch<T, A>;
  struct Loop {
    Index count, from, to, w;
  };
  Loop outer{span.count, in.element, out.element, 2 * (R - 1)}, inner{groups, in.group, out.group, 0};
  if (groups == 1 || (groups < span.count && in.element == out.element)) std::swap(outer, inner);
  // Copies: what is stored could be these, as far as compilers know.
  const Index in_step = in.step(span), out_step = out.step(span);
  const std::uintptr_t in_plane = fft_plane(in.re, in.im), out_plane = fft_plane(out.re, out.im);
  const T* from = in.re + in.offset(span);
  T* to = out.re + out.offset(span);
  w += span.first * 2 * (R - 1);
  for (; outer.count > 0; --outer.count, from += outer.from, to += outer.to, w += outer.w) {
    const T *p = from, *v = w;
    T* s = to;
    for (Index n = inner.count; n > 0; --n, p += inner.from, s += inner.to, v = fft_opaque(v + inner.w)) {
      const auto turn = [&](int q, B& re, B& im) RECOPS_LAMBDA_INLINE {
        if (q > 0) complex_scale(re, im, B(v[2 * q - 2]), B(v[2 * q - 1]));
      };
      const auto store = [&](T* y, B re, B im, bool sum) RECOPS_LAMBDA_INLINE {
        T* const i = fft_imaginary(y, out_plane);
        if (sum) {
          (re + B::load_unaligned(y)).store_unaligned(y);
          (im + B::load_unaligned(i)).store_unaligned(i);
        } else {
          re.store_unaligned(y);
          im.store_unaligned(i);
        }
      };
      if constexpr (R == 8) {
        const FftEight<const T> x(p, in_step);
        const FftEight<T> y(s, out_step);
        butterfly_eight<T, A>(
            [&](int q, B& re, B& im) RECOPS_LAMBDA_INLINE {
              re = B::load_unaligned(x(q));
              im = B::load_unaligned(fft_imaginary(x(q), in_plane));
              if (twist == FftTwist::before) turn(q, re, im);
            },
            [&](int q, B re, B im) RECOPS_LAMBDA_INLINE {
              if (twist == FftTwist::after) turn(q, re, im);
              store(y(q), re, im, add);
            });
        continue;
      }
      B re[R], im[R];
      const T* x = p;
      RECOPS_UNROLL
      for (int q = 0; q < R; ++q) {
        re[q] = B::load_unaligned(x);
        im[q] = B::load_unaligned(fft_imaginary(x, in_plane));
        x = fft_opaque(x + in_step);
      }
      if (twist == FftTwist::before) {
        RECOPS_UNROLL
        for (int q = 1; q < R; ++q) turn(q, re[q], im[q]);
      }
      butterfly<R, T, A>(re, im);
      if (twist == FftTwist::after) {
        RECOPS_UNROLL
        for (int q = 1; q < R; ++q) turn(q, re[q], im[q]);
      }
      T* y = s;
      const auto put_all = [&](bool sum) RECOPS_LAMBDA_INLINE {
        RECOPS_UNROLL
        for (int q = 0; q < R; ++q) {
          store(y, re[q], im[q], sum);
          y = fft_opaque(y + out_step);
        }
      };
      if (add) {
        put_all(true);
      } else {
        put_all(false);
      }
    }
  }
}

/// The same for any odd radix: pairs x_j, x_(r-j) make sums and differences, each pair of results takes a
/// row of cosines and sines.
template <class T, class A>
[[gnu::noinline]] void fft_prime_level(int radix, FftTwist twist, const FftSide<const T>& in, const FftSide<T>& out,
                                       const FftSpan& part, Index groups, const T* w, const T* roots) {
  using B = Batch<T, A>;
  constexpr int most = fft_largest_prime / 2 + 1;
  assert(radix % 2 == 1 && radix <= fft_largest_prime);
  const int half = radix / 2;
  const Index span = part.whole;
  w += part.first * 2 * (radix - 1);
  B sr[most], si[most], dr[most], di[most];
  for (Index j = part.first; j < part.first + part.count; ++j, w += 2 * (radix - 1)) {
    for (Index g = 0; g < groups; ++g) {
      const T *gr = in.re + j * in.element + g * in.group, *gi = in.im + j * in.element + g * in.group;
      T *hr = out.re + j * out.element + g * out.group, *hi = out.im + j * out.element + g * out.group;
      const auto load = [&](Index q, B& re, B& im) RECOPS_LAMBDA_INLINE {
        re = B::load_unaligned(gr + q * span * in.element);
        im = B::load_unaligned(gi + q * span * in.element);
        if (twist == FftTwist::before && q > 0) complex_scale(re, im, B(w[2 * q - 2]), B(w[2 * q - 1]));
      };
      const auto store = [&](Index p, B re, B im) RECOPS_LAMBDA_INLINE {
        if (twist == FftTwist::after && p > 0) complex_scale(re, im, B(w[2 * p - 2]), B(w[2 * p - 1]));
        T *const r = hr + p * span * out.element, *const i = hi + p * span * out.element;
        if (out.add) {
          re += B::load_unaligned(r);
          im += B::load_unaligned(i);
        }
        re.store_unaligned(r);
        im.store_unaligned(i);
      };
      B zr, zi;
      load(0, zr, zi);
      B total_r = zr, total_i = zi;
      for (int q = 1; q <= half; ++q) {
        B ar, ai, br, bi;
        load(q, ar, ai);
        load(radix - q, br, bi);
        sr[q] = ar + br;
        si[q] = ai + bi;
        dr[q] = ar - br;
        di[q] = ai - bi;
        total_r += sr[q];
        total_i += si[q];
      }
      store(0, total_r, total_i);
      for (int p = 1; p <= half; ++p) {
        B ar = zr, ai = zi, br(T(0)), bi(T(0));
        for (int q = 1, m = p; q <= half; ++q) {
          const B c(roots[2 * m]), s(roots[2 * m + 1]);
          ar = mul_add(c, sr[q], ar);
          ai = mul_add(c, si[q], ai);
          br = mul_add(s, dr[q], br);
          bi = mul_add(s, di[q], bi);
          m += p;
          if (m >= radix) m -= radix;
        }
        store(p, ar + bi, ai - br);
        store(radix - p, ar - bi, ai + br);
      }
    }
  }
}

// The usual radices are compiled for each place of the twiddles, the rest once for all; 8, whose stores are not all at the end, also
// for adding.
template <int R, FftTwist twist, class T, class A>
[[gnu::noinline]] void fft_level(const FftSide<const T>& in, const FftSide<T>& out, const FftSpan& span, Index groups,
                                 const T* w) {
  fft_level_body<R, T, A>(in, out, span, groups, w, twist, out.add);
}
template <FftTwist twist, bool add, class T, class A>
[[gnu::noinline]] void fft_level_of_eight(const FftSide<const T>& in, const FftSide<T>& out, const FftSpan& span, Index groups,
                                          const T* w) {
  fft_level_body<8, T, A>(in, out, span, groups, w, twist, add);
}
template <int R, class T, class A>
[[gnu::noinline]] void fft_level(const FftSide<const T>& in, const FftSide<T>& out, const FftSpan& span, Index groups, const T* w,
                                 FftTwist twist) {
  if constexpr (R == 8) {
    // The last inverse level alone adds; without twiddles they are all 1.
    if (out.add) return fft_level_of_eight<FftTwist::before, true, T, A>(in, out, span, groups, w);
    if (twist == FftTwist::none) return fft_level_of_eight<FftTwist::none, false, T, A>(in, out, span, groups, w);
    if (twist == FftTwist::before) return fft_level_of_eight<FftTwist::before, false, T, A>(in, out, span, groups, w);
    fft_level_of_eight<FftTwist::after, false, T, A>(in, out, span, groups, w);
  } else if constexpr (R == 2 || R == 3 || R == 6 || R == 7) {
    fft_level_body<R, T, A>(in, out, span, groups, w, twist, out.add);
  } else if (twist == FftTwist::none && R >= 8) {
    fft_level<R, FftTwist::none, T, A>(in, out, span, groups, w);
  } else if (twist == FftTwist::before) {
    fft_level<R, FftTwist::before, T, A>(in, out, span, groups, w);
  } else {
    fft_level<R, FftTwist::after, T, A>(in, out, span, groups, w);  // `none`: they are all 1
  }
}

/// One level of a plan, or a part of its span. Forward: butterflies of `in`, twiddles. Inverse: `in` and `out` with their planes
/// exchanged.
template <class T, class A>
[[gnu::noinline]] void fft_level(const FftPlan<T>& plan, const FftStage& s, const FftSpan& span, const FftSide<const T>& in,
                                 const FftSide<T>& out, Index groups, FftTwist twist) {
  const T* const w = plan.twiddles(s);
  if (s.span == 1) twist = FftTwist::none;
  switch (s.radix) {
    case 2:
      return fft_level<2, T, A>(in, out, span, groups, w, twist);
    case 3:
      return fft_level<3, T, A>(in, out, span, groups, w, twist);
    case 4:
      return fft_level<4, T, A>(in, out, span, groups, w, twist);
    case 5:
      return fft_level<5, T, A>(in, out, span, groups, w, twist);
    case 6:
      return fft_level<6, T, A>(in, out, span, groups, w, twist);
    case 7:
      return fft_level<7, T, A>(in, out, span, groups, w, twist);
    case 8:
      return fft_level<8, T, A>(in, out, span, groups, w, twist);
    case 10:
      return fft_level<10, T, A>(in, out, span, groups, w, twist);
    default:
      return fft_prime_level<T, A>(s.radix, twist, in, out, span, groups, w, plan.roots(s));
  }
}

template <class T, class A>
void fft_level(const FftPlan<T>& plan, const FftStage& s, const FftSide<const T>& in, const FftSide<T>& out, Index groups,
               FftTwist twist) {
  fft_level<T, A>(plan, s, FftSpan(s.span), in, out, groups, twist);
}

/// Tiles that are `distance` apart.
template <class T, class A>
RECOPS_INLINE FftSide<T> fft_tiles(T* z, Index distance) {
  constexpr Index W = lanes<std::remove_const_t<T>, A>;
  return {z, z + W, 2 * W, distance};
}
template <class T>
RECOPS_INLINE FftSide<T> fft_exchanged(const FftSide<T>& s) {
  return {s.im, s.re, s.element, s.group, s.add, s.meet};
}

/// A forward level of tiles in place.
template <class T, class A>
[[gnu::noinline]] void fft_forward_level(const FftPlan<T>& plan, const FftStage& s, T* z, Index distance, Index groups) {
  fft_level<T, A>(plan, s, fft_tiles<const T, A>(z, distance), fft_tiles<T, A>(z, distance), groups, FftTwist::after);
}
/// An inverse level of tiles in place.
template <class T, class A>
[[gnu::noinline]] void fft_inverse_level(const FftPlan<T>& plan, const FftStage& s, T* z, Index distance, Index groups) {
  fft_level<T, A>(plan, s, fft_exchanged(fft_tiles<const T, A>(z, distance)), fft_exchanged(fft_tiles<T, A>(z, distance)), groups,
                  FftTwist::before);
}

/// Parts that take a level together: all where they fit the first-level cache beside what goes with them (a call for each would
/// cost more than short parts do), else one at a time, depth first.
template <class T, class A>
RECOPS_INLINE Index fft_together(const FftStage& s, Index parts) {
  return parts * s.radix * s.span * 2 * lanes<T, A> * static_cast<Index>(sizeof(T)) <= 16 * 1024 ? parts : 1;
}

/// The forward levels from `level` on, in place, of `parts` consecutive parts that start at `z` (one part at level 0, the radix
/// of the level above below it).
template <class T, class A>
void fft_forward_parts(const FftPlan<T>& plan, int level, T* z, Index parts) {
  if (level >= plan.stages()) return;
  const FftStage& s = plan.stage(level);
  const Index part = s.radix * s.span * 2 * lanes<T, A>, together = s.span == 1 ? parts : fft_together<T, A>(s, parts);
  for (Index p = 0; p < parts; p += together, z += together * part) {
    fft_forward_level<T, A>(plan, s, z, part, together);
    fft_forward_parts<T, A>(plan, level + 1, z, together * s.radix);
  }
}

/// Undoes `fft_forward_parts`, times the number of elements.
template <class T, class A>
void fft_inverse_parts(const FftPlan<T>& plan, int level, T* z, Index parts) {
  if (level >= plan.stages()) return;
  const FftStage& s = plan.stage(level);
  const Index part = s.radix * s.span * 2 * lanes<T, A>, together = s.span == 1 ? parts : fft_together<T, A>(s, parts);
  for (Index p = 0; p < parts; p += together, z += together * part) {
    fft_inverse_parts<T, A>(plan, level + 1, z, together * s.radix);
    fft_inverse_level<T, A>(plan, s, z, part, together);
  }
}

/// What stands for the real parts (`a`) and the imaginary parts (`b`) of groups of `lanes` channels: rows `[L, *]`, first
/// channels, how far the next group is, how many channels there are in all. Two sequences: step = lanes. One sequence, blocks
/// of channels in pairs: b = a + lanes, step = 2 lanes. One sequence alone: no b.
template <class T>
struct FftRows {
  T* a = nullptr;
  T* b = nullptr;
  Index a_stride = 0, b_stride = 0;
  Index a_channels = 0, b_channels = 0;
  Index step = 0;
  bool far = false;     ///< written around the caches
  bool turned = false;  ///< groups that are direct take row n + 1 of b (the first after the last) with row n of a
};

/// Two sequences of D channels each.
template <class A, class T>
FftRows<T> fft_two(MatrixView<T> x, MatrixView<T> y) {
  assert(x.cols() == y.cols() && x.rows() == y.rows());
  return {x.data(), y.data(), x.stride(), y.stride(), x.cols(), y.cols(), lanes<std::remove_const_t<T>, A>};
}
/// One sequence, its blocks of channels in pairs.
template <class A, class T>
FftRows<T> fft_one(MatrixView<T> x) {
  constexpr Index W = lanes<std::remove_const_t<T>, A>;
  const bool pairs = x.cols() > W && x.rows() > 0;  // nothing may be added to the null of an empty view
  return {x.data(), pairs ? x.data() + W : nullptr, x.stride(), x.stride(), x.cols(), pairs ? x.cols() - W : 0, 2 * W};
}
/// One sequence with zeros as the other.
template <class A, class T>
FftRows<T> fft_alone(MatrixView<T> x) {
  return {x.data(), nullptr, x.stride(), 0, x.cols(), 0, lanes<std::remove_const_t<T>, A>};
}
/// One side of such a pairing, with zeros as the other: 0 the real parts, 1 the imaginary ones.
template <class T>
[[gnu::noinline]] FftRows<T> fft_side(const FftRows<T>& rows, int side) {
  return side == 0 ? FftRows<T>{rows.a, nullptr, rows.a_stride, 0, rows.a_channels, 0, rows.step}
                   : FftRows<T>{rows.b, nullptr, rows.b_stride, 0, rows.b_channels, 0, rows.step};
}
template <class T>
Index fft_groups(const FftRows<T>& rows) {
  const Index most = rows.a_channels > rows.b_channels ? rows.a_channels : rows.b_channels;
  return most <= 0 ? 0 : (most + rows.step - 1) / rows.step;
}
/// Channels of group `g` that exist, at most W: of a and of b.
RECOPS_INLINE Index fft_channels(Index all, Index step, Index g, Index W) {
  const Index rest = all - g * step;
  return rest < 0 ? 0 : rest < W ? rest : W;
}

template <class T, class A>
RECOPS_INLINE Batch<T, A> fft_load(const T* p, Index n) {
  return n == lanes<T, A> ? Batch<T, A>::load_unaligned(p) : n == 0 ? Batch<T, A>(T(0)) : load_first<T, A>(p, n);
}
/// p <- v, or p <- p + v
template <class T, class A>
RECOPS_INLINE void fft_put(T* p, Batch<T, A> v, Index n, bool add) {
  if (n == lanes<T, A>) {
    if (add) v = v + Batch<T, A>::load_unaligned(p);
    v.store_unaligned(p);
  } else if (n > 0) {
    if (add) v = v + load_first<T, A>(p, n);
    store_first<T, A>(p, v, n);
  }
}
// The same through memory (one whole vector, aligned), for places that are many or seldom reached.
template <class T, class A>
[[gnu::noinline]] void fft_load_to(T* to, const T* p, Index n) {
  fft_load<T, A>(p, n).store_aligned(to);
}
template <class T, class A>
[[gnu::noinline]] void fft_put_from(T* p, const T* v, Index n, bool add) {
  fft_put<T, A>(p, Batch<T, A>::load_aligned(v), n, add);
}

/// Sequences whose bytes, read and written, are more than this are taken to come from memory: what comes next is fetched while
/// registers work.
inline constexpr Index fft_near_bytes = Index{4} << 20;
/// Where they are more than this, what is written goes around the caches, which would forget it before anybody reads it. On a Zen 5
/// with AVX-512 that pays from the same size on; on a Zen 3 with AVX2 6.5 MB gained 5 % by it, and whoever read y next lost 14 %. With
/// vectors of 16 bytes it never does: SSE2 took 1 to 8 % longer, with ordinary stores from the buffer 11 to 17 %.
template <class T, class A>
inline constexpr Index fft_far_bytes = sizeof(Batch<T, A>) == 64   ? fft_near_bytes
                                       : sizeof(Batch<T, A>) == 32 ? Index{16} << 20
                                                                   : std::numeric_limits<Index>::max();

/// Rows that will be read next, fetched a few at a time between levels, so that memory is busy while registers are.
struct FftAhead {
  struct Sequence {
    const char* at = nullptr;
    Index stride = 0;
  };
  std::array<Sequence, 4> sequences{};
  int count = 0;
  Index bytes = 0;  ///< of a row
  Index rows = 0;   ///< that are left
  Index each = 0;   ///< a step

  FftAhead() = default;
  /// The rows of one to four sequences of one shape, in `steps` steps.
  template <class T, class... More>
  FftAhead(Index steps, MatrixView<const T> x, const More&... more)
      : sequences{sequence(x), sequence(more)...},
        count(1 + static_cast<int>(sizeof...(more))),
        bytes(x.cols() * static_cast<Index>(sizeof(T))),
        rows(x.rows()),
        each((x.rows() + steps - 1) / steps) {}

  [[gnu::noinline]] void step() {
    const Index some = each < rows ? each : rows;
    for (Index n = 0; n < some; ++n) {
      for (int s = 0; s < count; ++s) {
        Sequence& from = sequences[static_cast<std::size_t>(s)];
        for (Index i = 0; i < bytes; i += 64) __builtin_prefetch(from.at + i);
        from.at += from.stride;
      }
    }
    rows -= some;
  }

 private:
  template <class T>
  static Sequence sequence(MatrixView<const T> x) {
    return {reinterpret_cast<const char*>(x.data()), x.stride() * static_cast<Index>(sizeof(T))};
  }
};

/// Rows of group `g` to a tile, zeros where there are none, times the chirp where there is one.
template <class T, class A>
[[gnu::noinline]] void fft_pack(const FftRows<const T>& rows, Index g, Index length, Index size, const T* chirp, T* z) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const Index na = fft_channels(rows.a_channels, rows.step, g, W), nb = fft_channels(rows.b_channels, rows.step, g, W);
  for (Index n = 0; n < length; ++n, z += 2 * W) {
    B re(T(0)), im(T(0));
    if (na > 0) re = fft_load<T, A>(rows.a + n * rows.a_stride + g * rows.step, na);
    if (nb > 0) im = fft_load<T, A>(rows.b + n * rows.b_stride + g * rows.step, nb);
    if (chirp) complex_scale(re, im, B(chirp[2 * n]), B(chirp[2 * n + 1]));
    re.store_aligned(z);
    im.store_aligned(z + W);
  }
  for (Index i = 0; i < (size - length) * 2 * W; i += W) B(T(0)).store_aligned(z + i);
}

/// A tile, times the scale, to the rows of group `g`.
template <class T, class A>
[[gnu::noinline]] void fft_unpack(const T* z, const FftRows<T>& rows, Index g, Index length, T scale, bool add) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const Index na = fft_channels(rows.a_channels, rows.step, g, W), nb = fft_channels(rows.b_channels, rows.step, g, W);
  const B factor(scale);
  for (Index n = 0; n < length; ++n, z += 2 * W) {
    if (na > 0) fft_put<T, A>(rows.a + n * rows.a_stride + g * rows.step, factor * B::load_aligned(z), na, add);
    if (nb > 0) fft_put<T, A>(rows.b + n * rows.b_stride + g * rows.step, factor * B::load_aligned(z + W), nb, add);
  }
}

/// z_n *= c_n for n < count, complex factors shared by the lanes.
template <class T, class A>
[[gnu::noinline]] void fft_multiply(T* z, const T* c, Index count) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  for (Index n = 0; n < count; ++n, z += 2 * W) {
    B re = B::load_aligned(z), im = B::load_aligned(z + W);
    complex_scale(re, im, B(c[2 * n]), B(c[2 * n + 1]));
    re.store_aligned(z);
    im.store_aligned(z + W);
  }
}

/// Bluestein: a tile of size() elements that holds the sequence times the chirp (zeros behind it) becomes its `length()` bins in
/// natural order.
template <class T, class A>
[[gnu::noinline]] void fft_bluestein(const FftPlan<T>& plan, T* z) {
  fft_forward_parts<T, A>(plan, 0, z, 1);
  fft_multiply<T, A>(z, plan.chirp_gains(), plan.size());
  fft_inverse_parts<T, A>(plan, 0, z, 1);
  fft_multiply<T, A>(z, plan.chirp(), plan.length());
}

/// Bytes of a row that a block takes at most.
inline constexpr Index fft_whole_row = 256;

/// Tiles of one block: as many groups as make 256 bytes of a row where their tiles fit the first-level cache (rows are then read
/// whole more often), else 128 where those do, else again 256, up to 2 MB: rows in two goes cost more (at 1024 rows of 256 bytes
/// from memory a fifth of the time) than tiles that leave the second-level cache, to which only the outer levels come back.
template <class T, class A>
struct FftBlock {
  static constexpr Index W = lanes<T, A>;
  Index groups, distance;  // no multiple of 8 lines: tiles would share cache sets

  /// For `tiles` tiles a group.
  [[gnu::noinline]] FftBlock(const FftPlan<T>& plan, Index all, Index tiles = 1) {
    constexpr Index vector = W * static_cast<Index>(sizeof(T));
    distance = plan.size() * 2 * W;
    if (plan.size() % 8 == 0) distance += 2 * W;
    const Index tile = tiles * distance * static_cast<Index>(sizeof(T)), whole = fft_whole_row / vector, near = 36 * 1024 / tile,
                fit = 2048 * 1024 / tile;
    groups = near >= whole ? whole : 2 * near >= whole ? whole / 2 : fit < whole ? fit : whole;
    if (groups > all) groups = all;
    if (groups < 1) groups = 1;
  }
  T* take(Workspace& ws) const { return ws.take<T>(groups * distance); }
};

/// Groups, from the first on, both of whose vectors of channels are whole.
template <class A, class T>
Index fft_whole(const FftRows<T>& rows) {
  const Index least = rows.a_channels < rows.b_channels ? rows.a_channels : rows.b_channels;
  constexpr Index W = lanes<std::remove_const_t<T>, A>;
  return least < W ? 0 : (least - W) / rows.step + 1;
}

/// How many of the groups [first, first + count) may be read or written without a detour: those that are whole, in rows that are
/// equally far apart.
template <class T, class A>
Index fft_direct(const FftPlan<std::remove_const_t<T>>& plan, const FftRows<T>& rows, Index first, Index count) {
  if (plan.bluestein() || rows.a_stride != rows.b_stride) return 0;
  const Index whole = fft_whole<A>(rows) - first;
  return whole < 0 ? 0 : whole < count ? whole : count;
}

/// Elements whose rows wait in the first-level cache before they are written around the caches.
inline constexpr Index fft_far_elements = 10;

/// Whether so many groups of rows are whole cache lines.
template <class T, class A>
bool fft_lines(const FftSide<T>& rows, Index groups) {
  const auto at = [](Index n) { return static_cast<std::uintptr_t>(n) * sizeof(T); };
  const std::uintptr_t bytes = at(rows.group) * static_cast<std::uintptr_t>(groups);
  return rows.group == lanes<T, A> && bytes <= fft_whole_row &&
         (bytes | at(rows.element) | reinterpret_cast<std::uintptr_t>(rows.re) | reinterpret_cast<std::uintptr_t>(rows.im)) %
                 64 ==
             0;
}

/// Rows from group `first` on as a side of a level.
template <class T>
FftSide<T> fft_rows_side(const FftRows<T>& rows, Index first) {
  const Index turn = rows.turned ? rows.b_stride : 0;
  return {rows.a + first * rows.step, rows.b + first * rows.step + turn, rows.a_stride, rows.step};
}
/// Calls `f(n, a, b)` with the last elements of all parts of turned rows.
template <class T, class F>
RECOPS_INLINE void fft_last_elements(const FftPlan<std::remove_const_t<T>>& plan, const FftRows<T>& rows, const F& f) {
  const Index length = plan.length(), span = plan.stage(0).span;
  for (Index n = span - 1; n < length; n += span)
    f(n, rows.a + n * rows.a_stride, rows.b + (n + 1 < length ? n + 1 : 0) * rows.b_stride);
}

/// The first forward level of groups [first, first + count), from rows to tiles.
template <class T, class A>
[[gnu::noinline]] void fft_enter(const FftPlan<T>& plan, const FftRows<const T>& rows, Index first, Index count, T* z,
                                 Index distance) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const FftStage& top = plan.stage(0);
  const Index direct = fft_direct<const T, A>(plan, rows, first, count);
  if (direct > 0) {
    const FftSide<const T> from = fft_rows_side(rows, first);
    const FftSpan most(top.span, 0, rows.turned ? top.span - 1 : top.span);
    fft_level<T, A>(plan, top, most, from, fft_tiles<T, A>(z, distance), direct, FftTwist::after);
    if (rows.turned) {  // the last elements, of which one wraps, by way of the tile
      fft_last_elements(plan, rows, [&](Index n, const T* a, const T* b) {
        for (Index g = 0; g < direct; ++g) {
          B::load_unaligned(a + (first + g) * rows.step).store_aligned(z + g * distance + n * 2 * W);
          B::load_unaligned(b + (first + g) * rows.step).store_aligned(z + g * distance + n * 2 * W + W);
        }
      });
      const FftSide<T> tiles = fft_tiles<T, A>(z, distance);
      const FftSide<const T> same = fft_tiles<const T, A>(z, distance);
      fft_level<T, A>(plan, top, FftSpan(top.span, top.span - 1, 1), same, tiles, direct, FftTwist::after);
    }
  }
  for (Index g = direct; g < count; ++g) {
    fft_pack<T, A>(rows, first + g, plan.length(), plan.size(), nullptr, z + g * distance);
    fft_forward_level<T, A>(plan, top, z + g * distance, 0, 1);
  }
}

/// The last inverse level, written around the caches in rows of whole cache lines: a few rows at a time by way of a buffer, since
/// lines that are written in halves, or singly in turn with those of other rows, take many times as long as 256 bytes at once.
template <class T, class A>
[[gnu::noinline]] void fft_leave_far(const FftPlan<T>& plan, const FftSpan& span, const FftSide<const T>& from,
                                     const FftSide<T>& to, Index groups) {
  constexpr Index W = lanes<T, A>;
  const FftStage& top = plan.stage(0);
  // Copies: what is stored could be these, as far as compilers know.
  const Index radix = top.radix, width = groups * W, some = fft_far_elements / radix, meet = some * width;
  const Index stride = to.element, step = to.step(span), end = span.first + span.count;
  T *const re = to.re, *const im = to.im;
  alignas(64) T rows[2 * fft_far_elements * fft_whole_row / sizeof(T)];
  const FftSide<T> near{rows, rows + radix * meet, width, W, false, meet};
  for (Index j = span.first; j < end; j += some) {
    const Index n = some < end - j ? some : end - j;
    fft_level<T, A>(plan, top, FftSpan(span.whole, j, n), from, fft_exchanged(near), groups, FftTwist::before);
    for (Index part = 0; part < 2 * radix; ++part) {
      const T* x = rows + part * meet;
      T* y = part < radix ? re + part * step + j * stride : im + (part - radix) * step + j * stride;
      for (Index i = 0; i < n; ++i, x += width, y += stride)
        for (Index d = 0; d < width; d += W) store_far<T, A>(y + d, Batch<T, A>::load_aligned(x + d));
    }
  }
}

/// The last inverse level of groups [first, first + count), from tiles to rows, or added to them. Where a group is not direct, the
/// tile is done in place first.
template <class T, class A>
[[gnu::noinline]] void fft_leave(const FftPlan<T>& plan, const FftRows<T>& rows, Index first, Index count, T* z, Index distance,
                                 bool add) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const FftStage& top = plan.stage(0);
  const Index direct = fft_direct<T, A>(plan, rows, first, count);
  if (direct > 0) {
    FftSide<T> to = fft_rows_side(rows, first);
    to.add = add;
    const FftSide<const T> from = fft_exchanged(fft_tiles<const T, A>(z, distance));
    const FftSpan most(top.span, 0, rows.turned ? top.span - 1 : top.span);
    if (rows.far && !add && fft_lines<T, A>(to, direct) && top.radix <= fft_far_elements) {
      fft_leave_far<T, A>(plan, most, from, to, direct);
    } else {
      fft_level<T, A>(plan, top, most, from, fft_exchanged(to), direct, FftTwist::before);
    }
    if (rows.turned) {
      const FftSide<T> same = fft_exchanged(fft_tiles<T, A>(z, distance));
      fft_level<T, A>(plan, top, FftSpan(top.span, top.span - 1, 1), from, same, direct, FftTwist::before);
      fft_last_elements(plan, rows, [&](Index n, T* a, T* b) {
        for (Index g = 0; g < direct; ++g) {
          fft_put<T, A>(a + (first + g) * rows.step, B::load_aligned(z + g * distance + n * 2 * W), W, add);
          fft_put<T, A>(b + (first + g) * rows.step, B::load_aligned(z + g * distance + n * 2 * W + W), W, add);
        }
      });
    }
  }
  for (Index g = direct; g < count; ++g) {
    fft_inverse_level<T, A>(plan, top, z + g * distance, 0, 1);
    fft_unpack<T, A>(z + g * distance, rows, first + g, plan.length(), T(1), add);
  }
}

/// Whether tiles hold a NaN or an infinity (or numbers whose sum overflows), seen from `elements` elements, `step` apart, whose
/// sum holds every number of the tile. Then the two halves of the pair must be done apart, or what is wrong in one would reach
/// the other.
template <class T, class A>
[[gnu::noinline]] bool fft_poisoned(const T* z, Index distance, Index count, Index elements, Index step) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  B re(T(0)), im(T(0));
  for (Index g = 0; g < count; ++g) {
    const T* p = z + g * distance;
    for (Index n = 0; n < elements; ++n, p += step * 2 * W) {
      re += B::load_aligned(p);
      im += B::load_aligned(p + W);
    }
  }
  const B sum = re + im;
  return !(sum_lanes(sum - sum) == T(0));
}

}  // namespace simd::detail
}  // namespace RECOPS_ABI
}  // namespace recops
