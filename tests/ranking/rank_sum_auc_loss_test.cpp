// Oracles: the AUC counted pair by pair and scikit-learn's (hard limit), the closed form when all is pooled, the values of the
// specification, central differences, and one objective at a time.
#include <recops/core/random.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/ranking/rank_sum_auc_loss.hpp>
#include <recops/train/gradient_check.hpp>

#include "ranking/soft_rank_reference.hpp"
#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr auto quadratic = SoftRankRegularization::quadratic, kl = SoftRankRegularization::kl;

Matrix<std::uint8_t> labels_of(Index n, const std::vector<double>& rates, Random& random) {
  Matrix<std::uint8_t> y(n, static_cast<Index>(rates.size()));
  for (Index i = 0; i < n; ++i)
    for (Index m = 0; m < y.cols(); ++m) y(i, m) = random.chance(rates[static_cast<std::size_t>(m)]);
  return y;
}

template <class T>
RankSumAucResult loss_of(const Vector<T>& s, MatrixView<const std::uint8_t> y, IndexView offsets, const RankSumAucOptions& o,
                         VectorView<double> auc, VectorView<T> d) {
  Workspace ws;
  const auto value = rank_sum_auc_loss<T>(s, y, offsets, o, auc, ws);
  const auto both = rank_sum_auc_loss_value_and_grad<T>(s, y, offsets, o, auc, d, ws);
  CHECK((both.loss == value.loss || (std::isnan(both.loss) && std::isnan(value.loss))));
  return both;
}

}  // namespace

TEST_CASE("Rank-sum AUC loss: values of the specification", "[ranking][rank_sum_auc]") {
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4};
  Matrix<std::uint8_t> y(6, 2);
  const int first[]{1, 0, 0, 1, 0, 1}, second[]{0, 0, 1, 1, 0, 0};
  for (Index i = 0; i < 6; ++i) y(i, 0) = static_cast<std::uint8_t>(first[i]), y(i, 1) = static_cast<std::uint8_t>(second[i]);
  const double value[]{0.256597222, 0.288194444};
  const std::vector<double> gradient[]{{-0.024305556, 0, -0.038194444, 0, 0.086805556, -0.024305556},
                                       {0.024305556, 0, -0.024305556, 0, 0, 0}};
  for (const auto regularization : {quadratic, kl}) {
    Vector<double> d(6, 1.0), auc(2);
    const auto r =
        loss_of<double>(s, y, {}, {.regularization = regularization, .eps_mode = EpsMode::absolute, .eps = 0.5}, auc, d);
    CHECK(r.loss == Approx(value[regularization == kl]).margin(1e-8));
    CHECK((r.valid && r.skipped == 0));
    CHECK(0.5 * (2 - auc[0] - auc[1]) == Approx(r.loss));
    for (Index i = 0; i < 6; ++i)
      CHECK(d[i] - 1 == Approx(gradient[regularization == kl][static_cast<std::size_t>(i)]).margin(1e-8));
  }
}

TEMPLATE_TEST_CASE("With hard ranks the loss is 1 - AUC", "[ranking][rank_sum_auc]", float, double) {
  using T = TestType;
  const Golden golden("soft_rank");
  const auto s = golden_vector<T>(golden, "auc.scores");
  const auto flat = golden.values<std::uint8_t>("auc.labels");
  const MatrixView<const std::uint8_t> y(flat.data(), s.size(), 3);
  const auto expected = golden.values<double>("auc.values");
  Vector<double> auc(3);
  Vector<T> d(s.size(), T(0));
  for (const auto regularization : {quadratic, kl}) {
    for (const double eps : {0.0, 1e-6}) {
      const auto r = loss_of<T>(s, y, {}, {.regularization = regularization, .eps_mode = EpsMode::absolute, .eps = eps}, auc, d);
      for (Index m = 0; m < 3; ++m) CHECK(auc[m] == Approx(expected[static_cast<std::size_t>(m)]).margin(1e-9));
      CHECK(r.loss == Approx(1 - (expected[0] + expected[1] + expected[2]) / 3).margin(1e-9));
    }
  }
}

TEMPLATE_TEST_CASE("Pooled whole, the AUC loss is linear: the closed form", "[ranking][rank_sum_auc]", float, double) {
  using T = TestType;
  Random random = random_stream(921);
  for (const Index n : {10, 200}) {  // the paper's literal eps = 1 on scores in [0, 1]
    Vector<T> s(n);
    for (T& x : s) x = static_cast<T>(random.uniform());
    auto y = labels_of(n, {0.3}, random);
    y(0, 0) = 1, y(1, 0) = 0;
    Vector<T> d(n, T(0));
    Vector<double> auc(1);
    const auto r = loss_of<T>(s, y, {}, {.eps_mode = EpsMode::absolute, .eps = 1}, auc, d);
    double sum[2] = {}, count[2] = {};
    for (Index i = 0; i < n; ++i) sum[y(i, 0)] += static_cast<double>(s[i]), count[y(i, 0)] += 1;
    const double pairs = count[0] * count[1], rate = count[1] / static_cast<double>(n);
    const double unit = std::is_same_v<T, float> ? 1e-6 : 1e-12;
    CHECK(r.blocks.blocks == 1);
    CHECK(auc[0] == Approx(0.5 + (sum[1] / count[1] - sum[0] / count[0]) / static_cast<double>(n)).epsilon(unit));
    for (Index i = 0; i < n; ++i) CHECK(static_cast<double>(d[i]) == Approx(-(y(i, 0) - rate) / pairs).epsilon(10 * unit));
  }
}

TEST_CASE("Gradients of the AUC loss equal central differences away from kinks", "[ranking][rank_sum_auc]") {
  Random random = random_stream(922);
  Workspace ws;
  const std::vector<std::int32_t> offsets{0, 25, 25, 26, 80};
  auto y = labels_of(80, {0.4, 0.2, 0.05}, random);
  const Vector<double> weights{0.7, 0.1, 2};
  for (const auto regularization : {quadratic, kl}) {
    for (const double eps : {0.03, 0.4, 10.0}) {
      for (const auto normalization : {RankSumNormalization::auc, RankSumNormalization::positives, RankSumNormalization::none}) {
        Vector<double> s = random_vector<double>(80, random), d(80, 0.0);
        const RankSumAucOptions o{.regularization = regularization,
                                  .eps_mode = EpsMode::absolute,
                                  .eps = eps,
                                  .weights = weights,
                                  .normalization = normalization,
                                  .renormalize = true};
        rank_sum_auc_loss_value_and_grad<double>(s, y, offsets, o, {}, d, ws);
        GradientReport report;
        check_gradient("scores", s, d, [&] { return rank_sum_auc_loss<double>(s, y, offsets, o, {}, ws).loss; }, report,
                       {.step = 1e-7});
        CAPTURE(regularization == kl, eps, report.where, report.numeric, report.analytic);
        CHECK(report.worst < 1e-5);
        double sum = 0, most = 0;
        for (const double g : d) sum += g, most = std::max(most, std::abs(g));
        CHECK(std::abs(sum) <= 1e-10 * std::max(1.0, most));
        Vector<double> scaled(80, 0.0);
        RankSumAucOptions large = o;
        large.scale_gradient = true;
        rank_sum_auc_loss_value_and_grad<double>(s, y, offsets, large, {}, scaled, ws);
        for (Index i = 26; i < 80; ++i) REQUIRE(scaled[i] == Approx(d[i] * eps * 54).margin(1e-12));
      }
    }
  }
}

TEMPLATE_TEST_CASE("M objectives cost one sort and equal M losses", "[ranking][rank_sum_auc]", float, double) {
  using T = TestType;
  Random random = random_stream(923);
  std::vector<std::int32_t> offsets{0, 0};
  for (int g = 0; g < 130; ++g) offsets.push_back(offsets.back() + static_cast<std::int32_t>(random.below(50)));
  const Index n = offsets.back();
  const Vector<T> s = random_vector<T>(n, random);
  const auto y = labels_of(n, {0.5, 0.1, 0.02, 0.0}, random);
  Padded<std::uint8_t> strided(n, 4);
  for (Index i = 0; i < n; ++i) std::copy_n(y.view().row(i), 4, strided.view().row(i));
  const Vector<double> weights{1, 0.5, 3, 2};
  const double tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-12;
  for (const auto regularization : {quadratic, kl}) {
    RankSumAucOptions o{.regularization = regularization, .weights = weights};
    Vector<double> auc(4);
    Vector<T> d(n, T(0)), sum(n, T(0));
    const auto all = loss_of<T>(s, strided.view(), offsets, o, auc, d);
    double total = 0;
    Index skipped = 0;
    for (Index m = 0; m < 4; ++m) {
      Matrix<std::uint8_t> one(n, 1);
      for (Index i = 0; i < n; ++i) one(i, 0) = y(i, m);
      const Vector<double> weight{weights[m]};
      RankSumAucOptions single = o;
      single.weights = weight;
      Vector<double> own(1);
      const auto r = loss_of<T>(s, one, offsets, single, own, sum);
      CHECK(r.valid == (m < 3));
      CHECK(own[0] == Approx(auc[m]).margin(1e-9));
      total += r.loss;
      skipped += r.skipped;
    }
    CHECK(all.loss == Approx(total).margin(1e-9));
    CHECK(all.skipped == skipped);
    CHECK((all.loss >= 0 && all.loss <= 4.5));
    for (Index i = 0; i < n; ++i)
      REQUIRE(static_cast<double>(d[i]) == Approx(static_cast<double>(sum[i])).epsilon(1e-3).margin(tolerance));
    // Any number of threads, no allocation, strided or not: the same bits.
    Threads threads{3};
    Workspace parallel(make_executor(threads, 3)), ws;
    Vector<T> d2(n, T(0)), d3(n, T(0));
    const auto r2 = rank_sum_auc_loss_value_and_grad<T>(s, y, offsets, o, {}, d2, parallel);
    CHECK((r2.loss == all.loss && std::equal(d.begin(), d.end(), d2.begin())));
    rank_sum_auc_loss<T>(s, y, offsets, o, {}, ws);
    const auto warm = [&] { rank_sum_auc_loss_value_and_grad<T>(s, y, offsets, o, {}, d3, ws); };
    warm();
    CHECK(count_allocations(warm) == 0);
  }
}

TEST_CASE("Rank-sum AUC loss: edges and errors", "[ranking][rank_sum_auc]") {
  Workspace ws;
  Vector<float> s{1, 2, 3, 4}, d(4, 0.0f);
  Vector<double> auc(2, 9.0);
  Matrix<std::uint8_t> y(4, 2);
  std::fill_n(y.data(), 8, std::uint8_t{0});
  auto r = rank_sum_auc_loss_value_and_grad<float>(s, y, {}, {}, auc, d, ws);
  CHECK((!r.valid && r.loss == 0 && r.skipped == 2 && auc[0] == 0 && d[0] == 0));
  y(3, 0) = 1;
  r = rank_sum_auc_loss_value_and_grad<float>(s, y, {}, {.eps = 0, .renormalize = true}, auc, d, ws);
  CHECK((r.valid && r.loss == 0 && r.skipped == 1 && auc[0] == 1 && auc[1] == 0));
  r = rank_sum_auc_loss<float>(VectorView<const float>(), MatrixView<const std::uint8_t>(nullptr, 0, 2), {}, {}, {}, ws);
  CHECK((!r.valid && r.loss == 0));
  s[1] = std::nanf("");
  y(0, 1) = 1;
  const std::vector<std::int32_t> offsets{0, 2, 4};
  d.fill(0);
  y(3, 1) = 1;
  r = rank_sum_auc_loss_value_and_grad<float>(s, y, offsets, {.eps = 4}, {}, d, ws);
  CHECK((std::isnan(r.loss) && std::isnan(d[0]) && std::isnan(d[1]) && d[2] > 0 && d[3] < 0));

  const auto message = [&](const RankSumAucOptions& o) {
    return error_of([&] { rank_sum_auc_loss_value_and_grad<float>(s, y, {}, o, auc, d, ws); });
  };
  const Vector<double> few{1}, negative{1, -1};
  d.fill(5);
  CHECK_THAT(message({.eps = -1}), contains("rank_sum_auc_loss_value_and_grad: eps"));
  CHECK_THAT(message({.weights = few}), contains("weights"));
  CHECK_THAT(message({.weights = negative}), contains("weights"));
  y(2, 1) = 2;
  CHECK_THAT(message({}), contains("labels that are 0 or 1"));
  CHECK((d[0] == 5 && d[3] == 5));
}
