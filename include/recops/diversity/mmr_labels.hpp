/// @file   recops/diversity/mmr_labels.hpp
/// @brief  What a maximal-marginal-relevance teacher says about every candidate: labels to distil it into a model of single items.
///
///     hard      y_i = 1 if i is among the k picks, else 0
///     graded    y_i = 1 - place / k of a pick (the first 1, the last 1 / k), else 0
///     soft      π_t = softmax over unpicked items of (score_t / temperature);   y_i = 1 - Π_t (1 - π_t(i)), t up to i's own pick
///
/// The soft label is the chance that a teacher who draws instead of taking the best, but follows the best path, picks i; it becomes
/// the hard one as the temperature goes to 0. Labels carry no gradient.
///
/// Shapes      one request (`MmrInput`), or a batch (`MmrBatch`): labels [N], [total].
/// Edge cases  As `mmr`; items that may not be picked get 0. `soft` needs features as rows (no panels), no window, no constraints.
/// Cost        That of `mmr`; soft: 2 N D k flops and N k exponentials more.
/// Errors      Error for shapes and options; labels untouched.
/// Reference   Teacher of CDM, arXiv 2406.09021; the label forms are our reconstruction.
#pragma once
#include <recops/diversity/mmr.hpp>
#include <recops/simd/gemm.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

enum class TeacherLabels { hard, graded, soft };

struct MmrLabelOptions {
  MmrOptions teacher = {};
  Index picks = 10;  ///< k: how many the teacher picks
  TeacherLabels labels = TeacherLabels::hard;
  double temperature = 0.05;  ///< of soft labels, in units of the score
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void check_mmr_labels(const char* name, const MmrLabelOptions& o) {
  check_option(name, "picks", o.picks >= 0, "picks >= 0", static_cast<double>(o.picks));
  if (o.labels != TeacherLabels::soft) return;
  check_option(name, "temperature",
               o.temperature >= std::numeric_limits<T>::min() && o.temperature <= std::numeric_limits<T>::max(),
               "a number above 0 in the range of T", o.temperature);
  check_option(name, "window", o.teacher.window == 0, "no window for soft labels", static_cast<double>(o.teacher.window));
}

template <class T>
void soft_labels(const MmrInput<T>& in, const MmrLabelOptions& o, VectorView<const std::int32_t> picks, VectorView<T> labels,
                 Workspace& ws) {
  constexpr T never = -std::numeric_limits<T>::infinity();
  const Index n = in.relevance.size(), d = in.features.cols(), k = picks.size(), m = in.history.rows();
  const auto lambda = static_cast<T>(o.teacher.lambda), temperature = static_cast<T>(o.temperature);
  const bool unit = o.teacher.normalize && d > 0;
  const MatrixView<T> own = ws.matrix<T>(unit ? n : 0, d), rows = ws.matrix<T>(m + k, d), sim = ws.matrix<T>(m + k, n);
  const MatrixView<const T> x = unit ? MatrixView<const T>(own) : d > 0 ? in.features : MatrixView<const T>(nullptr, n, 0);
  if (unit) {
    normalize_rows<T>(in.features, own);
    if (m > 0) normalize_rows<T>(in.history, rows.middle_rows(0, m));
  } else {
    for (Index h = 0; h < m; ++h) std::copy_n(in.history.row(h), d, rows.row(h));
  }
  for (Index t = 0; t < k; ++t) std::copy_n(x.row(picks[t]), d, rows.row(m + t));
  simd::gemm<T>(simd::plain(MatrixView<const T>(rows)), simd::transposed(x), {}, sim, ws);
  T *const most = ws.take<T>(n), *const score = ws.take<T>(n), *const open = ws.take<T>(n);
  for (Index i = 0; i < n; ++i) {
    const T square = simd::dot(x.row(i), x.row(i), d);
    open[i] = std::abs(in.relevance[i]) <= std::numeric_limits<T>::max() && (in.allowed.empty() || in.allowed[i]) &&
              square <= largest_square<T>;
    most[i] = never;
    labels[i] = 0;
  }
  Index seen = 0;
  const auto see = [&](const T* similarity) {
    for (Index i = 0; i < n; ++i) most[i] = similarity[i] > most[i] ? similarity[i] : most[i];
    ++seen;
  };
  for (Index h = 0; h < m; ++h)
    if (simd::dot(in.history.row(h), in.history.row(h), d) <= largest_square<T>) see(sim.row(h));  // the teacher ignores others
  using B = simd::Batch<T>;
  const T* const relevance = in.relevance.data();
  T* const label = labels.data();
  for (Index t = 0; t < k; ++t) {
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const B r = load(relevance + i), s = seen == 0 ? r : B(B(lambda) * r - B(1 - lambda) * load(most + i));
      store(score + i, xsimd::select(load(open + i) != B(T(0)), s, B(never)));
    });
    const T top = simd::max(score, n);
    for (Index i = 0; i < n; ++i) score[i] = (score[i] - top) / temperature;  // divided later: cannot overflow
    simd::softmax<T>(score, n);
    // 1 less the product, with every digit of a small chance.
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      const B y = load(label + i);
      store(label + i, simd::mul_add(load(score + i), B(T(1)) - y, y));
    });
    open[picks[t]] = 0;
    see(sim.row(m + t));
  }
}

/// Places that the teacher fills: pins are given for all of them, otherwise those behind the last item are of no use.
template <class T>
Index label_places(const MmrInput<T>& in, const MmrLabelOptions& o) {
  return in.constraints ? o.picks : std::min(o.picks, in.relevance.size());
}

template <class T>
void mmr_labels(const MmrInput<T>& in, const MmrLabelOptions& o, VectorView<T> labels, Workspace& ws) {
  const auto mark = ws.mark();
  const VectorView<std::int32_t> picks = ws.vector<std::int32_t>(label_places(in, o));
  const MmrProblem<T> problem = check_mmr("mmr_labels", in, o.teacher);
  const Index count = mmr_select<T, simd::DefaultArch>(problem, picks, VectorView<T>(), ws).count;
  if (o.labels == TeacherLabels::soft) return soft_labels<T>(in, o, picks.segment(0, count), labels, ws);
  std::fill(labels.begin(), labels.end(), T(0));
  const bool graded = o.labels == TeacherLabels::graded;
  for (Index t = 0; t < count; ++t)
    labels[picks[t]] = graded ? static_cast<T>(1 - static_cast<double>(t) / static_cast<double>(o.picks)) : T(1);
}

template <class T>
void check_soft_input(const char* name, const MmrInput<T>& in, const MmrLabelOptions& o) {
  if (o.labels != TeacherLabels::soft) return;
  const bool only_rows =
      in.panels.rows == 0 && in.similarity.empty() && in.categories.empty() && !in.constraints && o.teacher.feature_weight == 1;
  if (!only_rows) [[unlikely]]
    fail(name, "labels", "features as rows, with weight 1, and nothing else for soft labels",
         "another similarity, or constraints");
}

}  // namespace detail

/// Writes labels [N] of one request.
template <Real T>
void mmr_labels(const MmrInput<T>& input, const MmrLabelOptions& options, VectorView<T> labels, Workspace& ws) {
  constexpr const char* name = "mmr_labels";
  detail::check_mmr_labels<T>(name, options);
  detail::check_mmr(name, input, options.teacher, detail::label_places(input, options));
  detail::check_soft_input(name, input, options);
  check_size(name, "labels", labels, input.relevance.size());
  detail::mmr_labels<T>(input, options, labels, ws);
}

/// Writes labels [total] of a batch, requests on the caller's threads.
template <Real T>
void mmr_labels(const MmrBatch<T>& batch, const MmrLabelOptions& options, VectorView<T> labels, Workspace& ws) {
  constexpr const char* name = "mmr_labels";
  detail::check_mmr_labels<T>(name, options);
  detail::check_mmr_batch(name, batch, options.teacher, options.picks);
  for (Index b = 0; b < batch.features.size(); ++b) detail::check_soft_input(name, detail::mmr_request(batch, b), options);
  check_size(name, "labels", labels, batch.relevance.size());
  ws.parallel_for(batch.features.size(), [&](Index b, Workspace& own) {
    detail::mmr_labels<T>(detail::mmr_request(batch, b), options,
                          labels.segment(batch.features.begin(b), batch.features.length(b)), own);
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
