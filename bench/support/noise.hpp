/// @file   bench/support/noise.hpp
/// @brief  Tells a disturbed run from a quiet one by what happened to the calibration, never by the kernel's own result alone.
///
/// A strange load slows different things differently: pure arithmetic hardly notices a busy sibling thread that takes a quarter
/// from code with loads and stores, and a neighbour's memory traffic touches only what leaves the caches. So the register tile is
/// watched relative to arithmetic, arithmetic relative to its best in this process, and so is reading.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <string>

namespace recops_bench {

/// A run is noisy when a calibration falls below these shares of the best seen, or the halves of the run differ by more.
struct NoiseThresholds {
  double fma = 0.90;    ///< lower than the others: the clock drifts, and ratios do not mind
  double tile = 0.97;   ///< of tile rate / fma rate
  double cache = 0.85;  ///< of reading four times L2: what another core's use of the shared cache disturbs
  double read = 0.92;
  double halves = 0.03;
};

/// Rates of one run, at their low quantile of time; 0 where not measured.
struct Rates {
  double fma = 0, tile = 0, cache = 0, read = 0;
  bool crowded = false;  ///< other processes took the core in nearly all slices of the kernel or of a calibration
  double halves = 0;     ///< relative difference of the reported share between the first and the second half
};

/// The best rates of this process: the machine when it was quiet.
class QuietMachine {
 public:
  explicit QuietMachine(NoiseThresholds thresholds = {}) : limit_(thresholds) {}

  /// Empty if quiet, else what was disturbed. `set` names scalar and instruction set, `stream` what the read stream reads.
  std::string judge(const std::string& set, const std::string& stream, const Rates& r) {
    std::string noise;
    const auto add = [&](const char* what) {
      if (!noise.empty()) noise += '+';
      noise += what;
    };
    const auto check = [&](double& best, double now, double share, const char* what) {
      best = std::max(best, now);
      if (now > 0 && now < share * best) add(what);
    };
    Best& best = sets_[set];
    check(best.fma, r.fma, limit_.fma, "fma");
    if (r.fma > 0 && r.tile > 0) check(best.tile_share, r.tile / r.fma, limit_.tile, "tile");
    check(cache_, r.cache, limit_.cache, "cache");
    check(reads_[stream], r.read, limit_.read, "read");
    if (r.crowded) add("preempted");
    if (std::abs(r.halves) > limit_.halves) add("halves");
    return noise;
  }

 private:
  struct Best {
    double fma = 0, tile_share = 0;
  };
  NoiseThresholds limit_;
  double cache_ = 0;
  std::map<std::string, Best> sets_;
  std::map<std::string, double> reads_;
};

inline QuietMachine& quiet_machine() {
  static QuietMachine machine;
  return machine;
}

}  // namespace recops_bench
