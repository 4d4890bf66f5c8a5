/// @file   recops/nn/scaled_dot_product_attention.hpp
/// @brief  O = softmax(c Q K^T + bias) V for jagged batches, with masks, heads and exact gradients; the scores are never stored.
///
/// Per sequence and head a: S_ij = c q_i . k_j + bias, P = softmax of the row over the keys that i sees, o_i = sum_j P_ij v_j and
/// log_sum_exp_i = log sum_j exp S_ij. Head a takes the columns [a d, (a + 1) d) of queries, keys and values.
/// A key is seen unless `key_mask`, `causal`, `window` or a bias of -infinity hides it; one that nobody sees is not read.
///
/// Cost: 2 N L H (dk + dv) flops forward, 2.5 times that backward; scratch is O(N), independent of L. A NaN stays in the
/// (row, head) that sees it. Scores may be as large as the scalar holds; +infinity gives NaN.
/// Precision: forward 2e-6 (float) relative to the largest value up to 10^4 keys, at worst (equal weights, a constant column) 2e-10 L
/// beyond, a tenth of that for few queries, whose keys are cut into ranges. Backward 6e-8 |log_sum_exp|, which is kept in the scalar:
/// scores of thousands cost digits of the gradients, not of the result. The same bits for any number of threads
/// and, unless histories of more than 8191 keys fill the split budget of a call, for any other sequences in the batch.
/// Source: Vaswani et al., arXiv 1706.03762; streaming as in arXiv 1805.02867 and 2205.14135.
#pragma once
#include <recops/core/error.hpp>
#include <recops/simd/attention_backward.hpp>
#include <recops/simd/attention_forward.hpp>
#include <recops/simd/quantize.hpp>

namespace recops {

/// Options of every attention operator.
struct AttentionOptions {
  Index heads = 1;                               ///< divides the columns of queries, keys and values
  double scale = 0;                              ///< c; 0 means 1 / sqrt(key width of a head)
  bool causal = false;                           ///< query i of a sequence sees its keys j <= i
  Index window = 0;                              ///< w > 0: query i sees keys j with i - j < w
  VectorView<const std::uint8_t> key_mask = {};  ///< [total_L], 0 hides the key; empty: all are seen
};

/// What is added to the scores; empty is nothing. -infinity hides.
template <class T>
struct AttentionBias {
  MatrixView<const T> per_key = {};   ///< [total_L, H] or [total_L, 1]
  MatrixView<const T> pairwise = {};  ///< [H * N, L] (row h * N + i) or [N, L]; for a batch of one sequence only
};

/// Where backward adds the gradient of the bias; empty is not wanted. Shapes as in `AttentionBias`.
template <class T>
struct AttentionBiasGradient {
  MatrixView<T> per_key = {};
  MatrixView<T> pairwise = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// What the caller calls its arguments, for the messages of errors.
struct AttentionNames {
  const char* op;
  const char *queries = "queries", *keys = "keys", *values = "values";
  const char *dqueries = "dqueries", *dkeys = "dkeys", *dvalues = "dvalues";
};

template <class T, class S = T>
[[gnu::noinline]] void check_attention(const AttentionNames& name, const JaggedView<const T>& queries,
                                       const std::type_identity_t<JaggedView<const S>>& keys,
                                       const std::type_identity_t<JaggedView<const S>>& values, const AttentionBias<T>& bias,
                                       const AttentionOptions& o) {
  const char* op = name.op;
  check_jagged(op, name.queries, queries, any_size, any_size);
  const Index batch = queries.size(), width = queries.cols(), total = keys.values().rows();
  check_option(op, "heads", o.heads >= 1, "heads >= 1", static_cast<double>(o.heads));
  check_option(op, name.queries, width >= 1 && width % o.heads == 0,
               "a number of columns that heads divides, at least 1 per head", static_cast<double>(width));
  check_jagged(op, name.keys, keys, batch, width);
  check_jagged(op, name.values, values, batch, any_size);
  check_option(op, name.values, values.cols() >= 1 && values.cols() % o.heads == 0,
               "a number of columns that heads divides, at least 1 per head", static_cast<double>(values.cols()));
  check_shape(op, name.values, values.values(), total, any_size);
  if (!keys.is_one_sequence() || !values.is_one_sequence()) {
    for (Index b = 0; b < batch; ++b) {
      if (values.length(b) != keys.length(b)) [[unlikely]]
        fail_at(op, name.values, "as many rows as keys in each sequence, ", keys.length(b), b, values.length(b));
    }
  }
  check_option(op, "scale", o.scale - o.scale == 0, "a finite scale, or 0 for 1 / sqrt(key width)", o.scale);
  check_option(op, "window", o.window >= 0, "window >= 0, where 0 is none", static_cast<double>(o.window));
  if (!o.key_mask.empty()) check_size(op, "key_mask", o.key_mask, total);
  if (!bias.per_key.empty()) check_shape(op, "bias.per_key", bias.per_key, total, bias.per_key.cols() == 1 ? 1 : o.heads);
  if (!bias.pairwise.empty()) {
    check_option(op, "bias.pairwise", batch == 1, "a batch of one sequence", static_cast<double>(batch));
    const Index n = queries.values().rows();
    check_shape(op, "bias.pairwise", bias.pairwise, bias.pairwise.rows() == n ? n : o.heads * n, total);
  }
}

/// Sequence b; keys and values may be of another element, and are then left out.
template <class T, class S = T>
[[gnu::noinline]] simd::AttentionOperands<T> attention_operands(const JaggedView<const T>& queries,
                                                                const std::type_identity_t<JaggedView<const S>>& keys,
                                                                const std::type_identity_t<JaggedView<const S>>& values,
                                                                const AttentionBias<T>& bias, const AttentionOptions& o,
                                                                Index b) {
  const Index row = keys.begin(b), n = queries.length(b), width = queries.cols() / o.heads;
  const MatrixView<const T> q = queries.values();
  const MatrixView<const S> k = keys.values(), v = values.values();
  simd::AttentionOperands<T> x;  // not {}: every field is set here, and clearing them all took longer than setting them
  x.q = q.data() + queries.begin(b) * q.stride();
  if constexpr (std::is_same_v<S, T>) {
    x.k = k.data() + row * k.stride();
    x.v = v.data() + row * v.stride();
  } else {
    x.k = x.v = nullptr;
    x.stored_row = row;
  }
  x.q_stride = q.stride();
  x.k_stride = k.stride();
  x.v_stride = v.stride();
  x.queries = n;
  x.keys = keys.length(b);
  x.heads = o.heads;
  x.key_width = width;
  x.value_width = v.cols() / o.heads;
  x.scale = static_cast<T>(o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(width)));
  if (!o.key_mask.empty()) x.mask = o.key_mask.data() + row;
  if (!bias.per_key.empty()) {
    x.key_bias = bias.per_key.data() + row * bias.per_key.stride();
    x.key_bias_stride = bias.per_key.stride();
    x.key_bias_head = bias.per_key.cols() == 1 ? 0 : 1;
  }
  if (!bias.pairwise.empty()) {
    x.pair_bias = bias.pairwise.data();
    x.pair_stride = bias.pairwise.stride();
    x.pair_head = bias.pairwise.rows() == n ? 0 : n * bias.pairwise.stride();
  }
  x.causal = o.causal;
  x.window = o.window;
  return x;
}

/// The fixed grid of a call: for each sequence, cuts of its queries and of its keys. Independent of the number of threads.
/// Where keys are cut, each range writes a partial result of its own, and these are combined in order.
struct AttentionGrid {
  Index* first_task;   // [B + 1]
  Index* key_cuts;     // [B]
  Index* partial_row;  // [B + 1]: the rows of partial results
};

/// At most this many rows of partial results per call: beyond, long histories are no longer cut.
inline constexpr Index split_rows = 65536;

/// `cuts(n, l)` says how many query ranges and key ranges a sequence is cut into.
template <class F>
AttentionGrid attention_grid(Index batch, F&& cuts, Workspace& ws) {
  AttentionGrid g{ws.take<Index>(batch + 1), ws.take<Index>(batch), ws.take<Index>(batch + 1)};
  g.first_task[0] = g.partial_row[0] = 0;
  for (Index b = 0; b < batch; ++b) {
    Index ranges, key_ranges, rows;
    cuts(b, ranges, key_ranges, rows);
    if (key_ranges > 1 && g.partial_row[b] + key_ranges * rows > split_rows) key_ranges = 1;
    g.key_cuts[b] = key_ranges;
    g.partial_row[b + 1] = g.partial_row[b] + (key_ranges > 1 ? key_ranges * rows : 0);
    g.first_task[b + 1] = g.first_task[b] + ranges * key_ranges;
  }
  return g;
}

/// The sequence that a task belongs to.
inline Index sequence_of(const AttentionGrid& g, Index batch, Index task) {
  return std::upper_bound(g.first_task, g.first_task + batch + 1, task) - g.first_task - 1;
}

/// out, lse <- the results of `parts` disjoint key ranges, `rows` rows each, one range after the other.
template <class T>
void merge_parts(MatrixView<const T> parts_out, MatrixView<const T> parts_lse, Index parts, MatrixView<T> out,
                 MatrixView<T> lse) {
  const Index rows = out.rows(), heads = parts_lse.cols(), width = out.cols() / heads;
  for (Index i = 0; i < rows; ++i) {
    for (Index h = 0; h < heads; ++h) {
      double top = std::numeric_limits<double>::lowest(), sum = 0;
      for (Index p = 0; p < parts; ++p) top = std::max(top, static_cast<double>(parts_lse(p * rows + i, h)));
      for (Index p = 0; p < parts; ++p) sum += std::exp(static_cast<double>(parts_lse(p * rows + i, h)) - top);
      T* to = out.row(i) + h * width;
      std::fill_n(to, width, T(0));
      for (Index p = 0; p < parts && sum != 0; ++p) {
        const double w = std::exp(static_cast<double>(parts_lse(p * rows + i, h)) - top) / sum;
        simd::axpy<T>(static_cast<T>(w), parts_out.row(p * rows + i) + h * width, to, width);
      }
      if (!lse.empty()) lse(i, h) = sum == 0 ? -std::numeric_limits<T>::infinity() : static_cast<T>(top + std::log(sum));
    }
  }
}

/// Runs the grid: `keys_of(b)` is the number of keys of a sequence, `operands(b)` what the kernels read.
template <class T, class Keys, class Operands>
void run_attention(const JaggedView<const T>& queries, Index heads, Keys&& keys_of, Operands&& operands, MatrixView<T> out,
                   MatrixView<T> log_sum_exp, Workspace& ws) {
  const Index batch = queries.size();
  if (out.rows() == 0) return;

  constexpr Index block = simd::attention_kernel::query_block<T, simd::DefaultArch>, lanes = simd::lanes<T>;
  // A range of 4096 keys is long enough to hide what merging costs; 16 ranges keep scratch independent of L.
  constexpr Index key_range = 4096, most_ranges = 16, few = 4 * block;
  const auto cuts = [&](Index b, Index& ranges, Index& key_ranges, Index& rows) {
    const Index n = queries.length(b), l = keys_of(b);
    ranges = (n + block - 1) / block;
    rows = n;
    key_ranges = n > few || l < 2 * key_range ? 1 : std::min(l / key_range, most_ranges);
  };
  if (batch == 1) {
    Index ranges, key_ranges, rows;
    cuts(0, ranges, key_ranges, rows);
    if (ranges == 1 && key_ranges == 1) {  // a short history, half of whose time a grid would take
      simd::attention_forward<T>(operands(0), 0, rows, 0, keys_of(0), out, log_sum_exp, ws);
      return;
    }
  }
  const auto mark = ws.mark();
  const AttentionGrid grid = attention_grid(batch, cuts, ws);
  const Index partial = grid.partial_row[batch];
  const MatrixView<T> parts_out = ws.matrix<T>(partial, out.cols()), parts_lse = ws.matrix<T>(partial, heads);
  ws.parallel_for(grid.first_task[batch], [&](Index task, Workspace& scratch) {
    const Index b = sequence_of(grid, batch, task), n = queries.length(b), l = keys_of(b), parts = grid.key_cuts[b];
    const Index ranges = (n + block - 1) / block, vectors = (n + lanes - 1) / lanes;
    const Index r = (task - grid.first_task[b]) / parts, c = (task - grid.first_task[b]) % parts;
    const Index q0 = vectors * r / ranges * lanes, q1 = std::min(n, vectors * (r + 1) / ranges * lanes);
    const bool whole = parts == 1;
    const Index row = whole ? queries.begin(b) + q0 : grid.partial_row[b] + c * n + q0;
    MatrixView<T> lse = whole ? log_sum_exp : parts_lse;
    if (!lse.empty()) lse = lse.middle_rows(row, q1 - q0);
    simd::attention_forward<T>(operands(b), q0, q1, l * c / parts, l * (c + 1) / parts,
                               (whole ? out : parts_out).middle_rows(row, q1 - q0), lse, scratch);
  });
  if (partial == 0) return;
  for (Index b = 0; b < batch; ++b) {
    const Index parts = grid.key_cuts[b], n = queries.length(b);
    if (parts == 1) continue;
    MatrixView<T> lse = log_sum_exp;
    if (!lse.empty()) lse = lse.middle_rows(queries.begin(b), n);
    merge_parts<T>(parts_out.middle_rows(grid.partial_row[b], parts * n), parts_lse.middle_rows(grid.partial_row[b], parts * n),
                   parts, out.middle_rows(queries.begin(b), n), lse);
  }
}

template <class T>
void attention(const AttentionNames& name, const JaggedView<const T>& queries, const JaggedView<const T>& keys,
               const JaggedView<const T>& values, const AttentionBias<T>& bias, const AttentionOptions& options,
               MatrixView<T> out, MatrixView<T> log_sum_exp, Workspace& ws) {
  const char* op = name.op;
  check_attention(name, queries, keys, values, bias, options);
  const Index total = queries.values().rows();
  check_shape(op, "out", out, total, values.cols());
  if (!log_sum_exp.empty()) check_shape(op, "log_sum_exp", log_sum_exp, total, options.heads);
  run_attention(
      queries, options.heads, [&](Index b) { return keys.length(b); },
      [&](Index b) { return attention_operands(queries, keys, values, bias, options, b); }, out, log_sum_exp, ws);
}

/// Keys and values that are stored as S, with scales or without (null).
template <class S>
void stored_attention(const AttentionNames& name, const JaggedView<const float>& queries, const JaggedView<const S>& keys,
                      const JaggedView<const S>& values, const QuantizedView* key_scales, const QuantizedView* value_scales,
                      const AttentionOptions& options, MatrixView<float> out, MatrixView<float> log_sum_exp, Workspace& ws) {
  const char* op = name.op;
  check_attention<float, S>(name, queries, keys, values, {}, options);
  const Index total = queries.values().rows();
  check_shape(op, "out", out, total, values.cols());
  if (!log_sum_exp.empty()) check_shape(op, "log_sum_exp", log_sum_exp, total, options.heads);
  const auto rows_of = [&](const char* argument, const MatrixView<const S>& x, const QuantizedView* q) {
    simd::HistoryRows<S> rows{x.data(), x.stride()};
    if (q == nullptr) return rows;
    check_quantized(op, argument, *q, any_size, any_size);
    const Index width = x.cols() / options.heads;
    check_option(op, argument, q->blocks() == 1 || q->width() == width,
                 "one scale per row, or one per row and head (block = its columns)", static_cast<double>(q->block));
    rows.scales = q->scales.data();
    rows.scale_stride = q->scales.stride();
    rows.scale_head = q->blocks() == 1 ? 0 : 1;
    return rows;
  };
  const simd::HistoryRows<S> k = rows_of(name.keys, keys.values(), key_scales),
                             v = rows_of(name.values, values.values(), value_scales);
  const simd::StoredHistory<float> stored = simd::stored_history(k, v);
  run_attention(
      queries, options.heads, [&](Index b) { return keys.length(b); },
      [&](Index b) {
        simd::AttentionOperands<float> x = attention_operands<float, S>(queries, keys, values, {}, options, b);
        x.stored = &stored;
        return x;
      },
      out, log_sum_exp, ws);
}

template <class T>
void attention_backward(const AttentionNames& name, const JaggedView<const T>& queries, const JaggedView<const T>& keys,
                        const JaggedView<const T>& values, const AttentionBias<T>& bias, const AttentionOptions& options,
                        MatrixView<const T> out, MatrixView<const T> log_sum_exp, MatrixView<const T> dout,
                        MatrixView<const T> dlog_sum_exp, MatrixView<T> dqueries, MatrixView<T> dkeys, MatrixView<T> dvalues,
                        const AttentionBiasGradient<T>& dbias, Workspace& ws) {
  const char* op = name.op;
  check_attention(name, queries, keys, values, bias, options);
  const Index batch = queries.size(), heads = options.heads, total = queries.values().rows(), total_keys = keys.values().rows();
  check_shape(op, "out", out, total, values.cols());
  check_shape(op, "log_sum_exp", log_sum_exp, total, heads);
  check_shape(op, "dout", dout, total, values.cols());
  if (!dlog_sum_exp.empty()) check_shape(op, "dlog_sum_exp", dlog_sum_exp, total, heads);
  if (!dqueries.empty()) check_shape(op, name.dqueries, dqueries, total, queries.cols());
  if (!dkeys.empty()) check_shape(op, name.dkeys, dkeys, total_keys, keys.cols());
  if (!dvalues.empty()) check_shape(op, name.dvalues, dvalues, total_keys, values.cols());
  if (!dbias.per_key.empty()) check_shape(op, "dbias.per_key", dbias.per_key, bias.per_key.rows(), bias.per_key.cols());
  if (!dbias.pairwise.empty()) check_shape(op, "dbias.pairwise", dbias.pairwise, bias.pairwise.rows(), bias.pairwise.cols());
  if (total == 0) return;

  // Queries go in rounds, keys in ranges whose gradients belong to one task; a range keeps its own share of dqueries.
  constexpr Index round = 2 * simd::attention_kernel::query_block<T, simd::DefaultArch>, key_range = 1024, most_ranges = 16;
  const Index longest = queries.longest(), rounds = (longest + round - 1) / round;
  for (Index r = 0; r < rounds; ++r) {
    const auto mark = ws.mark();
    const AttentionGrid grid = attention_grid(
        batch,
        [&](Index b, Index& ranges, Index& key_ranges, Index& rows) {
          const Index n = queries.length(b) - r * round, l = keys.length(b);
          ranges = n > 0 && l > 0 ? 1 : 0;
          rows = std::max(Index{0}, std::min(n, round));
          key_ranges = l < 2 * key_range ? 1 : std::min(l / key_range, most_ranges);
        },
        ws);
    const MatrixView<T> parts = ws.matrix<T>(dqueries.empty() ? 0 : grid.partial_row[batch], queries.cols());
    ws.parallel_for(grid.first_task[batch], [&](Index task, Workspace& scratch) {
      const Index b = sequence_of(grid, batch, task), c = task - grid.first_task[b], cuts = grid.key_cuts[b];
      const Index q0 = r * round, q1 = std::min(queries.length(b), q0 + round), l = keys.length(b), row = queries.begin(b) + q0;
      const simd::AttentionResult<T> result{
          out.row(row), dout.row(row), log_sum_exp.row(row), dlog_sum_exp.empty() ? nullptr : dlog_sum_exp.row(row),
          out.stride(), dout.stride(), log_sum_exp.stride(), dlog_sum_exp.stride()};
      simd::AttentionGradients<T> g{};
      if (!dqueries.empty()) {
        const MatrixView<T> to =
            cuts == 1 ? dqueries.middle_rows(row, q1 - q0) : parts.middle_rows(grid.partial_row[b] + c * (q1 - q0), q1 - q0);
        for (Index i = 0; i < to.rows() && cuts > 1; ++i) std::fill_n(to.row(i), to.cols(), T(0));
        g.dq = to.data();
        g.dq_stride = to.stride();
      }
      const auto from = [&](MatrixView<T> m, T*& data, Index& stride) {
        if (m.empty()) return;
        data = m.data() + keys.begin(b) * m.stride();
        stride = m.stride();
      };
      from(dkeys, g.dk, g.dk_stride);
      from(dvalues, g.dv, g.dv_stride);
      from(dbias.per_key, g.key_bias, g.key_bias_stride);
      g.key_bias_head = dbias.per_key.cols() == 1 ? 0 : 1;
      if (!dbias.pairwise.empty()) {
        g.pair_bias = dbias.pairwise.data();
        g.pair_stride = dbias.pairwise.stride();
        g.pair_head = dbias.pairwise.rows() == total ? 0 : total * dbias.pairwise.stride();
      }
      simd::attention_backward<T>(attention_operands(queries, keys, values, bias, options, b), q0, q1, l * c / cuts,
                                  l * (c + 1) / cuts, result, g, scratch);
    });
    if (parts.rows() == 0) continue;
    for (Index b = 0; b < batch; ++b) {
      const Index cuts = grid.key_cuts[b], rows = (grid.partial_row[b + 1] - grid.partial_row[b]) / cuts;
      for (Index i = 0; cuts > 1 && i < rows; ++i)
        for (Index c = 0; c < cuts; ++c)
          simd::add<T>(parts.row(grid.partial_row[b] + c * rows + i), dqueries.row(queries.begin(b) + r * round + i),
                       queries.cols());
    }
  }
}

}  // namespace detail

/// out `[total_N, H dv]` = softmax(c Q K^T + bias) V per sequence and head; log_sum_exp `[total_N, H]` (empty: no) is what
/// backward and `merge_attention` need. queries `[total_N, H dk]`, keys `[total_L, H dk]`, values `[total_L, H dv]` hold the same
/// number of sequences; a plain matrix is a batch of one. A row that sees no key gets zeros, its log_sum_exp is -infinity.
/// Throws `Error` for shapes that do not fit. Outputs may not overlap inputs.
template <class T>
void scaled_dot_product_attention(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                                  const AttentionBias<T>& bias, const AttentionOptions& options, MatrixView<T> out,
                                  MatrixView<T> log_sum_exp, Workspace& ws) {
  detail::attention<T>({"scaled_dot_product_attention"}, queries, keys, values, bias, options, out, log_sum_exp, ws);
}

/// Adds to the gradients of everything `scaled_dot_product_attention` read (empty: not wanted), given what it wrote and the
/// gradients of that; `dlog_sum_exp` is empty where nothing depends on it. Keys and values may be one tensor, and then dkeys and
/// dvalues one view. Hidden keys get exactly nothing. Weights are recomputed from log_sum_exp.
template <class T>
void scaled_dot_product_attention_backward(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                                           const AttentionBias<T>& bias, const AttentionOptions& options, MatrixView<const T> out,
                                           MatrixView<const T> log_sum_exp, MatrixView<const T> dout,
                                           MatrixView<const T> dlog_sum_exp, MatrixView<T> dqueries, MatrixView<T> dkeys,
                                           MatrixView<T> dvalues, const AttentionBiasGradient<T>& dbias, Workspace& ws) {
  detail::attention_backward<T>({"scaled_dot_product_attention_backward"}, queries, keys, values, bias, options, out, log_sum_exp,
                                dout, dlog_sum_exp, dqueries, dkeys, dvalues, dbias, ws);
}

/// out, log_sum_exp <- attention over the union of two disjoint sets of keys, from the results over each; exact up to rounding.
/// The first result is read, the second is read and replaced. `[rows, H dv]` and `[rows, H]`.
template <class T>
void merge_attention(MatrixView<const T> other_out, MatrixView<const T> other_log_sum_exp, MatrixView<T> out,
                     MatrixView<T> log_sum_exp) {
  const char* op = "merge_attention";
  const Index rows = out.rows(), heads = log_sum_exp.cols();
  check_shape(op, "out", out, any_size, any_size);
  check_shape(op, "log_sum_exp", log_sum_exp, rows, any_size);
  check_option(op, "log_sum_exp", heads >= 1 && out.cols() % heads == 0, "one column per head, dividing the columns of out",
               static_cast<double>(heads));
  check_shape(op, "other_out", other_out, rows, out.cols());
  check_shape(op, "other_log_sum_exp", other_log_sum_exp, rows, heads);
  const Index width = out.cols() / heads;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (Index i = 0; i < rows; ++i) {
    for (Index h = 0; h < heads; ++h) {
      const double a = static_cast<double>(log_sum_exp(i, h)), b = static_cast<double>(other_log_sum_exp(i, h));
      if (b == -infinity) continue;
      const double top = a > b ? a : b, wa = a == -infinity ? 0 : std::exp(a - top), wb = std::exp(b - top), sum = wa + wb;
      T* to = out.row(i) + h * width;
      const T* from = other_out.row(i) + h * width;
      const T fa = static_cast<T>(wa / sum), fb = static_cast<T>(wb / sum);
      for (Index d = 0; d < width; ++d) to[d] = (a == -infinity ? T(0) : fa * to[d]) + fb * from[d];
      log_sum_exp(i, h) = static_cast<T>(top + std::log(sum));
    }
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
