/// A training step (gradients zeroed, forward, backward to parameters and input, Adam) of a TransformerBlock on a batch of
/// sequences, and inference, against the speed of multiply-adds.
///
///     taskset -c 1 build/bench/bench/recops_bench_nn_transformer_block
///
///   nn/transformer_block_train/f32/B:batch/L:length/D:width/heads:h/causal:c
///   nn/transformer_block/f32/...            inference of the frozen block
///
/// Flops are those of the products; a causal block needs half of its attention's. Feed-forward network 4 D wide, norm after, ReLU, no
/// dropout. Peer: `torch`, the fastest of its TransformerEncoderLayer, batch first or not, and a block written by hand.
#include <memory>
#include <recops/nn/transformer_block.hpp>
#include <recops/train/adam.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

using Block = TransformerBlock<float>;

struct Training {
  Random random{1};
  Block block;
  Block gradient;
  Adam<Block> adam;
  Block::Saved saved;
  Vector<std::int64_t> offsets;
  Matrix<float> x, y, dy, dx;
  Workspace ws;
  std::uint64_t number = 0;

  Training(Index batch, Index length, Index width, const TransformerBlockOptions& options)
      : block(width, options, random),
        gradient(make_gradient(block)),
        adam(block),
        offsets(batch + 1),
        x(batch * length, width),
        y(batch * length, width),
        dy(batch * length, width),
        dx(batch * length, width) {
    for (Index b = 0; b <= batch; ++b) offsets[b] = b * length;
    for (Matrix<float>* m : {&x, &dy})
      for (float& v : leaf_values(*m)) v = static_cast<float>(random.normal());
  }
  JaggedView<const float> sequences() const { return {x.view(), offsets}; }
  void step() {
    zero_gradient(gradient);
    dx.fill(0);
    block.forward(sequences(), y, saved, Step{.seed = 1, .number = number++}, ws);
    block.backward(sequences(), dy, saved, dx, gradient, ws);
    adam.step(block, gradient);
  }
};

void add(Index batch, Index length, Index width, Index heads, bool causal) {
  const std::string tail = "/f32/B:" + std::to_string(batch) + "/L:" + std::to_string(length) + "/D:" + std::to_string(width) +
                           "/heads:" + std::to_string(heads) + "/causal:" + std::to_string(causal);
  const double n = static_cast<double>(batch * length), d = static_cast<double>(width), l = static_cast<double>(length);
  const double linear = 24 * n * d * d, attention = 4 * n * d * (causal ? (l + 1) / 2 : l);
  const auto make = [=] {
    return std::make_shared<Training>(batch, length, width, TransformerBlockOptions{.heads = heads, .causal = causal});
  };
  register_case<float>("nn/transformer_block_train" + tail, [=] {
    const auto t = make();
    Case<float> c;
    c.flops = 3 * linear + 3.5 * attention;
    c.kernel = [=] { t->step(); };
    const std::string arguments = R"({"batch": )" + std::to_string(batch) + R"(, "length": )" + std::to_string(length) +
                                  R"(, "width": )" + std::to_string(width) + R"(, "heads": )" + std::to_string(heads) +
                                  R"(, "hidden": )" + std::to_string(4 * width) + R"(, "causal": )" +
                                  (causal ? "true" : "false") + "}";
    for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "transformer_train", arguments));
    return c;
  });
  register_case<float>("nn/transformer_block" + tail, [=] {
    const auto t = make();
    Case<float> c;
    c.flops = linear + attention;
    c.kernel = [t, frozen = freeze(t->block)] { frozen.forward(t->sequences(), t->y, t->ws); };
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  add(64, 50, 64, 2, false);
  add(64, 50, 64, 2, true);
  add(64, 50, 64, 4, false);
  add(64, 200, 64, 2, true);
  return run_registered(argc, argv);
}
