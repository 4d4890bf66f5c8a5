/// @file   bench/support/calibration.hpp
/// @brief  What one core can do at most, per scalar type and instruction set: multiply-adds, a register tile out of L1, reading.
#pragma once
#include <benchmark/benchmark.h>

#include <cstdint>
#include <recops/simd/xsimd.hpp>

namespace recops_bench {

using recops::Index;

/// The limits that a kernel for `T` and one instruction set is held against.
struct Limits {
  const char* set;                           ///< as xsimd calls it
  double (*fma)();                           ///< does nothing but multiply-adds in registers; returns their operations
  double (*tile)();                          ///< multiplies small matrices that stay in L1; returns the operations
  void (*read)(const void* p, Index bytes);  ///< reads that many bytes once
};

namespace detail {

template <class T, class A>
[[gnu::noinline]] double fma_loop() {
  using namespace recops::simd;
  using B = Batch<T, A>;
  constexpr int chains = 12, rounds = 2000;
  B x[chains];
  T start = T(1);
  benchmark::DoNotOptimize(start);
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) x[i] = B(start * static_cast<T>(i));
  const B factor(start * T(0.999)), term(start * T(0.001));
  for (int r = 0; r < rounds; ++r) {
    RECOPS_UNROLL
    for (int i = 0; i < chains; ++i) x[i] = mul_add(x[i], factor, term);
  }
  B sum(T(0));
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) sum = sum + x[i];
  T result = sum_lanes(sum);
  benchmark::DoNotOptimize(result);
  return 2.0 * chains * rounds * static_cast<double>(lanes<T, A>);
}

/// The inner loop of any gemm at its best: rows of broadcasts times two vectors, 22 KB in all, nothing packed, added or skipped.
template <class T, class A>
[[gnu::noinline]] double tile_loop() {
  using namespace recops::simd;
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  constexpr int rows = registers<A> == 32 ? 12 : 6, depth = 512 / static_cast<int>(sizeof(T)), rounds = 8;
  alignas(64) static T a[depth * rows], b[depth * 2 * W], c[rows * 2 * W];
  benchmark::DoNotOptimize(&a[0]);
  benchmark::DoNotOptimize(&b[0]);
  for (int round = 0; round < rounds; ++round) {
    B acc[rows][2];
    RECOPS_UNROLL
    for (int r = 0; r < rows; ++r) acc[r][0] = acc[r][1] = B(T(0));
    for (int k = 0; k < depth; ++k) {
      const B left = B::load_aligned(b + k * 2 * W), right = B::load_aligned(b + k * 2 * W + W);
      RECOPS_UNROLL
      for (int r = 0; r < rows; ++r) {
        const B scalar(a[k * rows + r]);
        acc[r][0] = mul_add(scalar, left, acc[r][0]);
        acc[r][1] = mul_add(scalar, right, acc[r][1]);
      }
    }
    RECOPS_UNROLL
    for (int r = 0; r < rows; ++r) {
      acc[r][0].store_aligned(c + r * 2 * W);
      acc[r][1].store_aligned(c + r * 2 * W + W);
    }
    benchmark::ClobberMemory();
  }
  benchmark::DoNotOptimize(&c[0]);
  return 2.0 * rows * 2 * static_cast<double>(W) * depth * rounds;
}

template <class A>
[[gnu::noinline]] void read_loop(const void* p, Index bytes) {
  using namespace recops::simd;
  using B = Batch<float, A>;
  constexpr int chains = 8;
  constexpr Index step = chains * lanes<float, A>;
  const float* data = static_cast<const float*>(p);
  const Index n = bytes / static_cast<Index>(sizeof(float));
  B x[chains];
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) x[i] = B(0.0f);
  Index at = 0;
  for (; at + step <= n; at += step) {
    RECOPS_UNROLL
    for (int i = 0; i < chains; ++i) x[i] = x[i] + B::load_unaligned(data + at + i * lanes<float, A>);
  }
  for (; at + lanes<float, A> <= n; at += lanes<float, A>) x[0] = x[0] + B::load_unaligned(data + at);
  B sum(0.0f);
  RECOPS_UNROLL
  for (int i = 0; i < chains; ++i) sum = sum + x[i];
  float result = sum_lanes(sum);
  benchmark::DoNotOptimize(result);
}

}  // namespace detail

template <class T, class A = recops::simd::DefaultArch>
const Limits& limits() {
  static const Limits l{A::name(), detail::fma_loop<T, A>, detail::tile_loop<T, A>, detail::read_loop<A>};
  return l;
}

}  // namespace recops_bench
