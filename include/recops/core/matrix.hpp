/// @file   recops/core/matrix.hpp
/// @brief  Owning matrix and vector: 64-byte aligned, row-major, and they keep their capacity when resized, so that a service
///         or a training loop over jagged batches stops allocating once it has seen the largest.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <new>
#include <recops/core/error.hpp>
#include <recops/core/views.hpp>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// 64-byte aligned, and default-initialising: resize does not write what will be overwritten. What fills a huge page of 2 MB asks
/// for huge ones: weights and tables beyond the caches are read up to 1.5 times faster for it.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(std::size_t n) {
    void* const p = ::operator new(n * sizeof(T), alignment(n));
#if defined(__linux__)
    if (n * sizeof(T) >= huge_page) madvise(p, n * sizeof(T) / huge_page * huge_page, MADV_HUGEPAGE);  // advice: it may fail
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t n) { ::operator delete(p, alignment(n)); }
  static constexpr std::size_t huge_page = std::size_t{1} << 21;
  static constexpr std::align_val_t alignment(std::size_t n) {
    return std::align_val_t{n * sizeof(T) < huge_page ? 64 : huge_page};
  }
  template <class U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <class U, class... Args>
  void construct(U* p, Args&&... args) {
    ::new (static_cast<void*>(p)) U(static_cast<Args&&>(args)...);
  }
  template <class U>
  bool operator==(const AlignedAllocator<U>&) const {
    return true;
  }
};

/// A size that is 0 in what was moved from, so that owners follow the rule of zero and a moved-from one is empty.
struct MovedSize {
  Index value = 0;
  MovedSize() = default;
  MovedSize(Index v) : value(v) {}
  MovedSize(const MovedSize&) = default;
  MovedSize& operator=(const MovedSize&) = default;
  MovedSize(MovedSize&& other) noexcept : value(std::exchange(other.value, 0)) {}
  MovedSize& operator=(MovedSize&& other) noexcept {
    value = other.value;
    other.value = 0;  // also where a matrix is moved to itself, which empties its memory
    return *this;
  }
  operator Index() const { return value; }
};

}  // namespace detail

/// Owning vector `[size]`. Converts to `VectorView`. Contents are unspecified until written (`fill`).
template <class T>
class Vector {
 public:
  using value_type = T;
  Vector() = default;
  explicit Vector(Index size) { resize(size); }
  Vector(Index size, T value) {
    resize(size);
    fill(value);
  }
  /// The numbers themselves: `Vector<float>{1, 2, 3}`.
  Vector(std::initializer_list<T> values) : values_(values) {}

  Index size() const { return static_cast<Index>(values_.size()); }
  bool empty() const { return values_.empty(); }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size(); }
  T& operator[](Index i) {
    assert(0 <= i && i < size());
    return values_[static_cast<std::size_t>(i)];
  }
  const T& operator[](Index i) const {
    assert(0 <= i && i < size());
    return values_[static_cast<std::size_t>(i)];
  }
  /// The first elements stay, new ones are unspecified; capacity never shrinks. Throws `Error` if negative.
  void resize(Index size) { values_.resize(static_cast<std::size_t>(checked_size("Vector::resize", "size", size))); }
  void fill(T value) { std::fill(values_.begin(), values_.end(), value); }
  void push_back(T value) { values_.push_back(value); }
  void clear() { values_.clear(); }

 private:
  std::vector<T, detail::AlignedAllocator<T>> values_;
};

/// Owning row-major matrix `[rows, cols]`, rows contiguous. Converts to `MatrixView`. Contents are unspecified until written.
template <class T>
class Matrix {
 public:
  using value_type = T;
  Matrix() = default;
  Matrix(Index rows, Index cols) { resize(rows, cols); }
  Matrix(Index rows, Index cols, T value) {
    resize(rows, cols);
    fill(value);
  }
  /// Row by row: `Matrix<float>{{1, 2}, {3, 4}}`. Throws `Error` if rows differ in length.
  Matrix(std::initializer_list<std::initializer_list<T>> rows) {
    resize(static_cast<Index>(rows.size()), rows.size() == 0 ? 0 : static_cast<Index>(rows.begin()->size()));
    T* out = data();
    for (const auto& row : rows) {
      check_option("Matrix", "row", static_cast<Index>(row.size()) == cols(), "rows of equal length",
                   static_cast<double>(row.size()));
      for (const T& value : row) *out++ = value;
    }
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  bool empty() const { return values_.empty(); }
  T* data() { return values_.data(); }
  const T* data() const { return values_.data(); }
  /// Pointer to row `i`: `cols()` elements.
  T* row(Index i) {
    assert(0 <= i && i < rows_);
    return data() + i * cols_;
  }
  const T* row(Index i) const {
    assert(0 <= i && i < rows_);
    return data() + i * cols_;
  }
  T& operator()(Index i, Index j) {
    assert(0 <= i && i < rows_ && 0 <= j && j < cols_);
    return data()[i * cols_ + j];
  }
  const T& operator()(Index i, Index j) const {
    assert(0 <= i && i < rows_ && 0 <= j && j < cols_);
    return data()[i * cols_ + j];
  }
  /// Contents become unspecified (if `cols` stays, the first rows stay); capacity never shrinks. Throws `Error` if negative.
  void resize(Index rows, Index cols) {
    check_option("Matrix::resize", "rows", rows >= 0, "rows >= 0", static_cast<double>(rows));
    check_option("Matrix::resize", "cols", cols >= 0, "cols >= 0", static_cast<double>(cols));
    check_option("Matrix::resize", "rows", cols == 0 || rows <= PTRDIFF_MAX / static_cast<Index>(sizeof(T)) / cols,
                 "rows * cols that memory can hold", static_cast<double>(rows));
    values_.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols));
    rows_ = rows;
    cols_ = cols;
  }
  void fill(T value) { std::fill(values_.begin(), values_.end(), value); }

  MatrixView<T> view() & { return MatrixView<T>(data(), rows_, cols_); }
  MatrixView<const T> view() const& { return MatrixView<const T>(data(), rows_, cols_); }
  operator MatrixView<T>() & { return view(); }
  operator MatrixView<const T>() const& { return view(); }
  operator MatrixView<T>() && = delete;             // the view would outlive the matrix
  operator MatrixView<const T>() const&& = delete;  // the view would outlive the matrix

 private:
  std::vector<T, detail::AlignedAllocator<T>> values_;
  detail::MovedSize rows_, cols_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
