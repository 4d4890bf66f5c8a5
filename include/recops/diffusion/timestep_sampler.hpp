/// @file   recops/diffusion/timestep_sampler.hpp
/// @brief  What a training step draws for its rows: steps of the schedule, and which conditions are dropped.
///
/// All of it is a function of (seed, training step, id of the row), never of the place in the batch, but for `stratified_timesteps`,
/// which is about the batch as a whole.
///
/// Shapes      t, keep, weights [B]
/// Errors      Error for sizes that disagree and options out of range; outputs untouched.
/// Reference   Nichol and Dhariwal arXiv 2102.09672 (importance); Ho and Salimans arXiv 2207.12598 (dropped conditions).
#pragma once
#include <algorithm>
#include <limits>
#include <recops/diffusion/noise_schedule.hpp>
#include <recops/simd/diffusion_update.hpp>

namespace recops {

/// Options of `TimestepSampler`.
struct TimestepSamplerOptions {
  Index history = 10;      ///< losses that are remembered of each step; until all have as many, steps are uniform
  double uniform = 0.001;  ///< share of a uniform distribution that is mixed in
};

inline namespace RECOPS_ABI {

namespace detail {
/// The uniform of row b, in (0, 1).
inline double row_uniform(RandomRow at, IndexView ids, Index b, RandomPurpose purpose) {
  at.row = simd::row_of(at, ids, b);
  at.purpose = purpose;
  const PhiloxBlock w = philox4x32(random_counter(at, 0), at.seed);
  return uniform_double(w.word[0], w.word[1]);
}
inline void check_draw(const char* name, Index steps, IndexView ids, Index rows) {
  check_option(name, "steps", 1 <= steps && steps < Index{1} << 31, "one step or more, fewer than 2^31",
               static_cast<double>(steps));
  simd::check_ids(name, ids, rows);
}
}  // namespace detail

/// t uniform in 1 .. `steps`, each by its row's id; `at.step` is the training step.
inline void uniform_timesteps(Index steps, const RandomRow& at, IndexView ids, VectorView<std::int32_t> t) {
  check_size("uniform_timesteps", "t", t, any_size);
  detail::check_draw("uniform_timesteps", steps, ids, t.size());
  for (Index b = 0; b < t.size(); ++b)
    t[b] = 1 + static_cast<std::int32_t>(detail::row_uniform(at, ids, b, RandomPurpose::timestep) * static_cast<double>(steps));
}

/// The same with one t in each of B equal parts of 1 .. `steps`, in random order: the loss of a batch varies less. Depends on the batch.
inline void stratified_timesteps(Index steps, const RandomRow& at, VectorView<std::int32_t> t) {
  check_size("stratified_timesteps", "t", t, any_size);
  detail::check_draw("stratified_timesteps", steps, {}, t.size());
  const double part = static_cast<double>(steps) / static_cast<double>(t.size());
  for (Index b = 0; b < t.size(); ++b) {
    const double u = detail::row_uniform(at, {}, b, RandomPurpose::timestep);
    t[b] = static_cast<std::int32_t>(std::min(1 + static_cast<Index>((static_cast<double>(b) + u) * part), steps));
  }
  RandomRow order = at;
  order.step ^= 0x80000000u;  // not the numbers that the parts were drawn with
  for (Index b = t.size(); b > 1; --b) {
    const double u = detail::row_uniform(order, {}, b, RandomPurpose::timestep);
    std::swap(t[b - 1], t[static_cast<Index>(u * static_cast<double>(b))]);
  }
}

/// keep_b = 0 with probability `drop`: rows whose condition is replaced by the null condition, so that the sampler can be guided. Usual:
/// 0.1.
inline void guidance_mask(double drop, const RandomRow& at, IndexView ids, VectorView<std::uint8_t> keep) {
  check_size("guidance_mask", "keep", keep, any_size);
  check_option("guidance_mask", "drop", 0 <= drop && drop <= 1, "0 <= drop <= 1", drop);
  simd::check_ids("guidance_mask", ids, keep.size());
  for (Index b = 0; b < keep.size(); ++b) keep[b] = detail::row_uniform(at, ids, b, RandomPurpose::guidance_mask) < drop ? 0 : 1;
}

/// Draws the steps that are learned badly more often: p_t in proportion to the root of the mean square of the last losses. The
/// weights that come with a draw keep the expected loss what it is with uniform steps.
class TimestepSampler {
 public:
  /// Throws `Error` for options out of range.
  explicit TimestepSampler(Index steps, const TimestepSamplerOptions& options = {}) : options_(options) {
    check_option("TimestepSampler", "steps", 1 <= steps && steps < Index{1} << 31, "one step or more, fewer than 2^31",
                 static_cast<double>(steps));
    check_option("TimestepSampler", "history", options.history >= 1, "history >= 1", static_cast<double>(options.history));
    check_option("TimestepSampler", "uniform", 0 < options.uniform && options.uniform <= 1, "0 < uniform <= 1", options.uniform);
    sums_.resize(steps);
    seen_ = Vector<Index>(steps, Index{0});
    losses_.resize(steps, options.history);
    refresh();
  }
  /// p_t of step t, 1 .. T.
  double probability(Index t) const { return sums_[t - 1] - (t > 1 ? sums_[t - 2] : 0); }
  /// Steps, and the weight 1 / (T p_t) of each row's loss.
  template <Real T>
  void draw(const RandomRow& at, IndexView ids, VectorView<std::int32_t> t, VectorView<T> weights) const {
    check_size("TimestepSampler", "t", t, any_size);
    check_size("TimestepSampler", "weights", weights, t.size());
    simd::check_ids("TimestepSampler", ids, t.size());
    for (Index b = 0; b < t.size(); ++b) {
      const double u = detail::row_uniform(at, ids, b, RandomPurpose::timestep);
      const Index i = std::min(std::upper_bound(sums_.begin(), sums_.end(), u) - sums_.begin(), sums_.size() - 1);
      t[b] = static_cast<std::int32_t>(i + 1);
      weights[b] = static_cast<T>(1 / (static_cast<double>(sums_.size()) * probability(i + 1)));
    }
  }
  /// Remembers the losses of a batch (without weights); one whose square is not finite is passed over. O(B + T).
  template <Real T>
  void update(IndexView t, VectorView<const T> losses) {
    check_size("TimestepSampler", "losses", losses, any_size);
    check_option("TimestepSampler", "t", t.size() == losses.size(), "one step for each loss", static_cast<double>(t.size()));
    detail::check_timesteps("TimestepSampler", t, losses.size(), 1, sums_.size());
    for (Index b = 0; b < losses.size(); ++b) {
      const double loss = static_cast<double>(losses[b]);
      if (!(loss * loss <= std::numeric_limits<double>::max() / static_cast<double>(options_.history))) continue;
      const Index i = t[b] - 1;
      losses_(i, seen_[i]++ % options_.history) = loss;
    }
    refresh();
  }

 private:
  void refresh() {
    const Index steps = sums_.size();
    const double even = 1 / static_cast<double>(steps);
    const bool warm = std::all_of(seen_.begin(), seen_.end(), [&](Index n) { return n >= options_.history; });
    double total = 0;
    for (Index i = 0; i < steps; ++i) {
      double square = 0;
      for (Index k = 0; warm && k < options_.history; ++k) square += losses_(i, k) * losses_(i, k);
      sums_[i] = std::sqrt(square / static_cast<double>(options_.history));
      total += sums_[i];
    }
    double sum = 0;
    for (Index i = 0; i < steps; ++i) {
      const double learned = total > 0 ? sums_[i] / total : even;
      sums_[i] = sum += (1 - options_.uniform) * learned + options_.uniform * even;
    }
  }
  TimestepSamplerOptions options_;
  Vector<double> sums_;  // p_1, p_1 + p_2, ...
  Vector<Index> seen_;
  Matrix<double> losses_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
