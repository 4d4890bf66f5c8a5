// Oracle: the bytes that the Python package writes for the same tensors; our own reader, tested against the package elsewhere.
#include <recops/io/safetensors_writer.hpp>

#include <cmath>
#include <filesystem>

#include "examples/temporary_folder.hpp"
#include "io/bytes.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("the writer makes the bytes that the Python package makes", "[io][safetensors]") {
  SafetensorsWriter writer;
  writer.metadata = {{"made by", "numpy \" \\ 名"}};
  const auto six = [&](const std::string& name, auto zero) {
    using T = decltype(zero);
    static Vector<T> numbers;
    numbers = {T(0), T(1), T(2), T(3), T(100), T(127)};
    writer.add("numbers." + name, {2, 3}, VectorView<const T>(numbers));
  };
  six("float64", double());
  six("float32", float());
  six("int64", std::int64_t());
  six("uint64", std::uint64_t());
  six("int32", std::int32_t());
  six("uint32", std::uint32_t());
  six("int16", std::int16_t());
  six("uint16", std::uint16_t());
  six("int8", std::int8_t());
  six("uint8", std::uint8_t());
  const Vector<float> half{0, 1, 2, 3, 100, 127};
  writer.add("numbers.float16", {2, 3}, VectorView<const float>(half), Dtype::f16);
  const bool flags[] = {true, false};
  writer.add("numbers.bool", VectorView<const bool>(flags, 2));
  const Vector<float> scalar{-2.5f};
  writer.add("scalar", {}, VectorView<const float>(scalar));
  writer.add("no numbers", {0, 3}, VectorView<const float>());
  writer.add("no numbers either", {2, 0, 5}, VectorView<const std::int16_t>());
  Vector<float> three(24);
  for (Index i = 0; i < 24; ++i) three[i] = static_cast<float>(i);
  writer.add("three axes", {2, 3, 4}, VectorView<const float>(three));
  const Vector<std::int64_t> extremes{INT64_MIN, INT64_MAX};
  writer.add("extremes", VectorView<const std::int64_t>(extremes));
  const double infinity = std::numeric_limits<double>::infinity();
  const Vector<double> edges{infinity, -infinity, std::nan(""), -0.0, 5e-324, 1.7976931348623157e308};
  writer.add("edges", VectorView<const double>(edges));
  const Vector<std::int32_t> odd{1, 2, 3};
  writer.add("quote \" backslash \\ tab \t bell \x07 Ünïcødé 名前 🙂", VectorView<const std::int32_t>(odd));
  const Vector<std::uint8_t> nameless{7};
  writer.add("", VectorView<const std::uint8_t>(nameless));

  // The package also wrote complex numbers, which have no type here: take theirs out, and compare what is left.
  const Safetensors theirs(file_bytes(python_file("types"))), ours(writer.bytes());
  REQUIRE(ours.tensors().size() + 1 == theirs.tensors().size());
  CHECK(ours.metadata() == theirs.metadata());
  const std::size_t complex_begin = theirs.find("numbers.complex64")->begin, complex_bytes = 48;
  for (const StoredTensor& t : ours.tensors()) {
    CAPTURE(t.name);
    const StoredTensor* other = theirs.find(t.name);
    REQUIRE(other != nullptr);
    CHECK(t.dtype == other->dtype);
    CHECK(t.shape == other->shape);
    CHECK(t.begin == other->begin - (other->begin > complex_begin ? complex_bytes : 0));
    REQUIRE(t.end - t.begin == other->end - other->begin);
    CHECK(std::equal(t.bytes, t.bytes + (t.end - t.begin), other->bytes));
  }

  SafetensorsWriter none;
  none.metadata.clear();
  CHECK(none.bytes() == file_bytes(python_file("empty")));
}

TEST_CASE("a file of the Python package, read and written, is that file", "[io][safetensors]") {
  for (const char* name : {"model_f64", "model_f32", "model_bf16", "model_f16"}) {
    CAPTURE(name);
    const auto bytes = file_bytes(python_file(name));
    const Safetensors file(bytes.data(), bytes.size());
    SafetensorsWriter writer;
    std::vector<Vector<double>> kept;
    std::vector<Vector<std::int64_t>> counters;
    kept.reserve(file.tensors().size());
    counters.reserve(file.tensors().size());
    for (const StoredTensor& t : file.tensors()) {
      if (t.dtype == Dtype::i64) {
        counters.push_back(file.vector<std::int64_t>(t.name));
        writer.add(t.name, t.shape, VectorView<const std::int64_t>(counters.back()));
      } else {
        kept.emplace_back(t.size());
        convert_numbers(t.dtype, t.bytes, Dtype::f64, kept.back().data(), t.size());
        writer.add(t.name, t.shape, VectorView<const double>(kept.back()), t.dtype);
      }
    }
    CHECK(writer.bytes() == bytes);
  }
}

TEST_CASE("strided matrices and long rows are written as they are seen", "[io][safetensors]") {
  Random random = random_stream(1);
  for (const auto& [rows, cols] : {std::pair<Index, Index>{3, 5}, {2, 8192}, {2, 8193}, {1, 20001}, {0, 4}, {4, 0}}) {
    CAPTURE(rows, cols);
    const Matrix<double> m = random_matrix<double>(rows, cols + 3, random);
    const MatrixView<const double> part = m.view().middle_cols(2, cols);
    for (const Dtype dtype : {Dtype::none, Dtype::f32}) {
      SafetensorsWriter writer;
      writer.add("part", part, dtype);
      const Matrix<double> got = Safetensors(writer.bytes()).matrix<double>("part");
      REQUIRE(got.rows() == rows);
      REQUIRE(got.cols() == cols);
      bool same = true;
      for (Index i = 0; i < rows; ++i)
        for (Index j = 0; j < cols; ++j)
          same = same && got(i, j) == (dtype == Dtype::f32 ? static_cast<double>(static_cast<float>(part(i, j))) : part(i, j));
      CHECK(same);
    }
  }
}

TEST_CASE("the writer refuses what could not be read, and leaves the file that is there", "[io][safetensors]") {
  const TemporaryFolder folder;
  const std::string path = folder.write("file", "old");
  const Vector<double> x{1, 1e39, 2};
  const VectorView<const double> view(x);
  const auto check_refused = [&](SafetensorsWriter writer, const std::string& reason) {
    CHECK_THAT(writer.try_write(path), contains(reason));
    CHECK_THROWS_WITH(writer.write(path), contains("SafetensorsWriter: " + path + ": "));
    CHECK_THROWS_WITH(writer.bytes(), contains("SafetensorsWriter: expected "));
    CHECK(file_bytes(path).size() == 3);
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  };
  SafetensorsWriter narrow, twice, reserved, text, number, pairs, ill;
  narrow.add("x", view, Dtype::f32);
  check_refused(narrow, "expected numbers that fit F32, got one that does not at position 1 for tensor \"x\"");
  twice.add("x", view);
  twice.add("x", view);
  check_refused(twice, "expected each name once, got \"x\" twice");
  reserved.add("__metadata__", view);
  check_refused(reserved, "expected another name");
  text.add("\xFF", view);
  check_refused(text, "expected a header in JSON and UTF-8");
  number.add("x", view, Dtype::i64);
  check_refused(number, "expected a type that becomes I64, got F64 for tensor \"x\"");
  pairs.metadata = {{"a", "1"}, {"a", "2"}};
  check_refused(pairs, "\"a\" twice in __metadata__");
  ill.metadata = {{"a", "\xC0"}};
  check_refused(ill, "UTF-8");
  SafetensorsWriter writer;
  CHECK_THROWS_WITH(writer.add("x", {2, 2}, view), contains("shape: expected as many numbers as there are, got 4"));
  CHECK_THROWS_WITH(writer.add("x", {-3, -1}, view), contains("shape: expected"));
  CHECK_THROWS_WITH(writer.add("x", MatrixView<const double>(nullptr, 1, 1)), contains("null pointer"));
  CHECK_THAT(writer.try_write(folder.path() + "/none/file"), contains("expected a folder"));
  CHECK(writer.try_write(path) == "");  // what was refused has not been added
  CHECK(Safetensors(file_bytes(path)).tensors().empty());
}
