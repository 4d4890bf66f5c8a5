/// @file   recops/diffusion/diffurec.hpp
/// @brief  DiffuRec's denoiser: the history with the noisy target stirred into every position, through a Transformer.
///
///     z_i = LayerNorm(e_i) + lambda_i o (x_t + d(t))        m = last row of Transformer(z_1 .. z_L)        lambda_i ~ N(l, l^2)
///
/// Shapes      history sum_b L_b rows of D, oldest first   x, m [B, D]   t [B] or [1]
/// Edge cases  an empty history gives m = 0 and no gradient.   NaN stays in its request.
/// Precision   as its layers. lambda is drawn anew in every call, serving included, by the row's id and `at.step`: the same in any batch.
/// Cost        per step and request, 4 blocks: 4 (24 L D^2 + 4 L^2 D) flops; nothing can be kept from step to step, so take few
///             steps: predictions of x_0 bear 4 to 8.
/// Errors      Error if shapes or offsets disagree; outputs untouched.
/// Gradient    of the history, x and all weights; adds. lambda is a constant.
/// Reference   Li et al. arXiv 2304.00686 (TOIS 2023). Sequences are jagged: there is no padding to mask. GELU is exact, where the
///             released code has its tanh form (they differ by 5e-4 at most).
#pragma once
#include <recops/diffusion/timestep_embedding.hpp>
#include <recops/nn/transformer_block.hpp>
#include <recops/simd/diffusion_update.hpp>
#include <vector>

namespace recops {

/// Options of `DiffuRecDenoiser`; the defaults are the paper's.
struct DiffuRecOptions {
  Index width = 128;  ///< D
  Index blocks = 4;
  Index heads = 4;        ///< divides width
  Index steps = 32;       ///< T of the schedule: steps are embedded as 1000 t / T
  double lambda = 0.001;  ///< mean and deviation of lambda; 0: the noisy target is not seen
  double dropout = 0.1;   ///< in training, of the blocks
};

inline namespace RECOPS_ABI {

template <class T>
struct DiffuRecDenoiser {
  TimeEmbedding<T> time;
  LayerNorm<T> norm;  ///< of the history's items
  std::vector<TransformerBlock<T>> blocks;
  double lambda = 0.001;

  DiffuRecDenoiser() = default;
  /// Throws Error for options out of range.
  DiffuRecDenoiser(const DiffuRecOptions& o, Random& random)
      : norm(checked_size("DiffuRecDenoiser", "width", o.width)), lambda(o.lambda) {
    check_option("DiffuRecDenoiser", "width", o.width >= 1, "width >= 1", static_cast<double>(o.width));
    check_option("DiffuRecDenoiser", "blocks", o.blocks >= 0, "blocks >= 0", static_cast<double>(o.blocks));
    check_option("DiffuRecDenoiser", "steps", o.steps >= 1, "steps >= 1", static_cast<double>(o.steps));
    check_option("DiffuRecDenoiser", "lambda", o.lambda >= 0, "lambda >= 0", o.lambda);
    time =
        TimeEmbedding<T>(o.width, 4 * o.width, o.width, Activation::silu, {.scale = 1000 / static_cast<double>(o.steps)}, random);
    for (Index i = 0; i < o.blocks; ++i)
      blocks.emplace_back(
          o.width,
          TransformerBlockOptions{.heads = o.heads, .activation = Activation::gelu, .norm_first = true, .dropout = o.dropout},
          random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("time", &DiffuRecDenoiser::time), layer("norm", &DiffuRecDenoiser::norm),
                      layers("blocks", &DiffuRecDenoiser::blocks)};
  }
  /// D.
  Index width() const { return norm.weight.size(); }

  struct Saved {
    typename TimeEmbedding<T>::Saved time;
    typename LayerNorm<T>::Saved norm;
    Matrix<T> lambda;               ///< [total, D], drawn
    std::vector<Matrix<T>> inputs;  ///< of the blocks, and what the last gives
    std::vector<typename TransformerBlock<T>::Saved> blocks;
  };

  /// Inference. lambda takes the normals of row `ids[b]`, or of `at.row` + b without ids, for the purpose dropout whatever `at` says.
  void forward(JaggedView<const T> history, MatrixView<const T> x, IndexView t, const RandomRow& at, IndexView ids,
               MatrixView<T> m, Workspace& ws) const {
    check("DiffuRecDenoiser", history, x, t, ids);
    check_shape("DiffuRecDenoiser", "m", m, history.size(), width());
    const auto mark = ws.mark();
    const Index total = history.values().rows();
    MatrixView<T> in = ws.matrix<T>(total, width()), out = ws.matrix<T>(total, width());
    const MatrixView<T> e = ws.matrix<T>(x.rows(), width());
    time.forward(t, e, ws);
    norm.forward(history.values(), in, ws);
    draw(history, at, ids, out);
    stir(history, x, e, out, in);
    for (const auto& block : blocks) {
      block.forward(history.with_values(MatrixView<const T>(in)), out, ws);
      std::swap(in, out);
    }
    last_rows(history, in, m);
  }
  /// Training.
  void forward(JaggedView<const T> history, MatrixView<const T> x, IndexView t, const RandomRow& at, IndexView ids,
               MatrixView<T> m, Saved& saved, const Step& step, Workspace& ws) const {
    check("DiffuRecDenoiser", history, x, t, ids);
    saved.lambda.resize(history.values().rows(), width());
    draw(history, at, ids, saved.lambda);
    forward(history, x, t, saved.lambda, m, saved, step, ws);
  }
  /// The same with lambda `[total, D]` given.
  void forward(JaggedView<const T> history, MatrixView<const T> x, IndexView t, MatrixView<const T> given, MatrixView<T> m,
               Saved& saved, const Step& step, Workspace& ws) const {
    check("DiffuRecDenoiser", history, x, t, {});
    check_shape("DiffuRecDenoiser", "given", given, history.values().rows(), width());
    check_shape("DiffuRecDenoiser", "m", m, history.size(), width());
    const auto mark = ws.mark();
    const Index total = history.values().rows();
    saved.inputs.resize(blocks.size() + 1);
    saved.blocks.resize(blocks.size());
    for (Matrix<T>& input : saved.inputs) input.resize(total, width());
    if (given.data() != saved.lambda.data()) {
      saved.lambda.resize(total, width());
      for (Index i = 0; i < total; ++i) std::copy_n(given.row(i), width(), saved.lambda.row(i));
    }
    const MatrixView<T> e = ws.matrix<T>(x.rows(), width());
    time.forward(t, e, saved.time, ws);
    norm.forward(history.values(), saved.inputs[0], saved.norm, step.child(0), ws);
    stir(history, x, e, saved.lambda, saved.inputs[0]);
    for (std::size_t i = 0; i < blocks.size(); ++i)
      blocks[i].forward(history.with_values(saved.inputs[i].view()), saved.inputs[i + 1], saved.blocks[i],
                        step.child(static_cast<Index>(i) + 1), ws);
    last_rows(history, saved.inputs.back(), m);
  }
  /// Adds to dhistory `[total, D]`, dx `[B, D]` (either may be empty) and `gradient`.
  void backward(JaggedView<const T> history, MatrixView<const T> dm, const Saved& saved, MatrixView<T> dhistory, MatrixView<T> dx,
                DiffuRecDenoiser& gradient, Workspace& ws) const {
    constexpr const char* name = "DiffuRecDenoiser::backward";
    check_jagged(name, "history", history, any_size, width());
    const Index total = history.values().rows();
    check_shape(name, "dm", dm, history.size(), width());
    if (!dhistory.empty()) check_shape(name, "dhistory", dhistory, total, width());
    if (!dx.empty()) check_shape(name, "dx", dx, history.size(), width());
    check_gradient_shapes(name, *this, gradient);
    check_shape(name, "saved", saved.lambda.view(), total, width());
    check_option(name, "saved", saved.blocks.size() == blocks.size(), "what forward of this layer saved",
                 static_cast<double>(saved.blocks.size()));
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows) {
      const MatrixView<T> z = ws.matrix<T>(rows, width());
      std::fill_n(z.data(), rows * width(), T(0));
      return z;
    };
    MatrixView<T> d = zeros(total);
    for (Index b = 0; b < history.size(); ++b)
      if (history.length(b) > 0) std::copy_n(dm.row(b), width(), d.row(history.begin(b) + history.length(b) - 1));
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const MatrixView<T> din = zeros(total);
      blocks[i].backward(history.with_values(saved.inputs[i].view()), d, saved.blocks[i], din, gradient.blocks[i], ws);
      d = din;
    }
    const MatrixView<T> de = zeros(history.size());
    for (Index b = 0; b < history.size(); ++b) {
      for (Index i = history.begin(b); i < history.begin(b) + history.length(b); ++i) {
        const T *const l = saved.lambda.row(i), *const g = d.row(i);
        T* const to = de.row(b);
        for (Index j = 0; j < width(); ++j) to[j] += l[j] * g[j];
      }
      if (!dx.empty()) simd::add(de.row(b), dx.row(b), width());
    }
    time.backward(de, saved.time, gradient.time, ws);
    norm.backward(history.values(), d, saved.norm, dhistory, gradient.norm, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> history, MatrixView<const T> x, IndexView t, IndexView ids) const {
    check_jagged(name, "history", history, any_size, width());
    check_shape(name, "x", x, history.size(), width());
    detail::check_timesteps(name, t, x.rows(), 0, Index{1} << 53);
    simd::check_ids(name, ids, x.rows());
  }
  /// The numbers of a request are one row, position after position.
  void draw(JaggedView<const T> history, RandomRow at, IndexView ids, MatrixView<T> out) const {
    at.purpose = RandomPurpose::dropout;
    const T l = static_cast<T>(lambda);
    simd::Philox<> philox(at);
    for (Index b = 0; b < history.size(); ++b) {
      philox.set_row(simd::row_of(at, ids, b));
      T* const to = out.data() + history.begin(b) * width();
      simd::for_each_normal<T>(philox, history.length(b) * width(), [&](Index i, auto z, auto, auto store) RECOPS_LAMBDA_INLINE {
        using B = decltype(z);
        store(to + i, simd::mul_add(B(l), z, B(l)));
      });
    }
  }
  /// z = z + lambda o (x + e)
  void stir(JaggedView<const T> history, MatrixView<const T> x, MatrixView<const T> e, MatrixView<const T> drawn,
            MatrixView<T> z) const {
    for (Index b = 0; b < history.size(); ++b)
      for (Index i = history.begin(b); i < history.begin(b) + history.length(b); ++i) {
        const T *const px = x.row(b), *const pe = e.row(b), *const l = drawn.row(i);
        T* const to = z.row(i);
        simd::for_each_vector<T, simd::DefaultArch>(width(), [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(to + j, simd::mul_add(load(l + j), load(px + j) + load(pe + j), load(to + j)));
        });
      }
  }
  void last_rows(JaggedView<const T> history, MatrixView<const T> h, MatrixView<T> m) const {
    for (Index b = 0; b < history.size(); ++b) {
      if (history.length(b) == 0) {
        std::fill_n(m.row(b), width(), T(0));
      } else {
        std::copy_n(h.row(history.begin(b) + history.length(b) - 1), width(), m.row(b));
      }
    }
  }

  template <class, class>
  friend class FrozenDiffuRecDenoiser;
};

/// Serving form: packed weights. Immutable; threads may share it.
template <class T, class Block>
class FrozenDiffuRecDenoiser {
 public:
  FrozenDiffuRecDenoiser(const DiffuRecDenoiser<T>& d, std::vector<Block> blocks) : parts_(d), blocks_(std::move(blocks)) {
    parts_.blocks.clear();
  }
  Index width() const { return parts_.width(); }
  /// As that of DiffuRecDenoiser.
  void forward(JaggedView<const T> history, MatrixView<const T> x, IndexView t, const RandomRow& at, IndexView ids,
               MatrixView<T> m, Workspace& ws) const {
    parts_.check("FrozenDiffuRecDenoiser", history, x, t, ids);
    check_shape("FrozenDiffuRecDenoiser", "m", m, history.size(), width());
    const auto mark = ws.mark();
    const Index total = history.values().rows();
    MatrixView<T> in = ws.matrix<T>(total, width()), out = ws.matrix<T>(total, width());
    const MatrixView<T> e = ws.matrix<T>(x.rows(), width());
    parts_.time.forward(t, e, ws);
    parts_.norm.forward(history.values(), in, ws);
    parts_.draw(history, at, ids, out);
    parts_.stir(history, x, e, out, in);
    for (const auto& block : blocks_) {
      block.forward(history.with_values(MatrixView<const T>(in)), out, ws);
      std::swap(in, out);
    }
    parts_.last_rows(history, in, m);
  }

 private:
  DiffuRecDenoiser<T> parts_;  // without its blocks
  std::vector<Block> blocks_;
};
template <class T, class S = T>
auto freeze(const DiffuRecDenoiser<T>& d, Weights<S> weights = {}) {
  std::vector<decltype(freeze(d.blocks[0], weights))> blocks;
  for (const auto& block : d.blocks) blocks.push_back(freeze(block, weights));
  return FrozenDiffuRecDenoiser<T, typename decltype(blocks)::value_type>(d, std::move(blocks));
}

}  // namespace RECOPS_ABI
}  // namespace recops
