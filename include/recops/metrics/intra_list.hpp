/// @file   recops/metrics/intra_list.hpp
/// @brief  How different the items of one list are: mean (ILD) and smallest pairwise cosine distance, averaged over lists.
///
///     ILD = 1 / (k (k - 1)) Σ_{i != j} (1 - cos(f_i, f_j)) = 1 - (|Σ_i x_i|² - m) / (k (k - 1)),      x_i = f_i / |f_i|
///
/// with m the number of rows that are not zero: O(k D), no pairs.
///
/// Shapes      lists: jagged rows of D features, or features [N, D] with items [total] and offsets [R + 1]; an item of -1 stands
///             for no item (padding) and is passed over.  Features need not be normalised.
/// Edge cases  lists of fewer than two items are skipped and counted.  Zero rows: `ZeroRows`.
/// NaN         a list that holds a NaN or an infinity (or squares that overflow a double) is skipped and counted in `nan_groups`.
/// Precision   doubles; ILD is clamped to [0, 2].  Same bits for any number of threads.
/// Cost        O(k D) per list, the smallest distance O(k² D); scratch D or k D doubles.
/// Errors      Error if offsets or items do not fit.
/// Reference   Ziegler et al., Improving Recommendation Lists Through Topic Diversification, WWW 2005.
#pragma once
#include <cmath>
#include <recops/metrics/common.hpp>

namespace recops {

/// What an all-zero row (an item without features) counts as.
enum class ZeroRows {
  distant,  ///< similarity 0 to every other item
  skip,     ///< not an item of the list
};

struct IntraListOptions {
  ZeroRows zero_rows = ZeroRows::distant;
};

inline namespace RECOPS_ABI {

namespace detail {

/// The rows of one list, whether they lie side by side or are picked from a catalogue.
template <class T>
struct ListRows {
  MatrixView<const T> features;
  IndexView items;  // empty: the rows of `features` themselves
  bool picked = false;
  Index size() const { return picked ? items.size() : features.rows(); }
  const T* row(Index i) const {
    if (!picked) return features.row(i);
    return items[i] < 0 ? nullptr : features.row(items[i]);
  }
};

template <class T>
double squared_norm(const T* row, Index n) {
  double sum = 0;
  for (Index d = 0; d < n; ++d) sum += static_cast<double>(row[d]) * static_cast<double>(row[d]);
  return sum;
}

enum class IntraListMetric { mean, smallest };

template <class T>
GroupValue intra_list_of(const ListRows<T>& list, IntraListMetric metric, const IntraListOptions& options, Workspace& ws) {
  const Index width = list.features.cols();
  const bool mean = metric == IntraListMetric::mean;
  double* const unit = ws.take<double>((mean ? 1 : list.size()) * width);  // their sum, or all of them
  if (mean) std::fill_n(unit, width, 0.0);
  GroupValue group;
  Index k = 0, nonzero = 0;
  double smallest = 2;
  for (Index i = 0; i < list.size(); ++i) {
    const T* const row = list.row(i);
    if (row == nullptr) continue;
    const double squared = squared_norm(row, width);
    if (!(squared <= std::numeric_limits<double>::max())) {
      group.kind = GroupValue::Kind::nan;
      return group;
    }
    if (squared == 0) {
      if (options.zero_rows == ZeroRows::distant) ++k;
      continue;
    }
    const double norm = std::sqrt(squared);
    if (mean) {
      for (Index d = 0; d < width; ++d) unit[d] += static_cast<double>(row[d]) / norm;
    } else {
      double* const own = unit + nonzero * width;
      for (Index d = 0; d < width; ++d) own[d] = static_cast<double>(row[d]) / norm;
      for (Index j = 0; j < nonzero; ++j) {
        double dot = 0;
        for (Index d = 0; d < width; ++d) dot += own[d] * unit[j * width + d];
        smallest = std::min(smallest, 1 - dot);
      }
    }
    ++k;
    ++nonzero;
  }
  if (k < 2) return group;
  group.kind = GroupValue::Kind::valid;
  if (mean) {
    const auto items = static_cast<double>(k);
    group.value = 1 - (squared_norm(unit, width) - static_cast<double>(nonzero)) / (items * (items - 1));
  } else {
    group.value = k > nonzero ? std::min(smallest, 1.0) : smallest;
  }
  group.value = std::min(2.0, std::max(0.0, group.value));
  return group;
}

template <class T>
void add_intra_list(const char* operation, IntraListMetric metric, JaggedView<const T> lists, const IntraListOptions& options,
                    GroupMean& into, Workspace& ws) {
  check_jagged(operation, "lists", lists, any_size, any_size);
  add_groups(lists.size(), into, ws, [&](Index g, Workspace& scratch) {
    return intra_list_of(ListRows<T>{lists[g], IndexView(), false}, metric, options, scratch);
  });
}

template <class T>
void add_intra_list(const char* operation, IntraListMetric metric, MatrixView<const T> features, IndexView items,
                    IndexView offsets, const IntraListOptions& options, GroupMean& into, Workspace& ws) {
  check_shape(operation, "features", features, any_size, any_size);
  check_items(operation, "items", items, features.rows());
  check_offsets(operation, "offsets", offsets, items.size());
  add_groups(offsets.size() - 1, into, ws, [&](Index g, Workspace& scratch) {
    const IndexView list = items.segment(offsets[g], offsets[g + 1] - offsets[g]);
    return intra_list_of(ListRows<T>{features, list, true}, metric, options, scratch);
  });
}

}  // namespace detail

/// Adds the ILD of the lists to `into`: the form for shards, which merge by `GroupMean::merge`.
template <Real T>
void add_intra_list_distance(JaggedView<const T> lists, const IntraListOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_intra_list("intra_list_distance", detail::IntraListMetric::mean, lists, options, into, ws);
}
/// Adds the ILD of lists of picks.
template <Real T>
void add_intra_list_distance(MatrixView<const T> features, IndexView items, IndexView offsets, const IntraListOptions& options,
                             GroupMean& into, Workspace& ws) {
  detail::add_intra_list("intra_list_distance", detail::IntraListMetric::mean, features, items, offsets, options, into, ws);
}
/// Adds the smallest distances of the lists to `into`.
template <Real T>
void add_intra_list_min_distance(JaggedView<const T> lists, const IntraListOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_intra_list("intra_list_min_distance", detail::IntraListMetric::smallest, lists, options, into, ws);
}
/// Adds the smallest distances of lists of picks.
template <Real T>
void add_intra_list_min_distance(MatrixView<const T> features, IndexView items, IndexView offsets,
                                 const IntraListOptions& options, GroupMean& into, Workspace& ws) {
  detail::add_intra_list("intra_list_min_distance", detail::IntraListMetric::smallest, features, items, offsets, options, into,
                         ws);
}

/// Mean over the lists of the mean pairwise cosine distance.
template <Real T>
GroupResult intra_list_distance(JaggedView<const T> lists, const IntraListOptions& options, Workspace& ws) {
  GroupMean mean;
  add_intra_list_distance(lists, options, mean, ws);
  return mean.result();
}
/// The same for picks from a catalogue.
template <Real T>
GroupResult intra_list_distance(MatrixView<const T> features, IndexView items, IndexView offsets, const IntraListOptions& options,
                                Workspace& ws) {
  GroupMean mean;
  add_intra_list_distance(features, items, offsets, options, mean, ws);
  return mean.result();
}
/// Mean over the lists of the smallest pairwise cosine distance: 0 as soon as a list repeats itself.
template <Real T>
GroupResult intra_list_min_distance(JaggedView<const T> lists, const IntraListOptions& options, Workspace& ws) {
  GroupMean mean;
  add_intra_list_min_distance(lists, options, mean, ws);
  return mean.result();
}
/// The same for picks from a catalogue.
template <Real T>
GroupResult intra_list_min_distance(MatrixView<const T> features, IndexView items, IndexView offsets,
                                    const IntraListOptions& options, Workspace& ws) {
  GroupMean mean;
  add_intra_list_min_distance(features, items, offsets, options, mean, ws);
  return mean.result();
}

}  // namespace RECOPS_ABI
}  // namespace recops
