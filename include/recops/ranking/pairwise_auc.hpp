/// @file   recops/ranking/pairwise_auc.hpp
/// @brief  Surrogates of 1 - AUC: the mean over all pairs of a positive and a negative of a function of their difference.
///
///     L_g = 1 / (n+ n-) Σ_{i in P, j in N} phi(s_i - s_j)
///
///     surrogate        phi(d)                    cost of a group
///     logistic         softplus(-sigma d)        n+ n- pairs, in vectors (simd/pair_sums.hpp)
///     sigmoid          sigmoid(-sigma d)         n+ n- pairs; a smooth 1 - AUC, bounded
///     squared          (margin - d)²             O(n), from means and variances
///     aucm             see below                 O(n)
///     squared_hinge    max(0, margin - d)²       O(n log n), a sort and two sweeps
///     hinge            max(0, margin - d)        O(n log n)
///     exponential      exp(-d)                   O(n), separable
///     log_exponential  the logarithm of the mean of exp(-d): does not overflow
///
/// `aucm` is the min-max margin loss with its auxiliary variables at their optimum: Var+ + Var- + max(0, margin - m+ + m-)².
/// It is the squared loss that stops asking for more once the means are a margin apart. The form whose variables are learned
/// over many batches is in aucm.hpp.
///
/// Shapes      scores, labels [n]   offsets [G + 1], or none for one group
/// Edge cases  a group of one class has no loss.  A kink (d = margin exactly) has gradient 0.
/// NaN         a NaN or infinite score makes the loss and the gradient of its group NaN.
/// Precision   sums of more than 64 terms in double.  Gradients of a group sum to 0 up to rounding.
/// Cost        scratch some 40 n bytes of the largest group.  Groups run on the workspace's threads, with the same bits.
/// Errors      Error if sizes or offsets disagree, a label is neither 0 nor 1, sigma <= 0 or an option is not finite.
/// Gradient    of the scores; adds.
/// Reference   Gao and Zhou, IJCAI 2015 (which phi are consistent with AUC); Ying, Wen and Lyu, NIPS 2016 (squared, in means); Yuan et
///             al., arXiv 2012.03173 (aucm). The sweeps of the hinges are our derivation.
#pragma once
#include <recops/core/random.hpp>
#include <recops/ranking/group_loss.hpp>
#include <recops/simd/argsort.hpp>
#include <recops/simd/pair_sums.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// The function of the difference between a positive's score and a negative's.
enum class AucSurrogate { logistic, sigmoid, squared, aucm, squared_hinge, hinge, exponential, log_exponential };

/// Options of `pairwise_auc_loss`.
template <class T>
struct PairwiseAucOptions {
  AucSurrogate surrogate = AucSurrogate::logistic;
  double sigma = 1;         ///< > 0, steepness of logistic and sigmoid (1 / temperature)
  double margin = 1;        ///< of squared, aucm and the hinges, in units of the scores
  Index max_negatives = 0;  ///< if > 0, at most so many negatives of a group, drawn without replacement; the rest is not paired
  std::uint64_t seed = 0;   ///< of that draw: change it from step to step
  GroupLossOptions<T> groups = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// The entries of one class, side by side.
template <class T>
struct ClassScores {
  T* score;
  std::int32_t* index;
  Index size = 0;
  ClassScores(Index n, Workspace& ws) : score(ws.take<T>(n)), index(ws.take<std::int32_t>(n)) {}
  VectorView<const T> scores() const { return VectorView<const T>(score, size); }
  double mean() const {
    double sum = 0;
    for (Index i = 0; i < size; ++i) sum += static_cast<double>(score[i]);
    return sum / static_cast<double>(size);
  }
  double variance(double mean) const {
    double sum = 0;
    for (Index i = 0; i < size; ++i) {
      const double d = static_cast<double>(score[i]) - mean;
      sum += d * d;
    }
    return sum / static_cast<double>(size);
  }
};

/// Parts a group by its labels; without branches, which labels would mislead.
template <class T>
void split_by_label(const T* scores, const std::uint8_t* labels, Index n, ClassScores<T>& positives, ClassScores<T>& negatives) {
  Index p = 0, q = 0;
  for (Index i = 0; i < n; ++i) {
    positives.score[p] = negatives.score[q] = scores[i];
    positives.index[p] = negatives.index[q] = static_cast<std::int32_t>(i);
    p += labels[i];
    q += 1 - labels[i];
  }
  positives.size = p;
  negatives.size = q;
}

inline bool has_both_classes(const std::uint8_t* labels, Index n) {
  Index positives = 0;
  for (Index i = 0; i < n; ++i) positives += labels[i];
  return positives > 0 && positives < n;
}

/// Mean of phi over pairs by `pair_sums`.
template <simd::PairLoss kind, class T>
double all_pairs_auc(const ClassScores<T>& p, const ClassScores<T>& n, double sigma, double scale, T* gradient, Workspace& ws) {
  const auto [p_min, p_max] = simd::min_max<T>(p.score, p.size);
  const auto [n_min, n_max] = simd::min_max<T>(n.score, n.size);
  const auto how = simd::pair_scores<T>(static_cast<T>(sigma), p_min, p_max, n_min, n_max);
  T* const high = ws.take<T>(p.size);
  T* const low = ws.take<T>(n.size);
  simd::prepare_pair_scores<T>(p.score, p.size, how, -1, high);
  simd::prepare_pair_scores<T>(n.score, n.size, how, 1, low);
  const double pairs = static_cast<double>(p.size) * static_cast<double>(n.size), step = scale * sigma / pairs;
  double *row = nullptr, *col = nullptr;
  if (gradient != nullptr) {
    row = ws.take<double>(p.size);
    col = ws.take<double>(n.size);
    std::fill_n(row, p.size, 0.0);
    std::fill_n(col, n.size, 0.0);
  }
  const double sum = simd::pair_sums<kind, T>(high, p.size, low, n.size, how, row, col);
  if (gradient != nullptr) {
    for (Index i = 0; i < p.size; ++i) gradient[p.index[i]] -= static_cast<T>(step * row[i]);
    for (Index j = 0; j < n.size; ++j) gradient[n.index[j]] += static_cast<T>(step * col[j]);
  }
  return sum / pairs;
}

/// (margin - d)^2, or with `stops` the closed form of the min-max margin loss.
template <class T>
double squared_auc(const ClassScores<T>& p, const ClassScores<T>& n, double margin, bool stops, double scale, T* gradient) {
  const double high = p.mean(), low = n.mean(), wanted = margin - high + low, miss = stops && wanted < 0 ? 0 : wanted;
  if (gradient != nullptr) {
    const double up = 2 * scale / static_cast<double>(p.size), down = 2 * scale / static_cast<double>(n.size);
    for (Index i = 0; i < p.size; ++i)
      gradient[p.index[i]] += static_cast<T>(up * (static_cast<double>(p.score[i]) - high - miss));
    for (Index j = 0; j < n.size; ++j)
      gradient[n.index[j]] += static_cast<T>(down * (static_cast<double>(n.score[j]) - low + miss));
  }
  return p.variance(high) + n.variance(low) + miss * miss;
}

/// Mean of max(0, margin - d), or of its square. Sweeps carry the count of active partners, the sum of their distances and that of
/// the squares; going on by a step adds non-negative terms to each, so that nothing cancels.
template <bool squared, class T>
double hinge_auc(const ClassScores<T>& p, const ClassScores<T>& n, double margin, double scale, T* gradient, Workspace& ws) {
  T* const high = ws.take<T>(p.size);
  T* const low = ws.take<T>(n.size);
  std::int32_t* const high_place = ws.take<std::int32_t>(p.size);
  std::int32_t* const low_place = ws.take<std::int32_t>(n.size);
  simd::argsort<T>(p.score, p.size, Order::ascending, high_place, high, ws);
  simd::argsort<T>(n.score, n.size, Order::ascending, low_place, low, ws);
  const auto positive = [&](Index i) { return static_cast<double>(high[i]); };
  const auto negative = [&](Index j) { return static_cast<double>(low[j]) + margin; };
  const double pairs = static_cast<double>(p.size) * static_cast<double>(n.size), unit = scale / pairs;
  double sum = 0, count = 0, distance = 0, square = 0;
  for (Index i = p.size - 1, j = n.size - 1; i >= 0; --i) {  // positives from the top; active are the negatives above them
    const double at = positive(i), step = i + 1 < p.size ? positive(i + 1) - at : 0;
    square += step * (2 * distance + count * step);
    distance += count * step;
    for (; j >= 0 && negative(j) > at; --j) {
      const double d = negative(j) - at;
      ++count;
      distance += d;
      square += d * d;
    }
    sum += squared ? square : distance;
    if (gradient != nullptr) gradient[p.index[high_place[i]]] -= static_cast<T>(unit * (squared ? 2 * distance : count));
  }
  if (gradient == nullptr) return sum / pairs;
  count = distance = 0;
  for (Index j = 0, i = 0; j < n.size; ++j) {  // negatives from the bottom; active are the positives below them
    const double at = negative(j), step = j > 0 ? at - negative(j - 1) : 0;
    distance += count * step;
    for (; i < p.size && positive(i) < at; ++i) {
      ++count;
      distance += at - positive(i);
    }
    gradient[n.index[low_place[j]]] += static_cast<T>(unit * (squared ? 2 * distance : count));
  }
  return sum / pairs;
}

/// weights = softmax(sign * scores); returns log of the mean of exp(sign * scores).
template <class T>
double log_mean_exp(const ClassScores<T>& c, T sign, T* weights) {
  simd::scale<T>(sign, c.score, weights, c.size);
  const T top = simd::max<T>(weights, c.size);
  for (Index i = 0; i < c.size; ++i) weights[i] -= top;
  simd::exp<T>(weights, weights, c.size);
  const double sum = static_cast<double>(simd::sum<T>(weights, c.size));
  simd::scale<T>(static_cast<T>(1 / sum), weights, weights, c.size);
  return static_cast<double>(top) + std::log(sum / static_cast<double>(c.size));
}

template <class T>
double exponential_auc(const ClassScores<T>& p, const ClassScores<T>& n, bool logarithm, double scale, T* gradient,
                       Workspace& ws) {
  T* const high = ws.take<T>(p.size);
  T* const low = ws.take<T>(n.size);
  const double log_loss = log_mean_exp(p, T(-1), high) + log_mean_exp(n, T(1), low),
               value = logarithm ? log_loss : std::exp(log_loss);
  if (gradient != nullptr) {
    const double step = scale * (logarithm ? 1 : value);
    for (Index i = 0; i < p.size; ++i) gradient[p.index[i]] -= static_cast<T>(step * static_cast<double>(high[i]));
    for (Index j = 0; j < n.size; ++j) gradient[n.index[j]] += static_cast<T>(step * static_cast<double>(low[j]));
  }
  return value;
}

/// Keeps `most` of the entries, drawn without replacement, at the front.
template <class T>
void keep_some(ClassScores<T>& c, Index most, std::uint64_t seed, std::uint64_t stream) {
  if (most <= 0 || c.size <= most) return;
  Random random(seed, stream);
  for (Index i = 0; i < most; ++i) {
    const Index other = i + random.below(c.size - i);
    std::swap(c.score[i], c.score[other]);
    std::swap(c.index[i], c.index[other]);
  }
  c.size = most;
}

template <class T>
GroupLoss pairwise_auc(const char* name, VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                       const PairwiseAucOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_labels(name, labels, scores.size());
  check_option(name, "sigma", o.sigma > 0 && o.sigma <= 1e30, "0 < sigma <= 1e30", o.sigma);
  check_option(name, "margin", std::abs(o.margin) <= 1e30, "a finite margin", o.margin);
  check_option(name, "max_negatives", o.max_negatives >= 0, "max_negatives >= 0", static_cast<double>(o.max_negatives));
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [&](Index begin, Index n) { return has_both_classes(labels.data() + begin, n); },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        ClassScores<T> p(n, scratch), q(n, scratch);
        split_by_label(scores.data() + begin, labels.data() + begin, n, p, q);
        keep_some(q, o.max_negatives, o.seed, static_cast<std::uint64_t>(begin));
        switch (o.surrogate) {
          case AucSurrogate::logistic:
            return all_pairs_auc<simd::PairLoss::logistic>(p, q, o.sigma, scale, gradient, scratch);
          case AucSurrogate::sigmoid:
            return all_pairs_auc<simd::PairLoss::sigmoid>(p, q, o.sigma, scale, gradient, scratch);
          case AucSurrogate::squared:
          case AucSurrogate::aucm:
            return squared_auc(p, q, o.margin, o.surrogate == AucSurrogate::aucm, scale, gradient);
          case AucSurrogate::squared_hinge:
            return hinge_auc<true>(p, q, o.margin, scale, gradient, scratch);
          case AucSurrogate::hinge:
            return hinge_auc<false>(p, q, o.margin, scale, gradient, scratch);
          default:
            return exponential_auc(p, q, o.surrogate == AucSurrogate::log_exponential, scale, gradient, scratch);
        }
      });
}

}  // namespace detail

/// The loss of `scores [n]` with `labels [n]` of 0 or 1 in groups of `offsets [G + 1]` (empty: one group). Throws `Error`; see above.
template <Real T>
GroupLoss pairwise_auc_loss(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                            const PairwiseAucOptions<T>& options, Workspace& ws) {
  return detail::pairwise_auc<T>("pairwise_auc_loss", scores, labels, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss pairwise_auc_loss_value_and_grad(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                                           const PairwiseAucOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::pairwise_auc<T>("pairwise_auc_loss_value_and_grad", scores, labels, offsets, options, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
