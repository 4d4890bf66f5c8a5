/// @file   recops/core/random.hpp
/// @brief  Counter-based random numbers: a number is a function of (seed, stream, position), never of hidden state.
///
/// The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Words and
/// uniforms are identical on every platform, compiler and instruction set; normals agree to rounding of log and cos.
///
/// Two ways to address them. `Random` is a sequence, for scalar code. `RandomRow` names a row of numbers that belongs to a
/// user or request, for the kernels of simd/ (uniforms, normals, masks): what a row draws depends on its own id, not on its
/// place in the batch, nor on threads or vector width.
#pragma once
#include <cmath>
#include <cstdint>
#include <recops/core/views.hpp>

namespace recops {

/// What random numbers are for: rows that differ in nothing else draw independent numbers.
enum class RandomPurpose : std::uint32_t {
  diffusion_noise = 0,  ///< noise added in training
  sampler_noise = 1,    ///< noise of a sampler's step
  initial_noise = 2,    ///< where a sampler starts
  dropout = 3,
  timestep = 4,       ///< which step of the schedule a training row sees
  guidance_mask = 5,  ///< dropped conditions
  gumbel = 6,         ///< relaxed or perturbed choices
  point_process = 7,  ///< draws of determinantal processes
  shuffle = 8,        ///< order of the data
  negatives = 9,      ///< sampled items
};

/// One row of random numbers. The counter of its block b is (b, row bits 0..31, step, row bits 32..47 | purpose << 16 |
/// sample << 20) and its key is the seed, so every field has a place of its own and no two rows overlap.
struct RandomRow {
  std::uint64_t seed = 0;
  std::uint64_t row = 0;   ///< the caller's id of a user or request; the low 48 bits count
  std::uint32_t step = 0;  ///< step of a sampler or of training, or a stream of the caller's
  RandomPurpose purpose = RandomPurpose::diffusion_noise;
  std::uint32_t sample = 0;  ///< which of several samples of one row, 0 .. 4095 (the low 12 bits count)
};

inline namespace RECOPS_ABI {

/// Four 32-bit words: a counter, or the random block made of it.
struct PhiloxBlock {
  std::uint32_t word[4];
};

/// Philox4x32-10: the random block that belongs to a 128-bit counter under a 64-bit key.
constexpr PhiloxBlock philox4x32(PhiloxBlock counter, std::uint64_t key) {
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  PhiloxBlock c = counter;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * c.word[0], b = std::uint64_t{0xCD9E8D57u} * c.word[2];
    c = {{static_cast<std::uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<std::uint32_t>(b),
          static_cast<std::uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<std::uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/// The counter of block `block` of a row: numbers 4 * block and on in float, 2 * block and on in double.
constexpr PhiloxBlock random_counter(const RandomRow& at, std::uint32_t block) {
  const auto purpose = static_cast<std::uint32_t>(at.purpose);
  return {{block, static_cast<std::uint32_t>(at.row), at.step,
           (static_cast<std::uint32_t>(at.row >> 32) & 0xffffu) | (purpose & 15u) << 16 | at.sample << 20}};
}

/// A word as a float in (0, 1): 2^23 equally spaced values, never 0 nor 1, exact.
constexpr float uniform_float(std::uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f; }
/// Two words as a double in (0, 1): 2^52 equally spaced values, never 0 nor 1, exact.
constexpr double uniform_double(std::uint32_t high, std::uint32_t low) {
  return (static_cast<double>((std::uint64_t{high} << 20) | (low >> 12)) + 0.5) * 0x1p-52;
}

/// A sequence of random numbers: stream `stream` of seed `seed`. Copies continue independently from the same place.
/// Different streams of one seed are independent; 2^64 blocks per stream. Give it a seed of its own where the program also draws
/// rows (`RandomRow`): the two number the same counters differently.
class Random {
 public:
  constexpr explicit Random(std::uint64_t seed, std::uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  /// 32 random bits.
  constexpr std::uint32_t word() {
    if (used_ == 4) {
      block_ = philox4x32({{static_cast<std::uint32_t>(position_), static_cast<std::uint32_t>(position_ >> 32),
                            static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)}},
                          seed_);
      ++position_;
      used_ = 0;
    }
    return block_.word[used_++];
  }
  /// In (0, 1), 52 bits.
  constexpr double uniform() {
    const std::uint32_t high = word();
    return uniform_double(high, word());
  }
  /// Between low and high, which are met only where the product rounds to them.
  constexpr double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Standard normal (Box-Muller; one number from four words).
  double normal() {
    const double r = std::sqrt(-2.0 * std::log(uniform()));
    return r * std::cos(6.283185307179586476925 * uniform());
  }
  /// Integer in [0, bound), exactly uniform (rejection); `bound` must be positive.
  constexpr Index below(Index bound) {
    assert(bound > 0);
    const auto n = static_cast<std::uint64_t>(bound);
    const std::uint64_t limit = n * (~std::uint64_t{0} / n);  // the largest multiple of n that fits
    for (;;) {
      const std::uint64_t high = word(), draw = (high << 32) | word();
      if (draw < limit) return static_cast<Index>(draw % n);
    }
  }
  /// True with probability `p`.
  constexpr bool chance(double p) { return uniform() < p; }

 private:
  std::uint64_t seed_, stream_, position_ = 0;
  PhiloxBlock block_{};
  int used_ = 4;
};

}  // namespace RECOPS_ABI
}  // namespace recops
