/// @file   recops/attention/contrastive_attention.hpp
/// @brief  Every item looks at the same few others twice: at those like it and at those unlike it.
///
///     S_ij = scale · <q_i, k_j>        A+ = softmax_j(log w_j + S_ij)      positive_i = Σ_j A+_ij v_j
///                                      A- = softmax_j(log w_j - S_ij)      negative_i = Σ_j A-_ij v_j
///
/// Shapes      queries [N, d]   keys [M, d]   values [M, e]   positive, negative [N, e], request by request (jagged; all three have
///             the same requests). `self` [N]: which of its request's keys the item is itself, or -1; it does not look at that one.
///             `weights` [M]: how much each key is there, 0 or more; none: 1.
/// Edge cases  No keys, or none left but the item itself: zeros, and no gradient.  N = 0, M = 0, d = 0 (all alike), e = 0.
/// NaN         Stays in its request: a NaN query in its row; a NaN key, value or weight reaches all rows of the request.
/// Precision   Products and sums in T; both softmaxes are max-shifted.
/// Cost        2 N M (d + 2 e) flops and 2 N M exponentials; scratch for M rows and tiles of 64 items: no [N, M] is written.
///             Backward recomputes S: 2 N M (3 d + 4 e) flops. Requests on the caller's threads; no allocation once warm.
/// Errors      Error for shapes, offsets, places and weights that do not fit; outputs untouched.
/// Gradient    of queries, keys, values and weights; *adds*. A weight of 0 gets none: its key is not there.
/// Reference   The context encoder of CDM (arXiv 2406.09021) attends to similar and to dissimilar context; the equations are our
///             reconstruction.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/core/workspace.hpp>
#include <recops/simd/gemm.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// What `contrastive_attention` looks at.
template <class T>
struct ContrastiveInput {
  JaggedView<const T> queries = {};  ///< [total N, d]
  JaggedView<const T> keys = {};     ///< [total M, d]
  JaggedView<const T> values = {};   ///< [total M, e], with the offsets of the keys
  IndexView self = {};               ///< [total N] or empty: places among the request's keys, -1 for none
  VectorView<const T> weights = {};  ///< [total M] or empty
};

struct ContrastiveOptions {
  double scale = 1;  ///< of the products
};

/// What to add gradients to; an empty view is not wanted.
template <class T>
struct ContrastiveGradients {
  MatrixView<T> queries = {}, keys = {}, values = {};
  VectorView<T> weights = {};
};

inline namespace RECOPS_ABI {
namespace detail {

/// Items that are worked on together: their logits and weights stay in the nearest caches.
inline constexpr Index contrastive_tile = 64;

template <class T>
void check_contrastive(const char* name, const ContrastiveInput<T>& in) {
  check_jagged(name, "queries", in.queries, any_size, any_size);
  check_jagged(name, "keys", in.keys, in.queries.size(), in.queries.cols());
  check_jagged(name, "values", in.values, in.keys.size(), any_size);
  check_shape(name, "values", in.values.values(), in.keys.values().rows(), any_size);
  for (Index b = 0; b < in.keys.size(); ++b)
    check_option(name, "values", in.values.length(b) == in.keys.length(b), "the offsets of the keys",
                 static_cast<double>(in.values.length(b)));
  check_not_null(name, "self", in.self);
  if (!in.self.empty()) {
    if (in.self.size() != in.queries.values().rows()) [[unlikely]]
      fail_size(name, "self", in.queries.values().rows(), in.self.size(), false);
    for (Index b = 0; b < in.queries.size(); ++b)
      for (Index i = in.queries.begin(b), end = i + in.queries.length(b); i < end; ++i) {
        const Index place = in.self[i];
        if (place < -1 || place >= in.keys.length(b)) [[unlikely]]
          fail_at(name, "self", "-1 or places below ", in.keys.length(b), i, place);
      }
  }
  if (!in.weights.empty()) {
    check_size(name, "weights", in.weights, in.keys.values().rows());
    for (Index j = 0; j < in.weights.size(); ++j)
      check_option(name, "weights", !(in.weights[j] < 0), "weights >= 0", static_cast<double>(in.weights[j]));
  }
}

/// Both softmaxes of a tile of logits s [rows, M], which it uses up: positive from s, negative from -s. `own(i)` is the key that row i
/// leaves out, or -1; log_weights [M] or null; log_sums, unless null, receives the two log-sum-exps of each row.
template <class T, class Own>
void contrast(MatrixView<T> s, Own&& own, const T* log_weights, MatrixView<T> positive, MatrixView<T> negative, T* log_sums) {
  constexpr T never = -std::numeric_limits<T>::infinity();
  const Index m = s.cols();
  for (Index i = 0; i < s.rows(); ++i) {
    T *const x = s.row(i), *const p = positive.row(i), *const n = negative.row(i);
    const Index place = own(i);
    for (Index j = 0; j < m; ++j) p[j] = -x[j];  // a softmax from one row into another needs fewer passes: p is where -s waits
    if (log_weights) {
      simd::add(log_weights, p, m);
      simd::add(log_weights, x, m);
    }
    if (place >= 0) p[place] = x[place] = never;
    const T down = simd::softmax<T>(p, n, m), up = simd::softmax<T>(x, p, m);
    if (log_sums) {
      log_sums[2 * i] = up;
      log_sums[2 * i + 1] = down;
    }
  }
}

/// What all tiles of one request share: keys times scale, as a right operand, and the logarithms of the weights.
template <class T>
struct ContrastiveRequest {
  MatrixView<const T> queries, keys, values;
  T* packed_keys;
  const T* log_weights = nullptr;
  const ContrastiveInput<T>& in;
  Index first, first_key;  // of the request among all

  ContrastiveRequest(const ContrastiveInput<T>& input, const ContrastiveOptions& options, Index b, Workspace& ws)
      : queries(input.queries[b]),
        keys(input.keys[b]),
        values(input.values[b]),
        packed_keys(ws.take<T>(simd::packed_size<T>(keys.cols(), keys.rows()))),
        in(input),
        first(input.queries.begin(b)),
        first_key(input.keys.begin(b)) {
    const Index m = keys.rows();
    T* logs = in.weights.empty() ? nullptr : ws.take<T>(m);
    if (logs)
      for (Index j = 0; j < m; ++j) logs[j] = std::log(in.weights[first_key + j]);
    log_weights = logs;
    const auto mark = ws.mark();
    const MatrixView<T> scaled = ws.matrix<T>(m, keys.cols());
    for (Index j = 0; j < m; ++j) simd::scale(static_cast<T>(options.scale), keys.row(j), scaled.row(j), keys.cols());
    simd::pack<T>(simd::transposed(MatrixView<const T>(scaled)), packed_keys);
  }
  /// A+ and A- of the items [start, start + rows).
  void weights_of(Index start, MatrixView<T> s, MatrixView<T> positive, MatrixView<T> negative, T* log_sums,
                  Workspace& ws) const {
    simd::gemm_packed<T>(simd::plain(queries.middle_rows(start, s.rows())), packed_keys, keys.rows(), {}, s, ws);
    const auto own = [&](Index i) { return in.self.empty() ? Index{-1} : in.self[first + start + i]; };
    contrast<T>(s, own, log_weights, positive, negative, log_sums);
  }
};

}  // namespace detail

/// Writes positive and negative [total N, e]; log_sums [total N, 2] (or empty) keeps the log-sum-exps of both softmaxes.
template <Real T>
void contrastive_attention(const ContrastiveInput<T>& in, const ContrastiveOptions& options, MatrixView<T> positive,
                           MatrixView<T> negative, MatrixView<T> log_sums, Workspace& ws) {
  constexpr const char* name = "contrastive_attention";
  detail::check_contrastive(name, in);
  const Index total = in.queries.values().rows(), e = in.values.cols();
  check_shape(name, "positive", positive, total, e);
  check_shape(name, "negative", negative, total, e);
  if (!log_sums.empty()) check_shape(name, "log_sums", log_sums, total, 2);
  ws.parallel_for(in.queries.size(), [&](Index b, Workspace& own) {
    const Index n = in.queries.length(b), m = in.keys.length(b), first = in.queries.begin(b);
    if (n == 0) return;
    const auto mark = own.mark();
    const detail::ContrastiveRequest<T> request(in, options, b, own);
    T* const packed_values = own.take<T>(simd::packed_size<T>(m, e));
    simd::pack<T>(simd::plain(request.values), packed_values);
    constexpr Index tile = detail::contrastive_tile;
    const MatrixView<T> s = own.matrix<T>(tile, m), up = own.matrix<T>(tile, m), down = own.matrix<T>(tile, m);
    T sums[2 * tile];
    for (Index start = 0; start < n; start += tile) {
      const Index rows = std::min(tile, n - start);
      request.weights_of(start, s.middle_rows(0, rows), up, down, sums, own);
      simd::gemm_packed<T>(simd::plain(MatrixView<const T>(up.middle_rows(0, rows))), packed_values, e, {},
                           positive.middle_rows(first + start, rows), own);
      simd::gemm_packed<T>(simd::plain(MatrixView<const T>(down.middle_rows(0, rows))), packed_values, e, {},
                           negative.middle_rows(first + start, rows), own);
      if (!log_sums.empty())
        for (Index i = 0; i < rows; ++i) std::copy_n(sums + 2 * i, 2, log_sums.row(first + start + i));
    }
  });
}

/// Adds to the gradients of what went in, given those of both results.
template <Real T>
void contrastive_attention_backward(const ContrastiveInput<T>& in, const ContrastiveOptions& options,
                                    MatrixView<const T> dpositive, MatrixView<const T> dnegative,
                                    const ContrastiveGradients<T>& gradients, Workspace& ws) {
  constexpr const char* name = "contrastive_attention_backward";
  detail::check_contrastive(name, in);
  const Index total = in.queries.values().rows(), total_keys = in.keys.values().rows(), d = in.queries.cols(),
              e = in.values.cols();
  check_shape(name, "dpositive", dpositive, total, e);
  check_shape(name, "dnegative", dnegative, total, e);
  if (!gradients.queries.empty()) check_shape(name, "gradient of queries", gradients.queries, total, d);
  if (!gradients.keys.empty()) check_shape(name, "gradient of keys", gradients.keys, total_keys, d);
  if (!gradients.values.empty()) check_shape(name, "gradient of values", gradients.values, total_keys, e);
  if (!gradients.weights.empty()) {
    check_size(name, "gradient of weights", gradients.weights, total_keys);
  }
  ws.parallel_for(in.queries.size(), [&](Index b, Workspace& own) {
    const Index n = in.queries.length(b), m = in.keys.length(b), first = in.queries.begin(b), first_key = in.keys.begin(b);
    if (n == 0 || m == 0) return;
    const auto mark = own.mark();
    const detail::ContrastiveRequest<T> request(in, options, b, own);
    T* const packed_values = own.take<T>(simd::packed_size<T>(e, m));  // V^T
    simd::pack<T>(simd::transposed(request.values), packed_values);
    constexpr Index tile = detail::contrastive_tile;
    const MatrixView<T> s = own.matrix<T>(tile, m), up = own.matrix<T>(tile, m), down = own.matrix<T>(tile, m),
                        dup = own.matrix<T>(tile, m), ddown = own.matrix<T>(tile, m);
    for (Index start = 0; start < n; start += tile) {
      const Index rows = std::min(tile, n - start);
      const auto part = [rows](MatrixView<T> x) { return x.middle_rows(0, rows); };
      const auto operand = [rows](MatrixView<T> x) { return MatrixView<const T>(x.middle_rows(0, rows)); };
      const MatrixView<const T> gp = dpositive.middle_rows(first + start, rows), gn = dnegative.middle_rows(first + start, rows);
      request.weights_of(start, part(s), up, down, nullptr, own);
      simd::gemm_packed<T>(simd::plain(gp), packed_values, m, {}, part(dup), own);
      simd::gemm_packed<T>(simd::plain(gn), packed_values, m, {}, part(ddown), own);
      if (!gradients.values.empty()) {
        const MatrixView<T> dv = gradients.values.middle_rows(first_key, m);
        simd::gemm<T>(simd::transposed(operand(up)), simd::plain(gp), {.accumulate = true}, dv, own);
        simd::gemm<T>(simd::transposed(operand(down)), simd::plain(gn), {.accumulate = true}, dv, own);
      }
      // B = A o (dA - rowsum(dA o A)), over what was A; then dS = scale (B+ - B-) over s
      for (Index i = 0; i < rows; ++i) {
        T *const p = up.row(i), *const q = down.row(i), *const out = s.row(i);
        const T mean_p = simd::dot(p, dup.row(i), m), mean_q = simd::dot(q, ddown.row(i), m);
        const auto scale = static_cast<T>(options.scale);
        for (Index j = 0; j < m; ++j) {
          p[j] *= dup(i, j) - mean_p;
          q[j] *= ddown(i, j) - mean_q;
          out[j] = scale * (p[j] - q[j]);
        }
        if (!gradients.weights.empty()) {
          for (Index j = 0; j < m; ++j) {
            const T w = in.weights.empty() ? T(1) : in.weights[first_key + j];
            if (w > 0) gradients.weights[first_key + j] += (p[j] + q[j]) / w;
          }
        }
      }
      if (!gradients.queries.empty())
        simd::gemm<T>(simd::plain(operand(s)), simd::plain(request.keys), {.accumulate = true},
                      gradients.queries.middle_rows(first + start, rows), own);
      if (!gradients.keys.empty())
        simd::gemm<T>(simd::transposed(operand(s)), simd::plain(request.queries.middle_rows(start, rows)), {.accumulate = true},
                      gradients.keys.middle_rows(first_key, m), own);
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
