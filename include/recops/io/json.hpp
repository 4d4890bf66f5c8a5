/// @file   recops/io/json.hpp
/// @brief  Reads JSON (RFC 8259) as a sequence of events: what the header of a safetensors file needs, and nothing that grows.
///
/// The text comes from strangers, so: no recursion, a depth of at most 16, no memory but the string at hand, UTF-8 checked to the
/// letter (no surrogates, nothing beyond U+10FFFF, no shorter form), escaped surrogates only in pairs, nothing behind the value.
/// No exceptions, and no code whose name lacks the instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <recops/core/config.hpp>
#include <string>
#include <string_view>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Calls, in the order of the text,
///
///     bool start_object(), end_object(), start_array(), end_array(), key(std::string&), string(std::string&), null(),
///          boolean(bool), number(std::uint64_t), other_number(std::string_view)   // negative, fractional or beyond 2^64
///
/// of `Events`; one that returns false ends the reading.
template <class Events>
class JsonReader {
 public:
  JsonReader(std::string_view text, Events& events)
      : begin_(text.data()), at_(begin_), end_(begin_ + text.size()), events_(events) {}

  /// True where all of the text is one JSON value and every event was taken.
  bool read() {
    // A container is a bit of `objects`; `depth` of them are open.
    std::uint32_t objects = 0;
    int depth = 0;
    bool after_value = false;  // where a comma or the end of the container may come; else a value, or the end of an empty one
    bool first = true;
    for (;;) {
      skip_space();
      const bool in_object = depth > 0 && (objects & 1u) != 0;
      if (after_value) {
        if (depth == 0) return at_ == end_;
        if (take(in_object ? '}' : ']')) {
          if (!(in_object ? events_.end_object() : events_.end_array())) return false;
          objects >>= 1;
          --depth;
          continue;
        }
        if (!take(',')) return false;
        after_value = first = false;
        continue;
      }
      if (depth > 0 && first && take(in_object ? '}' : ']')) {
        if (!(in_object ? events_.end_object() : events_.end_array())) return false;
        objects >>= 1;
        --depth;
        after_value = true;
        continue;
      }
      if (in_object) {
        if (!take('"') || !read_string() || !events_.key(text_)) return false;
        skip_space();
        if (!take(':')) return false;
        skip_space();
      }
      if (at_ == end_) return false;
      if (*at_ == '{' || *at_ == '[') {
        const bool object = *at_ == '{';
        if (depth == max_depth || !(object ? events_.start_object() : events_.start_array())) return false;
        ++at_;
        objects = objects << 1 | (object ? 1u : 0u);
        ++depth;
        first = true;
        continue;
      }
      if (!read_scalar()) return false;
      after_value = true;
    }
  }
  /// Bytes read: where it went wrong.
  std::size_t position() const { return static_cast<std::size_t>(at_ - begin_); }

 private:
  static constexpr int max_depth = 16;

  void skip_space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }
  bool take(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool take_word(std::string_view word) {
    if (static_cast<std::size_t>(end_ - at_) < word.size() || std::string_view(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  bool take_digits() {
    const char* const start = at_;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ != start;
  }

  bool read_scalar() {
    switch (*at_) {
      case '"':
        ++at_;
        return read_string() && events_.string(text_);
      case 't':
        return take_word("true") && events_.boolean(true);
      case 'f':
        return take_word("false") && events_.boolean(false);
      case 'n':
        return take_word("null") && events_.null();
      default:
        return read_number();
    }
  }

  bool read_number() {
    const char* const start = at_;
    bool whole = !take('-');
    if (!take('0') && !take_digits()) return false;
    const char* const digits_end = at_;
    if (take('.')) {
      whole = false;
      if (!take_digits()) return false;
    }
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      if (!take_digits()) return false;
    }
    std::uint64_t value = 0;
    for (const char* c = start; whole && c != digits_end; ++c)
      whole = !__builtin_mul_overflow(value, std::uint64_t{10}, &value) &&
              !__builtin_add_overflow(value, static_cast<std::uint64_t>(*c - '0'), &value);
    return whole ? events_.number(value) : events_.other_number(std::string_view(start, static_cast<std::size_t>(at_ - start)));
  }

  /// Behind the opening quote; leaves the text, in UTF-8, in `text_`.
  bool read_string() {
    text_.clear();
    while (at_ != end_) {
      const auto c = static_cast<unsigned char>(*at_);
      if (c == '"') {
        ++at_;
        return true;
      }
      if (c < 0x20) return false;
      if (c == '\\') {
        ++at_;
        if (!read_escape()) return false;
      } else if (c < 0x80) {
        text_ += *at_++;
      } else if (!read_utf8(c)) {
        return false;
      }
    }
    return false;
  }

  bool read_utf8(unsigned char lead) {
    // The second byte's range rules out shorter forms, surrogates and what lies beyond U+10FFFF; further bytes are 80 .. BF.
    const int length = lead >= 0xC2 && lead <= 0xDF ? 2 : (lead & 0xF0u) == 0xE0 ? 3 : lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
    if (length == 0 || end_ - at_ < length) return false;
    const unsigned low = lead == 0xE0   ? 0xA0
                         : lead == 0xF0 ? 0x90
                                        : 0x80,
                   high = lead == 0xED   ? 0x9F
                          : lead == 0xF4 ? 0x8F
                                         : 0xBF;
    const auto second = static_cast<unsigned char>(at_[1]);
    if (second < low || second > high) return false;
    for (int i = 2; i < length; ++i)
      if ((static_cast<unsigned char>(at_[i]) & 0xC0u) != 0x80u) return false;
    text_.append(at_, static_cast<std::size_t>(length));
    at_ += length;
    return true;
  }

  bool read_escape() {
    if (at_ == end_) return false;
    const char c = *at_++;
    switch (c) {
      case '"':
      case '\\':
      case '/':
        text_ += c;
        return true;
      case 'b':
        text_ += '\b';
        return true;
      case 'f':
        text_ += '\f';
        return true;
      case 'n':
        text_ += '\n';
        return true;
      case 'r':
        text_ += '\r';
        return true;
      case 't':
        text_ += '\t';
        return true;
      case 'u':
        break;
      default:
        return false;
    }
    std::uint32_t code = 0;
    if (!read_hex(code) || (code >= 0xDC00 && code <= 0xDFFF)) return false;
    if (code >= 0xD800 && code <= 0xDBFF) {
      std::uint32_t low = 0;
      if (!take('\\') || !take('u') || !read_hex(low) || low < 0xDC00 || low > 0xDFFF) return false;
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    const auto put = [&](std::uint32_t byte) { text_ += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (code < 0x80) {
      put(code);
    } else if (code < 0x800) {
      put(0xC0 | code >> 6);
      put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      put(0xE0 | code >> 12);
      put(0x80 | (code >> 6 & 0x3F));
      put(0x80 | (code & 0x3F));
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
      put(0x80 | (code >> 6 & 0x3F));
      put(0x80 | (code & 0x3F));
    }
    return true;
  }
  bool read_hex(std::uint32_t& code) {
    if (end_ - at_ < 4) return false;
    for (int i = 0; i < 4; ++i) {
      const char c = *at_++;
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return false;
      code = code << 4 | static_cast<std::uint32_t>(digit);
    }
    return true;
  }

  const char *begin_, *at_, *end_;
  Events& events_;
  std::string text_;
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
