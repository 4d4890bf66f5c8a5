/// @file   recops/models/stcrank.hpp
/// @brief  STCRank's objectives: labels that do not work against each other, and their rates put together into what a swipe feed plans
///         with (diversity/lookahead.hpp): the reward of showing an item, and the chance that the user goes on.
///
///     conversion pc = P(buys)    view pv = P(long view | no conversion)    swipe ps = P(swipes on | no conversion)
///
///     view     = pc + (1 - pc) pv              continue = (1 - pc) ps + pc rho
///     reward   = w_conversion pc + w_view view + w_swipe ps (1 - pc)
///
/// A long view precedes a purchase (overlap), and a purchase ends the visit (conflict): learned side by side, the view model counts
/// conversions twice and the swipe model learns to dislike what sells. Rules change labels and sample weights so that each objective
/// learns what the others leave open: the conditional probabilities above.
///
/// Shapes      labels, weights [N, M]; rates, values and gradients [N].
/// NaN         A label is read only where its weight is not 0; a NaN rate stays with its item.
/// Cost        One pass. Nothing allocates.
/// Reference   STCRank (Kuaishou E-shop), arXiv 2601.10027, for the objectives and their conflicts; rules and formulas are our
///             reconstruction.
#pragma once
#include <array>
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>

namespace recops {

/// What a rule does to objective `to` in samples where objective `from` is observed.
enum class LabelRuleKind {
  exclude,   ///< from = 1: the sample says nothing about `to` (weight 0)
  subtract,  ///< to := to (1 - from)
  absorb,    ///< to := max(to, from)
  reweight,  ///< from = value: weight of `to` times alpha (alpha 0 with value 1 is exclude)
};

struct LabelRule {
  LabelRuleKind kind = LabelRuleKind::exclude;
  Index to = 0, from = 0;  ///< columns
  double alpha = 0;        ///< of reweight, finite, 0 or more
  double value = 1;        ///< of reweight: the label it looks for
};

/// How rates are put together.
struct SwipeValue {
  double conversion = 1, view = 0.3, swipe = 0.1;  ///< what each is worth
  double continue_after_conversion = 0.1;          ///< rho: P(goes on | conversion)
};

/// Rates of N items, `[N]` each.
template <class T>
struct SwipeRates {
  VectorView<T> conversion = {}, view = {}, swipe = {};
};

/// What they come to, `[N]` each; an empty view is not wanted.
template <class T>
struct SwipeOutcome {
  VectorView<T> view = {}, continuation = {}, reward = {};
};

inline namespace RECOPS_ABI {

/// The paper's two treatments for the columns of conversion, view and swipe: both others learn from samples without conversion only.
constexpr std::array<LabelRule, 2> stcrank_rules(Index conversion, Index view, Index swipe) {
  return {LabelRule{.to = view, .from = conversion}, LabelRule{.to = swipe, .from = conversion}};
}

/// Applies the rules in order to labels and weights [N, M], in place: `BceOptions::weights` takes the result. Rules read the labels as
/// they were given, also those that an earlier rule has changed; a label of weight 0 (not observed) triggers nothing.
template <Real T>
void label_collaboration(VectorView<const LabelRule> rules, MatrixView<T> labels, MatrixView<T> weights) {
  constexpr const char* name = "label_collaboration";
  check_size(name, "rules", rules, any_size);
  check_shape(name, "labels", labels, any_size, any_size);
  check_shape(name, "weights", weights, labels.rows(), labels.cols());
  const Index objectives = labels.cols();
  constexpr Index most = 64;
  check_option(name, "labels", objectives <= most, "at most 64 objectives", static_cast<double>(objectives));
  for (const LabelRule& rule : rules) {
    check_option(name, "rule.to", 0 <= rule.to && rule.to < objectives, "a column of labels", static_cast<double>(rule.to));
    check_option(name, "rule.from", 0 <= rule.from && rule.from < objectives && rule.from != rule.to, "another column of labels",
                 static_cast<double>(rule.from));
    check_option(name, "rule.alpha", rule.alpha >= 0 && std::isfinite(rule.alpha), "a finite number, 0 or more", rule.alpha);
  }
  for (Index i = 0; i < labels.rows(); ++i) {
    T given[most];
    bool observed[most];
    for (Index m = 0; m < objectives; ++m) {
      observed[m] = weights(i, m) != 0;
      given[m] = observed[m] ? labels(i, m) : T(0);
    }
    for (const LabelRule& rule : rules) {
      if (!observed[rule.from]) continue;
      const T from = given[rule.from];
      T &label = labels(i, rule.to), &weight = weights(i, rule.to);
      switch (rule.kind) {
        case LabelRuleKind::exclude:
          if (from == 1) weight = 0;
          break;
        case LabelRuleKind::subtract:
          if (observed[rule.to]) label *= 1 - from;
          break;
        case LabelRuleKind::absorb:
          if (observed[rule.to]) label = label > from ? label : from;
          break;
        case LabelRuleKind::reweight:
          if (from == static_cast<T>(rule.value)) weight *= static_cast<T>(rule.alpha);
          break;
      }
    }
  }
}

/// How objectives hang together, [M, M] each: lift = P(a and b) / (P(a) P(b)) (1: independent) and the phi coefficient (their
/// correlation), over the samples in which both have weight, weighted by the product. NaN where one of them never or always happens.
/// Rules are meant to bring |phi| of the pairs they treat down.
template <Real T>
void label_dependence(MatrixView<const T> labels, MatrixView<const T> weights, MatrixView<T> lift, MatrixView<T> phi) {
  constexpr const char* name = "label_dependence";
  check_shape(name, "labels", labels, any_size, any_size);
  const Index objectives = labels.cols();
  if (!weights.empty()) check_shape(name, "weights", weights, labels.rows(), objectives);
  check_shape(name, "lift", lift, objectives, objectives);
  check_shape(name, "phi", phi, objectives, objectives);
  for (Index a = 0; a < objectives; ++a) {
    for (Index b = 0; b <= a; ++b) {
      double total = 0, pa = 0, pb = 0, both = 0;
      for (Index i = 0; i < labels.rows(); ++i) {
        const double w = weights.empty() ? 1.0 : static_cast<double>(weights(i, a)) * static_cast<double>(weights(i, b));
        if (w == 0) continue;
        const auto x = static_cast<double>(labels(i, a)), y = static_cast<double>(labels(i, b));
        total += w;
        pa += w * x;
        pb += w * y;
        both += w * (a == b ? x : x * y);
      }
      pa /= total;
      pb /= total;
      both /= total;
      const bool defined = pa > 0 && pa < 1 && pb > 0 && pb < 1;
      const double nan = std::numeric_limits<double>::quiet_NaN();
      lift(a, b) = lift(b, a) = static_cast<T>(defined ? both / (pa * pb) : nan);
      phi(a, b) = phi(b, a) = static_cast<T>(defined ? (both - pa * pb) / std::sqrt(pa * (1 - pa) * pb * (1 - pb)) : nan);
    }
  }
}

namespace detail {
template <class R, class O>
void check_rates(const char* name, const SwipeRates<R>& rates, const SwipeOutcome<O>& out, const SwipeValue& value) {
  check_size(name, "conversion", rates.conversion, any_size);
  const Index n = rates.conversion.size();
  check_size(name, "view", rates.view, n);
  check_size(name, "swipe", rates.swipe, n);
  if (!out.view.empty()) check_size(name, "view of the outcome", out.view, n);
  if (!out.continuation.empty()) check_size(name, "continuation", out.continuation, n);
  if (!out.reward.empty()) check_size(name, "reward", out.reward, n);
  const double rho = value.continue_after_conversion;
  check_option(name, "continue_after_conversion", 0 <= rho && rho <= 1, "a probability", rho);
}
}  // namespace detail

/// Writes view, continuation and reward from the rates, which are in [0, 1].
template <Real T>
void compose_rates(const SwipeRates<const T>& rates, const SwipeValue& value, const SwipeOutcome<T>& out) {
  detail::check_rates("compose_rates", rates, out, value);
  const auto wc = static_cast<T>(value.conversion), wv = static_cast<T>(value.view), ws = static_cast<T>(value.swipe),
             rho = static_cast<T>(value.continue_after_conversion);
  for (Index i = 0; i < rates.conversion.size(); ++i) {
    const T pc = rates.conversion[i], pv = rates.view[i], ps = rates.swipe[i], none = 1 - pc;
    const T view = pc + none * pv;
    if (!out.view.empty()) out.view[i] = view;
    if (!out.continuation.empty()) out.continuation[i] = none * ps + pc * rho;
    if (!out.reward.empty()) out.reward[i] = wc * pc + wv * view + ws * ps * none;
  }
}

/// Adds to the gradients of the rates (each unless empty), given those of what was composed (each unless empty).
template <Real T>
void compose_rates_backward(const SwipeRates<const T>& rates, const SwipeValue& value, const SwipeOutcome<const T>& gradient,
                            const SwipeRates<T>& drates) {
  constexpr const char* name = "compose_rates_backward";
  detail::check_rates(name, rates, gradient, value);
  const Index n = rates.conversion.size();
  if (!drates.conversion.empty()) check_size(name, "gradient of conversion", drates.conversion, n);
  if (!drates.view.empty()) check_size(name, "gradient of view", drates.view, n);
  if (!drates.swipe.empty()) check_size(name, "gradient of swipe", drates.swipe, n);
  const auto wc = static_cast<T>(value.conversion), wv = static_cast<T>(value.view), ws = static_cast<T>(value.swipe),
             rho = static_cast<T>(value.continue_after_conversion);
  for (Index i = 0; i < n; ++i) {
    const T pc = rates.conversion[i], pv = rates.view[i], ps = rates.swipe[i], none = 1 - pc;
    const T dr = gradient.reward.empty() ? T(0) : gradient.reward[i],
            dc = gradient.continuation.empty() ? T(0) : gradient.continuation[i];
    const T dv = (gradient.view.empty() ? T(0) : gradient.view[i]) + wv * dr;
    if (!drates.conversion.empty()) drates.conversion[i] += dv * (1 - pv) + dc * (rho - ps) + dr * (wc - ws * ps);
    if (!drates.view.empty()) drates.view[i] += dv * none;
    if (!drates.swipe.empty()) drates.swipe[i] += (dc + ws * dr) * none;
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
