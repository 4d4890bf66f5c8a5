/// @file   recops/simd/rank_sums.hpp
/// @brief  Sums over all pairs of rows and columns of how likely the row's score is above the column's: the inner loop of smooth
///         ranks, and of their backward.
///
///     logistic   P_ij = e_i / (e_i + e_j), e = exp(score / tau)              D_ij = P_ij (1 - P_ij)
///     Gaussian   P_ij = Phi(z_i - z_j) = (1 + erf((z_i - z_j) / sqrt 2)) / 2  D_ij = phi(z_i - z_j)
///
/// Rows are lanes, columns are broadcast: no sum across lanes, and no exponential in the logistic pairs at all. Sums run in T over 256
/// columns and in double beyond.
#pragma once
#include <algorithm>
#include <recops/simd/gaussian.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Which distribution a difference of scores is held against.
enum class RankKernel { logistic, gaussian };

namespace detail {

/// 1 / x for x whose square and reciprocal are of ordinary size; relative error 3e-7 in float (an estimate and a Newton step, a third of
/// the cost of a division), exact to rounding elsewhere.
template <class T, class A>
RECOPS_INLINE Batch<T, A> quick_reciprocal(Batch<T, A> x) {
  [[maybe_unused]] const auto refined = [&](Batch<T, A> r)
                                            RECOPS_LAMBDA_INLINE { return r * neg_mul_add(x, r, Batch<T, A>(T(2))); };
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && std::is_base_of_v<xsimd::avx512f, A>) return refined(_mm512_rcp14_ps(x));
#endif
#if defined(__AVX__)
  if constexpr (std::is_same_v<T, float> && std::is_base_of_v<xsimd::avx, A> && sizeof(Batch<T, A>) == 32)
    return refined(_mm256_rcp_ps(x));
#endif
#if defined(__SSE2__)
  if constexpr (std::is_same_v<T, float> && sizeof(Batch<T, A>) == 16) return refined(_mm_rcp_ps(x));
#endif
  return Batch<T, A>(T(1)) / x;
}

inline constexpr Index rank_block = 256;  ///< columns before sums go to double
inline constexpr int rank_vectors = 4;    ///< of rows at a time

/// P (logistic: without the factor e_i) of rows r and column c.
template <RankKernel kernel, class T, class A>
RECOPS_INLINE Batch<T, A> rank_chance(Batch<T, A> r, Batch<T, A> c) {
  if constexpr (kernel == RankKernel::logistic) {
    return quick_reciprocal(r + c);
  } else {
    return T(0.5) * simd::erf((r - c) * Batch<T, A>(T(0.70710678118654752440))) + Batch<T, A>(T(0.5));
  }
}
/// D (logistic: without the factor e_i).
template <RankKernel kernel, class T, class A>
RECOPS_INLINE Batch<T, A> rank_density(Batch<T, A> r, Batch<T, A> c) {
  if constexpr (kernel == RankKernel::logistic) {
    const Batch<T, A> inverse = quick_reciprocal(r + c);
    return c * inverse * inverse;
  } else {
    const Batch<T, A> z = r - c;
    return simd::exp(z * z * Batch<T, A>(T(-0.5))) * Batch<T, A>(T(0.39894228040143267794));
  }
}

/// sums[i] = Σ_j of P_ij or, with the gradients u of rows and v of columns, of D_ij (u_i - v_j). `rows`, `u` and `sums` have room for
/// whole tiles of rank_vectors vectors; what is in them beyond `count` must be fit for arithmetic.
template <RankKernel kernel, bool Backward, class T, class A>
void rank_tiles(const T* rows, const T* u, Index count, const T* columns, const T* v, Index n, double* sums) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, tile = rank_vectors * W;
  for (Index i = 0; i < count; i += tile) {
    B r[rank_vectors];
    [[maybe_unused]] B own[rank_vectors];
    RECOPS_UNROLL
    for (int k = 0; k < rank_vectors; ++k) r[k] = B::load_unaligned(rows + i + k * W);
    if constexpr (Backward) {
      RECOPS_UNROLL
      for (int k = 0; k < rank_vectors; ++k) own[k] = B::load_unaligned(u + i + k * W);
    }
    std::fill_n(sums + i, tile, 0.0);
    for (Index first = 0; first < n; first += rank_block) {
      const Index last = std::min(n, first + rank_block);
      B sum[rank_vectors];
      RECOPS_UNROLL
      for (int k = 0; k < rank_vectors; ++k) sum[k] = B(T(0));
      for (Index j = first; j < last; ++j) {
        const B c(columns[j]);
        if constexpr (Backward) {
          const B theirs(v[j]);
          RECOPS_UNROLL
          for (int k = 0; k < rank_vectors; ++k) sum[k] = mul_add(rank_density<kernel>(r[k], c), own[k] - theirs, sum[k]);
        } else {
          RECOPS_UNROLL
          for (int k = 0; k < rank_vectors; ++k) sum[k] = sum[k] + rank_chance<kernel>(r[k], c);
        }
      }
      alignas(64) T lane[tile];
      RECOPS_UNROLL
      for (int k = 0; k < rank_vectors; ++k) sum[k].store_aligned(lane + k * W);
      for (Index k = 0; k < tile; ++k) sums[i + k] += static_cast<double>(lane[k]);
    }
    if constexpr (kernel == RankKernel::logistic)
      for (Index k = 0; k < tile; ++k) sums[i + k] *= static_cast<double>(rows[i + k]);
  }
}

}  // namespace detail

/// How many rows `rank_sums` rounds up to.
template <class T, class A = DefaultArch>
inline constexpr Index rank_tile = detail::rank_vectors* lanes<T, A>;

/// sums[i] = Σ_{j < n} P_ij for i < count. `rows` and `sums` have room for whole tiles; rows beyond `count` are read: give them
/// any ordinary number.
template <RankKernel kernel, class T, class A = DefaultArch>
void rank_sums(const T* rows, Index count, const T* columns, Index n, double* sums) {
  detail::rank_tiles<kernel, false, T, A>(rows, nullptr, count, columns, nullptr, n, sums);
}

/// sums[i] = Σ_{j < n} D_ij (u_i - v_j); `u` has room for whole tiles too.
template <RankKernel kernel, class T, class A = DefaultArch>
void rank_sums_backward(const T* rows, const T* u, Index count, const T* columns, const T* v, Index n, double* sums) {
  detail::rank_tiles<kernel, true, T, A>(rows, u, count, columns, v, n, sums);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
