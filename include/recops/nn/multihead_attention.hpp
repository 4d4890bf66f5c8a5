/// @file   recops/nn/multihead_attention.hpp
/// @brief  Multi-head attention with its projections: candidates over a history, or a sequence over itself.
///
///     q = x Wq^T + bq    k = z Wk^T + bk    v = z Wv^T + bv    y = concat_a( softmax(q_a k_a^T / sqrt(d)) v_a ) Wo^T + bo
///
/// Shapes      queries [total_N, E]   keys [total_L, Dk]   values [total_L, Dv]   y [total_N, E]   E = heads * d
/// Edge cases  a query that sees no key gets bo.   NaN stays with the queries that see it; a masked key or value may hold NaN.
/// Precision   the two forms below agree to rounding.   Same bits for any number of threads.
/// Cost        4 N E^2 for queries and output.  Projected: 2 L (Dk + Dv) E for keys and values, 4 N L E for attention.  Absorbed: the
///             projections of keys and values move to the queries, q_a k_a^T = (q_a Wk_a) z^T, which is cheaper for few candidates:
///             2 N (Dk + Dv) E and 2 N L H (Dk + Dv).  Inference takes the form with fewer flops.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Vaswani et al., arXiv 1706.03762; names and initialisation as torch.nn.MultiheadAttention.
#pragma once
#include <array>
#include <recops/nn/linear.hpp>
#include <recops/nn/scaled_dot_product_attention.hpp>

namespace recops {

/// Which side pays for the projections of keys and values.
enum class AttentionForm : unsigned char {
  cheapest,   ///< the one with fewer flops for the batch
  projected,  ///< project keys and values once for all queries of a user
  absorbed    ///< project the queries into the space of raw keys, and the pooled raw values out of it
};

inline namespace RECOPS_ABI {

namespace detail {

template <class T>
struct AttentionWeights {  // of queries, keys, values: [E, D] each, [E] or empty
  MatrixView<T> weight[3];
  VectorView<T> bias[3];
};

/// The three projections of a layer, or of its gradient, however it holds them.
template <class T, class L>
AttentionWeights<T> attention_weights(L& layer) {
  AttentionWeights<T> w;
  if (!layer.in_proj_weight.empty()) {
    const MatrixView<T> all = layer.in_proj_weight;
    const Index e = all.rows() / 3;
    for (int i = 0; i < 3; ++i) w.weight[i] = all.middle_rows(i * e, e);
  } else {
    w.weight[0] = layer.q_proj_weight;
    w.weight[1] = layer.k_proj_weight;
    w.weight[2] = layer.v_proj_weight;
  }
  const VectorView<T> bias = layer.in_proj_bias;
  for (int i = 0; i < 3 && !bias.empty(); ++i) w.bias[i] = bias.segment(i * (bias.size() / 3), bias.size() / 3);
  return w;
}

/// Keys and values are the same numbers: one product projects both.
template <class T>
bool same_rows(JaggedView<const T> keys, JaggedView<const T> values) {
  return keys.values().data() == values.values().data() && keys.values().stride() == values.values().stride();
}

/// sum_b N_b L_b
template <class T>
double query_key_pairs(JaggedView<const T> queries, JaggedView<const T> keys) {
  double pairs = 0;
  for (Index b = 0; b < queries.size(); ++b)
    pairs += static_cast<double>(queries.length(b)) * static_cast<double>(keys.length(b));
  return pairs;
}

/// The form to take. Absorbing makes rows of heads, which a causal rule or a window would count wrongly.
template <class T>
AttentionForm choose_form(AttentionForm form, JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                          Index embed, const AttentionOptions& o) {
  const bool ordered = o.causal || o.window > 0;
  if (form == AttentionForm::absorbed && ordered) [[unlikely]]
    fail("MultiheadAttention", "form", "projected, where causal or window is set", "absorbed");
  if (form != AttentionForm::cheapest) return form;
  const double both = static_cast<double>(keys.cols() + values.cols()), e = static_cast<double>(embed),
               pairs = query_key_pairs(queries, keys), n = static_cast<double>(queries.values().rows()),
               l = static_cast<double>(keys.values().rows());
  const double projected = l * both * e + 2 * pairs * e, absorbed = n * both * e + pairs * static_cast<double>(o.heads) * both;
  return absorbed < projected && !ordered ? AttentionForm::absorbed : AttentionForm::projected;
}

/// The part between the input and output projections in the absorbed form. `to_keys(a, q_a, out)` multiplies by Wk_a,
/// `from_values(a, pooled, out)` by Wv_a^T and adds bv_a. A bias of the keys shifts all scores of a row alike and drops out of the softmax.
template <class T, class ToKeys, class FromValues>
void absorbed_attention(JaggedView<const T> queries, MatrixView<const T> q, JaggedView<const T> keys, JaggedView<const T> values,
                        AttentionOptions options, MatrixView<T> attended, Workspace& ws, ToKeys&& to_keys,
                        FromValues&& from_values) {
  const auto mark = ws.mark();
  const Index n = q.rows(), heads = options.heads, d = q.cols() / heads, dk = keys.cols(), dv = values.cols();
  // Heads become rows: each (query, head) is a query of its own over the raw keys, which all heads share.
  const MatrixView<T> wide = ws.matrix<T>(n * heads, dk), pooled = ws.matrix<T>(n * heads, dv), lse = ws.matrix<T>(n * heads, 1);
  auto* offsets = ws.take<std::int64_t>(queries.size() + 1);
  for (Index b = 0; b <= queries.size(); ++b) offsets[b] = heads * (b == queries.size() ? n : queries.begin(b));
  for (Index a = 0; a < heads; ++a) to_keys(a, q.middle_cols(a * d, d), MatrixView<T>(wide.data() + a * dk, n, dk, heads * dk));
  options.scale = options.scale != 0 ? options.scale : 1 / std::sqrt(static_cast<double>(d));
  options.heads = 1;
  scaled_dot_product_attention<T>(JaggedView<const T>(wide, IndexView(offsets, queries.size() + 1)), keys, values, {}, options,
                                  pooled, lse, ws);
  for (Index a = 0; a < heads; ++a) {
    from_values(a, MatrixView<const T>(pooled.data() + a * dv, n, dv, heads * dv), attended.middle_cols(a * d, d));
    for (Index i = 0; i < n; ++i)  // nothing seen, nothing pooled: not even the bias
      if (lse(i * heads + a, 0) == -std::numeric_limits<T>::infinity()) std::fill_n(attended.row(i) + a * d, d, T(0));
  }
}

inline void check_heads(const char* op, Index heads, Index embed) {
  check_option(op, "heads", heads >= 1 && embed >= 1 && embed % heads == 0, "a number that divides embed",
               static_cast<double>(heads));
}

template <class T, class Y>
void check_multihead(const char* op, Index embed, Index key_width, Index value_width, JaggedView<const T> queries,
                     JaggedView<const T> keys, JaggedView<const T> values, const AttentionOptions& options, const char* output,
                     MatrixView<Y> y) {
  check_heads(op, options.heads, embed);
  check_jagged(op, "queries", queries, any_size, embed);
  check_jagged(op, "keys", keys, queries.size(), key_width);
  check_jagged(op, "values", values, queries.size(), value_width);
  check_shape(op, "values", values.values(), keys.values().rows(), any_size);
  for (Index b = 0; b < keys.size(); ++b)
    if (keys.length(b) != values.length(b)) [[unlikely]]
      fail_at(op, "values", "as many rows as keys in each sequence, ", keys.length(b), b, values.length(b));
  if (!options.key_mask.empty()) check_size(op, "key_mask", options.key_mask, keys.values().rows());
  check_shape(op, output, y, queries.values().rows(), embed);
}

}  // namespace detail

/// Attention with learned projections, as `torch.nn.MultiheadAttention` (batch first, no bias_k and bias_v).
template <class T>
struct MultiheadAttention {
  Matrix<T> in_proj_weight;  ///< [3E, E]: queries, keys, values; empty where keys or values have another width than E
  Matrix<T> q_proj_weight, k_proj_weight, v_proj_weight;  ///< [E, E], [E, Dk], [E, Dv] instead of it
  Vector<T> in_proj_bias;                                 ///< [3E], empty for none
  Linear<T> out_proj;                                     ///< [E, E]
  Index heads = 1;                                        ///< divides E
  bool causal = false;                                    ///< query i of a sequence sees its keys j <= i
  Index window = 0;                                       ///< w > 0: query i sees keys j with i - j < w

  MultiheadAttention() = default;
  /// Keys and values `key_width` and `value_width` wide (0: as the queries). Throws `Error` unless `head_count` divides `embed`.
  MultiheadAttention(Index embed, Index head_count, Random& random, bool bias = true, Index key_width = 0, Index value_width = 0)
      : in_proj_bias((detail::check_heads("MultiheadAttention", head_count, checked_size("MultiheadAttention", "embed", embed)),
                      bias ? 3 * embed : 0),
                     T(0)),
        out_proj(embed, embed, random, bias),
        heads(head_count) {
    const Index dk = checked_size("MultiheadAttention", "key_width", key_width) > 0 ? key_width : embed;
    const Index dv = checked_size("MultiheadAttention", "value_width", value_width) > 0 ? value_width : embed;
    const auto xavier = [&](Matrix<T>& w, Index rows, Index cols) {
      w.resize(rows, cols);
      const double bound = std::sqrt(6.0 / static_cast<double>(rows + cols));
      for (T& x : leaf_values(w)) x = static_cast<T>(random.uniform(-bound, bound));
    };
    if (dk == embed && dv == embed) {
      xavier(in_proj_weight, 3 * embed, embed);
    } else {
      xavier(q_proj_weight, embed, embed);
      xavier(k_proj_weight, embed, dk);
      xavier(v_proj_weight, embed, dv);
    }
    out_proj.bias.fill(T(0));
  }

  static constexpr auto fields() {
    return std::tuple{parameter("in_proj_weight", &MultiheadAttention::in_proj_weight),
                      parameter("q_proj_weight", &MultiheadAttention::q_proj_weight),
                      parameter("k_proj_weight", &MultiheadAttention::k_proj_weight),
                      parameter("v_proj_weight", &MultiheadAttention::v_proj_weight),
                      parameter("in_proj_bias", &MultiheadAttention::in_proj_bias),
                      layer("out_proj", &MultiheadAttention::out_proj)};
  }

  /// E
  Index embed() const { return out_proj.weight.rows(); }
  Index key_width() const { return in_proj_weight.empty() ? k_proj_weight.cols() : in_proj_weight.cols(); }
  Index value_width() const { return in_proj_weight.empty() ? v_proj_weight.cols() : in_proj_weight.cols(); }
  /// E; throws `Error` unless the input, attending to itself, has E columns.
  Index output_cols(Index input_cols) const {
    check_option("MultiheadAttention", "input columns",
                 input_cols == embed() && key_width() == embed() && value_width() == embed(), "as many as the embedding width",
                 static_cast<double>(input_cols));
    return embed();
  }

  /// Throws `Error` unless the parameters, which may have been loaded, fit each other and `heads`.
  void check_parameters(const char* op) const {
    const Index e = embed();
    detail::check_heads(op, heads, e);
    check_option(op, "window", window >= 0, "window >= 0, where 0 is none", static_cast<double>(window));
    if (!in_proj_weight.empty()) {
      check_shape(op, "in_proj_weight", in_proj_weight.view(), 3 * e, e);
    } else {
      check_shape(op, "q_proj_weight", q_proj_weight.view(), e, e);
      check_shape(op, "k_proj_weight", k_proj_weight.view(), e, any_size);
      check_shape(op, "v_proj_weight", v_proj_weight.view(), e, any_size);
    }
    if (!in_proj_bias.empty()) check_size(op, "in_proj_bias", VectorView<const T>(in_proj_bias), 3 * e);
    check_shape(op, "out_proj.weight", out_proj.weight.view(), e, e);
    if (!out_proj.bias.empty()) check_size(op, "out_proj.bias", VectorView<const T>(out_proj.bias), e);
  }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> q, kv;        ///< [total_N, E], [total_L, 2E]; of self-attention none, [total, 3E]
    Matrix<T> attended;     ///< [total_N, E], before the output projection
    Matrix<T> log_sum_exp;  ///< [total_N, H]
  };

  /// Queries over keys and values; `key_mask [total_L]` hides keys where 0, empty: all are seen.
  void forward(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
               VectorView<const std::uint8_t> key_mask, MatrixView<T> y, Workspace& ws,
               AttentionForm form = AttentionForm::cheapest) const {
    const AttentionOptions o = check("MultiheadAttention", queries, keys, values, key_mask, "y", y);
    form = detail::choose_form(form, queries, keys, values, embed(), o);
    const auto mark = ws.mark();
    const auto w = detail::attention_weights<const T>(*this);
    const Index e = embed(), n = queries.values().rows(), d = e / o.heads;
    const MatrixView<T> q = ws.matrix<T>(n, e), attended = ws.matrix<T>(n, e);
    linear<T>(queries.values(), w.weight[0], w.bias[0], q, ws);
    if (form == AttentionForm::absorbed) {
      detail::absorbed_attention<T>(
          queries, q, keys, values, o, attended, ws,
          [&](Index a, MatrixView<const T> qa, MatrixView<T> out) {
            simd::gemm<T>(simd::plain(qa), simd::plain(w.weight[1].middle_rows(a * d, d)), {}, out, ws);
          },
          [&](Index a, MatrixView<const T> pooled, MatrixView<T> out) {
            const T* bias = w.bias[2].empty() ? nullptr : w.bias[2].data() + a * d;
            simd::gemm<T>(simd::plain(pooled), simd::transposed(w.weight[2].middle_rows(a * d, d)), {.bias = bias}, out, ws);
          });
    } else {
      const MatrixView<T> kv = ws.matrix<T>(keys.values().rows(), 2 * e);
      project(keys, values, kv, ws);
      scaled_dot_product_attention<T>(queries.with_values(MatrixView<const T>(q)), part(keys, kv, 0), part(keys, kv, 1), {}, o,
                                      attended, {}, ws);
    }
    out_proj.forward(attended, y, ws);
  }
  /// Training: always the projected form.
  void forward(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
               VectorView<const std::uint8_t> key_mask, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    const AttentionOptions o = check("MultiheadAttention", queries, keys, values, key_mask, "y", y);
    const auto w = detail::attention_weights<const T>(*this);
    const Index e = embed(), n = queries.values().rows();
    const bool joint = one_input(queries, keys, values, key_mask);
    saved.q.resize(joint ? 0 : n, e);
    saved.kv.resize(keys.values().rows(), joint ? 3 * e : 2 * e);
    saved.attended.resize(n, e);
    saved.log_sum_exp.resize(n, o.heads);
    if (joint) {
      linear<T>(queries.values(), in_proj_weight, in_proj_bias, saved.kv, ws);
    } else {
      linear<T>(queries.values(), w.weight[0], w.bias[0], saved.q, ws);
      project(keys, values, saved.kv, ws);
    }
    const auto [q, k, v] = projected<const T>(saved.q.view(), saved.kv.view(), joint);
    scaled_dot_product_attention<T>(queries.with_values(q), keys.with_values(k), values.with_values(v), {}, o, saved.attended,
                                    saved.log_sum_exp, ws);
    out_proj.forward(saved.attended, y, ws);
  }
  /// What `backward` checks, for layers that write before they call it. Returns the options of the attention.
  AttentionOptions check_backward(const char* name, JaggedView<const T> queries, JaggedView<const T> keys,
                                  JaggedView<const T> values, VectorView<const std::uint8_t> key_mask, MatrixView<const T> dy,
                                  const Saved& saved, MatrixView<T> dqueries, MatrixView<T> dkeys, MatrixView<T> dvalues,
                                  const MultiheadAttention& gradient) const {
    const AttentionOptions o = check(name, queries, keys, values, key_mask, "dy", dy);
    const Index e = embed(), n = queries.values().rows(), l = keys.values().rows();
    const bool joint = one_input(queries, keys, values, key_mask);
    check_shape(name, "saved", saved.q.view(), joint ? 0 : n, e);
    check_shape(name, "saved", saved.kv.view(), l, joint ? 3 * e : 2 * e);
    check_shape(name, "saved", saved.attended.view(), n, e);
    check_shape(name, "saved", saved.log_sum_exp.view(), n, o.heads);
    if (!dqueries.empty()) check_shape(name, "dqueries", dqueries, n, e);
    if (!dkeys.empty()) check_shape(name, "dkeys", dkeys, l, key_width());
    if (!dvalues.empty()) check_shape(name, "dvalues", dvalues, l, value_width());
    check_gradient_shapes(name, *this, gradient);
    return o;
  }
  /// Adds to dqueries, dkeys, dvalues (each unless empty; they may be the same view where the inputs are) and to `gradient`.
  void backward(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                VectorView<const std::uint8_t> key_mask, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dqueries,
                MatrixView<T> dkeys, MatrixView<T> dvalues, MultiheadAttention& gradient, Workspace& ws) const {
    const char* const name = "MultiheadAttention::backward";
    const AttentionOptions o =
        check_backward(name, queries, keys, values, key_mask, dy, saved, dqueries, dkeys, dvalues, gradient);
    const Index e = embed(), n = queries.values().rows(), l = keys.values().rows();
    const bool joint = one_input(queries, keys, values, key_mask);
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows, Index cols) {
      const MatrixView<T> m = ws.matrix<T>(rows, cols);
      std::fill_n(m.data(), rows * cols, T(0));
      return m;
    };
    const MatrixView<T> dattended = ws.matrix<T>(n, e), dkv = zeros(l, joint ? 3 * e : 2 * e);
    const auto [dq, dk, dv] = projected<T>(joint ? MatrixView<T>() : zeros(n, e), dkv, joint);
    const auto [q, k, v] = projected<const T>(saved.q.view(), saved.kv.view(), joint);
    detail::linear_backward<T>(saved.attended, out_proj.weight, dy, dattended, true, gradient.out_proj.weight,
                               gradient.out_proj.bias, ws);
    scaled_dot_product_attention_backward<T>(queries.with_values(q), keys.with_values(k), values.with_values(v), {}, o,
                                             saved.attended, saved.log_sum_exp, dattended, {}, dq, dk, dv, {}, ws);
    if (joint && dqueries.data() == dkeys.data() && dkeys.data() == dvalues.data()) {
      linear_backward<T>(queries.values(), in_proj_weight, dkv, dqueries, gradient.in_proj_weight, gradient.in_proj_bias, ws);
      return;
    }
    const auto w = detail::attention_weights<const T>(*this);
    const auto g = detail::attention_weights<T>(gradient);
    linear_backward<T>(queries.values(), w.weight[0], dq, dqueries, g.weight[0], g.bias[0], ws);
    // A hidden row may hold anything; its gradient is 0, but 0 times NaN is not, so the products see zeros there.
    const auto seen = [&](MatrixView<const T> x) {
      if (key_mask.empty()) return x;
      const MatrixView<T> copy = ws.matrix<T>(x.rows(), x.cols());
      for (Index i = 0; i < x.rows(); ++i)
        key_mask[i] != 0 ? std::copy_n(x.row(i), x.cols(), copy.row(i)) : std::fill_n(copy.row(i), x.cols(), T(0));
      return MatrixView<const T>(copy);
    };
    linear_backward<T>(seen(keys.values()), w.weight[1], dk, dkeys, g.weight[1], g.bias[1], ws);
    linear_backward<T>(seen(values.values()), w.weight[2], dv, dvalues, g.weight[2], g.bias[2], ws);
  }

  /// Candidates over a history: keys = values = history.
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Workspace& ws) const {
    forward(candidates, history, history, {}, y, ws);
  }
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Saved& saved, const Step& step,
               Workspace& ws) const {
    forward(candidates, history, history, {}, y, saved, step, ws);
  }
  void backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> dy, const Saved& saved,
                MatrixView<T> dcandidates, MatrixView<T> dhistory, MultiheadAttention& gradient, Workspace& ws) const {
    backward(candidates, history, history, {}, dy, saved, dcandidates, dhistory, dhistory, gradient, ws);
  }

  /// Self-attention: a sequence layer.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, x, x, {}, y, ws); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    forward(x, x, x, {}, y, saved, step, ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, MultiheadAttention& gradient,
                Workspace& ws) const {
    backward(x, x, x, {}, dy, saved, dx, dx, dx, gradient, ws);
  }

 private:
  template <class Y>
  AttentionOptions check(const char* op, JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                         VectorView<const std::uint8_t> key_mask, const char* output, MatrixView<Y> y) const {
    check_parameters(op);
    const AttentionOptions o{.heads = heads, .causal = causal, .window = window, .key_mask = key_mask};
    detail::check_multihead<T>(op, embed(), key_width(), value_width(), queries, keys, values, o, output, y);
    return o;
  }
  /// kv `[total_L, 2E]` <- projected keys and values, in one product where both read the same rows.
  void project(JaggedView<const T> keys, JaggedView<const T> values, MatrixView<T> kv, Workspace& ws) const {
    const Index e = embed();
    if (!in_proj_weight.empty() && detail::same_rows(keys, values)) {
      const VectorView<const T> bias = in_proj_bias;
      linear<T>(keys.values(), in_proj_weight.view().middle_rows(e, 2 * e), bias.empty() ? bias : bias.segment(e, 2 * e), kv, ws);
      return;
    }
    const auto w = detail::attention_weights<const T>(*this);
    linear<T>(keys.values(), w.weight[1], w.bias[1], kv.middle_cols(0, e), ws);
    linear<T>(values.values(), w.weight[2], w.bias[2], kv.middle_cols(e, e), ws);
  }
  /// Queries, keys and values are the same rows and none is hidden: one product projects them, and one takes their gradients back.
  bool one_input(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
                 VectorView<const std::uint8_t> key_mask) const {
    return !in_proj_weight.empty() && key_mask.empty() && queries.values().rows() == keys.values().rows() &&
           detail::same_rows(queries, keys) && detail::same_rows(keys, values);
  }
  /// Projected queries, keys and values, as `Saved` holds them.
  template <class U>
  std::array<MatrixView<U>, 3> projected(MatrixView<U> q, MatrixView<U> kv, bool joint) const {
    const Index e = embed(), at = joint ? e : 0;
    return {joint ? kv.middle_cols(0, e) : q, kv.middle_cols(at, e), kv.middle_cols(at + e, e)};
  }
  JaggedView<const T> part(JaggedView<const T> keys, MatrixView<const T> kv, int which) const {
    return keys.with_values(kv.middle_cols(which * embed(), embed()));
  }
};

/// Serving form: projections packed, both ways of paying for them at hand. Immutable; threads may share it.
template <class T, class S = T>
class FrozenMultiheadAttention {
 public:
  FrozenMultiheadAttention() = default;
  explicit FrozenMultiheadAttention(const MultiheadAttention<T>& layer)
      : options_{.heads = layer.heads, .causal = layer.causal, .window = layer.window},
        embed_(layer.embed()),
        key_width_(layer.key_width()),
        value_width_(layer.value_width()) {
    layer.check_parameters("freeze(MultiheadAttention)");
    const auto [weight, bias] = detail::attention_weights<const T>(layer);
    const Index e = embed_, d = e / options_.heads;
    query_ = FrozenDense<T, S>(weight[0], bias[0], Activation::none);
    key_ = FrozenDense<T, S>(weight[1], bias[1], Activation::none);
    value_ = FrozenDense<T, S>(weight[2], bias[2], Activation::none);
    if (!layer.in_proj_weight.empty()) {
      const VectorView<const T> all = layer.in_proj_bias;
      both_ = FrozenDense<T, S>(layer.in_proj_weight.view().middle_rows(e, 2 * e), all.empty() ? all : all.segment(e, 2 * e),
                                Activation::none);
    }
    Matrix<T> transposed(key_width_, d);
    for (Index a = 0; a < options_.heads; ++a) {
      for (Index i = 0; i < d; ++i)
        for (Index j = 0; j < key_width_; ++j) transposed(j, i) = weight[1](a * d + i, j);
      to_keys_.emplace_back(std::as_const(transposed).view(), VectorView<const T>(), Activation::none);
      from_values_.emplace_back(weight[2].middle_rows(a * d, d), bias[2].empty() ? bias[2] : bias[2].segment(a * d, d),
                                Activation::none);
    }
    out_ = freeze(layer.out_proj, Weights<S>());
  }

  /// As `MultiheadAttention::forward`.
  void forward(JaggedView<const T> queries, JaggedView<const T> keys, JaggedView<const T> values,
               VectorView<const std::uint8_t> key_mask, MatrixView<T> y, Workspace& ws,
               AttentionForm form = AttentionForm::cheapest) const {
    AttentionOptions o = options_;
    o.key_mask = key_mask;
    detail::check_multihead<T>("FrozenMultiheadAttention", embed_, key_width_, value_width_, queries, keys, values, o, "y", y);
    form = detail::choose_form(form, queries, keys, values, embed_, o);
    const auto mark = ws.mark();
    const Index n = queries.values().rows(), l = keys.values().rows(), e = embed_;
    const MatrixView<T> q = ws.matrix<T>(n, e), attended = ws.matrix<T>(n, e);
    query_.forward(queries.values(), q, ws);
    if (form == AttentionForm::absorbed) {
      detail::absorbed_attention<T>(
          queries, q, keys, values, o, attended, ws,
          [&](Index a, MatrixView<const T> qa, MatrixView<T> out) { to_keys_[static_cast<std::size_t>(a)].forward(qa, out, ws); },
          [&](Index a, MatrixView<const T> pooled, MatrixView<T> out) {
            from_values_[static_cast<std::size_t>(a)].forward(pooled, out, ws);
          });
    } else {
      const MatrixView<T> kv = ws.matrix<T>(l, 2 * e);
      const MatrixView<const T> done = kv;
      if (both_.input_cols() > 0 && detail::same_rows(keys, values)) {
        both_.forward(keys.values(), kv, ws);
      } else {
        key_.forward(keys.values(), kv.middle_cols(0, e), ws);
        value_.forward(values.values(), kv.middle_cols(e, e), ws);
      }
      scaled_dot_product_attention<T>(queries.with_values(MatrixView<const T>(q)), keys.with_values(done.middle_cols(0, e)),
                                      keys.with_values(done.middle_cols(e, e)), {}, o, attended, {}, ws);
    }
    out_.forward(attended, y, ws);
  }
  /// Candidates over a history.
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Workspace& ws) const {
    forward(candidates, history, history, {}, y, ws);
  }
  /// Self-attention.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, x, x, {}, y, ws); }
  /// E; throws `Error` unless the input, attending to itself, has E columns.
  Index output_cols(Index input_cols) const {
    check_option("FrozenMultiheadAttention", "input columns",
                 input_cols == embed_ && key_width_ == embed_ && value_width_ == embed_, "as many as the embedding width",
                 static_cast<double>(input_cols));
    return embed_;
  }

 private:
  AttentionOptions options_;
  Index embed_ = 0, key_width_ = 0, value_width_ = 0;
  FrozenDense<T, S> query_, key_, value_, both_, out_;
  std::vector<FrozenDense<T, S>> to_keys_, from_values_;  // per head: Wk_a as [Dk, d], Wv_a as [d, Dv]
};

/// The serving form of a layer. Throws `Error` if its parameters do not fit each other.
template <class T, class S = T>
FrozenMultiheadAttention<T, S> freeze(const MultiheadAttention<T>& layer, Weights<S> = {}) {
  return FrozenMultiheadAttention<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
