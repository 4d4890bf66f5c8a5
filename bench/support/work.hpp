/// @file   bench/support/work.hpp
/// @brief  What a case times: a call that may be told which copy of the data to use, and how long a slice of such calls takes.
#pragma once
#include <time.h>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <functional>
#include <recops/core/views.hpp>
#include <string>
#include <utility>
#include <vector>

namespace recops_bench {

using recops::Index;

/// The scalar as names of cases have it.
template <class T>
constexpr const char* type_name() {
  return std::same_as<T, float> ? "f32" : std::same_as<T, double> ? "f64" : "other";
}

/// Any callable, `f()` or `f(Index copy)`.
class Work {
 public:
  Work() = default;
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, Work> && (std::invocable<F&, Index> || std::invocable<F&>)) Work(F f) {
    if constexpr (std::invocable<F&, Index>) {
      run_ = std::move(f);
    } else {
      run_ = [f = std::move(f)](Index) mutable { f(); };
    }
  }
  explicit operator bool() const { return static_cast<bool>(run_); }
  void operator()(Index copy) const { run_(copy); }

 private:
  std::function<void(Index)> run_;
};

/// What calls took: by the clock, and what of it this thread was running. They differ when another process took the core.
struct Span {
  double seconds = 0, running = 0;
  bool preempted() const { return seconds - running > 0.02 * seconds + 2e-6; }
};

/// Someone else doing the same work: counters `vs_NAME` (ratio of the medians) and `vs_NAME_q10` (of the low quantiles).
struct Peer {
  std::string name;
  Work run;
  Work prepare = {};                                     ///< before each call, not timed: restores what `run` consumes
  std::function<Span(int calls, bool warm)> timed = {};  ///< instead of `run`: does so many calls and times them itself
  std::string skipped = {};                              ///< why it is not there; the case runs without it and says so
};

/// A peer that was not found when this was built; `package` is what brings it.
inline Peer skipped_peer(std::string name, const std::string& package) {
  Peer peer;
  peer.name = std::move(name);
  peer.skipped = package + " was not found when this was built; scripts/bench --install-peers";
  return peer;
}

/// Which copy the next call gets. All of a case share one, so that a copy comes round again only after all others were touched.
struct Turn {
  Index copies = 1, at = 0;
  Index next() { return std::exchange(at, at + 1 == copies ? 0 : at + 1); }
};

namespace detail {

template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// `calls` in a row. What `prepare` does beforehand, for as many copies as there are, is not timed.
inline Span time_calls(const Work& run, const Work& prepare, int calls, Turn& turn) {
  Span total;
  for (int done = 0; done < calls;) {
    int batch = calls;
    if (prepare) {
      batch = static_cast<int>(std::min<Index>(calls - done, turn.copies));
      Turn ahead = turn;
      for (int i = 0; i < batch; ++i) prepare(ahead.next());
    }
    const double before = thread_seconds();
    total.seconds += seconds([&] {
      for (int i = 0; i < batch; ++i) run(turn.next());
    });
    total.running += thread_seconds() - before;
    done += batch;
  }
  return total;
}

/// Sorted copy's element at share `q`.
inline double quantile(std::vector<double> x, double q) {
  const auto at = x.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(x.size() - 1));
  std::nth_element(x.begin(), at, x.end());
  return *at;
}

/// A runner of slices: calls that together fill about `target` seconds, warmed by one call that is not timed.
class Slice {
 public:
  Slice(Peer what, Turn& turn, bool warm, double target) : what_(std::move(what)), turn_(&turn), warm_(warm) {
    run(1);
    const double once = std::max(1e-9, std::min(run(1).seconds, run(3).seconds / 3));
    calls_ = static_cast<int>(std::clamp(target / once, 1.0, 1e7));
    warm_ = warm && once < 3e-3;
    seconds_ = once * calls_;
  }
  /// One slice more. One during which another process ran is put aside.
  void take() {
    const Span span = run(calls_);
    (span.preempted() ? preempted_ : times_).push_back(span.seconds / calls_);
  }
  double typical_seconds() const { return seconds_; }
  /// Of one call, in the quietest moments; in quiet ones; usually.
  double quiet() const { return quantile(times(), 0.02); }
  double low() const { return quantile(times(), 0.1); }
  double median() const { return quantile(times(), 0.5); }
  /// The quietest of the first and of the second half.
  std::pair<double, double> halves() const {
    const std::vector<double>& t = times();
    const auto middle = t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2);
    return {quantile({t.begin(), middle}, 0.02), quantile({middle, t.end()}, 0.02)};
  }
  std::size_t taken() const { return times_.size() + preempted_.size(); }
  /// Too few slices had the core to themselves.
  bool crowded() const { return times_.size() < 5; }
  void clear() {
    times_.clear();
    preempted_.clear();
  }
  const std::string& name() const { return what_.name; }

 private:
  const std::vector<double>& times() const { return crowded() && preempted_.size() > times_.size() ? preempted_ : times_; }
  Span run(int calls) {
    if (what_.timed) return what_.timed(calls, warm_);
    if (warm_) {
      if (what_.prepare) what_.prepare(turn_->at);
      what_.run(turn_->next());
    }
    return time_calls(what_.run, what_.prepare, calls, *turn_);
  }
  Peer what_;
  Turn* turn_;
  bool warm_;
  int calls_ = 1;
  double seconds_ = 0;
  std::vector<double> times_, preempted_;
};

}  // namespace detail
}  // namespace recops_bench
