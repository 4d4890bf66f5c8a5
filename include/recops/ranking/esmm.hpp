/// @file   recops/ranking/esmm.hpp
/// @brief  ESMM: conversion learned over all impressions through the product with the click.
///
///     L = mean BCE(a, o) + mean BCE(p_a p_b, o r)                p = sigmoid of a logit; o clicked, r converted
///
/// The conversion logit b gets no loss of its own: on impressions without a click r is unknown, o r is not.
///
/// Shapes      click_logits a, conversion_logits b, clicks o, conversions r [n]
/// Edge cases  no rows: 0.  A conversion without a click is an error.
/// NaN         makes the loss NaN, and of the gradients its own row's.
/// Precision   a row in T by stable forms (product_bce.hpp), sums in double.
/// Cost        O(n) in vectors, one pass; no scratch.
/// Errors      Error if sizes differ, a label is neither 0 nor 1, or r > o.
/// Gradient    of both logits; adds.
/// Reference   Ma et al., SIGIR 2018, arXiv 1804.07931.
#pragma once
#include <recops/ranking/product_bce.hpp>

namespace recops {

/// What `esmm_loss` consists of.
struct EsmmLoss {
  double value = 0;  ///< the sum of the two
  double click = 0;  ///< mean BCE of the click
  double both = 0;   ///< mean BCE of click and conversion (CTCVR)
};

inline namespace RECOPS_ABI {
namespace detail {

/// Sizes and labels of a funnel; every conversion has its click.
template <class T>
Index check_funnel(const char* name, VectorView<const T> a, VectorView<const T> b, VectorView<const std::uint8_t> clicks,
                   VectorView<const std::uint8_t> conversions, VectorView<T> da, VectorView<T> db) {
  check_size(name, "click_logits", a, any_size);
  const Index n = a.size();
  check_size(name, "conversion_logits", b, n);
  check_zero_one(name, "clicks", clicks, n);
  check_zero_one(name, "conversions", conversions, n);
  for (Index i = 0; i < n; ++i)
    if (conversions[i] > clicks[i]) fail_at(name, "conversions", "no conversion without a click", -1, i, conversions[i]);
  if (!da.empty()) check_size(name, "dclick_logits", da, n);
  if (!db.empty()) check_size(name, "dconversion_logits", db, n);
  return n;
}

/// BCE of a logit, given its logistic function: softplus(x) - t x, without cancellation.
template <class T, class A>
RECOPS_INLINE simd::Batch<T, A> bce_of(simd::Batch<T, A> x, const simd::Logistic<T, A>& f, simd::Batch<T, A> t) {
  using B = simd::Batch<T, A>;
  const B zero(T(0));
  return f.rest + xsimd::select(t > B(T(0.5)), xsimd::max(zero, -x), xsimd::max(zero, x));
}

template <class T>
EsmmLoss esmm(const char* name, VectorView<const T> a, VectorView<const T> b, VectorView<const std::uint8_t> clicks,
              VectorView<const std::uint8_t> conversions, VectorView<T> da, VectorView<T> db) {
  using B = simd::Batch<T>;
  const Index n = check_funnel<T>(name, a, b, clicks, conversions, da, db);
  if (n == 0) return {};
  const B scale(static_cast<T>(1 / static_cast<double>(n)));
  EsmmLoss total;
  B click(T(0)), both(T(0));
  for_each_rows<T>(
      n,
      [&](Index i, Index count, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const B x = load(a.data() + i), y = load(b.data() + i), here = first_lanes<T>(count);
        const B o = load_labels<T>(clicks.data() + i, count), r = load_labels<T>(conversions.data() + i, count);
        const auto u = simd::logistic(x), v = simd::logistic(y);
        const auto f = product_bce(x, y, u, v, r);  // r = o r: there is no conversion without a click
        click = click + where(here, bce_of(x, u, o));
        both = both + where(here, f.loss);
        if (!da.empty()) store(da.data() + i, simd::mul_add(scale, (u.sigmoid - o) + f.da, load(da.data() + i)));
        if (!db.empty()) store(db.data() + i, simd::mul_add(scale, f.db, load(db.data() + i)));
      },
      [&] {
        total.click += static_cast<double>(simd::sum_lanes(click));
        total.both += static_cast<double>(simd::sum_lanes(both));
        click = both = B(T(0));
      });
  total.click /= static_cast<double>(n);
  total.both /= static_cast<double>(n);
  total.value = total.click + total.both;
  return total;
}

}  // namespace detail

/// The loss of `click_logits [n]` and `conversion_logits [n]` under `clicks [n]` and `conversions [n]`. Throws `Error`; see above.
template <Real T>
EsmmLoss esmm_loss(VectorView<const T> click_logits, VectorView<const T> conversion_logits, VectorView<const std::uint8_t> clicks,
                   VectorView<const std::uint8_t> conversions) {
  return detail::esmm<T>("esmm_loss", click_logits, conversion_logits, clicks, conversions, {}, {});
}

/// The same, and adds its gradients to `dclick_logits [n]` and `dconversion_logits [n]`, each unless empty.
template <Real T>
EsmmLoss esmm_loss_value_and_grad(VectorView<const T> click_logits, VectorView<const T> conversion_logits,
                                  VectorView<const std::uint8_t> clicks, VectorView<const std::uint8_t> conversions,
                                  VectorView<T> dclick_logits, VectorView<T> dconversion_logits) {
  return detail::esmm<T>("esmm_loss_value_and_grad", click_logits, conversion_logits, clicks, conversions, dclick_logits,
                         dconversion_logits);
}

}  // namespace RECOPS_ABI
}  // namespace recops
