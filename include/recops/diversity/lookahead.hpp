/// @file   recops/diversity/lookahead.hpp
/// @brief  Plans the slots of a swipe feed together: what an item earns, whether the user goes on after it, and what can still come then.
///         In two stages, so that an expensive predictor that knows the context is asked about few items only.
///
///     stage 1   h_i = r_i + c_i V_next        on context-free estimates of all n items; the most promising ones go on
///     stage 2   beam search over the slots with r(i | prefix), c(i | prefix) from the caller's predictor:
///               G' = G + S r(i | prefix),   S' = S c(i | prefix),   priority G' + S' H[slots left]
///
/// H[q] is what the best q items are worth without context (`plan_sequence`), an optimistic completion where context only takes away.
/// What a state has earned is G, what is left of the user S. The prefix of the best context-free plan always comes along, so that the
/// result is never worth less than that. With the beam as wide as there are prefixes it is the best list.
///
/// Shapes      rewards, continuations [n] (context-free)   picks [m].
/// Predictor   `predict(const LookaheadQuery&, VectorView<T> rewards, VectorView<T> continuations)` fills one number per asked pair.
/// Ties        The lexicographically smaller prefix (of item numbers).
/// Edge cases  m = 0, n = 0, n < m: as many slots as there are usable items; unused picks become -1.
/// NaN         An item with an estimate that is not finite (or c outside [0, 1]) is not used; a prediction that is not finite, or of such
///             a c, ends that continuation, and nothing else.
/// Precision   Sums in double.
/// Cost        Stage 1 O(n log n + n m). Stage 2 m · (beam + 1) · candidates predictions, at most. No allocation once warm.
/// Use         Plan, show the first item (or two), and plan again with what has happened: the predictor may know it.
/// Reference   Dual-stage look-ahead of STCRank (arXiv 2601.10027); formulas are our reconstruction.
#pragma once
#include <recops/diversity/sequence_value.hpp>
#include <recops/simd/top_k.hpp>

namespace recops {

struct LookaheadOptions {
  Index candidates = 0;  ///< items that reach stage 2; 0: four per slot
  Index beam = 8;        ///< prefixes kept after every slot
  double tail = 0;       ///< what a user who has seen all slots is still worth
  double tolerance = 0;  ///< a prefix with less than this left to earn is completed without asking the predictor
};

/// Pairs to predict: item `items[j]`, shown after the items of row `parents[j]` of `prefixes`.
struct LookaheadQuery {
  MatrixView<const std::int32_t> prefixes;  ///< [P, k]: k items each, in the order shown
  VectorView<const std::int32_t> parents;   ///< [Q]
  VectorView<const std::int32_t> items;     ///< [Q]
};

/// What was planned.
struct LookaheadPlan {
  Index count = 0;        ///< slots filled
  double value = 0;       ///< what the predictor expects of the list, the tail included
  Index predictions = 0;  ///< pairs it was asked for
};

inline namespace RECOPS_ABI {

/// h_i = r_i + c_i · next_value: what item i is worth in the first slot, if the rest of the visit is worth next_value. Scores [n] may be
/// either input.
template <Real T>
void lookahead_scores(VectorView<const T> rewards, VectorView<const T> continuations, double next_value, VectorView<T> scores) {
  detail::check_plan("lookahead_scores", rewards, continuations);
  check_size("lookahead_scores", "scores", scores, rewards.size());
  for (Index i = 0; i < scores.size(); ++i) scores[i] = rewards[i] + continuations[i] * static_cast<T>(next_value);
}

namespace detail {

/// Stage 1: the items of the best context-free plan, then by turns the best of h and the first by r / (1 - c), until `most` are found;
/// in rising order of their numbers.
template <class T>
Index lookahead_candidates(VectorView<const T> rewards, VectorView<const T> continuations, const std::int32_t* sorted,
                           Index usable, VectorView<const std::int32_t> plan, double next_value, Index most, std::int32_t* out,
                           Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = rewards.size();
  double* const h = ws.take<double>(n);
  auto* const by_score = ws.take<std::int32_t>(n);
  auto* const in = ws.take<std::uint8_t>(n);
  std::fill_n(in, n, std::uint8_t{0});
  std::fill_n(h, n, std::numeric_limits<double>::quiet_NaN());
  for (Index s = 0; s < usable; ++s) {
    const std::int32_t i = sorted[s];
    h[i] = static_cast<double>(rewards[i]) + static_cast<double>(continuations[i]) * next_value;
  }
  simd::argsort<double>(h, n, Order::descending, by_score, ws);
  Index count = 0;
  const auto add = [&](std::int32_t i) {
    if (count < most && !in[i]) {
      in[i] = 1;
      ++count;
    }
  };
  for (const std::int32_t i : plan) add(i);
  for (Index s = 0; s < usable && count < most; ++s) {
    add(by_score[s]);
    add(sorted[s]);
  }
  for (Index i = 0, place = 0; i < n; ++i)
    if (in[i]) out[place++] = static_cast<std::int32_t>(i);
  return count;
}

/// States of one slot: prefixes in lexicographic order, what they earned, what is left, which candidates they used.
struct Beam {
  MatrixView<std::int32_t> prefix;  // [beam, m]
  MatrixView<std::uint8_t> used;    // [beam, candidates]
  double *earned, *left;
  Index count = 0;
  Beam(Index beam, Index m, Index candidates, Workspace& ws)
      : prefix(ws.matrix<std::int32_t>(beam, m)),
        used(ws.matrix<std::uint8_t>(beam, candidates)),
        earned(ws.take<double>(beam)),
        left(ws.take<double>(beam)) {}
};

}  // namespace detail

/// Fills picks [m] with the plan.
template <Real T, class Predict>
LookaheadPlan lookahead(VectorView<const T> rewards, VectorView<const T> continuations, const LookaheadOptions& options,
                        Predict&& predict, VectorView<std::int32_t> picks, Workspace& ws) {
  constexpr const char* name = "lookahead";
  detail::check_plan(name, rewards, continuations);
  check_size(name, "picks", picks, any_size);
  check_option(name, "candidates", options.candidates >= 0, "candidates >= 0", static_cast<double>(options.candidates));
  check_option(name, "beam", options.beam >= 1 && options.beam < Index{1} << 31, "1 to 2^31 - 1 prefixes",
               static_cast<double>(options.beam));
  check_option(name, "tail", std::isfinite(options.tail), "a finite number", options.tail);
  check_option(name, "tolerance", options.tolerance >= 0, "tolerance >= 0", options.tolerance);
  const auto mark = ws.mark();
  LookaheadPlan done{0, options.tail, 0};
  const Index n = rewards.size();
  auto* const sorted = ws.take<std::int32_t>(n);
  const Index usable = detail::sequence_order(rewards, continuations, sorted, ws), m = std::min(picks.size(), usable);
  if (m == 0) {
    std::fill(picks.begin(), picks.end(), -1);
    return done;
  }

  const VectorView<std::int32_t> plan = ws.vector<std::int32_t>(m);
  const VectorView<T> worth = ws.vector<T>(m + 1);
  plan_sequence<T>(rewards, continuations, options.tail, plan, worth, ws);
  const Index most = std::min(usable, std::max(m, options.candidates > 0 ? options.candidates : 4 * m));
  auto* const item = ws.take<std::int32_t>(most);
  detail::lookahead_candidates(rewards, continuations, sorted, usable, VectorView<const std::int32_t>(plan),
                               static_cast<double>(worth[m - 1]), most, item, ws);
  auto* const place_of = ws.take<std::int32_t>(n);  // among the candidates, or -1
  std::fill_n(place_of, n, -1);
  for (Index j = 0; j < most; ++j) place_of[item[j]] = static_cast<std::int32_t>(j);

  // No slot can have more prefixes than there are ordered selections: a beam without limit takes no memory for what cannot be.
  Index width = 1;
  for (Index t = 0; t < m && width < options.beam; ++t) width *= most - t;
  width = std::min(width, options.beam);
  check_option(name, "beam", (width + 1) * most < Index{1} << 31, "beam * candidates below 2^31",
               static_cast<double>(width * most));
  detail::Beam states(width + 1, m, most, ws), next(width + 1, m, most, ws);
  const Index room = (width + 1) * most;
  auto *const parent = ws.take<std::int32_t>(room), *const asked = ws.take<std::int32_t>(room),
              *const child = ws.take<std::int32_t>(room), *const keep = ws.take<std::int32_t>(width + 1);
  T *const r = ws.take<T>(room), *const c = ws.take<T>(room);
  double *const earned = ws.take<double>(room), *const left = ws.take<double>(room), *const priority = ws.take<double>(room);
  states.count = 1;
  Index on_plan = 0;  // the state that follows the context-free plan, or -1
  states.earned[0] = 0;
  states.left[0] = 1;
  std::fill_n(states.used.row(0), most, std::uint8_t{0});
  for (Index slot = 0; slot < m; ++slot) {
    // Children in lexicographic order; `asked` says where a child's prediction is, -1 for one that needs none.
    Index children = 0, queries = 0;
    const auto worth_of_rest = static_cast<double>(worth[m - slot]);
    for (Index s = 0; s < states.count; ++s) {
      const bool over = options.tolerance > 0 && states.left[s] * worth_of_rest < options.tolerance;
      if (over) {
        for (Index o = 0; o < usable; ++o) {
          const std::int32_t i = sorted[o];
          if (place_of[i] < 0 || states.used(s, place_of[i])) continue;
          parent[children] = static_cast<std::int32_t>(s);
          child[children] = i;
          asked[children++] = -1;
          break;
        }
        continue;
      }
      for (Index j = 0; j < most; ++j) {
        if (states.used(s, j)) continue;
        parent[children] = static_cast<std::int32_t>(s);
        child[children] = item[j];
        asked[children++] = 0;
        ++queries;
      }
    }
    // The predictor sees the pairs it is asked for one behind the other.
    const auto inner = ws.mark();
    const VectorView<std::int32_t> query_parent = ws.vector<std::int32_t>(queries), query_item = ws.vector<std::int32_t>(queries);
    for (Index e = 0, q = 0; e < children; ++e) {
      if (asked[e] < 0) continue;
      query_parent[q] = parent[e];
      query_item[q] = child[e];
      asked[e] = static_cast<std::int32_t>(q++);
    }
    if (queries > 0) {
      const MatrixView<const std::int32_t> prefixes(states.prefix.data(), states.count, slot, m);
      predict(LookaheadQuery{prefixes, query_parent, query_item}, VectorView<T>(r, queries), VectorView<T>(c, queries));
    }
    done.predictions += queries;
    for (Index e = 0; e < children; ++e) {
      const Index s = parent[e];
      earned[e] = states.earned[s];
      left[e] = states.left[s];
      bool possible = true;
      if (asked[e] >= 0) {
        const auto re = static_cast<double>(r[asked[e]]), ce = static_cast<double>(c[asked[e]]);
        possible = !std::isnan(detail::sequence_index(re, ce));
        earned[e] += left[e] * re;
        left[e] *= ce;
      }
      priority[e] =
          possible ? earned[e] + left[e] * static_cast<double>(worth[m - slot - 1]) : -std::numeric_limits<double>::infinity();
    }
    Index kept = simd::top_k<double>(priority, children, std::min(width, children), Order::descending, nullptr, keep, ws);
    while (kept > 0 && priority[keep[kept - 1]] == -std::numeric_limits<double>::infinity()) --kept;
    Index follows = -1;
    for (Index e = 0; e < children && follows < 0; ++e)
      if (parent[e] == on_plan && child[e] == plan[slot] && priority[e] > -std::numeric_limits<double>::infinity()) follows = e;
    if (follows >= 0 && std::find(keep, keep + kept, follows) == keep + kept) keep[kept++] = static_cast<std::int32_t>(follows);
    if (kept == 0) break;          // the predictor ends them all: what is planned so far stands
    std::sort(keep, keep + kept);  // lexicographic again
    on_plan = follows < 0 ? -1 : std::find(keep, keep + kept, follows) - keep;
    next.count = kept;
    for (Index t = 0; t < kept; ++t) {
      const Index e = keep[t], s = parent[e];
      std::copy_n(states.prefix.row(s), slot, next.prefix.row(t));
      std::copy_n(states.used.row(s), most, next.used.row(t));
      next.prefix(t, slot) = child[e];
      next.used(t, place_of[child[e]]) = 1;
      next.earned[t] = earned[e];
      next.left[t] = left[e];
    }
    std::swap(states, next);
    done.count = slot + 1;
  }
  Index best = 0;
  const auto value = [&](Index s) { return states.earned[s] + states.left[s] * options.tail; };
  for (Index s = 1; s < states.count; ++s)
    if (value(s) > value(best)) best = s;
  std::fill(std::copy_n(states.prefix.row(best), done.count, picks.begin()), picks.end(), -1);
  done.value = value(best);
  return done;
}

}  // namespace RECOPS_ABI
}  // namespace recops
