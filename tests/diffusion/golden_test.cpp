// Oracles: diffusers (schedules, noising, steps and chains), numpy (other schedules), torch (denoisers and their gradients); see
// golden/diffusion.py.
#include <recops/diffusion/diffrec.hpp>
#include <recops/diffusion/diffurec.hpp>
#include <recops/diffusion/diffusion_step.hpp>
#include <recops/diffusion/mlp_denoiser.hpp>
#include <recops/diffusion/q_sample.hpp>

#include "support/golden_layer.hpp"

using namespace recops;
using namespace recops_test;

namespace {

const Golden& golden() {
  static const Golden g("diffusion");
  return g;
}
const std::pair<const char*, Prediction> kinds[] = {
    {"x0", Prediction::x0}, {"epsilon", Prediction::epsilon}, {"v", Prediction::v}};

void check_step(const SamplerPlan& plan, Index i, const std::string& name) {
  Matrix<double> x = golden().matrix<double>("x");
  const Matrix<double> expected = golden().matrix<double>(name);
  diffusion_step<double>(plan, i, x, golden().matrix<double>("m").view(), {}, {}, golden().matrix<double>("z").view());
  INFO(name);
  CHECK(max_difference(x.view(), expected.view()) <
        1e-10 * (1 + max_difference(expected.view(), Matrix<double>(3, 5, 0.0).view())));
}

/// Compares what the golden case says with `got`, relative to its largest number.
void check_close(const std::string& name, MatrixView<const double> got, double times = 1, double bound = 1e-10) {
  const auto expected = golden().values<double>(name);
  REQUIRE(static_cast<Index>(expected.size()) == got.rows() * got.cols());
  double most = 0.1, worst = 0;
  for (const double e : expected) most = std::max(most, std::abs(e));
  for (Index i = 0; i < got.rows(); ++i)
    for (Index j = 0; j < got.cols(); ++j)
      worst = std::max(worst, std::abs(got(i, j) / times - expected[static_cast<std::size_t>(i * got.cols() + j)]));
  INFO(name);
  CHECK(worst < bound * most);
}

template <class L>
void check_gradients(const std::string& prefix, L& gradient) {
  visit(
      [&](const FieldPath& path, auto& leaf) {
        const auto v = leaf_values(leaf);
        if (path.kind == FieldKind::parameter && !v.empty())
          check_close(prefix + ".d." + path.str(), MatrixView<const double>(v.data(), 1, v.size()), 2);
      },
      gradient);
}

}  // namespace

TEST_CASE("schedules are those of diffusers and numpy", "[diffusion][golden]") {
  const auto check = [](const char* name, const NoiseSchedule& s, double bound) {
    const auto expected = golden().values<double>(std::string("schedule.") + name);
    REQUIRE(static_cast<Index>(expected.size()) == s.steps());
    double worst = 0;
    for (Index t = 1; t <= s.steps(); ++t)
      worst = std::max(worst, std::abs(s.alpha_bar[t] / expected[static_cast<std::size_t>(t - 1)] - 1));
    INFO(name);
    CHECK(worst < bound);
  };
  check("linear", NoiseSchedule::linear(1000), 1e-4);  // theirs is a running product in float32
  check("cosine", NoiseSchedule::cosine(1000), 1e-4);
  check("sqrt", NoiseSchedule::sqrt(50), 1e-10);
  check("sigmoid", NoiseSchedule::sigmoid(50), 1e-10);
  check("exponential", NoiseSchedule::exponential(50), 1e-10);
  check("truncated_linear", NoiseSchedule::truncated_linear(50), 1e-10);
  check("truncated_cosine", NoiseSchedule::truncated_cosine(50), 1e-10);
  check("linear_variance", NoiseSchedule::linear_variance(50), 1e-10);
}

TEST_CASE("noising, velocity and single steps are those of diffusers", "[diffusion][golden]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  const Matrix<double> x = golden().matrix<double>("x"), z = golden().matrix<double>("z");
  const std::int32_t t[] = {1, 500, 1000};
  Matrix<double> y(3, 5), v(3, 5);
  q_sample<double>(s, x, IndexView(t, 3), z, y);
  check_close("noised", y);
  convert_prediction<double>(s, Prediction::epsilon, Prediction::v, y, IndexView(t, 3), z, v);
  check_close("velocity", v);
  for (const auto& [name, kind] : kinds) {
    for (const bool large : {false, true}) {
      const SamplerPlan plan(s, {.method = SamplerMethod::ddpm, .prediction = kind, .large_variance = large});
      for (const Index step : {1, 2, 500, 1000})
        check_step(plan, 1000 - step, std::string("ddpm.") + (large ? "large." : "small.") + name + "." + std::to_string(step));
    }
    for (const auto& [spacing, how] : {std::pair{"leading", StepSpacing::leading}, std::pair{"trailing", StepSpacing::trailing}})
      for (const auto& [text, eta] : {std::pair{"0", 0.0}, std::pair{"0.5", 0.5}, std::pair{"1", 1.0}}) {
        const SamplerPlan plan(s, {.steps = 10, .spacing = how, .prediction = kind, .eta = eta});
        for (const Index i : {0, 4, 9})
          check_step(plan, i, std::string("ddim.") + spacing + "." + name + "." + text + "." + std::to_string(i));
      }
  }
}

TEST_CASE("whole chains are those of diffusers", "[diffusion][golden]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  for (const auto& [name, kind] : kinds)
    for (const Index n : {5, 20})
      for (const int order : {0, 1, 2}) {
        const SamplerPlan plan(s, {.method = order == 0 ? SamplerMethod::ddim : SamplerMethod::dpm_solver,
                                   .steps = n,
                                   .spacing = StepSpacing::trailing,
                                   .prediction = kind,
                                   .order = std::max(order, 1)});
        Matrix<double> x = golden().matrix<double>("x"), m(3, 5), previous(3, 5);
        for (Index i = 0; i < n; ++i) {
          const double t = static_cast<double>(plan.steps[static_cast<std::size_t>(i)].from);
          for (Index k = 0; k < 15; ++k) m.data()[k] = std::tanh(0.5 * x.data()[k] + 0.001 * t) + 0.1 * x.data()[k];
          diffusion_step<double>(plan, i, x, m, {}, previous);
        }
        // What their solver keeps of a state is float32.
        check_close(std::string("chain.") +
                        (order == 0   ? "ddim."
                         : order == 1 ? "solver1."
                                      : "solver2.") +
                        name + "." + std::to_string(n),
                    x, 1, order == 0 ? 1e-10 : 2e-6);
      }
}

TEST_CASE("step embeddings are those of diffusers", "[diffusion][golden]") {
  const std::int32_t t[] = {0, 3, 999};
  Matrix<double> e(3, 16);
  timestep_embedding<double>(IndexView(t, 3), {}, e);
  CHECK(max_difference(e.view(), golden().matrix<double>("embedding.cosine_first").view()) < 1e-4);  // float32 angles up to 999
  timestep_embedding<double>(IndexView(t, 3), {.sine_first = true, .to_the_end = true}, e);
  CHECK(max_difference(e.view(), golden().matrix<double>("embedding.sine_first").view()) < 1e-4);
}

TEST_CASE("DreamRec's denoiser is torch's, with conditions dropped", "[diffusion][golden]") {
  Random random(1);
  MlpDenoiser<double> d = dreamrec_denoiser<double>(6, true, random), gradient = make_gradient(d);
  set_parameters<double>(golden(), "dreamrec.", d);
  const Matrix<double> x = golden().matrix<double>("dreamrec.x"), c = golden().matrix<double>("dreamrec.c"),
                       dy = golden().matrix<double>("dreamrec.dy");
  const std::int32_t t[] = {1, 7, 7, 200};
  const std::uint8_t keep[] = {1, 0, 1, 0};
  Matrix<double> m(4, 6), dx(4, 6, 0.0), dc(4, 6, 0.0);
  MlpDenoiser<double>::Saved saved;
  Workspace ws;
  d.forward(x, c, VectorView<const std::uint8_t>(keep, 4), IndexView(t, 4), m, saved, Step{}, ws);
  check_close("dreamrec.y", m);
  for (int twice = 0; twice < 2; ++twice) d.backward(dy, saved, dx, dc, gradient, ws);
  check_close("dreamrec.dx", dx, 2);
  check_close("dreamrec.dc", dc, 2);
  check_gradients("dreamrec", gradient);
}

TEST_CASE("DiffuRec's denoiser is torch's", "[diffusion][golden]") {
  Random random(1);
  DiffuRecDenoiser<double> d({.width = 8, .blocks = 2, .heads = 2, .dropout = 0}, random), gradient = make_gradient(d);
  set_parameters<double>(golden(), "diffurec.", d);
  const Matrix<double> h = golden().matrix<double>("diffurec.history"), x = golden().matrix<double>("diffurec.x"),
                       dy = golden().matrix<double>("diffurec.dy"), lambda = golden().matrix<double>("diffurec.lambda");
  const std::int32_t t[] = {1, 16, 32}, offsets[] = {0, 4, 5, 7};
  const JaggedView<const double> history(h, IndexView(offsets, 4));
  Matrix<double> m(3, 8), dh(7, 8, 0.0), dx(3, 8, 0.0);
  DiffuRecDenoiser<double>::Saved saved;
  Workspace ws;
  d.forward(history, x, IndexView(t, 3), lambda, m, saved, Step{}, ws);
  check_close("diffurec.y", m);
  for (int twice = 0; twice < 2; ++twice) d.backward(history, dy, saved, dh, dx, gradient, ws);
  check_close("diffurec.dhistory", dh, 2);
  check_close("diffurec.dx", dx, 2);
  check_gradients("diffurec", gradient);
}

TEST_CASE("DiffRec's denoiser is torch's", "[diffusion][golden]") {
  Random random(1);
  DiffRec<double> d({.items = 9, .hidden = 7, .embedding = 4, .dropout = 0, .normalize = true}, random),
      gradient = make_gradient(d);
  set_parameters<double>(golden(), "diffrec.", d);
  const Matrix<double> x = golden().matrix<double>("diffrec.x"), dy = golden().matrix<double>("diffrec.dy");
  const std::int32_t t[] = {1, 2, 5};
  Matrix<double> m(3, 9), served(3, 9), dx(3, 9, 0.0);
  DiffRec<double>::Saved saved;
  Workspace ws;
  d.forward(x, IndexView(t, 3), m, saved, Step{}, ws);
  check_close("diffrec.y", m);
  d.forward(x, IndexView(t, 3), served, ws);
  check_close("diffrec.y", served);
  for (int twice = 0; twice < 2; ++twice) d.backward(dy, saved, dx, gradient, ws);
  check_close("diffrec.dx", dx, 2);
  check_gradients("diffrec", gradient);
}
