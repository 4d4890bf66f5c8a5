/// @file   recops/diffusion/timestep_embedding.hpp
/// @brief  Steps as vectors of sines and cosines, and the small network that follows.
///
///     angle_j = scale (t + offset) max_period^(-j / d),   half = floor(width / 2),   d = half, or half - 1
///
/// Shapes      t [B] or [1], out [B, width]; an odd width ends with a 0
/// Precision   angles and their sines in double.
/// Cost        B width sines; a sampler makes a table once and serves from it.
/// Errors      Error for shapes that disagree; outputs untouched.
/// Reference   Vaswani et al. arXiv 1706.03762, section 3.5, in the two layouts that released recommenders have.
#pragma once
#include <recops/diffusion/noise_schedule.hpp>
#include <recops/nn/linear.hpp>

namespace recops {

/// Options of `timestep_embedding`.
struct TimestepEmbeddingOptions {
  bool sine_first = false;  ///< sines before cosines (DreamRec); otherwise cosines first (DiffuRec, DiffRec)
  bool to_the_end = false;  ///< d = half - 1: the last angle is divided by max_period itself (DreamRec)
  double scale = 1;         ///< of t: DiffuRec takes 1000 / T
  double offset = 0;        ///< added to t: -1 for networks trained on steps counted from 0
  double max_period = 10000;
};

inline namespace RECOPS_ABI {

/// Row b of out is the embedding of t[b], or of the only step there is.
template <Real T>
void timestep_embedding(IndexView t, const TimestepEmbeddingOptions& options, MatrixView<T> out) {
  check_shape("timestep_embedding", "out", out, any_size, any_size);
  detail::check_timesteps("timestep_embedding", t, out.rows(), 0, Index{1} << 53);
  check_option("timestep_embedding", "max_period", options.max_period > 0, "max_period > 0", options.max_period);
  const Index half = out.cols() / 2, divisor = std::max(options.to_the_end ? half - 1 : half, Index{1});
  const double rate = -std::log(options.max_period) / static_cast<double>(divisor);
  for (Index b = 0; b < out.rows(); ++b) {
    T* const row = out.row(b);
    if (b > 0 && detail::timestep_of(t, b) == detail::timestep_of(t, b - 1)) {
      std::copy_n(out.row(b - 1), out.cols(), row);
      continue;
    }
    const double step = options.scale * (static_cast<double>(detail::timestep_of(t, b)) + options.offset);
    T *const sine = options.sine_first ? row : row + half, *const cosine = options.sine_first ? row + half : row;
    for (Index j = 0; j < half; ++j) {
      const double angle = step * std::exp(rate * static_cast<double>(j));
      sine[j] = static_cast<T>(std::sin(angle));
      cosine[j] = static_cast<T>(std::cos(angle));
    }
    if (out.cols() % 2 == 1) row[out.cols() - 1] = T(0);
  }
}

/// timestep_embedding, then nothing, one linear layer, or two with an activation between them.
template <class T>
struct TimeEmbedding {
  Linear<T> linear_1, linear_2;  ///< [hidden, sines], [out, hidden]; empty: left out
  Index sines = 0;               ///< width of the sines and cosines
  Activation activation = Activation::silu;
  TimestepEmbeddingOptions options;

  TimeEmbedding() = default;
  /// Two layers: sines to `hidden` to `out`.
  TimeEmbedding(Index sine_width, Index hidden, Index out, Activation f, const TimestepEmbeddingOptions& o, Random& random)
      : linear_1(checked_size("TimeEmbedding", "sine_width", sine_width), checked_size("TimeEmbedding", "hidden", hidden),
                 random),
        linear_2(hidden, checked_size("TimeEmbedding", "out", out), random),
        sines(sine_width),
        activation(f),
        options(o) {}
  /// One layer.
  TimeEmbedding(Index sine_width, Index out, const TimestepEmbeddingOptions& o, Random& random)
      : linear_1(checked_size("TimeEmbedding", "sine_width", sine_width), checked_size("TimeEmbedding", "out", out), random),
        sines(sine_width),
        options(o) {}
  /// No layer.
  TimeEmbedding(Index sine_width, const TimestepEmbeddingOptions& o)
      : sines(checked_size("TimeEmbedding", "sine_width", sine_width)), options(o) {}

  static constexpr auto fields() {
    return std::tuple{layer("linear_1", &TimeEmbedding::linear_1), layer("linear_2", &TimeEmbedding::linear_2)};
  }
  /// Width of the embedding.
  Index width() const {
    return linear_1.weight.empty() ? sines : linear_2.weight.empty() ? linear_1.weight.rows() : linear_2.weight.rows();
  }

  struct Saved {
    Matrix<T> sines, before, hidden;  ///< [B, sines], [B, hidden] before and after the activation
  };
  /// e `[B, width]`.
  void forward(IndexView t, MatrixView<T> e, Workspace& ws) const {
    check_shape("TimeEmbedding", "e", e, any_size, width());
    const auto mark = ws.mark();
    if (linear_1.weight.empty()) return timestep_embedding<T>(t, options, e);
    const MatrixView<T> s = ws.matrix<T>(e.rows(), sines);
    timestep_embedding<T>(t, options, s);
    if (linear_2.weight.empty()) return linear_1.forward(s, e, ws);
    const MatrixView<T> h = ws.matrix<T>(e.rows(), linear_1.weight.rows());
    linear_1.forward(s, h, ws);
    for (Index b = 0; b < h.rows(); ++b) simd::activate(activation, h.row(b), h.row(b), h.cols());
    linear_2.forward(h, e, ws);
  }
  /// The same and what backward needs.
  void forward(IndexView t, MatrixView<T> e, Saved& saved, Workspace& ws) const {
    check_shape("TimeEmbedding", "e", e, any_size, width());
    saved.sines.resize(e.rows(), sines);
    timestep_embedding<T>(t, options, saved.sines);
    if (linear_1.weight.empty()) {
      for (Index b = 0; b < e.rows(); ++b) std::copy_n(saved.sines.row(b), sines, e.row(b));
    } else if (linear_2.weight.empty()) {
      linear_1.forward(saved.sines, e, ws);
    } else {
      saved.before.resize(e.rows(), linear_1.weight.rows());
      saved.hidden.resize(e.rows(), linear_1.weight.rows());
      linear_1.forward(saved.sines, saved.before, ws);
      for (Index b = 0; b < e.rows(); ++b)
        simd::activate(activation, saved.before.row(b), saved.hidden.row(b), saved.hidden.cols());
      linear_2.forward(saved.hidden, e, ws);
    }
  }
  /// Adds to `gradient`.
  void backward(MatrixView<const T> de, const Saved& saved, TimeEmbedding& gradient, Workspace& ws) const {
    check_shape("TimeEmbedding::backward", "de", de, saved.sines.rows(), width());
    if (linear_1.weight.empty()) return;
    if (linear_2.weight.empty()) return linear_1.backward(saved.sines, de, {}, {}, gradient.linear_1, ws);
    const auto mark = ws.mark();
    const MatrixView<T> dh = ws.matrix<T>(de.rows(), linear_1.weight.rows());
    detail::linear_backward<T>(saved.hidden, linear_2.weight, de, dh, true, gradient.linear_2.weight, gradient.linear_2.bias, ws);
    for (Index b = 0; b < dh.rows(); ++b)
      simd::activate_backward(activation, saved.before.row(b), saved.hidden.row(b), dh.row(b), dh.row(b), dh.cols());
    linear_1.backward(saved.sines, dh, {}, {}, gradient.linear_1, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
