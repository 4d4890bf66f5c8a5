/// @file   recops/attention/fq_former.hpp
/// @brief  Fusion of modalities by self-attention over learned queries and modality tokens together (Fusion-Q-Former of EM3).
///
///     Z = [Q; X]      Z <- norm(Z + attention(Z))  layer by layer      fused = flatten(the query rows) W^T + b
///
/// Shapes      tokens [total, D]: of each item one vector or more per modality, projected to D   fused [B, D]
/// Layers      norm after, no feed-forward network. The last layer computes the query rows alone: nothing reads the others.
/// Edge cases  without tokens the queries see each other.   The order of tokens does not matter.   NaN stays in its item.
/// Precision   T.   Same bits for any number of threads.
/// Cost        per item and layer, n = queries + tokens: 8 n D^2 + 4 n^2 D flops (last layer: 4 (queries + n) D^2), and 2 queries D^2.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   EM3, arXiv 2404.06078, section 3.2 and its published code (whose scale is 1 / sqrt(d + 1e-5); here 1 / sqrt(d)).
#pragma once
#include <recops/attention/joined_rows.hpp>
#include <recops/nn/attention_sublayer.hpp>

namespace recops {

/// Options of `FqFormer`.
struct FqFormerOptions {
  Index queries = 1;
  Index heads = 4;  ///< divides the width
  Index layers = 1;
  double dropout = 0;  ///< of the attention's output, in training
};

inline namespace RECOPS_ABI {

template <class T>
struct FqFormer {
  Matrix<T> queries;  ///< [m, D]
  std::vector<AttentionSublayer<T>> blocks;
  Linear<T> mm_proj;  ///< [D, m D]

  FqFormer() = default;
  /// Queries are normal with deviation 0.02. Throws `Error` for options out of range.
  FqFormer(Index width, const FqFormerOptions& o, Random& random)
      : queries(checked_size("FqFormer", "queries", o.queries), checked_size("FqFormer", "width", width)),
        mm_proj(o.queries * width, width, random) {
    check_option("FqFormer", "queries", o.queries >= 1, "one query or more", static_cast<double>(o.queries));
    check_option("FqFormer", "layers", o.layers >= 1, "one layer or more", static_cast<double>(o.layers));
    for (T& q : leaf_values(queries)) q = static_cast<T>(0.02 * random.normal());
    for (Index i = 0; i < o.layers; ++i) blocks.emplace_back(width, o.heads, o.dropout, random);
  }
  static constexpr auto fields() {
    return std::tuple{parameter("queries", &FqFormer::queries), layers("layers", &FqFormer::blocks),
                      layer("mm_proj", &FqFormer::mm_proj)};
  }
  struct Saved {
    std::vector<Matrix<T>> z;  ///< [B m + total, D], what each layer reads
    Matrix<T> asked, last;     ///< [B m, D], the query rows that go into the last layer and come out of it
    std::vector<typename AttentionSublayer<T>::Saved> blocks;
  };

  void forward(JaggedView<const T> tokens, MatrixView<T> fused, Workspace& ws) const {
    check("FqFormer", tokens, fused);
    const auto mark = ws.mark();
    const Index m = queries.rows(), d = queries.cols(), users = tokens.size(), all = tokens.values().rows() + users * m;
    MatrixView<T> z = ws.matrix<T>(all, d), next = blocks.size() > 1 ? ws.matrix<T>(all, d) : z;
    const MatrixView<T> asked = ws.matrix<T>(users * m, d), last = ws.matrix<T>(users * m, d);
    const detail::JoinedRows<T> rows(tokens, m, true, z, asked, ws);
    join(tokens, rows, z);
    for (std::size_t i = 0; i + 1 < blocks.size(); ++i, std::swap(z, next)) {
      const JaggedView<const T> in = rows.joined.with_values(MatrixView<const T>(z));
      blocks[i].forward(in, in, next, ws);
    }
    take(tokens, rows, z, asked);
    blocks.back().forward(rows.own, rows.joined.with_values(MatrixView<const T>(z)), last, ws);
    mm_proj.forward(flat(last), fused, ws);
  }
  void forward(JaggedView<const T> tokens, MatrixView<T> fused, Saved& saved, const Step& step, Workspace& ws) const {
    check("FqFormer", tokens, fused);
    const auto mark = ws.mark();
    const Index m = queries.rows(), d = queries.cols(), users = tokens.size(), all = tokens.values().rows() + users * m;
    saved.z.resize(blocks.size());
    saved.blocks.resize(blocks.size());
    for (Matrix<T>& z : saved.z) z.resize(all, d);
    for (Matrix<T>* x : {&saved.asked, &saved.last}) x->resize(users * m, d);
    const detail::JoinedRows<T> rows(tokens, m, true, saved.z[0], saved.asked, ws);
    join(tokens, rows, saved.z[0]);
    for (std::size_t i = 0; i + 1 < blocks.size(); ++i) {
      const JaggedView<const T> in = rows.joined.with_values(std::as_const(saved.z[i]).view());
      blocks[i].forward(in, in, saved.z[i + 1], saved.blocks[i], step.child(static_cast<Index>(i)), ws);
    }
    take(tokens, rows, saved.z.back(), saved.asked);
    blocks.back().forward(rows.own, rows.joined.with_values(std::as_const(saved.z.back()).view()), saved.last,
                          saved.blocks.back(), step.child(static_cast<Index>(blocks.size()) - 1), ws);
    mm_proj.forward(flat(std::as_const(saved.last).view()), fused, ws);
  }
  /// Adds to dtokens (unless empty) and to `gradient`.
  void backward(JaggedView<const T> tokens, MatrixView<const T> dfused, const Saved& saved, MatrixView<T> dtokens,
                FqFormer& gradient, Workspace& ws) const {
    constexpr const char* name = "FqFormer::backward";
    check(name, tokens, dfused);
    const Index m = queries.rows(), d = queries.cols(), users = tokens.size(), all = tokens.values().rows() + users * m;
    check_option(name, "saved", saved.z.size() == blocks.size() && saved.blocks.size() == blocks.size(), "what forward left",
                 static_cast<double>(saved.z.size()));
    check_shape(name, "saved", saved.z.back().view(), all, d);
    check_shape(name, "saved", saved.last.view(), users * m, d);
    if (!dtokens.empty()) check_shape(name, "dtokens", dtokens, tokens.values().rows(), d);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dlast = ws.matrix<T>(users * m, d), dasked = detail::zero_rows<T>(users * m, d, ws);
    MatrixView<T> dz = detail::zero_rows<T>(all, d, ws);
    detail::linear_backward<T>(flat(saved.last.view()), mm_proj.weight, dfused, MatrixView<T>(dlast.data(), users, m * d), true,
                               gradient.mm_proj.weight, gradient.mm_proj.bias, ws);
    const detail::JoinedRows<T> rows(tokens, m, true, dz, dasked, ws);
    const auto in = [&](std::size_t i) { return rows.joined.with_values(saved.z[i].view()); };
    blocks.back().backward(rows.own.with_values(saved.asked.view()), in(blocks.size() - 1), dlast, saved.blocks.back(), dasked,
                           dz, gradient.blocks.back(), ws);
    rows.for_each(tokens, m,
                  [&](Index b, Index, Index own) { detail::add_rows<T>(dasked.middle_rows(b * m, m), dz.middle_rows(own, m)); });
    for (std::size_t i = blocks.size() - 1; i-- > 0;) {
      const MatrixView<T> before = detail::zero_rows<T>(all, d, ws);
      blocks[i].backward(in(i), in(i), dz, saved.blocks[i], before, before, gradient.blocks[i], ws);
      dz = before;
    }
    rows.for_each(tokens, m, [&](Index b, Index token, Index own) {
      detail::copy_rows<T>(dz.middle_rows(own, m), dasked.middle_rows(b * m, m));
      if (!dtokens.empty())
        detail::add_rows<T>(dz.middle_rows(token, tokens.length(b)), dtokens.middle_rows(tokens.begin(b), tokens.length(b)));
    });
    detail::repeat_rows_backward<T>(dasked, m, gradient.queries, {}, ws);
  }

 private:
  void check(const char* name, JaggedView<const T> tokens, MatrixView<const T> fused) const {
    const Index d = queries.cols();
    check_option(name, "layers", !blocks.empty(), "one layer or more", 0);
    check_option(name, "queries", queries.rows() >= 1, "one query or more", static_cast<double>(queries.rows()));
    check_jagged(name, "tokens", tokens, any_size, d);
    check_shape(name, "fused", fused, tokens.size(), d);
    check_shape(name, "mm_proj.weight", mm_proj.weight.view(), d, queries.rows() * d);
    for (const auto& block : blocks) block.attention.output_cols(d);
  }
  void join(JaggedView<const T> tokens, const detail::JoinedRows<T>& rows, MatrixView<T> z) const {
    rows.for_each(tokens, queries.rows(), [&](Index b, Index token, Index own) {
      detail::copy_rows<T>(queries, z.middle_rows(own, queries.rows()));
      detail::copy_rows<T>(tokens[b], z.middle_rows(token, tokens.length(b)));
    });
  }
  void take(JaggedView<const T> tokens, const detail::JoinedRows<T>& rows, MatrixView<const T> z, MatrixView<T> asked) const {
    const Index m = queries.rows();
    rows.for_each(tokens, m,
                  [&](Index b, Index, Index own) { detail::copy_rows<T>(z.middle_rows(own, m), asked.middle_rows(b * m, m)); });
  }
  /// [B m, D] as [B, m D].
  MatrixView<const T> flat(MatrixView<const T> rows) const {
    const Index m = queries.rows();
    return MatrixView<const T>(rows.data(), rows.rows() / m, m * rows.cols());
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
