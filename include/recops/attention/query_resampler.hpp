/// @file   recops/attention/query_resampler.hpp
/// @brief  A fixed number of vectors from any number of tokens of several modalities: learned queries, conditioned on who asks.
///
///     z_0 = Q + condition_b       a = z + attention(n(z) over [n(x); n(z)])       z' = a + W2 gelu(W1 norm2(a))
///     resampled = norm(z of the last layer), n = norm1 of the layer
///
/// Shapes      tokens [total, D]: of one user (or segment) the tokens of all modalities, in any order   condition [B, D] or empty
///             resampled [B m, D]: those of user b are rows b m .. b m + m - 1
/// Keys and values are the tokens and the queries together, under one norm; tokens pass every layer unchanged.
/// Edge cases  without tokens the queries see themselves.   The order of tokens does not matter.   NaN stays in its user.
/// Precision   T; serving may take the absorbed form of MultiheadAttention, equal to rounding.   Same bits for any number of threads.
/// Cost        per layer and user, L tokens: at most 4 (L + m) D^2 for keys and values, 4 m (L + m) D, and m (4 D^2 + 4 D F): linear in L.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   the resampler in the published code of arXiv 2407.12002; fusion of modalities by learnable queries as in MMBee, arXiv
///             2407.00056: what MMBee asks with (streamer-aware queries, modality embeddings added before) is our reconstruction of it.
#pragma once
#include <recops/attention/joined_rows.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/multihead_attention.hpp>

namespace recops {

/// Options of `QueryResampler`.
struct QueryResamplerOptions {
  Index queries = 8;  ///< m
  Index heads = 1;    ///< divides the width
  Index layers = 1;
  Index hidden = 0;  ///< of the feed-forward networks; 0: four times the width
};

inline namespace RECOPS_ABI {

/// One layer: queries over tokens and themselves.
template <class T>
struct QueryResamplerLayer {
  MultiheadAttention<T> attention;
  LayerNorm<T> norm1, norm2;
  Linear<T> linear1, linear2;  ///< [F, D], [D, F]

  QueryResamplerLayer() = default;
  QueryResamplerLayer(Index width, Index heads, Index hidden, Random& random)
      : attention(checked_size("QueryResamplerLayer", "width", width), heads, random),
        norm1(width),
        norm2(width),
        linear1(width, checked_size("QueryResamplerLayer", "hidden", hidden), random),
        linear2(hidden, width, random) {}
  static constexpr auto fields() {
    return std::tuple{layer("attention", &QueryResamplerLayer::attention), layer("norm1", &QueryResamplerLayer::norm1),
                      layer("norm2", &QueryResamplerLayer::norm2), layer("linear1", &QueryResamplerLayer::linear1),
                      layer("linear2", &QueryResamplerLayer::linear2)};
  }
  struct Saved {
    Matrix<T> joined, normed, asked;  ///< [total + B m, D] tokens with queries, their norm; [B m, D] the queries' part of it
    Matrix<T> middle, normed_middle, z, hidden;  ///< [B m, D] a and its norm; [B m, F] before and after gelu
    typename LayerNorm<T>::Saved norm1, norm2;
    typename MultiheadAttention<T>::Saved attention;
  };
  void check(const char* name, Index width) const {
    attention.output_cols(width);
    attention.check_parameters(name);
    check_shape(name, "linear1.weight", linear1.weight.view(), any_size, width);
    check_shape(name, "linear2.weight", linear2.weight.view(), width, linear1.weight.rows());
    if (!linear1.bias.empty()) check_size(name, "linear1.bias", VectorView<const T>(linear1.bias), linear1.weight.rows());
    if (!linear2.bias.empty()) check_size(name, "linear2.bias", VectorView<const T>(linear2.bias), width);
    for (const LayerNorm<T>* norm : {&norm1, &norm2}) {
      check_size(name, "norm", VectorView<const T>(norm->weight), width);
      if (!norm->bias.empty()) check_size(name, "norm.bias", VectorView<const T>(norm->bias), width);
    }
  }

  /// z [B m, D] is read and replaced.
  void forward(JaggedView<const T> tokens, Index m, MatrixView<T> z, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index d = z.cols();
    const MatrixView<T> normed = ws.matrix<T>(tokens.values().rows() + z.rows(), d), asked = ws.matrix<T>(z.rows(), d),
                        a = ws.matrix<T>(z.rows(), d), hidden = ws.matrix<T>(z.rows(), linear1.weight.rows());
    const detail::JoinedRows<T> users(tokens, m, false, normed, asked, ws);
    norm1.forward(z, asked, ws);
    users.for_each(tokens, m, [&](Index b, Index token, Index own) {
      norm1.forward(tokens[b], normed.middle_rows(token, tokens.length(b)), ws);
      detail::copy_rows<T>(asked.middle_rows(b * m, m), normed.middle_rows(own, m));
    });
    attention.forward(users.own, users.joined, a, ws);
    detail::add_rows<T>(z, a);
    norm2.forward(a, asked, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(asked)), simd::transposed(linear1.weight.view()),
                  {.bias = linear1.bias.empty() ? nullptr : linear1.bias.data(), .activation = Activation::gelu}, hidden, ws);
    linear2.forward(hidden, z, ws);
    detail::add_rows<T>(a, z);
  }
  void forward(JaggedView<const T> tokens, Index m, MatrixView<T> z, Saved& saved, const Step& step, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index rows = z.rows(), d = z.cols(), all = tokens.values().rows() + rows;
    for (Matrix<T>* x : {&saved.joined, &saved.normed}) x->resize(all, d);
    for (Matrix<T>* x : {&saved.asked, &saved.middle, &saved.normed_middle}) x->resize(rows, d);
    for (Matrix<T>* x : {&saved.z, &saved.hidden}) x->resize(rows, linear1.weight.rows());
    const detail::JoinedRows<T> users(tokens, m, false, saved.normed, saved.asked, ws);
    users.for_each(tokens, m, [&](Index b, Index token, Index own) {
      detail::copy_rows<T>(tokens[b], saved.joined.view().middle_rows(token, tokens.length(b)));
      detail::copy_rows<T>(z.middle_rows(b * m, m), saved.joined.view().middle_rows(own, m));
    });
    norm1.forward(saved.joined, saved.normed, saved.norm1, step, ws);
    users.for_each(tokens, m, [&](Index b, Index, Index own) {
      detail::copy_rows<T>(std::as_const(saved.normed).view().middle_rows(own, m), saved.asked.view().middle_rows(b * m, m));
    });
    attention.forward(users.own, users.joined, saved.middle, saved.attention, step, ws);
    detail::add_rows<T>(z, saved.middle);
    norm2.forward(saved.middle, saved.normed_middle, saved.norm2, step, ws);
    linear1.forward(saved.normed_middle, saved.z, ws);
    for (Index r = 0; r < rows; ++r) simd::activate(Activation::gelu, saved.z.row(r), saved.hidden.row(r), saved.z.cols());
    linear2.forward(saved.hidden, z, ws);
    detail::add_rows<T>(saved.middle, z);
  }
  /// dz [B m, D] is read and replaced by the gradient of what went in; adds to dtokens unless it is empty.
  void backward(JaggedView<const T> tokens, Index m, MatrixView<T> dz, const Saved& saved, MatrixView<T> dtokens,
                QueryResamplerLayer& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index rows = dz.rows(), d = dz.cols(), hidden = linear1.weight.rows(), all = tokens.values().rows() + rows;
    const MatrixView<T> dh = ws.matrix<T>(rows, hidden), dnormed = detail::zero_rows<T>(all, d, ws),
                        dasked = detail::zero_rows<T>(rows, d, ws), djoined = detail::zero_rows<T>(all, d, ws),
                        dmiddle = detail::zero_rows<T>(rows, d, ws);
    detail::linear_backward<T>(saved.hidden, linear2.weight, dz, dh, true, gradient.linear2.weight, gradient.linear2.bias, ws);
    for (Index r = 0; r < rows; ++r)
      simd::activate_backward(Activation::gelu, saved.z.row(r), saved.hidden.row(r), dh.row(r), dh.row(r), hidden);
    linear1.backward(saved.normed_middle, dh, {}, dmiddle, gradient.linear1, ws);
    norm2.backward(saved.middle, dmiddle, saved.norm2, dz, gradient.norm2, ws);  // dz is now that of a
    const detail::JoinedRows<T> users(tokens, m, false, dnormed, dasked, ws);
    attention.backward(users.own.with_values(saved.asked.view()), users.joined.with_values(saved.normed.view()), dz,
                       saved.attention, dasked, dnormed, gradient.attention, ws);
    users.for_each(tokens, m, [&](Index b, Index, Index own) {
      detail::add_rows<T>(dasked.middle_rows(b * m, m), dnormed.middle_rows(own, m));
    });
    norm1.backward(saved.joined, dnormed, saved.norm1, djoined, gradient.norm1, ws);
    users.for_each(tokens, m, [&](Index b, Index token, Index own) {
      detail::add_rows<T>(djoined.middle_rows(own, m), dz.middle_rows(b * m, m));
      if (!dtokens.empty())
        detail::add_rows<T>(djoined.middle_rows(token, tokens.length(b)), dtokens.middle_rows(tokens.begin(b), tokens.length(b)));
    });
  }
};

template <class T>
struct QueryResampler {
  Matrix<T> queries;  ///< [m, D]
  std::vector<QueryResamplerLayer<T>> blocks;
  LayerNorm<T> norm;

  QueryResampler() = default;
  /// Queries are normal with deviation 0.02. Throws `Error` for options out of range.
  QueryResampler(Index width, const QueryResamplerOptions& o, Random& random)
      : queries(checked_size("QueryResampler", "queries", o.queries), checked_size("QueryResampler", "width", width)),
        norm(width) {
    constexpr const char* name = "QueryResampler";
    check_option(name, "queries", o.queries >= 1, "one query or more", static_cast<double>(o.queries));
    check_option(name, "layers", o.layers >= 1, "one layer or more", static_cast<double>(o.layers));
    check_option(name, "hidden", o.hidden >= 0, "hidden >= 0, where 0 is four times the width", static_cast<double>(o.hidden));
    for (T& q : leaf_values(queries)) q = static_cast<T>(0.02 * random.normal());
    for (Index i = 0; i < o.layers; ++i) blocks.emplace_back(width, o.heads, o.hidden > 0 ? o.hidden : 4 * width, random);
  }
  static constexpr auto fields() {
    return std::tuple{parameter("queries", &QueryResampler::queries), layers("layers", &QueryResampler::blocks),
                      layer("norm", &QueryResampler::norm)};
  }
  struct Saved {
    std::vector<typename QueryResamplerLayer<T>::Saved> blocks;
    Matrix<T> last;  ///< [B m, D], what the final norm reads
    typename LayerNorm<T>::Saved norm;
  };

  void forward(JaggedView<const T> tokens, MatrixView<const T> condition, MatrixView<T> resampled, Workspace& ws) const {
    check("QueryResampler", tokens, condition, resampled);
    detail::repeat_rows<T>(queries, condition, resampled);
    for (const auto& block : blocks) block.forward(tokens, queries.rows(), resampled, ws);
    norm.forward(resampled, resampled, ws);
  }
  void forward(JaggedView<const T> tokens, MatrixView<const T> condition, MatrixView<T> resampled, Saved& saved, const Step& step,
               Workspace& ws) const {
    check("QueryResampler", tokens, condition, resampled);
    saved.blocks.resize(blocks.size());
    saved.last.resize(resampled.rows(), resampled.cols());
    detail::repeat_rows<T>(queries, condition, saved.last);
    for (std::size_t i = 0; i < blocks.size(); ++i)
      blocks[i].forward(tokens, queries.rows(), saved.last, saved.blocks[i], step.child(static_cast<Index>(i)), ws);
    norm.forward(saved.last, resampled, saved.norm, step, ws);
  }
  /// Adds to dtokens and dcondition (each unless empty) and to `gradient`.
  void backward(JaggedView<const T> tokens, MatrixView<const T> condition, MatrixView<const T> dresampled, const Saved& saved,
                MatrixView<T> dtokens, MatrixView<T> dcondition, QueryResampler& gradient, Workspace& ws) const {
    constexpr const char* name = "QueryResampler::backward";
    check(name, tokens, condition, dresampled);
    check_option(name, "saved", saved.blocks.size() == blocks.size(), "what forward left",
                 static_cast<double>(saved.blocks.size()));
    check_shape(name, "saved", saved.last.view(), dresampled.rows(), dresampled.cols());
    if (!dtokens.empty()) check_shape(name, "dtokens", dtokens, tokens.values().rows(), tokens.cols());
    if (!dcondition.empty()) check_shape(name, "dcondition", dcondition, condition.rows(), condition.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dz = detail::zero_rows<T>(dresampled.rows(), dresampled.cols(), ws);
    norm.backward(saved.last, dresampled, saved.norm, dz, gradient.norm, ws);
    for (std::size_t i = blocks.size(); i-- > 0;)
      blocks[i].backward(tokens, queries.rows(), dz, saved.blocks[i], dtokens, gradient.blocks[i], ws);
    detail::repeat_rows_backward<T>(dz, queries.rows(), gradient.queries, dcondition, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> tokens, MatrixView<const T> condition, MatrixView<const T> out) const {
    const Index d = queries.cols();
    check_option(name, "queries", queries.rows() >= 1, "one query or more", static_cast<double>(queries.rows()));
    check_jagged(name, "tokens", tokens, any_size, d);
    if (!condition.empty()) check_shape(name, "condition", condition, tokens.size(), d);
    check_shape(name, "resampled", out, tokens.size() * queries.rows(), d);
    check_size(name, "norm", VectorView<const T>(norm.weight), d);
    if (!norm.bias.empty()) check_size(name, "norm.bias", VectorView<const T>(norm.bias), d);
    for (const auto& block : blocks) block.check(name, d);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
