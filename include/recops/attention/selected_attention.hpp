/// @file   recops/attention/selected_attention.hpp
/// @brief  Each candidate attends to behaviours of its own choice: the exact second stage behind any search of a long history.
///
/// Per candidate and head: out = softmax_j(c candidate . key_j) value_j over the positions j in its row of `indices`, which count from
/// the first behaviour of its user. -1 stands for no behaviour and is skipped, as are positions that `key_mask` hides; a position given
/// twice counts twice. What is not selected is neither read nor gets a gradient.
///
/// Shapes      candidates [total_N, H dk]   keys [total_L, H dk]   values [total_L, H dv]   indices [total_N, k]   out [total_N, H dv]
/// Edge cases  Nothing selected: zeros, log_sum_exp -infinity.
/// NaN         stays with the (candidate, head) that selected it.
/// Cost        2 k H (dk + dv) flops a candidate and the gathering of its k rows. Same bits for any number of threads.
/// Errors      Error if shapes disagree or a position is not one of the user's behaviours; outputs untouched.
/// Source      the exact search units of SIM (arXiv 2006.05639) and ETA (arXiv 2108.04468).
#pragma once
#include <recops/nn/scaled_dot_product_attention.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// Every position of a user's candidates is -1 or one of that user's behaviours.
template <class T, class K>
void check_selection(const char* op, const JaggedView<T>& candidates, const JaggedView<K>& history,
                     MatrixView<const std::int32_t> indices) {
  check_shape(op, "indices", indices, candidates.values().rows(), any_size);
  for (Index b = 0; b < candidates.size(); ++b) {
    const Index length = history.length(b), first = candidates.begin(b);
    for (Index i = first; i < first + candidates.length(b); ++i)
      for (Index j = 0; j < indices.cols(); ++j)
        if (indices(i, j) < -1 || indices(i, j) >= length) [[unlikely]]
          fail_at(op, "indices", "-1, or positions from 0 to below the length of the history, ", length, i * indices.cols() + j,
                  indices(i, j));
  }
}

/// The rows of a history that one candidate selected, side by side in scratch.
struct SelectedRows {
  const std::int32_t* positions;  // [count], without -1 and hidden ones
  Index count;
};
inline SelectedRows selected_rows(const std::int32_t* row, Index k, const std::uint8_t* mask, Workspace& ws) {
  auto* const positions = ws.take<std::int32_t>(k);
  Index count = 0;
  for (Index j = 0; j < k; ++j)
    if (row[j] >= 0 && (mask == nullptr || mask[row[j]] != 0)) positions[count++] = row[j];
  return {positions, count};
}
template <class T>
MatrixView<T> gather(MatrixView<const T> history, const SelectedRows& rows, Workspace& ws) {
  const MatrixView<T> out = ws.matrix<T>(rows.count, history.cols());
  for (Index j = 0; j < rows.count; ++j) std::copy_n(history.row(rows.positions[j]), history.cols(), out.row(j));
  return out;
}
template <class T>
void scatter_add(MatrixView<const T> from, const SelectedRows& rows, MatrixView<T> to) {
  for (Index j = 0; j < rows.count; ++j) simd::add<T>(from.row(j), to.row(rows.positions[j]), to.cols());
}

template <class T>
void check_selected_attention(const char* op, const JaggedView<const T>& candidates, const JaggedView<const T>& keys,
                              const JaggedView<const T>& values, MatrixView<const std::int32_t> indices,
                              const AttentionOptions& o) {
  check_attention<T>({op, "candidates"}, candidates, keys, values, {}, o);
  check_option(op, "causal", !o.causal && o.window == 0, "neither causal nor window: a selection has no order", 1);
  check_selection(op, candidates, keys, indices);
}

/// The users of a batch and their candidates, in an order that a task can count in.
inline Index user_of(const Index* first, Index users, Index row) {
  return std::upper_bound(first, first + users + 1, row) - first - 1;
}
template <class T>
const Index* first_rows(const JaggedView<T>& batch, Workspace& ws) {
  auto* const first = ws.take<Index>(batch.size() + 1);
  first[0] = 0;
  for (Index b = 0; b < batch.size(); ++b) first[b + 1] = first[b] + batch.length(b);
  return first;
}

template <class T>
void selected_attention(const char* op, JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                        MatrixView<const std::int32_t> indices, const AttentionOptions& options, MatrixView<T> out,
                        MatrixView<T> log_sum_exp, Workspace& ws) {
  check_selected_attention(op, candidates, keys, values, indices, options);
  const Index total = candidates.values().rows(), heads = options.heads;
  check_shape(op, "out", out, total, values.cols());
  if (!log_sum_exp.empty()) check_shape(op, "log_sum_exp", log_sum_exp, total, heads);
  const bool one = keys.values().data() == values.values().data() && keys.values().stride() == values.values().stride() &&
                   keys.cols() == values.cols();
  const auto mark = ws.mark();
  const Index* const first = first_rows(candidates, ws);
  constexpr Index chunk = 8;
  ws.parallel_for((total + chunk - 1) / chunk, [&](Index task, Workspace& scratch) {
    for (Index i = task * chunk; i < std::min(total, (task + 1) * chunk); ++i) {
      const auto own = scratch.mark();
      const Index b = user_of(first, candidates.size(), i);
      const std::uint8_t* const mask = options.key_mask.empty() ? nullptr : options.key_mask.data() + keys.begin(b);
      const SelectedRows rows = selected_rows(indices.cols() > 0 ? indices.row(i) : nullptr, indices.cols(), mask, scratch);
      const MatrixView<const T> k = gather(keys[b], rows, scratch),
                                v = one ? k : MatrixView<const T>(gather(values[b], rows, scratch));
      AttentionOptions plain = options;
      plain.key_mask = {};
      simd::attention_forward<T>(attention_operands<T>(candidates.values().middle_rows(i, 1), k, v, {}, plain, 0), 0, 1, 0,
                                 rows.count, out.middle_rows(i, 1),
                                 log_sum_exp.empty() ? log_sum_exp : log_sum_exp.middle_rows(i, 1), scratch);
    }
  });
}

template <class T>
void selected_attention_backward(const char* op, JaggedView<const T> candidates, JaggedView<const T> keys,
                                 JaggedView<const T> values, MatrixView<const std::int32_t> indices,
                                 const AttentionOptions& options, MatrixView<const T> out, MatrixView<const T> log_sum_exp,
                                 MatrixView<const T> dout, MatrixView<T> dcandidates, MatrixView<T> dkeys, MatrixView<T> dvalues,
                                 Workspace& ws) {
  check_selected_attention(op, candidates, keys, values, indices, options);
  const Index total = candidates.values().rows(), total_keys = keys.values().rows(), heads = options.heads;
  check_shape(op, "out", out, total, values.cols());
  check_shape(op, "log_sum_exp", log_sum_exp, total, heads);
  check_shape(op, "dout", dout, total, values.cols());
  if (!dcandidates.empty()) check_shape(op, "dcandidates", dcandidates, total, candidates.cols());
  if (!dkeys.empty()) check_shape(op, "dkeys", dkeys, total_keys, keys.cols());
  if (!dvalues.empty()) check_shape(op, "dvalues", dvalues, total_keys, values.cols());
  // Candidates of a user add to the same rows: one task a user, in the order of the candidates.
  ws.parallel_for(candidates.size(), [&](Index b, Workspace& scratch) {
    const std::uint8_t* const mask = options.key_mask.empty() ? nullptr : options.key_mask.data() + keys.begin(b);
    for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
      const auto own = scratch.mark();
      const SelectedRows rows = selected_rows(indices.cols() > 0 ? indices.row(i) : nullptr, indices.cols(), mask, scratch);
      if (rows.count == 0) continue;
      const MatrixView<const T> k = gather(keys[b], rows, scratch), v = gather(values[b], rows, scratch);
      const auto zeros = [&](MatrixView<T> wanted, Index cols) {
        if (wanted.empty()) return MatrixView<T>();
        const MatrixView<T> m = scratch.matrix<T>(rows.count, cols);
        std::fill_n(m.data(), rows.count * cols, T(0));
        return m;
      };
      const MatrixView<T> dk = zeros(dkeys, keys.cols()), dv = zeros(dvalues, values.cols());
      AttentionOptions plain = options;
      plain.key_mask = {};
      const simd::AttentionResult<T> result{out.row(i),   dout.row(i),   log_sum_exp.row(i),   nullptr,
                                            out.stride(), dout.stride(), log_sum_exp.stride(), 0};
      simd::AttentionGradients<T> g{};
      if (!dcandidates.empty()) g.dq = dcandidates.row(i), g.dq_stride = dcandidates.stride();
      if (!dk.empty()) g.dk = dk.data(), g.dk_stride = dk.stride();
      if (!dv.empty()) g.dv = dv.data(), g.dv_stride = dv.stride();
      simd::attention_backward<T>(attention_operands<T>(candidates.values().middle_rows(i, 1), k, v, {}, plain, 0), 0, 1, 0,
                                  rows.count, result, g, scratch);
      if (!dk.empty()) scatter_add<T>(dk, rows, dkeys.middle_rows(keys.begin(b), keys.length(b)));
      if (!dv.empty()) scatter_add<T>(dv, rows, dvalues.middle_rows(values.begin(b), values.length(b)));
    }
  });
}

}  // namespace detail

/// out `[total_N, H dv]`; log_sum_exp `[total_N, H]` (empty: no) is what backward needs. Keys and values may be one view.
template <class T>
void selected_attention(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                        MatrixView<const std::int32_t> indices, const AttentionOptions& options, MatrixView<T> out,
                        MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::selected_attention<T>("selected_attention", candidates, keys, values, indices, options, out, log_sum_exp, ws);
}

/// Adds to the gradients of candidates, keys and values (empty: not wanted; dkeys and dvalues may be one view), given what forward
/// wrote and `dout`. Behaviours that several candidates selected get the sum, in the order of the candidates.
template <class T>
void selected_attention_backward(JaggedView<const T> candidates, JaggedView<const T> keys, JaggedView<const T> values,
                                 MatrixView<const std::int32_t> indices, const AttentionOptions& options, MatrixView<const T> out,
                                 MatrixView<const T> log_sum_exp, MatrixView<const T> dout, MatrixView<T> dcandidates,
                                 MatrixView<T> dkeys, MatrixView<T> dvalues, Workspace& ws) {
  detail::selected_attention_backward<T>("selected_attention_backward", candidates, keys, values, indices, options, out,
                                         log_sum_exp, dout, dcandidates, dkeys, dvalues, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
