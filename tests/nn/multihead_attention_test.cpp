/// Oracles: torch.nn.MultiheadAttention (golden/attention.safetensors), central differences, one serving form against the other.
#include <recops/nn/multihead_attention.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

static_assert(SequenceLayer<MultiheadAttention<float>, float>);

TEMPLATE_TEST_CASE("multi-head attention loads PyTorch's parameters and gives its numbers and gradients",
                   "[nn][attention][golden]", float, double) {
  using T = TestType;
  const Golden golden("attention");
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  for (const std::string name : {"packed", "separate", "unbiased"}) {
    CAPTURE(name);
    const std::string prefix = "mha_" + name + "_";
    Random random(1);
    const Matrix<T> x = golden.matrix<T>(prefix + "x"), k = golden.matrix<T>(prefix + "k"),
                    dout = golden.matrix<T>(prefix + "dout");
    const Matrix<T> v = name == "separate" ? golden.matrix<T>(prefix + "v") : k;
    MultiheadAttention<T> layer(x.cols(), static_cast<Index>(golden.scalar(prefix + "heads")), random, name != "unbiased",
                                k.cols(), v.cols());
    visit(
        [&](const FieldPath& path, auto& leaf) {
          const auto values = leaf_values(leaf);
          if (values.empty()) return;
          const auto want = golden.template values<T>(prefix + "parameter." + path.str());
          REQUIRE(static_cast<Index>(want.size()) == values.size());
          std::copy(want.begin(), want.end(), values.begin());
        },
        layer);
    std::vector<std::uint8_t> mask;
    if (name == "separate") mask = golden.values<std::uint8_t>(prefix + "mask");
    const Matrix<T> want = golden.matrix<T>(prefix + "out");
    for (const AttentionForm form : {AttentionForm::cheapest, AttentionForm::projected, AttentionForm::absorbed}) {
      Matrix<T> y(want.rows(), want.cols(), T(9));
      layer.forward(x, k, v, mask, y, ws, form);
      CHECK(max_difference(y.view(), want.view()) < tolerance);
    }
    Matrix<T> y(want.rows(), want.cols()), dx(x.rows(), x.cols(), T(0)), dk(k.rows(), k.cols(), T(0)),
        dv(v.rows(), v.cols(), T(0));
    typename MultiheadAttention<T>::Saved saved;
    MultiheadAttention<T> gradient = make_gradient(layer);
    layer.forward(x, k, v, mask, y, saved, Step{}, ws);
    CHECK(max_difference(y.view(), want.view()) < tolerance);
    MatrixView<T> dvalues = name == "separate" ? dv.view() : dk.view();  // one tensor, one gradient
    layer.backward(x, k, v, mask, dout, saved, dx, dk, dvalues, gradient, ws);
    CHECK(max_difference(dx.view(), golden.matrix<T>(prefix + "dx").view()) < tolerance);
    CHECK(max_difference(dk.view(), golden.matrix<T>(prefix + "dk").view()) < tolerance);
    if (name == "separate") CHECK(max_difference(dv.view(), golden.matrix<T>(prefix + "dv").view()) < tolerance);
    visit(
        [&](const FieldPath& path, auto& leaf) {
          const auto got = leaf_values(leaf);
          if (got.empty()) return;
          CAPTURE(path.str());
          const auto exact = golden.template values<T>(prefix + "gradient." + path.str());
          CHECK(max_difference(MatrixView<const T>(got.data(), 1, got.size()), MatrixView<const T>(exact.data(), 1, got.size())) <
                4 * tolerance);
        },
        gradient);
  }
}

TEMPLATE_TEST_CASE("both serving forms agree on jagged batches with masks and empty users", "[nn][attention]", float, double) {
  using T = TestType;
  Random random = random_stream(20);
  Workspace ws;
  const std::vector<int> query_offsets{0, 1, 1, 34, 39, 40}, key_offsets{0, 64, 71, 71, 328, 330};
  for (const Index heads : {1, 2, 6}) {
    MultiheadAttention<T> layer(12, heads, random, true, 9, 7);
    for (T& b : layer.in_proj_bias) b = static_cast<T>(random.normal());
    const Matrix<T> x = random_matrix<T>(40, 12, random), k = random_matrix<T>(330, 9, random),
                    v = random_matrix<T>(330, 7, random);
    std::vector<std::uint8_t> mask(330);
    for (auto& m : mask) m = random.chance(0.7) ? 1 : 0;
    mask[328] = mask[329] = 0;  // the last user sees nothing
    Matrix<T> a(40, 12), b(40, 12), trained(40, 12);
    const JaggedView<const T> queries(x.view(), query_offsets), keys(k.view(), key_offsets), values(v.view(), key_offsets);
    layer.forward(queries, keys, values, mask, a, ws, AttentionForm::projected);
    layer.forward(queries, keys, values, mask, b, ws, AttentionForm::absorbed);
    typename MultiheadAttention<T>::Saved saved;
    layer.forward(queries, keys, values, mask, trained, saved, Step{}, ws);
    CHECK(max_difference(a.view(), b.view()) < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
    CHECK(max_difference(a.view(), trained.view()) == 0);
    for (Index d = 0; d < 12; ++d) CHECK(b(39, d) == layer.out_proj.bias[d]);
    const AllocationCounter allocations;
    layer.forward(queries, keys, values, mask, a, ws, AttentionForm::projected);
    layer.forward(queries, keys, values, mask, a, ws, AttentionForm::absorbed);
    layer.forward(queries, keys, values, mask, trained, saved, Step{}, ws);
    CHECK(allocations.count() == 0);
    Threads threads{3};
    Workspace parallel(make_executor(threads, 3));
    layer.forward(queries, keys, values, mask, a, parallel, AttentionForm::absorbed);
    CHECK(max_difference(a.view(), b.view()) == 0);
  }
}

TEST_CASE("gradients of causal self-attention agree with central differences; a key bias has none", "[nn][attention]") {
  Random random = random_stream(21);
  Workspace ws;
  const std::vector<int> offsets{0, 4, 4, 9};
  MultiheadAttention<double> layer(6, 2, random);
  for (double& b : layer.in_proj_bias) b = random.normal();
  layer.causal = true;
  layer.window = 3;
  Matrix<double> x = random_matrix<double>(9, 6, random), y(9, 6);
  const Matrix<double> dy = random_matrix<double>(9, 6, random);
  const auto loss = [&] {
    layer.forward(JaggedView<const double>(std::as_const(x).view(), offsets), y, ws);
    double sum = 0;
    for (Index i = 0; i < 54; ++i) sum += y.data()[i] * dy.data()[i];
    return sum;
  };
  MultiheadAttention<double>::Saved saved;
  MultiheadAttention<double> gradient = make_gradient(layer);
  Matrix<double> dx(9, 6, 0.0);
  const JaggedView<const double> in(std::as_const(x).view(), offsets);
  layer.forward(in, y, saved, Step{}, ws);
  layer.backward(in, dy, saved, dx, gradient, ws);
  const auto compare = [&](VectorView<double> at, VectorView<const double> g) {
    for (Index i = 0; i < at.size(); ++i) {
      const double before = at[i];
      at[i] = before + 1e-6;
      const double up = loss();
      at[i] = before - 1e-6;
      const double down = loss();
      at[i] = before;
      REQUIRE(std::abs((up - down) / 2e-6 - g[i]) < 2e-8);
    }
  };
  compare(VectorView<double>(x.data(), 54), VectorView<const double>(dx.data(), 54));
  visit([&](const FieldPath&, auto& leaf, auto& g) { compare(leaf_values(leaf), leaf_values(g)); }, layer, gradient);
  for (Index i = 6; i < 12; ++i) CHECK(std::abs(gradient.in_proj_bias[i]) < 1e-13);
}

TEST_CASE("the layer names wrong shapes and writes nothing", "[nn][attention][errors]") {
  Random random = random_stream(22);
  Workspace ws;
  CHECK_THAT(error_of([&] { MultiheadAttention<float>(6, 4, random); }),
             contains("MultiheadAttention: heads: expected a number that divides embed"));
  MultiheadAttention<float> layer(6, 2, random);
  Matrix<float> x(3, 6, 1.0f), k(5, 6, 1.0f), odd(5, 4, 1.0f), fewer(4, 6, 1.0f), y(3, 6, 9.0f), small(2, 6);
  const auto error = [&](const auto& a, const auto& b, const auto& c, auto& out) {
    return error_of([&] { layer.forward(a, b, c, {}, out, ws); });
  };
  CHECK_THAT(error(odd, k, k, y), contains("MultiheadAttention: queries: expected shape [_, 6], got [5, 4]"));
  CHECK_THAT(error(x, odd, k, y), contains("keys: expected shape [_, 6], got [5, 4]"));
  CHECK_THAT(error(x, k, fewer, y), contains("values: expected shape [5, _], got [4, 6]"));
  CHECK_THAT(error(x, k, k, small), contains("y: expected shape [3, 6], got [2, 6]"));
  layer.causal = true;
  CHECK_THAT(error_of([&] { layer.forward(x, k, k, {}, y, ws, AttentionForm::absorbed); }), contains("form: expected projected"));
  layer.heads = 5;
  CHECK_THAT(error(x, k, k, y), contains("heads"));
  for (Index i = 0; i < 18; ++i) CHECK(y.data()[i] == 9.0f);
}
