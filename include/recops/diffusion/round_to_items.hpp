/// @file   recops/diffusion/round_to_items.hpp
/// @brief  From generated vectors to items: the k items of the catalogue that each vector is nearest to, without those already seen.
///
///     inner_product   s_j = <x, e_j>          cosine   s_j = <x, e_j> / (|x| |e_j|)          l2   s_j = <x, e_j> - |e_j|^2 / 2
///
/// Several vectors of one request (samples of a diffusion model, interests of a user) make one list: an item's score is the largest
/// of theirs.
///
/// Shapes      x [B S, D], the S vectors of request b in rows b S on   items [I, D]   indices [B, k]   scores [B, k] or empty
/// Order       largest score first, equal scores by the lower index, NaN behind every number. l2 is the order of rising distance.
/// Edge cases  Places for which there is no item left hold index -1 and score -infinity. A vector with a NaN gets NaN scores, and its
///             request alone. Vectors and items no longer than 1e-10 (double: 1e-12) have the cosine 0, those whose sum of squares
///             overflows (float: longer than 1.8e19) NaN. S and B may be 0 or more, k may exceed I.
/// Exactness   The result is that of scoring every item in T, to the bit, with or without a copy, in any batch, on any number of
///             threads. A copy must have been made from these items.
/// Cost        one query reads the catalogue (or its copy) once, at the speed of memory; more share the reading. Items seen by a request
///             make its selection as much longer. Scratch as simd/batched_top_k.hpp.
/// Errors      Error if shapes, offsets or seen items disagree; outputs untouched. I < 2^31.
/// Gradient    none: the choice is discrete. Train with a softmax over items (nn/softmax_cross_entropy.hpp).
/// Reference   Rounding in DreamRec, arXiv 2310.20453, section 3.3, and DiffuRec, arXiv 2304.00686, section 4.4.
#pragma once
#include <algorithm>
#include <recops/simd/batched_top_k.hpp>

namespace recops {

/// How near an item is.
enum class ItemMetric : unsigned char { inner_product, cosine, l2 };

/// What is kept beside the items of an `ItemTable`, so that less has to be read. Needs float.
enum class ItemCopy : unsigned char {
  none,
  bfloat16,  ///< half the bytes
  int8,      ///< a quarter
};

/// Options of `ItemTable`.
struct ItemTableOptions {
  ItemMetric metric = ItemMetric::inner_product;
  ItemCopy copy = ItemCopy::none;
};

/// Options of `round_to_items`.
struct RoundToItemsOptions {
  IndexView seen = {};          ///< items that are left out, request by request; repeats are legal
  IndexView seen_offsets = {};  ///< [B + 1]; empty: nothing is left out
  Index samples = 1;            ///< S >= 1, vectors of each request
};

inline namespace RECOPS_ABI {

namespace detail {

/// What is searched: items as they are multiplied, and a copy of them or none.
template <class T>
struct ItemRows {
  MatrixView<const T> items = {};
  QuantizedView codes = {};
  MatrixView<const BFloat16> bfloats = {};
  VectorView<const float> norms = {};
};

/// Queries that share a pass over the items.
inline constexpr Index rounding_group = 16;
/// Up to so many queries a copy pays: beyond, arithmetic takes longer than memory, and codes take more of it (on AVX2 a query costs 0.51
/// by int8 and 0.70 by BFloat16 where floats cost 0.45; reading them takes 0.34, 0.66 and 1.6). The result is the same.
inline constexpr Index most_by_int8 = 3, most_by_bfloat16 = 2;

/// A selection from some of the items, for some of the queries.
template <class T>
Index select_items(MatrixView<const T> x, const ItemRows<T>& rows, Index begin, Index count, VectorView<const Index> wanted,
                   MatrixView<std::int32_t> indices, MatrixView<T> scores, Workspace& ws) {
  const MatrixView<const T> items = rows.items.middle_rows(begin, count);
  if constexpr (std::is_same_v<T, float>) {
    if (!rows.codes.codes.empty() && x.rows() <= most_by_int8)
      return simd::certified_top_k(x, items, rows.codes.middle_rows(begin, count), wanted, indices, scores, ws);
    if (!rows.bfloats.empty() && x.rows() <= most_by_bfloat16)
      return simd::certified_top_k(x, items, rows.bfloats.middle_rows(begin, count), rows.norms.segment(begin, count), wanted,
                                   indices, scores, ws);
  }
  simd::scan_top_k<T>(x, items, wanted, indices, scores, ws);
  return x.rows() * count;
}

/// One item in the race for a request's list.
template <class T>
struct ScoredItem {
  std::int32_t item;
  T score;
};
/// Best first: NaN last, ties by the lower index.
template <class T>
bool ranks_before(const ScoredItem<T>& a, const ScoredItem<T>& b) {
  const auto x = simd::order_key(a.score, Order::descending), y = simd::order_key(b.score, Order::descending);
  return x != y ? x < y : a.item < b.item;
}

template <class T>
Index round_to_items(const char* name, MatrixView<const T> x, const ItemRows<T>& rows, const RoundToItemsOptions& o,
                     MatrixView<std::int32_t> indices, MatrixView<T> scores, Workspace& ws) {
  const Index requests = indices.rows(), k = indices.cols(), samples = o.samples, queries = x.rows(), count = rows.items.rows();
  check_option(name, "samples", samples >= 1, "one vector or more for every request", static_cast<double>(samples));
  check_option(name, "samples", requests == 0 || samples <= std::numeric_limits<Index>::max() / requests,
               "no more vectors than can be counted", static_cast<double>(samples));
  check_shape(name, "x", x, requests * samples, any_size);
  check_option(name, "items", count < Index{1} << 31, "fewer than 2^31 items", static_cast<double>(count));
  check_shape(name, "indices", indices, any_size, any_size);
  if (!scores.empty()) check_shape(name, "scores", scores, requests, k);
  if (!o.seen_offsets.empty()) {
    check_offsets(name, "seen_offsets", o.seen_offsets, o.seen.size());
    if (o.seen_offsets.size() != requests + 1) fail_size(name, "seen_offsets", requests + 1, o.seen_offsets.size(), false);
    check_indices(name, "seen", o.seen, count);
  } else if (!o.seen.empty()) {
    fail(name, "seen_offsets", "offsets [B + 1] where items are seen", "none");
  }
  if (requests == 0 || k == 0) return 0;
  const auto mark = ws.mark();

  // A request's list is among the k + s best of each of its vectors, if s of them may have been seen.
  auto* const seen = ws.take<std::int32_t>(o.seen_offsets.empty() ? 0 : o.seen.size());
  Index* const wanted = ws.take<Index>(queries);
  Index most = k;
  const auto seen_by = [&](Index b) { return o.seen_offsets.empty() ? Index{0} : o.seen_offsets[b + 1] - o.seen_offsets[b]; };
  const auto first_seen = [&](Index b) { return o.seen_offsets.empty() ? seen : seen + o.seen_offsets[b]; };
  for (Index b = 0; b < requests; ++b) {
    const Index n = seen_by(b), enough = k < count - n ? k + n : count;
    for (Index i = 0; i < n; ++i) first_seen(b)[i] = static_cast<std::int32_t>(o.seen[o.seen_offsets[b] + i]);
    std::sort(first_seen(b), first_seen(b) + n);
    std::fill_n(wanted + b * samples, samples, enough);
    most = most < enough ? enough : most;
  }

  // Threads share queries first; where those are few, also parts of the catalogue. The result does not depend on it.
  const Index groups = (queries + rounding_group - 1) / rounding_group, workers = ws.workers();
  Index parts = groups < workers ? (workers + groups - 1) / groups : 1;
  parts = std::max<Index>(1, std::min(parts, count / 16384));
  const MatrixView<std::int32_t> found = ws.matrix<std::int32_t>(queries * parts, most);
  const MatrixView<T> found_scores = ws.matrix<T>(queries * parts, most);
  Index* const read = ws.take<Index>(groups * parts);
  ws.parallel_for(groups * parts, [&](Index task, Workspace& scratch) {
    const Index group = task / parts, part = task % parts;
    const Index first = group * rounding_group, n = std::min(rounding_group, queries - first);
    const Index begin = count * part / parts, height = count * (part + 1) / parts - begin;
    read[task] = select_items<T>(x.middle_rows(first, n), rows, begin, height, VectorView<const Index>(wanted + first, n),
                                 found.middle_rows(part * queries + first, n),
                                 found_scores.middle_rows(part * queries + first, n), scratch);
    for (Index q = first; q < first + n && begin > 0; ++q)
      for (Index i = 0; i < wanted[q]; ++i)
        if (std::int32_t& item = found(part * queries + q, i); item >= 0) item += static_cast<std::int32_t>(begin);
  });

  ws.parallel_for(requests, [&](Index b, Workspace& scratch) {
    const auto inner = scratch.mark();
    const std::int32_t *const s = first_seen(b), *const s_end = s + seen_by(b);
    const Index lists = samples * parts;
    auto* const race = scratch.take<ScoredItem<T>>(lists * most);
    Index n = 0;
    for (Index part = 0; part < parts; ++part) {
      for (Index q = b * samples; q < (b + 1) * samples; ++q) {
        for (Index i = 0; i < wanted[q]; ++i) {
          const std::int32_t item = found(part * queries + q, i);
          if (item < 0) break;
          if (!std::binary_search(s, s_end, item)) race[n++] = {item, found_scores(part * queries + q, i)};
        }
      }
    }
    if (lists > 1) {
      if (samples > 1) {  // the best score of each item
        std::sort(race, race + n, [](const ScoredItem<T>& p, const ScoredItem<T>& q) {
          return p.item != q.item ? p.item < q.item : ranks_before(p, q);
        });
        n = std::unique(race, race + n, [](const auto& p, const auto& q) { return p.item == q.item; }) - race;
      }
      std::sort(race, race + n, ranks_before<T>);
    }
    for (Index i = 0; i < k; ++i) {
      indices(b, i) = i < n ? race[i].item : -1;
      if (!scores.empty()) scores(b, i) = i < n ? race[i].score : -std::numeric_limits<T>::infinity();
    }
  });
  Index rescored = 0;
  for (Index i = 0; i < groups * parts; ++i) rescored += read[i];
  return rescored;
}

}  // namespace detail

/// The catalogue as it is searched: the items (scaled to unit length, or with |e|^2 beside them, as the metric needs it) and a small
/// copy. Owns its numbers. Make a new one when the items change; `const` calls are safe from many threads.
template <Real T>
class ItemTable {
 public:
  ItemTable() = default;
  /// From items `[I, D]`. Throws `Error` for a copy of doubles.
  explicit ItemTable(MatrixView<const T> items, const ItemTableOptions& options = {}) : options_(options), cols_(items.cols()) {
    constexpr const char* name = "ItemTable";
    check_shape(name, "items", items, any_size, any_size);
    check_option(name, "copy", options.copy == ItemCopy::none || std::is_same_v<T, float>, "no copy of doubles",
                 static_cast<double>(static_cast<int>(options.copy)));
    const Index rows = items.rows();
    // Eight or more columns at once: the column with the squared length stands in a vector of its own.
    const Index width = options.metric == ItemMetric::l2 ? (cols_ + 1 + 15) / 16 * 16 : cols_;
    items_.resize(rows, width);
    for (Index i = 0; i < rows; ++i) {
      const T* const e = items.row(i);
      T* const to = items_.row(i);
      std::fill_n(to, width, T(0));
      std::copy_n(e, cols_, to);
      if (options.metric == ItemMetric::cosine) to_unit(to);
      if (options.metric == ItemMetric::l2) to[cols_] = -simd::dot(e, e, cols_) / T(2);
    }
    if constexpr (std::is_same_v<T, float>) {
      if (options.copy == ItemCopy::int8) codes_.assign(items_.view());
      if (options.copy == ItemCopy::bfloat16) {
        bfloats_.resize(rows, width);
        simd::convert(items_.data(), bfloats_.data(), rows * width);
        norms_.resize(rows);
        simd::row_norms<float>(items_.view(), norms_);
      }
    }
  }
  /// I
  Index size() const { return items_.rows(); }
  /// D
  Index cols() const { return cols_; }
  const ItemTableOptions& options() const { return options_; }

  /// See `round_to_items`.
  Index round(MatrixView<const T> x, const RoundToItemsOptions& o, MatrixView<std::int32_t> indices, MatrixView<T> scores,
              Workspace& ws) const {
    constexpr const char* name = "round_to_items";
    check_shape(name, "x", x, any_size, cols_);
    detail::ItemRows<T> rows{.items = items_};
    if constexpr (std::is_same_v<T, float>) {
      if (options_.copy == ItemCopy::int8) rows.codes = codes_.view();
      rows.bfloats = bfloats_;
      rows.norms = norms_;
    }
    if (options_.metric == ItemMetric::inner_product) return detail::round_to_items<T>(name, x, rows, o, indices, scores, ws);
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(x.rows(), items_.cols());
    for (Index i = 0; i < x.rows(); ++i) {
      std::fill_n(q.row(i), q.cols(), T(0));
      std::copy_n(x.row(i), cols_, q.row(i));
      if (options_.metric == ItemMetric::cosine) {
        to_unit(q.row(i));
      } else {
        q(i, cols_) = T(1);
      }
    }
    return detail::round_to_items<T>(name, q, rows, o, indices, scores, ws);
  }

 private:
  void to_unit(T* x) const {
    const T square = simd::dot(x, x, cols_), least = std::is_same_v<T, float> ? T(1e-20) : T(1e-24);
    const bool finite = square <= std::numeric_limits<T>::max();
    simd::scale(!finite ? std::numeric_limits<T>::quiet_NaN() : square <= least ? T(0) : T(1) / std::sqrt(square), x, x, cols_);
  }

  ItemTableOptions options_;
  Index cols_ = 0;
  Matrix<T> items_;
  QuantizedRows codes_;
  Matrix<BFloat16> bfloats_;
  Vector<float> norms_;
};

/// The k best items of each request: indices `[B, k]`, scores `[B, k]` or empty, from vectors x `[B S, D]`. Returns how many items were
/// scored in T, B S I without a copy: with one, far more than a few k for each vector says that the copy does not pay.
template <Real T>
Index round_to_items(MatrixView<const T> x, const ItemTable<T>& items, const RoundToItemsOptions& options,
                     MatrixView<std::int32_t> indices, MatrixView<T> scores, Workspace& ws) {
  return items.round(x, options, indices, scores, ws);
}

/// The same by inner product with items `[I, D]` as they lie in memory.
template <Real T>
Index round_to_items(MatrixView<const T> x, MatrixView<const T> items, const RoundToItemsOptions& options,
                     MatrixView<std::int32_t> indices, MatrixView<T> scores, Workspace& ws) {
  check_shape("round_to_items", "items", items, any_size, any_size);
  check_shape("round_to_items", "x", x, any_size, items.cols());
  return detail::round_to_items<T>("round_to_items", x, {.items = items}, options, indices, scores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
