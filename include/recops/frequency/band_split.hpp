/// @file   recops/frequency/band_split.hpp
/// @brief  Sequences split into an ideal low and an ideal high band.
///
///     low = P x = irfft([k < keep] rfft(x), L)      high = x - low
///
/// Shapes      x, low, high [total, D] with offsets [B + 1]; low or high may be empty: not wanted
/// Edge cases  low + high = x to one rounding, by subtraction.   keep = 1: low is the mean.   keep = 0: 0.   A NaN or infinity stays in its
///             sequence and channel.   Empty sequences: nothing.
/// Cost        see band_mix.hpp.   Same bits for any number of threads.
/// Errors      Error if shapes, plans or options disagree; outputs untouched.
/// Gradient    dx += dhigh + P (dlow - dhigh): P is symmetric.
/// Reference   BSARec, arXiv 2312.10325, and the authors' code; FARM, arXiv 2502.09375.
#pragma once
#include <recops/frequency/band.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// low <- P x, high <- x - P x, each unless empty. They do not overlap x or each other.
template <Real T>
void band_split(JaggedView<const T> x, const Band& band, const SpectralPlans<T>& plans, MatrixView<T> low, MatrixView<T> high,
                Workspace& ws, BandPath path = BandPath::fastest) {
  constexpr const char* name = "band_split";
  detail::check_band(name, band);
  check_jagged(name, "x", x, any_size, any_size);
  detail::check_plans(name, x, plans);
  const Index rows = x.values().rows(), cols = x.cols();
  if (!low.empty()) check_shape(name, "low", low, rows, cols);
  if (!high.empty()) check_shape(name, "high", high, rows, cols);
  const MatrixView<T> p = low.empty() ? high : low;
  if (p.empty()) return;
  detail::band_low<T>(x, band, path, plans, false, p, ws);
  if (high.empty()) return;
  for (Index r = 0; r < rows; ++r) {
    const T *const in = x.values().row(r), *const from = p.row(r);
    T* const to = high.row(r);
    simd::for_each_vector<T, simd::DefaultArch>(
        cols, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(to + i, load(in + i) - load(from + i)); });
  }
}

/// Adds to dx. dlow or dhigh may be empty: 0. Of x only the offsets are read.
template <Real T>
void band_split_backward(JaggedView<const T> x, const Band& band, const SpectralPlans<T>& plans, MatrixView<const T> dlow,
                         MatrixView<const T> dhigh, MatrixView<T> dx, Workspace& ws, BandPath path = BandPath::fastest) {
  constexpr const char* name = "band_split_backward";
  detail::check_band(name, band);
  check_jagged(name, "x", x, any_size, any_size);
  detail::check_plans(name, x, plans);
  const Index rows = x.values().rows(), cols = x.cols();
  if (!dlow.empty()) check_shape(name, "dlow", dlow, rows, cols);
  if (!dhigh.empty()) check_shape(name, "dhigh", dhigh, rows, cols);
  check_shape(name, "dx", dx, rows, cols);
  if (dx.empty() || (dlow.empty() && dhigh.empty())) return;
  const auto mark = ws.mark();
  const MatrixView<T> d = ws.matrix<T>(rows, cols);
  for (Index r = 0; r < rows; ++r) {
    if (dlow.empty()) {
      std::fill_n(d.row(r), cols, T(0));
    } else {
      std::copy_n(dlow.row(r), cols, d.row(r));
    }
    if (dhigh.empty()) continue;
    simd::axpy(T(-1), dhigh.row(r), d.row(r), cols);
    simd::add(dhigh.row(r), dx.row(r), cols);
  }
  detail::band_low<T>(x.with_values(MatrixView<const T>(d)), band, path, plans, true, dx, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
