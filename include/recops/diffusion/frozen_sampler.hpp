/// @file   recops/diffusion/frozen_sampler.hpp
/// @brief  A sampler with its denoiser, made for serving: the whole reverse chain with packed weights.
///
///     const auto sampler = freeze(denoiser, plan);                      // or freeze(denoiser, plan, Weights<BFloat16>())
///     sampler.sample(conditions, {.at = {.seed = 1}, .ids = users}, x, ws);
///
/// The first layer's product is W_x x + W_c c + (W_e e(t) + b): the last part is worked out here once for every step, the one of the
/// condition once per call, so that a step multiplies W_x alone. Guided, both branches share W_x x. Activation and, where the step
/// takes no noise, guidance or clip, the update of x happen in the registers of the products.
///
/// Shapes      x [B, D]   c [B, C]
/// Edge cases  no rows: nothing happens.   NaN stays in its row, and is counted.
/// Precision   as the denoiser's; SiLU in float is `simd::quick_silu`. In bfloat16 weights keep 8 bits, sums and states are float. A row's
///             bits depend on its own input, id and condition alone: not on its batch, its place in it, nor on threads.
/// Cost        per row and step 2 (parameters without W_c and W_e) flops; one row alone: the time to read the weights once. No
///             allocation once the workspace has grown. For layers of up to a thousand or so.
/// Errors      Error for shapes that disagree; outputs untouched.
#pragma once
#include <recops/diffusion/mlp_denoiser.hpp>
#include <recops/diffusion/sampler.hpp>
#include <recops/simd/fused_rows.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Immutable; threads may share it. `S` is T, or BFloat16 with float.
template <class T, class S = T>
class FrozenSampler {
  static_assert(std::is_same_v<S, T> || (std::is_same_v<T, float> && std::is_same_v<S, BFloat16>),
                "weights are kept as they are, or of float denoisers in BFloat16");

 public:
  FrozenSampler() = default;
  /// Throws Error unless the plan has steps and the layers fit each other.
  FrozenSampler(const MlpDenoiser<T>& denoiser, SamplerPlan plan) : plan_(std::move(plan)) {
    check_option("FrozenSampler", "plan", !plan_.steps.empty(), "a plan with steps", 0);
    width_ = denoiser.width();
    conditions_ = denoiser.condition_width();
    denoiser.net.output_cols(width_ + conditions_ + denoiser.time.width());
    for (const auto& l : denoiser.net.hidden) add(l);
    add(denoiser.net.last);
    const Dense<T>& first = denoiser.net.hidden.empty() ? denoiser.net.last : denoiser.net.hidden[0];
    const MatrixView<const T> weight = first.linear.weight;
    layers_[0].in = width_;
    Index total = 0;
    for (Layer& l : layers_) {
      l.at = total;
      total += simd::packed_size<T>(l.in, l.out);
    }
    panels_.resize(total + simd::packed_size<T>(conditions_, weight.rows()));
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Dense<T>& l = i + 1 == layers_.size() ? denoiser.net.last : denoiser.net.hidden[i];
      simd::pack_fused<T>(l.linear.weight.view().middle_cols(0, layers_[i].in), panels_.data() + layers_[i].at);
    }
    condition_panels_ = total;
    simd::pack_fused<T>(weight.middle_cols(width_, conditions_), panels_.data() + total);
    Index widest = 0;
    for (const Layer& l : layers_) widest = std::max(widest, padded(l.out));
    zeros_.resize(widest);
    std::fill(zeros_.begin(), zeros_.end(), T(0));
    bool noisy = false;
    for (const SamplerStep& step : plan_.steps) noisy = noisy || step.noise != 0;
    // A net of one layer reads the very x that it would update.
    is_direct_ = !noisy && !plan_.multistep() && plan_.options.clip == ClipX0::none &&
                 layers_.back().activation == Activation::none && layers_.size() > 1;
    // W_e e(t) + b of every step, and W_c times the null condition, in double.
    const Index wide = padded(weight.rows());
    Workspace ws;
    Vector<std::int64_t> t(static_cast<Index>(plan_.steps.size()));
    for (Index i = 0; i < t.size(); ++i) t[i] = plan_.steps[static_cast<std::size_t>(i)].from;
    Matrix<T> e(t.size(), denoiser.time.width());
    denoiser.time.forward(t, e, ws);
    step_bias_.resize(t.size(), wide);
    step_bias_.fill(T(0));
    null_.resize(wide);
    std::fill(null_.begin(), null_.end(), T(0));
    for (Index j = 0; j < weight.rows(); ++j) {
      const T* const w = weight.row(j) + width_;
      double null = 0;
      for (Index k = 0; k < conditions_; ++k) null += static_cast<double>(w[k]) * static_cast<double>(denoiser.null_condition[k]);
      null_[j] = static_cast<T>(null);
      for (Index i = 0; i < t.size(); ++i) {
        double sum = first.linear.bias.empty() ? 0 : static_cast<double>(first.linear.bias[j]);
        for (Index k = 0; k < e.cols(); ++k) sum += static_cast<double>(w[conditions_ + k]) * static_cast<double>(e(i, k));
        step_bias_(i, j) = static_cast<T>(sum);
      }
    }
  }

  const SamplerPlan& plan() const { return plan_; }
  /// D.
  Index width() const { return width_; }
  /// C.
  Index condition_width() const { return conditions_; }

  /// x receives one sample for each row of c; with `from_x` it holds their start. Returns how many rows are not finite.
  Index sample(MatrixView<const T> c, const SampleOptions& options, MatrixView<T> x, Workspace& ws) const {
    constexpr const char* name = "FrozenSampler::sample";
    check_shape(name, "x", x, any_size, width_);
    if (conditions_ > 0) check_shape(name, "c", c, x.rows(), conditions_);
    check_option(name, "tile_rows", options.tile_rows >= 0, "tile_rows >= 0", static_cast<double>(options.tile_rows));
    simd::check_ids(name, options.ids, x.rows());
    const Index tile = std::clamp<Index>(options.tile_rows > 0 ? options.tile_rows : most_rows, 1, std::max<Index>(x.rows(), 1));
    ws.parallel_for((x.rows() + tile - 1) / tile, [&](Index task, Workspace& scratch) {
      const Index first = task * tile, rows = std::min(tile, x.rows() - first);
      run(conditions_ > 0 ? c.middle_rows(first, rows) : c, options, first, x.middle_rows(first, rows), scratch);
    });
    return detail::rows_not_finite<T>(x);
  }

 private:
  /// States and activations of so many rows, and the weights, share L2.
  static constexpr Index most_rows = 64;

  struct Layer {
    Index in = 0, out = 0, at = 0;  // sizes, and where its panels begin
    Activation activation = Activation::none;
    Vector<T> bias;  // padded; of the first layer not used
  };

  static Index padded(Index n) { return (n + simd::panel_cols<T> - 1) / simd::panel_cols<T> * simd::panel_cols<T>; }
  void add(const Dense<T>& l) {
    layers_.push_back({.in = l.linear.weight.cols(), .out = l.linear.weight.rows(), .activation = l.activation, .bias = {}});
    Vector<T>& bias = layers_.back().bias;
    bias.resize(padded(l.linear.weight.rows()));
    std::fill(bias.begin(), bias.end(), T(0));
    std::copy(l.linear.bias.begin(), l.linear.bias.end(), bias.begin());
  }

  /// What becomes of a product: out = act(product + bias [+ added]).
  template <bool Silu>
  struct Store {
    T* out;
    const T *bias, *added;  // added: a row for each row, or none
    Index stride;
    RECOPS_INLINE void operator()(Index row, Index col, simd::Batch<T> v) const {
      using B = simd::Batch<T>;
      v = v + B::load_aligned(bias + col);
      if (added) v = v + B::load_aligned(added + row * stride + col);
      if constexpr (Silu) v = simd::quick_silu(v);
      v.store_aligned(out + row * stride + col);
    }
  };
  /// x = a x + b (product + bias).
  struct Update {
    T* x;
    const T* bias;
    Index stride;
    T a, b;
    RECOPS_INLINE void operator()(Index row, Index col, simd::Batch<T> v) const {
      using B = simd::Batch<T>;
      T* const at = x + row * stride + col;
      v = v + B::load_aligned(bias + col);
      simd::mul_add(B(a), B::load_aligned(at), B(b) * v).store_aligned(at);
    }
  };

  static void activate(Activation f, T* row, Index n) {
    if (f == Activation::silu) {
      simd::for_each_vector<T, simd::DefaultArch>(
          n, [row](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(row + i, simd::quick_silu(load(row + i))); });
    } else if (f != Activation::none) {
      simd::activate(f, row, row, n);
    }
  }
  /// x_T into the padded state, and zeros behind it.
  static void start(RandomRow at, IndexView ids, bool from_x, MatrixView<const T> x, MatrixView<T> state) {
    at.step = 0;
    at.purpose = RandomPurpose::initial_noise;
    if (!from_x) simd::fill_normal<T>(at, ids, state);
    for (Index b = 0; b < state.rows(); ++b) {
      T* const row = state.row(b);
      if (from_x) std::copy_n(x.row(b), x.cols(), row);
      std::fill(row + state.cols(), row + state.stride(), T(0));
    }
  }
  /// Rows that enter a layer; `raw`: a lone row that becomes its own SiLU on the way.
  struct Input {
    T* a;
    Index stride, rows;
    bool raw;
  };
  template <class Finish>
  void product(const Layer& l, const Input& in, const Finish& finish) const {
    const S* const panels = panels_.data() + l.at;
    if (in.raw) return simd::fused_silu_row<T>(in.a, l.in, panels, l.out, finish);
    simd::fused_rows<T>(in.a, in.stride, in.rows, l.in, panels, l.out, finish);
  }
  /// out [rows, padded] = act(a W^T + bias [+ added]), or with `raw` what is yet to be activated.
  void apply(const Layer& l, const Input& in, const T* bias, const T* added, T* out, bool raw) const {
    const Index stride = padded(l.out);
    if (l.activation == Activation::silu && !raw) return product(l, in, Store<true>{out, bias, added, stride});
    product(l, in, Store<false>{out, bias, added, stride});
    for (Index b = 0; b < in.rows && !raw; ++b) activate(l.activation, out + b * stride, stride);
  }

  /// The chain of one tile.
  void run(MatrixView<const T> c, const SampleOptions& options, Index first, MatrixView<T> x, Workspace& ws) const {
    const bool conditioned = conditions_ > 0, guided = plan_.guided() && conditioned;
    const bool direct = is_direct_ && !guided;
    const Index rows = x.rows(), twice = guided ? 2 * rows : rows, stride = padded(width_), wide = step_bias_.cols();
    const auto mark = ws.mark();
    T* const state = ws.take<T>(rows * stride);
    T *out = ws.take<T>(twice * zeros_.size()), *spare = ws.take<T>(twice * zeros_.size());
    T* const added = conditioned ? ws.take<T>(twice * wide) : nullptr;
    T* const shared = guided ? ws.take<T>(rows * wide) : nullptr;
    T* const previous = plan_.multistep() ? ws.take<T>(rows * stride) : nullptr;
    RandomRow at = options.at;
    at.row += static_cast<std::uint64_t>(first);
    const IndexView ids = options.ids.is_null() ? IndexView() : options.ids.segment(first, rows);
    start(at, ids, options.from_x, x, MatrixView<T>(state, rows, width_, stride));
    if (conditioned) {
      simd::fused_rows<T>(c.data(), c.stride(), rows, conditions_, panels_.data() + condition_panels_, layers_[0].out,
                          Store<false>{added, zeros_.data(), nullptr, wide});
      for (Index b = rows; b < twice; ++b) std::copy_n(null_.data(), wide, added + b * wide);
    }
    at.purpose = RandomPurpose::sampler_noise;
    for (Index i = 0; i < static_cast<Index>(plan_.steps.size()); ++i) {
      const simd::DiffusionUpdate<T> u = plan_.update<T>(i);
      Input in{state, stride, rows, false};
      for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        const T* const bias = l == 0 ? step_bias_.row(i) : layer.bias.data();
        const bool last = l + 1 == layers_.size();
        if (direct && last) {
          product(layer, in, Update{state, bias, stride, u.x_scale, u.p_scale});
          break;
        }
        bool raw = false;
        if (guided && l == 0) {
          product(layer, in, Store<false>{shared, bias, nullptr, wide});
          in.rows = twice;
          for (Index b = 0; b < twice; ++b) {
            T* const row = out + b * wide;
            simd::combine<T>(T(1), shared + (b < rows ? b : b - rows) * wide, T(1), added + b * wide, row, wide);
            activate(layer.activation, row, wide);
          }
        } else {
          raw = in.rows == 1 && !last && layer.activation == Activation::silu;
          apply(layer, in, bias, l == 0 ? added : nullptr, out, raw);
        }
        in = {out, padded(layer.out), in.rows, raw};
        std::swap(out, spare);
      }
      if (direct) continue;
      at.step = static_cast<std::uint32_t>(i) + 1;
      simd::Philox<> philox(at);
      for (Index b = 0; b < rows; ++b) {
        philox.set_row(simd::row_of(at, ids, b));
        simd::diffusion_update<T>(u, state + b * stride, in.a + b * stride, guided ? in.a + (rows + b) * stride : nullptr,
                                  previous ? previous + b * stride : nullptr, nullptr, &philox, width_);
      }
    }
    for (Index b = 0; b < rows; ++b) std::copy_n(state + b * stride, width_, x.row(b));
  }

  SamplerPlan plan_;
  std::vector<Layer> layers_;
  Vector<S> panels_;        // of the layers one after another, then of W_c
  Matrix<T> step_bias_;     // [steps, first layer]
  Vector<T> null_, zeros_;  // W_c times the null condition; as wide as the widest layer
  Index width_ = 0, conditions_ = 0, condition_panels_ = 0;
  bool is_direct_ = false;  // a step is the net and two scalars
};

/// The sampler's serving form.
template <class T, class S = T>
FrozenSampler<T, S> freeze(const MlpDenoiser<T>& denoiser, SamplerPlan plan, Weights<S> = {}) {
  return FrozenSampler<T, S>(denoiser, std::move(plan));
}

}  // namespace RECOPS_ABI
}  // namespace recops
