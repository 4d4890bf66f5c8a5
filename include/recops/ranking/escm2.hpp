/// @file   recops/ranking/escm2.hpp
/// @brief  ESCM2: the conversion loss of clicked impressions, weighted by the inverse of the predicted click rate so that it stands
///         for all impressions; alone (IPS) or with a second head that predicts the error where nobody clicked (doubly robust).
///
///     L = BCE(a, o) + conversion_weight L_cvr + product_weight BCE(p_a p_b, o r)               all means over n rows
///     q = max(sigmoid(a), clip)      e = BCE(b, r)
///     IPS   L_cvr = Σ o e / q / N               N = n (entire), Σ o (clicked) or Σ o / q (self-normalised)
///     DR    L_cvr = mean( d + o (e - d) / q ) + mean( o (e - d)² / q )          d = imputed error, or softplus of it
///
/// Shapes      click_logits a, conversion_logits b, clicks o, conversions r, imputed [n]
/// Edge cases  no rows: 0; without a click L_cvr is 0 (IPS).  A conversion without a click is an error.
/// NaN         makes the loss NaN, and of the gradients its own row's.
/// Precision   a row in T by stable forms, sums in double.
/// Cost        O(n) in vectors: one pass, IPS with clicked or self-normalised weights two; no scratch.
/// Errors      Error if sizes differ, a label is neither 0 nor 1, r > o, not 0 < clip <= 1, or a weight is not finite.
/// Gradient    of both logits and the imputed error; adds. q is a constant to it unless `propensity_gradient`.
/// Reference   Wang et al., ESCM2, SIGIR 2022, arXiv 2204.05125. The source normalises by all impressions.
#pragma once
#include <recops/ranking/esmm.hpp>

namespace recops {

/// What the inverse-propensity sum is divided by. It changes the weight of the conversion loss by the click rate.
enum class PropensityNorm {
  entire,           ///< all rows: unbiased, as in the source
  clicked,          ///< the clicked rows, as in many reproductions: 1 / click rate times as large
  self_normalised,  ///< the sum of the weights: a weighted mean of the clicked rows' errors
};

/// Options of `escm2_ips_loss` and `escm2_dr_loss`.
struct Escm2Options {
  double conversion_weight = 1;                  ///< of L_cvr
  double product_weight = 1;                     ///< of click and conversion (CTCVR)
  double clip = 0.01;                            ///< least propensity, in (0, 1]
  PropensityNorm norm = PropensityNorm::entire;  ///< IPS only
  bool propensity_gradient = false;              ///< also differentiate 1 / q where it is not clipped
  bool softplus_imputation = false;              ///< DR: d = softplus(imputed), which is never negative
  bool imputation_trains_conversion = true;      ///< DR: let the squared term's gradient reach the conversion logit
};

/// What the loss consists of.
struct Escm2Loss {
  double value = 0;       ///< the weighted sum
  double click = 0;       ///< BCE of the click
  double both = 0;        ///< BCE of click and conversion
  double conversion = 0;  ///< L_cvr: IPS, or the first term of DR
  double imputation = 0;  ///< DR: the squared term
};

inline namespace RECOPS_ABI {
namespace detail {

/// 1 / max(p, clip), and its derivative by the logit of p: -(1 - p) / p, 0 where clipped.
template <class B>
struct InversePropensity {
  B weight, slope;
};
template <class T, class A>
RECOPS_INLINE InversePropensity<simd::Batch<T, A>> inverse_propensity(simd::Batch<T, A> p, simd::Batch<T, A> clip) {
  using B = simd::Batch<T, A>;
  const B one(T(1)), weight = one / xsimd::max(clip, p);  // in this order a NaN passes
  return {weight, xsimd::select(p > clip, (p - one) * weight, B(T(0)))};
}

/// Σ o, or Σ o / q over rows that are not NaN.
template <class T>
double propensity_mass(VectorView<const T> a, VectorView<const std::uint8_t> clicks, double clip, PropensityNorm norm) {
  using B = simd::Batch<T>;
  const Index n = a.size();
  double total = 0;
  if (norm != PropensityNorm::self_normalised) {
    for (const std::uint8_t o : clicks) total += o;
    return total;
  }
  B sum(T(0));
  for_each_rows<T>(
      n,
      [&](Index i, Index count, auto load, auto) RECOPS_LAMBDA_INLINE {
        const B x = load(a.data() + i), o = load_labels<T>(clicks.data() + i, count);
        const B w = inverse_propensity(simd::logistic(x).sigmoid, B(static_cast<T>(clip))).weight;
        sum = sum + where(o, B(xsimd::select(x == x, w, B(T(0)))));
      },
      [&] {
        total += static_cast<double>(simd::sum_lanes(sum));
        sum = B(T(0));
      });
  return total;
}

inline void check_escm2(const char* name, const Escm2Options& o) {
  check_option(name, "conversion_weight", std::abs(o.conversion_weight) <= 1e30, "a finite weight", o.conversion_weight);
  check_option(name, "product_weight", std::abs(o.product_weight) <= 1e30, "a finite weight", o.product_weight);
  check_option(name, "clip", o.clip > 0 && o.clip <= 1, "0 < clip <= 1", o.clip);
}

/// With `robust` the doubly robust form; `imputed` and `dimputed` are empty otherwise.
template <bool robust, class T>
Escm2Loss escm2(const char* name, VectorView<const T> a, VectorView<const T> b, VectorView<const T> imputed,
                VectorView<const std::uint8_t> clicks, VectorView<const std::uint8_t> conversions, const Escm2Options& o,
                VectorView<T> da, VectorView<T> db, VectorView<T> dimputed) {
  using B = simd::Batch<T>;
  const Index n = check_funnel<T>(name, a, b, clicks, conversions, da, db);
  if constexpr (robust) check_size(name, "imputed", imputed, n);
  if (!dimputed.empty()) check_size(name, "dimputed", dimputed, n);
  check_escm2(name, o);
  if (n == 0) return {};
  const double rows = static_cast<double>(n);
  const bool weighted_mean = !robust && o.norm == PropensityNorm::self_normalised;
  double mass = rows;
  if (!robust && o.norm != PropensityNorm::entire) mass = propensity_mass(a, clicks, o.clip, o.norm);
  const double inverse_mass = mass > 0 ? 1 / mass : 0;
  const bool through = o.propensity_gradient && !da.empty();

  const B zero(T(0)), one(T(1)), clip(static_cast<T>(o.clip)), each(static_cast<T>(1 / rows));
  const B per_conversion(static_cast<T>(o.conversion_weight * inverse_mass)),
      per_product(static_cast<T>(o.product_weight / rows));
  Escm2Loss total;
  B click(zero), both(zero), conversion(zero), imputation(zero), sound(zero);
  double sound_conversion = 0;  // of rows that are not NaN
  const auto flush = [&] {
    total.click += static_cast<double>(simd::sum_lanes(click));
    total.both += static_cast<double>(simd::sum_lanes(both));
    total.conversion += static_cast<double>(simd::sum_lanes(conversion));
    total.imputation += static_cast<double>(simd::sum_lanes(imputation));
    sound_conversion += static_cast<double>(simd::sum_lanes(sound));
    click = both = conversion = imputation = sound = zero;
  };
  for_each_rows<T>(
      n,
      [&](Index i, Index count, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const B x = load(a.data() + i), y = load(b.data() + i), here = first_lanes<T>(count);
        const B clicked = load_labels<T>(clicks.data() + i, count), converted = load_labels<T>(conversions.data() + i, count);
        const auto u = simd::logistic(x), v = simd::logistic(y);
        const auto f = product_bce(x, y, u, v, converted);
        const auto q = inverse_propensity(u.sigmoid, clip);
        const B error = bce_of(y, v, converted), slope = v.sigmoid - converted;
        click = click + where(here, bce_of(x, u, clicked));
        both = both + where(here, f.loss);
        B in_a = each * (u.sigmoid - clicked) + per_product * f.da, in_b = per_product * f.db;
        if constexpr (!robust) {
          const B cost = where(clicked, B(q.weight * error));
          conversion = conversion + cost;
          sound = sound + xsimd::select(cost == cost, cost, zero);
          in_b = in_b + per_conversion * where(clicked, B(q.weight * slope));
          if (through) in_a = in_a + per_conversion * where(clicked, B(q.slope * error));
        } else {
          const B raw = load(imputed.data() + i);
          const auto s = simd::logistic(raw);
          const B guess = o.softplus_imputation ? s.softplus : raw, guess_slope = o.softplus_imputation ? s.sigmoid : one;
          const B miss = error - guess, weighted = where(clicked, B(q.weight * miss));
          conversion = conversion + where(here, B(guess + weighted));
          imputation = imputation + where(clicked, B(q.weight * miss * miss));
          const B both_terms = o.imputation_trains_conversion ? one + B(T(2)) * miss : one;
          in_b = in_b + per_conversion * where(clicked, B(q.weight * both_terms * slope));
          if (through) in_a = in_a + per_conversion * where(clicked, B(q.slope * (miss + miss * miss)));
          if (!dimputed.empty()) {
            const B down = one - where(clicked, q.weight) - B(T(2)) * weighted;
            store(dimputed.data() + i, simd::mul_add(per_conversion, guess_slope * down, load(dimputed.data() + i)));
          }
        }
        if (!da.empty()) store(da.data() + i, load(da.data() + i) + in_a);
        if (!db.empty()) store(db.data() + i, load(db.data() + i) + in_b);
      },
      flush);
  if (through && weighted_mean && mass > 0) {  // the divisor depends on the propensities too
    const B mean(static_cast<T>(sound_conversion / mass));
    for_each_rows<T>(
        n,
        [&](Index i, Index count, auto load, auto store) RECOPS_LAMBDA_INLINE {
          const B clicked = load_labels<T>(clicks.data() + i, count);
          const B s = inverse_propensity(simd::logistic(B(load(a.data() + i))).sigmoid, clip).slope;
          store(da.data() + i, load(da.data() + i) - per_conversion * where(clicked, B(s * mean)));
        },
        [] {});
  }
  total.click /= rows;
  total.both /= rows;
  total.conversion *= inverse_mass;
  total.imputation *= inverse_mass;
  total.value = total.click + o.conversion_weight * (total.conversion + total.imputation) + o.product_weight * total.both;
  return total;
}

}  // namespace detail

/// ESCM2 with inverse propensities: the loss of `click_logits [n]` and `conversion_logits [n]` under `clicks [n]` and
/// `conversions [n]`. Throws `Error`; see above.
template <Real T>
Escm2Loss escm2_ips_loss(VectorView<const T> click_logits, VectorView<const T> conversion_logits,
                         VectorView<const std::uint8_t> clicks, VectorView<const std::uint8_t> conversions,
                         const Escm2Options& options = {}) {
  return detail::escm2<false, T>("escm2_ips_loss", click_logits, conversion_logits, {}, clicks, conversions, options, {}, {}, {});
}

/// The same, and adds its gradients to `dclick_logits [n]` and `dconversion_logits [n]`, each unless empty.
template <Real T>
Escm2Loss escm2_ips_loss_value_and_grad(VectorView<const T> click_logits, VectorView<const T> conversion_logits,
                                        VectorView<const std::uint8_t> clicks, VectorView<const std::uint8_t> conversions,
                                        const Escm2Options& options, VectorView<T> dclick_logits,
                                        VectorView<T> dconversion_logits) {
  return detail::escm2<false, T>("escm2_ips_loss_value_and_grad", click_logits, conversion_logits, {}, clicks, conversions,
                                 options, dclick_logits, dconversion_logits, {});
}

/// ESCM2, doubly robust: `imputed [n]` is a third head that predicts the conversion's error. Throws `Error`; see above.
template <Real T>
Escm2Loss escm2_dr_loss(VectorView<const T> click_logits, VectorView<const T> conversion_logits, VectorView<const T> imputed,
                        VectorView<const std::uint8_t> clicks, VectorView<const std::uint8_t> conversions,
                        const Escm2Options& options = {}) {
  return detail::escm2<true, T>("escm2_dr_loss", click_logits, conversion_logits, imputed, clicks, conversions, options, {}, {},
                                {});
}

/// The same, and adds its gradients to `dclick_logits`, `dconversion_logits` and `dimputed [n]`, each unless empty.
template <Real T>
Escm2Loss escm2_dr_loss_value_and_grad(VectorView<const T> click_logits, VectorView<const T> conversion_logits,
                                       VectorView<const T> imputed, VectorView<const std::uint8_t> clicks,
                                       VectorView<const std::uint8_t> conversions, const Escm2Options& options,
                                       VectorView<T> dclick_logits, VectorView<T> dconversion_logits, VectorView<T> dimputed) {
  return detail::escm2<true, T>("escm2_dr_loss_value_and_grad", click_logits, conversion_logits, imputed, clicks, conversions,
                                options, dclick_logits, dconversion_logits, dimputed);
}

}  // namespace RECOPS_ABI
}  // namespace recops
