/// Oracle: the same tasks in the calling thread.
#include <recops/core/tbb.hpp>

#include "support/catch.hpp"

using namespace recops;

#if __has_include(<oneapi/tbb/task_arena.h>)
TEST_CASE("the oneTBB executor runs every task once, each worker with scratch of its own", "[core][executor]") {
  for (const int workers : {1, 2}) {
    oneapi::tbb::task_arena arena(workers);
    Workspace ws(tbb_executor(arena));
    CHECK(ws.workers() == workers);
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
}
#else
TEST_CASE("the oneTBB executor", "[core][executor]") { WARN("oneTBB's headers are not here: skipped"); }
#endif
