/// @file   recops/simd/top_k.hpp
/// @brief  The k best of many scores, in order: of an array, of the rows of a matrix, or of blocks that come one after the other.
///
/// What it selects is the first k of the argsort of all scores (simd/argsort.hpp), exactly:
/// Order       `Order::descending` selects the largest, `Order::ascending` the smallest. Equal scores (-0 and +0 are) rank by the
///             lower index. NaN ranks behind every number, infinities included: it is selected only where numbers run out.
/// Sizes       any k >= 0: k = 0 selects nothing, k >= n all, sorted; the count that was selected is returned. Indices < 2^31.
/// How         scores that beat the k-th best so far (a vector compare each) are appended to a buffer; when that is full, its k
///             best stay. Ordering happens once, at the end.
/// Cost        that of reading the scores, where k is small; at worst (rising scores) about a nanosecond more for each.
///             Scratch for max(4 k, k + 512) scores and indices, where k >= n / 8 that of an argsort. No allocation once it has
///             grown.
#pragma once
#include <recops/simd/argsort.hpp>
#include <recops/simd/compress.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Keeps the k best of the scores it is given, in blocks: for retrieval that never writes all scores, for scans of a catalogue.
///
///     TopK<float> best(100, Order::descending, ws);
///     for (each block) best.add(scores, count, index_of_first);
///     const Index count = best.finish(top_scores, top_indices);
///
/// Scratch comes from `ws` and is held until the caller's mark ends. The result does not depend on how the scores are cut into
/// blocks nor on the order of the blocks (an index must be added once only); blocks in rising order of index are fastest.
template <Real T, class A = DefaultArch>
class TopK {
 public:
  TopK(Index k, Order order, Workspace& ws) : k_(k), order_(order), scratch_(ws) {
    assert(k >= 0 && k <= Index{1} << 26);
    limit_ = 4 * k > k + 512 ? 4 * k : k + 512;
    scores_ = ws.take<T>(limit_ + 2 * group);  // room for a group of which all are appended, and for padding
    indices_ = ws.take<std::int32_t>(limit_ + 2 * group);
  }

  /// Forgets what was added.
  void clear() {
    size_ = next_ = 0;
    in_order_ = true;
    full_ = false;
    set_filter();
  }

  /// Scores of the indices first, first + 1, ..., first + n - 1.
  void add(const T* scores, Index n, Index first = 0) {
    assert(n >= 0 && first >= 0 && first + n <= Index{1} << 31);
    add_block(scores, n, first, nullptr);
  }
  /// Scores of any indices >= 0, e.g. of an inverted list, or the selection of another part of the data.
  void add(const T* scores, const std::int32_t* indices, Index n) {
    assert(n >= 0);
    add_block(scores, n, 0, indices);
  }

  /// Scores that rank behind this one are not selected any more: a block of only such need not be added. The last possible
  /// score while fewer than k numbers are known. It moves now and then, not with every block; `tighten()` makes it exact.
  T threshold() const {
    const T bound = full_ && kth_ == kth_ ? kth_ : -std::numeric_limits<T>::infinity();
    return order_ == Order::descending ? bound : -bound;
  }
  /// Makes `threshold()` the k-th best score so far (or one of the `more` next), where k numbers are known. O(k).
  void tighten(Index more = 0) {
    if (size_ >= k_ && k_ > 0) shrink(more);
  }

  /// Scores (as they came, to the bit) and indices of the selected, best first; either may be null. Returns their number,
  /// min(k, added). More may be added afterwards.
  Index finish(T* scores, std::int32_t* indices) {
    if (size_ > k_) shrink();
    if (!in_order_) order_by_index();
    const auto mark = scratch_.mark();
    detail::visit_ordered<T, A>(scores_, size_, Order::descending, scratch_,
                                [=, this](Index begin, Index count, const std::uint64_t* words) {
                                  for (Index i = 0; i < count; ++i) {
                                    const std::int32_t at = detail::index_of(words[i]);
                                    if (scores != nullptr)
                                      scores[begin + i] = order_ == Order::descending ? scores_[at] : -scores_[at];
                                    if (indices != nullptr) indices[begin + i] = indices_[at];
                                  }
                                });
    return size_;
  }

 private:
  using B = Batch<T, A>;
  using Signed = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  static constexpr Index W = lanes<T, A>, group = 4 * W, ahead = 8192 / static_cast<Index>(sizeof(T));
  static constexpr T infinity = std::numeric_limits<T>::infinity();

  void add_block(const T* scores, Index n, Index first, const std::int32_t* indices) {
    if (k_ == 0 || n == 0) return;
    if (indices != nullptr || first < next_) {
      in_order_ = false;
      set_filter();
    }
    if (indices == nullptr && next_ < first + n) next_ = first + n;
    if (order_ == Order::descending) {
      add_all<false>(scores, n, first, indices);
    } else {
      add_all<true>(scores, n, first, indices);
    }
  }

  // Inside, the largest are selected: `Negate` turns scores around on their way in.
  template <bool Negate>
  [[gnu::noinline]] void add_all(const T* scores, Index n, Index first, const std::int32_t* indices) {
    for (Index i = 0; i < n;) {
      if (filter_) {
        i = add_better<Negate>(scores, i, n, first, indices);
      } else {
        const Index count = n - i < limit_ - size_ ? n - i : limit_ - size_;
        for (Index j = 0; j < count; ++j) scores_[size_ + j] = Negate ? -scores[i + j] : scores[i + j];
        if (indices != nullptr) {
          for (Index j = 0; j < count; ++j) indices_[size_ + j] = indices[i + j];
        } else {
          for (Index j = 0; j < count; ++j) indices_[size_ + j] = static_cast<std::int32_t>(first + i + j);
        }
        size_ += count;
        i += count;
      }
      if (size_ >= limit_) shrink((limit_ - k_) / 4);
    }
  }

  /// Appends the scores from `i` on that are at least the bound; returns where it stopped, for want of room or at the end.
  template <bool Negate>
  Index add_better(const T* scores, Index i, Index n, Index first, const std::int32_t* indices) {
    const B bound(Negate ? -bound_ : bound_);
    const auto better = [bound](B x) RECOPS_LAMBDA_INLINE { return Negate ? x <= bound : x >= bound; };
    Index size = size_;  // a local: the address of the next store must not wait for a member to be stored and loaded
    for (; i + group <= n; i += group) {
      B x[4];
      RECOPS_UNROLL
      for (int u = 0; u < 4; ++u) x[u] = B::load_unaligned(scores + i + u * W);
      // A branch that goes wrong would stop the fetching of what follows.
      RECOPS_UNROLL
      for (int u = 0; u < 4; ++u) __builtin_prefetch(scores + i + ahead + u * W);
      if (!xsimd::any((better(x[0]) | better(x[1])) | (better(x[2]) | better(x[3])))) [[likely]]
        continue;
      const Index begin = size;
      RECOPS_UNROLL
      for (int u = 0; u < 4; ++u) {
        const B v = Negate ? B(x[u] ^ B(T(-0.0))) : x[u];
        size += compress_indexed<T, A>(mask_bits(better(x[u])), v, static_cast<std::int32_t>(first + i + u * W), scores_ + size,
                                       indices_ + size);
      }
      if (indices != nullptr)
        for (Index j = begin; j < size; ++j) indices_[j] = indices[indices_[j]];
      if (size >= limit_) {
        size_ = size;
        return i + group;
      }
    }
    for (; i < n; ++i) {
      const T x = Negate ? -scores[i] : scores[i];
      if (!(x >= bound_)) continue;
      scores_[size] = x;
      indices_[size++] = indices != nullptr ? indices[i] : static_cast<std::int32_t>(first + i);
    }
    size_ = size;
    return n;
  }

  // Integers in the order of the numbers they stand for, and back. What follows infinity is a NaN.
  static Signed rank_of(T x) { return turn(std::bit_cast<Signed>(x + T(0))); }
  static T with_rank(Signed rank) { return std::bit_cast<T>(turn(rank)); }
  static Signed turn(Signed bits) { return bits ^ ((bits >> detail::sign_shift<T>)&std::numeric_limits<Signed>::max()); }

  /// What a score must be at least to be worth keeping. In order of index a score equal to the k-th best comes too late.
  void set_filter() {
    const bool number = kth_ == kth_;
    filter_ = full_ && (number || in_order_);
    bound_ = !number ? -infinity : in_order_ ? with_rank(rank_of(kth_) + 1) : kth_;
  }

  /// How many scores of the buffer are at least `x`; NaN is not.
  Index count_at_least(T x) const {
    constexpr Index most = Index{1} << 20;  // a float counts to 2^24
    const B bound(x), one(T(1)), zero(T(0));
    Index total = 0;
    for (Index i = 0; i < size_;) {
      const Index end = size_ - i < most ? size_ : i + most;
      B count[4] = {zero, zero, zero, zero};
      for (; i < end; i += group) {
        RECOPS_UNROLL
        for (int u = 0; u < 4; ++u) count[u] = count[u] + xsimd::select(B::load_aligned(scores_ + i + u * W) >= bound, one, zero);
      }
      total += static_cast<Index>(sum_lanes((count[0] + count[1]) + (count[2] + count[3])));
    }
    return total;
  }

  /// The largest score of the buffer, or the least that is at least `from`, with the sign turned.
  template <bool Largest>
  T extreme(T from) const {
    const B bound(from), none(-infinity);
    B most[2] = {none, none};
    for (Index i = 0; i < size_; i += 2 * W) {
      RECOPS_UNROLL
      for (int u = 0; u < 2; ++u) {
        const B x = B::load_aligned(scores_ + i + u * W);
        most[u] = xsimd::max(most[u], B(xsimd::select(x >= bound, Largest ? x : B(x ^ B(T(-0.0))), none)));
      }
    }
    return max_lane(B(xsimd::max(most[0], most[1])));
  }

  /// Leaves the k best of the buffer (and up to `more` others that rank next), in the order they are in, and sets the filter for
  /// what may come. Bisects the numbers themselves: counting passes, at the same speed for any data.
  [[gnu::noinline]] void shrink(Index more = 0) {
    for (Index i = size_; i < size_ + group; ++i) scores_[i] = std::numeric_limits<T>::quiet_NaN();
    using U = std::make_unsigned_t<Signed>;
    Signed low = rank_of(full_ && kth_ == kth_ ? kth_ : -infinity);
    Index at_low = count_at_least(with_rank(low)), at_high = 0;  // k or more are at least `low`, fewer at least `high`
    if (at_low < k_) {
      kth_ = std::numeric_limits<T>::quiet_NaN();
      if (!in_order_) order_by_index();
      keep(k_ - at_low);
    } else {
      Signed high = rank_of(extreme<true>(-infinity)) + 1;
      while (at_low > k_ + more && static_cast<U>(high) - static_cast<U>(low) > 1) {
        const auto middle = static_cast<Signed>(static_cast<U>(low) + (static_cast<U>(high) - static_cast<U>(low)) / 2);
        const Index count = count_at_least(with_rank(middle));
        if (count >= k_) {
          low = middle, at_low = count;
        } else {
          high = middle, at_high = count;
        }
      }
      if (at_low <= k_ + more) {  // these stay; the last of them is somewhere between `low` and `high`
        kth_ = -extreme<false>(with_rank(low));
        keep(at_low);
      } else {
        kth_ = with_rank(low);
        if (!in_order_) order_by_index();
        keep(k_ - at_high);
      }
    }
    full_ = true;
    set_filter();
  }

  /// Keeps what ranks before `kth_`, and the first `ties` of what equals it (all numbers and the first NaNs where it is NaN).
  void keep(Index ties) {
    Index kept = 0;
    const bool number = kth_ == kth_;
    const B last(kth_);
    for (Index i = 0; i < size_; i += W) {  // NaN follows
      const B x = B::load_aligned(scores_ + i);
      const std::uint32_t numbers = mask_bits(x == x), nans = ((1u << W) - 1u) & ~numbers;
      const std::uint32_t better = number ? mask_bits(x > last) : numbers;
      std::uint32_t tied = number ? mask_bits(x == last) : nans;
      if (tied != 0) {
        if (i + W > size_) tied &= (1u << (size_ - i)) - 1u;
        while (std::popcount(tied) > ties) tied &= ~std::bit_floor(tied);
        ties -= std::popcount(tied);
      }
      kept += compress_pairs<T, A>(better | tied, x, indices_ + i, scores_ + kept, indices_ + kept);
    }
    size_ = kept;
  }

  [[gnu::noinline]] void order_by_index() {
    const auto mark = scratch_.mark();
    std::uint64_t* const words = scratch_.take<std::uint64_t>(size_);
    T* const scores = scratch_.take<T>(size_);
    for (Index i = 0; i < size_; ++i) words[i] = static_cast<std::uint64_t>(indices_[i]) << 32 | static_cast<std::uint64_t>(i);
    const std::uint64_t* const sorted = sort_words<A>(words, scratch_.take<std::uint64_t>(size_), size_);
    std::copy_n(scores_, size_, scores);
    for (Index i = 0; i < size_; ++i) {
      scores_[i] = scores[detail::index_of(sorted[i])];
      indices_[i] = static_cast<std::int32_t>(sorted[i] >> 32);
    }
  }

  Index k_, limit_ = 0, size_ = 0, next_ = 0;  // `next_` is one past the highest index so far
  Order order_;
  bool in_order_ = true, full_ = false, filter_ = false;
  T kth_ = T(0), bound_ = T(0);
  T* scores_ = nullptr;  // in the order they came, and their indices
  std::int32_t* indices_ = nullptr;
  Workspace& scratch_;
};

/// The k best of `n` scores, best first, and their indices, [k] each; either may be null. Returns their number, min(k, n); what
/// lies behind them is not touched.
template <Real T, class A = DefaultArch>
Index top_k(const T* scores, Index n, Index k, Order order, T* top, std::int32_t* indices, Workspace& ws) {
  const auto mark = ws.mark();
  if (k < n / 8) {
    TopK<T, A> best(k, order, ws);
    best.add(scores, n);
    return best.finish(top, indices);
  }
  const Index most = k < n ? k : n;
  detail::visit_ordered<T, A>(scores, n, order, ws, [=](Index begin, Index count, const std::uint64_t* words) {
    for (Index i = 0; i < count && begin + i < most; ++i) {
      const std::int32_t at = detail::index_of(words[i]);
      if (top != nullptr) top[begin + i] = scores[at];
      if (indices != nullptr) indices[begin + i] = at;
    }
  });
  return most;
}

/// The k best of each row of `scores` [B, N], best first: top [B, k] and indices [B, k], rows on the caller's threads. Either may
/// be an empty view. Where k > N the places from N on get index -1 and the last possible score. Returns min(k, N).
template <Real T, class A = DefaultArch>
Index top_k_rows(MatrixView<const T> scores, Index k, Order order, MatrixView<T> top, MatrixView<std::int32_t> indices,
                 Workspace& ws) {
  const Index n = scores.cols(), count = k < n ? k : n;
  assert(top.empty() || (top.rows() == scores.rows() && top.cols() == k));
  assert(indices.empty() || (indices.rows() == scores.rows() && indices.cols() == k));
  const T last = order == Order::descending ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
  ws.parallel_for(scores.rows(), [&](Index b, Workspace& scratch) {
    T* const to = top.empty() ? nullptr : top.row(b);
    std::int32_t* const at = indices.empty() ? nullptr : indices.row(b);
    top_k<T, A>(scores.row(b), n, k, order, to, at, scratch);
    if (to != nullptr) std::fill(to + count, to + k, last);
    if (at != nullptr) std::fill(at + count, at + k, -1);
  });
  return count;
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
