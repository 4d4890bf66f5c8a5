// Oracles: PyTorch's vectors (golden/pooling.py), central differences, what sets do not depend on.
#include <recops/attention/pma.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

static_assert(SequenceLayer<Isab<float>, float>);

namespace {

/// The seeds' outputs as a sequence layer of as many rows per user, so that one comparison serves all: users have m rows each.
template <class T, class L>
double against_golden(const Golden& golden, const std::string& name, L& layer, IndexView offsets) {
  set_parameters<T>(golden, name + ".", layer);
  const Matrix<T> x = golden.matrix<T>(name + ".x"), dy = golden.matrix<T>(name + ".dy");
  const Matrix<double> y = golden.matrix<double>(name + ".y"), dx = golden.matrix<double>(name + ".dx");
  Padded<T> out(y.rows(), y.cols(), T(3)), grad(x.rows(), x.cols());
  auto gradient = zeros_like(layer);
  typename L::Saved saved;
  Workspace ws;
  const JaggedView<const T> rows(x, offsets);
  layer.forward(rows, out, saved, Step{}, ws);
  for (int twice = 0; twice < 2; ++twice) layer.backward(rows, dy.view(), saved, grad, gradient, ws);
  double worst = max_difference(out.view(), y.view());
  for (Index i = 0; i < x.rows(); ++i)
    for (Index j = 0; j < x.cols(); ++j) worst = std::max(worst, std::abs(static_cast<double>(grad(i, j)) / 2 - dx(i, j)));
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (leaf_values(leaf).empty()) return;
        const auto want = golden.values<double>(name + ".d." + path.str());
        double off = 0;
        for (std::size_t i = 0; i < want.size(); ++i)
          off = std::max(off, std::abs(static_cast<double>(leaf.data()[i]) / 2 - want[i]));
        if (off > worst) UNSCOPED_INFO(path.str() << " is off by " << off);
        worst = std::max(worst, off);
      },
      gradient);
  layer.forward(rows, out, ws);
  CHECK(max_difference(out.view(), y.view()) < (std::is_same_v<T, float> ? 1e-4 : 1e-11));
  CHECK((out.intact() && grad.intact()));
  CHECK(count_allocations([&] {
          layer.forward(rows, out, saved, Step{}, ws);
          layer.backward(rows, dy.view(), saved, grad, gradient, ws);
          layer.forward(rows, out, ws);
        }) == 0);
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("set attention against PyTorch", "[attention][pma][golden]", float, double) {
  using T = TestType;
  const Golden golden("pooling");
  const double tolerance = std::is_same_v<T, float> ? 3e-4 : 1e-11;
  const auto offsets = golden.values<std::int64_t>("offsets");
  Random random(1);
  Pma<T> pma(5, 6, 3, {.heads = 2}, random);
  CHECK(against_golden<T>(golden, "pma", pma, offsets) < tolerance);
  Isab<T> isab(5, 6, 4, {.heads = 3, .scale = 1 / std::sqrt(6.0), .norms = false}, random);
  CHECK(against_golden<T>(golden, "isab", isab, offsets) < tolerance);
}

TEST_CASE("gradients of set attention", "[attention][pma]") {
  Random random = random_stream(71);
  Matrix<double> x = random_matrix<double>(12, 5, random);
  const std::vector<std::int32_t> offsets{0, 4, 4, 12};
  for (const bool norms : {true, false}) {
    Isab<double> isab(5, 6, 2, {.heads = 2, .norms = norms}, random);
    const GradientReport report = gradient_check(isab, JaggedView<double>(x, offsets));
    CAPTURE(norms, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 5e-6);  // biases of keys have none: what is left is rounding
  }
}

TEST_CASE("what set attention does not depend on", "[attention][pma]") {
  Random random = random_stream(72);
  Workspace ws;
  Pma<float> pma(8, 8, 2, {.heads = 2}, random);
  // Few seeds over a long history take the absorbed form, training does not.
  Matrix<float> x = random_matrix<float>(100, 8, random), pooled(2, 8), other(2, 8), turned = x;
  Pma<float>::Saved saved;
  pma.forward(x, pooled, ws);
  pma.forward(x, other, saved, {}, ws);
  CHECK(max_difference(pooled.view(), other.view()) < 1e-5);
  for (Index i = 0; i < 100; ++i) std::copy_n(x.row(i), 8, turned.row(99 - i));
  pma.forward(turned, other, ws);
  CHECK(max_difference(pooled.view(), other.view()) < 1e-5);
  // Seeds that ask nothing take the mean of the projected values.
  Pma<float> mean(8, 8, 1, {.norms = false}, random);
  mean.mab.fc_q.weight.fill(0);
  mean.mab.fc_q.bias.fill(0);
  mean.mab.fc_o.weight.fill(0);
  mean.mab.fc_o.bias.fill(0);
  Matrix<float> one(1, 8), average(1, 8, 0.0f), want(1, 8);
  for (Index i = 0; i < 100; ++i)
    for (Index j = 0; j < 8; ++j) average(0, j) += x(i, j) / 100;
  mean.mab.fc_v.forward(average, want, ws);
  mean.forward(x, one, ws);
  CHECK(max_difference(one.view(), want.view()) < 1e-5);
  // Threads, and a NaN of another user.
  Threads threads{3};
  Workspace threaded(make_executor(threads, 3));
  const std::vector<std::int64_t> offsets{0, 30, 60, 100};
  x(35, 0) = std::numeric_limits<float>::quiet_NaN();
  Matrix<float> three(6, 8), again(6, 8);
  pma.forward(JaggedView<const float>(x, offsets), three, ws);
  pma.forward(JaggedView<const float>(x, offsets), again, threaded);
  CHECK(max_difference(three.view(), again.view()) == 0);
  CHECK((std::isfinite(three(1, 0)) && std::isnan(three(2, 0)) && std::isfinite(three(4, 0))));
}

TEST_CASE("set attention errors", "[attention][pma]") {
  Random random = random_stream(73);
  Workspace ws;
  CHECK(error_of([&] { Pma<float>(4, 6, 2, {.heads = 4}, random); }).find("heads") != std::string::npos);
  CHECK(error_of([&] { Pma<float>(4, 6, 0, {}, random); }).find("one seed or more") != std::string::npos);
  Pma<float> pma(4, 6, 2, {.heads = 2}, random);
  Matrix<float> x(3, 4, 1.0f), wide(3, 5, 1.0f), pooled(2, 6, 7.0f), wrong(3, 6, 7.0f);
  CHECK(error_of([&] { pma.forward(wide, pooled, ws); }).find("z: expected shape [_, 4]") != std::string::npos);
  CHECK(error_of([&] { pma.forward(x, wrong, ws); }).find("pooled: expected shape [2, 6]") != std::string::npos);
  pma.mab.ln1.weight.resize(3);
  CHECK(error_of([&] { pma.forward(x, pooled, ws); }).find("weight: expected size 6") != std::string::npos);
  Isab<float> isab(4, 6, 2, {.heads = 2}, random);
  CHECK(error_of([&] { isab.forward(x, pooled, ws); }).find("y: expected shape [3, 6]") != std::string::npos);
  CHECK(*std::min_element(pooled.data(), pooled.data() + 12) == 7.0f);
}
