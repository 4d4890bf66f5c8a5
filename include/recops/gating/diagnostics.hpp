/// @file   recops/gating/diagnostics.hpp
/// @brief  Names the diseases of a mixture of experts on a running model: collapse, degradation, underfitting.
///
///     collapse       an expert whose outputs are nearly all zero, or far smaller than another's, or that takes over every task
///     degradation    a shared expert that one task (or two) has taken for itself
///     underfitting   a task that ignores the experts made for it
///
/// An `ExpertMonitor` watches batches (`add`), monitors of several threads or shards `merge`, `report` says what it saw: numbers,
/// a table (`text`), JSON.
///
/// Shapes      experts [B, E H], the outputs of all experts   gates [B, G] in the layout of the GateMap
/// Edge cases  Gates of a task count as shares of their sum, so that gates joined with self gates may be given.   A row with a NaN
///             or infinity in outputs or gates is left out and counted.   Nothing seen: rates are NaN, `null` in JSON, and no
///             disease is named.
/// Precision   a batch is summed in double, batches in two doubles: merged shards agree in all but the rarest last bit.
/// Cost        one pass over the outputs of the experts; E (H + 6) + 4 G numbers are kept.
/// Errors      Error if shapes or options disagree, before anything is counted.
/// Reference   Wang et al., "HoME", arXiv 2408.05430, section 1 and figure 2 (the three diseases); limits are our reconstruction.
#pragma once
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <recops/core/matrix.hpp>
#include <recops/gating/gate_map.hpp>
#include <recops/metrics/common.hpp>
#include <recops/simd/reduce.hpp>
#include <string>

namespace recops {

/// From where on something is called a disease.
struct ExpertLimits {
  double zero = 0;         ///< outputs of at most this size count as zero: 0 for relu, 1e-3 for silu
  double zero_rate = 0.9;  ///< collapse: share of zeros above this
  double scale = 10;       ///< collapse: root mean square this many times smaller than the largest expert's; below 3 is healthy
  double takeover = 0.98;  ///< collapse: mean gate above this in every task of two or more that see it
  double occupancy = 0.8;  ///< degradation: share of a shared expert's gates that one task has
  double occupancy_two = 0.9;  ///< degradation: that two tasks have, where three or more see it
  double own = 0.1;            ///< underfitting: a task's own experts get less than this times their fair share
};

/// What an `ExpertMonitor` saw. Everything is NaN where nothing was seen.
struct ExpertReport {
  struct Expert {
    double zero_rate = 0;   ///< of all outputs
    double dead_units = 0;  ///< share of units that were zero in every row
    double mean = 0, deviation = 0, rms = 0;
    double occupancy = 0, occupancy_two = 0;  ///< share of its gates that the first and the first two tasks have
    double load = 0;                          ///< mean gate, over the tasks that see it
    Index owner = -1;                         ///< the task that has most of it
    Index seen_by = 0;                        ///< tasks
    bool collapsed = false, degraded = false;
  };
  struct Task {
    double entropy = 0;            ///< of its gates, as a share of the most there can be; 1 where it sees one expert
    double effective_experts = 0;  ///< e^entropy
    double dominance = 0;          ///< mean of its largest gate
    double own_share = 0;          ///< mean gate of its own experts together
    double fair_share = 0;         ///< own experts / visible ones
    double own_contribution = 0;   ///< the same as own_share, with gates times the length of the expert's output
    double positive_rate = 0;      ///< as given, or NaN
    bool underfitted = false;
  };
  struct Gate {
    Index task = 0, expert = 0;
    double mean = 0, deviation = 0;
    double contribution = 0;  ///< share of gate times length: a gate alone misleads where experts differ in scale
  };
  Index rows = 0, skipped_rows = 0;
  double scale_ratio = 0;  ///< largest by smallest rms of an expert
  std::vector<Expert> experts;
  std::vector<Task> tasks;
  std::vector<Gate> gates;

  bool healthy() const { return collapsed() + degraded() + underfitted() == 0; }
  Index collapsed() const { return count(experts, &Expert::collapsed); }
  Index degraded() const { return count(experts, &Expert::degraded); }
  Index underfitted() const { return count(tasks, &Task::underfitted); }

  /// A table for people: a row per expert, a row per task, and what is wrong. Names may be empty.
  std::string text(const std::vector<std::string>& expert_names = {}, const std::vector<std::string>& task_names = {}) const {
    const auto name = [](const std::vector<std::string>& names, const char* kind, std::size_t i) {
      return i < names.size() ? names[i] : std::string(kind) + " " + std::to_string(i);
    };
    std::string out;
    const auto line = [&](const char* format, auto... values) {
      char row[256];
      const int length = std::snprintf(row, sizeof row, format, values...);
      out += row;
      if (length >= static_cast<int>(sizeof row)) out.back() = '\n';  // a long name is cut, its line still ends
    };
    line("%-18s %6s %6s %9s %9s %7s %10s  %s\n", "expert", "zeros", "dead", "rms", "mean gate", "seen by", "occupancy", "");
    for (std::size_t e = 0; e < experts.size(); ++e) {
      const Expert& x = experts[e];
      const std::string owner =
          x.owner >= 0 && x.seen_by > 1 ? " by " + name(task_names, "task", static_cast<std::size_t>(x.owner)) : "";
      line("%-18.18s %6.3f %6.3f %9.3g %9.3f %7td %10.3f  %s%s%s\n", name(expert_names, "expert", e).c_str(), x.zero_rate,
           x.dead_units, x.rms, x.load, x.seen_by, x.occupancy, x.collapsed ? "COLLAPSED " : "", x.degraded ? "DEGRADED" : "",
           x.degraded ? owner.c_str() : "");
    }
    line("%-18s %7s %9s %8s %9s %8s %9s\n", "task", "entropy", "effective", "largest", "own share", "of fair", "positives");
    for (std::size_t t = 0; t < tasks.size(); ++t) {
      const Task& x = tasks[t];
      line("%-18.18s %7.3f %9.2f %8.3f %9.3f %8.2f %9.4f  %s\n", name(task_names, "task", t).c_str(), x.entropy,
           x.effective_experts, x.dominance, x.own_share, x.own_share / x.fair_share, x.positive_rate,
           x.underfitted ? "UNDERFITTED" : "");
    }
    line("%td rows (%td skipped), largest by smallest scale %.3g; %td collapsed, %td degraded, %td underfitted\n", rows,
         skipped_rows, scale_ratio, collapsed(), degraded(), underfitted());
    return out;
  }

  /// The same as one JSON object; what is not a number is `null`.
  std::string json() const {
    std::string out = "{\"rows\": " + std::to_string(rows) + ", \"skipped_rows\": " + std::to_string(skipped_rows);
    const auto number = [&](const char* key, double x) {
      char text[32];
      char* const end = std::isfinite(x) ? std::to_chars(text, text + sizeof text, x, std::chars_format::general, 17).ptr
                                         : std::copy_n("null", 4, text);  // snprintf writes a comma in some locales
      out += std::string(", \"") + key + "\": " + std::string(text, end);
    };
    const auto whole = [&](const char* key, Index x) { out += std::string(", \"") + key + "\": " + std::to_string(x); };
    const auto flag = [&](const char* key, bool x) { out += std::string(", \"") + key + (x ? "\": true" : "\": false"); };
    const auto list = [&](const char* key, const auto& items, auto&& write) {
      out += std::string(", \"") + key + "\": [";
      for (std::size_t i = 0; i < items.size(); ++i) {
        out += i == 0 ? "{" : ", {";
        out += "\"index\": " + std::to_string(i);
        write(items[i]);
        out += "}";
      }
      out += "]";
    };
    number("scale_ratio", scale_ratio);
    whole("collapsed", collapsed());
    whole("degraded", degraded());
    whole("underfitted", underfitted());
    list("experts", experts, [&](const Expert& x) {
      number("zero_rate", x.zero_rate);
      number("dead_units", x.dead_units);
      number("mean", x.mean);
      number("deviation", x.deviation);
      number("rms", x.rms);
      number("load", x.load);
      number("occupancy", x.occupancy);
      number("occupancy_two", x.occupancy_two);
      whole("owner", x.owner);
      whole("seen_by", x.seen_by);
      flag("collapsed", x.collapsed);
      flag("degraded", x.degraded);
    });
    list("tasks", tasks, [&](const Task& x) {
      number("entropy", x.entropy);
      number("effective_experts", x.effective_experts);
      number("dominance", x.dominance);
      number("own_share", x.own_share);
      number("fair_share", x.fair_share);
      number("own_contribution", x.own_contribution);
      number("positive_rate", x.positive_rate);
      flag("underfitted", x.underfitted);
    });
    list("gates", gates, [&](const Gate& x) {
      whole("task", x.task);
      whole("expert", x.expert);
      number("mean", x.mean);
      number("deviation", x.deviation);
      number("contribution", x.contribution);
    });
    return out + "}";
  }

 private:
  template <class Item>
  static Index count(const std::vector<Item>& items, bool Item::*flag) {
    Index n = 0;
    for (const Item& i : items) n += i.*flag;
    return n;
  }
};

inline namespace RECOPS_ABI {

/// See the head of this file. One per thread; a copy of an empty one is another shard.
class ExpertMonitor {
 public:
  /// `own[t]`: the experts made for task t, which others may see too; empty: those that no other task sees. All others are shared.
  ExpertMonitor(GateMap map, Index outputs, const ExpertLimits& limits = {}, std::vector<std::vector<Index>> own = {})
      : map_(std::move(map)), limits_(limits), outputs_(outputs) {
    const char* const name = "ExpertMonitor";
    check_option(name, "tasks", map_.tasks() >= 1, "a GateMap with tasks", static_cast<double>(map_.tasks()));
    check_option(name, "outputs", outputs >= 1, "outputs >= 1", static_cast<double>(outputs));
    check_option(name, "zero", limits.zero >= 0 && std::isfinite(limits.zero), "zero >= 0", limits.zero);
    check_option(name, "own", own.empty() || static_cast<Index>(own.size()) == map_.tasks(), "one list per task, or none",
                 static_cast<double>(own.size()));
    for (std::size_t t = 0; t < own.size(); ++t)
      for (const Index e : own[t]) {
        bool sees = false;
        for (Index g = map_.begin(static_cast<Index>(t)); g < map_.end(static_cast<Index>(t)); ++g) sees |= map_.expert(g) == e;
        check_option(name, "own expert", sees, "an expert that its task sees", static_cast<double>(e));
      }
    const auto experts = static_cast<std::size_t>(map_.experts()), gates = static_cast<std::size_t>(map_.size());
    std::vector<Index> seen(experts, 0);
    for (Index g = 0; g < map_.size(); ++g) ++seen[at(map_.expert(g))];
    owned_.assign(gates, 0);
    for (Index t = 0; t < map_.tasks(); ++t)
      for (Index g = map_.begin(t); g < map_.end(t); ++g) {
        const Index e = map_.expert(g);
        owned_[at(g)] = own.empty() ? seen[at(e)] == 1 && map_.tasks() > 1
                                    : std::find(own[at(t)].begin(), own[at(t)].end(), e) != own[at(t)].end();
      }
    experts_.resize(experts);
    gates_.resize(gates);
    tasks_.resize(static_cast<std::size_t>(map_.tasks()));
    active_.assign(experts * at(outputs), 0);
  }

  /// Counts a batch.
  template <Real T>
  void add(MatrixView<const T> experts, MatrixView<const T> gates) {
    const char* const name = "ExpertMonitor::add";
    check_shape(name, "experts", experts, any_size, map_.experts() * outputs_);
    check_shape(name, "gates", gates, experts.rows(), map_.size());
    largest_.resize(experts.cols() * static_cast<Index>(sizeof(T)));
    T* const largest = reinterpret_cast<T*>(largest_.data());
    std::fill_n(largest, experts.cols(), T(0));
    for (Index r = 0; r < experts.rows(); ++r) add_row(experts.row(r), gates.row(r), largest);
    const T zero = static_cast<T>(limits_.zero);
    for (std::size_t i = 0; i < active_.size(); ++i) active_[i] = static_cast<std::uint8_t>(active_[i] | (largest[i] > zero));
    for (Expert& e : experts_) flush(e.now, e.total);
    for (Gate& g : gates_) flush(g.now, g.total);
    for (Task& t : tasks_) flush(t.now, t.total);
  }

  /// Counts what another monitor saw. Throws `Error` if that has another map, other outputs, or counts other outputs as zero.
  void merge(const ExpertMonitor& other) {
    check_option("ExpertMonitor::merge", "other",
                 other.map_ == map_ && other.outputs_ == outputs_ && other.limits_.zero == limits_.zero,
                 "a monitor of the same mixture", static_cast<double>(other.gates_.size()));
    rows_ += other.rows_;
    skipped_ += other.skipped_;
    for (std::size_t i = 0; i < active_.size(); ++i) active_[i] |= other.active_[i];
    const auto join = [](auto& mine, const auto& theirs) {
      for (std::size_t i = 0; i < mine.size(); ++i)
        for (std::size_t k = 0; k < mine[i].total.size(); ++k) mine[i].total[k].merge(theirs[i].total[k]);
    };
    join(experts_, other.experts_);
    join(gates_, other.gates_);
    join(tasks_, other.tasks_);
  }

  /// `positive_rates` [T] of the tasks' labels, or empty, are carried along: it is sparse tasks that are underfitted.
  ExpertReport report(VectorView<const double> positive_rates = {}) const {
    if (!positive_rates.empty()) check_size("ExpertMonitor::report", "positive_rates", positive_rates, map_.tasks());
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    ExpertReport report;
    report.rows = rows_;
    report.skipped_rows = skipped_;
    report.experts.resize(experts_.size());
    report.tasks.resize(tasks_.size());
    report.gates.resize(gates_.size());
    const auto n = static_cast<double>(rows_), values = n * static_cast<double>(outputs_);
    const bool seen = rows_ > 0;
    double largest = 0, smallest = std::numeric_limits<double>::infinity();
    for (std::size_t e = 0; e < experts_.size(); ++e) {
      const auto& sums = experts_[e].total;
      ExpertReport::Expert& x = report.experts[e];
      x.zero_rate = seen ? sums[zeros].value() / values : nan;
      Index dead = 0;
      for (std::size_t j = 0; j < at(outputs_); ++j) dead += active_[e * at(outputs_) + j] == 0;
      x.dead_units = seen ? static_cast<double>(dead) / static_cast<double>(outputs_) : nan;
      x.mean = seen ? sums[first].value() / values : nan;
      x.rms = seen ? std::sqrt(sums[second].value() / values) : nan;
      x.deviation = seen ? std::sqrt(std::max(0.0, x.rms * x.rms - x.mean * x.mean)) : nan;
      x.load = x.occupancy = x.occupancy_two = nan;
      largest = std::max(largest, x.rms);
      smallest = std::min(smallest, x.rms);
    }
    report.scale_ratio = seen ? largest / smallest : nan;

    std::vector<char> owned(experts_.size(), 0);
    std::vector<double> gate_sum(experts_.size(), 0), most(experts_.size(), 0), next(experts_.size(), 0),
        least(experts_.size(), 2);
    for (Index t = 0; t < map_.tasks(); ++t) {
      ExpertReport::Task& task = report.tasks[at(t)];
      task.positive_rate = positive_rates.empty() ? nan : positive_rates[t];
      const Index visible = map_.count(t);
      double lengths = 0, entropy = 0, own = 0, own_length = 0;
      Index own_count = 0;
      for (Index g = map_.begin(t); g < map_.end(t); ++g) lengths += gates_[at(g)].total[2].value();
      for (Index g = map_.begin(t); g < map_.end(t); ++g) {
        const auto& sums = gates_[at(g)].total;
        const auto e = at(map_.expert(g));
        ExpertReport::Gate& gate = report.gates[at(g)];
        gate.task = t;
        gate.expert = map_.expert(g);
        gate.mean = seen ? sums[0].value() / n : nan;
        gate.deviation = seen ? std::sqrt(std::max(0.0, sums[1].value() / n - gate.mean * gate.mean)) : nan;
        gate.contribution = lengths > 0 ? sums[2].value() / lengths : nan;
        if (owned_[at(g)]) {
          ++own_count;
          owned[e] = 1;
          own += gate.mean;
          own_length += gate.contribution;
        }
        if (!seen) continue;
        ExpertReport::Expert& x = report.experts[e];
        ++x.seen_by;
        gate_sum[e] += gate.mean;
        least[e] = std::min(least[e], gate.mean);
        if (gate.mean > most[e]) {
          next[e] = most[e];
          most[e] = gate.mean;
          x.owner = t;
        } else {
          next[e] = std::max(next[e], gate.mean);
        }
      }
      entropy = seen ? tasks_[at(t)].total[0].value() / n : nan;
      task.entropy = visible > 1 ? entropy / std::log(static_cast<double>(visible)) : seen ? 1 : nan;
      task.effective_experts = std::exp(entropy);
      task.dominance = seen ? tasks_[at(t)].total[1].value() / n : nan;
      task.fair_share = visible > 0 && own_count > 0 ? static_cast<double>(own_count) / static_cast<double>(visible) : nan;
      task.own_share = own_count > 0 ? own : nan;
      task.own_contribution = own_count > 0 ? own_length : nan;
      task.underfitted = seen && own_count > 0 && own_count < visible && own < limits_.own * task.fair_share;
    }
    for (std::size_t e = 0; seen && e < experts_.size(); ++e) {
      ExpertReport::Expert& x = report.experts[e];
      if (x.seen_by > 0) x.load = gate_sum[e] / static_cast<double>(x.seen_by);
      if (gate_sum[e] > 1e-9) {
        x.occupancy = most[e] / gate_sum[e];
        x.occupancy_two = (most[e] + next[e]) / gate_sum[e];
      }
      x.collapsed = x.zero_rate > limits_.zero_rate || x.rms * limits_.scale < largest ||
                    (x.seen_by > 1 && map_.experts() > 1 && least[e] > limits_.takeover);
      x.degraded = x.seen_by > 1 && !owned[e] &&
                   (x.occupancy > limits_.occupancy || (x.seen_by > 2 && x.occupancy_two > limits_.occupancy_two));
    }
    return report;
  }

  Index rows() const { return rows_; }

 private:
  enum { zeros, first, second };  // sums of an expert: zeros, outputs, their squares
  template <std::size_t N>
  struct Sums {
    std::array<double, N> now{};  ///< of the batch being counted
    std::array<MergeableSum, N> total{};
  };
  using Expert = Sums<3>;
  using Gate = Sums<3>;  ///< gate, its square, gate times length of the output
  using Task = Sums<2>;  ///< entropy, largest gate

  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  template <std::size_t N>
  static void flush(std::array<double, N>& now, std::array<MergeableSum, N>& total) {
    for (std::size_t k = 0; k < N; ++k) total[k].add(std::exchange(now[k], 0.0));
  }

  template <class T>
  void add_row(const T* experts, const T* gates, T* largest) {
    double check = 0;
    for (Index g = 0; g < map_.size(); ++g) check += static_cast<double>(gates[g]);
    lengths_.resize(at(map_.experts()));
    for (Index e = 0; e < map_.experts(); ++e) {
      const T* const a = experts + e * outputs_;
      auto square = static_cast<double>(simd::dot<T>(a, a, outputs_));
      if (!std::isfinite(square)) {  // finite outputs may be too large to square in T: an expert that explodes must not go unseen
        square = 0;
        for (Index j = 0; j < outputs_; ++j) square += static_cast<double>(a[j]) * static_cast<double>(a[j]);
      }
      lengths_[at(e)] = square;
      check += square;
    }
    if (!std::isfinite(check)) {
      ++skipped_;
      return;
    }
    ++rows_;
    using B = simd::Batch<T>;
    const B zero(static_cast<T>(limits_.zero)), none(T(0)), one(T(1));
    for (Index e = 0; e < map_.experts(); ++e) {
      const T* const a = experts + e * outputs_;
      T* const most = largest + e * outputs_;
      B active(T(0));
      simd::for_each_vector<T, simd::DefaultArch>(outputs_, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const B size = xsimd::abs(load(a + j));
        active = active + xsimd::select(size > zero, one, none);
        store(most + j, xsimd::max(size, load(most + j)));
      });
      const double count = static_cast<double>(outputs_) - static_cast<double>(simd::sum_lanes(active));
      auto& now = experts_[at(e)].now;
      now[zeros] += count;
      auto sum = static_cast<double>(simd::sum<T>(a, outputs_));
      if (!std::isfinite(sum)) {
        sum = 0;
        for (Index j = 0; j < outputs_; ++j) sum += static_cast<double>(a[j]);
      }
      now[first] += sum;
      now[second] += lengths_[at(e)];
      lengths_[at(e)] = std::sqrt(lengths_[at(e)]);
    }
    for (Index t = 0; t < map_.tasks(); ++t) {
      double total = 0, entropy = 0, most = 0;
      for (Index g = map_.begin(t); g < map_.end(t); ++g) total += static_cast<double>(gates[g]);
      if (!(total > 0)) continue;
      for (Index g = map_.begin(t); g < map_.end(t); ++g) {
        const double share = static_cast<double>(gates[g]) / total;
        auto& now = gates_[at(g)].now;
        now[0] += share;
        now[1] += share * share;
        now[2] += share * lengths_[at(map_.expert(g))];
        if (share > 0) entropy -= share * std::log(share);
        most = std::max(most, share);
      }
      tasks_[at(t)].now[0] += entropy;
      tasks_[at(t)].now[1] += most;
    }
  }

  GateMap map_;
  ExpertLimits limits_;
  Index outputs_ = 0, rows_ = 0, skipped_ = 0;
  std::vector<Expert> experts_;
  std::vector<Gate> gates_;
  std::vector<Task> tasks_;
  std::vector<std::uint8_t> active_, owned_;
  Vector<std::byte> largest_;  // T [E H], of the batch being counted
  std::vector<double> lengths_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
