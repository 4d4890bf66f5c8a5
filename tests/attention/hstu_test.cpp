#include <recops/attention/hstu.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
Hstu<T> golden_layer_of(const Golden& golden, const std::string& name) {
  Random random(1);
  Hstu<T> layer(6,
                {.heads = 2,
                 .key_width = 3,
                 .value_width = 4,
                 .max_length = 12,
                 .time_buckets = name == "plain" ? 0 : 30,
                 .scale = name == "time" ? 1 / std::sqrt(3.0) : 1,
                 .bias = true,
                 .affine = name != "all",
                 .group_norm = name == "all",
                 .concat = name == "all"},
                random);
  if (name == "all") {  // PyTorch's group norm over heads shares no weights; ours takes them all the same
    layer.core.input_norm = LayerNorm<T>(6, {.epsilon = 1e-6});
    layer.core.output_norm = LayerNorm<T>(8, {.epsilon = 1e-6, .groups = 2});
  }
  set_parameters<T>(golden, name + ".", layer);
  return layer;
}

/// <y, g> of a training forward.
template <class L>
double loss_of(const L& layer, JaggedView<const double> x, const HstuBatch& batch, const Matrix<double>& g, const Step& step,
               Workspace& ws) {
  typename L::Saved saved;
  Matrix<double> y(g.rows(), g.cols());
  layer.forward(x, batch, y, saved, step, ws);
  double sum = 0;
  for (Index i = 0; i < y.rows() * y.cols(); ++i) sum += y.data()[i] * g.data()[i];
  return sum;
}

}  // namespace

TEMPLATE_TEST_CASE("hstu layers against PyTorch", "[attention][hstu][golden]", float, double) {
  using T = TestType;
  const Golden golden("hstu");
  const double tolerance = std::is_same_v<T, float> ? 3e-5 : 1e-11;
  const Matrix<T> x = golden.matrix<T>("x"), dy = golden.matrix<T>("dy");
  const auto offsets = golden.values<std::int64_t>("offsets"), times = golden.values<std::int64_t>("times"),
             targets = golden.values<std::int64_t>("targets");
  const JaggedView<const T> rows(x, offsets);
  Workspace ws;
  for (const std::string name : {"plain", "time", "all", "targets"}) {
    CAPTURE(name);
    const Hstu<T> layer = golden_layer_of<T>(golden, name);
    HstuBatch batch;
    if (name != "plain") batch.times = times;
    if (name == "targets") batch.targets = targets;
    auto gradient = make_gradient(layer);
    typename Hstu<T>::Saved saved;
    Padded<T> y(x.rows(), 6), dx(x.rows(), 6), served(x.rows(), 6);
    layer.forward(rows, batch, y, saved, {}, ws);
    for (int twice = 0; twice < 2; ++twice) layer.backward(rows, batch, dy.view(), saved, dx, gradient, ws);
    CHECK(max_difference(y.view(), golden.matrix<double>(name + ".y").view()) < tolerance);
    for (Index i = 0; i < x.rows(); ++i)
      for (Index j = 0; j < 6; ++j) dx(i, j) /= 2;
    CHECK(max_difference(dx.view(), golden.matrix<double>(name + ".dx").view()) < 20 * tolerance);
    visit(
        [&](const FieldPath& path, const auto& leaf) {
          if (leaf_values(leaf).empty()) return;
          const auto want = golden.values<double>(name + ".d." + path.str());
          double worst = 0;
          for (std::size_t i = 0; i < want.size(); ++i)
            worst =
                std::max(worst, std::abs(static_cast<double>(leaf.data()[i]) / 2 - want[i]) / std::max(1.0, std::abs(want[i])));
          CAPTURE(path.str());
          CHECK(worst < 20 * tolerance);
        },
        gradient);
    layer.forward(rows, batch, served, ws);
    CHECK(max_difference(served.view(), y.view()) < tolerance);
    freeze(layer).forward(rows, batch, served, ws);
    CHECK(max_difference(served.view(), y.view()) < tolerance);
    CHECK((y.intact() && dx.intact() && served.intact()));
    CHECK(count_allocations([&] {
            layer.forward(rows, batch, y, saved, {}, ws);
            layer.backward(rows, batch, dy.view(), saved, dx, gradient, ws);
            layer.forward(rows, batch, served, ws);
          }) == 0);
  }
}

TEST_CASE("hstu gradients are central differences", "[attention][hstu]") {
  Random random = random_stream(64);
  const std::vector<std::int64_t> offsets{0, 4, 4, 5, 11}, targets{1, 0, 0, 3};
  std::vector<std::int64_t> times;
  for (Index i = 0; i < 11; ++i) times.push_back(i * i * 40);
  Matrix<double> x = random_matrix<double>(11, 4, random);
  const Matrix<double> g = random_matrix<double>(11, 4, random);
  Workspace ws;
  for (int kind = 0; kind < 3; ++kind) {
    Hstu<double> layer(4,
                       {.heads = 2,
                        .max_length = 8,
                        .time_buckets = kind == 0 ? 0 : 20,
                        .causal = kind != 0,
                        .window = kind == 1 ? 3 : 0,
                        .bias = true,
                        .affine = true,
                        .group_norm = kind == 1,
                        .concat = kind == 2,
                        .dropout = kind == 2 ? 0.3 : 0},
                       random);
    visit(
        [&](const FieldPath&, auto& leaf) {
          for (double& w : leaf_values(leaf)) w += 0.4 * random.normal();
        },
        layer);
    HstuBatch batch;
    if (kind > 0) batch = {.times = times, .targets = targets};
    auto gradient = make_gradient(layer);
    Hstu<double>::Saved saved;
    Matrix<double> y(11, 4), dx(11, 4, 0.0);
    const JaggedView<const double> rows(x, offsets);
    const Step step{7, 1, 0};
    layer.forward(rows, batch, y, saved, step, ws);
    layer.backward(rows, batch, g, saved, dx, gradient, ws);
    GradientReport report;
    const auto loss = [&] { return loss_of(layer, rows, batch, g, step, ws); };
    check_gradient("x", leaf_values(x), leaf_values(dx), loss, report);
    visit([&](const FieldPath& path, auto& leaf,
              const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report); },
          layer, gradient);
    CAPTURE(kind, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 5e-6);
  }
}

TEMPLATE_TEST_CASE("hstu served piece by piece", "[attention][hstu]", float, double) {
  using T = TestType;
  Random random = random_stream(65);
  const double tolerance = std::is_same_v<T, float> ? 2e-6 : 1e-13;
  const Index length = 90, candidates = 7;
  std::vector<Hstu<T>> layers;
  for (int i = 0; i < 2; ++i)
    layers.emplace_back(
        8, HstuOptions{.heads = 2, .max_length = 100, .time_buckets = 40, .window = i == 0 ? 0 : 50, .affine = true}, random);
  const Matrix<T> x = random_matrix<T>(length + candidates, 8, random);
  std::vector<std::int64_t> times, asked;
  for (Index i = 0; i < length + candidates; ++i) times.push_back(i < length ? 1000 * i + random.below(900) : 1000 * length);
  for (Index i = 0; i < length + candidates; ++i) asked.push_back(times[static_cast<std::size_t>(std::min(i + 1, length))]);
  const std::vector<std::int64_t> target{candidates};
  Workspace ws;
  // All at once.
  Matrix<T> h = x, whole(x.rows(), 8);
  for (const auto& layer : layers) {
    layer.forward(h.view(), {.times = times, .query_times = asked, .targets = target}, whole, ws);
    h = whole;
  }
  // In pieces, with the candidates looked at before the last ones too.
  const FrozenHstu<T> frozen = freeze(layers[1]);
  std::vector<HstuState<T>> states{layers[0].make_state(), layers[1].make_state()};
  Matrix<T> middle(50, 8), y(50, 8);
  const auto part = [&](const std::vector<std::int64_t>& v, Index first, Index n) { return IndexView(v).segment(first, n); };
  const auto piece = [&](Index first, Index n, bool score) {
    const MatrixView<const T> rows = x.view().middle_rows(first, n);
    const MatrixView<T> m = middle.view().middle_rows(0, n), out = y.view().middle_rows(0, n);
    if (score) {
      layers[0].score(rows, part(times, first, n), part(asked, first, n), states[0], m, ws);
      frozen.score(m, part(times, first, n), part(asked, first, n), states[1], out, ws);
    } else {
      layers[0].extend(rows, part(times, first, n), part(asked, first, n), states[0], m, ws);
      frozen.extend(m, part(times, first, n), part(asked, first, n), states[1], out, ws);
    }
    return MatrixView<const T>(out);
  };
  Index first = 0;
  for (const Index n : {0, 1, 40, 1, 2, 5, 1, 1, 38, 1}) {
    const auto got = piece(first, n, false);
    CAPTURE(first, n);
    CHECK(max_difference(got, whole.view().middle_rows(first, n)) < tolerance);
    first += n;
    if (n == 40) piece(length, candidates, true);
  }
  REQUIRE(first == length);
  CHECK(max_difference(piece(length, candidates, true), whole.view().middle_rows(length, candidates)) < tolerance);
  CHECK(max_difference(piece(length + 2, 1, true), whole.view().middle_rows(length + 2, 1)) < tolerance);  // alone
  CHECK(states[0].length == length);
  CHECK(count_allocations([&] { piece(length, candidates, true); }) == 0);
  CHECK(error_of([&] {
          layers[0].extend(x.view().middle_rows(0, 11), part(times, 0, 11), {}, states[0], y.view().middle_rows(0, 11), ws);
        }).find("at most max_length rows") != std::string::npos);
  CHECK(error_of([&] {
          layers[0].extend(x.view().middle_rows(0, 1), {}, {}, states[0], y.view().middle_rows(0, 1), ws);
        }).find("times: expected size 1") != std::string::npos);
}

TEST_CASE("hstu: one behaviour more at the end of a long history", "[attention][hstu]") {
  Random random = random_stream(68);
  const Index length = 8192;
  const Hstu<float> layer(8, {.max_length = length, .time_buckets = 129}, random);
  const Matrix<float> x = random_matrix<float>(length, 8, random);
  std::vector<std::int64_t> times;
  for (Index i = 0; i < length; ++i) times.push_back(1000 * i + random.below(900));
  Workspace ws;
  Matrix<float> whole(length, 8), y(length, 8);
  layer.forward(x.view(), {.times = times}, whole, ws);
  HstuState<float> state = layer.make_state();
  const IndexView all(times);
  layer.extend(x.view().middle_rows(0, length - 1), all.segment(0, length - 1), {}, state, y.view().middle_rows(0, length - 1),
               ws);
  layer.extend(x.view().middle_rows(length - 1, 1), all.segment(length - 1, 1), {}, state, y.view().middle_rows(length - 1, 1),
               ws);
  CHECK(max_difference(y.view().middle_rows(length - 1, 1), whole.view().middle_rows(length - 1, 1)) < 2e-6);
}

TEST_CASE("a candidate's score does not depend on the others' times", "[attention][hstu]") {
  Random random = random_stream(67);
  Workspace ws;
  Hstu<float> layer(4, {.heads = 2, .max_length = 8, .time_buckets = 40}, random);
  for (float& w : layer.core.ts_w) w = static_cast<float>(random.normal());
  HstuState<float> state = layer.make_state();
  const Matrix<float> x = random_matrix<float>(5, 4, random);
  Matrix<float> y(3, 4), together(2, 4), alone(1, 4);
  const std::vector<std::int64_t> times{10, 20, 30, 40, 900000};
  const auto rows = [&](Index first, Index n) { return x.view().middle_rows(first, n); };
  layer.extend(rows(0, 3), IndexView(times).segment(0, 3), {}, state, y, ws);
  layer.score(rows(3, 2), IndexView(times).segment(3, 2), {}, state, together, ws);
  layer.score(rows(3, 1), IndexView(times).segment(3, 1), {}, state, alone, ws);
  CHECK(max_difference(alone.view(), together.view().middle_rows(0, 1)) < 1e-6);
}

TEST_CASE("hstu layer errors", "[attention][hstu]") {
  Random random = random_stream(66);
  Workspace ws;
  const auto made = [&](HstuOptions o) { return error_of([&] { Hstu<float>(4, o, random); }); };
  CHECK(made({.heads = 3, .max_length = 4}).find("heads") != std::string::npos);
  CHECK(made({.heads = 2}).find("max_length >= 1") != std::string::npos);
  CHECK(made({.heads = 2, .max_length = 4, .time_buckets = 200}).find("0 to 148") != std::string::npos);
  CHECK(made({.heads = 2, .max_length = 4, .dropout = 1}).find("dropout") != std::string::npos);
  Hstu<float> layer(4, {.heads = 2, .max_length = 4, .time_buckets = 9}, random);
  Matrix<float> x(5, 4, 1.0f), y(5, 4, 7.0f);
  const auto forward = [&](Index n, const HstuBatch& batch) {
    return error_of([&] { layer.forward(x.view().middle_rows(0, n), batch, y.view().middle_rows(0, n), ws); });
  };
  const std::vector<std::int64_t> times{1, 2, 3, 4, 5};
  CHECK(forward(5, {.times = times}).find("at most max_length") != std::string::npos);
  CHECK(forward(4, {}).find("times: expected size 4") != std::string::npos);
  HstuState<float> state = layer.make_state();
  state.length = -1;
  CHECK(error_of([&] {
          layer.extend(x.view().middle_rows(0, 1), IndexView(times).segment(0, 1), {}, state, y.view().middle_rows(0, 1), ws);
        }).find("state.length: expected 0 behaviours or more, got -1") != std::string::npos);
  layer.core.pos_w.resize(3);
  CHECK(forward(2, {.times = IndexView(times).segment(0, 2)}).find("position: expected size 7") != std::string::npos);
  CHECK(*std::min_element(y.data(), y.data() + 20) == 7.0f);
}
