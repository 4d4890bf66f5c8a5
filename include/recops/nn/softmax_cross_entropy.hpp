/// @file   recops/nn/softmax_cross_entropy.hpp
/// @brief  Softmax cross-entropy over all classes or over sampled ones, with the correction for how often they are sampled.
///
/// Sampled classes that are popular are seen too often as negatives; subtracting log q, the logarithm of their sampling
/// probability, from their logits undoes it (Bengio and Senecal 2008; for batches of a two-tower model Yi et al., RecSys 2019).
#pragma once
#include <algorithm>
#include <recops/core/workspace.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// Options of `softmax_cross_entropy`; empty views are left out.
template <class T>
struct SoftmaxCrossEntropyOptions {
  VectorView<const T> weights = {};  ///< [B] >= 0; the loss is their weighted mean. 0: the row is not read
  double label_smoothing = 0;        ///< in [0, 1): that share of the target is spread evenly over all classes
  VectorView<const T> log_q = {};    ///< [C], subtracted from the logits
  IndexView ids = {};  ///< [C], what each column stands for: one with the target's id that is not the target is left out
};

/// Options of `sampled_softmax_cross_entropy`; empty views are left out.
template <class T>
struct SampledSoftmaxOptions {
  VectorView<const T> weights = {};         ///< [B] >= 0, as above
  VectorView<const T> log_q_positive = {};  ///< [B], subtracted from the positives' logits
  VectorView<const T> log_q_negative = {};  ///< [N], subtracted from the negatives'
  IndexView positive_ids = {};              ///< [B] and
  IndexView negative_ids = {};              ///< [N]: a negative with its row's positive id is left out (an accidental hit)
};

inline namespace RECOPS_ABI {

namespace detail {

template <class T>
double row_mass(VectorView<const T> weights, Index rows) {
  double mass = weights.empty() ? static_cast<double>(rows) : 0;
  for (const T w : weights) mass += static_cast<double>(w);
  return mass;
}

/// Loss of one row whose corrected logits are `z [n]` (-infinity: left out), of which `target` is right; z becomes the softmax.
/// `smoothing` goes to the `kept` others and itself alike.
template <class T>
double cross_entropy_row(T* z, Index n, Index target, double smoothing, Index kept) {
  const double right = static_cast<double>(z[target]);
  double others = 0;
  if (smoothing > 0) {
    for (Index j = 0; j < n; ++j)
      if (z[j] != -std::numeric_limits<T>::infinity()) others += static_cast<double>(z[j]);
  }
  const auto lse = static_cast<double>(simd::softmax<T>(z, n));
  return lse - (1 - smoothing) * right - (smoothing > 0 ? smoothing * others / static_cast<double>(kept) : 0);
}

template <class T>
double softmax_cross_entropy(const char* name, MatrixView<const T> logits, IndexView targets,
                             const SoftmaxCrossEntropyOptions<T>& o, MatrixView<T> dlogits, Workspace& ws) {
  check_shape(name, "logits", logits, any_size, any_size);
  const Index rows = logits.rows(), classes = logits.cols();
  check_indices(name, "targets", targets, classes);
  if (targets.size() != rows) fail_size(name, "targets", rows, targets.size(), false);
  if (!o.weights.empty()) check_size(name, "weights", o.weights, rows);
  check_option(name, "label_smoothing", 0 <= o.label_smoothing && o.label_smoothing < 1, "0 <= label_smoothing < 1",
               o.label_smoothing);
  if (!o.log_q.empty()) check_size(name, "log_q", o.log_q, classes);
  check_not_null(name, "ids", o.ids);
  if (!o.ids.empty() && o.ids.size() != classes) fail_size(name, "ids", classes, o.ids.size(), false);
  if (!dlogits.empty()) check_shape(name, "dlogits", dlogits, rows, classes);
  const double mass = row_mass(o.weights, rows);
  if (mass == 0) return 0;
  const auto mark = ws.mark();
  T* const z = ws.take<T>(classes);
  auto* const out = ws.take<std::uint8_t>(classes);  // 1: the column is left out
  double total = 0;
  for (Index b = 0; b < rows; ++b) {
    const double w = o.weights.empty() ? 1.0 : static_cast<double>(o.weights[b]);
    if (w == 0) continue;
    const Index target = targets[b];
    std::copy_n(logits.row(b), classes, z);
    if (!o.log_q.empty()) simd::axpy(T(-1), o.log_q.data(), z, classes);
    if (!o.ids.empty()) {
      const Index id = o.ids[target];
      for (Index j = 0; j < classes; ++j)
        if (o.ids[j] == id && j != target) z[j] = -std::numeric_limits<T>::infinity();
    }
    Index kept = classes;  // columns that take part: what the smoothing is spread over
    if (o.label_smoothing > 0) {
      for (Index j = 0; j < classes; ++j) {
        out[j] = z[j] == -std::numeric_limits<T>::infinity();
        kept -= out[j];
      }
    }
    total += w * cross_entropy_row(z, classes, target, o.label_smoothing, kept);
    if (dlogits.empty()) continue;
    T* const d = dlogits.row(b);
    const auto scale = static_cast<T>(w / mass);
    simd::axpy(scale, z, d, classes);
    d[target] -= static_cast<T>((1 - o.label_smoothing) * w / mass);
    if (o.label_smoothing > 0) {
      const auto share = static_cast<T>(o.label_smoothing * w / mass / static_cast<double>(kept));
      for (Index j = 0; j < classes; ++j)
        if (out[j] == 0) d[j] -= share;
    }
  }
  return total / mass;
}

template <class T>
double sampled_softmax_cross_entropy(const char* name, VectorView<const T> positives, MatrixView<const T> negatives,
                                     const SampledSoftmaxOptions<T>& o, VectorView<T> dpositives, MatrixView<T> dnegatives,
                                     Workspace& ws) {
  check_size(name, "positives", positives, any_size);
  const Index rows = positives.size(), count = negatives.cols();
  check_shape(name, "negatives", negatives, rows, any_size);
  if (!o.weights.empty()) check_size(name, "weights", o.weights, rows);
  if (!o.log_q_positive.empty()) check_size(name, "log_q_positive", o.log_q_positive, rows);
  if (!o.log_q_negative.empty()) check_size(name, "log_q_negative", o.log_q_negative, count);
  check_not_null(name, "positive_ids", o.positive_ids);
  check_not_null(name, "negative_ids", o.negative_ids);
  const bool ids = !o.positive_ids.empty() || !o.negative_ids.empty();
  if (ids && o.positive_ids.size() != rows) fail_size(name, "positive_ids", rows, o.positive_ids.size(), false);
  if (ids && o.negative_ids.size() != count) fail_size(name, "negative_ids", count, o.negative_ids.size(), false);
  if (!dpositives.empty()) check_size(name, "dpositives", dpositives, rows);
  if (!dnegatives.empty()) check_shape(name, "dnegatives", dnegatives, rows, count);
  const double mass = row_mass(o.weights, rows);
  if (mass == 0) return 0;
  const auto mark = ws.mark();
  T* const z = ws.take<T>(count + 1);  // the negatives, then the positive
  double total = 0;
  for (Index b = 0; b < rows; ++b) {
    const double w = o.weights.empty() ? 1.0 : static_cast<double>(o.weights[b]);
    if (w == 0) continue;
    std::copy_n(negatives.row(b), count, z);
    if (!o.log_q_negative.empty()) simd::axpy(T(-1), o.log_q_negative.data(), z, count);
    z[count] = o.log_q_positive.empty() ? positives[b] : positives[b] - o.log_q_positive[b];
    for (Index j = 0; ids && j < count; ++j)
      if (o.negative_ids[j] == o.positive_ids[b]) z[j] = -std::numeric_limits<T>::infinity();
    total += w * cross_entropy_row(z, count + 1, count, 0, count + 1);
    const auto scale = static_cast<T>(w / mass);
    if (!dnegatives.empty()) simd::axpy(scale, z, dnegatives.row(b), count);
    if (!dpositives.empty()) dpositives[b] += scale * (z[count] - T(1));
  }
  return total / mass;
}

}  // namespace detail

/// Weighted mean over the rows of log sum_j exp(z_bj) - z_b,target for logits `[B, C]` and `targets [B]`, columns of them; PyTorch's
/// cross_entropy with the options' corrections. Label smoothing spreads over the columns that take part. A NaN logit makes the loss
/// NaN and of the gradient its own row only; -infinity leaves a column out. Sums over rows in double. Throws `Error` for shapes that
/// disagree and targets that are not there. O(B C), two passes over a row in cache.
template <Real T>
double softmax_cross_entropy(MatrixView<const T> logits, IndexView targets, const SoftmaxCrossEntropyOptions<T>& options,
                             Workspace& ws) {
  return detail::softmax_cross_entropy<T>("softmax_cross_entropy", logits, targets, options, {}, ws);
}

/// The same, and adds its gradient to `dlogits [B, C]`.
template <Real T>
double softmax_cross_entropy_value_and_grad(MatrixView<const T> logits, IndexView targets,
                                            const SoftmaxCrossEntropyOptions<T>& options, MatrixView<T> dlogits, Workspace& ws) {
  return detail::softmax_cross_entropy<T>("softmax_cross_entropy_value_and_grad", logits, targets, options, dlogits, ws);
}

/// Cross-entropy of each row's positive against its negatives: weighted mean of log(exp p_b + sum_j exp n_bj) - p_b for
/// `positives [B]` and `negatives [B, N]`, whose columns are the same N sampled items for every row where log q or ids are given.
/// NaN, sums and errors as above.
template <Real T>
double sampled_softmax_cross_entropy(VectorView<const T> positives, MatrixView<const T> negatives,
                                     const SampledSoftmaxOptions<T>& options, Workspace& ws) {
  return detail::sampled_softmax_cross_entropy<T>("sampled_softmax_cross_entropy", positives, negatives, options, {}, {}, ws);
}

/// The same, and adds its gradient to `dpositives [B]` and `dnegatives [B, N]`, each unless empty.
template <Real T>
double sampled_softmax_cross_entropy_value_and_grad(VectorView<const T> positives, MatrixView<const T> negatives,
                                                    const SampledSoftmaxOptions<T>& options, VectorView<T> dpositives,
                                                    MatrixView<T> dnegatives, Workspace& ws) {
  return detail::sampled_softmax_cross_entropy<T>("sampled_softmax_cross_entropy_value_and_grad", positives, negatives, options,
                                                  dpositives, dnegatives, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
