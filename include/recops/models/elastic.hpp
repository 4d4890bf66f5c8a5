/// @file   recops/models/elastic.hpp
/// @brief  ELASTIC for next-item recommendation: dispatcher blocks, and an interest memory that every state may read.
///
///     causal          x_B = blocks(x), each with k learned experts               h = norm(x_B)       y = h [+ memory(h), sum mode]
///     looking ahead   x_B = blocks(x, P), P learned or memory(mean of x)         y = norm(x_B)       P carried from block to block
///
/// A body for `NextItemModel` (models/next_item.hpp). The paper's attention looks ahead, so that only the last item of a sequence can be
/// predicted in training (`last_only`); its memory initialises the experts. By the causal aggregate of attention/causal_dispatch.hpp every
/// position trains, as in SASRec; experts that know the user would then know the future, so that each state reads the memory itself.
/// Cost of a sequence of length L: O(L), 12 D^2 + 8 H D^2 + 4 k H D flops a token and block besides the network.
/// Source: arXiv 2408.09380 (withdrawn by its authors); the composition is our reconstruction.
#pragma once
#include <recops/attention/dispatcher_block.hpp>
#include <recops/attention/interest_memory.hpp>
#include <recops/models/next_item.hpp>
#include <vector>

namespace recops {

/// Options of `DispatcherStack`.
struct DispatcherStackOptions {
  Index width = 64;  ///< D
  Index blocks = 2;
  Index heads = 1;          ///< divides width
  Index experts = 16;       ///< k, of each block
  Index hidden = 0;         ///< of the feed-forward networks; 0: as wide as the model
  double dropout = 0.2;     ///< in training
  bool causal = true;       ///< states see the past only
  Index memory = 0;         ///< sub-keys M of a memory of M^2 interests; 0: none
  Index memory_reads = 16;  ///< interests that a state reads where causal; looking ahead it is the number of experts
  Index memory_heads = 2;   ///< divides them
};

inline namespace RECOPS_ABI {

/// Causal dispatcher blocks with experts of their own, a norm, and a memory. A sequence layer.
template <class T>
struct DispatcherStack {
  std::vector<DispatcherBlock<T>> blocks;
  Matrix<T> experts;  ///< causal: [blocks k, D], block after block; else [k, D], none where a memory makes them
  LayerNorm<T> norm;
  InterestMemory<T> memory;  ///< empty for none
  bool causal = true;
  Index per_block = 0;  ///< k

  DispatcherStack() = default;
  /// Throws `Error` for options out of range.
  DispatcherStack(const DispatcherStackOptions& o, Random& random)
      : norm(checked_size("DispatcherStack", "width", o.width)), causal(o.causal), per_block(o.experts) {
    check_option("DispatcherStack", "width", o.width >= 1, "width >= 1", static_cast<double>(o.width));
    check_option("DispatcherStack", "blocks", o.blocks >= 0, "blocks >= 0", static_cast<double>(o.blocks));
    check_option("DispatcherStack", "experts", o.experts >= 1, "experts >= 1", static_cast<double>(o.experts));
    check_option("DispatcherStack", "hidden", o.hidden >= 0, "hidden >= 0, where 0 is the width", static_cast<double>(o.hidden));
    check_option("DispatcherStack", "memory", o.memory >= 0, "memory >= 0, where 0 is none", static_cast<double>(o.memory));
    for (Index i = 0; i < o.blocks; ++i) {
      blocks.emplace_back(o.width,
                          DispatcherBlockOptions{.heads = o.heads,
                                                 .hidden = o.hidden > 0 ? o.hidden : o.width,
                                                 .norm_first = true,
                                                 .causal = o.causal,
                                                 .dropout = o.dropout},
                          random);
    }
    experts.resize(o.causal ? o.blocks * o.experts : o.memory > 0 ? 0 : o.experts, o.width);
    for (T& v : leaf_values(experts)) v = static_cast<T>(random.normal());
    if (o.memory > 0)
      memory = InterestMemory<T>({.sub_keys = o.memory,
                                  .width = o.width,
                                  .input = o.width,
                                  .query = o.width % 2 == 0 ? o.width : o.width + 1,
                                  .experts = o.causal ? o.memory_reads : o.experts,
                                  .heads = o.memory_heads,
                                  .mode = o.causal ? MemoryMode::sum : MemoryMode::slots},
                                 random);
  }

  static constexpr auto fields() {
    return std::tuple{layers("blocks", &DispatcherStack::blocks), parameter("experts", &DispatcherStack::experts),
                      layer("norm", &DispatcherStack::norm), layer("memory", &DispatcherStack::memory)};
  }
  /// D; throws `Error` unless the input has D columns.
  Index output_cols(Index input_cols) const {
    check_option("DispatcherStack", "input columns", input_cols == norm.weight.size(), "as many as the width",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  bool has_memory() const { return !memory.query.weight.empty(); }

  struct Saved {
    std::vector<Matrix<T>> inputs;   ///< of every block but the first, and of the norm
    std::vector<Matrix<T>> experts;  ///< of every block, for each sequence
    std::vector<typename DispatcherBlock<T>::Saved> blocks;
    typename LayerNorm<T>::Saved norm;
    Matrix<T> asked;  ///< what the memory is asked with: states, or means of sequences
    typename InterestMemory<T>::Saved memory;
  };
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("DispatcherStack", x, y);
    const auto mark = ws.mark();
    const Index total = y.rows(), d = y.cols();
    MatrixView<T> own = ws.matrix<T>(x.size() * per_block, d), next = ws.matrix<T>(x.size() * per_block, d);
    MatrixView<T> out = ws.matrix<T>(total, d), free = ws.matrix<T>(total, d);
    MatrixView<const T> in = x.values();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      if (causal || (i == 0 && !has_memory())) {
        repeat_experts<T>(of_block(i), x.size(), own);
      } else if (i == 0) {
        const MatrixView<T> mean = ws.matrix<T>(x.size(), d);
        mean_of_tokens<T>(x, {}, mean);
        memory.forward(mean, own, ws);
      }
      blocks[i].forward(x.with_values(in), own, {}, out, carries(i) ? next : MatrixView<T>(), ws);
      if (carries(i)) std::swap(own, next);
      in = out;
      std::swap(out, free);
    }
    norm.forward(in, y, ws);
    if (!has_memory() || !causal) return;
    memory.forward(y, out, ws);
    add(out, y);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("DispatcherStack", x, y);
    const Index total = y.rows(), d = y.cols();
    saved.inputs.resize(blocks.size());
    saved.experts.resize(blocks.size());
    saved.blocks.resize(blocks.size());
    for (Matrix<T>& m : saved.experts) m.resize(x.size() * per_block, d);
    MatrixView<const T> in = x.values();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      saved.inputs[i].resize(total, d);
      if (causal || (i == 0 && !has_memory())) {
        repeat_experts<T>(of_block(i), x.size(), saved.experts[i]);
      } else if (i == 0) {
        saved.asked.resize(x.size(), d);
        mean_of_tokens<T>(x, {}, saved.asked);
        memory.forward(saved.asked, saved.experts[0], saved.memory, step, ws);
      }
      blocks[i].forward(x.with_values(in), saved.experts[i], {}, saved.inputs[i],
                        carries(i) ? saved.experts[i + 1].view() : MatrixView<T>(), saved.blocks[i],
                        step.child(static_cast<Index>(i)), ws);
      in = saved.inputs[i];
    }
    norm.forward(in, y, saved.norm, step, ws);
    if (!has_memory() || !causal) return;
    const auto mark = ws.mark();
    const MatrixView<T> found = ws.matrix<T>(total, d);
    saved.asked.resize(total, d);
    for (Index i = 0; i < total; ++i) std::copy_n(y.row(i), d, saved.asked.row(i));
    memory.forward(saved.asked, found, saved.memory, step, ws);
    add(found, y);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, DispatcherStack& gradient,
                Workspace& ws) const {
    constexpr const char* name = "DispatcherStack::backward";
    check(name, x, dy);
    const Index total = dy.rows(), d = dy.cols();
    if (!dx.empty()) check_shape(name, "dx", dx, total, d);
    check_gradient_shapes(name, *this, gradient);
    check_option(name, "saved", saved.inputs.size() == blocks.size(), "what forward of this layer saved",
                 static_cast<double>(saved.inputs.size()));
    for (const Matrix<T>& input : saved.inputs) check_shape(name, "saved", input.view(), total, d);
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows) {
      const MatrixView<T> m = ws.matrix<T>(rows, d);
      std::fill_n(m.data(), rows * d, T(0));
      return m;
    };
    MatrixView<const T> dstate = dy;
    if (has_memory() && causal) {
      const MatrixView<T> sum = zeros(total);
      add(dy, sum);
      memory.backward(saved.asked, dy, saved.memory, sum, gradient.memory, ws);
      dstate = sum;
    }
    const auto input = [&](std::size_t i) { return i == 0 ? x.values() : MatrixView<const T>(saved.inputs[i - 1]); };
    MatrixView<T> dout = blocks.empty() ? dx : zeros(total), dnext;
    norm.backward(input(blocks.size()), dstate, saved.norm, dout, gradient.norm, ws);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const MatrixView<T> din = i > 0 ? zeros(total) : dx, dexperts = zeros(x.size() * per_block);
      blocks[i].backward(x.with_values(input(i)), saved.experts[i], {}, dout, carries(i) ? dnext : MatrixView<T>(),
                         saved.blocks[i], din, dexperts, gradient.blocks[i], ws);
      if (causal || (i == 0 && !has_memory())) {
        if (!gradient.experts.empty())
          repeat_experts_backward<T>(dexperts, gradient.experts.view().middle_rows(static_cast<Index>(i) * per_block, per_block),
                                     ws);
      } else if (i == 0) {
        const MatrixView<T> dmean = zeros(x.size());
        memory.backward(saved.asked, dexperts, saved.memory, dmean, gradient.memory, ws);
        if (!dx.empty()) mean_of_tokens_backward<T>(x, {}, dmean, dx);
      }
      dnext = dexperts;
      dout = din;
    }
  }

 private:
  template <class Y>
  void check(const char* name, JaggedView<const T> x, MatrixView<Y> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    check_shape(name, "y", y, x.values().rows(), output_cols(x.cols()));
    const Index count = causal ? static_cast<Index>(blocks.size()) : has_memory() ? 0 : 1;
    check_option(name, "per_block", per_block >= 1, "one expert or more", static_cast<double>(per_block));
    if (count > 0 && !blocks.empty()) check_shape(name, "experts", experts.view(), count * per_block, x.cols());
  }
  /// Block i hands its experts on.
  bool carries(std::size_t i) const { return !causal && i + 1 < blocks.size(); }
  MatrixView<const T> of_block(std::size_t i) const {
    return experts.view().middle_rows(static_cast<Index>(i) * per_block, per_block);
  }
  static void add(MatrixView<const T> x, MatrixView<T> y) {
    for (Index i = 0; i < y.rows(); ++i) simd::add<T>(x.row(i), y.row(i), y.cols());
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
