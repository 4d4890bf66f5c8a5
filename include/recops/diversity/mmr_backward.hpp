/// @file   recops/diversity/mmr_backward.hpp
/// @brief  Gradient of the scores of mmr.hpp, the picks held fixed.
///
///     score_t = lambda · r_t - (1 - lambda) · sim(t, l)     dr_t += lambda g_t     dsim(t, l) -= (1 - lambda) g_t
///
/// l is what of the history and the earlier picks was most similar to pick t, the earliest of equals. *Adds*.
#pragma once
#include <recops/diversity/mmr_scores.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// Where `mmr_backward` adds; empty: not wanted.
template <class T>
struct MmrGradient {
  VectorView<T> relevance = {};           ///< [N]
  MatrixView<T> features = {};            ///< [N, D]
  MatrixView<T> history = {};             ///< [m, D]
  MatrixView<T> similarity = {};          ///< [N, N]
  MatrixView<T> history_similarity = {};  ///< [m, N]
};

inline namespace RECOPS_ABI {
namespace detail {

/// Checks a request's backward; returns the number of picks.
template <class T>
Index check_mmr_backward(const MmrProblem<T>& problem, VectorView<const std::int32_t> picks, VectorView<const T> dscores,
                         const MmrGradient<T>& gradient) {
  const char* const name = "mmr_backward";
  check_option(name, "panels", problem.in.panels.rows == 0, "features, not panels", static_cast<double>(problem.in.panels.rows));
  check_size(name, "picks", picks, any_size);
  check_size(name, "dscores", dscores, picks.size());
  if (!gradient.relevance.empty()) check_size(name, "gradient.relevance", gradient.relevance, problem.items);
  if (!gradient.features.empty()) check_shape(name, "gradient.features", gradient.features, problem.items, problem.cols);
  if (!gradient.history.empty()) check_shape(name, "gradient.history", gradient.history, problem.history, problem.cols);
  if (!gradient.similarity.empty()) check_shape(name, "gradient.similarity", gradient.similarity, problem.items, problem.items);
  if (!gradient.history_similarity.empty())
    check_shape(name, "gradient.history_similarity", gradient.history_similarity, problem.history, problem.items);
  Index count = 0;
  while (count < picks.size() && picks[count] != -1) ++count;
  for (Index t = 0; t < picks.size(); ++t) {
    if (t < count ? picks[t] < 0 || picks[t] >= problem.items : picks[t] != -1) [[unlikely]]
      fail_at(name, "picks", t < count ? "indices from 0 to below " : "-1 behind the last pick", t < count ? problem.items : -1,
              t, picks[t]);
  }
  return count;
}

template <class T>
void mmr_add_gradient(const MmrProblem<T>& problem, VectorView<const std::int32_t> picks, VectorView<const T> dscores,
                      const MmrGradient<T>& gradient, Workspace& scratch) {
  const auto mark = scratch.mark();
  const auto& in = problem.in;
  const MmrOptions& options = problem.options;
  const Index cols = problem.cols, count = picks.size();
  // History and picks in the order they were shown: rows as the similarity sees them, and their gradients.
  T* const rows = scratch.take<T>((problem.history + count) * cols);
  T* const drows = scratch.take<T>((problem.history + count) * cols);
  auto* const source = scratch.take<std::int32_t>(problem.history);
  const Index seen = mmr_history(problem, rows, source);
  for (Index t = 0; t < count && cols > 0; ++t) {
    T* const row = rows + (seen + t) * cols;
    if (!selection_row(in.features.row(picks[t]), cols, problem.unit, row)) std::fill(row, row + cols, T(0));
  }
  std::fill(drows, drows + (seen + count) * cols, T(0));
  const auto similarity_row = [&](Index l) {
    return l < seen ? in.history_similarity.row(source[l]) : in.similarity.row(picks[l - seen]);
  };
  const auto category = [&](Index l) { return l < seen ? in.history_categories[source[l]] : in.categories[picks[l - seen]]; };
  const T feature_weight = static_cast<T>(options.feature_weight), similarity_weight = static_cast<T>(options.similarity_weight);

  const Index last = options.window == 0 ? seen + count : options.window - 1;
  for (Index t = 0; t < count; ++t) {
    const Index item = picks[t], at = seen + t;
    if (!gradient.relevance.empty()) gradient.relevance[item] += problem.lambda * dscores[t];
    Index nearest = -1;  // the earliest of the most similar
    T most = never<T>;
    for (Index l = std::max(Index{0}, at - last); l < at; ++l) {
      T similarity = feature_weight * simd::dot(rows + at * cols, rows + l * cols, cols);
      if (!in.similarity.empty()) similarity += similarity_weight * similarity_row(l)[item];
      if (!in.categories.empty() && category(at) >= 0 && category(at) == category(l))
        similarity += static_cast<T>(options.category_weight);
      if (nearest < 0 || similarity > most) {
        most = similarity;
        nearest = l;
      }
    }
    if (nearest < 0) continue;
    const T g = problem.weight * dscores[t];
    simd::axpy(feature_weight * g, rows + nearest * cols, drows + at * cols, cols);
    simd::axpy(feature_weight * g, rows + at * cols, drows + nearest * cols, cols);
    if (nearest >= seen && !gradient.similarity.empty())
      gradient.similarity(picks[nearest - seen], item) += similarity_weight * g;
    if (nearest < seen && !gradient.history_similarity.empty())
      gradient.history_similarity(source[nearest], item) += similarity_weight * g;
  }
  for (Index l = 0; l < seen + count; ++l) {
    const bool old = l < seen;
    const MatrixView<T> out = old ? gradient.history : gradient.features;
    if (out.empty()) continue;
    const Index row = old ? source[l] : picks[l - seen];
    if (problem.unit) {
      const T* const x = old ? in.history.row(row) : in.features.row(row);
      normalize_row_backward(rows + l * cols, drows + l * cols, inverse_length(x, cols), out.row(row), cols);
    } else {
      simd::add(drows + l * cols, out.row(row), cols);
    }
  }
}

}  // namespace detail

/// Backward of `mmr` with its picks held fixed: `picks` [k] as it wrote them (-1 behind the last), `dscores` [k] the gradient of its
/// scores. Where several items are equally similar the earliest shown gets the gradient. Inputs must be features, not panels.
/// O(k (m + k) D), with a window O(k w D).
template <Real T>
void mmr_backward(const MmrInput<T>& input, const MmrOptions& options, VectorView<const std::int32_t> picks,
                  VectorView<const T> dscores, const MmrGradient<T>& gradient, Workspace& scratch) {
  const auto problem = detail::check_mmr("mmr_backward", input, options);
  const Index count = detail::check_mmr_backward(problem, picks, dscores, gradient);
  detail::mmr_add_gradient(problem, picks.segment(0, count), dscores.segment(0, count), gradient, scratch);
}

/// The same for a batch: `picks`, `dscores` [R, k]; the gradients are those of all requests behind one another, `similarity` empty.
template <Real T>
void mmr_backward(const MmrBatch<T>& batch, const MmrOptions& options, MatrixView<const std::int32_t> picks,
                  MatrixView<const T> dscores, const MmrGradient<T>& gradient, Workspace& scratch) {
  const char* const name = "mmr_backward";
  detail::check_mmr_batch(name, batch, options);
  const Index requests = batch.features.size(), k = picks.cols();
  const auto features = batch.features.values(), history = batch.history.values();
  check_shape(name, "picks", picks, requests, any_size);
  check_shape(name, "dscores", dscores, requests, k);
  if (!gradient.relevance.empty()) check_size(name, "gradient.relevance", gradient.relevance, features.rows());
  if (!gradient.features.empty()) check_shape(name, "gradient.features", gradient.features, features.rows(), features.cols());
  if (!gradient.history.empty()) check_shape(name, "gradient.history", gradient.history, history.rows(), history.cols());
  check_shape(name, "gradient.similarity", gradient.similarity, 0, 0);
  check_shape(name, "gradient.history_similarity", gradient.history_similarity, 0, 0);

  const auto part = [&](Index b) {
    MmrGradient<T> g;
    const Index first = batch.features.begin(b), count = batch.features.length(b);
    if (!gradient.relevance.empty()) g.relevance = gradient.relevance.segment(first, count);
    if (!gradient.features.empty()) g.features = gradient.features.middle_rows(first, count);
    if (!gradient.history.empty()) g.history = gradient.history.middle_rows(batch.history.begin(b), batch.history.length(b));
    return g;
  };
  const auto picked = [&](Index b) { return VectorView<const std::int32_t>(picks.row(b), k); };
  const auto wanted = [&](Index b) { return VectorView<const T>(dscores.row(b), k); };
  for (Index b = 0; b < requests; ++b) {
    const auto input = detail::mmr_request(batch, b);
    detail::check_mmr_backward(detail::check_mmr(name, input, options), picked(b), wanted(b), part(b));
  }
  scratch.parallel_for(requests, [&](Index b, Workspace& own) {
    const auto input = detail::mmr_request(batch, b);
    const auto problem = detail::check_mmr(name, input, options);
    const Index count = detail::check_mmr_backward(problem, picked(b), wanted(b), part(b));
    detail::mmr_add_gradient(problem, picked(b).segment(0, count), wanted(b).segment(0, count), part(b), own);
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
