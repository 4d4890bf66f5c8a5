/// @file   tests/support/silu_attention_reference.hpp
/// @brief  Attention with silu instead of a softmax, of one sequence, written from its formula: double precision, plain loops.
#pragma once
#include <cmath>
#include <cstdint>
#include <recops/core/matrix.hpp>
#include <vector>

#include "support/attention_reference.hpp"

namespace recops_test {

/// The queries are the last n of l positions. Whatever is empty is absent.
struct SiluAttentionCase {
  recops::Index n, l, heads, dk, dv, max_length;
  bool causal = true;
  recops::Index window = 0, targets = 0;
  double scale = 0.75;
  recops::Matrix<double> q, k, v, dout;
  recops::Matrix<double> position, time;  // [1, 2 max_length - 1], [1, buckets]
  std::vector<std::int64_t> times, asked;

  SiluAttentionCase(recops::Index queries, recops::Index keys, recops::Index head_count, recops::Index key_width,
                    recops::Index value_width, recops::Index longest, recops::Random& random)
      : n(queries),
        l(keys),
        heads(head_count),
        dk(key_width),
        dv(value_width),
        max_length(longest),
        q(AttentionCase::rounded(queries, head_count * key_width, random)),
        k(AttentionCase::rounded(keys, head_count * key_width, random)),
        v(AttentionCase::rounded(keys, head_count * value_width, random)),
        dout(AttentionCase::rounded(queries, head_count * value_width, random)) {}
  void add_position(recops::Random& random) { position = AttentionCase::rounded(1, 2 * max_length - 1, random); }
  /// Behaviours minutes to months apart; with `disorder` some times run backwards.
  void add_time(recops::Index buckets, bool disorder, recops::Random& random) {
    time = AttentionCase::rounded(1, buckets, random);
    std::int64_t now = 1'700'000'000;
    for (recops::Index j = 0; j < l; ++j) {
      now += static_cast<std::int64_t>(std::exp(random.uniform(0, 12))) * (disorder && random.chance(0.3) ? -1 : 1);
      times.push_back(now);
    }
    for (recops::Index i = 0; i < n; ++i) {
      const auto next = static_cast<std::size_t>(l - n + i + 1);
      asked.push_back(next < times.size() ? times[next] : times.back());
    }
  }
  recops::Index place(recops::Index p) const { return std::min(p, l - targets); }
  recops::Index bucket(recops::Index i, recops::Index j) const {
    const double gap = std::abs(static_cast<double>(asked[static_cast<std::size_t>(i)] - times[static_cast<std::size_t>(j)]));
    return std::min(static_cast<recops::Index>(std::log(std::max(1.0, gap)) / 0.301), time.cols() - 1);
  }
  bool sees(recops::Index p, recops::Index j) const {
    const bool candidate = p >= l - targets, other = j >= l - targets;
    if (causal && (j > p || (candidate && other && p != j))) return false;
    return window == 0 || place(p) - place(j) < window;
  }
};

struct SiluAttentionAnswer {
  recops::Matrix<double> out, dq, dk, dv, dposition, dtime;
};

inline SiluAttentionAnswer silu_attention_reference(const SiluAttentionCase& x) {
  using recops::Index;
  using recops::Matrix;
  SiluAttentionAnswer y{Matrix<double>(x.n, x.heads * x.dv, 0.0),
                        Matrix<double>(x.n, x.heads * x.dk, 0.0),
                        Matrix<double>(x.l, x.heads * x.dk, 0.0),
                        Matrix<double>(x.l, x.heads * x.dv, 0.0),
                        Matrix<double>(x.position.rows(), x.position.cols(), 0.0),
                        Matrix<double>(x.time.rows(), x.time.cols(), 0.0)};
  const double weight = 1 / static_cast<double>(x.max_length);
  for (Index h = 0; h < x.heads; ++h) {
    for (Index i = 0; i < x.n; ++i) {
      const Index p = x.l - x.n + i;
      for (Index j = 0; j < x.l; ++j) {
        if (!x.sees(p, j)) continue;
        const Index at = x.max_length - 1 + x.place(j) - x.place(p);
        double s = 0, g = 0;
        for (Index d = 0; d < x.dk; ++d) s += x.scale * x.q(i, h * x.dk + d) * x.k(j, h * x.dk + d);
        if (!x.position.empty()) s += x.position(0, at);
        if (!x.time.empty()) s += x.time(0, x.bucket(i, j));
        const double gate = 1 / (1 + std::exp(-s));
        for (Index d = 0; d < x.dv; ++d) {
          y.out(i, h * x.dv + d) += weight * s * gate * x.v(j, h * x.dv + d);
          y.dv(j, h * x.dv + d) += weight * s * gate * x.dout(i, h * x.dv + d);
          g += weight * x.v(j, h * x.dv + d) * x.dout(i, h * x.dv + d);
        }
        const double ds = g * gate * (1 + s * (1 - gate));
        for (Index d = 0; d < x.dk; ++d) {
          y.dq(i, h * x.dk + d) += x.scale * ds * x.k(j, h * x.dk + d);
          y.dk(j, h * x.dk + d) += x.scale * ds * x.q(i, h * x.dk + d);
        }
        if (!x.position.empty()) y.dposition(0, at) += ds;
        if (!x.time.empty()) y.dtime(0, x.bucket(i, j)) += ds;
      }
    }
  }
  return y;
}

}  // namespace recops_test
