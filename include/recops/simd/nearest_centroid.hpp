/// @file   recops/simd/nearest_centroid.hpp
/// @brief  The nearest of K centroids for every row of a panel: the inner loop of k-means.
///
///     label_i = argmin_k |x_i - c_k|^2 = argmax_k (x_i . c_k - |c_k|^2 / 2)          equal: the lower k
///
/// Rows stand in lanes (simd/panels.hpp), so there is no sum across lanes, and the best so far stays in registers beside six
/// accumulators a vector. A row with a NaN, or only NaN centroids, gets label 0.
#pragma once
#include <limits>
#include <recops/simd/panels.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Centroids of a chunk: two vectors of rows each leave room for these in registers.
inline constexpr int centroid_chunk = 6;

/// Takes centroids first .. first + K - 1 into the best so far of `V` vectors of rows.
template <class T, class A, int V, int K>
[[gnu::noinline]] void nearest_chunk(const T* panel, Index cols, const T* centroids, const T* half_squares, Index first, T* best,
                                     T* label) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  B sum[K][V];
  RECOPS_UNROLL
  for (int k = 0; k < K; ++k) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) sum[k][v] = B(-half_squares[first + k]);
  }
  const T* c = centroids + first * cols;
  for (Index d = 0; d < cols; ++d) {
    B x[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) x[v] = B::load_aligned(panel + d * P + v * W);
    RECOPS_UNROLL
    for (int k = 0; k < K; ++k) {
      const B one(c[k * cols + d]);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) sum[k][v] = mul_add(one, x[v], sum[k][v]);
    }
  }
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    B top = B::load_aligned(best + v * W), at = B::load_aligned(label + v * W);
    RECOPS_UNROLL
    for (int k = 0; k < K; ++k) {
      const auto better = sum[k][v] > top;
      at = xsimd::select(better, B(static_cast<T>(first + k)), at);
      top = xsimd::select(better, sum[k][v], top);
    }
    top.store_aligned(best + v * W);
    at.store_aligned(label + v * W);
  }
}

}  // namespace detail

/// label [panel_width] of the first `rows` rows of a panel [cols, panel_width], as numbers of T (K is below 2^24); what is behind
/// them is unspecified. centroids [K, cols], half_squares [K] = |c_k|^2 / 2. `label` is aligned to 64 bytes.
template <class T, class A = DefaultArch>
void nearest_centroid(const T* panel, Index rows, Index cols, const T* centroids, const T* half_squares, Index count, T* label) {
  constexpr int V = registers<A> / 8;
  constexpr Index W = lanes<T, A>, P = panel_width<T>;
  static_assert(P % (V * W) == 0);
  alignas(64) T best[P];
  for (Index i = 0; i < P; ++i) best[i] = -std::numeric_limits<T>::infinity(), label[i] = T(0);
  for (Index v = 0; v < rows; v += V * W) {
    Index k = 0;
    const auto chunk = [&]<int K>(std::integral_constant<int, K>) RECOPS_LAMBDA_INLINE {
      detail::nearest_chunk<T, A, V, K>(panel + v, cols, centroids, half_squares, k, best + v, label + v);
      k += K;
    };
    // Chunks of equal size: few accumulators would wait for each other.
    for (Index left = (count + detail::centroid_chunk - 1) / detail::centroid_chunk; left > 0; --left) {
      switch ((count - k + left - 1) / left) {
        case 6:
          chunk(std::integral_constant<int, 6>());
          break;
        case 5:
          chunk(std::integral_constant<int, 5>());
          break;
        case 4:
          chunk(std::integral_constant<int, 4>());
          break;
        case 3:
          chunk(std::integral_constant<int, 3>());
          break;
        case 2:
          chunk(std::integral_constant<int, 2>());
          break;
        default:
          chunk(std::integral_constant<int, 1>());
          break;
      }
    }
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
