// Oracle: the text itself. A file is no terminal, so lines are plain.
#include "examples/common/progress.hpp"

#include <cstdlib>

#include "support/catch.hpp"

using namespace examples;

namespace {

std::string content(std::FILE* file) {
  std::rewind(file);
  std::string text;
  for (int c; (c = std::fgetc(file)) != EOF;) text += static_cast<char>(c);
  return text;
}

}  // namespace

TEST_CASE("progress in a file: a line at each quarter", "[examples][progress]") {
  std::FILE* file = std::tmpfile();
  REQUIRE(file);
  {
    Progress progress("training", 100, file);
    for (int step = 0; step < 100; ++step) progress.advance(1, step == 49 ? "loss 0.5" : "");
    CHECK(progress.text() == "training [##############################] 100 %");
  }
  CHECK(content(file) == "training: 25 %\ntraining: 50 %  loss 0.5\ntraining: 75 %\ntraining: 100 %\n");
  std::fclose(file);
}

TEST_CASE("progress of nothing, too much and large steps", "[examples][progress]") {
  std::FILE* file = std::tmpfile();
  REQUIRE(file);
  {
    Progress none("none", 0, file);
    Progress large("large", 10, file);
    large.advance(6, "half");
    CHECK(large.text() == "large [##################------------]  60 %  half");
    large.advance(100);
    large.finish();
    large.finish();
  }
  CHECK(content(file) == "large: 60 %  half\nlarge: 100 %\n");
  std::fclose(file);
}

TEST_CASE("colours only where they are wanted", "[examples][progress]") {
  CHECK(coloured("x", 3, false) == "x");
  CHECK(bold("x", false) == "x");
  const std::string red = coloured("x", 3, true);
  CHECK(red.substr(0, 7) == "\033[38;5;");
  CHECK(red.substr(red.size() - 5) == "x\033[0m");
  CHECK(coloured("x", 0, true) != coloured("x", 1, true));
  CHECK(coloured("x", 1, true) == coloured("x", 13, true));
  CHECK(coloured("x", -1, true) == coloured("x", 11, true));
  std::FILE* file = std::tmpfile();
  REQUIRE(file);
  CHECK_FALSE(is_terminal(file));
  CHECK_FALSE(wants_colour(file));
  std::fclose(file);
}
