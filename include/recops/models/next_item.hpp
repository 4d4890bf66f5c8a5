/// @file   recops/models/next_item.hpp
/// @brief  Recommending the next item of a sequence with any causal sequence layer, and the loss such models share.
///
///     x_i = sqrt(D) E_item(i) + P_position(i)      h = body(x)      score of item v after i: <h_i, E_v>
///
/// The body is a layer of sequences `[total, D]` to `[total, D]` (`SequenceLayer` in nn/layer.hpp): a stack of dispatcher blocks
/// (models/elastic.hpp), a `Sequential` of HSTU layers, one of yours. Where its row i depends on rows behind it, set `last_only`.
#pragma once
#include <recops/nn/dropout.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/positional_embedding.hpp>
#include <recops/nn/softmax_cross_entropy.hpp>
#include <recops/simd/gemm.hpp>

namespace recops {

/// Options of `NextItemModel`.
struct NextItemOptions {
  Index items = 0;         ///< V, ids are 0 to V - 1
  Index width = 64;        ///< D
  Index max_length = 50;   ///< longest sequence; keep the last ones of longer histories
  double dropout = 0.2;    ///< of the embedded sequence, in training
  bool last_only = false;  ///< the body looks ahead: training predicts the last item of each sequence alone
};

inline namespace RECOPS_ABI {

namespace detail {

/// x_i = sqrt(D) E_item(i) + P_position(i)
template <class T>
void embed_sequences(const EmbeddingBag<T>& items, const PositionalEmbedding<T>& positions, IndexView ids, IndexView offsets,
                     MatrixView<T> x, Workspace& ws) {
  items.forward(ids, {}, x);
  const T root = static_cast<T>(std::sqrt(static_cast<double>(x.cols())));
  for (Index i = 0; i < x.rows(); ++i) simd::scale(root, x.row(i), x.row(i), x.cols());
  positions.forward(JaggedView<const T>(MatrixView<const T>(x), offsets), x, ws);
}

/// users `[B, D]`: the last row of every sequence of h, zeros for an empty one.
template <class T>
void last_states(MatrixView<const T> h, IndexView offsets, MatrixView<T> users) {
  for (Index b = 0; b < users.rows(); ++b) {
    if (offsets[b] == offsets[b + 1]) {
      std::fill_n(users.row(b), users.cols(), T(0));
    } else {
      std::copy_n(h.row(offsets[b + 1] - 1), users.cols(), users.row(b));
    }
  }
}

}  // namespace detail

/// Mean loss of predicting every item but the first of each sequence from those before it, against the same sampled `negatives [N]` by
/// softmax (arXiv 2309.07602); adds its gradient. `log_q [N]`, unless empty, corrects for how often each is sampled, in logarithms; the
/// positives are left as they are. Negatives that are a row's own next item are left out of it. `forward(ids, offsets, h)` and
/// `backward(ids, offsets, dh)` are the model's, called with all items but the last of each sequence. `last_only`: the last item of
/// each sequence alone is predicted, which is what is left for a model that looks ahead.
template <class T, class Forward, class Backward>
double next_item_value_and_grad(const char* name, const EmbeddingBag<T>& items, IndexView ids, IndexView offsets,
                                IndexView negatives, VectorView<const T> log_q, EmbeddingBag<T>& gradient, Workspace& ws,
                                Forward&& forward, Backward&& backward, bool last_only = false) {
  check_offsets(name, "offsets", offsets, ids.size());
  check_indices(name, "ids", ids, items.weight.values.rows());
  check_indices(name, "negatives", negatives, items.weight.values.rows());
  if (!log_q.empty()) check_size(name, "log_q", log_q, negatives.size());
  const auto mark = ws.mark();
  const Index sequences = offsets.size() - 1, count = negatives.size(), d = items.weight.values.cols();
  // Inputs are all items but the last of each sequence, targets all but the first.
  auto* const bounds = ws.take<std::int64_t>(sequences + 1);
  auto* const inputs = ws.take<std::int64_t>(ids.size());
  auto* const targets = ws.take<std::int64_t>(ids.size());
  auto* const rows = ws.take<Index>(ids.size());  // that predict
  Index total = 0, predicted = 0;
  bounds[0] = 0;
  for (Index b = 0; b < sequences; ++b) {
    for (Index i = offsets[b]; i + 1 < offsets[b + 1]; ++i, ++total) {
      inputs[total] = ids[i];
      if (last_only && i + 2 < offsets[b + 1]) continue;
      rows[predicted] = total;
      targets[predicted++] = ids[i + 1];
    }
    bounds[b + 1] = total;
  }
  const IndexView in(inputs, total), next(targets, predicted), in_offsets(bounds, sequences + 1);
  const MatrixView<T> all = ws.matrix<T>(total, d), dall = ws.matrix<T>(total, d);
  const MatrixView<T> h = last_only ? ws.matrix<T>(predicted, d) : all, dh = last_only ? ws.matrix<T>(predicted, d) : dall;
  const MatrixView<T> sampled = ws.matrix<T>(count, d), dsampled = ws.matrix<T>(count, d);
  const MatrixView<T> z = ws.matrix<T>(predicted, count), dz = ws.matrix<T>(predicted, count);
  const VectorView<T> positive(ws.take<T>(predicted), predicted), dpositive(ws.take<T>(predicted), predicted);
  for (const MatrixView<T>& m : {dall, dh, dsampled, dz}) std::fill_n(m.data(), m.rows() * m.cols(), T(0));
  std::fill(dpositive.begin(), dpositive.end(), T(0));

  forward(in, in_offsets, all);
  for (Index i = 0; last_only && i < predicted; ++i) std::copy_n(all.row(rows[i]), d, h.row(i));
  items.forward(negatives, {}, sampled);
  simd::gemm<T>(simd::plain(h), simd::transposed(sampled), {}, z, ws);
  for (Index i = 0; i < predicted; ++i) positive[i] = simd::dot(h.row(i), items.weight.values.row(targets[i]), d);
  const double loss = sampled_softmax_cross_entropy_value_and_grad<T>(
      positive, z, {.log_q_negative = log_q, .positive_ids = next, .negative_ids = negatives}, dpositive, dz, ws);

  simd::gemm<T>(simd::plain(dz), simd::plain(sampled), {.accumulate = true}, dh, ws);
  simd::gemm<T>(simd::transposed(dz), simd::plain(h), {.accumulate = true}, dsampled, ws);
  for (Index i = 0; i < predicted; ++i) {
    simd::axpy(dpositive[i], items.weight.values.row(targets[i]), dh.row(i), d);
    simd::scale(dpositive[i], h.row(i), h.row(i), d);  // h is not needed again: now the gradient of the target's row
  }
  items.backward(next, {}, h, gradient, ws);
  items.backward(negatives, {}, dsampled, gradient, ws);
  for (Index i = 0; last_only && i < predicted; ++i) std::copy_n(dh.row(i), d, dall.row(rows[i]));
  backward(in, in_offsets, dall);
  return loss;
}

/// Embedding, positions, dropout and a body. Sequences of ids are jagged: `ids [total]`, `offsets [B + 1]`, oldest first.
template <class T, class Body>
struct NextItemModel {
  EmbeddingBag<T> items;             ///< [V, D]
  PositionalEmbedding<T> positions;  ///< [max_length, D]
  Dropout<T> dropout;
  Body body;
  bool last_only = false;  ///< training predicts the last item of each sequence alone

  NextItemModel() = default;
  /// Throws `Error` for options out of range or a body of another width.
  NextItemModel(const NextItemOptions& o, Body b, Random& random)
      : dropout(o.dropout), body(std::move(b)), last_only(o.last_only) {
    constexpr const char* name = "NextItemModel";
    check_option(name, "items", o.items >= 1, "one item or more", static_cast<double>(o.items));
    check_option(name, "width", o.width >= 1 && body.output_cols(o.width) == o.width, "the body's width",
                 static_cast<double>(o.width));
    check_option(name, "max_length", o.max_length >= 1, "max_length >= 1", static_cast<double>(o.max_length));
    const double deviation = 1 / std::sqrt(static_cast<double>(o.width));
    items = EmbeddingBag<T>(o.items, o.width, deviation, random);
    positions = PositionalEmbedding<T>(o.max_length, o.width, deviation, random);
  }
  static constexpr auto fields() {
    return std::tuple{layer("items", &NextItemModel::items), layer("positions", &NextItemModel::positions),
                      layer("body", &NextItemModel::body)};
  }
  /// D
  Index width() const { return items.weight.values.cols(); }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> input;  ///< of the body
    typename Dropout<T>::Saved dropout;
    typename Body::Saved body;
  };
  /// State after every item, h `[total, D]`, in serving mode. Throws `Error` for ids and offsets that are none and sequences longer than
  /// max_length.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> h, Workspace& ws) const {
    check("NextItemModel", ids, offsets, h);
    const auto mark = ws.mark();
    const MatrixView<T> x = ws.matrix<T>(ids.size(), width());
    embed(ids, offsets, x, ws);
    body.forward(JaggedView<const T>(MatrixView<const T>(x), offsets), h, ws);
  }
  /// The same in training mode.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> h, Saved& saved, const Step& step, Workspace& ws) const {
    check("NextItemModel", ids, offsets, h);
    saved.input.resize(ids.size(), width());
    embed(ids, offsets, saved.input, ws);
    dropout.forward(saved.input, saved.input, saved.dropout, step.child(0), ws);
    body.forward(JaggedView<const T>(saved.input.view(), offsets), h, saved.body, step.child(1), ws);
  }
  /// Adds to `gradient`, items by rows.
  void backward(IndexView ids, IndexView offsets, MatrixView<const T> dh, const Saved& saved, NextItemModel& gradient,
                Workspace& ws) const {
    constexpr const char* name = "NextItemModel::backward";
    check(name, ids, offsets, dh);
    check_shape(name, "saved", saved.input.view(), ids.size(), width());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> d = ws.matrix<T>(ids.size(), width()), dx = ws.matrix<T>(ids.size(), width());
    for (const MatrixView<T>& m : {d, dx}) std::fill_n(m.data(), m.rows() * m.cols(), T(0));
    body.backward(JaggedView<const T>(saved.input.view(), offsets), dh, saved.body, d, gradient.body, ws);
    Dropout<T> none;
    dropout.backward(d, d, saved.dropout, dx, none, ws);
    positions.backward(JaggedView<const T>(MatrixView<const T>(dx), offsets), dx, {}, {}, gradient.positions, ws);
    for (Index i = 0; i < dx.rows(); ++i) simd::scale(root(), dx.row(i), dx.row(i), dx.cols());
    items.backward(ids, {}, dx, gradient.items, ws);
  }
  /// The state after the last item of every sequence, users `[B, D]`; zeros for an empty one.
  void encode(IndexView ids, IndexView offsets, MatrixView<T> users, Workspace& ws) const {
    check_offsets("NextItemModel::encode", "offsets", offsets, ids.size());
    check_shape("NextItemModel::encode", "users", users, offsets.size() - 1, width());
    const auto mark = ws.mark();
    const MatrixView<T> h = ws.matrix<T>(ids.size(), width());
    forward(ids, offsets, h, ws);
    detail::last_states<T>(h, offsets, users);
  }
  /// As `next_item_value_and_grad`.
  double value_and_grad(IndexView ids, IndexView offsets, IndexView negatives, VectorView<const T> log_q, NextItemModel& gradient,
                        Saved& saved, const Step& step, Workspace& ws) const {
    constexpr const char* name = "NextItemModel::value_and_grad";
    check_gradient_shapes(name, *this, gradient);
    return next_item_value_and_grad<T>(
        name, items, ids, offsets, negatives, log_q, gradient.items, ws,
        [&](IndexView in, IndexView bounds, MatrixView<T> h) { forward(in, bounds, h, saved, step, ws); },
        [&](IndexView in, IndexView bounds, MatrixView<const T> dh) { backward(in, bounds, dh, saved, gradient, ws); },
        last_only);
  }

 private:
  T root() const { return static_cast<T>(std::sqrt(static_cast<double>(width()))); }
  template <class Y>
  void check(const char* name, IndexView ids, IndexView offsets, MatrixView<Y> h) const {
    check_offsets(name, "offsets", offsets, ids.size());
    check_indices(name, "ids", ids, items.weight.values.rows());
    const Index most = positions.weight.rows();
    for (Index b = 0; b + 1 < offsets.size(); ++b)
      if (offsets[b + 1] - offsets[b] > most) [[unlikely]]
        detail::fail_at(name, "offsets", "sequences of at most max_length rows, ", most, b, offsets[b + 1] - offsets[b]);
    check_shape(name, "h", h, ids.size(), width());
  }
  void embed(IndexView ids, IndexView offsets, MatrixView<T> x, Workspace& ws) const {
    detail::embed_sequences(items, positions, ids, offsets, x, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
