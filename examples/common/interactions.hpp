/// @file   examples/common/interactions.hpp
/// @brief  A log of what was shown to whom and what came of it, split by time, and the histories a model may see.
///
/// Every data source of the examples (simulator, MovieLens) delivers this one shape. A row is an impression: an item shown to a
/// user. Rows are sorted by time; `time` is the moment of the request that produced the list, so that all rows of one visit share
/// it, and nothing of a visit is known when its list is scored.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <recops/core/error.hpp>
#include <recops/core/random.hpp>
#include <recops/core/views.hpp>
#include <vector>

namespace examples {

using recops::Index;

/// What a user may do with an item that is shown. A long view, a like and a purchase need a click.
enum class Label : int { click = 0, long_view = 1, like = 2, purchase = 3 };
inline constexpr Index label_count = 4;
/// Names in the order of `Label`, for tables.
inline constexpr const char* label_name(Label label) {
  constexpr const char* names[label_count] = {"click", "long view", "like", "purchase"};
  return names[static_cast<int>(label)];
}

/// Hour of the day (UTC), 0 .. 23, of Unix seconds.
inline constexpr int hour_of(std::int64_t time) {
  const std::int64_t second = ((time % 86400) + 86400) % 86400;
  return static_cast<int>(second / 3600);
}
/// Day of the week (UTC), 0 = Monday .. 6 = Sunday, of Unix seconds.
inline constexpr int weekday_of(std::int64_t time) {
  const std::int64_t day = time / 86400 - (time % 86400 < 0 ? 1 : 0);
  return static_cast<int>((((day + 3) % 7) + 7) % 7);  // 1 January 1970 was a Thursday
}

/// Impressions as a struct of arrays, sorted by time, and what is known of users and items.
struct InteractionLog {
  // One entry per impression.
  std::vector<std::int32_t> user;                             ///< [0, users)
  std::vector<std::int32_t> item;                             ///< [0, items)
  std::vector<std::int64_t> time;                             ///< Unix seconds of the request
  std::vector<std::int32_t> visit;                            ///< rows with the same number were one visit
  std::vector<std::int16_t> position;                         ///< place in the list of the visit, from 0
  std::vector<std::uint8_t> hour;                             ///< hour of the day of `time`, 0 .. 23
  std::vector<std::uint8_t> weekday;                          ///< 0 = Monday .. 6 = Sunday
  std::vector<std::uint8_t> domain;                           ///< 0, or 1 for the second, sparse domain
  std::array<std::vector<std::uint8_t>, label_count> labels;  ///< 0 or 1 by `Label`; empty where a source lacks that label
  std::vector<std::uint8_t> would_purchase;                   ///< the purchase a click would have led to, known of *every*
                                                              ///< impression; simulator only, never an input of a model
  // One entry per item or user.
  std::vector<std::int32_t> item_category;  ///< [0, categories)
  std::vector<std::uint8_t> item_domain;    ///< the domain that shows it
  std::vector<float> item_price;            ///< standardised log price; empty where unknown
  std::vector<std::int64_t> item_release;   ///< Unix seconds; empty where unknown
  std::vector<std::int32_t> user_group;     ///< [0, groups)

  Index users = 0, items = 0, categories = 0, groups = 1;

  /// Number of impressions.
  Index size() const { return static_cast<Index>(user.size()); }
  bool has(Label label) const { return !labels[static_cast<std::size_t>(label)].empty(); }
  /// The column of one label, 0 or 1 per impression.
  const std::vector<std::uint8_t>& label(Label which) const { return labels[static_cast<std::size_t>(which)]; }
  std::vector<std::uint8_t>& label(Label which) { return labels[static_cast<std::size_t>(which)]; }
};

/// Rows `first` .. `last - 1` of a log.
struct RowRange {
  Index first = 0, last = 0;
  Index size() const { return last - first; }
};

/// Three consecutive parts of a log; every time in a later part is greater than every time in an earlier one.
struct TimeSplit {
  RowRange train, validation, test;
};

/// Cuts a log by time: about `test` of the rows at the end, `validation` of them before, the rest for training. A cut never
/// divides rows of one second (hence no visit). Throws `Error` if a share is negative or nothing is left. O(log n).
inline TimeSplit split_by_time(const InteractionLog& log, double test, double validation = 0) {
  recops::check_option("split_by_time", "test", test >= 0 && test < 1, "0 <= test < 1", test);
  recops::check_option("split_by_time", "validation", validation >= 0 && validation + test < 1, "0 <= validation < 1 - test",
                       validation);
  const Index n = log.size();
  const auto cut = [&](double share_after) -> Index {
    if (share_after <= 0 || n == 0) return n;
    const auto row = std::min(n - 1, static_cast<Index>(static_cast<double>(n) * (1 - share_after)));
    const auto at = std::lower_bound(log.time.begin(), log.time.end(), log.time[static_cast<std::size_t>(row)]);
    return static_cast<Index>(at - log.time.begin());
  };
  const Index first_test = cut(test),
              first_validation = validation > 0 ? std::min(cut(test + validation), first_test) : first_test;
  return {{0, first_validation}, {first_validation, first_test}, {first_test, n}};
}

/// Training rows with fewer negatives: every row of `range` whose label is 1, and per such row up to `negatives` rows of the same
/// visit whose label is 0 (shown and not taken: never an item the user was not offered). Sorted, hence in order of time.
/// Rows of a visit must be contiguous, as in the simulator's log. O(rows).
inline std::vector<Index> rows_with_shown_negatives(const InteractionLog& log, RowRange range, Label label, Index negatives,
                                                    std::uint64_t seed) {
  recops::check_option("rows_with_shown_negatives", "negatives", negatives >= 0, "negatives >= 0",
                       static_cast<double>(negatives));
  recops::check_option("rows_with_shown_negatives", "range",
                       0 <= range.first && range.first <= range.last && range.last <= log.size(), "rows of the log",
                       static_cast<double>(range.last));
  const auto& y = log.label(label);
  std::vector<Index> rows, unlabelled;
  recops::Random random(seed);
  for (Index begin = range.first, end; begin < range.last; begin = end) {
    end = begin;
    unlabelled.clear();
    Index positives = 0;
    for (; end < range.last && log.visit[static_cast<std::size_t>(end)] == log.visit[static_cast<std::size_t>(begin)]; ++end) {
      if (y[static_cast<std::size_t>(end)]) {
        rows.push_back(end);
        ++positives;
      } else {
        unlabelled.push_back(end);
      }
    }
    const auto found = static_cast<Index>(unlabelled.size()), wanted = std::min(found, positives * negatives);
    for (Index k = 0; k < wanted; ++k) {  // the first steps of a shuffle
      std::swap(unlabelled[static_cast<std::size_t>(k)], unlabelled[static_cast<std::size_t>(k + random.below(found - k))]);
      rows.push_back(unlabelled[static_cast<std::size_t>(k)]);
    }
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

/// Histories of a batch of requests: sequence b is `items[offsets[b]] .. items[offsets[b + 1] - 1]`, oldest first.
struct HistoryBatch {
  std::vector<std::int32_t> items;    ///< item of each event
  std::vector<std::int32_t> rows;     ///< its row in the log, for any other column
  std::vector<float> gap_hours;       ///< hours from the event to the request, > 0
  std::vector<std::int32_t> offsets;  ///< [B + 1]

  Index size() const { return static_cast<Index>(offsets.size()) - 1; }
  Index length(Index b) const { return offsets[static_cast<std::size_t>(b) + 1] - offsets[static_cast<std::size_t>(b)]; }
};

/// What each user did, by time, so that histories without a look into the future are cheap to take.
/// An event belongs to the history of a request if it happened in an earlier second: neither the request's own visit nor
/// anything later is ever seen.
class Histories {
 public:
  /// Gathers the rows whose `label` is 1 (a click by default), of one domain or of all (-1). O(rows). Keeps a reference to `log`.
  explicit Histories(const InteractionLog& log, Label label = Label::click, int domain = -1) : log_(&log) {
    const auto users = static_cast<std::size_t>(log.users);
    const auto& y = log.label(label);
    if (!log.has(label) && log.size() > 0) recops::fail("Histories", "label", "a label the log has", label_name(label));
    const auto counts = [&](std::size_t row) { return y[row] && (domain < 0 || log.domain[row] == domain); };
    begin_.assign(users + 1, 0);
    for (std::size_t row = 0; row < y.size(); ++row)
      if (counts(row)) ++begin_[static_cast<std::size_t>(log.user[row]) + 1];
    for (std::size_t u = 0; u < users; ++u) begin_[u + 1] += begin_[u];
    rows_.resize(static_cast<std::size_t>(begin_[users]));
    std::vector<std::int32_t> next(begin_.begin(), begin_.end() - 1);
    for (std::size_t row = 0; row < y.size(); ++row)  // the log is sorted by time, so each user's rows are
      if (counts(row))
        rows_[static_cast<std::size_t>(next[static_cast<std::size_t>(log.user[row])]++)] = static_cast<std::int32_t>(row);
  }

  /// Number of events of `user` before `time`. O(log events).
  Index count_before(Index user, std::int64_t time) const {
    const auto [first, last] = before(user, time);
    return last - first;
  }

  /// The most recent `max_length` events of `users[b]` before `times[b]`, for every request b.
  /// Throws `Error` if sizes differ, a user does not exist or `max_length < 0`.
  void gather(recops::VectorView<const std::int32_t> users, recops::VectorView<const std::int64_t> times, Index max_length,
              HistoryBatch& out) const {
    recops::check_size("Histories::gather", "times", times, users.size());
    recops::check_indices("Histories::gather", "users", recops::IndexView(users.data(), users.size()), log_->users);
    start(max_length, out);
    for (Index b = 0; b < users.size(); ++b) append(users[b], times[b], max_length, out);
  }

  /// The same for rows of the log: the history that could be known when the row's list was scored.
  void gather_rows(recops::VectorView<const Index> rows, Index max_length, HistoryBatch& out) const {
    for (const Index row : rows)
      recops::check_option("Histories::gather_rows", "rows", 0 <= row && row < log_->size(), "rows of the log",
                           static_cast<double>(row));
    start(max_length, out);
    for (const Index row : rows) {
      const auto r = static_cast<std::size_t>(row);
      append(log_->user[r], log_->time[r], max_length, out);
    }
  }

 private:
  static void start(Index max_length, HistoryBatch& out) {
    recops::check_option("Histories", "max_length", max_length >= 0, "max_length >= 0", static_cast<double>(max_length));
    out.items.clear();
    out.rows.clear();
    out.gap_hours.clear();
    out.offsets.assign(1, 0);
  }

  struct Span {
    Index first, last;
  };
  Span before(Index user, std::int64_t time) const {
    const auto u = static_cast<std::size_t>(user);
    const auto first = rows_.begin() + begin_[u], last = rows_.begin() + begin_[u + 1];
    const auto end = std::lower_bound(
        first, last, time, [&](std::int32_t row, std::int64_t t) { return log_->time[static_cast<std::size_t>(row)] < t; });
    return {static_cast<Index>(first - rows_.begin()), static_cast<Index>(end - rows_.begin())};
  }

  void append(Index user, std::int64_t time, Index max_length, HistoryBatch& out) const {
    const auto [first, last] = before(user, time);
    for (Index k = std::max(first, last - max_length); k < last; ++k) {
      const std::int32_t row = rows_[static_cast<std::size_t>(k)];
      const auto r = static_cast<std::size_t>(row);
      out.items.push_back(log_->item[r]);
      out.rows.push_back(row);
      out.gap_hours.push_back(static_cast<float>(static_cast<double>(time - log_->time[r]) / 3600.0));
    }
    out.offsets.push_back(static_cast<std::int32_t>(out.items.size()));
  }

  const InteractionLog* log_;
  std::vector<std::int32_t> begin_;  // events of user u are rows_[begin_[u]] .. rows_[begin_[u + 1] - 1]
  std::vector<std::int32_t> rows_;
};

}  // namespace examples
