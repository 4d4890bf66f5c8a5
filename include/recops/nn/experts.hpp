/// @file   recops/nn/experts.hpp
/// @brief  Several layers of one kind on the same input, their outputs side by side.
#pragma once
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <vector>

namespace recops {
inline namespace RECOPS_ABI {

/// y `[B, E H]` = [layer_0(x), ..., layer_E-1(x)] for E layers with H outputs each, of any kind; a row or a sequence layer as they
/// are. Experts that are single Dense layers are faster as one wide one (`ExpertBank` of gating/).
template <class T, class L>
struct Experts {
  static_assert(Layer<L, T>, "Experts needs a recops::Layer");
  using Input = LayerInput<T, L>;
  std::vector<L> experts;

  Experts() = default;
  /// `count` layers made by `make(e)`.
  template <class Make>
  Experts(Index count, Make&& make) {
    checked_size("Experts", "count", count);
    for (Index e = 0; e < count; ++e) experts.push_back(make(e));
  }

  static constexpr auto fields() { return std::tuple{layers("experts", &Experts::experts)}; }

  /// E H; throws `Error` if the experts differ in H.
  Index output_cols(Index input_cols) const {
    const auto count = static_cast<Index>(experts.size());
    const Index cols = count == 0 ? 0 : experts[0].output_cols(input_cols);
    for (const L& e : experts) {
      const Index own = e.output_cols(input_cols);
      check_option("Experts", "expert output columns", own == cols, "the same number for every expert", static_cast<double>(own));
    }
    return count * cols;
  }
  struct Saved {
    std::vector<typename L::Saved> experts;
  };
  void forward(Input x, MatrixView<T> y, Workspace& ws) const {
    const Index cols = check("Experts", x, MatrixView<const T>(y));
    for (std::size_t e = 0; e < experts.size(); ++e) experts[e].forward(x, y.middle_cols(static_cast<Index>(e) * cols, cols), ws);
  }
  void forward(Input x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    const Index cols = check("Experts", x, MatrixView<const T>(y));
    saved.experts.resize(experts.size());
    for (std::size_t e = 0; e < experts.size(); ++e) {
      const auto i = static_cast<Index>(e);
      experts[e].forward(x, y.middle_cols(i * cols, cols), saved.experts[e], step.child(i), ws);
    }
  }
  void backward(Input x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Experts& gradient, Workspace& ws) const {
    constexpr const char* name = "Experts::backward";
    const Index cols = check(name, x, dy);
    const MatrixView<const T> values = JaggedView<const T>(x).values();
    if (!dx.empty()) check_shape(name, "dx", dx, values.rows(), values.cols());
    check_gradient_shapes(name, *this, gradient);
    detail::check_saved_layers(name, saved.experts.size(), experts.size());
    for (std::size_t e = 0; e < experts.size(); ++e)
      experts[e].backward(x, dy.middle_cols(static_cast<Index>(e) * cols, cols), saved.experts[e], dx, gradient.experts[e], ws);
  }
  /// Lets every expert fold in what a training step gathered. Throws `Error` unless a training forward filled `saved`.
  void update(const Saved& saved) {
    detail::check_saved_layers("Experts::update", saved.experts.size(), experts.size());
    for (std::size_t e = 0; e < experts.size(); ++e) detail::update_layer(experts[e], saved.experts[e]);
  }

 private:
  /// Output columns of one expert.
  Index check(const char* name, Input x, MatrixView<const T> y) const {
    const MatrixView<const T> values = JaggedView<const T>(x).values();
    const Index all = output_cols(values.cols());
    check_shape(name, "y", y, values.rows(), all);
    return experts.empty() ? 0 : all / static_cast<Index>(experts.size());
  }
};

/// Serving form of Experts. Immutable; threads may share it.
template <class T, class Frozen>
struct FrozenExperts {
  std::vector<Frozen> experts;
  Index output_cols(Index input_cols) const {
    return experts.empty() ? 0 : static_cast<Index>(experts.size()) * experts[0].output_cols(input_cols);
  }
  template <class Input>
  requires requires(const Frozen& f, Input x, MatrixView<T> y, Workspace& ws) { f.forward(x, y, ws); }
  void forward(Input x, MatrixView<T> y, Workspace& ws) const {
    const MatrixView<const T> values = JaggedView<const T>(x).values();
    check_shape("FrozenExperts", "y", y, values.rows(), output_cols(values.cols()));
    const Index cols = experts.empty() ? 0 : y.cols() / static_cast<Index>(experts.size());
    for (std::size_t e = 0; e < experts.size(); ++e) experts[e].forward(x, y.middle_cols(static_cast<Index>(e) * cols, cols), ws);
  }
};
template <class T, class L, class... Weights>
auto freeze(const Experts<T, L>& layer, Weights... weights) {
  FrozenExperts<T, decltype(freeze(layer.experts[0], weights...))> frozen;
  for (const L& e : layer.experts) frozen.experts.push_back(freeze(e, weights...));
  return frozen;
}

}  // namespace RECOPS_ABI
}  // namespace recops
