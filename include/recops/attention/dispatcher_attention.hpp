/// @file   recops/attention/dispatcher_attention.hpp
/// @brief  Linear dispatcher attention (ELASTIC): k interest experts read the sequence, every token reads the experts. O(L k).
///
///     aggregate   P' = Attention(P Wq1, X Wk1, X Wv1) Wo1          softmax over tokens
///     dispatch    Y  = Attention(X Wq2, P' Wk2, P' Wv2) Wo2        softmax over experts
///
/// Shapes      x, y [total, D] jagged; experts and next experts [B k, D], k rows per sequence. Both passes have H heads of D / H columns.
/// Forms       unfolded: tokens are projected, 8 D^2 + 8 k D flops a token.  folded: the projections of tokens move to the experts,
///             q_a k_a^T = (q_a Wk_a) x^T and p_a v_a Wo = p_a (v_a Wo_a), 8 H k D flops a token, and nothing [total, D] is formed
///             besides y. Equal to rounding. `cheapest` folds while k (H - 1) + k D / L < D, L the mean length: that is where the
///             flops cross (at D = 64 and H = 2, k = 64); measured times cross there too, see docs/dispatcher_attention.md.
/// Causal      not in these passes: every token sees the whole sequence through P'. attention/causal_dispatch.hpp has the other kind,
///             and a layer with `causal` takes it.
/// Edge cases  A token whose `mask` is 0 is not read and its y is 0. An empty sequence leaves its experts with the bias of Wo1.
///             k = 1 makes all rows of y equal.  A NaN stays in its sequence.
/// Errors      `Error` for shapes and options that do not fit; outputs untouched.   Same bits for any number of threads.
/// Source      Deng et al., "ELASTIC", arXiv 2408.09380 (withdrawn by its authors for incomplete experiments); heads, Wo and the causal
///             form are our reconstruction. Parameters are two `torch.nn.MultiheadAttention`.
#pragma once
#include <new>
#include <recops/nn/multihead_attention.hpp>
#include <recops/simd/few_keys.hpp>

namespace recops {

/// Options of both passes on projected rows.
struct DispatcherAttentionOptions {
  Index heads = 1;                           ///< divides the columns
  double scale = 0;                          ///< of the scores; 0: 1 / sqrt(columns of a head)
  VectorView<const std::uint8_t> mask = {};  ///< [total], 0 hides a token; empty: all are seen
};

/// Who pays for the projections of the tokens.
enum class DispatcherForm : unsigned char {
  cheapest,  ///< the one with fewer flops
  folded,    ///< the experts
  unfolded   ///< the tokens
};

inline namespace RECOPS_ABI {

namespace detail {

/// Offsets 0, step, 2 step, ... of `batch` sequences.
inline IndexView even_offsets(Index batch, Index step, Workspace& ws) {
  auto* const offsets = ws.take<std::int64_t>(batch + 1);
  for (Index b = 0; b <= batch; ++b) offsets[b] = b * step;
  return IndexView(offsets, batch + 1);
}

/// A jagged batch in ranges of rows of about the same length, whatever the number of threads.
struct RowRanges {
  static constexpr Index block = simd::few_keys::block, most = 24 * block;
  struct Range {
    Index sequence, first, rows;
  };
  Index* first_task;  // [B + 1]
  Index batch;

  template <class T>
  RowRanges(JaggedView<const T> x, Workspace& ws) : first_task(ws.take<Index>(x.size() + 1)), batch(x.size()) {
    first_task[0] = 0;
    for (Index b = 0; b < batch; ++b) first_task[b + 1] = first_task[b] + (x.length(b) + most - 1) / most;
  }
  Index count() const { return first_task[batch]; }
  Index sequence(Index task) const { return std::upper_bound(first_task, first_task + batch + 1, task) - first_task - 1; }
  template <class T>
  Range range(JaggedView<const T> x, Index task) const {
    const Index b = sequence(task), part = task - first_task[b], parts = first_task[b + 1] - first_task[b];
    const Index blocks = (x.length(b) + block - 1) / block, from = blocks * part / parts * block;
    const Index to = std::min(blocks * (part + 1) / parts * block, x.length(b));
    return {b, x.begin(b) + from, to - from};
  }
};

/// y = attention of every row over the few keys of its sequence, in `passes` passes over columns side by side:
/// `operands(b, pass)` gives the keys.
template <class T, class Operands>
void dispatch_rows(JaggedView<const T> x, Index passes, VectorView<const std::uint8_t> mask, MatrixView<T> y, Workspace& ws,
                   Operands&& operands) {
  const auto mark = ws.mark();
  const RowRanges ranges(x, ws);
  const bool far = x.values().rows() * x.values().stride() > simd::attention_kernel::long_history<T>;
  ws.parallel_for(ranges.count(), [&](Index task, Workspace& scratch) {
    const auto inner = scratch.mark();  // or every task would have memory of its own, that of workers for ever
    const auto [b, first, rows] = ranges.range(x, task);
    auto* const keys = scratch.take<simd::FewKeys<T>>(passes);
    for (Index pass = 0; pass < passes; ++pass) new (keys + pass) simd::FewKeys<T>(operands(b, pass), false, scratch);
    const Index depth = x.cols() / passes, width = y.cols() / passes;
    for (Index at = 0; at < rows; at += simd::few_keys::block) {
      const Index row = first + at, count = std::min(simd::few_keys::block, rows - at);
      const Index after = row + count, next = far ? std::min(simd::few_keys::block, first + rows - after) : 0;
      simd::attention_kernel::RowsAhead<T> ahead{x.values().data() + after * x.values().stride(),
                                                 y.data() + after * y.stride(),
                                                 x.values().stride(),
                                                 y.stride(),
                                                 x.cols(),
                                                 y.cols(),
                                                 next};
      for (Index pass = 0; pass < passes; ++pass)
        keys[pass].attend(x.values().middle_rows(row, count).middle_cols(pass * depth, depth),
                          mask.empty() ? nullptr : mask.data() + row, y.middle_rows(row, count).middle_cols(pass * width, width),
                          &ahead);
    }
  });
}

/// Adds to dx, unless empty. `sink(b, pass, dk, dv, dbias)` gets the sums over each sequence that has rows: key j of segment s is row
/// s * run + j.
template <class T, class Operands, class Sink>
void dispatch_rows_backward(JaggedView<const T> x, Index passes, VectorView<const std::uint8_t> mask, MatrixView<const T> dy,
                            MatrixView<T> dx, bool with_bias, Workspace& ws, Operands&& operands, Sink&& sink) {
  using simd::DefaultArch;
  const auto mark = ws.mark();
  const RowRanges ranges(x, ws);
  if (ranges.count() == 0) return;
  const simd::FewKeysOperands<T> any = operands(ranges.sequence(0), 0);
  const Index n = any.segments * simd::few_keys::padded<T, DefaultArch>(any.keys);
  const Index depth = simd::few_keys::padded<T, DefaultArch>(any.depth),
              width = simd::few_keys::padded<T, DefaultArch>(any.width);
  const Index size = n * (depth + width + (with_bias ? 1 : 0));
  T* const parts = ws.take<T>(ranges.count() * passes * size);
  ws.parallel_for(ranges.count(), [&](Index task, Workspace& scratch) {
    const auto inner = scratch.mark();
    const auto [b, first, rows] = ranges.range(x, task);
    std::fill_n(parts + task * passes * size, passes * size, T(0));
    auto* const keys = scratch.take<simd::FewKeys<T>>(passes);
    for (Index pass = 0; pass < passes; ++pass) new (keys + pass) simd::FewKeys<T>(operands(b, pass), true, scratch);
    for (Index at = 0; at < rows; at += simd::few_keys::block) {
      const Index row = first + at, count = std::min(simd::few_keys::block, rows - at);
      for (Index pass = 0; pass < passes; ++pass) {
        T* const part = parts + (task * passes + pass) * size;
        keys[pass].backward(x.values().middle_rows(row, count).middle_cols(pass * any.depth, any.depth),
                            mask.empty() ? nullptr : mask.data() + row,
                            dy.middle_rows(row, count).middle_cols(pass * any.width, any.width),
                            dx.empty() ? dx : dx.middle_rows(row, count).middle_cols(pass * any.depth, any.depth),
                            {.k = part, .v = part + n * depth, .key_bias = with_bias ? part + n * (depth + width) : nullptr});
      }
    }
  });
  for (Index b = 0; b < x.size(); ++b) {
    const Index from = ranges.first_task[b], to = ranges.first_task[b + 1];
    if (from == to) continue;
    T* const sum = parts + from * passes * size;
    for (Index task = from + 1; task < to; ++task) simd::add<T>(parts + task * passes * size, sum, passes * size);
    for (Index pass = 0; pass < passes; ++pass) {
      T* const part = sum + pass * size;
      sink(b, pass, MatrixView<const T>(part, n, any.depth, depth), MatrixView<const T>(part + n * depth, n, any.width, width),
           part + n * (depth + width));
    }
  }
}

/// Keys of the pass of head `a` over projected rows.
template <class T>
simd::FewKeysOperands<T> head_operands(MatrixView<const T> keys, MatrixView<const T> values, Index batch, Index heads,
                                       double scale, Index b, Index a) {
  const Index k = keys.rows() / batch, dk = keys.cols() / heads, dv = values.cols() / heads;
  return {.k = keys.data() + b * k * keys.stride() + a * dk,
          .v = values.data() + b * k * values.stride() + a * dv,
          .segments = 1,
          .keys = k,
          .depth = dk,
          .width = dv,
          .k_stride = keys.stride(),
          .k_segment = 0,
          .v_stride = values.stride(),
          .v_segment = 0,
          .scale = static_cast<T>(scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(dk)))};
}

inline void check_experts(const char* op, const char* what, Index batch, Index rows) {
  check_option(op, what, batch == 0 ? rows == 0 : rows >= batch && rows % batch == 0,
               "the same number of rows, 1 or more, for each sequence", static_cast<double>(rows));
}

template <class T>
void check_dispatch(const char* op, JaggedView<const T> tokens, MatrixView<const T> keys, MatrixView<const T> values,
                    const DispatcherAttentionOptions& o) {
  check_jagged(op, "tokens", tokens, any_size, any_size);
  check_option(op, "heads", o.heads >= 1 && tokens.cols() >= 1 && tokens.cols() % o.heads == 0,
               "a number that divides the columns", static_cast<double>(o.heads));
  check_shape(op, "keys", keys, any_size, tokens.cols());
  check_experts(op, "keys", tokens.size(), keys.rows());
  check_shape(op, "values", values, keys.rows(), any_size);
  check_option(op, "values", values.cols() >= 1 && values.cols() % o.heads == 0, "a number of columns that heads divides",
               static_cast<double>(values.cols()));
  check_option(op, "scale", o.scale - o.scale == 0, "a finite scale, or 0 for 1 / sqrt(columns of a head)", o.scale);
  if (!o.mask.empty()) check_size(op, "mask", o.mask, tokens.values().rows());
}

}  // namespace detail

/// First pass on projected rows: out `[B k, H dv]` = softmax over the tokens of each sequence of queries `[B k, H dk]` over keys `[total,
/// H dk]`, times values `[total, H dv]`. log_sum_exp `[B k, H]`, unless empty, is what backward needs. 2 k H (dk + dv) flops a token.
template <Real T>
void aggregate_into_experts(MatrixView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                            const DispatcherAttentionOptions& o, MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  constexpr const char* name = "aggregate_into_experts";
  check_jagged(name, "keys", keys, any_size, any_size);
  detail::check_experts(name, "queries", keys.size(), queries.rows());
  if (keys.size() == 0) return;
  const auto mark = ws.mark();
  const IndexView offsets = detail::even_offsets(keys.size(), queries.rows() / keys.size(), ws);
  detail::attention<T>({name}, JaggedView<const T>(queries, offsets), keys, values, {},
                       {.heads = o.heads, .scale = o.scale, .key_mask = o.mask}, out, log_sum_exp, ws);
}
/// Adds to dqueries, dkeys and dvalues (each unless empty), given what `aggregate_into_experts` wrote.
template <Real T>
void aggregate_into_experts_backward(MatrixView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                                     const DispatcherAttentionOptions& o, MatrixView<const T> out,
                                     MatrixView<const T> log_sum_exp, MatrixView<const T> dout, MatrixView<T> dqueries,
                                     MatrixView<T> dkeys, MatrixView<T> dvalues, Workspace& ws) {
  constexpr const char* name = "aggregate_into_experts_backward";
  check_jagged(name, "keys", keys, any_size, any_size);
  detail::check_experts(name, "queries", keys.size(), queries.rows());
  if (keys.size() == 0) return;
  const auto mark = ws.mark();
  const IndexView offsets = detail::even_offsets(keys.size(), queries.rows() / keys.size(), ws);
  detail::attention_backward<T>({name}, JaggedView<const T>(queries, offsets), keys, values, {},
                                {.heads = o.heads, .scale = o.scale, .key_mask = o.mask}, out, log_sum_exp, dout, {}, dqueries,
                                dkeys, dvalues, {}, ws);
}

/// Second pass on projected rows: out `[total, H dv]` = softmax over the k experts of each sequence of tokens `[total, H dk]` over
/// keys `[B k, H dk]`, times values `[B k, H dv]`. 2 k H (dk + dv) flops a token.
template <Real T>
void dispatch_from_experts(JaggedView<const T> tokens, MatrixView<const T> keys, MatrixView<const T> values,
                           const DispatcherAttentionOptions& o, MatrixView<T> out, Workspace& ws) {
  constexpr const char* name = "dispatch_from_experts";
  detail::check_dispatch(name, tokens, keys, values, o);
  check_shape(name, "out", out, tokens.values().rows(), values.cols());
  detail::dispatch_rows<T>(tokens, o.heads, o.mask, out, ws, [&](Index b, Index a) {
    return detail::head_operands(keys, values, tokens.size(), o.heads, o.scale, b, a);
  });
}
/// Adds to dtokens, dkeys and dvalues (each unless empty). Weights are recomputed.
template <Real T>
void dispatch_from_experts_backward(JaggedView<const T> tokens, MatrixView<const T> keys, MatrixView<const T> values,
                                    const DispatcherAttentionOptions& o, MatrixView<const T> dout, MatrixView<T> dtokens,
                                    MatrixView<T> dkeys, MatrixView<T> dvalues, Workspace& ws) {
  constexpr const char* name = "dispatch_from_experts_backward";
  detail::check_dispatch(name, tokens, keys, values, o);
  check_shape(name, "dout", dout, tokens.values().rows(), values.cols());
  if (!dtokens.empty()) check_shape(name, "dtokens", dtokens, tokens.values().rows(), tokens.cols());
  if (!dkeys.empty()) check_shape(name, "dkeys", dkeys, keys.rows(), keys.cols());
  if (!dvalues.empty()) check_shape(name, "dvalues", dvalues, values.rows(), values.cols());
  const Index batch = tokens.size(), dk = keys.cols() / o.heads, dv = values.cols() / o.heads;
  const auto operands = [&](Index b, Index a) { return detail::head_operands(keys, values, batch, o.heads, o.scale, b, a); };
  detail::dispatch_rows_backward<T>(tokens, o.heads, o.mask, dout, dtokens, false, ws, operands,
                                    [&](Index b, Index a, MatrixView<const T> gk, MatrixView<const T> gv, const T*) {
                                      const T scale = operands(b, a).scale;
                                      const Index k = keys.rows() / batch;
                                      for (Index j = 0; j < k; ++j) {
                                        if (!dkeys.empty()) simd::axpy<T>(scale, gk.row(j), dkeys.row(b * k + j) + a * dk, dk);
                                        if (!dvalues.empty()) simd::add<T>(gv.row(j), dvalues.row(b * k + j) + a * dv, dv);
                                      }
                                    });
}

}  // namespace RECOPS_ABI
}  // namespace recops
