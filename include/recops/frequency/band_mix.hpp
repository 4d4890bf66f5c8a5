/// @file   recops/frequency/band_mix.hpp
/// @brief  The low and the high band of sequences with a gain each: the core of FARM and BSARec.
///
///     y = alpha . low + beta . high = beta . x + (alpha - beta) . (P x)       low = P x (band.hpp), high = x - low
///
/// Shapes      x, y [total, D] with offsets [B + 1]   alpha, beta: one number or D, for all rows, per sequence, per position or per row
/// Edge cases  keep = 0: y = beta x; all bins: y = alpha x.   A NaN stays in its sequence and channel (and in gradients of gains shared
///             with others).   Empty sequences: nothing.
/// Precision   as a float sum of L terms: about 5e-7 |x| for L to 200; a constant column of 8192 rows 5e-5, for L = 65536 3e-4 (by
///             transform, path choice in band.hpp, 5e-7 for any L).  Same bits for any number of threads.
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
void check_band_gradient(const char* name, const char* argument, const BandGains<const T>& g, const BandGains<T>& d) {
  if (d.values.empty()) return;
  check_option(name, argument, d.rows == g.rows, "the same `rows` as its gains", static_cast<double>(d.rows));
  check_shape(name, argument, d.values, g.values.rows(), g.values.cols());
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

/// Gains that are the same for all rows of a sequence.
template <class T>
bool even_gains(const BandGains<T>& g) {
  return g.rows == GainRows::all || g.rows == GainRows::sequence;
}

/// `f(b, n, row, a, g)` for every row of the batch, with its gains as D numbers each.
template <class T, class F>
void for_gained_rows(JaggedView<const T> x, const BandGains<const T>& alpha, const BandGains<const T>& beta, Workspace& ws,
                     F&& f) {
  ws.parallel_for(x.size(), [&](Index b, Workspace& scratch) {
    const auto mark = scratch.mark();
    const Index cols = x.cols(), begin = x.begin(b);
    T *const spread_a = scratch.take<T>(cols), *const spread_b = scratch.take<T>(cols);
    for (Index n = 0; n < x.length(b); ++n)
      f(begin + n, gain_row(alpha, alpha.row_of(b, begin, n), cols, spread_a),
        gain_row(beta, beta.row_of(b, begin, n), cols, spread_b));
  });
}

/// y <- or += beta . x + (alpha - beta) . P x of sequences of one length with even gains, by projection.
template <class T>
void band_mix_projected(const BandMethod<T>& m, JaggedView<const T> x, const Index* sequences, Index count,
                        const BandGains<const T>& alpha, const BandGains<const T>& beta, bool add, MatrixView<T> y,
                        Workspace& ws) {
  const auto mark = ws.mark();
  const Index cols = x.cols();
  T *const spread_a = ws.take<T>(cols), *const spread_b = ws.take<T>(cols);
  const simd::BandStore store = band_store(x, add);
  for (Index i = 0; i < count; ++i) {
    const Index b = sequences[i];
    const T *a = gain_row(alpha, alpha.row_of(b, 0, 0), cols, spread_a),
            *g = gain_row(beta, beta.row_of(b, 0, 0), cols, spread_b);
    if (m.path == BandPath::complement) std::swap(a, g);
    const T* const next = i + 1 < count ? x[sequences[i + 1]].data() : nullptr;
    simd::band_mix<T>(m.waves, x[b], a, g, store, y.middle_rows(x.begin(b), m.length), next, ws);
  }
  if (store == simd::BandStore::far) simd::far_done();
}

/// low becomes a . low + b . (x - low), one row.
template <class T>
void mix_row(const T* x, const T* a, const T* b, T* low, Index cols) {
  simd::for_each_vector<T, simd::DefaultArch>(cols, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const auto l = load(low + i);
    store(low + i, simd::mul_add(load(b + i), load(x + i) - l, load(a + i) * l));
  });
}

/// gated = (a - b) . dy, dx += b . dy, one row.
template <class T>
void gate_row(const T* dy, const T* a, const T* b, T* gated, T* dx, Index cols) {
  simd::for_each_vector<T, simd::DefaultArch>(cols, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const auto d = load(dy + i), g = load(b + i);
    store(gated + i, (load(a + i) - g) * d);
    store(dx + i, simd::mul_add(g, d, load(dx + i)));
  });
}

/// Sums of products per channel, one row: with the low band to `a`, with the high one to `h`.
template <class T>
void low_high_products(const T* g, const T* x, const T* low, T* a, T* h, Index cols) {
  simd::for_each_vector<T, simd::DefaultArch>(cols, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const auto d = load(g + i), l = load(low + i);
    store(a + i, simd::mul_add(d, l, load(a + i)));
    store(h + i, simd::mul_add(d, load(x + i) - l, load(h + i)));
  });
}

/// Gradients of the gains; either may be empty.
template <class T>
void band_gain_gradients(JaggedView<const T> x, const Band& band, BandPath path, const SpectralPlans<T>& plans,
                         MatrixView<const T> dy, const BandGains<T>& dalpha, const BandGains<T>& dbeta, Workspace& ws) {
  const auto mark = ws.mark();
  const Index cols = x.cols();
  const bool even = (dalpha.values.empty() || even_gains(dalpha)) && (dbeta.values.empty() || even_gains(dbeta));
  const auto add = [&](Index b, Index n, const T* a, const T* h) {
    if (!dalpha.values.empty()) add_gain_row<T>(dalpha, dalpha.row_of(b, x.begin(b), n), a, cols);
    if (!dbeta.values.empty()) add_gain_row<T>(dbeta, dbeta.row_of(b, x.begin(b), n), h, cols);
  };
  if (!even) {
    const MatrixView<T> low = ws.matrix<T>(dy.rows(), cols);
    band_low<T>(x, band, path, plans, false, low, ws);
    T *const a = ws.take<T>(cols), *const h = ws.take<T>(cols);
    for (Index b = 0; b < x.size(); ++b) {
      for (Index n = 0; n < x.length(b); ++n) {
        const Index r = x.begin(b) + n;
        std::fill_n(a, cols, T(0));
        std::fill_n(h, cols, T(0));
        low_high_products<T>(dy.row(r), x.values().row(r), low.row(r), a, h, cols);
        add(b, n, a, h);
      }
    }
    return;
  }
  const MatrixView<T> sums = ws.matrix<T>(x.size(), 2 * cols);
  std::fill_n(sums.data(), sums.rows() * sums.cols(), T(0));
  for_bands<T>(x, band, path, plans, ws, [&](const BandMethod<T>& m, const Index* sequences, Index count, Workspace& scratch) {
    const auto inner = scratch.mark();
    const auto rows = [&](MatrixView<const T> all, Index b) { return all.middle_rows(x.begin(b), m.length); };
    if (m.path != BandPath::transform) {
      for (Index i = 0; i < count; ++i) {
        const Index b = sequences[i];
        T *a = sums.row(b), *h = a + cols;
        if (m.path == BandPath::complement) std::swap(a, h);
        simd::band_products<T>(m.waves, x[b], rows(dy, b), a, h, scratch);
      }
      return;
    }
    const MatrixView<T> low0 = scratch.matrix<T>(m.length, cols), low1 = scratch.matrix<T>(m.length, cols);
    for (Index i = 0; i < count; i += 2) {
      const Index b = sequences[i], c = i + 1 < count ? sequences[i + 1] : b;
      if (c == b) {
        simd::fft_filter<T>(*m.plan, m.gains, x[b], low0, false, scratch);
      } else {
        simd::fft_filter<T>(*m.plan, m.gains, x[b], x[c], low0, low1, false, scratch);
      }
      for (Index n = 0; n < m.length; ++n) {
        low_high_products<T>(rows(dy, b).row(n), x[b].row(n), low0.row(n), sums.row(b), sums.row(b) + cols, cols);
        if (c != b) low_high_products<T>(rows(dy, c).row(n), x[c].row(n), low1.row(n), sums.row(c), sums.row(c) + cols, cols);
      }
    }
  });
  for (Index b = 0; b < x.size(); ++b)
    if (x.length(b) > 0) add(b, 0, sums.row(b), sums.row(b) + cols);
}

}  // namespace detail

/// y <- alpha . low + beta . high.
template <Real T>
void band_mix(JaggedView<const T> x, BandGains<const T> alpha, BandGains<const T> beta, const Band& band,
              const SpectralPlans<T>& plans, MatrixView<T> y, Workspace& ws, BandPath path = BandPath::fastest) {
  constexpr const char* name = "band_mix";
  detail::check_band_mix(name, x, band, plans);
  detail::check_band_gains(name, "alpha", x, alpha);
  detail::check_band_gains(name, "beta", x, beta);
  check_shape(name, "y", y, x.values().rows(), x.cols());
  if (x.values().empty()) return;
  if (!detail::even_gains(alpha) || !detail::even_gains(beta)) {
    detail::band_low<T>(x, band, path, plans, false, y, ws);
    return detail::for_gained_rows<T>(x, alpha, beta, ws, [&](Index r, const T* a, const T* g) {
      detail::mix_row<T>(x.values().row(r), a, g, y.row(r), x.cols());
    });
  }
  detail::for_bands<T>(
      x, band, path, plans, ws, [&](const detail::BandMethod<T>& m, const Index* sequences, Index count, Workspace& scratch) {
        if (m.path != BandPath::transform)
          return detail::band_mix_projected<T>(m, x, sequences, count, alpha, beta, false, y, scratch);
        detail::band_transform<T>(m, x, sequences, count, false, y, scratch);
        const auto mark = scratch.mark();
        const Index cols = x.cols();
        T *const spread_a = scratch.take<T>(cols), *const spread_b = scratch.take<T>(cols);
        for (Index i = 0; i < count; ++i) {
          const Index b = sequences[i];
          const T *const a = detail::gain_row(alpha, alpha.row_of(b, 0, 0), cols, spread_a), *const g = detail::gain_row(
                                                                                                 beta, beta.row_of(b, 0, 0), cols,
                                                                                                 spread_b);
          for (Index n = 0; n < m.length; ++n) detail::mix_row<T>(x[b].row(n), a, g, y.row(x.begin(b) + n), cols);
        }
      });
}

/// Adds to dx, dalpha and dbeta, each unless empty.
template <Real T>
void band_mix_backward(JaggedView<const T> x, BandGains<const T> alpha, BandGains<const T> beta, const Band& band,
                       const SpectralPlans<T>& plans, MatrixView<const T> dy, MatrixView<T> dx, BandGains<T> dalpha,
                       BandGains<T> dbeta, Workspace& ws, BandPath path = BandPath::fastest) {
  constexpr const char* name = "band_mix_backward";
  detail::check_band_mix(name, x, band, plans);
  detail::check_band_gains(name, "alpha", x, alpha);
  detail::check_band_gains(name, "beta", x, beta);
  check_shape(name, "dy", dy, x.values().rows(), x.cols());
  if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), x.cols());
  detail::check_band_gradient(name, "dalpha", alpha, dalpha);
  detail::check_band_gradient(name, "dbeta", beta, dbeta);
  if (x.values().empty()) return;
  if (!dalpha.values.empty() || !dbeta.values.empty())
    detail::band_gain_gradients<T>(x, band, path, plans, dy, dalpha, dbeta, ws);
  if (dx.empty()) return;
  const auto mark = ws.mark();
  const JaggedView<const T> g = x.with_values(dy);
  const Index cols = x.cols();
  if (!detail::even_gains(alpha) || !detail::even_gains(beta)) {
    const MatrixView<T> gated = ws.matrix<T>(dy.rows(), cols);
    detail::for_gained_rows<T>(x, alpha, beta, ws, [&](Index r, const T* a, const T* h) {
      detail::gate_row<T>(dy.row(r), a, h, gated.row(r), dx.row(r), cols);
    });
    return detail::band_low<T>(x.with_values(MatrixView<const T>(gated)), band, path, plans, true, dx, ws);
  }
  detail::for_bands<T>(
      x, band, path, plans, ws, [&](const detail::BandMethod<T>& m, const Index* sequences, Index count, Workspace& scratch) {
        if (m.path != BandPath::transform)
          return detail::band_mix_projected<T>(m, g, sequences, count, alpha, beta, true, dx, scratch);
        const auto inner = scratch.mark();
        T *const spread_a = scratch.take<T>(cols), *const spread_b = scratch.take<T>(cols);
        const MatrixView<T> gated = scratch.matrix<T>(2 * m.length, cols);
        for (Index i = 0; i < count; i += 2) {
          for (Index j = i; j < std::min(i + 2, count); ++j) {
            const Index b = sequences[j];
            const T *const a = detail::gain_row(alpha, alpha.row_of(b, 0, 0), cols, spread_a), *const h = detail::gain_row(
                                                                                                   beta, beta.row_of(b, 0, 0),
                                                                                                   cols, spread_b);
            for (Index n = 0; n < m.length; ++n)
              detail::gate_row<T>(g[b].row(n), a, h, gated.row((j - i) * m.length + n), dx.row(g.begin(b) + n), cols);
          }
          const auto rows = [&](Index j) { return dx.middle_rows(g.begin(sequences[j]), m.length); };
          const MatrixView<const T> low = gated;
          if (i + 1 == count) {
            simd::fft_filter<T>(*m.plan, m.gains, low.middle_rows(0, m.length), rows(i), true, scratch);
          } else {
            simd::fft_filter<T>(*m.plan, m.gains, low.middle_rows(0, m.length), low.middle_rows(m.length, m.length), rows(i),
                                rows(i + 1), true, scratch);
          }
        }
      });
}

}  // namespace RECOPS_ABI
}  // namespace recops
