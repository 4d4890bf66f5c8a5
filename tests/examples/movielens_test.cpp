// Oracle: a folder of five films written by the test; for the real data, the counts its own page states.
#include "examples/common/movielens.hpp"

#include <cstdlib>

#include "support/catch.hpp"
#include "temporary_folder.hpp"

using namespace examples;

namespace {

const std::string films =
    "item\tyear\tgenres\ttitle\n10\t1995\tComedy|Action\tFirst\n20\t0\t\tSecond & only\n30\t2001\tDrama\tThird\n";
const std::string stars =
    "user\titem\trating\ttimestamp\n7\t30\t4\t1000\n7\t10\t3.5\t1000\n7\t20\t5\t9000\n9\t10\t0.5\t500\n9\t30\t4.5\t2000\n";

}  // namespace

TEST_CASE("MovieLens becomes a log sorted by time", "[examples][movielens]") {
  const recops_test::TemporaryFolder folder;
  folder.write("ml-latest-small-2016/items.tsv", films);
  folder.write("ml-latest-small-2016/ratings.tsv", stars);
  for (const std::string& directory : {folder.path(), folder.path() + "/ml-latest-small-2016"}) {
    const MovieLens data = load_movielens(directory);
    const InteractionLog& log = data.log;
    REQUIRE(log.size() == 5);
    CHECK(log.users == 2);
    CHECK(log.items == 3);
    CHECK(data.user_ids == std::vector<std::int64_t>{7, 9});
    CHECK(data.item_ids == std::vector<std::int64_t>{10, 20, 30});
    CHECK(data.genre_names == std::vector<std::string>{"Action", "Comedy", "Drama", "(none)"});
    CHECK(log.categories == 4);
    CHECK(log.item_category == std::vector<std::int32_t>{1, 3, 2});  // the first genre listed
    CHECK(data.genre_offsets == std::vector<std::int32_t>{0, 2, 3, 4});
    CHECK(data.genres == std::vector<std::int32_t>{1, 0, 3, 2});
    CHECK(data.titles[1] == "Second & only");
    CHECK(data.years == std::vector<std::int32_t>{1995, 0, 2001});
    CHECK(log.time == std::vector<std::int64_t>{500, 1000, 1000, 2000, 9000});
    CHECK(log.user == std::vector<std::int32_t>{1, 0, 0, 1, 0});
    CHECK(log.item == std::vector<std::int32_t>{0, 0, 2, 2, 1});
    CHECK(log.visit == std::vector<std::int32_t>{0, 1, 1, 0, 2});
    CHECK(log.position == std::vector<std::int16_t>{0, 0, 1, 1, 0});
    CHECK(data.rating == std::vector<float>{0.5f, 3.5f, 4, 4.5f, 5});
    CHECK(log.label(Label::click) == std::vector<std::uint8_t>{1, 1, 1, 1, 1});
    CHECK(log.label(Label::like) == std::vector<std::uint8_t>{0, 0, 1, 1, 1});
    CHECK_FALSE(log.has(Label::long_view));
    CHECK_FALSE(log.has(Label::purchase));
    // Ratings of one second are not in each other's history.
    const Histories histories(log);
    CHECK(histories.count_before(0, 1000) == 0);
    CHECK(histories.count_before(0, 1001) == 2);
  }
}

TEST_CASE("malformed MovieLens files are refused", "[examples][movielens]") {
  const auto refused = [](const std::string& items, const std::string& ratings, const char* why) {
    const recops_test::TemporaryFolder folder;
    folder.write("items.tsv", items);
    folder.write("ratings.tsv", ratings);
    CHECK_THROWS_AS(load_movielens(folder.path()), DataError);
    CHECK_THROWS_WITH(load_movielens(folder.path()), recops_test::contains(why));
  };
  refused(films + "10\t1990\t\tAgain\n", stars, "items.tsv:5: item 10 is listed twice");
  refused(films + "40\t12\t\tOld\n", stars, "items.tsv:5: year is neither");
  refused(films + "40\t1990\tA||B\tT\n", stars, "items.tsv:5: genres hold an empty name");
  refused(films + "40\t1990\tA|\tT\n", stars, "items.tsv:5: genres hold an empty name");
  refused(films, stars + "9\t40\t3\t1\n", "ratings.tsv:7: item 40 is not in items.tsv");
  refused(films, stars + "9\t20\t5.5\t1\n", "ratings.tsv:7: rating is outside 0.5 to 5");
  refused(films, stars + "9\t20\t3.3\t1\n", "ratings.tsv:7: rating is not a multiple of 0.5");
  refused(films, stars + "9\t10\t3\t1\n", "ratings.tsv:7: user 9 rates item 10 twice");
  refused(films, stars + "9\t20\t3\n", "ratings.tsv:7: expected 4 fields");
  const recops_test::TemporaryFolder empty;
  CHECK_THROWS_WITH(load_movielens(empty.path()), recops_test::contains("holds neither ratings.tsv"));
}

TEST_CASE("the real MovieLens, where RECOPS_DATA says where it is", "[examples][movielens]") {
  const char* directory = std::getenv("RECOPS_DATA");
  if (!directory || !*directory) {
    WARN("skipped: RECOPS_DATA is not set");
    return;
  }
  const MovieLens data = load_movielens(directory);
  CHECK(data.log.size() == 100'004);
  CHECK(data.log.users == 671);
  CHECK(data.log.items == 9'125);
  CHECK(data.genre_names.size() == 20);  // 19 and "(none)"
  double likes = 0;
  for (const std::uint8_t like : data.log.label(Label::like)) likes += like;
  CHECK(likes / 100'004 == Approx(0.516).margin(0.0005));
  CHECK(data.log.time.front() == 789652009);
  CHECK(data.log.time.back() == 1476640644);
}
