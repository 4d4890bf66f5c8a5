/// @file   examples/common/seeds.hpp
/// @brief  A comparison over several seeds: means, and paired differences with a 95 % confidence interval.
///
/// Systems that share seed, data and order of training differ for their own sake; the difference per seed is what counts, not
/// the scatter of the runs.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/matrix.hpp>
#include <recops/core/views.hpp>
#include <string>
#include <utility>
#include <vector>

namespace examples {

using recops::Index;

namespace detail {

/// Regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method), to about 1e-14.
inline double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incomplete_beta(b, a, 1 - x);
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  constexpr double tiny = 1e-300;
  const auto safe = [](double v) { return std::abs(v) < tiny ? tiny : v; };
  double c = 1, d = 1 / safe(1 - (a + b) * x / (a + 1)), f = d;
  for (int m = 1; m < 10000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / safe(1 + even * d);
    c = safe(1 + even / c);
    f *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / safe(1 + odd * d);
    c = safe(1 + odd / c);
    f *= d * c;
    if (std::abs(d * c - 1) < 1e-15) break;
  }
  return front * f / a;
}

}  // namespace detail

/// P(T <= t) of Student's distribution with `df` degrees of freedom.
inline double student_t_cdf(double t, double df) {
  const double tail = 0.5 * detail::incomplete_beta(0.5 * df, 0.5, df / (df + t * t));
  return t > 0 ? 1 - tail : tail;
}

/// The t with P(T <= t) = p, e.g. 2.776 for p = 0.975 and 4 degrees of freedom. Bisection, to about 1e-12.
inline double student_t_quantile(double p, double df) {
  recops::check_option("student_t_quantile", "p", p > 0 && p < 1, "0 < p < 1", p);
  recops::check_option("student_t_quantile", "df", df > 0, "df > 0", df);
  if (p < 0.5) return -student_t_quantile(1 - p, df);
  double high = 1;
  while (student_t_cdf(high, df) < p && high < 1e12) high *= 2;
  double low = 0;
  for (int step = 0; step < 200 && high - low > 1e-13 * high; ++step) {
    const double middle = 0.5 * (low + high);
    (student_t_cdf(middle, df) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

/// mean ± half_width. With fewer than two values the half width is NaN: nothing is known.
struct Interval {
  double mean = std::numeric_limits<double>::quiet_NaN(), half_width = std::numeric_limits<double>::quiet_NaN();
  double low() const { return mean - half_width; }
  double high() const { return mean + half_width; }
};

/// Mean of `values` with its t-interval: where the true mean of such values lies with the given confidence.
inline Interval t_interval(recops::VectorView<const double> values, double confidence = 0.95) {
  Interval out;
  const auto n = static_cast<double>(values.size());
  if (n == 0) return out;
  double sum = 0, squares = 0;
  for (const double v : values) sum += v;
  out.mean = sum / n;
  if (n < 2) return out;
  for (const double v : values) squares += (v - out.mean) * (v - out.mean);
  out.half_width = student_t_quantile(0.5 + 0.5 * confidence, n - 1) * std::sqrt(squares / (n - 1) / n);
  return out;
}

/// The seeds the examples compare systems over.
inline std::vector<std::uint64_t> default_seeds() { return {1, 2, 3, 4, 5}; }

/// One metric of several systems under several seeds.
class SeedTable {
 public:
  SeedTable(std::string metric, std::vector<std::string> systems, std::vector<std::uint64_t> seeds = default_seeds())
      : metric_(std::move(metric)),
        systems_(std::move(systems)),
        seeds_(std::move(seeds)),
        values_(static_cast<Index>(systems_.size()), static_cast<Index>(seeds_.size()),
                std::numeric_limits<double>::quiet_NaN()) {}

  const std::vector<std::uint64_t>& seeds() const { return seeds_; }
  Index systems() const { return values_.rows(); }
  const std::string& metric() const { return metric_; }

  void set(Index system, Index seed, double value) {
    check(system, "SeedTable::set");
    recops::check_option("SeedTable::set", "seed", 0 <= seed && seed < values_.cols(), "the place of a seed in the table",
                         static_cast<double>(seed));
    values_(system, seed) = value;
  }
  double value(Index system, Index seed) const { return values_(system, seed); }

  /// Over the seeds whose value is known.
  Interval summary(Index system) const {
    check(system, "SeedTable::summary");
    std::vector<double> known;
    for (Index s = 0; s < values_.cols(); ++s)
      if (!std::isnan(values_(system, s))) known.push_back(values_(system, s));
    return t_interval(known);
  }
  /// `system` minus `baseline`, over the seeds that both have run.
  Interval difference(Index system, Index baseline) const {
    check(system, "SeedTable::difference");
    check(baseline, "SeedTable::difference");
    std::vector<double> known;
    for (Index s = 0; s < values_.cols(); ++s) {
      const double d = values_(system, s) - values_(baseline, s);
      if (!std::isnan(d)) known.push_back(d);
    }
    return t_interval(known);
  }

  /// The table as text: a row per system with its value per seed, mean, and difference from the baseline; of one seed without an
  /// interval, as nothing is known of it.
  std::string text(Index baseline = 0, int digits = 4) const {
    check(baseline, "SeedTable::text");
    const std::string& base = systems_[static_cast<std::size_t>(baseline)];
    std::vector<std::vector<std::string>> cells(1, {metric_});
    for (const std::uint64_t seed : seeds_) cells[0].push_back("seed " + std::to_string(seed));
    cells[0].insert(cells[0].end(), {"mean", "minus " + base + (seeds_.size() > 1 ? " (95 %)" : ", one seed")});
    for (Index r = 0; r < systems(); ++r) {
      std::vector<std::string> row{systems_[static_cast<std::size_t>(r)]};
      for (Index s = 0; s < values_.cols(); ++s) row.push_back(number(values_(r, s), digits, false));
      row.push_back(number(summary(r).mean, digits, false));
      const Interval d = difference(r, baseline);
      const std::string sure = seeds_.size() > 1 ? " ± " + number(d.half_width, digits, false) : "";
      row.push_back(r == baseline ? "" : number(d.mean, digits, true) + sure);
      cells.push_back(std::move(row));
    }
    std::vector<std::size_t> width(cells[0].size(), 0);
    for (const auto& row : cells)
      for (std::size_t c = 0; c < row.size(); ++c) width[c] = std::max(width[c], columns(row[c]));
    std::string out;
    for (const auto& row : cells) {
      std::string line;
      for (std::size_t c = 0; c < row.size(); ++c) {
        const std::string gap(width[c] - columns(row[c]), ' ');
        line += c == 0 ? row[c] + gap : "  " + gap + row[c];
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + "\n";
    }
    return out;
  }
  void print(std::FILE* out = stdout, Index baseline = 0, int digits = 4) const {
    std::fputs(text(baseline, digits).c_str(), out);
  }

 private:
  void check(Index system, const char* operation) const {
    recops::check_option(operation, "system", 0 <= system && system < systems(), "the place of a system in the table",
                         static_cast<double>(system));
  }
  static std::string number(double x, int digits, bool sign) {
    if (std::isnan(x)) return "-";
    char out[64];
    std::snprintf(out, sizeof out, sign ? "%+.*f" : "%.*f", digits, x);
    return out;
  }
  /// Places a text takes on a terminal: code points of its UTF-8.
  static std::size_t columns(const std::string& text) {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  }

  std::string metric_;
  std::vector<std::string> systems_;
  std::vector<std::uint64_t> seeds_;
  recops::Matrix<double> values_;  // [systems, seeds], NaN where not run
};

/// Runs `run(system, seed)` -> metric for every system and seed, seed by seed, and fills a table.
template <class Run>
SeedTable compare(std::string metric, std::vector<std::string> systems, Run&& run,
                  std::vector<std::uint64_t> seeds = default_seeds()) {
  SeedTable table(std::move(metric), std::move(systems), std::move(seeds));
  for (Index s = 0; s < static_cast<Index>(table.seeds().size()); ++s)
    for (Index r = 0; r < table.systems(); ++r) table.set(r, s, run(r, table.seeds()[static_cast<std::size_t>(s)]));
  return table;
}

}  // namespace examples
