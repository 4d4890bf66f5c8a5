// MMR, float, from raw buffers.
#include <cstdio>
#include <recops/diversity/mmr.hpp>

int main() {
  static float relevance[100], features[100 * 32], scores[10];
  static std::int32_t picks[10];
  for (int i = 0; i < 100; ++i) relevance[i] = static_cast<float>(i % 11) * 0.1f;
  for (int i = 0; i < 100 * 32; ++i) features[i] = static_cast<float>(i % 7) * 0.1f;
  recops::Workspace scratch;
  const recops::Selection s =
      recops::mmr<float>(recops::VectorView<const float>(relevance, 100), recops::MatrixView<const float>(features, 100, 32), {},
                         recops::VectorView<std::int32_t>(picks, 10), recops::VectorView<float>(scores, 10), scratch);
  std::printf("%d %g\n", static_cast<int>(s.count), static_cast<double>(scores[0]));
}
