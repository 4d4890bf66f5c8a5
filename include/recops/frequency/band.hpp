/// @file   recops/frequency/band.hpp
/// @brief  The low band of a sequence: which bins it holds, and the projection onto them.
///
///     low = P x = irfft([k < keep] rfft(x), L)
///
/// P is a symmetric circulant projection of rank r = 2 keep - 1 (L where all bins are kept).
#pragma once
#include <recops/frequency/padding.hpp>
#include <recops/frequency/plans.hpp>

namespace recops {

/// The lowest bins of a half spectrum, for sequences of any length.
struct Band {
  Index keep = 1;    ///< bins kept, DC is the first; more than there are means all; 0 none. Not read where `ratio` > 0
  double ratio = 0;  ///< > 0: keep this share of the K bins of a sequence, rounded up, at least one; at most 1
};

inline namespace RECOPS_ABI {

/// Bins that a band keeps of a sequence of `length` rows.
inline Index band_bins(const Band& band, Index length) {
  const Index bins = detail::spectrum_bins(length);
  if (band.ratio > 0)
    return std::clamp(static_cast<Index>(std::ceil(band.ratio * static_cast<double>(bins))), std::min(Index{1}, bins), bins);
  return std::min(band.keep, bins);
}

/// BSARec's option c (3, 5, ...) counts both sides of the spectrum: it keeps c / 2 + 1 bins (so do the authors: c = 3 keeps DC and one
/// wave, c = 5 two waves). Throws `Error` for c < 0.
inline Index keep_from_bsarec_c(Index c) {
  check_option("keep_from_bsarec_c", "c", c >= 0, "c >= 0", static_cast<double>(c));
  return c / 2 + 1;
}

namespace detail {

inline void check_band(const char* name, const Band& band) {
  check_option(name, "keep", band.keep >= 0, "keep >= 0", static_cast<double>(band.keep));
  check_option(name, "ratio", 0 <= band.ratio && band.ratio <= 1, "0 <= ratio <= 1, where 0 stands for `keep`", band.ratio);
}

/// low <- P x, rows of sequences that are never empty at their own lengths.
template <class T>
void band_low(JaggedView<const T> x, const Band& band, const SpectralPlans<T>& plans, bool add, MatrixView<T> low,
              Workspace& ws) {
  if (x.values().empty()) return;
  const auto mark = ws.mark();
  const LengthGroups groups(x, ws);
  ws.parallel_for(groups.groups, [&](Index g, Workspace& scratch) {
    const auto inner = scratch.mark();
    const Index length = groups.length(g, x), bins = spectrum_bins(length);
    const simd::FftPlan<T>& plan = plans[length];
    T* const gains = scratch.take<T>(bins);
    for (Index k = 0; k < bins; ++k) gains[k] = k < band_bins(band, length) ? T(1) : T(0);
    simd::FftGains<T> filter;
    filter.prepare_in(scratch, plan, VectorView<const T>(gains, bins));
    groups.for_pairs(g, [&](Index b, Index c) {
      const MatrixView<T> y0 = low.middle_rows(x.begin(b), length);
      if (c < 0) return simd::fft_filter<T>(plan, filter, x[b], y0, add, scratch);
      simd::fft_filter<T>(plan, filter, x[b], x[c], y0, low.middle_rows(x.begin(c), length), add, scratch);
    });
  });
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
