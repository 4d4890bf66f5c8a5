/// @file   recops/nn/sequential.hpp
/// @brief  Layers one after another.
#pragma once
#include <array>
#include <recops/nn/gradient.hpp>
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// y = layer_n(... layer_1(x)). Takes row layers and sequence layers alike: a jagged input keeps its offsets on the way, and
/// row layers work on its values. It is a row layer itself if all its layers are. Children are named 0, 1, ... as in PyTorch's
/// Sequential.
template <class T, class... Layers>
struct Sequential {
  static_assert(sizeof...(Layers) > 0 && (Layer<Layers, T> && ...), "Sequential needs one layer or more, each a recops::Layer");
  using Input = LayerInput<T, Layers...>;
  std::tuple<Layers...> layers;

  Sequential() = default;
  explicit Sequential(Layers... all) : layers(std::move(all)...) {}

  static constexpr auto fields() { return std::tuple{recops::layers("", &Sequential::layers)}; }

  Index output_cols(Index input_cols) const {
    std::apply([&](const auto&... l) { ((input_cols = l.output_cols(input_cols)), ...); }, layers);
    return input_cols;
  }

  /// Every layer's own, and the inputs of all layers but the first.
  struct Saved {
    std::tuple<typename Layers::Saved...> layers;
    std::array<Matrix<T>, sizeof...(Layers)> inputs;
  };

  void forward(Input input, MatrixView<T> y, Workspace& ws) const {
    const JaggedView<const T> x = input;
    const auto mark = ws.mark();
    run<0>(
        x, x.values(), y, ws, [&](const auto& l, auto in, MatrixView<T> out, auto) { l.forward(in, out, ws); },
        [&](auto, Index rows, Index cols) { return ws.matrix<T>(rows, cols); });
  }
  void forward(Input input, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    const JaggedView<const T> x = input;
    run<0>(
        x, x.values(), y, ws,
        [&](const auto& l, auto in, MatrixView<T> out, auto i) {
          l.forward(in, out, std::get<i>(saved.layers), step.child(Index{i}), ws);
        },
        [&](auto i, Index rows, Index cols) {
          Matrix<T>& next = saved.inputs[i + 1];
          next.resize(rows, cols);
          return next.view();
        });
  }
  void backward(Input input, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Sequential& gradient,
                Workspace& ws) const {
    const JaggedView<const T> x = input;
    // The last layer is the first to write, and the first the last to look: what it needs is checked here.
    if (!dx.empty()) check_shape("Sequential::backward", "dx", dx, x.values().rows(), x.cols());
    for (std::size_t i = 1; i < sizeof...(Layers); ++i)
      check_shape("Sequential::backward", "saved", saved.inputs[i].view(), x.values().rows(), any_size);
    check_gradient_shapes("Sequential::backward", *this, gradient);
    const auto mark = ws.mark();
    back<sizeof...(Layers) - 1>(x, dy, saved, dx, gradient, ws);
  }

  /// Folds what a training step gathered into the buffers of the layers that have an `update` (running statistics).
  void update(const Saved& saved) {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (detail::update_layer(std::get<I>(layers), std::get<I>(saved.layers)), ...);
    }
    (std::index_sequence_for<Layers...>());
  }

 private:
  template <std::size_t I, class Call, class Make>
  void run(JaggedView<const T> x, MatrixView<const T> in, MatrixView<T> y, Workspace& ws, Call&& call, Make&& make) const {
    if constexpr (I < sizeof...(Layers)) {
      const auto& l = std::get<I>(layers);
      using L = std::remove_cvref_t<decltype(l)>;
      constexpr std::integral_constant<std::size_t, I> i;
      if constexpr (I + 1 == sizeof...(Layers)) {
        call(l, detail::input_of<L, T>(x, in), y, i);
      } else {
        const MatrixView<T> out = make(i, in.rows(), l.output_cols(in.cols()));
        call(l, detail::input_of<L, T>(x, in), out, i);
        run<I + 1>(x, out, y, ws, call, make);
      }
    }
  }
  template <std::size_t I>
  void back(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Sequential& gradient,
            Workspace& ws) const {
    const auto& l = std::get<I>(layers);
    using L = std::remove_cvref_t<decltype(l)>;
    if constexpr (I == 0) {
      l.backward(detail::input_of<L, T>(x, x.values()), dy, std::get<0>(saved.layers), dx, std::get<0>(gradient.layers), ws);
    } else {
      const MatrixView<const T> in = saved.inputs[I];
      const MatrixView<T> din = ws.matrix<T>(in.rows(), in.cols());
      std::fill_n(din.data(), din.rows() * din.cols(), T(0));
      l.backward(detail::input_of<L, T>(x, in), dy, std::get<I>(saved.layers), din, std::get<I>(gradient.layers), ws);
      back<I - 1>(x, din, saved, dx, gradient, ws);
    }
  }
};

/// `sequential<float>(Dense<float>(...), Linear<float>(...))`.
template <class T, class... Layers>
Sequential<T, Layers...> sequential(Layers... layers) {
  return Sequential<T, Layers...>(std::move(layers)...);
}

namespace detail {
/// A frozen layer that works on whole sequences.
template <class F, class T>
concept FrozenSequence = requires(const F& f, JaggedView<const T> x, MatrixView<T> y, Workspace& ws) {
  f.forward(x, y, ws);
};
}  // namespace detail

/// Serving form: frozen layers one after another, on rows or, if one of them needs them, on sequences. Immutable; threads may
/// share it.
template <class T, class... Frozen>
class FrozenSequential {
 public:
  using Input = std::conditional_t<(detail::FrozenSequence<Frozen, T> || ...), JaggedView<const T>, MatrixView<const T>>;

  explicit FrozenSequential(Frozen... layers) : layers_(std::move(layers)...) {}
  Index output_cols(Index input_cols) const {
    std::apply([&](const auto&... l) { ((input_cols = l.output_cols(input_cols)), ...); }, layers_);
    return input_cols;
  }
  void forward(Input input, MatrixView<T> y, Workspace& ws) const {
    const JaggedView<const T> x = input;
    const auto mark = ws.mark();
    run<0>(x, x.values(), y, ws);
  }

 private:
  template <std::size_t I>
  void run(JaggedView<const T> x, MatrixView<const T> in, MatrixView<T> y, Workspace& ws) const {
    const auto& l = std::get<I>(layers_);
    const auto call = [&](MatrixView<T> out) {
      if constexpr (detail::FrozenSequence<std::remove_cvref_t<decltype(l)>, T>) {
        l.forward(x.with_values(in), out, ws);
      } else {
        l.forward(in, out, ws);
      }
    };
    if constexpr (I + 1 == sizeof...(Frozen)) {
      call(y);
    } else {
      const MatrixView<T> out = ws.matrix<T>(in.rows(), l.output_cols(in.cols()));
      call(out);
      run<I + 1>(x, out, y, ws);
    }
  }
  std::tuple<Frozen...> layers_;
};

/// The serving form of every layer.
template <class T, class... Layers>
auto freeze(const Sequential<T, Layers...>& s) {
  return std::apply([](const auto&... l) { return FrozenSequential<T, decltype(freeze(l))...>(freeze(l)...); }, s.layers);
}
/// The same with weights in another format, in the layers that can.
template <class T, class S, class... Layers>
auto freeze(const Sequential<T, Layers...>& s, Weights<S> weights) {
  const auto one = [&](const auto& l) {
    if constexpr (requires { freeze(l, weights); }) {
      return freeze(l, weights);
    } else {
      return freeze(l);
    }
  };
  return std::apply([&](const auto&... l) { return FrozenSequential<T, decltype(one(l))...>(one(l)...); }, s.layers);
}

}  // namespace RECOPS_ABI
}  // namespace recops
