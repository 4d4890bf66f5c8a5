/// @file   examples/common/simulator_cli.hpp
/// @brief  The options of the simulated world that every example offers on its command line.
#pragma once
#include "cli.hpp"
#include "simulator.hpp"

namespace examples {

/// Adds --seed, --users, --items, --categories, --days, --visits, --shown and --click-rate.
inline void add_simulator_options(Cli& cli, SimulatorOptions& options) {
  cli.option("seed", options.seed, "seed of all that is random")
      .option("users", options.users, "users of the simulated world", "", 1, 1e8)
      .option("items", options.items, "items of the simulated world", "", 1, 1e8)
      .option("categories", options.categories, "categories of the items", "", 1, 1e8)
      .option("days", options.days, "length of the simulated log", "days", 1e-3, 1e5)
      .option("visits", options.visits_per_user, "mean number of visits of a user", "", 1e-3, 1e6)
      .option("shown", options.shown, "most items shown per visit", "", 1, 32767)
      .option("click-rate", options.rates.click, "clicks per impression", "", 1e-6, 0.999999);
}

}  // namespace examples
