/// @file   recops/diversity/dpp_loss.hpp
/// @brief  Learning a determinantal point process from lists that were chosen: likelihoods with gradients, and a regulariser that keeps
///         a list's vectors apart.
///
///     L = V V^T + delta I,   v_i = q_i f_i           P(Y) = det L_Y / det(L + I)       P(Y | |Y| = k) = det L_Y / e_k(eigenvalues of L)
///
///     dpp_nll  = -log det L_Y + log det(L + I)       kdpp_nll = -log det L_Y + log e_k(L)     (delta = 0)
///     soft_volume = -1/k log det(X X^T + delta I)    over the k rows of a list
///
/// Shapes      features [N, D]   quality [N] or empty (all 1)   chosen [k], distinct items   gradients as their inputs.
/// Edge cases  Y empty is a set like any other. A singular L_Y (more items than rank, doubles, quality 0, with delta = 0) has
///             probability 0: the loss is +infinity and no gradient is added. N = 0, D = 0.
/// NaN         Where an input is not finite the loss is NaN and no gradient is added.
/// Precision   Products, factors and sums in double, whatever T. With N >= D `dpp_nll` adds I to V^T V: of fewer than D items with lengths
///             of 1e7 and more beside short ones, I is lost next to their squares, and the loss is NaN. All long, or N < D: no limit.
/// Cost        2 N D min(N, D) + min(N, D)^3 + k^2 D flops, twice that with gradients: the N x N kernel is formed only where N < D.
///             kdpp_nll: an eigenvalue problem of D x D, and O(D k) logarithms.
/// Errors      Error for shapes, indices, doubles among them, negative quality or delta.
/// Gradient    of features and quality; *adds*. For q = exp(a r): dr = a q dq.
/// Reference   Kulesza & Taskar, Determinantal point processes for machine learning, 2012 (arXiv 1207.6083); Wilhelm et al., Practical
///             diversified recommendations on YouTube with DPPs, CIKM 2018 (learned kernels).
#pragma once
#include <recops/diversity/dpp_algebra.hpp>

namespace recops {

/// The items of one request.
template <class T>
struct DppItems {
  MatrixView<const T> features = {};  ///< [N, D]
  VectorView<const T> quality = {};   ///< [N] 0 or more; empty: 1
};

/// What to add gradients to; an empty view is not wanted.
template <class T>
struct DppGradients {
  MatrixView<T> features = {};  ///< [N, D]
  VectorView<T> quality = {};   ///< [N]
};

struct DppLossOptions {
  double delta = 1e-3;  ///< added to the diagonal of L, so that no list is impossible; 0 or more
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void check_dpp_items(const char* name, const DppItems<T>& in) {
  check_shape(name, "features", in.features, any_size, any_size);
  if (in.quality.empty()) return;
  check_size(name, "quality", in.quality, in.features.rows());
  for (Index i = 0; i < in.quality.size(); ++i)
    check_option(name, "quality", !(in.quality[i] < 0), "qualities of 0 or more", static_cast<double>(in.quality[i]));
}

template <class T>
void check_dpp_loss(const char* name, const DppItems<T>& in, IndexView chosen, const DppGradients<T>& gradients, Workspace& ws) {
  check_dpp_items(name, in);
  const Index n = in.features.rows();
  check_indices(name, "chosen", chosen, n);
  if (!gradients.features.empty()) check_shape(name, "gradient of features", gradients.features, n, in.features.cols());
  if (!gradients.quality.empty()) check_size(name, "gradient of quality", gradients.quality, n);
  const auto mark = ws.mark();
  auto* const taken = ws.take<std::uint8_t>(n);
  std::fill_n(taken, n, std::uint8_t{0});
  for (Index t = 0; t < chosen.size(); ++t) {
    if (taken[chosen[t]]++) [[unlikely]]
      fail_at(name, "chosen", "distinct items", -1, t, chosen[t]);
  }
}

/// Rows of V in double.
template <class T>
void dpp_row(const DppItems<T>& in, Index i, double* v) {
  const double q = in.quality.empty() ? 1.0 : static_cast<double>(in.quality[i]);
  for (Index d = 0; d < in.features.cols(); ++d) v[d] = q * static_cast<double>(in.features(i, d));
}

/// Rows that are turned to double at a time.
inline constexpr Index dpp_block = 256;

/// out = V^T V [D, D]
template <class T>
void dpp_gram(const DppItems<T>& in, MatrixView<double> out, Workspace& ws) {
  const Index n = in.features.rows(), d = in.features.cols();
  const auto mark = ws.mark();
  const MatrixView<double> block = ws.matrix<double>(std::min(n, dpp_block), d);
  for (Index i = 0; i < d; ++i) std::fill_n(out.row(i), d, 0.0);
  for (Index start = 0; start < n; start += dpp_block) {
    const Index rows = std::min(dpp_block, n - start);
    for (Index i = 0; i < rows; ++i) dpp_row(in, start + i, block.row(i));
    const MatrixView<const double> v = block.middle_rows(0, rows);
    simd::gemm<double>(simd::transposed(v), simd::plain(v), {.accumulate = true}, out, ws);
  }
}

/// Adds the gradient of V [row i is item i's] to those of features and quality.
template <class T>
void add_dpp_gradient(const DppItems<T>& in, Index i, const double* dv, const DppGradients<T>& gradients) {
  const Index d = in.features.cols();
  if (!gradients.features.empty()) {
    const double q = in.quality.empty() ? 1.0 : static_cast<double>(in.quality[i]);
    T* const out = gradients.features.row(i);
    for (Index c = 0; c < d; ++c) out[c] += static_cast<T>(q * dv[c]);
  }
  if (!gradients.quality.empty()) {
    double sum = 0;
    for (Index c = 0; c < d; ++c) sum += dv[c] * static_cast<double>(in.features(i, c));
    gradients.quality[i] += static_cast<T>(sum);
  }
}

/// Adds the gradient dV = 2 V M for all items, M [D, D] symmetric.
template <class T>
void add_dpp_gradients(const DppItems<T>& in, MatrixView<const double> m, const DppGradients<T>& gradients, Workspace& ws) {
  const Index n = in.features.rows(), d = in.features.cols();
  const auto mark = ws.mark();
  const MatrixView<double> v = ws.matrix<double>(std::min(n, dpp_block), d), dv = ws.matrix<double>(std::min(n, dpp_block), d);
  for (Index start = 0; start < n; start += dpp_block) {
    const Index rows = std::min(dpp_block, n - start);
    for (Index i = 0; i < rows; ++i) {
      dpp_row(in, start + i, v.row(i));
      simd::scale(2.0, v.row(i), v.row(i), d);
    }
    simd::gemm<double>(simd::plain(MatrixView<const double>(v.middle_rows(0, rows))), simd::plain(m), {}, dv.middle_rows(0, rows),
                       ws);
    for (Index i = 0; i < rows; ++i) add_dpp_gradient(in, start + i, dv.row(i), gradients);
  }
}

/// -log det(V_Y V_Y^T + delta I): value, and (unless null) its gradient 2 B^-1 V_Y with the sign turned, [k, D]. +infinity where
/// singular, NaN where not finite.
inline double negative_log_volume(MatrixView<const double> rows, double delta, MatrixView<double> gradient, Workspace& ws) {
  const Index k = rows.rows();
  if (k == 0) return 0;
  const auto mark = ws.mark();
  const MatrixView<double> b = ws.matrix<double>(k, k), inverse = ws.matrix<double>(k, k);
  simd::gemm<double>(simd::plain(rows), simd::transposed(rows), {}, b, ws);
  double trace = 0;
  for (Index i = 0; i < k; ++i) trace += b(i, i) += delta;
  if (!(trace <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::quiet_NaN();
  if (!cholesky(b)) return std::numeric_limits<double>::infinity();
  if (!gradient.empty()) {
    cholesky_inverse(b, inverse, ws);
    for (Index i = 0; i < k; ++i) simd::scale(-2.0, inverse.row(i), inverse.row(i), k);
    simd::gemm<double>(simd::plain(MatrixView<const double>(inverse)), simd::plain(rows), {}, gradient, ws);
  }
  return -log_det(b);
}

/// The part of the chosen rows: value, and dV_Y [k, D].
template <class T>
double dpp_chosen(const DppItems<T>& in, IndexView chosen, double delta, MatrixView<double> dv, Workspace& ws) {
  const auto mark = ws.mark();
  const MatrixView<double> rows = ws.matrix<double>(chosen.size(), in.features.cols());
  for (Index t = 0; t < chosen.size(); ++t) dpp_row(in, chosen[t], rows.row(t));
  return negative_log_volume(rows, delta, dv, ws);
}

}  // namespace detail

/// Negative log-likelihood of `chosen` [k] among all subsets of the request's items, adding its gradient.
template <Real T>
double dpp_nll(const DppItems<T>& in, IndexView chosen, const DppLossOptions& options, const DppGradients<T>& gradients,
               Workspace& ws) {
  constexpr const char* name = "dpp_nll";
  detail::check_dpp_loss(name, in, chosen, gradients, ws);
  const double delta = options.delta;
  check_option(name, "delta", delta >= 0 && delta < std::numeric_limits<double>::infinity(), "delta >= 0", delta);
  const Index n = in.features.rows(), d = in.features.cols(), side = std::min(n, d);
  const bool wanted = !gradients.features.empty() || !gradients.quality.empty();
  const auto mark = ws.mark();
  const MatrixView<double> dchosen = ws.matrix<double>(chosen.size(), d), a = ws.matrix<double>(side, side);
  const double chosen_part = detail::dpp_chosen(in, chosen, delta, dchosen, ws);
  // (1 + delta) I + V^T V has the same determinant, but for N - D factors of 1 + delta.
  const bool primal = n < d;
  const MatrixView<double> v = ws.matrix<double>(primal ? n : 0, d);
  if (primal) {
    for (Index i = 0; i < n; ++i) detail::dpp_row(in, i, v.row(i));
    simd::gemm<double>(simd::plain(MatrixView<const double>(v)), simd::transposed(MatrixView<const double>(v)), {}, a, ws);
  } else {
    detail::dpp_gram(in, a, ws);
  }
  double trace = 0;
  for (Index i = 0; i < side; ++i) trace += a(i, i) += 1 + delta;
  if (std::isnan(chosen_part) || !(trace <= std::numeric_limits<double>::max()) || !detail::cholesky(a))
    return std::numeric_limits<double>::quiet_NaN();
  const double value = chosen_part + detail::log_det(a) + static_cast<double>(n - side) * std::log1p(delta);
  if (!wanted || !(value < std::numeric_limits<double>::infinity())) return value;
  const MatrixView<double> inverse = ws.matrix<double>(side, side);
  detail::cholesky_inverse(a, inverse, ws);
  if (primal) {
    const MatrixView<double> dv = ws.matrix<double>(n, d);
    for (Index i = 0; i < n; ++i) simd::scale(2.0, inverse.row(i), inverse.row(i), n);
    simd::gemm<double>(simd::plain(MatrixView<const double>(inverse)), simd::plain(MatrixView<const double>(v)), {}, dv, ws);
    for (Index i = 0; i < n; ++i) detail::add_dpp_gradient(in, i, dv.row(i), gradients);
  } else {
    detail::add_dpp_gradients<T>(in, inverse, gradients, ws);
  }
  for (Index t = 0; t < chosen.size(); ++t) detail::add_dpp_gradient(in, chosen[t], dchosen.row(t), gradients);
  return value;
}

/// Negative log-likelihood of `chosen` [k] among all subsets of k items, adding its gradient.
template <Real T>
double kdpp_nll(const DppItems<T>& in, IndexView chosen, const DppGradients<T>& gradients, Workspace& ws) {
  detail::check_dpp_loss("kdpp_nll", in, chosen, gradients, ws);
  const Index d = in.features.cols(), k = chosen.size();
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (k == 0) return 0;  // the only subset of no items
  const bool wanted = !gradients.features.empty() || !gradients.quality.empty();
  const auto mark = ws.mark();
  const MatrixView<double> dchosen = ws.matrix<double>(k, d), u = ws.matrix<double>(d, d);
  double* const log_value = ws.take<double>(d);
  detail::dpp_gram(in, u, ws);
  if (!detail::psd_spectrum(u, log_value, ws)) return std::numeric_limits<double>::quiet_NaN();
  const double chosen_part = detail::dpp_chosen(in, chosen, 0, dchosen, ws);
  if (!(chosen_part < infinity)) return chosen_part;
  for (Index i = 0; i < d; ++i) log_value[i] = std::log(log_value[i]);
  const MatrixView<double> before = ws.matrix<double>(d + 1, k + 1), behind = ws.matrix<double>(d + 1, k + 1);
  detail::log_elementary_symmetric(log_value, d, 1, before);
  const double log_e = before(d, k);
  if (!(log_e > -infinity)) return infinity;  // k above the rank, as far as rounding lets one see
  if (!wanted) return chosen_part + log_e;
  // g_n = e_(k-1) of all but value n, over e_k: a product of what is before and behind it
  detail::log_elementary_symmetric(log_value + d - 1, d, -1, behind);
  const MatrixView<double> m = ws.matrix<double>(d, d), scaled = ws.matrix<double>(d, d);
  for (Index i = 0; i < d; ++i) {
    double g = 0;
    for (Index l = 0; l < k; ++l) g += std::exp(before(i, l) + behind(d - 1 - i, k - 1 - l) - log_e);
    simd::scale(g, u.row(i), scaled.row(i), d);
  }
  simd::gemm<double>(simd::transposed(MatrixView<const double>(u)), simd::plain(MatrixView<const double>(scaled)), {}, m, ws);
  detail::add_dpp_gradients<T>(in, m, gradients, ws);
  for (Index t = 0; t < k; ++t) detail::add_dpp_gradient(in, chosen[t], dchosen.row(t), gradients);
  return chosen_part + log_e;
}

/// -1/k log det(X X^T + delta I) of the rows of one list x [k, D], adding its gradient to dx (unless empty): 0 for unit rows that are
/// orthogonal (and delta 0), growing as they come together. An empty list gives 0.
template <Real T>
double soft_volume(MatrixView<const T> x, const DppLossOptions& options, MatrixView<T> dx, Workspace& ws) {
  constexpr const char* name = "soft_volume";
  check_shape(name, "x", x, any_size, any_size);
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  check_option(name, "delta", options.delta >= 0 && options.delta < std::numeric_limits<double>::infinity(), "delta >= 0",
               options.delta);
  const Index k = x.rows(), d = x.cols();
  if (k == 0) return 0;
  const auto mark = ws.mark();
  const MatrixView<double> rows = ws.matrix<double>(k, d), drows = ws.matrix<double>(k, d);
  for (Index i = 0; i < k; ++i)
    for (Index c = 0; c < d; ++c) rows(i, c) = static_cast<double>(x(i, c));
  const double share = 1 / static_cast<double>(k);
  const double value = share * detail::negative_log_volume(rows, options.delta, dx.empty() ? MatrixView<double>() : drows, ws);
  if (dx.empty() || !(value < std::numeric_limits<double>::infinity())) return value;
  for (Index i = 0; i < k; ++i)
    for (Index c = 0; c < d; ++c) dx(i, c) += static_cast<T>(share * drows(i, c));
  return value;
}

}  // namespace RECOPS_ABI
}  // namespace recops
