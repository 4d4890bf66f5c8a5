#include <cstdio>
#include <recops/simd/activation.hpp>
#include <recops/simd/softmax.hpp>

int main() {
  const float scores[4] = {1.0f, 3.0f, 2.0f, -1.0f};
  float weights[4], activated[4];
  const float log_sum_exp = recops::simd::softmax(scores, weights, 4);
  recops::simd::gelu(scores, activated, 4);
  std::printf("log-sum-exp %.4f, best %d\n", log_sum_exp, static_cast<int>(recops::simd::argmax(scores, 4)));
  for (int i = 0; i < 4; ++i) std::printf("%.4f %.4f\n", weights[i], activated[i]);
}
