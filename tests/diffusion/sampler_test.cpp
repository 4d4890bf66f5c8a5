// Oracles: the loop written out with diffusion_step and fill_normal; a Gaussian target's moments; itself in other batches and threads.
#include <recops/diffusion/sampler.hpp>
#include <recops/nn/gradient.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// A denoiser of each row by itself: pulls towards the condition of the row (its number in the batch), less where there is none.
template <class T>
struct Pull {
  VectorView<const T> conditions;
  void operator()(const DenoiserInput<T>& in, MatrixView<T> m, Workspace&) const {
    for (Index b = 0; b < in.x.rows(); ++b) {
      const T c = b < in.rows ? conditions[in.first + b] : T(0.25);
      for (Index j = 0; j < in.x.cols(); ++j) m(b, j) = T(0.5) * in.x(b, j) + c / static_cast<T>(in.t);
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("sampling is its loop", "[diffusion][sampler]", float, double) {
  using T = TestType;
  const NoiseSchedule s = NoiseSchedule::cosine(30);
  Random random = random_stream(731);
  const Index rows = 5, cols = 13;
  const Vector<T> c = random_vector<T>(rows, random);
  const std::int64_t ids[] = {3, 1, 4, 159, 26};
  for (const SamplerMethod method : {SamplerMethod::ddpm, SamplerMethod::ddim, SamplerMethod::dpm_solver}) {
    for (const double w : {0.0, 1.5}) {
      const SamplerPlan plan(s, {.method = method, .steps = 6, .eta = 0.5, .guidance = w});
      const RandomRow at{.seed = 8, .sample = 3};
      Workspace ws;
      Padded<T> x(rows, cols);
      CHECK(sample<T>(plan, Pull<T>{c}, {.at = at, .ids = IndexView(ids, rows), .tile_rows = 2}, x.view(), ws) == 0);
      Matrix<T> y(rows, cols), m(rows, cols), null(rows, cols), previous(rows, cols);
      RandomRow start = at;
      start.purpose = RandomPurpose::initial_noise;
      simd::fill_normal<T>(start, IndexView(ids, rows), y.view());
      for (Index i = 0; i < static_cast<Index>(plan.steps.size()); ++i) {
        const Index t = plan.steps[static_cast<std::size_t>(i)].from;
        Pull<T>{c}({.x = y, .first = 0, .rows = rows, .step = i, .t = t}, m, ws);
        Pull<T>{c}({.x = y, .first = 0, .rows = 0, .step = i, .t = t}, null, ws);
        diffusion_step<T>(plan, i, y, m, null, previous, at, IndexView(ids, rows));
      }
      CHECK(max_difference(x.view(), y.view()) == 0);
      CHECK(x.intact());
    }
  }
}

TEST_CASE("the same bits for any batch, place in it, tile and number of threads", "[diffusion][sampler]") {
  const NoiseSchedule s = NoiseSchedule::cosine(30);
  Random random = random_stream(732);
  const Index rows = 37, cols = 20;
  const SamplerPlan plan(s, {.method = SamplerMethod::ddpm, .guidance = 1});
  const Vector<float> c = random_vector<float>(rows, random);
  std::vector<std::int64_t> ids;
  for (Index b = 0; b < rows; ++b) ids.push_back(1000 + b * b);
  Matrix<float> all(rows, cols);
  Workspace ws;
  sample<float>(plan, Pull<float>{c}, {.at = {.seed = 1}, .ids = ids}, all, ws);
  for (const int workers : {1, 2, 4}) {
    Threads threads{workers};
    Workspace own(make_executor(threads, workers));
    for (const Index tile : {1, 5, 64}) {
      Matrix<float> x(rows, cols);
      sample<float>(plan, Pull<float>{c}, {.at = {.seed = 1}, .ids = ids, .tile_rows = tile}, x, own);
      CHECK(max_difference(x.view(), all.view()) == 0);
    }
  }
  // Backwards, and one by one.
  Vector<float> reversed_c(rows);
  std::vector<std::int64_t> reversed(ids.rbegin(), ids.rend());
  std::reverse_copy(c.begin(), c.end(), reversed_c.begin());
  Matrix<float> back(rows, cols), one(1, cols);
  sample<float>(plan, Pull<float>{reversed_c}, {.at = {.seed = 1}, .ids = reversed}, back, ws);
  double worst = 0;
  for (Index b = 0; b < rows; ++b) {
    worst = std::max(worst, max_difference(back.view().middle_rows(rows - 1 - b, 1), all.view().middle_rows(b, 1)));
    sample<float>(plan, Pull<float>{VectorView<const float>(c).segment(b, 1)},
                  {.at = {.seed = 1}, .ids = IndexView(ids).segment(b, 1)}, one, ws);
    worst = std::max(worst, max_difference(one.view(), all.view().middle_rows(b, 1)));
  }
  CHECK(worst == 0);
  // Another sample of the same users is another one.
  Matrix<float> other(rows, cols);
  sample<float>(plan, Pull<float>{c}, {.at = {.seed = 1, .sample = 1}, .ids = ids}, other, ws);
  CHECK(max_difference(other.view(), all.view()) > 0.1);
}

TEST_CASE("samples of a Gaussian target have its mean, and the spread that the number of steps leaves", "[diffusion][sampler]") {
  const NoiseSchedule s = NoiseSchedule::cosine(20);
  const double mu = 1.3, spread = 0.36;
  for (const double eta : {0.0, 1.0}) {
    const SamplerPlan plan(s, {.steps = 20, .eta = eta});
    const auto ideal = [&](const DenoiserInput<float>& in, MatrixView<float> m, Workspace&) {
      const double a = s.alpha_bar[in.t], gain = spread * std::sqrt(a) / (spread * a + 1 - a);
      for (Index b = 0; b < m.rows(); ++b)
        for (Index j = 0; j < m.cols(); ++j) m(b, j) = static_cast<float>(mu + gain * (in.x(b, j) - std::sqrt(a) * mu));
    };
    Matrix<float> x(200, 200);
    Workspace ws;
    CHECK(sample<float>(plan, ideal, {.at = {.seed = 4}}, x, ws) == 0);
    double mean = 0, square = 0;
    for (const float v : leaf_values(x)) mean += v, square += double(v) * v;
    mean /= 40000, square = square / 40000 - mean * mean;
    const double expected = eta == 0 ? 0.3124 : 0.2771;
    CHECK(std::abs(square - expected) < 5 * expected * std::sqrt(2.0 / 40000));
    // The mean of x_T is 0 and not sqrt(alpha_bar_T) mu: what is left of that after the chain is below the noise.
    CHECK(std::abs(mean - mu) < 5 * std::sqrt(expected / 40000) + 1e-3);
  }
}

TEST_CASE("from a start of the caller's; not finite is counted; a second call allocates nothing", "[diffusion][sampler]") {
  const NoiseSchedule s = NoiseSchedule::linear_variance(5);
  const SamplerPlan plan(s, {.method = SamplerMethod::ddpm, .mean_only = true});
  Random random = random_stream(733);
  Matrix<float> x = random_matrix<float>(4, 6, random);
  const Matrix<float> start = x;
  Workspace ws;
  const auto keep = [](const DenoiserInput<float>& in, MatrixView<float> m, Workspace&) {
    for (Index b = 0; b < m.rows(); ++b) std::copy_n(in.x.row(b), m.cols(), m.row(b));
  };
  sample<float>(plan, keep, {.from_x = true}, x, ws);
  CHECK(max_difference(x.view(), start.view()) < 1e-4);  // a denoiser that changes nothing, tiny noise: nothing happens
  CHECK(count_allocations([&] { sample<float>(plan, keep, {.from_x = true}, x, ws); }) == 0);
  Matrix<float> drawn(4, 6), whole(4, 6, 7.0f);
  sample<float>(plan, keep, {.at = {.seed = 3}}, drawn, ws);
  sample<float>(plan, keep, {.at = {.seed = 3}, .tile_rows = std::numeric_limits<Index>::max()}, whole, ws);  // all in one
  CHECK(max_difference(whole.view(), drawn.view()) == 0);
  x(2, 1) = std::numeric_limits<float>::quiet_NaN();
  x(3, 5) = std::numeric_limits<float>::infinity();
  CHECK(sample<float>(plan, keep, {.from_x = true}, x, ws) == 2);
  Matrix<float> none(0, 6);
  CHECK(sample<float>(plan, keep, {}, none, ws) == 0);
  const std::int32_t ids[] = {1};
  CHECK(error_of([&] { sample<float>(plan, keep, {.ids = IndexView(ids, 1)}, x, ws); }).find("ids: expected 4 ids") !=
        std::string::npos);
  CHECK(error_of([&] { sample<float>(SamplerPlan(), keep, {}, x, ws); }).find("a plan with steps") != std::string::npos);
  CHECK(error_of([&] { sample<float>(plan, keep, {.tile_rows = -1}, x, ws); }).find("tile_rows >= 0") != std::string::npos);
}
