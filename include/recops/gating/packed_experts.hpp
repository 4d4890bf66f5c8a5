/// @file   recops/gating/packed_experts.hpp
/// @brief  Serving form of experts and gates: linear layers packed for the micro-kernel, batch norm folded in.
#pragma once
#include <recops/gating/expert_bank.hpp>
#include <recops/gating/packed_layers.hpp>
#include <recops/gating/task_gates.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Weight and bias of a linear layer and the batch norm behind it, computed in double:
/// c = weight / sqrt(variance + epsilon), W' = c W, b' = (b - mean) c + bias.
template <class T>
void fold_batch_norm(const ExpertBank<T>& bank, Matrix<T>& weight, Vector<T>& bias) {
  const Index n = bank.weight.rows();
  weight = bank.weight;
  bias = Vector<T>(n);
  for (Index j = 0; j < n; ++j) {
    const double scale = (bank.norm_weight.empty() ? 1.0 : static_cast<double>(bank.norm_weight[j])) /
                         std::sqrt(static_cast<double>(bank.running_variance[j]) + bank.options.epsilon);
    const double own = bank.bias.empty() ? 0.0 : static_cast<double>(bank.bias[j]);
    for (Index i = 0; i < weight.cols(); ++i) weight(j, i) = static_cast<T>(static_cast<double>(weight(j, i)) * scale);
    bias[j] = static_cast<T>((own - static_cast<double>(bank.running_mean[j])) * scale +
                             (bank.norm_bias.empty() ? 0.0 : static_cast<double>(bank.norm_bias[j])));
  }
}

/// Serving form of an `ExpertBank`. Groups next to each other that read the same columns become one product.
template <class T, class S = T>
class PackedExperts {
 public:
  PackedExperts() = default;
  explicit PackedExperts(const ExpertBank<T>& bank) : options_(bank.options) {
    bank.check_parameters("freeze");
    options_.own_inputs = false;
    Matrix<T> folded;
    Vector<T> shift;
    const bool fold = options_.norm == ExpertNorm::batch;
    if (fold) {
      fold_batch_norm(bank, folded, shift);
      options_.norm = ExpertNorm::none;
    } else if (options_.norm != ExpertNorm::none) {
      norm_weight_ = bank.norm_weight;
      norm_bias_ = bank.norm_bias;
    }
    for (std::size_t l = 0; l <= bank.hidden.size(); ++l) {
      const bool last = l == bank.hidden.size();
      const Matrix<T>& weight = !last ? bank.hidden[l].weight : fold ? folded : bank.weight;
      const Vector<T>& bias = !last ? bank.hidden[l].bias : fold ? shift : bank.bias;
      std::vector<LinearBlock> blocks;
      with_expert_blocks(bank.layer_options(l), weight.rows(), [&](Index count, auto block) {
        for (Index b = 0; b < count; ++b) {
          const LinearBlock own = block(b);
          if (!blocks.empty() && blocks.back().source == own.source) {
            blocks.back().end = own.end;
          } else {
            blocks.push_back(own);
          }
        }
      });
      layers_.add(
          weight, bias, static_cast<Index>(blocks.size()), [&](Index b) { return blocks[static_cast<std::size_t>(b)]; },
          last && options_.norm != ExpertNorm::none ? Activation::none : options_.activation);
    }
  }

  Index row_values() const { return layers_.row_values(); }
  /// E H
  Index outputs() const { return layers_.outputs(); }
  /// As those of PackedLayers.
  void take_panels(PackedLayers<T, S>& next) { layers_.take_panels(next); }
  const S* panels() const { return layers_.panels(); }

  void forward(MatrixView<const T> x, MatrixView<T> a, Workspace& ws) const {
    layers_.forward(x, a, ws);
    if (options_.norm == ExpertNorm::none) return;
    const ExpertNormView<const T> norm{norm_weight_, norm_bias_, {}, {}};
    for (Index r = 0; r < a.rows(); ++r) {
      expert_norm_row<T>(a.row(r), norm, options_, a.cols(), nullptr, nullptr, nullptr, a.row(r));
      if (options_.activation != Activation::none) simd::activate<T>(options_.activation, a.row(r), a.row(r), a.cols());
    }
  }

 private:
  PackedLayers<T, S> layers_;
  ExpertBankOptions options_;
  Vector<T> norm_weight_, norm_bias_;
};

/// Serving form of `TaskGates`, up to the logits; the temperature is part of the weights.
template <class T, class S = T>
PackedLayers<T, S> packed_gates(const TaskGates<T>& gates) {
  gates.check_parameters("freeze");
  Matrix<T> weight = gates.weight;
  Vector<T> bias = gates.bias;
  if (gates.options.temperature != 1.0) {
    const auto cool = [&](T& v) { v = static_cast<T>(static_cast<double>(v) / gates.options.temperature); };
    for (T& v : leaf_values(weight)) cool(v);
    for (T& v : bias) cool(v);
  }
  PackedLayers<T, S> layers;
  for (std::size_t l = 0; l < gates.hidden.size(); ++l) {
    const Matrix<T>& own = gates.hidden[l].weight;
    const Index blocks = l == 0 && !gates.options.own_inputs ? 1 : gates.map.tasks();
    layers.add(own, gates.hidden[l].bias, blocks, even_blocks(own.rows(), blocks), Activation::relu);
  }
  with_gate_blocks(gates.map, gates.last_options().own_inputs,
                   [&](Index blocks, auto block) { layers.add(weight, bias, blocks, block, Activation::none); });
  return layers;
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
