/// @file   recops/core/float16.hpp
/// @brief  Sixteen-bit storage formats of a float: BFloat16 and Float16. Nothing computes in them.
///
/// Conversion from float or double rounds once, to nearest, ties to even; infinities stay, a NaN stays a NaN (quiet, with its
/// sign and the leading bits of its payload). Rows are converted by simd/convert.hpp, which gives the same bits.
#pragma once
#include <bit>
#include <cstdint>
#include <recops/core/config.hpp>
#include <type_traits>

namespace recops {

namespace rounding {
/// A float with at least two more bits than needed: what is lost of `x` leaves its trace in the last bit, so that rounding the
/// float again rounds as if from `x`. For NaN a NaN.
RECOPS_INLINE float round_to_odd(double x) {
  const float f = static_cast<float>(x);
  const double back = static_cast<double>(f);
  std::uint32_t u = std::bit_cast<std::uint32_t>(f);
  if (back != x && x == x && (u & 1u) == 0) u = (back < 0 ? -back : back) > (x < 0 ? -x : x) ? u - 1 : u + 1;
  return std::bit_cast<float>(u);
}
}  // namespace rounding

/// The upper half of a float: its whole range with 8 bits of precision, so that rounding changes a number by at most 2^-8 of it.
struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  RECOPS_INLINE explicit BFloat16(float x) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
    const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x0040u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
  }
  template <class Double>
  requires std::is_same_v<Double, double> RECOPS_INLINE explicit BFloat16(Double x) : BFloat16(rounding::round_to_odd(x)) {}
  RECOPS_INLINE explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE binary16: 11 bits of precision, normal from 2^-14 to 65504; from 65520 on a float becomes infinity, at or below 2^-25
/// zero.
struct Float16 {
  std::uint16_t bits = 0;

  Float16() = default;
  RECOPS_INLINE explicit Float16(float x) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    std::uint32_t half;
    if (magnitude > 0x7F800000u) {
      half = 0x7E00u | ((magnitude >> 13) & 0x03FFu);
    } else if (magnitude >= 0x477FF000u) {  // 65520
      half = 0x7C00u;
    } else if (magnitude >= 0x38800000u) {  // 2^-14: normal; rounding may carry into the exponent, as it should
      half = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
    } else {  // the sum with 2^-1 has the denormal, rounded, in its low bits
      half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  template <class Double>
  requires std::is_same_v<Double, double> RECOPS_INLINE explicit Float16(Double x) : Float16(rounding::round_to_odd(x)) {}
  RECOPS_INLINE explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    std::uint32_t u;
    if (magnitude >= 0x7C00u) {
      u = (magnitude > 0x7C00u ? 0x7FC00000u : 0x7F800000u) | (magnitude & 0x03FFu) << 13;  // quiet, as processors do
    } else if (magnitude >= 0x0400u) {
      u = (magnitude << 13) + 0x38000000u;
    } else {
      u = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    }
    return std::bit_cast<float>(sign | u);
  }
};

}  // namespace recops
