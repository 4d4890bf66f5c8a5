/// @file   recops/nn/batch_norm.hpp
/// @brief  Batch normalisation of columns: statistics of the batch when training, running statistics when serving.
///
///     y = weight * (x - mean) / sqrt(variance + epsilon) + bias       training: mean and population variance of each column
///
/// Shapes      x, y [B, n]   weight, bias [n] or empty   mean, variance, running_mean, running_variance [n]
/// Edge cases  Training needs B >= 2 (or 0, which does nothing): one row has no variance.   A constant column gives `bias`.
///             NaN stays in its column.   y may be x.   Columns are independent: wide equals column by column, bit for bit.
/// Precision   two passes per block of 64 rows in T, the mean corrected by what the second leaves, blocks merged in double
///             (Chan et al.).
/// Cost        about 8 B n flops, two passes over memory when training, one when serving (none once folded into a linear layer).
/// Errors      Error if shapes, epsilon or the number of rows are wrong; outputs untouched.
/// Reference   Ioffe, Szegedy, "Batch Normalization", ICML 2015.
#pragma once
#include <recops/nn/layer_norm.hpp>

namespace recops {

struct BatchNormOptions {
  double epsilon = 1e-5;         ///< added to the variance, > 0
  double momentum = 0.1;         ///< share of the new batch in the running statistics, 0 to 1
  bool unbiased_running = true;  ///< running variance from B - 1 (PyTorch) instead of B (TensorFlow)
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void check_batch_norm_train(const char* name, MatrixView<const T> x, VectorView<const T> weight, VectorView<const T> bias,
                            const BatchNormOptions& options) {
  check_norm(name, x, weight, bias, 1, options.epsilon);
  check_option(name, "rows of x", x.rows() != 1, "at least two rows to take statistics of", static_cast<double>(x.rows()));
}

/// 1 / sqrt(variance + epsilon) per column.
template <class T>
void inverse_deviation(const T* variance, double epsilon, T* out, Index n) {
  for (Index j = 0; j < n; ++j) out[j] = static_cast<T>(1.0 / std::sqrt(static_cast<double>(variance[j]) + epsilon));
}

/// Column mean and population variance of `x [B >= 1, n]`.
template <class T>
void column_moments(MatrixView<const T> x, T* mean, T* variance, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = x.cols(), rows = x.rows(), blocks = (rows + norm_rows - 1) / norm_rows;
  T* const parts = ws.take<T>(blocks * 2 * n);  // mean and sum of squares about it, per block
  for_row_blocks(rows, ws, [&](Index first, Index count, Index block, Workspace& scratch) {
    const auto own = scratch.mark();
    T *const m = parts + block * 2 * n, *const s = m + n, *const rest = scratch.take<T>(n);
    std::fill_n(m, 2 * n, T(0));
    std::fill_n(rest, n, T(0));
    for (Index r = first; r < first + count; ++r) simd::add<T>(x.row(r), m, n);
    const T share = T(1) / static_cast<T>(count);
    simd::scale<T>(share, m, m, n);
    for (Index r = first; r < first + count; ++r) {
      const T* px = x.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto d = load(px + i) - load(m + i);
        store(s + i, simd::mul_add(d, d, load(s + i)));
        store(rest + i, load(rest + i) + d);
      });
    }
    // What is left of the sum is the rounding of the mean: far from zero it would pass for variance.
    for (Index i = 0; i < n; ++i) {
      const T shift = rest[i] * share, square = s[i] - rest[i] * shift;
      m[i] += shift;
      s[i] = square < T(0) ? T(0) : square;
    }
  });
  for (Index j = 0; j < n; ++j) {
    double m = 0, s = 0, seen = 0;
    for (Index b = 0; b < blocks; ++b) {
      const auto count = static_cast<double>(std::min(norm_rows, rows - b * norm_rows));
      const double d = static_cast<double>(parts[b * 2 * n + j]) - m, all = seen + count;
      s += static_cast<double>(parts[(b * 2 + 1) * n + j]) + d * d * seen * count / all;
      m += d * count / all;
      seen = all;
    }
    mean[j] = static_cast<T>(m);
    variance[j] = static_cast<T>(s / static_cast<double>(rows));
  }
}

/// y = weight (x - mean) r + bias for rows [first, first + count)
template <class T>
void batch_norm_rows(MatrixView<const T> x, const T* mean, const T* r, VectorView<const T> weight, VectorView<const T> bias,
                     MatrixView<T> y, Index first, Index count) {
  const T *const w = weight.empty() ? nullptr : weight.data(), *const b = bias.empty() ? nullptr : bias.data();
  for (Index i = first; i < first + count; ++i) {
    const T* px = x.row(i);
    T* py = y.row(i);
    simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
      auto v = (load(px + j) - load(mean + j)) * load(r + j);
      if (w) v = v * load(w + j);
      store(py + j, b ? v + load(b + j) : v);
    });
  }
}

/// dx = (or +=) w r (dy - mean(dy) - xhat mean(dy xhat)); this batch's sums are added to `dweight` and `dbias` (empty: not
/// wanted). dx may be dy.
template <class T>
void batch_norm_backward(MatrixView<const T> x, VectorView<const T> weight, const T* mean, const T* variance, double epsilon,
                         MatrixView<const T> dy, MatrixView<T> dx, bool add, VectorView<T> dweight, VectorView<T> dbias,
                         Workspace& ws) {
  const auto mark = ws.mark();
  const T* const w = weight.empty() ? nullptr : weight.data();
  const Index n = x.cols(), rows = x.rows(), blocks = (rows + norm_rows - 1) / norm_rows;
  T *const r = ws.take<T>(n), *const sums = ws.take<T>(2 * n), *const parts = ws.take<T>(blocks * 2 * n);
  inverse_deviation(variance, epsilon, r, n);
  for_row_blocks(rows, ws, [&](Index first, Index count, Index block, Workspace&) {
    T *const dw = parts + block * 2 * n, *const db = dw + n;
    std::fill_n(dw, 2 * n, T(0));
    for (Index i = first; i < first + count; ++i) {
      const T *px = x.row(i), *py = dy.row(i);
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto d = load(py + j);
        store(dw + j, simd::mul_add(d, (load(px + j) - load(mean + j)) * load(r + j), load(dw + j)));
        store(db + j, load(db + j) + d);
      });
    }
  });
  std::fill_n(sums, 2 * n, T(0));
  add_blocks(parts, blocks, 2 * n, sums, 2 * n);
  if (!dweight.empty()) simd::add<T>(sums, dweight.data(), n);
  if (!dbias.empty()) simd::add<T>(sums + n, dbias.data(), n);
  if (dx.empty()) return;
  simd::scale<T>(T(1) / static_cast<T>(rows), sums, sums, 2 * n);
  for_row_blocks(rows, ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index i = first; i < first + count; ++i) {
      const T *px = x.row(i), *py = dy.row(i);
      T* out = dx.row(i);
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto scale = load(r + j);
        const auto normal = (load(px + j) - load(mean + j)) * scale;
        auto v = (load(py + j) - load(sums + n + j) - normal * load(sums + j)) * scale;
        if (w) v = v * load(w + j);
        store(out + j, add ? load(out + j) + v : v);
      });
    }
  });
}

}  // namespace detail

/// Training: normalises with the batch's own mean and population variance and returns both (what backward needs).
template <Real T>
void batch_norm_train(MatrixView<const T> x, VectorView<const T> weight, VectorView<const T> bias,
                      const BatchNormOptions& options, VectorView<T> mean, VectorView<T> variance, MatrixView<T> y,
                      Workspace& ws) {
  const char* const name = "batch_norm_train";
  detail::check_batch_norm_train(name, x, weight, bias, options);
  check_size(name, "mean", mean, x.cols());
  check_size(name, "variance", variance, x.cols());
  check_shape(name, "y", y, x.rows(), x.cols());
  if (x.empty()) return;

  const auto mark = ws.mark();
  T* const r = ws.take<T>(x.cols());
  detail::column_moments<T>(x, mean.data(), variance.data(), ws);
  detail::inverse_deviation(variance.data(), options.epsilon, r, x.cols());
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    detail::batch_norm_rows<T>(x, mean.data(), r, weight, bias, y, first, count);
  });
}

/// Serving: normalises with running statistics.
template <Real T>
void batch_norm(MatrixView<const T> x, VectorView<const T> weight, VectorView<const T> bias, VectorView<const T> running_mean,
                VectorView<const T> running_variance, const BatchNormOptions& options, MatrixView<T> y, Workspace& ws) {
  const char* const name = "batch_norm";
  detail::check_norm(name, x, weight, bias, 1, options.epsilon);
  check_size(name, "running_mean", running_mean, x.cols());
  check_size(name, "running_variance", running_variance, x.cols());
  check_shape(name, "y", y, x.rows(), x.cols());
  if (x.empty()) return;

  const auto mark = ws.mark();
  T* const r = ws.take<T>(x.cols());
  detail::inverse_deviation(running_variance.data(), options.epsilon, r, x.cols());
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    detail::batch_norm_rows<T>(x, running_mean.data(), r, weight, bias, y, first, count);
  });
}

/// Backward of `batch_norm_train`: takes the mean and variance it returned; adds to each gradient that is not empty.
template <Real T>
void batch_norm_backward(MatrixView<const T> x, VectorView<const T> weight, const BatchNormOptions& options,
                         VectorView<const T> mean, VectorView<const T> variance, MatrixView<const T> dy, MatrixView<T> dx,
                         VectorView<T> dweight, VectorView<T> dbias, Workspace& ws) {
  const char* const name = "batch_norm_backward";
  detail::check_norm<T>(name, x, weight, {}, 1, options.epsilon);
  check_size(name, "mean", mean, x.cols());
  check_size(name, "variance", variance, x.cols());
  check_shape(name, "dy", dy, x.rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dweight.empty()) check_size(name, "dweight", dweight, x.cols());
  if (!dbias.empty()) check_size(name, "dbias", dbias, x.cols());
  if (x.empty()) return;
  detail::batch_norm_backward<T>(x, weight, mean.data(), variance.data(), options.epsilon, dy, dx, true, dweight, dbias, ws);
}

/// Folds a batch's statistics into running ones: running += momentum (batch - running). `rows` is the batch they came from.
template <Real T>
void update_running_statistics(VectorView<const T> mean, VectorView<const T> variance, Index rows,
                               const BatchNormOptions& options, VectorView<T> running_mean, VectorView<T> running_variance) {
  const char* const name = "update_running_statistics";
  check_option(name, "momentum", options.momentum >= 0 && options.momentum <= 1, "0 <= momentum <= 1", options.momentum);
  check_size(name, "variance", variance, mean.size());
  check_size(name, "running_mean", running_mean, mean.size());
  check_size(name, "running_variance", running_variance, mean.size());
  if (rows < 2) return;
  const double p = options.momentum, count = static_cast<double>(rows);
  const double correction = options.unbiased_running ? count / (count - 1) : 1.0;
  for (Index j = 0; j < mean.size(); ++j) {
    const double m = static_cast<double>(running_mean[j]), s = static_cast<double>(running_variance[j]);
    running_mean[j] = static_cast<T>((1 - p) * m + p * static_cast<double>(mean[j]));
    running_variance[j] = static_cast<T>((1 - p) * s + p * static_cast<double>(variance[j]) * correction);
  }
}

/// Batch normalisation with its parameters and running statistics; `torch.nn.BatchNorm1d`.
template <Real T>
struct BatchNorm {
  Vector<T> weight;                      ///< [n], or empty for none
  Vector<T> bias;                        ///< [n], or empty for none
  Vector<T> running_mean;                ///< [n]
  Vector<T> running_variance;            ///< [n]
  Vector<std::int64_t> batches_tracked;  ///< [1], how often `update` was called; kept for PyTorch, which counts them
  BatchNormOptions options;

  /// What a training forward leaves for backward and for `update`.
  struct Saved {
    Vector<T> mean, variance;
    Index rows = 0;
  };

  BatchNorm() = default;
  explicit BatchNorm(Index n, BatchNormOptions o = {})
      : weight(checked_size("BatchNorm", "n", n), T(1)),
        bias(n, T(0)),
        running_mean(n, T(0)),
        running_variance(n, T(1)),
        batches_tracked(1, 0),
        options(o) {}

  static constexpr auto fields() {
    return std::tuple{parameter("weight", &BatchNorm::weight), parameter("bias", &BatchNorm::bias),
                      buffer("running_mean", &BatchNorm::running_mean), buffer("running_var", &BatchNorm::running_variance),
                      buffer("num_batches_tracked", &BatchNorm::batches_tracked)};
  }
  /// The same; throws `Error` unless the parameters, which may have been loaded, fit.
  Index output_cols(Index input_cols) const {
    const MatrixView<const T> none(nullptr, 0, input_cols);
    detail::check_norm<T>("BatchNorm", none, weight, bias, 1, options.epsilon);
    check_size("BatchNorm", "running_mean", VectorView<const T>(running_mean), input_cols);
    check_size("BatchNorm", "running_variance", VectorView<const T>(running_variance), input_cols);
    return input_cols;
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    batch_norm<T>(x, weight, bias, running_mean, running_variance, options, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    detail::check_batch_norm_train<T>("BatchNorm::forward", x, weight, bias, options);
    check_shape("BatchNorm::forward", "y", y, x.rows(), x.cols());
    saved.mean.resize(x.cols());
    saved.variance.resize(x.cols());
    batch_norm_train<T>(x, weight, bias, options, saved.mean, saved.variance, y, ws);
    saved.rows = x.rows();
  }
  /// Adds to `dx` (unless empty) and to `grad`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, BatchNorm& grad,
                Workspace& ws) const {
    batch_norm_backward<T>(x, weight, options, saved.mean, saved.variance, dy, dx, grad.weight, grad.bias, ws);
  }
  /// Folds the statistics of a training step into the running ones.
  void update(const Saved& saved) {
    update_running_statistics<T>(saved.mean, saved.variance, saved.rows, options, running_mean, running_variance);
    if (!batches_tracked.empty()) ++batches_tracked[0];
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
