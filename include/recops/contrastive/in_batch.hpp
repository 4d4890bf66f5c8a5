/// @file   recops/contrastive/in_batch.hpp
/// @brief  In-batch contrastive losses: rows that belong together in pairs, the rest of the batch as negatives.
///
///     inbatch_symmetric   z_ij = s <u_i, v_j>    L = 1/2 [ mean_i (log sum_j exp(z_ij + b_j) - z_ii - b_i)
///                                                        + mean_j (log sum_i exp(z_ij + a_i) - z_jj - a_j) ]
///     nt_xent             the rows of Z in two halves, row i and row i + B/2 belong together; all other rows are negatives, itself left out
///
/// Shapes      u, v, du, dv [B, D]; z, dz [B, D], B even
/// Edge cases  A pair of weight 0 is left out altogether: it is nobody's negative and is not read. B = 0, or 1, loses 0.
/// NaN, cost, errors as in biased_infonce.hpp, of which both are made: the symmetric form is twice the loss, once for each side.
/// Reference   Radford et al., arXiv 2103.00020 (symmetric); Chen et al., arXiv 2002.05709 (NT-Xent).
#pragma once
#include <recops/contrastive/biased_infonce.hpp>

namespace recops {

/// Options of `inbatch_symmetric`; what is empty is left out.
template <class T>
struct InBatchOptions {
  double log_scale = 0;              ///< logarithm of the scale, log(1 / temperature), as in `InfoNceOptions`
  VectorView<const T> weights = {};  ///< [B] >= 0 of the pairs; 0: the pair is left out, as a negative of others too
  /// Ids [B] of the rows of u and of v (user, item): v_j is no negative of u_i where v_ids say that it is v_i's equal, and u_i none of
  /// v_j where u_ids do.
  IndexView u_ids = {}, v_ids = {};
  VectorView<const T> u_bias = {},
                      v_bias = {};  ///< [B], added to the logits of a candidate: -log q, how probable it is in a batch
};

inline namespace RECOPS_ABI {

namespace detail {

/// Both directions of one batch, without gradients where `g` is null.
template <class T>
double inbatch_symmetric(const char* name, MatrixView<const T> u, MatrixView<const T> v, const InBatchOptions<T>& o,
                         const InfoNceGradient<T>* g, Workspace& ws) {
  check_shape(name, "u", u, any_size, any_size);
  const Index rows = u.rows();
  check_shape(name, "v", v, rows, u.cols());
  check_option(name, "log_scale", std::isfinite(o.log_scale), "a finite number", o.log_scale);
  const auto check_numbers = [&](const char* which, VectorView<const T> view) {
    if (!view.empty()) check_size(name, which, view, rows);
  };
  const auto check_ids = [&](const char* which, IndexView ids) {
    check_not_null(name, which, ids);
    if (!ids.empty() && ids.size() != rows) fail_size(name, which, rows, ids.size(), false);
  };
  check_numbers("weights", o.weights);
  check_numbers("u_bias", o.u_bias);
  check_numbers("v_bias", o.v_bias);
  check_ids("u_ids", o.u_ids);
  check_ids("v_ids", o.v_ids);
  for (const T w : o.weights)
    check_option(name, "weights", w >= T(0) && w < std::numeric_limits<T>::infinity(), "weights >= 0", static_cast<double>(w));
  if (g) {
    if (!g->du.empty()) check_shape(name, "du", g->du, rows, u.cols());
    if (!g->dv.empty()) check_shape(name, "dv", g->dv, rows, u.cols());
    check_option(name, "gradient", g->dbias.empty() && g->dcolumn_bias.empty(), "none of biases", 1);
  }
  const auto mark = ws.mark();
  auto* const own = ws.take<std::int64_t>(rows);
  auto* const there = ws.take<std::uint8_t>(o.weights.empty() ? 0 : rows);
  for (Index i = 0; i < rows; ++i) own[i] = i;
  for (Index i = 0; i < o.weights.size(); ++i) there[i] = o.weights[i] != T(0);
  const VectorView<const std::uint8_t> candidates(there, o.weights.size());
  const auto one = [&](MatrixView<const T> a, MatrixView<const T> b, IndexView ids, VectorView<const T> bias, MatrixView<T> da,
                       MatrixView<T> db) {
    const InfoNceOptions<T> options{.log_scale = o.log_scale,
                                    .weights = o.weights,
                                    .column_bias = bias,
                                    .candidates = candidates,
                                    .row_ids = ids,
                                    .column_ids = ids};
    const auto inner = ws.mark();
    InfoNce<T> call(name, a, b, IndexView(own, rows), options, ws);
    if (!g) return call.loss(nullptr, ws);
    call.keep(ws);
    const double loss = call.loss(nullptr, ws);
    call.backward({.du = da, .dv = db, .dlog_scale = g->dlog_scale, .upstream = g->upstream / 2}, ws);
    return loss;
  };
  const MatrixView<T> none, du = g ? g->du : none, dv = g ? g->dv : none;
  const double from_u = one(u, v, o.v_ids, o.v_bias, du, dv), from_v = one(v, u, o.u_ids, o.u_bias, dv, du);
  return (from_u + from_v) / 2;
}

/// Row i belongs to row (i + B/2) mod B.
inline IndexView partners(const char* name, Index rows, Workspace& ws) {
  check_option(name, "rows", rows % 2 == 0, "an even number, views of the same things in two halves", static_cast<double>(rows));
  auto* const partner = ws.take<std::int64_t>(rows);
  for (Index i = 0; i < rows; ++i) partner[i] = (i + rows / 2) % rows;
  return IndexView(partner, rows);
}

}  // namespace detail

/// The symmetric in-batch loss of pairs (u_i, v_i).
template <Real T>
double inbatch_symmetric(MatrixView<const T> u, MatrixView<const T> v, const InBatchOptions<T>& options, Workspace& ws) {
  return detail::inbatch_symmetric<T>("inbatch_symmetric", u, v, options, nullptr, ws);
}

/// The same, and adds its gradients (du, dv, dlog_scale), times `gradient.upstream`. du and dv may be the same view.
template <Real T>
double inbatch_symmetric_value_and_grad(MatrixView<const T> u, MatrixView<const T> v, const InBatchOptions<T>& options,
                                        const InfoNceGradient<T>& gradient, Workspace& ws) {
  return detail::inbatch_symmetric<T>("inbatch_symmetric_value_and_grad", u, v, options, &gradient, ws);
}

/// NT-Xent of two views of the same B / 2 things, one after the other in z.
template <Real T>
double nt_xent(MatrixView<const T> z, double log_scale, Workspace& ws) {
  const auto mark = ws.mark();
  const IndexView partners = detail::partners("nt_xent", z.rows(), ws);
  return biased_infonce<T>(z, z, partners, {.log_scale = log_scale, .exclude_diagonal = true}, ws);
}

/// The same, and adds its gradient: of every row as an anchor and as a candidate.
template <Real T>
double nt_xent_value_and_grad(MatrixView<const T> z, double log_scale, MatrixView<T> dz, Workspace& ws) {
  const auto mark = ws.mark();
  const IndexView partners = detail::partners("nt_xent_value_and_grad", z.rows(), ws);
  return biased_infonce_value_and_grad<T>(z, z, partners, {.log_scale = log_scale, .exclude_diagonal = true},
                                          {.du = dz, .dv = dz}, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
