/// Oracle: the same tasks in the calling thread.
#include <recops/core/openmp.hpp>

#include "support/catch.hpp"

using namespace recops;

TEST_CASE("the OpenMP executor runs every task once, each worker with scratch of its own", "[core][executor]") {
  for (const int workers : {1, 2, 3}) {
    Workspace ws(openmp_executor(workers));
#if defined(_OPENMP)
    CHECK(ws.workers() == workers);
#else
    CHECK(ws.workers() == 1);  // compiled without -fopenmp: everything in the calling thread
#endif
    std::vector<Index> sums(500, -1);
    for (int call = 0; call < 3; ++call) {
      ws.parallel_for(500, [&](Index task, Workspace& scratch) {
        const auto mark = scratch.mark();
        Index* mine = scratch.take<Index>(200);
        for (Index i = 0; i < 200; ++i) mine[i] = task;
        Index sum = 0;
        for (Index i = 0; i < 200; ++i) sum += mine[i];  // another thread in the same memory would show
        sums[static_cast<std::size_t>(task)] = sum;
      });
      for (Index task = 0; task < 500; ++task) REQUIRE(sums[static_cast<std::size_t>(task)] == 200 * task);
    }
  }
  CHECK(openmp_executor().workers >= 1);
}
