// Oracle: what std::ofstream wrote and std::ifstream reads.
#include <recops/io/file.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <vector>

#include "examples/temporary_folder.hpp"
#include "io/bytes.hpp"
#include "support/catch.hpp"

using namespace recops;
using namespace recops_test;

namespace {
std::string text_of(const FileBytes& bytes) {
  return bytes.size() ? std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()) : std::string();
}
std::string text_of(const std::string& path) {
  const auto bytes = file_bytes(path);
  return std::string(bytes.begin(), bytes.end());
}
}  // namespace

TEST_CASE("FileBytes reads files of any size", "[io][file]") {
  const TemporaryFolder folder;
  for (const std::size_t size : {0u, 1u, 63u, 64u, 65u, 100'003u, 2'097'152u, 2'200'001u}) {
    std::string content;
    for (std::size_t i = 0; i < size; ++i) content += static_cast<char>(i * 7);
    FileBytes bytes;
    CHECK(bytes.read(folder.write("file", content)) == "");
    CHECK(bytes.size() == size);
    CHECK(text_of(bytes) == content);
    CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % 64 == 0);
    const FileBytes moved = std::move(bytes);
    CHECK(text_of(moved) == content);
    CHECK(bytes.size() == 0);  // NOLINT: what was moved from is empty
  }
}

TEST_CASE("FileBytes says why it cannot, and keeps what it had", "[io][file]") {
  const TemporaryFolder folder;
  FileBytes bytes;
  CHECK(bytes.size() == 0);
  REQUIRE(bytes.read(folder.write("file", "content")) == "");
  CHECK(bytes.read(folder.path() + "/none") == "expected a file that can be opened, got: No such file or directory");
  CHECK_THAT(bytes.read(folder.path()), contains("expected a regular file"));
  REQUIRE(::mkfifo((folder.path() + "/pipe").c_str(), 0600) == 0);
  CHECK_THAT(bytes.read(folder.path() + "/pipe"), contains("expected a regular file"));  // and does not wait for a writer
  CHECK(text_of(bytes) == "content");
}

TEST_CASE("AtomicFile replaces a file when it is complete, and not before", "[io][file]") {
  const TemporaryFolder folder;
  const std::string path = folder.write("file", "old");
  {
    AtomicFile file;
    REQUIRE(file.open(path) == "");
    REQUIRE(file.write("new ", 4) == "");
    REQUIRE(file.write("content", 7) == "");
    REQUIRE(file.write("", 0) == "");
    CHECK(text_of(path) == "old");
    REQUIRE(file.commit() == "");
    CHECK(text_of(path) == "new content");
  }
  {
    AtomicFile file;
    REQUIRE(file.open(path) == "");
    REQUIRE(file.write("half", 4) == "");
  }
  CHECK(text_of(path) == "new content");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("two AtomicFiles of one name do not meet; the last to finish stays", "[io][file]") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/file";
  AtomicFile a, b;
  REQUIRE(a.open(path) == "");
  REQUIRE(b.open(path) == "");
  REQUIRE(a.write("a", 1) == "");
  REQUIRE(b.write("b", 1) == "");
  REQUIRE(b.commit() == "");
  REQUIRE(a.commit() == "");
  CHECK(text_of(path) == "a");
  REQUIRE(a.open(path) == "");  // and again
  REQUIRE(a.open(path) == "");  // the one begun before is given up
  REQUIRE(a.commit() == "");
  CHECK(text_of(path) == "");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("AtomicFile says why it cannot", "[io][file]") {
  const TemporaryFolder folder;
  AtomicFile file;
  CHECK_THAT(file.open(folder.path() + "/none/file"), contains("expected a folder that can be written to, got: No such file"));
  std::filesystem::create_directory(folder.path() + "/folder");
  REQUIRE(file.open(folder.path() + "/folder") == "");
  CHECK_THAT(file.commit(), contains("expected a name that a file can be given, got: "));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("names from files are shown without control characters", "[io][file]") {
  CHECK(detail::printable("a\nb\x1b[0m\x7f é") == "a\\x0Ab\\x1B[0m\\x7F é");
  CHECK(detail::printable("") == "");
  CHECK(detail::printable("abcdef", 3) == "abc...");
  CHECK(detail::printable("abc", 3) == "abc");
  CHECK(detail::printable("aé🙂", 2) == "a...");  // not in the middle of a character
  CHECK(detail::printable("aé🙂", 6) == "aé...");
}

TEST_CASE("fail_text throws all of a long text", "[io][file]") {
  CHECK_THROWS_WITH(detail::fail_text(std::string(5000, 'x')), contains(std::string(5000, 'x')));
  CHECK_THROWS_AS(detail::fail_text("x"), Error);
}
