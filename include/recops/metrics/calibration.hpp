/// @file   recops/metrics/calibration.hpp
/// @brief  Whether predicted probabilities mean what they say: PCOC (predicted clicks over clicks) and calibration error by bins.
///
///     PCOC = Σ w_i p_i / Σ w_i y_i            ECE = Σ_b (n_b / n) |mean p in bin b - mean y in bin b|
///
/// Shapes      probabilities, labels, weights [n]
/// Edge cases  no clicks: PCOC is not valid (and not infinite).  Empty bins count nothing.  No entries: not valid.
///             Equal-width bins are [b/B, (b+1)/B), the last closed; equal-mass bins hold n/B entries each, and equal
///             probabilities that a border would part are shared out as their mean.
/// NaN         a NaN makes the value NaN and `valid` false.
/// Precision   `Pcoc` and `CalibrationBins` count in 64-bit integers and sum in two doubles; `calibration_error` in plain doubles.
/// Cost        O(n); equal-mass bins sort, scratch 24 n bytes (float) or 28 n (double).
/// Errors      Error if sizes differ, a label is neither 0 nor 1, a probability lies outside [0, 1], a weight is negative or not
///             finite, or there is no bin.
/// Reference   Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (ECE); Naeini et al., AAAI 2015.
#pragma once
#include <cmath>
#include <recops/metrics/log_loss.hpp>
#include <recops/metrics/ranked.hpp>

namespace recops {

struct PcocResult {
  double value = 0;  ///< 1 is calibrated, above 1 too optimistic; 0 where undefined
  bool valid = false;
  double predicted = 0;  ///< Σ w p
  double observed = 0;   ///< Σ w y
};

/// How probabilities are put into bins.
enum class Binning {
  equal_width,  ///< the usual definition; low click rates all fall into the first bins
  equal_mass,   ///< the same number of entries in each: what to use for click rates
};

struct CalibrationOptions {
  Index bins = 15;  ///< >= 1
  Binning binning = Binning::equal_width;
};

struct CalibrationResult {
  double value = 0;  ///< expected calibration error (ECE), in [0, 1]
  bool valid = false;
  double largest = 0;  ///< the largest error of any bin that holds something (MCE)
  Index used_bins = 0;
};

/// One bar of a reliability diagram.
struct CalibrationBin {
  Index count = 0;
  double mean_prediction = 0;  ///< 0 for an empty bin
  double mean_label = 0;
};

inline namespace RECOPS_ABI {

/// PCOC as sums: add batches, merge shards, ask for the result. Keep one per segment for a grouped PCOC.
class Pcoc {
 public:
  /// Probabilities `[n]` in [0, 1], labels `[n]` of 0 or 1, weights `[n]` or empty.
  template <Real T>
  void add(VectorView<const T> probabilities, VectorView<const std::uint8_t> labels, VectorView<const T> weights = {}) {
    detail::check_probabilities("Pcoc::add", probabilities);
    check_size("Pcoc::add", "labels", labels, probabilities.size());
    detail::check_binary("Pcoc::add", "labels", labels);
    detail::check_weights("Pcoc::add", weights, probabilities.size());
    for (Index i = 0; i < probabilities.size(); ++i) {
      const double w = weights.empty() ? 1.0 : static_cast<double>(weights[i]);
      if (w == 0) continue;
      predicted_.add(w * static_cast<double>(probabilities[i]));
      observed_.add(labels[i] != 0 ? w : 0.0);
    }
  }
  void merge(const Pcoc& other) {
    predicted_.merge(other.predicted_);
    observed_.merge(other.observed_);
  }
  PcocResult result() const {
    PcocResult r;
    r.predicted = predicted_.value();
    r.observed = observed_.value();
    if (r.observed > 0) r.value = r.predicted / r.observed;
    if (r.predicted != r.predicted) r.value = r.predicted;
    r.valid = r.observed > 0 && r.value == r.value;
    return r;
  }

 private:
  MergeableSum predicted_, observed_;
};

/// Predicted over observed clicks.
template <Real T>
PcocResult pcoc(VectorView<const T> probabilities, VectorView<const std::uint8_t> labels, VectorView<const T> weights = {}) {
  Pcoc sums;
  sums.add(probabilities, labels, weights);
  return sums.result();
}

/// A reliability diagram with equal-width bins: add batches, merge shards.
class CalibrationBins {
 public:
  explicit CalibrationBins(Index bins = 15) {
    check_option("CalibrationBins", "bins", bins >= 1, "bins >= 1", static_cast<double>(bins));
    bins_ = Vector<Bin>(bins, Bin{});
  }

  /// Probabilities `[n]` in [0, 1], labels `[n]` of 0 or 1.
  template <Real T>
  void add(VectorView<const T> probabilities, VectorView<const std::uint8_t> labels) {
    detail::check_probabilities("CalibrationBins::add", probabilities);
    check_size("CalibrationBins::add", "labels", labels, probabilities.size());
    detail::check_binary("CalibrationBins::add", "labels", labels);
    for (Index i = 0; i < probabilities.size(); ++i) {
      const double p = static_cast<double>(probabilities[i]);
      if (p != p) {
        nan_ = true;
        continue;
      }
      Bin& bin = bins_[std::min(static_cast<Index>(p * static_cast<double>(bins_.size())), bins_.size() - 1)];
      ++bin.count;
      bin.positives += labels[i];
      bin.predicted.add(p);
    }
  }
  /// Throws Error if the other has another number of bins.
  void merge(const CalibrationBins& other) {
    check_option("CalibrationBins::merge", "bins", other.size() == size(), "the same number of bins",
                 static_cast<double>(other.size()));
    nan_ |= other.nan_;
    for (Index b = 0; b < size(); ++b) {
      bins_[b].count += other.bins_[b].count;
      bins_[b].positives += other.bins_[b].positives;
      bins_[b].predicted.merge(other.bins_[b].predicted);
    }
  }
  Index size() const { return bins_.size(); }
  CalibrationBin operator[](Index b) const {
    const Bin& bin = bins_[b];
    const double n = std::max(1.0, static_cast<double>(bin.count));
    return {bin.count, bin.predicted.value() / n, static_cast<double>(bin.positives) / n};
  }
  CalibrationResult result() const {
    CalibrationResult r;
    Index total = 0;
    double sum = 0;
    for (Index b = 0; b < size(); ++b) {
      const CalibrationBin bin = (*this)[b];
      if (bin.count == 0) continue;
      const double error = std::abs(bin.mean_prediction - bin.mean_label);
      total += bin.count;
      sum += static_cast<double>(bin.count) * error;
      r.largest = std::max(r.largest, error);
      ++r.used_bins;
    }
    if (nan_)
      r.value = std::numeric_limits<double>::quiet_NaN();
    else if (total > 0)
      r.value = sum / static_cast<double>(total);
    r.valid = total > 0 && !nan_;
    return r;
  }

 private:
  struct Bin {
    Index count = 0, positives = 0;
    MergeableSum predicted;
  };
  Vector<Bin> bins_;
  bool nan_ = false;
};

/// Expected calibration error with equal-width or equal-mass bins.
template <Real T>
CalibrationResult calibration_error(VectorView<const T> probabilities, VectorView<const std::uint8_t> labels,
                                    const CalibrationOptions& options, Workspace& ws) {
  detail::check_probabilities("calibration_error", probabilities);
  detail::check_scored("calibration_error", probabilities, labels);
  check_option("calibration_error", "bins", options.bins >= 1, "bins >= 1", static_cast<double>(options.bins));
  CalibrationResult result;
  const Index n = probabilities.size(), bins = options.bins;
  if (n == 0) return result;
  if (detail::has_nan(probabilities)) {
    result.value = std::numeric_limits<double>::quiet_NaN();
    return result;
  }
  const auto mark = ws.mark();
  double total = 0;
  const auto add_bin = [&](double count, double predicted, double positives) {
    if (!(count > 0)) return;
    const double difference = std::abs(predicted - positives);
    total += difference;
    result.largest = std::max(result.largest, difference / count);
    ++result.used_bins;
  };
  if (options.binning == Binning::equal_width) {
    struct Bin {
      double count, predicted, positives;
    };
    Bin* const bin = ws.take<Bin>(bins);
    std::fill_n(bin, bins, Bin{0, 0, 0});
    for (Index i = 0; i < n; ++i) {
      const double p = static_cast<double>(probabilities[i]);
      Bin& b = bin[std::min(static_cast<Index>(p * static_cast<double>(bins)), bins - 1)];
      b.count += 1;
      b.predicted += p;
      b.positives += labels[i];
    }
    for (Index b = 0; b < bins; ++b) add_bin(bin[b].count, bin[b].predicted, bin[b].positives);
  } else {
    const detail::Ranked<T> order = detail::ranked(probabilities, Order::ascending, ws);
    // The end of bin b, floor(n (b + 1) / B), without overflow.
    const auto end_of = [&](Index b) { return n / bins * (b + 1) + n % bins * (b + 1) / bins; };
    Index b = 0, end = end_of(0);
    double count = 0, predicted = 0, positives = 0;
    for (Index first = 0; first < n;) {
      const double p = static_cast<double>(order.score[first]);
      Index last = first, hits = 0;
      for (; last < n && order.score[last] == order.score[first]; ++last) hits += labels[order.index[last]];
      const double rate = static_cast<double>(hits) / static_cast<double>(last - first);
      while (first < last) {
        while (end <= first) {
          add_bin(count, predicted, positives);
          count = predicted = positives = 0;
          end = end_of(++b);
        }
        const auto part = static_cast<double>(std::min(last, end) - first);
        count += part;
        predicted += part * p;
        positives += part * rate;
        first = std::min(last, end);
      }
    }
    add_bin(count, predicted, positives);
  }
  result.value = total / static_cast<double>(n);
  result.valid = true;
  return result;
}

}  // namespace RECOPS_ABI
}  // namespace recops
