// Oracles: the formulas in double, item by item; PyTorch (tests/golden/cdm.py); central differences; the training form against the
// serving one.
#include <recops/metrics/auc.hpp>
#include <recops/models/cdm.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// The logits of one request in serving mode, from the formulas.
template <class T>
std::vector<double> reference(const Cdm<T>& model, MatrixView<const T> x, VectorView<const T> r) {
  const Index n = x.rows(), d = model.width();
  double mean = 0, square = 0;
  for (const T v : r) mean += static_cast<double>(v) / static_cast<double>(n);
  for (const T v : r) square += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean) / static_cast<double>(n);
  Matrix<double> e(n, d);
  for (Index i = 0; i < n; ++i) {
    for (Index j = 0; j < d - 2; ++j) e(i, j) = static_cast<double>(x(i, j));
    e(i, d - 2) = square > 0 ? (static_cast<double>(r[i]) - mean) / std::sqrt(square) : 0;
    e(i, d - 1) = static_cast<double>(r[i]);
  }
  std::vector<Index> pool(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<Index>(i);
  std::stable_sort(pool.begin(), pool.end(), [&](Index a, Index b) { return r[a] > r[b]; });
  pool.resize(static_cast<std::size_t>(std::min(n, model.options.pool)));
  const auto project = [&](const Linear<T>& l, const double* row) {
    std::vector<double> y(static_cast<std::size_t>(l.weight.rows()));
    for (Index o = 0; o < l.weight.rows(); ++o) {
      double sum = l.bias.empty() ? 0 : static_cast<double>(l.bias[o]);
      for (Index c = 0; c < l.weight.cols(); ++c) sum += static_cast<double>(l.weight(o, c)) * row[c];
      y[static_cast<std::size_t>(o)] = sum;
    }
    return y;
  };
  std::vector<double> logits;
  for (Index i = 0; i < n; ++i) {
    const std::vector<double> q = project(model.query, e.row(i));
    std::vector<double> h(static_cast<std::size_t>(5 * d), 0.0);
    for (const double sign : {1.0, -1.0}) {
      std::vector<double> a, s;
      double total = 0;
      for (const Index j : pool) {
        const std::vector<double> k = project(model.key, e.row(j));
        double sum = 0;
        for (Index c = 0; c < d; ++c) sum += q[static_cast<std::size_t>(c)] * k[static_cast<std::size_t>(c)];
        a.push_back(j == i ? 0 : std::exp(sign * sum));
        total += a.back();
      }
      for (std::size_t j = 0; j < pool.size() && total > 0; ++j) {
        const std::vector<double> v = project(model.value, e.row(pool[j]));
        for (Index c = 0; c < d; ++c)
          h[static_cast<std::size_t>((sign > 0 ? d : 2 * d) + c)] += a[j] / total * v[static_cast<std::size_t>(c)];
      }
    }
    for (Index c = 0; c < d; ++c) {
      const auto at = [&](Index part) -> double& { return h[static_cast<std::size_t>(part * d + c)]; };
      at(0) = e(i, c);
      at(3) = at(0) * at(1);
      at(4) = at(0) * at(2);
    }
    for (const auto& layer : model.student.hidden) {
      h = project(layer.linear, h.data());
      for (double& v : h) v = std::max(v, 0.0);
    }
    logits.push_back(project(model.student.last.linear, h.data())[0]);
  }
  return logits;
}

template <class T>
struct Requests {
  std::vector<std::int64_t> offsets{0};
  Matrix<T> features;
  Vector<T> relevance, labels;
  Requests(std::vector<Index> sizes, Index d, Random& random) {
    for (const Index n : sizes) offsets.push_back(offsets.back() + n);
    features = random_matrix<T>(offsets.back(), d, random);
    for (Index i = 0; i < features.rows(); ++i) {
      const T length = std::sqrt(simd::dot(features.row(i), features.row(i), d));
      simd::scale(1 / length, features.row(i), features.row(i), d);
    }
    relevance = Vector<T>(offsets.back());
    labels = Vector<T>(offsets.back());
    for (T& v : relevance) v = static_cast<T>(random.uniform());
    for (T& v : labels) v = static_cast<T>(random.chance(0.3));
  }
  CdmInput<T> input() const { return {.features = JaggedView<const T>(features.view(), offsets), .relevance = relevance}; }
};

}  // namespace

TEMPLATE_TEST_CASE("CDM serves what its formulas say", "[models][cdm]", float, double) {
  using T = TestType;
  Random random = random_stream(7401);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  const double bound = std::is_same_v<T, float> ? 2e-4 : 1e-11;
  for (const Index pool : {1, 7, 400}) {
    const Cdm<T> model({.features = 5, .pool = pool, .hidden = {9, 6}}, random);
    const FrozenCdm<T> frozen = freeze(model);
    const Requests<T> c({70, 0, 1, 300, 2}, 5, random);
    Vector<T> plain(373), served(373), trained(373), again(373);
    model.forward(c.input(), plain, ws);
    frozen.forward(c.input(), served, ws);
    frozen.forward(c.input(), again, parallel);
    Cdm<T> still = model;
    still.options.gumbel_temperature = 0;
    typename Cdm<T>::Saved saved;
    still.forward(c.input(), trained, saved, {}, ws);
    double worst = 0;
    for (Index b = 0; b < 5; ++b) {
      const auto in = c.input();
      const Index first = in.features.begin(b), n = in.features.length(b);
      const auto expected = reference<T>(model, in.features[b], in.relevance.segment(first, n));
      Vector<T> alone(n);
      frozen.forward({.features = in.features[b], .relevance = in.relevance.segment(first, n)}, alone, ws);
      for (Index i = 0; i < n; ++i) {
        for (const Vector<T>* got : {&plain, &served, &trained})
          worst = std::max(worst, std::abs(static_cast<double>((*got)[first + i]) - expected[static_cast<std::size_t>(i)]));
        CHECK(alone[i] == served[first + i]);
        CHECK(again[first + i] == served[first + i]);
      }
    }
    CAPTURE(pool, worst);
    CHECK(worst < bound);
    const auto call = [&] { frozen.forward(c.input(), served, ws); };
    CHECK(count_allocations(call) == 0);
    if constexpr (std::is_same_v<T, float>) {
      freeze(model, Weights<BFloat16>()).forward(c.input(), again, ws);
      for (Index i = 0; i < 373; ++i) CHECK(std::abs(again[i] - served[i]) < 0.1f);
    }
  }
}

TEST_CASE("CDM against PyTorch: logits, loss and every gradient", "[models][cdm]") {
  const Golden golden("cdm");
  Random random = random_stream(7402);
  const auto options = golden.values<double>("model.options");
  Cdm<double> model(
      {.features = 6, .pool = static_cast<Index>(options[0]), .hidden = {8}, .gumbel_temperature = 0, .relaxation = options[1]},
      random);
  set_parameters<double>(golden, "model.", model);
  const Matrix<double> x = golden.matrix<double>("model.features");
  const auto r = golden.values<double>("model.relevance"), a = golden.values<double>("model.pool_logits"),
             y = golden.values<double>("model.labels"), z = golden.values<double>("model.logits"),
             da = golden.values<double>("model.dpool_logits");
  std::vector<std::int64_t> offsets{0};
  for (const auto n : golden.values<std::int64_t>("model.sizes")) offsets.push_back(offsets.back() + n);
  const CdmInput<double> in{.features = JaggedView<const double>(x.view(), offsets), .relevance = r, .pool_logits = a};
  Workspace ws;
  Cdm<double>::Saved saved;
  Cdm<double> gradient = zeros_like(model);
  Vector<double> logits(22), dlogits(22, 0), dpool(22, 1);
  Matrix<double> dx(22, 6, 1);
  model.forward(in, logits, saved, {}, ws);
  const double loss = cdm_loss<double>(logits, y, offsets, {.pairwise = options[2]}, dlogits);
  model.backward(in, dlogits, saved, dx, dpool, gradient, ws);
  CHECK(std::abs(loss - golden.scalar("model.loss")) < 1e-13);
  double worst = 0;
  for (Index i = 0; i < 22; ++i) {
    worst = std::max(worst, std::abs(logits[i] - z[static_cast<std::size_t>(i)]));
    worst = std::max(worst, std::abs(dpool[i] - 1 - da[static_cast<std::size_t>(i)]));
  }
  const Matrix<double> expected = golden.matrix<double>("model.dfeatures");
  for (Index i = 0; i < 22; ++i)
    for (Index j = 0; j < 6; ++j) worst = std::max(worst, std::abs(dx(i, j) - 1 - expected(i, j)));
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (leaf_values(leaf).empty()) return;
        const auto g = golden.values<double>("model.gradient." + path.str());
        REQUIRE(static_cast<Index>(g.size()) == leaf_values(leaf).size());
        for (Index i = 0; i < leaf_values(leaf).size(); ++i)
          worst = std::max(worst, std::abs(leaf_values(leaf)[i] - g[static_cast<std::size_t>(i)]));
      },
      gradient);
  CHECK(worst < 1e-12);
  FrozenCdm<double>(model).forward(in, logits, ws);
  for (Index i = 0; i < 22; ++i) CHECK(std::abs(logits[i] - z[static_cast<std::size_t>(i)]) < 1e-12);
}

TEST_CASE("the gradient of CDM by differences, with a pool that is drawn", "[models][cdm]") {
  Random random = random_stream(7403);
  Workspace ws;
  Cdm<double> model({.features = 3, .pool = 6, .hidden = {5}, .gumbel_temperature = 1, .sharpness = 2}, random);
  Requests<double> c({9, 0, 14, 3}, 3, random);
  Cdm<double>::Saved saved;
  Cdm<double> gradient = zeros_like(model);
  const Step step{.seed = 3, .number = 5};
  Vector<double> logits(26), dlogits(26, 0);
  Matrix<double> dx(26, 3, 0);
  const auto loss = [&] {
    model.forward(c.input(), logits, saved, step, ws);
    return cdm_loss<double>(logits, c.labels, c.offsets, {.pairwise = 0.5}, {});
  };
  loss();
  cdm_loss<double>(logits, c.labels, c.offsets, {.pairwise = 0.5}, dlogits);
  model.backward(c.input(), dlogits, saved, dx, {}, gradient, ws);
  GradientReport report;
  visit([&](const FieldPath& path, auto& leaf,
            const auto& g) { check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.most = 50}); },
        model, gradient);
  check_gradient("features", leaf_values(c.features), leaf_values(dx), loss, report);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 1e-6);
  const auto pool = saved.pool;
  model.forward(c.input(), logits, saved, Step{.seed = 3, .number = 6}, ws);
  CHECK_FALSE(std::equal(pool.begin(), pool.end(), saved.pool.begin()));  // another step draws another pool
}

TEST_CASE("the loss of CDM by differences and by hand; fusion", "[models][cdm]") {
  constexpr double inf = std::numeric_limits<double>::infinity();
  const std::vector<std::int64_t> offsets{0, 3, 3, 5};
  Vector<double> z{0.5, -1, 2, -inf, 0.3}, dz(5, 0);
  const Vector<double> y{1, 0, 0.5, 0, 1};
  const auto loss = [&] { return cdm_loss<double>(z, y, offsets, {.pairwise = 0.7}, {}); };
  const auto bce = [&](Index i) { return std::log1p(std::exp(z[i])) - z[i] * y[i]; };
  const auto pair = [&](Index i, Index j) { return std::log1p(std::exp(z[j] - z[i])); };
  const double expected =
      ((bce(0) + bce(1) + bce(2)) / 3 + 0.7 * (pair(0, 1) + pair(0, 2) + pair(2, 1)) / 3 + bce(4)) / 3;  // one request is empty
  CHECK(std::abs(loss() - expected) < 1e-14);
  CHECK(cdm_loss<double>(z, y, offsets, {.pairwise = 0.7}, dz) == loss());
  GradientReport report;
  for (const Index i : {0, 1, 2, 4})
    check_gradient("logit", VectorView<double>(&z[i], 1), VectorView<const double>(&dz[i], 1), loss, report);
  CHECK(report.worst < 1e-7);
  CHECK(dz[3] == 0);
  // An item that is out is of no pair, whatever its label.
  for (const double label : {0.0, 0.6, 2.0}) {
    const Vector<double> with{-inf, 0.3, -0.4, 0.9}, labels{label, 1, 0, 0.5}, without{0.3, -0.4, 0.9}, rest{1, 0, 0.5};
    Vector<double> dwith(4, 0), dwithout(3, 0);
    CHECK(cdm_loss<double>(with, labels, {}, {.pairwise = 0.7}, dwith) ==
          cdm_loss<double>(without, rest, {}, {.pairwise = 0.7}, dwithout));
    CHECK(dwith[0] == 0);
    CHECK(std::equal(dwithout.begin(), dwithout.end(), dwith.begin() + 1));
  }
  CHECK(error_of([&] { cdm_loss<double>(z, y, offsets, {.pairwise = -1}, dz); }) ==
        "cdm_loss: pairwise: expected pairwise >= 0, got -1");

  const Vector<double> r{0.1, 0.4, 0.2, 0.9, 0.3};
  Vector<double> s(5);
  cdm_fuse<double>(r, z, {.beta = 2}, s);
  CHECK(std::abs(s[0] - (0.1 + 2 / (1 + std::exp(-0.5)))) < 1e-15);
  CHECK(s[3] == -inf);
  cdm_fuse<double>(r, z, {.beta = 2, .logits = true}, s);
  CHECK((s[2] == 0.2 + 4 && s[3] == -inf));
  for (const bool logits : {false, true}) {  // an item that is out for its relevance
    Vector<double> endless = r;
    endless[3] = inf;
    cdm_fuse<double>(endless, z, {.beta = 2, .logits = logits}, s);
    CHECK(s[3] == -inf);
  }
  cdm_fuse<double>(r, z, {.beta = 0, .logits = true}, s);
  for (Index i = 0; i < 5; ++i) CHECK(s[i] == r[i]);
  CHECK(error_of([&] { cdm_fuse<double>(r, z, {.beta = -1}, s); }) == "cdm_fuse: beta: expected beta >= 0, got -1");
}

TEST_CASE("ranking with CDM: order by relevance, permutations, what is not finite", "[models][cdm]") {
  Random random = random_stream(7404);
  Workspace ws;
  const Cdm<float> model({.features = 4, .pool = 8}, random);
  const FrozenCdm<float> frozen = freeze(model);
  Requests<float> c({40}, 4, random);
  Vector<std::int32_t> picks(6), moved(6);
  Vector<float> scores(6);
  frozen.rank(c.relevance, c.features, {.beta = 0}, picks, scores, ws);
  for (Index t = 0; t < 6; ++t) {
    CHECK(scores[t] == c.relevance[picks[t]]);
    for (Index i = 0; i < 40; ++i)
      if (c.relevance[i] > scores[t]) CHECK(std::find(picks.begin(), picks.begin() + t, i) != picks.begin() + t);
  }
  const auto call = [&] { frozen.rank(c.relevance, c.features, {.beta = 3}, picks, scores, ws); };
  call();
  CHECK(count_allocations(call) == 0);
  Requests<float> reversed = c;
  for (Index i = 0; i < 40; ++i) {
    std::copy_n(c.features.row(i), 4, reversed.features.row(39 - i));
    reversed.relevance[39 - i] = c.relevance[i];
  }
  frozen.rank(reversed.relevance, reversed.features, {.beta = 3}, moved, {}, ws);
  for (Index t = 0; t < 6; ++t) CHECK(moved[t] == 39 - picks[t]);

  // Items that are not finite: as if they were not there, and the last to be picked is a real one.
  Requests<float> fewer({38}, 4, random), broken({40}, 4, random);
  for (Index i = 0; i < 38; ++i) {
    std::copy_n(fewer.features.row(i), 4, broken.features.row(i + 1));
    broken.relevance[i + 1] = fewer.relevance[i];
  }
  broken.relevance[0] = std::numeric_limits<float>::quiet_NaN();
  broken.relevance[39] = 5;
  broken.features(39, 1) = std::numeric_limits<float>::infinity();
  Vector<float> a(38), b(40), trained(40);
  frozen.forward(fewer.input(), a, ws);
  frozen.forward(broken.input(), b, ws);
  for (Index i = 0; i < 38; ++i) CHECK(a[i] == b[i + 1]);
  CHECK((b[0] == b[39] && b[0] == -std::numeric_limits<float>::infinity()));
  Vector<std::int32_t> all(40);
  const Selection done = frozen.rank(broken.relevance, broken.features, {}, all, {}, ws);
  CHECK((done.count == 38 && done.status == SelectionStatus::exhausted && all[38] == -1));
  CHECK(frozen.rank(broken.relevance, broken.features, {.beta = 0}, all, {}, ws).count == 38);  // 39 is the most relevant
  Cdm<float>::Saved saved;
  Cdm<float> gradient = make_gradient(model);
  broken.labels[0] = broken.labels[39] = 0;
  CHECK(std::isfinite(model.value_and_grad(broken.input(), broken.labels, {.pairwise = 1}, gradient, saved, {}, ws)));
  visit(
      [](const FieldPath&, const auto& leaf) {
        for (const float g : leaf_values(leaf)) CHECK(std::isfinite(g));
      },
      gradient);
  // Equal relevance says nothing; no candidates, no picks.
  c.relevance.fill(0.5f);
  frozen.forward(c.input(), VectorView<float>(trained.data(), 40), ws);
  for (const float z : trained) CHECK(std::isfinite(z));
  CHECK(frozen.rank({}, MatrixView<const float>(nullptr, 0, 4), {}, picks, scores, ws).count == 0);
  CHECK(picks[0] == -1);
}

TEST_CASE("CDM learns its teacher, and the second step allocates nothing", "[models][cdm]") {
  Random random = random_stream(7405);
  Workspace ws;
  constexpr Index n = 30, requests = 4, d = 6;
  Cdm<float> model({.features = d, .pool = n, .hidden = {16}}, random), gradient = make_gradient(model);
  Cdm<float>::Saved saved;
  Adam adam(model, {.learning_rate = 0.01});
  double early = 0, late = 0;
  constexpr std::uint64_t steps = 400;
  const auto taught = [&] {
    Requests<float> c({n, n, n, n}, d, random);
    for (Index i = 0; i < n * requests; i += 3) {  // every third item has a double of lower relevance
      std::copy_n(c.features.row(i), d, c.features.row(i + 1));
      c.relevance[i + 1] = 0.8f * c.relevance[i];
    }
    mmr_labels<float>(MmrBatch<float>{.relevance = c.relevance, .features = c.input().features},
                      {.teacher = {.lambda = 0.5}, .picks = 8}, c.labels, ws);
    return c;
  };
  for (std::uint64_t number = 0; number < steps; ++number) {
    const Requests<float> c = taught();
    const AllocationCounter counter;
    zero_gradient(gradient);
    const double loss = model.value_and_grad(c.input(), c.labels, {}, gradient, saved, {.seed = 1, .number = number}, ws);
    adam.step(model, gradient);
    if (number > 5) CHECK(counter.count() == 0);
    (number < 10 ? early : late) += number < 10 || number >= steps - 10 ? loss / 10 : 0;
  }
  CAPTURE(early, late);
  CHECK(late < 0.8 * early);
  // What it has not seen: it tells the teacher's picks from the rest, better than their relevance does.
  double student = 0, relevance = 0;
  for (int number = 0; number < 10; ++number) {
    const Requests<float> c = taught();
    Vector<float> logits(n * requests);
    Vector<std::uint8_t> picked(n * requests);
    for (Index i = 0; i < n * requests; ++i) picked[i] = c.labels[i] == 1;
    freeze(model).forward(c.input(), logits, ws);
    for (Index b = 0; b < requests; ++b) {
      const auto part = [b](const auto& v) { return VectorView(v.data(), v.size()).segment(b * n, n); };
      student += auc<float>(part(logits), part(picked), ws).value / (10.0 * requests);
      relevance += auc<float>(part(c.relevance), part(picked), ws).value / (10.0 * requests);
    }
  }
  CAPTURE(student, relevance);
  CHECK(student > 0.9);
  CHECK(student > relevance + 0.02);
}

TEST_CASE("errors of CDM", "[models][cdm]") {
  Random random = random_stream(7406);
  Workspace ws;
  CHECK(error_of([&] { Cdm<float>({.features = -1}, random); }) == "Cdm: features: expected features >= 0, got -1");
  CHECK(error_of([&] { Cdm<float>({.features = 1, .pool = 0}, random); }) ==
        "Cdm: pool: expected 1 to 2^31 - 1 candidates, got 0");
  const Cdm<float> model({.features = 3, .pool = 4, .hidden = {4}}, random);
  Cdm<float> gradient = make_gradient(model);
  Cdm<float>::Saved saved;
  Requests<float> c({5}, 3, random), wide({5}, 4, random);
  Vector<float> z(5, -7), few(4, -7);
  CHECK(error_of([&] { model.forward(wide.input(), z, ws); }) == "Cdm: features: expected shape [_, 3], got [5, 4]");
  CHECK(error_of([&] { model.forward(c.input(), few, ws); }) == "Cdm: logits: expected size 5, got 4");
  CHECK(error_of([&] { freeze(model).forward(c.input(), few, ws); }) == "FrozenCdm: logits: expected size 5, got 4");
  CHECK(error_of([&] { model.backward(c.input(), z, saved, {}, {}, gradient, ws); }).find("saved") != std::string::npos);
  CdmInput<float> in = c.input();
  in.relevance = few;
  CHECK(error_of([&] { model.forward(in, z, ws); }) == "Cdm: relevance: expected size 5, got 4");
  // Layers and options that somebody changed.
  const auto changed = [&](auto&& change) {
    Cdm<float> other = model;
    change(other);
    const std::string message = error_of([&] { other.forward(c.input(), z, ws); });
    CHECK(error_of([&] { other.forward(c.input(), z, saved, {}, ws); }) == message);
    CHECK(error_of([&] { freeze(other); }) != "no error");
    return message;
  };
  CHECK(changed([](auto& o) { o.query.weight.resize(3, 5); }) == "Cdm: query.weight: expected shape [5, 5], got [3, 5]");
  CHECK(changed([](auto& o) { o.query.bias.clear(); }) == "Cdm: query.bias: expected size 5, got 0");
  CHECK(changed([](auto& o) { o.key.weight.resize(5, 6); }) == "Cdm: key.weight: expected shape [5, 5], got [5, 6]");
  CHECK(changed([](auto& o) { o.value.weight.resize(4, 5); }) == "Cdm: value.weight: expected shape [5, 5], got [4, 5]");
  CHECK(changed([&](auto& o) {
          o.student = Mlp<float>({25, 2}, {}, random);
        }).find("student: expected one output") != std::string::npos);
  CHECK(changed([&](auto& o) { o.student = Mlp<float>({24, 1}, {}, random); }) != "no error");
  CHECK(changed([](auto& o) { o.options.pool = 0; }) == "Cdm: pool: expected 1 to 2^31 - 1 candidates, got 0");
  CHECK(error_of([&] { Cdm<float>().forward({}, {}, ws); }).find("query.weight") != std::string::npos);
  for (const float v : z) CHECK(v == -7);
}

TEST_CASE("CDM from features with gaps between their rows", "[models][cdm]") {
  Random random = random_stream(7407);
  Workspace ws;
  const Cdm<float> model({.features = 5, .pool = 7, .hidden = {6}}, random);
  Requests<float> c({12, 0, 70}, 5, random);
  Padded<float> wide(c.features.view()), wide_dx(82, 5);
  CdmInput<float> in = c.input();
  in.features = JaggedView<const float>(wide.view(), c.offsets);
  Vector<float> z(82), z2(82);
  model.forward(c.input(), z, ws);
  model.forward(in, z2, ws);
  CHECK(std::equal(z.begin(), z.end(), z2.begin()));
  freeze(model).forward(c.input(), z, ws);
  freeze(model).forward(in, z2, ws);
  CHECK(std::equal(z.begin(), z.end(), z2.begin()));
  Cdm<float>::Saved saved, saved2;
  Cdm<float> gradient = make_gradient(model);
  Matrix<float> dx(82, 5, 0.0f);
  model.forward(c.input(), z, saved, {}, ws);
  model.forward(in, z2, saved2, {}, ws);
  CHECK(std::equal(z.begin(), z.end(), z2.begin()));
  model.backward(c.input(), c.labels, saved, dx, {}, gradient, ws);
  model.backward(in, c.labels, saved2, wide_dx, {}, gradient, ws);
  CHECK(max_difference(dx.view(), wide_dx.view()) == 0);
  CHECK((wide.intact() && wide_dx.intact()));
}
