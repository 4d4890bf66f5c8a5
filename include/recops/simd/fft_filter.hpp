/// @file   recops/simd/fft_filter.hpp
/// @brief  Filters along the rows of sequences: transform, gains per bin, inverse transform in one sweep; and their gradients.
///
///     y = irfft(W . rfft(x), L)      a circular convolution along the rows, the same for every normalisation
///
/// `FftFilter` holds complex gains per bin and channel, `FftGains` real gains per bin that all channels share (bands). Both are
/// prepared once from the half spectrum: in the order in which a forward transform leaves the bins, 1 / L folded in, Im of DC
/// and Nyquist dropped as irfft would. The last forward level, the gains and the first inverse level then stay in registers.
/// Where the plan is Bluestein's the filter is applied as a convolution of the longer size: two transforms instead of four.
///
/// Shapes      x, y [B L, D], B sequences one below the other, or two of [L, D]; W [K, D] in two planes or [K]; any row strides.
///             y may be x itself; else they do not overlap.
/// Pairs       as in fft.hpp: two sequences of one length together cost half. The last of an odd number is done by pairs of
///             blocks of channels. Which sequences make a pair changes their rounding errors. Of 2^n rows the second of a pair is
///             turned by a row on its way, so that rows that meet do not share cache sets.
/// Memory      where x and y are more than 4 MB together, the next sequences are fetched while registers work; where they are more
///             than 16 MB (AVX2; AVX-512: 4) y is written around the caches (rows of whole cache lines, not in place, not added).
///             Who reads y at once and has caches that hold it may prefer calls of fewer sequences.
/// Edge cases  L = 0 or D = 0: nothing happens. A NaN or infinity stays in its sequence and channel.
/// Precision   |y - exact| <= 5e-7 (1 + log2(L) / 10) max|W| |x| in float (Euclidean norms); a pair's errors relate to its
///             larger one.
/// Cost        about 5 L log2 L + 6 L operations per real channel. Scratch at most 2 MB, or two vectors of channels (backward
///             four) where L is longer. Prepared gains take 2 size() scalars per channel. No allocation once they and the
///             workspace have grown.
/// Gradient    with X, F the unscaled transforms of x and dy:  dx += irfft(conj W . rfft(dy)),  dW_k += m_k / L sum conj(X_k)
///             F_k.
/// Kernels assert; shapes are checked by the operators above.
#pragma once
#include <recops/simd/fft.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Complex gains of one block of channels, `[size][2][lanes]`.
template <class T, class A>
struct FftComplexGain {
  const T* g;
  FftComplexGain at(Index element) const { return {g + element * 2 * lanes<T, A>}; }
  RECOPS_INLINE void apply(Index n, Batch<T, A>& re, Batch<T, A>& im) const {
    constexpr Index W = lanes<T, A>;
    complex_scale(re, im, Batch<T, A>::load_aligned(g + n * 2 * W), Batch<T, A>::load_aligned(g + n * 2 * W + W));
  }
};

/// The same conjugated; with `x` and `sum` gathers sum += conj(x) z first. For gradients.
template <class T, class A, bool gathers>
struct FftConjugateGain {
  const T* g;
  const T* x = nullptr;
  T* sum = nullptr;
  FftConjugateGain at(Index element) const {
    const Index n = element * 2 * lanes<T, A>;
    return gathers ? FftConjugateGain{g + n, x + n, sum + n} : FftConjugateGain{g + n};
  }
  RECOPS_INLINE void apply(Index n, Batch<T, A>& re, Batch<T, A>& im) const {
    using B = Batch<T, A>;
    constexpr Index W = lanes<T, A>;
    const Index i = n * 2 * W;
    if constexpr (gathers) {
      const B xr = B::load_aligned(x + i), xi = B::load_aligned(x + i + W);
      mul_add(xi, im, mul_add(xr, re, B::load_aligned(sum + i))).store_aligned(sum + i);
      minus_product(xi, re, mul_add(xr, im, B::load_aligned(sum + i + W))).store_aligned(sum + i + W);
    }
    complex_scale(im, re, B::load_aligned(g + i), B::load_aligned(g + i + W));  // exchanging the planes conjugates the factor
  }
};

/// Real gains shared by all channels, `[size]`.
template <class T, class A>
struct FftRealGain {
  const T* g;
  FftRealGain at(Index element) const { return {g + element}; }
  RECOPS_INLINE void apply(Index n, Batch<T, A>& re, Batch<T, A>& im) const {
    const Batch<T, A> gain(g[n]);
    re = re * gain;
    im = im * gain;
  }
};

/// z <- z . gain, `count` elements.
template <class T, class A, class Gain>
[[gnu::noinline]] void fft_apply(T* z, Index count, Gain gain) {
  constexpr Index W = lanes<T, A>;
  for (Index n = 0; n < count; ++n, z += 2 * W) {
    Batch<T, A> re = Batch<T, A>::load_aligned(z), im = Batch<T, A>::load_aligned(z + W);
    gain.apply(n, re, im);
    re.store_aligned(z);
    im.store_aligned(z + W);
  }
}

/// Last forward level, gains, first inverse level of `parts` parts of R = 8 or 10 elements, more than 16 registers hold: sums of
/// two elements make half of the bins, differences the other half. What comes back of the sums waits beside the tile.
template <int R, class T, class A, class Gain>
[[gnu::noinline]] void fft_fused_halves(T* z, Index parts, Gain gain) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  static_assert(R == 8 || R == 10);
  // 10: elements 2 n and 2 n + 5 (mod 10), bins 6 k and 6 k + 5, no twiddles (Good, Thomas). 8: elements n and n + 4, bins 2 k
  // and 2 k + 1, the differences times e^(-2 pi i n / 8).
  constexpr int Q = R / 2, step = Q == 4 ? 1 : 2, bin = Q == 4 ? 2 : 6, odd = Q == 4 ? 1 : 5;
  const B root(T(0.70710678118654752440));
  alignas(64) T waits[Q * 2 * W];
  for (Index i = 0; i < parts; ++i, z += R * 2 * W, gain = gain.at(R)) {
    B re[Q], im[Q];
    RECOPS_UNROLL
    for (int n = 0; n < Q; ++n) {
      const T *const a = z + step * n % R * 2 * W, *const b = z + (step * n + Q) % R * 2 * W;
      re[n] = B::load_aligned(a) + B::load_aligned(b);
      im[n] = B::load_aligned(a + W) + B::load_aligned(b + W);
    }
    butterfly<Q, T, A>(re, im);
    RECOPS_UNROLL
    for (int k = 0; k < Q; ++k) gain.apply(bin * k % R, re[k], im[k]);
    butterfly<Q, T, A>(im, re);
    RECOPS_UNROLL
    for (int n = 0; n < Q; ++n) {
      re[n].store_aligned(waits + n * 2 * W);
      im[n].store_aligned(waits + n * 2 * W + W);
    }
    T* const p = fft_opaque(z);  // else compilers begin both halves at once
    RECOPS_UNROLL
    for (int n = 0; n < Q; ++n) {
      const T *const a = p + step * n % R * 2 * W, *const b = p + (step * n + Q) % R * 2 * W;
      re[n] = B::load_aligned(a) - B::load_aligned(b);
      im[n] = B::load_aligned(a + W) - B::load_aligned(b + W);
    }
    if constexpr (Q == 4) {
      const B s = root * (re[1] + im[1]), d = root * (im[3] - re[3]), r = re[2];
      im[1] = root * (im[1] - re[1]);
      re[1] = s;
      re[2] = im[2];
      im[2] = B(T(0)) - r;
      im[3] = B(T(0)) - root * (re[3] + im[3]);
      re[3] = d;
    }
    butterfly<Q, T, A>(re, im);
    RECOPS_UNROLL
    for (int k = 0; k < Q; ++k) gain.apply((bin * k + odd) % R, re[k], im[k]);
    butterfly<Q, T, A>(im, re);
    if constexpr (Q == 4) {
      const B s = root * (re[1] - im[1]), d = B(T(0)) - root * (re[3] + im[3]), r = re[2];
      im[1] = root * (im[1] + re[1]);
      re[1] = s;
      re[2] = B(T(0)) - im[2];
      im[2] = r;
      im[3] = root * (re[3] - im[3]);
      re[3] = d;
    }
    const T* const w = fft_opaque(waits + 0);
    RECOPS_UNROLL
    for (int n = 0; n < Q; ++n) {
      T *const a = p + step * n % R * 2 * W, *const b = p + (step * n + Q) % R * 2 * W;
      const B ur = B::load_aligned(w + n * 2 * W), ui = B::load_aligned(w + n * 2 * W + W);
      (ur + re[n]).store_aligned(a);
      (ui + im[n]).store_aligned(a + W);
      (ur - re[n]).store_aligned(b);
      (ui - im[n]).store_aligned(b + W);
    }
  }
}

/// Last forward level, gains, first inverse level of `parts` parts of R elements.
template <int R, class T, class A, class Gain>
[[gnu::noinline]] void fft_fused_level(T* z, Index parts, Gain gain) {
  if constexpr (R >= 8 && registers<A> < 32) return fft_fused_halves<R, T, A>(z, parts, gain);
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  for (Index i = 0; i < parts; ++i, z += R * 2 * W, gain = gain.at(R)) {
    B re[R], im[R];
    RECOPS_UNROLL
    for (int q = 0; q < R; ++q) {
      re[q] = B::load_aligned(z + q * 2 * W);
      im[q] = B::load_aligned(z + q * 2 * W + W);
    }
    butterfly<R, T, A>(re, im);
    RECOPS_UNROLL
    for (int q = 0; q < R; ++q) gain.apply(q, re[q], im[q]);
    butterfly<R, T, A>(im, re);
    RECOPS_UNROLL
    for (int q = 0; q < R; ++q) {
      re[q].store_aligned(z + q * 2 * W);
      im[q].store_aligned(z + q * 2 * W + W);
    }
  }
}

/// The last level forward, gains, and back, of `parts` consecutive parts.
template <class T, class A, class Gain>
void fft_filter_last(const FftPlan<T>& plan, T* z, Index parts, Gain gain) {
  const int last = plan.stages() - 1, radix = plan.stage(last).radix;
  switch (radix) {
    case 2:
      return fft_fused_level<2, T, A>(z, parts, gain);
    case 3:
      return fft_fused_level<3, T, A>(z, parts, gain);
    case 4:
      return fft_fused_level<4, T, A>(z, parts, gain);
    case 5:
      return fft_fused_level<5, T, A>(z, parts, gain);
    case 6:
      return fft_fused_level<6, T, A>(z, parts, gain);
    case 8:
      return fft_fused_level<8, T, A>(z, parts, gain);
    case 10:
      return fft_fused_level<10, T, A>(z, parts, gain);
    default:
      fft_forward_parts<T, A>(plan, last, z, parts);
      fft_apply<T, A>(z, parts * radix, gain);
      return fft_inverse_parts<T, A>(plan, last, z, parts);
  }
}

/// Where rows are fetched meanwhile, the last level is done in this many pieces: too many fetches at once would make it wait.
inline constexpr Index fft_last_pieces = 5;

/// The levels from `level` on, forward, gains, and back, of `parts` consecutive parts; `ahead` makes at most `fft_filter_steps` steps.
template <class T, class A, class Gain>
void fft_filter_parts(const FftPlan<T>& plan, int level, T* z, Index parts, Gain gain, FftAhead& ahead) {
  constexpr Index W = lanes<T, A>;
  if (level == plan.stages()) return fft_apply<T, A>(z, parts, gain);
  const FftStage& s = plan.stage(level);
  const Index elements = s.radix * s.span, part = elements * 2 * W;
  if (level + 1 == plan.stages()) {
    const Index some = ahead.rows > 0 ? (parts + fft_last_pieces - 1) / fft_last_pieces : parts;
    for (Index p = 0; p < parts; p += some, z += some * part, gain = gain.at(some * elements)) {
      fft_filter_last<T, A>(plan, z, some < parts - p ? some : parts - p, gain);
      ahead.step();
    }
    return;
  }
  const Index together = fft_together<T, A>(s, parts);
  for (Index p = 0; p < parts; p += together, z += together * part, gain = gain.at(together * elements)) {
    fft_forward_level<T, A>(plan, s, z, part, together);
    ahead.step();
    fft_filter_parts<T, A>(plan, level + 1, z, together * s.radix, gain, ahead);
    fft_inverse_level<T, A>(plan, s, z, part, together);
    ahead.step();
  }
}

/// Steps that `fft_filter_parts` makes of `parts` parts at a level while there are rows to fetch.
template <class T, class A>
Index fft_filter_steps(const FftPlan<T>& plan, int level, Index parts) {
  if (level >= plan.stages()) return 0;
  if (level + 1 == plan.stages()) {
    const Index some = (parts + fft_last_pieces - 1) / fft_last_pieces;
    return (parts + some - 1) / some;
  }
  const FftStage& s = plan.stage(level);
  const Index together = fft_together<T, A>(s, parts);
  return parts / together * (2 + fft_filter_steps<T, A>(plan, level + 1, together * s.radix));
}

/// Steps while a pair of sequences of so many channels is done.
template <class T, class A>
Index fft_pair_steps(const FftPlan<T>& plan, Index channels) {
  return (channels + lanes<T, A> - 1) / lanes<T, A> * (1 + fft_filter_steps<T, A>(plan, 1, plan.stage(0).radix));
}

/// Gains of a pair whose halves have gains of their own: separates the spectra, applies, joins them again.
template <class T, class A>
[[gnu::noinline]] void fft_apply_apart(const FftPlan<T>& plan, T* z, const T* gain_a, const T* gain_b) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const std::int32_t* const at = plan.positions();
  const Index size = plan.size();
  const B half(T(0.5));
  for (Index k = 0; 2 * k <= size; ++k) {
    const Index m = k == 0 ? 0 : size - k;
    const Index i = at[k] * 2 * W, j = at[m] * 2 * W;
    T *p = z + i, *q = z + j;
    const B zr = B::load_aligned(p), zi = B::load_aligned(p + W);
    const B gar = B::load_aligned(gain_a + i), gbr = B::load_aligned(gain_b + i);
    if (k == m || k == 0) {  // both spectra are real here
      (gar * zr).store_aligned(p);
      (gbr * zi).store_aligned(p + W);
      continue;
    }
    const B cr = B::load_aligned(q), ci = B::load_aligned(q + W);
    B ar = half * (zr + cr), ai = half * (zi - ci), br = half * (zi + ci), bi = half * (cr - zr);
    complex_scale(ar, ai, gar, B::load_aligned(gain_a + i + W));
    complex_scale(br, bi, gbr, B::load_aligned(gain_b + i + W));
    (ar - bi).store_aligned(p);
    (ai + br).store_aligned(p + W);
    (ar + bi).store_aligned(q);
    (br - ai).store_aligned(q + W);
  }
}

/// sum += conj(x) f, element by element.
template <class T, class A>
[[gnu::noinline]] void fft_accumulate(const T* x, const T* f, T* sum, Index count) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  for (Index n = 0; n < count; ++n, x += 2 * W, f += 2 * W, sum += 2 * W) {
    const B xr = B::load_aligned(x), xi = B::load_aligned(x + W), fr = B::load_aligned(f), fi = B::load_aligned(f + W);
    mul_add(xi, fi, mul_add(xr, fr, B::load_aligned(sum))).store_aligned(sum);
    minus_product(xi, fr, mul_add(xr, fi, B::load_aligned(sum + W))).store_aligned(sum + W);
  }
}

/// Which block of channels' gains the halves of group g take: first + g step.
struct FftGainBlocks {
  Index a_first, b_first, step;
};

/// Whether b of a pair is turned by a row, which a circular filter does not mind: of sequences of 2^n rows. The rows that meet in
/// their first level are often 2 KB apart or a multiple, in both, and would fill whole sets of the first-level cache.
template <class T, class... Rows>
bool fft_turns(const FftPlan<T>& plan, const Rows&... rows) {
  const Index length = plan.length();
  return length >= 16 && (length & (length - 1)) == 0 && ((rows.b != nullptr && rows.a_stride == rows.b_stride) && ...);
}

/// Filters groups [first, first + count). `gains(block)` is the gain of a block of channels.
template <class T, class A, class Gains>
[[gnu::noinline]] void fft_filter_block(const FftPlan<T>& plan, const FftRows<const T>& in, const FftRows<T>& out,
                                        const FftGainBlocks& blocks, const Gains& gains, Index first, Index count, bool add, T* z,
                                        Index distance, FftAhead& ahead) {
  fft_enter<T, A>(plan, in, first, count, z, distance);
  const FftStage& top = plan.stage(0);
  const bool one_behind_the_other =
      !Gains::shared && blocks.a_first == blocks.b_first && blocks.step == 1 && distance == plan.size() * 2 * lanes<T, A>;
  if (one_behind_the_other && ahead.rows == 0 && fft_channels(in.a_channels, in.step, first + count - 1, 1) > 0) {
    // Tiles and their gains: a call for each would cost what a few elements do.
    fft_filter_parts<T, A>(plan, 1, z, count * top.radix, gains(blocks.a_first + first), ahead);
  } else {
    for (Index g = 0; g < count; ++g) {
      T* const tile = z + g * distance;
      const Index a = blocks.a_first + (first + g) * blocks.step, b = blocks.b_first + (first + g) * blocks.step;
      const bool paired = fft_channels(in.b_channels, in.step, first + g, 1) > 0;
      if (Gains::shared || a == b || !paired) {
        if (fft_channels(in.a_channels, in.step, first + g, 1) == 0) continue;  // a side done apart that has no such group
        fft_filter_parts<T, A>(plan, 1, tile, top.radix, gains(a), ahead);
        ahead.step();
      } else {
        fft_forward_parts<T, A>(plan, 1, tile, top.radix);
        fft_apply_apart<T, A>(plan, tile, gains(a).g, gains(b).g);
        fft_inverse_parts<T, A>(plan, 1, tile, top.radix);
      }
    }
  }
  // The first elements of the parts hold the sums of all bins.
  if (in.a_channels > 0 && in.b_channels > 0 && fft_poisoned<T, A>(z, distance, count, top.radix, top.span)) {
    fft_filter_block<T, A>(plan, fft_side(in, 0), fft_side(out, 0), blocks, gains, first, count, add, z, distance, ahead);
    return fft_filter_block<T, A>(plan, fft_side(in, 1), fft_side(out, 1), {blocks.b_first, blocks.b_first, blocks.step}, gains,
                                  first, count, add, z, distance, ahead);
  }
  fft_leave<T, A>(plan, out, first, count, z, distance, add);
}

template <class T, class A, class Gains>
[[gnu::noinline]] void fft_filter(const FftPlan<T>& plan, FftRows<const T> in, FftRows<T> out, const FftGainBlocks& blocks,
                                  const Gains& gains, bool add, FftAhead& ahead, Workspace& ws) {
  const Index groups = fft_groups(in);
  if (plan.length() == 0 || groups == 0) return;
  // Where both halves have the same gains.
  in.turned = out.turned = (Gains::shared || blocks.a_first == blocks.b_first) && fft_turns(plan, in, out);
  const auto mark = ws.mark();
  const FftBlock<T, A> block(plan, groups);
  T* const z = block.take(ws);
  for (Index first = 0; first < groups; first += block.groups) {
    const Index count = groups - first < block.groups ? groups - first : block.groups;
    fft_filter_block<T, A>(plan, in, out, blocks, gains, first, count, add, z, block.distance, ahead);
  }
}

/// Sequences of the plan's length, one below the other, two at a time. `odd`: the blocks of the gains for the last one of an odd
/// number.
template <class T, class A, class Gains>
[[gnu::noinline]] void fft_filter_batch(const FftPlan<T>& plan, MatrixView<const T> x, MatrixView<T> y, const FftGainBlocks& pair,
                                        const FftGainBlocks& odd, const Gains& gains, bool add, Workspace& ws) {
  const Index length = plan.length(), row = x.cols() * static_cast<Index>(sizeof(T));
  if (length == 0 || x.empty()) return;
  const bool distant = 2 * x.rows() * row > fft_near_bytes;
  // Not where rows have just been read.
  const bool around = 2 * x.rows() * row > fft_far_bytes<T, A> && !add && x.data() != y.data();
  const auto at = [length](auto m, Index b) { return m.middle_rows(b * length, length); };
  const Index count = x.rows() / length;
  const Index steps = distant ? fft_pair_steps<T, A>(plan, row / static_cast<Index>(sizeof(T))) : 1;
  for (Index b = 0; b < count; b += 2) {
    FftAhead ahead;
    if (distant && b + 2 < count) ahead = FftAhead(steps, at(x, b + 2), at(x, b + 3 < count ? b + 3 : b + 2));
    FftRows<T> out = b + 1 < count ? fft_two<A>(at(y, b), at(y, b + 1)) : fft_one<A>(at(y, b));
    out.far = around;
    const FftRows<const T> in = b + 1 < count ? fft_two<A>(at(x, b), at(x, b + 1)) : fft_one<A>(at(x, b));
    fft_filter<T, A>(plan, in, out, b + 1 < count ? pair : odd, gains, add, ahead, ws);
  }
  if (around) far_done();
}
/// Two sequences that lie anywhere.
template <class T, class A, class Gains>
void fft_filter_pair(const FftPlan<T>& plan, MatrixView<const T> x0, MatrixView<const T> x1, MatrixView<T> y0, MatrixView<T> y1,
                     const FftGainBlocks& blocks, const Gains& gains, bool add, Workspace& ws) {
  FftAhead nothing;
  fft_filter<T, A>(plan, fft_two<A>(x0, x1), fft_two<A>(y0, y1), blocks, gains, add, nothing, ws);
}

/// The spectrum over size() of the circular kernel `w`, group by group: its rows around 0, for a convolution that does not
/// wrap. Times 1 / size().
template <class T, class A>
void fft_embed_kernel(const FftPlan<T>& plan, MatrixView<const T> w, T* gains) {
  constexpr Index W = lanes<T, A>;
  const Index length = plan.length(), size = plan.size();
  const FftRows<const T> rows = fft_alone<A>(w);
  const T scale = T(1) / static_cast<T>(size);
  for (Index g = 0; g < fft_groups(rows); ++g) {
    T* const z = gains + g * size * 2 * W;
    fft_pack<T, A>(rows, g, length, size, nullptr, z);
    for (Index i = 0; i < length * 2 * W; ++i) z[i] *= scale;
    for (Index m = 1; m < length; ++m)
      for (Index i = 0; i < 2 * W; ++i) z[(size - length + m) * 2 * W + i] = z[m * 2 * W + i];
    fft_forward_parts<T, A>(plan, 0, z, 1);
  }
}

}  // namespace detail

/// Complex gains per bin and channel, ready for `fft_filter`. Keeps its capacity; a const one may be shared by threads.
template <Real T, class A = DefaultArch>
class FftFilter {
 public:
  FftFilter() = default;
  /// From W [K, D] (K the bins of the plan); Im at DC and Nyquist has no effect. `conjugate` gives the transposed filter: with
  /// that one `fft_filter` computes the gradient of x.
  void prepare(const FftPlan<T>& plan, FftPlanes<const T> gains, Workspace& ws, bool conjugate = false) {
    gains_.resize(block_count(gains.re.cols()) * block_size(plan));
    scratch_ = nullptr;
    fill(plan, gains, gains_.data(), ws, conjugate);
  }
  /// The same with the gains in `ws`, where they live until its mark ends: for a filter of one call.
  void prepare_in(Workspace& ws, const FftPlan<T>& plan, FftPlanes<const T> gains, bool conjugate = false) {
    scratch_ = ws.take<T>(block_count(gains.re.cols()) * block_size(plan));
    fill(plan, gains, scratch_, ws, conjugate);
  }

  /// L and D of what it filters.
  Index length() const { return length_; }
  Index cols() const { return cols_; }
  /// Gains of block `b` of channels: `[size][2][lanes]`.
  const T* block(Index b) const {
    assert((0 <= b && b * lanes<T, A> < cols_));
    return (scratch_ ? scratch_ : gains_.data()) + b * block_size_;
  }

 private:
  static Index block_count(Index cols) { return (cols + lanes<T, A> - 1) / lanes<T, A>; }
  static Index block_size(const FftPlan<T>& plan) { return plan.size() * 2 * lanes<T, A>; }
  void fill(const FftPlan<T>& plan, FftPlanes<const T> gains, T* to, Workspace& ws, bool conjugate) {
    constexpr Index W = lanes<T, A>;
    const Index length = plan.length(), cols = gains.re.cols();
    assert(gains.re.rows() == plan.bins() && gains.im.rows() == plan.bins() && gains.im.cols() == cols);
    length_ = length;
    cols_ = cols;
    block_size_ = block_size(plan);
    if (length == 0 || cols == 0) return;
    if (plan.bluestein()) {
      const auto mark = ws.mark();
      const MatrixView<T> kernel = ws.matrix<T>(length, cols);
      irfft<T, A>(plan, gains, kernel, FftNorm::backward, ws);
      detail::fft_embed_kernel<T, A>(plan, MatrixView<const T>(kernel), to);
    } else {
      const detail::FftRows<const T> re = detail::fft_alone<A>(gains.re), im = detail::fft_alone<A>(gains.im);
      const T scale = T(1) / static_cast<T>(length);
      detail::fft_join<T, A>(plan, to, block_size_, false, re, im, 0, detail::fft_groups(re), scale, scale);
    }
    if (conjugate)
      for (Index i = W; i < block_count(cols) * block_size_; i += 2 * W)
        for (Index l = 0; l < W; ++l) to[i + l] = -to[i + l];
  }

  Vector<T> gains_;
  T* scratch_ = nullptr;  // where they lie instead of gains_
  Index block_size_ = 0;
  recops::detail::MovedSize length_, cols_;
};

/// Real gains per bin, the same for all channels (a band: 1 for the bins kept, else 0), ready for `fft_filter`.
template <Real T, class A = DefaultArch>
class FftGains {
 public:
  FftGains() = default;
  /// From `gains` [K].
  void prepare(const FftPlan<T>& plan, VectorView<const T> gains, Workspace& ws) {
    gains_.resize(plan.size());
    scratch_ = nullptr;
    fill(plan, gains, gains_.data(), ws);
  }
  /// The same with the gains in `ws`, where they live until its mark ends: for a filter of one call.
  void prepare_in(Workspace& ws, const FftPlan<T>& plan, VectorView<const T> gains) {
    scratch_ = ws.take<T>(plan.size());
    fill(plan, gains, scratch_, ws);
  }

  Index length() const { return length_; }
  /// At the positions of the bins, `[size]`.
  const T* data() const { return scratch_ ? scratch_ : gains_.data(); }

 private:
  void fill(const FftPlan<T>& plan, VectorView<const T> gains, T* to, Workspace& ws) {
    constexpr Index W = lanes<T, A>;
    const Index size = plan.size(), length = plan.length(), bins = plan.bins();
    assert(gains.size() == bins);
    length_ = length;
    if (length == 0) return;
    if (plan.bluestein()) {
      const auto mark = ws.mark();
      const MatrixView<T> kernel = ws.matrix<T>(length, 1), zero = ws.matrix<T>(bins, 1);
      for (Index k = 0; k < bins; ++k) zero(k, 0) = T(0);
      T* const z = ws.take<T>(size * 2 * W);
      irfft<T, A>(plan, FftPlanes<const T>{MatrixView<const T>(gains.data(), bins, 1), zero}, kernel, FftNorm::backward, ws);
      detail::fft_embed_kernel<T, A>(plan, MatrixView<const T>(kernel), z);
      for (Index n = 0; n < size; ++n) to[n] = z[n * 2 * W];  // the kernel is symmetric: its spectrum is real
      return;
    }
    const std::int32_t* const at = plan.positions();
    for (Index k = 0; k < bins; ++k) {
      const T g = gains[k] / static_cast<T>(length);
      to[at[k]] = g;
      to[at[k == 0 ? 0 : length - k]] = g;
    }
  }

  Vector<T> gains_;
  T* scratch_ = nullptr;  // where they lie instead of gains_
  recops::detail::MovedSize length_;
};

namespace detail {

template <class T, class A>
struct FftFilterGains {
  static constexpr bool shared = false;
  const FftFilter<T, A>& filter;
  FftComplexGain<T, A> operator()(Index block) const { return {filter.block(block)}; }
};
template <class T, class A>
struct FftSharedGains {
  static constexpr bool shared = true;
  const T* g;
  FftRealGain<T, A> operator()(Index) const { return {g}; }
};

template <class T>
void fft_assert_batch(const FftPlan<T>& plan, MatrixView<const T> x, MatrixView<T> y) {
  assert(x.rows() == y.rows() && x.cols() == y.cols());
  assert(plan.length() == 0 ? x.rows() == 0 : x.rows() % plan.length() == 0);
  (void)plan, (void)x, (void)y;
}
template <class T>
void fft_assert_pair(const FftPlan<T>& plan, MatrixView<const T> x0, MatrixView<const T> x1, MatrixView<T> y0, MatrixView<T> y1) {
  assert(x0.rows() == plan.length() && x1.rows() == plan.length() && y0.rows() == plan.length() && y1.rows() == plan.length());
  assert(x0.cols() == x1.cols() && x0.cols() == y0.cols() && x0.cols() == y1.cols());
  (void)plan, (void)x0, (void)x1, (void)y0, (void)y1;
}

}  // namespace detail

/// y <- irfft(W . rfft(x)), or y += with `add`, of sequences one below the other: x, y [B L, D]. They are taken two at a time;
/// see Memory above for what is done where they come from there.
template <Real T, class A = DefaultArch>
void fft_filter(const FftPlan<T>& plan, const FftFilter<T, A>& filter, MatrixView<const T> x, MatrixView<T> y, bool add,
                Workspace& ws) {
  detail::fft_assert_batch<T>(plan, x, y);
  assert(filter.length() == plan.length() && x.cols() == filter.cols());
  detail::fft_filter_batch<T, A>(plan, x, y, {0, 0, 1}, {0, 1, 2}, detail::FftFilterGains<T, A>{filter}, add, ws);
}
/// The same of two sequences [L, D] that lie anywhere.
template <Real T, class A = DefaultArch>
void fft_filter(const FftPlan<T>& plan, const FftFilter<T, A>& filter, MatrixView<const T> x0, MatrixView<const T> x1,
                MatrixView<T> y0, MatrixView<T> y1, bool add, Workspace& ws) {
  detail::fft_assert_pair<T>(plan, x0, x1, y0, y1);
  assert(filter.length() == plan.length() && x0.cols() == filter.cols());
  detail::fft_filter_pair<T, A>(plan, x0, x1, y0, y1, {0, 0, 1}, detail::FftFilterGains<T, A>{filter}, add, ws);
}
/// y <- irfft(g . rfft(x)) with real gains that all channels share, or y += with `add`; x, y [B L, D] as above. Its own adjoint:
/// dx from dy is the same call.
template <Real T, class A = DefaultArch>
void fft_filter(const FftPlan<T>& plan, const FftGains<T, A>& gains, MatrixView<const T> x, MatrixView<T> y, bool add,
                Workspace& ws) {
  detail::fft_assert_batch<T>(plan, x, y);
  assert(gains.length() == plan.length());
  detail::fft_filter_batch<T, A>(plan, x, y, {0, 0, 0}, {0, 0, 0}, detail::FftSharedGains<T, A>{gains.data()}, add, ws);
}
/// The same of two sequences [L, D] that lie anywhere.
template <Real T, class A = DefaultArch>
void fft_filter(const FftPlan<T>& plan, const FftGains<T, A>& gains, MatrixView<const T> x0, MatrixView<const T> x1,
                MatrixView<T> y0, MatrixView<T> y1, bool add, Workspace& ws) {
  detail::fft_assert_pair<T>(plan, x0, x1, y0, y1);
  assert(gains.length() == plan.length());
  detail::fft_filter_pair<T, A>(plan, x0, x1, y0, y1, {0, 0, 0}, detail::FftSharedGains<T, A>{gains.data()}, add, ws);
}

/// Gathers dW over the sequences of a batch, in the order of the transforms; `add_to` brings it to the planes once. Sums run in
/// T: call `add_to` and `clear` at the latest every 4096 pairs. Threads take one each and `merge` them in a fixed order.
template <Real T, class A = DefaultArch>
class FftFilterGradient {
 public:
  FftFilterGradient() = default;
  /// For sequences of the plan's length with D = `cols` channels; all zeros.
  void reset(const FftPlan<T>& plan, Index cols) {
    start(plan, cols);
    scratch_ = nullptr;
    sums_.resize(size_);
    clear();
  }
  /// The same with the sums in `ws`, where they live until its mark ends: for one call.
  void reset_in(Workspace& ws, const FftPlan<T>& plan, Index cols) {
    start(plan, cols);
    scratch_ = ws.take<T>(size_);
    clear();
  }
  void clear() { std::fill_n(data(), Index{size_}, T(0)); }
  void merge(const FftFilterGradient& other) {
    assert(other.size_ == size_);
    using B = Batch<T, A>;
    for (Index i = 0; i < size_; i += lanes<T, A>)
      (B::load_aligned(data() + i) + B::load_aligned(other.data() + i)).store_aligned(data() + i);
  }
  Index length() const { return length_; }
  Index cols() const { return cols_; }
  T* block(Index b, Index size) { return data() + b * size * 2 * lanes<T, A>; }

  /// dW_k += m_k / L sum conj(X_k) F_k, `[K, D]`; Im at DC and Nyquist gains exactly 0.
  void add_to(const FftPlan<T>& plan, FftPlanes<T> dgains, Workspace& ws) const {
    using B = Batch<T, A>;
    constexpr Index W = lanes<T, A>;
    const Index size = plan.size(), length = plan.length();
    assert(length == length_ && dgains.re.rows() == plan.bins() && dgains.im.rows() == plan.bins());
    assert(dgains.re.cols() == cols_ && dgains.im.cols() == cols_);
    if (length == 0 || cols_ == 0) return;
    const auto mark = ws.mark();
    if (plan.bluestein()) {  // the correlation over all lags, wrapped to L, transformed
      const MatrixView<T> kernel = ws.matrix<T>(length, cols_);
      T* const z = ws.take<T>(size * 2 * W);
      const T scale = T(1) / static_cast<T>(size);
      for (Index d = 0; d < cols_; d += W) {
        std::copy_n(data() + d * size * 2, size * 2 * W, z);
        detail::fft_inverse_parts<T, A>(plan, 0, z, 1);
        const Index n = cols_ - d < W ? cols_ - d : W;
        for (Index m = 0; m < length; ++m) {
          B v = B::load_aligned(z + m * 2 * W);
          if (m > 0) v = v + B::load_aligned(z + (size - length + m) * 2 * W);
          detail::fft_put<T, A>(kernel.row(m) + d, v * B(scale), n, false);
        }
      }
      const double s = 1.0 / static_cast<double>(length);
      return detail::fft_spectrum<T, A>(plan, detail::fft_one<A>(MatrixView<const T>(kernel)), detail::fft_one<A>(dgains.re),
                                        detail::fft_one<A>(dgains.im), s, 2 * s, true, ws);
    }
    const T s = T(1) / static_cast<T>(length);
    const detail::FftRows<T> re = detail::fft_alone<A>(dgains.re), im = detail::fft_alone<A>(dgains.im);
    // Z_k and conj Z_(L-k) hold the sum, and cross terms that cancel.
    detail::fft_separate<T, A>(plan, data(), size * 2 * W, re, im, 0, detail::fft_groups(re), s, 2 * s, true);
  }

 private:
  void start(const FftPlan<T>& plan, Index cols) {
    assert(cols >= 0);
    cols_ = cols;
    length_ = plan.length();
    size_ = (cols + lanes<T, A> - 1) / lanes<T, A> * plan.size() * 2 * lanes<T, A>;
  }
  T* data() { return scratch_ ? scratch_ : sums_.data(); }
  const T* data() const { return scratch_ ? scratch_ : sums_.data(); }

  Vector<T> sums_;
  T* scratch_ = nullptr;  // where they lie instead of sums_
  recops::detail::MovedSize length_, cols_, size_;
};

namespace detail {

template <class T, class A>
[[gnu::noinline]] void fft_filter_backward(const FftPlan<T>& plan, const FftFilter<T, A>& filter, FftRows<const T> x,
                                           FftRows<const T> dy, FftRows<T> dx, FftFilterGradient<T, A>& gradient, FftAhead& ahead,
                                           Workspace& ws) {
  const Index groups = fft_groups(dy), size = plan.size();
  if (plan.length() == 0 || groups == 0) return;
  x.turned = dy.turned = dx.turned = dx.a ? fft_turns(plan, x, dy, dx) : fft_turns(plan, x, dy);
  const auto mark = ws.mark();
  const FftBlock<T, A> block(plan, groups, 2);
  T* const zx = block.take(ws);
  T* const zf = block.take(ws);
  const FftStage& top = plan.stage(0);
  FftAhead nothing;
  for (Index first = 0; first < groups; first += block.groups) {
    const Index count = groups - first < block.groups ? groups - first : block.groups;
    fft_enter<T, A>(plan, x, first, count, zx, block.distance);
    fft_enter<T, A>(plan, dy, first, count, zf, block.distance);
    for (Index g = 0; g < count; ++g) {
      T *const tx = zx + g * block.distance, *const tf = zf + g * block.distance, *const sum = gradient.block(first + g, size);
      fft_forward_parts<T, A>(plan, 1, tx, top.radix);
      if (dx.a) {
        const FftConjugateGain<T, A, true> gain{filter.block(first + g), tx, sum};
        fft_filter_parts<T, A>(plan, 1, tf, top.radix, gain, ahead);
        ahead.step();
      } else {
        fft_forward_parts<T, A>(plan, 1, tf, top.radix);
        fft_accumulate<T, A>(tx, tf, sum, size);
      }
    }
    if (!dx.a) continue;
    if (dy.b_channels == 0 || !fft_poisoned<T, A>(zf, block.distance, count, top.radix, top.span)) {
      fft_leave<T, A>(plan, dx, first, count, zf, block.distance, true);
      continue;
    }
    for (int side = 0; side < 2; ++side) {  // a NaN in one upstream gradient: each by itself
      fft_enter<T, A>(plan, fft_side(dy, side), first, count, zf, block.distance);
      for (Index g = 0; g < count; ++g)
        fft_filter_parts<T, A>(plan, 1, zf + g * block.distance, top.radix,
                               FftConjugateGain<T, A, false>{filter.block(first + g)}, nothing);
      fft_leave<T, A>(plan, fft_side(dx, side), first, count, zf, block.distance, true);
    }
  }
}

}  // namespace detail

/// Backward of `fft_filter` with complex gains, of sequences one below the other, two at a time; x and dy [B L, D]: dx += (an empty
/// view: not wanted), and dW gathered in `gradient`. `filter` is the forward one. A NaN in x or dy reaches all of dW of its channel.
template <Real T, class A = DefaultArch>
void fft_filter_backward(const FftPlan<T>& plan, const FftFilter<T, A>& filter, MatrixView<const T> x, MatrixView<const T> dy,
                         MatrixView<T> dx, FftFilterGradient<T, A>& gradient, Workspace& ws) {
  const Index length = plan.length();
  assert(x.rows() == dy.rows() && (length == 0 ? x.rows() == 0 : x.rows() % length == 0) && gradient.length() == length);
  assert(x.cols() == gradient.cols() && dy.cols() == gradient.cols());
  if (length == 0 || x.empty()) return;
  const auto at = [length](auto m, Index b) { return m.empty() ? m : m.middle_rows(b * length, length); };
  const bool distant = 3 * x.rows() * x.cols() * static_cast<Index>(sizeof(T)) > detail::fft_near_bytes;
  const Index count = x.rows() / length, steps = distant ? detail::fft_pair_steps<T, A>(plan, x.cols()) : 1;
  for (Index b = 0; b + 1 < count; b += 2) {
    detail::FftAhead ahead;
    if (const Index c = b + 2, d = b + 3 < count ? b + 3 : c; distant && c < count)
      ahead = detail::FftAhead(steps, at(x, c), at(x, d), at(dy, c), at(dy, d));
    detail::fft_filter_backward<T, A>(plan, filter, detail::fft_two<A>(at(x, b), at(x, b + 1)),
                                      detail::fft_two<A>(at(dy, b), at(dy, b + 1)), detail::fft_two<A>(at(dx, b), at(dx, b + 1)),
                                      gradient, ahead, ws);
  }
  if (count % 2 == 0) return;
  detail::FftAhead nothing;
  detail::fft_filter_backward<T, A>(plan, filter, detail::fft_alone<A>(at(x, count - 1)), detail::fft_alone<A>(at(dy, count - 1)),
                                    detail::fft_alone<A>(at(dx, count - 1)), gradient, nothing, ws);
}
/// The same of two sequences [L, D] that lie anywhere; both of dx0, dx1 are given or neither.
template <Real T, class A = DefaultArch>
void fft_filter_backward(const FftPlan<T>& plan, const FftFilter<T, A>& filter, MatrixView<const T> x0, MatrixView<const T> x1,
                         MatrixView<const T> dy0, MatrixView<const T> dy1, MatrixView<T> dx0, MatrixView<T> dx1,
                         FftFilterGradient<T, A>& gradient, Workspace& ws) {
  assert(x0.rows() == plan.length() && dy0.rows() == plan.length() && gradient.length() == plan.length());
  assert(x0.cols() == gradient.cols() && dy0.cols() == gradient.cols());
  assert(dx0.empty() == dx1.empty());
  detail::FftAhead nothing;
  detail::fft_filter_backward<T, A>(plan, filter, detail::fft_two<A>(x0, x1), detail::fft_two<A>(dy0, dy1),
                                    detail::fft_two<A>(dx0, dx1), gradient, nothing, ws);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
