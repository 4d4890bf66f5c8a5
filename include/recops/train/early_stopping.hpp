/// @file   recops/train/early_stopping.hpp
/// @brief  When to stop: after so many evaluations without an improvement.
#pragma once
#include <limits>
#include <recops/core/fields.hpp>
#include <recops/core/matrix.hpp>

namespace recops {

/// Options of `EarlyStopping`.
struct EarlyStoppingOptions {
  std::int64_t patience = 3;      ///< evaluations without improvement that end the training
  double min_delta = 0;           ///< what counts as an improvement: better than the best by more than this
  bool higher_is_better = false;  ///< false for losses, true for AUC and its like
};

inline namespace RECOPS_ABI {

/// Follows a held-out measure. Lists its state in `fields()`, so that a checkpoint carries it.
class EarlyStopping {
 public:
  /// Throws `Error` for patience < 1 or min_delta < 0.
  explicit EarlyStopping(const EarlyStoppingOptions& o = {}) : options_(o), best_(1, worst()), stale_(1, 0) {
    check_option("EarlyStopping", "patience", o.patience >= 1, "patience >= 1", static_cast<double>(o.patience));
    check_option("EarlyStopping", "min_delta", o.min_delta >= 0, "min_delta >= 0", o.min_delta);
  }

  static constexpr auto fields() {
    return std::tuple{buffer("best", &EarlyStopping::best_), buffer("stale", &EarlyStopping::stale_)};
  }

  /// Takes the next evaluation; true if it is the best so far, which is when to keep a copy. A NaN is never an improvement.
  bool update(double value) {
    const bool better = options_.higher_is_better ? value > best_[0] + options_.min_delta : value < best_[0] - options_.min_delta;
    if (better) best_[0] = value;
    stale_[0] = better ? 0 : stale_[0] + 1;
    return better;
  }
  bool should_stop() const { return stale_[0] >= options_.patience; }
  /// The best so far; infinitely bad before the first.
  double best() const { return best_[0]; }

 private:
  double worst() const {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    return options_.higher_is_better ? -infinity : infinity;
  }
  EarlyStoppingOptions options_;
  Vector<double> best_;
  Vector<std::int64_t> stale_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
