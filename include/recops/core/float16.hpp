/// @file   recops/core/float16.hpp
/// @brief  Sixteen-bit storage formats of a float: BFloat16 and Float16. Nothing computes in them.
///
/// Conversion from float rounds to nearest, ties to even; infinities stay, a NaN stays a NaN (quiet, with its sign and the leading
/// bits of its payload). Rows are converted by simd/convert.hpp, which gives the same bits.
#pragma once
#include <bit>
#include <cstdint>
#include <recops/core/config.hpp>

namespace recops {

/// The upper half of a float: its whole range with 8 bits of precision, so that rounding changes a number by at most 2^-8 of it.
struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  RECOPS_INLINE explicit BFloat16(float x) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
    const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x0040u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
  }
  RECOPS_INLINE explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE binary16: 11 bits of precision, normal from 2^-14 to 65504; from 65520 on a float becomes infinity, at or below 2^-25 zero.
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
  RECOPS_INLINE explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7FFFu;
    std::uint32_t u;
    if (magnitude >= 0x7C00u) {
      u = 0x7F800000u | (magnitude & 0x03FFu) << 13;
    } else if (magnitude >= 0x0400u) {
      u = (magnitude << 13) + 0x38000000u;
    } else {
      u = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    }
    return std::bit_cast<float>(sign | u);
  }
};

}  // namespace recops
