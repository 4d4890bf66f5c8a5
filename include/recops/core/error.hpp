/// @file   recops/core/error.hpp
/// @brief  The one error type and the checks every public entry makes before it writes anything.
///
/// Every message reads "operator: argument: expected ..., got ...". With exceptions switched off
/// `RECOPS_ERROR_HANDLER(message)` is called with that text (a `const char*`) instead of throwing; it must not return, must be
/// defined the same in every unit, and defaults to printing the text and aborting.
#pragma once
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

/// Throws `Error` (or calls the handler) with "operation: argument: expected EXPECTED, got ACTUAL".
[[noreturn, gnu::cold, gnu::noinline]] inline void fail(const char* operation, const char* argument, const std::string& expected,
                                                        const std::string& actual) {
  std::string message = operation;
  for (const char* part : {": ", argument, ": expected ", expected.c_str(), ", got ", actual.c_str()}) message += part;
#if defined(__cpp_exceptions)
  throw Error(message);
#else
  RECOPS_ERROR_HANDLER(message.c_str());
  std::abort();
#endif
}

namespace detail {

inline std::string shape_text(Index rows, Index cols) {
  std::string text = "[";
  text += rows < 0 ? "_" : std::to_string(rows);
  text += ", ";
  text += cols < 0 ? "_" : std::to_string(cols);
  text += "]";
  return text;
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_shape(const char* operation, const char* argument, Index rows, Index cols,
                                                              Index got_rows, Index got_cols, Index got_stride, bool null) {
  std::string actual = shape_text(got_rows, got_cols);
  if (got_stride < got_cols) actual += " with row stride " + std::to_string(got_stride);
  if (null) actual += " at a null pointer";
  fail(operation, argument, "shape " + shape_text(rows, cols), actual);
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_size(const char* operation, const char* argument, Index expected,
                                                             Index actual, bool null) {
  fail(operation, argument, expected < 0 ? "any size" : "size " + std::to_string(expected),
       std::to_string(actual) + (null ? " at a null pointer" : ""));
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_at(const char* operation, const char* argument, const char* expected,
                                                           Index limit, Index position, Index actual) {
  fail(operation, argument, expected + (limit < 0 ? std::string() : std::to_string(limit)),
       std::to_string(actual) + " at position " + std::to_string(position));
}

[[noreturn, gnu::cold, gnu::noinline]] inline void fail_number(const char* operation, const char* argument, const char* expected,
                                                               double actual) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", actual);
  fail(operation, argument, expected, text);
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
    detail::fail_at(operation, argument, "offsets [B + 1] that begin with 0", -1, 0, offsets.size());
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
inline void check_jagged(const char* operation, const char* argument, JaggedView<T> view, Index batch, Index cols) {
  check_shape(operation, argument, view.values(), any_size, cols);
  if (!view.is_one_sequence()) check_offsets(operation, argument, view.offsets(), view.values().rows());
  if (batch >= 0 && view.size() != batch) [[unlikely]]
    fail(operation, argument, std::to_string(batch) + " sequences", std::to_string(view.size()));
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

}  // namespace RECOPS_ABI
}  // namespace recops
