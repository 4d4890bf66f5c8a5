/// @file   recops/attention/din.hpp
/// @brief  DIN's activation unit: a small network weighs each behaviour for each candidate, and the weighted behaviours are summed.
///
///     a_nj  = MLP([q_n, e_j, q_n - e_j, q_n * e_j])                      hidden layers with a learned activation, one number out
///     out_n = sum_j w_nj e_j                                            w = a (the paper: how much there is of an interest counts)
///                                                                       or softmax_j(a / sqrt(d)) (the authors' released code)
///
/// The first layer never sees the concatenation: split by its columns into A, B, C, D,
///
///     s_nj = (B - C + D diag(q_n)) e_j + ((A + C) q_n + b)
///
/// which is exact and a quarter of the flops; its backward is two products a candidate. See docs/din.md.
///
/// Shapes      candidates [total_N, d]   history [total_L, d]   out [total_N, d]; users in the same order; pairs are sum_b N_b L_b
/// Edge cases  No behaviours: zeros.   Training with Dice needs two pairs or more.   A behaviour given twice counts twice (softmax: the
///             history given twice changes nothing).
/// NaN         stays with its candidate, or the candidates of its user; in Dice's training statistics it spreads over the batch.
/// Cost        serving 2 (d h1 + h1 h2 + h2 + d) flops a pair; scratch of a few hundred pairs a thread. Training keeps the hidden layers
///             of all pairs. Backward costs twice forward. Same bits for any number of threads.
/// Errors      Error if shapes or parameters do not fit; outputs untouched.
/// Source      Zhou et al., arXiv 1706.06978, sections 4.3 and 5.3; order of the concatenation as in the authors' code.
#pragma once
#include <recops/attention/pair_layer.hpp>
#include <recops/nn/activation.hpp>
#include <recops/nn/linear.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// How the scores of a history become weights.
enum class DinWeights : unsigned char {
  plain,   ///< they are the weights: the paper
  softmax  ///< softmax(score / sqrt(d)) over the behaviours: the authors' released code
};

inline namespace RECOPS_ABI {

namespace detail {

/// W_e = B - C and W_q = A + C `[h, d]`, from weight `[h, 4 d]`.
template <class T>
void din_parts(MatrixView<const T> weight, MatrixView<T> behaviour, MatrixView<T> candidate) {
  const Index d = weight.cols() / 4;
  for (Index r = 0; r < weight.rows(); ++r) {
    const T* const w = weight.row(r);
    T *const e = behaviour.row(r), *const q = candidate.row(r);
    simd::for_each_vector<T, simd::DefaultArch>(d, [&](Index c, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const auto difference = load(w + 2 * d + c);
      store(e + c, load(w + d + c) - difference);
      store(q + c, load(w + c) + difference);
    });
  }
}

/// The unit as serving reads it: everything packed.
template <class T>
struct DinPanels {
  PairPanels<T> first;
  const T *candidate, *bias;  // W_q^T packed, [h1] or null
  struct Hidden {
    const T *panels, *bias;  // bias may be null
    Index out;
  };
  const Hidden* hidden;  // the layers after the first, the last has one output
  Index count;
};

/// scores, weights, sums. `activate(layer, z, scratch)` works in place; `fused(layer)` is what the product applies by itself.
template <class T, class Fused, class Activate>
void din_forward(const DinPanels<T>& w, DinWeights weights, JaggedView<const T> candidates, JaggedView<const T> history,
                 MatrixView<T> out, Workspace& ws, Fused&& fused, Activate&& activate) {
  const auto mark = ws.mark();
  const Index d = candidates.cols(), h = w.first.out;
  const PairIndex pairs = pair_index(candidates, history, ws);
  const MatrixView<T> u = ws.matrix<T>(pairs.candidates, h);
  simd::gemm_packed<T>(simd::plain(candidates.values()), w.candidate, h, {.bias = w.bias}, u, ws);
  ws.parallel_for(pairs.candidates, [&](Index i, Workspace& scratch) {
    const auto own = scratch.mark();
    const MatrixView<const T> e = history[pairs.user[i]];
    const Index length = e.rows();
    T *const a = scratch.take<T>(length), *const mixed = scratch.take<T>(simd::packed_size<T>(d, h));
    mix_panels(w.first, candidates.values().row(i), mixed);
    for (Index at = 0; at < length; at += pair_block<T>) {
      const auto block = scratch.mark();
      const Index count = std::min(pair_block<T>, length - at);
      MatrixView<T> z = scratch.matrix<T>(count, h);
      pair_rows<T>(e.middle_rows(at, count), mixed, u.row(i), fused(Index{0}), z, scratch);
      activate(Index{0}, z, scratch);
      for (Index k = 0; k < w.count; ++k) {
        const auto& layer = w.hidden[k];
        const bool last = k + 1 == w.count;
        const MatrixView<T> next = last ? MatrixView<T>(a + at, count, 1) : scratch.matrix<T>(count, layer.out);
        if (last) {  // one output: inner products
          simd::gemm<T>(simd::plain(MatrixView<const T>(z)), {layer.panels, z.cols(), 1, 1, z.cols()}, {.bias = layer.bias}, next,
                        scratch);
        } else {
          simd::gemm_packed<T>(simd::plain(MatrixView<const T>(z)), layer.panels, layer.out,
                               {.bias = layer.bias, .activation = fused(k + 1)}, next, scratch);
          activate(k + 1, next, scratch);
        }
        z = next;
      }
    }
    if (weights == DinWeights::softmax) {
      simd::scale<T>(static_cast<T>(1 / std::sqrt(static_cast<double>(d))), a, a, length);
      simd::softmax<T>(a, a, length);
    }
    pool_pairs<T>(a, e, out.row(i), scratch);
  });
}

template <class Hidden>
inline constexpr bool fuses_activation = false;
template <class T>
inline constexpr bool fuses_activation<Activate<T>> = true;

}  // namespace detail

/// s `[pairs, h]` = weight [q_n, e_j, q_n - e_j, q_n * e_j] + bias of all pairs, user by user, candidate by candidate, behaviours in
/// order; weight `[h, 4 d]`, bias `[h]` or empty. The first layer alone, e.g. before a batch norm of one's own.
template <Real T>
void din_first_layer(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> weight,
                     VectorView<const T> bias, MatrixView<T> s, Workspace& ws) {
  constexpr const char* name = "din_first_layer";
  check_shape(name, "weight", weight, any_size, any_size);
  check_option(name, "weight", weight.cols() % 4 == 0 && weight.cols() > 0, "4 d columns", static_cast<double>(weight.cols()));
  const Index h = weight.rows(), d = weight.cols() / 4;
  detail::check_pairs<T>(name, candidates, history, d, d);
  if (!bias.empty()) check_size(name, "bias", bias, h);
  check_shape(name, "s", s, detail::pair_count(candidates, history), h);
  if (s.empty()) return;
  const auto mark = ws.mark();
  const detail::PairIndex pairs = detail::pair_index(candidates, history, ws);
  const MatrixView<T> behaviour = ws.matrix<T>(h, d), candidate = ws.matrix<T>(h, d), u = ws.matrix<T>(pairs.candidates, h);
  detail::din_parts<T>(weight, behaviour, candidate);
  T *const base = ws.take<T>(simd::packed_size<T>(d, h)), *const product = ws.take<T>(simd::packed_size<T>(d, h));
  simd::pack<T>(simd::transposed(MatrixView<const T>(behaviour)), base);
  simd::pack<T>(simd::transposed(weight.middle_cols(3 * d, d)), product);
  linear<T>(candidates.values(), candidate, bias, u, ws);
  detail::pair_layer<T>(pairs, candidates, history, {base, product, d, h}, u, s, ws);
}

/// Adds to the gradients of candidates, history, weight and bias (empty: not wanted), given that of `s`.
template <Real T>
void din_first_layer_backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> weight,
                              MatrixView<const T> ds, MatrixView<T> dcandidates, MatrixView<T> dhistory, MatrixView<T> dweight,
                              VectorView<T> dbias, Workspace& ws) {
  constexpr const char* name = "din_first_layer_backward";
  check_shape(name, "weight", weight, any_size, any_size);
  check_option(name, "weight", weight.cols() % 4 == 0 && weight.cols() > 0, "4 d columns", static_cast<double>(weight.cols()));
  const Index h = weight.rows(), d = weight.cols() / 4;
  detail::check_pairs<T>(name, candidates, history, d, d);
  check_shape(name, "ds", ds, detail::pair_count(candidates, history), h);
  if (!dcandidates.empty()) check_shape(name, "dcandidates", dcandidates, candidates.values().rows(), d);
  if (!dhistory.empty()) check_shape(name, "dhistory", dhistory, history.values().rows(), d);
  if (!dweight.empty()) check_shape(name, "dweight", dweight, h, 4 * d);
  if (!dbias.empty()) check_size(name, "dbias", dbias, h);
  if (ds.empty()) return;
  const auto mark = ws.mark();
  const detail::PairIndex pairs = detail::pair_index(candidates, history, ws);
  const MatrixView<T> behaviour = ws.matrix<T>(h, d), candidate = ws.matrix<T>(h, d), du = ws.matrix<T>(pairs.candidates, h);
  detail::din_parts<T>(weight, behaviour, candidate);
  detail::PairGradients<T> g{dcandidates, dhistory, {}, {}, du};
  const auto zeros = [&](MatrixView<T> m) {
    std::fill_n(m.data(), h * d, T(0));
    return m;
  };
  if (!dweight.empty()) {
    g.dbase = zeros(ws.matrix<T>(h, d));
    g.dproduct = dweight.middle_cols(3 * d, d);
  }
  detail::pair_layer_backward<T>(pairs, candidates, history, behaviour, weight.middle_cols(3 * d, d), ds, g, ws);
  const MatrixView<T> dcandidate = dweight.empty() ? dweight : zeros(ws.matrix<T>(h, d));
  linear_backward<T>(candidates.values(), candidate, du, dcandidates, dcandidate, dbias, ws);
  for (Index r = 0; r < h && !dweight.empty(); ++r) {
    const T *const e = g.dbase.row(r), *const q = dcandidate.row(r);
    T* const w = dweight.row(r);
    for (Index c = 0; c < d; ++c) {
      w[c] += q[c];
      w[d + c] += e[c];
      w[2 * d + c] += q[c] - e[c];
    }
  }
}

template <Real T, class Hidden>
class FrozenDin;

/// The activation unit. `Hidden` is the layer between linears: `Dice<T>` and `PRelu<T>` of the paper, or `Activate<T>` for a fixed one
/// (sigmoid in the authors' code). Layers are named as in two `torch.nn.ModuleList`s.
template <Real T, class Hidden = PRelu<T>>
struct Din {
  std::vector<Linear<T>> linears;   ///< [h1, 4 d], [h2, h1], ... [1, h]
  std::vector<Hidden> activations;  ///< one after each linear but the last
  DinWeights weights = DinWeights::plain;

  Din() = default;
  /// `hidden` are the widths, {80, 40} in the authors' code; a `Hidden` that has a width of its own is made for each.
  Din(Index width, std::initializer_list<Index> hidden, Random& random, const Hidden& activation = {}) {
    Index in = 4 * checked_size("Din", "width", width);
    for (const Index out : hidden) {
      linears.emplace_back(in, checked_size("Din", "hidden", out), random);
      if constexpr (std::is_constructible_v<Hidden, Index> && !detail::fuses_activation<Hidden>) {
        activations.emplace_back(out);
      } else {
        activations.push_back(activation);
      }
      in = out;
    }
    linears.emplace_back(in, Index{1}, random);
    check_parameters("Din");
  }

  static constexpr auto fields() {
    return std::tuple{layers("linears", &Din::linears), layers("activations", &Din::activations)};
  }
  Index width() const { return linears.empty() ? 0 : linears[0].weight.cols() / 4; }

  /// What training keeps: before and after each activation, for all pairs.
  struct Saved {
    std::vector<Matrix<T>> before, after;
    std::vector<typename Hidden::Saved> activations;
    Vector<T> weights;  ///< [pairs]
  };

  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Workspace& ws) const {
    check("Din", candidates, history, y);
    const auto mark = ws.mark();
    const Index d = width(), h = linears[0].weight.rows(), count = static_cast<Index>(linears.size()) - 1;
    const MatrixView<const T> weight = linears[0].weight;
    const auto packed = [&](MatrixView<const T> w) {
      T* const panels = ws.take<T>(simd::packed_size<T>(w.cols(), w.rows()));
      simd::pack<T>(simd::transposed(w), panels);
      return panels;
    };
    const MatrixView<T> behaviour = ws.matrix<T>(h, d), candidate = ws.matrix<T>(h, d);
    detail::din_parts<T>(weight, behaviour, candidate);
    auto* const hidden = ws.take<typename detail::DinPanels<T>::Hidden>(count);
    for (Index k = 0; k < count; ++k) {
      const Linear<T>& l = linears[static_cast<std::size_t>(k + 1)];
      hidden[k] = {k + 1 == count ? l.weight.data() : packed(l.weight), l.bias.empty() ? nullptr : l.bias.data(),
                   l.weight.rows()};
    }
    const detail::DinPanels<T> panels{{packed(behaviour), packed(weight.middle_cols(3 * d, d)), d, h},
                                      packed(candidate),
                                      linears[0].bias.empty() ? nullptr : linears[0].bias.data(),
                                      hidden,
                                      count};
    detail::din_forward<T>(
        panels, weights, candidates, history, y, ws,
        [&](Index k) {
          if constexpr (detail::fuses_activation<Hidden>) return activations[static_cast<std::size_t>(k)].activation;
          return Activation::none;
        },
        [&](Index k, MatrixView<T> z, Workspace& scratch) {
          if constexpr (!detail::fuses_activation<Hidden>) activations[static_cast<std::size_t>(k)].forward(z, z, scratch);
        });
  }

  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Saved& saved, const Step& step,
               Workspace& ws) const {
    check("Din", candidates, history, y);
    const auto mark = ws.mark();
    const std::size_t count = activations.size();
    const detail::PairIndex pairs = detail::pair_index(candidates, history, ws);
    saved.before.resize(count);
    saved.after.resize(count);
    saved.activations.resize(count);
    saved.weights.resize(pairs.pairs());
    for (std::size_t k = 0; k < count; ++k) {
      saved.before[k].resize(pairs.pairs(), linears[k].weight.rows());
      saved.after[k].resize(pairs.pairs(), linears[k].weight.rows());
      if (k == 0) {
        din_first_layer<T>(candidates, history, linears[0].weight, linears[0].bias, saved.before[0], ws);
      } else {
        linears[k].forward(saved.after[k - 1], saved.before[k], ws);
      }
      activations[k].forward(saved.before[k], saved.after[k], saved.activations[k], step.child(static_cast<Index>(k)), ws);
    }
    T* const a = saved.weights.data();
    linears[count].forward(saved.after[count - 1], MatrixView<T>(a, pairs.pairs(), 1), ws);
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(width())));
    ws.parallel_for(pairs.candidates, [&](Index i, Workspace& scratch) {
      T* const w = a + pairs.first[i];
      if (weights == DinWeights::softmax) {
        simd::scale<T>(scale, w, w, pairs.length(i));
        simd::softmax<T>(w, w, pairs.length(i));
      }
      detail::pool_pairs<T>(w, history[pairs.user[i]], y.row(i), scratch);
    });
  }

  /// Adds to dcandidates, dhistory (each unless empty) and to `gradient`.
  void backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> dy, const Saved& saved,
                MatrixView<T> dcandidates, MatrixView<T> dhistory, Din& gradient, Workspace& ws) const {
    constexpr const char* name = "Din::backward";
    check(name, candidates, history, dy);
    const auto mark = ws.mark();
    const std::size_t count = activations.size();
    const detail::PairIndex pairs = detail::pair_index(candidates, history, ws);
    const Index total = pairs.pairs();
    check_option(name, "saved", saved.before.size() == count && saved.after.size() == count && saved.weights.size() == total,
                 "what forward kept of these pairs", static_cast<double>(saved.weights.size()));
    for (std::size_t k = 0; k < count; ++k) {
      check_shape(name, "saved", saved.before[k].view(), total, linears[k].weight.rows());
      check_shape(name, "saved", saved.after[k].view(), total, linears[k].weight.rows());
    }
    if (!dcandidates.empty()) check_shape(name, "dcandidates", dcandidates, candidates.values().rows(), width());
    if (!dhistory.empty()) check_shape(name, "dhistory", dhistory, history.values().rows(), width());
    check_option(name, "gradient", gradient.linears.size() == count + 1 && gradient.activations.size() == count,
                 "the layers of the unit", static_cast<double>(gradient.linears.size()));
    check_gradient_shapes(name, *this, gradient);
    if (total == 0) return;

    MatrixView<T> d = ws.matrix<T>(total, 1);
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(width())));
    ws.parallel_for(candidates.size(), [&](Index b, Workspace& scratch) {
      const auto own = scratch.mark();
      const MatrixView<const T> e = history[b];
      T* const da = scratch.take<T>(e.rows());
      const MatrixView<T> de = dhistory.empty() ? dhistory : dhistory.middle_rows(history.begin(b), e.rows());
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
        const T* const w = saved.weights.data() + pairs.first[i];
        T* const to = d.data() + pairs.first[i];
        detail::pool_pairs_backward<T>(w, e, dy.row(i), weights == DinWeights::softmax ? da : to, de);
        if (weights == DinWeights::softmax) {
          std::fill_n(to, e.rows(), T(0));
          simd::softmax_backward<T>(w, da, to, e.rows());
          simd::scale<T>(scale, to, to, e.rows());
        }
      }
    });
    for (std::size_t k = count; k > 0; --k) {
      const Index h = linears[k - 1].weight.rows();
      const MatrixView<T> after = ws.matrix<T>(total, h), before = ws.matrix<T>(total, h);
      detail::linear_backward<T>(saved.after[k - 1], linears[k].weight, d, after, true, gradient.linears[k].weight,
                                 gradient.linears[k].bias, ws);
      std::fill_n(before.data(), total * h, T(0));
      activations[k - 1].backward(saved.before[k - 1], after, saved.activations[k - 1], before, gradient.activations[k - 1], ws);
      d = before;
    }
    din_first_layer_backward<T>(candidates, history, linears[0].weight, d, dcandidates, dhistory, gradient.linears[0].weight,
                                gradient.linears[0].bias, ws);
  }
  /// Folds Dice's statistics of a training step into the running ones. Throws `Error` unless a training
  /// forward has filled `saved`.
  void update(const Saved& saved) {
    detail::check_saved_layers("Din::update", saved.activations.size(), activations.size());
    for (std::size_t k = 0; k < activations.size(); ++k) detail::update_layer(activations[k], saved.activations[k]);
  }

  /// Throws `Error` unless the parameters, which may have been loaded, fit each other.
  void check_parameters(const char* name) const {
    check_option(name, "linears", linears.size() >= 2 && activations.size() + 1 == linears.size(),
                 "two or more, and an activation after each but the last", static_cast<double>(linears.size()));
    check_option(name, "linears.0.weight", linears[0].weight.cols() % 4 == 0 && width() >= 1, "4 d columns",
                 static_cast<double>(linears[0].weight.cols()));
    Index in = 4 * width();
    for (std::size_t k = 0; k < linears.size(); ++k) {
      const bool last = k + 1 == linears.size();
      check_shape(name, "linears.weight", linears[k].weight.view(), last ? 1 : any_size, in);
      in = linears[k].weight.rows();
      check_option(name, "linears.weight", in >= 1, "one row or more", static_cast<double>(in));
      if (!linears[k].bias.empty()) check_size(name, "linears.bias", VectorView<const T>(linears[k].bias), in);
      if (!last) activations[k].output_cols(in);
    }
  }

 private:
  template <class Y>
  void check(const char* name, JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<Y> y) const {
    check_parameters(name);
    detail::check_pairs<T>(name, candidates, history, width(), width());
    check_shape(name, "y", y, candidates.values().rows(), width());
  }
};

/// Serving form: everything packed, Dice's statistics folded. Immutable; threads may share it.
template <Real T, class Hidden>
class FrozenDin {
 public:
  FrozenDin() = default;
  explicit FrozenDin(const Din<T, Hidden>& layer) : weights_(layer.weights), d_(layer.width()) {
    layer.check_parameters("freeze(Din)");
    const Linear<T>& first = layer.linears[0];
    h_ = first.weight.rows();
    Matrix<T> behaviour(h_, d_), candidate(h_, d_);
    detail::din_parts<T>(first.weight, behaviour, candidate);
    pack(behaviour, base_);
    pack(candidate, candidate_);
    pack(first.weight.view().middle_cols(3 * d_, d_), product_);
    bias_ = first.bias;
    for (std::size_t k = 1; k < layer.linears.size(); ++k) {
      const Linear<T>& l = layer.linears[k];
      Layer x{{}, l.bias, l.weight.rows()};
      if (k + 1 == layer.linears.size()) {
        x.panels.resize(l.weight.cols());
        std::copy_n(l.weight.data(), l.weight.cols(), x.panels.data());
      } else {
        pack(l.weight, x.panels);
      }
      layers_.push_back(std::move(x));
    }
    for (const Hidden& a : layer.activations) activations_.push_back(freeze(a));
  }
  /// As `Din::forward`.
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Workspace& ws) const {
    detail::check_pairs<T>("FrozenDin", candidates, history, d_, d_);
    check_shape("FrozenDin", "y", y, candidates.values().rows(), d_);
    const auto mark = ws.mark();
    const Index count = static_cast<Index>(layers_.size());
    auto* const hidden = ws.take<typename detail::DinPanels<T>::Hidden>(count);
    for (Index k = 0; k < count; ++k) {
      const Layer& l = layers_[static_cast<std::size_t>(k)];
      hidden[k] = {l.panels.data(), l.bias.empty() ? nullptr : l.bias.data(), l.out};
    }
    detail::din_forward<T>(
        {{base_.data(), product_.data(), d_, h_}, candidate_.data(), bias_.empty() ? nullptr : bias_.data(), hidden, count},
        weights_, candidates, history, y, ws,
        [&](Index k) {
          if constexpr (detail::fuses_activation<Hidden>) return activations_[static_cast<std::size_t>(k)].activation;
          return Activation::none;
        },
        [&](Index k, MatrixView<T> z, Workspace& scratch) {
          if constexpr (!detail::fuses_activation<Hidden>) activations_[static_cast<std::size_t>(k)].forward(z, z, scratch);
        });
  }

 private:
  struct Layer {
    Vector<T> panels, bias;  // the last layer's weights as they are
    Index out;
  };
  static void pack(MatrixView<const T> w, Vector<T>& panels) {
    panels.resize(simd::packed_size<T>(w.cols(), w.rows()));
    simd::pack<T>(simd::transposed(w), panels.data());
  }
  DinWeights weights_ = DinWeights::plain;
  Index d_ = 0, h_ = 0;
  Vector<T> base_, product_, candidate_, bias_;
  std::vector<Layer> layers_;
  std::vector<decltype(freeze(std::declval<const Hidden&>()))> activations_;
};
template <Real T, class Hidden>
FrozenDin<T, Hidden> freeze(const Din<T, Hidden>& layer) {
  return FrozenDin<T, Hidden>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
