// Oracle: files written by the Python package; a second reader on nlohmann's parser (fuzz/safetensors_oracle.hpp) for corrupted ones;
// headers written out by hand.
#include <recops/io/safetensors_header.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <recops/io/safetensors.hpp>

#include "fuzz/safetensors_oracle.hpp"
#include "io/bytes.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// A file of this header, padded or not, and so many bytes of numbers.
std::string file_of(const std::string& header, std::size_t numbers = 0) {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  for (std::size_t i = 0; i < numbers; ++i) file += static_cast<char>(i);
  return file;
}
std::string reason_of(const std::string& file) {
  Safetensors sound;
  return sound.parse(file.data(), file.size());
}
void check_refused(const std::string& file, const std::string& reason) {
  CAPTURE(file);
  CHECK_THAT(reason_of(file), contains(reason));
  CHECK_FALSE(is_sound_safetensors(reinterpret_cast<const unsigned char*>(file.data()), file.size()));
}
void check_sound(const std::string& file) {
  CAPTURE(file);
  CHECK(reason_of(file) == "");
  CHECK(is_sound_safetensors(reinterpret_cast<const unsigned char*>(file.data()), file.size()));
}
std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + '}';
}
/// One tensor "t" of four bytes.
void check_entry_refused(const std::string& dtype, const std::string& shape, const std::string& offsets,
                         const std::string& reason) {
  check_refused(file_of("{\"t\":" + entry(dtype, shape, offsets) + '}', 4), reason);
}

struct Half {
  Matrix<float> weight;
  Vector<float> bias;
  static constexpr auto fields() { return std::tuple{parameter("weight", &Half::weight), parameter("bias", &Half::bias)}; }
};
struct Pair {
  Half first{Matrix<float>(2, 3, 1.0f), Vector<float>(2, 2.0f)}, second = first;
  static constexpr auto fields() { return std::tuple{layer("first", &Pair::first), layer("second", &Pair::second)}; }
};
/// Whether every number of a fresh pair is still what it was.
bool is_untouched(const Pair& pair) {
  bool same = true;
  for (const Half* half : {&pair.first, &pair.second}) {
    for (const float x : leaf_values(half->weight)) same = same && x == 1.0f;
    for (const float x : half->bias) same = same && x == 2.0f;
  }
  return same;
}

/// Damages a file in one of the ways that files come to harm, and in some that only an enemy would think of.
std::string corrupted(std::string file, Random& random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random.word() % n); };
  static const char* const numbers[] = {"0",
                                        "1",
                                        "4",
                                        "7",
                                        "8",
                                        "-1",
                                        "1.0",
                                        "1e1",
                                        "16",
                                        "null",
                                        "4096",
                                        "4294967296",
                                        "9223372036854775807",
                                        "9223372036854775808",
                                        "18446744073709551615",
                                        "18446744073709551616",
                                        "\"1\"",
                                        "[]",
                                        "01",
                                        "1e400"};
  static const char* const pieces[] = {"{",
                                       "}",
                                       "[",
                                       "]",
                                       ",",
                                       ":",
                                       "\"",
                                       "\\",
                                       "\\u0000",
                                       "\\ud83d\\ude42",
                                       "\\udc00",
                                       "\xff",
                                       "\xed\xa0\x80",
                                       "__metadata__",
                                       "dtype",
                                       "shape",
                                       "F64",
                                       "BF16",
                                       "I8",
                                       "true",
                                       "0",
                                       " ",
                                       "\n"};
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const std::size_t header = static_cast<std::size_t>(length);
  const auto replace = [&](std::size_t at, std::size_t count, const std::string& by) {
    file.replace(at, count, by);
    length += by.size() - count;
    if (below(8) != 0) std::memcpy(file.data(), &length, 8);  // mostly a header whose length is right
  };
  switch (below(9)) {
    case 0:
      file.resize(below(file.size()));
      break;
    case 1: {
      const std::size_t count = 1 + below(16);
      file.append(count, static_cast<char>(below(256)));
      break;
    }
    case 2:
      for (std::size_t i = 0, n = 1 + below(4); i < n; ++i) file[below(file.size())] = static_cast<char>(below(256));
      break;
    case 3:
      file[8 + below(header)] ^= static_cast<char>(1u << below(8));
      break;
    case 4: {  // another number for one there is
      std::size_t at = 8 + below(header);
      while (at < 8 + header && (file[at] < '0' || file[at] > '9')) ++at;
      std::size_t end = at;
      while (end < 8 + header && file[end] >= '0' && file[end] <= '9') ++end;
      if (end > at) replace(at, end - at, numbers[below(std::size(numbers))]);
      break;
    }
    case 5: {
      const std::size_t at = 8 + below(header);
      replace(at, 0, pieces[below(std::size(pieces))]);
      break;
    }
    case 6: {
      const std::size_t at = 8 + below(header);
      replace(at, 1 + below(std::min<std::size_t>(header + 8 - at, 60)), "");
      break;
    }
    case 7: {  // a stretch twice
      const std::size_t from = 8 + below(header), count = 1 + below(std::min<std::size_t>(header + 8 - from, 120));
      replace(below(2) ? from + count : 8 + below(header), 0, file.substr(from, count));
      break;
    }
    default: {  // another length of header
      static const std::uint64_t lengths[] = {
          0, 1, 2, 8, 100'000'000, 100'000'001, UINT64_MAX, UINT64_MAX - 7, std::uint64_t{1} << 63};
      const std::uint64_t other = below(2) ? lengths[below(std::size(lengths))] : length + below(17) - 8;
      std::memcpy(file.data(), &other, 8);
    }
  }
  return file;
}

/// Refused or read whole: returns whether it was read.
bool check_corrupted(const std::string& text) {
  // Exactly as much memory as there are bytes: the sanitizer sees one read too far.
  const std::unique_ptr<unsigned char[]> file(new unsigned char[text.size()]);
  std::memcpy(file.get(), text.data(), text.size());
  Safetensors opened;
  const std::string reason = opened.parse(file.get(), text.size());
  const bool sound = is_sound_safetensors(file.get(), text.size());
  Pair pair;
  if (reason.empty() != sound) FAIL("reason: \"" << reason << "\", sound: " << sound << "\n" << text);
  if (!reason.empty()) {
    if (!opened.tensors().empty() || reason.find("expected") != 0 || reason.size() > 2000) FAIL("reason: " << reason);
    return false;
  }
  unsigned sum = 0;
  for (const StoredTensor& t : opened.tensors()) {
    for (const unsigned char* at = t.bytes; at != t.bytes + (t.end - t.begin); ++at) sum += *at;
    REQUIRE(t.size() * dtype_bytes(t.dtype) == static_cast<Index>(t.end - t.begin));
    REQUIRE(opened.find(t.name) == &t);
  }
  REQUIRE(sum < 0xFFFFFFFFu);
  if (!try_load(pair, opened).empty()) {
    REQUIRE(is_untouched(pair));
  } else {
    const auto same = [&](const char* name, const float* got) {
      const StoredTensor& t = *opened.find(name);
      std::vector<float> expected(static_cast<std::size_t>(t.size()));
      convert_numbers(t.dtype, t.bytes, Dtype::f32, expected.data(), t.size());
      return std::memcmp(expected.data(), got, expected.size() * sizeof(float)) == 0;
    };
    REQUIRE((same("first.weight", pair.first.weight.data()) && same("first.bias", pair.first.bias.data())));
    REQUIRE((same("second.weight", pair.second.weight.data()) && same("second.bias", pair.second.bias.data())));
  }
  return true;
}

/// Damages `count` files, some of them twice; returns how many were sound none the less.
Index run_corruptions(Index count, std::uint64_t stream) {
  std::vector<std::string> files;
  for (const char* name : {"types", "model_bf16", "empty"}) {
    const auto bytes = file_bytes(python_file(name));
    files.emplace_back(bytes.begin(), bytes.end());
  }
  SafetensorsWriter writer;
  const Pair pair;
  visit([&](const FieldPath& path, const auto& leaf) { writer.add(path.str(), leaf_values(leaf)); }, pair);
  auto bytes = writer.bytes();
  for (int i = 0; i < 5; ++i) files.emplace_back(bytes.begin(), bytes.end());
  SafetensorsWriter right;
  right.add("first.weight", pair.first.weight.view());
  right.add("first.bias", VectorView<const float>(pair.first.bias));
  right.add("second.weight", pair.second.weight.view());
  right.add("second.bias", VectorView<const float>(pair.second.bias), Dtype::f16);
  bytes = right.bytes();
  for (int i = 0; i < 12; ++i) files.emplace_back(bytes.begin(), bytes.end());  // short ones are quick, and a layer fits these
  for (const std::string& file : files) REQUIRE(check_corrupted(file));

  Random random = random_stream(stream);
  Index sound = 0;
  for (Index i = 0; i < count; ++i) {
    std::string file = corrupted(files[static_cast<std::size_t>(random.word() % files.size())], random);
    if (random.word() % 4 == 0 && file.size() > 16) {
      std::uint64_t length = 0;
      std::memcpy(&length, file.data(), 8);
      if (length > 0 && length <= file.size() - 8) file = corrupted(std::move(file), random);
    }
    sound += check_corrupted(file);
  }
  return sound;
}

}  // namespace

TEST_CASE("files of the Python package: every type, odd names and shapes", "[io][safetensors]") {
  const Safetensors file(file_bytes(python_file("types")), "types");
  REQUIRE(file.tensors().size() == 21);
  CHECK(file.metadata() == std::vector<std::pair<std::string, std::string>>{{"made by", "numpy \" \\ 名"}});
  const std::vector<double> expected = {0, 1, 2, 3, 100, 127};
  for (const std::string type :
       {"float64", "float32", "float16", "int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8"}) {
    CAPTURE(type);
    const bool floating = type[0] == 'f';
    const auto values = floating ? file.matrix<double>("numbers." + type) : Matrix<double>();
    const auto whole = floating ? Matrix<std::int64_t>() : file.matrix<std::int64_t>("numbers." + type);
    for (Index i = 0; i < 6; ++i)
      CHECK((floating ? values.data()[i] : static_cast<double>(whole.data()[i])) == expected[static_cast<std::size_t>(i)]);
  }
  CHECK(file.vector<std::uint8_t>("numbers.bool")[0] == 1);
  CHECK(file.vector<std::int64_t>("numbers.bool")[1] == 0);
  CHECK(file.find("numbers.complex64")->dtype == Dtype::c64);
  CHECK(file.vector<float>("scalar")[0] == -2.5f);
  CHECK(file.find("scalar")->shape.empty());
  CHECK(file.matrix<float>("no numbers").rows() == 0);
  CHECK(file.matrix<float>("no numbers").cols() == 3);
  CHECK(file.find("no numbers either")->shape == std::vector<Index>{2, 0, 5});
  const Matrix<double> three = file.matrix<double>("three axes");
  CHECK(three.rows() == 6);
  CHECK(three(5, 3) == 23);
  CHECK(file.vector<std::int64_t>("extremes")[0] == INT64_MIN);
  CHECK(file.vector<std::int64_t>("extremes")[1] == INT64_MAX);
  const Vector<double> edges = file.vector<double>("edges");
  CHECK(edges[0] == std::numeric_limits<double>::infinity());
  CHECK(std::isnan(edges[2]));
  CHECK(std::signbit(edges[3]));
  CHECK(edges[4] == 5e-324);
  CHECK(file.vector<std::int32_t>("quote \" backslash \\ tab \t bell \x07 Ünïcødé 名前 🙂")[2] == 3);
  CHECK(file.vector<std::uint8_t>("")[0] == 7);
  CHECK(file.find("numbers") == nullptr);
  CHECK(file.find("numbers.float640") == nullptr);

  CHECK_THROWS_WITH(file.vector<float>("x"), contains("Safetensors: types: expected a tensor called x, got none"));
  CHECK_THROWS_WITH(file.vector<float>("three axes"), contains("three axes: expected at most one size, got [2, 3, 4]"));
  CHECK_THROWS_WITH(file.matrix<float>("scalar"), contains("scalar: expected at least one size, got []"));
  CHECK_THROWS_WITH(file.matrix<float>("numbers.int8"), contains("expected a type that becomes F32, got I8"));
  CHECK_THROWS_WITH(file.vector<float>("edges"), contains("expected numbers that fit F32, got one that does not at position 5"));
  CHECK_THROWS_WITH(file.vector<std::int32_t>("extremes"), contains("numbers that fit I32"));
}

TEST_CASE("a Safetensors keeps what it was given, and its copies do", "[io][safetensors]") {
  Safetensors copy;
  CHECK(copy.find("t") == nullptr);
  {
    Safetensors original(file_of("{\"t\":" + entry("\"F32\"", "[1]", "[0,4]") + '}', 4), "here");
    copy = original;
    // Refused, it stays as it was.
    CHECK(original.parse("", 0) == "expected at least 8 bytes, got 0");
    CHECK(original.take(std::string("x")) == "expected at least 8 bytes, got 1");
    CHECK(original.find("t") != nullptr);
    CHECK(original.source() == "here");
  }
  CHECK(copy.find("t")->bytes[3] == 3);
  CHECK_THROWS_WITH(Safetensors(std::string("short"), "that file"),
                    contains("Safetensors: that file: expected at least 8 bytes, got 5"));
}

TEST_CASE("every header that is not one is refused with its reason", "[io][safetensors]") {
  check_sound(file_of("{}"));
  check_sound(file_of("{}      "));
  check_sound(file_of("{ \n\t\"t\" : " + entry("\"F32\"", "[]", "[0,4]") + "\r\n}  ", 4));
  check_sound(file_of("{\"t\":" + entry("\"F32\"", "[1,1,1]", "[0,4]") + ",\"__metadata__\":{}}", 4));
  check_sound(file_of("{\"\\u00e9\\ud83d\\ude42\":" + entry("\"U8\"", "[4]", "[0,4]") + '}', 4));

  check_refused("", "expected at least 8 bytes, got 0");
  check_refused(std::string(7, '\0'), "expected at least 8 bytes, got 7");
  check_refused(file_of(""), "expected a header that begins with {");
  std::string longer = file_of("{}");
  longer[0] = 3;
  check_refused(longer, "expected a header within the 2 bytes behind its length, got 3");
  longer[7] = '\x7f';
  check_refused(longer, "expected a header of at most 100000000 bytes, got 9151314442816847875");
  check_refused(file_of(" {}"), "begins with {");
  check_refused(file_of("\xEF\xBB\xBF{}"), "begins with {");
  check_refused(file_of("[]"), "begins with {");
  check_refused(file_of("{} \n"), "ends with } and spaces");
  check_refused(file_of(std::string("{}\0", 3)), "ends with }");
  check_refused(file_of(std::string("{}\0 }", 5)),
                "expected a header in JSON and UTF-8, got something else at byte 10, near \"\\x00");
  check_refused(file_of("{}{}"), "JSON");
  check_refused(file_of("{,}"), "JSON");
  check_refused(file_of("{\"a}"), "JSON");
  check_refused(file_of("{\"\xC0\x80\":1}"), "expected a header in JSON and UTF-8, got something else at byte 10");
  check_refused(file_of("{\"\xFF\":1}"), "UTF-8");
  check_refused(file_of("{\"\\ud800\":1}"), "JSON");

  check_refused(file_of("{\"t\":1}"), "expected an object with dtype, shape and data_offsets, got the number 1 in tensor \"t\"");
  check_refused(file_of("{\"t\":[]}"), "got a list in tensor \"t\"");
  check_refused(file_of("{\"t\":null}"), "got null");
  check_refused(file_of("{\"t\":{}}"), "expected dtype, shape and data_offsets, got fewer in tensor \"t\"");
  check_refused(file_of("{\"t\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}"), "once each, got another \"dtype\" in tensor \"t\"");
  check_refused(file_of("{\"t\":{\"size\":4}}"), "once each, got \"size\" in tensor \"t\"");
  check_refused(file_of("{\"__metadata__\":1}"), "expected an object of texts, got the number 1 in __metadata__");
  check_refused(file_of("{\"__metadata__\":{\"a\":1}}"), "expected a text, got the number 1 in __metadata__");
  check_refused(file_of("{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}"), "expected a text, got an object in __metadata__");
  check_refused(file_of("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}"), "\"a\" twice in __metadata__");
  check_refused(file_of("{\"__metadata__\":{},\"__metadata__\":{}}"), "expected one __metadata__, got two");

  check_entry_refused("\"F31\"", "[1]", "[0,4]",
                      "expected a dtype of whole bytes that the format has, got \"F31\" in tensor \"t\"");
  check_entry_refused("\"F4\"", "[8]", "[0,4]", "expected a dtype of whole bytes");
  check_entry_refused("\"none\"", "[8]", "[0,4]", "expected a dtype of whole bytes");
  check_entry_refused("4", "[1]", "[0,4]", "expected a text as dtype, got the number 4");
  check_entry_refused("\"F32\"", "1", "[0,4]", "expected a list as shape, got the number 1");
  check_entry_refused("\"F32\"", "[-1]", "[0,4]", "expected whole numbers from 0 to below 2^63 in shape, got the number -1");
  check_entry_refused("\"F32\"", "[1.0]", "[0,4]", "got the number 1.0");
  check_entry_refused("\"F32\"", "[-0]", "[0,4]", "got the number -0");
  check_entry_refused("\"F32\"", "[[1]]", "[0,4]", "got a list");
  check_entry_refused("\"F32\"", "[true]", "[0,4]", "got true or false");
  check_entry_refused("\"F32\"", "[9223372036854775808]", "[0,4]", "expected a number below 2^63, got 9223372036854775808");
  check_entry_refused("\"F32\"", "[18446744073709551617]", "[0,4]", "got the number 18446744073709551617");
  check_entry_refused("\"F32\"", "[4611686018427387904]", "[0,4]",
                      "expected a shape below 2^63 bytes, got [4611686018427387904]");
  check_entry_refused("\"F32\"", "[4294967296,4294967296]", "[0,4]", "expected a shape below 2^63 bytes");
  check_entry_refused("\"F32\"", "[4294967296,4294967296,0]", "[0,4]", "expected a shape below 2^63 bytes");
  check_entry_refused("\"F32\"", "[2]", "[0,4]", "expected 8 bytes of F32 [2], got data_offsets [0, 4] for tensor \"t\"");
  check_entry_refused("\"F32\"", "[1]", "[4,0]", "expected data_offsets that do not fall, got data_offsets [4, 0]");
  check_entry_refused("\"F32\"", "[1]", "[1,5]", "expected data_offsets within the file's 4 bytes of numbers");
  check_entry_refused("\"F32\"", "[1]", "[0,9223372036854775807]", "within the file's 4 bytes");
  check_entry_refused("\"F32\"", "[1]", "[0]", "expected two data_offsets, got fewer");
  check_entry_refused("\"F32\"", "[1]", "[0,4,8]", "expected two data_offsets, got more");
  check_entry_refused("\"F32\"", "[1]", "{}", "expected a list as data_offsets, got an object");
  check_entry_refused("\"U8\"", "[3]", "[0,3]", "expected 3 bytes of numbers, got 4");
  check_entry_refused("\"U8\"", "[3]", "[1,4]", "without overlap or gap, this one at byte 0, got data_offsets [1, 4]");
  check_entry_refused("\"U8\"", "[0]", "[2,2]", "without overlap or gap");
  std::string sizes = "[1";
  for (int i = 0; i < 63; ++i) sizes += ",1";
  check_sound(file_of("{\"t\":" + entry("\"F32\"", sizes + "]", "[0,4]") + '}', 4));
  check_entry_refused("\"F32\"", sizes + ",1]", "[0,4]", "expected a shape of at most 64 sizes, got more");

  const auto two = [](const std::string& a, const std::string& b, const std::string& name = "b") {
    return file_of("{\"a\":" + a + ",\"" + name + "\":" + b + '}', 4);
  };
  const auto bytes = [](const std::string& shape, const std::string& offsets) { return entry("\"U8\"", shape, offsets); };
  check_sound(two(bytes("[2]", "[2,4]"), bytes("[2]", "[0,2]")));
  check_sound(two(bytes("[4]", "[0,4]"), bytes("[0,9223372036854775807]", "[4,4]")));
  check_refused(two(bytes("[3]", "[0,3]"), bytes("[2]", "[2,4]")),
                "without overlap or gap, this one at byte 3, got data_offsets [2, 4]");
  check_refused(two(bytes("[1]", "[0,1]"), bytes("[2]", "[2,4]")),
                "without overlap or gap, this one at byte 1, got data_offsets [2, 4]");
  check_refused(two(bytes("[4]", "[0,4]"), bytes("[4]", "[0,4]")), "without overlap or gap");
  check_refused(two(bytes("[4]", "[0,4]"), bytes("[0]", "[2,2]")), "without overlap or gap");
  check_refused(two(bytes("[2]", "[0,2]"), bytes("[2]", "[2,4]"), "a"), "expected each name once, got \"a\" twice");
  check_refused(two(bytes("[2]", "[0,2]"), bytes("[2]", "[2,4]"), "\\u0061"), "expected each name once, got \"a\" twice");
}

TEST_CASE("nesting without end is refused at the third level", "[io][safetensors]") {
  for (const std::string open : {"[", "{\"a\":"}) {
    std::string bomb = "{\"t\":{\"shape\":[";
    for (int i = 0; i < 1'000'000; ++i) bomb += open;
    CHECK_THAT(reason_of(file_of(bomb + '}')), contains("expected whole numbers from 0 to below 2^63 in shape, got "));
    std::string metadata = "{\"__metadata__\":{\"a\":";
    for (int i = 0; i < 1'000'000; ++i) metadata += open;
    CHECK_THAT(reason_of(file_of(metadata + '}')), contains("in __metadata__"));
  }
}

TEST_CASE("every truncation of a file is refused", "[io][safetensors]") {
  for (const char* name : {"model_f32", "types"}) {
    const auto bytes = file_bytes(python_file(name));
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      const std::unique_ptr<unsigned char[]> cut(new unsigned char[size]);
      std::memcpy(cut.get(), bytes.data(), size);
      Safetensors file;
      if (file.parse(cut.get(), size).empty()) FAIL(name << " cut to " << size << " bytes was taken");
    }
  }
}

TEST_CASE("random corruptions: refused with a reason, or sound; never half loaded", "[io][safetensors]") {
  const char* text = std::getenv("RECOPS_CORRUPTIONS");
#if defined(__OPTIMIZE__)
  const Index usual = 100'000;
#else
  const Index usual = 20'000;  // a debug build under a sanitizer takes its time
#endif
  const Index count = text != nullptr ? std::atol(text) : usual, sound = run_corruptions(count, 1);
  std::printf("%td corruptions: %td refused with a reason, %td were sound files\n", count, count - sound, sound);
  CHECK(sound > 0);  // otherwise the damage says little
  CHECK(sound < count / 5);
}
