/// @file   recops/ranking/isotonic.hpp
/// @brief  Pool adjacent violators: the non-increasing sequence nearest to another one, as blocks of equal value. The core of
///         soft_rank and soft_sort.
///
/// Blocks merge on <=. Nothing here loops on a NaN: a comparison with one is false and ends a merge.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/core/views.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// v = argmin { Σ (v_i - y(i))^2 : v_0 >= v_1 >= ... }: `starts` [n] receives where each block begins, the result is how many
/// there are; a block's value is the mean of its y. Values are running means, not sums: a block of equal numbers has exactly their
/// value, so that ties are seen as ties however small their distance to the next. Scratch of n + 1 doubles at `means`. O(n).
template <class Y>
Index pool_means(Index n, const Y& y, std::int32_t* starts, double* means) {
  means[0] = std::numeric_limits<double>::infinity();  // nothing merges into what is not there, be it that y overflowed
  Index top = 0;
  for (Index i = 0; i < n; ++i) {
    double mean = y(i);
    Index begin = i;
    while (means[top] <= mean && top > 0) {
      const Index before = starts[top - 1];
      mean += (means[top] - mean) * (static_cast<double>(begin - before) / static_cast<double>(i + 1 - before));
      begin = before;
      --top;
    }
    starts[top++] = static_cast<std::int32_t>(begin);
    means[top] = mean;
  }
  return top;
}

/// A block: its sum and how many numbers are in it, side by side, for a step works on both at once. (The compilers' own vectors: a
/// pair of doubles is a register on every 64-bit machine, and floors above simd/ do not see xsimd.)
using BlockSum [[gnu::vector_size(16)]] = double;

/// One stack of blocks that takes numbers from y[next] to y[end - 1] in. A step merges the two topmost blocks or pushes the next
/// number, without a branch: which of both it is nobody can predict, and a mistake costs more than a step. The two topmost are in
/// registers, and what comes up after a merge is fetched before that is decided.
struct PoolChain {
  BlockSum last, below;  ///< the stop of an empty stack is an infinite sum
  BlockSum* top;         ///< where `below` lies, on all earlier ones
  Index next, end;

  void start(const double* y, BlockSum* room, Index first, Index behind) {
    below = room[0] = room[1] = BlockSum{std::numeric_limits<double>::infinity(), 1};
    last = BlockSum{y[first], 1};
    top = room + 1;
    next = first + 1;
    end = behind;
  }
  bool running() const { return next <= end; }  ///< the step after the last number makes sure that nothing merges any more
  RECOPS_INLINE void step(const double* y) {
    const BlockSum under = top[-1], product = below * BlockSum{last[1], last[0]};  // mean below <= mean last, without a division
    const auto merge = BlockSum{product[0], product[0]} <= BlockSum{product[1], product[1]};
    top[1] = last;
    const BlockSum both = below + last;
    below = merge ? under : last;
    last = merge ? both : BlockSum{y[next], 1};
    const Index yes = merge[0];  // -1 or 0
    top += 1 + 2 * yes;
    next += 1 + yes;
  }
};

/// The same from sums, in a third of the time: four stretches of y take turns step by step, so that none waits for another's
/// arithmetic; then what touches at the seams is merged. For numbers whose differences are far above rounding. The blocks are left
/// at `blocks`, which has room for n + 16, as y has for n + 1. n >= 4.
inline Index pool_sums(Index n, const double* y, BlockSum* blocks) {
  constexpr int chains = 4;
  PoolChain chain[chains];
  BlockSum* room[chains];
  for (int c = 0; c < chains; ++c) {
    room[c] = blocks + n * c / chains + 4 * c;
    chain[c].start(y, room[c], n * c / chains, n * (c + 1) / chains);
  }
  while (true) {
    Index steps = n;  // so many are left at least for every chain
    for (const PoolChain& c : chain) steps = std::min(steps, c.end + 1 - c.next);
    if (steps <= 0) break;
    PoolChain c0 = chain[0], c1 = chain[1], c2 = chain[2], c3 = chain[3];
    for (Index s = 0; s < steps; ++s) {
      c0.step(y);
      c1.step(y);
      c2.step(y);
      c3.step(y);
    }
    chain[0] = c0, chain[1] = c1, chain[2] = c2, chain[3] = c3;
  }
  Index count = 0;
  for (int c = 0; c < chains; ++c) {
    while (chain[c].running()) chain[c].step(y);
    BlockSum* const last = chain[c].top + 1;
    BlockSum* from = room[c] + 2;
    for (bool touching = true; from != last && touching; ++from) {
      BlockSum block = *from;
      touching = false;
      while (count > 0 && blocks[count - 1][0] * block[1] <= block[0] * blocks[count - 1][1]) {
        block += blocks[--count];
        touching = true;
      }
      blocks[count++] = block;
    }
    if (from != blocks + count) std::copy(from, last, blocks + count);
    count += last - from;
  }
  return count;
}

/// Σ exp(x / eps) of a block, as its largest x and the sum relative to it, so that nothing overflows and x / eps is never formed.
struct LogSum {
  double largest = 0, sum = 1;

  static LogSum merged(const LogSum& a, const LogSum& b, double inverse_eps) {
    if (a.largest >= b.largest) return {a.largest, a.sum + b.sum * std::exp((b.largest - a.largest) * inverse_eps)};
    return {b.largest, b.sum + a.sum * std::exp((a.largest - b.largest) * inverse_eps)};
  }
};

/// A block of the entropic problem: its sums, where it begins, its value.
struct EntropicBlock {
  LogSum sum;
  double value;
};

/// The same for blocks of value(block, begin, end), merged by `merge`. Scratch of n + 1 blocks.
template <class Value, class Start, class Merge>
Index pool_blocks(Index n, const Start& start, const Merge& merge, const Value& value, std::int32_t* starts,
                  EntropicBlock* blocks) {
  Index top = 0;
  for (Index i = 0; i < n; ++i) {
    EntropicBlock block{start(i), 0};
    Index begin = i;
    block.value = value(block.sum, begin, i + 1);
    while (top > 0 && blocks[top - 1].value <= block.value) {
      --top;
      begin = starts[top];
      block.sum = merge(blocks[top].sum, block.sum);
      block.value = value(block.sum, begin, i + 1);
    }
    starts[top] = static_cast<std::int32_t>(begin);
    blocks[top++] = block;
  }
  return top;
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
