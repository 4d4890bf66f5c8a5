/// @file   recops/nn/cross_network.hpp
/// @brief  Cross layers of DCN-v2: products of features of every degree, explicitly (arXiv 2008.13535, section 3.2).
#pragma once
#include <recops/nn/linear.hpp>
#include <vector>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// y = x0 z + x; y may be z.
template <class T>
void cross(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<const T> z, MatrixView<T> y) {
  for (Index b = 0; b < x.rows(); ++b) {
    const T *const p0 = x0.row(b), *const px = x.row(b), *const pz = z.row(b);
    T* const out = y.row(b);
    simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      store(out + i, simd::mul_add(load(p0 + i), load(pz + i), load(px + i)));
    });
  }
}

}  // namespace detail

/// One cross layer: y = x0 * (x W^T + b) + x, element by element, for the network's input x0 and the layer's own x, all `[B, D]`.
template <class T>
struct CrossLayer {
  Linear<T> linear;  ///< weight [D, D]

  CrossLayer() = default;
  CrossLayer(Index width, Random& random) : linear(checked_size("CrossLayer", "width", width), width, random) {}

  static constexpr auto fields() { return std::tuple{layer("linear", &CrossLayer::linear)}; }

  struct Saved {
    Matrix<T> z;  ///< x W^T + b
  };
  /// y must be neither x0 nor x. Throws `Error` for shapes that disagree. 2 B D^2 flops.
  void forward(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("CrossLayer", x0, x);
    check_shape("CrossLayer", "y", y, x.rows(), x.cols());
    linear.forward(x, y, ws);
    detail::cross<T>(x0, x, y, y);
  }
  void forward(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("CrossLayer", x0, x);
    check_shape("CrossLayer", "y", y, x.rows(), x.cols());
    saved.z.resize(x.rows(), x.cols());
    linear.forward(x, saved.z, ws);
    detail::cross<T>(x0, x, saved.z, y);
  }
  /// Adds to dx0 and dx, each unless empty; they may be the same.
  void backward(MatrixView<const T> x0, MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx0,
                MatrixView<T> dx, CrossLayer& gradient, Workspace& ws) const {
    constexpr const char* name = "CrossLayer::backward";
    check(name, x0, x);
    check_shape(name, "dy", dy, x.rows(), x.cols());
    check_shape(name, "saved", saved.z.view(), x.rows(), x.cols());
    if (!dx0.empty()) check_shape(name, "dx0", dx0, x.rows(), x.cols());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dz = ws.matrix<T>(x.rows(), x.cols());
    for (Index b = 0; b < x.rows(); ++b) {
      const T *const p0 = x0.row(b), *const d = dy.row(b), *const z = saved.z.row(b);
      T* const out = dz.row(b);
      T *const to0 = dx0.empty() ? nullptr : dx0.row(b), *const to = dx.empty() ? nullptr : dx.row(b);
      simd::for_each_vector<T, simd::DefaultArch>(x.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto g = load(d + i);
        store(out + i, g * load(p0 + i));
        if (to0) store(to0 + i, simd::mul_add(g, load(z + i), load(to0 + i)));
        if (to) store(to + i, load(to + i) + g);
      });
    }
    linear.backward(x, dz, {}, dx, gradient.linear, ws);
  }

 private:
  void check(const char* name, MatrixView<const T> x0, MatrixView<const T> x) const {
    const Index width = linear.weight.cols();
    check_shape(name, "weight", linear.weight.view(), width, width);
    check_shape(name, "x", x, any_size, width);
    check_shape(name, "x0", x0, x.rows(), width);
  }
};

/// Cross layers one after another, the first on x0 = x itself: a row layer. Products of up to `layers` + 1 features.
template <class T>
struct CrossNetwork {
  std::vector<CrossLayer<T>> layers;

  CrossNetwork() = default;
  CrossNetwork(Index width, Index count, Random& random) {
    check_option("CrossNetwork", "count", count >= 0, "count >= 0", static_cast<double>(count));
    checked_size("CrossNetwork", "width", width);
    for (Index i = 0; i < count; ++i) layers.emplace_back(width, random);
  }

  static constexpr auto fields() { return std::tuple{recops::layers("layers", &CrossNetwork::layers)}; }

  /// Throws `Error` unless every layer has the input's width.
  Index output_cols(Index input_cols) const {
    for (const auto& l : layers) l.linear.output_cols(input_cols);
    return input_cols;
  }
  struct Saved {
    std::vector<typename CrossLayer<T>::Saved> layers;
    std::vector<Matrix<T>> outputs;  ///< of all layers but the last
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("CrossNetwork", x, y);
    const auto mark = ws.mark();
    run(
        x, y, [&](std::size_t i, MatrixView<const T> in, MatrixView<T> out) { layers[i].forward(x, in, out, ws); },
        [&](std::size_t) { return ws.matrix<T>(x.rows(), x.cols()); });
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("CrossNetwork", x, y);
    saved.layers.resize(layers.size());
    saved.outputs.resize(layers.size());
    run(
        x, y,
        [&](std::size_t i, MatrixView<const T> in, MatrixView<T> out) {
          layers[i].forward(x, in, out, saved.layers[i], step.child(static_cast<Index>(i)), ws);
        },
        [&](std::size_t i) {
          saved.outputs[i].resize(x.rows(), x.cols());
          return saved.outputs[i].view();
        });
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, CrossNetwork& gradient,
                Workspace& ws) const {
    constexpr const char* name = "CrossNetwork::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    check_option(name, "saved", saved.layers.size() == layers.size(), "what forward of this layer saved",
                 static_cast<double>(saved.layers.size()));
    for (std::size_t i = 0; i < layers.size(); ++i) {
      check_shape(name, "saved", saved.layers[i].z.view(), x.rows(), x.cols());
      if (i + 1 < layers.size()) check_shape(name, "saved", saved.outputs[i].view(), x.rows(), x.cols());
    }
    if (layers.empty()) {
      for (Index b = 0; b < dx.rows(); ++b) simd::add(dy.row(b), dx.row(b), dx.cols());
      return;
    }
    const auto mark = ws.mark();
    MatrixView<T> unused[2] = {ws.matrix<T>(x.rows(), x.cols()), ws.matrix<T>(x.rows(), x.cols())};
    for (std::size_t i = layers.size(); i-- > 0;) {
      const MatrixView<const T> in = i == 0 ? x : saved.outputs[i - 1].view();
      MatrixView<T> d = dx;
      if (i > 0) {
        d = unused[i % 2];
        for (Index b = 0; b < d.rows(); ++b) std::fill_n(d.row(b), d.cols(), T(0));
      }
      layers[i].backward(x, in, dy, saved.layers[i], dx, d, gradient.layers[i], ws);
      dy = d;
    }
  }

 private:
  template <class U>
  void check(const char* name, MatrixView<const T> x, MatrixView<U> y) const {
    check_shape(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    check_shape(name, std::is_const_v<U> ? "dy" : "y", y, x.rows(), x.cols());
  }
  template <class Call, class Make>
  void run(MatrixView<const T> x, MatrixView<T> y, Call&& call, Make&& make) const {
    if (layers.empty()) {
      for (Index b = 0; b < x.rows(); ++b) std::copy_n(x.row(b), x.cols(), y.row(b));
      return;
    }
    MatrixView<const T> in = x;
    for (std::size_t i = 0; i + 1 < layers.size(); ++i) {
      const MatrixView<T> out = make(i);
      call(i, in, out);
      in = out;
    }
    call(layers.size() - 1, in, y);
  }
};

/// Serving form of CrossNetwork. Immutable; threads may share it.
template <class T, class S = T>
class FrozenCrossNetwork {
 public:
  explicit FrozenCrossNetwork(const CrossNetwork<T>& network) {
    for (const auto& l : network.layers) layers_.emplace_back(l.linear.weight, l.linear.bias, Activation::none);
  }
  Index output_cols(Index input_cols) const {
    for (const auto& l : layers_) l.output_cols(input_cols);
    return input_cols;
  }
  /// y must not be x.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenCrossNetwork", "x", x, any_size, any_size);
    check_shape("FrozenCrossNetwork", "y", y, x.rows(), output_cols(x.cols()));
    const auto mark = ws.mark();
    const MatrixView<T> z = ws.matrix<T>(x.rows(), x.cols());
    MatrixView<const T> in = x;
    for (const auto& l : layers_) {
      l.forward(in, z, ws);
      detail::cross<T>(x, in, z, y);  // y may be what came in: element by element
      in = y;
    }
    if (layers_.empty())
      for (Index b = 0; b < x.rows(); ++b) std::copy_n(x.row(b), x.cols(), y.row(b));
  }

 private:
  std::vector<FrozenDense<T, S>> layers_;
};
template <class T, class S = T>
FrozenCrossNetwork<T, S> freeze(const CrossNetwork<T>& network, Weights<S> = {}) {
  return FrozenCrossNetwork<T, S>(network);
}

}  // namespace RECOPS_ABI
}  // namespace recops
