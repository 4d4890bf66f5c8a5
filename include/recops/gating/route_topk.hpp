/// @file   recops/gating/route_topk.hpp
/// @brief  Sparse routing: which k of E experts a row (token, sample) goes to, and with which weights.
///
///     softmax_then_topk   the k largest of p = softmax(l); weights p_i, not renormalised (Switch, GShard). For k = 1 use this one
///     topk_then_softmax   the k largest of l; weights softmax over these (sparsely-gated MoE, Mixtral). For k = 1 the weight is 1:
///                         no gradient
///     sigmoid             the k largest of s = sigmoid(l); weights scale s_i / sum over these of s (DeepSeek-V3)
///
/// `bias` is added to what is compared, never to a weight, and has no gradient: what balances experts without a loss
/// (gating/bias_controller.hpp). With `groups` experts lie in groups of equal size; the best `groups_kept` groups, by the sum of
/// their two best biased scores (by the best without a bias or without a second), are those that experts are chosen from.
///
/// Shapes      logits [N, E]   bias [E], or empty   experts [N, k] int32, best first   weights [N, k]
/// Ties        the lower expert.   A NaN counts as -infinity: chosen only where numbers run out; its weight is NaN in that row only.
/// Precision   the weights of a row sum to 1 (to `scale`) within 4 k eps; sigmoid weights are a softmax of log sigmoid(l): no underflow.
/// Gradient    of the logits, with the choice held. In softmax_then_topk the others have one too.
/// Cost        E k / 8 comparisons a row, and E exp where p or s is needed.   Same bits for any number of threads.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Shazeer et al., arXiv 1701.06538, equations 3 to 5; Fedus et al., "Switch Transformers", arXiv 2101.03961, section 2.1;
///             DeepSeek-V3, arXiv 2412.19437, section 2.1.2.
#pragma once
#include <cmath>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/simd/log.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

enum class Routing : unsigned char { softmax_then_topk, topk_then_softmax, sigmoid };

struct RouteOptions {
  Index k = 2;                                   ///< experts per row, 1 to E
  Routing routing = Routing::topk_then_softmax;  ///< how weights come from logits
  double scale = 1.0;                            ///< sum of the weights of `Routing::sigmoid`, 1e-6 to 1e6
  Index groups = 1;                              ///< divides E
  Index groups_kept = 1;                         ///< 1 to groups; they must hold k experts
};

inline namespace RECOPS_ABI {

namespace detail {

inline void check_route(const char* name, Index experts, const RouteOptions& o) {
  check_option(name, "k", o.k >= 1 && o.k <= experts, "1 to the number of experts", static_cast<double>(o.k));
  check_option(name, "scale", o.scale >= 1e-6 && o.scale <= 1e6, "1e-6 to 1e6", o.scale);
  check_option(name, "groups", o.groups >= 1 && experts % o.groups == 0, "a divisor of the number of experts",
               static_cast<double>(o.groups));
  check_option(name, "groups_kept", o.groups_kept >= 1 && o.groups_kept <= o.groups && experts / o.groups * o.groups_kept >= o.k,
               "1 to groups, with k experts in them", static_cast<double>(o.groups_kept));
}

/// The k best of `scores [n]`, best first, the lower index of equals; chosen ones become NaN, which is never chosen.
template <class T>
void take_best(T* scores, Index n, Index k, std::int32_t* best) {
  for (Index j = 0; j < k; ++j) {
    const Index at = simd::argmax<T>(scores, n);
    best[j] = static_cast<std::int32_t>(at);
    scores[at] = std::numeric_limits<T>::quiet_NaN();
  }
}
/// The same where NaN counts as -infinity.
template <class T>
void select_top(T* scores, Index n, Index k, std::int32_t* best) {
  using B = simd::Batch<T>;
  const B lowest(-std::numeric_limits<T>::infinity());
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B v = load(scores + i);
    store(scores + i, xsimd::select(v == v, v, lowest));
  });
  take_best(scores, n, k, best);
}

/// Scores of experts outside the kept groups become NaN, which no choice takes while others are left.
template <class T>
void drop_groups(T* scores, Index n, const RouteOptions& o, bool biased, T* group_scores, std::int32_t* kept) {
  const Index size = n / o.groups;
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  for (Index g = 0; g < o.groups; ++g) {
    T first = lowest, second = lowest;
    for (Index i = g * size; i < (g + 1) * size; ++i) {
      const T v = scores[i] == scores[i] ? scores[i] : (scores[i] = lowest);
      second = std::max(second, std::min(first, v));
      first = std::max(first, v);
    }
    group_scores[g] = biased && second > lowest ? first + second : first;
  }
  select_top(group_scores, o.groups, o.groups_kept, kept);  // chosen ones are NaN now
  for (Index g = 0; g < o.groups; ++g)
    if (group_scores[g] == group_scores[g]) std::fill_n(scores + g * size, size, std::numeric_limits<T>::quiet_NaN());
}

template <class T>
T log_sigmoid(T x) {
  return x >= T(0) ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x));
}

/// w = softmax(w) of a few numbers; -infinity gives 0, nothing else zeros, NaN NaN.
template <class T>
void softmax_few(T* w, Index k) {
  T most = -std::numeric_limits<T>::infinity(), sum = T(0);
  for (Index j = 0; j < k; ++j) most = w[j] > most ? w[j] : most;
  for (Index j = 0; j < k; ++j) sum += w[j] = std::exp(w[j] - (most == -std::numeric_limits<T>::infinity() ? T(0) : most));
  for (Index j = 0; j < k && sum != T(0); ++j) w[j] /= sum;
}

}  // namespace detail

/// Writes `experts` and `weights`.
template <Real T>
void route_topk(MatrixView<const T> logits, VectorView<const T> bias, const RouteOptions& options,
                MatrixView<std::int32_t> experts, MatrixView<T> weights, Workspace& ws) {
  constexpr const char* name = "route_topk";
  check_shape(name, "logits", logits, any_size, any_size);
  const Index n = logits.cols(), k = options.k;
  detail::check_route(name, n, options);
  if (!bias.empty()) check_size(name, "bias", bias, n);
  check_shape(name, "experts", experts, logits.rows(), k);
  check_shape(name, "weights", weights, logits.rows(), k);
  detail::for_row_blocks(logits.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto mark = scratch.mark();
    T *const scores = scratch.take<T>(n), *const p = scratch.take<T>(n), *const group_scores = scratch.take<T>(options.groups);
    std::int32_t* const kept = scratch.take<std::int32_t>(options.groups);
    for (Index r = first; r < first + count; ++r) {
      const T* const l = logits.row(r);
      T* const w = weights.row(r);
      std::int32_t* const chosen = experts.row(r);
      const bool bare = bias.empty();
      const T* compared = l;  // without a bias logits are in the order of p and s
      if (options.routing == Routing::softmax_then_topk) {
        simd::softmax<T>(l, p, n);
        if (!bare) compared = p;
      } else if (options.routing == Routing::sigmoid && !bare) {
        simd::sigmoid<T>(l, p, n);
        compared = p;
      }
      std::copy_n(compared, n, scores);
      if (!bare) simd::add<T>(bias.data(), scores, n);
      if (options.groups_kept < options.groups) {
        detail::drop_groups(scores, n, options, !bare, group_scores, kept);
        detail::take_best(scores, n, k, chosen);  // NaN of a kept group is -infinity by now: what is NaN here is out
      } else {
        detail::select_top(scores, n, k, chosen);
      }
      for (Index j = 0; j < k; ++j) {
        const Index e = chosen[j];
        w[j] = options.routing == Routing::softmax_then_topk ? p[e]
               : options.routing == Routing::sigmoid         ? detail::log_sigmoid(l[e])
                                                             : l[e];
      }
      if (options.routing == Routing::softmax_then_topk) continue;
      detail::softmax_few(w, k);
      if (options.routing == Routing::sigmoid)
        for (Index j = 0; j < k; ++j) w[j] *= static_cast<T>(options.scale);
    }
  });
}

/// Takes what forward took and wrote; adds to `dlogits [N, E]`.
template <Real T>
void route_topk_backward(MatrixView<const T> logits, MatrixView<const std::int32_t> experts, MatrixView<const T> weights,
                         const RouteOptions& options, MatrixView<const T> dweights, MatrixView<T> dlogits, Workspace& ws) {
  constexpr const char* name = "route_topk_backward";
  check_shape(name, "logits", logits, any_size, any_size);
  const Index n = logits.cols(), k = options.k;
  detail::check_route(name, n, options);
  check_shape(name, "experts", experts, logits.rows(), k);
  check_shape(name, "weights", weights, logits.rows(), k);
  check_shape(name, "dweights", dweights, logits.rows(), k);
  check_shape(name, "dlogits", dlogits, logits.rows(), n);
  for (Index r = 0; r < experts.rows(); ++r) check_indices(name, "experts", IndexView(experts.row(r), k), n);
  detail::for_row_blocks(logits.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto mark = scratch.mark();
    T* const p = scratch.take<T>(n);
    for (Index r = first; r < first + count; ++r) {
      const T *const l = logits.row(r), *const w = weights.row(r), *const d = dweights.row(r);
      T* const to = dlogits.row(r);
      T mean = T(0);
      for (Index j = 0; j < k; ++j) mean += w[j] * d[j];
      switch (options.routing) {
        case Routing::softmax_then_topk: {
          simd::softmax<T>(l, p, n);
          simd::axpy<T>(-mean, p, to, n);
          for (Index j = 0; j < k; ++j) to[experts(r, j)] += w[j] * d[j];
          break;
        }
        case Routing::topk_then_softmax:
          for (Index j = 0; j < k; ++j) to[experts(r, j)] += w[j] * (d[j] - mean);
          break;
        case Routing::sigmoid: {
          const T scale = static_cast<T>(options.scale);
          for (Index j = 0; j < k; ++j) {
            const T x = l[experts(r, j)], e = std::exp(-std::abs(x)),
                    rest = (x >= T(0) ? e : T(1)) / (T(1) + e);  // 1 - sigmoid(x)
            to[experts(r, j)] += rest * w[j] * (d[j] - mean / scale);
          }
          break;
        }
      }
    }
  });
}

/// Noisy routing (training only): noisy = clean + epsilon deviation, deviation = softplus(raw) + floor, with normal `epsilon`; all
/// `[N, E]`. Route on `noisy`. Shazeer et al., arXiv 1701.06538, equation 4; the floor, 1e-2 in public code, is not in the paper.
template <Real T>
void noisy_logits(MatrixView<const T> clean, MatrixView<const T> raw, MatrixView<const T> epsilon, double floor,
                  MatrixView<T> noisy, MatrixView<T> deviation) {
  constexpr const char* name = "noisy_logits";
  check_shape(name, "clean", clean, any_size, any_size);
  check_shape(name, "raw", raw, clean.rows(), clean.cols());
  check_shape(name, "epsilon", epsilon, clean.rows(), clean.cols());
  check_option(name, "floor", floor >= 0 && std::isfinite(floor), "floor >= 0", floor);
  check_shape(name, "noisy", noisy, clean.rows(), clean.cols());
  check_shape(name, "deviation", deviation, clean.rows(), clean.cols());
  const simd::Batch<T> least(static_cast<T>(floor));
  for (Index r = 0; r < clean.rows(); ++r) {
    const T *const c = clean.row(r), *const e = epsilon.row(r);
    T *const s = deviation.row(r), *const to = noisy.row(r);
    simd::softplus<T>(raw.row(r), s, clean.cols());
    simd::for_each_vector<T, simd::DefaultArch>(clean.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const auto v = load(s + i) + least;
      store(s + i, v);
      store(to + i, simd::mul_add(load(e + i), v, load(c + i)));
    });
  }
}

/// Adds to `dclean` and `draw`, each unless empty: dclean += dnoisy, draw += (dnoisy epsilon + ddeviation) sigmoid(raw). `ddeviation`, of
/// a loss that reads the deviations, may be empty.
template <Real T>
void noisy_logits_backward(MatrixView<const T> raw, MatrixView<const T> epsilon, MatrixView<const T> dnoisy,
                           MatrixView<const T> ddeviation, MatrixView<T> dclean, MatrixView<T> draw) {
  constexpr const char* name = "noisy_logits_backward";
  check_shape(name, "raw", raw, any_size, any_size);
  check_shape(name, "epsilon", epsilon, raw.rows(), raw.cols());
  check_shape(name, "dnoisy", dnoisy, raw.rows(), raw.cols());
  if (!ddeviation.empty()) check_shape(name, "ddeviation", ddeviation, raw.rows(), raw.cols());
  if (!dclean.empty()) check_shape(name, "dclean", dclean, raw.rows(), raw.cols());
  if (!draw.empty()) check_shape(name, "draw", draw, raw.rows(), raw.cols());
  for (Index r = 0; r < raw.rows(); ++r) {
    if (!dclean.empty()) simd::add<T>(dnoisy.row(r), dclean.row(r), raw.cols());
    if (draw.empty()) continue;
    const T *const z = raw.row(r), *const e = epsilon.row(r), *const d = dnoisy.row(r),
                   *const s = ddeviation.empty() ? nullptr : ddeviation.row(r);
    T* const to = draw.row(r);
    simd::for_each_vector<T, simd::DefaultArch>(raw.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      auto up = load(d + i) * load(e + i);
      if (s) up = up + load(s + i);
      store(to + i, simd::mul_add(up, simd::sigmoid(load(z + i)), load(to + i)));
    });
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
