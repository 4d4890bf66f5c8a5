/// @file   recops/diversity/panels.hpp
/// @brief  The features of one request packed for selection: once per request, shared by every selector that looks at them.
///
///     panel b, column d, lane l  =  row(b * panel_width + l, d),  optionally divided by the row's length
///
/// Shapes      features [N, D] → ceil(N / panel_width) panels [D, panel_width]; panel_width is 64 floats or 32 doubles.
/// Order       Row i is item i. With a `priority` the rows are ordered roughly from the highest down: lazy selectors then leave most
///             panels alone. Picks are the same.
/// Storage     As T; or, for float, as BFloat16 or int8 codes with a scale per row. What was rounded is the item from then on: unit
///             rows are those of the rounded features, so equal rows are exactly parallel.
/// Edge cases  N = 0, D = 0.  With `normalize` a row no longer than 1e-10 (double: 1e-12) becomes zeros.
/// NaN         A row with a number that is not finite, or whose sum of squares exceeds a quarter of the largest number, is
///             stored as zeros and marked: selectors never pick it, and it touches no other row.
/// Cost        One pass: reads and writes N · D numbers. No allocation once the owner (or the workspace) has grown.
#pragma once
#include <recops/diversity/normalize.hpp>
#include <recops/simd/panels.hpp>
#include <recops/simd/quantize.hpp>

namespace recops {

/// How panels hold their numbers.
enum class PanelStorage : std::uint8_t {
  full,      ///< as T
  bfloat16,  ///< 8 bits of precision: half the bytes of float
  int8,      ///< codes in [-127, 127] and a step per row: a quarter
};

/// Packed features that somebody else owns: a `Panels`.
template <class T>
struct PanelsView {
  const T* data = nullptr;  ///< panels [D, panel_width], 64-byte aligned; null unless the storage is `full`
  /// per row: squared length as stored (exactly 0 or 1 if `unit`); infinity marks a row never to be picked
  const T* squares = nullptr;
  Index rows = 0;     ///< N
  Index cols = 0;     ///< D
  bool unit = false;  ///< rows were divided by their lengths
  PanelStorage storage = PanelStorage::full;
  const std::uint32_t* words = nullptr;  ///< panels of simd/panels.hpp's words, where the storage is not `full`
  const T* scales = nullptr;             ///< per row, where the storage is not `full`: the row is this times what is stored
  const std::int32_t* order = nullptr;   ///< the item in each row; null: row i is item i
};

struct PanelOptions {
  bool normalize = false;  ///< divide rows by their lengths: cosine similarity
  PanelStorage storage = PanelStorage::full;
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
  const bool full = view.storage == PanelStorage::full;
  const void* const numbers = full ? static_cast<const void*>(view.data) : view.words;
  const bool missing = view.rows > 0 && (!view.squares || (view.cols > 0 && !numbers) || (!full && !view.scales));
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  const bool apart = (address(numbers) | address(view.squares) | address(full ? nullptr : view.scales)) % 64 != 0;
  if (missing || apart) [[unlikely]]
    fail(operation, argument, "data and squares aligned to 64 bytes", missing ? "a null pointer" : "an unaligned one");
  check_option(operation, argument, full || std::is_same_v<T, float>, "the storage `full` for doubles",
               static_cast<double>(view.storage));
  for (Index i = 0; view.order && i < rows; ++i) {
    if (view.order[i] < 0 || view.order[i] >= rows) [[unlikely]]
      fail_at(operation, argument, "an order of items below ", rows, i, view.order[i]);
  }
}

/// Squares and, where wanted, unit length of one packed panel; zeros and infinity for rows that are not finite. `factor` receives
/// what the rows were multiplied by.
template <class T, class A>
void finish_panel(T* panel, Index cols, bool normalize, T* squares, T* factor) {
  using B = simd::Batch<T, A>;
  constexpr Index P = simd::panel_width<T>;
  const B zero(T(0)), one(T(1));
  bool scale = normalize;
  for (Index v = 0; v < P; v += simd::lanes<T, A>) {
    const B square = B::load_aligned(squares + v);
    const auto sound = square <= B(largest_square<T>), tiny = square <= B(tiny_square<T>);
    B length = one, kept = square;
    if (normalize) {
      length = xsimd::select(tiny, zero, one / xsimd::sqrt(square));
      kept = xsimd::select(tiny, zero, one);
    }
    xsimd::select(sound, length, zero).store_aligned(factor + v);
    xsimd::select(sound, kept, B(std::numeric_limits<T>::infinity())).store_aligned(squares + v);
    scale |= !xsimd::all(sound);
  }
  if (scale) simd::scale_panel<T, A>(panel, cols, factor);
}

/// Whether rows are in no near cache: then they are fetched ahead.
template <class S>
bool far_rows(MatrixView<const S> features, Index rows) {
  return rows * features.cols() * Index{sizeof(S)} > Index{1} << 19;
}

/// Packs panel `b` of the rows order[0 .. rows) of `features` (order null: as they come).
template <class T, class A, class S>
void pack_one_panel(MatrixView<const S> features, const std::int32_t* order, Index rows, Index b, bool normalize, T* panel,
                    T* squares, T* factor) {
  constexpr Index P = simd::panel_width<T>;
  simd::pack_panel<T, A>(
      [&](Index l) RECOPS_LAMBDA_INLINE -> const S* {
        const Index i = b * P + l;
        return i < rows && features.cols() > 0 ? features.data() + (order ? Index{order[i]} : i) * features.stride() : nullptr;
      },
      features.cols(), panel, squares, far_rows(features, rows));
  finish_panel<T, A>(panel, features.cols(), normalize, squares, factor);
}

/// Squares and scales of a compact panel. `squares` are those of the rows where they are marked; `stored` of what is stored.
template <class A>
void finish_compact_panel(bool normalize, const float* stored, float* squares, float* scales) {
  using B = simd::Batch<float, A>;
  const B zero(0.0f), one(1.0f), most(std::numeric_limits<float>::max());
  for (Index v = 0; v < simd::panel_width<float>; v += simd::lanes<float, A>) {
    const B was = B::load_aligned(squares + v), step = B::load_aligned(scales + v), now = B::load_aligned(stored + v);
    B square = step * step * now, scale = step;
    if (normalize) {
      const auto tiny = (was <= B(tiny_square<float>)) | (now <= zero);
      square = xsimd::select(tiny, zero, one);
      scale = xsimd::select(tiny, zero, one / xsimd::sqrt(now));
    }
    const auto sound = was <= most;  // else marked, and zeros
    xsimd::select(sound, square, was).store_aligned(squares + v);
    xsimd::select(sound, scale, step).store_aligned(scales + v);
  }
}

/// Packs panel `b` of rows that are BFloat16 as BFloat16.
template <class A>
void pack_half_panel(MatrixView<const BFloat16> features, const std::int32_t* order, Index rows, Index b, bool normalize,
                     std::uint32_t* words, float* squares, float* scales) {
  constexpr Index P = simd::panel_width<float>, read = P + simd::lanes<float, A>;
  alignas(64) float stored[P];
  const BFloat16* at[read];
  for (Index l = 0; l < read; ++l) {
    const Index i = std::min(b * P + l, rows - 1);
    at[l] = features.data() + (order ? Index{order[i]} : i) * features.stride();
  }
  simd::pack_words<A>(at, std::min(P, rows - b * P), features.cols(), words, stored, far_rows(features, rows));
  for (Index l = 0; l < P; ++l) {
    scales[l] = 1;
    squares[l] = stored[l];
    if (stored[l] <= largest_square<float>) continue;
    simd::clear_row(words, features.cols(), l, stored);
    squares[l] = std::numeric_limits<float>::infinity();
  }
  finish_compact_panel<A>(normalize, stored, squares, scales);
}

/// Rounds a packed panel that is not normalised yet to `storage`; squares and scales become those of what is stored.
template <class A>
void store_panel(const float* panel, Index cols, bool normalize, PanelStorage storage, std::uint32_t* words, float* squares,
                 float* scales) {
  constexpr Index P = simd::panel_width<float>;
  alignas(64) float stored[P];
  if (storage == PanelStorage::bfloat16) {
    simd::encode_panel<A>(panel, cols, static_cast<BFloat16*>(nullptr), words, stored);
    std::fill(scales, scales + P, 1.0f);
  } else {
    simd::encode_panel<A>(panel, cols, static_cast<std::int8_t*>(nullptr), words, scales, stored);
  }
  finish_compact_panel<A>(normalize, stored, squares, scales);
}

/// Indices of the items whose value is not -infinity, roughly from the highest down (up to 1024 classes between the extremes),
/// each class in ascending order. Returns their number, or -1 if they already come like that. `n` is at least a vector. O(N).
template <class T, class A>
Index selection_order(const T* value, Index n, std::int32_t* order, Workspace& scratch) {
  using B = simd::Batch<T, A>;
  constexpr Index W = simd::lanes<T, A>;
  constexpr T out = -std::numeric_limits<T>::infinity();
  const Index classes = n < 4096 ? n / 4 + 1 : Index{1024};
  assert(n >= W);
  const auto mark = scratch.mark();
  Index falling = 1;
  while (falling < n && value[falling] <= value[falling - 1]) ++falling;
  if (falling == n && value[n - 1] != out) return -1;

  const T high = simd::max<T, A>(value, n);
  B least(high);
  for (Index i = 0; i < n; i += W) {
    const B v = B::load_unaligned(value + std::min(i, n - W));
    least = xsimd::select(v == B(out), least, xsimd::min(v, least));
  }
  const T low = -simd::max_lane(-least);

  auto* const begin = scratch.take<std::int32_t>(classes + 2);
  T* const of = scratch.take<T>(n);
  std::fill(begin, begin + classes + 2, 0);
  const T range = high / 2 - low / 2, last = static_cast<T>(classes - 1);  // halves: their difference is finite
  const T scale = range > std::numeric_limits<T>::min() * 4096 ? last / range : T(0);
  for (Index start = 0; start < n; start += W) {
    const Index i = std::min(start, n - W);
    const B v = B::load_unaligned(value + i), c = xsimd::min((B(high / 2) - v * B(T(0.5))) * B(scale), B(last));
    xsimd::select(v == B(out), B(last + 1), c).store_unaligned(of + i);
  }
  const auto class_of = [of](Index i) { return static_cast<std::int32_t>(of[i]); };
  for (Index i = 0; i < n; ++i) ++begin[class_of(i) + 1];
  for (Index c = 0; c < classes; ++c) begin[c + 1] += begin[c];
  const Index kept = begin[classes];
  for (Index i = 0; i < n; ++i) order[begin[class_of(i)]++] = static_cast<std::int32_t>(i);
  return kept;
}

}  // namespace detail

/// Owner of packed features; keeps its memory from request to request.
template <Real T>
class Panels {
 public:
  Panels() = default;
  /// Packs `features` [N, D]; with `normalize` every row is divided by its length (cosine similarity).
  /// Throws `Error` for a view that is not sound; the old contents stay.
  void pack(MatrixView<const T> features, bool normalize) { pack(features, PanelOptions{.normalize = normalize}); }
  /// The same with a storage to choose, and a `priority` [N] (or empty), such as relevance or quality: rows are then packed roughly
  /// from the highest down, so that selectors look at few panels. What is not a number comes last.
  void pack(MatrixView<const T> features, const PanelOptions& options, VectorView<const T> priority = {}) {
    check_shape("Panels::pack", "features", features, any_size, any_size);
    pack_rows(features, options, priority);
  }
  /// Features that are BFloat16 already.
  void pack(MatrixView<const BFloat16> features, const PanelOptions& options,
            VectorView<const T> priority = {}) requires(std::is_same_v<T, float>) {
    check_shape("Panels::pack", "features", features, any_size, any_size);
    pack_rows(features, options, priority);
  }
  /// Quantised features. A row whose codes reach 127 under one scale for all its columns stays what it is in `int8`.
  void pack(const QuantizedView& features, const PanelOptions& options,
            VectorView<const T> priority = {}) requires(std::is_same_v<T, float>) {
    check_quantized("Panels::pack", "features", features, any_size, any_size);
    rows_as_floats_.resize(features.rows(), features.cols());
    for (Index i = 0; i < features.rows(); ++i) {
      for (Index d = 0; d < features.cols(); ++d)
        rows_as_floats_(i, d) = features.scales(i, d / features.width()) * static_cast<float>(features.codes(i, d));
    }
    pack_rows(MatrixView<const float>(rows_as_floats_), options, priority);
  }
  Index rows() const { return rows_; }  ///< N
  Index cols() const { return cols_; }  ///< D
  /// Good until the next `pack`.
  PanelsView<T> view() const& {
    const bool full = storage_ == PanelStorage::full;
    return {full ? data_.data() : nullptr,
            squares_.data(),
            rows_,
            cols_,
            unit_,
            storage_,
            full ? nullptr : words_.data(),
            full ? nullptr : scales_.data(),
            ordered_ ? order_.data() : nullptr};
  }
  PanelsView<T> view() && = delete;  // would outlive its memory
  operator PanelsView<T>() const& { return view(); }
  operator PanelsView<T>() && = delete;  // would outlive its memory

 private:
  template <class S>
  void pack_rows(MatrixView<const S> features, const PanelOptions& options, VectorView<const T> priority) {
    constexpr Index P = simd::panel_width<T>;
    const Index rows = features.rows(), panels = detail::panel_count<T>(rows), cols = features.cols();
    const bool full = options.storage == PanelStorage::full;
    if (!priority.empty()) check_size("Panels::pack", "priority", priority, rows);
    check_option("Panels::pack", "storage", full || std::is_same_v<T, float>, "the storage `full` for doubles",
                 static_cast<double>(options.storage));
    check_option("Panels::pack", "features", rows <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 rows",
                 static_cast<double>(rows));
    ordered_ = !priority.empty() && rows > P && order_rows(priority);
    squares_.resize(panels * P);
    data_.resize(full ? panels * cols * P : cols * P);
    words_.resize(full ? 0 : panels * cols * P / (options.storage == PanelStorage::bfloat16 ? 2 : 4));
    scales_.resize(full ? 0 : panels * P);
    const std::int32_t* const order = ordered_ ? order_.data() : nullptr;
    for (Index b = 0; b < panels; ++b) {
      using A = simd::DefaultArch;
      T* const squares = squares_.data() + b * P;
      if constexpr (std::is_same_v<S, BFloat16>) {
        if (options.storage == PanelStorage::bfloat16) {
          detail::pack_half_panel<A>(features, order, rows, b, options.normalize, words_.data() + b * cols * P / 2, squares,
                                     scales_.data() + b * P);
          continue;
        }
      }
      T* const panel = data_.data() + (full ? b * cols * P : 0);
      alignas(64) T factor[P];
      detail::pack_one_panel<T, A>(features, order, rows, b, full && options.normalize, panel, squares, factor);
      if constexpr (std::is_same_v<T, float>) {
        if (!full)
          detail::store_panel<A>(panel, cols, options.normalize, options.storage, words_.data() + b * (words_.size() / panels),
                                 squares, scales_.data() + b * P);
      }
    }
    rows_ = rows;
    cols_ = cols;
    unit_ = options.normalize;
    storage_ = options.storage;
  }
  /// Fills `order_`; false if the rows come in a good order already.
  bool order_rows(VectorView<const T> priority) {
    const Index n = priority.size();
    const auto mark = scratch_.mark();
    T* const value = scratch_.take<T>(n);
    const T most = std::numeric_limits<T>::max();
    T least = most;
    for (const T p : priority) least = std::abs(p) <= most && p < least ? p : least;
    for (Index i = 0; i < n; ++i)
      value[i] = std::abs(priority.data()[i]) <= most ? priority.data()[i] : least;  // none is left out
    order_.resize(n);
    return detail::selection_order<T, simd::DefaultArch>(value, n, order_.data(), scratch_) >= 0;
  }

  Vector<T> data_, squares_, scales_;
  Vector<std::uint32_t> words_;
  Vector<std::int32_t> order_;
  Matrix<float> rows_as_floats_;
  Workspace scratch_;
  detail::MovedSize rows_, cols_;
  bool unit_ = false, ordered_ = false;
  PanelStorage storage_ = PanelStorage::full;
};

}  // namespace RECOPS_ABI
}  // namespace recops
