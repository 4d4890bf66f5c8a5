/// @file   recops/simd/lambda_sums.hpp
/// @brief  Sums over all pairs of two sets of items whose pairs count what swapping them would change a discounted gain.
///
///     w_ij = (gain_i - gain_j) |discount_i - discount_j|        x_ij = sigma (low_j - high_i)
///
/// with i in `high`, of the larger gains, and j in `low`: Σ w softplus(x), and Σ w sigmoid(x) over each row and each column.
/// Where the scores lie within 80 / sigma (double 700 / sigma) of each other, e^-|x| is the smaller of two products of exponentials that
/// belong to items, else each pair takes its own; four rows share one division; a polynomial gives the logarithm of a pair.
#pragma once
#include <recops/simd/pair_sums.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Items with what they are worth and what their places are worth, side by side.
template <class T>
struct RankedItems {
  const T *score, *gain, *discount;
  Index size;
  RECOPS_INLINE RankedItems segment(Index first, Index count) const {
    return {score + first, gain + first, discount + first, count};
  }
};

namespace detail {

template <class T, class A, bool separable>
double lambda_sums(const RankedItems<T>& high, const RankedItems<T>& low, T sigma, T centre, double* row, double* col) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, width = pair_block * W;
  alignas(64) T score[width], gain[width], discount[width], sums[width], rising[width], falling[width];
  const PairScores<T> how{true, sigma, centre, T(0)};
  const auto block = [](const T* from, Index count, Index padded, T* to) {
    std::copy_n(from, count, to);
    std::fill(to + count, to + padded, from[count - 1]);  // padding weighs nothing: see below
  };
  double total = 0;
  for (Index c = 0; c < low.size; c += width) {
    const Index count = std::min(width, low.size - c), padded = (count + W - 1) / W * W;
    block(low.score + c, count, padded, score);
    block(low.gain + c, count, padded, gain);
    block(low.discount + c, count, padded, discount);
    if constexpr (separable) {
      prepare_pair_scores<T, A>(score, padded, how, 1, rising);
      prepare_pair_scores<T, A>(score, padded, how, -1, falling);
    }
    alignas(64) T last[W];  // 1 in the lanes of the last vector that hold an item
    for (Index l = 0; l < W; ++l) last[l] = padded - W + l < count ? T(1) : T(0);
    for (Index g = 0; g < high.size; g += pair_group) {
      std::fill_n(sums, padded, T(0));
      for (Index i = g; i < std::min(high.size, g + pair_group); i += pair_rows) {
        const Index height = std::min<Index>(pair_rows, high.size - i);
        B s[pair_rows], v[pair_rows], d[pair_rows], across[pair_rows], up[pair_rows], down_of[pair_rows];
        alignas(64) T own[pair_rows] = {}, own_falling[pair_rows] = {}, own_rising[pair_rows] = {};
        if constexpr (separable) {
          for (Index r = 0; r < pair_rows; ++r) own[r] = high.score[i + std::min<Index>(r, height - 1)];
          prepare_pair_scores<T, A>(own, pair_rows, how, -1, own_falling);
          prepare_pair_scores<T, A>(own, pair_rows, how, 1, own_rising);
        }
        RECOPS_UNROLL
        for (int r = 0; r < pair_rows; ++r) {
          const Index at = i + std::min<Index>(r, height - 1);
          s[r] = B(high.score[at]);
          v[r] = B(high.gain[at]);
          d[r] = B(high.discount[at]);
          across[r] = B(T(0));
          if constexpr (separable) up[r] = B(own_falling[r]), down_of[r] = B(own_rising[r]);
        }
        B losses(T(0));
        for (Index j = 0; j < padded; j += W) {
          const B lower = B::load_aligned(score + j), worth = B::load_aligned(gain + j), place = B::load_aligned(discount + j);
          const B here = j + W == padded ? B::load_aligned(last) : B(T(1));
          B e[pair_rows], x[pair_rows], down(T(0));
          RECOPS_UNROLL
          for (int r = 0; r < pair_rows; ++r) {
            x[r] = B(sigma) * (lower - s[r]);
            if constexpr (separable) {
              e[r] = xsimd::min(B::load_aligned(rising + j) * up[r], B::load_aligned(falling + j) * down_of[r]);
            } else {
              e[r] = exp_minus_abs(x[r]);
            }
          }
          const PairQuad<B> quad(e, true);
          RECOPS_UNROLL
          for (int r = 0; r < pair_rows; ++r) {
            const B w = r < height ? here * (v[r] - worth) * xsimd::abs(d[r] - place) : B(T(0));
            losses = mul_add(w, xsimd::max(B(T(0)), x[r]) + log1p_unit(e[r]), losses);
            const B f = w * xsimd::select(x[r] >= B(T(0)), quad.inverse[r], e[r] * quad.inverse[r]);
            across[r] = across[r] + f;
            down = down + f;
          }
          (B::load_aligned(sums + j) + down).store_aligned(sums + j);
        }
        total += static_cast<double>(sum_lanes(losses));
        for (Index r = 0; r < height; ++r) row[i + r] += static_cast<double>(sum_lanes(across[r]));
      }
      for (Index j = 0; j < count; ++j) col[c + j] += static_cast<double>(sums[j]);
    }
  }
  return total;
}

}  // namespace detail

/// Returns Σ w softplus(x); adds the sums of w sigmoid(x) to `row [high.size]` and `col [low.size]`. All numbers are finite, all scores
/// within [least, most].
template <class T, class A = DefaultArch>
double lambda_sums(const RankedItems<T>& high, const RankedItems<T>& low, T sigma, T least, T most, double* row, double* col) {
  const PairScores<T> how = pair_scores<T>(sigma, least, most, least, least);  // separable if the spread allows it
  return how.separable ? detail::lambda_sums<T, A, true>(high, low, sigma, how.centre, row, col)
                       : detail::lambda_sums<T, A, false>(high, low, sigma, how.centre, row, col);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
