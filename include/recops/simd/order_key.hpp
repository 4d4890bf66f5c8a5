/// @file   recops/simd/order_key.hpp
/// @brief  Numbers as unsigned integers of the same order, which sort as fast as integers do and never lose their way over a NaN.
///
/// The smaller key comes first: keys of `Order::ascending` rise with the number, keys of `Order::descending` fall. -0 and +0 have
/// one key. Every NaN, whatever its sign and payload, has the largest key, so NaN comes last in either order.
#pragma once
#include <bit>
#include <limits>
#include <recops/simd/xsimd.hpp>

namespace recops {

/// Which numbers come first.
enum class Order {
  ascending,   ///< small ones
  descending,  ///< large ones
};

inline namespace RECOPS_ABI {
namespace simd {

/// An unsigned integer as wide as T.
template <Real T>
using OrderKey = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

namespace detail {

template <Real T>
inline constexpr int sign_shift = 8 * static_cast<int>(sizeof(T)) - 1;

/// The NaN that an order puts last: all ones below the sign, which is set where large numbers come first.
template <Real T>
RECOPS_INLINE T last_nan(Order order) {
  return std::bit_cast<T>(static_cast<OrderKey<T>>(~OrderKey<T>{0} >> (order == Order::ascending ? 1 : 0)));
}

}  // namespace detail

/// The key of one number.
template <Real T>
RECOPS_INLINE OrderKey<T> order_key(T x, Order order) {
  using K = OrderKey<T>;
  const K bits = std::bit_cast<K>(x == x ? x + T(0) : detail::last_nan<T>(order));
  const K top = K{1} << detail::sign_shift<T>;
  const K key = bits ^ ((bits & top) != 0 ? static_cast<K>(~K{0}) : top);
  return order == Order::ascending ? key : static_cast<K>(~key);
}

/// The number of a key (+0 for either zero, some NaN for NaN).
template <Real T>
RECOPS_INLINE T from_order_key(OrderKey<T> key, Order order) {
  using K = OrderKey<T>;
  const K rising = order == Order::ascending ? key : static_cast<K>(~key);
  const K top = K{1} << detail::sign_shift<T>;
  return std::bit_cast<T>(static_cast<K>(rising ^ ((rising & top) != 0 ? top : static_cast<K>(~K{0}))));
}

/// The keys of a vector of floats, in its lanes.
template <class A>
RECOPS_INLINE Batch<std::int32_t, A> order_keys(Batch<float, A> x, Order order) {
  using B = Batch<float, A>;
  using I = Batch<std::int32_t, A>;
  const I bits = bits_as<std::int32_t>(B(xsimd::select(x == x, x + B(0.0f), B(detail::last_nan<float>(order)))));
  const I key = bits ^ ((bits >> 31) | I(std::numeric_limits<std::int32_t>::min()));
  return order == Order::ascending ? key : I(~key);
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
