/// @file   recops/ranking/listwise.hpp
/// @brief  Losses of whole lists: ListNet, ListMLE, and softmax cross-entropy with one or several positives.
///
///     ListNet   L_g = -Σ q_i log softmax(s)_i                             q = softmax(relevance / temperature)
///     ListMLE   L_g = Σ_{p <= k} ( log Σ_{j >= p} exp(s_π(j)) - s_π(p) )  π: by relevance, the most relevant first
///     softmax   L_g = -mean_{i in P} log softmax(s)_i                     or -log Σ_{i in P} softmax(s)_i
///
/// Shapes      scores, relevance or labels [n]   offsets [G + 1], or none for one group
/// Edge cases  empty groups have no loss; softmax has none without positives.  A group of one loses 0.
/// Ties        ListMLE puts equally relevant items in the order of their index, or in a seeded random one.
/// NaN         a NaN or infinite score makes the loss and the gradient of its group NaN.
/// Precision   max-shifted.  ListMLE sums in double; gradients of a group sum to 0 up to rounding.
/// Cost        O(n), ListMLE a sort by relevance and four passes; scratch at most 40 n bytes of the largest group.
/// Errors      Error if sizes or offsets disagree, a relevance is not finite, a label is neither 0 nor 1, temperature <= 0 or k < 1.
/// Gradient    of the scores; adds.
/// Reference   Cao et al., ICML 2007 (ListNet, top one); Xia et al., ICML 2008 (ListMLE); Bruch et al., ICTIR 2019 (softmax).
#pragma once
#include <recops/core/random.hpp>
#include <recops/ranking/group_loss.hpp>
#include <recops/simd/argsort.hpp>
#include <recops/simd/log.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// Options of `listnet_loss`.
template <class T>
struct ListNetOptions {
  double temperature = 1;  ///< > 0, of the relevances
  GroupLossOptions<T> groups = {};
};

/// Options of `listmle_loss`.
template <class T>
struct ListMleOptions {
  Index k = std::numeric_limits<Index>::max();  ///< places that count, >= 1
  bool shuffle_ties = false;                    ///< equally relevant items in a random order
  std::uint64_t seed = 0;                       ///< of that order: change it from step to step
  GroupLossOptions<T> groups = {};
};

/// What several positives of a group should reach.
enum class PositiveTarget {
  each,  ///< the mean of their losses: all should have equal shares
  any,   ///< the loss of their common share: it does not matter which has it
};

/// Options of `softmax_loss`.
template <class T>
struct SoftmaxLossOptions {
  PositiveTarget target = PositiveTarget::each;
  GroupLossOptions<T> groups = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// p = softmax(s), shifted = s - max s; returns the logarithm of Σ exp(shifted).
template <class T>
double shifted_softmax(const T* s, Index n, T* shifted, T* p) {
  const T top = simd::max<T>(s, n);
  for (Index i = 0; i < n; ++i) shifted[i] = s[i] - top;
  simd::exp<T>(shifted, p, n);
  const double sum = static_cast<double>(simd::sum<T>(p, n));
  simd::scale<T>(static_cast<T>(1 / sum), p, p, n);
  return std::log(sum);
}

/// gradient += scale (p - q)
template <class T>
void add_difference(const T* p, const T* q, Index n, double scale, T* gradient) {
  if (gradient == nullptr) return;
  const T c = static_cast<T>(scale);
  for (Index i = 0; i < n; ++i) gradient[i] += c * (p[i] - q[i]);
}

template <class T>
GroupLoss listnet(const char* name, VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                  const ListNetOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_size(name, "relevance", relevance, scores.size());
  check_finite(name, "relevance", relevance);
  check_option(name, "temperature", o.temperature > 0 && o.temperature <= 1e30, "0 < temperature <= 1e30", o.temperature);
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [](Index, Index) { return true; },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        T* const shifted = scratch.take<T>(n);
        T* const p = scratch.take<T>(n);
        T* const q = scratch.take<T>(n);
        T* const target = scratch.take<T>(n);
        const double temperature = o.temperature;
        for (Index i = 0; i < n; ++i) target[i] = static_cast<T>(static_cast<double>(relevance[begin + i]) / temperature);
        shifted_softmax(target, n, shifted, q);
        const double log_sum = shifted_softmax(scores.data() + begin, n, shifted, p);
        add_difference(p, q, n, scale, gradient);
        return log_sum - static_cast<double>(simd::dot<T>(q, shifted, n));
      });
}

template <class T>
GroupLoss softmax_groups(const char* name, VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                         const SoftmaxLossOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_labels(name, labels, scores.size());
  return sum_groups(
      groups, scores, o.groups, dscores, ws,
      [&](Index begin, Index n) {
        std::uint8_t seen = 0;
        for (Index i = 0; i < n; ++i) seen |= labels[begin + i];
        return seen != 0;
      },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        T* const shifted = scratch.take<T>(n);
        T* const p = scratch.take<T>(n);
        T* const q = scratch.take<T>(n);
        const double log_sum = shifted_softmax(scores.data() + begin, n, shifted, p);
        const std::uint8_t* const y = labels.data() + begin;
        double count = 0, sum = 0, best = -std::numeric_limits<double>::infinity();
        for (Index i = 0; i < n; ++i) {
          if (y[i] == 0) continue;
          ++count;
          sum += static_cast<double>(shifted[i]);
          best = std::max(best, static_cast<double>(shifted[i]));
        }
        if (o.target == PositiveTarget::each) {
          const T share = static_cast<T>(1 / count);
          for (Index i = 0; i < n; ++i) q[i] = y[i] != 0 ? share : T(0);
          add_difference(p, q, n, scale, gradient);
          return log_sum - sum / count;
        }
        // Relative to the best positive: the share of all of them may underflow, its parts do not.
        double mass = 0;
        for (Index i = 0; i < n; ++i) {
          q[i] = y[i] != 0 ? static_cast<T>(std::exp(static_cast<double>(shifted[i]) - best)) : T(0);
          mass += static_cast<double>(q[i]);
        }
        simd::scale<T>(static_cast<T>(1 / mass), q, q, n);
        add_difference(p, q, n, scale, gradient);
        return log_sum - best - std::log(mass);
      });
}

/// The order of ListMLE: by relevance, ties by index or shuffled.
template <class T>
void listmle_order(const T* relevance, Index n, const ListMleOptions<T>& o, std::uint64_t stream, std::int32_t* order,
                   Workspace& ws) {
  if (!o.shuffle_ties) {
    simd::argsort<T>(relevance, n, Order::descending, order, ws);
    return;
  }
  T* const shuffled = ws.take<T>(n);
  std::int32_t* const from = ws.take<std::int32_t>(n);
  for (Index i = 0; i < n; ++i) from[i] = static_cast<std::int32_t>(i);
  Random random(o.seed, stream);
  for (Index i = n - 1; i > 0; --i) std::swap(from[i], from[random.below(i + 1)]);
  for (Index i = 0; i < n; ++i) shuffled[i] = relevance[from[i]];
  simd::argsort<T>(shuffled, n, Order::descending, order, ws);
  for (Index i = 0; i < n; ++i) order[i] = from[order[i]];
}

/// ListMLE of scores z in order; z becomes the gradient of place p.
///     tail_p = Σ_{j >= p} exp(z_j)     dL/dz_p = exp(z_p) Σ_{j <= min(p, k)} 1 / tail_j - [p <= k]
inline double listmle_in_order(double* z, Index n, Index k, Workspace& ws) {
  const auto [low, high] = std::minmax_element(z, z + n);
  double* const tail = ws.take<double>(n);
  double sum = 0;
  if (*high - *low <= 600) {  // neither tails nor their reciprocals leave the range of a double
    const double top = *high;
    double* const e = ws.take<double>(n);
    for (Index p = 0; p < n; ++p) z[p] -= top;
    simd::exp<double>(z, e, n);
    double mass = 0;
    for (Index p = n - 1; p >= 0; --p) tail[p] = mass += e[p];
    double reciprocals = 0;
    for (Index p = 0; p < k; ++p) sum -= z[p];
    for (Index p = 0; p < n; ++p) {
      if (p < k) reciprocals += 1 / tail[p];
      z[p] = e[p] * reciprocals - (p < k ? 1 : 0);
    }
    simd::log<double>(tail, tail, k);
    for (Index p = 0; p < k; ++p) sum += tail[p];
    return sum;
  }
  const auto add = [](double a, double b) {  // log(exp a + exp b)
    const double most = std::max(a, b), least = std::min(a, b);
    return most + std::log1p(std::exp(least - most));
  };
  for (Index p = n - 1; p >= 0; --p) tail[p] = p == n - 1 ? z[p] : add(z[p], tail[p + 1]);
  double reciprocals = 0;  // log of the sum of reciprocals
  for (Index p = 0; p < n; ++p) {
    if (p < k) {
      sum += tail[p] - z[p];
      reciprocals = p == 0 ? -tail[p] : add(reciprocals, -tail[p]);
    }
    z[p] = std::exp(z[p] + reciprocals) - (p < k ? 1 : 0);
  }
  return sum;
}

template <class T>
GroupLoss listmle(const char* name, VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                  const ListMleOptions<T>& o, VectorView<T> dscores, Workspace& ws) {
  const Groups groups = check_groups(name, scores, offsets, o.groups, dscores);
  check_size(name, "relevance", relevance, scores.size());
  check_finite(name, "relevance", relevance);
  check_option(name, "k", o.k >= 1, "k >= 1", static_cast<double>(o.k));
  return sum_groups(
      groups, scores, o.groups, dscores, ws, [](Index, Index) { return true; },
      [&](Index begin, Index n, double scale, T* gradient, Workspace& scratch) {
        std::int32_t* const order = scratch.take<std::int32_t>(n);
        listmle_order(relevance.data() + begin, n, o, static_cast<std::uint64_t>(begin), order, scratch);
        double* const z = scratch.take<double>(n);
        for (Index p = 0; p < n; ++p) z[p] = static_cast<double>(scores[begin + order[p]]);
        const double loss = listmle_in_order(z, n, std::min(o.k, n), scratch);
        for (Index p = 0; p < n && gradient != nullptr; ++p) gradient[order[p]] += static_cast<T>(scale * z[p]);
        return loss;
      });
}

}  // namespace detail

/// ListNet over `scores [n]` and `relevance [n]` in groups of `offsets [G + 1]` (empty: one). Least where the scores are the
/// relevances by temperature, up to a constant. Throws `Error`; see above.
template <Real T>
GroupLoss listnet_loss(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                       const ListNetOptions<T>& options, Workspace& ws) {
  return detail::listnet<T>("listnet_loss", scores, relevance, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss listnet_loss_value_and_grad(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                                      const ListNetOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::listnet<T>("listnet_loss_value_and_grad", scores, relevance, offsets, options, dscores, ws);
}

/// ListMLE over `scores [n]` and `relevance [n]` in groups of `offsets [G + 1]` (empty: one). Throws `Error`; see above.
template <Real T>
GroupLoss listmle_loss(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                       const ListMleOptions<T>& options, Workspace& ws) {
  return detail::listmle<T>("listmle_loss", scores, relevance, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss listmle_loss_value_and_grad(VectorView<const T> scores, VectorView<const T> relevance, IndexView offsets,
                                      const ListMleOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::listmle<T>("listmle_loss_value_and_grad", scores, relevance, offsets, options, dscores, ws);
}

/// Softmax cross-entropy over `scores [n]` and `labels [n]` of 0 or 1 in groups of `offsets [G + 1]` (empty: one). Where every row
/// has the same number of items and one of them is right, `softmax_cross_entropy` (nn) does it on a matrix. Throws `Error`.
template <Real T>
GroupLoss softmax_loss(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                       const SoftmaxLossOptions<T>& options, Workspace& ws) {
  return detail::softmax_groups<T>("softmax_loss", scores, labels, offsets, options, {}, ws);
}

/// The same, and adds its gradient to `dscores [n]`.
template <Real T>
GroupLoss softmax_loss_value_and_grad(VectorView<const T> scores, VectorView<const std::uint8_t> labels, IndexView offsets,
                                      const SoftmaxLossOptions<T>& options, VectorView<T> dscores, Workspace& ws) {
  return detail::softmax_groups<T>("softmax_loss_value_and_grad", scores, labels, offsets, options, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
