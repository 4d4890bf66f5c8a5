// Oracle: torch.optim.lr_scheduler (golden/train.py).
#include <recops/train/schedule.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("schedules are torch's", "[train][schedule]") {
  const Golden golden("train");
  const auto warmup = golden.values<double>("schedule.warmup"), cosine = golden.values<double>("schedule.cosine"),
             steps = golden.values<double>("schedule.step");
  for (std::uint64_t n = 0; n < 25; ++n) {
    CAPTURE(n);
    CHECK(std::abs(linear_warmup(n, 8, 0.1) - warmup[n]) < 1e-13);
    CHECK(std::abs(cosine_decay(n, 24, 0.05) - cosine[n]) < 1e-13);
    CHECK(std::abs(step_decay(n, 7, 0.3) - steps[n]) < 1e-13);
  }
}

TEST_CASE("schedules at their ends", "[train][schedule]") {
  CHECK(linear_warmup(0, 0) == 1);
  CHECK(linear_warmup(0, 10) == 0);
  CHECK(linear_warmup(~std::uint64_t{0}, 10) == 1);
  CHECK(cosine_decay(0, 0, 0.25) == 0.25);
  CHECK(cosine_decay(0, 10) == 1);
  CHECK(cosine_decay(~std::uint64_t{0}, 10, 0.5) == 0.5);
  CHECK(error_of([] { step_decay(1, 0, 0.5); }) == "step_decay: every: expected every > 0, got 0");
  CHECK(error_of([] { cosine_decay(1, 2, 1.5); }) == "cosine_decay: floor: expected 0 <= floor <= 1, got 1.5");
  CHECK(error_of([] { linear_warmup(1, 2, -1); }) == "linear_warmup: start: expected 0 <= start <= 1, got -1");
}
