/// @file   recops/diffusion/dreamrec.hpp
/// @brief  DreamRec's one-layer denoiser is linear, and so is a whole chain of it: a sampler that is one product.
///
///     x_0 = P x_T + Q c + q
///
/// With m = W_x x + W_c c + W_e e(t) + b every step without noise and clip maps (x, c) to x linearly, guidance included. All steps
/// together are worked out once, in double; serving is a single layer of [x_T ; c], whatever the number of steps.
///
/// Precision   P, Q and q rounded once from double: closer to the exact chain than the steps one by one.
/// Cost        set-up: steps D^2 (D + C) multiply-adds in double; a row: 2 D (D + C) flops.
/// Errors      Error for denoisers with hidden layers and plans with noise or a clip.
/// Reference   Yang et al. arXiv 2310.20453 (DreamRec, its one-layer denoiser); the collapse is ours.
#pragma once
#include <recops/diffusion/mlp_denoiser.hpp>
#include <recops/diffusion/sampler.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// The serving form of a linear denoiser and a plan without noise. Immutable; threads may share it.
template <class T, class S = T>
class CollapsedSampler {
 public:
  CollapsedSampler() = default;
  CollapsedSampler(const MlpDenoiser<T>& denoiser, const SamplerPlan& plan)
      : width_(denoiser.width()), conditions_(denoiser.condition_width()) {
    constexpr const char* name = "CollapsedSampler";
    const Linear<T>& net = denoiser.net.last.linear;
    const Index d = width_, cols = d + conditions_ + 1, count = static_cast<Index>(plan.steps.size());
    check_option(name, "denoiser", denoiser.net.hidden.empty() && denoiser.net.last.activation == Activation::none,
                 "one linear layer", static_cast<double>(denoiser.net.hidden.size() + 1));
    denoiser.net.output_cols(d + conditions_ + denoiser.time.width());
    check_option(name, "plan", count > 0 && plan.options.clip == ClipX0::none, "steps, and no clip", static_cast<double>(count));
    for (const SamplerStep& s : plan.steps) check_option(name, "plan", s.noise == 0, "steps without noise", s.noise);
    Workspace ws;
    Vector<std::int64_t> t(count);
    for (Index i = 0; i < count; ++i) t[i] = plan.steps[static_cast<std::size_t>(i)].from;
    Matrix<T> e(count, denoiser.time.width());
    denoiser.time.forward(t, e, ws);
    // Every quantity is a matrix that multiplies [x_T ; c ; 1].
    Matrix<double> wx(d, d), x(d, cols, 0.0), m(d, cols), previous(d, cols, 0.0);
    for (Index r = 0; r < d; ++r) {
      for (Index k = 0; k < d; ++k) wx(r, k) = static_cast<double>(net.weight(r, k));
      x(r, r) = 1;
    }
    const double w = plan.options.guidance;
    for (Index i = 0; i < count; ++i) {
      const SamplerStep& s = plan.steps[static_cast<std::size_t>(i)];
      simd::gemm<double>(simd::plain(wx.view()), simd::plain(std::as_const(x).view()), {}, m.view(), ws);
      for (Index r = 0; r < d; ++r) {
        const T* const row = net.weight.row(r);
        double constant = net.bias.empty() ? 0 : static_cast<double>(net.bias[r]);
        for (Index k = 0; k < conditions_; ++k) {
          const double v = static_cast<double>(row[d + k]);
          m(r, d + k) += (1 + w) * v;
          constant -= w * v * static_cast<double>(denoiser.null_condition[k]);
        }
        for (Index k = 0; k < e.cols(); ++k)
          constant += static_cast<double>(row[d + conditions_ + k]) * static_cast<double>(e(i, k));
        m(r, cols - 1) += constant;
        for (Index k = 0; k < cols; ++k) {
          const double p = s.x0_x * x(r, k) + s.x0_m * m(r, k);
          x(r, k) = s.x * x(r, k) + s.p * p + s.previous * previous(r, k);
          previous(r, k) = p;
        }
      }
    }
    Matrix<T> weight(d, cols - 1);
    Vector<T> bias(d);
    for (Index r = 0; r < d; ++r) {
      for (Index k = 0; k + 1 < cols; ++k) weight(r, k) = static_cast<T>(x(r, k));
      bias[r] = static_cast<T>(x(r, cols - 1));
    }
    layer_ = FrozenDense<T, S>(weight, bias, Activation::none);
  }

  /// D.
  Index width() const { return width_; }
  /// C.
  Index condition_width() const { return conditions_; }
  /// x `[B, D]` receives one sample for each row of c `[B, C]`; with `from_x` it holds their start. Starts are those of `sample`. Returns
  /// how many rows are not finite.
  Index sample(MatrixView<const T> c, const SampleOptions& options, MatrixView<T> x, Workspace& ws) const {
    check_shape("CollapsedSampler::sample", "x", x, any_size, width_);
    if (conditions_ > 0) check_shape("CollapsedSampler::sample", "c", c, x.rows(), conditions_);
    simd::check_ids("CollapsedSampler::sample", options.ids, x.rows());
    const auto mark = ws.mark();
    const MatrixView<T> input = ws.matrix<T>(x.rows(), width_ + conditions_), start = input.middle_cols(0, width_);
    RandomRow at = options.at;
    at.step = 0;
    at.purpose = RandomPurpose::initial_noise;
    if (!options.from_x) simd::fill_normal<T>(at, options.ids, start);
    for (Index b = 0; b < x.rows(); ++b) {
      if (options.from_x) std::copy_n(x.row(b), width_, start.row(b));
      if (conditions_ > 0) std::copy_n(c.row(b), conditions_, input.row(b) + width_);
    }
    layer_.forward(input, x, ws);
    return detail::rows_not_finite<T>(x);
  }

 private:
  FrozenDense<T, S> layer_;
  Index width_ = 0, conditions_ = 0;
};

}  // namespace RECOPS_ABI
}  // namespace recops
