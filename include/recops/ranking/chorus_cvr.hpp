/// @file   recops/ranking/chorus_cvr.hpp
/// @brief  ChorusCVR: entire-space conversion with a third head for "clicked but did not convert", whose negatives are told apart
///         from impressions that nobody clicked, and a soft alignment of the two conversion heads everywhere.
///
///     L = BCE(p_a p_b, o r) + IPW(b, r)  +  BCE(p_a p_c, o (1 - r)) + IPW(c, 1 - r)  +  align Align  +  click BCE(a, o)
///         conversion                        discrimination (NDM)                        alignment (SAM)
///
///     IPW(z, t) = mean over clicked rows of BCE(z, t) / max(p_a, clip)
///     Align     = mean over clicked rows of W [BCE(b, 1 - p_c) + BCE(c, 1 - p_b)], W = 1 / max(p_a, clip), plus the mean of the same
///                 over rows not clicked with W = 1 / max(1 - p_a, clip); targets and weights are constants to the gradient
///
/// Shapes      click_logits a, conversion_logits b, unconversion_logits c, clicks o, conversions r [n]
/// Edge cases  no rows: 0; a space without rows contributes 0.  A conversion without a click is an error.  Without
///             `discrimination` c is not read (it may be empty) and there is no alignment.
/// NaN         makes the loss NaN, and of the gradients its own row's.
/// Precision   a row in T by stable forms, sums in double.
/// Cost        O(n) in vectors, one fused pass after one over the clicks; no scratch.
/// Errors      Error if sizes differ, a label is neither 0 nor 1, r > o, not 0 < clip <= 1, or a weight is negative or not finite.
/// Gradient    of the three logits; adds.
/// Reference   ChorusCVR, WSDM 2026, arXiv 2502.08277: labels, heads and both modules. Normalisers, the placing of the stop-gradients
///             and the click term are our reconstruction.
#pragma once
#include <recops/ranking/escm2.hpp>

namespace recops {

/// Options of `chorus_cvr_loss`.
struct ChorusCvrOptions {
  bool discrimination = true;   ///< the third head (NDM)
  double alignment_weight = 1;  ///< >= 0, of the soft alignment (SAM); 0: without
  double click_weight = 1;      ///< >= 0, of the click's own loss
  double clip = 0.01;           ///< least propensity, in (0, 1]
};

/// What the loss consists of.
struct ChorusCvrLoss {
  double value = 0;         ///< the weighted sum
  double both = 0;          ///< BCE of click and conversion (CTCVR)
  double conversion = 0;    ///< IPW of the conversion
  double click_only = 0;    ///< BCE of click without conversion (CTunCVR)
  double unconversion = 0;  ///< IPW of its complement
  double alignment = 0;     ///< before its weight
  double click = 0;         ///< BCE of the click, before its weight
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
ChorusCvrLoss chorus_cvr(const char* name, VectorView<const T> a, VectorView<const T> b, VectorView<const T> c,
                         VectorView<const std::uint8_t> clicks, VectorView<const std::uint8_t> conversions,
                         const ChorusCvrOptions& o, VectorView<T> da, VectorView<T> db, VectorView<T> dc) {
  using B = simd::Batch<T>;
  const Index n = check_funnel<T>(name, a, b, clicks, conversions, da, db);
  if (o.discrimination) check_size(name, "unconversion_logits", c, n);
  if (!dc.empty()) check_size(name, "dunconversion_logits", dc, n);
  check_option(name, "alignment_weight", o.alignment_weight >= 0 && o.alignment_weight <= 1e30, "a finite weight >= 0",
               o.alignment_weight);
  check_option(name, "click_weight", o.click_weight >= 0 && o.click_weight <= 1e30, "a finite weight >= 0", o.click_weight);
  check_option(name, "clip", o.clip > 0 && o.clip <= 1, "0 < clip <= 1", o.clip);
  if (n == 0) return {};
  const double rows = static_cast<double>(n), clicked_rows = propensity_mass(a, clicks, o.clip, PropensityNorm::clicked);
  const double of_clicked = clicked_rows > 0 ? 1 / clicked_rows : 0,
               of_others = clicked_rows < rows ? 1 / (rows - clicked_rows) : 0;
  const bool align = o.discrimination && o.alignment_weight > 0;

  const B zero(T(0)), one(T(1)), clip(static_cast<T>(o.clip)), each(static_cast<T>(1 / rows));
  const B per_click(static_cast<T>(of_clicked)), per_other(static_cast<T>(of_others));
  const B click_scale(static_cast<T>(o.click_weight / rows)), align_scale(static_cast<T>(o.alignment_weight));
  ChorusCvrLoss total;
  B click(zero), both(zero), conversion(zero), click_only(zero), unconversion(zero), clicked_gap(zero), other_gap(zero);
  double clicked_alignment = 0, other_alignment = 0;
  const auto take = [&](double& sum, B& part) {
    sum += static_cast<double>(simd::sum_lanes(part));
    part = zero;
  };
  for_each_rows<T>(
      n,
      [&](Index i, Index count, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const B x = load(a.data() + i), y = load(b.data() + i), here = first_lanes<T>(count);
        const B clicked = load_labels<T>(clicks.data() + i, count), converted = load_labels<T>(conversions.data() + i, count);
        const auto u = simd::logistic(x), v = simd::logistic(y);
        const auto f = product_bce(x, y, u, v, converted);
        const B w = inverse_propensity(u.sigmoid, clip).weight;
        click = click + where(here, bce_of(x, u, clicked));
        both = both + where(here, f.loss);
        conversion = conversion + where(clicked, B(w * bce_of(y, v, converted)));
        B in_a = click_scale * (u.sigmoid - clicked) + each * f.da;
        B in_b = each * f.db + per_click * where(clicked, B(w * (v.sigmoid - converted)));
        if (o.discrimination) {
          const B z = load(c.data() + i), wasted = clicked - converted;
          const auto g = simd::logistic(z);
          const auto h = product_bce(x, z, u, g, wasted);
          click_only = click_only + where(here, h.loss);
          unconversion = unconversion + where(clicked, B(w * bce_of(z, g, wasted)));
          in_a = in_a + each * h.da;
          B in_c = each * h.db + per_click * where(clicked, B(w * (g.sigmoid - wasted)));
          if (align) {
            // BCE with a target t between 0 and 1 is softplus(z) - t z.
            const B other = here - clicked, not_v = one - v.sigmoid, not_g = one - g.sigmoid;
            const B gap = (v.softplus - not_g * y) + (g.softplus - not_v * z);
            const B w_other = one / xsimd::max(clip, one - u.sigmoid);
            clicked_gap = clicked_gap + where(clicked, B(w * gap));
            other_gap = other_gap + where(other, B(w_other * gap));
            const B sum = v.sigmoid + g.sigmoid - one;
            const B pull = align_scale * (per_click * where(clicked, B(w * sum)) + per_other * where(other, B(w_other * sum)));
            in_b = in_b + pull;
            in_c = in_c + pull;
          }
          if (!dc.empty()) store(dc.data() + i, load(dc.data() + i) + in_c);
        }
        if (!da.empty()) store(da.data() + i, load(da.data() + i) + in_a);
        if (!db.empty()) store(db.data() + i, load(db.data() + i) + in_b);
      },
      [&] {
        take(total.click, click);
        take(total.both, both);
        take(total.conversion, conversion);
        take(total.click_only, click_only);
        take(total.unconversion, unconversion);
        take(clicked_alignment, clicked_gap);
        take(other_alignment, other_gap);
      });
  total.click /= rows;
  total.both /= rows;
  total.conversion *= of_clicked;
  total.click_only /= rows;
  total.unconversion *= of_clicked;
  total.alignment = clicked_alignment * of_clicked + other_alignment * of_others;
  total.value = total.both + total.conversion + total.click_only + total.unconversion + o.alignment_weight * total.alignment +
                o.click_weight * total.click;
  return total;
}

}  // namespace detail

/// The loss of three logits `[n]` under `clicks [n]` and `conversions [n]`. Throws `Error`; see above.
template <Real T>
ChorusCvrLoss chorus_cvr_loss(VectorView<const T> click_logits, VectorView<const T> conversion_logits,
                              VectorView<const T> unconversion_logits, VectorView<const std::uint8_t> clicks,
                              VectorView<const std::uint8_t> conversions, const ChorusCvrOptions& options = {}) {
  return detail::chorus_cvr<T>("chorus_cvr_loss", click_logits, conversion_logits, unconversion_logits, clicks, conversions,
                               options, {}, {}, {});
}

/// The same, and adds its gradients to `dclick_logits`, `dconversion_logits` and `dunconversion_logits [n]`, each unless empty.
template <Real T>
ChorusCvrLoss chorus_cvr_loss_value_and_grad(VectorView<const T> click_logits, VectorView<const T> conversion_logits,
                                             VectorView<const T> unconversion_logits, VectorView<const std::uint8_t> clicks,
                                             VectorView<const std::uint8_t> conversions, const ChorusCvrOptions& options,
                                             VectorView<T> dclick_logits, VectorView<T> dconversion_logits,
                                             VectorView<T> dunconversion_logits) {
  return detail::chorus_cvr<T>("chorus_cvr_loss_value_and_grad", click_logits, conversion_logits, unconversion_logits, clicks,
                               conversions, options, dclick_logits, dconversion_logits, dunconversion_logits);
}

}  // namespace RECOPS_ABI
}  // namespace recops
