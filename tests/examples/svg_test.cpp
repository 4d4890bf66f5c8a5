// Oracle: a small reader of XML that insists on matching tags and escaped text; positions worked out by hand.
#include "examples/common/svg.hpp"

#include "support/catch.hpp"
#include "temporary_folder.hpp"

using namespace examples;

namespace {

/// Empty if `text` is well-formed (elements, attributes, text; no comments or CDATA), or what is wrong.
std::string malformed(const std::string& text) {
  std::vector<std::string> open;
  std::size_t at = 0;
  const auto entity = [&](std::size_t i) {
    for (const char* known : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"})
      if (text.compare(i, std::string(known).size(), known) == 0) return true;
    return false;
  };
  bool had_root = false;
  while (at < text.size()) {
    if (text[at] != '<') {
      if (text[at] == '&' && !entity(at)) return "bare & in text";
      if (static_cast<unsigned char>(text[at]) < 32 && text[at] != '\n') return "control character";
      if (open.empty() && text[at] != '\n') return "text outside the root";
      ++at;
      continue;
    }
    if (text.compare(at, 2, "<?") == 0) {
      if (at != 0) return "declaration not at the beginning";
      at = text.find("?>", at) + 2;
      continue;
    }
    std::size_t end = at + 1;
    char quote = 0;
    for (; end < text.size() && (quote || text[end] != '>'); ++end) {
      if (text[end] == '<') return "< inside a tag";
      if (text[end] == '&' && !entity(end)) return "bare & in an attribute";
      if (quote && text[end] == quote)
        quote = 0;
      else if (!quote && text[end] == '"')
        quote = '"';
    }
    if (end == text.size()) return "unfinished tag";
    const std::string tag = text.substr(at + 1, end - at - 1);
    at = end + 1;
    if (tag[0] == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return "unexpected </" + tag.substr(1) + ">";
      open.pop_back();
      continue;
    }
    if (open.empty() && had_root) return "two roots";
    had_root = true;
    // name, then attr="value" any number of times, then an optional slash
    std::size_t p = tag.find_first_of(" /");
    const std::string name = tag.substr(0, p);
    while (p != std::string::npos && p < tag.size() && tag[p] == ' ') {
      const std::size_t equals = tag.find('=', p), close = equals == std::string::npos ? equals : tag.find('"', equals + 2);
      if (close == std::string::npos || tag[equals + 1] != '"') return "bad attribute in <" + name + ">";
      p = close + 1;
    }
    const bool closed = p != std::string::npos && p < tag.size() && tag[p] == '/';
    if (p != std::string::npos && p < tag.size() && !(closed && p + 1 == tag.size())) return "bad tag <" + tag + ">";
    if (!closed) open.push_back(name);
  }
  return open.empty() ? (had_root ? "" : "no root") : "unclosed <" + open.back() + ">";
}

Index count(const std::string& text, const std::string& part) {
  Index n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("the reader of this test sees what is malformed", "[examples][svg]") {
  CHECK(malformed("<a b=\"c\"><d/></a>\n").empty());
  for (const char* bad : {"<a>", "<a></b>", "<a>&</a>", "<a b=\"<\"/>", "<a b=c/>", "<a/><a/>", "x", ""})
    CHECK_FALSE(malformed(bad).empty());
}

TEST_CASE("charts are well-formed whatever they are fed", "[examples][svg]") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const std::vector<double> awkward{nan, inf, -inf, 0, -1, 1e-300, 1e300, 2};
  std::vector<SvgChart> charts;
  charts.push_back({});
  charts.push_back({.title = "<&>\"'\x01",
                    .x_label = "a < b",
                    .y_label = "b & c",
                    .series = {{.name = "<script>", .x = {1, 2}, .y = {3, 3}, .low = {2, 2}, .high = {4, 4}}}});
  charts.push_back({.log_x = true, .log_y = true, .series = {{.name = "x", .x = awkward, .y = awkward}}});
  charts.push_back(
      {.log_y = true, .series = {{.name = "x", .x = awkward, .y = awkward, .low = awkward, .high = awkward, .band = true}}});
  charts.push_back({.width = 1, .height = 1, .series = {{.x = {5}, .y = {0}}}});
  for (const SvgChart& chart : charts) {
    const std::string document = svg(chart);
    CHECK(malformed(document).empty());
    CHECK(count(document, "nan") == 0);
    CHECK(count(document, "inf") == 0);
  }
  CHECK_THROWS_AS(svg({.series = {{.x = {1, 2}, .y = {1}}}}), recops::Error);
  CHECK_THROWS_AS(svg({.series = {{.x = {1}, .y = {1}, .low = {1}}}}), recops::Error);
}

TEST_CASE("series become lines, marks, bars and a legend", "[examples][svg]") {
  SvgChart chart{.title = "T", .x_label = "x", .y_label = "y"};
  chart.series.push_back({.name = "one", .x = {1, 2, 3, 4, 5}, .y = {1, 2, std::nan(""), 4, 5}});
  chart.series.push_back({.name = "two", .x = {1, 2}, .y = {1, 2}, .low = {0, 1}, .high = {2, 3}, .line = false});
  chart.series.push_back({.x = {1, 2}, .y = {1, 2}, .low = {0, 1}, .high = {2, 3}, .points = false, .band = true});
  const std::string document = svg(chart);
  CHECK(count(document, "<polyline") == 3);  // the gap divides the first; the second has none
  CHECK(count(document, "<circle") == 4 + 1);
  CHECK(count(document, "width=\"6\"") == 2 + 1);
  CHECK(count(document, "<polygon") == 1);
  CHECK(count(document, ">one</text>") == 1);
  CHECK(count(document, ">two</text>") == 1);
}

TEST_CASE("ticks are round", "[examples][svg]") {
  CHECK(nice_ticks(0, 10, 5) == std::vector<double>{0, 2, 4, 6, 8, 10});
  CHECK(nice_ticks(0.13, 0.87, 4) == std::vector<double>{0.2, 0.4, 0.6000000000000001, 0.8});
  CHECK(nice_ticks(-30, 130, 3) == std::vector<double>{0, 50, 100});
  CHECK(nice_ticks(5, 5, 4) == std::vector<double>{5});
  const auto log = [](double low, double high) {
    std::vector<double> out;
    for (const double t : log_ticks(low, high)) out.push_back(std::round(t * 1e6) / 1e6);
    return out;
  };
  CHECK(log(1, 1000) == std::vector<double>{1, 10, 100, 1000});
  CHECK(log(0.9, 22) == std::vector<double>{1, 2, 5, 10, 20});
  CHECK(log_ticks(1e-20, 1e20).size() < 12);
  CHECK(log_ticks(3.1, 3.2).size() == 2);
}

TEST_CASE("a chart is written to a file", "[examples][svg]") {
  const recops_test::TemporaryFolder folder;
  SvgChart chart{.title = "T"};
  chart.series.push_back({.name = "a", .x = {1, 10}, .y = {1, 2}});
  write_svg(folder.path() + "/a.svg", chart);
  std::ifstream in(folder.path() + "/a.svg", std::ios::binary);
  CHECK(std::string(std::istreambuf_iterator<char>(in), {}) == svg(chart));
  CHECK_THROWS_AS(write_svg(folder.path() + "/none/a.svg", chart), DataError);
}
