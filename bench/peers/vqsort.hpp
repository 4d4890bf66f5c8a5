/// @file   bench/peers/vqsort.hpp
/// @brief  Highway's vectorised quicksort as an argsort: keys and positions in one u64, sorted, positions taken out again.
#pragma once
#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <recops/core/matrix.hpp>

#include "support/child.hpp"
#if defined(RECOPS_BENCH_HWY)
#include <hwy/contrib/sort/vqsort.h>
#endif

namespace recops_bench {

/// Ascending positions of `n` floats; `keys(copy)` says where they are.
inline Peer vqsort_argsort([[maybe_unused]] std::function<const float*(Index)> keys, [[maybe_unused]] Index n) {
#if defined(RECOPS_BENCH_HWY)
  struct Data {
    recops::Vector<std::uint64_t> pairs;
    recops::Vector<std::int32_t> order;
    hwy::Sorter sorter;
  };
  const auto d = std::make_shared<Data>();
  d->pairs.resize(n);
  d->order.resize(n);
  Peer peer;
  peer.name = "vqsort";
  peer.run = [d, keys = std::move(keys), n](Index copy) {
    const float* x = keys(copy);
    std::uint64_t* const pairs = d->pairs.data();
    std::int32_t* const order = d->order.data();
    for (Index i = 0; i < n; ++i) {
      const std::uint32_t bits = std::bit_cast<std::uint32_t>(x[i]);
      const std::uint32_t flip = static_cast<std::uint32_t>(-static_cast<std::int32_t>(bits >> 31)) | 0x80000000u;
      pairs[i] = static_cast<std::uint64_t>(bits ^ flip) << 32 | static_cast<std::uint64_t>(i);
    }
    d->sorter(pairs, static_cast<std::size_t>(n), hwy::SortAscending());
    for (Index i = 0; i < n; ++i) order[i] = static_cast<std::int32_t>(pairs[i]);
  };
  return peer;
#else
  return skipped_peer("vqsort", "libhwy-dev");
#endif
}

}  // namespace recops_bench
