// Oracles: PyTorch (golden/contrastive.py); the formula in double; central differences.
#include <recops/contrastive/in_batch.hpp>
#include <recops/train/gradient_check.hpp>

#include "contrastive/reference.hpp"
#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("in-batch losses are PyTorch's", "[contrastive][golden]", float, double) {
  using T = TestType;
  const Golden golden("contrastive");
  Workspace ws;
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Matrix<T> x = golden.matrix<T>("pairs.x"), y = golden.matrix<T>("pairs.y"), views = golden.matrix<T>("views");
  const auto w = golden.values<T>("pairs.w"), xb = golden.values<T>("pairs.xb"), yb = golden.values<T>("pairs.yb");
  const auto xid = golden.values<std::int64_t>("pairs.xid"), yid = golden.values<std::int64_t>("pairs.yid");
  for (const bool all : {false, true}) {
    const std::string name = all ? "symmetric_all" : "symmetric";
    CAPTURE(name);
    InBatchOptions<T> options{.log_scale = 0.7};
    if (all) options = {.log_scale = 0.7, .weights = w, .u_ids = xid, .v_ids = yid, .u_bias = xb, .v_bias = yb};
    Padded<T> dx(x.rows(), x.cols()), dy(x.rows(), x.cols());
    double dscale = 0;
    const InfoNceGradient<T> gradient{.du = dx, .dv = dy, .dlog_scale = &dscale};
    const double loss = inbatch_symmetric_value_and_grad<T>(x, y, options, gradient, ws);
    CHECK(std::abs(loss - golden.scalar(name + ".loss")) < bound);
    CHECK(max_difference(dx.view(), golden.matrix<double>(name + ".dx").view()) < bound);
    CHECK(max_difference(dy.view(), golden.matrix<double>(name + ".dy").view()) < bound);
    CHECK(std::abs(dscale - golden.scalar(name + ".dls")) < bound);
    CHECK(inbatch_symmetric<T>(x, y, options, ws) == loss);
    CHECK(count_allocations([&] { inbatch_symmetric_value_and_grad<T>(x, y, options, gradient, ws); }) == 0);
    CHECK((dx.intact() && dy.intact()));
  }
  Padded<T> dz(8, views.cols());
  const double loss = nt_xent_value_and_grad<T>(views, std::log(2.0), dz, ws);
  CHECK(std::abs(loss - golden.scalar("nt_xent.loss")) < bound);
  CHECK(max_difference(dz.view(), golden.matrix<double>("nt_xent.dz").view()) < bound);
  CHECK(nt_xent<T>(views, std::log(2.0), ws) == loss);
}

TEMPLATE_TEST_CASE("the symmetric loss over several blocks", "[contrastive]", float, double) {
  using T = TestType;
  Random random = random_stream(911);
  Workspace ws;
  Threads threads{3};
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  for (const Index n : {1, 2, 257}) {
    CAPTURE(n);
    const Matrix<double> u = random_matrix<double>(n, 5, random), v = random_matrix<double>(n, 5, random);
    Matrix<T> x(n, 5), y(n, 5);
    std::vector<std::int32_t> ids;
    std::vector<T> weights;
    for (Index i = 0; i < n * 5; ++i) {
      x.data()[i] = static_cast<T>(u.data()[i]);
      y.data()[i] = static_cast<T>(v.data()[i]);
    }
    for (Index i = 0; i < n; ++i) {
      ids.push_back(static_cast<std::int32_t>(random.below(20)));
      weights.push_back(i > 0 && random.chance(0.1) ? T(0) : T(1 + i % 3));
      if (weights.back() == T(0)) x(i, 2) = std::numeric_limits<T>::quiet_NaN();  // left out: not read
    }
    const auto at = [](const auto& list, Index i) { return list[static_cast<std::size_t>(i)]; };
    const auto side = [&](const Matrix<double>& a, const Matrix<double>& b) {
      return infonce_reference(
          a, b, 0.5, [](Index, Index) { return 0.0; },
          [&](Index i, Index j) { return at(weights, j) == T(0) || (at(ids, i) == at(ids, j) && i != j); },
          [](Index i, Index j) { return i == j ? 1.0 : 0.0; }, [&](Index i) { return static_cast<double>(at(weights, i)); });
    };
    const auto one = side(u, v), other = side(v, u);
    const InBatchOptions<T> options{.log_scale = 0.5, .weights = weights, .u_ids = ids, .v_ids = ids};
    Padded<T> dx(n, 5), dy(n, 5), sx(n, 5), sy(n, 5);
    double dscale = 0, shared = 0;
    const double loss =
        inbatch_symmetric_value_and_grad<T>(x, y, options, {.du = dx, .dv = dy, .dlog_scale = &dscale, .upstream = 2}, ws);
    CHECK(std::abs(loss - (one.loss + other.loss) / 2) < bound);
    Matrix<double> du(n, 5), dv(n, 5);
    for (Index i = 0; i < n * 5; ++i) {
      du.data()[i] = one.du.data()[i] + other.dv.data()[i];
      dv.data()[i] = one.dv.data()[i] + other.du.data()[i];
    }
    CHECK(max_difference(dx.view(), du.view()) < bound);
    CHECK(max_difference(dy.view(), dv.view()) < bound);
    CHECK(std::abs(dscale - one.dlog_scale - other.dlog_scale) < 10 * bound);
    Workspace many(make_executor(threads, 3));
    CHECK(inbatch_symmetric_value_and_grad<T>(x, y, options, {.du = sx, .dv = sy, .dlog_scale = &shared, .upstream = 2}, many) ==
          loss);
    CHECK(max_difference(dx.view(), sx.view()) == 0);
    CHECK(max_difference(dy.view(), sy.view()) == 0);
    CHECK(shared == dscale);
  }
}

TEST_CASE("the gradient of NT-Xent and of one batch against itself", "[contrastive]") {
  Random random = random_stream(912);
  Workspace ws;
  Matrix<double> z = random_matrix<double>(6, 3, random), dz(6, 3, 0.0), same(6, 3, 0.0);
  nt_xent_value_and_grad<double>(z, 0.4, dz, ws);
  inbatch_symmetric_value_and_grad<double>(z, z, {.log_scale = -0.5}, {.du = same, .dv = same}, ws);  // both sides are z
  GradientReport report;
  check_gradient(
      "z", leaf_values(z), leaf_values(std::as_const(dz)), [&] { return nt_xent<double>(z, 0.4, ws); }, report);
  check_gradient(
      "same", leaf_values(z), leaf_values(std::as_const(same)),
      [&] { return inbatch_symmetric<double>(z, z, {.log_scale = -0.5}, ws); }, report);
  CAPTURE(report.where);
  CHECK(report.worst < 1e-7);
}

TEST_CASE("a pair whose logits overflow leaves other gradients as they are, kept or made again", "[contrastive]") {
  Workspace ws;
  const Matrix<float> u{{3e38f, 1}, {0, 1}, {0, 1}}, v{{1, 0}, {2, 0}, {0, -200}};  // row 0 and column 1 meet at infinity
  Matrix<float> du(3, 2, 0.0f), dv(3, 2, 0.0f), du_again(3, 2, 0.0f), dv_again(3, 2, 0.0f);
  CHECK(!std::isfinite(inbatch_symmetric_value_and_grad<float>(u, v, {}, {.du = du, .dv = dv}, ws)));
  inbatch_symmetric_value_and_grad<float>(u, v, {.kept_bytes = 0}, {.du = du_again, .dv = dv_again}, ws);
  for (Index d = 0; d < 2; ++d) {
    CHECK(std::isnan(du_again(0, d)));
    CHECK(std::isnan(dv_again(1, d)));
    for (const Index i : {1, 2}) CHECK(du_again(i, d) == du(i, d));  // a NaN would not be
    for (const Index i : {0, 2}) CHECK(dv_again(i, d) == dv(i, d));
  }
}

TEST_CASE("errors and empty batches of in-batch losses", "[contrastive]") {
  Workspace ws;
  const Matrix<float> none(0, 4), x(3, 4, 1.0f), y(4, 4, 1.0f);
  Matrix<float> dx(3, 4, 7.0f), small(2, 4);
  const std::vector<int> two{0, 1};
  CHECK(inbatch_symmetric<float>(none, none, {}, ws) == 0);
  CHECK(nt_xent<float>(none, 1, ws) == 0);
  CHECK(error_of([&] { inbatch_symmetric<float>(x, y, {}, ws); }) == "inbatch_symmetric: v: expected shape [3, 4], got [4, 4]");
  CHECK(error_of([&] { inbatch_symmetric<float>(x, x, {.u_ids = two}, ws); }) ==
        "inbatch_symmetric: u_ids: expected size 3, got 2");
  CHECK(error_of([&] { inbatch_symmetric_value_and_grad<float>(x, x, {}, {.du = dx, .dv = small}, ws); }) ==
        "inbatch_symmetric_value_and_grad: dv: expected shape [3, 4], got [2, 4]");
  CHECK(error_of([&] { nt_xent_value_and_grad<float>(x, 0, dx, ws); }).find("an even number") != std::string::npos);
  CHECK(dx(0, 0) == 7);
}
