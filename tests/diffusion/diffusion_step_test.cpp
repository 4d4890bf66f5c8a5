// Oracles: the formula in double, number by number; central differences.
#include <recops/diffusion/diffusion_step.hpp>
#include <recops/diffusion/q_sample.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// The step from its formula: x and previous change in place.
void reference(const SamplerPlan& plan, std::size_t i, Matrix<double>& x, const Matrix<double>& m, const Matrix<double>& null,
               Matrix<double>& previous, const Matrix<double>& z) {
  const SamplerStep& s = plan.steps[i];
  const double w = plan.options.guidance, c = plan.options.clip_at;
  for (Index b = 0; b < x.rows(); ++b) {
    std::vector<double> p;
    double length = 0;
    for (Index j = 0; j < x.cols(); ++j) {
      p.push_back(s.x0_x * x(b, j) + s.x0_m * ((1 + w) * m(b, j) - w * null(b, j)));
      if (plan.options.clip == ClipX0::box) p.back() = std::clamp(p.back(), -c, c);
      length += p.back() * p.back();
    }
    length = std::sqrt(length);
    for (Index j = 0; j < x.cols(); ++j) {
      double v = p[static_cast<std::size_t>(j)];
      if (plan.options.clip == ClipX0::norm && length > c) v *= c / length;
      if (plan.options.clip == ClipX0::unit && length > 0) v /= length;
      x(b, j) = s.x * x(b, j) + s.p * v + s.previous * previous(b, j) + s.noise * z(b, j);
      previous(b, j) = v;
    }
  }
}

const NoiseSchedule& schedule() {
  static const NoiseSchedule s = NoiseSchedule::cosine(40);
  return s;
}

std::vector<SamplerPlan> plans() {
  std::vector<SamplerPlan> all;
  for (const Prediction kind : {Prediction::x0, Prediction::epsilon, Prediction::v})
    for (const ClipX0 clip : {ClipX0::none, ClipX0::box, ClipX0::norm, ClipX0::unit})
      for (const double w : {0.0, 2.0, -1.0}) {
        const SamplerMethod methods[] = {SamplerMethod::ddpm, SamplerMethod::ddim, SamplerMethod::dpm_solver};
        all.emplace_back(schedule(), SamplerOptions{.method = methods[all.size() % 3],
                                                    .steps = 5,
                                                    .prediction = kind,
                                                    .eta = 0.7,
                                                    .guidance = w,
                                                    .clip = clip,
                                                    .clip_at = 0.8});
      }
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("a step is its formula, with noise given and drawn", "[diffusion][step]", float, double) {
  using T = TestType;
  Random random = random_stream(701);
  const double bound = std::is_same_v<T, float> ? 2e-6 : 1e-13;
  double worst = 0;
  for (const SamplerPlan& plan : plans()) {
    for (const Index cols : {1, 7, 8, 64, 67}) {
      const Index rows = 3;
      Matrix<double> x = random_matrix<double>(rows, cols, random), previous = random_matrix<double>(rows, cols, random),
                     z(rows, cols);
      const Matrix<T> m = random_matrix<T>(rows, cols, random), null = random_matrix<T>(rows, cols, random);
      Padded<T> own(rows, cols), kept(rows, cols), given(rows, cols);
      const RandomRow at{.seed = 5, .sample = 2};
      const std::int64_t ids[] = {9, 123456789012, 4};
      Matrix<T> drawn(rows, cols);
      RandomRow row = at;
      row.step = 2;
      row.purpose = RandomPurpose::sampler_noise;
      simd::fill_normal<T>(row, IndexView(ids, 3), drawn.view());
      Matrix<double> dm(rows, cols), dnull(rows, cols);
      for (Index b = 0; b < rows; ++b)
        for (Index j = 0; j < cols; ++j) {
          own(b, j) = given(b, j) = static_cast<T>(x(b, j));
          kept(b, j) = static_cast<T>(previous(b, j));
          x(b, j) = static_cast<double>(own(b, j));
          previous(b, j) = static_cast<double>(kept(b, j));
          z(b, j) = static_cast<double>(drawn(b, j));
          dm(b, j) = static_cast<double>(m(b, j));
          dnull(b, j) = static_cast<double>(null(b, j));
        }
      Padded<T> kept_too{MatrixView<const T>(kept.view())};
      reference(plan, 1, x, dm, dnull, previous, z);
      diffusion_step<T>(plan, 1, own.view(), m, null, kept.view(), at, IndexView(ids, 3));
      diffusion_step<T>(plan, 1, given.view(), m, null, kept_too.view(), MatrixView<const T>(drawn));
      double most = 1;
      for (Index k = 0; k < rows * cols; ++k) most = std::max({most, std::abs(x.data()[k]), std::abs(previous.data()[k])});
      worst = std::max({worst, max_difference(own.view(), x.view()) / most, max_difference(kept.view(), previous.view()) / most});
      CHECK(max_difference(own.view(), given.view()) <= 4 * bound * most);
      CHECK((own.intact() && kept.intact() && given.intact()));
    }
  }
  CHECK(worst < 4 * bound);
}

TEST_CASE("gradients of a step with every clip, guided and multistep", "[diffusion][step]") {
  Random random = random_stream(702);
  Workspace ws;
  for (const SamplerPlan& plan : plans()) {
    const Index rows = 2, cols = 5;
    Matrix<double> x = random_matrix<double>(rows, cols, random), m = random_matrix<double>(rows, cols, random),
                   null = random_matrix<double>(rows, cols, random), previous = random_matrix<double>(rows, cols, random);
    const Matrix<double> z = random_matrix<double>(rows, cols, random), g = random_matrix<double>(rows, cols, random),
                         h = random_matrix<double>(rows, cols, random);
    const auto loss = [&] {
      Matrix<double> y = x, p = previous;
      diffusion_step<double>(plan, 2, y, m, null, p, z.view());
      double sum = 0;
      for (Index i = 0; i < rows * cols; ++i) sum += y.data()[i] * g.data()[i] + p.data()[i] * h.data()[i];
      return sum;
    };
    Matrix<double> dx(rows, cols, 0.0), dm(rows, cols, 0.0), dnull(rows, cols, 0.0), dprevious(rows, cols, 0.0);
    for (int twice = 0; twice < 2; ++twice)
      diffusion_step_backward<double>(plan, 2, x, m, null, g, h, dx, dm, dnull, dprevious, ws);
    for (Matrix<double>* d : {&dx, &dm, &dnull, &dprevious})
      for (double& v : leaf_values(*d)) v /= 2;
    GradientReport report;
    check_gradient("x", leaf_values(x), leaf_values(std::as_const(dx)), loss, report);
    check_gradient("m", leaf_values(m), leaf_values(std::as_const(dm)), loss, report);
    if (plan.guided()) check_gradient("m_null", leaf_values(null), leaf_values(std::as_const(dnull)), loss, report);
    check_gradient("previous", leaf_values(previous), leaf_values(std::as_const(dprevious)), loss, report);
    INFO(report.where);
    CHECK(report.worst < 1e-6);
  }
}

TEST_CASE("guiding x_0, eps or v is the same", "[diffusion][step]") {
  Random random = random_stream(703);
  const Index rows = 2, cols = 9, t = 30;
  const Matrix<double> x = random_matrix<double>(rows, cols, random), m = random_matrix<double>(rows, cols, random),
                       null = random_matrix<double>(rows, cols, random);
  Matrix<double> first;
  for (const Prediction kind : {Prediction::x0, Prediction::epsilon, Prediction::v}) {
    const SamplerPlan plan(schedule(), {.steps = 4, .prediction = kind, .guidance = 3});
    REQUIRE(plan.steps[1].from == t);
    Matrix<double> y = x, own(rows, cols), own_null(rows, cols);
    const std::int32_t at = t;
    convert_prediction<double>(schedule(), Prediction::x0, kind, x, IndexView(&at, 1), m, own);
    convert_prediction<double>(schedule(), Prediction::x0, kind, x, IndexView(&at, 1), null, own_null);
    diffusion_step<double>(plan, 1, y, own, own_null, {});
    if (first.empty()) first = y;
    CHECK(max_difference(y.view(), first.view()) < 1e-13);
  }
}

TEST_CASE("a NaN stays in its row; no rows are none; nothing is allocated; wrong shapes are named", "[diffusion][step]") {
  Random random = random_stream(704);
  const SamplerPlan plan(schedule(), {.method = SamplerMethod::ddpm, .guidance = 1, .clip = ClipX0::norm});
  Matrix<float> x = random_matrix<float>(3, 12, random), m = random_matrix<float>(3, 12, random), null = m;
  m(1, 4) = std::numeric_limits<float>::quiet_NaN();
  const RandomRow at{.seed = 1};
  CHECK(count_allocations([&] { diffusion_step<float>(plan, 0, x, m, null, {}, at, {}); }) == 0);
  for (Index j = 0; j < 12; ++j) CHECK((std::isfinite(x(0, j)) && std::isfinite(x(2, j))));
  CHECK(std::isnan(x(1, 4)));
  Matrix<float> none(0, 12);
  diffusion_step<float>(plan, 0, none, none, none, {}, at, {});
  const Matrix<float> before = x;
  const Matrix<float> narrow(3, 11);
  const std::int32_t two[] = {1, 2};
  CHECK(error_of([&] { diffusion_step<float>(plan, 0, x, narrow, null, {}, at, {}); }) ==
        "diffusion_step: m: expected shape [3, 12], got [3, 11]");
  CHECK(error_of([&] { diffusion_step<float>(plan, 0, x, m, {}, {}, at, {}); }) ==
        "diffusion_step: m_null: expected shape [3, 12], got [0, 0]");
  CHECK(error_of([&] { diffusion_step<float>(plan, 40, x, m, null, {}, at, {}); }).find("one of the plan's steps") !=
        std::string::npos);
  CHECK(error_of([&] { diffusion_step<float>(plan, 0, x, m, null, {}, at, IndexView(two, 2)); }) ==
        "diffusion_step: ids: expected 3 ids, one for each row, or none, got 2");
  const SamplerPlan multistep(schedule(), {.method = SamplerMethod::dpm_solver});
  CHECK(error_of([&] { diffusion_step<float>(multistep, 0, x, m, {}, {}, at, {}); }).find("previous") != std::string::npos);
  CHECK(max_difference(x.view(), before.view()) == 0);
}
