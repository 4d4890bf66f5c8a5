/// @file   recops/core/openmp.hpp
/// @brief  An executor on OpenMP's threads. Compile with -fopenmp; without it everything runs in the calling thread.
#pragma once
#include <recops/core/workspace.hpp>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace recops {
inline namespace RECOPS_ABI {

/// `workers` threads (0: as many as OpenMP would take). Tasks are handed out one by one.
inline Executor openmp_executor(int workers = 0) {
#if defined(_OPENMP)
  if (workers <= 0) workers = omp_get_max_threads();
  // The context pointer carries the number: there is nothing to own.
  return {workers, reinterpret_cast<void*>(static_cast<std::intptr_t>(workers)),
          [](void* context, Index tasks, Executor::Task task, void* data) {
            const auto threads = static_cast<int>(reinterpret_cast<std::intptr_t>(context));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
            for (Index i = 0; i < tasks; ++i) task(data, i, omp_get_thread_num());
          }};
#else
  static_cast<void>(workers);
  return {};
#endif
}

}  // namespace RECOPS_ABI
}  // namespace recops
