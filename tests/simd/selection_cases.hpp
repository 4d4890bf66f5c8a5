/// @file   tests/simd/selection_cases.hpp
/// @brief  What the tests of selection share: arrays that are hard to sort, and the order they ought to be in.
#pragma once
#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <recops/core/random.hpp>
#include <recops/simd/order_key.hpp>
#include <string>
#include <utility>
#include <vector>

namespace recops_test {

/// Indices in the documented order: by value, equal ones (and NaNs, which come last) by index. By std::stable_sort.
template <class T>
std::vector<std::int32_t> stable_order(const std::vector<T>& x, recops::Order order) {
  std::vector<std::int32_t> indices(x.size());
  std::iota(indices.begin(), indices.end(), 0);
  std::stable_sort(indices.begin(), indices.end(), [&](std::int32_t i, std::int32_t j) {
    const T a = x[static_cast<std::size_t>(i)], b = x[static_cast<std::size_t>(j)];
    if (a != a || b != b) return a == a && b != b;
    return order == recops::Order::ascending ? a < b : a > b;
  });
  return indices;
}

template <class T>
bool same_bits(T a, T b) {
  using K = recops::simd::OrderKey<T>;
  return std::bit_cast<K>(a) == std::bit_cast<K>(b);
}

template <class T>
using Patterns = std::vector<std::pair<std::string, std::vector<T>>>;

/// Arrays of `n` on which sorts and selections go wrong.
template <class T>
Patterns<T> selection_patterns(recops::Index n, recops::Random& random) {
  using K = recops::simd::OrderKey<T>;
  using Limits = std::numeric_limits<T>;
  Patterns<T> patterns;
  const auto make = [&](const char* name, auto&& f) {
    std::vector<T> x(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = f(static_cast<recops::Index>(i));
    patterns.emplace_back(name, std::move(x));
  };
  const auto bits = [&] { return static_cast<K>(std::uint64_t{random.word()} << 32 | random.word()); };
  make("normal", [&](recops::Index) { return static_cast<T>(random.normal()); });
  make("equal", [&](recops::Index) { return T(0.25); });
  make("rising", [&](recops::Index i) { return static_cast<T>(i) - T(5); });
  make("falling", [&](recops::Index i) { return T(5) - static_cast<T>(i); });
  make("organ pipe", [&](recops::Index i) { return static_cast<T>(std::min(i, n - i)); });
  make("few values", [&](recops::Index) { return static_cast<T>(random.below(4)) - T(1); });
  make("any bits", [&](recops::Index) { return std::bit_cast<T>(bits()); });  // denormals, NaN of every kind
  make("denormals",
       [&](recops::Index) { return static_cast<T>(static_cast<double>(random.below(64)) - 32) * Limits::denorm_min(); });
  make("infinities, zeros and NaN", [&](recops::Index) {
    const T values[] = {Limits::infinity(),
                        -Limits::infinity(),
                        T(0),
                        -T(0),
                        Limits::quiet_NaN(),
                        -Limits::quiet_NaN(),
                        Limits::max(),
                        Limits::lowest(),
                        std::bit_cast<T>(static_cast<K>(~K{0} - 7)),
                        Limits::denorm_min()};
    return values[random.below(10)];
  });
  make("NaN", [&](recops::Index) { return Limits::quiet_NaN(); });
  make("minus infinity, at times NaN",
       [&](recops::Index) { return random.below(3) == 0 ? Limits::quiet_NaN() : -Limits::infinity(); });
  make("plus infinity, at times 1", [&](recops::Index) { return random.below(3) == 0 ? T(1) : Limits::infinity(); });
  // Many differ in low bits only: for doubles that is where 32-bit keys agree.
  make("almost one", [&](recops::Index) { return T(1) + static_cast<T>(random.below(50)) * Limits::epsilon(); });
  make("rising by low bits", [&](recops::Index i) { return T(1) + static_cast<T>(i / 2) * Limits::epsilon(); });
  return patterns;
}

}  // namespace recops_test
