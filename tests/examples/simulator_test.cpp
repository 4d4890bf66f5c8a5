// Oracle: the frequencies of repeated draws against the probabilities the simulator states, within their sampling error.
#include "examples/common/simulator.hpp"

#include <set>

#include "support/catch.hpp"

using namespace examples;

namespace {

SimulatorOptions small_world() {
  SimulatorOptions options;
  options.users = 60;
  options.items = 200;
  options.categories = 12;
  options.visits_per_user = 12;
  return options;
}

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// |count - expected| in standard deviations of a sum of independent draws.
double deviations(double count, double expected, double variance) { return std::abs(count - expected) / std::sqrt(variance); }

bool same(const InteractionLog& a, const InteractionLog& b) {
  return a.user == b.user && a.item == b.item && a.time == b.time && a.visit == b.visit && a.position == b.position &&
         a.labels == b.labels && a.would_purchase == b.would_purchase && a.domain == b.domain && a.hour == b.hour;
}

double auc(const std::vector<std::pair<double, bool>>& scored) {
  std::vector<std::pair<double, bool>> sorted = scored;
  std::sort(sorted.begin(), sorted.end());
  double ranks = 0, positives = 0;
  for (std::size_t i = 0; i < sorted.size();) {
    std::size_t end = i;
    double tied = 0;
    for (; end < sorted.size() && sorted[end].first == sorted[i].first; ++end) tied += sorted[end].second;
    ranks += tied * 0.5 * static_cast<double>(i + 1 + end);
    positives += tied;
    i = end;
  }
  return (ranks - positives * (positives + 1) / 2) / (positives * (static_cast<double>(sorted.size()) - positives));
}

}  // namespace

TEST_CASE("the same seed makes the same log, another seed another", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  const InteractionLog log = Simulator(options).generate();
  CHECK(same(log, Simulator(options).generate()));
  options.seed = 2;
  CHECK_FALSE(same(log, Simulator(options).generate()));
}

TEST_CASE("items do not depend on how many users there are", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  const Simulator few(options);
  options.users = 61;
  options.second_items = 40;
  const Simulator more(options);
  for (Index i = 0; i < options.items; ++i) {
    CHECK(few.item_category(i) == more.item_category(i));
    CHECK(few.item_vectors()(i, 3) == more.item_vectors()(i, 3));
  }
}

TEST_CASE("the default world has the size and the rates it promises", "[examples][simulator]") {
  const SimulatorOptions options;
  const Simulator simulator(options);
  const InteractionLog log = simulator.generate();
  CHECK(log.size() > 150'000);
  CHECK(log.size() < 250'000);
  double count[label_count] = {}, would = 0;
  for (Index r = 0; r < log.size(); ++r) {
    for (std::size_t l = 0; l < label_count; ++l) count[l] += log.labels[l][at(r)];
    would += log.would_purchase[at(r)];
  }
  const double clicks = count[0];
  CHECK(clicks / static_cast<double>(log.size()) == Approx(options.rates.click).epsilon(0.05));
  CHECK(count[1] / clicks == Approx(options.rates.long_view).epsilon(0.05));
  CHECK(count[2] / clicks == Approx(options.rates.like).epsilon(0.12));
  CHECK(count[3] / clicks == Approx(options.rates.purchase).epsilon(0.2));
  // Those who click convert more: the selection that entire-space models are about.
  CHECK(would / static_cast<double>(log.size()) < 0.8 * count[3] / clicks);

  std::vector<Index> impressions(at(log.items), 0);
  for (const std::int32_t item : log.item) ++impressions[at(item)];
  std::sort(impressions.begin(), impressions.end());
  CHECK(impressions[at(log.items / 2)] > 60);                                  // enough to learn an item from
  CHECK(impressions[at(log.items) - 1] > 5 * impressions[at(log.items / 2)]);  // and a head

  // Stated probabilities against outcomes: all rows, and in ten classes of predicted probability.
  std::vector<double> p(at(log.size()));
  for (Index r = 0; r < log.size(); ++r)
    p[at(r)] = simulator.true_probability(log.user[at(r)], log.item[at(r)], log.time[at(r)], Label::click, log.position[at(r)]);
  double expected[10] = {}, variance[10] = {}, observed[10] = {};
  for (Index r = 0; r < log.size(); ++r) {
    const auto c = static_cast<std::size_t>(std::min(9.0, 10 * p[at(r)]));
    expected[c] += p[at(r)];
    variance[c] += p[at(r)] * (1 - p[at(r)]);
    observed[c] += log.label(Label::click)[at(r)];
  }
  for (int c = 0; c < 10; ++c) CHECK(deviations(observed[c], expected[c], variance[c] + 1e-9) < 4.5);
}

TEST_CASE("labels have the structure that is documented", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.users = 300;
  options.rates = {.click = 0.4, .long_view = 0.4, .like = 0.2, .purchase = 0.2};
  const InteractionLog log = Simulator(options).generate();
  double long_views = 0, likes_after_long = 0, short_views = 0, likes_after_short = 0;
  for (Index r = 0; r < log.size(); ++r) {
    const bool click = log.label(Label::click)[at(r)];
    for (std::size_t l = 1; l < label_count; ++l) CHECK(log.labels[l][at(r)] <= click);
    CHECK(log.label(Label::purchase)[at(r)] == (click && log.would_purchase[at(r)]));
    if (!click) continue;
    (log.label(Label::long_view)[at(r)] ? long_views : short_views) += 1;
    (log.label(Label::long_view)[at(r)] ? likes_after_long : likes_after_short) += log.label(Label::like)[at(r)];
  }
  CHECK(likes_after_long / long_views > 1.5 * likes_after_short / short_views);
}

TEST_CASE("visits are contiguous, in order of time, and show what is available and new", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.second_items = 50;
  const Simulator simulator(options);
  const InteractionLog log = simulator.generate();
  REQUIRE(log.size() > 1000);
  std::set<std::pair<std::int32_t, std::int32_t>> pairs;
  std::vector<char> short_visit(at(log.visit.back() + 1), 1);
  for (Index r = 0; r < log.size(); ++r) {
    CHECK(simulator.is_available(log.item[at(r)], log.time[at(r)]));
    CHECK(pairs.emplace(log.user[at(r)], log.item[at(r)]).second);
    CHECK(log.domain[at(r)] == simulator.item_domain(log.item[at(r)]));
    CHECK(log.item_domain[at(log.item[at(r)])] == log.domain[at(r)]);
    CHECK(log.hour[at(r)] == hour_of(log.time[at(r)]));
    CHECK(log.time[at(r)] >= options.start_time);
    CHECK(static_cast<double>(log.time[at(r)]) < static_cast<double>(options.start_time) + options.days * 86400);
    if (log.position[at(r)] == options.shown - 1) short_visit[at(log.visit[at(r)])] = 0;
    if (r == 0) continue;
    CHECK(log.time[at(r)] >= log.time[at(r - 1)]);
    if (log.visit[at(r)] == log.visit[at(r - 1)]) {
      CHECK(log.user[at(r)] == log.user[at(r - 1)]);
      CHECK(log.time[at(r)] == log.time[at(r - 1)]);
      CHECK(log.position[at(r)] == log.position[at(r - 1)] + 1);
    } else {
      CHECK(log.visit[at(r)] == log.visit[at(r - 1)] + 1);
      CHECK(log.position[at(r)] == 0);
    }
  }
  const auto left = std::count(short_visit.begin(), short_visit.end(), 1);
  CHECK(left > 0);                                                // some users leave,
  CHECK(left < static_cast<std::ptrdiff_t>(short_visit.size()));  // some stay to the end
}

TEST_CASE("probabilities lie in [0, 1] for every pair and time", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.second_items = 30;
  const Simulator simulator(options);
  recops::Random random(recops_test::seed());
  for (int draw = 0; draw < 2000; ++draw) {
    const Index user = random.below(options.users), item = random.below(simulator.item_count());
    const std::int64_t time = options.start_time + random.below(28 * 86400);
    const double click = simulator.true_probability(user, item, time, Label::click);
    CHECK(click > 0);
    CHECK(click < 1);
    CHECK(simulator.true_probability_given_click(user, item, time, Label::click) == 1);
    for (const Label label : {Label::long_view, Label::like, Label::purchase}) {
      const double given = simulator.true_probability_given_click(user, item, time, label);
      CHECK(given > 0);
      CHECK(given < 1);
      CHECK(simulator.true_probability(user, item, time, label) == Approx(click * given));
    }
  }
  // The batch form says the same.
  const std::vector<std::int32_t> items{0, 7, 205};
  std::vector<double> out(3);
  simulator.true_probabilities(5, items, options.start_time + 1000, Label::like, out);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(out[i] == simulator.true_probability(5, items[i], options.start_time + 1000, Label::like));
}

TEST_CASE("repeated visits agree with the stated probabilities, exits included", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.rates = {.click = 0.3, .long_view = 0.4, .like = 0.2, .purchase = 0.2};
  options.position_bias = 0.5;
  const Simulator simulator(options);
  const std::vector<std::int32_t> list{3, 14, 15, 92, 65, 35};
  const Index user = 11;
  const std::int64_t time = options.start_time + 5 * 86400 + 3600 * 20;
  constexpr Index repeats = 40000;
  recops::Random random(recops_test::seed(), 77);
  std::vector<double> seen(list.size()), buys(list.size());
  std::vector<std::array<double, label_count>> counts(list.size(), {0, 0, 0, 0});
  for (Index n = 0; n < repeats; ++n) {
    const VisitOutcome outcome = simulator.show(user, list, time, random);
    for (Index k = 0; k < outcome.seen; ++k) {
      ++seen[at(k)];
      buys[at(k)] += outcome.would_purchase[at(k)];
      for (std::size_t l = 0; l < label_count; ++l) counts[at(k)][l] += outcome.labels[at(k) * label_count + l];
    }
  }
  double stays = 1, length = 0, total[label_count] = {}, expected_length = 0;
  for (Index k = 0; k < static_cast<Index>(list.size()); ++k) {
    CHECK(deviations(seen[at(k)], stays * repeats, stays * (1 - stays) * repeats + 1e-6) < 4.5);
    for (std::size_t l = 0; l < label_count; ++l) {
      const double p = simulator.true_probability(user, list[at(k)], time, static_cast<Label>(l), k);
      CHECK(deviations(counts[at(k)][l], p * seen[at(k)], p * (1 - p) * seen[at(k)]) < 4.5);
      total[l] += stays * p;
    }
    // The purchase a click would lead to is known without the click.
    const double conversion = simulator.true_probability_given_click(user, list[at(k)], time, Label::purchase);
    CHECK(deviations(buys[at(k)], conversion * seen[at(k)], conversion * (1 - conversion) * seen[at(k)]) < 4.5);
    length += stays;
    stays *= 1 - simulator.exit_probability(user, recops::IndexView(list.data(), k + 1), time);
  }
  for (std::size_t l = 0; l < label_count; ++l)
    CHECK(simulator.expected_labels(user, list, time, static_cast<Label>(l), &expected_length) == Approx(total[l]));
  CHECK(expected_length == Approx(length));
  CHECK(length < static_cast<double>(list.size()));
}

TEST_CASE("a dull list drives users away", "[examples][simulator]") {
  const SimulatorOptions options = small_world();
  const Simulator simulator(options);
  const std::int64_t time = options.start_time + 86400;
  // The same last item after items like it, and after items unlike it.
  const recops::MatrixView<const double> vectors = simulator.item_vectors();
  std::vector<std::pair<double, std::int32_t>> others;
  for (Index i = 1; i < options.items; ++i) {
    double cosine = 0;
    for (Index k = 0; k < options.dimension; ++k) cosine += vectors(0, k) * vectors(i, k);
    others.push_back({cosine, static_cast<std::int32_t>(i)});
  }
  std::sort(others.begin(), others.end());
  const std::vector<std::int32_t> varied{others[0].second, others[1].second, 0};
  const std::vector<std::int32_t> dull{others[others.size() - 1].second, others[others.size() - 2].second, 0};
  for (Index user = 0; user < 5; ++user)
    CHECK(simulator.exit_probability(user, dull, time) > 1.5 * simulator.exit_probability(user, varied, time));
  SimulatorOptions patient = options;
  patient.exit_rate = 0;
  CHECK(Simulator(patient).exit_probability(0, dull, time) == 0);
}

TEST_CASE("a purchase can end the visit", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.rates.purchase = 0.5;
  const Simulator stay(options);
  options.exit_purchase = 0.8;
  const Simulator leave(options);
  const std::int64_t time = options.start_time + 86400;
  const std::vector<std::int32_t> list{3, 1, 4, 15, 9, 2, 6};
  const double buys = leave.true_probability(2, 9, time, Label::purchase, 4);
  const std::vector<std::int32_t> prefix(list.begin(), list.begin() + 5);
  const double before = stay.exit_probability(2, prefix, time), after = leave.exit_probability(2, prefix, time);
  CHECK(after == Approx(before + (1 - before) * 0.8 * buys));
  double expected = 0, seen = 0;
  leave.expected_labels(2, list, time, Label::click, &expected);
  recops::Random random(4);
  constexpr int repeats = 4000;
  for (int n = 0; n < repeats; ++n) seen += static_cast<double>(leave.show(2, list, time, random).seen) / repeats;
  CHECK(std::abs(seen - expected) < 4.5 * 3.0 / std::sqrt(repeats));
}

TEST_CASE("interests follow the clock, drift, and one match suffices", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.users = 100;
  const auto change = [](const SimulatorOptions& o, std::int64_t later) {
    const Simulator simulator(o);
    double sum = 0;
    for (Index user = 0; user < 50; ++user)
      for (Index item = 0; item < 50; ++item)
        sum += std::abs(simulator.affinity(user, item, o.start_time + later) - simulator.affinity(user, item, o.start_time));
    return sum / 2500;
  };
  SimulatorOptions still = options;
  still.swing = still.daily_habit = still.weekly_habit = still.drift_angle = 0;
  CHECK(change(still, 20 * 86400 + 12 * 3600) == 0);
  SimulatorOptions daily = still, weekly = still, drift = still, swing = still;
  daily.daily_habit = weekly.weekly_habit = swing.swing = 1;
  drift.drift_angle = 0.6;
  CHECK(change(daily, 12 * 3600) > 0.01);
  CHECK(change(daily, 7 * 86400) < 1e-9);
  CHECK(change(weekly, 3 * 86400) > 0.01);
  CHECK(change(weekly, 7 * 86400) < 1e-9);
  CHECK(change(drift, 28 * 86400) > 0.05);
  CHECK(change(swing, 9 * 86400) > 0.01);
}

TEST_CASE("the best match in the history says more than the average one", "[examples][simulator]") {
  SimulatorOptions options;
  options.users = 300;
  options.items = 600;
  const Simulator simulator(options);
  const InteractionLog log = simulator.generate();
  const Histories histories(log);
  const recops::MatrixView<const double> vectors = simulator.item_vectors();
  std::vector<std::pair<double, bool>> by_mean, by_attention;
  HistoryBatch history;
  const RowRange test = split_by_time(log, 0.3).test;
  for (Index r = test.first; r < test.last; ++r) {
    histories.gather_rows(recops::VectorView<const Index>(&r, 1), 50, history);
    if (history.length(0) < 5) continue;
    double sum = 0, weights = 0, weighted = 0;
    for (const std::int32_t item : history.items) {
      double cosine = 0;
      for (Index k = 0; k < options.dimension; ++k) cosine += vectors(item, k) * vectors(log.item[at(r)], k);
      sum += cosine;
      weights += std::exp(3 * cosine);
      weighted += std::exp(3 * cosine) * cosine;
    }
    const bool click = log.label(Label::click)[at(r)];
    by_mean.push_back({sum / static_cast<double>(history.length(0)), click});
    by_attention.push_back({weighted / weights, click});
  }
  const double mean = auc(by_mean), attention = auc(by_attention);
  INFO("mean " << mean << ", attention " << attention);
  CHECK(mean > 0.6);
  CHECK(attention > mean + 0.03);
}

TEST_CASE("a second domain is sparse and shares the interests", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.users = 400;
  options.second_items = 80;
  const Simulator simulator(options);
  const InteractionLog log = simulator.generate();
  REQUIRE(log.items == 280);
  double rows[2] = {}, clicks[2] = {};
  for (Index r = 0; r < log.size(); ++r) {
    rows[log.domain[at(r)]] += 1;
    clicks[log.domain[at(r)]] += log.label(Label::click)[at(r)];
    CHECK((log.item[at(r)] >= options.items) == (log.domain[at(r)] == 1));
  }
  CHECK(rows[0] / rows[1] == Approx(options.second_ratio).epsilon(0.2));
  CHECK(clicks[0] / rows[0] == Approx(options.rates.click).epsilon(0.1));
  CHECK(clicks[1] / rows[1] == Approx(options.second_rates.click).epsilon(0.25));
  // A user's affinity for a category in one domain tells of it in the other.
  double together = 0, first = 0, second = 0, n = 0, xx = 0, yy = 0;
  for (Index user = 0; user < 100; ++user) {
    std::vector<double> a(at(options.categories)), b(a), na(a), nb(a);
    for (Index i = 0; i < simulator.item_count(); ++i) {
      const auto c = at(simulator.item_category(i));
      (i < options.items ? a : b)[c] += simulator.affinity(user, i, options.start_time);
      (i < options.items ? na : nb)[c] += 1;
    }
    for (std::size_t c = 0; c < a.size(); ++c) {
      if (na[c] == 0 || nb[c] == 0) continue;
      const double x = a[c] / na[c], y = b[c] / nb[c];
      together += x * y, first += x, second += y, xx += x * x, yy += y * y, n += 1;
    }
  }
  const double correlation =
      (together / n - first * second / n / n) / std::sqrt((xx / n - first * first / n / n) * (yy / n - second * second / n / n));
  CHECK(correlation > 0.7);
}

TEST_CASE("groups differ in rates and tastes as far as the options say", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.users = 400;
  options.user_spread = 0;
  const auto spread = [](const SimulatorOptions& o) {
    const Simulator simulator(o);
    std::vector<double> sum(at(o.groups)), n(at(o.groups));
    for (Index user = 0; user < o.users; ++user) {
      for (Index item = 0; item < 40; ++item)
        sum[at(simulator.user_group(user))] += simulator.true_probability(user, item, o.start_time + 1000, Label::click);
      n[at(simulator.user_group(user))] += 40;
    }
    for (std::size_t g = 0; g < sum.size(); ++g) sum[g] /= n[g];
    return *std::max_element(sum.begin(), sum.end()) / *std::min_element(sum.begin(), sum.end());
  };
  options.group_taste = 0;
  options.group_rates = 0;
  CHECK(spread(options) < 1.15);
  options.group_rates = 1;
  CHECK(spread(options) > 1.5);
}

TEST_CASE("few items: visits get shorter, nothing breaks", "[examples][simulator]") {
  SimulatorOptions options = small_world();
  options.users = 3;
  options.items = 5;
  options.categories = 1;
  options.interests_min = options.interests_max = 4;  // more than there are categories
  options.dimension = 1;
  const InteractionLog log = Simulator(options).generate();
  CHECK(log.size() <= 15);
  options.repeats = true;
  CHECK(Simulator(options).generate().size() > 15);
}

TEST_CASE("options out of range are refused by name", "[examples][simulator]") {
  const auto refused = [](auto&& change, const char* field) {
    SimulatorOptions options = small_world();
    change(options);
    CHECK_THROWS_WITH(Simulator(options), recops_test::contains(field));
  };
  refused([](SimulatorOptions& o) { o.users = 0; }, "users");
  refused([](SimulatorOptions& o) { o.items = -1; }, "items");
  refused([](SimulatorOptions& o) { o.interests_max = 1; }, "interests_max");
  refused([](SimulatorOptions& o) { o.rates.click = 1; }, "rates.click");
  refused([](SimulatorOptions& o) { o.days = std::nan(""); }, "days");
  refused([](SimulatorOptions& o) { o.swing = INFINITY; }, "swing");
  refused([](SimulatorOptions& o) { o.exit_rate = 1; }, "exit_rate");
  const Simulator simulator(small_world());
  CHECK_THROWS_AS(simulator.true_probability(60, 0, 0, Label::click), recops::Error);
  CHECK_THROWS_AS(simulator.true_probability(0, 200, 0, Label::click), recops::Error);
  CHECK_THROWS_AS(simulator.exit_probability(0, recops::IndexView(), 0), recops::Error);
}
