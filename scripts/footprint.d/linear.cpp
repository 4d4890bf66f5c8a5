// A fully connected layer, float, from raw buffers.
#include <cstdio>
#include <recops/nn/linear.hpp>

int main() {
  static float x[20 * 32], weight[50 * 32], bias[50], y[20 * 50];
  for (int i = 0; i < 20 * 32; ++i) x[i] = static_cast<float>(i % 7) * 0.1f;
  for (int i = 0; i < 50 * 32; ++i) weight[i] = static_cast<float>(i % 5) * 0.1f;
  recops::Workspace scratch;
  recops::linear<float>(recops::MatrixView<const float>(x, 20, 32), recops::MatrixView<const float>(weight, 50, 32),
                        recops::VectorView<const float>(bias, 50), recops::MatrixView<float>(y, 20, 50), scratch);
  std::printf("%g\n", static_cast<double>(y[0]));
}
