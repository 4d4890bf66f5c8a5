/// @file   recops/diffusion/diffrec.hpp
/// @brief  DiffRec: the user's whole interaction vector, slightly noised, denoised into scores of every item.
///
///     m = W_out tanh(W_in [x ; e(t)] + b) + b_out          x in R^I, one number per item
///
/// Training adds tiny noise (`NoiseSchedule::linear_variance`) and weights steps (`LossWeight::snr_difference`); serving runs all T steps
/// from the unnoised vector by the posterior's mean: `SamplerOptions{.method = ddpm, .mean_only = true}`. `FrozenDiffRec` does that in
/// the hidden space: with u = W_in x a step is h = tanh(u + W_e e(t) + b), u <- c_1 (M h + w_b) + c_2 u with M = W_in W_out and w_b =
/// W_in b_out worked out once, and only the last step touches the items.
///
/// Shapes      x, m [B, I]; serving: histories as ids [total] and offsets [B + 1], scores [B, I]
/// Edge cases  an empty history is a vector of zeros.   NaN stays in its row.
/// Precision   M in double, rounded once.
/// Cost        training: 4 B I H flops forward. Serving: nnz H + T H^2 + I H multiply-adds a user instead of 2 T I H; set-up I H^2.
/// Errors      Error if shapes, offsets or ids disagree; outputs untouched.
/// Gradient    of x and all weights; adds.
/// Reference   Wang et al. arXiv 2304.04971 (SIGIR 2023); the hidden-space recursion is ours.
#pragma once
#include <recops/diffusion/mlp_denoiser.hpp>
#include <recops/diffusion/sampler_plan.hpp>
#include <recops/nn/dropout.hpp>

namespace recops {

/// Options of `DiffRec`; the defaults are the released ones.
struct DiffRecOptions {
  Index items = 0;         ///< I
  Index hidden = 1000;     ///< H
  Index embedding = 10;    ///< width of the step's
  double dropout = 0.5;    ///< in training, of x
  bool normalize = false;  ///< rows of x to length 1 first
};

inline namespace RECOPS_ABI {

template <class T>
struct DiffRec {
  MlpDenoiser<T> net;  ///< without a condition
  double dropout = 0.5;
  bool normalize = false;

  DiffRec() = default;
  /// Throws Error for options out of range.
  DiffRec(const DiffRecOptions& o, Random& random) : dropout(o.dropout), normalize(o.normalize) {
    constexpr const char* name = "DiffRec";
    check_option(name, "items", o.items >= 1, "items >= 1", static_cast<double>(o.items));
    check_option(name, "hidden", o.hidden >= 1, "hidden >= 1", static_cast<double>(o.hidden));
    check_option(name, "embedding", o.embedding >= 0, "embedding >= 0", static_cast<double>(o.embedding));
    check_option(name, "dropout", 0 <= o.dropout && o.dropout < 1, "0 <= dropout < 1", o.dropout);
    TimeEmbedding<T> time(o.embedding, o.embedding, {}, random);
    net = MlpDenoiser<T>(o.items, 0, {o.hidden}, Activation::tanh, std::move(time), random);
  }

  static constexpr auto fields() { return std::tuple{layer("net", &DiffRec::net)}; }
  /// I.
  Index items() const { return net.width(); }

  struct Saved {
    Matrix<T> x;       ///< [B, I], normalised
    Vector<T> length;  ///< [B], before that
    typename Dropout<T>::Saved dropout;
    typename MlpDenoiser<T>::Saved net;
  };

  /// Inference.
  void forward(MatrixView<const T> x, IndexView t, MatrixView<T> m, Workspace& ws) const {
    check_shape("DiffRec", "x", x, any_size, items());
    check_shape("DiffRec", "m", m, x.rows(), items());
    if (!normalize) return net.forward(x, {}, t, m, ws);
    const auto mark = ws.mark();
    const MatrixView<T> unit = ws.matrix<T>(x.rows(), x.cols());
    for (Index b = 0; b < x.rows(); ++b) simd::scale<T>(1 / length(x.row(b)), x.row(b), unit.row(b), x.cols());
    net.forward(unit, {}, t, m, ws);
  }
  /// Training.
  void forward(MatrixView<const T> x, IndexView t, MatrixView<T> m, Saved& saved, const Step& step, Workspace& ws) const {
    check_shape("DiffRec", "x", x, any_size, items());
    check_shape("DiffRec", "m", m, x.rows(), items());
    saved.x.resize(x.rows(), x.cols());
    saved.length.resize(x.rows());
    for (Index b = 0; b < x.rows(); ++b) {
      saved.length[b] = normalize ? length(x.row(b)) : T(1);
      simd::scale<T>(1 / saved.length[b], x.row(b), saved.x.row(b), x.cols());
    }
    const auto mark = ws.mark();
    const MatrixView<T> dropped = ws.matrix<T>(x.rows(), x.cols());
    Dropout<T>(dropout).forward(saved.x, dropped, saved.dropout, step.child(0), ws);
    net.forward(dropped, {}, {}, t, m, saved.net, step.child(1), ws);
  }
  /// Adds to dx `[B, I]` (may be empty) and `gradient`.
  void backward(MatrixView<const T> dm, const Saved& saved, MatrixView<T> dx, DiffRec& gradient, Workspace& ws) const {
    constexpr const char* name = "DiffRec::backward";
    check_shape(name, "saved", saved.x.view(), saved.length.size(), items());
    check_shape(name, "dm", dm, saved.x.rows(), items());
    if (dx.empty()) return net.backward(dm, saved.net, {}, {}, gradient.net, ws);
    check_shape(name, "dx", dx, saved.x.rows(), items());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dropped = ws.matrix<T>(dm.rows(), items()), unit = ws.matrix<T>(dm.rows(), items());
    std::fill_n(dropped.data(), dm.rows() * items(), T(0));
    std::fill_n(unit.data(), dm.rows() * items(), T(0));
    net.backward(dm, saved.net, dropped, {}, gradient.net, ws);
    Dropout<T> none;
    Dropout<T>(dropout).backward(saved.x, dropped, saved.dropout, unit, none, ws);
    for (Index b = 0; b < dm.rows(); ++b) {
      const T scale = 1 / saved.length[b];
      simd::axpy<T>(scale, unit.row(b), dx.row(b), items());
      if (normalize)
        simd::axpy<T>(-scale * simd::dot<T>(unit.row(b), saved.x.row(b), items()), saved.x.row(b), dx.row(b), items());
    }
  }

 private:
  /// Not 0: an empty row stays one.
  T length(const T* x) const {
    const T l = std::sqrt(simd::sum_squares<T>(x, items()));
    return l < std::numeric_limits<T>::min() ? T(1) : l;
  }
};

/// Serving form: from histories to scores, in the hidden space. Immutable; threads may share it.
template <class T, class S = T>
class FrozenDiffRec {
 public:
  FrozenDiffRec() = default;
  /// Throws Error unless the net has one hidden layer, no normalisation, and the plan predictions of x_0 and neither noise nor guidance nor
  /// clip nor memory.
  FrozenDiffRec(const DiffRec<T>& d, const SamplerPlan& plan) : steps_(plan.steps) {
    constexpr const char* name = "FrozenDiffRec";
    check_option(name, "net", d.net.net.hidden.size() == 1 && !d.normalize, "one hidden layer, rows not normalised",
                 static_cast<double>(d.net.net.hidden.size()));
    const bool plain = !plan.guided() && !plan.multistep() && plan.options.clip == ClipX0::none;
    check_option(name, "plan", !plan.steps.empty() && plain, "steps, no guidance, no clip, one after another",
                 static_cast<double>(plan.steps.size()));
    for (const SamplerStep& s : plan.steps) check_option(name, "plan", s.noise == 0, "steps without noise", s.noise);
    check_option(name, "plan", plan.options.prediction == Prediction::x0, "a net that predicts x_0",
                 static_cast<double>(static_cast<int>(plan.options.prediction)));
    const Dense<T>&first = d.net.net.hidden[0], &last = d.net.net.last;
    check_option(name, "net", last.activation == Activation::none, "no activation of the scores", 1);
    d.net.net.output_cols(d.items() + d.net.time.width());
    activation_ = first.activation;
    const Index items = d.items(), hidden = first.linear.weight.rows(), count = static_cast<Index>(steps_.size());
    const MatrixView<const T> in = first.linear.weight, out = last.linear.weight;
    columns_.resize(items, hidden);
    for (Index i = 0; i < items; ++i)
      for (Index h = 0; h < hidden; ++h) columns_(i, h) = in(h, i);
    // M and w_b, a few thousand items at a time.
    Workspace ws;
    Matrix<double> product(hidden, hidden, 0.0);
    Vector<double> through(hidden, 0.0);
    for (Index start = 0; start < items; start += 4096) {
      const Index part = std::min(items - start, Index{4096});
      Matrix<double> a(hidden, part), b(part, hidden);
      for (Index i = 0; i < part; ++i)
        for (Index h = 0; h < hidden; ++h) {
          a(h, i) = static_cast<double>(in(h, start + i));
          b(i, h) = static_cast<double>(out(start + i, h));
          if (!last.linear.bias.empty()) through[h] += a(h, i) * static_cast<double>(last.linear.bias[start + i]);
        }
      simd::gemm<double>(simd::plain(a.view()), simd::plain(b.view()), {.accumulate = true}, product.view(), ws);
    }
    Matrix<T> m(hidden, hidden);
    through_.resize(hidden);
    for (Index h = 0; h < hidden; ++h) {
      through_[h] = static_cast<T>(through[h]);
      for (Index k = 0; k < hidden; ++k) m(h, k) = static_cast<T>(product(h, k));
    }
    recursion_ = FrozenDense<T, S>(m, through_, Activation::none);
    scores_ = FrozenDense<T, S>(out, last.linear.bias, Activation::none);
    Vector<std::int64_t> t(count);
    for (Index i = 0; i < count; ++i) t[i] = steps_[static_cast<std::size_t>(i)].from;
    Matrix<T> e(count, d.net.time.width());
    d.net.time.forward(t, e, ws);
    bias_.resize(count, hidden);
    for (Index i = 0; i < count; ++i)
      for (Index h = 0; h < hidden; ++h) {
        double sum = first.linear.bias.empty() ? 0 : static_cast<double>(first.linear.bias[h]);
        for (Index k = 0; k < e.cols(); ++k) sum += static_cast<double>(in(h, items + k)) * static_cast<double>(e(i, k));
        bias_(i, h) = static_cast<T>(sum);
      }
  }

  /// I.
  Index items() const { return columns_.rows(); }
  /// scores `[B, I]` of histories `ids [total]`, `offsets [B + 1]`. `weights [total]`, unless empty, are the numbers in x instead of 1
  /// (T-DiffRec's, which rise with recency); an item that comes twice counts twice. What a user has seen is scored too: mask it.
  void forward(IndexView ids, IndexView offsets, VectorView<const T> weights, MatrixView<T> scores, Workspace& ws) const {
    constexpr const char* name = "FrozenDiffRec";
    check_offsets(name, "offsets", offsets, ids.size());
    check_indices(name, "ids", ids, items());
    if (!weights.empty()) check_size(name, "weights", weights, ids.size());
    const Index rows = offsets.size() - 1, hidden = columns_.cols();
    check_shape(name, "scores", scores, rows, items());
    // Several tiles where there are threads; the last product is the one that is large.
    const auto mark = ws.mark();
    const MatrixView<T> u = ws.matrix<T>(rows, hidden), h = ws.matrix<T>(rows, hidden), mh = ws.matrix<T>(rows, hidden);
    for (Index b = 0; b < rows; ++b) {
      std::fill_n(u.row(b), hidden, T(0));
      for (Index i = offsets[b]; i < offsets[b + 1]; ++i)
        simd::axpy<T>(weights.empty() ? T(1) : weights[i], columns_.row(ids[i]), u.row(b), hidden);
    }
    for (std::size_t i = 0; i < steps_.size(); ++i) {
      const SamplerStep& s = steps_[i];
      const T* const bias = bias_.row(static_cast<Index>(i));
      for (Index b = 0; b < rows; ++b) {
        simd::combine<T>(T(1), u.row(b), T(1), bias, h.row(b), hidden);
        simd::activate(activation_, h.row(b), h.row(b), hidden);
      }
      if (i + 1 == steps_.size()) break;
      recursion_.forward(h, mh, ws);
      for (Index b = 0; b < rows; ++b)
        simd::combine<T>(static_cast<T>(s.x), u.row(b), static_cast<T>(s.p), mh.row(b), u.row(b), hidden);
    }
    scores_.forward(h, scores, ws);
  }

 private:
  std::vector<SamplerStep> steps_;
  Matrix<T> columns_, bias_;  // [I, H]: W_in transposed; [steps, H]
  Vector<T> through_;
  FrozenDense<T, S> recursion_, scores_;
  Activation activation_ = Activation::tanh;
};

/// The serving form for the steps of a plan.
template <class T, class S = T>
FrozenDiffRec<T, S> freeze(const DiffRec<T>& d, const SamplerPlan& plan, Weights<S> = {}) {
  return FrozenDiffRec<T, S>(d, plan);
}

}  // namespace RECOPS_ABI
}  // namespace recops
