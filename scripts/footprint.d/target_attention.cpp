// One operator, float, from raw buffers: what a service that uses nothing else is compiled to.
#include <cstdio>
#include <recops/attention/target_attention.hpp>

int main() {
  static float candidates[8 * 32], history[50 * 32], interest[8 * 32];
  for (int i = 0; i < 8 * 32; ++i) candidates[i] = static_cast<float>(i % 7) * 0.1f;
  for (int i = 0; i < 50 * 32; ++i) history[i] = static_cast<float>(i % 5) * 0.1f;
  recops::Workspace scratch;
  recops::target_attention<float>(recops::MatrixView<const float>(candidates, 8, 32),
                                  recops::MatrixView<const float>(history, 50, 32), {},
                                  recops::MatrixView<float>(interest, 8, 32), scratch);
  std::printf("%g\n", static_cast<double>(interest[0]));
}
