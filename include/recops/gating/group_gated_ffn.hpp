/// @file   recops/gating/group_gated_ffn.hpp
/// @brief  Group gating inside a Transformer layer: besides a network of its own, each sequence goes through that of the group to which
///         a gate assigns it.
///
///     u = [mean over positions of x | user]        r = softmax(V u + c)        i = argmax r
///     y = own(x) + group_i(x)                       with `scale_by_gate`: own(x) + r_i group_i(x)
///
/// It takes the place of a layer's feed-forward network; the residual is the caller's. One decision per sequence, not per position; in
/// layers above each other these make groups within groups.
///
/// Shapes      x [L, D], jagged   user [B, Du], or without columns   V [n, D + Du]   gates r [B, n]   picks i [B]   y [L, D]
/// Gradient    as published (no `scale_by_gate`) y does not depend on r: the gate learns from `group_balance_value_and_grad` alone.
/// Edge cases  an empty sequence has a mean of 0 and gates.   Ties go to the lowest group; NaN gates to group 0.   A NaN stays in its
///             sequence.
/// Precision   the mean in T, row after row.   Same bits for any number of threads, if those of the networks are. Until frozen, the bits
///             of a sequence depend on how many rows share its group (products of up to 8 rows are summed in another order).
/// Cost        two networks per position, the gate once per sequence.
/// Errors      Error if shapes, offsets or options disagree; outputs untouched.
/// Reference   arXiv 2412.16969 (hierarchical group gating in federated sequential recommendation, AAAI 2025) and its published code,
///             which appends one module n times; here groups are parameters of their own. Its forms without a mean are left out.
#pragma once
#include <recops/nn/linear.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/simd/softmax.hpp>
#include <vector>

namespace recops {

struct GroupGatedFfnOptions {
  bool scale_by_gate = false;  ///< the group's branch is multiplied with its gate, which learns from it
  Index padded_length = 0;     ///< what the sum over positions is divided by; 0: the sequence's own length
};

inline namespace RECOPS_ABI {

namespace detail {

/// What a group-gated layer works on; backward needs all of it.
template <class T>
struct GroupGating {
  MatrixView<T> representation, gates, inputs, outputs;
  VectorView<std::int32_t> picks;
  VectorView<Index> order, begin;
};

template <class T>
T group_share(Index length, const GroupGatedFfnOptions& o) {
  return T(1) / static_cast<T>(o.padded_length > 0 ? o.padded_length : std::max(length, Index{1}));
}

/// The sequence that holds a row, by bisection of the offsets.
template <class T>
Index sequence_of(JaggedView<const T> x, Index row) {
  Index low = 0, high = x.size();
  while (high - low > 1) {
    const Index middle = (low + high) / 2;
    (x.begin(middle) <= row ? low : high) = middle;
  }
  return low;
}

/// `gate(u, logits)`, `own(x, y)` and `group(i, inputs, outputs)` are the layer's parts.
template <class T, class Gate, class Own, class Group>
void group_gated_rows(JaggedView<const T> x, MatrixView<const T> user, const GroupGatedFfnOptions& o, GroupGating<T> v,
                      Gate&& gate, Own&& own, Group&& group, MatrixView<T> y) {
  const Index rows = x.values().rows(), d = x.cols(), n = v.gates.cols(), batch = x.size();
  for (Index b = 0; b < batch; ++b) {
    T* const u = v.representation.row(b);
    std::fill_n(u, d, T(0));
    for (Index l = 0; l < x.length(b); ++l) simd::add<T>(x[b].row(l), u, d);
    simd::scale<T>(group_share<T>(x.length(b), o), u, u, d);
    if (user.cols() > 0) std::copy_n(user.row(b), user.cols(), u + d);
  }
  gate(v.representation, v.gates);
  std::fill(v.begin.begin(), v.begin.end(), Index{0});
  for (Index b = 0; b < batch; ++b) {
    simd::softmax<T>(v.gates.row(b), n);
    v.picks[b] = static_cast<std::int32_t>(simd::argmax<T>(v.gates.row(b), n));
    v.begin[v.picks[b] + 1] += x.length(b);
  }
  for (Index i = 0; i < n; ++i) v.begin[i + 1] += v.begin[i];
  for (Index i = 0, at = 0; i < n; ++i)
    for (Index b = 0; b < batch; ++b)
      for (Index l = 0; v.picks[b] == i && l < x.length(b); ++l, ++at) {
        v.order[at] = x.begin(b) + l;
        std::copy_n(x[b].row(l), d, v.inputs.row(at));
      }
  own(x.values(), y);
  for (Index i = 0; i < n; ++i) {
    const Index at = v.begin[i], count = v.begin[i + 1] - at;
    if (count > 0) group(static_cast<std::size_t>(i), v.inputs.middle_rows(at, count), v.outputs.middle_rows(at, count));
  }
  for (Index r = 0; r < rows; ++r) {
    const Index to = v.order[r], b = o.scale_by_gate ? sequence_of(x, to) : 0;
    simd::axpy<T>(o.scale_by_gate ? v.gates(b, v.picks[b]) : T(1), v.outputs.row(r), y.row(to), d);
  }
}

/// The same in scratch.
template <class T>
GroupGating<T> group_gating(Index rows, Index d, Index batch, Index inputs, Index n, Workspace& ws) {
  return {ws.matrix<T>(batch, inputs),    ws.matrix<T>(batch, n), ws.matrix<T>(rows, d),  ws.matrix<T>(rows, d),
          ws.vector<std::int32_t>(batch), ws.vector<Index>(rows), ws.vector<Index>(n + 1)};
}

}  // namespace detail

/// `Ffn` is a row layer with as many outputs as inputs, e.g. `Mlp<T>({D, D, D}, {}, random)`, or with dropout a `Sequential`. Names:
/// `own. ...`, `groups.0. ...`, `gate.weight [n, D + Du]`, `gate.bias`.
template <Real T, class Ffn = Mlp<T>>
requires RowLayer<Ffn, T>
struct GroupGatedFfn {
  Ffn own;
  std::vector<Ffn> groups;
  Linear<T> gate;
  GroupGatedFfnOptions options;

  GroupGatedFfn() = default;
  /// `make()` makes one network; the gate reads `width` + `user_width` numbers.
  template <class Make>
  GroupGatedFfn(Index width, Index user_width, Index count, Make&& make, Random& random, const GroupGatedFfnOptions& o = {})
      : own(make()),
        gate(checked_size("GroupGatedFfn", "width", width) + checked_size("GroupGatedFfn", "user_width", user_width),
             checked_size("GroupGatedFfn", "groups", count), random),
        options(o) {
    check_option("GroupGatedFfn", "groups", count >= 1, "one group or more", static_cast<double>(count));
    for (Index i = 0; i < count; ++i) groups.push_back(make());
  }
  static constexpr auto fields() {
    return std::tuple{layer("own", &GroupGatedFfn::own), layers("groups", &GroupGatedFfn::groups),
                      layer("gate", &GroupGatedFfn::gate)};
  }

  Index output_cols(Index cols) const { return own.output_cols(cols); }

  struct Saved {
    Matrix<T> representation;    ///< u [B, D + Du]
    Matrix<T> gates;             ///< r [B, n]
    Vector<std::int32_t> picks;  ///< i [B]
    Vector<Index> order, begin;  ///< rows of x by group, as they were; where each group's begin [n + 1]
    Matrix<T> inputs, outputs;   ///< [L, D], by group
    typename Ffn::Saved own;
    std::vector<typename Ffn::Saved> groups;
  };

  void forward(JaggedView<const T> x, MatrixView<const T> user, MatrixView<T> y, Workspace& ws) const {
    check("GroupGatedFfn::forward", x, user, y);
    const auto mark = ws.mark();
    detail::group_gated_rows<T>(
        x, user, options,
        detail::group_gating<T>(x.values().rows(), x.cols(), x.size(), gate.weight.cols(), gate.weight.rows(), ws),
        [&](MatrixView<const T> u, MatrixView<T> logits) { linear<T>(u, gate.weight, gate.bias, logits, ws); },
        [&](MatrixView<const T> in, MatrixView<T> out) { own.forward(in, out, ws); },
        [&](std::size_t i, MatrixView<const T> in, MatrixView<T> out) { groups[i].forward(in, out, ws); }, y);
  }
  void forward(JaggedView<const T> x, MatrixView<const T> user, MatrixView<T> y, Saved& saved, const Step& step,
               Workspace& ws) const {
    check("GroupGatedFfn::forward", x, user, y);
    const Index rows = x.values().rows(), d = x.cols(), n = gate.weight.rows(), batch = x.size();
    saved.representation.resize(batch, gate.weight.cols());
    saved.gates.resize(batch, n);
    saved.picks.resize(batch);
    saved.order.resize(rows);
    saved.begin.resize(n + 1);
    saved.inputs.resize(rows, d);
    saved.outputs.resize(rows, d);
    saved.groups.resize(groups.size());
    detail::group_gated_rows<T>(
        x, user, options, {saved.representation, saved.gates, saved.inputs, saved.outputs, saved.picks, saved.order, saved.begin},
        [&](MatrixView<const T> u, MatrixView<T> logits) { linear<T>(u, gate.weight, gate.bias, logits, ws); },
        [&](MatrixView<const T> in, MatrixView<T> out) { own.forward(in, out, saved.own, step.child(0), ws); },
        [&](std::size_t i, MatrixView<const T> in, MatrixView<T> out) {
          groups[i].forward(in, out, saved.groups[i], step.child(static_cast<Index>(i) + 1), ws);
        },
        y);
  }
  /// Adds to `dx` and `duser`, each unless empty, and to `gradient`; `dgates [B, n]` is a further gradient of the gates, or empty.
  void backward(JaggedView<const T> x, MatrixView<const T> user, MatrixView<const T> dy, MatrixView<const T> dgates,
                const Saved& saved, MatrixView<T> dx, MatrixView<T> duser, GroupGatedFfn& gradient, Workspace& ws) const {
    constexpr const char* name = "GroupGatedFfn::backward";
    check(name, x, user, dy);
    const Index rows = x.values().rows(), d = x.cols(), n = gate.weight.rows(), batch = x.size();
    check_shape(name, "saved.representation", saved.representation.view(), batch, gate.weight.cols());
    check_shape(name, "saved.gates", saved.gates.view(), batch, n);
    check_shape(name, "saved.inputs", saved.inputs.view(), rows, d);
    check_shape(name, "saved.outputs", saved.outputs.view(), rows, d);
    check_size(name, "saved.picks", VectorView<const std::int32_t>(saved.picks), batch);
    check_size(name, "saved.order", VectorView<const Index>(saved.order), rows);
    check_size(name, "saved.begin", VectorView<const Index>(saved.begin), n + 1);
    check_option(name, "saved", saved.groups.size() == groups.size(), "what forward of this layer saved",
                 static_cast<double>(saved.groups.size()));
    if (!dgates.empty()) check_shape(name, "dgates", dgates, batch, n);
    if (!dx.empty()) check_shape(name, "dx", dx, rows, d);
    if (!duser.empty()) check_shape(name, "duser", duser, batch, user.cols());
    check_gradient_shapes(name, *this, gradient);

    const auto mark = ws.mark();
    own.backward(x.values(), dy, saved.own, dx, gradient.own, ws);
    const MatrixView<T> up = ws.matrix<T>(rows, d), down = ws.matrix<T>(dx.empty() ? 0 : rows, d), dg = ws.matrix<T>(batch, n);
    std::fill_n(down.data(), down.rows() * d, T(0));
    for (Index b = 0; b < batch; ++b)
      for (Index i = 0; i < n; ++i) dg(b, i) = dgates.empty() ? T(0) : dgates(b, i);
    for (Index r = 0; r < rows; ++r) {
      const Index from = saved.order[r];
      if (!options.scale_by_gate) {
        std::copy_n(dy.row(from), d, up.row(r));
        continue;
      }
      const Index b = detail::sequence_of(x, from);
      dg(b, saved.picks[b]) += simd::dot(dy.row(from), saved.outputs.row(r), d);
      simd::scale<T>(saved.gates(b, saved.picks[b]), dy.row(from), up.row(r), d);
    }
    const MatrixView<const T> inputs = saved.inputs;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Index at = saved.begin[static_cast<Index>(g)], count = saved.begin[static_cast<Index>(g) + 1] - at;
      if (count == 0) continue;
      groups[g].backward(inputs.middle_rows(at, count), up.middle_rows(at, count), saved.groups[g],
                         dx.empty() ? dx : down.middle_rows(at, count), gradient.groups[g], ws);
    }
    for (Index r = 0; r < down.rows(); ++r) simd::add<T>(down.row(r), dx.row(saved.order[r]), d);
    if (!options.scale_by_gate && dgates.empty()) return;  // nothing depends on the gate

    const MatrixView<T> du = ws.matrix<T>(batch, gate.weight.cols());
    std::fill_n(du.data(), batch * du.cols(), T(0));
    for (Index b = 0; b < batch; ++b) {
      const T* const r = saved.gates.row(b);
      T mean = T(0);
      for (Index i = 0; i < n; ++i) mean += r[i] * dg(b, i);
      for (Index i = 0; i < n; ++i) dg(b, i) = r[i] * (dg(b, i) - mean);
    }
    linear_backward<T>(saved.representation, gate.weight, dg, du, gradient.gate.weight, gradient.gate.bias, ws);
    for (Index b = 0; b < batch; ++b) {
      const T share = detail::group_share<T>(x.length(b), options);
      for (Index l = 0; l < x.length(b) && !dx.empty(); ++l) simd::axpy<T>(share, du.row(b), dx.row(x.begin(b) + l), d);
      if (!duser.empty()) simd::add<T>(du.row(b) + d, duser.row(b), user.cols());
    }
  }

  // Without a user's numbers: a sequence layer like any other.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    forward(x, MatrixView<const T>(nullptr, x.size(), 0), y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    forward(x, MatrixView<const T>(nullptr, x.size(), 0), y, saved, step, ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, GroupGatedFfn& gradient,
                Workspace& ws) const {
    backward(x, MatrixView<const T>(nullptr, x.size(), 0), dy, {}, saved, dx, {}, gradient, ws);
  }
  void update(const Saved& saved) {
    const bool kept = saved.groups.size() == groups.size() && saved.begin.size() == static_cast<Index>(groups.size()) + 1;
    check_option("GroupGatedFfn::update", "saved", kept, "what forward of this layer saved",
                 static_cast<double>(saved.groups.size()));
    detail::update_layer(own, saved.own);
    for (std::size_t g = 0; g < groups.size(); ++g)
      if (saved.begin[static_cast<Index>(g)] < saved.begin[static_cast<Index>(g) + 1])
        detail::update_layer(groups[g], saved.groups[g]);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> user, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    const Index d = x.cols();
    check_option(name, "groups", !groups.empty(), "one group or more", 0);
    check_shape(name, "gate.weight", gate.weight.view(), static_cast<Index>(groups.size()), d + user.cols());
    if (!gate.bias.empty()) check_size(name, "gate.bias", VectorView<const T>(gate.bias), gate.weight.rows());
    check_option(name, "output columns of own", own.output_cols(d) == d, "as many as x has",
                 static_cast<double>(own.output_cols(d)));
    for (const Ffn& g : groups)
      check_option(name, "output columns of a group", g.output_cols(d) == d, "as many as x has",
                   static_cast<double>(g.output_cols(d)));
    check_option(name, "padded_length", options.padded_length >= 0, "padded_length >= 0",
                 static_cast<double>(options.padded_length));
    if (user.cols() != 0) check_shape(name, "user", user, x.size(), any_size);
    check_shape(name, "y", y, x.values().rows(), d);
  }
};

/// Serving form of GroupGatedFfn: all its networks frozen. Immutable; threads may share it.
template <Real T, class Frozen, class S = T>
class FrozenGroupGatedFfn {
 public:
  FrozenGroupGatedFfn() = default;
  FrozenGroupGatedFfn(Frozen own, std::vector<Frozen> groups, const Linear<T>& gate, const GroupGatedFfnOptions& options)
      : own_(std::move(own)), groups_(std::move(groups)), gate_(gate.weight, gate.bias, Activation::none), options_(options) {
    check_option("freeze(GroupGatedFfn)", "groups", static_cast<Index>(groups_.size()) == gate.weight.rows(),
                 "as many as the gate has outputs", static_cast<double>(groups_.size()));
  }
  Index output_cols(Index cols) const { return own_.output_cols(cols); }
  void forward(JaggedView<const T> x, MatrixView<const T> user, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenGroupGatedFfn";
    check_jagged(name, "x", x, any_size, any_size);
    check_shape(name, "user", user, x.size(), gate_.input_cols() - x.cols());
    check_shape(name, "y", y, x.values().rows(), output_cols(x.cols()));
    const auto mark = ws.mark();
    detail::group_gated_rows<T>(
        x, user, options_,
        detail::group_gating<T>(x.values().rows(), x.cols(), x.size(), gate_.input_cols(), static_cast<Index>(groups_.size()),
                                ws),
        [&](MatrixView<const T> u, MatrixView<T> logits) { gate_.forward(u, logits, ws); },
        [&](MatrixView<const T> in, MatrixView<T> out) { own_.forward(in, out, ws); },
        [&](std::size_t i, MatrixView<const T> in, MatrixView<T> out) { groups_[i].forward(in, out, ws); }, y);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    forward(x, MatrixView<const T>(nullptr, x.size(), 0), y, ws);
  }

 private:
  Frozen own_;
  std::vector<Frozen> groups_;
  FrozenDense<T, S> gate_;
  GroupGatedFfnOptions options_;
};
template <Real T, class Ffn, class S = T>
auto freeze(const GroupGatedFfn<T, Ffn>& layer, Weights<S> weights = {}) {
  auto own = freeze(layer.own, weights);
  std::vector<decltype(own)> groups;
  for (const Ffn& g : layer.groups) groups.push_back(freeze(g, weights));
  return FrozenGroupGatedFfn<T, decltype(own), S>(std::move(own), std::move(groups), layer.gate, layer.options);
}

/// Balance loss: alpha n sum over sequences of fraction[pick] r[pick], where `fraction [n]` is the share of sequences (clients) that went
/// to each group in the round before; adds its gradient to `dgates [B, n]` unless that is empty. Section 3 of the reference; alpha 0.1
/// there.
template <Real T>
double group_balance_value_and_grad(MatrixView<const T> gates, IndexView picks, VectorView<const T> fraction, double alpha,
                                    MatrixView<T> dgates) {
  constexpr const char* name = "group_balance_value_and_grad";
  check_shape(name, "gates", gates, any_size, any_size);
  check_size(name, "fraction", fraction, gates.cols());
  detail::check_not_null(name, "picks", picks);
  check_option(name, "picks", picks.size() == gates.rows(), "one pick for each row of gates", static_cast<double>(picks.size()));
  check_indices(name, "picks", picks, gates.cols());
  check_option(name, "alpha", std::isfinite(alpha), "a finite alpha", alpha);
  if (!dgates.empty()) check_shape(name, "dgates", dgates, gates.rows(), gates.cols());
  double sum = 0;
  const double weight = alpha * static_cast<double>(gates.cols());
  for (Index b = 0; b < gates.rows(); ++b) {
    const double f = weight * static_cast<double>(fraction[picks[b]]);
    sum += f * static_cast<double>(gates(b, picks[b]));
    if (!dgates.empty()) dgates(b, picks[b]) += static_cast<T>(f);
  }
  return sum;
}

}  // namespace RECOPS_ABI
}  // namespace recops
