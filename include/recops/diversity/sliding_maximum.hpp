/// @file   recops/diversity/sliding_maximum.hpp
/// @brief  The maximum of the last few columns of N numbers, in about three passes over N a column, however many are kept.
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Maximum over the last `capacity` columns, each N numbers: two stacks. The front holds suffix maxima (so dropping the oldest
/// column is dropping a pointer), the back one running maximum; when the front is empty the back is turned over.
template <class T, class A>
struct SlidingMaximum {
  using B = simd::Batch<T, A>;
  Index size, capacity;
  T *columns, *back;
  Index pushed = 0, front = 0, behind = 0;

  SlidingMaximum(Index n, Index last, Workspace& scratch)
      : size(n), capacity(last), columns(scratch.take<T>(n * last)), back(scratch.take<T>(n)) {}
  T* column(Index i) const { return columns + i % capacity * size; }
  /// Drops the oldest column if there are `capacity`; returns where to write the new one.
  T* make_room() {
    if (front + behind == capacity) {
      if (front == 0) {
        for (Index i = pushed - 2; i >= pushed - behind; --i) {
          for (Index n = 0; n < size; n += simd::lanes<T, A>) {
            xsimd::max(B::load_aligned(column(i) + n), B::load_aligned(column(i + 1) + n)).store_aligned(column(i) + n);
          }
        }
        front = std::exchange(behind, 0);
      }
      --front;
    }
    return column(pushed);
  }
  /// The column is written; `out` = maximum of all.
  void push(T* out) {
    const T* const fresh = column(pushed);
    ++pushed;
    ++behind;
    const T* const oldest = front > 0 ? column(pushed - behind - front) : nullptr;
    for (Index n = 0; n < size; n += simd::lanes<T, A>) {
      B m = B::load_aligned(fresh + n);
      if (behind > 1) m = xsimd::max(m, B::load_aligned(back + n));
      m.store_aligned(back + n);
      if (oldest) m = xsimd::max(m, B::load_aligned(oldest + n));
      m.store_aligned(out + n);
    }
  }
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
