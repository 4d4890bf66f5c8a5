/// @file   tests/support/allocations.hpp
/// @brief  Counts what goes through operator new, to show that a warm call allocates nothing.
///
/// Every test program is linked with a replacement of all global allocation functions (allocations.cpp); a counter reads how
/// often they were called, by any thread, since it was made. Direct calls of malloc are not seen.
#pragma once
#include <cstddef>

namespace recops_test {

/// Number of calls of operator new (any form) since the program started.
std::size_t allocations_so_far() noexcept;

class AllocationCounter {
 public:
  AllocationCounter() noexcept : start_(allocations_so_far()) {}
  /// Allocations since this counter was made or reset.
  std::size_t count() const noexcept { return allocations_so_far() - start_; }
  void reset() noexcept { start_ = allocations_so_far(); }

 private:
  std::size_t start_;
};

/// Allocations that `f()` makes.
template <class F>
std::size_t count_allocations(F&& f) {
  const AllocationCounter counter;
  f();
  return counter.count();
}

}  // namespace recops_test
