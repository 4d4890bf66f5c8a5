/// @file   tests/support/threads.hpp
/// @brief  An executor over std::thread, to show that results do not depend on the number of threads.
#pragma once
#include <atomic>
#include <recops/core/workspace.hpp>
#include <thread>
#include <vector>

namespace recops_test {

/// Starts `workers - 1` threads for every call; who takes which task is left to chance.
/// `Threads threads{4}; Workspace ws(make_executor(threads, 4));`
struct Threads {
  int workers;
  template <class Task>
  void operator()(recops::Index tasks, Task&& task) const {
    std::atomic<recops::Index> next{0};
    const auto work = [&](int worker) {
      for (recops::Index i; (i = next.fetch_add(1)) < tasks;) task(i, worker);
    };
    std::vector<std::thread> others;
    for (int w = 1; w < workers; ++w) others.emplace_back(work, w);
    work(0);
    for (std::thread& t : others) t.join();
  }
};

}  // namespace recops_test
