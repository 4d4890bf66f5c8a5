// Oracle: the exact sum.
#include <recops/simd/chained_sum.hpp>

#include "support/numbers.hpp"

using namespace recops;

TEST_CASE("ten million equal floats keep their digits; what was there stays", "[simd][chained_sum]") {
  const float row[3] = {0.1f, -1.0f, 1000.0f};
  for (const Index n : {0, 1, 511, 512, 513, 10000000}) {
    float total[3] = {1, 1, 1};
    Workspace ws;
    simd::ChainedSum<float> sum(total, 3, ws);
    for (Index i = 0; i < n; ++i) simd::add<float>(row, sum.next(), 3);
    sum.finish();
    sum.finish();  // adds nothing more
    for (int c = 0; c < 3; ++c) {
      const double exact = 1 + static_cast<double>(n) * static_cast<double>(row[c]);
      CAPTURE(n, c);
      CHECK(std::abs(static_cast<double>(total[c]) - exact) <= 6e-6 * std::abs(exact));
    }
  }
}
