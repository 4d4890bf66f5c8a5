/// @file   recops/simd/xsimd.hpp
/// @brief  The only place that includes xsimd: one vocabulary over its versions, and the few operations it lacks or has slow.
///
/// Kernels are templates on the scalar `T` and on an architecture `A` that defaults to the widest one compiled for, so that one
/// binary built for the widest set can run every narrower kernel beside it.
#pragma once
#include <recops/core/views.hpp>
#include <tuple>

// GCC 12 takes the deliberately undefined registers of its own AVX-512 intrinsics for a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#if XSIMD_VERSION_MAJOR < 8 || (XSIMD_VERSION_MAJOR == 8 && XSIMD_VERSION_MINOR < 1)
#error "recops needs xsimd >= 8.1"
#endif

#if defined(__aarch64__) && XSIMD_VERSION_MAJOR == 8
// xsimd 8.1 divides floats by an approximate reciprocal, which is off in the last place and makes 1 / 0 a NaN.
template <>
inline xsimd::batch<float, xsimd::neon64>& xsimd::batch<float, xsimd::neon64>::operator/=(
    const xsimd::batch<float, xsimd::neon64>& other) {
  return *this = batch(vdivq_f32(this->data, other.data));
}
#endif

// Loops over register arrays must be unrolled whole: a rolled one keeps the accumulators on the stack (3x slower).
#if defined(__clang__)
#define RECOPS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RECOPS_UNROLL _Pragma("GCC unroll 64")
#endif

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// The widest instruction set this unit is compiled for.
using DefaultArch = xsimd::default_arch;

/// Every instruction set this unit can run, for tests: the default one and the narrower ones of its family.
#if defined(__AVX512F__) && defined(__FMA__)
using Architectures = std::tuple<DefaultArch, xsimd::fma3<xsimd::avx2>, xsimd::sse2>;
#elif defined(__AVX2__) && defined(__FMA__)
using Architectures = std::tuple<DefaultArch, xsimd::sse2>;
#else
using Architectures = std::tuple<DefaultArch>;
#endif

template <class T, class A = DefaultArch>
using Batch = xsimd::batch<T, A>;

/// Lanes of `T`.
template <class T, class A = DefaultArch>
inline constexpr Index lanes = static_cast<Index>(Batch<T, A>::size);
/// Registers that a tile may fill with accumulators.
template <class A = DefaultArch>
inline constexpr int registers = std::is_base_of_v<xsimd::avx512f, A> || std::is_base_of_v<xsimd::neon64, A> ? 32 : 16;

namespace detail {

/// Keeps a vector that is used several times in its register: gcc would load it anew for each use, and loads are what a tile is
/// short of.
template <class T, class A>
RECOPS_INLINE Batch<T, A> in_register(Batch<T, A> v) {
#if defined(__x86_64__)
  auto x = static_cast<typename Batch<T, A>::register_type>(v);
  asm("" : "+v"(x));
  return x;
#else
  return v;
#endif
}

}  // namespace detail

/// Names differ from xsimd's, which argument-dependent lookup would also find.

/// a * b + c, in one instruction where there is one (xsimd 8.1 has none for AVX-512, and on NEON leaves it to the compiler).
template <class T, class A>
RECOPS_INLINE Batch<T, A> mul_add(Batch<T, A> a, Batch<T, A> b, Batch<T, A> c) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_fmadd_ps(a, b, c);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_fmadd_pd(a, b, c);
  } else
#endif
#if defined(__aarch64__)
      if constexpr (std::is_base_of_v<xsimd::neon64, A> && std::is_same_v<T, float>) {
    return vfmaq_f32(c, a, b);
  } else if constexpr (std::is_base_of_v<xsimd::neon64, A> && std::is_same_v<T, double>) {
    return vfmaq_f64(c, a, b);
  } else
#endif
    return xsimd::fma(a, b, c);
}

/// sum <- sum + a * b. GCC likes to give the result the register of a factor, and then copies or spills sums in a loop that is unrolled.
template <class T, class A>
RECOPS_INLINE void add_product(Batch<T, A> a, Batch<T, A> b, Batch<T, A>& sum) {
#if defined(__FMA__)
  if constexpr (std::is_base_of_v<xsimd::fma3<xsimd::avx2>, A>) {
    using V = typename Batch<T, A>::register_type;
    V x = sum;
    if constexpr (std::is_same_v<T, float>) {
      asm("vfmadd231ps {%2, %1, %0|%0, %1, %2}" : "+x"(x) : "x"(static_cast<V>(a)), "x"(static_cast<V>(b)));
    } else {
      asm("vfmadd231pd {%2, %1, %0|%0, %1, %2}" : "+x"(x) : "x"(static_cast<V>(a)), "x"(static_cast<V>(b)));
    }
    sum = x;
  } else
#endif
    sum = mul_add(a, b, sum);
}

/// c - a * b
template <class T, class A>
RECOPS_INLINE Batch<T, A> neg_mul_add(Batch<T, A> a, Batch<T, A> b, Batch<T, A> c) {
  return mul_add(-a, b, c);
}

/// The same bits read as lanes of another type of the same size.
template <class To, class T, class A>
RECOPS_INLINE Batch<To, A> bits_as(Batch<T, A> v) {
  if constexpr (requires { requires std::is_same_v<decltype(xsimd::bitwise_cast<To>(v)), Batch<To, A>>; }) {
    return xsimd::bitwise_cast<To>(v);
  } else {
    return xsimd::bitwise_cast<Batch<To, A>>(v);  // xsimd 8 names the batch
  }
}

/// Sum of the lanes.
template <class T, class A>
RECOPS_INLINE T sum_lanes(Batch<T, A> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_reduce_add_ps(v);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_reduce_add_pd(v);
  } else
#endif
#if XSIMD_VERSION_MAJOR >= 9
    return xsimd::reduce_add(v);
#else
    return xsimd::hadd(v);
#endif
}

/// The larger of each lane; where `v` is NaN, `m`. (NEON's own maximum would hand the NaN on.)
template <class T, class A>
RECOPS_INLINE Batch<T, A> larger(Batch<T, A> v, Batch<T, A> m) {
#if defined(__aarch64__)
  return xsimd::select(v > m, v, m);
#else
  return xsimd::max(v, m);
#endif
}

/// Largest lane. A NaN may be lost: look for it separately where it matters.
template <class T, class A>
RECOPS_INLINE T max_lane(Batch<T, A> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_reduce_max_ps(v);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_reduce_max_pd(v);
  }
#endif
  alignas(64) T lane[Batch<T, A>::size];
  v.store_aligned(lane);
  T m = lane[0];
  for (std::size_t i = 1; i < Batch<T, A>::size; ++i) m = lane[i] > m ? lane[i] : m;
  return m;
}

/// The first `n` (0 <= n < lanes) elements at `p`, zeros behind them; nothing past them is read.
template <class T, class A = DefaultArch>
RECOPS_INLINE Batch<T, A> load_first(const T* p, Index n) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p);
  } else
#endif
  {
    alignas(64) T lane[Batch<T, A>::size] = {};
    for (Index i = 0; i < n; ++i) lane[i] = p[i];
    return Batch<T, A>::load_aligned(lane);
  }
}

/// Writes the first `n` (0 <= n < lanes) lanes to `p`; nothing past them is touched.
template <class T, class A>
RECOPS_INLINE void store_first(T* p, Batch<T, A> v, Index n) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1u), v);
  } else
#endif
  {
    alignas(64) T lane[Batch<T, A>::size];
    v.store_aligned(lane);
    for (Index i = 0; i < n; ++i) p[i] = lane[i];
  }
}

/// Stores around the caches where there is such a store (p is aligned to the vector); else an ordinary one.
template <class T, class A>
RECOPS_INLINE void store_far(T* p, Batch<T, A> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, float>) {
    return _mm512_stream_ps(p, v);
  } else if constexpr (std::is_base_of_v<xsimd::avx512f, A> && std::is_same_v<T, double>) {
    return _mm512_stream_pd(p, v);
  } else
#endif
#if defined(__AVX__)
      if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, float>) {
    return _mm256_stream_ps(p, v);
  } else if constexpr (std::is_base_of_v<xsimd::avx, A> && std::is_same_v<T, double>) {
    return _mm256_stream_pd(p, v);
  } else
#endif
    v.store_unaligned(p);
}

/// Before another thread may read what was stored around the caches.
RECOPS_INLINE void far_done() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

/// Calls `f(offset, load, store)` over [0, n): whole vectors first, then the tail. `load(p)` gives `lanes` elements (zeros past
/// the end), `store(p, v)` writes what lies inside.
template <class T, class A, class F>
RECOPS_INLINE void for_each_vector(Index n, F&& f) {
  constexpr Index W = lanes<T, A>;
  Index i = 0;
  for (; i + W <= n; i += W)
    f(
        i, [](const T* p) RECOPS_LAMBDA_INLINE { return Batch<T, A>::load_unaligned(p); },
        [](T* p, Batch<T, A> v) RECOPS_LAMBDA_INLINE { v.store_unaligned(p); });
  if (const Index rest = n - i; rest > 0)
    f(
        i, [rest](const T* p) RECOPS_LAMBDA_INLINE { return load_first<T, A>(p, rest); },
        [rest](T* p, Batch<T, A> v) RECOPS_LAMBDA_INLINE { store_first<T, A>(p, v, rest); });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
