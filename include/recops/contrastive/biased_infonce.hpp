/// @file   recops/contrastive/biased_infonce.hpp
/// @brief  Softmax cross-entropy of rows against candidates with a bias for every logit: what contrastive losses have in common.
///
///     z_ij = s <u_i, v_j> + c_j + b_ij        s = exp(min(log_scale, log 100)); -infinity where j is no candidate of i
///     L    = sum_i w_i ( log sum_j exp z_ij - z_i,positive(i) ) / sum_i w_i
///
/// InfoNCE, in-batch softmax with log q, a momentum queue, NT-Xent, SupCon and soft labels are this loss with other options: see
/// docs/contrastive.md. With soft targets Q a row loses sum_j Q_ij log sum_j exp z_ij - sum_j Q_ij z_ij.
///
/// Shapes      u [B, D]   v [K, D]   positives [B]: the row's column, -1: the row is left out
/// Edge cases  Rows without a positive, or whose positive is no candidate, are left out and not read; without any the loss is 0. A row
///             with its positive as the only candidate loses exactly 0. The scale has no gradient beyond log 100.
/// NaN         A row whose logits hold a NaN or +infinity makes the loss NaN and its own du; other gradients are as without the row. (A
///             candidate that is not finite is seen by every row it is a candidate of.)
/// Precision   logits and exponentials in T, sums over rows in double. Max-shifted: any finite logits are safe.
/// Cost        2 B K D flops, 6 B K D more for the gradients (4 where the logits are kept), and B K exponentials once (twice).
///             Scratch O(B D + K), and `kept_bytes` at the most: where the [B, K] logits take more they are made again, block by block.
///             Same bits for any number of threads, and kept or made again.
/// Errors      Error if shapes, options or indices disagree; outputs untouched.
/// Reference   van den Oord et al., arXiv 1807.03748; log q: Yi et al., RecSys 2019; learned scale and its limit: arXiv 2103.00020.
#pragma once
#include <recops/contrastive/infonce_blocks.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// The loss.
template <Real T>
double biased_infonce(MatrixView<const T> u, MatrixView<const T> v, IndexView positives, const InfoNceOptions<T>& options,
                      Workspace& ws) {
  const auto mark = ws.mark();
  return detail::InfoNce<T>("biased_infonce", u, v, positives, options, ws).loss(nullptr, ws);
}

/// The loss; writes what there is to watch to `statistics`, which needs `positives`.
template <Real T>
double biased_infonce(MatrixView<const T> u, MatrixView<const T> v, IndexView positives, const InfoNceOptions<T>& options,
                      InfoNceStatistics& statistics, Workspace& ws) {
  const auto mark = ws.mark();
  return detail::InfoNce<T>("biased_infonce", u, v, positives, options, ws).loss(&statistics, ws);
}

/// The loss; adds its gradients, times `gradient.upstream`.
template <Real T>
double biased_infonce_value_and_grad(MatrixView<const T> u, MatrixView<const T> v, IndexView positives,
                                     const InfoNceOptions<T>& options, const InfoNceGradient<T>& gradient, Workspace& ws) {
  const auto mark = ws.mark();
  detail::InfoNce<T> call("biased_infonce_value_and_grad", u, v, positives, options, ws);
  call.check(gradient);
  call.keep(ws);
  const double loss = call.loss(nullptr, ws);
  call.backward(gradient, ws);
  return loss;
}

/// The same, and writes what there is to watch to `statistics`, which needs `positives`.
template <Real T>
double biased_infonce_value_and_grad(MatrixView<const T> u, MatrixView<const T> v, IndexView positives,
                                     const InfoNceOptions<T>& options, const InfoNceGradient<T>& gradient,
                                     InfoNceStatistics& statistics, Workspace& ws) {
  const auto mark = ws.mark();
  detail::InfoNce<T> call("biased_infonce_value_and_grad", u, v, positives, options, ws);
  call.check(gradient);
  call.keep(ws);
  const double loss = call.loss(&statistics, ws);
  call.backward(gradient, ws);
  return loss;
}

}  // namespace RECOPS_ABI
}  // namespace recops
