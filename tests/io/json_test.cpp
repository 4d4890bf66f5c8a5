// Oracle: nlohmann's parser, on texts written by hand, all texts of few characters, and damaged documents; its events and ours.
#include <recops/io/json.hpp>

#include <nlohmann/json.hpp>
#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// What was read, as text: the events in their order.
struct Record {
  std::string log;
  std::size_t refuse_after = 1'000'000;  // events

  bool note(const std::string& event) {
    log += event + ' ';
    return refuse_after-- > 0;
  }
  bool null() { return note("null"); }
  bool boolean(bool x) { return note(x ? "true" : "false"); }
  bool number(std::uint64_t x) { return note("number " + std::to_string(x)); }
  bool other_number(std::string_view) { return note("other"); }
  bool string(std::string& x) { return note("string " + std::to_string(x.size()) + ' ' + x); }
  bool key(std::string& x) { return note("key " + std::to_string(x.size()) + ' ' + x); }
  bool start_object() { return note("{"); }
  bool end_object() { return note("}"); }
  bool start_array() { return note("["); }
  bool end_array() { return note("]"); }
};

struct Reference : Record {
  bool number_integer(std::int64_t) { return note("other"); }
  bool number_unsigned(std::uint64_t x) { return number(x); }
  bool number_float(double, const std::string&) { return note("other"); }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(std::size_t) { return note("{"); }
  bool start_array(std::size_t) { return note("["); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) { return false; }
};

/// Both take it, with the same events, or neither does.
bool check_same(const std::string& text) {
  Record ours;
  Reference theirs;
  const bool taken = detail::JsonReader<Record>(text, ours).read();
  // The reference takes a zero byte for the end of the text, skips a byte order mark, and refuses numbers beyond a double.
  bool expected =
      text.find('\0') == std::string::npos && text.substr(0, 3) != "\xEF\xBB\xBF" && nlohmann::json::sax_parse(text, &theirs);
  if (!expected && taken && nlohmann::json::accept(text) == false && text.find_first_of("eE") != std::string::npos) {
    // Is it a number that is too large? Then it is JSON none the less.
    expected = ours.log.find("other") != std::string::npos;
    theirs.log = ours.log;
  }
  if (taken != expected || (taken && ours.log != theirs.log))
    FAIL("text: " << text << "\nours: " << taken << ' ' << ours.log << "\ntheirs: " << expected << ' ' << theirs.log);
  return taken;
}

}  // namespace

TEST_CASE("JsonReader takes what is JSON", "[io][json]") {
  for (const std::string text : {"{}",
                                 "[]",
                                 "\"\"",
                                 "0",
                                 "-0",
                                 "1.5e-3",
                                 "true",
                                 "false",
                                 "null",
                                 " [ 1 , 2 ] ",
                                 "{\"a\":{\"b\":[{},[],[[]]]},\"c\":0}",
                                 "18446744073709551615",
                                 "18446744073709551616",
                                 "1000000000000000000000000000000",
                                 "-1",
                                 "1E+2",
                                 "0.0",
                                 "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\ud83d\\ude42\"",
                                 "\"é€🙂\x7f\"",
                                 "\"\\u0000\"",
                                 "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"}) {
    CAPTURE(text);
    CHECK(check_same(text));
  }
}

TEST_CASE("JsonReader refuses what is not", "[io][json]") {
  for (const std::string text : {"",
                                 " ",
                                 "{",
                                 "}",
                                 "[",
                                 "[1",
                                 "[1,",
                                 "[1,]",
                                 "[,1]",
                                 "[1 2]",
                                 "{\"a\"}",
                                 "{\"a\":}",
                                 "{\"a\":1,}",
                                 "{a:1}",
                                 "{\"a\":1 \"b\":2}",
                                 "[}",
                                 "{]",
                                 "{\"a\":1]",
                                 "01",
                                 "-",
                                 "+1",
                                 ".5",
                                 "1.",
                                 "1e",
                                 "1e+",
                                 "0x1",
                                 "tru",
                                 "True",
                                 "nul",
                                 "NaN",
                                 "\"",
                                 "\"\\\"",
                                 "\"\\x\"",
                                 "\"\\u12\"",
                                 "\"\\u12G4\"",
                                 "\"\\ud800\"",
                                 "\"\\ud800\\n\"",
                                 "\"\\ud800\\ud800\"",
                                 "\"\\udc00\"",
                                 "\"\n\"",
                                 "\"\x1f\"",
                                 "\"\x80\"",
                                 "\"\xC0\x80\"",
                                 "\"\xC1\xBF\"",
                                 "\"\xE0\x9F\xBF\"",
                                 "\"\xED\xA0\x80\"",
                                 "\"\xF0\x8F\xBF\xBF\"",
                                 "\"\xF4\x90\x80\x80\"",
                                 "\"\xF5\x80\x80\x80\"",
                                 "\"\xE2\x82\"",
                                 "\"\xE2\x82",
                                 "1 1",
                                 "{}{}",
                                 "//\n1",
                                 "\xEF\xBB\xBF{}",
                                 "'a'",
                                 "\"a\":1",
                                 "[1]]"}) {
    CAPTURE(text);
    CHECK_FALSE(check_same(text));
  }
  Record events;
  CHECK_FALSE(detail::JsonReader<Record>(std::string_view("1\0", 2), events).read());
  CHECK_FALSE(detail::JsonReader<Record>(std::string(17, '[') + std::string(17, ']'), events).read());
}

TEST_CASE("JsonReader agrees with nlohmann's parser on every short text", "[io][json]") {
  const std::string alphabet = "{}[]\",:1-.e0 \\a";
  Index taken = 0;
  std::string text;
  for (std::size_t length = 1; length <= 4; ++length) {
    std::vector<std::size_t> digit(length);
    for (bool more = true; more;) {
      text.clear();
      for (const std::size_t d : digit) text += alphabet[d];
      taken += check_same(text);
      more = false;
      for (std::size_t i = 0; i < length && !more; ++i) {
        digit[i] = (digit[i] + 1) % alphabet.size();
        more = digit[i] != 0;
      }
    }
  }
  CHECK(taken > 100);
}

TEST_CASE("JsonReader agrees on damaged documents and on every two bytes of UTF-8", "[io][json]") {
  const std::string document =
      "{\"a\\u00e9é🙂\": [1, 2.5, -3e7, true, null, {\"\\ud83d\\ude42\": \"x\\\\\"}], \"b\": {\"c\": [[], {}]}} ";
  REQUIRE(check_same(document));
  Random random = random_stream(1);
  Index taken = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = document;
    for (Index n = 1 + random.below(3); n > 0; --n) {
      const auto at = static_cast<std::size_t>(random.below(static_cast<Index>(text.size())));
      const auto from = static_cast<std::size_t>(random.below(static_cast<Index>(text.size())));
      switch (random.below(3)) {
        case 0:
          text[at] = static_cast<char>(1 + random.below(255));
          break;
        case 1:
          text.erase(at, 1);
          break;
        default:
          text.insert(at, text.substr(from, 1));
      }
    }
    taken += check_same(text);
  }
  CHECK(taken > 200);
  for (int a = 1; a < 256; ++a)
    for (int b = 1; b < 256; ++b)
      for (const char* tail : {"", "\x80", "\x80\x80"})
        check_same(std::string("\"") + static_cast<char>(a) + static_cast<char>(b) + tail + '"');
}

TEST_CASE("JsonReader stops where its events say so, and says where", "[io][json]") {
  const std::string text = "[1, 2, {\"k\": \"v\"}]";
  Record all;
  CHECK(detail::JsonReader<Record>(text, all).read());
  CHECK(all.log == "[ number 1 number 2 { key 1 k string 1 v } ] ");
  for (std::size_t n = 0; n < 8; ++n) {
    Record events;
    events.refuse_after = n;
    CHECK_FALSE(detail::JsonReader<Record>(text, events).read());
    CHECK(static_cast<std::size_t>(std::count(events.log.begin(), events.log.end(), ' ')) >= n + 1);
  }
  Record events;
  detail::JsonReader<Record> reader("[1, x]", events);
  CHECK_FALSE(reader.read());
  CHECK(reader.position() == 4);
}
