/// @file   recops/attention/twin_attention.hpp
/// @brief  The exact search unit of TWIN: softmax attention of every candidate over the behaviours that were selected for it.
///
///     P_a = softmax over i in I_n of (c q_na . k_ia + bias_ia)          pooled_na = sum_i P_a[i] v_i
///
/// All heads pool the same raw values v [Dv], which are projected afterwards: (P V) Wv = P (V Wv), and a candidate has one pooled
/// row a head where it has k selected ones.
///
/// Shapes      queries [total_N, H dk]   keys [total_L, H dk]   bias [total_L, H], [total_L, 1] or empty   values [total_L, Dv]
///             indices [total_N, k] into the user's own history, -1: none   pooled [total_N, H Dv]   log_sum_exp [total_N, H]
/// Edge cases  Nothing selected: zeros, log_sum_exp -infinity, no gradient. A bias of -infinity: weight 0. An index that comes twice
///             counts twice.
/// NaN         Stays with the (candidate, head) that sees it.
/// Cost        2 N k H (dk + Dv) flops; backward 2.5 times that. Memory is read where something was selected, nowhere else.
/// Gradients   Selection has none; behaviours that nobody selected get exactly nothing. Candidates of a user add up in their order,
///             so that the bits do not depend on the number of threads.
/// Errors      Error if shapes, offsets, indices or options disagree; outputs untouched.
/// Reference   Chang et al., TWIN, arXiv 2302.02352, section 3.4.
#pragma once
#include <recops/attention/twin_search.hpp>
#include <recops/simd/pool_rows.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
[[gnu::noinline]] void check_twin_selection(const char* op, JaggedView<const T> queries, const SearchKeys<T>& keys,
                                            MatrixView<const std::int32_t> indices) {
  check_shape(op, "indices", indices, queries.values().rows(), any_size);
  for (Index b = 0; b < queries.size(); ++b) {
    const Index length = keys.length(b);
    for (Index n = queries.begin(b); n < queries.begin(b) + queries.length(b); ++n)
      for (Index i = 0; i < indices.cols(); ++i)
        if (const Index at = indices(n, i); at < -1 || at >= length) [[unlikely]]
          fail_at(op, "indices", "-1, or indices from 0 to below the user's behaviours, ", length, n * indices.cols() + i, at);
  }
}

/// The selected behaviours of a candidate that one head sees, and the rows of their keys.
struct TwinRows {
  std::int32_t* at;       // in the user's history
  std::int64_t* key_row;  // in what holds the keys
  Index count;
};
template <class T>
void rows_of_head(const SearchKeys<T>& keys, MatrixView<const T> bias, Index head, Index begin,
                  VectorView<const std::int32_t> indices, TwinRows& s) {
  s.count = 0;
  const Index column = bias.cols() == 1 ? 0 : head;
  for (const std::int32_t at : indices) {
    if (at < 0 || (!bias.empty() && bias(begin + at, column) == -std::numeric_limits<T>::infinity())) continue;
    s.at[s.count] = at;
    s.key_row[s.count++] = keys.rows.empty() ? begin + at : keys.rows[begin + at];
  }
}

/// Scores of one head at the selected rows, with the bias; `q` is scaled.
template <class T>
void twin_scores_at(const T* q, Index width, Index head, const SearchKeys<T>& keys, MatrixView<const T> bias, Index begin,
                    const TwinRows& s, T* scores) {
  simd::dot_rows<T>(VectorView<const T>(q, width), keys.exact.middle_cols(head * width, width), IndexView(s.key_row, s.count),
                    VectorView<T>(scores, s.count));
  for (Index i = 0; i < s.count && !bias.empty(); ++i) scores[i] += bias(begin + s.at[i], bias.cols() == 1 ? 0 : head);
}

/// Values may be in two parts, side by side in thought: parts[0] [total_L, D0] and parts[1] [total_L, D1] (or empty).
template <class T>
void attend_twin(JaggedView<const T> shape, MatrixView<const T> q, const SearchKeys<T>& keys, MatrixView<const T> bias,
                 const MatrixView<const T> (&parts)[2], Index heads, MatrixView<const std::int32_t> indices, MatrixView<T> pooled,
                 MatrixView<T> log_sum_exp, Workspace& ws) {
  constexpr Index block = 16;  // candidates of a task
  const Index users = shape.size(), width = q.cols() / heads, values = parts[0].cols() + parts[1].cols();
  auto* const first_task = ws.take<Index>(users + 1);
  first_task[0] = 0;
  for (Index b = 0; b < users; ++b) first_task[b + 1] = first_task[b] + (shape.length(b) + block - 1) / block;
  ws.parallel_for(first_task[users], [&](Index task, Workspace& scratch) {
    const Index b = std::upper_bound(first_task, first_task + users + 1, task) - first_task - 1, begin = keys.begin(b);
    const Index n0 = shape.begin(b) + (task - first_task[b]) * block, n1 = std::min(n0 + block, shape.begin(b) + shape.length(b));
    for (Index n = n0; n < n1; ++n) {
      const auto mark = scratch.mark();
      const Index k = indices.cols();
      TwinRows s{scratch.take<std::int32_t>(k), scratch.take<std::int64_t>(k), 0};
      T* const p = scratch.take<T>(k);
      for (Index h = 0; h < heads; ++h) {
        rows_of_head(keys, bias, h, begin, VectorView<const std::int32_t>(indices.row(n), k), s);
        twin_scores_at<T>(q.row(n) + h * width, width, h, keys, bias, begin, s, p);
        const T lse = simd::softmax<T>(p, s.count);
        if (!log_sum_exp.empty()) log_sum_exp(n, h) = lse;
        T* out = pooled.row(n) + h * values;
        for (const MatrixView<const T>& part : parts) {
          if (part.cols() == 0) continue;
          const MatrixView<const T> own = part.middle_rows(begin, keys.length(b));
          simd::pool_rows<T>(
              simd::PickedRows<T>{.table = own, .ids = IndexView(s.at, s.count), .weights = VectorView<const T>(p, s.count)}, 0,
              s.count, T(1), out);
          out += part.cols();
        }
      }
    }
  });
}

/// Where backward adds. Keys and their bias may be kept for the selected behaviours only: behaviour l at row slot[l].
template <class T>
struct TwinGradients {
  MatrixView<T> queries = {}, keys = {}, bias = {}, values[2] = {};
  const std::int32_t* slot = nullptr;
};

template <class T>
void attend_twin_backward(JaggedView<const T> shape, MatrixView<const T> q, T scale, const SearchKeys<T>& keys,
                          MatrixView<const T> bias, const MatrixView<const T> (&parts)[2], Index heads,
                          MatrixView<const std::int32_t> indices, MatrixView<const T> pooled, MatrixView<const T> log_sum_exp,
                          MatrixView<const T> dpooled, const TwinGradients<T>& g, Workspace& ws) {
  const Index width = q.cols() / heads, values = parts[0].cols() + parts[1].cols();
  constexpr T infinity = std::numeric_limits<T>::infinity();
  ws.parallel_for(shape.size(), [&](Index b, Workspace& scratch) {
    const Index begin = keys.begin(b), length = keys.length(b);
    for (Index n = shape.begin(b); n < shape.begin(b) + shape.length(b); ++n) {
      const auto mark = scratch.mark();
      const Index k = indices.cols();
      TwinRows s{scratch.take<std::int32_t>(k), scratch.take<std::int64_t>(k), 0};
      T* const p = scratch.take<T>(k);
      T* const ds = scratch.take<T>(k);
      T* const part_of = scratch.take<T>(k);
      T* const dq = scratch.take<T>(width);
      for (Index h = 0; h < heads; ++h) {
        rows_of_head(keys, bias, h, begin, VectorView<const std::int32_t>(indices.row(n), k), s);
        const T lse = log_sum_exp(n, h);
        if (s.count == 0 || lse == -infinity) continue;
        const T* const qh = q.row(n) + h * width;
        const T *dout = dpooled.row(n) + h * values, *out = pooled.row(n) + h * values;
        twin_scores_at<T>(qh, width, h, keys, bias, begin, s, p);
        simd::softmax<T>(p,
                         s.count);  // as forward: exp(p - lse) would be off by what rounding lse lost, 5e-4 where scores are 1e4
        const T mean = simd::dot<T>(dout, out, values);
        std::fill_n(ds, s.count, T(0));
        Index column = 0;
        for (int v = 0; v < 2; ++v) {
          const Index cols = parts[v].cols();
          if (cols == 0) continue;
          simd::dot_rows<T>(VectorView<const T>(dout + column, cols), parts[v].middle_rows(begin, length),
                            IndexView(s.at, s.count), VectorView<T>(part_of, s.count));
          for (Index i = 0; i < s.count; ++i) ds[i] += part_of[i];
          for (Index i = 0; i < s.count && !g.values[v].empty(); ++i)
            if (p[i] != 0) simd::axpy<T>(p[i], dout + column, g.values[v].row(begin + s.at[i]), cols);
          column += cols;
        }
        for (Index i = 0; i < s.count; ++i) ds[i] = p[i] == 0 ? T(0) : p[i] * (ds[i] - mean);
        if (!g.queries.empty()) {
          simd::pool_rows<T>(simd::PickedRows<T>{.table = keys.exact.middle_cols(h * width, width),
                                                 .ids = IndexView(s.key_row, s.count),
                                                 .weights = VectorView<const T>(ds, s.count)},
                             0, s.count, scale, dq);
          simd::add<T>(dq, g.queries.row(n) + h * width, width);
        }
        for (Index i = 0; i < s.count; ++i) {
          if (ds[i] == 0) continue;
          const Index row = g.slot ? g.slot[begin + s.at[i]] : begin + s.at[i];
          if (!g.keys.empty()) simd::axpy<T>(ds[i], qh, g.keys.row(row) + h * width, width);  // q is scaled
          if (!g.bias.empty()) g.bias(row, g.bias.cols() == 1 ? 0 : h) += ds[i];
        }
      }
    }
  });
}

}  // namespace detail

/// pooled [total_N, H Dv] and, unless empty, log_sum_exp [total_N, H], which backward needs.
template <class T>
void twin_attention(JaggedView<const T> queries, const SearchKeys<T>& keys, MatrixView<const T> bias, MatrixView<const T> values,
                    const TwinOptions& options, MatrixView<const std::int32_t> indices, MatrixView<T> pooled,
                    MatrixView<T> log_sum_exp, Workspace& ws) {
  const char* op = "twin_attention";
  detail::check_search<T>(op, queries, keys, bias, options);
  detail::check_twin_selection<T>(op, queries, keys, indices);
  check_shape(op, "values", values, keys.behaviours(), any_size);
  check_shape(op, "pooled", pooled, queries.values().rows(), options.heads * values.cols());
  if (!log_sum_exp.empty()) check_shape(op, "log_sum_exp", log_sum_exp, queries.values().rows(), options.heads);
  const auto mark = ws.mark();
  const MatrixView<T> q = detail::scaled_queries<T>(queries.values(), options, ws);
  detail::attend_twin<T>(queries, q, keys, bias, {values, {}}, options.heads, indices, pooled, log_sum_exp, ws);
}

/// Adds to the gradients of queries, keys, bias and values (empty: not wanted), each in the shape of what it belongs to. Keys in
/// order only: those of a cache are learned through the projection that fills it.
template <class T>
void twin_attention_backward(JaggedView<const T> queries, JaggedView<const T> keys, MatrixView<const T> bias,
                             MatrixView<const T> values, const TwinOptions& options, MatrixView<const std::int32_t> indices,
                             MatrixView<const T> pooled, MatrixView<const T> log_sum_exp, MatrixView<const T> dpooled,
                             MatrixView<T> dqueries, MatrixView<T> dkeys, MatrixView<T> dbias, MatrixView<T> dvalues,
                             Workspace& ws) {
  const char* op = "twin_attention_backward";
  const SearchKeys<T> k(keys);
  const Index n = queries.values().rows(), l = k.behaviours();
  check_jagged(op, "keys", keys, any_size, any_size);
  detail::check_search<T>(op, queries, k, bias, options);
  detail::check_twin_selection<T>(op, queries, k, indices);
  check_shape(op, "values", values, l, any_size);
  check_shape(op, "pooled", pooled, n, options.heads * values.cols());
  check_shape(op, "log_sum_exp", log_sum_exp, n, options.heads);
  check_shape(op, "dpooled", dpooled, n, pooled.cols());
  if (!dqueries.empty()) check_shape(op, "dqueries", dqueries, n, queries.cols());
  if (!dkeys.empty()) check_shape(op, "dkeys", dkeys, l, keys.cols());
  if (!dbias.empty()) check_shape(op, "dbias", dbias, bias.rows(), bias.cols());
  if (!dvalues.empty()) check_shape(op, "dvalues", dvalues, l, values.cols());
  const auto mark = ws.mark();
  const MatrixView<T> q = detail::scaled_queries<T>(queries.values(), options, ws);
  const auto c =
      static_cast<T>(options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(queries.cols() / options.heads)));
  detail::attend_twin_backward<T>(queries, q, c, k, bias, {values, {}}, options.heads, indices, pooled, log_sum_exp, dpooled,
                                  {.queries = dqueries, .keys = dkeys, .bias = dbias, .values = {dvalues, {}}}, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
