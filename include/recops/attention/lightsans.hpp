/// @file   recops/attention/lightsans.hpp
/// @brief  Low-rank self-attention (LightSANs): every behaviour attends to k interests of its user instead of to all behaviours.
///
///     K~ = softmax over rows of (K theta_key^T)^T K      V~ = softmax over rows of (V theta_value^T)^T V      K = x Wk^T + bk, V likewise
///     y = ( softmax(q K~^T / sqrt(d)) V~  +  softmax(P Q^T / sqrt(2 d)) V ) Wo^T + bo          head by head; the second term is optional
///
/// Shapes      x, y [total, D], any offsets   theta_key, theta_value [k, D]   K~, V~ [k, D] of each user
/// Positions   decoupled: what the places i and j have to do with each other, P_i . Q_j, does not depend on the behaviours. Rows count from
///             the beginning of the sequence; at most `max_length` of them. This term is quadratic in the length, the first is linear.
/// Not causal  each row sees all of its user's behaviours: for training on every position use the last row only, or a causal layer.
/// Edge cases  a user without behaviours has no rows.   k may exceed the length.
/// NaN         stays in its user.
/// Precision   T.   Same bits for any number of threads.
/// Cost        interests are pooled before they are projected, sum_j a_j (W x_j) = W sum_j a_j x_j, and the scores of theta read x
///             itself: so keys and values of the behaviours are never formed: 4 D^2 + 12 k D flops per row instead of 8 D^2 + 12 k D,
///             plus 4 k D^2 per user; with positions, values are formed, and 4 L D flops per row.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Fan et al., Lighter and Better: Low-Rank Decomposed Self-Attention Networks, SIGIR 2021, sections 3.2 and 3.3. The order of
///             pooling and projection is ours. (The authors' implementation normalises the last softmax over queries; this is the paper's.)
#pragma once
#include <recops/attention/joined_rows.hpp>
#include <recops/nn/transformer_block.hpp>

namespace recops {

/// Options of `LightSans`.
struct LightSansOptions {
  Index heads = 1;       ///< divides the width
  Index interests = 16;  ///< k
  Index max_length = 0;  ///< with positions, of sequences of at most so many rows; 0: without
};

inline namespace RECOPS_ABI {
namespace detail {

/// What the layer and its serving form share: `theta` [k, D] (already W^T theta) reads the rows of each user; pooled [B k, D].
template <class T>
struct InterestRows {
  JaggedView<const T> queries;  // theta once per user
  IndexView offsets;            // [B + 1]
};
template <class T>
InterestRows<T> interest_rows(MatrixView<const T> theta, Index users, Workspace& ws) {
  const Index k = theta.rows();
  auto* const offsets = ws.take<std::int64_t>(users + 1);
  const MatrixView<T> rows = ws.matrix<T>(users * k, theta.cols());
  for (Index b = 0; b <= users; ++b) offsets[b] = b * k;
  for (Index i = 0; i < users * k; ++i) std::copy_n(theta.row(i % k), theta.cols(), rows.row(i));
  const IndexView view(offsets, users + 1);
  return {JaggedView<const T>(MatrixView<const T>(rows), view), view};
}

/// attended += softmax(pq pk^T / sqrt(2 d)) v, user by user; what backward needs goes to out and lse, unless empty.
template <class T>
void attend_positions(JaggedView<const T> values, MatrixView<const T> pq, MatrixView<const T> pk, Index heads, MatrixView<T> out,
                      MatrixView<T> lse, MatrixView<T> attended, Workspace& ws) {
  const auto mark = ws.mark();
  const AttentionOptions o{.heads = heads, .scale = 1 / std::sqrt(2.0 * static_cast<double>(pq.cols() / heads))};
  if (out.empty()) out = ws.matrix<T>(attended.rows(), attended.cols());
  for (Index b = 0; b < values.size(); ++b) {
    const Index n = values.length(b), at = values.begin(b);
    scaled_dot_product_attention<T>(pq.middle_rows(0, n), pk.middle_rows(0, n), values[b], {}, o, out.middle_rows(at, n),
                                    lse.empty() ? lse : lse.middle_rows(at, n), ws);
  }
  for (Index r = 0; r < attended.rows(); ++r) simd::add(out.row(r), attended.row(r), attended.cols());
}

inline void check_positions(const char* name, Index longest, Index max_length) {
  check_option(name, "x", longest <= max_length, "sequences of at most max_length rows", static_cast<double>(longest));
}

}  // namespace detail

/// A sequence layer `[total, D]` to `[total, D]`, the attention of `LightSansBlock`.
template <class T>
struct LightSans {
  Linear<T> query, key, value, dense;    ///< [D, D] each
  Matrix<T> theta_key, theta_value;      ///< [k, D]
  Matrix<T> positions;                   ///< [max_length, D], or empty for no positions
  LayerNorm<T> pos_ln;                   ///< of the positions
  Linear<T> pos_q_linear, pos_k_linear;  ///< [D, D]
  Index heads = 1;

  LightSans() = default;
  /// Throws `Error` for options out of range.
  LightSans(Index width, const LightSansOptions& o, Random& random)
      : query(checked_size("LightSans", "width", width), width, random),
        key(width, width, random),
        value(width, width, random),
        dense(width, width, random),
        heads(o.heads) {
    detail::check_heads("LightSans", heads, width);
    check_option("LightSans", "interests", o.interests >= 1, "one interest or more", static_cast<double>(o.interests));
    check_option("LightSans", "max_length", o.max_length >= 0, "max_length >= 0, where 0 is none",
                 static_cast<double>(o.max_length));
    const auto normal = [&](Matrix<T>& m, Index rows, double deviation) {
      m.resize(rows, width);
      for (T& w : leaf_values(m)) w = static_cast<T>(deviation * random.normal());
    };
    normal(theta_key, o.interests, 0.02);
    normal(theta_value, o.interests, 0.02);
    if (o.max_length == 0) return;
    normal(positions, o.max_length, 0.02);
    pos_ln = LayerNorm<T>(width);
    pos_q_linear = Linear<T>(width, width, random);
    pos_k_linear = Linear<T>(width, width, random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("query", &LightSans::query),
                      layer("key", &LightSans::key),
                      layer("value", &LightSans::value),
                      layer("dense", &LightSans::dense),
                      parameter("theta_key", &LightSans::theta_key),
                      parameter("theta_value", &LightSans::theta_value),
                      parameter("positions", &LightSans::positions),
                      layer("pos_ln", &LightSans::pos_ln),
                      layer("pos_q_linear", &LightSans::pos_q_linear),
                      layer("pos_k_linear", &LightSans::pos_k_linear)};
  }
  Index width() const { return dense.weight.rows(); }
  bool has_positions() const { return !positions.empty(); }
  /// D; throws `Error` unless the input has D columns and the parameters, which may have been loaded, fit each other.
  Index output_cols(Index input_cols) const {
    constexpr const char* name = "LightSans";
    const Index d = width();
    check_option(name, "input columns", input_cols == d, "as many as the layer's width", static_cast<double>(input_cols));
    detail::check_heads(name, heads, d);
    for (const Linear<T>* part : {&query, &key, &value, &dense}) {
      check_shape(name, "weight", part->weight.view(), d, d);
      if (!part->bias.empty()) check_size(name, "bias", VectorView<const T>(part->bias), d);
    }
    check_shape(name, "theta_key", theta_key.view(), any_size, d);
    check_shape(name, "theta_value", theta_value.view(), theta_key.rows(), d);
    check_option(name, "theta_key", theta_key.rows() >= 1, "one interest or more", static_cast<double>(theta_key.rows()));
    if (has_positions()) {
      check_shape(name, "positions", positions.view(), any_size, d);
      check_shape(name, "pos_q_linear.weight", pos_q_linear.weight.view(), d, d);
      check_shape(name, "pos_k_linear.weight", pos_k_linear.weight.view(), d, d);
    }
    return d;
  }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> q, attended, log_sum_exp;               ///< [total, D], [total, D], [total, H]
    Matrix<T> pooled[2], pooled_lse[2], interest[2];  ///< of keys and values: [B k, D] before projection, [B k, 1], [B k, D]
    Matrix<T> v, by_items, by_positions, pos_lse;     ///< with positions: values, both terms, [total, H]
    Matrix<T> normed, pos_q, pos_k;                   ///< with positions: of the first rows of the table
    typename LayerNorm<T>::Saved pos_ln;
  };

  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("LightSans", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const Index n = x.values().rows(), d = width(), rows = x.size() * theta_key.rows();
    const MatrixView<T> q = ws.matrix<T>(n, d), attended = ws.matrix<T>(n, d);
    MatrixView<T> interest[2];
    IndexView offsets;
    for (int i = 0; i < 2; ++i) {
      interest[i] = ws.matrix<T>(rows, d);
      offsets = pool(i, x, ws.matrix<T>(rows, d), {}, interest[i], ws);
    }
    query.forward(x.values(), q, ws);
    scaled_dot_product_attention<T>(x.with_values(MatrixView<const T>(q)), JaggedView<const T>(interest[0], offsets),
                                    JaggedView<const T>(interest[1], offsets), {}, {.heads = heads}, attended, {}, ws);
    if (has_positions()) {
      const Index longest = x.longest();
      const MatrixView<T> normed = ws.matrix<T>(longest, d), pq = ws.matrix<T>(longest, d), pk = ws.matrix<T>(longest, d);
      pos_ln.forward(positions.view().middle_rows(0, longest), normed, ws);
      pos_q_linear.forward(normed, pq, ws);
      pos_k_linear.forward(normed, pk, ws);
      value.forward(x.values(), q, ws);  // queries are no longer needed
      detail::attend_positions<T>(x.with_values(MatrixView<const T>(q)), pq, pk, heads, {}, {}, attended, ws);
    }
    dense.forward(attended, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("LightSans", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const Index n = x.values().rows(), d = width(), rows = x.size() * theta_key.rows(), longest = x.longest();
    for (Matrix<T>* m : {&saved.q, &saved.attended, &saved.by_items}) m->resize(n, d);
    saved.log_sum_exp.resize(n, heads);
    IndexView offsets;
    for (int i = 0; i < 2; ++i) {
      saved.pooled[i].resize(rows, d);
      saved.interest[i].resize(rows, d);
      saved.pooled_lse[i].resize(rows, 1);
      offsets = pool(i, x, saved.pooled[i], saved.pooled_lse[i], saved.interest[i], ws);
    }
    query.forward(x.values(), saved.q, ws);
    const MatrixView<const T> k = saved.interest[0], v = saved.interest[1], q = saved.q;
    scaled_dot_product_attention<T>(x.with_values(q), JaggedView<const T>(k, offsets), JaggedView<const T>(v, offsets), {},
                                    {.heads = heads}, saved.by_items, saved.log_sum_exp, ws);
    std::copy_n(saved.by_items.data(), n * d, saved.attended.data());
    if (has_positions()) {
      for (Matrix<T>* m : {&saved.v, &saved.by_positions}) m->resize(n, d);
      for (Matrix<T>* m : {&saved.normed, &saved.pos_q, &saved.pos_k}) m->resize(longest, d);
      saved.pos_lse.resize(n, heads);
      pos_ln.forward(positions.view().middle_rows(0, longest), saved.normed, saved.pos_ln, step, ws);
      pos_q_linear.forward(saved.normed, saved.pos_q, ws);
      pos_k_linear.forward(saved.normed, saved.pos_k, ws);
      value.forward(x.values(), saved.v, ws);
      detail::attend_positions<T>(x.with_values(std::as_const(saved.v).view()), saved.pos_q, saved.pos_k, heads,
                                  saved.by_positions, saved.pos_lse, saved.attended, ws);
    }
    dense.forward(saved.attended, y, ws);
  }
  /// Adds to dx (unless empty) and to `gradient`.
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, LightSans& gradient,
                Workspace& ws) const {
    constexpr const char* name = "LightSans::backward";
    check(name, x, dy);
    const Index n = x.values().rows(), d = width(), rows = x.size() * theta_key.rows();
    check_shape(name, "saved", saved.attended.view(), n, d);
    check_shape(name, "saved", saved.log_sum_exp.view(), n, heads);
    check_shape(name, "saved", saved.pooled[1].view(), rows, d);
    if (has_positions()) check_shape(name, "saved", saved.v.view(), n, d);
    if (!dx.empty()) check_shape(name, "dx", dx, n, d);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto zeros = [&](Index r) { return detail::zero_rows<T>(r, d, ws); };
    const MatrixView<T> dattended = ws.matrix<T>(n, d), dq = zeros(n), dinterest[2] = {zeros(rows), zeros(rows)};
    detail::linear_backward<T>(saved.attended, dense.weight, dy, dattended, true, gradient.dense.weight, gradient.dense.bias, ws);
    const IndexView offsets = detail::interest_rows<T>(theta_key, x.size(), ws).offsets;
    const MatrixView<const T> k = saved.interest[0], v = saved.interest[1], q = saved.q;
    scaled_dot_product_attention_backward<T>(x.with_values(q), JaggedView<const T>(k, offsets), JaggedView<const T>(v, offsets),
                                             {}, {.heads = heads}, saved.by_items, saved.log_sum_exp, dattended, {}, dq,
                                             dinterest[0], dinterest[1], {}, ws);
    query.backward(x.values(), dq, {}, dx, gradient.query, ws);
    if (has_positions()) positions_backward(x, dattended, saved, dx, gradient, ws);
    for (int i = 0; i < 2; ++i) pool_backward(i, x, saved, dinterest[i], dx, gradient, ws);
  }

 private:
  template <class M>
  void check(const char* name, JaggedView<const T> x, M y) const {
    const Index d = output_cols(width());
    check_jagged(name, "x", x, any_size, d);
    check_shape(name, "y", y, x.values().rows(), d);
    if (has_positions()) detail::check_positions(name, x.longest(), positions.rows());
  }
  const Linear<T>& projection(int i) const { return i == 0 ? key : value; }
  const Matrix<T>& theta(int i) const { return i == 0 ? theta_key : theta_value; }
  /// W^T theta: a bias of the projection moves all scores of an interest alike, and drops out.
  MatrixView<T> folded(int i, Workspace& ws) const {
    const MatrixView<T> t = ws.matrix<T>(theta(i).rows(), width());
    simd::gemm<T>(simd::plain(theta(i).view()), simd::plain(projection(i).weight.view()), {}, t, ws);
    return t;
  }
  /// pooled <- weighted means of each user's rows, interest <- their projections; the offsets of both live in `ws`.
  IndexView pool(int i, JaggedView<const T> x, MatrixView<T> pooled, MatrixView<T> lse, MatrixView<T> interest,
                 Workspace& ws) const {
    const auto each = detail::interest_rows<T>(folded(i, ws), x.size(), ws);
    scaled_dot_product_attention<T>(each.queries, x, x, {}, {.scale = 1}, pooled, lse, ws);
    projection(i).forward(pooled, interest, ws);
    return each.offsets;
  }
  void pool_backward(int i, JaggedView<const T> x, const Saved& saved, MatrixView<const T> dinterest, MatrixView<T> dx,
                     LightSans& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index d = width(), count = theta(i).rows(), rows = dinterest.rows();
    Linear<T>& dprojection = i == 0 ? gradient.key : gradient.value;
    const MatrixView<T> dpooled = ws.matrix<T>(rows, d), dqueries = detail::zero_rows<T>(rows, d, ws),
                        dfolded = detail::zero_rows<T>(count, d, ws);
    detail::linear_backward<T>(saved.pooled[i], projection(i).weight, dinterest, dpooled, true, dprojection.weight,
                               dprojection.bias, ws);
    const auto each = detail::interest_rows<T>(folded(i, ws), x.size(), ws);
    scaled_dot_product_attention_backward<T>(each.queries, x, x, {}, {.scale = 1}, saved.pooled[i], saved.pooled_lse[i], dpooled,
                                             {}, dqueries, dx, dx, {}, ws);
    detail::repeat_rows_backward<T>(dqueries, count, dfolded, {}, ws);
    Matrix<T>& dtheta = i == 0 ? gradient.theta_key : gradient.theta_value;
    const MatrixView<const T> df = dfolded;
    if (!dtheta.empty())
      simd::gemm<T>(simd::plain(df), simd::transposed(projection(i).weight.view()), {.accumulate = true}, dtheta, ws);
    if (!dprojection.weight.empty())
      simd::gemm<T>(simd::transposed(theta(i).view()), simd::plain(df), {.accumulate = true}, dprojection.weight, ws);
  }
  void positions_backward(JaggedView<const T> x, MatrixView<const T> dattended, const Saved& saved, MatrixView<T> dx,
                          LightSans& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index n = dattended.rows(), d = width(), longest = x.longest();
    const auto zeros = [&](Index r) { return detail::zero_rows<T>(r, d, ws); };
    const MatrixView<T> dv = zeros(n), dpq = zeros(longest), dpk = zeros(longest), dnormed = zeros(longest);
    const MatrixView<T> part_q = ws.matrix<T>(longest, d), part_k = ws.matrix<T>(longest, d);
    const AttentionOptions o{.heads = heads, .scale = 1 / std::sqrt(2.0 * static_cast<double>(d / heads))};
    const MatrixView<const T> pq = saved.pos_q, pk = saved.pos_k, v = saved.v, out = saved.by_positions, lse = saved.pos_lse;
    constexpr Index chain = simd::ChainedSum<T>::chain;  // of users, who all add to the same positions
    for (Index b = 0; b < x.size(); ++b) {
      const Index m = x.length(b), at = x.begin(b);
      if (b % chain == 0) {
        std::fill_n(part_q.data(), longest * d, T(0));
        std::fill_n(part_k.data(), longest * d, T(0));
      }
      scaled_dot_product_attention_backward<T>(pq.middle_rows(0, m), pk.middle_rows(0, m), v.middle_rows(at, m), {}, o,
                                               out.middle_rows(at, m), lse.middle_rows(at, m), dattended.middle_rows(at, m), {},
                                               part_q.middle_rows(0, m), part_k.middle_rows(0, m), dv.middle_rows(at, m), {}, ws);
      if (b % chain == chain - 1 || b + 1 == x.size()) {
        detail::add_rows<T>(part_q, dpq);
        detail::add_rows<T>(part_k, dpk);
      }
    }
    value.backward(x.values(), dv, {}, dx, gradient.value, ws);
    pos_q_linear.backward(saved.normed, dpq, {}, dnormed, gradient.pos_q_linear, ws);
    pos_k_linear.backward(saved.normed, dpk, {}, dnormed, gradient.pos_k_linear, ws);
    MatrixView<T> dpositions = gradient.positions;
    if (!dpositions.empty()) dpositions = dpositions.middle_rows(0, longest);
    pos_ln.backward(positions.view().middle_rows(0, longest), dnormed, saved.pos_ln, dpositions, gradient.pos_ln, ws);
  }
};

/// Attention, residual, norm, feed-forward network, residual, norm: the block that LightSANs stacks.
template <class T>
using LightSansBlock = TransformerBlock<T, LayerNorm<T>, LightSans<T>>;

/// Serving form of LightSans: packed weights, theta folded into the projections once. Immutable; threads may share it.
template <class T, class S = T>
class FrozenLightSans {
 public:
  explicit FrozenLightSans(const LightSans<T>& layer)
      : query_(freeze(layer.query, Weights<S>())), dense_(freeze(layer.dense, Weights<S>())), heads_(layer.heads) {
    const Index d = layer.output_cols(layer.width()), longest = layer.positions.rows();
    projection_[0] = freeze(layer.key, Weights<S>());
    projection_[1] = freeze(layer.value, Weights<S>());
    Workspace ws;
    const Matrix<T>* thetas[2] = {&layer.theta_key, &layer.theta_value};
    const Linear<T>* weights[2] = {&layer.key, &layer.value};
    for (int i = 0; i < 2; ++i) {
      theta_[i].resize(thetas[i]->rows(), d);
      simd::gemm<T>(simd::plain(thetas[i]->view()), simd::plain(weights[i]->weight.view()), {}, theta_[i], ws);
    }
    if (!layer.has_positions()) return;
    Matrix<T> normed(longest, d);
    pos_q_.resize(longest, d);
    pos_k_.resize(longest, d);
    layer.pos_ln.forward(layer.positions, normed, ws);
    layer.pos_q_linear.forward(normed, pos_q_, ws);
    layer.pos_k_linear.forward(normed, pos_k_, ws);
  }
  Index output_cols(Index input_cols) const { return query_.output_cols(input_cols); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenLightSans";
    const Index d = query_.input_cols(), n = x.values().rows(), rows = x.size() * theta_[0].rows();
    check_jagged(name, "x", x, any_size, d);
    check_shape(name, "y", y, n, d);
    if (!pos_q_.empty()) detail::check_positions(name, x.longest(), pos_q_.rows());
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(n, d), attended = ws.matrix<T>(n, d), pooled = ws.matrix<T>(rows, d);
    MatrixView<T> interest[2];
    IndexView offsets;
    for (int i = 0; i < 2; ++i) {
      interest[i] = ws.matrix<T>(rows, d);
      const auto each = detail::interest_rows<T>(theta_[i], x.size(), ws);
      scaled_dot_product_attention<T>(each.queries, x, x, {}, {.scale = 1}, pooled, {}, ws);
      projection_[i].forward(pooled, interest[i], ws);
      offsets = each.offsets;
    }
    query_.forward(x.values(), q, ws);
    scaled_dot_product_attention<T>(x.with_values(MatrixView<const T>(q)), JaggedView<const T>(interest[0], offsets),
                                    JaggedView<const T>(interest[1], offsets), {}, {.heads = heads_}, attended, {}, ws);
    if (!pos_q_.empty()) {
      projection_[1].forward(x.values(), q, ws);
      detail::attend_positions<T>(x.with_values(MatrixView<const T>(q)), pos_q_, pos_k_, heads_, {}, {}, attended, ws);
    }
    dense_.forward(attended, y, ws);
  }

 private:
  FrozenDense<T, S> query_, projection_[2], dense_;
  Matrix<T> theta_[2];       // [k, D], folded
  Matrix<T> pos_q_, pos_k_;  // [max_length, D]
  Index heads_;
};
template <class T, class S = T>
FrozenLightSans<T, S> freeze(const LightSans<T>& layer, Weights<S> = {}) {
  return FrozenLightSans<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
