/// @file   recops/ranking/product_bce.hpp
/// @brief  Cross-entropy of the product of two probabilities given by logits: click and conversion, click and no conversion.
///
///     p = sigmoid(a) sigmoid(b)            L = -t log p - (1 - t) log(1 - p), its mean over rows
///
/// Shapes      a, b [n]   targets [n], 0 or 1
/// Edge cases  no rows: 0.  Logits of any size are safe: no probability is clipped and nothing is divided by p (1 - p).
/// NaN         makes the loss NaN, and of the gradients its own row's.
/// Precision   a row in T, within a few units of the last place also where p is tiny or almost 1; sums in double.
/// Cost        O(n), in vectors: three exponentials and two logarithms a row; no scratch.
/// Errors      Error if sizes differ or a target is neither 0 nor 1.
/// Gradient    of a and b; adds.
/// Reference   Ma et al., Entire Space Multi-Task Model, SIGIR 2018, arXiv 1804.07931 (CTCVR). The stable form is ours.
#pragma once
#include <algorithm>
#include <recops/core/error.hpp>
#include <recops/simd/log.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Loss and derivatives of one vector of rows.
template <class B>
struct ProductBce {
  B loss, da, db;
};

/// `u`, `v` are the logistic functions of a and b.
template <class T, class A>
RECOPS_INLINE ProductBce<simd::Batch<T, A>> product_bce(simd::Batch<T, A> a, simd::Batch<T, A> b, const simd::Logistic<T, A>& u,
                                                        const simd::Logistic<T, A>& v, simd::Batch<T, A> t) {
  using B = simd::Batch<T, A>;
  const B zero(T(0)), one(T(1));
  // sigmoid(-x) and softplus(-x), which are small where x is large.
  const B not_a = xsimd::select(a >= zero, u.far / (one + u.far), one - u.sigmoid);
  const B not_b = xsimd::select(b >= zero, v.far / (one + v.far), one - v.sigmoid);
  const B minus_log_p = (xsimd::max(zero, -a) + u.rest) + (xsimd::max(zero, -b) + v.rest);
  const B p = u.sigmoid * v.sigmoid;
  // Where p > 1/2 both logits are positive, and 1 - p = e^-m (e^(m-a) + e^(m-b) + e^(m-a-b)) / ((1 + e^-a) (1 + e^-b)) with m the
  // smaller of the two.
  const auto likely = p > B(T(0.5));
  const B near = simd::detail::exp_minus_abs(B(a - b)), least = xsimd::min(u.far, v.far);
  const B rest = near + least;
  const B log_rest = simd::log1p(B(xsimd::select(likely, rest, -p)));
  const B minus_log_not_p = xsimd::select(likely, xsimd::min(a, b) - log_rest + minus_log_p, -log_rest);
  // d(-log(1 - p)) / da = p sigmoid(-a) / (1 - p)
  const B share = one / xsimd::select(likely, one + rest, one - p);
  const B in_a = xsimd::select(likely, xsimd::select(a <= b, one, near) / (one + u.far), p * not_a);
  const B in_b = xsimd::select(likely, xsimd::select(b <= a, one, near) / (one + v.far), p * not_b);
  const auto positive = t > B(T(0.5));
  return {xsimd::select(positive, minus_log_p, minus_log_not_p), xsimd::select(positive, -not_a, in_a * share),
          xsimd::select(positive, -not_b, in_b * share)};
}

/// Calls `f(i, count, load, store)` for vectors of rows [0, n) in blocks of 64; `load(p)` gives `count` numbers, zeros behind them.
/// `flush()` follows each block, so that sums in T stay short.
template <class T, class F, class Flush>
RECOPS_INLINE void for_each_rows(Index n, F&& f, Flush&& flush) {
  constexpr Index block = 64 * simd::lanes<T>;
  for (Index start = 0; start < n; start += block) {
    const Index count = std::min(block, n - start);
    simd::for_each_vector<T, simd::DefaultArch>(count, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
      f(start + i, std::min(simd::lanes<T>, count - i), load, store);
    });
    flush();
  }
}

/// `count` labels as numbers, zeros behind them.
template <class T>
RECOPS_INLINE simd::Batch<T> load_labels(const std::uint8_t* y, Index count) {
  alignas(64) T lane[simd::lanes<T>] = {};
  for (Index l = 0; l < count; ++l) lane[l] = static_cast<T>(y[l]);
  return simd::Batch<T>::load_aligned(lane);
}

/// 1 in the first `count` lanes.
template <class T>
RECOPS_INLINE simd::Batch<T> first_lanes(Index count) {
  alignas(64) T lane[simd::lanes<T>];
  for (Index l = 0; l < simd::lanes<T>; ++l) lane[l] = l < count ? T(1) : T(0);
  return simd::Batch<T>::load_aligned(lane);
}

/// x where `here` is 1, 0 where it is 0 (also for a NaN there).
template <class T, class A>
RECOPS_INLINE simd::Batch<T, A> where(simd::Batch<T, A> here, simd::Batch<T, A> x) {
  return xsimd::select(here > simd::Batch<T, A>(T(0)), x, simd::Batch<T, A>(T(0)));
}

inline void check_zero_one(const char* name, const char* argument, VectorView<const std::uint8_t> y, Index n) {
  check_size(name, argument, y, n);
  for (Index i = 0; i < n; ++i)
    if (y[i] > 1) fail_at(name, argument, "labels that are 0 or 1", -1, i, y[i]);
}

template <class T>
double product_bce_rows(const char* name, VectorView<const T> a, VectorView<const T> b, VectorView<const std::uint8_t> targets,
                        VectorView<T> da, VectorView<T> db) {
  using B = simd::Batch<T>;
  check_size(name, "a", a, any_size);
  const Index n = a.size();
  check_size(name, "b", b, n);
  check_zero_one(name, "targets", targets, n);
  if (!da.empty()) check_size(name, "da", da, n);
  if (!db.empty()) check_size(name, "db", db, n);
  if (n == 0) return 0;
  double total = 0;
  B losses(T(0));
  const B scale(static_cast<T>(1 / static_cast<double>(n)));
  for_each_rows<T>(
      n,
      [&](Index i, Index count, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const B x = load(a.data() + i), y = load(b.data() + i);
        const auto f = product_bce(x, y, simd::logistic(x), simd::logistic(y), load_labels<T>(targets.data() + i, count));
        losses = losses + where(first_lanes<T>(count), f.loss);
        if (!da.empty()) store(da.data() + i, simd::mul_add(scale, f.da, load(da.data() + i)));
        if (!db.empty()) store(db.data() + i, simd::mul_add(scale, f.db, load(db.data() + i)));
      },
      [&] {
        total += static_cast<double>(simd::sum_lanes(losses));
        losses = B(T(0));
      });
  return total / static_cast<double>(n);
}

}  // namespace detail

/// Mean loss of `targets [n]` under sigmoid(a) sigmoid(b). Throws `Error`; see above.
template <Real T>
double product_bce(VectorView<const T> a, VectorView<const T> b, VectorView<const std::uint8_t> targets) {
  return detail::product_bce_rows<T>("product_bce", a, b, targets, {}, {});
}

/// The same, and adds its gradients to `da [n]` and `db [n]`, each unless empty.
template <Real T>
double product_bce_value_and_grad(VectorView<const T> a, VectorView<const T> b, VectorView<const std::uint8_t> targets,
                                  VectorView<T> da, VectorView<T> db) {
  return detail::product_bce_rows<T>("product_bce_value_and_grad", a, b, targets, da, db);
}

}  // namespace RECOPS_ABI
}  // namespace recops
