/// @file   recops/models/cdm_loss.hpp
/// @brief  What the student of CDM learns from and how its answer is used: loss against the teacher's labels, serving score.
///
///     L = mean over requests of  [ mean_i BCE(z_i, y_i)  +  pairwise · mean over pairs y_i > y_j of -log sigmoid(z_i - z_j) ]
///
///     score_i = r_i + beta · sigmoid(z_i)      or      r_i + beta · z_i
///
/// Edge cases  A request without items loses 0, one without pairs has no pairwise part. An item whose logit is -infinity (`Cdm` gives
///             that to items that are not finite) is left out of the loss and gets the score -infinity, unless beta is 0.
/// NaN         A NaN logit makes the loss NaN; in a score it stays with its item.
/// Precision   Sums in double.
/// Reference   CDM, arXiv 2406.09021; the equations are our reconstruction.
#pragma once
#include <cmath>
#include <limits>
#include <recops/core/error.hpp>

namespace recops {

struct CdmLossOptions {
  double pairwise = 0;  ///< weight of the pairwise part, 0 or more; it costs a pass over all pairs with y_i > y_j
};

struct CdmFusion {
  double beta = 1;      ///< weight of the student; 0 gives the relevance back
  bool logits = false;  ///< beta · z instead of beta · sigmoid(z)
};

inline namespace RECOPS_ABI {

/// The loss of logits against labels in [0, 1], both [total], requests divided by `offsets` [B + 1] (empty: one request). Adds its
/// gradient to `dlogits` [total], unless empty. Throws `Error` for sizes, offsets and options that do not fit.
template <Real T>
double cdm_loss(VectorView<const T> logits, VectorView<const T> labels, IndexView offsets, const CdmLossOptions& options,
                VectorView<T> dlogits) {
  constexpr const char* name = "cdm_loss";
  check_size(name, "logits", logits, any_size);
  check_size(name, "labels", labels, logits.size());
  if (!offsets.is_null()) check_offsets(name, "offsets", offsets, logits.size());
  check_option(name, "pairwise", options.pairwise >= 0, "pairwise >= 0", options.pairwise);
  if (!dlogits.empty()) check_size(name, "dlogits", dlogits, logits.size());
  constexpr T never = -std::numeric_limits<T>::infinity();
  const Index requests = offsets.is_null() ? 1 : offsets.size() - 1;
  const auto softplus = [](double z) { return (z > 0 ? z : 0) + std::log1p(std::exp(-std::abs(z))); };
  const auto sigmoid = [](double z) {
    const double e = std::exp(-std::abs(z));
    return z >= 0 ? 1 / (1 + e) : e / (1 + e);
  };
  double total = 0;
  for (Index b = 0; b < requests; ++b) {
    const Index first = offsets.is_null() ? 0 : offsets[b], last = offsets.is_null() ? logits.size() : offsets[b + 1];
    const auto counts = [&](Index i) { return logits[i] != never; };
    Index items = 0, pairs = 0;
    double pointwise = 0, pairwise = 0;
    for (Index i = first; i < last; ++i) {
      if (!counts(i)) continue;
      const auto z = static_cast<double>(logits[i]), y = static_cast<double>(labels[i]);
      pointwise += softplus(z) - z * y;
      ++items;
    }
    if (items == 0) continue;
    const auto each_pair = [&](auto&& f) {
      for (Index i = first; i < last; ++i) {
        if (!counts(i) || !(labels[i] > 0)) continue;
        for (Index j = first; j < last; ++j)
          if (labels[i] > labels[j] && counts(j)) f(i, j, static_cast<double>(logits[i]) - static_cast<double>(logits[j]));
      }
    };
    if (options.pairwise > 0) {
      each_pair([&](Index, Index, double d) {
        pairwise += softplus(-d);
        ++pairs;
      });
    }
    const double share = 1 / static_cast<double>(requests), each = share / static_cast<double>(items);
    total += each * pointwise;
    if (pairs > 0) total += share * options.pairwise * pairwise / static_cast<double>(pairs);
    if (dlogits.empty()) continue;
    for (Index i = first; i < last; ++i)
      if (counts(i))
        dlogits[i] += static_cast<T>(each * (sigmoid(static_cast<double>(logits[i])) - static_cast<double>(labels[i])));
    if (pairs > 0) {
      const double factor = share * options.pairwise / static_cast<double>(pairs);
      each_pair([&](Index i, Index j, double d) {
        const auto g = static_cast<T>(factor * sigmoid(-d));
        dlogits[i] -= g;
        dlogits[j] += g;
      });
    }
  }
  return total;
}

/// scores [N] (may be `relevance` or `logits`) of one request or of several, from relevance and the student's logits [N].
template <Real T>
void cdm_fuse(VectorView<const T> relevance, VectorView<const T> logits, const CdmFusion& options, VectorView<T> scores) {
  constexpr const char* name = "cdm_fuse";
  check_size(name, "relevance", relevance, any_size);
  check_size(name, "logits", logits, relevance.size());
  check_size(name, "scores", scores, relevance.size());
  check_option(name, "beta", options.beta >= 0 && options.beta < std::numeric_limits<double>::infinity(), "beta >= 0",
               options.beta);
  const auto beta = static_cast<T>(options.beta);
  for (Index i = 0; i < scores.size(); ++i) {
    const T r = relevance[i], z = logits[i];
    if (beta == 0) {
      scores[i] = r;
    } else if (z == -std::numeric_limits<T>::infinity()) {
      scores[i] = z;  // whatever the relevance is: an infinite one would make it NaN
    } else if (options.logits) {
      scores[i] = r + beta * z;
    } else {
      scores[i] = r + beta / (1 + std::exp(-z));
    }
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
