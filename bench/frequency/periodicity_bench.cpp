/// What is built on transforms of sequences [B, L, D]: attention by autocorrelation (FEARec), FARM's module, spectra as features.
///
///     taskset -c 1 build/bench/bench/recops_bench_frequency_periodicity
///
///   frequency/autocorr/f32/...    `autocorr_attention`, every sequence with lags of its own, all bins
///   frequency/intra_domain/f32/... `FarmIntraDomain` as served: gates from the mean, two bands, a quarter of the bins in the low one
///                                 (flops: of projection or transform, whichever has fewer)
///   frequency/features/f32/...    amplitudes of all bins
///
/// Peer `torch`: the same with its transforms, in a process of its own. `memcpy` copies the values that are filtered, once.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <recops/frequency/autocorr_attention.hpp>
#include <recops/frequency/farm_intra_domain.hpp>
#include <recops/frequency/spectral_features.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

/// Sequences in turns, `inputs` of them at a time, and room for what comes out.
struct Data {
  Index batch, length, cols;
  std::vector<Rotation<float>> x;
  Rotation<float> y;
  Vector<std::int64_t> offsets;
  SpectralPlans<float> plans;
  Matrix<std::int32_t> lags;
  Matrix<float> weights;
  Workspace ws;

  Data(Index b, Index l, Index d, Index inputs, Index out_rows, Index copies)
      : batch(b), length(l), cols(d), y(out_rows * d, copies), offsets(b + 1), plans(SpectralPlans<float>::only(l)) {
    Random random(1);
    for (Index i = 0; i < inputs; ++i) {
      x.emplace_back(b * l * d, copies);
      for (Index j = 0; j < b * l * d; ++j) x.back()[0][j] = static_cast<float>(random.normal());
      x.back().spread();
    }
    for (Index i = 0; i <= b; ++i) offsets[i] = i * l;
    lags.resize(b, autocorr_lags(l, 1));
    weights.resize(b, autocorr_lags(l, 1));
  }
  JaggedView<const float> in(std::size_t which, Index copy) {
    return JaggedView<const float>(MatrixView<const float>(x[which][copy], batch * length, cols), IndexView(offsets));
  }
};

std::string shape_name(Index batch, Index length, Index cols) {
  return "/f32/B:" + std::to_string(batch) + "/L:" + std::to_string(length) + "/D:" + std::to_string(cols);
}
std::string shape_json(Index batch, Index length, Index cols) {
  return R"({"batch": )" + std::to_string(batch) + R"(, "length": )" + std::to_string(length) + R"(, "channels": )" +
         std::to_string(cols) + "}";
}

/// A case that reads `inputs` sequences and writes `out_rows` rows.
std::shared_ptr<Data> start(Case<float>& c, Index batch, Index length, Index cols, Index inputs, Index out_rows) {
  c.bytes = static_cast<double>((inputs * batch * length + out_rows) * cols) * sizeof(float);
  c.copies = copies_for(c.bytes);
  const auto d = std::make_shared<Data>(batch, length, cols, inputs, out_rows, c.copies);
  c.peers.push_back({"memcpy", [d, out_rows, cols](Index i) {
                       std::memcpy(d->y[i], d->x[0][i], static_cast<std::size_t>(out_rows * cols) * sizeof(float));
                       benchmark::ClobberMemory();
                     }});
  return d;
}

void autocorr(Index batch, Index length) {
  constexpr Index cols = 64;
  register_case<float>("frequency/autocorr" + shape_name(batch, length, cols), [=] {
    Case<float> c;
    const auto d = start(c, batch, length, cols, 3, batch * length);
    const auto m = static_cast<double>(autocorr_lags(length, 1)), l = static_cast<double>(length);
    c.flops = static_cast<double>(batch * cols) * (2 * 2.5 * l * std::log2(l) + 4 * l + 2 * m * l);
    c.kernel = [d](Index i) {
      autocorr_attention<float>(d->in(0, i), d->in(1, i).values(), d->in(2, i).values(), {}, d->plans, d->lags, d->weights,
                                MatrixView<float>(d->y[i], d->batch * d->length, d->cols), d->ws);
    };
    c.peers.push_back(python_peer("torch", "autocorr", shape_json(batch, length, cols)));
    return c;
  });
}

void intra_domain(Index batch, Index length) {
  constexpr Index cols = 64;
  register_case<float>("frequency/intra_domain" + shape_name(batch, length, cols), [=] {
    Case<float> c;
    const auto d = start(c, batch, length, cols, 1, batch * length);
    Random random(2);
    auto frozen = freeze(FarmIntraDomain<float>(cols, {.length = length, .band = {.ratio = 0.25}}, random));
    const auto layer = std::make_shared<decltype(frozen)>(std::move(frozen));
    const double bins = std::ceil(0.25 * static_cast<double>(length / 2 + 1));
    const double projected = 4 * (2 * bins - 1), transformed = 5 * std::log2(static_cast<double>(length));
    c.flops = static_cast<double>(batch * length * cols) * (std::min(projected, transformed) + 3) +
              2 * static_cast<double>(batch) * (cols * cols + 2.0 * cols);
    c.kernel = [d, layer](Index i) {
      layer->forward(d->in(0, i), {}, MatrixView<float>(d->y[i], d->batch * d->length, d->cols), d->ws);
    };
    c.peers.push_back(python_peer("torch", "farm_module", shape_json(batch, length, cols)));
    return c;
  });
}

void features(Index batch, Index length) {
  constexpr Index cols = 64;
  register_case<float>("frequency/features" + shape_name(batch, length, cols), [=] {
    Case<float> c;
    const Index bins = length / 2 + 1;
    const auto d = start(c, batch, length, cols, 1, batch * bins);
    const auto l = static_cast<double>(length);
    c.flops = static_cast<double>(batch * cols) * (2.5 * l * std::log2(l) + 4 * static_cast<double>(bins));
    c.kernel = [d, bins](Index i) {
      spectral_features<float>(d->in(0, i), {}, d->plans, MatrixView<float>(d->y[i], d->batch * bins, d->cols), d->ws);
    };
    c.peers.push_back(python_peer("torch", "spectral_features", shape_json(batch, length, cols)));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const auto& [batch, length] : {std::pair<Index, Index>{1, 50}, {64, 50}, {64, 200}, {8, 1024}}) autocorr(batch, length);
  for (const auto& [batch, length] : {std::pair<Index, Index>{1, 50}, {256, 50}, {64, 200}}) intra_domain(batch, length);
  for (const auto& [batch, length] : {std::pair<Index, Index>{64, 64}, {64, 365}}) features(batch, length);
  return run_registered(argc, argv);
}
