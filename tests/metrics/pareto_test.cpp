// Oracle: every pair compared; the area by inclusion of unit cells.
#include <recops/metrics/novelty.hpp>
#include <recops/metrics/pareto.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("the Pareto front is what nothing dominates", "[metrics][pareto]", float, double) {
  using T = TestType;
  Random random = random_stream(981);
  for (const Index n : {0, 1, 2, 30, 120}) {
    for (const Index cols : {0, 1, 2, 3, 5}) {
      Padded<T> points(n, cols);
      for (Index i = 0; i < n; ++i)
        for (Index m = 0; m < cols; ++m) points(i, m) = static_cast<T>(random.below(cols > 3 ? 4 : 9));
      if (n > 20 && cols > 0) {
        points(7, 0) = std::numeric_limits<T>::infinity();
        points(8, cols - 1) = -std::numeric_limits<T>::infinity();
        points(9, 0) = std::numeric_limits<T>::quiet_NaN();
      }
      Vector<std::uint8_t> front(n, std::uint8_t{7});
      Workspace ws;
      const Index found = pareto_front<T>(points, front, ws);
      Index expected = 0;
      for (Index i = 0; i < n; ++i) {
        bool on = true;
        for (Index m = 0; m < cols; ++m) on &= !std::isnan(points(i, m));
        for (Index j = 0; j < n; ++j) {
          bool no_worse = true, better = false;
          for (Index m = 0; m < cols; ++m) {
            no_worse &= points(j, m) >= points(i, m);
            better |= points(j, m) > points(i, m);
          }
          on &= !(no_worse && better);
        }
        expected += on;
        CAPTURE(n, cols, i);
        CHECK(front[i] == (on ? 1 : 0));
      }
      CHECK(found == expected);
      CHECK(count_allocations([&] { pareto_front<T>(points, front, ws); }) == 0);
    }
  }
}

TEST_CASE("the hypervolume counts the cells that points dominate", "[metrics][pareto]") {
  Random random = random_stream(982);
  Workspace ws;
  for (const Index n : {0, 1, 3, 25}) {
    Matrix<double> points(n, 2);
    for (Index i = 0; i < 2 * n; ++i) points.data()[i] = static_cast<double>(random.below(21)) - 2;
    int cells = 0;
    for (int x = 0; x < 20; ++x) {
      for (int y = 0; y < 20; ++y) {
        bool covered = false;
        for (Index i = 0; i < n; ++i) covered |= points(i, 0) >= x + 1 && points(i, 1) >= y + 1;
        cells += covered;
      }
    }
    CHECK(hypervolume_2d<double>(points, 0, 0, ws) == cells);
  }
  const Matrix<float> one{{2, std::numeric_limits<float>::quiet_NaN()}, {1, 1}};
  CHECK(hypervolume_2d<float>(one, 0, -1, ws) == 2);
  CHECK_THAT(error_of([&] { hypervolume_2d<float>(one, std::nan(""), 0, ws); }), contains("finite reference"));
  const Matrix<float> three(2, 3);
  CHECK_THAT(error_of([&] { hypervolume_2d<float>(three, 0, 0, ws); }), contains("points"));
  Vector<std::uint8_t> few(1);
  CHECK_THAT(error_of([&] { pareto_front<float>(one, few, ws); }), contains("front"));
}

TEST_CASE("novelty is the mean information of a list's items", "[metrics][novelty]") {
  const Vector<double> popularity{0.5, 0.25, 1, 0.125, 0};
  const std::vector<std::int32_t> items{0, 1, -1, 2, -1, 3, 3}, offsets{0, 3, 4, 5, 5, 7};
  Workspace ws;
  const GroupResult r = novelty<double>(items, offsets, popularity, ws);
  CHECK((r.valid && r.valid_groups == 3 && r.skipped_groups == 2));
  CHECK(r.value == Approx((1.5 + 0 + 3) / 3));
  const std::vector<std::int32_t> never{4}, one{0, 1}, outside{5};
  CHECK_THAT(error_of([&] { novelty<double>(never, one, popularity, ws); }), contains("0 < popularity <= 1"));
  CHECK_THAT(error_of([&] { novelty<double>(outside, one, popularity, ws); }), contains("items"));
}
