/// @file   recops/diversity/panels.hpp
/// @brief  The features of one request packed for selection: once per request, shared by every selector that looks at them.
///
///     panel b, column d, lane l  =  features(b * panel_width + l, d),  optionally divided by the row's length
///
/// Shapes      features [N, D] → ceil(N / panel_width) panels [D, panel_width]; panel_width is 64 floats or 32 doubles.
/// Edge cases  N = 0, D = 0.  With `normalize` a row no longer than 1e-10 (double: 1e-12) becomes zeros.
/// NaN         A row with a number that is not finite, or whose sum of squares exceeds a quarter of the largest number, is
///             stored as zeros and marked: selectors never pick it, and it touches no other row.
/// Cost        One pass: reads and writes N · D numbers. No allocation once the owner (or the workspace) has grown.
#pragma once
#include <recops/diversity/normalize.hpp>
#include <recops/simd/panels.hpp>

namespace recops {

/// Packed features that somebody else owns: a `Panels`.
template <class T>
struct PanelsView {
  const T* data = nullptr;  ///< panels [D, panel_width], 64-byte aligned
  /// per row: squared length as stored (exactly 0 or 1 if `unit`); infinity marks a row never to be picked
  const T* squares = nullptr;
  Index rows = 0;     ///< N
  Index cols = 0;     ///< D
  bool unit = false;  ///< rows were divided by their lengths
};

inline namespace RECOPS_ABI {

namespace detail {

template <class T>
inline constexpr T largest_square = std::numeric_limits<T>::max() / 4;

template <class T>
Index panel_count(Index rows) {
  return (rows + simd::panel_width<T> - 1) / simd::panel_width<T>;
}

/// `view` must hold `rows` rows, at aligned memory.
template <class T>
void check_panels(const char* operation, const char* argument, PanelsView<T> view, Index rows) {
  check_option(operation, argument, view.rows == rows, "as many rows as there are items", static_cast<double>(view.rows));
  check_option(operation, argument, view.cols >= 0, "columns >= 0", static_cast<double>(view.cols));
  const bool missing = view.rows > 0 && (!view.squares || (view.cols > 0 && !view.data));
  const bool apart = (reinterpret_cast<std::uintptr_t>(view.data) | reinterpret_cast<std::uintptr_t>(view.squares)) % 64 != 0;
  if (missing || apart) [[unlikely]]
    fail(operation, argument, "data and squares aligned to 64 bytes", missing ? "a null pointer" : "an unaligned one");
}

/// Squares and, where wanted, unit length of one packed panel; zeros and infinity for rows that are not finite.
template <class T, class A>
void finish_panel(T* panel, Index cols, bool normalize, T* squares) {
  constexpr Index P = simd::panel_width<T>;
  alignas(64) T factor[P];
  bool scale = false;
  for (Index l = 0; l < P; ++l) {
    const T square = squares[l];
    if (!(square <= largest_square<T>)) {
      factor[l] = T(0);
      squares[l] = std::numeric_limits<T>::infinity();
    } else if (normalize) {
      factor[l] = square <= tiny_square<T> ? T(0) : T(1) / std::sqrt(square);
      squares[l] = square <= tiny_square<T> ? T(0) : T(1);
    } else {
      factor[l] = T(1);
    }
    scale |= factor[l] != T(1);
  }
  if (scale) simd::scale_panel<T, A>(panel, cols, factor);
}

/// Packs panel `b` of the rows order[0 .. rows) of `features` (order null: as they come).
template <class T, class A>
void pack_one_panel(MatrixView<const T> features, const std::int32_t* order, Index rows, Index b, bool normalize, T* panel,
                    T* squares) {
  constexpr Index P = simd::panel_width<T>;
  simd::pack_panel<T, A>(
      [&](Index l) RECOPS_LAMBDA_INLINE -> const T* {
        const Index i = b * P + l;
        return i < rows && features.cols() > 0 ? features.data() + (order ? Index{order[i]} : i) * features.stride() : nullptr;
      },
      features.cols(), panel, squares, rows* features.cols() * Index{sizeof(T)} > Index{1} << 19);
  finish_panel<T, A>(panel, features.cols(), normalize, squares);
}

/// Panels of the rows order[0 .. rows) in scratch memory.
template <class T, class A>
PanelsView<T> pack_panels_in(MatrixView<const T> features, const std::int32_t* order, Index rows, bool normalize,
                             Workspace& scratch) {
  constexpr Index P = simd::panel_width<T>;
  const Index panels = panel_count<T>(rows), cols = features.cols();
  T* const data = scratch.take<T>(panels * cols * P);
  T* const squares = scratch.take<T>(panels * P);
  for (Index b = 0; b < panels; ++b)
    pack_one_panel<T, A>(features, order, rows, b, normalize, data + b * cols * P, squares + b * P);
  return {data, squares, rows, cols, normalize};
}

}  // namespace detail

/// Owner of packed features; keeps its memory from request to request.
template <Real T>
class Panels {
 public:
  Panels() = default;
  /// Packs `features` [N, D]; with `normalize` every row is divided by its length (cosine similarity).
  /// Throws `Error` for a view that is not sound; the old contents stay.
  void pack(MatrixView<const T> features, bool normalize) {
    check_shape("Panels::pack", "features", features, any_size, any_size);
    constexpr Index P = simd::panel_width<T>;
    const Index panels = detail::panel_count<T>(features.rows()), cols = features.cols();
    data_.resize(panels * cols * P);
    squares_.resize(panels * P);
    for (Index b = 0; b < panels; ++b) {
      detail::pack_one_panel<T, simd::DefaultArch>(features, nullptr, features.rows(), b, normalize, data_.data() + b * cols * P,
                                                   squares_.data() + b * P);
    }
    rows_ = features.rows();
    cols_ = cols;
    unit_ = normalize;
  }
  Index rows() const { return rows_; }  ///< N
  Index cols() const { return cols_; }  ///< D
  /// Good until the next `pack`.
  PanelsView<T> view() const& { return {data_.data(), squares_.data(), rows_, cols_, unit_}; }
  PanelsView<T> view() && = delete;  // would outlive its memory
  operator PanelsView<T>() const& { return view(); }
  operator PanelsView<T>() && = delete;  // would outlive its memory

 private:
  Vector<T> data_, squares_;
  detail::MovedSize rows_, cols_;
  bool unit_ = false;
};

}  // namespace RECOPS_ABI
}  // namespace recops
