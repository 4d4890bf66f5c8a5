/// PLE and one level of it (CGC) as they are served, at public and production shapes.
///
///     taskset -c 1 build/bench/bench/recops_bench_gating_ple --benchmark_filter=gating/ple/f32/B:64
///
///   gating/ple/f32/B:...         three levels with 2, 3, 4 experts per task and shared, experts of three layers each; D = 960, T = 2
///   gating/cgc/f32/B:...         one level, D = 1024, twelve tasks with one expert each and four shared ones of 128
///   gating/ple_train/f32/B:...   a training forward and the whole backward of the first
///
/// Peer `torch`: what experts have in common as one product, deeper layers as batched products, eager or traced, whichever is faster,
/// in a process of its own. Weights of more than four times L2 take turns, so that they come from memory.
#include <recops/gating/ple.hpp>

#include <memory>
#include <vector>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

PleSpec public_spec() {
  return {.inputs = 960,
          .tasks = 2,
          .levels = {{.outputs = 256, .hidden = {1024, 512}, .own_experts = {2}, .shared_experts = 2},
                     {.outputs = 64, .hidden = {256, 128}, .own_experts = {3}, .shared_experts = 3},
                     {.outputs = 32, .hidden = {128, 64}, .own_experts = {4}, .shared_experts = 4}}};
}
PleSpec production_spec() {
  return {.inputs = 1024, .tasks = 12, .levels = {{.outputs = 128, .own_experts = {1}, .shared_experts = 4}}};
}

/// Arguments of the peer: per level the widths of an expert, its own and shared experts.
std::string arguments(const PleSpec& spec, Index batch, Index copies) {
  std::string text = "{\"batch\": " + std::to_string(batch) + ", \"inputs\": " + std::to_string(spec.inputs) +
                     ", \"tasks\": " + std::to_string(spec.tasks) + ", \"copies\": " + std::to_string(copies) + ", \"levels\": [";
  for (std::size_t l = 0; l < spec.levels.size(); ++l) {
    const PleLevel& level = spec.levels[l];
    text += l == 0 ? "[[" : ", [[";
    for (const Index h : level.hidden) text += std::to_string(h) + ", ";
    text += std::to_string(level.outputs) + "], " + std::to_string(level.own_experts[0]) + ", " +
            std::to_string(level.shared_experts) + "]";
  }
  return text + "]}";
}

/// Multiply-adds of a row: every weight is used once, and every output of a visible expert.
double flops_of(const Ple<float>& layer, Index batch) {
  double each = static_cast<double>(parameter_count(layer));
  for (const Cgc<float>& level : layer.levels) each += static_cast<double>(level.outputs() * level.gates.map.size());
  return 2 * static_cast<double>(batch) * each;
}

void add(const char* name, const PleSpec& spec, Index batch, bool train) {
  register_case<float>(std::string("gating/") + name + "/f32/B:" + std::to_string(batch), [=] {
    struct Data {
      std::vector<FrozenPle<float>> served;
      Ple<float> layer, gradient;
      Ple<float>::Saved saved;
      Matrix<float> x, y, dx;
      Workspace ws;
    };
    Random random(1);
    const auto d = std::make_shared<Data>();
    d->layer = Ple<float>(spec, random);
    const double bytes = static_cast<double>(parameter_count(d->layer)) * sizeof(float);
    Case<float> c;
    c.flops = flops_of(d->layer, batch) * (train ? 3 : 1);
    d->x = Matrix<float>(batch, spec.inputs);
    for (float& v : leaf_values(d->x)) v = static_cast<float>(random.normal());
    d->y = Matrix<float>(batch, d->layer.output_cols(spec.inputs));
    if (train) {
      d->gradient = make_gradient(d->layer);
      d->dx = Matrix<float>(batch, spec.inputs, 0.0f);
      c.working_set = 2 * bytes;
      c.kernel = [d](Index) {
        d->layer.forward(d->x, d->y, d->saved, Step{}, d->ws);
        d->layer.backward(d->x, d->y, d->saved, d->dx, d->gradient, d->ws);  // upstream: y itself, as large as any
      };
      c.peers.push_back(python_peer("torch", "ple_train", arguments(spec, batch, 1)));
      return c;
    }
    d->served.assign(static_cast<std::size_t>(copies_for(bytes)), freeze(d->layer));
    c.copies = static_cast<Index>(d->served.size());
    c.working_set = bytes;
    if (batch == 1) c.bytes = bytes;
    c.kernel = [d](Index copy) { d->served[static_cast<std::size_t>(copy)].forward(d->x, d->y, d->ws); };
    c.peers.push_back(python_peer("torch", "ple", arguments(spec, batch, c.copies)));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index batch : {1, 8, 64, 512}) add("ple", public_spec(), batch, false);
  for (const Index batch : {1, 8, 64, 512}) add("cgc", production_spec(), batch, false);
  add("ple_train", public_spec(), 512, true);
  return run_registered(argc, argv);
}
