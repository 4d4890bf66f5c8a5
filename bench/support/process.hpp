/// @file   bench/support/process.hpp
/// @brief  The same conditions for every run: one core, first in its queue; huge pages for malloc, addresses that do not change;
///         peers with one thread and their widest kernels.
///
/// Most of it is read by libraries before main begins, so the program starts itself once more with the environment complete. What
/// decides about speed is set whatever it was before.
#pragma once
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>

namespace recops_bench {

/// Keeps to the last of the cores that this process may use (the first is where interrupts tend to land); returns it.
inline int pin_to_one_core() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return -1;
  for (int core = CPU_SETSIZE - 1; core >= 0; --core) {
    if (!CPU_ISSET(core, &allowed)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
    return core;
  }
  return -1;
}

namespace detail {

/// The scheduler weighs whole sessions before it looks at the priority of a process ("autogroups").
inline bool session_priority(const char* value) {
  const int file = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
  if (file < 0) return false;
  const bool written = write(file, value, std::strlen(value)) > 0;
  close(file);
  return written;
}
inline void restore_session_priority() { session_priority("0"); }

}  // namespace detail

/// First in the queue for this core, where the system lets us; until the program ends.
inline void raise_priority() {
  if (setpriority(PRIO_PROCESS, 0, -20) != 0 || !detail::session_priority("-20")) return;
  std::atexit(detail::restore_session_priority);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    std::signal(number, [](int received) {
      detail::restore_session_priority();
      std::signal(received, SIG_DFL);
      std::raise(received);
    });
  }
}

/// To be called first in main.
inline void prepare_process(char** argv) {
  pin_to_one_core();
  // Freed memory stays with the process: who allocates in every call does not pay for page faults too.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 2147483647);
  if (std::getenv("RECOPS_BENCH_PREPARED") != nullptr) {
    raise_priority();
    return;
  }
  setenv("RECOPS_BENCH_PREPARED", "1", 0);
  setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 0);
  for (const char* name : {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}) setenv(name, "1", 1);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    // An OpenBLAS older than the processor falls back to a narrow set, and some systems preset one.
    const char* core = std::getenv("RECOPS_BENCH_OPENBLAS_CORETYPE");
    setenv("OPENBLAS_CORETYPE", core != nullptr ? core : "SkylakeX", 1);
    setenv("ATEN_CPU_CAPABILITY", "avx512", 0);  // PyTorch 1.13's own choice is avx2
  }
#endif
  personality(static_cast<unsigned long>(personality(0xffffffff)) | ADDR_NO_RANDOMIZE);
  char program[4096];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  if (length <= 0) return raise_priority();
  program[length] = '\0';
  execv(program, argv);
  raise_priority();  // it failed: on as we are
}

}  // namespace recops_bench
