/// @file   recops/nn/positional_embedding.hpp
/// @brief  Learned positions added to the rows of sequences.
#pragma once
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// Which row of the table a sequence of length L gives its row i: i, or `max_length` - L + i, so that the last row always has the
/// last position (what left-padded batches do).
enum class PositionsFrom : unsigned char { start, end };

inline namespace RECOPS_ABI {

/// y_i = x_i + weight_position(i): a sequence layer. Sequences are at most `max_length` long. One pass.
template <class T>
struct PositionalEmbedding {
  Matrix<T> weight;  ///< [max_length, D]
  PositionsFrom from = PositionsFrom::end;

  PositionalEmbedding() = default;
  /// Normal with the given standard deviation.
  PositionalEmbedding(Index max_length, Index width, double deviation, Random& random, PositionsFrom f = PositionsFrom::end)
      : weight(checked_size("PositionalEmbedding", "max_length", max_length),
               checked_size("PositionalEmbedding", "width", width)),
        from(f) {
    for (T& w : leaf_values(weight)) w = static_cast<T>(deviation * random.normal());
  }

  static constexpr auto fields() { return std::tuple{parameter("weight", &PositionalEmbedding::weight)}; }
  /// Throws `Error` unless the input is as wide as the table.
  Index output_cols(Index input_cols) const {
    check_option("PositionalEmbedding", "input columns", input_cols == weight.cols(), "as many as weight has",
                 static_cast<double>(input_cols));
    return input_cols;
  }
  struct Saved {};
  /// y may be x.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace&) const {
    check("PositionalEmbedding", x, MatrixView<const T>(y));
    for (Index b = 0; b < x.size(); ++b) {
      const MatrixView<const T> rows = x[b];
      for (Index i = 0; i < rows.rows(); ++i) {
        const T *const in = rows.row(i), *const p = weight.row(first(rows.rows()) + i);
        T* const out = y.row(x.begin(b) + i);
        simd::for_each_vector<T, simd::DefaultArch>(rows.cols(), [=](Index k, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(out + k, load(in + k) + load(p + k));
        });
      }
    }
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, PositionalEmbedding& gradient,
                Workspace&) const {
    constexpr const char* name = "PositionalEmbedding::backward";
    check(name, x, dy);
    if (!dx.empty()) check_shape(name, "dx", dx, dy.rows(), dy.cols());
    check_gradient_shapes(name, *this, gradient);
    for (Index b = 0; b < x.size() && !gradient.weight.empty(); ++b)
      for (Index i = 0; i < x.length(b); ++i)
        simd::add(dy.row(x.begin(b) + i), gradient.weight.row(first(x.length(b)) + i), dy.cols());
    for (Index i = 0; i < dx.rows(); ++i) simd::add(dy.row(i), dx.row(i), dx.cols());
  }

 private:
  Index first(Index length) const { return from == PositionsFrom::end ? weight.rows() - length : 0; }
  void check(const char* name, JaggedView<const T> x, MatrixView<const T> y) const {
    check_jagged(name, "x", x, any_size, weight.cols());
    check_shape(name, "y", y, x.values().rows(), weight.cols());
    const Index longest = x.longest();
    check_option(name, "x", longest <= weight.rows(), "sequences of at most max_length rows", static_cast<double>(longest));
  }
};

/// Serving form: it has nothing to pack.
template <class T>
PositionalEmbedding<T> freeze(const PositionalEmbedding<T>& layer) {
  return layer;
}

}  // namespace RECOPS_ABI
}  // namespace recops
