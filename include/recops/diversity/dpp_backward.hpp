/// @file   recops/diversity/dpp_backward.hpp
/// @brief  Gradient of the scores of dpp_map.hpp, the picks held fixed.
///
///     score_t = 2 log q_t + log(S_tt - S_tR S_R^-1 S_Rt)          S_ij = alpha^[i != j] <x_i, x_j> + [i = j] delta_i / q_i^2
///
/// R is what counts when t is picked. With z = e_t - S_R^-1 S_Rt (over R and t) and d = z^T S z:  dS += g z z^T / d,  dq_t += 2 g / q_t.
/// *Adds*. Linear systems are solved in double.
#pragma once
#include <recops/diversity/dpp_input.hpp>
#include <recops/diversity/selection_backward.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Backward of `dpp_map` with its picks held fixed: `picks` [k] as it wrote them (-1 behind the last), `dscores` [k] the gradient of its
/// scores (not looked at where the score was -infinity); `gradient.relevance` is that of the quality, and the diagonal is constant.
/// Inputs must be features, not panels. O((m + k)^2 D + (m + k)^3), with a window O(k w^2 (w + D)).
template <Real T>
void dpp_map_backward(const DppInput<T>& input, const DppOptions& options, VectorView<const std::int32_t> picks,
                      VectorView<const T> dscores, const SelectionGradient<T>& gradient, Workspace& scratch) {
  const char* const name = "dpp_map_backward";
  detail::check_dpp_options(name, options);
  const SelectionInput<T> in = detail::as_selection(input);
  const Index cols = detail::check_selection(name, "quality", in, any_size);
  if (!input.diagonal.empty()) check_size(name, "diagonal", input.diagonal, input.quality.size());
  const Index count = detail::check_selection_backward(name, in, cols, picks, dscores, gradient);
  const auto mark = scratch.mark();
  detail::ShownRows<T> shown(in, cols, options.normalize, picks.segment(0, count), scratch);
  const Index total = shown.seen + count;
  const Index back = options.window > 0 ? std::min(options.window - 1, total) : total;
  const double alpha = options.alpha, eps = static_cast<double>(detail::dpp_eps<T>(options));
  const auto quality_of = [&](Index item) {
    const T q = input.quality[item];
    return static_cast<double>(input.diagonal.empty() ? q : detail::quality_beside(q, input.diagonal[item]));
  };
  double* const s = scratch.take<double>(total * total);
  double* const own = scratch.take<double>(count);  // squared lengths of the picks: `s` without what the diagonal adds
  double* const factor = scratch.take<double>(back * back);
  double* const z = scratch.take<double>(back + 1);
  for (Index a = 0; a < total; ++a) {
    for (Index b = 0; b <= a; ++b) {
      double v = 0;
      for (Index d = 0; d < cols; ++d) v += static_cast<double>(shown.row(a)[d]) * static_cast<double>(shown.row(b)[d]);
      if (a != b) v *= alpha;
      if (a == b && a >= shown.seen && !input.diagonal.empty()) {
        own[a - shown.seen] = v;
        const double q = quality_of(picks[a - shown.seen]);
        v += static_cast<double>(input.diagonal[picks[a - shown.seen]]) / q / q;
      }
      s[a * total + b] = s[b * total + a] = v;
    }
  }
  Index begin = 0, rows = 0;  // the factor covers [begin, begin + rows); redundant rows have a zero pivot
  const auto extend = [&](Index a) {
    double* const row = factor + rows * back;
    double d2 = s[a * total + a];
    for (Index b = 0; b < rows; ++b) {
      double v = s[a * total + begin + b];
      for (Index l = 0; l < b; ++l) v -= row[l] * factor[b * back + l];
      row[b] = factor[b * back + b] > 0 ? v / factor[b * back + b] : 0;
      d2 -= row[b] * row[b];
    }
    row[rows] = d2 > eps * s[a * total + a] ? std::sqrt(d2) : 0;
    ++rows;
  };
  for (Index a = 0; a < total; ++a) {
    if (a - begin > back) {  // the window moved on
      begin = a - back;
      rows = 0;
      for (Index b = begin; b < a; ++b) extend(b);
    }
    if (a >= shown.seen) {
      const Index t = a - shown.seen;
      double d2 = s[a * total + a], explained = 0;
      for (Index b = 0; b < rows; ++b) {
        double v = s[a * total + begin + b];
        for (Index l = 0; l < b; ++l) v -= factor[b * back + l] * z[l];
        z[b] = factor[b * back + b] > 0 ? v / factor[b * back + b] : 0;
        d2 -= z[b] * z[b];
        explained += z[b] * z[b];
      }
      if (d2 > eps * s[a * total + a]) {
        for (Index b = rows; b-- > 0;) {
          double v = z[b];
          for (Index l = b + 1; l < rows; ++l) v += factor[l * back + b] * z[l];  // z is negative already from l on
          z[b] = factor[b * back + b] > 0 ? -v / factor[b * back + b] : 0;
        }
        z[rows] = 1;
        const double g = static_cast<double>(dscores[t]) / d2;
        for (Index i = 0; i <= rows; ++i) {
          for (Index j = 0; j <= rows; ++j) {
            const double w = 2 * g * z[i] * z[j] * (i == j ? 1 : alpha);
            if (w != 0) simd::axpy(static_cast<T>(w), shown.row(begin + j), shown.drow(begin + i), cols);
          }
          if (!gradient.relevance.empty() && !input.diagonal.empty() && i < rows && begin + i >= shown.seen) {
            const Index item = picks[begin + i - shown.seen];
            const double q = quality_of(item), ratio = z[i] / q;
            gradient.relevance[item] -= static_cast<T>(2 * g * ratio * ratio * (static_cast<double>(input.diagonal[item]) / q));
          }
        }
        if (!gradient.relevance.empty()) {
          // 2 / q (1 - (diagonal / q^2) / d2), without the difference of numbers that may be equal but for rounding
          const double left = input.diagonal.empty() ? d2 : own[t] - explained;
          gradient.relevance[picks[t]] += static_cast<T>(2 * g * left / quality_of(picks[t]));
        }
      }
    }
    if (back > 0 && rows < back) extend(a);
  }
  shown.add_to(in, picks, gradient);
}

}  // namespace RECOPS_ABI
}  // namespace recops
