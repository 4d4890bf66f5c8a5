/// @file   recops/simd/diffusion_update.hpp
/// @brief  One reverse step of a diffusion sampler on one row, in one pass: guidance, clipping, update and noise.
///
///     m = conditional m_c + unconditional m_u
///     p = clip(x0_x x + x0_m m)                                  the prediction that is used, and kept in `previous`
///     x = x_scale x + p_scale p + previous_scale previous + noise_scale z
///
/// NaN passes through; a row is never mixed with another. Traffic: x read and written, each input read once, noise in registers. A
/// clip by the norm reads its inputs twice (the row is in L1).
#pragma once
#include <cmath>
#include <limits>
#include <recops/simd/normal.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// Ids of rows must be one for each row, or none at all.
inline void check_ids(const char* operation, IndexView ids, Index rows) {
  if (!ids.is_null() && ids.size() != rows) [[unlikely]]
    recops::detail::fail_count(operation, "ids", rows, ids.size(), "ids, one for each row, or none");
}

/// out = a x + b y; out may be x or y.
template <Real T, class A = DefaultArch>
void combine(T a, const T* x, T b, const T* y, T* out, Index n) {
  const Batch<T, A> va(a), vb(b);
  for_each_vector<T, A>(n, [&](Index i, auto load, auto store)
                               RECOPS_LAMBDA_INLINE { store(out + i, mul_add(va, load(x + i), vb * load(y + i))); });
}

/// The scalars of a step.
template <class T>
struct DiffusionUpdate {
  T conditional = 1, unconditional = 0;            ///< guidance; the second is used where there is an m_u
  T x0_x = 0, x0_m = 1;                            ///< from the network's output to what is used
  T bound = std::numeric_limits<T>::infinity();    ///< elements of p are clipped to [-bound, bound]
  T longest = std::numeric_limits<T>::infinity();  ///< a p that is longer is scaled to this length
  T shortest = 0;                                  ///< one that is shorter too, unless it is 0
  T x_scale = 0, p_scale = 1, previous_scale = 0, noise_scale = 0;
};

namespace detail {

/// p of one vector before it is scaled to a length, from its places in memory.
template <class T, class A, class Load>
RECOPS_INLINE Batch<T, A> predicted(const DiffusionUpdate<T>& u, const T* x, const T* m, const T* m_null, Load&& load) {
  using B = Batch<T, A>;
  B p = load(m);
  if (m_null) p = mul_add(B(u.conditional), p, B(u.unconditional) * load(m_null));
  if (u.x0_x != T(0) || u.x0_m != T(1)) p = mul_add(B(u.x0_x), load(x), B(u.x0_m) * p);
  return xsimd::max(B(-u.bound), xsimd::min(B(u.bound), p));  // in this order a NaN passes
}

/// What p is multiplied by for its length.
template <class T, class A>
T length_scale(const DiffusionUpdate<T>& u, const T* x, const T* m, const T* m_null, Index n) {
  if (!(u.longest < std::numeric_limits<T>::infinity()) && !(u.shortest > 0)) return 1;
  using B = Batch<T, A>;
  const auto for_each_p = [&](auto&& use) RECOPS_LAMBDA_INLINE {
    for_each_vector<T, A>(n, [&](Index i, auto load, auto) RECOPS_LAMBDA_INLINE {
      use(predicted<T, A>(u, x + i, m + i, m_null ? m_null + i : nullptr, load));
    });
  };
  B sum(T(0));
  for_each_p([&](B p) RECOPS_LAMBDA_INLINE { sum = mul_add(p, p, sum); });
  const T length = std::sqrt(sum_lanes(sum));
  if (length > std::numeric_limits<T>::max()) [[unlikely]] {  // the square, if not p itself
    B most(T(0)), share(T(0));
    for_each_p([&](B p) { most = xsimd::max(most, xsimd::abs(p)); });
    const T unit = max_lane(most);
    for_each_p([&](B p) { share = mul_add(p / B(unit), p / B(unit), share); });
    const T scale = u.longest / unit / std::sqrt(sum_lanes(share));
    return scale < T(1) ? scale : T(1);
  }
  if (length > u.longest) return u.longest / length;
  return length < u.shortest && length > 0 ? u.shortest / length : T(1);
}

}  // namespace detail

/// The step of a row of `n` numbers. `m_null`, `previous` and `noise` may be null; `previous` is read if previous_scale is not 0, and
/// then holds p. Noise is read from `noise`, or drawn from `philox` unless that is null too.
template <Real T, class A = DefaultArch>
void diffusion_update(const DiffusionUpdate<T>& u, T* x, const T* m, const T* m_null, T* previous, const T* noise,
                      const Philox<A>* philox, Index n) {
  using B = Batch<T, A>;
  const B length(detail::length_scale<T, A>(u, x, m, m_null, n));
  const auto one = [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    const B p = detail::predicted<T, A>(u, x + i, m + i, m_null ? m_null + i : nullptr, load) * length;
    B after = mul_add(B(u.x_scale), load(x + i), B(u.p_scale) * p);
    if (previous) {
      if (u.previous_scale != T(0)) after = mul_add(B(u.previous_scale), load(previous + i), after);
      store(previous + i, p);
    }
    return after;
  };
  if (u.noise_scale == T(0) || (!noise && !philox)) {
    for_each_vector<T, A>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(x + i, one(i, load, store)); });
  } else if (noise) {
    for_each_vector<T, A>(n, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      store(x + i, mul_add(B(u.noise_scale), load(noise + i), one(i, load, store)));
    });
  } else {
    for_each_normal<T, A>(*philox, n, [&](Index i, B z, auto load, auto store) RECOPS_LAMBDA_INLINE {
      store(x + i, mul_add(B(u.noise_scale), z, one(i, load, store)));
    });
  }
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
