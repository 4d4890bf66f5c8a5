/// @file   recops/train/schedule.hpp
/// @brief  Learning-rate schedules: factors of the base rate, as functions of the step number (from 0).
///
/// They hold no state and multiply: `options.learning_rate = base * linear_warmup(n, 100) * cosine_decay(n, 1000)`.
#pragma once
#include <cmath>
#include <cstdint>
#include <recops/core/error.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Rises in a straight line from `start` at step 0 to 1 at step `steps` and stays there (PyTorch's LinearLR); `steps` 0: 1 always.
/// Throws `Error` unless 0 <= start <= 1.
inline double linear_warmup(std::uint64_t step, std::uint64_t steps, double start = 0) {
  check_option("linear_warmup", "start", 0 <= start && start <= 1, "0 <= start <= 1", start);
  if (step >= steps) return 1;
  return start + (1 - start) * static_cast<double>(step) / static_cast<double>(steps);
}

/// Falls along half a cosine from 1 at step 0 to `floor` at step `steps` and stays there (arXiv 1608.03983 without restarts;
/// PyTorch's CosineAnnealingLR up to its T_max). Throws `Error` unless 0 <= floor <= 1.
inline double cosine_decay(std::uint64_t step, std::uint64_t steps, double floor = 0) {
  check_option("cosine_decay", "floor", 0 <= floor && floor <= 1, "0 <= floor <= 1", floor);
  if (step >= steps) return floor;
  return floor + (1 - floor) * 0.5 * (1 + std::cos(3.141592653589793 * static_cast<double>(step) / static_cast<double>(steps)));
}

/// `factor` to the number of whole periods of `every` steps that have passed (PyTorch's StepLR). Throws `Error` unless every > 0.
inline double step_decay(std::uint64_t step, std::uint64_t every, double factor) {
  check_option("step_decay", "every", every > 0, "every > 0", static_cast<double>(every));
  return std::pow(factor, static_cast<double>(step / every));
}

}  // namespace RECOPS_ABI
}  // namespace recops
