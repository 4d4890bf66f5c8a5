/// @file   recops/attention/twin_search.hpp
/// @brief  The general search unit of TWIN: for every candidate the k behaviours that its heads find most relevant, by exactly the
///         scores that attention then weighs them with.
///
///     alpha_a[n, l] = c q_na . k_la + bias_la            a = 1 .. H, c = 1 / sqrt(dk); the bias is not scaled
///
/// The heads choose in lock-step: each offers its best behaviour, then each its second best, and so on; what is new is taken,
/// until k are. The set is shared by all heads. With one head this is top-k; one head over all columns and the sum of the biases
/// selects by the sum of the heads.
///
/// Shapes      queries [total_N, H dk]   keys [total_L, H dk]   bias [total_L, H], [total_L, 1] or empty
///             indices [total_N, k]: places in the user's own history, in the order they were taken, -1 behind the last
/// Edge cases  Fewer than k behaviours that are not hidden: all of them. A bias of -infinity hides; a hidden key may hold anything.
///             Equal scores: the earlier behaviour. k = 0 and empty histories select nothing.
///             A score of -infinity ranks with those hidden, so fewer than k may be selected where there are such.
/// NaN         A NaN score ranks behind all others of its head, hidden ones included.
/// Exactness   The same selection with any keys (float alone, with a copy in int8 or BFloat16), for any batch and any number of
///             threads: copies only say which float keys need to be read. Copies have to be of these very keys.
/// Cost        One user of L behaviours and N candidates: the keys (or their copy) are read once for every 64 / H candidates; 2 N L H
///             dk flops. Scratch: O(k) a list and, with a copy or many candidates, 8 L bytes of which few are touched.
/// Errors      Error if shapes, offsets, rows or options disagree; outputs untouched.
/// Reference   Chang et al., TWIN, arXiv 2302.02352, sections 3.3 and 4.3.
#pragma once
#include <recops/nn/scaled_dot_product_attention.hpp>
#include <recops/simd/head_search.hpp>

namespace recops {

/// The keys of the behaviours of a batch of users, and what is stored beside them to find the best sooner.
template <class T>
struct SearchKeys {
  MatrixView<const T> exact = {};  ///< [R, H dk]
  IndexView rows = {};             ///< [total_L] the row of each behaviour's key; empty: in order, R = total_L
  IndexView offsets = {};          ///< [B + 1] of the users; empty: one user
  QuantizedView int8 = {};         ///< [R, H dk] of `exact`, one scale for a head or for a row; or none. Of float keys only
  MatrixView<const BFloat16> bfloat16 = {};  ///< [R, H dk] of `exact`, or none, with
  MatrixView<const float> norms = {};        ///< [R, H], the length of every head of `exact`

  SearchKeys() = default;
  /// Keys in order, a plain matrix or a batch.
  SearchKeys(JaggedView<const T> keys) : exact(keys.values()), offsets(keys.is_one_sequence() ? IndexView() : keys.offsets()) {}

  RECOPS_INLINE Index behaviours() const { return rows.empty() ? exact.rows() : rows.size(); }
  RECOPS_INLINE Index users() const { return offsets.empty() ? 1 : offsets.size() - 1; }
  RECOPS_INLINE Index begin(Index user) const { return offsets.empty() ? 0 : offsets[user]; }
  RECOPS_INLINE Index length(Index user) const { return offsets.empty() ? behaviours() : offsets[user + 1] - offsets[user]; }
};

/// Options of TWIN's two stages.
struct TwinOptions {
  Index heads = 1;   ///< divides the columns of queries and keys
  double scale = 0;  ///< c; 0 means 1 / sqrt(key width of a head)
};

inline namespace RECOPS_ABI {
namespace detail {

/// Takes the heads' lists [H, k] in lock-step: rank by rank, head by head, what is new. `seen` [L] is all 0, before and after.
inline Index lock_step_union(MatrixView<const std::int32_t> lists, const Index* counts, Index k, std::uint8_t* seen,
                             std::int32_t* out) {
  Index taken = 0;
  for (Index rank = 0; rank < lists.cols() && taken < k; ++rank) {
    for (Index h = 0; h < lists.rows() && taken < k; ++h) {
      if (rank >= counts[h]) continue;
      const std::int32_t l = lists(h, rank);
      if (seen[l] != 0) continue;
      seen[l] = 1;
      out[taken++] = l;
    }
  }
  for (Index i = 0; i < taken; ++i) seen[out[i]] = 0;
  return taken;
}

/// Keys of `width` columns and `heads` heads for `users` users.
template <class T>
[[gnu::noinline]] void check_keys(const char* op, const SearchKeys<T>& keys, Index width, Index users, Index heads) {
  const Index total = keys.behaviours();
  check_shape(op, "keys", keys.exact, any_size, width);
  check_option(op, "keys", total < Index{1} << 31, "fewer than 2^31 behaviours", static_cast<double>(total));
  if (!keys.rows.empty()) check_indices(op, "keys.rows", keys.rows, keys.exact.rows());
  if (!keys.offsets.empty()) check_offsets(op, "keys.offsets", keys.offsets, total);
  if (keys.users() != users) [[unlikely]]
    fail_count(op, "keys", users, keys.users(), "users");
  const bool codes = !keys.int8.codes.empty(), rounded = !keys.bfloat16.empty();
  if constexpr (std::is_same_v<T, double>) check_option(op, "keys", !codes && !rounded, "copies of float keys only", 64);
  if (codes) {
    check_quantized(op, "keys.int8", keys.int8, keys.exact.rows(), width);
    check_option(op, "keys.int8", keys.int8.blocks() == 1 || keys.int8.width() == width / heads,
                 "one scale for a row, or for every head of it", static_cast<double>(keys.int8.width()));
  }
  if (rounded) {
    check_shape(op, "keys.bfloat16", keys.bfloat16, keys.exact.rows(), width);
    check_shape(op, "keys.norms", keys.norms, keys.exact.rows(), heads);
  }
}

template <class T>
[[gnu::noinline]] void check_search(const char* op, JaggedView<const T> queries, const SearchKeys<T>& keys,
                                    MatrixView<const T> bias, const TwinOptions& o) {
  check_jagged(op, "queries", queries, any_size, any_size);
  const Index width = queries.cols();
  check_option(op, "heads", o.heads >= 1, "heads >= 1", static_cast<double>(o.heads));
  check_option(op, "queries", width >= 1 && width % o.heads == 0, "a number of columns that heads divides, at least 1 per head",
               static_cast<double>(width));
  check_option(op, "scale", o.scale - o.scale == 0, "a finite scale, or 0 for 1 / sqrt(key width)", o.scale);
  check_keys<T>(op, keys, width, queries.size(), o.heads);
  if (!bias.empty()) check_shape(op, "bias", bias, keys.behaviours(), bias.cols() == 1 ? 1 : o.heads);
}

/// Rows of one user.
template <class S>
simd::detail::NamedRows<S> rows_of_user(MatrixView<const S> all, IndexView rows, Index begin, Index length) {
  using Rows = simd::detail::NamedRows<S>;
  if (length == 0) return Rows();
  return rows.empty() ? Rows(all.middle_rows(begin, length), {}) : Rows(all, rows.segment(begin, length));
}
/// What stands beside them: scales and norms are per stored row as the keys are.
template <class T>
MatrixView<const T> beside(MatrixView<const T> all, IndexView rows, Index begin, Index length) {
  return rows.empty() && !all.empty() ? all.middle_rows(begin, length) : all;
}

/// c q, as search and attention both multiply it with keys.
template <class T>
MatrixView<T> scaled_queries(MatrixView<const T> queries, const TwinOptions& o, Workspace& ws) {
  const MatrixView<T> q = ws.matrix<T>(queries.rows(), queries.cols());
  const auto c = static_cast<T>(o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(queries.cols() / o.heads)));
  for (Index i = 0; i < q.rows(); ++i) simd::scale<T>(c, queries.row(i), q.row(i), q.cols());
  return q;
}

/// Candidates from which panels pay.
inline constexpr Index panel_queries = 8;

/// Lists of one user's candidates, by the fastest road.
template <class T>
Index search_lists(MatrixView<const T> queries, Index heads, const SearchKeys<T>& keys, Index begin, Index length,
                   MatrixView<const T> bias, Index k, simd::detail::HeadLists lists, Workspace& ws) {
  using A = simd::DefaultArch;
  const auto exact = rows_of_user<T>(keys.exact, keys.rows, begin, length);
  if constexpr (std::is_same_v<T, float>) {
    if (simd::detail::worth_a_copy(k, length)) {
      if (queries.rows() >= panel_queries) return simd::detail::search_panels<A>(queries, heads, exact, bias, k, lists, ws);
      if (!keys.int8.codes.empty())
        return simd::detail::search_codes<A>(queries, heads, exact,
                                             rows_of_user<std::int8_t>(keys.int8.codes, keys.rows, begin, length),
                                             beside<float>(keys.int8.scales, keys.rows, begin, length), bias, k, lists, ws);
      if (!keys.bfloat16.empty())
        return simd::detail::search_rounded<A>(queries, heads, exact,
                                               rows_of_user<BFloat16>(keys.bfloat16, keys.rows, begin, length),
                                               beside<float>(keys.norms, keys.rows, begin, length), bias, k, lists, ws);
    }
  }
  simd::detail::scan_heads<T, A>(queries, heads, exact, bias, k, lists, ws);
  return queries.rows() * heads * length;
}

/// `twin_search` of queries that are scaled already.
template <class T>
Index search_scaled(JaggedView<const T> shape, MatrixView<const T> q, const SearchKeys<T>& keys, MatrixView<const T> bias,
                    Index heads, MatrixView<std::int32_t> indices, Workspace& ws) {
  const Index k = indices.cols(), group = std::max(Index{1}, simd::detail::head_lists / heads), users = shape.size();
  auto* const first_task = ws.take<Index>(users + 1);
  first_task[0] = 0;
  for (Index b = 0; b < users; ++b) first_task[b + 1] = first_task[b] + (shape.length(b) + group - 1) / group;
  auto* const rescored = ws.take<Index>(first_task[users]);
  ws.parallel_for(first_task[users], [&](Index task, Workspace& scratch) {
    const auto mark = scratch.mark();
    const Index b = std::upper_bound(first_task, first_task + users + 1, task) - first_task - 1;
    const Index cuts = first_task[b + 1] - first_task[b], cut = task - first_task[b];  // of equal size: each by the same road
    const Index n0 = shape.begin(b) + shape.length(b) * cut / cuts, n = shape.begin(b) + shape.length(b) * (cut + 1) / cuts - n0;
    const Index begin = keys.begin(b), length = keys.length(b);
    const MatrixView<const T> own = bias.empty() ? bias : bias.middle_rows(begin, length);
    const MatrixView<std::int32_t> lists = scratch.matrix<std::int32_t>(n * heads, k);
    const VectorView<Index> counts = scratch.vector<Index>(n * heads);
    rescored[task] = 0;
    std::fill_n(counts.data(), counts.size(), Index{0});
    if (k > 0 && length > 0)
      rescored[task] = search_lists<T>(q.middle_rows(n0, n), heads, keys, begin, length, own, k, {lists, counts}, scratch);
    auto* const seen = scratch.take<std::uint8_t>(length);
    std::fill_n(seen, length, std::uint8_t{0});
    for (Index i = 0; i < n; ++i) {
      if (!own.empty()) {  // hidden ones were ranked too, behind all others
        for (Index l = i * heads; l < (i + 1) * heads; ++l) {
          const Index column = own.cols() == 1 ? 0 : l - i * heads;
          std::int32_t* const row = lists.row(l);
          counts[l] = std::remove_if(row, row + counts[l],
                                     [&](std::int32_t at) { return own(at, column) == -std::numeric_limits<T>::infinity(); }) -
                      row;
        }
      }
      std::int32_t* const out = indices.row(n0 + i);
      const Index taken = lock_step_union(lists.middle_rows(i * heads, heads), counts.data() + i * heads, k, seen, out);
      std::fill(out + taken, out + k, -1);
    }
  });
  Index sum = 0;
  for (Index t = 0; t < first_task[users]; ++t) sum += rescored[t];
  return sum;
}

}  // namespace detail

/// indices [total_N, k] of the behaviours that each candidate attends to. Returns how many (candidate, head, behaviour) scores were
/// taken from the float keys: all of them where there is no copy and few candidates.
template <class T>
Index twin_search(JaggedView<const T> queries, const SearchKeys<T>& keys, MatrixView<const T> bias, const TwinOptions& options,
                  MatrixView<std::int32_t> indices, Workspace& ws) {
  const char* op = "twin_search";
  detail::check_search<T>(op, queries, keys, bias, options);
  check_shape(op, "indices", indices, queries.values().rows(), any_size);
  const auto mark = ws.mark();
  const MatrixView<T> q = detail::scaled_queries<T>(queries.values(), options, ws);
  return detail::search_scaled<T>(queries, q, keys, bias, options.heads, indices, ws);
}

/// The scores themselves, of one user: scores [N H, L], row n H + a, to the bit those by which `twin_search` selects.
template <class T>
void twin_scores(MatrixView<const T> queries, const SearchKeys<T>& keys, MatrixView<const T> bias, const TwinOptions& options,
                 MatrixView<T> scores, Workspace& ws) {
  const char* op = "twin_scores";
  using A = simd::DefaultArch;
  detail::check_search<T>(op, queries, keys, bias, options);
  const Index heads = options.heads, count = keys.behaviours();
  check_shape(op, "scores", scores, queries.rows() * heads, count);
  if (scores.empty()) return;
  const auto mark = ws.mark();
  const MatrixView<const T> q = detail::scaled_queries<T>(queries, options, ws);
  const auto rows = detail::rows_of_user<T>(keys.exact, keys.rows, 0, count);
  T* const room = rows.room(simd::detail::head_block, ws);
  simd::detail::HeadColumns<T, A> added(bias, {}, ws);
  for (Index first = 0; first < count; first += simd::detail::head_block) {
    const Index height = std::min(count - first, simd::detail::head_block);
    added.block(first, height);
    simd::detail::head_tiles<T, A>(q, heads, rows.block(first, height, room), height, rows.far(),
                                   [&](Index n, Index h, Index i, Index tile, simd::Batch<T, A> dots) RECOPS_LAMBDA_INLINE {
                                     if (!added.empty()) dots = simd::detail::biased(dots, added.load(h, i, tile));
                                     simd::detail::store_upto(scores.row(n * heads + h) + first + i, dots, tile);
                                   });
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
