/// @file   recops/train/pcgrad.hpp
/// @brief  PCGrad: takes out of each loss's gradient what works against another's (Yu et al., arXiv 2001.06782).
#pragma once
#include <recops/core/matrix.hpp>
#include <recops/core/random.hpp>
#include <recops/core/workspace.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// From the inner products `gram [M, M]` of M gradients (`gradient_gram`) the coefficients `[M]` of their sum after surgery
/// (`combine_gradients`): for each i and every other j in an order drawn from `random`, g_i loses its part along the original g_j
/// where the two disagree, <g_i, g_j> < 0. Zero gradients are left out. Without conflict all coefficients are 1. O(M^3). NaN in
/// the products gives NaN coefficients or none changed: look at the losses first. Throws `Error` for shapes that disagree.
inline void pcgrad(MatrixView<const double> gram, Random& random, VectorView<double> coefficients, Workspace& ws) {
  const Index count = coefficients.size();
  check_shape("pcgrad", "gram", gram, count, count);
  const auto mark = ws.mark();
  double* own = ws.take<double>(count);  // g_i so far, as a combination of the originals
  Index* order = ws.take<Index>(count);
  std::fill(coefficients.begin(), coefficients.end(), 0.0);
  for (Index i = 0; i < count; ++i) {
    std::fill_n(own, count, 0.0);
    own[i] = 1;
    for (Index j = 0; j < count; ++j) order[j] = j;
    for (Index j = count - 1; j > 0; --j) std::swap(order[j], order[random.below(j + 1)]);
    for (Index n = 0; n < count; ++n) {
      const Index j = order[n];
      if (j == i || !(gram(j, j) > 0)) continue;
      double product = 0;
      for (Index m = 0; m < count; ++m) product += own[m] * gram(m, j);
      if (product < 0) own[j] -= product / gram(j, j);
    }
    for (Index m = 0; m < count; ++m) coefficients[m] += own[m];
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
