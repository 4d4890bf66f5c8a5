// Oracles: PyTorch (tests/golden/dreamrec.py); central differences in double; the loss written from public pieces; serving alone and in a batch.
#include <recops/models/dreamrec.hpp>
#include <recops/train/gradient_check.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {
DreamRecOptions small(bool detach) {
  return {.encoder = {.items = 9, .width = 4, .max_length = 5, .blocks = 1, .dropout = 0},
          .steps = 10,
          .two_layers = true,
          .guidance_dropout = 0.4,
          .detach_target = detach};
}
const std::vector<std::int32_t> ids{3, 1, 4, 1, 5, 8, 2};
const std::vector<std::int64_t> offsets{0, 4, 4, 5, 7};
}  // namespace

TEMPLATE_TEST_CASE("DreamRec is PyTorch's: loss, every gradient, what is generated, frozen too", "[models][dreamrec][golden]", float,
                   double) {
  using T = TestType;
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const Golden g("dreamrec");
  const auto sequences = g.values<std::int64_t>("ids"), bounds = g.values<std::int64_t>("offsets"),
             rows = g.values<std::int64_t>("rows");
  const auto seed = static_cast<std::uint64_t>(g.values<std::int64_t>("seed")[0]);
  const Step step{.seed = 3, .number = 8};
  Workspace ws;
  for (const bool two_layers : {false, true}) {
    const std::string name = two_layers ? "mlp2" : "mlp1", drawn = name + (std::is_same_v<T, float> ? ".float." : ".double.");
    CAPTURE(name);
    Random random(1);
    DreamRec<T> model({.encoder = {.items = 11, .width = 6, .max_length = 5, .blocks = 1, .dropout = 0},
                       .steps = 12,
                       .two_layers = two_layers,
                       .guidance_dropout = 0.4},
                      random);
    set_parameters<T>(g, name + ".", model);
    const auto alpha_bar = g.values<double>("alpha_bar");
    for (Index t = 0; t <= 12; ++t) CHECK(std::abs(model.schedule.alpha_bar[t] - alpha_bar[static_cast<std::size_t>(t)]) < 1e-14);
    for (const bool detach : {false, true}) {
      CAPTURE(detach);
      model.options.detach_target = detach;
      typename DreamRec<T>::Saved saved;
      DreamRec<T> gradient = zeros_like(model);
      for (int twice = 0; twice < 2; ++twice)
        CHECK(std::abs(model.value_and_grad(sequences, bounds, gradient, saved, step, ws) - g.scalar(drawn + "loss")) < bound);
      visit(
          [&](const FieldPath& path, const auto& leaf) {
            if (path.kind != FieldKind::parameter || leaf_values(leaf).empty()) return;
            const bool other = detach && path.str() == "encoder.items.weight";
            const auto expected = g.values<double>(drawn + (other ? "detached." : "d.") + path.str());
            const auto got = leaf_values(leaf);
            INFO(path.str());
            REQUIRE(got.size() == static_cast<Index>(expected.size()));
            double worst = 0;
            for (Index i = 0; i < got.size(); ++i)
              worst = std::max(worst, std::abs(static_cast<double>(got[i]) / 2 - expected[static_cast<std::size_t>(i)]));
            CHECK(worst < bound);
          },
          std::as_const(gradient));
    }
    const std::pair<const char*, SamplerOptions> chains[] = {{"ddpm.x", {.method = SamplerMethod::ddpm, .guidance = 2}},
                                                             {"ddim.x", {.steps = 4}}};
    for (const auto& [chain, options] : chains) {
      CAPTURE(chain);
      const SamplerPlan plan(model.schedule, options);
      Padded<T> x(5, 6), served(5, 6);
      CHECK(model.generate(sequences, bounds, rows, plan, seed, x, ws) == 0);
      CHECK(freeze(model, plan).generate(sequences, bounds, rows, seed, served, ws) == 0);
      CHECK(max_difference(x.view(), g.matrix<double>(drawn + chain).view()) < bound);
      CHECK(max_difference(served.view(), g.matrix<double>(drawn + chain).view()) < bound);
      CHECK((x.intact() && served.intact()));
    }
  }
}

TEST_CASE("DreamRec's gradient is that of central differences", "[models][dreamrec]") {
  for (const bool detach : {false, true}) {
    Random random = random_stream(81);
    DreamRec<double> model(small(detach), random);
    DreamRec<double>::Saved saved;
    auto gradient = zeros_like(model), scratch = gradient;
    Workspace ws;
    const Step step{3, 8, 0};
    for (int twice = 0; twice < 2; ++twice) model.value_and_grad(ids, offsets, gradient, saved, step, ws);
    const auto loss = [&] { return model.value_and_grad(ids, offsets, scratch, saved, step, ws); };
    GradientReport report;
    visit(
        [&](const FieldPath& path, auto& leaf, auto& g) {
          if (path.kind != FieldKind::parameter || (detach && path.str() == "encoder.items.weight")) return;
          for (auto& v : leaf_values(g)) v /= 2;
          if constexpr (std::is_convertible_v<decltype(leaf_values(leaf)), VectorView<double>>)
            check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.most = 10});
        },
        model, gradient);
    INFO(report.where);
    CHECK(report.worst < 1e-6);
    auto rows = make_gradient(model);
    model.value_and_grad(ids, offsets, rows, saved, step, ws);
    zero_gradient(rows);
    CHECK(count_allocations([&] { model.value_and_grad(ids, offsets, rows, saved, step, ws); }) == 0);
  }
}

TEST_CASE("DreamRec's loss and samples from its parts", "[models][dreamrec]") {
  Random random = random_stream(82);
  const DreamRec<float> model(small(false), random);
  DreamRec<float>::Saved saved;
  auto gradient = make_gradient(model);
  Workspace ws;
  const Step step{3, 8, 0};
  const double loss = model.value_and_grad(ids, offsets, gradient, saved, step, ws);
  // Positions with a successor: 3 1 4 | | | 8, towards 1 4 1 | | | 2.
  const std::vector<std::int32_t> in{3, 1, 4, 8}, next{1, 4, 1, 2};
  const std::vector<std::int64_t> in_offsets{0, 3, 3, 3, 4};
  Matrix<float> h(4, 4), x0(4, 4), x(4, 4), m(4, 4);
  model.encoder.forward(in, in_offsets, h, ws);
  model.encoder.items.forward(next, {}, x0);
  for (float& v : leaf_values(x0)) v *= 2;
  Vector<std::int32_t> t(4);
  Vector<std::uint8_t> keep(4);
  const RandomRow at = step.random_row(RandomPurpose::diffusion_noise);
  uniform_timesteps(10, at, {}, t);
  guidance_mask(0.4, at, {}, keep);
  q_sample<float>(model.schedule, x0, t, at, {}, x);
  MlpDenoiser<float>::Saved kept;
  model.denoiser.forward(x, h, keep, t, m, kept, {}, ws);
  double sum = 0;
  for (Index i = 0; i < 16; ++i) sum += std::pow(static_cast<double>(m.data()[i] - x0.data()[i]), 2) / 16;
  CHECK(loss == Approx(sum).epsilon(1e-5));

  const SamplerPlan plan(model.schedule, {.steps = 4, .guidance = 1.5});
  Matrix<float> out(4, 4), one(1, 4);
  const std::vector<std::int64_t> rows{9, 2, 77, 4};
  CHECK(model.generate(ids, offsets, rows, plan, 6, out, ws) == 0);
  for (Index b = 0; b < 4; ++b) {
    const Index first = offsets[static_cast<std::size_t>(b)], count = offsets[static_cast<std::size_t>(b) + 1] - first;
    const std::vector<std::int64_t> alone{0, count};
    model.generate(IndexView(ids.data() + first, count), alone, IndexView(rows).segment(b, 1), plan, 6, one, ws);
    CHECK(max_difference(one.view(), out.view().middle_rows(b, 1)) < 1e-5);
  }
  CHECK(error_of([&] { model.generate(ids, offsets, rows, plan, 6, one, ws); }).find("x: expected shape [4, 4]") !=
        std::string::npos);
  const std::vector<std::int32_t> bad{3, 1, 4, 9, 5, 8, 2};
  CHECK(error_of([&] { model.value_and_grad(bad, offsets, gradient, saved, step, ws); }).find("ids") != std::string::npos);
  CHECK(error_of([&] {
          DreamRecOptions o = small(false);
          o.guidance_dropout = 1;
          DreamRec<float>(o, random);
        }).find("guidance_dropout") != std::string::npos);
}

TEST_CASE("DreamRec frozen is DreamRec, the same bits for any batch and threads", "[models][dreamrec]") {
  for (const bool two_layers : {false, true}) {
    DreamRecOptions o = small(false);
    o.two_layers = two_layers;
    Random random = random_stream(83);
    const DreamRec<float> model(o, random);
    Workspace ws;
    const std::vector<std::int64_t> rows{9, 2, 77, 4};
    Threads threads{4};
    const SamplerOptions plans[] = {{.steps = 4, .guidance = 1.5}, {.method = SamplerMethod::ddpm, .guidance = 2}, {.steps = 1}};
    for (const SamplerOptions& options : plans) {
      const SamplerPlan plan(model.schedule, options);
      const auto frozen = freeze(model, plan);
      Matrix<float> expected(4, 4), x(4, 4), one(1, 4), half(4, 4);
      CHECK(model.generate(ids, offsets, rows, plan, 6, expected, ws) == 0);
      const double scale = 1 + max_difference(expected.view(), Matrix<float>(4, 4, 0.0f).view());
      CHECK(frozen.generate(ids, offsets, rows, 6, x, ws) == 0);
      CHECK(max_difference(x.view(), expected.view()) < 2e-5 * scale);
      CHECK(count_allocations([&] { frozen.generate(ids, offsets, rows, 6, x, ws); }) == 0);
      freeze(model, plan, Weights<BFloat16>()).generate(ids, offsets, rows, 6, half, ws);
      CHECK(max_difference(half.view(), expected.view()) < 0.1 * scale);
      for (Index b = 0; b < 4; ++b) {
        const Index first = offsets[static_cast<std::size_t>(b)], count = offsets[static_cast<std::size_t>(b) + 1] - first;
        const std::vector<std::int64_t> alone{0, count};
        frozen.generate(IndexView(ids.data() + first, count), alone, IndexView(rows).segment(b, 1), 6, one, ws);
        CHECK(max_difference(one.view(), x.view().middle_rows(b, 1)) == 0);
      }
      Workspace several(make_executor(threads, 4));
      frozen.generate(ids, offsets, rows, 6, half, several);
      CHECK(max_difference(half.view(), x.view()) == 0);
      // A list is the best of what was generated.
      Matrix<std::int32_t> list(4, 3), best(4, 3);
      const RoundToItemsOptions seen{.seen = ids, .seen_offsets = offsets};
      frozen.recommend(ids, offsets, rows, 6, seen, list, {}, ws);
      round_to_items<float>(x.view(), model.encoder.items.weight.values.view(), seen, best, {}, ws);
      for (Index i = 0; i < 12; ++i) CHECK(list.data()[i] == best.data()[i]);
      list.fill(5);
      const std::vector<std::int32_t> bad{3, 1, 4, 9, 5, 8, 2};
      CHECK(error_of([&] { frozen.recommend(bad, offsets, rows, 6, {}, list, {}, ws); }).find("ids") != std::string::npos);
      CHECK(error_of([&] { frozen.recommend(ids, offsets, rows, 6, {.seen = ids}, list, {}, ws); }).find("seen_offsets") !=
            std::string::npos);
      CHECK(list(3, 2) == 5);
    }
    CHECK(error_of([&] { freeze(model, SamplerPlan()); }).find("steps") != std::string::npos);
    CHECK(error_of([&] {
            FrozenDreamRec<float>(model, SamplerPlan(model.schedule, {}), {.metric = ItemMetric::cosine});
          }).find("metric") != std::string::npos);
  }
}
