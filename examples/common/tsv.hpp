/// @file   examples/common/tsv.hpp
/// @brief  Reads tab-separated files line by line and refuses what is not exactly what was agreed.
///
/// The first line must name the expected columns. Each further line must have as many fields, no quoting, no NUL, and end in a
/// line feed (the last may go without). Errors read "file:line: reason". Memory: one buffer and one line.
#pragma once
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace examples {

/// A data file is missing or not what it should be. Nothing was loaded.
class DataError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One pass over a file. Throws `DataError` from every member but the accessors.
class TsvReader {
 public:
  /// Opens `path` and reads its header line, which must hold exactly `columns`.
  TsvReader(const std::string& path, std::initializer_list<const char*> columns)
      : path_(path), file_(std::fopen(path.c_str(), "rb")), columns_(columns.begin(), columns.end()), buffer_(1 << 16) {
    if (!file_) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
    if (!read_line()) fail("is empty; expected a header line");
    split();
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      if (c >= fields_.size() || fields_[c] != columns_[c])
        fail("expected column '" + columns_[c] + "' in place " + std::to_string(c + 1));
    }
    if (fields_.size() != columns_.size())
      fail("expected " + std::to_string(columns_.size()) + " columns, got " + std::to_string(fields_.size()));
  }

  /// Goes to the next line; false at the end of the file.
  bool next() {
    if (!read_line()) return false;
    split();
    if (fields_.size() != columns_.size())
      fail("expected " + std::to_string(columns_.size()) + " fields, got " + std::to_string(fields_.size()));
    return true;
  }

  /// Field `column` of the current line; valid until `next`.
  std::string_view text(std::size_t column) const { return fields_[column]; }

  /// A whole number of at least `low` and at most `high`.
  std::int64_t integer(std::size_t column, std::int64_t low, std::int64_t high) const {
    return integer(fields_[column], columns_[column].c_str(), low, high);
  }
  /// A decimal number of at least `low` and at most `high`; never NaN.
  double number(std::size_t column, double low, double high) const {
    const std::string_view field = fields_[column];
    double value = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
    if (error != std::errc() || end != field.data() + field.size() || !std::isfinite(value))
      fail(columns_[column] + " is not a number: '" + shown(field) + "'");
    if (value < low || value > high) {
      char range[80];
      std::snprintf(range, sizeof range, "%g to %g", low, high);
      fail(columns_[column] + " is outside " + range + ": '" + shown(field) + "'");
    }
    return value;
  }
  /// A whole number in `field`, a part of the current line that messages call `name`.
  std::int64_t integer(std::string_view field, const char* name, std::int64_t low, std::int64_t high) const {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
    if (error == std::errc::result_out_of_range || end != field.data() + field.size() || field.empty() || error != std::errc())
      fail(std::string(name) + " is not a whole number: '" + shown(field) + "'");
    if (value < low || value > high)
      fail(std::string(name) + " is outside " + std::to_string(low) + " to " + std::to_string(high) + ": '" + shown(field) + "'");
    return value;
  }

  /// Throws: "file:line: reason" about the current line.
  [[noreturn]] void fail(const std::string& reason) const {
    throw DataError(path_ + ":" + std::to_string(line_ == 0 ? 1 : line_) + ": " + reason);
  }
  /// Number of the current line, from 1 for the header.
  std::int64_t line() const { return line_; }

 private:
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  static constexpr std::size_t longest_line = 1 << 20;

  static std::string shown(std::string_view field) { return std::string(field.substr(0, 40)) + (field.size() > 40 ? "..." : ""); }

  bool read_line() {
    text_.clear();
    for (;;) {
      if (used_ == filled_) {
        filled_ = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
        used_ = 0;
        if (std::ferror(file_.get())) throw DataError(path_ + ": cannot be read: " + std::strerror(errno));
        if (filled_ == 0) {
          if (text_.empty()) return false;
          break;
        }
      }
      const char* begin = buffer_.data() + used_;
      const auto* end = static_cast<const char*>(std::memchr(begin, '\n', filled_ - used_));
      const std::size_t count = end ? static_cast<std::size_t>(end - begin) : filled_ - used_;
      text_.append(begin, count);
      used_ += count + (end ? 1 : 0);
      if (text_.size() > longest_line) {
        ++line_;
        fail("is longer than a mebibyte");
      }
      if (end) break;
    }
    ++line_;
    if (text_.find('\0') != std::string::npos) fail("holds a NUL byte");
    if (!text_.empty() && text_.back() == '\r') fail("ends in a carriage return; expected Unix line ends");
    return true;
  }

  void split() {
    fields_.clear();
    for (std::size_t begin = 0;;) {
      const std::size_t end = text_.find('\t', begin);
      fields_.push_back(std::string_view(text_).substr(begin, end == std::string::npos ? end : end - begin));
      if (end == std::string::npos) return;
      begin = end + 1;
    }
  }

  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<std::string> columns_;
  std::vector<char> buffer_;
  std::size_t used_ = 0, filled_ = 0;
  std::string text_;
  std::vector<std::string_view> fields_;
  std::int64_t line_ = 0;
};

/// The folder that holds `file`: `directory` itself or its child `name`. Throws `DataError` that names both.
inline std::string find_data_folder(const std::string& directory, const char* name, const char* file) {
  for (const std::string& folder : {directory, directory + "/" + name}) {
    if (std::FILE* f = std::fopen((folder + "/" + file).c_str(), "rb")) {
      std::fclose(f);
      return folder;
    }
  }
  throw DataError(directory + ": holds neither " + file + " nor " + name + "/" + file);
}

}  // namespace examples
