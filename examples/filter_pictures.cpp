// What the frequency operators pass, seen from outside: an impulse goes in, and the spectrum of what comes out is the gain. Draws the
// pictures of docs/spectral_filter.md, docs/frequency_bands.md and docs/periodicity.md and prints what they show.
//
//     filter_pictures [--output FOLDER]      --output docs redraws the pages' pictures
#include <cmath>
#include <cstdio>
#include <recops/frequency/autocorr_attention.hpp>
#include <recops/frequency/bsarec_layer.hpp>
#include <recops/frequency/slide_filter.hpp>
#include <recops/frequency/spectral_features.hpp>
#include <string>

#include "examples/common/cli.hpp"
#include "examples/common/svg.hpp"

using namespace recops;

namespace {

constexpr Index length = 50;

/// |rfft| of what `filter(x, y)` makes of an impulse in the middle, bin by bin.
template <class F>
examples::SvgSeries gain_of(const std::string& name, F&& filter) {
  Workspace ws;
  const SpectralPlans<double> plans = SpectralPlans<double>::only(length);
  Matrix<double> x(length, 1, 0.0), y(length, 1);
  x(length / 2, 0) = 1;
  filter(JaggedView<const double>(x.view()), y.view(), ws);
  Matrix<double> gain(length / 2 + 1, 1);
  spectral_features<double>(y.view(), {.epsilon = 1e-24}, plans, gain, ws);
  examples::SvgSeries s{.name = name};
  for (Index k = 0; k < gain.rows(); ++k) {
    s.x.push_back(static_cast<double>(k));
    s.y.push_back(gain(k, 0));
  }
  return s;
}

examples::SvgChart bands() {
  examples::SvgChart chart{.title = "Bands of 50 rows, 3 bins kept", .x_label = "bin (waves in the sequence)", .y_label = "gain"};
  const SpectralPlans<double> plans = SpectralPlans<double>::only(length);
  const auto mix = [&](const char* name, double alpha, double beta) {
    const Matrix<double> a(1, 1, alpha), b(1, 1, beta);
    chart.series.push_back(gain_of(name, [&](JaggedView<const double> x, MatrixView<double> y, Workspace& ws) {
      band_mix<double>(x, {a.view()}, {b.view()}, {.keep = 3}, plans, y, ws);
    }));
  };
  mix("low", 1, 0);
  mix("high", 0, 1);
  mix("FARM, alpha 0.8, beta 0.35", 0.8, 0.35);
  Random random(1);
  BsarecFilter<double> rescaler(1, length, {.keep = 3}, {}, random);
  rescaler.sqrt_beta[0] = 1.3;
  chart.series.push_back(gain_of("BSARec, b 1.3", [&](auto x, auto y, Workspace& ws) { rescaler.forward(x, y, ws); }));
  return chart;
}

examples::SvgChart slides() {
  examples::SvgChart chart{.title = "SLIME4Rec: both windows of four layers, gains 1 and 0.5",
                           .x_label = "bin (waves in the sequence)",
                           .y_label = "gain"};
  Random random(1);
  for (Index i = 0; i < 4; ++i) {
    SlideFilter<double> layer(1, {.length = length, .layer = i, .layers = 4}, random);
    for (Index k = 0; k < layer.bins(); ++k) {
      layer.complex_weight_G(k, 0) = 1;
      layer.complex_weight_L(k, 0) = 0.5;
      layer.complex_weight_G(k, 1) = layer.complex_weight_L(k, 1) = 0;
    }
    chart.series.push_back(
        gain_of("layer " + std::to_string(i), [&](auto x, auto y, Workspace& ws) { layer.forward(x, y, ws); }));
    const SlideWindows w = layer.windows();
    std::printf("slide layer %td: dynamic bins [%td, %td), static bins [%td, %td)\n", i, w.dynamic_window.first,
                w.dynamic_window.last, w.static_window.first, w.static_window.last);
  }
  return chart;
}

examples::SvgChart learnable() {
  examples::SvgChart chart{.title = "A learnable filter: sequences of 50, and of 25 rows by either fit",
                           .x_label = "bin (waves in the sequence)",
                           .y_label = "gain"};
  Random random(1);
  SpectralFilter<double> filter(1, {.length = length}, random);
  for (Index k = 0; k < filter.bins(); ++k) {  // damps the fast, keeps the slow and a weekly wave
    const double wave = static_cast<double>(k) - 7.0;
    filter.complex_weight(k, 0) = std::exp(-0.15 * static_cast<double>(k)) + 0.8 * std::exp(-wave * wave / 2);
    filter.complex_weight(k, 1) = 0;
  }
  chart.series.push_back(gain_of("50 rows", [&](auto x, auto y, Workspace& ws) { filter.forward(x, y, ws); }));
  for (const GainFit fit : {GainFit::crop, GainFit::interpolate}) {
    filter.options.fit = fit;
    Workspace ws;
    const SpectralPlans<double> plans = SpectralPlans<double>::only(25);
    Matrix<double> x(25, 1, 0.0), y(25, 1), gain(13, 1);
    x(12, 0) = 1;
    filter.forward(x.view(), y, ws);
    spectral_features<double>(y.view(), {.epsilon = 1e-24}, plans, gain, ws);
    examples::SvgSeries s{.name = fit == GainFit::crop ? "25 rows, crop" : "25 rows, interpolate"};
    for (Index k = 0; k < 13; ++k) {
      s.x.push_back(static_cast<double>(k));
      s.y.push_back(gain(k, 0));
    }
    chart.series.push_back(s);
  }
  return chart;
}

examples::SvgChart periods() {
  examples::SvgChart chart{.title = "Eight weeks of daily counts: amplitude of each period",
                           .x_label = "bin k (period 56 / k days)",
                           .y_label = "amplitude"};
  const Index days = 56;
  Random random(3);
  Matrix<double> x(days, 2), amplitude(days / 2 + 1, 2);
  for (Index d = 0; d < days; ++d) {
    x(d, 0) = (d % 7 >= 5 ? 5 : 2) + random.uniform(-1, 1);  // orders food at weekends
    x(d, 1) = 3 + random.uniform(-1, 1);                     // whenever
  }
  Workspace ws;
  const SpectralPlans<double> plans = SpectralPlans<double>::only(days);
  spectral_features<double>(x.view(), {}, plans, amplitude, ws);
  for (const Index user : {0, 1}) {
    examples::SvgSeries s{.name = user == 0 ? "at weekends" : "any day"};
    for (Index k = 1; k < amplitude.rows(); ++k) {
      s.x.push_back(static_cast<double>(k));
      s.y.push_back(amplitude(k, user));
    }
    chart.series.push_back(s);
  }
  Matrix<std::int32_t> lags(1, autocorr_lags(days, 1));
  Matrix<double> weights(1, lags.cols()), y(days, 1), one(days, 1);
  for (Index d = 0; d < days; ++d) one(d, 0) = x(d, 0) - 3;
  autocorr_attention<double>(one.view(), one.view(), one.view(), {}, plans, lags, weights, y, ws);
  std::printf("weekends: amplitude %.0f at 8 waves (a week), next best %.0f; lags that match best:", amplitude(8, 0), [&] {
    double next = 0;
    for (Index k = 1; k < amplitude.rows(); ++k)
      if (k % 8 != 0) next = std::max(next, amplitude(k, 0));
    return next;
  }());
  for (Index i = 0; i < lags.cols(); ++i) std::printf(" %d", lags(0, i));
  std::printf("\n");
  return chart;
}

}  // namespace

int main(int argc, char** argv) try {
  std::string output;
  examples::Cli cli("filter_pictures", "Draws what frequency operators pass.");
  cli.option("output", output, "folder to write SVG pictures to; none: only the text");
  cli.parse(argc, argv);
  const auto draw = [&](const char* name, const examples::SvgChart& chart) {
    std::printf("%s\n", chart.title.c_str());
    for (const auto& s : chart.series) {
      double sum = 0, low = 0;
      for (std::size_t k = 0; k < s.y.size(); ++k) {
        sum += s.y[k] * s.y[k];
        if (k < 3) low += s.y[k] * s.y[k];
      }
      std::printf("  %-28s %3.0f %% of the power in the three slowest bins\n", s.name.c_str(), 100 * low / sum);
    }
    if (output.empty()) return;
    const std::string file = output + "/" + name + ".svg";
    examples::write_svg(file, chart);
    std::printf("  drawn in %s\n", file.c_str());
  };
  draw("frequency_bands", bands());
  draw("slide_filter", slides());
  draw("spectral_filter", learnable());
  draw("periodicity", periods());
  if (output.empty()) std::printf("--output DIR draws all of these as SVG.\n");
} catch (const std::exception& error) {
  std::fprintf(stderr, "filter_pictures: %s\n", error.what());
  return 1;
}
