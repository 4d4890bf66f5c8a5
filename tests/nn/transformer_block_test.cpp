// Oracles: torch.nn.TransformerEncoderLayer (golden/layers.py); central differences, dropout included.
#include <recops/nn/rms_norm.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/nn/transformer_block.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"

using namespace recops;
using namespace recops_test;

static_assert(SequenceLayer<TransformerBlock<float>, float>);

namespace {
Vector<std::int64_t> offsets_of(const std::vector<std::int64_t>& lengths) {
  Vector<std::int64_t> offsets{0};
  for (const std::int64_t n : lengths) offsets.push_back(offsets[offsets.size() - 1] + n);
  return offsets;
}
}  // namespace

TEMPLATE_TEST_CASE("a transformer block is torch's, norm before and after, causal or not", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("layers");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-10;
  const Vector<std::int64_t> offsets = offsets_of(golden.values<std::int64_t>("transformer.lengths"));
  Random random(1);
  Workspace ws;
  for (const bool first : {false, true}) {
    const std::string name = first ? "transformer_pre" : "transformer_post";
    TransformerBlock<T> block(16,
                              {.heads = 4,
                               .hidden = 24,
                               .activation = first ? Activation::gelu : Activation::relu,
                               .norm_first = first,
                               .causal = first},
                              random);
    CAPTURE(name);
    CHECK(distance_to_golden<T>(golden, name, block, offsets) < bound);
    const Matrix<T> x = golden.matrix<T>(name + ".x");
    const Matrix<double> expected = golden.matrix<double>(name + ".y");
    Padded<T> y(x.rows(), 16), z(x.rows(), 16);
    const JaggedView<const T> sequences(x, offsets);
    block.forward(sequences, y, ws);
    const auto frozen = freeze(block);
    frozen.forward(sequences, z, ws);
    CHECK(max_difference(y.view(), expected.view()) < 5 * bound);
    CHECK(max_difference(z.view(), expected.view()) < 5 * bound);
    CHECK((y.intact() && z.intact()));
  }
}

TEST_CASE("gradients of transformer blocks", "[nn][transformer_block]") {
  Random random = random_stream(461);
  Matrix<double> x = random_matrix<double>(9, 6, random);
  const Vector<std::int64_t> offsets{0, 4, 4, 9};
  for (const bool first : {false, true})
    for (const double dropout : {0.0, 0.3}) {
      const TransformerBlockOptions options{.heads = 2,
                                            .hidden = 7,
                                            .activation = Activation::gelu,
                                            .norm_first = first,
                                            .causal = dropout > 0,
                                            .dropout = dropout};
      TransformerBlock<double> block(6, options, random);
      const GradientReport report = gradient_check(block, JaggedView<double>(x, offsets));
      CAPTURE(first, dropout, report.where);
      CHECK(report.worst < 1e-6);
    }
  TransformerBlock<double, RmsNorm<double>> rms(6, {.heads = 3, .activation = Activation::silu, .norm_first = true}, random);
  CHECK(gradient_check(rms, JaggedView<double>(x, offsets)).worst < 1e-6);
  auto two = sequential<double>(TransformerBlock<double>(6, {.heads = 2, .dropout = 0.2}, random),
                                TransformerBlock<double>(6, {.heads = 2, .dropout = 0.2}, random), Linear<double>(6, 2, random));
  CHECK(gradient_check(two, JaggedView<double>(x, offsets), 3).worst < 1e-5);
}

TEST_CASE("sequences do not see each other, causal rows not what follows", "[nn][transformer_block]") {
  Random random = random_stream(462);
  Workspace ws;
  const TransformerBlock<double> block(8, {.heads = 2, .norm_first = true, .causal = true}, random);
  Matrix<double> x = random_matrix<double>(10, 8, random), y(10, 8), z(10, 8);
  const Vector<std::int64_t> offsets{0, 6, 10};
  block.forward(JaggedView<const double>(x, offsets), y, ws);
  x(4, 2) = std::nan("");
  block.forward(JaggedView<const double>(x, offsets), z, ws);
  CHECK(max_difference(y.view().middle_rows(0, 4), z.view().middle_rows(0, 4)) < 1e-12);
  CHECK(std::isnan(z(4, 0)));
  CHECK(std::isnan(z(5, 0)));
  CHECK(max_difference(y.view().middle_rows(6, 4), z.view().middle_rows(6, 4)) == 0);
}

TEST_CASE("frozen in fewer bits, empty batches, allocations, errors of transformer blocks", "[nn][transformer_block]") {
  Random random = random_stream(463);
  Workspace ws;
  TransformerBlock<float> block(32, {.heads = 4, .dropout = 0.1}, random), gradient = make_gradient(block);
  const Matrix<float> x = random_matrix<float>(12, 32, random), none(0, 32);
  Matrix<float> y(12, 32), half(12, 32), eighth(12, 32), empty(0, 32), dx(12, 32, 0.0f), wrong(12, 31);
  const Vector<std::int64_t> offsets{0, 5, 5, 12}, zero{0};
  const JaggedView<const float> sequences(x, offsets);
  block.forward(sequences, y, ws);
  freeze(block, Weights<BFloat16>()).forward(sequences, half, ws);
  freeze(block, Weights<std::int8_t>()).forward(sequences, eighth, ws);
  CHECK(max_difference(y.view(), half.view()) < 0.03);
  CHECK(max_difference(y.view(), eighth.view()) < 0.1);
  CHECK(max_difference(half.view(), eighth.view()) > 0);
  block.forward(JaggedView<const float>(none, zero), empty, ws);
  freeze(block).forward(JaggedView<const float>(none, zero), empty, ws);
  TransformerBlock<float>::Saved saved;
  const auto step = [&] {
    block.forward(sequences, y, saved, Step{}, ws);
    block.backward(sequences, x, saved, dx, gradient, ws);
  };
  step();
  CHECK(count_allocations(step) == 0);
  CHECK(error_of([&] { block.forward(sequences, wrong, ws); }) == "TransformerBlock: y: expected shape [12, 32], got [12, 31]");
  y.fill(7.0f);
  const auto spoiled = [&](auto&& spoil) {  // parameters that were loaded and do not fit
    TransformerBlock<float> unfit = block;
    spoil(unfit);
    CHECK(error_of([&] { (void)freeze(unfit); }) != "");
    return error_of([&] { unfit.forward(sequences, y, ws); });
  };
  CHECK(spoiled([](auto& b) { b.norm2.weight.resize(3); }) == "LayerNorm: weight: expected size 32, got 3");
  CHECK(spoiled([](auto& b) { b.norm1.bias.resize(3); }) == "LayerNorm: bias: expected size 32, got 3");
  CHECK(spoiled([](auto& b) { b.linear2.bias.resize(3); }) == "TransformerBlock: linear2.bias: expected size 32, got 3");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  CHECK(error_of([&] { TransformerBlock<float>(8, {.dropout = 1}, random); }) ==
        "TransformerBlock: dropout: expected 0 <= dropout < 1, got 1");
}
