/// @file   recops/contrastive/infonce_options.hpp
/// @brief  What `biased_infonce` can be told: scale, biases, who is no candidate, and what is right.
#pragma once
#include <limits>
#include <recops/core/error.hpp>
#include <recops/core/workspace.hpp>

namespace recops {

/// Any rule of one's own for who is no candidate, asked block by block, so that no [B, K] matrix is needed: sets `excluded[j]` to 1
/// where column `first + j` is none of row `row`'s. Called from the workspace's threads, for any row, more than once.
struct ExcludeRule {
  const void* context = nullptr;
  void (*mark)(const void* context, Index row, Index first, VectorView<std::uint8_t> excluded) = nullptr;
};

/// A rule from any callable `f(Index row, Index first, VectorView<std::uint8_t> excluded)`. `f` is referred to, not copied.
template <class F>
ExcludeRule make_exclude_rule(const F& f) {
  return {&f, [](const void* context, Index row, Index first, VectorView<std::uint8_t> excluded) {
            (*static_cast<const F*>(context))(row, first, excluded);
          }};
}

/// What several positives of a row share (options `row_labels`, `column_labels`).
enum class MultiPositive : unsigned char {
  outside_log,  ///< the mean over positives of -log p_j: each has to be likely (SupCon's L_out, arXiv 2004.11362)
  inside_log    ///< -log of the sum over positives of p_j: one that is likely is enough
};

/// Options of `biased_infonce`; what is empty is left out.
template <class T>
struct InfoNceOptions {
  /// Logarithm of the scale, log(1 / temperature): logits are exp(min(log_scale, log 100)) <u, v>.
  double log_scale = 0;
  VectorView<const T> weights = {};      ///< [B] >= 0; the loss is the weighted mean of the rows. 0: the row is not read
  VectorView<const T> column_bias = {};  ///< [K], added to the logits: -log q_j for a candidate sampled with probability q_j
  MatrixView<const T> bias = {};  ///< [B, K], added to the logits: the logarithm of a negative's weight. -infinity: left out

  // Who is no candidate at all. A positive among them is none.
  VectorView<const std::uint8_t> candidates = {};  ///< [K], 0: nobody's candidate, and not read (an unfilled place of a queue)
  bool exclude_diagonal = false;                   ///< column i is not row i's (itself, where U and V are the same)

  // False negatives: left out, unless they are positives of the row.
  MatrixView<const std::uint8_t> exclude = {};  ///< [B, K], not 0: left out
  IndexView row_ids = {};                       ///< [B] and
  IndexView column_ids = {};                    ///< [K]: a column with the row's id is left out (same item, user or session)
  ExcludeRule rule = {};                        ///< any other rule
  /// Columns with <u_i, v_j> above that of the row's positive less this margin are left out; -infinity: none is. Products that are equal
  /// but for rounding may fall on either side: a margin of 0 wants to be one of -1e-6, say, where copies of the positive may occur.
  double margin = -std::numeric_limits<double>::infinity();

  // What is right, instead of one positive a row.
  MatrixView<const T> targets = {};  ///< [B, K] >= 0: soft targets Q, whose rows need not sum to 1
  IndexView row_labels = {};         ///< [B] and
  IndexView column_labels = {};      ///< [K]: the columns with the row's label are its positives
  MultiPositive multi_positive = MultiPositive::outside_log;

  /// The [B, K] exponentials are kept from the loss to its gradients where they take at most so many bytes, and made again otherwise.
  Index kept_bytes = Index{64} << 20;
};

/// What there is to watch while training, weighted means over the rows that count.
struct InfoNceStatistics {
  double accuracy = 0;              ///< how often the positive's logit exceeds all others
  double positive_probability = 0;  ///< of the positive
  double hardest_negative = 0;      ///< largest logit of a negative, over the rows that have one
};

/// Where the gradients of `biased_infonce` are added to; what is empty is not wanted. du and dv may be the same view.
template <class T>
struct InfoNceGradient {
  MatrixView<T> du = {};            ///< [B, D]
  MatrixView<T> dv = {};            ///< [K, D]
  VectorView<T> dcolumn_bias = {};  ///< [K]
  MatrixView<T> dbias = {};         ///< [B, K]
  double* dlog_scale = nullptr;     ///< of log_scale; that of the temperature is -1 / temperature times this
  double upstream = 1;              ///< all are multiplied by it: the derivative of the total loss with respect to this one
};

}  // namespace recops
