// Oracle: sums of integers that doubles hold exactly.
#include <recops/metrics/common.hpp>

#include "metrics/cases.hpp"

using namespace recops;

TEST_CASE("a mergeable sum loses nothing that matters", "[metrics][sum]") {
  MergeableSum sum;
  for (int i = 0; i < 1000; ++i) {
    sum.add(1e16);
    sum.add(1.0);
    sum.add(-1e16);
  }
  CHECK(sum.value() == 1000.0);
  Random r(recops_test::seed(), 70);
  std::vector<MergeableSum> shards(7);
  MergeableSum all;
  for (int i = 0; i < 10000; ++i) {
    const double x = r.normal() * std::exp(10 * r.normal());
    all.add(x);
    shards[static_cast<std::size_t>(r.below(7))].add(x);
  }
  MergeableSum forward, backward;
  for (std::size_t i = 0; i < 7; ++i) {
    forward.merge(shards[i]);
    backward.merge(shards[6 - i]);
  }
  CHECK(metric_cases::same(forward.value(), all.value(), 1e-15));
  CHECK(metric_cases::same(forward.value(), backward.value(), 1e-15));
  MergeableSum infinite;
  infinite.add(1);
  infinite.add(std::numeric_limits<double>::infinity());
  infinite.add(2);
  CHECK(infinite.value() == std::numeric_limits<double>::infinity());
  infinite.add(std::numeric_limits<double>::quiet_NaN());
  CHECK(std::isnan(infinite.value()));
}

TEST_CASE("group means count what they leave out", "[metrics][group]") {
  GroupMean a, b;
  CHECK((!a.result().valid && a.result().value == 0 && a.result().coverage == 0));
  a.add(0.5, 2);
  a.skip(3);
  b.add(1.0, 4);
  b.skip_nan(1);
  a.merge(b);
  const GroupResult r = a.result();
  CHECK((r.valid && r.valid_groups == 2 && r.skipped_groups == 2 && r.nan_groups == 1));
  CHECK((r.value == 5.0 / 6 && r.coverage == 0.6));
  GroupMean weightless;
  weightless.add(1.0, 0);
  CHECK((!weightless.result().valid && weightless.result().valid_groups == 1));
}
