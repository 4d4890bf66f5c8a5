/// k of N items drawn without replacement by their logits: Philox, two logarithms an item and a top k.
///
///     taskset -c 1 build/bench/bench/recops_bench_diversity_gumbel_top_k
///
///   diversity/gumbel_top_k/f32/N:items/k:picks
///
/// Bytes are the logits, read once (of_bandwidth); `of_draws` is the share of the speed of drawing N uniforms alone, which any method
/// must. Peer: `torch`, topk of logits minus the logarithm of exponential numbers, all preallocated.
#include <recops/core/random.hpp>
#include <recops/diversity/gumbel_top_k.hpp>

#include <memory>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

struct Data {
  Rotation<float> logits;
  Vector<float> draws;
  Vector<std::int32_t> picks;
  RandomRow at{.seed = 1};
  Workspace ws;

  Data(Index n, Index k) : logits(n, std::max(copies_for(static_cast<double>(n) * sizeof(float)), Index{8})), draws(n), picks(k) {
    Random random(1);
    for (Index i = 0; i < n; ++i) logits[0][i] = static_cast<float>(random.normal());
    logits.spread();
  }
};

void add(Index n, Index k) {
  register_case<float>("diversity/gumbel_top_k/f32/N:" + std::to_string(n) + "/k:" + std::to_string(k), [=] {
    const auto data = std::make_shared<Data>(n, k);
    Case<float> c;
    c.kernel = [=](Index copy) {
      ++data->at.step;  // other numbers, so that no branch is learnt by heart
      gumbel_top_k<float>(VectorView<const float>(data->logits[copy], n), 1, data->at, {}, data->picks, data->ws);
    };
    c.floors.push_back({"draws", [=](Index) { simd::fill_uniform<float>(data->at, data->draws.data(), n); }});
    c.copies = data->logits.copies();
    c.bytes = static_cast<double>(n) * sizeof(float);
    c.elements = static_cast<double>(n);
    c.data = [data](Index copy) { return data->logits[copy]; };
    c.peers.push_back(
        python_peer("torch", "gumbel_top_k", R"({"n": )" + std::to_string(n) + R"(, "k": )" + std::to_string(k) + "}"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {200, 1000, 10000, 100000}) add(n, 64);
  return run_registered(argc, argv);
}
