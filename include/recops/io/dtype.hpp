/// @file   recops/io/dtype.hpp
/// @brief  The number types of a safetensors file, and conversion between them and the numbers of a layer.
///
/// Between floating types numbers are rounded to nearest, ties to even, in one step (float64 to a sixteen-bit format is not rounded
/// twice); infinities stay, a NaN stays a NaN. Integers keep their value. `can_convert` says beforehand whether all numbers fit:
/// a finite number that would become infinite, or an integer out of range, does not.
#pragma once
#include <bit>
#include <cstring>
#include <limits>
#include <recops/core/float16.hpp>
#include <recops/core/views.hpp>
#include <string_view>

namespace recops {

/// A number type, in the order of the format's reference implementation, which sorts files by it.
enum class Dtype : unsigned char {
  none,  ///< no type; in options: as it is
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64
};

inline namespace RECOPS_ABI {
namespace detail {

struct DtypeEntry {
  std::string_view name;
  Index bytes;
};
inline constexpr DtypeEntry dtype_entries[] = {
    {"none", 0}, {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2},
    {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"C64", 8},     {"F64", 8},     {"I64", 8}, {"U64", 8}};

}  // namespace detail

/// The name in a file, e.g. "F32".
inline std::string_view dtype_name(Dtype dtype) { return detail::dtype_entries[static_cast<int>(dtype)].name; }
/// Bytes of one number.
inline Index dtype_bytes(Dtype dtype) { return detail::dtype_entries[static_cast<int>(dtype)].bytes; }
/// The type of a name in a file, `Dtype::none` where there is none. The formats of less than a byte (F4, F6) are not known.
inline Dtype dtype_from_name(std::string_view name) {
  for (int i = 1; i <= static_cast<int>(Dtype::u64); ++i)
    if (detail::dtype_entries[i].name == name) return static_cast<Dtype>(i);
  return Dtype::none;
}

/// The type of a C++ number: float, double, BFloat16, Float16, bool and the integers of 8 to 64 bits; else `Dtype::none`.
template <class T>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<T, float>) return Dtype::f32;
  if constexpr (std::is_same_v<T, double>) return Dtype::f64;
  if constexpr (std::is_same_v<T, BFloat16>) return Dtype::bf16;
  if constexpr (std::is_same_v<T, Float16>) return Dtype::f16;
  if constexpr (std::is_same_v<T, bool>) return Dtype::boolean;
  if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
    constexpr bool is_signed = std::is_signed_v<T>;
    if constexpr (sizeof(T) == 1) return is_signed ? Dtype::i8 : Dtype::u8;
    if constexpr (sizeof(T) == 2) return is_signed ? Dtype::i16 : Dtype::u16;
    if constexpr (sizeof(T) == 4) return is_signed ? Dtype::i32 : Dtype::u32;
    if constexpr (sizeof(T) == 8) return is_signed ? Dtype::i64 : Dtype::u64;
  }
  return Dtype::none;
}

namespace detail {

constexpr bool is_floating(Dtype d) { return d == Dtype::f16 || d == Dtype::bf16 || d == Dtype::f32 || d == Dtype::f64; }
constexpr bool is_integer(Dtype d) {
  return d == Dtype::i8 || d == Dtype::u8 || d == Dtype::i16 || d == Dtype::u16 || d == Dtype::i32 || d == Dtype::u32 ||
         d == Dtype::i64 || d == Dtype::u64;
}

template <class To, class From>
To convert_float(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<From, BFloat16> || std::is_same_v<From, Float16>) {
    return convert_float<To>(static_cast<float>(x));
  } else {
    return static_cast<To>(x);
  }
}

/// Calls `f(number)` with a zero of the C++ type of `dtype`, one of the floating types.
template <class F>
void with_floating(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f16:
      return f(Float16());
    case Dtype::bf16:
      return f(BFloat16());
    case Dtype::f32:
      return f(float());
    case Dtype::f64:
      return f(double());
    default:
      return;
  }
}
/// The same for the integers.
template <class F>
void with_integer(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::i8:
      return f(std::int8_t());
    case Dtype::u8:
      return f(std::uint8_t());
    case Dtype::i16:
      return f(std::int16_t());
    case Dtype::u16:
      return f(std::uint16_t());
    case Dtype::i32:
      return f(std::int32_t());
    case Dtype::u32:
      return f(std::uint32_t());
    case Dtype::i64:
      return f(std::int64_t());
    case Dtype::u64:
      return f(std::uint64_t());
    default:
      return;
  }
}

template <class T>
T load_number(const unsigned char* bytes, Index i) {
  T x;
  std::memcpy(&x, bytes + i * static_cast<Index>(sizeof(T)), sizeof x);
  return x;
}

/// Sign and magnitude: what any integer here fits in.
struct WideInteger {
  std::uint64_t magnitude = 0;
  bool negative = false;
};
template <class T>
WideInteger widen(T x) {
  if constexpr (std::is_signed_v<T>) {
    const std::int64_t wide = x;
    return wide < 0 ? WideInteger{std::uint64_t{0} - static_cast<std::uint64_t>(wide), true}
                    : WideInteger{static_cast<std::uint64_t>(wide), false};
  } else {
    return {x, false};
  }
}
template <class T>
bool fits(WideInteger x) {
  const auto most = static_cast<std::uint64_t>(std::numeric_limits<T>::max());
  return x.negative ? std::is_signed_v<T> && x.magnitude <= most + 1 : x.magnitude <= most;
}

}  // namespace detail

/// Whether numbers of type `from` may become numbers of type `to` at all: floating to floating, integer or boolean to integer, else
/// equal.
inline bool is_convertible(Dtype from, Dtype to) {
  if (from == to) return from != Dtype::none;
  return (detail::is_floating(from) && detail::is_floating(to)) ||
         ((detail::is_integer(from) || from == Dtype::boolean) && detail::is_integer(to));
}

/// Position of the first of `n` numbers that does not fit `to`, or -1: a finite number that would become infinite, an integer out
/// of range, a boolean that is neither 0 nor 1. The types must be
/// convertible; `data` need not be aligned. O(n), nothing where the types are equal.
inline Index first_misfit(Dtype from, const void* data, Dtype to, Index n) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  Index found = -1;
  if (from == Dtype::boolean) {
    while (++found < n)
      if (bytes[found] > 1) return found;
    return -1;
  }
  if (from == to) return found;
  detail::with_floating(from, [&](auto source) {
    using From = decltype(source);
    if constexpr (!std::is_same_v<From, Float16>) {
      // The smallest number that the target rounds to infinity.
      double edge = 0;
      if (to == Dtype::f16) edge = 65520.0;
      if (to == Dtype::bf16 && !std::is_same_v<From, BFloat16>) edge = 0x1.FFp127;
      if (to == Dtype::f32 && std::is_same_v<From, double>) edge = 0x1.FFFFFFp127;
      if (edge == 0.0) return;
      const auto is_misfit = [&](Index i) {
        const double x = detail::convert_float<double>(detail::load_number<From>(bytes, i)), size = x < 0 ? -x : x;
        return (size >= edge) & (size <= std::numeric_limits<double>::max());
      };
      constexpr Index block = 1024;  // looked through without a branch, which vectorises
      for (Index first = 0; first < n && found < 0; first += block) {
        const Index end = n - first < block ? n : first + block;
        bool any = false;
        for (Index i = first; i < end; ++i) any |= is_misfit(i);
        for (Index i = first; any && found < 0; ++i)
          if (is_misfit(i)) found = i;
      }
    }
  });
  detail::with_integer(from, [&](auto source) {
    using From = decltype(source);
    for (Index i = 0; i < n && found < 0; ++i) {
      const detail::WideInteger x = detail::widen(detail::load_number<From>(bytes, i));
      detail::with_integer(to, [&](auto target) {
        if (!detail::fits<decltype(target)>(x)) found = i;
      });
    }
  });
  return found;
}

/// Converts `n` numbers of type `from` at `in` to type `to` at `out`. The types must be convertible; neither need be aligned.
inline void convert_numbers(Dtype from, const void* in, Dtype to, void* out, Index n) {
  if (n <= 0) return;
  const auto* source = static_cast<const unsigned char*>(in);
  auto* target = static_cast<unsigned char*>(out);
  if (from == to) {
    std::memcpy(target, source, static_cast<std::size_t>(n * dtype_bytes(from)));
    return;
  }
  detail::with_floating(from, [&](auto a) {
    detail::with_floating(to, [&](auto b) {
      using From = decltype(a);
      using To = decltype(b);
      for (Index i = 0; i < n; ++i) {
        const To x = detail::convert_float<To>(detail::load_number<From>(source, i));
        std::memcpy(target + i * static_cast<Index>(sizeof x), &x, sizeof x);
      }
    });
  });
  detail::with_integer(from == Dtype::boolean ? Dtype::u8 : from, [&](auto a) {
    using From = decltype(a);
    for (Index i = 0; i < n; ++i) {
      // Modulo 2^64, of which the low bytes are the number in any width: the machine is little-endian.
      const auto x = static_cast<std::uint64_t>(detail::load_number<From>(source, i));
      std::memcpy(target + i * dtype_bytes(to), &x, static_cast<std::size_t>(dtype_bytes(to)));
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops

static_assert(std::endian::native == std::endian::little, "the numbers of a safetensors file are little-endian");
