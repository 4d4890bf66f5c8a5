/// @file   recops/nn/mlp.hpp
/// @brief  A stack of Dense layers whose widths are known when the program runs.
#pragma once
#include <recops/nn/dense.hpp>
#include <vector>

namespace recops {

/// Options of `Mlp`.
struct MlpOptions {
  Activation activation = Activation::relu;  ///< of all layers but the last
  Activation output = Activation::none;      ///< of the last
};

inline namespace RECOPS_ABI {

/// Dense layers one after another, all with the same kind of norm but the last, which has none: `Mlp<float>({512, 256, 1}, {}, random)`.
/// `Sequential` takes layers of different kinds.
template <class T, class Norm = NoNorm>
struct Mlp {
  std::vector<Dense<T, Norm>> hidden;
  Dense<T> last;

  Mlp() = default;
  /// `widths`: input, hidden ones, output. Throws `Error` for fewer than two.
  Mlp(VectorView<const Index> widths, const MlpOptions& options, Random& random) {
    check_option("Mlp", "widths", widths.size() >= 2, "an input and an output width", static_cast<double>(widths.size()));
    for (const Index w : widths) checked_size("Mlp", "widths", w);
    for (Index i = 0; i + 2 < widths.size(); ++i) hidden.emplace_back(widths[i], widths[i + 1], options.activation, random);
    last = Dense<T>(widths[widths.size() - 2], widths[widths.size() - 1], options.output, random);
  }
  Mlp(std::initializer_list<Index> widths, const MlpOptions& options, Random& random)
      : Mlp(VectorView<const Index>(widths.begin(), static_cast<Index>(widths.size())), options, random) {}

  static constexpr auto fields() { return std::tuple{layers("hidden", &Mlp::hidden), layer("last", &Mlp::last)}; }

  Index output_cols(Index input_cols) const {
    for (const auto& l : hidden) input_cols = l.output_cols(input_cols);
    return last.output_cols(input_cols);
  }
  struct Saved {
    std::vector<typename Dense<T, Norm>::Saved> hidden;
    std::vector<Matrix<T>> outputs;  ///< of the hidden layers
    typename Dense<T>::Saved last;
  };
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check(x, y);
    const auto mark = ws.mark();
    for (const auto& l : hidden) {
      const MatrixView<T> next = ws.matrix<T>(x.rows(), l.linear.weight.rows());
      l.forward(x, next, ws);
      x = next;
    }
    last.forward(x, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check(x, y);
    saved.hidden.resize(hidden.size());
    saved.outputs.resize(hidden.size());
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      saved.outputs[i].resize(x.rows(), hidden[i].linear.weight.rows());
      hidden[i].forward(x, saved.outputs[i], saved.hidden[i], step.child(static_cast<Index>(i)), ws);
      x = saved.outputs[i];
    }
    last.forward(x, y, saved.last, step.child(static_cast<Index>(hidden.size())), ws);
  }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Mlp& gradient,
                Workspace& ws) const {
    constexpr const char* name = "Mlp::backward";
    check_shape(name, "x", x, any_size, any_size);
    output_cols(x.cols());
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    const bool kept = saved.hidden.size() == hidden.size() && saved.outputs.size() == hidden.size();
    check_option(name, "saved", kept, "what forward of this layer saved", static_cast<double>(saved.outputs.size()));
    for (std::size_t i = 0; i < hidden.size(); ++i) {
      check_shape(name, "saved", saved.outputs[i].view(), x.rows(), hidden[i].linear.weight.rows());
      check_shape(name, "saved", saved.hidden[i].z.view(), x.rows(), hidden[i].linear.weight.rows());
    }
    const auto mark = ws.mark();
    const auto input = [&](std::size_t i) { return i == 0 ? x : saved.outputs[i - 1].view(); };
    const auto gradient_of = [&](std::size_t i) {  // of the input of layer i: all but the first are written, not added to
      return i == 0 ? dx : ws.matrix<T>(x.rows(), input(i).cols());
    };
    MatrixView<T> d = gradient_of(hidden.size());
    last.backward(input(hidden.size()), dy, saved.last, d, !hidden.empty(), gradient.last, ws);
    for (std::size_t i = hidden.size(); i-- > 0;) {
      const MatrixView<const T> dout = d;
      d = gradient_of(i);
      hidden[i].backward(input(i), dout, saved.hidden[i], d, i > 0, gradient.hidden[i], ws);
    }
  }
  /// Folds the statistics of a training step into the norms' running ones. Throws `Error` unless a training
  /// forward has filled `saved`.
  void update(const Saved& saved) {
    detail::check_saved_layers("Mlp::update", saved.hidden.size(), hidden.size());
    for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i].update(saved.hidden[i]);
  }

 private:
  void check(MatrixView<const T> x, MatrixView<T> y) const {
    check_shape("Mlp", "x", x, any_size, any_size);
    check_shape("Mlp", "y", y, x.rows(), output_cols(x.cols()));
  }
};

/// Serving form of Mlp. Immutable; threads may share it.
template <class T, class Hidden, class Last>
class FrozenMlp {
 public:
  FrozenMlp() = default;
  FrozenMlp(std::vector<Hidden> hidden, Last last) : hidden_(std::move(hidden)), last_(std::move(last)) {}
  Index output_cols(Index input_cols) const {
    for (const auto& l : hidden_) input_cols = l.output_cols(input_cols);
    return last_.output_cols(input_cols);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check_shape("FrozenMlp", "x", x, any_size, any_size);
    check_shape("FrozenMlp", "y", y, x.rows(), output_cols(x.cols()));
    const auto mark = ws.mark();
    for (const auto& l : hidden_) {
      const MatrixView<T> next = ws.matrix<T>(x.rows(), l.output_cols(x.cols()));
      l.forward(x, next, ws);
      x = next;
    }
    last_.forward(x, y, ws);
  }

 private:
  std::vector<Hidden> hidden_;
  Last last_;
};
template <class T, class Norm, class S = T>
auto freeze(const Mlp<T, Norm>& mlp, Weights<S> weights = {}) {
  std::vector<decltype(freeze(mlp.hidden[0], weights))> hidden;
  for (const auto& l : mlp.hidden) hidden.push_back(freeze(l, weights));
  auto last = freeze(mlp.last, weights);
  return FrozenMlp<T, typename decltype(hidden)::value_type, decltype(last)>(std::move(hidden), std::move(last));
}

}  // namespace RECOPS_ABI
}  // namespace recops
