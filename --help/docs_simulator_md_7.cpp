#include <cstdio>

#include "examples/common/simulator.hpp"

using namespace examples;

int main() {
  const Simulator simulator;  // the default world; SimulatorOptions changes it
  const InteractionLog log = simulator.generate();

  double counts[label_count] = {}, would_purchase = 0;
  for (std::size_t row = 0; row < log.user.size(); ++row) {
    for (std::size_t l = 0; l < label_count; ++l) counts[l] += log.labels[l][row];
    would_purchase += log.would_purchase[row];
  }
  const auto rows = static_cast<double>(log.size());
  std::printf("%td impressions in %d visits\n", log.size(), log.visit.back() + 1);
  std::printf("clicks per impression %.4f\n", counts[0] / rows);
  for (std::size_t l = 1; l < label_count; ++l)
    std::printf("%s per click %.4f\n", label_name(static_cast<Label>(l)), counts[l] / counts[0]);
  std::printf("purchases if every impression were clicked %.4f\n", would_purchase / rows);

  // What a model may know when the list of the last row was scored: earlier clicks, most recent last.
  const Histories histories(log);
  const std::vector<Index> request{log.size() - 1};
  HistoryBatch batch;
  histories.gather_rows(request, 50, batch);

  // What only the world knows: the probability of any label of any item, shown or not.
  const Index user = log.user.back();
  std::printf("user %td has %td clicks in the history and would click item 0 with probability %.3f\n", user, batch.length(0),
              simulator.true_probability(user, 0, log.time.back(), Label::click));
}
