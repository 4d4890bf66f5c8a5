/// @file   recops/ranking/score_fusion.hpp
/// @brief  One score out of several: the formula of products of powers that services tune by hand, differentiable, and fusion of ranks.
///
///     formula     log s = Σ_m gamma_m log(alpha_m + beta_m x_m)                       s itself with `log_output = false`
///     ranks       s = Σ_m w_m / (rank_m + k)^power                                    reciprocal rank fusion: k = 60, power 1
///
/// The logarithm ranks as s does and neither overflows nor underflows. A weighted sum is a `linear` (nn) without bias.
///
/// Shapes      x [n, M], a column per objective   alpha, beta, gamma, weights [M]   out [n]   offsets [G + 1], or none for one group
/// Edge cases  empty groups are fine.  Ranks are from 1, the best score first, ties by the lowest index.
/// NaN         formula: makes its own row NaN.  Ranks: NaN ranks last.
/// Precision   formula: logarithms in T, their sums in double.  Ranks: double.
/// Cost        O(n M), one logarithm each; ranks a sort per group and objective.  Scratch 64 M or 20 n bytes.
/// Errors      Error if sizes disagree, alpha + beta x <= 0 somewhere, or k, power or a weight is out of range.
/// Gradient    formula: of x, alpha, beta and gamma; adds.  Ranks have none.
/// Reference   Cormack, Clarke and Büttcher, SIGIR 2009 (reciprocal rank fusion); the formula is the trade's.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/argsort.hpp>
#include <recops/simd/log.hpp>

namespace recops {

/// The constants of the formula; all [M].
template <class T>
struct FormulaParameters {
  VectorView<const T> alpha, beta, gamma;
};

/// Their gradients; what is empty is not wanted.
template <class T>
struct FormulaGradients {
  VectorView<T> alpha = {}, beta = {}, gamma = {};
};

/// Options of `formula_ensemble`.
struct FormulaOptions {
  bool log_output = true;  ///< give log s
};

/// Options of `rank_fusion`.
struct RankFusionOptions {
  double k = 60;     ///< >= 0; the larger, the less the first places stand out
  double power = 1;  ///< > 0
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void check_formula(const char* name, MatrixView<const T> x, const FormulaParameters<T>& p) {
  check_shape(name, "x", x, any_size, any_size);
  check_size(name, "alpha", p.alpha, x.cols());
  check_size(name, "beta", p.beta, x.cols());
  check_size(name, "gamma", p.gamma, x.cols());
  for (Index i = 0; i < x.rows(); ++i) {
    for (Index m = 0; m < x.cols(); ++m) {
      const T v = p.alpha[m] + p.beta[m] * x(i, m);
      check_option(name, "x", !(v <= 0), "alpha + beta x > 0", static_cast<double>(v));
    }
  }
}

inline constexpr Index formula_rows = 16;  // rows whose logarithms are taken together

}  // namespace detail

/// out_i = Σ_m gamma_m log(alpha_m + beta_m x_im), or its exponential. Throws `Error`; see above.
template <Real T>
void formula_ensemble(MatrixView<const T> x, const FormulaParameters<T>& parameters, const FormulaOptions& options,
                      VectorView<T> out, Workspace& ws) {
  constexpr const char* name = "formula_ensemble";
  detail::check_formula(name, x, parameters);
  check_size(name, "out", out, x.rows());
  const Index n = x.rows(), count = x.cols();
  const auto mark = ws.mark();
  T* const logs = ws.take<T>(detail::formula_rows * count);
  for (Index first = 0; first < n; first += detail::formula_rows) {
    const Index rows = std::min(detail::formula_rows, n - first);
    for (Index i = 0; i < rows; ++i)
      for (Index m = 0; m < count; ++m) logs[i * count + m] = parameters.alpha[m] + parameters.beta[m] * x(first + i, m);
    simd::log<T>(logs, logs, rows * count);
    for (Index i = 0; i < rows; ++i) {
      double sum = 0;
      for (Index m = 0; m < count; ++m)
        sum += static_cast<double>(parameters.gamma[m]) * static_cast<double>(logs[i * count + m]);
      out[first + i] = static_cast<T>(options.log_output ? sum : std::exp(sum));
    }
  }
}

/// Takes what forward took and wrote, and the gradient `dout [n]` of its output; adds to `dx [n, M]`, unless empty, and `dparameters`.
template <Real T>
void formula_ensemble_backward(MatrixView<const T> x, const FormulaParameters<T>& parameters, const FormulaOptions& options,
                               VectorView<const T> out, VectorView<const T> dout, MatrixView<T> dx,
                               const FormulaGradients<T>& dparameters, Workspace& ws) {
  constexpr const char* name = "formula_ensemble_backward";
  detail::check_formula(name, x, parameters);
  const Index n = x.rows(), count = x.cols();
  check_size(name, "out", out, n);
  check_size(name, "dout", dout, n);
  if (!dx.empty()) check_shape(name, "dx", dx, n, count);
  if (!dparameters.alpha.empty()) check_size(name, "dalpha", dparameters.alpha, count);
  if (!dparameters.beta.empty()) check_size(name, "dbeta", dparameters.beta, count);
  if (!dparameters.gamma.empty()) check_size(name, "dgamma", dparameters.gamma, count);
  const auto mark = ws.mark();
  double* const sums = ws.take<double>(3 * count);  // of the parameters' gradients
  std::fill_n(sums, 3 * count, 0.0);
  for (Index i = 0; i < n; ++i) {
    const double u = static_cast<double>(dout[i]) * (options.log_output ? 1.0 : static_cast<double>(out[i]));
    for (Index m = 0; m < count; ++m) {
      const double beta = static_cast<double>(parameters.beta[m]), z = static_cast<double>(x(i, m));
      const double v = static_cast<double>(parameters.alpha[m]) + beta * z,
                   by_v = u * static_cast<double>(parameters.gamma[m]) / v;
      if (!dx.empty()) dx(i, m) += static_cast<T>(by_v * beta);
      sums[m] += by_v;
      sums[count + m] += by_v * z;
      if (!dparameters.gamma.empty()) sums[2 * count + m] += u * std::log(v);
    }
  }
  for (Index m = 0; m < count; ++m) {
    if (!dparameters.alpha.empty()) dparameters.alpha[m] += static_cast<T>(sums[m]);
    if (!dparameters.beta.empty()) dparameters.beta[m] += static_cast<T>(sums[count + m]);
    if (!dparameters.gamma.empty()) dparameters.gamma[m] += static_cast<T>(sums[2 * count + m]);
  }
}

/// out_i = Σ_m weights_m / (rank_im + k)^power with the ranks of column m within each group; `weights [M]` empty: all 1. Groups run on
/// the workspace's threads. Throws `Error`; see above.
template <Real T>
void rank_fusion(MatrixView<const T> x, IndexView offsets, VectorView<const T> weights, const RankFusionOptions& options,
                 VectorView<T> out, Workspace& ws) {
  constexpr const char* name = "rank_fusion";
  check_shape(name, "x", x, any_size, any_size);
  const Index n = x.rows();
  check_option(name, "x", n < Index{1} << 31, "fewer than 2^31 rows", static_cast<double>(n));
  if (!offsets.empty()) check_offsets(name, "offsets", offsets, n);
  if (!weights.empty()) check_size(name, "weights", weights, x.cols());
  for (const T w : weights) check_option(name, "weights", w - w == 0, "finite weights", static_cast<double>(w));
  check_option(name, "k", options.k >= 0 && options.k <= 1e30, "0 <= k <= 1e30", options.k);
  check_option(name, "power", options.power > 0 && options.power <= 1e3, "0 < power <= 1000", options.power);
  check_size(name, "out", out, n);
  const Index groups = offsets.empty() ? 1 : offsets.size() - 1;
  ws.parallel_for(groups, [&](Index g, Workspace& scratch) {
    const Index begin = offsets.empty() ? 0 : offsets[g], size = offsets.empty() ? n : offsets[g + 1] - begin;
    const auto mark = scratch.mark();
    T* const column = scratch.take<T>(size);
    std::int32_t* const rank = scratch.take<std::int32_t>(size);
    double* const sum = scratch.take<double>(size);
    std::fill_n(sum, size, 0.0);
    for (Index m = 0; m < x.cols(); ++m) {
      for (Index i = 0; i < size; ++i) column[i] = x(begin + i, m);
      simd::ranks<T>(column, size, Order::descending, rank, scratch);
      const double w = weights.empty() ? 1.0 : static_cast<double>(weights[m]);
      for (Index i = 0; i < size; ++i) {
        const double place = static_cast<double>(rank[i]) + 1 + options.k;
        sum[i] += w / (options.power == 1 ? place : std::pow(place, options.power));
      }
    }
    for (Index i = 0; i < size; ++i) out[begin + i] = static_cast<T>(sum[i]);
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
