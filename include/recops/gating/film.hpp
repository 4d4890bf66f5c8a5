/// @file   recops/gating/film.hpp
/// @brief  Feature-wise linear modulation: a scale and a shift for every number of x, computed from what is known of its row.
///
///     [s | t] = z W^T + b            y = (1 + s) * x + t            (y = s * x + t without `plus_one`)
///
/// Shapes      x and y [B, H]   z [B, Z]   W [2 H, Z], rows of the scales first   b [2 H], or empty
/// Edge cases  W = 0, b = 0: y = x, to the bit.   A NaN stays in its row.
/// Cost        4 B Z H flops; backward twice that.   Same bits for any number of threads.
/// Errors      Error if shapes disagree; outputs untouched.
/// Reference   Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", arXiv 1709.07871, equation 2.
#pragma once
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {

struct FilmOptions {
  bool plus_one = true;  ///< scales are 1 + s: no modulation where W and b are 0
};

inline namespace RECOPS_ABI {

/// y from `modulation [B, 2 H]` = [s | t]; y may be x.
template <Real T>
void film(MatrixView<const T> x, MatrixView<const T> modulation, const FilmOptions& options, MatrixView<T> y, Workspace& ws) {
  check_shape("film", "x", x, any_size, any_size);
  check_shape("film", "modulation", modulation, x.rows(), 2 * x.cols());
  check_shape("film", "y", y, x.rows(), x.cols());
  const Index h = x.cols();
  const simd::Batch<T> one(options.plus_one ? T(1) : T(0));
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index b = first; b < first + count; ++b) {
      const T *const in = x.row(b), *const s = modulation.row(b), *const t = s + h;
      T* const to = y.row(b);
      simd::for_each_vector<T, simd::DefaultArch>(h, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        store(to + i, simd::mul_add(one + load(s + i), load(in + i), load(t + i)));
      });
    }
  });
}

/// Adds to each of `dx` and `dmodulation` that is not empty.
template <Real T>
void film_backward(MatrixView<const T> x, MatrixView<const T> modulation, const FilmOptions& options, MatrixView<const T> dy,
                   MatrixView<T> dx, MatrixView<T> dmodulation, Workspace& ws) {
  constexpr const char* name = "film_backward";
  const Index h = x.cols();
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "modulation", modulation, x.rows(), 2 * h);
  check_shape(name, "dy", dy, x.rows(), h);
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), h);
  if (!dmodulation.empty()) check_shape(name, "dmodulation", dmodulation, x.rows(), 2 * h);
  const simd::Batch<T> one(options.plus_one ? T(1) : T(0));
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index b = first; b < first + count; ++b) {
      const T *const in = x.row(b), *const s = modulation.row(b), *const up = dy.row(b);
      T *const to = dx.empty() ? nullptr : dx.row(b), *const ds = dmodulation.empty() ? nullptr : dmodulation.row(b);
      simd::for_each_vector<T, simd::DefaultArch>(h, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto d = load(up + i);
        if (to) store(to + i, simd::mul_add(d, one + load(s + i), load(to + i)));
        if (ds) {
          store(ds + i, simd::mul_add(d, load(in + i), load(ds + i)));
          store(ds + h + i, load(ds + h + i) + d);
        }
      });
    }
  });
}

/// FiLM with its generator, `linear.weight [2 H, Z]`, `linear.bias`.
template <Real T>
struct Film {
  Linear<T> linear;
  FilmOptions options;

  Film() = default;
  /// For H = `units` numbers, modulated from Z = `condition` numbers; begins as the identity (with `plus_one`).
  Film(Index units, Index condition, Random& random, const FilmOptions& o = {})
      : linear(checked_size("Film", "condition", condition), 2 * checked_size("Film", "units", units), random), options(o) {
    for (T& w : leaf_values(linear.weight)) w = T(0);
    for (T& b : linear.bias) b = T(0);
  }
  static constexpr auto fields() { return std::tuple{layer("linear", &Film::linear)}; }

  struct Saved {
    Matrix<T> modulation;  ///< [B, 2 H]
  };
  void forward(MatrixView<const T> x, MatrixView<const T> z, MatrixView<T> y, Workspace& ws) const {
    check("Film::forward", x, z);
    check_shape("Film::forward", "y", y, x.rows(), x.cols());
    const auto mark = ws.mark();
    const MatrixView<T> m = ws.matrix<T>(x.rows(), 2 * x.cols());
    recops::linear<T>(z, linear.weight, linear.bias, m, ws);
    film<T>(x, m, options, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<const T> z, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("Film::forward", x, z);
    check_shape("Film::forward", "y", y, x.rows(), x.cols());
    saved.modulation.resize(x.rows(), 2 * x.cols());
    recops::linear<T>(z, linear.weight, linear.bias, saved.modulation, ws);
    film<T>(x, saved.modulation, options, y, ws);
  }
  /// Adds to `dx` and `dz`, each unless empty, and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> z, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx,
                MatrixView<T> dz, Film& gradient, Workspace& ws) const {
    constexpr const char* name = "Film::backward";
    check(name, x, z);
    check_shape(name, "dy", dy, x.rows(), x.cols());
    check_shape(name, "saved", saved.modulation.view(), x.rows(), 2 * x.cols());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    if (!dz.empty()) check_shape(name, "dz", dz, z.rows(), z.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dm = ws.matrix<T>(x.rows(), 2 * x.cols());
    std::fill_n(dm.data(), dm.rows() * dm.cols(), T(0));
    film_backward<T>(x, saved.modulation, options, dy, dx, dm, ws);
    linear_backward<T>(z, linear.weight, dm, dz, gradient.linear.weight, gradient.linear.bias, ws);
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> z) const {
    check_shape(name, "x", x, any_size, any_size);
    check_shape(name, "weight", linear.weight.view(), 2 * x.cols(), any_size);
    check_shape(name, "z", z, x.rows(), linear.weight.cols());
    if (!linear.bias.empty()) check_size(name, "bias", VectorView<const T>(linear.bias), 2 * x.cols());
  }
};

/// Serving form of Film. Immutable; threads may share it.
template <Real T, class S = T>
class FrozenFilm {
 public:
  FrozenFilm() = default;
  explicit FrozenFilm(const Film<T>& layer)
      : linear_(layer.linear.weight, layer.linear.bias, Activation::none), options_(layer.options) {}
  /// y may be x.
  void forward(MatrixView<const T> x, MatrixView<const T> z, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenFilm", "z", z, x.rows(), linear_.input_cols());
    check_shape("FrozenFilm", "x", x, any_size, linear_.output_cols(z.cols()) / 2);
    check_shape("FrozenFilm", "y", y, x.rows(), x.cols());
    const auto mark = ws.mark();
    const MatrixView<T> m = ws.matrix<T>(x.rows(), 2 * x.cols());
    linear_.forward(z, m, ws);
    film<T>(x, m, options_, y, ws);
  }

 private:
  FrozenDense<T, S> linear_;
  FilmOptions options_;
};
template <Real T, class S = T>
FrozenFilm<T, S> freeze(const Film<T>& layer, Weights<S> = {}) {
  return FrozenFilm<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
