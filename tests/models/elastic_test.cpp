// Oracles: PyTorch (golden/elastic.py); central differences; causality; SASRec's own loss; a chain whose next item is known.
#include <recops/models/elastic.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
NextItemModel<T, DispatcherStack<T>> model_of(const DispatcherStackOptions& o, Index items, Index longest, Random& random) {
  return {{.items = items, .width = o.width, .max_length = longest, .dropout = o.dropout, .last_only = !o.causal},
          DispatcherStack<T>(o, random),
          random};
}

}  // namespace

TEMPLATE_TEST_CASE("ELASTIC's body against PyTorch", "[models][elastic][golden]", float, double) {
  using T = TestType;
  const Golden golden("elastic");
  const auto offsets = golden.values<std::int64_t>("offsets");
  Random random = random_stream(600);
  for (const bool causal : {true, false}) {
    for (const Index memory : {0, 5}) {
      DispatcherStack<T> stack(
          {.width = 6, .blocks = 2, .heads = 2, .experts = 4, .dropout = 0, .causal = causal, .memory = memory, .memory_reads = 4},
          random);
      const std::string name = std::string("stack.") + (causal ? "causal." : "ahead.") + std::to_string(memory);
      INFO(name);
      CHECK(distance_to_golden<T>(golden, name, stack, offsets) < (std::is_same_v<T, float> ? 2e-5 : 1e-11));
    }
  }
}

TEST_CASE("a broken sequence stays alone in ELASTIC's body", "[models][elastic]") {
  Random random = random_stream(603);
  Workspace ws;
  const std::vector<std::int64_t> offsets{0, 3, 9, 10};
  const Matrix<float> x = random_matrix<float>(10, 8, random), dy = random_matrix<float>(10, 8, random);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Matrix<float> broken = x;
    broken(5, 2) = bad;
    for (const bool causal : {true, false}) {
      for (const Index memory : {0, 5}) {
        CAPTURE(bad, causal, memory);
        const DispatcherStack<float> stack({.width = 8, .experts = 4, .dropout = 0, .causal = causal, .memory = memory, .memory_reads = 4},
                                           random);
        const auto run = [&](const Matrix<float>& in, Matrix<float>& y, Matrix<float>& dx) {
          DispatcherStack<float>::Saved saved;
          DispatcherStack<float> gradient = make_gradient(stack);
          const JaggedView<const float> sequences(in, offsets);
          stack.forward(sequences, y, saved, {}, ws);
          stack.backward(sequences, dy, saved, dx, gradient, ws);
          Matrix<float> served(10, 8);
          stack.forward(sequences, served, ws);
          for (const Index i : {Index{0}, Index{2}, Index{9}})
            CHECK(std::equal(served.view().row(i), served.view().row(i) + 8, y.view().row(i)));
        };
        Matrix<float> y(10, 8), dx(10, 8, 0.0f), y2(10, 8), dx2(10, 8, 0.0f);
        run(x, y, dx);
        run(broken, y2, dx2);
        CHECK(std::isnan(y2(5, 0)));
        for (const Index i : {Index{0}, Index{1}, Index{2}, Index{9}}) {
          for (Index d = 0; d < 8; ++d) {
            CHECK(y2(i, d) == y(i, d));
            CHECK(dx2(i, d) == dx(i, d));
          }
        }
        if (causal) CHECK(y2(4, 0) == y(4, 0));
      }
    }
  }
}

TEST_CASE("the gradient of ELASTIC's loss, items, experts and memory included", "[models][elastic]") {
  Random random = random_stream(601);
  Workspace ws;
  for (const bool causal : {true, false}) {
    for (const Index memory : {0, 5}) {
      if (sanitized && memory == 0) continue;
      auto model = model_of<double>({.width = 6,
                                     .blocks = causal ? 1 : 2,
                                     .heads = 2,
                                     .experts = 4,
                                     .dropout = 0.3,
                                     .causal = causal,
                                     .memory = memory,
                                     .memory_reads = 4},
                                    11, 7, random);
      using Model = decltype(model);
      const std::vector<std::int64_t> ids{1, 5, 3, 3, 9, 10, 0, 5, 2, 2}, offsets{0, 4, 5, 5, 10}, negatives{5, 7, 3, 8};
      const std::vector<double> log_q{-0.1, -2, 0, -1};
      Model::Saved saved;
      const Step step{.seed = 3, .number = 4};
      Model gradient = zeros_like(model);
      const auto loss = [&] {
        Model unused = make_gradient(model);
        return model.value_and_grad(ids, offsets, negatives, log_q, unused, saved, step, ws);
      };
      const double value = model.value_and_grad(ids, offsets, negatives, log_q, gradient, saved, step, ws);
      CHECK(std::abs(value - loss()) < 1e-13);
      GradientReport report;
      visit(
          [&](const FieldPath& path, auto& leaf, const auto& g) {
            if (path.kind == FieldKind::parameter)
              check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report,
                             {.step = 1e-5, .most = sanitized ? 3 : 24});
          },
          model, gradient);
      CAPTURE(causal, memory, report.where, report.numeric, report.analytic);
      CHECK(report.worst < 1e-5);
    }
  }
}

TEST_CASE("states of a causal ELASTIC see the past only", "[models][elastic]") {
  Random random = random_stream(602);
  Workspace ws;
  const auto model = model_of<float>({.width = 16, .blocks = 2, .heads = 2, .memory = 8}, 30, 12, random);
  const std::vector<std::int32_t> ids{4, 7, 7, 29, 0, 3, 8}, changed{4, 7, 7, 12, 0, 3, 8}, offsets{0, 4, 4, 7};
  Padded<float> h(7, 16), g(7, 16), users(3, 16);
  model.forward(ids, offsets, h, ws);
  model.forward(changed, offsets, g, ws);
  CHECK(max_difference(h.view().middle_rows(0, 3), g.view().middle_rows(0, 3)) < 1e-5);
  CHECK(max_difference(h.view().middle_rows(3, 1), g.view().middle_rows(3, 1)) > 1e-3);
  CHECK(max_difference(h.view().middle_rows(4, 3), g.view().middle_rows(4, 3)) < 1e-5);
  model.encode(ids, offsets, users, ws);
  CHECK(max_difference(users.view().middle_rows(0, 1), h.view().middle_rows(3, 1)) == 0);
  CHECK(users(1, 0) == 0);
  CHECK((h.intact() && users.intact()));
  Matrix<float> wrong(7, 15);
  CHECK(error_of([&] { model.forward(ids, offsets, wrong, ws); }).find("h: expected shape [7, 16]") != std::string::npos);
  // Backward, too, looks at everything before it adds.
  auto gradient = make_gradient(model);
  typename std::remove_cvref_t<decltype(model)>::Saved saved;
  Matrix<float> state(7, 16);
  model.forward(ids, offsets, state, saved, {}, ws);
  const std::vector<std::int32_t> none{4, 7, 7, 30, 0, 3, 8};
  CHECK(error_of([&] { model.backward(none, offsets, state, saved, gradient, ws); }).find("ids") != std::string::npos);
  for (const float v : gradient.body.norm.weight) CHECK(v == 0);
  check_refused({{"DispatcherStack: width", [](Random& r) { DispatcherStack<float>({.width = -4}, r); }},
                 {"DispatcherStack: hidden", [](Random& r) { DispatcherStack<float>({.width = 4, .hidden = -1}, r); }}});
}

TEST_CASE("ELASTIC learns a chain, and the second step allocates nothing", "[models][elastic]") {
  Workspace ws;
  constexpr Index items = 20, users = 32;
  for (const bool causal : {true, false}) {
    Random random = random_stream(603);
    auto model =
        model_of<float>({.width = 16, .blocks = 1, .experts = 4, .dropout = 0, .causal = causal, .memory = 4, .memory_reads = 4},
                        items, 6, random);
    auto gradient = make_gradient(model);
    Adam adam(model, {.learning_rate = 0.02});
    decltype(model)::Saved saved;
    std::vector<std::int64_t> all, ids(users * 6), offsets{0};
    for (Index v = 0; v < items; ++v) all.push_back(v);
    for (std::int64_t b = 1; b <= users; ++b) offsets.push_back(6 * b);
    double first = 0, last = 0;
    for (std::uint64_t n = 0; n < (sanitized ? 12u : 120u); ++n) {
      for (std::size_t b = 0; b < users; ++b) {
        ids[b * 6] = random.below(items);
        for (std::size_t i = 1; i < 6; ++i) ids[b * 6 + i] = (7 * ids[b * 6 + i - 1] + 3) % items;
      }
      zero_gradient(gradient);
      last = model.value_and_grad(ids, offsets, all, {}, gradient, saved, {.seed = 1, .number = n}, ws);
      if (n == 0) first = last;
      adam.step(model, gradient);
    }
    CAPTURE(causal, first, last);
    CHECK(last < (sanitized ? 1.0 : 0.3) * first);
    zero_gradient(gradient);
    model.value_and_grad(ids, offsets, all, {}, gradient, saved, {.seed = 1, .number = 1}, ws);
    zero_gradient(gradient);
    CHECK(count_allocations(
              [&] { model.value_and_grad(ids, offsets, all, {}, gradient, saved, {.seed = 1, .number = 1}, ws); }) == 0);
  }
}
