/// @file   tests/support/twin_reference.hpp
/// @brief  TWIN written straight from its formulas in double: scores, lock-step selection, attention over what was selected.
#pragma once
#include <cmath>
#include <recops/attention/twin.hpp>
#include <vector>

namespace recops_test {

using recops::Index;

/// The k that heads choose in lock-step from their rows of scores; -infinity is hidden, equal scores go by place.
inline std::vector<int> lock_step_reference(const std::vector<std::vector<double>>& scores, Index k) {
  std::vector<std::vector<int>> order;
  for (const auto& s : scores) {
    order.emplace_back();
    for (int l = 0; l < static_cast<int>(s.size()); ++l)
      if (s[static_cast<std::size_t>(l)] != -INFINITY) order.back().push_back(l);
    std::stable_sort(order.back().begin(), order.back().end(),
                     [&](int a, int b) { return s[static_cast<std::size_t>(a)] > s[static_cast<std::size_t>(b)]; });
  }
  std::vector<int> taken;
  for (std::size_t rank = 0; !scores.empty() && rank < scores[0].size(); ++rank)
    for (const auto& o : order)
      if (rank < o.size() && rank < static_cast<std::size_t>(k) && static_cast<Index>(taken.size()) < k &&
          std::find(taken.begin(), taken.end(), o[rank]) == taken.end())
        taken.push_back(o[rank]);
  return taken;
}

/// One user's TWIN layer.
template <class T>
struct TwinReference {
  const recops::Twin<T>& layer;
  recops::MatrixView<const T> candidates, inherent, cross;
  std::vector<double> prior;

  double alpha(Index n, Index l, Index a) const {
    const Index dk = layer.q_proj.weight.rows() / layer.heads, d = layer.width(), features = layer.cross_scale.cols();
    double score = 0, bias = 0;
    if (!prior.empty() && prior[static_cast<std::size_t>(l)] == -INFINITY) return -INFINITY;  // hidden: not looked at
    for (Index i = 0; i < dk; ++i) {
      double q = 0, k = 0;
      for (Index c = 0; c < d; ++c) {
        q += static_cast<double>(candidates(n, c)) * static_cast<double>(layer.q_proj.weight(a * dk + i, c));
        k += static_cast<double>(inherent(l, c)) * static_cast<double>(layer.k_proj.weight(a * dk + i, c));
      }
      score += q * k;
    }
    const Index e = features > 0 ? layer.cross_cols() / features : 0;
    for (Index j = 0; j < features; ++j) {
      double one = 0;
      for (Index i = 0; i < e; ++i)
        one += static_cast<double>(cross(l, j * e + i)) * static_cast<double>(layer.cross_weight(a, j * e + i));
      bias += static_cast<double>(layer.cross_scale(a, j)) * one;
    }
    return score / std::sqrt(static_cast<double>(dk)) + bias + (prior.empty() ? 0 : prior[static_cast<std::size_t>(l)]);
  }
  std::vector<int> selected(Index n) const {
    std::vector<std::vector<double>> scores(static_cast<std::size_t>(layer.heads));
    for (Index a = 0; a < layer.heads; ++a)
      for (Index l = 0; l < inherent.rows(); ++l) scores[static_cast<std::size_t>(a)].push_back(alpha(n, l, a));
    return lock_step_reference(scores, layer.selected);
  }
  std::vector<double> output(Index n) const {
    const Index dv = layer.v_proj.weight.rows() / layer.heads, d = layer.width();
    const std::vector<int> rows = selected(n);
    std::vector<double> heads(static_cast<std::size_t>(layer.heads * dv), 0.0),
        y(static_cast<std::size_t>(layer.output_width()), 0.0);
    for (Index a = 0; a < layer.heads; ++a) {
      double top = -INFINITY, sum = 0;
      for (const int l : rows) top = std::max(top, alpha(n, l, a));
      for (const int l : rows) sum += std::exp(alpha(n, l, a) - top);
      for (const int l : rows) {
        const double p = std::exp(alpha(n, l, a) - top) / sum;
        for (Index i = 0; i < dv; ++i) {
          double v = 0;
          for (Index c = 0; c < d + layer.cross_cols(); ++c)
            v += static_cast<double>(c < d ? inherent(l, c) : cross(l, c - d)) *
                 static_cast<double>(layer.v_proj.weight(a * dv + i, c));
          heads[static_cast<std::size_t>(a * dv + i)] += p * v;
        }
      }
    }
    for (Index o = 0; o < layer.output_width(); ++o)
      for (Index i = 0; i < layer.heads * dv; ++i)
        y[static_cast<std::size_t>(o)] += static_cast<double>(layer.out_proj.weight(o, i)) * heads[static_cast<std::size_t>(i)];
    return y;
  }
};

}  // namespace recops_test
