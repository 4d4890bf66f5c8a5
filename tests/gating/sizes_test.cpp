// A layer made with a negative size names itself and the argument; one made of others, itself and not its parts.
#include <recops/gating/epnet.hpp>
#include <recops/gating/film.hpp>
#include <recops/gating/gated_adapters.hpp>
#include <recops/gating/group_gated_ffn.hpp>
#include <recops/gating/home.hpp>
#include <recops/gating/lhuc.hpp>
#include <recops/gating/lora_linear.hpp>
#include <recops/gating/ple.hpp>
#include <recops/gating/ppnet.hpp>
#include <recops/gating/sparse_mmoe.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
void ffn(Index width, Index user_width, Index groups, Random& r) {
  GroupGatedFfn<float, Linear<float>>(
      width, user_width, groups, [&] { return Linear<float>(4, 4, r); }, r);
}
}  // namespace

TEST_CASE("layers refuse negative sizes by name", "[gating][errors]") {
  check_refused({
      {"AdapterTable: users", [](Random& r) { AdapterTable<float>(-3, 2, 2, 2, r); }},
      {"AdapterTable: inputs", [](Random& r) { AdapterTable<float>(3, -2, 2, 4, r); }},
      {"AdapterTable: rank", [](Random& r) { AdapterTable<float>(3, 2, -2, 2, r); }},
      {"AdapterTable: outputs", [](Random& r) { AdapterTable<float>(3, 2, 2, -1, r); }},
      {"GatedAdapters: inputs", [](Random& r) { GatedAdapters<float>({.inputs = -4, .outputs = 2}, r); }},
      {"GatedAdapters: outputs", [](Random& r) { GatedAdapters<float>({.inputs = 4, .outputs = -2}, r); }},
      {"GatedAdapters: adapters", [](Random& r) { GatedAdapters<float>({.inputs = 4, .outputs = 2, .adapters = {-1}}, r); }},
      {"GatedAdapters: gate_width", [](Random& r) { GatedAdapters<float>({.inputs = 4, .outputs = 2, .gate_width = -8}, r); }},
      {"BiasController: experts", [](Random&) { BiasController<float>(-3); }},
      {"Film: units", [](Random& r) { Film<float>(-3, 2, r); }},
      {"Film: condition", [](Random& r) { Film<float>(3, -2, r); }},
      {"Lhuc: users", [](Random&) { Lhuc<float>(-3, 2); }},
      {"Lhuc: units", [](Random&) { Lhuc<float>(3, -2); }},
      {"LoraLinear: rank", [](Random& r) { LoraLinear<float>(Linear<float>(3, 2, r), -1, 1, r); }},
      {"GateNu: inputs", [](Random& r) { GateNu<float>(-3, 0, 2, r); }},
      {"GateNu: hidden_width", [](Random& r) { GateNu<float>(3, -1, 2, r); }},
      {"GateNu: outputs", [](Random& r) { GateNu<float>(3, 0, -2, r); }},
      {"GateNu: outputs", [](Random& r) { GateNu<float>(3, 4, -2, r); }},
      {"Epnet: embeddings", [](Random& r) { Epnet<float>({.embeddings = -4, .domain = 8}, r); }},
      {"Epnet: domain", [](Random& r) { Epnet<float>({.embeddings = 4, .domain = -2}, r); }},
      {"Epnet: hidden_width", [](Random& r) { Epnet<float>({.embeddings = 4, .domain = 2, .hidden_width = -1}, r); }},
      {"Ppnet: prior", [](Random& r) { Ppnet<float>({.inputs = 4, .prior = -1, .widths = {3}}, r); }},
      {"Ppnet: gate_width", [](Random& r) { Ppnet<float>({.inputs = 4, .prior = 2, .widths = {3}, .gate_width = -1}, r); }},
      {"SparseMmoe: inputs", [](Random& r) { SparseMmoe<float>({.inputs = -4, .outputs = 2}, r); }},
      {"SparseMmoe: tasks", [](Random& r) { SparseMmoe<float>({.inputs = 4, .outputs = 2, .tasks = -1}, r); }},
      {"SparseMmoe: experts", [](Random& r) { SparseMmoe<float>({.inputs = 4, .experts = -8, .outputs = 2}, r); }},
      {"Mmoe: inputs", [](Random& r) { Mmoe<float>({.inputs = 0, .outputs = 2}, r); }},
      {"Mmoe: outputs", [](Random& r) { Mmoe<float>({.inputs = 4, .outputs = -2}, r); }},
      {"Mmoe: experts", [](Random& r) { Mmoe<float>({.inputs = 4, .experts = -8, .outputs = 2}, r); }},
      {"Mmoe: tasks", [](Random& r) { Mmoe<float>({.inputs = 4, .outputs = 2, .tasks = -1}, r); }},
      {"Mmoe: hidden", [](Random& r) { Mmoe<float>({.inputs = 4, .outputs = 2, .hidden = {-3}}, r); }},
      {"Mmoe: gate_hidden",
       [](Random& r) {
         Mmoe<float>({.inputs = 4, .outputs = 2, .gate_hidden = {3, 0}}, r);
       }},
      {"Mmoe: dropout", [](Random& r) { Mmoe<float>({.inputs = 4, .outputs = 2, .gates = {.dropout = 1}}, r); }},
      {"Mmoe: visible expert", [](Random& r) { Mmoe<float>({.inputs = 4, .outputs = 2, .visible = {{9}}}, r); }},
      {"Cgc: inputs", [](Random& r) { Cgc<float>(CgcSpec{.inputs = -4, .outputs = 2}, r); }},
      {"Cgc: outputs", [](Random& r) { Cgc<float>(CgcSpec{.inputs = 4, .outputs = 0}, r); }},
      {"Ple: inputs", [](Random& r) { Ple<float>({.inputs = -4, .levels = {{.outputs = 2}}}, r); }},
      {"Ple: tasks", [](Random& r) { Ple<float>({.inputs = 4, .tasks = 0, .levels = {{.outputs = 2}}}, r); }},
      {"Ple: outputs",
       [](Random& r) {
         Ple<float>({.inputs = 4, .levels = {{.outputs = 2}, {.outputs = 0}}}, r);
       }},
      {"Ple: hidden", [](Random& r) { Ple<float>({.inputs = 4, .levels = {{.outputs = 2, .hidden = {-1}}}}, r); }},
      {"Home::meta: inputs",
       [](Random& r) { Home<float>({.inputs = 0, .meta_outputs = 4, .outputs = 2, .categories = {0}}, r); }},
      {"Home::meta: outputs", [](Random& r) { Home<float>({.inputs = 4, .outputs = 2, .categories = {0}}, r); }},
      {"Home::task: outputs",
       [](Random& r) { Home<float>({.inputs = 4, .meta_outputs = 4, .outputs = -2, .categories = {0}}, r); }},
      {"Home::task: hidden",
       [](Random& r) { Home<float>({.inputs = 4, .meta_outputs = 4, .outputs = 2, .categories = {0}, .hidden = {0}}, r); }},
      {"HomeLevel: loras",
       [](Random& r) {
         HomeLevel<float>({.inputs = 4, .outputs = 2, .groups = {{1, 0}}, .mixtures = {{{0}, -1, {0}}}, .loras = -1}, r);
       }},
      {"GroupGatedFfn: width", [](Random& r) { ffn(-4, 2, 3, r); }},
      {"GroupGatedFfn: user_width", [](Random& r) { ffn(4, -2, 3, r); }},
      {"GroupGatedFfn: groups", [](Random& r) { ffn(4, 2, -3, r); }},
  });
}
