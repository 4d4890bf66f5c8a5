/// @file   recops/attention/pma.hpp
/// @brief  Set Transformer: pooling by attention of learned seeds (PMA), and self-attention through learned points (ISAB).
///
///     MAB(X, Y) = norm1(h + relu(h Wo^T + bo))      h = norm0(q + attention(q, k, v))      q = X Wq^T + bq,  k and v likewise from Y
///     PMA(Z)    = MAB(S, Z)                         S [m, D] learned: m vectors of each user
///     ISAB(X)   = MAB(X, MAB(I, X))                 I [m, D] learned: each row reads m summaries, O(L m) instead of O(L^2)
///
/// Shapes      z [total, Dz]   PMA [B m, D]: those of user b are rows b m .. b m + m - 1   ISAB [total, D]
/// Norms       may be left out, as published code does by default.   The residual is the projected query; heads are concatenated as they
///             are.
/// Edge cases  a user without rows: PMA gives the seeds' norm0(q) carried on, ISAB has no rows.   NaN stays in its user.
/// Precision   T; serving may take the absorbed form (see MultiheadAttention), equal to rounding.   Same bits for any number of threads.
/// Cost        PMA 4 Dz D flops per row and 4 m D, or, absorbed, 4 m H Dz per row: for few seeds keys and values are never formed.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Lee et al., Set Transformer, arXiv 1810.00825, equations 6 to 11. Feed-forward networks before PMA are composed by hand.
#pragma once
#include <recops/attention/joined_rows.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/multihead_attention.hpp>

namespace recops {

/// Options of `AttentionBlock`, `Pma` and `Isab`.
struct SetAttentionOptions {
  Index heads = 1;    ///< divides the width
  double scale = 0;   ///< of q . k; 0: 1 / sqrt(width / heads); the published code has 1 / sqrt(width)
  bool norms = true;  ///< norm0 and norm1
};

inline namespace RECOPS_ABI {

/// MAB: rows X attend to rows Y of the same users. Names as in the published code.
template <class T>
struct AttentionBlock {
  Linear<T> fc_q, fc_k, fc_v, fc_o;  ///< [D, Dx], [D, Dy], [D, Dy], [D, D]
  LayerNorm<T> ln0, ln1;
  SetAttentionOptions options;

  AttentionBlock() = default;
  /// From rows of `x_width` and `y_width` to rows of `width`. Throws `Error` unless `heads` divides `width`.
  AttentionBlock(Index x_width, Index y_width, Index width, const SetAttentionOptions& o, Random& random)
      : fc_q(checked_size("AttentionBlock", "x_width", x_width), checked_size("AttentionBlock", "width", width), random),
        fc_k(checked_size("AttentionBlock", "y_width", y_width), width, random),
        fc_v(y_width, width, random),
        fc_o(width, width, random),
        ln0(width),
        ln1(width),
        options(o) {
    detail::check_heads("AttentionBlock", o.heads, width);
    if (!o.norms) ln0 = ln1 = LayerNorm<T>();
  }
  static constexpr auto fields() {
    return std::tuple{layer("fc_q", &AttentionBlock::fc_q), layer("fc_k", &AttentionBlock::fc_k),
                      layer("fc_v", &AttentionBlock::fc_v), layer("fc_o", &AttentionBlock::fc_o),
                      layer("ln0", &AttentionBlock::ln0),   layer("ln1", &AttentionBlock::ln1)};
  }
  Index width() const { return fc_o.weight.rows(); }
  void check_parameters(const char* name) const {
    const Index d = width();
    detail::check_heads(name, options.heads, d);
    check_shape(name, "fc_q.weight", fc_q.weight.view(), d, any_size);
    check_shape(name, "fc_k.weight", fc_k.weight.view(), d, any_size);
    check_shape(name, "fc_v.weight", fc_v.weight.view(), d, fc_k.weight.cols());
    check_shape(name, "fc_o.weight", fc_o.weight.view(), d, d);
    for (const Linear<T>* part : {&fc_q, &fc_k, &fc_v, &fc_o})
      if (!part->bias.empty()) check_size(name, "bias", VectorView<const T>(part->bias), d);
    for (const LayerNorm<T>* norm : {&ln0, &ln1})
      if (options.norms)
        detail::check_norm<T>(name, MatrixView<const T>(nullptr, 0, d), norm->weight, norm->bias, norm->options.groups,
                              norm->options.epsilon);
    check_option(name, "scale", std::isfinite(options.scale), "a finite scale", options.scale);
  }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> q, kv, attended, log_sum_exp;  ///< [N, D], [L, 2 D], [N, D], [N, H]
    Matrix<T> sum, h, f, last;               ///< [N, D]: what norm0 reads, h, relu's output, what norm1 reads
    typename LayerNorm<T>::Saved ln0, ln1;
  };

  /// out [total_N, D] of x [total_N, Dx] over y [total_L, Dy].
  void forward(JaggedView<const T> x, JaggedView<const T> y, MatrixView<T> out, Workspace& ws) const {
    check("AttentionBlock", x, fc_q.weight.cols(), y, MatrixView<const T>(out));
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(x.values().rows(), width());
    fc_q.forward(x.values(), q, ws);
    forward_projected(x.with_values(MatrixView<const T>(q)), y, out, ws);
  }
  void forward(JaggedView<const T> x, JaggedView<const T> y, MatrixView<T> out, Saved& saved, const Step& step,
               Workspace& ws) const {
    check("AttentionBlock", x, fc_q.weight.cols(), y, MatrixView<const T>(out));
    saved.q.resize(x.values().rows(), width());
    fc_q.forward(x.values(), saved.q, ws);
    forward_projected(x.with_values(std::as_const(saved.q).view()), y, out, saved, step, ws);
  }
  /// Adds to dx and dy (each unless empty) and to `gradient`.
  void backward(JaggedView<const T> x, JaggedView<const T> y, MatrixView<const T> dout, const Saved& saved, MatrixView<T> dx,
                MatrixView<T> dy, AttentionBlock& gradient, Workspace& ws) const {
    constexpr const char* name = "AttentionBlock::backward";
    check(name, x, fc_q.weight.cols(), y, dout);
    if (!dx.empty()) check_shape(name, "dx", dx, x.values().rows(), x.cols());
    check_backward(name, y, dout, saved, dy, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dq = detail::zero_rows<T>(dout.rows(), width(), ws);
    backward_projected(x.with_values(std::as_const(saved.q).view()), y, dout, saved, dq, dy, gradient, ws);
    fc_q.backward(x.values(), dq, {}, dx, gradient.fc_q, ws);
  }

  /// The same from queries that are projected already. What `forward` checks is not checked again.
  void forward_projected(JaggedView<const T> queries, JaggedView<const T> y, MatrixView<T> out, Workspace& ws) const {
    const auto mark = ws.mark();
    const AttentionOptions o{.heads = options.heads, .scale = options.scale};
    const MatrixView<const T> q = queries.values();
    const Index n = q.rows(), d = width(), part = d / o.heads, l = y.values().rows();
    const MatrixView<T> h = ws.matrix<T>(n, d);
    if (detail::choose_form<T>(AttentionForm::cheapest, queries, y, y, d, o) == AttentionForm::absorbed) {
      const MatrixView<T> copy = ws.matrix<T>(n, d);
      detail::copy_rows<T>(q, copy);
      detail::absorbed_attention<T>(
          queries, copy, y, y, o, h, ws,
          [&](Index a, MatrixView<const T> qa, MatrixView<T> to) {
            simd::gemm<T>(simd::plain(qa), simd::plain(fc_k.weight.view().middle_rows(a * part, part)), {}, to, ws);
          },
          [&](Index a, MatrixView<const T> pooled, MatrixView<T> to) {
            simd::gemm<T>(simd::plain(pooled), simd::transposed(fc_v.weight.view().middle_rows(a * part, part)),
                          {.bias = fc_v.bias.empty() ? nullptr : fc_v.bias.data() + a * part}, to, ws);
          });
    } else {
      const MatrixView<T> k = ws.matrix<T>(l, d), v = ws.matrix<T>(l, d);
      fc_k.forward(y.values(), k, ws);
      fc_v.forward(y.values(), v, ws);
      scaled_dot_product_attention<T>(queries, y.with_values(MatrixView<const T>(k)), y.with_values(MatrixView<const T>(v)), {},
                                      o, h, {}, ws);
    }
    detail::add_rows<T>(q, h);
    if (options.norms) ln0.forward(h, h, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(h)), simd::transposed(fc_o.weight.view()),
                  {.bias = fc_o.bias.empty() ? nullptr : fc_o.bias.data(),
                   .activation = Activation::relu,
                   .residual = h.data(),
                   .residual_stride = h.stride()},
                  out, ws);
    if (options.norms) ln1.forward(out, out, ws);
  }
  void forward_projected(JaggedView<const T> queries, JaggedView<const T> y, MatrixView<T> out, Saved& saved, const Step& step,
                         Workspace& ws) const {
    const MatrixView<const T> q = queries.values();
    const Index n = q.rows(), d = width(), l = y.values().rows();
    for (Matrix<T>* m : {&saved.attended, &saved.sum, &saved.h, &saved.f, &saved.last}) m->resize(n, d);
    saved.log_sum_exp.resize(n, options.heads);
    saved.kv.resize(l, 2 * d);
    fc_k.forward(y.values(), saved.kv.view().middle_cols(0, d), ws);
    fc_v.forward(y.values(), saved.kv.view().middle_cols(d, d), ws);
    const MatrixView<const T> kv = saved.kv;
    scaled_dot_product_attention<T>(queries, y.with_values(kv.middle_cols(0, d)), y.with_values(kv.middle_cols(d, d)), {},
                                    {.heads = options.heads, .scale = options.scale}, saved.attended, saved.log_sum_exp, ws);
    detail::copy_rows<T>(saved.attended, saved.sum);
    detail::add_rows<T>(q, saved.sum);
    if (options.norms) {
      ln0.forward(saved.sum, saved.h, saved.ln0, step, ws);
    } else {
      detail::copy_rows<T>(saved.sum, saved.h);
    }
    simd::gemm<T>(simd::plain(std::as_const(saved.h).view()), simd::transposed(fc_o.weight.view()),
                  {.bias = fc_o.bias.empty() ? nullptr : fc_o.bias.data(), .activation = Activation::relu}, saved.f, ws);
    detail::copy_rows<T>(saved.h, saved.last);
    detail::add_rows<T>(saved.f, saved.last);
    if (options.norms) {
      ln1.forward(saved.last, out, saved.ln1, step, ws);
    } else {
      detail::copy_rows<T>(saved.last, out);
    }
  }
  /// Adds to dq and dy; all of `gradient` but fc_q.
  void backward_projected(JaggedView<const T> queries, JaggedView<const T> y, MatrixView<const T> dout, const Saved& saved,
                          MatrixView<T> dq, MatrixView<T> dy, AttentionBlock& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index n = dout.rows(), d = width();
    const MatrixView<T> dlast = detail::zero_rows<T>(n, d, ws), dsum = detail::zero_rows<T>(n, d, ws), df = ws.matrix<T>(n, d);
    if (options.norms) {
      ln1.backward(saved.last, dout, saved.ln1, dlast, gradient.ln1, ws);
    } else {
      detail::copy_rows<T>(dout, dlast);
    }
    for (Index r = 0; r < n; ++r)
      simd::activate_backward(Activation::relu, saved.f.row(r), saved.f.row(r), dlast.row(r), df.row(r), d);
    const MatrixView<T> dh = dlast;  // the residual, and what comes through the network
    fc_o.backward(saved.h, df, {}, dh, gradient.fc_o, ws);
    if (options.norms) {
      ln0.backward(saved.sum, dh, saved.ln0, dsum, gradient.ln0, ws);
    } else {
      detail::copy_rows<T>(dh, dsum);
    }
    detail::add_rows<T>(dsum, dq);
    const MatrixView<T> dkv = detail::zero_rows<T>(y.values().rows(), 2 * d, ws);
    const MatrixView<const T> kv = saved.kv;
    scaled_dot_product_attention_backward<T>(queries, y.with_values(kv.middle_cols(0, d)), y.with_values(kv.middle_cols(d, d)),
                                             {}, {.heads = options.heads, .scale = options.scale}, saved.attended,
                                             saved.log_sum_exp, dsum, {}, dq, dkv.middle_cols(0, d), dkv.middle_cols(d, d), {},
                                             ws);
    fc_k.backward(y.values(), dkv.middle_cols(0, d), {}, dy, gradient.fc_k, ws);
    fc_v.backward(y.values(), dkv.middle_cols(d, d), {}, dy, gradient.fc_v, ws);
  }
  void check(const char* name, JaggedView<const T> x, Index x_cols, JaggedView<const T> y, MatrixView<const T> out) const {
    check_parameters(name);
    check_jagged(name, "x", x, any_size, x_cols);
    check_jagged(name, "y", y, x.size(), fc_k.weight.cols());
    check_shape(name, "out", out, x.values().rows(), width());
  }
  void check_backward(const char* name, JaggedView<const T> y, MatrixView<const T> dout, const Saved& saved, MatrixView<T> dy,
                      const AttentionBlock& gradient) const {
    check_shape(name, "saved", saved.last.view(), dout.rows(), width());
    check_shape(name, "saved", saved.log_sum_exp.view(), dout.rows(), options.heads);
    check_shape(name, "saved", saved.kv.view(), y.values().rows(), 2 * width());
    if (!dy.empty()) check_shape(name, "dy", dy, y.values().rows(), y.cols());
    check_gradient_shapes(name, *this, gradient);
  }
};

/// Pooling by attention: m vectors of each user. Its seeds are projected once for all users.
template <class T>
struct Pma {
  Matrix<T> S;  ///< [m, D]
  AttentionBlock<T> mab;

  Pma() = default;
  /// m = `seeds` vectors of `width` from rows of `input_width`. Xavier seeds. Throws `Error` for sizes below 1.
  Pma(Index input_width, Index width, Index seeds, const SetAttentionOptions& o, Random& random)
      : S(checked_size("Pma", "seeds", seeds), checked_size("Pma", "width", width)),
        mab(width, checked_size("Pma", "input_width", input_width), width, o, random) {
    check_option("Pma", "seeds", seeds >= 1, "one seed or more", static_cast<double>(seeds));
    const double bound = std::sqrt(6.0 / static_cast<double>(seeds + width));
    for (T& w : leaf_values(S)) w = static_cast<T>(random.uniform(-bound, bound));
  }
  static constexpr auto fields() { return std::tuple{parameter("S", &Pma::S), layer("mab", &Pma::mab)}; }
  Index seeds() const { return S.rows(); }

  struct Saved {
    typename AttentionBlock<T>::Saved mab;
  };
  /// pooled [B m, D] of z [total, Dz].
  void forward(JaggedView<const T> z, MatrixView<T> pooled, Workspace& ws) const {
    check("Pma", z, MatrixView<const T>(pooled));
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(pooled.rows(), mab.width());
    mab.forward_projected(queries(z, q, ws), z, pooled, ws);
  }
  void forward(JaggedView<const T> z, MatrixView<T> pooled, Saved& saved, const Step& step, Workspace& ws) const {
    check("Pma", z, MatrixView<const T>(pooled));
    const auto mark = ws.mark();
    saved.mab.q.resize(pooled.rows(), mab.width());
    mab.forward_projected(queries(z, saved.mab.q, ws), z, pooled, saved.mab, step, ws);
  }
  /// Adds to dz (unless empty) and to `gradient`.
  void backward(JaggedView<const T> z, MatrixView<const T> dpooled, const Saved& saved, MatrixView<T> dz, Pma& gradient,
                Workspace& ws) const {
    constexpr const char* name = "Pma::backward";
    check(name, z, dpooled);
    mab.check_backward(name, z, dpooled, saved.mab, dz, gradient.mab);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const Index d = mab.width();
    const MatrixView<T> dq = detail::zero_rows<T>(dpooled.rows(), d, ws), dseeds = detail::zero_rows<T>(seeds(), d, ws);
    const detail::JoinedRows<T> users(z, seeds(), false, {}, dq, ws);
    mab.backward_projected(users.own.with_values(std::as_const(saved.mab.q).view()), z, dpooled, saved.mab, dq, dz, gradient.mab,
                           ws);
    detail::repeat_rows_backward<T>(dq, seeds(), dseeds, {}, ws);
    mab.fc_q.backward(S, dseeds, {}, gradient.S, gradient.mab.fc_q, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> z, MatrixView<const T> pooled) const {
    mab.check_parameters(name);
    check_shape(name, "S", S.view(), any_size, mab.fc_q.weight.cols());
    check_option(name, "S", seeds() >= 1, "one seed or more", static_cast<double>(seeds()));
    check_jagged(name, "z", z, any_size, mab.fc_k.weight.cols());
    check_shape(name, "pooled", pooled, z.size() * seeds(), mab.width());
  }
  /// The projected seeds, once per user, in q.
  JaggedView<const T> queries(JaggedView<const T> z, MatrixView<T> q, Workspace& ws) const {
    const MatrixView<T> once = ws.matrix<T>(seeds(), mab.width());
    mab.fc_q.forward(S, once, ws);
    detail::repeat_rows<T>(once, {}, q);
    return detail::JoinedRows<T>(z, seeds(), false, {}, q, ws).own;
  }
};

/// Self-attention through m learned points: a sequence layer [total, Dx] to [total, D], linear in the length.
template <class T>
struct Isab {
  Pma<T> pool;             ///< MAB(I, X)
  AttentionBlock<T> mab1;  ///< of X over what the points gathered

  Isab() = default;
  Isab(Index input_width, Index width, Index points, const SetAttentionOptions& o, Random& random)
      : pool(checked_size("Isab", "input_width", input_width), checked_size("Isab", "width", width),
             checked_size("Isab", "points", points), o, random),
        mab1(input_width, width, width, o, random) {}
  /// In a state_dict: I, mab0 and mab1.
  static constexpr auto fields() {
    return std::tuple{parameter(
                          "I", [](auto& l) -> auto& { return l.pool.S; }),
                      layer(
                          "mab0", [](auto& l) -> auto& { return l.pool.mab; }),
                      layer("mab1", &Isab::mab1)};
  }
  /// D; throws `Error` unless the input fits.
  Index output_cols(Index input_cols) const {
    check_option("Isab", "input columns", input_cols == mab1.fc_q.weight.cols() && input_cols == pool.mab.fc_k.weight.cols(),
                 "as many as the layer was made for", static_cast<double>(input_cols));
    return mab1.width();
  }
  struct Saved {
    typename Pma<T>::Saved pool;
    typename AttentionBlock<T>::Saved mab1;
    Matrix<T> points;  ///< [B m, D]
  };
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("Isab", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    const MatrixView<T> points = ws.matrix<T>(x.size() * pool.seeds(), pool.mab.width());
    pool.forward(x, points, ws);
    mab1.forward(x, users(x, points, ws), y, ws);
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("Isab", x, MatrixView<const T>(y));
    const auto mark = ws.mark();
    saved.points.resize(x.size() * pool.seeds(), pool.mab.width());
    pool.forward(x, saved.points, saved.pool, step, ws);
    mab1.forward(x, users(x, saved.points, ws), y, saved.mab1, step, ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Isab& gradient,
                Workspace& ws) const {
    constexpr const char* name = "Isab::backward";
    check(name, x, dy);
    check_shape(name, "saved", saved.points.view(), x.size() * pool.seeds(), pool.mab.width());
    check_gradient_shapes(name, *this, gradient);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), x.cols());
    const auto mark = ws.mark();
    const MatrixView<T> dpoints = detail::zero_rows<T>(saved.points.rows(), saved.points.cols(), ws);
    // Only the view is wanted: points are read.
    const JaggedView<const T> points = users(x, dpoints, ws).with_values(saved.points.view());
    mab1.backward(x, points, dy, saved.mab1, dx, dpoints, gradient.mab1, ws);
    pool.backward(x, dpoints, saved.pool, dx, gradient.pool, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, mab1.fc_q.weight.cols());
    output_cols(x.cols());
    check_shape(name, "y", y, x.values().rows(), mab1.width());
    mab1.check_parameters(name);
    pool.mab.check_parameters(name);
    check_shape(name, "mab1.fc_k.weight", mab1.fc_k.weight.view(), any_size, pool.mab.width());
  }
  JaggedView<const T> users(JaggedView<const T> x, MatrixView<T> points, Workspace& ws) const {
    return detail::JoinedRows<T>(x, pool.seeds(), false, {}, points, ws).own;
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
