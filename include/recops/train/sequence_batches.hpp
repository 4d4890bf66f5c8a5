/// @file   recops/train/sequence_batches.hpp
/// @brief  Which sequences go into which batch: shuffled by counter, bucketed by length.
#pragma once
#include <algorithm>
#include <recops/core/matrix.hpp>
#include <recops/core/random.hpp>

namespace recops {

/// Options of `SequenceBatches`.
struct SequenceBatchesOptions {
  Index batch_size = 256;  ///< sequences in a batch, at most
  Index max_rows = 0;      ///< rows of all its sequences together, at most (a longer sequence is a batch of its own); 0: any
  Index bucket = 50;  ///< that many batches' worth of shuffled sequences are sorted by length before they are cut; 0: no buckets
  bool shuffle = true;  ///< false: the order given, in every epoch
  std::uint64_t seed = 1;
};

inline namespace RECOPS_ABI {

/// Cuts a data set of jagged sequences into batches. The batches of an epoch are a function of (lengths, options, epoch) alone: to
/// resume, begin the epoch again and go on with the batch that comes next. Every sequence is in one batch of an epoch, empty ones too.
/// O(n log n) an epoch; allocates nothing after the first.
class SequenceBatches {
 public:
  /// `lengths [n]`, rows of every sequence, are copied. Throws `Error` for negative lengths and options out of range.
  explicit SequenceBatches(IndexView lengths, const SequenceBatchesOptions& options = {}) : options_(options) {
    constexpr const char* name = "SequenceBatches";
    detail::check_not_null(name, "lengths", lengths);
    check_option(name, "batch_size", options.batch_size >= 1, "batch_size >= 1", static_cast<double>(options.batch_size));
    check_option(name, "max_rows", options.max_rows >= 0, "max_rows >= 0", static_cast<double>(options.max_rows));
    check_option(name, "bucket", options.bucket >= 0, "bucket >= 0", static_cast<double>(options.bucket));
    for (Index i = 0; i < lengths.size(); ++i) {
      if (lengths[i] < 0) [[unlikely]]
        detail::fail_at(name, "lengths", "lengths >= 0", -1, i, lengths[i]);
      lengths_.push_back(lengths[i]);
    }
    order_.resize(lengths_.size());
    if (options.bucket > 0) rank_.resize(lengths_.size());
    if (options.max_rows > 0)
      batches_.resize(lengths_.size());  // how many there are changes from epoch to epoch: room for the most
    begin_epoch(0);
  }

  /// Makes the batches of epoch `epoch`; views of the last epoch's end here.
  void begin_epoch(std::uint64_t epoch) {
    const Index n = lengths_.size();
    for (Index i = 0; i < n; ++i) order_[i] = i;
    Random random(options_.seed, epoch);
    if (options_.shuffle) permute(order_.data(), n, random);
    if (options_.bucket > 0) {
      const Index pool = options_.bucket > n / options_.batch_size ? n : options_.bucket * options_.batch_size;
      for (Index start = 0; start < n; start += pool) {
        // By length; the shuffled order decides among equals, for which a stable sort would need memory.
        const Index end = std::min(n, start + pool);
        for (Index i = start; i < end; ++i) rank_[i] = {lengths_[order_[i]], i, order_[i]};
        std::sort(rank_.data() + start, rank_.data() + end);
        for (Index i = start; i < end; ++i) order_[i] = rank_[i].sequence;
      }
    }
    cut();
    // Short sequences must not always come first.
    if (options_.shuffle) permute(batches_.data(), batches_.size(), random);
  }

  /// Batches in this epoch.
  Index size() const { return batches_.size(); }
  /// The sequences of batch i: their numbers in `lengths`.
  IndexView operator[](Index i) const {
    const Batch& b = batches_[i];
    return IndexView(order_.data() + b.begin, b.end - b.begin);
  }

 private:
  struct Ranked {
    Index length, position, sequence;
    auto operator<=>(const Ranked&) const = default;
  };
  struct Batch {
    Index begin, end;
  };
  template <class X>
  static void permute(X* x, Index n, Random& random) {
    for (Index i = n - 1; i > 0; --i) std::swap(x[i], x[random.below(i + 1)]);
  }
  void cut() {
    batches_.clear();
    Index begin = 0, rows = 0;
    for (Index i = 0; i < order_.size(); ++i) {
      const Index length = lengths_[order_[i]];
      const bool full =
          i - begin == options_.batch_size || (options_.max_rows > 0 && i > begin && rows + length > options_.max_rows);
      if (full) {
        batches_.push_back({begin, i});
        begin = i;
        rows = 0;
      }
      rows += length;
    }
    if (begin < order_.size()) batches_.push_back({begin, order_.size()});
  }

  SequenceBatchesOptions options_;
  Vector<std::int64_t> lengths_, order_;
  Vector<Ranked> rank_;
  Vector<Batch> batches_;
};

namespace detail {

/// Bounds of the chosen sequences when each keeps at most its last `most` rows (0: all).
inline void gather_offsets(const char* operation, IndexView offsets, Index total, IndexView picks, Index most,
                           Vector<std::int64_t>& out) {
  check_offsets(operation, "offsets", offsets, total);
  check_option(operation, "most", most >= 0, "most >= 0", static_cast<double>(most));
  check_indices(operation, "picks", picks, offsets.size() - 1);
  out.resize(picks.size() + 1);
  out[0] = 0;
  for (Index b = 0; b < picks.size(); ++b) {
    const Index length = offsets[picks[b] + 1] - offsets[picks[b]];
    out[b + 1] = out[b] + (most > 0 && length > most ? most : length);
  }
}

}  // namespace detail

/// Copies the chosen sequences of a data set into one jagged batch: of sequence `picks[b]` the last `most` rows (0: all) go to
/// `out [rows, D]`, the bounds to `out_offsets [B + 1]`. Both are resized and keep their memory. Throws `Error` for offsets that are
/// not and picks that are not there.
template <class T>
void gather_sequences(MatrixView<const T> values, IndexView offsets, IndexView picks, Index most, Matrix<T>& out,
                      Vector<std::int64_t>& out_offsets) {
  check_shape("gather_sequences", "values", values, any_size, any_size);
  detail::gather_offsets("gather_sequences", offsets, values.rows(), picks, most, out_offsets);
  out.resize(out_offsets[picks.size()], values.cols());
  for (Index b = 0; b < picks.size(); ++b) {
    const Index length = out_offsets[b + 1] - out_offsets[b], first = offsets[picks[b] + 1] - length;
    for (Index i = 0; i < length; ++i) std::copy_n(values.row(first + i), values.cols(), out.row(out_offsets[b] + i));
  }
}

/// The same for sequences of ids, `ids [total]`.
inline void gather_sequences(IndexView ids, IndexView offsets, IndexView picks, Index most, Vector<std::int64_t>& out,
                             Vector<std::int64_t>& out_offsets) {
  detail::check_not_null("gather_sequences", "ids", ids);
  detail::gather_offsets("gather_sequences", offsets, ids.size(), picks, most, out_offsets);
  out.resize(out_offsets[picks.size()]);
  for (Index b = 0; b < picks.size(); ++b) {
    const Index length = out_offsets[b + 1] - out_offsets[b], first = offsets[picks[b] + 1] - length;
    for (Index i = 0; i < length; ++i) out[out_offsets[b] + i] = ids[first + i];
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
