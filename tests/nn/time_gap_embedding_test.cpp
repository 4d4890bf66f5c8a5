// Oracles: bounds of buckets by multiplication; plain loops.
#include <recops/nn/time_gap_embedding.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("buckets double", "[nn][time_gap_embedding]") {
  for (const std::int64_t unit : {1, 60, 3600}) {
    CHECK(time_gap_bucket(-5, unit, 20) == 0);
    CHECK(time_gap_bucket(unit - 1, unit, 20) == 0);
    for (Index k = 1; k < 15; ++k) {
      CHECK(time_gap_bucket(unit << (k - 1), unit, 20) == k);
      CHECK(time_gap_bucket((unit << k) - 1, unit, 20) == k);
    }
  }
  CHECK(time_gap_bucket(INT64_MAX, 1, 20) == 19);
  CHECK(time_gap_bucket(INT64_MAX, 1, 1) == 0);
}

TEMPLATE_TEST_CASE("each behaviour gets the embedding of its gap, and gives its gradient back", "[nn][time_gap_embedding]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(521);
  Workspace ws;
  const TimeGapEmbedding<T> layer(6, 7, 10, 1.0, random);
  const std::vector<std::int64_t> times{0, 95, 99, 100, 0, 500}, offsets{0, 4, 4, 6}, now{100, 0, 510};
  const Index expected[] = {4, 0, 0, 0, 5, 1};
  Padded<T> y(6, 7);
  layer.forward(times, offsets, now, y, ws);
  for (Index i = 0; i < 6; ++i)
    CHECK(max_difference(y.view().middle_rows(i, 1), layer.weight.values.view().middle_rows(expected[i], 1)) == 0);
  const std::vector<std::int64_t> unknown{INT64_MIN, INT64_MAX}, both{0, 2}, late{1};  // no gap is too long for the last bucket
  layer.forward(unknown, both, late, y.view().middle_rows(0, 2), ws);
  CHECK(max_difference(y.view().middle_rows(0, 1), layer.weight.values.view().middle_rows(5, 1)) == 0);
  CHECK(max_difference(y.view().middle_rows(1, 1), layer.weight.values.view().middle_rows(0, 1)) == 0);
  TimeGapEmbedding<T> gradient = make_gradient(layer);
  const Matrix<T> dy = random_matrix<T>(6, 7, random);
  layer.backward(times, offsets, now, dy, gradient, ws);
  CHECK(gradient.weight.rows.size() == 4);
  CHECK(std::abs(gradient.weight.values(0, 2) - (dy(1, 2) + dy(2, 2) + dy(3, 2))) < T(1e-5));
  const std::vector<std::int64_t> few{1};
  CHECK(error_of([&] { layer.forward(times, offsets, few, y, ws); }) == "TimeGapEmbedding: now: expected size 3, got 1");
}
