/// @file   recops/diversity/msd.hpp
/// @brief  Max-sum diversification: pick items one by one by their relevance and their distances to everything picked so far.
///
///     score_i = lambda · r_i + (1 - lambda) · c · sum_{j picked or in the history} (1 - <x_i, x_j>)       pick the largest, repeat
///
///     c = 1 / n, n items so far (running_mean)    2 / (k - 1) (pair_mean)    1 (sum)
///
/// Shapes      relevance [N]   features [N, D]   history [m, D]   allowed [N]   picks, scores [k]: as many picks as places.
///             Batches: features jagged over R requests, picks and scores [R, k], counts [R].
/// First pick  Without a history nothing is distant yet: the most relevant item is picked, its score is lambda · r.
/// Scale       `pair_mean` is the greedy algorithm for lambda sum r + (1 - lambda) 2 / (k - 1) sum_{i < j} distance; with `sum` the
///             distances outgrow relevance as the list grows, which is why it is not the default.
/// Ties        The lowest index. The same picks, bit for bit, for any evaluation, batch, number of threads, panels or features.
/// Edge cases  N = 0, k = 0, D = 0, m = 0, k > N, nothing allowed: fewer picks and a status, never an item twice. Unused places get
///             index -1 and score -infinity. Rows of zeros are at distance 1 from all.
/// NaN         An item whose relevance or features are not finite is never picked and influences nothing; such a history row is ignored.
/// Precision   T; distances are summed as 1 - products with the sum of rows, so nothing accumulates per item.
/// Cost        2 N D k flops; lazy: panels whose relevance cannot make up for any distance are not looked at. Scratch N · D + O(N).
/// Constraints Quotas, windows, pins: constraints.hpp.
/// Errors      Error for shapes and options; outputs untouched.
/// Gradient    `msd_backward`: of relevance, features and history, the picks held fixed; *adds*.
/// Reference   Gollapudi & Sharma, An axiomatic approach for result diversification, WWW 2009; Borodin et al., PODS 2012. Libraries
///             often weigh diversity by lambda; here it weighs relevance, as in mmr. The running mean is our reconstruction.
#pragma once
#include <recops/diversity/selection_backward.hpp>

namespace recops {

/// What the sum of distances is multiplied with.
enum class MsdScale {
  running_mean,  ///< 1 / number of items so far: relevance and diversity keep their proportion
  pair_mean,     ///< 2 / (k - 1), k places (1 place: 0)
  sum,           ///< 1
};

struct MsdOptions {
  double lambda = 0.5;  ///< weight of relevance, 0 <= lambda <= 1; distances weigh 1 - lambda
  MsdScale scale = MsdScale::running_mean;
  Index window = 0;        ///< w > 0: only the last w - 1 of history and picks count; 0: all count
  bool normalize = false;  ///< divide feature rows by their lengths: distance 1 - cosine
  SelectionEvaluation evaluation = SelectionEvaluation::lazy;
};

inline namespace RECOPS_ABI {
namespace detail {

inline void check_msd_options(const char* operation, const MsdOptions& options) {
  check_option(operation, "lambda", options.lambda >= 0 && options.lambda <= 1, "0 <= lambda <= 1", options.lambda);
  check_option(operation, "window", options.window >= 0, "window >= 0", static_cast<double>(options.window));
}

/// c for a pick that `active` items count for.
inline double msd_factor(const MsdOptions& options, Index active, Index places) {
  if (active == 0) return 0;
  if (options.scale == MsdScale::running_mean) return 1 / static_cast<double>(active);
  if (options.scale == MsdScale::sum) return 1;
  return places > 1 ? 2 / static_cast<double>(places - 1) : 0;
}

template <class T, class A>
struct MsdRule {
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;
  static constexpr bool monotone = false;

  const MsdOptions& options;
  Candidates<T, A>& rows;
  Index places, back;                     // k; how many of what was shown count
  T *relevance, *base, *product;          // [size]; base = lambda r; product with z
  T *top_relevance, *top_base, *longest;  // of each panel; rows' greatest length
  T *kept, *z;                            // rows that count (a ring, where there is a window); their sum
  Index shown = 0, active = 0;
  T gain = 0, number = 0, length = 0;  // (1 - lambda) c; how many items count, as T; |z|, rounded up

  static bool takes(T) { return true; }

  MsdRule(const SelectionInput<T>& in, const MsdOptions& o, Candidates<T, A>& candidates, const T* value, Index k, Index most,
          Workspace& scratch)
      : options(o), rows(candidates), places(k), back(o.window > 0 ? o.window - 1 : std::numeric_limits<Index>::max()) {
    const Index size = rows.size(), cols = rows.cols(), seen = in.history.rows();
    relevance = scratch.take<T>(size);
    base = scratch.take<T>(size);
    product = scratch.take<T>(size);
    top_relevance = scratch.take<T>(rows.panels());
    top_base = scratch.take<T>(rows.panels());
    longest = scratch.take<T>(rows.panels());
    z = scratch.take<T>(cols);
    kept = scratch.take<T>((o.window > 0 ? std::min(back, seen + most) + 1 : 1) * cols);
    std::fill(z, z + cols, T(0));
    for (Index i = 0; i < size; ++i) {
      const T r = i < rows.rows() ? value[rows.item(i)] : never<T>;
      relevance[i] = r;
      base[i] = r == never<T> ? r : static_cast<T>(o.lambda) * r;
      product[i] = 0;
    }
    for (Index p = 0; p < rows.panels(); ++p) {
      top_relevance[p] = simd::max<T, A>(relevance + p * P, P);
      top_base[p] = simd::max<T, A>(base + p * P, P);
      longest[p] = rows.unit() ? T(1) : std::numeric_limits<T>::infinity();
    }
    for (Index h = o.window > 0 ? history_begin(in.history, back) : 0; h < seen; ++h) {
      if (selection_row(in.history.row(h), cols, rows.unit(), fresh())) advance();
    }
  }
  bool begin(Index) {
    number = static_cast<T>(active);
    gain = static_cast<T>((1 - options.lambda) * msd_factor(options, active, places));
    const T slack = T(1) + static_cast<T>(4 * (rows.cols() + 8)) * std::numeric_limits<T>::epsilon();
    length = std::sqrt(simd::dot<T, A>(z, z, rows.cols())) * slack;
    return true;
  }
  void refresh(Index p) {
    if (rows.prepare(p)) {
      T most = 0;
      for (Index i = p * P; i < p * P + rows.rows_in(p); ++i) {
        if (rows.marked(i)) {
          exclude(i);
        } else {
          most = std::max(most, rows.squares(p)[i - p * P]);
        }
      }
      longest[p] = std::sqrt(most) * (T(1) + 4 * std::numeric_limits<T>::epsilon());
    }
    T* const out = product + p * P;
    const B most(largest_square<T>);  // finite, whatever the rows
    rows.products(p, z, 0, 1, [=](Index, Index lane, B c) RECOPS_LAMBDA_INLINE {
      xsimd::max(-most, xsimd::min(most, c)).store_aligned(out + lane);
    });
  }
  T ceiling(Index p) const {
    if (active == 0) return top_relevance[p];
    if (top_base[p] == never<T>) return never<T>;
    const T reach = longest[p] * length;  // no |product| is larger
    return score_of(top_base[p], reach <= std::numeric_limits<T>::max() ? -reach : -std::numeric_limits<T>::infinity());
  }
  RECOPS_INLINE B score(Index i) const {
    if (active == 0) return B::load_aligned(relevance + i);
    return simd::mul_add(B(gain), B(number) - B::load_aligned(product + i), B::load_aligned(base + i));
  }
  T reported(Index i) const { return active == 0 ? base[i] : score_of(base[i], product[i]); }
  bool pickable(Index i) {
    refresh(i / P);
    return relevance[i] > never<T>;
  }
  void take(Index i, bool last) {
    exclude(i);
    if (last) return;
    rows.row(i, fresh());
    advance();
  }
  bool fall_back() const { return false; }
  SelectionStatus over() const { return SelectionStatus::exhausted; }

 private:
  void exclude(Index i) { relevance[i] = base[i] = never<T>; }
  T score_of(T b, T c) const {
    if (gain == T(0)) return b;
    return simd::mul_add(B(gain), B(number) - B(c), B(b)).get(0);
  }
  Index ring() const { return back == std::numeric_limits<Index>::max() ? 1 : back + 1; }
  T* fresh() const { return kept + (options.window > 0 ? shown % ring() : 0) * rows.cols(); }
  /// The row in `fresh()` counts now.
  void advance() {
    const Index cols = rows.cols();
    ++shown;
    active = std::min(shown, back);
    if (options.window == 0) {
      simd::add(kept, z, cols);
      return;
    }
    std::fill(z, z + cols, T(0));  // summed anew: nothing of what left stays behind
    for (Index t = shown - active; t < shown; ++t) simd::add(kept + t % ring() * cols, z, cols);
  }
};

template <class T, class A>
Selection msd_select(const SelectionInput<T>& in, Index cols, const MsdOptions& options, VectorView<std::int32_t> picks,
                     VectorView<T> scores, Workspace& scratch) {
  using Rule = MsdRule<T, A>;
  return select_by_features<Rule, T, A>(in, cols, options.normalize, options.evaluation == SelectionEvaluation::lazy, picks,
                                        scores, scratch, [&](Candidates<T, A>& rows, const T* value, Index most) {
                                          return Rule(in, options, rows, value, picks.size(), most, scratch);
                                        });
}

}  // namespace detail

/// Fills `picks` [k] with the indices of up to k items, best first, and `scores` [k] (or empty) with the scores they won with.
template <Real T, class A = simd::DefaultArch>
Selection msd(const SelectionInput<T>& input, const MsdOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores,
              Workspace& scratch) {
  detail::check_selection_outputs("msd", picks, scores);
  detail::check_msd_options("msd", options);
  const Index cols = detail::check_selection("msd", "relevance", input, picks.size());
  return detail::msd_select<T, A>(input, cols, options, picks, scores, scratch);
}

/// The same with nothing but relevance [N] and features [N, D].
template <Real T>
Selection msd(VectorView<const T> relevance, MatrixView<const T> features, const MsdOptions& options,
              VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  return msd<T>(SelectionInput<T>{.relevance = relevance, .features = features}, options, picks, scores, scratch);
}

/// The same with features packed before; whether they are normalised was decided then.
template <Real T>
Selection msd(VectorView<const T> relevance, PanelsView<T> panels, const MsdOptions& options, VectorView<std::int32_t> picks,
              VectorView<T> scores, Workspace& scratch) {
  return msd<T>(SelectionInput<T>{.relevance = relevance, .panels = panels}, options, picks, scores, scratch);
}

/// R requests at once, on the caller's threads where `scratch` has any: `picks` and `scores` (or empty) [R, k], `counts` (or empty)
/// [R]. Every request gets the picks it would get alone.
template <Real T>
void msd(const SelectionBatch<T>& batch, const MsdOptions& options, MatrixView<std::int32_t> picks, MatrixView<T> scores,
         VectorView<std::int32_t> counts, Workspace& scratch) {
  detail::check_msd_options("msd", options);
  detail::select_batch("msd", "relevance", batch, picks, scores, counts, scratch,
                       [&](const SelectionInput<T>& in, VectorView<std::int32_t> p, VectorView<T> s, Workspace& own) {
                         return detail::msd_select<T, simd::DefaultArch>(in, batch.features.cols(), options, p, s, own);
                       });
}

/// Backward of `msd` with its picks held fixed: `picks` [k] as it wrote them (-1 behind the last), `dscores` [k] the gradient of its
/// scores. Inputs must be features, not panels. O((m + k) D), with a window O((m + k) w D).
///
///     dr_t += lambda g_t      dx_t -= (1 - lambda) c g_t z_t      dx_l -= (1 - lambda) c g_t x_t  for every l that counted
template <Real T>
void msd_backward(const SelectionInput<T>& input, const MsdOptions& options, VectorView<const std::int32_t> picks,
                  VectorView<const T> dscores, const SelectionGradient<T>& gradient, Workspace& scratch) {
  const char* const name = "msd_backward";
  detail::check_msd_options(name, options);
  const Index cols = detail::check_selection(name, "relevance", input, any_size);
  const Index count = detail::check_selection_backward(name, input, cols, picks, dscores, gradient);
  const auto mark = scratch.mark();
  detail::ShownRows<T> shown(input, cols, options.normalize, picks.segment(0, count), scratch);
  const Index back = options.window > 0 ? options.window - 1 : std::numeric_limits<Index>::max();
  T* const z = scratch.take<T>(cols);
  for (Index t = 0; t < count; ++t) {
    const Index at = shown.seen + t, first = back < at ? at - back : 0;
    if (!gradient.relevance.empty()) gradient.relevance[picks[t]] += static_cast<T>(options.lambda) * dscores[t];
    const T g = static_cast<T>((1 - options.lambda) * detail::msd_factor(options, at - first, picks.size())) * dscores[t];
    if (at == first || g == T(0)) continue;
    std::fill(z, z + cols, T(0));
    for (Index l = first; l < at; ++l) {
      simd::add(shown.row(l), z, cols);
      simd::axpy(-g, shown.row(at), shown.drow(l), cols);
    }
    simd::axpy(-g, z, shown.drow(at), cols);
  }
  shown.add_to(input, picks, gradient);
}

}  // namespace RECOPS_ABI
}  // namespace recops
