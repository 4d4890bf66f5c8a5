/// @file   examples/common/leave_one_out.hpp
/// @brief  Leave-one-out evaluation of next-item prediction: the last item of each user is hidden and must be ranked high.
///
/// The target competes with the whole catalogue, or with sampled items (cheaper, but flattering: compare only like with like),
/// never with items the user has met before. Among equal scores every order is taken as equally likely and the metrics are
/// averaged over them, so that a scorer cannot win by giving everything the same score.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/random.hpp>
#include <recops/core/views.hpp>
#include <utility>
#include <vector>

#include "interactions.hpp"

namespace examples {

/// What each user took, in order: user u owns items[offsets[u]] .. items[offsets[u + 1] - 1].
struct UserSequences {
  std::vector<std::int32_t> items;
  std::vector<std::int64_t> offsets;  ///< [users + 1]

  Index users() const { return static_cast<Index>(offsets.size()) - 1; }
  recops::VectorView<const std::int32_t> operator[](Index user) const {
    const auto u = static_cast<std::size_t>(user);
    return recops::VectorView<const std::int32_t>(items).segment(offsets[u], offsets[u + 1] - offsets[u]);
  }
  /// The same without the last `count` items of each user: what a model may be trained on.
  UserSequences without_last(Index count = 1) const {
    UserSequences out;
    out.offsets.push_back(0);
    for (Index u = 0; u < users(); ++u) {
      const auto all = (*this)[u];
      const Index kept = std::max<Index>(0, all.size() - count);
      out.items.insert(out.items.end(), all.begin(), all.begin() + kept);
      out.offsets.push_back(static_cast<std::int64_t>(out.items.size()));
    }
    return out;
  }
};

/// The rows of `log` whose `label` is 1, by user and time. O(rows).
inline UserSequences user_sequences(const InteractionLog& log, Label label = Label::click) {
  if (!log.has(label) && log.size() > 0) recops::fail("user_sequences", "label", "a label the log has", label_name(label));
  UserSequences out;
  out.offsets.assign(static_cast<std::size_t>(log.users) + 1, 0);
  const auto& y = log.label(label);
  for (std::size_t r = 0; r < y.size(); ++r)
    if (y[r]) ++out.offsets[static_cast<std::size_t>(log.user[r]) + 1];
  for (std::size_t u = 0; u < static_cast<std::size_t>(log.users); ++u) out.offsets[u + 1] += out.offsets[u];
  out.items.resize(static_cast<std::size_t>(out.offsets.back()));
  std::vector<std::int64_t> next(out.offsets.begin(), out.offsets.end() - 1);
  for (std::size_t r = 0; r < y.size(); ++r)
    if (y[r]) out.items[static_cast<std::size_t>(next[static_cast<std::size_t>(log.user[r])]++)] = log.item[r];
  return out;
}

struct LeaveOneOutOptions {
  std::vector<Index> cutoffs = {5, 10, 20};  ///< the k of HR@k and NDCG@k
  Index held_out = 1;      ///< the item to predict, counted from the end: 1 = last (test), 2 = the one before (validation)
  Index negatives = 0;     ///< sampled competitors per user; 0 = the whole catalogue
  std::uint64_t seed = 1;  ///< of the sample; a user's sample does not depend on the other users
};

/// Means over users.
struct LeaveOneOutResult {
  Index users = 0;                     ///< users with a target and at least one item before it
  std::vector<double> hit_rate, ndcg;  ///< per cutoff
  double mrr = 0;                      ///< mean of 1 / rank, without a cutoff
};

/// Evaluates `score(user, history, candidates, scores)`: `history` is what the user took before the target, in order (items),
/// `candidates` the items to score, ascending, and `scores` (VectorView<double>, the same size) what the scorer writes; higher is
/// better, NaN is worst. Throws `Error` if items are outside the catalogue or options out of range. O(users · catalogue) and the
/// scorer.
template <class Score>
LeaveOneOutResult leave_one_out(const UserSequences& sequences, Index catalogue, Score&& score,
                                const LeaveOneOutOptions& options = {}) {
  recops::check_option("leave_one_out", "catalogue", catalogue > 0, "at least one item", static_cast<double>(catalogue));
  recops::check_option("leave_one_out", "held_out", options.held_out >= 1, "1 or more", static_cast<double>(options.held_out));
  recops::check_option("leave_one_out", "negatives", options.negatives >= 0, "0 or more", static_cast<double>(options.negatives));
  for (const Index k : options.cutoffs)
    recops::check_option("leave_one_out", "cutoffs", k > 0, "cutoffs above 0", static_cast<double>(k));
  recops::check_indices("leave_one_out", "sequences", recops::IndexView(sequences.items), catalogue);

  LeaveOneOutResult result;
  result.hit_rate.assign(options.cutoffs.size(), 0);
  result.ndcg.assign(options.cutoffs.size(), 0);
  std::vector<char> excluded(static_cast<std::size_t>(catalogue), 0);
  std::vector<std::int32_t> candidates;
  std::vector<double> scores;
  for (Index user = 0; user < sequences.users(); ++user) {
    const auto all = sequences[user];
    const Index place = all.size() - options.held_out;
    if (place < 1) continue;
    const auto history = all.segment(0, place);
    const std::int32_t target = all[place];

    for (const std::int32_t item : history) excluded[static_cast<std::size_t>(item)] = 1;
    excluded[static_cast<std::size_t>(target)] = 1;
    candidates.clear();
    for (Index i = 0; i < catalogue; ++i)
      if (!excluded[static_cast<std::size_t>(i)]) candidates.push_back(static_cast<std::int32_t>(i));
    for (const std::int32_t item : history) excluded[static_cast<std::size_t>(item)] = 0;
    excluded[static_cast<std::size_t>(target)] = 0;
    const auto others = static_cast<Index>(candidates.size());
    if (options.negatives > 0 && options.negatives < others) {
      recops::Random random(options.seed, static_cast<std::uint64_t>(user));
      for (Index k = 0; k < options.negatives; ++k)  // the first steps of a shuffle
        std::swap(candidates[static_cast<std::size_t>(k)], candidates[static_cast<std::size_t>(k + random.below(others - k))]);
      candidates.resize(static_cast<std::size_t>(options.negatives));
      std::sort(candidates.begin(), candidates.end());
    }
    const auto at = std::lower_bound(candidates.begin(), candidates.end(), target);
    const auto target_place = static_cast<std::size_t>(at - candidates.begin());
    candidates.insert(at, target);

    scores.assign(candidates.size(), std::numeric_limits<double>::quiet_NaN());
    score(user, history, recops::VectorView<const std::int32_t>(candidates), recops::VectorView<double>(scores));
    const auto worth = [&](std::size_t i) {  // NaN below everything
      return std::isnan(scores[i]) ? -std::numeric_limits<double>::infinity() : scores[i];
    };
    const double own = worth(target_place);
    Index better = 0, equal = 0;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (i == target_place) continue;
      better += worth(i) > own;
      equal += worth(i) == own;
    }

    // The rank is equally likely any of better + 1 .. better + equal + 1.
    const double share = 1 / static_cast<double>(equal + 1);
    double reciprocal = 0;
    for (Index rank = better + 1; rank <= better + equal + 1; ++rank) reciprocal += 1 / static_cast<double>(rank);
    result.mrr += share * reciprocal;
    for (std::size_t c = 0; c < options.cutoffs.size(); ++c) {
      for (Index rank = better + 1; rank <= std::min(options.cutoffs[c], better + equal + 1); ++rank) {
        result.hit_rate[c] += share;
        result.ndcg[c] += share / std::log2(1 + static_cast<double>(rank));
      }
    }
    ++result.users;
  }
  if (result.users > 0) {
    const auto n = static_cast<double>(result.users);
    result.mrr /= n;
    for (double& x : result.hit_rate) x /= n;
    for (double& x : result.ndcg) x /= n;
  }
  return result;
}

}  // namespace examples
