/// @file   recops/nn/layer_norm.hpp
/// @brief  Layer normalisation of rows, or of several equal segments of each row (one per expert, one per head).
///
///     y = weight * (x - mean) / sqrt(variance + epsilon) + bias       mean and population variance over the segment
///
/// Shapes      x, y [B, n]   weight, bias [n] or empty   moments [B, 2 groups]: mean and 1 / sqrt(variance + epsilon) per segment
/// Edge cases  B = 0 does nothing.   A constant segment gives `bias`.   NaN stays in its segment.   y may be x.
/// Precision   sums in T, the mean corrected by a second pass, the variance about it in a third (never E x^2 - (E x)^2).
/// Cost        about 8 B n flops, one pass over memory where a row fits L1; backward about twice that.
/// Errors      Error if shapes, groups or epsilon are wrong; outputs untouched.
/// Reference   Ba, Kiros, Hinton, "Layer Normalization", 2016.
#pragma once
#include <cmath>
#include <recops/core/fields.hpp>
#include <recops/core/workspace.hpp>
#include <recops/nn/step.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

struct LayerNormOptions {
  double epsilon = 1e-5;  ///< added to the variance, > 0
  Index groups = 1;       ///< segments of a row that are normalised on their own; divides n
};

inline namespace RECOPS_ABI {
namespace detail {

/// Rows of one task: fixed, so that sums over rows have the same bits for any number of threads.
inline constexpr Index norm_rows = 64;

/// Calls `f(first, count, block, scratch)` for every block of rows.
template <class F>
void for_row_blocks(Index rows, Workspace& ws, F&& f) {
  ws.parallel_for((rows + norm_rows - 1) / norm_rows, [&](Index block, Workspace& scratch) {
    const Index first = block * norm_rows;
    f(first, std::min(norm_rows, rows - first), block, scratch);
  });
}

/// out[j] += the sum over blocks, in their order, of parts[block, j].
template <class T>
void add_blocks(const T* parts, Index blocks, Index stride, T* out, Index n) {
  for (Index b = 0; b < blocks; ++b) simd::add<T>(parts + b * stride, out, n);
}

/// sum_i f(x_i - shift), where `f(d, sum)` adds it up.
template <class T, class F>
RECOPS_INLINE T sum_about(const T* x, T shift, Index n, F f) {
  constexpr Index W = simd::lanes<T>;
  alignas(64) T shifts[W];
  std::fill_n(shifts, W, shift);
  const auto* s = shifts;
  return simd::detail::sum_of<T, simd::DefaultArch>(n, [=](Index i, simd::Batch<T> acc, Index count) RECOPS_LAMBDA_INLINE {
    // Lanes past the end must be 0 after the subtraction too.
    const auto d =
        simd::detail::load_upto<T, simd::DefaultArch>(x + i, count) - simd::detail::load_upto<T, simd::DefaultArch>(s, count);
    return f(d, acc);
  });
}

template <class T>
void check_norm(const char* operation, MatrixView<const T> x, VectorView<const T> weight, VectorView<const T> bias, Index groups,
                double epsilon) {
  check_shape(operation, "x", x, any_size, any_size);
  if (!weight.empty()) check_size(operation, "weight", weight, x.cols());
  if (!bias.empty()) check_size(operation, "bias", bias, x.cols());
  check_option(operation, "groups", groups >= 1 && x.cols() % groups == 0, "groups >= 1 that divide the columns",
               static_cast<double>(groups));
  check_option(operation, "epsilon", epsilon > 0 && std::isfinite(epsilon), "epsilon > 0", epsilon);
}

/// One segment: y = w (x - mean) r + b, the moments returned. y may be x.
template <class T>
void layer_norm_segment(const T* x, const T* w, const T* b, Index n, T epsilon, T* y, T& mean, T& r) {
  using B = simd::Batch<T>;
  const auto size = static_cast<T>(n);
  mean = simd::sum<T>(x, n) / size;
  // Far from zero the rounding of the mean would pass for variance.
  mean += sum_about(x, mean, n, [](B d, B sum) RECOPS_LAMBDA_INLINE { return sum + d; }) / size;
  const T squares = sum_about(x, mean, n, [](B d, B sum) RECOPS_LAMBDA_INLINE { return simd::mul_add(d, d, sum); });
  r = T(1) / std::sqrt(squares / size + epsilon);
  const simd::Batch<T> m(mean), scale(r);
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    auto v = (load(x + i) - m) * scale;
    if (w) v = v * load(w + i);
    store(y + i, b ? v + load(b + i) : v);
  });
}

/// dx = (or +=) r (t - mean t - xhat mean(t xhat)) with t = w dy. dx may be dy.
template <class T>
void layer_norm_segment_backward(const T* x, const T* w, const T* dy, Index n, T mean, T r, T* dx, bool add) {
  using B = simd::Batch<T>;
  const B m(mean), scale(r);
  B sum(T(0)), product(T(0));
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto) RECOPS_LAMBDA_INLINE {
    const B t = w ? load(dy + i) * load(w + i) : load(dy + i);
    sum = sum + t;
    product = simd::mul_add(t, (load(x + i) - m) * scale, product);
  });
  const B a(simd::sum_lanes(sum) / static_cast<T>(n)), b(simd::sum_lanes(product) / static_cast<T>(n));
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B t = w ? load(dy + i) * load(w + i) : load(dy + i);
    const B v = scale * (t - a - (load(x + i) - m) * scale * b);
    store(dx + i, add ? load(dx + i) + v : v);
  });
}

/// What a gradient of weight and bias sums over rows: `f(first, count, weight_sums, bias_sums)` adds a block's share to its two
/// zeroed rows; blocks are added up in order.
template <class T, class F>
void sum_over_rows(Index rows, Index n, VectorView<T> dweight, VectorView<T> dbias, Workspace& ws, F&& f) {
  if (dweight.empty() && dbias.empty()) return;
  const auto mark = ws.mark();
  const Index blocks = (rows + norm_rows - 1) / norm_rows;
  T* const parts = ws.take<T>(blocks * 2 * n);
  for_row_blocks(rows, ws, [&](Index first, Index count, Index block, Workspace&) {
    T* const own = parts + block * 2 * n;
    std::fill_n(own, 2 * n, T(0));
    f(first, count, own, own + n);
  });
  if (!dweight.empty()) add_blocks(parts, blocks, 2 * n, dweight.data(), n);
  if (!dbias.empty()) add_blocks(parts + n, blocks, 2 * n, dbias.data(), n);
}

}  // namespace detail

/// `moments` is what backward needs; pass an empty view when serving.
template <Real T>
void layer_norm(MatrixView<const T> x, VectorView<const T> weight, VectorView<const T> bias, const LayerNormOptions& options,
                MatrixView<T> moments, MatrixView<T> y, Workspace& ws) {
  const char* const name = "layer_norm";
  detail::check_norm(name, x, weight, bias, options.groups, options.epsilon);
  check_shape(name, "y", y, x.rows(), x.cols());
  if (!moments.empty()) check_shape(name, "moments", moments, x.rows(), 2 * options.groups);
  if (x.empty()) return;

  const Index n = x.cols() / options.groups;
  const T epsilon = static_cast<T>(options.epsilon);
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      for (Index g = 0; g < options.groups; ++g) {
        const Index at = g * n;
        T mean, scale;
        detail::layer_norm_segment(x.row(r) + at, weight.empty() ? nullptr : weight.data() + at,
                                   bias.empty() ? nullptr : bias.data() + at, n, epsilon, y.row(r) + at, mean, scale);
        if (!moments.empty()) {
          moments(r, 2 * g) = mean;
          moments(r, 2 * g + 1) = scale;
        }
      }
    }
  });
}

/// Takes what forward took and saved; adds to each of `dx`, `dweight`, `dbias` that is not empty.
template <Real T>
void layer_norm_backward(MatrixView<const T> x, VectorView<const T> weight, const LayerNormOptions& options,
                         MatrixView<const T> moments, MatrixView<const T> dy, MatrixView<T> dx, VectorView<T> dweight,
                         VectorView<T> dbias, Workspace& ws) {
  const char* const name = "layer_norm_backward";
  detail::check_norm<T>(name, x, weight, {}, options.groups, options.epsilon);
  check_shape(name, "moments", moments, x.rows(), 2 * options.groups);
  check_shape(name, "dy", dy, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dweight.empty()) check_size(name, "dweight", dweight, x.cols());
  if (!dbias.empty()) check_size(name, "dbias", dbias, x.cols());
  if (x.empty()) return;

  const Index n = x.cols() / options.groups;
  if (!dx.empty()) {
    detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
      for (Index r = first; r < first + count; ++r)
        for (Index g = 0, at = 0; g < options.groups; ++g, at += n)
          detail::layer_norm_segment_backward(x.row(r) + at, weight.empty() ? nullptr : weight.data() + at, dy.row(r) + at, n,
                                              moments(r, 2 * g), moments(r, 2 * g + 1), dx.row(r) + at, true);
    });
  }
  detail::sum_over_rows(x.rows(), x.cols(), dweight, dbias, ws, [&](Index first, Index count, T* dw, T* db) {
    for (Index r = first; r < first + count; ++r) {
      for (Index g = 0, at = 0; g < options.groups; ++g, at += n) {
        const simd::Batch<T> mean(moments(r, 2 * g)), scale(moments(r, 2 * g + 1));
        const T *px = x.row(r) + at, *py = dy.row(r) + at;
        T *pw = dw + at, *pb = db + at;
        simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
          const auto d = load(py + i);
          store(pw + i, simd::mul_add(d, (load(px + i) - mean) * scale, load(pw + i)));
          store(pb + i, load(pb + i) + d);
        });
      }
    }
  });
}

/// `layer_norm` with its parameters; `torch.nn.LayerNorm` where `groups` is 1.
template <Real T>
struct LayerNorm {
  Vector<T> weight;  ///< [n], or empty for none
  Vector<T> bias;    ///< [n], or empty for none
  LayerNormOptions options;

  /// What a training forward leaves for backward.
  struct Saved {
    Matrix<T> moments;
  };

  LayerNorm() = default;
  explicit LayerNorm(Index n, LayerNormOptions o = {})
      : weight(checked_size("LayerNorm", "n", n), T(1)), bias(n, T(0)), options(o) {}

  static constexpr auto fields() {
    return std::tuple{parameter("weight", &LayerNorm::weight), parameter("bias", &LayerNorm::bias)};
  }
  /// The same; throws `Error` unless the parameters, which may have been loaded, fit.
  Index output_cols(Index input_cols) const {
    const MatrixView<const T> none(nullptr, 0, input_cols);
    detail::check_norm<T>("LayerNorm", none, weight, bias, options.groups, options.epsilon);
    return input_cols;
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    layer_norm<T>(x, weight, bias, options, {}, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    detail::check_norm<T>("LayerNorm::forward", x, weight, bias, options.groups, options.epsilon);
    check_shape("LayerNorm::forward", "y", y, x.rows(), x.cols());
    saved.moments.resize(x.rows(), 2 * options.groups);
    layer_norm<T>(x, weight, bias, options, saved.moments, y, ws);
  }
  /// Adds to `dx` (unless empty) and to `grad`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, LayerNorm& grad,
                Workspace& ws) const {
    layer_norm_backward<T>(x, weight, options, saved.moments, dy, dx, grad.weight, grad.bias, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
