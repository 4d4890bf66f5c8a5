/// Transforms along the sequences of a batch [64, L, 64] and back.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_fft
///
/// `fft_round_trip`: forward, one real gain per bin, inverse, in one sweep over the batch. `fft_filter`: the same
/// with complex gains per bin and channel. `fft_planes`: rfft to two planes, irfft from them, as two sweeps. `fft_single`: the
/// filter, one sequence at a time. Peers: `fftw`, transforms of contiguous rows (as if the transposes it would need cost
/// nothing) there and back, without any gain; `fftw_strided`, along the axis as the data lie; `scipy`; `memcpy` of the input to
/// the output, the least any filter can do. GFLOPS counts 5 L log2 L per channel, and 6 L more for complex gains.
#include <cmath>
#include <cstring>
#include <recops/core/random.hpp>
#include <recops/simd/fft_filter.hpp>

#include "peers/fftw.hpp"
#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index batch = 64, cols = 64;

template <class T>
struct Data {
  Index length, bins;
  simd::FftPlan<T> plan;
  Rotation<T> x, y;
  Matrix<T> re, im, gain_re, gain_im;
  simd::FftFilter<T> filter;
  simd::FftGains<T> gains;
  Workspace ws;

  Data(Index l, Index copies)
      : length(l),
        bins(l / 2 + 1),
        plan(l),
        x(batch * l * cols, copies),
        y(batch * l * cols, copies),
        gain_re(bins, cols, T(1)),
        gain_im(bins, cols, T(0.5)) {
    Random random(1);
    for (Index i = 0; i < batch * length * cols; ++i) x[0][i] = static_cast<T>(random.normal());
    x.spread();
    filter.prepare(plan, {gain_re.view(), gain_im.view()}, ws);
    const Vector<T> ones(bins, T(1));
    gains.prepare(plan, VectorView<const T>(ones), ws);
  }
  MatrixView<const T> in(Index copy, Index b) { return MatrixView<const T>(x[copy] + b * length * cols, length, cols); }
  MatrixView<T> out(Index copy, Index b) { return MatrixView<T>(y[copy] + b * length * cols, length, cols); }
  template <class Gains>
  void all(const Gains& g, Index copy) {
    simd::fft_filter<T>(plan, g, MatrixView<const T>(x[copy], batch * length, cols), MatrixView<T>(y[copy], batch * length, cols),
                        false, ws);
  }
  void singles(Index copy) {
    for (Index b = 0; b < batch; ++b) simd::fft_filter<T>(plan, filter, in(copy, b), out(copy, b), false, ws);
  }
  simd::FftPlanes<T> planes(Index b) { return {re.view().middle_rows(b * bins, bins), im.view().middle_rows(b * bins, bins)}; }
  simd::FftPlanes<const T> const_planes(Index b) { return {planes(b).re, planes(b).im}; }
  void through_planes(Index copy) {
    re.resize(batch * bins, cols);
    im.resize(batch * bins, cols);
    for (Index b = 0; b < batch; b += 2)
      simd::rfft<T>(plan, in(copy, b), in(copy, b + 1), planes(b), planes(b + 1), FftNorm::backward, ws);
    for (Index b = 0; b < batch; b += 2)
      simd::irfft<T>(plan, const_planes(b), const_planes(b + 1), out(copy, b), out(copy, b + 1), FftNorm::backward, ws);
  }
};

enum class Kind { round_trip, filter, single, planes };

template <class T>
void add(const std::string& name, Kind kind, Index length) {
  register_case<T>("simd/" + name + "/" + type_name<T>() + "/L:" + std::to_string(length), [kind, length] {
    const double numbers = static_cast<double>(batch * length * cols), bytes = 2 * numbers * sizeof(T);
    const auto d = std::make_shared<Data<T>>(length, copies_for(bytes));
    Case<T> c;
    c.copies = copies_for(bytes);
    c.bytes = bytes;
    c.flops = numbers * (5 * std::log2(static_cast<double>(length)) + (kind == Kind::filter || kind == Kind::single ? 6 : 0));
    switch (kind) {
      case Kind::round_trip:
        c.kernel = [d](Index i) { d->all(d->gains, i); };
        break;
      case Kind::filter:
        c.kernel = [d](Index i) { d->all(d->filter, i); };
        break;
      case Kind::single:
        c.kernel = [d](Index i) { d->singles(i); };
        break;
      case Kind::planes:
        c.kernel = [d](Index i) { d->through_planes(i); };
        break;
    }
    const std::size_t size = static_cast<std::size_t>(numbers) * sizeof(T);
    c.peers.push_back({"memcpy", [d, size](Index i) {
                         std::memcpy(d->y[i], d->x[i], size);
                         benchmark::ClobberMemory();
                       }});
    if constexpr (std::is_same_v<T, float>) {
      const FftwData data{batch, length, cols, [d](Index i) { return d->x[i]; }, [d](Index i) { return d->y[i]; }};
      c.peers.push_back(fftw_round_trip(data, true));
      c.peers.push_back(fftw_round_trip(data, false));
    }
    c.peers.push_back(python_peer(
        "scipy", kind == Kind::filter || kind == Kind::single ? "fft_filter" : "fft_round_trip",
        R"({"batch": 64, "channels": 64, "length": )" + std::to_string(length) + R"(, "type": ")" + type_name<T>() + R"("})"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index length : {50, 64, 97, 200, 1024}) {
    add<float>("fft_round_trip", Kind::round_trip, length);
    add<float>("fft_filter", Kind::filter, length);
    add<float>("fft_single", Kind::single, length);
    add<float>("fft_planes", Kind::planes, length);
  }
  add<double>("fft_round_trip", Kind::round_trip, 50);
  add<double>("fft_filter", Kind::filter, 200);
  return run_registered(argc, argv);
}
