/// @file   recops/gating/expert_bank.hpp
/// @brief  All experts that read the same input, as one wide product.
///
///     A[b, e] = activation(norm(W_e x_b + c_e))          e = 1..E, in this order: linear, norm, activation
///
/// Shapes      x [B, D]   weight [E H, D], expert e owns rows e H .. (e + 1) H   bias [E H] or empty
///             out [B, E H], which is [B, E, H].
///             With `own_inputs` expert e reads columns e D .. (e + 1) D of x [B, E D] (further layers of an expert).
///             With `groups` x is [B, Q D], and the experts of a group read the columns q D .. (q + 1) D of its source q.
/// Norms       none; batch: columns over the batch, running statistics when serving; layer, rms: each expert's own H columns.
/// Edge cases  B = 0 does nothing.   A NaN stays in its row (with batch norm in its columns, when training).
/// Precision   sums in T; what each norm does is on its page.   Same bits for any number of threads.
/// Cost        2 B D E H flops; backward twice that.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018
///             (relu, no norm); Wang et al., "HoME", arXiv 2408.05430 (batch norm, then silu).
#pragma once
#include <recops/gating/block_linear.hpp>
#include <recops/nn/batch_norm.hpp>
#include <recops/nn/rms_norm.hpp>
#include <vector>

namespace recops {

/// What is normalised between an expert's last linear layer and its activation.
enum class ExpertNorm : unsigned char { none, batch, layer, rms };

inline constexpr Index max_experts = 65536;

/// Experts `first .. first + experts` read block `source` of the input's columns.
struct ExpertGroup {
  Index first = 0, experts = 0, source = 0;
};

struct ExpertBankOptions {
  Index experts = 1;
  ExpertNorm norm = ExpertNorm::none;
  Activation activation = Activation::relu;
  double epsilon = 1e-5;                      ///< of the norm, > 0
  bool own_inputs = false;                    ///< x is [B, E D], one block of columns per expert
  VectorView<const ExpertGroup> groups = {};  ///< in order and all experts; empty: all read the whole x. Not with `own_inputs`
};

/// Parameters of a norm over E H columns, or their gradients; what a norm has not stays empty (rms has no bias, only batch
/// norm has running statistics, which backward does not touch).
template <class T>
struct ExpertNormView {
  VectorView<T> weight = {}, bias = {}, running_mean = {}, running_variance = {};
};

/// Shape of what a training forward saves of the norm, besides `pre`.
struct ExpertMomentsShape {
  Index rows, cols;
};
RECOPS_INLINE constexpr ExpertMomentsShape expert_moments_shape(ExpertNorm norm, Index batch, Index experts, Index columns) {
  switch (norm) {
    case ExpertNorm::batch:
      return {2, columns};  // mean and variance
    case ExpertNorm::layer:
      return {batch, 2 * experts};  // mean and 1 / deviation
    case ExpertNorm::rms:
      return {batch, experts};  // 1 / rms
    case ExpertNorm::none:
      break;
  }
  return {0, 0};
}

inline namespace RECOPS_ABI {
namespace detail {

/// Blocks of columns that the experts read, at least 1.
inline Index expert_sources(VectorView<const ExpertGroup> groups) {
  Index sources = 1;
  for (const ExpertGroup& g : groups) sources = std::max(sources, g.source + 1);
  return sources;
}

inline void check_expert_groups(const char* name, VectorView<const ExpertGroup> groups, Index experts) {
  Index at = 0;
  for (const ExpertGroup& g : groups) {
    check_option(name, "groups", g.first == at && g.experts >= 0 && g.source >= 0 && g.source <= max_experts,
                 "groups in the order of their experts, with sources from 0", static_cast<double>(g.first));
    at += g.experts;
  }
  if (!groups.empty())
    check_option(name, "experts of all groups", at == experts, "the number of experts", static_cast<double>(at));
}

/// Calls `f(blocks, block)` with the LinearBlocks of a weight of `rows` rows.
template <class F>
void with_expert_blocks(const ExpertBankOptions& o, Index rows, F&& f) {
  if (!o.groups.empty()) {
    f(o.groups.size(), [groups = o.groups, h = rows / o.experts](Index b) {
      const ExpertGroup& g = groups[b];
      return LinearBlock{g.first * h, (g.first + g.experts) * h, g.source};
    });
  } else {
    const Index blocks = o.own_inputs ? o.experts : 1;
    f(blocks, even_blocks(rows, blocks));
  }
}

template <class T>
void check_expert_bank(const char* name, MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias,
                       ExpertNormView<const T> norm, const ExpertBankOptions& o, bool serving) {
  check_option(name, "experts", o.experts >= 1 && o.experts <= max_experts, "1 to 65536", static_cast<double>(o.experts));
  check_shape(name, "weight", weight, any_size, any_size);
  check_option(name, "rows of weight", weight.rows() > 0 && weight.rows() % o.experts == 0, "experts times the outputs of one",
               static_cast<double>(weight.rows()));
  if (!o.groups.empty()) check_option(name, "own_inputs", !o.own_inputs, "false with groups", 1.0);
  check_expert_groups(name, o.groups, o.experts);
  check_shape(name, "x", x, any_size, (o.own_inputs ? o.experts : expert_sources(o.groups)) * weight.cols());
  if (!bias.empty()) check_size(name, "bias", bias, weight.rows());
  check_option(name, "epsilon", o.epsilon > 0 && std::isfinite(o.epsilon), "epsilon > 0", o.epsilon);
  if (o.norm == ExpertNorm::none) return;
  if (!norm.weight.empty()) check_size(name, "norm.weight", norm.weight, weight.rows());
  if (!norm.bias.empty()) check_size(name, "norm.bias", norm.bias, o.norm == ExpertNorm::rms ? 0 : weight.rows());
  if (o.norm == ExpertNorm::batch && serving) {
    check_size(name, "norm.running_mean", norm.running_mean, weight.rows());
    check_size(name, "norm.running_variance", norm.running_variance, weight.rows());
  }
  if (o.norm == ExpertNorm::batch && !serving)
    check_option(name, "rows of x", x.rows() != 1, "at least two rows to take statistics of", static_cast<double>(x.rows()));
}

/// One row through norm (moments known or taken) and, unless `f` is none, the activation. `pre` may be `out`.
template <class T>
void expert_norm_row(const T* pre, ExpertNormView<const T> p, const ExpertBankOptions& o, Index n, const T* mean,
                     const T* inverse, T* moments, T* out) {
  const Index h = n / o.experts;
  switch (o.norm) {
    case ExpertNorm::batch: {
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        auto v = (load(pre + j) - load(mean + j)) * load(inverse + j);
        if (!p.weight.empty()) v = v * load(p.weight.data() + j);
        store(out + j, p.bias.empty() ? v : v + load(p.bias.data() + j));
      });
      return;
    }
    case ExpertNorm::layer:
    case ExpertNorm::rms:
      for (Index e = 0, at = 0; e < o.experts; ++e, at += h) {
        T unused[2];
        const T* const w = p.weight.empty() ? nullptr : p.weight.data() + at;
        if (o.norm == ExpertNorm::rms) {
          rms_norm_segment<T>(pre + at, w, h, static_cast<T>(o.epsilon), out + at, moments ? moments[e] : unused[0]);
        } else {
          layer_norm_segment<T>(pre + at, w, p.bias.empty() ? nullptr : p.bias.data() + at, h, static_cast<T>(o.epsilon),
                                out + at, moments ? moments[2 * e] : unused[0], moments ? moments[2 * e + 1] : unused[1]);
        }
      }
      return;
    case ExpertNorm::none:
      break;
  }
  if (out != pre) std::copy_n(pre, n, out);
}

/// Rows of `pre` through norm and activation into `out` (which may be `pre`).
template <class T>
void expert_norm_and_activation(MatrixView<const T> pre, ExpertNormView<const T> norm, const ExpertBankOptions& o, const T* mean,
                                const T* variance, MatrixView<T> moments, MatrixView<T> out, Workspace& ws) {
  const auto mark = ws.mark();
  const Index n = pre.cols();
  T* inverse = nullptr;
  if (o.norm == ExpertNorm::batch) {
    inverse = ws.take<T>(n);
    inverse_deviation(variance, o.epsilon, inverse, n);
  }
  for_row_blocks(pre.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      T* const own = moments.empty() || o.norm == ExpertNorm::batch ? nullptr : moments.row(r);
      expert_norm_row<T>(pre.row(r), norm, o, n, mean, inverse, own, out.row(r));
      if (o.activation != Activation::none) simd::activate<T>(o.activation, out.row(r), out.row(r), n);
    }
  });
}

}  // namespace detail

/// Serving: `out [B, E H]`.
template <Real T>
void expert_bank(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, ExpertNormView<const T> norm,
                 const ExpertBankOptions& options, MatrixView<T> out, Workspace& ws) {
  detail::check_expert_bank("expert_bank", x, weight, bias, norm, options, true);
  check_shape("expert_bank", "out", out, x.rows(), weight.rows());
  if (x.rows() == 0) return;
  const bool plain = options.norm == ExpertNorm::none;
  detail::with_expert_blocks(options, weight.rows(), [&](Index blocks, auto block) {
    detail::block_linear<T>(x, weight, bias, blocks, block, plain ? options.activation : Activation::none, out, ws);
  });
  if (!plain)
    detail::expert_norm_and_activation<T>(out, norm, options, norm.running_mean.data(), norm.running_variance.data(), {}, out,
                                          ws);
}

/// Training: besides `out`, writes what backward needs: `pre [B, E H]` (before the norm) and `moments` of
/// `expert_moments_shape`. Batch norm uses this batch's statistics and needs two rows.
template <Real T>
void expert_bank_train(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, ExpertNormView<const T> norm,
                       const ExpertBankOptions& options, MatrixView<T> pre, MatrixView<T> moments, MatrixView<T> out,
                       Workspace& ws) {
  const char* const name = "expert_bank_train";
  detail::check_expert_bank(name, x, weight, bias, norm, options, false);
  const ExpertMomentsShape shape = expert_moments_shape(options.norm, x.rows(), options.experts, weight.rows());
  check_shape(name, "pre", pre, x.rows(), weight.rows());
  check_shape(name, "moments", moments, shape.rows, shape.cols);
  check_shape(name, "out", out, x.rows(), weight.rows());
  if (x.rows() == 0) return;
  detail::with_expert_blocks(options, weight.rows(), [&](Index blocks, auto block) {
    detail::block_linear<T>(x, weight, bias, blocks, block, Activation::none, pre, ws);
  });
  const bool batch = options.norm == ExpertNorm::batch;
  if (batch) detail::column_moments<T>(pre, moments.row(0), moments.row(1), ws);
  detail::expert_norm_and_activation<T>(pre, norm, options, batch ? moments.row(0) : nullptr, batch ? moments.row(1) : nullptr,
                                        moments, out, ws);
}

/// Backward of `expert_bank_train`: adds to each of `dx`, `dweight`, `dbias` and the norm's weight and bias that is not empty.
template <Real T>
void expert_bank_backward(MatrixView<const T> x, MatrixView<const T> weight, ExpertNormView<const T> norm,
                          const ExpertBankOptions& options, MatrixView<const T> pre, MatrixView<const T> moments,
                          MatrixView<const T> dout, MatrixView<T> dx, MatrixView<T> dweight, VectorView<T> dbias,
                          ExpertNormView<T> dnorm, Workspace& ws) {
  const char* const name = "expert_bank_backward";
  detail::check_expert_bank<T>(name, x, weight, {}, norm, options, false);
  const ExpertMomentsShape shape = expert_moments_shape(options.norm, x.rows(), options.experts, weight.rows());
  const Index n = weight.rows(), h = n / options.experts;
  check_shape(name, "pre", pre, x.rows(), n);
  check_shape(name, "moments", moments, shape.rows, shape.cols);
  check_shape(name, "dout", dout, x.rows(), n);
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dweight.empty()) check_shape(name, "dweight", dweight, n, weight.cols());
  if (!dbias.empty()) check_size(name, "dbias", dbias, n);
  if (!dnorm.weight.empty()) check_size(name, "dnorm.weight", dnorm.weight, n);
  if (!dnorm.bias.empty()) check_size(name, "dnorm.bias", dnorm.bias, options.norm == ExpertNorm::rms ? 0 : n);
  if (x.rows() == 0) return;

  const auto mark = ws.mark();
  const bool batch = options.norm == ExpertNorm::batch;
  const MatrixView<T> dz = detail::staggered<T>(x.rows(), n, ws);
  const T* const mean = batch ? moments.row(0) : nullptr;
  T* inverse = nullptr;
  if (batch) {
    inverse = ws.take<T>(n);
    detail::inverse_deviation(moments.row(1), options.epsilon, inverse, n);
  }
  // dz first holds the gradient after the norm: the normalised row is made again, not stored.
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto own = scratch.mark();
    T* const row = options.norm == ExpertNorm::none ? nullptr : scratch.take<T>(n);
    for (Index r = first; r < first + count; ++r) {
      const T* z = pre.row(r);
      if (row) {
        detail::expert_norm_row<T>(z, norm, options, n, mean, inverse, nullptr, row);
        z = row;
      }
      const T* const up = dout.row(r);
      T* const to = dz.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto v = load(z + j);
        store(to + j, simd::activate_backward(options.activation, v, simd::activate(options.activation, v), load(up + j)));
      });
    }
  });
  // Weight and bias of the norm need the gradient after the norm, so their sums come before it is overwritten.
  if (batch) {
    detail::batch_norm_backward<T>(pre, norm.weight, mean, moments.row(1), options.epsilon, dz, dz, false, dnorm.weight,
                                   dnorm.bias, ws);
  } else if (options.norm != ExpertNorm::none) {
    const bool rms = options.norm == ExpertNorm::rms;
    detail::sum_over_rows<T>(x.rows(), n, dnorm.weight, dnorm.bias, ws, [&](Index first, Index count, T* dw, T* db) {
      for (Index r = first; r < first + count; ++r) {
        for (Index e = 0, at = 0; e < options.experts; ++e, at += h) {
          const simd::Batch<T> m(rms ? T(0) : moments(r, 2 * e)), s(rms ? moments(r, e) : moments(r, 2 * e + 1));
          const T *z = pre.row(r) + at, *up = dz.row(r) + at;
          T *pw = dw + at, *pb = db + at;
          simd::for_each_vector<T, simd::DefaultArch>(h, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
            const auto d = load(up + j);
            store(pw + j, simd::mul_add(d, (load(z + j) - m) * s, load(pw + j)));
            store(pb + j, load(pb + j) + d);
          });
        }
      }
    });
    detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
      for (Index r = first; r < first + count; ++r) {
        for (Index e = 0, at = 0; e < options.experts; ++e, at += h) {
          const T* const w = norm.weight.empty() ? nullptr : norm.weight.data() + at;
          T* const d = dz.row(r) + at;
          if (rms) {
            detail::rms_norm_segment_backward<T>(pre.row(r) + at, w, d, h, moments(r, e), d, false);
          } else {
            detail::layer_norm_segment_backward<T>(pre.row(r) + at, w, d, h, moments(r, 2 * e), moments(r, 2 * e + 1), d, false);
          }
        }
      }
    });
  }
  detail::with_expert_blocks(options, n, [&](Index blocks, auto block) {
    detail::block_linear_backward<T>(x, weight, blocks, block, dz, dx, dweight, dbias, ws);
  });
}

/// What an `ExpertBank` is made of.
struct ExpertBankSpec {
  Index inputs = 0;                ///< D
  Index experts = 1;               ///< E
  Index outputs = 0;               ///< H, of one expert
  std::vector<Index> hidden = {};  ///< widths of the layers before the last one, each with the same activation and no norm
  ExpertNorm norm = ExpertNorm::none;
  Activation activation = Activation::relu;
  bool bias = true;                      ///< a bias under batch norm has no effect and no gradient: switch it off there
  std::vector<ExpertGroup> groups = {};  ///< which block of D columns each expert reads; empty: x has D columns, all read them
};

/// E experts (linear layers or whole MLPs) as wide products. As a PyTorch module: the experts' `Linear` layers concatenated
/// along the output, `hidden.0.weight [E h1, D]`, `hidden.1.weight [E h2, h1]`, ..., `weight [E H, D or last h]`, `bias`,
/// `norm.weight`, `norm.bias`, `norm.running_mean`, `norm.running_var`.
template <Real T>
struct ExpertBank {
  std::vector<Linear<T>> hidden;             ///< the first one wide, the others block by block
  Matrix<T> weight;                          ///< [E H, D], or [E H, last hidden width]
  Vector<T> bias;                            ///< [E H], or empty
  Vector<T> norm_weight, norm_bias;          ///< [E H], or empty
  Vector<T> running_mean, running_variance;  ///< [E H], batch norm only
  ExpertBankOptions options;                 ///< `own_inputs` and `groups` are the layer's own business
  std::vector<ExpertGroup> groups;           ///< who reads which block of columns; empty: all read all of x
  BatchNormOptions batch;                    ///< momentum of the running statistics

  /// What a training forward leaves for backward and `update`.
  struct Saved {
    std::vector<Matrix<T>> hidden_pre, hidden_out;
    Matrix<T> pre, moments;
    Index rows = 0;
  };

  ExpertBank() = default;
  /// Uniform in +-1 / sqrt(in) per linear layer, as `torch.nn.Linear`; norms start as the identity. Errors are reported as `name`'s.
  ExpertBank(const ExpertBankSpec& spec, Random& random, const char* name = "ExpertBank") {
    check_option(name, "inputs", spec.inputs >= 1, "inputs >= 1", static_cast<double>(spec.inputs));
    check_option(name, "outputs", spec.outputs >= 1, "outputs >= 1", static_cast<double>(spec.outputs));
    check_option(name, "experts", spec.experts >= 1 && spec.experts <= max_experts, "1 to 65536",
                 static_cast<double>(spec.experts));
    options.experts = spec.experts;
    options.norm = spec.norm;
    options.activation = spec.activation;
    groups = spec.groups;
    detail::check_expert_groups(name, group_view(), spec.experts);
    Index in = spec.inputs;
    for (const Index width : spec.hidden) {
      check_option(name, "hidden", width >= 1, "widths >= 1", static_cast<double>(width));
      hidden.emplace_back(in, spec.experts * width, random, spec.bias);
      in = width;
    }
    Linear<T> last(in, spec.experts * spec.outputs, random, spec.bias);
    weight = std::move(last.weight);
    bias = std::move(last.bias);
    const Index n = weight.rows();
    if (spec.norm != ExpertNorm::none) norm_weight = Vector<T>(n, T(1));
    if (spec.norm == ExpertNorm::batch || spec.norm == ExpertNorm::layer) norm_bias = Vector<T>(n, T(0));
    if (spec.norm == ExpertNorm::batch) {
      running_mean = Vector<T>(n, T(0));
      running_variance = Vector<T>(n, T(1));
    }
  }

  static constexpr auto fields() {
    return std::tuple{layers("hidden", &ExpertBank::hidden),
                      parameter("weight", &ExpertBank::weight),
                      parameter("bias", &ExpertBank::bias),
                      parameter("norm.weight", &ExpertBank::norm_weight),
                      parameter("norm.bias", &ExpertBank::norm_bias),
                      buffer("norm.running_mean", &ExpertBank::running_mean),
                      buffer("norm.running_var", &ExpertBank::running_variance)};
  }

  /// D, or Q D
  Index input_cols() const {
    return detail::expert_sources(group_view()) * (hidden.empty() ? weight.cols() : hidden[0].weight.cols());
  }
  /// H; 0 without experts
  Index outputs() const { return options.experts < 1 ? 0 : weight.rows() / options.experts; }
  /// E H; throws `Error` unless the input has D columns.
  Index output_cols(Index cols) const {
    check_option("ExpertBank", "input columns", cols == input_cols(), "as many as the weight has", static_cast<double>(cols));
    return weight.rows();
  }
  ExpertNormView<const T> norm() const { return {norm_weight, norm_bias, running_mean, running_variance}; }
  VectorView<const ExpertGroup> group_view() const { return groups; }

  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("ExpertBank::forward", x, y);
    const auto mark = ws.mark();
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < hidden.size(); ++l) {
      const MatrixView<T> next = ws.matrix<T>(x.rows(), hidden[l].weight.rows());
      expert_bank<T>(at, hidden[l].weight, hidden[l].bias, {}, layer_options(l), next, ws);
      at = next;
    }
    expert_bank<T>(at, weight, bias, norm(), layer_options(hidden.size()), y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("ExpertBank::forward", x, y);
    if (options.norm == ExpertNorm::batch)
      check_option("ExpertBank::forward", "rows of x", x.rows() != 1, "at least two rows to take statistics of", 1.0);
    saved.hidden_pre.resize(hidden.size());
    saved.hidden_out.resize(hidden.size());
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < hidden.size(); ++l) {
      saved.hidden_pre[l].resize(x.rows(), hidden[l].weight.rows());
      saved.hidden_out[l].resize(x.rows(), hidden[l].weight.rows());
      expert_bank_train<T>(at, hidden[l].weight, hidden[l].bias, {}, layer_options(l), saved.hidden_pre[l], {},
                           saved.hidden_out[l], ws);
      at = saved.hidden_out[l];
    }
    const ExpertMomentsShape shape = expert_moments_shape(options.norm, x.rows(), options.experts, weight.rows());
    saved.pre.resize(x.rows(), weight.rows());
    saved.moments.resize(shape.rows, shape.cols);
    saved.rows = x.rows();
    expert_bank_train<T>(at, weight, bias, norm(), layer_options(hidden.size()), saved.pre, saved.moments, y, ws);
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, ExpertBank& gradient,
                Workspace& ws) const {
    const char* const name = "ExpertBank::backward";
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "dy", dy, x.rows(), weight.rows());
    check_shape(name, "saved.pre", saved.pre.view(), x.rows(), weight.rows());
    check_option(name, "saved", saved.hidden_pre.size() == hidden.size() && saved.hidden_out.size() == hidden.size(),
                 "what forward of this layer saved", static_cast<double>(saved.hidden_out.size()));
    for (std::size_t l = 0; l < hidden.size(); ++l) {
      check_shape(name, "saved.hidden", saved.hidden_pre[l].view(), x.rows(), hidden[l].weight.rows());
      check_shape(name, "saved.hidden", saved.hidden_out[l].view(), x.rows(), hidden[l].weight.rows());
    }
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    MatrixView<const T> up = dy;
    for (std::size_t l = hidden.size() + 1; l-- > 0;) {
      const MatrixView<const T> in = l == 0 ? x : MatrixView<const T>(saved.hidden_out[l - 1]);
      MatrixView<T> down = dx;
      if (l > 0) {
        down = ws.matrix<T>(x.rows(), in.cols());
        std::fill_n(down.data(), down.rows() * down.cols(), T(0));
      }
      if (l == hidden.size()) {
        expert_bank_backward<T>(in, weight, norm(), layer_options(l), saved.pre, saved.moments, up, down, gradient.weight,
                                gradient.bias, {gradient.norm_weight, gradient.norm_bias, {}, {}}, ws);
      } else {
        expert_bank_backward<T>(in, hidden[l].weight, {}, layer_options(l), saved.hidden_pre[l], {}, up, down,
                                gradient.hidden[l].weight, gradient.hidden[l].bias, {}, ws);
      }
      up = down;
    }
  }
  /// Folds the batch statistics of a training step into the running ones; does nothing without batch norm.
  void update(const Saved& saved) {
    if (options.norm != ExpertNorm::batch || saved.rows < 2) return;
    const Index n = weight.rows();
    check_shape("ExpertBank::update", "saved.moments", saved.moments.view(), 2, n);
    update_running_statistics<T>(VectorView<const T>(saved.moments.row(0), n), VectorView<const T>(saved.moments.row(1), n),
                                 saved.rows, batch, running_mean, running_variance);
  }

  /// Options of linear layer `l`; the last one, number `hidden.size()`, has the norm.
  ExpertBankOptions layer_options(std::size_t l) const {
    ExpertBankOptions o = options;
    o.own_inputs = l > 0;
    o.groups = l == 0 ? group_view() : VectorView<const ExpertGroup>();
    if (l < hidden.size()) o.norm = ExpertNorm::none;
    return o;
  }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    Index cols = input_cols();
    for (std::size_t l = 0; l < hidden.size(); ++l) {
      detail::check_expert_bank<T>(name, MatrixView<const T>(nullptr, 0, cols), hidden[l].weight, hidden[l].bias, {},
                                   layer_options(l), true);
      cols = hidden[l].weight.rows();
    }
    detail::check_expert_bank<T>(name, MatrixView<const T>(nullptr, 0, cols), weight, bias, norm(), layer_options(hidden.size()),
                                 true);
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), weight.rows());
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
