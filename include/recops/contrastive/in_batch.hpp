/// @file   recops/contrastive/in_batch.hpp
/// @brief  In-batch contrastive losses: rows that belong together in pairs, the rest of the batch as negatives.
///
///     inbatch_symmetric   z_ij = s <u_i, v_j>    L = 1/2 [ mean_i (log sum_j exp(z_ij + b_j) - z_ii - b_i)
///                                                        + mean_j (log sum_i exp(z_ij + a_i) - z_jj - a_j) ]
///     nt_xent             the rows of Z in two halves, row i and row i + B/2 belong together; all other rows are negatives, itself left
///                         out
///
/// Shapes      u, v, du, dv [B, D]; z, dz [B, D], B even
/// Edge cases  A pair of weight 0 is left out altogether: it is nobody's negative and is not read. B = 0, or 1, loses 0.
/// NaN, errors as in biased_infonce.hpp.   Cost  2 B^2 D flops, and 4 B^2 D for the gradients, of the symmetric form too: one matrix of
///             logits, never whole in memory beyond `kept_bytes`, serves both sides.
/// Reference   Radford et al., arXiv 2103.00020 (symmetric); Chen et al., arXiv 2002.05709 (NT-Xent).
#pragma once
#include <recops/contrastive/biased_infonce.hpp>
#include <recops/contrastive/in_batch_blocks.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// Both directions of one batch, without gradients where `g` is null.
template <class T>
double inbatch_symmetric(const char* name, MatrixView<const T> u, MatrixView<const T> v, const InBatchOptions<T>& options,
                         const InfoNceGradient<T>* g, Workspace& ws) {
  const auto mark = ws.mark();
  InBatch<T> call(name, u, v, options, ws);
  if (!g) return call.loss(ws);
  call.check_gradient(*g);
  call.keep(ws);
  const double loss = call.loss(ws);
  call.backward(*g, ws);
  return loss;
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
