// Oracle: the chain step by step, in double.
#include <recops/diffusion/dreamrec.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("a collapsed chain of DreamRec's linear denoiser is the chain", "[diffusion][dreamrec]", float, double) {
  using T = TestType;
  Random random = random_stream(771);
  const MlpDenoiser<T> d = dreamrec_denoiser<T>(7, false, random);
  for (const SamplerOptions& o :
       {SamplerOptions{.method = SamplerMethod::ddpm, .mean_only = true, .guidance = 2}, SamplerOptions{.steps = 20},
        SamplerOptions{.method = SamplerMethod::dpm_solver, .steps = 9, .guidance = 1},
        SamplerOptions{.steps = 5, .prediction = Prediction::v, .guidance = -1}}) {
    const SamplerPlan plan(NoiseSchedule::exponential(200), o);
    const CollapsedSampler<T> collapsed(d, plan);
    const Matrix<T> c = random_matrix<T>(5, 7, random);
    Padded<T> x(5, 7);
    Matrix<T> y(5, 7);
    Workspace ws;
    const SampleOptions options{.at = {.seed = 3, .row = 100}};
    CHECK(collapsed.sample(c, options, x.view(), ws) == 0);
    sample<T>(
        plan,
        [&](const DenoiserInput<T>& in, MatrixView<T> m, Workspace& scratch) {
          const std::int64_t t = in.t;
          d.forward(in.x, c.view().middle_rows(in.first, in.rows), IndexView(&t, 1), m, scratch);
        },
        options, y, ws);
    CHECK(max_difference(x.view(), y.view()) < (std::is_same_v<T, float> ? 1e-4 : 1e-12));
    CHECK(x.intact());
    CHECK(count_allocations([&] { collapsed.sample(c, options, x.view(), ws); }) == 0);
  }
}

TEST_CASE("what cannot be collapsed is refused", "[diffusion][dreamrec]") {
  Random random = random_stream(772);
  const NoiseSchedule s = NoiseSchedule::cosine(20);
  const auto error = [&](bool two_layers, const SamplerOptions& o) {
    const MlpDenoiser<float> d = dreamrec_denoiser<float>(4, two_layers, random);
    return error_of([&] { CollapsedSampler<float>(d, SamplerPlan(s, o)); });
  };
  CHECK(error(true, {}).find("one linear layer") != std::string::npos);
  CHECK(error(false, {.eta = 1}).find("steps without noise") != std::string::npos);
  CHECK(error(false, {.clip = ClipX0::box}).find("no clip") != std::string::npos);
  const CollapsedSampler<float> sampler(dreamrec_denoiser<float>(4, false, random), SamplerPlan(s, {}));
  Matrix<float> x(2, 4), c(3, 4);
  Workspace ws;
  CHECK(error_of([&] { sampler.sample(c, {}, x, ws); }) == "CollapsedSampler::sample: c: expected shape [2, 4], got [3, 4]");
}
