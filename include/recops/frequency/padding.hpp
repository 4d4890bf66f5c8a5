/// @file   recops/frequency/padding.hpp
/// @brief  What a frequency operator does with sequences shorter than the length it was made for.
///
/// Three policies.
///   padded   (what the papers' code does) store the padding rows, so that every sequence has L rows: they are transformed as they
///            are. With `SequenceFill::zero` the rows need not be stored, their outputs are dropped.
///   ragged   (`SequenceFill::none`, default) store no padding: each sequence is transformed over its own rows.
///   filled   `edge`, `cyclic`, `reflect`: before the transform the missing rows are made from the valid ones; their outputs are
///            dropped. A study of BSARec (arXiv 2512.17442) finds that constant padding hinders frequency filters.
/// Where every sequence has L rows all policies are the same.
#pragma once
#include <recops/core/matrix.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// What stands in the rows that a sequence lacks.
enum class SequenceFill : unsigned char {
  none,    ///< nothing: the sequence is transformed at its own length
  zero,    ///< zeros
  edge,    ///< the nearest valid row
  cyclic,  ///< the sequence again and again, so that its period continues
  reflect  ///< the sequence to and fro, its ends not repeated
};

/// At which end of the L rows a shorter sequence lies.
enum class SequenceAlign : unsigned char {
  right,  ///< padding first, the most recent row last: what sequential recommenders do
  left    ///< padding last
};

struct SequencePadding {
  SequenceFill fill = SequenceFill::none;
  SequenceAlign align = SequenceAlign::right;
};

inline namespace RECOPS_ABI {

/// The valid row that position `n` of `length` takes in a sequence of `valid` rows; -1 for zeros. `fill` is not none. (Index
/// details are our reconstruction: the period goes on across the boundary.)
inline Index padding_source(const SequencePadding& padding, Index length, Index valid, Index n) {
  if (valid == 0) return -1;
  const bool right = padding.align == SequenceAlign::right;
  const Index first = right ? length - valid : 0;
  if (n >= first && n < first + valid) return n - first;
  const Index p = right ? first - n : n - valid + 1;  // 1 is the nearest
  Index source = -1;                                  // as if the valid rows came after the padding
  switch (padding.fill) {
    case SequenceFill::none:
    case SequenceFill::zero:
      return -1;
    case SequenceFill::edge:
      source = 0;
      break;
    case SequenceFill::cyclic:
      source = (valid - p % valid) % valid;
      break;
    case SequenceFill::reflect: {
      const Index period = valid > 1 ? 2 * (valid - 1) : 1, q = p % period;
      source = q < valid ? q : period - q;
      break;
    }
  }
  return right ? source : valid - 1 - source;
}

/// y `[B length, D]`, every sequence of x filled up to `length` rows; all zeros for an empty one. Throws `Error` where a sequence
/// is longer, for `SequenceFill::none` and for shapes that disagree. NaN is copied like any number, within its sequence.
template <Real T>
void pad_sequences(JaggedView<const T> x, const SequencePadding& padding, Index length, MatrixView<T> y) {
  constexpr const char* name = "pad_sequences";
  check_jagged(name, "x", x, any_size, any_size);
  check_option(name, "fill", padding.fill != SequenceFill::none, "a fill other than none", 0);
  check_option(name, "x", x.longest() <= length, "sequences of at most `length` rows", static_cast<double>(x.longest()));
  check_shape(name, "y", y, x.size() * length, x.cols());
  for (Index b = 0; b < x.size(); ++b) {
    const MatrixView<const T> rows = x[b];
    for (Index n = 0; n < length; ++n) {
      T* const to = y.row(b * length + n);
      const Index source = padding_source(padding, length, rows.rows(), n);
      if (source < 0) {
        std::fill_n(to, y.cols(), T(0));
      } else {
        std::copy_n(rows.row(source), y.cols(), to);
      }
    }
  }
}

/// dx += the gradient of `pad_sequences` with the offsets of x, whose values are not read: every copy adds to its source.
template <Real T>
void pad_sequences_backward(JaggedView<const T> x, const SequencePadding& padding, Index length, MatrixView<const T> dy,
                            MatrixView<T> dx) {
  constexpr const char* name = "pad_sequences_backward";
  check_jagged(name, "x", x, any_size, any_size);
  check_option(name, "fill", padding.fill != SequenceFill::none, "a fill other than none", 0);
  check_option(name, "x", x.longest() <= length, "sequences of at most `length` rows", static_cast<double>(x.longest()));
  check_shape(name, "dy", dy, x.size() * length, x.cols());
  check_shape(name, "dx", dx, x.values().rows(), x.cols());
  for (Index b = 0; b < x.size(); ++b) {
    for (Index n = 0; n < length; ++n) {
      const Index source = padding_source(padding, length, x.length(b), n);
      if (source >= 0) simd::add(dy.row(b * length + n), dx.row(x.begin(b) + source), dx.cols());
    }
  }
}

namespace detail {

/// A batch filled up to `length` in the workspace, and its offsets.
template <class T>
struct FilledBatch {
  MatrixView<T> values;
  IndexView offsets;
  FilledBatch(Index sequences, Index length, Index cols, Workspace& ws) : values(ws.matrix<T>(sequences * length, cols)) {
    auto* const at = ws.take<std::int64_t>(sequences + 1);
    for (Index b = 0; b <= sequences; ++b) at[b] = b * length;
    offsets = IndexView(at, sequences + 1);
  }
  JaggedView<const T> view() const { return JaggedView<const T>(MatrixView<const T>(values), offsets); }
};

/// Position of the first valid row.
inline Index padding_begin(const SequencePadding& padding, Index length, Index valid) {
  return padding.align == SequenceAlign::right ? length - valid : 0;
}

/// Whether rows must be made before the transform.
template <class T>
bool needs_fill(const SequencePadding& padding, Index length, JaggedView<const T> x) {
  if (padding.fill == SequenceFill::none) return false;
  for (Index b = 0; b < x.size(); ++b)
    if (x.length(b) != length) return true;
  return false;
}

/// y `[total, D]` <- the valid rows of a filled batch.
template <class T>
void take_valid(JaggedView<const T> shape, const SequencePadding& padding, Index length, MatrixView<const T> filled,
                MatrixView<T> y) {
  for (Index b = 0; b < shape.size(); ++b) {
    const Index valid = shape.length(b), first = b * length + padding_begin(padding, length, valid);
    for (Index i = 0; i < valid; ++i) std::copy_n(filled.row(first + i), y.cols(), y.row(shape.begin(b) + i));
  }
}
/// Its adjoint: the rows of dy at their places, zeros elsewhere.
template <class T>
void put_valid(JaggedView<const T> shape, const SequencePadding& padding, Index length, MatrixView<const T> dy,
               MatrixView<T> filled) {
  std::fill_n(filled.data(), filled.rows() * filled.cols(), T(0));
  for (Index b = 0; b < shape.size(); ++b) {
    const Index valid = shape.length(b), first = b * length + padding_begin(padding, length, valid);
    for (Index i = 0; i < valid; ++i) std::copy_n(dy.row(shape.begin(b) + i), dy.cols(), filled.row(first + i));
  }
}

/// `f(x, y)` on the batch as it is, or on one filled up.
template <class T, class F>
void forward_filled(JaggedView<const T> x, const SequencePadding& padding, Index length, MatrixView<T> y, Workspace& ws, F&& f) {
  if (!needs_fill(padding, length, x)) return f(x, y);
  const auto mark = ws.mark();
  const FilledBatch<T> in(x.size(), length, x.cols(), ws);
  const MatrixView<T> out = ws.matrix<T>(in.values.rows(), y.cols());
  pad_sequences<T>(x, padding, length, in.values);
  f(in.view(), out);
  take_valid<T>(x, padding, length, out, y);
}
/// `f(x, dy, dx)` likewise.
template <class T, class F>
void backward_filled(JaggedView<const T> x, const SequencePadding& padding, Index length, MatrixView<const T> dy,
                     MatrixView<T> dx, Workspace& ws, F&& f) {
  if (!needs_fill(padding, length, x)) return f(x, dy, dx);
  const auto mark = ws.mark();
  const FilledBatch<T> in(x.size(), length, x.cols(), ws);
  const MatrixView<T> dout = ws.matrix<T>(in.values.rows(), dy.cols());
  MatrixView<T> din;
  pad_sequences<T>(x, padding, length, in.values);
  put_valid<T>(x, padding, length, dy, dout);
  if (!dx.empty()) {
    din = ws.matrix<T>(in.values.rows(), dx.cols());
    std::fill_n(din.data(), din.rows() * din.cols(), T(0));
  }
  f(in.view(), MatrixView<const T>(dout), din);
  if (!dx.empty()) pad_sequences_backward<T>(x, padding, length, din, dx);
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
