/// @file   tests/support/dpp_reference.hpp
/// @brief  Oracle of dpp_map: determinants from scratch, in long double, for every item after every pick.
#pragma once
#include <recops/diversity/dpp_map.hpp>

#include <cmath>
#include <vector>

namespace recops_test {

using recops::Index;

/// A kernel over history (first) and items, and who may be picked.
struct DppReference {
  std::vector<std::vector<long double>> kernel;  // [m + N][m + N]
  std::vector<bool> usable;                      // [N]
  Index history = 0, window = 0;
  long double eps = 1e-9L;

  Index items() const { return static_cast<Index>(usable.size()); }
  long double at(Index a, Index b) const { return kernel[static_cast<std::size_t>(a)][static_cast<std::size_t>(b)]; }

  /// det(L_{S + i}) / det(L_S), S = what counts after these picks, by a Cholesky factorisation of its own for every i.
  std::vector<long double> volumes(const std::vector<std::int32_t>& picks) const {
    std::vector<Index> shown;
    for (Index h = 0; h < history; ++h) shown.push_back(h);
    for (const auto p : picks) shown.push_back(history + p);
    const Index count = static_cast<Index>(shown.size());
    if (window > 0 && count > window - 1) shown.erase(shown.begin(), shown.end() - (window - 1));
    std::vector<long double> out(usable.size(), 0);
    for (Index i = 0; i < items(); ++i) {
      auto set = shown;
      set.push_back(history + i);
      std::vector<std::vector<long double>> r(set.size(), std::vector<long double>(set.size(), 0));
      for (std::size_t a = 0; a < set.size(); ++a) {
        long double d2 = at(set[a], set[a]);
        for (std::size_t b = 0; b < a; ++b) {
          long double v = at(set[a], set[b]);
          for (std::size_t l = 0; l < b; ++l) v -= r[a][l] * r[b][l];
          r[a][b] = r[b][b] > 0 ? v / r[b][b] : 0;  // redundant members explain nothing
          d2 -= r[a][b] * r[a][b];
        }
        r[a][a] = d2 > eps * at(set[a], set[a]) ? std::sqrt(d2) : 0;
        if (a + 1 == set.size()) out[static_cast<std::size_t>(i)] = r[a][a] > 0 ? d2 : 0;
      }
    }
    for (Index i = 0; i < items(); ++i) {
      if (!usable[static_cast<std::size_t>(i)]) out[static_cast<std::size_t>(i)] = 0;
    }
    for (const auto p : picks) out[static_cast<std::size_t>(p)] = 0;
    return out;
  }
};

/// The kernel of dpp_map's features, row by row in long double.
template <class T>
DppReference dpp_reference(const recops::DppInput<T>& in, recops::MatrixView<const T> rows, const recops::DppOptions& o) {
  DppReference ref;
  ref.window = o.window;
  const Index n = in.quality.size(), m = in.history.rows(), d = rows.cols();
  ref.history = m;
  const auto size = static_cast<std::size_t>(m + n);
  std::vector<std::vector<long double>> x(size, std::vector<long double>(static_cast<std::size_t>(d)));
  std::vector<long double> q(size, 1), extra(size, 0);
  for (Index i = 0; i < m + n; ++i) {
    const auto s = static_cast<std::size_t>(i);
    long double square = 0;
    for (Index c = 0; c < d; ++c) {
      x[s][static_cast<std::size_t>(c)] = i < m ? in.history(i, c) : rows(i - m, c);
      square += x[s][static_cast<std::size_t>(c)] * x[s][static_cast<std::size_t>(c)];
    }
    if (o.normalize) {
      for (auto& v : x[s]) v = square > 0 ? v / std::sqrt(square) : 0;
    }
    if (i >= m) {
      q[s] = in.quality[i - m];
      extra[s] = in.diagonal.empty() ? 0 : in.diagonal[i - m];
    }
  }
  ref.kernel.assign(size, std::vector<long double>(size, 0));
  for (std::size_t a = 0; a < size; ++a) {
    for (std::size_t b = 0; b < size; ++b) {
      long double v = 0;
      for (std::size_t c = 0; c < x[a].size(); ++c) v += x[a][c] * x[b][c];
      ref.kernel[a][b] = a == b ? q[a] * q[a] * v + extra[a] : static_cast<long double>(o.alpha) * q[a] * q[b] * v;
    }
  }
  for (Index i = 0; i < n; ++i) ref.usable.push_back((in.allowed.empty() || in.allowed[i] != 0) && in.quality[i] > 0);
  return ref;
}

}  // namespace recops_test
