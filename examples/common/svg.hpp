/// @file   examples/common/svg.hpp
/// @brief  Line and scatter charts as SVG: axes with round ticks, logarithmic if asked for, error bars, bands and a legend.
///
///     examples::SvgChart chart{.title = "Speed", .x_label = "length", .y_label = "microseconds", .log_x = true};
///     chart.series.push_back({.name = "recops", .x = {1, 10, 100}, .y = {2, 3, 9}});
///     examples::write_svg("speed.svg", chart);
#pragma once
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/views.hpp>
#include <string>
#include <vector>

#include "tsv.hpp"

namespace examples {

using recops::Index;

/// One line or cloud. Points that are not finite (or beyond 1e150), or not positive on a logarithmic axis, are left out and
/// interrupt the line.
struct SvgSeries {
  std::string name = {};                    ///< in the legend; empty = not listed
  std::vector<double> x = {}, y = {};       ///< the same size
  std::vector<double> low = {}, high = {};  ///< interval around y, absolute; the same size or empty
  bool line = true;                         ///< join the points in their order
  bool points = true;                       ///< mark the points
  bool band = false;                        ///< draw the interval as a band; otherwise as error bars
};

struct SvgChart {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_x = false, log_y = false;
  int width = 720, height = 440;  ///< pixels
  std::vector<SvgSeries> series = {};
};

/// `text` with the characters that mean something in XML escaped; control characters, which XML forbids, become spaces.
inline std::string xml_escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
    }
  }
  return out;
}

/// Round numbers (1, 2 or 5 times a power of ten apart) that lie in [low, high], about `count` of them.
inline std::vector<double> nice_ticks(double low, double high, int count) {
  std::vector<double> out;
  if (!(high > low) || count < 1) return {low};
  const double raw = (high - low) / count, power = std::pow(10.0, std::floor(std::log10(raw))), ratio = raw / power;
  const double step = power * (ratio < 1.5 ? 1 : ratio < 3.5 ? 2 : ratio < 7.5 ? 5 : 10);
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) out.push_back(k == 0 ? 0.0 : k * step);
  return out;
}

/// Powers of ten in [low, high], with 2 and 5 between them if there are fewer than three; every n-th if there are many.
inline std::vector<double> log_ticks(double low, double high) {
  const int first = static_cast<int>(std::floor(std::log10(low) - 1e-9)),
            last = static_cast<int>(std::ceil(std::log10(high) + 1e-9));
  const auto collect = [&](std::initializer_list<double> factors, int every) {
    std::vector<double> out;
    for (int e = first; e <= last; ++e) {
      if (((e % every) + every) % every != 0) continue;
      for (const double f : factors) {
        const double tick = f * std::pow(10.0, e);
        if (tick >= low * (1 - 1e-9) && tick <= high * (1 + 1e-9)) out.push_back(tick);
      }
    }
    return out;
  };
  std::vector<double> out = collect({1}, std::max(1, (last - first) / 8));
  if (out.size() < 3) out = collect({1, 2, 5}, 1);
  if (out.size() < 2) out = {low, high};
  return out;
}

namespace detail {

/// One axis: from data to pixels.
struct SvgAxis {
  bool log;
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  double begin = 0, end = 0;  // pixels of low and high

  /// Sane numbers only (1e-150 .. 1e150 in size), so that differences and ratios cannot overflow.
  bool shows(double v) const { return std::abs(v) < 1e150 && (!log || v > 1e-150); }
  void include(double v) {
    if (!shows(v)) return;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  /// Leaves some air, and makes a range of what is empty or a point.
  void settle() {
    if (!(low <= high)) low = log ? 1 : 0, high = log ? 10 : 1;
    if (low == high) {
      const double around = log ? 0 : (low == 0 ? 1 : 0.1 * std::abs(low));
      low = log ? low / 2 : low - around;
      high = log ? high * 2 : high + around;
    }
    if (log) {
      const double air = std::pow(high / low, 0.04);
      low /= air;
      high *= air;
    } else {
      const double air = 0.04 * (high - low);
      low -= air;
      high += air;
    }
  }
  double at(double v) const {
    const double share = log ? std::log(v / low) / std::log(high / low) : (v - low) / (high - low);
    return begin + share * (end - begin);
  }
  std::vector<double> ticks(int count) const { return log ? log_ticks(low, high) : nice_ticks(low, high, count); }
};

inline std::string svg_number(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", v);
  return text;
}
inline std::string tick_text(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", v);
  return text;
}

}  // namespace detail

/// The chart as an SVG document. Throws `Error` if the columns of a series differ in size.
inline std::string svg(const SvgChart& chart) {
  using detail::svg_number;
  // Told apart by the colour-blind as well; the marks differ too.
  constexpr const char* colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#000000"};
  constexpr std::size_t colour_count = sizeof colours / sizeof colours[0];

  detail::SvgAxis x{chart.log_x}, y{chart.log_y};
  std::size_t longest_name = 0;
  for (const SvgSeries& s : chart.series) {
    const auto n = static_cast<Index>(s.x.size());
    recops::check_size("svg", "y", recops::VectorView<const double>(s.y), n);
    for (const auto* bound : {&s.low, &s.high})
      if (!s.low.empty() || !s.high.empty())
        recops::check_size("svg", "low and high", recops::VectorView<const double>(*bound), n);
    longest_name = std::max(longest_name, s.name.size());
    for (std::size_t i = 0; i < s.x.size(); ++i) {
      if (!x.shows(s.x[i]) || !y.shows(s.y[i])) continue;
      x.include(s.x[i]);
      y.include(s.y[i]);
      if (!s.low.empty()) {
        y.include(s.low[i]);
        y.include(s.high[i]);
      }
    }
  }
  x.settle();
  y.settle();
  const double legend = longest_name == 0 ? 0 : 40 + 6.8 * static_cast<double>(longest_name);
  const double left = 76, right = std::max(left + 40, chart.width - 20 - legend), top = chart.title.empty() ? 20 : 44,
               bottom = std::max(top + 40, static_cast<double>(chart.height) - 56);
  x.begin = left, x.end = right, y.begin = bottom, y.end = top;

  std::string out;
  const auto text = [&](double px, double py, const char* anchor, const char* extra, const std::string& s) {
    out += "<text x=\"" + svg_number(px) + "\" y=\"" + svg_number(py) + "\" text-anchor=\"" + anchor + "\"" + extra + ">" +
           xml_escape(s) + "</text>\n";
  };
  const auto line = [&](double x1, double y1, double x2, double y2, const std::string& stroke) {
    out += "<line x1=\"" + svg_number(x1) + "\" y1=\"" + svg_number(y1) + "\" x2=\"" + svg_number(x2) + "\" y2=\"" +
           svg_number(y2) + "\" stroke=\"" + stroke + "\"/>\n";
  };
  const auto mark = [&](std::size_t series, double px, double py) {
    const std::string fill = std::string("\" fill=\"") + colours[series % colour_count] + "\"/>\n";
    if (series % 2 == 0)
      out += "<circle cx=\"" + svg_number(px) + "\" cy=\"" + svg_number(py) + "\" r=\"3.2" + fill;
    else
      out += "<rect x=\"" + svg_number(px - 3) + "\" y=\"" + svg_number(py - 3) + "\" width=\"6\" height=\"6" + fill;
  };

  out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" +
        std::to_string(chart.width) + "\" height=\"" + std::to_string(chart.height) + "\" viewBox=\"0 0 " +
        std::to_string(chart.width) + " " + std::to_string(chart.height) +
        "\" font-family=\"sans-serif\" font-size=\"12\">\n<title>" + xml_escape(chart.title) +
        "</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  if (!chart.title.empty()) text((left + right) / 2, 26, "middle", " font-size=\"15\"", chart.title);
  for (const double tick : x.ticks(8)) {
    line(x.at(tick), top, x.at(tick), bottom, "#e4e4e4");
    text(x.at(tick), bottom + 18, "middle", "", detail::tick_text(tick));
  }
  for (const double tick : y.ticks(6)) {
    line(left, y.at(tick), right, y.at(tick), "#e4e4e4");
    text(left - 8, y.at(tick) + 4, "end", "", detail::tick_text(tick));
  }
  line(left, bottom, right, bottom, "#444444");
  line(left, top, left, bottom, "#444444");
  text((left + right) / 2, bottom + 42, "middle", "", chart.x_label);
  const std::string turn = " transform=\"rotate(-90 18 " + svg_number((top + bottom) / 2) + ")\"";
  text(18, (top + bottom) / 2, "middle", turn.c_str(), chart.y_label);

  double legend_y = top + 10;
  for (std::size_t k = 0; k < chart.series.size(); ++k) {
    const SvgSeries& s = chart.series[k];
    const std::string colour = colours[k % colour_count];
    const auto shown = [&](std::size_t i) { return x.shows(s.x[i]) && y.shows(s.y[i]); };
    // Runs of points without a gap.
    for (std::size_t first = 0, last; first < s.x.size(); first = last) {
      last = first + 1;
      if (!shown(first)) continue;
      while (last < s.x.size() && shown(last)) ++last;
      if (s.band && !s.low.empty()) {
        std::string corners;
        const auto corner = [&](std::size_t i, double v) {
          corners += svg_number(x.at(s.x[i])) + "," + svg_number(y.at(y.shows(v) ? v : s.y[i])) + " ";
        };
        for (std::size_t i = first; i < last; ++i) corner(i, s.high[i]);
        for (std::size_t i = last; i > first; --i) corner(i - 1, s.low[i - 1]);
        out += "<polygon points=\"" + corners + "\" fill=\"" + colour + "\" fill-opacity=\"0.18\"/>\n";
      }
      if (s.line && last - first > 1) {
        std::string corners;
        for (std::size_t i = first; i < last; ++i) corners += svg_number(x.at(s.x[i])) + "," + svg_number(y.at(s.y[i])) + " ";
        out += "<polyline points=\"" + corners + "\" fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"1.8\"/>\n";
      }
      for (std::size_t i = first; i < last; ++i) {
        if (!s.band && !s.low.empty()) {
          const double px = x.at(s.x[i]), py = y.at(s.y[i]);
          const double a = y.shows(s.low[i]) ? y.at(s.low[i]) : py, b = y.shows(s.high[i]) ? y.at(s.high[i]) : py;
          line(px, a, px, b, colour);
          line(px - 4, a, px + 4, a, colour);
          line(px - 4, b, px + 4, b, colour);
        }
        if (s.points) mark(k, x.at(s.x[i]), y.at(s.y[i]));
      }
    }
    if (s.name.empty()) continue;
    if (s.line) line(right + 14, legend_y - 4, right + 34, legend_y - 4, colour + "\" stroke-width=\"1.8");
    mark(k, right + 24, legend_y - 4);
    text(right + 40, legend_y, "start", "", s.name);
    legend_y += 20;
  }
  return out + "</svg>\n";
}

/// Writes `svg(chart)` to a file. Throws `DataError` if that fails.
inline void write_svg(const std::string& path, const SvgChart& chart) {
  const std::string document = svg(chart);
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) throw DataError(path + ": cannot be written: " + std::strerror(errno));
  const bool wrote = std::fwrite(document.data(), 1, document.size(), file) == document.size();
  if (std::fclose(file) != 0 || !wrote) throw DataError(path + ": could not be written completely");
}

}  // namespace examples
