// Oracle: sequences cut by hand out of one matrix. (JaggedView lives in core/views.hpp.)
#include <recops/core/matrix.hpp>
#include <recops/core/views.hpp>
#include <vector>

#include "support/catch.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("a jagged batch gives each sequence its rows", "[core][jagged]", std::int32_t, std::int64_t) {
  Matrix<float> values(6, 2);
  for (Index i = 0; i < 6; ++i) values(i, 0) = values(i, 1) = static_cast<float>(i);
  const std::vector<TestType> offsets{0, 0, 2, 2, 5, 6, 6};  // empty first, in the middle and last
  const JaggedView<float> batch(values, offsets);
  const std::vector<Index> begins{0, 0, 2, 2, 5, 6}, lengths{0, 2, 0, 3, 1, 0};
  REQUIRE(batch.size() == 6);
  CHECK((batch.cols() == 2 && batch.longest() == 3 && !batch.is_one_sequence()));
  for (Index b = 0; b < 6; ++b) {
    const auto at = static_cast<std::size_t>(b);
    CHECK((batch.begin(b) == begins[at] && batch.length(b) == lengths[at] && batch[b].rows() == lengths[at]));
    for (Index i = 0; i < batch.length(b); ++i) CHECK(batch[b](i, 1) == static_cast<float>(begins[at] + i));
  }
  const JaggedView<const float> constant = batch;
  CHECK((constant.size() == 6 && constant[3].data() == values.row(2)));

  Matrix<double> other(6, 3);
  const JaggedView<double> projected = batch.with_values(other.view());
  CHECK((projected.size() == 6 && projected.cols() == 3 && projected[4].data() == other.row(5)));
}

TEST_CASE("a plain matrix is a batch of one", "[core][jagged]") {
  Matrix<float> values(4, 3, 1.0f);
  const JaggedView<const float> batch = values;
  CHECK((batch.size() == 1 && batch.is_one_sequence() && batch.length(0) == 4 && batch.longest() == 4));
  CHECK((batch[0].data() == values.data() && batch[0].rows() == 4));
  Matrix<float> other(4, 5);
  CHECK((batch.with_values(other.view()).is_one_sequence() && batch.with_values(other.view()).cols() == 5));
  const JaggedView<float> nothing;
  CHECK((nothing.size() == 1 && nothing.length(0) == 0 && nothing.longest() == 0));
}

TEST_CASE("a batch of no sequences", "[core][jagged]") {
  const Matrix<float> values(0, 3);
  const std::vector<std::int64_t> offsets{0};
  const JaggedView<const float> batch(values, offsets);
  CHECK((batch.size() == 0 && batch.longest() == 0 && batch.values().cols() == 3));
}
