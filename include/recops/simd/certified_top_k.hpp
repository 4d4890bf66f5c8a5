/// @file   recops/simd/certified_top_k.hpp
/// @brief  The k rows with the largest inner product with a query: by scanning them, or, with the same result to the bit, by
///         scanning a copy in int8 or sixteen bits and scoring again only what may be among them.
///
/// The copy gives a score s^ and a bound eps on its distance from the score that the floats would give:
///
///     t = k-th largest of (s^ - eps)       scored again: rows with s^ + eps >= t
///
///     int8, scale s   eps = s (|q|_1 / 2 + 127 |q - q'|_1)       q' the query in sixteen bits
///     BFloat16        eps = 2^-8 |q|_2 |row|_2                   Float16: 2^-11
///     each with the roundings of both sums, of the bounds themselves, and what underflows, added
///
/// t grows while the copy is read, so rows are dropped as they pass: one pass, and nothing of length L is written in usual data.
///
/// Shapes      query [D]   rows [L, D] floats   indices [k], scores [k] or empty; k is what there is room for
/// Order       As simd/top_k.hpp: largest first, equal scores by the lower index, NaN behind every number.
/// Edge cases  k = 0 and L = 0 select nothing; with k >= L all rows are ordered. Places left over hold index -1 and score
///             -infinity. Rows whose copy is not finite, or so large that a sum might overflow, are always scored again.
/// Exactness   Holds for any floats, with denormals or flushed ones, if the copy was made from these rows: by `quantize_rows`, or
///             by `convert` with the norms of `row_norms`. It does not hold for a stale copy.
/// Cost        Reading the copy, and scoring 1 to 3 k rows again in usual data; at worst (all rows alike) reading both. Where
///             4 k >= L or L < 1024 the floats are scanned. Scratch: 8 bytes a row (touched only where rows are kept) and 64 k
///             bytes. No allocation once scratch has grown.
/// Errors      Error if shapes disagree; outputs untouched. L < 2^31.
/// Reference   The bound is the triangle inequality; see docs/storage.md.
#pragma once
#include <recops/simd/similarity.hpp>
#include <recops/simd/top_k.hpp>

namespace recops {

/// What a certified selection did.
struct CertifiedSelection {
  Index count = 0;     ///< rows selected: min(k, L)
  Index rescored = 0;  ///< rows whose floats were read; L where the copy was not used
};

inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Rows scored exactly between two looks at the threshold.
inline constexpr Index scan_block = 512;

/// Sums of a query, in double.
struct QuerySums {
  double absolute = 0;  // |q|_1
  double length = 0;    // |q|_2
};
inline QuerySums sums_of(const float* q, Index cols) {
  QuerySums sums;
  for (Index i = 0; i < cols; ++i) {
    const auto x = static_cast<double>(q[i]);
    sums.absolute += x < 0 ? -x : x;
    sums.length += x * x;
  }
  sums.length = std::sqrt(sums.length);
  return sums;
}

/// A float that is at least `x`.
inline float at_least(double x) { return static_cast<float>(x * (1 + 0x1p-20)) + 0x1p-140f; }

/// Relative error of a sum of `cols` products in either of two orders, and of a handful of operations on it.
inline double roundings(Index cols) { return (2 * static_cast<double>(cols) + 64) * 0x1p-24; }

/// What underflow, or a processor that flushes denormals to zero, may take from two sums of products with values up to 128
/// scales.
inline double underflow(Index cols, double absolute) { return absolute * 0x1p-118 + (static_cast<double>(cols) + 64) * 0x1p-124; }

/// eps of codes = s * per_scale, for columns first .. first + cols of the query. `query_error` is |q - q'|_1.
inline double code_error(const float* q, Index cols, Index all_cols, double query_error) {
  const double absolute = sums_of(q, cols).absolute;
  return absolute * (0.5 + 0x1p-14) + 127.5 * (query_error + absolute * roundings(all_cols));
}

/// eps of rows rounded to sixteen bits = |row| * per_norm + rest; `half`: to Float16, else BFloat16.
struct RoundedError {
  float per_norm, rest;
};
inline RoundedError rounded_error(const QuerySums& sums, Index cols, bool half) {
  // Half the distance of the smallest numbers of a format is lost at most; squares of a norm underflow before their rows do.
  const double lost = sums.absolute * (half ? 0x1p-24 : 0x1p-125) + sums.length * std::sqrt(static_cast<double>(cols)) * 0x1p-62;
  return {at_least(sums.length * ((half ? 0x1p-11 : 0x1p-8) * (1 + 0x1p-7) + roundings(cols))),
          at_least(lost + underflow(cols, sums.absolute))};
}

/// Collects the rows that may be among the k best, from approximate scores and their error bounds.
template <class A>
class Survivors {
 public:
  using B = Batch<float, A>;
  static constexpr Index W = lanes<float, A>;
  /// Beyond this, sums might overflow in one order and not in the other: such a row says nothing, and is kept.
  static constexpr float limit = 0x1p118f;

  Survivors(Index k, Index rows, Workspace& ws) : lower_(k, Order::descending, ws) {
    block_size_ = k < 64 ? 64 : k;
    upper_ = ws.take<float>(rows + W);
    index_ = ws.take<std::int32_t>(rows + W);
    block_ = ws.take<float>(block_size_ + W);
  }

  /// Which of the `height` rows whose scores are in lanes may be among the k best, given how far off these may be.
  RECOPS_INLINE std::uint32_t may_keep(Index height, B score, B error) const {
    // A row whose upper bound is beaten has a lower bound that is beaten too. Most rows are, so this is all that is done for them.
    const B upper = score + error, lower = score - error;
    return ~mask_bits((upper < B(threshold_)) & (lower >= B(-limit))) & ((2u << (height - 1)) - 1u);
  }
  /// Scores of the rows i .. i + height - 1 in lanes, and how far off they may be.
  RECOPS_INLINE void add(Index i, Index height, B score, B error) {
    if (const std::uint32_t keep = may_keep(height, score, error); keep != 0) [[unlikely]]
      add_kept(keep, i, score, error);
  }

  /// The same for one row that may be.
  void add_one(Index i, float score, float error) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const bool sound = std::abs(score) <= limit && error <= limit;
    block_[in_block_++] = sound ? score - error : -infinity;
    upper_[size_] = sound ? score + error : infinity;
    index_[size_++] = static_cast<std::int32_t>(i);
    if (in_block_ >= block_size_) close(block_size_ / 8);
  }
  /// A row whose score is certainly below has no place among the k best.
  float threshold() const { return threshold_; }

  /// Drops what a row found later has beaten; `rows()` are then final. `at`: the order in which rows came.
  template <class At = InOrder>
  void finish(const At& at = {}) {
    close(0);
    Index kept = 0;
    for (Index i = 0; i < size_; ++i) {
      if (upper_[i] < threshold_) continue;
      index_[kept++] = static_cast<std::int32_t>(at(index_[i]));
    }
    size_ = kept;
  }
  /// Rows that were kept, in the order in which they came.
  VectorView<const std::int32_t> rows() const { return VectorView<const std::int32_t>(index_, size_); }

 private:
  [[gnu::noinline]] void add_kept(std::uint32_t keep, Index i, B score, B error) {
    const auto sound = (xsimd::abs(score) <= B(limit)) & (error <= B(limit));
    const B infinity(std::numeric_limits<float>::infinity()), none(-std::numeric_limits<float>::infinity());
    const auto first = static_cast<std::int32_t>(i);
    compress_indexed<float, A>(keep, B(xsimd::select(sound, B(score - error), none)), first, block_ + in_block_, index_ + size_);
    const Index count = compress_indexed<float, A>(keep, B(xsimd::select(sound, B(score + error), infinity)), first,
                                                   upper_ + size_, index_ + size_);
    size_ += count;
    in_block_ += count;
    if (in_block_ >= block_size_) close(block_size_ / 8);
  }

  // The threshold may rise.
  void close(Index more) {
    lower_.add(block_, in_block_, size_ - in_block_);
    lower_.tighten(more);
    in_block_ = 0;
    raise();
  }

  // A row exactly at the k-th best must stay, whether or not the selection would still take its equal.
  void raise() {
    const float bound = lower_.threshold();
    if (bound != bound_) bound_ = bound, threshold_ = std::nextafter(bound, -std::numeric_limits<float>::infinity());
  }

  TopK<float, A> lower_;
  float bound_ = -std::numeric_limits<float>::infinity(), threshold_ = bound_;
  float* upper_ = nullptr;
  std::int32_t* index_ = nullptr;
  float* block_ = nullptr;
  Index size_ = 0, in_block_ = 0, block_size_;  // rows between two looks at the threshold
};

/// Writes the selection and fills the places left.
template <class T, class A>
Index finish_selection(TopK<T, A>& best, VectorView<std::int32_t> indices, VectorView<T> scores) {
  const Index count = best.finish(scores.empty() ? nullptr : scores.data(), indices.data());
  for (Index i = count; i < indices.size(); ++i) {
    indices[i] = -1;
    if (!scores.empty()) scores[i] = -std::numeric_limits<T>::infinity();
  }
  return count;
}

/// The best of all rows, or of those that are named, by their exact scores, which pass through scratch in blocks.
template <class T, class A, class Source>
Index select_rows(const T* query, const Source& x, VectorView<const std::int32_t> names, bool all,
                  VectorView<std::int32_t> indices, VectorView<T> scores, Workspace& ws) {
  const auto mark = ws.mark();
  const Index count = all ? x.count : names.size();
  TopK<T, A> best(indices.size() < count ? indices.size() : count, Order::descending, ws);
  T* block = ws.take<T>(scan_block);
  const auto scan = [&](const auto& at, const auto& add) RECOPS_LAMBDA_INLINE {
    score_tiles<tile_dots, T, A>(query, 1, 0, x, count, at,
                                 [&](Index, Index i, Index height, Batch<T, A> dots, Batch<T, A>) RECOPS_LAMBDA_INLINE {
                                   const Index first = i / scan_block * scan_block, end = i + height;
                                   dots.store_aligned(block + (i - first));
                                   if (end % scan_block == 0 || end == count) add(first, end - first);
                                 });
  };
  if (indices.empty()) return 0;
  if (!all) {
    const std::int32_t* name = names.data();
    scan([name](Index i) RECOPS_LAMBDA_INLINE { return Index{name[i]}; },
         [&](Index first, Index height) { best.add(block, name + first, height); });
  } else if (x.far()) {
    const InStreams<T, A> at(count);
    auto* const name = ws.take<std::int32_t>(scan_block);
    scan(at, [&](Index first, Index height) {
      for (Index i = 0; i < height; ++i) name[i] = static_cast<std::int32_t>(at(first + i));
      best.add(block, name, height);
    });
  } else {
    scan(InOrder{}, [&](Index first, Index height) { best.add(block, height, first); });
  }
  return finish_selection(best, indices, scores);
}

/// Checks what both kinds of selection are given.
template <class T>
void check_selection(const char* operation, VectorView<const T> query, Index rows, VectorView<std::int32_t> indices,
                     VectorView<T> scores) {
  check_size(operation, "query", query, any_size);
  check_option(operation, "rows", rows < Index{1} << 31, "fewer than 2^31 rows", static_cast<double>(rows));
  check_size(operation, "indices", indices, any_size);
  if (!scores.empty()) check_size(operation, "scores", scores, indices.size());
}

/// Whether reading a copy first can pay.
inline bool worth_a_copy(Index k, Index rows) { return k > 0 && rows >= 1024 && 4 * k < rows; }

/// Scans the copy with `scan(survivors)`, in the order `at`, then scores what is left by its floats.
template <class A, class At, class Scan>
CertifiedSelection certify(VectorView<const float> query, MatrixView<const float> rows, const At& at,
                           VectorView<std::int32_t> indices, VectorView<float> scores, Workspace& ws, const Scan& scan) {
  Survivors<A> survivors(indices.size(), rows.rows(), ws);
  scan(survivors);
  survivors.finish(at);
  const auto left = survivors.rows();
  const Index count = select_rows<float, A>(query.data(), PlainRows<float>(rows), left, /*all=*/false, indices, scores, ws);
  return {count, left.size()};
}

}  // namespace detail

/// The k rows with the largest <query, row>, by scanning them: indices [k] and scores [k] (or empty), best first. Returns their
/// number, min(k, L). Rows in any format, scored as `dot_rows` scores them.
template <Real T, class A = DefaultArch, StoredRows X>
Index scan_top_k(VectorView<const T> query, const X& rows, VectorView<std::int32_t> indices, VectorView<T> scores,
                 Workspace& ws) {
  check_size("scan_top_k", "query", query, any_size);
  detail::check_rows("scan_top_k", rows, query.size());
  const auto x = detail::stored_rows(rows);
  detail::check_selection("scan_top_k", query, x.count, indices, scores);
  return detail::select_rows<T, A>(query.data(), x, {}, /*all=*/true, indices, scores, ws);
}

/// What `scan_top_k` gives for `rows`, to the bit, by way of `copy`, the same rows quantised by `quantize_rows` with any blocks.
template <class A = DefaultArch>
CertifiedSelection certified_top_k(VectorView<const float> query, MatrixView<const float> rows, const QuantizedView& copy,
                                   VectorView<std::int32_t> indices, VectorView<float> scores, Workspace& ws) {
  using B = Batch<float, A>;
  constexpr const char* operation = "certified_top_k";
  detail::check_selection(operation, query, rows.rows(), indices, scores);
  check_shape(operation, "rows", rows, any_size, query.size());
  check_quantized(operation, "copy", copy, rows.rows(), rows.cols());
  const Index cols = rows.cols();
  if (!detail::worth_a_copy(indices.size(), rows.rows()))
    return {scan_top_k<float, A>(query, rows, indices, scores, ws), rows.rows()};
  const auto mark = ws.mark();
  const detail::CodeRows x(copy);
  const float* q = query.data();
  const double absolute = detail::sums_of(q, cols).absolute;
  const B rest(detail::at_least(detail::underflow(cols, absolute)));
  const detail::InOrder in_order;  // of indices: `int_products` reads streams of whole tiles
  return detail::certify<A>(query, rows, in_order, indices, scores, ws, [&](detail::Survivors<A>& survivors) {
    if (x.blocks == 1) {
      auto* codes = ws.take<std::int16_t>(query_codes_size(cols));
      const QuantizedQuery words = quantize_query(q, cols, codes);
      double lost = 0;
      for (Index d = 0; d < cols; ++d)
        lost += std::abs(static_cast<double>(q[d]) - static_cast<double>(words.scale) * static_cast<double>(codes[d]));
      const B per_scale(detail::at_least(detail::code_error(q, cols, cols, lost)));
      detail::int_products<A>(words, x, [&](Index i, Index height, B products) RECOPS_LAMBDA_INLINE {
        const B scale = detail::row_scales<float, A>(x, i, height, in_order);
        survivors.add(i, height, scale * products, mul_add(scale, per_scale, rest));
      });
    } else {
      auto* per_scale = ws.take<float>(x.blocks);
      for (Index b = 0; b < x.blocks; ++b) {
        const Index first = b * x.width, width = cols - first < x.width ? cols - first : x.width;
        per_scale[b] = detail::at_least(detail::code_error(q + first, width, cols, 0));
      }
      // Not `InOrder`: the tiles that want one scale a row need not be compiled once more.
      const auto at = [](Index i) RECOPS_LAMBDA_INLINE { return i; };
      detail::score_tiles<detail::tile_dots, float, A>(q, 1, 0, x, x.count, at,
                                                       [&](Index, Index i, Index height, B dots, B) RECOPS_LAMBDA_INLINE {
                                                         alignas(64) float error[lanes<float, A>] = {};
                                                         for (Index r = 0; r < height; ++r) {
                                                           const float* scale = x.scales + (i + r) * x.scale_stride;
                                                           for (Index b = 0; b < x.blocks; ++b)
                                                             error[r] += scale[b] * per_scale[b];
                                                         }
                                                         survivors.add(i, height, dots, B::load_aligned(error) + rest);
                                                       });
    }
  });
}

/// The same by way of `copy`, the rows rounded to BFloat16 or Float16 by `convert`, with `norms` [L] of the float rows by
/// `row_norms`.
template <class A = DefaultArch, class S>
requires(std::is_same_v<std::remove_const_t<S>, BFloat16> || std::is_same_v<std::remove_const_t<S>, Float16>) CertifiedSelection
    certified_top_k(VectorView<const float> query, MatrixView<const float> rows, MatrixView<S> copy,
                    VectorView<const float> norms, VectorView<std::int32_t> indices, VectorView<float> scores, Workspace& ws) {
  using B = Batch<float, A>;
  constexpr const char* operation = "certified_top_k";
  constexpr bool half = std::is_same_v<std::remove_const_t<S>, Float16>;
  detail::check_selection(operation, query, rows.rows(), indices, scores);
  check_shape(operation, "rows", rows, any_size, query.size());
  check_shape(operation, "copy", copy, rows.rows(), rows.cols());
  check_size(operation, "norms", norms, rows.rows());
  const Index cols = rows.cols();
  if (!detail::worth_a_copy(indices.size(), rows.rows()))
    return {scan_top_k<float, A>(query, rows, indices, scores, ws), rows.rows()};
  const auto mark = ws.mark();
  const auto x = detail::stored_rows(copy);
  const detail::RoundedError error = detail::rounded_error(detail::sums_of(query.data(), cols), cols, half);
  const B per_norm(error.per_norm), rest(error.rest);
  const auto pass = [&](const auto& at) {
    return detail::certify<A>(query, rows, at, indices, scores, ws, [&](detail::Survivors<A>& survivors) {
      detail::score_tiles<detail::tile_dots, float, A>(
          query.data(), 1, 0, x, x.count, at, [&](Index, Index i, Index height, B dots, B) RECOPS_LAMBDA_INLINE {
            survivors.add(i, height, dots,
                          mul_add(detail::beside_rows<float, A>(norms.data(), 1, i, height, at), per_norm, rest));
          });
    });
  };
  return x.far() ? pass(detail::InStreams<float, A>(x.count)) : pass(detail::InOrder{});
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
