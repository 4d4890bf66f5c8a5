/// @file   recops/nn/step.hpp
/// @brief  Which training step this is: dropout and noise are functions of it, never of hidden state.
#pragma once
#include <recops/core/random.hpp>

namespace recops {

/// Seed, step number and stream of one training step. A container passes `child(i)` to its i-th layer, so that no two layers
/// share a mask.
struct Step {
  std::uint64_t seed = 0;
  std::uint64_t number = 0;  ///< counts the optimiser's steps
  std::uint64_t stream = 0;

  /// The step as the `i`-th child sees it: the same seed and number, a stream of its own.
  RECOPS_INLINE constexpr Step child(Index i) const {
    const auto n = static_cast<std::uint64_t>(i) + 1;
    const PhiloxBlock b = philox4x32({{static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(n >> 32),
                                       static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}},
                                     0x6c61796572ull);
    return {seed, number, (std::uint64_t{b.word[0]} << 32) | b.word[1]};
  }
  /// The rows of random numbers of this layer in this step, for the kernels (dropout, noise); set `row` to choose one.
  RECOPS_INLINE constexpr RandomRow random_row(RandomPurpose purpose) const {
    const PhiloxBlock b = philox4x32({{static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32),
                                       static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}},
                                     seed);
    return {.seed = (std::uint64_t{b.word[0]} << 32) | b.word[1], .purpose = purpose};
  }
  /// Random numbers of this layer in this step, one sequence per `row`: what a row draws does not depend on its batch.
  RECOPS_INLINE constexpr Random random(Index row = 0) const {
    const Step own = child(row);
    const Step now = Step{seed, number, own.stream}.child(static_cast<Index>(number));
    return Random(seed, now.stream);
  }
};

}  // namespace recops
