/// @file   recops/attention/dispatcher_layer.hpp
/// @brief  Dispatcher attention with its projections, as a layer: tokens and experts in, tokens and the next experts out.
///
///     y, next = dispatcher attention of tokens x and experts        attention/dispatcher_attention.hpp
///
/// The next experts are the aggregated ones: a stack of layers hands them from one to the next, so that the second layer's experts begin
/// with what the first one's have read. The first gets learned ones (`repeat_experts`) or those of an interest memory.
/// With `causal` token t sees what experts read up to t (attention/causal_dispatch.hpp); these differ from token to token, so there is no
/// next state: each layer of a causal stack has experts of its own.
///
/// Shapes      x, y [total, D] jagged; experts, next [B k, D]; mask [total] or empty.
/// Edge cases  as in attention/dispatcher_attention.hpp.
/// Errors      `Error` if shapes or options disagree; outputs untouched.
#pragma once
#include <recops/attention/causal_dispatch.hpp>
#include <recops/attention/dispatcher_attention.hpp>
#include <recops/attention/joined_rows.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// The same k experts `[k, D]` for each of `batch` sequences: out `[batch k, D]`.
template <class T>
void repeat_experts(MatrixView<const T> experts, Index batch, MatrixView<T> out) {
  check_shape("repeat_experts", "out", out, batch * experts.rows(), experts.cols());
  detail::repeat_rows<T>(experts, {}, out);
}
/// Adds to dexperts `[k, D]`, which must have rows if dout has.
template <class T>
void repeat_experts_backward(MatrixView<const T> dout, MatrixView<T> dexperts, Workspace& ws) {
  if (dout.empty()) return;
  check_shape("repeat_experts_backward", "dout", dout, any_size, dexperts.cols());
  check_option("repeat_experts_backward", "dout", dexperts.rows() >= 1 && dout.rows() % dexperts.rows() == 0,
               "as many rows as dexperts for each sequence", static_cast<double>(dout.rows()));
  detail::repeat_rows_backward<T>(dout, dexperts.rows(), dexperts, {}, ws);
}

namespace detail {

/// Folding is the cheaper one.
template <class T>
bool folds(DispatcherForm form, JaggedView<const T> x, Index experts, Index heads, Index width) {
  if (form != DispatcherForm::cheapest) return form == DispatcherForm::folded;
  if (x.size() == 0) return true;
  const double k = static_cast<double>(experts) / static_cast<double>(x.size()), d = static_cast<double>(width),
               l = static_cast<double>(x.values().rows()) / static_cast<double>(x.size());
  return l * k * static_cast<double>(heads - 1) + k * d < l * d;
}

/// Keys of the folded second pass, its heads as segments: folded [H n, D], out [H n, E], bias [H n] or null, for n rows of experts.
template <class T>
simd::FewKeysOperands<T> folded_operands(MatrixView<const T> folded, MatrixView<const T> out, const T* key_bias, const T* bias,
                                         Index batch, Index heads, Index b) {
  const Index n = folded.rows() / heads, k = n / batch;
  return {.k = folded.row(b * k),
          .v = out.row(b * k),
          .segments = heads,
          .keys = k,
          .depth = folded.cols(),
          .width = out.cols(),
          .k_stride = folded.stride(),
          .k_segment = n * folded.stride(),
          .v_stride = out.stride(),
          .v_segment = n * out.stride(),
          .scale = static_cast<T>(1 / std::sqrt(static_cast<double>(out.cols() / heads))),
          .key_bias = key_bias ? key_bias + b * k : nullptr,
          .bias_stride = 1,
          .bias_segment = n,
          .bias = bias};
}

/// The second pass with its projections, which `project` makes.
template <class T, class P>
void dispatch_tokens(const P& project, JaggedView<const T> x, MatrixView<const T> experts, Index heads, bool folded,
                     VectorView<const std::uint8_t> mask, MatrixView<T> y, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = experts.rows(), e = experts.cols(), d = e / heads, total = x.values().rows();
  const MatrixView<T> keys = ws.matrix<T>(n, e), values = ws.matrix<T>(n, e);
  project.keys(experts, keys, ws);
  project.values(experts, values, ws);
  if (!folded) {
    const MatrixView<T> q = ws.matrix<T>(total, e), attended = ws.matrix<T>(total, e);
    project.queries(x.values(), q, ws);
    dispatch_from_experts<T>(x.with_values(MatrixView<const T>(q)), keys, values, {.heads = heads, .mask = mask}, attended, ws);
    project.out(attended, y, ws);
    for (Index i = 0; !mask.empty() && i < total; ++i)
      if (mask[i] == 0) std::fill_n(y.row(i), e, T(0));
    return;
  }
  const MatrixView<T> wide = ws.matrix<T>(heads * n, e), out = ws.matrix<T>(heads * n, e);
  const VectorView<const T> bias = project.query_bias();
  T* const key_bias = bias.empty() ? nullptr : ws.take<T>(heads * n);
  for (Index a = 0; a < heads; ++a) {
    project.fold_queries(a, MatrixView<const T>(keys).middle_cols(a * d, d), wide.middle_rows(a * n, n), ws);
    project.fold_out(a, MatrixView<const T>(values).middle_cols(a * d, d), out.middle_rows(a * n, n), ws);
    const T c = static_cast<T>(1 / std::sqrt(static_cast<double>(d)));
    for (Index i = 0; key_bias && i < n; ++i) key_bias[a * n + i] = c * simd::dot<T>(keys.row(i) + a * d, bias.data() + a * d, d);
  }
  const VectorView<const T> out_bias = project.out_bias();
  dispatch_rows<T>(x, 1, mask, y, ws, [&](Index b, Index) {
    return folded_operands<T>(wide, out, key_bias, out_bias.empty() ? nullptr : out_bias.data(), x.size(), heads, b);
  });
}

/// Projections of the second pass as the layer has them.
template <class T>
struct DispatchProjections {
  AttentionWeights<const T> w;
  const Linear<T>& last;
  explicit DispatchProjections(const MultiheadAttention<T>& m) : w(attention_weights<const T>(m)), last(m.out_proj) {}
  void queries(MatrixView<const T> x, MatrixView<T> q, Workspace& ws) const { linear<T>(x, w.weight[0], w.bias[0], q, ws); }
  void keys(MatrixView<const T> p, MatrixView<T> k, Workspace& ws) const { linear<T>(p, w.weight[1], w.bias[1], k, ws); }
  void values(MatrixView<const T> p, MatrixView<T> v, Workspace& ws) const { linear<T>(p, w.weight[2], w.bias[2], v, ws); }
  void out(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { last.forward(x, y, ws); }
  void fold_queries(Index a, MatrixView<const T> k, MatrixView<T> to, Workspace& ws) const {
    simd::gemm<T>(simd::plain(k), simd::plain(w.weight[0].middle_rows(a * k.cols(), k.cols())), {}, to, ws);
  }
  void fold_out(Index a, MatrixView<const T> v, MatrixView<T> to, Workspace& ws) const {
    simd::gemm<T>(simd::plain(v), simd::transposed(last.weight.view().middle_cols(a * v.cols(), v.cols())), {}, to, ws);
  }
  VectorView<const T> query_bias() const { return w.bias[0]; }
  VectorView<const T> out_bias() const { return last.bias; }
};

template <class Y, class T>
void check_dispatcher(const char* op, Index width, Index heads, JaggedView<const T> x, MatrixView<const T> experts,
                      VectorView<const std::uint8_t> mask, const char* output, MatrixView<Y> y) {
  check_jagged(op, "x", x, any_size, width);
  check_shape(op, "experts", experts, any_size, width);
  check_experts(op, "experts", x.size(), experts.rows());
  check_heads(op, heads, width);
  if (!mask.empty()) check_size(op, "mask", mask, x.values().rows());
  check_shape(op, output, y, x.values().rows(), width);
}

/// Rows that a mask shows, zeros for the others; x itself without a mask.
template <class T>
MatrixView<const T> shown_rows(MatrixView<const T> x, VectorView<const std::uint8_t> mask, Workspace& ws) {
  if (mask.empty()) return x;
  const MatrixView<T> copy = ws.matrix<T>(x.rows(), x.cols());
  for (Index i = 0; i < x.rows(); ++i)
    mask[i] != 0 ? std::copy_n(x.row(i), x.cols(), copy.row(i)) : std::fill_n(copy.row(i), x.cols(), T(0));
  return copy;
}

}  // namespace detail

/// Dispatcher attention with learned projections.
template <class T>
struct DispatcherAttention {
  MultiheadAttention<T> aggregate, dispatch;  ///< experts over tokens, tokens over experts
  bool causal = false;                        ///< token t sees what experts read up to t
  DispatcherForm form = DispatcherForm::cheapest;

  DispatcherAttention() = default;
  /// Throws `Error` unless `heads` divides `width`.
  DispatcherAttention(Index width, Index heads, Random& random, bool bias = true)
      : aggregate(checked_size("DispatcherAttention", "width", width), heads, random, bias),
        dispatch(width, heads, random, bias) {}

  static constexpr auto fields() {
    return std::tuple{layer("aggregate", &DispatcherAttention::aggregate), layer("dispatch", &DispatcherAttention::dispatch)};
  }
  /// D
  Index width() const { return dispatch.embed(); }
  Index heads() const { return dispatch.heads; }
  /// Throws `Error` unless the two passes fit each other.
  void check_parameters(const char* op) const {
    aggregate.check_parameters(op);
    dispatch.check_parameters(op);
    const bool same = aggregate.embed() == dispatch.embed() && aggregate.heads == dispatch.heads &&
                      !aggregate.in_proj_weight.empty() && !dispatch.in_proj_weight.empty();
    check_option(op, "dispatch", same, "the width and heads of aggregate", static_cast<double>(dispatch.embed()));
  }

  /// The causal form's product of projections: a token x adds mixing_a x `[2 D]` through head a of the first pass to keys and values of the
  /// second; mixing `[H 2 D, D]`, constant `[2 D]` what biases add. Both are resized.
  void mixing(Matrix<T>& m, Vector<T>& constant) const {
    Workspace ws;
    Causal c;
    mix_parameters(c, ws);
    m.resize(c.mixing.rows(), c.mixing.cols());
    for (Index i = 0; i < m.rows(); ++i) std::copy_n(c.mixing.row(i), m.cols(), m.row(i));
    constant.resize(c.constant.size());
    std::copy(c.constant.begin(), c.constant.end(), constant.begin());
  }

  /// What backward needs, reused step after step.
  struct Saved {
    bool folded = false;
    typename MultiheadAttention<T>::Saved aggregate;   ///< unfolded
    Matrix<T> q, wide, pooled, log_sum_exp, attended;  ///< folded: [n, D], [n H, D] twice, [n H, 1], [n, D] for n experts
    Matrix<T> next, keys, values;                      ///< [n, D]: aggregated experts and their projections
    Matrix<T> token_q, token_attended;                 ///< unfolded and causal: [total, D]
    Matrix<T> betas;                                   ///< causal: [total, k H]
  };

  /// y `[total, D]` and, unless empty, the next experts `[B k, D]` (empty where `causal`).
  void forward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<T> y,
               MatrixView<T> next, Workspace& ws) const {
    constexpr const char* name = "DispatcherAttention";
    check(name, x, experts, mask, "y", y, next);
    if (x.size() == 0) return;
    const auto mark = ws.mark();
    if (causal) {
      const Causal c = causal_inputs(x, experts, mask, {}, {}, ws);
      const MatrixView<T> attended = ws.matrix<T>(y.rows(), y.cols());
      run_causal(c, x, mask, attended, {}, y, ws);
      return;
    }
    const bool folded = detail::folds(form, x, experts.rows(), heads(), width());
    const MatrixView<T> p = next.empty() ? ws.matrix<T>(experts.rows(), width()) : next;
    const IndexView offsets = detail::even_offsets(x.size(), experts.rows() / x.size(), ws);
    aggregate.forward(JaggedView<const T>(experts, offsets), x, x, mask, p, ws,
                      folded ? AttentionForm::absorbed : AttentionForm::projected);
    detail::dispatch_tokens<T>(detail::DispatchProjections<T>(dispatch), x, p, heads(), folded, mask, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<T> y,
               MatrixView<T> next, Saved& saved, const Step& step, Workspace& ws) const {
    constexpr const char* name = "DispatcherAttention";
    check(name, x, experts, mask, "y", y, next);
    if (x.size() == 0) return;
    const Index n = experts.rows(), e = width(), total = x.values().rows();
    const auto mark = ws.mark();
    if (causal) {
      saved.q.resize(n, e);
      saved.wide.resize(n * heads(), e);
      saved.token_q.resize(total, e);
      saved.token_attended.resize(total, e);
      saved.betas.resize(total, n / x.size() * heads());
      const Causal c = causal_inputs(x, experts, mask, saved.q, saved.wide, ws, saved.token_q);
      run_causal(c, x, mask, saved.token_attended, saved.betas, y, ws);
      return;
    }
    saved.folded = detail::folds(form, x, n, heads(), e);
    for (Matrix<T>* m : {&saved.next, &saved.keys, &saved.values}) m->resize(n, e);
    const IndexView offsets = detail::even_offsets(x.size(), n / x.size(), ws);
    const detail::DispatchProjections<T> project(dispatch);
    if (saved.folded) {
      aggregate_folded(x, experts, mask, saved, ws);
    } else {
      aggregate.forward(JaggedView<const T>(experts, offsets), x, x, mask, saved.next, saved.aggregate, step, ws);
    }
    project.keys(saved.next, saved.keys, ws);
    project.values(saved.next, saved.values, ws);
    if (saved.folded) {
      detail::dispatch_tokens<T>(project, x, saved.next, heads(), true, mask, y, ws);
    } else {
      saved.token_q.resize(total, e);
      saved.token_attended.resize(total, e);
      project.queries(x.values(), saved.token_q, ws);
      dispatch_from_experts<T>(x.with_values(saved.token_q.view()), saved.keys, saved.values, {.heads = heads(), .mask = mask},
                               saved.token_attended, ws);
      project.out(saved.token_attended, y, ws);
      hide(mask, y);
    }
    for (Index i = 0; i < next.rows(); ++i) std::copy_n(saved.next.row(i), e, next.row(i));
  }
  /// Adds to dx and dexperts (each unless empty) and to `gradient`; `dnext` is empty where nothing depends on the next experts.
  void backward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<const T> dy,
                MatrixView<const T> dnext, const Saved& saved, MatrixView<T> dx, MatrixView<T> dexperts,
                DispatcherAttention& gradient, Workspace& ws) const {
    constexpr const char* name = "DispatcherAttention::backward";
    check(name, x, experts, mask, "dy", dy, dnext);
    const Index n = experts.rows(), e = width(), total = x.values().rows(), d = e / heads();
    if (!dx.empty()) check_shape(name, "dx", dx, total, e);
    if (!dexperts.empty()) check_shape(name, "dexperts", dexperts, n, e);
    check_gradient_shapes(name, *this, gradient);
    if (x.size() == 0) return;
    const auto mark = ws.mark();
    if (causal) return causal_backward(x, experts, mask, dy, saved, dx, dexperts, gradient, ws);
    for (const Matrix<T>* m : {&saved.next, &saved.keys, &saved.values}) check_shape(name, "saved", m->view(), n, e);
    const detail::DispatchProjections<T> project(dispatch);
    const auto w = detail::attention_weights<const T>(dispatch);
    const auto g = detail::attention_weights<T>(gradient.dispatch);
    const MatrixView<T> dkeys = zeros(n, e, ws), dvalues = zeros(n, e, ws), dp = zeros(n, e, ws);
    if (!dnext.empty())
      for (Index i = 0; i < n; ++i) simd::add<T>(dnext.row(i), dp.row(i), e);
    if (saved.folded) {
      const auto inner = ws.mark();
      const MatrixView<T> wide = ws.matrix<T>(heads() * n, e), out = ws.matrix<T>(heads() * n, e),
                          dwide = zeros(heads() * n, e, ws), dout = zeros(heads() * n, e, ws);
      const T c = static_cast<T>(1 / std::sqrt(static_cast<double>(d)));
      const VectorView<const T> bias = w.bias[0];
      T* const key_bias = bias.empty() ? nullptr : ws.take<T>(heads() * n);
      T* const dkey_bias = ws.take<T>(heads() * n);
      std::fill_n(dkey_bias, heads() * n, T(0));
      const auto part = [&](const auto& m, Index a) { return m.view().middle_cols(a * d, d); };
      for (Index a = 0; a < heads(); ++a) {
        project.fold_queries(a, part(saved.keys, a), wide.middle_rows(a * n, n), ws);
        project.fold_out(a, part(saved.values, a), out.middle_rows(a * n, n), ws);
        for (Index i = 0; key_bias && i < n; ++i)
          key_bias[a * n + i] = c * simd::dot<T>(saved.keys.row(i) + a * d, bias.data() + a * d, d);
      }
      const Index k = n / x.size(), run = simd::few_keys::padded<T, simd::DefaultArch>(k);
      detail::dispatch_rows_backward<T>(
          x, 1, mask, dy, dx, key_bias != nullptr, ws,
          [&](Index b, Index) { return detail::folded_operands<T>(wide, out, key_bias, nullptr, x.size(), heads(), b); },
          [&](Index b, Index, MatrixView<const T> gk, MatrixView<const T> gv, const T* gb) {
            for (Index a = 0; a < heads(); ++a) {
              for (Index j = 0; j < k; ++j) {
                const Index to = a * n + b * k + j, from = a * run + j;
                simd::axpy<T>(c, gk.row(from), dwide.row(to), e);
                simd::add<T>(gv.row(from), dout.row(to), e);
                if (key_bias) dkey_bias[to] += gb[from];
              }
            }
          });
      add_rows(dy, mask, gradient.dispatch.out_proj.bias, ws);
      for (Index a = 0; a < heads(); ++a) {
        const MatrixView<const T> ga = dwide.middle_rows(a * n, n), ua = dout.middle_rows(a * n, n);
        const MatrixView<T> dk = dkeys.middle_cols(a * d, d), dv = dvalues.middle_cols(a * d, d);
        simd::gemm<T>(simd::plain(ua), simd::plain(dispatch.out_proj.weight.view().middle_cols(a * d, d)), {}, dv, ws);
        simd::gemm<T>(simd::plain(ga), simd::transposed(w.weight[0].middle_rows(a * d, d)), {}, dk, ws);
        if (!gradient.dispatch.out_proj.weight.empty())
          simd::gemm<T>(simd::transposed(ua), simd::plain(part(saved.values, a)), {.accumulate = true},
                        gradient.dispatch.out_proj.weight.view().middle_cols(a * d, d), ws);
        if (!g.weight[0].empty())
          simd::gemm<T>(simd::transposed(part(saved.keys, a)), simd::plain(ga), {.accumulate = true},
                        g.weight[0].middle_rows(a * d, d), ws);
        for (Index i = 0; key_bias && i < n; ++i) {
          simd::axpy<T>(c * dkey_bias[a * n + i], bias.data() + a * d, dk.row(i), d);
          if (!g.bias[0].empty()) simd::axpy<T>(c * dkey_bias[a * n + i], saved.keys.row(i) + a * d, g.bias[0].data() + a * d, d);
        }
      }
    } else {
      const auto inner = ws.mark();
      const MatrixView<const T> shown = detail::shown_rows(dy, mask, ws);
      const MatrixView<T> dattended = ws.matrix<T>(total, e), dq = zeros(total, e, ws);
      check_shape(name, "saved", saved.token_attended.view(), total, e);
      detail::linear_backward<T>(saved.token_attended, dispatch.out_proj.weight, shown, dattended, true,
                                 gradient.dispatch.out_proj.weight, gradient.dispatch.out_proj.bias, ws);
      dispatch_from_experts_backward<T>(x.with_values(saved.token_q.view()), saved.keys, saved.values,
                                        {.heads = heads(), .mask = mask}, dattended, dq, dkeys, dvalues, ws);
      linear_backward<T>(detail::shown_rows(x.values(), mask, ws), w.weight[0], dq, dx, g.weight[0], g.bias[0], ws);
    }
    linear_backward<T>(saved.next, w.weight[1], dkeys, dp, g.weight[1], g.bias[1], ws);
    linear_backward<T>(saved.next, w.weight[2], dvalues, dp, g.weight[2], g.bias[2], ws);
    const IndexView offsets = detail::even_offsets(x.size(), n / x.size(), ws);
    if (saved.folded) {
      aggregate_folded_backward(x, experts, mask, dp, saved, dx, dexperts, gradient.aggregate, ws);
    } else {
      aggregate.backward(JaggedView<const T>(experts, offsets), x, x, mask, dp, saved.aggregate, dexperts, dx, dx,
                         gradient.aggregate, ws);
    }
  }

 private:
  static MatrixView<T> zeros(Index rows, Index cols, Workspace& ws) {
    const MatrixView<T> m = ws.matrix<T>(rows, cols);
    std::fill_n(m.data(), rows * cols, T(0));
    return m;
  }
  static void hide(VectorView<const std::uint8_t> mask, MatrixView<T> y) {
    for (Index i = 0; !mask.empty() && i < y.rows(); ++i)
      if (mask[i] == 0) std::fill_n(y.row(i), y.cols(), T(0));
  }
  template <class Y, class Z>
  void check(const char* op, JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask,
             const char* output, MatrixView<Y> y, MatrixView<Z> next) const {
    check_parameters(op);
    detail::check_dispatcher(op, width(), heads(), x, experts, mask, output, y);
    if (next.empty()) return;
    check_option(op, "next experts", !causal, "none where causal: they have read the whole sequence",
                 static_cast<double>(next.rows()));
    check_shape(op, "next experts", next, experts.rows(), width());
  }
  /// sum += the rows of dy that are shown
  static void add_rows(MatrixView<const T> dy, VectorView<const std::uint8_t> mask, VectorView<T> sum, Workspace& ws) {
    if (sum.empty()) return;
    const auto mark = ws.mark();
    simd::ChainedSum<T> all(sum.data(), sum.size(), ws);
    for (Index i = 0; i < dy.rows(); ++i)
      if (mask.empty() || mask[i] != 0) simd::add<T>(dy.row(i), all.next(), sum.size());
    all.finish();
  }

  /// Rows of head a among rows of experts and heads, `[n, D]` of `[n H, D]`.
  template <class U>
  MatrixView<U> of_head(MatrixView<U> all, Index a) const {
    return MatrixView<U>(all.data() + a * all.cols(), all.rows() / heads(), all.cols(), heads() * all.cols());
  }
  /// q and q_a Wk_a of the experts
  void widen(MatrixView<const T> experts, MatrixView<T> q, MatrixView<T> wide, Workspace& ws) const {
    const auto w = detail::attention_weights<const T>(aggregate);
    const Index d = width() / heads();
    linear<T>(experts, w.weight[0], w.bias[0], q, ws);
    for (Index a = 0; a < heads(); ++a)
      simd::gemm<T>(simd::plain(MatrixView<const T>(q).middle_cols(a * d, d)), simd::plain(w.weight[1].middle_rows(a * d, d)), {},
                    of_head(wide, a), ws);
  }
  void widen_backward(MatrixView<const T> experts, MatrixView<const T> q, MatrixView<const T> dwide, MatrixView<T> dexperts,
                      MultiheadAttention<T>& gradient, Workspace& ws) const {
    const auto w = detail::attention_weights<const T>(aggregate);
    const auto g = detail::attention_weights<T>(gradient);
    const Index d = width() / heads(), n = experts.rows();
    const MatrixView<T> dq = ws.matrix<T>(n, width());
    for (Index a = 0; a < heads(); ++a) {
      const MatrixView<const T> da = of_head(dwide, a);
      simd::gemm<T>(simd::plain(da), simd::transposed(w.weight[1].middle_rows(a * d, d)), {}, dq.middle_cols(a * d, d), ws);
      if (!g.weight[1].empty())
        simd::gemm<T>(simd::transposed(q.middle_cols(a * d, d)), simd::plain(da), {.accumulate = true},
                      g.weight[1].middle_rows(a * d, d), ws);
    }
    linear_backward<T>(experts, w.weight[0], dq, dexperts, g.weight[0], g.bias[0], ws);
  }

  AttentionOptions wide_options(VectorView<const std::uint8_t> mask) const {
    return {.scale = 1 / std::sqrt(static_cast<double>(width() / heads())), .key_mask = mask};
  }
  void aggregate_folded(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, Saved& saved,
                        Workspace& ws) const {
    const Index n = experts.rows(), e = width(), d = e / heads();
    const auto w = detail::attention_weights<const T>(aggregate);
    saved.q.resize(n, e);
    saved.wide.resize(n * heads(), e);
    saved.pooled.resize(n * heads(), e);
    saved.log_sum_exp.resize(n * heads(), 1);
    saved.attended.resize(n, e);
    widen(experts, saved.q, saved.wide, ws);
    const IndexView offsets = detail::even_offsets(x.size(), n / x.size() * heads(), ws);
    scaled_dot_product_attention<T>(JaggedView<const T>(saved.wide.view(), offsets), x, x, {}, wide_options(mask), saved.pooled,
                                    saved.log_sum_exp, ws);
    for (Index a = 0; a < heads(); ++a) {
      const T* const bias = w.bias[2].empty() ? nullptr : w.bias[2].data() + a * d;
      simd::gemm<T>(simd::plain(MatrixView<const T>(of_head(saved.pooled.view(), a))),
                    simd::transposed(w.weight[2].middle_rows(a * d, d)), {.bias = bias},
                    saved.attended.view().middle_cols(a * d, d), ws);
    }
    blank(saved.log_sum_exp, saved.attended);
    aggregate.out_proj.forward(saved.attended, saved.next, ws);
  }
  /// Nothing seen, nothing pooled: not even the bias of the values.
  void blank(const Matrix<T>& log_sum_exp, MatrixView<T> attended) const {
    const Index d = width() / heads();
    for (Index i = 0; i < attended.rows(); ++i)
      for (Index a = 0; a < heads(); ++a)
        if (log_sum_exp(i * heads() + a, 0) == -std::numeric_limits<T>::infinity()) std::fill_n(attended.row(i) + a * d, d, T(0));
  }
  void aggregate_folded_backward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask,
                                 MatrixView<const T> dp, const Saved& saved, MatrixView<T> dx, MatrixView<T> dexperts,
                                 MultiheadAttention<T>& gradient, Workspace& ws) const {
    const Index n = experts.rows(), e = width(), d = e / heads();
    const auto w = detail::attention_weights<const T>(aggregate);
    const auto g = detail::attention_weights<T>(gradient);
    const MatrixView<T> dattended = ws.matrix<T>(n, e), dpooled = ws.matrix<T>(n * heads(), e), dwide = zeros(n * heads(), e, ws);
    detail::linear_backward<T>(saved.attended, aggregate.out_proj.weight, dp, dattended, true, gradient.out_proj.weight,
                               gradient.out_proj.bias, ws);
    blank(saved.log_sum_exp, dattended);
    for (Index a = 0; a < heads(); ++a) {
      const MatrixView<const T> da = MatrixView<const T>(dattended).middle_cols(a * d, d),
                                pooled = of_head(saved.pooled.view(), a);
      simd::gemm<T>(simd::plain(da), simd::plain(w.weight[2].middle_rows(a * d, d)), {}, of_head(dpooled, a), ws);
      if (!g.weight[2].empty())
        simd::gemm<T>(simd::transposed(da), simd::plain(pooled), {.accumulate = true}, g.weight[2].middle_rows(a * d, d), ws);
    }
    add_rows(dattended, {}, g.bias[2], ws);
    const IndexView offsets = detail::even_offsets(x.size(), n / x.size() * heads(), ws);
    scaled_dot_product_attention_backward<T>(JaggedView<const T>(saved.wide.view(), offsets), x, x, {}, wide_options(mask),
                                             saved.pooled, saved.log_sum_exp, dpooled, {}, dwide, dx, dx, {}, ws);
    widen_backward(experts, saved.q, dwide, dexperts, gradient, ws);
  }

  /// What the causal recurrence reads.
  struct Causal {
    MatrixView<T> q, wide;            // of the experts
    MatrixView<T> logits, mixed;      // [total, k H], [total, H 2 D]
    MatrixView<T> token_q;            // [total, D]
    MatrixView<T> values;             // [H D, D]: head by head, values of the first pass through its output projection
    MatrixView<T> mixing;             // [H 2 D, D]: the same through keys and values of the second
    VectorView<T> through, constant;  // [D], [2 D]: what biases add
  };
  Causal causal_inputs(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t>, MatrixView<T> q,
                       MatrixView<T> wide, Workspace& ws, MatrixView<T> token_q = {}) const {
    const Index n = experts.rows(), e = width(), d = e / heads(), total = x.values().rows(), k = n / x.size();
    Causal c;
    c.q = q.empty() ? ws.matrix<T>(n, e) : q;
    c.wide = wide.empty() ? ws.matrix<T>(n * heads(), e) : wide;
    widen(experts, c.q, c.wide, ws);
    mix(c, x, ws);
    c.token_q = token_q.empty() ? ws.matrix<T>(total, e) : token_q;
    const auto w2 = detail::attention_weights<const T>(dispatch);
    linear<T>(x.values(), w2.weight[0], w2.bias[0], c.token_q, ws);
    c.logits = ws.matrix<T>(total, k * heads());
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(d)));
    for (Index b = 0; b < x.size(); ++b) {
      const MatrixView<T> l = c.logits.middle_rows(x.begin(b), x.length(b));
      simd::gemm<T>(simd::plain(x.values().middle_rows(x.begin(b), x.length(b))),
                    simd::transposed(MatrixView<const T>(c.wide).middle_rows(b * k * heads(), k * heads())), {}, l, ws);
      for (Index i = 0; i < l.rows(); ++i) simd::scale<T>(scale, l.row(i), l.row(i), l.cols());
    }
    return c;
  }
  /// The mixing matrices and constants, and the tokens mixed.
  void mix(Causal& c, JaggedView<const T> x, Workspace& ws) const {
    mix_parameters(c, ws);
    c.mixed = ws.matrix<T>(x.values().rows(), heads() * 2 * width());
    simd::gemm<T>(simd::plain(x.values()), simd::transposed(MatrixView<const T>(c.mixing)), {}, c.mixed, ws);
  }
  void mix_parameters(Causal& c, Workspace& ws) const {
    const Index e = width(), d = e / heads();
    const auto w1 = detail::attention_weights<const T>(aggregate);
    const MatrixView<const T> both = dispatch.in_proj_weight.view().middle_rows(e, 2 * e), out = aggregate.out_proj.weight;
    c.values = ws.matrix<T>(heads() * e, e);
    c.mixing = ws.matrix<T>(heads() * 2 * e, e);
    for (Index a = 0; a < heads(); ++a) {
      const MatrixView<T> through = c.values.middle_rows(a * e, e);
      simd::gemm<T>(simd::plain(out.middle_cols(a * d, d)), simd::plain(w1.weight[2].middle_rows(a * d, d)), {}, through, ws);
      simd::gemm<T>(simd::plain(both), simd::plain(MatrixView<const T>(through)), {}, c.mixing.middle_rows(a * 2 * e, 2 * e), ws);
    }
    c.through = ws.vector<T>(e);
    c.constant = ws.vector<T>(2 * e);
    const VectorView<const T> bias1 = aggregate.out_proj.bias, bias2 = dispatch.in_proj_bias;
    for (Index i = 0; i < e; ++i)
      c.through[i] =
          (bias1.empty() ? T(0) : bias1[i]) + (w1.bias[2].empty() ? T(0) : simd::dot<T>(out.row(i), w1.bias[2].data(), e));
    for (Index i = 0; i < 2 * e; ++i)
      c.constant[i] = (bias2.empty() ? T(0) : bias2[e + i]) + simd::dot<T>(both.row(i), c.through.data(), e);
  }
  void run_causal(const Causal& c, JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> attended,
                  MatrixView<T> betas, MatrixView<T> y, Workspace& ws) const {
    causal_dispatch<T>(x.with_values(MatrixView<const T>(c.token_q)), c.logits, c.mixed, c.constant,
                       {.heads = heads(), .mask = mask}, attended, betas, ws);
    dispatch.out_proj.forward(attended, y, ws);
    hide(mask, y);
  }
  void causal_backward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask,
                       MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, MatrixView<T> dexperts,
                       DispatcherAttention& gradient, Workspace& ws) const {
    const char* const name = "DispatcherAttention::backward";
    const Index n = experts.rows(), e = width(), d = e / heads(), total = x.values().rows(), k = n / x.size(), h = heads();
    check_shape(name, "saved", saved.betas.view(), total, k * h);
    check_shape(name, "saved", saved.token_q.view(), total, e);
    check_shape(name, "saved", saved.wide.view(), n * h, e);
    Causal c;
    const MatrixView<const T> shown = detail::shown_rows(x.values(), mask, ws), dshown = detail::shown_rows(dy, mask, ws);
    const JaggedView<const T> tokens = x.with_values(shown);
    mix(c, tokens, ws);
    const MatrixView<T> dattended = ws.matrix<T>(total, e), dq = zeros(total, e, ws), dlogits = zeros(total, k * h, ws),
                        dmixed = zeros(total, h * 2 * e, ws), dwide = zeros(n * h, e, ws), dmixing = zeros(h * 2 * e, e, ws);
    const VectorView<T> dconstant = ws.vector<T>(2 * e), dthrough = ws.vector<T>(e);
    std::fill(dconstant.begin(), dconstant.end(), T(0));
    detail::linear_backward<T>(saved.token_attended, dispatch.out_proj.weight, dshown, dattended, true,
                               gradient.dispatch.out_proj.weight, gradient.dispatch.out_proj.bias, ws);
    // The logits themselves are not needed again, only their shape.
    causal_dispatch_backward<T>(x.with_values(saved.token_q.view()), saved.betas, c.mixed, c.constant, {.heads = h, .mask = mask},
                                saved.betas, dattended, dq, dlogits, dmixed, dconstant, ws);
    const auto w1 = detail::attention_weights<const T>(aggregate), w2 = detail::attention_weights<const T>(dispatch);
    const auto g1 = detail::attention_weights<T>(gradient.aggregate), g2 = detail::attention_weights<T>(gradient.dispatch);
    linear_backward<T>(shown, w2.weight[0], dq, dx, g2.weight[0], g2.bias[0], ws);
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(d)));
    for (Index i = 0; i < total; ++i) simd::scale<T>(scale, dlogits.row(i), dlogits.row(i), k * h);
    for (Index b = 0; b < x.size(); ++b) {
      const MatrixView<const T> l = MatrixView<const T>(dlogits).middle_rows(x.begin(b), x.length(b));
      if (!dx.empty())
        simd::gemm<T>(simd::plain(l), simd::plain(saved.wide.view().middle_rows(b * k * h, k * h)), {.accumulate = true},
                      dx.middle_rows(x.begin(b), x.length(b)), ws);
      simd::gemm<T>(simd::transposed(l), simd::plain(shown.middle_rows(x.begin(b), x.length(b))), {},
                    dwide.middle_rows(b * k * h, k * h), ws);
    }
    widen_backward(experts, saved.q, dwide, dexperts, gradient.aggregate, ws);
    if (!dx.empty())
      simd::gemm<T>(simd::plain(MatrixView<const T>(dmixed)), simd::plain(MatrixView<const T>(c.mixing)), {.accumulate = true},
                    dx, ws);
    simd::gemm<T>(simd::transposed(MatrixView<const T>(dmixed)), simd::plain(shown), {}, dmixing, ws);
    // Back through the products of parameters.
    const MatrixView<const T> both = dispatch.in_proj_weight.view().middle_rows(e, 2 * e), out = aggregate.out_proj.weight;
    const MatrixView<T> gboth = gradient.dispatch.in_proj_weight.empty()
                                    ? MatrixView<T>()
                                    : gradient.dispatch.in_proj_weight.view().middle_rows(e, 2 * e);
    const MatrixView<T> gout = gradient.aggregate.out_proj.weight, dvalues = ws.matrix<T>(e, e);
    for (Index a = 0; a < h; ++a) {
      const MatrixView<const T> dm = MatrixView<const T>(dmixing).middle_rows(a * 2 * e, 2 * e),
                                through = MatrixView<const T>(c.values).middle_rows(a * e, e);
      simd::gemm<T>(simd::transposed(both), simd::plain(dm), {}, dvalues, ws);
      if (!gboth.empty()) simd::gemm<T>(simd::plain(dm), simd::transposed(through), {.accumulate = true}, gboth, ws);
      if (!gout.empty())
        simd::gemm<T>(simd::plain(MatrixView<const T>(dvalues)), simd::transposed(w1.weight[2].middle_rows(a * d, d)),
                      {.accumulate = true}, gout.middle_cols(a * d, d), ws);
      if (!g1.weight[2].empty())
        simd::gemm<T>(simd::transposed(out.middle_cols(a * d, d)), simd::plain(MatrixView<const T>(dvalues)),
                      {.accumulate = true}, g1.weight[2].middle_rows(a * d, d), ws);
    }
    std::fill(dthrough.begin(), dthrough.end(), T(0));
    for (Index i = 0; i < 2 * e; ++i) {
      if (!gboth.empty()) simd::axpy<T>(dconstant[i], c.through.data(), gboth.row(i), e);
      if (!gradient.dispatch.in_proj_bias.empty()) gradient.dispatch.in_proj_bias[e + i] += dconstant[i];
      simd::axpy<T>(dconstant[i], both.row(i), dthrough.data(), e);
    }
    for (Index i = 0; i < e; ++i) {
      if (!gradient.aggregate.out_proj.bias.empty()) gradient.aggregate.out_proj.bias[i] += dthrough[i];
      if (w1.bias[2].empty()) continue;
      if (!gout.empty()) simd::axpy<T>(dthrough[i], w1.bias[2].data(), gout.row(i), e);
      if (!g1.bias[2].empty()) simd::axpy<T>(dthrough[i], out.row(i), g1.bias[2].data(), e);
    }
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
