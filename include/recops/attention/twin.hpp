/// @file   recops/attention/twin.hpp
/// @brief  TWIN: one attention in two stages over a life-long history. The search that keeps k of L behaviours scores with the very
///         function, and the very parameters, of the attention over those k.
///
///     alpha_a[n, l] = (h_l Wk_a^T) . (q_n Wq_a^T) / sqrt(dk) + sum_j beta_aj (x_lj . w_aj) + prior_l          a = 1 .. H
///     I_n     = the k behaviours that the heads choose in lock-step by alpha                                (twin_search.hpp)
///     head_a  = softmax over I_n of alpha_a [h, x] Wv_a^T            y_n = concat(head_1 .. head_H) Wo^T
///
/// h_l: inherent features of the behaviour's item (id, author, topic), the same for all users, whose projections h Wk^T are cached
/// by item (projected_key_cache.hpp). x_l: J cross features of width e of this user with it; a candidate has none. prior: ln n_c for
/// a cluster of n_c behaviours (twin_v2.hpp), -infinity hides.
///
/// Shapes      candidates [total_N, D]   inherent [total_L, D]   cross [total_L, J e]   prior [total_L] or empty   y [total_N, E]
/// Edge cases  A user without visible behaviours: zeros. Fewer than k: all of them, which is full target attention.
/// NaN         A hidden behaviour may hold anything. Else a NaN stays with the candidates (or behaviours, in gradients) that see it.
/// Precision   float and double. The same bits for any number of threads, and with or without a cache or copies of keys.
/// Cost        Keys: 2 L D H dk flops, nothing from a cache; scores 2 N L H dk; attention 2 N k H (dk + D + J e): values are pooled raw
///             and projected once a candidate.
/// Gradients   Flow through what was selected; selection itself has none. The search has no parameters of its own: it learns
///             through the attention.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Chang et al., TWIN, arXiv 2302.02352, sections 3.3, 3.4, 4.3.
#pragma once
#include <recops/attention/cross_feature_bias.hpp>
#include <recops/attention/twin_attention.hpp>

namespace recops {

/// The behaviours of a batch of users.
template <class T>
struct TwinHistory {
  JaggedView<const T> inherent;    ///< [total_L, D]
  MatrixView<const T> cross = {};  ///< [total_L, J e]; empty where the layer has no cross features
  VectorView<const T> prior = {};  ///< [total_L] added to the scores of all heads; empty: nothing
};
/// Where backward adds; empty: not wanted. Only rows of selected behaviours are touched.
template <class T>
struct TwinHistoryGradient {
  MatrixView<T> inherent = {};
  MatrixView<T> cross = {};
  VectorView<T> prior = {};
};

/// Sizes of a TWIN layer.
struct TwinConfig {
  Index width = 0;           ///< D, of inherent features and candidates
  Index cross_features = 0;  ///< J
  Index cross_width = 0;     ///< e
  Index heads = 4;           ///< H
  Index key_width = 16;      ///< dk, of a head
  Index value_width = 16;    ///< dv, of a head
  Index output_width = 0;    ///< E; 0: D
  Index selected = 100;      ///< k
};

inline namespace RECOPS_ABI {
namespace detail {

/// bias [total_L, H] = cross features' + prior, or empty where there is neither.
template <class T, class Cross>
MatrixView<T> twin_bias(const TwinHistory<T>& history, Index heads, Workspace& ws, MatrixView<T> bias, const Cross& cross) {
  const bool has_cross = history.cross.cols() > 0;
  if (!has_cross && history.prior.empty()) return {};
  if (has_cross) {
    cross(history.cross, bias, ws);
  } else {
    for (Index l = 0; l < bias.rows(); ++l) std::fill_n(bias.row(l), heads, T(0));
  }
  for (Index l = 0; l < history.prior.size(); ++l)
    for (Index a = 0; a < heads; ++a) {
      const T p = history.prior[l];
      bias(l, a) = p == -std::numeric_limits<T>::infinity() ? p : bias(l, a) + p;
    }
  return bias;
}

template <class T>
[[gnu::noinline]] void check_twin(const char* op, JaggedView<const T> candidates, const TwinHistory<T>& history, Index width,
                                  Index cross) {
  check_jagged(op, "candidates", candidates, any_size, width);
  check_jagged(op, "inherent", history.inherent, candidates.size(), width);
  const Index total = history.inherent.values().rows();
  if (cross > 0 || !history.cross.empty()) check_shape(op, "cross", history.cross, total, cross);
  if (!history.prior.empty()) check_size(op, "prior", history.prior, total);
}

}  // namespace detail

/// TWIN with its parameters. `freeze` makes the serving form.
template <class T>
struct Twin {
  Linear<T> q_proj, k_proj;  ///< weight [H dk, D], no bias (a key bias shifts all scores alike)
  Linear<T> v_proj;          ///< weight [H dv, D + J e], no bias
  Linear<T> out_proj;        ///< weight [E, H dv], no bias
  Matrix<T> cross_weight;    ///< [H, J e], w
  Matrix<T> cross_scale;     ///< [H, J], beta
  Index heads = 1;
  Index selected = 100;  ///< k

  Twin() = default;
  /// Weights uniform as in `torch.nn.Linear`; beta 1. Throws `Error` for sizes that make no layer.
  Twin(const TwinConfig& c, Random& random) : heads(c.heads), selected(c.selected) {
    const char* op = "Twin";
    check_option(op, "heads", c.heads >= 1, "heads >= 1", static_cast<double>(c.heads));
    check_option(op, "width", c.width >= 1, "width >= 1", static_cast<double>(c.width));
    check_option(op, "key_width", c.key_width >= 1, "key_width >= 1", static_cast<double>(c.key_width));
    check_option(op, "value_width", c.value_width >= 1, "value_width >= 1", static_cast<double>(c.value_width));
    check_option(op, "cross_features", c.cross_features >= 0, "cross_features >= 0", static_cast<double>(c.cross_features));
    check_option(op, "cross_width", c.cross_width >= (c.cross_features > 0 ? 1 : 0), "at least 1 where there are cross features",
                 static_cast<double>(c.cross_width));
    check_option(op, "output_width", c.output_width >= 0, "output_width >= 0", static_cast<double>(c.output_width));
    check_option(op, "selected", c.selected >= 1, "selected >= 1", static_cast<double>(c.selected));
    const Index cross = c.cross_features * c.cross_width, keys = c.heads * c.key_width, values = c.heads * c.value_width;
    q_proj = Linear<T>(c.width, keys, random, false);
    k_proj = Linear<T>(c.width, keys, random, false);
    v_proj = Linear<T>(c.width + cross, values, random, false);
    out_proj = Linear<T>(values, c.output_width > 0 ? c.output_width : c.width, random, false);
    cross_weight.resize(c.heads, cross);
    const double bound = c.cross_width > 0 ? 1 / std::sqrt(static_cast<double>(c.cross_width)) : 0;
    for (T& w : leaf_values(cross_weight)) w = static_cast<T>(random.uniform(-bound, bound));
    cross_scale = Matrix<T>(c.heads, c.cross_features, T(1));
  }

  static constexpr auto fields() {
    return std::tuple{layer("q_proj", &Twin::q_proj),
                      layer("k_proj", &Twin::k_proj),
                      layer("v_proj", &Twin::v_proj),
                      layer("out_proj", &Twin::out_proj),
                      parameter("cross_weight", &Twin::cross_weight),
                      parameter("cross_scale", &Twin::cross_scale)};
  }

  Index width() const { return q_proj.weight.cols(); }
  Index cross_cols() const { return cross_weight.cols(); }
  Index output_width() const { return out_proj.weight.rows(); }
  TwinOptions options() const { return {.heads = heads}; }

  /// Throws `Error` unless the parameters, which may have been loaded, fit each other.
  void check_parameters(const char* op) const {
    const Index d = width(), keys = q_proj.weight.rows(), values = v_proj.weight.rows();
    check_option(op, "heads", heads >= 1, "heads >= 1", static_cast<double>(heads));
    check_option(op, "selected", selected >= 1, "selected >= 1", static_cast<double>(selected));
    check_option(op, "q_proj.weight", keys >= 1 && keys % heads == 0, "rows that heads divides", static_cast<double>(keys));
    check_option(op, "v_proj.weight", values >= 1 && values % heads == 0, "rows that heads divides", static_cast<double>(values));
    check_shape(op, "k_proj.weight", k_proj.weight.view(), keys, d);
    check_shape(op, "v_proj.weight", v_proj.weight.view(), values, d + cross_cols());
    check_shape(op, "out_proj.weight", out_proj.weight.view(), any_size, values);
    check_option(op, "bias", q_proj.bias.empty() && k_proj.bias.empty() && v_proj.bias.empty() && out_proj.bias.empty(),
                 "projections without bias", 1);
    check_shape(op, "cross_weight", cross_weight.view(), heads, any_size);
    detail::check_cross<T>(op, cross_cols(), cross_weight, cross_scale);
  }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> q, keys, bias;                ///< scaled queries [total_N, H dk], keys [total_L, H dk], bias [total_L, H] or none
    Matrix<std::int32_t> indices;           ///< [total_N, k]: what was selected
    Matrix<T> pooled, log_sum_exp, values;  ///< [total_N, H (D + J e)], [total_N, H], [total_N, H dv]
  };

  /// y [total_N, E]
  void forward(JaggedView<const T> candidates, const TwinHistory<T>& history, MatrixView<T> y, Workspace& ws) const {
    check("Twin", candidates, history, "y", y);
    const auto mark = ws.mark();
    const Index n = candidates.values().rows(), l = history.inherent.values().rows(), keys = q_proj.weight.rows();
    run(candidates, history, ws.matrix<T>(n, keys), ws.matrix<T>(l, keys), ws.matrix<T>(l, heads),
        ws.matrix<std::int32_t>(n, selected), ws.matrix<T>(n, pooled_cols()), {}, ws.matrix<T>(n, v_proj.weight.rows()), y, ws);
  }
  void forward(JaggedView<const T> candidates, const TwinHistory<T>& history, MatrixView<T> y, Saved& s, Workspace& ws) const {
    check("Twin", candidates, history, "y", y);
    const Index n = candidates.values().rows(), l = history.inherent.values().rows(), keys = q_proj.weight.rows();
    s.q.resize(n, keys);
    s.keys.resize(l, keys);
    s.bias.resize(l, heads);
    s.indices.resize(n, selected);
    s.pooled.resize(n, pooled_cols());
    s.log_sum_exp.resize(n, heads);
    s.values.resize(n, v_proj.weight.rows());
    run(candidates, history, s.q, s.keys, s.bias, s.indices, s.pooled, s.log_sum_exp, s.values, y, ws);
  }

  /// Adds to the gradients of candidates (empty: not wanted), of the history and of the parameters.
  void backward(JaggedView<const T> candidates, const TwinHistory<T>& history, MatrixView<const T> dy, const Saved& s,
                MatrixView<T> dcandidates, const TwinHistoryGradient<T>& dhistory, Twin& gradient, Workspace& ws) const {
    const char* op = "Twin backward";
    check(op, candidates, history, "dy", dy);
    const Index n = candidates.values().rows(), l = history.inherent.values().rows(), keys = q_proj.weight.rows(), d = width(),
                cross = cross_cols();
    check_shape(op, "saved q", s.q.view(), n, keys);
    check_shape(op, "saved keys", s.keys.view(), l, keys);
    check_shape(op, "saved bias", s.bias.view(), l, heads);
    check_shape(op, "saved pooled", s.pooled.view(), n, pooled_cols());
    check_shape(op, "saved log_sum_exp", s.log_sum_exp.view(), n, heads);
    check_shape(op, "saved values", s.values.view(), n, v_proj.weight.rows());
    detail::check_twin_selection<T>(op, candidates, saved_keys(history, s.keys), s.indices);
    if (!dcandidates.empty()) check_shape(op, "dcandidates", dcandidates, n, d);
    if (!dhistory.inherent.empty()) check_shape(op, "dinherent", dhistory.inherent, l, d);
    if (!dhistory.cross.empty()) check_shape(op, "dcross", dhistory.cross, l, cross);
    if (!dhistory.prior.empty()) check_size(op, "dprior", dhistory.prior, l);
    check_gradient_shapes(op, *this, gradient);
    if (n == 0) return;
    const auto mark = ws.mark();

    // y = concat_a(pooled_a Wv_a^T) Wo^T
    const Index values = d + cross, value_width = v_proj.weight.rows() / heads;
    const MatrixView<T> dvalues = ws.matrix<T>(n, s.values.cols()), dpooled = ws.matrix<T>(n, pooled_cols());
    detail::linear_backward<T>(s.values, out_proj.weight, dy, dvalues, true, gradient.out_proj.weight, {}, ws);
    for (Index a = 0; a < heads; ++a) {
      const MatrixView<T> dweight = gradient.v_proj.weight;
      detail::linear_backward<T>(s.pooled.view().middle_cols(a * values, values), v_weight(a),
                                 MatrixView<const T>(dvalues).middle_cols(a * value_width, value_width),
                                 dpooled.middle_cols(a * values, values), true,
                                 dweight.empty() ? dweight : dweight.middle_rows(a * value_width, value_width), {}, ws);
    }

    // Only what somebody selected has gradients: these rows, together.
    auto* const slot = ws.take<std::int32_t>(l);
    std::fill_n(slot, l, std::int32_t{-1});
    for (Index b = 0; b < candidates.size(); ++b)
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i)
        for (Index k = 0; k < s.indices.cols(); ++k)
          if (s.indices(i, k) >= 0) slot[history.inherent.begin(b) + s.indices(i, k)] = 0;
    Index rows = 0;
    for (Index i = 0; i < l; ++i)
      if (slot[i] == 0) slot[i] = static_cast<std::int32_t>(rows++);
    const MatrixView<T> dq = ws.matrix<T>(n, keys), dkeys = ws.matrix<T>(rows, keys), dbias = ws.matrix<T>(rows, heads);
    for (const MatrixView<T>& m : {dq, dkeys, dbias}) std::fill_n(m.data(), m.rows() * m.cols(), T(0));
    const bool biased = !history.prior.empty() || cross > 0;
    const auto c = static_cast<T>(1 / std::sqrt(static_cast<double>(keys / heads)));
    const MatrixView<const T> bias = biased ? s.bias.view() : MatrixView<const T>();
    detail::attend_twin_backward<T>(
        candidates, s.q, c, saved_keys(history, s.keys), bias, {history.inherent.values(), history.cross}, heads, s.indices,
        s.pooled, s.log_sum_exp, dpooled,
        {.queries = dq, .keys = dkeys, .bias = dbias, .values = {dhistory.inherent, dhistory.cross}, .slot = slot}, ws);
    linear_backward<T>(candidates.values(), q_proj.weight, dq, dcandidates, gradient.q_proj.weight, {}, ws);
    const MatrixView<T> inherent = gather(history.inherent.values(), slot, rows, ws);
    through(dhistory.inherent, slot, rows, d, ws,
            [&](MatrixView<T> dx) { linear_backward<T>(inherent, k_proj.weight, dkeys, dx, gradient.k_proj.weight, {}, ws); });
    if (cross > 0) {
      const MatrixView<T> x = gather(history.cross, slot, rows, ws);
      through(dhistory.cross, slot, rows, cross, ws, [&](MatrixView<T> dx) {
        cross_feature_bias_backward<T>(x, cross_weight, cross_scale, dbias, dx, gradient.cross_weight, gradient.cross_scale, ws);
      });
    }
    for (Index i = 0; i < dhistory.prior.size(); ++i)
      for (Index a = 0; slot[i] >= 0 && a < heads; ++a) dhistory.prior[i] += dbias(slot[i], a);
  }

 private:
  Index pooled_cols() const { return heads * (width() + cross_cols()); }
  MatrixView<const T> v_weight(Index head) const {
    const Index rows = v_proj.weight.rows() / heads;
    return v_proj.weight.view().middle_rows(head * rows, rows);
  }
  static SearchKeys<T> saved_keys(const TwinHistory<T>& history, MatrixView<const T> keys) {
    return SearchKeys<T>(history.inherent.with_values(keys));
  }
  template <class Y>
  void check(const char* op, JaggedView<const T> candidates, const TwinHistory<T>& history, const char* output,
             MatrixView<Y> y) const {
    check_parameters(op);
    detail::check_twin<T>(op, candidates, history, width(), cross_cols());
    check_shape(op, output, y, candidates.values().rows(), output_width());
  }

  /// Rows of what was selected, one after the other.
  static MatrixView<T> gather(MatrixView<const T> x, const std::int32_t* slot, Index rows, Workspace& ws) {
    const MatrixView<T> out = ws.matrix<T>(rows, x.cols());
    for (Index i = 0; i < x.rows(); ++i)
      if (slot[i] >= 0) std::copy_n(x.row(i), x.cols(), out.row(slot[i]));
    return out;
  }
  /// Calls `f(dx)` with room for the gradients of the selected rows, which are then added where they belong.
  template <class F>
  static void through(MatrixView<T> to, const std::int32_t* slot, Index rows, Index cols, Workspace& ws, F&& f) {
    if (to.empty()) return f(MatrixView<T>());
    const MatrixView<T> dx = ws.matrix<T>(rows, cols);
    std::fill_n(dx.data(), rows * cols, T(0));
    f(dx);
    for (Index i = 0; i < to.rows(); ++i)
      if (slot[i] >= 0) simd::add<T>(dx.row(slot[i]), to.row(i), cols);
  }

  void run(JaggedView<const T> candidates, const TwinHistory<T>& history, MatrixView<T> q, MatrixView<T> keys,
           MatrixView<T> bias_room, MatrixView<std::int32_t> indices, MatrixView<T> pooled, MatrixView<T> lse,
           MatrixView<T> values, MatrixView<T> y, Workspace& ws) const {
    const auto mark = ws.mark();
    linear<T>(candidates.values(), q_proj.weight, {}, q, ws);
    const auto c = static_cast<T>(1 / std::sqrt(static_cast<double>(q.cols() / heads)));
    for (Index i = 0; i < q.rows(); ++i) simd::scale<T>(c, q.row(i), q.row(i), q.cols());
    linear<T>(history.inherent.values(), k_proj.weight, {}, keys, ws);
    const MatrixView<T> bias = detail::twin_bias<T>(history, heads, ws, bias_room,
                                                    [this](MatrixView<const T> cross, MatrixView<T> out, Workspace& scratch) {
                                                      cross_feature_bias<T>(cross, cross_weight, cross_scale, out, scratch);
                                                    });
    const SearchKeys<T> k = saved_keys(history, keys);
    detail::search_scaled<T>(candidates, q, k, bias, heads, indices, ws);
    detail::attend_twin<T>(candidates, q, k, bias, {history.inherent.values(), history.cross}, heads, indices, pooled, lse, ws);
    const Index cols = width() + cross_cols(), rows = v_proj.weight.rows() / heads;
    for (Index a = 0; a < heads; ++a)
      linear<T>(MatrixView<const T>(pooled).middle_cols(a * cols, cols), v_weight(a), {}, values.middle_cols(a * rows, rows), ws);
    linear<T>(values, out_proj.weight, {}, y, ws);
  }
};

/// The serving form: weights packed, the bias of cross features collapsed. Immutable; threads may share it. `S` is T, or for float
/// BFloat16 or std::int8_t: the format of the weights. (That of cached keys is the cache's own.)
template <class T, class S = T>
class FrozenTwin {
 public:
  FrozenTwin() = default;
  explicit FrozenTwin(const Twin<T>& layer) : heads_(layer.heads), selected_(layer.selected), cross_(layer.cross_cols()) {
    layer.check_parameters("freeze(Twin)");
    query_ = FrozenDense<T, S>(layer.q_proj.weight, {}, Activation::none);
    key_ = FrozenDense<T, S>(layer.k_proj.weight, {}, Activation::none);
    out_ = FrozenDense<T, S>(layer.out_proj.weight, {}, Activation::none);
    const Index rows = layer.v_proj.weight.rows() / heads_;
    for (Index a = 0; a < heads_; ++a)
      values_.emplace_back(layer.v_proj.weight.view().middle_rows(a * rows, rows), VectorView<const T>(), Activation::none);
    if (cross_ > 0) {
      Matrix<T> folded(heads_, cross_);
      detail::fold_cross<T>(layer.cross_weight, layer.cross_scale, folded.view());
      bias_ = FrozenDense<T, T>(folded, {}, Activation::none);
    }
  }

  Index heads() const { return heads_; }
  Index selected() const { return selected_; }
  Index key_cols() const { return key_.output_cols(key_.input_cols()); }

  /// keys [R, H dk] of items' inherent features [R, D]: what a cache keeps. A row's bits do not depend on the others.
  void project_keys(MatrixView<const T> inherent, MatrixView<T> keys, Workspace& ws) const { key_.forward(inherent, keys, ws); }
  /// queries [N, H dk] of candidates, not scaled, as `twin_search` takes them.
  void project_queries(MatrixView<const T> candidates, MatrixView<T> queries, Workspace& ws) const {
    query_.forward(candidates, queries, ws);
  }
  /// bias [total_L, H] of cross features and prior.
  void score_bias(const TwinHistory<T>& history, MatrixView<T> bias, Workspace& ws) const {
    const char* op = "FrozenTwin::score_bias";
    const Index total = history.inherent.values().rows();
    if (cross_ > 0 || !history.cross.empty()) check_shape(op, "cross", history.cross, total, cross_);
    if (!history.prior.empty()) check_size(op, "prior", history.prior, total);
    check_shape(op, "bias", bias, total, heads_);
    if (twin_bias(history, bias, ws).empty())
      for (Index l = 0; l < total; ++l) std::fill_n(bias.row(l), heads_, T(0));
  }

  /// y [total_N, E] with keys from elsewhere, those of `project_keys` for the rows of history.inherent. `indices` [total_N, k], unless
  /// empty, receives what was selected. Returns as `twin_search`.
  Index forward(JaggedView<const T> candidates, const TwinHistory<T>& history, const SearchKeys<T>& keys,
                MatrixView<std::int32_t> indices, MatrixView<T> y, Workspace& ws) const {
    const char* op = "FrozenTwin";
    check(op, candidates, history, keys, y);
    if (!indices.empty()) check_shape(op, "indices", indices, candidates.values().rows(), selected_);
    const auto mark = ws.mark();
    const MatrixView<T> q = scaled_queries(candidates.values(), ws);
    const MatrixView<T> bias = twin_bias(history, ws.matrix<T>(keys.behaviours(), heads_), ws);
    if (indices.empty()) indices = ws.matrix<std::int32_t>(q.rows(), selected_);
    const Index exact = detail::search_scaled<T>(candidates, q, keys, bias, heads_, indices, ws);
    attend(candidates, q, history, keys, bias, indices, y, ws);
    return exact;
  }
  /// The attention alone, over behaviours that something else selected: indices [total_N, any], -1: none.
  void attend(JaggedView<const T> candidates, const TwinHistory<T>& history, const SearchKeys<T>& keys,
              MatrixView<const std::int32_t> indices, MatrixView<T> y, Workspace& ws) const {
    const char* op = "FrozenTwin::attend";
    check(op, candidates, history, keys, y);
    detail::check_twin_selection<T>(op, candidates, keys, indices);
    const auto mark = ws.mark();
    const MatrixView<T> q = scaled_queries(candidates.values(), ws);
    attend(candidates, q, history, keys, twin_bias(history, ws.matrix<T>(keys.behaviours(), heads_), ws), indices, y, ws);
  }
  /// The same, projecting the keys on the way.
  void forward(JaggedView<const T> candidates, const TwinHistory<T>& history, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenTwin", "inherent", history.inherent.values(), any_size, query_.input_cols());
    const auto mark = ws.mark();
    const MatrixView<T> keys = ws.matrix<T>(history.inherent.values().rows(), key_cols());
    project_keys(history.inherent.values(), keys, ws);
    forward(candidates, history, SearchKeys<T>(history.inherent.with_values(MatrixView<const T>(keys))), {}, y, ws);
  }

 private:
  void check(const char* op, JaggedView<const T> candidates, const TwinHistory<T>& history, const SearchKeys<T>& keys,
             MatrixView<T> y) const {
    detail::check_twin<T>(op, candidates, history, query_.input_cols(), cross_);
    check_shape(op, "y", y, candidates.values().rows(), out_.output_cols(out_.input_cols()));
    detail::check_keys<T>(op, keys, key_cols(), candidates.size(), heads_);
    for (Index b = 0; b < candidates.size(); ++b)
      if (keys.length(b) != history.inherent.length(b)) [[unlikely]]
        detail::fail_at(op, "keys", "as many behaviours as the history of the user, ", history.inherent.length(b), b,
                        keys.length(b));
  }
  MatrixView<T> scaled_queries(MatrixView<const T> candidates, Workspace& ws) const {
    const MatrixView<T> q = ws.matrix<T>(candidates.rows(), key_cols());
    query_.forward(candidates, q, ws);
    const auto c = static_cast<T>(1 / std::sqrt(static_cast<double>(q.cols() / heads_)));
    for (Index i = 0; i < q.rows(); ++i) simd::scale<T>(c, q.row(i), q.row(i), q.cols());
    return q;
  }
  void attend(JaggedView<const T> candidates, MatrixView<const T> q, const TwinHistory<T>& history, const SearchKeys<T>& keys,
              MatrixView<const T> bias, MatrixView<const std::int32_t> indices, MatrixView<T> y, Workspace& ws) const {
    const Index n = q.rows(), cols = query_.input_cols() + cross_, rows = out_.input_cols() / heads_;
    const MatrixView<T> pooled = ws.matrix<T>(n, heads_ * cols), values = ws.matrix<T>(n, heads_ * rows);
    detail::attend_twin<T>(candidates, q, keys, bias, {history.inherent.values(), history.cross}, heads_, indices, pooled, {},
                           ws);
    for (Index a = 0; a < heads_; ++a)
      values_[static_cast<std::size_t>(a)].forward(MatrixView<const T>(pooled).middle_cols(a * cols, cols),
                                                   values.middle_cols(a * rows, rows), ws);
    out_.forward(values, y, ws);
  }
  MatrixView<T> twin_bias(const TwinHistory<T>& history, MatrixView<T> room, Workspace& ws) const {
    return detail::twin_bias<T>(
        history, heads_, ws, room,
        [this](MatrixView<const T> cross, MatrixView<T> out, Workspace& scratch) { bias_.forward(cross, out, scratch); });
  }

  Index heads_ = 1, selected_ = 0, cross_ = 0;
  FrozenDense<T, S> query_, key_, out_;
  std::vector<FrozenDense<T, S>> values_;  // per head
  FrozenDense<T, T> bias_;
};

/// The serving form of a layer. Throws `Error` if its parameters do not fit each other.
template <class T, class S = T>
FrozenTwin<T, S> freeze(const Twin<T>& layer, Weights<S> = {}) {
  return FrozenTwin<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
