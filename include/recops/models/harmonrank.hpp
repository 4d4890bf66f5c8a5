/// @file   recops/models/harmonrank.hpp
/// @brief  HarmonRank's ensemble: one score out of the scores of several objectives, by what the objectives say of each other and by
///         whom they are shown to.
///
///     E_m = x_m w_m + t_m                                                          a token for every objective's score
///     R   = E + O W_o^T,  O = heads of softmax(Q K^T / sqrt(d / H)) V             step 1: self-attention among the objectives
///     a_m = softmax_m(<q, C_k R_m> / sqrt(d)),  q = Q_u u                          step 2: cross-attention of the user to them
///     s_aware = <w_s, Σ_m a_m C_v R_m> + b_s        s_agnostic = Σ_m g_m x_m,  g = softmax(W_g u + b_g)
///     s = s_aware + s_agnostic, optionally through a sigmoid
///
/// Shapes      x [B, M] objective scores   u [B, P] user profile   s [B]   M some 3 to 12, d 16 to 64
/// Parts       each step and branch can be left out (`HarmonRankSpec`), for a model that wants less, or to see what it is worth.
/// Folded      everything is linear in u or rank one in x_m, so that W_o, C_k, C_v, w_s and the projections vanish into constants:
///             `freeze` gives a form of one product [B, P] x [P, (3 + 2 H) M] and O(H M²) per row instead of O(M d²). Equal to the
///             direct form within rounding.
/// Edge cases  B = 0 does nothing.  M = 1: both attentions and a softmax gate are 1.
/// NaN         stays in its row.
/// Precision   sums in T; softmax max-shifted.
/// Cost        training 2 B M d (5 d + 2 M) flops, three times that backward; saves some 8 B M d numbers.
/// Errors      Error if shapes disagree; outputs untouched.
/// Gradient    of every parameter, and of x and u unless empty (in production the objectives' models are frozen); *adds*.
/// Loss        rank_sum_auc_loss (ranking/rank_sum_auc_loss.hpp), or whatever else trains one score.
/// Reference   HarmonRank, arXiv 2601.02955 (Kuaishou): the branches and steps. How a score becomes a token, heads, the residual, no
///             norms, the output layer and all foldings are our reconstruction.
#pragma once
#include <cmath>
#include <recops/nn/linear.hpp>
#include <recops/simd/math.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// How the gate of the relation-agnostic branch turns numbers into weights.
enum class HarmonRankGate { softmax, sigmoid, softplus };

/// What a `HarmonRank` is made of.
struct HarmonRankSpec {
  Index objectives = 0;           ///< M
  Index profile = 0;              ///< P, features of the user
  Index width = 16;               ///< d
  Index heads = 1;                ///< H, of step 1; divides d
  bool relation_aware = true;     ///< the branch of both attentions
  bool self_attention = true;     ///< step 1; without it R = E
  bool cross_attention = true;    ///< step 2; without it a_m = 1 / M
  bool relation_agnostic = true;  ///< the gated sum
  HarmonRankGate gate = HarmonRankGate::softmax;
  bool logit = false;    ///< x are probabilities: log(x / (1 - x)), clipped at 1e-6 from 0 and 1, is what counts
  bool sigmoid = false;  ///< s in (0, 1)
};

inline namespace RECOPS_ABI {
namespace detail {

inline void check_harmonrank(const HarmonRankSpec& s) {
  const auto check = [](const char* argument, bool ok, const char* expected, Index actual) {
    check_option("HarmonRank", argument, ok, expected, static_cast<double>(actual));
  };
  check("objectives", s.objectives >= 1, "at least 1", s.objectives);
  check("profile", s.profile >= 0, "0 or more", s.profile);
  check("width", s.width >= 1, "at least 1", s.width);
  check("heads", s.heads >= 1 && s.width % s.heads == 0, "a divisor of width", s.heads);
  check("relation_aware", s.relation_aware || s.relation_agnostic, "at least one branch", 0);
}

template <class T>
inline constexpr T logit_clip = T(1e-6);

/// What the model sees of the scores.
template <class T>
void harmonrank_scores(const HarmonRankSpec& spec, MatrixView<const T> x, MatrixView<T> to) {
  for (Index b = 0; b < x.rows(); ++b)
    for (Index m = 0; m < x.cols(); ++m) {
      T v = x(b, m);
      if (spec.logit) {
        v = v < logit_clip<T> ? logit_clip<T> : v > 1 - logit_clip<T> ? 1 - logit_clip<T> : v;
        v = std::log(v / (1 - v));
      }
      to(b, m) = v;
    }
}

/// Numbers become weights, row by row.
template <class T>
void harmonrank_gate(HarmonRankGate gate, T* g, Index m) {
  if (gate == HarmonRankGate::softmax) {
    simd::softmax<T>(g, m);
  } else if (gate == HarmonRankGate::sigmoid) {
    for (Index i = 0; i < m; ++i) g[i] = 1 / (1 + std::exp(-g[i]));
  } else {
    for (Index i = 0; i < m; ++i) g[i] = std::max(g[i], T(0)) + std::log1p(std::exp(-std::abs(g[i])));
  }
}

}  // namespace detail

/// The model with its parameters, PyTorch's layouts: `token.weight [M, d]`, `token.bias [M, d]`, `query/key/value/out [d, d]`,
/// `profile_query [d, P]`, `cross_key/cross_value [d, d]`, `score.weight [d]`, `score.bias [1]`, `gate.weight [M, P]`,
/// `gate.bias [M]`. Those of parts that are left out are empty.
template <Real T>
struct HarmonRank {
  HarmonRankSpec spec;
  Matrix<T> token_weight, token_bias, query, key, value, out, profile_query, cross_key, cross_value, gate_weight;
  Vector<T> score_weight, score_bias, gate_bias;

  HarmonRank() = default;
  /// Weights uniform in ± 1 / sqrt(inputs), as `torch.nn.Linear`; the gate starts even.
  HarmonRank(const HarmonRankSpec& s, Random& random) : spec(s) {
    detail::check_harmonrank(s);
    const Index m = s.objectives, d = s.width;
    const auto fill = [&](Matrix<T>& w, Index rows, Index cols, Index fan) {
      w.resize(rows, cols);
      const double bound = fan > 0 ? 1 / std::sqrt(static_cast<double>(fan)) : 0;
      for (T& v : leaf_values(w)) v = static_cast<T>(random.uniform(-bound, bound));
    };
    if (s.relation_aware) {
      fill(token_weight, m, d, d);
      fill(token_bias, m, d, d);
      if (s.self_attention)
        for (Matrix<T>* w : {&query, &key, &value, &out}) fill(*w, d, d, d);
      if (s.cross_attention) {
        fill(profile_query, d, s.profile, s.profile);
        fill(cross_key, d, d, d);
      }
      fill(cross_value, d, d, d);
      score_weight.resize(d);
      for (T& v : score_weight) v = static_cast<T>(random.uniform(-1, 1) / std::sqrt(static_cast<double>(d)));
      score_bias = Vector<T>(1, T(0));
    }
    if (s.relation_agnostic) {
      gate_weight = Matrix<T>(m, s.profile);
      for (T& v : leaf_values(gate_weight)) v = T(0);
      gate_bias = Vector<T>(m, T(0));
    }
  }

  static constexpr auto fields() {
    return std::tuple{parameter("token.weight", &HarmonRank::token_weight),
                      parameter("token.bias", &HarmonRank::token_bias),
                      parameter("query", &HarmonRank::query),
                      parameter("key", &HarmonRank::key),
                      parameter("value", &HarmonRank::value),
                      parameter("out", &HarmonRank::out),
                      parameter("profile_query", &HarmonRank::profile_query),
                      parameter("cross_key", &HarmonRank::cross_key),
                      parameter("cross_value", &HarmonRank::cross_value),
                      parameter("score.weight", &HarmonRank::score_weight),
                      parameter("score.bias", &HarmonRank::score_bias),
                      parameter("gate.weight", &HarmonRank::gate_weight),
                      parameter("gate.bias", &HarmonRank::gate_bias)};
  }

  /// What a training forward leaves for backward; rows b M + m are objective m of sample b.
  struct Saved {
    Matrix<T> scores;                 ///< [B, M] after the logit
    Matrix<T> tokens, q, k, v;        ///< [B M, d]
    Matrix<T> attention;              ///< [B, H M M]
    Matrix<T> heads, relations;       ///< [B M, d] O and R
    Matrix<T> profile, keys, values;  ///< [B, d], [B M, d], [B M, d] of step 2
    Matrix<T> cross;                  ///< [B, M] a
    Matrix<T> pooled;                 ///< [B, d]
    Matrix<T> gate;                   ///< [B, M] g
    Matrix<T> gate_logits;            ///< [B, M], for softplus
    Vector<T> score;                  ///< [B] s
  };

  /// s `[B]` of x `[B, M]` and u `[B, P]`, by the equations as they stand; for serving `freeze` it.
  void forward(MatrixView<const T> x, MatrixView<const T> u, VectorView<T> s, Saved& saved, Workspace& ws) const {
    check("HarmonRank::forward", x, u);
    check_size("HarmonRank::forward", "s", s, x.rows());
    const Index rows = x.rows(), m = spec.objectives, d = spec.width, heads = spec.heads, dh = d / heads;
    saved.scores.resize(rows, m);
    detail::harmonrank_scores(spec, x, saved.scores.view());
    saved.score.resize(rows);
    saved.score.fill(T(0));
    if (spec.relation_aware) {
      for (Matrix<T>* w : {&saved.tokens, &saved.relations, &saved.values}) w->resize(rows * m, d);
      saved.cross.resize(rows, m);
      saved.pooled.resize(rows, d);
      for (Index b = 0; b < rows; ++b)
        for (Index i = 0; i < m; ++i)
          for (Index j = 0; j < d; ++j) saved.tokens(b * m + i, j) = saved.scores(b, i) * token_weight(i, j) + token_bias(i, j);
      std::copy_n(saved.tokens.data(), rows * m * d, saved.relations.data());
      if (spec.self_attention) {
        for (Matrix<T>* w : {&saved.q, &saved.k, &saved.v, &saved.heads}) w->resize(rows * m, d);
        saved.attention.resize(rows, heads * m * m);
        linear<T>(saved.tokens, query, {}, saved.q, ws);
        linear<T>(saved.tokens, key, {}, saved.k, ws);
        linear<T>(saved.tokens, value, {}, saved.v, ws);
        const T unit = 1 / std::sqrt(static_cast<T>(dh));
        for (Index b = 0; b < rows; ++b)
          for (Index h = 0; h < heads; ++h)
            for (Index i = 0; i < m; ++i) {
              T* const a = saved.attention.row(b) + (h * m + i) * m;
              for (Index j = 0; j < m; ++j)
                a[j] = unit * simd::dot<T>(saved.q.row(b * m + i) + h * dh, saved.k.row(b * m + j) + h * dh, dh);
              simd::softmax<T>(a, m);
              T* const o = saved.heads.row(b * m + i) + h * dh;
              std::fill_n(o, dh, T(0));
              for (Index j = 0; j < m; ++j) simd::axpy<T>(a[j], saved.v.row(b * m + j) + h * dh, o, dh);
            }
        simd::gemm<T>(simd::plain(MatrixView<const T>(saved.heads)), simd::transposed(MatrixView<const T>(out)),
                      {.accumulate = true}, saved.relations, ws);
      }
      linear<T>(saved.relations, cross_value, {}, saved.values, ws);
      if (spec.cross_attention) {
        saved.profile.resize(rows, d);
        saved.keys.resize(rows * m, d);
        linear<T>(u, profile_query, {}, saved.profile, ws);
        linear<T>(saved.relations, cross_key, {}, saved.keys, ws);
        const T unit = 1 / std::sqrt(static_cast<T>(d));
        for (Index b = 0; b < rows; ++b) {
          for (Index i = 0; i < m; ++i)
            saved.cross(b, i) = unit * simd::dot<T>(saved.profile.row(b), saved.keys.row(b * m + i), d);
          simd::softmax<T>(saved.cross.row(b), m);
        }
      } else {
        std::fill_n(saved.cross.data(), rows * m, 1 / static_cast<T>(m));
      }
      for (Index b = 0; b < rows; ++b) {
        T* const z = saved.pooled.row(b);
        std::fill_n(z, d, T(0));
        for (Index i = 0; i < m; ++i) simd::axpy<T>(saved.cross(b, i), saved.values.row(b * m + i), z, d);
        saved.score[b] += simd::dot<T>(z, score_weight.data(), d) + score_bias[0];
      }
    }
    if (spec.relation_agnostic) {
      saved.gate.resize(rows, m);
      linear<T>(u, gate_weight, gate_bias, saved.gate, ws);
      if (spec.gate == HarmonRankGate::softplus) saved.gate_logits = saved.gate;
      for (Index b = 0; b < rows; ++b) {
        detail::harmonrank_gate(spec.gate, saved.gate.row(b), m);
        saved.score[b] += simd::dot<T>(saved.gate.row(b), saved.scores.row(b), m);
      }
    }
    if (spec.sigmoid) simd::sigmoid<T>(saved.score.data(), saved.score.data(), rows);
    std::copy(saved.score.begin(), saved.score.end(), s.begin());
  }

  /// Adds to `dx` [B, M], `du` [B, P] (either may be empty) and `gradient`, given `ds` [B]. `x` and `u` are forward's.
  void backward(MatrixView<const T> x, MatrixView<const T> u, VectorView<const T> ds, const Saved& saved, MatrixView<T> dx,
                MatrixView<T> du, HarmonRank& gradient, Workspace& ws) const {
    const char* const name = "HarmonRank::backward";
    check(name, x, u);
    const Index rows = x.rows(), m = spec.objectives, d = spec.width, heads = spec.heads, dh = d / heads;
    check_size(name, "ds", ds, rows);
    check_shape(name, "saved", saved.scores.view(), rows, m);
    if (!dx.empty()) check_shape(name, "dx", dx, rows, m);
    if (!du.empty()) check_shape(name, "du", du, rows, spec.profile);
    check_gradient_shapes(name, *this, gradient);
    if (rows == 0) return;
    const auto mark = ws.mark();
    const auto zeros = [&](Index r, Index c) {
      const MatrixView<T> z = ws.matrix<T>(r, c);
      std::fill_n(z.data(), r * c, T(0));
      return z;
    };
    const VectorView<T> dscore = ws.vector<T>(rows);
    for (Index b = 0; b < rows; ++b) dscore[b] = ds[b] * (spec.sigmoid ? saved.score[b] * (1 - saved.score[b]) : T(1));
    const MatrixView<T> dscores = zeros(rows, m);

    if (spec.relation_agnostic) {
      const MatrixView<T> dg = ws.matrix<T>(rows, m);
      for (Index b = 0; b < rows; ++b) {
        const T* const g = saved.gate.row(b);
        T* const to = dg.row(b);
        T mean = 0;
        for (Index i = 0; i < m; ++i) {
          dscores(b, i) += dscore[b] * g[i];
          to[i] = dscore[b] * saved.scores(b, i);
          mean += to[i] * g[i];
        }
        for (Index i = 0; i < m; ++i)
          to[i] = spec.gate == HarmonRankGate::softmax   ? g[i] * (to[i] - mean)
                  : spec.gate == HarmonRankGate::sigmoid ? to[i] * g[i] * (1 - g[i])
                                                         : to[i] / (1 + std::exp(-saved.gate_logits(b, i)));
      }
      linear_backward<T>(u, gate_weight, dg, du, gradient.gate_weight, gradient.gate_bias, ws);
    }

    if (spec.relation_aware) {
      const MatrixView<T> dvalues = zeros(rows * m, d), drelations = zeros(rows * m, d), dcross = zeros(rows, m);
      for (Index b = 0; b < rows; ++b) {
        if (!gradient.score_bias.empty()) gradient.score_bias[0] += dscore[b];
        if (!gradient.score_weight.empty()) simd::axpy<T>(dscore[b], saved.pooled.row(b), gradient.score_weight.data(), d);
        T mean = 0;
        for (Index i = 0; i < m; ++i) {
          simd::axpy<T>(saved.cross(b, i) * dscore[b], score_weight.data(), dvalues.row(b * m + i), d);
          dcross(b, i) = dscore[b] * simd::dot<T>(saved.values.row(b * m + i), score_weight.data(), d);
          mean += dcross(b, i) * saved.cross(b, i);
        }
        for (Index i = 0; i < m; ++i) dcross(b, i) = saved.cross(b, i) * (dcross(b, i) - mean);
      }
      if (spec.cross_attention) {
        const MatrixView<T> dprofile = zeros(rows, d), dkeys = zeros(rows * m, d);
        const T unit = 1 / std::sqrt(static_cast<T>(d));
        for (Index b = 0; b < rows; ++b)
          for (Index i = 0; i < m; ++i) {
            simd::axpy<T>(unit * dcross(b, i), saved.keys.row(b * m + i), dprofile.row(b), d);
            simd::axpy<T>(unit * dcross(b, i), saved.profile.row(b), dkeys.row(b * m + i), d);
          }
        linear_backward<T>(u, profile_query, dprofile, du, gradient.profile_query, {}, ws);
        linear_backward<T>(saved.relations, cross_key, dkeys, drelations, gradient.cross_key, {}, ws);
      }
      linear_backward<T>(saved.relations, cross_value, dvalues, drelations, gradient.cross_value, {}, ws);
      const MatrixView<T> dtokens = drelations;  // the residual: dE begins as dR
      if (spec.self_attention) {
        const MatrixView<T> dheads = zeros(rows * m, d), dq = zeros(rows * m, d), dk = zeros(rows * m, d),
                            dv = zeros(rows * m, d);
        linear_backward<T>(saved.heads, out, drelations, dheads, gradient.out, {}, ws);
        const T unit = 1 / std::sqrt(static_cast<T>(dh));
        T* const da = ws.take<T>(m);
        for (Index b = 0; b < rows; ++b)
          for (Index h = 0; h < heads; ++h)
            for (Index i = 0; i < m; ++i) {
              const T* const a = saved.attention.row(b) + (h * m + i) * m;
              const T* const o = dheads.row(b * m + i) + h * dh;
              T mean = 0;
              for (Index j = 0; j < m; ++j) {
                da[j] = simd::dot<T>(o, saved.v.row(b * m + j) + h * dh, dh);
                mean += da[j] * a[j];
                simd::axpy<T>(a[j], o, dv.row(b * m + j) + h * dh, dh);
              }
              for (Index j = 0; j < m; ++j) {
                const T dlogit = unit * a[j] * (da[j] - mean);
                simd::axpy<T>(dlogit, saved.k.row(b * m + j) + h * dh, dq.row(b * m + i) + h * dh, dh);
                simd::axpy<T>(dlogit, saved.q.row(b * m + i) + h * dh, dk.row(b * m + j) + h * dh, dh);
              }
            }
        linear_backward<T>(saved.tokens, query, dq, dtokens, gradient.query, {}, ws);
        linear_backward<T>(saved.tokens, key, dk, dtokens, gradient.key, {}, ws);
        linear_backward<T>(saved.tokens, value, dv, dtokens, gradient.value, {}, ws);
      }
      for (Index b = 0; b < rows; ++b)
        for (Index i = 0; i < m; ++i) {
          const T* const e = dtokens.row(b * m + i);
          dscores(b, i) += simd::dot<T>(e, token_weight.row(i), d);
          if (!gradient.token_weight.empty()) simd::axpy<T>(saved.scores(b, i), e, gradient.token_weight.row(i), d);
          if (!gradient.token_bias.empty()) simd::add<T>(e, gradient.token_bias.row(i), d);
        }
    }
    if (dx.empty()) return;
    for (Index b = 0; b < rows; ++b)
      for (Index i = 0; i < m; ++i) {
        const T p = x(b, i);
        const bool clipped = spec.logit && (p < detail::logit_clip<T> || p > 1 - detail::logit_clip<T>);
        if (!clipped) dx(b, i) += spec.logit ? dscores(b, i) / (p * (1 - p)) : dscores(b, i);
      }
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<const T> u) const {
    check_shape(name, "x", x, any_size, spec.objectives);
    check_shape(name, "u", u, x.rows(), spec.profile);
  }
};

/// Serving form of `HarmonRank`, folded: per row of u one product gives, for every objective, what its token and each head's value
/// weigh in the cross-attention, and the gate; the logits of the self-attention are x_i x_j α + x_i β + x_j γ + δ, with constants for
/// each pair. Immutable; threads may share it.
template <Real T>
class FrozenHarmonRank {
 public:
  FrozenHarmonRank() = default;
  explicit FrozenHarmonRank(const HarmonRank<T>& layer) : spec_(layer.spec) {
    const Index m = spec_.objectives, d = spec_.width, heads = spec_.heads, dh = d / heads;
    const auto times = [&](const double* a, const Matrix<T>& w, bool transposed, double* to) {  // a w^T or a w, in double
      for (Index j = 0; j < d; ++j) {
        double sum = 0;
        for (Index k = 0; k < d; ++k) sum += a[k] * static_cast<double>(transposed ? w(j, k) : w(k, j));
        to[j] = sum;
      }
    };
    const auto dot = [](const double* a, const double* b, Index n) {
      double sum = 0;
      for (Index i = 0; i < n; ++i) sum += a[i] * b[i];
      return sum;
    };
    Matrix<T> weight((3 + 2 * heads) * m, spec_.profile);
    Vector<T> bias((3 + 2 * heads) * m, T(0));
    std::fill_n(weight.data(), weight.rows() * weight.cols(), T(0));
    if (spec_.relation_agnostic) {
      std::copy_n(layer.gate_weight.data(), m * spec_.profile, weight.data());
      std::copy(layer.gate_bias.begin(), layer.gate_bias.end(), bias.begin());
    }
    if (spec_.relation_aware) {
      // Tokens as slope [m, d] (of x) and offset [m, d]; so their queries, keys and values.
      Matrix<double> tokens(2 * m, d), q(2 * m, d), k(2 * m, d), v(2 * m, d);
      for (Index i = 0; i < m; ++i)
        for (Index j = 0; j < d; ++j) {
          tokens(i, j) = static_cast<double>(layer.token_weight(i, j));
          tokens(m + i, j) = static_cast<double>(layer.token_bias(i, j));
        }
      std::vector<double> read(static_cast<std::size_t>(d)), through(static_cast<std::size_t>(d)),
          wanted(static_cast<std::size_t>(d));
      for (Index j = 0; j < d; ++j) wanted[static_cast<std::size_t>(j)] = static_cast<double>(layer.score_weight[j]);
      times(wanted.data(), layer.cross_value, false, read.data());  // C_v^T w_s: what a relation is worth
      score_ = Vector<T>(2 * m);
      for (Index i = 0; i < 2 * m; ++i) score_[i] = static_cast<T>(dot(tokens.row(i), read.data(), d));
      score_bias_ = layer.score_bias[0];
      if (spec_.self_attention) {
        for (Index i = 0; i < 2 * m; ++i) {
          times(tokens.row(i), layer.query, true, q.row(i));
          times(tokens.row(i), layer.key, true, k.row(i));
          times(tokens.row(i), layer.value, true, v.row(i));
        }
        const double unit = 1 / std::sqrt(static_cast<double>(dh));
        logits_ = Vector<T>(heads * m * m * 4);
        head_score_ = Vector<T>(2 * heads * m);
        times(read.data(), layer.out, false, through.data());
        for (Index h = 0; h < heads; ++h)
          for (Index i = 0; i < m; ++i) {
            for (Index j = 0; j < m; ++j) {
              T* const to = logits_.data() + ((h * m + i) * m + j) * 4;
              const auto product = [&](Index a, Index b) {
                return static_cast<T>(unit * dot(q.row(a) + h * dh, k.row(b) + h * dh, dh));
              };
              to[0] = product(i, j);
              to[1] = product(i, m + j);
              to[2] = product(m + i, j);
              to[3] = product(m + i, m + j);
            }
            head_score_[h * m + i] = static_cast<T>(dot(v.row(i) + h * dh, through.data() + h * dh, dh));
            head_score_[(heads + h) * m + i] = static_cast<T>(dot(v.row(m + i) + h * dh, through.data() + h * dh, dh));
          }
      }
      if (spec_.cross_attention) {
        const double unit = 1 / std::sqrt(static_cast<double>(d));
        for (Index c = 0; c < spec_.profile; ++c) {  // what a unit of profile feature c asks for
          for (Index j = 0; j < d; ++j)
            wanted[static_cast<std::size_t>(j)] = unit * static_cast<double>(layer.profile_query(j, c));
          times(wanted.data(), layer.cross_key, false, read.data());
          for (Index i = 0; i < 2 * m; ++i) weight(m + i, c) = static_cast<T>(dot(tokens.row(i), read.data(), d));
          if (!spec_.self_attention) continue;
          times(read.data(), layer.out, false, through.data());
          for (Index h = 0; h < heads; ++h)
            for (Index i = 0; i < 2 * m; ++i)
              weight((3 + (i / m) * heads + h) * m + i % m, c) =
                  static_cast<T>(dot(v.row(i) + h * dh, through.data() + h * dh, dh));
        }
      }
    }
    profile_ = FrozenDense<T>(weight, bias, Activation::none);
  }

  /// s `[B]` of x `[B, M]` and u `[B, P]`. Scratch B (4 + 2 H) M.
  void forward(MatrixView<const T> x, MatrixView<const T> u, VectorView<T> s, Workspace& ws) const {
    const Index rows = x.rows(), m = spec_.objectives, heads = spec_.heads;
    check_shape("FrozenHarmonRank::forward", "x", x, any_size, m);
    check_shape("FrozenHarmonRank::forward", "u", u, rows, spec_.profile);
    check_size("FrozenHarmonRank::forward", "s", s, rows);
    const auto mark = ws.mark();
    const MatrixView<T> scores = ws.matrix<T>(rows, m), products = ws.matrix<T>(rows, (3 + 2 * heads) * m);
    detail::harmonrank_scores(spec_, x, scores);
    profile_.forward(u, products, ws);
    T* const attention = ws.take<T>(m);
    T* const cross = ws.take<T>(m);
    T* const worth = ws.take<T>(m);
    for (Index b = 0; b < rows; ++b) {
      const T* const p = scores.row(b);
      T* const from = products.row(b);
      T score = 0;
      if (spec_.relation_agnostic) {
        detail::harmonrank_gate(spec_.gate, from, m);
        for (Index i = 0; i < m; ++i) score += from[i] * p[i];
      }
      if (spec_.relation_aware) {
        for (Index i = 0; i < m; ++i) {
          cross[i] = p[i] * from[m + i] + from[2 * m + i];
          worth[i] = p[i] * score_[i] + score_[m + i];
        }
        for (Index h = 0; h < (spec_.self_attention ? heads : 0); ++h) {
          const T* const slope = from + (3 + h) * m;
          const T* const offset = from + (3 + heads + h) * m;
          const T* const worth_slope = head_score_.data() + h * m;
          const T* const worth_offset = head_score_.data() + (heads + h) * m;
          for (Index i = 0; i < m; ++i) {
            const T* const c = logits_.data() + (h * m + i) * m * 4;
            for (Index j = 0; j < m; ++j)
              attention[j] = p[i] * (p[j] * c[4 * j] + c[4 * j + 1]) + (p[j] * c[4 * j + 2] + c[4 * j + 3]);
            simd::softmax<T>(attention, m);
            for (Index j = 0; j < m; ++j) {
              cross[i] += attention[j] * (p[j] * slope[j] + offset[j]);
              worth[i] += attention[j] * (p[j] * worth_slope[j] + worth_offset[j]);
            }
          }
        }
        if (spec_.cross_attention) {
          simd::softmax<T>(cross, m);
        } else {
          std::fill_n(cross, m, 1 / static_cast<T>(m));
        }
        for (Index i = 0; i < m; ++i) score += cross[i] * worth[i];
        score += score_bias_;
      }
      s[b] = score;
    }
    if (spec_.sigmoid) simd::sigmoid<T>(s.data(), s.data(), rows);
  }

 private:
  HarmonRankSpec spec_;
  FrozenDense<T> profile_;  ///< rows: gate, tokens' slopes and offsets, heads' slopes and offsets, M each
  Vector<T> logits_;        ///< [H, M, M, 4] α β γ δ
  Vector<T> score_, head_score_;
  T score_bias_ = 0;
};

/// The serving form.
template <Real T>
FrozenHarmonRank<T> freeze(const HarmonRank<T>& layer) {
  return FrozenHarmonRank<T>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
