// Oracle: what the options were set to by hand.
#include "examples/common/cli.hpp"

#include "examples/common/simulator_cli.hpp"
#include "support/catch.hpp"

using namespace examples;

namespace {

struct Values {
  Index users = 1000;
  int depth = 2;
  std::uint64_t seed = 1;
  float rate = 0.5f;
  double weight = 0.25;
  std::string data;
  bool quick = false;

  std::string message;
  Cli cli{"program", "Does something."};
  Values() {
    cli.option("users", users, "how many users", "", 1)
        .option("depth", depth, "layers", "", 0, 8)
        .option("seed", seed, "seed")
        .option("rate", rate, "learning rate", "per step")
        .option("weight", weight, "a weight", "", -1e9, 1)
        .option("data", data, "folder of the data", "folder")
        .flag("quick", quick, "a small world")
        .refuse("plot", "there is nothing to draw");
  }
  Values(const Values&) = delete;
  Cli::Outcome parse(const std::vector<std::string>& arguments) { return cli.try_parse(arguments, message); }
};

}  // namespace

TEST_CASE("options in every form", "[examples][cli]") {
  Values v;
  REQUIRE(v.parse({}) == Cli::Outcome::ok);
  CHECK(v.users == 1000);
  REQUIRE(v.parse({"--users", "5", "--depth=3", "--seed", "18446744073709551615", "--rate=1e-3", "--weight", "-2.5", "--data",
                   "a=b", "--quick"}) == Cli::Outcome::ok);
  CHECK(v.users == 5);
  CHECK(v.depth == 3);
  CHECK(v.seed == 18446744073709551615u);
  CHECK(v.rate == 1e-3f);
  CHECK(v.weight == -2.5);
  CHECK(v.data == "a=b");
  CHECK(v.quick);
  REQUIRE(v.parse({"--quick=false", "--data=x=y"}) == Cli::Outcome::ok);
  CHECK_FALSE(v.quick);
  CHECK(v.data == "x=y");
}

TEST_CASE("what cannot be understood is named", "[examples][cli]") {
  const auto refused = [](const std::vector<std::string>& arguments, const char* why) {
    Values v;
    CHECK(v.parse(arguments) == Cli::Outcome::error);
    CHECK_THAT(v.message, recops_test::contains(why));
    CHECK(v.users == 1000);
  };
  refused({"--user", "5"}, "unknown option --user; did you mean --users?");
  refused({"--zebra"}, "unknown option --zebra");
  refused({"users"}, "begins with --, got 'users'");
  refused({"--"}, "begins with --");
  refused({"--users"}, "--users needs a value");
  refused({"--users", "many"}, "--users expects a whole number, got 'many'");
  refused({"--users", "5.5"}, "--users expects a whole number, got '5.5'");
  refused({"--users="}, "--users expects a whole number, got ''");
  refused({"--users", "0"}, "--users expects at least 1, got '0'");
  refused({"--depth", "9"}, "--depth expects 0 to 8, got '9'");
  refused({"--depth", "99999999999"}, "--depth expects a whole number that fits");
  refused({"--seed", "-1"}, "--seed expects a whole number, 0 or more");
  refused({"--rate", "nan"}, "--rate expects a number");
  refused({"--rate", "0.1x"}, "--rate expects a number, got '0.1x'");
  refused({"--plot", "a.svg"}, "--plot is not offered: there is nothing to draw");
  refused({"--plot=a.svg"}, "--plot is not offered: there is nothing to draw");
  refused({"--quick=maybe"}, "--quick expects true or false, got 'maybe'");
}

TEST_CASE("help prints purpose, options, defaults and units", "[examples][cli]") {
  Values v;
  CHECK(v.parse({"--users", "7", "--help"}) == Cli::Outcome::help);
  const std::string help = v.cli.help();
  for (const char* part : {"program: Does something.", "--users VALUE", "how many users [1000]", "learning rate [0.5 per step]",
                           "folder of the data [folder]", "--quick", "there is nothing to draw", "--help"})
    CHECK_THAT(help, recops_test::contains(part));
  // The texts are aligned.
  std::size_t column = 0;
  for (const char* text : {"how many users", "layers", "a small world", "print this"}) {
    const std::size_t at = help.find(text), line = help.rfind('\n', at);
    CHECK((column == 0 || column == at - line));
    column = at - line;
  }
}

TEST_CASE("the simulator's options", "[examples][cli]") {
  SimulatorOptions options;
  Cli cli("program", "");
  add_simulator_options(cli, options);
  std::string message;
  REQUIRE(cli.try_parse({"--users", "10", "--click-rate", "0.3", "--days=7"}, message) == Cli::Outcome::ok);
  CHECK(options.users == 10);
  CHECK(options.rates.click == 0.3);
  CHECK(options.days == 7);
  CHECK(cli.try_parse({"--click-rate", "1"}, message) == Cli::Outcome::error);
}
