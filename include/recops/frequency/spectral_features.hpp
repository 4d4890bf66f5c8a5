/// @file   recops/frequency/spectral_features.hpp
/// @brief  How strongly a behaviour series repeats at each period: amplitudes or power of its spectrum, and a linear map of spectra.
///
///     amplitude A_k = sqrt(|X_k|^2 + eps)     log_amplitude ln(1 + A_k)     power |X_k|^2      bin_linear: Y_k = M X_k, M complex
///
/// Feed it uniformly sampled counts (behaviours per day, say), not event by event: then bin k is the period of L / k samples. Phase
/// is not offered: it jumps.
///
/// Shapes      x [total, D] with offsets [B + 1]   out [sum_b K_b, D]   spectra two planes [rows, D]   M two planes [E, D]
/// Edge cases  an empty sequence has no bins.   A NaN or infinity stays in its sequence and channel.
/// Cost        2.5 L log2 L flops per channel; bin_linear 8 D E per bin.
/// Errors      Error if shapes, plans or options disagree; outputs untouched.
/// Gradient    *adds*.
/// Reference   FIM, arXiv 2504.17814, uses spectra of searched behaviours; its equations are not public, these are our reconstruction.
#pragma once
#include <recops/frequency/fourier.hpp>
#include <recops/simd/gemm.hpp>
#include <recops/simd/math.hpp>

namespace recops {

enum class SpectralFeature : unsigned char { amplitude, log_amplitude, power };

struct SpectralFeatureOptions {
  SpectralFeature feature = SpectralFeature::amplitude;
  FftNorm norm = FftNorm::backward;
  double epsilon = 0;  ///< of the amplitude, keeps its derivative finite; 0: 1e-6 in float, 1e-12 in double
};

inline namespace RECOPS_ABI {

namespace detail {
template <class T>
T feature_epsilon(const char* name, const SpectralFeatureOptions& o) {
  using Limits = std::numeric_limits<T>;
  const double epsilon = o.epsilon != 0 ? o.epsilon : std::is_same_v<T, float> ? 1e-6 : 1e-12;
  check_option(name, "epsilon", epsilon >= static_cast<double>(Limits::min()) && epsilon <= static_cast<double>(Limits::max()),
               "epsilon > 0 that the type can hold, or 0", o.epsilon);
  check_option(name, "feature", o.feature <= SpectralFeature::power, "a SpectralFeature", static_cast<double>(o.feature));
  return static_cast<T>(epsilon);
}
}  // namespace detail

/// out <- the feature of every bin and channel.
template <Real T>
void spectral_features(JaggedView<const T> x, const SpectralFeatureOptions& options, const SpectralPlans<T>& plans,
                       MatrixView<T> out, Workspace& ws) {
  constexpr const char* name = "spectral_features";
  check_jagged(name, "x", x, any_size, any_size);
  detail::check_plans(name, x, plans);
  const T epsilon = detail::feature_epsilon<T>(name, options);
  check_shape(name, "out", out, spectrum_rows(x), x.cols());
  const auto mark = ws.mark();
  const MatrixView<T> im = ws.matrix<T>(out.rows(), out.cols());
  rfft_seq<T>(x, plans, options.norm, {out, im}, ws);
  for (Index k = 0; k < out.rows(); ++k) {
    T* const to = out.row(k);
    const T* const i = im.row(k);
    for (Index d = 0; d < out.cols(); ++d) {
      const T power = to[d] * to[d] + i[d] * i[d];
      to[d] = options.feature == SpectralFeature::power ? power : std::sqrt(power + epsilon);
      if (options.feature == SpectralFeature::log_amplitude) to[d] = std::log1p(to[d]);
    }
  }
}

/// dx += the gradient, from x and that of out.
template <Real T>
void spectral_features_backward(JaggedView<const T> x, const SpectralFeatureOptions& options, const SpectralPlans<T>& plans,
                                MatrixView<const T> dout, MatrixView<T> dx, Workspace& ws) {
  constexpr const char* name = "spectral_features_backward";
  check_jagged(name, "x", x, any_size, any_size);
  detail::check_plans(name, x, plans);
  const T epsilon = detail::feature_epsilon<T>(name, options);
  check_shape(name, "dout", dout, spectrum_rows(x), x.cols());
  check_shape(name, "dx", dx, x.values().rows(), x.cols());
  const auto mark = ws.mark();
  const SpectrumView<T> z = {ws.matrix<T>(dout.rows(), dout.cols()), ws.matrix<T>(dout.rows(), dout.cols())};
  rfft_seq<T>(x, plans, options.norm, z, ws);
  for (Index k = 0; k < dout.rows(); ++k) {
    for (Index d = 0; d < dout.cols(); ++d) {
      T &re = z.re(k, d), &im = z.im(k, d);
      T factor = 2 * dout(k, d);
      if (options.feature != SpectralFeature::power) {
        const T a = std::sqrt(re * re + im * im + epsilon);
        factor = dout(k, d) / a;
        if (options.feature == SpectralFeature::log_amplitude) factor /= 1 + a;
      }
      re *= factor;
      im *= factor;
    }
  }
  rfft_seq_backward<T>({z.re, z.im}, plans, options.norm, x.with_values(dx), ws);
}

/// out `[rows, E]` <- x `[rows, D]` with one complex matrix, `weight [E, D]`, for every bin.
template <Real T>
void bin_linear(SpectrumView<const T> x, SpectrumView<const T> weight, SpectrumView<T> out, Workspace& ws) {
  constexpr const char* name = "bin_linear";
  check_shape(name, "x.re", x.re, any_size, any_size);
  check_shape(name, "x.im", x.im, x.re.rows(), x.re.cols());
  check_shape(name, "weight.re", weight.re, any_size, x.re.cols());
  check_shape(name, "weight.im", weight.im, weight.re.rows(), x.re.cols());
  check_shape(name, "out.re", out.re, x.re.rows(), weight.re.rows());
  check_shape(name, "out.im", out.im, x.re.rows(), weight.re.rows());
  const auto mark = ws.mark();
  const MatrixView<T> part = ws.matrix<T>(out.re.rows(), out.re.cols());
  simd::gemm<T>(simd::plain(x.im), simd::transposed(weight.im), {}, part, ws);
  simd::gemm<T>(simd::plain(x.re), simd::transposed(weight.re), {}, out.re, ws);
  for (Index r = 0; r < part.rows(); ++r) simd::axpy(T(-1), part.row(r), out.re.row(r), part.cols());
  simd::gemm<T>(simd::plain(x.re), simd::transposed(weight.im), {}, out.im, ws);
  simd::gemm<T>(simd::plain(x.im), simd::transposed(weight.re), {.accumulate = true}, out.im, ws);
}

/// dx += M^H G, dweight += sum over bins of G X^H. Either pair may be empty.
template <Real T>
void bin_linear_backward(SpectrumView<const T> x, SpectrumView<const T> weight, SpectrumView<const T> dout, SpectrumView<T> dx,
                         SpectrumView<T> dweight, Workspace& ws) {
  constexpr const char* name = "bin_linear_backward";
  check_shape(name, "x.re", x.re, any_size, any_size);
  check_shape(name, "x.im", x.im, x.re.rows(), x.re.cols());
  check_shape(name, "weight.re", weight.re, any_size, x.re.cols());
  check_shape(name, "weight.im", weight.im, weight.re.rows(), x.re.cols());
  check_shape(name, "dout.re", dout.re, x.re.rows(), weight.re.rows());
  check_shape(name, "dout.im", dout.im, x.re.rows(), weight.re.rows());
  const bool inner = !dx.re.empty() || !dx.im.empty(), learns = !dweight.re.empty() || !dweight.im.empty();
  for (const auto& m : {dx.re, dx.im})
    if (inner) check_shape(name, "dx", m, x.re.rows(), x.re.cols());
  for (const auto& m : {dweight.re, dweight.im})
    if (learns) check_shape(name, "dweight", m, weight.re.rows(), weight.re.cols());
  const auto mark = ws.mark();
  const auto subtract = [&](auto a, auto b, MatrixView<T> to) {
    const auto own = ws.mark();
    const MatrixView<T> part = ws.matrix<T>(to.rows(), to.cols());
    simd::gemm<T>(a, b, {}, part, ws);
    for (Index r = 0; r < to.rows(); ++r) simd::axpy(T(-1), part.row(r), to.row(r), to.cols());
  };
  const simd::Epilogue<T> add = {.accumulate = true};
  if (inner) {
    simd::gemm<T>(simd::plain(dout.re), simd::plain(weight.re), add, dx.re, ws);
    simd::gemm<T>(simd::plain(dout.im), simd::plain(weight.im), add, dx.re, ws);
    simd::gemm<T>(simd::plain(dout.im), simd::plain(weight.re), add, dx.im, ws);
    subtract(simd::plain(dout.re), simd::plain(weight.im), dx.im);
  }
  if (learns) {
    simd::gemm<T>(simd::transposed(dout.re), simd::plain(x.re), add, dweight.re, ws);
    simd::gemm<T>(simd::transposed(dout.im), simd::plain(x.im), add, dweight.re, ws);
    simd::gemm<T>(simd::transposed(dout.im), simd::plain(x.re), add, dweight.im, ws);
    subtract(simd::transposed(dout.re), simd::plain(x.im), dweight.im);
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
