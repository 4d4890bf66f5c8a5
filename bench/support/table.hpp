/// @file   bench/support/table.hpp
/// @brief  The table that a person reads: a line per case with its time, its share of the limits, and the peers beside it.
#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

namespace recops_bench {

/// How a case is measured is the same for all: names go without it, so that they are those that were registered.
inline benchmark::BenchmarkReporter::Run plainly_named(benchmark::BenchmarkReporter::Run run) {
  run.run_name.iterations.clear();
  run.run_name.time_type.clear();
  return run;
}

/// Google Benchmark's JSON, with those names.
class Json : public benchmark::JSONReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override {
    std::vector<Run> named;
    for (const Run& run : runs) named.push_back(plainly_named(run));
    benchmark::JSONReporter::ReportRuns(named);
  }
};

/// Written to standard output.
class Table : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override {
    width_ = std::max<std::size_t>(context.name_field_width, 40) - 24;  // the names of the context are the long ones
    std::printf("%-*s %12s  %s\n", static_cast<int>(width_), "case", "time",
                "share of the limits; times faster than peers (low quantile)");
    return true;
  }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const std::string name = plainly_named(run).benchmark_name();
      if (run.error_occurred) {
        std::printf("%-*s %s\n", static_cast<int>(width_), name.c_str(), run.error_message.c_str());
        continue;
      }
      const auto value = [&](const std::string& key) {
        const auto at = run.counters.find(key);
        return at == run.counters.end() ? 0.0 : static_cast<double>(at->second);
      };
      std::string line, peers;
      char text[96];
      for (const auto& [key, counter] : run.counters) {
        const double v = counter;
        if (key.rfind("of_", 0) == 0 || key == "GFLOPS" || key == "GB/s") {
          std::snprintf(text, sizeof text, key[0] == 'o' ? "  %s %.3f" : "  %s %.1f", key.c_str(), v);
          line += text;
        } else if (key.rfind("vs_", 0) == 0 && (key.size() < 4 || key.substr(key.size() - 4) != "_q10")) {
          std::snprintf(text, sizeof text, "  %s %.3g (%.3g)", key.c_str() + 3, v, value(key + "_q10"));
          peers += text;
        } else if (key == "ns_each") {
          std::snprintf(text, sizeof text, "  %s %.3f", key.c_str(), v);
          line += text;
        }
      }
      std::printf("%-*s %9.3f us%s%s%s  [%s]\n", static_cast<int>(width_), name.c_str(), value("us"), line.c_str(),
                  peers.empty() ? "" : "  |", peers.c_str(), run.report_label.c_str());
      std::fflush(stdout);
    }
  }

 private:
  std::size_t width_ = 10;
};

}  // namespace recops_bench
