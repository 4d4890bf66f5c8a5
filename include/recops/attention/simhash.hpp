/// @file   recops/attention/simhash.hpp
/// @brief  Which side of random planes a vector lies on, as bits: angles between vectors become Hamming distances between signatures.
///
///     bit_t(x) = (plane_t . x >= 0)          P(bit_t(x) = bit_t(y)) = 1 - angle(x, y) / pi
///
/// A zero vector has all bits 1; a NaN or an infinity that cancels gives bits 0. A row's bits do not depend on the other rows of a call.
/// Cost 2 N D bits flops. Source: Charikar, STOC 2002, as in ETA (arXiv 2108.04468) and SDIM (arXiv 2205.10249).
#pragma once
#include <algorithm>
#include <recops/core/error.hpp>
#include <recops/core/fields.hpp>
#include <recops/core/random.hpp>
#include <recops/simd/compress.hpp>
#include <recops/simd/gemm.hpp>
#include <utility>

namespace recops {
inline namespace RECOPS_ABI {

/// Normal random planes `[d, bits]`, a column each.
template <class T>
Matrix<T> random_planes(Index bits, Index d, Random& random) {
  Matrix<T> planes(checked_size("random_planes", "d", d), checked_size("random_planes", "bits", bits));
  for (Index i = 0; i < bits * d; ++i) planes.data()[i] = static_cast<T>(random.normal());
  return planes;
}

namespace detail {

/// Sequence by sequence `other` has as many rows as `batch`.
template <class T, class U>
void check_same_sequences(const char* op, const char* argument, const JaggedView<T>& batch, const JaggedView<U>& other) {
  if (other.size() != batch.size()) [[unlikely]]
    fail_count(op, argument, batch.size(), other.size(), "sequences");
  for (Index b = 0; b < batch.size(); ++b)
    if (other.length(b) != batch.length(b)) [[unlikely]]
      fail_at(op, argument, "as many rows in each sequence, ", batch.length(b), b, other.length(b));
}

/// products[t] = x . plane t for a row, summed in gemm's order: the same bits.
template <class T>
void plane_products(const T* x, MatrixView<const T> planes, T* products) {
  using B = simd::Batch<T>;
  constexpr Index W = simd::lanes<T>;
  constexpr int U = 8;
  const Index bits = planes.cols();
  if (bits < W) {
    B sum(T(0));
    for (Index k = 0; k < planes.rows(); ++k) sum = simd::mul_add(B(x[k]), simd::load_first<T>(planes.row(k), bits), sum);
    return simd::store_first<T>(products, sum, bits);
  }
  // C vectors from plane t on; the last of all ends with the last plane, and may repeat some.
  const auto vectors = [&](auto count, Index t) RECOPS_LAMBDA_INLINE {
    constexpr int C = count();
    const Index last = std::min(t + (C - 1) * W, bits - W);
    B sum[C];
    RECOPS_UNROLL
    for (int u = 0; u < C; ++u) sum[u] = B(T(0));
    for (Index k = 0; k < planes.rows(); ++k) {
      const T* const row = planes.row(k);
      const B v(x[k]);
      RECOPS_UNROLL
      for (int u = 0; u < C; ++u) sum[u] = simd::mul_add(v, B::load_unaligned(row + (u + 1 < C ? t + u * W : last)), sum[u]);
    }
    RECOPS_UNROLL
    for (int u = 0; u < C; ++u) sum[u].store_unaligned(products + (u + 1 < C ? t + u * W : last));
  };
  // As many at once as are left, up to U: a pass waits for its own sums, so it takes as long for one vector as for all.
  for (Index t = 0; t < bits; t += U * W) {
    const Index left = std::min(Index{U}, (bits - t + W - 1) / W);
    [&]<int... C>(std::integer_sequence<int, C...>) RECOPS_LAMBDA_INLINE {
      ((left == C + 1 ? vectors(std::integral_constant<int, C + 1>(), t) : void()), ...);
    }(std::make_integer_sequence<int, U>());
  }
}

/// Calls `visit(row, bits)` for every row of x, where bits are 64-bit words, plane 0 the lowest bit of the first.
template <class T, class F>
void sign_bits(MatrixView<const T> x, MatrixView<const T> planes, Workspace& ws, F&& visit) {
  const Index bits = planes.cols(), words = (bits + 63) / 64, rows = x.rows();
  if (rows == 0) return;
  const auto mark = ws.mark();
  const bool few = rows <= 4 && planes.rows() <= simd::k_block;  // packing the planes would cost more than the products
  T* const panels = few ? nullptr : ws.take<T>(simd::packed_size<T>(planes.rows(), bits));
  if (!few) simd::pack<T>(simd::plain(planes), panels);
  constexpr Index block = 256, W = simd::lanes<T>;
  ws.parallel_for((rows + block - 1) / block, [&](Index task, Workspace& scratch) {
    const auto own = scratch.mark();
    const Index first = task * block, count = std::min(block, rows - first);
    const MatrixView<T> products = scratch.matrix<T>(count, bits);
    auto* const word = scratch.take<std::uint64_t>(words);
    if (few) {
      for (Index i = 0; i < count; ++i) plane_products<T>(x.row(first + i), planes, products.row(i));
    } else {
      simd::gemm_packed<T>(simd::plain(x.middle_rows(first, count)), panels, bits, {}, products, scratch);
    }
    for (Index i = 0; i < count; ++i) {
      const T* const p = products.row(i);
      for (Index w = 0, t = 0; w < words; ++w) {
        const Index end = std::min(bits, t + 64);
        std::uint64_t seen = 0;
        for (; t + W <= end; t += W)
          seen |= std::uint64_t{simd::mask_bits(simd::Batch<T>::load_unaligned(p + t) >= simd::Batch<T>(T(0)))} << (t % 64);
        for (; t < end; ++t) seen |= std::uint64_t{p[t] >= T(0)} << (t % 64);
        word[w] = seen;
      }
      visit(first + i, static_cast<const std::uint64_t*>(word));
    }
  });
}

}  // namespace detail

/// signatures `[N, ceil(bits / 64)]` of x `[N, D]` by planes `[D, bits]`, 1 to 255 of them; bits past the last plane are 0.
/// Throws `Error` for shapes that do not fit.
template <Real T>
void simhash(MatrixView<const T> x, MatrixView<const T> planes, MatrixView<std::uint64_t> signatures, Workspace& ws) {
  constexpr const char* name = "simhash";
  check_shape(name, "planes", planes, any_size, any_size);
  check_option(name, "planes", planes.cols() >= 1 && planes.cols() <= 255, "1 to 255 planes", static_cast<double>(planes.cols()));
  check_shape(name, "x", x, any_size, planes.rows());
  check_shape(name, "signatures", signatures, x.rows(), (planes.cols() + 63) / 64);
  detail::sign_bits<T>(x, planes, ws,
                       [&](Index i, const std::uint64_t* words) { std::copy_n(words, signatures.cols(), signatures.row(i)); });
}

}  // namespace RECOPS_ABI
}  // namespace recops
