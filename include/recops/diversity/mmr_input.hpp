/// @file   recops/diversity/mmr_input.hpp
/// @brief  What maximal marginal relevance is asked: options, one request, a batch of them, and their checks. See mmr.hpp.
#pragma once
#include <algorithm>
#include <recops/diversity/constraints.hpp>
#include <recops/diversity/panels.hpp>

namespace recops {

using MmrEvaluation = SelectionEvaluation;

struct MmrOptions {
  double lambda = 0.5;        ///< weight of relevance, 0 <= lambda <= 1; similarity weighs 1 - lambda ("diversity" elsewhere)
  Index window = 0;           ///< w > 0: only the last w - 1 of history and picks count, so any w in a row differ; 0: all count
  bool normalize = false;     ///< divide feature rows by their lengths: cosine similarity
  double feature_weight = 1;  ///< weights of the three similarities, -1e6 to 1e6; a weighted product stays finite (saturates)
  double similarity_weight = 1;
  double category_weight = 1;
  MmrEvaluation evaluation = MmrEvaluation::lazy;
};

/// One request. All but `relevance` may be left empty; whatever of features, similarity and categories is given adds to sim.
template <class T>
struct MmrInput {
  VectorView<const T> relevance = {};  ///< [N]
  MatrixView<const T> features = {};   ///< [N, D]
  PanelsView<T> panels = {};           ///< instead of features: packed before (then history rows are normalised if it is `unit`)
  MatrixView<const T> history = {};    ///< [m, D] features of what was shown before, oldest first
  VectorView<const std::uint8_t> allowed = {};  ///< [N] 0 for items that must not be picked
  MatrixView<const T> similarity = {};          ///< [N, N] row j: similarities to item j
  MatrixView<const T> history_similarity = {};  ///< [m, N]
  IndexView categories = {};                    ///< [N] equal ones have similarity 1; negative: like nothing
  IndexView history_categories = {};            ///< [m]
  const Constraints* constraints = nullptr;     ///< rules the list must keep
};

/// R requests one behind the other; indices are counted within each request.
template <class T>
struct MmrBatch {
  VectorView<const T> relevance = {};              ///< [total]
  JaggedView<const T> features = {};               ///< R sequences [N_r, D]; its offsets divide the other inputs
  JaggedView<const T> history = {};                ///< R sequences [m_r, D], or empty
  VectorView<const std::uint8_t> allowed = {};     ///< [total] or empty
  IndexView categories = {};                       ///< [total] or empty
  IndexView history_categories = {};               ///< [history total] or empty
  VectorView<const Constraints> constraints = {};  ///< [R] or empty
};

inline namespace RECOPS_ABI {
namespace detail {

/// What the options and views of a call come to.
template <class T>
struct MmrProblem {
  const MmrInput<T>& in;
  const MmrOptions& options;
  Index items, cols, history;  // N, D, m
  bool unit;                   // rows of length 1
  T lambda, weight;            // score = lambda r + weight m
  bool has_features() const { return in.features.rows() > 0 || in.panels.rows > 0; }
  /// No |similarity| exceeds this, rounding included; infinity if unknown.
  T bound() const {
    return unit ? T(1) + static_cast<T>(4 * (cols + 8)) * std::numeric_limits<T>::epsilon() : std::numeric_limits<T>::infinity();
  }
  /// Whether item i is out from the start.
  bool excluded(Index i) const {
    return !(std::abs(in.relevance.data()[i]) <= std::numeric_limits<T>::max()) ||
           (!in.allowed.empty() && in.allowed.data()[i] == 0);
  }
};

/// `places`: how many picks are wanted, or `any_size`.
template <class T>
MmrProblem<T> check_mmr(const char* operation, const MmrInput<T>& in, const MmrOptions& options, Index places = any_size) {
  const Index items = in.relevance.size();
  check_size(operation, "relevance", in.relevance, any_size);
  check_option(operation, "relevance", items <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 items",
               static_cast<double>(items));
  const bool packed = in.panels.rows != 0 || in.panels.cols != 0;
  const bool features = in.features.rows() > 0 || in.features.cols() > 0;
  if (packed) {
    check_shape(operation, "features", in.features, 0, 0);
    check_panels(operation, "panels", in.panels, items);
  } else if (features) {
    check_shape(operation, "features", in.features, items, any_size);
  }
  if (!in.similarity.empty()) check_shape(operation, "similarity", in.similarity, items, items);
  check_not_null(operation, "categories", in.categories);
  check_not_null(operation, "history_categories", in.history_categories);
  if (!in.categories.empty() && in.categories.size() != items) [[unlikely]]
    fail_size(operation, "categories", items, in.categories.size(), false);
  if (!in.allowed.empty()) check_size(operation, "allowed", in.allowed, items);

  // A history must say for every kind of similarity in use how it compares.
  const Index cols = packed ? in.panels.cols : in.features.cols();
  const Index history = std::max({in.history.rows(), in.history_similarity.rows(), in.history_categories.size()});
  if (history > 0) {
    check_shape(operation, "history", in.history, packed || features ? history : 0, packed || features ? cols : 0);
    check_shape(operation, "history_similarity", in.history_similarity, in.similarity.empty() ? 0 : history,
                in.similarity.empty() ? 0 : items);
    const Index named = in.categories.empty() ? 0 : history;
    if (in.history_categories.size() != named) [[unlikely]]
      fail_size(operation, "history_categories", named, in.history_categories.size(), false);
  }
  check_option(operation, "lambda", options.lambda >= 0 && options.lambda <= 1, "0 <= lambda <= 1", options.lambda);
  check_option(operation, "window", options.window >= 0, "window >= 0", static_cast<double>(options.window));
  const auto check_weight = [operation](const char* name, double w) {
    check_option(operation, name, std::abs(w) <= 1e6, "a weight from -1e6 to 1e6", w);
  };
  check_weight("feature_weight", options.feature_weight);
  check_weight("similarity_weight", options.similarity_weight);
  check_weight("category_weight", options.category_weight);
  if (places != any_size) check_constraints(operation, in.constraints, items, places);
  return {in,
          options,
          items,
          cols,
          history,
          packed ? in.panels.unit : options.normalize,
          static_cast<T>(options.lambda),
          static_cast<T>(options.lambda - 1)};
}

/// Request `b` of a batch whose shapes were checked.
template <class T>
MmrInput<T> mmr_request(const MmrBatch<T>& batch, Index b) {
  const Index first = batch.features.begin(b), count = batch.features.length(b);
  MmrInput<T> in;
  in.relevance = batch.relevance.segment(first, count);
  in.features = batch.features[b];
  if (!batch.allowed.empty()) in.allowed = batch.allowed.segment(first, count);
  if (!batch.categories.empty()) in.categories = batch.categories.segment(first, count);
  if (batch.history.values().rows() > 0) {
    in.history = batch.history[b];
    if (!batch.history_categories.empty()) {
      in.history_categories = batch.history_categories.segment(batch.history.begin(b), batch.history.length(b));
    }
  }
  if (!batch.constraints.empty()) in.constraints = &batch.constraints[b];
  return in;
}

template <class T>
void check_mmr_batch(const char* operation, const MmrBatch<T>& batch, const MmrOptions& options, Index places = any_size) {
  check_jagged(operation, "features", batch.features, any_size, any_size);
  const Index total = batch.features.values().rows(), seen = batch.history.values().rows();
  check_size(operation, "relevance", batch.relevance, total);
  check_not_null(operation, "categories", batch.categories);
  check_not_null(operation, "history_categories", batch.history_categories);
  if (!batch.allowed.empty()) check_size(operation, "allowed", batch.allowed, total);
  if (!batch.categories.empty() && batch.categories.size() != total) [[unlikely]]
    fail_size(operation, "categories", total, batch.categories.size(), false);
  if (seen > 0) check_jagged(operation, "history", batch.history, batch.features.size(), batch.features.cols());
  const Index named = batch.categories.empty() ? 0 : seen;
  if (batch.history_categories.size() != named) [[unlikely]]
    fail_size(operation, "history_categories", named, batch.history_categories.size(), false);
  if (!batch.constraints.empty()) check_size(operation, "constraints", batch.constraints, batch.features.size());
  for (Index b = 0; b < batch.features.size(); ++b) check_mmr(operation, mmr_request(batch, b), options, places);
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
