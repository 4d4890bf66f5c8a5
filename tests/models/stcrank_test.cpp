// Oracles: the rules sample by sample, counted by hand; numpy, scikit-learn and PyTorch (tests/golden/stcrank.py); the spec's figures;
// central differences.
#include <recops/models/stcrank.hpp>
#include <recops/nn/loss.hpp>
#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("label rules", "[models][stcrank]", float, double) {
  using T = TestType;
  const T hidden = std::numeric_limits<T>::quiet_NaN();
  // conversion, view, swipe
  const Matrix<T> given{{1, 1, 0}, {0, 1, 1}, {1, 0, 1}, {0, 0, 0}, {hidden, 1, 1}};
  const auto run = [&](std::vector<LabelRule> rules, Matrix<T>& y, Matrix<T>& w) {
    y = given;
    w = Matrix<T>(5, 3, T(1));
    w(4, 0) = 0;  // not observed, and not read
    w(1, 1) = T(0.5);
    label_collaboration<T>(rules, y, w);
  };
  Matrix<T> y, w;
  const auto preset = stcrank_rules(0, 1, 2);
  run({preset.begin(), preset.end()}, y, w);
  const Matrix<T> excluded{{1, 0, 0}, {1, T(0.5), 1}, {1, 0, 0}, {1, 1, 1}, {0, 1, 1}};
  CHECK(max_difference(w.view(), excluded.view()) == 0);
  CHECK(max_difference(y.view(), given.view()) == 0);
  run({{.kind = LabelRuleKind::subtract, .to = 1, .from = 0}, {.kind = LabelRuleKind::absorb, .to = 2, .from = 1}}, y, w);
  const Matrix<T> changed{{1, 0, 1}, {0, 1, 1}, {1, 0, 1}, {0, 0, 0}, {hidden, 1, 1}};  // absorb reads the view as it was given
  CHECK(max_difference(y.view(), changed.view()) == 0);
  CHECK((w(0, 1) == 1 && w(1, 1) == T(0.5)));
  run({{.kind = LabelRuleKind::reweight, .to = 2, .from = 1, .alpha = 0.25, .value = 0}}, y, w);
  CHECK((w(0, 2) == 1 && w(2, 2) == T(0.25) && w(3, 2) == T(0.25) && w(4, 2) == 1));
  // alpha = 0 at value 1 is exclude.
  Matrix<T> w2;
  run({{.kind = LabelRuleKind::reweight, .to = 1, .from = 0}}, y, w);
  run({{.kind = LabelRuleKind::exclude, .to = 1, .from = 0}}, y, w2);
  CHECK(max_difference(w.view(), w2.view()) == 0);
  // The loss takes what comes out.
  const Matrix<T> z(5, 3, T(0));
  run({preset.begin(), preset.end()}, y, w);
  CHECK(std::abs(bce_with_logits<T>(z, y, {.weights = w}) - 3 * std::log(2.0)) < 1e-6);
}

TEST_CASE("dependence of labels falls where rules treat it", "[models][stcrank]") {
  Random random = random_stream(7901);
  const Index n = 4000;
  Matrix<double> y(n, 3), w(n, 3, 1), lift(3, 3), phi(3, 3), treated(3, 3);
  for (Index i = 0; i < n; ++i) {
    y(i, 0) = random.chance(0.2);
    y(i, 1) = random.chance(y(i, 0) == 1 ? 0.9 : 0.3);
    y(i, 2) = random.chance(y(i, 0) == 1 ? 0.1 : 0.7);
  }
  label_dependence<double>(y, {}, lift, phi);
  CHECK(std::abs(phi(1, 1) - 1) < 1e-12);
  CHECK(phi(0, 1) > 0.3);
  CHECK(phi(2, 0) < -0.3);
  CHECK((lift(0, 1) > 1.5 && lift(0, 2) < 0.5 && lift(0, 1) == lift(1, 0)));
  // Half the weight: less dependence; none: none that could be measured.
  const auto soften = [&](double alpha) {
    Matrix<double> labels = y, weights(n, 3, 1);
    const std::vector<LabelRule> rules{{.kind = LabelRuleKind::reweight, .to = 1, .from = 0, .alpha = alpha},
                                       {.kind = LabelRuleKind::reweight, .to = 2, .from = 0, .alpha = alpha}};
    label_collaboration<double>(rules, labels, weights);
    label_dependence<double>(labels, weights, lift, treated);
  };
  soften(0.2);
  CHECK(std::abs(treated(0, 1)) < std::abs(phi(0, 1)));
  CHECK(std::abs(treated(0, 2)) < std::abs(phi(0, 2)));
  CHECK(std::abs(treated(1, 2)) < std::abs(phi(1, 2)));
  soften(0);
  CHECK((std::isnan(treated(0, 1)) && std::isnan(treated(0, 2))));
}

TEMPLATE_TEST_CASE("labels, dependence and rates are those of numpy, scikit-learn and PyTorch", "[models][stcrank][golden]",
                   float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  const Golden g("stcrank");
  const Matrix<double> table = g.matrix<double>("rules");
  std::vector<LabelRule> rules;
  for (Index i = 0; i < table.rows(); ++i) {
    rules.push_back({.kind = static_cast<LabelRuleKind>(static_cast<int>(table(i, 0))),
                     .to = static_cast<Index>(table(i, 1)),
                     .from = static_cast<Index>(table(i, 2)),
                     .alpha = table(i, 3),
                     .value = table(i, 4)});
  }
  Padded<T> y(g.matrix<T>("labels").view()), w(g.matrix<T>("weights").view()), lift(4, 4), phi(4, 4);
  label_dependence<T>(y, w, lift, phi);
  CHECK(max_difference(lift.view(), g.matrix<T>("lift").view()) <= 4 * tolerance);
  CHECK(max_difference(phi.view(), g.matrix<T>("phi").view()) <= tolerance);
  label_collaboration<T>(rules, y, w);
  CHECK(max_difference(y.view(), g.matrix<T>("new_labels").view()) == 0);
  CHECK(max_difference(w.view(), g.matrix<T>("new_weights").view()) == 0);
  CHECK((y.intact() && w.intact() && lift.intact() && phi.intact()));

  const auto worth = g.values<double>("worth");
  const SwipeValue value{worth[0], worth[1], worth[2], worth[3]};
  const Matrix<T> rate = g.matrix<T>("rates"), dout = g.matrix<T>("doutcome");
  Matrix<T> out(3, rate.cols()), drate(3, rate.cols(), T(0));
  const auto row = [](auto& m, Index i) { return VectorView(m.row(i), m.cols()); };
  const SwipeRates<const T> rates{row(rate, 0), row(rate, 1), row(rate, 2)};
  compose_rates<T>(rates, value, {row(out, 0), row(out, 1), row(out, 2)});
  CHECK(max_difference(out.view(), g.matrix<T>("outcome").view()) <= tolerance);
  compose_rates_backward<T>(rates, value, {row(dout, 0), row(dout, 1), row(dout, 2)},
                            {row(drate, 0), row(drate, 1), row(drate, 2)});
  CHECK(max_difference(drate.view(), g.matrix<T>("drates").view()) <= 4 * tolerance);
}

TEST_CASE("rates put together: the spec's figures, gradient, errors", "[models][stcrank]") {
  const SwipeValue value{};
  {
    const Vector<double> pc{.05}, pv{.4}, ps{.7};
    Vector<double> view(1), goes_on(1), reward(1);
    compose_rates<double>({pc, pv, ps}, value, {view, goes_on, reward});
    CHECK(std::abs(view[0] - 0.43) < 1e-15);
    CHECK(std::abs(goes_on[0] - 0.67) < 1e-15);
    CHECK(std::abs(reward[0] - 0.2455) < 1e-15);
  }
  Random random = random_stream(7902);
  const Index n = 9;
  Vector<double> rate[3], drate[3], out[3], dout[3];
  for (int r = 0; r < 3; ++r) {
    rate[r] = Vector<double>(n);
    for (double& p : rate[r]) p = random.uniform();
    drate[r] = Vector<double>(n, 0);
    out[r] = Vector<double>(n);
    dout[r] = random_vector<double>(n, random);
  }
  const auto loss = [&] {
    compose_rates<double>({rate[0], rate[1], rate[2]}, value, {out[0], out[1], out[2]});
    double sum = 0;
    for (int r = 0; r < 3; ++r)
      for (Index i = 0; i < n; ++i) sum += dout[r][i] * out[r][i];
    return sum;
  };
  const auto backward = [&] {
    compose_rates_backward<double>({rate[0], rate[1], rate[2]}, value, {dout[0], dout[1], dout[2]},
                                   {drate[0], drate[1], drate[2]});
  };
  backward();
  GradientReport report;
  for (int r = 0; r < 3; ++r) check_gradient("rate", rate[r], drate[r], loss, report);
  CHECK(report.worst < 1e-8);
  const Vector<double> once = drate[0];
  CHECK(count_allocations(backward) == 0);
  for (Index i = 0; i < n; ++i) CHECK(std::abs(drate[0][i] - 2 * once[i]) < 1e-12);

  Vector<double> few(3, 7);
  CHECK(error_of([&] {
          compose_rates<double>({rate[0], few, rate[2]}, value, {});
        }) == "compose_rates: view: expected size 9, got 3");
  CHECK(error_of([&] {
          compose_rates<double>({rate[0], rate[1], rate[2]}, {.continue_after_conversion = 2}, {});
        }) == "compose_rates: continue_after_conversion: expected a probability, got 2");
  // A NaN stays with its item; what is not wanted is left out.
  compose_rates<double>({rate[0], rate[1], rate[2]}, value, {.reward = out[2]});
  const Vector<double> clean = out[2];
  rate[1][4] = std::numeric_limits<double>::quiet_NaN();
  compose_rates<double>({rate[0], rate[1], rate[2]}, value, {.reward = out[2]});
  for (Index i = 0; i < n; ++i) CHECK((i == 4 ? std::isnan(out[2][i]) : out[2][i] == clean[i]));
  for (double& g : drate[0]) g = 0;
  compose_rates_backward<double>({rate[0], rate[1], rate[2]}, value, {dout[0], dout[1], dout[2]}, {.conversion = drate[0]});
  for (Index i = 0; i < n; ++i) CHECK((i == 4 ? std::isnan(drate[0][i]) : std::abs(drate[0][i] - once[i]) < 1e-12));
  CHECK(error_of([&] {
          compose_rates_backward<double>({rate[0], rate[1], rate[2]}, value, {dout[0], dout[1], dout[2]},
                                         {drate[0], few, drate[2]});
        }) == "compose_rates_backward: gradient of view: expected size 9, got 3");
  Matrix<double> y(2, 2, 0), w(2, 2, 1);
  const std::vector<LabelRule> endless{{.kind = LabelRuleKind::reweight, .to = 1, .from = 0, .alpha = INFINITY}};
  CHECK(error_of([&] { label_collaboration<double>(endless, y, w); }) ==
        "label_collaboration: rule.alpha: expected a finite number, 0 or more, got inf");
  const std::vector<LabelRule> self{{.to = 1, .from = 1}}, far{{.to = 2, .from = 1}};
  CHECK(error_of([&] { label_collaboration<double>(self, y, w); }) ==
        "label_collaboration: rule.from: expected another column of labels, got 1");
  CHECK(error_of([&] { label_collaboration<double>(far, y, w); }) ==
        "label_collaboration: rule.to: expected a column of labels, got 2");
  CHECK(few[0] == 7);
}
