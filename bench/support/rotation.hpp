/// @file   bench/support/rotation.hpp
/// @brief  Copies of a case's data that calls visit in turn: so many that caches hold none of them when its turn comes again.
///
/// Data of more than four times L2 are measured in DRAM, over at least 512 MB of copies; smaller data are measured warm.
/// `copies_for` decides. `copies_over` is for data that must be fresh for another reason: branches that are learnt by heart, or a
/// stated size.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <recops/core/views.hpp>
#include <type_traits>
#include <utility>

namespace recops_bench {

using recops::Index;

inline constexpr double dram_rotation_bytes = 512e6;

/// Bytes of second-level cache of a core; 1 MB where the system does not say.
inline double l2_bytes() {
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return size > 0 ? static_cast<double>(size) : 1048576.0;
}
/// Copies of `bytes` each that amount to `total`.
inline Index copies_over(double bytes, double total) {
  return bytes > 0 && total > bytes ? static_cast<Index>((total + bytes - 1) / bytes) : 1;
}
/// Copies that a case of so many bytes needs: 1 when it is measured warm.
inline Index copies_for(double bytes) { return bytes > 4 * l2_bytes() ? copies_over(bytes, dram_rotation_bytes) : 1; }

/// `copies` arrays of `size` elements in huge pages, zero at first; each begins on a cache line of its own.
template <class T>
class Rotation {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Rotation() = default;
  explicit Rotation(Index size, Index copies = 1) : size_(size), copies_(copies) {
    constexpr std::size_t line = 64, page = std::size_t{1} << 21;
    stride_ = (static_cast<std::size_t>(size) * sizeof(T) + line - 1) / line * line;
    bytes_ = (stride_ * static_cast<std::size_t>(copies) + page) / page * page;
    memory_ = static_cast<char*>(std::aligned_alloc(page, bytes_));
    if (memory_ == nullptr) throw std::bad_alloc();
    madvise(memory_, bytes_, MADV_HUGEPAGE);
    std::memset(memory_, 0, bytes_);
  }
  Rotation(Rotation&& other) noexcept { *this = std::move(other); }
  Rotation& operator=(Rotation&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    std::swap(copies_, other.copies_);
    std::swap(stride_, other.stride_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Rotation() { std::free(memory_); }

  Index size() const { return size_; }
  Index copies() const { return copies_; }
  T* operator[](Index copy) { return reinterpret_cast<T*>(memory_ + static_cast<std::size_t>(copy) * stride_); }
  const T* operator[](Index copy) const { return reinterpret_cast<const T*>(memory_ + static_cast<std::size_t>(copy) * stride_); }
  /// Makes every copy equal to the first.
  void spread() {
    for (Index c = 1; c < copies_; ++c) std::memcpy((*this)[c], (*this)[0], static_cast<std::size_t>(size_) * sizeof(T));
  }

 private:
  char* memory_ = nullptr;
  Index size_ = 0, copies_ = 0;
  std::size_t stride_ = 0, bytes_ = 0;
};

}  // namespace recops_bench
