/// @file   recops/simd/chained_sum.hpp
/// @brief  The sum of very many rows of n numbers: in chains of 512 terms, so that a million floats keep their digits.
///
///     ChainedSum<T> sum(total, n, ws);
///     for (...) simd::axpy<T>(a, x, sum.next(), n);      adds to total [n]
///     sum.finish();
///
/// Terms added one after the other to a sum of m of them lose log2(m) bits; here the sum of a chain does, and the sum of the chains.
#pragma once
#include <algorithm>
#include <recops/core/workspace.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// A sum that is not yet in its total; `finish` adds the last chain. NaN and infinity stay with their column. Takes room for n numbers.
template <class T>
class ChainedSum {
 public:
  /// Terms in a chain.
  static constexpr Index chain = 512;
  /// Adds to `total [n]`, null only if n is 0; the room in `ws` is the caller's to give back.
  ChainedSum(T* total, Index n, Workspace& ws) : total_(total), part_(ws.take<T>(n)), n_(n) { std::fill_n(part_, n, T(0)); }
  /// Where the next term is added.
  T* next() {
    if (count_ == chain) finish();
    ++count_;
    return part_;
  }
  /// Adds what is not yet in the total. Without it the last 1 ... 512 terms are lost; called again it adds nothing.
  void finish() {
    add<T>(part_, total_, n_);
    std::fill_n(part_, n_, T(0));
    count_ = 0;
  }

 private:
  T *total_, *part_;
  Index n_, count_ = 0;
};

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
