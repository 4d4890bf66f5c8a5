/// @file   recops/metrics/auc.hpp
/// @brief  Area under the ROC curve: the chance that a positive scores above a negative, a tie counting one half.
///
///     AUC = Σ_{i in P, j in N} w_i w_j ([s_i > s_j] + ½ [s_i = s_j]) / (W_P W_N)
///
/// Shapes      scores, labels, weights [n]
/// Edge cases  one class only, or a class without weight: `valid` is false and the value 0.  Infinities are ordinary scores.
/// NaN         `NanPolicy`; by default the value is NaN and `valid` false.
/// Precision   without weights exact: pairs are counted in 64-bit integers and divided once.  With weights sums are doubles.
/// Cost        O(n) radix passes and a scan; scratch 16 n bytes.
/// Errors      Error if sizes differ, a label is neither 0 nor 1, or a weight is negative or not finite.
/// Reference   Mann and Whitney 1947; Hanley and McNeil 1982.
#pragma once
#include <recops/metrics/ranked.hpp>
#include <recops/simd/argsort.hpp>

namespace recops {

struct AucOptions {
  NanPolicy nan = NanPolicy::invalid;
};

struct AucResult {
  double value = 0;     ///< in [0, 1]; 0 where undefined, NaN where a score was NaN
  bool valid = false;   ///< both classes were present
  Index positives = 0;  ///< entries with label 1 and, where there are weights, a weight above 0
  Index negatives = 0;
};

/// The AUC of a histogram: what is not known is how pairs within one bucket compare.
struct AucEstimate {
  double value = 0;  ///< pairs within a bucket count one half
  bool valid = false;
  double error_bound = 0;  ///< the exact AUC lies within value ± error_bound
};

inline namespace RECOPS_ABI {

namespace detail {

/// Checked input, no NaN unless it ranks lowest.
template <class T>
AucResult auc_of(VectorView<const T> scores, VectorView<const std::uint8_t> labels, NanPolicy nan, Workspace& ws) {
  AucResult result;
  const Index n = scores.size();
  for (const std::uint8_t y : labels) result.positives += y;
  result.negatives = n - result.positives;
  if (nan == NanPolicy::invalid && has_nan(scores)) {
    result.value = std::numeric_limits<double>::quiet_NaN();
    return result;
  }
  if (result.positives == 0 || result.negatives == 0) return result;
  const auto mark = ws.mark();
  const T* const x = without_nan(scores, ws).data();
  const std::uint8_t* const y = labels.data();
  std::uint64_t twice = 0, below = 0;  // twice the pairs won, negatives below
  simd::detail::visit_ordered<T, simd::DefaultArch>(
      x, n, Order::ascending, ws, [&](Index, Index count, const std::uint64_t* words) {
        const auto tied = [=](Index i, Index j) {
          if constexpr (std::is_same_v<T, float>) return words[i] >> 32 == words[j] >> 32;
          return x[simd::detail::index_of(words[i])] == x[simd::detail::index_of(words[j])];
        };
        for (Index a = 0, b; a < count; a = b) {
          std::uint64_t positive = y[simd::detail::index_of(words[a])], size = 1;  // no branch on a label: nobody can predict it
          for (b = a + 1; b < count && tied(a, b); ++b, ++size) positive += y[simd::detail::index_of(words[b])];
          const std::uint64_t negative = size - positive;
          twice += positive * (2 * below + negative);
          below += negative;
        }
      });
  result.value =
      static_cast<double>(twice) / (2.0 * static_cast<double>(result.positives) * static_cast<double>(result.negatives));
  result.valid = true;
  return result;
}

template <class T>
AucResult weighted_auc_of(VectorView<const T> scores, VectorView<const std::uint8_t> labels, VectorView<const T> weights,
                          NanPolicy nan, Workspace& ws) {
  AucResult result;
  const Index n = scores.size();
  T largest = 0;
  for (Index i = 0; i < n; ++i) {
    if (weights[i] > 0) ++(labels[i] != 0 ? result.positives : result.negatives);
    largest = std::max(largest, weights[i]);
  }
  if (nan == NanPolicy::invalid && has_nan(scores)) {
    result.value = std::numeric_limits<double>::quiet_NaN();
    return result;
  }
  if (result.positives == 0 || result.negatives == 0) return result;
  const auto mark = ws.mark();
  const Ranked<T> order = ranked(scores, Order::ascending, ws);
  double won = 0, below = 0, all = 0;
  for (Index a = 0; a < n;) {
    double positive = 0, negative = 0;
    Index b = a;
    for (; b < n && order.score[b] == order.score[a]; ++b) {
      const Index i = order.index[b];
      (labels[i] != 0 ? positive : negative) += static_cast<double>(weights[i]) / static_cast<double>(largest);
    }
    won += positive * (below + 0.5 * negative);
    below += negative;
    all += positive;
    a = b;
  }
  if (!(all > 0 && below > 0)) return result;  // a class whose weights vanish beside those of the other
  result.value = won / (all * below);
  result.valid = true;
  return result;
}

}  // namespace detail

/// AUC with weights (an empty view for none) and options.
template <Real T>
AucResult auc(VectorView<const T> scores, VectorView<const std::uint8_t> labels, VectorView<const T> weights,
              const AucOptions& options, Workspace& ws) {
  detail::check_scored("auc", scores, labels);
  detail::check_weights("auc", weights, scores.size());
  return weights.empty() ? detail::auc_of(scores, labels, options.nan, ws)
                         : detail::weighted_auc_of(scores, labels, weights, options.nan, ws);
}

/// AUC, every entry counting the same.
template <Real T>
AucResult auc(VectorView<const T> scores, VectorView<const std::uint8_t> labels, Workspace& ws) {
  return auc<T>(scores, labels, VectorView<const T>(), AucOptions{}, ws);
}

/// AUC over shards that cannot be brought together: two histograms over the leading bits of the score (a sign, an exponent and
/// the start of the fraction, so that buckets are narrow near 0). Merging is exact; the result carries a rigorous bound.
class AucHistogram {
 public:
  /// 2^bits buckets per class (16 bytes each); 4 <= bits <= 26.
  explicit AucHistogram(int bits = 16) : bits_(bits) {
    check_option("AucHistogram", "bits", bits >= 4 && bits <= 26, "4 <= bits <= 26", bits);
    positives_ = Vector<std::uint64_t>(Index{1} << bits, 0);
    negatives_ = positives_;
  }

  /// Counts scores `[n]` with labels `[n]` of 0 or 1. Doubles are rounded to float first. A NaN makes the result NaN.
  template <Real T>
  void add(VectorView<const T> scores, VectorView<const std::uint8_t> labels) {
    check_size("AucHistogram::add", "scores", scores, any_size);
    check_size("AucHistogram::add", "labels", labels, scores.size());
    detail::check_binary("AucHistogram::add", "labels", labels);
    nan_ |= detail::has_nan(scores);
    for (Index i = 0; i < scores.size(); ++i) {
      const auto bucket = static_cast<Index>(simd::order_key(static_cast<float>(scores[i]), Order::ascending) >> (32 - bits_));
      ++(labels[i] != 0 ? positives_ : negatives_)[bucket];
    }
  }
  /// Adds another shard's counts. Throws Error if it was made with other `bits`.
  void merge(const AucHistogram& other) {
    check_option("AucHistogram::merge", "bits", other.bits_ == bits_, "histograms with the same bits", other.bits_);
    nan_ |= other.nan_;
    for (Index i = 0; i < positives_.size(); ++i) {
      positives_[i] += other.positives_[i];
      negatives_[i] += other.negatives_[i];
    }
  }
  AucEstimate result() const {
    double won = 0, within = 0;
    std::uint64_t below = 0, positives = 0;
    for (Index i = 0; i < positives_.size(); ++i) {
      const double inside = static_cast<double>(positives_[i]) * static_cast<double>(negatives_[i]);
      won += static_cast<double>(positives_[i]) * static_cast<double>(below) + 0.5 * inside;
      within += inside;
      below += negatives_[i];
      positives += positives_[i];
    }
    if (nan_) return {std::numeric_limits<double>::quiet_NaN(), false, 0};
    if (positives == 0 || below == 0) return {};
    const double pairs = static_cast<double>(positives) * static_cast<double>(below);
    return {won / pairs, true, 0.5 * within / pairs};
  }

 private:
  int bits_;
  bool nan_ = false;
  Vector<std::uint64_t> positives_, negatives_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
