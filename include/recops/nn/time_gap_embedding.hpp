/// @file   recops/nn/time_gap_embedding.hpp
/// @brief  Embeddings of how long ago a behaviour was, in buckets that widen with the gap.
#pragma once
#include <bit>
#include <limits>
#include <recops/nn/embedding_bag.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Bucket of a gap: 0 for gaps below `unit` (and for negative ones), k for unit 2^(k-1) <= gap < unit 2^k, the last for all that is
/// longer. In whole numbers: the same on every machine. Needs unit >= 1 and buckets >= 1.
constexpr Index time_gap_bucket(std::int64_t gap, std::int64_t unit, Index buckets) {
  const std::int64_t units = gap > 0 ? gap / unit : 0;
  const auto bucket = static_cast<Index>(std::bit_width(static_cast<std::uint64_t>(units)));
  return bucket < buckets ? bucket : buckets - 1;
}

/// One embedding per bucket of the gap between a request and each behaviour of its sequence. Behaviours keep their times; the bucket
/// is found when it is needed, so that a cached history serves requests at any time.
template <class T>
struct TimeGapEmbedding {
  Table<T> weight;         ///< [buckets, D]
  std::int64_t unit = 60;  ///< what the first bucket spans, in the units of the times

  TimeGapEmbedding() = default;
  /// Normal with the given standard deviation. Throws `Error` unless `buckets` and `first` (the first bucket's span) are positive.
  TimeGapEmbedding(Index buckets, Index width, std::int64_t first, double deviation, Random& random) : unit(first) {
    check_option("TimeGapEmbedding", "buckets", buckets >= 1, "one bucket or more", static_cast<double>(buckets));
    check_option("TimeGapEmbedding", "unit", first >= 1, "unit >= 1", static_cast<double>(first));
    weight.values.resize(buckets, checked_size("TimeGapEmbedding", "width", width));
    for (T& w : leaf_values(weight)) w = static_cast<T>(deviation * random.normal());
  }

  static constexpr auto fields() { return std::tuple{parameter("weight", &TimeGapEmbedding::weight)}; }

  /// y `[total, D]`: row i is the embedding of now_b - times_i, b the sequence that `offsets [B + 1]` put i in; `times [total]`,
  /// `now [B]` in one unit. Throws `Error` for sizes that disagree.
  void forward(IndexView times, IndexView offsets, IndexView now, MatrixView<T> y, Workspace& ws) const {
    const auto mark = ws.mark();
    const VectorView<std::int64_t> buckets = find("TimeGapEmbedding", times, offsets, now, ws);
    embedding_bag<T>(weight.values, buckets, {}, {}, y);
  }
  /// Adds to `gradient.weight`.
  void backward(IndexView times, IndexView offsets, IndexView now, MatrixView<const T> dy, TimeGapEmbedding& gradient,
                Workspace& ws) const {
    const auto mark = ws.mark();
    const VectorView<std::int64_t> buckets = find("TimeGapEmbedding::backward", times, offsets, now, ws);
    embedding_bag_backward<T>(weight.values.rows(), buckets, {}, {}, dy, gradient.weight, ws);
  }

 private:
  /// to - from, INT64_MAX where it is more: a time may be anything, such as the least number for one that is not known.
  static std::int64_t gap(std::int64_t from, std::int64_t to) {
    if (to <= from) return 0;
    const std::uint64_t wide = static_cast<std::uint64_t>(to) - static_cast<std::uint64_t>(from);
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    return wide > static_cast<std::uint64_t>(most) ? most : static_cast<std::int64_t>(wide);
  }
  VectorView<std::int64_t> find(const char* name, IndexView times, IndexView offsets, IndexView now, Workspace& ws) const {
    detail::check_not_null(name, "times", times);
    detail::check_not_null(name, "now", now);
    check_offsets(name, "offsets", offsets, times.size());
    if (now.size() != offsets.size() - 1) detail::fail_size(name, "now", offsets.size() - 1, now.size(), false);
    check_option(name, "weight rows", weight.values.rows() >= 1, "one bucket or more", 0);
    check_option(name, "unit", unit >= 1, "unit >= 1", static_cast<double>(unit));
    const VectorView<std::int64_t> buckets(ws.take<std::int64_t>(times.size()), times.size());
    for (Index b = 0; b < now.size(); ++b)
      for (Index i = offsets[b]; i < offsets[b + 1]; ++i)
        buckets[i] = time_gap_bucket(gap(times[i], now[b]), unit, weight.values.rows());
    return buckets;
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
