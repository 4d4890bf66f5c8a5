/// @file   recops/nn/embedding_bag.hpp
/// @brief  Rows of a table, looked up one by one or pooled per bag; gradients touch only the rows that were read.
#pragma once
#include <algorithm>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/simd/pool_rows.hpp>
#include <recops/simd/quantize.hpp>
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

namespace detail {

/// Pools checked rows; `what`: table, ids, weights.
template <class T, class S>
void pool_bags(const char* name, simd::PickedRows<T, S> what, IndexView offsets, const EmbeddingBagOptions& options,
               MatrixView<T> out) {
  check_bags(name, what.ids, offsets, what.table.rows(), options.padding_index);
  const Bags bags{what.ids, offsets};
  if (!what.weights.empty()) {
    check_size(name, "weights", what.weights, what.ids.size());
    check_option(name, "pooling", options.pooling == Pooling::sum, "a sum where there are weights", 1);
  }
  check_shape(name, "out", out, bags.size(), what.table.cols());
  what.skip = options.padding_index;
  for (Index b = 0; b < bags.size(); ++b)
    simd::pool_rows(what, bags.begin(b), bags.end(b), bags.weight<T>(b, options), out.row(b));
}

}  // namespace detail

/// out `[B, D]`: row b is the sum or mean of the rows `ids[offsets[b]] ..` of table `[V, D]`, each times its weight unless `weights [n]`
/// is empty (sums only). With empty offsets every id is a bag of its own (a plain look-up, B = ids). Empty bags give zeros. The table
/// is kept in T, BFloat16 or Float16; sums are in T. Ids are checked before the first write: `Error` names the position of a bad one. A
/// NaN in a row reaches the bags that read it. Reads each row once, fetched ahead: bound by memory.
template <Real T, class S>
void embedding_bag(MatrixView<const S> table, IndexView ids, IndexView offsets, VectorView<const T> weights,
                   const EmbeddingBagOptions& options, MatrixView<T> out) {
  check_shape("embedding_bag", "table", table, any_size, any_size);
  detail::pool_bags<T, S>("embedding_bag", {.table = table, .ids = ids, .weights = weights}, offsets, options, out);
}
/// The same without weights.
template <Real T>
void embedding_bag(MatrixView<const T> table, IndexView ids, IndexView offsets, const EmbeddingBagOptions& options,
                   MatrixView<T> out) {
  embedding_bag<T, T>(table, ids, offsets, {}, options, out);
}
/// The same from rows of int8 with a scale per row.
template <Real T>
void embedding_bag(const QuantizedView& table, IndexView ids, IndexView offsets, VectorView<const T> weights,
                   const EmbeddingBagOptions& options, MatrixView<T> out) {
  constexpr const char* name = "embedding_bag";
  check_shape(name, "table codes", table.codes, any_size, any_size);
  check_shape(name, "table scales", table.scales, table.rows(), 1);
  check_option(name, "table scales", table.scales.stride() == 1, "scales without gaps",
               static_cast<double>(table.scales.stride()));
  detail::pool_bags<T, std::int8_t>(name, {.table = table.codes, .scales = table.scales.data(), .ids = ids, .weights = weights},
                                    offsets, options, out);
}

/// Adds the gradient of the table to `gradient`, by rows if it is a gradient by rows (its rows stay sorted), else densely; a dense
/// one without numbers is not wanted. Throws `Error` for bad ids and for shapes that disagree.
/// Occurrences of one id are added in the order of `ids`: the same bits every time. O(n log n + n D) for n ids.
template <Real T>
void embedding_bag_backward(Index table_rows, IndexView ids, IndexView offsets, VectorView<const T> weights,
                            const EmbeddingBagOptions& options, MatrixView<const T> dout, Table<T>& gradient, Workspace& ws) {
  constexpr const char* name = "embedding_bag_backward";
  detail::check_bags(name, ids, offsets, table_rows, options.padding_index);
  const detail::Bags bags{ids, offsets};
  if (!weights.empty()) check_size(name, "weights", weights, ids.size());
  if (!gradient.by_rows && gradient.values.empty()) return;  // not wanted
  check_shape(name, "dout", dout, bags.size(), gradient.values.cols());
  check_shape(name, "gradient", gradient.values.view(), gradient.by_rows ? gradient.rows.size() : table_rows, any_size);
  const Index cols = dout.cols();
  const auto mark = ws.mark();
  struct Use {
    Index id, bag, position;
  };
  Use* uses = ws.take<Use>(ids.size());
  Index count = 0;
  for (Index b = 0; b < bags.size(); ++b)
    for (Index i = bags.begin(b); i < bags.end(b); ++i)
      if (ids[i] != options.padding_index) uses[count++] = {ids[i], b, i};
  T* weight = ws.take<T>(bags.size());
  for (Index b = 0; b < bags.size(); ++b) weight[b] = bags.weight<T>(b, options);
  const auto add = [&](const Use& use, T* row) {
    simd::axpy(weights.empty() ? weight[use.bag] : weights[use.position], dout.row(use.bag), row, cols);
  };
  if (!gradient.by_rows) {
    for (Index i = 0; i < count; ++i) add(uses[i], gradient.values.row(uses[i].id));
    return;
  }

  std::sort(uses, uses + count, [](const Use& a, const Use& b) { return a.id != b.id ? a.id < b.id : a.position < b.position; });
  gradient.touch_rows(count, [&](Index i) { return uses[i].id; });
  for (Index i = 0, r = 0; i < count; ++i) {
    while (gradient.rows[r] != uses[i].id) ++r;
    add(uses[i], gradient.values.row(r));
  }
}

template <Real T>
void embedding_bag_backward(Index table_rows, IndexView ids, IndexView offsets, const EmbeddingBagOptions& options,
                            MatrixView<const T> dout, Table<T>& gradient, Workspace& ws) {
  embedding_bag_backward<T>(table_rows, ids, offsets, {}, options, dout, gradient, ws);
}

/// Adds the gradient of the weights, <dout_b, row_i> for id i of bag b, to `dweights [n]`; 0 for padding ids.
template <Real T>
void embedding_bag_weights_backward(MatrixView<const T> table, IndexView ids, IndexView offsets,
                                    const EmbeddingBagOptions& options, MatrixView<const T> dout, VectorView<T> dweights) {
  constexpr const char* name = "embedding_bag_weights_backward";
  check_shape(name, "table", table, any_size, any_size);
  detail::check_bags(name, ids, offsets, table.rows(), options.padding_index);
  const detail::Bags bags{ids, offsets};
  check_shape(name, "dout", dout, bags.size(), table.cols());
  check_size(name, "dweights", dweights, ids.size());
  for (Index b = 0; b < bags.size(); ++b)
    for (Index i = bags.begin(b); i < bags.end(b); ++i)
      if (ids[i] != options.padding_index) dweights[i] += simd::dot(dout.row(b), table.row(ids[i]), table.cols());
}

/// Embedding table as a layer; `weight [V, D]` as in PyTorch's Embedding and EmbeddingBag.
template <class T>
struct EmbeddingBag {
  Table<T> weight;
  EmbeddingBagOptions options;

  EmbeddingBag() = default;
  /// Normal with the given standard deviation; the padding row is 0.
  EmbeddingBag(Index rows, Index cols, double deviation, Random& random, EmbeddingBagOptions o = {}) : options(o) {
    weight.values.resize(checked_size("EmbeddingBag", "rows", rows), checked_size("EmbeddingBag", "cols", cols));
    for (T& w : leaf_values(weight)) w = static_cast<T>(deviation * random.normal());
    if (o.padding_index >= 0 && o.padding_index < rows) std::fill_n(weight.values.row(o.padding_index), cols, T(0));
  }

  static constexpr auto fields() { return std::tuple{parameter("weight", &EmbeddingBag::weight)}; }

  /// out `[B, D]`, one row per bag; empty offsets: one row per id; `weights [n]`: empty for all 1.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> out, VectorView<const T> weights = {}) const {
    embedding_bag<T, T>(weight.values.view(), ids, offsets, weights, options, out);
  }
  /// Adds to `gradient.weight` (made by `make_gradient`: by rows).
  void backward(IndexView ids, IndexView offsets, MatrixView<const T> dout, EmbeddingBag& gradient, Workspace& ws,
                VectorView<const T> weights = {}) const {
    embedding_bag_backward<T>(weight.values.rows(), ids, offsets, weights, options, dout, gradient.weight, ws);
  }
};

/// Serving form of EmbeddingBag: the table in BFloat16 (half the memory to read), in std::int8_t with a scale per row (a quarter), or as
/// it is. Against float rows a number is off by at most 2^-8 of itself, or max |row| / 254. Immutable; threads may share it.
template <class T, class S = T>
class FrozenEmbeddingBag {
  static_assert(std::is_same_v<S, T> ||
                    (std::is_same_v<T, float> && (std::is_same_v<S, BFloat16> || std::is_same_v<S, std::int8_t>)),
                "rows are kept as they are, or of float tables in BFloat16 or std::int8_t");

 public:
  FrozenEmbeddingBag() = default;
  explicit FrozenEmbeddingBag(const EmbeddingBag<T>& layer) : options_(layer.options) {
    const MatrixView<const T> from = layer.weight.values;
    table_.resize(from.rows(), from.cols());
    if constexpr (std::is_same_v<S, std::int8_t>) {
      scales_.resize(from.rows(), 1);
      simd::quantize_rows(from, 0, table_, scales_);
    } else if constexpr (std::is_same_v<S, T>) {
      table_ = layer.weight.values;
    } else {
      for (Index i = 0; i < from.rows(); ++i) simd::convert(from.row(i), table_.row(i), from.cols());
    }
  }
  Index rows() const { return table_.rows(); }
  Index cols() const { return table_.cols(); }
  /// out `[B, D]`, one row per bag; empty offsets: one row per id; `weights [n]`: empty for all 1.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> out, VectorView<const T> weights = {}) const {
    if constexpr (std::is_same_v<S, std::int8_t>) {
      embedding_bag<T>(QuantizedView{table_.view(), scales_.view()}, ids, offsets, weights, options_, out);
    } else {
      embedding_bag<T, S>(table_.view(), ids, offsets, weights, options_, out);
    }
  }

 private:
  Matrix<S> table_;
  Matrix<float> scales_;  // [V, 1] for int8
  EmbeddingBagOptions options_;
};
template <class T, class S = T>
FrozenEmbeddingBag<T, S> freeze(const EmbeddingBag<T>& layer, Weights<S> = {}) {
  return FrozenEmbeddingBag<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
