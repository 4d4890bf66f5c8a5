/// @file   recops/diversity/constraints.hpp
/// @brief  Rules that a list must keep: quotas, windows and gaps per category, items that must be in it, items with a fixed place.
///
/// Every selector of the family takes a `Constraints`. At each place only items that break no rule compete, with the scores they
/// have anyway. Where no item is left the rules are given up for that place in this order, and no further than needed:
///
///     windows, gaps, most, least, include           duplicates and pins are never given up
///
/// Nothing is given up in silence: `relaxed[t]` says exactly which rules the item at place t breaks, and `Selection::relaxed` is
/// the union, with `least` and `include` also where the list ended too early for them.
///
/// Ahead       Pinned and included items are counted from the first place on: a quota is not used up before they come, and windows
///             keep clear of pins to come. Minimums and includes get the last places that are still free at the latest.
/// Pins        A pin is never given up, whatever it breaks; it has its place even where its score is -infinity. An item that cannot
///             be picked at all (mask, NaN) loses its pin: rule `pin`. An include lost so is reported too.
/// Minimums    One above what may be picked is kept as far as there are items, and reported.
/// Cost        Per place O(window) and one look-up per rule for items whose scores could win. Scratch O(N) per way of grouping.
/// Errors      Error for shapes, indices out of range and items that are pinned or included twice.
/// Source      Our reconstruction; the kinds of rules are those common in feeds.
#pragma once
#include <algorithm>
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>
#include <recops/diversity/selection.hpp>

namespace recops {

/// Bits of `Constraints::relaxed` and `Selection::relaxed`.
enum ConstraintRule : std::uint8_t {
  rule_window = 1,
  rule_gap = 2,
  rule_most = 4,
  rule_least = 8,
  rule_include = 16,
  rule_pin = 32,
};

/// Rules about one way to group the items: by category, seller, author ...
struct GroupRules {
  IndexView groups = {};     ///< [N] group of each item; negative: none, no rule applies
  IndexView shown = {};      ///< groups of what was shown before, oldest first: windows and gaps look back on them
  Index window = 0;          ///< any `window` places in a row (0: no such rule) ...
  Index most_in_window = 1;  ///< ... hold at most this many items of a group
  Index gap = 0;             ///< at least this many other items between two of a group
  Index most = -1;           ///< at most this many of a group in the list; negative: any number
  VectorView<const std::int32_t> most_of = {};   ///< [G] the same for groups 0 to G - 1, instead of `most`; negative: any number
  VectorView<const std::int32_t> least_of = {};  ///< [G] at least this many of groups 0 to G - 1
};

/// What the list of one request must keep to. Everything may be left empty.
struct Constraints {
  VectorView<const GroupRules> groups = {};
  IndexView include = {};     ///< items that must be in the list, at any place; at most as many as places
  IndexView pins = {};        ///< [k] item at each place; negative: free
  IndexView duplicates = {};  ///< [N] key of each item: a list holds at most one item of a key; negative: unlike any other
  VectorView<std::uint8_t> relaxed =
      {};  ///< [k] output, or empty: the rules that the item at each place breaks, bits of `ConstraintRule`
};

inline namespace RECOPS_ABI {
namespace detail {

inline void check_constraints(const char* operation, const Constraints* constraints, Index items, Index places) {
  if (!constraints) return;
  for (const GroupRules& g : constraints->groups) {
    check_not_null(operation, "constraints.groups", g.groups);
    check_not_null(operation, "constraints.shown", g.shown);
    if (g.groups.size() != items) [[unlikely]]
      fail_size(operation, "constraints.groups", items, g.groups.size(), false);
    check_option(operation, "constraints.window", g.window >= 0, "window >= 0", static_cast<double>(g.window));
    check_option(operation, "constraints.most_in_window", g.most_in_window >= 1, "most_in_window >= 1",
                 static_cast<double>(g.most_in_window));
    check_option(operation, "constraints.gap", g.gap >= 0, "gap >= 0", static_cast<double>(g.gap));
    check_size(operation, "constraints.most_of", g.most_of, any_size);
    check_size(operation, "constraints.least_of", g.least_of, any_size);
  }
  const Constraints& c = *constraints;
  check_indices(operation, "constraints.include", c.include, items);
  check_not_null(operation, "constraints.pins", c.pins);
  check_not_null(operation, "constraints.duplicates", c.duplicates);
  if (!c.pins.empty() && c.pins.size() != places) [[unlikely]]
    fail_size(operation, "constraints.pins", places, c.pins.size(), false);
  if (!c.duplicates.empty() && c.duplicates.size() != items) [[unlikely]]
    fail_size(operation, "constraints.duplicates", items, c.duplicates.size(), false);
  if (!c.relaxed.empty()) check_size(operation, "constraints.relaxed", c.relaxed, places);
  check_option(operation, "constraints.include", c.include.size() <= places, "no more items than places",
               static_cast<double>(c.include.size()));
  for (Index t = 0; t < c.pins.size(); ++t) {  // few, so pairs are cheap
    if (c.pins[t] >= items) [[unlikely]]
      fail_at(operation, "constraints.pins", "items below ", items, t, c.pins[t]);
    for (Index s = 0; s < t; ++s) {
      if (c.pins[t] >= 0 && c.pins[t] == c.pins[s]) [[unlikely]]
        fail_at(operation, "constraints.pins", "every item once, not ", c.pins[t], t, c.pins[t]);
    }
  }
  for (Index t = 0; t < c.include.size(); ++t) {
    for (Index s = 0; s < t; ++s) {
      if (c.include[t] == c.include[s]) [[unlikely]]
        fail_at(operation, "constraints.include", "every item once, not ", c.include[t], t, c.include[t]);
    }
  }
}

/// Where a request stands with its constraints while places are filled one by one.
class ConstraintState {
 public:
  /// `usable(i)`: item i may be picked as far as is known.
  template <class F>
  ConstraintState(const Constraints& rules, Index items, Index places, F&& usable, Workspace& scratch)
      : rules_(rules), items_(items), places_(places), count_(rules.groups.size()) {
    ahead_ = filled<std::uint8_t>(items, 0, scratch);
    for (Index t = 0; t < rules.pins.size(); ++t) {
      if (rules.pins[t] < 0) continue;
      ahead_[rules.pins[t]] = pinned;
      ++pins_left_;
    }
    for (Index e = 0; e < rules.include.size(); ++e) {
      const Index i = rules.include[e];
      if (ahead_[i] == 0 && usable(i)) {
        ahead_[i] = included;
        ++pending_;
      }
    }
    if (!rules.duplicates.empty()) {
      keys_ = dense(rules.duplicates, {}, nullptr, nullptr, key_count_, scratch);
      taken_ = filled<std::int32_t>(key_count_, 0, scratch);
      for (Index t = 0; t < rules.pins.size(); ++t) {
        if (rules.pins[t] >= 0 && keys_[rules.pins[t]] >= 0) ++taken_[keys_[rules.pins[t]]];
      }
    }
    columns_ = scratch.take<Column>(count_);
    for (Index c = 0; c < count_; ++c) columns_[c] = column(rules.groups[c], usable, scratch);
  }

  /// Before the choice for place `t`. Returns the item pinned there, or -1.
  Index begin(Index t) {
    place_ = t;
    given_up_ = 0;
    tight_ = pending_ > 0 && pending_ >= free_places();
    for (Index c = 0; c < count_; ++c) mark_near(columns_[c]);
    return t < rules_.pins.size() ? rules_.pins[t] : -1;
  }
  /// What picking the item here would cost: the rules it breaks, as a number in which each rule outweighs all that are given up before
  /// it; `barred` if it must not be picked at all.
  static constexpr unsigned barred = 0xFF;
  unsigned cost(Index item) const {
    const bool out = ahead_[item] == pinned || (keys_ && keys_[item] >= 0 && taken_[keys_[item]] != 0);
    return out ? barred : broken(item);
  }
  /// May the item be picked at this place, after what was given up?
  bool allows(Index item) const { return (cost(item) & ~given_up_) == 0; }
  /// No item is allowed; one of this cost shall be.
  void give_up(unsigned cost) { given_up_ = cost; }
  /// The item stands at this place now.
  void take(Index item) {
    report(static_cast<std::uint8_t>(broken(item)));
    if (ahead_[item] == pinned) --pins_left_;
    if (ahead_[item] == included) --pending_;
    for (Index c = 0; c < count_; ++c) {
      Column& column = columns_[c];
      const std::int32_t g = column.group[item];
      column.places[column.shown + place_] = g;
      if (g >= 0 && ahead_[item] == 0) count_in(column, g);
    }
    if (keys_ && keys_[item] >= 0 && ahead_[item] != pinned) ++taken_[keys_[item]];
    ahead_[item] = 0;
  }
  /// The item pinned to this place cannot be picked: the place is free.
  void lose_pin(Index item) {
    lost_ |= rule_pin;
    --pins_left_;
    ahead_[item] = 0;
    if (keys_ && keys_[item] >= 0) --taken_[keys_[item]];
    for (Index c = 0; c < count_; ++c) {
      Column& column = columns_[c];
      column.places[column.shown + place_] = -1;
      if (column.group[item] >= 0) count_out(column, column.group[item]);
    }
    begin(place_);
    lost_at_ = place_;
  }
  /// The list has `count` items. Returns all that was given up.
  std::uint8_t finish(Index count) {
    for (Index e = 0; e < rules_.include.size(); ++e) {
      const Index i = rules_.include[e];
      if (!listed(i, count)) lost_ |= rule_include;
    }
    for (Index t = count; t < rules_.pins.size(); ++t) {
      if (rules_.pins[t] >= 0) lost_ |= rule_pin;
    }
    for (Index c = 0; c < count_; ++c) {
      const GroupRules& rules = *columns_[c].rules;
      for (Index g = 0; g < rules.least_of.size(); ++g) {
        Index have = 0;
        for (Index t = 0; t < count && have < rules.least_of[g]; ++t) have += rules.groups[picked_[t]] == g;
        if (have < rules.least_of[g]) lost_ |= rule_least;
      }
    }
    for (Index t = count; t < rules_.relaxed.size(); ++t) rules_.relaxed[t] = 0;
    return lost_;
  }
  void follow(const std::int32_t* picks) { picked_ = picks; }

 private:
  enum : std::uint8_t { included = 1, pinned = 2 };
  struct Column {
    const GroupRules* rules;
    std::int32_t* group;        // [N] dense, -1: none
    std::int32_t* total;        // [groups] in the list, or certain to come
    std::int32_t* most;         // [groups]
    std::int32_t* wanted;       // [groups] the minimum, less what is certain to come
    std::int32_t* open;         // [groups] items that may still be picked, as far as is known
    std::uint8_t* near;         // [groups] window and gap rules that one more at this place would break
    std::int32_t* near_groups;  // those with a bit in `near`
    std::int32_t* counts;       // [groups] zeros between uses
    std::int32_t* places;       // [shown + places] group at each place known so far, -1: none or unknown
    Index shown, near_count, lack;  // lack: sum of `lacking(group)`
  };

  template <class T>
  static T* filled(Index n, T value, Workspace& scratch) {
    T* const p = scratch.take<T>(n);
    std::fill(p, p + n, value);
    return p;
  }
  bool listed(Index item, Index count) const {
    return std::find(picked_, picked_ + count, static_cast<std::int32_t>(item)) != picked_ + count;
  }
  Index free_places() const { return places_ - place_ - pins_left_; }

  /// Numbers groups from 0 on: as they are where they are small, else in order. `named` [names] are those of `shown`; `old` receives
  /// per number the group it stands for.
  std::int32_t* dense(IndexView groups, IndexView shown, std::int32_t* named, std::int64_t** old, Index& count,
                      Workspace& scratch) {
    const Index n = groups.size();
    auto* const out = scratch.take<std::int32_t>(n);
    Index highest = -1;
    for (Index i = 0; i < n; ++i) highest = std::max(highest, groups[i]);
    if (highest < 4 * n + 256) {
      count = highest + 1;
      for (Index i = 0; i < n; ++i) out[i] = static_cast<std::int32_t>(std::max(Index{-1}, groups[i]));
      for (Index i = 0; i < shown.size(); ++i)
        named[i] = shown[i] > highest ? -1 : static_cast<std::int32_t>(std::max(Index{-1}, shown[i]));
      if (old) *old = nullptr;
      return out;
    }
    auto* const names = scratch.take<std::int64_t>(n);
    for (Index i = 0; i < n; ++i) names[i] = groups[i];
    std::sort(names, names + n);
    count = std::unique(names, names + n) - names;
    const auto number = [&](Index g) {
      const auto* const at = std::lower_bound(names, names + count, g);
      return g < 0 || at == names + count || *at != g ? -1 : static_cast<std::int32_t>(at - names);
    };
    for (Index i = 0; i < n; ++i) out[i] = number(groups[i]);
    for (Index i = 0; i < shown.size(); ++i) named[i] = number(shown[i]);
    if (old) *old = names;
    return out;
  }

  template <class F>
  Column column(const GroupRules& rules, F& usable, Workspace& scratch) {
    Column c{};
    c.rules = &rules;
    const Index back = std::max(std::max(rules.window - 1, rules.gap), Index{0});
    c.shown = std::min(rules.shown.size(), back);
    c.places = filled<std::int32_t>(c.shown + places_, -1, scratch);
    std::int64_t* names = nullptr;
    Index groups = 0;
    c.group = dense(rules.groups, rules.shown.segment(rules.shown.size() - c.shown, c.shown), c.places, &names, groups, scratch);
    c.total = filled<std::int32_t>(groups, 0, scratch);
    c.counts = filled<std::int32_t>(groups, 0, scratch);
    c.near = filled<std::uint8_t>(groups, 0, scratch);
    c.near_groups = scratch.take<std::int32_t>(groups);
    c.most = scratch.take<std::int32_t>(groups);
    c.wanted = scratch.take<std::int32_t>(groups);
    c.open = scratch.take<std::int32_t>(groups);
    for (Index i = 0; i < items_; ++i) {
      if (c.group[i] >= 0 && (ahead_[i] != 0 || usable(i))) ++c.counts[c.group[i]];
    }
    for (Index g = 0; g < groups; ++g) {
      const Index name = names ? static_cast<Index>(names[g]) : g;
      const Index most = 0 <= name && name < rules.most_of.size() ? rules.most_of[name] : rules.most;
      c.most[g] = static_cast<std::int32_t>(std::min<Index>(most < 0 ? never_reached : most, never_reached));
      const std::int32_t least = 0 <= name && name < rules.least_of.size() ? rules.least_of[name] : 0;
      c.wanted[g] = std::max(least, 0);  // negative: no minimum
      c.open[g] = std::exchange(c.counts[g], 0);
      c.lack += lacking(c, g);
    }
    for (Index i = 0; i < items_; ++i) {
      if (ahead_[i] != 0 && c.group[i] >= 0) count_in(c, c.group[i]);
    }
    for (Index t = 0; t < rules_.pins.size(); ++t) {
      if (rules_.pins[t] >= 0) c.places[c.shown + t] = c.group[rules_.pins[t]];
    }
    return c;
  }
  /// How many of a group are wanted besides those certain to come, as far as there are items.
  static std::int32_t lacking(const Column& c, Index g) { return std::max(0, std::min(c.wanted[g], c.open[g])); }
  static void count_in(Column& c, std::int32_t g) {
    c.lack -= lacking(c, g);
    ++c.total[g], --c.wanted[g], --c.open[g];
    c.lack += lacking(c, g);
  }
  static void count_out(Column& c, std::int32_t g) {  // of an item that cannot be picked, after all
    c.lack -= lacking(c, g);
    --c.total[g], ++c.wanted[g];
    c.lack += lacking(c, g);
  }

  /// Marks the groups of which one more at this place would break a window or gap rule.
  void mark_near(Column& c) const {
    for (Index e = 0; e < c.near_count; ++e) c.near[c.near_groups[e]] = 0;
    c.near_count = 0;
    const Index at = c.shown + place_, end = c.shown + places_;
    const auto mark = [&c](std::int32_t g, ConstraintRule rule) {
      if (c.near[g] == 0) c.near_groups[c.near_count++] = g;
      c.near[g] |= rule;
    };
    const GroupRules& rules = *c.rules;
    const Index gap = std::min(rules.gap, end), window = std::min(rules.window, end);  // any number may stand for "all"
    for (Index p = std::max(Index{0}, at - gap); p < std::min(end, at + gap + 1); ++p) {
      if (p != at && c.places[p] >= 0) mark(c.places[p], rule_gap);
    }
    if (window == 0) return;
    const Index first = std::max(Index{0}, at - window + 1), last = std::min(end, at + window);
    // The windows that hold this place, one after the other: counts of what else is known in them.
    const auto enter = [&](Index p) {
      if (p == at || c.places[p] < 0) return;
      if (++c.counts[c.places[p]] >= rules.most_in_window) mark(c.places[p], rule_window);
    };
    const auto leave = [&](Index p) {
      if (p != at && c.places[p] >= 0) --c.counts[c.places[p]];
    };
    for (Index p = first; p <= at; ++p) enter(p);
    Index begin = first;
    for (Index p = at + 1; p < last && pins_left_ > 0; ++p) {
      if (p - begin >= window) leave(begin++);
      enter(p);
    }
    const Index stop = pins_left_ > 0 ? std::max(last, at + 1) : at + 1;
    for (Index p = begin; p < stop; ++p) leave(p);
  }

  /// The rules that the item would break at this place.
  unsigned broken(Index item) const {
    unsigned bits = tight_ && ahead_[item] == 0 ? rule_include : 0;
    for (Index c = 0; c < count_; ++c) {
      const Column& column = columns_[c];
      const std::int32_t g = column.group[item];
      if (g >= 0) {
        bits |= column.near[g];
        if (column.total[g] - (ahead_[item] != 0) >= column.most[g]) bits |= rule_most;
      }
      if (ahead_[item] == 0 && column.lack > 0 && column.lack >= free_places() - pending_ && (g < 0 || lacking(column, g) == 0))
        bits |= rule_least;
    }
    return bits;
  }
  void report(std::uint8_t bits) {
    if (lost_at_ == place_) bits |= rule_pin;
    lost_ |= bits;
    if (!rules_.relaxed.empty()) rules_.relaxed[place_] = bits;
  }

  static constexpr std::int32_t never_reached = std::numeric_limits<std::int32_t>::max();
  const Constraints& rules_;
  Index items_, places_, count_, key_count_ = 0;
  Column* columns_ = nullptr;
  std::uint8_t* ahead_ = nullptr;  // [N] certain to come, and how
  std::int32_t* keys_ = nullptr;
  std::int32_t* taken_ = nullptr;  // [keys] items of the list, or pinned
  const std::int32_t* picked_ = nullptr;
  Index place_ = 0, pending_ = 0, pins_left_ = 0, lost_at_ = -1;
  bool tight_ = false;
  unsigned given_up_ = 0;
  std::uint8_t lost_ = 0;
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
