/// @file   recops/nn/dropout.hpp
/// @brief  Dropout as a function of the training step.
#pragma once
#include <recops/nn/layer.hpp>
#include <recops/simd/keep_mask.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Training: each number is 0 with probability `p`, else divided by 1 - p (Srivastava et al., JMLR 2014); serving: the identity. The
/// mask is a function of the step and of the row's place in the batch: the same bits on every machine and for any number of threads,
/// float and double alike. What is dropped is 0 even if it was NaN. No parameters; nothing is kept but the step.
template <class T>
struct Dropout {
  double p = 0.5;

  Dropout() = default;
  /// Throws `Error` unless 0 <= p <= 1.
  explicit Dropout(double probability) : p(probability) { check_option("Dropout", "p", 0 <= p && p <= 1, "0 <= p <= 1", p); }

  static constexpr auto fields() { return std::tuple{}; }
  Index output_cols(Index input_cols) const { return input_cols; }
  struct Saved {
    RandomRow at;
  };
  /// y = x; y may be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace&) const {
    check("Dropout", x, y);
    for (Index b = 0; b < x.rows(); ++b)
      if (x.row(b) != y.row(b)) std::copy_n(x.row(b), x.cols(), y.row(b));
  }
  /// y may be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace&) const {
    check("Dropout", x, y);
    saved.at = step.random_row(RandomPurpose::dropout);
    if (p < 1) {
      simd::dropout<T>(saved.at, {}, 1 - p, x, y);
    } else {
      for (Index b = 0; b < x.rows(); ++b) std::fill_n(y.row(b), x.cols(), T(0));
    }
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Dropout&,
                Workspace& ws) const {
    check("Dropout::backward", x, dy);
    if (dx.empty()) return;
    check_shape("Dropout::backward", "dx", dx, x.rows(), x.cols());
    if (p >= 1) return;
    const auto mark = ws.mark();
    T* const d = ws.take<T>(dy.cols());
    RandomRow at = saved.at;
    for (Index b = 0; b < dy.rows(); ++b, ++at.row) {
      simd::dropout<T>(at, 1 - p, dy.row(b), d, dy.cols());
      simd::add(d, dx.row(b), dy.cols());
    }
  }

 private:
  template <class U>
  void check(const char* name, MatrixView<const T> x, MatrixView<U> y) const {
    check_shape(name, "x", x, any_size, any_size);
    check_shape(name, "y", y, x.rows(), x.cols());
  }
};

/// Serving form: still the identity; a container passes over it at the cost of a copy.
template <class T>
Dropout<T> freeze(const Dropout<T>& layer) {
  return layer;
}

}  // namespace RECOPS_ABI
}  // namespace recops
