/// @file   tests/support/attention_reference.hpp
/// @brief  Softmax attention of one sequence written from its formula: scores and weights stored, double precision, plain loops.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <recops/core/matrix.hpp>
#include <vector>

#include "support/numbers.hpp"

namespace recops_test {

/// Operands of one sequence. Whatever is empty is absent.
struct AttentionCase {
  recops::Index n, l, heads, dk, dv;
  bool causal = false;
  recops::Index window = 0;
  double scale = 0;
  recops::Matrix<double> q, k, v, key_bias, pair_bias;
  std::vector<std::uint8_t> mask;

  /// Random numbers that a float holds exactly.
  AttentionCase(recops::Index queries, recops::Index keys, recops::Index head_count, recops::Index key_width,
                recops::Index value_width, recops::Random& random)
      : n(queries),
        l(keys),
        heads(head_count),
        dk(key_width),
        dv(value_width),
        scale(1 / std::sqrt(static_cast<double>(key_width))),
        q(rounded(queries, head_count * key_width, random)),
        k(rounded(keys, head_count * key_width, random)),
        v(rounded(keys, head_count * value_width, random)) {}

  static recops::Matrix<double> rounded(recops::Index rows, recops::Index cols, recops::Random& random) {
    auto m = random_matrix<double>(rows, cols, random);
    for (recops::Index i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<double>(static_cast<float>(m.data()[i]));
    return m;
  }
  void add_mask(recops::Random& random) {
    mask.resize(static_cast<std::size_t>(l));
    for (auto& m : mask) m = random.chance(0.6) ? 1 : 0;
  }
  void add_key_bias(recops::Index columns, recops::Random& random) {
    key_bias = rounded(l, columns, random);
    hide_some(key_bias, random);
  }
  void add_pair_bias(recops::Index head_count, recops::Random& random) {
    pair_bias = rounded(head_count * n, l, random);
    hide_some(pair_bias, random);
  }
  static void hide_some(recops::Matrix<double>& m, recops::Random& random) {
    for (recops::Index i = 0; i < m.rows() * m.cols(); ++i)
      if (random.chance(0.25)) m.data()[i] = -std::numeric_limits<double>::infinity();
  }

  double bias(recops::Index h, recops::Index i, recops::Index j) const {
    double b = 0;
    if (!key_bias.empty()) b += key_bias(j, key_bias.cols() == 1 ? 0 : h);
    if (!pair_bias.empty()) b += pair_bias((pair_bias.rows() == n ? 0 : h * n) + i, j);
    return b;
  }
  bool sees(recops::Index h, recops::Index i, recops::Index j) const {
    return (mask.empty() || mask[static_cast<std::size_t>(j)] != 0) && !(causal && j > i) && !(window > 0 && i - j >= window) &&
           bias(h, i, j) != -std::numeric_limits<double>::infinity();
  }
};

struct AttentionAnswer {
  recops::Matrix<double> out, lse, dq, dk, dv, dkey_bias, dpair_bias;
};

/// Forward, and backward for the output gradient `dout` and (unless empty) `dlse`.
inline AttentionAnswer attention_reference(const AttentionCase& x, const recops::Matrix<double>& dout,
                                           const recops::Matrix<double>& dlse) {
  using recops::Index;
  using recops::Matrix;
  AttentionAnswer y{Matrix<double>(x.n, x.heads * x.dv, 0.0),
                    Matrix<double>(x.n, x.heads, -std::numeric_limits<double>::infinity()),
                    Matrix<double>(x.n, x.heads * x.dk, 0.0),
                    Matrix<double>(x.l, x.heads * x.dk, 0.0),
                    Matrix<double>(x.l, x.heads * x.dv, 0.0),
                    Matrix<double>(x.key_bias.rows(), x.key_bias.cols(), 0.0),
                    Matrix<double>(x.pair_bias.rows(), x.pair_bias.cols(), 0.0)};
  std::vector<double> weight(static_cast<std::size_t>(x.l)), gradient(weight.size());
  for (Index h = 0; h < x.heads; ++h) {
    for (Index i = 0; i < x.n; ++i) {
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      std::vector<Index> seen;
      for (Index j = 0; j < x.l; ++j)
        if (x.sees(h, i, j)) seen.push_back(j);
      if (seen.empty()) continue;
      for (const Index j : seen) {
        double s = x.bias(h, i, j);
        for (Index d = 0; d < x.dk; ++d) s += x.scale * x.q(i, h * x.dk + d) * x.k(j, h * x.dk + d);
        weight[static_cast<std::size_t>(j)] = s;
        top = s > top ? s : top;
      }
      for (const Index j : seen) sum += weight[static_cast<std::size_t>(j)] = std::exp(weight[static_cast<std::size_t>(j)] - top);
      for (const Index j : seen) {
        weight[static_cast<std::size_t>(j)] /= sum;
        for (Index d = 0; d < x.dv; ++d) y.out(i, h * x.dv + d) += weight[static_cast<std::size_t>(j)] * x.v(j, h * x.dv + d);
      }
      y.lse(i, h) = top + std::log(sum);
      if (dout.empty()) continue;
      double mean = 0;
      for (const Index j : seen) {
        double g = 0;
        for (Index d = 0; d < x.dv; ++d) {
          g += dout(i, h * x.dv + d) * x.v(j, h * x.dv + d);
          y.dv(j, h * x.dv + d) += weight[static_cast<std::size_t>(j)] * dout(i, h * x.dv + d);
        }
        gradient[static_cast<std::size_t>(j)] = g;
        mean += weight[static_cast<std::size_t>(j)] * g;
      }
      for (const Index j : seen) {
        const double p = weight[static_cast<std::size_t>(j)];
        const double ds = p * (gradient[static_cast<std::size_t>(j)] - mean + (dlse.empty() ? 0 : dlse(i, h)));
        for (Index d = 0; d < x.dk; ++d) {
          y.dq(i, h * x.dk + d) += x.scale * ds * x.k(j, h * x.dk + d);
          y.dk(j, h * x.dk + d) += x.scale * ds * x.q(i, h * x.dk + d);
        }
        if (!x.key_bias.empty()) y.dkey_bias(j, x.key_bias.cols() == 1 ? 0 : h) += ds;
        if (!x.pair_bias.empty()) y.dpair_bias((x.pair_bias.rows() == x.n ? 0 : h * x.n) + i, j) += ds;
      }
    }
  }
  return y;
}

/// A matrix of doubles as T.
template <class T>
recops::Matrix<T> as(const recops::Matrix<double>& m) {
  recops::Matrix<T> r(m.rows(), m.cols());
  for (recops::Index i = 0; i < m.rows() * m.cols(); ++i) r.data()[i] = static_cast<T>(m.data()[i]);
  return r;
}

}  // namespace recops_test
