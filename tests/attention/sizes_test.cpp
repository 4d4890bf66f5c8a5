// A layer made with a negative size names itself and the argument.
#include <recops/attention/additive_pool.hpp>
#include <recops/attention/din.hpp>
#include <recops/attention/dispatcher_block.hpp>
#include <recops/attention/fq_former.hpp>
#include <recops/attention/interest_memory.hpp>
#include <recops/attention/lightsans.hpp>
#include <recops/attention/minet.hpp>
#include <recops/attention/multi_interest.hpp>
#include <recops/attention/pma.hpp>
#include <recops/attention/query_resampler.hpp>
#include <recops/attention/sdim.hpp>
#include <recops/attention/sim.hpp>
#include <recops/attention/twin.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("layers refuse negative sizes by name", "[attention][errors]") {
  check_refused({
      {"MemoryUsage: slots", [](Random&) { MemoryUsage(-3); }},
      {"random_planes: bits", [](Random& r) { random_planes<float>(-3, 2, r); }},
      {"random_planes: d", [](Random& r) { random_planes<float>(3, -2, r); }},
      {"Sdim: width", [](Random& r) { Sdim<float>(-4, {}, r); }},
      {"ItemAttention: candidate_width", [](Random& r) { ItemAttention<float>(-4, 3, 4, 5, 0, r); }},
      {"ItemAttention: user_width", [](Random& r) { ItemAttention<float>(4, -3, 4, 5, 0, r); }},
      {"ItemAttention: click_width", [](Random& r) { ItemAttention<float>(4, 3, -2, 5, 2, r); }},
      {"ItemAttention: hidden", [](Random& r) { ItemAttention<float>(4, 3, 4, -5, 0, r); }},
      {"ItemAttention: rank", [](Random& r) { ItemAttention<float>(4, 3, 2, 5, -2, r); }},
      {"InterestGates: parts", [](Random& r) { InterestGates<float>({}, 3, r); }},
      {"InterestGates: parts",
       [](Random& r) {
         InterestGates<float>({4, -2}, 3, r);
       }},
      {"InterestGates: hidden",
       [](Random& r) {
         InterestGates<float>({4, 2}, -3, r);
       }},
      {"MiNet: target_width", [](Random& r) { MiNet<float>(-4, 3, 2, 5, 5, 2, r); }},
      {"MiNet: user_width", [](Random& r) { MiNet<float>(4, -3, 2, 5, 5, 2, r); }},
      {"MiNet: source_width", [](Random& r) { MiNet<float>(4, 3, -2, 5, 5, 2, r); }},
      {"MiNet: hidden", [](Random& r) { MiNet<float>(4, 3, 2, -5, 5, 2, r); }},
      {"MiNet: gate_hidden", [](Random& r) { MiNet<float>(4, 3, 2, 5, -5, 2, r); }},
      {"MiNet: rank", [](Random& r) { MiNet<float>(4, 3, 2, 5, 5, -2, r); }},
      {"Din: width", [](Random& r) { Din<float>(-4, {3}, r); }},
      {"Din: hidden",
       [](Random& r) {
         Din<float>(4, {3, -2}, r);
       }},
      {"SoftSearch: candidate_width", [](Random& r) { SoftSearch<float>(-4, 3, 2, r); }},
      {"SoftSearch: history_width", [](Random& r) { SoftSearch<float>(4, -3, 2, r); }},
      {"SoftSearch: inner", [](Random& r) { SoftSearch<float>(4, 3, -2, r); }},
      {"ExactSearchUnit: candidate_width", [](Random& r) { ExactSearchUnit<float>(-4, 4, 2, 0, 0, 60, r); }},
      {"ExactSearchUnit: history_width", [](Random& r) { ExactSearchUnit<float>(4, -4, 2, 0, 0, 60, r); }},
      {"ExactSearchUnit: history_width", [](Random& r) { ExactSearchUnit<float>(4, -4, 2, 3, 8, 60, r); }},
      {"ExactSearchUnit: buckets", [](Random& r) { ExactSearchUnit<float>(4, 4, 2, -1, 0, 60, r); }},
      {"ExactSearchUnit: gap_width", [](Random& r) { ExactSearchUnit<float>(4, 4, 2, 3, -1, 60, r); }},
      {"Twin: output_width", [](Random& r) { Twin<float>({.width = 4, .output_width = -1}, r); }},
      {"SelfAttentiveInterests: hidden", [](Random& r) { SelfAttentiveInterests<float>(4, 2, -1, 0, r); }},
      {"QueryResamplerLayer: width", [](Random& r) { QueryResamplerLayer<float>(-4, 2, 3, r); }},
      {"QueryResamplerLayer: hidden", [](Random& r) { QueryResamplerLayer<float>(4, 2, -3, r); }},
      {"QueryResampler: width", [](Random& r) { QueryResampler<float>(-4, {.queries = 2, .heads = 2}, r); }},
      {"QueryResampler: queries", [](Random& r) { QueryResampler<float>(4, {.queries = -2, .heads = 2}, r); }},
      {"AttentionBlock: x_width", [](Random& r) { AttentionBlock<float>(-3, 3, 4, {}, r); }},
      {"AttentionBlock: y_width", [](Random& r) { AttentionBlock<float>(3, -3, 4, {}, r); }},
      {"AttentionBlock: width", [](Random& r) { AttentionBlock<float>(3, 3, -4, {}, r); }},
      {"Pma: input_width", [](Random& r) { Pma<float>(-3, 4, 2, {}, r); }},
      {"Pma: width", [](Random& r) { Pma<float>(3, -4, 2, {}, r); }},
      {"Pma: seeds", [](Random& r) { Pma<float>(3, 4, -2, {}, r); }},
      {"Isab: input_width", [](Random& r) { Isab<float>(-3, 4, 2, {}, r); }},
      {"Isab: width", [](Random& r) { Isab<float>(3, -4, 2, {}, r); }},
      {"Isab: points", [](Random& r) { Isab<float>(3, 4, -2, {}, r); }},
      {"AdditivePool: width", [](Random& r) { AdditivePool<float>(-4, 2, r); }},
      {"AdditivePool: hidden", [](Random& r) { AdditivePool<float>(4, -2, r); }},
      {"DispatcherAttention: width", [](Random& r) { DispatcherAttention<float>(-4, 2, r); }},
      {"DispatcherBlock: width", [](Random& r) { DispatcherBlock<float>(-4, {.heads = 2}, r); }},
      {"FqFormer: width", [](Random& r) { FqFormer<float>(-4, {.queries = 2}, r); }},
      {"FqFormer: queries", [](Random& r) { FqFormer<float>(4, {.queries = -2}, r); }},
      {"LightSans: width", [](Random& r) { LightSans<float>(-4, {}, r); }},
  });
}
