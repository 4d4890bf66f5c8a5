/// @file   recops/attention/target_attention.hpp
/// @brief  The candidates of a user attend to that user's behaviours: one pass over a history serves all its candidates.
///
/// Per user and head: out_i = sum_j softmax_j(c candidate_i . key_j) value_j over the behaviours j that are not masked. Keys and
/// values are usually the history itself, or its projections, which do not depend on the candidate and may be cached.
/// Cost 2 N L H (dk + dv) flops per user; L H (dk + dv) numbers are read once for all N candidates. A user without behaviours
/// (or with all of them masked) gets zeros. See docs/target_attention.md.
/// Source: target attention in the manner of Vaswani et al., arXiv 1706.03762, as in the exact search units of SIM
/// (arXiv 2006.05639) and TWIN (arXiv 2302.02352).
#pragma once
#include <recops/nn/scaled_dot_product_attention.hpp>

namespace recops {

/// Histories of int8 rows (simd/quantize.hpp) with one scale per row, or one per row and head (block = columns of a head).
/// Scales count after the products with codes: queries have to be below 1e28, or a product overflows to NaN.
struct QuantizedHistory {
  QuantizedView rows = {};  ///< codes [total_L, D]
  IndexView offsets = {};   ///< [B + 1]; empty: one user

  RECOPS_INLINE JaggedView<const std::int8_t> codes() const {
    return offsets.size() == 0 ? JaggedView<const std::int8_t>(rows.codes) : JaggedView<const std::int8_t>(rows.codes, offsets);
  }
};

inline namespace RECOPS_ABI {

/// out `[total_N, H dv]`: candidates `[total_N, H dk]` over keys `[total_L, H dk]` and values `[total_L, H dv]`, user by user.
/// All three hold the same users in the same order; plain matrices are one user. Throws `Error` for shapes that do not fit.
template <class T>
void target_attention(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                      const AttentionOptions& options, MatrixView<T> out, Workspace& ws) {
  detail::attention<T>({"target_attention", "candidates"}, candidates, keys, values, {}, options, out, {}, ws);
}

/// The same with keys = values = history `[total_L, D]`.
template <class T>
void target_attention(JaggedView<const T> candidates, JaggedView<const T> history, const AttentionOptions& options,
                      MatrixView<T> out, Workspace& ws) {
  detail::attention<T>({"target_attention", "candidates", "history", "history"}, candidates, history, history, {}, options, out,
                       {}, ws);
}

/// The same, keeping log_sum_exp `[total_N, H]` for `target_attention_backward`.
template <class T>
void target_attention(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                      const AttentionOptions& options, MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::attention<T>({"target_attention", "candidates"}, candidates, keys, values, {}, options, out, log_sum_exp, ws);
}
template <class T>
void target_attention(JaggedView<const T> candidates, JaggedView<const T> history, const AttentionOptions& options,
                      MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::attention<T>({"target_attention", "candidates", "history", "history"}, candidates, history, history, {}, options, out,
                       log_sum_exp, ws);
}

/// The same over keys and values that are stored as bfloat16: half the bytes to keep and to read; the arithmetic is float's. The result
/// is exactly that of the rounded keys and values. log_sum_exp may be empty. There is no backward over stored keys: training keeps
/// them in float.
template <class T>
requires std::is_same_v<T, float>
void target_attention(JaggedView<const T> candidates, std::type_identity_t<JaggedView<const BFloat16>> keys,
                      std::type_identity_t<JaggedView<const BFloat16>> values, const AttentionOptions& options, MatrixView<T> out,
                      MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::stored_attention<BFloat16>({"target_attention", "candidates"}, candidates, keys, values, nullptr, nullptr, options, out,
                                     log_sum_exp, ws);
}
template <class T>
requires std::is_same_v<T, float>
void target_attention(JaggedView<const T> candidates, std::type_identity_t<JaggedView<const BFloat16>> history,
                      const AttentionOptions& options, MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::stored_attention<BFloat16>({"target_attention", "candidates", "history", "history"}, candidates, history, history,
                                     nullptr, nullptr, options, out, log_sum_exp, ws);
}

/// The same over int8 rows, a quarter of the bytes: exactly the result of the rows that the codes stand for, s * code. A row whose
/// scale is NaN (it held a NaN) makes the (candidate, head) pairs NaN that see it.
template <class T>
requires std::is_same_v<T, float>
void target_attention(JaggedView<const T> candidates, const QuantizedHistory& keys, const QuantizedHistory& values,
                      const AttentionOptions& options, MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::stored_attention<std::int8_t>({"target_attention", "candidates"}, candidates, keys.codes(), values.codes(), &keys.rows,
                                        &values.rows, options, out, log_sum_exp, ws);
}
template <class T>
requires std::is_same_v<T, float>
void target_attention(JaggedView<const T> candidates, const QuantizedHistory& history, const AttentionOptions& options,
                      MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::stored_attention<std::int8_t>({"target_attention", "candidates", "history", "history"}, candidates, history.codes(),
                                        history.codes(), &history.rows, &history.rows, options, out, log_sum_exp, ws);
}

/// Adds to the gradients of candidates, keys and values (empty: not wanted), given what forward wrote and `dout`.
template <class T>
void target_attention_backward(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                               const AttentionOptions& options, MatrixView<const T> out, MatrixView<const T> log_sum_exp,
                               MatrixView<const T> dout, MatrixView<T> dcandidates, MatrixView<T> dkeys, MatrixView<T> dvalues,
                               Workspace& ws) {
  detail::attention_backward<T>({"target_attention_backward", "candidates", "keys", "values", "dcandidates"}, candidates, keys,
                                values, {}, options, out, log_sum_exp, dout, {}, dcandidates, dkeys, dvalues, {}, ws);
}

/// The same for keys = values = history: dhistory gets both contributions.
template <class T>
void target_attention_backward(JaggedView<const T> candidates, JaggedView<const T> history, const AttentionOptions& options,
                               MatrixView<const T> out, MatrixView<const T> log_sum_exp, MatrixView<const T> dout,
                               MatrixView<T> dcandidates, MatrixView<T> dhistory, Workspace& ws) {
  detail::attention_backward<T>(
      {"target_attention_backward", "candidates", "history", "history", "dcandidates", "dhistory", "dhistory"}, candidates,
      history, history, {}, options, out, log_sum_exp, dout, {}, dcandidates, dhistory, dhistory, {}, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
