/// @file   examples/common/progress.hpp
/// @brief  A progress bar and colours where somebody watches a terminal; plain lines where the output is read later.
///
/// NO_COLOR (set to anything but nothing, see no-color.org) turns colours off; TERM=dumb counts as no terminal.
#pragma once
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <recops/core/views.hpp>
#include <string>
#include <string_view>
#include <utility>

namespace examples {

using recops::Index;

/// Does `out` go to a terminal that can move its cursor?
inline bool is_terminal(std::FILE* out) {
  const char* term = std::getenv("TERM");
  return isatty(fileno(out)) != 0 && !(term && std::string_view(term) == "dumb");
}

/// May `out` be coloured?
inline bool wants_colour(std::FILE* out) {
  const char* no = std::getenv("NO_COLOR");
  return is_terminal(out) && !(no && *no);
}

/// `text` in the colour of category `index` (any number >= 0; neighbours differ), or as it is if `on` is false.
inline std::string coloured(const std::string& text, Index index, bool on) {
  if (!on) return text;
  // Of the 256 colours, ones that read on dark and on light.
  constexpr int palette[] = {33, 166, 35, 170, 37, 178, 99, 203, 71, 132, 67, 136};
  constexpr Index count = sizeof palette / sizeof palette[0];
  return "\033[38;5;" + std::to_string(palette[((index % count) + count) % count]) + "m" + text + "\033[0m";
}
/// `text` in bold, or as it is.
inline std::string bold(const std::string& text, bool on) { return on ? "\033[1m" + text + "\033[0m" : text; }

/// Counts steps of a long loop. On a terminal one line is redrawn; elsewhere a line is printed at each quarter.
class Progress {
 public:
  /// `total` steps; to `out`, stderr by default, so that results can be piped.
  Progress(std::string label, Index total, std::FILE* out = stderr)
      : label_(std::move(label)),
        total_(std::max<Index>(total, 1)),
        out_(out),
        bar_(is_terminal(out)),
        colour_(wants_colour(out)) {
    show();
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { finish(); }

  /// `count` more steps are done; `note` (a loss, say) is shown after the bar.
  void advance(Index count = 1, std::string note = "") {
    done_ = std::min(done_ + count, total_);
    note_ = std::move(note);
    show();
  }

  /// Ends the line; nothing is drawn afterwards.
  void finish() {
    if (finished_) return;
    finished_ = true;
    if (bar_) std::fputc('\n', out_);
    std::fflush(out_);
  }

  /// The bar as it is drawn, without colour: "label [######------]  50 %  note".
  std::string text() const {
    constexpr Index width = 30;
    const Index full = width * done_ / total_;
    std::string bar(static_cast<std::size_t>(full), '#');
    bar.append(static_cast<std::size_t>(width - full), '-');
    char percent[16];
    std::snprintf(percent, sizeof percent, "%3d %%", static_cast<int>(100 * done_ / total_));
    return label_ + " [" + bar + "] " + percent + (note_.empty() ? "" : "  " + note_);
  }

 private:
  void show() {
    if (finished_) return;
    const Index steps = bar_ ? 100 : 4, part = steps * done_ / total_;
    if (part == shown_) return;
    shown_ = part;
    if (bar_) {
      std::fprintf(out_, "\r%s\033[K", colour_ ? coloured(text(), 0, true).c_str() : text().c_str());
    } else if (part > 0) {
      std::fprintf(out_, "%s: %d %%%s%s\n", label_.c_str(), static_cast<int>(100 * done_ / total_), note_.empty() ? "" : "  ",
                   note_.c_str());
    }
    std::fflush(out_);
  }

  std::string label_, note_;
  Index total_, done_ = 0, shown_ = -1;
  std::FILE* out_;
  bool bar_, colour_, finished_ = false;
};

}  // namespace examples
