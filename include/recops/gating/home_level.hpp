/// @file   recops/gating/home_level.hpp
/// @brief  One level of HoME: groups of experts behind feature gates, and mixtures with masks and self gates.
///
///     u_g = feature_gate_g(x_g)      a_g = activation(norm(W_g u_g))
///     y_m = sum over the experts e that m sees of softmax(V_m z_m)_e a_e  +  sum over m's own experts k of s_mk a_k
///     s_m = softmax(S_m z_m), or sigmoid(S_m z_m) where m owns one expert       (the self gate: a way past the mixture)
///
/// Shapes      x [B, Q D], Q blocks of columns: a group reads one of them (x_g), the gates of a mixture the concatenation of P of
///             them (z_m); gates read x as it is, not through feature gates.   y [B, M H].   E experts, G gates, S self gates.
/// Edge cases  as Mmoe.   A mixture that owns no experts has no self gate.   A self gate that sees one expert is a sigmoid: a
///             softmax of one entry would be 1 and teach nothing.
/// Precision   sums in T.   Same bits for any number of threads.
/// Cost        2 B (D E H + P D (G + S) + H G) flops, and 4 B D^2 per feature gate (L d = D); backward twice that.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Wang et al., "HoME", arXiv 2408.05430, equations 4 to 11.   One feature gate per group, and the self gate of the
///             second level, are our reconstruction.
#pragma once
#include <recops/gating/feature_gate.hpp>
#include <recops/gating/gate_mix.hpp>

namespace recops {

/// Experts that read one block of columns.
struct HomeGroup {
  Index experts = 1;
  Index source = 0;  ///< the block
};

/// One output of a level.
struct HomeMixture {
  std::vector<Index> groups = {};     ///< it sees all experts of these, in this order
  Index own = -1;                     ///< the group of its self gate, one that it sees; -1: none
  std::vector<Index> selectors = {};  ///< blocks of columns its gates read, as many for every mixture
};

/// What a `HomeLevel` is made of.
struct HomeLevelSpec {
  Index inputs = 0;   ///< D
  Index outputs = 0;  ///< H
  std::vector<HomeGroup> groups = {};
  std::vector<HomeMixture> mixtures = {};
  std::vector<Index> hidden = {};  ///< widths of an expert's layers before its last
  ExpertNorm norm = ExpertNorm::batch;
  Activation activation = Activation::silu;
  Index loras = 2;         ///< L of the feature gates; 0: no feature gates
  Index rank = 0;          ///< d of the feature gates; 0: D / L
  bool self_gates = true;  ///< false: mixtures own no experts
  bool gate_bias = false;
};

inline namespace RECOPS_ABI {
namespace detail {

/// Calls `f(LinearBlock)` for the gates of mixtures next to each other whose part `p` of the selectors is the same block of columns.
template <class F>
void for_selectors(const GateMap& map, const std::vector<Index>& selectors, Index parts, Index p, F&& f) {
  const auto source = [&](Index m) { return selectors[static_cast<std::size_t>(m * parts + p)]; };
  for (Index m = 0; m < map.tasks();) {
    const Index from = source(m), begin = map.begin(m);
    while (m < map.tasks() && source(m) == from) ++m;
    f(LinearBlock{begin, map.end(m - 1), from});
  }
}

/// Logits of self gates to gates: softmax, sigmoid for a mixture that owns one expert.
template <class T>
void self_gate_row(T* x, const GateMap& map) {
  for (Index m = 0; m < map.tasks(); ++m) {
    T* const own = x + map.begin(m);
    if (map.count(m) == 1) {
      *own = T(1) / (T(1) + std::exp(-*own));
    } else if (map.count(m) > 1) {
      simd::softmax<T>(own, map.count(m));
    }
  }
}

/// Gates of the mixture as it is computed: a self gate joins the gate of its expert, so that experts are read once.
template <class T>
void join_self_gates(const T* gates, Index n, const T* self, const std::vector<Index>& at, T* joint) {
  std::copy_n(gates, n, joint);
  for (std::size_t s = 0; s < at.size(); ++s) joint[at[s]] += self[s];
}

}  // namespace detail

/// One level with its parameters: `feature_gates.0.down.weight`, ..., `experts.weight [E H, D]` and so on (see ExpertBank),
/// `gates.weight [G, P D]`, `gates.bias`, `self_gates.weight [S, P D]`, `self_gates.bias`.
template <Real T>
struct HomeLevel {
  std::vector<FeatureGate<T>> feature_gates;  ///< one per group, or none
  ExpertBank<T> experts;
  Matrix<T> gate_weight, self_weight;
  Vector<T> gate_bias, self_bias;  ///< or empty
  GateMap map;                     ///< which experts each mixture sees
  GateMap self_map;                ///< which of them it owns
  std::vector<Index> self_at;      ///< [S] the gate whose expert each self gate owns
  std::vector<Index> sources;      ///< [groups] block of columns each group reads
  std::vector<Index> selectors;    ///< [M P]
  Index parts = 1;                 ///< P
  Index blocks = 1;                ///< Q

  /// What a training forward leaves for backward and `update`; `gates [B, G]` and `self_gates [B, S]` are there to be looked at.
  struct Saved {
    std::vector<typename FeatureGate<T>::Saved> feature_gates;
    typename ExpertBank<T>::Saved bank;
    Matrix<T> gated, expert_outputs, gates, self_gates;
  };

  HomeLevel() = default;
  /// Errors are reported as `name`'s.
  HomeLevel(const HomeLevelSpec& spec, Random& random, const char* name = "HomeLevel") {
    check_option(name, "groups", !spec.groups.empty(), "one or more", 0.0);
    check_option(name, "mixtures", !spec.mixtures.empty(), "one or more", 0.0);
    check_option(name, "loras", spec.loras >= 0, "loras >= 0", static_cast<double>(spec.loras));
    const auto count = static_cast<Index>(spec.groups.size());
    std::vector<Index> first(1, 0);
    for (const HomeGroup& g : spec.groups) {
      check_option(name, "experts of a group", g.experts >= 0 && g.experts <= max_experts, "0 to 65536",
                   static_cast<double>(g.experts));
      check_option(name, "source of a group", g.source >= 0 && g.source < 65536, "0 to 65535", static_cast<double>(g.source));
      first.push_back(first.back() + g.experts);
      sources.push_back(g.source);
      blocks = std::max(blocks, g.source + 1);
    }
    parts = static_cast<Index>(spec.mixtures[0].selectors.size());
    std::vector<std::vector<Index>> visible, own;
    for (const HomeMixture& m : spec.mixtures) {
      check_option(name, "selectors", !m.selectors.empty() && static_cast<Index>(m.selectors.size()) == parts,
                   "one or more, as many for every mixture", static_cast<double>(m.selectors.size()));
      for (const Index s : m.selectors) {
        check_option(name, "selector", s >= 0 && s < 65536, "0 to 65535", static_cast<double>(s));
        blocks = std::max(blocks, s + 1);
        selectors.push_back(s);
      }
      const bool sees_own = std::find(m.groups.begin(), m.groups.end(), m.own) != m.groups.end();
      check_option(name, "own group of a mixture", m.own == -1 || sees_own, "a group that it sees, or -1",
                   static_cast<double>(m.own));
      visible.emplace_back();
      own.emplace_back();
      Index before = 0;
      for (const std::vector<Index>& v : visible) before += static_cast<Index>(v.size());
      for (const Index g : m.groups) {
        check_option(name, "group of a mixture", g >= 0 && g < count, "a group", static_cast<double>(g));
        const auto at = static_cast<std::size_t>(g);
        for (Index e = first[at]; e < first[at + 1]; ++e, ++before) {
          visible.back().push_back(e);
          if (!spec.self_gates || g != m.own) continue;
          own.back().push_back(e);
          self_at.push_back(before);
        }
      }
    }
    map = GateMap(first.back(), visible, name);
    self_map = GateMap(first.back(), own, name);
    ExpertBankSpec bank{.inputs = spec.inputs,
                        .experts = first.back(),
                        .outputs = spec.outputs,
                        .hidden = spec.hidden,
                        .norm = spec.norm,
                        .activation = spec.activation,
                        .bias = spec.norm != ExpertNorm::batch};
    for (std::size_t g = 0; g < spec.groups.size(); ++g) {
      const Index source = spec.loras > 0 ? static_cast<Index>(g) : sources[g];
      if (!bank.groups.empty() && bank.groups.back().source == source) {
        bank.groups.back().experts += spec.groups[g].experts;
      } else {
        bank.groups.push_back({first[g], spec.groups[g].experts, source});
      }
      if (spec.loras > 0) feature_gates.emplace_back(spec.inputs, spec.loras, spec.rank, random, name);
    }
    experts = ExpertBank<T>(bank, random, name);
    Linear<T> main(parts * spec.inputs, map.size(), random, spec.gate_bias);
    gate_weight = std::move(main.weight);
    gate_bias = std::move(main.bias);
    if (self_map.size() == 0) return;
    Linear<T> past(parts * spec.inputs, self_map.size(), random, spec.gate_bias);
    self_weight = std::move(past.weight);
    self_bias = std::move(past.bias);
  }

  static constexpr auto fields() {
    return std::tuple{
        layers("feature_gates", &HomeLevel::feature_gates),      layer("experts", &HomeLevel::experts),
        parameter("gates.weight", &HomeLevel::gate_weight),      parameter("gates.bias", &HomeLevel::gate_bias),
        parameter("self_gates.weight", &HomeLevel::self_weight), parameter("self_gates.bias", &HomeLevel::self_bias)};
  }

  /// D
  Index inputs() const { return gate_weight.cols() / parts; }
  /// Q D
  Index input_cols() const { return blocks * inputs(); }
  /// H
  Index outputs() const { return experts.outputs(); }
  /// M
  Index mixtures() const { return map.tasks(); }
  /// M H; throws `Error` unless the input has Q D columns.
  Index output_cols(Index cols) const {
    check_option("HomeLevel", "input columns", cols == input_cols(), "as many as the level reads", static_cast<double>(cols));
    return mixtures() * outputs();
  }

  /// Serving with weights as they are: for a service `freeze` the layer first.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("HomeLevel::forward", x, y);
    const auto mark = ws.mark();
    MatrixView<const T> u = expert_columns(x);
    if (!feature_gates.empty()) {
      const MatrixView<T> gated = ws.matrix<T>(x.rows(), experts.input_cols());
      for (std::size_t g = 0; g < feature_gates.size(); ++g) feature_gates[g].forward(source(x, g), block(gated, g), ws);
      u = gated;
    }
    const MatrixView<T> a = ws.matrix<T>(x.rows(), experts.weight.rows());
    experts.forward(u, a, ws);
    mix(x, a, ws.matrix<T>(x.rows(), map.size()), ws.matrix<T>(x.rows(), self_map.size()), y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("HomeLevel::forward", x, y);
    MatrixView<const T> u = expert_columns(x);
    saved.feature_gates.resize(feature_gates.size());
    if (!feature_gates.empty()) {
      saved.gated.resize(x.rows(), experts.input_cols());
      for (std::size_t g = 0; g < feature_gates.size(); ++g)
        feature_gates[g].forward(source(x, g), block(saved.gated.view(), g), saved.feature_gates[g], step, ws);
      u = saved.gated;
    }
    saved.expert_outputs.resize(x.rows(), experts.weight.rows());
    saved.gates.resize(x.rows(), map.size());
    saved.self_gates.resize(x.rows(), self_map.size());
    experts.forward(u, saved.expert_outputs, saved.bank, step, ws);
    mix(x, saved.expert_outputs, saved.gates, saved.self_gates, y, ws);
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, HomeLevel& gradient,
                Workspace& ws) const {
    const char* const name = "HomeLevel::backward";
    const Index rows = x.rows(), n = map.size(), own = self_map.size(), cols = inputs();
    check(name, x, dy);
    check_shape(name, "saved", saved.expert_outputs.view(), rows, experts.weight.rows());
    check_shape(name, "saved", saved.gates.view(), rows, n);
    check_shape(name, "saved", saved.self_gates.view(), rows, own);
    if (!feature_gates.empty()) check_shape(name, "saved", saved.gated.view(), rows, experts.input_cols());
    check_option(name, "saved", saved.feature_gates.size() == feature_gates.size(), "what forward of this level saved",
                 static_cast<double>(saved.feature_gates.size()));
    if (!dx.empty()) check_shape(name, "dx", dx, rows, x.cols());
    check_gradient_shapes(name, *this, gradient);
    if (rows == 0) return;
    const auto mark = ws.mark();
    const MatrixView<T> da = ws.matrix<T>(rows, experts.weight.rows()), dg = ws.matrix<T>(rows, n), ds = ws.matrix<T>(rows, own),
                        joint = ws.matrix<T>(rows, n);
    std::fill_n(da.data(), rows * da.cols(), T(0));
    std::fill_n(dg.data(), rows * n, T(0));
    for (Index r = 0; r < rows; ++r)
      detail::join_self_gates(saved.gates.row(r), n, saved.self_gates.row(r), self_at, joint.row(r));
    gate_mix_backward<T>(saved.expert_outputs, joint, map, dy, da, dg, ws);
    // A self gate and the gate of its expert have the same derivative, which goes through a softmax of each.
    for (Index r = 0; r < rows; ++r) {
      const T *g = saved.gates.row(r), *s = saved.self_gates.row(r);
      T *to = dg.row(r), *past = ds.row(r);
      for (std::size_t i = 0; i < self_at.size(); ++i) past[i] = to[self_at[i]];
      softmax_backward(g, map, to);
      for (Index m = 0; m < self_map.tasks(); ++m) {
        const Index i = self_map.begin(m);
        if (self_map.count(m) == 1) past[i] *= s[i] * (T(1) - s[i]);
      }
      softmax_backward(s, self_map, past, 2);
    }
    for (Index p = 0; p < parts; ++p) {
      logits_backward(x, gate_weight, map, p, dg, dx, gradient.gate_weight, gradient.gate_bias, ws, cols);
      if (own > 0) logits_backward(x, self_weight, self_map, p, ds, dx, gradient.self_weight, gradient.self_bias, ws, cols);
    }
    if (feature_gates.empty()) {
      experts.backward(expert_columns(x), da, saved.bank, dx.empty() ? dx : expert_columns(dx), gradient.experts, ws);
      return;
    }
    const MatrixView<T> du = ws.matrix<T>(rows, experts.input_cols());
    std::fill_n(du.data(), rows * du.cols(), T(0));
    experts.backward(saved.gated, da, saved.bank, du, gradient.experts, ws);
    for (std::size_t g = 0; g < feature_gates.size(); ++g)
      feature_gates[g].backward(source(x, g), block(MatrixView<const T>(du), g), saved.feature_gates[g],
                                dx.empty() ? dx : source(dx, g), gradient.feature_gates[g], ws);
  }
  /// Folds the batch statistics of a training step into the running ones; does nothing without batch norm.
  void update(const Saved& saved) { experts.update(saved.bank); }

  /// Gates as the mixtures of a training forward weighed the experts, self gates included: `joint [B, G]`, what an
  /// `ExpertMonitor` takes.
  void joint_gates(const Saved& saved, MatrixView<T> joint) const {
    check_shape("HomeLevel::joint_gates", "joint", joint, saved.gates.rows(), map.size());
    check_shape("HomeLevel::joint_gates", "saved.gates", saved.gates.view(), joint.rows(), map.size());
    check_shape("HomeLevel::joint_gates", "saved.self_gates", saved.self_gates.view(), joint.rows(), self_map.size());
    for (Index r = 0; r < joint.rows(); ++r)
      detail::join_self_gates(saved.gates.row(r), map.size(), saved.self_gates.row(r), self_at, joint.row(r));
  }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    check_option(name, "mixtures", mixtures() >= 1, "1 or more (was the layer made from a spec?)", 0);
    const Index cols = inputs();
    experts.check_parameters(name);
    check_option(name, "experts", map.experts() == experts.options.experts, "as many experts as the gates know",
                 static_cast<double>(experts.options.experts));
    check_shape(name, "gates.weight", gate_weight.view(), map.size(), parts * cols);
    if (self_map.size() > 0) check_shape(name, "self_gates.weight", self_weight.view(), self_map.size(), parts * cols);
    if (!gate_bias.empty()) check_size(name, "gates.bias", VectorView<const T>(gate_bias), map.size());
    if (!self_bias.empty()) check_size(name, "self_gates.bias", VectorView<const T>(self_bias), self_map.size());
    check_option(name, "feature_gates", feature_gates.empty() || feature_gates.size() == sources.size(), "one per group, or none",
                 static_cast<double>(feature_gates.size()));
    for (const FeatureGate<T>& g : feature_gates)
      detail::check_feature_gate<T>(name, MatrixView<const T>(nullptr, 0, cols), g.view());
    check_option(name, "columns that experts read",
                 feature_gates.empty() ? experts.input_cols() <= input_cols()
                                       : experts.input_cols() == static_cast<Index>(feature_gates.size()) * cols,
                 "those of the level or of its feature gates", static_cast<double>(experts.input_cols()));
  }

  /// Columns of x that group `g` reads.
  template <class U>
  MatrixView<U> source(MatrixView<U> x, std::size_t g) const {
    return x.middle_cols(sources[g] * inputs(), inputs());
  }

 private:
  template <class U>
  void check(const char* name, MatrixView<const T> x, MatrixView<U> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), mixtures() * outputs());
  }
  template <class U>
  MatrixView<U> block(MatrixView<U> u, std::size_t g) const {
    return u.middle_cols(static_cast<Index>(g) * inputs(), inputs());
  }
  /// What experts read where they read x itself: the last blocks may be there for gates alone.
  template <class U>
  MatrixView<U> expert_columns(MatrixView<U> x) const {
    return feature_gates.empty() ? x.middle_cols(0, experts.input_cols()) : x;
  }
  void logits(MatrixView<const T> x, const Matrix<T>& weight, const Vector<T>& bias, const GateMap& of, MatrixView<T> out,
              Workspace& ws) const {
    const Index cols = inputs();
    for (Index p = 0; p < parts; ++p)
      detail::for_selectors(of, selectors, parts, p, [&](detail::LinearBlock b) {
        detail::block_linear<T>(
            x, weight.view().middle_cols(p * cols, cols), p == 0 ? VectorView<const T>(bias) : VectorView<const T>(), 1,
            [b](Index) { return b; }, Activation::none, out, ws, p > 0);
      });
  }
  void logits_backward(MatrixView<const T> x, const Matrix<T>& weight, const GateMap& of, Index p, MatrixView<const T> dl,
                       MatrixView<T> dx, Matrix<T>& dweight, Vector<T>& dbias, Workspace& ws, Index cols) const {
    const VectorView<T> none;
    bool first = p == 0;  // the bias is the sum over all columns, once
    detail::for_selectors(of, selectors, parts, p, [&](detail::LinearBlock b) {
      detail::block_linear_backward<T>(
          x, weight.view().middle_cols(p * cols, cols), 1, [b](Index) { return b; }, dl, dx,
          dweight.empty() ? dweight.view() : dweight.view().middle_cols(p * cols, cols), first ? VectorView<T>(dbias) : none, ws);
      first = false;
    });
  }
  void mix(MatrixView<const T> x, MatrixView<const T> a, MatrixView<T> g, MatrixView<T> s, MatrixView<T> y, Workspace& ws) const {
    logits(x, gate_weight, gate_bias, map, g, ws);
    if (self_map.size() > 0) logits(x, self_weight, self_bias, self_map, s, ws);
    detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
      const auto mark = scratch.mark();
      T* const joint = scratch.take<T>(map.size());
      for (Index r = first, last = first + count - 1; r <= last; ++r) {
        detail::gate_softmax_row<T>(g.row(r), map, T(1));
        detail::self_gate_row<T>(s.row(r), self_map);
        detail::join_self_gates<T>(g.row(r), map.size(), s.row(r), self_at, joint);
        detail::gate_mix_row<T>(a.row(r), a.row(std::min(r + 1, last)), joint, map, outputs(), y.row(r));
      }
    });
  }
  /// In place; only for tasks with `least` gates or more.
  static void softmax_backward(const T* g, const GateMap& of, T* d, Index least = 1) {
    for (Index m = 0; m < of.tasks(); ++m) {
      if (of.count(m) < least) continue;
      T mean = T(0);
      for (Index i = of.begin(m); i < of.end(m); ++i) mean += g[i] * d[i];
      for (Index i = of.begin(m); i < of.end(m); ++i) d[i] = g[i] == T(0) ? T(0) : g[i] * (d[i] - mean);
    }
  }
};

/// Serving form of `HomeLevel`. Immutable; threads may share it.
template <Real T, class S = T>
class FrozenHomeLevel {
 public:
  FrozenHomeLevel() = default;
  explicit FrozenHomeLevel(const HomeLevel<T>& layer)
      : experts_(checked(layer).experts),
        map_(layer.map),
        self_map_(layer.self_map),
        self_at_(layer.self_at),
        sources_(layer.sources),
        inputs_(layer.inputs()),
        in_(layer.input_cols()),
        expert_in_(layer.experts.input_cols()),
        outputs_(layer.outputs()) {
    for (const FeatureGate<T>& g : layer.feature_gates) feature_gates_.emplace_back(g);
    // Gates and self gates lie in one weight and one row of logits; each part of the selectors adds to it.
    const Index n = map_.size(), own = self_map_.size();
    for (Index p = 0; p < layer.parts; ++p) {
      Matrix<T> weight(n + own, inputs_);
      Vector<T> bias(p > 0 || (layer.gate_bias.empty() && layer.self_bias.empty()) ? 0 : n + own, T(0));
      for (Index r = 0; r < n + own; ++r) {
        const Matrix<T>& from = r < n ? layer.gate_weight : layer.self_weight;
        const Index at = r < n ? r : r - n;
        std::copy_n(from.row(at) + p * inputs_, inputs_, weight.row(r));
        const Vector<T>& shift = r < n ? layer.gate_bias : layer.self_bias;
        if (!bias.empty() && !shift.empty()) bias[r] = shift[at];
      }
      std::vector<detail::LinearBlock> blocks;
      const auto append = [&](detail::LinearBlock b) {
        if (!blocks.empty() && blocks.back().source == b.source) {
          blocks.back().end = b.end;
        } else {
          blocks.push_back(b);
        }
      };
      detail::for_selectors(map_, layer.selectors, layer.parts, p, append);
      detail::for_selectors(self_map_, layer.selectors, layer.parts, p, [&](detail::LinearBlock b) {
        append({b.begin + n, b.end + n, b.source});
      });
      selectors_.emplace_back();
      selectors_.back().add(
          weight, bias, static_cast<Index>(blocks.size()), [&](Index b) { return blocks[static_cast<std::size_t>(b)]; },
          Activation::none);
    }
    for (detail::PackedLayers<T, S>& s : selectors_) experts_.take_panels(s);
    const Index values = experts_.row_values() + map_.size() + self_map_.size() + (feature_gates_.empty() ? 0 : expert_in_);
    rows_ = detail::serving_rows<T>(values);
  }

  Index input_cols() const { return in_; }
  Index outputs() const { return outputs_; }
  Index mixtures() const { return map_.tasks(); }
  Index output_cols(Index) const { return mixtures() * outputs_; }
  /// Rows that pass through it together.
  Index block_rows() const { return rows_; }

  /// y `[B, M H]` from x `[B, Q D]`.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, y, {}, {}, ws); }
  /// The same; `gates [B, G]` and `self_gates [B, S]` (empty: not wanted) show who listens to whom.
  void forward(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> gates, MatrixView<T> self_gates, Workspace& ws) const {
    check_shape("FrozenHomeLevel", "x", x, any_size, in_);
    check_shape("FrozenHomeLevel", "y", y, x.rows(), mixtures() * outputs_);
    if (!gates.empty()) check_shape("FrozenHomeLevel", "gates", gates, x.rows(), map_.size());
    if (!self_gates.empty()) check_shape("FrozenHomeLevel", "self_gates", self_gates, x.rows(), self_map_.size());
    detail::for_serving_blocks(x.rows(), rows_, ws, [&](Index first, Index count, Workspace& scratch) {
      run(x.middle_rows(first, count), y.middle_rows(first, count), gates.empty() ? gates : gates.middle_rows(first, count),
          self_gates.empty() ? self_gates : self_gates.middle_rows(first, count), scratch);
    });
  }

 private:
  static const HomeLevel<T>& checked(const HomeLevel<T>& layer) {
    layer.check_parameters("freeze");
    return layer;
  }
  void run(MatrixView<const T> x, MatrixView<T> y, MatrixView<T> gates_out, MatrixView<T> self_out, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index n = map_.size(), own = self_map_.size();
    const MatrixView<const T> in = detail::unaliased<T>(x, ws);
    const MatrixView<T> a = detail::staggered<T>(x.rows(), experts_.outputs(), ws), z = ws.matrix<T>(x.rows(), n + own);
    MatrixView<const T> u = in;
    if (!feature_gates_.empty()) {
      const MatrixView<T> gated = detail::staggered<T>(x.rows(), expert_in_, ws);
      for (std::size_t g = 0; g < feature_gates_.size(); ++g)
        feature_gates_[g].forward(in.middle_cols(sources_[g] * inputs_, inputs_),
                                  gated.middle_cols(static_cast<Index>(g) * inputs_, inputs_), ws);
      u = gated;
    }
    experts_.forward(u, a, ws);
    for (std::size_t p = 0; p < selectors_.size(); ++p) selectors_[p].forward(in, z, ws, p > 0, experts_.panels());
    for (Index r = 0; r < x.rows(); ++r) {
      T *const g = z.row(r), *const s = g + n;
      detail::gate_softmax_row<T>(g, map_, T(1));
      detail::self_gate_row<T>(s, self_map_);
      if (!gates_out.empty()) std::copy_n(g, n, gates_out.row(r));
      if (!self_out.empty()) std::copy_n(s, own, self_out.row(r));
      for (std::size_t i = 0; i < self_at_.size(); ++i) g[self_at_[i]] += s[i];
      detail::gate_mix_row<T>(a.row(r), a.row(std::min(r + 1, x.rows() - 1)), g, map_, outputs_, y.row(r));
    }
  }

  detail::PackedExperts<T, S> experts_;
  std::vector<FrozenFeatureGate<T, S>> feature_gates_;
  std::vector<detail::PackedLayers<T, S>> selectors_;
  GateMap map_, self_map_;
  std::vector<Index> self_at_, sources_;
  Index inputs_ = 0, in_ = 0, expert_in_ = 0, outputs_ = 0, rows_ = 1;
};

/// The serving form.
template <Real T, class S = T>
FrozenHomeLevel<T, S> freeze(const HomeLevel<T>& layer, Weights<S> = {}) {
  return FrozenHomeLevel<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
