/// @file   recops/diversity/gumbel_top_k.hpp
/// @brief  k items drawn without replacement, each with a probability that follows its logit; and the relaxation that lets a
///         gradient through.
///
///     key_i = a_i / temperature - log(-log u_i)         the k largest keys        (u_i uniform: -log(-log u) is a Gumbel number)
///
/// The k largest keys are a sample without replacement from softmax(a / temperature): the first is one draw from it, the next one
/// of what is left, and so on.
///
/// Shapes      logits, keys [N]   picks [k].  Returns how many were picked: min(k, items whose logit is a number).
/// Ties        The lowest index.  Unused picks become -1.
/// NaN         An item whose logit is not finite is never picked; its key is -infinity.
/// Precision   T; uniforms of 23 bits in float, 52 in double. a / temperature saturates at the largest number.
/// Cost        Two logarithms per item, then that of a top k. No allocation once the workspace has grown.
/// Randomness  A function of `at` (seed, row, step) and of the item's place alone.
/// Reference   Kool et al., Stochastic beams and where to find them, ICML 2019 (arXiv 1903.06059). `relaxed_top_k`: Xie & Ermon,
///             Reparameterizable subset sampling via continuous relaxations, IJCAI 2019 (arXiv 1901.10517).
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/log.hpp>
#include <recops/simd/softmax.hpp>
#include <recops/simd/top_k.hpp>
#include <recops/simd/uniform.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// One that T holds, and its reciprocal.
template <class T>
void check_temperature(const char* name, double temperature) {
  check_option(name, "temperature", temperature >= std::numeric_limits<T>::min() && temperature <= std::numeric_limits<T>::max(),
               "a number above 0 in the range of T", temperature);
}

}  // namespace detail

/// Writes `picks` [k], largest key first, and `keys` [N] (or empty: not wanted). Throws `Error` unless temperature is
/// above 0 and finite, in T.
template <Real T>
Index gumbel_top_k(VectorView<const T> logits, double temperature, const RandomRow& at, VectorView<T> keys,
                   VectorView<std::int32_t> picks, Workspace& ws) {
  constexpr const char* name = "gumbel_top_k";
  check_size(name, "logits", logits, any_size);
  const Index n = logits.size();
  detail::check_temperature<T>(name, temperature);
  if (!keys.empty()) check_size(name, "keys", keys, n);
  check_size(name, "picks", picks, any_size);
  const auto mark = ws.mark();
  T* const key = keys.empty() ? ws.take<T>(n) : keys.data();
  T* const uniform = ws.take<T>(n);
  RandomRow row = at;
  row.purpose = RandomPurpose::gumbel;
  simd::fill_uniform<T>(row, uniform, n);
  constexpr T most = std::numeric_limits<T>::max(), never = -std::numeric_limits<T>::infinity();
  const T* const logit = logits.data();
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    using B = simd::Batch<T>;
    const B a = load(logit + i), scaled = xsimd::max(B(-most), xsimd::min(B(most), B(a / B(static_cast<T>(temperature)))));
    const B drawn = scaled - simd::log(-simd::log(load(uniform + i)));
    store(key + i, xsimd::select(xsimd::abs(a) <= B(most), drawn, B(never)));
  });
  const Index finite = n - std::count(key, key + n, never);
  const Index count = std::min(picks.size(), finite);
  simd::top_k<T>(key, n, count, Order::descending, nullptr, picks.data(), ws);
  std::fill(picks.begin() + count, picks.end(), -1);
  return count;
}

/// The relaxed k-hot vector of the keys: weights [N] in [0, k], of sum k. As temperature goes to 0 it becomes the indicator of the k
/// largest.
///
///     α = key;  k times:  p = softmax(α / temperature),  α += log(1 - min(p, 1 - 1e-6));      weights = Σ p
///
/// probabilities [k, N] keeps the k softmaxes for backward. Keys of -infinity weigh 0; a NaN makes all weights NaN. Cost k N
/// exponentials and logarithms. Straight through: use the hard picks going forward and this gradient going back.
template <Real T>
void relaxed_top_k(VectorView<const T> keys, double temperature, MatrixView<T> probabilities, VectorView<T> weights,
                   Workspace& ws) {
  constexpr const char* name = "relaxed_top_k";
  check_size(name, "keys", keys, any_size);
  const Index n = keys.size();
  detail::check_temperature<T>(name, temperature);
  check_shape(name, "probabilities", probabilities, any_size, n);
  check_size(name, "weights", weights, n);
  const auto mark = ws.mark();
  T* const alpha = ws.take<T>(n);
  T* const logs = ws.take<T>(n);
  std::copy_n(keys.data(), n, alpha);
  std::fill(weights.begin(), weights.end(), T(0));
  for (Index m = 0; m < probabilities.rows(); ++m) {
    T* const p = probabilities.row(m);
    const T top = n > 0 ? *std::max_element(alpha, alpha + n) : T(0), shift = std::isfinite(top) ? top : T(0);
    for (Index i = 0; i < n; ++i) p[i] = (alpha[i] - shift) / static_cast<T>(temperature);  // at most 0, so none overflows
    simd::softmax<T>(p, n);
    simd::add(p, weights.data(), n);
    for (Index i = 0; i < n; ++i) logs[i] = -std::min(p[i], T(1 - 1e-6));
    simd::log1p<T>(logs, logs, n);
    simd::add(logs, alpha, n);
  }
}

/// Adds the gradient of the keys to `dkeys` [N], given that of the weights and what `relaxed_top_k` kept.
template <Real T>
void relaxed_top_k_backward(MatrixView<const T> probabilities, double temperature, VectorView<const T> dweights,
                            VectorView<T> dkeys, Workspace& ws) {
  constexpr const char* name = "relaxed_top_k_backward";
  check_shape(name, "probabilities", probabilities, any_size, any_size);
  const Index n = probabilities.cols();
  detail::check_temperature<T>(name, temperature);
  check_size(name, "dweights", dweights, n);
  check_size(name, "dkeys", dkeys, n);
  const auto mark = ws.mark();
  T* const dalpha = ws.take<T>(n);
  T* const dp = ws.take<T>(n);
  std::fill_n(dalpha, n, T(0));
  for (Index m = probabilities.rows(); m-- > 0;) {
    const T* const p = probabilities.row(m);
    for (Index i = 0; i < n; ++i) dp[i] = dweights[i] - (p[i] < T(1 - 1e-6) ? dalpha[i] / (1 - p[i]) : T(0));
    const T mean = simd::dot(p, dp, n);
    for (Index i = 0; i < n; ++i) dalpha[i] += p[i] * (dp[i] - mean) / static_cast<T>(temperature);
  }
  simd::add(dalpha, dkeys.data(), n);
}

}  // namespace RECOPS_ABI
}  // namespace recops
