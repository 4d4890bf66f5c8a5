// Oracles: PyTorch (tests/golden/sasrec.py); central differences; causality; the serving form against the training form; a chain
// whose next item is known.
#include <recops/models/sasrec.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("SASRec is PyTorch's: states, loss and every gradient", "[models][sasrec][golden]", float, double) {
  using T = TestType;
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const Golden g("sasrec");
  Random random(1);
  Workspace ws;
  SasRec<T> model({.items = 13, .width = 8, .max_length = 6, .blocks = 2, .heads = 2, .hidden = 12, .dropout = 0}, random);
  set_parameters<T>(g, "", model);
  const auto ids = g.values<std::int64_t>("ids"), offsets = g.values<std::int64_t>("offsets"),
             negatives = g.values<std::int64_t>("negatives");
  const auto log_q = g.values<T>("log_q");
  Padded<T> h(static_cast<Index>(ids.size()), 8);
  model.forward(ids, offsets, h, ws);
  CHECK(max_difference(h.view(), g.matrix<double>("h").view()) < bound);
  CHECK(h.intact());
  typename SasRec<T>::Saved saved;
  SasRec<T> gradient = zeros_like(model);
  for (int twice = 0; twice < 2; ++twice)
    CHECK(std::abs(model.value_and_grad(ids, offsets, negatives, log_q, gradient, saved, Step{}, ws) - g.scalar("loss")) < bound);
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (path.kind != FieldKind::parameter || leaf_values(leaf).empty()) return;
        const auto expected = g.values<double>("d." + path.str());
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

TEST_CASE("a NaN stays with the users who have the item", "[models][sasrec]") {
  Random random = random_stream(505);
  Workspace ws;
  SasRec<float> model({.items = 9, .width = 8, .max_length = 4, .blocks = 1, .heads = 2}, random);
  const std::vector<std::int32_t> ids{1, 2, 3, 4, 5, 6}, offsets{0, 2, 4, 6};
  Matrix<float> clean(3, 8), users(3, 8), served(3, 8);
  model.encode(ids, offsets, clean, ws);
  model.items.weight.values(4, 5) = std::numeric_limits<float>::quiet_NaN();
  model.encode(ids, offsets, users, ws);
  freeze(model).encode(ids, offsets, served, ws);
  for (const Index b : {0, 2}) {
    CHECK(max_difference(users.view().middle_rows(b, 1), clean.view().middle_rows(b, 1)) == 0);
    CHECK(max_difference(served.view().middle_rows(b, 1), clean.view().middle_rows(b, 1)) < 1e-5);
  }
  CHECK((std::isnan(users(1, 0)) && std::isnan(served(1, 0))));
}

TEST_CASE("the gradient of SASRec's loss, items included", "[models][sasrec]") {
  Random random = random_stream(501);
  Workspace ws;
  for (const Index blocks : {0, 1, 2}) {
    SasRec<double> model({.items = 11, .width = 6, .max_length = 7, .blocks = blocks, .heads = 2, .dropout = 0.3}, random);
    const std::vector<std::int64_t> ids{1, 5, 3, 3, 9, 10, 0, 5, 2, 2}, offsets{0, 4, 5, 5, 10}, negatives{5, 7, 3, 8};
    const std::vector<double> log_q{-0.1, -2, 0, -1};
    SasRec<double>::Saved saved;
    const Step step{.seed = 3, .number = 4};
    SasRec<double> gradient = zeros_like(model);
    const auto loss = [&] {
      SasRec<double> unused = make_gradient(model);
      return model.value_and_grad(ids, offsets, negatives, log_q, unused, saved, step, ws);
    };
    const double value = model.value_and_grad(ids, offsets, negatives, log_q, gradient, saved, step, ws);
    CHECK(std::abs(value - loss()) < 1e-13);
    GradientReport report;
    visit(
        [&](const FieldPath& path, auto& leaf, const auto& g) {
          if (path.kind == FieldKind::parameter)
            check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.most = 40});
        },
        model, gradient);
    CAPTURE(blocks, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
  }
}

TEMPLATE_TEST_CASE("states see the past only; the serving form gives the same users", "[models][sasrec]", float, double) {
  using T = TestType;
  Random random = random_stream(502);
  Workspace ws;
  const SasRec<T> model({.items = 30, .width = 16, .max_length = 12, .blocks = 2, .heads = 2}, random);
  const std::vector<std::int32_t> ids{4, 7, 7, 29, 0, 3, 8}, changed{4, 7, 7, 12, 0, 3, 8}, offsets{0, 4, 4, 7};
  Padded<T> h(7, 16), g(7, 16), users(3, 16), frozen(3, 16), half(3, 16);
  model.forward(ids, offsets, h, ws);
  model.forward(changed, offsets, g, ws);
  CHECK(max_difference(h.view().middle_rows(0, 3), g.view().middle_rows(0, 3)) < 1e-5);
  CHECK(max_difference(h.view().middle_rows(3, 1), g.view().middle_rows(3, 1)) > 1e-3);
  CHECK(max_difference(h.view().middle_rows(4, 3), g.view().middle_rows(4, 3)) < 1e-5);
  model.encode(ids, offsets, users, ws);
  freeze(model).encode(ids, offsets, frozen, ws);
  CHECK(max_difference(users.view(), frozen.view()) < 1e-4);
  CHECK(max_difference(users.view().middle_rows(0, 1), h.view().middle_rows(3, 1)) < 1e-5);
  CHECK(users(1, 0) == 0);
  if constexpr (std::is_same_v<T, float>) {
    freeze(model, Weights<BFloat16>()).encode(ids, offsets, half, ws);
    CHECK(max_difference(users.view(), half.view()) < 0.1);
    CHECK(max_difference(users.view(), half.view()) > 0);
  }
  CHECK((h.intact() && users.intact() && frozen.intact()));
}

TEST_CASE("it learns a chain, and the second step allocates nothing", "[models][sasrec]") {
  Random random = random_stream(503);
  Workspace ws;
  constexpr Index items = 20;
  SasRec<float> model({.items = items, .width = 16, .max_length = 8, .blocks = 1, .dropout = 0.1}, random),
      gradient = make_gradient(model);
  Adam adam(model, {.learning_rate = 0.01});
  SasRec<float>::Saved saved;
  std::vector<std::int64_t> all;
  for (Index v = 0; v < items; ++v) all.push_back(v);
  std::vector<std::int64_t> ids(64 * 8), offsets{0};
  for (std::int64_t b = 1; b <= 64; ++b) offsets.push_back(8 * b);
  double first = 0, last = 0;
  for (std::uint64_t n = 0; n < 60; ++n) {
    for (std::size_t b = 0; b < 64; ++b) {
      ids[b * 8] = random.below(items);
      for (std::size_t i = 1; i < 8; ++i) ids[b * 8 + i] = (ids[b * 8 + i - 1] * 3 + 7) % items;
    }
    zero_gradient(gradient);
    const AllocationCounter counter;
    last = model.value_and_grad(ids, offsets, all, {}, gradient, saved, Step{.seed = 1, .number = n}, ws);
    adam.step(model, gradient);
    if (n == 0) first = last;
    if (n == 5) CHECK(counter.count() == 0);
  }
  CHECK(first > 2);
  CHECK(last < 0.5);
  Index right = 0;
  Matrix<float> user(1, 16);
  for (std::int64_t v = 0; v < items; ++v) {
    const std::vector<std::int64_t> one{v}, bounds{0, 1};
    model.encode(one, bounds, user, ws);
    Index best = 0;
    float most = -1e30f;
    for (Index c = 0; c < items; ++c) {
      const float s = simd::dot(user.row(0), model.items.weight.values.row(c), Index{16});
      if (s > most) {
        most = s;
        best = c;
      }
    }
    right += best == (v * 3 + 7) % items;
  }
  CHECK(right >= 18);
}

TEST_CASE("errors and empty batches of SASRec", "[models][sasrec]") {
  Random random = random_stream(504);
  Workspace ws;
  SasRec<float> model({.items = 5, .width = 4, .max_length = 3}, random), gradient = make_gradient(model);
  SasRec<float>::Saved saved;
  const std::vector<std::int64_t> none, zero{0}, long_ids{1, 2, 3, 4}, four{0, 4}, one{2}, bad{5}, bounds{0, 1};
  CHECK(model.value_and_grad(none, zero, none, {}, gradient, saved, {}, ws) == 0);
  CHECK(model.value_and_grad(one, bounds, one, {}, gradient, saved, {}, ws) == 0);  // nothing to predict
  Matrix<float> users(1, 4);
  CHECK(error_of([&] { model.encode(long_ids, four, users, ws); }) ==
        "SasRec: offsets: expected sequences of at most max_length rows, 3, got 4 at position 0");
  const SasRec<float> odd({.items = 5, .width = 4, .max_length = 3, .blocks = 1}, random);  // its states lie in h from the start
  Matrix<float> h(4, 4, 7.0f);
  CHECK(error_of([&] { odd.forward(long_ids, four, h, ws); }).find("max_length") != std::string::npos);
  for (const float x : leaf_values(h)) CHECK(x == 7.0f);
  CHECK(error_of([&] { model.encode(bad, bounds, users, ws); }).find("ids") != std::string::npos);
  CHECK(error_of([&] { SasRec<float>({.items = 0}, random); }) == "SasRec: items: expected one item or more, got 0");
  CHECK(error_of([&] { SasRec<float>({.items = 9, .width = -4}, random); }) == "SasRec: width: expected a size >= 0, got -4");
  CHECK(error_of([&] { SasRec<float>({.items = 9, .width = 4, .hidden = -1}, random); }).rfind("SasRec: hidden: ", 0) == 0);
}
