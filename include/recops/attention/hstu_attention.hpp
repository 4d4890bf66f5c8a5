/// @file   recops/attention/hstu_attention.hpp
/// @brief  Pointwise aggregated attention (HSTU): silu of the scores instead of a softmax, with relative position and time biases.
///
///     out_i = (1 / max_length) sum_j silu(scale q_i . k_j + position[j - i] + time[bucket(asked_i - t_j)]) v_j       j visible to i
///
/// Shapes      queries [total_N, H dk]   keys [total_L, H dk]   values [total_L, H dv]   out [total_N, H dv]: the same users in each.
///             The N_b queries of a user stand at the last N_b of the L_b positions: all of them in training and for a first request;
///             the new ones alone where keys and values of the others are kept (what HstuState of hstu.hpp does).
/// Weights     do not sum to 1: how much of a history is like the query stays visible. The divisor is `max_length`, a constant, not the
///             user's length; it must be the same in training and serving.
/// Visible     j <= i (causal, the diagonal included), i - j < window.  The last `targets[b]` positions of a user are candidates: each sees
///             the history and itself, none of the others, and counts as standing at its end.
/// Time        bucket = floor(ln(max(1, gap)) / 0.301), at most the last.  A query is asked when the next behaviour happens (the last one:
///             at its own time), unless `query_times` says when.
/// Edge cases  a row that sees no key gets 0.  Empty users and batches are fine.
/// NaN         stays with the queries that see it: a NaN in a later behaviour does not touch earlier rows.
///             A score of -infinity weighs nothing (1e-36), one of infinity makes the row infinite, or NaN where signs differ or v is 0.
/// Precision   T; weights to 1e-7 absolute of max(1, score) (float).  Same bits for any number of threads; sums over keys in blocks of 60.
/// Cost        2 H (dk + dv) flops per visible pair, half of all where causal; no [L, L] matrix.  Backward 2.5 times that.
/// Errors      Error if shapes, offsets, times or options disagree; outputs untouched.
/// Reference   Zhai et al., Actions Speak Louder than Words (HSTU), arXiv 2402.17152, section 3 and its published code.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/core/error.hpp>
#include <recops/simd/silu_attention.hpp>

namespace recops {

/// Options of `hstu_attention`.
struct HstuAttentionOptions {
  Index heads = 1;         ///< divides the columns of queries and values
  Index max_length = 0;    ///< of any sequence, 1 or more: the divisor
  double scale = 1;        ///< of q . k; 1 in the authors' research code, 1 / sqrt(dk) in their production code
  bool causal = true;      ///< a position sees no later one
  Index window = 0;        ///< w > 0: position i sees j with i - j < w
  IndexView targets = {};  ///< [B] how many of a user's last positions are candidates; empty: none. Needs `causal`
};

inline namespace RECOPS_ABI {

/// The learned biases and the times they are looked up by.
template <class T>
struct HstuBias {
  VectorView<const T> position =
      {};                         ///< [2 max_length - 1]: entry max_length - 1 + j - i is added to the score of (i, j); or empty
  VectorView<const T> time = {};  ///< [buckets], 1 to 148; or empty
  IndexView times = {};           ///< [total_L], when each behaviour happened; needed where `time` is given
  IndexView query_times = {};     ///< [total_N], when each query is asked; empty: see Time above
};

/// Where backward adds; empty: not wanted.
template <class T>
struct HstuBiasGradient {
  VectorView<T> position = {}, time = {};
};

namespace detail {

template <class T>
void check_hstu(const char* op, JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                const HstuBias<T>& bias, const HstuAttentionOptions& o) {
  check_option(op, "heads", o.heads >= 1, "heads >= 1", static_cast<double>(o.heads));
  check_option(op, "max_length", o.max_length >= 1, "max_length >= 1", static_cast<double>(o.max_length));
  check_option(op, "scale", std::isfinite(o.scale), "a finite scale", o.scale);
  check_option(op, "window", o.window >= 0, "window >= 0, where 0 is none", static_cast<double>(o.window));
  check_jagged(op, "queries", queries, any_size, any_size);
  check_option(op, "heads", queries.cols() >= o.heads && queries.cols() % o.heads == 0,
               "a number that divides the columns of queries", static_cast<double>(o.heads));
  check_jagged(op, "keys", keys, queries.size(), queries.cols());
  check_jagged(op, "values", values, queries.size(), any_size);
  check_option(op, "heads", values.cols() >= o.heads && values.cols() % o.heads == 0,
               "a number that divides the columns of values", static_cast<double>(o.heads));
  check_shape(op, "values", values.values(), keys.values().rows(), any_size);
  for (Index b = 0; b < keys.size(); ++b) {
    if (keys.length(b) != values.length(b)) [[unlikely]]
      fail_at(op, "values", "as many rows as keys in each sequence, ", keys.length(b), b, values.length(b));
    if (queries.length(b) > keys.length(b)) [[unlikely]]
      fail_at(op, "queries", "no more rows than keys in each sequence, at most ", keys.length(b), b, queries.length(b));
    if (keys.length(b) > o.max_length) [[unlikely]]
      fail_at(op, "keys", "sequences of at most max_length rows, ", o.max_length, b, keys.length(b));
  }
  if (!bias.position.empty()) check_size(op, "position", bias.position, 2 * o.max_length - 1);
  if (!bias.time.empty()) {
    check_size(op, "time", bias.time, any_size);
    check_option(op, "time", bias.time.size() <= log_bucket_count, "at most 148 buckets", static_cast<double>(bias.time.size()));
    check_not_null(op, "times", bias.times);
    if (bias.times.size() != keys.values().rows()) fail_size(op, "times", keys.values().rows(), bias.times.size(), false);
    check_not_null(op, "query_times", bias.query_times);
    if (!bias.query_times.empty() && bias.query_times.size() != queries.values().rows())
      fail_size(op, "query_times", queries.values().rows(), bias.query_times.size(), false);
  }
  if (!o.targets.empty()) {
    check_option(op, "targets", o.causal, "causal", 0);
    check_not_null(op, "targets", o.targets);
    if (o.targets.size() != keys.size()) fail_size(op, "targets", keys.size(), o.targets.size(), false);
    for (Index b = 0; b < keys.size(); ++b)
      if (o.targets[b] < 0 || o.targets[b] > keys.length(b)) [[unlikely]]
        fail_at(op, "targets", "from 0 to the sequence's rows, ", keys.length(b), b, o.targets[b]);
  }
}

/// The times at which queries are asked, where they were not given: those of the next behaviours.
template <class T>
IndexView hstu_query_times(JaggedView<const T> queries, JaggedView<const T> keys, const HstuBias<T>& bias, Workspace& ws) {
  if (bias.time.empty() || !bias.query_times.empty()) return bias.query_times;
  auto* const asked = ws.take<std::int64_t>(queries.values().rows());
  for (Index b = 0; b < queries.size(); ++b) {
    const Index n = queries.length(b), end = keys.begin(b) + keys.length(b);
    for (Index i = 0; i < n; ++i) {
      const Index next = end - n + i + 1;
      asked[queries.begin(b) + i] = bias.times[next < end ? next : end - 1];
    }
  }
  return IndexView(asked, queries.values().rows());
}

/// The position table backwards, so that bias(i, j) = result[i - j], with room for a tile's padding behind it.
template <class T>
const T* hstu_reversed(VectorView<const T> position, Index max_length, Workspace& ws) {
  if (position.empty()) return nullptr;
  constexpr Index room = simd::lanes<T> * simd::attention_kernel::most_vectors;
  T* const out = ws.take<T>(position.size() + room);
  std::reverse_copy(position.begin(), position.end(), out);
  std::fill_n(out + position.size(), room, T(0));
  return out + (max_length - 1);
}

template <class T>
simd::SiluAttentionOperands<T> hstu_operands(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                                             const HstuBias<T>& bias, const HstuAttentionOptions& o, const T* reversed,
                                             IndexView asked, Index b) {
  simd::SiluAttentionOperands<T> x;
  x.queries = queries.length(b);
  x.keys = keys.length(b);
  const auto rows = [](JaggedView<const T> j, Index at, const T*& data, Index& stride) {
    data = j.values().data() + at * j.values().stride();
    stride = j.values().stride();
  };
  rows(queries, queries.begin(b), x.q, x.q_stride);
  rows(keys, keys.begin(b), x.k, x.k_stride);
  rows(values, values.begin(b), x.v, x.v_stride);
  x.heads = o.heads;
  x.key_width = queries.cols() / o.heads;
  x.value_width = values.cols() / o.heads;
  x.scale = static_cast<T>(o.scale);
  x.weight = T(1) / static_cast<T>(o.max_length);
  x.causal = o.causal;
  x.window = o.window;
  x.targets = o.targets.empty() ? 0 : o.targets[b];
  x.position = bias.position.empty() ? nullptr : bias.position.data() + (o.max_length - 1);
  x.reversed = reversed;
  if (!bias.time.empty()) {
    x.time = bias.time.data();
    x.buckets = bias.time.size();
    x.key_times = bias.times.segment(keys.begin(b), x.keys);
    x.query_times = asked.segment(queries.begin(b), x.queries);
  }
  return x;
}

}  // namespace detail

/// Writes `out`; see the top of the file.
template <Real T>
void hstu_attention(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values, const HstuBias<T>& bias,
                    const HstuAttentionOptions& options, MatrixView<T> out, Workspace& ws) {
  constexpr const char* name = "hstu_attention";
  detail::check_hstu(name, queries, keys, values, bias, options);
  check_shape(name, "out", out, queries.values().rows(), values.cols());
  if (out.empty()) return;
  const auto mark = ws.mark();
  constexpr Index block = simd::attention_kernel::query_block<T, simd::DefaultArch>;
  const Index batch = queries.size();
  const T* const reversed = detail::hstu_reversed(bias.position, options.max_length, ws);
  const IndexView asked = detail::hstu_query_times(queries, keys, bias, ws);
  Index* const first_task = ws.take<Index>(batch + 1);  // a fixed grid: blocks of queries
  first_task[0] = 0;
  for (Index b = 0; b < batch; ++b) first_task[b + 1] = first_task[b] + (queries.length(b) + block - 1) / block;
  ws.parallel_for(first_task[batch], [&](Index task, Workspace& scratch) {
    const Index b = std::upper_bound(first_task, first_task + batch + 1, task) - first_task - 1;
    const Index q0 = (task - first_task[b]) * block, q1 = std::min(queries.length(b), q0 + block);
    simd::silu_attention_forward<T>(detail::hstu_operands(queries, keys, values, bias, options, reversed, asked, b), q0, q1,
                                    out.row(queries.begin(b) + q0), out.stride(), scratch);
  });
}

/// Adds to the gradients of queries, keys, values and of the biases' tables, each unless empty. Scores are computed again: forward
/// leaves nothing but its inputs.
template <Real T>
void hstu_attention_backward(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                             const HstuBias<T>& bias, const HstuAttentionOptions& options, MatrixView<const T> dout,
                             MatrixView<T> dqueries, MatrixView<T> dkeys, MatrixView<T> dvalues, const HstuBiasGradient<T>& dbias,
                             Workspace& ws) {
  constexpr const char* name = "hstu_attention_backward";
  detail::check_hstu(name, queries, keys, values, bias, options);
  const Index rows = queries.values().rows(), total = keys.values().rows();
  check_shape(name, "dout", dout, rows, values.cols());
  if (!dqueries.empty()) check_shape(name, "dqueries", dqueries, rows, queries.cols());
  if (!dkeys.empty()) check_shape(name, "dkeys", dkeys, total, keys.cols());
  if (!dvalues.empty()) check_shape(name, "dvalues", dvalues, total, values.cols());
  if (!dbias.position.empty()) check_size(name, "dbias.position", dbias.position, bias.position.size());
  if (!dbias.time.empty()) check_size(name, "dbias.time", dbias.time, bias.time.size());
  if (rows == 0) return;
  const auto mark = ws.mark();
  const T* const reversed = detail::hstu_reversed(bias.position, options.max_length, ws);
  const IndexView asked = detail::hstu_query_times(queries, keys, bias, ws);
  // One task per user, or per head where users are few: what keys and values receive belongs to one task. Tasks go in rounds, so that
  // their shares of the tables, added in order, take bounded memory.
  constexpr Index block = 2 * simd::attention_kernel::query_block<T, simd::DefaultArch>, most_tasks = 64, chain = 512;
  const Index parts = queries.size() < 16 ? options.heads : 1, tasks = queries.size() * parts, longest = keys.longest();
  const Index wide = dbias.position.empty() ? 0 : 2 * longest, slots = std::min(tasks, most_tasks), buckets = dbias.time.size();
  T* const shares = ws.take<T>(slots * wide);
  double* const time_shares = ws.take<double>(slots * buckets);
  for (Index start = 0; start < tasks; start += most_tasks) {
    const Index count = std::min(tasks - start, most_tasks);
    std::fill_n(shares, count * wide, T(0));
    std::fill_n(time_shares, count * buckets, 0.0);
    ws.parallel_for(count, [&](Index slot, Workspace& scratch) {
      const auto inner = scratch.mark();
      const Index b = (start + slot) / parts, part = (start + slot) % parts, heads = options.heads / parts;
      const auto x = detail::hstu_operands(queries, keys, values, bias, options, reversed, asked, b);
      const auto from = [](MatrixView<T> m, Index row, T*& data, Index& stride) {
        if (m.empty()) return;
        data = m.data() + row * m.stride();
        stride = m.stride();
      };
      simd::SiluAttentionGradients<T> g;
      from(dqueries, queries.begin(b), g.dq, g.dq_stride);
      from(dkeys, keys.begin(b), g.dk, g.dk_stride);
      from(dvalues, keys.begin(b), g.dv, g.dv_stride);
      T *const share = shares + slot * wide, *const own = scratch.take<T>(wide);
      std::fill_n(own, wide, T(0));
      if (wide > 0) g.reversed = own + longest - 1;
      if (buckets > 0) g.time = time_shares + slot * buckets;
      for (Index q0 = 0; q0 < x.queries; q0 += block) {
        simd::silu_attention_backward<T>(x, q0, std::min(x.queries, q0 + block), part * heads, (part + 1) * heads,
                                         dout.data() + queries.begin(b) * dout.stride(), dout.stride(), g, scratch);
        if (wide > 0 && (q0 + block >= x.queries || (q0 / block + 1) % (chain / block) == 0)) {  // no long chains of sums
          simd::add<T>(own, share, wide);
          std::fill_n(own, wide, T(0));
        }
      }
    });
    for (Index slot = 0; slot < count; ++slot) {
      for (Index d = 0; d < wide - 1; ++d) dbias.position[options.max_length - 1 + longest - 1 - d] += shares[slot * wide + d];
      for (Index k = 0; k < buckets; ++k) dbias.time[k] += static_cast<T>(time_shares[slot * buckets + k]);
    }
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
