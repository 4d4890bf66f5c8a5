/// @file   recops/gating/gated_adapters.hpp
/// @brief  One layer shared by all, low-rank adapters of one's own and of one's groups, and a gate that says how much of each.
///
///     g = softmax(W2 relu(W1 x + c1) + c2)                             [base, slot 1, slot 2, ...]
///     y = g_0 relu(W x + b) + sum_a g_a (alpha / r) B_a A_a x          A_a, B_a: of the row's id in slot a
///
/// Slots are kinds of adapters: the user's own, that of an age group, of a region. The base branch goes through relu, the adapters'
/// do not, the sum does not again. An id of -1 (a user one does not know) has a branch of 0; the gate is what it is.
///
/// Shapes      x [B, D]   ids [S B], slot after slot: slot a of row b is ids[a B + b]   y [B, O]   gates [B, 1 + S]
/// Federated   users keep their row of slot 0 and send their groups' rows, which the server averages over the users of a group; the base
///             is trained beforehand and stays (an empty `base` in the gradient).
/// Cost        2 B D O + 2 B S r (D + O) flops and the gate; backward twice that.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row.   Same bits for any number of threads.
/// Errors      Error if shapes or ids do not fit; outputs untouched.
/// Reference   arXiv 2405.04840 (federated adaptation of a foundation model for recommendation) and its published code.
#pragma once
#include <recops/gating/adapters.hpp>
#include <recops/nn/linear.hpp>
#include <recops/simd/softmax.hpp>
#include <vector>

namespace recops {

/// What a `GatedAdapters` is made of.
struct GatedAdaptersSpec {
  Index inputs = 0;                  ///< D
  Index outputs = 0;                 ///< O
  std::vector<Index> adapters = {};  ///< how many adapters each slot has: users, then groups of each kind
  Index rank = 4;                    ///< r
  double alpha = 1.0;                ///< adapters are scaled with alpha / r
  Index gate_width = 8;              ///< of the gate's hidden layer
};

inline namespace RECOPS_ABI {

/// Names: `base.weight [O, D]`, `base.bias`, `adapters.0.weight [U, r (D + O)]`, ..., `gate.hidden.weight`, `gate.output.weight`, ...
template <Real T>
struct GatedAdapters {
  Linear<T> base;
  std::vector<AdapterTable<T>> adapters;  ///< one table per slot
  Linear<T> gate_hidden, gate_output;
  Index rank = 4;
  double alpha = 1.0;

  GatedAdapters() = default;
  GatedAdapters(const GatedAdaptersSpec& spec, Random& random)
      : base(checked_size("GatedAdapters", "inputs", spec.inputs), checked_size("GatedAdapters", "outputs", spec.outputs),
             random),
        gate_hidden(spec.inputs, checked_size("GatedAdapters", "gate_width", spec.gate_width), random),
        gate_output(spec.gate_width, 1 + static_cast<Index>(spec.adapters.size()), random),
        rank(spec.rank),
        alpha(spec.alpha) {
    check_option("GatedAdapters", "rank", rank >= 1, "rank >= 1", static_cast<double>(rank));
    for (const Index count : spec.adapters)
      adapters.emplace_back(checked_size("GatedAdapters", "adapters", count), spec.inputs, rank, spec.outputs, random);
  }
  static constexpr auto fields() {
    return std::tuple{layer("base", &GatedAdapters::base), layers("adapters", &GatedAdapters::adapters),
                      layer("gate.hidden", &GatedAdapters::gate_hidden), layer("gate.output", &GatedAdapters::gate_output)};
  }

  Index slots() const { return static_cast<Index>(adapters.size()); }
  Index input_cols() const { return base.weight.cols(); }
  Index output_cols() const { return base.weight.rows(); }

  struct Saved {
    Matrix<T> base;         ///< [B, O], after relu
    Matrix<T> gate_hidden;  ///< after relu
    Matrix<T> gates;        ///< [B, 1 + S], there to be looked at
  };
  void forward(MatrixView<const T> x, IndexView ids, MatrixView<T> y, Workspace& ws) const {
    check("GatedAdapters::forward", x, ids, MatrixView<const T>(y));
    const auto mark = ws.mark();
    run(x, ids, ws.matrix<T>(x.rows(), output_cols()), ws.matrix<T>(x.rows(), gate_hidden.weight.rows()),
        ws.matrix<T>(x.rows(), 1 + slots()), y, ws);
  }
  void forward(MatrixView<const T> x, IndexView ids, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("GatedAdapters::forward", x, ids, MatrixView<const T>(y));
    saved.base.resize(x.rows(), output_cols());
    saved.gate_hidden.resize(x.rows(), gate_hidden.weight.rows());
    saved.gates.resize(x.rows(), 1 + slots());
    run(x, ids, saved.base, saved.gate_hidden, saved.gates, y, ws);
  }
  /// Adds to `dx` unless empty and to `gradient` (made by `make_gradient`: tables by rows; without numbers: not wanted).
  void backward(MatrixView<const T> x, IndexView ids, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx,
                GatedAdapters& gradient, Workspace& ws) const {
    constexpr const char* name = "GatedAdapters::backward";
    check(name, x, ids, dy);
    const Index rows = x.rows(), n = 1 + slots(), o = output_cols(), hidden = gate_hidden.weight.rows();
    check_shape(name, "saved.base", saved.base.view(), rows, o);
    check_shape(name, "saved.gate_hidden", saved.gate_hidden.view(), rows, hidden);
    check_shape(name, "saved.gates", saved.gates.view(), rows, n);
    if (!dx.empty()) check_shape(name, "dx", dx, rows, x.cols());
    check_gradient_shapes(name, *this, gradient);
    if (rows == 0) return;

    const auto mark = ws.mark();
    const MatrixView<T> dlogits = ws.matrix<T>(rows, n), dbase = ws.matrix<T>(rows, o), dhidden = ws.matrix<T>(rows, hidden);
    const T s = scale();
    const VectorView<T> weight = ws.vector<T>(rows), dweight = ws.vector<T>(rows);
    for (Index a = 0; a < slots(); ++a) {
      for (Index b = 0; b < rows; ++b) weight[b] = s * saved.gates(b, 1 + a), dweight[b] = T(0);
      const auto& own = adapters[static_cast<std::size_t>(a)].weight.values;
      add_adapters_backward<T>(x, own, ids.segment(a * rows, rows), rank, weight, dy, dx, dweight,
                               gradient.adapters[static_cast<std::size_t>(a)].weight, ws);
      for (Index b = 0; b < rows; ++b) dlogits(b, 1 + a) = s * dweight[b];  // of the gate, for now
    }
    detail::for_row_blocks(rows, ws, [&](Index first, Index count, Index, Workspace&) {
      const simd::Batch<T> zero(T(0));
      for (Index b = first; b < first + count; ++b) {
        const T *const g = saved.gates.row(b), *const up = dy.row(b), *const y0 = saved.base.row(b);
        T *const d = dlogits.row(b), *const to = dbase.row(b);
        d[0] = simd::dot(up, y0, o);
        T mean = T(0);
        for (Index i = 0; i < n; ++i) mean += g[i] * d[i];
        for (Index i = 0; i < n; ++i) d[i] = g[i] * (d[i] - mean);
        const simd::Batch<T> g0(g[0]);
        simd::for_each_vector<T, simd::DefaultArch>(o, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(to + i, xsimd::select(load(y0 + i) > zero, g0 * load(up + i), zero));
        });
      }
    });
    linear_backward<T>(x, base.weight, dbase, dx, gradient.base.weight, gradient.base.bias, ws);
    detail::linear_backward<T>(saved.gate_hidden, gate_output.weight, dlogits, dhidden, true, gradient.gate_output.weight,
                               gradient.gate_output.bias, ws);
    for (Index b = 0; b < rows; ++b)
      simd::activate_backward<T>(Activation::relu, saved.gate_hidden.row(b), saved.gate_hidden.row(b), dhidden.row(b),
                                 dhidden.row(b), hidden);
    linear_backward<T>(x, gate_hidden.weight, dhidden, dx, gradient.gate_hidden.weight, gradient.gate_hidden.bias, ws);
  }

  /// alpha / r
  T scale() const { return static_cast<T>(alpha / static_cast<double>(rank)); }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    const Index d = base.weight.cols(), o = base.weight.rows();
    check_option(name, "rank", rank >= 1, "rank >= 1", static_cast<double>(rank));
    check_option(name, "alpha", std::isfinite(alpha), "a finite alpha", alpha);
    check_shape(name, "gate.hidden.weight", gate_hidden.weight.view(), any_size, d);
    check_shape(name, "gate.output.weight", gate_output.weight.view(), 1 + slots(), gate_hidden.weight.rows());
    if (!base.bias.empty()) check_size(name, "base.bias", VectorView<const T>(base.bias), o);
    if (!gate_hidden.bias.empty())
      check_size(name, "gate.hidden.bias", VectorView<const T>(gate_hidden.bias), gate_hidden.weight.rows());
    if (!gate_output.bias.empty()) check_size(name, "gate.output.bias", VectorView<const T>(gate_output.bias), 1 + slots());
    for (const auto& table : adapters) check_shape(name, "adapters", table.weight.values.view(), any_size, rank * (d + o));
  }

 private:
  void check(const char* name, MatrixView<const T> x, IndexView ids, MatrixView<const T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), output_cols());
    detail::check_not_null(name, "ids", ids);
    check_option(name, "ids", ids.size() == slots() * x.rows(), "one id for each slot of each row",
                 static_cast<double>(ids.size()));
    for (Index a = 0; a < slots(); ++a)
      detail::check_ids_or_none(name, "ids", ids.segment(a * x.rows(), x.rows()), x.rows(),
                                adapters[static_cast<std::size_t>(a)].weight.values.rows());
  }
  void run(MatrixView<const T> x, IndexView ids, MatrixView<T> y0, MatrixView<T> h, MatrixView<T> g, MatrixView<T> y,
           Workspace& ws) const {
    const auto dense = [&](MatrixView<const T> in, const Linear<T>& l, Activation f, MatrixView<T> to) {
      simd::gemm<T>(simd::plain(in), simd::transposed(l.weight.view()),
                    {.bias = l.bias.empty() ? nullptr : l.bias.data(), .activation = f}, to, ws);
    };
    dense(x, base, Activation::relu, y0);
    dense(x, gate_hidden, Activation::relu, h);
    dense(h, gate_output, Activation::none, g);
    const auto mark = ws.mark();
    const VectorView<T> weight = ws.vector<T>(x.rows());
    for (Index b = 0; b < x.rows(); ++b) {
      simd::softmax<T>(g.row(b), g.cols());
      simd::scale<T>(g(b, 0), y0.row(b), y.row(b), y.cols());
    }
    for (Index a = 0; a < slots(); ++a) {
      for (Index b = 0; b < x.rows(); ++b) weight[b] = scale() * g(b, 1 + a);
      add_adapters<T>(x, adapters[static_cast<std::size_t>(a)].weight.values, ids.segment(a * x.rows(), x.rows()), rank, weight,
                      y, ws);
    }
  }
};

/// Serving form of GatedAdapters: base and gate are one packed product. Immutable; threads may share it. `S`, the format of its
/// weights, is T, or for float BFloat16 or std::int8_t; adapters stay in T.
template <Real T, class S = T>
class FrozenGatedAdapters {
 public:
  FrozenGatedAdapters() = default;
  explicit FrozenGatedAdapters(const GatedAdapters<T>& layer)
      : gate_(layer.gate_output.weight, layer.gate_output.bias, Activation::none),
        outputs_(layer.output_cols()),
        hidden_(layer.gate_hidden.weight.rows()),
        rank_(layer.rank),
        scale_(layer.scale()) {
    layer.check_parameters("freeze(GatedAdapters)");
    Matrix<T> weight(outputs_ + hidden_, layer.input_cols());
    Vector<T> bias(outputs_ + hidden_, T(0));
    std::copy_n(layer.base.weight.data(), outputs_ * weight.cols(), weight.data());
    std::copy_n(layer.gate_hidden.weight.data(), hidden_ * weight.cols(), weight.row(outputs_));
    std::copy(layer.base.bias.begin(), layer.base.bias.end(), bias.data());
    std::copy(layer.gate_hidden.bias.begin(), layer.gate_hidden.bias.end(), bias.data() + outputs_);
    wide_ = FrozenDense<T, S>(weight, bias, Activation::relu);
    for (const auto& table : layer.adapters) tables_.push_back(table.weight.values);
  }
  Index input_cols() const { return wide_.input_cols(); }
  Index output_cols() const { return outputs_; }
  void forward(MatrixView<const T> x, IndexView ids, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenGatedAdapters";
    const Index rows = x.rows(), slots = static_cast<Index>(tables_.size());
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, rows, outputs_);
    detail::check_not_null(name, "ids", ids);
    check_option(name, "ids", ids.size() == slots * rows, "one id for each slot of each row", static_cast<double>(ids.size()));
    for (Index a = 0; a < slots; ++a)
      detail::check_ids_or_none(name, "ids", ids.segment(a * rows, rows), rows, tables_[static_cast<std::size_t>(a)].rows());
    if (rows == 0) return;
    const auto mark = ws.mark();
    const MatrixView<T> h = ws.matrix<T>(rows, outputs_ + hidden_), g = ws.matrix<T>(rows, 1 + slots);
    wide_.forward(x, h, ws);
    gate_.forward(h.middle_cols(outputs_, hidden_), g, ws);
    const VectorView<T> weight = ws.vector<T>(rows);
    for (Index b = 0; b < rows; ++b) {
      simd::softmax<T>(g.row(b), g.cols());
      simd::scale<T>(g(b, 0), h.row(b), y.row(b), outputs_);
    }
    for (Index a = 0; a < slots; ++a) {
      for (Index b = 0; b < rows; ++b) weight[b] = scale_ * g(b, 1 + a);
      add_adapters<T>(x, tables_[static_cast<std::size_t>(a)], ids.segment(a * rows, rows), rank_, weight, y, ws);
    }
  }

 private:
  FrozenDense<T, S> wide_, gate_;
  std::vector<Matrix<T>> tables_;
  Index outputs_ = 0, hidden_ = 0, rank_ = 1;
  T scale_ = T(1);
};
template <Real T, class S = T>
FrozenGatedAdapters<T, S> freeze(const GatedAdapters<T>& layer, Weights<S> = {}) {
  return FrozenGatedAdapters<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
