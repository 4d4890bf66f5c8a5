/// @file   tests/gating/reference.hpp
/// @brief  Experts, gates and mixtures in double, one number at a time, written from the formulas.
#pragma once
#include <recops/gating/mmoe.hpp>

#include "support/numbers.hpp"

namespace recops_test {

using namespace recops;

/// Fill rule of the specification's golden numbers.
inline Matrix<double> fill(Index i, Index rows, Index cols) {
  Matrix<double> m(rows, cols);
  for (Index j = 0; j < rows * cols; ++j)
    m.data()[j] = static_cast<double>((31 * j * j + (17 + 2 * i) * j + 101 * i + 7) % 1009) / 1009 - 0.5;
  return m;
}
inline Matrix<double> transpose(const Matrix<double>& m) {
  Matrix<double> t(m.cols(), m.rows());
  for (Index i = 0; i < m.rows(); ++i)
    for (Index j = 0; j < m.cols(); ++j) t(j, i) = m(i, j);
  return t;
}
template <class To, class From>
Matrix<To> cast(const Matrix<From>& m) {
  Matrix<To> r(m.rows(), m.cols());
  for (Index i = 0; i < m.rows() * m.cols(); ++i) r.data()[i] = static_cast<To>(m.data()[i]);
  return r;
}
/// The same layer with other numbers.
template <class To, class From>
void cast_layer(const From& from, To& to) {
  std::vector<std::vector<double>> leaves;
  visit(
      [&](const FieldPath&, const auto& leaf) {
        leaves.emplace_back();
        for (const auto& v : leaf_values(leaf)) leaves.back().push_back(static_cast<double>(v));
      },
      from);
  std::size_t at = 0;
  visit(
      [&](const FieldPath&, auto& leaf) {
        std::size_t i = 0;
        for (auto& v : leaf_values(leaf)) v = static_cast<std::remove_reference_t<decltype(v)>>(leaves[at][i++]);
        ++at;
      },
      to);
}

inline double activated(Activation f, double x) {
  if (f == Activation::relu) return x > 0 ? x : 0;
  if (f == Activation::sigmoid) return 1 / (1 + std::exp(-x));
  if (f == Activation::silu) return x / (1 + std::exp(-x));
  return x;
}

/// x W^T + b; block by block if each block has its own columns of x.
template <class T>
Matrix<double> linear_reference(const Matrix<double>& x, const Matrix<T>& w, const Vector<T>& b, Index blocks) {
  const Index in = w.cols(), n = w.rows();
  Matrix<double> y(x.rows(), n);
  for (Index r = 0; r < x.rows(); ++r)
    for (Index j = 0; j < n; ++j) {
      const Index first = blocks == 1 ? 0 : j / (n / blocks) * in;
      double z = b.empty() ? 0 : static_cast<double>(b[j]);
      for (Index i = 0; i < in; ++i) z += x(r, first + i) * static_cast<double>(w(j, i));
      y(r, j) = z;
    }
  return y;
}

/// Outputs of all experts; batch norm with statistics of the batch if `training`.
template <class T>
Matrix<double> experts_reference(const ExpertBank<T>& bank, Matrix<double> x, bool training) {
  const Index experts = bank.options.experts;
  for (std::size_t l = 0; l < bank.hidden.size(); ++l) {
    x = linear_reference(x, bank.hidden[l].weight, bank.hidden[l].bias, l == 0 ? 1 : experts);
    for (double& v : leaf_values(x)) v = activated(bank.options.activation, v);
  }
  Matrix<double> z = linear_reference(x, bank.weight, bank.bias, bank.hidden.empty() ? 1 : experts);
  const Index n = z.cols(), h = n / experts, rows = z.rows();
  Matrix<double> y(rows, n);
  for (Index r = 0; r < rows; ++r) {
    for (Index j = 0; j < n; ++j) {
      const Index first = j / h * h;
      double mean = 0, square = 1, shift = 0;
      switch (bank.options.norm) {
        case ExpertNorm::none:
          break;
        case ExpertNorm::batch:
          if (training) {
            square = 0;
            for (Index i = 0; i < rows; ++i) mean += z(i, j) / static_cast<double>(rows);
            for (Index i = 0; i < rows; ++i) square += (z(i, j) - mean) * (z(i, j) - mean) / static_cast<double>(rows);
          } else {
            mean = static_cast<double>(bank.running_mean[j]);
            square = static_cast<double>(bank.running_variance[j]);
          }
          shift = static_cast<double>(bank.norm_bias[j]);
          break;
        case ExpertNorm::layer:
        case ExpertNorm::rms:
          square = 0;
          if (bank.options.norm == ExpertNorm::layer) {
            for (Index i = first; i < first + h; ++i) mean += z(r, i) / static_cast<double>(h);
            shift = static_cast<double>(bank.norm_bias[j]);
          }
          for (Index i = first; i < first + h; ++i) square += (z(r, i) - mean) * (z(r, i) - mean) / static_cast<double>(h);
          break;
      }
      double v = z(r, j);
      if (bank.options.norm != ExpertNorm::none)
        v = (v - mean) / std::sqrt(square + bank.options.epsilon) * static_cast<double>(bank.norm_weight[j]) + shift;
      y(r, j) = activated(bank.options.activation, v);
    }
  }
  return y;
}

/// Gates of all tasks, compact.
template <class T>
Matrix<double> gates_reference(const TaskGates<T>& gates, const Matrix<double>& x) {
  Matrix<double> at = x;
  for (std::size_t l = 0; l < gates.hidden.size(); ++l) {
    at = linear_reference(at, gates.hidden[l].weight, gates.hidden[l].bias, l == 0 ? 1 : gates.map.tasks());
    for (double& v : leaf_values(at)) v = activated(Activation::relu, v);
  }
  Matrix<double> g(x.rows(), gates.map.size());
  const Index in = gates.weight.cols();
  for (Index r = 0; r < x.rows(); ++r)
    for (Index t = 0; t < gates.map.tasks(); ++t) {
      double total = 0;
      for (Index i = gates.map.begin(t); i < gates.map.end(t); ++i) {
        double z = gates.bias.empty() ? 0 : static_cast<double>(gates.bias[i]);
        for (Index j = 0; j < in; ++j)
          z += at(r, (gates.hidden.empty() ? 0 : t * in) + j) * static_cast<double>(gates.weight(i, j));
        total += g(r, i) = std::exp(z / gates.options.temperature);
      }
      for (Index i = gates.map.begin(t); i < gates.map.end(t); ++i) g(r, i) /= total;
    }
  return g;
}

inline Matrix<double> mix_reference(const Matrix<double>& experts, const Matrix<double>& gates, const GateMap& map) {
  const Index h = experts.cols() / map.experts();
  Matrix<double> y(experts.rows(), map.tasks() * h, 0.0);
  for (Index r = 0; r < experts.rows(); ++r)
    for (Index t = 0; t < map.tasks(); ++t)
      for (Index g = map.begin(t); g < map.end(t); ++g)
        for (Index j = 0; j < h; ++j) y(r, t * h + j) += gates(r, g) * experts(r, map.expert(g) * h + j);
  return y;
}

template <class T>
Matrix<double> mmoe_reference(const Mmoe<T>& layer, const Matrix<double>& x, bool training) {
  return mix_reference(experts_reference(layer.experts, x, training), gates_reference(layer.gates, x), layer.gates.map);
}

/// Moves what a new layer has at 0 or 1 (norms, statistics) somewhere else.
template <class T>
void shake(ExpertBank<T>& bank, Random& random) {
  for (T& v : bank.norm_weight) v = static_cast<T>(random.uniform(0.5, 1.5));
  for (T& v : bank.norm_bias) v = static_cast<T>(random.uniform(-0.5, 0.5));
  for (T& v : bank.running_mean) v = static_cast<T>(random.uniform(-0.5, 0.5));
  for (T& v : bank.running_variance) v = static_cast<T>(random.uniform(0.2, 2.0));
}

}  // namespace recops_test
