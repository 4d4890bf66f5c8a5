/// @file   recops/models/interest_aggregator.hpp
/// @brief  DimeRec's denoiser: one unit vector out of a noisy one, guided by the interests of the user.
///
///     e_t = time(t)      a = Wq r x_t + e_t      w = softmax_k(<a, Wk z_k> / sqrt(D))      c = sum_k w_k Wv z_k
///     f = net([r x_t ; c ; e_t])                 out = f / |f|                             r = sqrt(D)
///
/// The state chooses among the interests, so one user's K interests can lead different noise to different items. The order of interests
/// does not matter; with K = 1 it is plain conditioning. r brings unit vectors to unit variance.
///
/// Shapes      x, out [B, D]   interests [B' K, D], B' <= B: rows behind take the learned null interests   t [B] or [1]
/// Edge cases  NaN stays in its row. An f without length gives the first axis, without a gradient.
/// Cost        2 B 23 D^2 flops and 4 B K D^2 for the interests; the serving form pays for those once a request, and 2 13 D^2 a step.
/// Errors      Error if shapes disagree or a step is none; outputs untouched.
/// Gradient    of x, interests, null interests and all weights; adds.
/// Reference   The aggregation module of DimeRec, arXiv 2408.12153, section 4.3: the paper gives its role; these equations are ours.
#pragma once
#include <recops/diffusion/sphere.hpp>
#include <recops/diffusion/timestep_embedding.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// w = softmax_k(<a, key_k> / sqrt(D)), c = sum_k w_k value_k.
template <class T>
void pool_interests(const T* a, MatrixView<const T> keys, MatrixView<const T> values, T* w, T* c) {
  const Index n = keys.cols();
  const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(n)));
  for (Index k = 0; k < keys.rows(); ++k) w[k] = scale * simd::dot(a, keys.row(k), n);
  simd::softmax(w, keys.rows());
  std::fill_n(c, n, T(0));
  for (Index k = 0; k < keys.rows(); ++k) simd::axpy(w[k], values.row(k), c, n);
}

/// Adds the gradients of a, keys and values.
template <class T>
void pool_interests_backward(const T* a, MatrixView<const T> keys, MatrixView<const T> values, const T* w, const T* dc, T* da,
                             MatrixView<T> dkeys, MatrixView<T> dvalues, T* dw, T* ds) {
  const Index n = keys.cols(), count = keys.rows();
  const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(n)));
  for (Index k = 0; k < count; ++k) {
    dw[k] = simd::dot(dc, values.row(k), n);
    simd::axpy(w[k], dc, dvalues.row(k), n);
  }
  std::fill_n(ds, count, T(0));
  simd::softmax_backward(w, dw, ds, count);
  for (Index k = 0; k < count; ++k) {
    simd::axpy(scale * ds[k], keys.row(k), da, n);
    simd::axpy(scale * ds[k], a, dkeys.row(k), n);
  }
}

}  // namespace detail

/// See the head of this file.
template <class T>
struct InterestAggregator {
  TimeEmbedding<T> time;
  Linear<T> query, key, value;  ///< [D, D], no bias
  Matrix<T> null_interests;     ///< [K, D], learned: what stands for "no guidance"
  Mlp<T> net;                   ///< 3 D - 4 D - D, GELU

  InterestAggregator() = default;
  /// `steps` T of the schedule: the embedding turns through it whatever its length. Throws `Error` for sizes below 1 (width: 2).
  InterestAggregator(Index width, Index interests, Index steps, Random& random) {
    constexpr const char* name = "InterestAggregator";
    check_option(name, "width", width >= 2, "width >= 2", static_cast<double>(width));
    check_option(name, "interests", interests >= 1, "interests >= 1", static_cast<double>(interests));
    check_option(name, "steps", steps >= 1, "steps >= 1", static_cast<double>(steps));
    time = TimeEmbedding<T>(width, 2 * width, width, Activation::gelu, {.scale = 1000.0 / static_cast<double>(steps)}, random);
    query = Linear<T>(width, width, random, false);
    key = Linear<T>(width, width, random, false);
    value = Linear<T>(width, width, random, false);
    null_interests.resize(interests, width);
    for (T& v : leaf_values(null_interests)) v = static_cast<T>(random.normal());
    net = Mlp<T>({3 * width, 4 * width, width}, {.activation = Activation::gelu}, random);
  }

  static constexpr auto fields() {
    using L = InterestAggregator;
    return std::tuple{layer("time", &L::time),
                      layer("query", &L::query),
                      layer("key", &L::key),
                      layer("value", &L::value),
                      parameter("null_interests", &L::null_interests),
                      layer("net", &L::net)};
  }
  /// D
  Index width() const { return query.weight.rows(); }
  /// K
  Index interests() const { return null_interests.rows(); }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> state, guidance, embedded, queries, keys, values, weights, input, raw;
    typename TimeEmbedding<T>::Saved time;
    typename Mlp<T>::Saved net;
    Vector<std::uint8_t> kept;
    Index given = 0;  ///< rows of interests
  };

  /// out `[B, D]`. `keep [B]`, unless empty: 0 takes the null interests for a row's own (`guidance_mask` draws it).
  void forward(MatrixView<const T> x, MatrixView<const T> z, VectorView<const std::uint8_t> keep, IndexView t, MatrixView<T> out,
               Saved& s, const Step& step, Workspace& ws) const {
    constexpr const char* name = "InterestAggregator";
    const Index rows = x.rows(), d = width(), k = interests();
    check_shape(name, "x", x, any_size, d);
    check_shape(name, "interests", z, any_size, d);
    check_option(name, "interests", z.rows() % k == 0 && z.rows() / k <= rows,
                 "K for each of at most as many users as x has rows", static_cast<double>(z.rows()));
    if (!keep.empty()) check_size(name, "keep", keep, rows);
    check_shape(name, "out", out, rows, d);
    detail::check_timesteps(name, t, rows, 0, Index{1} << 53);
    s.kept.resize(rows);
    s.given = z.rows();
    s.state.resize(rows, d);
    s.guidance.resize(rows * k, d);
    for (Index b = 0; b < rows; ++b) {
      s.kept[b] = b < z.rows() / k && (keep.empty() || keep[b] != 0) ? 1 : 0;
      simd::scale(root(), x.row(b), s.state.row(b), d);
      for (Index i = 0; i < k; ++i)
        std::copy_n(s.kept[b] != 0 ? z.row(b * k + i) : null_interests.row(i), d, s.guidance.row(b * k + i));
    }
    s.embedded.resize(rows, d);
    time.forward(t, s.embedded, s.time, ws);
    s.queries.resize(rows, d);
    s.keys.resize(rows * k, d);
    s.values.resize(rows * k, d);
    query.forward(s.state, s.queries, ws);
    key.forward(s.guidance, s.keys, ws);
    value.forward(s.guidance, s.values, ws);
    s.weights.resize(rows, k);
    s.input.resize(rows, 3 * d);
    for (Index b = 0; b < rows; ++b) {
      simd::add(s.embedded.row(b), s.queries.row(b), d);
      T* const in = s.input.row(b);
      std::copy_n(s.state.row(b), d, in);
      detail::pool_interests<T>(s.queries.row(b), s.keys.view().middle_rows(b * k, k), s.values.view().middle_rows(b * k, k),
                                s.weights.row(b), in + d);
      std::copy_n(s.embedded.row(b), d, in + 2 * d);
    }
    s.raw.resize(rows, d);
    net.forward(s.input, s.raw, s.net, step, ws);
    unit_rows<T>(s.raw, out);
  }
  /// Adds to dx `[B, D]` and dinterests (either may be empty) and to `gradient`.
  void backward(MatrixView<const T> dout, const Saved& s, MatrixView<T> dx, MatrixView<T> dz, InterestAggregator& gradient,
                Workspace& ws) const {
    constexpr const char* name = "InterestAggregator::backward";
    const Index rows = s.kept.size(), d = width(), k = interests();
    check_shape(name, "saved", s.state.view(), rows, d);
    check_shape(name, "saved", s.guidance.view(), rows * k, d);
    check_shape(name, "dout", dout, rows, d);
    if (!dx.empty()) check_shape(name, "dx", dx, rows, d);
    if (!dz.empty()) check_shape(name, "dinterests", dz, s.given, d);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto zeros = [&](Index m, Index n) {
      const MatrixView<T> matrix = ws.matrix<T>(m, n);
      std::fill_n(matrix.data(), m * n, T(0));
      return matrix;
    };
    const MatrixView<T> draw = zeros(rows, d), dinput = zeros(rows, 3 * d), dq = zeros(rows, d);
    const MatrixView<T> dkeys = zeros(rows * k, d), dvalues = zeros(rows * k, d), dguidance = zeros(rows * k, d);
    T *const dw = ws.take<T>(k), *const ds = ws.take<T>(k);
    unit_rows_backward<T>(s.raw, dout, draw);
    net.backward(s.input, draw, s.net, dinput, gradient.net, ws);
    for (Index b = 0; b < rows; ++b) {
      detail::pool_interests_backward<T>(s.queries.row(b), s.keys.view().middle_rows(b * k, k),
                                         s.values.view().middle_rows(b * k, k), s.weights.row(b), dinput.row(b) + d, dq.row(b),
                                         dkeys.middle_rows(b * k, k), dvalues.middle_rows(b * k, k), dw, ds);
      simd::add(dq.row(b), dinput.row(b) + 2 * d, d);  // the embedding went into the query and the net
    }
    time.backward(dinput.middle_cols(2 * d, d), s.time, gradient.time, ws);
    const MatrixView<T> dstate = dinput.middle_cols(0, d);
    query.backward(s.state, dq, {}, dstate, gradient.query, ws);
    key.backward(s.guidance, dkeys, {}, dguidance, gradient.key, ws);
    value.backward(s.guidance, dvalues, {}, dguidance, gradient.value, ws);
    for (Index b = 0; b < rows; ++b) {
      if (!dx.empty()) simd::axpy(root(), dstate.row(b), dx.row(b), d);
      for (Index i = 0; i < k; ++i) {
        const bool own = s.kept[b] != 0, wanted = own ? !dz.empty() : !gradient.null_interests.empty();
        if (wanted) simd::add(dguidance.row(b * k + i), own ? dz.row(b * k + i) : gradient.null_interests.row(i), d);
      }
    }
  }
  /// sqrt(D)
  T root() const { return static_cast<T>(std::sqrt(static_cast<double>(width()))); }
};

namespace detail {
/// A packed weight whose bias and activation come with the call: steps of a sampler share it.
template <class T, class S>
struct PackedWeight {
  Vector<S> panels;
  Vector<T> scale;
  Index out = 0;

  void pack(MatrixView<const T> weight) {
    out = weight.rows();
    panels.resize(simd::packed_size<T>(weight.cols(), out));
    if constexpr (std::is_same_v<S, std::int8_t>) {
      scale.resize(out);
      simd::pack<T>(simd::transposed(weight), panels.data(), scale.data());
    } else {
      simd::pack<T>(simd::transposed(weight), panels.data());
    }
  }
  void multiply(MatrixView<const T> x, const T* bias, Activation activation, MatrixView<T> y, Workspace& ws) const {
    simd::gemm_packed<T>(simd::plain(x), panels.data(), out,
                         {.bias = bias, .activation = activation, .column_scale = scale.empty() ? nullptr : scale.data()}, y, ws);
  }
};
}  // namespace detail

/// Serving form for the steps of one sampler: weights packed, what depends on the step alone worked out beforehand. Immutable; threads may
/// share it.
template <class T, class S = T>
class FrozenInterestAggregator {
 public:
  FrozenInterestAggregator() = default;
  /// For the schedule's steps `t [n]`.
  FrozenInterestAggregator(const InterestAggregator<T>& layer, IndexView t)
      : key_(freeze(layer.key, Weights<S>())),
        value_(freeze(layer.value, Weights<S>())),
        last_(freeze(layer.net.last, Weights<S>())),
        root_(layer.root()) {
    check_option("FrozenInterestAggregator", "net", layer.net.hidden.size() == 1, "one hidden layer",
                 static_cast<double>(layer.net.hidden.size()));
    const Index d = layer.width(), n = t.size();
    Workspace ws;
    embedded_.resize(n, d);
    detail::check_timesteps("FrozenInterestAggregator", t, n, 0, Index{1} << 53);
    for (Index i = 0; i < n; ++i) layer.time.forward(t.segment(i, 1), embedded_.view().middle_rows(i, 1), ws);
    // r scales the state: it goes into the weights that read it.
    const Linear<T>& first = layer.net.hidden[0].linear;
    Matrix<T> query = layer.query.weight, wide(first.weight.rows(), 2 * d), shift(first.weight.rows(), d);
    for (T& w : leaf_values(query)) w *= root_;
    for (Index i = 0; i < wide.rows(); ++i) {
      for (Index j = 0; j < 2 * d; ++j) wide(i, j) = first.weight(i, j) * (j < d ? root_ : T(1));
      for (Index j = 0; j < d; ++j) shift(i, j) = first.weight(i, 2 * d + j);
    }
    biases_.resize(n, wide.rows());
    linear<T>(embedded_, shift, first.bias, biases_, ws);
    query_.pack(query);
    first_.pack(wide);
    activation_ = layer.net.hidden[0].activation;
    null_keys_.resize(layer.interests(), d);
    null_values_.resize(layer.interests(), d);
    key_.forward(layer.null_interests, null_keys_, ws);
    value_.forward(layer.null_interests, null_values_, ws);
  }
  Index interests() const { return null_keys_.rows(); }
  Index width() const { return null_keys_.cols(); }
  /// Steps it was made for.
  Index steps() const { return embedded_.rows(); }
  MatrixView<const T> null_keys() const { return null_keys_; }
  MatrixView<const T> null_values() const { return null_values_; }

  /// Once for a request: keys and values `[B K, D]` of its interests.
  void prepare(MatrixView<const T> z, MatrixView<T> keys, MatrixView<T> values, Workspace& ws) const {
    key_.forward(z, keys, ws);
    value_.forward(z, values, ws);
  }
  /// out `[R, D]` of states x `[R, D]` at step i of those it was made for; row r belongs to request `users[r]`, whose keys and values
  /// are the rows users[r] K and on. -1: the null interests.
  void forward(MatrixView<const T> x, Index i, MatrixView<const T> keys, MatrixView<const T> values,
               VectorView<const Index> users, MatrixView<T> out, Workspace& ws) const {
    constexpr const char* name = "FrozenInterestAggregator";
    const Index rows = x.rows(), d = width(), k = interests();
    check_option(name, "step", 0 <= i && i < steps(), "a step that it was made for", static_cast<double>(i));
    check_shape(name, "x", x, any_size, d);
    check_shape(name, "keys", keys, any_size, d);
    check_shape(name, "values", values, keys.rows(), d);
    check_size(name, "users", users, rows);
    for (const Index u : users)
      check_option(name, "users", -1 <= u && (u + 1) * k <= keys.rows(), "-1, or a request there are keys of",
                   static_cast<double>(u));
    check_shape(name, "out", out, rows, d);
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(rows, d), input = ws.matrix<T>(rows, 2 * d);
    const MatrixView<T> hidden = ws.matrix<T>(rows, biases_.cols());
    T* const w = ws.take<T>(k);
    query_.multiply(x, embedded_.row(i), Activation::none, q, ws);
    for (Index r = 0; r < rows; ++r) {
      std::copy_n(x.row(r), d, input.row(r));
      const bool own = users[r] >= 0;
      detail::pool_interests<T>(q.row(r), own ? keys.middle_rows(users[r] * k, k) : null_keys_.view(),
                                own ? values.middle_rows(users[r] * k, k) : null_values_.view(), w, input.row(r) + d);
    }
    first_.multiply(input, biases_.row(i), activation_, hidden, ws);
    last_.forward(hidden, out, ws);
    unit_rows<T>(out, out);
  }

 private:
  FrozenDense<T, S> key_, value_, last_;
  detail::PackedWeight<T, S> query_, first_;
  Matrix<T> embedded_, biases_;  // of each step: what is added to the query, and to the first layer
  Matrix<T> null_keys_, null_values_;
  Activation activation_ = Activation::gelu;
  T root_ = 1;
};

}  // namespace RECOPS_ABI
}  // namespace recops
