/// @file   recops/frequency/band.hpp
/// @brief  The low band of a sequence: which bins it holds, and the projection onto them.
///
///     low = P x = irfft([k < keep] rfft(x), L)
///
/// P is a symmetric circulant projection of rank r = 2 keep - 1 (L where all bins are kept).
#pragma once
#include <recops/frequency/padding.hpp>
#include <recops/frequency/plans.hpp>
#include <recops/simd/band_projection.hpp>

namespace recops {

/// The lowest bins of a half spectrum, for sequences of any length.
struct Band {
  Index keep = 1;    ///< bins kept, DC is the first; more than there are means all; 0 none. Not read where `ratio` > 0
  double ratio = 0;  ///< > 0: keep this share of the K bins of a sequence, rounded up, at least one; at most 1
};

/// How the low band is computed. All ways agree to rounding.
enum class BandPath : unsigned char {
  fastest,     ///< what is measured to be the fastest for the length and the number of bins
  projection,  ///< onto the cosines and sines of the low bins
  complement,  ///< x minus the projection onto those of the high bins
  transform    ///< to the spectrum and back
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

/// Columns up to which a projection is faster than a transform and its inverse (measured, see docs/frequency_bands.md).
inline Index projection_columns(Index length) {
  return length <= 16 ? length : static_cast<Index>(3 * std::log2(static_cast<double>(length)));
}

/// The way that is taken for sequences of `length` rows of which `keep` bins are kept.
inline BandPath choose_band_path(BandPath path, Index length, Index keep) {
  if (path != BandPath::fastest) return path;
  const Index bins = spectrum_bins(length), most = projection_columns(length);
  const Index low = keep == 0 ? 0 : keep == bins ? length : 2 * keep - 1, high = length - low;
  if (std::min(low, high) > most) return BandPath::transform;
  return low <= high ? BandPath::projection : BandPath::complement;
}

/// Batches of more bytes, read and written, are taken to come from memory and go there: what is written goes around the caches.
inline constexpr Index band_near_bytes = Index{4} << 20;

/// How a projection writes its rows.
template <class T>
simd::BandStore band_store(JaggedView<const T> x, bool add) {
  if (add) return simd::BandStore::add;
  const Index bytes = 2 * x.values().rows() * x.cols() * static_cast<Index>(sizeof(T));
  return bytes > band_near_bytes ? simd::BandStore::far : simd::BandStore::write;
}

/// What sequences of one length need; lives in a workspace.
template <class T>
struct BandMethod {
  Index length = 0;
  BandPath path = BandPath::transform;
  simd::BandWaves<T> waves;  ///< the low bins, or the high ones in `complement`
  simd::FftGains<T> gains;
  const simd::FftPlan<T>* plan = nullptr;

  BandMethod(const Band& band, BandPath wanted, const SpectralPlans<T>& plans, Index l, Workspace& ws) : length(l) {
    const Index bins = spectrum_bins(l), keep = band_bins(band, l);
    path = choose_band_path(wanted, l, keep);
    if (path == BandPath::transform) {
      plan = &plans[l];
      T* const g = ws.take<T>(bins);
      for (Index k = 0; k < bins; ++k) g[k] = k < keep ? T(1) : T(0);
      gains.prepare_in(ws, *plan, VectorView<const T>(g, bins));
    } else {
      const bool low = path == BandPath::projection;
      waves = simd::BandWaves<T>::make(ws, plans.roots(l), l, low ? 0 : keep, low ? keep : bins);
    }
  }
};

/// Calls `f(method, sequences, count, scratch)` for all sequences that hold anything, those of one length together; pairs of a
/// transform are at even places.
template <class T, class F>
void for_bands(JaggedView<const T> x, const Band& band, BandPath path, const SpectralPlans<T>& plans, Workspace& ws, F&& f) {
  const auto mark = ws.mark();
  const LengthGroups groups(x, ws);
  if (groups.groups == 1) {
    const BandMethod<T> method(band, path, plans, groups.length(0, x), ws);
    const Index count = groups.first[1], at_once = ws.workers() == 1 ? count : 16;
    return ws.parallel_for((count + at_once - 1) / at_once, [&](Index task, Workspace& scratch) {
      f(method, groups.order + task * at_once, std::min(at_once, count - task * at_once), scratch);
    });
  }
  ws.parallel_for(groups.groups, [&](Index g, Workspace& scratch) {
    const auto inner = scratch.mark();
    const BandMethod<T> method(band, path, plans, groups.length(g, x), scratch);
    f(method, groups.order + groups.first[g], groups.first[g + 1] - groups.first[g], scratch);
  });
}

/// low of sequences of one length, by transform: low <- or += P x.
template <class T>
void band_transform(const BandMethod<T>& m, JaggedView<const T> x, const Index* sequences, Index count, bool add,
                    MatrixView<T> low, Workspace& ws) {
  const auto rows = [&](auto all, Index i) { return all.middle_rows(x.begin(sequences[i]), m.length); };
  for (Index i = 0; i < count; i += 2) {
    if (i + 1 == count) {
      simd::fft_filter<T>(*m.plan, m.gains, rows(x.values(), i), rows(low, i), add, ws);
    } else {
      simd::fft_filter<T>(*m.plan, m.gains, rows(x.values(), i), rows(x.values(), i + 1), rows(low, i), rows(low, i + 1), add,
                          ws);
    }
  }
}

/// low <- or += P x.
template <class T>
void band_low(JaggedView<const T> x, const Band& band, BandPath path, const SpectralPlans<T>& plans, bool add, MatrixView<T> low,
              Workspace& ws) {
  const auto mark = ws.mark();
  const Index cols = x.cols();
  T *const one = ws.take<T>(cols), *const zero = ws.take<T>(cols);
  std::fill_n(one, cols, T(1));
  std::fill_n(zero, cols, T(0));
  for_bands<T>(x, band, path, plans, ws, [&](const BandMethod<T>& m, const Index* sequences, Index count, Workspace& scratch) {
    if (m.path == BandPath::transform) return band_transform<T>(m, x, sequences, count, add, low, scratch);
    const bool direct = m.path == BandPath::projection;
    const simd::BandStore store = band_store(x, add);
    for (Index i = 0; i < count; ++i) {
      const T* const next = i + 1 < count ? x[sequences[i + 1]].data() : nullptr;
      simd::band_mix<T>(m.waves, x[sequences[i]], direct ? one : zero, direct ? zero : one, store,
                        low.middle_rows(x.begin(sequences[i]), m.length), next, scratch);
    }
    if (store == simd::BandStore::far) simd::far_done();
  });
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
