/// @file   recops/attention/simhash.hpp
/// @brief  Which side of random planes a vector lies on, as bits: angles between vectors become Hamming distances between signatures.
///
///     bit_t(x) = (plane_t . x >= 0)          P(bit_t(x) = bit_t(y)) = 1 - angle(x, y) / pi
///
/// A zero vector has all bits 1; a NaN or an infinity that cancels gives bits 0. A row's bits do not depend on the other rows of a call.
/// Cost 2 N D bits flops. Source: Charikar, STOC 2002, as in ETA (arXiv 2108.04468) and SDIM (arXiv 2205.10249).
#pragma once
#include <recops/core/error.hpp>
#include <recops/core/fields.hpp>
#include <recops/core/random.hpp>
#include <recops/simd/compress.hpp>
#include <recops/simd/gemm.hpp>

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
  Index t = 0;
  const auto columns = [&](auto count) RECOPS_LAMBDA_INLINE {
    constexpr int C = decltype(count)::value;
    for (; t + C * W <= bits; t += C * W) {
      B sum[C];
      RECOPS_UNROLL
      for (int u = 0; u < C; ++u) sum[u] = B(T(0));
      for (Index k = 0; k < planes.rows(); ++k) {
        const T* const row = planes.row(k) + t;
        const B v(x[k]);
        RECOPS_UNROLL
        for (int u = 0; u < C; ++u) sum[u] = simd::mul_add(v, B::load_unaligned(row + u * W), sum[u]);
      }
      RECOPS_UNROLL
      for (int u = 0; u < C; ++u) sum[u].store_unaligned(products + t + u * W);
    }
  };
  columns(std::integral_constant<int, U>());
  columns(std::integral_constant<int, 2>());
  columns(std::integral_constant<int, 1>());
  if (t == bits) return;
  B sum(T(0));
  for (Index k = 0; k < planes.rows(); ++k) sum = simd::mul_add(B(x[k]), simd::load_first<T>(planes.row(k) + t, bits - t), sum);
  simd::store_first<T>(products + t, sum, bits - t);
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
      std::fill_n(word, words, std::uint64_t{0});
      Index t = 0;
      for (; t + W <= bits; t += W)  // W divides 64: a vector's bits lie in one word
        word[t / 64] |= std::uint64_t{simd::mask_bits(simd::Batch<T>::load_unaligned(p + t) >= simd::Batch<T>(T(0)))} << (t % 64);
      for (; t < bits; ++t) word[t / 64] |= std::uint64_t{p[t] >= T(0)} << (t % 64);
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
