/// @file   recops/nn/senet.hpp
/// @brief  Squeeze and excitation over fields: how much each field's embedding counts, from what all of them say.
///
///     z_f = mean of e_f        a = act(W2 relu(W1 z))        y_f = a_f e_f
///
/// Shapes      e and y [B, F K], which is [B, F, K]   W1 [R, F]   W2 [F, R], R = F / ratio, at least 1
/// Precision   sums in T.   Same bits for any number of threads; frozen also for any batch a row is in.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row.
/// Cost        2 B F K + 4 B F R flops, e is read twice (the second time from cache); backward the like.
/// Errors      Error if shapes disagree; outputs untouched.
/// Reference   Huang et al., "FiBiNET", arXiv 1905.09433, equations 2 to 4 (there act is relu; sigmoid in most code since).
#pragma once
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Calls `f(each)` where `each(body)` is `for_each_vector` over k numbers, unrolled where they are a few whole vectors: a loop of
/// unknown length takes longer than what it does for a field.
template <class T, class F>
void with_field_loop(Index k, F&& f) {
  constexpr Index W = simd::lanes<T, simd::DefaultArch>;
  const auto whole = [&]<Index C>(std::integral_constant<Index, C>) {
    f([](auto&& body) RECOPS_LAMBDA_INLINE {
      RECOPS_UNROLL
      for (Index v = 0; v < C; ++v)
        body(
            v * W, [](const T* p) RECOPS_LAMBDA_INLINE { return simd::Batch<T>::load_unaligned(p); },
            [](T* p, simd::Batch<T> x) RECOPS_LAMBDA_INLINE { x.store_unaligned(p); });
    });
  };
  switch (k % W == 0 ? k / W : 0) {
    case 1:
      return whole(std::integral_constant<Index, 1>());
    case 2:
      return whole(std::integral_constant<Index, 2>());
    case 4:
      return whole(std::integral_constant<Index, 4>());
    default:
      f([k](auto&& body) RECOPS_LAMBDA_INLINE { simd::for_each_vector<T, simd::DefaultArch>(k, body); });
  }
}

/// z [B, F]: the means of the fields, of a vector of fields at a time.
template <class T>
void field_means(MatrixView<const T> e, MatrixView<T> z) {
  using B = simd::Batch<T>;
  constexpr Index W = simd::lanes<T, simd::DefaultArch>;
  const Index f = z.cols(), k = e.cols() / f;
  const B share(k > 0 ? T(1) / static_cast<T>(k) : T(0));
  with_field_loop<T>(k, [&](auto each) {
    for (Index b = 0; b < e.rows(); ++b) {
      const T* own = e.row(b);
      for (Index i = 0; i < f; i += W) {
        const Index some = std::min(W, f - i);
        B sums[W];
        for (Index u = 0; u < W; ++u) {
          sums[u] = B(T(0));
          if (u >= some) continue;
          each([&](Index j, auto load, auto) RECOPS_LAMBDA_INLINE { sums[u] = sums[u] + load(own + j); });
          own += k;
        }
        const B means = simd::sum_each<T, simd::DefaultArch>(sums) * share;
        if (some == W) {
          means.store_unaligned(z.row(b) + i);
        } else {
          simd::store_first(z.row(b) + i, means, some);
        }
      }
    }
  });
}

/// y_f = a_f e_f
template <class T>
void scale_fields(MatrixView<const T> e, MatrixView<const T> a, MatrixView<T> y) {
  const Index f = a.cols(), k = e.cols() / f;
  with_field_loop<T>(k, [&](auto each) {
    for (Index b = 0; b < e.rows(); ++b) {
      const T* from = e.row(b);
      T* to = y.row(b);
      for (Index i = 0; i < f; ++i, from += k, to += k) {
        const simd::Batch<T> factor(a(b, i));
        each([&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE { store(to + j, factor * load(from + j)); });
      }
    }
  });
}

/// weight [out, in] in vectors of outputs, zeros past the last: the numbers of vector v lie at rows v in to (v + 1) in.
template <class T>
Matrix<T> vectors_of_outputs(MatrixView<const T> weight) {
  constexpr Index W = simd::lanes<T, simd::DefaultArch>;
  const Index in = weight.cols();
  Matrix<T> vectors((weight.rows() + W - 1) / W * in, W, T(0));
  for (Index o = 0; o < weight.rows(); ++o)
    for (Index i = 0; i < in; ++i) vectors(o / W * in + i, o % W) = weight(o, i);
  return vectors;
}

/// y [R, whole vectors] = x [R, in] times `weight` in vectors, each sum in the order of x: a row's bits do not depend on its company.
/// `V` vectors at a time, then one.
template <Index R, Index V, class T>
void small_product(MatrixView<const T> x, MatrixView<const T> weight, MatrixView<T> y, Index col = 0) {
  using B = simd::Batch<T>;
  constexpr Index W = simd::lanes<T, simd::DefaultArch>;
  for (; col + V * W <= y.cols(); col += V * W) {
    const T* own = weight.row(col / W * x.cols());
    B sums[R][V];
    for (auto& row : sums)
      for (B& sum : row) sum = B(T(0));
    for (Index i = 0; i < x.cols(); ++i, own += W) {
      B w[V];
      RECOPS_UNROLL
      for (Index v = 0; v < V; ++v) w[v] = B::load_unaligned(own + v * W * x.cols());
      RECOPS_UNROLL
      for (Index r = 0; r < R; ++r) {
        const B number(x(r, i));
        RECOPS_UNROLL
        for (Index v = 0; v < V; ++v) simd::add_product(number, w[v], sums[r][v]);
      }
    }
    RECOPS_UNROLL
    for (Index r = 0; r < R; ++r) {
      RECOPS_UNROLL
      for (Index v = 0; v < V; ++v) sums[r][v].store_unaligned(y.row(r) + col + v * W);
    }
  }
  if constexpr (V > 1) small_product<R, 1>(x, weight, y, col);
}

}  // namespace detail

/// Names as in public PyTorch code: `excitation.0.weight [R, F]`, `excitation.2.weight [F, R]`; no biases.
template <Real T>
struct Senet {
  Matrix<T> squeeze;  ///< W1
  Matrix<T> excite;   ///< W2
  Activation activation = Activation::sigmoid;

  Senet() = default;
  Senet(Index count, Index ratio, Activation f, Random& random) : activation(f) {
    check_option("Senet", "fields", count >= 1, "one field or more", static_cast<double>(count));
    check_option("Senet", "ratio", ratio >= 1, "ratio >= 1", static_cast<double>(ratio));
    const Index r = std::max(Index{1}, count / ratio);
    squeeze = std::move(Linear<T>(count, r, random, false).weight);
    excite = std::move(Linear<T>(r, count, random, false).weight);
  }
  static constexpr auto fields() {
    return std::tuple{parameter("excitation.0.weight", &Senet::squeeze), parameter("excitation.2.weight", &Senet::excite)};
  }

  /// As many as come in; throws `Error` unless the fields divide them.
  Index output_cols(Index cols) const {
    check_option("Senet", "input columns", excite.rows() > 0 && cols % excite.rows() == 0, "a multiple of the number of fields",
                 static_cast<double>(cols));
    return cols;
  }
  struct Saved {
    Matrix<T> z, h, t, a;  ///< [B, F], [B, R], before and after the last activation [B, F]: `a` is there to be looked at
  };
  /// y may be e.
  void forward(MatrixView<const T> e, MatrixView<T> y, Workspace& ws) const {
    check("Senet::forward", e, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const Index f = excite.rows();
    const MatrixView<T> z = ws.matrix<T>(e.rows(), f), h = ws.matrix<T>(e.rows(), squeeze.rows()), a = ws.matrix<T>(e.rows(), f);
    means(e, z, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(z)), simd::transposed(squeeze.view()), {.activation = Activation::relu}, h, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(h)), simd::transposed(excite.view()), {.activation = activation}, a, ws);
    scale(e, a, y, ws);
  }
  void forward(MatrixView<const T> e, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("Senet::forward", e, MatrixView<const T>(y));
    const Index f = excite.rows();
    for (Matrix<T>* m : {&saved.z, &saved.t, &saved.a}) m->resize(e.rows(), f);
    saved.h.resize(e.rows(), squeeze.rows());
    const MatrixView<T> z = saved.z;
    means(e, z, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(saved.z)), simd::transposed(squeeze.view()), {.activation = Activation::relu},
                  saved.h, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(saved.h)), simd::transposed(excite.view()), {}, saved.t, ws);
    for (Index b = 0; b < e.rows(); ++b) simd::activate<T>(activation, saved.t.row(b), saved.a.row(b), f);
    scale(e, saved.a, y, ws);
  }
  /// Adds to `de` unless empty and to `gradient`.
  void backward(MatrixView<const T> e, MatrixView<const T> dy, const Saved& saved, MatrixView<T> de, Senet& gradient,
                Workspace& ws) const {
    constexpr const char* name = "Senet::backward";
    check(name, e, dy);
    const Index f = excite.rows(), k = e.cols() / f, rows = e.rows();
    for (const Matrix<T>* m : {&saved.z, &saved.t, &saved.a}) check_shape(name, "saved", m->view(), rows, f);
    check_shape(name, "saved.h", saved.h.view(), rows, squeeze.rows());
    if (!de.empty()) check_shape(name, "de", de, rows, e.cols());
    check_gradient_shapes(name, *this, gradient);
    if (rows == 0) return;
    const auto mark = ws.mark();
    const MatrixView<T> dt = ws.matrix<T>(rows, f), dh = ws.matrix<T>(rows, squeeze.rows()), dz = ws.matrix<T>(rows, f);
    detail::for_row_blocks(rows, ws, [&](Index first, Index count, Index, Workspace&) {
      for (Index b = first; b < first + count; ++b) {
        for (Index i = 0; i < f; ++i) dt(b, i) = simd::dot(dy.row(b) + i * k, e.row(b) + i * k, k);
        simd::activate_backward<T>(activation, saved.t.row(b), saved.a.row(b), dt.row(b), dt.row(b), f);
      }
    });
    detail::linear_backward<T>(saved.h, excite, dt, dh, true, gradient.excite, {}, ws);
    for (Index b = 0; b < rows; ++b)
      simd::activate_backward<T>(Activation::relu, saved.h.row(b), saved.h.row(b), dh.row(b), dh.row(b), dh.cols());
    detail::linear_backward<T>(saved.z, squeeze, dh, dz, true, gradient.squeeze, {}, ws);
    if (de.empty()) return;
    const T share = T(1) / static_cast<T>(k);
    detail::for_row_blocks(rows, ws, [&](Index first, Index count, Index, Workspace&) {
      for (Index b = first; b < first + count; ++b)
        for (Index i = 0; i < f; ++i) {
          const simd::Batch<T> a(saved.a(b, i)), level(dz(b, i) * share);
          const T* const up = dy.row(b) + i * k;
          T* const to = de.row(b) + i * k;
          simd::for_each_vector<T, simd::DefaultArch>(k, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
            store(to + j, simd::mul_add(load(up + j), a, load(to + j) + level));
          });
        }
    });
  }

  /// z [B, F]: the means of the fields.
  static void means(MatrixView<const T> e, MatrixView<T> z, Workspace& ws) {
    detail::for_row_blocks(e.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
      detail::field_means(e.middle_rows(first, count), z.middle_rows(first, count));
    });
  }
  /// y_f = a_f e_f
  static void scale(MatrixView<const T> e, MatrixView<const T> a, MatrixView<T> y, Workspace& ws) {
    detail::for_row_blocks(e.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
      detail::scale_fields(e.middle_rows(first, count), a.middle_rows(first, count), y.middle_rows(first, count));
    });
  }

 private:
  void check(const char* name, MatrixView<const T> e, MatrixView<const T> y) const {
    check_shape(name, "excitation.0.weight", squeeze.view(), any_size, excite.rows());
    check_shape(name, "excitation.2.weight", excite.view(), any_size, squeeze.rows());
    check_shape(name, "e", e, any_size, any_size);
    check_shape(name, "y", y, e.rows(), output_cols(e.cols()));
  }
};

/// Serving form of Senet: a few rows at a time pass through all of it. Immutable; threads may share it.
template <Real T>
class FrozenSenet {
 public:
  FrozenSenet() = default;
  explicit FrozenSenet(const Senet<T>& layer)
      : activation_(layer.activation), fields_(layer.excite.rows()), units_(layer.squeeze.rows()) {
    check_option("freeze(Senet)", "fields", fields_ >= 1, "one field or more", static_cast<double>(fields_));
    check_shape("freeze(Senet)", "excitation.0.weight", layer.squeeze.view(), any_size, fields_);
    check_shape("freeze(Senet)", "excitation.2.weight", layer.excite.view(), fields_, units_);
    squeeze_ = detail::vectors_of_outputs<T>(layer.squeeze);
    excite_ = detail::vectors_of_outputs<T>(layer.excite);
  }
  Index output_cols(Index cols) const { return cols; }
  /// y may be e.
  void forward(MatrixView<const T> e, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenSenet", "e", e, any_size, any_size);
    check_option("FrozenSenet", "columns of e", e.cols() % fields_ == 0, "a multiple of the number of fields",
                 static_cast<double>(e.cols()));
    check_shape("FrozenSenet", "y", y, e.rows(), e.cols());
    detail::for_row_blocks(e.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
      Index b = first;
      for (; b + tile <= first + count; b += tile) some_rows<tile, 2>(e.middle_rows(b, tile), y.middle_rows(b, tile), scratch);
      for (; b < first + count; ++b) some_rows<1, 4>(e.middle_rows(b, 1), y.middle_rows(b, 1), scratch);
    });
  }

 private:
  static constexpr Index tile = 4;
  template <Index R, Index V>
  void some_rows(MatrixView<const T> e, MatrixView<T> y, Workspace& ws) const {
    constexpr Index W = simd::lanes<T, simd::DefaultArch>;
    const auto mark = ws.mark();
    const MatrixView<T> z = ws.matrix<T>(R, fields_), h = ws.matrix<T>(R, squeeze_.rows() / fields_ * W),
                        a = ws.matrix<T>(R, excite_.rows() / units_ * W);
    detail::field_means(e, z);
    detail::small_product<R, V, T>(z, squeeze_, h);
    simd::activate<T>(Activation::relu, h.data(), h.data(), R * h.stride());
    detail::small_product<R, V, T>(h.middle_cols(0, units_), excite_, a);
    simd::activate<T>(activation_, a.data(), a.data(), R * a.stride());
    detail::scale_fields<T>(e, a.middle_cols(0, fields_), y);
  }

  Matrix<T> squeeze_, excite_;
  Activation activation_ = Activation::sigmoid;
  Index fields_ = 1, units_ = 1;
};
/// Weights stay in T: there are too few of them to gain by less.
template <Real T, class S = T>
FrozenSenet<T> freeze(const Senet<T>& layer, Weights<S> = {}) {
  return FrozenSenet<T>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
