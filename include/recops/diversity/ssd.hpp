/// @file   recops/diversity/ssd.hpp
/// @brief  Sliding spectrum decomposition: pick items one by one by relevance plus the length of what is new in their features.
///
///     score_i = r_i + v · sqrt(rho_i)          rho_i = |x_i|^2 - sum over the kept directions u of <x_i, u>^2
///
///     direction of a pick: its features less what the kept directions explain, divided by the length
///     v = gamma (norm)      or      gamma · product over the picks of their sqrt(rho) (volume)
///
/// Shapes      relevance [N]   features [N, D]   history [m, D]   allowed [N]   picks, scores [k]: as many picks as places.
///             Batches: features jagged over R requests, picks and scores [R, k], counts [R].
/// First pick  Without a history by relevance alone, its score is r; then `volume` starts with gamma · |x|.
/// Window      The directions of the last w items shown are kept (as in published code; windows of mmr and dpp_map count the candidate
///             too). When the oldest is dropped only its own projections come back: younger directions were made without it, so
///             what left the window is still felt. That is the method; for a window that forgets altogether use dpp_map.
/// Ties        The lowest index. The same picks, bit for bit, for any evaluation, batch, number of threads, panels or features.
/// Edge cases  N = 0, k = 0, D = 0, m = 0, k > N, nothing allowed: fewer picks and a status, never an item twice. Unused places get
///             index -1 and score -infinity. An item with nothing new has its relevance as score and adds no direction.
/// NaN         An item whose relevance or features are not finite is never picked and influences nothing; such a history row is ignored.
/// Precision   T. With a window rho is summed anew from the kept projections: nothing drifts.
/// Cost        2 N D k flops and a pass over N · D numbers a pick, window or not; lazy: panels that cannot win are not looked at.
///             Scratch N · D + O(N + k D), with a window w also w · N. No N x D matrix of residuals.
/// Constraints Quotas, windows, pins: constraints.hpp.
/// Errors      Error for shapes and options; outputs untouched.
/// Gradient    `ssd_backward`: of relevance, features and history, the picks held fixed; *adds*.
/// Reference   Huang et al., Sliding spectrum decomposition for diversified recommendation, KDD 2021 (arXiv 2107.05204). `norm` is
///             what production used (SSD*). Without a window, with r = 0, the picks are those of dpp_map with equal qualities.
#pragma once
#include <recops/diversity/dpp_basis.hpp>
#include <recops/diversity/selection_backward.hpp>

namespace recops {

/// What the length of the new part is multiplied with.
enum class SsdMode {
  norm,    ///< gamma
  volume,  ///< gamma times the volume of the list so far: for unit rows it decays, and late picks go by relevance
};

struct SsdOptions {
  double gamma = 1;  ///< weight of diversity, >= 0; 0.1 to 1 where relevance has unit variance
  Index window = 0;  ///< w > 0: directions of the last w items are kept; 0: of all
  SsdMode mode = SsdMode::norm;
  bool normalize = false;  ///< divide feature rows by their lengths
  SelectionEvaluation evaluation = SelectionEvaluation::lazy;
};

inline namespace RECOPS_ABI {
namespace detail {

inline void check_ssd_options(const char* operation, const SsdOptions& options) {
  check_option(operation, "gamma", options.gamma >= 0 && options.gamma <= 1e6, "0 <= gamma <= 1e6", options.gamma);
  check_option(operation, "window", options.window >= 0, "window >= 0", static_cast<double>(options.window));
}

/// Share of a row's squared length up to which nothing new is left: what rounding leaves must not be taken for new.
template <class T>
inline constexpr T ssd_eps = std::is_same_v<T, float> ? T(1e-6) : T(1e-10);

/// No volume exceeds this.
template <class T>
inline constexpr T ssd_most_volume = std::is_same_v<T, float> ? T(1e18) : T(1e150);

template <class T, class A>
struct SsdRule {
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;

  const SsdOptions& options;
  Candidates<T, A>& rows;
  const bool windowed, monotone;
  Index keep;                    // directions at most
  T *relevance, *start, *rho;    // [size]; squared length, and what is left of it
  T* projections;                // window: squared, as [panels][keep][P], place `direction % keep`
  T *top_relevance, *top_start;  // [panels]
  std::int32_t* applied;         // [panels] how many directions a panel has seen
  DppBasis<T, A> basis;
  T *x, *fresh;  // a row and a direction, padded
  Index shown = 0, listed = 0;
  T volume;
  bool first = true;

  static bool takes(T) { return true; }

  SsdRule(const SelectionInput<T>& in, const SsdOptions& o, Candidates<T, A>& candidates, const T* value, Index places,
          Workspace& scratch)
      : options(o),
        rows(candidates),
        windowed(o.window > 0 && o.window < in.history.rows() + places),
        monotone(!windowed && (o.mode == SsdMode::norm || candidates.unit())),
        keep(windowed ? o.window : std::max(Index{1}, in.history.rows() + places)),
        volume(static_cast<T>(o.gamma)) {
    const Index size = rows.size(), seen = in.history.rows(), stride = simd::padded<T>(rows.cols());
    relevance = scratch.take<T>(size);
    start = scratch.take<T>(size);
    rho = scratch.take<T>(size);
    projections = scratch.take<T>(windowed ? size * keep : 0);
    top_relevance = scratch.take<T>(rows.panels());
    top_start = scratch.take<T>(rows.panels());
    applied = scratch.take<std::int32_t>(rows.panels());
    basis = DppBasis<T, A>(rows.cols(), keep, true, T(1), ssd_eps<T>, scratch);
    x = scratch.take<T>(stride);
    fresh = scratch.take<T>(stride);
    std::fill(x, x + stride, T(0));
    for (Index i = 0; i < size; ++i) {
      relevance[i] = i < rows.rows() ? value[rows.item(i)] : never<T>;
      start[i] = rho[i] = 0;
    }
    for (Index p = 0; p < rows.panels(); ++p) {
      applied[p] = 0;
      top_relevance[p] = simd::max<T, A>(relevance + p * P, P);
      top_start[p] = rows.unit() ? T(1) : std::numeric_limits<T>::infinity();
    }
    for (Index h = windowed ? history_begin(in.history, keep) : 0; h < seen; ++h) {
      if (selection_row(in.history.row(h), rows.cols(), rows.unit(), x)) advance();
    }
  }
  bool begin(Index place) {
    const bool before = std::exchange(first, shown == 0);
    return !monotone || place == 0 || before != first;
  }
  void refresh(Index p) {
    prepare(p);
    T* const left = rho + p * P;
    Index from = applied[p];
    applied[p] = static_cast<std::int32_t>(shown);
    if (!windowed) {
      rows.products(p, basis.row(from), basis.stride(), shown - from, [=](Index, Index lane, B c) RECOPS_LAMBDA_INLINE {
        simd::neg_mul_add(c, c, B::load_aligned(left + lane)).store_aligned(left + lane);
      });
      return;
    }
    if (from == shown) return;
    T* const squares = projections + p * keep * P;
    for (from = std::max(from, shown - keep); from < shown;) {
      const Index slot = from % keep, run = std::min(shown - from, keep - slot);
      T* const out = squares + slot * P;
      rows.products(p, basis.row(slot), basis.stride(), run,
                    [=](Index q, Index lane, B c) RECOPS_LAMBDA_INLINE { (c * c).store_aligned(out + q * P + lane); });
      from += run;
    }
    for (Index v = 0; v < P; v += W) {
      B sum = B::load_aligned(start + p * P + v);
      for (Index t = std::max(Index{0}, shown - keep); t < shown; ++t) sum = sum - B::load_aligned(squares + t % keep * P + v);
      sum.store_aligned(left + v);
    }
  }
  T ceiling(Index p) const {
    if (first || top_relevance[p] == never<T>) return top_relevance[p];
    return volume == T(0) ? top_relevance[p] : score_of(top_relevance[p], top_start[p]);
  }
  RECOPS_INLINE B score(Index i) const {
    const B r = B::load_aligned(relevance + i);
    if (first) return r;
    const B left = B::load_aligned(rho + i);
    const auto something = left > B(ssd_eps<T>) * B::load_aligned(start + i);
    return simd::mul_add(B(volume), xsimd::sqrt(xsimd::select(something, left, B(T(0)))), r);
  }
  T reported(Index i) const {
    return first ? relevance[i] : score_of(relevance[i], rho[i] > ssd_eps<T> * start[i] ? rho[i] : T(0));
  }
  bool pickable(Index i) {
    refresh(i / P);
    return relevance[i] > never<T>;
  }
  void take(Index i, bool last) {
    relevance[i] = never<T>;
    if (last) return;
    if (options.mode == SsdMode::volume) {
      volume *= std::sqrt(first ? start[i] : rho[i] > ssd_eps<T> * start[i] ? rho[i] : T(0));
      volume = std::min(volume, ssd_most_volume<T>);  // times sqrt(rho) it stays finite
    }
    rows.row(i, x);
    advance();
  }
  bool fall_back() const { return false; }
  SelectionStatus over() const { return SelectionStatus::exhausted; }

 private:
  T score_of(T r, T left) const { return simd::mul_add(B(volume), xsimd::sqrt(xsimd::max(B(left), B(T(0)))), B(r)).get(0); }
  void prepare(Index p) {
    if (!rows.prepare(p)) return;
    T top = 0;
    for (Index i = p * P; i < p * P + rows.rows_in(p); ++i) {
      if (rows.marked(i)) {
        relevance[i] = never<T>;
      } else {
        start[i] = rho[i] = rows.squares(p)[i - p * P];
        top = std::max(top, start[i]);
      }
    }
    top_start[p] = top;
  }
  /// `x` was shown.
  void advance() {
    basis.residual(x, simd::dot<T, A>(x, x, basis.stride()), fresh);  // zeros where nothing is new
    basis.put(shown % keep, fresh);
    ++shown;
  }
};

template <class T, class A>
Selection ssd_select(const SelectionInput<T>& in, Index cols, const SsdOptions& options, VectorView<std::int32_t> picks,
                     VectorView<T> scores, Workspace& scratch) {
  using Rule = SsdRule<T, A>;
  return select_by_features<Rule, T, A>(
      in, cols, options.normalize, options.evaluation == SelectionEvaluation::lazy, picks, scores, scratch,
      [&](Candidates<T, A>& rows, const T* value, Index most) { return Rule(in, options, rows, value, most, scratch); });
}

}  // namespace detail

/// Fills `picks` [k] with the indices of up to k items, best first, and `scores` [k] (or empty) with the scores they won with.
template <Real T, class A = simd::DefaultArch>
Selection ssd(const SelectionInput<T>& input, const SsdOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores,
              Workspace& scratch) {
  detail::check_selection_outputs("ssd", picks, scores);
  detail::check_ssd_options("ssd", options);
  const Index cols = detail::check_selection("ssd", "relevance", input, picks.size());
  return detail::ssd_select<T, A>(input, cols, options, picks, scores, scratch);
}

/// The same with nothing but relevance [N] and features [N, D].
template <Real T>
Selection ssd(VectorView<const T> relevance, MatrixView<const T> features, const SsdOptions& options,
              VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  return ssd<T>(SelectionInput<T>{.relevance = relevance, .features = features}, options, picks, scores, scratch);
}

/// The same with features packed before; whether they are normalised was decided then.
template <Real T>
Selection ssd(VectorView<const T> relevance, PanelsView<T> panels, const SsdOptions& options, VectorView<std::int32_t> picks,
              VectorView<T> scores, Workspace& scratch) {
  return ssd<T>(SelectionInput<T>{.relevance = relevance, .panels = panels}, options, picks, scores, scratch);
}

/// R requests at once, on the caller's threads where `scratch` has any: `picks` and `scores` (or empty) [R, k], `counts` (or empty)
/// [R]. Every request gets the picks it would get alone.
template <Real T>
void ssd(const SelectionBatch<T>& batch, const SsdOptions& options, MatrixView<std::int32_t> picks, MatrixView<T> scores,
         VectorView<std::int32_t> counts, Workspace& scratch) {
  detail::check_ssd_options("ssd", options);
  detail::select_batch("ssd", "relevance", batch, picks, scores, counts, scratch,
                       [&](const SelectionInput<T>& in, VectorView<std::int32_t> p, VectorView<T> s, Workspace& own) {
                         return detail::ssd_select<T, simd::DefaultArch>(in, batch.features.cols(), options, p, s, own);
                       });
}

/// Backward of `ssd` with its picks held fixed: `picks` [k] as it wrote them (-1 behind the last), `dscores` [k] the gradient of its
/// scores, through all directions that were kept. Inputs must be features, not panels. O((m + k) w D), without a window O((m + k)^2 D).
template <Real T>
void ssd_backward(const SelectionInput<T>& input, const SsdOptions& options, VectorView<const std::int32_t> picks,
                  VectorView<const T> dscores, const SelectionGradient<T>& gradient, Workspace& scratch) {
  const char* const name = "ssd_backward";
  detail::check_ssd_options(name, options);
  const Index cols = detail::check_selection(name, "relevance", input, any_size);
  const Index count = detail::check_selection_backward(name, input, cols, picks, dscores, gradient);
  const auto mark = scratch.mark();
  detail::ShownRows<T> shown(input, cols, options.normalize, picks.segment(0, count), scratch);
  const Index keep = options.window > 0 ? options.window : std::numeric_limits<Index>::max(), total = shown.seen + count;
  const Index from = std::max(Index{0}, shown.seen - keep);  // older history was never looked at
  const auto oldest = [&](Index l) { return std::max(from, keep < l ? l - keep : Index{0}); };
  // Directions u_l = e_l / |e_l|, e_l = x_l - sum_b c_lb u_b, c_lb = <x_l, u_b>; rho_l = |x_l|^2 - sum_b c_lb^2.
  T* const u = scratch.take<T>(total * cols);
  T* const du = scratch.take<T>(total * cols);
  T* const de = scratch.take<T>(cols);
  T* const length = scratch.take<T>(total);
  T* const rho = scratch.take<T>(total);
  T* const volume = scratch.take<T>(count + 1);
  std::fill(du, du + total * cols, T(0));
  volume[0] = static_cast<T>(options.gamma);
  for (Index l = from; l < total; ++l) {
    const T* const x = shown.row(l);
    T* const e = u + l * cols;
    std::copy_n(x, cols, e);
    const T square = simd::dot(x, x, cols);
    rho[l] = square;
    for (Index b = oldest(l); b < l; ++b) {
      const T c = simd::dot(x, u + b * cols, cols);
      rho[l] -= c * c;
      simd::axpy(-simd::dot(e, u + b * cols, cols), u + b * cols, e, cols);
    }
    const T left = simd::dot(e, e, cols);
    length[l] = left > detail::ssd_eps<T> * square ? std::sqrt(left) : T(0);
    if (!(rho[l] > detail::ssd_eps<T> * square)) rho[l] = 0;
    for (Index d = 0; d < cols; ++d) e[d] = length[l] > T(0) ? e[d] / length[l] : T(0);
    if (l >= shown.seen) {
      const Index t = l - shown.seen;
      volume[t + 1] =
          options.mode == SsdMode::volume ? std::min(volume[t] * std::sqrt(rho[l]), detail::ssd_most_volume<T>) : volume[t];
    }
  }
  T dvolume = 0;  // of the volume after the place
  for (Index l = total; l-- > from;) {
    const T *const x = shown.row(l), *const own = u + l * cols;
    T *const dx = shown.drow(l), *const g = du + l * cols;
    T drho = 0;
    if (l >= shown.seen) {
      const Index t = l - shown.seen;
      const bool first = l == from;
      const T score = dscores[t], root = std::sqrt(rho[l]);
      if (options.mode == SsdMode::volume && volume[t] * root > detail::ssd_most_volume<T>) dvolume = 0;  // it was cut there
      if (!gradient.relevance.empty()) gradient.relevance[picks[t]] += score;
      T droot = first ? T(0) : score * volume[t];
      T before = first ? T(0) : score * root;
      if (options.mode == SsdMode::volume) {
        droot += dvolume * volume[t];
        before += dvolume * root;
      } else {
        before += dvolume;
      }
      dvolume = before;
      if (root > T(0)) drho = droot / (2 * root);
    }
    const T inverse = length[l] > T(0) ? T(1) / length[l] : T(0);
    const T along = simd::dot(g, own, cols);
    for (Index d = 0; d < cols; ++d) de[d] = (g[d] - along * own[d]) * inverse;
    simd::axpy(2 * drho, x, dx, cols);
    simd::add(de, dx, cols);
    for (Index b = oldest(l); b < l; ++b) {
      const T* const ub = u + b * cols;
      const T c = simd::dot(x, ub, cols), dc = -2 * drho * c - simd::dot(de, ub, cols);
      simd::axpy(-c, de, du + b * cols, cols);
      simd::axpy(dc, x, du + b * cols, cols);
      simd::axpy(dc, ub, dx, cols);
    }
  }
  shown.add_to(input, picks, gradient);
}

}  // namespace RECOPS_ABI
}  // namespace recops
