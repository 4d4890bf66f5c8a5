/// @file   recops/diversity/mmr.hpp
/// @brief  Maximal marginal relevance: pick items one by one, each relevant and unlike what was picked before.
///
///     score_i = lambda · r_i - (1 - lambda) · max_{j picked or in the history} sim(i, j)          pick the largest, repeat
///
///     sim(i, j) = <x_i, x_j>, or a matrix the caller has, or "same category", or a weighted sum of them
///
/// Shapes      relevance [N]   features [N, D]   history [m, D]   allowed [N]   picks, scores [k]: as many picks as places.
///             Batches: features jagged over R requests, picks and scores [R, k], counts [R].
/// First pick  Without a history nothing is similar yet: the most relevant item is picked, its score is lambda · r.
/// Ties        The lowest index. The same picks, bit for bit, for any evaluation, batch, number of threads, panels or features.
/// Edge cases  N = 0, k = 0, D = 0, m = 0, k > N, nothing allowed: fewer picks and a status, never an item twice. Unused places get
///             index -1 and score -infinity.
/// NaN         An item whose relevance or features are not finite (or whose features' sum of squares exceeds a quarter of the largest
///             number) is never picked and influences nothing; such a history row is ignored. An item whose given similarity to a
///             pick is not finite is not picked after it. So no NaN leaves its item.
/// Precision   T throughout; each dot product runs in one lane, in an order that depends on D alone.
/// Cost        Eager: 2 N D (k - 1) flops and a pass over N · D numbers a pick, after one packing pass. Lazy: the first pass, then a
///             few percent of it a pick. Scratch N · D + O(N + k D), with a window w also (w - 1) N. No allocation once warm.
/// Errors      Error for shapes, options and (backward) picks out of range; outputs untouched.
/// Gradient    `mmr_backward`: of relevance, features, history and given similarities, the picks held fixed; *adds*.
/// Reference   Carbonell & Goldstein, The use of MMR, diversity-based reranking for reordering documents, SIGIR 1998.
///             Blocked lazy evaluation after Hemmi et al., Lazy and fast greedy MAP inference for DPP, NeurIPS 2022.
#pragma once
#include <algorithm>
#include <recops/diversity/panels.hpp>
#include <recops/diversity/selection.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// How the picks are found; the picks are the same.
enum class MmrEvaluation {
  lazy,   ///< only items whose last known score could still win (a window, given similarities and categories make it eager)
  eager,  ///< every item's score after every pick: for comparison
};

struct MmrOptions {
  double lambda = 0.5;        ///< weight of relevance, 0 <= lambda <= 1; similarity weighs 1 - lambda ("diversity" elsewhere)
  Index window = 0;           ///< w > 0: only the last w - 1 of history and picks count, so any w in a row differ; 0: all count
  bool normalize = false;     ///< divide feature rows by their lengths: cosine similarity
  double feature_weight = 1;  ///< weights of the three similarities where more than one is given
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
};

/// R requests one behind the other; indices are counted within each request.
template <class T>
struct MmrBatch {
  VectorView<const T> relevance = {};           ///< [total]
  JaggedView<const T> features = {};            ///< R sequences [N_r, D]; its offsets divide the other inputs
  JaggedView<const T> history = {};             ///< R sequences [m_r, D], or empty
  VectorView<const std::uint8_t> allowed = {};  ///< [total] or empty
  IndexView categories = {};                    ///< [total] or empty
  IndexView history_categories = {};            ///< [history total] or empty
};

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

template <class T>
inline constexpr T never = -std::numeric_limits<T>::infinity();

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

template <class T>
MmrProblem<T> check_mmr(const char* operation, const MmrInput<T>& in, const MmrOptions& options) {
  const Index items = in.relevance.size();
  check_size(operation, "relevance", in.relevance, any_size);
  check_option(operation, "relevance", items <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 items",
               static_cast<double>(items));
  const bool packed = in.panels.rows > 0 || in.panels.cols > 0;
  const bool features = in.features.rows() > 0 || in.features.cols() > 0;
  if (packed) {
    check_shape(operation, "features", in.features, 0, 0);
    check_option(operation, "panels", in.panels.rows == items, "as many rows as relevance", static_cast<double>(in.panels.rows));
  } else if (features) {
    check_shape(operation, "features", in.features, items, any_size);
  }
  if (!in.similarity.empty()) check_shape(operation, "similarity", in.similarity, items, items);
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
  for (const double w : {options.feature_weight, options.similarity_weight, options.category_weight})
    check_option(operation, "weight", std::isfinite(w) && std::abs(w) <= 1e6, "a finite weight of at most 1e6", w);
  return {in,
          options,
          items,
          cols,
          history,
          packed ? in.panels.unit : options.normalize,
          static_cast<T>(options.lambda),
          static_cast<T>(options.lambda - 1)};
}

/// The scores of a request while picks are made: `relevance` and `base` = lambda · relevance are -infinity where an item is out.
/// Arrays are padded to whole panels.
template <class T, class A>
struct MmrScores {
  using B = simd::Batch<T, A>;
  static constexpr Index W = simd::lanes<T, A>, P = simd::panel_width<T>;

  T *relevance, *base, *penalty;
  Index size;  // padded
  T weight;

  MmrScores(const MmrProblem<T>& problem, const std::int32_t* order, Index rows, Workspace& scratch)
      : size(panel_count<T>(rows) * P), weight(problem.weight) {
    relevance = scratch.take<T>(size);
    base = scratch.take<T>(size);
    penalty = scratch.take<T>(size);
    for (Index i = 0; i < rows; ++i) {
      const Index item = order ? Index{order[i]} : i;
      const T r = problem.in.relevance.data()[item];
      const bool out = problem.excluded(item);
      relevance[i] = out ? never<T> : r;
      base[i] = out ? never<T> : problem.lambda * r;
    }
    std::fill(relevance + rows, relevance + size, never<T>);
    std::fill(base + rows, base + size, never<T>);
    std::fill(penalty, penalty + size, never<T>);
  }
  void exclude(Index i) { relevance[i] = base[i] = never<T>; }
  /// Takes out what was marked while packing.
  void exclude_marked(const T* squares, Index first, Index count) {
    for (Index i = first; i < first + count; ++i) {
      if (!(squares[i] <= std::numeric_limits<T>::max())) exclude(i);
    }
  }
  RECOPS_INLINE B score(Index i) const {
    return simd::mul_add(B(weight), B::load_aligned(penalty + i), B::load_aligned(base + i));
  }
  /// The score an item of this base would have under this penalty.
  T score_of(T b, T m) const { return simd::mul_add(B(weight), B(m), B(b)).get(0); }
  /// Largest score in [first, first + count), whole vectors.
  RECOPS_INLINE T best(Index first, Index count) const {
    B most(never<T>);
    for (Index i = first; i < first + count; i += W) most = xsimd::max(most, score(i));
    return simd::max_lane(most);
  }
  /// Lowest i in [first, size) with value(i) == wanted; `size` if there is none.
  template <class F>
  RECOPS_INLINE Index find(Index first, Index end, T wanted, F&& value) const {
    for (Index i = first; i < end; i += W) {
      const B v = value(i);
      if (xsimd::any(v == B(wanted))) {
        alignas(64) T lane[W];
        v.store_aligned(lane);
        Index l = 0;
        while (!(lane[l] == wanted)) ++l;
        return i + l;
      }
    }
    return end;
  }
  Index find_score(T wanted) const {
    return find(0, size, wanted, [this](Index i) RECOPS_LAMBDA_INLINE { return score(i); });
  }
  /// The most relevant item; `size` if all are out.
  Index most_relevant() const {
    const T r = simd::max<T, A>(relevance, size);
    if (r == never<T>) return size;
    return find(0, size, r, [this](Index i) RECOPS_LAMBDA_INLINE { return B::load_aligned(relevance + i); });
  }
};

/// penalty = max(penalty, products with `count` vectors) for one panel.
template <class T, class A>
void mmr_penalize(const T* panel, Index cols, const T* queries, Index count, T* penalty) {
  using B = simd::Batch<T, A>;
  simd::panel_products<T, A>(panel, cols, queries, cols, count, [penalty](Index, Index lane, B c) RECOPS_LAMBDA_INLINE {
    xsimd::max(B::load_aligned(penalty + lane), c).store_aligned(penalty + lane);
  });
}

/// Row `i` out of its panel.
template <class T>
void panel_row(const T* panels, Index cols, Index i, T* out) {
  constexpr Index P = simd::panel_width<T>;
  for (Index d = 0; d < cols; ++d) out[d] = panels[(i / P * cols + d) * P + i % P];
}

/// A feature row as the similarity sees it: divided by its length where `unit`. False if it is not finite.
template <class T>
bool mmr_row(const T* row, Index cols, bool unit, T* out) {
  const T square = simd::dot(row, row, cols);
  if (!(square <= largest_square<T>)) return false;
  const T factor = !unit ? T(1) : square <= tiny_square<T> ? T(0) : T(1) / std::sqrt(square);
  for (Index d = 0; d < cols; ++d) out[d] = factor * row[d];
  return true;
}

/// Copies the usable history rows; `source` (or null) receives which they were. Returns their number.
template <class T>
Index mmr_history(const MmrProblem<T>& problem, T* rows, std::int32_t* source) {
  Index kept = 0;
  for (Index h = 0; h < problem.history; ++h) {
    if (problem.has_features() && problem.in.history.rows() > 0 &&
        !mmr_row(problem.in.history.row(h), problem.cols, problem.unit, rows + kept * problem.cols)) {
      continue;
    }
    if (source) source[kept] = static_cast<std::int32_t>(h);
    ++kept;
  }
  return kept;
}

/// Indices of the items that may be picked, roughly from the most relevant down (up to 1024 classes between the extremes), each
/// class in ascending order. Returns their number, or -1 if they already come like that. O(N).
template <class T, class A>
Index mmr_order(const MmrProblem<T>& problem, std::int32_t* order, Workspace& scratch) {
  using B = simd::Batch<T, A>;
  constexpr Index W = simd::lanes<T, A>;
  const Index n = problem.items, classes = n < 4096 ? n / 4 + 1 : Index{1024};
  assert(n >= W);
  const auto mark = scratch.mark();
  T* const value = scratch.take<T>(n);
  for (Index i = 0; i < n; ++i) value[i] = problem.excluded(i) ? never<T> : problem.in.relevance.data()[i];
  Index falling = 1;
  while (falling < n && value[falling] <= value[falling - 1]) ++falling;
  if (falling == n && value[n - 1] != never<T>) return -1;

  const T high = simd::max<T, A>(value, n);
  B least(high);
  for (Index i = 0; i < n; i += W) {
    const B v = B::load_unaligned(value + std::min(i, n - W));
    least = xsimd::select(v == B(never<T>), least, xsimd::min(v, least));
  }
  const T low = -simd::max_lane(-least);

  auto* const begin = scratch.take<std::int32_t>(classes + 2);
  auto* const of = scratch.take<std::int32_t>(n);
  std::fill(begin, begin + classes + 2, 0);
  const T range = high / 2 - low / 2, last = static_cast<T>(classes - 1);  // halves: their difference is finite
  const T scale = range > std::numeric_limits<T>::min() * 4096 ? last / range : T(0);
  for (Index i = 0; i < n; ++i) {
    const T c = value[i] == never<T> ? last + 1 : std::min((high / 2 - value[i] / 2) * scale, last);
    of[i] = static_cast<std::int32_t>(c);
  }
  for (Index i = 0; i < n; ++i) ++begin[of[i] + 1];
  for (Index c = 0; c < classes; ++c) begin[c + 1] += begin[c];
  const Index kept = begin[classes];
  for (Index i = 0; i < n; ++i) order[begin[of[i]]++] = static_cast<std::int32_t>(i);
  return kept;
}

/// Features only, no window. Scores never rise, so a panel's last known best bounds it from above: only panels whose bound reaches
/// the best score known are brought up to date, with all picks they missed at once, and packed when that first happens. Items too
/// irrelevant ever to be picked are so never even read where rows have length 1.
template <class T, class A>
Selection mmr_features(const MmrProblem<T>& problem, VectorView<std::int32_t> picks, T* scores, Workspace& scratch) {
  constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;
  const Index k = picks.size(), cols = problem.cols;
  const bool lazy = problem.options.evaluation == MmrEvaluation::lazy;
  const PanelsView<T> given = problem.in.panels;
  Index rows = problem.items;
  const std::int32_t* order = nullptr;
  if (lazy && given.rows == 0 && rows > P && k + problem.history > 1) {
    auto* const sorted = scratch.take<std::int32_t>(rows);
    if (const Index kept = mmr_order<T, A>(problem, sorted, scratch); kept >= 0) {
      order = sorted;
      rows = kept;
    }
  }
  MmrScores<T, A> s(problem, order, rows, scratch);
  const Index panels = s.size / P;
  T* const own = given.rows > 0 ? nullptr : scratch.take<T>(panels * cols * P);
  T* const own_squares = given.rows > 0 ? nullptr : scratch.take<T>(panels * P);
  const T* const data = given.rows > 0 ? given.data : own;
  const T* const squares = given.rows > 0 ? given.squares : own_squares;
  T* const queries = scratch.take<T>((problem.history + k) * cols);
  Index count = mmr_history(problem, queries, nullptr);

  auto* const applied = scratch.take<std::int32_t>(panels);  // how many of the queries a panel has seen; -1: not packed yet
  T* const bound = scratch.take<T>(panels);                  // no score in the panel exceeds it
  const auto prepare = [&](Index p) {
    if (applied[p] >= 0) return;
    if (own) pack_one_panel<T, A>(problem.in.features, order, rows, p, problem.unit, own + p * cols * P, own_squares + p * P);
    s.exclude_marked(squares, p * P, std::min(P, rows - p * P));
    applied[p] = 0;
  };
  const auto refresh = [&](Index p) {
    prepare(p);
    mmr_penalize<T, A>(data + p * cols * P, cols, queries + applied[p] * cols, count - applied[p], s.penalty + p * P);
    applied[p] = static_cast<std::int32_t>(count);
    bound[p] = s.best(p * P, P);
  };
  const T similarity = problem.bound();
  const bool bounded = similarity <= std::numeric_limits<T>::max();
  for (Index p = 0; p < panels; ++p) {
    applied[p] = -1;
    const T most = simd::max<T, A>(s.base + p * P, P);
    bound[p] = most == never<T> ? never<T> : bounded ? s.score_of(most, -similarity) : std::numeric_limits<T>::infinity();
  }

  if (panels == 0) return {0, SelectionStatus::exhausted};
  for (Index t = 0; t < k; ++t) {
    Index i = s.size;
    T best = never<T>;
    if (count == 0) {  // the first pick, and no history
      for (;;) {
        i = s.most_relevant();
        if (i == s.size) return {t, SelectionStatus::exhausted};
        prepare(i / P);
        if (s.relevance[i] != never<T>) break;
      }
      best = s.base[i];
    } else {
      if (lazy) {  // the most promising panel first: its best score spares others
        const Index top = std::max_element(bound, bound + panels) - bound;
        if (applied[top] != count) refresh(top);
        best = bound[top];
      }
      for (Index p = 0; p < panels; ++p) {
        if (applied[p] != count) {
          if (lazy && bound[p] < best) continue;
          refresh(p);
        }
        best = bound[p] > best ? bound[p] : best;
      }
      if (best == never<T>) return {t, SelectionStatus::exhausted};
      std::int32_t lowest = std::numeric_limits<std::int32_t>::max();
      for (Index p = 0; p < panels; ++p) {  // whoever has that score is up to date; the lowest original index wins
        if (bound[p] != best) continue;
        for (Index v = p * P; v < (p + 1) * P; v += W) {
          const auto score = s.score(v);
          if (!xsimd::any(score == simd::Batch<T, A>(best))) continue;
          alignas(64) T lane[W];
          score.store_aligned(lane);
          for (Index l = 0; l < W; ++l) {
            const std::int32_t item = lane[l] != best ? lowest : order ? order[v + l] : static_cast<std::int32_t>(v + l);
            if (item < lowest) {
              lowest = item;
              i = v + l;
            }
          }
        }
      }
    }
    picks.data()[t] = order ? order[i] : static_cast<std::int32_t>(i);
    if (scores) scores[t] = best;
    s.exclude(i);
    if (t + 1 == k) break;
    if (count > 0) bound[i / P] = s.best(i / P * P, P);
    panel_row(data, cols, i, queries + count * cols);
    ++count;
  }
  return {k, SelectionStatus::ok};
}

/// Maximum over the last `capacity` columns, each N numbers: two stacks. The front holds suffix maxima (so dropping the oldest
/// column is dropping a pointer), the back one running maximum; when the front is empty the back is turned over.
template <class T, class A>
struct SlidingMaximum {
  using B = simd::Batch<T, A>;
  Index size, capacity;
  T *columns, *back;
  Index pushed = 0, front = 0, behind = 0;

  SlidingMaximum(Index n, Index last, Workspace& scratch)
      : size(n), capacity(last), columns(scratch.take<T>(n * last)), back(scratch.take<T>(n)) {}
  T* column(Index i) const { return columns + i % capacity * size; }
  /// Drops the oldest column if there are `capacity`; returns where to write the new one.
  T* make_room() {
    if (front + behind == capacity) {
      if (front == 0) {
        for (Index i = pushed - 2; i >= pushed - behind; --i) {
          for (Index n = 0; n < size; n += simd::lanes<T, A>) {
            xsimd::max(B::load_aligned(column(i) + n), B::load_aligned(column(i + 1) + n)).store_aligned(column(i) + n);
          }
        }
        front = std::exchange(behind, 0);
      }
      --front;
    }
    return column(pushed);
  }
  /// The column is written; `out` = maximum of all.
  void push(T* out) {
    const T* const fresh = column(pushed);
    ++pushed;
    ++behind;
    const T* const oldest = front > 0 ? column(pushed - behind - front) : nullptr;
    for (Index n = 0; n < size; n += simd::lanes<T, A>) {
      B m = B::load_aligned(fresh + n);
      if (behind > 1) m = xsimd::max(m, B::load_aligned(back + n));
      m.store_aligned(back + n);
      if (oldest) m = xsimd::max(m, B::load_aligned(oldest + n));
      m.store_aligned(out + n);
    }
  }
};

/// Any similarities, any window: a column of similarities for every pick.
template <class T, class A>
Selection mmr_general(const MmrProblem<T>& problem, VectorView<std::int32_t> picks, T* scores, Workspace& scratch) {
  using B = simd::Batch<T, A>;
  constexpr Index P = simd::panel_width<T>;
  const auto& in = problem.in;
  const Index k = picks.size(), cols = problem.cols, n = problem.items;
  PanelsView<T> panels = in.panels;
  if (panels.rows == 0 && problem.has_features()) panels = pack_panels_in<T, A>(in.features, nullptr, n, problem.unit, scratch);
  MmrScores<T, A> s(problem, nullptr, n, scratch);
  s.exclude_marked(panels.squares, 0, panels.rows);

  T* const history = scratch.take<T>(problem.history * cols);
  auto* const source = scratch.take<std::int32_t>(problem.history);
  const Index seen = mmr_history(problem, history, source);
  const Index last = problem.options.window == 0 ? std::numeric_limits<Index>::max() : problem.options.window - 1;
  const bool sliding = last < seen + k - 1;
  SlidingMaximum<T, A> window(s.size, sliding ? last : 0, scratch);
  T* const plain = scratch.take<T>(sliding ? 0 : s.size);
  T* const query = scratch.take<T>(cols);
  Index active = 0;

  // The similarities to one row, given its features, its row of the similarity matrix and its category.
  const auto advance = [&](const T* features, const T* similarity, Index category) {
    ++active;
    if (last == 0) return;
    T* const c = sliding ? window.make_room() : plain;
    if (panels.rows > 0) {
      const B weight(static_cast<T>(problem.options.feature_weight));
      for (Index b = 0; b < s.size / P; ++b) {
        simd::panel_products<T, A, 1>(panels.data + b * cols * P, cols, features, 0,
                                      [&](int, Index lane, B v)
                                          RECOPS_LAMBDA_INLINE { (weight * v).store_aligned(c + b * P + lane); });
      }
    } else {
      std::fill(c, c + s.size, T(0));
    }
    if (similarity) {
      const T weight = static_cast<T>(problem.options.similarity_weight);
      for (Index i = 0; i < n; ++i) {
        const T v = weight * similarity[i];
        if (std::abs(v) <= largest_square<T>) {
          c[i] += v;
        } else {
          s.exclude(i);
        }
      }
    }
    if (category >= 0) {
      const T weight = static_cast<T>(problem.options.category_weight);
      for (Index i = 0; i < n; ++i) c[i] += in.categories[i] == category ? weight : T(0);
    }
    if (sliding) {
      window.push(s.penalty);
    } else {
      for (Index i = 0; i < s.size; i += simd::lanes<T, A>)
        xsimd::max(B::load_aligned(s.penalty + i), B::load_aligned(c + i)).store_aligned(s.penalty + i);
    }
  };
  for (Index h = sliding ? std::max(Index{0}, seen - last) : 0; h < seen; ++h) {
    advance(history + h * cols, in.similarity.empty() ? nullptr : in.history_similarity.row(source[h]),
            in.categories.empty() ? -1 : in.history_categories[source[h]]);
  }
  for (Index t = 0; t < k; ++t) {
    Index i;
    T best;
    if (active == 0 || last == 0) {
      i = s.most_relevant();
      if (i == s.size) return {t, SelectionStatus::exhausted};
      best = s.base[i];
    } else {
      best = s.best(0, s.size);
      if (best == never<T>) return {t, SelectionStatus::exhausted};
      i = s.find_score(best);
    }
    picks.data()[t] = static_cast<std::int32_t>(i);
    if (scores) scores[t] = best;
    s.exclude(i);
    if (t + 1 == k) break;
    if (panels.rows > 0) panel_row(panels.data, cols, i, query);
    advance(query, in.similarity.empty() ? nullptr : in.similarity.row(i), in.categories.empty() ? -1 : in.categories[i]);
  }
  return {k, SelectionStatus::ok};
}

/// A checked request.
template <class T, class A>
Selection mmr_select(const MmrProblem<T>& problem, VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  const auto mark = scratch.mark();
  const auto& in = problem.in;
  Selection done;
  if (problem.items == 0 || picks.empty()) {
    done.status = picks.empty() ? SelectionStatus::ok : SelectionStatus::exhausted;
  } else if (problem.options.window > 0 || !in.similarity.empty() || !in.categories.empty() || !problem.has_features() ||
             problem.options.feature_weight != 1) {
    done = mmr_general<T, A>(problem, picks, scores.data(), scratch);
  } else {
    done = mmr_features<T, A>(problem, picks, scores.data(), scratch);
  }
  std::fill(picks.begin() + done.count, picks.end(), -1);
  if (!scores.empty()) std::fill(scores.begin() + done.count, scores.end(), never<T>);
  return done;
}

template <class T>
void check_mmr_outputs(const char* operation, VectorView<std::int32_t> picks, VectorView<T> scores) {
  check_size(operation, "picks", picks, any_size);
  if (!scores.empty()) check_size(operation, "scores", scores, picks.size());
}

}  // namespace detail

/// Fills `picks` [k] with the indices of up to k items, best first, and `scores` [k] (or empty) with the scores they won with.
template <Real T, class A = simd::DefaultArch>
Selection mmr(const MmrInput<T>& input, const MmrOptions& options, VectorView<std::int32_t> picks, VectorView<T> scores,
              Workspace& scratch) {
  const auto problem = detail::check_mmr("mmr", input, options);
  detail::check_mmr_outputs("mmr", picks, scores);
  return detail::mmr_select<T, A>(problem, picks, scores, scratch);
}

/// The same with nothing but relevance [N] and features [N, D].
template <Real T>
Selection mmr(VectorView<const T> relevance, MatrixView<const T> features, const MmrOptions& options,
              VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& scratch) {
  return mmr<T>(MmrInput<T>{.relevance = relevance, .features = features}, options, picks, scores, scratch);
}

/// The same with features packed before; whether they are normalised was decided then.
template <Real T>
Selection mmr(VectorView<const T> relevance, PanelsView<T> panels, const MmrOptions& options, VectorView<std::int32_t> picks,
              VectorView<T> scores, Workspace& scratch) {
  return mmr<T>(MmrInput<T>{.relevance = relevance, .panels = panels}, options, picks, scores, scratch);
}

namespace detail {

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
  return in;
}

template <class T>
void check_mmr_batch(const char* operation, const MmrBatch<T>& batch, const MmrOptions& options) {
  check_jagged(operation, "features", batch.features, any_size, any_size);
  const Index total = batch.features.values().rows(), seen = batch.history.values().rows();
  check_size(operation, "relevance", batch.relevance, total);
  if (!batch.allowed.empty()) check_size(operation, "allowed", batch.allowed, total);
  if (!batch.categories.empty() && batch.categories.size() != total) [[unlikely]]
    fail_size(operation, "categories", total, batch.categories.size(), false);
  if (seen > 0) check_jagged(operation, "history", batch.history, batch.features.size(), batch.features.cols());
  const Index named = batch.categories.empty() ? 0 : seen;
  if (batch.history_categories.size() != named) [[unlikely]]
    fail_size(operation, "history_categories", named, batch.history_categories.size(), false);
  for (Index b = 0; b < batch.features.size(); ++b) check_mmr(operation, mmr_request(batch, b), options);
}

}  // namespace detail

/// R requests at once, on the caller's threads where `scratch` has any: `picks` and `scores` (or empty) [R, k], `counts` (or empty)
/// [R]. Every request gets the picks it would get alone.
template <Real T>
void mmr(const MmrBatch<T>& batch, const MmrOptions& options, MatrixView<std::int32_t> picks, MatrixView<T> scores,
         VectorView<std::int32_t> counts, Workspace& scratch) {
  detail::check_mmr_batch("mmr", batch, options);
  const Index requests = batch.features.size(), k = picks.cols();
  check_shape("mmr", "picks", picks, requests, any_size);
  if (!scores.empty()) check_shape("mmr", "scores", scores, requests, k);
  if (!counts.empty()) check_size("mmr", "counts", counts, requests);
  scratch.parallel_for(requests, [&](Index b, Workspace& own) {
    const auto input = detail::mmr_request(batch, b);
    const auto problem = detail::check_mmr("mmr", input, options);
    const Selection done =
        detail::mmr_select<T, simd::DefaultArch>(problem, VectorView<std::int32_t>(picks.row(b), k),
                                                 scores.empty() ? VectorView<T>() : VectorView<T>(scores.row(b), k), own);
    if (!counts.empty()) counts[b] = static_cast<std::int32_t>(done.count);
  });
}

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
    if (!mmr_row(in.features.row(picks[t]), cols, problem.unit, row)) std::fill(row, row + cols, T(0));
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
