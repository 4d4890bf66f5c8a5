/// @file   examples/common/running_rates.hpp
/// @brief  How often each item was shown and taken *so far*: the popularity a service knows at the moment of a request.
#pragma once
#include <cmath>
#include <vector>

#include "interactions.hpp"

namespace examples {

/// Counts per item over the rows of a log before a moment that only moves forward. Rates are smoothed towards the overall rate
/// by `prior` impressions, so that a new item starts as an average one.
class RunningRates {
 public:
  /// Keeps a reference to `log`. `tasks` are the labels to count; `prior` in impressions, > 0.
  RunningRates(const InteractionLog& log, std::vector<Label> tasks, double prior = 20)
      : log_(&log),
        tasks_(std::move(tasks)),
        prior_(prior),
        shown_(static_cast<std::size_t>(log.items)),
        taken_(static_cast<std::size_t>(log.items) * tasks_.size()),
        all_taken_(tasks_.size()) {
    recops::check_option("RunningRates", "prior", prior > 0, "prior > 0", prior);
  }

  /// Counts every row before `time`. Going back is not possible and counts nothing twice.
  void advance(std::int64_t time) {
    for (; row_ < log_->time.size() && log_->time[row_] < time; ++row_) {
      const auto item = static_cast<std::size_t>(log_->item[row_]);
      ++shown_[item];
      ++all_shown_;
      for (std::size_t t = 0; t < tasks_.size(); ++t) {
        const double y = log_->label(tasks_[t])[row_];
        taken_[item * tasks_.size() + t] += y;
        all_taken_[t] += y;
      }
    }
  }

  /// Smoothed rate of task `t` (by place in `tasks`) for `item`, in (0, 1) once anything was counted.
  double rate(Index item, std::size_t t) const {
    const double overall = (all_taken_[t] + 0.5) / (all_shown_ + 1);
    const auto i = static_cast<std::size_t>(item);
    return (taken_[i * tasks_.size() + t] + prior_ * overall) / (shown_[i] + prior_);
  }
  /// Impressions of `item` so far.
  double shown(Index item) const { return shown_[static_cast<std::size_t>(item)]; }
  /// Columns that `features` writes: one per task, and one for exposure.
  Index columns() const { return static_cast<Index>(tasks_.size()) + 1; }
  /// The item's rates relative to the overall rate, as log ratios, and log(1 + impressions): inputs of a model.
  void features(Index item, float* out) const {
    for (std::size_t t = 0; t < tasks_.size(); ++t) {
      const double overall = (all_taken_[t] + 0.5) / (all_shown_ + 1);
      out[t] = static_cast<float>(std::log(rate(item, t) / overall));
    }
    out[tasks_.size()] = static_cast<float>(0.3 * std::log1p(shown(item)));
  }

 private:
  const InteractionLog* log_;
  std::vector<Label> tasks_;
  double prior_;
  std::vector<double> shown_, taken_, all_taken_;
  double all_shown_ = 0;
  std::size_t row_ = 0;
};

}  // namespace examples
