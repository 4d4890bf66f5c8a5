/// @file   recops/diversity/dpp_input.hpp
/// @brief  What dpp_map is asked: options, one request, and qualities from relevance. See dpp_map.hpp.
#pragma once
#include <recops/diversity/selection_input.hpp>

namespace recops {

/// What to do with the places for which no item adds volume.
enum class DppFill {
  stop,        ///< leave them: status `rank_exhausted`
  by_quality,  ///< fill them by quality; their scores are -infinity
};

struct DppOptions {
  Index window = 0;        ///< w > 0: only the last w - 1 of history and picks count, so any w in a row are diverse; 0: all count
  bool normalize = false;  ///< divide feature rows by their lengths: cosine similarity
  double alpha = 1;        ///< 0 <= alpha <= 1: factor of the similarities between different items; below 1 rank never runs out
  /// An item is redundant once no more than this share of its own volume (diagonal entry) is left; negative: 1e-6 (double 1e-10), with
  /// a window four times that.
  double eps = -1;
  DppFill fill = DppFill::stop;
  SelectionEvaluation evaluation = SelectionEvaluation::lazy;
};

/// One request. All but `quality` and either features or panels may be left empty.
template <class T>
struct DppInput {
  VectorView<const T> quality = {};             ///< [N] > 0; what is not is never picked
  MatrixView<const T> features = {};            ///< [N, D]
  PanelsView<T> panels = {};                    ///< instead of features: packed before
  MatrixView<const T> history = {};             ///< [m, D] features of what was shown before, oldest first
  VectorView<const std::uint8_t> allowed = {};  ///< [N] 0 for items that must not be picked
  VectorView<const T> diagonal = {};            ///< [N] >= 0 or empty: added to the diagonal of the kernel
  const Constraints* constraints = nullptr;     ///< rules the list must keep
};

inline namespace RECOPS_ABI {

/// Qualities with which theta weighs relevance against diversity: (1 - theta) log det L_Y = theta sum r + (1 - theta) log det S_Y, up to
/// a constant per pick.
///
///     quality_i = exp(theta / (2 (1 - theta)) · (r_i - max r))              0 <= theta < 1
///
/// A relevance that is not finite gives quality 0: never picked. Source: Chen et al., NeurIPS 2018, section 5 (their theta).
template <Real T>
void dpp_quality(VectorView<const T> relevance, double theta, VectorView<T> quality) {
  check_size("dpp_quality", "relevance", relevance, any_size);
  check_size("dpp_quality", "quality", quality, relevance.size());
  check_option("dpp_quality", "theta", theta >= 0 && theta < 1, "0 <= theta < 1 (1: sort by relevance)", theta);
  const double a = theta / (2 * (1 - theta));
  double most = -std::numeric_limits<double>::infinity();
  for (const T r : relevance) {
    if (detail::is_finite(r)) most = std::max(most, static_cast<double>(r));
  }
  for (Index i = 0; i < relevance.size(); ++i) {
    const T r = relevance.data()[i];
    quality.data()[i] = !detail::is_finite(r) ? T(0)
                                              : std::max(static_cast<T>(std::exp(a * (static_cast<double>(r) - most))),
                                                         std::numeric_limits<T>::min());
  }
}

namespace detail {

template <class T>
T dpp_eps(const DppOptions& options) {
  if (options.eps >= 0) return static_cast<T>(options.eps);
  return static_cast<T>((std::is_same_v<T, float> ? 1e-6 : 1e-10) * (options.window > 0 ? 4 : 1));
}

/// The quality of an item with a diagonal entry d. Where d dwarfs q, a larger one by whose square d can be divided: what features of length
/// up to 2e11 (float) or 1e112 (double) add is lost to rounding beside d anyway.
template <class T>
T quality_beside(T q, T d) {
  const T least = std::sqrt(d) * (std::is_same_v<T, float> ? T(1e-15) : T(1e-120));
  return q < least && is_finite(least) ? least : q;
}

inline void check_dpp_options(const char* operation, const DppOptions& options) {
  check_option(operation, "window", options.window >= 0, "window >= 0", static_cast<double>(options.window));
  check_option(operation, "alpha", options.alpha >= 0 && options.alpha <= 1, "0 <= alpha <= 1", options.alpha);
  check_option(operation, "eps", options.eps < 1, "eps < 1 (negative: the default)", options.eps);
}

template <class T>
SelectionInput<T> as_selection(const DppInput<T>& in) {
  return {in.quality, in.features, in.panels, in.history, in.allowed, in.constraints};
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
