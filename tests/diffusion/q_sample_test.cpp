// Oracles: the formula in double on the same normals; moments of the distribution.
#include <recops/diffusion/q_sample.hpp>
#include <recops/nn/gradient.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("q_sample is its formula, noise given or drawn by id", "[diffusion][q_sample]", float, double) {
  using T = TestType;
  const NoiseSchedule s = NoiseSchedule::cosine(50);
  Random random = random_stream(721);
  const std::int64_t ids[] = {5, 77, 1234567890123, 6};
  const std::int32_t t[] = {0, 1, 25, 50};
  for (const Index cols : {1, 4, 31, 64}) {
    const Matrix<T> x0 = random_matrix<T>(4, cols, random);
    Padded<T> drawn(4, cols), noise(4, cols), given(4, cols);
    const RandomRow at{.seed = 3, .step = 17};
    q_sample<T>(s, x0, IndexView(t, 4), at, IndexView(ids, 4), drawn.view(), noise.view());
    q_sample<T>(s, x0, IndexView(t, 4), MatrixView<const T>(noise.view()), given.view());
    CHECK(max_difference(drawn.view(), given.view()) < (std::is_same_v<T, float> ? 1e-6 : 1e-14));
    Matrix<T> normals(4, cols);
    simd::fill_normal<T>(at, IndexView(ids, 4), normals.view());
    CHECK(max_difference(noise.view(), normals.view()) == 0);
    for (Index b = 0; b < 4; ++b)
      for (Index j = 0; j < cols; ++j)
        CHECK(static_cast<double>(drawn(b, j)) ==
              Approx(s.sqrt_alpha_bar[t[b]] * static_cast<double>(x0(b, j)) + s.sigma[t[b]] * static_cast<double>(normals(b, j)))
                  .margin(1e-6));
    CHECK((drawn.intact() && noise.intact() && given.intact()));
    // Alone, the third row is what it is among the others.
    Matrix<T> alone(1, cols);
    q_sample<T>(s, x0.view().middle_rows(2, 1), IndexView(t, 4).segment(2, 1), at, IndexView(ids, 4).segment(2, 1), alone);
    CHECK(std::equal(alone.data(), alone.data() + cols, drawn.view().row(2)));
    for (Index j = 0; j < cols; ++j) CHECK(drawn(0, j) == x0(0, j));  // step 0 is the data
  }
}

TEST_CASE("moments of q_sample", "[diffusion][q_sample]") {
  const NoiseSchedule s = NoiseSchedule::linear(1000);
  const std::int32_t t = 300;
  Matrix<float> x0(500, 400, 0.5f), xt(500, 400);
  q_sample<float>(s, x0, IndexView(&t, 1), RandomRow{.seed = 2}, {}, xt);
  double mean = 0, square = 0;
  for (const float v : leaf_values(xt)) mean += v, square += double(v) * v;
  mean /= 200000, square = square / 200000 - mean * mean;
  const double spread = 1 - s.alpha_bar[300];  // four standard errors each
  CHECK(std::abs(mean - 0.5 * s.sqrt_alpha_bar[300]) < 4 * std::sqrt(spread / 200000));
  CHECK(std::abs(square - spread) < 4 * spread * std::sqrt(2.0 / 200000));
}

TEST_CASE("q_sample: no allocation, no rows, wrong input", "[diffusion][q_sample]") {
  const NoiseSchedule s = NoiseSchedule::cosine(50);
  const std::int32_t t[] = {1, 51};
  Matrix<float> x(2, 3, 1.0f), y(2, 3, 7.0f), none(0, 3);
  const std::int32_t ids[] = {1, 2};
  CHECK(count_allocations([&] { q_sample<float>(s, x, IndexView(t, 1), RandomRow{}, IndexView(ids, 2), y); }) == 0);
  y.fill(7);
  q_sample<float>(s, none, IndexView(t, 1), RandomRow{}, {}, none);
  CHECK(error_of([&] { q_sample<float>(s, x, IndexView(t, 2), RandomRow{}, {}, y); }) ==
        "q_sample: t: expected steps from 0 to 50, got 51 at position 1");
  CHECK(error_of([&] { q_sample<float>(s, x, IndexView(t, 1), RandomRow{}, IndexView(ids, 1), y); }) ==
        "q_sample: ids: expected 2 ids, one for each row, or none, got 1");
  CHECK(error_of([&] { q_sample<float>(s, x, IndexView(t, 1), none, y); }).find("noise: expected shape [2, 3]") !=
        std::string::npos);
  for (Index i = 0; i < 6; ++i) CHECK(y.data()[i] == 7.0f);
}
