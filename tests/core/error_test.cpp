// Oracle: the messages written out.
#include <recops/core/error.hpp>
#include <recops/core/matrix.hpp>
#include <vector>

#include "support/catch.hpp"

using namespace recops;

namespace {

template <class F>
std::string message(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

static_assert(std::is_base_of_v<std::invalid_argument, Error> && sizeof(Error) == sizeof(std::invalid_argument));

}  // namespace

TEST_CASE("fail names operator, argument, expected and actual", "[core][error]") {
  CHECK(message([] { fail("pool", "query", "something", "nothing"); }) == "pool: query: expected something, got nothing");
  CHECK_THROWS_AS(fail("pool", "query", "a", "b"), std::invalid_argument);
}

TEST_CASE("check_shape", "[core][error]") {
  Matrix<float> m(2, 3);
  CHECK_NOTHROW(check_shape("op", "x", m.view(), 2, 3));
  CHECK_NOTHROW(check_shape("op", "x", m.view(), any_size, 3));
  CHECK_NOTHROW(check_shape("op", "x", m.view(), any_size, any_size));
  CHECK_NOTHROW(check_shape("op", "x", MatrixView<float>(), 0, 0));
  CHECK_NOTHROW(check_shape("op", "x", MatrixView<float>(nullptr, 0, 5), 0, 5));
  CHECK(message([&] { check_shape("op", "x", m.view(), 4, 3); }) == "op: x: expected shape [4, 3], got [2, 3]");
  CHECK(message([&] { check_shape("op", "x", m.view(), any_size, 8); }) == "op: x: expected shape [_, 8], got [2, 3]");
  const MatrixView<float> overlapping(m.data(), 2, 3, 2);
  CHECK(message([&] { check_shape("op", "x", overlapping, 2, 3); }) ==
        "op: x: expected shape [2, 3], got [2, 3] with row stride 2");
  const MatrixView<float> null(nullptr, 2, 3);
  CHECK(message([&] { check_shape("op", "x", null, 2, 3); }) == "op: x: expected shape [2, 3], got [2, 3] at a null pointer");
  const MatrixView<float> negative(m.data(), -2, 3);
  CHECK(message([&] { check_shape("op", "x", negative, any_size, 3); }) == "op: x: expected shape [_, 3], got [-2, 3]");
}

TEST_CASE("check_size", "[core][error]") {
  std::vector<float> v(3);
  CHECK_NOTHROW(check_size("op", "bias", VectorView<float>(v), 3));
  CHECK_NOTHROW(check_size("op", "bias", VectorView<float>(), any_size));
  CHECK(message([&] { check_size("op", "bias", VectorView<float>(v), 4); }) == "op: bias: expected size 4, got 3");
  CHECK(message([&] { check_size("op", "bias", VectorView<float>(nullptr, 4), 4); }) ==
        "op: bias: expected size 4, got 4 at a null pointer");
  CHECK(message([&] { check_size("op", "bias", VectorView<float>(v.data(), -1), any_size); }) ==
        "op: bias: expected any size, got -1");
}

TEMPLATE_TEST_CASE("check_offsets", "[core][error]", std::int32_t, std::int64_t) {
  using Offsets = std::vector<TestType>;
  const auto text = [](const Offsets& offsets, Index total) {
    return message([&] { check_offsets("op", "offsets", offsets, total); });
  };
  CHECK(text({0}, 0) == "");
  CHECK(text({0, 0, 3, 3}, 3) == "");
  CHECK(text({}, 0) == "op: offsets: expected offsets [B + 1] that begin with 0, got none");
  CHECK(text({1, 3}, 3) == "op: offsets: expected offsets that begin with 0, got 1 at position 0");
  CHECK(text({0, 3, 2, 4}, 4) == "op: offsets: expected offsets that never fall, at least 3, got 2 at position 2");
  CHECK(text({0, 3}, 4) == "op: offsets: expected offsets that end with the number of rows 4, got 3 at position 1");
  CHECK(text({0, 5}, 4) == "op: offsets: expected offsets that end with the number of rows 4, got 5 at position 1");
  CHECK(message([] { check_offsets("op", "offsets", IndexView(static_cast<const TestType*>(nullptr), 2), 4); }) ==
        "op: offsets: expected any size, got 2 at a null pointer");
}

TEST_CASE("check_jagged", "[core][error]") {
  Matrix<float> values(3, 2);
  const std::vector<std::int64_t> good{0, 1, 3}, bad{0, 1, 2};
  CHECK_NOTHROW(check_jagged("op", "history", JaggedView<float>(values, good), 2, 2));
  CHECK_NOTHROW(check_jagged("op", "history", JaggedView<float>(values), 1, any_size));
  CHECK(message([&] { check_jagged("op", "history", JaggedView<float>(values, good), 5, 2); }) ==
        "op: history: expected 5 sequences, got 2");
  CHECK(message([&] { check_jagged("op", "history", JaggedView<float>(values, good), 2, 4); }) ==
        "op: history: expected shape [_, 4], got [3, 2]");
  CHECK(message([&] { check_jagged("op", "history", JaggedView<float>(values, bad), 2, 2); }) ==
        "op: history: expected offsets that end with the number of rows 3, got 2 at position 2");
}

TEST_CASE("check_indices, check_option and checked_size", "[core][error]") {
  const std::vector<std::int32_t> indices{0, 4, -1};
  CHECK_NOTHROW(check_indices("op", "ids", IndexView(indices).segment(0, 2), 5));
  CHECK_NOTHROW(check_indices("op", "ids", IndexView(), 0));
  CHECK(message([&] { check_indices("op", "ids", indices, 5); }) ==
        "op: ids: expected indices from 0 to below 5, got -1 at position 2");
  CHECK(message([&] { check_indices("op", "ids", indices, 4); }) ==
        "op: ids: expected indices from 0 to below 4, got 4 at position 1");
  CHECK(message([] { check_indices("op", "ids", IndexView(static_cast<const std::int64_t*>(nullptr), 1), 4); }) ==
        "op: ids: expected any size, got 1 at a null pointer");
  CHECK(checked_size("op", "n", 0) == 0);
  CHECK(message([] { checked_size("op", "n", -1); }) == "op: n: expected a size >= 0, got -1");
  CHECK_NOTHROW(check_option("op", "lambda", true, "0 <= lambda <= 1", 0.5));
  CHECK(message([] { check_option("op", "lambda", false, "0 <= lambda <= 1", 1.5); }) ==
        "op: lambda: expected 0 <= lambda <= 1, got 1.5");
}
