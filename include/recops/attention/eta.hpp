/// @file   recops/attention/eta.hpp
/// @brief  ETA: find the behaviours nearest to a candidate by comparing 64-bit signatures, then attend to those exactly.
///
///     signature(x) = signs of 64 fixed random projections (simhash)           8 bytes a behaviour instead of 4 D
///     S_n          = the k behaviours with the smallest Hamming distance to candidate n, ties to the older one
///     out_n        = softmax over S_n of (c candidate_n . key_j) value_j
///
/// Signatures are kept with the embeddings and hashed again when those change. Selection has no gradient: embeddings learn through the
/// attention over what was selected. See docs/history_search.md.
///
/// Shapes      candidates [total_N, H dk], keys, values [total_L, ...] as in target_attention; signatures [total_N or total_L, words]
///             indices [total_N, k]   distances [total_N, k] or empty   out [total_N, H dv]
/// Edge cases  fewer than k behaviours: the places left over hold -1 (distance 255).   No behaviours: zeros.
/// Cost        per candidate less than a cycle a behaviour (AVX2, 64 bits, N >= 3), then 2 k H (dk + dv) flops.
/// Errors      Error if shapes disagree; outputs untouched.
/// Source      Chen et al., arXiv 2108.04468.
#pragma once
#include <recops/attention/selected_attention.hpp>
#include <recops/attention/simhash.hpp>
#include <recops/simd/hamming.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

inline void check_eta_search(const char* name, const JaggedView<const std::uint64_t>& candidates,
                             const JaggedView<const std::uint64_t>& history, MatrixView<std::int32_t> indices,
                             MatrixView<std::uint8_t> distances) {
  check_jagged(name, "candidate_signatures", candidates, any_size, any_size);
  check_jagged(name, "history_signatures", history, candidates.size(), candidates.cols());
  simd::detail::check_signatures(name, "candidate_signatures", candidates.values(), any_size);
  simd::detail::check_signatures(name, "history_signatures", history.values(), any_size);
  check_shape(name, "indices", indices, candidates.values().rows(), any_size);
  if (!distances.empty()) check_shape(name, "distances", distances, indices.rows(), indices.cols());
}

inline void eta_search(JaggedView<const std::uint64_t> candidates, JaggedView<const std::uint64_t> history,
                       MatrixView<std::int32_t> indices, MatrixView<std::uint8_t> distances, Workspace& ws) {
  const auto mark = ws.mark();
  const Index users = candidates.size(), chunk = simd::detail::hamming_queries(ws);
  auto* const first = ws.take<Index>(users + 1);
  first[0] = 0;
  for (Index b = 0; b < users; ++b) first[b + 1] = first[b] + (candidates.length(b) + chunk - 1) / chunk;
  ws.parallel_for(first[users], [&](Index task, Workspace& scratch) {
    const Index b = user_of(first, users, task), n = candidates.length(b), q0 = (task - first[b]) * chunk;
    const Index row = candidates.begin(b) + q0, count = std::min(chunk, n - q0);
    simd::detail::hamming_top_k<simd::DefaultArch>(candidates[b].middle_rows(q0, count), history[b],
                                                   indices.middle_rows(row, count),
                                                   distances.empty() ? distances : distances.middle_rows(row, count), scratch);
  });
}

}  // namespace detail

/// The search: indices `[total_N, k]`, positions in the user's history, nearest first; `distances` `[total_N, k]` or empty.
inline void eta_search(JaggedView<const std::uint64_t> candidate_signatures, JaggedView<const std::uint64_t> history_signatures,
                       MatrixView<std::int32_t> indices, MatrixView<std::uint8_t> distances, Workspace& ws) {
  detail::check_eta_search("eta_search", candidate_signatures, history_signatures, indices, distances);
  detail::eta_search(candidate_signatures, history_signatures, indices, distances, ws);
}

/// The operator: searches, keeps the selection in `indices` `[total_N, k]`, and attends to it. log_sum_exp `[total_N, H]` (empty: no)
/// is what backward needs. `options.key_mask` hides behaviours from the attention; the search does not know of it.
template <Real T>
void eta(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
         JaggedView<const std::uint64_t> candidate_signatures, JaggedView<const std::uint64_t> history_signatures,
         const AttentionOptions& options, MatrixView<std::int32_t> indices, MatrixView<T> out, MatrixView<T> log_sum_exp,
         Workspace& ws) {
  constexpr const char* name = "eta";
  detail::check_eta_search(name, candidate_signatures, history_signatures, indices, {});
  detail::check_attention<T>({name, "candidates"}, candidates, keys, values, {}, options);
  check_option(name, "causal", !options.causal && options.window == 0, "neither causal nor window: a selection has no order", 1);
  detail::check_same_sequences(name, "candidate_signatures", candidates, candidate_signatures);
  detail::check_same_sequences(name, "history_signatures", keys, history_signatures);
  check_shape(name, "out", out, candidates.values().rows(), values.cols());
  if (!log_sum_exp.empty()) check_shape(name, "log_sum_exp", log_sum_exp, candidates.values().rows(), options.heads);
  detail::eta_search(candidate_signatures, history_signatures, indices, {}, ws);
  detail::selected_attention<T>(name, candidates, keys, values, indices, options, out, log_sum_exp, ws);
}

/// Adds to the gradients of candidates, keys and values (empty: not wanted), given what forward wrote and `dout`.
template <Real T>
void eta_backward(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                  const AttentionOptions& options, MatrixView<const std::int32_t> indices, MatrixView<const T> out,
                  MatrixView<const T> log_sum_exp, MatrixView<const T> dout, MatrixView<T> dcandidates, MatrixView<T> dkeys,
                  MatrixView<T> dvalues, Workspace& ws) {
  detail::selected_attention_backward<T>("eta_backward", candidates, keys, values, indices, options, out, log_sum_exp, dout,
                                         dcandidates, dkeys, dvalues, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
