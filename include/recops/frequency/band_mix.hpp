/// @file   recops/frequency/band_mix.hpp
/// @brief  The low and the high band of sequences with a gain each: the core of FARM and BSARec.
///
///     y = alpha . low + beta . high = beta . x + (alpha - beta) . (P x)       low = P x (band.hpp), high = x - low
///
/// Shapes      x, y [total, D] with offsets [B + 1]   alpha, beta: one number or D, for all rows, per sequence, per position or per row
/// Edge cases  keep = 0: y = beta x; all bins: y = alpha x.   A NaN stays in its sequence and channel (and in gradients of gains shared
///             with others).   Empty sequences: nothing.
/// Precision   as a float sum of L terms: about 5e-7 |x|.  Same bits for any number of threads.
/// Errors      Error if shapes, plans or options disagree; outputs untouched.
/// Gradient    of x, alpha and beta; *adds*.
/// Reference   FARM, arXiv 2502.09375; BSARec, arXiv 2312.10325, section 4.
#pragma once
#include <recops/frequency/band.hpp>

namespace recops {

/// Which rows share a row of gains.
enum class GainRows : unsigned char {
  all,       ///< one row `[1, .]` for everything
  sequence,  ///< `[B, .]`, one per sequence
  position,  ///< `[>= longest, .]`, one per position in a sequence, counted from its first row
  row        ///< `[total, .]`, one per row of the batch
};

inline namespace RECOPS_ABI {

/// Gains of a band: `values [R, 1]` or `[R, D]`, with `rows` saying what R counts. An empty one as a gradient: not wanted.
template <class T>
struct BandGains {
  MatrixView<T> values = {};
  GainRows rows = GainRows::all;

  /// Row of the gains for row n of sequence b that begins at row `begin` of the batch.
  Index row_of(Index b, Index begin, Index n) const {
    switch (rows) {
      case GainRows::all:
        return 0;
      case GainRows::sequence:
        return b;
      case GainRows::position:
        return n;
      case GainRows::row:
        return begin + n;
    }
    return 0;
  }
};

namespace detail {

template <class T, class U>
void check_band_gains(const char* name, const char* argument, JaggedView<const T> x, const BandGains<U>& g) {
  const Index cols = g.values.cols() == 1 ? 1 : x.cols();
  switch (g.rows) {
    case GainRows::all:
      return check_shape(name, argument, g.values, 1, cols);
    case GainRows::sequence:
      return check_shape(name, argument, g.values, x.size(), cols);
    case GainRows::position:
      check_shape(name, argument, g.values, any_size, cols);
      return check_option(name, argument, g.values.rows() >= x.longest(), "a row for every position",
                          static_cast<double>(g.values.rows()));
    case GainRows::row:
      return check_shape(name, argument, g.values, x.values().rows(), cols);
  }
  check_option(name, argument, false, "a GainRows", static_cast<double>(g.rows));
}

template <class T>
void check_band_mix(const char* name, JaggedView<const T> x, const Band& band, const SpectralPlans<T>& plans) {
  check_band(name, band);
  check_jagged(name, "x", x, any_size, any_size);
  check_plans(name, x, plans);
}

/// The gains of a row as D numbers: those of the table, or one number in all of `spread`.
template <class T>
const T* gain_row(const BandGains<const T>& g, Index row, Index cols, T* spread) {
  if (g.values.cols() == cols) return g.values.row(row);
  std::fill_n(spread, cols, g.values(row, 0));
  return spread;
}

/// gradient row (1 or D numbers) += sum
template <class T>
void add_gain_row(const BandGains<T>& g, Index row, const T* sum, Index cols) {
  if (g.values.cols() == cols) {
    simd::add(sum, g.values.row(row), cols);
  } else {
    g.values(row, 0) += simd::sum(sum, cols);
  }
}

}  // namespace detail

/// y <- alpha . low + beta . high.
template <Real T>
void band_mix(JaggedView<const T> x, BandGains<const T> alpha, BandGains<const T> beta, const Band& band,
              const SpectralPlans<T>& plans, MatrixView<T> y, Workspace& ws) {
  constexpr const char* name = "band_mix";
  detail::check_band_mix(name, x, band, plans);
  detail::check_band_gains(name, "alpha", x, alpha);
  detail::check_band_gains(name, "beta", x, beta);
  check_shape(name, "y", y, x.values().rows(), x.cols());
  if (x.values().empty()) return;
  detail::band_low<T>(x, band, plans, false, y, ws);
  ws.parallel_for(x.size(), [&](Index b, Workspace& scratch) {
    const auto mark = scratch.mark();
    const Index cols = x.cols(), begin = x.begin(b);
    T *const spread_a = scratch.take<T>(cols), *const spread_b = scratch.take<T>(cols);
    for (Index n = 0; n < x.length(b); ++n) {
      const T* const a = detail::gain_row(alpha, alpha.row_of(b, begin, n), cols, spread_a);
      const T* const g = detail::gain_row(beta, beta.row_of(b, begin, n), cols, spread_b);
      const T* const in = x.values().row(begin + n);
      T* const out = y.row(begin + n);
      simd::for_each_vector<T, simd::DefaultArch>(cols, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto low = load(out + i), h = load(in + i) - low;
        store(out + i, simd::mul_add(load(g + i), h, load(a + i) * low));
      });
    }
  });
}

/// Adds to dx, dalpha and dbeta, each unless empty.
template <Real T>
void band_mix_backward(JaggedView<const T> x, BandGains<const T> alpha, BandGains<const T> beta, const Band& band,
                       const SpectralPlans<T>& plans, MatrixView<const T> dy, MatrixView<T> dx, BandGains<T> dalpha,
                       BandGains<T> dbeta, Workspace& ws) {
  constexpr const char* name = "band_mix_backward";
  detail::check_band_mix(name, x, band, plans);
  detail::check_band_gains(name, "alpha", x, alpha);
  detail::check_band_gains(name, "beta", x, beta);
  check_shape(name, "dy", dy, x.values().rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), x.cols());
  if (!dalpha.values.empty()) detail::check_band_gains(name, "dalpha", x, dalpha);
  if (!dbeta.values.empty()) detail::check_band_gains(name, "dbeta", x, dbeta);
  if (x.values().empty()) return;
  const auto mark = ws.mark();
  const Index rows = x.values().rows(), cols = x.cols();
  if (!dalpha.values.empty() || !dbeta.values.empty()) {
    const MatrixView<T> low = ws.matrix<T>(rows, cols);
    detail::band_low<T>(x, band, plans, false, low, ws);
    T *const a = ws.take<T>(cols), *const h = ws.take<T>(cols);
    for (Index b = 0; b < x.size(); ++b) {
      for (Index n = 0; n < x.length(b); ++n) {
        const Index r = x.begin(b) + n;
        for (Index d = 0; d < cols; ++d) {
          a[d] = dy(r, d) * low(r, d);
          h[d] = dy(r, d) * (x.values()(r, d) - low(r, d));
        }
        if (!dalpha.values.empty()) detail::add_gain_row<T>(dalpha, dalpha.row_of(b, x.begin(b), n), a, cols);
        if (!dbeta.values.empty()) detail::add_gain_row<T>(dbeta, dbeta.row_of(b, x.begin(b), n), h, cols);
      }
    }
  }
  if (dx.empty()) return;
  const MatrixView<T> gated = ws.matrix<T>(rows, cols);
  ws.parallel_for(x.size(), [&](Index b, Workspace& scratch) {
    const auto inner = scratch.mark();
    const Index begin = x.begin(b);
    T *const spread_a = scratch.take<T>(cols), *const spread_b = scratch.take<T>(cols);
    for (Index n = 0; n < x.length(b); ++n) {
      const T* const a = detail::gain_row(alpha, alpha.row_of(b, begin, n), cols, spread_a);
      const T* const g = detail::gain_row(beta, beta.row_of(b, begin, n), cols, spread_b);
      const T* const d = dy.row(begin + n);
      T *const to = gated.row(begin + n), *const out = dx.row(begin + n);
      simd::for_each_vector<T, simd::DefaultArch>(cols, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        store(to + i, (load(a + i) - load(g + i)) * load(d + i));
        store(out + i, simd::mul_add(load(g + i), load(d + i), load(out + i)));
      });
    }
  });
  detail::band_low<T>(x.with_values(MatrixView<const T>(gated)), band, plans, true, dx, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
