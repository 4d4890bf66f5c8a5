/// @file   recops/nn/layer.hpp
/// @brief  What containers ask of a layer with one input and one output.
///
/// A layer owns its parameters, lists them in `fields()`, and has
///
///     Index output_cols(Index input_cols) const;                                            // throws if it cannot take them
///     struct Saved;                                                                         // what backward needs, reused
///     void forward(X x, MatrixView<T> y, Workspace&) const;                                 // inference
///     void forward(X x, MatrixView<T> y, Saved&, const Step&, Workspace&) const;            // training
///     void backward(X x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, L& gradient, Workspace&) const;  // adds
///
/// where X is `MatrixView<const T>` for a layer that works row by row and `JaggedView<const T>` for one that works on sequences.
/// A layer that gathers statistics also has `void update(const Saved&)`, called after a training step. Backward adds to `dx` (empty: not
/// wanted) and to `gradient` (a parameter that is empty there is not wanted).
#pragma once
#include <concepts>
#include <recops/core/fields.hpp>
#include <recops/core/workspace.hpp>
#include <recops/nn/step.hpp>

namespace recops {

namespace traits {
template <class L, class T, class X>
concept LayerOf = HasFields<L> && requires(const L& layer, X x, MatrixView<const T> dy, MatrixView<T> y, typename L::Saved& saved,
                                           const Step& step, L& gradient, Workspace& ws) {
  { layer.output_cols(Index{}) } -> std::same_as<Index>;
  layer.forward(x, y, ws);
  layer.forward(x, y, saved, step, ws);
  layer.backward(x, dy, saved, y, gradient, ws);
};
}  // namespace traits

/// Works on whole sequences: it takes a jagged batch.
template <class L, class T>
concept SequenceLayer = traits::LayerOf<L, T, JaggedView<const T>>;

/// Works row by row. (A sequence layer takes a matrix too, as a batch of one sequence.)
template <class L, class T>
concept RowLayer = traits::LayerOf<L, T, MatrixView<const T>> && !SequenceLayer<L, T>;

/// Either kind.
template <class L, class T>
concept Layer = RowLayer<L, T> || SequenceLayer<L, T>;

/// What a container of these layers takes, so that it is itself of the right kind: rows if every layer works row by row.
template <class T, class... Layers>
using LayerInput = std::conditional_t<(RowLayer<Layers, T> && ...), MatrixView<const T>, JaggedView<const T>>;

/// In which format a frozen layer keeps its weights: `freeze(layer, Weights<BFloat16>())`, half the memory to read, or
/// `Weights<std::int8_t>()`, a quarter, with one scale per output. Inputs, sums and outputs stay float. Against float weights an
/// output is off by at most 2^-8 sum_k |w_k x_k| or max_k |w_k| / 254 sum_k |x_k|, besides the rounding of sums.
template <class S>
struct Weights {};

inline namespace RECOPS_ABI {
namespace detail {

/// A `Saved` has as many parts as there are layers once a training forward has filled it.
inline void check_saved_layers(const char* name, std::size_t kept, std::size_t layers) {
  check_option(name, "saved", kept == layers, "what a training forward of this layer saved", static_cast<double>(kept));
}
/// Lets a layer fold in what a training step gathered, if it gathers anything.
template <class L>
void update_layer(L& layer, const typename L::Saved& saved) {
  if constexpr (requires { layer.update(saved); }) layer.update(saved);
}

/// The input of layer L inside a container: a sequence layer gets the batch with its offsets, a row layer only its values.
template <class L, class T>
LayerInput<T, L> input_of(JaggedView<const T> shape, MatrixView<const T> values) {
  if constexpr (RowLayer<L, T>) {
    return values;
  } else {
    return shape.with_values(values);
  }
}

}  // namespace detail
}  // namespace RECOPS_ABI

}  // namespace recops
