/// @file   recops/frequency/autocorr_attention.hpp
/// @brief  Attention by autocorrelation: the values delayed by the lags at which queries and keys match best (FEARec).
///
///     r_t = mean_c sum_n q'_(n+t),c k_n,c     lags = the m largest r, m = max(1, floor(factor ln L))     p = softmax(r[lags])
///     y_n = sum_i p_i v_((n + lag_i) mod L)
///
/// q' holds the bins of one layer of a ramp (slide_filter.hpp) only. r comes from one transform of the mean over channels of
/// q' . conj k, always of length L (the released code loses one lag for odd L).
///
/// Shapes      q, k, v, y [total, D] with the same offsets [B + 1]   lags, weights [B, M], M the lags of the longest sequence
/// Lags        of each sequence by itself; with `shared_lags` (training, as the authors) those of the mean of r over all sequences
///             of one length whose r is finite, at which every sequence takes its own r. Ties to the lower lag.
/// Edge cases  an empty sequence: nothing.   A NaN or infinity makes its own sequence NaN, no other.
/// Cost        2.5 L log2 L flops per channel for q and for k, 2 m L per channel of v.
/// Errors      Error if shapes, plans or options disagree; outputs untouched.
/// Gradient    of q, k and v (the choice of lags is not differentiated); *adds*.
/// Reference   Du et al., FEARec, SIGIR 2023, arXiv 2304.09184, and the authors' code.
#pragma once
#include <recops/frequency/fourier.hpp>
#include <recops/frequency/slide_filter.hpp>
#include <recops/nn/linear.hpp>

namespace recops {

struct AutocorrOptions {
  double factor = 1;            ///< of ln L, > 0
  bool shared_lags = false;     ///< one choice of lags per length instead of one per sequence
  Index layer = 0, layers = 1;  ///< whose window of bins, of `slide_windows` with mode down_down: the dynamic one if `ratio` >
  double ratio = 1;             ///< 1 / layers, else the static one
};

inline namespace RECOPS_ABI {

/// m, the number of lags of a sequence of `length` rows.
inline Index autocorr_lags(Index length, double factor) {
  if (length == 0) return 0;
  const double most = static_cast<double>(length);  // before the conversion, which knows no larger numbers than an Index
  return std::max(static_cast<Index>(std::min(factor * std::log(most), most)), Index{1});
}

namespace detail {

inline BinWindow autocorr_window(Index length, const AutocorrOptions& o) {
  const SlideWindows w = slide_windows(spectrum_bins(length), {.layer = o.layer, .layers = o.layers, .ratio = o.ratio});
  return o.ratio > 1 / static_cast<double>(o.layers) ? w.dynamic_window : w.static_window;
}

template <class T>
void check_autocorr(const char* name, JaggedView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                    const AutocorrOptions& o, const SpectralPlans<T>& plans) {
  check_jagged(name, "q", q, any_size, any_size);
  check_shape(name, "k", k, q.values().rows(), q.cols());
  check_shape(name, "v", v, q.values().rows(), any_size);
  check_option(name, "factor", o.factor > 0 && std::isfinite(o.factor), "factor > 0", o.factor);
  slide_windows(1, {.layer = o.layer, .layers = o.layers, .ratio = o.ratio});
  check_plans(name, q, plans);
}

/// The m largest of r, largest first, ties to the lower lag; NaN counts as the least.
template <class T>
void largest_lags(const T* r, Index length, Index m, std::int32_t* lags, std::int32_t* all) {
  for (Index t = 0; t < length; ++t) all[t] = static_cast<std::int32_t>(t);
  std::partial_sort(all, all + m, all + length, [r](std::int32_t a, std::int32_t b) {
    const T x = r[a], y = r[b];
    const bool nx = std::isnan(x), ny = std::isnan(y);
    if (nx || ny) return nx == ny ? a < b : ny;
    return x != y ? x > y : a < b;
  });
  std::copy_n(all, m, lags);
}

}  // namespace detail

/// y <- attended values; lags and weights are what backward needs (entries past a sequence's m are 0).
template <Real T>
void autocorr_attention(JaggedView<const T> q, MatrixView<const T> k, MatrixView<const T> v, const AutocorrOptions& options,
                        const SpectralPlans<T>& plans, MatrixView<std::int32_t> lags, MatrixView<T> weights, MatrixView<T> y,
                        Workspace& ws) {
  constexpr const char* name = "autocorr_attention";
  detail::check_autocorr(name, q, k, v, options, plans);
  const Index most = autocorr_lags(q.longest(), options.factor), batch = q.size(), cols = v.cols();
  check_shape(name, "lags", lags, batch, most);
  check_shape(name, "weights", weights, batch, most);
  check_shape(name, "y", y, v.rows(), cols);
  const auto mark = ws.mark();
  const MatrixView<T> r = ws.matrix<T>(q.values().rows(), 1);
  const detail::SequenceSpectra<T> s(q, plans, ws);
  for (Index b = 0; b < batch; ++b) {
    std::fill_n(lags.row(b), most, 0);
    std::fill_n(weights.row(b), most, T(0));
  }
  ws.parallel_for(batch, [&](Index b, Workspace& scratch) {
    const auto inner = scratch.mark();
    const Index length = q.length(b), bins = detail::spectrum_bins(length);
    if (length == 0) return;
    const SpectrumView<T> fq = {scratch.matrix<T>(bins, q.cols()), scratch.matrix<T>(bins, q.cols())};
    const SpectrumView<T> fk = {scratch.matrix<T>(bins, q.cols()), scratch.matrix<T>(bins, q.cols())};
    const SpectrumView<T> c = {scratch.matrix<T>(bins, 1), scratch.matrix<T>(bins, 1)};
    simd::rfft<T>(plans[length], q[b], s.rows(k, b), fq, fk, FftNorm::backward, scratch);
    const BinWindow window = detail::autocorr_window(length, options);
    const T share = T(1) / static_cast<T>(std::max(q.cols(), Index{1}));
    for (Index i = 0; i < bins; ++i) {
      const bool in = window.contains(i);
      const Index n = in ? q.cols() : 0;
      c.re(i, 0) = share * (simd::dot(fq.re.row(i), fk.re.row(i), n) + simd::dot(fq.im.row(i), fk.im.row(i), n));
      c.im(i, 0) = share * (simd::dot(fq.im.row(i), fk.re.row(i), n) - simd::dot(fq.re.row(i), fk.im.row(i), n));
    }
    simd::irfft<T>(plans[length], SpectrumView<const T>{c.re, c.im}, s.rows(r, b), FftNorm::backward, scratch);
  });
  for (Index g = 0; g < s.groups.groups; ++g) {
    const auto inner = ws.mark();
    const Index length = s.groups.length(g, q), m = autocorr_lags(length, options.factor);
    auto* const all = ws.take<std::int32_t>(length);
    T* const mean = ws.take<T>(length);
    std::fill_n(mean, length, T(0));
    const Index* const first = s.groups.order + s.groups.first[g];
    const Index* const last = s.groups.order + s.groups.first[g + 1];
    if (options.shared_lags) {
      for (const Index* b = first; b < last; ++b) {
        const T* const own = r.row(q.begin(*b));
        bool finite = true;
        for (Index t = 0; t < length; ++t) finite = finite && std::isfinite(own[t]);
        if (finite) simd::add(own, mean, length);
      }
    }
    for (const Index* b = first; b < last; ++b) {
      const T* const own = r.row(q.begin(*b));
      detail::largest_lags(options.shared_lags ? mean : own, length, m, lags.row(*b), all);
      T* const p = weights.row(*b);
      T top = own[lags(*b, 0)], sum = 0;
      for (Index i = 1; i < m; ++i) top = std::max(top, own[lags(*b, i)]);
      for (Index i = 0; i < m; ++i) sum += p[i] = std::exp(own[lags(*b, i)] - top);
      for (Index i = 0; i < m; ++i) p[i] /= sum;
    }
  }
  ws.parallel_for(batch, [&](Index b, Workspace&) {
    const Index length = q.length(b), m = autocorr_lags(length, options.factor);
    for (Index n = 0; n < length; ++n) {
      T* const out = y.row(q.begin(b) + n);
      std::fill_n(out, cols, T(0));
      for (Index i = 0; i < m; ++i) {
        const Index from = n + lags(b, i) < length ? n + lags(b, i) : n + lags(b, i) - length;
        simd::axpy(weights(b, i), v.row(q.begin(b) + from), out, cols);
      }
    }
  });
}

/// Adds to dq, dk and dv, each unless empty.
template <Real T>
void autocorr_attention_backward(JaggedView<const T> q, MatrixView<const T> k, MatrixView<const T> v,
                                 const AutocorrOptions& options, const SpectralPlans<T>& plans,
                                 MatrixView<const std::int32_t> lags, MatrixView<const T> weights, MatrixView<const T> dy,
                                 MatrixView<T> dq, MatrixView<T> dk, MatrixView<T> dv, Workspace& ws) {
  constexpr const char* name = "autocorr_attention_backward";
  detail::check_autocorr(name, q, k, v, options, plans);
  const Index most = autocorr_lags(q.longest(), options.factor), batch = q.size(), cols = v.cols();
  check_shape(name, "lags", lags, batch, most);
  check_shape(name, "weights", weights, batch, most);
  for (Index b = 0; b < batch; ++b)
    check_indices(name, "lags", IndexView(lags.row(b), autocorr_lags(q.length(b), options.factor)), q.length(b));
  check_shape(name, "dy", dy, v.rows(), cols);
  if (!dq.empty()) check_shape(name, "dq", dq, v.rows(), q.cols());
  if (!dk.empty()) check_shape(name, "dk", dk, v.rows(), q.cols());
  if (!dv.empty()) check_shape(name, "dv", dv, v.rows(), cols);
  ws.parallel_for(batch, [&](Index b, Workspace& scratch) {
    const auto mark = scratch.mark();
    const Index length = q.length(b), begin = q.begin(b), m = autocorr_lags(length, options.factor), width = q.cols();
    if (length == 0) return;
    T* const dp = scratch.take<T>(m);
    T mean = 0;
    for (Index i = 0; i < m; ++i) {
      dp[i] = 0;
      for (Index n = 0; n < length; ++n) {
        const Index from = n + lags(b, i) < length ? n + lags(b, i) : n + lags(b, i) - length;
        dp[i] += simd::dot(dy.row(begin + n), v.row(begin + from), cols);
        if (!dv.empty()) simd::axpy(weights(b, i), dy.row(begin + n), dv.row(begin + from), cols);
      }
      mean += weights(b, i) * dp[i];
    }
    if ((dq.empty() && dk.empty()) || width == 0) return;
    const Index bins = detail::spectrum_bins(length);
    const MatrixView<T> dr = scratch.matrix<T>(length, 1);
    std::fill_n(dr.data(), length, T(0));
    for (Index i = 0; i < m; ++i) dr(lags(b, i), 0) += weights(b, i) * (dp[i] - mean) / static_cast<T>(width);
    const SpectrumView<T> c = {scratch.matrix<T>(bins, 1), scratch.matrix<T>(bins, 1)};
    simd::rfft<T>(plans[length], MatrixView<const T>(dr), c, FftNorm::backward, scratch);
    const BinWindow window = detail::autocorr_window(length, options);
    const SpectrumView<T> f = {scratch.matrix<T>(bins, width), scratch.matrix<T>(bins, width)};
    const MatrixView<T> d = scratch.matrix<T>(length, width);
    // dq = c * k, dk = c correlated with q', both in the window's bins: `sign` conjugates c.
    const auto through = [&](MatrixView<const T> other, T sign, MatrixView<T> to) {
      simd::rfft<T>(plans[length], other.middle_rows(begin, length), f, FftNorm::backward, scratch);
      for (Index i = 0; i < bins; ++i) {
        const T re = window.contains(i) ? c.re(i, 0) : T(0), im = window.contains(i) ? sign * c.im(i, 0) : T(0);
        for (Index j = 0; j < width; ++j) {
          const T x = f.re(i, j), y = f.im(i, j);
          f.re(i, j) = re * x - im * y;
          f.im(i, j) = re * y + im * x;
        }
      }
      simd::irfft<T>(plans[length], SpectrumView<const T>{f.re, f.im}, d, FftNorm::backward, scratch);
      for (Index n = 0; n < length; ++n) simd::add(d.row(n), to.row(begin + n), width);
    };
    if (!dq.empty()) through(k, T(1), dq);
    if (!dk.empty()) through(q.values(), T(-1), dk);
  });
}

/// FEARec's frequency branch with its projections: a sequence layer `[total, D]` to `[total, D]`. (The authors blend it with masked
/// attention; a `BsarecLayer` shows how.)
template <class T>
struct AutocorrAttention {
  Linear<T> query, key, value, dense;  ///< [D, D] each
  AutocorrOptions options;             ///< `shared_lags` is used in training only
  SpectralPlans<T> plans;

  AutocorrAttention() = default;
  /// For sequences of up to `length` rows. Throws `Error` for options out of range.
  AutocorrAttention(Index width, Index length, const AutocorrOptions& o, Random& random)
      : query(checked_size("AutocorrAttention", "width", width), width, random),
        key(width, width, random),
        value(width, width, random),
        dense(width, width, random),
        options(o),
        plans(checked_size("AutocorrAttention", "length", length)) {
    check_option("AutocorrAttention", "factor", o.factor > 0 && std::isfinite(o.factor), "factor > 0", o.factor);
    slide_windows(1, {.layer = o.layer, .layers = o.layers, .ratio = o.ratio});
  }
  static constexpr auto fields() {
    return std::tuple{layer("query", &AutocorrAttention::query), layer("key", &AutocorrAttention::key),
                      layer("value", &AutocorrAttention::value), layer("dense", &AutocorrAttention::dense)};
  }
  Index output_cols(Index input_cols) const {
    query.output_cols(input_cols);
    key.output_cols(input_cols);
    return dense.output_cols(value.output_cols(input_cols));
  }
  struct Saved {
    Matrix<T> q, k, v, attended, weights;
    Matrix<std::int32_t> lags;
  };
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("AutocorrAttention", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const Index rows = y.rows(), width = y.cols(), most = autocorr_lags(x.longest(), options.factor);
    const MatrixView<T> q = ws.matrix<T>(rows, width), k = ws.matrix<T>(rows, width), v = ws.matrix<T>(rows, width);
    query.forward(x.values(), q, ws);
    key.forward(x.values(), k, ws);
    value.forward(x.values(), v, ws);
    AutocorrOptions own = options;
    own.shared_lags = false;
    autocorr_attention<T>(x.with_values(MatrixView<const T>(q)), k, v, own, plans, ws.matrix<std::int32_t>(x.size(), most),
                          ws.matrix<T>(x.size(), most), y, ws);
    for (Index r = 0; r < rows; ++r) std::copy_n(y.row(r), width, q.row(r));
    dense.forward(q, y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("AutocorrAttention", x, MatrixView<const T>(y));
    const Index rows = y.rows(), width = y.cols(), most = autocorr_lags(x.longest(), options.factor);
    for (Matrix<T>* m : {&saved.q, &saved.k, &saved.v, &saved.attended}) m->resize(rows, width);
    saved.weights.resize(x.size(), most);
    saved.lags.resize(x.size(), most);
    query.forward(x.values(), saved.q, ws);
    key.forward(x.values(), saved.k, ws);
    value.forward(x.values(), saved.v, ws);
    autocorr_attention<T>(x.with_values(MatrixView<const T>(saved.q)), saved.k.view(), saved.v.view(), options, plans, saved.lags,
                          saved.weights, saved.attended, ws);
    dense.forward(saved.attended, y, ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, AutocorrAttention& gradient,
                Workspace& ws) const {
    constexpr const char* name = "AutocorrAttention::backward";
    check(name, x, dy);
    const Index rows = dy.rows(), width = dy.cols();
    if (!dx.empty()) check_shape(name, "dx", dx, rows, width);
    for (const Matrix<T>* m : {&saved.q, &saved.k, &saved.v, &saved.attended}) check_shape(name, "saved", m->view(), rows, width);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    MatrixView<T> d[4];
    for (MatrixView<T>& m : d) {
      m = ws.matrix<T>(rows, width);
      std::fill_n(m.data(), rows * width, T(0));
    }
    dense.backward(saved.attended, dy, {}, d[3], gradient.dense, ws);
    autocorr_attention_backward<T>(x.with_values(saved.q.view()), saved.k.view(), saved.v.view(), options, plans,
                                   saved.lags.view(), saved.weights.view(), d[3], d[0], d[1], d[2], ws);
    query.backward(x.values(), d[0], {}, dx, gradient.query, ws);
    key.backward(x.values(), d[1], {}, dx, gradient.key, ws);
    value.backward(x.values(), d[2], {}, dx, gradient.value, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, any_size);
    check_option(name, "factor", options.factor > 0 && std::isfinite(options.factor), "factor > 0", options.factor);
    output_cols(x.cols());
    detail::check_plans(name, x, plans);
    check_shape(name, "y", y, x.values().rows(), x.cols());
  }
};

/// Serving form: the projections packed. Immutable; threads may share it.
template <class T, class S = T>
struct FrozenAutocorrAttention {
  FrozenDense<T, S> query, key, value, dense;
  AutocorrOptions options;
  SpectralPlans<T> plans;
  Index output_cols(Index input_cols) const { return dense.output_cols(value.output_cols(input_cols)); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenAutocorrAttention";
    check_jagged(name, "x", x, any_size, any_size);
    detail::check_plans(name, x, plans);
    check_shape(name, "y", y, x.values().rows(), output_cols(x.cols()));
    const auto mark = ws.mark();
    const Index rows = y.rows(), width = y.cols(), most = autocorr_lags(x.longest(), options.factor);
    const MatrixView<T> q = ws.matrix<T>(rows, width), k = ws.matrix<T>(rows, width), v = ws.matrix<T>(rows, width);
    query.forward(x.values(), q, ws);
    key.forward(x.values(), k, ws);
    value.forward(x.values(), v, ws);
    autocorr_attention<T>(x.with_values(MatrixView<const T>(q)), k, v, options, plans, ws.matrix<std::int32_t>(x.size(), most),
                          ws.matrix<T>(x.size(), most), y, ws);
    for (Index r = 0; r < rows; ++r) std::copy_n(y.row(r), width, q.row(r));
    dense.forward(q, y, ws);
  }
};
template <class T, class S = T>
FrozenAutocorrAttention<T, S> freeze(const AutocorrAttention<T>& layer, Weights<S> weights = {}) {
  AutocorrOptions own = layer.options;
  own.shared_lags = false;
  return {freeze(layer.query, weights),
          freeze(layer.key, weights),
          freeze(layer.value, weights),
          freeze(layer.dense, weights),
          own,
          layer.plans};
}

}  // namespace RECOPS_ABI
}  // namespace recops
