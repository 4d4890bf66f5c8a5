/// @file   recops/nn/cross_mixture.hpp
/// @brief  The low-rank mixture of DCN-v2: cross layers whose products run through a few numbers in several subspaces, of which a gate
///         says which count.
///
///     y = sum_i g_i (x0 * (U_i act(C_i act(V_i x)) + b)) + x          g = softmax (or sigmoid) of G x
///
/// Shapes      x0, x, y [B, D]   V [N r, D] (expert i owns rows i r ..)   C [N r, r]   U [N D, r] (expert i owns rows i D ..)
///             b [D], shared
///             G [N, D]
/// Precision   sums in T.   Same bits for any number of threads; frozen also for any batch a row is in.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row.   All U and b 0: y = x, to the bit.
/// Cost        4 B D N r + 2 B N r^2 + 2 B D N flops, against 2 B D^2 of a full cross layer; backward twice that.
/// Errors      Error if shapes disagree; outputs untouched.
/// Reference   Wang et al., "DCN V2", arXiv 2008.13535, equations 3 and 4 (experts share b, as in the equation).
#pragma once
#include <recops/nn/cross_network.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/simd/softmax.hpp>
#include <vector>

namespace recops {

struct CrossMixtureOptions {
  Activation activation = Activation::tanh;  ///< of the subspaces
  bool softmax_gate = true;                  ///< else each gate is a sigmoid of its own
};

inline namespace RECOPS_ABI {

/// One layer, for the network's input x0 and the layer's own x.
template <Real T>
struct CrossMixtureLayer {
  Matrix<T> down;    ///< V
  Matrix<T> middle;  ///< C
  Matrix<T> up;      ///< U
  Vector<T> bias;    ///< b
  Matrix<T> gate;    ///< G
  CrossMixtureOptions options;

  CrossMixtureLayer() = default;
  CrossMixtureLayer(Index width, Index experts, Index rank, Random& random, const CrossMixtureOptions& o = {}) : options(o) {
    check_option("CrossMixtureLayer", "experts", experts >= 1, "one expert or more", static_cast<double>(experts));
    check_option("CrossMixtureLayer", "rank", rank >= 1, "rank >= 1", static_cast<double>(rank));
    down = std::move(Linear<T>(checked_size("CrossMixtureLayer", "width", width), experts * rank, random, false).weight);
    middle = std::move(Linear<T>(rank, experts * rank, random, false).weight);
    up = std::move(Linear<T>(rank, experts * width, random, false).weight);
    bias = Vector<T>(width, T(0));
    gate = std::move(Linear<T>(width, experts, random, false).weight);
  }
  static constexpr auto fields() {
    return std::tuple{parameter("V", &CrossMixtureLayer::down), parameter("C", &CrossMixtureLayer::middle),
                      parameter("U", &CrossMixtureLayer::up), parameter("bias", &CrossMixtureLayer::bias),
                      parameter("gate.weight", &CrossMixtureLayer::gate)};
  }

  Index width() const { return down.cols(); }
  Index experts() const { return gate.rows(); }
  Index rank() const { return middle.cols(); }

  struct Saved {
    Matrix<T> v, a, c, d;  ///< [B, N r]: V x, act of it, C of that, act of it
    Matrix<T> w;           ///< [B, N D], U of that, without b
    Matrix<T> gates;       ///< [B, N], there to be looked at
  };
  /// y must be neither x0 nor x.
  void forward(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("CrossMixtureLayer::forward", x0, x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const Index n = x.rows(), nr = down.rows();
    const MatrixView<T> a = ws.matrix<T>(n, nr), d = ws.matrix<T>(n, nr), w = ws.matrix<T>(n, up.rows()),
                        g = ws.matrix<T>(n, experts());
    run(
        x0, x, y, g, w, ws,
        [&] { simd::gemm<T>(simd::plain(x), simd::transposed(down.view()), {.activation = options.activation}, a, ws); },
        [&](Index i) {
          simd::gemm<T>(simd::plain(part(MatrixView<const T>(a), i)),
                        simd::transposed(middle.view().middle_rows(i * rank(), rank())), {.activation = options.activation},
                        part(d, i), ws);
        },
        d);
  }
  void forward(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("CrossMixtureLayer::forward", x0, x, MatrixView<const T>(y));
    const Index n = x.rows(), nr = down.rows();
    for (Matrix<T>* m : {&saved.v, &saved.a, &saved.c, &saved.d}) m->resize(n, nr);
    saved.w.resize(n, up.rows());
    saved.gates.resize(n, experts());
    run(
        x0, x, y, saved.gates, saved.w, ws,
        [&] {
          simd::gemm<T>(simd::plain(x), simd::transposed(down.view()), {}, saved.v, ws);
          for (Index b = 0; b < n; ++b) simd::activate<T>(options.activation, saved.v.row(b), saved.a.row(b), nr);
        },
        [&](Index i) {
          simd::gemm<T>(simd::plain(part(std::as_const(saved.a).view(), i)),
                        simd::transposed(middle.view().middle_rows(i * rank(), rank())), {}, part(saved.c.view(), i), ws);
          for (Index b = 0; b < n; ++b)
            simd::activate<T>(options.activation, part(saved.c.view(), i).row(b), part(saved.d.view(), i).row(b), rank());
        },
        std::as_const(saved.d).view());
  }
  /// Adds to dx0 and dx, each unless empty; they may be the same.
  void backward(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx0,
                MatrixView<T> dx, CrossMixtureLayer& gradient, Workspace& ws) const {
    constexpr const char* name = "CrossMixtureLayer::backward";
    check(name, x0, x, dy);
    const Index n = x.rows(), width = x.cols(), nr = down.rows(), count = experts(), r = rank();
    for (const Matrix<T>* m : {&saved.v, &saved.a, &saved.c, &saved.d}) check_shape(name, "saved", m->view(), n, nr);
    check_shape(name, "saved.w", saved.w.view(), n, up.rows());
    check_shape(name, "saved.gates", saved.gates.view(), n, count);
    if (!dx0.empty()) check_shape(name, "dx0", dx0, n, width);
    if (!dx.empty()) check_shape(name, "dx", dx, n, width);
    check_gradient_shapes(name, *this, gradient);
    if (n == 0) return;
    const auto mark = ws.mark();
    const MatrixView<T> dw = ws.matrix<T>(n, up.rows()), dg = ws.matrix<T>(n, count), db = ws.matrix<T>(n, width),
                        da = ws.matrix<T>(n, nr), dd = ws.matrix<T>(n, nr);
    const VectorView<const T> b0 = bias;
    detail::for_row_blocks(n, ws, [&](Index first, Index rows, Index, Workspace&) {
      for (Index b = first; b < first + rows; ++b) {
        const T *const p0 = x0.row(b), *const d = dy.row(b);
        T* const to_b = db.row(b);
        std::fill_n(to_b, width, T(0));
        for (Index i = 0; i < count; ++i) {
          const simd::Batch<T> g(saved.gates(b, i));
          const T* const w = saved.w.row(b) + i * width;
          T* const to = dw.row(b) + i * width;
          T* const to0 = dx0.empty() ? nullptr : dx0.row(b);
          simd::Batch<T> sum(T(0));
          T tail = T(0);
          constexpr Index W = simd::lanes<T>;
          const Index whole = width / W * W;
          for (Index j = 0; j < whole; j += W) {
            using B = simd::Batch<T>;
            const B up_j = B::load_unaligned(d + j), w_j = B::load_unaligned(w + j) + B::load_unaligned(b0.data() + j),
                    x_j = B::load_unaligned(p0 + j), e = g * up_j, t = e * x_j;
            sum = simd::mul_add(up_j * x_j, w_j, sum);
            t.store_unaligned(to + j);
            (B::load_unaligned(to_b + j) + t).store_unaligned(to_b + j);
            if (to0) simd::mul_add(e, w_j, B::load_unaligned(to0 + j)).store_unaligned(to0 + j);
          }
          for (Index j = whole; j < width; ++j) {
            const T w_j = w[j] + b0[j], e = saved.gates(b, i) * d[j], t = e * p0[j];
            tail += d[j] * p0[j] * w_j;
            to[j] = t;
            to_b[j] += t;
            if (to0) to0[j] += e * w_j;
          }
          dg(b, i) = simd::sum_lanes(sum) + tail;
        }
        const T* const g = saved.gates.row(b);
        T mean = T(0);
        for (Index i = 0; i < count; ++i) mean += g[i] * dg(b, i);
        for (Index i = 0; i < count; ++i) dg(b, i) = g[i] * (options.softmax_gate ? dg(b, i) - mean : dg(b, i) * (T(1) - g[i]));
        if (!dx.empty()) simd::add<T>(d, dx.row(b), width);
      }
    });
    detail::sum_over_rows<T>(n, width, gradient.bias, {}, ws, [&](Index first, Index rows, T* sums, T*) {
      for (Index b = first; b < first + rows; ++b) simd::add<T>(db.row(b), sums, width);
    });
    for (Index i = 0; i < count; ++i) {
      const auto rows_of = [&](Matrix<T>& m, Index size) {
        return m.empty() ? MatrixView<T>() : m.view().middle_rows(i * size, size);
      };
      const MatrixView<T> dd_i = part(dd, i), da_i = part(da, i);
      detail::linear_backward<T>(part(saved.d.view(), i), up.view().middle_rows(i * width, width),
                                 MatrixView<const T>(dw.middle_cols(i * width, width)), dd_i, true, rows_of(gradient.up, width),
                                 {}, ws);
      for (Index b = 0; b < n; ++b)
        simd::activate_backward<T>(options.activation, part(saved.c.view(), i).row(b), part(saved.d.view(), i).row(b),
                                   dd_i.row(b), dd_i.row(b), r);
      detail::linear_backward<T>(part(saved.a.view(), i), middle.view().middle_rows(i * r, r), MatrixView<const T>(dd_i), da_i,
                                 true, rows_of(gradient.middle, r), {}, ws);
    }
    for (Index b = 0; b < n; ++b)
      simd::activate_backward<T>(options.activation, saved.v.row(b), saved.a.row(b), da.row(b), da.row(b), nr);
    linear_backward<T>(x, down, da, dx, gradient.down, {}, ws);
    linear_backward<T>(x, gate, dg, dx, gradient.gate, {}, ws);
  }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    const Index d = down.cols(), n = gate.rows(), r = middle.cols();
    check_option(name, "experts", n >= 1 && r >= 1, "one expert or more, of rank >= 1", static_cast<double>(n));
    check_shape(name, "V", down.view(), n * r, d);
    check_shape(name, "C", middle.view(), n * r, r);
    check_shape(name, "U", up.view(), n * d, r);
    check_size(name, "bias", VectorView<const T>(bias), d);
    check_shape(name, "gate.weight", gate.view(), n, d);
  }
  /// The gates of a row of logits, in place.
  static void gate_row(T* g, Index n, bool softmax) { softmax ? void(simd::softmax<T>(g, n)) : simd::sigmoid<T>(g, g, n); }
  /// y = x0 * (sum_i g_i w_i + (sum_i g_i) b) + x
  static void mix_row(const T* x0, const T* x, const T* w, const T* g, const T* b, Index n, Index width, T* y) {
    T total = T(0);
    for (Index i = 0; i < n; ++i) total += g[i];
    const simd::Batch<T> all(total);
    simd::for_each_vector<T, simd::DefaultArch>(width, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
      auto v = all * load(b + j);
      for (Index i = 0; i < n; ++i) v = simd::mul_add(simd::Batch<T>(g[i]), load(w + i * width + j), v);
      store(y + j, simd::mul_add(load(x0 + j), v, load(x + j)));
    });
  }

 private:
  template <class V>
  MatrixView<V> part(MatrixView<V> m, Index i) const {
    return m.middle_cols(i * rank(), rank());
  }
  void check(const char* name, MatrixView<const T> x0, MatrixView<const T> x, MatrixView<const T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, width());
    check_shape(name, "x0", x0, x.rows(), width());
    check_shape(name, "y", y, x.rows(), width());
  }
  template <class Down, class Middle>
  void run(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<T> y, MatrixView<T> g, MatrixView<T> w, Workspace& ws,
           Down&& first, Middle&& second, MatrixView<const T> d) const {
    first();
    simd::gemm<T>(simd::plain(x), simd::transposed(gate.view()), {}, g, ws);
    for (Index i = 0; i < experts(); ++i) {
      second(i);
      simd::gemm<T>(simd::plain(part(d, i)), simd::transposed(up.view().middle_rows(i * width(), width())), {},
                    w.middle_cols(i * width(), width()), ws);
    }
    detail::for_row_blocks(x.rows(), ws, [&](Index at, Index rows, Index, Workspace&) {
      for (Index b = at; b < at + rows; ++b) {
        gate_row(g.row(b), experts(), options.softmax_gate);
        mix_row(x0.row(b), x.row(b), w.row(b), g.row(b), bias.data(), experts(), width(), y.row(b));
      }
    });
  }
};

/// Layers one after another, the first on x0 = x itself: a row layer.
template <Real T>
struct CrossMixture {
  std::vector<CrossMixtureLayer<T>> layers;

  CrossMixture() = default;
  CrossMixture(Index width, Index count, Index experts, Index rank, Random& random, const CrossMixtureOptions& o = {}) {
    check_option("CrossMixture", "count", count >= 0, "count >= 0", static_cast<double>(count));
    checked_size("CrossMixture", "width", width);
    for (Index i = 0; i < count; ++i) layers.emplace_back(width, experts, rank, random, o);
  }
  static constexpr auto fields() { return std::tuple{recops::layers("layers", &CrossMixture::layers)}; }

  /// Throws `Error` unless every layer has the input's width.
  Index output_cols(Index cols) const {
    check_option("CrossMixture", "layers", !layers.empty(), "one layer or more", 0);
    for (const auto& l : layers)
      check_option("CrossMixture", "input columns", l.width() == cols, "as wide as every layer", static_cast<double>(cols));
    return cols;
  }
  struct Saved {
    std::vector<typename CrossMixtureLayer<T>::Saved> layers;
    std::vector<Matrix<T>> outputs;  ///< of all layers but the last
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("CrossMixture::forward", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    MatrixView<const T> at = x;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const MatrixView<T> next = i + 1 == layers.size() ? y : ws.matrix<T>(x.rows(), x.cols());
      layers[i].forward(x, at, next, ws);
      at = next;
    }
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("CrossMixture::forward", x, MatrixView<const T>(y));
    saved.layers.resize(layers.size());
    saved.outputs.resize(layers.size());
    MatrixView<const T> at = x;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (i + 1 < layers.size()) saved.outputs[i].resize(x.rows(), x.cols());
      const MatrixView<T> next = i + 1 == layers.size() ? y : saved.outputs[i].view();
      layers[i].forward(x, at, next, saved.layers[i], step.child(static_cast<Index>(i)), ws);
      at = next;
    }
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, CrossMixture& gradient,
                Workspace& ws) const {
    constexpr const char* name = "CrossMixture::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    check_option(name, "saved", saved.layers.size() == layers.size() && saved.outputs.size() == layers.size(),
                 "what forward of this layer saved", static_cast<double>(saved.layers.size()));
    const auto mark = ws.mark();
    const MatrixView<T> between[2] = {ws.matrix<T>(x.rows(), x.cols()), ws.matrix<T>(x.rows(), x.cols())};
    MatrixView<const T> up = dy;
    for (std::size_t i = layers.size(); i-- > 0;) {
      MatrixView<T> d = dx;
      if (i > 0) {
        d = between[i % 2];
        std::fill_n(d.data(), d.rows() * d.cols(), T(0));
      }
      layers[i].backward(x, i == 0 ? x : saved.outputs[i - 1].view(), up, saved.layers[i], dx, d, gradient.layers[i], ws);
      up = d;
    }
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> y) const {
    check_shape(name, "x", x, any_size, any_size);
    check_shape(name, "y", y, x.rows(), output_cols(x.cols()));
  }
};

/// Serving form of CrossMixture: V and G are one packed product, the U of a layer too: diag(g) act(C ...) side by side times
/// [U_1; U_2; ...]. Immutable; threads may share it.
template <Real T, class S = T>
class FrozenCrossMixture {
 public:
  FrozenCrossMixture() = default;
  explicit FrozenCrossMixture(const CrossMixture<T>& network) {
    for (const auto& l : network.layers) {
      l.check_parameters("freeze(CrossMixture)");
      const Index d = l.width(), n = l.experts(), r = l.rank();
      Matrix<T> up(d, n * r);  // with the gates applied below, one product sums the experts
      for (Index i = 0; i < n; ++i)
        for (Index o = 0; o < d; ++o) std::copy_n(l.up.row(i * d + o), r, up.row(o) + i * r);
      Layer own{.down = FrozenDense<T, S>(l.down, {}, l.options.activation),
                .gate = FrozenDense<T>(l.gate, {}, Activation::none),
                .up = FrozenDense<T, S>(up, {}, Activation::none),
                .middle = {},
                .bias = l.bias,
                .softmax = l.options.softmax_gate};
      for (Index i = 0; i < n; ++i)
        own.middle.emplace_back(l.middle.view().middle_rows(i * r, r), VectorView<const T>(), l.options.activation);
      layers_.push_back(std::move(own));
    }
  }
  Index output_cols(Index cols) const { return cols; }
  /// y must not be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    const Index d = layers_.empty() ? 0 : layers_[0].bias.size();
    check_shape("FrozenCrossMixture", "x", x, any_size, d);
    check_shape("FrozenCrossMixture", "y", y, x.rows(), d);
    constexpr Index block = simd::detail::Chunks<T, simd::DefaultArch>::rows;
    ws.parallel_for((x.rows() + block - 1) / block, [&](Index task, Workspace& scratch) {
      const Index first = task * block, count = std::min(block, x.rows() - first);
      run(x.middle_rows(first, count), y.middle_rows(first, count), scratch);
    });
  }

 private:
  struct Layer {
    FrozenDense<T, S> down;
    FrozenDense<T> gate;
    FrozenDense<T, S> up;
    std::vector<FrozenDense<T, S>> middle;
    Vector<T> bias;
    bool softmax = true;
  };
  void run(MatrixView<const T> x0, MatrixView<T> y, Workspace& ws) const {
    MatrixView<const T> x = x0;
    for (const Layer& l : layers_) {
      const auto mark = ws.mark();
      const auto n = static_cast<Index>(l.middle.size());
      const Index r = l.middle[0].input_cols(), rows = x0.rows(), d = x0.cols();
      const MatrixView<T> a = ws.matrix<T>(rows, n * r), c = ws.matrix<T>(rows, n * r), g = ws.matrix<T>(rows, n),
                          w = ws.matrix<T>(rows, d);
      l.down.forward(x, a, ws);
      l.gate.forward(x, g, ws);
      for (Index i = 0; i < n; ++i)
        l.middle[static_cast<std::size_t>(i)].forward(a.middle_cols(i * r, r), c.middle_cols(i * r, r), ws);
      for (Index b = 0; b < rows; ++b) {
        CrossMixtureLayer<T>::gate_row(g.row(b), n, l.softmax);
        for (Index i = 0; i < n; ++i) simd::scale<T>(g(b, i), c.row(b) + i * r, c.row(b) + i * r, r);
      }
      l.up.forward(c, w, ws);
      for (Index b = 0; b < rows; ++b) {
        T total = T(0);
        for (Index i = 0; i < n; ++i) total += g(b, i);
        const simd::Batch<T> all(total);
        const T *const p0 = x0.row(b), *const px = x.row(b), *const pw = w.row(b), *const pb = l.bias.data();
        T* const to = y.row(b);  // may be px: element by element
        simd::for_each_vector<T, simd::DefaultArch>(d, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(to + j, simd::mul_add(load(p0 + j), simd::mul_add(all, load(pb + j), load(pw + j)), load(px + j)));
        });
      }
      x = y;
    }
  }

  std::vector<Layer> layers_;
};
template <Real T, class S = T>
FrozenCrossMixture<T, S> freeze(const CrossMixture<T>& network, Weights<S> = {}) {
  return FrozenCrossMixture<T, S>(network);
}

}  // namespace RECOPS_ABI
}  // namespace recops
