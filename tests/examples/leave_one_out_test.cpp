// Oracle: ranks and metrics worked out by hand.
#include "examples/common/leave_one_out.hpp"

#include <set>

#include "support/catch.hpp"

using namespace examples;

namespace {

using Items = recops::VectorView<const std::int32_t>;
using Scores = recops::VectorView<double>;

UserSequences sequences(const std::vector<std::vector<std::int32_t>>& users) {
  UserSequences out;
  out.offsets.push_back(0);
  for (const auto& user : users) {
    out.items.insert(out.items.end(), user.begin(), user.end());
    out.offsets.push_back(static_cast<std::int64_t>(out.items.size()));
  }
  return out;
}

}  // namespace

TEST_CASE("leave one out, by hand", "[examples][leave_one_out]") {
  // Scores fall with the item's number. User 0: target 2, seen 0: of 1, 2, 3, 4, 5 it ranks second. User 1: target 5, seen 1 and
  // 0: of 2, 3, 4, 5 it ranks last, fourth. User 2 has nothing before its target, user 3 nothing at all.
  const UserSequences users = sequences({{0, 2}, {1, 0, 5}, {4}, {}});
  std::vector<std::vector<std::int32_t>> asked, histories;
  const auto score = [&](Index, Items history, Items candidates, Scores scores) {
    asked.emplace_back(candidates.begin(), candidates.end());
    histories.emplace_back(history.begin(), history.end());
    for (Index i = 0; i < candidates.size(); ++i) scores[i] = -candidates[i];
  };
  const LeaveOneOutResult r = leave_one_out(users, 6, score, {.cutoffs = {1, 2, 4}});
  CHECK(asked == std::vector<std::vector<std::int32_t>>{{1, 2, 3, 4, 5}, {2, 3, 4, 5}});
  CHECK(histories == std::vector<std::vector<std::int32_t>>{{0}, {1, 0}});
  CHECK(r.users == 2);
  CHECK(r.hit_rate == std::vector<double>{0, 0.5, 1});
  CHECK(r.ndcg[0] == 0);
  CHECK(r.ndcg[1] == Approx(0.5 / std::log2(3.0)));
  CHECK(r.ndcg[2] == Approx(0.5 / std::log2(3.0) + 0.5 / std::log2(5.0)));
  CHECK(r.mrr == Approx((0.5 + 0.25) / 2));

  // The item before the last: user 1 alone has history before it.
  const LeaveOneOutResult validation = leave_one_out(users, 6, score, {.cutoffs = {1}, .held_out = 2});
  CHECK(validation.users == 1);
  CHECK(histories.back() == std::vector<std::int32_t>{1});
  CHECK(asked.back() == std::vector<std::int32_t>{0, 2, 3, 4, 5});
  CHECK(validation.hit_rate[0] == 1);
}

TEST_CASE("among ties every order counts alike", "[examples][leave_one_out]") {
  const UserSequences users = sequences({{0, 2}});
  // One better, two tied with the target, one worse: rank 2, 3 or 4.
  const auto score = [](Index, Items candidates, Items, Scores) { (void)candidates; };
  const auto tied = [](Index, Items, Items, Scores scores) {
    const double values[] = {9, 1, 1, 1, 0};  // items 1, 2, 3, 4, 5
    for (Index i = 0; i < scores.size(); ++i) scores[i] = values[i];
  };
  const LeaveOneOutResult r = leave_one_out(users, 6, tied, {.cutoffs = {1, 2, 3, 10}});
  CHECK(r.hit_rate[0] == 0);
  CHECK(r.hit_rate[1] == Approx(1.0 / 3));
  CHECK(r.hit_rate[2] == Approx(2.0 / 3));
  CHECK(r.hit_rate[3] == Approx(1));
  CHECK(r.ndcg[2] == Approx((1 / std::log2(3.0) + 1 / std::log2(4.0)) / 3));
  CHECK(r.mrr == Approx((1.0 / 2 + 1.0 / 3 + 1.0 / 4) / 3));

  // A scorer that says nothing (NaN) does as well as chance: 5 candidates.
  CHECK(leave_one_out(users, 6, score, {.cutoffs = {2}}).hit_rate[0] == Approx(2.0 / 5));
  // NaN is worse than every number.
  const auto nan = [](Index, Items, Items candidates, Scores scores) {
    for (Index i = 0; i < scores.size(); ++i) scores[i] = candidates[i] == 2 ? std::nan("") : -1e300;
  };
  CHECK(leave_one_out(users, 6, nan, {.cutoffs = {4}}).hit_rate[0] == 0);
}

TEST_CASE("sampled competitors are unseen, distinct and the user's own", "[examples][leave_one_out]") {
  const UserSequences users = sequences({{0, 1, 2, 3, 50}, {5, 6, 7}});
  std::vector<std::vector<std::int32_t>> asked;
  const auto score = [&](Index, Items, Items candidates, Scores scores) {
    asked.emplace_back(candidates.begin(), candidates.end());
    for (Index i = 0; i < scores.size(); ++i) scores[i] = 0;
  };
  leave_one_out(users, 100, score, {.negatives = 10, .seed = 3});
  REQUIRE(asked.size() == 2);
  for (const auto& candidates : asked) {
    CHECK(candidates.size() == 11);
    CHECK(std::is_sorted(candidates.begin(), candidates.end()));
    CHECK(std::set<std::int32_t>(candidates.begin(), candidates.end()).size() == 11);
  }
  for (const std::int32_t seen : {0, 1, 2, 3}) CHECK(std::count(asked[0].begin(), asked[0].end(), seen) == 0);
  CHECK(std::count(asked[0].begin(), asked[0].end(), 50) == 1);
  const auto second = asked[1];
  asked.clear();
  leave_one_out(sequences({{}, {5, 6, 7}}), 100, score, {.negatives = 10, .seed = 3});
  CHECK(asked.at(0) == second);
  asked.clear();
  leave_one_out(users, 100, score, {.negatives = 1000});  // more than there are: all
  CHECK(asked.at(0).size() == 96);
}

TEST_CASE("sequences of a log, and training parts", "[examples][leave_one_out]") {
  InteractionLog log;
  log.users = 3;
  log.items = 9;
  log.user = {0, 2, 0, 2, 0};
  log.item = {4, 5, 6, 7, 8};
  log.time = {1, 2, 3, 4, 5};
  log.label(Label::click) = {1, 1, 0, 1, 1};
  const UserSequences all = user_sequences(log);
  CHECK(all.items == std::vector<std::int32_t>{4, 8, 5, 7});
  CHECK(all.offsets == std::vector<std::int64_t>{0, 2, 2, 4});
  const UserSequences part = all.without_last();
  CHECK(part.items == std::vector<std::int32_t>{4, 5});
  CHECK(part.offsets == std::vector<std::int64_t>{0, 1, 1, 2});
  CHECK(all.without_last(5).items.empty());
  CHECK_THROWS_AS(user_sequences(log, Label::like), recops::Error);
  const auto nothing = [](Index, Items, Items, Scores) {};
  CHECK_THROWS_AS(leave_one_out(all, 8, nothing), recops::Error);  // item 8 is outside
  CHECK_THROWS_AS(leave_one_out(all, 9, nothing, {.cutoffs = {0}}), recops::Error);
  CHECK_THROWS_AS(leave_one_out(all, 9, nothing, {.held_out = 0}), recops::Error);
}
