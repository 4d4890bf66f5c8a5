/// @file   recops/core/tbb.hpp
/// @brief  An executor on oneTBB. Link with -ltbb; needs oneTBB's headers.
#pragma once
#include <recops/core/workspace.hpp>
#if __has_include(<oneapi/tbb/task_arena.h>)
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

namespace recops {
inline namespace RECOPS_ABI {

/// Runs tasks in `arena`, which the caller keeps; as many workers as it has slots. Tasks are handed out one by one.
inline Executor tbb_executor(oneapi::tbb::task_arena& arena) {
  return {arena.max_concurrency(), &arena, [](void* context, Index tasks, Executor::Task task, void* data) {
            static_cast<oneapi::tbb::task_arena*>(context)->execute([&] {
              oneapi::tbb::parallel_for(
                  oneapi::tbb::blocked_range<Index>(0, tasks, 1),
                  [&](const oneapi::tbb::blocked_range<Index>& range) {
                    for (Index i = range.begin(); i < range.end(); ++i)
                      task(data, i, oneapi::tbb::this_task_arena::current_thread_index());
                  },
                  oneapi::tbb::simple_partitioner());
            });
          }};
}

}  // namespace RECOPS_ABI
}  // namespace recops
#endif
