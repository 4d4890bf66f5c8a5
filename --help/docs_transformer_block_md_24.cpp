#include <cstdio>
#include <recops/nn/transformer_block.hpp>
#include <recops/train/adam.hpp>

using namespace recops;

int main() {
  // Two sequences, of three rows and of two, 8 wide. Every row must become the first row of its sequence: only attention can do that.
  Random random(1);
  TransformerBlock<float> block(8, {.heads = 2, .norm_first = true}, random);
  const Vector<std::int64_t> offsets{0, 3, 5};
  Matrix<float> x(5, 8), wanted(5, 8), y(5, 8), dy(5, 8);
  for (float& v : leaf_values(x)) v = static_cast<float>(random.normal());
  for (Index i = 0; i < 5; ++i) std::copy_n(x.row(i < 3 ? 0 : 3), 8, wanted.row(i));
  const JaggedView<const float> sequences(x.view(), offsets);

  Workspace ws;  // scratch of all calls; nothing is allocated once it has grown
  TransformerBlock<float> gradient = make_gradient(block);
  Adam adam(block, {.learning_rate = 3e-3});
  TransformerBlock<float>::Saved saved;
  float loss = 0;
  for (std::uint64_t step = 0; step < 500; ++step) {
    zero_gradient(gradient);
    block.forward(sequences, y, saved, Step{.seed = 1, .number = step}, ws);
    loss = 0;
    for (Index i = 0; i < 40; ++i) {
      dy.data()[i] = y.data()[i] - wanted.data()[i];
      loss += dy.data()[i] * dy.data()[i] / 2;
    }
    block.backward(sequences, dy, saved, {}, gradient, ws);  // {}: no gradient of x wanted
    adam.step(block, gradient);
  }
  std::printf("loss below 0.01: %s\n", loss < 0.01f ? "yes" : "no");

  const auto served = freeze(block);  // packed weights; threads may share it
  Matrix<float> again(5, 8);
  served.forward(sequences, again, ws);
  block.forward(sequences, y, ws);
  float worst = 0;
  for (Index i = 0; i < 40; ++i) worst = std::max(worst, std::abs(again.data()[i] - y.data()[i]));
  std::printf("frozen agrees: %s\n", worst < 1e-4f ? "yes" : "no");
}
