/// @file   recops/metrics/log_loss.hpp
/// @brief  Log loss (binary cross-entropy, in nats) and normalised entropy.
///
///     log loss = Σ w_i [ softplus(z_i) - y_i z_i ] / Σ w_i         normalised entropy = log loss / H(Σ w_i y_i / Σ w_i)
///
/// with logits z, or probabilities p = sigmoid(z) and H(q) = -q log q - (1 - q) log(1 - q). A normalised entropy below 1 is
/// better than always predicting the mean click rate; unlike log loss it can be compared across data sets.
///
/// Shapes      logits or probabilities, labels, weights [n]
/// Edge cases  no entries or no weight: `valid` is false.  One class only: no normalised entropy.  An infinitely wrong logit
///             gives an infinite loss; probabilities are clipped to [1e-7, 1 - 1e-7] (float) or [1e-15, 1 - 1e-15] (double).
/// NaN         a NaN makes the value NaN and `valid` false; entries of weight 0 are not read.
/// Precision   prefer logits: a probability rounded to 1 has lost its loss.  Sums in two doubles.
/// Cost        O(n), one exp and one log1p (logits) or one log (probabilities) per entry; no scratch.
/// Errors      Error if sizes differ, a label is neither 0 nor 1, a weight is negative or not finite, or a probability lies
///             outside [0, 1].
/// Reference   He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014 (normalised entropy).
#pragma once
#include <cmath>
#include <recops/metrics/common.hpp>

namespace recops {

struct LogLossResult {
  double value = 0;               ///< nats per unit of weight, >= 0
  bool valid = false;             ///< there was some weight and no NaN
  double normalised_entropy = 0;  ///< value by the entropy of the mean label
  bool normalised_valid = false;  ///< `valid`, and both classes had weight
};

inline namespace RECOPS_ABI {

namespace detail {

/// Refuses a probability outside [0, 1]; NaN passes, it has a meaning of its own. Those of weight 0 (checked weights, or none) are
/// not read.
template <class T>
void check_probabilities(const char* operation, VectorView<const T> probabilities,
                         std::type_identity_t<VectorView<const T>> weights = {}) {
  check_size(operation, "probabilities", probabilities, any_size);
  for (Index i = 0; i < probabilities.size(); ++i) {
    const T p = probabilities[i];
    if ((p < 0 || p > 1) && (weights.empty() || weights[i] != 0)) [[unlikely]]
      fail_number(operation, "probabilities", "0 <= p <= 1", static_cast<double>(p));
  }
}

}  // namespace detail

/// Log loss as sums: add batches, merge shards, ask for the result.
class LogLoss {
 public:
  /// Logits `[n]`, labels `[n]` of 0 or 1, weights `[n]` or empty.
  template <Real T>
  void add_logits(VectorView<const T> logits, VectorView<const std::uint8_t> labels, VectorView<const T> weights = {}) {
    check_size("LogLoss::add_logits", "logits", logits, any_size);
    check(logits.size(), labels, weights, "LogLoss::add_logits");
    add(labels, weights, [&](Index i) {
      const double z = static_cast<double>(logits[i]), x = labels[i] != 0 ? -z : z;
      return (x > 0 ? x : 0.0) + std::log1p(std::exp(-std::abs(x))) + (x != x ? x : 0.0);
    });
  }
  /// Probabilities `[n]` in [0, 1], labels `[n]` of 0 or 1, weights `[n]` or empty.
  template <Real T>
  void add_probabilities(VectorView<const T> probabilities, VectorView<const std::uint8_t> labels,
                         VectorView<const T> weights = {}) {
    check(probabilities.size(), labels, weights, "LogLoss::add_probabilities");
    detail::check_probabilities("LogLoss::add_probabilities", probabilities, weights);
    constexpr double least = sizeof(T) == 4 ? 1e-7 : 1e-15;
    add(labels, weights, [&](Index i) {
      const double p = static_cast<double>(probabilities[i]);
      if (p != p) return p;
      const double clipped = std::min(std::max(p, least), 1 - least);
      return labels[i] != 0 ? -std::log(clipped) : -std::log1p(-clipped);
    });
  }
  void merge(const LogLoss& other) {
    loss_.merge(other.loss_);
    weight_.merge(other.weight_);
    positive_.merge(other.positive_);
  }
  LogLossResult result() const {
    LogLossResult r;
    const double weight = weight_.value(), positive = positive_.value();
    if (!(weight > 0)) return r;
    r.value = loss_.value() / weight;
    r.valid = r.value == r.value;
    const double rate = positive / weight;
    if (!r.valid || !(rate > 0 && rate < 1)) return r;
    r.normalised_entropy = r.value / (-rate * std::log(rate) - (1 - rate) * std::log1p(-rate));
    r.normalised_valid = true;
    return r;
  }

 private:
  template <class T>
  static void check(Index n, VectorView<const std::uint8_t> labels, VectorView<const T> weights, const char* operation) {
    check_size(operation, "labels", labels, n);
    detail::check_binary(operation, "labels", labels);
    detail::check_weights(operation, weights, n);
  }
  template <class T, class F>
  void add(VectorView<const std::uint8_t> labels, VectorView<const T> weights, F&& loss) {
    for (Index i = 0; i < labels.size(); ++i) {
      const double w = weights.empty() ? 1.0 : static_cast<double>(weights[i]);
      if (w == 0) continue;
      loss_.add(w * loss(i));
      weight_.add(w);
      positive_.add(labels[i] != 0 ? w : 0.0);
    }
  }

  MergeableSum loss_, weight_, positive_;
};

/// Log loss of logits.
template <Real T>
LogLossResult log_loss_from_logits(VectorView<const T> logits, VectorView<const std::uint8_t> labels,
                                   VectorView<const T> weights = {}) {
  LogLoss sums;
  sums.add_logits(logits, labels, weights);
  return sums.result();
}

/// Log loss of probabilities.
template <Real T>
LogLossResult log_loss_from_probabilities(VectorView<const T> probabilities, VectorView<const std::uint8_t> labels,
                                          VectorView<const T> weights = {}) {
  LogLoss sums;
  sums.add_probabilities(probabilities, labels, weights);
  return sums.result();
}

}  // namespace RECOPS_ABI
}  // namespace recops
