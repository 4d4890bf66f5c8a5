// Oracle: files written by the test; for the real data, the counts its own page states.
#include "examples/common/open_bandit.hpp"

#include <cstdlib>
#include <numeric>

#include "support/catch.hpp"
#include "temporary_folder.hpp"

using namespace examples;

namespace {

const std::string items = "item\tf0\tc1\tc2\tc3\n0\t-0.5\t0\t1\t2\n1\t0.25\t1\t1\t0\n";
const std::string header = "timestamp_us\titem\tposition\tclick\tpropensity\tuf0\tuf1\tuf2\tuf3\taffinity\n";
const std::string rows =
    "100\t1\t3\t0\t0.5\t1\t2\t0\t0\t\n100\t0\t1\t1\t1e-06\t1\t2\t0\t1\t0:2,1:1\n250\t0\t2\t0\t1\t1\t2\t0\t0\t1:3\n";

}  // namespace

TEST_CASE("an Open Bandit log is read", "[examples][open_bandit]") {
  const recops_test::TemporaryFolder folder;
  folder.write("open-bandit-small/men.items.tsv", items);
  folder.write("open-bandit-small/men-bts.log.tsv", header + rows);
  for (const std::string& directory : {folder.path(), folder.path() + "/open-bandit-small"}) {
    const OpenBanditLog log = load_open_bandit(directory, "men", "bts");
    REQUIRE(log.size() == 3);
    CHECK(log.items == 2);
    CHECK(log.item_value == std::vector<double>{-0.5, 0.25});
    CHECK(log.item_category == std::vector<std::int32_t>{0, 1, 2, 1, 1, 0});
    CHECK(log.time_us == std::vector<std::int64_t>{100, 100, 250});
    CHECK(log.item == std::vector<std::int32_t>{1, 0, 0});
    CHECK(log.position == std::vector<std::uint8_t>{2, 0, 1});
    CHECK(log.click == std::vector<std::uint8_t>{0, 1, 0});
    CHECK(log.propensity == std::vector<double>{0.5, 1e-6, 1});
    CHECK(log.user_feature == std::vector<std::int32_t>{1, 2, 0, 0, 1, 2, 0, 1, 1, 2, 0, 0});
    CHECK(log.group == std::vector<std::int32_t>{0, 1, 0});
    CHECK(log.groups == 2);
    CHECK(log.affinity_offsets == std::vector<std::int32_t>{0, 0, 2, 3});
    CHECK(log.affinity_item == std::vector<std::int32_t>{0, 1, 1});
    CHECK(log.affinity_count == std::vector<std::int32_t>{2, 1, 3});
  }
  CHECK_THROWS_WITH(load_open_bandit(folder.path(), "women", "bts"), recops_test::contains("holds neither women-bts.log.tsv"));
}

TEST_CASE("malformed Open Bandit files are refused", "[examples][open_bandit]") {
  const auto refused = [](const std::string& item_file, const std::string& line, const char* why) {
    const recops_test::TemporaryFolder folder;
    folder.write("men.items.tsv", item_file);
    folder.write("men-random.log.tsv", header + line + "\n");
    CHECK_THROWS_AS(load_open_bandit(folder.path(), "men", "random"), DataError);
    CHECK_THROWS_WITH(load_open_bandit(folder.path(), "men", "random"), recops_test::contains(why));
  };
  const std::string good = "100\t1\t3\t0\t0.5\t1\t2\t0\t0\t";
  refused(items + "1\t0\t0\t0\t0\n", good, "men.items.tsv:4: item is outside 2 to 2");
  refused(items, "100\t2\t3\t0\t0.5\t1\t2\t0\t0\t", "men-random.log.tsv:2: item is outside 0 to 1");
  refused(items, "100\t1\t0\t0\t0.5\t1\t2\t0\t0\t", ":2: position is outside 1 to 3");
  refused(items, "100\t1\t1\t2\t0.5\t1\t2\t0\t0\t", ":2: click is outside 0 to 1");
  refused(items, "100\t1\t1\t0\t0\t1\t2\t0\t0\t", ":2: propensity is 0");
  refused(items, "100\t1\t1\t0\t1.5\t1\t2\t0\t0\t", ":2: propensity is outside 0 to 1");
  refused(items, good + "0", ":2: affinity is not a list");
  refused(items, good + "0:1,", ":2: affinity ends in a comma");
  refused(items, good + "2:1", ":2: affinity item is outside 0 to 1");
  refused(items, good + "0:0", ":2: affinity count is outside");
  refused(items, good + "\n99\t1\t3\t0\t0.5\t1\t2\t0\t0\t", ":3: timestamp_us is before");
}

TEST_CASE("the real Open Bandit logs, where RECOPS_DATA says where they are", "[examples][open_bandit]") {
  const char* directory = std::getenv("RECOPS_DATA");
  if (!directory || !*directory) {
    WARN("skipped: RECOPS_DATA is not set");
    return;
  }
  struct Expected {
    const char *campaign, *policy;
    int clicks, items, affinities;
  };
  for (const Expected& e : {Expected{"men", "random", 46, 34, 579}, Expected{"men", "bts", 69, 34, 499},
                            Expected{"women", "random", 46, 46, 544}, Expected{"women", "bts", 46, 46, 483}}) {
    const OpenBanditLog log = load_open_bandit(directory, e.campaign, e.policy);
    INFO(e.campaign << "-" << e.policy);
    CHECK(log.size() == 10'000);
    CHECK(log.items == e.items);
    CHECK(std::accumulate(log.click.begin(), log.click.end(), 0) == e.clicks);
    CHECK(static_cast<int>(log.affinity_item.size()) == e.affinities);
  }
}
