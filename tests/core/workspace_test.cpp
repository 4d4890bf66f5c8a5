// Oracles: addresses, the counting operator new, and a serial loop for what runs in parallel.
#include <recops/core/workspace.hpp>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace recops;

namespace {

// One thread per worker, tasks handed out one by one; checks that no worker index is in use twice at once.
struct Threads {
  int workers;
  mutable std::atomic<int> clashes{0};
  template <class Task>
  void operator()(Index tasks, Task&& task) const {
    std::atomic<Index> next{0};
    std::vector<std::atomic<int>> in_use(static_cast<std::size_t>(workers));
    const auto work = [&](int worker) {
      for (Index i = next++; i < tasks; i = next++) {
        if (in_use[static_cast<std::size_t>(worker)]++ != 0) ++clashes;
        task(i, worker);
        --in_use[static_cast<std::size_t>(worker)];
      }
    };
    std::vector<std::thread> threads;
    for (int w = 1; w < workers; ++w) threads.emplace_back(work, w);
    work(0);
    for (std::thread& t : threads) t.join();
  }
};

// A call with nested marks and uneven sizes, as operators make them.
double call(Workspace& ws, Index n) {
  const auto mark = ws.mark();
  const VectorView<double> a = ws.vector<double>(n);
  double sum = 0;
  for (Index i = 0; i < n; ++i) a[i] = static_cast<double>(i);
  for (Index round = 0; round < 3; ++round) {
    const auto inner = ws.mark();
    const MatrixView<float> b = ws.matrix<float>(n, round + 1);
    for (Index i = 0; i < n; ++i) b(i, round) = 1.0f;
    for (Index i = 0; i < n; ++i) sum += a[i] * double(b(i, round));
  }
  return sum;
}

}  // namespace

TEST_CASE("scratch is aligned and does not overlap", "[core][workspace]") {
  Workspace ws;
  const auto mark = ws.mark();
  std::vector<std::pair<const std::uint8_t*, const std::uint8_t*>> taken;
  for (const Index n : {1, 63, 64, 65, 1000, 5000, 3, 40000, 7}) {
    std::uint8_t* const p = ws.take<std::uint8_t>(n);
    CHECK(reinterpret_cast<std::uintptr_t>(p) % 64 == 0);
    for (Index i = 0; i < n; ++i) p[i] = static_cast<std::uint8_t>(taken.size());
    for (const auto& [begin, end] : taken) CHECK((p >= end || p + n <= begin));
    taken.emplace_back(p, p + n);
  }
  // Live scratch never moved while the arena grew: what was written first is still there.
  for (std::size_t k = 0; k < taken.size(); ++k)
    CHECK(std::all_of(taken[k].first, taken[k].second, [&](std::uint8_t x) { return x == k; }));
}

TEST_CASE("a mark gives back what was taken since", "[core][workspace]") {
  Workspace ws;
  ws.reserve(1 << 16);
  const auto outer = ws.mark();
  float* const kept = ws.take<float>(10);
  kept[9] = 3.0f;
  const float* first = nullptr;
  {
    const auto inner = ws.mark();
    first = ws.take<float>(100);
  }
  {
    const auto inner = ws.mark();
    CHECK(ws.take<float>(100) == first);
    CHECK(ws.take<float>(0) != nullptr);
  }
  CHECK(kept[9] == 3.0f);
  CHECK(ws.high_water() == 64 + 448);
}

TEST_CASE("the second identical call allocates nothing", "[core][workspace]") {
  Workspace ws;
  const double expected = call(ws, 3000);
  recops_test::AllocationCounter counter;
  const double again = call(ws, 3000);
  const double smaller = call(ws, 7);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  CHECK((again == expected && smaller == 3 * 21));
}

TEST_CASE("nor does it inside a mark that stays", "[core][workspace]") {
  Workspace ws;
  const auto mark = ws.mark();
  ws.take<float>(5);
  call(ws, 3000);
  recops_test::AllocationCounter counter;
  call(ws, 3000);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("reserve and high_water warm a workspace up", "[core][workspace]") {
  Workspace first;
  CHECK((first.high_water() == 0 && first.capacity() == 0));
  call(first, 3000);
  const Index bytes = first.high_water();
  CHECK(bytes >= 3000 * 8 + 3000 * 3 * 4);
  CHECK(bytes <= 3000 * 8 + 3000 * 3 * 4 + 2 * 64);
  Workspace second;
  second.reserve(bytes);
  CHECK(second.capacity() >= bytes);
  recops_test::AllocationCounter counter;
  call(second, 3000);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  CHECK(second.high_water() == bytes);
  const Index capacity = second.capacity();
  second.reserve(bytes / 2);
  CHECK(second.capacity() == capacity);
  {  // while something is live, room is added and the live scratch stays
    const auto mark = second.mark();
    int* const live = second.take<int>(4);
    live[3] = 42;
    second.reserve(10 * bytes);
    std::byte* const big = second.take<std::byte>(9 * bytes);
    big[9 * bytes - 1] = std::byte{1};
    CHECK(live[3] == 42);
  }
}

TEST_CASE("a moved workspace keeps its memory", "[core][workspace]") {
  Workspace a;
  call(a, 3000);
  Workspace b = std::move(a);
  recops_test::AllocationCounter counter;
  call(b, 3000);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  a = Workspace();
  CHECK(call(a, 10) == 3 * 45);
}

TEST_CASE("parallel_for without an executor is a loop", "[core][workspace]") {
  Workspace ws;
  std::vector<Index> order;
  ws.parallel_for(5, [&](Index i, Workspace& scratch) {
    CHECK(&scratch == &ws);
    order.push_back(i);
  });
  CHECK(order == std::vector<Index>{0, 1, 2, 3, 4});
  ws.parallel_for(0, [&](Index, Workspace&) { FAIL("no task"); });
  CHECK(ws.workers() == 1);
}

TEST_CASE("parallel_for gives the same result for any number of workers", "[core][workspace]") {
  constexpr Index tasks = 57;
  std::vector<double> expected(tasks);
  Workspace serial;
  serial.parallel_for(tasks, [&](Index i, Workspace& scratch) { expected[std::size_t(i)] = call(scratch, 10 + 13 * i); });
  for (int workers = 1; workers <= 4; ++workers) {
    const Threads threads{workers};
    Workspace ws(make_executor(threads, workers));
    CHECK(ws.workers() == workers);
    for (int round = 0; round < 3; ++round) {
      std::vector<double> result(tasks, -1.0);
      const auto mark = ws.mark();
      double* const live = ws.take<double>(100);  // the caller's scratch stays while worker 0 shares its arena
      live[99] = 1.5;
      ws.parallel_for(tasks, [&](Index i, Workspace& scratch) { result[std::size_t(i)] = call(scratch, 10 + 13 * i); });
      CHECK(result == expected);
      CHECK(live[99] == 1.5);
    }
    CHECK(threads.clashes == 0);
  }
}

TEST_CASE("workers have arenas of their own, and reserve reaches them", "[core][workspace]") {
  const Threads threads{3};
  Workspace ws(make_executor(threads, 3));
  ws.reserve(1 << 12, 1 << 14);
  CHECK(ws.capacity() >= (1 << 12));
  CHECK(&ws.worker(0) == &ws);
  CHECK((&ws.worker(1) != &ws && &ws.worker(1) != &ws.worker(2)));
  CHECK((ws.worker(1).capacity() >= (1 << 14) && ws.worker(2).capacity() >= (1 << 14)));
}

TEST_CASE("parallel_for inside a task runs on the scratch of that task", "[core][workspace]") {
  const Threads threads{4};
  Workspace ws(make_executor(threads, 4));
  std::vector<double> result(16, 0.0), expected(16);
  Workspace serial;
  for (Index i = 0; i < 16; ++i)
    for (Index j = 0; j < 8; ++j) expected[std::size_t(i)] += call(serial, 50 + i + j);
  std::atomic<int> strays{0};
  ws.parallel_for(16, [&](Index i, Workspace& outer) {
    outer.parallel_for(8, [&](Index j, Workspace& inner) {
      if (&inner != &outer) ++strays;
      result[std::size_t(i)] += call(inner, 50 + i + j);
    });
  });
  CHECK(strays == 0);
  CHECK(threads.clashes == 0);
  CHECK(result == expected);
}

TEST_CASE("a workspace is parallel again after a nested parallel_for", "[core][workspace]") {
  const auto in_turn = [](Index tasks, auto&& task) {  // workers 0, 1, 2 in turn, all in this thread
    for (Index i = 0; i < tasks; ++i) task(i, static_cast<int>(i % 3));
  };
  Workspace ws(make_executor(in_turn, 3));
  for (int round = 0; round < 2; ++round) {
    int elsewhere = 0, nested_elsewhere = 0;
    ws.parallel_for(9, [&](Index, Workspace& scratch) {
      elsewhere += &scratch != &ws;
      scratch.parallel_for(5, [&](Index, Workspace& inner) { nested_elsewhere += &inner != &scratch; });
    });
    CHECK((elsewhere == 6 && nested_elsewhere == 0));
  }
}
