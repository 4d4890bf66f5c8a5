// Oracle: a loop over the whole log for each request; sets of rows counted by hand.
#include "examples/common/interactions.hpp"

#include <set>

#include "support/catch.hpp"

using namespace examples;

namespace {

/// A log of visits at random times, several of them in the same second.
InteractionLog random_log(Index users, Index visits, std::uint64_t seed) {
  recops::Random random(seed);
  std::vector<std::int64_t> times;
  for (Index v = 0; v < visits; ++v) times.push_back(1000 + random.below(visits / 2 + 1));
  std::sort(times.begin(), times.end());
  InteractionLog log;
  log.users = users;
  log.items = 50;
  log.categories = 1;
  for (Index v = 0; v < visits; ++v) {
    const auto user = static_cast<std::int32_t>(random.below(users));
    const Index length = 1 + random.below(5);
    for (Index k = 0; k < length; ++k) {
      log.user.push_back(user);
      log.item.push_back(static_cast<std::int32_t>(random.below(log.items)));
      log.time.push_back(times[static_cast<std::size_t>(v)]);
      log.visit.push_back(static_cast<std::int32_t>(v));
      log.position.push_back(static_cast<std::int16_t>(k));
      log.domain.push_back(random.chance(0.2) ? 1 : 0);
      log.label(Label::click).push_back(random.chance(0.4) ? 1 : 0);
    }
  }
  return log;
}

}  // namespace

TEST_CASE("hour and weekday of Unix seconds", "[examples][interactions]") {
  CHECK(hour_of(0) == 0);
  CHECK(weekday_of(0) == 3);  // Thursday, 1 January 1970
  CHECK(hour_of(1704067200 + 13 * 3600 + 59) == 13);
  CHECK(weekday_of(1704067200) == 0);  // Monday, 1 January 2024
  CHECK(weekday_of(1704067200 + 6 * 86400 + 86399) == 6);
  CHECK(hour_of(-1) == 23);
  CHECK(weekday_of(-1) == 2);
}

TEST_CASE("histories hold what happened before the request and nothing else", "[examples][interactions]") {
  const InteractionLog log = random_log(7, 300, recops_test::seed());
  for (const int domain : {-1, 0, 1}) {
    const Histories histories(log, Label::click, domain);
    std::vector<Index> rows;
    for (Index r = 0; r < log.size(); r += 3) rows.push_back(r);
    for (const Index most : {Index{0}, Index{1}, Index{8}, Index{1000}}) {
      HistoryBatch batch;
      histories.gather_rows(rows, most, batch);
      REQUIRE(batch.size() == static_cast<Index>(rows.size()));
      REQUIRE(batch.items.size() == batch.rows.size());
      REQUIRE(batch.gap_hours.size() == batch.rows.size());
      for (Index b = 0; b < batch.size(); ++b) {
        const auto request = static_cast<std::size_t>(rows[static_cast<std::size_t>(b)]);
        std::vector<std::int32_t> expected;  // by a walk through the whole log
        for (std::size_t r = 0; r < log.user.size(); ++r) {
          if (log.user[r] == log.user[request] && log.time[r] < log.time[request] && log.label(Label::click)[r] &&
              (domain < 0 || log.domain[r] == domain))
            expected.push_back(static_cast<std::int32_t>(r));
        }
        CHECK(histories.count_before(log.user[request], log.time[request]) == static_cast<Index>(expected.size()));
        if (static_cast<Index>(expected.size()) > most) expected.erase(expected.begin(), expected.end() - most);
        const auto begin = batch.rows.begin() + batch.offsets[static_cast<std::size_t>(b)];
        REQUIRE(std::vector<std::int32_t>(begin, begin + batch.length(b)) == expected);
        for (Index k = 0; k < batch.length(b); ++k) {
          const auto e = static_cast<std::size_t>(batch.offsets[static_cast<std::size_t>(b)] + k);
          const auto row = static_cast<std::size_t>(batch.rows[e]);
          CHECK(batch.items[e] == log.item[row]);
          CHECK(batch.gap_hours[e] > 0);
          CHECK(batch.gap_hours[e] == Approx(static_cast<double>(log.time[request] - log.time[row]) / 3600));
        }
      }
    }
  }
}

TEST_CASE("histories of any user and time", "[examples][interactions]") {
  const InteractionLog log = random_log(4, 100, 5);
  const Histories histories(log);
  HistoryBatch batch;
  const std::vector<std::int32_t> users{0, 3};
  const std::vector<std::int64_t> times{0, 1'000'000};
  histories.gather(users, times, 1000, batch);
  CHECK(batch.length(0) == 0);  // before everything
  Index clicks = 0;
  for (std::size_t r = 0; r < log.user.size(); ++r) clicks += log.user[r] == 3 && log.label(Label::click)[r];
  CHECK(batch.length(1) == clicks);
  const std::vector<std::int32_t> stranger{4};
  const std::vector<std::int64_t> now{0};
  CHECK_THROWS_AS(histories.gather(stranger, now, 10, batch), recops::Error);
  CHECK_THROWS_AS(histories.gather(users, now, 10, batch), recops::Error);
  CHECK_THROWS_AS(Histories(log, Label::like), recops::Error);
}

TEST_CASE("a split by time divides neither visits nor seconds", "[examples][interactions]") {
  const InteractionLog log = random_log(7, 400, 3);
  const TimeSplit split = split_by_time(log, 0.2, 0.1);
  CHECK(split.train.first == 0);
  CHECK(split.train.last == split.validation.first);
  CHECK(split.validation.last == split.test.first);
  CHECK(split.test.last == log.size());
  for (const Index cut : {split.validation.first, split.test.first})
    CHECK(log.time[static_cast<std::size_t>(cut) - 1] < log.time[static_cast<std::size_t>(cut)]);
  CHECK(static_cast<double>(split.test.size()) == Approx(0.2 * static_cast<double>(log.size())).epsilon(0.1));
  CHECK(static_cast<double>(split.validation.size()) == Approx(0.1 * static_cast<double>(log.size())).epsilon(0.2));

  const TimeSplit all = split_by_time(log, 0);
  CHECK(all.train.size() == log.size());
  CHECK(all.test.size() == 0);
  CHECK(split_by_time(InteractionLog(), 0.5).test.size() == 0);
  CHECK_THROWS_AS(split_by_time(log, 1.0), recops::Error);
  CHECK_THROWS_AS(split_by_time(log, 0.5, 0.5), recops::Error);
}

TEST_CASE("negatives come from the same visit", "[examples][interactions]") {
  const InteractionLog log = random_log(7, 300, 9);
  const auto& click = log.label(Label::click);
  const std::vector<Index> rows = rows_with_shown_negatives(log, {10, log.size() - 10}, Label::click, 1, 4);
  CHECK(rows == rows_with_shown_negatives(log, {10, log.size() - 10}, Label::click, 1, 4));
  CHECK(std::set<Index>(rows.begin(), rows.end()).size() == rows.size());
  const std::set<Index> chosen(rows.begin(), rows.end());
  std::vector<Index> positives(300), negatives(300), offered(300);
  for (Index r = 10; r < log.size() - 10; ++r) {
    const auto v = static_cast<std::size_t>(log.visit[static_cast<std::size_t>(r)]);
    if (click[static_cast<std::size_t>(r)]) {
      ++positives[v];
      CHECK(chosen.count(r) == 1);
    } else {
      ++offered[v];
      negatives[v] += chosen.count(r) == 1;
    }
  }
  for (std::size_t v = 0; v < 300; ++v) CHECK(negatives[v] == std::min(positives[v], offered[v]));
  CHECK(*std::min_element(rows.begin(), rows.end()) >= 10);
  CHECK(*std::max_element(rows.begin(), rows.end()) < log.size() - 10);
}
