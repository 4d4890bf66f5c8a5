/// @file   recops/diffusion/mlp_denoiser.hpp
/// @brief  The denoiser of most recommenders: an MLP of the noisy item, the condition and the step.
///
///     m = net([x_t ; c ; e(t)])
///
/// Shapes      x, m [B, D]   c [B', C] with B' <= B: rows behind take the null condition, so that [2 B, D] of a guided sampler goes
///             with [B, C]   t [B] or [1]
/// Edge cases  NaN stays in its row.   C = 0: no condition.
/// Precision   as the layers it is made of.
/// Cost        2 B (parameters of net) flops; frozen_sampler.hpp does the step's and the condition's share once.
/// Errors      Error if shapes disagree or a step is none; outputs untouched.
/// Gradient    of x, c, the null condition and all weights; adds.
/// Reference   DreamRec, Yang et al. arXiv 2310.20453: `dreamrec_denoiser`.
#pragma once
#include <recops/diffusion/timestep_embedding.hpp>
#include <recops/nn/mlp.hpp>

namespace recops {
inline namespace RECOPS_ABI {

template <class T>
struct MlpDenoiser {
  TimeEmbedding<T> time;
  Vector<T> null_condition;  ///< [C], learned: stands for "no condition"
  Mlp<T> net;                ///< D + C + E to D

  MlpDenoiser() = default;
  /// For states of `width` and conditions of `condition` numbers; `hidden` widths may be none at all.
  MlpDenoiser(Index width, Index condition, VectorView<const Index> hidden, Activation activation, TimeEmbedding<T> embedding,
              Random& random)
      : time(std::move(embedding)) {
    check_option("MlpDenoiser", "width", width >= 1, "width >= 1", static_cast<double>(width));
    check_option("MlpDenoiser", "condition", condition >= 0, "condition >= 0", static_cast<double>(condition));
    for (const Index h : hidden) check_option("MlpDenoiser", "hidden", h >= 1, "widths >= 1", static_cast<double>(h));
    null_condition.resize(condition);
    for (T& v : null_condition) v = static_cast<T>(random.normal());  // as torch.nn.Embedding
    Vector<Index> widths(hidden.size() + 2);
    widths[0] = width + condition + time.width();
    std::copy(hidden.begin(), hidden.end(), widths.begin() + 1);
    widths[widths.size() - 1] = width;
    net = Mlp<T>(VectorView<const Index>(widths), {.activation = activation}, random);
  }
  MlpDenoiser(Index width, Index condition, std::initializer_list<Index> hidden, Activation activation,
              TimeEmbedding<T> embedding, Random& random)
      : MlpDenoiser(width, condition, VectorView<const Index>(hidden.begin(), static_cast<Index>(hidden.size())), activation,
                    std::move(embedding), random) {}

  static constexpr auto fields() {
    return std::tuple{layer("time", &MlpDenoiser::time), parameter("null_condition", &MlpDenoiser::null_condition),
                      layer("net", &MlpDenoiser::net)};
  }
  /// D.
  Index width() const { return net.last.linear.weight.rows(); }
  /// C.
  Index condition_width() const { return null_condition.size(); }

  struct Saved {
    Matrix<T> input;  ///< [B, D + C + E]
    typename TimeEmbedding<T>::Saved time;
    typename Mlp<T>::Saved net;
    Vector<std::uint8_t> kept;  ///< [B], 0 where the null condition stood in
    Index conditions = 0;       ///< B'
  };

  /// Inference.
  void forward(MatrixView<const T> x, MatrixView<const T> c, IndexView t, MatrixView<T> m, Workspace& ws) const {
    check("MlpDenoiser", x, c, t, m);
    const auto mark = ws.mark();
    const MatrixView<T> input = ws.matrix<T>(x.rows(), width() + condition_width() + time.width());
    const MatrixView<T> e = ws.matrix<T>(t.size() == 1 ? std::min<Index>(1, x.rows()) : x.rows(), time.width());
    time.forward(t, e, ws);
    join(x, c, {}, e, input);
    net.forward(input, m, ws);
  }
  /// Training. `keep [B]`, unless empty: 0 replaces the condition of a row by the null condition (`guidance_mask` draws it).
  void forward(MatrixView<const T> x, MatrixView<const T> c, VectorView<const std::uint8_t> keep, IndexView t, MatrixView<T> m,
               Saved& saved, const Step& step, Workspace& ws) const {
    check("MlpDenoiser", x, c, t, m);
    if (!keep.empty()) check_size("MlpDenoiser", "keep", keep, x.rows());
    saved.input.resize(x.rows(), width() + condition_width() + time.width());
    saved.kept.resize(x.rows());
    saved.conditions = c.rows();
    for (Index b = 0; b < x.rows(); ++b) saved.kept[b] = b < c.rows() && (keep.empty() || keep[b] != 0) ? 1 : 0;
    const auto mark = ws.mark();
    const MatrixView<T> e = ws.matrix<T>(x.rows(), time.width());
    time.forward(t, e, saved.time, ws);
    join(x, c, saved.kept, e, saved.input);
    net.forward(saved.input, m, saved.net, step, ws);
  }
  /// Adds to dx `[B, D]`, dc `[B', C]` (either may be empty) and `gradient`.
  void backward(MatrixView<const T> dm, const Saved& saved, MatrixView<T> dx, MatrixView<T> dc, MlpDenoiser& gradient,
                Workspace& ws) const {
    constexpr const char* name = "MlpDenoiser::backward";
    const Index rows = saved.kept.size(), d = width(), conditions = condition_width();
    check_shape(name, "saved", saved.input.view(), rows, d + conditions + time.width());
    check_shape(name, "dm", dm, rows, d);
    if (!dx.empty()) check_shape(name, "dx", dx, rows, d);
    if (!dc.empty()) check_shape(name, "dc", dc, saved.conditions, conditions);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dinput = ws.matrix<T>(rows, saved.input.cols());
    std::fill_n(dinput.data(), dinput.rows() * dinput.cols(), T(0));
    net.backward(saved.input, dm, saved.net, dinput, gradient.net, ws);
    for (Index b = 0; b < rows; ++b) {
      if (!dx.empty()) simd::add(dinput.row(b), dx.row(b), d);
      const bool null = saved.kept[b] == 0, wanted = null ? !gradient.null_condition.empty() : !dc.empty();
      if (wanted) simd::add(dinput.row(b) + d, null ? gradient.null_condition.data() : dc.row(b), conditions);
    }
    time.backward(dinput.middle_cols(d + conditions, time.width()), saved.time, gradient.time, ws);
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> c, IndexView t, MatrixView<T> m) const {
    check_shape(name, "x", x, any_size, width());
    if (condition_width() > 0 || !c.empty()) check_shape(name, "c", c, any_size, condition_width());
    check_option(name, "c", c.rows() <= x.rows(), "at most as many rows as x has", static_cast<double>(c.rows()));
    check_shape(name, "m", m, x.rows(), width());
    detail::check_timesteps(name, t, x.rows(), 0, Index{1} << 53);
  }
  void join(MatrixView<const T> x, MatrixView<const T> c, VectorView<const std::uint8_t> kept, MatrixView<const T> e,
            MatrixView<T> input) const {
    for (Index b = 0; b < x.rows(); ++b) {
      const bool own = b < c.rows() && (kept.empty() || kept[b] != 0);
      T* const to = std::copy_n(x.row(b), x.cols(), input.row(b));
      std::copy_n(own ? c.row(b) : null_condition.data(), condition_width(), to);
      std::copy_n(e.row(e.rows() == 1 ? 0 : b), e.cols(), to + condition_width());
    }
  }
};

/// DreamRec's denoiser for items and guidance of `width` D: one linear layer of [x ; guidance ; step] (its "mlp1"), or with `two_layers`
/// 3 D - 2 D - D with GELU ("mlp2"); step embedding D - 2 D - D with GELU. Released weights load by these names:
///
///     step_mlp.1, step_mlp.3 -> time.linear_1, time.linear_2     none_embedding.weight -> null_condition
///     diffuser.0 -> net.last.linear (mlp1), net.hidden.0.linear (mlp2)     diffuser.2 -> net.last.linear (mlp2)
///
/// and want steps counted from 0, `time.options.offset = -1`.
template <class T>
MlpDenoiser<T> dreamrec_denoiser(Index width, bool two_layers, Random& random) {
  TimeEmbedding<T> time(width, 2 * width, width, Activation::gelu, {.sine_first = true, .to_the_end = true}, random);
  const Index hidden[] = {2 * width};
  return MlpDenoiser<T>(width, width, VectorView<const Index>(hidden, two_layers ? 1 : 0), Activation::gelu, std::move(time),
                        random);
}

}  // namespace RECOPS_ABI
}  // namespace recops
