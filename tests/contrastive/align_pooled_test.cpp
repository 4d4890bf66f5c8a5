// Oracles: PyTorch (golden/contrastive.py); central differences.
#include <recops/contrastive/align_pooled.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("aligned sequences are PyTorch's", "[contrastive][golden]", float, double) {
  using T = TestType;
  const Golden golden("contrastive");
  Workspace ws;
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Matrix<T> x = golden.matrix<T>("align.x"), y = golden.matrix<T>("align.y");
  const auto xo = golden.values<std::int64_t>("align.xo"), yo = golden.values<std::int64_t>("align.yo");
  const std::vector<std::int32_t> users{0, 1, 2, 3, 0};
  const AlignOptions options{.log_scale = 0.7, .ids = users};
  Padded<T> dx(x.rows(), x.cols()), dy(y.rows(), y.cols());
  double dscale = 0;
  const JaggedView<const T> a(x.view(), xo), b(y.view(), yo);
  const auto run = [&](double upstream) { return align_pooled_value_and_grad<T>(a, b, options, upstream, dx, dy, &dscale, ws); };
  const double loss = run(1);
  CHECK(std::abs(loss - golden.scalar("align.loss")) < bound);
  CHECK(max_difference(dx.view(), golden.matrix<double>("align.dx").view()) < bound);
  CHECK(max_difference(dy.view(), golden.matrix<double>("align.dy").view()) < bound);
  CHECK(std::abs(dscale - golden.scalar("align.dls")) < bound);
  CHECK(align_pooled<T>(a, b, options, ws) == loss);
  CHECK(count_allocations([&] { run(-1); }) == 0);
  CHECK(std::abs(static_cast<double>(dx(0, 0))) < bound);  // -1 takes back what 1 gave
  CHECK((dx.intact() && dy.intact()));
}

TEST_CASE("mean_pool and its gradient; nobody with both sequences; errors", "[contrastive]") {
  Workspace ws;
  const Matrix<double> x{{1, 2}, {3, 4}, {5, 9}};
  const std::vector<int> offsets{0, 2, 2, 3}, other{0, 0, 3, 3}, ids{1, 2};
  Matrix<double> mean(3, 2, 5.0), dx(3, 2, 1.0);
  mean_pool<double>(JaggedView<const double>(x.view(), offsets), mean, ws);
  CHECK(max_difference(mean.view(), Matrix<double>{{2, 3}, {0, 0}, {5, 9}}.view()) == 0);
  mean_pool_backward<double>(JaggedView<const double>(x.view(), offsets), mean, dx);
  CHECK(max_difference(dx.view(), Matrix<double>{{2, 2.5}, {2, 2.5}, {6, 10}}.view()) == 0);
  Matrix<float> many(1000000, 1, 0.1f), one(1, 1);
  mean_pool<float>(JaggedView<const float>(many.view()), one, ws);
  CHECK(std::abs(one(0, 0) - 0.1f) < 6e-7f);
  const JaggedView<const double> a(x.view(), offsets), b(x.view(), other), c(x.view());
  CHECK(align_pooled_value_and_grad<double>(a, b, {}, 1, dx, dx, nullptr, ws) == 0);
  CHECK(dx(2, 1) == 10);
  CHECK(error_of([&] { align_pooled<double>(a, c, {}, ws); }) == "align_pooled: y: expected 3 sequences, got 1");
  CHECK(error_of([&] { align_pooled<double>(a, b, {.ids = ids}, ws); }) == "align_pooled: ids: expected size 3, got 2");
  CHECK(error_of([&] { align_pooled_value_and_grad<double>(a, b, {}, 1, dx, mean.view().middle_rows(0, 2), nullptr, ws); }) ==
        "align_pooled_value_and_grad: dy: expected shape [3, 2], got [2, 2]");
}

TEMPLATE_TEST_CASE("gaps and threads change no bit of align_pooled; a NaN of nobody's pair is not read", "[contrastive]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(3301);
  Workspace ws;
  Threads threads{3};
  Workspace many(make_executor(threads, 3));
  const std::vector<std::int64_t> xo{0, 3, 3, 4, 9, 12}, yo{0, 2, 5, 6, 10, 11};
  Matrix<T> x = random_matrix<T>(12, 5, random), y = random_matrix<T>(11, 5, random);
  const auto run = [&](auto&& in, auto&& other, auto&& dx, auto&& dy, Workspace& scratch) {
    double dscale = 0;
    const double loss =
        align_pooled_value_and_grad<T>(JaggedView<const T>(MatrixView<const T>(in), xo),
                                       JaggedView<const T>(MatrixView<const T>(other), yo), {}, 1, dx, dy, &dscale, scratch);
    return std::pair(loss, dscale);
  };
  Matrix<T> dx(12, 5, T(0)), dy(11, 5, T(0));
  const auto plain = run(x, y, dx, dy, ws);
  Padded<T> wx(x.view()), wy(y.view()), wdx(12, 5), wdy(11, 5);
  CHECK(run(wx, wy, wdx, wdy, many) == plain);
  CHECK((max_difference(dx.view(), wdx.view()) == 0 && max_difference(dy.view(), wdy.view()) == 0));
  CHECK((wdx.intact() && wdy.intact()));
  y(3, 2) = std::numeric_limits<T>::quiet_NaN();  // of the second user, who has no x: of no pair
  Matrix<T> ex(12, 5, T(0)), ey(11, 5, T(0));
  CHECK(run(x, y, ex, ey, ws) == plain);
  CHECK((max_difference(dx.view(), ex.view()) == 0 && max_difference(dy.view(), ey.view()) == 0));
  x(3, 1) = std::numeric_limits<T>::quiet_NaN();  // of the third, a candidate of everybody
  CHECK(std::isnan(run(x, y, ex, ey, ws).first));
}
