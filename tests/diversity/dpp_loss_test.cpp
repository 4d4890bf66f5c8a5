// Oracles: PyTorch with the whole kernel and all subsets (tests/golden/dpp_loss.py); central differences; limits known by hand.
#include <recops/diversity/dpp_loss.hpp>
#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
constexpr double infinity = std::numeric_limits<double>::infinity();
}

TEMPLATE_TEST_CASE("determinantal losses against PyTorch", "[diversity][dpp_loss]", float, double) {
  using T = TestType;
  const Golden golden("dpp_loss");
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-11;
  Workspace ws;
  Index fixed = 0;
  const auto compare = [&](const std::string& name, MatrixView<const T> f, const Matrix<T>& df, const Vector<T>& dq) {
    const auto ef = golden.values<double>(name + ".dfeatures"), eq = golden.values<double>(name + ".dquality");
    double most = 1, worst = 0;
    for (const double e : ef) most = std::max(most, std::abs(e));
    for (Index i = 0; i < f.rows() * f.cols(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(df.data()[i]) - 1 - ef[static_cast<std::size_t>(i)]));
    for (Index i = 0; i < f.rows(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(dq[i]) - 1 - eq[static_cast<std::size_t>(i)]));
    CAPTURE(name, worst / most);
    CHECK(worst / most < bound);
  };
  for (Index number = 0; number < static_cast<Index>(golden.scalar("cases")); ++number) {
    const std::string name = "dpp_" + std::to_string(number), fixed_size = "k" + name;
    const Padded<T> f(golden.matrix<T>(name + ".features").view());
    Padded<T> rows = f;
    const auto q = golden.values<T>(name + ".quality");
    const auto chosen = golden.values<std::int32_t>(name + ".chosen");
    const DppItems<T> in{.features = rows.view(), .quality = q};
    const Index n = rows.view().rows(), d = rows.view().cols();
    Matrix<T> df(n, d, 1);
    Vector<T> dq(n, 1);
    const DppLossOptions options{.delta = golden.scalar(name + ".delta")};
    const double loss = dpp_nll<T>(in, chosen, options, {.features = df, .quality = dq}, ws);
    CHECK(std::abs(loss - golden.scalar(name + ".loss")) < bound * 10);
    CHECK(dpp_nll<T>(in, chosen, options, {}, ws) == loss);
    compare(name, rows.view(), df, dq);
    if (number == 1 || number == 3) continue;
    df.fill(1);
    dq.fill(1);
    const double k_loss = kdpp_nll<T>(in, chosen, {.features = df, .quality = dq}, ws);
    CHECK(std::abs(k_loss - golden.scalar(fixed_size + ".loss")) < bound * 10);
    compare(fixed_size, rows.view(), df, dq);
    ++fixed;
  }
  CHECK(fixed == 3);
  const Matrix<T> x = golden.matrix<T>("volume.x");
  const Matrix<double> expected = golden.matrix<double>("volume.dx");
  Matrix<T> dx(5, 7, 1);
  CHECK(std::abs(soft_volume<T>(x, {.delta = 0.02}, dx, ws) - golden.scalar("volume.loss")) < bound);
  for (Index i = 0; i < 35; ++i)
    CHECK(std::abs(static_cast<double>(dx.data()[i]) - 1 - expected.data()[i]) < (std::is_same_v<T, float> ? 1e-5 : 1e-12));
}

TEST_CASE("gradients of determinantal losses by differences, over block borders", "[diversity][dpp_loss]") {
  Random random = random_stream(7501);
  Workspace ws;
  Matrix<double> f = random_matrix<double>(300, 5, random);
  Vector<double> q(300);
  for (double& v : q) v = std::exp(0.3 * random.normal());
  const std::vector<std::int64_t> chosen{299, 3, 256, 255};
  const DppItems<double> in{.features = f, .quality = q};
  for (const bool fixed : {false, true}) {
    Matrix<double> df(300, 5, 0);
    Vector<double> dq(300, 0);
    const auto loss = [&](const DppGradients<double>& g) {
      return fixed ? kdpp_nll<double>(in, chosen, g, ws) : dpp_nll<double>(in, chosen, {.delta = 0.01}, g, ws);
    };
    const auto call = [&] { loss({.features = df, .quality = dq}); };
    call();
    CHECK(count_allocations(call) == 0);
    for (Index i = 0; i < 1500; ++i) df.data()[i] /= 2;  // it was called twice
    for (double& g : dq) g /= 2;
    GradientReport report;
    check_gradient("features", leaf_values(f), leaf_values(df), [&] { return loss({}); }, report, {.most = 60});
    check_gradient("quality", q, dq, [&] { return loss({}); }, report, {.most = 40});
    CAPTURE(fixed, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
  }
}

TEST_CASE("probabilities sum to 1, and limits", "[diversity][dpp_loss]") {
  Random random = random_stream(7502);
  Workspace ws;
  const Matrix<double> f = random_matrix<double>(6, 3, random);
  const DppItems<double> in{.features = f};
  double all = 0, of_two = 0;
  for (unsigned set = 0; set < 64; ++set) {
    std::vector<std::int32_t> chosen;
    for (int i = 0; i < 6; ++i)
      if (set >> i & 1u) chosen.push_back(i);
    all += std::exp(-dpp_nll<double>(in, chosen, {.delta = 0.2}, {}, ws));
    if (chosen.size() == 2) of_two += std::exp(-kdpp_nll<double>(in, chosen, {}, ws));
    if (chosen.size() > 3) {  // more than the rank: impossible without a diagonal
      Matrix<double> df(6, 3, 7);
      CHECK(dpp_nll<double>(in, chosen, {.delta = 0}, {.features = df}, ws) == infinity);
      CHECK(kdpp_nll<double>(in, chosen, {.features = df}, ws) == infinity);
      CHECK(*std::max_element(df.data(), df.data() + 18) == 7);
    }
  }
  CHECK(std::abs(all - 1) < 1e-12);
  CHECK(std::abs(of_two - 1) < 1e-12);
  CHECK(kdpp_nll<double>(in, IndexView(), {}, ws) == 0);
  const Matrix<double> unit{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}, twice{{1, 0, 0}, {1, 0, 0}};
  CHECK(std::abs(soft_volume<double>(unit, {.delta = 0}, {}, ws)) < 1e-15);
  CHECK(soft_volume<double>(twice, {.delta = 0}, {}, ws) == infinity);
  CHECK(std::abs(soft_volume<double>(twice, {.delta = 1e-4}, {}, ws) + 0.5 * std::log(1e-4 * (2 + 1e-4))) < 1e-9);
  CHECK(soft_volume<double>(MatrixView<const double>(), {}, MatrixView<double>(), ws) == 0);
  const std::vector<std::int32_t> none;
  CHECK(dpp_nll<double>(DppItems<double>{}, none, {}, {}, ws) == 0);
  CHECK(std::abs(dpp_nll<double>({.features = MatrixView<const double>(nullptr, 4, 0)}, none, {.delta = 0.5}, {}, ws) -
                 4 * std::log(1.5)) < 1e-12);
  // Many items, many picks: e_k is far beyond what a double holds.
  Matrix<double> wide = random_matrix<double>(100, 50, random);
  for (double& v : leaf_values(wide)) v *= 1e4;
  std::vector<std::int32_t> many;
  for (std::int32_t i = 0; i < 40; ++i) many.push_back(2 * i);
  CHECK(std::isfinite(kdpp_nll<double>({.features = wide}, many, {}, ws)));
}

TEST_CASE("spectrum of a Gram matrix; polynomials", "[diversity][dpp_loss]") {
  Random random = random_stream(7503);
  Workspace ws;
  for (const Index n : {1, 2, 7, 24}) {
    for (const Index rank : {Index{0}, n / 2, n}) {
      const Matrix<double> v = random_matrix<double>(rank, n, random);
      Matrix<double> c(n, n, 0);
      if (rank > 0) simd::gemm<double>(simd::transposed(v.view()), simd::plain(v.view()), {}, c, ws);
      Matrix<double> u = c;
      Vector<double> lambda(n);
      REQUIRE(recops::detail::psd_spectrum(u, lambda.data(), ws));
      double worst = 0;
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < n; ++j) {
          double sum = 0;
          for (Index e = 0; e < n; ++e) sum += lambda[e] * u(e, i) * u(e, j);
          worst = std::max(worst, std::abs(sum - c(i, j)));
        }
      Index positive = 0;
      for (const double l : lambda) positive += l > 1e-9;
      CAPTURE(n, rank);
      CHECK(worst < 1e-11);
      CHECK(positive == rank);
    }
  }
  const Vector<double> logs{std::log(2.0), std::log(3.0), std::log(5.0)};
  Matrix<double> e(4, 4);
  recops::detail::log_elementary_symmetric(logs.data(), 3, 1, e);
  CHECK(std::abs(std::exp(e(3, 1)) - 10) < 1e-12);
  CHECK(std::abs(std::exp(e(3, 2)) - 31) < 1e-12);
  CHECK(std::abs(std::exp(e(3, 3)) - 30) < 1e-12);
  CHECK(e(1, 2) == -infinity);
}

TEST_CASE("errors of determinantal losses; NaN", "[diversity][dpp_loss]") {
  Random random = random_stream(7504);
  Workspace ws;
  Matrix<float> f = random_matrix<float>(4, 2, random), df(4, 2, 3);
  Vector<float> q{1, 1, -1, 1};
  const std::vector<std::int32_t> two{0, 1}, same{1, 1}, out{0, 4};
  CHECK(error_of([&] { dpp_nll<float>({.features = f, .quality = q}, two, {}, {}, ws); }) ==
        "dpp_nll: quality: expected qualities of 0 or more, got -1");
  CHECK(error_of([&] { kdpp_nll<float>({.features = f}, same, {}, ws); }) ==
        "kdpp_nll: chosen: expected distinct items, got 1 at position 1");
  CHECK(error_of([&] { dpp_nll<float>({.features = f}, out, {}, {.features = df}, ws); }).find("chosen") != std::string::npos);
  CHECK(error_of([&] { dpp_nll<float>({.features = f}, two, {.delta = -1}, {}, ws); }) ==
        "dpp_nll: delta: expected delta >= 0, got -1");
  CHECK(error_of([&] { soft_volume<float>(f, {}, MatrixView<float>(df.data(), 2, 2), ws); }) ==
        "soft_volume: dx: expected shape [4, 2], got [2, 2]");
  Vector<float> dq(3, 3);
  CHECK(error_of([&] { dpp_nll<float>({.features = f}, two, {}, {.features = df.view().middle_rows(0, 3)}, ws); }) ==
        "dpp_nll: gradient of features: expected shape [4, 2], got [3, 2]");
  CHECK(error_of([&] { kdpp_nll<float>({.features = f}, two, {.features = df, .quality = dq}, ws); }) ==
        "kdpp_nll: gradient of quality: expected size 4, got 3");
  CHECK(dq[2] == 3);
  for (Index d = 0; d < 2; ++d) {  // in whatever column
    Matrix<float> broken = f;
    broken(3, d) = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(dpp_nll<float>({.features = broken}, two, {}, {.features = df}, ws)));
    CHECK(std::isnan(kdpp_nll<float>({.features = broken}, two, {.features = df}, ws)));
    CHECK(std::isnan(soft_volume<float>(broken, {}, df, ws)));
  }
  for (Index i = 0; i < 8; ++i) CHECK(df.data()[i] == 3);
}

TEST_CASE("determinantal losses of rows of very different lengths", "[diversity][dpp_loss]") {
  Workspace ws;
  // det (L + I) = 1 + |v_i|^2 summed + the squared areas of pairs
  const Matrix<double> f{{1, 0}, {0, 1}, {0.6, 0.8}};
  for (const double q0 : {1e7, 2e7, 1e9}) {
    const Vector<double> q{q0, 1, 1};
    const std::vector<std::int32_t> first{0};
    const double square = q0 * q0, normaliser = 1 + (square + 2) + (square + square * 0.64 + 0.36);
    CHECK(dpp_nll<double>({.features = f, .quality = q}, first, {.delta = 0}, {}, ws) ==
          Approx(std::log(normaliser / square)).epsilon(1e-12));
  }
  const Matrix<double> two{{1, 0}, {0, 1}};
  const Vector<double> q{1e6, 0};
  const std::vector<std::int32_t> both{0, 1};
  CHECK(dpp_nll<double>({.features = two, .quality = q}, both, {.delta = 1e-3}, {}, ws) ==
        Approx(std::log((1e12 + 1 + 1e-3) * (1 + 1e-3)) - std::log((1e12 + 1e-3) * 1e-3)).epsilon(1e-12));
  const Matrix<double> x{{1e8, 0}, {0, 1}}, near{{1, 0}, {1, 1e-9}};
  CHECK(soft_volume<double>(x, {.delta = 0}, {}, ws) == Approx(-8 * std::log(10.0)));
  CHECK(soft_volume<double>(near, {.delta = 0}, {}, ws) == infinity);  // still no more than rounding
  const Matrix<double> tiny{{1e-156, 0}, {0, 1}};                      // whose inverse would overflow
  Matrix<double> dx(2, 2, 0.0);
  CHECK(soft_volume<double>(tiny, {.delta = 0}, dx, ws) == infinity);
  for (Index i = 0; i < 4; ++i) CHECK(dx.data()[i] == 0);
  const Matrix<double> small{{1e-151, 0}, {0, 1}};
  CHECK(soft_volume<double>(small, {.delta = 0}, dx, ws) == Approx(151 * std::log(10.0)));
  CHECK(dx(0, 0) == Approx(-1e151));
}
