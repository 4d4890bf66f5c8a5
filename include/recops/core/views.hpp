/// @file   recops/core/views.hpp
/// @brief  What every signature speaks: non-owning matrices, vectors, indices and jagged batches.
///
/// Views are a pointer and sizes, passed by value. They are made implicitly from whatever owns the numbers (recops::Matrix,
/// std::vector, std::span, row-major Eigen objects) and explicitly from pointers. An owner that would die before the view
/// (an rvalue) does not compile, nor does a layout that a view cannot express (column-major, strided inner dimension).
#pragma once
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <recops/core/config.hpp>
#include <type_traits>
#include <utility>

namespace recops {

/// Sizes, offsets and strides: signed 64-bit, so that no product of sizes overflows at 2^31.
using Index = std::ptrdiff_t;

/// The scalar of an operator: float or double.
template <class T>
concept Real = std::is_same_v<T, float> || std::is_same_v<T, double>;

template <class T>
class MatrixView;
template <class T>
class VectorView;

namespace traits {

template <class From, class To>  // same element type, const may be added
concept SameElement = std::is_convertible_v<From (*)[], To (*)[]>;

template <class C, class T>
concept HasData = requires(std::remove_reference_t<C>& c) {
  requires SameElement<std::remove_pointer_t<decltype(c.data())>, T>;
};

// Eigen without its headers: every dense expression names its layout, and only owners can be resized conservatively.
template <class C>
concept EigenDense = requires { std::remove_cvref_t<C>::InnerStrideAtCompileTime; };
template <class C>
concept EigenOwner = requires(std::remove_cvref_t<C>& c) { c.conservativeResize(1, 1); };

// An rvalue is taken only where it is itself a view: trivially copyable (std::span), but not an array (static size).
template <class C>
concept Outlives = std::is_lvalue_reference_v<C> || (EigenDense<C> && !EigenOwner<C>) ||
                   (!EigenDense<C> && std::is_trivially_copyable_v<C> && !requires { std::tuple_size<C>::value; });

template <class C, class T>
concept RowMajorMatrix = EigenDense<C> && Outlives<C> && HasData<C, T> && requires(std::remove_reference_t<C>& c) {
  requires bool(std::remove_cvref_t<C>::IsRowMajor);
  requires int(std::remove_cvref_t<C>::InnerStrideAtCompileTime) == 1;
  c.outerStride();
};

template <class C, class T>
concept ContiguousVector = Outlives<C> && HasData<C, T> && requires(std::remove_reference_t<C>& c) { Index(c.size()); } &&
                           (!EigenDense<C> || requires {
                             requires bool(std::remove_cvref_t<C>::IsVectorAtCompileTime);
                             requires int(std::remove_cvref_t<C>::InnerStrideAtCompileTime) == 1;
                           });

}  // namespace traits

/// A contiguous run of numbers that somebody else owns. Empty means "none" or "not wanted" where a page says so.
template <class T>
class VectorView {
 public:
  RECOPS_INLINE constexpr VectorView() = default;
  RECOPS_INLINE constexpr explicit VectorView(T* data, Index size) : data_(data), size_(size) {}
  template <class C>
    requires traits::ContiguousVector<C, T> && (!std::is_same_v<std::remove_cvref_t<C>, VectorView>)
  RECOPS_INLINE constexpr VectorView(C&& c) : data_(c.data()), size_(static_cast<Index>(c.size())) {}

  RECOPS_INLINE constexpr T* data() const { return data_; }
  RECOPS_INLINE constexpr Index size() const { return size_; }
  RECOPS_INLINE constexpr bool empty() const { return size_ == 0; }
  RECOPS_INLINE constexpr T* begin() const { return data_; }
  RECOPS_INLINE constexpr T* end() const { return data_ + size_; }
  RECOPS_INLINE constexpr T& operator[](Index i) const {
    assert(0 <= i && i < size_);
    return data_[i];
  }
  /// `count` elements from `first` on.
  RECOPS_INLINE constexpr VectorView segment(Index first, Index count) const {
    assert(0 <= first && 0 <= count && first + count <= size_);
    return VectorView(data_ + first, count);
  }

 private:
  T* data_ = nullptr;
  Index size_ = 0;
};

/// A row-major matrix that somebody else owns: unit column stride, row stride >= cols.
template <class T>
class MatrixView {
 public:
  RECOPS_INLINE constexpr MatrixView() = default;
  RECOPS_INLINE constexpr explicit MatrixView(T* data, Index rows, Index cols)
      : data_(data), rows_(rows), cols_(cols), stride_(cols) {}
  RECOPS_INLINE constexpr explicit MatrixView(T* data, Index rows, Index cols, Index stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  /// Adds const.
  template <class U>
    requires traits::SameElement<U, T> && (!std::is_same_v<U, T>)
  RECOPS_INLINE constexpr MatrixView(MatrixView<U> m)
      : data_(m.data()), rows_(m.rows()), cols_(m.cols()), stride_(m.stride()) {}
  /// Any row-major Eigen object with direct access.
  template <class C>
    requires traits::RowMajorMatrix<C, T>
  RECOPS_INLINE constexpr MatrixView(C&& c)
      : data_(c.data()),
        rows_(static_cast<Index>(c.rows())),
        cols_(static_cast<Index>(c.cols())),
        stride_(static_cast<Index>(c.outerStride())) {}

  RECOPS_INLINE constexpr T* data() const { return data_; }
  RECOPS_INLINE constexpr Index rows() const { return rows_; }
  RECOPS_INLINE constexpr Index cols() const { return cols_; }
  /// Elements from the start of one row to the start of the next.
  RECOPS_INLINE constexpr Index stride() const { return stride_; }
  RECOPS_INLINE constexpr bool empty() const { return rows_ == 0 || cols_ == 0; }
  /// Pointer to row `i`: `cols()` elements.
  RECOPS_INLINE constexpr T* row(Index i) const {
    assert(0 <= i && i < rows_);
    return data_ + i * stride_;
  }
  RECOPS_INLINE constexpr T& operator()(Index i, Index j) const {
    assert(0 <= i && i < rows_ && 0 <= j && j < cols_);
    return data_[i * stride_ + j];
  }
  /// `count` rows from `first` on.
  RECOPS_INLINE constexpr MatrixView middle_rows(Index first, Index count) const {
    assert(0 <= first && 0 <= count && first + count <= rows_);
    return MatrixView(data_ + first * stride_, count, cols_, stride_);
  }
  /// `count` columns from `first` on, e.g. one head.
  RECOPS_INLINE constexpr MatrixView middle_cols(Index first, Index count) const {
    assert(0 <= first && 0 <= count && first + count <= cols_);
    return MatrixView(data_ ? data_ + first : data_, rows_, count, stride_);  // [0, D] may have no memory at all
  }

 private:
  T* data_ = nullptr;
  Index rows_ = 0, cols_ = 0, stride_ = 0;
};

/// Offsets or indices, int32 or int64. The width is a tag, so that operators are not compiled once for each.
class IndexView {
 public:
  RECOPS_INLINE constexpr IndexView() = default;
  RECOPS_INLINE constexpr explicit IndexView(const std::int32_t* data, Index size) : data32_(data), size_(size) {}
  RECOPS_INLINE constexpr explicit IndexView(const std::int64_t* data, Index size) : data64_(data), size_(size) {}
  template <class C>
    requires traits::ContiguousVector<C, const std::int32_t> || traits::ContiguousVector<C, const std::int64_t>
  RECOPS_INLINE constexpr IndexView(C&& c) : IndexView(c.data(), static_cast<Index>(c.size())) {}

  RECOPS_INLINE constexpr Index size() const { return size_; }
  RECOPS_INLINE constexpr bool empty() const { return size_ == 0; }
  /// No memory behind it: fine only where `size()` is 0.
  RECOPS_INLINE constexpr bool is_null() const { return !data32_ && !data64_; }
  RECOPS_INLINE constexpr Index operator[](Index i) const {
    assert(0 <= i && i < size_);
    return data32_ ? Index{data32_[i]} : Index{data64_[i]};
  }
  /// `count` entries from `first` on.
  RECOPS_INLINE constexpr IndexView segment(Index first, Index count) const {
    assert(0 <= first && 0 <= count && first + count <= size_);
    return data32_ ? IndexView(data32_ + first, count) : IndexView(data64_ ? data64_ + first : nullptr, count);
  }

 private:
  const std::int32_t* data32_ = nullptr;  // one of the two; a null view has neither
  const std::int64_t* data64_ = nullptr;
  Index size_ = 0;
};

/// A batch of sequences of different lengths: `values [total, D]` and `offsets [B + 1]`; sequence b owns the rows
/// offsets[b] .. offsets[b + 1] (the convention of TorchRec and FBGEMM). Empty sequences are legal.
/// A plain matrix converts to a batch of one. `check_offsets` says whether the offsets make sense; members only assert.
template <class T>
class JaggedView {
 public:
  RECOPS_INLINE constexpr JaggedView() = default;
  RECOPS_INLINE constexpr JaggedView(MatrixView<T> values, IndexView offsets)
      : values_(values), offsets_(offsets), one_(false) {}
  template <class C>
    requires std::is_convertible_v<C&&, MatrixView<T>>
  RECOPS_INLINE constexpr JaggedView(C&& values) : values_(static_cast<C&&>(values)) {}
  template <class U>
    requires traits::SameElement<U, T> && (!std::is_same_v<U, T>)
  RECOPS_INLINE constexpr JaggedView(JaggedView<U> j)
      : values_(j.values()), offsets_(j.offsets()), one_(j.is_one_sequence()) {}

  /// All rows, `[total, D]`.
  RECOPS_INLINE constexpr MatrixView<T> values() const { return values_; }
  /// `[B + 1]`; empty where the batch was made of one plain matrix.
  RECOPS_INLINE constexpr IndexView offsets() const { return offsets_; }
  RECOPS_INLINE constexpr bool is_one_sequence() const { return one_; }
  /// Number of sequences B.
  RECOPS_INLINE constexpr Index size() const { return one_ ? 1 : offsets_.size() - 1; }
  RECOPS_INLINE constexpr Index cols() const { return values_.cols(); }
  /// Row at which sequence `b` begins.
  RECOPS_INLINE constexpr Index begin(Index b) const { return one_ ? 0 : offsets_[b]; }
  RECOPS_INLINE constexpr Index length(Index b) const { return one_ ? values_.rows() : offsets_[b + 1] - offsets_[b]; }
  /// Sequence `b` as a matrix `[L_b, D]`.
  RECOPS_INLINE constexpr MatrixView<T> operator[](Index b) const { return values_.middle_rows(begin(b), length(b)); }
  /// Length of the longest sequence, 0 for an empty batch. O(B).
  RECOPS_INLINE constexpr Index longest() const {
    Index most = 0;
    for (Index b = 0; b < size(); ++b) most = length(b) > most ? length(b) : most;
    return most;
  }
  /// The same offsets over other rows, e.g. the projections of `values()`.
  template <class U>
  RECOPS_INLINE constexpr JaggedView<U> with_values(MatrixView<U> values) const {
    return one_ ? JaggedView<U>(values) : JaggedView<U>(values, offsets_);
  }

 private:
  MatrixView<T> values_;
  IndexView offsets_;
  bool one_ = true;
};

}  // namespace recops
