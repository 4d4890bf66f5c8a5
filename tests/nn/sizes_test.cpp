// A layer made with a negative size names itself and the argument.
#include <recops/nn/activation.hpp>
#include <recops/nn/attention_sublayer.hpp>
#include <recops/nn/cross_mixture.hpp>
#include <recops/nn/cross_network.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/experts.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/nn/positional_embedding.hpp>
#include <recops/nn/rms_norm.hpp>
#include <recops/nn/time_gap_embedding.hpp>
#include <recops/nn/transformer_block.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("layers refuse negative sizes by name", "[nn][errors]") {
  check_refused({
      {"Linear: in", [](Random& r) { Linear<float>(-3, 2, r); }},
      {"Linear: out", [](Random& r) { Linear<float>(3, -2, r); }},
      {"LayerNorm: n", [](Random&) { LayerNorm<float>(-3); }},
      {"RmsNorm: n", [](Random&) { RmsNorm<float>(-3); }},
      {"BatchNorm: n", [](Random&) { BatchNorm<float>(-3); }},
      {"PRelu: slopes", [](Random&) { PRelu<float>(-3); }},
      {"Dice: n", [](Random&) { Dice<float>(-3); }},
      {"Dense: in", [](Random& r) { Dense<float>(-3, 2, Activation::relu, r); }},
      {"Dense: out", [](Random& r) { Dense<float>(3, -2, Activation::relu, r); }},
      {"Mlp: widths",
       [](Random& r) {
         Mlp<float>({3, -2, 1}, {}, r);
       }},
      {"Experts: count", [](Random& r) { Experts<float, Linear<float>>(-1, [&](Index) { return Linear<float>(3, 2, r); }); }},
      {"EmbeddingBag: rows", [](Random& r) { EmbeddingBag<float>(-3, 2, 1, r); }},
      {"EmbeddingBag: cols", [](Random& r) { EmbeddingBag<float>(3, -2, 1, r); }},
      {"PositionalEmbedding: max_length", [](Random& r) { PositionalEmbedding<float>(-3, 2, 1, r); }},
      {"PositionalEmbedding: width", [](Random& r) { PositionalEmbedding<float>(3, -2, 1, r); }},
      {"TimeGapEmbedding: width", [](Random& r) { TimeGapEmbedding<float>(3, -2, 60, 1, r); }},
      {"CrossLayer: width", [](Random& r) { CrossLayer<float>(-3, r); }},
      {"CrossNetwork: width", [](Random& r) { CrossNetwork<float>(-3, 0, r); }},
      {"CrossMixtureLayer: width", [](Random& r) { CrossMixtureLayer<float>(-3, 2, 2, r); }},
      {"CrossMixture: width", [](Random& r) { CrossMixture<float>(-3, 0, 2, 2, r); }},
      {"MultiheadAttention: embed", [](Random& r) { MultiheadAttention<float>(-4, 2, r); }},
      {"MultiheadAttention: heads", [](Random& r) { MultiheadAttention<float>(4, -2, r); }},
      {"MultiheadAttention: key_width", [](Random& r) { MultiheadAttention<float>(4, 2, r, true, -3, 2); }},
      {"MultiheadAttention: value_width", [](Random& r) { MultiheadAttention<float>(4, 2, r, true, 3, -2); }},
      {"AttentionSublayer: width", [](Random& r) { AttentionSublayer<float>(-4, 2, 0, r); }},
      {"AttentionSublayer: key_width", [](Random& r) { AttentionSublayer<float>(4, 2, 0, r, -3); }},
      {"TransformerBlock: width", [](Random& r) { TransformerBlock<float>(-4, {.heads = 2}, r); }},
      {"TransformerBlock: width", [](Random& r) { TransformerBlock<float>(MultiheadAttention<float>(4, 2, r), -4, {}, r); }},
  });
}
