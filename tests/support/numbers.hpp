/// @file   tests/support/numbers.hpp
/// @brief  Test inputs and comparisons: seeded random numbers, strided views with guarded padding, distances, messages of errors.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/matrix.hpp>
#include <recops/core/random.hpp>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace recops_test {

/// Whether this build looks at every access and takes tens of times as long: tests of very many sizes take fewer of them there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#elif defined(__has_feature)
inline constexpr bool sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool sanitized = false;
#endif

/// Random numbers of a test: `stream` tells tests apart, the run's seed moves them all.
inline recops::Random random_stream(std::uint64_t stream) { return recops::Random(seed(), stream); }

template <class T>
recops::Vector<T> random_vector(recops::Index size, recops::Random& random) {
  recops::Vector<T> v(size);
  for (T& x : v) x = static_cast<T>(random.normal());
  return v;
}
template <class T>
recops::Matrix<T> random_matrix(recops::Index rows, recops::Index cols, recops::Random& random) {
  recops::Matrix<T> m(rows, cols);
  for (recops::Index i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<T>(random.normal());
  return m;
}

/// A matrix with unaligned rows that are further apart than they are long; `intact()` says whether the gaps still hold what was
/// put there.
template <class T>
class Padded {
 public:
  Padded(recops::Index rows, recops::Index cols, T value = T(0)) : storage_(rows, cols + 4, guard), cols_(cols) {
    for (recops::Index i = 0; i < rows; ++i) std::fill_n(view().row(i), cols, value);
  }
  explicit Padded(recops::MatrixView<const T> from) : Padded(from.rows(), from.cols()) {
    for (recops::Index i = 0; i < from.rows(); ++i) std::copy_n(from.row(i), cols_, view().row(i));
  }
  recops::MatrixView<T> view() { return storage_.view().middle_cols(1, cols_); }
  operator recops::MatrixView<T>() { return view(); }
  operator recops::MatrixView<const T>() { return view(); }
  T& operator()(recops::Index i, recops::Index j) { return view()(i, j); }
  bool intact() const {
    for (recops::Index i = 0; i < storage_.rows(); ++i)
      for (recops::Index j = 0; j < storage_.cols(); ++j)
        if ((j == 0 || j > cols_) && storage_(i, j) != guard) return false;
    return true;
  }

 private:
  static constexpr T guard = T(-12345);
  recops::Matrix<T> storage_;
  recops::Index cols_;
};

/// Largest |a - b| of two matrices of one shape; infinity where a NaN meets a number or shapes differ.
template <class A, class B>
double max_difference(recops::MatrixView<A> a, recops::MatrixView<B> b) {
  if (a.rows() != b.rows() || a.cols() != b.cols()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (recops::Index i = 0; i < a.rows(); ++i) {
    for (recops::Index j = 0; j < a.cols(); ++j) {
      const auto x = static_cast<double>(a(i, j)), y = static_cast<double>(b(i, j));
      if (x == y || (std::isnan(x) && std::isnan(y))) continue;
      const double d = std::abs(x - y);
      most = std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(most, d);
    }
  }
  return most;
}

/// Distance of `got` from the exact value in units of the last place of T (denormal steps near 0).
template <class T>
double ulps(T got, long double exact) {
  const T nearest = std::abs(static_cast<T>(exact));
  if (std::isinf(nearest) || std::isinf(got)) return got == static_cast<T>(exact) ? 0 : std::numeric_limits<double>::infinity();
  const long double step = static_cast<long double>(std::nextafter(nearest, std::numeric_limits<T>::infinity())) - nearest;
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) / step);
}

/// The message of the `recops::Error` that `f()` throws.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const recops::Error& e) {
    return e.what();
  }
  return "no error";
}

/// A call that must fail, and how its message begins.
struct Refused {
  std::string begin;
  void (*call)(recops::Random&);
};
inline void check_refused(const std::vector<Refused>& cases) {
  recops::Random random = random_stream(1);
  for (const Refused& c : cases) {
    const std::string message = error_of([&] { c.call(random); });
    CAPTURE(c.begin, message);
    CHECK(message.rfind(c.begin + ": expected ", 0) == 0);
  }
}

}  // namespace recops_test
