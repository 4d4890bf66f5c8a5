/// What routes and balances sparse experts, and HoME's feature gate on its own.
///
///     taskset -c 1 build/bench/bench/recops_bench_gating_routing
///
///   gating/route/{topk,expert_choice}/f32/N:4096/E:64     best 2 of 64 by softmax; experts that choose 128 rows each
///   gating/balance/LOSS/f32/N:4096/E:64                   value and gradient
///   gating/feature_gate/f32/B:.../D:512/L:4               the frozen gate: 512 -> 4 x 128 -> 4 x 512
///
/// `of_softmax`: the share of the speed of a softmax of every row, which nearly all of them begin with.
#include <recops/gating/balance_loss.hpp>
#include <recops/gating/expert_choice.hpp>
#include <recops/gating/feature_gate.hpp>
#include <recops/gating/route_topk.hpp>

#include <functional>
#include <memory>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index rows = 4096, experts = 64, k = 2, capacity = 128, sequence = 64;

struct Routed {
  Matrix<float> clean{rows, experts}, noisy{rows, experts}, deviation{rows, experts}, p{rows, experts};
  Matrix<float> dclean{rows, experts, 0.0f}, dnoisy{rows, experts, 0.0f}, ddeviation{rows, experts, 0.0f};
  Matrix<std::int32_t> choices{rows, k}, chosen{experts, capacity};
  Matrix<float> weights{rows, k}, dweights{rows, k, 0.0f}, chosen_weights{experts, capacity};
  std::vector<std::int32_t> offsets;
  Workspace ws;
  Routed() {
    Random random(1);
    for (Index i = 0; i < rows * experts; ++i) {
      clean.data()[i] = static_cast<float>(random.normal());
      deviation.data()[i] = static_cast<float>(random.uniform(0.1, 1));
      noisy.data()[i] = clean.data()[i] + deviation.data()[i] * static_cast<float>(random.normal());
    }
    for (Index r = 0; r <= rows; r += sequence) offsets.push_back(static_cast<std::int32_t>(r));
    route_topk<float>(noisy, {}, {.k = k}, choices, weights, ws);
  }
};

void add(const char* name, double numbers, std::function<void(Routed&)> run) {
  register_case<float>(std::string("gating/") + name + "/f32/N:4096/E:64", [=] {
    const auto d = std::make_shared<Routed>();
    Case<float> c;
    c.bytes = numbers * sizeof(float);
    c.kernel = [d, run] { run(*d); };
    c.floors.push_back({"softmax", [d](Index) {
                          for (Index r = 0; r < rows; ++r) simd::softmax<float>(d->clean.row(r), d->p.row(r), experts);
                        }});
    return c;
  });
}

void add_feature_gate(Index batch) {
  register_case<float>("gating/feature_gate/f32/B:" + std::to_string(batch) + "/D:512/L:4", [=] {
    struct Data {
      std::vector<FrozenFeatureGate<float>> gates;
      Matrix<float> x, y;
      Workspace ws;
    };
    const auto d = std::make_shared<Data>();
    Random random(1);
    const FeatureGate<float> gate(512, 4, 128, random);
    const double numbers = static_cast<double>(parameter_count(gate));
    d->gates.assign(static_cast<std::size_t>(copies_for(numbers * sizeof(float))), freeze(gate));
    d->x = Matrix<float>(batch, 512);
    d->y = Matrix<float>(batch, 512);
    for (float& v : leaf_values(d->x)) v = static_cast<float>(random.normal());
    Case<float> c;
    c.copies = static_cast<Index>(d->gates.size());
    c.working_set = numbers * sizeof(float);
    c.flops = 2 * static_cast<double>(batch) * numbers;
    if (batch == 1) c.bytes = numbers * sizeof(float);
    c.kernel = [d](Index copy) { d->gates[static_cast<std::size_t>(copy)].forward(d->x, d->y, d->ws); };
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  constexpr double all = rows * experts, few = rows * k;
  add("route/topk", all + 2 * few, [](Routed& d) { route_topk<float>(d.clean, {}, {.k = k}, d.choices, d.weights, d.ws); });
  add("route/expert_choice", all + 2 * experts * capacity,
      [](Routed& d) { route_expert_choice<float>(d.clean, d.chosen, d.chosen_weights, d.ws); });
  add("balance/switch", 3 * all + few,
      [](Routed& d) { switch_balance_value_and_grad<float>(d.clean, d.choices, 0.01, true, d.dclean, d.ws); });
  add("balance/importance", 4 * few,
      [](Routed& d) { importance_value_and_grad<float>(d.weights, d.choices, experts, 0.01, d.dweights, d.ws); });
  add("balance/load", 9 * all + few, [](Routed& d) {
    load_balance_value_and_grad<float>(d.clean, d.noisy, d.deviation, d.choices, 0.01, d.dclean, d.dnoisy, d.ddeviation, d.ws);
  });
  add("balance/z", 3 * all, [](Routed& d) { router_z_value_and_grad<float>(d.clean, 0.001, d.dclean, d.ws); });
  add("balance/sequence", 3 * all + few, [](Routed& d) {
    sequence_balance_value_and_grad<float>(JaggedView<const float>(d.clean, d.offsets), d.choices, 0.0001, d.dclean, d.ws);
  });
  for (const Index batch : {1, 64, 512}) add_feature_gate(batch);
  return recops_bench::run_registered(argc, argv);
}
