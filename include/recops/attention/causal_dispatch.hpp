/// @file   recops/attention/causal_dispatch.hpp
/// @brief  Dispatcher attention in which token t reads experts that have read tokens s <= t only: a recurrence with a state of fixed size.
///
///     A_t,rh = sum_{s <= t} e^(l_s,rh) w_s,h / sum_{s <= t} e^(l_s,rh)         expert r's mean, by aggregating head h, up to t
///     [K_t,r | V_t,r] = constant + sum_h A_t,rh                                what token t sees of expert r
///     out_t = softmax_r(c q_t . K_t,r) V_t,r                                   per dispatching head
///
/// w_s,h `[2 E]` is what token s would add to keys and values of the second pass through head h of the first: the product of four
/// projections, which is linear, so that the mean of projected rows is the projected mean. The mean moves by beta_t = e^l_t / sum:
/// A_t = A_t-1 + beta_t (w_t - A_t-1), so nothing grows with t and appending a token costs O(k H E), whatever came before.
///
/// Shapes      queries, out [total, E] jagged; logits [total, k H], head h of expert r in column r H + h; mixed [total, H 2 E]: keys, then
///             values, head by head; constant [2 E] or empty.
/// Edge cases  A token whose mask is 0 is not read, changes nothing, and its out is 0.   NaN reaches the tokens behind it in its sequence.
/// Cost        about 4 k H E + 4 k E flops a token, bound by the state's way through L1.   Backward keeps the state of every 16th token.
/// Errors      `Error` for shapes that do not fit; outputs untouched.   Same bits for any number of threads.
/// Source      our reconstruction of a causal form for arXiv 2408.09380, which has none.
#pragma once
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/attention_tiles.hpp>
#include <recops/simd/chained_sum.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// Options of `causal_dispatch`.
struct CausalDispatchOptions {
  Index heads = 1;                           ///< H, of both passes; divides E
  double scale = 0;                          ///< c; 0: 1 / sqrt(E / H)
  VectorView<const std::uint8_t> mask = {};  ///< [total], 0 hides a token; empty: all are seen
};

inline namespace RECOPS_ABI {

namespace detail {

/// Means and weights of one sequence's experts.
template <class T>
struct CausalState {
  using B = simd::Batch<T, simd::DefaultArch>;
  static constexpr Index W = simd::lanes<T, simd::DefaultArch>;
  Index experts, heads, width, count, padded;  // count = experts * heads, width = 2 E
  T *mean, *top, *sum, *beta, *logits;         // [count, width]; [padded] each

  static Index padded_count(Index k, Index h) { return (k * h + W - 1) / W * W; }
  CausalState(Index k, Index h, Index w, Workspace& ws)
      : CausalState(k, h, w, ws.take<T>(k * h * w), ws.take<T>(padded_count(k, h)), ws.take<T>(padded_count(k, h)), ws) {
    clear();
  }
  /// What is remembered lies with the caller.
  CausalState(Index k, Index h, Index w, T* means, T* tops, T* sums, Workspace& ws)
      : experts(k), heads(h), width(w), count(k * h), padded(padded_count(k, h)), mean(means), top(tops), sum(sums) {
    beta = ws.take<T>(padded);
    logits = ws.take<T>(padded);
    std::fill_n(logits, padded, T(0));
  }
  void clear() {
    std::fill_n(mean, count * width, T(0));
    std::fill_n(top, padded, std::numeric_limits<T>::lowest());
    std::fill_n(sum, padded, T(0));
  }
  /// beta of the next token. Sums are relative to a logit that is replaced when another is far above it.
  void weigh(const T* l) {
    std::copy_n(l, count, logits);
    for (Index j = 0; j < padded; j += W) {
      const B x = B::load_aligned(logits + j);
      B m = B::load_aligned(top + j), s = B::load_aligned(sum + j);
      const auto higher = x > m + B(T(20));
      if (xsimd::any(higher)) {
        const B next = xsimd::select(higher, x, m);
        s = s * simd::exp(m - next);
        m = next;
        m.store_aligned(top + j);
      }
      const B e = simd::exp(x - m);
      s = s + e;
      s.store_aligned(sum + j);
      // Where all before and this one underflow, the mean is this one: as good as any.
      xsimd::select(s == B(T(0)), B(T(1)), e / s).store_aligned(beta + j);
    }
  }
  /// Means move by `b`; seen `[experts, width]` = constant + their sums over the heads.
  RECOPS_INLINE void move(const T* b, const T* w, const T* constant, T* seen) {
    for (Index r = 0; r < experts; ++r) {
      T* const to = seen + r * width;
      for (Index h = 0; h < heads; ++h) {
        const T *from = w + h * width, *start = h == 0 ? constant : to;
        T* const a = mean + (r * heads + h) * width;
        const B rate(b[r * heads + h]);
        simd::for_each_vector<T, simd::DefaultArch>(width, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
          const B before = load(a + i), now = simd::mul_add(rate, load(from + i) - before, before);
          store(a + i, now);
          store(to + i, load(start + i) + now);
        });
      }
    }
  }
};

/// The second pass of one token over what it sees.
template <class T>
struct CausalRead {
  using A = simd::DefaultArch;
  static constexpr Index most = simd::attention_kernel::row_block;
  Index heads, head, experts, width, pitch;  // `head` columns of one; width = 2 E; `pitch` weights from head to head
  T scale;
  T *weights, *pooled, *chunk, *dweights;

  CausalRead(Index k, Index h, Index e, double c, Workspace& ws)
      : heads(h), head(e / h), experts(k), width(2 * e), pitch(k <= most ? most : simd::attention_kernel::padded_width<T, A>(k)) {
    scale = static_cast<T>(c != 0 ? c : 1 / std::sqrt(static_cast<double>(head)));
    weights = ws.take<T>(heads * pitch);
    pooled = ws.take<T>(simd::attention_kernel::padded_width<T, A>(head));
    chunk = ws.take<T>(heads * most);
    dweights = ws.take<T>(experts);
  }
  void weigh(const T* q, const T* seen) {
    using simd::attention_kernel::row_dots;
    if (experts <= most) {
      row_dots<T, A>(experts, seen, width, heads, q, head, head, weights);
    } else {
      for (Index first = 0, count; first < experts; first += count) {
        count = experts - first < most ? experts - first : most;
        row_dots<T, A>(count, seen + first * width, width, heads, q, head, head, chunk);
        for (Index a = 0; a < heads; ++a) std::copy_n(chunk + a * most, count, weights + a * pitch + first);
      }
    }
    for (Index a = 0; a < heads; ++a) {
      simd::scale<T>(scale, weights + a * pitch, weights + a * pitch, experts);
      simd::softmax<T>(weights + a * pitch, experts);
    }
  }
  void read(const T* seen, T* out) {
    for (Index a = 0; a < heads; ++a) {
      std::fill_n(pooled, simd::attention_kernel::padded_width<T, A>(head), T(0));
      simd::attention_kernel::weighted_sum<T, A>(experts, weights + a * pitch, seen + width / 2 + a * head, width, head, pooled);
      std::copy_n(pooled, head, out + a * head);
    }
  }
  /// dseen <- the gradient of what was seen; dq += that of the query, unless null.
  void backward(const T* q, const T* seen, const T* dout, T* dq, T* dseen) {
    std::fill_n(dseen, experts * width, T(0));
    for (Index a = 0; a < heads; ++a) {
      const T* const p = weights + a * pitch;
      T mean = T(0);
      for (Index r = 0; r < experts; ++r) {
        dweights[r] = simd::dot<T>(dout + a * head, seen + r * width + width / 2 + a * head, head);
        mean += p[r] * dweights[r];
      }
      for (Index r = 0; r < experts; ++r) {
        const T ds = scale * p[r] * (dweights[r] - mean);
        simd::axpy<T>(p[r], dout + a * head, dseen + r * width + width / 2 + a * head, head);
        simd::axpy<T>(ds, q + a * head, dseen + r * width + a * head, head);
        if (dq) simd::axpy<T>(ds, seen + r * width + a * head, dq + a * head, head);
      }
    }
  }
};

template <class T>
void check_causal_dispatch(const char* op, JaggedView<const T> queries, MatrixView<const T> logits, MatrixView<const T> mixed,
                           VectorView<const T> constant, const CausalDispatchOptions& o) {
  check_jagged(op, "queries", queries, any_size, any_size);
  const Index e = queries.cols(), total = queries.values().rows();
  check_option(op, "heads", o.heads >= 1 && e >= 1 && e % o.heads == 0, "a number that divides the columns of queries",
               static_cast<double>(o.heads));
  check_shape(op, "logits", logits, total, any_size);
  check_option(op, "logits", logits.cols() >= 1 && logits.cols() % o.heads == 0, "one column per expert and head",
               static_cast<double>(logits.cols()));
  check_shape(op, "mixed", mixed, total, 2 * o.heads * e);
  if (!constant.empty()) check_size(op, "constant", constant, 2 * e);
  check_option(op, "scale", o.scale - o.scale == 0, "a finite scale, or 0 for 1 / sqrt(columns of a head)", o.scale);
  if (!o.mask.empty()) check_size(op, "mask", o.mask, total);
}

/// Rows [first, last) of a sequence whose state is `state`.
template <class T>
void causal_rows(CausalState<T>& state, CausalRead<T>& reader, Index first, Index last, MatrixView<const T> queries,
                 MatrixView<const T> logits, MatrixView<const T> mixed, const T* constant, VectorView<const std::uint8_t> mask,
                 MatrixView<T> out, MatrixView<T> betas, T* seen) {
  for (Index t = first; t < last; ++t) {
    if (!mask.empty() && mask[t] == 0) {
      std::fill_n(out.row(t), out.cols(), T(0));
      if (!betas.empty()) std::fill_n(betas.row(t), betas.cols(), T(0));
      continue;
    }
    state.weigh(logits.row(t));
    state.move(state.beta, mixed.row(t), constant, seen);
    if (!betas.empty()) std::copy_n(state.beta, state.count, betas.row(t));
    reader.weigh(queries.row(t), seen);
    reader.read(seen, out.row(t));
  }
}

/// `constant`, or zeros where it is empty.
template <class T>
const T* or_zeros(VectorView<const T> constant, Index size, Workspace& ws) {
  if (!constant.empty()) return constant.data();
  T* const zeros = ws.take<T>(size);
  std::fill_n(zeros, size, T(0));
  return zeros;
}

}  // namespace detail

/// Writes out `[total, E]` and, unless empty, betas `[total, k H]`, which backward needs.
template <Real T>
void causal_dispatch(JaggedView<const T> queries, MatrixView<const T> logits, MatrixView<const T> mixed,
                     VectorView<const T> constant, const CausalDispatchOptions& o, MatrixView<T> out, MatrixView<T> betas,
                     Workspace& ws) {
  constexpr const char* name = "causal_dispatch";
  detail::check_causal_dispatch(name, queries, logits, mixed, constant, o);
  const Index e = queries.cols(), k = logits.cols() / o.heads;
  check_shape(name, "out", out, queries.values().rows(), e);
  if (!betas.empty()) check_shape(name, "betas", betas, queries.values().rows(), logits.cols());
  const auto mark = ws.mark();
  const T* const start = detail::or_zeros(constant, 2 * e, ws);
  ws.parallel_for(queries.size(), [&](Index b, Workspace& scratch) {
    const auto inner = scratch.mark();
    detail::CausalState<T> state(k, o.heads, 2 * e, scratch);
    detail::CausalRead<T> reader(k, o.heads, e, o.scale, scratch);
    T* const seen = scratch.take<T>(k * 2 * e);
    detail::causal_rows<T>(state, reader, queries.begin(b), queries.begin(b) + queries.length(b), queries.values(), logits, mixed,
                           start, o.mask, out, betas, seen);
  });
}

/// Adds to the gradients (each unless empty), given the betas that `causal_dispatch` wrote.
template <Real T>
void causal_dispatch_backward(JaggedView<const T> queries, MatrixView<const T> logits, MatrixView<const T> mixed,
                              VectorView<const T> constant, const CausalDispatchOptions& o, MatrixView<const T> betas,
                              MatrixView<const T> dout, MatrixView<T> dqueries, MatrixView<T> dlogits, MatrixView<T> dmixed,
                              VectorView<T> dconstant, Workspace& ws) {
  constexpr const char* name = "causal_dispatch_backward";
  detail::check_causal_dispatch(name, queries, logits, mixed, constant, o);
  const Index e = queries.cols(), k = logits.cols() / o.heads, total = queries.values().rows(), count = logits.cols(), f = 2 * e;
  check_shape(name, "betas", betas, total, count);
  check_shape(name, "dout", dout, total, e);
  if (!dqueries.empty()) check_shape(name, "dqueries", dqueries, total, e);
  if (!dlogits.empty()) check_shape(name, "dlogits", dlogits, total, count);
  if (!dmixed.empty()) check_shape(name, "dmixed", dmixed, total, mixed.cols());
  if (!dconstant.empty()) check_size(name, "dconstant", dconstant, f);
  const auto mark = ws.mark();
  const T* const start = detail::or_zeros(constant, f, ws);
  const MatrixView<T> constants = ws.matrix<T>(queries.size(), f);
  std::fill_n(constants.data(), constants.rows() * f, T(0));
  ws.parallel_for(queries.size(), [&](Index b, Workspace& scratch) {
    constexpr Index chunk = 16;
    const auto inner = scratch.mark();
    const Index first = queries.begin(b), length = queries.length(b), chunks = (length + chunk - 1) / chunk, size = count * f;
    const auto hidden = [&](Index t) { return !o.mask.empty() && o.mask[t] == 0; };
    detail::CausalState<T> state(k, o.heads, f, scratch);
    detail::CausalRead<T> reader(k, o.heads, e, o.scale, scratch);
    T* const seen = scratch.take<T>(chunk * k * f);
    T* const dseen = scratch.take<T>(k * f);
    T* const before = scratch.take<T>(chunks * size);  // the means that a chunk begins with
    T* const means = scratch.take<T>((chunk + 1) * size);
    T* const g = scratch.take<T>(size);  // of the means, and of the logarithms of the sums
    T* const dsum = scratch.take<T>(count);
    T* const dw = scratch.take<T>(o.heads * f);
    simd::ChainedSum<T> dconstants(constants.row(b), f, scratch);
    std::fill_n(g, size, T(0));
    std::fill_n(dsum, count, T(0));
    for (Index t = 0; t < length; ++t) {
      if (t % chunk == 0) std::copy_n(state.mean, size, before + t / chunk * size);
      if (!hidden(first + t)) state.move(betas.row(first + t), mixed.row(first + t), start, seen);
    }
    for (Index c = chunks; c-- > 0;) {
      const Index from = first + c * chunk, to = std::min(first + length, from + chunk);
      std::copy_n(before + c * size, size, state.mean);
      for (Index t = from; t < to; ++t) {
        std::copy_n(state.mean, size, means + (t - from) * size);
        if (!hidden(t)) state.move(betas.row(t), mixed.row(t), start, seen + (t - from) * k * f);
      }
      for (Index t = to; t-- > from;) {
        if (hidden(t)) continue;
        const T *q = queries.values().row(t), *sight = seen + (t - from) * k * f, *mean = means + (t - from) * size,
                *w = mixed.row(t), *beta = betas.row(t);
        reader.weigh(q, sight);
        reader.backward(q, sight, dout.row(t), dqueries.empty() ? nullptr : dqueries.row(t), dseen);
        std::fill_n(dw, o.heads * f, T(0));
        for (Index r = 0; r < k; ++r) {
          simd::add<T>(dseen + r * f, dconstants.next(), f);
          for (Index h = 0; h < o.heads; ++h) {
            const Index at = r * o.heads + h;
            T* const gr = g + at * f;
            const T *dr = dseen + r * f, *a = mean + at * f, *wh = w + h * f;
            T* const dwh = dw + h * f;
            using B = simd::Batch<T, simd::DefaultArch>;
            const B rate(beta[at]), keep(T(1) - beta[at]);
            B dot(T(0));
            simd::for_each_vector<T, simd::DefaultArch>(f, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
              const B x = load(gr + i) + load(dr + i);
              dot = simd::mul_add(x, load(wh + i) - load(a + i), dot);
              store(dwh + i, simd::mul_add(rate, x, load(dwh + i)));
              store(gr + i, keep * x);
            });
            // beta = e^(l - log sum) and log sum = log(e^l + e^(log sum before))
            const T dl = beta[at] * ((T(1) - beta[at]) * simd::sum_lanes(dot) + dsum[at]);
            if (!dlogits.empty()) dlogits(t, at) += dl;
            dsum[at] -= dl;
          }
        }
        if (!dmixed.empty()) simd::add<T>(dw, dmixed.row(t), o.heads * f);
      }
    }
    dconstants.finish();
  });
  if (dconstant.empty()) return;
  simd::ChainedSum<T> sum(dconstant.data(), f, ws);
  for (Index b = 0; b < queries.size(); ++b) simd::add<T>(constants.row(b), sum.next(), f);
  sum.finish();
}

}  // namespace RECOPS_ABI
}  // namespace recops
