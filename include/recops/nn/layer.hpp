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
/// Backward adds to `dx` (empty: not wanted) and to `gradient` (a parameter that is empty there is not wanted).
#pragma once
#include <concepts>
#include <recops/core/fields.hpp>
#include <recops/core/workspace.hpp>
#include <recops/nn/step.hpp>

namespace recops {

/// Works row by row.
template <class L, class T>
concept RowLayer = HasFields<L> && requires(const L& layer, MatrixView<const T> x, MatrixView<T> y, typename L::Saved& saved,
                                            const Step& step, L& gradient, Workspace& ws) {
  { layer.output_cols(Index{}) } -> std::same_as<Index>;
  layer.forward(x, y, ws);
  layer.forward(x, y, saved, step, ws);
  layer.backward(x, x, saved, y, gradient, ws);
};

/// Works on whole sequences.
template <class L, class T>
concept SequenceLayer = HasFields<L> && !RowLayer<L, T> &&
                        requires(const L& layer, JaggedView<const T> x, MatrixView<const T> dy, MatrixView<T> y,
                                 typename L::Saved& saved, const Step& step, L& gradient, Workspace& ws) {
                          { layer.output_cols(Index{}) } -> std::same_as<Index>;
                          layer.forward(x, y, ws);
                          layer.forward(x, y, saved, step, ws);
                          layer.backward(x, dy, saved, y, gradient, ws);
                        };

/// Either kind.
template <class L, class T>
concept Layer = RowLayer<L, T> || SequenceLayer<L, T>;

}  // namespace recops
