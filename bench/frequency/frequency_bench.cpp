/// Frequency operators over batches of sequences [B, L, D].
///
///     taskset -c 1 build/bench/bench/recops_bench_frequency_frequency
///
/// `spectral_filter`: FMLP's learnable filter as served; `spectral_filter_step`: forward, then the gradients of x and of the gains.
/// `band_mix`: low + b^2 high with the lowest `keep` bins (BSARec); `band_path`: the same with 2 keep - 1 = r columns by projection
/// (the time) against the transform (`vs_transform`), the crossing that `projection_columns` is read from. `filter_path`: a
/// convolution done directly against the transform. Peers: `torch` and `scipy` do the same (transform, product or zeros, inverse);
/// `fftw` and `fftw_strided` transform there and back without any gain, on contiguous rows as if transposes were free, and along the
/// axis as the data lie; `memcpy` copies the input to the output, the least any filter can do.
#include <cmath>
#include <cstring>
#include <recops/core/random.hpp>
#include <recops/frequency/bsarec_layer.hpp>
#include <recops/frequency/spectral_filter.hpp>

#include "peers/fftw.hpp"
#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

struct Data {
  Index batch, length, cols;
  Rotation<float> x, y;
  Vector<std::int64_t> offsets;
  Workspace ws;

  Data(Index b, Index l, Index d, Index copies)
      : batch(b), length(l), cols(d), x(b * l * d, copies), y(b * l * d, copies), offsets(b + 1) {
    Random random(1);
    for (Index i = 0; i < b * l * d; ++i) x[0][i] = static_cast<float>(random.normal());
    x.spread();
    for (Index i = 0; i <= b; ++i) offsets[i] = i * l;
  }
  JaggedView<const float> in(Index copy) {
    return JaggedView<const float>(MatrixView<const float>(x[copy], batch * length, cols), IndexView(offsets));
  }
  MatrixView<float> out(Index copy) { return MatrixView<float>(y[copy], batch * length, cols); }
  Peer memcpy_peer() {
    const std::size_t size = static_cast<std::size_t>(batch * length * cols) * sizeof(float);
    return {"memcpy", [this, size](Index i) {
              std::memcpy(y[i], x[i], size);
              benchmark::ClobberMemory();
            }};
  }
};

std::string shape_name(Index batch, Index length, Index cols) {
  return "/f32/B:" + std::to_string(batch) + "/L:" + std::to_string(length) + "/D:" + std::to_string(cols);
}
std::string shape_json(Index batch, Index length, Index cols, const std::string& more = "") {
  return R"({"batch": )" + std::to_string(batch) + R"(, "length": )" + std::to_string(length) + R"(, "channels": )" +
         std::to_string(cols) + more + "}";
}

std::shared_ptr<Data> start(Case<float>& c, Index batch, Index length, Index cols) {
  c.bytes = 2.0 * static_cast<double>(batch * length * cols) * sizeof(float);
  c.copies = copies_for(c.bytes);
  return std::make_shared<Data>(batch, length, cols, c.copies);
}

void spectral(Index length) {
  constexpr Index batch = 64, cols = 64;
  const double numbers = static_cast<double>(batch * length * cols), transform = 5 * std::log2(static_cast<double>(length));
  register_case<float>("frequency/spectral_filter" + shape_name(batch, length, cols), [=] {
    Case<float> c;
    const auto d = start(c, batch, length, cols);
    Random random(2);
    const auto filter = std::make_shared<FrozenSpectralFilter<float>>(
        freeze(SpectralFilter<float>(cols, {.length = length, .padding = {SequenceFill::zero}}, random)));
    c.flops = numbers * (transform + 6);
    c.kernel = [d, filter](Index i) { filter->forward(d->in(i), d->out(i), d->ws); };
    c.peers.push_back(d->memcpy_peer());
    const FftwData data{batch, length, cols, [d](Index i) { return d->x[i]; }, [d](Index i) { return d->y[i]; }};
    c.peers.push_back(fftw_round_trip(data, true));
    c.peers.push_back(fftw_round_trip(data, false));
    c.peers.push_back(python_peer("scipy", "fft_filter", shape_json(batch, length, cols)));
    c.peers.push_back(python_peer("torch", "fft_filter", shape_json(batch, length, cols)));
    return c;
  });
  register_case<float>("frequency/spectral_filter_step" + shape_name(batch, length, cols), [=] {
    Case<float> c;
    const auto d = start(c, batch, length, cols);
    Random random(2);
    const auto filter = std::make_shared<SpectralFilter<float>>(
        cols, SpectralFilterOptions{.length = length, .padding = {SequenceFill::zero}}, random);
    const auto gradient = std::make_shared<SpectralFilter<float>>(make_gradient(*filter));
    const auto dx = std::make_shared<Rotation<float>>(batch * length * cols, c.copies);
    c.flops = numbers * (2.5 * transform + 24);
    c.bytes *= 2;
    c.kernel = [=](Index i) {
      filter->forward(d->in(i), d->out(i), d->ws);
      // Upstream: x itself, as large as any.
      filter->backward(d->in(i), d->in(i).values(), {}, MatrixView<float>((*dx)[i], batch * length, cols), *gradient, d->ws);
    };
    c.peers.push_back(python_peer("torch", "fft_filter_step", shape_json(batch, length, cols)));
    return c;
  });
}

void band(const std::string& name, Index batch, Index length, Index keep, bool against_transform) {
  constexpr Index cols = 64;
  register_case<float>("frequency/" + name + shape_name(batch, length, cols) + "/keep:" + std::to_string(keep), [=] {
    Case<float> c;
    const auto d = start(c, batch, length, cols);
    const auto plans = std::make_shared<SpectralPlans<float>>(SpectralPlans<float>::only(length));
    const auto alpha = std::make_shared<Matrix<float>>(1, 1, 1.0f), beta = std::make_shared<Matrix<float>>(1, cols, 0.3f);
    const auto run = [=](Index i, BandPath path) {
      band_mix<float>(d->in(i), {alpha->view()}, {beta->view()}, {.keep = keep}, *plans, d->out(i), d->ws, path);
    };
    c.flops = static_cast<double>(batch * length * cols) * (4 * static_cast<double>(2 * keep - 1) + 2);
    if (against_transform) {
      c.kernel = [run](Index i) { run(i, BandPath::projection); };
      c.peers.push_back({"transform", [run](Index i) { run(i, BandPath::transform); }});
      return c;
    }
    c.kernel = [run](Index i) { run(i, BandPath::fastest); };
    c.peers.push_back(d->memcpy_peer());
    c.peers.push_back(python_peer("scipy", "band_mix", shape_json(batch, length, cols, R"(, "keep": )" + std::to_string(keep))));
    return c;
  });
}

/// The direct way's time; `vs_transform` is the transform's over it.
void direct(Index length) {
  constexpr Index batch = 256, cols = 64;
  register_case<float>("frequency/filter_path" + shape_name(batch, length, cols), [=] {
    Case<float> c;
    const auto d = start(c, batch, length, cols);
    Random random(2);
    const auto filters = std::make_shared<std::vector<SpectralFilter<float>>>();
    for (const FilterPath path : {FilterPath::direct, FilterPath::transform})
      filters->emplace_back(cols, SpectralFilterOptions{.length = length, .padding = {SequenceFill::zero}, .path = path}, random);
    c.flops = 2 * static_cast<double>(batch * length * length * cols);
    c.kernel = [d, filters](Index i) { (*filters)[0].forward(d->in(i), d->out(i), d->ws); };
    c.peers.push_back({"transform", [d, filters](Index i) { (*filters)[1].forward(d->in(i), d->out(i), d->ws); }});
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index length : {50, 64, 200, 1024}) spectral(length);
  band("band_mix", 256, 50, 3, false);
  band("band_mix", 256, 200, 5, false);
  for (const Index keep : {5, 9, 13, 17}) band("band_path", 64, 50, keep, true);
  for (const Index keep : {9, 17, 25, 33}) band("band_path", 64, 200, keep, true);
  for (const Index length : {3, 4, 6, 8, 12}) direct(length);
  return run_registered(argc, argv);
}
