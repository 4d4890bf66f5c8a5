// Oracles: the probabilities of drawing without replacement, in closed form; PyTorch (tests/golden/cdm.py); central differences.
#include <recops/diversity/gumbel_top_k.hpp>
#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("Gumbel top-k draws without replacement from the softmax", "[diversity][gumbel]", float, double) {
  using T = TestType;
  const Vector<T> logits{T(0.3), T(-0.5), T(1.1), T(0)};
  const double temperature = 0.8;
  Workspace ws;
  Vector<std::int32_t> picks(2);
  double p[4], sum = 0, count[4][4] = {};
  for (Index i = 0; i < 4; ++i) sum += p[i] = std::exp(static_cast<double>(logits[i]) / temperature);
  constexpr int draws = 20000;
  for (int draw = 0; draw < draws; ++draw) {
    gumbel_top_k<T>(logits, temperature, {.seed = seed(), .row = static_cast<std::uint64_t>(draw)}, {}, picks, ws);
    count[picks[0]][picks[1]] += 1;
  }
  double chi = 0;
  for (Index i = 0; i < 4; ++i) {
    CHECK(count[i][i] == 0);
    for (Index j = 0; j < 4; ++j) {
      if (i == j) continue;
      const double expected = draws * p[i] / sum * p[j] / (sum - p[i]);
      chi += (count[i][j] - expected) * (count[i][j] - expected) / expected;
    }
  }
  CHECK(chi < 38);  // 11 degrees of freedom: 1 in 10000
}

TEST_CASE("Gumbel top-k: sizes, keys, what is not a number, errors", "[diversity][gumbel]") {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Workspace ws;
  const RandomRow at{.seed = 5, .row = 2};
  const Vector<float> logits{1, nan, 2, -inf, inf, 0, -1};
  Vector<float> keys(7);
  Vector<std::int32_t> picks(6);
  CHECK(gumbel_top_k<float>(logits, 1, at, keys, picks, ws) == 4);
  CHECK((picks[4] == -1 && picks[5] == -1));
  for (Index t = 0; t + 1 < 4; ++t) CHECK(keys[picks[t]] > keys[picks[t + 1]]);
  for (const Index i : {1, 3, 4}) CHECK(keys[i] == -inf);
  Vector<float> again(7);
  Vector<std::int32_t> same(6);
  const auto call = [&] { gumbel_top_k<float>(logits, 1, at, again, same, ws); };
  CHECK(count_allocations(call) == 0);
  CHECK(std::equal(picks.begin(), picks.end(), same.begin()));
  gumbel_top_k<float>(logits, 1, {.seed = 5, .row = 2, .purpose = RandomPurpose::dropout}, again, same, ws);
  CHECK(std::equal(keys.begin(), keys.end(), again.begin()));  // it draws for its own purpose, whatever `at` says
  CHECK(gumbel_top_k<float>({}, 1, at, {}, picks, ws) == 0);
  CHECK(picks[0] == -1);
  CHECK(gumbel_top_k<float>(logits, 1, at, keys, {}, ws) == 0);
  // A temperature near 0 leaves the order of the logits.
  CHECK(gumbel_top_k<float>(logits, 1e-4, at, keys, picks, ws) == 4);
  CHECK((picks[0] == 2 && picks[1] == 0 && picks[2] == 5 && picks[3] == 6));
  // Logits that are finite, but not divided by the temperature.
  const Vector<float> far{nan, 3e38f, 1, -3e38f};
  CHECK(gumbel_top_k<float>(far, 0.5, at, VectorView<float>(keys.data(), 4), picks, ws) == 3);
  CHECK((picks[0] == 1 && picks[1] == 2 && picks[2] == 3 && picks[3] == -1));
  CHECK(keys[0] == -inf);
  Matrix<float> p(2, 7);
  Vector<float> weights(7, 7.0f), dkeys(7, 7.0f);
  for (const double broken : {0.0, -1.0, 1e-50, 1e50, static_cast<double>(inf), static_cast<double>(nan)}) {
    const auto names_it = [](const std::string& message) {
      return message.find("temperature: expected a number above 0 in the range of T") != std::string::npos;
    };
    CHECK(names_it(error_of([&] { gumbel_top_k<float>(logits, broken, at, keys, picks, ws); })));
    CHECK(names_it(error_of([&] { relaxed_top_k<float>(logits, broken, p, weights, ws); })));
    CHECK(names_it(error_of([&] { relaxed_top_k_backward<float>(p, broken, weights, dkeys, ws); })));
  }
  CHECK((weights[0] == 7 && dkeys[6] == 7));
  CHECK(error_of([&] { gumbel_top_k<float>(logits, 1, at, VectorView<float>(keys.data(), 3), picks, ws); }) ==
        "gumbel_top_k: keys: expected size 7, got 3");
}

TEMPLATE_TEST_CASE("the relaxed choice against PyTorch", "[diversity][gumbel]", float, double) {
  using T = TestType;
  const Golden golden("cdm");
  const auto keys = golden.values<T>("relaxed.keys"), dw = golden.values<T>("relaxed.dw");
  const auto w = golden.values<double>("relaxed.w"), dkeys = golden.values<double>("relaxed.dkeys");
  Workspace ws;
  Matrix<T> p(4, 11);
  Vector<T> weights(11), got(11, T(1));
  relaxed_top_k<T>(keys, 0.6, p, weights, ws);
  relaxed_top_k_backward<T>(p, 0.6, dw, got, ws);
  double sum = 0;
  for (Index i = 0; i < 11; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-13;
    CHECK(std::abs(static_cast<double>(weights[i]) - w[at]) < bound);
    CHECK(std::abs(static_cast<double>(got[i]) - 1 - dkeys[at]) < bound);
    sum += static_cast<double>(weights[i]);
  }
  CHECK(std::abs(sum - 4) < 1e-5);
}

TEST_CASE("the relaxed choice: its gradient where it saturates, its limits", "[diversity][gumbel]") {
  Random random = random_stream(7201);
  Workspace ws;
  for (const double temperature : {0.1, 0.3, 2.0}) {
    Vector<double> keys = random_vector<double>(7, random), dkeys(7, 0);
    const Vector<double> dw = random_vector<double>(7, random);
    Matrix<double> p(5, 7);
    Vector<double> w(7);
    const auto loss = [&] {
      relaxed_top_k<double>(keys, temperature, p, w, ws);
      return simd::dot(w.data(), dw.data(), 7);
    };
    loss();
    relaxed_top_k_backward<double>(p, temperature, dw, dkeys, ws);
    GradientReport report;
    check_gradient("keys", keys, dkeys, loss, report);
    CAPTURE(temperature, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-5);
  }
  constexpr float inf = std::numeric_limits<float>::infinity();
  const Vector<float> keys{0, 3, -inf, 2, -1};
  Matrix<float> p(2, 5);
  Vector<float> w(5), dkeys(5, 0);
  relaxed_top_k<float>(keys, 0.01, p, w, ws);
  CHECK((w[1] > 0.999f && w[3] > 0.999f && w[2] == 0 && w[0] < 1e-3f));
  const Vector<float> dw{1, 2, 3, 4, 5};
  relaxed_top_k_backward<float>(p, 0.01, dw, dkeys, ws);
  for (const float g : dkeys) CHECK(std::isfinite(g));
  const Vector<float> huge{std::numeric_limits<float>::max(), 3, -inf, 2, -1};
  for (const double temperature : {0.5, 1e-37}) {  // as the largest of a softmax, keys of any size and temperatures to match
    relaxed_top_k<float>(huge, temperature, p, w, ws);
    CHECK((w[0] > 0.999f && w[1] >= 0 && w[2] == 0));
    for (const float v : w) CHECK(std::isfinite(v));
  }
  Vector<float> none;
  relaxed_top_k<float>({}, 1, MatrixView<float>(p.data(), 2, 0), none, ws);
}
