// Oracles: PyTorch's vectors (golden/pooling.py), central differences.
#include <recops/attention/additive_pool.hpp>
#include <recops/attention/fq_former.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {
/// The largest |got / 2 - want|.
template <class T>
double off(MatrixView<const T> got, const Matrix<double>& want) {
  double worst = got.rows() * got.cols() == want.rows() * want.cols() ? 0 : 1e9;
  for (Index i = 0; i < want.rows() * want.cols(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(got(i / got.cols(), i % got.cols())) / 2 - want.data()[i]));
  return worst;
}
}  // namespace

TEMPLATE_TEST_CASE("fq former against PyTorch", "[attention][fq_former][golden]", float, double) {
  using T = TestType;
  const Golden golden("pooling");
  const double tolerance = std::is_same_v<T, float> ? 3e-4 : 1e-10;
  const auto offsets = golden.values<std::int64_t>("offsets");
  Workspace ws;
  for (const std::string name : {"fq", "fq2"}) {
    CAPTURE(name);
    Random random(1);
    FqFormer<T> layer(6, {.queries = 2, .heads = 2, .layers = name == "fq" ? 1 : 3}, random);
    set_parameters<T>(golden, name + ".", layer);
    const Matrix<T> x = golden.matrix<T>(name + ".x"), dy = golden.matrix<T>(name + ".dy");
    const JaggedView<const T> tokens(x, offsets);
    Padded<T> y(dy.rows(), 6), dx(x.rows(), 6);
    auto gradient = make_gradient(layer);
    typename FqFormer<T>::Saved saved;
    layer.forward(tokens, y, saved, {}, ws);
    CHECK(max_difference(y.view(), golden.matrix<double>(name + ".y").view()) < tolerance);
    for (int twice = 0; twice < 2; ++twice) layer.backward(tokens, dy, saved, dx, gradient, ws);
    CHECK(off<T>(dx, golden.matrix<double>(name + ".dx")) < tolerance);
    visit(
        [&](const FieldPath& path, const auto& leaf) {
          if (leaf_values(leaf).empty()) return;
          CAPTURE(path.str());
          CHECK(off<T>(MatrixView<const T>(leaf.data(), 1, leaf_values(leaf).size()),
                       golden.matrix<double>(name + ".d." + path.str())) < tolerance);
        },
        gradient);
    layer.forward(tokens, y, ws);
    CHECK(max_difference(y.view(), golden.matrix<double>(name + ".y").view()) < tolerance);
    CHECK((y.intact() && dx.intact()));
    CHECK(count_allocations([&] {
            layer.forward(tokens, y, saved, {}, ws);
            layer.backward(tokens, dy, saved, dx, gradient, ws);
            layer.forward(tokens, y, ws);
          }) == 0);
  }
}

TEST_CASE("fq former gradients and independence", "[attention][fq_former]") {
  Random random = random_stream(76);
  FqFormer<double> layer(4, {.queries = 2, .heads = 2, .layers = 2, .dropout = 0.2}, random);
  visit(
      [&](const FieldPath&, auto& leaf) {
        for (double& w : leaf_values(leaf)) w += 0.3 * random.normal();
      },
      layer);
  Matrix<double> x = random_matrix<double>(8, 4, random), y(3, 4), dx(8, 4, 0.0), other(3, 4);
  const Matrix<double> g = random_matrix<double>(3, 4, random);
  const std::vector<std::int64_t> offsets{0, 5, 5, 8};
  const JaggedView<const double> tokens(x, offsets);
  Threads threads{2};
  Workspace ws, threaded(make_executor(threads, 2));
  FqFormer<double>::Saved saved;
  auto gradient = make_gradient(layer);
  const Step step{5, 2, 0};
  layer.forward(tokens, y, saved, step, ws);
  layer.backward(tokens, g, saved, dx, gradient, ws);
  FqFormer<double>::Saved again;
  const auto loss = [&] {
    layer.forward(tokens, other, again, step, ws);
    double sum = 0;
    for (Index i = 0; i < 12; ++i) sum += other.data()[i] * g.data()[i];
    return sum;
  };
  GradientReport report;
  check_gradient("tokens", leaf_values(x), leaf_values(dx), loss, report);
  visit([&](const FieldPath& path, auto& leaf,
            const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report); },
        layer, gradient);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 5e-6);
  layer.forward(tokens, y, ws);
  layer.forward(tokens, other, threaded);
  CHECK(max_difference(y.view(), other.view()) == 0);
  for (Index j = 0; j < 4; ++j) std::swap(x(0, j), x(3, j));  // the order of modalities
  x(7, 0) = std::numeric_limits<double>::quiet_NaN();
  layer.forward(tokens, other, ws);
  CHECK(max_difference(y.view().middle_rows(0, 2), other.view().middle_rows(0, 2)) < 1e-12);
  CHECK(std::isnan(other(2, 0)));
  CHECK(error_of([&] { FqFormer<float>(6, {.queries = 0}, random); }).find("one query or more") != std::string::npos);
  CHECK(error_of([&] { FqFormer<float>(6, {.layers = 0}, random); }).find("one layer or more") != std::string::npos);
  Matrix<double> few(2, 4), narrow(2, 3);
  CHECK(error_of([&] { layer.forward(tokens, few, ws); }).find("fused: expected shape [3, 4]") != std::string::npos);
  CHECK(error_of([&] { layer.forward(narrow, other, ws); }).find("tokens: expected shape [_, 4]") != std::string::npos);
}

TEMPLATE_TEST_CASE("additive pool against PyTorch", "[attention][additive_pool][golden]", float, double) {
  using T = TestType;
  const Golden golden("pooling");
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const auto offsets = golden.values<std::int64_t>("offsets");
  Random random(1);
  AdditivePool<T> layer(5, 7, random);
  set_parameters<T>(golden, "additive.", layer);
  const Matrix<T> x = golden.matrix<T>("additive.x"), dy = golden.matrix<T>("additive.dy");
  const JaggedView<const T> rows(x, offsets);
  Padded<T> y(dy.rows(), 5), dx(x.rows(), 5);
  auto gradient = make_gradient(layer);
  typename AdditivePool<T>::Saved saved;
  Workspace ws;
  layer.forward(rows, {}, y, saved, {}, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("additive.y").view()) < tolerance);
  for (int twice = 0; twice < 2; ++twice) layer.backward(rows, {}, dy, saved, dx, gradient, ws);
  CHECK(off<T>(dx, golden.matrix<double>("additive.dx")) < tolerance);
  CHECK(off<T>(gradient.u.view(), golden.matrix<double>("additive.d.u")) < tolerance);
  CHECK(off<T>(MatrixView<const T>(gradient.w.data(), 1, 7), golden.matrix<double>("additive.d.w")) < tolerance);
  CHECK((y.intact() && dx.intact()));
  gradient.w = {};  // not wanted
  layer.backward(rows, {}, dy, saved, {}, gradient, ws);
  // A masked row might as well not be there.
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(x.rows()), 1);
  mask[1] = 0;
  Matrix<T> without(2, 5), masked(4, 5), one(1, 5), hidden_nan = x;
  std::copy_n(x.row(0), 5, without.row(0));
  std::copy_n(x.row(2), 5, without.row(1));
  hidden_nan(1, 2) = std::numeric_limits<T>::quiet_NaN();
  layer.forward(JaggedView<const T>(hidden_nan, offsets), mask, masked, ws);
  layer.forward(without, {}, one, ws);
  for (Index j = 0; j < 5; ++j) CHECK(std::abs(static_cast<double>(masked(0, j) - one(0, j))) < tolerance);
  for (Index j = 0; j < 5; ++j) CHECK(masked(1, j) == 0);  // nobody there
  CHECK(count_allocations([&] { layer.forward(rows, {}, y, ws); }) == 0);
  CHECK(error_of([&] { AdditivePool<T>(5, 0, random); }).find("hidden >= 1") != std::string::npos);
  CHECK(error_of([&] {
          additive_pool<T>(rows, layer.u, VectorView<const T>(layer.w.data(), 6), {}, y, {}, {}, ws);
        }).find("w: expected") != std::string::npos);
  // Named as this operator's, not as those of what is behind it.
  Matrix<T> narrow(4, 4);
  CHECK(error_of([&] { layer.forward(rows, {}, narrow, ws); }).find("additive_pool: pooled: expected shape [4, 5]") !=
        std::string::npos);
  CHECK(error_of([&] {
          layer.forward(JaggedView<const T>(narrow), {}, y, ws);
        }).find("additive_pool: x: expected shape [_, 5]") != std::string::npos);
}
