/// @file   recops/ranking/rank_sum_auc_loss.hpp
/// @brief  Trains one score on the AUCs of several objectives at once: the rank-sum form of the AUC with soft ranks in it.
///
///     r = soft_rank(s), ascending      G_m = ½ + Σ_i (r_i - (n + 1) / 2) y_im / (n+_m n-_m)      L = Σ_m λ_m (1 - G_m)
///
/// With hard ranks G_m is the AUC of objective m (ties one half). All objectives rank the same score, so one sort and one pooling serve
/// any number of them:
///
///     q_i = Σ_m λ_m y_im / (n+_m n-_m)        dL/ds_i = -(q_i - mean_B q) / eps        (kl: -r_i (q_i - Σ_B r_j q_j / R_B) / eps)
///
/// eps decides whether this is a rank loss at all. Scores in [0, 1] with an absolute eps of 1, the literal reading of the paper,
/// always form one block, and then exactly G_m = ½ + (mean s+ - mean s-) / (n eps): *linear* in the scores, with a gradient that
/// does not look at the order. The default is therefore relative (eps std / n, soft_rank.hpp); `blocks` in the result tells.
///
/// Shapes      scores [n]   labels [n, M] of 0 and 1   offsets [G + 1], or empty: the batch is one group   auc [M] or empty
/// Groups      L = Σ_m λ_m mean over the groups valid for m of (1 - G_gm)
/// Edge cases  an objective that has one class only in a group is undefined there: no loss, no gradient, counted in `skipped`.
///             Nothing valid: loss 0, `valid` false.
/// NaN         a NaN or infinite score makes the loss NaN and its own group's gradient NaN; other groups' gradients are right. Its
///             skipped objectives aside.
/// Precision   ranks, block means and sums in double: the loss of 10^7 float scores is within 1e-9 of exact arithmetic, and within
///             [0, Σ λ_m] but for that.
/// Cost        that of soft_rank and O(n M). Scratch soft_rank's and 16 G M bytes.
/// Threads     groups run on the caller's; same bits for any number.
/// Errors      Error if shapes, offsets or options are wrong or a label is neither 0 nor 1.
/// Gradient    of the scores, *added*; 0 for scores alone in their block. Its scale is 1 / (eps n+ n-): see `scale_gradient`.
/// Reference   HarmonRank, arXiv 2601.02955 (Kuaishou), for G; 1 - G instead of -G, groups and relative eps are our reconstruction.
#pragma once
#include <recops/metrics/common.hpp>
#include <recops/ranking/soft_rank.hpp>

namespace recops {

/// By what the sum of centred ranks of the positives is divided.
enum class RankSumNormalization {
  auc,        ///< n+ n-: every objective counts the same, however rare its positives
  positives,  ///< n+: the mean centred rank of a positive, negated
  none,       ///< 1: the bare sum of centred ranks, negated
};

struct RankSumAucOptions {
  SoftRankRegularization regularization = SoftRankRegularization::quadratic;
  EpsMode eps_mode = EpsMode::relative;
  double eps = 2;                         ///< as in SoftRankOptions
  VectorView<const double> weights = {};  ///< [M] λ >= 0; empty: 1 / M each
  RankSumNormalization normalization = RankSumNormalization::auc;
  bool renormalize = false;     ///< the λ of objectives without a valid group go to the others
  bool scale_gradient = false;  ///< multiplies each group's gradient by eps n, which makes its size that of other losses
};

struct RankSumAucResult {
  double loss = 0;
  bool valid = false;     ///< some objective was valid in some group
  Index skipped = 0;      ///< pairs of group and objective with one class only
  SoftRankBlocks blocks;  ///< of the groups with a valid objective
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
RankSumAucResult rank_sum_auc(const char* name, VectorView<const T> scores, MatrixView<const std::uint8_t> labels,
                              IndexView offsets, const RankSumAucOptions& o, VectorView<double> auc, VectorView<T> dscores,
                              Workspace& ws) {
  check_size(name, "scores", scores, any_size);
  const Index n = scores.size(), objectives = labels.cols();
  check_shape(name, "labels", labels, n, any_size);
  const Groups groups = check_rank_groups(name, offsets, n);
  const SoftRankOptions rank{.order = Order::ascending, .regularization = o.regularization, .eps_mode = o.eps_mode, .eps = o.eps};
  check_soft_rank_options(name, rank);
  if (!o.weights.empty()) check_size(name, "weights", o.weights, objectives);
  for (const double w : o.weights) check_option(name, "weights", w >= 0 && w <= 1e100, "0 <= weights <= 1e100", w);
  if (!auc.empty()) check_size(name, "auc", auc, objectives);
  if (!dscores.empty()) check_size(name, "dscores", dscores, n);
  if (labels.stride() == objectives) {
    check_binary(name, "labels", VectorView<const std::uint8_t>(labels.data(), n * objectives));
  } else {
    for (Index i = 0; i < n; ++i) check_binary(name, "labels", VectorView<const std::uint8_t>(labels.row(i), objectives));
  }
  const Index count = groups.count();
  const auto mark = ws.mark();
  // [G, M]: positives, then (per positive) weights, and what the positives' centred ranks sum up to.
  const auto positives = ws.matrix<std::int32_t>(count, objectives);
  const auto sums = ws.matrix<double>(count, objectives);
  const auto pooled = ws.vector<SoftRankBlocks>(count);
  Index* const valid = ws.take<Index>(objectives);
  std::fill_n(valid, objectives, Index{0});
  RankSumAucResult result;
  for (Index g = 0; g < count; ++g) {
    const Index begin = groups.begin(g), size = groups.size(g);
    std::int32_t* const of = positives.row(g);
    std::fill_n(of, objectives, 0);
    for (Index i = begin; i < begin + size; ++i)
      for (Index m = 0; m < objectives; ++m) of[m] += labels.row(i)[m];
    for (Index m = 0; m < objectives; ++m) {
      const bool both = of[m] > 0 && of[m] < size;
      valid[m] += both;
      result.skipped += !both;
    }
  }
  double all = 0, there = 0;
  const auto weight = [&](Index m) { return o.weights.empty() ? 1 / static_cast<double>(objectives) : o.weights[m]; };
  for (Index m = 0; m < objectives; ++m) all += weight(m), there += valid[m] > 0 ? weight(m) : 0;
  const double renormalized = o.renormalize && there > 0 ? all / there : 1;
  const auto divisor = [&](Index g, Index m) {
    const auto p = static_cast<double>(positives(g, m)), rest = static_cast<double>(groups.size(g)) - p;
    return o.normalization == RankSumNormalization::auc ? p * rest : o.normalization == RankSumNormalization::positives ? p : 1.0;
  };
  const auto is_valid = [&](Index g, Index m) { return positives(g, m) > 0 && positives(g, m) < groups.size(g); };

  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    const PoolScratch<T> scratch(longest, o.regularization, own);
    std::int32_t* const order = own.take<std::int32_t>(longest);
    std::int32_t* const starts = own.take<std::int32_t>(longest);
    T* const u = own.take<T>(longest);
    double* const kl_ranks = own.take<double>(o.regularization == SoftRankRegularization::kl ? longest : 0);
    double* const coefficient = own.take<double>(objectives);
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g), size = groups.size(g);
      double* const sum = sums.row(g);
      std::fill_n(sum, objectives, 0.0);
      pooled[g] = SoftRankBlocks{};
      bool any = false;
      for (Index m = 0; m < objectives; ++m) {
        const bool counts = is_valid(g, m);
        any |= counts;
        coefficient[m] = counts ? renormalized * weight(m) / (static_cast<double>(valid[m]) * divisor(g, m)) : 0;
      }
      if (!any) continue;
      const auto group = pool_group(scores.data() + begin, size, rank, order, starts, scratch, own);
      const double center = 0.5 * static_cast<double>(size + 1);
      visit_ranks(group, o.regularization, [&](Index i, double r) {
        const std::uint8_t* const y = labels.row(begin + order[i]);
        double q = 0;
        for (Index m = 0; m < objectives; ++m) {
          const auto label = static_cast<double>(y[m]);
          q += coefficient[m] * label;
          sum[m] += (r - center) * label;
        }
        u[i] = static_cast<T>(-q);
        if (kl_ranks != nullptr && o.regularization == SoftRankRegularization::kl) kl_ranks[i] = r;
      });
      pooled[g].blocks = group.blocks;
      for (Index k = 0; k < group.blocks; ++k) {
        const Index in_block = group.end(k) - group.starts[k];
        pooled[g].singletons += in_block == 1;
        pooled[g].largest = std::max(pooled[g].largest, in_block);
      }
      if (dscores.empty()) continue;
      const double scale = o.scale_gradient ? group.eps * static_cast<double>(size) : 1;
      pooled_backward(
          group, o.regularization, scale, [&](Index i) { return kl_ranks[i]; }, u);
      scatter<true>(u, order, size, dscores.data() + begin);
    }
  });

  for (Index g = 0; g < count; ++g) {
    result.blocks.blocks += pooled[g].blocks;
    result.blocks.singletons += pooled[g].singletons;
    result.blocks.largest = std::max(result.blocks.largest, pooled[g].largest);
  }
  for (Index m = 0; m < objectives; ++m) {
    double loss = 0, area = 0;
    for (Index g = 0; g < count; ++g) {
      if (!is_valid(g, m)) continue;
      const auto p = static_cast<double>(positives(g, m)), rest = static_cast<double>(groups.size(g)) - p;
      area += 0.5 + sums(g, m) / (p * rest);
      loss += o.normalization == RankSumNormalization::auc ? 0.5 - sums(g, m) / (p * rest) : -sums(g, m) / divisor(g, m);
    }
    const bool there_is = valid[m] > 0;
    result.valid |= there_is;
    if (there_is) result.loss += renormalized * weight(m) * (loss / static_cast<double>(valid[m]));
    if (!auc.empty()) auc[m] = there_is ? area / static_cast<double>(valid[m]) : 0;
  }
  return result;
}

}  // namespace detail

/// The loss; `auc` [M], unless empty, receives the soft AUC of every objective (0 where it is undefined everywhere).
template <Real T>
RankSumAucResult rank_sum_auc_loss(VectorView<const T> scores, MatrixView<const std::uint8_t> labels, IndexView offsets,
                                   const RankSumAucOptions& options, VectorView<double> auc, Workspace& ws) {
  return detail::rank_sum_auc<T>("rank_sum_auc_loss", scores, labels, offsets, options, auc, {}, ws);
}

/// The same, and adds its gradient to `dscores` [n].
template <Real T>
RankSumAucResult rank_sum_auc_loss_value_and_grad(VectorView<const T> scores, MatrixView<const std::uint8_t> labels,
                                                  IndexView offsets, const RankSumAucOptions& options, VectorView<double> auc,
                                                  VectorView<T> dscores, Workspace& ws) {
  return detail::rank_sum_auc<T>("rank_sum_auc_loss_value_and_grad", scores, labels, offsets, options, auc, dscores, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
