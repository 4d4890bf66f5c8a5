/// @file   recops/gating/packed_layers.hpp
/// @brief  Linear layers of blocks side by side, packed for the micro-kernel into one buffer; rows pass through them by blocks.
#pragma once
#include <recops/gating/block_linear.hpp>
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
    Index at = panels_.size(), size = at;
    for (Index b = 0; b < blocks; ++b) size += simd::packed_size<T>(l.in, block(b).size());
    panels_.resize(size);
    for (Index b = 0; b < blocks; ++b) {
      const LinearBlock own = block(b);
      if (own.size() == 0) continue;
      const simd::Operand<T> w = simd::transposed(weight.middle_rows(own.begin, own.size()));
      if constexpr (std::is_same_v<S, std::int8_t>) {
        simd::pack<T>(w, panels_.data() + at, l.scale.data() + own.begin);
      } else {
        simd::pack<T>(w, panels_.data() + at);
      }
      l.blocks.push_back({own, at});
      at += simd::packed_size<T>(l.in, own.size());
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

  /// Takes the panels of `next`, layers that are called right after these, to lie behind its own: a product fetches what lies behind
  /// its last panel. `next.forward` is then handed `panels()`.
  void take_panels(PackedLayers& next) {
    const Index own = panels_.size();
    Vector<S> all(own + next.panels_.size());
    std::copy_n(panels_.data(), own, all.data());
    std::copy_n(next.panels_.data(), next.panels_.size(), all.data() + own);
    for (Layer& l : next.layers_)
      for (Packed& b : l.blocks) b.at += own;
    panels_ = std::move(all);
    next.panels_ = {};
  }
  const S* panels() const { return panels_.data(); }

  /// The last layer writes to `out`; with `accumulate` it adds what is there before its activation. `panels`: where others keep them.
  void forward(MatrixView<const T> x, MatrixView<T> out, Workspace& ws, bool accumulate = false, const S* panels = nullptr) const {
    const auto mark = ws.mark();
    if (panels == nullptr) panels = panels_.data();
    MatrixView<const T> at = x;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Layer& l = layers_[i];
      const bool last = i + 1 == layers_.size();
      const MatrixView<T> next = last ? out : staggered<T>(x.rows(), l.out, ws);
      for (const Packed& b : l.blocks)
        product(l, b, panels, at.middle_cols(b.rows.source * l.in, l.in), accumulate && last,
                next.middle_cols(b.rows.begin, b.rows.size()), ws);
      at = next;
    }
  }

  std::size_t layers() const { return layers_.size(); }
  /// Columns of one block of layer l, where all are as wide.
  Index block_cols(std::size_t l) const { return layers_[l].blocks[0].rows.size(); }
  /// Block b of layer l alone, from the columns that it reads.
  void forward_block(std::size_t l, Index b, MatrixView<const T> x, MatrixView<T> out, Workspace& ws) const {
    product(layers_[l], layers_[l].blocks[static_cast<std::size_t>(b)], panels_.data(), x, false, out, ws);
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
  static void product(const Layer& l, const Packed& b, const S* panels, MatrixView<const T> x, bool accumulate, MatrixView<T> out,
                      Workspace& ws) {
    const Index first = b.rows.begin;
    simd::gemm_packed<T>(simd::plain(x), panels + b.at, b.rows.size(),
                         {.bias = l.bias.empty() ? nullptr : l.bias.data() + first,
                          .activation = l.activation,
                          .accumulate = accumulate,
                          .column_scale = l.scale.empty() ? nullptr : l.scale.data() + first},
                         out, ws);
  }

  std::vector<Layer> layers_;
  Vector<S> panels_;
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
