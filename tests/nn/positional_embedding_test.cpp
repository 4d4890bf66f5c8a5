// Oracles: plain loops; central differences.
#include <recops/nn/positional_embedding.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

static_assert(SequenceLayer<PositionalEmbedding<float>, float>);

TEMPLATE_TEST_CASE("positions from either end", "[nn][positional_embedding]", float, double) {
  using T = TestType;
  Random random = random_stream(511);
  Workspace ws;
  const Vector<std::int64_t> offsets{0, 3, 3, 8};
  for (const Index cols : {1, 7, 16})
    for (const PositionsFrom from : {PositionsFrom::start, PositionsFrom::end}) {
      const PositionalEmbedding<T> layer(6, cols, 1.0, random, from);
      const Matrix<T> x = random_matrix<T>(8, cols, random);
      Padded<T> y(8, cols);
      layer.forward(JaggedView<const T>(x, offsets), y, ws);
      Matrix<T> expected(8, cols);
      for (Index b = 0; b < 3; ++b)
        for (Index i = offsets[b]; i < offsets[b + 1]; ++i) {
          const Index place = i - offsets[b] + (from == PositionsFrom::end ? 6 - (offsets[b + 1] - offsets[b]) : 0);
          for (Index j = 0; j < cols; ++j) expected(i, j) = x(i, j) + layer.weight(place, j);
        }
      CHECK(max_difference(y.view(), expected.view()) == 0);
      CHECK(y.intact());
    }
}

TEST_CASE("gradients and errors of positional embeddings", "[nn][positional_embedding]") {
  Random random = random_stream(512);
  Matrix<double> x = random_matrix<double>(8, 5, random);
  const Vector<std::int64_t> offsets{0, 3, 3, 8};
  PositionalEmbedding<double> layer(5, 5, 1.0, random);
  CHECK(gradient_check(layer, JaggedView<double>(x, offsets)).worst < 1e-8);
  Workspace ws;
  Matrix<double> y(8, 5);
  CHECK(error_of([&] { layer.forward(x, y, ws); }) ==
        "PositionalEmbedding: x: expected sequences of at most max_length rows, got 8");
}
