/// @file   tests/contrastive/reference.hpp
/// @brief  The loss and its gradients from the formula: all logits stored, double precision, plain loops.
#pragma once
#include <cmath>
#include <recops/contrastive/infonce_options.hpp>
#include <recops/core/matrix.hpp>
#include <vector>

namespace recops_test {

struct InfoNceAnswer {
  double loss = 0, dlog_scale = 0;
  recops::Matrix<double> du, dv, r;
};

/// `left_out(i, j)` and `target(i, j)` (>= 0) say all there is to say; rows without targets do not count. With `inside`, positives
/// share a logarithm.
template <class Bias, class LeftOut, class Target, class Weight>
InfoNceAnswer infonce_reference(const recops::Matrix<double>& u, const recops::Matrix<double>& v, double log_scale, Bias&& bias,
                                LeftOut&& left_out, Target&& target, Weight&& weight, bool inside = false) {
  using recops::Index;
  const Index rows = u.rows(), cols = v.rows(), width = u.cols();
  const double s = std::exp(std::min(log_scale, std::log(100.0)));
  InfoNceAnswer a{0, 0, recops::Matrix<double>(rows, width, 0.0), recops::Matrix<double>(cols, width, 0.0),
                  recops::Matrix<double>(rows, cols, 0.0)};
  double mass = 0;
  std::vector<double> q(static_cast<std::size_t>(rows), 0);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) q[static_cast<std::size_t>(i)] += left_out(i, j) ? 0 : target(i, j);
    if (q[static_cast<std::size_t>(i)] > 0) mass += weight(i);
  }
  for (Index i = 0; i < rows; ++i) {
    const double sum = q[static_cast<std::size_t>(i)];
    if (sum == 0 || weight(i) == 0) continue;
    std::vector<double> z(static_cast<std::size_t>(cols)), product(z.size());
    double top = -1e300, total = 0, right = 0;
    for (Index j = 0; j < cols; ++j) {
      const auto k = static_cast<std::size_t>(j);
      for (Index d = 0; d < width; ++d) product[k] += s * u(i, d) * v(j, d);
      z[k] = product[k] + bias(i, j);
      if (!left_out(i, j)) top = std::max(top, z[k]);
    }
    for (Index j = 0; j < cols; ++j) {
      const double e = left_out(i, j) ? 0 : std::exp(z[static_cast<std::size_t>(j)] - top);
      total += e;
      if (target(i, j) > 0) right += e;
    }
    double one = inside ? std::log(total) - std::log(right) : sum * (top + std::log(total));
    for (Index j = 0; j < cols; ++j) {
      if (left_out(i, j)) continue;
      const double e = std::exp(z[static_cast<std::size_t>(j)] - top), t = target(i, j);
      a.r(i, j) = weight(i) / mass * (inside ? e / total - (t > 0 ? e / right : 0) : sum * e / total - t);
      if (!inside && t > 0) one -= t * z[static_cast<std::size_t>(j)];
      if (log_scale <= std::log(100.0)) a.dlog_scale += a.r(i, j) * product[static_cast<std::size_t>(j)];
      for (Index d = 0; d < width; ++d) {
        a.du(i, d) += s * a.r(i, j) * v(j, d);
        a.dv(j, d) += s * a.r(i, j) * u(i, d);
      }
    }
    a.loss += weight(i) / mass * one;
  }
  return a;
}

}  // namespace recops_test
