/// @file   recops/simd/build_info.hpp
/// @brief  What was compiled and what the processor can do: the first lines of a bug report or a benchmark.
#pragma once
#include <recops/simd/xsimd.hpp>
#include <recops/version.hpp>
#include <string>

#define RECOPS_TEXT2(x) #x
#define RECOPS_TEXT(x) RECOPS_TEXT2(x)

namespace recops {
inline namespace RECOPS_ABI {

/// The widest of our instruction sets that this processor runs: "avx512", "avx2", "base" (x86-64), or "neon64".
inline const char* processor_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
  return "base";
#elif defined(__aarch64__)
  return "neon64";
#else
  return "unknown";
#endif
}

/// Several lines: version, compiler, the instruction set compiled for and the widest this processor runs (with advice where they
/// differ), xsimd's version.
inline std::string build_info() {
  const std::string compiled = RECOPS_TEXT(RECOPS_ABI_SET), processor = processor_set();
  std::string text = "recops " + std::to_string(RECOPS_VERSION_MAJOR) + "." + std::to_string(RECOPS_VERSION_MINOR) + "." +
                     std::to_string(RECOPS_VERSION_PATCH) + ", " +
#if defined(__clang__)
                     "clang " __clang_version__
#else
                     "g++ " __VERSION__
#endif
                     + ", xsimd " + std::to_string(XSIMD_VERSION_MAJOR) + "." + std::to_string(XSIMD_VERSION_MINOR) + "." +
                     std::to_string(XSIMD_VERSION_PATCH);
  text += "\ncompiled for " RECOPS_TEXT(RECOPS_ABI) " (" + std::to_string(simd::lanes<float>) +
          " floats a vector); this processor runs " + processor;
  if (processor == "avx512" && compiled != "avx512") text += "\ncompile with -march=native to use what this processor has";
  if (processor == "avx2" && compiled != "avx2" && compiled != "avx512")
    text += "\ncompile with -march=native to use what this processor has";
#if !defined(__OPTIMIZE__)
  text += "\ncompiled without optimisation: use -O2 or -O3";
#endif
  return text + "\n";
}

}  // namespace RECOPS_ABI
}  // namespace recops

#undef RECOPS_TEXT
#undef RECOPS_TEXT2
