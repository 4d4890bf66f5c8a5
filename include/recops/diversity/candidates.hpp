/// @file   recops/diversity/candidates.hpp
/// @brief  The candidates of one request as selectors see them: panels that were packed before, or features that are packed panel by
///         panel when first looked at.
#pragma once
#include <recops/diversity/panels.hpp>
#include <recops/diversity/selection.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

template <class T>
inline constexpr T never = -std::numeric_limits<T>::infinity();

/// Products of a compact panel with one or two vectors, scaled, to `out` [count, panel_width].
template <class S, class A>
[[gnu::noinline]] void compact_products(const std::uint32_t* words, Index cols, const float* queries, Index stride, Index count,
                                        const float* scales, float* out) {
  simd::panel_products<float, A, S>(
      words, cols, queries, stride, count, [=](Index q, Index lane, simd::Batch<float, A> c) RECOPS_LAMBDA_INLINE {
        (c * simd::Batch<float, A>::load_aligned(scales + lane)).store_aligned(out + q * simd::panel_width<float> + lane);
      });
}

/// A feature row as the similarity sees it: divided by its length where `unit`. False if it is not finite.
template <class T>
bool selection_row(const T* row, Index cols, bool unit, T* out) {
  const T square = simd::dot(row, row, cols);
  if (!(square <= largest_square<T>)) return false;
  const T factor = !unit ? T(1) : square <= tiny_square<T> ? T(0) : T(1) / std::sqrt(square);
  for (Index d = 0; d < cols; ++d) out[d] = factor * row[d];
  return true;
}

/// Rows in panels, and the item in each row.
template <class T, class A>
class Candidates {
 public:
  using B = simd::Batch<T, A>;
  static constexpr Index W = simd::lanes<T, A>, P = simd::panel_width<T>;

  /// Of panels where there are any, else of `features`. With `sorted` features are packed roughly from the highest `value` [N] down;
  /// items of value -infinity are out and may be missing.
  Candidates(MatrixView<const T> features, PanelsView<T> given, Index items, bool unit, bool sorted, const T* value,
             Workspace& scratch)
      : features_(features), view_(given), rows_(items) {
    if (given.rows == 0 && given.cols == 0) {
      view_ = {};
      view_.cols = features.cols();
      view_.unit = unit;
      if (sorted && items > P) {
        auto* const order = scratch.take<std::int32_t>(items);
        if (const Index kept = selection_order<T, A>(value, items, order, scratch); kept >= 0) {
          view_.order = order;
          rows_ = kept;
        }
      }
      panels_ = panel_count<T>(rows_);
      own_ = scratch.take<T>(panels_ * cols() * P);
      own_squares_ = scratch.take<T>(panels_ * P);
      factors_ = scratch.take<T>(panels_ * P);
      view_.data = own_;
      view_.squares = own_squares_;
    }
    panels_ = panel_count<T>(rows_);
    ready_ = scratch.take<std::uint8_t>(panels_);
    std::fill(ready_, ready_ + panels_, std::uint8_t{0});
  }
  Index rows() const { return rows_; }
  Index cols() const { return view_.cols; }
  Index panels() const { return panels_; }
  Index size() const { return panels_ * P; }  // rows, padded
  bool unit() const { return view_.unit; }
  Index item(Index row) const { return view_.order ? view_.order[row] : row; }
  /// The row of an item; `size()` if it has none.
  Index row_of(Index item) const {
    if (!view_.order) return item < rows_ ? item : size();
    const auto* const at = std::find(view_.order, view_.order + rows_, static_cast<std::int32_t>(item));
    return at == view_.order + rows_ ? size() : at - view_.order;
  }
  /// Makes panel p ready; true the first time: then rows with an infinite square are to be taken out.
  bool prepare(Index p) {
    if (ready_[p] != 0) return false;
    ready_[p] = 1;
    if (own_)
      pack_one_panel<T, A>(features_, view_.order, rows_, p, view_.unit, own_ + p * cols() * P, own_squares_ + p * P,
                           factors_ + p * P);
    return true;
  }
  const T* squares(Index p) const { return view_.squares + p * P; }
  bool marked(Index row) const { return !(view_.squares[row] <= std::numeric_limits<T>::max()); }
  bool any_marked(Index p) const {
    bool any = false;
    for (Index i = 0; i < rows_in(p); ++i) any |= marked(p * P + i);
    return any;
  }
  /// How many rows of panel p there are.
  Index rows_in(Index p) const { return std::min(P, rows_ - p * P); }

  /// Products of panel p with `count` vectors, `stride` apart: use(query, lane in the panel, products); what is behind the last row
  /// may be left out with `partial`.
  template <class F>
  RECOPS_INLINE void products(Index p, const T* queries, Index stride, Index count, F&& use, bool partial = false) const {
    if constexpr (std::is_same_v<T, float>) {
      if (view_.storage != PanelStorage::full) {
        alignas(64) float out[2 * P];
        const bool half = view_.storage == PanelStorage::bfloat16;
        for (Index q = 0; q < count; q += 2) {
          const Index some = std::min(Index{2}, count - q);
          const auto* const words = view_.words + p * cols() * (half ? P / 2 : P / 4);
          (half ? compact_products<BFloat16, A> : compact_products<std::int8_t, A>)(words, cols(), queries + q * stride, stride,
                                                                                    some, view_.scales + p * P, out);
          for (Index s = 0; s < some; ++s) {
            for (Index lane = 0; lane < P; lane += W) use(q + s, lane, B::load_aligned(out + s * P + lane));
          }
        }
        return;
      }
    }
    simd::panel_products<T, A>(view_.data + p * cols() * P, cols(), queries, stride, count, use, partial ? rows_in(p) : P);
  }
  /// Row `i` out of its panel, which must be ready.
  void row(Index i, T* out) const {
    const Index p = i / P, l = i % P, cols = view_.cols;
    if (cols == 0) return;  // no panel to point into
    if (own_) {             // the same numbers in one piece
      const T* const from = features_.row(item(i));
      const T factor = factors_[i];
      for (Index d = 0; d < cols; ++d) out[d] = factor * from[d];
      return;
    }
    if (view_.storage == PanelStorage::full) {
      const T* const panel = view_.data + p * cols * P + l;
      for (Index d = 0; d < cols; ++d) out[d] = panel[d * P];
      return;
    }
    const Index parts = view_.storage == PanelStorage::bfloat16 ? 2 : 4, words = P / parts;
    const auto* const panel = view_.words + p * cols * words + l % words;
    const Index part = l / words;
    const T scale = view_.scales[i];
    for (Index d = 0; d < cols; ++d) {
      const std::uint32_t w = panel[d * words];
      const float v = parts == 2 ? std::bit_cast<float>(part == 0 ? w << 16 : w & 0xFFFF0000u)
                                 : static_cast<float>(static_cast<std::int8_t>(w >> (8 * part)));
      out[d] = scale * static_cast<T>(v);
    }
  }

 private:
  MatrixView<const T> features_;
  PanelsView<T> view_;
  Index rows_, panels_ = 0;
  T *own_ = nullptr, *own_squares_ = nullptr, *factors_ = nullptr;
  std::uint8_t* ready_ = nullptr;
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
