/// @file   recops/core/error.hpp
/// @brief  The one error type and the checks every public entry makes before it writes anything.
///
/// Every message reads "operator: argument: expected ..., got ...". With exceptions switched off
/// `RECOPS_ERROR_HANDLER(message)` is called with that text (a `const char*`) instead of throwing; it must not return, must be
/// defined the same in every unit, and defaults to printing the text and aborting.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <recops/core/views.hpp>
#include <stdexcept>
#include <string>

#if !defined(__cpp_exceptions) && !defined(RECOPS_ERROR_HANDLER)
#define RECOPS_ERROR_HANDLER(message) (std::fprintf(stderr, "%s\n", message), std::abort())
#endif

namespace recops {

/// Thrown for wrong shapes, offsets, indices, options and files. Nothing has been written when it is.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

inline namespace RECOPS_ABI {

/// Throws `Error` (or calls the handler) with "operation: argument: expected EXPECTED, got ACTUAL", cut at 1023 characters.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(const char* operation, const char* argument, const char* expected,
                                                        const char* actual) {
  char message[1024];
  std::snprintf(message, sizeof message, "%s: %s: expected %s, got %s", operation, argument, expected, actual);
#if defined(__cpp_exceptions)
  throw Error(message);
#else
  RECOPS_ERROR_HANDLER(static_cast<const char*>(message));
  std::abort();
#endif
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(const char* operation, const char* argument, const std::string& expected,
                                                        const std::string& actual) {
  fail(operation, argument, expected.c_str(), actual.c_str());
}

namespace detail {

/// A few formatted words. No std::string: C++20 compiles its code into every program that builds one.
struct Words {
  char text[256] = "";
  int length = 0;
  [[gnu::cold, gnu::noinline, gnu::format(printf, 2, 3)]] Words& add(const char* format, ...) {
    const int room = static_cast<int>(sizeof text) - length;
    va_list arguments;
    va_start(arguments, format);
    const int written = std::vsnprintf(text + length, static_cast<std::size_t>(room), format, arguments);
    va_end(arguments);
    length += written < 0 ? 0 : written < room ? written : room - 1;
    return *this;
  }
  /// A number, or `otherwise` where it is negative.
  Words& add_size(Index n, const char* otherwise) { return n < 0 ? add("%s", otherwise) : add("%td", n); }
};

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_shape(const char* operation, const char* argument, Index rows, Index cols,
                                                              Index got_rows, Index got_cols, Index got_stride, bool null) {
  Words expected, actual;
  expected.add("shape [").add_size(rows, "_").add(", ").add_size(cols, "_").add("]");
  actual.add("[%td, %td]", got_rows, got_cols);
  if (got_stride < got_cols) actual.add(" with row stride %td", got_stride);
  if (null) actual.add(" at a null pointer");
  fail(operation, argument, expected.text, actual.text);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_size(const char* operation, const char* argument, Index expected,
                                                             Index actual, bool null) {
  Words size;
  fail(operation, argument, expected < 0 ? "any size" : size.add("size %td", expected).text,
       Words().add("%td%s", actual, null ? " at a null pointer" : "").text);
}

/// `limit` follows `expected` unless it is negative.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_at(const char* operation, const char* argument, const char* expected,
                                                           Index limit, Index position, Index actual) {
  fail(operation, argument, Words().add("%s", expected).add_size(limit, "").text,
       Words().add("%td at position %td", actual, position).text);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_number(const char* operation, const char* argument, const char* expected,
                                                               double actual) {
  fail(operation, argument, expected, Words().add("%.9g", actual).text);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_count(const char* operation, const char* argument, Index expected,
                                                              Index actual, const char* what) {
  fail(operation, argument, Words().add("%td %s", expected, what).text, Words().add("%td", actual).text);
}

}  // namespace detail

/// For a size that may be anything in `check_shape` and `check_size`.
inline constexpr Index any_size = -1;

/// `view` must be `[rows, cols]` (either may be `any_size`), with a row stride of at least its columns and a pointer if it
/// holds anything.
template <class T>
inline void check_shape(const char* operation, const char* argument, MatrixView<T> view, Index rows, Index cols) {
  const bool null = view.data() == nullptr && view.rows() > 0 && view.cols() > 0;
  if (view.rows() < 0 || view.cols() < 0 || (rows >= 0 && view.rows() != rows) || (cols >= 0 && view.cols() != cols) ||
      view.stride() < view.cols() || null) [[unlikely]] {
    detail::fail_shape(operation, argument, rows, cols, view.rows(), view.cols(), view.stride(), null);
  }
}

/// `view` must hold `size` elements (or any number with `any_size`).
template <class T>
inline void check_size(const char* operation, const char* argument, VectorView<T> view, Index size) {
  const bool null = view.data() == nullptr && view.size() > 0;
  if (view.size() < 0 || (size >= 0 && view.size() != size) || null) [[unlikely]]
    detail::fail_size(operation, argument, size, view.size(), null);
}

namespace detail {
inline void check_not_null(const char* operation, const char* argument, IndexView indices) {
  if (indices.size() < 0 || (indices.is_null() && indices.size() > 0)) [[unlikely]]
    fail_size(operation, argument, any_size, indices.size(), indices.is_null());
}
}  // namespace detail

/// `offsets` must begin with 0, never fall, and end with `total`. O(B).
inline void check_offsets(const char* operation, const char* argument, IndexView offsets, Index total) {
  detail::check_not_null(operation, argument, offsets);
  if (offsets.size() < 1) [[unlikely]]
    fail(operation, argument, "offsets [B + 1] that begin with 0", "none");
  if (offsets[0] != 0) [[unlikely]]
    detail::fail_at(operation, argument, "offsets that begin with 0", -1, 0, offsets[0]);
  for (Index b = 1; b < offsets.size(); ++b) {
    if (offsets[b] < offsets[b - 1]) [[unlikely]]
      detail::fail_at(operation, argument, "offsets that never fall, at least ", offsets[b - 1], b, offsets[b]);
  }
  if (offsets[offsets.size() - 1] != total) [[unlikely]]
    detail::fail_at(operation, argument, "offsets that end with the number of rows ", total, offsets.size() - 1,
                    offsets[offsets.size() - 1]);
}

/// A jagged batch with sound values and offsets, of `batch` sequences (or any number) and `cols` columns (or any number). O(B).
template <class T>
[[gnu::noinline]] void check_jagged(const char* operation, const char* argument, const JaggedView<T>& view, Index batch,
                                    Index cols) {
  check_shape(operation, argument, view.values(), any_size, cols);
  if (!view.is_one_sequence()) check_offsets(operation, argument, view.offsets(), view.values().rows());
  if (batch >= 0 && view.size() != batch) [[unlikely]]
    detail::fail_count(operation, argument, batch, view.size(), "sequences");
}

/// Every index must lie in [0, bound). O(n).
inline void check_indices(const char* operation, const char* argument, IndexView indices, Index bound) {
  detail::check_not_null(operation, argument, indices);
  for (Index i = 0; i < indices.size(); ++i) {
    if (indices[i] < 0 || indices[i] >= bound) [[unlikely]]
      detail::fail_at(operation, argument, "indices from 0 to below ", bound, i, indices[i]);
  }
}

/// An option or count must satisfy `ok`; `expected` says what is allowed, e.g. "0 <= lambda <= 1".
inline void check_option(const char* operation, const char* argument, bool ok, const char* expected, double actual) {
  if (!ok) [[unlikely]]
    detail::fail_number(operation, argument, expected, actual);
}

/// `size`, which must not be negative: a constructor checks it where it first uses it.
inline Index checked_size(const char* operation, const char* argument, Index size) {
  check_option(operation, argument, size >= 0, "a size >= 0", static_cast<double>(size));
  return size;
}

}  // namespace RECOPS_ABI
}  // namespace recops
