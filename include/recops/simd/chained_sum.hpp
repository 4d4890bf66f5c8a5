/// @file   recops/simd/chained_sum.hpp
/// @brief  The sum of very many rows of n numbers: in chains of 512 terms, these in double, so that ten million floats keep their digits.
///
///     ChainedSum<T> sum(total, n, ws);
///     for (...) simd::axpy<T>(a, x, sum.next(), n);      adds to total [n]
///     sum.finish();
///
/// Terms added one after the other to a sum of m of them may lose log2(m) bits; here no sum has more than 512.
#pragma once
#include <algorithm>
#include <recops/core/workspace.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// A sum that is not yet in its total; `finish` adds it. NaN and infinity stay with their column. Takes room for n numbers and doubles.
template <class T>
class ChainedSum {
 public:
  /// Terms in a chain.
  static constexpr Index chain = 512;
  /// Adds to `total [n]`, null only if n is 0; the room in `ws` is the caller's to give back.
  ChainedSum(T* total, Index n, Workspace& ws) : total_(total), part_(ws.take<T>(n)), sum_(ws.take<double>(n)), n_(n) {
    std::fill_n(part_, n, T(0));
    std::fill_n(sum_, n, 0.0);
  }
  /// Where the next term is added.
  T* next() {
    if (count_ == chain) end_chain();
    ++count_;
    return part_;
  }
  /// Adds what is not yet in the total. Without it nothing is; called again it adds nothing.
  void finish() {
    end_chain();
    for (Index i = 0; i < n_; ++i) total_[i] += static_cast<T>(sum_[i]);
    std::fill_n(sum_, n_, 0.0);
  }

 private:
  void end_chain() {
    for (Index i = 0; i < n_; ++i) sum_[i] += static_cast<double>(part_[i]);
    std::fill_n(part_, n_, T(0));
    count_ = 0;
  }
  T *total_, *part_;
  double* sum_;
  Index n_, count_ = 0;
};

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
