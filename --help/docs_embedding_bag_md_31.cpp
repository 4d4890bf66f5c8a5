#include <cstdio>
#include <recops/nn/embedding_bag.hpp>
#include <recops/train/adam.hpp>

using namespace recops;

int main() {
  Random random(1);
  EmbeddingBag<float> tags(1000, 8, 0.1, random, {.pooling = Pooling::mean, .padding_index = 0});
  const Vector<std::int64_t> ids{7, 3, 0, 7, 512}, offsets{0, 3, 3, 5};  // three bags; the second is empty, 0 is padding
  Matrix<float> out(3, 8), dout(3, 8, 1.0f);
  tags.forward(ids, offsets, out);

  // A step of training: the gradient has the three rows that were read, and Adam leaves all others as they are.
  Workspace ws;
  EmbeddingBag<float> gradient = make_gradient(tags);
  Adam adam(tags, {.learning_rate = 0.1});
  tags.backward(ids, offsets, dout, gradient, ws);
  adam.step(tags, gradient);
  for (const std::int64_t row : gradient.weight.rows) std::printf("row %d ", static_cast<int>(row));
  std::printf("updated\n");
  zero_gradient(gradient);  // forgets the rows, for the next step

  // Serving from half the memory.
  const FrozenEmbeddingBag<float, BFloat16> served = freeze(tags, Weights<BFloat16>());
  Matrix<float> again(3, 8);
  tags.forward(ids, offsets, out);
  served.forward(ids, offsets, again);
  float worst = 0;
  for (Index b = 0; b < 3; ++b)
    for (Index j = 0; j < 8; ++j) worst = std::max(worst, std::abs(again(b, j) - out(b, j)));
  std::printf("bf16 within 0.002: %s\n", worst < 0.002f ? "yes" : "no");

  try {
    const Vector<std::int64_t> wrong{5, 1000};
    tags.forward(wrong, {}, out);
  } catch (const Error& e) {
    std::printf("%s\n", e.what());
  }
}
