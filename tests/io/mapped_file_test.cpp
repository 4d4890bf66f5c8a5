// Oracle: what std::ofstream wrote.
#include <recops/io/mapped_file.hpp>

#include "examples/temporary_folder.hpp"
#include "support/catch.hpp"

using namespace recops;
using namespace recops_test;

namespace {
std::string text_of(const MappedFile& file) {
  return file.size() ? std::string(reinterpret_cast<const char*>(file.data()), file.size()) : std::string();
}
}  // namespace

TEST_CASE("MappedFile shows a file", "[io][mapped_file]") {
  const TemporaryFolder folder;
  for (const std::size_t size : {0u, 1u, 4095u, 4096u, 4097u, 100'003u}) {
    std::string content;
    for (std::size_t i = 0; i < size; ++i) content += static_cast<char>(i * 7);
    MappedFile file(folder.write("file", content));
    CHECK(file.size() == size);
    CHECK(text_of(file) == content);
    MappedFile moved = std::move(file);
    CHECK(text_of(moved) == content);
    MappedFile other;
    other = std::move(moved);
    CHECK(text_of(other) == content);
  }
}

TEST_CASE("MappedFile stays valid when the file is replaced or removed", "[io][mapped_file]") {
  const TemporaryFolder folder;
  const std::string path = folder.write("file", "old content");
  const MappedFile file(path);
  AtomicFile replacement;
  REQUIRE(replacement.open(path) == "");
  REQUIRE(replacement.write("x", 1) == "");
  REQUIRE(replacement.commit() == "");
  CHECK(text_of(file) == "old content");
  CHECK(text_of(MappedFile(path)) == "x");
}

TEST_CASE("MappedFile says why it cannot, and keeps what it had", "[io][mapped_file]") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH(MappedFile(folder.path() + "/none"),
                    contains("/none: expected a file that can be opened, got: No such file or directory"));
  MappedFile file(folder.write("file", "content"));
  CHECK_THAT(file.open(folder.path() + "/none"), contains("expected a file"));
  CHECK_THAT(file.open(folder.path()), contains("expected a regular file"));
  CHECK(text_of(file) == "content");
  CHECK(file.open(folder.write("empty", "")) == "");
  CHECK(file.size() == 0);
}
