/// @file   bench/support/paired.hpp
/// @brief  Measures a kernel against its limits and its peers in the same moments, on machines whose speed varies.
///
/// Short slices (0.1 to 0.3 ms) of calibration, kernel and peers take turns, so that all of them see the same disturbances and
/// the ratios compare like with like: low quantiles are the quiet moments, medians the usual ones. A disturbed run is repeated;
/// one that stays disturbed is marked noisy. docs/benchmarks.md says how to read the counters:
///
///   us, us_q10       median and 10 % quantile of the time of one call; `ns_each` and what follows: from the 2 % quantile
///   GFLOPS, GB/s                                      of_peak       share of the rate of a loop of multiply-adds
///   of_tile          share of a register tile's rate  of_bandwidth  share of the speed of reading as many bytes once
///   vs_NAME          a peer's median time over ours, vs_NAME_q10 the same for the 10 % quantiles
///   dram             1: copies of 512 MB in all take turns; 0: warm, or rotated over `rotation_MB` less
///   of_NAME          share of the speed of a limit of the case's own (`c.floors`)
///   noisy            1: no quiet run in `attempts`; the label says what was disturbed
///
/// A case, whole:
///
///     int main(int argc, char** argv) {
///       for (const Index n : {4096, 4 << 20}) {
///         recops_bench::register_case<float>("simd/exp/f32/n:" + std::to_string(n), [n] {
///           const double bytes = 2.0 * n * sizeof(float);
///           const Index copies = copies_for(bytes);                   // 1, or 512 MB of them if larger than 4 times L2
///           auto x = std::make_shared<Rotation<float>>(n, copies);    // huge pages; (*x)[copy] is a float*
///           auto y = std::make_shared<Rotation<float>>(n, copies);
///           Random random(1);
///           for (Index i = 0; i < n; ++i) (*x)[0][i] = static_cast<float>(random.uniform(-5, 5));
///           x->spread();
///           Case<float> c;
///           c.copies = copies;
///           c.kernel = [=](Index copy) { exp_of((*x)[copy], (*y)[copy], n); };   // or without the argument
///           c.bytes = bytes;                                          // and or: c.flops, for of_peak and of_tile
///           c.peers.push_back({"eigen", [=](Index copy) { eigen_exp((*x)[copy], (*y)[copy], n); }});
///           c.peers.push_back(python_peer("torch", "unary", R"({"f": "exp", "n": )" + std::to_string(n) + "}"));
///           return c;
///         });
///       }
///       return recops_bench::run_registered(argc, argv);
///     }
///
/// Further: `c.use<A>()` holds the kernel against another instruction set's limits; `c.prepare = [](Index copy) {...}` restores
/// what a call consumes (a sort's input), not timed; `c.copies = copies_over(bytes, 64e6)` rotates over a stated size;
/// `skipped_peer("fftw", "libfftw3-dev")` is a peer that was not found; `c.elements` gives ns_each.
#pragma once
#include <benchmark/benchmark.h>

#include <cstdio>
#include <memory>
#include <recops/core/matrix.hpp>
#include <recops/simd/build_info.hpp>
#include <set>
#include <string>
#include <vector>

#include "support/calibration.hpp"
#include "support/child.hpp"
#include "support/noise.hpp"
#include "support/process.hpp"
#include "support/rotation.hpp"
#include "support/table.hpp"
#include "support/work.hpp"

namespace recops_bench {

/// What a case consists of. `flops` and `bytes` are those of one call.
template <class T>
struct Case {
  using Peer = recops_bench::Peer;
  Work kernel = {};
  std::vector<Peer> peers = {};
  /// Loops that do the least any method must, such as reading the same rows in the same order: `of_NAME` is the share of their speed.
  std::vector<Peer> floors = {};
  double flops = 0;
  double bytes = 0;        ///< the least that must be read or written; read by the stream that of_bandwidth compares with
  double elements = 0;     ///< gives ns_each
  Work prepare = {};       ///< before each call of the kernel or of a peer without one of its own, not timed
  Index copies = 1;        ///< of the data; calls get 0, 1, ... copies - 1 in turn
  double working_set = 0;  ///< bytes that a call touches, if not `bytes`
  /// Where copy i lies, `bytes` contiguous: what the read stream reads. By default memory of its own, with as many copies.
  std::function<const void*(Index copy)> data = {};
  const Limits* limit = &limits<T>();

  /// The kernel runs on instruction set A.
  template <class A>
  void use() {
    limit = &limits<T, A>();
  }
};

/// How long a case may take.
struct Effort {
  int slices = 300;    ///< of the kernel, unless
  double seconds = 3;  ///< ... that takes longer: then at least `least`
  int least = 15;
  int attempts = 4;  ///< runs until one is quiet
};

namespace detail {

inline void say_once(const std::string& line) {
  static std::set<std::string> said;
  if (said.insert(line).second) std::fprintf(stderr, "%s\n", line.c_str());
}

/// Everything that takes turns in a case.
template <class T>
class Paired {
 public:
  Paired(const Case<T>& c, std::string name) : case_(c), name_(std::move(name)) {
    turn_.copies = c.copies;
    size_ = c.working_set > 0 ? c.working_set : c.bytes;
    rotated_ = size_ * static_cast<double>(c.copies);
    dram_ = c.copies > 1 && rotated_ >= dram_rotation_bytes;
    if (!dram_ && size_ > 4 * l2_bytes())
      say_once(name_ + ": " + std::to_string(size_ * 1e-6) + " MB, more than 4 times L2, without a rotation of 512 MB");
    fma_ = std::make_unique<Slice>(Peer{"fma", [this] { fma_flops_ = case_.limit->fma(); }}, none_, true, 1e-4);
    tile_ = std::make_unique<Slice>(Peer{"tile", [this] { tile_flops_ = case_.limit->tile(); }}, none_, true, 1.5e-4);
    const Index shared = static_cast<Index>(4 * l2_bytes());
    static const Rotation<char> l3(shared);
    cache_ = std::make_unique<Slice>(Peer{"cache", [shared] { limits<float>().read(l3[0], shared); }}, none_, true, 1e-4);
    if (c.bytes > 0) {
      if (!case_.data) {
        own_ = Rotation<char>(static_cast<Index>(c.bytes), c.copies);
        case_.data = [this](Index copy) { return own_[copy]; };
      }
      const Index bytes = static_cast<Index>(c.bytes);
      // One turn for all where the data are shared: the stream must not warm the copy that the kernel visits next.
      const void* const only = c.copies == 1 ? case_.data(0) : nullptr;  // asking costs as much as reading a few KB
      const auto read = [this, bytes, only](Index copy) { case_.limit->read(only != nullptr ? only : case_.data(copy), bytes); };
      read_ = std::make_unique<Slice>(Peer{"read", read}, turn_, !dram_, 3e-4);
    }
    kernel_ = std::make_unique<Slice>(Peer{"kernel", c.kernel, c.prepare}, turn_, !dram_, 3e-4);
    for (const Peer& floor : c.floors) floors_.push_back(std::make_unique<Slice>(floor, turn_, !dram_, 3e-4));
    for (const Peer& peer : c.peers) {
      if (!peer.skipped.empty()) {
        say_once("skipped: " + peer.name + " (" + peer.skipped + ")");
        continue;
      }
      Peer warm = peer;
      if (!warm.prepare && !warm.timed) warm.prepare = c.prepare;
      peers_.push_back(std::make_unique<Slice>(std::move(warm), turn_, !dram_, 3e-4));
    }
  }
  Paired(const Paired&) = delete;

  /// One attempt: fills the slices anew.
  void run(const Effort& effort) {
    for (Slice* s : all()) s->clear();
    const double one = kernel_->typical_seconds() + 3e-4;
    std::vector<Slice*> turns = all();
    double spent = 0;
    for (int i = 0; i < effort.slices && (spent < effort.seconds || i < effort.least); ++i) {
      spent += seconds([&] {
        for (Slice* s : turns) {
          // What takes much longer than the kernel, a slow peer, has its say less often.
          const int every = static_cast<int>(std::clamp(s->typical_seconds() / (4 * one), 1.0, 16.0));
          if (i % every == 0 || s->taken() < 5) s->take();
        }
      });
      // Who comes first leaves the caches to the next: everyone is first in turn.
      std::rotate(turns.begin(), turns.begin() + 1, turns.end());
    }
  }

  Rates rates() const {
    Rates r;
    r.fma = fma_flops_ / fma_->quiet();
    r.tile = tile_flops_ / tile_->quiet();
    // What lives in a core's own caches does not care about the shared one.
    if (!(rotated_ > 0 && rotated_ < l2_bytes() / 2)) r.cache = 4 * l2_bytes() / cache_->quiet();
    if (read_) r.read = case_.bytes / read_->quiet();
    for (const Slice* s : {fma_.get(), tile_.get(), cache_.get(), read_.get(), kernel_.get()})
      r.crowded |= s != nullptr && s->crowded();
    const auto kernel = kernel_->halves();
    const auto limit = read_ ? read_->halves() : fma_->halves();
    r.halves = (limit.first / kernel.first) / (limit.second / kernel.second) - 1;
    return r;
  }
  std::string judge(const Rates& r) const {
    return quiet_machine().judge(std::string(case_.limit->set) + std::to_string(sizeof(T)), dram_ ? "dram" : name_, r);
  }

  using Counters = std::vector<std::pair<std::string, double>>;
  Counters counters() const {
    Counters out;
    const Rates r = rates();
    const double quiet = kernel_->quiet(), low = kernel_->low(), median = kernel_->median();
    out.emplace_back("us", median * 1e6);
    out.emplace_back("us_q10", low * 1e6);
    if (case_.elements > 0) out.emplace_back("ns_each", quiet / case_.elements * 1e9);
    if (case_.flops > 0) {
      out.emplace_back("GFLOPS", case_.flops / quiet * 1e-9);
      out.emplace_back("of_peak", case_.flops / quiet / r.fma);
      out.emplace_back("of_tile", case_.flops / quiet / r.tile);
    }
    if (case_.bytes > 0) {
      out.emplace_back("GB/s", case_.bytes / quiet * 1e-9);
      out.emplace_back("of_bandwidth", case_.bytes / quiet / r.read);
      out.emplace_back("read_GB/s", r.read * 1e-9);
    }
    for (const auto& floor : floors_) out.emplace_back("of_" + floor->name(), floor->quiet() / quiet);
    out.emplace_back("peak_GFLOPS", r.fma * 1e-9);
    out.emplace_back("tile_GFLOPS", r.tile * 1e-9);
    out.emplace_back("cache_GB/s", 4 * l2_bytes() / cache_->quiet() * 1e-9);
    out.emplace_back("dram", dram_ ? 1 : 0);
    out.emplace_back("rotation_MB", rotated_ * 1e-6);
    for (const auto& peer : peers_) {
      out.emplace_back("vs_" + peer->name(), peer->median() / median);
      out.emplace_back("vs_" + peer->name() + "_q10", peer->low() / low);
    }
    return out;
  }
  double median() const { return kernel_->median(); }
  std::string where() const { return dram_ ? "dram" : case_.copies > 1 ? "rotated" : "warm"; }

 private:
  std::vector<Slice*> all() {
    std::vector<Slice*> out{fma_.get(), tile_.get(), cache_.get()};
    if (read_) out.push_back(read_.get());
    out.push_back(kernel_.get());
    for (auto& floor : floors_) out.push_back(floor.get());
    for (auto& peer : peers_) out.push_back(peer.get());
    return out;
  }
  Case<T> case_;
  std::string name_;
  Turn turn_, none_;
  double size_ = 0, rotated_ = 0, fma_flops_ = 0, tile_flops_ = 0;
  bool dram_ = false;
  Rotation<char> own_;
  std::unique_ptr<Slice> fma_, tile_, cache_, read_, kernel_;
  std::vector<std::unique_ptr<Slice>> floors_, peers_;
};

}  // namespace detail

/// Runs one case under Google Benchmark (registered with UseManualTime): calibration, kernel and peers slice by slice, again
/// while the machine is disturbed. Every iteration reports the median.
template <class T>
void run_paired(benchmark::State& state, const Case<T>& c, const Effort& effort = {}, const std::string& name = {}) {
  detail::Paired<T> paired(c, name);
  typename detail::Paired<T>::Counters kept;
  std::string noise;
  double median = 0, best = -1;
  int attempt = 0;
  while (attempt < effort.attempts && (attempt == 0 || !noise.empty())) {
    ++attempt;
    paired.run(effort);
    const Rates r = paired.rates();
    const std::string disturbed = paired.judge(r);
    // The least disturbed of several: the one whose calibration was fastest, not the one that flatters the kernel.
    const double quiet = c.bytes > 0 ? r.read : r.tile;
    if (disturbed.empty() || quiet > best) {
      best = quiet;
      noise = disturbed;
      kept = paired.counters();
      median = paired.median();
    }
  }
  for (auto _ : state) state.SetIterationTime(median);
  for (const auto& [key, value] : kept) state.counters[key] = value;
  state.counters["noisy"] = noise.empty() ? 0 : 1;
  state.counters["attempts"] = attempt;
  state.SetLabel(paired.where() + (noise.empty() ? "" : ", NOISY: " + noise));
}

namespace detail {

/// What the machine does at best, for the head of the JSON; about half a second.
inline void add_context() {
  const auto add = [](const char* name, double value) {
    benchmark::AddCustomContext(name, std::to_string(value));
    std::fprintf(stderr, "%s %.1f\n", name, value);
  };
  const auto best = [](auto&& work) {  // rate in 1e9 per second
    double rate = 0;
    for (double spent = 0; spent < 0.08;) {
      double amount = 0;
      const double once = seconds([&] { amount = work(); });
      rate = std::max(rate, amount / once * 1e-9);
      spent += once;
    }
    return rate;
  };
  const Index large = 256 << 20;
  Rotation<char> memory(large);
  benchmark::AddCustomContext("instruction_set", limits<float>().set);
  add("fma_f32_GFLOPS", best(limits<float>().fma));
  add("fma_f64_GFLOPS", best(limits<double>().fma));
  add("tile_f32_GFLOPS", best(limits<float>().tile));
  add("tile_f64_GFLOPS", best(limits<double>().tile));
  for (const auto& [name, bytes] :
       {std::pair{"read_L1_GB/s", Index{16384}}, std::pair{"read_L2_GB/s", static_cast<Index>(l2_bytes() / 2)},
        std::pair{"read_L3_GB/s", static_cast<Index>(4 * l2_bytes())}, std::pair{"read_dram_GB/s", large}}) {
    limits<float>().read(memory[0], bytes);
    add(name, best([&, size = bytes] {
          const int times = static_cast<int>(std::max<Index>(1, 65536 / size));
          for (int i = 0; i < times; ++i) limits<float>().read(memory[0], size);
          return static_cast<double>(size) * times;
        }));
  }
  benchmark::AddCustomContext("L2_bytes", std::to_string(static_cast<Index>(l2_bytes())));
}

}  // namespace detail

/// Registers a case that `make()` builds when it runs (its data lives in what the functions capture).
template <class T, class Make>
void register_case(const std::string& name, Make make, const Effort& effort) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { run_paired<T>(state, make(), effort, name); })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}
template <class T, class Make>
void register_case(const std::string& name, Make make, int slices = 300) {
  Effort effort;
  effort.slices = slices;
  register_case<T>(name, make, effort);
}

/// The rest of a main: says what runs where, then runs what was registered and asked for.
inline int run_registered(int argc, char** argv) {
  prepare_process(argv);
  bool own_table = true, own_json = false, runs = true;
  std::vector<std::string> arguments(argv, argv + argc);
  for (std::string& a : arguments) {
    if (a.rfind("--benchmark_format=", 0) == 0) own_table = false;
    if (a.rfind("--benchmark_out=", 0) == 0) own_json = true;
    if (a.rfind("--benchmark_list_tests", 0) == 0) runs = false;
    // The filter sees longer names than ours.
    if (a.rfind("--benchmark_filter=", 0) == 0 && a.back() == '$') a.insert(a.size() - 1, "(/iterations:1/manual_time)?");
  }
  for (const std::string& a : arguments)
    if (a == "--benchmark_out_format=csv" || a == "--benchmark_out_format=console") own_json = false;
  std::vector<char*> given;
  for (std::string& a : arguments) given.push_back(a.data());
  benchmark::Initialize(&argc, given.data());
  if (benchmark::ReportUnrecognizedArguments(argc, given.data())) return 1;
  if (runs) {
    std::fputs(recops::build_info().c_str(), stderr);
    detail::add_context();
  }
  Table table;
  Json json;
  if (own_table && own_json) {
    benchmark::RunSpecifiedBenchmarks(&table, &json);
  } else if (own_table) {
    benchmark::RunSpecifiedBenchmarks(&table);
  } else {
    benchmark::RunSpecifiedBenchmarks();
  }
  return 0;
}

}  // namespace recops_bench
