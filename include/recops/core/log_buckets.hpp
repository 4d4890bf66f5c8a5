/// @file   recops/core/log_buckets.hpp
/// @brief  Buckets of time gaps that widen by e^0.301 = 1.351: floor(ln(max(1, |gap|)) / 0.301), in whole numbers.
///
/// The buckets of the authors' code of HSTU (arXiv 2402.17152). Theirs takes a logarithm in float, which may put a gap beside a border
/// into the neighbouring bucket; here a gap is compared with the borders, the same on every machine.
#pragma once
#include <array>
#include <bit>
#include <recops/core/views.hpp>

namespace recops {

/// Buckets that any two 64-bit times can need.
inline constexpr Index log_bucket_count = 148;

inline namespace RECOPS_ABI {
namespace detail {

/// border[k]: the smallest gap of bucket k. first[w]: the bucket of 2^(w-1), the smallest gap of w binary digits.
struct LogBuckets {
  std::array<std::uint64_t, log_bucket_count + 3> border{};  // the last ones are out of reach of any but the largest gap
  std::array<unsigned char, 65> first{};
  constexpr LogBuckets() {
    border.fill(~std::uint64_t{0});
    border[0] = 0;
    double power = 1;  // e^(0.301 k), far from a whole number wherever doubles are finer than those
    for (Index k = 1; k < log_bucket_count; ++k) {
      power *= 1.3512093415380155;
      const auto whole = power < 18446744073709549568.0 ? static_cast<std::uint64_t>(power) : ~std::uint64_t{0};
      border[static_cast<std::size_t>(k)] =
          whole == ~std::uint64_t{0} ? whole : whole + (static_cast<double>(whole) < power ? 1 : 0);
    }
    for (std::size_t w = 1; w <= 64; ++w) {
      unsigned char k = first[w - 1];
      while (k + 1 < log_bucket_count && border[k + 1u] <= std::uint64_t{1} << (w - 1) && border[k + 1u] != ~std::uint64_t{0})
        ++k;
      first[w] = k;
    }
  }
};
inline constexpr LogBuckets log_buckets;

}  // namespace detail

/// The bucket of the gap between two times, at most `last` (which is below `log_bucket_count`). No branches: 2^(w-1) has at most three
/// borders up to 2^w.
RECOPS_INLINE constexpr Index log_bucket(std::int64_t a, std::int64_t b, Index last) {
  const auto x = static_cast<std::uint64_t>(a), y = static_cast<std::uint64_t>(b);
  const std::uint64_t gap = a > b ? x - y : y - x;
  const auto& border = detail::log_buckets.border;
  std::size_t k = detail::log_buckets.first[static_cast<std::size_t>(std::bit_width(gap))];
  k += gap >= border[k + 1] ? 1 : 0;
  k += gap >= border[k + 1] ? 1 : 0;
  k += gap >= border[k + 1] ? 1 : 0;
  return static_cast<Index>(k) < last ? static_cast<Index>(k) : last;
}

}  // namespace RECOPS_ABI
}  // namespace recops
