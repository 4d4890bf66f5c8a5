/// @file   recops/core/config.hpp
/// @brief  What every header needs before its first line: the supported compilers and the name of the inline namespace
///         that keeps code built for different instruction sets apart.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#error "recops supports g++ >= 12 and clang++ >= 14 on Linux; MSVC is not supported"
#endif
#if __cplusplus < 202002L
#error "recops needs C++20: compile with -std=c++20"
#endif
#if (defined(__FAST_MATH__) || __FINITE_MATH_ONLY__) && !defined(RECOPS_ALLOW_FAST_MATH)
#error "-ffast-math (or -ffinite-math-only) makes exp, NaN handling and sums wrong; define RECOPS_ALLOW_FAST_MATH to accept that"
#endif

// A template compiled with AVX-512 in one file and without in another would leave one weak symbol for both: the linker
// keeps either, and the program crashes or crawls. So the features a kernel tests, fast mathematics and whether errors are
// exceptions are part of every name. Mixing two such units is then a link error that names both.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define RECOPS_ABI_SET avx512
#elif defined(__AVX512F__)
#define RECOPS_ABI_SET avx512f
#elif defined(__AVX2__)
#define RECOPS_ABI_SET avx2
#elif defined(__AVX__)
#define RECOPS_ABI_SET avx
#elif defined(__SSE4_2__)
#define RECOPS_ABI_SET sse4_2
#elif defined(__SSE4_1__)
#define RECOPS_ABI_SET sse4_1
#elif defined(__SSSE3__)
#define RECOPS_ABI_SET ssse3
#elif defined(__SSE3__)
#define RECOPS_ABI_SET sse3
#elif defined(__aarch64__)
#define RECOPS_ABI_SET neon64
#else
#define RECOPS_ABI_SET base
#endif
#if defined(__FMA__)
#define RECOPS_ABI_FMA _fma
#else
#define RECOPS_ABI_FMA
#endif
#if defined(__F16C__)
#define RECOPS_ABI_F16C _f16c
#else
#define RECOPS_ABI_F16C
#endif
#if defined(__AVX512VNNI__)
#define RECOPS_ABI_VNNI _vnni
#else
#define RECOPS_ABI_VNNI
#endif
#if defined(__AVX512BF16__)
#define RECOPS_ABI_BF16 _bf16
#else
#define RECOPS_ABI_BF16
#endif
#if defined(__AVX512VPOPCNTDQ__)
#define RECOPS_ABI_POPCNT _popcnt
#else
#define RECOPS_ABI_POPCNT
#endif
#if defined(__FAST_MATH__) || __FINITE_MATH_ONLY__
#define RECOPS_ABI_MATH _fastmath
#else
#define RECOPS_ABI_MATH
#endif
#if defined(__cpp_exceptions)
#define RECOPS_ABI_ERRORS _throw
#else
#define RECOPS_ABI_ERRORS _abort
#endif
#define RECOPS_ABI_JOIN2(a, b, c, d, e, f, g, h) abi_##a##b##c##d##e##f##g##h
#define RECOPS_ABI_JOIN(a, b, c, d, e, f, g, h) RECOPS_ABI_JOIN2(a, b, c, d, e, f, g, h)
/// Name of the inline namespace that holds all code, e.g. `abi_avx512_fma_f16c_vnni_throw`.
#define RECOPS_ABI                                                                                                      \
  RECOPS_ABI_JOIN(RECOPS_ABI_SET, RECOPS_ABI_FMA, RECOPS_ABI_F16C, RECOPS_ABI_VNNI, RECOPS_ABI_BF16, RECOPS_ABI_POPCNT, \
                  RECOPS_ABI_MATH, RECOPS_ABI_ERRORS)

/// For members of vocabulary types that cross the boundary between differently built units: they leave no symbol.
#define RECOPS_INLINE [[gnu::always_inline]] inline
/// The same for a lambda: written behind its parameters.
#define RECOPS_LAMBDA_INLINE __attribute__((always_inline))
