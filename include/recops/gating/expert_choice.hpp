/// @file   recops/gating/expert_choice.hpp
/// @brief  Routing the other way round: each expert chooses the rows it scores highest. Every expert is equally busy, without a loss.
///
///     S = softmax over experts of the logits        expert e takes the `capacity` rows with the largest S_e
///     y_n = sum over the experts that chose n of S_ne expert_e(x_n)
///
/// A row's output depends on the rest of its batch, and a row may find no expert: for training and for scoring offline, not for serving.
///
/// Shapes      logits [N, E]   chosen [E, cap] int32 rows, best first   weights [E, cap]
/// Ties        the lower row.   A NaN logit makes its row's scores NaN: chosen last.
/// Cost        N E exp, and a top-k of N for each expert.   Same bits for any number of threads.
/// Errors      Error if shapes disagree or cap > N; outputs untouched.
/// Reference   Zhou et al., "Mixture-of-Experts with Expert Choice Routing", arXiv 2202.09368, equations 1 to 3.
#pragma once
#include <recops/nn/layer_norm.hpp>
#include <recops/simd/softmax.hpp>
#include <recops/simd/top_k.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Rows that each expert takes: ceil(rows * factor / experts), at most all; a factor of 2 is usual.
inline Index expert_capacity(Index rows, Index experts, double factor) {
  check_option("expert_capacity", "experts", experts >= 1, "experts >= 1", static_cast<double>(experts));
  check_option("expert_capacity", "factor", factor > 0 && std::isfinite(factor), "factor > 0", factor);
  const double wanted = std::ceil(static_cast<double>(rows) * factor / static_cast<double>(experts));
  return wanted >= static_cast<double>(rows) ? rows : static_cast<Index>(wanted);
}

/// Writes `chosen` and `weights`; their columns are the capacity.
template <Real T>
void route_expert_choice(MatrixView<const T> logits, MatrixView<std::int32_t> chosen, MatrixView<T> weights, Workspace& ws) {
  constexpr const char* name = "route_expert_choice";
  check_shape(name, "logits", logits, any_size, any_size);
  const Index n = logits.rows(), e = logits.cols(), cap = chosen.cols();
  check_shape(name, "chosen", chosen, e, any_size);
  check_option(name, "capacity", cap <= n, "at most the number of rows", static_cast<double>(cap));
  check_shape(name, "weights", weights, e, cap);
  const auto mark = ws.mark();
  // A column for each expert; an odd number of lines apart, else the lines of one row would evict each other.
  constexpr Index W = simd::lanes<T>, line = 64 / static_cast<Index>(sizeof(T));
  const Index stride = ((n + line - 1) / line | 1) * line;
  T* const columns = ws.take<T>(e * stride);
  static_assert(detail::norm_rows % line == 0);
  detail::for_row_blocks(n, ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto own = scratch.mark();
    const MatrixView<T> p = scratch.matrix<T>(count, e);
    for (Index r = 0; r < count; ++r) simd::softmax<T>(logits.row(first + r), p.row(r), e);
    simd::pack_transposed<T, simd::DefaultArch>(p.data(), p.stride(), count, e, T(1), columns + first, stride, (count + W - 1) / W * W);
  });
  ws.parallel_for(e, [&](Index i, Workspace& scratch) {
    simd::top_k<T>(columns + i * stride, n, cap, Order::descending, weights.row(i), chosen.row(i), scratch);
  });
}

/// Takes what forward took and wrote; adds to `dlogits`.
template <Real T>
void route_expert_choice_backward(MatrixView<const T> logits, MatrixView<const std::int32_t> chosen, MatrixView<const T> dweights,
                                  MatrixView<T> dlogits, Workspace& ws) {
  constexpr const char* name = "route_expert_choice_backward";
  check_shape(name, "logits", logits, any_size, any_size);
  const Index n = logits.rows(), e = logits.cols(), cap = chosen.cols();
  check_shape(name, "chosen", chosen, e, any_size);
  check_shape(name, "dweights", dweights, e, cap);
  check_shape(name, "dlogits", dlogits, n, e);
  for (Index i = 0; i < e; ++i) check_indices(name, "chosen", IndexView(chosen.row(i), cap), n);
  const auto mark = ws.mark();
  const MatrixView<T> dp = ws.matrix<T>(n, e);
  std::fill_n(dp.data(), n * e, T(0));
  for (Index i = 0; i < e; ++i)
    for (Index j = 0; j < cap; ++j) dp(chosen(i, j), i) += dweights(i, j);
  detail::for_row_blocks(n, ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto own = scratch.mark();
    T* const p = scratch.take<T>(e);
    for (Index r = first; r < first + count; ++r) {
      simd::softmax<T>(logits.row(r), p, e);
      const T mean = simd::dot(p, dp.row(r), e);
      for (Index i = 0; i < e; ++i) dlogits(r, i) += p[i] * (dp(r, i) - mean);
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
