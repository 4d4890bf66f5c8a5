/// @file   examples/common/cli.hpp
/// @brief  The command line of an example: `--name value`, `--name=value`, `--flag`, `--help`.
///
///     Index users = 1000;  bool quick = false;
///     examples::Cli cli("recommend", "Trains a click model on a simulated feed and re-ranks its lists.");
///     cli.option("users", users, "users in the simulated world");
///     cli.flag("quick", quick, "a small world, for a first look");
///     cli.parse(argc, argv);
///
/// The variables hold the defaults; `--help` prints them. What cannot be understood ends the program with exit code 2.
#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <recops/core/views.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

namespace examples {

using recops::Index;

class Cli {
 public:
  Cli(std::string program, std::string purpose) : program_(std::move(program)), purpose_(std::move(purpose)) {}

  /// A value of type Index, int, std::uint64_t, float, double or std::string. `unit` is shown after the default. Numbers must lie
  /// in [least, most].
  template <class T>
  Cli& option(std::string name, T& value, std::string help, std::string unit = "",
              double least = std::numeric_limits<double>::lowest(), double most = std::numeric_limits<double>::max()) {
    options_.push_back({std::move(name), std::move(help), std::move(unit), text_of(value), &value, least, most});
    return *this;
  }
  /// `--name` sets it; `--name=true` and `--name=false` are understood too.
  Cli& flag(std::string name, bool& value, std::string help) {
    options_.push_back({std::move(name), std::move(help), "", value ? "true" : "", &value, 0, 1});
    return *this;
  }

  /// An option that other examples have and this one cannot offer: whoever asks for it is told `why`, and the program ends.
  Cli& refuse(std::string name, std::string why) {
    options_.push_back({std::move(name), std::move(why), "", "", static_cast<bool*>(nullptr), 0, 1});
    return *this;
  }

  /// Sets the variables. `--help` prints and exits 0; an error goes to stderr and exits 2.
  void parse(int argc, const char* const* argv) const {
    std::string message;
    switch (try_parse(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc), message)) {
      case Outcome::ok:
        return;
      case Outcome::help:
        std::fputs(help().c_str(), stdout);
        std::exit(0);
      case Outcome::error:
        std::fprintf(stderr, "%s: %s\n(--help lists the options)\n", program_.c_str(), message.c_str());
        std::exit(2);
    }
  }

  enum class Outcome { ok, help, error };
  /// The same without exiting, for tests. Arguments without the program's name. Variables before a bad one have been set.
  Outcome try_parse(const std::vector<std::string>& arguments, std::string& message) const {
    for (std::size_t a = 0; a < arguments.size(); ++a) {
      const std::string& argument = arguments[a];
      if (argument == "--help" || argument == "-h") return Outcome::help;
      if (argument.size() < 3 || argument.compare(0, 2, "--") != 0) {
        message = "expected an option that begins with --, got '" + argument + "'";
        return Outcome::error;
      }
      const std::size_t equals = argument.find('=');
      const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
      const Option* option = find(name);
      if (!option) {
        const std::string near = nearest(name);
        message = "unknown option --" + name + (near.empty() ? "" : "; did you mean --" + near + "?");
        return Outcome::error;
      }
      const auto* const flag = std::get_if<bool*>(&option->value);
      if (flag && !*flag) {
        message = "--" + name + " is not offered: " + option->help;
        return Outcome::error;
      }
      std::string value = "true";
      if (equals != std::string::npos) {
        value = argument.substr(equals + 1);
      } else if (!flag) {
        if (++a == arguments.size()) {
          message = "--" + name + " needs a value";
          return Outcome::error;
        }
        value = arguments[a];
      }
      const std::string expected = std::visit([&](auto* target) { return assign(*option, value, *target); }, option->value);
      if (!expected.empty()) {
        message = "--" + name + " expects " + expected + ", got '" + value + "'";
        return Outcome::error;
      }
    }
    return Outcome::ok;
  }

  /// Purpose, options, defaults and units.
  std::string help() const {
    std::string text = program_ + ": " + purpose_ + "\n\nOptions\n";
    std::size_t width = 6;
    for (const Option& o : options_) width = std::max(width, left(o).size());
    for (const Option& o : options_) {
      text += "  " + left(o) + std::string(width - left(o).size() + 2, ' ') + o.help;
      if (!o.initial.empty())
        text += " [" + o.initial + (o.unit.empty() ? "" : " " + o.unit) + "]";
      else if (!o.unit.empty())
        text += " [" + o.unit + "]";
      text += "\n";
    }
    return text + "  --help" + std::string(width - 6 + 2, ' ') + "print this\n";
  }

 private:
  struct Option {
    std::string name, help, unit, initial;
    std::variant<bool*, int*, Index*, std::uint64_t*, float*, double*, std::string*> value;
    double least, most;
  };

  static std::string text_of(const std::string& value) { return value; }
  template <class T>
  static std::string text_of(T value) {
    char text[40];
    const auto end = std::to_chars(text, text + sizeof text, value).ptr;
    return std::string(text, end);
  }

  /// Empty, or what was expected instead.
  static std::string assign(const Option&, const std::string& text, std::string& target) {
    target = text;
    return "";
  }
  static std::string assign(const Option&, const std::string& text, bool& target) {
    if (text != "true" && text != "false") return "true or false";
    target = text == "true";
    return "";
  }
  template <class T>
  static std::string assign(const Option& o, const std::string& text, T& target) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    constexpr bool whole = std::numeric_limits<T>::is_integer;
    if (error == std::errc::result_out_of_range) return whole ? "a whole number that fits" : "a number that fits";
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(static_cast<double>(value)))
      return whole ? (std::numeric_limits<T>::is_signed ? "a whole number" : "a whole number, 0 or more") : "a number";
    if (static_cast<double>(value) < o.least || static_cast<double>(value) > o.most) {
      if (o.most == std::numeric_limits<double>::max()) return "at least " + short_text(o.least);
      if (o.least == std::numeric_limits<double>::lowest()) return "at most " + short_text(o.most);
      return short_text(o.least) + " to " + short_text(o.most);
    }
    target = value;
    return "";
  }
  static std::string short_text(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%g", x);
    return text;
  }

  static std::string left(const Option& o) { return "--" + o.name + (std::holds_alternative<bool*>(o.value) ? "" : " VALUE"); }

  const Option* find(std::string_view name) const {
    for (const Option& o : options_)
      if (o.name == name) return &o;
    return nullptr;
  }
  /// The option within two slips of the pen, or nothing.
  std::string nearest(const std::string& name) const {
    std::string best;
    std::size_t least = 3;
    for (const Option& o : options_) {
      std::vector<std::size_t> row(o.name.size() + 1);
      for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
      for (std::size_t i = 1; i <= name.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j < row.size(); ++j) {
          const std::size_t change = diagonal + (name[i - 1] == o.name[j - 1] ? 0 : 1);
          diagonal = row[j];
          row[j] = std::min(change, std::min(row[j], row[j - 1]) + 1);
        }
      }
      if (row.back() < least) {
        least = row.back();
        best = o.name;
      }
    }
    return best;
  }

  std::string program_, purpose_;
  std::vector<Option> options_;
};

}  // namespace examples
