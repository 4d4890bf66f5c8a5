/// @file   recops/gating/packed_experts.hpp
/// @brief  Serving form of experts and gates: linear layers packed for the micro-kernel, batch norm folded in.
#pragma once
#include <recops/gating/expert_bank.hpp>
#include <recops/gating/task_gates.hpp>
#include <recops/simd/gemm_quantized.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// x, or a staggered copy of it where its own rows would evict each other.
template <class T>
MatrixView<const T> unaliased(MatrixView<const T> x, Workspace& ws) {
  if (x.rows() <= 1 || x.stride() * static_cast<Index>(sizeof(T)) % 1024 != 0) return x;
  const MatrixView<T> copy = staggered<T>(x.rows(), x.cols(), ws);
  for (Index r = 0; r < x.rows(); ++r) std::copy_n(x.row(r), x.cols(), copy.row(r));
  return copy;
}

/// Rows that pass through all layers together: what they leave between layers, `row_values` numbers a row, stays in L2.
template <class T>
Index serving_rows(Index row_values) {
  constexpr Index bytes = 512 * 1024, tile = simd::detail::tile_rows<simd::DefaultArch>;
  const Index fit = bytes / (static_cast<Index>(sizeof(T)) * std::max(row_values, Index{1}));
  return std::clamp(fit / tile * tile, 4 * tile, 16 * tile);
}

/// Calls `f(first, count, scratch)` for blocks of at most `most` rows, of equal size, shared by the threads; one block runs in the
/// caller, so that its products may share theirs.
template <class F>
void for_serving_blocks(Index rows, Index most, Workspace& ws, F&& f) {
  const Index blocks = (rows + most - 1) / most, tile = simd::detail::tile_rows<simd::DefaultArch>;
  if (blocks <= 1) {
    if (rows > 0) f(Index{0}, rows, ws);
    return;
  }
  const Index even = ((rows + blocks - 1) / blocks + tile - 1) / tile * tile;
  ws.parallel_for((rows + even - 1) / even, [&](Index block, Workspace& scratch) {
    const Index first = block * even;
    f(first, std::min(even, rows - first), scratch);
  });
}

/// Linear layers one after the other, each of blocks side by side. `S`, the format of the weights, is T, or for float BFloat16 or
/// std::int8_t.
template <class T, class S = T>
class PackedLayers {
 public:
  /// Appends a layer: `block(b)` gives the LinearBlock b of the weight.
  template <class Block>
  void add(MatrixView<const T> weight, VectorView<const T> bias, Index blocks, Block&& block, Activation activation) {
    Layer l{activation, weight.cols(), weight.rows(), {}, Vector<T>(bias.size()), {}};
    std::copy_n(bias.data(), bias.size(), l.bias.data());
    if constexpr (std::is_same_v<S, std::int8_t>) l.scale = Vector<T>(l.out);
    for (Index b = 0; b < blocks; ++b) {
      const LinearBlock own = block(b);
      if (own.size() == 0) continue;
      const Index at = panels_.size();
      panels_.resize(at + simd::packed_size<T>(l.in, own.size()));
      const simd::Operand<T> w = simd::transposed(weight.middle_rows(own.begin, own.size()));
      if constexpr (std::is_same_v<S, std::int8_t>) {
        simd::pack<T>(w, panels_.data() + at, l.scale.data() + own.begin);
      } else {
        simd::pack<T>(w, panels_.data() + at);
      }
      l.blocks.push_back({own, at});
    }
    layers_.push_back(std::move(l));
  }

  /// Numbers of scratch per row: the outputs of all layers.
  Index row_values() const {
    Index n = 0;
    for (const Layer& l : layers_) n += l.out;
    return n;
  }
  /// Columns of the last layer.
  Index outputs() const { return layers_.empty() ? 0 : layers_.back().out; }

  /// The last layer writes to `out`; with `accumulate` it adds what is there before its activation.
  void forward(MatrixView<const T> x, MatrixView<T> out, Workspace& ws, bool accumulate = false) const {
    const auto mark = ws.mark();
    MatrixView<const T> at = x;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      const bool last = i + 1 == layers_.size();
      const MatrixView<T> next = last ? out : staggered<T>(x.rows(), l.out, ws);
      for (const Packed& b : l.blocks) {
        const Index first = b.rows.begin;
        simd::gemm_packed<T>(simd::plain(at.middle_cols(b.rows.source * l.in, l.in)), panels_.data() + b.at, b.rows.size(),
                             {.bias = l.bias.empty() ? nullptr : l.bias.data() + first,
                              .activation = l.activation,
                              .accumulate = accumulate && last,
                              .column_scale = l.scale.empty() ? nullptr : l.scale.data() + first},
                             next.middle_cols(first, b.rows.size()), ws);
      }
      at = next;
    }
  }

 private:
  struct Packed {
    LinearBlock rows;
    Index at;  ///< where its panels begin
  };
  struct Layer {
    Activation activation;
    Index in, out;
    std::vector<Packed> blocks;
    Vector<T> bias, scale;  ///< scale: of each output's weights in int8
  };
  std::vector<Layer> layers_;
  Vector<S> panels_;
};

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
