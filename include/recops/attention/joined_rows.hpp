/// @file   recops/attention/joined_rows.hpp
/// @brief  The rows of each user with m further rows, the user's own or learned ones that all share, behind them or before.
#pragma once
#include <algorithm>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/simd/chained_sum.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// `rows` [total + B m, D] and `joined` lie where they were told to; `own` says that of each user the m rows [B m, D] are a sequence.
template <class T>
struct JoinedRows {
  JaggedView<T> joined, own;
  bool first;  // the m rows come before the user's

  JoinedRows(JaggedView<const T> tokens, Index m, bool first_, MatrixView<T> rows, MatrixView<T> extra, Workspace& ws)
      : first(first_) {
    const Index users = tokens.size(), total = tokens.values().rows();
    auto *const both = ws.take<std::int64_t>(users + 1), *const each = ws.take<std::int64_t>(users + 1);
    for (Index b = 0; b <= users; ++b) {
      both[b] = (b == users ? total : tokens.begin(b)) + b * m;
      each[b] = b * m;
    }
    joined = JaggedView<T>(rows, IndexView(both, users + 1));
    own = JaggedView<T>(extra, IndexView(each, users + 1));
  }
  /// Calls f(user, first row of its tokens among the joined, first of its m rows).
  template <class F>
  void for_each(JaggedView<const T> tokens, Index m, F&& f) const {
    for (Index b = 0; b < tokens.size(); ++b) {
      const Index at = joined.begin(b);
      f(b, first ? at + m : at, first ? at : at + tokens.length(b));
    }
  }
};

template <class T>
void copy_rows(MatrixView<const T> from, MatrixView<T> to) {
  for (Index r = 0; r < from.rows(); ++r) std::copy_n(from.row(r), from.cols(), to.row(r));
}
template <class T>
void add_rows(MatrixView<const T> from, MatrixView<T> to) {
  for (Index r = 0; r < from.rows(); ++r) simd::add(from.row(r), to.row(r), to.cols());
}
template <class T>
MatrixView<T> zero_rows(Index rows, Index cols, Workspace& ws) {
  const MatrixView<T> m = ws.matrix<T>(rows, cols);
  std::fill_n(m.data(), rows * cols, T(0));
  return m;
}
/// out [B m, D]: the m rows once per user, plus the user's row of `shift` [B, D] unless it is empty.
template <class T>
void repeat_rows(MatrixView<const T> rows, MatrixView<const T> shift, MatrixView<T> out) {
  const Index m = rows.rows();
  for (Index i = 0; i < out.rows(); ++i) {
    std::copy_n(rows.row(i % m), rows.cols(), out.row(i));
    if (!shift.empty()) simd::add(shift.row(i / m), out.row(i), out.cols());
  }
}
/// What comes back through `repeat_rows`: adds to drows and dshift, each unless empty.
template <class T>
void repeat_rows_backward(MatrixView<const T> dout, Index m, MatrixView<T> drows, MatrixView<T> dshift, Workspace& ws) {
  for (Index i = 0; i < dout.rows() && !dshift.empty(); ++i) simd::add(dout.row(i), dshift.row(i / m), dout.cols());
  if (drows.empty()) return;
  const auto mark = ws.mark();
  constexpr Index chain = simd::ChainedSum<T>::chain;  // users whose rows are added up in one go
  const MatrixView<T> sum = ws.matrix<T>(m, dout.cols());
  for (Index start = 0; start < dout.rows(); start += chain * m) {
    std::fill_n(sum.data(), m * sum.cols(), T(0));
    for (Index i = start; i < std::min(dout.rows(), start + chain * m); ++i) simd::add(dout.row(i), sum.row(i % m), sum.cols());
    add_rows<T>(sum, drows);
  }
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
