/// @file   bench/support/paired.hpp
/// @brief  Measures a kernel against its limit and its peers in the same moments, on machines whose speed varies.
///
/// Short slices (about 0.3 ms) of calibration, kernel and peers take turns, so that all of them see the same disturbances, and
/// the ratios compare like with like: low quantiles are the quiet moments, medians the usual ones. Reported per case:
///   time           median time of one call of the kernel
///   GFLOPS         floating-point operations per second, from the low quantile
///   of_peak        (compute) share of the FMA rate of a register loop
///   of_bandwidth   (memory) share of the speed of reading as many bytes once
///   vs_NAME        median time of a peer over the kernel's; vs_NAME_q10 the same for the low quantiles
#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <recops/core/matrix.hpp>
#include <recops/simd/build_info.hpp>
#include <string>
#include <vector>

namespace recops_bench {

using recops::Index;

/// What a case consists of. `flops` and `bytes` are those of one call; with `bytes` the limit is memory, else arithmetic.
template <class T>
struct Case {
  struct Peer {
    std::string name;
    std::function<void()> run;
  };
  std::function<void()> kernel;
  std::vector<Peer> peers = {};
  double flops = 0;
  double bytes = 0;
};

namespace detail {

inline double seconds_of(const std::function<void()>& f, int repeats) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < repeats; ++i) f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
}

/// Repeats that fill a slice of about 0.3 ms.
inline int repeats_for(const std::function<void()>& f) {
  f();
  const double once = std::max(1e-8, std::min(seconds_of(f, 1), seconds_of(f, 3)));
  return std::max(1, static_cast<int>(3e-4 / once));
}

inline double quantile(std::vector<double> x, double q) {
  const auto at = x.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(x.size() - 1));
  std::nth_element(x.begin(), at, x.end());
  return *at;
}

/// A loop of nothing but FMAs in registers; returns their operations.
template <class T>
[[gnu::noinline]] double fma_peak() {
  using namespace recops::simd;
  constexpr int chains = 12, rounds = 2000;
  using B = Batch<T>;
  B x[chains];
  T start = T(1);
  benchmark::DoNotOptimize(start);
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) x[i] = B(start * static_cast<T>(i));
  const B factor(start * T(0.999)), term(start * T(0.001));
  for (int r = 0; r < rounds; ++r) {
    RECOPS_UNROLL
    for (int i = 0; i < chains; ++i) x[i] = mul_add(x[i], factor, term);
  }
  B sum(T(0));
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) sum = sum + x[i];
  T result = sum_lanes(sum);
  benchmark::DoNotOptimize(result);
  return 2.0 * chains * rounds * static_cast<double>(lanes<T>);
}

/// Reads `data` once.
template <class T>
[[gnu::noinline]] void read_stream(const T* data, Index n) {
  using namespace recops::simd;
  using B = Batch<T>;
  constexpr int chains = 8;
  constexpr Index step = chains * lanes<T>;
  B x[chains];
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) x[i] = B(T(0));
  for (Index at = 0; at + step <= n; at += step) {
    RECOPS_UNROLL
    for (int i = 0; i < chains; ++i) x[i] = x[i] + B::load_unaligned(data + at + i * lanes<T>);
  }
  B sum(T(0));
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) sum = sum + x[i];
  T result = sum_lanes(sum);
  benchmark::DoNotOptimize(result);
}

}  // namespace detail

/// Runs one case under Google Benchmark (registered with UseManualTime): calibration, kernel and peers slice by slice.
template <class T>
void run_paired(benchmark::State& state, const Case<T>& c) {
  recops::Vector<T> stream(static_cast<Index>(c.bytes / sizeof(T)), T(1));
  double peak_flops = 1;
  const std::function<void()> limit = c.bytes > 0
                                          ? std::function<void()>([&] { detail::read_stream(stream.data(), stream.size()); })
                                          : std::function<void()>([&] { peak_flops = detail::fma_peak<T>(); });
  const int limit_repeats = detail::repeats_for(limit), kernel_repeats = detail::repeats_for(c.kernel);
  std::vector<int> peer_repeats;
  for (const auto& peer : c.peers) peer_repeats.push_back(detail::repeats_for(peer.run));
  std::vector<double> limit_times, kernel_times;
  std::vector<std::vector<double>> peer_times(c.peers.size());
  for (auto _ : state) {
    limit_times.push_back(detail::seconds_of(limit, limit_repeats));
    kernel_times.push_back(detail::seconds_of(c.kernel, kernel_repeats));
    for (std::size_t p = 0; p < c.peers.size(); ++p) peer_times[p].push_back(detail::seconds_of(c.peers[p].run, peer_repeats[p]));
    state.SetIterationTime(kernel_times.back());
  }
  const double low = detail::quantile(kernel_times, 0.1), limit_low = detail::quantile(limit_times, 0.1);
  state.counters["us"] = detail::quantile(kernel_times, 0.5) * 1e6;
  if (c.flops > 0) state.counters["GFLOPS"] = c.flops / low * 1e-9;
  if (c.bytes > 0) {
    state.counters["GB/s"] = c.bytes / low * 1e-9;
    state.counters["of_bandwidth"] = limit_low / low;
  } else if (c.flops > 0) {
    state.counters["of_peak"] = (limit_low / peak_flops) / (low / c.flops);
  }
  for (std::size_t p = 0; p < c.peers.size(); ++p) {
    const double median = detail::quantile(peer_times[p], 0.5) / detail::quantile(kernel_times, 0.5);
    state.counters["vs_" + c.peers[p].name] = median;
    state.counters["vs_" + c.peers[p].name + "_q10"] = detail::quantile(peer_times[p], 0.1) / low;
  }
}

/// Registers a case that `make()` builds when it runs (its data lives in what the functions capture).
template <class T, class Make>
void register_case(const std::string& name, Make make, int slices = 300) {
  benchmark::RegisterBenchmark(name.c_str(), [make](benchmark::State& state) { run_paired<T>(state, make()); })
      ->UseManualTime()
      ->Iterations(slices)
      ->Unit(benchmark::kMicrosecond);
}

/// The rest of a main: says what runs where, then runs what was registered and asked for.
inline int run_registered(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  std::fputs(recops::build_info().c_str(), stderr);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace recops_bench
