/// Oracles: torch.nn.MultiheadAttention (golden/attention.safetensors), central differences, one serving form against the other.
#include <recops/nn/dense.hpp>
#include <recops/nn/multihead_attention.hpp>
#include <recops/nn/sequential.hpp>

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

TEMPLATE_TEST_CASE("the frozen layer is the layer, in both forms, on jagged, masked and strided batches",
                   "[nn][attention][freeze]", float, double) {
  using T = TestType;
  Random random = random_stream(23);
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  const std::vector<std::int64_t> query_offsets{0, 2, 2, 35, 40}, key_offsets{0, 17, 20, 150, 150};
  struct Case {
    Index heads, key_width, value_width;
    bool bias, masked;
  };
  for (const Case c :
       {Case{1, 12, 12, true, false}, Case{3, 12, 12, false, true}, Case{4, 5, 9, true, true}, Case{12, 12, 7, false, false}}) {
    CAPTURE(c.heads, c.key_width, c.value_width);
    MultiheadAttention<T> layer(12, c.heads, random, c.bias, c.key_width, c.value_width);
    for (T& b : layer.in_proj_bias) b = static_cast<T>(random.normal());
    for (T& b : layer.out_proj.bias) b = static_cast<T>(random.normal());
    const auto frozen = freeze(layer);
    Padded<T> x(random_matrix<T>(40, 12, random).view()), k(random_matrix<T>(150, c.key_width, random).view()),
        v(random_matrix<T>(150, c.value_width, random).view());
    std::vector<std::uint8_t> mask;
    for (Index i = 0; c.masked && i < 150; ++i) mask.push_back(i >= 17 && i < 20 ? 0 : random.chance(0.6));
    const JaggedView<const T> queries(x.view(), query_offsets), keys(k.view(), key_offsets);
    const bool one = c.key_width == 12 && c.value_width == 12;  // then keys and values are one tensor, projected at once
    const JaggedView<const T> values = one ? keys : JaggedView<const T>(v.view(), key_offsets);
    for (const AttentionForm form : {AttentionForm::cheapest, AttentionForm::projected, AttentionForm::absorbed}) {
      Padded<T> y(40, 12), z(40, 12);
      layer.forward(queries, keys, values, mask, y, ws, form);
      frozen.forward(queries, keys, values, mask, z, ws, form);
      CHECK(max_difference(y.view(), z.view()) < tolerance);
      CHECK(z.intact());
      for (Index d = 0; d < 12; ++d) CHECK(z.view()(39, d) == (c.bias ? layer.out_proj.bias[d] : T(0)));  // no keys
      const AllocationCounter allocations;
      frozen.forward(queries, keys, values, mask, z, ws, form);
      CHECK(allocations.count() == 0);
    }
  }
}

TEST_CASE("masked keys and values may hold NaN, forward, backward and frozen", "[nn][attention][nan]") {
  Random random = random_stream(26);
  Workspace ws;
  const MultiheadAttention<double> layer(6, 2, random, true, 4, 5);
  const Matrix<double> x = random_matrix<double>(3, 6, random), dy = random_matrix<double>(3, 6, random);
  Matrix<double> k = random_matrix<double>(9, 4, random), v = random_matrix<double>(9, 5, random);
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 0, 1, 1, 1, 0};
  MultiheadAttention<double>::Saved saved;
  Matrix<double> y(3, 6), z(3, 6), f(3, 6), dk(9, 4, 0.0), dv(9, 5, 0.0), dk_nan(9, 4, 0.0), dv_nan(9, 5, 0.0);
  auto gradient = make_gradient(layer), with_nan = make_gradient(layer);
  layer.forward(x, k, v, mask, y, saved, Step{}, ws);
  layer.backward(x, k, v, mask, dy, saved, {}, dk, dv, gradient, ws);
  for (const Index hidden : {2, 4, 8}) {
    std::fill_n(k.row(hidden), 4, std::numeric_limits<double>::quiet_NaN());
    std::fill_n(v.row(hidden), 5, std::numeric_limits<double>::quiet_NaN());
  }
  layer.forward(x, k, v, mask, z, saved, Step{}, ws);
  layer.backward(x, k, v, mask, dy, saved, {}, dk_nan, dv_nan, with_nan, ws);
  CHECK(max_difference(y.view(), z.view()) == 0);
  CHECK(max_difference(dk.view(), dk_nan.view()) == 0);
  CHECK(max_difference(dv.view(), dv_nan.view()) == 0);
  visit(
      [](const FieldPath&, const auto& a, const auto& b) {
        const auto want = leaf_values(a), got = leaf_values(b);
        for (Index i = 0; i < want.size(); ++i) REQUIRE(std::abs(want[i] - got[i]) < 1e-12);  // false for NaN
      },
      gradient, with_nan);
  for (const AttentionForm form : {AttentionForm::projected, AttentionForm::absorbed}) {
    layer.forward(x, k, v, mask, z, ws, form);
    freeze(layer).forward(x, k, v, mask, f, ws, form);
    CHECK(max_difference(y.view(), z.view()) < 1e-13);
    CHECK(max_difference(y.view(), f.view()) < 1e-13);
  }
}

TEST_CASE("the frozen layer keeps causal and window, attends to itself, and serves inside a Sequential",
          "[nn][attention][freeze]") {
  Random random = random_stream(24);
  Workspace ws;
  const std::vector<std::int32_t> offsets{0, 5, 5, 30};
  MultiheadAttention<double> attention(8, 2, random);
  attention.causal = true;
  attention.window = 4;
  const auto net = sequential<double>(Dense<double>(6, 8, Activation::silu, random), attention, Linear<double>(8, 3, random));
  const auto served = freeze(net);
  CHECK(served.output_cols(6) == 3);
  const Matrix<double> x = random_matrix<double>(30, 6, random), h = random_matrix<double>(30, 8, random);
  const JaggedView<const double> batch(x.view(), offsets), inner(h.view(), offsets);
  Matrix<double> y(30, 3), z(30, 3), a(30, 8), b(30, 8);
  net.forward(batch, y, ws);
  served.forward(batch, z, ws);
  CHECK(max_difference(y.view(), z.view()) < 1e-13);
  attention.forward(inner, a, ws);
  const auto frozen = freeze(attention);
  frozen.forward(inner, b, ws);
  CHECK(max_difference(a.view(), b.view()) < 1e-13);
  CHECK_THAT(error_of([&] { frozen.forward(inner, inner, inner, {}, b, ws, AttentionForm::absorbed); }),
             contains("form: expected projected"));
  CHECK_THAT(error_of([&] { (void)frozen.output_cols(6); }), contains("FrozenMultiheadAttention: input columns"));
}

TEST_CASE("loaded parameters that do not fit each other are refused, frozen or not", "[nn][attention][errors]") {
  Random random = random_stream(25);
  Workspace ws;
  const MultiheadAttention<float> good(6, 2, random), separate(6, 2, random, true, 4, 5);
  const Matrix<float> x(3, 6, 1.0f);
  Matrix<float> y(3, 6, 9.0f);
  const auto refuses = [&](const MultiheadAttention<float>& bad, const std::string& reason) {
    CHECK(error_of([&] { bad.forward(x, y, ws); }) == "MultiheadAttention: " + reason);
    CHECK(error_of([&] { freeze(bad); }) == "freeze(MultiheadAttention): " + reason);
  };
  auto bad = good;
  bad.heads = 4;
  refuses(bad, "heads: expected a number that divides embed, got 4");
  bad.heads = 0;
  refuses(bad, "heads: expected a number that divides embed, got 0");
  bad = good;
  bad.window = -1;
  refuses(bad, "window: expected window >= 0, where 0 is none, got -1");
  bad = good;
  bad.in_proj_weight.resize(17, 6);
  refuses(bad, "in_proj_weight: expected shape [18, 6], got [17, 6]");
  bad = good;
  bad.in_proj_bias.resize(17);
  refuses(bad, "in_proj_bias: expected size 18, got 17");
  bad = good;
  bad.out_proj.weight.resize(6, 5);
  refuses(bad, "out_proj.weight: expected shape [6, 6], got [6, 5]");
  bad = separate;
  bad.v_proj_weight.resize(5, 5);
  refuses(bad, "v_proj_weight: expected shape [6, _], got [5, 5]");
  refuses({}, "heads: expected a number that divides embed, got 1");
  CHECK_THAT(error_of([&] { FrozenMultiheadAttention<float>().forward(x, x, y, ws); }), contains("heads"));

  // Backward looks at the whole gradient before it adds to any of it.
  MultiheadAttention<float>::Saved saved;
  Matrix<float> out(3, 6);
  good.forward(x, out, saved, Step{}, ws);
  auto gradient = make_gradient(good);
  gradient.in_proj_weight = Matrix<float>(12, 6, 0.0f);
  CHECK(error_of([&] { good.backward(x, out.view(), saved, {}, gradient, ws); }) ==
        "MultiheadAttention::backward: gradient of in_proj_weight: expected shape [18, 6], got [12, 6]");
  CHECK_THAT(error_of([&] { good.backward(x, y.view().middle_rows(0, 2), saved, {}, gradient, ws); }),
             contains("MultiheadAttention::backward: dy: expected shape [3, 6], got [2, 6]"));
  for (const float g : leaf_values(gradient.out_proj.weight)) CHECK(g == 0);
  for (const float v : leaf_values(y)) CHECK(v == 9);
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
