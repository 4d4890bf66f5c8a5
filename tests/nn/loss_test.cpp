// Oracle: the definition in long double; gradients against central differences. (PyTorch's numbers: golden_test.cpp.)
#include <recops/nn/loss.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
struct Problem {
  Matrix<T> logits, labels, weights;
  Vector<T> task_weights;
  Problem(Index rows, Index tasks, Random& random)
      : logits(random_matrix<T>(rows, tasks, random)), labels(rows, tasks), weights(rows, tasks), task_weights(tasks) {
    for (Index i = 0; i < rows * tasks; ++i) {
      labels.data()[i] = static_cast<T>(i % 3 == 0 ? random.uniform() : std::floor(2 * random.uniform()));
      weights.data()[i] = static_cast<T>(random.chance(0.3) ? 0.0 : random.uniform(0.1, 2));
    }
    for (T& w : task_weights) w = static_cast<T>(random.uniform(-0.5, 2));
  }
};

// L_t of one task by the book.
template <class T>
long double task_loss(const Problem<T>& p, bool weighted, Index t) {
  long double sum = 0, mass = 0;
  for (Index b = 0; b < p.logits.rows(); ++b) {
    const long double w = weighted ? p.weights(b, t) : T(1), z = p.logits(b, t), y = p.labels(b, t);
    if (w == 0) continue;
    const long double q = 1 / (1 + std::exp(-z));
    sum -= w * (y * std::log(q) + (1 - y) * std::log(1 - q));
    mass += w;
  }
  return mass > 0 ? sum / mass : 0;
}

}  // namespace

TEMPLATE_TEST_CASE("bce_with_logits equals its definition", "[nn][loss]", float, double) {
  using T = TestType;
  const double tolerance = 10 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(71);
  for (const Index rows : {0, 1, 2, 17, 300}) {
    for (const Index tasks : {0, 1, 3}) {
      const Problem<T> p(rows, tasks, random);
      Padded<T> logits(p.logits.view()), labels(p.labels.view()), weights(p.weights.view());
      for (int mode = 0; mode < 4; ++mode) {
        const bool weighted = mode % 2 != 0, tasked = mode / 2 != 0;
        Vector<T> losses(tasks, T(9));
        const MatrixView<const T> w = weighted ? MatrixView<const T>(weights) : MatrixView<const T>();
        const VectorView<const T> tw = tasked ? VectorView<const T>(p.task_weights) : VectorView<const T>();
        const double total = bce_with_logits<T>(logits, labels, {.weights = w, .task_weights = tw}, losses);
        Matrix<T> dlogits(rows, tasks, T(0));
        CHECK(bce_with_logits_value_and_grad<T>(logits, labels, {.weights = w, .task_weights = tw}, {}, dlogits) == total);
        long double expected = 0;
        for (Index t = 0; t < tasks; ++t) {
          const long double one = task_loss(p, weighted, t);
          expected += (tasked ? p.task_weights[t] : T(1)) * one;
          CHECK(static_cast<double>(losses[t]) == Approx(static_cast<double>(one)).margin(tolerance));
        }
        CAPTURE(rows, tasks, mode);
        CHECK(total == Approx(static_cast<double>(expected)).margin(1e-12));
      }
    }
  }
}

TEST_CASE("the gradient of bce_with_logits agrees with central differences and adds", "[nn][loss]") {
  Random random = random_stream(72);
  Problem<double> p(19, 3, random);
  for (const bool weighted : {false, true}) {
    const MatrixView<const double> w = weighted ? p.weights.view() : MatrixView<const double>();
    Padded<double> dlogits(19, 3, 0.5);
    bce_with_logits_value_and_grad<double>(
        p.logits, p.labels, {.weights = weighted ? MatrixView<const double>(p.weights) : w, .task_weights = p.task_weights}, {},
        dlogits);
    for (Index b = 0; b < 19; ++b) {
      for (Index t = 0; t < 3; ++t) {
        const double z = p.logits(b, t), h = 1e-5;
        p.logits(b, t) = z + h;
        const double up = bce_with_logits<double>(p.logits, p.labels, {.weights = w, .task_weights = p.task_weights});
        p.logits(b, t) = z - h;
        const double down = bce_with_logits<double>(p.logits, p.labels, {.weights = w, .task_weights = p.task_weights});
        p.logits(b, t) = z;
        CHECK(dlogits(b, t) - 0.5 == Approx((up - down) / (2 * h)).margin(1e-9));
      }
    }
    CHECK(dlogits.intact());
  }
}

TEMPLATE_TEST_CASE("logits of +-10^4 are exact", "[nn][loss]", float, double) {
  using T = TestType;
  const Matrix<T> logits{{T(1e4)}, {T(-1e4)}, {T(1e4)}, {T(-1e4)}}, labels{{1}, {0}, {0}, {1}};
  Matrix<T> d(4, 1, T(0));
  const double loss = bce_with_logits_value_and_grad<T>(logits, labels, {}, {}, d);
  CHECK(loss == 5000);
  CHECK((d(0, 0) == 0 && d(1, 0) == 0 && d(2, 0) == T(0.25) && d(3, 0) == T(-0.25)));
  const T most = std::numeric_limits<T>::max();
  const Matrix<T> far{{most}, {-most}}, right{{1}, {0}};
  CHECK(bce_with_logits<T>(far, right) == 0);
}

TEMPLATE_TEST_CASE("what has weight 0 is not read; a task without samples loses 0", "[nn][loss]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  Matrix<T> logits{{1, nan, nan}, {nan, T(0.5), nan}}, labels{{1, nan, nan}, {nan, 0, nan}}, weights{{2, 0, 0}, {0, 3, 0}},
      d(2, 3, T(7));
  Vector<T> losses(3, T(9));
  const double total = bce_with_logits_value_and_grad<T>(logits, labels, {.weights = weights}, losses, d);
  const double first = std::log1p(std::exp(-1.0)), second = std::log1p(std::exp(0.5));
  CHECK(total == Approx(first + second).epsilon(1e-6));
  CHECK((losses[0] == Approx(first).epsilon(1e-6) && losses[2] == 0));
  CHECK((d(0, 1) == 7 && d(0, 2) == 7 && d(1, 0) == 7 && d(1, 2) == 7));
  CHECK((d(0, 0) < 7 && d(1, 1) > 7));
}

TEMPLATE_TEST_CASE("a NaN stays in its task and its sample", "[nn][loss]", float, double) {
  using T = TestType;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const Matrix<T> logits{{1, 2}, {nan, 1}, {0, 1}}, labels(3, 2, T(1));
  Matrix<T> d(3, 2, T(0));
  Vector<T> losses(2);
  CHECK(std::isnan(bce_with_logits_value_and_grad<T>(logits, labels, {}, losses, d)));
  CHECK((std::isnan(losses[0]) && std::isfinite(losses[1])));
  for (Index b = 0; b < 3; ++b)
    for (Index t = 0; t < 2; ++t) CHECK(std::isnan(d(b, t)) == (b == 1 && t == 0));
  // A NaN weight is not a task without samples.
  const Matrix<T> good(3, 2, T(0));
  Matrix<T> weights(3, 2, T(1));
  weights(2, 1) = nan;
  bce_with_logits<T>(good, labels, {.weights = weights}, losses);
  CHECK((std::isfinite(losses[0]) && std::isnan(losses[1])));
}

TEST_CASE("bce_with_logits refuses shapes that disagree and writes nothing", "[nn][loss]") {
  const Matrix<float> z(4, 2, 0.0f), odd(4, 3, 0.0f);
  const Vector<float> three(3, 1.0f);
  Matrix<float> d(4, 2, 7.0f), wrong(3, 2, 7.0f);
  Vector<float> losses(2, 7.0f), many(3, 7.0f);
  CHECK(error_of([&] { (void)bce_with_logits<float>(z, odd); }) == "bce_with_logits: labels: expected shape [4, 2], got [4, 3]");
  CHECK(error_of([&] { (void)bce_with_logits<float>(z, z, {.weights = odd}); }) ==
        "bce_with_logits: weights: expected shape [4, 2], got [4, 3]");
  CHECK(error_of([&] { (void)bce_with_logits<float>(z, z, {.task_weights = three}); }) ==
        "bce_with_logits: task_weights: expected size 2, got 3");
  CHECK(error_of([&] { (void)bce_with_logits<float>(z, z, {}, many); }) ==
        "bce_with_logits: task_losses: expected size 2, got 3");
  CHECK(error_of([&] { (void)bce_with_logits_value_and_grad<float>(z, z, {}, losses, wrong); }) ==
        "bce_with_logits_value_and_grad: dlogits: expected shape [4, 2], got [3, 2]");
  CHECK(error_of([&] { (void)bce_with_logits_value_and_grad<float>(odd, z, {}, losses, d); }) ==
        "bce_with_logits_value_and_grad: labels: expected shape [4, 3], got [4, 2]");
  for (Index i = 0; i < 8; ++i) CHECK(d.data()[i] == 7);
  CHECK((losses[0] == 7 && many[0] == 7 && wrong(0, 0) == 7));
}

TEST_CASE("bce_with_logits allocates nothing", "[nn][loss]") {
  Random random = random_stream(73);
  const Problem<float> p(50, 2, random);
  Matrix<float> d(50, 2, 0.0f);
  Vector<float> losses(2);
  const AllocationCounter counter;
  (void)bce_with_logits_value_and_grad<float>(p.logits, p.labels, {.weights = p.weights, .task_weights = p.task_weights}, losses,
                                              d);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("three million samples: the mean is accurate in float", "[nn][loss]") {
  const Index n = 3000000;
  const Matrix<float> logits(n, 1, 0.3f), labels(n, 1, 0.0f);
  CHECK(bce_with_logits<float>(logits, labels) == Approx(std::log1p(std::exp(static_cast<double>(0.3f)))).epsilon(1e-9));
}

TEMPLATE_TEST_CASE("label smoothing is torch's loss of smoothed labels", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("losses");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Matrix<T> z = golden.matrix<T>("bce.z"), y = golden.matrix<T>("bce.y"), w = golden.matrix<T>("bce.w");
  Matrix<T> dz(8, 3, T(0));
  const BceOptions<T> options{.weights = w, .label_smoothing = 0.1};
  CHECK(std::abs(bce_with_logits_value_and_grad<T>(z, y, options, {}, dz) - golden.scalar("bce_smooth.loss")) < bound);
  CHECK(max_difference(dz.view(), golden.matrix<double>("bce_smooth.d0").view()) < bound);
  CHECK(error_of([&] { (void)bce_with_logits<T>(z, y, {.label_smoothing = 1}); }) ==
        "bce_with_logits: label_smoothing: expected 0 <= label_smoothing < 1, got 1");
}
