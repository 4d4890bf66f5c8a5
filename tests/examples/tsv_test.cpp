// Oracle: files written by the test.
#include "examples/common/tsv.hpp"

#include "support/catch.hpp"
#include "temporary_folder.hpp"

using namespace examples;

TEST_CASE("a tab-separated file is read line by line", "[examples][tsv]") {
  const recops_test::TemporaryFolder folder;
  for (const char* end : {"", "\n"}) {  // the last line may go without a line feed
    const std::string path = folder.write("a.tsv", std::string("id\tvalue\tname\n1\t2.5\tTom\n-7\t1e-3\t") + end);
    TsvReader in(path, {"id", "value", "name"});
    REQUIRE(in.next());
    CHECK(in.integer(0, -10, 10) == 1);
    CHECK(in.number(1, 0, 10) == 2.5);
    CHECK(in.text(2) == "Tom");
    CHECK(in.line() == 2);
    REQUIRE(in.next());
    CHECK(in.integer(0, -10, 10) == -7);
    CHECK(in.number(1, 0, 10) == 1e-3);
    CHECK(in.text(2).empty());
    CHECK_FALSE(in.next());
    CHECK_FALSE(in.next());
  }
}

TEST_CASE("lines longer than the buffer", "[examples][tsv]") {
  const recops_test::TemporaryFolder folder;
  std::string content = "a\tb\n";
  std::vector<std::size_t> sizes;
  for (std::size_t size = 0; size < 150'000; size = size * 3 + 1) sizes.push_back(size);
  for (const std::size_t size : sizes) content += std::string(size, 'x') + "\t" + std::to_string(size) + "\n";
  TsvReader in(folder.write("long.tsv", content), {"a", "b"});
  for (const std::size_t size : sizes) {
    REQUIRE(in.next());
    CHECK(in.text(0) == std::string(size, 'x'));
    CHECK(in.integer(1, 0, 1'000'000) == static_cast<std::int64_t>(size));
  }
  CHECK_FALSE(in.next());
  const std::string path = folder.write("longer.tsv", "a\tb\n" + std::string(2 << 20, 'x'));
  TsvReader longer(path, {"a", "b"});
  CHECK_THROWS_WITH(longer.next(), recops_test::contains(path + ":2: is longer"));
}

TEST_CASE("what is malformed is refused with file, line and reason", "[examples][tsv]") {
  const recops_test::TemporaryFolder folder;
  const auto refused = [&](const std::string& content, const std::string& where_and_why) {
    const std::string path = folder.write("bad.tsv", content);
    const auto read = [&] {
      TsvReader in(path, {"id", "value"});
      while (in.next()) {
        in.integer(0, 0, 100);
        in.number(1, -1, 1);
      }
    };
    CHECK_THROWS_AS(read(), DataError);
    CHECK_THROWS_WITH(read(), recops_test::contains(path + where_and_why));
  };
  refused("", ":1: is empty");
  refused("id\tvalues\n", ":1: expected column 'value' in place 2");
  refused("id\n", ":1: expected column 'value'");
  refused("id\tvalue\tmore\n", ":1: expected 2 columns, got 3");
  refused("id\tvalue\n1\t0\n2\n", ":3: expected 2 fields, got 1");
  refused("id\tvalue\n1\t0\t0\n", ":2: expected 2 fields, got 3");
  refused("id\tvalue\n\n", ":2: expected 2 fields, got 1");
  refused("id\tvalue\n1\t0\r\n", ":2: ends in a carriage return");
  refused(std::string("id\tvalue\n1\t0") + '\0' + "\n", ":2: holds a NUL");
  refused("id\tvalue\nx\t0\n", ":2: id is not a whole number: 'x'");
  refused("id\tvalue\n\t0\n", ":2: id is not a whole number: ''");
  refused("id\tvalue\n1.0\t0\n", ":2: id is not a whole number: '1.0'");
  refused("id\tvalue\n 1\t0\n", ":2: id is not a whole number: ' 1'");
  refused("id\tvalue\n99999999999999999999\t0\n", ":2: id is not a whole number");
  refused("id\tvalue\n101\t0\n", ":2: id is outside 0 to 100: '101'");
  refused("id\tvalue\n1\tnan\n", ":2: value is not a number: 'nan'");
  refused("id\tvalue\n1\tinf\n", ":2: value is not a number: 'inf'");
  refused("id\tvalue\n1\t1e999\n", ":2: value is not a number");
  refused("id\tvalue\n1\t0x\n", ":2: value is not a number: '0x'");
  refused("id\tvalue\n1\t-1.5\n", ":2: value is outside -1 to 1: '-1.5'");
  CHECK_THROWS_WITH(TsvReader(folder.path() + "/none.tsv", {"id"}), recops_test::contains("none.tsv: cannot be opened"));
  CHECK_THROWS_WITH(TsvReader(folder.path(), {"id"}), recops_test::contains("cannot be read"));
}

TEST_CASE("a data folder is found by itself or by its parent", "[examples][tsv]") {
  const recops_test::TemporaryFolder folder;
  folder.write("set/file.tsv", "a\n");
  CHECK(find_data_folder(folder.path(), "set", "file.tsv") == folder.path() + "/set");
  CHECK(find_data_folder(folder.path() + "/set", "set", "file.tsv") == folder.path() + "/set");
  CHECK_THROWS_WITH(find_data_folder(folder.path(), "other", "file.tsv"),
                    recops_test::contains("holds neither file.tsv nor other/file.tsv"));
}
