#include <cstdio>
#include <recops/core/matrix.hpp>
#include <recops/simd/keep_mask.hpp>
#include <recops/simd/normal.hpp>
#include <recops/simd/random_index.hpp>

int main() {
  using namespace recops;
  // Noise of sampler step 3 for two users, in whatever batch they come.
  const RandomRow at{.seed = 1, .step = 3, .purpose = RandomPurpose::sampler_noise};
  const std::int64_t users[] = {7, 123456789012};
  Matrix<float> noise(2, 64);
  simd::fill_normal<float>(at, IndexView(users, 2), noise.view());
  std::printf("user 7: %.4f %.4f %.4f\n", noise(0, 0), noise(0, 1), noise(0, 2));

  // The same row, fused: x = 0.9 x + 0.1 z, and no noise in memory.
  Vector<float> x(64, 1.0f);
  RandomRow own = at;
  own.row = 7;
  simd::for_each_normal<float>(simd::Philox<>(own), x.size(), [&](Index i, auto z, auto load, auto store) {
    using B = decltype(z);
    store(x.data() + i, B(0.9f) * load(x.data() + i) + B(0.1f) * z);
  });
  std::printf("fused:  %.4f %.4f %.4f\n", x[0], x[1], x[2]);

  // Which of ten activations a dropout of 0.3 keeps in training step 3, and the order of the data in epoch 2.
  std::uint8_t kept[10];
  simd::fill_keep({.seed = 1, .row = 0, .step = 3, .purpose = RandomPurpose::dropout}, 0.7, kept, 10);
  std::printf("kept:  ");
  for (const int k : kept) std::printf(" %d", k);
  std::int32_t order[8];
  simd::fill_permutation({.seed = 1, .step = 2, .purpose = RandomPurpose::shuffle}, order, 8);
  std::printf("\norder: ");
  for (const int i : order) std::printf(" %d", i);
  std::printf("\n");
}
