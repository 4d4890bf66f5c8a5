// Oracles: the sampler's loop around the layer itself; itself in other batches and threads.
#include <recops/diffusion/frozen_sampler.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

const NoiseSchedule& schedule() {
  static const NoiseSchedule s = NoiseSchedule::cosine(50);
  return s;
}

template <class T>
MlpDenoiser<T> denoiser(Index width, Index condition, std::initializer_list<Index> hidden, Activation f, Random& random) {
  return MlpDenoiser<T>(width, condition, hidden, f, TimeEmbedding<T>(8, 12, 6, Activation::silu, {}, random), random);
}

/// The same chain through the layer.
template <class T>
void unfrozen(const MlpDenoiser<T>& d, const SamplerPlan& plan, MatrixView<const T> c, const SampleOptions& options,
              MatrixView<T> x) {
  Workspace ws;
  sample<T>(
      plan,
      [&](const DenoiserInput<T>& in, MatrixView<T> m, Workspace& scratch) {
        const std::int64_t t = in.t;
        d.forward(in.x, d.condition_width() > 0 ? c.middle_rows(in.first, in.rows) : c, IndexView(&t, 1), m, scratch);
      },
      options, x, ws);
}

}  // namespace

TEMPLATE_TEST_CASE("frozen, a sampler gives what its layers give", "[diffusion][frozen]", float, double) {
  using T = TestType;
  Random random = random_stream(761);
  const MlpDenoiser<T> denoisers[] = {
      denoiser<T>(5, 0, {9, 17}, Activation::silu, random),   denoiser<T>(16, 3, {32}, Activation::silu, random),
      denoiser<T>(19, 4, {33, 20}, Activation::gelu, random), denoiser<T>(6, 7, {}, Activation::silu, random),
      denoiser<T>(4, 0, {}, Activation::silu, random),        denoiser<T>(70, 0, {}, Activation::silu, random)};
  const SamplerOptions plans[] = {{.steps = 4},
                                  {.method = SamplerMethod::dpm_solver, .steps = 4, .guidance = 2},
                                  {.method = SamplerMethod::ddpm, .steps = 3, .prediction = Prediction::v, .guidance = -1},
                                  {.steps = 3, .prediction = Prediction::epsilon, .eta = 0.5, .start = 40},
                                  {.steps = 3, .guidance = 1, .clip = ClipX0::norm, .clip_at = 0.5}};
  double worst = 0;
  for (const auto& d : denoisers)
    for (const SamplerOptions& o : plans)
      for (const Index rows : {0, 1, 3, 8, 13}) {
        const SamplerPlan plan(schedule(), o);
        const auto frozen = freeze(d, plan);
        const Matrix<T> c = random_matrix<T>(rows, d.condition_width(), random);
        Padded<T> x(rows, d.width()), y(rows, d.width());
        Workspace ws;
        CHECK(frozen.sample(c, {.at = {.seed = 2, .row = 7}}, x.view(), ws) == 0);
        unfrozen<T>(d, plan, c, {.at = {.seed = 2, .row = 7}}, y.view());
        double most = 1;
        for (Index b = 0; b < rows; ++b)
          for (Index j = 0; j < d.width(); ++j) most = std::max(most, static_cast<double>(std::abs(y(b, j))));
        worst = std::max(worst, max_difference(x.view(), y.view()) / most);
        CHECK(x.intact());
      }
  CHECK(worst < (std::is_same_v<T, float> ? 2e-5 : 1e-12));
}

TEST_CASE("frozen: the same bits for any batch, place, tile and number of threads; in sixteen bits too", "[diffusion][frozen]") {
  Random random = random_stream(762);
  const MlpDenoiser<float> d = denoiser<float>(20, 5, {40, 24}, Activation::silu, random);
  const Index rows = 17;
  const Matrix<float> c = random_matrix<float>(rows, 5, random);
  std::vector<std::int64_t> ids;
  for (Index b = 0; b < rows; ++b) ids.push_back(500 - 3 * b);
  const auto check = [&](const auto& sampler) {
    Workspace ws;
    Matrix<float> all(rows, 20), one(1, 20);
    sampler.sample(c, {.at = {.seed = 1}, .ids = ids}, all, ws);
    double worst = 0;
    for (const int workers : {1, 3})
      for (const Index tile : {4, 9, 0}) {
        Threads threads{workers};
        Workspace own(make_executor(threads, workers));
        Matrix<float> x(rows, 20);
        sampler.sample(c, {.at = {.seed = 1}, .ids = ids, .tile_rows = tile}, x, own);
        worst = std::max(worst, max_difference(x.view(), all.view()));
      }
    for (Index b = 0; b < rows; ++b) {
      sampler.sample(c.view().middle_rows(b, 1), {.at = {.seed = 1}, .ids = IndexView(ids).segment(b, 1)}, one, ws);
      worst = std::max(worst, max_difference(one.view(), all.view().middle_rows(b, 1)));
    }
    CHECK(worst == 0);
    CHECK(count_allocations([&] { sampler.sample(c, {.at = {.seed = 1}, .ids = ids}, all, ws); }) == 0);
    return all;
  };
  for (const SamplerOptions& o :
       {SamplerOptions{.steps = 5}, SamplerOptions{.method = SamplerMethod::ddpm, .steps = 5, .guidance = 2}}) {
    const SamplerPlan plan(schedule(), o);
    const Matrix<float> whole = check(freeze(d, plan));
    const Matrix<float> half = check(freeze(d, plan, Weights<BFloat16>()));
    CHECK(max_difference(whole.view(), half.view()) < 0.1);
    CHECK(max_difference(whole.view(), half.view()) > 0);
  }
}

TEST_CASE("frozen: layers longer than a block of k, a NaN in its row, wrong input", "[diffusion][frozen]") {
  Random random = random_stream(763);
  const MlpDenoiser<float> wide = denoiser<float>(6, 0, {530, 10}, Activation::silu, random);
  const SamplerPlan plan(schedule(), {.steps = 2});
  Matrix<float> x(3, 6), y(3, 6);
  Workspace ws;
  freeze(wide, plan).sample({}, {.at = {.seed = 1}}, x, ws);
  unfrozen<float>(wide, plan, {}, {.at = {.seed = 1}}, y);
  CHECK(max_difference(x.view(), y.view()) < 1e-5);
  y.fill(7);
  freeze(wide, plan).sample({}, {.at = {.seed = 1}, .tile_rows = std::numeric_limits<Index>::max()}, y, ws);  // all in one
  CHECK(max_difference(x.view(), y.view()) == 0);
  x(1, 3) = std::numeric_limits<float>::quiet_NaN();
  CHECK(freeze(wide, plan).sample({}, {.from_x = true}, x, ws) == 1);
  for (Index j = 0; j < 6; ++j) CHECK((std::isfinite(x(0, j)) && std::isfinite(x(2, j))));
  const MlpDenoiser<float> d = denoiser<float>(6, 2, {8}, Activation::silu, random);
  const auto sampler = freeze(d, plan);
  const Matrix<float> c(3, 2, 0.0f);
  Matrix<float> narrow(3, 5, 1.0f), fits(2, 6, 1.0f);
  const std::int32_t ids[] = {1};
  CHECK(error_of([&] { sampler.sample(c, {}, narrow, ws); }) == "FrozenSampler::sample: x: expected shape [_, 6], got [3, 5]");
  CHECK(error_of([&] { sampler.sample(c, {}, fits, ws); }) == "FrozenSampler::sample: c: expected shape [2, 2], got [3, 2]");
  CHECK(error_of([&] { sampler.sample(c.view().middle_rows(0, 2), {.ids = IndexView(ids, 1)}, fits, ws); }).find("ids") !=
        std::string::npos);
  CHECK(error_of([&] { freeze(d, SamplerPlan()); }).find("a plan with steps") != std::string::npos);
  for (const float v : leaf_values(fits)) CHECK(v == 1.0f);
}
