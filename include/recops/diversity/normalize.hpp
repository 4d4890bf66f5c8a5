/// @file   recops/diversity/normalize.hpp
/// @brief  Preparation for selectors: rows of unit length, and relevance on a common scale.
///
///     normalize_rows     y_i = x_i / |x_i|            normalize_scores   minmax, z-score, sigmoid or rank of r
///
/// Shapes      x, y, dx, dy [N, D]   r, out [N].  Outputs may be their inputs.
/// Edge cases  A row no longer than 1e-10 (double: 1e-12) gives zeros and no gradient. N = 0 and D = 0 do nothing.
/// NaN         A row that is not finite, or whose sum of squares overflows, gives a row of NaN; other rows are unaffected. A score
///             that is not finite is returned as it is and counts for nothing (so -infinity stays a mask).
/// Precision   T for rows; statistics of scores in double.
/// Cost        One pass; ranks take an argsort: scratch 20 N bytes.
/// Errors      Error if shapes disagree; outputs untouched.
/// Gradient    dx += (dy - <dy, y> y) / |x|
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/workspace.hpp>
#include <recops/nn/normalize_rows.hpp>
#include <recops/simd/argsort.hpp>

namespace recops {

/// What `normalize_scores` does with the finite scores.
enum class ScoreScale {
  none,     ///< copies them
  minmax,   ///< (r - min) / (max - min): [0, 1]; all equal: 0
  zscore,   ///< (r - mean) / standard deviation of the population; all equal: r - mean
  sigmoid,  ///< 1 / (1 + e^-r)
  rank,     ///< 1 - place / N: the largest gets 1, the smallest 1 / N; ties are placed in order of their index
};

inline namespace RECOPS_ABI {

/// Brings the relevance of one request on a common scale; `out` [N] may be `scores`.
template <Real T>
void normalize_scores(VectorView<const T> scores, ScoreScale scale, VectorView<T> out, Workspace& scratch) {
  const Index n = scores.size();
  check_size("normalize_scores", "scores", scores, any_size);
  check_size("normalize_scores", "out", out, n);
  check_option("normalize_scores", "scores", n <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 scores",
               static_cast<double>(n));
  const auto finite = [](T v) { return std::abs(v) <= std::numeric_limits<T>::max(); };
  const T* const r = scores.data();
  T* const y = out.data();

  if (scale == ScoreScale::rank) {
    const auto mark = scratch.mark();
    auto* const order = scratch.take<std::int32_t>(n);
    simd::argsort<T>(r, n, Order::descending, order, scratch);
    Index count = 0, place = 0;
    for (Index i = 0; i < n; ++i) count += finite(r[i]);
    for (Index i = 0; i < n; ++i) {
      const std::int32_t item = order[i];
      y[item] = finite(r[item]) ? static_cast<T>(1 - static_cast<double>(place++) / static_cast<double>(count)) : r[item];
    }
    return;
  }

  // y = (r - shift) / range / deviation, everything halved so that no difference overflows; their product may vanish
  double shift = 0, range = 1, deviation = 1;
  if (scale == ScoreScale::minmax || scale == ScoreScale::zscore) {
    double low = std::numeric_limits<double>::infinity(), high = -low, count = 0;
    for (Index i = 0; i < n; ++i) {
      if (!finite(r[i])) continue;
      low = std::min(low, static_cast<double>(r[i]) / 2);
      high = std::max(high, static_cast<double>(r[i]) / 2);
      ++count;
    }
    shift = low;
    range = high > low ? high - low : 1;
    if (scale == ScoreScale::zscore && count > 0) {
      double mean = 0, square = 0;
      for (Index i = 0; i < n; ++i) mean += finite(r[i]) ? static_cast<double>(r[i]) / (2 * count) : 0;
      shift = std::clamp(mean, low, high);  // of equal scores it is that score: what rounding leaves is no deviation
      range = std::max(high - shift, shift - low);
      for (Index i = 0; i < n && range > 0; ++i) {
        const double d = finite(r[i]) ? (static_cast<double>(r[i]) / 2 - shift) / range : 0;
        square += d * d / count;
      }
      if (range > 0) {
        deviation = std::sqrt(square);
      } else {
        range = 0.5;
      }
    }
  }
  for (Index i = 0; i < n; ++i) {
    if (!finite(r[i]) || scale == ScoreScale::none) {
      y[i] = r[i];
    } else if (scale == ScoreScale::sigmoid) {
      y[i] = static_cast<T>(1 / (1 + std::exp(-static_cast<double>(r[i]))));
    } else {
      y[i] = static_cast<T>((static_cast<double>(r[i]) / 2 - shift) / range / deviation);
    }
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
