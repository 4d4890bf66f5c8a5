/// @file   recops/attention/sim.hpp
/// @brief  SIM: search a long history for what matters to a candidate, by learned inner product or by category, then attend exactly.
///
///     soft search    r_nj = (Wk e_j) . (Wq q_n); keeps the k largest           trained through U_n = sum_j r_nj e_j (an auxiliary head)
///     hard search    keeps the k latest behaviours of the candidate's category
///     exact unit     multi-head attention of q_n over [e_j, embedding of the bucket of now - time_j] for the j that were kept
///
/// U is linear in the history twice over: U_n = (Wk^T Wq q_n) (E^T E), so one D x D Gram matrix a user replaces its L behaviours, in
/// backward too: dE = E (w^T g + g^T w) with w = q Wq^T Wk and g the gradient of U. Each user takes whichever form has fewer flops;
/// Gram matrices may be kept with the user. See docs/history_search.md.
///
/// Shapes      candidates [total_N, Dq]   history [total_L, D]   query [da, Dq]   key [da, D]   pooled [total_N, D]   grams [B D, D]
///             indices [total_N, k]: positions in the user's history, best first, -1 in places left over
/// Edge cases  A user without behaviours: zeros, no positions.   A category the user never saw: no positions.   Nothing kept: what the
///             attention layer gives for nothing, its output bias.
/// NaN         stays with its user (soft search ranks NaN behind every number).
/// Cost        pooled: min(4 N L D, 2 (L + N) D^2) flops a user, 2 N D^2 with a kept Gram matrix. Soft search 2 N L da. Hard search
///             log(categories) + k a candidate; building its index: two to four passes over the positions.
/// Errors      Error if shapes, offsets or positions do not fit; outputs untouched.
/// Source      Pi et al., arXiv 2006.05639; the Gram form is ours.
#pragma once
#include <recops/attention/selected_attention.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/nn/multihead_attention.hpp>
#include <recops/nn/time_gap_embedding.hpp>
#include <recops/simd/batched_top_k.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

inline constexpr Index sim_block = 512;  // behaviours between two products: what is between them stays in L2

template <class T>
void check_soft_search(const char* name, const JaggedView<const T>& candidates, const JaggedView<const T>& history,
                       MatrixView<const T> query, MatrixView<const T> key) {
  check_jagged(name, "candidates", candidates, any_size, any_size);
  check_jagged(name, "history", history, candidates.size(), any_size);
  check_shape(name, "query", query, any_size, candidates.cols());
  check_shape(name, "key", key, query.rows(), history.cols());
}

/// gram `[D, D]` = E^T E
template <class T>
void gram(MatrixView<const T> e, MatrixView<T> out, Workspace& ws) {
  for (Index r = 0; r < out.rows() && e.rows() == 0; ++r) std::fill_n(out.row(r), out.cols(), T(0));
  for (Index l = 0; l < e.rows(); l += sim_block) {
    const auto block = e.middle_rows(l, std::min(sim_block, e.rows() - l));
    simd::gemm<T>(simd::transposed(block), simd::plain(block), {.accumulate = l > 0}, out, ws);
  }
}

/// w `[N, D]` = q Wq^T Wk: the query in the space of raw behaviours.
template <class T>
void absorb_query(MatrixView<const T> q, MatrixView<const T> query, MatrixView<const T> key, MatrixView<T> inner, MatrixView<T> w,
                  Workspace& ws) {
  simd::gemm<T>(simd::plain(q), simd::transposed(query), {}, inner, ws);
  simd::gemm<T>(simd::plain(MatrixView<const T>(inner)), simd::plain(key), {}, w, ws);
}

inline bool gram_pays(Index n, Index l, Index d, Index direct, Index by_gram) {
  return static_cast<double>(direct) * static_cast<double>(n) * static_cast<double>(l) >
         static_cast<double>(d) * (2.0 * static_cast<double>(l) + static_cast<double>(by_gram) * static_cast<double>(n));
}

}  // namespace detail

/// grams `[B D, D]`: E^T E of user b at rows [b D, (b + 1) D). All that `soft_search_pooled` needs of a history.
template <Real T>
void soft_search_grams(JaggedView<const T> history, MatrixView<T> grams, Workspace& ws) {
  constexpr const char* name = "soft_search_grams";
  check_jagged(name, "history", history, any_size, any_size);
  const Index d = history.cols();
  check_shape(name, "grams", grams, history.size() * d, d);
  ws.parallel_for(history.size(),
                  [&](Index b, Workspace& scratch) { detail::gram<T>(history[b], grams.middle_rows(b * d, d), scratch); });
}

/// pooled `[total_N, D]`: U_n = sum_j r_nj e_j. `grams` are those of `soft_search_grams`, or empty: then each user takes the cheaper
/// form; with them the behaviours are not read.
template <Real T>
void soft_search_pooled(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> query,
                        MatrixView<const T> key, MatrixView<const T> grams, MatrixView<T> pooled, Workspace& ws) {
  constexpr const char* name = "soft_search_pooled";
  detail::check_soft_search(name, candidates, history, query, key);
  const Index total = candidates.values().rows(), d = history.cols();
  if (!grams.empty()) check_shape(name, "grams", grams, history.size() * d, d);
  check_shape(name, "pooled", pooled, total, d);
  if (pooled.empty()) return;
  const auto mark = ws.mark();
  const MatrixView<T> inner = ws.matrix<T>(total, query.rows()), w = ws.matrix<T>(total, d);
  detail::absorb_query<T>(candidates.values(), query, key, inner, w, ws);
  ws.parallel_for(candidates.size(), [&](Index b, Workspace& scratch) {
    const auto own = scratch.mark();
    const Index n = candidates.length(b), l = history.length(b);
    const MatrixView<T> out = pooled.middle_rows(candidates.begin(b), n);
    const MatrixView<const T> wb = w.middle_rows(candidates.begin(b), n), e = history[b];
    if (n == 0) return;
    if (!grams.empty() || detail::gram_pays(n, l, d, 4, 2)) {
      MatrixView<const T> g = grams;
      if (grams.empty()) {
        const MatrixView<T> made = scratch.matrix<T>(d, d);
        detail::gram<T>(e, made, scratch);
        g = made;
      } else {
        g = grams.middle_rows(b * d, d);
      }
      simd::gemm<T>(simd::plain(wb), simd::plain(g), {}, out, scratch);
      return;
    }
    for (Index i = 0; i < n && l == 0; ++i) std::fill_n(out.row(i), d, T(0));
    const MatrixView<T> r = scratch.matrix<T>(n, std::min(l, detail::sim_block));
    for (Index at = 0; at < l; at += detail::sim_block) {
      const auto block = e.middle_rows(at, std::min(detail::sim_block, l - at));
      const MatrixView<T> scores = r.middle_cols(0, block.rows());
      simd::gemm<T>(simd::plain(wb), simd::transposed(block), {}, scores, scratch);
      simd::gemm<T>(simd::plain(MatrixView<const T>(scores)), simd::plain(block), {.accumulate = at > 0}, out, scratch);
    }
  });
}

/// Adds to the gradients of candidates, history, query and key (empty: not wanted), given that of `pooled`. `grams` as in forward.
template <Real T>
void soft_search_pooled_backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> query,
                                 MatrixView<const T> key, MatrixView<const T> grams, MatrixView<const T> dpooled,
                                 MatrixView<T> dcandidates, MatrixView<T> dhistory, MatrixView<T> dquery, MatrixView<T> dkey,
                                 Workspace& ws) {
  constexpr const char* name = "soft_search_pooled_backward";
  detail::check_soft_search(name, candidates, history, query, key);
  const Index total = candidates.values().rows(), d = history.cols();
  if (!grams.empty()) check_shape(name, "grams", grams, history.size() * d, d);
  check_shape(name, "dpooled", dpooled, total, d);
  if (!dcandidates.empty()) check_shape(name, "dcandidates", dcandidates, total, candidates.cols());
  if (!dhistory.empty()) check_shape(name, "dhistory", dhistory, history.values().rows(), d);
  if (!dquery.empty()) check_shape(name, "dquery", dquery, query.rows(), query.cols());
  if (!dkey.empty()) check_shape(name, "dkey", dkey, key.rows(), key.cols());
  if (dpooled.empty()) return;
  const auto mark = ws.mark();
  const MatrixView<T> inner = ws.matrix<T>(total, query.rows()), w = ws.matrix<T>(total, d), dw = ws.matrix<T>(total, d);
  detail::absorb_query<T>(candidates.values(), query, key, inner, w, ws);
  ws.parallel_for(candidates.size(), [&](Index b, Workspace& scratch) {
    const auto own = scratch.mark();
    const Index n = candidates.length(b), l = history.length(b), first = candidates.begin(b);
    const MatrixView<const T> wb = w.middle_rows(first, n), g = dpooled.middle_rows(first, n), e = history[b];
    const MatrixView<T> to = dw.middle_rows(first, n);
    if (n == 0) return;
    for (Index i = 0; i < n && l == 0; ++i) std::fill_n(to.row(i), d, T(0));
    if (l == 0) return;
    const MatrixView<T> de = dhistory.empty() ? dhistory : dhistory.middle_rows(history.begin(b), l);
    if (!grams.empty() || detail::gram_pays(n, l, d, 10, 6)) {
      const MatrixView<T> made = scratch.matrix<T>(grams.empty() ? d : 0, d);
      if (grams.empty()) detail::gram<T>(e, made, scratch);
      simd::gemm<T>(simd::plain(g), simd::plain(grams.empty() ? MatrixView<const T>(made) : grams.middle_rows(b * d, d)), {}, to,
                    scratch);
      if (de.empty()) return;
      const MatrixView<T> s = scratch.matrix<T>(d, d);  // w^T g + g^T w
      simd::gemm<T>(simd::transposed(wb), simd::plain(g), {}, s, scratch);
      simd::gemm<T>(simd::transposed(g), simd::plain(wb), {.accumulate = true}, s, scratch);
      simd::gemm<T>(simd::plain(e), simd::plain(MatrixView<const T>(s)), {.accumulate = true}, de, scratch);
      return;
    }
    // dE += r^T g + dr^T w, as one product of the two stacked.
    const MatrixView<T> scores = scratch.matrix<T>(2 * n, std::min(l, detail::sim_block)), sides = scratch.matrix<T>(2 * n, d);
    for (Index i = 0; i < n; ++i) {
      std::copy_n(g.row(i), d, sides.row(i));
      std::copy_n(wb.row(i), d, sides.row(n + i));
    }
    for (Index at = 0; at < l; at += detail::sim_block) {
      const auto block = e.middle_rows(at, std::min(detail::sim_block, l - at));
      const MatrixView<T> both = scores.middle_cols(0, block.rows()), r = both.middle_rows(0, n), dr = both.middle_rows(n, n);
      simd::gemm<T>(simd::plain(g), simd::transposed(block), {}, dr, scratch);
      simd::gemm<T>(simd::plain(MatrixView<const T>(dr)), simd::plain(block), {.accumulate = at > 0}, to, scratch);
      if (de.empty()) continue;
      simd::gemm<T>(simd::plain(wb), simd::transposed(block), {}, r, scratch);
      simd::gemm<T>(simd::transposed(MatrixView<const T>(both)), simd::plain(MatrixView<const T>(sides)), {.accumulate = true},
                    de.middle_rows(at, block.rows()), scratch);
    }
  });
  const MatrixView<const T> grad = dw;
  if (!dkey.empty())
    simd::gemm<T>(simd::transposed(MatrixView<const T>(inner)), simd::plain(grad), {.accumulate = true}, dkey, ws);
  if (dquery.empty() && dcandidates.empty()) return;
  simd::gemm<T>(simd::plain(grad), simd::transposed(key), {}, inner, ws);
  if (!dquery.empty())
    simd::gemm<T>(simd::transposed(MatrixView<const T>(inner)), simd::plain(candidates.values()), {.accumulate = true}, dquery,
                  ws);
  if (!dcandidates.empty())
    simd::gemm<T>(simd::plain(MatrixView<const T>(inner)), simd::plain(query), {.accumulate = true}, dcandidates, ws);
}

/// Soft search: indices `[total_N, k]` and scores (alike, or empty) of the keys `[total_L, da]` with the largest products with each
/// query `[total_N, da]`, largest first, ties to the older. Keys are projected behaviours, kept with the items.
template <Real T>
void soft_search(JaggedView<const T> queries, JaggedView<const T> keys, MatrixView<std::int32_t> indices, MatrixView<T> scores,
                 Workspace& ws) {
  constexpr const char* name = "soft_search";
  check_jagged(name, "queries", queries, any_size, any_size);
  check_jagged(name, "keys", keys, queries.size(), queries.cols());
  const Index total = queries.values().rows(), users = queries.size();
  check_shape(name, "indices", indices, total, any_size);
  if (!scores.empty()) check_shape(name, "scores", scores, total, indices.cols());
  check_option(name, "keys", keys.values().rows() < Index{1} << 31, "fewer than 2^31 rows",
               static_cast<double>(keys.values().rows()));
  // Queries of a user share a pass over its keys: all of them, where there is one thread.
  const Index chunk = ws.workers() > 1 ? 16 : std::max(Index{1}, total);
  const auto mark = ws.mark();
  auto* const first = ws.take<Index>(users + 1);
  first[0] = 0;
  for (Index b = 0; b < users; ++b) first[b + 1] = first[b] + (queries.length(b) + chunk - 1) / chunk;
  ws.parallel_for(first[users], [&](Index task, Workspace& scratch) {
    const auto own = scratch.mark();
    const Index b = detail::user_of(first, users, task), q0 = (task - first[b]) * chunk;
    const Index n = std::min(chunk, queries.length(b) - q0), row = queries.begin(b) + q0;
    const VectorView<Index> counts = scratch.vector<Index>(n);
    std::fill_n(counts.data(), n, indices.cols());
    simd::scan_top_k<T>(queries.values().middle_rows(row, n), keys[b], counts, indices.middle_rows(row, n),
                        scores.empty() ? scores : scores.middle_rows(row, n), scratch);
  });
}

/// The soft search unit: its two projections, trained through `pooled`.
template <Real T>
struct SoftSearch {
  Linear<T> query;  ///< [da, Dq], no bias
  Linear<T> key;    ///< [da, D], no bias

  SoftSearch() = default;
  SoftSearch(Index candidate_width, Index history_width, Index inner, Random& random)
      : query(checked_size("SoftSearch", "candidate_width", candidate_width), checked_size("SoftSearch", "inner", inner), random,
              false),
        key(checked_size("SoftSearch", "history_width", history_width), inner, random, false) {}

  static constexpr auto fields() { return std::tuple{layer("query", &SoftSearch::query), layer("key", &SoftSearch::key)}; }

  /// U `[total_N, D]`; see `soft_search_pooled`.
  void pooled(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Workspace& ws) const {
    soft_search_pooled<T>(candidates, history, query.weight, key.weight, {}, y, ws);
  }
  void pooled_backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> dy,
                       MatrixView<T> dcandidates, MatrixView<T> dhistory, SoftSearch& gradient, Workspace& ws) const {
    check_gradient_shapes("SoftSearch::pooled_backward", *this, gradient);
    soft_search_pooled_backward<T>(candidates, history, query.weight, key.weight, {}, dy, dcandidates, dhistory,
                                   gradient.query.weight, gradient.key.weight, ws);
  }
  /// keys `[total_L, da]` of behaviours: functions of the item only, to be kept with it.
  void project_keys(MatrixView<const T> history, MatrixView<T> keys, Workspace& ws) const { key.forward(history, keys, ws); }
  /// Positions and scores (or empty) of the behaviours with the largest r for each candidate, given their projected keys.
  void search(JaggedView<const T> candidates, JaggedView<const T> keys, MatrixView<std::int32_t> indices, MatrixView<T> scores,
              Workspace& ws) const {
    check_jagged("SoftSearch::search", "candidates", candidates, any_size, query.weight.cols());
    const auto mark = ws.mark();
    const MatrixView<T> queries = ws.matrix<T>(candidates.values().rows(), query.weight.rows());
    query.forward(candidates.values(), queries, ws);
    soft_search<T>(candidates.with_values(MatrixView<const T>(queries)), keys, indices, scores, ws);
  }
};

/// Hard search: for each user, which positions each category has. Behaviours are in order of time.
struct CategoryIndex {
  Vector<std::int32_t> positions;   ///< [total_L], user after user, by category, oldest first within one
  Vector<std::int32_t> categories;  ///< [C], the distinct categories of each user, ascending
  Vector<Index> begins;             ///< [C + 1], where the positions of a category begin
  Vector<Index> users;              ///< [B + 1], where the categories of a user begin

  /// From `of [total_L]`, any numbers, and `offsets [B + 1]`. Linear: a radix sort that skips bytes all categories share.
  void build(VectorView<const std::int32_t> of, IndexView offsets, Workspace& ws) {
    constexpr const char* name = "CategoryIndex::build";
    check_size(name, "categories", of, any_size);
    check_offsets(name, "offsets", offsets, of.size());
    const Index batch = offsets.size() - 1;
    positions.resize(of.size());
    users.resize(batch + 1);
    users[0] = 0;
    categories.clear();
    begins.clear();
    for (Index b = 0; b < batch; ++b) {
      const Index first = offsets[b], length = offsets[b + 1] - first;
      sort(of.data() + first, length, positions.data() + first, ws);
      for (Index i = first; i < first + length; ++i) {
        const std::int32_t category = of[first + positions[i]];
        if (i > first && category == categories[categories.size() - 1]) continue;
        categories.push_back(category);
        begins.push_back(i);
      }
      users[b + 1] = categories.size();
    }
    begins.push_back(of.size());
  }

  /// indices `[total_N, k]`: the latest k positions of each candidate's category, latest first; `of [total_N]`, `offsets [B + 1]`.
  void search(VectorView<const std::int32_t> of, IndexView offsets, MatrixView<std::int32_t> indices) const {
    constexpr const char* name = "CategoryIndex::search";
    check_size(name, "categories", of, any_size);
    check_offsets(name, "offsets", offsets, of.size());
    check_option(name, "offsets", offsets.size() == users.size(), "as many users as the index has",
                 static_cast<double>(offsets.size() - 1));
    check_shape(name, "indices", indices, of.size(), any_size);
    const Index k = indices.cols();
    for (Index b = 0; b + 1 < offsets.size(); ++b) {
      const std::int32_t *const low = categories.data() + users[b], *const high = categories.data() + users[b + 1];
      for (Index i = offsets[b]; i < offsets[b + 1]; ++i) {
        const std::int32_t* const at = std::lower_bound(low, high, of[i]);
        Index count = 0;
        if (at != high && *at == of[i]) {
          const Index c = at - categories.data(), end = begins[c + 1];
          count = std::min(k, end - begins[c]);
          for (Index j = 0; j < count; ++j) indices(i, j) = positions[end - 1 - j];
        }
        for (Index j = count; j < k; ++j) indices(i, j) = -1;
      }
    }
  }

 private:
  static void sort(const std::int32_t* of, Index length, std::int32_t* out, Workspace& ws) {
    const auto mark = ws.mark();
    Index counts[4][256] = {};
    const auto digit = [](std::int32_t category, int pass) {
      return ((static_cast<std::uint32_t>(category) ^ 0x80000000u) >> (8 * pass)) & 255u;
    };
    for (Index i = 0; i < length; ++i)
      for (int pass = 0; pass < 4; ++pass) ++counts[pass][digit(of[i], pass)];
    std::int32_t *from = ws.take<std::int32_t>(length), *to = ws.take<std::int32_t>(length);
    for (Index i = 0; i < length; ++i) from[i] = static_cast<std::int32_t>(i);
    for (int pass = 0; pass < 4; ++pass) {
      if (length == 0 || counts[pass][digit(of[0], pass)] == length) continue;
      Index next[256], sum = 0;
      for (int v = 0; v < 256; ++v) {
        next[v] = sum;
        sum += counts[pass][v];
      }
      for (Index i = 0; i < length; ++i) to[next[digit(of[from[i]], pass)]++] = from[i];
      std::swap(from, to);
    }
    std::copy_n(from, length, out);
  }
};

namespace detail {

/// The selected behaviours of candidates [first, first + n) with the embeddings of their ages, candidate after candidate.
template <class T>
struct SearchedRows {
  MatrixView<T> rows;                  // [M, D + G]
  VectorView<std::int64_t> offsets;    // [n + 1]
  VectorView<std::int64_t> times;      // [M]
  VectorView<std::int64_t> now;        // [n]
  VectorView<std::int64_t> behaviour;  // [M], the row of history.values()
};

template <class T>
void check_exact_search(const char* name, const TimeGapEmbedding<T>& time, Index embed, Index width,
                        JaggedView<const T> candidates, JaggedView<const T> history, IndexView times, IndexView now,
                        MatrixView<const std::int32_t> indices) {
  check_jagged(name, "candidates", candidates, any_size, embed);
  check_jagged(name, "history", history, candidates.size(), width - time.weight.values.cols());
  if (!time.weight.values.empty()) {
    check_option(name, "time.unit", time.unit >= 1, "unit >= 1", static_cast<double>(time.unit));
    check_not_null(name, "times", times);
    check_not_null(name, "now", now);
    if (times.size() != history.values().rows()) fail_size(name, "times", history.values().rows(), times.size(), false);
    if (now.size() != history.size()) fail_size(name, "now", history.size(), now.size(), false);
  }
  check_selection(name, candidates, history, indices);
}

/// Fills `x`, whose memory `room(M)` provides once M is known.
template <class T, class Room>
void gather_searched(const TimeGapEmbedding<T>& time, JaggedView<const T> history, IndexView times, IndexView now,
                     MatrixView<const std::int32_t> indices, const Index* user_rows, Index users, Index first, Index n,
                     Room&& room, SearchedRows<T>& x, Workspace& ws) {
  Index count = 0;
  for (Index i = first; i < first + n; ++i)
    for (Index j = 0; j < indices.cols(); ++j) count += indices(i, j) >= 0;
  room(count);
  const bool timed = !time.weight.values.empty();
  Index at = 0;
  x.offsets[0] = 0;
  for (Index i = first; i < first + n; ++i) {
    const Index b = user_of(user_rows, users, i);
    x.now[i - first] = timed ? now[b] : 0;
    for (Index j = 0; j < indices.cols(); ++j) {
      if (indices(i, j) < 0) continue;
      const Index row = history.begin(b) + indices(i, j);
      std::copy_n(history.values().row(row), history.cols(), x.rows.row(at));
      x.behaviour[at] = row;
      x.times[at++] = timed ? times[row] : 0;
    }
    x.offsets[i - first + 1] = at;
  }
  if (timed) time.forward(x.times, x.offsets, x.now, x.rows.middle_cols(history.cols(), time.weight.values.cols()), ws);
}

/// `attend(candidates, rows, y, scratch)` for chunks of candidates whose rows stay in cache.
template <class T, class Attend>
void exact_search(const TimeGapEmbedding<T>& time, Index width, JaggedView<const T> candidates, JaggedView<const T> history,
                  IndexView times, IndexView now, MatrixView<const std::int32_t> indices, MatrixView<T> y, Workspace& ws,
                  Attend&& attend) {
  const auto mark = ws.mark();
  const Index total = candidates.values().rows(), users = candidates.size();
  const Index* const user_rows = first_rows(candidates, ws);
  const Index chunk = std::max(Index{4}, 1024 / std::max(Index{1}, indices.cols()));
  ws.parallel_for((total + chunk - 1) / chunk, [&](Index task, Workspace& scratch) {
    const auto own = scratch.mark();
    const Index first = task * chunk, n = std::min(chunk, total - first);
    SearchedRows<T> x;
    x.offsets = scratch.vector<std::int64_t>(n + 1);
    x.now = scratch.vector<std::int64_t>(n);
    auto* const one = scratch.take<std::int64_t>(n + 1);
    for (Index i = 0; i <= n; ++i) one[i] = i;
    gather_searched<T>(
        time, history, times, now, indices, user_rows, users, first, n,
        [&](Index count) {
          x.rows = scratch.matrix<T>(count, width);
          x.times = scratch.vector<std::int64_t>(count);
          x.behaviour = scratch.vector<std::int64_t>(count);
        },
        x, scratch);
    attend(JaggedView<const T>(candidates.values().middle_rows(first, n), IndexView(one, n + 1)),
           JaggedView<const T>(x.rows, IndexView(x.offsets)), y.middle_rows(first, n), scratch);
  });
}

}  // namespace detail

template <Real T, class S>
class FrozenExactSearchUnit;

/// The exact search unit: what a search kept, with how long ago it was, attended to by the candidate.
template <Real T>
struct ExactSearchUnit {
  TimeGapEmbedding<T> time;         ///< [buckets, G]; without buckets ages do not enter
  MultiheadAttention<T> attention;  ///< embed E = candidate width, keys and values D + G wide

  ExactSearchUnit() = default;
  /// `buckets` = 0: without ages.
  ExactSearchUnit(Index candidate_width, Index history_width, Index heads, Index buckets, Index gap_width, std::int64_t unit,
                  Random& random)
      : attention(checked_size("ExactSearchUnit", "candidate_width", candidate_width), heads, random, true,
                  joined_width(history_width, buckets, gap_width), joined_width(history_width, buckets, gap_width)) {
    if (buckets > 0) time = TimeGapEmbedding<T>(buckets, gap_width, unit, 0.1, random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("time", &ExactSearchUnit::time), layer("attention", &ExactSearchUnit::attention)};
  }

  struct Saved {
    Matrix<T> rows;                                                  ///< what the candidates attend to, candidate after candidate
    Vector<std::int64_t> offsets, times, now, behaviour, candidate;  ///< whose they are, and where from
    typename MultiheadAttention<T>::Saved attention;
  };

  /// y `[total_N, E]`; times `[total_L]` of behaviours and now `[B]` of requests in the unit of `time` (both empty: no ages);
  /// indices `[total_N, k]` from any search.
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, IndexView times, IndexView now,
               MatrixView<const std::int32_t> indices, MatrixView<T> y, Workspace& ws) const {
    check("ExactSearchUnit", candidates, history, times, now, indices, y);
    detail::exact_search<T>(time, attention.key_width(), candidates, history, times, now, indices, y, ws,
                            [&](JaggedView<const T> q, JaggedView<const T> rows, MatrixView<T> out, Workspace& scratch) {
                              attention.forward(q, rows, rows, {}, out, scratch);
                            });
  }
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, IndexView times, IndexView now,
               MatrixView<const std::int32_t> indices, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("ExactSearchUnit", candidates, history, times, now, indices, y);
    const auto mark = ws.mark();
    const Index n = candidates.values().rows();
    saved.offsets.resize(n + 1);
    saved.candidate.resize(n + 1);
    saved.now.resize(n);
    for (Index i = 0; i <= n; ++i) saved.candidate[i] = i;
    detail::SearchedRows<T> x;
    x.offsets = saved.offsets;
    x.now = saved.now;
    detail::gather_searched<T>(
        time, history, times, now, indices, detail::first_rows(candidates, ws), candidates.size(), 0, n,
        [&](Index count) {
          saved.rows.resize(count, attention.key_width());
          saved.times.resize(count);
          saved.behaviour.resize(count);
          x.rows = saved.rows;
          x.times = saved.times;
          x.behaviour = saved.behaviour;
        },
        x, ws);
    const JaggedView<const T> rows(saved.rows.view(), IndexView(saved.offsets));
    attention.forward(JaggedView<const T>(candidates.values(), IndexView(saved.candidate)), rows, rows, {}, y, saved.attention,
                      step.child(0), ws);
  }
  /// Adds to dcandidates, dhistory (each unless empty) and to `gradient`.
  void backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> dy, const Saved& saved,
                MatrixView<T> dcandidates, MatrixView<T> dhistory, ExactSearchUnit& gradient, Workspace& ws) const {
    constexpr const char* name = "ExactSearchUnit::backward";
    const Index n = candidates.values().rows(), count = saved.behaviour.size(), gap = time.weight.values.cols();
    check_jagged(name, "candidates", candidates, any_size, attention.embed());
    check_jagged(name, "history", history, candidates.size(), attention.key_width() - gap);
    check_shape(name, "dy", dy, n, attention.embed());
    check_size(name, "saved", VectorView<const std::int64_t>(saved.candidate), n + 1);
    check_shape(name, "saved", saved.rows.view(), count, attention.key_width());
    check_indices(name, "saved", IndexView(saved.behaviour), history.values().rows());
    check_offsets(name, "saved", IndexView(saved.offsets), count);
    check_size(name, "saved", VectorView<const std::int64_t>(saved.offsets), n + 1);
    check_size(name, "saved", VectorView<const std::int64_t>(saved.times), count);
    check_size(name, "saved", VectorView<const std::int64_t>(saved.now), n);
    if (!dcandidates.empty()) check_shape(name, "dcandidates", dcandidates, n, attention.embed());
    if (!dhistory.empty()) check_shape(name, "dhistory", dhistory, history.values().rows(), history.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> drows = ws.matrix<T>(count, attention.key_width());
    std::fill_n(drows.data(), count * drows.cols(), T(0));
    const JaggedView<const T> rows(saved.rows.view(), IndexView(saved.offsets));
    attention.backward(JaggedView<const T>(candidates.values(), IndexView(saved.candidate)), rows, rows, {}, dy, saved.attention,
                       dcandidates, drows, drows, gradient.attention, ws);
    if (gap > 0)
      time.backward(IndexView(saved.times), IndexView(saved.offsets), IndexView(saved.now),
                    drows.middle_cols(history.cols(), gap), gradient.time, ws);
    for (Index j = 0; j < count && !dhistory.empty(); ++j)
      simd::add<T>(drows.row(j), dhistory.row(saved.behaviour[j]), history.cols());
  }

 private:
  /// D + G
  static Index joined_width(Index history_width, Index buckets, Index gap_width) {
    constexpr const char* name = "ExactSearchUnit";
    const Index gap = checked_size(name, "gap_width", gap_width);
    return checked_size(name, "history_width", history_width) + (checked_size(name, "buckets", buckets) > 0 ? gap : 0);
  }
  void check(const char* name, JaggedView<const T> candidates, JaggedView<const T> history, IndexView times, IndexView now,
             MatrixView<const std::int32_t> indices, MatrixView<T> y) const {
    attention.check_parameters(name);
    check_option(name, "attention",
                 attention.key_width() == attention.value_width() && attention.key_width() > time.weight.values.cols(),
                 "keys and values of one width, behaviour and age", static_cast<double>(attention.value_width()));
    detail::check_exact_search<T>(name, time, attention.embed(), attention.key_width(), candidates, history, times, now, indices);
    check_shape(name, "y", y, candidates.values().rows(), attention.embed());
  }
};

/// Serving form: packed projections. Immutable; threads may share it.
template <Real T, class S = T>
class FrozenExactSearchUnit {
 public:
  FrozenExactSearchUnit() = default;
  explicit FrozenExactSearchUnit(const ExactSearchUnit<T>& layer)
      : time_(layer.time),
        attention_(freeze(layer.attention, Weights<S>())),
        embed_(layer.attention.embed()),
        width_(layer.attention.key_width()) {}
  /// As `ExactSearchUnit::forward`.
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, IndexView times, IndexView now,
               MatrixView<const std::int32_t> indices, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "FrozenExactSearchUnit";
    detail::check_exact_search<T>(name, time_, embed_, width_, candidates, history, times, now, indices);
    check_shape(name, "y", y, candidates.values().rows(), embed_);
    detail::exact_search<T>(time_, width_, candidates, history, times, now, indices, y, ws,
                            [&](JaggedView<const T> q, JaggedView<const T> rows, MatrixView<T> out, Workspace& scratch) {
                              attention_.forward(q, rows, rows, {}, out, scratch);
                            });
  }

 private:
  TimeGapEmbedding<T> time_;
  FrozenMultiheadAttention<T, S> attention_;
  Index embed_ = 0, width_ = 0;
};
template <Real T, class S = T>
FrozenExactSearchUnit<T, S> freeze(const ExactSearchUnit<T>& layer, Weights<S> = {}) {
  return FrozenExactSearchUnit<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
