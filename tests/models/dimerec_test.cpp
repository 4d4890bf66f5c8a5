// Oracle: the loss written from the formulas with public pieces (noise, aggregation) and naive softmaxes; central differences in double;
// serving against the training forward run step by step.
#include <recops/models/dimerec.hpp>
#include <recops/train/gradient_check.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

struct Examples {
  std::vector<std::int32_t> ids{3, 1, 4, 1, 5, 9, 2, 6, 5, 8}, targets{2, 7, 1, 0}, negatives{0, 2, 5, 6, 9, 9};
  std::vector<std::int64_t> offsets{0, 4, 4, 5, 10}, rows{11, 3, 250, 8};
  NextItemBatch batch() const {
    return {.ids = ids, .offsets = offsets, .targets = targets, .negatives = negatives, .rows = rows};
  }
};

DimeRecOptions small(GuidanceExtraction extraction, DiffusionSpace space = DiffusionSpace::sphere) {
  DimeRecOptions o;
  o.items = 10, o.width = 6, o.interests = 3, o.max_length = 6, o.steps = 8;
  o.extraction = extraction;
  o.space = space;
  o.temperature = 0.4;
  o.extraction_weight = 0.7, o.softmax_weight = 1.3, o.reconstruction_weight = 0.9;
  o.guidance_dropout = 0.3;
  return o;
}

std::vector<double> unit(const double* x, Index n) {
  double square = 0;
  for (Index i = 0; i < n; ++i) square += x[i] * x[i];
  std::vector<double> out(x, x + n);
  for (double& v : out) v /= std::sqrt(square);
  return out;
}
double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

TEST_CASE("DimeRec's loss is that of the formulas", "[models][dimerec]") {
  for (const auto extraction :
       {GuidanceExtraction::self_attentive, GuidanceExtraction::dynamic_routing, GuidanceExtraction::last_items}) {
    Random random = random_stream(71);
    const DimeRecOptions o = small(extraction);
    const DimeRec<double> model(o, random);
    const Examples x;
    auto gradient = make_gradient(model);
    DimeRec<double>::Saved saved;
    Workspace ws;
    const Step step{5, 17, 0};
    Vector<double> log_q(10);
    for (Index i = 0; i < 10; ++i) log_q[i] = -0.3 * static_cast<double>(i);
    const DimeRecLoss loss = model.value_and_grad(x.batch(), log_q, gradient, saved, step, ws);

    Matrix<double> z(12, 6), e(4, 6), xt(4, 6), x0(4, 6);
    model.interests(x.ids, x.offsets, z, ws);
    const auto& table = model.items.weight.values;
    for (Index b = 0; b < 4; ++b) {
      const auto u = unit(table.row(x.targets[static_cast<std::size_t>(b)]), 6);
      std::copy(u.begin(), u.end(), e.row(b));
    }
    Vector<std::int32_t> t(4);
    Vector<std::uint8_t> keep(4);
    const RandomRow at = step.random_row(RandomPurpose::diffusion_noise);
    uniform_timesteps(8, at, x.rows, t);
    guidance_mask(0.3, at, x.rows, keep);
    sphere_q_sample<double>(model.schedule, e, t, at, x.rows, xt, {}, ws);
    InterestAggregator<double>::Saved kept;
    model.aggregator.forward(xt, z, keep, t, x0, kept, {}, ws);
    double first = 0, second = 0, third = 0;
    const auto softmax_loss = [&](const std::vector<double>& q, Index b) {
      const std::int32_t target = x.targets[static_cast<std::size_t>(b)];
      const double positive = inner(q, unit(table.row(target), 6)) / 0.4 - log_q[target];
      double sum = std::exp(positive);
      for (const std::int32_t j : x.negatives)
        if (j != target) sum += std::exp(inner(q, unit(table.row(j), 6)) / 0.4 - log_q[j]);
      return (std::log(sum) - positive) / 4;
    };
    for (Index b = 0; b < 4; ++b) {
      Index best = 0;
      std::vector<double> target(e.row(b), e.row(b) + 6);
      double most = -1e300;
      for (Index k = 0; k < 3; ++k) {
        const double score = inner(std::vector<double>(z.row(b * 3 + k), z.row(b * 3 + k) + 6), target);
        if (score > most) most = score, best = k;
      }
      const std::vector<double> generated(x0.row(b), x0.row(b) + 6);
      // The user without a history has no interests: the mean is over the others.
      if (x.offsets[static_cast<std::size_t>(b)] < x.offsets[static_cast<std::size_t>(b) + 1])
        first += softmax_loss(unit(z.row(b * 3 + best), 6), b) * 4 / 3;
      second += softmax_loss(generated, b);
      third += (1 - inner(generated, target)) / 4;
    }
    CHECK(loss.extraction == Approx(first).epsilon(1e-12));
    CHECK(loss.softmax == Approx(second).epsilon(1e-12));
    CHECK(loss.reconstruction == Approx(third).epsilon(1e-12));
    CHECK(loss.total == Approx(0.7 * first + 1.3 * second + 0.9 * third).epsilon(1e-12));
  }
}

TEST_CASE("DimeRec's gradient is that of central differences", "[models][dimerec]") {
  struct Case {
    GuidanceExtraction extraction;
    DiffusionSpace space;
    bool detach;
  };
  for (const Case c : {Case{GuidanceExtraction::self_attentive, DiffusionSpace::sphere, false},
                       Case{GuidanceExtraction::dynamic_routing, DiffusionSpace::sphere, false},
                       Case{GuidanceExtraction::last_items, DiffusionSpace::euclidean, false},
                       Case{GuidanceExtraction::last_items, DiffusionSpace::sphere, true}}) {
    Random random = random_stream(72);
    DimeRecOptions o = small(c.extraction, c.space);
    o.detach_target = c.detach;
    DimeRec<double> model(o, random);
    model.routing.options.iterations = 1;  // more of them hold couplings fixed in backward
    const Examples x;
    Workspace ws;
    const Step step{5, 17, 0};
    DimeRec<double>::Saved saved;
    auto gradient = zeros_like(model);
    for (int twice = 0; twice < 2; ++twice) model.value_and_grad(x.batch(), {}, gradient, saved, step, ws);
    auto scratch = zeros_like(model);
    const auto loss = [&] { return model.value_and_grad(x.batch(), {}, scratch, saved, step, ws).total; };
    GradientReport report;
    visit(
        [&](const FieldPath& path, auto& leaf, auto& g) {
          if (path.kind != FieldKind::parameter) return;
          if (c.detach && path.str() == "items.weight") return;  // only a part of its derivative is wanted
          for (auto& v : leaf_values(g)) v /= 2;
          if constexpr (std::is_convertible_v<decltype(leaf_values(leaf)), VectorView<double>>)
            check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.most = 10});
        },
        model, gradient);
    INFO(report.where << " numeric " << report.numeric << " analytic " << report.analytic);
    CHECK(report.worst < 1e-6);
    // By rows, as optimisers want it.
    auto by_rows = make_gradient(model);
    model.value_and_grad(x.batch(), {}, by_rows, saved, step, ws);
    CHECK(by_rows.items.weight.rows.size() == 10);
    auto again = make_gradient(model);
    model.value_and_grad(x.batch(), {}, again, saved, step, ws);
    zero_gradient(again);
    CHECK(count_allocations([&] { model.value_and_grad(x.batch(), {}, again, saved, step, ws); }) == 0);
  }
}

TEMPLATE_TEST_CASE("DimeRec's aggregation against PyTorch", "[models][dimerec][golden]", float, double) {
  using T = TestType;
  const Golden golden("dimerec");
  const double tolerance = std::is_same_v<T, float> ? 3e-5 : 1e-12;
  Random random = random_stream(73);
  InterestAggregator<T> layer(6, 3, 12, random);
  visit(
      [&](const FieldPath& path, auto& leaf) {
        if (leaf_values(leaf).empty()) return;
        const auto values = golden.values<T>("aggregator." + path.str());
        REQUIRE(leaf_values(leaf).size() == static_cast<Index>(values.size()));
        std::copy(values.begin(), values.end(), leaf_values(leaf).begin());
      },
      layer);
  const Matrix<T> x = golden.matrix<T>("aggregator.x"), z = golden.matrix<T>("aggregator.z"), g = golden.matrix<T>("sphere.g");
  const auto keep = golden.values<std::uint8_t>("aggregator.keep");
  const auto t = golden.values<std::int64_t>("sphere.t");
  Matrix<T> y(7, 6), dx(7, 6, T(0)), dz(21, 6, T(0));
  typename InterestAggregator<T>::Saved saved;
  auto gradient = make_gradient(layer);
  Workspace ws;
  layer.forward(x, z, keep, t, y, saved, {}, ws);
  for (int twice = 0; twice < 2; ++twice) layer.backward(g, saved, dx, dz, gradient, ws);
  const auto check = [&](const std::string& name, VectorView<const T> got, double times) {
    const auto want = golden.values<double>("aggregator." + name);
    double most = 0;
    for (Index i = 0; i < got.size(); ++i)
      most = std::max(most, std::abs(static_cast<double>(got[i]) / times - want[static_cast<std::size_t>(i)]));
    INFO(name);
    CHECK(most <= tolerance);
  };
  check("y", leaf_values(std::as_const(y)), 1);
  check("dx", leaf_values(std::as_const(dx)), 2);
  check("dz", leaf_values(std::as_const(dz)), 2);
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (!leaf_values(leaf).empty()) check("d." + path.str(), leaf_values(leaf), 2);
      },
      std::as_const(gradient));

  CHECK(error_of([&] { layer.backward(g, saved, dx, dz.view().middle_rows(0, 18), gradient, ws); }) ==
        "InterestAggregator::backward: dinterests: expected shape [21, 6], got [18, 6]");
  // The serving form, step by step, own and null interests.
  const std::vector<std::int32_t> steps{12, 7, 1};
  const FrozenInterestAggregator<T> frozen(layer, steps);
  Matrix<T> keys(21, 6), values(21, 6), served(7, 6);
  frozen.prepare(z, keys, values, ws);
  for (Index i = 0; i < 3; ++i) {
    const std::vector<std::int32_t> now{steps[static_cast<std::size_t>(i)]};
    const std::vector<std::int32_t> all(7, now[0]);
    layer.forward(x, z, keep, all, y, saved, {}, ws);
    std::vector<Index> users;
    for (Index b = 0; b < 7; ++b) users.push_back(keep[static_cast<std::size_t>(b)] != 0 ? b : -1);
    frozen.forward(x, i, keys, values, users, served, ws);
    CHECK(max_difference(served.view(), y.view()) < (std::is_same_v<T, float> ? 5e-6 : 1e-13));
    if constexpr (std::is_same_v<T, float>) {
      const FrozenInterestAggregator<float, BFloat16> bf(layer, steps);
      bf.forward(x, i, keys, values, users, served, ws);
      CHECK(max_difference(served.view(), y.view()) < 0.1);
    }
  }
}

TEST_CASE("DimeRec serves what the chain of its parts gives, for any batch and threads", "[models][dimerec]") {
  for (const auto space : {DiffusionSpace::sphere, DiffusionSpace::euclidean}) {
    for (const auto extraction :
         {GuidanceExtraction::self_attentive, GuidanceExtraction::dynamic_routing, GuidanceExtraction::last_items}) {
      Random random = random_stream(74);
      const DimeRec<float> model(small(extraction, space), random);
      const Examples x;
      Workspace ws;
      const DimeRecServing serving{
          .steps = 4, .samples = 3, .eta = space == DiffusionSpace::sphere ? 0.3 : 0, .guidance = 0.5, .seed = 9};
      const FrozenDimeRec<float> frozen = freeze(model, serving);
      Matrix<float> out(12, 6), one(3, 6);
      frozen.generate(x.ids, x.offsets, x.rows, out, ws);
      for (Index b = 0; b < 4; ++b) {
        const Index first = x.offsets[static_cast<std::size_t>(b)], count = x.offsets[static_cast<std::size_t>(b) + 1] - first;
        const std::vector<std::int64_t> offsets{0, count};
        frozen.generate(IndexView(x.ids.data() + first, count), offsets, IndexView(x.rows).segment(b, 1), one, ws);
        CHECK(max_difference(one.view(), out.view().middle_rows(3 * b, 3)) == 0);
      }
      Threads threads{3};
      Workspace with(make_executor(threads, 3));
      Matrix<float> again(12, 6);
      frozen.generate(x.ids, x.offsets, x.rows, again, with);
      CHECK(max_difference(again.view(), out.view()) == 0);
      CHECK(count_allocations([&] { frozen.generate(x.ids, x.offsets, x.rows, again, ws); }) == 0);

      // By hand: unguided, deterministic, one sample.
      const FrozenDimeRec<float> plain = freeze(model, {.steps = 4, .seed = 9});
      Matrix<float> z(12, 6), p(4, 6), state(4, 6), got(4, 6);
      plain.generate(x.ids, x.offsets, x.rows, got, ws);
      model.interests(x.ids, x.offsets, z, ws);
      sphere_start<float>({.seed = 9}, x.rows, state);
      InterestAggregator<float>::Saved saved;
      const Index times[] = {8, 6, 4, 2, 0};
      for (int i = 0; i < 4; ++i) {
        const std::vector<std::int32_t> t(4, static_cast<std::int32_t>(times[i]));
        model.aggregator.forward(state, z, {}, t, p, saved, {}, ws);
        const Index from = times[i], to = times[i + 1];
        const auto& s = model.schedule;
        if (space == DiffusionSpace::sphere) {
          const std::vector<std::int32_t> there{static_cast<std::int32_t>(to)};
          sphere_q_sample<float>(s, p, there, state, state, ws);
        } else {
          const auto k = static_cast<float>(s.sigma[to] / s.sigma[from]);
          const auto c = static_cast<float>(s.sqrt_alpha_bar[to]) - k * static_cast<float>(s.sqrt_alpha_bar[from]);
          for (Index b = 0; b < 4; ++b)
            for (Index d = 0; d < 6; ++d) state(b, d) = k * state(b, d) + c * p(b, d);
        }
      }
      CHECK(max_difference(got.view(), state.view()) < 2e-5);

      // Lists: none seen, the best first, no item twice.
      const std::vector<std::int64_t> seen_offsets{0, 2, 2, 3, 3};
      const std::vector<std::int32_t> seen{4, 5, 1};
      Matrix<std::int32_t> list(4, 10);
      Matrix<float> scores(4, 10);
      frozen.recommend(x.ids, x.offsets, x.rows, {.seen = seen, .seen_offsets = seen_offsets}, list, scores, ws);
      const Index expected[] = {8, 10, 9, 10};
      for (Index b = 0; b < 4; ++b) {
        std::vector<int> found(10);
        for (Index i = 0; i < 10; ++i) {
          CHECK((list(b, i) >= 0) == (i < expected[b]));
          if (list(b, i) >= 0) ++found[static_cast<std::size_t>(list(b, i))];
          if (i > 0) CHECK(scores(b, i) <= scores(b, i - 1));
        }
        CHECK(*std::max_element(found.begin(), found.end()) == 1);
        CHECK((b != 0 || (found[4] == 0 && found[5] == 0)));
      }
      // Formats of a service: the list hardly moves.
      const FrozenDimeRec<float, BFloat16> half(model, serving, {.copy = ItemCopy::int8});
      half.generate(x.ids, x.offsets, x.rows, again, ws);
      CHECK(max_difference(again.view(), out.view()) < 0.5);

      // Into rows with gaps between them.
      Padded<float> wide(12, 6), wide_z(12, 6), wide_scores(4, 10);
      Padded<std::int32_t> wide_list(4, 10);
      frozen.generate(x.ids, x.offsets, x.rows, wide, ws);
      CHECK(max_difference(wide.view(), out.view()) == 0);
      model.interests(x.ids, x.offsets, wide_z, ws);
      CHECK(max_difference(wide_z.view(), z.view()) == 0);
      frozen.interests(x.ids, x.offsets, z, ws);
      frozen.interests(x.ids, x.offsets, wide_z, ws);
      CHECK(max_difference(wide_z.view(), z.view()) == 0);
      frozen.recommend(x.ids, x.offsets, x.rows, {.seen = seen, .seen_offsets = seen_offsets}, wide_list, wide_scores, ws);
      CHECK(max_difference(wide_list.view(), list.view()) == 0);
      CHECK(max_difference(wide_scores.view(), scores.view()) == 0);
      CHECK((wide.intact() && wide_z.intact() && wide_scores.intact() && wide_list.intact()));
    }
  }
}

TEST_CASE("a NaN in a history shows in DimeRec's loss, whatever it is made of", "[models][dimerec]") {
  Random random = random_stream(76);
  DimeRecOptions o = small(GuidanceExtraction::self_attentive);
  o.softmax_weight = o.reconstruction_weight = 0;  // the interests alone
  DimeRec<double> model(o, random);
  model.items.weight.values(3, 2) = std::numeric_limits<double>::quiet_NaN();  // in a history, neither target nor negative
  auto gradient = make_gradient(model);
  DimeRec<double>::Saved saved;
  Workspace ws;
  const Examples x;
  CHECK(std::isnan(model.value_and_grad(x.batch(), {}, gradient, saved, {}, ws).total));
}

TEST_CASE("DimeRec's errors", "[models][dimerec]") {
  Random random = random_stream(75);
  const auto made = [&](auto&& change) {
    DimeRecOptions o = small(GuidanceExtraction::self_attentive);
    change(o);
    return error_of([&] { DimeRec<float>(o, random); });
  };
  CHECK(made([](auto& o) { o.items = 0; }).find("items") != std::string::npos);
  CHECK(made([](auto& o) { o.width = 1; }).find("width") != std::string::npos);
  CHECK(made([](auto& o) { o.temperature = 0; }).find("temperature") != std::string::npos);
  CHECK(made([](auto& o) { o.interests = 0; }).find("interests") != std::string::npos);
  CHECK(made([](auto& o) { o.softmax_weight = -1; }).find("weights") != std::string::npos);
  const DimeRec<float> model(small(GuidanceExtraction::self_attentive), random);
  auto gradient = make_gradient(model);
  DimeRec<float>::Saved saved;
  Workspace ws;
  Examples x;
  const auto trained = [&](auto&& change) {
    Examples y = x;
    change(y);
    return error_of([&] { model.value_and_grad(y.batch(), {}, gradient, saved, {}, ws); });
  };
  CHECK(trained([](auto& y) { y.ids[2] = 10; }).find("ids: expected indices from 0 to below 10") != std::string::npos);
  CHECK(trained([](auto& y) { y.targets.pop_back(); }).find("targets") != std::string::npos);
  CHECK(trained([](auto& y) { y.negatives[0] = -1; }).find("negatives") != std::string::npos);
  CHECK(trained([](auto& y) { y.rows.pop_back(); }).find("ids") != std::string::npos);
  CHECK(trained([](auto& y) { y.offsets = {0, 0, 0, 1, 10}; }).find("at most max_length") != std::string::npos);
  CHECK(gradient.items.weight.rows.empty());
  CHECK(error_of([&] { freeze(model, {.steps = 0}); }).find("steps") != std::string::npos);
  CHECK(error_of([&] { freeze(model, {.samples = 0}); }).find("samples") != std::string::npos);
  CHECK(error_of([&] { freeze(model, {.eta = 2}); }).find("eta") != std::string::npos);
  DimeRec<float> flat = model;
  flat.options.space = DiffusionSpace::euclidean;
  CHECK(error_of([&] { freeze(flat, {.eta = 0.5}); }).find("on the sphere") != std::string::npos);
}
