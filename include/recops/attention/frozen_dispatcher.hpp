/// @file   recops/attention/frozen_dispatcher.hpp
/// @brief  Dispatcher attention for serving: projections packed, in float, bfloat16 or int8; a causal layer takes one token more from a
///         state of fixed size (`extend`).
///
/// Shapes, edge cases and errors as in attention/dispatcher_layer.hpp.
#pragma once
#include <recops/attention/dispatcher_layer.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// What the experts of one sequence have read so far in one causal layer. Of fixed size; one state belongs to one call at a time.
template <class T>
struct DispatcherState {
  Matrix<T> mean;      ///< [k H, 2 D]
  Vector<T> top, sum;  ///< [k H], padded
  Index length = 0;    ///< tokens read; 0 to begin anew
};

/// Serving form: projections packed, those of a causal layer multiplied out. Immutable; threads may share it.
template <class T, class S = T>
class FrozenDispatcherAttention {
 public:
  FrozenDispatcherAttention() = default;
  explicit FrozenDispatcherAttention(const DispatcherAttention<T>& layer)
      : heads_(layer.heads()), width_(layer.width()), form_(layer.form), causal_(layer.causal) {
    layer.check_parameters("freeze(DispatcherAttention)");
    if (causal_) {
      pack_causal(layer);
      return;
    }
    aggregate_ = freeze(layer.aggregate, Weights<S>());
    const auto [weight, bias] = detail::attention_weights<const T>(layer.dispatch);
    const Index d = width_ / heads_;
    queries_ = FrozenDense<T, S>(weight[0], bias[0], Activation::none);
    keys_ = FrozenDense<T, S>(weight[1], bias[1], Activation::none);
    values_ = FrozenDense<T, S>(weight[2], bias[2], Activation::none);
    out_ = freeze(layer.dispatch.out_proj, Weights<S>());
    Matrix<T> part(width_, d);
    const VectorView<const T> none;
    for (Index a = 0; a < heads_; ++a) {
      for (Index i = 0; i < d; ++i)
        for (Index j = 0; j < width_; ++j) part(j, i) = weight[0](a * d + i, j);
      fold_queries_.emplace_back(std::as_const(part).view(), none, Activation::none);
      fold_out_.emplace_back(layer.dispatch.out_proj.weight.view().middle_cols(a * d, d), none, Activation::none);
    }
    query_bias_.resize(bias[0].size());
    std::copy(bias[0].begin(), bias[0].end(), query_bias_.begin());
    out_bias_ = layer.dispatch.out_proj.bias;
  }
  Index width() const { return width_; }
  /// As `DispatcherAttention::forward`.
  void forward(JaggedView<const T> x, MatrixView<const T> experts, VectorView<const std::uint8_t> mask, MatrixView<T> y,
               MatrixView<T> next, Workspace& ws) const {
    constexpr const char* name = "FrozenDispatcherAttention";
    detail::check_dispatcher(name, width_, heads_, x, experts, mask, "y", y);
    if (!next.empty()) {
      check_option(name, "next experts", !causal_, "none where causal: they have read the whole sequence",
                   static_cast<double>(next.rows()));
      check_shape(name, "next experts", next, experts.rows(), width_);
    }
    if (x.size() == 0) return;
    const auto mark = ws.mark();
    if (causal_) {
      const Causal c = causal_inputs(x, experts, ws);
      causal_dispatch<T>(x.with_values(MatrixView<const T>(c.q)), c.logits, c.mixed, constant_, {.heads = heads_, .mask = mask},
                         c.attended, {}, ws);
      out_.forward(c.attended, y, ws);
      for (Index i = 0; !mask.empty() && i < y.rows(); ++i)
        if (mask[i] == 0) std::fill_n(y.row(i), width_, T(0));
      return;
    }
    const bool folded = detail::folds(form_, x, experts.rows(), heads_, width_);
    const MatrixView<T> p = next.empty() ? ws.matrix<T>(experts.rows(), width_) : next;
    const IndexView offsets = detail::even_offsets(x.size(), experts.rows() / x.size(), ws);
    aggregate_.forward(JaggedView<const T>(experts, offsets), x, x, mask, p, ws,
                       folded ? AttentionForm::absorbed : AttentionForm::projected);
    detail::dispatch_tokens<T>(Projections{*this}, x, p, heads_, folded, mask, y, ws);
  }

  /// Of a causal layer: y `[n, D]` is what a forward of the sequence with the rows x `[n, D]` behind it would give for them, in O(n k),
  /// whatever the sequence was. `experts` `[k, D]` are those of the user, the same in every call; `state` begins with length 0.
  void extend(MatrixView<const T> x, MatrixView<const T> experts, DispatcherState<T>& state, MatrixView<T> y,
              Workspace& ws) const {
    constexpr const char* name = "FrozenDispatcherAttention::extend";
    check_option(name, "layer", causal_, "a causal one", 0);
    const JaggedView<const T> rows(x);
    detail::check_dispatcher<T>(name, width_, heads_, rows, experts, {}, "y", y);
    const Index k = experts.rows(), padded = detail::CausalState<T>::padded_count(k, heads_);
    if (state.length == 0) {
      state.mean.resize(k * heads_, 2 * width_);
      state.top.resize(padded);
      state.sum.resize(padded);
    }
    check_shape(name, "state.mean", state.mean.view(), k * heads_, 2 * width_);
    check_size(name, "state.top", VectorView<const T>(state.top), padded);
    check_size(name, "state.sum", VectorView<const T>(state.sum), padded);
    const auto mark = ws.mark();
    const Causal c = causal_inputs(rows, experts, ws);
    detail::CausalState<T> means(k, heads_, 2 * width_, state.mean.data(), state.top.data(), state.sum.data(), ws);
    if (state.length == 0) means.clear();
    detail::CausalRead<T> reader(k, heads_, width_, 0, ws);
    detail::causal_rows<T>(means, reader, 0, x.rows(), c.q, c.logits, c.mixed, constant_.data(), {}, c.attended, {},
                           ws.take<T>(k * 2 * width_));
    state.length += x.rows();
    out_.forward(c.attended, y, ws);
  }

 private:
  struct Causal {
    MatrixView<T> q, logits, mixed, attended;
  };
  void pack_causal(const DispatcherAttention<T>& layer) {
    const auto [weight, bias] = detail::attention_weights<const T>(layer.aggregate);
    const Index d = width_ / heads_;
    Matrix<T> mixing;
    layer.mixing(mixing, constant_);
    mixing_ = FrozenDense<T, S>(std::as_const(mixing).view(), VectorView<const T>(), Activation::none);
    expert_queries_ = FrozenDense<T, S>(weight[0], bias[0], Activation::none);
    const auto second = detail::attention_weights<const T>(layer.dispatch);
    queries_ = FrozenDense<T, S>(second.weight[0], second.bias[0], Activation::none);
    out_ = freeze(layer.dispatch.out_proj, Weights<S>());
    Matrix<T> part(width_, d);
    for (Index a = 0; a < heads_; ++a) {
      for (Index i = 0; i < d; ++i)
        for (Index j = 0; j < width_; ++j) part(j, i) = weight[1](a * d + i, j);
      to_keys_.emplace_back(std::as_const(part).view(), VectorView<const T>(), Activation::none);
    }
  }
  Causal causal_inputs(JaggedView<const T> x, MatrixView<const T> experts, Workspace& ws) const {
    const Index total = x.values().rows(), n = experts.rows(), d = width_ / heads_,
                count = x.size() > 0 ? n / x.size() * heads_ : 0;
    const Causal c{ws.matrix<T>(total, width_), ws.matrix<T>(total, count), ws.matrix<T>(total, heads_ * 2 * width_),
                   ws.matrix<T>(total, width_)};
    const MatrixView<T> q = ws.matrix<T>(n, width_), wide = ws.matrix<T>(n * heads_, width_);
    expert_queries_.forward(experts, q, ws);
    for (Index a = 0; a < heads_; ++a)
      to_keys_[static_cast<std::size_t>(a)].forward(MatrixView<const T>(q).middle_cols(a * d, d),
                                                    MatrixView<T>(wide.data() + a * width_, n, width_, heads_ * width_), ws);
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(d)));
    simd::scale<T>(scale, wide.data(), wide.data(), n * heads_ * width_);
    queries_.forward(x.values(), c.q, ws);
    mixing_.forward(x.values(), c.mixed, ws);
    for (Index b = 0; b < x.size(); ++b)
      simd::gemm<T>(simd::plain(x.values().middle_rows(x.begin(b), x.length(b))),
                    simd::transposed(MatrixView<const T>(wide).middle_rows(b * count, count)), {},
                    c.logits.middle_rows(x.begin(b), x.length(b)), ws);
    return c;
  }
  struct Projections {
    const FrozenDispatcherAttention& layer;
    void queries(MatrixView<const T> x, MatrixView<T> q, Workspace& ws) const { layer.queries_.forward(x, q, ws); }
    void keys(MatrixView<const T> p, MatrixView<T> k, Workspace& ws) const { layer.keys_.forward(p, k, ws); }
    void values(MatrixView<const T> p, MatrixView<T> v, Workspace& ws) const { layer.values_.forward(p, v, ws); }
    void out(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { layer.out_.forward(x, y, ws); }
    void fold_queries(Index a, MatrixView<const T> k, MatrixView<T> to, Workspace& ws) const {
      layer.fold_queries_[static_cast<std::size_t>(a)].forward(k, to, ws);
    }
    void fold_out(Index a, MatrixView<const T> v, MatrixView<T> to, Workspace& ws) const {
      layer.fold_out_[static_cast<std::size_t>(a)].forward(v, to, ws);
    }
    VectorView<const T> query_bias() const { return layer.query_bias_; }
    VectorView<const T> out_bias() const { return layer.out_bias_; }
  };
  FrozenMultiheadAttention<T, S> aggregate_;
  FrozenDense<T, S> queries_, keys_, values_, out_;
  std::vector<FrozenDense<T, S>> fold_queries_, fold_out_;  // per head: Wq_a as [D, d], Wo_a as [D, d]
  Vector<T> query_bias_, out_bias_;
  FrozenDense<T, S> expert_queries_, mixing_;  // causal
  std::vector<FrozenDense<T, S>> to_keys_;
  Vector<T> constant_;
  Index heads_ = 1, width_ = 0;
  DispatcherForm form_ = DispatcherForm::cheapest;
  bool causal_ = false;
};
template <class T, class S = T>
FrozenDispatcherAttention<T, S> freeze(const DispatcherAttention<T>& layer, Weights<S> = {}) {
  return FrozenDispatcherAttention<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
