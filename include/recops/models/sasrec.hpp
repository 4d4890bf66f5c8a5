/// @file   recops/models/sasrec.hpp
/// @brief  SASRec: the next item from the sequence of those before, by causal self-attention (arXiv 1808.09781).
///
///     h_i = blocks(sqrt(D) E_item(i) + P_position(i))          score of item v after i: <norm(h_i), E_v>
///
/// The baseline sequential recommender. Differs from the paper where later practice does: the transformer blocks are those of
/// nn/transformer_block.hpp with the norm first (the paper normalises the queries only), and training compares the next item with
/// many sampled ones by softmax (arXiv 2309.07602 shows why) instead of with one by binary cross-entropy.
#pragma once
#include <recops/models/next_item.hpp>
#include <recops/nn/transformer_block.hpp>
#include <vector>

namespace recops {

/// Options of `SasRec`; the defaults are the paper's for MovieLens but for the length.
struct SasRecOptions {
  Index items = 0;        ///< V, ids are 0 to V - 1
  Index width = 64;       ///< D
  Index max_length = 50;  ///< longest sequence; keep the last ones of longer histories
  Index blocks = 2;
  Index heads = 1;       ///< divides width
  Index hidden = 0;      ///< of the feed-forward networks; 0: as wide as the model
  double dropout = 0.2;  ///< in training
};

inline namespace RECOPS_ABI {

/// The model with its parameters. Sequences of ids are jagged: `ids [total]`, `offsets [B + 1]`, oldest first.
template <class T>
struct SasRec {
  EmbeddingBag<T> items;             ///< [V, D]
  PositionalEmbedding<T> positions;  ///< [max_length, D]
  Dropout<T> dropout;                ///< of the embedded sequence
  std::vector<TransformerBlock<T>> blocks;
  LayerNorm<T> norm;

  SasRec() = default;
  /// Throws `Error` for options out of range.
  SasRec(const SasRecOptions& o, Random& random) : dropout(o.dropout), norm(checked_size("SasRec", "width", o.width)) {
    check_option("SasRec", "items", o.items >= 1, "one item or more", static_cast<double>(o.items));
    check_option("SasRec", "width", o.width >= 1, "width >= 1", static_cast<double>(o.width));
    check_option("SasRec", "max_length", o.max_length >= 1, "max_length >= 1", static_cast<double>(o.max_length));
    check_option("SasRec", "blocks", o.blocks >= 0, "blocks >= 0", static_cast<double>(o.blocks));
    check_option("SasRec", "hidden", o.hidden >= 0, "hidden >= 0, where 0 is the width", static_cast<double>(o.hidden));
    const double deviation = 1 / std::sqrt(static_cast<double>(o.width));
    items = EmbeddingBag<T>(o.items, o.width, deviation, random);
    positions = PositionalEmbedding<T>(o.max_length, o.width, deviation, random);
    for (Index i = 0; i < o.blocks; ++i)
      blocks.emplace_back(o.width,
                          TransformerBlockOptions{.heads = o.heads,
                                                  .hidden = o.hidden > 0 ? o.hidden : o.width,
                                                  .norm_first = true,
                                                  .causal = true,
                                                  .dropout = o.dropout},
                          random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("items", &SasRec::items), layer("positions", &SasRec::positions), layers("blocks", &SasRec::blocks),
                      layer("norm", &SasRec::norm)};
  }
  Index width() const { return items.weight.values.cols(); }

  /// What backward needs, reused step after step.
  struct Saved {
    std::vector<Matrix<T>> inputs;  ///< of every block, and of the last norm
    typename Dropout<T>::Saved dropout;
    std::vector<typename TransformerBlock<T>::Saved> blocks;
    typename LayerNorm<T>::Saved norm;
  };

  /// State after every item, h `[total, D]`, in serving mode. Throws `Error` for ids and offsets that are none and sequences longer
  /// than max_length.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> h, Workspace& ws) const {
    check_offsets("SasRec", "offsets", offsets, ids.size());
    check_shape("SasRec", "h", h, ids.size(), width());
    check_lengths("SasRec", offsets);  // h may be the first to be written
    const auto mark = ws.mark();
    const MatrixView<T> other = ws.matrix<T>(ids.size(), width());
    MatrixView<T> in = blocks.size() % 2 == 0 ? other : h, out = blocks.size() % 2 == 0 ? h : other;
    embed(ids, offsets, in, ws);
    for (const auto& block : blocks) {
      block.forward(JaggedView<const T>(MatrixView<const T>(in), offsets), out, ws);
      std::swap(in, out);
    }
    norm.forward(in, h, ws);
  }
  /// The same in training mode.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> h, Saved& saved, const Step& step, Workspace& ws) const {
    check_offsets("SasRec", "offsets", offsets, ids.size());
    check_shape("SasRec", "h", h, ids.size(), width());
    saved.inputs.resize(blocks.size() + 1);
    saved.blocks.resize(blocks.size());
    for (auto& input : saved.inputs) input.resize(ids.size(), width());
    embed(ids, offsets, saved.inputs[0], ws);
    dropout.forward(saved.inputs[0], saved.inputs[0], saved.dropout, step.child(0), ws);
    for (std::size_t i = 0; i < blocks.size(); ++i)
      blocks[i].forward(JaggedView<const T>(saved.inputs[i].view(), offsets), saved.inputs[i + 1], saved.blocks[i],
                        step.child(static_cast<Index>(i) + 1), ws);
    norm.forward(saved.inputs.back(), h, saved.norm, step, ws);
  }
  /// Adds to `gradient`, items by rows.
  void backward(IndexView ids, IndexView offsets, MatrixView<const T> dh, const Saved& saved, SasRec& gradient,
                Workspace& ws) const {
    constexpr const char* name = "SasRec::backward";
    check_offsets(name, "offsets", offsets, ids.size());
    check_indices(name, "ids", ids, items.weight.values.rows());
    check_shape(name, "dh", dh, ids.size(), width());
    check_gradient_shapes(name, *this, gradient);
    check_option(name, "saved", saved.inputs.size() == blocks.size() + 1, "what forward of this model saved",
                 static_cast<double>(saved.inputs.size()));
    for (const auto& input : saved.inputs) check_shape(name, "saved", input.view(), ids.size(), width());
    const auto mark = ws.mark();
    const auto zeros = [&] {
      const MatrixView<T> m = ws.matrix<T>(ids.size(), width());
      std::fill_n(m.data(), m.rows() * m.cols(), T(0));
      return m;
    };
    MatrixView<T> d = zeros();
    norm.backward(saved.inputs.back(), dh, saved.norm, d, gradient.norm, ws);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const MatrixView<T> din = zeros();
      blocks[i].backward(JaggedView<const T>(saved.inputs[i].view(), offsets), d, saved.blocks[i], din, gradient.blocks[i], ws);
      d = din;
    }
    const MatrixView<T> dx = zeros();
    Dropout<T> none;
    dropout.backward(d, d, saved.dropout, dx, none, ws);
    positions.backward(JaggedView<const T>(MatrixView<const T>(dx), offsets), dx, {}, {}, gradient.positions, ws);
    const T scale = root();
    for (Index i = 0; i < dx.rows(); ++i) simd::scale(scale, dx.row(i), dx.row(i), dx.cols());
    items.backward(ids, {}, dx, gradient.items, ws);
  }

  /// The state after the last item of every sequence, users `[B, D]`; zeros for an empty one.
  void encode(IndexView ids, IndexView offsets, MatrixView<T> users, Workspace& ws) const {
    check_offsets("SasRec::encode", "offsets", offsets, ids.size());
    check_shape("SasRec::encode", "users", users, offsets.size() - 1, width());
    const auto mark = ws.mark();
    const MatrixView<T> h = ws.matrix<T>(ids.size(), width());
    forward(ids, offsets, h, ws);
    detail::last_states<T>(h, offsets, users);
  }

  /// Mean loss of predicting every item but the first of each sequence from those before it, against the same sampled `negatives
  /// [N]`; adds its gradient. `log_q [N]`, unless empty, corrects for how often each is sampled, in logarithms; the positives are
  /// left as they are. Negatives that are a row's own next item are left out of it.
  double value_and_grad(IndexView ids, IndexView offsets, IndexView negatives, VectorView<const T> log_q, SasRec& gradient,
                        Saved& saved, const Step& step, Workspace& ws) const {
    constexpr const char* name = "SasRec::value_and_grad";
    check_gradient_shapes(name, *this, gradient);
    return next_item_value_and_grad<T>(
        name, items, ids, offsets, negatives, log_q, gradient.items, ws,
        [&](IndexView in, IndexView bounds, MatrixView<T> h) { forward(in, bounds, h, saved, step, ws); },
        [&](IndexView in, IndexView bounds, MatrixView<const T> dh) { backward(in, bounds, dh, saved, gradient, ws); });
  }

 private:
  T root() const { return static_cast<T>(std::sqrt(static_cast<double>(width()))); }
  void check_lengths(const char* name, IndexView offsets) const {
    const Index most = positions.weight.rows();
    for (Index b = 0; b + 1 < offsets.size(); ++b)
      if (offsets[b + 1] - offsets[b] > most) [[unlikely]]
        detail::fail_at(name, "offsets", "sequences of at most max_length rows, ", most, b, offsets[b + 1] - offsets[b]);
  }
  void embed(IndexView ids, IndexView offsets, MatrixView<T> x, Workspace& ws) const {
    detail::embed_sequences(items, positions, ids, offsets, x, ws);
  }
};

/// Serving form of SasRec: user states from sequences; items in the chosen format. Immutable; threads may share it.
template <class T, class S = T>
class FrozenSasRec {
 public:
  explicit FrozenSasRec(const SasRec<T>& model)
      : items_(freeze(model.items, Weights<S>())), positions_(model.positions), norm_(model.norm) {
    for (const auto& block : model.blocks) blocks_.push_back(freeze(block, Weights<S>()));
  }
  Index width() const { return items_.cols(); }
  const FrozenEmbeddingBag<T, S>& items() const { return items_; }

  /// As `SasRec::encode`.
  void encode(IndexView ids, IndexView offsets, MatrixView<T> users, Workspace& ws) const {
    check_offsets("FrozenSasRec::encode", "offsets", offsets, ids.size());
    check_shape("FrozenSasRec::encode", "users", users, offsets.size() - 1, width());
    const auto mark = ws.mark();
    MatrixView<T> in = ws.matrix<T>(ids.size(), width()), out = ws.matrix<T>(ids.size(), width());
    items_.forward(ids, {}, in);
    const auto root = static_cast<T>(std::sqrt(static_cast<double>(width())));
    for (Index i = 0; i < in.rows(); ++i) simd::scale(root, in.row(i), in.row(i), in.cols());
    positions_.forward(JaggedView<const T>(MatrixView<const T>(in), offsets), in, ws);
    for (const auto& block : blocks_) {
      block.forward(JaggedView<const T>(MatrixView<const T>(in), offsets), out, ws);
      std::swap(in, out);
    }
    for (Index b = 0; b < users.rows(); ++b) {
      if (offsets[b] == offsets[b + 1]) {
        std::fill_n(users.row(b), users.cols(), T(0));
      } else {
        norm_.forward(MatrixView<const T>(in).middle_rows(offsets[b + 1] - 1, 1), users.middle_rows(b, 1), ws);
      }
    }
  }

 private:
  FrozenEmbeddingBag<T, S> items_;
  PositionalEmbedding<T> positions_;
  std::vector<decltype(freeze(std::declval<const TransformerBlock<T>&>(), Weights<S>()))> blocks_;
  LayerNorm<T> norm_;
};
template <class T, class S = T>
FrozenSasRec<T, S> freeze(const SasRec<T>& model, Weights<S> = {}) {
  return FrozenSasRec<T, S>(model);
}

}  // namespace RECOPS_ABI
}  // namespace recops
