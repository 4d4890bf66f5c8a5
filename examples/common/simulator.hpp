/// @file   examples/common/simulator.hpp
/// @brief  A seeded world of users, items and feedback whose true probabilities are known: the examples' default data.
///
/// A user has several interests; an item is taken when it matches *one* of them, whatever the others are:
///
///     A(u, i, t) = 1/s · log Σ_m π_um(t) · exp( s · <z_um(t), v_i> )        a soft maximum over the interests m
///     P(click)   = sigmoid( b + a · A + q · quality_i + f · freshness_i(t) + rate_u - p · log(1 + position) )
///
/// Interests drift, come and go, and follow the hour and the weekday; items appear and age. Only what a logging policy shows is
/// labelled, but the probability of every label of every (user, item, time) can be asked for. docs/simulator.md has all formulas.
///
/// Everything is a function of the seed: the same build makes the same log.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <recops/core/error.hpp>
#include <recops/core/matrix.hpp>
#include <recops/core/random.hpp>
#include <recops/core/views.hpp>
#include <vector>

#include "interactions.hpp"

namespace examples {

/// How often things happen, on average over what the logging policy shows; the intercepts are solved for.
struct LabelRates {
  double click = 0.18;      ///< per impression
  double long_view = 0.40;  ///< per click
  double like = 0.05;       ///< per click
  double purchase = 0.015;  ///< per click
};

/// The world. Every strength is in units of a logit unless it says otherwise.
struct SimulatorOptions {
  std::uint64_t seed = 1;  ///< all that is random derives from it

  // Sizes.
  Index users = 1000;                    ///< number of users
  Index items = 2000;                    ///< number of items of the main domain, numbered 0 .. items - 1
  Index categories = 24;                 ///< number of item categories
  Index themes = 6;                      ///< parents of the categories: categories of one theme are alike
  Index groups = 4;                      ///< user groups, with tastes and rates of their own
  Index dimension = 16;                  ///< of the latent space of interests and items
  double days = 28;                      ///< length of the log
  std::int64_t start_time = 1704067200;  ///< Unix seconds of its beginning (Monday, 1 January 2024)
  double visits_per_user = 30;           ///< mean number of visits
  double activity_spread = 0.6;          ///< standard deviation of the log of a user's number of visits
  Index candidates = 60;                 ///< items the logging policy scores per visit
  Index shown = 10;                      ///< most items shown per visit; fewer if the user leaves
  bool repeats = false;                  ///< may an item be shown to a user in more than one visit?

  // Interests.
  Index interests_min = 3;        ///< fewest interests of a user
  Index interests_max = 6;        ///< most interests of a user
  double theme_spread = 1.5;      ///< distance of category centres from their theme (a theme has length 1)
  double item_spread = 0.6;       ///< distance of items from their category centre (length 1)
  double interest_spread = 0.45;  ///< distance of interests from the centre of their category (length 1)
  double sharpness = 10;          ///< s: how strictly one interest must match; small values blend the interests
  double drift_angle = 0.6;       ///< radians an interest moves during the whole log, towards another category
  double swing = 0.8;             ///< slow waxing and waning of an interest: amplitude of its log weight
  double swing_days = 18;         ///< period of it, days
  double daily_habit = 1.2;       ///< amplitude of an interest's log weight over the hours of a day
  double weekly_habit = 0.7;      ///< amplitude of it over the days of a week

  // Items.
  double zipf = 0.7;          ///< popularity of the item of rank r is (r + 1)^-zipf
  double new_items = 0.3;     ///< share of items that appear during the log; the others were there before
  double freshness_days = 5;  ///< an item's novelty falls by e in this time

  // Feedback.
  LabelRates rates = {};            ///< of the main domain
  double click_affinity = 8.0;      ///< a: per unit of A, which spans about -0.3 .. 0.9
  double click_quality = 0.35;      ///< q: per standard deviation of quality
  double click_freshness = 0.5;     ///< f: of an item that appears this moment
  double user_spread = 0.3;         ///< standard deviation of a user's own click rate
  double position_bias = 0;         ///< p: 0 = every shown position is looked at alike
  double long_view_affinity = 2.5;  ///< per unit of A
  double like_affinity = 2.5;       ///< per unit of A
  double like_after_long = 1.5;     ///< a long view makes a like more probable
  double purchase_affinity = 4.0;   ///< per unit of A
  double price_sensitivity = 0.8;   ///< of the median user, per standard deviation of log price

  // Logging policy: candidates are drawn by popularity and at random, then ranked by these.
  double policy_popularity = 0.3;  ///< weight of log popularity
  double policy_affinity = 1.5;    ///< weight of A
  double policy_noise = 1.0;       ///< weight of Gumbel noise; above 0, every available item may be shown

  // Groups.
  double group_taste = 1.0;  ///< standard deviation of a group's log preference for a category
  double group_rates = 0.3;  ///< standard deviation of a group's offset, drawn for each label

  // Exits: after each item the user may leave.
  double exit_rate = 0.08;     ///< probability of leaving with neither boredom nor a match
  double exit_boredom = 2.0;   ///< per unit of the mean cosine of the last item with the `exit_window` items before it
  double exit_affinity = 2.0;  ///< a matching item keeps the user: subtracted per unit of A
  Index exit_window = 4;       ///< items that boredom remembers
  double exit_purchase = 0;    ///< probability of leaving because of a purchase, besides: the errand is done

  // A second domain (think of live streams beside short videos): items of its own, the same users and interests.
  Index second_items = 0;     ///< 0 = none; its items are numbered items .. items + second_items - 1
  double second_ratio = 9;    ///< visits of the main domain per visit of the second
  double second_shift = 0.4;  ///< how far its category centres lie from those of the main domain (length 1)
  LabelRates second_rates{.click = 0.06, .long_view = 0.30, .like = 0.04, .purchase = 0.01};  ///< of the second domain
};

/// What came of a list that was shown.
struct VisitOutcome {
  Index seen = 0;                            ///< items looked at before the user left
  std::vector<std::uint8_t> labels;          ///< [seen, label_count]
  std::vector<std::uint8_t> would_purchase;  ///< [seen]: the purchase a click would have led to
};

/// See the head of this file. Construction makes the world, `generate` a log of it. `const` calls are safe from many threads.
class Simulator {
 public:
  /// Throws `Error` for options out of range.
  explicit Simulator(const SimulatorOptions& options = {}) : o_(options) {
    check();
    make_items();
    make_users();
    calibrate();
  }

  const SimulatorOptions& options() const { return o_; }
  /// Items of all domains.
  Index item_count() const { return o_.items + o_.second_items; }
  Index item_category(Index item) const { return item_category_[at(item)]; }
  Index user_group(Index user) const { return user_group_[at(user)]; }
  int item_domain(Index item) const { return item < o_.items ? 0 : 1; }
  /// Latent unit vectors of the items, `[item_count, dimension]`: the truth behind similarity (diversity, boredom).
  recops::MatrixView<const double> item_vectors() const { return item_; }
  /// Has the item appeared by `time`?
  bool is_available(Index item, std::int64_t time) const { return release_[at(item)] <= time; }

  /// The log of all visits, sorted by time. Rows of a visit are contiguous. Deterministic.
  InteractionLog generate() const {
    std::vector<Visit> visits;
    std::vector<Row> rows;
    std::vector<char> had(at(item_count()), 0);
    Scratch scratch;
    for (Index user = 0; user < o_.users; ++user) {
      recops::Random random(o_.seed, stream(Part::visits, user));
      std::fill(had.begin(), had.end(), char{0});
      for (const std::int64_t time : visit_times(user, random)) {
        const int domain = o_.second_items > 0 && random.chance(1 / (1 + o_.second_ratio)) ? 1 : 0;
        choose_list(user, time, domain, random, had, scratch);
        const auto& list = scratch.list;
        run_visit(list, time, scratch, random, scratch.outcome);
        if (!o_.repeats)
          for (Index k = 0; k < scratch.outcome.seen; ++k) had[at(list[at(k)])] = 1;
        visits.push_back({time, static_cast<std::int32_t>(user), static_cast<std::uint8_t>(domain), rows.size(),
                          static_cast<std::int32_t>(scratch.outcome.seen)});
        for (Index k = 0; k < scratch.outcome.seen; ++k) {
          Row row{list[at(k)], {}, scratch.outcome.would_purchase[at(k)]};
          for (Index l = 0; l < label_count; ++l) row.labels[at(l)] = scratch.outcome.labels[at(k * label_count + l)];
          rows.push_back(row);
        }
      }
    }
    std::sort(visits.begin(), visits.end(), [](const Visit& a, const Visit& b) {
      if (a.time != b.time) return a.time < b.time;
      return a.user != b.user ? a.user < b.user : a.first < b.first;
    });
    return assemble(visits, rows);
  }

  /// Probability that showing `item` to `user` at `time` (Unix seconds) leads to `label`: of every pair, shown or not. Labels
  /// other than the click include the click they need. An item that has not appeared yet counts as brand new.
  double true_probability(Index user, Index item, std::int64_t time, Label label, Index position = 0) const {
    check_pair("Simulator::true_probability", user, item);
    Moment moment;
    begin_moment(user, time, moment);
    return impression_probability(features(moment, item, time), label, position);
  }

  /// The same for a list of items, each at position 0; one preparation of the user serves them all.
  void true_probabilities(Index user, recops::IndexView items, std::int64_t time, Label label,
                          recops::VectorView<double> out) const {
    recops::check_size("Simulator::true_probabilities", "out", out, items.size());
    recops::check_indices("Simulator::true_probabilities", "items", items, item_count());
    check_pair("Simulator::true_probabilities", user, 0);
    Moment moment;
    begin_moment(user, time, moment);
    for (Index i = 0; i < items.size(); ++i) out[i] = impression_probability(features(moment, items[i], time), label, 0);
  }

  /// Probability of `label` once `item` is clicked, of every pair, clicked or not: the entire-space truth of conversion.
  /// 1 for the click itself.
  double true_probability_given_click(Index user, Index item, std::int64_t time, Label label) const {
    check_pair("Simulator::true_probability_given_click", user, item);
    Moment moment;
    begin_moment(user, time, moment);
    return click_probability_of(features(moment, item, time), label);
  }

  /// A(u, i, t): how well the item matches the best of the user's interests, about -0.3 .. 0.9.
  double affinity(Index user, Index item, std::int64_t time) const {
    check_pair("Simulator::affinity", user, item);
    Moment moment;
    begin_moment(user, time, moment);
    return affinity(moment, item);
  }

  /// Probability that the user leaves after the last of the items seen so far (in order, at least one).
  double exit_probability(Index user, recops::IndexView seen, std::int64_t time) const {
    recops::check_option("Simulator::exit_probability", "seen", seen.size() > 0, "at least one item", 0);
    recops::check_indices("Simulator::exit_probability", "seen", seen, item_count());
    check_pair("Simulator::exit_probability", user, 0);
    Moment moment;
    begin_moment(user, time, moment);
    const Index last = seen.size() - 1;
    const Features f = features(moment, seen[last], time);
    const double exit = exit_after(f.affinity, seen, last);
    return exit + (1 - exit) * exit_by_purchase(f, last);
  }

  /// Expected number of `label` when `list` is shown from its top and the user may leave after each item: the exact value of a
  /// list. The expected length of the visit with `length`.
  double expected_labels(Index user, recops::IndexView list, std::int64_t time, Label label, double* length = nullptr) const {
    recops::check_indices("Simulator::expected_labels", "list", list, item_count());
    check_pair("Simulator::expected_labels", user, 0);
    Moment moment;
    begin_moment(user, time, moment);
    double sum = 0, seen = 0, stays = 1;
    for (Index k = 0; k < list.size(); ++k) {
      const Features f = features(moment, list[k], time);
      sum += stays * impression_probability(f, label, k);
      seen += stays;
      stays *= (1 - exit_after(f.affinity, list, k)) * (1 - exit_by_purchase(f, k));
    }
    if (length) *length = seen;
    return sum;
  }

  /// Shows `list` to the user and draws what happens; for trying a policy of one's own. `random` decides.
  VisitOutcome show(Index user, recops::VectorView<const std::int32_t> list, std::int64_t time, recops::Random& random) const {
    recops::check_indices("Simulator::show", "list", recops::IndexView(list.data(), list.size()), item_count());
    check_pair("Simulator::show", user, 0);
    Scratch scratch;
    VisitOutcome outcome;
    begin_moment(user, time, scratch.moment);
    run_visit(list, time, scratch, random, outcome);
    return outcome;
  }

 private:
  // Each part of the world draws from streams of its own: changing the number of users leaves the items as they are.
  enum class Part : std::uint64_t { themes = 1, categories, groups, items, users, visits, pilot };
  static std::uint64_t stream(Part part, Index i) {
    return (static_cast<std::uint64_t>(part) << 48) + static_cast<std::uint64_t>(i);
  }
  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }
  static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
  static double wave(double phase) { return std::cos(6.283185307179586 * phase); }

  struct Interest {
    double log_weight, swing_phase, hour_phase, week_phase, drift_rate;
  };
  struct UserTraits {
    Index first_interest, interests;
    double rate[label_count];  // logit offsets
    double price, visits, hour_phase, week_phase;
  };
  // What the labels depend on.
  struct Features {
    double affinity;
    double logit[label_count];  // without intercepts; of the like without the long view, of others given the click
    int domain;
  };
  // A user's interests at one time.
  struct Moment {
    Index user = 0, count = 0;
    std::vector<double> vectors, log_weights;  // [count, dimension], [count]; the weights sum to 1
  };
  struct Visit {
    std::int64_t time;
    std::int32_t user;
    std::uint8_t domain;
    std::size_t first;
    std::int32_t count;
  };
  struct Row {
    std::int32_t item;
    std::array<std::uint8_t, label_count> labels;
    std::uint8_t would_purchase;
  };
  struct Scored {
    double score;
    std::int32_t item;
  };
  struct Scratch {
    Moment moment;
    std::vector<Scored> pool;
    std::vector<char> in_pool;
    std::vector<std::int32_t> list;
    VisitOutcome outcome;
  };

  void check() const {
    const auto need = [](bool ok, const char* field, const char* expected, double actual) {
      recops::check_option("Simulator", field, ok, expected, actual);
    };
    const auto count = [&](Index n, const char* field, Index least) {
      need(n >= least && n <= 100000000, field, least == 0 ? "0 to 1e8" : "1 to 1e8", static_cast<double>(n));
    };
    count(o_.users, "users", 1);
    count(o_.items, "items", 1);
    count(o_.categories, "categories", 1);
    count(o_.themes, "themes", 1);
    count(o_.groups, "groups", 1);
    count(o_.dimension, "dimension", 1);
    count(o_.candidates, "candidates", 1);
    count(o_.second_items, "second_items", 0);
    count(o_.interests_min, "interests_min", 1);
    need(o_.interests_max >= o_.interests_min, "interests_max", "at least interests_min", static_cast<double>(o_.interests_max));
    need(o_.shown >= 1 && o_.shown <= 32767, "shown", "1 to 32767", static_cast<double>(o_.shown));
    need(o_.exit_window >= 0, "exit_window", "0 or more", static_cast<double>(o_.exit_window));
    const auto positive = [&](double x, const char* field) { need(x > 0 && x < 1e9, field, "a positive number", x); };
    positive(o_.days, "days");
    positive(o_.visits_per_user, "visits_per_user");
    positive(o_.sharpness, "sharpness");
    positive(o_.swing_days, "swing_days");
    positive(o_.freshness_days, "freshness_days");
    positive(o_.second_ratio, "second_ratio");
    const std::pair<double, const char*> any[] = {{o_.activity_spread, "activity_spread"},
                                                  {o_.theme_spread, "theme_spread"},
                                                  {o_.item_spread, "item_spread"},
                                                  {o_.interest_spread, "interest_spread"},
                                                  {o_.drift_angle, "drift_angle"},
                                                  {o_.swing, "swing"},
                                                  {o_.daily_habit, "daily_habit"},
                                                  {o_.weekly_habit, "weekly_habit"},
                                                  {o_.zipf, "zipf"},
                                                  {o_.click_affinity, "click_affinity"},
                                                  {o_.click_quality, "click_quality"},
                                                  {o_.click_freshness, "click_freshness"},
                                                  {o_.user_spread, "user_spread"},
                                                  {o_.position_bias, "position_bias"},
                                                  {o_.long_view_affinity, "long_view_affinity"},
                                                  {o_.like_affinity, "like_affinity"},
                                                  {o_.like_after_long, "like_after_long"},
                                                  {o_.purchase_affinity, "purchase_affinity"},
                                                  {o_.price_sensitivity, "price_sensitivity"},
                                                  {o_.policy_popularity, "policy_popularity"},
                                                  {o_.policy_affinity, "policy_affinity"},
                                                  {o_.policy_noise, "policy_noise"},
                                                  {o_.group_taste, "group_taste"},
                                                  {o_.group_rates, "group_rates"},
                                                  {o_.exit_boredom, "exit_boredom"},
                                                  {o_.exit_affinity, "exit_affinity"},
                                                  {o_.second_shift, "second_shift"}};
    for (const auto& [value, field] : any) need(std::isfinite(value) && std::abs(value) < 1e6, field, "a finite number", value);
    need(o_.new_items >= 0 && o_.new_items <= 1, "new_items", "0 to 1", o_.new_items);
    need(o_.exit_rate >= 0 && o_.exit_rate < 1, "exit_rate", "0 to below 1", o_.exit_rate);
    need(o_.exit_purchase >= 0 && o_.exit_purchase <= 1, "exit_purchase", "0 to 1", o_.exit_purchase);
    for (const LabelRates* r : {&o_.rates, &o_.second_rates}) {
      for (const auto& [rate, field] : {std::pair{r->click, "rates.click"}, std::pair{r->long_view, "rates.long_view"},
                                        std::pair{r->like, "rates.like"}, std::pair{r->purchase, "rates.purchase"}})
        need(rate > 0 && rate < 1, field, "above 0 and below 1", rate);
    }
  }
  void check_pair(const char* operation, Index user, Index item) const {
    recops::check_option(operation, "user", 0 <= user && user < o_.users, "a user of this world", static_cast<double>(user));
    recops::check_option(operation, "item", 0 <= item && item < item_count(), "an item of this world", static_cast<double>(item));
  }

  double dot(const double* a, const double* b) const {
    double sum = 0;
    for (Index k = 0; k < o_.dimension; ++k) sum += a[k] * b[k];
    return sum;
  }
  void normalise(double* v) const {
    const double length = std::sqrt(dot(v, v));
    for (Index k = 0; k < o_.dimension; ++k) v[k] /= length;
  }
  /// A unit vector near `centre`: noise of expected length `spread` is added to it.
  void scatter(const double* centre, double spread, recops::Random& random, double* out) const {
    const double scale = spread / std::sqrt(static_cast<double>(o_.dimension));
    for (Index k = 0; k < o_.dimension; ++k) out[k] = (centre ? centre[k] : 0.0) + scale * random.normal();
    normalise(out);
  }

  void make_items() {
    const Index n = item_count(), d = o_.dimension;
    recops::Matrix<double> theme(o_.themes, d), shifted(o_.categories, d);
    centre_.resize(o_.categories, d);
    for (Index t = 0; t < o_.themes; ++t) {
      recops::Random random(o_.seed, stream(Part::themes, t));
      scatter(nullptr, 1, random, theme.row(t));
    }
    std::vector<double> category_price(at(o_.categories));
    for (Index c = 0; c < o_.categories; ++c) {
      recops::Random random(o_.seed, stream(Part::categories, c));
      scatter(theme.row(c % o_.themes), o_.theme_spread, random, centre_.row(c));
      category_price[at(c)] = random.normal();
      scatter(centre_.row(c), o_.second_shift, random, shifted.row(c));
    }
    item_.resize(n, d);
    item_category_.resize(at(n));
    release_.resize(at(n));
    price_.resize(at(n));
    quality_.resize(at(n));
    depth_.resize(at(n));
    log_popularity_.resize(at(n));
    std::vector<double> key(at(n));
    for (Index i = 0; i < n; ++i) {
      recops::Random random(o_.seed, stream(Part::items, i < o_.items ? i : (Index{1} << 40) + i - o_.items));
      const Index c = random.below(o_.categories);
      item_category_[at(i)] = static_cast<std::int32_t>(c);
      scatter(i < o_.items ? centre_.row(c) : shifted.row(c), o_.item_spread, random, item_.row(i));
      price_[at(i)] = std::sqrt(0.5) * (category_price[at(c)] + random.normal());
      const double day = random.chance(o_.new_items) ? random.uniform(0, o_.days) : random.uniform(-60, 0);
      release_[at(i)] = o_.start_time + static_cast<std::int64_t>(std::floor(day * 86400));
      depth_[at(i)] = 0.7 * random.normal();
      key[at(i)] = random.uniform();
      quality_[at(i)] = random.normal();
    }
    make_popularity(0, o_.items, key);
    make_popularity(o_.items, n, key);
  }

  /// Ranks the items of a domain by their random keys, and lets quality follow popularity with correlation 0.7.
  void make_popularity(Index first, Index last, const std::vector<double>& key) {
    const Index n = last - first;
    if (n == 0) return;
    std::vector<std::int32_t> order(at(n));
    for (Index r = 0; r < n; ++r) order[at(r)] = static_cast<std::int32_t>(first + r);
    std::sort(order.begin(), order.end(),
              [&](std::int32_t a, std::int32_t b) { return key[at(a)] != key[at(b)] ? key[at(a)] < key[at(b)] : a < b; });
    double sum = 0, squares = 0;
    for (Index r = 0; r < n; ++r) {
      const double x = -std::log(static_cast<double>(r + 1));
      sum += x;
      squares += x * x;
    }
    const double mean = sum / static_cast<double>(n);
    const double deviation = std::sqrt(std::max(squares / static_cast<double>(n) - mean * mean, 1e-12));
    auto& cumulative = cumulative_[first == 0 ? 0 : 1];
    cumulative.resize(at(n));
    for (Index r = 0; r < n; ++r) {
      const Index i = order[at(r)];
      const double x = -std::log(static_cast<double>(r + 1));
      log_popularity_[at(i)] = o_.zipf * x;
      quality_[at(i)] = 0.7 * (x - mean) / deviation + std::sqrt(1 - 0.49) * quality_[at(i)];
    }
    double total = 0;
    for (Index i = 0; i < n; ++i) cumulative[at(i)] = total += std::exp(log_popularity_[at(first + i)]);
  }

  void make_users() {
    const Index d = o_.dimension, most = std::min(o_.interests_max, o_.categories);
    recops::Matrix<double> taste(o_.groups, o_.categories), group_rate(o_.groups, label_count);
    for (Index g = 0; g < o_.groups; ++g) {
      recops::Random random(o_.seed, stream(Part::groups, g));
      for (Index c = 0; c < o_.categories; ++c) taste(g, c) = o_.group_taste * random.normal();
      for (Index l = 0; l < label_count; ++l) group_rate(g, l) = o_.group_rates * random.normal();
    }
    users_.resize(at(o_.users));
    user_group_.resize(at(o_.users));
    interest_.resize(o_.users * most, d);
    direction_.resize(o_.users * most, d);
    interests_.resize(at(o_.users * most));
    std::vector<Scored> order(at(o_.categories));
    Index next = 0;
    for (Index u = 0; u < o_.users; ++u) {
      recops::Random random(o_.seed, stream(Part::users, u));
      const Index g = random.below(o_.groups);
      user_group_[at(u)] = static_cast<std::int32_t>(g);
      UserTraits& user = users_[at(u)];
      for (Index l = 0; l < label_count; ++l) user.rate[l] = group_rate(g, l) + o_.user_spread * random.normal();
      user.price = o_.price_sensitivity * std::exp(0.5 * random.normal());
      user.visits =
          o_.visits_per_user * std::exp(o_.activity_spread * random.normal() - 0.5 * o_.activity_spread * o_.activity_spread);
      user.hour_phase = random.uniform();
      user.week_phase = random.uniform();
      const Index count = std::min(o_.interests_min + random.below(o_.interests_max - o_.interests_min + 1), most);
      user.first_interest = next;
      user.interests = count;
      // Categories without repetition, in proportion to exp(taste): the largest of taste + Gumbel noise.
      for (Index c = 0; c < o_.categories; ++c)
        order[at(c)] = {taste(g, c) - std::log(-std::log(random.uniform())), static_cast<std::int32_t>(c)};
      std::partial_sort(order.begin(), order.begin() + count, order.end(), better);
      for (Index m = 0; m < count; ++m, ++next) {
        double *z = interest_.row(next), *w = direction_.row(next);
        scatter(centre_.row(order[at(m)].item), o_.interest_spread, random, z);
        scatter(centre_.row(random.below(o_.categories)), o_.interest_spread, random, w);
        const double along = dot(z, w);
        for (Index k = 0; k < d; ++k) w[k] -= along * z[k];
        if (dot(w, w) > 1e-12) {
          normalise(w);
        } else {  // one dimension only: nowhere to drift
          std::fill(w, w + d, 0.0);
        }
        Interest& interest = interests_[at(next)];
        interest = {0.5 * random.normal(), random.uniform(), random.uniform(), random.uniform(), random.uniform(0.5, 1.5)};
      }
    }
  }

  static bool better(const Scored& a, const Scored& b) { return a.score != b.score ? a.score > b.score : a.item < b.item; }

  double day_of(std::int64_t time) const { return static_cast<double>(time - o_.start_time) / 86400.0; }

  /// The user's interests at `time`: turned towards where they drift to, weighted by season, hour and weekday.
  void begin_moment(Index u, std::int64_t time, Moment& moment) const {
    const UserTraits& user = users_[at(u)];
    const Index d = o_.dimension;
    const double day = day_of(time), clock = static_cast<double>(time) / 86400.0;  // Unix days begin at midnight UTC
    moment.user = u;
    moment.count = user.interests;
    moment.vectors.resize(at(user.interests * d));
    moment.log_weights.resize(at(user.interests));
    double sum = 0;
    for (Index m = 0; m < user.interests; ++m) {
      const Interest& interest = interests_[at(user.first_interest + m)];
      const double angle = o_.drift_angle * interest.drift_rate * day / o_.days, c = std::cos(angle), s = std::sin(angle);
      const double *z = interest_.row(user.first_interest + m), *w = direction_.row(user.first_interest + m);
      double* out = &moment.vectors[at(m * d)];
      for (Index k = 0; k < d; ++k) out[k] = c * z[k] + s * w[k];
      // An interest has one best hour; on the 7 days of a week it has one best day.
      moment.log_weights[at(m)] = interest.log_weight + o_.swing * wave(day / o_.swing_days + interest.swing_phase) +
                                  o_.daily_habit * wave(clock + interest.hour_phase) +
                                  o_.weekly_habit * wave(weekday_of(time) / 7.0 + interest.week_phase);
      sum += std::exp(moment.log_weights[at(m)]);
    }
    for (double& w : moment.log_weights) w -= std::log(sum);
  }

  double affinity(const Moment& moment, Index item) const {
    const double* v = item_.row(item);
    double sum = 0;
    for (Index m = 0; m < moment.count; ++m)  // |s · cosine| <= s: no overflow to guard against below sharpness 700
      sum += std::exp(moment.log_weights[at(m)] + o_.sharpness * (dot(&moment.vectors[at(m * o_.dimension)], v) - 1));
    return 1 + std::log(sum) / o_.sharpness;
  }

  Features features(const Moment& moment, Index item, std::int64_t time) const {
    const UserTraits& user = users_[at(moment.user)];
    const double a = affinity(moment, item);
    const double age = std::max(0.0, static_cast<double>(time - release_[at(item)]) / 86400.0);
    Features f{a, {}, item_domain(item)};
    f.logit[0] = o_.click_affinity * a + o_.click_quality * quality_[at(item)] +
                 o_.click_freshness * std::exp(-age / o_.freshness_days) + user.rate[0];
    f.logit[1] = o_.long_view_affinity * a + depth_[at(item)] + user.rate[1];
    f.logit[2] = o_.like_affinity * a + user.rate[2];
    f.logit[3] = o_.purchase_affinity * a - user.price * price_[at(item)] + user.rate[3];
    return f;
  }

  double click_probability(const Features& f, Index position) const {
    return sigmoid(intercept_[f.domain][0] + f.logit[0] - o_.position_bias * std::log1p(static_cast<double>(position)));
  }
  double like_probability(const Features& f, bool long_view) const {
    return sigmoid(intercept_[f.domain][2] + f.logit[2] + (long_view ? o_.like_after_long : 0.0));
  }
  /// Given a click.
  double click_probability_of(const Features& f, Label label) const {
    const double long_view = sigmoid(intercept_[f.domain][1] + f.logit[1]);
    switch (label) {
      case Label::click:
        return 1;
      case Label::long_view:
        return long_view;
      case Label::like:
        return long_view * like_probability(f, true) + (1 - long_view) * like_probability(f, false);
      case Label::purchase:
        return sigmoid(intercept_[f.domain][3] + f.logit[3]);
    }
    return 0;
  }
  double impression_probability(const Features& f, Label label, Index position) const {
    return click_probability(f, position) * click_probability_of(f, label);
  }

  /// After item `k` of `list`.
  template <class List>
  double exit_after(double item_affinity, const List& list, Index k) const {
    if (o_.exit_rate == 0) return 0;
    double boredom = 0;
    const Index first = std::max<Index>(0, k - o_.exit_window);
    for (Index j = first; j < k; ++j)
      boredom += dot(item_.row(list[static_cast<Index>(j)]), item_.row(list[static_cast<Index>(k)]));
    if (k > first) boredom /= static_cast<double>(k - first);
    return sigmoid(std::log(o_.exit_rate / (1 - o_.exit_rate)) + o_.exit_boredom * boredom - o_.exit_affinity * item_affinity);
  }

  double exit_by_purchase(const Features& f, Index position) const {
    return o_.exit_purchase == 0 ? 0 : o_.exit_purchase * impression_probability(f, Label::purchase, position);
  }

  std::vector<std::int64_t> visit_times(Index u, recops::Random& random) const {
    const UserTraits& user = users_[at(u)];
    // Between the two whole numbers nearest to the user's mean, so that the mean is kept; at least one visit.
    const double whole = std::floor(user.visits);
    const Index count = std::max<Index>(1, static_cast<Index>(whole) + (random.chance(user.visits - whole) ? 1 : 0));
    std::vector<std::int64_t> times;
    while (static_cast<Index>(times.size()) < count) {
      const auto time = o_.start_time + static_cast<std::int64_t>(random.uniform() * o_.days * 86400);
      const double rhythm = (1 + 0.8 * wave(static_cast<double>(time) / 86400.0 + user.hour_phase)) *
                            (1 + 0.4 * wave(weekday_of(time) / 7.0 + user.week_phase));
      if (random.chance(rhythm / (1.8 * 1.4))) times.push_back(time);
    }
    std::sort(times.begin(), times.end());
    return times;
  }

  /// The logging policy: draws candidates (half by popularity, half uniformly) that are available and new to the user, and lists
  /// the best by popularity, affinity and noise.
  void choose_list(Index user, std::int64_t time, int domain, recops::Random& random, const std::vector<char>& had,
                   Scratch& s) const {
    begin_moment(user, time, s.moment);
    const Index first = domain == 0 ? 0 : o_.items, n = domain == 0 ? o_.items : o_.second_items;
    const auto& cumulative = cumulative_[domain];
    s.pool.clear();
    s.in_pool.resize(at(item_count()), 0);
    // A bounded number of draws: where nearly everything was shown already, the list is short.
    for (Index draw = 0; draw < 4 * o_.candidates && static_cast<Index>(s.pool.size()) < o_.candidates; ++draw) {
      Index k;
      if (draw % 2 == 0) {
        k = std::lower_bound(cumulative.begin(), cumulative.end(), random.uniform() * cumulative.back()) - cumulative.begin();
        k = std::min(k, n - 1);
      } else {
        k = random.below(n);
      }
      const Index item = first + k;
      if (s.in_pool[at(item)] || had[at(item)] || !is_available(item, time)) continue;
      s.in_pool[at(item)] = 1;
      const double noise = -std::log(-std::log(random.uniform()));
      s.pool.push_back({o_.policy_popularity * log_popularity_[at(item)] + o_.policy_affinity * affinity(s.moment, item) +
                            o_.policy_noise * noise,
                        static_cast<std::int32_t>(item)});
    }
    for (const Scored& candidate : s.pool) s.in_pool[at(candidate.item)] = 0;
    const auto count = std::min(o_.shown, static_cast<Index>(s.pool.size()));
    std::partial_sort(s.pool.begin(), s.pool.begin() + count, s.pool.end(), better);
    s.list.clear();
    for (Index k = 0; k < count; ++k) s.list.push_back(s.pool[at(k)].item);
  }

  /// Draws a visit; `s.moment` is the user at `time`.
  void run_visit(recops::VectorView<const std::int32_t> list, std::int64_t time, const Scratch& s, recops::Random& random,
                 VisitOutcome& out) const {
    out.seen = 0;
    out.labels.clear();
    out.would_purchase.clear();
    for (Index k = 0; k < list.size(); ++k) {
      const Features f = features(s.moment, list[k], time);
      const bool click = random.chance(click_probability(f, k));
      const bool long_view = random.chance(click_probability_of(f, Label::long_view));
      const bool like = random.chance(like_probability(f, long_view));
      const bool purchase = random.chance(click_probability_of(f, Label::purchase));
      for (const bool label : {click, click && long_view, click && like, click && purchase}) out.labels.push_back(label);
      out.would_purchase.push_back(purchase);
      ++out.seen;
      if (random.chance(exit_after(f.affinity, list, k))) break;
      if (o_.exit_purchase > 0 && click && purchase && random.chance(o_.exit_purchase)) break;
    }
  }

  /// Solves for the intercepts on a pilot of the logging policy, so that the rates asked for come out: what is shown and when
  /// users leave does not depend on the labels.
  void calibrate() {
    const Index pilots = std::min<Index>(o_.users, 500);
    std::vector<char> had(at(item_count()), 0);
    Scratch s;
    for (int domain = 0; domain < (o_.second_items > 0 ? 2 : 1); ++domain) {
      const LabelRates& rates = domain == 0 ? o_.rates : o_.second_rates;
      std::vector<Features> shown;
      std::vector<double> bias;
      for (Index pilot = 0; pilot < pilots; ++pilot) {
        const Index user = pilot * o_.users / pilots;
        recops::Random random(o_.seed, stream(Part::pilot, domain * o_.users + user));
        std::fill(had.begin(), had.end(), char{0});
        for (const std::int64_t time : visit_times(user, random)) {
          if (domain == 1 && shown.size() > 0 && !random.chance(1 / o_.second_ratio)) continue;
          choose_list(user, time, domain, random, had, s);
          for (Index k = 0; k < static_cast<Index>(s.list.size()); ++k) {
            const Index item = s.list[at(k)];
            if (!o_.repeats) had[at(item)] = 1;
            shown.push_back(features(s.moment, item, time));
            bias.push_back(o_.position_bias * std::log1p(static_cast<double>(k)));
            if (random.chance(exit_after(shown.back().affinity, recops::IndexView(s.list), k))) break;
          }
        }
      }
      double* b = intercept_[domain];
      std::vector<double> clicks(shown.size());
      // The rate of `probability` under weights, solved for intercept b[l]; rates rise with b[l].
      const auto solve = [&](Index l, double rate, const std::vector<double>& weights, auto&& probability) {
        double low = -60, high = 60;
        for (int step = 0; step < 60; ++step) {
          b[l] = 0.5 * (low + high);
          double sum = 0, total = 0;
          for (std::size_t r = 0; r < shown.size(); ++r) {
            sum += weights[r] * probability(r);
            total += weights[r];
          }
          (sum < rate * total ? low : high) = b[l];
        }
      };
      solve(0, rates.click, std::vector<double>(shown.size(), 1.0),
            [&](std::size_t r) { return sigmoid(b[0] + shown[r].logit[0] - bias[r]); });
      for (std::size_t r = 0; r < shown.size(); ++r) clicks[r] = sigmoid(b[0] + shown[r].logit[0] - bias[r]);
      solve(1, rates.long_view, clicks, [&](std::size_t r) { return click_probability_of(shown[r], Label::long_view); });
      solve(2, rates.like, clicks, [&](std::size_t r) { return click_probability_of(shown[r], Label::like); });
      solve(3, rates.purchase, clicks, [&](std::size_t r) { return click_probability_of(shown[r], Label::purchase); });
    }
  }

  InteractionLog assemble(const std::vector<Visit>& visits, const std::vector<Row>& rows) const {
    InteractionLog log;
    log.users = o_.users;
    log.items = item_count();
    log.categories = o_.categories;
    log.groups = o_.groups;
    log.item_category = item_category_;
    log.item_release = release_;
    log.user_group = user_group_;
    log.item_price.assign(price_.begin(), price_.end());
    for (Index i = 0; i < item_count(); ++i) log.item_domain.push_back(static_cast<std::uint8_t>(item_domain(i)));
    const auto reserve = [&](auto&... columns) { (columns.reserve(rows.size()), ...); };
    reserve(log.user, log.item, log.time, log.visit, log.position, log.hour, log.weekday, log.domain, log.would_purchase,
            log.labels[0], log.labels[1], log.labels[2], log.labels[3]);
    std::int32_t number = 0;
    for (const Visit& visit : visits) {
      for (std::int32_t k = 0; k < visit.count; ++k) {
        const Row& row = rows[visit.first + static_cast<std::size_t>(k)];
        log.user.push_back(visit.user);
        log.item.push_back(row.item);
        log.time.push_back(visit.time);
        log.visit.push_back(number);
        log.position.push_back(static_cast<std::int16_t>(k));
        log.hour.push_back(static_cast<std::uint8_t>(hour_of(visit.time)));
        log.weekday.push_back(static_cast<std::uint8_t>(weekday_of(visit.time)));
        log.domain.push_back(visit.domain);
        for (std::size_t l = 0; l < label_count; ++l) log.labels[l].push_back(row.labels[l]);
        log.would_purchase.push_back(row.would_purchase);
      }
      ++number;
    }
    return log;
  }

  SimulatorOptions o_;
  double intercept_[2][label_count] = {};
  recops::Matrix<double> centre_, item_;  // [categories, dimension], [item_count, dimension]
  std::vector<std::int32_t> item_category_, user_group_;
  std::vector<std::int64_t> release_;
  std::vector<double> price_, quality_, depth_, log_popularity_;
  std::vector<double> cumulative_[2];  // of popularity, per domain
  std::vector<UserTraits> users_;
  std::vector<Interest> interests_;
  recops::Matrix<double> interest_, direction_;  // where an interest begins, and the orthogonal way it drifts
};

}  // namespace examples
