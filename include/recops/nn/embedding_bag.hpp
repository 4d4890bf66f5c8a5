/// @file   recops/nn/embedding_bag.hpp
/// @brief  Rows of a table, looked up one by one or pooled per bag; gradients touch only the rows that were read.
#pragma once
#include <algorithm>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// How a bag's rows become one.
enum class Pooling : unsigned char { sum, mean };

/// Options of `embedding_bag`.
struct EmbeddingBagOptions {
  Pooling pooling = Pooling::sum;
  Index padding_index = -1;  ///< this id is skipped: it adds nothing, does not count in a mean and gets no gradient; -1: none
};

inline namespace RECOPS_ABI {

namespace detail {

/// The bags that `ids` and `offsets` make; without offsets every id is a bag of its own.
struct Bags {
  IndexView ids, offsets;
  Index size() const { return offsets.empty() ? ids.size() : offsets.size() - 1; }
  Index begin(Index b) const { return offsets.empty() ? b : offsets[b]; }
  Index end(Index b) const { return offsets.empty() ? b + 1 : offsets[b + 1]; }
  /// What each row of bag `b` is multiplied by.
  template <class T>
  T weight(Index b, const EmbeddingBagOptions& options) const {
    if (options.pooling == Pooling::sum) return T(1);
    Index count = 0;
    for (Index i = begin(b); i < end(b); ++i) count += ids[i] != options.padding_index;
    return count == 0 ? T(0) : T(1) / static_cast<T>(count);
  }
};

inline void check_bags(const char* operation, IndexView ids, IndexView offsets, Index rows, Index padding) {
  check_not_null(operation, "ids", ids);
  if (!offsets.empty()) check_offsets(operation, "offsets", offsets, ids.size());
  for (Index i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || (ids[i] >= rows && ids[i] != padding)) [[unlikely]]
      fail_at(operation, "ids", "ids from 0 to below ", rows, i, ids[i]);
  }
}

}  // namespace detail

/// out `[B, D]`: row b is the sum or mean of the rows `ids[offsets[b]] ..` of table `[V, D]`. With empty offsets every id is a bag
/// of its own (a plain look-up, B = ids). Empty bags give zeros. Ids are checked before the first write: `Error` names the
/// position of a bad one. Reads each row once: bound by memory.
template <Real T>
void embedding_bag(MatrixView<const T> table, IndexView ids, IndexView offsets, const EmbeddingBagOptions& options,
                   MatrixView<T> out) {
  check_shape("embedding_bag", "table", table, any_size, any_size);
  detail::check_bags("embedding_bag", ids, offsets, table.rows(), options.padding_index);
  const detail::Bags bags{ids, offsets};
  check_shape("embedding_bag", "out", out, bags.size(), table.cols());
  for (Index b = 0; b < bags.size(); ++b) {
    std::fill_n(out.row(b), out.cols(), T(0));
    for (Index i = bags.begin(b); i < bags.end(b); ++i)
      if (ids[i] != options.padding_index) simd::add(table.row(ids[i]), out.row(b), out.cols());
    if (options.pooling == Pooling::mean) simd::scale(bags.weight<T>(b, options), out.row(b), out.row(b), out.cols());
  }
}

/// Adds the gradient of the table to `gradient`, by rows if it is a gradient by rows (its rows stay sorted), else densely; a dense
/// one without numbers is not wanted. Throws `Error` for bad ids and for shapes that disagree.
/// Occurrences of one id are added in the order of `ids`: the same bits every time. O(n log n + n D) for n ids.
template <Real T>
void embedding_bag_backward(Index table_rows, IndexView ids, IndexView offsets, const EmbeddingBagOptions& options,
                            MatrixView<const T> dout, Table<T>& gradient, Workspace& ws) {
  constexpr const char* name = "embedding_bag_backward";
  detail::check_bags(name, ids, offsets, table_rows, options.padding_index);
  const detail::Bags bags{ids, offsets};
  if (!gradient.by_rows && gradient.values.empty()) return;  // not wanted
  check_shape(name, "dout", dout, bags.size(), gradient.values.cols());
  check_shape(name, "gradient", gradient.values.view(), gradient.by_rows ? gradient.rows.size() : table_rows, any_size);
  const Index cols = dout.cols();
  const auto mark = ws.mark();
  struct Use {
    Index id, bag;
  };
  Use* uses = ws.take<Use>(ids.size());
  Index count = 0;
  for (Index b = 0; b < bags.size(); ++b)
    for (Index i = bags.begin(b); i < bags.end(b); ++i)
      if (ids[i] != options.padding_index) uses[count++] = {ids[i], b};
  T* weight = ws.take<T>(bags.size());
  for (Index b = 0; b < bags.size(); ++b) weight[b] = bags.weight<T>(b, options);
  const auto add = [&](const Use& use, T* row) { simd::axpy(weight[use.bag], dout.row(use.bag), row, cols); };
  if (!gradient.by_rows) {
    for (Index i = 0; i < count; ++i) add(uses[i], gradient.values.row(uses[i].id));
    return;
  }

  std::sort(uses, uses + count, [](const Use& a, const Use& b) { return a.id != b.id ? a.id < b.id : a.bag < b.bag; });
  gradient.touch_rows(count, [&](Index i) { return uses[i].id; });
  for (Index i = 0, r = 0; i < count; ++i) {
    while (gradient.rows[r] != uses[i].id) ++r;
    add(uses[i], gradient.values.row(r));
  }
}

/// Embedding table as a layer; `weight [V, D]` as in PyTorch's Embedding and EmbeddingBag.
template <class T>
struct EmbeddingBag {
  Table<T> weight;
  EmbeddingBagOptions options;

  EmbeddingBag() = default;
  /// Normal with the given standard deviation; the padding row is 0.
  EmbeddingBag(Index rows, Index cols, double deviation, Random& random, EmbeddingBagOptions o = {}) : options(o) {
    weight.values.resize(rows, cols);
    for (T& w : leaf_values(weight)) w = static_cast<T>(deviation * random.normal());
    if (o.padding_index >= 0 && o.padding_index < rows) std::fill_n(weight.values.row(o.padding_index), cols, T(0));
  }

  static constexpr auto fields() { return std::tuple{parameter("weight", &EmbeddingBag::weight)}; }

  /// out `[B, D]`, one row per bag; empty offsets: one row per id.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> out) const {
    embedding_bag<T>(weight.values, ids, offsets, options, out);
  }
  /// Adds to `gradient.weight` (made by `make_gradient`: by rows).
  void backward(IndexView ids, IndexView offsets, MatrixView<const T> dout, EmbeddingBag& gradient, Workspace& ws) const {
    embedding_bag_backward<T>(weight.values.rows(), ids, offsets, options, dout, gradient.weight, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
