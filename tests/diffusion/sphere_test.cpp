// Oracle: PyTorch (golden/dimerec.py); means of great-circle noise in closed form; invariants.
#include <recops/diffusion/sphere.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
double length(const T* x, Index n) {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::sqrt(sum);
}

template <class T>
Matrix<T> on_sphere(Index rows, Index cols, Random& random) {
  Matrix<T> m = random_matrix<T>(rows, cols, random);
  unit_rows<T>(m, m);
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("the sphere against PyTorch", "[diffusion][sphere][golden]", float, double) {
  using T = TestType;
  const Golden golden("dimerec");
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const NoiseSchedule schedule = NoiseSchedule::cosine(12);
  const auto alpha_bar = golden.values<double>("sphere.alpha_bar");
  for (Index t = 0; t <= 12; ++t) CHECK(std::abs(schedule.alpha_bar[t] - alpha_bar[static_cast<std::size_t>(t)]) < 1e-12);
  Padded<T> x0(golden.matrix<T>("sphere.x0").view()), eps(golden.matrix<T>("sphere.eps").view()),
      g(golden.matrix<T>("sphere.g").view()), v(golden.matrix<T>("exp.v").view());
  const auto t = golden.values<std::int64_t>("sphere.t");
  const Index rows = 7, cols = 6;
  Padded<T> y(rows, cols), dx(rows, cols), de(rows, cols);
  Workspace ws;
  const auto check = [&](const std::string& name, Padded<T>& m, double times) {
    Matrix<double> scaled(rows, cols);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < cols; ++j) scaled(i, j) = static_cast<double>(m(i, j)) / times;
    INFO(name);
    CHECK(max_difference(scaled.view(), golden.matrix<double>(name).view()) <= tolerance);
    CHECK(m.intact());
    if (times == 2) m = Padded<T>(rows, cols);
  };
  sphere_q_sample<T>(schedule, x0, t, eps, y, ws);
  for (int twice = 0; twice < 2; ++twice) sphere_q_sample_backward<T>(schedule, x0, t, eps, g, dx, de, ws);
  check("sphere.xt", y, 1), check("sphere.dx0", dx, 2), check("sphere.deps", de, 2);
  sphere_tangent<T>(x0, eps, y);
  for (int twice = 0; twice < 2; ++twice) sphere_tangent_backward<T>(x0, eps, g, dx, de);
  check("tangent.y", y, 1), check("tangent.dx", dx, 2), check("tangent.de", de, 2);
  sphere_exp<T>(x0, v, y);
  for (int twice = 0; twice < 2; ++twice) sphere_exp_backward<T>(x0, v, g, dx, de);
  check("exp.y", y, 1), check("exp.dx", dx, 2), check("exp.dv", de, 2);
  CHECK(count_allocations([&] {
          sphere_q_sample<T>(schedule, x0, t, eps, y, ws);
          sphere_q_sample_backward<T>(schedule, x0, t, eps, g, dx, {}, ws);
        }) == 0);
}

TEMPLATE_TEST_CASE("states stay on the sphere, and a perfect denoiser is recovered", "[diffusion][sphere]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  Random random = random_stream(61);
  Workspace ws;
  const NoiseSchedule schedule = NoiseSchedule::cosine(20);
  for (const Index cols : {2, 3, 17}) {
    for (const double eta : {0.0, 0.5, 1.0}) {
      const Matrix<T> x0 = on_sphere<T>(5, cols, random);
      Matrix<T> x(5, cols);
      RandomRow at{.seed = 3};
      sphere_start<T>(at, {}, x);
      for (Index to = 19; to >= 0; --to) {
        at.step = static_cast<std::uint32_t>(20 - to);
        sphere_step<T>(schedule, to, eta, x0, at, {}, x, ws);
        for (Index b = 0; b < 5; ++b) {
          CHECK(std::abs(length(x.row(b), cols) - 1) < tolerance);
          CHECK(std::abs(static_cast<double>(simd::dot(x.row(b), x0.row(b), cols)) - schedule.sqrt_alpha_bar[to]) <
                2 * tolerance);
        }
      }
      CHECK(max_difference(x.view(), x0.view()) == 0);
    }
  }
  // A thousand small steps back and forth do not leave it either.
  Matrix<T> x0 = on_sphere<T>(3, 8, random), x = x0;
  const NoiseSchedule many = NoiseSchedule::linear(1000);
  const std::vector<std::int32_t> all{1000};
  sphere_walk<T>(many, x0, all, {.at = {.seed = 1}}, x, ws);
  for (Index b = 0; b < 3; ++b) CHECK(std::abs(length(x.row(b), 8) - 1) < tolerance);
}

TEST_CASE("great-circle noise has its mean", "[diffusion][sphere]") {
  Random random = random_stream(62);
  Workspace ws;
  const Index rows = 1000, cols = 16;
  const NoiseSchedule schedule = NoiseSchedule::cosine(10);
  Matrix<double> x0(rows, cols), x(rows, cols), noise(rows, cols);
  const Matrix<double> one = on_sphere<double>(1, cols, random);
  for (Index b = 0; b < rows; ++b) std::copy_n(one.row(0), cols, x0.row(b));
  const std::vector<std::int32_t> t{4};
  const auto mean_of = [&](double& across) {
    double along = 0;
    Vector<double> sum(cols, 0.0);
    for (Index b = 0; b < rows; ++b) {
      along += simd::dot(x.row(b), one.row(0), cols) / static_cast<double>(rows);
      simd::axpy(1 / static_cast<double>(rows), x.row(b), sum.data(), cols);
    }
    simd::axpy(-along, one.row(0), sum.data(), cols);
    across = length(sum.data(), cols);
    return along;
  };
  double across = 0;
  sphere_q_sample<double>(schedule, x0, t, RandomRow{.seed = 5}, {}, x, noise, ws);
  CHECK(std::abs(mean_of(across) - schedule.sqrt_alpha_bar[4]) < 1e-12);  // every one of them lies at that angle
  CHECK(across < 0.2);
  // Two parts one after another have the same mean as one (here only on average). A row's deviation is below 0.3.
  const std::vector<double> before{schedule.alpha_bar[2]}, after{schedule.alpha_bar[4] / schedule.alpha_bar[2]};
  const NoiseSchedule parts = NoiseSchedule::from_alpha_bar(before), rest = NoiseSchedule::from_alpha_bar(after);
  Matrix<double> middle(rows, cols);
  const std::vector<std::int32_t> first{1};
  sphere_q_sample<double>(parts, x0, first, RandomRow{.seed = 6}, {}, middle, {}, ws);
  sphere_q_sample<double>(rest, middle, first, RandomRow{.seed = 7}, {}, x, {}, ws);
  CHECK(std::abs(mean_of(across) - schedule.sqrt_alpha_bar[4]) < 0.05);
  // The walk: about exp(-sum beta / 2), in closed form prod 1F1((D-1)/2; 1/2; -s^2/2), which for small s is close to it.
  const NoiseSchedule gentle = NoiseSchedule::linear(20, 0.005, 0.02);
  const std::vector<std::int32_t> last{20};
  sphere_walk<double>(gentle, x0, last, {.at = {.seed = 8}}, x, ws);
  double expected = 1;
  for (Index i = 1; i <= 20; ++i) {
    double sum = 0, term = 1;  // the series of 1F1
    const double s = gentle.beta[i] / 15, a = 7.5;
    for (int j = 0; j < 30; ++j) {
      sum += term;
      term *= (a + j) / (0.5 + j) * (-s / 2) / (j + 1);
    }
    expected *= sum;
  }
  CHECK(std::abs(mean_of(across) - expected) < 0.03);
}

TEST_CASE("noise on the sphere belongs to its row", "[diffusion][sphere]") {
  Random random = random_stream(63);
  Workspace ws;
  const NoiseSchedule schedule = NoiseSchedule::cosine(10);
  const Matrix<float> x0 = on_sphere<float>(6, 9, random);
  Matrix<float> x(6, 9), one(1, 9), start(6, 9);
  const std::vector<std::int64_t> ids{4, 9, 1, 7, 2, 30};
  const std::vector<std::int32_t> t{6};
  sphere_q_sample<float>(schedule, x0, t, RandomRow{.seed = 2}, ids, x, {}, ws);
  sphere_start<float>({.seed = 2}, ids, start);
  for (Index b = 0; b < 6; ++b) {
    const IndexView id = IndexView(ids).segment(b, 1);
    sphere_q_sample<float>(schedule, x0.view().middle_rows(b, 1), t, RandomRow{.seed = 2}, id, one, {}, ws);
    CHECK(max_difference(one.view(), x.view().middle_rows(b, 1)) == 0);
    sphere_start<float>({.seed = 2}, id, one);
    CHECK(max_difference(one.view(), start.view().middle_rows(b, 1)) == 0);
  }
}

TEST_CASE("edges of the sphere", "[diffusion][sphere]") {
  Workspace ws;
  const NoiseSchedule schedule = NoiseSchedule::cosine(10);
  // No direction: noise along x0 itself. Still a unit vector, at the right angle, without a gradient from it.
  const Matrix<double> x0{{0, 1, 0}, {1, 0, 0}};
  const Matrix<double> along{{0, 3, 0}, {0, 0, 0}}, g{{1, 1, 1}, {1, 1, 1}};
  Matrix<double> x(2, 3), dx(2, 3, 0.0), de(2, 3, 0.0);
  const std::vector<std::int32_t> t{5};
  sphere_q_sample<double>(schedule, x0, t, along, x, ws);
  for (Index b = 0; b < 2; ++b) {
    CHECK(std::abs(length(x.row(b), 3) - 1) < 1e-15);
    CHECK(std::abs(simd::dot(x.row(b), x0.row(b), 3) - schedule.sqrt_alpha_bar[5]) < 1e-15);
  }
  sphere_q_sample_backward<double>(schedule, x0, t, along, g, dx, de, ws);
  for (Index i = 0; i < 6; ++i) CHECK((de.data()[i] == 0 && dx.data()[i] == schedule.sqrt_alpha_bar[5]));
  // The same where rounding leaves something of it: noise that is x0, twice x0, almost x0.
  Random random = random_stream(754);
  const Matrix<float> unit0 = on_sphere<float>(50, 16, random), other = random_matrix<float>(50, 16, random);
  Matrix<float> near(50, 16), xt(50, 16);
  for (const auto& [scale, apart] :
       {std::pair(1.0f, 0.0f), std::pair(2.0f, 0.0f), std::pair(1.0f, 1e-7f), std::pair(1.0f, 1e-6f), std::pair(100.0f, 1e-4f)}) {
    for (Index i = 0; i < 800; ++i) near.data()[i] = scale * unit0.data()[i] + apart * other.data()[i];
    sphere_q_sample<float>(schedule, unit0, t, near, xt, ws);
    CAPTURE(scale, apart);
    for (Index b = 0; b < 50; ++b) {
      CHECK(std::abs(length(xt.row(b), 16) - 1) < 1e-6);
      CHECK(std::abs(simd::dot(xt.row(b), unit0.row(b), 16) - static_cast<float>(schedule.sqrt_alpha_bar[5])) < 1e-6f);
    }
  }
  // A row without length, and its gradient; NaN in one row.
  Matrix<double> rows{{0, 0, 0}, {3, 4, 0}, {std::numeric_limits<double>::quiet_NaN(), 0, 1}}, unit(3, 3), drows(3, 3, 0.0);
  CHECK(unit_rows<double>(rows, unit) == 1);
  CHECK((unit(0, 0) == 1 && unit(0, 1) == 0 && unit(1, 0) == Approx(0.6) && std::isnan(unit(2, 1))));
  unit_rows_backward<double>(rows, Matrix<double>(3, 3, 1.0).view(), drows);
  CHECK((drows(0, 0) == 0 && drows(1, 2) == Approx(0.2)));

  // Lengths whose square overflows, infinite ones.
  const Matrix<float> large{{3e30f, -4e30f}, {std::numeric_limits<float>::infinity(), 0}};
  Matrix<float> small(2, 2), dlarge(2, 2, 0.0f);
  CHECK(unit_rows<float>(large, small) == 0);
  CHECK((small(0, 0) == Approx(0.6) && small(0, 1) == Approx(-0.8) && std::isnan(small(1, 0))));
  unit_rows_backward<float>(large.view().middle_rows(0, 1), Matrix<float>(1, 2, 1e30f).view(), dlarge.view().middle_rows(0, 1));
  CHECK((dlarge(0, 0) == 0 && dlarge(0, 1) == 0));

  // Noise whose square overflows is that direction too, and its gradient as much smaller.
  const Matrix<float> axis{{0.6f, 0, 0.8f, 0}}, noise{{1, 1, 0, 0}}, huge{{1e20f, 1e20f, 0, 0}}, largest{{3e38f, 3e38f, 0, 0}},
      gone{{std::numeric_limits<float>::infinity(), 1, 0, 0}}, ones(1, 4, 1.0f);
  Matrix<float> of_noise(1, 4), of_huge(1, 4), dn(1, 4, 0.0f), dhuge(1, 4, 0.0f), dx0(1, 4, 0.0f), dx0_huge(1, 4, 0.0f);
  sphere_q_sample<float>(schedule, axis, t, noise, of_noise, ws);
  for (const Matrix<float>* e : {&huge, &largest}) {
    sphere_q_sample<float>(schedule, axis, t, *e, of_huge, ws);
    CHECK(max_difference(of_noise.view(), of_huge.view()) < 1e-6);
  }
  sphere_q_sample<float>(schedule, axis, t, gone, of_huge, ws);
  CHECK(std::isnan(of_huge(0, 0)));
  const Matrix<float> diagonal{{std::sqrt(0.5f), std::sqrt(0.5f), 0, 0}}, far_along{{3e38f, 3e38f, 0, 1e35f}};
  sphere_q_sample_backward<float>(schedule, diagonal, t, far_along, ones, dx0_huge, dhuge, ws);
  for (Index j = 0; j < 4; ++j) CHECK((std::isfinite(dx0_huge(0, j)) && std::isfinite(dhuge(0, j))));
  dx0_huge.fill(0), dhuge.fill(0);
  sphere_q_sample_backward<float>(schedule, axis, t, noise, ones, dx0, dn, ws);
  sphere_q_sample_backward<float>(schedule, axis, t, huge, ones, dx0_huge, dhuge, ws);
  CHECK(max_difference(dx0.view(), dx0_huge.view()) < 1e-6);
  for (Index j = 0; j < 4; ++j) CHECK(1e20f * dhuge(0, j) == Approx(dn(0, j)).epsilon(1e-5).margin(1e-6));
  dx0_huge.fill(0), dhuge.fill(0);
  sphere_q_sample_backward<float>(schedule, axis, t, largest, ones, dx0_huge, dhuge, ws);
  for (Index j = 0; j < 4; ++j) CHECK((std::isfinite(dx0_huge(0, j)) && std::isfinite(dhuge(0, j))));

  x.fill(7);
  const auto message = [&](auto&& f) { return error_of(f); };
  CHECK(message([&] {
          sphere_q_sample<double>(schedule, x0.view().middle_cols(0, 1), t, along.view().middle_cols(0, 1),
                                  x.view().middle_cols(0, 1), ws);
        }).find("two columns") != std::string::npos);
  const std::vector<std::int32_t> late{11}, three{1, 2, 3};
  CHECK(message([&] { sphere_q_sample<double>(schedule, x0, late, along, x, ws); }).find("steps from 0 to 10") !=
        std::string::npos);
  CHECK(message([&] { sphere_q_sample<double>(schedule, x0, three, along, x, ws); }).find("t: ") != std::string::npos);
  CHECK(message([&] { sphere_step<double>(schedule, 3, 1.5, x0, {}, {}, x, ws); }).find("eta") != std::string::npos);
  CHECK(message([&] { sphere_step<double>(schedule, 11, 0, x0, {}, {}, x, ws); }).find("to") != std::string::npos);
  CHECK(*std::min_element(x.data(), x.data() + 6) == 7);
  Matrix<double> none(0, 3);
  sphere_q_sample<double>(schedule, none, t, none, none.view(), ws);
}
