/// @file   recops/nn/rms_norm.hpp
/// @brief  Root-mean-square normalisation of rows, or of several equal segments of each row.
///
///     y = weight * x / sqrt(mean(x^2) + epsilon)
///
/// Shapes      x, y [B, n]   weight [n] or empty   moments [B, groups]: 1 / sqrt(mean(x^2) + epsilon) per segment
/// Edge cases  B = 0 does nothing.   A zero segment gives zeros.   NaN stays in its segment.   y may be x.
/// Precision   sums in T.   Squares overflow above 1.8e19 in float: the segment becomes 0.
/// Cost        about 4 B n flops, one pass over memory where a row fits L1; backward about twice that.
/// Errors      Error if shapes, groups or epsilon are wrong; outputs untouched.
/// Reference   Zhang, Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
#pragma once
#include <recops/nn/layer_norm.hpp>

namespace recops {

struct RmsNormOptions {
  double epsilon = 1e-6;  ///< added to the mean square, > 0
  Index groups = 1;       ///< segments of a row that are normalised on their own; divides n
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void rms_norm_segment(const T* x, const T* w, Index n, T epsilon, T* y, T& r) {
  r = T(1) / std::sqrt(simd::dot<T>(x, x, n) / static_cast<T>(n) + epsilon);
  const simd::Batch<T> scale(r);
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const auto v = load(x + i) * scale;
    store(y + i, w ? v * load(w + i) : v);
  });
}

/// dx = (or +=) r (t - xhat mean(t xhat)) with t = w dy, xhat = x r. dx may be dy.
template <class T>
void rms_norm_segment_backward(const T* x, const T* w, const T* dy, Index n, T r, T* dx, bool add) {
  using B = simd::Batch<T>;
  const B scale(r);
  B product(T(0));
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto) RECOPS_LAMBDA_INLINE {
    const B t = w ? load(dy + i) * load(w + i) : load(dy + i);
    product = simd::mul_add(t, load(x + i) * scale, product);
  });
  const B b(simd::sum_lanes(product) / static_cast<T>(n));
  simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B t = w ? load(dy + i) * load(w + i) : load(dy + i);
    const B v = scale * (t - load(x + i) * scale * b);
    store(dx + i, add ? load(dx + i) + v : v);
  });
}

}  // namespace detail

/// `moments` is what backward needs; pass an empty view when serving.
template <Real T>
void rms_norm(MatrixView<const T> x, VectorView<const T> weight, const RmsNormOptions& options, MatrixView<T> moments,
              MatrixView<T> y, Workspace& ws) {
  const char* const name = "rms_norm";
  detail::check_norm<T>(name, x, weight, {}, options.groups, options.epsilon);
  check_shape(name, "y", y, x.rows(), x.cols());
  if (!moments.empty()) check_shape(name, "moments", moments, x.rows(), options.groups);
  if (x.empty()) return;

  const Index n = x.cols() / options.groups;
  const T epsilon = static_cast<T>(options.epsilon);
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      for (Index g = 0, at = 0; g < options.groups; ++g, at += n) {
        T scale;
        detail::rms_norm_segment(x.row(r) + at, weight.empty() ? nullptr : weight.data() + at, n, epsilon, y.row(r) + at, scale);
        if (!moments.empty()) moments(r, g) = scale;
      }
    }
  });
}

/// Takes what forward took and saved; adds to each of `dx`, `dweight` that is not empty.
template <Real T>
void rms_norm_backward(MatrixView<const T> x, VectorView<const T> weight, const RmsNormOptions& options,
                       MatrixView<const T> moments, MatrixView<const T> dy, MatrixView<T> dx, VectorView<T> dweight,
                       Workspace& ws) {
  const char* const name = "rms_norm_backward";
  detail::check_norm<T>(name, x, weight, {}, options.groups, options.epsilon);
  check_shape(name, "moments", moments, x.rows(), options.groups);
  check_shape(name, "dy", dy, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dweight.empty()) check_size(name, "dweight", dweight, x.cols());
  if (x.empty()) return;

  const Index n = x.cols() / options.groups;
  if (!dx.empty()) {
    detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
      for (Index r = first; r < first + count; ++r)
        for (Index g = 0, at = 0; g < options.groups; ++g, at += n)
          detail::rms_norm_segment_backward(x.row(r) + at, weight.empty() ? nullptr : weight.data() + at, dy.row(r) + at, n,
                                            moments(r, g), dx.row(r) + at, true);
    });
  }
  detail::sum_over_rows<T>(x.rows(), x.cols(), dweight, {}, ws, [&](Index first, Index count, T* dw, T*) {
    for (Index r = first; r < first + count; ++r) {
      for (Index g = 0, at = 0; g < options.groups; ++g, at += n) {
        const simd::Batch<T> scale(moments(r, g));
        const T *px = x.row(r) + at, *py = dy.row(r) + at;
        T* pw = dw + at;
        simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(pw + i, simd::mul_add(load(py + i), load(px + i) * scale, load(pw + i)));
        });
      }
    }
  });
}

/// `rms_norm` with its parameter.
template <Real T>
struct RmsNorm {
  Vector<T> weight;  ///< [n], or empty for none
  RmsNormOptions options;

  /// What a training forward leaves for backward.
  struct Saved {
    Matrix<T> moments;
  };

  RmsNorm() = default;
  explicit RmsNorm(Index n, RmsNormOptions o = {}) : weight(checked_size("RmsNorm", "n", n), T(1)), options(o) {}

  static constexpr auto fields() { return std::tuple{parameter("weight", &RmsNorm::weight)}; }
  /// The same; throws `Error` unless the parameters, which may have been loaded, fit.
  Index output_cols(Index input_cols) const {
    const MatrixView<const T> none(nullptr, 0, input_cols);
    detail::check_norm<T>("RmsNorm", none, weight, {}, options.groups, options.epsilon);
    return input_cols;
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const { rms_norm<T>(x, weight, options, {}, y, ws); }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    detail::check_norm<T>("RmsNorm::forward", x, weight, {}, options.groups, options.epsilon);
    check_shape("RmsNorm::forward", "y", y, x.rows(), x.cols());
    saved.moments.resize(x.rows(), options.groups);
    rms_norm<T>(x, weight, options, saved.moments, y, ws);
  }
  /// Adds to `dx` (unless empty) and to `grad`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, RmsNorm& grad,
                Workspace& ws) const {
    rms_norm_backward<T>(x, weight, options, saved.moments, dy, dx, grad.weight, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
